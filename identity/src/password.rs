//! Which passwords are accepted, and their bcrypt hashes, made off the async threads behind a bounded queue.
//!
//! Not here: who has which password (`accounts`) and how often somebody may try (`lockout`).

use std::collections::HashSet;
use std::sync::Arc;

use envforge_domain::secret::Secret;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::common_passwords;
use crate::randomness::Randomness;
use crate::yielding_bcrypt;

/// Fewest characters of a new password.
pub const PASSWORD_CHARS_MIN: usize = 12;
/// bcrypt reads no more than this; a longer password is refused and never cut (SPEC, "Identity").
pub const PASSWORD_BYTES_MAX: usize = 72;
/// The cost where none is configured: about a quarter of a second on a server of 2026.
pub const BCRYPT_COST_DEFAULT: u32 = 12;
/// Sign-ins that may wait for each worker, about four seconds' worth: whoever waits for longer has given up, and their
/// password would be checked for nobody.
pub const WAITING_PER_WORKER: usize = 15;
/// Of the threads that hash, as `nice` counts.
#[cfg(target_os = "linux")]
const HASHING_NICENESS: i32 = 10;

/// Why a password is not accepted as a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WeakPassword {
    #[error("a password must have at least {min} characters, this one has {found}")]
    TooShort { min: usize, found: usize },
    #[error("a password must have at most {max} bytes, this one has {found}")]
    TooLong { max: usize, found: usize },
    #[error("this password is among the first ones that anybody would guess; choose another")]
    Common,
    #[error("a password must not hold control characters")]
    ControlCharacter,
}

impl WeakPassword {
    /// Stable, for programs.
    pub const fn code(self) -> &'static str {
        match self {
            Self::TooShort { .. } => "password_too_short",
            Self::TooLong { .. } => "password_too_long",
            Self::Common => "password_common",
            Self::ControlCharacter => "password_control_character",
        }
    }
}

/// Holds a new password against the rules.
pub fn check(password: &Secret) -> Result<(), WeakPassword> {
    let text = password.expose();
    let found = text.chars().count();
    if found < PASSWORD_CHARS_MIN {
        return Err(WeakPassword::TooShort { min: PASSWORD_CHARS_MIN, found });
    }
    if text.len() > PASSWORD_BYTES_MAX {
        return Err(WeakPassword::TooLong { max: PASSWORD_BYTES_MAX, found: text.len() });
    }
    if text.chars().any(char::is_control) {
        return Err(WeakPassword::ControlCharacter);
    }
    if is_common(text) { Err(WeakPassword::Common) } else { Ok(()) }
}

/// Whether it is one of the listed ones, one of them with digits and signs around it, or one repeated.
fn is_common(text: &str) -> bool {
    let lower = zeroize::Zeroizing::new(text.to_lowercase());
    let core = lower.trim_matches(|c: char| c.is_ascii_digit() || c.is_ascii_punctuation() || c == ' ');
    // Nothing but digits and signs of few kinds: `123123123123`, `111111111111`.
    let kinds = lower.chars().collect::<HashSet<_>>().len();
    kinds <= 4
        || common_passwords::contains(&lower)
        || common_passwords::contains(core)
        || is_sequence(&lower)
        || (1..=lower.len() / 2)
            .any(|length| repeats(&lower, length) && (length < 4 || common_passwords::contains(&lower[..length])))
}

fn repeats(text: &str, length: usize) -> bool {
    text.is_char_boundary(length)
        && text.len().is_multiple_of(length)
        && text.as_bytes().chunks(length).all(|chunk| chunk == &text.as_bytes()[..length])
}

/// `abcdefghijkl`, `987654321098`: each character one more, or one less, than the one before.
fn is_sequence(text: &str) -> bool {
    let step = |pair: &[u8], by: i16| (i16::from(pair[1]) - i16::from(pair[0]) - by).rem_euclid(10) == 0;
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let exact = |by: i16| text.as_bytes().windows(2).all(|pair| i16::from(pair[1]) - i16::from(pair[0]) == by);
    exact(1) || exact(-1) || (digits && [1, -1].iter().any(|by| text.as_bytes().windows(2).all(|pair| step(pair, *by))))
}

/// Hashing is expensive on purpose, so only so many may wait for it.
#[derive(Clone)]
pub struct PasswordHasher {
    cost: u32,
    /// Hashes at the same time.
    workers: Arc<Semaphore>,
    /// Hashes running or waiting.
    places: Arc<Semaphore>,
    /// Compared against where there is no account, so that an unknown one costs the same.
    decoy: Arc<str>,
}

/// Why no hash was made or compared.
#[derive(Debug, thiserror::Error)]
pub enum HashError {
    #[error("too many passwords are being checked right now; try again in a moment")]
    Busy,
    #[error("the password could not be hashed: {0}")]
    Failed(String),
}

impl PasswordHasher {
    /// `cost` is bcrypt's (4 to 31), `workers` the hashes at the same time, `waiting_max` those that may wait for one.
    pub fn new(cost: u32, workers: usize, waiting_max: usize) -> Result<Self, HashError> {
        let decoy =
            bcrypt::hash("a decoy that nobody can sign in with", cost).map_err(|e| HashError::Failed(e.to_string()))?;
        Ok(Self {
            cost,
            workers: Arc::new(Semaphore::new(workers.max(1))),
            places: Arc::new(Semaphore::new(workers.max(1) + waiting_max)),
            decoy: decoy.into(),
        })
    }

    /// A place in the queue, or `Busy` at once.
    pub fn reserve(&self) -> Result<HashingPlace, HashError> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| HashError::Busy)?;
        Ok(HashingPlace { hasher: self.clone(), place })
    }

    /// Whether a stored hash was made with another cost than is configured now.
    pub fn is_outdated(&self, hash: &str) -> bool {
        hash.parse::<bcrypt::HashParts>().map_or(true, |parts| parts.get_cost() != self.cost)
    }
}

/// The right to have one password hashed or compared.
pub struct HashingPlace {
    hasher: PasswordHasher,
    place: OwnedSemaphorePermit,
}

impl HashingPlace {
    /// Hashes an accepted password.
    pub async fn hash(self, password: Secret) -> Result<String, HashError> {
        let cost = self.hasher.cost;
        let mut salt = [0; 16];
        Randomness.fill(&mut salt).map_err(|error| HashError::Failed(error.to_string()))?;
        self.run(move || yielding_bcrypt::hash(password.expose(), cost, salt)).await
    }

    /// Compares; with `None` for the stored hash it takes as long and says no.
    pub async fn verify(self, password: Secret, stored: Option<String>) -> Result<bool, HashError> {
        let known = stored.is_some();
        let hash = stored.unwrap_or_else(|| self.hasher.decoy.to_string());
        let matches = self
            .run(move || {
                // A longer password is never cut: bcrypt would accept whatever follows its 72nd byte.
                let fits = password.expose().len() <= PASSWORD_BYTES_MAX;
                let text = if fits { password.expose() } else { "" };
                yielding_bcrypt::verify(text, &hash).map(|matches| matches && fits)
            })
            .await?;
        Ok(matches && known)
    }

    async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> bcrypt::BcryptResult<T> + Send + 'static,
    ) -> Result<T, HashError> {
        let worker = Arc::clone(&self.hasher.workers)
            .acquire_owned()
            .await
            .map_err(|_| HashError::Failed("the hasher was closed".into()))?;
        let place = self.place;
        let (answer, answered) = oneshot::channel();
        let thread = std::thread::Builder::new().name("envforge-bcrypt".to_owned());
        let started = thread.spawn(move || {
            step_back();
            let result = work();
            // The permits go along: a caller who hangs up does not make room for the next one while the hash still runs.
            drop((worker, place));
            let _ = answer.send(result);
        });
        started.map_err(|error| HashError::Failed(error.to_string()))?;
        let result = answered.await.map_err(|_| HashError::Failed("the hashing thread ended badly".into()))?;
        result.map_err(|error| HashError::Failed(error.to_string()))
    }
}

/// Lets everything else of this machine go first: whoever signs in waits for a quarter of a second anyway. On Linux it is the
/// thread's alone. It decides who goes next, and `yielding_bcrypt` how soon.
fn step_back() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, HASHING_NICENESS) {
        tracing::debug!(%error, "hashing passwords at the priority of everything else");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::new(text.to_owned())
    }

    #[test]
    fn short_long_and_common_passwords_are_refused_and_good_ones_are_not() {
        assert_eq!(check(&secret("elevenchars")), Err(WeakPassword::TooShort { min: 12, found: 11 }));
        assert_eq!(check(&secret(&"é".repeat(37))), Err(WeakPassword::TooLong { max: 72, found: 74 }));
        for common in [
            "password1234",
            "Password!2026",
            "passwordpassword",
            "qwertyuiop123",
            "123456789012",
            "111111111111",
            "abababababab",
            "abcdefghijkl",
            "LetMeIn!!!!!!!",
            "administrator",
            "abcabcabcabc",
            "!!correcthorsebatterystaple",
            "Dolphin!!2026",
            "trustno1trustno1",
        ] {
            assert_eq!(check(&secret(common)), Err(WeakPassword::Common), "{common}");
        }
        assert_eq!(check(&secret("tab\there and more")), Err(WeakPassword::ControlCharacter));
        for good in ["plum kite engine 7", "dämmerung über rom", "fjord-42-lattice-oak", "gk4x9tq2m8vz"] {
            assert_eq!(check(&secret(good)), Ok(()), "{good}");
        }
    }

    #[tokio::test]
    async fn a_password_beyond_72_bytes_never_matches_its_own_beginning() {
        let hasher = PasswordHasher::new(4, 1, 4).unwrap();
        let full = "a".repeat(72);
        let hash = hasher.reserve().unwrap().hash(secret(&full)).await.unwrap();
        assert!(hasher.reserve().unwrap().verify(secret(&full), Some(hash.clone())).await.unwrap());
        assert!(!hasher.reserve().unwrap().verify(secret(&format!("{full}b")), Some(hash.clone())).await.unwrap());
        assert!(!hasher.reserve().unwrap().verify(secret(&full[..71]), Some(hash)).await.unwrap());
    }

    #[tokio::test]
    async fn the_decoy_never_lets_anybody_in() {
        let hasher = PasswordHasher::new(4, 1, 4).unwrap();
        let text = "a decoy that nobody can sign in with";
        assert!(!hasher.reserve().unwrap().verify(secret(text), None).await.unwrap());
    }

    #[tokio::test]
    async fn a_full_queue_answers_busy_at_once_and_empties_again() {
        let hasher = PasswordHasher::new(4, 1, 1).unwrap();
        let (first, second) = (hasher.reserve().unwrap(), hasher.reserve().unwrap());
        assert!(matches!(hasher.reserve(), Err(HashError::Busy)));
        first.hash(secret("whatever it may be")).await.unwrap();
        let third = hasher.reserve().unwrap();
        assert!(matches!(hasher.reserve(), Err(HashError::Busy)));
        drop((second, third));
        assert!(hasher.reserve().is_ok());
    }

    #[test]
    fn a_hash_of_another_cost_is_outdated() {
        let hasher = PasswordHasher::new(5, 1, 1).unwrap();
        assert!(hasher.is_outdated(&bcrypt::hash("x", 4).unwrap()));
        assert!(!hasher.is_outdated(&bcrypt::hash("x", 5).unwrap()));
    }
}
