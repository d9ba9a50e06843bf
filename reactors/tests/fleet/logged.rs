//! Real fleets on a real log: their executor, their commands and everything that they refuse, against a provider that fails and lies,
//! with agents and people between. What became of it is judged from the log alone.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use envforge_commands::hosts::{self, MachineKey};
use envforge_commands::{Commands, Context};
use envforge_domain::access::{Action, ActorFacts, Facts, Permit, Request, Resource, authorize};
use envforge_domain::commit::{Actor, Commit, Component, Expectation, Position, StreamId, Surface};
use envforge_domain::enrolment::EnrolmentToken;
use envforge_domain::event::Event;
use envforge_domain::host::{Enrolling as HostEnrolling, Host, HostCommand};
use envforge_domain::ids::{CommandId, ProjectId, UserId};
use envforge_domain::manifest::Manifest;
use envforge_domain::runtime::{Epoch, Runtime, RuntimeEvent, SleepCause, WakeCause};
use envforge_domain::secret::TokenDigest;
use envforge_domain::time::Clock;
use envforge_domain::workspace::{AccessMode, Branch, WorkspaceEvent};
use envforge_eventlog::{AppendError, Filter, SharedLog};
use envforge_reactors::fleet::{Enrolling, Fleet, FleetPolicies, ReadAuthority, machine_key};
use envforge_runtime::secret_store::StoreError;
use envforge_runtime::{EnrolmentStore, LaunchOrder, LaunchToken, MachineProvider, ProviderError};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio_util::sync::CancellationToken;

use super::checker::Checker;
use super::*;

/// How long placements are made for; as many as fit.
const RUN: Duration = Duration::from_secs(25);
const ORGANIZATIONS: u128 = 4;
const WORKSPACES_EACH: u128 = 6;
const MANIFEST: &str = "version: 1\nservices:\n  web:\n    command: run\n    route: web\n    cpu: 1500m\n    memory: 1500Mi\n    readiness: { http: / }\n";

/// Moved by hand. The log stamps commits by it too.
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

/// A provider and a store of tokens, both of memory, that fail as often as luck wants.
pub(crate) struct Cloud {
    pub(crate) instances: Mutex<BTreeMap<String, Instance>>,
    /// What was launched does not show yet.
    pub(crate) hides: AtomicBool,
    launched: Mutex<HashMap<LaunchToken, String>>,
    pub(crate) tokens: Mutex<HashMap<HostId, EnrolmentToken>>,
    /// Without any, nothing goes wrong.
    luck: Mutex<Option<StdRng>>,
    pub(crate) counts: Mutex<BTreeMap<&'static str, u32>>,
}

impl Cloud {
    fn luck(&self, below: u32) -> u32 {
        self.luck.lock().unwrap().as_mut().map_or(below - 1, |luck| luck.random_range(0..below))
    }

    fn count(&self, what: &'static str) {
        *self.counts.lock().unwrap().entry(what).or_default() += 1;
    }

    /// Now and then an instance comes back as somebody else's.
    fn told(&self, mut instance: Instance) -> Instance {
        if self.luck(20) == 0 {
            self.count("tags that lie");
            instance.tags.org = Some(org(1 + u128::from(self.luck(4))));
        }
        instance
    }

    fn set(&self, instance: &str, state: InstanceState) -> Result<(), ProviderError> {
        if self.luck(15) == 0 {
            self.count("throttled");
            return Err(ProviderError::Throttled);
        }
        let gone = || ProviderError::NotFound { reason: instance.to_owned() };
        self.instances.lock().unwrap().get_mut(instance).ok_or_else(gone)?.state = state;
        Ok(())
    }
}

#[async_trait]
impl MachineProvider for Cloud {
    fn name(&self) -> &'static str {
        PROVIDER
    }

    async fn launch(&self, order: &LaunchOrder) -> Result<Instance, ProviderError> {
        match self.luck(20) {
            0 => {
                self.count("no capacity");
                return Err(ProviderError::Capacity { reason: "none is left".to_owned() });
            }
            1 => return Err(ProviderError::Throttled),
            _ => {}
        }
        let mut launched = self.launched.lock().unwrap();
        let number = launched.len() + 1;
        let id = launched.entry(order.token).or_insert_with(|| format!("i-{number}")).clone();
        let fresh = instance(&id, &order.terms, InstanceState::Running);
        let made = self.instances.lock().unwrap().entry(id).or_insert(fresh).clone();
        // It was made, and nobody hears of it.
        if self.luck(20) == 0 {
            self.count("lost answers");
            return Err(ProviderError::Unavailable { reason: "no answer".to_owned() });
        }
        Ok(self.told(made))
    }

    async fn find(&self, instance: &str) -> Result<Option<Instance>, ProviderError> {
        let found = self.instances.lock().unwrap().get(instance).cloned();
        let found = found.filter(|_| !self.hides.load(Ordering::SeqCst));
        Ok(found.map(|found| self.told(found)))
    }

    async fn list(&self) -> Result<Vec<Instance>, ProviderError> {
        self.count("looks");
        if self.hides.load(Ordering::SeqCst) {
            return Ok(Vec::new());
        }
        Ok(self.instances.lock().unwrap().values().cloned().collect())
    }

    async fn start(&self, instance: &str) -> Result<(), ProviderError> {
        self.set(instance, InstanceState::Running)
    }

    async fn stop(&self, instance: &str, _: StopMode) -> Result<(), ProviderError> {
        self.count("stopped");
        self.set(instance, InstanceState::Stopped)
    }

    async fn terminate(&self, instance: &str) -> Result<(), ProviderError> {
        self.count("terminated");
        self.set(instance, InstanceState::Terminated)
    }
}

#[async_trait]
impl EnrolmentStore for Cloud {
    async fn put(&self, token: &EnrolmentToken) -> Result<(), StoreError> {
        let copy = EnrolmentToken::parse(token.text().expose()).unwrap();
        self.tokens.lock().unwrap().insert(token.host(), copy);
        Ok(())
    }

    async fn remove(&self, _: OrgId, host: HostId) -> Result<(), StoreError> {
        self.tokens.lock().unwrap().remove(&host);
        Ok(())
    }

    async fn kept(&self, of: OrgId) -> Result<BTreeMap<HostId, Option<TokenDigest>>, StoreError> {
        let tokens = self.tokens.lock().unwrap();
        let own = tokens.values().filter(|token| token.org() == of);
        Ok(own.map(|token| (token.host(), Some(token.digest()))).collect())
    }
}

pub(crate) struct Site {
    _directory: tempfile::TempDir,
    log: SharedLog,
    commands: Commands,
    pub(crate) clock: Arc<HandClock>,
    pub(crate) cloud: Arc<Cloud>,
    /// Whose each workspace is.
    pub(crate) owners: BTreeMap<WorkspaceId, OrgId>,
}

pub(crate) fn project() -> ProjectId {
    ProjectId::from_uuid(Uuid::from_u128(9))
}

impl Site {
    pub(crate) async fn new(seed: Option<u64>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let clock = Arc::new(HandClock(AtomicU64::new(NOON.get())));
        let mut config = envforge_eventlog::sqlite::Config::new(directory.path().join("log"));
        config.clock = Arc::clone(&clock) as _;
        let log: SharedLog = Arc::new(envforge_eventlog::sqlite::SqliteLog::open(config).await.unwrap());
        let cloud = Arc::new(Cloud {
            instances: Mutex::default(),
            hides: AtomicBool::new(false),
            launched: Mutex::default(),
            tokens: Mutex::default(),
            luck: Mutex::new(seed.map(StdRng::seed_from_u64)),
            counts: Mutex::default(),
        });
        let commands = Commands::new(Arc::clone(&log));
        let mut site = Self { _directory: directory, log, commands, clock, cloud, owners: BTreeMap::new() };
        for number in 0..ORGANIZATIONS * WORKSPACES_EACH {
            let (id, of) = (workspace(1_000 + number), org(1 + number % ORGANIZATIONS));
            let created = WorkspaceEvent::Created {
                workspace: id,
                project: project(),
                slug: format!("ws-{number}").parse().unwrap(),
                branch: Branch::parse("main").unwrap(),
                manifest: Manifest::parse(MANIFEST).unwrap(),
                access_mode: AccessMode::SignedLinks,
            };
            assert!(site.tell(StreamId::workspace(of, id), Position::START, vec![Event::Workspace(created)]).await);
            site.owners.insert(id, of);
        }
        site
    }

    /// Appends what somebody else decided, unless a fleet was quicker.
    pub(crate) async fn tell(&self, stream: StreamId, last: Position, events: Vec<Event>) -> bool {
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
        match self.log.append(vec![(commit, Expectation::LastAt(last))]).await {
            Ok(_) => true,
            Err(AppendError::Conflict { .. }) => {
                self.cloud.count("overtaken");
                false
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn start(&self) -> tokio::task::JoinHandle<()> {
        let default = FleetPolicy {
            warm: 1,
            machines_max: 5,
            grace: Millis::from_secs(20),
            boot_deadline: Millis::from_secs(60),
            impaired_after: Millis::from_secs(20),
            shell_shape: None,
            ..policy()
        };
        self.start_with(default, Arc::new(|| Some(TokenDigest::from_bytes([9; 32]))))
    }

    pub(crate) fn start_with(&self, default: FleetPolicy, authority: ReadAuthority) -> tokio::task::JoinHandle<()> {
        let policies = FleetPolicies { default, of: Default::default() };
        let draw = || Some(std::array::from_fn(|_| rand::random()));
        let store = Arc::clone(&self.cloud) as Arc<dyn EnrolmentStore>;
        let enrolling = Enrolling::new(store, authority, Arc::new(draw));
        let (log, commands, every) = (Arc::clone(&self.log), self.commands.clone(), Duration::from_millis(5));
        let provider = Arc::clone(&self.cloud) as Arc<dyn MachineProvider>;
        let fleet = Fleet::new(log, commands, provider, enrolling, Arc::clone(&self.clock) as _, policies, every);
        tokio::spawn(async move { fleet.run(CancellationToken::new()).await.unwrap() })
    }

    /// All that the log holds.
    pub(crate) async fn events(&self) -> Vec<(StreamId, Event)> {
        let (mut all, mut from) = (Vec::new(), Position::START);
        loop {
            let page = self.log.read(from, 1_000, &Filter::everything()).await.unwrap();
            let Some(last) = page.commits.last() else { return all };
            from = last.position;
            for recorded in page.commits {
                let stream = recorded.commit.stream;
                all.extend(recorded.commit.events.into_iter().map(|event| (stream.clone(), event)));
            }
        }
    }

    fn permit(&self, action: Action, resource: Resource) -> Permit {
        let facts = Facts { position: Position::START, actor: ActorFacts::System };
        let actor = Actor::System(Component::Fleet);
        authorize(&facts, &Request { actor, action, resource, surface: Surface::Agent, now: self.clock.now() }).unwrap()
    }

    fn placing(&self, workspace: WorkspaceId) -> Permit {
        let of = self.owners[&workspace];
        self.permit(Action::HostPlace, Resource::Workspace { org: of, project: project(), workspace })
    }

    /// Agents enrol with the tokens that lie ready; one in ten as a host of somebody else's.
    async fn agents(&self) {
        let instances: Vec<Instance> = self.cloud.instances.lock().unwrap().values().cloned().collect();
        for one in instances.iter().filter(|one| one.state == InstanceState::Running) {
            let (Some(of), Some(on)) = (one.tags.org, one.tags.host) else { continue };
            let token = self.cloud.tokens.lock().unwrap().get(&on).map(EnrolmentToken::digest);
            let Some(token) = token.filter(|_| self.cloud.luck(4) != 0) else { continue };
            let claimed = if self.cloud.luck(10) == 0 { org(1 + u128::from(self.cloud.luck(4))) } else { of };
            let (now, machine) = (self.clock.now(), machine_key(PROVIDER, &one.id));
            let permit = self.permit(Action::HostRegister, Resource::Host { org: claimed, host: on });
            let key = MachineKey::parse(&machine).unwrap();
            let context = Context::new(now);
            if claimed != of {
                // With a token of its own making, and without one.
                let (provider, capacity) = (PROVIDER.to_owned(), policy().shapes[0].capacity);
                let lied = hosts::register(&self.commands, &permit, &context, on, provider, key, capacity).await;
                assert!(lied.is_err(), "{} was registered as a host of {claimed}", one.id);
                self.cloud.count("enrolment refused");
                continue;
            }
            let enrolling = HostEnrolling {
                host: on,
                org: of,
                token,
                machine,
                capacity: policy().shapes[0].capacity,
                certificate: TokenDigest::of(one.id.as_bytes()),
                certificate_expires_at: now.plus(Millis::from_hours(24)),
                agent_version: "0.1.0".to_owned(),
                now,
            };
            // One that has enrolled is refused with the token that it used.
            let _ = hosts::enrol(&self.commands, &permit, &context, key, enrolling).await;
        }
    }

    /// The provider's own doings.
    fn weather(&self) {
        self.cloud.instances.lock().unwrap().retain(|_, one| one.state != InstanceState::Terminated);
        let ids: Vec<String> = self.cloud.instances.lock().unwrap().keys().cloned().collect();
        for id in ids {
            let mut instances = self.cloud.instances.lock().unwrap();
            let Some(one) = instances.get_mut(&id) else { continue };
            match self.cloud.luck(120) {
                0 => {
                    self.cloud.count("vanished");
                    instances.remove(&id);
                }
                1 => {
                    self.cloud.count("impaired");
                    one.impaired = true;
                }
                2 if one.state == InstanceState::Running => {
                    self.cloud.count("stopped by somebody");
                    one.state = InstanceState::Stopped;
                }
                _ => {}
            }
        }
    }

    /// People wake and put to sleep, agents take what was placed on them, and lose it with their machine.
    async fn people(&self) {
        let mut placed: HashMap<WorkspaceId, HostId> = HashMap::new();
        let mut up = BTreeMap::new();
        let instances: Vec<Instance> = self.cloud.instances.lock().unwrap().values().cloned().collect();
        for one in instances.iter().filter(|one| one.state == InstanceState::Running) {
            let (Some(of), Some(on)) = (one.tags.org, one.tags.host) else { continue };
            up.insert(on, of);
            let host = self.commands.load::<Host>(&StreamId::host(of, on)).await.unwrap().state;
            if let Host::Active(active) = host {
                placed.extend(active.placed.keys().map(|workspace| (*workspace, on)));
            }
        }
        let by = UserId::from_uuid(Uuid::from_u128(1));
        for (&id, &of) in &self.owners {
            let stream = StreamId::runtime(of, id);
            let last = self.log.last_of_stream(&stream).await.unwrap().map_or(Position::START, |last| last.position);
            let state = self.commands.load::<Runtime>(&stream).await.unwrap().state;
            let wakes = |before: Epoch| RuntimeEvent::WakeRequested {
                epoch: Epoch(before.0 + 1),
                workspace: id,
                project: project(),
                cause: WakeCause::Person(by),
            };
            let events = match state {
                Runtime::NeverWoken if self.cloud.luck(2) == 0 => vec![wakes(Epoch(0))],
                Runtime::Asleep { epoch, .. } if self.cloud.luck(2) == 0 => vec![wakes(epoch)],
                Runtime::Waking { epoch, host: None, .. } => {
                    let Some(host) = placed.get(&id).copied() else { continue };
                    vec![RuntimeEvent::HostChosen { epoch, host }]
                }
                Runtime::Waking { epoch, host: Some(host), .. }
                    if self.cloud.luck(2) == 0 || !up.contains_key(&host) =>
                {
                    let cause = SleepCause::Person(by);
                    let slept = vec![RuntimeEvent::SleepRequested { epoch, cause }, RuntimeEvent::Slept { epoch }];
                    if self.tell(stream, last, slept.into_iter().map(Event::Runtime).collect()).await {
                        // Where the machine is gone, the fleet gives its room back.
                        let context = Context::new(self.clock.now());
                        let _ = hosts::release(&self.commands, &self.placing(id), &context, host, id).await;
                    }
                    continue;
                }
                _ => continue,
            };
            self.tell(stream, last, events.into_iter().map(Event::Runtime).collect()).await;
        }
        self.sneak(&up).await;
    }

    /// Somebody tries to place what is one organization's on a host of another, by that host's stream and by one of its own.
    async fn sneak(&self, up: &BTreeMap<HostId, OrgId>) {
        let (workspace, of) = self.owners.iter().nth(self.cloud.luck(24) as usize).unwrap();
        let Some((host, theirs)) = up.iter().find(|(_, theirs)| *theirs != of) else { return };
        let (permit, context) = (self.placing(*workspace), Context::new(self.clock.now()));
        let needs = capacity(1, 1);
        let own = hosts::place(&self.commands, &permit, &context, *host, *workspace, needs).await;
        assert!(own.is_err(), "{host} is {theirs}'s");
        let place = HostCommand::Place { workspace: *workspace, org: *of, needs };
        let foreign = self.commands.execute::<Host>(&permit, &context, &StreamId::host(*theirs, *host), &place).await;
        assert!(foreign.is_err(), "{host} is {theirs}'s");
        self.cloud.count("placements refused");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_of_real_fleets_never_shows_two_organizations_on_one_machine() {
    let site = Site::new(Some(seed())).await;
    // Two of them, one of which is killed now and then.
    let (steady, mut killed) = (site.start(), site.start());
    let begun = Instant::now();
    for round in 1_u64.. {
        site.clock.0.fetch_add(2_000, Ordering::SeqCst);
        site.people().await;
        site.agents().await;
        site.weather();
        if round.is_multiple_of(50) {
            killed.abort();
            killed = site.start();
            site.cloud.count("fleets killed");
        }
        if begun.elapsed() > RUN {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await; // pause: for the fleets' looks between two rounds
    }
    assert!(!steady.is_finished(), "a fleet has ended by itself");
    steady.abort();
    killed.abort();
    let mut checker = Checker::default();
    for (stream, event) in site.events().await {
        checker.read(stream.org(), stream.key(), &event);
    }
    let counts = site.cloud.counts.lock().unwrap().clone();
    println!("{} placements on {} hosts and machines: {counts:?}", checker.placements, checker.organizations.len());
    assert!(checker.placements >= 100, "only {} placements: {counts:?}", checker.placements);
    assert!(checker.most_at_once > 1, "workspaces of one organization share machines");
    for what in
        ["tags that lie", "no capacity", "lost answers", "terminated", "enrolment refused", "placements refused"]
    {
        assert!(counts.contains_key(what), "there was no `{what}`: {counts:?}");
    }
}
