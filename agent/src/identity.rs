//! Who an agent is: what its certificate says, and what the agent keeps of it on its machine.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use envforge_domain::ids::{HostId, OrgId};
use envforge_domain::secret::{Secret, TokenDigest};
use envforge_domain::time::UnixMillis;
use envforge_runtime::wire::SecretText;
use rcgen::KeyPair;
use rustls::ClientConfig;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer as _, GeneralName, ParsedExtension, X509Certificate};

use crate::authority::{AGENT_PROTOCOL, provider};
use crate::pinned::Pinned;

const SCHEME: &str = "envforge://";

/// The host that a certificate names, of which organization, by which of its enrolments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostIdentity {
    pub org: OrgId,
    pub host: HostId,
    pub enrolment: u32,
}

impl HostIdentity {
    pub(crate) fn to_uri(self) -> String {
        format!("{SCHEME}{}/{}/{}", self.org, self.host, self.enrolment)
    }

    fn of_uri(uri: &str) -> Option<Self> {
        let mut parts = uri.strip_prefix(SCHEME)?.split('/');
        let org = OrgId::from_str(parts.next()?).ok()?;
        let host = HostId::from_str(parts.next()?).ok()?;
        let enrolment = parts.next()?.parse().ok()?;
        parts.next().is_none().then_some(Self { org, host, enrolment })
    }

    /// Of a certificate whose chain and time TLS has verified, and when that certificate ends. `None` where it names anything but one
    /// host.
    pub(crate) fn of_certificate(certificate: &CertificateDer<'_>) -> Option<(Self, UnixMillis)> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let expires_at = UnixMillis::new(u64::try_from(parsed.validity().not_after.timestamp()).ok()? * 1_000);
        let names = parsed.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
            _ => None,
        })?;
        match names.as_slice() {
            [GeneralName::URI(uri)] => Self::of_uri(uri).map(|identity| (identity, expires_at)),
            _ => None,
        }
    }
}

/// What an agent keeps: its key, its certificate, and whom it trusts. Without `Debug`.
#[derive(Clone)]
pub struct AgentIdentity {
    path: PathBuf,
    stored: Stored,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    org: String,
    host: String,
    /// SHA-256 of the certificate of the authority that the control plane came by when this was written, hexadecimal.
    authority: String,
    /// Of the one that certified the agent, where that is another one: it takes the other's place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next_authority: Option<String>,
    key: SecretText,
    chain: String,
    issued_at_unix_ms: u64,
    expires_at_unix_ms: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("the agent's identity at `{path}` cannot be used: {reason}")]
    File { path: PathBuf, reason: String },
    #[error("this folder is the agent's of host {host} of another enrolment; give the new one a folder of its own")]
    Another { host: HostId },
    #[error("the key or certificate of this agent is damaged: {0}")]
    Damaged(String),
}

/// A key that was just made, and the request to certify it.
pub(crate) struct NewKey {
    pub(crate) key: Secret,
    /// PEM.
    pub(crate) request: String,
}

impl NewKey {
    pub(crate) fn make() -> Result<Self, IdentityError> {
        let damaged = |error: rcgen::Error| IdentityError::Damaged(error.to_string());
        let pair = KeyPair::generate().map_err(damaged)?;
        let request = rcgen::CertificateParams::default().serialize_request(&pair).map_err(damaged)?;
        Ok(Self { key: Secret::new(pair.serialize_pem()), request: request.pem().map_err(damaged)? })
    }
}

/// A certificate as an agent gets it.
pub(crate) struct Certified {
    pub(crate) chain: String,
    pub(crate) expires_at: UnixMillis,
}

impl AgentIdentity {
    /// What is kept in the agent's folder; `None` where it has not enrolled.
    pub fn load(folder: &Path) -> Result<Option<Self>, IdentityError> {
        let path = folder.join("agent.json");
        let failed = |reason: String| IdentityError::File { path: path.clone(), reason };
        let text = match fs::read(&path) {
            Ok(text) => zeroize::Zeroizing::new(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error.to_string())),
        };
        let stored: Stored = serde_json::from_slice(&text).map_err(|error| failed(error.to_string()))?;
        let identity = Self { path: path.clone(), stored };
        if identity.parsed().is_none() {
            return Err(failed("it names no host".to_owned()));
        }
        Ok(Some(identity))
    }

    pub(crate) fn save(
        folder: &Path,
        (org, host): (OrgId, HostId),
        authority: TokenDigest,
        key: &Secret,
        certified: Certified,
        now: UnixMillis,
    ) -> Result<Self, IdentityError> {
        let identity = Self {
            path: folder.join("agent.json"),
            stored: Stored {
                org: org.to_string(),
                host: host.to_string(),
                authority: hex::encode(authority.as_bytes()),
                next_authority: other_authority(&certified.chain, authority)?,
                key: SecretText::new(key),
                chain: certified.chain,
                issued_at_unix_ms: now.get(),
                expires_at_unix_ms: certified.expires_at.get(),
            },
        };
        identity.write()?;
        Ok(identity)
    }

    /// Takes a new key with its certificate in place of the old one. From here on two authorities are trusted at most: the one that the control
    /// plane came by when it certified the key, and the one that did.
    pub(crate) fn renewed(
        &self,
        key: &Secret,
        certified: Certified,
        shown: TokenDigest,
        now: UnixMillis,
    ) -> Result<Self, IdentityError> {
        let mut next = self.clone();
        next.stored.authority = hex::encode(shown.as_bytes());
        next.stored.next_authority = other_authority(&certified.chain, shown)?;
        next.stored.key = SecretText::new(key);
        next.stored.chain = certified.chain;
        next.stored.issued_at_unix_ms = now.get();
        next.stored.expires_at_unix_ms = certified.expires_at.get();
        next.write()?;
        Ok(next)
    }

    fn write(&self) -> Result<(), IdentityError> {
        let failed = |reason: String| IdentityError::File { path: self.path.clone(), reason };
        let text =
            zeroize::Zeroizing::new(serde_json::to_vec(&self.stored).map_err(|error| failed(error.to_string()))?);
        let fresh = self.path.with_extension("new");
        let written = (|| {
            let mut file = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&fresh)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&fresh, &self.path)
        })();
        written.map_err(|error| failed(error.to_string()))
    }

    fn parsed(&self) -> Option<(OrgId, HostId, Vec<TokenDigest>)> {
        let named = [Some(&self.stored.authority), self.stored.next_authority.as_ref()];
        let authorities = named.into_iter().flatten().map(|text| {
            let bytes = hex::decode(text).ok()?.try_into().ok()?;
            Some(TokenDigest::from_bytes(bytes))
        });
        Some((self.stored.org.parse().ok()?, self.stored.host.parse().ok()?, authorities.collect::<Option<_>>()?))
    }

    /// Whom it trusts.
    pub(crate) fn authorities(&self) -> Vec<TokenDigest> {
        self.parsed().map(|(.., authorities)| authorities).unwrap_or_default()
    }

    /// The organization and host that this agent is for. Read when it was loaded, so they are there.
    pub fn of(&self) -> (OrgId, HostId) {
        let (org, host, _) = self.parsed().expect("an identity without a host is not loaded");
        (org, host)
    }

    pub fn expires_at(&self) -> UnixMillis {
        UnixMillis::new(self.stored.expires_at_unix_ms)
    }

    /// Half its certificate's time.
    pub(crate) fn renew_at(&self) -> UnixMillis {
        let (from, to) = (self.stored.issued_at_unix_ms, self.stored.expires_at_unix_ms);
        UnixMillis::new(from + to.saturating_sub(from) / 2)
    }

    /// How the agent connects: TLS 1.3 with its certificate, to whoever has one from the authority that it enrolled with.
    pub(crate) fn client_config(&self) -> Result<Arc<ClientConfig>, IdentityError> {
        let damaged = |error: String| IdentityError::Damaged(error);
        let (.., authorities) = self.parsed().ok_or_else(|| damaged("no authority".to_owned()))?;
        let chain: Vec<_> = CertificateDer::pem_slice_iter(self.stored.chain.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| damaged(error.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(self.stored.key.secret().expose().as_bytes())
            .map_err(|error| damaged(error.to_string()))?;
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| damaged(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Pinned::new(authorities)))
            .with_client_auth_cert(chain, key)
            .map_err(|error| damaged(error.to_string()))?;
        config.alpn_protocols = vec![AGENT_PROTOCOL.to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Arc::new(config))
    }
}

/// The authority at the end of a chain (PEM), in hexadecimal, where it is another one.
fn other_authority(chain: &str, authority: TokenDigest) -> Result<Option<String>, IdentityError> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(chain.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| IdentityError::Damaged(error.to_string()))?;
    let last = certificates.last().map(|certificate| TokenDigest::of(certificate));
    Ok(last.filter(|last| *last != authority).map(|last| hex::encode(last.as_bytes())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_certificates_name_is_read_back_and_near_misses_name_nobody() {
        let identity = HostIdentity {
            org: OrgId::from_uuid(Uuid::from_u128(1)),
            host: HostId::from_uuid(Uuid::from_u128(2)),
            enrolment: 3,
        };
        let uri = identity.to_uri();
        assert_eq!(HostIdentity::of_uri(&uri), Some(identity));
        for wrong in [format!("{uri}/4"), uri.replace("envforge", "spiffe"), uri[..uri.len() - 2].to_owned()] {
            assert_eq!(HostIdentity::of_uri(&wrong), None, "{wrong}");
        }
    }
}
