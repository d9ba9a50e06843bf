//! Which host a request is for: the gateway's own domain, one workspace, or neither. Equality only, never prefixes.

use envforge_domain::slug::HostLabel;

use crate::config::Config;
use crate::denial::ProtocolFault;

/// What a Host header (or `:authority`) names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// Share pages.
    Gateway,
    Workspace(WorkspaceHost),
    /// Neither, or with a port that is not ours: answered like a workspace that does not exist.
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkspaceHost {
    pub label: HostLabel,
    /// `https://web--signed-links--acme.dev.envforge.ai`, as browsers write it in `Origin`.
    pub origin: Box<str>,
    /// Where in `origin` the host name stands, without scheme and port.
    name: std::ops::Range<usize>,
}

impl WorkspaceHost {
    pub(crate) fn new(config: &Config, label: HostLabel) -> Self {
        let scheme = config.scheme.as_str();
        let origin = format!("{scheme}://{label}.{}{}", config.domain, config.port_suffix());
        let name = scheme.len() + "://".len()..origin.len() - config.port_suffix().len();
        Self { label, origin: origin.into(), name }
    }

    /// The host name without scheme and port.
    pub(crate) fn name(&self) -> &str {
        &self.origin[self.name.clone()]
    }
}

/// Host name and port as sent, lower-cased. Refuses what is no host at all.
pub(crate) fn split(raw: &[u8]) -> Result<(String, Option<u16>), ProtocolFault> {
    let fault = ProtocolFault::InvalidHost;
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b':' | b'[' | b']');
    if raw.is_empty() || raw.len() > 260 || !raw.iter().all(allowed) {
        return Err(fault);
    }
    let text = std::str::from_utf8(raw).map_err(|_| fault)?.to_ascii_lowercase();
    if text.starts_with('[') {
        // An IPv6 literal is a host, though never one of ours.
        return Ok((text, None));
    }
    match text.split_once(':') {
        None => Ok((text, None)),
        Some((name, port)) => {
            let digits = !port.is_empty() && port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit());
            let port = if digits { port.parse().map_err(|_| fault)? } else { return Err(fault) };
            if name.is_empty() { Err(fault) } else { Ok((name.to_owned(), Some(port))) }
        }
    }
}

impl Host {
    pub(crate) fn parse(config: &Config, raw: &[u8]) -> Result<Self, ProtocolFault> {
        let (name, port) = split(raw)?;
        if !config.is_public_port(port) {
            return Ok(Self::Unknown);
        }
        if name == config.domain {
            return Ok(Self::Gateway);
        }
        // Exactly one label, a dot, and our domain: no trailing dot, no deeper names.
        let label = name.strip_suffix(config.domain.as_str()).and_then(|rest| rest.strip_suffix('.'));
        Ok(match label.and_then(HostLabel::parse) {
            Some(label) => Self::Workspace(WorkspaceHost::new(config, label)),
            None => Self::Unknown,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::Scheme;

    fn config() -> Config {
        Config::new("dev.envforge.ai", Scheme::Https, "127.0.0.1:443".parse().unwrap())
    }

    #[test]
    fn a_workspace_host_is_found_in_any_case_and_with_its_port() {
        for raw in ["web--links--acme.dev.envforge.ai", "WEB--Links--acme.DEV.envforge.ai:443"] {
            let Ok(Host::Workspace(host)) = Host::parse(&config(), raw.as_bytes()) else { panic!("{raw}") };
            assert_eq!(&*host.origin, "https://web--links--acme.dev.envforge.ai");
            assert_eq!(host.name(), "web--links--acme.dev.envforge.ai");
        }
    }

    #[test]
    fn near_misses_are_unknown() {
        for raw in [
            "web--links--acme.dev.envforge.ai.",
            "web--links--acme.dev.envforge.ai:80",
            "web--links--acme.dev.envforge.ai:4430",
            "web--links--acme-dev.envforge.ai",
            "web--links--acme.xdev.envforge.ai",
            "web--links--acme.dev.envforge.ai.evil.com",
            "x.web--links--acme.dev.envforge.ai",
            "web--links--acme..dev.envforge.ai",
            ".dev.envforge.ai",
            "xdev.envforge.ai",
            "web--links.dev.envforge.ai",
            "127.0.0.1",
            "[::1]:443",
        ] {
            assert_eq!(Host::parse(&config(), raw.as_bytes()), Ok(Host::Unknown), "{raw}");
        }
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for raw in ["", "a b", "a@b", "a/b", "a:b", "a:", "a:99999", ":80", "a:1:2", "é", "a,b", "a%2eb"] {
            assert_eq!(Host::parse(&config(), raw.as_bytes()), Err(ProtocolFault::InvalidHost), "{raw}");
        }
    }
}
