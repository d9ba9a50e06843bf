//! Keeps all projectors of a process running.
//!
//! Owns retries with backoff, and standing by where another process projects. Not here: projecting.

use std::time::Duration;

use envforge_domain::commit::Position;
use envforge_eventlog::{LogError, SharedLog};
use futures_util::future::select_all;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::checkpoint;
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
/// How often a projector that needs a person looks whether its read model was rebuilt.
const REBUILT_LOOK: Duration = Duration::from_secs(1);

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
    /// Needs a person: a commit that cannot be read, a broken table. Goes on by itself once the read model is rebuilt.
    Failed {
        error: String,
    },
    /// The same, because the log is not the one that the rows were folded from, or has gone back.
    AnotherLog {
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

    /// Waits until a projector finds that the log is not the one that its rows were folded from; says how it knows.
    pub fn another_log(&self) -> impl Future<Output = String> + Send + 'static {
        let watches: Vec<_> =
            self.projectors.iter().map(|(_, state, _)| Box::pin(another_log(state.clone()))).collect();
        async move { select_all(watches).await.0 }
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

async fn another_log(mut state: watch::Receiver<ProjectorState>) -> String {
    let is_another = |state: &ProjectorState| matches!(state, ProjectorState::AnotherLog { .. });
    if let Ok(state) = state.wait_for(is_another).await
        && let ProjectorState::AnotherLog { error } = &*state
    {
        return error.clone();
    }
    // The projector has ended in order.
    std::future::pending().await
}

async fn keep_running(
    log: SharedLog,
    database: Database,
    model: ModelName,
    cancel: CancellationToken,
    state: watch::Sender<ProjectorState>,
) {
    let tell = |now: ProjectorState| {
        database.freshness.tell(model, now.clone());
        state.send_replace(now);
    };
    let failed = metrics::gauge!("envforge_projector_failed", "read_model" => model.token());
    let mut backoff = BACKOFF_FIRST;
    while !cancel.is_cancelled() {
        tell(ProjectorState::Running);
        failed.set(0.0);
        let begun = std::time::Instant::now();
        let generation = generation(&database, model).await;
        let Err(error) = projector::run(log.clone(), database.clone(), model, cancel.clone()).await else { break };
        if begun.elapsed() >= HEALTHY_AFTER {
            backoff = BACKOFF_FIRST;
        }
        if let ProjectorError::FencedOff { .. } = error {
            tracing::warn!(%model, %error, "standing by");
            tell(ProjectorState::StandingBy);
            if cancel.run_until_cancelled(stand_by(&log, &database, model)).await.is_none() {
                break;
            }
            continue;
        }
        if !error.is_transient() {
            tracing::error!(%model, %error, "the projector stopped and needs attention");
            failed.set(1.0);
            // What it had folded says nothing about the rows that are put in their place: waiters look at those.
            database.freshness.begun_at(model, Position::START);
            tell(match &error {
                ProjectorError::Log { error: LogError::NotTheSameLog(_), .. } => {
                    ProjectorState::AnotherLog { error: error.to_string() }
                }
                _ => ProjectorState::Failed { error: error.to_string() },
            });
            if cancel.run_until_cancelled(rebuilt(&database, model, generation)).await.is_none() {
                break;
            }
            tracing::info!(%model, "the projector goes on: its read model was rebuilt");
            continue;
        }
        tracing::warn!(%model, %error, pause = ?backoff, "the projector is tried again");
        tell(ProjectorState::Retrying { error: error.to_string() });
        if cancel.run_until_cancelled(tokio::time::sleep(backoff)).await.is_none() {
            break;
        }
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
    tell(ProjectorState::Stopped);
}

/// The live generation; `None` where that cannot be told now.
async fn generation(database: &Database, model: ModelName) -> Option<i64> {
    checkpoint::live(database, model).await.ok().map(|standing| standing.generation)
}

/// Returns once the live generation is another than the one that was folded before.
async fn rebuilt(database: &Database, model: ModelName, before: Option<i64>) {
    loop {
        tokio::time::sleep(REBUILT_LOOK).await;
        let now = generation(database, model).await;
        if now.is_some() && now != before {
            return;
        }
    }
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
