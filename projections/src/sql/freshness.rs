//! Reading one's own writes: waiting until a read model has folded a position.

use std::time::{Duration, Instant};

use envforge_domain::commit::Position;
use envforge_eventlog::Checkpoint;
use tokio::sync::watch;

use super::checkpoint;
use super::database::{Database, DatabaseError};
use super::projector::ModelName;

/// How often the checkpoint's row is looked at where another process projects.
const POLL_FIRST: Duration = Duration::from_millis(5);
const POLL_MAX: Duration = Duration::from_millis(100);

/// Positions that projectors of this process have committed.
#[derive(Debug)]
pub(crate) struct Freshness([watch::Sender<Position>; ModelName::ALL.len()]);

impl Default for Freshness {
    fn default() -> Self {
        Self(std::array::from_fn(|_| watch::Sender::new(Position::START)))
    }
}

impl Freshness {
    pub(crate) fn committed(&self, model: ModelName, position: Position) {
        self.0[model as usize].send_if_modified(|known| {
            let newer = position > *known;
            *known = (*known).max(position);
            newer
        });
    }
}

/// Why a read as fresh as asked for was not possible.
#[derive(Debug, thiserror::Error)]
pub enum Stale {
    #[error("the read model `{model}` stands at {position}, position {wanted} was asked for and did not come in time")]
    Behind { model: ModelName, wanted: Position, position: Position },
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl Database {
    /// How far the live generation of a read model has come.
    pub async fn position(&self, model: ModelName) -> Result<Position, DatabaseError> {
        Ok(checkpoint::live(self, model).await?.checkpoint.position)
    }

    /// Returns once the read model has folded `position`, or fails after `deadline`. A projector of this process wakes
    /// the waiter at once; one of another process is noticed within 100 ms.
    pub async fn wait_for(&self, model: ModelName, position: Position, deadline: Duration) -> Result<(), Stale> {
        let end = Instant::now() + deadline;
        let mut here = self.freshness.0[model as usize].subscribe();
        let mut pause = POLL_FIRST;
        loop {
            if *here.borrow_and_update() >= position {
                return Ok(());
            }
            let stored = self.position(model).await?;
            if stored >= position {
    /// Where the live generation of a read model stands in which log.
    pub async fn checkpoint(&self, model: ModelName) -> Result<Checkpoint, DatabaseError> {
        Ok(checkpoint::live(self, model).await?.checkpoint)
    }

                return Ok(());
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Stale::Behind { model, wanted: position, position: stored });
            }
            // The sender lives in `self`, so the only ends of this wait are news and time.
            let _ = tokio::time::timeout(pause.min(left), here.changed()).await;
            pause = (pause * 2).min(POLL_MAX);
        }
    }
}
