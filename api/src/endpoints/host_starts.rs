//! Machines that are off while somebody needs what lies on them: logs and shells are there while the runtime sleeps.
//!
//! Their start is asked for on the machine's own stream, once however many ask for it, and they are kept up for as long as somebody is there.
//! Nothing is woken, and nothing is metered. Not here: starting and stopping (the fleet), and which host it is (`shell_host`).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use envforge_commands::{CommandError, Done, machines};
use envforge_domain::access::{Action, Resource};
use envforge_domain::commit::{Component, Surface};
use envforge_domain::ids::{HostId, WorkspaceId};
use envforge_domain::limits::MACHINE_START_WAIT;
use envforge_domain::machine::{MachineCause, MachineCommand, StartFailure};
use envforge_domain::shell::{LogChunk, ShellEnd, ShellFailure};
use envforge_domain::slug::ServiceName;
use envforge_domain::time::UnixMillis;
use envforge_projections::placement::MachineStanding;
use parking_lot::Mutex;
use serde_json::json;

use super::shells::{LOOK_INTERVAL, ShellEndpoints, workspace_of};
use crate::problem::Problem;
use crate::shell_socket::{Client, Ground};

/// How long a request for logs is held for a machine that comes up: well below what the API, and proxies on the way, let a request wait.
const HOLD: Duration = Duration::from_secs(5);
/// How often a client that waits for a shell is told so, which also shows whether it is still there.
const TOLD_INTERVAL: Duration = Duration::from_secs(5);
/// A host that was held for is asked for again at once.
const AGAIN_S: u64 = 1;

/// What somebody needs a host for.
#[derive(Clone, Copy)]
pub(super) enum Need {
    Logs,
    Shell,
}

impl Need {
    const fn cause(self) -> MachineCause {
        match self {
            Self::Logs => MachineCause::Logs,
            Self::Shell => MachineCause::Shell,
        }
    }
}

/// Machines about which this process is asking the log: one request at a time does for all who wait for the same. Clones are one.
#[derive(Clone, Default)]
pub(super) struct Asking(Arc<Mutex<HashSet<HostId>>>);

struct Asked<'a>(&'a Asking, HostId);

impl Asking {
    /// `None` where somebody asks already.
    fn begin(&self, machine: HostId) -> Option<Asked<'_>> {
        let first = self.0.lock().insert(machine);
        first.then(|| Asked(self, machine))
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.0.0.lock().remove(&self.1);
    }
}

fn starting() -> Problem {
    Problem::new("host_starting", "The machine of this workspace's host is on its way up.").retry_after_s(AGAIN_S)
}

fn not_starting(why: StartFailure, until: UnixMillis, now: UnixMillis) -> Problem {
    let because = match why {
        StartFailure::Capacity => "its provider has no capacity for it now",
        StartFailure::Quota => "its provider's quota is used up",
        StartFailure::Refused => "its provider refuses it",
        StartFailure::StoppedAgain => "it stopped again without having been up",
    };
    Problem::new("host_not_starting", format!("The machine of this workspace's host could not be started: {because}."))
        .with("reason", why.token())
        .retry_after_s(until.since(now).get().div_ceil(1_000))
}

fn leaving() -> Problem {
    Problem::new("host_leaving", "The machine of this workspace's host is on its way out and is not started again.")
}

fn gone() -> Problem {
    Problem::new("host_gone", "The host on which this workspace ran last is gone, and what its services wrote with it.")
}

impl ShellEndpoints {
    /// The last lines of a service. Waits a while for a machine that comes up.
    ///
    /// # Errors
    /// `host_starting` where that takes longer; why it does not come up, where it does not.
    pub(super) async fn tail(
        &self,
        ground: &Ground,
        service: &ServiceName,
        lines: usize,
    ) -> Result<Option<LogChunk>, Problem> {
        let (org, workspace) = (ground.resource.org(), workspace_of(ground)?);
        let until = Instant::now() + HOLD;
        loop {
            if self.look_for(ground, Need::Logs).await?.is_some() {
                match self.host()?.host().tail(org, workspace, service.clone(), lines).await {
                    Ok(tail) => return Ok(tail),
                    Err(error) if error.kind() != std::io::ErrorKind::NotConnected => {
                        return Err(Problem::internal(error.to_string()));
                    }
                    Err(_) if self.is_coming(ground, Need::Logs) => {}
                    Err(_) => return Err(ShellFailure::OutOfReach.into()),
                }
            }
            if Instant::now() >= until {
                return Err(starting());
            }
            tokio::select! {
                () = self.stop().cancelled() => return Err(ShellFailure::ShuttingDown.into()),
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
            if ground.lost().is_some() {
                self.ground_of(&ground.caller_now(), ground.action, ground.resource).await?;
            }
        }
    }

    /// The host of the workspace's shells, once it can be reached. Waits for a machine that comes up, and tells the client. `None` where the
    /// client went away, or was told why not.
    ///
    /// # Errors
    /// Why it does not come up, where it does not; `host_starting` where it takes too long.
    pub(super) async fn shell_host(&self, client: &mut Client, ground: &Ground) -> Result<Option<HostId>, Problem> {
        let begun = Instant::now();
        let mut told: Option<Instant> = None;
        loop {
            if let Some(host) = self.look_for(ground, Need::Shell).await? {
                return Ok(Some(host));
            }
            if begun.elapsed() >= MACHINE_START_WAIT.to_duration() {
                return Err(starting());
            }
            if told.is_none_or(|told| told.elapsed() >= TOLD_INTERVAL) {
                told = Some(Instant::now());
                if !client.say(&json!({ "type": "starting" })).await {
                    return Ok(None);
                }
            }
            let stopped = tokio::time::timeout(LOOK_INTERVAL, self.stop().cancelled()).await.is_ok();
            if let Some(end) = if stopped { Some(ShellEnd::HostStopped) } else { ground.lost() } {
                client.over(end).await;
                return Ok(None);
            }
        }
    }

    /// Keeps the machine up on which somebody follows logs. One that is off stays off: nothing is written there.
    pub(super) async fn keep_logs_up(&self, ground: &Ground) {
        let workspace = ground.resource.workspace();
        if let Some(host) = workspace.and_then(|workspace| self.access.hot().placement.lies_on(workspace)) {
            self.keep_up(ground, Need::Logs, host).await;
        }
    }

    /// Whether the host's machine is on its way up, or was only just: what was not to be reached a moment ago may be soon.
    pub(super) fn is_coming(&self, ground: &Ground, need: Need) -> bool {
        let machine = ground.resource.workspace().and_then(|workspace| self.machine_of(ground, need, workspace));
        let standing = machine.and_then(|host| self.access.hot().placement.standing(host, self.clock.now()));
        match standing {
            Some(MachineStanding::Off | MachineStanding::Starting | MachineStanding::Fresh) => true,
            Some(MachineStanding::Up | MachineStanding::NotStarting { .. } | MachineStanding::Leaving) | None => false,
        }
    }

    /// The host whose machine has to be up, where it is on one.
    fn machine_of(&self, ground: &Ground, need: Need, workspace: WorkspaceId) -> Option<HostId> {
        let placement = &self.access.hot().placement;
        match need {
            Need::Logs => placement.lies_on(workspace),
            Need::Shell => placement.shell_machine_of(ground.resource.org(), workspace),
        }
    }

    /// One look at the host: `None` while its machine is on its way up, which is asked for where it is off.
    async fn look_for(&self, ground: &Ground, need: Need) -> Result<Option<HostId>, Problem> {
        let (org, workspace) = (ground.resource.org(), workspace_of(ground)?);
        let (host, placement) = (self.host()?.host(), &self.access.hot().placement);
        let machine = self.machine_of(ground, need, workspace);
        // Nothing of logs is anywhere else.
        if matches!(need, Need::Logs) && machine.is_some_and(|host| placement.is_gone(org, host)) {
            return Err(gone());
        }
        let now = self.clock.now();
        // Its agent may seem to be connected for a while after its machine went off.
        let fresh = match machine.and_then(|host| Some((host, placement.standing(host, now)?))) {
            Some((machine, MachineStanding::Off)) => {
                self.start(ground, need, machine).await?;
                return Ok(None);
            }
            Some((machine, MachineStanding::Starting)) => {
                self.keep_up(ground, need, machine).await;
                return Ok(None);
            }
            Some((_, MachineStanding::NotStarting { why, until })) => return Err(not_starting(why, until, now)),
            Some((_, MachineStanding::Leaving)) => return Err(leaving()),
            Some((machine, MachineStanding::Fresh)) => Some(machine),
            Some((_, MachineStanding::Up)) | None => None,
        };
        let place = match need {
            Need::Logs => host.place(org, workspace),
            Need::Shell => host.shell_place(org, workspace),
        };
        match (place, fresh) {
            (Ok(host), _) => {
                self.keep_up(ground, need, host).await;
                Ok(Some(host))
            }
            (Err(_), Some(machine)) => {
                self.keep_up(ground, need, machine).await;
                Ok(None)
            }
            (Err(failure), None) => Err(failure.into()),
        }
    }

    async fn start(&self, ground: &Ground, need: Need, machine: HostId) -> Result<(), Problem> {
        let cause = need.cause();
        let asked = self.ask(ground, machine, &MachineCommand::Start { cause }).await?;
        if asked.is_some_and(|done| !done.events.is_empty()) {
            metrics::counter!("envforge_machine_starts_asked_total").increment(1);
            tracing::info!(host = %machine, ?cause, "a machine that was off is started for somebody");
        }
        Ok(())
    }

    /// Whoever could not say so is asked again soon.
    async fn keep_up(&self, ground: &Ground, need: Need, host: HostId) {
        let now = self.clock.now();
        if !self.access.hot().placement.is_to_be_told_of_use(host, now) {
            return;
        }
        let needed = MachineCommand::Use { cause: need.cause(), now };
        if let Err(problem) = self.ask(ground, host, &needed).await {
            tracing::debug!(%host, code = problem.code(), "that a machine is needed up was not recorded yet");
        }
    }

    /// Tells the machine's stream, by EnvForge itself: whoever has come here may read logs or open a shell, and nothing more. `None` where
    /// others tell it the same.
    async fn ask(&self, ground: &Ground, machine: HostId, command: &MachineCommand) -> Result<Option<Done>, Problem> {
        let Some(_asked) = self.asking.begin(machine) else { return Ok(None) };
        let resource = Resource::Host { org: ground.resource.org(), host: machine };
        let (action, context) = (Action::MachineManage, self.context(ground));
        let permit =
            self.access.component_permit(Component::Identity, action, resource, Surface::Agent, context.now)?;
        match machines::execute(self.commands(), &permit, &context, machine, command).await {
            Ok(done) => Ok(Some(done)),
            Err(CommandError::Contended) => Ok(None),
            Err(error) => Err(match error.refusal_code() {
                Some("machine_leaving") => leaving(),
                Some("machine_over") => gone(),
                _ => error.into(),
            }),
        }
    }
}
