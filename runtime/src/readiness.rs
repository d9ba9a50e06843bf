//! Whether a service is ready: one probe after the other until the first that holds.
//!
//! A probe's answer in words never holds anything that the service said beyond an HTTP status.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use envforge_domain::manifest::{Probe, Readiness};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::accounts::{self, Names};
use crate::environment::Environment;
use crate::process::{self, Ended};
use crate::unix_user::UnixUser;

/// One probe may take this long.
const PROBE_DURATION_MAX: Duration = Duration::from_secs(5);
const INTERVAL_MIN: Duration = Duration::from_millis(10);
/// Of an HTTP answer's body, read so that a simple server can finish writing.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// How to find out about one service.
pub(crate) struct Prober {
    pub(crate) readiness: Readiness,
    pub(crate) port: Option<SocketAddr>,
    /// Host header of HTTP probes: dev servers refuse names that they do not know.
    pub(crate) public_host: Option<String>,
    pub(crate) directory: PathBuf,
    pub(crate) environment: Environment,
    /// The service's.
    pub(crate) user: Option<UnixUser>,
    /// Where that user has a name.
    pub(crate) names: Option<Names>,
}

/// The deadline passed without a probe that held.
pub(crate) struct NotReady {
    pub(crate) probe: String,
    pub(crate) last: String,
}

impl Prober {
    /// Whether the probe asks the allotted port.
    pub(crate) fn needs_port(&self) -> bool {
        matches!(self.readiness.probe, Probe::Http { .. } | Probe::Tcp)
    }

    pub(crate) async fn wait(&self) -> Result<(), NotReady> {
        let deadline = Instant::now() + self.readiness.deadline.to_duration();
        let interval = self.readiness.interval.to_duration().max(INTERVAL_MIN);
        let mut last = "no probe was made".to_owned();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(NotReady { probe: self.to_string(), last });
            }
            let limit = left.min(PROBE_DURATION_MAX);
            match timeout(limit, self.probe()).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(reason)) => last = reason,
                // Where only the deadline cut it short, the answer before says more.
                Err(_) if limit < PROBE_DURATION_MAX && last != "no probe was made" => {}
                Err(_) => last = format!("no answer within {} ms", limit.as_millis()),
            }
            tokio::time::sleep(interval.min(deadline.saturating_duration_since(Instant::now()))).await;
        }
    }

    async fn probe(&self) -> Result<(), String> {
        match (&self.readiness.probe, self.port) {
            (Probe::None, _) => Ok(()),
            (Probe::Command { command }, _) => self.command(command).await,
            (Probe::Tcp, Some(port)) => connect(port).await.map(drop),
            (Probe::Http { path }, Some(port)) => self.http(path, port).await,
            (Probe::Tcp | Probe::Http { .. }, None) => Err("the service listens nowhere".to_owned()),
        }
    }

    async fn command(&self, command: &str) -> Result<(), String> {
        let mut process = process::shell(command, &self.directory, &self.environment, self.user);
        let failed = |error| format!("could not be run: {error}");
        let mut started = accounts::start(&mut process, self.names.as_ref()).map_err(failed)?;
        let status = started.wait().await.map_err(failed)?;
        if status.success() { Ok(()) } else { Err(Ended(status).to_string()) }
    }

    async fn http(&self, path: &str, port: SocketAddr) -> Result<(), String> {
        let host = self.public_host.clone().unwrap_or_else(|| port.to_string());
        let request = Request::get(path)
            .header(hyper::header::HOST, host)
            .header(hyper::header::USER_AGENT, "envforge-readiness")
            .header(hyper::header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(|_| "the path or the public host cannot stand in a request".to_owned())?;
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(BODY_BYTES_MAX)
            .handshake::<_, Empty<Bytes>>(TokioIo::new(connect(port).await?))
            .await
            .map_err(|_| "no HTTP connection".to_owned())?;
        let exchange = async {
            let answer = sender.send_request(request).await.map_err(|_| "no HTTP answer".to_owned())?;
            let status = answer.status();
            // What the body says does not matter, nor whether it is longer than we care to read.
            drop(Limited::new(answer.into_body(), BODY_BYTES_MAX).collect().await);
            if (200..=399).contains(&status.as_u16()) {
                Ok(())
            } else {
                Err(format!("HTTP status {}", status.as_u16()))
            }
        };
        tokio::pin!(exchange, connection);
        tokio::select! {
            result = &mut exchange => result,
            // The server closes after its answer, which may be here already without having been looked at.
            _ = &mut connection => exchange.await,
        }
    }
}

impl std::fmt::Display for Prober {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.readiness.probe {
            Probe::Http { path } => write!(formatter, "http GET {path}"),
            Probe::Tcp => formatter.write_str("tcp connection"),
            Probe::Command { .. } => formatter.write_str("command"),
            Probe::None => formatter.write_str("none"),
        }
    }
}

async fn connect(port: SocketAddr) -> Result<TcpStream, String> {
    TcpStream::connect(port).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        kind => format!("no connection ({kind})"),
    })
}
