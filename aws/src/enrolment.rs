//! The enrolment tokens of machines, each in a parameter of its host ([ADR 0016]): put and removed by the control plane, read by
//! the agent on the machine.
//!
//! The parameter's description is the token's digest, by which the control plane tells which token lies there without a right to
//! read it. The digest is in the log as well; a token of 256 random bits is not found by it.
//!
//! Not here: which tokens there are to be (reactors), enrolling with one (agent).
//!
//! [ADR 0016]: ../../docs/adr/0016-a-machine-reads-its-enrolment-token-from-a-parameter.md

use std::collections::BTreeMap;

use async_trait::async_trait;
use aws_sdk_ssm::Client;
use aws_sdk_ssm::types::ParameterType;
use envforge_domain::enrolment::EnrolmentToken;
use envforge_domain::ids::{HostId, OrgId};
use envforge_domain::secret::{Secret, TokenDigest};
use envforge_runtime::EnrolmentStore;
use envforge_runtime::secret_store::StoreError;

use crate::client::{Attempts, AwsConfig};
use crate::ssm::{SsmStore, store_error};

const DIGEST: &str = "sha256:";

#[async_trait]
impl EnrolmentStore for SsmStore {
    async fn put(&self, token: &EnrolmentToken) -> Result<(), StoreError> {
        let name = self.deployment().enrolment_parameter(token.org(), token.host());
        let description = format!("{DIGEST}{}", token.digest().to_hex());
        self.put_at(token.org(), &name, token.text(), Some(description)).await.map(drop)
    }

    async fn remove(&self, org: OrgId, host: HostId) -> Result<(), StoreError> {
        self.delete_at(&self.deployment().enrolment_parameter(org, host)).await
    }

    async fn kept(&self, org: OrgId) -> Result<BTreeMap<HostId, Option<TokenDigest>>, StoreError> {
        let path = self.deployment().hosts_path(org);
        let found = self.below(&path).await?;
        let kept = found.iter().filter_map(|parameter| {
            let host = parameter.name()?.strip_prefix(&path)?.strip_prefix('/')?.strip_suffix("/enrolment")?;
            let digest = parameter.description().and_then(|text| TokenDigest::from_hex(text.strip_prefix(DIGEST)?));
            Some((host.parse().ok()?, digest))
        });
        Ok(kept.collect())
    }
}

/// Reads one enrolment token, as the machine that it is for.
pub struct EnrolmentReader {
    client: Client,
    attempts: Attempts,
    parameter: String,
}

impl EnrolmentReader {
    /// Makes the client; asks AWS for nothing yet.
    pub async fn new(aws: &AwsConfig, parameter: String) -> Self {
        Self { client: Client::new(&aws.sdk().await), attempts: aws.attempts, parameter }
    }

    /// What lies there now; `None` where nothing does.
    ///
    /// # Errors
    /// See [`StoreError`]: `Forbidden` also where the machine's role is not there yet.
    pub async fn read(&self) -> Result<Option<Secret>, StoreError> {
        // By the plural: it is what the instance profile allows.
        let get = || async { self.client.get_parameters().names(&self.parameter).with_decryption(true).send().await };
        let got = self.attempts.ask(|error| store_error(error).is_retryable(), get).await;
        let got = got.map_err(|error| store_error(&error))?;
        let Some(parameter) = got.parameters.unwrap_or_default().into_iter().next() else { return Ok(None) };
        if parameter.r#type() != Some(&ParameterType::SecureString) {
            let detail = format!("{} is no SecureString", self.parameter);
            return Err(StoreError::Damaged { detail, pinned: None });
        }
        Ok(parameter.value.map(Secret::new))
    }
}
