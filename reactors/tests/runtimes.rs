//! The runtime reactor and the timers over a real log, real repositories and real processes.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use envforge_commands::{Commands, Context, organizations, projects, runtimes, workspaces};
use envforge_domain::access::{
    Action, ActorFacts, Facts, Grant, Grantee, Permit, Request, Resource, Role, Scope, authorize,
};
use envforge_domain::commit::{Actor, Component, Position, Standing, StreamId, Surface};
use envforge_domain::event::Event;
use envforge_domain::ids::{OrgId, ProjectId, UserId, WorkspaceId};
use envforge_domain::manifest::Manifest;
use envforge_domain::project::Repository;
use envforge_domain::runtime::{Runtime, RuntimeEvent, SleepCause, WakeCause};
use envforge_domain::time::{Clock, Millis, UnixMillis};
use envforge_domain::workspace::{AccessMode, Branch};
use envforge_eventlog::{Filter, SharedLog};
use envforge_reactors::{LocalMachine, RuntimeReactor, Timers};
use envforge_runtime::LocalHost;
use envforge_testkit::eventually;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Stands still unless it is moved.
struct HandClock(AtomicU64);

impl HandClock {
    fn skip(&self, length: Millis) {
        self.0.fetch_add(length.get(), Ordering::SeqCst);
    }
}

impl Clock for HandClock {
    fn now(&self) -> UnixMillis {
        UnixMillis::new(self.0.load(Ordering::SeqCst))
    }
}

const DEADLINE: Duration = Duration::from_secs(30);

fn owner() -> UserId {
    UserId::from_uuid(Uuid::from_u128(1))
}

fn acme() -> OrgId {
    OrgId::from_uuid(Uuid::from_u128(100))
}

/// A repository with one branch `main` that holds an empty page.
fn repository(below: &Path) -> PathBuf {
    let root = below.join("repository");
    std::fs::create_dir_all(&root).unwrap();
    std::fs::write(root.join("index.html"), "hello").unwrap();
    for arguments in [
        &["init", "-q", "-b", "main"][..],
        &["add", "-A"],
        &["-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-q", "-m", "first"],
    ] {
        assert!(Command::new("git").args(arguments).current_dir(&root).status().unwrap().success());
    }
    root
}

struct Site {
    directory: tempfile::TempDir,
    log: SharedLog,
    commands: Commands,
    clock: Arc<HandClock>,
    project: ProjectId,
    workspace: WorkspaceId,
}

struct Running {
    stop: CancellationToken,
    host: LocalHost,
    reactor: tokio::task::JoinHandle<()>,
    timers: tokio::task::JoinHandle<()>,
}

impl Running {
    async fn stop(self) {
        self.stop.cancel();
        self.reactor.await.unwrap();
        self.timers.await.unwrap();
    }
}

impl Site {
    async fn new(command: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = envforge_eventlog::sqlite::Config::new(directory.path().join("log"));
        let log: SharedLog = Arc::new(envforge_eventlog::sqlite::SqliteLog::open(config).await.unwrap());
        let commands = Commands::new(Arc::clone(&log));
        // The log stamps commits with the machine's own clock, so this one starts there.
        let machine_now = log_now(&log, &commands).await;
        let clock = Arc::new(HandClock(AtomicU64::new(machine_now.get())));
        let now = clock.now();
        let on_org = Resource::Organization(acme());
        let (project, _) = projects::create(
            &commands,
            &permit(&log, Action::ProjectCreate, on_org, now).await,
            &Context::new(now),
            "orders".parse().unwrap(),
            "Orders".to_owned(),
            Repository::parse(repository(directory.path()).to_str().unwrap()).unwrap(),
        )
        .await
        .unwrap();
        let manifest = format!(
            "version: 1\nidle_sleep: 30s\nservices:\n  web:\n    command: {command}\n    route: web\n    readiness: {{ http: /, deadline: 10s }}\n"
        );
        let new = workspaces::NewWorkspace {
            project,
            slug: "main".parse().unwrap(),
            branch: Branch::parse("main").unwrap(),
            manifest: Manifest::parse(&manifest).unwrap(),
            access_mode: AccessMode::SignedLinks,
        };
        let on_project = permit(&log, Action::WorkspaceCreate, Resource::Project { org: acme(), project }, now).await;
        let (workspace, _) = workspaces::create(&commands, &on_project, &Context::new(now), new).await.unwrap();
        Self { directory, log, commands, clock, project, workspace }
    }

    fn resource(&self) -> Resource {
        Resource::Workspace { org: acme(), project: self.project, workspace: self.workspace }
    }

    async fn start(&self) -> Running {
        self.start_in("runtime").await
    }

    async fn start_in(&self, state: &str) -> Running {
        let state = self.directory.path().join(state);
        let (host, _leftovers) = LocalHost::open(envforge_runtime::Config::new(&state)).await.unwrap();
        let machine = LocalMachine::open(&state).unwrap();
        let stop = CancellationToken::new();
        let reactor = RuntimeReactor::new(
            Arc::clone(&self.log),
            self.commands.clone(),
            host.clone(),
            machine,
            Arc::clone(&self.clock) as _,
            "dev.localhost:7080".to_owned(),
        );
        let timers = Timers::new(Arc::clone(&self.log), self.commands.clone(), Arc::clone(&self.clock) as _);
        let (reactor_stop, timers_stop) = (stop.clone(), stop.clone());
        Running {
            stop,
            host,
            reactor: tokio::spawn(async move { reactor.run(reactor_stop).await.unwrap() }),
            timers: tokio::spawn(async move { timers.run(timers_stop).await.unwrap() }),
        }
    }

    async fn wake(&self) {
        let now = self.clock.now();
        let permit = permit(&self.log, Action::RuntimeWake, self.resource(), now).await;
        let cause = WakeCause::Person(owner());
        runtimes::wake(&self.commands, &permit, &Context::new(now), self.workspace, cause).await.unwrap();
    }

    async fn sleep(&self) {
        let now = self.clock.now();
        let permit = permit(&self.log, Action::RuntimeSleep, self.resource(), now).await;
        let cause = SleepCause::Person(owner());
        runtimes::sleep(&self.commands, &permit, &Context::new(now), self.workspace, cause).await.unwrap();
    }

    async fn state(&self) -> Runtime {
        self.commands.load::<Runtime>(&StreamId::runtime(acme(), self.workspace)).await.unwrap().state
    }

    async fn until(&self, what: &str, reached: impl Fn(&Runtime) -> bool) -> Runtime {
        eventually(what, DEADLINE, async || {
            let state = self.state().await;
            let failed = matches!(state, Runtime::Failed { .. }) && !reached(&state);
            assert!(!failed, "failed while waiting for {what}: {:?}", self.events().await.last());
            reached(&state).then_some(state)
        })
        .await
    }

    async fn events(&self) -> Vec<RuntimeEvent> {
        let page = self.log.read(Position::START, 10_000, &Filter::everything()).await.unwrap();
        let events = page.commits.into_iter().flat_map(|recorded| recorded.commit.events);
        events.filter_map(|event| if let Event::Runtime(event) = event { Some(event) } else { None }).collect()
    }
}

/// Creates the organization and answers the log's time of it.
async fn log_now(log: &SharedLog, commands: &Commands) -> UnixMillis {
    let org = Resource::Organization(acme());
    let facts = Facts { position: Position::START, actor: ActorFacts::System };
    let request = Request {
        actor: Actor::System(Component::Setup),
        action: Action::OrganizationCreate,
        resource: org,
        surface: Surface::Cli,
        now: UnixMillis::EPOCH,
    };
    let permit = authorize(&facts, &request).unwrap();
    let context = Context::new(UnixMillis::EPOCH);
    organizations::create(commands, &permit, &context, acme(), "acme".parse().unwrap(), "Acme".to_owned(), owner())
        .await
        .unwrap();
    log.last_of_stream(&StreamId::organization(acme())).await.unwrap().unwrap().recorded_at
}

async fn permit(log: &SharedLog, action: Action, resource: Resource, now: UnixMillis) -> Permit {
    let grant =
        Grant { grantee: Grantee::User(owner()), role: Role::Owner, scope: Scope::Organization, expires_at: None };
    let actor = ActorFacts::Member { org: acme(), active: true, session_live: true, grants: vec![grant] };
    let facts = Facts { position: Position::START, actor };
    let streams = vec![StreamId::organization(acme()), StreamId::user(acme(), owner())];
    let lasts = log.last_positions_of(&streams).await.unwrap();
    let rests_on = streams.into_iter().zip(lasts).map(|(stream, last)| Standing { stream, last });
    authorize(&facts, &Request { actor: Actor::User(owner()), action, resource, surface: Surface::Api, now })
        .unwrap()
        .resting_on(rests_on)
}

const SERVER: &str = "exec python3 -m http.server $PORT --bind 127.0.0.1";

fn ready(state: &Runtime) -> bool {
    matches!(state, Runtime::Ready(_))
}

fn asleep(state: &Runtime) -> bool {
    matches!(state, Runtime::Asleep { .. })
}

fn failed(state: &Runtime) -> bool {
    matches!(state, Runtime::Failed { .. })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wake_that_the_log_asks_for_is_carried_out_and_a_sleep_too() {
    let site = Site::new(SERVER).await;
    let running = site.start().await;
    site.wake().await;
    site.until("ready", ready).await;
    let endpoints = site.events().await.into_iter().find_map(|event| match event {
        RuntimeEvent::EndpointsBound { endpoints, .. } => Some(endpoints),
        _ => None,
    });
    let address = endpoints.unwrap()[0].1;
    tokio::net::TcpStream::connect(address).await.unwrap();
    site.sleep().await;
    site.until("asleep", asleep).await;
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "nothing may listen on {address} any more");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wake_asked_for_while_nobody_listened_is_carried_out_later() {
    let site = Site::new(SERVER).await;
    site.wake().await;
    let running = site.start().await;
    site.until("ready", ready).await;
    running.stop().await;
    assert!(asleep(&site.state().await), "a stopping EnvForge puts its runtimes to sleep");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_cannot_start_fails_the_wake_without_showing_its_output() {
    let site = Site::new("echo hunter2; exit 3").await;
    let running = site.start().await;
    site.wake().await;
    site.until("failed", failed).await;
    let reason = site.events().await.into_iter().find_map(|event| match event {
        RuntimeEvent::Failed { reason, .. } => Some(reason),
        _ => None,
    });
    let reason = reason.unwrap();
    assert!(reason.contains("web") && !reason.contains("hunter2"), "{reason}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unused_runtime_goes_to_sleep_and_says_why() {
    let site = Site::new(SERVER).await;
    let running = site.start().await;
    site.wake().await;
    site.until("ready", ready).await;
    site.clock.skip(Millis::from_secs(31));
    site.until("asleep", asleep).await;
    let idle = site.events().await.into_iter().any(|event| {
        matches!(event, RuntimeEvent::SleepRequested { cause: SleepCause::Idle { idle_for }, .. } if idle_for >= Millis::from_secs(30))
    });
    assert!(idle);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archived_workspace_is_put_to_sleep() {
    let site = Site::new(SERVER).await;
    let running = site.start().await;
    site.wake().await;
    site.until("ready", ready).await;
    let now = site.clock.now();
    let archive = permit(&site.log, Action::WorkspaceArchive, site.resource(), now).await;
    workspaces::archive(&site.commands, &archive, &Context::new(now), site.workspace).await.unwrap();
    site.until("asleep", asleep).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_starts_again_says_what_it_lost() {
    let site = Site::new(SERVER).await;
    let running = site.start().await;
    site.wake().await;
    site.until("ready", ready).await;
    // The agent dies without a word: nothing is put to sleep. A directory is held by one process, so the machine's next
    // agent gets another one here, with the machine's key.
    running.reactor.abort();
    running.timers.abort();
    let (old, new) = (site.directory.path().join("runtime"), site.directory.path().join("runtime-2"));
    std::fs::create_dir(&new).unwrap();
    std::fs::copy(old.join("machine-key"), new.join("machine-key")).unwrap();
    running.host.shutdown().await;
    let running = site.start_in("runtime-2").await;
    site.until("asleep", asleep).await;
    assert!(site.events().await.iter().any(|event| matches!(event, RuntimeEvent::Lost { .. })));
    site.wake().await;
    site.until("ready again", ready).await;
    running.stop().await;
}
