//! What failed several times in a row, and when it may be tried again.
//!
//! Not here: what it is (launches and starts of machines), and who tries it.

use crate::time::{Millis, UnixMillis};

/// After the first failure; doubled for each one that follows, up to `PAUSE_MAX`.
const PAUSE_MIN: Millis = Millis::from_secs(15);
const PAUSE_MAX: Millis = Millis::from_minutes(15);
/// What failed further apart has nothing to do with each other.
const APART_MAX: Millis = Millis::from_hours(2);

/// Launches, or starts of one machine, that failed one after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Failures {
    count: u32,
    first_at: UnixMillis,
    last_at: UnixMillis,
}

impl Failures {
    pub fn add(&mut self, at: UnixMillis) {
        if self.count == 0 || at.since(self.last_at) > APART_MAX {
            (self.count, self.first_at) = (0, at);
        }
        self.count = self.count.saturating_add(1);
        self.last_at = at;
    }

    pub const fn any(&self) -> bool {
        self.count > 0
    }

    pub const fn count(&self) -> u32 {
        self.count
    }

    /// Of the series that is not over.
    pub const fn first_at(&self) -> UnixMillis {
        self.first_at
    }

    /// Whether there were so many over so long.
    pub fn last_for(&self, count: u32, length: Millis) -> bool {
        self.count >= count && self.last_at.since(self.first_at) >= length
    }

    /// When it may be tried again; the epoch where nothing failed.
    pub fn until(&self) -> UnixMillis {
        match self.count {
            0 => UnixMillis::EPOCH,
            count => {
                let doubled = PAUSE_MIN.get().saturating_mul(1_u64 << (count - 1).min(20));
                self.last_at.plus(Millis::new(doubled.min(PAUSE_MAX.get())))
            }
        }
    }
}
