//! Connections to a listener (for agents, for other processes of the control plane) of which nobody knows yet whose they are: how many may be
//! there, and how many are worked on.
//!
//! A connection that says nothing holds a place, which costs a socket, and no turn; a turn costs signatures. Neither is to be had by one
//! address alone, and some are kept for addresses from which somebody trusted has come before, so that strangers keep nobody from coming back.
//! Not here: the handshake itself, and how long it may take (agent).

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Of strangers. An address that is known counts for itself alone.
const PLACES: usize = 2_048;
/// Many agents may come through one address.
const PLACES_OF_ADDRESS: usize = 1_024;
const TURNS: usize = 192;
/// Besides, for addresses that are known.
const TURNS_OF_KNOWN: usize = 64;
const TURNS_OF_ADDRESS: usize = 64;
/// Of those that are kept: one known address leaves the others theirs.
const KEPT_TURNS_OF_ADDRESS: usize = 8;
/// As long as a handshake.
const TURN_WAIT: Duration = Duration::from_secs(10);
const KNOWN_MAX: usize = 16_384;

/// Clones are one.
#[derive(Clone)]
pub(crate) struct Handshakes(Arc<Inner>);

struct Inner {
    held: Mutex<Held>,
    turns: Arc<Semaphore>,
    turns_of_known: Arc<Semaphore>,
}

#[derive(Default)]
struct Held {
    by_strangers: usize,
    by_address: HashMap<IpAddr, OfAddress>,
    /// From which somebody trusted has come.
    known: HashSet<IpAddr>,
}

struct OfAddress {
    places: usize,
    turns: Arc<Semaphore>,
    kept_turns: Arc<Semaphore>,
}

/// Given back when dropped.
pub(crate) struct Place {
    handshakes: Handshakes,
    address: IpAddr,
    known: bool,
    turns: Arc<Semaphore>,
    kept_turns: Arc<Semaphore>,
}

/// Given back when dropped.
pub(crate) struct Turn {
    _of_address: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
    _of_kept: Option<OwnedSemaphorePermit>,
}

impl Default for Handshakes {
    fn default() -> Self {
        let inner = Inner { held: Mutex::default(), turns: turns(TURNS), turns_of_known: turns(TURNS_OF_KNOWN) };
        Self(Arc::new(inner))
    }
}

fn turns(count: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(count))
}

impl Handshakes {
    /// `None` where the address, or strangers together, hold too many already.
    pub(crate) fn place(&self, address: IpAddr) -> Option<Place> {
        let address = neighbourhood(address);
        let mut held = self.held();
        let known = held.known.contains(&address);
        let of_address = held.by_address.get(&address).map_or(0, |of| of.places);
        if of_address >= PLACES_OF_ADDRESS || (!known && held.by_strangers >= PLACES) {
            return None;
        }
        if !known {
            held.by_strangers += 1;
        }
        let of = held.by_address.entry(address).or_insert_with(|| OfAddress {
            places: 0,
            turns: turns(TURNS_OF_ADDRESS),
            kept_turns: turns(KEPT_TURNS_OF_ADDRESS),
        });
        of.places += 1;
        let (turns, kept_turns) = (Arc::clone(&of.turns), Arc::clone(&of.kept_turns));
        Some(Place { handshakes: self.clone(), address, known, turns, kept_turns })
    }

    /// Somebody trusted has come from there.
    pub(crate) fn know(&self, address: IpAddr) {
        let mut held = self.held();
        if held.known.len() < KNOWN_MAX {
            held.known.insert(neighbourhood(address));
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// # Errors
    /// Where others have all of them for too long.
    pub(crate) async fn turn(&self) -> io::Result<Turn> {
        let Inner { turns, turns_of_known, .. } = &*self.handshakes.0;
        let turning = async {
            let of_address = Arc::clone(&self.turns).acquire_owned().await?;
            let kept = async {
                let of_kept = Arc::clone(&self.kept_turns).acquire_owned().await?;
                Ok((Arc::clone(turns_of_known).acquire_owned().await?, Some(of_kept)))
            };
            let (of_all, of_kept) = tokio::select! {
                biased;
                turn = Arc::clone(turns).acquire_owned() => (turn?, None),
                turn = kept, if self.known => turn?,
            };
            Ok(Turn { _of_address: of_address, _of_all: of_all, _of_kept: of_kept })
        };
        let turning = async { turning.await.map_err(|closed: AcquireError| io::Error::other(closed)) };
        timeout(TURN_WAIT, turning).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.handshakes.held();
        if !self.known {
            held.by_strangers -= 1;
        }
        if let Some(of) = held.by_address.get_mut(&self.address) {
            of.places -= 1;
            if of.places == 0 {
                held.by_address.remove(&self.address);
            }
        }
    }
}

/// What one machine has to itself: of IPv6 a whole /64.
fn neighbourhood(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use futures_util::FutureExt as _;

    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    /// A turn, where there is one at once. Without tokio's budget, which one task that asks for so many would use up.
    fn turn_of(place: &Place) -> Option<Turn> {
        tokio::task::unconstrained(place.turn()).now_or_never().map(Result::unwrap)
    }

    /// All that an address may have; each with a turn where there is one.
    fn flood(handshakes: &Handshakes, from: IpAddr) -> Vec<(Place, Option<Turn>)> {
        std::iter::from_fn(|| handshakes.place(from)).map(with_turn).collect()
    }

    fn with_turn(place: Place) -> (Place, Option<Turn>) {
        let turn = turn_of(&place);
        (place, turn)
    }

    fn turns(held: &[(Place, Option<Turn>)]) -> usize {
        held.iter().filter(|(_, turn)| turn.is_some()).count()
    }

    #[tokio::test]
    async fn neither_one_address_nor_all_strangers_together_keep_known_agents_out() {
        let handshakes = Handshakes::default();
        handshakes.know(address(1));
        handshakes.know(address(8));
        let first = flood(&handshakes, address(2));
        assert_eq!((first.len(), turns(&first)), (PLACES_OF_ADDRESS, TURNS_OF_ADDRESS));
        assert!(handshakes.place(address(3)).is_some_and(|place| turn_of(&place).is_some()), "others are not held up");
        let second = flood(&handshakes, address(3));
        assert_eq!((second.len(), turns(&second)), (PLACES - PLACES_OF_ADDRESS, TURNS_OF_ADDRESS));
        assert!(handshakes.place(address(4)).is_none(), "strangers hold what they may");
        drop(second);
        let few = |last| std::iter::repeat_n(address(last), TURNS_OF_ADDRESS);
        let rest: Vec<_> = few(5).chain(few(6)).filter_map(|from| handshakes.place(from)).map(with_turn).collect();
        assert_eq!(turns(&rest), TURNS - TURNS_OF_ADDRESS);
        let stranger = handshakes.place(address(7));
        assert!(stranger.is_none_or(|place| turn_of(&place).is_none()));
        let one = flood(&handshakes, address(1));
        assert_eq!(turns(&one), KEPT_TURNS_OF_ADDRESS);
        assert_eq!(turns(&flood(&handshakes, address(8))), KEPT_TURNS_OF_ADDRESS, "whatever another known one does");
        drop((first, rest, one));
        assert!(handshakes.held().by_address.is_empty() && handshakes.held().by_strangers == 0);
        assert_eq!(turns(&flood(&handshakes, address(7))), TURNS_OF_ADDRESS);
    }

    #[test]
    fn an_ipv6_network_counts_as_one_and_a_mapped_address_as_what_it_is() {
        let of = |text: &str| neighbourhood(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2:3::4"), of("2001:db8:1:2:ffff::1"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    }
}
