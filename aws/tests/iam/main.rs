//! The policies of instance profiles, judged by a small evaluator of IAM: no machine reads another organization's parameters.
#![allow(clippy::unwrap_used)]

mod evaluator;
mod launch;
mod modules;
mod schema;
mod stand_in;
mod terraform;
mod validate;

use std::collections::BTreeSet;

use envforge_aws::{Deployment, InstancePolicy, KeyArn, PolicyTooLarge, SecretReader, UserData};
use envforge_domain::ids::{HostId, OrgId, ProjectId, WorkspaceId};
use proptest::prelude::*;
use uuid::Uuid;

use evaluator::{Asked, Decision, evaluate};

const KEY: &str = "arn:aws:kms:eu-central-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab";

fn deployment() -> Deployment {
    "production".parse().unwrap()
}

fn key() -> KeyArn {
    KEY.parse().unwrap()
}

fn org(number: u128) -> OrgId {
    OrgId::from_uuid(Uuid::from_u128(number))
}

/// The widest: machines that read their workspaces' secrets themselves.
fn policy(
    of: OrgId,
    workspaces: impl IntoIterator<Item = u128>,
    projects: impl IntoIterator<Item = u128>,
) -> InstancePolicy {
    InstancePolicy {
        deployment: deployment(),
        org: of,
        key: key(),
        secrets: SecretReader::Machine,
        workspaces: workspaces.into_iter().map(|number| WorkspaceId::from_uuid(Uuid::from_u128(number))).collect(),
        projects: projects.into_iter().map(|number| ProjectId::from_uuid(Uuid::from_u128(number))).collect(),
    }
}

/// As it is where the control plane reads secrets.
fn narrow(wide: &InstancePolicy) -> InstancePolicy {
    InstancePolicy { secrets: SecretReader::default(), ..wide.clone() }
}

fn enrolments(of: &InstancePolicy) -> String {
    of.key.parameter(&of.deployment.enrolment_parameter(of.org, HostId::from_uuid(Uuid::from_u128(3))))
}

/// Everything that is under an organization's path for these owners, as ARNs.
fn parameters(of: &InstancePolicy) -> Vec<String> {
    let owners = of.workspaces.iter().map(ToString::to_string).chain(of.projects.iter().map(ToString::to_string));
    let secrets = owners.map(|owner| format!("{}/TOKEN/1", of.deployment.secrets_path(of.org, &owner)));
    secrets.map(|path| of.key.parameter(&path)).chain([enrolments(of)]).collect()
}

/// To read a SecureString is to get it and to decrypt it in its own context, through SSM.
fn reads(documents: &[&serde_json::Value], parameter: &str) -> bool {
    let got = Asked::new("ssm:GetParameters", parameter);
    let decrypted = Asked::new("kms:Decrypt", KEY)
        .with("kms:ViaService", "ssm.eu-central-1.amazonaws.com")
        .with("kms:EncryptionContext:PARAMETER_ARN", parameter);
    [got, decrypted].iter().all(|asked| evaluate(documents, asked) == Decision::Allowed)
}

#[test]
fn the_policies_are_the_reviewed_ones() {
    let wide = policy(org(1), [10, 11], [20]);
    for (policy, file) in [(narrow(&wide), "instance_profile.json"), (wide, "instance_profile_with_secrets.json")] {
        let text = format!("{}\n", serde_json::to_string_pretty(&policy.document().unwrap()).unwrap());
        let path = format!("{}/tests/iam/golden/{file}", env!("CARGO_MANIFEST_DIR"));
        let golden = std::fs::read_to_string(&path).unwrap_or_default();
        if text != golden {
            let fresh = format!("{}/{file}", env!("CARGO_TARGET_TMPDIR"));
            std::fs::write(&fresh, &text).unwrap();
            panic!("the policy differs from {path}; review it and copy {fresh} over it");
        }
    }
}

/// Its agent gets values with the order of a wake: what comes to the machine's role learns how agents enrol, and no secret at all.
#[test]
fn a_machine_reads_its_organizations_enrolment_tokens_and_not_even_its_own_workspaces_secrets() {
    let wide = policy(org(1), [10, 11], [20]);
    let document = narrow(&wide).document().unwrap();
    assert_eq!(document, narrow(&policy(org(1), [], [])).document().unwrap(), "whichever workspaces these are");
    assert!(!document.to_string().contains("/secrets/"), "{document:#}");
    for parameter in parameters(&wide) {
        assert_eq!(reads(&[&document], &parameter), parameter == enrolments(&wide), "{parameter}");
    }
    let everything = serde_json::json!({ "Statement": [{ "Effect": "Allow", "Action": "*", "Resource": "*" }] });
    for secret in parameters(&wide).iter().filter(|parameter| **parameter != enrolments(&wide)) {
        assert!(!reads(&[&document, &everything], secret), "{secret}: also where another policy allows it");
    }
    assert!(narrow(&policy(org(1), 0..200, [])).document().is_ok());
}

#[test]
fn it_reads_its_own_workspaces_parameters_and_nothing_else_of_its_organization() {
    let own = policy(org(1), [10], [20]);
    let document = own.document().unwrap();
    for parameter in parameters(&own) {
        assert!(reads(&[&document], &parameter), "{parameter}");
    }
    let others = policy(org(1), [11, 100], [21]);
    let shared = parameters(&own);
    for parameter in parameters(&others).into_iter().filter(|parameter| !shared.contains(parameter)) {
        assert!(!reads(&[&document], &parameter), "{parameter}");
    }
}

/// Every ordered pair of 40 organizations with their own sets of workspaces.
#[test]
fn of_every_pair_of_organizations_neither_reads_the_others_parameters() {
    // Neighbouring ids, and those whose text begins alike.
    let policies: Vec<_> = (0..40_u128)
        .map(|number| {
            let of = org(if number % 2 == 0 { number + 1 } else { number << 64 });
            policy(of, (0..=number % 5).map(|one| number * 10 + one), (0..=number % 3).map(|one| number * 10 + one))
        })
        .collect();
    let documents: Vec<_> =
        policies.iter().map(|policy| [policy.document().unwrap(), narrow(policy).document().unwrap()]).collect();
    let mut pairs = 0;
    for (index, [wide, narrow]) in documents.iter().enumerate() {
        for (other, theirs) in policies.iter().enumerate().filter(|(other, _)| *other != index) {
            for parameter in parameters(theirs) {
                assert!(!reads(&[wide], &parameter), "{index} reads {parameter} of {other}");
                assert!(!reads(&[narrow], &parameter), "{index} reads {parameter} of {other}");
            }
            pairs += 1;
        }
    }
    assert_eq!(pairs, 40 * 39);
}

/// Whichever host: a machine reads the tokens of its own organization's hosts, which it could enrol as anyway, and changes none.
#[test]
fn no_machine_reads_an_enrolment_token_of_another_organization_or_changes_any() {
    for (of, theirs) in [(1, 2), (2, 1), (1, 1 << 64), (16, 1)] {
        let document = narrow(&policy(org(of), [10], [20])).document().unwrap();
        for number in [0, 1, 3, u128::MAX] {
            let host = HostId::from_uuid(Uuid::from_u128(number));
            let own = key().parameter(&deployment().enrolment_parameter(org(of), host));
            let other = key().parameter(&deployment().enrolment_parameter(org(theirs), host));
            assert!(reads(&[&document], &own) && !reads(&[&document], &other), "{own} {other}");
            for action in ["ssm:PutParameter", "ssm:DeleteParameter", "ssm:DeleteParameters"] {
                assert_eq!(evaluate(&[&document], &Asked::new(action, &own)), Decision::Denied, "{action}");
            }
            let elsewhere: Deployment = "staging".parse().unwrap();
            assert!(!reads(&[&document], &key().parameter(&elsewhere.enrolment_parameter(org(of), host))));
        }
    }
}

#[test]
fn the_same_workspace_ids_in_another_organization_are_another_organizations() {
    let (one, other) = (policy(org(1), [10], [20]), policy(org(2), [10], [20]));
    let document = one.document().unwrap();
    assert!(parameters(&other).iter().all(|parameter| !reads(&[&document], parameter)));
}

/// What AWS's own policy for managed instances gives to everything is denied again.
#[test]
fn an_attached_policy_of_aws_opens_no_other_parameter() {
    let core = serde_json::json!({
        "Version": "2012-10-17",
        "Statement": [{
            "Effect": "Allow",
            "Action": ["ssm:DescribeAssociation", "ssm:GetParameter", "ssm:GetParameters", "ssm:PutInventory"],
            "Resource": "*",
        }, { "Effect": "Allow", "Action": "kms:*", "Resource": "*" }],
    });
    let (one, other) = (policy(org(1), [10], [20]), policy(org(2), [11], [21]));
    let document = one.document().unwrap();
    let both = [&core, &document];
    for parameter in parameters(&other) {
        assert!(reads(&[&core], &parameter), "the evaluator sees what the attached policy alone gives");
        assert!(!reads(&both, &parameter), "{parameter}");
    }
    assert!(parameters(&one).iter().all(|parameter| reads(&both, parameter)));
}

#[test]
fn it_manages_nothing() {
    let document = narrow(&policy(org(1), [10], [20])).document().unwrap();
    let everything = serde_json::json!({
        "Version": "2012-10-17",
        "Statement": [{ "Effect": "Allow", "Action": "*", "Resource": "*" }],
    });
    let parameter = parameters(&policy(org(1), [10], [20])).remove(0);
    for (action, resource) in [
        ("ssm:PutParameter", parameter.as_str()),
        ("ssm:GetParameters", &parameter),
        ("ssm:DeleteParameter", &parameter),
        ("ssm:DeleteParameters", &parameter),
        ("ssm:LabelParameterVersion", &parameter),
        ("ssm:SendCommand", "*"),
        ("ec2:RunInstances", "*"),
        ("ec2:TerminateInstances", "arn:aws:ec2:eu-central-1:123456789012:instance/i-1"),
        ("ec2:CreateTags", "*"),
        ("iam:PassRole", "*"),
        ("iam:PutRolePolicy", "*"),
        ("kms:Encrypt", KEY),
        ("kms:CreateGrant", KEY),
        ("kms:GenerateDataKey", KEY),
        ("sts:AssumeRole", "*"),
    ] {
        let asked = Asked::new(action, resource);
        assert_eq!(evaluate(&[&document, &everything], &asked), Decision::Denied, "{action}");
    }
}

#[test]
fn decrypting_needs_ssm_and_the_context_of_its_own_parameters() {
    let own = policy(org(1), [10], [20]);
    let document = own.document().unwrap();
    let parameter = parameters(&own).remove(0);
    let through = |service: &str, context: &str| {
        let asked = Asked::new("kms:Decrypt", KEY).with("kms:ViaService", service);
        evaluate(&[&document], &asked.with("kms:EncryptionContext:PARAMETER_ARN", context))
    };
    assert_eq!(through("ssm.eu-central-1.amazonaws.com", &parameter), Decision::Allowed);
    assert_eq!(through("s3.eu-central-1.amazonaws.com", &parameter), Decision::NotAllowed);
    assert_eq!(through("ssm.eu-central-1.amazonaws.com", "arn:aws:s3:::bucket"), Decision::NotAllowed);
    assert_eq!(evaluate(&[&document], &Asked::new("kms:Decrypt", KEY)), Decision::NotAllowed);
}

#[test]
fn more_workspaces_than_a_role_can_name_are_refused() {
    let Err(PolicyTooLarge { bytes, max }) = policy(org(1), 0..200, []).document() else { panic!("it was taken") };
    assert!(bytes > max);
}

/// IAM's names have 64 characters, and operators' modules take as many for a deployment as the product does.
#[test]
fn a_deployments_name_leaves_room_for_the_names_that_are_made_of_it() {
    let longest = "d".repeat(18);
    let name = longest.parse::<Deployment>().unwrap().instance_profile(org(u128::MAX));
    assert_eq!(name.len(), 64, "{name}");
    let error = format!("{longest}d").parse::<Deployment>().unwrap_err().to_string();
    assert!(error.contains("1 to 18 characters"), "{error}");
    for module in terraform::MODULES {
        assert!(modules::text(module).contains("regex(\"^[a-z][a-z0-9-]{0,17}$\", var.deployment)"), "{module}");
    }
}

#[test]
fn an_alias_and_near_misses_are_no_arn_of_a_key() {
    assert_eq!(key().to_string(), KEY);
    for text in [
        "alias/aws/ssm",
        "arn:aws:kms:eu-central-1:123456789012:alias/aws/ssm",
        "arn:aws:kms:eu-central-1:12345:key/1",
        "arn:aws:kms:eu-central-1:123456789012:key/*",
        "arn:aws:kms:eu-central-1:123456789012:key/",
        "arn:aws:ssm:eu-central-1:123456789012:key/1",
    ] {
        assert!(text.parse::<KeyArn>().is_err(), "{text}");
    }
}

proptest! {
    /// User data is made of ids and an address: whatever these are, it is one fixed text around them.
    #[test]
    fn user_data_holds_ids_and_an_address_and_nothing_else(of: u128, number: u128, name in "[a-z][a-z0-9-]{0,17}") {
        let user_data = UserData {
            deployment: name.parse().unwrap(),
            org: org(of),
            host: HostId::from_uuid(Uuid::from_u128(number)),
            control_plane: "https://agents.envforge.example:8443".parse().unwrap(),
            region: "eu-central-1".to_owned(),
        };
        let text = user_data.text();
        let keys: BTreeSet<&str> = text.lines().filter_map(|line| line.trim().split_once(" = ").map(|(key, _)| key)).collect();
        let expected = ["control_plane", "enrolment_parameter", "host", "organization", "region"];
        prop_assert_eq!(keys.into_iter().collect::<Vec<_>>(), expected);
    }

    /// No two organizations' paths begin with each other, in whatever deployments.
    #[test]
    fn paths_of_organizations_are_apart(one: u128, other: u128, a in "[a-z][a-z0-9-]{0,17}", b in "[a-z][a-z0-9-]{0,17}") {
        let (a, b): (Deployment, Deployment) = (a.parse().unwrap(), b.parse().unwrap());
        prop_assume!((one, &a) != (other, &b));
        let (first, second) = (a.organization_path(org(one)) + "/", b.organization_path(org(other)) + "/");
        prop_assert!(!first.starts_with(&second) && !second.starts_with(&first));
    }
}
