//! The registry of gateways against real servers: who is waited for, for how long, and what a gateway may rely on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use envforge_domain::commit::Position;
use envforge_domain::revocation::{Uncounted, UncountedShells, WhyShellsUnknown, WhyUncounted};
use envforge_domain::secret::Secret;
use envforge_eventlog::LogError;
use envforge_eventlog::gateways::{Account, Gateways, LEASE, REFUSES_WITHIN_MAX, Witness};
use envforge_eventlog::jetstream::{Config, Credentials, JetStreamLog, Registry};
use envforge_testkit::{NatsOptions, NatsServer, eventually};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::commits::{add, at, claim};
use crate::site::DEADLINE;

/// A gateway whose reading is told by the test.
struct Scripted {
    read: watch::Sender<Position>,
    fresh: AtomicBool,
    sockets: u32,
    waited_for: Mutex<Option<Instant>>,
}

impl Scripted {
    fn new(sockets: u32) -> Arc<Self> {
        let read = watch::channel(Position::new(u64::MAX)).0;
        Arc::new(Self { read, fresh: AtomicBool::new(true), sockets, waited_for: Mutex::default() })
    }

    /// How long ago it was last known as one that is waited for.
    fn since(&self) -> Duration {
        self.waited_for.lock().unwrap().elapsed()
    }
}

#[async_trait]
impl Witness for Scripted {
    fn is_fresh(&self) -> bool {
        self.fresh.load(Ordering::Relaxed)
    }

    async fn has_read(&self, position: Position) -> bool {
        let mut read = self.read.subscribe();
        tokio::time::timeout(Duration::from_secs(1), read.wait_for(|read| *read >= position)).await.is_ok()
    }

    async fn closed_by(&self, _: &[Position]) -> Option<u32> {
        Some(self.sockets)
    }

    fn was_waited_for(&self, at: Instant) {
        *self.waited_for.lock() = Some(at);
    }
}

/// As each process has it.
async fn registry(server: &NatsServer) -> (Arc<JetStreamLog>, Arc<Registry>) {
    let log = Arc::new(JetStreamLog::open(Config::new(server.url())).await.unwrap());
    let registry = log.gateways().await.unwrap();
    (log, registry)
}

fn counted(sockets: u32) -> Account {
    Account { sockets, ..Account::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_gateway_is_waited_for_and_counted_until_it_leaves() {
    let server = NatsServer::start();
    let (log, api) = registry(&server).await;
    assert_eq!(api.have_read(&[at(1)]).await, counted(0), "there is none");
    let (one, two) = (Scripted::new(2), Scripted::new(3));
    let (_, of_one) = registry(&server).await;
    let (_, of_two) = registry(&server).await;
    let enrolled = of_one.enrol(one.clone(), REFUSES_WITHIN_MAX).await.unwrap();
    let other = of_two.enrol(two.clone(), REFUSES_WITHIN_MAX).await.unwrap();
    assert_eq!(api.have_read(&[at(1)]).await, counted(5));

    // One that has not read it yet is waited for.
    let log: envforge_eventlog::SharedLog = log;
    add(&log, &claim("a"), "1").await;
    one.read.send_replace(Position::START);
    let commits = [at(1)];
    let early = tokio::time::timeout(Duration::from_millis(300), api.have_read(&commits)).await;
    assert!(early.is_err(), "it has not read it: {early:?}");
    one.read.send_replace(at(1));
    assert_eq!(api.have_read(&commits).await, counted(5));

    enrolled.leave().await;
    let asked = Instant::now();
    assert_eq!(api.have_read(&[at(1)]).await, counted(3));
    other.leave().await;
    assert_eq!(api.have_read(&[at(1)]).await, counted(0));
    assert!(asked.elapsed() < Duration::from_secs(1), "nobody waits for those that left: {:?}", asked.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_hears_nothing_is_gone_once_it_refuses_by_itself_and_enters_anew() {
    let server = NatsServer::start();
    let (_log, api) = registry(&server).await;
    let (_, of_gateway) = registry(&server).await;
    let (silent, well) = (Scripted::new(7), Scripted::new(1));
    let enrolled = of_gateway.enrol(silent.clone(), REFUSES_WITHIN_MAX).await.unwrap();
    let gateway = Some(enrolled.id());
    let _well = of_gateway.enrol(well.clone(), REFUSES_WITHIN_MAX).await.unwrap();
    // Cut off from the log, and its views stand still.
    silent.fresh.store(false, Ordering::Relaxed);
    silent.read.send_replace(Position::START);
    let asked = Instant::now();
    let account = api.have_read(&[at(5)]).await;
    assert_eq!(account.uncounted, [Uncounted { gateway, why: WhyUncounted::Lost }]);
    assert_eq!(account.sockets, 1);
    assert!(silent.since() > REFUSES_WITHIN_MAX, "it refuses already: {:?}", silent.since());
    assert!(asked.elapsed() < LEASE + Duration::from_secs(1), "{:?}", asked.elapsed());
    let asked = Instant::now();
    assert_eq!(api.have_read(&[at(6)]).await, counted(1), "waited for once");
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    // It comes back: not before it has read all that there is.
    silent.fresh.store(true, Ordering::Relaxed);
    silent.read.send_replace(Position::new(u64::MAX));
    eventually("it is waited for again", DEADLINE, async || {
        (silent.since() < Duration::from_secs(2) && api.have_read(&[at(7)]).await == counted(8)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_enters_has_first_read_what_the_log_held_and_a_slow_refusal_is_no_witness() {
    let server = NatsServer::start();
    let (log, api) = registry(&server).await;
    let log: envforge_eventlog::SharedLog = log;
    add(&log, &claim("a"), "1").await;
    let behind = Scripted::new(0);
    behind.read.send_replace(Position::START);
    let Err(LogError::Unavailable(_)) = api.enrol(behind.clone(), REFUSES_WITHIN_MAX).await.map(drop) else {
        panic!("it entered without having read")
    };
    assert!(behind.waited_for.lock().is_none());
    let Err(LogError::Open(_)) = api.enrol(behind, LEASE).await.map(drop) else { panic!("it outlives its lease") };
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_registry_it_is_said_that_nothing_is_known() {
    let mut server = NatsServer::start();
    let (_log, api) = registry(&server).await;
    server.kill9();
    let account = api.have_read(&[at(1)]).await;
    assert_eq!(account.uncounted, [Uncounted { gateway: None, why: WhyUncounted::Unknown }]);
    assert_eq!(account.shells_uncounted, [UncountedShells { process: None, why: WhyShellsUnknown::Unknown }]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_of_the_api_are_waited_for_by_receipts_and_by_nothing_else() {
    let server = NatsServer::start();
    let (_log, api) = registry(&server).await;
    let (_, of_gateway) = registry(&server).await;
    let (_, of_other) = registry(&server).await;
    let _gateway = of_gateway.enrol(Scripted::new(2), REFUSES_WITHIN_MAX).await.unwrap();
    let (here, there) = (Scripted::new(1), Scripted::new(5));
    let _here = api.enrol_api(here, REFUSES_WITHIN_MAX).await.unwrap();
    let enrolled = of_other.enrol_api(there.clone(), REFUSES_WITHIN_MAX).await.unwrap();
    assert_eq!(api.have_read(&[at(1)]).await, Account { shells: 6, ..counted(2) });

    // Nothing is heard of it.
    there.fresh.store(false, Ordering::Relaxed);
    there.read.send_replace(Position::START);
    let asked = Instant::now();
    assert_eq!(api.settle(at(5)).await, counted(2));
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    let silent = UncountedShells { process: Some(enrolled.id()), why: WhyShellsUnknown::Lost };
    let account = api.have_read(&[at(6)]).await;
    assert_eq!(account, Account { shells: 1, shells_uncounted: vec![silent], ..counted(2) });
    assert!(there.since() > REFUSES_WITHIN_MAX, "it has ended what was open: {:?}", there.since());
    assert!(asked.elapsed() < LEASE + Duration::from_secs(1), "{:?}", asked.elapsed());
}

/// With the rights that `jetstream`'s page names, and no others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_registry_needs_no_more_rights_than_it_says_once_it_is_made() {
    let extra_configuration = r#"
        authorization { users: [
            { user: operator, password: "operator" }
            { user: envforge, password: "envforge", permissions: {
                publish: [ "envforge.>", "$JS.API.STREAM.INFO.ENVFORGE", "$JS.API.STREAM.MSG.GET.ENVFORGE",
                    "envforge-gateways.>", "envforge-gateways-asked", "_INBOX.>",
                    "$JS.API.STREAM.INFO.ENVFORGE_GATEWAYS", "$JS.API.STREAM.MSG.GET.ENVFORGE_GATEWAYS",
                    "$JS.API.STREAM.MSG.DELETE.ENVFORGE_GATEWAYS" ]
                subscribe: [ "_INBOX.>", "envforge-gateways-asked" ]
            } }
        ] }"#
        .to_owned();
    let server = NatsServer::start_with(&NatsOptions { extra_configuration, ..NatsOptions::default() });
    let open = async |user: &str| {
        let password = Secret::new(user.to_owned());
        let credentials = Credentials::UserPassword { user: user.to_owned(), password };
        JetStreamLog::open(Config { credentials, ..Config::new(server.url()) }).await.unwrap()
    };
    open("operator").await.gateways().await.unwrap();
    let registry = open("envforge").await.gateways().await.unwrap();
    let enrolled = registry.enrol(Scripted::new(4), REFUSES_WITHIN_MAX).await.unwrap();
    let of_api = registry.enrol_api(Scripted::new(3), REFUSES_WITHIN_MAX).await.unwrap();
    assert_eq!(registry.have_read(&[at(1)]).await, Account { shells: 3, ..counted(4) });
    enrolled.leave().await;
    of_api.leave().await;
    assert_eq!(registry.have_read(&[at(1)]).await, counted(0));
}
