//! What operators apply (`deploy/aws`): well formed, and neither less nor more than EnvForge asks AWS for.
//!
//! `terraform validate` needs HashiCorp's provider: it runs where `.tools/terraform-plugins` is a mirror that holds it, and the
//! output says when it does not.

use std::path::{Path, PathBuf};
use std::process::Command;

use envforge_testkit::tools::{on_path, tools_dir};

const MODULES: [&str; 2] = ["control-plane", "organization"];
/// Every action that `Ec2` and `SsmStore` ask for, and what they need besides.
const ASKED: [&str; 15] = [
    "ec2:CreateTags",
    "ec2:DescribeInstanceStatus",
    "ec2:DescribeInstances",
    "ec2:RunInstances",
    "ec2:StartInstances",
    "ec2:StopInstances",
    "ec2:TerminateInstances",
    "iam:PassRole",
    "kms:Decrypt",
    "kms:DescribeKey",
    "kms:Encrypt",
    "kms:GenerateDataKey",
    "ssm:DeleteParameter",
    "ssm:GetParameters",
    "ssm:PutParameter",
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/aws")
}

fn terraform(arguments: &[&str], directory: &Path) -> (bool, String) {
    let output = Command::new("terraform").args(arguments).current_dir(directory).output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    (output.status.success(), text)
}

#[test]
fn the_modules_are_well_formed() {
    if on_path("terraform").is_none() {
        println!("terraform is not installed: neither its syntax nor its types were checked");
        return;
    }
    let (well, text) = terraform(&["fmt", "-check", "-recursive", "-diff"], &folder());
    assert!(well, "run `terraform fmt -recursive deploy/aws`:\n{text}");
    let plugins = tools_dir().join("terraform-plugins");
    if !plugins.is_dir() {
        println!("{} is not there: `terraform fmt` ran, `terraform validate` did not", plugins.display());
        return;
    }
    for module in MODULES {
        let copy = tempfile::tempdir().unwrap();
        std::fs::copy(folder().join(module).join("main.tf"), copy.path().join("main.tf")).unwrap();
        let from = format!("-plugin-dir={}", plugins.display());
        let (made, text) = terraform(&["init", "-backend=false", "-input=false", &from], copy.path());
        assert!(made, "{module}: {text}");
        let (valid, text) = terraform(&["validate"], copy.path());
        assert!(valid, "{module}: {text}");
    }
}

#[test]
fn the_control_plane_may_do_what_it_asks_for_and_nothing_wholesale() {
    let text = std::fs::read_to_string(folder().join("control-plane/main.tf")).unwrap();
    for action in ASKED {
        assert!(text.contains(&format!("\"{action}\"")), "`{action}` is missing");
    }
    for action in [
        "ec2:*",
        "ssm:*",
        "kms:*",
        "iam:*",
        "\"*:*\"",
        "iam:Create",
        "iam:Put",
        "kms:CreateGrant",
        "ec2:ModifyInstance",
    ] {
        assert!(!text.contains(action), "`{action}` is more than it needs");
    }
}
