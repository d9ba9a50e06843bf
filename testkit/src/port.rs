//! Ports on loopback that no other test of this machine is given.
//!
//! It does not hold a socket: the server that the test starts binds the port itself.

use std::fs::{File, OpenOptions};
use std::net::TcpListener;
use std::sync::Mutex;

// Below Linux's ephemeral range (32768 and up), so that no outgoing connection takes a port between two starts of the same server.
const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

/// Reservations live as long as the process, so that a killed server finds its port free when it restarts.
static RESERVED: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// A TCP port on 127.0.0.1 that nothing listens on and that no other test process gets while this one lives.
///
/// # Panics
/// When none of the 12,000 ports is free.
pub fn free_port() -> u16 {
    let folder = crate::dir::base().join("ports");
    std::fs::create_dir_all(&folder).unwrap_or_else(|error| panic!("cannot create {}: {error}", folder.display()));
    let mut reserved = RESERVED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    // Each process begins its search elsewhere; 7919 is a prime, so neighbours in process id are far apart.
    let start = (std::process::id().wrapping_mul(7919)) % u32::from(COUNT);
    for step in 0..u32::from(COUNT) {
        let port = FIRST + ((start + step) % u32::from(COUNT)) as u16;
        let path = folder.join(port.to_string());
        let Ok(file) = OpenOptions::new().create(true).truncate(false).write(true).open(&path) else { continue };
        if file.try_lock().is_ok() && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            reserved.push(file);
            return port;
        }
    }
    panic!("no free port between {FIRST} and {}: are servers of earlier runs still there?", FIRST + COUNT);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_port_is_given_twice() {
        let ports: BTreeSet<u16> = (0..50).map(|_| free_port()).collect();
        assert_eq!(ports.len(), 50);
    }

    #[test]
    fn a_port_somebody_listens_on_is_not_given() {
        let taken = free_port();
        let _listener = TcpListener::bind(("127.0.0.1", taken)).unwrap();
        assert!((0..50).all(|_| free_port() != taken));
    }
}
