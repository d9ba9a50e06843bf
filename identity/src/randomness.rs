//! Random bytes and what is made of them: tokens, ids, generated passwords.
//!
//! The one place of this crate that asks the operating system. Fails instead of falling back to anything weaker.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use envforge_domain::secret::Secret;
use envforge_domain::time::UnixMillis;
use uuid::Uuid;
use zeroize::Zeroizing;

/// The operating system's generator did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the operating system gave no random bytes")]
pub struct NoRandomness;

/// Source of random bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Randomness;

/// Random bytes of a token: 256 bits.
const TOKEN_BYTES: usize = 32;
/// Characters of a generated password: 20 of 32 possible, 100 bits.
const PASSWORD_CHARS: usize = 20;
/// Crockford's alphabet, lower-case: nothing in it is mistaken for something else when it is typed from a screen.
const PASSWORD_ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

impl Randomness {
    pub fn fill(self, bytes: &mut [u8]) -> Result<(), NoRandomness> {
        getrandom::fill(bytes).map_err(|_| NoRandomness)
    }

    /// `<prefix><43 characters>`; the prefix lets secret scanners recognise a leaked one.
    pub fn token(self, prefix: &str) -> Result<Secret, NoRandomness> {
        let mut bytes = Zeroizing::new([0_u8; TOKEN_BYTES]);
        self.fill(&mut *bytes)?;
        let mut text = String::with_capacity(prefix.len() + 44);
        text.push_str(prefix);
        URL_SAFE_NO_PAD.encode_string(*bytes, &mut text);
        Ok(Secret::new(text))
    }

    /// A password for somebody who was not asked for one.
    pub fn password(self) -> Result<Secret, NoRandomness> {
        let mut bytes = Zeroizing::new([0_u8; PASSWORD_CHARS]);
        self.fill(&mut *bytes)?;
        // 256 is a multiple of 32, so the low five bits are uniform.
        let text = bytes.iter().map(|byte| char::from(PASSWORD_ALPHABET[usize::from(byte & 31)])).collect();
        Ok(Secret::new(text))
    }

    /// A UUIDv7 of this instant.
    pub fn uuid_v7(self, now: UnixMillis) -> Result<Uuid, NoRandomness> {
        let mut bytes = [0_u8; 10];
        self.fill(&mut bytes)?;
        Ok(uuid::Builder::from_unix_timestamp_millis(now.get(), &bytes).into_uuid())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_generated_password_passes_our_own_rules() {
        for _ in 0..200 {
            let password = Randomness.password().unwrap();
            assert_eq!(password.expose().len(), PASSWORD_CHARS);
            assert!(crate::password::check(&password).is_ok());
        }
    }

    #[test]
    fn two_tokens_are_never_the_same() {
        let (one, other) = (Randomness.token("efr_").unwrap(), Randomness.token("efr_").unwrap());
        assert!(one.expose().starts_with("efr_") && one.expose().len() == 4 + 43);
        assert!(!one.matches(other.expose()));
    }

    #[test]
    fn ids_carry_their_instant() {
        let id = Randomness.uuid_v7(UnixMillis::new(1_795_000_000_123)).unwrap();
        assert_eq!(id.get_version_num(), 7);
        assert_eq!(id.as_u128() >> 80, 1_795_000_000_123);
    }
}
