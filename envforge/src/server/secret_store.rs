//! Which secret store a process uses, and how API and reactors get at it: the one puts, the other reads.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use envforge_api::{NotPut, PutBy, SecretPuts};
use envforge_domain::project::GitCredential;
use envforge_eventlog::CheckpointProof;
use envforge_runtime::secret_store::{FileStore, LogMark, PutNote, SecretStore, StoreError};
use futures_util::FutureExt as _;

#[cfg(not(feature = "aws"))]
use crate::cli::failure::Failure;

/// A store as the command line names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StoreName {
    /// Encrypted files below a directory that only this user enters.
    File(PathBuf),
    /// SecureStrings of SSM under a customer-managed key of KMS: an id, an ARN or an alias. With `{org}` in it each organization's
    /// own.
    AwsSsm { region: String, deployment: String, key: String },
}

impl FromStr for StoreName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("file", path)) if path.starts_with('/') => Ok(Self::File(path.into())),
            Some(("aws-ssm", rest)) => {
                let parts: Vec<&str> = rest.splitn(3, ':').collect();
                match parts.as_slice() {
                    [region, deployment, key] if parts.iter().all(|part| !part.is_empty()) => Ok(Self::AwsSsm {
                        region: (*region).to_owned(),
                        deployment: (*deployment).to_owned(),
                        key: (*key).to_owned(),
                    }),
                    _ => Err("SSM is `aws-ssm:REGION:DEPLOYMENT:KEY`: aws-ssm:eu-central-1:production:alias/envforge-production-{org}"
                        .to_owned()),
                }
            }
            Some(("file", _)) => Err("a file store needs an absolute path: file:/var/lib/envforge/secrets".to_owned()),
            _ => Err("a secret store is `file:DIR` or `aws-ssm:REGION:DEPLOYMENT:KEY`".to_owned()),
        }
    }
}

impl StoreName {
    pub(crate) async fn open(&self) -> anyhow::Result<Arc<dyn SecretStore>> {
        match self {
            Self::File(directory) => Ok(Arc::new(FileStore::open(directory)?)),
            #[cfg(feature = "aws")]
            Self::AwsSsm { region, deployment, key } => {
                let config = envforge_aws::SsmConfig {
                    aws: envforge_aws::AwsConfig::in_region(region),
                    deployment: deployment.parse()?,
                    key: Some(key.clone()),
                    key_of: std::collections::BTreeMap::new(),
                };
                Ok(Arc::new(envforge_aws::SsmStore::open(config).await?))
            }
            #[cfg(not(feature = "aws"))]
            Self::AwsSsm { .. } => {
                let hint = "build it with `cargo build --release --features aws`, or use `file:DIR`";
                Err(Failure::usage("this envforge was built without AWS", hint).into())
            }
        }
    }
}

/// What the API is given of a store: no way to read.
pub(crate) fn puts(store: Arc<dyn SecretStore>) -> SecretPuts {
    let looking = Arc::clone(&store);
    let put = move |key, value, PutBy { command, at, log }| {
        let store = Arc::clone(&store);
        let putting = async move {
            let Some(CheckpointProof { identity, digest }) = log.proof else {
                return Err(NotPut::Unavailable { detail: "nothing of the log is known yet".to_owned() });
            };
            let note = PutNote { command, at, log: LogMark { position: log.position, identity: identity.0, digest } };
            store.put(&key, &value, &note).await.map_err(|error| match error {
                StoreError::Value { max } => NotPut::Value { max_bytes: max },
                StoreError::Untakable { why } => NotPut::Untakable { why },
                other => NotPut::Unavailable { detail: other.to_string() },
            })
        };
        putting.boxed()
    };
    let git_carries = move |pinned| {
        let store = Arc::clone(&looking);
        let reading = async move {
            let values = store.read(&[pinned]).await.ok()?;
            values.first().map(GitCredential::carries)
        };
        reading.boxed()
    };
    SecretPuts::new(put, git_carries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_named_by_its_kind_and_place() {
        assert_eq!("file:/var/x".parse(), Ok(StoreName::File("/var/x".into())));
        let ssm = StoreName::AwsSsm {
            region: "eu-central-1".to_owned(),
            deployment: "production".to_owned(),
            key: "arn:aws:kms:eu-central-1:123456789012:key/1".to_owned(),
        };
        let text = "aws-ssm:eu-central-1:production:arn:aws:kms:eu-central-1:123456789012:key/1";
        assert_eq!(text.parse(), Ok(ssm));
        let each = "aws-ssm:eu-central-1:production:alias/envforge-production-{org}".parse();
        assert!(matches!(each, Ok(StoreName::AwsSsm { key, .. }) if key == "alias/envforge-production-{org}"));
        for wrong in [
            "",
            "aws-ssm:",
            "aws-ssm:eu-central-1:production",
            "aws-ssm:eu-central-1::alias/x",
            "file",
            "file:",
            "file:x",
            "/var/x",
            "ssm:x",
        ] {
            assert!(wrong.parse::<StoreName>().is_err(), "{wrong}");
        }
    }

    #[cfg(not(feature = "aws"))]
    #[tokio::test]
    async fn without_the_feature_ssm_is_refused_with_what_to_do() {
        let name: StoreName = "aws-ssm:eu-central-1:production:alias/envforge".parse().unwrap();
        let Err(error) = name.open().await else { panic!("it was opened") };
        assert!(error.to_string().contains("without AWS"), "{error}");
    }

    #[cfg(feature = "aws")]
    #[tokio::test]
    async fn with_the_feature_a_deployments_name_is_looked_at_before_aws_is() {
        let name: StoreName = "aws-ssm:eu-central-1:No Name:alias/envforge".parse().unwrap();
        let Err(error) = name.open().await else { panic!("it was opened") };
        assert!(error.to_string().contains("does not name a deployment"), "{error}");
    }
}
