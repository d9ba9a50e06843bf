//! Gateways, and processes of the API with their shells, whose having read the log a revocation waits for.
//!
//! A revocation is acknowledged when no gateway lets in what it took: each has read it, or refuses everything by itself because
//! its lease is over. Its receipt waits for the API's processes in the same way. Owns what one side asks and the other answers. Not here: how they find each other (`jetstream::Registry`),
//! and what a gateway closes (projections).

use std::time::{Duration, Instant};

use async_trait::async_trait;
use envforge_domain::commit::Position;
use envforge_domain::revocation::{Uncounted, UncountedShells};

/// How long a gateway, or a process of the API, of which nothing is heard is waited for.
pub const LEASE: Duration = Duration::from_secs(6);

/// What clocks that run at different speeds, and a process that is late to look at its own, may cost of it.
const LEASE_MARGIN: Duration = Duration::from_millis(400);

/// The longest that either may take, counted from when it was last known as one that is waited for, until it refuses
/// everything (a process of the API: shells) and has ended what was open.
pub const REFUSES_WITHIN_MAX: Duration = LEASE.saturating_sub(LEASE_MARGIN);

/// The gateway of this process, or its shells, as others ask it.
#[async_trait]
pub trait Witness: Send + Sync + 'static {
    /// Whether it hears the log. One that does not lets its lease run out.
    fn is_fresh(&self) -> bool;

    /// Comes back once it has read everything up to there; with `false` where that takes too long.
    async fn has_read(&self, position: Position) -> bool;

    /// How many sockets, or shells, these commits have closed, which it has read; `None` where some are still open after a while.
    /// Asked again it says the same.
    async fn closed_by(&self, commits: &[Position]) -> Option<u32>;

    /// It was among those for which revocations wait at that moment. INVARIANT: it lets nobody in, and keeps nothing open, for
    /// longer than `REFUSES_WITHIN_MAX` after the latest such moment.
    fn was_waited_for(&self, at: Instant);
}

/// All gateways of an installation, and all processes of its API, wherever they run.
#[async_trait]
pub trait Gateways: Send + Sync + 'static {
    /// Comes back when none of them lets in what these commits, and those before them, have taken: each has read them, or its
    /// lease is over. Takes about as long as the lease at most; what could not be found out by then is told. Where the
    /// installation is one process, its shells are not counted: whoever asks has them.
    async fn have_read(&self, commits: &[Position]) -> Account;

    /// Whether the installation is this one process, which alone serves its API, too.
    fn is_all_there_is(&self) -> bool {
        false
    }

    /// `have_read` of the gateways alone, for whoever does not ask what was closed. Costs nothing where it was waited for before.
    async fn settle(&self, position: Position) -> Account {
        self.have_read(&[position]).await
    }
}

/// What commits have closed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Sockets of the gateways that told.
    pub sockets: u32,
    /// The others.
    pub uncounted: Vec<Uncounted>,
    /// Shells of the API's processes that told.
    pub shells: u32,
    /// The others.
    pub shells_uncounted: Vec<UncountedShells>,
}
