//! How processes of one control plane know each other: by certificates of an authority of their own, whose key lies in the folder of the
//! keys of each.
//!
//! INVARIANT: it is another authority than the agents', and neither side of a relay trusts that one, nor does an agent or the listener for
//! agents trust this one: no agent's certificate passes as a control plane's, and the other way round. Not here: what is said (`relay`).

use std::path::Path;
use std::sync::Arc;

use envforge_domain::time::{Millis, UnixMillis};
use rcgen::{ExtendedKeyUsagePurpose, KeyPair};
use rustls::client::WebPkiServerVerifier;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::authority::{AuthorityError, Pair, San, params, provider};
use crate::relay_wire::RELAY_PROTOCOL;

/// What both sides' certificates are for, whatever address they reach each other at.
pub(crate) const RELAY_NAME: &str = "relay.envforge.internal";
/// Each connection has certificates made for it; they are looked at when it begins.
const LIFETIME: Millis = Millis::from_hours(1);

/// Vouches for processes of one control plane. Without `Debug`: it holds a key.
pub struct RelayKey(Pair);

impl RelayKey {
    /// Reads the key and its certificate, or makes both where neither is there. The key's file gets mode 0600.
    ///
    /// # Errors
    /// Where one of the two is missing or damaged.
    pub fn load_or_create(key: &Path, certificate: &Path, now: UnixMillis) -> Result<Self, AuthorityError> {
        if !key.exists() && !certificate.exists() {
            Pair::create(key, certificate, "EnvForge control plane", now)?;
        }
        Self::load(key, certificate)
    }

    /// # Errors
    /// Where one of the two is missing or damaged.
    pub fn load(key: &Path, certificate: &Path) -> Result<Self, AuthorityError> {
        Pair::load(key, certificate).map(Self)
    }

    fn roots(&self) -> Result<Arc<RootCertStore>, AuthorityError> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.certificate.clone()).map_err(of_tls)?;
        Ok(Arc::new(roots))
    }

    /// A new key with its certificate, for one side of one connection.
    fn certified(
        &self,
        usage: ExtendedKeyUsagePurpose,
        now: UnixMillis,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), AuthorityError> {
        let pair = KeyPair::generate()?;
        let made = params(San::Dns(RELAY_NAME), usage, now, LIFETIME)?.signed_by(&pair, &self.0.issuer)?;
        let key = PrivateKeyDer::try_from(pair.serialize_der()).map_err(of_tls)?;
        Ok((vec![made.der().clone()], key))
    }

    /// How the side that has hosts talks: TLS 1.3 alone, with nobody but another process of this control plane.
    pub(crate) fn server_config(&self, now: UnixMillis) -> Result<Arc<ServerConfig>, AuthorityError> {
        let verifier =
            WebPkiClientVerifier::builder_with_provider(self.roots()?, provider()).build().map_err(of_tls)?;
        let (chain, key) = self.certified(ExtendedKeyUsagePurpose::ServerAuth, now)?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(of_tls)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(of_tls)?;
        config.alpn_protocols = vec![RELAY_PROTOCOL.to_vec()];
        // A session that is resumed would skip the certificate.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    /// How the asking side talks.
    pub(crate) fn client_config(&self, now: UnixMillis) -> Result<Arc<ClientConfig>, AuthorityError> {
        let verifier =
            WebPkiServerVerifier::builder_with_provider(self.roots()?, provider()).build().map_err(of_tls)?;
        let (chain, key) = self.certified(ExtendedKeyUsagePurpose::ClientAuth, now)?;
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(of_tls)?
            .with_webpki_verifier(verifier)
            .with_client_auth_cert(chain, key)
            .map_err(of_tls)?;
        config.alpn_protocols = vec![RELAY_PROTOCOL.to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Arc::new(config))
    }
}

fn of_tls(error: impl ToString) -> AuthorityError {
    AuthorityError::Tls(error.to_string())
}
