//! A host behind its agent's connection: its reactor comes and goes with that, and the lease bounds what is believed meanwhile.

use std::sync::Arc;

use envforge_agent::{
    Agent as HostAgent, AgentIdentity, Arrival, Authority, Config, Host, HostIdentity, Listener, RemoteHost, Session,
    enrol,
};
use envforge_commands::{Context, hosts};
use envforge_domain::access::{Action, ActorFacts, Facts, Request, Resource, authorize};
use envforge_domain::commit::{Actor, Component, Position, Surface};
use envforge_domain::enrolment::EnrolmentToken;
use envforge_domain::ids::HostId;
use envforge_domain::limits::RUNTIME_LEASE;
use envforge_domain::runtime::{Runtime, RuntimeEvent};
use envforge_domain::time::{Clock, Millis, SharedClock, UnixMillis};
use envforge_eventlog::LogError;
use envforge_reactors::{HostMachine, RuntimeReactor, SharedWorld};
use envforge_runtime::LocalHost;
use envforge_testkit::eventually;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::shells::Telling;
use crate::site::*;

/// Certificates are verified by the machine's own clock.
struct MachineClock;

impl Clock for MachineClock {
    #[allow(clippy::disallowed_methods, reason = "certificates are verified by the machine's clock")]
    fn now(&self) -> UnixMillis {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        UnixMillis::new(u64::try_from(since.as_millis()).unwrap())
    }
}

fn id() -> HostId {
    HostId::from_uuid(Uuid::from_u128(9))
}

/// A listener, and an agent with a host of its own that has enrolled there.
struct Line {
    listener: Listener,
    local: LocalHost,
    agent: JoinHandle<Result<(), envforge_agent::AgentError>>,
    stop: CancellationToken,
}

impl Line {
    async fn new(site: &Site) -> Self {
        let clock: SharedClock = Arc::new(MachineClock);
        let folder = site.directory.path().join("agent");
        std::fs::create_dir_all(&folder).unwrap();
        let (key, certificate) = (folder.join("authority.key"), folder.join("authority.crt"));
        let authority = Arc::new(Authority::load_or_create(&key, &certificate, clock.now()).unwrap());
        let any = "127.0.0.1:0".parse().unwrap();
        let listener = Listener::bind(any, &authority, Arc::clone(&clock)).await.unwrap();
        let at = listener.local_address().unwrap().to_string();
        let token = EnrolmentToken::new(acme(), id(), authority.fingerprint(), &[1; 32]);
        let granting = async {
            let Arrival::Enrolling(enrolling) =
                listener.accept().await.unwrap().hello().await.unwrap().arrive().await.unwrap()
            else {
                panic!("somebody else came");
            };
            let identity = HostIdentity { org: acme(), host: id(), enrolment: 1 };
            let day = Millis::from_hours(24);
            let certificate = authority.certify(&enrolling.request.request, identity, clock.now(), day).unwrap();
            enrolling.grant(&certificate).await.unwrap();
        };
        let enrolling = enrol(&at, &folder, &token, "local-9", capacity(), "test", &clock);
        let (identity, ()): (Result<AgentIdentity, _>, ()) = tokio::join!(enrolling, granting);
        let (local, _) = LocalHost::open(envforge_runtime::Config::new(folder.join("runtime"))).await.unwrap();
        let config = Config { control_plane: at, agent_version: "test".to_owned(), clock };
        let agent = HostAgent::new(config, local.clone(), identity.unwrap(), envforge_agent::programs());
        let stop = CancellationToken::new();
        Self { listener, local, agent: tokio::spawn(agent.run(stop.clone())), stop }
    }

    async fn connected(&self) -> (RemoteHost, Session) {
        loop {
            if let Ok(Arrival::Agent(connection)) =
                self.listener.accept().await.unwrap().hello().await.unwrap().arrive().await
            {
                let (host, session, _) = connection.establish().await.unwrap();
                return (host, session);
            }
        }
    }

    async fn end(self) {
        self.stop.cancel();
        self.agent.await.unwrap().unwrap();
        self.local.shutdown().await;
    }
}

fn capacity() -> envforge_domain::host::Capacity {
    envforge_domain::host::Capacity { cpu_millicores: 4_000, memory_mib: 8_192 }
}

/// As enrolling registers it.
pub(crate) async fn register(site: &Site) {
    let resource = Resource::Host { org: acme(), host: id() };
    let (actor, surface, now) = (Actor::System(Component::RuntimeReactor), Surface::Agent, site.now());
    let facts = Facts { position: Position::START, actor: ActorFacts::System };
    let request = Request { actor, action: Action::HostRegister, resource, surface, now };
    let permit = authorize(&facts, &request).unwrap();
    let machine = hosts::MachineKey::parse("local-9").unwrap();
    let (context, provider) = (Context::new(now), "agent".to_owned());
    hosts::register(&site.commands, &permit, &context, id(), provider, machine, capacity()).await.unwrap();
}

struct Reacting {
    stop: CancellationToken,
    reactor: JoinHandle<Result<(), LogError>>,
    session: Session,
}

impl Reacting {
    async fn to(site: &Site, world: &SharedWorld, line: &Line) -> Self {
        let (remote, session) = line.connected().await;
        let machine = HostMachine { key: "local-9".to_owned(), host: id(), capacity: capacity(), org: Some(acme()) };
        let (clock, authority) = (Arc::clone(&site.clock) as SharedClock, "dev.localhost:7080".to_owned());
        let commands = site.commands.clone();
        let reactor = RuntimeReactor::new(world, commands, Host::Remote(remote), machine, clock, authority);
        let stop = session.closed().child_token();
        Self { reactor: tokio::spawn(reactor.run(stop.clone())), stop, session }
    }

    /// The connection breaks, and with it the reactor ends.
    async fn break_off(self) {
        drop(self.session);
        self.stop.cancel();
        self.reactor.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_out_of_reach_is_lost_at_its_last_word_and_told_to_clear_when_it_is_back() {
    let site = Site::new().await;
    register(&site).await;
    let world = SharedWorld::new(Arc::clone(&site.log));
    let stop = CancellationToken::new();
    let following = tokio::spawn(world.clone().run(stop.clone()));
    let line = Line::new(&site).await;
    let reacting = Reacting::to(&site, &world, &line).await;
    site.wake().await;
    assert_eq!(site.until("ready", ready).await.host(), Some(id()));
    let address = site.address().await;

    // Within the lease, and its grace, a broken connection is nothing.
    reacting.break_off().await;
    site.clock.skip(Millis::from_secs(20));
    let reacting = Reacting::to(&site, &world, &line).await;
    site.happened("a renewed lease", |event| matches!(event, RuntimeEvent::LeaseRenewed { .. })).await;
    assert!(ready(&site.state_of(site.workspace).await) && TcpStream::connect(address).await.is_ok());

    // Longer than that, it is lost for the log, whatever still runs there.
    let Runtime::Ready(before) = site.state_of(site.workspace).await else { panic!("it is up") };
    reacting.break_off().await;
    site.clock.skip(Millis::new(2 * RUNTIME_LEASE.get()));
    let ticking = site.tick();
    let lost = site.happened("it is lost", |event| matches!(event, RuntimeEvent::Lost { .. })).await;
    let RuntimeEvent::Lost { closed_at, .. } = lost else { panic!("it was lost") };
    assert_eq!(closed_at, before.lease_until, "and never counts for longer than its last lease");
    assert!(TcpStream::connect(address).await.is_ok(), "nobody could tell it");

    // What the log does not want awake it is told to end, and it wakes anew.
    let reacting = Reacting::to(&site, &world, &line).await;
    until_closed(address).await;
    assert!(line.local.epochs_up().is_empty());
    eventually("its room is given back", DEADLINE, async || {
        let host = hosts::load(&site.commands, acme(), id()).await.unwrap().state;
        matches!(host, envforge_domain::host::Host::Active(active) if active.placed.is_empty()).then_some(())
    })
    .await;
    site.wake().await;
    eventually("ready again", DEADLINE, async || ready(&site.state_of(site.workspace).await).then_some(())).await;
    reacting.break_off().await;
    ticking.stop().await;
    line.end().await;
    stop.cancel();
    following.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_of_which_an_agents_host_knows_nothing_is_told_as_lost() {
    let site = Site::new().await;
    register(&site).await;
    site.connect(id()).await;
    site.clock.skip(Millis::from_secs(31));
    let line = Line::new(&site).await;
    let (remote, session) = line.connected().await;
    let machine = HostMachine { key: "local-9".to_owned(), host: id(), capacity: capacity(), org: Some(acme()) };
    let telling = Telling::of(&site, Host::Remote(remote), machine);
    site.until_ended((1, 0)).await;
    telling.stop().await;
    drop(session);
    line.end().await;
}
