//! The hot views of a process and the one task that feeds them from the log.
//!
//! All views see the same commits in the same order. When the log turns out not to be the one that was followed, the
//! views stop for good and everything that asks them is refused: better closed than wrong.

use std::sync::Arc;
use std::time::{Duration, Instant};

use envforge_domain::commit::Position;
use envforge_eventlog::{Checkpoint, Filter, Follow, LogError, SharedLog};
use futures_util::StreamExt;
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::authorization::AuthorizationView;
use crate::gateway_view::GatewayView;
use crate::resources::ResourceView;

/// Wait before following again after the log was out of reach.
const RECONNECT_DELAY: Duration = Duration::from_millis(200);

/// All hot views of a process.
pub struct Hot {
    pub authorization: Arc<AuthorizationView>,
    pub gateway: Arc<GatewayView>,
    pub resources: Arc<ResourceView>,
    progress: watch::Sender<Progress>,
    last_heard: RwLock<Instant>,
}

#[derive(Clone, Debug)]
struct Progress {
    position: Position,
    caught_up: bool,
    /// Why the views stopped for good.
    failed: Option<String>,
}

/// The views do not have what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stale {
    #[error("the views stand at {position}, {wanted} was not reached within {waited_ms} ms")]
    Behind { position: Position, wanted: Position, waited_ms: u64 },
    #[error("the views have stopped: {reason}")]
    Stopped { reason: String },
}

impl Hot {
    /// Begins to follow the log from its first commit, until `stop`.
    pub fn start(log: SharedLog, stop: CancellationToken) -> Arc<Self> {
        let (progress, _) = watch::channel(Progress { position: Position::START, caught_up: false, failed: None });
        let hot = Arc::new(Self {
            authorization: Arc::default(),
            gateway: Arc::default(),
            resources: Arc::default(),
            progress,
            last_heard: RwLock::new(Instant::now()),
        });
        tokio::spawn(Arc::clone(&hot).follow(log, stop));
        hot
    }

    async fn follow(self: Arc<Self>, log: SharedLog, stop: CancellationToken) {
        let mut checkpoint = Checkpoint::START;
        loop {
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                ended = self.follow_once(&log, &mut checkpoint) => ended,
            };
            match ended {
                LogError::Unavailable(reason) => {
                    tracing::warn!(%reason, "the hot views lost the log; following again");
                    metrics::counter!("envforge_hot_views_reconnects_total").increment(1);
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(RECONNECT_DELAY) => {}
                    }
                }
                error @ (LogError::NotTheSameLog(_) | LogError::Undecodable { .. } | LogError::Open(_)) => {
                    tracing::error!(%error, "the hot views stop: everything that asks them is refused from now on");
                    metrics::counter!("envforge_hot_views_stopped_total").increment(1);
                    self.progress.send_modify(|progress| progress.failed = Some(error.to_string()));
                    return;
                }
            }
        }
    }

    async fn follow_once(&self, log: &SharedLog, checkpoint: &mut Checkpoint) -> LogError {
        let mut follow = match log.follow(checkpoint.clone(), Filter::everything()).await {
            Ok(follow) => follow,
            Err(error) => return error,
        };
        loop {
            match follow.next().await {
                None => return LogError::Unavailable("the log's stream ended".to_owned()),
                Some(Err(error)) => return error,
                Some(Ok(Follow::Commit { recorded, checkpoint: next })) => {
                    // Rights first: whoever sees a new position has the rights of that position.
                    self.authorization.apply(&recorded);
                    self.resources.apply(&recorded);
                    self.gateway.apply(&recorded);
                    *checkpoint = next;
                    self.heard(recorded.position, false);
                }
                Some(Ok(Follow::Caught { position })) => self.heard(position, true),
            }
        }
    }

    fn heard(&self, position: Position, caught_up: bool) {
        *self.last_heard.write() = Instant::now();
        self.gateway.heard(position);
        metrics::gauge!("envforge_hot_views_position").set(position.get() as f64);
        self.progress.send_modify(|progress| {
            progress.position = progress.position.max(position);
            progress.caught_up |= caught_up;
        });
    }

    pub fn position(&self) -> Position {
        self.progress.borrow().position
    }

    /// Waits until the views have everything that stood in the log when they started.
    pub async fn caught_up(&self) -> Result<(), Stale> {
        let mut progress = self.progress.subscribe();
        let reached = progress.wait_for(|progress| progress.caught_up || progress.failed.is_some()).await;
        stopped(reached.ok().and_then(|progress| progress.failed.clone()))
    }

    /// Whether the views have everything that stood in the log when they started.
    pub fn is_caught_up(&self) -> bool {
        self.progress.borrow().caught_up
    }

    /// Waits until everything up to `wanted` is folded.
    pub async fn wait_for(&self, wanted: Position, deadline: Duration) -> Result<(), Stale> {
        let mut progress = self.progress.subscribe();
        let reached = progress.wait_for(|progress| progress.position >= wanted || progress.failed.is_some());
        match tokio::time::timeout(deadline, reached).await {
            Ok(reached) => stopped(reached.ok().and_then(|progress| progress.failed.clone())),
            Err(_) => {
                let waited_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
                Err(Stale::Behind { position: self.position(), wanted, waited_ms })
            }
        }
    }

    /// Time since the log last gave a sign of life.
    pub fn silence(&self) -> Duration {
        self.last_heard.read().elapsed()
    }

    /// Why the views stopped for good, where they did.
    pub fn failed(&self) -> Option<String> {
        self.progress.borrow().failed.clone()
    }
}

fn stopped(failed: Option<String>) -> Result<(), Stale> {
    match failed {
        Some(reason) => Err(Stale::Stopped { reason }),
        None => Ok(()),
    }
}
