//! Where it is remembered: the event log.
//!
//! Owns `EventLog` (append, read, follow, head) with its SQLite and JetStream backends, the stored event schemas with
//! their upcasting, and the checkpoint checks that let a follower fail closed. Not here: what may happen (domain),
//! deciding and retrying (commands), folding into read models (projections).

pub mod gateways;
pub mod jetstream;
pub mod schema;
pub mod sqlite;

mod clock;
mod measure;
mod prepared;

use std::sync::Arc;

use async_trait::async_trait;
use envforge_domain::commit::{Commit, Expectation, Position, Recorded, StreamId, StreamKind};
use envforge_domain::ids::{CommandId, OrgId};
use futures_util::stream::BoxStream;

/// One log shared by everything in a process.
pub type SharedLog = Arc<dyn EventLog>;

/// An append-only, totally ordered log of commits with optimistic concurrency per stream.
///
/// Both backends pass one contract suite, word for word (`eventlog/tests/contract`).
#[async_trait]
pub trait EventLog: Send + Sync + 'static {
    /// Appends one commit or, atomically, several of different streams (claims only: a batch costs about 20 ms on a
    /// single JetStream server). When this returns `Ok`, the commits survive kill -9 of everything.
    ///
    /// A command that stands in the first commit's stream at or after the expected position already answers as the first
    /// time, with `duplicate: true`. Of older ones the embedded log knows all, and JetStream those of its duplicate window
    /// (two minutes): whoever may repeat a command later finds out first whether it stands there, as `commands` does. One
    /// command may stand in several streams, appended together or one after the other, but only once in each.
    ///
    /// A commit expects where its own stream ends or, unless it is the first one, guards another stream
    /// (`Expectation::Guards`): the append is stored only if that one has not moved, and whatever moves it later stands
    /// behind. A guarded stream is written by no commit of the append, for what is expected of it says as much, and is
    /// guarded by one at most.
    async fn append(&self, commits: Vec<(Commit, Expectation)>) -> Result<Appended, AppendError>;

    /// The commits of one stream above `after`, in order; at most `limit`, fewer only at the stream's end. Reads from the
    /// leader: sees every acknowledged append.
    async fn read_stream(&self, stream: &StreamId, after: Position, limit: usize) -> Result<Vec<Recorded>, LogError>;

    /// The last commit of a stream. Reads from the leader.
    async fn last_of_stream(&self, stream: &StreamId) -> Result<Option<Recorded>, LogError>;

    /// Position of the last commit in any of these streams; the leader's word, one round trip a stream.
    /// What a decision needs in order to know that its rights are fresh.
    async fn last_position_of(&self, streams: &[StreamId]) -> Result<Position, LogError> {
        Ok(self.last_positions_of(streams).await?.into_iter().max().unwrap_or(Position::START))
    }

    /// Position of the last commit of each of these streams, in the order given; the leader's word.
    async fn last_positions_of(&self, streams: &[StreamId]) -> Result<Vec<Position>, LogError>;

    /// Commits above `after` up to `limit` that pass the filter, oldest first, with the position read up to. Fewer than
    /// `limit` where they are large: `at_head` says whether more are there.
    async fn read(&self, after: Position, limit: usize, filter: &Filter) -> Result<Page, LogError>;

    /// Everything above the checkpoint, then what comes, forever. Sends `Follow::Caught` heartbeats at least once a
    /// second while idle. Reconnects by itself; ends with an error when the log is not the one of the checkpoint.
    async fn follow(
        &self,
        from: Checkpoint,
        filter: Filter,
    ) -> Result<BoxStream<'static, Result<Follow, LogError>>, LogError>;

    /// Holds a checkpoint against the log: fails with `NotTheSameLog` where it is of another one, or of a later state of
    /// this one. Waits for nothing, so a log out of reach is an error here, which it is not to a follower.
    async fn verify(&self, checkpoint: &Checkpoint) -> Result<(), LogError> {
        // Where following looks before it begins, that is all there is to it.
        self.follow(checkpoint.clone(), Filter::everything()).await.map(drop)
    }

    /// Identity and last position.
    async fn head(&self) -> Result<Head, LogError>;
}

/// What an append answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Positions of the commits, in the order given. For a duplicate: those of the first time.
    pub positions: Vec<Position>,
    pub duplicate: bool,
}

impl Appended {
    /// The position that a reader must reach to see the whole append.
    pub fn last(&self) -> Position {
        self.positions.iter().copied().max().unwrap_or(Position::START)
    }
}

/// Why nothing was appended.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// Somebody else was first; reload and decide again.
    #[error("stream {stream} has moved on: expected its last commit at {expected}")]
    Conflict { stream: StreamId, expected: Position },
    /// A guarded stream has moved: what was decided rests on rights that may have been taken since. Told before any
    /// conflict. Ask the policy again.
    #[error("the rights behind this have moved: expected the last commit of {stream} at {expected}")]
    RightsMoved { stream: StreamId, expected: Position },
    /// The same command id was used for another request.
    #[error("command {command} was used before for another request")]
    CommandReused { command: CommandId },
    #[error("{what} has {found} {unit}, the limit is {limit}")]
    TooLarge { what: &'static str, unit: &'static str, found: usize, limit: usize },
    #[error(
        "a commit must hold at least one event, each of its stream's kind, and a batch one commit per stream, all of one command and request; its first commit guards no stream, and the others each one that it does not write"
    )]
    Malformed,
    /// It is unknown whether the append happened. Appending the same commits again is safe.
    #[error("the log did not answer in time; appending the same command again is safe")]
    Unknown,
    #[error(transparent)]
    Log(#[from] LogError),
}

/// The log cannot be used, now or at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    #[error("the log is out of reach: {0}")]
    Unavailable(String),
    /// Fail closed: somebody restored, deleted or swapped the log.
    #[error("the log is not the one that was followed: {0}")]
    NotTheSameLog(NotTheSameLog),
    /// A newer EnvForge wrote it, or it is damaged. Never skipped.
    #[error("commit at position {position} cannot be read: {reason}")]
    Undecodable { position: Position, reason: String },
    #[error("the log could not be opened: {0}")]
    Open(String),
    /// Its file is broken. Waiting mends nothing: it has to be put back from a copy.
    #[error("the log is damaged: {0}")]
    Damaged(String),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotTheSameLog {
    #[error("its identity is {found}, the checkpoint was made on {expected}")]
    Identity { expected: LogIdentity, found: LogIdentity },
    #[error("it ends at {head}, the checkpoint stands at {checkpoint}")]
    WentBack { checkpoint: Position, head: Position },
    #[error("the commit at {position} has changed since the checkpoint was made")]
    Rewritten { position: Position },
    #[error("after {after} came {found}: commits are missing")]
    Gap { after: Position, found: Position },
    /// While it was in use.
    #[error("it was deleted, or another one was put in its place: {found}")]
    Replaced { found: String },
}

/// Names one log for as long as it lives; a new log has another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LogIdentity(pub String);

impl std::fmt::Display for LogIdentity {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub identity: LogIdentity,
    pub position: Position,
}

/// Where a follower stands. Kept with what it folded, in the same transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    pub position: Position,
    /// `None` before the first commit was folded.
    pub proof: Option<CheckpointProof>,
}

impl Checkpoint {
    pub const START: Self = Self { position: Position::START, proof: None };
}

/// What a follower holds against the log before it goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointProof {
    pub identity: LogIdentity,
    /// SHA-256 of the stored bytes of the commit at the checkpoint's position.
    pub digest: [u8; 32],
}

/// Which commits a reader wants. Empty lists mean all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub org: Option<OrgId>,
    pub kinds: Vec<StreamKind>,
}

impl Filter {
    pub fn everything() -> Self {
        Self::default()
    }

    pub fn accepts(&self, stream: &StreamId) -> bool {
        self.accepts_scope(stream.org(), stream.kind())
    }

    /// The same of any stream of this kind in this organization.
    pub(crate) fn accepts_scope(&self, org: OrgId, kind: StreamKind) -> bool {
        self.org.is_none_or(|wanted| wanted == org) && (self.kinds.is_empty() || self.kinds.contains(&kind))
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    pub commits: Vec<Recorded>,
    /// Everything up to here was looked at; read on from here.
    pub read_up_to: Position,
    pub at_head: bool,
}

/// What a follower is told.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "nearly every item is a commit; boxing each would cost more")]
pub enum Follow {
    Commit {
        recorded: Recorded,
        checkpoint: Checkpoint,
        /// As it is stored: what a reader that gathers commits bounds itself by.
        bytes: usize,
    },
    /// Nothing above this position existed a moment ago: a sign of life, and proof of freshness.
    Caught { position: Position },
}
