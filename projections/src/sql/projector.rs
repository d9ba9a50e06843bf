//! The projector: follows the log and folds commits into the rows of one read model, exactly once.
//!
//! Owns batching, fencing and what ends a run. Not here: what the rows are (each read model), starting again
//! (`supervisor`), other generations (`rebuild`).

use std::fmt;
use std::str::FromStr;
use std::time::Instant;

use envforge_domain::commit::{Position, Recorded};
use envforge_eventlog::{Checkpoint, Filter, Follow, LogError, SharedLog};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::audit::AuditModel;
use super::checkpoint::{self, Standing};
use super::command_ids::CommandIdsModel;
use super::database::{Database, DatabaseError, Transaction};
use super::directory::DirectoryModel;
use super::held::Buffer;
use super::meter::MeterModel;
use super::table::Table;

/// Commits of one transaction.
pub const BATCH_COMMITS_MAX: usize = 500;
/// Stored bytes after which a transaction takes no further commit.
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Commits folded in one go after which what the database knows of its tables is too old.
const ANALYZED_AFTER: u64 = 5_000;

/// The read models that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ModelName {
    Directory,
    Audit,
    Meter,
    CommandIds,
}

/// A name that no read model has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a read model: directory, audit, meter or command_ids")]
pub struct UnknownModel {
    pub text: String,
}

impl ModelName {
    pub const ALL: [Self; 4] = [Self::Directory, Self::Audit, Self::Meter, Self::CommandIds];

    pub const fn token(self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::Audit => "audit",
            Self::Meter => "meter",
            Self::CommandIds => "command_ids",
        }
    }

    /// What it is called in `read_models`. A read model whose tables were replaced has a new name there, and so starts again
    /// from the log, while a version that is rolled back to finds its own as it left it.
    pub(crate) const fn stored_name(self) -> &'static str {
        match self {
            Self::Audit => "audit_trail",
            Self::Directory | Self::Meter | Self::CommandIds => self.token(),
        }
    }

    pub(crate) fn fresh(self) -> Box<dyn ReadModel> {
        match self {
            Self::Directory => Box::<DirectoryModel>::default(),
            Self::Audit => Box::<AuditModel>::default(),
            Self::Meter => Box::<MeterModel>::default(),
            Self::CommandIds => Box::<CommandIdsModel>::default(),
        }
    }

    pub(crate) fn tables(self) -> &'static [&'static Table] {
        match self {
            Self::Directory => super::directory::TABLES,
            Self::Audit => super::audit::TABLES,
            Self::Meter => super::meter::TABLES,
            Self::CommandIds => super::command_ids::TABLES,
        }
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.token())
    }
}

impl FromStr for ModelName {
    type Err = UnknownModel;

    fn from_str(text: &str) -> Result<Self, UnknownModel> {
        let found = Self::ALL.into_iter().find(|model| model.token() == text);
        found.ok_or_else(|| UnknownModel { text: text.chars().take(40).collect() })
    }
}

/// A pure fold of commits into rows. The same commits give the same rows, in whatever batches they come.
pub(crate) trait ReadModel: Send {
    /// Asks for the rows that folding this commit will look at.
    fn want(&mut self, recorded: &Recorded);

    fn fold(&mut self, recorded: &Recorded);

    fn buffers(&mut self) -> Vec<&mut dyn Buffer>;
}

/// Why a projector stopped. Only a database that is out of reach and a log that is out of reach are worth a retry.
#[derive(Debug, thiserror::Error)]
pub enum ProjectorError {
    #[error(
        "the projector of `{model}` was fenced off: its checkpoint was at {expected} and another projector moved it to {found}"
    )]
    FencedOff { model: ModelName, expected: Position, found: Position },
    /// Includes a commit that this version cannot read: it is never skipped.
    #[error("the projector of `{model}` stopped at {position}: {error}")]
    Log { model: ModelName, position: Position, error: LogError },
    #[error("the projector of `{model}` stopped: {error}")]
    Database { model: ModelName, error: DatabaseError },
    #[error("the log ended its stream after {position}, which it must not")]
    Ended { model: ModelName, position: Position },
}

impl ProjectorError {
    /// Whether the same projector may go on by itself after a pause.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::FencedOff { .. } => false,
            Self::Log { error, .. } => matches!(error, LogError::Unavailable(_)),
            Self::Database { error, .. } => error.is_transient(),
            Self::Ended { .. } => true,
        }
    }

    /// A word for metrics.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::FencedOff { .. } => "fenced_off",
            Self::Log { error: LogError::Undecodable { .. }, .. } => "undecodable",
            Self::Log { error: LogError::NotTheSameLog(_), .. } => "not_the_same_log",
            Self::Log { .. } => "log",
            Self::Database { .. } => "database",
            Self::Ended { .. } => "ended",
        }
    }
}

/// Projects the live generation of one read model until `cancel`, or until something makes it stop. Ends without an
/// error only where it was cancelled: after the batch in hand, with the log let go.
pub async fn run(
    log: SharedLog,
    database: Database,
    model: ModelName,
    cancel: CancellationToken,
) -> Result<(), ProjectorError> {
    let ended = loop {
        match project(&log, &database, model, &cancel).await {
            Ok(Pause::Cancelled) => break Ok(()),
            // A rebuild has switched the readers to another generation: go on there.
            Ok(Pause::Superseded) => tracing::info!(%model, "the projector goes on with the rebuilt generation"),
            Err(error) => break Err(error),
        }
    };
    if let Err(error) = &ended {
        metrics::counter!("envforge_projector_stopped_total", "read_model" => model.token(), "reason" => error.reason())
            .increment(1);
    }
    ended
}

/// Why projecting ended without an error.
enum Pause {
    Cancelled,
    /// The generation that was projected is no longer the live one.
    Superseded,
}

async fn project(
    log: &SharedLog,
    database: &Database,
    model: ModelName,
    cancel: &CancellationToken,
) -> Result<Pause, ProjectorError> {
    let standing = checkpoint::live(database, model).await;
    let standing = standing.map_err(|error| ProjectorError::Database { model, error })?;
    database.freshness.begun_at(model, standing.checkpoint.position);
    let mut batches = Batches::follow(log, model, standing.checkpoint.clone()).await?;
    let ended = fold_all(log, &mut batches, database, Fold::new(model, standing), cancel).await;
    batches.close().await;
    ended
}

async fn fold_all(
    log: &SharedLog,
    batches: &mut Batches,
    database: &Database,
    mut fold: Fold,
    cancel: &CancellationToken,
) -> Result<Pause, ProjectorError> {
    let model = fold.name;
    let database_error = |error| ProjectorError::Database { model, error };
    let gauge = metrics::gauge!("envforge_projector_position", "read_model" => model.token());
    let commits_total = metrics::counter!("envforge_projector_commits_total", "read_model" => model.token());
    let batch_seconds = metrics::histogram!("envforge_projector_batch_seconds", "read_model" => model.token());
    let (mut not_analyzed, mut head) = (0, Position::START);
    loop {
        let Some(batch) = cancel.run_until_cancelled(batches.next(fold.position())).await else {
            return Ok(Pause::Cancelled);
        };
        let batch = batch?;
        let begun = Instant::now();
        if !fold.flush(database, &batch).await.map_err(database_error)? {
            let live = checkpoint::live(database, model).await.map_err(database_error)?;
            if live.generation != fold.generation() {
                return Ok(Pause::Superseded);
            }
            let (expected, found) = (fold.position(), live.checkpoint.position);
            return Err(ProjectorError::FencedOff { model, expected, found });
        }
        database.freshness.committed(model, fold.position());
        batch_seconds.record(begun.elapsed());
        commits_total.increment(batch.commits.len() as u64);
        gauge.set(fold.position().get() as f64);
        not_analyzed += batch.commits.len() as u64;
        // The log is asked for its end when what it last said was reached, and not by each batch.
        if not_analyzed >= ANALYZED_AFTER && fold.position() >= head {
            head = log.head().await.map_or(head, |head| head.position);
            if fold.position() >= head {
                not_analyzed = 0;
                analyze(database, model).await;
            }
        }
    }
}

/// What the planner does not know makes pages slow and not wrong.
pub(crate) async fn analyze(database: &Database, model: ModelName) {
    if let Err(error) = database.analyze(model).await {
        tracing::warn!(%model, %error, "the database did not look at the tables that were just filled");
    }
}

/// Commits in order, each with the checkpoint after it. Never empty.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) commits: Vec<Recorded>,
    pub(crate) checkpoints: Vec<Checkpoint>,
}

impl Batch {
    fn checkpoint(&self) -> &Checkpoint {
        self.checkpoints.last().expect("a batch is never empty")
    }
}

/// Reads ahead of the database: while one batch is written, the next one grows. So a lone commit is written at once,
/// and under load batches fill by themselves.
pub(crate) struct Batches {
    model: ModelName,
    batches: mpsc::Receiver<Result<Batch, LogError>>,
    reader: tokio::task::JoinHandle<()>,
}

impl Drop for Batches {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Batches {
    pub(crate) async fn follow(log: &SharedLog, model: ModelName, from: Checkpoint) -> Result<Self, ProjectorError> {
        let position = from.position;
        let stream = log.follow(from, Filter::everything()).await;
        let stream = stream.map_err(|error| ProjectorError::Log { model, position, error })?;
        let (sender, batches) = mpsc::channel(1);
        Ok(Self { model, batches, reader: tokio::spawn(read_ahead(stream, sender)) })
    }

    /// Stops reading, and returns once nothing follows the log any more.
    pub(crate) async fn close(mut self) {
        self.reader.abort();
        if let Err(error) = (&mut self.reader).await
            && !error.is_cancelled()
        {
            tracing::error!(model = %self.model, %error, "reading ahead ended badly");
        }
    }

    /// `after` says where we stand, for the error.
    pub(crate) async fn next(&mut self, after: Position) -> Result<Batch, ProjectorError> {
        match self.batches.recv().await {
            Some(Ok(batch)) => Ok(batch),
            Some(Err(error)) => Err(ProjectorError::Log { model: self.model, position: after, error }),
            None => Err(ProjectorError::Ended { model: self.model, position: after }),
        }
    }
}

async fn read_ahead(
    mut stream: BoxStream<'static, Result<Follow, LogError>>,
    sender: mpsc::Sender<Result<Batch, LogError>>,
) {
    let mut growing: Option<Batch> = None;
    let mut growing_bytes = 0;
    loop {
        let full = growing
            .as_ref()
            .is_some_and(|batch| batch.commits.len() >= BATCH_COMMITS_MAX || growing_bytes >= BATCH_BYTES_MAX);
        let item = tokio::select! {
            biased;
            item = stream.next(), if !full => item,
            place = sender.reserve(), if growing.is_some() => {
                let (Ok(place), Some(batch)) = (place, growing.take()) else { return };
                place.send(Ok(batch));
                growing_bytes = 0;
                continue;
            }
            // Only reached while there is nothing to hand over.
            () = sender.closed() => return,
        };
        match item {
            Some(Ok(Follow::Commit { recorded, checkpoint, bytes })) => {
                growing_bytes += bytes;
                let batch = growing.get_or_insert_with(|| Batch { commits: Vec::new(), checkpoints: Vec::new() });
                batch.commits.push(recorded);
                batch.checkpoints.push(checkpoint);
            }
            Some(Ok(Follow::Caught { .. })) => {}
            Some(Err(error)) => {
                // What came before the error is folded first, so that the projector stops exactly before it.
                if let Some(batch) = growing.take()
                    && sender.send(Ok(batch)).await.is_err()
                {
                    return;
                }
                // The receiver may be gone: then nobody wants to know.
                let _ = sender.send(Err(error)).await;
                return;
            }
            None => {
                if let Some(batch) = growing.take() {
                    let _ = sender.send(Ok(batch)).await;
                }
                return;
            }
        }
    }
}

/// One generation of one read model on its way through the log.
pub(crate) struct Fold {
    name: ModelName,
    model: Box<dyn ReadModel>,
    standing: Standing,
}

impl Fold {
    pub(crate) fn new(name: ModelName, standing: Standing) -> Self {
        Self { name, model: name.fresh(), standing }
    }

    pub(crate) fn position(&self) -> Position {
        self.standing.checkpoint.position
    }

    pub(crate) fn generation(&self) -> i64 {
        self.standing.generation
    }

    /// Folds a batch: rows and checkpoint in one transaction. `false`: fenced off, and nothing was written.
    pub(crate) async fn flush(&mut self, database: &Database, batch: &Batch) -> Result<bool, DatabaseError> {
        let mut transaction = database.begin().await?;
        if !self.flush_in(&mut transaction, batch).await? {
            transaction.rollback().await?;
            return Ok(false);
        }
        transaction.commit().await?;
        self.folded(batch);
        Ok(true)
    }

    /// The same within a transaction, which the caller commits before it calls `folded`. After an error, or without a
    /// commit, this fold must not be used any more: its rows in memory may be ahead of the database.
    pub(crate) async fn flush_in(
        &mut self,
        transaction: &mut Transaction,
        batch: &Batch,
    ) -> Result<bool, DatabaseError> {
        let generation = self.generation();
        // First of all: this also keeps every other projector of this generation waiting until we are done.
        if !checkpoint::advance(transaction, self.name, generation, self.position(), batch.checkpoint()).await? {
            return Ok(false);
        }
        batch.commits.iter().for_each(|recorded| self.model.want(recorded));
        for buffer in self.model.buffers() {
            buffer.load(transaction, generation).await?;
        }
        batch.commits.iter().for_each(|recorded| self.model.fold(recorded));
        for buffer in self.model.buffers() {
            buffer.write(transaction, generation).await?;
        }
        Ok(true)
    }

    pub(crate) fn folded(&mut self, batch: &Batch) {
        self.standing.checkpoint = batch.checkpoint().clone();
    }
}

#[cfg(test)]
mod tests {
    use envforge_domain::claim::ClaimEvent;
    use envforge_domain::commit::{StreamId, StreamKind};
    use envforge_domain::event::Event;

    use super::*;
    use crate::given::{NOW, commit, org};
    use crate::hot::tests::ScriptedLog;

    #[tokio::test]
    async fn a_batch_of_large_commits_ends_at_its_bytes() {
        const COMMITS: u64 = 60;
        let stream = StreamId::new(org(1), StreamKind::Claim, "large").unwrap();
        let history = (1..=COMMITS).map(|number| {
            let events = (0..8).map(|_| Event::Claim(ClaimEvent::Taken { holder: "x".repeat(60_000) })).collect();
            let commit = commit(stream.clone(), events, u128::from(number));
            Recorded { position: Position::new(number), recorded_at: NOW, commit }
        });
        let history = history.collect();
        let log: SharedLog = ScriptedLog::new(history, []);
        let mut batches = Batches::follow(&log, ModelName::Audit, Checkpoint::START).await.unwrap();
        let mut read = 0;
        while read < COMMITS as usize {
            let batch = batches.next(Position::START).await.unwrap();
            assert!(batch.commits.len() <= 10, "{} commits of half a megabyte each", batch.commits.len());
            read += batch.commits.len();
        }
        batches.close().await;
    }
}
