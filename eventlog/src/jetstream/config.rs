//! How to reach the servers, and who we are to them.
//!
//! Not here: how the stream must be set up (`definition`).

use std::path::PathBuf;
use std::time::Duration;

use async_nats::{ConnectOptions, Event};
use envforge_domain::secret::Secret;
use tokio::sync::watch;

use crate::LogError;

/// Between two attempts to reconnect; doubles from the first to the second.
const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(50);
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(2);

#[derive(Clone)]
pub struct Config {
    /// `nats://host:port` or `tls://host:port`, any of a cluster.
    pub servers: Vec<String>,
    pub credentials: Credentials,
    pub tls: Tls,
    /// How this process is called in the servers' connection lists.
    pub connection_name: String,
    /// The stream that is the log. Made where it does not exist.
    pub stream: String,
    /// First token of every subject: `<prefix>.<org>.<kind>.<key>`.
    pub subject_prefix: String,
    /// Copies that the servers keep: 3 in production, 1 on a single server.
    pub replicas: usize,
    /// How long a cluster may take to elect its leaders when we start.
    pub open_timeout: Duration,
    /// An append that is not answered by then is `Unknown`.
    pub append_timeout: Duration,
    /// One request to the servers, of which an append or a read may make several.
    pub request_timeout: Duration,
    /// Appends that may wait for their acknowledgement.
    pub appends_in_flight_max: usize,
}

impl Config {
    pub fn new(server: impl Into<String>) -> Self {
        Self {
            servers: vec![server.into()],
            credentials: Credentials::None,
            tls: Tls::default(),
            connection_name: "envforge".to_owned(),
            stream: "ENVFORGE".to_owned(),
            subject_prefix: "envforge".to_owned(),
            replicas: 1,
            open_timeout: Duration::from_secs(15),
            append_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(2),
            appends_in_flight_max: 1_024,
        }
    }
}

/// How we prove who we are.
#[derive(Clone)]
pub enum Credentials {
    None,
    /// A file with a user's JWT and NKey seed, as `nsc` writes it.
    File(PathBuf),
    UserPassword {
        user: String,
        password: Secret,
    },
    Token(Secret),
}

/// How the connection is protected. `tls://` in an address requires it as well.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    pub required: bool,
    /// PEM file with the authorities to trust, beside those of the system.
    pub root_certificates: Option<PathBuf>,
    /// PEM files with our certificate and its key.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
}

/// Connects, and counts connections: each one above the first was a reconnection.
pub(super) async fn connect(config: &Config) -> Result<(async_nats::Client, watch::Receiver<u64>), LogError> {
    let (connections, seen) = watch::channel(0);
    let mut options = ConnectOptions::new()
        .name(&config.connection_name)
        .request_timeout(Some(config.request_timeout))
        .connection_timeout(Duration::from_secs(5))
        .ping_interval(Duration::from_secs(5))
        .max_reconnects(None)
        .reconnect_delay_callback(|attempts| {
            let doubled = RECONNECT_DELAY_MIN.saturating_mul(1 << attempts.min(10));
            // Half of it at random, so that a fleet does not come back all at once.
            doubled.min(RECONNECT_DELAY_MAX).mul_f64(rand::random_range(0.5..1.0))
        })
        .event_callback(move |event| {
            match event {
                Event::Connected => connections.send_modify(|count| *count += 1),
                Event::Disconnected | Event::Closed => tracing::warn!(%event, "event log connection"),
                _ => tracing::info!(%event, "event log connection"),
            }
            std::future::ready(())
        });
    options = match &config.credentials {
        Credentials::None => options,
        Credentials::File(path) => options
            .credentials_file(path)
            .await
            .map_err(|error| LogError::Open(format!("credentials file {}: {error}", path.display())))?,
        Credentials::UserPassword { user, password } => {
            options.user_and_password(user.clone(), password.expose().to_owned())
        }
        Credentials::Token(token) => options.token(token.expose().to_owned()),
    };
    if config.tls.required {
        options = options.require_tls(true);
    }
    if let Some(path) = &config.tls.root_certificates {
        options = options.add_root_certificates(path.clone());
    }
    if let Some((certificate, key)) = &config.tls.client_certificate {
        options = options.add_client_certificate(certificate.clone(), key.clone());
    }
    let client = options
        .connect(&config.servers)
        .await
        .map_err(|error| LogError::Open(format!("cannot connect to {}: {error}", config.servers.join(", "))))?;
    Ok((client, seen))
}
