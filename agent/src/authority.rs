//! The control plane's own certificate authority, for agents alone: its key, the certificates that come from it, and how another one takes
//! its place.
//!
//! Two steps, with a certificate's life between them. Once the next authority is there, it certifies agents, which trust it from then on
//! beside the one that they came by; the present one still vouches for the control plane. Then the next takes its place. INVARIANT: whoever
//! has a certificate that counts at the second step got it from the next authority, and trusts that. Not here: who gets one.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use envforge_domain::secret::TokenDigest;
use envforge_domain::time::{Millis, SharedClock, UnixMillis};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData as _, SanType,
};
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::identity::HostIdentity;

/// What the control plane's certificate is for, whatever address agents reach it at: the authority certifies nobody else for it.
pub(crate) const SERVER_NAME: &str = "control-plane.envforge.internal";
/// How a connection says what it is for.
pub(crate) const ENROL_PROTOCOL: &[u8] = b"envforge-enrol/1";
pub(crate) const AGENT_PROTOCOL: &[u8] = b"envforge-agent/1";

/// What an authority's certificate is called.
const AGENTS: &str = "EnvForge agents";
/// By how much an agent's clock may be behind ours.
const CLOCK_SKEW: Millis = Millis::from_minutes(5);
const AUTHORITY_LIFETIME: Millis = Millis::from_hours(24 * 365 * 10);
const SERVER_LIFETIME: Millis = Millis::from_hours(24 * 30);

/// Certifies agents, and the listener that they connect to. Without `Debug`: it holds keys.
pub struct Authority {
    present: Pair,
    /// While it is being replaced.
    next: Option<Pair>,
}

/// A key with its certificate.
pub(crate) struct Pair {
    pub(crate) certificate: CertificateDer<'static>,
    certificate_pem: String,
    pub(crate) issuer: Issuer<'static, KeyPair>,
}

/// A certificate of an agent.
pub struct HostCertificate {
    /// PEM, with the authority's behind it.
    pub chain: String,
    /// SHA-256 of the certificate (DER).
    pub fingerprint: TokenDigest,
    pub expires_at: UnixMillis,
}

#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("the authority's file `{path}` cannot be used: {reason}")]
    File { path: String, reason: String },
    #[error("another authority is there already that is to take this one's place")]
    Rotating,
    #[error("no other authority is there that could take this one's place")]
    NotRotating,
    #[error("certificates of the present authority may count for {left} longer")]
    InUse { left: Millis },
    #[error("a certificate could not be made: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
}

fn of_file(path: &Path, reason: impl ToString) -> AuthorityError {
    AuthorityError::File { path: path.display().to_string(), reason: reason.to_string() }
}

/// SHA-256 of an authority's certificate file (PEM): what enrolment tokens carry. The key is not needed.
pub fn authority_fingerprint(certificate: &Path) -> Result<TokenDigest, AuthorityError> {
    let certificate = CertificateDer::from_pem_file(certificate).map_err(|error| of_file(certificate, error))?;
    Ok(TokenDigest::of(&certificate))
}

/// Where the same file of the authority lies that is to take this one's place: `agents-next.key` beside `agents.key`.
fn next(path: &Path) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}-next.{extension}"))
}

impl Pair {
    pub(crate) fn create(key: &Path, certificate: &Path, name: &str, now: UnixMillis) -> Result<(), AuthorityError> {
        let pair = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        (params.not_before, params.not_after) = validity(now, AUTHORITY_LIFETIME);
        let made = params.self_signed(&pair)?;
        // The certificate first: a key without one would be refused ever after.
        write_new(certificate, made.pem().as_bytes(), 0o644).map_err(|error| of_file(certificate, error))?;
        let text = zeroize::Zeroizing::new(pair.serialize_pem());
        write_new(key, text.as_bytes(), 0o600).map_err(|error| of_file(key, error))
    }

    pub(crate) fn load(key: &Path, certificate: &Path) -> Result<Self, AuthorityError> {
        let text = zeroize::Zeroizing::new(fs::read_to_string(key).map_err(|error| of_file(key, error))?);
        let pair = KeyPair::from_pem(&text).map_err(|error| of_file(key, error))?;
        let certificate_pem = fs::read_to_string(certificate).map_err(|error| of_file(certificate, error))?;
        let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes());
        let der = der.map_err(|error| of_file(certificate, error))?;
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|error| of_file(certificate, error))?;
        if parsed.public_key().raw != pair.subject_public_key_info() {
            return Err(of_file(key, "it is not the key of the certificate beside it"));
        }
        let issuer = Issuer::from_ca_cert_der(&der, pair).map_err(|error| of_file(certificate, error))?;
        Ok(Self { certificate: der, certificate_pem, issuer })
    }

    fn made_at(&self) -> UnixMillis {
        let parsed = X509Certificate::from_der(&self.certificate);
        let seconds = parsed.map_or(0, |(_, parsed)| parsed.validity().not_before.timestamp());
        UnixMillis::new(u64::try_from(seconds).unwrap_or(0) * 1_000).plus(CLOCK_SKEW)
    }
}

impl Authority {
    /// Reads the authority's key and certificate, or makes both where neither is there. The key's file gets mode 0600.
    ///
    /// # Errors
    /// Where one of the two is missing or damaged: what they certified would be lost with a new one.
    pub fn load_or_create(key: &Path, certificate: &Path, now: UnixMillis) -> Result<Self, AuthorityError> {
        if !key.exists() && !certificate.exists() {
            Pair::create(key, certificate, AGENTS, now)?;
        }
        Self::load(key, certificate)
    }

    /// With the one that is to take its place, where that is there whole.
    pub fn load(key: &Path, certificate: &Path) -> Result<Self, AuthorityError> {
        let present = Pair::load(key, certificate)?;
        let (next_key, next_certificate) = (next(key), next(certificate));
        let next = next_key.exists().then(|| Pair::load(&next_key, &next_certificate)).transpose()?;
        Ok(Self { present, next })
    }

    /// Makes the authority that is to take this one's place. Who reads the files from now on has agents certified by it. Answers its
    /// fingerprint.
    ///
    /// # Errors
    /// [`AuthorityError::Rotating`] where there is one already.
    pub fn begin_rotation(key: &Path, certificate: &Path, now: UnixMillis) -> Result<TokenDigest, AuthorityError> {
        if Self::load(key, certificate)?.next.is_some() {
            return Err(AuthorityError::Rotating);
        }
        let (next_key, next_certificate) = (next(key), next(certificate));
        // A certificate without its key is what an earlier try left.
        Pair::create(&next_key, &next_certificate, AGENTS, now)?;
        Pair::load(&next_key, &next_certificate).map(|next| TokenDigest::of(&next.certificate))
    }

    /// Has the next authority take this one's place, which is gone then. `lifetime`: how long certificates of agents live at most. Answers the
    /// fingerprint of the one that stays. Finishes what an earlier try began.
    ///
    /// # Errors
    /// [`AuthorityError::InUse`] where certificates of the present one may still count; [`AuthorityError::NotRotating`].
    pub fn finish_rotation(
        key: &Path,
        certificate: &Path,
        now: UnixMillis,
        lifetime: Millis,
    ) -> Result<TokenDigest, AuthorityError> {
        let (next_key, next_certificate) = (next(key), next(certificate));
        if !next_key.exists() {
            return Err(AuthorityError::NotRotating);
        }
        if next_certificate.exists() {
            let until = Pair::load(&next_key, &next_certificate)?.made_at().plus(lifetime);
            if now < until {
                return Err(AuthorityError::InUse { left: until.since(now) });
            }
            fs::rename(&next_certificate, certificate).map_err(|error| of_file(certificate, error))?;
        }
        fs::rename(&next_key, key).map_err(|error| of_file(key, error))?;
        Pair::load(key, certificate).map(|present| TokenDigest::of(&present.certificate))
    }

    /// SHA-256 of the certificate of the authority that vouches for the control plane.
    pub fn fingerprint(&self) -> TokenDigest {
        TokenDigest::of(&self.present.certificate)
    }

    /// Certifies the key of a request (PEM, PKCS #10) as this host's. Nothing else of the request counts.
    ///
    /// # Errors
    /// Where the request is none, or is not signed by its own key.
    pub fn certify(
        &self,
        request: &str,
        identity: HostIdentity,
        now: UnixMillis,
        lifetime: Millis,
    ) -> Result<HostCertificate, AuthorityError> {
        let request = CertificateSigningRequestDer::from_pem_slice(request.as_bytes())
            .map_err(|error| AuthorityError::Tls(error.to_string()))?;
        let mut request = CertificateSigningRequestParams::from_der(&request)?;
        request.params = params(San::Uri(identity.to_uri()), ExtendedKeyUsagePurpose::ClientAuth, now, lifetime)?;
        let by = self.next.as_ref().unwrap_or(&self.present);
        let made = request.signed_by(&by.issuer)?;
        Ok(HostCertificate {
            chain: format!("{}{}", made.pem(), by.certificate_pem),
            fingerprint: TokenDigest::of(made.der()),
            expires_at: now.plus(lifetime),
        })
    }

    /// How the listener talks: TLS 1.3 alone; who brings a certificate must have it from this authority, or from the
    /// next, in time.
    pub(crate) fn server_config(self: &Arc<Self>, clock: SharedClock) -> Result<Arc<ServerConfig>, AuthorityError> {
        let tls = |error: String| AuthorityError::Tls(error);
        let provider = provider();
        let mut roots = RootCertStore::empty();
        for pair in [Some(&self.present), self.next.as_ref()].into_iter().flatten() {
            roots.add(pair.certificate.clone()).map_err(|error| tls(error.to_string()))?;
        }
        // Who has none yet comes to enrol, and gets no further than that.
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .map_err(|error| tls(error.to_string()))?;
        let serving = Serving { authority: Arc::clone(self), clock, current: Mutex::new(None) };
        serving.key().map_err(|error| tls(error.to_string()))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| tls(error.to_string()))?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(serving));
        config.alpn_protocols = vec![AGENT_PROTOCOL.to_vec(), ENROL_PROTOCOL.to_vec()];
        // A session that is resumed would skip the certificate, and whether it still counts.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// The listener's certificate, made anew at half its time.
struct Serving {
    authority: Arc<Authority>,
    clock: SharedClock,
    current: Mutex<Option<(Arc<CertifiedKey>, UnixMillis)>>,
}

impl std::fmt::Debug for Serving {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Serving")
    }
}

impl Serving {
    fn key(&self) -> Result<Arc<CertifiedKey>, AuthorityError> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        if let Some((key, renew_at)) = &*current
            && now < *renew_at
        {
            return Ok(Arc::clone(key));
        }
        let pair = KeyPair::generate()?;
        let params = params(San::Dns(SERVER_NAME), ExtendedKeyUsagePurpose::ServerAuth, now, SERVER_LIFETIME)?;
        let present = &self.authority.present;
        let made = params.signed_by(&pair, &present.issuer)?;
        let chain = vec![made.der().clone(), present.certificate.clone()];
        let key =
            PrivateKeyDer::try_from(pair.serialize_der()).map_err(|error| AuthorityError::Tls(error.to_owned()))?;
        let signing = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)
            .map_err(|error| AuthorityError::Tls(error.to_string()))?;
        let key = Arc::new(CertifiedKey::new(chain, signing));
        *current = Some((Arc::clone(&key), now.plus(Millis::new(SERVER_LIFETIME.get() / 2))));
        Ok(key)
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        match self.key() {
            Ok(key) => Some(key),
            Err(error) => {
                tracing::error!(%error, "the listener of agents has no certificate");
                None
            }
        }
    }
}

/// Whom a certificate names.
pub(crate) enum San {
    Dns(&'static str),
    Uri(String),
}

pub(crate) fn params(
    name: San,
    usage: ExtendedKeyUsagePurpose,
    now: UnixMillis,
    lifetime: Millis,
) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![match name {
        San::Dns(name) => SanType::DnsName(name.try_into()?),
        San::Uri(uri) => SanType::URI(uri.try_into()?),
    }];
    params.extended_key_usages = vec![usage];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    (params.not_before, params.not_after) = validity(now, lifetime);
    Ok(params)
}

fn validity(now: UnixMillis, lifetime: Millis) -> (OffsetDateTime, OffsetDateTime) {
    let at = |instant: UnixMillis| {
        let seconds = i64::try_from(instant.get() / 1_000).unwrap_or(i64::MAX);
        OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    };
    (at(now.minus(CLOCK_SKEW)), at(now.plus(lifetime)))
}

/// Writes a file that must not exist, synced, before it has its name.
fn write_new(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(mode).open(&fresh)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&fresh, path)
}
