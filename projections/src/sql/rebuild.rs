//! Rebuilding a read model from the log, beside the live one and without a failed read.
//!
//! Owns the new generation from its start to the switch, the comparison with the old one, and taking the old one away.
//! Not here: the live projector, which goes on all the while and moves to the new generation by itself.

use std::time::Duration;

use envforge_domain::commit::Position;
use envforge_eventlog::{Checkpoint, LogError, NotTheSameLog, SharedLog};

use super::checkpoint::{self, Standing};
use super::database::{Database, DatabaseError};
use super::digest::{self, TableDigest};
use super::projector::{self, Batch, Batches, Fold, ModelName, ProjectorError};
use super::statement::Statement;

/// Rows removed by one transaction, so that projectors never wait long behind it.
const REMOVE_ROWS: i64 = 2_000;
/// The log is given this long for the next commit that it must have.
const NEXT_COMMIT_DEADLINE: Duration = Duration::from_secs(60);

/// How far a rebuild has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RebuildProgress {
    pub position: Position,
    /// The end of the log when the rebuild began, or where the live generation has come to since.
    pub target: Position,
}

/// What a rebuild did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rebuilt {
    pub model: ModelName,
    pub generation: i64,
    pub comparison: Comparison,
    /// Where the readers were switched.
    pub switched_at: Position,
}

/// What the rows before are worth beside the rebuilt ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// Both generations had folded exactly up to `at`.
    Compared { at: Position, old: TableDigest, new: TableDigest },
    /// The rows before were folded from another log, or from a later state of this one, up to `at`: nothing in this log
    /// compares with them.
    OfAnotherLog { at: Position, why: NotTheSameLog },
}

impl Rebuilt {
    /// Whether the old rows were what the log says. They differ where the fold has changed since they were written, or
    /// where they were wrong.
    pub fn unchanged(&self) -> bool {
        matches!(&self.comparison, Comparison::Compared { old, new, .. } if old == new)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    #[error(transparent)]
    Projector(#[from] ProjectorError),
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error("the log cannot be read: {0}")]
    Log(#[from] LogError),
    #[error("the rebuild of `{model}` was given up: another rebuild of it has begun")]
    Superseded { model: ModelName },
    #[error("the log gave no commit after {after} within {} s, though `{model}` has folded up to {target}", NEXT_COMMIT_DEADLINE.as_secs())]
    Stuck { model: ModelName, after: Position, target: Position },
}

/// Rebuilds a read model and switches all readers to the result. `progress` is called after each batch.
///
/// Where the log is not the one that the live rows were folded from, the new ones take their place all the same: readers
/// then go back to what this log says.
///
/// A rebuild that fails or is dropped leaves the live generation as it was; the next one clears away what it left.
pub async fn rebuild(
    log: &SharedLog,
    database: &Database,
    model: ModelName,
    progress: impl FnMut(RebuildProgress) + Send,
) -> Result<Rebuilt, RebuildError> {
    let mut transaction = database.begin().await?;
    let generation = checkpoint::open_generation(&mut transaction, model).await?;
    transaction.commit().await?;
    remove_older(database, model, generation).await?;
    let standing = Standing { generation, checkpoint: Checkpoint::START };
    let live = database.checkpoint(model).await?;
    let lost = match log.verify(&live).await {
        Ok(()) => None,
        Err(LogError::NotTheSameLog(why)) => Some(why),
        Err(error) => return Err(error.into()),
    };
    let head = log.head().await?.position;
    let mut new = Rebuild {
        database,
        model,
        batches: Batches::follow(log, model, Checkpoint::START).await?,
        rest: None,
        fold: Fold::new(model, standing),
        progress,
    };
    let comparison = match lost {
        None => {
            // The live generation may be behind the log: the new one must not pass it before the comparison.
            new.fold_to(live.position.min(head)).await?;
            new.compare().await?
        }
        Some(why) => {
            tracing::warn!(%model, at = %live.position, %why, "the rows before are of another log");
            new.fold_to(head).await?;
            Comparison::OfAnotherLog { at: live.position, why }
        }
    };
    if let Comparison::Compared { at, old, new } = &comparison
        && old != new
    {
        tracing::warn!(%model, compared_at = %at, %old, %new, "the rebuilt rows differ from those before");
        metrics::counter!("envforge_rebuild_differences_total", "read_model" => model.token()).increment(1);
    }
    projector::analyze(database, model).await;
    let switched_at = match &comparison {
        Comparison::Compared { .. } => new.switch().await?,
        Comparison::OfAnotherLog { .. } => new.replace().await?,
    };
    new.batches.close().await;
    remove_older(database, model, generation).await?;
    Ok(Rebuilt { model, generation, comparison, switched_at })
}

struct Rebuild<'a, P> {
    database: &'a Database,
    model: ModelName,
    batches: Batches,
    /// Read, but beyond the position that was asked for.
    rest: Option<Batch>,
    fold: Fold,
    progress: P,
}

impl<P: FnMut(RebuildProgress) + Send> Rebuild<'_, P> {
    /// Folds exactly up to `target`, which the live generation has reached already.
    async fn fold_to(&mut self, target: Position) -> Result<(), RebuildError> {
        while self.fold.position() < target {
            let batch = self.next(target).await?;
            if !self.fold.flush(self.database, &batch).await? {
                return Err(RebuildError::Superseded { model: self.model });
            }
            (self.progress)(RebuildProgress { position: self.fold.position(), target });
        }
        Ok(())
    }

    /// The next batch, cut at `target`.
    async fn next(&mut self, target: Position) -> Result<Batch, RebuildError> {
        let after = self.fold.position();
        let batch = match self.rest.take() {
            Some(batch) => batch,
            None => match tokio::time::timeout(NEXT_COMMIT_DEADLINE, self.batches.next(after)).await {
                Ok(batch) => batch?,
                Err(_) => return Err(RebuildError::Stuck { model: self.model, after, target }),
            },
        };
        let (batch, rest) = batch.cut_after(target);
        self.rest = rest;
        batch.ok_or(RebuildError::Stuck { model: self.model, after, target })
    }

    /// Digests of both generations at the same position. Nobody waits for it: the live one is read as of one moment.
    async fn compare(&mut self) -> Result<Comparison, RebuildError> {
        let mut snapshot = self.database.snapshot().await?;
        let live = checkpoint::live_in(&mut snapshot, self.model).await?;
        let position = live.checkpoint.position;
        self.fold_to(position).await?;
        let old = digest::of_generation(&mut snapshot, self.model, live.generation).await?;
        snapshot.rollback().await?;
        let mut snapshot = self.database.snapshot().await?;
        let new = digest::of_generation(&mut snapshot, self.model, self.fold.generation()).await?;
        snapshot.rollback().await?;
        Ok(Comparison::Compared { at: position, old, new })
    }

    /// Switches from rows of another log, whose projector stands still: there is nothing to catch up with.
    async fn replace(&mut self) -> Result<Position, RebuildError> {
        let mut transaction = self.database.begin().await?;
        checkpoint::hold_model(&mut transaction, self.model).await?;
        if !checkpoint::hold(&mut transaction, self.model, self.fold.generation()).await? {
            return Err(RebuildError::Superseded { model: self.model });
        }
        checkpoint::switch(&mut transaction, self.model, self.fold.generation()).await?;
        transaction.commit().await?;
        self.database.freshness.begun_at(self.model, self.fold.position());
        Ok(self.fold.position())
    }

    /// Catches up, then holds the live generation for the last few commits and switches: readers never go back in time.
    async fn switch(&mut self) -> Result<Position, RebuildError> {
        self.fold_to(self.database.position(self.model).await?).await?;
        let mut transaction = self.database.begin().await?;
        // In this order also where another rebuild begins, so that the two wait for each other instead of crossing.
        checkpoint::hold_model(&mut transaction, self.model).await?;
        if !checkpoint::hold(&mut transaction, self.model, self.fold.generation()).await? {
            return Err(RebuildError::Superseded { model: self.model });
        }
        let live = checkpoint::live_in(&mut transaction, self.model).await?;
        checkpoint::hold(&mut transaction, self.model, live.generation).await?;
        // Read again: only now is it certain not to move.
        let target = checkpoint::live_in(&mut transaction, self.model).await?.checkpoint.position;
        while self.fold.position() < target {
            let batch = self.next(target).await?;
            if !self.fold.flush_in(&mut transaction, &batch).await? {
                return Err(RebuildError::Superseded { model: self.model });
            }
            self.fold.folded(&batch);
        }
        checkpoint::switch(&mut transaction, self.model, self.fold.generation()).await?;
        transaction.commit().await?;
        (self.progress)(RebuildProgress { position: target, target });
        Ok(target)
    }
}

impl Batch {
    /// Splits into what lies up to `target` and what lies beyond.
    fn cut_after(mut self, target: Position) -> (Option<Self>, Option<Self>) {
        let inside = self.checkpoints.partition_point(|checkpoint| checkpoint.position <= target);
        if inside == self.commits.len() {
            return (Some(self), None);
        }
        let beyond = Self { commits: self.commits.split_off(inside), checkpoints: self.checkpoints.split_off(inside) };
        (if inside == 0 { None } else { Some(self) }, Some(beyond))
    }
}

/// Removes the rows of every generation before `generation` that is not live, a few at a time.
async fn remove_older(database: &Database, model: ModelName, generation: i64) -> Result<(), DatabaseError> {
    for table in model.tables() {
        let key = table.key.join(", ");
        let name = table.name;
        loop {
            let older = || {
                Statement::new(format!("DELETE FROM {name} WHERE (generation, {key}) IN (SELECT generation, {key} "))
                    .push(&format!("FROM {name} WHERE generation < "))
                    .bind(generation)
                    .push(" AND generation <> (SELECT generation FROM read_models WHERE name = ")
                    .bind(model.stored_name())
                    .push(") LIMIT ")
                    .bind(REMOVE_ROWS)
                    .push(")")
            };
            let mut transaction = database.begin().await?;
            let removed = transaction.execute(older()).await?;
            transaction.commit().await?;
            if removed < REMOVE_ROWS.unsigned_abs() {
                break;
            }
        }
    }
    Ok(())
}
