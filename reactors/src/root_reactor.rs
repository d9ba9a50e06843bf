//! The root reactor: runs the commands of root windows on the host where their workspace's runtime is, and ends them.
//!
//! Level-triggered, on the views of rights: each tick compares what runs here with what stands there. So a window that was
//! revoked, whose requester may no more, or which the policy does not allow any more, is ended whoever says so and however.
//! A command is taken once: the log says "started" before anything runs, and refuses the second. Not here: holding the
//! window's end while nobody looks (the guard in runtime), and what became due in the log (`timers`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use envforge_commands::{CommandError, Commands, Context, root_windows};
use envforge_domain::access::{Action, Permit};
use envforge_domain::commit::Component;
use envforge_domain::ids::RootWindowId;
use envforge_domain::root_window::{RootCommand, RootEnded, RootOutcome, RootOver, RootWindow};
use envforge_domain::time::{SharedClock, UnixMillis};
use envforge_projections::Hot;
use envforge_projections::authorization::KnownRootWindow;
use envforge_runtime::{LocalHost, RanRoot, RootOrder};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::permit::system_permit;

/// How often what runs is held against what stands.
const TICK: Duration = Duration::from_millis(200);
/// Reports that wait for the log; each is retried until it is answered.
const REPORT_ATTEMPTS_MAX: u32 = 60;

/// One host's reactor.
pub struct RootReactor {
    errands: Errands,
    /// Commands under way here, and the reason to end each.
    running: HashMap<RootWindowId, watch::Sender<Option<RootOutcome>>>,
    tasks: JoinSet<()>,
    finished: mpsc::Receiver<RootWindowId>,
    finishing: mpsc::Sender<RootWindowId>,
}

#[derive(Clone)]
struct Errands {
    commands: Commands,
    hot: Arc<Hot>,
    host: LocalHost,
    clock: SharedClock,
}

impl RootReactor {
    pub fn new(commands: Commands, hot: Arc<Hot>, host: LocalHost, clock: SharedClock) -> Self {
        let (finishing, finished) = mpsc::channel(256);
        let errands = Errands { commands, hot, host, clock };
        Self { errands, running: HashMap::new(), tasks: JoinSet::new(), finished, finishing }
    }

    /// Until `stop`; then what runs here is ended, and said.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(window) = self.finished.recv() => {
                    self.running.remove(&window);
                }
                _ = tick.tick(), if self.errands.hot.is_caught_up() => self.compare(),
            }
        }
        for reason in self.running.values() {
            end_for(reason, RootOutcome::HostStopped);
        }
        while self.tasks.join_next().await.is_some() {}
    }

    fn compare(&mut self) {
        while self.tasks.try_join_next().is_some() {}
        let now = self.errands.clock.now();
        for known in self.errands.hot.authorization.root_windows_under_way() {
            let Some(command) = known.state.command().filter(|command| command.ended.is_none()) else { continue };
            if let Some(reason) = self.running.get(&known.window) {
                if let Some(why) = self.why_end(&known, command, now) {
                    end_for(reason, why);
                }
                continue;
            }
            let (errands, window) = (self.errands.clone(), known.window);
            let (reason, ending) = watch::channel(None);
            if command.started_at.is_some() {
                if errands.host.root_leftovers().contains(&window) {
                    self.start(window, reason, async move { errands.tell_lost(&known).await });
                }
            } else if let RootWindow::Over(_) = &known.state {
                // Over before any host took it: nobody does any more.
                let why = self.why_end(&known, command, now).unwrap_or(RootOutcome::NotStarted);
                self.start(window, reason, async move {
                    errands.tell_ended(&known, without_running(why)).await;
                });
            } else if known.stands(now) && is_up_here(&errands.host, &known, command) {
                let command = command.clone();
                self.start(window, reason, async move { errands.carry_out(&known, &command, ending).await });
            }
        }
    }

    fn start(
        &mut self,
        window: RootWindowId,
        reason: watch::Sender<Option<RootOutcome>>,
        errand: impl Future<Output = ()> + Send + 'static,
    ) {
        self.running.insert(window, reason);
        let finishing = self.finishing.clone();
        self.tasks.spawn(async move {
            errand.await;
            // The reactor that is gone needs no word.
            let _ = finishing.send(window).await;
        });
    }

    /// Why what runs must not run any more.
    fn why_end(&self, known: &KnownRootWindow, command: &RootCommand, now: UnixMillis) -> Option<RootOutcome> {
        match &known.state {
            RootWindow::Over(over) => Some(match over.over {
                RootOver::Revoked => RootOutcome::Revoked,
                RootOver::Withdrawn => RootOutcome::Withdrawn,
                RootOver::Denied | RootOver::Expired | RootOver::Closed => RootOutcome::Deadline,
            }),
            RootWindow::Open(open) if now >= open.ends_at => Some(RootOutcome::Deadline),
            RootWindow::Open(_) if !known.stands(now) => Some(RootOutcome::RightLost),
            RootWindow::Open(_) => {
                (!is_up_here(&self.errands.host, known, command)).then_some(RootOutcome::RuntimeGone)
            }
            RootWindow::Unknown | RootWindow::Requested { .. } | RootWindow::Approved { .. } => None,
        }
    }
}

fn without_running(outcome: RootOutcome) -> RanRoot {
    RanRoot { outcome, code: None, changes: None }
}

/// The first reason stays.
fn end_for(reason: &watch::Sender<Option<RootOutcome>>, why: RootOutcome) {
    reason.send_if_modified(|known| {
        let first = known.is_none();
        if first {
            *known = Some(why);
        }
        first
    });
}

/// Whether the runtime of the window's workspace is up here, at the wake for which the command was asked for.
fn is_up_here(host: &LocalHost, known: &KnownRootWindow, command: &RootCommand) -> bool {
    known.state.terms().is_some_and(|terms| host.is_up(terms.workspace, command.epoch.0))
}

impl Errands {
    fn permit(&self, known: &KnownRootWindow, now: UnixMillis) -> Option<Permit> {
        let position = self.hot.position();
        system_permit(Component::RuntimeReactor, Action::RootReport, known.resource()?, position, now).ok()
    }

    /// Takes the command and runs it to its end.
    async fn carry_out(
        &self,
        known: &KnownRootWindow,
        command: &RootCommand,
        ending: watch::Receiver<Option<RootOutcome>>,
    ) {
        let window = known.window;
        if let Some(refusal) = self.host.root_refusal() {
            self.tell_ended(known, without_running(refusal)).await;
            return;
        }
        let taken = match self.host.take_root(window).await {
            Ok(taken) => taken,
            Err(error) => {
                tracing::warn!(%window, %error, "a command as root could not be taken");
                self.tell_ended(known, without_running(RootOutcome::NotStarted)).await;
                return;
            }
        };
        // INVARIANT: nothing runs before the log has said that it does; whoever comes second is refused.
        if !self.tell_started(known).await {
            self.forget(window).await;
            return;
        }
        let RootWindow::Open(open) = &known.state else { return self.forget(window).await };
        // As the views have it now: the policy may allow less than when it was opened.
        let ends_at = known.ends_at.unwrap_or(open.ends_at).min(open.ends_at);
        let order = RootOrder {
            workspace: open.terms.workspace,
            words: command.words.clone(),
            remaining: ends_at.since(self.clock.now()).to_duration(),
        };
        let ran = taken.run(order, ending).await;
        if self.tell_ended(known, ran).await {
            self.forget(window).await;
        }
    }

    /// Of a command that an earlier process of this host ran: it was ended when the host was opened.
    async fn tell_lost(&self, known: &KnownRootWindow) {
        if self.tell_ended(known, without_running(RootOutcome::Lost)).await {
            self.forget(known.window).await;
        }
    }

    async fn forget(&self, window: RootWindowId) {
        if let Err(error) = self.host.forget_root(window).await {
            tracing::warn!(%window, %error, "the record of a command as root was not removed");
        }
    }

    /// `false` where the log refused it or did not answer: nothing may run then.
    async fn tell_started(&self, known: &KnownRootWindow) -> bool {
        let now = self.clock.now();
        let Some(permit) = self.permit(known, now) else { return false };
        // One id for all attempts: a lost acknowledgement must not look like somebody else's start.
        let context = Context::new(now);
        for attempt in 0..REPORT_ATTEMPTS_MAX {
            match root_windows::report_started(&self.commands, &permit, &context, known.window).await {
                Ok(_) => return true,
                Err(CommandError::Refused(refusal)) => {
                    tracing::info!(window = %known.window, %refusal, "a command as root was not taken");
                    return false;
                }
                Err(error) => wait_for_log(known, &error, attempt).await,
            }
        }
        false
    }

    /// `false` where the log did not answer.
    async fn tell_ended(&self, known: &KnownRootWindow, ran: RanRoot) -> bool {
        let now = self.clock.now();
        let Some(permit) = self.permit(known, now) else { return false };
        let RanRoot { outcome, code, changes } = ran;
        let (context, ended) = (Context::new(now), RootEnded { outcome, code, at: now, changes });
        for attempt in 0..REPORT_ATTEMPTS_MAX {
            match root_windows::report_ended(&self.commands, &permit, &context, known.window, ended.clone()).await {
                Ok(done) => {
                    // Until the views know, the next comparison would take it for one that still runs.
                    let _ = self.hot.wait_for(done.position, Duration::from_secs(5)).await;
                    return true;
                }
                Err(CommandError::Refused(refusal)) => {
                    tracing::warn!(window = %known.window, %refusal, "the end of a command as root was refused");
                    return true;
                }
                Err(error) => wait_for_log(known, &error, attempt).await,
            }
        }
        tracing::error!(window = %known.window, "the end of a command as root could not be recorded");
        false
    }
}

async fn wait_for_log(known: &KnownRootWindow, error: &CommandError, attempt: u32) {
    tracing::warn!(window = %known.window, %error, attempt, "a report about root was not recorded yet");
    tokio::time::sleep(Duration::from_millis(u64::from(attempt.min(20)) * 100 + 50)).await;
}
