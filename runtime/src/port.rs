//! Ports on one address of this machine, each handed to one service at a time.
//!
//! The kernel picks the number; the set remembers it until the reservation is dropped, because the service that gets it
//! binds it only later. What an unrelated program does in between is found out when the service fails to start.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};

const ATTEMPTS_MAX: usize = 128;

#[derive(Clone)]
pub(crate) struct Ports {
    address: IpAddr,
    taken: Arc<Mutex<HashSet<u16>>>,
}

/// One port; free for others when dropped.
pub(crate) struct ReservedPort {
    number: u16,
    ports: Ports,
}

impl Ports {
    pub(crate) fn on(address: IpAddr) -> Self {
        Self { address, taken: Arc::default() }
    }

    pub(crate) fn reserve(&self) -> io::Result<ReservedPort> {
        // Held until the end, so that the kernel does not offer the same number again.
        let mut passed_over = Vec::new();
        for _ in 0..ATTEMPTS_MAX {
            let listener = TcpListener::bind((self.address, 0))?;
            let number = listener.local_addr()?.port();
            if self.taken.lock().unwrap_or_else(PoisonError::into_inner).insert(number) {
                return Ok(ReservedPort { number, ports: self.clone() });
            }
            passed_over.push(listener);
        }
        Err(io::Error::new(io::ErrorKind::AddrNotAvailable, "the system offers only ports that are handed out already"))
    }
}

impl ReservedPort {
    pub(crate) fn number(&self) -> u16 {
        self.number
    }

    pub(crate) fn address(&self) -> SocketAddr {
        (self.ports.address, self.number).into()
    }
}

impl Drop for ReservedPort {
    fn drop(&mut self) {
        self.ports.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}

/// Whether some program listens there now.
pub(crate) fn is_taken(address: SocketAddr) -> bool {
    matches!(TcpListener::bind(address), Err(error) if error.kind() == io::ErrorKind::AddrInUse)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn no_port_is_handed_out_twice_and_a_dropped_one_comes_back() {
        let ports = Ports::on(std::net::Ipv4Addr::LOCALHOST.into());
        let held: Vec<_> = (0..200).map(|_| ports.reserve().unwrap()).collect();
        let distinct: HashSet<_> = held.iter().map(ReservedPort::number).collect();
        assert_eq!(distinct.len(), 200);
        drop(held);
        assert!(ports.taken.lock().unwrap().is_empty());
    }
}
