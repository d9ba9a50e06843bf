//! What the fleet knows: the log folded into machines and what they are there for.
//!
//! Pure. Not here: what to do about it (`plan`, `compare`).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use envforge_domain::aggregate::Aggregate;
use envforge_domain::commit::{Position, Recorded};
use envforge_domain::denial::DenialEvent;
use envforge_domain::event::Event;
use envforge_domain::failures::Failures;
use envforge_domain::host::{ActiveHost, Capacity, Enrolment, Host, HostEvent};
use envforge_domain::ids::{CommitId, CorrelationId, HostId, OrgId, WorkspaceId};
use envforge_domain::limits::{MACHINE_USE_LASTS, RENEWAL_RECORD_INTERVAL};
use envforge_domain::machine::{LiveMachine, Machine, MachineCause, MachineEvent, Power, StartFailure};
use envforge_domain::runtime::Runtime;
use envforge_domain::shell::ShellEvent;
use envforge_domain::time::{Millis, UnixMillis};

use super::plan::{AgentState, Demand, MachineView, OrganizationFleet, Starts, Token};
use crate::world::{KnownRuntime, World, needs};

/// Looks in vain of which the log is told further apart are not of one absence: nobody looked between them.
const TOLD_APART_MAX: Millis = Millis::from_minutes(20);
/// What an agent is refused with that comes with a token that it, or another one, has used.
const USED: &str = "enrolment_used";

/// A machine with what causation needs.
#[derive(Clone, Debug)]
pub struct KnownMachine {
    pub state: Machine,
    /// The commit that asked for it, of which the launch's token is made.
    pub requested: CommitId,
    /// The one that brought the current state.
    pub commit: CommitId,
    pub correlation: CorrelationId,
    pub requested_at: UnixMillis,
    /// When it last came up.
    pub up_at: UnixMillis,
    /// It has been up: something may lie on its disk.
    pub was_up: bool,
    pub starts: Starts,
    /// When it was last stopped because its status checks failed or its agent was missed.
    pub stopped_as_unhealthy_at: Option<UnixMillis>,
    pub drained_at: Option<UnixMillis>,
    pub host: KnownHost,
}

/// The host on a machine, and what was done for its agent to enrol. Instants by the log's clock.
#[derive(Clone, Debug, Default)]
pub struct KnownHost {
    pub state: Host,
    /// The commit that brought it there.
    pub commit: Option<CommitId>,
    pub issued_at: UnixMillis,
    pub enrolled_at: UnixMillis,
    /// When those that agents connect to last had it.
    heard_at: UnixMillis,
    /// When an agent last came with a used token: it lost what it had got for it.
    lost_at: UnixMillis,
    /// `None` since it came or the machine came up.
    missed: Option<Missed>,
}

/// An agent that those that agents connect to look for in vain.
#[derive(Clone, Copy, Debug)]
struct Missed {
    /// How long while another one got through, as they last said.
    away: Millis,
    /// When they said it first, and last.
    from: UnixMillis,
    until: UnixMillis,
}

impl KnownHost {
    fn apply(&mut self, event: &HostEvent, recorded: &Recorded) {
        self.state = Host::evolve(std::mem::take(&mut self.state), event);
        self.commit = Some(recorded.commit.id);
        match event {
            HostEvent::EnrolmentIssued { .. } => self.issued_at = recorded.recorded_at,
            HostEvent::Registered { .. } | HostEvent::Enrolled { .. } => {
                self.enrolled_at = recorded.recorded_at;
                (self.heard_at, self.missed) = (recorded.recorded_at, None);
            }
            HostEvent::AgentLookedFor { away: Millis::ZERO } => {
                (self.heard_at, self.missed) = (recorded.recorded_at, None);
            }
            HostEvent::AgentLookedFor { away } => {
                let until = recorded.recorded_at;
                let goes_on = self.missed.filter(|missed| until.since(missed.until) <= TOLD_APART_MAX);
                let from = goes_on.map_or(until, |missed| missed.from);
                self.missed = Some(Missed { away: *away, from, until });
            }
            HostEvent::Placed { .. }
            | HostEvent::Released { .. }
            | HostEvent::Retired
            | HostEvent::CertificateRenewed { .. }
            | HostEvent::Draining
            | HostEvent::Revoked => {}
        }
    }

    fn was_enrolled(&self) -> bool {
        self.enrolled_at > UnixMillis::EPOCH
    }

    /// The enrolment that an agent may still use.
    pub fn open(&self) -> Option<&Enrolment> {
        match &self.state {
            Host::Expected(expected) => Some(&expected.enrolment),
            Host::Active(ActiveHost { agent: Some(agent), .. }) => agent.next.as_ref(),
            Host::Active(_) | Host::Unknown | Host::Retired | Host::Revoked => None,
        }
    }
}

impl KnownMachine {
    /// What is known of its agent.
    pub fn agent(&self, now: UnixMillis) -> AgentState {
        match &self.host.state {
            Host::Unknown => AgentState::Absent,
            Host::Expected(_) => AgentState::Awaited,
            Host::Active(ActiveHost { draining: true, .. }) => AgentState::Draining,
            // What it was renewed to since is recorded at that interval.
            Host::Active(ActiveHost { agent: Some(agent), .. })
                if agent.certificate_expires_at <= self.up_at
                    || agent.certificate_expires_at.plus(RENEWAL_RECORD_INTERVAL) <= now =>
            {
                AgentState::Lapsed
            }
            Host::Active(_) => AgentState::Enrolled,
            Host::Revoked => AgentState::Revoked,
            Host::Retired => AgentState::Retired,
        }
    }

    /// Up, and an agent has enrolled there.
    fn is_agent_wanted(&self) -> bool {
        let is_on = matches!(&self.state, Machine::Live(LiveMachine { power: Power::On, .. }));
        is_on && matches!(&self.host.state, Host::Active(ActiveHost { agent: Some(_), .. }))
    }

    /// Whether an enrolment token has to lie ready for its agent.
    pub fn awaits_enrolment(&self, now: UnixMillis) -> bool {
        let stays = matches!(
            &self.state,
            Machine::Live(LiveMachine { power: Power::Starting | Power::On, draining: false, unhealthy: false, .. })
        );
        let wanted = match self.agent(now) {
            AgentState::Absent | AgentState::Awaited | AgentState::Lapsed => true,
            AgentState::Enrolled => self.host.lost_at > self.host.enrolled_at,
            AgentState::Draining | AgentState::Revoked | AgentState::Retired => false,
        };
        stays && wanted
    }
}

/// The fold.
#[derive(Default)]
pub struct Known {
    pub(crate) world: World,
    machines: BTreeMap<HostId, KnownMachine>,
    strange: BTreeSet<String>,
    /// Of every workspace that ever was.
    workspaces: HashMap<WorkspaceId, OrgId>,
    /// When something was last placed on a host or released there, a shell opened or over, somebody needed it up, or it came up, by the
    /// log's clock.
    used_at: HashMap<HostId, UnixMillis>,
    /// When somebody last said that they need a machine up with nothing awake there.
    needed_at: HashMap<HostId, UnixMillis>,
    failures: HashMap<OrgId, Failures>,
}

impl Known {
    pub fn apply(&mut self, recorded: &Recorded) {
        self.apply_shells(recorded);
        self.world.apply(recorded);
        let key = recorded.commit.stream.key();
        for event in &recorded.commit.events {
            match event {
                Event::Machine(MachineEvent::StrangeReported { instance, .. }) => {
                    self.strange.insert(instance.clone());
                }
                Event::Machine(event) => {
                    if let Ok(host) = key.parse() {
                        self.apply_machine(host, event, recorded);
                    }
                }
                Event::Host(event) => {
                    if let Ok(host) = key.parse::<HostId>() {
                        self.apply_host(host, event, recorded);
                    }
                }
                Event::Denial(DenialEvent::Recorded { attempts }) => {
                    for attempt in attempts.iter().filter(|attempt| attempt.code == USED) {
                        let host = attempt.resource.as_ref().and_then(|resource| resource.parse().ok());
                        let known = host.and_then(|host: HostId| self.machines.get_mut(&host));
                        let of = |known: &KnownMachine| known.state.terms().map(|terms| terms.org);
                        if let Some(known) = known.filter(|known| of(known) == Some(recorded.commit.stream.org())) {
                            known.host.lost_at = known.host.lost_at.max(attempt.last_at);
                        }
                    }
                }
                Event::Workspace(_) => {
                    if let Ok(workspace) = key.parse() {
                        self.workspaces.insert(workspace, recorded.commit.stream.org());
                    }
                }
                // The world folds what of them matters here.
                Event::Organization(_)
                | Event::User(_)
                | Event::Project(_)
                | Event::Runtime(_)
                | Event::DevLink(_)
                | Event::Claim(_)
                | Event::Decision(_)
                | Event::ServiceToken(_)
                | Event::RootWindow(_)
                | Event::Secrets(_)
                | Event::Shell(_)
                | Event::JobRun(_) => {}
            }
        }
    }

    /// While the world still knows where the one was that is over.
    fn apply_shells(&mut self, recorded: &Recorded) {
        for event in &recorded.commit.events {
            let host = match event {
                Event::Shell(ShellEvent::Connected { terms }) => terms.host,
                Event::Shell(ShellEvent::Disconnected { .. }) => {
                    recorded.commit.stream.key().parse().ok().and_then(|shell| self.world.host_of_shell(shell))
                }
                _ => continue,
            };
            if let Some(host) = host {
                self.used_at.insert(host, recorded.recorded_at);
            }
        }
    }

    fn apply_host(&mut self, host: HostId, event: &HostEvent, recorded: &Recorded) {
        if let Some(known) = self.machines.get_mut(&host) {
            known.host.apply(event, recorded);
            if matches!(event, HostEvent::Registered { .. } | HostEvent::Enrolled { .. }) {
                // Only now the launch has come to something.
                self.failures.remove(&recorded.commit.stream.org());
            }
        }
        match event {
            HostEvent::Registered { .. }
            | HostEvent::Placed { .. }
            | HostEvent::Released { .. }
            | HostEvent::Retired
            | HostEvent::Revoked => {
                self.used_at.insert(host, recorded.recorded_at);
            }
            // An agent that renews its certificate keeps no machine up.
            HostEvent::EnrolmentIssued { .. }
            | HostEvent::Enrolled { .. }
            | HostEvent::CertificateRenewed { .. }
            | HostEvent::AgentLookedFor { .. }
            | HostEvent::Draining => {}
        }
    }

    fn apply_machine(&mut self, host: HostId, event: &MachineEvent, recorded: &Recorded) {
        let (org, at) = (recorded.commit.stream.org(), recorded.recorded_at);
        let known = self.machines.entry(host).or_insert_with(|| KnownMachine {
            state: Machine::default(),
            requested: recorded.commit.id,
            commit: recorded.commit.id,
            correlation: recorded.commit.correlation,
            requested_at: at,
            up_at: at,
            was_up: false,
            starts: Starts::default(),
            stopped_as_unhealthy_at: None,
            drained_at: None,
            host: KnownHost::default(),
        });
        let never_up = matches!(known.state, Machine::Requested { .. })
            || matches!(&known.state, Machine::Live(live) if live.power == Power::Starting);
        known.state = Machine::evolve(std::mem::take(&mut known.state), event);
        if let MachineEvent::Used { .. } = event {
            // It stands as it stood: nothing is due to this.
            self.used_at.insert(host, at);
            self.needed_at.insert(host, at);
            return;
        }
        known.commit = recorded.commit.id;
        known.correlation = recorded.commit.correlation;
        match event {
            MachineEvent::Started => {
                (known.up_at, known.was_up) = (at, true);
                known.host.missed = None;
                (known.starts.failures, known.starts.stopped_again) = Default::default();
                self.used_at.insert(host, at);
            }
            MachineEvent::Launched { .. } | MachineEvent::StartRequested { .. } => known.starts.asked_at = at,
            MachineEvent::StartFailed { why, .. } => {
                known.starts.failures.add(at);
                if *why == StartFailure::StoppedAgain {
                    known.starts.stopped_again.add(at);
                }
            }
            MachineEvent::StopRequested { cause: MachineCause::Unhealthy, .. } => {
                known.stopped_as_unhealthy_at = Some(at);
            }
            MachineEvent::Draining { .. } => known.drained_at = Some(at),
            // Nobody ever enrolled on it: as good as a launch that failed.
            MachineEvent::Unhealthy { .. } if !known.host.was_enrolled() => {
                self.failures.entry(org).or_default().add(at);
            }
            MachineEvent::LaunchFailed { .. } => self.failures.entry(org).or_default().add(at),
            MachineEvent::Terminated { .. } if never_up => self.failures.entry(org).or_default().add(at),
            MachineEvent::Requested { .. }
            | MachineEvent::StopRequested { .. }
            | MachineEvent::Stopped { .. }
            | MachineEvent::ChecksFailed
            | MachineEvent::ChecksPassed
            | MachineEvent::Unhealthy { .. }
            | MachineEvent::TerminationRequested { .. }
            | MachineEvent::Terminated { .. }
            | MachineEvent::Used { .. }
            | MachineEvent::StrangeReported { .. } => {}
        }
    }

    pub fn position(&self) -> Position {
        self.world.position()
    }

    pub fn machines(&self) -> &BTreeMap<HostId, KnownMachine> {
        &self.machines
    }

    pub fn is_reported_strange(&self, instance: &str) -> bool {
        self.strange.contains(instance)
    }

    /// Organizations that have workspaces or machines.
    pub fn organizations(&self) -> BTreeSet<OrgId> {
        let of_machines = self.machines.values().filter_map(|known| known.state.terms().map(|terms| terms.org));
        self.active_workspaces().map(|(_, org)| org).chain(of_machines).collect()
    }

    fn active_workspaces(&self) -> impl Iterator<Item = (WorkspaceId, OrgId)> {
        let active = |(workspace, _): &(&WorkspaceId, &OrgId)| self.world.workspace(**workspace).is_some();
        self.workspaces.iter().filter(active).map(|(workspace, org)| (*workspace, *org))
    }

    /// What the planner is told of one organization.
    pub fn fleet_of(&self, org: OrgId, now: UnixMillis) -> OrganizationFleet {
        let shells = self.world.shells_open();
        let of_org = |known: &KnownMachine| known.state.terms().is_some_and(|terms| terms.org == org);
        let machines = self.machines.iter().filter(|(_, known)| of_org(known));
        OrganizationFleet {
            org,
            machines: machines.filter_map(|(host, known)| self.view(*host, known, &shells, now)).collect(),
            demands: self.demands(org),
            workspaces: self.active_workspaces().filter(|(_, of)| *of == org).count(),
            requested_ever: self.machines.values().filter(|known| of_org(known)).count(),
            failures: self.failures.get(&org).copied().unwrap_or_default(),
            agents_wanted: self.machines.values().filter(|known| known.is_agent_wanted()).count(),
        }
    }

    fn view(
        &self,
        host: HostId,
        known: &KnownMachine,
        shells: &HashMap<HostId, usize>,
        now: UnixMillis,
    ) -> Option<MachineView> {
        let terms = known.state.terms()?;
        let placed: BTreeMap<WorkspaceId, Capacity> = self.world.placement().placed(host).unwrap_or_default();
        let awake_here =
            |workspace: &WorkspaceId| self.world.runtime(*workspace).is_some_and(|known| is_on(&known.state, host));
        let stale = placed.keys().copied().filter(|workspace| !awake_here(workspace)).collect();
        Some(MachineView {
            host,
            org: terms.org,
            purpose: terms.purpose,
            capacity: terms.capacity,
            state: known.state.clone(),
            agent: known.agent(now),
            requested_at: known.requested_at,
            up_at: known.up_at,
            away: known.host.missed.map_or(Millis::ZERO, |missed| missed.away),
            missed_for: known.host.missed.map_or(Millis::ZERO, |missed| missed.until.since(missed.from)),
            heard_at: known.host.heard_at,
            enrolled_at: known.host.enrolled_at,
            token: if known.awaits_enrolment(now) { Token::Needed { ready_since: None } } else { Token::Unneeded },
            starts: known.starts,
            impaired_since: None,
            stopped_as_unhealthy_at: known.stopped_as_unhealthy_at,
            drained_at: known.drained_at,
            placed,
            stale,
            open_shells: shells.get(&host).copied().unwrap_or_default(),
            used_at: self.used_at.get(&host).copied().unwrap_or(known.requested_at),
            needed_until: self.needed_at.get(&host).map_or(UnixMillis::EPOCH, |at| at.plus(MACHINE_USE_LASTS)),
        })
    }

    /// Wakes that no host has taken yet, and those whose host is a machine that may be off.
    fn demands(&self, org: OrgId) -> Vec<Demand> {
        let waiting = |known: &KnownRuntime| {
            let ours = |host: HostId| self.machines.contains_key(&host);
            matches!(known.state, Runtime::Waking { host, .. } if host.is_none_or(ours))
        };
        let runtimes = self.world.runtimes().filter(|(_, known)| known.org == org && waiting(known));
        runtimes
            .filter_map(|(workspace, known)| {
                let active = self.world.workspace(workspace)?;
                let before = self.world.placement().last_host_of(workspace);
                let taken_by = known.state.host();
                Some(Demand { workspace, org: known.org, needs: needs(active), before, taken_by })
            })
            .collect()
    }
}

/// Whether something of the runtime may run on this host.
fn is_on(state: &Runtime, host: HostId) -> bool {
    match state {
        Runtime::Waking { host: None, .. } => true,
        Runtime::Waking { .. } | Runtime::Ready(_) | Runtime::Sleeping { .. } => state.host() == Some(host),
        Runtime::NeverWoken | Runtime::Asleep { .. } | Runtime::Failed { .. } => false,
    }
}
