//! An organization with a workspace on a log of its own, a clock that is moved by hand, and machines that serve it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use envforge_agent::Host;
use envforge_commands::{CommandError, Commands, Context, organizations, projects, runtimes, workspaces};
use envforge_domain::access::{
    Action, ActorFacts, Facts, Grant, Grantee, Permit, Principal, Request, Resource, Role, Scope, authorize,
};
use envforge_domain::commit::{Actor, Component, Position, Standing, StreamId, Surface};
use envforge_domain::event::Event;
use envforge_domain::host::{Capacity, Host as HostState};
use envforge_domain::ids::{HostId, OrgId, ProjectId, UserId, WorkspaceId};
use envforge_domain::limits::RUNTIME_LEASE;
use envforge_domain::manifest::Manifest;
use envforge_domain::project::Repository;
use envforge_domain::runtime::{Epoch, Runtime, RuntimeCommand, RuntimeEvent, SleepCause, WakeCause};
use envforge_domain::time::{Clock, Millis, UnixMillis};
use envforge_domain::workspace::{AccessMode, Branch};
use envforge_eventlog::{Filter, LogError, SharedLog};
use envforge_reactors::{HostMachine, RuntimeReactor, SharedWorld, Timers};
use envforge_runtime::LocalHost;
use envforge_testkit::eventually;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// For a machine that builds other things at the same time; a test that passes never waits for it.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
pub(crate) const SERVER: &str = "echo started >> \"$ENVFORGE_DATA_DIR/starts\"; echo $$ > \"$ENVFORGE_DATA_DIR/pid\"; \
                                 exec python3 -m http.server $PORT --bind 127.0.0.1";
pub(crate) const MACHINE: &str = "0123456789abcdef0123456789abcdef";
pub(crate) const OTHER_MACHINE: &str = "fedcba9876543210fedcba9876543210";
const START: u64 = 1_800_000_000_000;

/// Stands still unless it is moved. The log stamps commits by it too.
pub(crate) struct HandClock(AtomicU64);

impl HandClock {
    pub(crate) fn skip(&self, length: Millis) {
        self.0.fetch_add(length.get(), Ordering::SeqCst);
    }
}

impl Clock for HandClock {
    fn now(&self) -> UnixMillis {
        UnixMillis::new(self.0.load(Ordering::SeqCst))
    }
}

pub(crate) fn owner() -> UserId {
    UserId::from_uuid(Uuid::from_u128(1))
}

pub(crate) fn acme() -> OrgId {
    OrgId::from_uuid(Uuid::from_u128(100))
}

pub(crate) fn globex() -> OrgId {
    OrgId::from_uuid(Uuid::from_u128(200))
}

/// What one workspace of these tests needs.
pub(crate) fn small() -> Capacity {
    Capacity { cpu_millicores: 250, memory_mib: 256 }
}

pub(crate) struct Site {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) log: SharedLog,
    pub(crate) commands: Commands,
    pub(crate) clock: Arc<HandClock>,
    repository: PathBuf,
    pub(crate) workspace: Thing,
}

/// A workspace with what it takes to act on it.
#[derive(Clone, Copy)]
pub(crate) struct Thing {
    pub(crate) org: OrgId,
    pub(crate) project: ProjectId,
    pub(crate) id: WorkspaceId,
}

impl Thing {
    pub(crate) fn resource(self) -> Resource {
        Resource::Workspace { org: self.org, project: self.project, workspace: self.id }
    }

    pub(crate) fn stream(self) -> StreamId {
        StreamId::runtime(self.org, self.id)
    }
}

/// How an agent is started.
pub(crate) struct Agent<'a> {
    /// Its state folder below the site's directory.
    pub(crate) state: &'a str,
    pub(crate) machine_id: &'a str,
    /// In place of the real machine's.
    pub(crate) capacity: Option<Capacity>,
    /// In place of the site's.
    pub(crate) log: Option<SharedLog>,
}

impl Default for Agent<'_> {
    fn default() -> Self {
        Self { state: "runtime", machine_id: MACHINE, capacity: None, log: None }
    }
}

pub(crate) struct Running {
    pub(crate) stop: CancellationToken,
    pub(crate) host: LocalHost,
    pub(crate) id: HostId,
    pub(crate) state: PathBuf,
    pub(crate) reactor: tokio::task::JoinHandle<Result<(), LogError>>,
}

impl Running {
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.reactor.await.unwrap().unwrap();
    }

    pub(crate) fn place(&self, thing: Thing) -> PathBuf {
        self.state.join("workspaces").join(thing.id.to_string())
    }

    /// How often the workspace's service was started here.
    pub(crate) fn starts(&self, thing: Thing) -> usize {
        std::fs::read_to_string(self.place(thing).join("data/starts")).map_or(0, |text| text.lines().count())
    }
}

/// The timers alone, until dropped.
pub(crate) struct Ticking {
    stop: CancellationToken,
    pub(crate) timers: tokio::task::JoinHandle<Result<(), LogError>>,
}

impl Ticking {
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.timers.await.unwrap().unwrap();
    }
}

impl Site {
    pub(crate) async fn new() -> Self {
        Self::with(SERVER).await
    }

    /// The workspace's one service is this command.
    pub(crate) async fn with(command: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let clock = Arc::new(HandClock(AtomicU64::new(START)));
        let mut config = envforge_eventlog::sqlite::Config::new(directory.path().join("log"));
        config.clock = Arc::clone(&clock) as _;
        let log: SharedLog = Arc::new(envforge_eventlog::sqlite::SqliteLog::open(config).await.unwrap());
        let commands = Commands::new(Arc::clone(&log));
        let repository = repository(directory.path());
        let nobody = WorkspaceId::from_uuid(Uuid::nil());
        let workspace = Thing { org: acme(), project: ProjectId::from_uuid(Uuid::nil()), id: nobody };
        let mut site = Self { directory, log, commands, clock, repository, workspace };
        let project = site.organization(acme(), "acme").await;
        site.workspace = site.workspace_of(acme(), project, "main", &manifest(command)).await;
        site
    }

    /// An organization with one project.
    pub(crate) async fn organization(&self, org: OrgId, slug: &str) -> ProjectId {
        let (now, context) = (self.now(), Context::new(self.now()));
        let facts = Facts { position: Position::START, actor: ActorFacts::System };
        let request = Request {
            actor: Actor::System(Component::Setup),
            action: Action::OrganizationCreate,
            resource: Resource::Organization(org),
            surface: Surface::Cli,
            now,
        };
        let permit = authorize(&facts, &request).unwrap();
        let name = slug.to_owned();
        organizations::create(&self.commands, &permit, &context, org, slug.parse().unwrap(), name, owner())
            .await
            .unwrap();
        let permit = permit_of(&self.log, org, Action::ProjectCreate, Resource::Organization(org), now).await;
        let repository = Repository::parse(self.repository.to_str().unwrap()).unwrap();
        let name = "Orders".to_owned();
        projects::create(&self.commands, &permit, &Context::new(now), "orders".parse().unwrap(), name, repository)
            .await
            .unwrap()
            .0
    }

    pub(crate) async fn workspace_of(&self, org: OrgId, project: ProjectId, slug: &str, manifest: &str) -> Thing {
        let now = self.now();
        let new = workspaces::NewWorkspace {
            project,
            slug: slug.parse().unwrap(),
            branch: Branch::parse("main").unwrap(),
            manifest: Manifest::parse(manifest).unwrap(),
            access_mode: AccessMode::SignedLinks,
        };
        let permit = permit_of(&self.log, org, Action::WorkspaceCreate, Resource::Project { org, project }, now).await;
        let (id, _) = workspaces::create(&self.commands, &permit, &Context::new(now), new).await.unwrap();
        Thing { org, project, id }
    }

    /// One more workspace like the first one.
    pub(crate) async fn another(&self, slug: &str) -> Thing {
        self.workspace_of(acme(), self.workspace.project, slug, &manifest(SERVER)).await
    }

    pub(crate) async fn start(&self) -> Running {
        self.start_as(Agent::default()).await
    }

    pub(crate) async fn start_as(&self, agent: Agent<'_>) -> Running {
        let state = self.directory.path().join(agent.state);
        let (host, _leftovers) = LocalHost::open(envforge_runtime::Config::new(&state)).await.unwrap();
        let machine_id = state.join("machine-id");
        std::fs::write(&machine_id, agent.machine_id).unwrap();
        let mut machine = HostMachine::open(&state, &machine_id).unwrap();
        machine.capacity = agent.capacity.unwrap_or(machine.capacity);
        let (id, stop) = (machine.host, CancellationToken::new());
        let world = SharedWorld::new(agent.log.unwrap_or_else(|| Arc::clone(&self.log)));
        let reactor = RuntimeReactor::new(
            &world,
            self.commands.clone(),
            Host::Local(host.clone()),
            machine,
            Arc::clone(&self.clock) as _,
            "dev.localhost:7080".to_owned(),
        );
        tokio::spawn(world.run(stop.clone()));
        Running { host, id, state, reactor: tokio::spawn(reactor.run(stop.clone())), stop }
    }

    pub(crate) fn tick(&self) -> Ticking {
        self.tick_on(Arc::clone(&self.log))
    }

    pub(crate) fn tick_on(&self, log: SharedLog) -> Ticking {
        let timers = Timers::new(log, self.commands.clone(), Arc::clone(&self.clock) as _);
        let stop = CancellationToken::new();
        Ticking { timers: tokio::spawn(timers.run(stop.clone())), stop }
    }

    pub(crate) fn now(&self) -> UnixMillis {
        self.clock.now()
    }

    pub(crate) async fn wake(&self) {
        self.wake_of(self.workspace).await;
    }

    pub(crate) async fn wake_of(&self, thing: Thing) {
        let permit = self.permit(thing, Action::RuntimeWake).await;
        let cause = WakeCause::Person(owner());
        runtimes::wake(&self.commands, &permit, &Context::new(self.now()), thing.id, cause).await.unwrap();
    }

    pub(crate) async fn sleep(&self) {
        self.sleep_of(self.workspace).await;
    }

    pub(crate) async fn sleep_of(&self, thing: Thing) {
        let permit = self.permit(thing, Action::RuntimeSleep).await;
        let cause = SleepCause::Person(owner());
        runtimes::sleep(&self.commands, &permit, &Context::new(self.now()), thing.id, cause).await.unwrap();
    }

    pub(crate) async fn archive(&self, thing: Thing) {
        let permit = self.permit(thing, Action::WorkspaceArchive).await;
        workspaces::archive(&self.commands, &permit, &Context::new(self.now()), thing.id).await.unwrap();
    }

    /// What a host or the timers say.
    pub(crate) async fn report(&self, thing: Thing, report: &RuntimeCommand) -> Result<(), CommandError> {
        let action = match report {
            RuntimeCommand::RecordActivity { .. } => Action::RuntimeRecordActivity,
            _ => Action::RuntimeReport,
        };
        let component = match action {
            Action::RuntimeRecordActivity => Component::Gateway,
            _ => Component::Timer,
        };
        let facts = Facts { position: Position::START, actor: ActorFacts::System };
        let (actor, surface, now) =
            (Actor::System(component), action.row().surfaces_of(Principal::System)[0], self.now());
        let permit = authorize(&facts, &Request { actor, action, resource: thing.resource(), surface, now }).unwrap();
        runtimes::report(&self.commands, &permit, &Context::new(now), thing.id, report).await.map(drop)
    }

    pub(crate) async fn permit(&self, thing: Thing, action: Action) -> Permit {
        permit_of(&self.log, thing.org, action, thing.resource(), self.now()).await
    }

    pub(crate) async fn state_of(&self, thing: Thing) -> Runtime {
        self.commands.load::<Runtime>(&thing.stream()).await.unwrap().state
    }

    pub(crate) async fn until(&self, what: &str, reached: impl Fn(&Runtime) -> bool) -> Runtime {
        self.until_of(self.workspace, what, reached).await
    }

    pub(crate) async fn until_of(&self, thing: Thing, what: &str, reached: impl Fn(&Runtime) -> bool) -> Runtime {
        eventually(what, DEADLINE, async || {
            let state = self.state_of(thing).await;
            let failed = matches!(state, Runtime::Failed { .. }) && !reached(&state);
            assert!(!failed, "failed while waiting for {what}: {:?}", self.events_of(thing).await.last());
            reached(&state).then_some(state)
        })
        .await
    }

    /// Until an event of the workspace's runtime has happened.
    pub(crate) async fn happened(&self, what: &str, wanted: impl Fn(&RuntimeEvent) -> bool) -> RuntimeEvent {
        eventually(what, DEADLINE, async || self.events().await.into_iter().find(|event| wanted(event))).await
    }

    /// Until a host holds room for exactly these workspaces.
    pub(crate) async fn until_placed(&self, on: HostId, things: &[Thing]) {
        eventually("the host holds what it should", DEADLINE, async || {
            let host = self.commands.load::<HostState>(&StreamId::host(acme(), on)).await.unwrap().state;
            let placed: Vec<_> = match host {
                HostState::Active(active) => active.placed.into_keys().collect(),
                HostState::Unknown | HostState::Expected(_) | HostState::Retired | HostState::Revoked => Vec::new(),
            };
            let mut wanted: Vec<_> = things.iter().map(|thing| thing.id).collect();
            wanted.sort_unstable();
            (placed == wanted).then_some(())
        })
        .await;
    }

    pub(crate) async fn events(&self) -> Vec<RuntimeEvent> {
        self.events_of(self.workspace).await
    }

    pub(crate) async fn events_of(&self, thing: Thing) -> Vec<RuntimeEvent> {
        let commits = self.log.read_stream(&thing.stream(), Position::START, 10_000).await.unwrap();
        let events = commits.into_iter().flat_map(|recorded| recorded.commit.events);
        events.filter_map(|event| if let Event::Runtime(event) = event { Some(event) } else { None }).collect()
    }

    /// All events of the log, oldest first.
    pub(crate) async fn history(&self) -> Vec<Event> {
        let page = self.log.read(Position::START, 10_000, &Filter::everything()).await.unwrap();
        page.commits.into_iter().flat_map(|recorded| recorded.commit.events).collect()
    }

    /// Where the workspace's service was last said to listen.
    pub(crate) async fn address(&self) -> std::net::SocketAddr {
        let bound = self.events().await.into_iter().rev().find_map(|event| match event {
            RuntimeEvent::EndpointsBound { endpoints, .. } => Some(endpoints[0].1),
            _ => None,
        });
        bound.unwrap()
    }
}

pub(crate) fn manifest(command: &str) -> String {
    let command = command.replace('\\', "\\\\").replace('"', "\\\"");
    format!(
        "version: 1\nidle_sleep: 30s\nservices:\n  web:\n    command: \"{command}\"\n    route: web\n    cpu: 250m\n    memory: 256Mi\n    readiness: {{ http: /, deadline: 60s }}\n"
    )
}

/// A repository with one branch `main` that holds an empty page.
fn repository(below: &Path) -> PathBuf {
    let root = below.join("repository");
    std::fs::create_dir_all(&root).unwrap();
    std::fs::write(root.join("index.html"), "hello").unwrap();
    envforge_testkit::commit_all(&root);
    root
}

/// The owner's, resting on where the log stands now.
pub(crate) async fn permit_of(
    log: &SharedLog,
    org: OrgId,
    action: Action,
    resource: Resource,
    now: UnixMillis,
) -> Permit {
    let grant =
        Grant { grantee: Grantee::User(owner()), role: Role::Owner, scope: Scope::Organization, expires_at: None };
    let actor = ActorFacts::Member {
        org,
        active: true,
        session_live: true,
        link_issuers: envforge_domain::organization::LINK_ISSUERS,
        grants: vec![grant],
    };
    let facts = Facts { position: Position::START, actor };
    let streams = vec![StreamId::organization(org), StreamId::user(org, owner())];
    let lasts = log.last_positions_of(&streams).await.unwrap();
    let rests_on = streams.into_iter().zip(lasts).map(|(stream, last)| Standing { stream, last });
    authorize(&facts, &Request { actor: Actor::User(owner()), action, resource, surface: Surface::Api, now })
        .unwrap()
        .resting_on(rests_on)
}

/// What a host says of the first wake that got ready there.
pub(crate) fn ready_on(host: HostId) -> RuntimeCommand {
    let (commit, services, endpoints) = ("c0ffee".to_owned(), Vec::new(), Vec::new());
    let lease_until = UnixMillis::new(START).plus(RUNTIME_LEASE);
    RuntimeCommand::ReportReady { epoch: Epoch(1), commit, host, services, endpoints, lease_until }
}

pub(crate) fn ready(state: &Runtime) -> bool {
    matches!(state, Runtime::Ready(_))
}

pub(crate) fn asleep(state: &Runtime) -> bool {
    matches!(state, Runtime::Asleep { .. })
}

pub(crate) fn failed(state: &Runtime) -> bool {
    matches!(state, Runtime::Failed { .. })
}

/// Until nobody listens there any more.
pub(crate) async fn until_closed(address: std::net::SocketAddr) {
    eventually("the port is closed", DEADLINE, async || {
        tokio::net::TcpStream::connect(address).await.is_err().then_some(())
    })
    .await;
}

/// The service's process, once it runs.
pub(crate) async fn pid(running: &Running, thing: Thing) -> u32 {
    let path = running.place(thing).join("data/pid");
    eventually("the service runs", DEADLINE, async || std::fs::read_to_string(&path).ok()?.trim().parse().ok()).await
}

pub(crate) async fn until_ended(pid: u32) {
    let stat = format!("/proc/{pid}/stat");
    eventually("the process ends", DEADLINE, async || {
        let text = std::fs::read_to_string(&stat).unwrap_or_default();
        let state = text.rsplit(')').next().unwrap_or_default().trim_start().chars().next();
        matches!(state, None | Some('Z')).then_some(())
    })
    .await;
}
