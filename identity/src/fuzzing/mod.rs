//! What `fuzz/` feeds with tokens and documents that nobody has written: each function reads one input by the parsers of
//! one format and holds what they say against a second, naive reading.
//!
//! Inputs begin with a byte that says what the rest is: a text as it is, edits of a genuine one, or header and claims that
//! are signed with our own key, so that reading goes on behind the signature. Not here: running them (`cargo xtask fuzz`)
//! and what they are run on (`fuzz/inputs`, which the test below goes through).
#![allow(clippy::unwrap_used, reason = "a panic is how a disagreement is told")]

mod access_token;
mod oidc_documents;
mod oidc_token;
mod opaque_tokens;
mod share_token;

pub use access_token::access_token;
pub use oidc_documents::oidc_documents;
pub use oidc_token::oidc_token;
pub use opaque_tokens::opaque_tokens;
pub use share_token::share_token;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use envforge_domain::time::UnixMillis;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::Value;
use uuid::Uuid;

const NOW: UnixMillis = UnixMillis::new(1_795_000_000_000);

/// Ids of all kinds.
fn uuid(number: u128) -> Uuid {
    Uuid::from_u128(0x0193_0000_0000_7000_8000_0000_0000_0000 | number)
}

/// A text with edits, two bytes each: a place, and what stands there or is put there.
fn edited(text: &str, edits: &[u8]) -> Option<String> {
    let mut bytes = text.as_bytes().to_vec();
    for edit in edits.chunks_exact(2) {
        // Places of long texts are reached from both ends.
        let place = usize::from(edit[0]);
        let at = if place < 128 { place.min(bytes.len()) } else { bytes.len().saturating_sub(place - 127) };
        match edit[1] {
            0 if at < bytes.len() => drop(bytes.remove(at)),
            byte if byte < 0x80 && at < bytes.len() => bytes[at] = byte,
            byte => bytes.insert(at, byte & 0x7f),
        }
    }
    String::from_utf8(bytes).ok()
}

/// A token of a line with a header and of claims behind it, neither of which has to be JSON.
fn signed(text: &[u8], key: &EncodingKey, algorithm: Algorithm) -> Option<String> {
    let at = text.iter().position(|byte| *byte == b'\n')?;
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(&text[..at]), URL_SAFE_NO_PAD.encode(&text[at + 1..]));
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), key, algorithm).ok()?;
    Some(format!("{message}.{signature}"))
}

/// Header and claims of a token that was taken, read without regard to what they should be.
fn parts(token: &str) -> (Value, Value) {
    let mut parts = token.split('.').map(|part| {
        let bytes = URL_SAFE_NO_PAD.decode(part).unwrap();
        serde_json::from_slice(&bytes).unwrap_or(Value::Null)
    });
    (parts.next().unwrap(), parts.next().unwrap())
}

#[cfg(test)]
mod tests {
    type Target = (&'static str, fn(&[u8]));

    const TARGETS: [Target; 5] = [
        ("access_token", super::access_token),
        ("oidc_documents", super::oidc_documents),
        ("oidc_token", super::oidc_token),
        ("opaque_tokens", super::opaque_tokens),
        ("share_token", super::share_token),
    ];

    #[test]
    fn the_committed_inputs_of_identitys_fuzz_targets_hold() {
        for (name, target) in TARGETS {
            envforge_testkit::feed_fuzz_inputs(name, target);
        }
    }
}
