//! The overlay against what AWS documents, asked by the bare SDKs. Each test names its page of the API reference.

use aws_sdk_ec2::Client;
use aws_sdk_ec2::error::ProvideErrorMetadata;
use aws_sdk_ec2::types::{InstanceStateName, InstanceType};
use envforge_testkit::eventually;

use super::*;

async fn client(moto: &Moto) -> Client {
    Client::new(&aws(moto).sdk().await)
}

/// The instance's id, or the error's code.
async fn launch(client: &Client, token: &str, shape: &str) -> Result<String, String> {
    let request = client.run_instances().image_id("ami-12345678").min_count(1).max_count(1).client_token(token);
    let launched = request.instance_type(InstanceType::from(shape)).send().await;
    match launched {
        Ok(launched) => Ok(launched.instances()[0].instance_id().unwrap().to_owned()),
        Err(error) => Err(error.code().unwrap_or("none").to_owned()),
    }
}

async fn state(client: &Client, instance: &str) -> Result<InstanceStateName, String> {
    match client.describe_instances().instance_ids(instance).send().await {
        Ok(told) => Ok(told.reservations()[0].instances()[0].state().unwrap().name().unwrap().clone()),
        Err(error) => Err(error.code().unwrap_or("none").to_owned()),
    }
}

async fn until(client: &Client, instance: &str, wanted: InstanceStateName) {
    eventually("the instance's state", DEADLINE, async || {
        (state(client, instance).await.as_ref() == Ok(&wanted)).then_some(())
    })
    .await;
}

async fn start(client: &Client, instance: &str) -> Result<(), String> {
    let started = client.start_instances().instance_ids(instance).send().await;
    started.map(drop).map_err(|error| error.code().unwrap_or("none").to_owned())
}

async fn stop(client: &Client, instance: &str, hibernate: bool) -> Result<(), String> {
    let stopped = client.stop_instances().instance_ids(instance).hibernate(hibernate).send().await;
    stopped.map(drop).map_err(|error| error.code().unwrap_or("none").to_owned())
}

async fn terminate(client: &Client, instance: &str) -> Result<(), String> {
    let ended = client.terminate_instances().instance_ids(instance).send().await;
    ended.map(drop).map_err(|error| error.code().unwrap_or("none").to_owned())
}

/// "Ensuring idempotency in Amazon EC2 API requests".
#[tokio::test(flavor = "multi_thread")]
async fn a_client_token_makes_one_instance_and_other_parameters_are_a_mismatch() {
    let moto = moto();
    let client = client(&moto).await;
    let asked = (0..20).map(|_| {
        let client = client.clone();
        tokio::spawn(async move { launch(&client, "one", SHAPE).await.unwrap() })
    });
    let mut ids = std::collections::BTreeSet::new();
    for one in asked.collect::<Vec<_>>() {
        ids.insert(one.await.unwrap());
    }
    assert_eq!(ids.len(), 1);
    assert_eq!(launch(&client, "one", "m7g.xlarge").await.unwrap_err(), "IdempotentParameterMismatch");
    assert!(!ids.contains(&launch(&client, "two", SHAPE).await.unwrap()));
}

/// "Amazon EC2 instance state changes", and the error `IncorrectInstanceState`.
#[tokio::test(flavor = "multi_thread")]
async fn states_take_their_time_and_exclude_what_aws_excludes() {
    let moto = moto();
    let client = client(&moto).await;
    // Long enough to be seen on a slow machine.
    moto.pull("behave", r#"{"pending":3000,"stopping":3000,"shutting-down":3000}"#);
    let id = launch(&client, "one", SHAPE).await.unwrap();
    assert_eq!(state(&client, &id).await, Ok(InstanceStateName::Pending));
    assert_eq!(stop(&client, &id, false).await.unwrap_err(), "IncorrectInstanceState");
    until(&client, &id, InstanceStateName::Running).await;
    start(&client, &id).await.unwrap();
    assert_eq!(state(&client, &id).await, Ok(InstanceStateName::Running), "a running one stays as it is");
    stop(&client, &id, false).await.unwrap();
    assert_eq!(state(&client, &id).await, Ok(InstanceStateName::Stopping));
    assert_eq!(start(&client, &id).await.unwrap_err(), "IncorrectInstanceState");
    stop(&client, &id, false).await.unwrap();
    until(&client, &id, InstanceStateName::Stopped).await;
    start(&client, &id).await.unwrap();
    assert_eq!(state(&client, &id).await, Ok(InstanceStateName::Pending));
    terminate(&client, &id).await.unwrap();
    assert_eq!(state(&client, &id).await, Ok(InstanceStateName::ShuttingDown));
    until(&client, &id, InstanceStateName::Terminated).await;
    assert_eq!(start(&client, &id).await.unwrap_err(), "IncorrectInstanceState");
    terminate(&client, &id).await.unwrap();
}

/// `UnsupportedHibernationConfiguration`, `InvalidInstanceID.NotFound`, and errors that a test orders.
#[tokio::test(flavor = "multi_thread")]
async fn errors_have_the_codes_of_aws() {
    let moto = moto();
    let client = client(&moto).await;
    let id = launch(&client, "one", SHAPE).await.unwrap();
    assert_eq!(stop(&client, &id, true).await.unwrap_err(), "UnsupportedHibernationConfiguration");
    moto.fault("RunInstances", "InsufficientInstanceCapacity", 500, 1);
    assert_eq!(launch(&client, "two", SHAPE).await.unwrap_err(), "InsufficientInstanceCapacity");
    launch(&client, "two", SHAPE).await.unwrap();
    moto.pull("vanish", &format!(r#"{{"instance":"{id}"}}"#));
    assert_eq!(state(&client, &id).await.unwrap_err(), "InvalidInstanceID.NotFound");
    assert_eq!(start(&client, &id).await.unwrap_err(), "InvalidInstanceID.NotFound");
}

/// "Troubleshoot EC2 instance start failures": `InsufficientInstanceCapacity` on StartInstances, and an instance whose key cannot be used, which
/// is `pending` and then `stopped`, with the state reason's code.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_may_be_refused_for_capacity_and_may_stop_again() {
    let moto = moto();
    let client = client(&moto).await;
    let id = launch(&client, "one", SHAPE).await.unwrap();
    stop(&client, &id, false).await.unwrap();
    moto.fault("StartInstances", "InsufficientInstanceCapacity", 500, 1);
    assert_eq!(start(&client, &id).await.unwrap_err(), "InsufficientInstanceCapacity");
    assert_eq!(state(&client, &id).await, Ok(InstanceStateName::Stopped));
    moto.pull("doom", r#"{"action":"StartInstances","reason":"Client.InvalidKMSKey.InvalidState"}"#);
    start(&client, &id).await.unwrap();
    until(&client, &id, InstanceStateName::Stopped).await;
    let told = client.describe_instances().instance_ids(&id).send().await.unwrap();
    let reason = told.reservations()[0].instances()[0].state_reason().unwrap().code().unwrap().to_owned();
    assert_eq!(reason, "Client.InvalidKMSKey.InvalidState");
    start(&client, &id).await.unwrap();
    until(&client, &id, InstanceStateName::Running).await;
}

/// "KMS keys: AWS managed keys", and PutParameter's `InvalidKeyId`.
#[tokio::test(flavor = "multi_thread")]
async fn keys_say_who_manages_them_and_a_disabled_one_encrypts_nothing() {
    let moto = moto();
    let sdk = aws(&moto).sdk().await;
    let (kms, ssm) = (aws_sdk_kms::Client::new(&sdk), aws_sdk_ssm::Client::new(&sdk));
    let of_aws = kms.describe_key().key_id("alias/aws/ssm").send().await.unwrap();
    assert_eq!(of_aws.key_metadata().unwrap().key_manager().unwrap().as_str(), "AWS");
    let own = kms.create_key().send().await.unwrap().key_metadata().unwrap().arn().unwrap().to_owned();
    let put = async |key: &str| {
        let request = ssm.put_parameter().name("/a/b").value("v").r#type("SecureString".into()).overwrite(true);
        request.key_id(key).send().await.map(|put| put.version()).map_err(|error| error.code().map(str::to_owned))
    };
    assert_eq!(put(&own).await, Ok(1));
    // moto takes the id alone here.
    kms.disable_key().key_id(own.rsplit('/').next().unwrap()).send().await.unwrap();
    assert_eq!(put(&own).await, Err(Some("InvalidKeyId".to_owned())));
    assert_eq!(put("alias/nobodys").await, Err(Some("InvalidKeyId".to_owned())));
}
