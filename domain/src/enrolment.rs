//! The token by which an agent enrols as one host of one organization, once.
//!
//! It carries what the agent must know before it can trust anybody: who it is to be, and the fingerprint of the authority
//! that the control plane's certificate must come from. Not here: whether it still counts (`host`).

use std::str::FromStr;

use crate::ids::{HostId, OrgId};
use crate::secret::{Secret, TokenDigest, hex, unhex};

const PREFIX: &str = "envforge-enrol-1";
const SECRET_BYTES: usize = 32;

/// Without `Debug`, `Display` or serialization: whoever has it becomes the host.
#[derive(Clone)]
pub struct EnrolmentToken {
    org: OrgId,
    host: HostId,
    authority: TokenDigest,
    text: Secret,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no enrolment token: it is the one line that `envforge host enrol` prints")]
pub struct NoEnrolmentToken;

impl EnrolmentToken {
    /// `secret` comes from the system's randomness. `authority`: SHA-256 of the authority's certificate (DER).
    pub fn new(org: OrgId, host: HostId, authority: TokenDigest, secret: &[u8; SECRET_BYTES]) -> Self {
        let text = format!("{PREFIX}.{org}.{host}.{}.{}", authority.to_hex(), hex(secret));
        Self { org, host, authority, text: Secret::new(text) }
    }

    pub fn parse(text: &str) -> Result<Self, NoEnrolmentToken> {
        let mut parts = text.trim().split('.');
        let mut next = || parts.next().ok_or(NoEnrolmentToken);
        if next()? != PREFIX {
            return Err(NoEnrolmentToken);
        }
        let org = OrgId::from_str(next()?).map_err(|_| NoEnrolmentToken)?;
        let host = HostId::from_str(next()?).map_err(|_| NoEnrolmentToken)?;
        let authority = TokenDigest::from_hex(next()?).ok_or(NoEnrolmentToken)?;
        let secret = unhex(next()?).ok_or(NoEnrolmentToken)?;
        if parts.next().is_some() {
            return Err(NoEnrolmentToken);
        }
        Ok(Self::new(org, host, authority, &secret))
    }

    pub fn org(&self) -> OrgId {
        self.org
    }

    pub fn host(&self) -> HostId {
        self.host
    }

    /// The fingerprint of the certificate from which the control plane's own must come.
    pub fn authority(&self) -> TokenDigest {
        self.authority
    }

    /// The whole token, for whoever is to use it.
    pub fn text(&self) -> &Secret {
        &self.text
    }

    /// What the log keeps of it: of all of it, so that one made over for another host or organization is another token.
    pub fn digest(&self) -> TokenDigest {
        self.text.digest()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_token_is_read_back_and_near_misses_are_none() {
        let (org, host) = (OrgId::from_uuid(Uuid::from_u128(1)), HostId::from_uuid(Uuid::from_u128(2)));
        let token = EnrolmentToken::new(org, host, TokenDigest::of(b"authority"), &[7; 32]);
        let text = token.text().expose().to_owned();
        let read = EnrolmentToken::parse(&format!("{text}\n")).unwrap();
        assert_eq!((read.org(), read.host(), read.authority()), (org, host, TokenDigest::of(b"authority")));
        assert!(read.digest() == token.digest());
        for wrong in [text.to_uppercase(), format!("{text}.x"), text[1..].to_owned(), text[..text.len() - 1].to_owned()]
        {
            assert!(EnrolmentToken::parse(&wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_token_made_over_for_another_organization_is_another_token() {
        let host = HostId::from_uuid(Uuid::from_u128(2));
        let of =
            |org| EnrolmentToken::new(OrgId::from_uuid(Uuid::from_u128(org)), host, TokenDigest::of(b"a"), &[7; 32]);
        assert!(of(1).digest() != of(3).digest());
    }
}
