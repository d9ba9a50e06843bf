//! What reactors know: the log folded into runtimes, what they are made of, hosts and deadlines.
//!
//! Pure. States of aggregates are folded by the domain's own `evolve`, so no rule lives here a second time.

use std::collections::{BTreeSet, HashMap};

use envforge_domain::access::Resource;
use envforge_domain::aggregate::Aggregate;
use envforge_domain::claim::ClaimEvent;
use envforge_domain::commit::{Position, Recorded};
use envforge_domain::dev_link::DevLinkEvent;
use envforge_domain::event::Event;
use envforge_domain::host::{Capacity, HostEvent};
use envforge_domain::ids::{
    CommitId, CorrelationId, HostId, LinkId, OrgId, ProjectId, RootWindowId, ShellId, WorkspaceId,
};
use envforge_domain::limits::ROOT_LOST_AFTER;
use envforge_domain::organization::{OrganizationEvent, OrganizationPolicy};
use envforge_domain::project::Project;
use envforge_domain::root_window::{RootOutcome, RootWindow, RootWindowCommand, RootWindowEvent};
use envforge_domain::runtime::{Runtime, RuntimeEvent};
use envforge_domain::secrets::{SecretOwner, SecretView, Secrets, SecretsEvent};
use envforge_domain::slug::OrgSlug;
use envforge_domain::time::{Millis, UnixMillis};
use envforge_domain::workspace::{ActiveWorkspace, Workspace};
use envforge_projections::placement::PlacementView;
use envforge_runtime::EndedShell;

use crate::open_shells::{OpenShell, OpenShells};

/// The fold.
#[derive(Default)]
pub struct World {
    position: Position,
    organizations: HashMap<OrgId, (OrgSlug, OrganizationPolicy)>,
    projects: HashMap<ProjectId, Project>,
    workspaces: HashMap<WorkspaceId, Workspace>,
    runtimes: HashMap<WorkspaceId, KnownRuntime>,
    runtimes_by_org: HashMap<OrgId, BTreeSet<WorkspaceId>>,
    /// By the host of their wake.
    runtimes_by_host: HashMap<HostId, BTreeSet<WorkspaceId>>,
    /// Wakes that no host has taken.
    untaken: BTreeSet<(OrgId, WorkspaceId)>,
    placement: PlacementView,
    /// Who holds a machine, by the machine's key.
    machines: HashMap<String, OrgId>,
    /// Ends of live links, soonest first.
    link_ends: BTreeSet<(UnixMillis, LinkId)>,
    links: HashMap<LinkId, (Resource, UnixMillis)>,
    /// By the id of the project or workspace whose they are.
    secrets: HashMap<Box<str>, (OrgId, Option<SecretOwner>, Secrets)>,
    no_secrets: Secrets,
    /// Whoever may have secrets, by organization; archived workspaces too.
    owners: HashMap<OrgId, BTreeSet<SecretOwner>>,
    /// Those that are not over, and those with a command that has no end yet.
    root_windows: HashMap<RootWindowId, KnownRoot>,
    shells: OpenShells,
}

/// A root window, with the host that took its command.
#[derive(Clone, Debug)]
struct KnownRoot {
    org: OrgId,
    state: RootWindow,
    host: Option<HostId>,
}

impl KnownRoot {
    fn resource(&self, window: RootWindowId) -> Option<Resource> {
        let terms = self.state.terms()?;
        let (org, project, workspace) = (self.org, terms.project, terms.workspace);
        Some(Resource::RootWindow { org, project, workspace, window })
    }
}

/// A runtime with what idle sleep and causation need.
#[derive(Clone, Debug)]
pub struct KnownRuntime {
    pub org: OrgId,
    pub state: Runtime,
    /// When the last wake or sleep was asked for, by the log's clock.
    pub asked_at: UnixMillis,
    /// By the log's clock.
    pub ready_at: Option<UnixMillis>,
    pub open_streams: u32,
    /// When somebody last asked to keep it awake, by the clock that set until when.
    pub kept_awake_at: Option<UnixMillis>,
    /// The commit that brought the current state, to which reactions are attributed.
    pub commit: CommitId,
    pub correlation: CorrelationId,
}

impl KnownRuntime {
    /// Time without reported use; `None` unless ready.
    pub fn idle_for(&self, now: UnixMillis) -> Option<Millis> {
        let Runtime::Ready(ready) = &self.state else { return None };
        let last = ready.last_activity.max(self.ready_at)?;
        Some(now.since(last))
    }
}

impl World {
    /// Folds one commit; answers the runtime's workspace where it may need a reaction.
    pub fn apply(&mut self, recorded: &Recorded) -> Option<WorkspaceId> {
        self.position = recorded.position;
        self.placement.apply(recorded);
        let org = recorded.commit.stream.org();
        let mut touched = None;
        for event in &recorded.commit.events {
            match event {
                Event::Organization(event) => self.apply_organization(org, event),
                Event::Project(event) => {
                    if let Ok(project) = recorded.commit.stream.key().parse() {
                        let state = self.projects.remove(&project).unwrap_or_default();
                        self.projects.insert(project, Project::evolve(state, event));
                        self.owners.entry(org).or_default().insert(SecretOwner::Project(project));
                    }
                }
                Event::Workspace(event) => {
                    if let Ok(workspace) = recorded.commit.stream.key().parse() {
                        let state = self.workspaces.remove(&workspace).unwrap_or_default();
                        self.workspaces.insert(workspace, Workspace::evolve(state, event));
                        let owner = self.secrets_owner(workspace);
                        self.owners.entry(org).or_default().extend(owner);
                        touched = Some(workspace);
                    }
                }
                Event::Runtime(event) => {
                    if let Ok(workspace) = recorded.commit.stream.key().parse() {
                        self.apply_runtime(workspace, event, recorded);
                        touched = Some(workspace);
                    }
                }
                Event::Host(HostEvent::Placed { workspace, .. } | HostEvent::Released { workspace }) => {
                    touched = Some(*workspace);
                }
                Event::DevLink(event) => {
                    if let Ok(link) = recorded.commit.stream.key().parse() {
                        self.apply_link(org, link, event);
                    }
                }
                Event::Claim(event) => self.apply_claim(recorded.commit.stream.key(), event),
                Event::Host(_)
                | Event::User(_)
                | Event::Denial(_)
                | Event::Decision(_)
                | Event::ServiceToken(_)
                // Those of providers are the fleet's.
                | Event::Machine(_) => {}
                Event::Secrets(event) => {
                    let key = recorded.commit.stream.key();
                    let known = self.secrets.entry(key.into()).or_insert_with(|| (org, None, Secrets::default()));
                    if let SecretsEvent::Set { owner, .. } = event {
                        known.1 = Some(*owner);
                    }
                    known.2 = Secrets::evolve(std::mem::take(&mut known.2), event);
                }
                Event::Shell(event) => {
                    if let Ok(shell) = recorded.commit.stream.key().parse() {
                        self.shells.apply_shell(org, shell, event);
                    }
                }
                Event::JobRun(event) => {
                    if let Ok(run) = recorded.commit.stream.key().parse() {
                        self.shells.apply_job(org, run, event);
                    }
                }
                Event::RootWindow(event) => {
                    if let Ok(window) = recorded.commit.stream.key().parse() {
                        self.apply_root_window(org, window, event);
                    }
                }
            }
        }
        touched
    }

    fn apply_organization(&mut self, org: OrgId, event: &OrganizationEvent) {
        match event {
            OrganizationEvent::Created { slug, .. } => {
                self.organizations.insert(org, (slug.clone(), OrganizationPolicy::default()));
            }
            OrganizationEvent::PolicyChanged { policy } => {
                if let Some(known) = self.organizations.get_mut(&org) {
                    known.1 = policy.clone();
                }
            }
            OrganizationEvent::MemberAdded { .. }
            | OrganizationEvent::MemberRemoved { .. }
            | OrganizationEvent::RoleAssigned { .. }
            | OrganizationEvent::RoleRevoked { .. }
            | OrganizationEvent::OwnerRecovered { .. }
            | OrganizationEvent::RevocationRecorded { .. }
            | OrganizationEvent::TeamCreated { .. }
            | OrganizationEvent::TeamRenamed { .. }
            | OrganizationEvent::TeamDeleted { .. }
            | OrganizationEvent::TeamMemberAdded { .. }
            | OrganizationEvent::TeamMemberRemoved { .. } => {}
        }
    }

    fn apply_runtime(&mut self, workspace: WorkspaceId, event: &RuntimeEvent, recorded: &Recorded) {
        let known = self.runtimes.entry(workspace).or_insert_with(|| KnownRuntime {
            org: recorded.commit.stream.org(),
            state: Runtime::default(),
            asked_at: recorded.recorded_at,
            ready_at: None,
            open_streams: 0,
            kept_awake_at: None,
            commit: recorded.commit.id,
            correlation: recorded.commit.correlation,
        });
        let before = known.state.host();
        known.state = Runtime::evolve(std::mem::take(&mut known.state), event);
        let after = known.state.host();
        if before != after {
            if let Some(there) = before.and_then(|host| self.runtimes_by_host.get_mut(&host)) {
                there.remove(&workspace);
            }
            if let Some(host) = after {
                self.runtimes_by_host.entry(host).or_default().insert(workspace);
            }
        }
        self.runtimes_by_org.entry(known.org).or_default().insert(workspace);
        if matches!(known.state, Runtime::Waking { host: None, .. }) {
            self.untaken.insert((known.org, workspace));
        } else {
            self.untaken.remove(&(known.org, workspace));
        }
        known.commit = recorded.commit.id;
        known.correlation = recorded.commit.correlation;
        match event {
            RuntimeEvent::Ready { .. } => {
                known.ready_at = Some(recorded.recorded_at);
                known.open_streams = 0;
                known.kept_awake_at = None;
            }
            RuntimeEvent::KeptAwake { .. } => known.kept_awake_at = Some(recorded.commit.decided_at),
            RuntimeEvent::ActivitySeen { open_streams, .. } => known.open_streams = *open_streams,
            RuntimeEvent::WakeRequested { .. } | RuntimeEvent::SleepRequested { .. } => {
                known.asked_at = recorded.recorded_at;
            }
            RuntimeEvent::WakeQueued { .. }
            | RuntimeEvent::HostChosen { .. }
            | RuntimeEvent::StageReached { .. }
            | RuntimeEvent::SecretsResolved { .. }
            | RuntimeEvent::SecretsRefused { .. }
            | RuntimeEvent::EndpointsBound { .. }
            | RuntimeEvent::LeaseRenewed { .. }
            | RuntimeEvent::KeepAwakeShortened { .. }
            | RuntimeEvent::SleepPostponed { .. }
            | RuntimeEvent::Slept { .. }
            | RuntimeEvent::Failed { .. }
            | RuntimeEvent::Lost { .. } => {}
        }
    }

    fn apply_claim(&mut self, key: &str, event: &ClaimEvent) {
        let Some(machine) = key.strip_prefix("machine_") else { return };
        match event {
            ClaimEvent::Taken { holder } => {
                if let Ok(holder) = holder.parse() {
                    self.machines.insert(machine.to_owned(), holder);
                }
            }
            ClaimEvent::Retired { .. } | ClaimEvent::Released { .. } => {}
        }
    }

    fn apply_root_window(&mut self, org: OrgId, window: RootWindowId, event: &RootWindowEvent) {
        let known = self.root_windows.remove(&window);
        let mut known = known.unwrap_or_else(|| KnownRoot { org, state: RootWindow::default(), host: None });
        known.state = RootWindow::evolve(known.state, event);
        match (event, known.state.terms()) {
            (RootWindowEvent::CommandAsked { .. }, _) => known.host = None,
            (RootWindowEvent::CommandStarted { .. }, Some(terms)) => {
                known.host = self.runtimes.get(&terms.workspace).and_then(|runtime| runtime.state.host());
            }
            _ => {}
        }
        let is_under_way = known.state.command().is_some_and(|command| command.ended.is_none());
        if is_under_way || !matches!(known.state, RootWindow::Over(_)) {
            self.root_windows.insert(window, known);
        }
    }

    /// Root windows whose closing event is due.
    pub fn root_windows_due(&self, now: UnixMillis) -> Vec<(RootWindowId, Resource)> {
        let due = |(window, known): (&RootWindowId, &KnownRoot)| {
            let expire = RootWindowCommand::Expire { now };
            RootWindow::decide(&known.state, &expire).ok().filter(|events| !events.is_empty())?;
            Some((*window, known.resource(*window)?))
        };
        self.root_windows.iter().filter_map(due).collect()
    }

    /// Root windows that are over, with a command of whose end no host will tell any more: the one that took it is none any more, or has
    /// been away for too long.
    pub fn root_commands_lost(&self, now: UnixMillis) -> Vec<(RootWindowId, Resource, RootOutcome)> {
        let lost = |(window, known): (&RootWindowId, &KnownRoot)| {
            let RootWindow::Over(over) = &known.state else { return None };
            let (started, (_, closed_at)) = (over.command.as_ref()?.started_at.is_some(), over.open?);
            let no_host = known.host.is_some_and(|host| self.placement.organization_of(host).is_none());
            let outcome = if started { RootOutcome::Lost } else { RootOutcome::NotStarted };
            let is_lost = no_host || closed_at.plus(ROOT_LOST_AFTER) <= now;
            is_lost.then(|| Some((*window, known.resource(*window)?, outcome))).flatten()
        };
        self.root_windows.iter().filter_map(lost).collect()
    }

    fn apply_link(&mut self, org: OrgId, link: LinkId, event: &DevLinkEvent) {
        match event {
            DevLinkEvent::Issued { project, workspace, expires_at, .. } => {
                let resource = Resource::Link { org, project: *project, workspace: *workspace, link };
                self.links.insert(link, (resource, *expires_at));
                self.link_ends.insert((*expires_at, link));
            }
            DevLinkEvent::Rotated { expires_at, .. } => {
                if let Some((_, end)) = self.links.get_mut(&link) {
                    self.link_ends.remove(&(*end, link));
                    *end = *expires_at;
                    self.link_ends.insert((*expires_at, link));
                }
            }
            DevLinkEvent::Expired | DevLinkEvent::Revoked { .. } => {
                if let Some((_, end)) = self.links.remove(&link) {
                    self.link_ends.remove(&(end, link));
                }
            }
            DevLinkEvent::FirstUsed { .. }
            | DevLinkEvent::SessionOpened { .. }
            | DevLinkEvent::AllowlistChanged { .. }
            | DevLinkEvent::WakeSpent { .. }
            | DevLinkEvent::AttemptsBlocked { .. }
            | DevLinkEvent::RevocationRecorded { .. } => {}
        }
    }

    pub fn position(&self) -> Position {
        self.position
    }

    pub fn runtime(&self, workspace: WorkspaceId) -> Option<&KnownRuntime> {
        self.runtimes.get(&workspace)
    }

    pub fn runtimes(&self) -> impl Iterator<Item = (WorkspaceId, &KnownRuntime)> {
        self.runtimes.iter().map(|(workspace, known)| (*workspace, known))
    }

    /// The workspaces of one organization, or of all, that have a runtime.
    pub(crate) fn runtimes_of(&self, org: Option<OrgId>) -> impl Iterator<Item = WorkspaceId> {
        let (of_one, of_all) = match org {
            Some(org) => (self.runtimes_by_org.get(&org), None),
            None => (None, Some(self.runtimes.keys())),
        };
        of_one.into_iter().flatten().chain(of_all.into_iter().flatten()).copied()
    }

    /// Those whose wake is a host's, or was placed there.
    pub(crate) fn runtimes_on(&self, host: HostId) -> BTreeSet<WorkspaceId> {
        let placed = self.placement.placed(host).unwrap_or_default().into_keys();
        self.runtimes_by_host.get(&host).into_iter().flatten().copied().chain(placed).collect()
    }

    /// Whether an organization, or any, has a wake that no host has taken.
    pub(crate) fn has_untaken(&self, org: Option<OrgId>) -> bool {
        self.untaken_of(org).next().is_some()
    }

    /// Those whose wake no host has taken.
    pub(crate) fn untaken_of(&self, org: Option<OrgId>) -> impl Iterator<Item = WorkspaceId> {
        let wanted = move |of: &OrgId| org.is_none_or(|org| org == *of);
        self.untaken.iter().filter(move |(of, _)| wanted(of)).map(|(_, workspace)| *workspace)
    }

    pub fn workspace(&self, workspace: WorkspaceId) -> Option<&ActiveWorkspace> {
        match self.workspaces.get(&workspace)? {
            Workspace::Active(active) => Some(active),
            Workspace::Unknown | Workspace::Archived { .. } => None,
        }
    }

    /// Shells and jobs that are open by the log and of which this host's word counts: it serves one organization, or all. A job is
    /// where its runtime is; where that is nowhere, and where its longest time is over, every host's word will do.
    pub(crate) fn shells_of(&self, host: HostId, org: Option<OrgId>, now: UnixMillis) -> Vec<(EndedShell, OpenShell)> {
        let runs_on = |open: &OpenShell| self.runtimes.get(&open.place.workspace).and_then(|known| known.state.host());
        let counts = |what: &EndedShell, open: &OpenShell| match what {
            EndedShell::Shell(_) => open.host == Some(host),
            EndedShell::Job(_) => runs_on(open).is_none_or(|runs_on| runs_on == host),
        };
        let all = self.shells.iter().filter(|(_, open)| org.is_none_or(|org| org == open.place.org));
        all.filter(|(what, open)| counts(what, open) || open.is_over_time(*what, now)).collect()
    }

    /// How many shells are open on each host, by the log.
    pub(crate) fn shells_open(&self) -> HashMap<HostId, usize> {
        let mut open = HashMap::new();
        for (what, shell) in self.shells.iter() {
            if let (EndedShell::Shell(_), Some(host)) = (what, shell.host) {
                *open.entry(host).or_default() += 1;
            }
        }
        open
    }

    /// Where a shell is that is open by the log.
    pub(crate) fn host_of_shell(&self, shell: ShellId) -> Option<HostId> {
        self.shells.get(EndedShell::Shell(shell)).and_then(|open| open.host)
    }

    /// All owners of secrets.
    pub fn secrets(&self) -> impl Iterator<Item = (OrgId, SecretOwner, &Secrets)> {
        self.secrets.values().filter_map(|(org, owner, known)| Some((*org, (*owner)?, known)))
    }

    /// All that may have secrets, whether the log knows of any or not.
    pub(crate) fn secret_owners(&self) -> impl Iterator<Item = (OrgId, &BTreeSet<SecretOwner>)> {
        self.owners.iter().map(|(org, owners)| (*org, owners))
    }

    /// What is known of an owner's secrets.
    pub fn secrets_of(&self, owner: SecretOwner) -> &Secrets {
        self.secrets.get(owner.to_string().as_str()).map_or(&self.no_secrets, |(_, _, known)| known)
    }

    /// A workspace as the owner of its own secrets; also an archived one.
    pub fn secrets_owner(&self, workspace: WorkspaceId) -> Option<SecretOwner> {
        match self.workspaces.get(&workspace)? {
            Workspace::Active(ActiveWorkspace { project, .. }) | Workspace::Archived { project, .. } => {
                Some(SecretOwner::Workspace { project: *project, workspace })
            }
            Workspace::Unknown => None,
        }
    }

    /// The secrets that a workspace may be given; `None` for one that is archived or unknown.
    pub fn secret_view(&self, workspace: WorkspaceId, now: UnixMillis) -> Option<SecretView<'_>> {
        let project = self.workspace(workspace)?.project;
        let of_project = self.secrets_of(SecretOwner::Project(project));
        let of_workspace = self.secrets_of(SecretOwner::Workspace { project, workspace });
        let git = match self.projects.get(&project) {
            Some(Project::Active { git, .. }) => git.as_ref(),
            Some(Project::Unknown) | None => None,
        };
        Some(SecretView { project, workspace, of_project, of_workspace, git, now })
    }

    pub fn is_archived(&self, workspace: WorkspaceId) -> bool {
        matches!(self.workspaces.get(&workspace), Some(Workspace::Archived { .. }))
    }

    pub fn project(&self, project: ProjectId) -> Option<&Project> {
        self.projects.get(&project)
    }

    pub fn organization(&self, org: OrgId) -> Option<&(OrgSlug, OrganizationPolicy)> {
        self.organizations.get(&org)
    }

    /// Hosts, and what is placed on them.
    pub fn placement(&self) -> &PlacementView {
        &self.placement
    }

    /// The organization that a machine belongs to, where one has used it.
    pub fn holder_of(&self, machine: &str) -> Option<OrgId> {
        self.machines.get(machine).copied()
    }

    /// The workspace of a runtime as a policy's resource.
    pub fn resource(&self, workspace: WorkspaceId) -> Option<Resource> {
        let org = self.runtimes.get(&workspace)?.org;
        let project = match self.workspaces.get(&workspace)? {
            Workspace::Active(active) => active.project,
            Workspace::Archived { project, .. } => *project,
            Workspace::Unknown => return None,
        };
        Some(Resource::Workspace { org, project, workspace })
    }

    /// Live links whose time is over, at most `limit`.
    pub fn links_due(&self, now: UnixMillis, limit: usize) -> Vec<(LinkId, Resource)> {
        self.link_ends
            .iter()
            .take_while(|(end, _)| *end <= now)
            .filter_map(|(_, link)| self.links.get(link).map(|(resource, _)| (*link, *resource)))
            .take(limit)
            .collect()
    }
}

/// What a workspace's services need together.
pub(crate) fn needs(workspace: &ActiveWorkspace) -> Capacity {
    workspace.manifest.services.iter().fold(Capacity::default(), |sum, service| {
        sum.plus(&Capacity { cpu_millicores: service.cpu_millicores, memory_mib: service.memory_mib })
    })
}
