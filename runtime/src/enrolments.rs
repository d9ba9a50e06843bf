//! Where the agents of a provider's machines find the tokens by which they enrol.
//!
//! Owns the seam. Not here: a store (`envforge-aws`), which tokens there are to be (reactors), whether one counts (domain).

use std::collections::BTreeMap;

use async_trait::async_trait;
use envforge_domain::enrolment::EnrolmentToken;
use envforge_domain::ids::{HostId, OrgId};
use envforge_domain::secret::TokenDigest;

use crate::secret_store::StoreError;

/// A place for each host, which the machines of its organization read and nobody else's.
#[async_trait]
pub trait EnrolmentStore: Send + Sync {
    /// Puts a token where its host's machine looks for it, in place of the one before.
    ///
    /// # Errors
    /// See [`StoreError`]; after one that may pass it may have been put.
    async fn put(&self, token: &EnrolmentToken) -> Result<(), StoreError>;

    /// Takes away what there is for a host. Nothing is fine.
    ///
    /// # Errors
    /// See [`StoreError`].
    async fn remove(&self, org: OrgId, host: HostId) -> Result<(), StoreError>;

    /// The hosts of an organization for which there is one, and which it is; `None` where that cannot be told. Reads no token.
    ///
    /// # Errors
    /// See [`StoreError`]; never a part of them.
    async fn kept(&self, org: OrgId) -> Result<BTreeMap<HostId, Option<TokenDigest>>, StoreError>;
}
