//! Which secret store a process uses, and how API and reactors get at it: the one puts, the other reads.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use envforge_api::{NotPut, SecretPuts};
use envforge_runtime::secret_store::{FileStore, SecretStore, StoreError};

/// A store as the command line names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StoreName {
    /// Encrypted files below a directory that only this user enters.
    File(PathBuf),
}

impl FromStr for StoreName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("file", path)) if path.starts_with('/') => Ok(Self::File(path.into())),
            Some(("file", _)) => Err("a file store needs an absolute path: file:/var/lib/envforge/secrets".to_owned()),
            _ => Err("a secret store is `file:DIR`".to_owned()),
        }
    }
}

impl StoreName {
    pub(crate) fn open(&self) -> anyhow::Result<Arc<dyn SecretStore>> {
        match self {
            Self::File(directory) => Ok(Arc::new(FileStore::open(directory)?)),
        }
    }
}

/// What the API is given of a store: no way to read.
pub(crate) fn puts(store: Arc<dyn SecretStore>) -> SecretPuts {
    SecretPuts::new(move |key, value| {
        let store = Arc::clone(&store);
        Box::pin(async move {
            store.put(&key, &value).await.map_err(|error| match error {
                StoreError::Value { max } => NotPut::Value { max_bytes: max },
                other => NotPut::Unavailable { detail: other.to_string() },
            })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_named_by_its_kind_and_place() {
        assert_eq!("file:/var/x".parse(), Ok(StoreName::File("/var/x".into())));
        for wrong in ["", "file", "file:", "file:x", "/var/x", "ssm:x"] {
            assert!(wrong.parse::<StoreName>().is_err(), "{wrong}");
        }
    }
}
