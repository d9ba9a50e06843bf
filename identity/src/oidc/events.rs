//! Messages that the provider sends by itself: signed with a shared secret, and only for a few minutes.
//!
//! Not here: what they mean (the API) and whether they came before (`store`).

use aws_lc_rs::hmac;
use envforge_domain::time::{Millis, UnixMillis};

use super::Oidc;

/// How old or how new a message may be: longer than clocks differ and shorter than notes about messages are kept.
pub const EVENT_AGE_MAX: Millis = Millis::from_minutes(5);

/// Why a message is not the provider's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSignature {
    #[error("no secret is configured for the provider's events")]
    NoSecret,
    #[error("the signature must be `t=<unix seconds>,v1=<hex of HMAC-SHA256>`")]
    Malformed,
    #[error("the message is more than five minutes old, or from the future")]
    Age,
    #[error("the message was not signed with our secret")]
    Signature,
}

impl InvalidSignature {
    pub const fn code(self) -> &'static str {
        match self {
            Self::NoSecret => "no_secret",
            Self::Malformed => "malformed",
            Self::Age => "age",
            Self::Signature => "signature",
        }
    }
}

impl Oidc {
    /// Proves that a message is the provider's: HMAC-SHA256 of `<seconds>.<body>`.
    pub fn verify_event(&self, signature: &str, body: &[u8], now: UnixMillis) -> Result<(), InvalidSignature> {
        let secret = self.config().events_secret().ok_or(InvalidSignature::NoSecret)?;
        verify(secret.expose().as_bytes(), signature, body, now)
    }
}

pub(crate) fn verify(secret: &[u8], signature: &str, body: &[u8], now: UnixMillis) -> Result<(), InvalidSignature> {
    let (seconds, tag) = signature
        .strip_prefix("t=")
        .and_then(|rest| rest.split_once(",v1="))
        .filter(|(seconds, _)| seconds.len() <= 12 && seconds.bytes().all(|byte| byte.is_ascii_digit()))
        .ok_or(InvalidSignature::Malformed)?;
    let at = UnixMillis::new(seconds.parse::<u64>().map_err(|_| InvalidSignature::Malformed)?.saturating_mul(1_000));
    let tag = hex::decode(tag).map_err(|_| InvalidSignature::Malformed)?;
    let mut message = Vec::with_capacity(seconds.len() + 1 + body.len());
    message.extend_from_slice(seconds.as_bytes());
    message.push(b'.');
    message.extend_from_slice(body);
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    hmac::verify(&key, &message, &tag).map_err(|_| InvalidSignature::Signature)?;
    if now.since(at) > EVENT_AGE_MAX || at.since(now) > EVENT_AGE_MAX {
        return Err(InvalidSignature::Age);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"a secret of the provider's events";
    const NOW: UnixMillis = UnixMillis::new(1_795_000_000_000);

    fn signed(seconds: &str, body: &[u8]) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET);
        let tag = hmac::sign(&key, &[seconds.as_bytes(), b".", body].concat());
        format!("t={seconds},v1={}", hex::encode(tag))
    }

    #[test]
    fn only_what_was_signed_with_our_secret_within_five_minutes_is_the_providers() {
        let good = signed("1795000000", b"body");
        assert_eq!(verify(SECRET, &good, b"body", NOW), Ok(()));
        assert_eq!(verify(SECRET, &good, b"bodies", NOW), Err(InvalidSignature::Signature));
        assert_eq!(verify(b"another secret of somebody else's", &good, b"body", NOW), Err(InvalidSignature::Signature));
        let moved = good.replace("t=1795000000", "t=1795000001");
        assert_eq!(verify(SECRET, &moved, b"body", NOW), Err(InvalidSignature::Signature));
        for (seconds, expected) in [
            ("1794999700", Ok(())),
            ("1794999699", Err(InvalidSignature::Age)),
            ("1795000300", Ok(())),
            ("1795000301", Err(InvalidSignature::Age)),
        ] {
            assert_eq!(verify(SECRET, &signed(seconds, b"body"), b"body", NOW), expected, "{seconds}");
        }
        for wrong in
            ["", "v1=00", "t=,v1=00", "t=-1,v1=00", "t=1795000000", "t=1795000000,v1=zz", "t=9999999999999,v1=00"]
        {
            let refused = verify(SECRET, wrong, b"body", NOW);
            assert!(matches!(refused, Err(InvalidSignature::Malformed | InvalidSignature::Signature)), "{wrong}");
        }
    }
}
