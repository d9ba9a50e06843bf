//! What operators apply (`deploy/aws`): well formed, and neither less nor more than EnvForge asks AWS for.
//!
//! `terraform validate` needs HashiCorp's provider for all that it knows: it has it where `.tools/terraform-plugins` is a mirror that holds
//! it. Elsewhere it judges what it can without, arguments and references are held against the provider's schema (`schema`), and the
//! output says what was not looked at.

use std::path::{Path, PathBuf};
use std::process::Command;

use envforge_testkit::tools::{on_path, tools_dir};
use serde_json::{Value, json};

use super::evaluator::{Asked, Decision, evaluate};
use super::schema;

const MODULES: [&str; 2] = ["control-plane", "organization"];
/// Every action that `Ec2` and `SsmStore` ask for, and what they need besides.
const ASKED: [&str; 16] = [
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
    "ssm:DescribeParameters",
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
    let has_provider = plugins.is_dir();
    if !has_provider {
        println!(
            "{} is not there: `terraform validate` had no provider, and types of values were not checked",
            plugins.display()
        );
    }
    for module in MODULES {
        let copy = tempfile::tempdir().unwrap();
        std::fs::copy(folder().join(module).join("main.tf"), copy.path().join("main.tf")).unwrap();
        if !has_provider {
            let (_, told) = terraform(&["validate", "-json", "-no-color"], copy.path());
            // A remark about its own configuration may stand before it.
            let told: Value = serde_json::from_str(&told[told.find('{').unwrap()..=told.rfind('}').unwrap()]).unwrap();
            let known = |diagnostic: &&Value| diagnostic["summary"] != "Missing required provider";
            let wrong: Vec<_> = told["diagnostics"].as_array().unwrap().iter().filter(known).collect();
            assert!(wrong.is_empty(), "{module}: {wrong:#?}");
            continue;
        }
        let from = format!("-plugin-dir={}", plugins.display());
        let (made, text) = terraform(&["init", "-backend=false", "-input=false", &from], copy.path());
        assert!(made, "{module}: {text}");
        let (valid, text) = terraform(&["validate"], copy.path());
        assert!(valid, "{module}: {text}");
    }
}

fn provider_schema() -> Value {
    serde_json::from_str(include_str!("golden/aws_provider.json")).unwrap()
}

/// Whether `terraform` is there or not.
#[test]
fn the_modules_say_nothing_that_the_provider_does_not_know() {
    let schema = provider_schema();
    for module in MODULES {
        let text = std::fs::read_to_string(folder().join(module).join("main.tf")).unwrap();
        assert_eq!(schema::mistakes(&schema, &text), Vec::<String>::new(), "{module}");
    }
    println!("arguments, blocks, attributes and references: as in {}", schema["from"]["provider"]);
}

#[test]
fn what_the_provider_does_not_know_is_found() {
    let text = std::fs::read_to_string(folder().join("organization/main.tf")).unwrap();
    for (right, wrong, told) in [
        ("enable_key_rotation", "enable_key_rotations", "`aws_kms_key.secrets` takes no `enable_key_rotations`"),
        ("  policy = var.instance_policy\n", "", "`aws_iam_role_policy.machines` lacks `policy`"),
        (
            "      test     = \"StringLike\"\n",
            "",
            "`data.aws_iam_policy_document.key.statement.condition` lacks `test`",
        ),
        ("condition {", "conditions {", "`data.aws_iam_policy_document.key.statement` takes no block `conditions`"),
        ("[var.control_plane_role_arn]", "[var.control_plane]", "`var.control_plane` is not declared"),
        ("local.parameters}/secrets", "local.parameter}/secrets", "`local.parameter` is not declared"),
        ("aws_kms_key.secrets.arn", "aws_kms_key.secrets.arm", "`aws_kms_key.secrets` has no `arm`"),
        ("aws_kms_key.secrets.key_id", "aws_kms_key.secret.key_id", "`aws_kms_key.secret` is not declared"),
        ("var.instance_policy\n", "local.name\n", "the variable `instance_policy` is used nowhere"),
    ] {
        assert!(text.contains(right), "{right}");
        let found = schema::mistakes(&provider_schema(), &text.replacen(right, wrong, 1));
        assert!(found.iter().any(|mistake| mistake == told), "{wrong}: {found:?}");
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

const ACCOUNT: &str = "123456789012";
const KEY: &str = "arn:aws:kms:eu-central-1:123456789012:key/1";
const ORGANIZATION: &str = "org_00000000000000000000000000000001";

/// What a list of `main.tf` holds, with the module's own values in place. Only what these files use.
fn texts(list: &str) -> Vec<String> {
    let parameters = format!("arn:aws:ssm:eu-central-1:{ACCOUNT}:parameter/envforge/production");
    let quoted = list.split('"').skip(1).step_by(2);
    let filled = quoted.map(|text| {
        [
            ("${local.partition}", "aws"),
            ("${local.region}", "eu-central-1"),
            ("${local.account}", ACCOUNT),
            ("${local.parameters}", &parameters),
            ("${local.ec2}", &format!("arn:aws:ec2:eu-central-1:{ACCOUNT}")),
            ("${var.deployment}", "production"),
        ]
        .into_iter()
        .fold(text.to_owned(), |text, (name, value)| text.replace(name, value))
    });
    filled.collect()
}

/// The statements about parameters and keys of a policy document in `main.tf`, as IAM has them.
fn document(module: &str, name: &str) -> Value {
    let text = std::fs::read_to_string(folder().join(module).join("main.tf")).unwrap();
    let start = format!("data \"aws_iam_policy_document\" \"{name}\" {{");
    let body = text.split(&start).nth(1).unwrap().split("\n}\n").next().unwrap();
    let after = |block: &str, key: &str| {
        let line = block.lines().map(str::trim).find(|line| line.split(' ').next() == Some(key));
        texts(line.and_then(|line| line.split_once('=')).map_or("", |(_, value)| value))
    };
    let statements = body.split("\n  statement {").skip(1).filter_map(|block| {
        let actions = after(block, "actions");
        actions.iter().all(|action| action.starts_with("ssm:") || action.starts_with("kms:")).then(|| {
            let mut conditions = json!({});
            for condition in block.split("condition {").skip(1) {
                let [test] = after(condition, "test").try_into().unwrap();
                let [variable] = after(condition, "variable").try_into().unwrap();
                conditions[test][variable] = json!(after(condition, "values"));
            }
            let resources = after(block, "resources");
            json!({ "Effect": "Allow", "Action": actions, "Resource": resources, "Condition": conditions })
        })
    });
    json!({ "Version": "2012-10-17", "Statement": statements.collect::<Vec<_>>() })
}

#[test]
fn the_control_plane_writes_and_takes_away_enrolment_tokens_and_reads_none() {
    let document = document("control-plane", "control_plane");
    assert_eq!(document["Statement"].as_array().unwrap().len(), 6, "{document:#}");
    let parameter = |of: &str, path: &str| {
        format!("arn:aws:ssm:eu-central-1:{ACCOUNT}:parameter/envforge/{of}/{ORGANIZATION}/{path}")
    };
    let may = |action: &str, resource: &str| evaluate(&[&document], &Asked::new(action, resource)) == Decision::Allowed;
    let uses = |action: &str, context: &str, service: &str| {
        let asked = Asked::new(action, KEY).with("kms:ViaService", service);
        evaluate(&[&document], &asked.with("kms:EncryptionContext:PARAMETER_ARN", context)) == Decision::Allowed
    };
    let ssm = "ssm.eu-central-1.amazonaws.com";
    let token = parameter("production", "hosts/host_1/enrolment");
    let secret = parameter("production", "secrets/wsp_1/TOKEN/1");
    for action in ["ssm:PutParameter", "ssm:DeleteParameter"] {
        assert!(may(action, &token) && may(action, &secret), "{action}");
        assert!(!may(action, &parameter("other", "hosts/host_1/enrolment")), "{action} of another deployment");
        assert!(!may(action, &parameter("production", "hosts/host_1/other")), "{action}");
    }
    for action in ["ssm:GetParameter", "ssm:GetParameters", "ssm:GetParameterHistory", "ssm:GetParametersByPath"] {
        assert!(!may(action, &token), "{action}");
    }
    assert!(may("ssm:AddTagsToResource", &secret) && !may("ssm:AddTagsToResource", &token));
    assert!(may("ssm:GetParameters", &secret) && may("ssm:DescribeParameters", "*"));
    assert!(uses("kms:Encrypt", &token, ssm) && !uses("kms:Decrypt", &token, ssm));
    assert!(uses("kms:Decrypt", &secret, ssm) && !uses("kms:Decrypt", &secret, "s3.eu-central-1.amazonaws.com"));
    // The key's own policy gives the control plane no more.
    let text = std::fs::read_to_string(folder().join("organization/main.tf")).unwrap();
    let writes =
        text.split("TheControlPlaneWritesEnrolmentTokens").nth(1).unwrap().split("statement {").next().unwrap();
    assert!(!writes.contains("kms:Decrypt"), "{writes}");
}

/// Services without a route listen on loopback; a group keeps what listens elsewhere all the same from everybody but the gateway.
#[test]
fn nothing_but_the_gateway_reaches_an_organizations_machines() {
    let text = std::fs::read_to_string(folder().join("organization/main.tf")).unwrap();
    let rules: Vec<_> =
        text.split("resource \"").filter(|block| block.starts_with("aws_vpc_security_group_ingress")).collect();
    let [rule] = rules.as_slice() else { panic!("{} rules", rules.len()) };
    let rule = rule.split("\n}\n").next().unwrap();
    let value = |key: &str| {
        let mut lines = rule.lines().filter_map(|line| line.trim().split_once('='));
        lines.find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim())
    };
    assert_eq!(value("referenced_security_group_id"), Some("var.gateway_security_group_id"));
    assert_eq!(
        (value("ip_protocol"), value("from_port"), value("to_port")),
        (Some("\"tcp\""), Some("32768"), Some("60999"))
    );
    assert!(!text.contains("\n  ingress {"), "rules stand by themselves");
}
