//! How often somebody may try to sign in: growing delays per account and per address, counted in the credential table by
//! all processes together.
//!
//! An attempt counts as failed when it begins and is forgiven when it succeeds, so that a thousand attempts at the same
//! moment are a thousand attempts. Unknown accounts are counted like known ones and cannot be told apart.

use std::net::IpAddr;
use std::num::NonZeroUsize;

use envforge_domain::network::customer_of;
use envforge_domain::secret::TokenDigest;
use envforge_domain::time::{Millis, UnixMillis};
use envforge_domain::user::EmailAddress;
use lru::LruCache;
use parking_lot::Mutex;

use crate::credentials::{Counting, Credentials, CredentialsError, StoredAccount};

/// Refusals that are remembered; the one that was quiet for longest goes first.
const REMEMBERED_MAX: NonZeroUsize = NonZeroUsize::new(65_536).expect("it is not zero");

/// How long a refusal is repeated from memory: as much later than its word another process may let somebody in again.
const KNOWN_FOR: Millis = Millis::from_secs(1);

/// From how many failures on, how fast, and how far the delay grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockoutRule {
    /// Failures without any delay.
    pub free: u32,
    /// After one more; doubles with each further failure.
    pub first_delay: Millis,
    pub delay_max: Millis,
    /// Failures are forgotten after this much quiet.
    pub forget_after: Millis,
}

impl LockoutRule {
    /// A person who mistypes waits seconds; somebody who guesses gets under 300 tries a day.
    pub const ACCOUNT: Self = Self {
        free: 5,
        first_delay: Millis::from_secs(1),
        delay_max: Millis::from_minutes(5),
        forget_after: Millis::from_hours(1),
    };
    /// Wider, for an office behind one address.
    pub const ADDRESS: Self = Self {
        free: 20,
        first_delay: Millis::from_secs(1),
        delay_max: Millis::from_minutes(15),
        forget_after: Millis::from_hours(1),
    };

    /// How long nobody may try after what was found. `None`: another attempt may be made now.
    pub(crate) fn wait(&self, found: Failures, now: UnixMillis) -> Option<Millis> {
        let delay = self.delay(found.count);
        let open_at = found.last.plus(delay);
        // Without a delay nobody waits, also not for what came a moment later, or by a clock that is ahead, and was counted first.
        let waits = delay > Millis::ZERO && now < open_at && now.since(found.last) < self.forget_after;
        waits.then(|| open_at.since(now))
    }

    /// After so many failures.
    pub(crate) fn delay(&self, failures: u32) -> Millis {
        match failures.checked_sub(self.free) {
            None | Some(0) => Millis::ZERO,
            Some(over) => {
                let factor = 1_u64.checked_shl(over - 1).unwrap_or(u64::MAX);
                Millis::new(self.first_delay.get().saturating_mul(factor)).min(self.delay_max)
            }
        }
    }
}

/// Too many failures: nothing was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many failed attempts; try again in {retry_after}")]
pub struct LockedOut {
    pub retry_after: Millis,
}

/// What is known of somebody who failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failures {
    pub(crate) count: u32,
    pub(crate) last: UnixMillis,
}

impl Default for Failures {
    fn default() -> Self {
        Self { count: 0, last: UnixMillis::EPOCH }
    }
}

/// A refusal that need not be asked for again so soon.
#[derive(Clone, Copy)]
struct Refused {
    open_at: UnixMillis,
    known_until: UnixMillis,
}

/// Counts failed attempts in the credential table, for all processes that share it.
pub struct Lockout {
    credentials: Credentials,
    counting: Counting,
    /// INVARIANT: nothing is let through because of this; it only refuses a little longer what the table refused.
    refused: Mutex<LruCache<String, Refused>>,
}

impl Lockout {
    pub fn new(credentials: Credentials, account: LockoutRule, address: LockoutRule) -> Self {
        let counting = Counting::new([account, address]);
        Self { credentials, counting, refused: Mutex::new(LruCache::new(REMEMBERED_MAX)) }
    }

    /// Refuses from memory what the table refused a moment ago: a flood asks nobody.
    fn check_memory(&self, keys: [&str; 2], now: UnixMillis) -> Result<(), LockedOut> {
        let mut refused = self.refused.lock();
        for key in keys {
            match refused.get(key) {
                Some(found) if now < found.open_at && now < found.known_until => {
                    return Err(LockedOut { retry_after: found.open_at.since(now) });
                }
                Some(_) | None => {}
            }
        }
        Ok(())
    }

    /// Lets one attempt through and counts it as failed until `succeeded` is called. `typed`: as an e-mail address, whatever
    /// it is; `email`: what of it could be somebody's. With the attempt comes their account.
    pub(crate) async fn begin(
        &self,
        typed: &str,
        email: Option<&EmailAddress>,
        address: IpAddr,
        now: UnixMillis,
    ) -> Result<Result<(Attempt<'_>, Option<StoredAccount>), LockedOut>, CredentialsError> {
        // The digest keeps the entries small whatever was typed, and mistyped passwords out of the table.
        let account = format!("account:{}", hex::encode(TokenDigest::of(typed.as_bytes()).as_bytes()));
        let address = format!("address:{}", customer_of(address));
        if let Err(locked) = self.check_memory([&account, &address], now) {
            return Ok(Err(locked));
        }
        match self.credentials.count_attempt(&self.counting, [&account, &address], email, now).await? {
            Ok(found) => {
                let attempt = Attempt { lockout: self, account, address };
                match found {
                    Ok(found) => Ok(Ok((attempt, found))),
                    Err(damaged) => {
                        attempt.withdrawn().await?;
                        Err(damaged)
                    }
                }
            }
            Err((which, locked)) => {
                let open_at = now.plus(locked.retry_after);
                let known_until = now.plus(KNOWN_FOR);
                let key = if which == 0 { account } else { address };
                self.refused.lock().put(key, Refused { open_at, known_until });
                Ok(Err(locked))
            }
        }
    }
}

/// An attempt under way; a failed one unless it says otherwise.
#[must_use = "an attempt that succeeded must say so"]
pub struct Attempt<'a> {
    lockout: &'a Lockout,
    account: String,
    address: String,
}

impl Attempt<'_> {
    /// Forgets the account's failures, and of the address's only this one: a thief with an account of their own could
    /// otherwise begin anew whenever they like.
    pub async fn succeeded(self) -> Result<(), CredentialsError> {
        self.lockout.credentials.take_back([&self.account, &self.address], true).await
    }

    /// The attempt was never made: our own failure, not theirs.
    pub async fn withdrawn(self) -> Result<(), CredentialsError> {
        self.lockout.credentials.take_back([&self.account, &self.address], false).await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use futures_util::FutureExt as _;

    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    struct House {
        lockout: Lockout,
        credentials: Credentials,
        _directory: tempfile::TempDir,
    }

    impl House {
        async fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let credentials = Credentials::open_sqlite(&directory.path().join("credentials.sqlite")).await.unwrap();
            Self { lockout: lockout(&credentials), credentials, _directory: directory }
        }

        async fn fail(&self, account: &str, address: IpAddr, now: UnixMillis) -> Result<(), LockedOut> {
            begin(&self.lockout, account, address, now).await.map(drop)
        }
    }

    async fn begin<'a>(
        lockout: &'a Lockout,
        typed: &str,
        address: IpAddr,
        now: UnixMillis,
    ) -> Result<Attempt<'a>, LockedOut> {
        lockout.begin(typed, None, address, now).await.unwrap().map(|(attempt, _)| attempt)
    }

    fn lockout(credentials: &Credentials) -> Lockout {
        Lockout::new(credentials.clone(), LockoutRule::ACCOUNT, LockoutRule::ADDRESS)
    }

    #[test]
    fn the_delay_doubles_after_the_free_failures_and_stops_growing() {
        let rule = LockoutRule::ACCOUNT;
        let delays: Vec<_> = (4..9).map(|count| rule.delay(count).as_secs()).collect();
        assert_eq!(delays, [0, 0, 1, 2, 4]);
        assert_eq!(rule.delay(70), rule.delay_max);
        assert_eq!(rule.delay(u32::MAX), rule.delay_max);
    }

    #[tokio::test]
    async fn an_account_is_locked_from_every_address_and_opens_after_the_delay() {
        let house = House::new().await;
        let now = UnixMillis::new(1_000_000);
        for count in 0..6 {
            assert!(house.fail("ada@acme.test", HOME, now).await.is_ok(), "{count}");
        }
        let elsewhere = "198.51.100.7".parse().unwrap();
        for _ in 0..2 {
            let locked = house.fail("ada@acme.test", elsewhere, now).await.unwrap_err();
            assert_eq!(locked.retry_after, Millis::from_secs(1));
        }
        assert!(house.fail("bob@acme.test", elsewhere, now).await.is_ok());
        assert!(house.fail("ada@acme.test", elsewhere, now.plus(Millis::from_secs(1))).await.is_ok());
        assert!(house.fail("ada@acme.test", elsewhere, now.plus(Millis::from_secs(2))).await.is_err());
    }

    #[tokio::test]
    async fn processes_that_share_the_table_count_together_and_a_restart_forgets_nothing() {
        let house = House::new().await;
        let other = lockout(&house.credentials);
        let now = UnixMillis::new(1_000_000);
        for _ in 0..3 {
            house.fail("ada", HOME, now).await.unwrap();
            begin(&other, "ada", HOME, now).await.map(drop).unwrap();
        }
        assert!(house.fail("ada", HOME, now).await.is_err());
        assert!(begin(&other, "ada", HOME, now).await.is_err());
        let restarted = lockout(&house.credentials);
        assert!(begin(&restarted, "ada", HOME, now).await.is_err());
        // Success at one of them is success at all, once what they remember is a moment old.
        let later = now.plus(Millis::from_secs(1));
        begin(&other, "ada", HOME, later).await.unwrap().succeeded().await.unwrap();
        assert!(house.fail("ada", HOME, later.plus(KNOWN_FOR)).await.is_ok());
    }

    #[tokio::test]
    async fn attempts_at_the_same_moment_all_count() {
        let house = House::new().await;
        let now = UnixMillis::new(5);
        let attempts = futures_util::future::join_all((0..12).map(|_| house.fail("ada", HOME, now))).await;
        assert_eq!(attempts.iter().filter(|attempt| attempt.is_ok()).count(), 6);
        assert!(house.fail("ada", HOME, now).await.is_err());
    }

    #[tokio::test]
    async fn an_attempt_that_is_given_up_half_way_counts_and_holds_up_nobody() {
        let house = House::new().await;
        let now = UnixMillis::new(5);
        house.fail("ada", HOME, now).await.unwrap();
        for _ in 0..5 {
            let attempt = Box::pin(house.fail("ada", HOME, now));
            // Sent, and not yet answered: a client that goes away.
            assert!(attempt.now_or_never().is_none());
        }
        assert!(house.fail("ada", HOME, now).await.is_err());
        house.fail("bob", HOME, now).await.unwrap();
    }

    #[tokio::test]
    async fn of_attempts_that_are_free_none_waits_for_one_that_came_after_it() {
        let house = House::new().await;
        let now = UnixMillis::new(10_000);
        house.fail("ada", HOME, now.plus(Millis::from_secs(2))).await.unwrap();
        house.fail("ada", HOME, now).await.unwrap();
        house.fail("bob", HOME, now).await.unwrap();
    }

    #[tokio::test]
    async fn success_forgives_the_account_but_not_the_address() {
        let house = House::new().await;
        let now = UnixMillis::new(5);
        for index in 0..20 {
            house.fail(&format!("victim-{index}"), HOME, now).await.unwrap();
            begin(&house.lockout, "thief", HOME, now).await.unwrap().succeeded().await.unwrap();
        }
        house.fail("victim-20", HOME, now).await.unwrap();
        assert!(house.fail("victim-21", HOME, now).await.is_err());
    }

    #[tokio::test]
    async fn an_attempt_that_was_withdrawn_counts_nowhere() {
        let house = House::new().await;
        let now = UnixMillis::new(5);
        for _ in 0..40 {
            begin(&house.lockout, "ada", HOME, now).await.unwrap().withdrawn().await.unwrap();
        }
        assert!(house.fail("ada", HOME, now).await.is_ok());
    }

    #[tokio::test]
    async fn neighbours_in_one_ipv6_network_share_a_counter() {
        let house = House::new().await;
        let now = UnixMillis::new(5);
        for index in 0..21_u16 {
            let address = IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, index));
            house.fail(&index.to_string(), address, now).await.unwrap();
        }
        assert!(house.fail("next", "2001:db8:0:1:ffff::1".parse().unwrap(), now).await.is_err());
        assert!(house.fail("next", "2001:db8:0:2::1".parse().unwrap(), now).await.is_ok());
    }

    #[tokio::test]
    async fn quiet_makes_failures_forgotten() {
        let house = House::new().await;
        let now = UnixMillis::new(5);
        for _ in 0..6 {
            house.fail("ada", HOME, now).await.unwrap();
        }
        let later = now.plus(Millis::from_hours(1));
        for _ in 0..6 {
            house.fail("ada", HOME, later).await.unwrap();
        }
        assert!(house.fail("ada", HOME, later).await.is_err());
    }
}
