//! Where agents come in: TLS, and whether somebody comes to enrol or as a host.
//!
//! Not here: whether they may. What TLS has verified is who they are; the caller holds that against the log.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use envforge_domain::enrolment::EnrolmentToken;
use envforge_domain::host::Capacity;
use envforge_domain::time::{Millis, SharedClock, UnixMillis};
use h2::client::SendRequest;
use rustls::ServerConfig;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{LazyConfigAcceptor, StartHandshake};
use tokio_util::sync::CancellationToken;

use crate::authority::{AGENT_PROTOCOL, Authority, AuthorityError, ENROL_PROTOCOL, HostCertificate};
use crate::connection::asking;
use crate::frame;
use crate::identity::HostIdentity;
use crate::remote::{RemoteHost, Session};
use crate::wire::{EnrolAnswer, EnrolCall};

/// From the connection to its first message.
pub(crate) const HELLO_WAIT: Duration = Duration::from_secs(3);
/// From there to a known purpose.
pub(crate) const HANDSHAKE_WAIT: Duration = Duration::from_secs(10);
const MACHINE_CHARS_MAX: usize = 100;
const VERSION_CHARS_MAX: usize = 40;

/// Listens for agents.
pub struct Listener {
    socket: TcpListener,
    config: Arc<ServerConfig>,
    clock: SharedClock,
}

/// A connection that has said nothing yet.
pub struct Incoming {
    socket: TcpStream,
    address: SocketAddr,
    config: Arc<ServerConfig>,
    clock: SharedClock,
}

/// A connection that speaks TLS, whose purpose is not known yet. Nothing was signed for it so far.
pub struct Greeted {
    start: StartHandshake<TcpStream>,
    address: IpAddr,
    config: Arc<ServerConfig>,
    clock: SharedClock,
}

/// Who came.
pub enum Arrival {
    Enrolling(Enrolling),
    Agent(AgentConnection),
}

/// Somebody with an enrolment token; nobody has looked at it yet.
pub struct Enrolling {
    stream: TlsStream<TcpStream>,
    pub request: EnrolRequest,
    pub address: IpAddr,
}

/// What an agent says when it enrols.
pub struct EnrolRequest {
    pub token: EnrolmentToken,
    /// PEM, PKCS #10.
    pub request: String,
    pub machine: String,
    pub capacity: Capacity,
    pub agent_version: String,
}

/// A connection with a certificate of ours that has not ended.
pub struct AgentConnection {
    stream: TlsStream<TcpStream>,
    pub identity: HostIdentity,
    pub address: IpAddr,
    expires_at: UnixMillis,
    clock: SharedClock,
}

impl Listener {
    pub async fn bind(
        address: SocketAddr,
        authority: &Arc<Authority>,
        clock: SharedClock,
    ) -> Result<Self, ListenError> {
        let config = authority.server_config(Arc::clone(&clock))?;
        let socket = TcpListener::bind(address).await.map_err(|source| ListenError::Bind { address, source })?;
        Ok(Self { socket, config, clock })
    }

    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// The next connection. Safe to cancel.
    pub async fn accept(&self) -> io::Result<Incoming> {
        let (socket, address) = self.socket.accept().await?;
        Ok(Incoming { socket, address, config: Arc::clone(&self.config), clock: Arc::clone(&self.clock) })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error("agents cannot be listened for on {address}: {source}")]
    Bind { address: SocketAddr, source: io::Error },
}

impl Incoming {
    pub fn address(&self) -> IpAddr {
        self.address.ip()
    }

    /// Hears its first message, within three seconds: who says nothing costs no more than a socket.
    ///
    /// # Errors
    /// Where there is none, or it is not TLS's.
    pub async fn hello(self) -> io::Result<Greeted> {
        self.socket.set_nodelay(true)?;
        let acceptor = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), self.socket);
        let start = timeout(HELLO_WAIT, acceptor).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        Ok(Greeted { start, address: self.address.ip(), config: self.config, clock: self.clock })
    }
}

impl Greeted {
    /// Finds out who it is, within ten seconds.
    ///
    /// # Errors
    /// Where it is neither, or its certificate is not ours or has ended.
    pub async fn arrive(self) -> io::Result<Arrival> {
        timeout(HANDSHAKE_WAIT, self.shake_hands()).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    async fn shake_hands(self) -> io::Result<Arrival> {
        let address = self.address;
        let mut stream = self.start.into_stream(self.config).await?;
        let connection = stream.get_ref().1;
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        match connection.alpn_protocol() {
            Some(AGENT_PROTOCOL) => {
                let certificate = connection.peer_certificates().and_then(<[_]>::first);
                let certificate = certificate.ok_or_else(|| invalid("an agent without a certificate"))?;
                let (identity, expires_at) = HostIdentity::of_certificate(certificate)
                    .ok_or_else(|| invalid("a certificate that names no host"))?;
                Ok(Arrival::Agent(AgentConnection { stream, identity, address, expires_at, clock: self.clock }))
            }
            Some(ENROL_PROTOCOL) => {
                let call: EnrolCall = frame::expect(&mut stream).await?;
                let Ok(token) = EnrolmentToken::parse(call.token.secret().expose()) else {
                    let text = "this is no enrolment token".to_owned();
                    let refused = EnrolAnswer::Refused { code: "enrolment_unknown".to_owned(), text };
                    frame::write(&mut stream, &refused).await?;
                    stream.shutdown().await?;
                    return Err(invalid("no enrolment token"));
                };
                let shortened = |text: String, chars_max| text.chars().take(chars_max).collect();
                let request = EnrolRequest {
                    token,
                    request: call.request,
                    machine: shortened(call.machine, MACHINE_CHARS_MAX),
                    capacity: Capacity { cpu_millicores: call.cpu_millicores, memory_mib: call.memory_mib },
                    agent_version: shortened(call.agent_version, VERSION_CHARS_MAX),
                };
                Ok(Arrival::Enrolling(Enrolling { stream, request, address }))
            }
            Some(_) | None => Err(invalid("a connection for nothing that is served here")),
        }
    }
}

impl Enrolling {
    pub async fn grant(mut self, certificate: &HostCertificate) -> io::Result<()> {
        let expires_at_unix_ms = certificate.expires_at.get();
        let granted = EnrolAnswer::Granted { chain: certificate.chain.clone(), expires_at_unix_ms };
        self.answer(&granted).await
    }

    /// `code`: the refusal's own, for programs.
    pub async fn refuse(mut self, code: &str, text: String) -> io::Result<()> {
        self.answer(&EnrolAnswer::Refused { code: code.to_owned(), text }).await
    }

    async fn answer(&mut self, answer: &EnrolAnswer) -> io::Result<()> {
        let answering = async {
            frame::write(&mut self.stream, answer).await?;
            self.stream.shutdown().await
        };
        timeout(HANDSHAKE_WAIT, answering).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }
}

impl AgentConnection {
    /// Takes the host in. Answers its agent's version besides.
    ///
    /// # Errors
    /// Where it does not speak as an agent does; the connection is closed then.
    pub async fn establish(self) -> io::Result<(RemoteHost, Session, String)> {
        let (identity, address) = (self.identity, self.address);
        let valid_for: Millis = self.expires_at.since(self.clock.now());
        let closed = CancellationToken::new();
        let calls = timeout(HANDSHAKE_WAIT, self.turn_round(closed.clone())).await??;
        let begun = RemoteHost::begin(identity, address, calls, closed.clone(), valid_for).await;
        begun.inspect_err(|_| closed.cancel())
    }

    /// Tells the agent why it is not taken, and closes the connection.
    pub async fn refuse(self, code: &str, text: String) -> io::Result<()> {
        let (identity, closed) = (self.identity, CancellationToken::new());
        let calls = timeout(HANDSHAKE_WAIT, self.turn_round(closed.clone())).await??;
        RemoteHost::refuse(calls, identity, code.to_owned(), text).await;
        closed.cancel();
        Ok(())
    }

    /// From here on we ask and the agent answers.
    async fn turn_round(self, closed: CancellationToken) -> io::Result<SendRequest<Bytes>> {
        let (calls, connection) = asking().handshake::<_, Bytes>(self.stream).await.map_err(io::Error::other)?;
        tokio::spawn(async move {
            // With the connection's future goes the socket.
            if let Some(Err(error)) = closed.run_until_cancelled(connection).await {
                tracing::debug!(%error, "an agent's connection broke");
            }
            closed.cancel();
        });
        Ok(calls)
    }
}
