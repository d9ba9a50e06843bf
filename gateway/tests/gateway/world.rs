//! A gateway with its surroundings: a view to change, a write side that decides in memory, an app to reach.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use envforge_domain::access::{Action, Permit};
use envforge_domain::commit::Position;
use envforge_domain::dev_link::{Generation, RouteFamilies};
use envforge_domain::ids::{HandoffId, LinkId, OrgId, ProjectId, SessionId, WorkspaceId};
use envforge_domain::manifest::{Manifest, PathPrefix, Probe, Readiness, Route, Service};
use envforge_domain::routing::RouteTable;
use envforge_domain::runtime::{Epoch, WakeStage};
use envforge_domain::secret::{Secret, TokenDigest};
use envforge_domain::slug::HostLabel;
use envforge_domain::time::{Millis, UnixMillis};
use envforge_domain::workspace::AccessMode;
use envforge_gateway::view::{
    Closers, Freshness, GatewayView, LinkPhase, LinkView, RuntimePhase, RuntimeView, SessionView, WorkspaceRoutes,
};
use envforge_gateway::{
    Activity, AskWake, Blocked, Config, Decisions, Denial, Gateway, HandoffKey, OpenSession, Parts, Scheme,
};
use envforge_identity::share_token::{ShareClaims, ShareVerifier, SigningKey};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use uuid::Uuid;

pub(crate) const DOMAIN: &str = "dev.localhost";
pub(crate) const LABEL: &str = "web--signed-links--acme";
/// What the reviewer's browser keeps.
pub(crate) const COOKIE: &str = "0123456789012345678901234567890123456789abc";

pub(crate) fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    UnixMillis::new(since.as_millis() as u64)
}

fn uuid(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

pub(crate) struct World {
    pub(crate) gateway: Gateway,
    pub(crate) view: Arc<GatewayView>,
    pub(crate) decided: Arc<Decided>,
    pub(crate) activity: Activity,
    signing: SigningKey,
    _directory: tempfile::TempDir,
    closers: Mutex<Closers>,
}

/// The write side's double: decides in memory what the log would decide.
pub(crate) struct Decided {
    view: Arc<GatewayView>,
    pub(crate) wakes: AtomicU32,
    pub(crate) wake_answer: Mutex<Result<(), Denial>>,
    redeemed: Mutex<Vec<HandoffId>>,
    pub(crate) blocked: Mutex<Vec<Blocked>>,
}

impl Decisions for Decided {
    fn open_session<'a>(&'a self, permit: &'a Permit, ask: OpenSession) -> BoxFuture<'a, Result<Position, Denial>> {
        Box::pin(async move {
            assert_eq!(permit.action(), Action::LinkOpenSession);
            let mut redeemed = self.redeemed.lock();
            if redeemed.contains(&ask.handoff) {
                return Err(Denial::HandoffInvalid);
            }
            redeemed.push(ask.handoff);
            let expires_at = self.view.link(ask.link).unwrap().expires_at;
            let session = SessionView { session: ask.session, link: ask.link, generation: ask.generation, expires_at };
            self.view.put_session(ask.cookie, session);
            Ok(Position::new(1))
        })
    }

    fn wake<'a>(&'a self, permit: &'a Permit, ask: AskWake) -> BoxFuture<'a, Result<(), Denial>> {
        Box::pin(async move {
            assert_eq!(permit.action(), Action::RuntimeWake);
            self.wakes.fetch_add(1, Ordering::SeqCst);
            (*self.wake_answer.lock())?;
            self.view.put_runtime(ask.workspace, runtime(RuntimePhase::Waking, Some(WakeStage::Placed), &[]));
            Ok(())
        })
    }

    fn record_blocked<'a>(&'a self, permit: &'a Permit, blocked: Blocked) -> BoxFuture<'a, Result<(), Denial>> {
        Box::pin(async move {
            assert_eq!(permit.action(), Action::LinkRecordUse);
            self.blocked.lock().push(blocked);
            Ok(())
        })
    }
}

pub(crate) fn runtime(phase: RuntimePhase, stage: Option<WakeStage>, endpoints: &[(&str, SocketAddr)]) -> RuntimeView {
    let endpoints = endpoints.iter().map(|(name, address)| (name.parse().unwrap(), *address)).collect();
    RuntimeView { phase, epoch: Epoch(1), stage, endpoints }
}

pub(crate) fn label(text: &str) -> HostLabel {
    HostLabel::parse(text).unwrap()
}

fn service(name: &str, route: Route) -> Service {
    Service {
        name: name.parse().unwrap(),
        command: "true".to_owned(),
        directory: None,
        port_variable: Some("PORT".to_owned()),
        route,
        readiness: Readiness { probe: Probe::Tcp, interval: Millis::from_secs(1), deadline: Millis::from_secs(9) },
        cpu_millicores: 100,
        memory_mib: 64,
        secrets: Vec::new(),
        environment: Vec::new(),
    }
}

fn manifest() -> Manifest {
    let prefix = |text| PathPrefix::parse(text).unwrap();
    Manifest {
        services: vec![
            service("web", Route::Web { websockets: vec![prefix("/ws")] }),
            service("backend", Route::Api { prefix: prefix("/api"), websockets: vec![prefix("/api/live")] }),
            service("database", Route::None),
        ],
        resources: Vec::new(),
        jobs: Vec::new(),
        idle_sleep: Millis::from_minutes(15),
        on_sleep: None,
    }
}

impl World {
    /// A gateway with one active link for `web` and one session; the runtime sleeps.
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let signing = SigningKey::create(&directory.path().join("share.key")).unwrap();
        let view = Arc::new(GatewayView::default());
        view.put_freshness(Freshness {
            last_heard: Instant::now() + Duration::from_secs(3600),
            position: Position::new(1),
        });
        let decided = Arc::new(Decided {
            view: Arc::clone(&view),
            wakes: AtomicU32::new(0),
            wake_answer: Mutex::new(Ok(())),
            redeemed: Mutex::default(),
            blocked: Mutex::default(),
        });
        let activity = Activity::default();
        let mut config = Config::new(DOMAIN, Scheme::PlainHttpDev, "127.0.0.1:0".parse().unwrap());
        change(&mut config);
        let parts = Parts {
            view: Arc::clone(&view),
            decisions: Arc::clone(&decided) as Arc<dyn Decisions>,
            verifier: ShareVerifier::new([signing.verification_key()]).unwrap(),
            handoff_key: HandoffKey::random().unwrap(),
            activity: activity.clone(),
        };
        let gateway = Gateway::start(config, parts).await.unwrap();
        let world =
            Self { gateway, view, decided, activity, signing, _directory: directory, closers: Mutex::default() };
        world.put_workspace(LABEL, AccessMode::SignedLinks, false);
        world.put_link(|_| {});
        world.put_session(COOKIE);
        world
    }

    pub(crate) fn org(&self) -> OrgId {
        OrgId::from_uuid(uuid(1))
    }

    pub(crate) fn workspace(&self) -> WorkspaceId {
        WorkspaceId::from_uuid(uuid(3))
    }

    pub(crate) fn link(&self) -> LinkId {
        LinkId::from_uuid(uuid(4))
    }

    pub(crate) fn put_workspace(&self, name: &str, access_mode: AccessMode, archived: bool) {
        let routes = WorkspaceRoutes {
            org: self.org(),
            project: ProjectId::from_uuid(uuid(2)),
            workspace: self.workspace(),
            service: "web".parse().unwrap(),
            access_mode,
            archived,
            routes: RouteTable::of(&manifest(), &"web".parse().unwrap()).unwrap(),
        };
        self.view.put_workspace(label(name), routes);
    }

    /// Puts the link anew, changed; what is no longer allowed is closed, as the read model does it.
    pub(crate) fn put_link(&self, change: impl FnOnce(&mut LinkView)) {
        let mut link = LinkView {
            link: self.link(),
            org: self.org(),
            project: ProjectId::from_uuid(uuid(2)),
            workspace: self.workspace(),
            service: "web".parse().unwrap(),
            families: RouteFamilies::ALL,
            generation: Generation(1),
            expires_at: now().plus(Millis::from_hours(1)),
            phase: LinkPhase::Active,
            label: "review".to_owned(),
            org_name: "Acme <Works>".to_owned(),
            workspace_name: "Signed links".to_owned(),
            host: label(LABEL),
            wakes_left: None,
            closers: self.closers.lock().clone(),
        };
        change(&mut link);
        let closers = link.closers.clone();
        let (phase, families) = (link.phase, link.families);
        self.view.put_link(link);
        for family in RouteFamilies::ALL.iter() {
            if phase != LinkPhase::Active || !families.contains(family) {
                closers.of(family).cancel();
            }
        }
    }

    pub(crate) fn revoke(&self) {
        self.put_link(|link| link.phase = LinkPhase::Revoked);
    }

    pub(crate) fn put_session(&self, cookie: &str) {
        let session = SessionView {
            session: SessionId::from_uuid(uuid(5)),
            link: self.link(),
            generation: Generation(1),
            expires_at: now().plus(Millis::from_hours(1)),
        };
        self.view.put_session(TokenDigest::of(cookie.as_bytes()), session);
    }

    pub(crate) fn ready(&self, app: SocketAddr) {
        let endpoints = [("web", app), ("backend", app), ("database", app)];
        self.view.put_runtime(self.workspace(), runtime(RuntimePhase::Ready, None, &endpoints));
    }

    pub(crate) fn claims(&self) -> ShareClaims {
        ShareClaims {
            link: self.link(),
            generation: Generation(1),
            org: self.org(),
            workspace: self.workspace(),
            service: "web".parse().unwrap(),
            families: RouteFamilies::ALL,
            issued_at: now(),
            expires_at: now().plus(Millis::from_hours(1)),
        }
    }

    pub(crate) fn token(&self) -> Secret {
        self.signing.mint(&self.claims())
    }

    pub(crate) fn sign(&self, claims: &ShareClaims) -> Secret {
        self.signing.mint(claims)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.gateway.address()
    }

    pub(crate) fn port(&self) -> u16 {
        self.address().port()
    }

    /// `web--signed-links--acme.dev.localhost:1234`
    pub(crate) fn host(&self) -> String {
        format!("{LABEL}.{DOMAIN}:{}", self.port())
    }

    pub(crate) fn cookie_header(&self) -> String {
        format!("envforge_session={COOKIE}")
    }
}

/// Waits for a condition, with a deadline.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "never came: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
