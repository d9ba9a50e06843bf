//! Everything that can be set on a gateway, with its defaults and what would be wrong.
//!
//! Not here: reading the environment or files (the binary does), secrets.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::connection::IoTimeouts;

/// How browsers reach the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Production, and everything that is not this machine: `__Host-envforge_session` with `Secure`.
    Https,
    /// `dev` on plain-http localhost alone. There Firefox keeps `Secure` and `__Host-` cookies, Chromium refused the
    /// prefix for long, Safari refuses `Secure`, and curl makes the exception for the very name `localhost`
    /// (httpwg/http-extensions#2605, curl#7263). So the cookie is `envforge_session` without `Secure`. A sibling host
    /// could then plant a second one, which is refused as a duplicate and cleared.
    PlainHttpDev,
}

impl Scheme {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Https => "https",
            Self::PlainHttpDev => "http",
        }
    }

    const fn default_port(self) -> u16 {
        match self {
            Self::Https => 443,
            Self::PlainHttpDev => 80,
        }
    }
}

#[derive(Debug, Clone)]
pub struct Config {
    /// Where share pages live and below which workspace hosts are (`dev.envforge.ai`). Lower-case, no port.
    pub domain: String,
    pub scheme: Scheme,
    /// The port browsers use; it may differ from the one listened on.
    pub public_port: u16,
    /// Whether `domain` is on the Public Suffix List, which makes share page and workspace hosts cross-site.
    pub domain_is_public_suffix: bool,
    /// Whether a handoff works only from the address that asked for it. Off for clients whose address changes between
    /// two requests (some carrier networks, IPv4 and IPv6 side by side).
    pub handoff_bound_to_address: bool,
    /// Where members sign in: the API's public URL, without a path. `None`: workspaces open by links alone.
    pub sign_in_at: Option<String>,
    pub listen: SocketAddr,
    /// Several processes may listen on one port.
    pub reuse_port: bool,
    /// `None` under `https` means that a TLS terminator stands in front. The gateway believes nobody's forwarding
    /// headers, so apps then see the terminator's address as the client's.
    pub tls: Option<TlsFiles>,
    /// Whether plain HTTP/1.1 requests are answered where they lie. Without it hyper serves them all, by the same rules
    /// and for more processor time.
    pub http1_lane: bool,
    pub limits: Limits,
    pub timeouts: Timeouts,
}

/// PEM files; read again when they change.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    pub certificate_chain: PathBuf,
    pub private_key: PathBuf,
}

#[derive(Debug, Clone)]
pub struct Limits {
    pub connections_max: usize,
    /// IPv6 addresses count by their /64. 0 turns the limit off, for a gateway behind a balancer that hides addresses.
    pub connections_per_address_max: usize,
    pub http2_streams_max: u32,
    /// Open connections to one endpoint of an app, idle ones included.
    pub upstream_connections_per_endpoint_max: usize,
    /// Of those, what one link may have, sockets included, so that no reviewer keeps an app from the others.
    pub upstream_connections_per_link_max: usize,
    pub request_body_bytes_max: u64,
    pub held_requests_max: usize,
    pub held_requests_per_workspace_max: usize,
    pub held_requests_per_link_max: usize,
    /// Sum of what is kept of held requests: heads, and the beginnings of bodies.
    pub held_bytes_max: usize,
    /// Waking pages that are told how far the wake is. They take no place of a held request.
    pub waking_pages_max: usize,
    pub waking_pages_per_link_max: usize,
    /// Over all links of this gateway.
    pub websockets_max: usize,
    pub websockets_per_link_max: usize,
}

/// How often everything open is held against the log's silence; what is open outlives the limit by this much at most.
pub(crate) const STANDING_INTERVAL: Duration = Duration::from_millis(500);

#[derive(Debug, Clone)]
pub struct Timeouts {
    pub io: IoTimeouts,
    pub tls_handshake: Duration,
    pub upstream_connect: Duration,
    /// From the request's last byte to the head of the answer.
    pub response_head: Duration,
    /// Between two pieces of a response body. Event streams send comments to stay open.
    pub response_body_idle: Duration,
    pub request_body_total: Duration,
    pub upstream_idle: Duration,
    /// No byte in either direction.
    pub websocket_idle: Duration,
    /// How long a request waits for a wake before it gets `wake_timeout`.
    pub hold: Duration,
    /// The gateway refuses when it has not heard from the log for longer.
    pub staleness_max: Duration,
    /// At shutdown, for requests under way.
    pub drain: Duration,
}

impl Config {
    /// How long after the log was last heard everything is refused and nothing is open any more.
    pub fn refuses_within(&self) -> Duration {
        self.timeouts.staleness_max + STANDING_INTERVAL
    }

    /// Defaults for a gateway of `domain` that listens on `listen`.
    pub fn new(domain: &str, scheme: Scheme, listen: SocketAddr) -> Self {
        Self {
            domain: domain.to_ascii_lowercase(),
            scheme,
            public_port: listen.port(),
            domain_is_public_suffix: false,
            handoff_bound_to_address: true,
            sign_in_at: None,
            listen,
            reuse_port: false,
            tls: None,
            http1_lane: true,
            limits: Limits::default(),
            timeouts: Timeouts::default(),
        }
    }

    /// All that is wrong, each with what would be right.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let labels = self.domain.split('.');
        let label_ok = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        };
        if self.domain.len() > 180 || !labels.clone().all(label_ok) {
            problems.push(format!("gateway domain `{}` is not a lower-case DNS name without port", self.domain));
        }
        if self.scheme == Scheme::PlainHttpDev && self.domain != "localhost" && !self.domain.ends_with(".localhost") {
            problems
                .push(format!("plain http serves localhost names alone, `{}` needs certificate files", self.domain));
        }
        if self.scheme == Scheme::PlainHttpDev && self.tls.is_some() {
            problems.push("certificate files are given but the scheme is plain http: use https".to_owned());
        }
        if let Some(api) = &self.sign_in_at {
            let host = api.strip_prefix("https://").or_else(|| api.strip_prefix("http://"));
            let plain = host.is_some_and(|host| {
                !host.is_empty()
                    && host.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b'?' | b'#' | b'@'))
            });
            let name = host.unwrap_or_default().split(':').next().unwrap_or_default();
            if !plain {
                problems.push(format!("the sign-in URL `{api}` is not a scheme and a host: https://api.envforge.ai"));
            } else if name == self.domain || name.ends_with(&format!(".{}", self.domain)) {
                problems.push(format!(
                    "the API at `{api}` is under the gateway's domain, where workspaces run code of anybody: give it another one"
                ));
            }
        }
        let upstream =
            self.limits.upstream_connections_per_endpoint_max.min(self.limits.upstream_connections_per_link_max);
        if self.limits.connections_max == 0 || upstream == 0 {
            problems.push("connection limits must be at least 1".to_owned());
        }
        problems
    }

    /// `:8443`, or nothing where the port is the scheme's own.
    pub(crate) fn port_suffix(&self) -> String {
        if self.public_port == self.scheme.default_port() { String::new() } else { format!(":{}", self.public_port) }
    }

    /// Whether `port` of a Host header is the one browsers use.
    pub(crate) fn is_public_port(&self, port: Option<u16>) -> bool {
        port.unwrap_or(self.scheme.default_port()) == self.public_port
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 20_000,
            connections_per_address_max: 1_000,
            http2_streams_max: 128,
            upstream_connections_per_endpoint_max: 512,
            upstream_connections_per_link_max: 128,
            request_body_bytes_max: 1024 * 1024 * 1024,
            held_requests_max: 4_096,
            held_requests_per_workspace_max: 1_024,
            held_requests_per_link_max: 256,
            held_bytes_max: 32 * 1024 * 1024,
            waking_pages_max: 2_048,
            waking_pages_per_link_max: 128,
            websockets_max: 20_000,
            websockets_per_link_max: 2_000,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            io: IoTimeouts {
                head: Duration::from_secs(10),
                idle: Duration::from_secs(75),
                body: Duration::from_secs(30),
                write: Duration::from_secs(30),
            },
            tls_handshake: Duration::from_secs(10),
            upstream_connect: Duration::from_secs(5),
            response_head: Duration::from_secs(120),
            response_body_idle: Duration::from_secs(300),
            request_body_total: Duration::from_secs(3600),
            upstream_idle: Duration::from_secs(30),
            websocket_idle: Duration::from_secs(3600),
            hold: Duration::from_secs(90),
            staleness_max: Duration::from_secs(5),
            drain: Duration::from_secs(10),
        }
    }
}
