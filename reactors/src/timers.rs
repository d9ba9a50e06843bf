//! Timers: links and root windows that expire, runtimes that were idle for too long, leases that lapsed, wakes and sleeps that
//! never end, archived workspaces still awake, runtimes on hosts that were revoked.
//!
//! A deadline holds without these events: whoever decides compares instants. The events close things in the log and
//! put runtimes to sleep. Each firing is a command that the domain may refuse when it is too early.

use std::time::Duration;

use envforge_commands::{CommandError, Commands, Context, links, root_windows, runtimes};
use envforge_domain::access::{Action, Resource};
use envforge_domain::commit::Component;
use envforge_domain::event::Event;
use envforge_domain::host::HostEvent;
use envforge_domain::ids::{HostId, WorkspaceId};
use envforge_domain::limits::{ACTIVITY_INTERVAL, IDLE_SLEEP_DEFAULT, RUNTIME_LEASE, WAKE_DEADLINE};
use envforge_domain::root_window::RootEnded;
use envforge_domain::runtime::{PostponeCause, Runtime, RuntimeCommand, SleepCause};
use envforge_domain::time::{Millis, SharedClock, UnixMillis};
use envforge_eventlog::{Follow, LogError, SharedLog};
use tokio_util::sync::CancellationToken;

use crate::following::Following;
use crate::permit::system_permit;
use crate::world::{KnownRuntime, World};

/// How often deadlines are looked at.
const TICK: Duration = Duration::from_secs(1);
/// Links closed in one tick; the rest follows in the next.
const LINKS_PER_TICK_MAX: usize = 100;
/// How long streams that a gateway reported as open are believed to be: it reports them again in each
/// `ACTIVITY_INTERVAL`, and says nothing any more when it was killed.
const OPEN_STREAMS_BELIEVED: Millis = Millis::new(3 * ACTIVITY_INTERVAL.get());
/// How long a host may take for a wake or a sleep before it is given up; also where no host took the wake.
const HOST_PATIENCE: Millis = Millis::new(WAKE_DEADLINE.get() + RUNTIME_LEASE.get());

/// The timer process manager. One per log; a second one is harmless, its commands are refused or empty.
pub struct Timers {
    log: SharedLog,
    commands: Commands,
    clock: SharedClock,
    world: World,
}

impl Timers {
    pub fn new(log: SharedLog, commands: Commands, clock: SharedClock) -> Self {
        Self { log, commands, clock, world: World::default() }
    }

    /// Follows the log and fires deadlines until `stop`. A log that is out of reach is waited for.
    ///
    /// # Errors
    /// When the log cannot be followed any more.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), LogError> {
        let mut following = Following::new(SharedLog::clone(&self.log), "timers");
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut caught_up = false;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                next = following.next() => match next? {
                    Follow::Commit { recorded, .. } => {
                        self.world.apply(&recorded);
                        // Visitors are led there no more, and may wake what was there elsewhere as soon as the log says that it is lost.
                        if caught_up && recorded.commit.events.contains(&Event::Host(HostEvent::Revoked)) {
                            self.fire().await;
                        }
                    }
                    Follow::Caught { .. } => caught_up = true,
                },
                _ = tick.tick(), if caught_up => self.fire().await,
            }
        }
    }

    async fn fire(&mut self) {
        let now = self.clock.now();
        for (link, resource) in self.world.links_due(now, LINKS_PER_TICK_MAX) {
            let Ok(permit) = system_permit(Component::Timer, Action::LinkExpire, resource, self.world.position(), now)
            else {
                continue;
            };
            log_failure("link_expiry", links::expire(&self.commands, &permit, &Context::new(now), link).await);
        }
        for (window, resource) in self.world.root_windows_due(now) {
            let permit = system_permit(Component::Timer, Action::RootExpire, resource, self.world.position(), now);
            let Ok(permit) = permit else { continue };
            log_failure("root_window", root_windows::expire(&self.commands, &permit, &Context::new(now), window).await);
        }
        for (window, resource, outcome) in self.world.root_commands_lost(now) {
            // In the place of the host that does not come back.
            let (component, position) = (Component::RuntimeReactor, self.world.position());
            let Ok(permit) = system_permit(component, Action::RootReport, resource, position, now) else { continue };
            let (context, ended) = (Context::new(now), RootEnded { outcome, code: None, at: now, changes: None });
            let told = root_windows::report_ended(&self.commands, &permit, &context, window, ended).await;
            log_failure("root_command", told);
        }
        let due: Vec<_> = self
            .world
            .runtimes()
            .filter_map(|(workspace, known)| Some((workspace, self.due(workspace, known, now)?)))
            .collect();
        for (workspace, due) in due {
            if let Some(resource) = self.world.resource(workspace) {
                self.fire_runtime(workspace, resource, due, now).await;
            }
        }
    }

    /// What is due for one runtime.
    fn due(&self, workspace: WorkspaceId, known: &KnownRuntime, now: UnixMillis) -> Option<Due> {
        let revoked = |host: &HostId| self.world.placement().is_revoked(known.org, *host);
        if let Some(host) = known.state.host().filter(revoked) {
            let epoch = known.state.epoch();
            return Some(Due::Lost(RuntimeCommand::DeclareLost { epoch, confirmed_by: Some(host), now }));
        }
        let awake = matches!(known.state, Runtime::Ready(_) | Runtime::Waking { .. });
        if awake && self.world.is_archived(workspace) {
            return Some(Due::Sleep(SleepCause::WorkspaceArchived));
        }
        if let Runtime::Waking { epoch, .. } | Runtime::Sleeping { epoch, .. } = &known.state {
            let given_up = known.asked_at.plus(HOST_PATIENCE) <= now;
            let lost = RuntimeCommand::DeclareLost { epoch: *epoch, confirmed_by: None, now };
            return given_up.then_some(Due::Lost(lost));
        }
        let Runtime::Ready(ready) = &known.state else { return None };
        // A host that is merely slow gets the length of a lease on top before its runtime is given up.
        if ready.lease_until.plus(RUNTIME_LEASE) <= now {
            return Some(Due::Lost(RuntimeCommand::DeclareLost { epoch: ready.epoch, confirmed_by: None, now }));
        }
        let policy = self.world.organization(known.org).map(|(_, policy)| policy);
        if let (Some(asked), Some(asked_at), Some(policy)) = (ready.keep_awake_until, known.kept_awake_at, policy) {
            // Asked for when the organization allowed more.
            let until = policy.keep_awake_ends_at(asked_at);
            if until < asked {
                return Some(Due::Shorten(RuntimeCommand::ShortenKeepAwake { epoch: ready.epoch, until }));
            }
        }
        let declared = self.world.workspace(workspace).map_or(IDLE_SLEEP_DEFAULT, |active| active.manifest.idle_sleep);
        let cap = policy.map_or(declared, |policy| policy.idle_sleep_max);
        let idle_for = known.idle_for(now)?;
        if idle_for < declared.min(cap) {
            return None;
        }
        let still_open = ready.last_activity.is_some_and(|at| now.since(at) <= OPEN_STREAMS_BELIEVED);
        let open_streams = if still_open { known.open_streams } else { 0 };
        let cause = match ready.keep_awake_until {
            Some(until) if now < until => Some(PostponeCause::KeepAwake { until }),
            Some(_) | None if open_streams > 0 => Some(PostponeCause::OpenStreams { count: open_streams }),
            Some(_) | None => None,
        };
        match cause {
            None => Some(Due::Sleep(SleepCause::Idle { idle_for })),
            // Recorded once; the same cause again is no news.
            Some(cause) if ready.postponed.as_ref() == Some(&cause) => None,
            Some(cause) => Some(Due::Postpone(RuntimeCommand::PostponeSleep { epoch: ready.epoch, cause })),
        }
    }

    async fn fire_runtime(&self, workspace: WorkspaceId, resource: Resource, due: Due, now: UnixMillis) {
        let position = self.world.position();
        let context = Context::new(now);
        let permit = |action| system_permit(Component::Timer, action, resource, position, now);
        match due {
            Due::Sleep(cause) => {
                let Ok(permit) = permit(Action::RuntimeSleep) else { return };
                log_failure("sleep", runtimes::sleep(&self.commands, &permit, &context, workspace, cause).await);
            }
            Due::Shorten(command) => {
                let Ok(permit) = permit(Action::RuntimeSleep) else { return };
                log_failure("shorten", runtimes::report(&self.commands, &permit, &context, workspace, &command).await);
            }
            Due::Postpone(command) => {
                let Ok(permit) = permit(Action::RuntimeSleep) else { return };
                log_failure("postpone", runtimes::report(&self.commands, &permit, &context, workspace, &command).await);
            }
            Due::Lost(command) => {
                let Ok(permit) = permit(Action::RuntimeReport) else { return };
                log_failure("lease", runtimes::report(&self.commands, &permit, &context, workspace, &command).await);
            }
        }
    }
}

enum Due {
    Sleep(SleepCause),
    /// Of the time that somebody asked to keep it awake.
    Shorten(RuntimeCommand),
    Postpone(RuntimeCommand),
    Lost(RuntimeCommand),
}

fn log_failure(timer: &'static str, outcome: Result<envforge_commands::Done, CommandError>) {
    match outcome {
        Ok(_) => metrics::counter!("envforge_timers_fired_total", "timer" => timer).increment(1),
        // Somebody else was first, or it was too early by the leader's state: nothing to do.
        Err(CommandError::Refused(refusal)) => tracing::debug!(timer, %refusal, "a timer was refused"),
        Err(error) => tracing::warn!(timer, %error, "a timer did not fire; it will be tried again"),
    }
}
