//! SSM as the store of secrets.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use envforge_aws::{SsmConfig, SsmStore, SsmStoreError};
use envforge_domain::commit::Position;
use envforge_domain::ids::{CommandId, ProjectId};
use envforge_domain::secrets::{PinnedSecret, SecretKey, SecretOwner};
use envforge_domain::time::UnixMillis;
use envforge_runtime::secret_store::{LogMark, PutNote, SecretStore, StoreError, Unrecorded};

use super::*;

const VALUE: &str = "a value that nobody may see";

fn owner() -> SecretOwner {
    SecretOwner::Project(ProjectId::from_uuid(Uuid::from_u128(5)))
}

fn key(name: &str) -> SecretKey {
    SecretKey { org: org(1), owner: owner(), name: name.parse().unwrap(), generation: 1 }
}

fn pinned(name: &str, version: u64) -> PinnedSecret {
    PinnedSecret { key: key(name), version }
}

fn secret(text: &str) -> Secret {
    Secret::new(text.to_owned())
}

fn note() -> PutNote {
    let log = LogMark { position: Position::new(7), identity: "log".to_owned(), digest: [1; 32] };
    PutNote { command: CommandId::from_uuid(Uuid::from_u128(3)), at: UnixMillis::new(1), log }
}

fn texts(values: &[Secret]) -> Vec<&str> {
    values.iter().map(Secret::expose).collect()
}

async fn new_key(moto: &Moto) -> String {
    let kms = aws_sdk_kms::Client::new(&aws(moto).sdk().await);
    kms.create_key().send().await.unwrap().key_metadata().unwrap().arn().unwrap().to_owned()
}

fn config(moto: &Moto, key: Option<String>) -> SsmConfig {
    SsmConfig { aws: aws(moto), deployment: deployment(), key, key_of: BTreeMap::new() }
}

pub(crate) async fn store(moto: &Moto) -> SsmStore {
    SsmStore::open(config(moto, Some(new_key(moto).await))).await.unwrap()
}

/// What opening a store says no with.
async fn refused(config: SsmConfig) -> SsmStoreError {
    match SsmStore::open(config).await {
        Ok(_) => panic!("the store was opened"),
        Err(error) => error,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_are_counted_pinned_and_read_as_they_were_put() {
    let moto = moto();
    let store = store(&moto).await;
    assert_eq!(store.put(&key("TOKEN"), &secret("first"), &note()).await, Ok(1));
    assert_eq!(store.put(&key("TOKEN"), &secret("second"), &note()).await, Ok(2));
    assert_eq!(store.put(&key("OTHER"), &secret("x\ny"), &note()).await, Ok(1));
    let read = store.read(&[pinned("TOKEN", 2), pinned("OTHER", 1), pinned("TOKEN", 1)]).await.unwrap_or_default();
    assert_eq!(texts(&read), ["second", "x\ny", "first"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_or_nothing_is_read_in_one_request_and_what_is_missing_is_named() {
    let moto = moto();
    let store = store(&moto).await;
    let ten: Vec<_> = (0..10).map(|number| format!("SECRET_{number}")).collect();
    for name in &ten {
        store.put(&key(name), &secret(name), &note()).await.unwrap();
    }
    let wanted: Vec<_> = ten.iter().map(|name| pinned(name, 1)).collect();
    assert_eq!(texts(&store.read(&wanted).await.unwrap_or_default()), ten);
    assert_eq!(moto.count("GetParameters"), 1);
    let eleven: Vec<_> = wanted.iter().cloned().chain([pinned("ONE_MORE", 1)]).collect();
    assert!(matches!(store.read(&eleven).await, Err(StoreError::TooMany { max: 10 })));
    let some = [pinned("SECRET_1", 1), pinned("GONE", 1), pinned("SECRET_2", 9)];
    let Err(StoreError::Missing { pinned: missing }) = store.read(&some).await else { panic!("nothing was missing") };
    assert_eq!(missing, [pinned("GONE", 1), pinned("SECRET_2", 9)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_deleted_is_gone_and_keys_are_those_of_one_owner() {
    let moto = moto();
    let store = store(&moto).await;
    for name in ["A_KEY", "B_KEY"] {
        store.put(&key(name), &secret("v"), &note()).await.unwrap();
    }
    let second = SecretKey { generation: 2, ..key("A_KEY") };
    store.put(&second, &secret("v"), &note()).await.unwrap();
    let elsewhere = SecretKey { org: org(2), ..key("A_KEY") };
    store.put(&elsewhere, &secret("v"), &note()).await.unwrap();
    let mut keys = store.keys(org(1), owner()).await.unwrap();
    keys.sort();
    assert_eq!(keys, [key("A_KEY"), second, key("B_KEY")]);
    store.delete(&key("A_KEY")).await.unwrap();
    store.delete(&key("A_KEY")).await.unwrap();
    assert_eq!(store.keys(org(1), owner()).await.unwrap().len(), 2);
    assert_eq!(store.keys(org(2), owner()).await.unwrap(), [elsewhere]);
}

/// SSM removes no single version: what the log names keeps the whole parameter.
#[tokio::test(flavor = "multi_thread")]
async fn a_parameter_of_which_no_version_was_recorded_is_withdrawn_and_no_other() {
    let moto = moto();
    let store = store(&moto).await;
    for name in ["NEVER", "RECORDED", "TWICE"] {
        store.put(&key(name), &secret("first"), &note()).await.unwrap();
    }
    store.put(&key("RECORDED"), &secret("second"), &note()).await.unwrap();
    store.put(&key("TWICE"), &secret("second"), &note()).await.unwrap();
    let elsewhere = SecretOwner::Project(ProjectId::from_uuid(Uuid::from_u128(6)));
    let others = SecretKey { owner: elsewhere, ..key("NEVER") };
    store.put(&others, &secret("first"), &note()).await.unwrap();
    let unrecorded = async || {
        let found = store.unrecorded(org(1), &[owner()]).await.unwrap();
        let mut named: Vec<_> = found
            .into_iter()
            .map(|Unrecorded { key, version, note: read }| {
                assert_eq!((read, key.owner), (note(), owner()));
                (key.name.to_string(), version)
            })
            .collect();
        named.sort();
        named
    };
    let all = [("NEVER", 1), ("RECORDED", 1), ("RECORDED", 2), ("TWICE", 1), ("TWICE", 2)];
    assert_eq!(unrecorded().await, all.map(|(name, version)| (name.to_owned(), version)));
    store.record(&key("RECORDED"), 1).await.unwrap();
    store.record(&key("RECORDED"), 1).await.unwrap();
    store.record(&key("GONE"), 1).await.unwrap();
    assert_eq!(unrecorded().await.len(), 3);
    let one = BTreeSet::from([1]);
    assert_eq!(store.withdraw(&key("TWICE"), &one).await, Ok(0), "its second version may be named");
    assert_eq!(store.withdraw(&key("NEVER"), &one).await, Ok(1));
    assert_eq!(store.withdraw(&key("TWICE"), &BTreeSet::from([1, 2])).await, Ok(2));
    assert_eq!(unrecorded().await, []);
    let both = store.unrecorded(org(1), &[owner(), elsewhere]).await.unwrap();
    assert_eq!(both.iter().map(|found| &found.key).collect::<Vec<_>>(), [&others]);
    let kept = store.read(&[pinned("RECORDED", 1), pinned("RECORDED", 2)]).await.unwrap_or_default();
    assert_eq!(texts(&kept), ["first", "second"]);
    assert!(store.keys(others.org, others.owner).await.unwrap().contains(&others), "another owner's");
}

#[tokio::test(flavor = "multi_thread")]
async fn throttling_is_waited_out_within_the_deadline_and_told_beyond_it() {
    let moto = moto();
    let mut settings = config(&moto, Some(new_key(&moto).await));
    settings.aws.attempts.attempts_max = 1_000;
    settings.aws.attempts.deadline = Duration::from_secs(2);
    let store = SsmStore::open(settings).await.unwrap();
    store.put(&key("TOKEN"), &secret("v"), &note()).await.unwrap();
    moto.fault("GetParameters", "ThrottlingException", 400, 5);
    assert_eq!(texts(&store.read(&[pinned("TOKEN", 1)]).await.unwrap_or_default()), ["v"]);
    moto.fault("GetParameters", "ThrottlingException", 400, 1_000_000);
    let since = Instant::now();
    assert!(matches!(store.read(&[pinned("TOKEN", 1)]).await, Err(StoreError::Throttled)));
    assert!(since.elapsed() < Duration::from_secs(20), "{:?}", since.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_aws_manages_is_refused_under_every_name() {
    let moto = moto();
    let of_aws = |key: &str| SsmStoreError::AwsManaged { key: key.to_owned() };
    assert_eq!(refused(config(&moto, Some("alias/aws/ssm".to_owned()))).await, of_aws("alias/aws/ssm"));
    let kms = aws_sdk_kms::Client::new(&aws(&moto).sdk().await);
    let told = kms.describe_key().key_id("alias/aws/ssm").send().await.unwrap();
    let arn = told.key_metadata().unwrap().arn().unwrap().to_owned();
    assert_eq!(refused(config(&moto, Some(arn.clone()))).await, of_aws(&arn));
    let of_one = SsmConfig {
        key_of: BTreeMap::from([(org(1), "alias/aws/ssm".to_owned())]),
        ..config(&moto, Some(new_key(&moto).await))
    };
    assert_eq!(refused(of_one).await, of_aws("alias/aws/ssm"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disabled_or_unknown_key_is_refused_and_an_organization_without_a_key_has_no_secrets() {
    let moto = moto();
    let kms = aws_sdk_kms::Client::new(&aws(&moto).sdk().await);
    let disabled = new_key(&moto).await;
    // moto takes the id alone here.
    kms.disable_key().key_id(disabled.rsplit('/').next().unwrap()).send().await.unwrap();
    assert!(matches!(refused(config(&moto, Some(disabled))).await, SsmStoreError::Unusable { .. }));
    let nobodys = "alias/nobodys".to_owned();
    assert!(matches!(refused(config(&moto, Some(nobodys))).await, SsmStoreError::Unknown { .. }));
    let of_one = SsmConfig { key_of: BTreeMap::from([(org(1), new_key(&moto).await)]), ..config(&moto, None) };
    let store = SsmStore::open(of_one).await.unwrap();
    store.put(&key("TOKEN"), &secret("v"), &note()).await.unwrap();
    let elsewhere = SecretKey { org: org(2), ..key("TOKEN") };
    assert!(matches!(store.put(&elsewhere, &secret("v"), &note()).await, Err(StoreError::Forbidden { .. })));
}

/// By the aliases that `deploy/aws/organization` makes, without a word of configuration for each.
#[tokio::test(flavor = "multi_thread")]
async fn each_organization_has_its_own_key_where_the_name_is_a_pattern() {
    let moto = moto();
    let kms = aws_sdk_kms::Client::new(&aws(&moto).sdk().await);
    let pattern = Some("alias/envforge-test-{org}".to_owned());
    let store = SsmStore::open(config(&moto, pattern)).await.unwrap();
    let mut keys = Vec::new();
    for number in [1, 2] {
        // Not there yet: refused for good, and taken once it is.
        let of = SecretKey { org: org(number), ..key("TOKEN") };
        let error = store.put(&of, &secret("v"), &note()).await.unwrap_err();
        assert!(matches!(error, StoreError::Forbidden { .. }), "{error}");
        let arn = new_key(&moto).await;
        let alias = format!("alias/envforge-test-{}", org(number));
        kms.create_alias().alias_name(alias).target_key_id(&arn).send().await.unwrap();
        assert_eq!(store.put(&of, &secret("v"), &note()).await, Ok(1));
        keys.push((org(number), arn));
    }
    let ssm = aws_sdk_ssm::Client::new(&aws(&moto).sdk().await);
    let told = ssm.describe_parameters().send().await.unwrap();
    for (of, arn) in keys {
        let mut own = told.parameters().iter().filter(|one| one.name().unwrap().contains(&of.to_string()));
        assert!(own.next().is_some_and(|one| one.key_id() == Some(&arn)), "{of} {told:?}");
    }
    moto.fault("DescribeKey", "ThrottlingException", 400, 1_000_000);
    let third = SecretKey { org: org(3), ..key("TOKEN") };
    assert!(matches!(store.put(&third, &secret("v"), &note()).await, Err(StoreError::Throttled)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_ssm_never_takes_is_refused_for_good_and_the_next_one_is_taken() {
    let moto = moto();
    let store = store(&moto).await;
    for value in ["{{ssm:other}}", "Dear {{ name }},\nyours", "{{\n}}"] {
        let error = store.put(&key("TOKEN"), &secret(value), &note()).await.unwrap_err();
        let StoreError::Untakable { why } = error else { panic!("{value}: {error}") };
        assert!(why.contains("base64") && !error.is_retryable(), "{why}");
    }
    assert_eq!(moto.count("PutParameter"), 3, "nothing is asked for twice");
    assert_eq!(store.put(&key("TOKEN"), &secret("{x}} {{"), &note()).await, Ok(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_error_holds_a_value() {
    let moto = moto();
    let store = store(&moto).await;
    for (code, status) in [("ValidationException", 400), ("AccessDeniedException", 400), ("InternalServerError", 500)] {
        moto.fault("PutParameter", code, status, 5);
        let error = store.put(&key("TOKEN"), &secret(VALUE), &note()).await.unwrap_err();
        assert!(!format!("{error} {error:?}").contains(VALUE));
        while store.put(&key("TOKEN"), &secret(VALUE), &note()).await.is_err() {}
    }
}
