//! The keys that sign access tokens: one secret (HS256), or a ring of Ed25519 keys with overlap and rotation.
//!
//! A ring is a folder of files `<second from which it signs>.pem`. The newest key whose time has come signs; each verifies from
//! the moment it is there until whatever it signed has expired. So a rotation is one file, written ahead of its time, and
//! every process that shares the folder follows by itself. Not here: what is signed (`tokens`).

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use envforge_domain::time::{Millis, UnixMillis};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey};
use parking_lot::RwLock;
use serde::Serialize;

use crate::key_file::{self, KeyFileError};
use crate::randomness::Randomness;
use crate::share_token::{KeyError, SigningKey};

/// How long ahead a new key is published before it signs: whoever caches the public keys has it by then.
pub const PUBLISHED_AHEAD: Millis = Millis::from_minutes(10);
/// How often the folder is read at most.
const REREAD_AFTER: Millis = Millis::from_secs(30);
/// Keys that are in use at the same time.
const KEYS_MAX: usize = 16;

/// Which keys sign access tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SigningKeys {
    /// One secret in a file: whoever verifies could also sign, so only EnvForge itself can verify.
    Hs256 { key_file: PathBuf },
    /// Ed25519 keys in a folder; anybody can verify with the public halves at `/.well-known/jwks.json`.
    EdDsa { folder: PathBuf },
}

/// Why there are no keys to sign with.
#[derive(Debug, thiserror::Error)]
pub enum KeyRingError {
    #[error(transparent)]
    Secret(#[from] KeyFileError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("the folder of signing keys {folder} cannot be used: {reason}")]
    Folder { folder: PathBuf, reason: String },
    #[error("the folder of signing keys {folder} holds `{name}`: expected `<unix second>.pem`")]
    Name { folder: PathBuf, name: String },
    #[error("the folder of signing keys {folder} holds more than {KEYS_MAX} keys in use; remove the oldest")]
    TooMany { folder: PathBuf },
}

/// A public key as others read it (RFC 8037).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PublicKey {
    pub kty: &'static str,
    pub crv: &'static str,
    pub alg: &'static str,
    #[serde(rename = "use")]
    pub purpose: &'static str,
    pub kid: String,
    pub x: String,
}

/// A key and from when on it signs.
struct RingKey {
    id: String,
    signs_from: UnixMillis,
    encoding: EncodingKey,
    decoding: DecodingKey,
    public: String,
}

impl RingKey {
    fn new(key: &SigningKey, signs_from: UnixMillis) -> Self {
        Self {
            id: key.id().as_str().to_owned(),
            signs_from,
            encoding: key.encoding().clone(),
            decoding: DecodingKey::from_ed_der(key.public()),
            public: URL_SAFE_NO_PAD.encode(key.public()),
        }
    }
}

struct Ring {
    /// By the time from which they sign.
    keys: Vec<Arc<RingKey>>,
    read_at: UnixMillis,
}

/// What a token is signed with.
pub(crate) struct Signing {
    pub(crate) algorithm: Algorithm,
    pub(crate) kid: Option<String>,
    pub(crate) key: EncodingKey,
}

/// Signs and verifies.
pub struct KeyRing(Kind);

enum Kind {
    Secret { encoding: EncodingKey, decoding: DecodingKey },
    Ring { folder: PathBuf, ring: RwLock<Ring>, overlap: Millis },
}

impl KeyRing {
    pub(crate) fn of_secret(key: &[u8]) -> Self {
        Self(Kind::Secret { encoding: EncodingKey::from_secret(key), decoding: DecodingKey::from_secret(key) })
    }

    /// Reads the keys, or makes the first one. `overlap`: for how long a token may be presented after it was signed.
    pub fn open(keys: &SigningKeys, overlap: Millis, now: UnixMillis) -> Result<Self, KeyRingError> {
        match keys {
            SigningKeys::Hs256 { key_file } => Ok(Self::of_secret(&*key_file::open_or_create(key_file, Randomness)?)),
            SigningKeys::EdDsa { folder } => {
                make_folder(folder)?;
                let mut found = read(folder)?;
                if found.is_empty() {
                    match SigningKey::create(&file_of(folder, now)) {
                        Ok(_) => {}
                        // Another process that starts with this one was first.
                        Err(_) if !read(folder)?.is_empty() => {}
                        Err(error) => return Err(error.into()),
                    }
                    found = read(folder)?;
                }
                let ring = RwLock::new(Ring { keys: found, read_at: now });
                Ok(Self(Kind::Ring { folder: folder.clone(), ring, overlap }))
            }
        }
    }

    /// A ring of one key that is never read again.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn of_key(key: &SigningKey) -> Self {
        let keys = vec![Arc::new(RingKey::new(key, UnixMillis::EPOCH))];
        let ring = RwLock::new(Ring { keys, read_at: UnixMillis::new(u64::MAX) });
        Self(Kind::Ring { folder: PathBuf::new(), ring, overlap: Millis::from_hours(1) })
    }

    pub(crate) fn algorithm(&self) -> Algorithm {
        match &self.0 {
            Kind::Secret { .. } => Algorithm::HS256,
            Kind::Ring { .. } => Algorithm::EdDSA,
        }
    }

    /// The key that signs now.
    pub(crate) fn signing(&self, now: UnixMillis) -> Option<Signing> {
        match &self.0 {
            Kind::Secret { encoding, .. } => {
                Some(Signing { algorithm: Algorithm::HS256, kid: None, key: encoding.clone() })
            }
            Kind::Ring { ring, .. } => {
                self.reread(now, false);
                let ring = ring.read();
                // A clock that went back finds no key whose time has come: the oldest one is as good as ever.
                let key = ring.keys.iter().rev().find(|key| key.signs_from <= now).or(ring.keys.first())?;
                Some(Signing { algorithm: Algorithm::EdDSA, kid: Some(key.id.clone()), key: key.encoding.clone() })
            }
        }
    }

    /// The key that verifies what names `kid`. `None`: there is none, or it is retired.
    pub(crate) fn verifying(&self, kid: Option<&str>, now: UnixMillis) -> Option<DecodingKey> {
        match (&self.0, kid) {
            // The secret has no name; a token that names a key is another's.
            (Kind::Secret { decoding, .. }, None) => Some(decoding.clone()),
            (Kind::Secret { .. }, Some(_)) | (Kind::Ring { .. }, None) => None,
            (Kind::Ring { ring, overlap, .. }, Some(kid)) => {
                let look = || {
                    let ring = ring.read();
                    in_use(&ring.keys, *overlap, now).find(|key| key.id == kid).map(|key| key.decoding.clone())
                };
                look().or_else(|| {
                    // Perhaps another process signs with a key that this one has not read yet.
                    self.reread(now, true);
                    look()
                })
            }
        }
    }

    /// The public halves of all keys in use, the coming one too; none for a secret.
    pub fn public(&self, now: UnixMillis) -> Vec<PublicKey> {
        self.reread(now, false);
        let Kind::Ring { ring, overlap, .. } = &self.0 else { return Vec::new() };
        let shown = |key: &Arc<RingKey>| PublicKey {
            kty: "OKP",
            crv: "Ed25519",
            alg: "EdDSA",
            purpose: "sig",
            kid: key.id.clone(),
            x: key.public.clone(),
        };
        in_use(&ring.read().keys, *overlap, now).map(shown).collect()
    }

    /// Reads the folder again where the last time is long enough ago. A folder that cannot be read changes nothing. `missed`:
    /// somebody named a key that is not known, which they may do once a second and not more.
    fn reread(&self, now: UnixMillis, missed: bool) {
        let Kind::Ring { folder, ring, .. } = &self.0 else { return };
        let after = if missed { Millis::from_secs(1) } else { REREAD_AFTER };
        if now.since(ring.read().read_at) < after {
            return;
        }
        match read(folder) {
            Ok(keys) if !keys.is_empty() => *ring.write() = Ring { keys, read_at: now },
            Ok(_) => {
                tracing::warn!(folder = %folder.display(), "the folder of signing keys is empty; going on with the known ones");
                ring.write().read_at = now;
            }
            Err(error) => {
                tracing::warn!(%error, "the signing keys could not be read again; going on with the known ones");
                ring.write().read_at = now;
            }
        }
    }
}

/// Adds the key that signs from a while from now on, and takes away what verifies nothing any more. Answers the name and time
/// of the new one.
pub fn rotate(folder: &Path, overlap: Millis, now: UnixMillis) -> Result<(String, UnixMillis), KeyRingError> {
    make_folder(folder)?;
    let signs_from = UnixMillis::new(now.plus(PUBLISHED_AHEAD).get() / 1_000 * 1_000);
    let key = SigningKey::create(&file_of(folder, signs_from))?;
    let keys = read(folder)?;
    let used: Vec<_> = in_use(&keys, overlap, now).map(|key| key.signs_from).collect();
    for old in keys.iter().filter(|key| !used.contains(&key.signs_from)) {
        let path = file_of(folder, old.signs_from);
        fs::remove_file(&path)
            .map_err(|error| KeyRingError::Folder { folder: folder.to_owned(), reason: error.to_string() })?;
    }
    Ok((key.id().as_str().to_owned(), signs_from))
}

/// Keys that sign, will sign, or signed something that may still be presented.
fn in_use(keys: &[Arc<RingKey>], overlap: Millis, now: UnixMillis) -> impl Iterator<Item = &Arc<RingKey>> {
    keys.iter().enumerate().filter_map(move |(index, key)| {
        let retired = keys.get(index + 1).is_some_and(|next| next.signs_from.plus(overlap) <= now);
        (!retired).then_some(key)
    })
}

fn file_of(folder: &Path, signs_from: UnixMillis) -> PathBuf {
    folder.join(format!("{}.pem", signs_from.get() / 1_000))
}

fn make_folder(folder: &Path) -> Result<(), KeyRingError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|error| KeyRingError::Folder { folder: folder.to_owned(), reason: error.to_string() })
}

fn read(folder: &Path) -> Result<Vec<Arc<RingKey>>, KeyRingError> {
    let failed = |error: std::io::Error| KeyRingError::Folder { folder: folder.to_owned(), reason: error.to_string() };
    let mut keys = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
        let second = name.strip_suffix(".pem").and_then(|second| second.parse::<u64>().ok());
        let Some(second) = second else {
            return Err(KeyRingError::Name { folder: folder.to_owned(), name: name.chars().take(80).collect() });
        };
        let key = SigningKey::load(&folder.join(&name))?;
        keys.push(Arc::new(RingKey::new(&key, UnixMillis::new(second.saturating_mul(1_000)))));
    }
    if keys.len() > KEYS_MAX {
        return Err(KeyRingError::TooMany { folder: folder.to_owned() });
    }
    keys.sort_by_key(|key| key.signs_from);
    Ok(keys)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const NOW: UnixMillis = UnixMillis::new(1_795_000_000_000);
    const HOUR: Millis = Millis::from_hours(1);

    fn open(folder: &Path, now: UnixMillis) -> KeyRing {
        KeyRing::open(&SigningKeys::EdDsa { folder: folder.to_owned() }, HOUR, now).unwrap()
    }

    fn kid(ring: &KeyRing, now: UnixMillis) -> String {
        ring.signing(now).unwrap().kid.unwrap()
    }

    #[test]
    fn a_new_key_is_published_before_it_signs_and_an_old_one_verifies_until_what_it_signed_is_over() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("access-token");
        let ring = open(&folder, NOW);
        let first = kid(&ring, NOW);
        let (second, from) = rotate(&folder, HOUR, NOW).unwrap();
        let soon = NOW.plus(REREAD_AFTER);
        assert_eq!(kid(&ring, soon), first, "not yet");
        let published: Vec<_> = ring.public(soon).into_iter().map(|key| key.kid).collect();
        assert_eq!(published, [first.clone(), second.clone()]);
        assert_eq!(kid(&ring, from), second);
        assert!(ring.verifying(Some(&first), from).is_some());
        assert!(ring.verifying(Some(&first), from.plus(HOUR)).is_none(), "retired");
        assert!(ring.verifying(Some(&second), from.plus(HOUR)).is_some());
        // The next rotation takes the file away.
        rotate(&folder, HOUR, from.plus(HOUR)).unwrap();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
    }

    #[test]
    fn a_process_that_meets_a_key_it_has_not_read_yet_reads_it_then() {
        let directory = tempfile::tempdir().unwrap();
        let one = open(directory.path(), NOW);
        let other = open(directory.path(), NOW);
        assert_eq!(kid(&one, NOW), kid(&other, NOW), "they share the first one");
        let (second, _) = rotate(directory.path(), HOUR, NOW).unwrap();
        assert!(other.verifying(Some(&second), NOW.plus(Millis::from_secs(2))).is_some());
        assert!(other.verifying(Some("unknown"), NOW.plus(Millis::from_secs(2))).is_none());
        assert!(other.verifying(None, NOW).is_none());
    }

    #[test]
    fn a_folder_that_is_damaged_later_changes_nothing_and_at_the_start_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let ring = open(directory.path(), NOW);
        let first = kid(&ring, NOW);
        fs::write(directory.path().join("notes.txt"), "x").unwrap();
        assert_eq!(kid(&ring, NOW.plus(HOUR)), first);
        let again = KeyRing::open(&SigningKeys::EdDsa { folder: directory.path().to_owned() }, HOUR, NOW);
        assert!(matches!(again, Err(KeyRingError::Name { name, .. }) if name == "notes.txt"));
    }

    #[test]
    fn a_secret_publishes_nothing_and_takes_no_named_key() {
        let ring = KeyRing::of_secret(&[7; 32]);
        assert!(ring.public(NOW).is_empty());
        assert!(ring.verifying(None, NOW).is_some());
        assert!(ring.verifying(Some("x"), NOW).is_none());
        assert_eq!(ring.algorithm(), Algorithm::HS256);
    }
}
