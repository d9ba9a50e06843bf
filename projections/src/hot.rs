//! The hot views of a process and the one task that feeds them from the log.
//!
//! All views see the same commits in the same order. When the log turns out not to be the one that was followed, the
//! views stop for good and everything that asks them is refused: better closed than wrong. Not here: what the views
//! mean (`authorization`, `gateway_view`, `resources`, `placement`, `invitations`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use envforge_domain::commit::{Position, Recorded};
use envforge_domain::time::{SharedClock, UnixMillis};
use envforge_eventlog::{Checkpoint, Filter, Follow, LogError, NotTheSameLog, SharedLog};
use futures_util::{FutureExt, StreamExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::authorization::AuthorizationView;
use crate::gateway_view::GatewayView;
use crate::invitations::InvitationView;
use crate::placement::PlacementView;
use crate::resources::ResourceView;
use crate::service_tokens::ServiceTokenView;

/// Commits folded between two reports of metrics while there is no pause.
const COMMITS_PER_REPORT: u64 = 512;

/// Commits folded at one go before whoever waits for the views is told where they stand. Telling each of them would cost
/// as much as folding it.
const COMMITS_UNTOLD_MAX: u64 = 64;

/// How the views follow and when they are too old.
#[derive(Clone)]
pub struct HotConfig {
    /// Decisions from memory are refused when the log has been silent for longer. Its heartbeats come every second.
    pub staleness_max: Duration,
    /// Wait before following again after the log was out of reach; doubled each time up to `reconnect_max`.
    pub reconnect_min: Duration,
    pub reconnect_max: Duration,
    /// For the metric of lag, and to know how old a commit is. Without one, nothing but the log's word that there is
    /// no more makes the views fresh.
    pub clock: Option<SharedClock>,
}

impl Default for HotConfig {
    fn default() -> Self {
        Self {
            staleness_max: Duration::from_secs(5),
            reconnect_min: Duration::from_millis(100),
            reconnect_max: Duration::from_secs(5),
            clock: None,
        }
    }
}

/// All hot views of a process.
pub struct Hot {
    pub authorization: Arc<AuthorizationView>,
    pub gateway: Arc<GatewayView>,
    pub resources: Arc<ResourceView>,
    pub placement: Arc<PlacementView>,
    pub invitations: Arc<InvitationView>,
    pub service_tokens: Arc<ServiceTokenView>,
    config: HotConfig,
    progress: watch::Sender<Progress>,
}

#[derive(Clone, Debug)]
struct Progress {
    position: Position,
    /// Of the last commit that was folded.
    checkpoint: Checkpoint,
    caught_up: bool,
    /// Why nothing is followed any more.
    ended: Option<String>,
}

/// The views do not have what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stale {
    #[error("the views stand at {position}, {wanted} was not reached within {waited_ms} ms")]
    Behind { position: Position, wanted: Position, waited_ms: u64 },
    #[error("the log has been silent for {silence_ms} ms, at most {limit_ms} ms are trusted")]
    Silent { silence_ms: u64, limit_ms: u64 },
    #[error("the views have stopped: {reason}")]
    Stopped { reason: String },
}

impl Hot {
    /// Begins to follow the log from its first commit, until `stop`.
    pub fn start(log: SharedLog, stop: CancellationToken) -> Arc<Self> {
        Self::start_with(log, HotConfig::default(), stop)
    }

    /// `start` with other than the usual limits.
    pub fn start_with(log: SharedLog, config: HotConfig, stop: CancellationToken) -> Arc<Self> {
        let hot = Self::unfed(config);
        let follower =
            Follower { hot: Arc::clone(&hot), checkpoint: Checkpoint::START, untold: None, report: Report::default() };
        tokio::spawn(follower.run(log, stop));
        hot
    }

    /// Views that nothing feeds yet.
    pub(crate) fn unfed(config: HotConfig) -> Arc<Self> {
        let (progress, _) = watch::channel(Progress {
            position: Position::START,
            checkpoint: Checkpoint::START,
            caught_up: false,
            ended: None,
        });
        Arc::new(Self {
            authorization: Arc::default(),
            gateway: Arc::default(),
            resources: Arc::default(),
            placement: Arc::default(),
            invitations: Arc::default(),
            service_tokens: Arc::default(),
            config,
            progress,
        })
    }

    pub fn position(&self) -> Position {
        self.progress.borrow().position
    }

    /// Where the views stand, once they have folded something beyond `position`: what the next start of this process
    /// can hold against the log.
    ///
    /// # Errors
    /// When the views stop before.
    pub async fn checkpoint_beyond(&self, position: Position) -> Result<Checkpoint, Stale> {
        let mut progress = self.progress.subscribe();
        let beyond = |progress: &Progress| progress.checkpoint.position > position || progress.ended.is_some();
        let Ok(reached) = progress.wait_for(beyond).await else {
            return Err(Stale::Stopped { reason: "the views are gone".to_owned() });
        };
        still_following(Some(&*reached))?;
        Ok(reached.checkpoint.clone())
    }

    /// Where the views stand.
    pub fn checkpoint(&self) -> Checkpoint {
        self.progress.borrow().checkpoint.clone()
    }

    /// Waits until the views have everything that stood in the log when they started.
    ///
    /// # Errors
    /// When the views stop before.
    pub async fn caught_up(&self) -> Result<(), Stale> {
        let mut progress = self.progress.subscribe();
        let reached = progress.wait_for(|progress| progress.caught_up || progress.ended.is_some()).await;
        still_following(reached.ok().as_deref())
    }

    /// Whether the views have everything that stood in the log when they started.
    pub fn is_caught_up(&self) -> bool {
        self.progress.borrow().caught_up
    }

    /// Waits until everything up to `wanted` is folded.
    ///
    /// # Errors
    /// When that takes longer than `deadline`, or the views have stopped.
    pub async fn wait_for(&self, wanted: Position, deadline: Duration) -> Result<(), Stale> {
        let mut progress = self.progress.subscribe();
        let reached = progress.wait_for(|progress| progress.position >= wanted || progress.ended.is_some());
        match tokio::time::timeout(deadline, reached).await {
            Ok(reached) => still_following(reached.ok().as_deref()),
            Err(_) => Err(Stale::Behind { position: self.position(), wanted, waited_ms: whole_ms(deadline) }),
        }
    }

    /// Time since the views last had everything that the log had.
    pub fn silence(&self) -> Duration {
        self.gateway.log_last_heard().elapsed()
    }

    /// Whether the views are fresh enough to decide on without asking the log.
    ///
    /// # Errors
    /// When the log has been silent for too long, or the views have stopped.
    pub fn fresh(&self) -> Result<(), Stale> {
        self.following()?;
        let silence = self.silence();
        if silence > self.config.staleness_max {
            let limit_ms = whole_ms(self.config.staleness_max);
            return Err(Stale::Silent { silence_ms: whole_ms(silence), limit_ms });
        }
        Ok(())
    }

    /// Whether the views still follow, however long they heard nothing.
    pub(crate) fn following(&self) -> Result<(), Stale> {
        still_following(Some(&*self.progress.borrow()))
    }

    /// Waits until the views have stopped for good, and says why.
    pub async fn stopped(&self) -> Stale {
        let mut progress = self.progress.subscribe();
        let reason =
            progress.wait_for(|progress| progress.ended.is_some()).await.ok().and_then(|end| end.ended.clone());
        Stale::Stopped { reason: reason.unwrap_or_else(|| "nothing feeds them any more".to_owned()) }
    }

    /// Why the views stopped for good, where they did.
    pub fn failed(&self) -> Option<String> {
        self.progress.borrow().ended.clone()
    }

    pub(crate) fn fold(&self, recorded: &Recorded) {
        // Rights first: whoever sees a new position has the rights of that position. The authorization view tells positions.
        self.service_tokens.apply(recorded);
        let rights = self.authorization.apply(recorded);
        self.resources.apply(recorded);
        self.placement.apply(recorded);
        self.invitations.apply(recorded);
        self.gateway.apply(recorded, &rights);
        self.gateway.apply_members(recorded, &self.authorization);
    }

    fn heard(&self, position: Position, current_at: Option<Instant>, caught_up: bool) {
        self.gateway.heard(position, current_at);
        self.progress.send_modify(|progress| {
            progress.position = progress.position.max(position);
            progress.caught_up |= caught_up;
        });
    }

    /// When the views that have this commit were current. A backlog that is read after a partition is as old as it
    /// says, however fast it comes: only what was recorded within the limit counts, and from then on.
    fn current_at(&self, recorded_at: UnixMillis) -> Option<Instant> {
        let age = self.config.clock.as_ref()?.now().since(recorded_at).to_duration();
        (age <= self.config.staleness_max).then(|| Instant::now().checked_sub(age)).flatten()
    }

    fn folded(&self, checkpoint: Checkpoint, current_at: Option<Instant>) {
        self.gateway.heard(checkpoint.position, current_at);
        self.progress.send_modify(|progress| {
            progress.position = progress.position.max(checkpoint.position);
            progress.checkpoint = checkpoint;
        });
    }

    fn end(&self, reason: &str) {
        self.progress.send_if_modified(|progress| {
            let first = progress.ended.is_none();
            if first {
                progress.ended = Some(reason.to_owned());
            }
            first
        });
    }

    /// Closes everything, in all views, for good.
    fn fail(&self, reason: &str) {
        self.end(reason);
        self.gateway.fail();
        metrics::counter!("envforge_hot_views_stopped_total").increment(1);
    }
}

/// The one task.
struct Follower {
    hot: Arc<Hot>,
    /// Of the last commit that was folded.
    checkpoint: Checkpoint,
    untold: Option<Untold>,
    report: Report,
}

/// Commits that were folded, and nobody was told.
struct Untold {
    commits: u64,
    last_recorded_at: UnixMillis,
}

impl Drop for Follower {
    /// A fold that panicked must not leave views behind that look alive.
    fn drop(&mut self) {
        self.tell_position();
        if std::thread::panicking() {
            self.hot.fail("folding a commit failed");
        }
        self.hot.end("EnvForge is stopping");
    }
}

impl Follower {
    async fn run(mut self, log: SharedLog, stop: CancellationToken) {
        let mut delay = self.hot.config.reconnect_min;
        loop {
            let before = self.checkpoint.position;
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                ended = self.follow(&log) => ended,
            };
            self.tell_position();
            match ended {
                LogError::Unavailable(reason) => {
                    if self.checkpoint.position > before {
                        delay = self.hot.config.reconnect_min;
                    }
                    tracing::warn!(%reason, ?delay, "the hot views lost the log; following again");
                    metrics::counter!("envforge_hot_views_reconnects_total").increment(1);
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(delay) => {}
                    }
                    delay = (delay * 2).min(self.hot.config.reconnect_max);
                }
                error @ (LogError::NotTheSameLog(_)
                | LogError::Undecodable { .. }
                | LogError::Open(_)
                | LogError::Damaged(_)) => {
                    tracing::error!(%error, "the hot views stop: everything that asks them is refused from now on");
                    self.hot.fail(&error.to_string());
                    return;
                }
            }
        }
    }

    /// Follows until the log ends it.
    async fn follow(&mut self, log: &SharedLog) -> LogError {
        let mut follow = match log.follow(self.checkpoint.clone(), Filter::everything()).await {
            Ok(follow) => follow,
            Err(error) => return error,
        };
        loop {
            // What is there already is folded at one go. Before anything is waited for, whoever waits is told.
            let next = match follow.next().now_or_never() {
                Some(next) => next,
                None => {
                    self.tell_position();
                    follow.next().await
                }
            };
            match next {
                None => return LogError::Unavailable("the log's stream ended".to_owned()),
                Some(Err(error)) => return error,
                Some(Ok(Follow::Commit { recorded, checkpoint, .. })) => {
                    let after = self.checkpoint.position;
                    if recorded.position <= after {
                        // Folded twice, a commit could count twice.
                        let found = recorded.position;
                        return LogError::NotTheSameLog(NotTheSameLog::Gap { after, found });
                    }
                    let started = Instant::now();
                    self.hot.fold(&recorded);
                    self.report.folded(started.elapsed());
                    self.checkpoint = checkpoint;
                    let commits = self.untold.as_ref().map_or(0, |untold| untold.commits) + 1;
                    self.untold = Some(Untold { commits, last_recorded_at: recorded.recorded_at });
                    if commits >= COMMITS_UNTOLD_MAX {
                        self.tell_position();
                    }
                    if self.report.commits >= COMMITS_PER_REPORT {
                        self.tell(Some(&recorded));
                    }
                }
                Some(Ok(Follow::Caught { position })) => {
                    self.tell_position();
                    self.hot.heard(position, Some(Instant::now()), true);
                    self.tell(None);
                }
            }
        }
    }

    /// Tells whoever waits for the views where they stand.
    fn tell_position(&mut self) {
        if let Some(untold) = self.untold.take() {
            self.hot.folded(self.checkpoint.clone(), self.hot.current_at(untold.last_recorded_at));
        }
    }

    /// `at`: the last commit where more follow; `None` where the views have everything.
    fn tell(&mut self, at: Option<&Recorded>) {
        metrics::gauge!("envforge_hot_views_position").set(self.hot.position().get() as f64);
        metrics::counter!("envforge_hot_views_commits_total").increment(self.report.commits);
        let micros = u64::try_from(self.report.time.as_micros()).unwrap_or(u64::MAX);
        metrics::counter!("envforge_hot_views_fold_microseconds_total").increment(micros);
        if let Some(clock) = &self.hot.config.clock {
            let lag = at.map_or(0, |recorded| clock.now().since(recorded.recorded_at).get());
            metrics::gauge!("envforge_hot_views_lag_ms").set(lag as f64);
        }
        self.report = Report::default();
    }
}

/// What was folded since metrics were last told.
#[derive(Default)]
struct Report {
    commits: u64,
    time: Duration,
}

impl Report {
    fn folded(&mut self, took: Duration) {
        self.commits += 1;
        self.time += took;
    }
}

fn still_following(progress: Option<&Progress>) -> Result<(), Stale> {
    match progress.and_then(|progress| progress.ended.clone()) {
        Some(reason) => Err(Stale::Stopped { reason }),
        None => Ok(()),
    }
}

fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(crate) mod tests;
