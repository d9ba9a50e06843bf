//! Secrets of service tokens: made, shown once, recognised by their hash.
//!
//! Not here: what a token may do, and which of its secrets count (the log, by the service tokens view).

use envforge_domain::ids::{OrgId, ServiceTokenId};
use envforge_domain::secret::{Secret, TokenDigest};
use envforge_domain::time::UnixMillis;
use subtle::ConstantTimeEq;

use crate::credentials::{Credentials, ServiceTokenKey};
use crate::randomness::Randomness;
use crate::sessions::IdentityError;

/// What a secret begins with, so that secret scanners recognise one.
pub const SERVICE_TOKEN_PREFIX: &str = "evf_st_";
/// 256 bits in base64url.
const RANDOM_CHARS: usize = 43;

/// Makes and recognises secrets.
pub struct ServiceTokenSecrets {
    credentials: Credentials,
    randomness: Randomness,
}

impl ServiceTokenSecrets {
    pub(crate) fn new(credentials: Credentials, randomness: Randomness) -> Self {
        Self { credentials, randomness }
    }

    /// A new secret of a token that the log knows. Asked for again, it takes the place of the one before.
    pub async fn issue(&self, key: ServiceTokenKey, expires_at: UnixMillis) -> Result<Secret, IdentityError> {
        let secret = self.randomness.token(SERVICE_TOKEN_PREFIX)?;
        self.credentials.put_service_token(secret.digest(), key, expires_at).await?;
        Ok(secret)
    }

    /// Whether a bearer token looks like a secret of a service token.
    pub fn is_one(bearer: &str) -> bool {
        bearer.starts_with(SERVICE_TOKEN_PREFIX)
    }

    /// Whose secret this is. What cannot be one costs no look-up.
    pub async fn recognise(&self, bearer: &str, now: UnixMillis) -> Result<Option<ServiceTokenKey>, IdentityError> {
        let random = bearer.strip_prefix(SERVICE_TOKEN_PREFIX).unwrap_or_default();
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if random.len() != RANDOM_CHARS || !random.bytes().all(allowed) {
            return Ok(None);
        }
        let digest = TokenDigest::of(bearer.as_bytes());
        let found = self.credentials.service_token(digest, now).await?;
        // The index has compared hashes, of which nobody learns a secret; this compares them once more in constant time.
        Ok(found.filter(|(stored, _)| stored.as_bytes().ct_eq(digest.as_bytes()).into()).map(|(_, key)| key))
    }

    /// When tokens of an organization were used last, to the hour.
    pub async fn last_uses(&self, org: OrgId) -> Result<Vec<(ServiceTokenId, UnixMillis)>, IdentityError> {
        Ok(self.credentials.service_token_uses(org).await?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use envforge_domain::time::Millis;
    use uuid::Uuid;

    use super::*;

    const NOW: UnixMillis = UnixMillis::new(1_795_000_000_000);

    fn key(generation: u32) -> ServiceTokenKey {
        let token = ServiceTokenId::from_uuid(Uuid::from_u128(1));
        ServiceTokenKey { token, org: OrgId::from_uuid(Uuid::from_u128(2)), generation }
    }

    async fn secrets() -> (ServiceTokenSecrets, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let credentials = Credentials::open_sqlite(&directory.path().join("credentials.db")).await.unwrap();
        (ServiceTokenSecrets::new(credentials, Randomness), directory)
    }

    #[tokio::test]
    async fn a_secret_is_recognised_until_it_is_replaced_or_expires_and_stands_nowhere() {
        let (secrets, directory) = secrets().await;
        let end = NOW.plus(Millis::from_hours(1));
        let first = secrets.issue(key(1), end).await.unwrap();
        assert!(ServiceTokenSecrets::is_one(first.expose()) && first.expose().len() == 7 + 43);
        assert_eq!(secrets.recognise(first.expose(), NOW).await.unwrap(), Some(key(1)));
        assert_eq!(secrets.recognise(first.expose(), end).await.unwrap(), None);
        let again = secrets.issue(key(1), end).await.unwrap();
        assert_eq!(secrets.recognise(first.expose(), NOW).await.unwrap(), None);
        let second = secrets.issue(key(2), end).await.unwrap();
        for (secret, generation) in [(&again, 1), (&second, 2)] {
            assert_eq!(secrets.recognise(secret.expose(), NOW).await.unwrap(), Some(key(generation)));
        }
        for entry in std::fs::read_dir(directory.path()).unwrap() {
            let path = entry.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            for secret in [&first, &again, &second] {
                assert!(memchr::memmem::find(&bytes, secret.expose().as_bytes()).is_none(), "{}", path.display());
            }
        }
    }

    #[tokio::test]
    async fn what_cannot_be_a_secret_is_none() {
        let (secrets, _directory) = secrets().await;
        let made_up = format!("{SERVICE_TOKEN_PREFIX}{}", "a".repeat(43));
        for wrong in ["", "evf_st_", "evf_st_short", &made_up, &made_up.replace("aaa", "a a"), &format!("{made_up}a")] {
            assert_eq!(secrets.recognise(wrong, NOW).await.unwrap(), None, "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_last_use_is_remembered_to_the_hour() {
        let (secrets, _directory) = secrets().await;
        let secret = secrets.issue(key(1), NOW.plus(Millis::from_hours(24))).await.unwrap();
        assert_eq!(secrets.last_uses(key(1).org).await.unwrap(), []);
        for (minutes, seen) in [(0, 0), (59, 0), (60, 60), (61, 60)] {
            let at = |minutes| NOW.plus(Millis::from_minutes(minutes));
            secrets.recognise(secret.expose(), at(minutes)).await.unwrap();
            assert_eq!(secrets.last_uses(key(1).org).await.unwrap(), [(key(1).token, at(seen))], "{minutes}");
        }
    }
}
