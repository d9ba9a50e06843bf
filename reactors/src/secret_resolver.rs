//! From references to values: what a wake's services declare, taken from the store just before they start.
//!
//! All or nothing. A store that asks for patience is asked again, with jitter, until the wake's own deadline for secrets. Not
//! here: which versions (domain, `SecretView::resolve`), and what is told of a failure (`errand`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use envforge_domain::access::{Action, Permit, Resource};
use envforge_domain::commit::{Component, Position};
use envforge_domain::limits::{SECRET_READ_MAX, SECRETS_DEADLINE};
use envforge_domain::secret::Secret;
use envforge_domain::secrets::{ConsumedSecret, PinnedSecret, RefusedSecret, SecretProblem};
use envforge_domain::time::UnixMillis;
use envforge_runtime::secret_store::{SecretStore, StoreError};
use rand::RngExt;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::permit::system_permit;

/// Reads that are under way at the same time, over all wakes: a store that throttles must not be stormed by many wakes at once.
const READS_MAX: usize = 4;
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Reads from one store. Clones share its bounds.
#[derive(Clone)]
pub struct SecretResolver {
    store: Arc<dyn SecretStore>,
    reads: Arc<Semaphore>,
    deadline: Duration,
}

/// Why a wake gets no secrets. Nothing of it holds a value.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unresolved {
    /// These, of those services.
    Refused(Vec<RefusedSecret>),
    /// The store did not answer in time, or not us.
    Store(StoreError),
    /// The permit is for something else.
    Permit,
}

impl SecretResolver {
    pub fn new(store: Arc<dyn SecretStore>) -> Self {
        Self::with_deadline(store, SECRETS_DEADLINE.to_duration())
    }

    /// For tests, and for operators who know their store.
    pub fn with_deadline(store: Arc<dyn SecretStore>, deadline: Duration) -> Self {
        Self { store, reads: Arc::new(Semaphore::new(READS_MAX)), deadline }
    }

    pub(crate) fn store(&self) -> &Arc<dyn SecretStore> {
        &self.store
    }

    /// The values by name. The permit is one to resolve for the very workspace that is woken.
    pub(crate) async fn resolve(
        &self,
        permit: &Permit,
        consumed: &[ConsumedSecret],
    ) -> Result<BTreeMap<String, Secret>, Unresolved> {
        if permit.action() != Action::SecretResolve || permit.resource().workspace().is_none() {
            return Err(Unresolved::Permit);
        }
        let pinned: BTreeSet<PinnedSecret> = consumed.iter().map(|secret| secret.pinned(permit.org())).collect();
        let pinned: Vec<_> = pinned.into_iter().collect();
        let until = Instant::now() + self.deadline;
        let mut values = BTreeMap::new();
        for batch in pinned.chunks(SECRET_READ_MAX) {
            let read = self.read(batch, until).await.map_err(|error| refused(consumed, permit, error))?;
            for (pinned, value) in batch.iter().zip(read) {
                // One name has one owner and version in a workspace: the services' values of a name are the same.
                values.insert(pinned.key.name.to_string(), value);
            }
        }
        Ok(values)
    }

    /// The values that a shell's git or a job is given, in the versions that the log names. In the name of EnvForge: whoever asks for
    /// it may open the shell, or run the job, and the log says so.
    ///
    /// # Errors
    /// In one sentence for people of the team.
    pub async fn values_for(
        &self,
        resource: Resource,
        now: UnixMillis,
        consumed: &[ConsumedSecret],
    ) -> Result<BTreeMap<String, Secret>, String> {
        let (component, action) = (Component::RuntimeReactor, Action::SecretResolve);
        let permit = system_permit(component, action, resource, Position::START, now);
        let permit = permit.map_err(|denial| denial.to_string())?;
        self.resolve(&permit, consumed).await.map_err(|unresolved| match unresolved {
            Unresolved::Refused(refused) => RefusedSecret::named(&refused),
            Unresolved::Store(error) => format!("the secret store is {}", error.kind()),
            Unresolved::Permit => "the policy does not allow to resolve secrets".to_owned(),
        })
    }

    async fn read(&self, batch: &[PinnedSecret], until: Instant) -> Result<Vec<Secret>, StoreError> {
        let mut pause = PAUSE_MIN;
        loop {
            let attempt = async {
                let _turn = self.reads.acquire().await;
                self.store.read(batch).await
            };
            let error = match tokio::time::timeout_at(until, attempt).await {
                Ok(Ok(values)) if values.len() == batch.len() => {
                    metrics::counter!("envforge_secret_reads_total", "outcome" => "read").increment(1);
                    return Ok(values);
                }
                Ok(Ok(_)) => StoreError::Damaged { detail: "it answered another number".to_owned(), pinned: None },
                Ok(Err(error)) => error,
                Err(_) => StoreError::Unavailable { detail: "no answer in time".to_owned() },
            };
            metrics::counter!("envforge_secret_reads_total", "outcome" => error.kind()).increment(1);
            // Up to twice the pause, so that wakes that were refused together do not come back together.
            let wait = pause.mul_f64(rand::rng().random_range(0.5..2.0));
            if !error.is_retryable() || Instant::now() + wait >= until {
                return Err(error);
            }
            tracing::info!(kind = error.kind(), "the secret store is asked again");
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

/// Names the services whose secrets the store does not have as the log does.
fn refused(consumed: &[ConsumedSecret], permit: &Permit, error: StoreError) -> Unresolved {
    let named: Vec<PinnedSecret> = match &error {
        StoreError::Missing { pinned } => pinned.clone(),
        StoreError::Damaged { pinned: Some(pinned), .. } => vec![pinned.clone()],
        _ => Vec::new(),
    };
    if named.is_empty() {
        return Unresolved::Store(error);
    }
    tracing::error!(%error, "secrets of a wake cannot be read");
    let affected = consumed.iter().filter(|secret| named.contains(&secret.pinned(permit.org())));
    let one = |secret: &ConsumedSecret| RefusedSecret {
        consumer: secret.consumer.clone(),
        name: secret.name.clone(),
        problem: SecretProblem::Damaged,
    };
    Unresolved::Refused(affected.map(one).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;
    use envforge_domain::ids::{OrgId, ProjectId, WorkspaceId};
    use envforge_domain::secrets::{SecretKey, SecretOwner};
    use envforge_runtime::secret_store::{PutNote, Unrecorded};
    use uuid::Uuid;

    use super::*;

    /// Answers each value with its version's number, after refusing as often as it is told to.
    #[derive(Default)]
    struct Store {
        refusals: AtomicUsize,
        reads: AtomicUsize,
        missing: Option<u64>,
    }

    #[async_trait]
    impl SecretStore for Store {
        async fn put(&self, _: &SecretKey, _: &Secret, _: &PutNote) -> Result<u64, StoreError> {
            Err(StoreError::Throttled)
        }

        async fn read(&self, pinned: &[PinnedSecret]) -> Result<Vec<Secret>, StoreError> {
            self.reads.fetch_add(1, Ordering::SeqCst);
            assert!(pinned.len() <= SECRET_READ_MAX);
            let left = self.refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            if left.is_ok() {
                return Err(StoreError::Throttled);
            }
            let missing: Vec<_> = pinned.iter().filter(|one| Some(one.version) == self.missing).cloned().collect();
            if !missing.is_empty() {
                return Err(StoreError::Missing { pinned: missing });
            }
            Ok(pinned.iter().map(|one| Secret::new(format!("value {}", one.version))).collect())
        }

        async fn delete(&self, _: &SecretKey) -> Result<(), StoreError> {
            Ok(())
        }

        async fn keys(&self, _: OrgId, _: SecretOwner) -> Result<Vec<SecretKey>, StoreError> {
            Ok(Vec::new())
        }

        async fn unrecorded(&self, _: OrgId, _: &[SecretOwner]) -> Result<Vec<Unrecorded>, StoreError> {
            Ok(Vec::new())
        }

        async fn record(&self, _: &SecretKey, _: u64) -> Result<(), StoreError> {
            Ok(())
        }

        async fn withdraw(&self, _: &SecretKey, _: &BTreeSet<u64>) -> Result<usize, StoreError> {
            Ok(0)
        }
    }

    fn permit(action: Action) -> Permit {
        let resource = Resource::Workspace {
            org: OrgId::from_uuid(Uuid::from_u128(1)),
            project: ProjectId::from_uuid(Uuid::from_u128(2)),
            workspace: WorkspaceId::from_uuid(Uuid::from_u128(3)),
        };
        system_permit(Component::RuntimeReactor, action, resource, Position::START, UnixMillis::new(1)).unwrap()
    }

    fn consumed(count: u64) -> Vec<ConsumedSecret> {
        let one = |number: u64| ConsumedSecret {
            consumer: format!("svc-{}", number % 3).parse().unwrap(),
            name: format!("SECRET_{number}").parse().unwrap(),
            owner: SecretOwner::Project(ProjectId::from_uuid(Uuid::from_u128(2))),
            generation: 0,
            version: number,
        };
        (1..=count).map(one).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_hundred_references_are_ten_reads_and_throttling_only_delays() {
        let store = Arc::new(Store::default());
        let resolver = SecretResolver::new(store.clone());
        let values = resolver.resolve(&permit(Action::SecretResolve), &consumed(100)).await.unwrap();
        assert_eq!(store.reads.load(Ordering::SeqCst), 10);
        assert_eq!(values.len(), 100);
        assert!(values.iter().all(|(name, value)| value.expose() == name.replace("SECRET_", "value ")));
        store.refusals.store(7, Ordering::SeqCst);
        assert_eq!(resolver.resolve(&permit(Action::SecretResolve), &consumed(100)).await.unwrap().len(), 100);
        assert_eq!(store.reads.load(Ordering::SeqCst), 10 + 17, "only what was refused is asked again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_throttles_for_too_long_ends_the_wait() {
        let store = Arc::new(Store::default());
        store.refusals.store(usize::MAX, Ordering::SeqCst);
        let begun = Instant::now();
        let resolver = SecretResolver::new(store.clone());
        let outcome = resolver.resolve(&permit(Action::SecretResolve), &consumed(1)).await;
        assert_eq!(outcome.err(), Some(Unresolved::Store(StoreError::Throttled)));
        assert!(begun.elapsed() <= SECRETS_DEADLINE.to_duration());
        assert!((10..60).contains(&store.reads.load(Ordering::SeqCst)));
    }

    #[tokio::test]
    async fn what_the_store_does_not_have_is_named_with_its_service_and_nothing_is_given() {
        let store = Arc::new(Store { missing: Some(12), ..Store::default() });
        let resolver = SecretResolver::new(store);
        let outcome = resolver.resolve(&permit(Action::SecretResolve), &consumed(20)).await;
        let expected = RefusedSecret {
            consumer: "svc-0".parse().unwrap(),
            name: "SECRET_12".parse().unwrap(),
            problem: SecretProblem::Damaged,
        };
        assert_eq!(outcome.err(), Some(Unresolved::Refused(vec![expected])));
    }

    #[tokio::test]
    async fn a_permit_for_something_else_resolves_nothing() {
        let resolver = SecretResolver::new(Arc::new(Store::default()));
        let outcome = resolver.resolve(&permit(Action::RuntimeReport), &consumed(1)).await;
        assert_eq!(outcome.err(), Some(Unresolved::Permit));
    }
}
