//! What the fleet knows: the log folded into machines and what they are there for.
//!
//! Pure. Not here: what to do about it (`plan`, `compare`).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use envforge_domain::aggregate::Aggregate;
use envforge_domain::commit::{Position, Recorded};
use envforge_domain::event::Event;
use envforge_domain::host::{Capacity, HostEvent};
use envforge_domain::ids::{CommitId, CorrelationId, HostId, OrgId, WorkspaceId};
use envforge_domain::machine::{Machine, MachineEvent};
use envforge_domain::runtime::Runtime;
use envforge_domain::time::UnixMillis;

use super::plan::{Demand, Failures, MachineView, OrganizationFleet};
use crate::world::{KnownRuntime, World, needs};

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
}

/// The fold.
#[derive(Default)]
pub struct Known {
    pub(crate) world: World,
    machines: BTreeMap<HostId, KnownMachine>,
    strange: BTreeSet<String>,
    /// Of every workspace that ever was.
    workspaces: HashMap<WorkspaceId, OrgId>,
    /// When something was last placed on a host or released there, or it came up, by the log's clock.
    used_at: HashMap<HostId, UnixMillis>,
    /// Hosts with an agent that has registered.
    registered: BTreeSet<HostId>,
    failures: HashMap<OrgId, Failures>,
}

impl Known {
    pub fn apply(&mut self, recorded: &Recorded) {
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
                        match event {
                            HostEvent::Registered { .. } => {
                                self.registered.insert(host);
                            }
                            HostEvent::Retired | HostEvent::Revoked => {
                                self.registered.remove(&host);
                            }
                            HostEvent::Placed { .. } | HostEvent::Released { .. } => {}
                            // An agent that renews its certificate keeps no machine up.
                            HostEvent::EnrolmentIssued { .. }
                            | HostEvent::Enrolled { .. }
                            | HostEvent::CertificateRenewed { .. }
                            | HostEvent::Draining => continue,
                        }
                        self.used_at.insert(host, recorded.recorded_at);
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
                | Event::Denial(_)
                | Event::Decision(_)
                | Event::ServiceToken(_)
                | Event::RootWindow(_)
                | Event::Secrets(_)
                | Event::Shell(_)
                | Event::JobRun(_) => {}
            }
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
        });
        let never_up = matches!(known.state, Machine::Requested { .. })
            || matches!(&known.state, Machine::Live(live) if live.power == envforge_domain::machine::Power::Starting);
        known.state = Machine::evolve(std::mem::take(&mut known.state), event);
        known.commit = recorded.commit.id;
        known.correlation = recorded.commit.correlation;
        match event {
            MachineEvent::Started => {
                self.failures.remove(&org);
                self.used_at.insert(host, at);
            }
            MachineEvent::LaunchFailed { .. } => self.failures.entry(org).or_default().add(at),
            MachineEvent::Terminated { .. } if never_up => self.failures.entry(org).or_default().add(at),
            MachineEvent::Requested { .. }
            | MachineEvent::Launched { .. }
            | MachineEvent::StartRequested { .. }
            | MachineEvent::StopRequested { .. }
            | MachineEvent::Stopped { .. }
            | MachineEvent::Unhealthy { .. }
            | MachineEvent::Draining { .. }
            | MachineEvent::TerminationRequested { .. }
            | MachineEvent::Terminated { .. }
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
    pub fn fleet_of(&self, org: OrgId) -> OrganizationFleet {
        let of_org = |known: &KnownMachine| known.state.terms().is_some_and(|terms| terms.org == org);
        let machines = self.machines.iter().filter(|(_, known)| of_org(known));
        OrganizationFleet {
            org,
            machines: machines.filter_map(|(host, known)| self.view(*host, known)).collect(),
            demands: self.demands(org),
            workspaces: self.active_workspaces().filter(|(_, of)| *of == org).count(),
            requested_ever: self.machines.values().filter(|known| of_org(known)).count(),
            failures: self.failures.get(&org).copied().unwrap_or_default(),
        }
    }

    fn view(&self, host: HostId, known: &KnownMachine) -> Option<MachineView> {
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
            registered: self.registered.contains(&host),
            placed,
            stale,
            used_at: self.used_at.get(&host).copied().unwrap_or(known.requested_at),
        })
    }

    /// Wakes that no host has taken yet.
    fn demands(&self, org: OrgId) -> Vec<Demand> {
        let waiting = |known: &KnownRuntime| matches!(known.state, Runtime::Waking { host: None, .. });
        let runtimes = self.world.runtimes().filter(|(_, known)| known.org == org && waiting(known));
        runtimes
            .filter_map(|(workspace, known)| {
                let active = self.world.workspace(workspace)?;
                let before = self.world.placement().last_host_of(workspace);
                Some(Demand { workspace, org: known.org, needs: needs(active), before })
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
