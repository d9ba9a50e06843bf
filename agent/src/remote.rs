//! A host behind its agent's connection, as reactors use it.
//!
//! Lives as long as the connection. Whoever asks for something when that is gone is told so, and asks the next one: every order is named
//! by its epoch, and the agent does once what it is told twice.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use envforge_domain::ids::{HostId, OrgId, WorkspaceId};
use envforge_domain::manifest::{Manifest, Route};
use envforge_domain::slug::ServiceName;
use envforge_domain::time::{Millis, UnixMillis};
use envforge_runtime::{Awake, Report, Reports, SleepFailure, Stage, WakeFailure, WakeOrder};
use h2::client::SendRequest;
use tokio::io::{ReadHalf, WriteHalf};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::authority::HostCertificate;
use crate::frame;
use crate::identity::HostIdentity;
use crate::line::{Calls, HostLine, timed};
use crate::stream::ByteStream;
use crate::wire::{Call, Down, EndAnswer, HEARTBEAT_INTERVAL, PATH, SILENCE_MAX, Up, WakeAnswer, WakeCall, shortened};

/// Beside the interval between heartbeats: how old an agent's last word may be to renew a lease on it.
const HEARD_GRACE: Duration = Duration::from_secs(2);
const REPORTS_MAX: usize = 256;
/// Runtimes of one host; an agent that names more is none.
const FACTS_MAX: usize = 10_000;

/// A connected host. Clones are one.
#[derive(Clone)]
pub struct RemoteHost(Arc<Inner>);

struct Inner {
    identity: HostIdentity,
    /// Where it connected from: its services answer there and nowhere else.
    address: IpAddr,
    calls: Calls,
    line: HostLine,
    facts: Mutex<Facts>,
    heard: Mutex<Instant>,
    /// Something that was up is not, or the other way round, without having been asked for.
    changed: Notify,
    reports: Reports,
    closed: CancellationToken,
}

/// What is up, and as of which of the agent's changes. An answer may overtake an older list.
#[derive(Default)]
struct Facts {
    known: HashMap<WorkspaceId, (Option<u64>, u64)>,
}

impl Facts {
    fn epoch_up(&self, workspace: WorkspaceId) -> Option<u64> {
        self.known.get(&workspace).and_then(|(epoch, _)| *epoch)
    }

    fn told(&mut self, workspace: WorkspaceId, epoch: Option<u64>, as_of: u64) {
        if self.known.get(&workspace).is_none_or(|(_, known)| *known <= as_of) {
            self.known.insert(workspace, (epoch, as_of));
        }
    }

    /// Whether anything is up now that was not, or the other way round.
    fn told_all(&mut self, up: &HashMap<WorkspaceId, u64>, as_of: u64) -> bool {
        let before: HashMap<_, _> = self.up().collect();
        self.known.retain(|workspace, (_, known)| *known > as_of || up.contains_key(workspace));
        for (workspace, epoch) in up {
            self.told(*workspace, Some(*epoch), as_of);
        }
        before != self.up().collect()
    }

    fn up(&self) -> impl Iterator<Item = (WorkspaceId, u64)> {
        self.known.iter().filter_map(|(workspace, (epoch, _))| Some((*workspace, (*epoch)?)))
    }
}

/// The control plane's hold on a connection: what the agent asks for, and its end.
pub struct Session {
    happened: mpsc::Receiver<String>,
    down: mpsc::Sender<Down>,
    closed: CancellationToken,
    valid_until: Instant,
}

/// What a session has to tell.
pub enum Happened {
    /// The agent wants a new key certified: a request (PEM).
    Renew(String),
    /// The connection is gone, or its certificate's time is over.
    Closed,
}

impl Session {
    /// What comes next. Safe to cancel.
    pub async fn next(&mut self) -> Happened {
        tokio::select! {
            () = self.closed.cancelled() => Happened::Closed,
            () = tokio::time::sleep_until(self.valid_until) => {
                self.closed.cancel();
                Happened::Closed
            }
            request = self.happened.recv() => request.map_or(Happened::Closed, Happened::Renew),
        }
    }

    /// Gives the agent its certificate. The connection lives on with it.
    pub async fn certify(&mut self, certificate: &HostCertificate, now: UnixMillis) {
        self.valid_until = Instant::now() + certificate.expires_at.since(now).to_duration();
        let expires_at_unix_ms = certificate.expires_at.get();
        let down = Down::Certificate { chain: certificate.chain.clone(), expires_at_unix_ms };
        // Where it is gone, `next` tells.
        let _ = self.down.send(down).await;
    }

    pub async fn do_not_certify(&mut self, reason: String) {
        let _ = self.down.send(Down::NotCertified { reason }).await;
    }

    /// Ends the connection, with all its streams, when it is cancelled; and is cancelled with it.
    pub fn closed(&self) -> &CancellationToken {
        &self.closed
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

impl RemoteHost {
    /// Begins the session: the agent's greeting, and what is up there. Answers the agent's version besides.
    pub(crate) async fn begin(
        identity: HostIdentity,
        address: IpAddr,
        calls: SendRequest<Bytes>,
        closed: CancellationToken,
        valid_for: Millis,
    ) -> io::Result<(Self, Session, String)> {
        let calls = Calls::new(calls);
        let line = HostLine::of_agent(identity.org, calls.clone());
        let inner = Inner {
            identity,
            address,
            calls,
            line,
            facts: Mutex::default(),
            heard: Mutex::new(Instant::now()),
            changed: Notify::new(),
            reports: Reports::new(REPORTS_MAX),
            closed: closed.clone(),
        };
        let host = Self(Arc::new(inner));
        let mut stream = host.call(&Call::Session).await?;
        let Up::Hello { agent_version } = timed(frame::expect(&mut stream)).await? else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the agent did not greet"));
        };
        let facts @ Up::Facts { .. } = timed(frame::expect(&mut stream)).await? else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the agent did not say what is up"));
        };
        host.take_facts(facts)?;
        let (reading, writing) = tokio::io::split(stream);
        let (renewals, happened) = mpsc::channel(1);
        let (down, downs) = mpsc::channel(8);
        tokio::spawn({
            let (host, closed, down) = (host.clone(), closed.clone(), down.clone());
            async move {
                let heard = closed.run_until_cancelled(host.listen(reading, renewals, down)).await;
                if let Some(Err(error)) = heard {
                    tracing::info!(host = %host.0.identity.host, %error, "an agent's session ended");
                }
                closed.cancel();
            }
        });
        tokio::spawn(speak(writing, downs, closed.clone()));
        let valid_until = Instant::now() + valid_for.to_duration();
        Ok((host, Session { happened, down, closed, valid_until }, agent_version))
    }

    async fn listen(
        &self,
        mut from: ReadHalf<ByteStream>,
        renewals: mpsc::Sender<String>,
        down: mpsc::Sender<Down>,
    ) -> io::Result<()> {
        loop {
            let next = timeout(SILENCE_MAX, frame::expect(&mut from)).await;
            let message = next.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the agent fell silent"))??;
            *self.0.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            match message {
                Up::Hello { .. } => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "the agent greeted twice"));
                }
                // Answered, so that the agent knows that it is heard.
                Up::Alive => drop(down.try_send(Down::Alive)),
                facts @ Up::Facts { .. } => {
                    self.take_facts(facts)?;
                    drop(down.try_send(Down::Alive));
                }
                Up::Report(report) => self.0.reports.push(Report::from(report)),
                // One at a time: an agent that asks again before it was answered is not heard.
                Up::Renew { request } => drop(renewals.try_send(request)),
            }
        }
    }

    fn take_facts(&self, facts: Up) -> io::Result<()> {
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let Up::Facts { facts: as_of, up } = facts else { return Ok(()) };
        if up.len() > FACTS_MAX {
            return Err(invalid("an agent named more runtimes than a host has"));
        }
        let up: HashMap<_, _> = up
            .into_iter()
            .map(|(workspace, epoch)| Ok((workspace.parse().map_err(|_| invalid("no workspace's id"))?, epoch)))
            .collect::<io::Result<_>>()?;
        // A heartbeat that says what is known already is no news: a thousand agents send one every few seconds.
        let changed = self.facts().told_all(&up, as_of);
        if changed {
            self.0.changed.notify_one();
        }
        Ok(())
    }

    fn facts(&self) -> std::sync::MutexGuard<'_, Facts> {
        self.0.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn call(&self, call: &Call) -> io::Result<ByteStream> {
        self.0.calls.open(PATH, call).await.inspect_err(|error| {
            tracing::debug!(host = %self.0.identity.host, %error, "a call did not reach an agent");
        })
    }

    /// Its programs.
    pub fn line(&self) -> &HostLine {
        &self.0.line
    }

    /// See `LocalHost::wake`.
    ///
    /// # Errors
    /// `OutOfReach` where the connection is gone: what became of the wake is seen on the next one.
    pub async fn wake(&self, order: WakeOrder, stages: watch::Sender<Stage>) -> Result<Awake, WakeFailure> {
        let lost = |_| WakeFailure::OutOfReach;
        let call = Call::Wake(Box::new(WakeCall::of(&order)));
        let mut stream = self.call(&call).await.map_err(lost)?;
        loop {
            match frame::expect(&mut stream).await.map_err(lost)? {
                WakeAnswer::Stage(message) => drop(stages.send_replace(message.into())),
                WakeAnswer::Ready { facts, endpoints, commit } => {
                    self.facts().told(order.workspace, Some(order.epoch), facts);
                    stages.send_replace(Stage::Ready);
                    let endpoints = self.own_endpoints(&order, endpoints)?;
                    let commit = commit.chars().filter(char::is_ascii_hexdigit).take(64).collect();
                    return Ok(Awake { endpoints, commit });
                }
                WakeAnswer::Overtaken => return Err(WakeFailure::Cancelled),
                WakeAnswer::Failed { text, may_pass_on_retry } => {
                    return Err(WakeFailure::OnHost { text: shortened(text), may_pass_on_retry });
                }
            }
        }
    }

    fn own_endpoints(
        &self,
        order: &WakeOrder,
        named: Vec<(String, SocketAddr)>,
    ) -> Result<Vec<(ServiceName, SocketAddr)>, WakeFailure> {
        reached_at(self.0.address, &order.manifest, named).ok_or_else(|| {
            metrics::counter!("envforge_agent_endpoints_refused_total").increment(1);
            let text =
                "the host named addresses of services that are not its own; see --bind-apps of its agent".to_owned();
            WakeFailure::OnHost { text, may_pass_on_retry: false }
        })
    }

    pub fn host(&self) -> HostId {
        self.0.identity.host
    }

    /// Whether the connection is gone.
    pub fn is_closed(&self) -> bool {
        self.0.closed.is_cancelled()
    }

    /// Whose host it is.
    pub fn org(&self) -> OrgId {
        self.0.identity.org
    }

    /// See `LocalHost::sleep`.
    pub async fn sleep(&self, workspace: WorkspaceId, epoch: u64) -> Result<(), SleepFailure> {
        self.end(workspace, &Call::Sleep { org: self.0.identity.org, workspace, epoch }).await
    }

    /// See `LocalHost::remove`.
    pub async fn remove(&self, workspace: WorkspaceId) -> Result<(), SleepFailure> {
        self.end(workspace, &Call::Remove { org: self.0.identity.org, workspace }).await
    }

    async fn end(&self, workspace: WorkspaceId, call: &Call) -> Result<(), SleepFailure> {
        let lost = |_| SleepFailure::OutOfReach;
        let mut stream = self.call(call).await.map_err(lost)?;
        match frame::expect(&mut stream).await.map_err(lost)? {
            EndAnswer::Ended { facts } => {
                self.facts().told(workspace, None, facts);
                Ok(())
            }
            EndAnswer::Failed { text } => Err(SleepFailure::State { reason: shortened(text) }),
        }
    }

    pub fn reports(&self) -> Reports {
        self.0.reports.clone()
    }

    /// As the agent said last.
    pub fn is_up(&self, workspace: WorkspaceId, epoch: u64) -> bool {
        self.epoch_up(workspace) == Some(epoch)
    }

    /// As the agent said last.
    pub fn epoch_up(&self, workspace: WorkspaceId) -> Option<u64> {
        self.facts().epoch_up(workspace)
    }

    /// What is up there.
    pub fn workspaces_up(&self) -> Vec<WorkspaceId> {
        self.facts().up().map(|(workspace, _)| workspace).collect()
    }

    /// Waits until the agent has told what is up. Safe to cancel.
    pub async fn facts_changed(&self) {
        self.0.changed.notified().await;
    }

    /// Whether the agent's last word is young enough to renew a lease on it.
    pub fn is_heard(&self) -> bool {
        let heard = *self.0.heard.lock().unwrap_or_else(PoisonError::into_inner);
        !self.0.closed.is_cancelled() && heard.elapsed() <= HEARTBEAT_INTERVAL + HEARD_GRACE
    }

    /// Says why, as the last thing on this connection.
    pub(crate) async fn refuse(calls: SendRequest<Bytes>, identity: HostIdentity, code: String, text: String) {
        let calls = Calls::new(calls);
        let line = HostLine::of_agent(identity.org, calls.clone());
        let inner = Inner {
            identity,
            address: IpAddr::from([0, 0, 0, 0]),
            calls,
            line,
            facts: Mutex::default(),
            heard: Mutex::new(Instant::now()),
            changed: Notify::new(),
            reports: Reports::new(1),
            closed: CancellationToken::new(),
        };
        let host = Self(Arc::new(inner));
        // Until the agent has read it, or has gone.
        if let Ok(mut stream) = host.call(&Call::Refused { code, text }).await {
            let _ = timed(frame::read::<EndAnswer, _>(&mut stream)).await;
        }
    }
}

async fn speak(mut to: WriteHalf<ByteStream>, mut downs: mpsc::Receiver<Down>, closed: CancellationToken) {
    let speaking = async {
        while let Some(down) = downs.recv().await {
            if frame::write(&mut to, &down).await.is_err() {
                break;
            }
        }
    };
    closed.run_until_cancelled(speaking).await;
    closed.cancel();
}

/// Those addresses at which the gateway reaches services. One without a route may listen on its machine's loopback, which is no address for
/// anybody else.
///
/// INVARIANT: the gateway is sent to the agent's own address alone. An agent could name any other, and a reviewer would get there.
fn reached_at(
    own: IpAddr,
    manifest: &Manifest,
    named: Vec<(String, SocketAddr)>,
) -> Option<Vec<(ServiceName, SocketAddr)>> {
    let own = |address: &SocketAddr| address.ip().to_canonical() == own.to_canonical();
    let listening: Vec<_> = manifest.services.iter().filter(|service| service.port_variable.is_some()).collect();
    let fits = named.len() == listening.len()
        && named.iter().zip(&listening).all(|((name, address), service)| {
            let inside = service.route == Route::None && address.ip().to_canonical().is_loopback();
            name == service.name.as_str() && address.port() != 0 && (own(address) || inside)
        });
    fits.then(|| {
        let addresses = named.into_iter().map(|(_, address)| address);
        let reached = listening.into_iter().zip(addresses).filter(|(_, address)| own(address));
        reached.map(|(service, address)| (service.name.clone(), address)).collect()
    })
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn an_older_list_takes_back_no_newer_answer() {
        let workspace = |number| WorkspaceId::from_uuid(Uuid::from_u128(number));
        let mut facts = Facts::default();
        assert!(facts.told_all(&HashMap::from([(workspace(1), 1), (workspace(2), 4)]), 10));
        assert!(!facts.told_all(&HashMap::from([(workspace(1), 1), (workspace(2), 4)]), 10), "which is no news");
        facts.told(workspace(1), None, 12);
        facts.told(workspace(3), Some(7), 12);
        assert!(!facts.told_all(&HashMap::from([(workspace(1), 1), (workspace(2), 4)]), 11));
        assert_eq!([1, 2, 3].map(|number| facts.epoch_up(workspace(number))), [None, Some(4), Some(7)]);
        assert!(facts.told_all(&HashMap::new(), 13));
        assert_eq!([1, 2, 3].map(|number| facts.epoch_up(workspace(number))), [None; 3]);
    }
    #[test]
    fn the_gateway_is_sent_to_the_hosts_own_address_alone() {
        let manifest = "version: 1\nservices:\n  web: { command: a, route: web }\n  database: { command: b }\n";
        let manifest = Manifest::parse(manifest).expect("a manifest");
        let own: IpAddr = [10, 0, 3, 4].into();
        let reached = |web: &str, database: &str| {
            let named = [("web", web), ("database", database)];
            let named = named.map(|(name, address)| (name.to_owned(), address.parse().expect("an address")));
            let reached = reached_at(own, &manifest, named.to_vec())?;
            Some(reached.iter().map(|(name, address)| format!("{name} {address}")).collect::<Vec<_>>())
        };
        let web = "web 10.0.3.4:1".to_owned();
        assert_eq!(reached("10.0.3.4:1", "127.0.0.1:2"), Some(vec![web.clone()]));
        assert_eq!(reached("10.0.3.4:1", "10.0.3.4:2"), Some(vec![web, "database 10.0.3.4:2".to_owned()]));
        for (of_web, of_database) in [
            ("127.0.0.1:1", "127.0.0.1:2"),
            ("10.0.3.5:1", "127.0.0.1:2"),
            ("10.0.3.4:0", "127.0.0.1:2"),
            ("10.0.3.4:1", "10.0.3.5:2"),
            ("10.0.3.4:1", "169.254.169.254:80"),
        ] {
            assert_eq!(reached(of_web, of_database), None, "{of_web} {of_database}");
        }
    }
}
