//! How often somebody may try to sign in: growing delays per account and per address, in bounded memory.
//!
//! An attempt counts as failed when it begins and is forgiven when it succeeds, so that a thousand attempts at the same
//! moment are a thousand attempts. Unknown accounts are counted like known ones and cannot be told apart.

use std::net::IpAddr;
use std::num::NonZeroUsize;

use envforge_domain::secret::TokenDigest;
use envforge_domain::time::{Millis, UnixMillis};
use lru::LruCache;
use parking_lot::Mutex;

/// Accounts and addresses that are remembered; the one that was quiet for longest goes first.
const REMEMBERED_MAX: NonZeroUsize = NonZeroUsize::new(65_536).expect("it is not zero");

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

    fn delay(&self, failures: u32) -> Millis {
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

#[derive(Clone, Copy)]
struct Failures {
    count: u32,
    last: UnixMillis,
}

struct Counters<K> {
    rule: LockoutRule,
    failures: LruCache<K, Failures>,
}

impl<K: std::hash::Hash + Eq + Copy> Counters<K> {
    fn new(rule: LockoutRule) -> Self {
        Self { rule, failures: LruCache::new(REMEMBERED_MAX) }
    }

    fn check(&mut self, key: K, now: UnixMillis) -> Result<(), LockedOut> {
        let Some(found) = self.failures.get(&key) else { return Ok(()) };
        if now.since(found.last) >= self.rule.forget_after {
            self.failures.pop(&key);
            return Ok(());
        }
        let open_at = found.last.plus(self.rule.delay(found.count));
        if now < open_at { Err(LockedOut { retry_after: open_at.since(now) }) } else { Ok(()) }
    }

    fn count(&mut self, key: K, now: UnixMillis) {
        let failures = self.failures.get_or_insert_mut(key, || Failures { count: 0, last: now });
        failures.count = failures.count.saturating_add(1);
        failures.last = now;
    }

    fn forgive_one(&mut self, key: K) {
        if let Some(found) = self.failures.get_mut(&key) {
            found.count = found.count.saturating_sub(1);
        }
    }
}

/// An IPv6 customer has a whole /64: one address each would be a free attempt each.
fn group(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(std::net::Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

/// Counts failed attempts.
pub struct Lockout {
    accounts: Mutex<Counters<TokenDigest>>,
    addresses: Mutex<Counters<IpAddr>>,
}

impl Lockout {
    pub fn new(account: LockoutRule, address: LockoutRule) -> Self {
        Self { accounts: Mutex::new(Counters::new(account)), addresses: Mutex::new(Counters::new(address)) }
    }

    /// Lets one attempt through and counts it as failed until `succeeded` is called.
    pub fn begin(&self, account: &str, address: IpAddr, now: UnixMillis) -> Result<Attempt<'_>, LockedOut> {
        // The digest keeps the entries small whatever was typed, and mistyped passwords out of memory.
        let account = TokenDigest::of(account.as_bytes());
        let address = group(address);
        // INVARIANT: both locks in this order; an attempt counts in both or in none.
        let (mut accounts, mut addresses) = (self.accounts.lock(), self.addresses.lock());
        accounts.check(account, now)?;
        addresses.check(address, now)?;
        accounts.count(account, now);
        addresses.count(address, now);
        Ok(Attempt { lockout: self, account, address })
    }
}

/// An attempt under way; a failed one unless it says otherwise.
#[must_use = "an attempt that succeeded must say so"]
pub struct Attempt<'a> {
    lockout: &'a Lockout,
    account: TokenDigest,
    address: IpAddr,
}

impl Attempt<'_> {
    /// Forgets the account's failures, and of the address's only this one: a thief with an account of their own could
    /// otherwise begin anew whenever they like.
    pub fn succeeded(self) {
        self.lockout.accounts.lock().failures.pop(&self.account);
        self.lockout.addresses.lock().forgive_one(self.address);
    }

    /// The attempt was never made: our own failure, not theirs.
    pub fn withdrawn(self) {
        self.lockout.accounts.lock().forgive_one(self.account);
        self.lockout.addresses.lock().forgive_one(self.address);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn lockout() -> Lockout {
        Lockout::new(LockoutRule::ACCOUNT, LockoutRule::ADDRESS)
    }

    fn fail(lockout: &Lockout, account: &str, address: IpAddr, now: UnixMillis) -> Result<(), LockedOut> {
        lockout.begin(account, address, now).map(drop)
    }

    #[test]
    fn the_delay_doubles_after_the_free_failures_and_stops_growing() {
        let rule = LockoutRule::ACCOUNT;
        let delays: Vec<_> = (4..9).map(|count| rule.delay(count).as_secs()).collect();
        assert_eq!(delays, [0, 0, 1, 2, 4]);
        assert_eq!(rule.delay(70), rule.delay_max);
        assert_eq!(rule.delay(u32::MAX), rule.delay_max);
    }

    #[test]
    fn an_account_is_locked_from_every_address_and_opens_after_the_delay() {
        let lockout = lockout();
        let now = UnixMillis::new(1_000_000);
        for count in 0..6 {
            assert!(fail(&lockout, "ada@acme.test", HOME, now).is_ok(), "{count}");
        }
        let elsewhere = "198.51.100.7".parse().unwrap();
        let locked = fail(&lockout, "ada@acme.test", elsewhere, now).unwrap_err();
        assert_eq!(locked.retry_after, Millis::from_secs(1));
        assert!(fail(&lockout, "bob@acme.test", elsewhere, now).is_ok());
        assert!(fail(&lockout, "ada@acme.test", elsewhere, now.plus(Millis::from_secs(1))).is_ok());
        assert!(fail(&lockout, "ada@acme.test", elsewhere, now.plus(Millis::from_secs(2))).is_err());
    }

    #[test]
    fn attempts_at_the_same_moment_all_count() {
        let lockout = lockout();
        let now = UnixMillis::new(5);
        let attempts: Vec<_> = (0..6).map(|_| lockout.begin("ada", HOME, now).unwrap()).collect();
        assert!(lockout.begin("ada", HOME, now).is_err());
        drop(attempts);
        assert!(lockout.begin("ada", HOME, now).is_err());
    }

    #[test]
    fn success_forgives_the_account_but_not_the_address() {
        let lockout = lockout();
        let now = UnixMillis::new(5);
        for index in 0..20 {
            fail(&lockout, &format!("victim-{index}"), HOME, now).unwrap();
            lockout.begin("thief", HOME, now).unwrap().succeeded();
        }
        fail(&lockout, "victim-20", HOME, now).unwrap();
        assert!(fail(&lockout, "victim-21", HOME, now).is_err());
    }

    #[test]
    fn neighbours_in_one_ipv6_network_share_a_counter() {
        let lockout = lockout();
        let now = UnixMillis::new(5);
        for index in 0..21_u16 {
            let address = IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, index));
            fail(&lockout, &index.to_string(), address, now).unwrap();
        }
        let locked = |text: &str| fail(&lockout, "next", text.parse().unwrap(), now).is_err();
        assert!(locked("2001:db8:0:1:ffff::1"));
        assert!(!locked("2001:db8:0:2::1"));
    }

    #[test]
    fn quiet_makes_failures_forgotten() {
        let lockout = lockout();
        let now = UnixMillis::new(5);
        for _ in 0..6 {
            fail(&lockout, "ada", HOME, now).unwrap();
        }
        let later = now.plus(Millis::from_hours(1));
        for _ in 0..6 {
            fail(&lockout, "ada", HOME, later).unwrap();
        }
        assert!(fail(&lockout, "ada", HOME, later).is_err());
    }
}
