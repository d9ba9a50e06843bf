//! What the gateway's request path asks, in memory: hosts, links, sessions and runtimes as the log has them now.
//!
//! One writer folds commits; readers hold a lock for the length of one map look-up. What a change takes away is gone
//! from the view before anything open is told to end, so that whoever is ended cannot come in again. Not here: deciding
//! (`access::authorize`) and any I/O.

mod members;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ahash::{AHashMap, AHashSet};
use envforge_domain::commit::{Position, Recorded};
use envforge_domain::dev_link::{DevLinkEvent, Generation, RouteFamilies};
use envforge_domain::event::Event;
use envforge_domain::host::HostEvent;
use envforge_domain::ids::{HostId, LinkId, OrgId, ProjectId, WorkspaceId};
use envforge_domain::manifest::Manifest;
use envforge_domain::organization::OrganizationEvent;
use envforge_domain::routing::RouteTable;
use envforge_domain::runtime::RuntimeEvent;
use envforge_domain::secret::TokenDigest;
use envforge_domain::slug::{HostLabel, OrgSlug, ServiceName, WorkspaceSlug};
use envforge_domain::time::{Millis, UnixMillis};
use envforge_domain::user::UserEvent;
use envforge_domain::workspace::{AccessMode, WorkspaceEvent};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use self::members::Members;
use crate::authorization::{AuthorizationView, LinkRight, LinkTerms};
use crate::closers::Closings;
use crate::runtimes::Runtimes;
use crate::session_table::SessionTable;

pub use self::members::MemberView;
pub use crate::closers::{CloseReason, Closers, OpenSocket, Over};
pub use crate::runtimes::{RuntimePhase, RuntimeView};
pub use crate::session_table::SessionView;

/// Sessions of ended links that are kept, so that their reviewers are told what became of the link instead of being
/// taken for strangers. About 400 KiB.
const SWEPT_SESSIONS_MIN: usize = 4_096;
/// How long the view knows what became of an ended link, by the log's clock; then it is as good as unknown.
const ENDED_LINKS_KEPT: Millis = Millis::from_hours(24 * 7);
/// What a view that failed, or was never current, says of its age: more than any limit.
const FAILED_AGE: Duration = Duration::from_secs(365 * 24 * 3_600);

/// One workspace host: what its label leads to.
#[derive(Debug)]
pub struct WorkspaceRoutes {
    pub org: OrgId,
    pub project: ProjectId,
    pub workspace: WorkspaceId,
    pub service: ServiceName,
    pub access_mode: AccessMode,
    pub archived: bool,
    pub routes: RouteTable,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkPhase {
    Active,
    /// By its verb, or for as long as whoever issued it may not issue it any more.
    Revoked,
    Expired,
}

/// A link as of now. Replaced as a whole by each change.
#[derive(Debug, Clone)]
pub struct LinkView {
    pub link: LinkId,
    pub org: OrgId,
    pub project: ProjectId,
    pub workspace: WorkspaceId,
    pub service: ServiceName,
    /// What the link allows and the organization's policy too.
    pub families: RouteFamilies,
    pub generation: Generation,
    /// When this generation was issued: a claim of its share token.
    pub issued_at: UnixMillis,
    /// The link's own end, that of its issuer's right to issue it, or that of the longest link that the organization
    /// allows, whichever comes first.
    pub expires_at: UnixMillis,
    pub phase: LinkPhase,
    pub label: String,
    pub org_name: String,
    pub workspace_name: String,
    pub host: HostLabel,
    /// Wakes it may still cause; `None` for no limit.
    pub wakes_left: Option<u32>,
    pub closers: Closers,
}

/// How current the view is.
#[derive(Debug, Clone, Copy)]
pub struct Freshness {
    /// When the view last had everything that the log had, and this process was last known as one that is waited for, whichever
    /// is longer ago; long ago before the first time, and where the view has failed.
    pub last_heard: Instant,
    pub position: Position,
    /// The log is not the one that was followed: the view stays closed for good.
    pub failed: bool,
}

/// What the view's freshness is made of.
#[derive(Debug, Clone, Copy)]
struct Signs {
    /// When the view last had everything that the log had.
    log: Instant,
    /// When revocations were last known to wait for this process; `None` where nobody asks: nothing runs elsewhere.
    waited_for: Option<Instant>,
    position: Position,
    failed: bool,
}

/// The read model.
pub struct GatewayView {
    labels: RwLock<AHashMap<HostLabel, Arc<WorkspaceRoutes>>>,
    links: RwLock<AHashMap<LinkId, Arc<LinkView>>>,
    sessions: SessionTable,
    members: Members,
    runtimes: Runtimes,
    signs: RwLock<Signs>,
    closings: Arc<Closings>,
    fold: Mutex<Fold>,
}

/// What only the writer needs.
#[derive(Default)]
struct Fold {
    organizations: AHashMap<OrgId, (OrgSlug, String)>,
    workspaces: AHashMap<WorkspaceId, KnownWorkspace>,
    /// Links that have not ended.
    open_links: AHashMap<LinkId, OpenLink>,
    /// Links that have, oldest first.
    ended_links: VecDeque<(UnixMillis, LinkId)>,
    /// Sessions in the table that do not count any more.
    ended_sessions: usize,
    /// Where each runtime is ready.
    ready_on: AHashMap<WorkspaceId, HostId>,
    /// Hosts that are trusted no more, for ever.
    revoked_hosts: AHashSet<HostId>,
}

struct KnownWorkspace {
    org: OrgId,
    project: ProjectId,
    slug: WorkspaceSlug,
    manifest: Manifest,
    access_mode: AccessMode,
    archived: bool,
    links: Vec<LinkId>,
}

struct OpenLink {
    workspace: WorkspaceId,
    generation: Generation,
    /// Of this generation.
    sessions: usize,
    /// What it says itself, whatever becomes of its issuer and of the organization's policy.
    own_end: UnixMillis,
    own_families: RouteFamilies,
    terms: LinkTerms,
}

impl OpenLink {
    fn phase(&self) -> LinkPhase {
        if self.terms.issuer_until.is_some() { LinkPhase::Active } else { LinkPhase::Revoked }
    }

    fn ends_at(&self) -> UnixMillis {
        self.terms.until().map_or(self.own_end, |until| until.min(self.own_end))
    }

    fn families(&self) -> RouteFamilies {
        self.own_families.intersection(self.terms.families)
    }
}

fn terms_of(rights: &[LinkRight], link: LinkId) -> Option<LinkTerms> {
    rights.iter().rev().find(|right| right.link == link).map(|right| right.terms)
}

fn long_ago() -> Instant {
    let now = Instant::now();
    now.checked_sub(FAILED_AGE).unwrap_or(now)
}

impl Default for GatewayView {
    fn default() -> Self {
        let closings = Arc::<Closings>::default();
        Self {
            labels: RwLock::default(),
            links: RwLock::default(),
            sessions: SessionTable::default(),
            members: Members::new(Arc::clone(&closings)),
            runtimes: Runtimes::default(),
            // Nothing is known yet, so nothing is fresh.
            signs: RwLock::new(Signs { log: long_ago(), waited_for: None, position: Position::START, failed: false }),
            closings,
            fold: Mutex::default(),
        }
    }
}

impl GatewayView {
    pub fn workspace_by_label(&self, label: &HostLabel) -> Option<Arc<WorkspaceRoutes>> {
        self.labels.read().get(label).cloned()
    }

    /// A link; one that ended is known for some days more.
    pub fn link(&self, link: LinkId) -> Option<Arc<LinkView>> {
        self.links.read().get(&link).cloned()
    }

    /// The session of a cookie. It may belong to a link or generation that has ended since: hold it against `link`.
    pub fn session(&self, cookie: &TokenDigest) -> Option<SessionView> {
        self.sessions.get(cookie)
    }

    /// The member's session of a cookie, on whatever host.
    pub fn member(&self, cookie: &TokenDigest) -> Option<Arc<MemberView>> {
        self.members.get(cookie)
    }

    /// What a workspace is called.
    pub fn workspace_name(&self, workspace: WorkspaceId) -> Option<String> {
        self.fold.lock().workspaces.get(&workspace).map(|known| known.slug.to_string())
    }

    /// Whether a workspace was archived.
    pub fn is_archived(&self, workspace: WorkspaceId) -> bool {
        self.fold.lock().workspaces.get(&workspace).is_some_and(|known| known.archived)
    }

    /// What is over with these commits, which are folded; nothing where they are too old to know.
    pub fn over_with(&self, commits: &[Position]) -> Over {
        self.closings.over_with(commits)
    }

    /// Whether none of these commits is too old to know what it closed.
    pub(crate) fn remembers(&self, commits: &[Position]) -> bool {
        self.closings.remembers(commits)
    }

    /// How many sockets of this process these commits have closed, once all that they told are closed; `None` until then, and
    /// where one of them is too old to know. For commits that are folded.
    pub fn sockets_closed_by(&self, commits: &[Position]) -> Option<u32> {
        self.closings.closed_by(commits)
    }

    /// Members' sessions held.
    pub fn member_count(&self) -> usize {
        self.members.len()
    }

    /// A runtime's changes. Waiting on it costs nothing while nothing changes.
    pub fn runtime(&self, workspace: WorkspaceId) -> watch::Receiver<RuntimeView> {
        self.runtimes.subscribe(workspace)
    }

    /// A runtime as it is now, for the length of `look`.
    pub fn look_at_runtime<T>(&self, workspace: WorkspaceId, look: impl FnOnce(&RuntimeView) -> T) -> T {
        self.runtimes.look(workspace, look)
    }

    pub fn freshness(&self) -> Freshness {
        let Signs { log, waited_for, position, failed } = *self.signs.read();
        Freshness { last_heard: waited_for.map_or(log, |waited_for| waited_for.min(log)), position, failed }
    }

    /// When the view last had everything that the log had, whoever else has to know of this process.
    pub(crate) fn log_last_heard(&self) -> Instant {
        self.signs.read().log
    }

    /// From now on the view is fresh only where revocations are known to wait for this process; it is not yet.
    pub fn must_be_waited_for(&self) {
        self.signs.write().waited_for.get_or_insert_with(long_ago);
    }

    /// Revocations waited for this process at that moment.
    pub(crate) fn was_waited_for(&self, at: Instant) {
        let mut signs = self.signs.write();
        signs.waited_for = Some(signs.waited_for.map_or(at, |before| before.max(at)));
    }

    /// Sessions held, those of ended links included until the next sweep.
    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// Bytes that sessions take.
    pub fn session_bytes(&self) -> usize {
        self.sessions.allocated_bytes()
    }

    /// Everything up to `position` is folded. `current_at` where that was everything the log had then.
    pub(crate) fn heard(&self, position: Position, current_at: Option<Instant>) {
        let mut signs = self.signs.write();
        if !signs.failed {
            signs.log = current_at.map_or(signs.log, |at| at.max(signs.log));
            signs.position = position;
        }
    }

    /// Closes for good: nobody is fresh any more, and everything open is ended.
    pub(crate) fn fail(&self) {
        {
            let mut signs = self.signs.write();
            signs.failed = true;
            signs.log = long_ago();
        }
        let links: Vec<_> = self.links.read().values().cloned().collect();
        for link in links {
            link.closers.close(RouteFamilies::ALL, CloseReason::ViewsFailed, None);
        }
        self.members.close_all(CloseReason::ViewsFailed);
    }

    /// Folds one commit, with what it changed about the terms of links. One caller at a time, in the log's order.
    pub(crate) fn apply(&self, recorded: &Recorded, rights: &[LinkRight]) {
        let mut fold = self.fold.lock();
        self.closings.begin(recorded.position);
        let (org, at) = (recorded.commit.stream.org(), recorded.recorded_at);
        let key = recorded.commit.stream.key();
        for event in &recorded.commit.events {
            match event {
                Event::Organization(OrganizationEvent::Created { org, slug, name }) => {
                    fold.organizations.insert(*org, (slug.clone(), name.clone()));
                }
                Event::Workspace(event) => {
                    if let Ok(workspace) = key.parse() {
                        self.apply_workspace(&mut fold, org, workspace, event);
                    }
                }
                Event::Runtime(event) => {
                    if let Ok(workspace) = key.parse() {
                        self.apply_runtime(&mut fold, workspace, event, at);
                    }
                }
                Event::Host(HostEvent::Revoked) => {
                    if let Ok(host) = key.parse() {
                        self.revoke_host(&mut fold, host, at);
                    }
                }
                Event::DevLink(event) => {
                    if let Ok(link) = key.parse() {
                        self.apply_link(&mut fold, org, link, event, at, rights);
                    }
                }
                Event::Organization(_)
                | Event::User(_)
                | Event::Project(_)
                | Event::Host(_)
                | Event::Claim(_)
                | Event::Denial(_)
                | Event::Decision(_)
                | Event::ServiceToken(_)
                | Event::RootWindow(_)
                | Event::Shell(_)
                | Event::JobRun(_)
                | Event::Secrets(_)
                | Event::Machine(_) => {}
            }
        }
        for right in rights {
            self.apply_right(&mut fold, right, at);
        }
        self.forget_ended(&mut fold, at);
    }

    /// Folds what a commit says of members' sessions and rights, after both views have it.
    pub(crate) fn apply_members(&self, recorded: &Recorded, rights: &AuthorizationView) {
        let org = recorded.commit.stream.org();
        self.members.apply(recorded, rights, |event| {
            let UserEvent::WorkspaceOpened { workspace, service, .. } = event else { return None };
            let fold = self.fold.lock();
            let known = fold.workspaces.get(workspace)?;
            let (org_slug, _) = fold.organizations.get(&org)?;
            let host = HostLabel::new(service.clone(), known.slug.clone(), org_slug.clone()).ok()?;
            Some((host, known.slug.to_string()))
        });
    }

    fn apply_runtime(&self, fold: &mut Fold, workspace: WorkspaceId, event: &RuntimeEvent, at: UnixMillis) {
        match event {
            // What a host says that was revoked meanwhile leads nobody there.
            RuntimeEvent::EndpointsBound { host, .. } if fold.revoked_hosts.contains(host) => return,
            RuntimeEvent::EndpointsBound { host, .. } => {
                fold.ready_on.insert(workspace, *host);
            }
            RuntimeEvent::WakeRequested { .. }
            | RuntimeEvent::SleepRequested { .. }
            | RuntimeEvent::Slept { .. }
            | RuntimeEvent::Failed { .. }
            | RuntimeEvent::Lost { .. } => {
                fold.ready_on.remove(&workspace);
            }
            RuntimeEvent::HostChosen { .. }
            | RuntimeEvent::StageReached { .. }
            | RuntimeEvent::SecretsResolved { .. }
            | RuntimeEvent::SecretsRefused { .. }
            | RuntimeEvent::WakeQueued { .. }
            | RuntimeEvent::Ready { .. }
            | RuntimeEvent::LeaseRenewed { .. }
            | RuntimeEvent::ActivitySeen { .. }
            | RuntimeEvent::KeptAwake { .. }
            | RuntimeEvent::KeepAwakeShortened { .. }
            | RuntimeEvent::SleepPostponed { .. } => {}
        }
        self.runtimes.apply(workspace, event, at);
    }

    /// Leads nobody to a host that is trusted no more, and ends what is open to it. Links and sessions stand: whoever has one may wake
    /// the workspace elsewhere, once the log has said that its runtime is lost.
    fn revoke_host(&self, fold: &mut Fold, host: HostId, at: UnixMillis) {
        fold.revoked_hosts.insert(host);
        let there: Vec<_> = fold.ready_on.extract_if(|_, on| *on == host).map(|(workspace, _)| workspace).collect();
        for workspace in there {
            // INVARIANT: before anything open is told, so that whoever is ended is not led there again.
            self.runtimes.withdraw(workspace, at);
            self.closings.count(|over| over.runtimes += 1);
            let links = fold.workspaces.get(&workspace).map(|known| known.links.as_slice()).unwrap_or_default();
            for link in links {
                self.change_link(*link, |_| Some((RouteFamilies::ALL, CloseReason::HostRevoked)));
            }
            self.members.close_workspace(workspace, CloseReason::HostRevoked, |_| true);
        }
    }

    fn apply_workspace(&self, fold: &mut Fold, org: OrgId, workspace: WorkspaceId, event: &WorkspaceEvent) {
        if let WorkspaceEvent::Created { project, slug, manifest, access_mode, .. } = event {
            let known = KnownWorkspace {
                org,
                project: *project,
                slug: slug.clone(),
                manifest: manifest.clone(),
                access_mode: *access_mode,
                archived: false,
                links: Vec::new(),
            };
            self.publish_hosts(fold, workspace, &known, None);
            fold.workspaces.insert(workspace, known);
            return;
        }
        let Some(mut known) = fold.workspaces.remove(&workspace) else { return };
        let before = known.manifest.clone();
        let reason = match event {
            WorkspaceEvent::Created { .. } | WorkspaceEvent::RevocationRecorded { .. } => None,
            WorkspaceEvent::ManifestChanged { manifest } => {
                known.manifest = manifest.clone();
                Some(CloseReason::RoutesChanged)
            }
            WorkspaceEvent::AccessModeChanged { access_mode } => {
                known.access_mode = *access_mode;
                (*access_mode == AccessMode::TailscaleOnly).then_some(CloseReason::TailscaleOnly)
            }
            WorkspaceEvent::Archived => {
                known.archived = true;
                Some(CloseReason::Archived)
            }
        };
        self.publish_hosts(fold, workspace, &known, Some(&before));
        if let Some(reason) = reason {
            if !reason.leaves_right() {
                let open = known.links.iter().filter_map(|link| fold.open_links.get(link));
                open.filter(|open| open.phase() == LinkPhase::Active).for_each(|open| self.count_link(open.sessions));
            }
            for link in &known.links {
                self.change_link(*link, |view| {
                    // What was admitted under other routes is admitted anew, or not at all.
                    let untouched = reason == CloseReason::RoutesChanged
                        && RouteTable::of(&before, &view.service) == RouteTable::of(&known.manifest, &view.service);
                    (!untouched).then_some((RouteFamilies::ALL, reason))
                });
            }
            self.members.close_workspace(workspace, reason, |member| {
                let service = member.host.service();
                reason != CloseReason::RoutesChanged
                    || RouteTable::of(&before, service) != RouteTable::of(&known.manifest, service)
            });
        }
        fold.workspaces.insert(workspace, known);
    }

    fn publish_hosts(&self, fold: &Fold, workspace: WorkspaceId, known: &KnownWorkspace, before: Option<&Manifest>) {
        let Some((org_slug, _)) = fold.organizations.get(&known.org) else { return };
        let label = |service: &ServiceName| HostLabel::new(service.clone(), known.slug.clone(), org_slug.clone()).ok();
        let mut labels = self.labels.write();
        for service in before.into_iter().flat_map(|manifest| &manifest.services) {
            if let Some(label) = label(&service.name) {
                labels.remove(&label);
            }
        }
        for service in &known.manifest.services {
            let (Some(routes), Some(label)) = (RouteTable::of(&known.manifest, &service.name), label(&service.name))
            else {
                continue;
            };
            let host = WorkspaceRoutes {
                org: known.org,
                project: known.project,
                workspace,
                service: service.name.clone(),
                access_mode: known.access_mode,
                archived: known.archived,
                routes,
            };
            labels.insert(label, Arc::new(host));
        }
    }

    fn apply_link(
        &self,
        fold: &mut Fold,
        org: OrgId,
        link: LinkId,
        event: &DevLinkEvent,
        at: UnixMillis,
        rights: &[LinkRight],
    ) {
        match event {
            DevLinkEvent::Issued { .. } => {
                // A link is never seen without its terms, which come with the same commit.
                self.issue_link(fold, org, link, event, terms_of(rights, link).unwrap_or(LinkTerms::NONE));
            }
            DevLinkEvent::SessionOpened { session, cookie, generation, .. } => {
                if let Some(open) = fold.open_links.get_mut(&link) {
                    open.sessions += 1;
                }
                self.sessions.insert(*cookie, SessionView { session: *session, link, generation: *generation });
            }
            DevLinkEvent::AllowlistChanged { families } => {
                let Some(open) = fold.open_links.get_mut(&link) else { return };
                open.own_families = *families;
                let families = open.families();
                self.change_link(link, |view| {
                    let narrowed = view.families.minus(families);
                    view.families = families;
                    Some((narrowed, CloseReason::Narrowed))
                });
            }
            DevLinkEvent::Rotated { generation, issued_at, expires_at } => {
                let Some(open) = fold.open_links.get_mut(&link) else { return };
                open.generation = *generation;
                open.own_end = *expires_at;
                open.terms = terms_of(rights, link).unwrap_or(open.terms);
                let (ends_at, ended) = (open.ends_at(), std::mem::take(&mut open.sessions));
                self.change_link(link, |view| {
                    view.generation = *generation;
                    view.issued_at = *issued_at;
                    view.expires_at = ends_at;
                    Some((RouteFamilies::ALL, CloseReason::Rotated))
                });
                self.closings.count(|over| over.link_sessions += ended);
                self.sessions_ended(fold, ended);
            }
            DevLinkEvent::WakeSpent { .. } => self.change_link(link, |view| {
                view.wakes_left = view.wakes_left.map(|left| left.saturating_sub(1));
                None
            }),
            DevLinkEvent::Expired => self.end_link(fold, link, LinkPhase::Expired, CloseReason::Expired, at),
            DevLinkEvent::Revoked { .. } => self.end_link(fold, link, LinkPhase::Revoked, CloseReason::Revoked, at),
            DevLinkEvent::FirstUsed { .. }
            | DevLinkEvent::AttemptsBlocked { .. }
            | DevLinkEvent::RevocationRecorded { .. } => {}
        }
    }

    fn issue_link(&self, fold: &mut Fold, org: OrgId, link: LinkId, event: &DevLinkEvent, terms: LinkTerms) {
        let DevLinkEvent::Issued {
            project,
            workspace,
            service,
            families,
            issued_at,
            expires_at,
            label,
            wake_budget,
            ..
        } = event
        else {
            return;
        };
        let Some(known) = fold.workspaces.get_mut(workspace) else { return };
        let Some((org_slug, org_name)) = fold.organizations.get(&org) else { return };
        let Ok(host) = HostLabel::new(service.clone(), known.slug.clone(), org_slug.clone()) else { return };
        let open = OpenLink {
            workspace: *workspace,
            generation: Generation(1),
            sessions: 0,
            own_end: *expires_at,
            own_families: *families,
            terms,
        };
        let view = LinkView {
            link,
            org,
            project: *project,
            workspace: *workspace,
            service: service.clone(),
            families: open.families(),
            generation: Generation(1),
            issued_at: *issued_at,
            expires_at: open.ends_at(),
            phase: open.phase(),
            label: label.clone(),
            org_name: org_name.clone(),
            workspace_name: known.slug.to_string(),
            host,
            wakes_left: *wake_budget,
            closers: Closers::default(),
        };
        known.links.push(link);
        fold.open_links.insert(link, open);
        self.links.write().insert(link, Arc::new(view));
    }

    /// A link stands on other terms: its issuer's right has changed, or the organization's policy.
    fn apply_right(&self, fold: &mut Fold, right: &LinkRight, at: UnixMillis) {
        let Some(open) = fold.open_links.get_mut(&right.link) else { return };
        open.terms = right.terms;
        let (phase, ends_at, families) = (open.phase(), open.ends_at(), open.families());
        let sessions = open.sessions;
        self.change_link(right.link, |view| {
            let opens = |phase, ends_at: UnixMillis| phase == LinkPhase::Active && at < ends_at;
            if opens(view.phase, view.expires_at) && !opens(phase, ends_at) {
                self.count_link(sessions);
            }
            let less = phase != LinkPhase::Active || ends_at < view.expires_at;
            let narrowed = view.families.minus(families);
            view.phase = phase;
            view.expires_at = ends_at;
            view.families = families;
            match (less, narrowed.is_empty()) {
                (true, _) => Some((RouteFamilies::ALL, CloseReason::IssuerLostRight)),
                (false, false) => Some((narrowed, CloseReason::Narrowed)),
                (false, true) => None,
            }
        });
    }

    /// Changes a link that goes on; then ends what it has open in the families that `change` answers.
    fn change_link(&self, link: LinkId, change: impl FnOnce(&mut LinkView) -> Option<(RouteFamilies, CloseReason)>) {
        let mut links = self.links.write();
        let Some(view) = links.get_mut(&link) else { return };
        let mut next = (**view).clone();
        let closing = change(&mut next);
        if let Some((families, _)) = closing {
            next.closers = next.closers.renewed(families);
        }
        let before = std::mem::replace(view, Arc::new(next));
        // INVARIANT: the change is visible before the closers are given, so that whoever they end cannot come in again.
        drop(links);
        if let Some((families, reason)) = closing {
            self.closings.close(&before.closers, families, reason);
        }
    }

    fn count_link(&self, sessions: usize) {
        self.closings.count(|over| {
            over.links += 1;
            over.link_sessions += sessions;
        });
    }

    fn end_link(&self, fold: &mut Fold, link: LinkId, phase: LinkPhase, reason: CloseReason, at: UnixMillis) {
        self.change_link(link, |view| {
            view.phase = phase;
            None
        });
        // Not renewed: for an ended link they stay given.
        if let Some(view) = self.link(link) {
            self.closings.close(&view.closers, RouteFamilies::ALL, reason);
        }
        let Some(open) = fold.open_links.remove(&link) else { return };
        if open.phase() == LinkPhase::Active && phase == LinkPhase::Revoked {
            self.count_link(open.sessions);
        }
        if let Some(known) = fold.workspaces.get_mut(&open.workspace) {
            known.links.retain(|other| *other != link);
        }
        fold.ended_links.push_back((at, link));
        self.sessions_ended(fold, open.sessions);
    }

    /// Sessions that ended are refused by their link at once, and forgotten in sweeps.
    fn sessions_ended(&self, fold: &mut Fold, count: usize) {
        fold.ended_sessions += count;
        if fold.ended_sessions < SWEPT_SESSIONS_MIN || fold.ended_sessions * 4 < self.sessions.len() {
            return;
        }
        fold.ended_sessions = 0;
        let counts = |session: &SessionView| {
            fold.open_links.get(&session.link).is_some_and(|open| open.generation == session.generation)
        };
        self.sessions.retain(counts);
    }

    fn forget_ended(&self, fold: &mut Fold, at: UnixMillis) {
        while fold.ended_links.front().is_some_and(|(ended_at, _)| ended_at.plus(ENDED_LINKS_KEPT) <= at) {
            if let Some((_, link)) = fold.ended_links.pop_front() {
                self.links.write().remove(&link);
            }
        }
    }
}

#[cfg(test)]
mod tests;
