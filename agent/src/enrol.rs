//! The agent's side of enrolling: the token once, and a certificate for a key that never leaves this machine.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use envforge_domain::enrolment::EnrolmentToken;
use envforge_domain::host::Capacity;
use envforge_domain::time::{SharedClock, UnixMillis};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::authority::{ENROL_PROTOCOL, SERVER_NAME, provider};
use crate::frame;
use crate::identity::{AgentIdentity, Certified, IdentityError, NewKey};
use crate::pinned::Pinned;
use crate::wire::{EnrolAnswer, EnrolCall, SecretText};

const ENROL_WAIT: Duration = Duration::from_secs(30);
const CONNECT_WAIT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("the control plane at {at} cannot be reached: {source}")]
    Unreachable { at: String, source: io::Error },
    #[error("the control plane refused ({code}): {text}")]
    Refused { code: String, text: String },
}

/// Enrols, and keeps what came of it in `folder`. A folder that has enrolled as this host already keeps what it has, so that a service
/// manager may pass the same token at each start. `control_plane`: host and port.
///
/// # Errors
/// Where the folder is another host's; where the control plane is out of reach or refuses.
pub async fn enrol(
    control_plane: &str,
    folder: &Path,
    token: &EnrolmentToken,
    machine: &str,
    capacity: Capacity,
    agent_version: &str,
    clock: &SharedClock,
) -> Result<AgentIdentity, EnrolError> {
    if let Some(known) = AgentIdentity::load(folder)? {
        if known.of() != (token.org(), token.host()) {
            return Err(IdentityError::Another { host: known.of().1 }.into());
        }
        if clock.now() < known.expires_at() {
            return Ok(known);
        }
    }
    let key = NewKey::make()?;
    let call = EnrolCall {
        token: SecretText::new(token.text()),
        request: key.request.clone(),
        machine: machine.to_owned(),
        cpu_millicores: capacity.cpu_millicores,
        memory_mib: capacity.memory_mib,
        agent_version: agent_version.to_owned(),
    };
    let unreachable = |source| EnrolError::Unreachable { at: control_plane.to_owned(), source };
    let exchange = async {
        let mut stream = connect(control_plane, config(token)?).await?;
        frame::write(&mut stream, &call).await?;
        frame::expect::<EnrolAnswer, _>(&mut stream).await
    };
    let answer = timeout(ENROL_WAIT, exchange).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    match answer.map_err(unreachable)? {
        EnrolAnswer::Granted { chain, expires_at_unix_ms } => {
            let certified = Certified { chain, expires_at: UnixMillis::new(expires_at_unix_ms) };
            let of = (token.org(), token.host());
            Ok(AgentIdentity::save(folder, of, token.authority(), &key.key, certified, clock.now())?)
        }
        EnrolAnswer::Refused { code, text } => Err(EnrolError::Refused { code, text }),
    }
}

fn config(token: &EnrolmentToken) -> io::Result<Arc<ClientConfig>> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned::new(vec![token.authority()])))
        .with_no_client_auth();
    config.alpn_protocols = vec![ENROL_PROTOCOL.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// Connects to the control plane, and to nobody who cannot prove to be it.
pub(crate) async fn connect(at: &str, config: Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    connect_as(at, SERVER_NAME, config).await
}

/// `name`: what the other side's certificate must be for.
pub(crate) async fn connect_as(
    at: &str,
    name: &'static str,
    config: Arc<ClientConfig>,
) -> io::Result<TlsStream<TcpStream>> {
    let connecting = async {
        let socket = TcpStream::connect(at).await?;
        socket.set_nodelay(true)?;
        let name = ServerName::try_from(name).map_err(io::Error::other)?;
        TlsConnector::from(config).connect(name, socket).await
    };
    timeout(CONNECT_WAIT, connecting).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}
