//! Whom an agent trusts: the control plane's certificate, from the one authority whose fingerprint its enrolment token carried, or from the
//! one that takes its place.

use std::sync::Arc;

use envforge_domain::secret::TokenDigest;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::{CertificateError, DigitallySignedStruct, Error, PeerIncompatible, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::authority::provider;

/// Trusts few authorities, one of which the other side brings along, and through it the usual rules of certificates.
#[derive(Debug)]
pub(crate) struct Pinned {
    authorities: Vec<TokenDigest>,
    provider: Arc<CryptoProvider>,
}

impl Pinned {
    pub(crate) fn new(authorities: Vec<TokenDigest>) -> Self {
        Self { authorities, provider: provider() }
    }
}

/// Which of them the other side of a connection came by.
pub(crate) fn shown(chain: &[CertificateDer<'_>], authorities: &[TokenDigest]) -> Option<TokenDigest> {
    chain.iter().map(|certificate| TokenDigest::of(certificate)).find(|authority| authorities.contains(authority))
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let pinned = intermediates.iter().find(|certificate| self.authorities.contains(&TokenDigest::of(certificate)));
        let pinned = pinned.ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(pinned.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // Never offered.
        Err(Error::PeerIncompatible(PeerIncompatible::Tls13RequiredForQuic))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
