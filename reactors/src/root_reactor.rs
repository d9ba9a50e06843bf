//! The root reactor: runs what root windows are for on one host, this machine's or an agent's, where their workspace's runtime is, and
//! ends it.
//!
//! Level-triggered, on the views of rights: each tick compares what runs here with what stands there. So a window that was
//! revoked, whose requester may no more, or which the policy does not allow any more, is ended whoever says so and however.
//! A command is taken once: the log says "started" before anything runs, and refuses the second. On an agent's host it goes on
//! while the line is broken, and the reactor of the next connection finds it. Not here: holding the window's end while nobody looks
//! (the guard in runtime), and what became due in the log (`timers`).

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use envforge_agent::{Host, NotTaken, RemoteHost, RemoteWindow};
use envforge_commands::{CommandError, Commands, Context, root_windows};
use envforge_domain::access::{Action, Permit};
use envforge_domain::commit::Component;
use envforge_domain::ids::RootWindowId;
use envforge_domain::root_window::{RootAccess, RootCommand, RootEnded, RootOutcome, RootOver, RootTerms, RootWindow};
use envforge_domain::time::{SharedClock, UnixMillis};
use envforge_projections::Hot;
use envforge_projections::authorization::KnownRootWindow;
use envforge_runtime::{RanRoot, RootOrder, RootWhat, uptime};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::permit::system_permit;

/// How often what runs is held against what stands.
const TICK: Duration = Duration::from_millis(200);
/// Reports that wait for the log; each is retried until it is answered.
const REPORT_ATTEMPTS_MAX: u32 = 60;
/// Before a host is asked again that did not answer.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// One host's reactor.
pub struct RootReactor {
    errands: Errands,
    /// What the host knew of when this reactor began.
    found: HashMap<RootWindowId, RemoteWindow>,
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
    host: Host,
    clock: SharedClock,
}

impl RootReactor {
    pub fn new(commands: Commands, hot: Arc<Hot>, host: Host, clock: SharedClock) -> Self {
        let (finishing, finished) = mpsc::channel(256);
        let errands = Errands { commands, hot, host, clock };
        Self { errands, found: HashMap::new(), running: HashMap::new(), tasks: JoinSet::new(), finished, finishing }
    }

    /// Until `stop`; then what runs on this machine is ended, and said. What runs on an agent's host goes on.
    pub async fn run(mut self, stop: CancellationToken) {
        let Some(found) = stop.run_until_cancelled(self.errands.found()).await else { return };
        self.found = found;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut under_way = self.errands.hot.authorization.root_commands_count();
        loop {
            // A thousand reactors that have nothing to compare cost nothing.
            let idle = *under_way.borrow_and_update() == 0 && self.running.is_empty();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(window) = self.finished.recv() => {
                    self.running.remove(&window);
                }
                Ok(()) = under_way.changed(), if idle => {}
                _ = tick.tick(), if !idle => {
                    if self.errands.hot.is_caught_up() {
                        self.compare();
                    }
                }
            }
        }
        if let Host::Remote(_) = self.errands.host {
            return self.tasks.shutdown().await;
        }
        for reason in self.running.values() {
            end_for(reason, RootOutcome::HostStopped);
        }
        while self.tasks.join_next().await.is_some() {}
    }

    fn compare(&mut self) {
        while self.tasks.try_join_next().is_some() {}
        let now = self.errands.clock.now();
        for known in self.errands.hot.authorization.root_commands_under_way() {
            // An agent's host has nothing to do with another organization's.
            if !self.errands.is_of_its_organization(&known) {
                continue;
            }
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
                match self.found.get(&window) {
                    // The log was told, and then the line broke.
                    Some(RemoteWindow::Taken) => {
                        let ran = without_running(RootOutcome::NotStarted);
                        self.start(window, reason, async move { errands.tell_and_forget(&known, ran).await });
                    }
                    Some(RemoteWindow::Left) => {
                        self.start(window, reason, async move { errands.tell_left(&known, ending).await });
                    }
                    Some(RemoteWindow::Begun) => {
                        self.start(window, reason, async move { errands.join(&known, ending).await });
                    }
                    None => {}
                }
            } else if let RootWindow::Over(_) = &known.state {
                // Over before any host took it: nobody does any more.
                let why = self.why_end(&known, command, now).unwrap_or(RootOutcome::NotStarted);
                self.start(window, reason, async move {
                    errands.tell_ended(&known, without_running(why)).await;
                });
            } else if known.stands(now) && errands.is_up_here(&known, command) {
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
            RootWindow::Open(_) => (!self.errands.is_up_here(known, command)).then_some(RootOutcome::RuntimeGone),
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

impl Errands {
    /// What the host knows of windows. One that does not answer is asked again.
    async fn found(&self) -> HashMap<RootWindowId, RemoteWindow> {
        let remote = match &self.host {
            Host::Local(host) => {
                return host.root_leftovers().keys().map(|window| (*window, RemoteWindow::Left)).collect();
            }
            Host::Remote(remote) => remote,
        };
        loop {
            match remote.root_windows().await {
                Ok(found) => return found,
                Err(error) => tracing::debug!(%error, "a host does not say what it runs as root"),
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// Whether the runtime of the window's workspace is up here, at the wake for which the command was asked for. INVARIANT: what an
    /// agent says counts only where the log has placed the workspace on its host; so no host is told a command of another
    /// organization, or of another host.
    fn is_up_here(&self, known: &KnownRootWindow, command: &RootCommand) -> bool {
        let Some(RootTerms { workspace, .. }) = known.state.terms() else { return false };
        let placed_here = match &self.host {
            Host::Local(_) => true,
            Host::Remote(host) => {
                let placement = &self.hot.placement;
                placement.host_of(*workspace) == Some(host.host())
                    && placement.organization_of(host.host()) == Some(host.org())
                    && self.is_of_its_organization(known)
            }
        };
        placed_here && self.host.is_up(*workspace, command.epoch.0)
    }

    fn is_of_its_organization(&self, known: &KnownRootWindow) -> bool {
        match &self.host {
            Host::Local(_) => true,
            Host::Remote(host) => known.org == host.org(),
        }
    }

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
        let RootWindow::Open(open) = &known.state else { return };
        let (workspace, epoch) = (open.terms.workspace, command.epoch.0);
        // As the views have it now: the policy may allow less than when it was opened.
        let ends_at = known.ends_at.unwrap_or(open.ends_at).min(open.ends_at);
        let remaining = || ends_at.since(self.clock.now()).to_duration();
        let what = match open.terms.access {
            RootAccess::Command => RootWhat::Command(command.words.clone()),
            RootAccess::Shell => RootWhat::Shell,
        };
        let failed = async |error: io::Error| {
            tracing::warn!(%window, %error, "a command as root could not be taken");
            self.tell_ended(known, without_running(RootOutcome::NotStarted)).await;
        };
        // INVARIANT: nothing runs before the log has said that it does; whoever comes second is refused.
        match &self.host {
            Host::Local(host) => {
                if let Some(refusal) = host.root_refusal() {
                    self.tell_ended(known, without_running(refusal)).await;
                    return;
                }
                let taken = match host.take_root(window).await {
                    Ok(taken) => taken,
                    Err(error) => return failed(error).await,
                };
                if !self.tell_started(known).await {
                    return self.forget(known).await;
                }
                let ran = match uptime() {
                    Ok(up) => taken.run(RootOrder { workspace, what, until: up + remaining() }, ending).await,
                    Err(_) => without_running(RootOutcome::NotStarted),
                };
                self.tell_and_forget(known, ran).await;
            }
            Host::Remote(host) => {
                let taken = match host.take_root(workspace, (window, open.before.len()), epoch).await {
                    Ok(Ok(taken)) => taken,
                    Ok(Err(NotTaken::NoRoot(refusal))) => {
                        self.tell_ended(known, without_running(refusal)).await;
                        return;
                    }
                    // By a process that was quicker, and has told the log; the view here is not so far yet.
                    Ok(Err(NotTaken::Begun)) => return self.join(known, ending).await,
                    // The next connection's reactor takes it, where this one is gone.
                    Err(_) if host.is_closed() => return,
                    Err(error) => return failed(error).await,
                };
                if !self.tell_started(known).await {
                    return self.forget(known).await;
                }
                let ran = taken.run(&what, remaining(), ending.clone()).await;
                self.told_by(known, host, ran, ending).await;
            }
        }
    }

    /// Of what an earlier process of the host's left, and its start has ended.
    async fn tell_left(&self, known: &KnownRootWindow, ending: watch::Receiver<Option<RootOutcome>>) {
        match &self.host {
            Host::Local(host) => {
                let left = host.root_leftovers().get(&known.window).cloned();
                self.tell_and_forget(known, left.unwrap_or(without_running(RootOutcome::Lost))).await;
            }
            Host::Remote(_) => self.join(known, ending).await,
        }
    }

    /// Of what runs on an agent's host, or has ended there, since a connection before.
    async fn join(&self, known: &KnownRootWindow, ending: watch::Receiver<Option<RootOutcome>>) {
        let Host::Remote(host) = &self.host else { return };
        let ran = self.join_once(known, host, &ending).await;
        self.told_by(known, host, ran, ending).await;
    }

    async fn join_once(
        &self,
        known: &KnownRootWindow,
        host: &RemoteHost,
        ending: &watch::Receiver<Option<RootOutcome>>,
    ) -> io::Result<Option<RanRoot>> {
        let Some(RootTerms { workspace, .. }) = known.state.terms() else { return Ok(None) };
        host.join_root(*workspace, known.window, ending.clone()).await
    }

    /// Tells what an agent's host says of an end, and asks again where it did not, for as long as the connection lives.
    async fn told_by(
        &self,
        known: &KnownRootWindow,
        host: &RemoteHost,
        mut ran: io::Result<Option<RanRoot>>,
        ending: watch::Receiver<Option<RootOutcome>>,
    ) {
        loop {
            match ran {
                Ok(ran) => {
                    let ran = ran.unwrap_or(without_running(RootOutcome::Lost));
                    return self.tell_and_forget(known, ran).await;
                }
                // It goes on there; the next connection's reactor finds it.
                Err(_) if host.is_closed() => return,
                Err(error) => {
                    tracing::warn!(window = %known.window, %error, "a host does not say what becomes of a command as root")
                }
            }
            tokio::time::sleep(ASK_AGAIN).await;
            ran = self.join_once(known, host, &ending).await;
        }
    }

    async fn tell_and_forget(&self, known: &KnownRootWindow, ran: RanRoot) {
        if self.tell_ended(known, ran).await {
            self.forget(known).await;
        }
    }

    async fn forget(&self, known: &KnownRootWindow) {
        let window = known.window;
        let forgotten = match (&self.host, known.state.terms()) {
            (Host::Local(host), _) => host.forget_root(window).await,
            (Host::Remote(host), Some(RootTerms { workspace, .. })) => host.forget_root(*workspace, window).await,
            (Host::Remote(_), None) => Ok(()),
        };
        if let Err(error) = forgotten {
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
