//! The side of a relay that has hosts: passes byte streams of another process of the control plane on to a host's programs, those of an agent
//! or, for this process's own machine, the same ones here.
//!
//! INVARIANT: what passes is what people ask for (shells, jobs, logs, a root window's shell and output), never an order to wake or to run
//! something as root: those are the reactors', in the process that has the host. A stream here lives as long as both of its halves.
//! Not here: which host is whose (the caller asks the log's views), and whether a person may (the asking process does, all the time).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use envforge_domain::ids::{HostId, OrgId};
use envforge_domain::time::SharedClock;
use futures_util::future::BoxFuture;
use http::{Response, StatusCode};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, copy, copy_buf, sink, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{LazyConfigAcceptor, StartHandshake};

use crate::connection::{WINDOW_BYTES, answering};
use crate::frame;
use crate::given::{GivenCall, SecretSource, Values};
use crate::line::{HostLine, timed};
use crate::listener::{HANDSHAKE_WAIT, HELLO_WAIT, ListenError};
use crate::relay_key::RelayKey;
use crate::relay_wire::{HostMessage, RELAY_PATH, RELAY_PROTOCOL, RelayAnswer, RelayCall, RelayHears, RelaySays};
use crate::root_wire::{ROOT, RootCall};
use crate::shell_wire::{COMMIT, JOB, JobCall, LASTING, LOGS, SHELL, ShellCall};
use crate::stream::ByteStream;
use crate::wire::{HEARTBEAT_INTERVAL, SILENCE_MAX, StreamHeader};

/// Between two lists of hosts: a thousand agents that come at once are told of together.
const LIST_INTERVAL: Duration = Duration::from_millis(100);
const COPY_BYTES: usize = 64 * 1024;

/// A host that this process has: its agent is connected here, or it is this process's own machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostHere {
    /// Whose it is; `None` of a machine that nobody uses yet.
    pub org: Option<OrgId>,
    pub host: HostId,
    /// It is this process's own machine.
    pub own_machine: bool,
    /// Another one for each connection of the process.
    pub connection: u64,
    pub since: Instant,
}

/// Finds the line to a host for a stream that another process wants opened, once this one knows the log as far as that one did. `None`
/// where there is none, or not for that.
pub type RelayLines = Arc<dyn Fn(HostId, u64, StreamHeader) -> BoxFuture<'static, Option<HostLine>> + Send + Sync>;

/// What a process lets others reach.
#[derive(Clone)]
pub struct Relayed {
    pub here: watch::Receiver<Vec<HostHere>>,
    pub lines: RelayLines,
    pub secrets: Arc<dyn SecretSource>,
}

/// Listens for other processes of the control plane.
pub struct RelayListener {
    socket: TcpListener,
    key: Arc<RelayKey>,
    clock: SharedClock,
}

/// A connection of somebody who is not known yet.
pub struct RelayIncoming {
    socket: TcpStream,
    address: SocketAddr,
    key: Arc<RelayKey>,
    clock: SharedClock,
}

/// A connection that speaks TLS, of somebody who is not known yet. Nothing was signed for it so far.
pub struct RelayGreeted {
    start: StartHandshake<TcpStream>,
    key: Arc<RelayKey>,
    clock: SharedClock,
}

/// Another process of this control plane.
pub struct RelayPeer {
    connection: h2::server::Connection<TlsStream<TcpStream>, Bytes>,
}

impl RelayListener {
    pub async fn bind(address: SocketAddr, key: Arc<RelayKey>, clock: SharedClock) -> Result<Self, ListenError> {
        let socket = TcpListener::bind(address).await.map_err(|source| ListenError::Bind { address, source })?;
        Ok(Self { socket, key, clock })
    }

    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// The next connection. Safe to cancel.
    pub async fn accept(&self) -> io::Result<RelayIncoming> {
        let (socket, address) = self.socket.accept().await?;
        Ok(RelayIncoming { socket, address, key: Arc::clone(&self.key), clock: Arc::clone(&self.clock) })
    }
}

impl RelayIncoming {
    pub fn address(&self) -> IpAddr {
        self.address.ip()
    }

    /// Hears its first message, within three seconds: who says nothing costs no more than a socket.
    ///
    /// # Errors
    /// Where there is none, or it is not TLS's.
    pub async fn hello(self) -> io::Result<RelayGreeted> {
        self.socket.set_nodelay(true)?;
        let acceptor = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), self.socket);
        let start = timeout(HELLO_WAIT, acceptor).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        Ok(RelayGreeted { start, key: self.key, clock: self.clock })
    }
}

impl RelayGreeted {
    /// Finds out whether it is a process of this control plane, within ten seconds.
    ///
    /// # Errors
    /// Where it is none.
    pub async fn arrive(self) -> io::Result<RelayPeer> {
        let config = self.key.server_config(self.clock.now()).map_err(io::Error::other)?;
        let shaking_hands = async {
            let stream = self.start.into_stream(config).await?;
            if stream.get_ref().1.alpn_protocol() != Some(RELAY_PROTOCOL) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a connection for nothing that is served here"));
            }
            answering(WINDOW_BYTES).handshake::<_, Bytes>(stream).await.map_err(io::Error::other)
        };
        let connection = timeout(HANDSHAKE_WAIT, shaking_hands).await;
        Ok(RelayPeer { connection: connection.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?? })
    }
}

impl RelayPeer {
    /// Serves it to its end. Whatever was open over it ends with it.
    ///
    /// # Errors
    /// Where the connection breaks, or falls silent.
    pub async fn serve(self, relayed: Relayed) -> io::Result<()> {
        let mut connection = self.connection;
        // Ends with this connection, and so do the agents' halves of its streams.
        let mut calls = JoinSet::new();
        let mut silent = Box::pin(sleep(SILENCE_MAX));
        let (heard, mut hears) = watch::channel(());
        loop {
            tokio::select! {
                next = connection.accept() => {
                    let (request, mut respond) = match next {
                        None => return Ok(()),
                        Some(next) => next.map_err(io::Error::other)?,
                    };
                    let known = request.uri().path() == RELAY_PATH;
                    let status = if known { StatusCode::OK } else { StatusCode::NOT_FOUND };
                    let mut response = Response::new(());
                    *response.status_mut() = status;
                    let Ok(send) = respond.send_response(response, !known) else { continue };
                    if known {
                        let stream = ByteStream::new(send, request.into_body());
                        calls.spawn(serve(stream, relayed.clone(), heard.clone()));
                    }
                }
                Ok(()) = hears.changed() => silent.as_mut().reset(Instant::now() + SILENCE_MAX),
                () = &mut silent => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "another process fell silent"));
                }
                Some(_) = calls.join_next(), if !calls.is_empty() => {}
            }
        }
    }
}

/// One call, to its end.
async fn serve(mut stream: ByteStream, relayed: Relayed, heard: watch::Sender<()>) {
    let Ok(call) = timed(frame::expect_call(&mut stream)).await else { return };
    match call {
        RelayCall::Hosts => {
            let (mut reading, mut writing) = tokio::io::split(stream);
            let hearing = async {
                while let Ok(RelayHears::Alive) = frame::expect(&mut reading).await {
                    heard.send_replace(());
                }
            };
            tokio::select! {
                () = hearing => {}
                told = tell(&mut writing, relayed.here) => {
                    if let Err(error) = told {
                        tracing::debug!(%error, "another process hears no more of the hosts here");
                    }
                }
            }
        }
        RelayCall::Stream { host, as_of, header, given } => {
            let purpose = relayed_purpose(&header.purpose);
            let outcome = match pass_on(stream, &relayed, (host, as_of), header, given).await {
                Ok(outcome) => outcome,
                Err(error) => {
                    tracing::debug!(%host, %error, "a stream of another process broke");
                    "broken"
                }
            };
            let purpose = purpose.unwrap_or("unknown");
            metrics::counter!("envforge_relay_streams_total", "purpose" => purpose, "outcome" => outcome).increment(1);
        }
    }
}

/// Says which hosts are here, and at least that it lives. Ends with the connection.
async fn tell(
    to: &mut (impl tokio::io::AsyncWrite + Unpin),
    mut here: watch::Receiver<Vec<HostHere>>,
) -> io::Result<()> {
    let mut alive = tokio::time::interval(HEARTBEAT_INTERVAL);
    alive.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    here.mark_changed();
    loop {
        tokio::select! {
            changed = here.changed() => {
                changed.map_err(io::Error::other)?;
                let message = |at: &HostHere| {
                    let age_ms = u64::try_from(at.since.elapsed().as_millis()).unwrap_or(u64::MAX);
                    let HostHere { org, host, own_machine, connection, .. } = *at;
                    HostMessage { org: org.map(|org| org.to_string()), host, own_machine, connection, age_ms }
                };
                let hosts = here.borrow_and_update().iter().map(message).collect();
                frame::write_call(to, &RelaySays::Hosts { hosts }).await?;
                sleep(LIST_INTERVAL).await;
            }
            _ = alive.tick() => frame::write_call(to, &RelaySays::Alive).await?,
        }
    }
}

/// What of a host's programs another process may ask for.
fn relayed_purpose(purpose: &str) -> Option<&'static str> {
    [SHELL, JOB, LOGS, COMMIT, LASTING, ROOT].into_iter().find(|relayed| *relayed == purpose)
}

/// Passes both directions on until the host has said all, or whoever asked lets go. Answers how that went.
async fn pass_on(
    mut stream: ByteStream,
    relayed: &Relayed,
    (host, as_of): (HostId, u64),
    header: StreamHeader,
    given: Option<GivenCall>,
) -> io::Result<&'static str> {
    let purpose = relayed_purpose(&header.purpose);
    // What lasts is asked for of all workspaces at once.
    let somewhere = !header.workspace.as_uuid().is_nil() || purpose == Some(LASTING);
    let fits = given.as_ref().is_none_or(|given| Some(given.purpose()) == purpose);
    if purpose.is_none() || !somewhere || !fits {
        let reason = format!("`{}` is not for other processes", header.purpose);
        return answer(stream, &RelayAnswer::Refused { reason }, "refused").await;
    }
    let Some(line) = (relayed.lines)(host, as_of, header.clone()).await else {
        return answer(stream, &RelayAnswer::NotHere, "not_here").await;
    };
    let place = (header.org, header.workspace);
    let (opened, values) = match given {
        None => (RelayAnswer::Open, None),
        Some(given) => match given.read(&*relayed.secrets, place).await {
            Ok(values) => (RelayAnswer::Open, Some(values)),
            // A shell opens all the same.
            Err(lacks) if purpose == Some(SHELL) => (RelayAnswer::OpenWithout { lacks }, None),
            Err(reason) => {
                let reason = format!("its secrets could not be had: {reason}");
                return answer(stream, &RelayAnswer::Refused { reason }, "refused").await;
            }
        },
    };
    let mut onward = match line.open_stream(header).await {
        Ok(onward) => onward,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            return answer(stream, &RelayAnswer::Refused { reason: error.to_string() }, "refused").await;
        }
        Err(_) => return answer(stream, &RelayAnswer::NotHere, "not_here").await,
    };
    frame::write(&mut stream, &opened).await?;
    match values {
        Some(Values::Login(login)) => {
            let call: ShellCall = timed(frame::expect_call(&mut stream)).await?;
            frame::write_call(&mut onward, &call.with_login(&login)).await?;
        }
        Some(Values::OfJob(values)) => {
            let call: JobCall = timed(frame::expect_call(&mut stream)).await?;
            frame::write_call(&mut onward, &call.with_secrets(&values)).await?;
        }
        None => {}
    }
    if purpose == Some(ROOT) {
        let call = timed(frame::expect::<RootCall, _>(&mut stream)).await?;
        if !matches!(call, RootCall::Attach { .. } | RootCall::Output { .. }) {
            return Ok("refused");
        }
        frame::write(&mut onward, &call).await?;
    }
    let _open = Open::count();
    carry(stream, onward).await?;
    Ok("passed")
}

/// # Errors
/// Where the host's side breaks. That whoever asked lets go is an end like any other: nobody waits for the rest.
async fn carry(asker: ByteStream, host: ByteStream) -> io::Result<()> {
    let (mut asked, mut told) = split(asker);
    let (hears, mut takes) = split(host);
    let telling = async {
        let mut hears = BufReader::with_capacity(COPY_BYTES, hears);
        loop {
            let chunk = hears.fill_buf().await?;
            let length = chunk.len();
            if length == 0 || told.write_all(chunk).await.is_err() {
                // Whoever asked may have let go already.
                let _ = told.shutdown().await;
                return Ok(());
            }
            hears.consume(length);
        }
    };
    let letting_go = async {
        let mut asked = BufReader::with_capacity(COPY_BYTES, &mut asked);
        if copy_buf(&mut asked, &mut takes).await.is_ok() {
            let _ = takes.shutdown().await;
        } else if copy(&mut asked, &mut sink()).await.is_err() {
            return;
        }
        // A host that takes nothing more may have more to say, as one whose program is over.
        std::future::pending().await
    };
    tokio::select! {
        biased;
        heard = telling => heard,
        () = letting_go => Ok(()),
    }
}

async fn answer(mut stream: ByteStream, answer: &RelayAnswer, outcome: &'static str) -> io::Result<&'static str> {
    frame::write(&mut stream, answer).await?;
    // A stream that is dropped takes back what was not sent yet.
    stream.shutdown().await?;
    Ok(outcome)
}

/// A stream that is passed on, in the metrics.
struct Open;

impl Open {
    fn count() -> Self {
        metrics::gauge!("envforge_relay_streams_open").increment(1.0);
        Self
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        metrics::gauge!("envforge_relay_streams_open").decrement(1.0);
    }
}
