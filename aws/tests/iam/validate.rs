//! The modules of `deploy/aws` are well formed: `terraform fmt`, `terraform init` and `terraform validate` take them.
//!
//! HashiCorp's provider comes from its registry alone. Terraform validates with a stand-in (`stand_in`) that has the provider's schema,
//! and with the provider itself where `.tools/terraform-plugins` is a mirror that holds it (`terraform providers mirror`). Where
//! Terraform is not installed the output says so, and our own reading of the schema is all that is held (`schema`).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use envforge_testkit::tools::{on_path, tools_dir};
use serde_json::Value;
use tempfile::TempDir;

use super::modules::{folder, text};
use super::schema;
use super::stand_in::StandIn;
use super::terraform::MODULES;

fn provider_schema() -> Value {
    serde_json::from_str(include_str!("golden/aws_provider.json")).unwrap()
}

/// Whether Terraform is here. Where it is not the test has nothing to say, and says that.
fn is_here() -> bool {
    let here = on_path("terraform").is_some();
    if !here {
        println!(
            "terraform is not installed: the modules were held against our own reading of the provider's schema alone"
        );
    }
    here
}

/// Without what this machine has set for it: its cache of providers, for one, is not to get ours.
fn terraform() -> Command {
    let mut terraform = Command::new(on_path("terraform").unwrap());
    terraform.env_clear().env("CHECKPOINT_DISABLE", "1");
    terraform
}

/// A folder with one module, and how Terraform finds the provider for it without a network.
struct Prepared {
    folder: TempDir,
    reattach: Option<String>,
}

impl Prepared {
    /// The module's text after `terraform init` with the providers of `mirror` and no other.
    fn new(text: &str, mirror: &Path) -> Result<Self, String> {
        let prepared = Self { folder: tempfile::tempdir().unwrap(), reattach: None };
        prepared.write(text);
        let installation =
            format!("provider_installation {{\n  filesystem_mirror {{\n    path = {mirror:?}\n  }}\n}}\n");
        std::fs::write(prepared.folder.path().join("terraform.rc"), installation).unwrap();
        let (made, told) = prepared.terraform(&["init", "-backend=false", "-input=false", "-no-color"]);
        // Its lines are broken where they would be too long for a terminal.
        if made { Ok(prepared) } else { Err(told.split_whitespace().collect::<Vec<_>>().join(" ")) }
    }

    fn write(&self, text: &str) {
        std::fs::write(self.folder.path().join("main.tf"), text).unwrap();
    }

    fn terraform(&self, arguments: &[&str]) -> (bool, String) {
        let mut terraform = terraform();
        terraform.args(arguments).current_dir(self.folder.path());
        terraform.env("TF_CLI_CONFIG_FILE", self.folder.path().join("terraform.rc"));
        let output = terraform.envs(self.reattach.as_ref().map(|of| ("TF_REATTACH_PROVIDERS", of))).output().unwrap();
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        (output.status.success(), text)
    }

    /// What `terraform validate` finds, an error or a warning each: its summary and its detail.
    fn diagnostics(&self) -> Vec<String> {
        let (valid, told) = self.terraform(&["validate", "-json"]);
        let told: Value = serde_json::from_str(&told).unwrap_or_else(|error| panic!("{error}: {told}"));
        assert_eq!(told["valid"], valid);
        let diagnostics = told["diagnostics"].as_array().unwrap().iter();
        diagnostics
            .map(|one| format!("{}: {}", one["summary"].as_str().unwrap(), one["detail"].as_str().unwrap()))
            .collect()
    }
}

/// The provider as Terraform finds it here: a mirror in which it is but a name, since `terraform init` looks at no more, and the stand-in
/// to which everything else goes.
struct Provider {
    schema: Value,
    mirror: TempDir,
    stand_in: StandIn,
}

impl Provider {
    fn start() -> Self {
        let (schema, mirror) = (provider_schema(), tempfile::tempdir().unwrap());
        let version = schema["from"]["provider"].as_str().unwrap().strip_prefix("hashicorp/aws ").unwrap();
        let told = terraform().args(["version", "-json"]).output().unwrap().stdout;
        let told: Value = serde_json::from_slice(&told).unwrap();
        let path = format!("registry.terraform.io/hashicorp/aws/{version}/{}", told["platform"].as_str().unwrap());
        let path = mirror.path().join(path);
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join(format!("terraform-provider-aws_v{version}")), "").unwrap();
        let stand_in = StandIn::start(&schema);
        Self { schema, mirror, stand_in }
    }

    fn prepare(&self, text: &str) -> Result<Prepared, String> {
        let prepared = Prepared::new(text, self.mirror.path())?;
        Ok(Prepared { reattach: Some(self.stand_in.reattach()), ..prepared })
    }
}

#[test]
fn terraform_would_write_the_modules_as_they_are_written() {
    if is_here() {
        let output = terraform().args(["fmt", "-check", "-recursive", "-diff"]).arg(folder()).output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "run `terraform fmt -recursive deploy/aws`:\n{told}");
    }
}

#[test]
fn terraform_initializes_and_validates_every_module() {
    if !is_here() {
        return;
    }
    let folders = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let with_code: BTreeSet<PathBuf> = folders.filter(|path| path.join("main.tf").exists()).collect();
    assert_eq!(with_code, MODULES.map(|module| folder().join(module)).into());

    let (provider, own) = (Provider::start(), tools_dir().join("terraform-plugins"));
    for module in MODULES {
        let text = text(module);
        let prepared = provider.prepare(&text).unwrap();
        assert_eq!(prepared.diagnostics(), Vec::<String>::new(), "{module}");
        let block = |line: &str| {
            let labels = line.strip_prefix("resource \"").or_else(|| line.strip_prefix("data \""))?;
            Some(labels.split('"').next()?.to_owned())
        };
        assert_eq!(provider.stand_in.asked(), text.lines().filter_map(block).collect(), "{module}");
        if own.is_dir() {
            assert_eq!(Prepared::new(&text, &own).unwrap().diagnostics(), Vec::<String>::new(), "{module}");
        }
    }
    let by = &provider.schema["from"]["provider"];
    println!("validated with a stand-in that has the schema of {by}; with the provider itself: {}", own.is_dir());
}

/// Terraform prints a schema in the form in which ours is kept.
#[test]
fn terraform_has_the_schema_from_the_stand_in() {
    if !is_here() {
        return;
    }
    fn without_kinds_of_descriptions(of: &mut Value) {
        if let Value::Object(members) = of {
            members.remove("description_kind");
            members.values_mut().for_each(without_kinds_of_descriptions);
        }
    }
    let provider = Provider::start();
    let (told, shown) = provider.prepare(&text("organization")).unwrap().terraform(&["providers", "schema", "-json"]);
    assert!(told, "{shown}");
    let mut shown: Value = serde_json::from_str(&shown).unwrap();
    let shown = &mut shown["provider_schemas"]["registry.terraform.io/hashicorp/aws"];
    without_kinds_of_descriptions(shown);
    for kind in ["resource_schemas", "data_source_schemas"] {
        assert_eq!(shown[kind], provider.schema[kind], "{kind}");
    }
}

/// Changes to the module `organization`: what stands there, what stands there instead, and what our own reading and Terraform each say
/// of it, or nothing where they do not see it.
const MISTAKES: [(&str, &str, &str, &str); 15] = [
    (
        "enable_key_rotation",
        "enable_key_rotations",
        "`aws_kms_key.secrets` takes no `enable_key_rotations`",
        "Unsupported argument: An argument named \"enable_key_rotations\" is not expected here.",
    ),
    (
        "  policy = var.instance_policy\n",
        "",
        "`aws_iam_role_policy.machines` lacks `policy`",
        "Missing required argument: The argument \"policy\" is required, but no definition was found.",
    ),
    (
        "      test     = \"StringLike\"\n",
        "",
        "`data.aws_iam_policy_document.key.statement.condition` lacks `test`",
        "Missing required argument: The argument \"test\" is required, but no definition was found.",
    ),
    (
        "condition {\n      test",
        "conditions {\n      test",
        "`data.aws_iam_policy_document.key.statement` takes no block `conditions`",
        "Unsupported block type: Blocks of type \"conditions\" are not expected here.",
    ),
    (
        "[var.control_plane_role_arn]",
        "[var.control_plane]",
        "`var.control_plane` is not declared",
        "Reference to undeclared input variable: An input variable with the name \"control_plane\" has not been declared.",
    ),
    (
        "local.parameters}/secrets",
        "local.parameter}/secrets",
        "`local.parameter` is not declared",
        "Reference to undeclared local value: A local value with the name \"parameter\" has not been declared.",
    ),
    (
        "aws_kms_key.secrets.arn",
        "aws_kms_key.secrets.arm",
        "`aws_kms_key.secrets` has no `arm`",
        "Unsupported attribute: This object has no argument, nested block, or exported attribute named \"arm\".",
    ),
    (
        "aws_kms_key.secrets.key_id",
        "aws_kms_key.secret.key_id",
        "`aws_kms_key.secret` is not declared",
        "Reference to undeclared resource: A managed resource \"aws_kms_key\" \"secret\" has not been declared",
    ),
    (
        "data \"aws_partition\" \"current\"",
        "data \"aws_partitions\" \"current\"",
        "`aws_partitions` is not in the schema: add it to provider_schema.py",
        "Invalid data source: The provider hashicorp/aws does not support data source \"aws_partitions\".",
    ),
    // What Terraform alone sees.
    (
        "= 32768",
        "= \"the first\"",
        "",
        "Incorrect attribute value type: Inappropriate value for attribute \"from_port\": a number is required.",
    ),
    (
        "= [\"kms:*\"]",
        "= \"kms:*\"",
        "",
        "Incorrect attribute value type: Inappropriate value for attribute \"actions\": set of string required.",
    ),
    (
        "tags        = local.tags",
        "tags        = local.name",
        "",
        "Incorrect attribute value type: Inappropriate value for attribute \"tags\": map of string required.",
    ),
    (
        "vpc_id      = var.vpc_id",
        "vpc_id      = local.tags",
        "",
        "Incorrect attribute value type: Inappropriate value for attribute \"vpc_id\": string required.",
    ),
    // What Terraform leaves to the provider, and to whoever writes it.
    ("enable_key_rotation = true", "key_id = \"1\"", "`aws_kms_key.secrets` takes no `key_id`", ""),
    ("var.instance_policy\n", "local.name\n", "the variable `instance_policy` is used nowhere", ""),
];

/// Whether Terraform is there or not.
#[test]
fn the_modules_say_nothing_that_the_provider_does_not_know() {
    let schema = provider_schema();
    for module in MODULES {
        assert_eq!(schema::mistakes(&schema, &text(module)), Vec::<String>::new(), "{module}");
    }
    let organization = text("organization");
    for (right, wrong, told, _) in MISTAKES.iter().filter(|(_, _, told, _)| !told.is_empty()) {
        assert!(organization.contains(right), "{right}");
        let found = schema::mistakes(&schema, &organization.replacen(right, wrong, 1));
        assert!(found.iter().any(|mistake| mistake == told), "{wrong}: {found:?}");
    }
}

#[test]
fn terraform_refuses_what_the_provider_does_not_know() {
    if !is_here() {
        return;
    }
    let (provider, organization) = (Provider::start(), text("organization"));
    let prepared = provider.prepare(&organization).unwrap();
    for (right, wrong, _, told) in MISTAKES.iter().filter(|(_, _, _, told)| !told.is_empty()) {
        assert!(organization.contains(right), "{right}");
        prepared.write(&organization.replacen(right, wrong, 1));
        let found = prepared.diagnostics();
        assert!(found.iter().any(|mistake| mistake.starts_with(told)), "{wrong}: {found:#?}");
    }
    for (right, wrong, told) in [
        ("version = \">= 5.0\"", "version = \"< 6.25\"", "no available releases match the given constraints < 6.25"),
        ("\"hashicorp/aws\"", "\"hashicorp/aws2\"", "provider registry.terraform.io/hashicorp/aws2 was not found"),
    ] {
        assert!(organization.contains(right), "{right}");
        let found = provider.prepare(&organization.replacen(right, wrong, 1)).err().unwrap_or_default();
        assert!(found.contains(told), "{wrong}: {found}");
    }
}
