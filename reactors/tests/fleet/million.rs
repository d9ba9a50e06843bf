//! A million placements while machines fail, stop and are replaced, and while the planner is told nonsense. Whether a host
//! ever had two organizations is judged from the events alone.
//!
//! Not here: the real executor on a real log, which places fewer in the same time (`logged`).

use std::collections::{BTreeMap, HashMap};

use envforge_domain::aggregate::Aggregate;
use envforge_domain::claim::{Claim, ClaimCommand};
use envforge_domain::commit::{Actor, Commit, Component, StreamId, Surface};
use envforge_domain::event::Event;
use envforge_domain::failures::Failures;
use envforge_domain::host::{Host, HostCommand};
use envforge_domain::ids::{CommandId, CommitId, CorrelationId, HostId, OrgId, WorkspaceId};
use envforge_domain::machine::{Machine, MachineCommand, MachineEnd, MachineEvent, Power, StartFailure};
use envforge_domain::runtime::{Epoch, RuntimeEvent};
use envforge_domain::time::{Millis, UnixMillis};
use envforge_eventlog::schema;
use envforge_reactors::fleet::{Demand, FleetPolicy, OrganizationFleet, PlanRefusal, Step, plan};

use super::checker::Checker;
use super::*;

const PLACEMENTS: usize = 1_000_000;
const ORGANIZATIONS: u128 = 4;
const WORKSPACES_EACH: u128 = 24;

/// Of the commits, one in as many goes through the log's own encoding on its way to the checker. All of them would take minutes.
const ENCODED_EACH: u64 = 16;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wake {
    Asleep,
    Waiting,
    On(HostId),
}

/// Everything that is not under test: a provider, agents, people, and whatever goes wrong.
struct Site {
    seed: u64,
    now: UnixMillis,
    policy: FleetPolicy,
    machines: BTreeMap<HostId, Machine>,
    hosts: BTreeMap<HostId, Host>,
    claims: HashMap<String, Claim>,
    used_at: HashMap<HostId, UnixMillis>,
    start_failures: HashMap<HostId, Failures>,
    wakes: BTreeMap<WorkspaceId, (OrgId, Wake)>,
    requested: HashMap<OrgId, usize>,
    instances: u64,
    stale_plan: Vec<Step>,
    checker: Checker,
    commits: u64,
    counts: HashMap<&'static str, u64>,
}

impl Site {
    fn new(seed: u64) -> Self {
        let mut wakes = BTreeMap::new();
        let mut checker = Checker::default();
        for number in 0..ORGANIZATIONS * WORKSPACES_EACH {
            let (id, of) = (workspace(1_000 + number), org(1 + number % ORGANIZATIONS));
            wakes.insert(id, (of, Wake::Asleep));
            let seen = RuntimeEvent::Slept { epoch: Epoch(0) };
            checker.read(of, &id.to_string(), &Event::Runtime(seen));
        }
        let policy = FleetPolicy {
            warm: 1,
            machines_max: 12,
            grace: Millis::from_secs(20),
            boot_deadline: Millis::from_secs(60),
            agent_deadline: Millis::from_minutes(15),
            start_patience: Millis::from_minutes(2),
            ..policy()
        };
        Self {
            // Of this generator zero would be followed by nothing but zeros.
            seed: seed.max(1),
            now: NOON,
            policy,
            machines: BTreeMap::new(),
            hosts: BTreeMap::new(),
            claims: HashMap::new(),
            used_at: HashMap::new(),
            start_failures: HashMap::new(),
            wakes,
            requested: HashMap::new(),
            instances: 0,
            stale_plan: Vec::new(),
            checker,
            commits: 0,
            counts: HashMap::new(),
        }
    }

    fn next(&mut self, below: u64) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed % below
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// What the checker reads: events of one commit as the log would have them.
    fn tell(&mut self, stream: &StreamId, events: &[Event]) {
        if events.is_empty() {
            return;
        }
        self.commits += 1;
        let id = Uuid::from_u128(u128::from(self.commits));
        let encoded = self.commits.is_multiple_of(ENCODED_EACH).then(|| {
            let commit = Commit {
                id: CommitId::from_uuid(id),
                command: CommandId::from_uuid(id),
                request_digest: None,
                stream: stream.clone(),
                actor: Actor::System(Component::Fleet),
                surface: Surface::Agent,
                correlation: CorrelationId::from_uuid(id),
                causation: None,
                decided_at: self.now,
                events: events.to_vec(),
            };
            schema::decode(&schema::encode(&commit).unwrap()).unwrap()
        });
        let (stream, events) = match &encoded {
            Some(commit) => (&commit.stream, commit.events.as_slice()),
            None => (stream, events),
        };
        for event in events {
            self.checker.read(stream.org(), stream.key(), event);
        }
    }

    fn machine(&mut self, of: OrgId, host: HostId, command: &MachineCommand) {
        let state = self.machines.get(&host).cloned().unwrap_or_default();
        let Ok(events) = Machine::decide(&state, command) else { return self.count("machine refused") };
        self.tell(&StreamId::machine(of, host), &events.iter().cloned().map(Event::Machine).collect::<Vec<_>>());
        for event in events {
            if matches!(event, MachineEvent::Requested { .. }) {
                *self.requested.entry(of).or_default() += 1;
            }
            let state = self.machines.remove(&host).unwrap_or_default();
            self.machines.insert(host, Machine::evolve(state, &event));
            self.used_at.insert(host, self.now);
        }
    }

    /// `of`: whose stream it is written to, by the permit.
    fn host(&mut self, of: OrgId, host: HostId, command: &HostCommand) -> bool {
        let state = self.hosts.entry(host).or_default();
        let Ok(events) = Host::decide(state, command) else {
            self.count("host refused");
            return false;
        };
        self.tell(&StreamId::host(of, host), &events.iter().cloned().map(Event::Host).collect::<Vec<_>>());
        for event in events {
            let state = self.hosts.remove(&host).unwrap_or_default();
            self.hosts.insert(host, Host::evolve(state, &event));
            self.used_at.insert(host, self.now);
        }
        true
    }

    /// The agent of an instance says whose it is; one in a hundred lies, and one in twenty never comes.
    fn enrol(&mut self, host: HostId) {
        if host.as_uuid().as_u128().is_multiple_of(20) {
            return;
        }
        let Some(Machine::Live(live)) = self.machines.get(&host).cloned() else { return };
        let lies = self.next(100) == 0;
        let of = if lies { org(1 + u128::from(self.next(4))) } else { live.terms.org };
        let command = HostCommand::Register {
            host,
            org: of,
            provider: PROVIDER.to_owned(),
            machine: live.instance.clone(),
            capacity: live.terms.capacity,
        };
        let take =
            ClaimCommand::Take { holder: of.to_string(), for_action: envforge_domain::access::Action::HostRegister };
        // As one batch: both or none. The claim was taken for the organization when the launch was recorded.
        let claim = self.claims.entry(live.instance).or_default();
        if Claim::decide(claim, &take).is_err() {
            return self.count("enrolment refused");
        }
        self.host(of, host, &command);
    }

    fn provider(&mut self) {
        for host in self.machines.keys().copied().collect::<Vec<_>>() {
            let Some(terms) = self.machines[&host].terms().cloned() else { continue };
            let of = terms.org;
            let luck = self.next(100);
            match self.machines[&host].clone() {
                Machine::Requested { .. } if luck < 5 => {
                    self.count("launch failed");
                    self.machine(of, host, &MachineCommand::ReportLaunchFailed { reason: "no capacity".to_owned() });
                }
                Machine::Requested { .. } if luck < 8 => {
                    // An instance that says it is another organization's.
                    let org = org(1 + u128::from(self.next(4)));
                    let lie = MachineCommand::ReportLaunched { instance: "i-lie".to_owned(), org, host };
                    if org != of {
                        self.machine(of, host, &lie);
                    }
                }
                Machine::Requested { .. } => {
                    self.instances += 1;
                    let instance = format!("i-{}", self.instances);
                    let taken = Claim::Held { holder: of.to_string() };
                    self.claims.insert(instance.clone(), taken);
                    self.machine(of, host, &MachineCommand::ReportLaunched { instance, org: of, host });
                }
                Machine::Live(_) if luck < 1 => {
                    self.count("vanished");
                    self.machine(of, host, &MachineCommand::ReportTerminated { end: MachineEnd::Vanished });
                    self.fall(host);
                }
                Machine::Live(live) if luck < 2 => {
                    self.count("unhealthy");
                    let reason = "impaired".to_owned();
                    self.machine(of, live.terms.host, &MachineCommand::ReportUnhealthy { reason });
                    self.fall(host);
                }
                Machine::Live(live) => match live.power {
                    Power::Starting if luck < 6 => {
                        self.count("start failed");
                        let (why, reason) = (StartFailure::StoppedAgain, "it stopped again".to_owned());
                        self.machine(of, host, &MachineCommand::ReportStartFailed { why, reason });
                        self.start_failures.entry(host).or_default().add(self.now);
                    }
                    Power::Starting => {
                        self.start_failures.remove(&host);
                        self.machine(of, host, &MachineCommand::ReportStarted);
                    }
                    Power::Stopping(_) => {
                        self.count("stopped");
                        self.machine(of, host, &MachineCommand::ReportStopped);
                        self.fall(host);
                    }
                    Power::Ending => {
                        self.count("terminated");
                        self.machine(of, host, &MachineCommand::ReportTerminated { end: MachineEnd::Terminated });
                    }
                    // Somebody wants it emptied.
                    Power::On if luck < 3 => {
                        if self.host(of, host, &HostCommand::Drain) {
                            self.count("drained by people");
                        }
                    }
                    Power::On => self.enrol(host),
                    Power::Off(_) => {}
                },
                Machine::Over { .. } | Machine::Unknown | Machine::Strange => {}
            }
        }
        // Machines that are over and hosts that are retired need not be looked at again.
        let over: Vec<HostId> = self.machines.keys().copied().filter(|host| self.is_past(*host)).collect();
        for host in over {
            self.machines.remove(&host);
            self.hosts.remove(&host);
        }
    }

    fn is_past(&self, host: HostId) -> bool {
        matches!(self.machines[&host], Machine::Over { .. })
            && matches!(self.hosts.get(&host), None | Some(Host::Unknown | Host::Retired))
    }

    /// Nothing is awake on a machine that went away.
    fn fall(&mut self, host: HostId) {
        for (_, wake) in self.wakes.values_mut() {
            if *wake == Wake::On(host) {
                *wake = Wake::Asleep;
            }
        }
    }

    fn people(&mut self) {
        for id in self.wakes.keys().copied().collect::<Vec<_>>() {
            let (of, wake) = self.wakes[&id];
            match wake {
                Wake::Asleep if self.next(2) == 0 => {
                    self.wakes.insert(id, (of, Wake::Waiting));
                }
                Wake::On(host) if self.next(2) == 0 => {
                    self.host(of, host, &HostCommand::Release { workspace: id });
                    self.wakes.insert(id, (of, Wake::Asleep));
                }
                Wake::Asleep | Wake::Waiting | Wake::On(_) => {}
            }
        }
    }

    /// What the planner is told; now and then everybody's machines and wakes as if they were one organization's.
    fn told(&mut self, of: OrgId) -> OrganizationFleet {
        let mixed = self.next(20) == 0;
        let ours = |org: OrgId| mixed || org == of;
        let views = self.machines.iter().filter_map(|(host, state)| {
            let terms = state.terms()?;
            let active = match self.hosts.get(host) {
                Some(Host::Active(active)) => Some(active),
                _ => None,
            };
            let placed = active.map(|active| active.placed.clone()).unwrap_or_default();
            let awake = |id: &WorkspaceId| self.wakes[id].1 == Wake::On(*host);
            Some(MachineView {
                host: *host,
                org: if mixed { of } else { terms.org },
                purpose: terms.purpose,
                capacity: terms.capacity,
                state: state.clone(),
                agent: match self.hosts.get(host) {
                    None | Some(Host::Unknown) => AgentState::Absent,
                    Some(Host::Expected(_)) => AgentState::Awaited,
                    Some(Host::Active(active)) if active.draining => AgentState::Draining,
                    Some(Host::Active(_)) => AgentState::Enrolled,
                    Some(Host::Retired) => AgentState::Retired,
                    Some(Host::Revoked) => AgentState::Revoked,
                },
                requested_at: NOON,
                up_at: self.used_at[host],
                away: Millis::ZERO,
                missed_for: Millis::ZERO,
                heard_at: self.used_at[host],
                enrolled_at: self.used_at[host],
                token: Default::default(),
                starts: Starts {
                    asked_at: self.used_at[host],
                    failures: self.start_failures.get(host).copied().unwrap_or_default(),
                    stopped_again: self.start_failures.get(host).copied().unwrap_or_default(),
                },
                impaired_since: None,
                stopped_as_unhealthy_at: None,
                drained_at: None,
                open_shells: 0,
                stale: placed.keys().copied().filter(|id| !awake(id)).collect(),
                placed,
                used_at: self.used_at[host],
                needed_until: UnixMillis::EPOCH,
            })
        });
        let machines = views.filter(|view| ours(view.org)).collect();
        let waiting = self.wakes.iter().filter(|(_, (org, wake))| ours(*org) && *wake == Wake::Waiting);
        let sized = waiting.map(|(id, (org, _))| {
            let size = 200 + u32::try_from(id.as_uuid().as_u128() % 7).unwrap() * 300;
            Demand { workspace: *id, org: *org, needs: capacity(size, size), before: None, taken_by: None }
        });
        OrganizationFleet {
            org: of,
            machines,
            demands: sized.collect(),
            workspaces: 1,
            requested_ever: self.requested.get(&of).copied().unwrap_or_default(),
            failures: Failures::default(),
            agents_wanted: 9,
        }
    }

    fn plan(&mut self, of: OrgId) {
        let fleet = self.told(of);
        let planned = plan(&fleet, &self.policy, self.now);
        let crossed = |refusal: &&PlanRefusal| matches!(refusal, PlanRefusal::CrossOrganization { .. });
        if planned.refusals.iter().any(|refusal| crossed(&refusal)) {
            self.count("planner refused another organization's");
        }
        // Cut off by a crash, carried out twice, or long after it was made.
        let luck = self.next(20);
        let upto = if luck == 0 { planned.steps.len() / 2 } else { planned.steps.len() };
        for step in &planned.steps[..upto] {
            self.carry_out(of, step);
            if luck == 1 {
                self.carry_out(of, step);
            }
        }
        if luck == 2 {
            for step in std::mem::replace(&mut self.stale_plan, planned.steps) {
                // By now it may be the plan of another organization: the executor's permit is for this one.
                self.carry_out(of, &step);
            }
        }
    }

    fn carry_out(&mut self, of: OrgId, step: &Step) {
        match step {
            Step::Request { terms, cause } => {
                // A stream is named by the permit's organization, its terms by the plan: the command's own check.
                if terms.org == of {
                    self.machine(of, terms.host, &MachineCommand::Request { terms: terms.clone(), cause: *cause });
                }
            }
            Step::Start { host, cause } => self.command(of, *host, &MachineCommand::Start { cause: *cause }),
            Step::Stop { host, mode, cause } => {
                self.command(of, *host, &MachineCommand::Stop { mode: *mode, cause: *cause });
            }
            Step::Drain { host, cause } => self.command(of, *host, &MachineCommand::Drain { cause: *cause }),
            Step::Terminate { host, cause } => {
                let placed = match self.hosts.get(host) {
                    Some(Host::Active(active)) => active.placed.len(),
                    _ => 0,
                };
                self.command(of, *host, &MachineCommand::Terminate { cause: *cause, placed });
            }
            Step::Place { workspace, host, needs } => {
                let (owner, wake) = self.wakes[workspace];
                if wake != Wake::Waiting {
                    return;
                }
                let place = HostCommand::Place { workspace: *workspace, org: owner, needs: *needs };
                if self.host(owner, *host, &place) {
                    let chosen = RuntimeEvent::HostChosen { epoch: Epoch(1), host: *host };
                    self.tell(&StreamId::runtime(owner, *workspace), &[Event::Runtime(chosen)]);
                    self.wakes.insert(*workspace, (owner, Wake::On(*host)));
                }
            }
            Step::Release { workspace, host } => {
                self.host(of, *host, &HostCommand::Release { workspace: *workspace });
            }
            Step::GiveUp { host, .. } => {
                self.count("given up");
                let reason = "nobody enrolled".to_owned();
                self.command(of, *host, &MachineCommand::ReportUnhealthy { reason });
            }
            Step::Retire { host } => {
                self.host(of, *host, &HostCommand::Retire);
            }
            // Nobody here looks at checks, and no wake is taken before its host is up.
            Step::GiveUpChecks { .. } | Step::PlaceAnew { .. } => self.count("unexpected"),
        }
    }

    /// Only on a stream of the permit's organization, as the log has it.
    fn command(&mut self, of: OrgId, host: HostId, command: &MachineCommand) {
        let owner = self.machines.get(&host).and_then(|machine| machine.terms().map(|terms| terms.org));
        if owner == Some(of) {
            self.machine(of, host, command);
        }
    }
}

#[test]
fn a_million_placements_with_failures_never_put_two_organizations_on_one_machine() {
    let mut site = Site::new(seed());
    while site.checker.placements < PLACEMENTS {
        site.now = site.now.plus(Millis::from_secs(5));
        site.people();
        site.provider();
        for number in 1..=ORGANIZATIONS {
            site.plan(org(number));
        }
    }
    let counts = &site.counts;
    println!("{} placements on {} hosts: {counts:?}", site.checker.placements, site.checker.organizations.len());
    for (what, at_least) in [
        ("vanished", 1_000),
        ("unhealthy", 1_000),
        ("launch failed", 100),
        ("stopped", 1_000),
        ("start failed", 1_000),
        ("terminated", 1_000),
        ("given up", 100),
        ("drained by people", 100),
        ("enrolment refused", 100),
        ("planner refused another organization's", 1_000),
    ] {
        assert!(counts.get(what).is_some_and(|count| *count >= at_least), "too few of `{what}`: {counts:?}");
    }
    assert!(site.checker.most_at_once > 3, "workspaces of one organization share machines");
}
