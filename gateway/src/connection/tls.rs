//! Certificates from PEM files, read again when they change.
//!
//! A broken new file never takes down what works: the old certificate stays and the failure is counted and logged.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::TlsFiles;
use crate::metric;

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("certificate file {path}: {reason}")]
    Certificate { path: String, reason: String },
    #[error("private key file {path}: {reason}")]
    PrivateKey { path: String, reason: String },
    #[error("certificate and private key do not belong together: {0}")]
    Pair(String),
}

/// The certificate in use, and where it came from.
#[derive(Debug)]
pub struct Certificates {
    files: TlsFiles,
    current: ArcSwap<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    key: Arc<CertifiedKey>,
    changed: Stamp,
}

type Stamp = [Option<(SystemTime, u64)>; 2];

impl Certificates {
    pub fn load(files: TlsFiles) -> Result<Arc<Self>, TlsError> {
        let changed = stamp(&files);
        let key = read(&files)?;
        Ok(Arc::new(Self { files, current: ArcSwap::from_pointee(Loaded { key, changed }) }))
    }

    /// Reads the files now.
    pub fn reload(&self) -> Result<(), TlsError> {
        let changed = stamp(&self.files);
        match read(&self.files) {
            Ok(key) => {
                self.current.store(Arc::new(Loaded { key, changed }));
                metric::certificate("reloaded");
                tracing::info!("certificate reloaded");
                Ok(())
            }
            Err(error) => {
                metric::certificate("failed");
                tracing::error!(%error, "the new certificate cannot be used, the old one stays");
                Err(error)
            }
        }
    }

    /// Reads the files if one of them changed since the last time. A failed attempt is repeated at the next call.
    pub fn reload_if_changed(&self) -> Result<bool, TlsError> {
        if stamp(&self.files) == self.current.load().changed {
            return Ok(false);
        }
        self.reload().map(|()| true)
    }

    pub(super) fn server_config(self: &Arc<Self>) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider's default cipher suites serve TLS 1.2 and 1.3")
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Arc::new(config)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.load().key))
    }
}

fn stamp(files: &TlsFiles) -> Stamp {
    let of = |path: &Path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    };
    [of(&files.certificate_chain), of(&files.private_key)]
}

fn read(files: &TlsFiles) -> Result<Arc<CertifiedKey>, TlsError> {
    let certificate =
        |reason: String| TlsError::Certificate { path: files.certificate_chain.display().to_string(), reason };
    let private = |reason: String| TlsError::PrivateKey { path: files.private_key.display().to_string(), reason };
    let chain = CertificateDer::pem_file_iter(&files.certificate_chain)
        .map_err(|error| certificate(error.to_string()))?
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| certificate(error.to_string()))?;
    if chain.is_empty() {
        return Err(certificate("it holds no `BEGIN CERTIFICATE` block".to_owned()));
    }
    let key = PrivateKeyDer::from_pem_file(&files.private_key).map_err(|error| private(error.to_string()))?;
    let signing =
        rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).map_err(|error| private(error.to_string()))?;
    let certified = CertifiedKey::new(chain, signing);
    certified.keys_match().map_err(|error| TlsError::Pair(error.to_string()))?;
    Ok(Arc::new(certified))
}
