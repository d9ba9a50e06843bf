//! The log of a cluster: one JetStream stream, one literal subject per aggregate.
//!
//! What it promises: appends are checked by the server itself against the last message of each literal subject; whatever
//! a decision rests on is read from the stream's leader. `recorded_at` is the server's time; a reader never sees it go back.
//! With `sync_interval: always` and three replicas an acknowledged append survives kill -9 and power loss; that stands in
//! the servers' configuration, which a client cannot see. Not here: stored forms (`schema`).
//!
//! Once the streams are made, the process needs no more rights on the servers than these (stream `ENVFORGE`, prefix
//! `envforge`); the contract suite runs with them:
//!
//! ```text
//! publish: envforge.>, $JS.API.STREAM.INFO.ENVFORGE, $JS.API.STREAM.MSG.GET.ENVFORGE, $JS.API.DIRECT.GET.ENVFORGE,
//!          $JS.API.CONSUMER.CREATE.ENVFORGE.>, $JS.API.CONSUMER.INFO.ENVFORGE.>, $JS.API.CONSUMER.MSG.NEXT.ENVFORGE.>
//! subscribe: _INBOX.>
//! ```
//!
//! and, for API and gateways, on the registry of gateways beside it:
//!
//! ```text
//! publish: envforge-gateways.>, envforge-gateways-asked, _INBOX.>, $JS.API.STREAM.INFO.ENVFORGE_GATEWAYS,
//!          $JS.API.STREAM.MSG.GET.ENVFORGE_GATEWAYS, $JS.API.STREAM.MSG.DELETE.ENVFORGE_GATEWAYS
//! subscribe: envforge-gateways-asked
//! ```

mod append;
mod asking;
mod config;
mod definition;
mod enrolment;
mod follow;
mod leader;
mod publish;
mod range;
mod registry;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use envforge_domain::commit::{Commit, Expectation, Position, Recorded, StreamId};
use envforge_domain::time::UnixMillis;
use futures_util::future::try_join_all;
use futures_util::stream::BoxStream;
use tokio::sync::Semaphore;

pub use self::config::{Config, Credentials, Tls};
pub use self::enrolment::Enrolled;
use self::leader::{Leader, Stored};
pub use self::registry::Registry;
use crate::measure::Backend;
use crate::prepared::PreparedAppend;
use crate::{AppendError, Appended, Checkpoint, EventLog, Filter, Follow, Head, LogError, Page};

/// The server takes 50 batches of a stream at a time, from all its clients together.
const BATCHES_IN_FLIGHT_MAX: usize = 8;

/// The log of a cluster.
pub struct JetStreamLog {
    leader: Arc<Leader>,
    replicas: usize,
    open_timeout: Duration,
    append_timeout: Duration,
    appends: Semaphore,
    batches: Semaphore,
}

impl JetStreamLog {
    /// Connects, and makes the stream where there is none. Fails with `LogError::Open` when the servers refuse us, or
    /// when a stream of that name is not set up so that it could be a log.
    pub async fn open(config: Config) -> Result<Self, LogError> {
        let leader = Leader::open(&config).await?;
        Ok(Self {
            leader,
            replicas: config.replicas,
            open_timeout: config.open_timeout,
            append_timeout: config.append_timeout,
            appends: Semaphore::new(config.appends_in_flight_max.max(1)),
            batches: Semaphore::new(BATCHES_IN_FLIGHT_MAX),
        })
    }

    /// The registry of the gateways that follow this log. Made where there is none.
    pub async fn gateways(&self) -> Result<Arc<Registry>, LogError> {
        Ok(Arc::new(Registry::open(Arc::clone(&self.leader), self.open_timeout, self.replicas).await?))
    }

    async fn append_prepared(&self, append: &PreparedAppend) -> Result<Appended, AppendError> {
        let deadline = Instant::now() + self.append_timeout;
        let permits = if append.commits.len() > 1 { &self.batches } else { &self.appends };
        let Ok(Ok(_permit)) = tokio::time::timeout_at(deadline.into(), permits.acquire()).await else {
            return Err(LogError::Unavailable("too many appends wait for an answer".to_owned()).into());
        };
        append::append(&self.leader, append, deadline.saturating_duration_since(Instant::now())).await
    }
}

/// Decodes, and makes the time of record grow over the commits given.
fn decode(stored: &[Stored]) -> Result<Vec<Recorded>, LogError> {
    let mut latest = UnixMillis::EPOCH;
    let mut decoded = Vec::with_capacity(stored.len());
    for stored in stored {
        let mut recorded = stored.decode()?;
        latest = latest.max(recorded.recorded_at);
        recorded.recorded_at = latest;
        decoded.push(recorded);
    }
    Ok(decoded)
}

#[async_trait]
impl EventLog for JetStreamLog {
    async fn append(&self, commits: Vec<(Commit, Expectation)>) -> Result<Appended, AppendError> {
        let started = Instant::now();
        let result = match PreparedAppend::new(commits) {
            Err(error) => Err(error),
            Ok(append) => self.append_prepared(&append).await,
        };
        Backend::JetStream.appended(started, &result);
        result
    }

    async fn read_stream(&self, stream: &StreamId, after: Position, limit: usize) -> Result<Vec<Recorded>, LogError> {
        let subject = self.leader.subject(stream);
        let mut stored: Vec<Stored> = Vec::new();
        // A range ends early where commits are large; a stream is read on, so that fewer than `limit` means its end.
        loop {
            let last = stored.last().map_or(after, |last| last.position);
            let range = range::read(&self.leader, &subject, last, limit - stored.len()).await?;
            stored.extend(range.commits);
            if range.complete || stored.len() >= limit {
                return decode(&stored);
            }
        }
    }

    async fn last_of_stream(&self, stream: &StreamId) -> Result<Option<Recorded>, LogError> {
        self.leader.last(&self.leader.subject(stream)).await?.as_ref().map(Stored::decode).transpose()
    }

    async fn last_positions_of(&self, streams: &[StreamId]) -> Result<Vec<Position>, LogError> {
        let subjects: Vec<String> = streams.iter().map(|stream| self.leader.subject(stream)).collect();
        let lasts = try_join_all(subjects.iter().map(|subject| self.leader.last(subject))).await?;
        Ok(lasts.into_iter().map(|last| last.map_or(Position::START, |last| last.position)).collect())
    }

    async fn read(&self, after: Position, limit: usize, filter: &Filter) -> Result<Page, LogError> {
        // Asked first: whatever matches up to here is seen by the reads that follow.
        let head = self.leader.head().await?;
        if head <= after || limit == 0 {
            return Ok(Page { commits: Vec::new(), read_up_to: after, at_head: head <= after });
        }
        let subjects = self.leader.subjects(filter);
        let reads = subjects.iter().map(|subject| range::read(&self.leader, subject, after, limit));
        let mut read_up_to = Position::new(u64::MAX);
        let mut stored = Vec::new();
        for range in try_join_all(reads).await? {
            let last = range.commits.last().map_or(after, |last| last.position);
            read_up_to = read_up_to.min(if range.complete { last.max(head) } else { last });
            stored.extend(range.commits);
        }
        // Several subjects: in the log's order, and only as far as all of them were read.
        stored.sort_unstable_by_key(|stored| stored.position);
        stored.retain(|stored| stored.position <= read_up_to);
        if stored.len() > limit {
            stored.truncate(limit);
            read_up_to = stored.last().map_or(after, |last| last.position);
        }
        Ok(Page { commits: decode(&stored)?, read_up_to, at_head: read_up_to >= head })
    }

    async fn follow(
        &self,
        from: Checkpoint,
        filter: Filter,
    ) -> Result<BoxStream<'static, Result<Follow, LogError>>, LogError> {
        // Said at once where it is known at once; a log out of reach is waited for by the follower itself.
        let digest = from.proof.as_ref().map(|proof| proof.digest);
        match follow::verify(&self.leader, from.position, digest, from.proof.as_ref()).await {
            Ok(()) | Err(LogError::Unavailable(_)) => Ok(follow::start(Arc::clone(&self.leader), from, filter)),
            Err(error) => Err(error),
        }
    }

    async fn verify(&self, checkpoint: &Checkpoint) -> Result<(), LogError> {
        let digest = checkpoint.proof.as_ref().map(|proof| proof.digest);
        follow::verify(&self.leader, checkpoint.position, digest, checkpoint.proof.as_ref()).await
    }

    async fn head(&self) -> Result<Head, LogError> {
        let position = self.leader.head().await?;
        Ok(Head { identity: self.leader.identity().clone(), position })
    }
}
