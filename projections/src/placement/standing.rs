//! How the machine of a workspace's host stands between on and off, for whoever needs it up while nothing is awake there.
//!
//! Not here: which machines are up for runtimes (the fleet's planner), and asking for a start (api).

use envforge_domain::failures::Failures;
use envforge_domain::ids::{HostId, OrgId, WorkspaceId};
use envforge_domain::limits::MACHINE_START_WAIT;
use envforge_domain::machine::{LiveMachine, Machine, MachineEvent, MachinePurpose, Power, StartFailure};
use envforge_domain::time::UnixMillis;

use super::{Inner, PlacementView};

/// What is to be expected of a provider's machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineStanding {
    /// Off or being stopped; it can be started.
    Off,
    /// Asked for, or started, and not up: whoever seems to be there is from before.
    Starting,
    /// Up, and not for so long that its agent must have come.
    Fresh,
    /// Where its agent is not to be reached that has another reason.
    Up,
    /// Off: its last start has failed, and the next one is not due before then.
    NotStarting { why: StartFailure, until: UnixMillis },
    /// Off or about to be, and not started again.
    Leaving,
}

/// What became of one machine's starts.
#[derive(Default)]
pub(super) struct Starts {
    up_at: UnixMillis,
    /// Since it was last up.
    failures: Failures,
    why: Option<StartFailure>,
}

impl Starts {
    pub(super) fn apply(&mut self, event: &MachineEvent, at: UnixMillis) {
        match event {
            MachineEvent::Started => *self = Self { up_at: at, ..Self::default() },
            MachineEvent::StartFailed { why, .. } => {
                self.failures.add(at);
                self.why = Some(*why);
            }
            MachineEvent::Requested { .. }
            | MachineEvent::Launched { .. }
            | MachineEvent::LaunchFailed { .. }
            | MachineEvent::StartRequested { .. }
            | MachineEvent::StopRequested { .. }
            | MachineEvent::Stopped { .. }
            | MachineEvent::ChecksFailed
            | MachineEvent::ChecksPassed
            | MachineEvent::Unhealthy { .. }
            | MachineEvent::Draining { .. }
            | MachineEvent::TerminationRequested { .. }
            | MachineEvent::Used { .. }
            | MachineEvent::Terminated { .. }
            | MachineEvent::StrangeReported { .. } => {}
        }
    }
}

impl PlacementView {
    /// The host on which a workspace lies: where it is placed; while it sleeps, where it was awake or had a shell the last time.
    pub fn lies_on(&self, workspace: WorkspaceId) -> Option<HostId> {
        self.inner.read().lies_on(workspace)
    }

    /// Whether nothing of a host comes back: it was retired or revoked, or its machine is over; or it is another organization's.
    pub fn is_gone(&self, org: OrgId, host: HostId) -> bool {
        let inner = self.inner.read();
        inner.gone.contains(&host) || inner.hosts.get(&host).is_some_and(|(host, _)| host.org != org)
    }

    /// The host that a workspace's shells are on once its machine is up: the organization's machine for shells; where it has none, the host
    /// on which the workspace lies, else the first that takes something new. `None` where that is on no provider's machine.
    pub fn shell_machine_of(&self, org: OrgId, workspace: WorkspaceId) -> Option<HostId> {
        let inner = self.inner.read();
        inner.machine_for_shells(org).or_else(|| {
            let active = |host: &HostId| inner.hosts.get(host).is_some_and(|(host, _)| host.org == org);
            let lies_on = inner.lies_on(workspace).filter(active);
            let first = || {
                let of_org = inner.hosts_of.get(&org).into_iter().flatten().filter_map(|host| inner.hosts.get(host));
                let open = of_org.filter(|(host, _)| host.org == org && !host.draining && inner.stays(host.host));
                open.map(|(host, _)| host.host).filter(|host| inner.machines.contains_key(host)).min()
            };
            lies_on.or_else(first).filter(|host| inner.machines.contains_key(host))
        })
    }

    /// How a host's machine stands; `None` where it is on no provider's machine, or that is over.
    pub fn standing(&self, host: HostId, now: UnixMillis) -> Option<MachineStanding> {
        let inner = self.inner.read();
        let starts = inner.starts.get(&host);
        let up_at = starts.map_or(UnixMillis::EPOCH, |starts| starts.up_at);
        let drained = inner.hosts.get(&host).is_some_and(|(host, _)| host.draining);
        Some(match inner.machines.get(&host)? {
            Machine::Requested { .. } => MachineStanding::Starting,
            Machine::Live(live) => match live.power {
                Power::On if now.since(up_at) < MACHINE_START_WAIT => MachineStanding::Fresh,
                Power::On => MachineStanding::Up,
                Power::Ending => MachineStanding::Leaving,
                _ if drained || live.draining || live.unhealthy => MachineStanding::Leaving,
                Power::Starting => MachineStanding::Starting,
                Power::Stopping(_) | Power::Off(_) => {
                    let failed = starts.and_then(|starts| Some((starts.why?, starts.failures.until())));
                    match failed.filter(|(_, until)| *until > now) {
                        Some((why, until)) => MachineStanding::NotStarting { why, until },
                        None => MachineStanding::Off,
                    }
                }
            },
            Machine::Unknown | Machine::Over { .. } | Machine::Strange => return None,
        })
    }

    /// Whether a host's machine is up, or on its way, with nothing placed there, so that it is put aside unless whoever needs it says so; and
    /// nobody has just now. One for shells is put aside by nobody.
    pub fn is_to_be_told_of_use(&self, host: HostId, now: UnixMillis) -> bool {
        let inner = self.inner.read();
        let idle = inner.hosts.get(&host).is_none_or(|(host, _)| host.placed.is_empty());
        let told = |live: &LiveMachine| {
            let up = matches!(live.power, Power::Starting | Power::On);
            up && live.terms.purpose == MachinePurpose::Runtime && live.is_to_be_told_of_use(now)
        };
        idle && matches!(inner.machines.get(&host), Some(Machine::Live(live)) if told(live))
    }
}

impl Inner {
    pub(super) fn lies_on(&self, workspace: WorkspaceId) -> Option<HostId> {
        self.placed_on.get(&workspace).or_else(|| self.last_on.get(&workspace)).copied()
    }

    /// The one that is furthest on its way up, of those that are not on their way out.
    pub(super) fn machine_for_shells(&self, org: OrgId) -> Option<HostId> {
        let of_org = |machine: &Machine| {
            machine.terms().is_some_and(|terms| terms.org == org && terms.purpose == MachinePurpose::Shell)
        };
        let rank = |machine: &Machine| match machine {
            Machine::Live(live) => match live.power {
                Power::On => 0,
                Power::Starting => 1,
                Power::Stopping(_) | Power::Off(_) | Power::Ending => 3,
            },
            _ => 2,
        };
        let machines = self.machines.iter().filter(|(host, machine)| of_org(machine) && self.stays(**host));
        machines.min_by_key(|(host, machine)| (rank(machine), **host)).map(|(host, _)| *host)
    }
}
