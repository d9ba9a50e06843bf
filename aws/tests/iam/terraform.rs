//! What operators apply (`deploy/aws`) allows neither less nor more than EnvForge asks AWS for. Whether it is well formed: `validate`.

use std::collections::BTreeSet;

use super::evaluator::{Asked, Decision, evaluate};
use super::modules::{ACCOUNT, CONTROL_PLANE, DEPLOYMENT, ORGANIZATION, document, folder, text};

pub(crate) const MODULES: [&str; 2] = ["control-plane", "organization"];
/// What AWS asks for besides, on behalf of what is asked for: tags and the role of a launch, and the key of a SecureString.
const ASKED_BESIDES: [&str; 4] = ["ec2:CreateTags", "iam:PassRole", "kms:Decrypt", "kms:Encrypt"];

/// Every action that the control plane's code asks AWS for: whatever is called of a client of the SDKs.
fn asked() -> BTreeSet<String> {
    let sources = [("ec2", include_str!("../../src/ec2.rs")), ("ssm", include_str!("../../src/ssm.rs"))];
    let mut asked = BTreeSet::new();
    for (service, source) in sources {
        let source: String = source.split_whitespace().collect();
        for (client, service) in [("client.", service), ("kms.", "kms")] {
            for call in source.split(client).skip(1) {
                let name: String =
                    call.chars().take_while(|letter| letter.is_ascii_lowercase() || *letter == '_').collect();
                if call[name.len()..].starts_with("()") {
                    let word = |word: &str| word[..1].to_uppercase() + &word[1..];
                    asked.insert(format!("{service}:{}", name.split('_').map(word).collect::<String>()));
                }
            }
        }
    }
    asked
}

#[test]
fn the_control_plane_may_do_what_it_asks_for_and_nothing_else() {
    let document = document("control-plane", "control_plane");
    let statements = document["Statement"].as_array().unwrap().iter();
    let allowed = statements.flat_map(|statement| statement["Action"].as_array().unwrap());
    let allowed: BTreeSet<String> = allowed.map(|action| action.as_str().unwrap().to_owned()).collect();
    let wanted: BTreeSet<String> = asked().into_iter().chain(ASKED_BESIDES.map(str::to_owned)).collect();
    assert!(wanted.contains("ec2:RunInstances") && wanted.contains("ssm:PutParameter"), "{wanted:?}");
    assert_eq!(allowed, wanted);
}

const KEY: &str = "arn:aws:kms:eu-central-1:123456789012:key/1";

#[test]
fn the_control_plane_writes_and_takes_away_enrolment_tokens_and_reads_none() {
    let document = document("control-plane", "control_plane");
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
}

/// The key's own policy: as far as the control plane's, for one organization. What the account's administrators do is theirs.
#[test]
fn an_organizations_key_serves_its_own_parameters_through_ssm() {
    let key = document("organization", "key");
    let parameter = |org: &str, path: &str| {
        format!("arn:aws:ssm:eu-central-1:{ACCOUNT}:parameter/envforge/{DEPLOYMENT}/{org}/{path}")
    };
    let (secret, token) = ("secrets/wsp_1/TOKEN/1", "hosts/host_1/enrolment");
    let uses = |who: &str, action: &str, context: &str, service: Option<&str>| {
        let asked = Asked::new(action, KEY).by(who).with("kms:EncryptionContext:PARAMETER_ARN", context);
        let asked = match service {
            Some(service) => asked.with("kms:ViaService", service),
            None => asked,
        };
        evaluate(&[&key], &asked) == Decision::Allowed
    };
    let ssm = Some("ssm.eu-central-1.amazonaws.com");
    let (own, foreign) = (parameter(ORGANIZATION, secret), parameter("org_00000000000000000000000000000002", secret));
    for action in ["kms:Encrypt", "kms:Decrypt"] {
        assert!(uses(CONTROL_PLANE, action, &own, ssm), "{action}");
        assert!(!uses(CONTROL_PLANE, action, &foreign, ssm), "{action} for another organization");
        assert!(!uses(CONTROL_PLANE, action, &own, Some("s3.eu-central-1.amazonaws.com")), "{action} through S3");
        assert!(!uses(CONTROL_PLANE, action, &own, None), "{action} by itself");
        assert!(!uses("arn:aws:iam::123456789012:role/other", action, &own, ssm), "{action} by somebody else");
    }
    let token = parameter(ORGANIZATION, token);
    assert!(uses(CONTROL_PLANE, "kms:Encrypt", &token, ssm) && !uses(CONTROL_PLANE, "kms:Decrypt", &token, ssm));
    assert!(!uses(CONTROL_PLANE, "kms:GenerateDataKey", &own, ssm), "standard parameters have no data keys");
}

/// Flags that descriptions and outputs speak of are those of `serve`.
#[test]
fn the_modules_name_settings_as_the_product_does() {
    let serve = include_str!("../../../envforge/src/server/serve.rs");
    for module in MODULES {
        for flag in text(module).split("`--").skip(1) {
            let name = flag.split([' ', '`']).next().unwrap().replace('-', "_");
            assert!(serve.contains(&format!(" {name}:")), "{module} names `--{name}`, which `serve` does not have");
        }
    }
    let output = text("organization");
    for pattern in ["alias/envforge-${var.deployment}-{org}", "aws-ssm:${local.region}:${var.deployment}:alias/"] {
        assert!(output.contains(pattern), "{pattern}");
    }
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
