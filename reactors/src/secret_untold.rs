//! Values that were put and of which the log was never told: a crash came in between, or the log said no.
//!
//! Nobody ever reads one, and here they are withdrawn. The hazard is a log that was put back to an older state by mistake: it knows
//! nothing of the newest values, and its word alone would take good ones away. So a value goes only where all of this holds (ADR 19):
//! its note says that nobody has seen the log name it; it is older than any request; the log, asked anew, has the commit that stood
//! there before the value was put, and names no such version.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use envforge_commands::{CommandError, Commands, secrets};
use envforge_domain::ids::OrgId;
use envforge_domain::secrets::{SecretKey, SecretOwner, Secrets, VersionStanding};
use envforge_domain::time::{Millis, SharedClock};
use envforge_eventlog::{Checkpoint, CheckpointProof, LogError, LogIdentity};
use envforge_runtime::secret_store::{LogMark, SecretStore, StoreError, Unrecorded};

/// No request takes so long, nor does anybody need that long to notice that a wrong log was put back.
const UNTOLD_AGE: Millis = Millis::from_secs(24 * 60 * 60);

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
enum NotLooked {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the log cannot be read")]
    Command(#[from] CommandError),
    #[error(transparent)]
    Log(#[from] LogError),
}

/// Some owners' values, held against the log.
pub(crate) struct Untold {
    pub(crate) org: OrgId,
    pub(crate) owners: Vec<SecretOwner>,
    pub(crate) commands: Commands,
    pub(crate) clock: SharedClock,
}

impl Untold {
    /// Once. What cannot be done now is looked at again by the next one.
    pub(crate) async fn run(self, store: Arc<dyn SecretStore>) {
        if let Err(error) = self.attempt(&*store).await {
            tracing::warn!(org = %self.org, %error, "values of which the log was never told could not be looked for");
        }
    }

    async fn attempt(&self, store: &dyn SecretStore) -> Result<(), NotLooked> {
        let mut known: BTreeMap<SecretOwner, Secrets> = BTreeMap::new();
        let mut absent: BTreeMap<SecretKey, BTreeSet<u64>> = BTreeMap::new();
        for found in store.unrecorded(self.org, &self.owners).await? {
            let Unrecorded { key, version, note } = found;
            let of_owner = match known.entry(key.owner) {
                Entry::Occupied(known) => known.into_mut(),
                // From the log itself: what is folded here may be behind it.
                Entry::Vacant(unknown) => {
                    unknown.insert(secrets::load(&self.commands, self.org, key.owner).await?.state)
                }
            };
            match of_owner.standing(&key.name, key.generation, version) {
                VersionStanding::Recorded => store.record(&key, version).await?,
                VersionStanding::Absent if self.clock.now().since(note.at) >= UNTOLD_AGE => {
                    if self.commands.holds(&checkpoint(note.log)).await? {
                        absent.entry(key).or_default().insert(version);
                    } else {
                        tracing::warn!(name = %key.name, version, "a value stays in the store: this log is not the one, or older than the one, before which it was put");
                    }
                }
                VersionStanding::Absent | VersionStanding::Unknown => {}
            }
        }
        for (key, versions) in absent {
            let gone = store.withdraw(&key, &versions).await?;
            if gone > 0 {
                metrics::counter!("envforge_secret_values_withdrawn_total").increment(gone as u64);
                tracing::info!(owner = %key.owner, name = %key.name, ?versions, "values of which the log was never told were withdrawn from the store");
            }
        }
        Ok(())
    }
}

fn checkpoint(mark: LogMark) -> Checkpoint {
    let LogMark { position, identity, digest } = mark;
    Checkpoint { position, proof: Some(CheckpointProof { identity: LogIdentity(identity), digest }) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;
    use std::process::Command;
    use std::sync::atomic::{AtomicU64, Ordering};

    use envforge_domain::claim::ClaimEvent;
    use envforge_domain::commit::{Actor, Commit, Expectation, StreamId, StreamKind, Surface};
    use envforge_domain::event::Event;
    use envforge_domain::ids::{CommandId, CommitId, CorrelationId, ProjectId, UserId};
    use envforge_domain::secret::Secret;
    use envforge_domain::secrets::{PinnedSecret, SecretsEvent};
    use envforge_domain::time::{Clock, UnixMillis};
    use envforge_eventlog::sqlite::{Config, SqliteLog};
    use envforge_eventlog::{EventLog as _, Filter, Follow, SharedLog};
    use envforge_runtime::secret_store::{FileStore, PutNote};
    use futures_util::StreamExt as _;
    use uuid::Uuid;

    use super::*;

    struct HandClock(AtomicU64);

    impl Clock for HandClock {
        fn now(&self) -> UnixMillis {
            UnixMillis::new(self.0.load(Ordering::SeqCst))
        }
    }

    /// One state of a log.
    struct Written {
        log: Arc<SqliteLog>,
        at: Arc<HandClock>,
    }

    fn org() -> OrgId {
        OrgId::from_uuid(Uuid::from_u128(1))
    }

    fn owner() -> SecretOwner {
        SecretOwner::Project(ProjectId::from_uuid(Uuid::from_u128(2)))
    }

    fn key(name: &str) -> SecretKey {
        SecretKey { org: org(), owner: owner(), name: name.parse().unwrap(), generation: 0 }
    }

    impl Written {
        async fn open(directory: &Path, at: &Arc<HandClock>) -> Self {
            let log = SqliteLog::open(Config::new(directory)).await.unwrap();
            Self { log: Arc::new(log), at: Arc::clone(at) }
        }

        async fn close(self) {
            Arc::into_inner(self.log).unwrap().close().await;
        }

        async fn append(&self, stream: StreamId, event: Event) {
            let last = self.log.last_positions_of(std::slice::from_ref(&stream)).await.unwrap()[0];
            let commit = Commit {
                id: CommitId::from_uuid(Uuid::now_v7()),
                command: CommandId::from_uuid(Uuid::now_v7()),
                request_digest: None,
                stream,
                actor: Actor::Anonymous,
                surface: Surface::Api,
                correlation: CorrelationId::from_uuid(Uuid::now_v7()),
                causation: None,
                decided_at: self.at.now(),
                events: vec![event],
            };
            self.log.append(vec![(commit, Expectation::LastAt(last))]).await.unwrap();
        }

        /// Something else happens.
        async fn goes_on(&self) {
            let stream = StreamId::new(org(), StreamKind::Claim, &Uuid::now_v7().simple().to_string()).unwrap();
            self.append(stream, Event::Claim(ClaimEvent::Taken { holder: "test".to_owned() })).await;
        }

        async fn tell(&self, name: &str, version: u64) {
            let by = UserId::from_uuid(Uuid::from_u128(3));
            let (name, at) = (name.parse().unwrap(), self.at.now());
            let set = SecretsEvent::Set { owner: owner(), name, generation: 0, version, expires_at: None, by, at };
            self.append(StreamId::secrets(org(), owner()), Event::Secrets(set)).await;
        }

        /// As the API does before it puts.
        async fn note(&self) -> PutNote {
            let head = self.log.head().await.unwrap().position;
            let mut following = self.log.follow(Checkpoint::START, Filter::everything()).await.unwrap();
            let known = loop {
                match following.next().await.unwrap().unwrap() {
                    Follow::Commit { recorded, checkpoint, .. } if recorded.position == head => break checkpoint,
                    _ => {}
                }
            };
            let CheckpointProof { identity, digest } = known.proof.unwrap();
            let log = LogMark { position: known.position, identity: identity.0, digest };
            PutNote { command: CommandId::from_uuid(Uuid::now_v7()), at: self.at.now(), log }
        }

        async fn look(&self, store: &FileStore) {
            let (commands, clock) = (Commands::new(Arc::clone(&self.log) as SharedLog), self.at.clone());
            let untold = Untold { org: org(), owners: vec![owner()], commands, clock };
            untold.attempt(store).await.unwrap();
        }
    }

    async fn is_kept(store: &FileStore, name: &str, version: u64) -> bool {
        store.read(&[PinnedSecret { key: key(name), version }]).await.is_ok()
    }

    fn copied(from: &Path, to: &Path) {
        assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
    }

    #[tokio::test]
    async fn a_value_goes_only_when_the_right_log_is_a_day_older_than_it_and_names_it_not() {
        let directory = tempfile::tempdir().unwrap();
        let (right, older) = (directory.path().join("right"), directory.path().join("older"));
        let store = FileStore::open(&directory.path().join("store")).unwrap();
        let at = Arc::new(HandClock(AtomicU64::new(1_800_000_000_000)));
        let put = async |name: &str, note: PutNote| {
            store.put(&key(name), &Secret::new("a value".to_owned()), &note).await.unwrap()
        };
        let log = Written::open(&right, &at).await;
        log.goes_on().await;
        log.close().await;
        copied(&right, &older);

        let log = Written::open(&right, &at).await;
        log.goes_on().await;
        // Told, never told (a crash), told; and one whose crash came even before the note of what was told went.
        assert_eq!(put("API_KEY", log.note().await).await, 1);
        log.tell("API_KEY", 1).await;
        assert_eq!(put("API_KEY", log.note().await).await, 2);
        assert_eq!(put("API_KEY", log.note().await).await, 3);
        log.tell("API_KEY", 3).await;
        assert_eq!(put("NEVER_TOLD", log.note().await).await, 1);
        // Nobody looked yet: all four have notes. The older log knows nothing of any, also once it has gone on for longer.
        at.0.fetch_add(2 * UNTOLD_AGE.get(), Ordering::SeqCst);
        let restored = Written::open(&older, &at).await;
        restored.look(&store).await;
        for _ in 0..10 {
            restored.goes_on().await;
        }
        restored.tell("ANOTHER", 1).await;
        restored.look(&store).await;
        let fresh = Written::open(&directory.path().join("fresh"), &at).await;
        fresh.look(&store).await;
        for version in 1..=3 {
            assert!(is_kept(&store, "API_KEY", version).await, "version {version}");
        }
        assert!(is_kept(&store, "NEVER_TOLD", 1).await);

        // The right one takes what it was never told of, and that alone; but not before its time.
        at.0.fetch_sub(2 * UNTOLD_AGE.get(), Ordering::SeqCst);
        log.look(&store).await;
        assert!(is_kept(&store, "API_KEY", 2).await && is_kept(&store, "NEVER_TOLD", 1).await);
        at.0.fetch_add(UNTOLD_AGE.get(), Ordering::SeqCst);
        log.look(&store).await;
        assert!(is_kept(&store, "API_KEY", 1).await && is_kept(&store, "API_KEY", 3).await);
        assert!(!is_kept(&store, "API_KEY", 2).await && !is_kept(&store, "NEVER_TOLD", 1).await);
        assert_eq!(store.unrecorded(org(), &[owner()]).await, Ok(vec![]));

        // What the right log was seen to name no other one takes, not even one from the moment before it was told.
        assert_eq!(put("API_KEY", log.note().await).await, 4);
        let between = directory.path().join("between");
        log.close().await;
        copied(&right, &between);
        let log = Written::open(&right, &at).await;
        log.tell("API_KEY", 4).await;
        log.look(&store).await;
        at.0.fetch_add(UNTOLD_AGE.get(), Ordering::SeqCst);
        Written::open(&between, &at).await.look(&store).await;
        assert!(is_kept(&store, "API_KEY", 4).await);
    }
}
