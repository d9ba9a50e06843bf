//! A log with an organization's workspace, a clock that is moved by hand, and a fleet between them and the stand-in.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use envforge_aws::{Ec2, EnrolmentReader, SsmStore};
use envforge_commands::hosts::{self, MachineKey};
use envforge_commands::{CommandError, Commands, Context, machines};
use envforge_domain::access::{Action, ActorFacts, Facts, Permit, Request, Resource, authorize};
use envforge_domain::commit::{Actor, Commit, Component, Expectation, Position, StreamId, Surface};
use envforge_domain::enrolment::EnrolmentToken;
use envforge_domain::event::Event;
use envforge_domain::host::{Enrolling as HostEnrolling, Host, HostCommand};
use envforge_domain::ids::{CommandId, CommitId, CorrelationId, ProjectId, UserId, WorkspaceId};
use envforge_domain::machine::{Machine, MachineCommand, MachineEvent};
use envforge_domain::manifest::Manifest;
use envforge_domain::runtime::{Epoch, Runtime, RuntimeEvent, SleepCause, WakeCause};
use envforge_domain::secret::TokenDigest;
use envforge_domain::time::{Clock, Millis, UnixMillis};
use envforge_domain::workspace::{AccessMode, Branch, WorkspaceEvent};
use envforge_eventlog::{Filter, LogError, SharedLog};
use envforge_reactors::fleet::{Enrolling, Fleet, FleetPolicies, FleetPolicy, Shape, machine_key};
use envforge_runtime::{EnrolmentStore, MachineProvider};
use envforge_testkit::eventually;
use tokio_util::sync::CancellationToken;

use super::*;

pub(crate) const AUTHORITY: TokenDigest = TokenDigest::from_bytes([9; 32]);
/// How long an agent's certificate lives.
pub(crate) const CERTIFICATE: Millis = Millis::from_hours(24);
pub(crate) const GRACE: Millis = Millis::from_minutes(10);
const MANIFEST: &str = "version: 1\nservices:\n  web:\n    command: run\n    route: web\n    cpu: 250m\n    memory: 256Mi\n    readiness: { http: / }\n";

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

pub(crate) struct Site {
    _directory: tempfile::TempDir,
    pub(crate) moto: Moto,
    pub(crate) ec2: Arc<Ec2>,
    pub(crate) ssm: Arc<SsmStore>,
    pub(crate) log: SharedLog,
    pub(crate) commands: Commands,
    pub(crate) clock: Arc<HandClock>,
}

/// A fleet that runs until it is stopped.
pub(crate) struct Running {
    stop: CancellationToken,
    fleet: tokio::task::JoinHandle<Result<(), LogError>>,
}

impl Running {
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.fleet.await.unwrap().unwrap();
    }

    /// As a kill -9 ends it.
    pub(crate) fn kill(self) {
        self.fleet.abort();
    }
}

pub(crate) fn workspace(number: u128) -> WorkspaceId {
    WorkspaceId::from_uuid(Uuid::from_u128(number))
}

pub(crate) fn project() -> ProjectId {
    ProjectId::from_uuid(Uuid::from_u128(9))
}

pub(crate) fn policy() -> FleetPolicy {
    let shape = |name: &str| Shape {
        name: name.to_owned(),
        capacity: Capacity { cpu_millicores: 2_000, memory_mib: 8_192 },
        hibernates: false,
    };
    FleetPolicy {
        provider: "aws-ec2".to_owned(),
        shapes: vec![shape(SHAPE), shape("m7g.xlarge")],
        shell_shape: Some(shape("t4g.small")),
        grace: GRACE,
        warm: 0,
        hibernate: false,
        machines_max: 6,
        boot_deadline: Millis::from_minutes(5),
        agent_deadline: Millis::from_minutes(15),
        impaired_after: Millis::from_minutes(5),
        start_patience: Millis::from_hours(6),
        shell_patience: Millis::from_hours(24),
    }
}

impl Site {
    pub(crate) async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let clock = Arc::new(HandClock(AtomicU64::new(1_800_000_000_000)));
        let mut config = envforge_eventlog::sqlite::Config::new(directory.path().join("log"));
        config.clock = Arc::clone(&clock) as _;
        let log: SharedLog = Arc::new(envforge_eventlog::sqlite::SqliteLog::open(config).await.unwrap());
        let moto = moto();
        let ec2 = Arc::new(Ec2::new(ec2_config(&moto)).await);
        let ssm = Arc::new(secrets::store(&moto).await);
        Self { _directory: directory, moto, ec2, ssm, commands: Commands::new(Arc::clone(&log)), log, clock }
    }

    /// Appends what somebody else decided.
    pub(crate) async fn tell(&self, stream: StreamId, events: Vec<Event>) {
        let last = self.log.last_of_stream(&stream).await.unwrap().map_or(Position::START, |last| last.position);
        let id = Uuid::now_v7();
        let commit = Commit {
            id: CommitId::from_uuid(id),
            command: CommandId::from_uuid(id),
            request_digest: None,
            stream,
            actor: Actor::System(Component::Setup),
            surface: Surface::Cli,
            correlation: CorrelationId::from_uuid(id),
            causation: None,
            decided_at: self.clock.now(),
            events,
        };
        self.log.append(vec![(commit, Expectation::LastAt(last))]).await.unwrap();
    }

    pub(crate) async fn workspace(&self, number: u128, of: u128) {
        let created = WorkspaceEvent::Created {
            workspace: workspace(number),
            project: project(),
            slug: format!("ws-{number}").parse().unwrap(),
            branch: Branch::parse("main").unwrap(),
            manifest: Manifest::parse(MANIFEST).unwrap(),
            access_mode: AccessMode::SignedLinks,
        };
        self.tell(StreamId::workspace(org(of), workspace(number)), vec![Event::Workspace(created)]).await;
    }

    pub(crate) async fn wake(&self, number: u128, of: u128, epoch: u64) {
        let asked = RuntimeEvent::WakeRequested {
            epoch: Epoch(epoch),
            workspace: workspace(number),
            project: project(),
            cause: WakeCause::Person(UserId::from_uuid(Uuid::from_u128(1))),
        };
        self.tell(StreamId::runtime(org(of), workspace(number)), vec![Event::Runtime(asked)]).await;
    }

    /// What the agent says once it has taken the wake.
    pub(crate) async fn taken(&self, number: u128, of: u128, epoch: u64, on: HostId) {
        let chosen = RuntimeEvent::HostChosen { epoch: Epoch(epoch), host: on };
        self.tell(StreamId::runtime(org(of), workspace(number)), vec![Event::Runtime(chosen)]).await;
    }

    /// Asleep again, with its room given back, as its agent does.
    pub(crate) async fn sleep(&self, number: u128, of: u128, epoch: u64, on: HostId) {
        let cause = SleepCause::Person(UserId::from_uuid(Uuid::from_u128(1)));
        let events =
            [RuntimeEvent::SleepRequested { epoch: Epoch(epoch), cause }, RuntimeEvent::Slept { epoch: Epoch(epoch) }];
        let stream = StreamId::runtime(org(of), workspace(number));
        self.tell(stream, events.map(Event::Runtime).into()).await;
        let permit = self.permit(
            Action::HostPlace,
            Resource::Workspace { org: org(of), project: project(), workspace: workspace(number) },
        );
        let context = Context::new(self.clock.now());
        hosts::release(&self.commands, &permit, &context, on, workspace(number)).await.unwrap();
    }

    /// The token that lies ready for a machine's agent.
    pub(crate) async fn token(&self, of: u128, on: HostId) -> Option<EnrolmentToken> {
        let parameter = deployment().enrolment_parameter(org(of), on);
        let text = EnrolmentReader::new(&aws(&self.moto), parameter).await.read().await.unwrap()?;
        Some(EnrolmentToken::parse(text.expose()).unwrap())
    }

    /// The agent on a machine waits for its token and enrols, as `serve agents` has it enrol. A token that another one has just replaced is
    /// refused, and the agent waits for that one.
    pub(crate) async fn enrol(&self, on: HostId, instance: &str, of: u128) {
        let mut refused = None;
        loop {
            let fresh = async || self.token(of, on).await.filter(|token| refused != Some(token.digest()));
            let token = eventually("the machine's token", DEADLINE, fresh).await;
            match self.enrol_with(&token, on, instance, of).await {
                Ok(()) => return,
                Err(error) if error.refusal_code() == Some("enrolment_unknown") => refused = Some(token.digest()),
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub(crate) async fn enrol_with(
        &self,
        token: &EnrolmentToken,
        on: HostId,
        instance: &str,
        of: u128,
    ) -> Result<(), CommandError> {
        let permit = self.permit(Action::HostRegister, Resource::Host { org: org(of), host: on });
        let (now, machine) = (self.clock.now(), machine_key("aws-ec2", instance));
        let key = MachineKey::parse(&machine).unwrap();
        let enrolling = HostEnrolling {
            host: on,
            org: org(of),
            token: token.digest(),
            machine,
            capacity: policy().shapes[0].capacity,
            certificate: TokenDigest::of(b"certificate"),
            certificate_expires_at: now.plus(CERTIFICATE),
            agent_version: "0.1.0".to_owned(),
            now,
        };
        hosts::enrol(&self.commands, &permit, &Context::new(now), key, enrolling).await.map(drop)
    }

    /// An agent that was there before anything was known of a machine.
    pub(crate) async fn register(&self, on: HostId, instance: &str, of: u128) -> Result<(), CommandError> {
        let permit = self.permit(Action::HostRegister, Resource::Host { org: org(of), host: on });
        let key = MachineKey::parse(&machine_key("aws-ec2", instance)).unwrap();
        let (context, capacity) = (Context::new(self.clock.now()), policy().shapes[0].capacity);
        let provider = "aws-ec2".to_owned();
        hosts::register(&self.commands, &permit, &context, on, provider, key, capacity).await.map(drop)
    }

    pub(crate) fn permit(&self, action: Action, resource: Resource) -> Permit {
        let facts = Facts { position: Position::START, actor: ActorFacts::System };
        let actor = Actor::System(Component::Fleet);
        let request = Request { actor, action, resource, surface: Surface::Agent, now: self.clock.now() };
        authorize(&facts, &request).unwrap()
    }

    pub(crate) async fn machine(&self, of: u128, on: HostId, command: &MachineCommand) -> Result<(), CommandError> {
        use envforge_domain::aggregate::Aggregate;
        let permit = self.permit(Machine::action_of(command), Resource::Host { org: org(of), host: on });
        let context = Context::new(self.clock.now());
        machines::execute(&self.commands, &permit, &context, on, command).await.map(drop)
    }

    pub(crate) fn start(&self) -> Running {
        self.start_with(policy())
    }

    pub(crate) fn start_with(&self, default: FleetPolicy) -> Running {
        self.start_on(Arc::clone(&self.ec2) as _, default)
    }

    pub(crate) fn start_on(&self, provider: Arc<dyn MachineProvider>, default: FleetPolicy) -> Running {
        self.start_with_both(provider, Arc::clone(&self.ssm) as _, default)
    }

    pub(crate) fn start_with_both(
        &self,
        provider: Arc<dyn MachineProvider>,
        store: Arc<dyn EnrolmentStore>,
        default: FleetPolicy,
    ) -> Running {
        let policies = FleetPolicies { default, of: Default::default() };
        let (log, commands) = (Arc::clone(&self.log), self.commands.clone());
        let every = Duration::from_millis(50);
        let draw = || Some(std::array::from_fn(|_| Uuid::now_v7().as_bytes()[15]));
        let enrolling = Enrolling::new(store, Arc::new(|| Some(AUTHORITY)), Arc::new(draw));
        let fleet = Fleet::new(log, commands, provider, enrolling, Arc::clone(&self.clock) as _, policies, every);
        let stop = CancellationToken::new();
        Running { fleet: tokio::spawn(fleet.run(stop.clone())), stop }
    }

    /// All events of machines so far, with the host of each.
    pub(crate) async fn events(&self) -> Vec<(String, MachineEvent)> {
        let page = self.log.read(Position::START, 10_000, &Filter::everything()).await.unwrap();
        let events = page.commits.into_iter().flat_map(|recorded| {
            let key = recorded.commit.stream.key().to_owned();
            recorded.commit.events.into_iter().map(move |event| (key.clone(), event))
        });
        events
            .filter_map(|(key, event)| if let Event::Machine(event) = event { Some((key, event)) } else { None })
            .collect()
    }

    /// Waits until an event of a machine has happened; answers the host of the first.
    pub(crate) async fn happened(&self, what: &str, wanted: impl Fn(&MachineEvent) -> bool) -> String {
        eventually(what, DEADLINE, async || {
            self.events().await.into_iter().find(|(_, event)| wanted(event)).map(|(key, _)| key)
        })
        .await
    }

    /// Waits until as many such events have happened.
    pub(crate) async fn happened_times(&self, what: &str, times: usize, wanted: impl Fn(&MachineEvent) -> bool) {
        eventually(what, DEADLINE, async || {
            let events = self.events().await;
            (events.iter().filter(|(_, event)| wanted(event)).count() >= times).then_some(())
        })
        .await;
    }

    /// Waits until the fleet has looked at least so often from now on.
    pub(crate) async fn looked(&self, times: u64) {
        let before = self.moto.count("DescribeInstances");
        let looked = async || (self.moto.count("DescribeInstances") > before + times).then_some(());
        eventually("the fleet has looked", DEADLINE, looked).await;
    }

    pub(crate) async fn state_of(&self, of: u128, on: HostId) -> Machine {
        self.commands.load::<Machine>(&StreamId::machine(org(of), on)).await.unwrap().state
    }

    pub(crate) async fn runtime(&self, number: u128, of: u128) -> Runtime {
        self.commands.load::<Runtime>(&StreamId::runtime(org(of), workspace(number))).await.unwrap().state
    }

    pub(crate) async fn host_of(&self, of: u128, on: HostId) -> Host {
        self.commands.load::<Host>(&StreamId::host(org(of), on)).await.unwrap().state
    }

    /// The host and instance of an organization's runtime machine that is up, once its agent has enrolled.
    pub(crate) async fn runtime_machine(&self, of: u128) -> (HostId, String) {
        let (on, instance) = eventually("a machine for runtimes that is up", DEADLINE, async || {
            for (key, event) in self.events().await {
                let MachineEvent::Requested { terms, .. } = event else { continue };
                if terms.org != org(of) || terms.purpose != MachinePurpose::Runtime {
                    continue;
                }
                let on: HostId = key.parse().unwrap();
                if let Machine::Live(live) = self.state_of(of, on).await
                    && live.power == envforge_domain::machine::Power::On
                {
                    return Some((on, live.instance));
                }
            }
            None
        })
        .await;
        self.enrol(on, &instance, of).await;
        (on, instance)
    }

    /// Waits until a host holds exactly these workspaces.
    pub(crate) async fn until_placed(&self, of: u128, on: HostId, wanted: &[u128]) {
        eventually("the host holds what it should", DEADLINE, async || {
            let Host::Active(active) = self.host_of(of, on).await else { return None };
            let placed: Vec<_> = active.placed.keys().copied().collect();
            (placed == wanted.iter().map(|number| workspace(*number)).collect::<Vec<_>>()).then_some(())
        })
        .await;
    }

    pub(crate) async fn place(&self, number: u128, of: u128, on: HostId) -> Result<(), CommandError> {
        let resource = Resource::Workspace { org: org(of), project: project(), workspace: workspace(number) };
        let permit = self.permit(Action::HostPlace, resource);
        let needs = Capacity { cpu_millicores: 1, memory_mib: 1 };
        let context = Context::new(self.clock.now());
        let command = HostCommand::Place { workspace: workspace(number), org: org(of), needs };
        self.commands.execute::<Host>(&permit, &context, &StreamId::host(org(of), on), &command).await.map(drop)
    }
}
