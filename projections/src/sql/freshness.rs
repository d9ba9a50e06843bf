//! Reading one's own writes: waiting until a read model has folded a position.

use std::time::{Duration, Instant};

use envforge_domain::commit::Position;
use envforge_eventlog::Checkpoint;
use tokio::sync::watch;

use super::checkpoint;
use super::database::{Database, DatabaseError};
use super::projector::ModelName;
use super::supervisor::ProjectorState;

/// How often the checkpoint's row is looked at where another process projects.
const POLL_FIRST: Duration = Duration::from_millis(5);
const POLL_MAX: Duration = Duration::from_millis(100);

/// What projectors of this process have committed, and what they do now.
#[derive(Debug)]
pub(crate) struct Freshness {
    positions: [watch::Sender<Position>; ModelName::ALL.len()],
    projectors: [watch::Sender<Option<ProjectorState>>; ModelName::ALL.len()],
}

impl Default for Freshness {
    fn default() -> Self {
        Self {
            positions: std::array::from_fn(|_| watch::Sender::new(Position::START)),
            projectors: std::array::from_fn(|_| watch::Sender::new(None)),
        }
    }
}

impl Freshness {
    pub(crate) fn committed(&self, model: ModelName, position: Position) {
        self.positions[model as usize].send_if_modified(|known| {
            let newer = position > *known;
            *known = (*known).max(position);
            newer
        });
    }

    /// Readers were switched to a generation that stands there, which after a rebuild on a log that went back may be
    /// less far than the one before.
    pub(crate) fn begun_at(&self, model: ModelName, position: Position) {
        self.positions[model as usize].send_replace(position);
    }

    pub(crate) fn tell(&self, model: ModelName, state: ProjectorState) {
        self.projectors[model as usize].send_replace(Some(state));
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
    /// Where the live generation of a read model stands in which log.
    pub async fn checkpoint(&self, model: ModelName) -> Result<Checkpoint, DatabaseError> {
        Ok(checkpoint::live(self, model).await?.checkpoint)
    }

    /// How far the live generation of a read model has come.
    pub async fn position(&self, model: ModelName) -> Result<Position, DatabaseError> {
        Ok(checkpoint::live(self, model).await?.checkpoint.position)
    }

    /// What the projectors of this process do; empty where another process projects.
    pub fn projectors(&self) -> Vec<(ModelName, ProjectorState)> {
        let state = |model: ModelName| self.freshness.projectors[model as usize].borrow().clone();
        ModelName::ALL.into_iter().filter_map(|model| Some((model, state(model)?))).collect()
    }

    /// Returns once the read model has folded `position`, or fails after `deadline`. A projector of this process wakes
    /// the waiter at once; one of another process is noticed within 100 ms.
    pub async fn wait_for(&self, model: ModelName, position: Position, deadline: Duration) -> Result<(), Stale> {
        let end = Instant::now() + deadline;
        let mut here = self.freshness.positions[model as usize].subscribe();
        let mut pause = POLL_FIRST;
        loop {
            if *here.borrow_and_update() >= position {
                return Ok(());
            }
            let stored = self.position(model).await?;
            if stored >= position {
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
