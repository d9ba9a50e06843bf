//! EC2 as a provider: what an instance is launched with, and what becomes of each way to fail.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aws_sdk_ec2::types::{InstanceAttributeName, InstanceStateName};
use base64::Engine as _;
use envforge_aws::Ec2;
use envforge_domain::machine::StopMode;
use envforge_runtime::{InstanceState, MachineProvider, ProviderError};
use envforge_testkit::eventually;

use super::*;

async fn provider(moto: &Moto) -> Ec2 {
    Ec2::new(ec2_config(moto)).await
}

async fn until(ec2: &Ec2, instance: &str, wanted: InstanceState) {
    eventually("the instance's state", DEADLINE, async || {
        let found = ec2.find(instance).await.unwrap();
        found.filter(|found| found.state == wanted).map(drop)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_is_launched_closed_and_tagged_and_told_no_secret() {
    let moto = moto();
    let ec2 = provider(&moto).await;
    let launched = ec2.launch(&order(7, 1)).await.unwrap();
    assert!(launched.tags.are_of(&order(7, 1).terms), "{:?}", launched.tags);
    assert_eq!(launched.tags.version.as_deref(), Some("0.1.0"));
    let client = aws_sdk_ec2::Client::new(&aws(&moto).sdk().await);
    let told = client.describe_instances().instance_ids(&launched.id).send().await.unwrap();
    let shown = &told.reservations()[0].instances()[0];
    let metadata = shown.metadata_options().unwrap();
    assert_eq!(metadata.http_tokens().unwrap().as_str(), "required");
    assert_eq!(metadata.http_put_response_hop_limit(), Some(1));
    assert!(shown.iam_instance_profile().unwrap().arn().unwrap().ends_with(&deployment().instance_profile(org(1))));
    let volumes = client.describe_volumes().send().await.unwrap();
    assert!(!volumes.volumes().is_empty() && volumes.volumes().iter().all(|volume| volume.encrypted() == Some(true)));
    let tagged = volumes
        .volumes()
        .iter()
        .all(|volume| volume.tags().iter().any(|tag| tag.key() == Some("envforge:organization")));
    assert!(tagged, "volumes are the organization's as well");
    let request = client.describe_instance_attribute().instance_id(&launched.id);
    let attribute = request.attribute(InstanceAttributeName::UserData).send().await.unwrap();
    let encoded = attribute.user_data().unwrap().value().unwrap();
    let text = String::from_utf8(base64::engine::general_purpose::STANDARD.decode(encoded).unwrap()).unwrap();
    assert!(text.contains(&deployment().enrolment_parameter(org(1), host(7))), "{text}");
    for word in ["token =", "secret", "password", "key ="] {
        assert!(!text.contains(word), "user data speaks of `{word}`: {text}");
    }
}

/// The very request that the tests of policies judge.
#[tokio::test(flavor = "multi_thread")]
async fn a_launch_sends_what_the_control_planes_policy_is_judged_by() {
    let moto = Moto::start();
    let client = aws_sdk_ec2::Client::new(&aws(&moto).sdk().await);
    let subnets = client.describe_subnets().send().await.unwrap();
    let groups = client.describe_security_groups().send().await.unwrap();
    let subnet = subnets.subnets()[0].subnet_id().unwrap().to_owned();
    let group = groups.security_groups()[0].group_id().unwrap().to_owned();
    let deployment: Deployment = "production".parse().unwrap();
    let profile = deployment.instance_profile(org(1));
    moto.pull("profile", &format!(r#"{{"name":"{profile}"}}"#));
    let (subnets, security_groups) = (vec![subnet.clone()], vec![group.clone()]);
    let config = Ec2Config { deployment, subnets, security_groups, ..ec2_config(&moto) };
    Ec2::new(config).await.launch(&order(7, 1)).await.unwrap();
    let sent = moto.pull("asked", r#"{"action":"RunInstances"}"#);
    let mut sent: BTreeMap<String, String> = serde_json::from_str(&sent).unwrap();
    for of_its_own in ["Action", "ClientToken", "UserData", "Version"] {
        assert!(sent.remove(of_its_own).is_some(), "{of_its_own}");
    }
    let told = serde_json::to_string_pretty(&sent).unwrap().replace(&subnet, "subnet-1a2b").replace(&group, "sg-1a2b");
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/iam/golden/run_instances.json");
    if format!("{told}\n") != std::fs::read_to_string(path).unwrap_or_default() {
        let fresh = concat!(env!("CARGO_TARGET_TMPDIR"), "/run_instances.json");
        std::fs::write(fresh, format!("{told}\n")).unwrap();
        panic!("what is sent differs from {path}; review it and copy {fresh} over it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_organizations_own_security_groups_take_the_place_of_those_of_all() {
    let moto = moto();
    let client = aws_sdk_ec2::Client::new(&aws(&moto).sdk().await);
    let mut groups = Vec::new();
    for name in ["all", "own"] {
        let made = client.create_security_group().group_name(name).description(name).send().await.unwrap();
        groups.push(made.group_id().unwrap().to_owned());
    }
    let [all, own] = groups.try_into().unwrap();
    let mut config = ec2_config(&moto);
    config.security_groups = vec![all.clone()];
    config.security_groups_of.insert(org(2), vec![own.clone()]);
    let ec2 = Ec2::new(config).await;
    for (of, group) in [(1, all), (2, own)] {
        let launched = ec2.launch(&order(of, of)).await.unwrap();
        let told = client.describe_instances().instance_ids(&launched.id).send().await.unwrap();
        let shown = told.reservations()[0].instances()[0].security_groups();
        assert_eq!(shown.iter().filter_map(|group| group.group_id()).collect::<Vec<_>>(), [group]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_launches_at_once_with_one_token_make_one_machine() {
    let moto = moto();
    let ec2 = Arc::new(provider(&moto).await);
    let launches: Vec<_> = (0..20)
        .map(|_| {
            let ec2 = Arc::clone(&ec2);
            tokio::spawn(async move { ec2.launch(&order(1, 1)).await.unwrap().id })
        })
        .collect();
    let mut ids = BTreeSet::new();
    for launch in launches {
        ids.insert(launch.await.unwrap());
    }
    assert_eq!(ids.len(), 1);
    assert_eq!(ec2.list().await.unwrap().len(), 1);
    let mut other = order(1, 1);
    other.terms.shape = "m7g.xlarge".to_owned();
    assert_eq!(ec2.launch(&other).await, Err(ProviderError::TokenMismatch));
}

#[tokio::test(flavor = "multi_thread")]
async fn throttled_and_broken_requests_are_repeated_a_bounded_number_of_times() {
    let moto = moto();
    let ec2 = provider(&moto).await;
    moto.fault("RunInstances", "RequestLimitExceeded", 503, 3);
    ec2.launch(&order(1, 1)).await.unwrap();
    assert_eq!(moto.count("RunInstances"), 4);
    moto.fault("DescribeInstances", "RequestLimitExceeded", 503, 1_000);
    assert_eq!(ec2.list().await, Err(ProviderError::Throttled));
    assert_eq!(moto.count("DescribeInstances"), 5);
    moto.fault("RunInstances", "InternalError", 500, 2);
    ec2.launch(&order(2, 1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_refusal_has_its_type_and_only_what_may_pass_is_repeated() {
    let moto = moto();
    let ec2 = provider(&moto).await;
    moto.fault("RunInstances", "InsufficientInstanceCapacity", 500, 2);
    ec2.launch(&order(1, 1)).await.unwrap();
    moto.fault("RunInstances", "InsufficientInstanceCapacity", 500, 5);
    assert!(matches!(ec2.launch(&order(2, 1)).await, Err(ProviderError::Capacity { .. })));
    let before = moto.count("RunInstances");
    moto.fault("RunInstances", "VcpuLimitExceeded", 400, 1);
    assert!(matches!(ec2.launch(&order(3, 1)).await, Err(ProviderError::Quota { .. })));
    moto.fault("RunInstances", "UnauthorizedOperation", 403, 1);
    assert!(matches!(ec2.launch(&order(3, 1)).await, Err(ProviderError::Unauthorized { .. })));
    assert_eq!(moto.count("RunInstances"), before + 2);
    // The third organization has no instance profile.
    assert!(matches!(ec2.launch(&order(4, 3)).await, Err(ProviderError::NotFound { .. })));
    assert!(matches!(ec2.start("i-0123456789abcdef0").await, Err(ProviderError::NotFound { .. })));
    assert_eq!(ec2.find("i-0123456789abcdef0").await, Ok(None));
    ec2.terminate("i-0123456789abcdef0").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launch_whose_answer_was_lost_is_found_by_its_repetition() {
    let moto = moto();
    let ec2 = provider(&moto).await;
    moto.pull("fault", r#"{"action":"RunInstances","after":true,"cut":true}"#);
    let launched = ec2.launch(&order(1, 1)).await.unwrap();
    assert_eq!(moto.count("RunInstances"), 2);
    let all = ec2.list().await.unwrap();
    assert_eq!(all.iter().map(|instance| instance.id.as_str()).collect::<Vec<_>>(), [launched.id.as_str()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn states_pass_by_and_exclude_what_comes_too_early() {
    let moto = moto();
    let ec2 = provider(&moto).await;
    let id = ec2.launch(&order(1, 1)).await.unwrap().id;
    until(&ec2, &id, InstanceState::Running).await;
    moto.pull("behave", r#"{"stopping":3000}"#);
    ec2.stop(&id, StopMode::Stop).await.unwrap();
    let before = moto.count("StartInstances");
    assert!(matches!(ec2.start(&id).await, Err(ProviderError::NotNow { .. })));
    assert_eq!(moto.count("StartInstances"), before + 1, "the next look asks again, not this one");
    until(&ec2, &id, InstanceState::Stopped).await;
    ec2.start(&id).await.unwrap();
    until(&ec2, &id, InstanceState::Running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_hibernates_where_its_shape_was_launched_for_it() {
    let moto = moto();
    let ec2 = provider(&moto).await;
    let mut large = order(1, 1);
    large.terms.shape = "m7g.xlarge".to_owned();
    let id = ec2.launch(&large).await.unwrap().id;
    until(&ec2, &id, InstanceState::Running).await;
    ec2.stop(&id, StopMode::Hibernate).await.unwrap();
    until(&ec2, &id, InstanceState::Stopped).await;
    let other = ec2.launch(&order(2, 1)).await.unwrap().id;
    until(&ec2, &other, InstanceState::Running).await;
    assert!(matches!(ec2.stop(&other, StopMode::Hibernate).await, Err(ProviderError::Unsupported { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_deployments_instances_are_not_listed_and_their_tags_mean_nothing() {
    let moto = moto();
    let ec2 = provider(&moto).await;
    let mut config = ec2_config(&moto);
    config.deployment = "other".parse().unwrap();
    moto.pull("profile", &format!(r#"{{"name":"{}"}}"#, config.deployment.instance_profile(org(1))));
    let theirs = Ec2::new(config).await.launch(&order(1, 1)).await.unwrap().id;
    assert_eq!(ec2.list().await.unwrap(), []);
    assert_eq!(ec2.find(&theirs).await.unwrap().unwrap().tags, Default::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn failing_status_checks_and_the_reason_of_an_end_are_told() {
    let moto = moto();
    let ec2 = provider(&moto).await;
    let id = ec2.launch(&order(1, 1)).await.unwrap().id;
    until(&ec2, &id, InstanceState::Running).await;
    moto.pull("impair", &format!(r#"{{"instance":"{id}"}}"#));
    assert!(ec2.list().await.unwrap()[0].impaired);
    moto.pull("doom", r#"{"reason":"Client.InvalidKMSKey.InvalidState"}"#);
    let doomed = ec2.launch(&order(2, 1)).await.unwrap().id;
    until(&ec2, &doomed, InstanceState::Terminated).await;
    let found = ec2.find(&doomed).await.unwrap().unwrap();
    assert_eq!(found.reason.as_deref(), Some("Client.InvalidKMSKey.InvalidState"));
    let client = aws_sdk_ec2::Client::new(&aws(&moto).sdk().await);
    let told = client.describe_instances().instance_ids(&doomed).send().await.unwrap();
    let state = told.reservations()[0].instances()[0].state().unwrap().name().unwrap().clone();
    assert_eq!(state, InstanceStateName::Terminated);
}
