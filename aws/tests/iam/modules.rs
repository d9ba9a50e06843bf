//! The policies of operators' modules (`deploy/aws`), as IAM has them: read out of `main.tf` with an installation's values in place.
//!
//! Only what these files use of Terraform's language.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

pub(crate) const DEPLOYMENT: &str = "production";
pub(crate) const ACCOUNT: &str = "123456789012";
pub(crate) const ORGANIZATION: &str = "org_00000000000000000000000000000001";
pub(crate) const CONTROL_PLANE: &str = "arn:aws:iam::123456789012:role/envforge-control-plane";
pub(crate) const SUBNET: &str = "subnet-1a2b";
pub(crate) const SECURITY_GROUP: &str = "sg-1a2b";
pub(crate) const IMAGE: &str = "ami-12345678";

pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/aws")
}

pub(crate) fn text(module: &str) -> String {
    std::fs::read_to_string(folder().join(module).join("main.tf")).unwrap()
}

/// The ARN of something of EC2's.
pub(crate) fn ec2(thing: &str) -> String {
    let account = if thing.starts_with("image/") { "" } else { ACCOUNT };
    format!("arn:aws:ec2:eu-central-1:{account}:{thing}")
}

/// The statements of a policy document in `main.tf`, each of them an `Allow`.
pub(crate) fn document(module: &str, name: &str) -> Value {
    let text = text(module);
    let start = format!("data \"aws_iam_policy_document\" \"{name}\" {{");
    let body = text.split(&start).nth(1).unwrap().split("\n}\n").next().unwrap();
    let statements = body.split("\n  statement {").skip(1).map(|block| {
        let inner = |kind: &str| block.split(&format!("{kind} {{")).skip(1).collect::<Vec<_>>();
        let mut conditions = json!({});
        for condition in inner("condition") {
            let [test] = texts(module, condition, "test").try_into().unwrap();
            let [variable] = texts(module, condition, "variable").try_into().unwrap();
            conditions[test][variable] = json!(texts(module, condition, "values"));
        }
        let mut statement = json!({
            "Sid": texts(module, block, "sid"), "Effect": "Allow", "Action": texts(module, block, "actions"),
            "Resource": texts(module, block, "resources"), "Condition": conditions,
        });
        if let [principals] = inner("principals")[..] {
            assert_eq!(texts(module, principals, "type"), ["AWS"]);
            statement["Principal"]["AWS"] = json!(texts(module, principals, "identifiers"));
        }
        statement
    });
    json!({ "Version": "2012-10-17", "Statement": statements.collect::<Vec<_>>() })
}

/// What `key = …` holds in a block: a text, a list, or lists put together.
fn texts(module: &str, block: &str, key: &str) -> Vec<String> {
    let mut lines =
        block.lines().map(str::trim).skip_while(|line| line.split_once('=').is_none_or(|(name, _)| name.trim() != key));
    let mut list = lines.next().and_then(|line| line.split_once('=')).map_or("", |(_, value)| value).to_owned();
    let open = |text: &str| text.matches(['[', '(']).count() > text.matches([']', ')']).count();
    while open(&list) {
        list.push_str(lines.next().unwrap());
    }
    let of_organization = if module == "organization" { format!("/{ORGANIZATION}") } else { String::new() };
    let parameters = format!("arn:aws:ssm:eu-central-1:{ACCOUNT}:parameter/envforge/{DEPLOYMENT}{of_organization}");
    let quoted = |text: String| format!("\"{text}\"");
    let filled = [
        ("${local.partition}", "aws".to_owned()),
        ("${local.region}", "eu-central-1".to_owned()),
        ("${local.account}", ACCOUNT.to_owned()),
        ("${local.parameters}", parameters),
        ("${local.ec2}", format!("arn:aws:ec2:eu-central-1:{ACCOUNT}")),
        ("${var.deployment}", DEPLOYMENT.to_owned()),
        ("[var.deployment]", quoted(DEPLOYMENT.to_owned())),
        ("var.control_plane_role_arn", quoted(CONTROL_PLANE.to_owned())),
        ("var.subnet_arns", quoted(ec2(&format!("subnet/{SUBNET}")))),
        ("var.security_group_arns", quoted(ec2(&format!("security-group/{SECURITY_GROUP}")))),
        ("var.image_arns", quoted(ec2(&format!("image/{IMAGE}")))),
    ]
    .into_iter()
    .fold(list, |list, (name, value)| list.replace(name, &value));
    assert!(!filled.contains("${") && !filled.contains("var."), "`{filled}` has a value that nobody gives");
    filled.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}
