//! A gateway on a real log, in memory views that follow it, and the verbs that change what it sees.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use envforge_commands::Commands;
use envforge_domain::access::{Grant, Grantee, Role, Scope};
use envforge_domain::commit::{Actor, Commit, Component, Expectation, Position, StreamId, Surface};
use envforge_domain::dev_link::{DevLinkEvent, Generation, RouteFamilies};
use envforge_domain::event::Event;
use envforge_domain::ids::{
    CommandId, CommitId, CorrelationId, HandoffId, HostId, LinkId, OrgId, ProjectId, SessionId, UserId, WorkspaceId,
};
use envforge_domain::manifest::{Manifest, PathPrefix, Probe, Readiness, Route, Service};
use envforge_domain::organization::OrganizationEvent;
use envforge_domain::runtime::{Epoch, RuntimeEvent, SleepCause, WakeStage};
use envforge_domain::secret::{Secret, TokenDigest};
use envforge_domain::secrets::{RefusedSecret, SecretProblem};
use envforge_domain::time::{Clock, Millis, UnixMillis};
use envforge_domain::user::{EmailAddress, UserEvent};
use envforge_domain::workspace::{AccessMode, Branch, WorkspaceEvent};
use envforge_eventlog::SharedLog;
use envforge_eventlog::sqlite::{Config as LogConfig, SqliteLog};
use envforge_gateway::{Activity, Config, Decisions, Gateway, HandoffKey, LogDecisions, Parts, Scheme};
use envforge_identity::share_token::{ShareClaims, ShareVerifier, SigningKey};
use envforge_identity::workspace_handoff::WorkspaceHandoff;
use envforge_projections::gateway_view::RuntimePhase;
use envforge_projections::{Authorizer, DenialSink, Hot};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub(crate) const DOMAIN: &str = "dev.localhost";
pub(crate) const LABEL: &str = "web--signed-links--acme";
/// What the reviewer's browser keeps.
pub(crate) const COOKIE: &str = "0123456789012345678901234567890123456789abc";

/// The machine's clock: these tests measure against real timers and sockets.
struct MachineClock;

impl Clock for MachineClock {
    fn now(&self) -> UnixMillis {
        now()
    }
}

#[allow(clippy::disallowed_methods, reason = "the tests' one clock")]
pub(crate) fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    UnixMillis::new(since.as_millis() as u64)
}

fn uuid(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

pub(crate) struct World {
    pub(crate) gateway: Gateway,
    pub(crate) hot: Arc<Hot>,
    pub(crate) log: SharedLog,
    pub(crate) activity: Activity,
    pub(crate) denials: Arc<DenialSink>,
    /// Cancelled: the views hear nothing more of the log.
    pub(crate) deaf: CancellationToken,
    signing: SigningKey,
    _directory: tempfile::TempDir,
}

/// A link to issue.
pub(crate) struct NewLink {
    pub(crate) number: u128,
    pub(crate) cookie: &'static str,
    pub(crate) families: RouteFamilies,
    pub(crate) lifetime: Millis,
    pub(crate) wake_budget: Option<u32>,
}

/// What most tests use.
pub(crate) const LINK: NewLink = NewLink {
    number: 4,
    cookie: COOKIE,
    families: RouteFamilies::ALL,
    lifetime: Millis::from_hours(1),
    wake_budget: None,
};

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

fn config() -> Config {
    let mut config = Config::new(DOMAIN, Scheme::PlainHttpDev, "127.0.0.1:0".parse().unwrap());
    config.http1_lane = crate::HTTP1_LANE;
    config
}

fn parts(
    log: &SharedLog,
    hot: &Arc<Hot>,
    signing: &SigningKey,
    activity: &Activity,
    denials: Arc<DenialSink>,
) -> Parts {
    let commands = Arc::new(Commands::new(Arc::clone(log)));
    let authorizer = Authorizer::new(Arc::clone(log), Arc::clone(hot), denials);
    Parts {
        view: Arc::clone(&hot.gateway),
        decisions: Arc::new(LogDecisions::new(commands, authorizer)) as Arc<dyn Decisions>,
        verifier: ShareVerifier::new([signing.verification_key()]).unwrap(),
        handoff_key: HandoffKey::derive(&Secret::new("a secret that all gateways of a domain share".to_owned())),
        activity: activity.clone(),
        clock: Arc::new(MachineClock),
    }
}

impl World {
    /// Another gateway of the same domain: its own follower of the log, its own port.
    pub(crate) async fn another(&self) -> Gateway {
        let hot = Hot::start(Arc::clone(&self.log), self.deaf.clone());
        hot.caught_up().await.unwrap();
        let parts = parts(&self.log, &hot, &self.signing, &Activity::default(), Arc::default());
        Gateway::start(config(), parts).await.unwrap()
    }

    /// A gateway with one active link for `web` and one session; the runtime sleeps.
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let signing = SigningKey::create(&directory.path().join("share.key")).unwrap();
        let log: SharedLog = Arc::new(SqliteLog::open(LogConfig::new(directory.path().join("log"))).await.unwrap());
        let deaf = CancellationToken::new();
        let hot = Hot::start(Arc::clone(&log), deaf.clone());
        let activity = Activity::default();
        let mut config = config();
        change(&mut config);
        let denials = Arc::new(DenialSink::default());
        let parts = parts(&log, &hot, &signing, &activity, Arc::clone(&denials));
        let gateway = Gateway::start(config, parts).await.unwrap();
        let world = Self { gateway, hot, log, activity, denials, deaf, signing, _directory: directory };
        world.seed().await;
        world
    }

    async fn seed(&self) {
        let created = OrganizationEvent::Created {
            org: self.org(),
            slug: "acme".parse().unwrap(),
            name: "Acme <Works>".to_owned(),
        };
        let issuer = UserId::from_uuid(uuid(6));
        let grant = Grant {
            grantee: Grantee::User(issuer),
            role: Role::Developer,
            scope: Scope::Organization,
            expires_at: None,
        };
        let member = OrganizationEvent::MemberAdded { user: issuer };
        let role = OrganizationEvent::RoleAssigned { grant };
        self.append(StreamId::organization(self.org()), vec![created.into(), member.into(), role.into()]).await;
        let account = UserEvent::Created {
            user: issuer,
            issuer: "local".to_owned(),
            subject: issuer.to_string(),
            email: EmailAddress::parse("ada@example.com").unwrap(),
            name: "Ada".to_owned(),
        };
        self.append(StreamId::user(self.org(), issuer), vec![account.into()]).await;
        self.create_workspace(self.workspace(), "signed-links", AccessMode::SignedLinks).await;
        self.issue(LINK).await;
    }

    /// Appends to a stream, whatever stands there, and waits until the views have it.
    pub(crate) async fn append(&self, stream: StreamId, events: Vec<Event>) {
        self.append_all(vec![(stream, events)]).await;
    }

    /// The same for several streams, which the views hear of at once.
    pub(crate) async fn append_all(&self, streams: Vec<(StreamId, Vec<Event>)>) {
        let (mut batch, command) = (Vec::new(), CommandId::from_uuid(Uuid::now_v7()));
        for (stream, events) in streams {
            let last = self.log.last_of_stream(&stream).await.unwrap();
            let expected = Expectation::LastAt(last.map_or(Position::START, |last| last.position));
            let id = Uuid::now_v7();
            let commit = Commit {
                id: CommitId::from_uuid(id),
                command,
                request_digest: None,
                stream,
                actor: Actor::System(Component::Setup),
                surface: Surface::Cli,
                correlation: CorrelationId::from_uuid(*command.as_uuid()),
                causation: None,
                decided_at: now(),
                events,
            };
            batch.push((commit, expected));
        }
        let appended = self.log.append(batch).await.unwrap();
        self.hot.wait_for(appended.last(), Duration::from_secs(10)).await.unwrap();
    }

    pub(crate) fn org(&self) -> OrgId {
        OrgId::from_uuid(uuid(1))
    }

    pub(crate) fn project(&self) -> ProjectId {
        ProjectId::from_uuid(uuid(2))
    }

    pub(crate) fn workspace(&self) -> WorkspaceId {
        WorkspaceId::from_uuid(uuid(3))
    }

    pub(crate) fn link(&self) -> LinkId {
        LinkId::from_uuid(uuid(LINK.number))
    }

    pub(crate) async fn create_workspace(&self, workspace: WorkspaceId, slug: &str, access_mode: AccessMode) {
        let created = WorkspaceEvent::Created {
            workspace,
            project: self.project(),
            slug: slug.parse().unwrap(),
            branch: Branch::parse("main").unwrap(),
            manifest: manifest(),
            access_mode,
        };
        self.append(StreamId::workspace(self.org(), workspace), vec![created.into()]).await;
    }

    pub(crate) async fn access_mode(&self, access_mode: AccessMode) {
        let changed = WorkspaceEvent::AccessModeChanged { access_mode };
        self.append(StreamId::workspace(self.org(), self.workspace()), vec![changed.into()]).await;
    }

    pub(crate) async fn archive(&self) {
        self.append(StreamId::workspace(self.org(), self.workspace()), vec![WorkspaceEvent::Archived.into()]).await;
    }

    /// A link with one session.
    pub(crate) async fn issue(&self, new: NewLink) {
        let link = LinkId::from_uuid(uuid(new.number));
        let issued = DevLinkEvent::Issued {
            link,
            project: self.project(),
            workspace: self.workspace(),
            service: "web".parse().unwrap(),
            families: new.families,
            issued_at: now(),
            expires_at: now().plus(new.lifetime),
            label: "review".to_owned(),
            wake_budget: new.wake_budget,
            issued_by: UserId::from_uuid(uuid(6)),
        };
        let opened = DevLinkEvent::SessionOpened {
            session: SessionId::from_uuid(uuid(1_000 + new.number)),
            handoff: HandoffId::from_uuid(uuid(2_000 + new.number)),
            cookie: TokenDigest::of(new.cookie.as_bytes()),
            generation: Generation(1),
            expires_at: now().plus(new.lifetime),
        };
        self.append(StreamId::dev_link(self.org(), link), vec![issued.into(), opened.into()]).await;
    }

    pub(crate) async fn link_event(&self, event: DevLinkEvent) {
        self.append(StreamId::dev_link(self.org(), self.link()), vec![event.into()]).await;
    }

    pub(crate) async fn revoke(&self) {
        self.link_event(DevLinkEvent::Revoked { reason: None }).await;
    }

    pub(crate) async fn narrow(&self, families: RouteFamilies) {
        self.link_event(DevLinkEvent::AllowlistChanged { families }).await;
    }

    pub(crate) async fn rotate(&self) {
        let rotated = DevLinkEvent::Rotated {
            generation: Generation(2),
            issued_at: now(),
            expires_at: now().plus(Millis::from_hours(1)),
        };
        self.link_event(rotated).await;
    }

    pub(crate) async fn runtime_event(&self, events: Vec<RuntimeEvent>) {
        let events = events.into_iter().map(Event::from).collect();
        self.append(StreamId::runtime(self.org(), self.workspace()), events).await;
    }

    pub(crate) async fn stage(&self, stage: WakeStage) {
        self.runtime_event(vec![RuntimeEvent::StageReached { epoch: Epoch(1), stage }]).await;
    }

    /// What the agent reports when the declared routes answer.
    pub(crate) async fn ready(&self, app: SocketAddr) {
        self.ready_at(&[("web", app), ("backend", app), ("database", app)]).await;
    }

    pub(crate) async fn ready_at(&self, endpoints: &[(&str, SocketAddr)]) {
        self.runtime_event(readiness(endpoints)).await;
    }

    /// Ready and revoked in one moment.
    pub(crate) async fn ready_and_revoked(&self, app: SocketAddr) {
        let ready = readiness(&[("web", app)]).into_iter().map(Event::from).collect();
        let revoked = vec![DevLinkEvent::Revoked { reason: None }.into()];
        let runtime = (StreamId::runtime(self.org(), self.workspace()), ready);
        self.append_all(vec![runtime, (StreamId::dev_link(self.org(), self.link()), revoked)]).await;
    }

    pub(crate) async fn fail(&self) {
        let failed = RuntimeEvent::Failed {
            epoch: Epoch(1),
            stage: Some(WakeStage::Starting),
            reason: "the private reason".to_owned(),
        };
        self.runtime_event(vec![failed]).await;
    }

    pub(crate) async fn fail_for_a_secret(&self, name: &str) {
        let problem = SecretProblem::Missing;
        let refused = vec![RefusedSecret { consumer: "web".parse().unwrap(), name: name.parse().unwrap(), problem }];
        let reason = RefusedSecret::told(&refused);
        let stage = Some(WakeStage::Placed);
        let failed = RuntimeEvent::Failed { epoch: Epoch(1), stage, reason };
        self.runtime_event(vec![RuntimeEvent::SecretsRefused { epoch: Epoch(1), refused }, failed]).await;
    }

    pub(crate) async fn go_to_sleep(&self) {
        let cause = SleepCause::Idle { idle_for: Millis::from_minutes(15) };
        self.runtime_event(vec![RuntimeEvent::SleepRequested { epoch: Epoch(1), cause }]).await;
    }

    pub(crate) async fn slept(&self) {
        self.runtime_event(vec![RuntimeEvent::Slept { epoch: Epoch(1) }]).await;
    }

    /// Wakes that stand in the log.
    pub(crate) async fn wakes(&self) -> usize {
        let stream = StreamId::runtime(self.org(), self.workspace());
        let commits = self.log.read_stream(&stream, Position::START, 1_000).await.unwrap();
        let events = commits.iter().flat_map(|recorded| &recorded.commit.events);
        events.filter(|event| matches!(event, Event::Runtime(RuntimeEvent::WakeRequested { .. }))).count()
    }

    /// Waits until a wake stands in the log.
    pub(crate) async fn woken(&self) {
        let mut runtime = self.hot.gateway.runtime(self.workspace());
        let waking = runtime.wait_for(|view| view.epoch >= Epoch(1) && view.phase != RuntimePhase::Asleep);
        tokio::time::timeout(crate::app::SOON, waking).await.expect("a wake in time").unwrap();
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

    pub(crate) fn sign_handoff(&self, handoff: &WorkspaceHandoff) -> Secret {
        self.signing.mint_handoff(handoff)
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

fn readiness(endpoints: &[(&str, SocketAddr)]) -> Vec<RuntimeEvent> {
    let ready = RuntimeEvent::Ready {
        epoch: Epoch(1),
        commit: "0".repeat(40),
        services: Vec::new(),
        lease_until: now().plus(Millis::from_hours(1)),
    };
    let bound = RuntimeEvent::EndpointsBound {
        epoch: Epoch(1),
        host: HostId::from_uuid(uuid(7)),
        endpoints: endpoints.iter().map(|(name, address)| (name.parse().unwrap(), *address)).collect(),
    };
    vec![ready, bound]
}

/// Waits for a condition, with a deadline.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "never came: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await; // pause: between two looks
    }
}
