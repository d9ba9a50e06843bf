//! The token of a share URL: a signed statement of what a link grants (EdDSA JWT, RFC 7519 and RFC 8037).
//!
//! Every claim comes from the link's events, and Ed25519 signatures are deterministic, so API and gateway mint the same
//! token again for the same grant: nobody has to store one. A token alone opens nothing: the gateway holds it against
//! the link's current state.
//!
//! Not here: sessions and cookies (gateway), what a link may grant (domain).

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use envforge_domain::dev_link::{Generation, RouteFamilies, RouteFamily};
use envforge_domain::ids::{LinkId, OrgId, WorkspaceId};
use envforge_domain::secret::Secret;
use envforge_domain::slug::ServiceName;
use envforge_domain::time::UnixMillis;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Longest accepted token; real ones have about 560 characters.
pub const TOKEN_CHARS_MAX: usize = 1_500;
/// Keys that verify, the signing one included.
pub const VERIFICATION_KEYS_MAX: usize = 8;
const VERSION: u8 = 1;
const AUDIENCE: &str = "envforge-share";

/// What a share token states.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareClaims {
    pub link: LinkId,
    /// Rotation makes tokens of older generations void.
    pub generation: Generation,
    pub org: OrgId,
    pub workspace: WorkspaceId,
    pub service: ServiceName,
    pub families: RouteFamilies,
    /// When the link (or its current generation) was issued, from the event.
    pub issued_at: UnixMillis,
    pub expires_at: UnixMillis,
}

/// Why a text is no valid share token. Callers answer all of them alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidShareToken {
    #[error("a share token is a JWT of at most {TOKEN_CHARS_MAX} characters")]
    Malformed,
    #[error("the share token was signed by a key that is not (or no longer) trusted")]
    UnknownKey,
    #[error("the share token's signature is wrong")]
    Signature,
    #[error("the share token's claims are not those of a share token of version {VERSION}")]
    Claims,
    #[error("the share token has expired")]
    Expired,
}

/// Why keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("share key file {path}: {reason}")]
    File { path: PathBuf, reason: String },
    #[error("share key file {path} can be read by others (mode {mode:o}): run `chmod 600` on it")]
    Permissions { path: PathBuf, mode: u32 },
    #[error("share key file {path} does not hold an Ed25519 private key in PKCS#8 PEM")]
    Format { path: PathBuf },
    #[error("at most {VERIFICATION_KEYS_MAX} share keys can be trusted at once")]
    TooMany,
    #[error("the system gave no random numbers")]
    Random,
}

/// The wire form. The order of fields is the order of bytes that are signed: it never changes within a version.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    v: u8,
    aud: String,
    lid: String,
    #[serde(rename = "gen")]
    generation: u32,
    org: String,
    wsp: String,
    svc: String,
    fam: Vec<String>,
    iat: u64,
    exp: u64,
    /// Milliseconds of `iat` and `exp`, which JWT counts in seconds.
    ms: [u16; 2],
}

/// A private key that signs share tokens. Has no `Debug`; its memory is wiped when it is dropped.
pub struct SigningKey {
    id: KeyId,
    encoding: EncodingKey,
    public: [u8; 32],
}

/// Names a key in tokens and logs: the first 16 base64url characters of the SHA-256 of the public key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyId(String);

impl KeyId {
    fn of(public: &[u8; 32]) -> Self {
        let mut text = URL_SAFE_NO_PAD.encode(Sha256::digest(public));
        text.truncate(16);
        Self(text)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl SigningKey {
    /// Reads the key file, which must be readable by its owner alone, or makes one where none exists.
    pub fn load_or_create(path: &Path) -> Result<Self, KeyError> {
        if path.exists() { Self::load(path) } else { Self::create(path) }
    }

    /// Reads a PKCS#8 PEM file with an Ed25519 key and mode 0600 or stricter.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let file = |error: std::io::Error| KeyError::File { path: path.to_owned(), reason: error.to_string() };
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(path).map_err(file)?.permissions().mode() & 0o777;
            if mode & 0o077 != 0 {
                return Err(KeyError::Permissions { path: path.to_owned(), mode });
            }
        }
        let pem = Zeroizing::new(fs::read_to_string(path).map_err(file)?);
        let der = der_of_pem(&pem).ok_or_else(|| KeyError::Format { path: path.to_owned() })?;
        Self::from_pkcs8(&der).ok_or_else(|| KeyError::Format { path: path.to_owned() })
    }

    /// Makes a key and writes it with mode 0600. Fails where the file exists already.
    pub fn create(path: &Path) -> Result<Self, KeyError> {
        let mut seed = Zeroizing::new([0_u8; 32]);
        getrandom::fill(&mut *seed).map_err(|_| KeyError::Random)?;
        let der = pkcs8_of_seed(&seed);
        let encoded = Zeroizing::new(STANDARD.encode(&*der));
        let pem = Zeroizing::new(format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", &*encoded));
        let file = |error: std::io::Error| KeyError::File { path: path.to_owned(), reason: error.to_string() };
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        {
            use std::os::unix::fs::OpenOptionsExt;
            options.mode(0o600);
        }
        let mut written = options.open(path).map_err(file)?;
        written.write_all(pem.as_bytes()).and_then(|()| written.sync_all()).map_err(file)?;
        Self::from_pkcs8(&der).ok_or_else(|| KeyError::Format { path: path.to_owned() })
    }

    /// A key that is the same in every run.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn of_seed(seed: &[u8; 32]) -> Self {
        Self::from_pkcs8(&pkcs8_of_seed(seed)).expect("any 32 bytes are a seed")
    }

    fn from_pkcs8(der: &[u8]) -> Option<Self> {
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).ok()?;
        let public: [u8; 32] = pair.public_key().as_ref().try_into().ok()?;
        Some(Self { id: KeyId::of(&public), encoding: EncodingKey::from_ed_der(der), public })
    }

    pub fn id(&self) -> &KeyId {
        &self.id
    }

    pub(crate) fn encoding(&self) -> &EncodingKey {
        &self.encoding
    }

    pub(crate) fn public(&self) -> &[u8; 32] {
        &self.public
    }

    /// The half that verifies, for a gateway that does not sign.
    pub fn verification_key(&self) -> VerificationKey {
        VerificationKey { id: self.id.clone(), public: self.public }
    }

    /// The share token of these claims: the same claims give the same token.
    pub fn mint(&self, claims: &ShareClaims) -> Secret {
        let wire = Wire::of(claims);
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(self.id.0.clone());
        let token = jsonwebtoken::encode(&header, &wire, &self.encoding)
            .expect("the key was checked when it was loaded, and these claims are plain JSON");
        Secret::new(token)
    }
}

/// A public key that share tokens are checked with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerificationKey {
    id: KeyId,
    public: [u8; 32],
}

impl VerificationKey {
    /// From the 32 bytes in base64url without padding, as `to_text` gives them.
    pub fn from_text(text: &str) -> Option<Self> {
        let public: [u8; 32] = URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()?;
        Some(Self { id: KeyId::of(&public), public })
    }

    pub fn to_text(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.public)
    }

    pub fn id(&self) -> &KeyId {
        &self.id
    }
}

/// The keys that are trusted now. Rotation: add the new key everywhere, sign with it, and take the old one out when
/// its last link has expired.
pub struct ShareVerifier {
    keys: Vec<(KeyId, DecodingKey)>,
    validation: Validation,
}

impl ShareVerifier {
    pub fn new(keys: impl IntoIterator<Item = VerificationKey>) -> Result<Self, KeyError> {
        let keys: Vec<_> = keys.into_iter().map(|key| (key.id, DecodingKey::from_ed_der(&key.public))).collect();
        if keys.len() > VERIFICATION_KEYS_MAX {
            return Err(KeyError::TooMany);
        }
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_audience(&[AUDIENCE]);
        validation.set_required_spec_claims(&["exp", "aud"]);
        // Expiry is held against the caller's clock, in milliseconds.
        validation.validate_exp = false;
        validation.leeway = 0;
        Ok(Self { keys, validation })
    }

    /// Checks form, key, signature, claims and expiry.
    pub fn verify(&self, token: &str, now: UnixMillis) -> Result<ShareClaims, InvalidShareToken> {
        if token.len() > TOKEN_CHARS_MAX || !token.is_ascii() {
            return Err(InvalidShareToken::Malformed);
        }
        let key = self.key_of(token)?;
        let wire = jsonwebtoken::decode::<Wire>(token, key, &self.validation).map_err(|error| match error.kind() {
            jsonwebtoken::errors::ErrorKind::InvalidSignature => InvalidShareToken::Signature,
            _ => InvalidShareToken::Claims,
        })?;
        let claims = wire.claims.read().ok_or(InvalidShareToken::Claims)?;
        if now >= claims.expires_at { Err(InvalidShareToken::Expired) } else { Ok(claims) }
    }

    /// The trusted key that a token names.
    pub(crate) fn key_of(&self, token: &str) -> Result<&DecodingKey, InvalidShareToken> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| InvalidShareToken::Malformed)?;
        if header.alg != Algorithm::EdDSA {
            return Err(InvalidShareToken::UnknownKey);
        }
        let id = header.kid.ok_or(InvalidShareToken::UnknownKey)?;
        let known = self.keys.iter().find(|(known, _)| known.0 == id);
        known.map(|(_, key)| key).ok_or(InvalidShareToken::UnknownKey)
    }
}

impl Wire {
    fn of(claims: &ShareClaims) -> Self {
        let split = |at: UnixMillis| (at.get() / 1_000, (at.get() % 1_000) as u16);
        let ((iat, iat_ms), (exp, exp_ms)) = (split(claims.issued_at), split(claims.expires_at));
        Self {
            v: VERSION,
            aud: AUDIENCE.to_owned(),
            lid: claims.link.to_string(),
            generation: claims.generation.0,
            org: claims.org.to_string(),
            wsp: claims.workspace.to_string(),
            svc: claims.service.to_string(),
            fam: claims.families.iter().map(|family| family.token().to_owned()).collect(),
            iat,
            exp,
            ms: [iat_ms, exp_ms],
        }
    }

    fn read(&self) -> Option<ShareClaims> {
        if self.v != VERSION || self.ms.iter().any(|ms| *ms > 999) {
            return None;
        }
        let join =
            |seconds: u64, ms: u16| Some(UnixMillis::new(seconds.checked_mul(1_000)?.checked_add(u64::from(ms))?));
        Some(ShareClaims {
            link: self.lid.parse().ok()?,
            generation: Generation(self.generation),
            org: self.org.parse().ok()?,
            workspace: self.wsp.parse().ok()?,
            service: self.svc.parse().ok()?,
            families: self.fam.iter().map(|token| RouteFamily::from_token(token)).collect::<Option<RouteFamilies>>()?,
            issued_at: join(self.iat, self.ms[0])?,
            expires_at: join(self.exp, self.ms[1])?,
        })
    }
}

/// `PrivateKeyInfo` (RFC 8410 7) around an Ed25519 seed: everything but the seed is constant.
fn pkcs8_of_seed(seed: &[u8; 32]) -> Zeroizing<Vec<u8>> {
    const PREFIX: [u8; 16] =
        [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
    let mut der = Zeroizing::new(Vec::with_capacity(48));
    der.extend_from_slice(&PREFIX);
    der.extend_from_slice(seed);
    der
}

fn der_of_pem(pem: &str) -> Option<Zeroizing<Vec<u8>>> {
    let (_, rest) = pem.split_once("-----BEGIN PRIVATE KEY-----")?;
    let (body, _) = rest.split_once("-----END PRIVATE KEY-----")?;
    let joined = Zeroizing::new(body.split_whitespace().collect::<String>());
    STANDARD.decode(&*joined).ok().map(Zeroizing::new)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn key() -> (tempfile::TempDir, SigningKey) {
        let directory = tempfile::tempdir().unwrap();
        let key = SigningKey::load_or_create(&directory.path().join("share.key")).unwrap();
        (directory, key)
    }

    fn claims() -> ShareClaims {
        ShareClaims {
            link: LinkId::from_uuid(Uuid::from_u128(1)),
            generation: Generation(3),
            org: OrgId::from_uuid(Uuid::from_u128(2)),
            workspace: WorkspaceId::from_uuid(Uuid::from_u128(3)),
            service: "web".parse().unwrap(),
            families: RouteFamilies::NONE.with(RouteFamily::Web).with(RouteFamily::Api),
            issued_at: UnixMillis::new(1_000_123),
            expires_at: UnixMillis::new(2_000_456),
        }
    }

    fn verifier(keys: &[&SigningKey]) -> ShareVerifier {
        ShareVerifier::new(keys.iter().map(|key| key.verification_key())).unwrap()
    }

    const NOW: UnixMillis = UnixMillis::new(1_500_000);

    #[test]
    fn what_was_minted_is_read_back_and_minting_again_gives_the_same_token() {
        let (directory, key) = key();
        let token = key.mint(&claims());
        assert_eq!(verifier(&[&key]).verify(token.expose(), NOW), Ok(claims()));
        let again = SigningKey::load_or_create(&directory.path().join("share.key")).unwrap();
        assert_eq!(again.mint(&claims()).expose(), token.expose());
        assert_eq!(again.id(), key.id());
        assert!(token.expose().len() < TOKEN_CHARS_MAX / 2, "{}", token.expose().len());
    }

    #[test]
    fn expiry_is_exact() {
        let (_directory, key) = key();
        let token = key.mint(&claims());
        let verifier = verifier(&[&key]);
        assert!(verifier.verify(token.expose(), UnixMillis::new(2_000_455)).is_ok());
        assert_eq!(verifier.verify(token.expose(), UnixMillis::new(2_000_456)), Err(InvalidShareToken::Expired));
    }

    #[test]
    fn keys_rotate_and_a_retired_one_is_refused() {
        let ((_a, old), (_b, new)) = (key(), key());
        let token = old.mint(&claims());
        assert!(verifier(&[&old, &new]).verify(token.expose(), NOW).is_ok());
        assert_eq!(verifier(&[&new]).verify(token.expose(), NOW), Err(InvalidShareToken::UnknownKey));
    }

    #[test]
    fn a_token_that_was_touched_anywhere_is_refused() {
        let (_directory, key) = key();
        let token = key.mint(&claims());
        let verifier = verifier(&[&key]);
        for at in 0..token.expose().len() {
            let mut bytes = token.expose().as_bytes().to_vec();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let touched = String::from_utf8(bytes).unwrap();
            // The last character of each part carries bits that base64 does not use; a strict decoder refuses those.
            assert!(verifier.verify(&touched, NOW).is_err(), "at {at}");
        }
    }

    #[test]
    fn other_algorithms_and_other_documents_are_refused() {
        let (_directory, key) = key();
        let verifier = verifier(&[&key]);
        let part = |json: &str| URL_SAFE_NO_PAD.encode(json);
        let none = format!("{}.{}.", part(&format!(r#"{{"alg":"none","kid":"{}"}}"#, key.id().as_str())), part("{}"));
        assert!(verifier.verify(&none, NOW).is_err());
        let public = key.verification_key().public;
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some(key.id().as_str().to_owned());
        let confused = jsonwebtoken::encode(&header, &Wire::of(&claims()), &EncodingKey::from_secret(&public)).unwrap();
        assert_eq!(verifier.verify(&confused, NOW), Err(InvalidShareToken::UnknownKey));
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(key.id().as_str().to_owned());
        let mut other = Wire::of(&claims());
        other.aud = "envforge-api".to_owned();
        let foreign = jsonwebtoken::encode(&header, &other, &key.encoding).unwrap();
        assert_eq!(verifier.verify(&foreign, NOW), Err(InvalidShareToken::Claims));
        let mut newer = Wire::of(&claims());
        newer.v = 2;
        let newer = jsonwebtoken::encode(&header, &newer, &key.encoding).unwrap();
        assert_eq!(verifier.verify(&newer, NOW), Err(InvalidShareToken::Claims));
    }

    #[cfg(unix)]
    #[test]
    fn a_key_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let (directory, _key) = key();
        let path = directory.path().join("share.key");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(SigningKey::load(&path), Err(KeyError::Permissions { mode: 0o640, .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "not a key").unwrap();
        assert!(matches!(SigningKey::load(&path), Err(KeyError::Format { .. })));
    }

    #[test]
    fn a_verification_key_travels_as_text() {
        let (_directory, key) = key();
        let public = key.verification_key();
        assert_eq!(VerificationKey::from_text(&public.to_text()), Some(public));
        assert_eq!(VerificationKey::from_text("short"), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_verification_panic(text in "\\PC{0,200}") {
            let (_directory, key) = key();
            prop_assert!(verifier(&[&key]).verify(&text, NOW).is_err());
        }
    }
}
