//! Clears the store of values that nobody will read again: of removed secrets, and of archived workspaces.
//!
//! Level-triggered: it holds what the store has of an owner against what the log says, so that it makes good whatever a crash
//! left. What the log has not heard of yet stays: somebody is just setting it.

use std::sync::Arc;
use std::time::Duration;

use envforge_domain::ids::OrgId;
use envforge_domain::secrets::{SecretOwner, Secrets};
use envforge_runtime::secret_store::{SecretStore, StoreError};

/// The next start looks again.
const ATTEMPTS_MAX: u32 = 6;

/// One owner's secrets, as the log has them.
pub(crate) struct Sweep {
    pub(crate) org: OrgId,
    pub(crate) owner: SecretOwner,
    pub(crate) known: Secrets,
    /// An archived workspace never wakes again.
    pub(crate) archived: bool,
}

impl Sweep {
    pub(crate) async fn run(self, store: Arc<dyn SecretStore>) {
        for attempt in 0..ATTEMPTS_MAX {
            match self.attempt(&*store).await {
                Ok(()) => return,
                Err(error) if error.is_retryable() => {
                    tokio::time::sleep(Duration::from_millis(500) * 2_u32.pow(attempt)).await;
                }
                Err(error) => {
                    tracing::error!(owner = %self.owner, %error, "removed secrets could not be cleared from the store");
                    return;
                }
            }
        }
        tracing::warn!(owner = %self.owner, "removed secrets were not cleared from the store yet; the next start tries again");
    }

    async fn attempt(&self, store: &dyn SecretStore) -> Result<(), StoreError> {
        for key in store.keys(self.org, self.owner).await? {
            if self.archived || self.known.is_over(&key.name, key.generation) {
                store.delete(&key).await?;
                tracing::info!(owner = %self.owner, name = %key.name, "a removed secret's value was cleared from the store");
            }
        }
        Ok(())
    }
}
