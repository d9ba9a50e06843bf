//! The provider's public keys, by their ids.
//!
//! Not here: when they are fetched again (`cached`) and what they prove (`token`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use envforge_domain::time::{Millis, UnixMillis};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde_json::Value;

use super::cached::{Cached, Rules};
use super::provider::{Provider, ProviderError};
use super::token::{InvalidToken, TokenError};

/// Providers publish two or three; more than that many is no key set but a flood.
pub(super) const KEYS_MAX: usize = 64;
/// RFC 7518 3.3: at least 2048 bits. More than 8192 only cost time.
const MODULUS_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;

const RULES: Rules = Rules {
    what: "key set",
    // How long a key that the provider has withdrawn still counts.
    fresh_for: Millis::from_minutes(10),
    stale_max: Millis::from_hours(6),
    pause: Millis::from_secs(10),
};

/// The keys that sign, with their one algorithm each.
pub(crate) struct KeySet(BTreeMap<String, (Algorithm, DecodingKey)>);

#[derive(Deserialize)]
struct Document {
    keys: Vec<Value>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl KeySet {
    /// Keys of other kinds and purposes are left out, so that one that we do not understand does no harm.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ProviderError> {
        let malformed = |what: &str| ProviderError::Malformed(format!("its key set {what}"));
        let Document { keys } =
            serde_json::from_slice(body).map_err(|error| malformed(&format!("is not one: {error}")))?;
        if keys.len() > KEYS_MAX {
            return Err(malformed(&format!("has {} keys, at most {KEYS_MAX} are taken", keys.len())));
        }
        let (mut known, mut ambiguous) = (BTreeMap::new(), BTreeSet::new());
        for value in keys {
            let Ok(jwk) = serde_json::from_value::<Jwk>(value) else { continue };
            let Some(kid) = jwk.kid.clone() else { continue };
            let Some(key) = jwk.signing_key() else { continue };
            if known.insert(kid.clone(), key).is_some() {
                ambiguous.insert(kid);
            }
        }
        // Which of two keys of one name is meant, nobody can tell.
        known.retain(|kid, _| !ambiguous.contains(kid));
        if known.is_empty() {
            return Err(malformed("has no key that signs"));
        }
        Ok(Self(known))
    }

    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }

    pub(crate) fn get(&self, kid: &str) -> Option<&(Algorithm, DecodingKey)> {
        self.0.get(kid)
    }
}

impl Jwk {
    fn signing_key(&self) -> Option<(Algorithm, DecodingKey)> {
        if self.purpose.as_deref().is_some_and(|purpose| purpose != "sig")
            || self.key_ops.as_ref().is_some_and(|ops| !ops.iter().any(|op| op == "verify"))
        {
            return None;
        }
        let (algorithm, key) = match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) => {
                let (n, e) = (self.n.as_deref()?, self.e.as_deref()?);
                if !MODULUS_BYTES.contains(&URL_SAFE_NO_PAD.decode(n).ok()?.len()) {
                    return None;
                }
                (Algorithm::RS256, DecodingKey::from_rsa_components(n, e).ok()?)
            }
            ("EC", Some("P-256")) => {
                (Algorithm::ES256, DecodingKey::from_ec_components(self.x.as_deref()?, self.y.as_deref()?).ok()?)
            }
            ("OKP", Some("Ed25519")) => (Algorithm::EdDSA, DecodingKey::from_ed_components(self.x.as_deref()?).ok()?),
            _ => return None,
        };
        // A key that is published for another algorithm is not used for this one.
        let named = match algorithm {
            Algorithm::RS256 => "RS256",
            Algorithm::ES256 => "ES256",
            _ => "EdDSA",
        };
        self.alg
            .as_deref()
            .is_none_or(|alg| alg == named || (named == "EdDSA" && alg == "Ed25519"))
            .then_some((algorithm, key))
    }
}

/// The provider's keys, fetched when needed.
pub(super) struct KeySets {
    provider: Arc<Provider>,
    cached: Cached<KeySet>,
    algorithms: Vec<Algorithm>,
}

impl KeySets {
    pub(super) fn new(provider: Arc<Provider>, algorithms: &[Algorithm]) -> Self {
        Self { provider, cached: Cached::new(RULES), algorithms: algorithms.to_vec() }
    }

    /// The key of that name, for that algorithm. A name that is not known is looked for once more at the provider: keys rotate.
    pub(super) async fn key(
        &self,
        kid: &str,
        algorithm: Algorithm,
        now: UnixMillis,
    ) -> Result<DecodingKey, TokenError> {
        let provider = Arc::clone(&self.provider);
        let fetch = move || async move { KeySet::parse(&provider.key_set(now).await?) };
        let set = self.cached.get(now, |set| set.get(kid).is_some(), fetch).await?;
        let (of, key) = set.get(kid).ok_or(InvalidToken::UnknownKey)?;
        if *of != algorithm || !self.algorithms.contains(of) {
            return Err(InvalidToken::Algorithm.into());
        }
        Ok(key.clone())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn rsa(kid: &str, bytes: usize) -> Value {
        json!({"kty": "RSA", "kid": kid, "use": "sig", "alg": "RS256", "n": URL_SAFE_NO_PAD.encode(vec![0xff; bytes]), "e": "AQAB"})
    }

    fn parse(keys: Vec<Value>) -> Result<Vec<String>, String> {
        let body = serde_json::to_vec(&json!({ "keys": keys })).unwrap();
        KeySet::parse(&body).map(|set| set.0.keys().cloned().collect()).map_err(|error| error.to_string())
    }

    fn with(mut key: Value, member: &str, value: Value) -> Value {
        key[member] = value;
        key
    }

    #[test]
    fn only_keys_that_sign_with_an_algorithm_of_their_own_are_taken() {
        let keys = vec![
            rsa("good", 256),
            rsa("short", 128),
            rsa("endless", 2048),
            with(rsa("encrypts", 256), "use", json!("enc")),
            with(rsa("other algorithm", 256), "alg", json!("PS256")),
            with(rsa("symmetric", 256), "kty", json!("oct")),
            with(rsa("wraps", 256), "key_ops", json!(["wrapKey"])),
            with(rsa("twice", 256), "x", json!(1)),
            rsa("two", 256),
            rsa("two", 512),
            json!({"kty": "EC", "crv": "P-521", "kid": "curve", "x": "AA", "y": "AA"}),
            json!("nonsense"),
        ];
        assert_eq!(parse(keys).unwrap(), ["good"]);
    }

    #[test]
    fn a_flood_of_keys_no_key_and_nonsense_are_no_key_set() {
        assert!(parse((0..=KEYS_MAX).map(|n| rsa(&n.to_string(), 256)).collect()).unwrap_err().contains("65 keys"));
        assert!(parse(vec![]).unwrap_err().contains("no key that signs"));
        assert!(KeySet::parse(b"<html>").is_err());
    }
}
