//! A log in memory whose clock and length the test decides. A double of `EventLog`, for the time of events and for
//! batches of a known size; what the real log does is tested over the real one (`over_the_embedded_log`).

use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use envforge_domain::commit::{Commit, Expectation, Position, Recorded, StreamId};
use envforge_domain::time::UnixMillis;
use envforge_eventlog::{
    AppendError, Appended, Checkpoint, CheckpointProof, EventLog, Filter, Follow, Head, LogError, LogIdentity,
    NotTheSameLog, Page,
};
use futures_util::stream::{self, BoxStream, StreamExt};
use parking_lot::Mutex;
use tokio::sync::watch;

pub struct MemoryLog {
    identity: LogIdentity,
    commits: Mutex<Vec<Recorded>>,
    /// How many commits followers may see.
    visible: watch::Sender<u64>,
    /// A commit that nobody can decode; 0 for none.
    undecodable: AtomicU64,
}

impl MemoryLog {
    pub fn new(identity: &str) -> Self {
        Self {
            identity: LogIdentity(identity.to_owned()),
            commits: Mutex::default(),
            visible: watch::Sender::new(0),
            undecodable: AtomicU64::new(0),
        }
    }

    pub fn of(identity: &str, commits: Vec<Recorded>) -> Self {
        let log = Self::new(identity);
        *log.commits.lock() = commits;
        log
    }

    /// Appends without showing it to followers.
    pub fn push_hidden(&self, commit: Commit, recorded_at: UnixMillis) -> Position {
        let mut commits = self.commits.lock();
        let position = Position::new(commits.len() as u64 + 1);
        commits.push(Recorded { position, recorded_at, commit });
        position
    }

    pub fn reveal_up_to(&self, position: Position) {
        self.visible.send_replace(position.get());
    }

    pub fn reveal_all(&self) -> Position {
        let position = Position::new(self.commits.lock().len() as u64);
        self.reveal_up_to(position);
        position
    }

    pub fn make_undecodable(&self, position: Position) {
        self.undecodable.store(position.get(), Ordering::SeqCst);
    }

    pub fn commits(&self) -> Vec<Recorded> {
        self.commits.lock().clone()
    }

    fn digest(recorded: &Recorded) -> [u8; 32] {
        let mut digest = [0; 32];
        digest[..16].copy_from_slice(recorded.commit.id.as_uuid().as_bytes());
        digest[16..24].copy_from_slice(&recorded.position.get().to_le_bytes());
        digest
    }

    fn follow_next(&self, after: Position, identity: LogIdentity) -> Option<Result<Follow, LogError>> {
        let next = after.next();
        if next.get() > *self.visible.borrow() {
            return None;
        }
        if next.get() == self.undecodable.load(Ordering::SeqCst) {
            let reason = "`dev_link.vanished.v9` is not an event of this version".to_owned();
            return Some(Err(LogError::Undecodable { position: next, reason }));
        }
        let recorded = self.commits.lock()[after.get() as usize].clone();
        let proof = CheckpointProof { identity, digest: Self::digest(&recorded) };
        let bytes = envforge_eventlog::schema::encode(&recorded.commit).unwrap().len();
        Some(Ok(Follow::Commit { checkpoint: Checkpoint { position: next, proof: Some(proof) }, recorded, bytes }))
    }
}

/// Follows an `Arc`'d log: the trait's `follow` has only `&self`, so the shared half is here.
pub struct SharedMemoryLog(pub std::sync::Arc<MemoryLog>);

#[async_trait]
impl EventLog for SharedMemoryLog {
    async fn append(&self, commits: Vec<(Commit, Expectation)>) -> Result<Appended, AppendError> {
        let positions = commits.into_iter().map(|(commit, _)| {
            let decided_at = commit.decided_at;
            self.0.push_hidden(commit, decided_at)
        });
        let positions = positions.collect();
        self.0.reveal_all();
        Ok(Appended { positions, duplicate: false })
    }

    async fn read_stream(&self, stream: &StreamId, after: Position, limit: usize) -> Result<Vec<Recorded>, LogError> {
        let commits = self.0.commits();
        let of_stream = commits.into_iter().filter(|recorded| &recorded.commit.stream == stream);
        Ok(of_stream.filter(|recorded| recorded.position > after).take(limit).collect())
    }

    async fn last_of_stream(&self, stream: &StreamId) -> Result<Option<Recorded>, LogError> {
        Ok(self.read_stream(stream, Position::START, usize::MAX).await?.pop())
    }

    async fn last_positions_of(&self, streams: &[StreamId]) -> Result<Vec<Position>, LogError> {
        let commits = self.0.commits();
        let last_of = |stream: &StreamId| {
            let last = commits.iter().rfind(|recorded| &recorded.commit.stream == stream);
            last.map_or(Position::START, |recorded| recorded.position)
        };
        Ok(streams.iter().map(last_of).collect())
    }

    async fn read(&self, after: Position, limit: usize, filter: &Filter) -> Result<Page, LogError> {
        let commits = self.0.commits();
        let read_up_to = Position::new(commits.len() as u64);
        let wanted =
            commits.into_iter().filter(|recorded| recorded.position > after && filter.accepts(&recorded.commit.stream));
        Ok(Page { commits: wanted.take(limit).collect(), read_up_to, at_head: true })
    }

    async fn follow(
        &self,
        from: Checkpoint,
        _: Filter,
    ) -> Result<BoxStream<'static, Result<Follow, LogError>>, LogError> {
        let identity = self.0.identity.clone();
        if let Some(proof) = &from.proof {
            if proof.identity != identity {
                let (expected, found) = (proof.identity.clone(), identity);
                return Err(LogError::NotTheSameLog(NotTheSameLog::Identity { expected, found }));
            }
            let at = self.0.commits.lock().get(from.position.get() as usize - 1).cloned();
            if at.as_ref().map(MemoryLog::digest) != Some(proof.digest) {
                return Err(LogError::NotTheSameLog(NotTheSameLog::Rewritten { position: from.position }));
            }
        }
        let log = std::sync::Arc::clone(&self.0);
        let seen = log.visible.subscribe();
        let state = (log, seen, from.position, identity, false);
        let stream = stream::unfold(state, |(log, mut seen, at, identity, told)| async move {
            loop {
                seen.borrow_and_update();
                match log.follow_next(at, identity.clone()) {
                    Some(Ok(item)) => return Some((Ok(item), (log, seen, at.next(), identity, false))),
                    Some(Err(error)) => return Some((Err(error), (log, seen, at, identity, false))),
                    None if !told => {
                        return Some((Ok(Follow::Caught { position: at }), (log, seen, at, identity, true)));
                    }
                    None => seen.changed().await.expect("the log lives as long as its followers"),
                }
            }
        });
        Ok(stream.boxed())
    }

    async fn head(&self) -> Result<Head, LogError> {
        Ok(Head { identity: self.0.identity.clone(), position: Position::new(*self.0.visible.borrow()) })
    }
}
