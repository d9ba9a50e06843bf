//! SSM as the store of secrets: SecureStrings under a customer-managed key of KMS.
//!
//! One parameter for each key and generation, one of its versions for each version, at
//! `/envforge/<deployment>/<organization>/secrets/<owner>/<NAME>/<generation>`. A key that AWS manages (`alias/aws/ssm`) is
//! refused by what KMS says of its manager, under whatever name it comes: everybody in the account may decrypt by it.
//!
//! SSM itself keeps the newest 100 versions, and removes none of them by itself, nor any single one when it is told to. So a version's
//! description is its note, and a parameter of which the log names a version carries a tag: one without it may go as a whole. Not here: which versions a wake may have
//! (domain), the retries of a whole wake (reactors).

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use aws_sdk_kms::types::{KeyManagerType, KeySpec, KeyState};
use aws_sdk_ssm::Client;
use aws_sdk_ssm::error::{BuildError, ProvideErrorMetadata, SdkError};
use aws_sdk_ssm::types::{
    ParameterMetadata, ParameterStringFilter, ParameterTier, ParameterType, ResourceTypeForTagging, Tag,
};
use envforge_domain::ids::OrgId;
use envforge_domain::limits::SECRET_READ_MAX;
use envforge_domain::secret::Secret;
use envforge_domain::secrets::{PinnedSecret, SecretKey, SecretOwner};
use envforge_runtime::secret_store::{PutNote, SecretStore, StoreError, Unrecorded, all_unrecorded, check_value};

use crate::client::{Attempts, AwsConfig};
use crate::names::Deployment;
use crate::policy::{InvalidArn, KeyArn};

/// PutParameter's documentation of `Value`: references to other parameters are refused, and so is whatever looks like one.
const NO_REFERENCES: &str = "SSM refuses texts between `{{` and `}}`; encode it, for example in base64";
/// In the name of a key, what an organization's id takes the place of.
const ORGANIZATION: &str = "{org}";
/// A page of a parameter's history, as many as AWS gives.
const HISTORY_PAGE: i32 = 50;
/// On parameters of which the log names a version.
const RECORDED: &str = "envforge:recorded";
const YES: &str = "yes";

/// Where secrets lie.
#[derive(Clone)]
pub struct SsmConfig {
    pub aws: AwsConfig,
    pub deployment: Deployment,
    /// The key of organizations without one of their own: an id, an ARN or an alias. Without it they have no secrets. Where it
    /// holds `{org}`, each has its own, by its id: `alias/envforge-production-{org}`.
    pub key: Option<String>,
    pub key_of: BTreeMap<OrgId, String>,
}

/// Why the store is not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SsmStoreError {
    #[error("`{key}` is managed by AWS: every principal of the account can decrypt by it; name a customer-managed key")]
    AwsManaged { key: String },
    #[error("`{key}` cannot encrypt secrets: it is {state}, or no symmetric key")]
    Unusable { key: String, state: String },
    #[error("KMS does not tell about `{key}`: {reason}")]
    Unknown { key: String, reason: StoreError },
    #[error(transparent)]
    Arn(#[from] InvalidArn),
}

/// The store.
pub struct SsmStore {
    client: Client,
    deployment: Deployment,
    attempts: Attempts,
    key: Option<KeyArn>,
    /// The keys of organizations that have one of their own; those that are named by a pattern since they were first needed.
    key_of: tokio::sync::Mutex<BTreeMap<OrgId, KeyArn>>,
    /// By which the key of an organization is named that is not among them yet.
    named: Option<(aws_sdk_kms::Client, String)>,
}

impl SsmStore {
    /// Looks each key up at KMS, and keeps what it says: an alias that is moved later moves nothing here. An organization's that
    /// is named by a pattern is looked up when it is first needed.
    ///
    /// # Errors
    /// See [`SsmStoreError`].
    pub async fn open(config: SsmConfig) -> Result<Self, SsmStoreError> {
        let sdk = config.aws.sdk().await;
        let kms = aws_sdk_kms::Client::new(&sdk);
        let attempts = config.aws.attempts;
        let is_pattern = config.key.as_ref().is_some_and(|key| key.contains(ORGANIZATION));
        let key = match &config.key {
            Some(key) if !is_pattern => Some(usable(&kms, attempts, key).await?),
            Some(_) | None => None,
        };
        let mut key_of = BTreeMap::new();
        for (org, key) in &config.key_of {
            key_of.insert(*org, usable(&kms, attempts, key).await?);
        }
        let (client, deployment, key_of) = (Client::new(&sdk), config.deployment, tokio::sync::Mutex::new(key_of));
        let named = config.key.filter(|_| is_pattern).map(|pattern| (kms, pattern));
        Ok(Self { client, deployment, attempts, key, key_of, named })
    }

    async fn key(&self, org: OrgId) -> Result<KeyArn, StoreError> {
        let known = self.key_of.lock().await.get(&org).or(self.key.as_ref()).cloned();
        if let Some(key) = known {
            return Ok(key);
        }
        let Some((kms, pattern)) = &self.named else {
            return Err(StoreError::Forbidden { detail: "no KMS key is configured for the organization".to_owned() });
        };
        let found = usable(kms, self.attempts, &pattern.replace(ORGANIZATION, &org.to_string())).await;
        let found = found.map_err(|error| match error {
            SsmStoreError::Unknown { reason, .. } if reason.is_retryable() => reason,
            other => StoreError::Forbidden { detail: other.to_string() },
        })?;
        Ok(self.key_of.lock().await.entry(org).or_insert(found).clone())
    }

    fn name(&self, key: &SecretKey) -> String {
        format!("{}/{}/{}", self.deployment.secrets_path(key.org, &key.owner), key.name, key.generation)
    }

    /// Puts a SecureString under an organization's key; answers its version.
    pub(crate) async fn put_at(
        &self,
        org: OrgId,
        name: &str,
        value: &Secret,
        description: Option<String>,
    ) -> Result<u64, StoreError> {
        let kms = self.key(org).await?.to_string();
        let put = || async {
            self.client
                .put_parameter()
                .name(name)
                .value(value.expose())
                .set_description(description.clone())
                .r#type(ParameterType::SecureString)
                .key_id(&kms)
                .tier(ParameterTier::Standard)
                .overwrite(true)
                .send()
                .await
        };
        let put = self.ask(put).await.map_err(|error| {
            match error.as_service_error().and_then(ProvideErrorMetadata::code) {
                Some("ValidationException") if value.expose().contains("{{") => {
                    StoreError::Untakable { why: NO_REFERENCES }
                }
                Some("ValidationException") => {
                    StoreError::Untakable { why: "SSM refuses it, and says nothing that may be repeated" }
                }
                _ => store_error(&error),
            }
        })?;
        u64::try_from(put.version())
            .ok()
            .filter(|version| *version > 0)
            .ok_or_else(|| StoreError::Unavailable { detail: "AWS did not number the version".to_owned() })
    }

    /// Takes a parameter away; one that is not there is fine.
    pub(crate) async fn delete_at(&self, name: &str) -> Result<(), StoreError> {
        let delete = || async { self.client.delete_parameter().name(name).send().await };
        match self.ask(delete).await {
            Ok(_) => Ok(()),
            Err(error) if is_not_found(&error) => Ok(()),
            Err(error) => Err(store_error(&error)),
        }
    }

    /// The parameters below a path, without their values.
    pub(crate) async fn below(&self, path: &str) -> Result<Vec<ParameterMetadata>, StoreError> {
        let below = ParameterStringFilter::builder().key("Path").option("Recursive").values(path);
        self.described([below.build()]).await
    }

    async fn described<const N: usize>(
        &self,
        filters: [Result<ParameterStringFilter, BuildError>; N],
    ) -> Result<Vec<ParameterMetadata>, StoreError> {
        let filters = filters.into_iter().collect::<Result<Vec<_>, _>>();
        let filters = filters.map_err(|_| StoreError::Unavailable { detail: "a filter without a key".to_owned() })?;
        let (mut found, mut token) = (Vec::new(), None);
        loop {
            let page = || async {
                let request = self.client.describe_parameters().set_parameter_filters(Some(filters.clone()));
                request.set_next_token(token.clone()).send().await
            };
            let page = self.ask(page).await.map_err(|error| store_error(&error))?;
            token = page.next_token().filter(|token| !token.is_empty()).map(str::to_owned);
            found.extend(page.parameters.unwrap_or_default());
            if token.is_none() {
                return Ok(found);
            }
        }
    }

    /// Each version of a parameter with its note, where it has one; nothing where there is no such parameter.
    async fn history(&self, name: &str) -> Result<Vec<(u64, Option<PutNote>)>, StoreError> {
        let (mut versions, mut token) = (Vec::new(), None);
        loop {
            let page = || async {
                let request = self.client.get_parameter_history().name(name).max_results(HISTORY_PAGE);
                request.set_next_token(token.clone()).with_decryption(false).send().await
            };
            let page = match self.ask(page).await {
                Ok(page) => page,
                Err(error) if is_not_found(&error) => return Ok(Vec::new()),
                Err(error) => return Err(store_error(&error)),
            };
            versions.extend(page.parameters().iter().filter_map(|one| {
                let note = one.description().and_then(|text| text.parse().ok());
                Some((u64::try_from(one.version()).ok()?, note))
            }));
            token = page.next_token().filter(|token| !token.is_empty()).map(str::to_owned);
            if token.is_none() {
                return Ok(versions);
            }
        }
    }

    pub(crate) fn deployment(&self) -> &Deployment {
        &self.deployment
    }

    async fn ask<T, E, F>(&self, request: impl FnMut() -> F) -> Result<T, SdkError<E>>
    where
        F: Future<Output = Result<T, SdkError<E>>>,
        E: ProvideErrorMetadata,
    {
        self.attempts.ask(|error: &SdkError<E>| store_error(error).is_retryable(), request).await
    }
}

/// The key's ARN, where it is the customer's own and can encrypt.
async fn usable(kms: &aws_sdk_kms::Client, attempts: Attempts, key: &str) -> Result<KeyArn, SsmStoreError> {
    let ask = || async { kms.describe_key().key_id(key).send().await };
    let told = attempts.ask(|error| store_error(error).is_retryable(), ask).await;
    let unknown = |reason: StoreError| SsmStoreError::Unknown { key: key.to_owned(), reason };
    let told = told.map_err(|error| unknown(store_error(&error)))?;
    let empty = || unknown(StoreError::Unavailable { detail: "an empty answer".to_owned() });
    let metadata = told.key_metadata().ok_or_else(empty)?;
    if metadata.key_manager() != Some(&KeyManagerType::Customer) {
        return Err(SsmStoreError::AwsManaged { key: key.to_owned() });
    }
    if metadata.key_state() != Some(&KeyState::Enabled) || metadata.key_spec() != Some(&KeySpec::SymmetricDefault) {
        let state = metadata.key_state().map_or("in an unknown state", KeyState::as_str);
        return Err(SsmStoreError::Unusable { key: key.to_owned(), state: state.to_owned() });
    }
    Ok(metadata.arn().unwrap_or_default().parse()?)
}

/// What an answer means. Nothing of its text is repeated: it may quote the request.
pub(crate) fn store_error<E: ProvideErrorMetadata>(error: &SdkError<E>) -> StoreError {
    let SdkError::ServiceError(answer) = error else {
        return StoreError::Unavailable { detail: "no answer of AWS".to_owned() };
    };
    let code = answer.err().code().unwrap_or_default();
    let status = answer.raw().status().as_u16();
    let detail = || format!("AWS says {code}");
    match code {
        "ThrottlingException"
        | "Throttling"
        | "TooManyRequestsException"
        | "RequestLimitExceeded"
        | "TooManyUpdates" => StoreError::Throttled,
        "InternalServerError"
        | "InternalFailure"
        | "ServiceUnavailable"
        | "DependencyTimeoutException"
        | "KMSInternalException" => StoreError::Unavailable { detail: detail() },
        "AccessDeniedException"
        | "UnrecognizedClientException"
        | "InvalidSignatureException"
        | "ExpiredTokenException"
        | "MissingAuthenticationTokenException" => StoreError::Forbidden { detail: detail() },
        _ if status >= 500 => StoreError::Unavailable { detail: detail() },
        // A key that is disabled, gone or not ours among them: no retry helps, an operator does.
        _ => StoreError::Damaged { detail: detail(), pinned: None },
    }
}

fn is_not_found<E: ProvideErrorMetadata>(error: &SdkError<E>) -> bool {
    error.as_service_error().and_then(ProvideErrorMetadata::code) == Some("ParameterNotFound")
}

#[async_trait]
impl SecretStore for SsmStore {
    async fn put(&self, key: &SecretKey, value: &Secret, note: &PutNote) -> Result<u64, StoreError> {
        check_value(value)?;
        self.put_at(key.org, &self.name(key), value, Some(note.to_string())).await
    }

    async fn read(&self, pinned: &[PinnedSecret]) -> Result<Vec<Secret>, StoreError> {
        if pinned.len() > SECRET_READ_MAX {
            return Err(StoreError::TooMany { max: SECRET_READ_MAX });
        }
        if pinned.is_empty() {
            return Ok(Vec::new());
        }
        let names: Vec<String> = pinned.iter().map(|one| format!("{}:{}", self.name(&one.key), one.version)).collect();
        let get =
            || async { self.client.get_parameters().set_names(Some(names.clone())).with_decryption(true).send().await };
        let got = self.ask(get).await.map_err(|error| store_error(&error))?;
        let found = |one: &PinnedSecret| {
            let (name, version) = (self.name(&one.key), i64::try_from(one.version).ok());
            let same = got
                .parameters()
                .iter()
                .find(|parameter| parameter.name() == Some(name.as_str()) && Some(parameter.version()) == version);
            same.cloned()
        };
        let (mut values, mut missing) = (Vec::with_capacity(pinned.len()), Vec::new());
        for one in pinned {
            match found(one) {
                Some(parameter) if parameter.r#type() != Some(&ParameterType::SecureString) => {
                    let detail = format!("version {} of {} is no SecureString", one.version, one.key.name);
                    return Err(StoreError::Damaged { detail, pinned: Some(one.clone()) });
                }
                Some(parameter) => match parameter.value {
                    Some(value) => values.push(Secret::new(value)),
                    None => missing.push(one.clone()),
                },
                None => missing.push(one.clone()),
            }
        }
        if missing.is_empty() { Ok(values) } else { Err(StoreError::Missing { pinned: missing }) }
    }

    async fn delete(&self, key: &SecretKey) -> Result<(), StoreError> {
        self.delete_at(&self.name(key)).await
    }

    async fn keys(&self, org: OrgId, owner: SecretOwner) -> Result<Vec<SecretKey>, StoreError> {
        let found = self.below(&self.deployment.secrets_path(org, &owner)).await?;
        let (above, own) = (self.deployment.secrets_path_of(org), owner.to_string());
        let names = found.iter().filter_map(|parameter| parameter.name());
        Ok(names.filter_map(|name| key_of(name, &above, org, |id| (id == own).then_some(owner))).collect())
    }

    async fn unrecorded(&self, org: OrgId, owners: &[SecretOwner]) -> Result<Vec<Unrecorded>, StoreError> {
        let by_id: BTreeMap<String, SecretOwner> = owners.iter().map(|owner| (owner.to_string(), *owner)).collect();
        let above = self.deployment.secrets_path_of(org);
        let path = match owners {
            [one] => self.deployment.secrets_path(org, one),
            _ => above.clone(),
        };
        let all = self.below(&path).await?;
        let below = ParameterStringFilter::builder().key("Path").option("Recursive").values(&path);
        let tagged = ParameterStringFilter::builder().key(format!("tag:{RECORDED}")).option("Equals").values(YES);
        let recorded = self.described([below.build(), tagged.build()]).await?;
        let recorded: BTreeSet<&str> = recorded.iter().filter_map(|parameter| parameter.name()).collect();
        let mut found = Vec::new();
        for name in all.iter().filter_map(|parameter| parameter.name()).filter(|name| !recorded.contains(name)) {
            let Some(key) = key_of(name, &above, org, |owner| by_id.get(owner).copied()) else { continue };
            for (version, note) in self.history(name).await? {
                found.extend(note.map(|note| Unrecorded { key: key.clone(), version, note }));
            }
        }
        Ok(found)
    }

    async fn record(&self, key: &SecretKey, _: u64) -> Result<(), StoreError> {
        let tag = Tag::builder().key(RECORDED).value(YES).build();
        let tag = tag.map_err(|_| StoreError::Unavailable { detail: "a tag without a key".to_owned() })?;
        let name = self.name(key);
        let mark = || async {
            let request = self.client.add_tags_to_resource().resource_type(ResourceTypeForTagging::Parameter);
            request.resource_id(&name).tags(tag.clone()).send().await
        };
        match self.ask(mark).await {
            Ok(_) => Ok(()),
            // It went meanwhile.
            Err(error)
                if error.as_service_error().and_then(ProvideErrorMetadata::code) == Some("InvalidResourceId") =>
            {
                Ok(())
            }
            Err(error) => Err(store_error(&error)),
        }
    }

    async fn withdraw(&self, key: &SecretKey, versions: &BTreeSet<u64>) -> Result<usize, StoreError> {
        let name = self.name(key);
        let kept = self.history(&name).await?;
        if !all_unrecorded(kept.iter().map(|(version, _)| *version), versions) {
            return Ok(0);
        }
        self.delete_at(&name).await?;
        Ok(kept.len())
    }
}

/// The key of a parameter below a path of secrets: `<owner>/<NAME>/<generation>`.
fn key_of(parameter: &str, path: &str, org: OrgId, owner: impl Fn(&str) -> Option<SecretOwner>) -> Option<SecretKey> {
    let mut parts = parameter.strip_prefix(path)?.strip_prefix('/')?.splitn(3, '/');
    let (owner, name, generation) = (owner(parts.next()?)?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some(SecretKey { org, owner, name, generation })
}
