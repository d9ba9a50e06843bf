//! A real API server in this process: embedded log, hot views, SQL read models, HTTP on a free port.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use envforge_api::{Config, GatewayUrl, OpenShells, Parts};
use envforge_commands::{Commands, Context, organizations, runtimes, users};
use envforge_domain::access::{
    Action, ActorFacts, Facts, Grant, Grantee, Permit, Principal, Request, Resource, Role, Scope, authorize,
};
use envforge_domain::commit::{Actor, Component, Position, Standing, StreamId, Surface};
use envforge_domain::ids::{HostId, OrgId, UserId, WorkspaceId};
use envforge_domain::organization::{OrganizationCommand, OrganizationPolicy};
use envforge_domain::runtime::{ReadyService, RuntimeCommand};
use envforge_domain::secret::Secret;
use envforge_domain::time::{Clock, Millis, SharedClock, UnixMillis};
use envforge_domain::user::{EmailAddress, UserCommand};
use envforge_domain::workspace::{ActiveWorkspace, Workspace};
use envforge_eventlog::SharedLog;
use envforge_eventlog::sqlite::{Config as LogConfig, SqliteLog};
use envforge_identity::clock::SkippingClock;
use envforge_identity::credentials::{Account, Credentials};
use envforge_identity::key_ring::SigningKeys;
use envforge_identity::oidc::{Config as OidcConfig, Oidc, Settings};
use envforge_identity::share_token::{ShareVerifier, SigningKey};
use envforge_identity::sign_in::{Config as IdentityConfig, Identity};
use envforge_projections::sql::{Database, Supervisor};
use envforge_projections::{Authorizer, DenialSink, Hot};
use envforge_testkit::InterferedLog;
use reqwest::Method;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::faults::{Faults, FaultyLog};
use crate::rights::Overtaken;

pub(crate) const PASSWORD: &str = "plum kite engine 7";
/// How long a test waits for what must come soon.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const MANIFEST: &str = r#"
version: 1
services:
  web:
    command: ./web
    route: { web: {}, websockets: [/live] }
  api:
    command: ./api
    route: { api: /api }
"#;

pub(crate) struct House {
    pub(crate) base: String,
    pub(crate) commands: Commands,
    pub(crate) log: SharedLog,
    pub(crate) clock: Arc<SkippingClock>,
    pub(crate) hot: Arc<Hot>,
    pub(crate) denials: Arc<DenialSink>,
    pub(crate) verification: ShareVerifier,
    pub(crate) identity: Arc<Identity>,
    pub(crate) oidc: Option<Arc<Oidc>>,
    pub(crate) client: reqwest::Client,
    pub(crate) database: Database,
    pub(crate) faults: Arc<Faults>,
    seen: Arc<AtomicU64>,
    stop: CancellationToken,
    supervisor: Option<Supervisor>,
    config: Config,
    authorizer: Authorizer,
    share_key: Arc<SigningKey>,
    _directory: tempfile::TempDir,
}

impl Drop for House {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A permit of EnvForge itself.
pub(crate) fn system(action: Action, resource: Resource, now: UnixMillis) -> Permit {
    let facts = Facts { position: Position::START, actor: ActorFacts::System };
    let (actor, surface) = (Actor::System(Component::Setup), action.row().surfaces_of(Principal::System)[0]);
    authorize(&facts, &Request { actor, action, resource, surface, now }).unwrap()
}

/// Somebody who signed in.
#[derive(Clone)]
pub(crate) struct Person {
    pub(crate) client: reqwest::Client,
    pub(crate) base: String,
    pub(crate) token: String,
    pub(crate) refresh: String,
    pub(crate) user: String,
    pub(crate) seen: Arc<AtomicU64>,
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    pub(crate) fn position(&self) -> u64 {
        self.headers["envforge-position"].to_str().unwrap().parse().unwrap()
    }

    pub(crate) fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }

    pub(crate) fn text(&self, field: &str) -> String {
        self.body[field].as_str().unwrap_or_else(|| panic!("no text `{field}` in {self:?}")).to_owned()
    }

    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:#?}");
        self
    }

    /// A problem of this code, in its proper form.
    #[track_caller]
    pub(crate) fn expect_problem(self, status: u16, code: &str) -> Self {
        assert_eq!((self.status, self.code()), (status, code), "{self:#?}");
        assert_eq!(self.headers["content-type"], "application/problem+json");
        assert_eq!(self.body["status"], status);
        assert_eq!(self.body["type"], format!("/v1/problems/{code}"));
        for field in ["title", "detail", "instance"] {
            assert!(self.body[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {self:#?}");
        }
        self
    }
}

pub(crate) async fn answer(request: reqwest::RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let bytes = response.bytes().await.unwrap();
    let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into()));
    Answer { status, headers, body }
}

impl Person {
    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method, format!("{}{path}", self.base)).bearer_auth(&self.token)
    }

    /// A read that sees everything that anybody of the house was answered, as a client reads who remembers positions.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.get_at(path, self.seen.load(Ordering::SeqCst)).await
    }

    async fn remembered(&self, request: reqwest::RequestBuilder) -> Answer {
        let answer = answer(request).await;
        if answer.headers.contains_key("envforge-position") {
            self.seen.fetch_max(answer.position(), Ordering::SeqCst);
        }
        answer
    }

    /// A read that sees what was written at `position`.
    pub(crate) async fn get_at(&self, path: &str, position: u64) -> Answer {
        answer(self.request(Method::GET, path).header("EnvForge-Min-Position", position)).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.remembered(self.request(Method::POST, path).json(&body)).await
    }

    pub(crate) async fn post_keyed(&self, path: &str, key: &str, body: Value) -> Answer {
        self.remembered(self.request(Method::POST, path).header("Idempotency-Key", key).json(&body)).await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Answer {
        self.remembered(self.request(Method::PUT, path).json(&body)).await
    }

    pub(crate) async fn patch(&self, path: &str, body: Value) -> Answer {
        self.remembered(self.request(Method::PATCH, path).json(&body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.remembered(self.request(Method::DELETE, path)).await
    }
}

impl House {
    /// With organization `acme` and its owner `ada@acme.test`.
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let log = Self::log_in(&directory).await;
        Self::start_on(directory, log, change, None).await
    }

    /// On a log where others can be made to be first.
    pub(crate) async fn start_overtaken() -> (Self, Arc<InterferedLog<Overtaken>>) {
        let directory = tempfile::tempdir().unwrap();
        let overtaken = Overtaken::new(Self::log_in(&directory).await);
        let log: SharedLog = Arc::<InterferedLog<Overtaken>>::clone(&overtaken);
        (Self::start_on(directory, log, |_| {}, None).await, overtaken)
    }

    /// With an OpenID provider, at the port that the provider sends browsers back to.
    pub(crate) async fn start_with_provider(port: u16, settings: Settings) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let log = Self::log_in(&directory).await;
        Self::start_on(directory, log, |_| {}, Some((port, settings))).await
    }

    async fn log_in(directory: &tempfile::TempDir) -> SharedLog {
        Arc::new(SqliteLog::open(LogConfig::new(directory.path().join("log"))).await.unwrap())
    }

    async fn start_on(
        directory: tempfile::TempDir,
        log: SharedLog,
        change: impl FnOnce(&mut Config),
        provider: Option<(u16, Settings)>,
    ) -> Self {
        let faults = Arc::new(Faults::default());
        let log: SharedLog = Arc::new(InterferedLog(FaultyLog { log, faults: Arc::clone(&faults) }));
        let stop = CancellationToken::new();
        let hot = Hot::start(Arc::clone(&log), stop.clone());
        let database = Database::connect_sqlite(&directory.path().join("read-models.sqlite")).await.unwrap();
        let supervisor = Supervisor::start(&log, &database);
        let commands = Commands::new(Arc::clone(&log));
        let denials = Arc::new(DenialSink::default());
        let authorizer = Authorizer::new(Arc::clone(&log), Arc::clone(&hot), Arc::clone(&denials));
        let credentials = Credentials::open_sqlite(&directory.path().join("credentials.sqlite")).await.unwrap();
        let port = provider.as_ref().map_or(0, |(port, _)| *port);
        let oidc = provider.map(|(_, settings)| {
            let config = OidcConfig::check(settings, |path| std::fs::read_to_string(path)).unwrap();
            Arc::new(Oidc::new(config, &credentials).unwrap())
        });
        let config = IdentityConfig {
            issuer: "http://envforge.test".into(),
            audience: "http://api.envforge.test".into(),
            keys: SigningKeys::Hs256 { key_file: directory.path().join("access.key") },
            bcrypt_cost: 4,
            hash_workers: 2,
            hash_waiting_max: 64,
        };
        let identity = Arc::new(Identity::open(config, credentials).unwrap());
        let share_key = Arc::new(SigningKey::load_or_create(&directory.path().join("share.pem")).unwrap());
        let verification = ShareVerifier::new([share_key.verification_key()]).unwrap();
        let clock = Arc::new(SkippingClock::new());
        let mut config = Config::new(GatewayUrl::parse("http://dev.localhost:8443").unwrap());
        change(&mut config);
        let mut house = Self {
            base: String::new(),
            commands,
            log,
            clock,
            hot,
            denials,
            verification,
            identity,
            oidc,
            client: reqwest::Client::new(),
            database,
            faults,
            seen: Arc::default(),
            stop,
            supervisor: Some(supervisor),
            config,
            authorizer,
            share_key,
            _directory: directory,
        };
        house.base = house.serve(house.commands.clone(), port).await;
        house.organization("acme", "ada@acme.test").await;
        house
    }

    /// Serves the API with these commands, and answers where.
    async fn serve(&self, commands: Commands, port: u16) -> String {
        let clock: SharedClock = self.clock.clone();
        let router = envforge_api::router(Parts {
            config: self.config.clone(),
            clock,
            log: Arc::clone(&self.log),
            commands,
            authorizer: self.authorizer.clone(),
            database: self.database.clone(),
            identity: Arc::clone(&self.identity),
            gateways: Arc::<Hot>::clone(&self.hot),
            open_shells: OpenShells::new(Arc::clone(&self.hot), true),
            oidc: self.oidc.clone(),
            share_key: Arc::clone(&self.share_key),
            metrics: None,
            stop: self.stop.clone(),
        });
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        tokio::spawn(envforge_api::serve(listener, router, self.config.connections_max, self.stop.clone()));
        format!("http://{address}")
    }

    /// The same person at another API process on the same log and database, which remembers nothing of this one's.
    pub(crate) async fn elsewhere(&self, person: &Person) -> Person {
        let base = self.another().await;
        Person { base, ..person.clone() }
    }

    /// Another API process on the same log and database; answers where.
    pub(crate) async fn another(&self) -> String {
        self.serve(Commands::new(Arc::clone(&self.log)), 0).await
    }

    /// From now on the read models stay as they are.
    pub(crate) async fn stop_projecting(&mut self) {
        if let Some(supervisor) = self.supervisor.take() {
            supervisor.stop().await;
        }
    }

    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    /// Another organization with its first owner.
    pub(crate) async fn organization(&self, slug: &str, email: &str) -> OrgId {
        let now = self.clock.now();
        let (org, user) = (OrgId::from_uuid(Uuid::now_v7()), UserId::from_uuid(Uuid::now_v7()));
        let email = EmailAddress::parse(email).unwrap();
        let create = UserCommand::Create {
            user,
            issuer: "local".into(),
            subject: user.to_string(),
            email: email.clone(),
            name: format!("Owner of {slug}"),
        };
        let permit = self.system(Action::UserCreate, Resource::Organization(org));
        users::change(&self.commands, &permit, &Context::new(now), user, &create).await.unwrap();
        let permit = self.system(Action::OrganizationCreate, Resource::Organization(org));
        let (slug, name) = (slug.parse().unwrap(), format!("The {slug} company"));
        let context = Context::new(now);
        let done = organizations::create(&self.commands, &permit, &context, org, slug, name, user).await.unwrap();
        self.seen.fetch_max(done.position.get(), Ordering::SeqCst);
        self.identity
            .self_hosted()
            .bootstrap(Account { user, org, email }, Some(Secret::new(PASSWORD.to_owned())), now)
            .await
            .unwrap();
        org
    }

    /// Changes the policy of `acme` as somebody whom it does not lock out.
    pub(crate) async fn policy(&self, change: impl FnOnce(&mut OrganizationPolicy)) {
        let org = self.hot.authorization.organization_by_slug(&"acme".parse().unwrap()).unwrap();
        let mut policy = self.hot.authorization.organization_policy(org).unwrap();
        change(&mut policy);
        let user = self.identity.self_hosted().credentials();
        let owner =
            user.account_by_address(&EmailAddress::parse("ada@acme.test").unwrap()).await.unwrap().unwrap().user;
        // The owner's own rights, without the session that such a policy may end.
        let grant =
            Grant { grantee: Grantee::User(owner), role: Role::Owner, scope: Scope::Organization, expires_at: None };
        let link_issuers = policy.link_issuers;
        let facts = ActorFacts::Member { org, active: true, session_live: true, link_issuers, grants: vec![grant] };
        let (actor, resource) = (Actor::User(owner), Resource::Organization(org));
        let (action, surface, now) = (Action::OrganizationChangePolicy, Surface::Api, self.clock.now());
        let facts = Facts { position: Position::START, actor: facts };
        let permit = authorize(&facts, &Request { actor, action, resource, surface, now }).unwrap();
        let streams = [StreamId::organization(org), StreamId::user(org, owner)];
        let lasts = self.log.last_positions_of(&streams).await.unwrap();
        let standing = streams.into_iter().zip(lasts).map(|(stream, last)| Standing { stream, last });
        let command = OrganizationCommand::ChangePolicy { by: actor, policy, provider: None, now };
        let (permit, context) = (permit.resting_on(standing), Context::new(self.clock.now()));
        let done = organizations::change(&self.commands, &permit, &context, &command).await.unwrap();
        self.hot.wait_for(done.position, PATIENCE).await.unwrap();
        self.seen.fetch_max(done.position.get(), Ordering::SeqCst);
    }

    pub(crate) fn system(&self, action: Action, resource: Resource) -> Permit {
        system(action, resource, self.clock.now())
    }

    pub(crate) async fn anonymous(&self, method: Method, path: &str, body: Value) -> Answer {
        answer(self.client.request(method, format!("{}{path}", self.base)).json(&body)).await
    }

    pub(crate) async fn login(&self, email: &str, password: &str) -> Answer {
        self.anonymous(Method::POST, "/v1/auth/login", json!({"email": email, "password": password})).await
    }

    pub(crate) async fn person(&self, email: &str) -> Person {
        self.signed_in(self.login(email, PASSWORD).await)
    }

    /// Somebody who signs in on a surface.
    pub(crate) async fn person_on(&self, email: &str, surface: &str) -> Person {
        let login = self.client.post(format!("{}/v1/auth/login", self.base)).header("EnvForge-Surface", surface);
        self.signed_in(answer(login.json(&json!({"email": email, "password": PASSWORD}))).await)
    }

    /// Whoever this answer signed in.
    #[track_caller]
    pub(crate) fn signed_in(&self, login: Answer) -> Person {
        let login = login.expect(200);
        Person {
            client: self.client.clone(),
            base: self.base.clone(),
            token: login.text("access_token"),
            refresh: login.text("refresh_token"),
            user: login.body["user"]["id"].as_str().unwrap().to_owned(),
            seen: Arc::clone(&self.seen),
        }
    }

    /// The owner of `acme`.
    pub(crate) async fn owner(&self) -> Person {
        self.person("ada@acme.test").await
    }

    /// A member of `acme` with these organization-wide roles.
    pub(crate) async fn member(&self, owner: &Person, name: &str, roles: &[&str]) -> Person {
        let email = format!("{name}@acme.test");
        let new = json!({"email": email, "name": name, "password": PASSWORD});
        let added = owner.post("/v1/orgs/acme/members", new).await.expect(201);
        for role in roles {
            let new = json!({"user": added.body["user"], "role": role});
            owner.post("/v1/orgs/acme/roles", new).await.expect(201);
        }
        self.person(&email).await
    }

    /// Project `orders` with workspace `signed-links`; answers the workspace's id.
    pub(crate) async fn workspace(&self, owner: &Person) -> String {
        let project = json!({"slug": "orders", "name": "Orders", "repository": "https://git.test/acme/orders"});
        owner.post("/v1/orgs/acme/projects", project).await.expect(201);
        let workspace = json!({"project": "orders", "slug": "signed-links", "branch": "main", "manifest": MANIFEST});
        owner.post("/v1/orgs/acme/workspaces", workspace).await.expect(201).text("id")
    }

    /// What a host would say: the runtime that was woken is ready. Answers the position.
    pub(crate) async fn report_ready(&self, org: OrgId, workspace: WorkspaceId) -> u64 {
        let stream = envforge_domain::commit::StreamId::runtime(org, workspace);
        let state = self.commands.load::<envforge_domain::runtime::Runtime>(&stream).await.unwrap().state;
        let (epoch, host) = (state.epoch(), HostId::from_uuid(Uuid::now_v7()));
        let services: Vec<_> = ["web", "api"].map(|name| name.parse().unwrap()).into();
        let ready = RuntimeCommand::ReportReady {
            epoch,
            commit: "4bd5cd8".into(),
            host,
            services: services
                .iter()
                .cloned()
                .map(|name| ReadyService { name, cpu_millicores: 100, memory_mib: 64 })
                .collect(),
            endpoints: services.into_iter().map(|name| (name, ([127, 0, 0, 1], 49_999).into())).collect(),
            lease_until: self.clock.now().plus(Millis::from_secs(30)),
        };
        let at = envforge_domain::commit::StreamId::workspace(org, workspace);
        let Workspace::Active(ActiveWorkspace { project, .. }) =
            self.commands.load::<Workspace>(&at).await.unwrap().state
        else {
            panic!("the workspace is not active")
        };
        let resource = Resource::Workspace { org, project, workspace };
        let permit = self.system(Action::RuntimeReport, resource);
        let choose = RuntimeCommand::ChooseHost { epoch, host };
        let context = Context::new(self.clock.now());
        runtimes::report(&self.commands, &permit, &context, workspace, &choose).await.unwrap();
        let context = Context::new(self.clock.now());
        runtimes::report(&self.commands, &permit, &context, workspace, &ready).await.unwrap().position.get()
    }

    /// All events of the log, as they are stored.
    pub(crate) async fn everything(&self) -> String {
        let mut text = String::new();
        let mut after = Position::START;
        loop {
            let page = self.log.read(after, 1_000, &envforge_eventlog::Filter::everything()).await.unwrap();
            if page.commits.is_empty() && page.at_head {
                return text;
            }
            after = page.read_up_to;
            for recorded in &page.commits {
                let stored = envforge_eventlog::schema::encode(&recorded.commit).unwrap();
                text.push_str(std::str::from_utf8(&stored).unwrap());
            }
        }
    }

    pub(crate) fn now(&self) -> UnixMillis {
        self.clock.now()
    }
}

/// Waits for a condition, and says which one did not come.
pub(crate) async fn eventually<T>(what: &str, look: impl AsyncFnMut() -> Option<T>) -> T {
    envforge_testkit::eventually(what, PATIENCE, look).await
}
