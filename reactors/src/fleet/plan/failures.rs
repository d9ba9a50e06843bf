//! Launches, or starts of one machine, that failed one after the other, and how long the next one waits for it.

use envforge_domain::time::{Millis, UnixMillis};

/// After a launch or a start that failed; doubled for each one that follows, up to `LAUNCH_PAUSE_MAX`.
const LAUNCH_PAUSE_MIN: Millis = Millis::from_secs(15);
const LAUNCH_PAUSE_MAX: Millis = Millis::from_minutes(15);
/// So many starts must have failed before a machine is replaced for it, however long they took.
const STARTS_BEFORE_GIVEN_UP: u32 = 8;
/// What failed further apart has nothing to do with each other.
const APART_MAX: Millis = Millis::from_hours(2);

/// A series of failures.
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

    pub(super) fn count(&self) -> u32 {
        self.count
    }

    pub(super) fn first_at(&self) -> UnixMillis {
        self.first_at
    }

    pub(super) fn any(&self) -> bool {
        self.count > 0
    }

    pub(super) fn last_for(&self, length: Millis) -> bool {
        self.count >= STARTS_BEFORE_GIVEN_UP && self.last_at.since(self.first_at) >= length
    }

    /// When the next one may be tried.
    pub(super) fn until(&self) -> UnixMillis {
        match self.count {
            0 => UnixMillis::EPOCH,
            count => {
                let doubled = LAUNCH_PAUSE_MIN.get().saturating_mul(1_u64 << (count - 1).min(20));
                self.last_at.plus(Millis::new(doubled.min(LAUNCH_PAUSE_MAX.get())))
            }
        }
    }
}
