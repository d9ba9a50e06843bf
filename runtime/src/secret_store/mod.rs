//! Where values of secrets lie: one trait, and who keeps them.
//!
//! Owns putting, reading and deleting versions. Not here: which versions a wake may have (domain, `secrets`), when they are
//! read and what a failure means for the wake (reactors). No error of a store holds a value, or anything that a value's
//! holder said.

mod file;
mod note;

use std::collections::BTreeSet;

use async_trait::async_trait;
use envforge_domain::ids::OrgId;
use envforge_domain::secret::Secret;
use envforge_domain::secrets::{PinnedSecret, SecretKey, SecretOwner};

pub use file::{FileStore, FileStoreError};
pub use note::{InvalidNote, LogMark, PutNote, Unrecorded, all_unrecorded};

/// A store of values. Whoever holds one can read every value in it: reactors that wake, and the API, which only puts.
///
/// INVARIANT: a version that was put is never changed. What the log names by key and version is that value or none.
#[async_trait]
pub trait SecretStore: Send + Sync {
    /// Keeps another version; its number, above all earlier ones of the key, from 1. The newest
    /// `limits::SECRET_VERSIONS_MAX` versions are kept, older ones go. Not idempotent: called again it keeps one more
    /// version, which does no harm, since only what the log names is ever read.
    ///
    /// INVARIANT: the note is there no later than the value, and stays until [`Self::record`].
    ///
    /// # Errors
    /// See [`StoreError`]; `Value` where the value is empty, holds a NUL or has more than `limits::SECRET_BYTES_MAX` bytes.
    async fn put(&self, key: &SecretKey, value: &Secret, note: &PutNote) -> Result<u64, StoreError>;

    /// Exactly these versions, in the order in which they were asked for; at most `limits::SECRET_READ_MAX`. All or nothing.
    ///
    /// # Errors
    /// See [`StoreError`]; `Missing` names all that are not there.
    async fn read(&self, pinned: &[PinnedSecret]) -> Result<Vec<Secret>, StoreError>;

    /// Removes all versions of a key. One that is not there is removed already.
    ///
    /// # Errors
    /// See [`StoreError`]; doing it again is right for each that is retryable.
    async fn delete(&self, key: &SecretKey) -> Result<(), StoreError>;

    /// The keys of one owner of which anything is kept, in any order: for those who clear up.
    ///
    /// # Errors
    /// See [`StoreError`].
    async fn keys(&self, org: OrgId, owner: SecretOwner) -> Result<Vec<SecretKey>, StoreError>;

    /// What was put of these owners' and not recorded, in any order.
    ///
    /// # Errors
    /// See [`StoreError`].
    async fn unrecorded(&self, org: OrgId, owners: &[SecretOwner]) -> Result<Vec<Unrecorded>, StoreError>;

    /// The log names this version: its note goes, and it is never withdrawn. One that has no note is recorded already.
    ///
    /// # Errors
    /// See [`StoreError`]; doing it again is right for each that is retryable.
    async fn record(&self, key: &SecretKey, version: u64) -> Result<(), StoreError>;

    /// Removes versions of a key that were put and not recorded, and no other; how many are gone. Their numbers are given to no other
    /// value as long as there is another one of the key. A store that removes no single version does nothing where there is one.
    ///
    /// # Errors
    /// See [`StoreError`]; doing it again is right for each that is retryable.
    async fn withdraw(&self, key: &SecretKey, versions: &BTreeSet<u64>) -> Result<usize, StoreError>;
}

/// Why a store did not do it. Texts name stores, keys and versions, never values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    #[error("the secret store asks for fewer requests")]
    Throttled,
    #[error("the secret store cannot be reached: {detail}")]
    Unavailable { detail: String },
    #[error("the secret store does not have {}", listed(.pinned))]
    Missing { pinned: Vec<PinnedSecret> },
    #[error("the secret store refuses this: {detail}")]
    Forbidden { detail: String },
    #[error("what the secret store holds cannot be used: {detail}")]
    Damaged {
        detail: String,
        /// Which one of those asked for, where it is known.
        pinned: Option<PinnedSecret>,
    },
    #[error("a secret's value must have 1 to {max} bytes of UTF-8 without NUL")]
    Value { max: usize },
    #[error("the secret store takes no such value: {why}")]
    Untakable { why: &'static str },
    #[error("at most {max} secrets are read at once")]
    TooMany { max: usize },
}

impl StoreError {
    /// Whether the same request could succeed later.
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Throttled | Self::Unavailable { .. } => true,
            Self::Missing { .. }
            | Self::Forbidden { .. }
            | Self::Damaged { .. }
            | Self::Value { .. }
            | Self::Untakable { .. }
            | Self::TooMany { .. } => false,
        }
    }

    /// A stable word for metrics and logs.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Throttled => "throttled",
            Self::Unavailable { .. } => "unavailable",
            Self::Missing { .. } => "missing",
            Self::Forbidden { .. } => "forbidden",
            Self::Damaged { .. } => "damaged",
            Self::Value { .. } => "value",
            Self::Untakable { .. } => "untakable",
            Self::TooMany { .. } => "too_many",
        }
    }
}

fn listed(pinned: &[PinnedSecret]) -> String {
    let one = |pinned: &PinnedSecret| format!("version {} of {}", pinned.version, pinned.key.name);
    pinned.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// What every store demands of a value.
///
/// # Errors
/// [`StoreError::Value`].
pub fn check_value(value: &Secret) -> Result<(), StoreError> {
    let max = envforge_domain::limits::SECRET_BYTES_MAX;
    let text = value.expose();
    if text.is_empty() || text.len() > max || text.contains('\0') { Err(StoreError::Value { max }) } else { Ok(()) }
}
