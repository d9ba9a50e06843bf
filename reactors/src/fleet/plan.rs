//! Which machines an organization needs, and what goes where: a pure plan of values, which the reactor then carries out.
//!
//! Packs the workspaces of ONE organization by CPU and memory. The same fleet, policy and instant give the same plan anywhere.
//!
//! INVARIANT: no step of a plan names a machine or a workspace of another organization than the plan's, whatever the
//! planner is told (SPEC, rule 1). Held here, again by the executor on the instance's own tags, and by the agent.
//! Not here: what the provider says (`compare`).

mod leaving;

use std::collections::{BTreeMap, BTreeSet};

use envforge_commands::context::derived_uuid;
use envforge_domain::failures::Failures;
use envforge_domain::host::Capacity;
use envforge_domain::ids::{HostId, OrgId, WorkspaceId};
use envforge_domain::machine::{LiveMachine, Machine, MachineCause, MachinePurpose, MachineTerms, Power, StopMode};
use envforge_domain::time::{Millis, UnixMillis};

/// A machine that fails again this long after it was stopped for it has not got well by it.
const STOP_HELPS_FOR: Millis = Millis::from_hours(24);

/// What an operator allows and pays for, for one organization.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetPolicy {
    pub provider: String,
    /// For runtimes, the preferred one first; the next one is tried after a launch that failed.
    pub shapes: Vec<Shape>,
    /// For shells; none have a machine of their own where there is none.
    pub shell_shape: Option<Shape>,
    /// How long a machine stays up without an awake runtime, an open shell or somebody who follows logs.
    pub grace: Millis,
    /// Machines that are kept up without a runtime, so that a wake need not wait for one.
    pub warm: usize,
    /// Hibernate instead of stopping, where the shape can.
    pub hibernate: bool,
    /// At one time, of both purposes.
    pub machines_max: usize,
    /// How long a machine may be up before its agent has enrolled; then another one takes its place.
    pub boot_deadline: Millis,
    /// How long the agent of a machine that is up and has nothing awake may be away; then it is stopped once, and the next time replaced.
    pub agent_deadline: Millis,
    /// For how long the provider's status checks must fail before they are believed.
    pub impaired_after: Millis,
    /// For how long a machine may stop again after each start, while others come up, before it is replaced, with its disk.
    pub start_patience: Millis,
    /// How long a machine that is drained may wait for the shells that are open on it.
    pub shell_patience: Millis,
}

/// A size of machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The provider's name of it: `m7g.large`.
    pub name: String,
    /// What workspaces may take of it.
    pub capacity: Capacity,
    pub hibernates: bool,
}

/// One organization's machines and what waits for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrganizationFleet {
    pub org: OrgId,
    pub machines: Vec<MachineView>,
    pub demands: Vec<Demand>,
    /// Active ones.
    pub workspaces: usize,
    /// How many machines were ever requested: the number of the next one.
    pub requested_ever: usize,
    pub failures: Failures,
    /// Of all organizations: machines that are up and whose agents have enrolled.
    pub agents_wanted: usize,
}

/// A machine as the planner sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineView {
    pub host: HostId,
    pub org: OrgId,
    pub purpose: MachinePurpose,
    pub capacity: Capacity,
    pub state: Machine,
    pub agent: AgentState,
    pub requested_at: UnixMillis,
    /// When it last came up.
    pub up_at: UnixMillis,
    /// How long its agent was missed while another one got through; zero while it is there, and not zero while it is missed at all.
    pub away: Millis,
    /// How long it was missed, whether others got through or not.
    pub missed_for: Millis,
    /// When its agent was last there, and when it last enrolled.
    pub heard_at: UnixMillis,
    pub enrolled_at: UnixMillis,
    pub token: Token,
    pub starts: Starts,
    /// Since when the provider's status checks fail, as far as this process has seen.
    pub impaired_since: Option<UnixMillis>,
    /// When it was last stopped because they did, or because its agent was missed.
    pub stopped_as_unhealthy_at: Option<UnixMillis>,
    pub drained_at: Option<UnixMillis>,
    pub placed: BTreeMap<WorkspaceId, Capacity>,
    /// Of those, the ones of which nothing may run there any more.
    pub stale: BTreeSet<WorkspaceId>,
    /// Shells that are open there by the log.
    pub open_shells: usize,
    /// When something was last placed there or released, a shell opened or over, or somebody needed it up, or it came up.
    pub used_at: UnixMillis,
    /// Until when somebody needs it up who has nothing awake there.
    pub needed_until: UnixMillis,
}

/// What became of a machine's starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Starts {
    /// When it was last wanted up.
    pub asked_at: UnixMillis,
    /// Since it was last up.
    pub failures: Failures,
    /// Those of them after which it stopped again. The others say something of the provider and of the account alone.
    pub stopped_again: Failures,
}

/// Whether an agent has to enrol before it is there again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Token {
    /// Its certificate is good.
    #[default]
    Unneeded,
    /// Since when a token lies ready for it, as far as this process has seen.
    Needed { ready_since: Option<UnixMillis> },
}

/// What the log says of a machine's agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentState {
    /// Nobody may enrol as the machine's host yet.
    Absent,
    /// Somebody may, and nobody has.
    Awaited,
    /// It takes wakes.
    Enrolled,
    /// Its certificate has ended, or had when the machine last came up, as far as it was recorded: it has to enrol again.
    Lapsed,
    /// A person wants nothing more placed there.
    Draining,
    /// A person trusts it no more.
    Revoked,
    Retired,
}

/// A wake that is not carried out yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demand {
    pub workspace: WorkspaceId,
    pub org: OrgId,
    pub needs: Capacity,
    /// Where it ran the last time, and where its checkout lies.
    pub before: Option<HostId>,
    /// The host that has taken it.
    pub taken_by: Option<HostId>,
}

/// One thing to do, each a command on the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Request {
        terms: MachineTerms,
        cause: MachineCause,
    },
    Start {
        host: HostId,
        cause: MachineCause,
    },
    Stop {
        host: HostId,
        mode: StopMode,
        cause: MachineCause,
    },
    Drain {
        host: HostId,
        cause: MachineCause,
    },
    Terminate {
        host: HostId,
        cause: MachineCause,
    },
    Place {
        workspace: WorkspaceId,
        host: HostId,
        needs: Capacity,
    },
    Release {
        workspace: WorkspaceId,
        host: HostId,
    },
    /// Of the host on a machine that is gone.
    Retire {
        host: HostId,
    },
    /// Nobody gets through to a machine that the provider takes for well.
    GiveUp {
        host: HostId,
        why: WhyGivenUp,
    },
    /// Its status checks fail again, though it was stopped and started for it.
    GiveUpChecks {
        host: HostId,
    },
    /// A wake whose host is gone or cannot be started.
    PlaceAnew {
        workspace: WorkspaceId,
        host: HostId,
    },
}

/// Why a machine that is up is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WhyGivenUp {
    #[error("its agent has not enrolled within {deadline}")]
    NotEnrolled { deadline: Millis },
    #[error(
        "its agent has been away for {deadline} after a stop and a start, while others came, and nothing is awake there"
    )]
    AgentAway { deadline: Millis },
}

impl WhyGivenUp {
    /// Towards metrics.
    pub const fn token(self) -> &'static str {
        match self {
            Self::NotEnrolled { .. } => "not_enrolled",
            Self::AgentAway { .. } => "agent_away",
        }
    }
}

/// What the planner does not do, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanRefusal {
    /// A workspace or a machine of another organization was among them.
    CrossOrganization { workspace: Option<WorkspaceId>, host: Option<HostId> },
    /// No shape is large enough.
    TooLarge { workspace: WorkspaceId },
    /// The organization has as many machines as it may.
    MachinesMax { max: usize },
    /// The last launches failed.
    Pausing { until: UnixMillis },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub steps: Vec<Step>,
    pub refusals: Vec<PlanRefusal>,
}

impl MachineView {
    fn live(&self) -> Option<&LiveMachine> {
        if let Machine::Live(live) = &self.state { Some(live) } else { None }
    }

    fn power(&self) -> Option<Power> {
        self.live().map(|live| live.power)
    }

    fn is_leaving(&self) -> bool {
        self.live().is_some_and(|live| live.draining || live.unhealthy || live.power == Power::Ending)
    }

    fn is_given_up_by_people(&self) -> bool {
        matches!(self.agent, AgentState::Draining | AgentState::Revoked | AgentState::Retired)
    }

    /// Up for so long without any agent ever that none will come: there is nothing on its disk.
    fn is_overdue(&self, deadline: Millis, now: UnixMillis) -> bool {
        let never = matches!(self.agent, AgentState::Absent | AgentState::Awaited);
        self.is_on() && never && now.since(self.up_at) >= deadline
    }

    /// Wanted up, and not up for a reason that may last.
    fn fails_to_start(&self, deadline: Millis, now: UnixMillis) -> bool {
        match self.power() {
            Some(Power::Off(_) | Power::Stopping(_)) => self.starts.failures.any(),
            Some(Power::Starting) => self.starts.failures.any() || now.since(self.starts.asked_at) >= deadline,
            Some(Power::On | Power::Ending) | None => false,
        }
    }

    fn is_impaired(&self, after: Millis, now: UnixMillis) -> bool {
        let recorded = self.live().is_some_and(|live| live.impaired);
        self.is_on() && (recorded || self.impaired_since.is_some_and(|since| now.since(since) >= after))
    }

    /// Nothing runs there that would miss it, by the log.
    fn is_quiet(&self) -> bool {
        self.stale.len() == self.placed.len() && self.open_shells == 0
    }

    /// Up, and its agent is missed. What was missed before it was stopped says nothing.
    fn is_missed(&self) -> bool {
        self.is_on() && self.away > Millis::ZERO
    }

    /// Stopped lately because it did not do well.
    fn was_stopped_as_unhealthy(&self, now: UnixMillis) -> bool {
        self.stopped_as_unhealthy_at.is_some_and(|at| now.since(at) < STOP_HELPS_FOR)
    }

    /// Its agent has not come since, though the machine was stopped and started for it.
    fn was_stopped_in_vain(&self, now: UnixMillis) -> bool {
        self.was_stopped_as_unhealthy(now) && self.heard_at <= self.up_at
    }

    /// It is nobody's machine until its agent comes.
    fn is_lost(&self, deadline: Millis, now: UnixMillis) -> bool {
        self.is_missed() && self.missed_for >= deadline && self.was_stopped_in_vain(now)
    }

    /// Nobody is there, and nobody was for the grace.
    fn is_idle(&self, grace: Millis, now: UnixMillis) -> bool {
        self.open_shells == 0 && self.needed_until <= now && now.since(self.used_at) >= grace
    }

    /// On its way in or out.
    fn is_unsettled(&self, policy: &FleetPolicy) -> bool {
        let awaited = match self.agent {
            AgentState::Enrolled => false,
            AgentState::Lapsed => self.missed_for < policy.agent_deadline,
            AgentState::Absent
            | AgentState::Awaited
            | AgentState::Draining
            | AgentState::Revoked
            | AgentState::Retired => true,
        };
        let coming = match &self.state {
            Machine::Requested { .. } => true,
            Machine::Live(live) => live.power == Power::Starting || self.is_on() && awaited,
            Machine::Unknown | Machine::Over { .. } | Machine::Strange => false,
        };
        coming || self.is_leaving()
    }

    /// May take workspaces, now or once it is up.
    fn takes(&self) -> bool {
        matches!(self.state, Machine::Requested { .. } | Machine::Live(_))
            && !self.is_leaving()
            && !self.is_given_up_by_people()
    }

    fn is_off(&self) -> bool {
        matches!(self.power(), Some(Power::Off(_) | Power::Stopping(_)))
    }

    fn is_on(&self) -> bool {
        self.power() == Some(Power::On)
    }

    /// Up, with an agent that takes wakes.
    fn is_ready(&self) -> bool {
        self.is_on() && self.agent == AgentState::Enrolled
    }
}

/// Room on a machine, or on one that this plan asks for.
struct Slot<'a> {
    host: HostId,
    machine: Option<&'a MachineView>,
    room: Capacity,
    /// Something is placed there, or comes there by this plan.
    taken: bool,
    off: bool,
    /// Its last start has failed.
    failing: bool,
}

/// Whether a start that failed may be repeated.
fn may_retry(machine: &MachineView, now: UnixMillis) -> bool {
    machine.starts.failures.until() <= now
}

/// Plans for one organization.
pub fn plan(fleet: &OrganizationFleet, policy: &FleetPolicy, now: UnixMillis) -> Plan {
    Planner::new(fleet, policy, now).run()
}

struct Planner<'a> {
    fleet: &'a OrganizationFleet,
    policy: &'a FleetPolicy,
    now: UnixMillis,
    ours: Vec<&'a MachineView>,
    slots: Vec<Slot<'a>>,
    requested: usize,
    plan: Plan,
}

impl<'a> Planner<'a> {
    fn new(fleet: &'a OrganizationFleet, policy: &'a FleetPolicy, now: UnixMillis) -> Self {
        let mut plan = Plan::default();
        let mut ours = Vec::with_capacity(fleet.machines.len());
        for machine in &fleet.machines {
            if machine.org == fleet.org && machine.state.terms().is_some_and(|terms| terms.org == fleet.org) {
                ours.push(machine);
            } else {
                plan.refusals.push(PlanRefusal::CrossOrganization { workspace: None, host: Some(machine.host) });
            }
        }
        ours.sort_by_key(|machine| machine.host);
        let slots = ours
            .iter()
            // A wake that is led to where the agent is missed would wait in vain.
            .filter(|machine| machine.purpose == MachinePurpose::Runtime && machine.takes() && !machine.is_missed())
            .filter(|machine| !machine.is_impaired(policy.impaired_after, now))
            .map(|machine| Slot {
                host: machine.host,
                machine: Some(machine),
                room: machine.placed.values().fold(machine.capacity, |room, taken| room.minus(taken)),
                taken: !machine.placed.is_empty(),
                off: machine.is_off(),
                failing: machine.fails_to_start(policy.boot_deadline, now),
            })
            // One that fails to start keeps nothing waiting, and is tried again after a while.
            .filter(|slot| !slot.failing || (slot.off && slot.machine.is_some_and(|machine| may_retry(machine, now))))
            .collect();
        Self { fleet, policy, now, ours, slots, requested: 0, plan }
    }

    fn run(mut self) -> Plan {
        self.leave();
        self.shell();
        self.serve();
        self.warm();
        self.plan
    }

    fn step(&mut self, step: Step) {
        self.plan.steps.push(step);
    }

    /// One machine for shells for as long as there are workspaces.
    fn shell(&mut self) {
        if self.fleet.workspaces == 0 {
            return;
        }
        let (deadline, now) = (self.policy.boot_deadline, self.now);
        let shells = self.ours.iter().copied();
        let (failing, mut sound): (Vec<&MachineView>, Vec<&MachineView>) =
            shells.filter(|machine| machine.purpose == MachinePurpose::Shell && machine.takes()).partition(|machine| {
                machine.fails_to_start(deadline, now) || machine.is_lost(self.policy.agent_deadline, now)
            });
        let serves = |machine: &MachineView| machine.is_ready() && !machine.is_missed();
        sound.sort_by_key(|machine| (!serves(machine), machine.is_off(), machine.requested_at, machine.host));
        match sound.first() {
            Some(machine) if machine.is_off() => {
                self.step(Step::Start { host: machine.host, cause: MachineCause::Demand });
            }
            Some(_) => {}
            None => {
                if let Some(shape) = self.policy.shell_shape.clone() {
                    self.request(MachinePurpose::Shell, &shape, MachineCause::Demand);
                }
            }
        }
        // What people left there is there alone.
        for machine in failing.into_iter().filter(|machine| machine.is_off() && may_retry(machine, now)) {
            self.step(Step::Start { host: machine.host, cause: MachineCause::Demand });
        }
        // Back beside the one that took its place: the older one stays up, and what people left on the younger one stays on its disk.
        let idle = |machine: &&&MachineView| {
            serves(machine) && machine.is_quiet() && now.since(machine.used_at) >= self.policy.grace
        };
        let spare: Vec<HostId> = sound.iter().skip(1).filter(idle).map(|machine| machine.host).collect();
        for host in spare {
            self.step(Step::Stop { host, mode: StopMode::Stop, cause: MachineCause::Unused });
        }
    }

    /// Finds room for each wake that waits, largest first.
    fn serve(&mut self) {
        let mut demands: Vec<&Demand> = self.fleet.demands.iter().collect();
        demands.sort_by_key(|demand| {
            (std::cmp::Reverse((demand.needs.memory_mib, demand.needs.cpu_millicores)), demand.workspace)
        });
        for demand in demands {
            if demand.org != self.fleet.org {
                let refusal = PlanRefusal::CrossOrganization { workspace: Some(demand.workspace), host: None };
                self.plan.refusals.push(refusal);
                continue;
            }
            if let Some(host) = demand.taken_by {
                self.keep(demand.workspace, host);
                continue;
            }
            match self.best(demand) {
                Some(index) => self.use_slot(index, demand),
                None => self.request_for(demand),
            }
        }
    }

    /// A wake that a host has taken is that host's alone: its machine is started where it is off, and where it cannot be the wake goes to
    /// another one.
    fn keep(&mut self, workspace: WorkspaceId, host: HostId) {
        let Some(machine) = self.ours.iter().copied().find(|machine| machine.host == host) else { return };
        let fails = machine.fails_to_start(self.policy.boot_deadline, self.now);
        let leaves = machine.is_leaving() || machine.is_given_up_by_people() || self.leaves_for(machine).is_some();
        // INVARIANT: only from where nothing can run.
        let dead = matches!(machine.state, Machine::Over { .. })
            || (matches!(machine.power(), Some(Power::Off(_))) && (fails || leaves));
        if dead {
            return self.step(Step::PlaceAnew { workspace, host });
        }
        if let Some(slot) = self.slots.iter_mut().find(|slot| slot.host == host) {
            slot.taken = true;
            if std::mem::take(&mut slot.off) {
                self.step(Step::Start { host, cause: MachineCause::Demand });
            }
        }
    }

    /// Where no start has failed, else where it is placed already, else where it was before, else where an agent is ready, else up before off, else the
    /// tightest, of equal ones the oldest.
    fn best(&self, demand: &Demand) -> Option<usize> {
        let own = |slot: &Slot<'_>| {
            let placed = slot.machine.and_then(|machine| machine.placed.get(&demand.workspace));
            placed.copied()
        };
        let rank = |(_, slot): &(usize, &Slot<'_>)| {
            let room = own(slot).map_or(slot.room, |own| slot.room.plus(&own));
            let left = room.minus(&demand.needs);
            let before = demand.before == Some(slot.host);
            let ready = slot.machine.is_some_and(MachineView::is_ready);
            let left = (left.memory_mib, left.cpu_millicores);
            (slot.failing, own(slot).is_none(), !before, !ready, slot.off, left, slot.host)
        };
        let fits = |(_, slot): &(usize, &Slot<'_>)| {
            demand.needs.fits_into(&own(slot).map_or(slot.room, |own| slot.room.plus(&own)))
        };
        self.slots.iter().enumerate().filter(fits).min_by_key(rank).map(|(index, _)| index)
    }

    fn use_slot(&mut self, index: usize, demand: &Demand) {
        let slot = &mut self.slots[index];
        let machine = slot.machine;
        let own = machine.and_then(|machine| machine.placed.get(&demand.workspace)).copied();
        slot.room = own.map_or(slot.room, |own| slot.room.plus(&own)).minus(&demand.needs);
        slot.taken = true;
        let (host, wake) = (slot.host, std::mem::take(&mut slot.off));
        if wake {
            self.step(Step::Start { host, cause: MachineCause::Demand });
        }
        let ready = machine.is_some_and(MachineView::is_ready);
        if ready && own != Some(demand.needs) {
            self.step(Step::Place { workspace: demand.workspace, host, needs: demand.needs });
        }
    }

    fn request_for(&mut self, demand: &Demand) {
        let count = self.policy.shapes.len().max(1);
        let first = self.fleet.failures.count() as usize % count;
        let order = self.policy.shapes.iter().cycle().skip(first).take(count);
        let Some(shape) = order.into_iter().find(|shape| demand.needs.fits_into(&shape.capacity)).cloned() else {
            self.plan.refusals.push(PlanRefusal::TooLarge { workspace: demand.workspace });
            return;
        };
        if let Some(host) = self.request(MachinePurpose::Runtime, &shape, MachineCause::Demand) {
            let room = shape.capacity.minus(&demand.needs);
            self.slots.push(Slot { host, machine: None, room, taken: true, off: false, failing: false });
        }
    }

    /// Keeps as many machines without a workspace up as the policy wants, and puts those beyond aside after the grace.
    fn warm(&mut self) {
        let wanted = if self.fleet.workspaces == 0 { 0 } else { self.policy.warm };
        let idle = |slot: &&Slot<'_>| !slot.taken;
        let up: Vec<HostId> = self.slots.iter().filter(idle).filter(|slot| !slot.off).map(|slot| slot.host).collect();
        let mut off: Vec<_> = self.slots.iter().filter(idle).filter(|slot| slot.off).collect();
        off.sort_by_key(|slot| slot.failing);
        let off: Vec<HostId> = off.into_iter().map(|slot| slot.host).collect();
        let missing = wanted.saturating_sub(up.len());
        for host in off.iter().take(missing) {
            self.step(Step::Start { host: *host, cause: MachineCause::WarmPool });
        }
        for _ in off.len()..missing {
            let count = self.policy.shapes.len().max(1);
            let Some(shape) = self.policy.shapes.get(self.fleet.failures.count() as usize % count).cloned() else {
                break;
            };
            if self.request(MachinePurpose::Runtime, &shape, MachineCause::WarmPool).is_none() {
                break;
            }
        }
        for host in up.iter().skip(wanted) {
            let machine = self.ours.iter().find(|machine| machine.host == *host);
            let Some(machine) = machine.filter(|machine| machine.is_on()) else { continue };
            if machine.is_idle(self.policy.grace, self.now) {
                let mode = self.stop_mode(machine);
                self.step(Step::Stop { host: *host, mode, cause: MachineCause::Idle });
            }
        }
    }

    fn stop_mode(&self, machine: &MachineView) -> StopMode {
        let name = machine.state.terms().map(|terms| terms.shape.as_str());
        let shape = self.policy.shapes.iter().find(|shape| Some(shape.name.as_str()) == name);
        if self.policy.hibernate && shape.is_some_and(|shape| shape.hibernates) {
            StopMode::Hibernate
        } else {
            StopMode::Stop
        }
    }

    /// Asks for a machine. Its host's id follows from the organization and the machine's number: two planners that know the
    /// same ask for the same one.
    fn request(&mut self, purpose: MachinePurpose, shape: &Shape, cause: MachineCause) -> Option<HostId> {
        let until = self.fleet.failures.until();
        if self.now < until {
            self.refuse_once(PlanRefusal::Pausing { until });
            return None;
        }
        // One that does not start, or to which nobody gets through, is no machine that anybody has, and a second one for shells that is off
        // is a disk.
        let has_shells_up = self
            .ours
            .iter()
            .any(|machine| machine.purpose == MachinePurpose::Shell && machine.takes() && !machine.is_off());
        let counts = |machine: &&&MachineView| {
            let fails = machine.fails_to_start(self.policy.boot_deadline, self.now);
            let is_spare = machine.purpose == MachinePurpose::Shell && has_shells_up;
            let is_gone = matches!(machine.state, Machine::Over { .. });
            let is_lost = machine.is_lost(self.policy.agent_deadline, self.now);
            !(is_gone || is_lost || machine.is_off() && (fails || is_spare))
        };
        let living = self.ours.iter().filter(counts).count();
        if living + self.requested >= self.policy.machines_max {
            self.refuse_once(PlanRefusal::MachinesMax { max: self.policy.machines_max });
            return None;
        }
        let number = self.fleet.requested_ever + self.requested;
        self.requested += 1;
        let seed = self.fleet.org.as_uuid().as_bytes();
        let host = HostId::from_uuid(derived_uuid(seed, &format!("machine {number}")));
        let terms = MachineTerms {
            host,
            org: self.fleet.org,
            purpose,
            provider: self.policy.provider.clone(),
            shape: shape.name.clone(),
            capacity: shape.capacity,
        };
        self.step(Step::Request { terms, cause });
        Some(host)
    }

    fn refuse_once(&mut self, refusal: PlanRefusal) {
        if !self.plan.refusals.contains(&refusal) {
            self.plan.refusals.push(refusal);
        }
    }
}
