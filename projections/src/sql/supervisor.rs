//! Keeps all projectors of a process running.
//!
//! Owns retries with backoff, and standing by where another process projects. Not here: projecting.

use std::time::Duration;

use envforge_eventlog::SharedLog;
use futures_util::future::select_all;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::database::Database;
use super::projector::{self, ModelName, ProjectorError};

const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A run that lasted this long was healthy: the next failure starts with the shortest pause again.
const HEALTHY_AFTER: Duration = Duration::from_secs(30);
/// How often a stand-by looks whether the other projector still works.
const STAND_BY_LOOK: Duration = Duration::from_secs(1);
/// Looks without any progress, while the log has more, after which a stand-by takes over.
const STAND_BY_LOOKS: u32 = 5;

/// What a projector does now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProjectorState {
    Running,
    /// Something is out of reach; tried again by itself.
    Retrying {
        error: String,
    },
    /// Another process projects this read model; taken over where it stops.
    StandingBy,
    /// Needs a person: a commit that cannot be read, another log, a broken table.
    Failed {
        error: String,
    },
    Stopped,
}

/// All projectors of a process, one task a read model.
#[derive(Debug)]
pub struct Supervisor {
    cancel: CancellationToken,
    projectors: Vec<(ModelName, watch::Receiver<ProjectorState>, JoinHandle<()>)>,
}

impl Supervisor {
    pub fn start(log: &SharedLog, database: &Database) -> Self {
        let cancel = CancellationToken::new();
        let projectors = ModelName::ALL.into_iter().map(|model| {
            let (state, watched) = watch::channel(ProjectorState::Running);
            let keep = keep_running(log.clone(), database.clone(), model, cancel.clone(), state);
            (model, watched, tokio::spawn(keep))
        });
        let projectors = projectors.collect();
        Self { cancel, projectors }
    }

    /// For readiness checks and `doctor`.
    pub fn states(&self) -> Vec<(ModelName, ProjectorState)> {
        self.projectors.iter().map(|(model, state, _)| (*model, state.borrow().clone())).collect()
    }

    /// Waits until one of them needs a person: which, and why. For ever while all work, retry or stand by.
    pub fn failure(&self) -> impl Future<Output = (ModelName, String)> + Send + use<> {
        let first = select_all(self.projectors.iter().map(|(model, state, _)| {
            let (model, mut state) = (*model, state.clone());
            Box::pin(async move {
                let failed = state.wait_for(|state| matches!(state, ProjectorState::Failed { .. })).await;
                match failed.ok().map(|state| state.clone()) {
                    Some(ProjectorState::Failed { error }) => (model, error),
                    _ => std::future::pending().await,
                }
            })
        }));
        async move { first.await.0 }
    }

    /// Ends all projectors; returns once none of them touches the database or follows the log any more.
    pub async fn stop(mut self) {
        self.cancel.cancel();
        for (model, _, task) in self.projectors.drain(..) {
            if let Err(error) = task.await {
                tracing::error!(%model, %error, "the projector's task ended badly");
            }
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

async fn keep_running(
    log: SharedLog,
    database: Database,
    model: ModelName,
    cancel: CancellationToken,
    state: watch::Sender<ProjectorState>,
) {
    let mut backoff = BACKOFF_FIRST;
    while !cancel.is_cancelled() {
        state.send_replace(ProjectorState::Running);
        let begun = std::time::Instant::now();
        let Err(error) = projector::run(log.clone(), database.clone(), model, cancel.clone()).await else { break };
        if begun.elapsed() >= HEALTHY_AFTER {
            backoff = BACKOFF_FIRST;
        }
        if let ProjectorError::FencedOff { .. } = error {
            tracing::warn!(%model, %error, "standing by");
            state.send_replace(ProjectorState::StandingBy);
            if cancel.run_until_cancelled(stand_by(&log, &database, model)).await.is_none() {
                break;
            }
            continue;
        }
        if !error.is_transient() {
            tracing::error!(%model, %error, "the projector stopped and needs attention");
            metrics::gauge!("envforge_projector_failed", "read_model" => model.token()).set(1.0);
            state.send_replace(ProjectorState::Failed { error: error.to_string() });
            return;
        }
        tracing::warn!(%model, %error, pause = ?backoff, "the projector is tried again");
        state.send_replace(ProjectorState::Retrying { error: error.to_string() });
        if cancel.run_until_cancelled(tokio::time::sleep(backoff)).await.is_none() {
            break;
        }
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
    state.send_replace(ProjectorState::Stopped);
}

/// Returns once the read model is behind the log and nobody moves it on, or once that cannot be told.
async fn stand_by(log: &SharedLog, database: &Database, model: ModelName) {
    let (mut seen, mut looks) = (None, 0);
    while looks < STAND_BY_LOOKS {
        tokio::time::sleep(STAND_BY_LOOK).await;
        let (Ok(position), Ok(head)) = (database.position(model).await, log.head().await) else { return };
        looks = if position < head.position && seen == Some(position) { looks + 1 } else { 0 };
        seen = Some(position);
    }
}
