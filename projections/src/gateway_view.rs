//! What the gateway's request path asks, in memory: hosts, links, sessions and runtimes as the log has them now.
//!
//! One writer folds commits; readers hold a lock for the length of one map look-up. Built for 1,000,000 sessions: an
//! entry holds the cookie's digest, the session's id and an index of its link, nothing else. Not here: deciding
//! (`access::authorize`) and any I/O.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use ahash::AHashMap;
use envforge_domain::commit::{Position, Recorded};
use envforge_domain::dev_link::{DevLinkEvent, Generation, RouteFamilies, RouteFamily};
use envforge_domain::event::Event;
use envforge_domain::ids::{LinkId, OrgId, ProjectId, SessionId, WorkspaceId};
use envforge_domain::manifest::Manifest;
use envforge_domain::organization::OrganizationEvent;
use envforge_domain::routing::RouteTable;
use envforge_domain::runtime::{Epoch, RuntimeEvent, WakeStage};
use envforge_domain::secret::TokenDigest;
use envforge_domain::slug::{HostLabel, OrgSlug, ServiceName, WorkspaceSlug};
use envforge_domain::time::UnixMillis;
use envforge_domain::workspace::{AccessMode, WorkspaceEvent};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Locks over which sessions are spread: a write stops few readers, and a sweep few at a time.
const SESSION_SHARDS: usize = 64;

/// Sessions of ended links that are kept, so that their reviewers are told what became of the link instead of being
/// taken for strangers. About 400 KiB.
const SWEPT_SESSIONS_MIN: usize = 4_096;

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
    pub families: RouteFamilies,
    pub generation: Generation,
    /// When this generation was issued: a claim of its share token.
    pub issued_at: UnixMillis,
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

/// Cancelled, each for its route family, when what was admitted is no longer allowed.
#[derive(Debug, Clone, Default)]
pub struct Closers([CancellationToken; 5]);

impl Closers {
    pub fn of(&self, family: RouteFamily) -> &CancellationToken {
        &self.0[family as usize]
    }

    fn close_all(&self) {
        self.0.iter().for_each(CancellationToken::cancel);
    }

    /// Closes some families; the answer has fresh closers for them, should they be opened again.
    fn close(&self, families: RouteFamilies) -> Self {
        let mut next = self.clone();
        for family in families.iter() {
            self.of(family).cancel();
            next.0[family as usize] = CancellationToken::new();
        }
        next
    }
}

/// A reviewer's session, found by its cookie's digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionView {
    pub session: SessionId,
    pub link: LinkId,
    pub generation: Generation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuntimePhase {
    Asleep,
    Waking,
    Ready,
    Sleeping,
    Failed,
}

/// A runtime as whoever waits for it sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeView {
    pub phase: RuntimePhase,
    pub epoch: Epoch,
    pub stage: Option<WakeStage>,
    /// Only while ready.
    pub endpoints: Vec<(ServiceName, SocketAddr)>,
}

impl Default for RuntimeView {
    fn default() -> Self {
        Self { phase: RuntimePhase::Asleep, epoch: Epoch(0), stage: None, endpoints: Vec::new() }
    }
}

/// How current the view is.
#[derive(Debug, Clone, Copy)]
pub struct Freshness {
    /// When the log last gave a sign of life.
    pub last_heard: Instant,
    pub position: Position,
}

/// A session in 24 bytes beside its digest. It ends with its link, whose end it shares.
#[derive(Clone, Copy)]
struct CompactSession {
    session: SessionId,
    link_index: u32,
    generation: Generation,
}

/// The read model.
pub struct GatewayView {
    labels: RwLock<AHashMap<HostLabel, Arc<WorkspaceRoutes>>>,
    links: RwLock<AHashMap<LinkId, Arc<LinkView>>>,
    link_indexes: RwLock<Vec<LinkId>>,
    sessions: [RwLock<AHashMap<TokenDigest, CompactSession>>; SESSION_SHARDS],
    runtimes: RwLock<AHashMap<WorkspaceId, watch::Sender<RuntimeView>>>,
    freshness: RwLock<Freshness>,
    fold: Mutex<Fold>,
}

/// What only the writer needs.
#[derive(Default)]
struct Fold {
    organizations: AHashMap<OrgId, (OrgSlug, String)>,
    workspaces: AHashMap<WorkspaceId, KnownWorkspace>,
    link_index: AHashMap<LinkId, u32>,
    sessions_of_ended_links: usize,
    sessions_of_link: AHashMap<LinkId, usize>,
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

impl Default for GatewayView {
    fn default() -> Self {
        Self {
            labels: RwLock::default(),
            links: RwLock::default(),
            link_indexes: RwLock::default(),
            sessions: std::array::from_fn(|_| RwLock::default()),
            runtimes: RwLock::default(),
            freshness: RwLock::new(Freshness { last_heard: Instant::now(), position: Position::START }),
            fold: Mutex::default(),
        }
    }
}

impl GatewayView {
    pub fn workspace_by_label(&self, label: &HostLabel) -> Option<Arc<WorkspaceRoutes>> {
        self.labels.read().get(label).cloned()
    }

    pub fn link(&self, link: LinkId) -> Option<Arc<LinkView>> {
        self.links.read().get(&link).cloned()
    }

    /// The session of a cookie. It may belong to a link that has ended since: hold it against `link`.
    pub fn session(&self, cookie: &TokenDigest) -> Option<SessionView> {
        let found = *self.shard(cookie).read().get(cookie)?;
        let link = *self.link_indexes.read().get(found.link_index as usize)?;
        Some(SessionView { session: found.session, link, generation: found.generation })
    }

    /// A runtime's changes. Waiting on it costs nothing while nothing changes.
    pub fn runtime(&self, workspace: WorkspaceId) -> watch::Receiver<RuntimeView> {
        if let Some(sender) = self.runtimes.read().get(&workspace) {
            return sender.subscribe();
        }
        self.runtimes.write().entry(workspace).or_default().subscribe()
    }

    pub fn freshness(&self) -> Freshness {
        *self.freshness.read()
    }

    /// Sessions held, those of ended links included until the next sweep.
    pub fn session_count(&self) -> usize {
        self.sessions.iter().map(|shard| shard.read().len()).sum()
    }

    fn shard(&self, cookie: &TokenDigest) -> &RwLock<AHashMap<TokenDigest, CompactSession>> {
        // A digest's bytes are uniform; the map hashes all of them again for its own buckets.
        &self.sessions[cookie.as_bytes()[31] as usize % SESSION_SHARDS]
    }

    /// The log gave a sign of life: everything up to `position` is folded.
    pub(crate) fn heard(&self, position: Position) {
        *self.freshness.write() = Freshness { last_heard: Instant::now(), position };
    }

    /// Folds one commit. One caller at a time, in the log's order.
    pub(crate) fn apply(&self, recorded: &Recorded) {
        let mut fold = self.fold.lock();
        let org = recorded.commit.stream.org();
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
                        self.apply_runtime(workspace, event);
                    }
                }
                Event::DevLink(event) => {
                    if let Ok(link) = key.parse() {
                        self.apply_link(&mut fold, org, link, event);
                    }
                }
                Event::Organization(_)
                | Event::User(_)
                | Event::Project(_)
                | Event::Host(_)
                | Event::Claim(_)
                | Event::Denial(_) => {}
            }
        }
    }

    fn apply_workspace(&self, fold: &mut Fold, org: OrgId, workspace: WorkspaceId, event: &WorkspaceEvent) {
        match event {
            WorkspaceEvent::Created { project, slug, manifest, access_mode, .. } => {
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
            WorkspaceEvent::ManifestChanged { .. }
            | WorkspaceEvent::AccessModeChanged { .. }
            | WorkspaceEvent::Archived => {}
        }
        let Some(mut known) = fold.workspaces.remove(&workspace) else { return };
        let before = known.manifest.clone();
        match event {
            WorkspaceEvent::Created { .. } => {}
            WorkspaceEvent::ManifestChanged { manifest } => known.manifest = manifest.clone(),
            WorkspaceEvent::AccessModeChanged { access_mode } => known.access_mode = *access_mode,
            WorkspaceEvent::Archived => known.archived = true,
        }
        self.publish_hosts(fold, workspace, &known, Some(&before));
        // What was admitted under the former shape is admitted anew, or not at all.
        let mut links = self.links.write();
        for link in &known.links {
            if let Some(view) = links.get_mut(link) {
                let mut next = (**view).clone();
                next.closers = view.closers.close(RouteFamilies::ALL);
                *view = Arc::new(next);
            }
        }
        drop(links);
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

    fn apply_runtime(&self, workspace: WorkspaceId, event: &RuntimeEvent) {
        let mut runtimes = self.runtimes.write();
        let sender = runtimes.entry(workspace).or_default();
        sender.send_if_modified(|view| {
            let next = next_runtime(view, event);
            match next {
                Some(next) if next != *view => {
                    *view = next;
                    true
                }
                Some(_) | None => false,
            }
        });
    }

    fn apply_link(&self, fold: &mut Fold, org: OrgId, link: LinkId, event: &DevLinkEvent) {
        match event {
            DevLinkEvent::Issued {
                project,
                workspace,
                service,
                families,
                issued_at,
                expires_at,
                label,
                wake_budget,
                ..
            } => {
                let Some(known) = fold.workspaces.get_mut(workspace) else { return };
                let Some((org_slug, org_name)) = fold.organizations.get(&org) else { return };
                let Ok(host) = HostLabel::new(service.clone(), known.slug.clone(), org_slug.clone()) else { return };
                known.links.push(link);
                let view = LinkView {
                    link,
                    org,
                    project: *project,
                    workspace: *workspace,
                    service: service.clone(),
                    families: *families,
                    generation: Generation(1),
                    issued_at: *issued_at,
                    expires_at: *expires_at,
                    phase: LinkPhase::Active,
                    label: label.clone(),
                    org_name: org_name.clone(),
                    workspace_name: known.slug.to_string(),
                    host,
                    wakes_left: *wake_budget,
                    closers: Closers::default(),
                };
                self.links.write().insert(link, Arc::new(view));
            }
            DevLinkEvent::SessionOpened { session, cookie, generation, .. } => {
                let index = *fold.link_index.entry(link).or_insert_with(|| {
                    let mut indexes = self.link_indexes.write();
                    indexes.push(link);
                    u32::try_from(indexes.len() - 1).expect("fewer than four billion links with sessions")
                });
                let compact = CompactSession { session: *session, link_index: index, generation: *generation };
                self.shard(cookie).write().insert(*cookie, compact);
                *fold.sessions_of_link.entry(link).or_default() += 1;
            }
            DevLinkEvent::AllowlistChanged { families } => self.change_link(link, |view| {
                view.closers = view.closers.close(view.families.minus(*families));
                view.families = *families;
            }),
            DevLinkEvent::Rotated { generation, issued_at, expires_at } => {
                self.change_link(link, |view| {
                    view.closers = view.closers.close(RouteFamilies::ALL);
                    view.generation = *generation;
                    view.issued_at = *issued_at;
                    view.expires_at = *expires_at;
                });
                self.sessions_ended(fold, link);
            }
            DevLinkEvent::WakeSpent { .. } => self.change_link(link, |view| {
                view.wakes_left = view.wakes_left.map(|left| left.saturating_sub(1));
            }),
            DevLinkEvent::Expired => self.end_link(fold, link, LinkPhase::Expired),
            DevLinkEvent::Revoked { .. } => self.end_link(fold, link, LinkPhase::Revoked),
            DevLinkEvent::FirstUsed { .. } | DevLinkEvent::AttemptsBlocked { .. } => {}
        }
    }

    fn change_link(&self, link: LinkId, change: impl FnOnce(&mut LinkView)) {
        let mut links = self.links.write();
        if let Some(view) = links.get_mut(&link) {
            let mut next = (**view).clone();
            change(&mut next);
            *view = Arc::new(next);
        }
    }

    fn end_link(&self, fold: &mut Fold, link: LinkId, phase: LinkPhase) {
        let mut workspace = None;
        // INVARIANT: the phase is visible before the closers fire, so that whoever they wake cannot come in again.
        let mut closers = None;
        self.change_link(link, |view| {
            view.phase = phase;
            workspace = Some(view.workspace);
            closers = Some(view.closers.clone());
        });
        if let Some(closers) = closers {
            closers.close_all();
        }
        if let Some(known) = workspace.and_then(|workspace| fold.workspaces.get_mut(&workspace)) {
            known.links.retain(|other| *other != link);
        }
        self.sessions_ended(fold, link);
    }

    /// Sessions of ended generations are refused by their link at once, and forgotten in sweeps.
    fn sessions_ended(&self, fold: &mut Fold, link: LinkId) {
        fold.sessions_of_ended_links += fold.sessions_of_link.remove(&link).unwrap_or(0);
        let held = self.session_count();
        if fold.sessions_of_ended_links * 4 < held || fold.sessions_of_ended_links < SWEPT_SESSIONS_MIN {
            return;
        }
        fold.sessions_of_ended_links = 0;
        let live: AHashMap<u32, Generation> = {
            let links = self.links.read();
            let active = |link: &LinkId| links.get(link).filter(|view| view.phase == LinkPhase::Active);
            fold.link_index.iter().filter_map(|(link, index)| Some((*index, active(link)?.generation))).collect()
        };
        for shard in &self.sessions {
            let mut shard = shard.write();
            shard.retain(|_, session| live.get(&session.link_index) == Some(&session.generation));
            if shard.len() * 4 < shard.capacity() {
                shard.shrink_to_fit();
            }
        }
    }
}

fn next_runtime(view: &RuntimeView, event: &RuntimeEvent) -> Option<RuntimeView> {
    let phase = |phase, epoch: &Epoch| Some(RuntimeView { phase, epoch: *epoch, stage: None, endpoints: Vec::new() });
    match event {
        RuntimeEvent::WakeRequested { epoch, .. } => phase(RuntimePhase::Waking, epoch),
        RuntimeEvent::StageReached { stage, .. } if view.phase == RuntimePhase::Waking => {
            Some(RuntimeView { stage: Some(stage.clone()), ..view.clone() })
        }
        // Ready only with endpoints: both events stand in one commit, the second one makes it visible.
        RuntimeEvent::EndpointsBound { epoch, endpoints, .. } => {
            Some(RuntimeView { phase: RuntimePhase::Ready, epoch: *epoch, stage: None, endpoints: endpoints.clone() })
        }
        RuntimeEvent::SleepRequested { epoch, .. } => phase(RuntimePhase::Sleeping, epoch),
        RuntimeEvent::Slept { epoch } | RuntimeEvent::Lost { epoch, .. } => phase(RuntimePhase::Asleep, epoch),
        RuntimeEvent::Failed { epoch, .. } => phase(RuntimePhase::Failed, epoch),
        RuntimeEvent::StageReached { .. }
        | RuntimeEvent::WakeQueued { .. }
        | RuntimeEvent::Ready { .. }
        | RuntimeEvent::LeaseRenewed { .. }
        | RuntimeEvent::ActivitySeen { .. }
        | RuntimeEvent::KeptAwake { .. }
        | RuntimeEvent::SleepPostponed { .. } => None,
    }
}
