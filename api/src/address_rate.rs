//! How often one address may ask for what costs something before anybody has proven who they are.
//!
//! Counted in the memory of this process, which is bounded. Not here: failed sign-ins (identity's `lockout`, which all
//! processes count together).

use std::collections::HashMap;
use std::net::IpAddr;

use envforge_domain::network::customer_of;
use envforge_domain::time::{Millis, UnixMillis};
use parking_lot::Mutex;

use crate::edge::Arrival;
use crate::problem::Problem;

const WINDOW: Millis = Millis::from_minutes(1);
/// Addresses that are counted; one more, and all begin anew.
const ADDRESSES_MAX: usize = 65_536;

/// So many in a minute from each address.
pub(crate) struct AddressRate {
    /// What the next one is answered.
    code: &'static str,
    per_minute: u32,
    counts: Mutex<(UnixMillis, HashMap<IpAddr, u32>)>,
}

impl AddressRate {
    /// `code` of the catalogue. `per_minute`: 0 for no limit.
    pub(crate) fn new(code: &'static str, per_minute: u32) -> Self {
        Self { code, per_minute, counts: Mutex::default() }
    }

    /// Counts one, or refuses it until the minute is over.
    pub(crate) fn take(&self, arrival: &Arrival) -> Result<(), Problem> {
        if self.per_minute == 0 {
            return Ok(());
        }
        let address = customer_of(arrival.address);
        let mut counts = self.counts.lock();
        let (since, known) = &mut *counts;
        if arrival.now.since(*since) >= WINDOW || known.len() >= ADDRESSES_MAX {
            known.clear();
            *since = arrival.now;
        }
        let count = known.entry(address).or_default();
        if *count >= self.per_minute {
            let left = WINDOW.get().saturating_sub(arrival.now.since(*since).get()).div_ceil(1_000);
            let detail = format!("This address asked too often within a minute. Try again in {left} seconds.");
            return Err(Problem::new(self.code, detail).retry_after_s(left));
        }
        *count += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use envforge_domain::ids::CorrelationId;

    use super::*;

    const START: u64 = 1_795_000_000_000;

    fn at(rate: &AddressRate, address: &str, now: u64) -> Result<(), (&'static str, Option<u64>)> {
        let correlation = CorrelationId::from_uuid(uuid::Uuid::from_u128(1));
        rate.take(&Arrival { correlation, now: UnixMillis::new(now), address: address.parse().unwrap() })
            .map_err(|problem| (problem.code(), problem.retry_after()))
    }

    #[test]
    fn an_address_has_so_many_a_minute_and_its_neighbours_their_own() {
        let rate = AddressRate::new("too_many_sign_ins", 2);
        let at = |address: &str, now: u64| at(&rate, address, now);
        assert_eq!([at("192.0.2.1", START), at("192.0.2.1", START)], [Ok(()), Ok(())]);
        assert_eq!(at("192.0.2.1", START + 58_001), Err(("too_many_sign_ins", Some(2))));
        assert_eq!(at("192.0.2.2", START), Ok(()));
        assert_eq!(at("192.0.2.1", START + 60_000), Ok(()));
        assert_eq!([at("2001:db8::1", START + 60_000), at("2001:db8::2", START + 60_000)], [Ok(()), Ok(())]);
        assert_eq!(at("2001:db8::3", START + 60_000), Err(("too_many_sign_ins", Some(60))));
    }

    #[test]
    fn no_limit_counts_nothing_and_many_addresses_take_bounded_memory() {
        let off = AddressRate::new("too_many_requests", 0);
        assert!((0..1_000).all(|_| at(&off, "192.0.2.1", START).is_ok()));
        let rate = AddressRate::new("too_many_requests", 1);
        for number in 0..=ADDRESSES_MAX as u32 {
            at(&rate, &std::net::Ipv4Addr::from(number).to_string(), START).unwrap();
        }
        assert_eq!(rate.counts.lock().1.len(), 1);
    }
}
