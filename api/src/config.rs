//! What the operator may choose about this API. Only the binary reads environment and files.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use envforge_domain::ids::CommandId;
use envforge_domain::secret::{Secret, TokenDigest};
use envforge_domain::secrets::{PinnedSecret, SecretKey};
use envforge_domain::time::UnixMillis;
use envforge_eventlog::Checkpoint;
use envforge_identity::oidc::PublicUrl;

use crate::shell_host::ShellHost;

/// Limits and names of the API.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where reviewers open share URLs, without a path: `https://dev.envforge.ai`, `http://dev.localhost:8443`.
    pub gateway_url: GatewayUrl,
    /// Where browsers reach this API: `https://api.envforge.ai`. Without it nobody signs in here with a browser.
    pub public_url: Option<PublicUrl>,
    /// Requests answered at the same time; the next one gets 503 with `Retry-After`.
    pub requests_max: usize,
    /// Of anonymous ones that send a body, as signing in does: slow strangers take no place of whoever has signed in.
    pub anonymous_requests_max: usize,
    /// Pages of signing in, and ways to a workspace's host, that one address asks for in a minute: an office of people opens
    /// them, and each costs a look at who asks. 0 for no limit.
    pub pages_per_minute_per_address: u32,
    /// Connections at the same time; further ones wait to be accepted.
    pub connections_max: usize,
    /// Event streams with `follow=true` at the same time, and of one person.
    pub streams_max: usize,
    pub streams_per_user_max: usize,
    /// A request's answer must begin within this time.
    pub answer_timeout: Duration,
    /// How long a read waits for `EnvForge-Min-Position`.
    pub freshness_wait: Duration,
    /// An event stream sends a blank line after this much silence.
    pub heartbeat: Duration,
    /// Reverse proxies whose `X-Forwarded-For` is believed. Anybody else's is ignored.
    pub trusted_proxies: Vec<IpAddr>,
    /// Whether a project's repository may be a path of the machine that runs workspaces.
    pub local_repositories: bool,
    /// Where agents of hosts enrol; without it no host can be added.
    pub agents: Option<AgentsAt>,
    /// Where values of secrets go. Without it none can be set here.
    pub secrets: Option<SecretPuts>,
    /// What opens shells, where the host is this very process.
    pub shells: Option<Shells>,
    /// Shells open at the same time.
    pub shells_max: usize,
}

/// What an agent must know to enrol.
#[derive(Clone, Debug)]
pub struct AgentsAt {
    /// SHA-256 of the certificate of the authority for agents.
    pub authority: TokenDigest,
    /// Host and port of the listener for agents, where the operator said so.
    pub address: Option<String>,
}

/// Puts a value into the secret store, and answers its version; and says of one that is there whether git could show it. Nothing else can
/// be had of the store here.
#[derive(Clone)]
pub struct SecretPuts {
    put: Arc<dyn Fn(SecretKey, Secret, PutBy) -> Putting + Send + Sync>,
    git_carries: Arc<dyn Fn(PinnedSecret) -> Looking + Send + Sync>,
}

/// The request that puts a value, and how far the log was known before it.
#[derive(Clone, Debug)]
pub struct PutBy {
    pub command: CommandId,
    pub at: UnixMillis,
    pub log: Checkpoint,
}

type Looking = Pin<Box<dyn Future<Output = Option<bool>> + Send>>;
type Putting = Pin<Box<dyn Future<Output = Result<u64, NotPut>> + Send>>;

/// Why a value was not put. Holds nothing of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotPut {
    /// It is empty, too long, or holds what no environment carries.
    Value {
        max_bytes: usize,
    },
    /// The store takes no such value; another one it takes.
    Untakable {
        why: &'static str,
    },
    Unavailable {
        detail: String,
    },
}

impl SecretPuts {
    /// `git_carries`: see `GitCredential::carries`; `None` where it cannot be said.
    pub fn new(
        put: impl Fn(SecretKey, Secret, PutBy) -> Putting + Send + Sync + 'static,
        git_carries: impl Fn(PinnedSecret) -> Looking + Send + Sync + 'static,
    ) -> Self {
        Self { put: Arc::new(put), git_carries: Arc::new(git_carries) }
    }

    pub(crate) async fn put(&self, key: SecretKey, value: Secret, by: PutBy) -> Result<u64, NotPut> {
        (self.put)(key, value, by).await
    }

    pub(crate) async fn git_carries(&self, pinned: PinnedSecret) -> Option<bool> {
        (self.git_carries)(pinned).await
    }
}

impl std::fmt::Debug for SecretPuts {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("SecretPuts")
    }
}

/// What opens shells.
#[derive(Clone)]
pub struct Shells(Arc<dyn ShellHost>);

impl Shells {
    pub fn new(host: impl ShellHost + 'static) -> Self {
        Self(Arc::new(host))
    }

    pub(crate) fn host(&self) -> &dyn ShellHost {
        &*self.0
    }
}

impl std::fmt::Debug for Shells {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Shells")
    }
}

impl Config {
    pub fn new(gateway_url: GatewayUrl) -> Self {
        Self {
            gateway_url,
            public_url: None,
            requests_max: 512,
            anonymous_requests_max: 64,
            pages_per_minute_per_address: 600,
            connections_max: 4_096,
            streams_max: 256,
            streams_per_user_max: 8,
            answer_timeout: Duration::from_secs(30),
            freshness_wait: Duration::from_secs(5),
            heartbeat: Duration::from_secs(15),
            trusted_proxies: Vec::new(),
            local_repositories: false,
            agents: None,
            secrets: None,
            shells: None,
            shells_max: 512,
        }
    }
}

/// Scheme and authority of the gateway: hosts of workspaces lie one label below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayUrl {
    scheme: &'static str,
    authority: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a gateway URL: expected http:// or https:// with a host and perhaps a port, without a path")]
pub struct InvalidGatewayUrl {
    text: String,
}

impl GatewayUrl {
    pub fn parse(text: &str) -> Result<Self, InvalidGatewayUrl> {
        let invalid = || InvalidGatewayUrl { text: text.chars().take(120).collect() };
        let (scheme, rest) = match text.split_once("://") {
            Some(("https", rest)) => ("https", rest),
            Some(("http", rest)) => ("http", rest),
            _ => return Err(invalid()),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let parsed: http::uri::Authority = authority.parse().map_err(|_| invalid())?;
        if authority.contains('@') || parsed.host().is_empty() {
            return Err(invalid());
        }
        Ok(Self { scheme, authority: authority.to_owned() })
    }

    /// The URL that opens a link. Whoever has it can use it.
    pub(crate) fn share(&self, token: &str) -> String {
        format!("{}://{}/share/{token}", self.scheme, self.authority)
    }

    /// All workspace hosts, as a source of a content policy.
    pub(crate) fn hosts(&self) -> String {
        format!("{}://*.{}", self.scheme, self.authority)
    }

    /// The address of a workspace host.
    pub(crate) fn host(&self, label: &envforge_domain::slug::HostLabel) -> String {
        format!("{}://{label}.{}/", self.scheme, self.authority)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_gateway_url_has_scheme_and_authority_and_nothing_else() {
        let url = GatewayUrl::parse("http://dev.localhost:8443/").unwrap();
        assert_eq!(url.share("abc"), "http://dev.localhost:8443/share/abc");
        let label = envforge_domain::slug::HostLabel::parse("web--signed-links--acme").unwrap();
        assert_eq!(url.host(&label), "http://web--signed-links--acme.dev.localhost:8443/");
        for wrong in ["dev.localhost", "ftp://x", "https://", "https://a/b", "https://u@h", "https://h?x", "https:// h"]
        {
            assert!(GatewayUrl::parse(wrong).is_err(), "{wrong}");
        }
    }
}
