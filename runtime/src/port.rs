//! Ports of this machine, each handed to one service at a time.
//!
//! The kernel picks the number; the set remembers it until the reservation is dropped, because the service that gets it
//! binds it only later. Keepers of one host, each a process, tell each other by locks on files. What an unrelated program does in
//! between is found out when the service fails to start.

use std::collections::HashSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

const ATTEMPTS_MAX: usize = 128;

/// A number is handed out once, whatever the address.
#[derive(Clone, Default)]
pub(crate) struct Ports {
    taken: Arc<Mutex<HashSet<u16>>>,
    /// Where other processes of this host see what is taken.
    locks: Option<PathBuf>,
}

/// One port; free for others when dropped.
pub(crate) struct ReservedPort {
    address: SocketAddr,
    ports: Ports,
    /// Goes with the process that holds it, however that ends.
    _lock: Option<File>,
}

impl Ports {
    /// Shared with other processes that name the same directory.
    pub(crate) fn shared(locks: PathBuf) -> Self {
        Self { taken: Arc::default(), locks: Some(locks) }
    }

    pub(crate) fn reserve(&self, address: IpAddr) -> io::Result<ReservedPort> {
        // Held until the end, so that the kernel does not offer the same number again.
        let mut passed_over = Vec::new();
        for _ in 0..ATTEMPTS_MAX {
            let listener = TcpListener::bind((address, 0))?;
            let address = listener.local_addr()?;
            let number = address.port();
            match self.lock(number) {
                Ok(lock) => {
                    if self.taken.lock().unwrap_or_else(PoisonError::into_inner).insert(number) {
                        return Ok(ReservedPort { address, ports: self.clone(), _lock: lock });
                    }
                }
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
            passed_over.push(listener);
        }
        Err(io::Error::new(io::ErrorKind::AddrNotAvailable, "the system offers only ports that are handed out already"))
    }
}

impl Ports {
    /// The files stay: as many as there are ports, each empty.
    fn lock(&self, number: u16) -> Result<Option<File>, TryLockError> {
        let Some(locks) = &self.locks else { return Ok(None) };
        let opened = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .mode(0o600)
            .open(locks.join(number.to_string()));
        let file = opened.map_err(TryLockError::Error)?;
        file.try_lock()?;
        Ok(Some(file))
    }
}

impl ReservedPort {
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for ReservedPort {
    fn drop(&mut self) {
        self.ports.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.address.port());
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
        let ports = Ports::default();
        let held: Vec<_> =
            (1..=200).map(|last| ports.reserve(IpAddr::from([127, 0, 0, 1 + last % 2])).unwrap()).collect();
        let distinct: HashSet<_> = held.iter().map(|port| port.address().port()).collect();
        assert_eq!(distinct.len(), 200);
        drop(held);
        assert!(ports.taken.lock().unwrap().is_empty());
    }

    #[test]
    fn what_one_process_holds_another_does_not_hand_out() {
        let locks = tempfile::tempdir().unwrap();
        let [one, other] = [(); 2].map(|()| Ports::shared(locks.path().into()));
        let held = one.reserve(std::net::Ipv4Addr::LOCALHOST.into()).unwrap();
        let number = held.address().port();
        assert!(matches!(other.lock(number), Err(TryLockError::WouldBlock)));
        drop(held);
        assert!(other.lock(number).unwrap().is_some());
    }
}
