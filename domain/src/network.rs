//! Addresses of clients, as limits count them.

use std::net::{IpAddr, Ipv6Addr};

/// Whom an address stands for: itself, or the /64 that an IPv6 customer has whole. One address of it each would be a limit each.
pub fn customer_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_ipv6_customer_is_one_and_a_mapped_address_is_its_own() {
        let of = |address: &str| customer_of(address.parse().unwrap()).to_string();
        assert_eq!((of("192.0.2.1"), of("::ffff:192.0.2.1")), ("192.0.2.1".to_owned(), "192.0.2.1".to_owned()));
        assert_eq!(
            (of("2001:db8:0:1:2::3"), of("2001:db8:0:2::3")),
            ("2001:db8:0:1::".to_owned(), "2001:db8:0:2::".to_owned())
        );
    }
}
