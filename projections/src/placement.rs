//! Hosts and what is placed on them, and the planner that chooses one.
//!
//! INVARIANT: a plan never names a host of another organization (SPEC, rule 1): the planner sees the hosts of one
//! organization only, in a value that nothing but `hosts_of` makes. Not here: registering and placing (commands), which
//! the host's aggregate and the machine's claim check again.

mod standing;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use ahash::{AHashMap, AHashSet};
use envforge_domain::aggregate::Aggregate;
use envforge_domain::commit::{Position, Recorded};
use envforge_domain::event::Event;
use envforge_domain::host::{ActiveHost, Capacity, ExpectedHost, Host, HostEvent};
use envforge_domain::ids::{HostId, OrgId, ShellId, WorkspaceId};
use envforge_domain::machine::{LiveMachine, Machine, MachineEvent, MachinePurpose, Power};
use envforge_domain::runtime::RuntimeEvent;
use envforge_domain::shell::ShellEvent;
use envforge_domain::slug::HostName;
use envforge_domain::time::{Millis, UnixMillis};
use parking_lot::RwLock;

pub use standing::MachineStanding;
use standing::Starts;

/// The view.
#[derive(Default)]
pub struct PlacementView {
    inner: RwLock<Inner>,
    /// How often it changed which agents are trusted.
    trust_changes: AtomicU64,
}

/// The shell of a workspace that was opened last.
struct LastShell {
    shell: ShellId,
    host: HostId,
    /// Of the one before it.
    before: Option<HostId>,
}

#[derive(Default)]
struct Inner {
    /// Active hosts, with what is left on each.
    hosts: AHashMap<HostId, (ActiveHost, Capacity)>,
    /// Hosts as which nobody has enrolled yet.
    expected: AHashMap<HostId, ExpectedHost>,
    hosts_of: AHashMap<OrgId, AHashSet<HostId>>,
    placed_on: AHashMap<WorkspaceId, HostId>,
    /// The host that carried out the last wake or opened the last shell, but for those that are for shells alone; the workspace's data
    /// lies there also while it sleeps.
    last_on: AHashMap<WorkspaceId, HostId>,
    last_shells: AHashMap<WorkspaceId, LastShell>,
    /// Machines of a provider, by their hosts: those that are not over, and those that are until their host is retired.
    machines: AHashMap<HostId, Machine>,
    /// What became of their starts.
    starts: AHashMap<HostId, Starts>,
    /// Hosts that were retired or revoked, or whose machines are over: nothing of theirs comes back.
    gone: AHashSet<HostId>,
    /// How many that are not over each organization has.
    machines_of: AHashMap<OrgId, usize>,
    /// Hosts whose agent is missed on a machine that is up.
    missed: AHashSet<HostId>,
    /// Where the log says for the last time that a host's agent is connected.
    heard_at: AHashMap<HostId, Position>,
    /// Hosts that people named, in whatever state.
    named: AHashMap<OrgId, BTreeMap<HostId, NamedHost>>,
}

/// A host as people see it: no machine, no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedHost {
    pub name: HostName,
    pub phase: HostPhase,
    /// How many workspaces hold room on it.
    pub workspaces: usize,
    /// Until when its enrolment may be used, or when its certificate as recorded ends.
    pub until: UnixMillis,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostPhase {
    /// Nobody has enrolled as it yet.
    Expected,
    Active,
    Draining,
    Retired,
    Revoked,
}

impl HostPhase {
    pub const fn token(self) -> &'static str {
        match self {
            Self::Expected => "expected",
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Retired => "retired",
            Self::Revoked => "revoked",
        }
    }
}

/// The active hosts of one organization. Only `PlacementView::hosts_of` makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrganizationHosts {
    org: OrgId,
    hosts: Vec<HostRoom>,
}

/// A host as the planner sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct HostRoom {
    host: HostId,
    room: Capacity,
    /// What the workspace to be planned takes there already.
    own: Option<Capacity>,
    /// It ran there the last time.
    before: bool,
}

/// Where a workspace goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    On(HostId),
    /// No host of the organization has room: it needs another one.
    NeedsHost,
}

impl OrganizationHosts {
    pub fn org(&self) -> OrgId {
        self.org
    }

    /// Chooses a host for the workspace. Pure: the same hosts and needs give the same answer anywhere.
    ///
    /// It stays where it is, or goes where it ran the last time, while it fits there. Else the host with the least left
    /// afterwards (memory, which cannot be shared, before CPU), and of equal ones the oldest.
    pub fn plan(&self, needs: &Capacity) -> Placement {
        let fits = |host: &&HostRoom| needs.fits_into(&host.with_own());
        let rank = |host: &&HostRoom| {
            let left = host.with_own().minus(needs);
            (host.own.is_none(), !host.before, left.memory_mib, left.cpu_millicores, host.host)
        };
        self.hosts.iter().filter(fits).min_by_key(rank).map_or(Placement::NeedsHost, |host| Placement::On(host.host))
    }

    /// Whether the workspace fits on this very host; `None` where it is no active host of the organization.
    pub fn fits_on(&self, host: HostId, needs: &Capacity) -> Option<bool> {
        self.hosts.iter().find(|room| room.host == host).map(|room| needs.fits_into(&room.with_own()))
    }
}

impl HostRoom {
    fn with_own(&self) -> Capacity {
        self.own.map_or(self.room, |own| self.room.plus(&own))
    }
}

impl PlacementView {
    /// The active hosts of an organization that take runtimes, as a plan for this workspace needs them.
    pub fn hosts_of(&self, org: OrgId, workspace: WorkspaceId) -> OrganizationHosts {
        let inner = self.inner.read();
        let last_on = inner.last_on.get(&workspace);
        let hosts = inner
            .hosts_of
            .get(&org)
            .into_iter()
            .flatten()
            .filter_map(|host| inner.hosts.get(host))
            .filter(|(host, _)| host.org == org)
            .filter(|(host, _)| inner.takes(host) || (inner.may_run(host.host) && host.placed.contains_key(&workspace)))
            .map(|(host, room)| HostRoom {
                host: host.host,
                room: *room,
                own: host.placed.get(&workspace).copied(),
                before: last_on == Some(&host.host),
            })
            .collect();
        OrganizationHosts { org, hosts }
    }

    /// Whether an active host takes nothing new: it is being drained, or its machine is, or is not up, or is for shells.
    pub fn is_closed(&self, host: HostId) -> bool {
        let inner = self.inner.read();
        inner.hosts.get(&host).is_some_and(|(host, _)| !inner.takes(host))
    }

    /// Whether a host's machine was launched for shells. It takes no runtime.
    pub fn is_for_shells(&self, host: HostId) -> bool {
        self.inner.read().is_for_shells(host)
    }

    /// Whether the organization has a machine for shells, or has asked for one, that is not on its way out.
    pub fn has_machine_for_shells(&self, org: OrgId) -> bool {
        let inner = self.inner.read();
        inner.machines_of.contains_key(&org) && inner.machine_for_shells(org).is_some()
    }

    /// Whether the organization has machines of a provider: one with room may come.
    pub fn has_machines(&self, org: OrgId) -> bool {
        self.inner.read().machines_of.contains_key(&org)
    }

    /// Where a workspace is placed.
    pub fn host_of(&self, workspace: WorkspaceId) -> Option<HostId> {
        self.inner.read().placed_on.get(&workspace).copied()
    }

    /// The host that carried out its last wake or opened its last shell.
    pub fn last_host_of(&self, workspace: WorkspaceId) -> Option<HostId> {
        self.inner.read().last_on.get(&workspace).copied()
    }

    /// The host of the shell before this one in a workspace, whether this one is known already or not.
    pub fn host_of_shell_before(&self, workspace: WorkspaceId, shell: ShellId) -> Option<HostId> {
        let inner = self.inner.read();
        let last = inner.last_shells.get(&workspace)?;
        if last.shell == shell { last.before } else { Some(last.host) }
    }

    /// The active hosts of an organization on which something new may be placed, the oldest first.
    pub fn open_hosts_of(&self, org: OrgId) -> Vec<HostId> {
        let inner = self.inner.read();
        let hosts = inner.hosts_of.get(&org).into_iter().flatten().filter_map(|host| inner.hosts.get(host));
        let open = hosts.filter(|(host, _)| host.org == org && !host.draining && inner.stays(host.host));
        let mut open: Vec<_> = open.map(|(host, _)| host.host).collect();
        open.sort_unstable();
        open
    }

    /// Whose host it is; `None` unless it is active.
    pub fn organization_of(&self, host: HostId) -> Option<OrgId> {
        self.inner.read().hosts.get(&host).map(|(host, _)| host.org)
    }

    /// Whether a host holds room for a workspace.
    pub fn is_placed(&self, workspace: WorkspaceId, host: HostId) -> bool {
        self.inner.read().hosts.get(&host).is_some_and(|(host, _)| host.placed.contains_key(&workspace))
    }

    /// How often the answers of `enrolment_of` changed: whoever reads this before them has answers that are at least as new.
    pub fn trust_changes(&self) -> u64 {
        self.trust_changes.load(Ordering::Acquire)
    }

    /// Which enrolment an active host's agent must have a certificate of; `None` where no agent is trusted for it.
    pub fn enrolment_of(&self, org: OrgId, host: HostId) -> Option<u32> {
        let inner = self.inner.read();
        let (host, _) = inner.hosts.get(&host).filter(|(host, _)| host.org == org)?;
        host.agent.as_ref().map(|agent| agent.enrolment)
    }

    /// The machine and capacity of an active host.
    pub fn machine_of(&self, host: HostId) -> Option<(String, Capacity)> {
        self.inner.read().hosts.get(&host).map(|(host, _)| (host.machine.clone(), host.capacity))
    }

    /// The hosts of an organization that people named, by id.
    pub fn named(&self, org: OrgId) -> Vec<(HostId, NamedHost)> {
        let inner = self.inner.read();
        let named = inner.named.get(&org).into_iter().flatten();
        named.map(|(host, named)| (*host, named.clone())).collect()
    }

    /// The hosts on a provider's machines that are up and whose agents have enrolled, with where the log says for the last time that one
    /// is connected.
    pub fn agents_wanted(&self) -> Vec<(OrgId, HostId, Position)> {
        let inner = self.inner.read();
        let up = |machine: &Machine| matches!(machine, Machine::Live(LiveMachine { power: Power::On, .. }));
        let up = inner.machines.iter().filter(|(_, machine)| up(machine)).map(|(host, _)| host);
        let wanted = up.filter_map(|host| {
            let (active, _) = inner.hosts.get(host)?;
            active.agent.as_ref()?;
            Some((active.org, *host, inner.heard_at.get(host).copied().unwrap_or_default()))
        });
        wanted.collect()
    }

    /// Whether a host of the organization is trusted no more.
    pub fn is_revoked(&self, org: OrgId, host: HostId) -> bool {
        let inner = self.inner.read();
        let named = inner.named.get(&org).and_then(|hosts| hosts.get(&host));
        named.is_some_and(|named| named.phase == HostPhase::Revoked)
    }

    /// What is placed on an active host.
    pub fn placed(&self, host: HostId) -> Option<BTreeMap<WorkspaceId, Capacity>> {
        self.inner.read().hosts.get(&host).map(|(host, _)| host.placed.clone())
    }

    /// Folds one commit.
    pub fn apply(&self, recorded: &Recorded) {
        let key = recorded.commit.stream.key();
        for event in &recorded.commit.events {
            match event {
                Event::Host(event) => {
                    if let Ok(host) = key.parse() {
                        let mut inner = self.inner.write();
                        if matches!(
                            event,
                            HostEvent::Enrolled { .. } | HostEvent::AgentLookedFor { away: Millis::ZERO }
                        ) {
                            inner.heard_at.insert(host, recorded.position);
                        }
                        inner.apply(host, event);
                        drop(inner);
                        if matches!(event, HostEvent::Enrolled { .. } | HostEvent::Retired | HostEvent::Revoked) {
                            self.trust_changes.fetch_add(1, Ordering::Release);
                        }
                    }
                }
                Event::Runtime(RuntimeEvent::HostChosen { host, .. } | RuntimeEvent::EndpointsBound { host, .. }) => {
                    if let Ok(workspace) = key.parse() {
                        self.inner.write().last_on.insert(workspace, *host);
                    }
                }
                Event::Shell(ShellEvent::Connected { terms }) => {
                    let mut inner = self.inner.write();
                    if let Some(host) = terms.host {
                        let before = inner.last_shells.get(&terms.workspace).map(|last| last.host);
                        inner.last_shells.insert(terms.workspace, LastShell { shell: terms.shell, host, before });
                    }
                    if let Some(host) = terms.host.filter(|host| !inner.is_for_shells(*host)) {
                        inner.last_on.insert(terms.workspace, host);
                    }
                }
                Event::Organization(_)
                | Event::User(_)
                | Event::Project(_)
                | Event::Workspace(_)
                | Event::Runtime(_)
                | Event::DevLink(_)
                | Event::Claim(_)
                | Event::Denial(_)
                | Event::Decision(_)
                | Event::ServiceToken(_)
                | Event::RootWindow(_)
                | Event::Shell(ShellEvent::Disconnected { .. })
                | Event::JobRun(_)
                | Event::Secrets(_) => {}
                Event::Machine(event) => {
                    if let Ok(host) = key.parse() {
                        self.inner.write().apply_machine(host, event, recorded.recorded_at);
                    }
                }
            }
        }
    }
}

impl Inner {
    fn apply(&mut self, id: HostId, event: &HostEvent) {
        let before = match self.hosts.remove(&id) {
            Some((host, _)) => Host::Active(host),
            None => self.expected.remove(&id).map_or(Host::Unknown, Host::Expected),
        };
        let org_before = match &before {
            Host::Active(host) => Some(host.org),
            Host::Expected(host) => Some(host.org),
            Host::Unknown | Host::Retired | Host::Revoked => None,
        };
        match event {
            HostEvent::Registered { org, .. } => {
                self.hosts_of.entry(*org).or_default().insert(id);
            }
            HostEvent::Placed { workspace, .. } => {
                self.placed_on.insert(*workspace, id);
            }
            HostEvent::Released { workspace } => self.forget(*workspace, id),
            HostEvent::Retired | HostEvent::Revoked => {
                self.gone.insert(id);
                self.heard_at.remove(&id);
                self.missed.remove(&id);
                if matches!(self.machines.get(&id), Some(Machine::Over { .. })) {
                    self.machines.remove(&id);
                }
                if let Host::Active(host) = &before {
                    if let Some(hosts) = self.hosts_of.get_mut(&host.org) {
                        hosts.remove(&id);
                    }
                    host.placed.keys().for_each(|workspace| self.forget(*workspace, id));
                }
            }
            HostEvent::Enrolled { .. } | HostEvent::AgentLookedFor { away: Millis::ZERO } => {
                self.missed.remove(&id);
            }
            HostEvent::AgentLookedFor { .. } => {
                self.missed.insert(id);
            }
            HostEvent::EnrolmentIssued { .. } | HostEvent::CertificateRenewed { .. } | HostEvent::Draining => {}
        }
        let after = Host::evolve(before, event);
        self.name(org_before, id, &after);
        match after {
            Host::Active(host) => {
                let room = host.room();
                self.hosts.insert(id, (host, room));
            }
            Host::Expected(host) => {
                self.expected.insert(id, host);
            }
            Host::Unknown | Host::Retired | Host::Revoked => {}
        }
    }

    fn apply_machine(&mut self, id: HostId, event: &MachineEvent, at: UnixMillis) {
        self.starts.entry(id).or_default().apply(event, at);
        let before = self.machines.remove(&id).unwrap_or_default();
        let living = |machine: &Machine| match machine {
            Machine::Requested { terms } | Machine::Live(LiveMachine { terms, .. }) => Some(terms.org),
            Machine::Unknown | Machine::Over { .. } | Machine::Strange => None,
        };
        let was = living(&before);
        let after = Machine::evolve(before, event);
        let is = living(&after);
        if *event == MachineEvent::Started {
            self.missed.remove(&id);
        }
        match (was, is) {
            (None, Some(org)) => *self.machines_of.entry(org).or_default() += 1,
            (Some(org), None) => {
                if let Some(count) = self.machines_of.get_mut(&org) {
                    *count = count.saturating_sub(1);
                    if *count == 0 {
                        self.machines_of.remove(&org);
                    }
                }
            }
            (Some(_), Some(_)) | (None, None) => {}
        }
        if is.is_none() {
            self.starts.remove(&id);
            if matches!(after, Machine::Over { .. }) {
                self.gone.insert(id);
            }
        }
        // One that is over is no host on no provider's machine.
        let is_host = self.hosts.contains_key(&id) || self.expected.contains_key(&id);
        if is.is_some() || (matches!(after, Machine::Over { .. }) && is_host) {
            self.machines.insert(id, after);
        }
    }

    /// Whether a workspace may come to a host.
    fn takes(&self, host: &ActiveHost) -> bool {
        !host.draining && self.may_run(host.host) && self.stays(host.host)
    }

    /// Whether a host's machine is not on its way out, where it has one.
    fn stays(&self, host: HostId) -> bool {
        self.machines.get(&host).is_none_or(|machine| match machine {
            Machine::Requested { .. } => true,
            Machine::Live(live) => !live.draining && !live.unhealthy && live.power != Power::Ending,
            Machine::Unknown | Machine::Over { .. } | Machine::Strange => false,
        })
    }

    fn is_for_shells(&self, host: HostId) -> bool {
        let terms = self.machines.get(&host).and_then(Machine::terms);
        terms.is_some_and(|terms| terms.purpose == MachinePurpose::Shell)
    }

    /// A host on no provider's machine is up where its agent is. Nothing is led to where the agent is missed or checks fail.
    fn may_run(&self, host: HostId) -> bool {
        if self.missed.contains(&host) {
            return false;
        }
        let for_runtimes = |machine: &Machine| match machine {
            Machine::Live(live) => {
                live.power == Power::On && !live.impaired && live.terms.purpose == MachinePurpose::Runtime
            }
            Machine::Unknown | Machine::Requested { .. } | Machine::Over { .. } | Machine::Strange => false,
        };
        self.machines.get(&host).is_none_or(for_runtimes)
    }

    fn name(&mut self, org_before: Option<OrgId>, id: HostId, host: &Host) {
        let (org, named) = match host {
            Host::Expected(host) => {
                let (name, until) = (host.name.clone(), host.enrolment.expires_at);
                (host.org, NamedHost { name, phase: HostPhase::Expected, workspaces: 0, until })
            }
            Host::Active(host) => {
                let Some(agent) = &host.agent else { return };
                let phase = if host.draining { HostPhase::Draining } else { HostPhase::Active };
                let (name, until) = (agent.name.clone(), agent.certificate_expires_at);
                (host.org, NamedHost { name, phase, workspaces: host.placed.len(), until })
            }
            Host::Unknown => return,
            Host::Retired | Host::Revoked => {
                let phase = if *host == Host::Retired { HostPhase::Retired } else { HostPhase::Revoked };
                let named = org_before.and_then(|org| self.named.get_mut(&org)).and_then(|hosts| hosts.get_mut(&id));
                if let Some(named) = named {
                    (named.phase, named.workspaces) = (phase, 0);
                }
                return;
            }
        };
        self.named.entry(org).or_default().insert(id, named);
    }

    /// It may stand elsewhere already: it was placed there before it was released here.
    fn forget(&mut self, workspace: WorkspaceId, host: HostId) {
        if self.placed_on.get(&workspace) == Some(&host) {
            self.placed_on.remove(&workspace);
        }
    }
}

#[cfg(test)]
mod tests;
