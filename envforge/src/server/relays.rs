//! Connections between processes of the control plane: one with the role `agents` or `reactors` passes shells, jobs, logs and what is seen of
//! root windows on to its agents' hosts, or to its own machine, for processes that have the API (docs/adr/0020).
//!
//! Not here: what passes and how (agent), which host a workspace lies on (`hosts`).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use envforge_agent::{AsOf, RelayConnection, RelayIncoming, RelayKey, RelayListener, Relayed};
use envforge_domain::commit::Position;
use envforge_domain::time::UnixMillis;
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::control_plane::ControlPlane;
use super::handshakes::{Handshakes, Place};
use super::hosts::{Connection, Hosts, Relay};
use super::running::Running;
use super::shells::GivenSecrets;
use crate::cli::failure::Failure;

/// Processes that may be connected at the same time. Whoever has not said yet who it is counts elsewhere (`handshakes`).
const CONNECTIONS_MAX: usize = 64;
/// For the last words of what ends on this machine, when this process stops.
const FAREWELL: Duration = Duration::from_millis(500);
/// Other processes that one is told of.
const RELAYS_MAX: usize = 64;
/// How long our views of the log may take to know what the asking process knows.
const VIEW_WAIT: Duration = Duration::from_secs(5);
/// Wait before connecting again: doubled each time, and each time some random part of it.
const RECONNECT_MIN: Duration = Duration::from_millis(250);
const RECONNECT_MAX: Duration = Duration::from_secs(5);
/// A connection that held for this long begins the waits anew.
const SETTLED: Duration = Duration::from_secs(30);

const KEY: &str = "relay.key";
const CERTIFICATE: &str = "relay.crt";

/// How processes reach each other's hosts.
#[derive(Args, Debug)]
pub(crate) struct RelayArgs {
    /// Where `agents` and `reactors` listen for processes that have the API and reach hosts through this one, its agents' and its own
    /// machine, by TLS with certificates of the key `relay.key` in the folder of the keys. Without it nobody does.
    #[arg(long, value_name = "ADDRESS", env = "ENVFORGE_RELAY_LISTEN")]
    relay_listen: Option<SocketAddr>,
    /// Where other processes with the role `agents` or `reactors` listen for this one, which has the API: host and port of each, separated
    /// by commas.
    #[arg(long = "relays", value_name = "HOST:PORT", value_delimiter = ',', env = "ENVFORGE_RELAYS")]
    relays: Vec<String>,
}

impl RelayArgs {
    /// Each of the other processes, once.
    pub(crate) fn others(&self) -> Result<Vec<String>, Failure> {
        let mut others: Vec<_> =
            self.relays.iter().map(|at| at.trim().to_owned()).filter(|at| !at.is_empty()).collect();
        others.sort_unstable();
        others.dedup();
        let port = |at: &String| {
            at.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        };
        if let Some(wrong) = others.iter().find(|at| !port(at)) {
            let what = format!("--relays `{wrong}` is no host with a port");
            return Err(Failure::usage(what, "for example agents-1.internal:7091,agents-2.internal:7091"));
        }
        if others.len() > RELAYS_MAX {
            let what = format!("--relays names {} processes; at most {RELAYS_MAX}", others.len());
            return Err(Failure::usage(what, "name those with the role `agents` or `reactors`"));
        }
        Ok(others)
    }

    pub(crate) fn listen(&self) -> Option<SocketAddr> {
        self.relay_listen
    }
}

/// The key in a folder of keys, made where there is none.
pub(crate) fn make_key(keys: &Path, now: UnixMillis) -> anyhow::Result<()> {
    RelayKey::load_or_create(&keys.join(KEY), &keys.join(CERTIFICATE), now)?;
    Ok(())
}

/// The key in a folder of keys. INVARIANT: nobody makes one of their own: others would not know it.
pub(crate) fn key(keys: &Path) -> anyhow::Result<Arc<RelayKey>> {
    let (key, certificate) = (keys.join(KEY), keys.join(CERTIFICATE));
    if !key.exists() || !certificate.exists() {
        let what = format!("{} or {} is missing", key.display(), certificate.display());
        return Err(
            Failure::usage(what, "`envforge setup` makes both, also where the other keys are there already").into()
        );
    }
    Ok(Arc::new(RelayKey::load(&key, &certificate)?))
}

/// Listens for other processes. Answers the address.
pub(crate) async fn listen(
    running: &mut Running,
    plane: &ControlPlane,
    hosts: &Hosts,
    key: Arc<RelayKey>,
    address: SocketAddr,
    given: GivenSecrets,
) -> anyhow::Result<SocketAddr> {
    let listener = RelayListener::bind(address, key, Arc::clone(&plane.clock)).await?;
    let address = listener.local_address()?;
    let (watching, stop) = (hosts.clone(), running.stop.clone());
    running.essential.spawn("whose this machine is", async move {
        stop.run_until_cancelled(watching.watch_owner()).await;
        Ok(())
    });
    let (relayed, hosts) = (relayed(plane, hosts, given), hosts.clone());
    let stop = running.stop.clone();
    running.essential.spawn("the listener for other processes", async move {
        accept(listener, relayed, hosts, stop).await;
        Ok(())
    });
    Ok(address)
}

fn relayed(plane: &ControlPlane, hosts: &Hosts, given: GivenSecrets) -> Relayed {
    let (hot, here, hosts) = (Arc::clone(&plane.hot), hosts.here(), hosts.clone());
    let lines = Arc::new(move |host, as_of, header| {
        let (hot, hosts) = (Arc::clone(&hot), hosts.clone());
        async move {
            // Else this process would judge by less than the other one.
            hot.wait_for(Position::new(as_of), VIEW_WAIT).await.ok()?;
            hosts.line_for(host, &header).await
        }
        .boxed()
    });
    Relayed { here, lines, secrets: Arc::new(given) }
}

/// Who comes to the listener.
#[derive(Clone)]
struct Door {
    relayed: Relayed,
    hosts: Hosts,
    handshakes: Handshakes,
    room: Arc<Semaphore>,
}

async fn accept(listener: RelayListener, relayed: Relayed, hosts: Hosts, stop: CancellationToken) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let door = Door { relayed, hosts, handshakes: Handshakes::default(), room };
    let (mut connections, ending) = (JoinSet::new(), CancellationToken::new());
    loop {
        while connections.try_join_next().is_some() {}
        match stop.run_until_cancelled(listener.accept()).await {
            None => break,
            Some(Ok(incoming)) => {
                let Some(place) = door.handshakes.place(incoming.address()) else {
                    ended("too_many");
                    continue;
                };
                let (door, ending) = (door.clone(), ending.clone());
                connections.spawn(async move {
                    ending.run_until_cancelled(door.serve(incoming, place)).await;
                });
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "a connection of another process could not be accepted");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    // What ends on this machine says how, to whoever is there.
    let gone = async { while connections.join_next().await.is_some() {} };
    let _ = timeout(FAREWELL, gone).await;
    ending.cancel();
    while connections.join_next().await.is_some() {}
}

impl Door {
    async fn serve(self, incoming: RelayIncoming, place: Place) {
        let address = incoming.address();
        let served = async {
            let greeted = incoming.hello().await?;
            let turn = place.turn().await?;
            let peer = greeted.arrive().await?;
            self.handshakes.know(address);
            drop((turn, place));
            let Ok(_room) = self.room.try_acquire() else {
                return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "too many processes are connected"));
            };
            Ok(peer.serve(self.relayed.clone()).await)
        };
        match served.await {
            Ok(outcome) => {
                tell_end(address, outcome);
                // It may have been alone to watch what lasts.
                let anew = self.hosts.ask_anew();
                find_lasting(self.hosts, anew).await;
            }
            Err(error) => tell_end(address, Err(error)),
        }
    }
}

fn tell_end(address: IpAddr, outcome: io::Result<()>) {
    match outcome {
        Ok(()) => ended("closed"),
        Err(error) => {
            tracing::info!(%address, %error, "a connection of another process failed");
            ended(reason(&error));
        }
    }
}

fn ended(outcome: &'static str) {
    metrics::counter!("envforge_relay_connections_total", "outcome" => outcome).increment(1);
}

/// Why a connection came to nothing, for metrics.
fn reason(error: &io::Error) -> &'static str {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match (tls, error.kind()) {
        (Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented), _) => {
            "certificate_unknown"
        }
        (Some(_), _) => "tls",
        (None, io::ErrorKind::TimedOut) => "slow",
        (None, io::ErrorKind::InvalidData) => "protocol",
        (None, io::ErrorKind::QuotaExceeded) => "too_many",
        (None, _) => "connection",
    }
}

/// Keeps a connection to each of the other processes.
pub(crate) fn follow(
    running: &mut Running,
    plane: &ControlPlane,
    hosts: &Hosts,
    key: &Arc<RelayKey>,
    others: Vec<String>,
) {
    for at in others {
        let following = Following {
            at,
            relay: hosts.add_relay(),
            key: Arc::clone(key),
            plane: plane.clone(),
            hosts: hosts.clone(),
        };
        let stop = running.stop.clone();
        running.essential.spawn("the way to another process's hosts", async move {
            stop.run_until_cancelled(following.run()).await;
            Ok(())
        });
    }
}

struct Following {
    at: String,
    relay: Relay,
    key: Arc<RelayKey>,
    plane: ControlPlane,
    hosts: Hosts,
}

impl Following {
    async fn run(self) {
        let mut delay = RECONNECT_MIN;
        loop {
            let began = Instant::now();
            let error = match self.connected().await {
                Ok(never) => match never {},
                Err(error) => error,
            };
            self.hosts.relay_is_gone(self.relay);
            let reason = reason(&error);
            metrics::counter!("envforge_relay_connects_failed_total", "reason" => reason).increment(1);
            tracing::warn!(at = self.at, %error, reason, ?delay, "the hosts of another process are out of reach");
            if began.elapsed() >= SETTLED {
                delay = RECONNECT_MIN;
            }
            sleep(delay.mul_f64(rand::random_range(0.5..1.0))).await;
            delay = (delay * 2).min(RECONNECT_MAX);
        }
    }

    /// One connection, to its end.
    async fn connected(&self) -> io::Result<std::convert::Infallible> {
        let hot = Arc::clone(&self.plane.hot);
        let as_of: AsOf = Arc::new(move || hot.position().get());
        let mut connection = RelayConnection::open(&self.at, &self.key, &self.plane.clock, as_of).await?;
        let _connected = Connected::count();
        tracing::info!(at = self.at, "the hosts of another process are in reach");
        // What lasts on hosts is held to rights from here, too. Ends with the connection.
        let mut asking = JoinSet::new();
        loop {
            let fresh = self.hosts.relay_has(self.relay, connection.next().await?);
            while asking.try_join_next().is_some() {}
            if !fresh.is_empty() {
                asking.spawn(find_lasting(self.hosts.clone(), fresh));
            }
        }
    }
}

async fn find_lasting(hosts: Hosts, fresh: Vec<Connection>) {
    join_all(fresh.iter().map(|connection| hosts.find_lasting(connection))).await;
}

/// A connection that stands, in the metrics.
struct Connected;

impl Connected {
    fn count() -> Self {
        metrics::gauge!("envforge_relays_connected").increment(1.0);
        Self
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        metrics::gauge!("envforge_relays_connected").decrement(1.0);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use envforge_agent::{ReachedHost, StreamHeader};
    use envforge_domain::ids::{OrgId, WorkspaceId};
    use envforge_domain::shell::ShellFailure;
    use envforge_eventlog::SharedLog;
    use envforge_eventlog::sqlite::{Config, SqliteLog};
    use envforge_reactors::{HostMachine, SharedWorld};
    use envforge_runtime::LocalHost;
    use envforge_testkit::{TestDir, eventually};
    use uuid::Uuid;

    use super::*;
    use crate::server::known_log::{KnownLog, Memory};

    fn others(relays: &[&str]) -> Result<Vec<String>, String> {
        let relays = relays.iter().map(|at| (*at).to_owned()).collect();
        RelayArgs { relay_listen: None, relays }.others().map_err(|failure| failure.to_string())
    }

    #[test]
    fn a_process_makes_no_key_of_its_own() {
        let keys = TestDir::new();
        let missing = key(keys.path()).err().unwrap().to_string();
        assert!(missing.contains("relay.key") && missing.contains("missing"), "{missing}");
        make_key(keys.path(), UnixMillis::new(1_800_000_000_000)).unwrap();
        assert!(key(keys.path()).is_ok());
        std::fs::remove_file(keys.join("relay.crt")).unwrap();
        assert!(key(keys.path()).is_err());
    }

    /// The asking process has heard that the machine is nobody's; its view of the log, and the other process, know better by then.
    #[tokio::test]
    async fn a_machine_is_anybodys_until_something_begins_there_and_no_other_organizations_from_then_on() {
        let dir = TestDir::new();
        let log: SharedLog = Arc::new(SqliteLog::open(Config::new(dir.join("log"))).await.unwrap());
        let memory = Memory { database: None, rebuild: "", files: &[] };
        let known = KnownLog::hold(Arc::clone(&log), &memory).await.unwrap();
        let mut running = Running::default();
        let plane = ControlPlane::start(&known, running.stop_views.clone()).await.unwrap();
        let (host, _) = LocalHost::open(envforge_runtime::Config::new(dir.join("state"))).await.unwrap();
        std::fs::write(dir.join("machine-id"), "0123456789abcdef0123456789abcdef").unwrap();
        let machine = HostMachine::open(&dir.join("state"), &dir.join("machine-id")).unwrap();
        let (id, world) = (machine.host, SharedWorld::new(Arc::clone(&log)));
        let [has, asks] = [false, true].map(|with_api| Hosts::new(Arc::clone(&plane.hot), with_api));
        has.add_local(host.clone(), machine, world, plane.commands.clone(), Arc::clone(&plane.clock));
        std::fs::create_dir(dir.join("keys")).unwrap();
        make_key(&dir.join("keys"), plane.clock.now()).unwrap();
        let (key, given) = (key(&dir.join("keys")).unwrap(), GivenSecrets::new(&plane, None));
        let anywhere = "127.0.0.1:0".parse().unwrap();
        let at = listen(&mut running, &plane, &has, Arc::clone(&key), anywhere, given).await.unwrap();
        follow(&mut running, &plane, &asks, &key, vec![at.to_string()]);

        let [acme, globex] = [1, 2].map(|number| OrgId::from_uuid(Uuid::from_u128(number)));
        let nothing = WorkspaceId::from_uuid(Uuid::from_u128(3));
        let reached = async || asks.reach(globex, id);
        let ReachedHost::Line(theirs) = eventually("the machine", VIEW_WAIT, reached).await else {
            panic!("it is not in this process")
        };
        assert!(theirs.lasting_shells().await.is_ok(), "it is nobody's yet");
        assert_eq!([acme, globex].map(|org| asks.place(org, nothing)), [Ok(id), Ok(id)]);
        let nowhere = WorkspaceId::from_uuid(Uuid::nil());
        let parameters = std::collections::BTreeMap::default();
        let shell = StreamHeader { org: acme, workspace: nowhere, purpose: "shell".to_owned(), parameters };
        assert!(has.line_for(id, &shell).await.is_some());
        plane.hot.wait_for(log.head().await.unwrap().position, VIEW_WAIT).await.unwrap();
        assert_eq!(asks.place(acme, nothing), Ok(id));
        assert!(asks.reach(acme, id).is_some() && asks.reach(globex, id).is_none());
        assert_eq!(asks.place(globex, nothing), Err(ShellFailure::HostElsewhere));
        let refused = theirs.lasting_shells().await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::NotConnected, "a line from before leads there no more");

        let waits = Hosts::new(Arc::clone(&plane.hot), true);
        waits.add_relay();
        assert_eq!(waits.place(acme, nothing), Err(ShellFailure::OutOfReach), "to whom the other process is away");
        running.stop.cancel();
        running.essential.finish().await;
        running.stop_views.cancel();
        host.shutdown().await;
    }

    #[test]
    fn each_process_is_named_once_by_host_and_port() {
        let named = others(&["b.internal:7091", " a.internal:7091", "b.internal:7091", ""]).unwrap();
        assert_eq!(named, ["a.internal:7091", "b.internal:7091"]);
        assert_eq!(others(&["[::1]:7091"]).unwrap(), ["[::1]:7091"]);
        for wrong in ["a.internal", ":7091", "a.internal:port", "a.internal:70910"] {
            assert!(others(&[wrong]).unwrap_err().contains(wrong), "{wrong}");
        }
    }
}
