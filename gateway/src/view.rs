//! The read model that the request path asks, as the gateway sees it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use ahash::AHashMap;
use envforge_domain::commit::Position;
use envforge_domain::dev_link::{Generation, RouteFamilies, RouteFamily};
use envforge_domain::ids::{LinkId, OrgId, ProjectId, SessionId, WorkspaceId};
use envforge_domain::routing::RouteTable;
use envforge_domain::runtime::{Epoch, WakeStage};
use envforge_domain::secret::TokenDigest;
use envforge_domain::slug::{HostLabel, ServiceName};
use envforge_domain::time::UnixMillis;
use envforge_domain::workspace::AccessMode;
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

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

#[derive(Debug)]
pub struct LinkView {
    pub link: LinkId,
    pub org: OrgId,
    pub project: ProjectId,
    pub workspace: WorkspaceId,
    pub service: ServiceName,
    pub families: RouteFamilies,
    pub generation: Generation,
    pub expires_at: UnixMillis,
    pub phase: LinkPhase,
    pub label: String,
    pub org_name: String,
    pub workspace_name: String,
    pub host: HostLabel,
    pub wakes_left: Option<u32>,
    pub closers: Closers,
}

#[derive(Debug, Clone, Default)]
pub struct Closers([CancellationToken; 5]);

impl Closers {
    pub fn of(&self, family: RouteFamily) -> &CancellationToken {
        &self.0[family as usize]
    }
}

#[derive(Debug, Clone, Copy)]
pub struct SessionView {
    pub session: SessionId,
    pub link: LinkId,
    pub generation: Generation,
    pub expires_at: UnixMillis,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuntimePhase {
    Asleep,
    Waking,
    Ready,
    Sleeping,
    Failed,
}

#[derive(Debug, Clone)]
pub struct RuntimeView {
    pub phase: RuntimePhase,
    pub epoch: Epoch,
    pub stage: Option<WakeStage>,
    pub endpoints: Vec<(ServiceName, SocketAddr)>,
}

#[derive(Debug, Clone, Copy)]
pub struct Freshness {
    pub last_heard: Instant,
    pub position: Position,
}

#[derive(Default)]
pub struct GatewayView {
    inner: RwLock<Inner>,
}

#[derive(Default)]
struct Inner {
    workspaces: AHashMap<HostLabel, Arc<WorkspaceRoutes>>,
    links: AHashMap<LinkId, Arc<LinkView>>,
    sessions: AHashMap<TokenDigest, SessionView>,
    runtimes: AHashMap<WorkspaceId, watch::Sender<RuntimeView>>,
    freshness: Option<Freshness>,
}

impl GatewayView {
    pub fn workspace_by_label(&self, label: &HostLabel) -> Option<Arc<WorkspaceRoutes>> {
        self.inner.read().workspaces.get(label).cloned()
    }

    pub fn link(&self, link: LinkId) -> Option<Arc<LinkView>> {
        self.inner.read().links.get(&link).cloned()
    }

    pub fn session(&self, cookie: &TokenDigest) -> Option<SessionView> {
        self.inner.read().sessions.get(cookie).copied()
    }

    pub fn runtime(&self, workspace: WorkspaceId) -> watch::Receiver<RuntimeView> {
        let asleep = || {
            watch::Sender::new(RuntimeView {
                phase: RuntimePhase::Asleep,
                epoch: Epoch(0),
                stage: None,
                endpoints: vec![],
            })
        };
        self.inner.write().runtimes.entry(workspace).or_insert_with(asleep).subscribe()
    }

    pub fn freshness(&self) -> Freshness {
        self.inner.read().freshness.unwrap_or(Freshness { last_heard: Instant::now(), position: Position::START })
    }

    pub fn put_workspace(&self, label: HostLabel, routes: WorkspaceRoutes) {
        self.inner.write().workspaces.insert(label, Arc::new(routes));
    }

    pub fn put_link(&self, link: LinkView) {
        self.inner.write().links.insert(link.link, Arc::new(link));
    }

    pub fn put_session(&self, cookie: TokenDigest, session: SessionView) {
        self.inner.write().sessions.insert(cookie, session);
    }

    pub fn put_runtime(&self, workspace: WorkspaceId, runtime: RuntimeView) {
        self.inner
            .write()
            .runtimes
            .entry(workspace)
            .or_insert_with(|| watch::Sender::new(runtime.clone()))
            .send_replace(runtime);
    }

    pub fn put_freshness(&self, freshness: Freshness) {
        self.inner.write().freshness = Some(freshness);
    }
}
