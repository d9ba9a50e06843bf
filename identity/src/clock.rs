//! The clock that components which may not read one are handed.
//!
//! Not here: instants inside decisions. The domain gets them with each command.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

pub use envforge_domain::time::Clock;
use envforge_domain::time::{Millis, UnixMillis};

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the clock that everybody else is handed")]
    fn now(&self) -> UnixMillis {
        // A machine whose clock stands before 1970 gets the epoch: every token is then refused as issued in the future.
        let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        UnixMillis::new(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
    }
}

/// The machine's clock with an offset that grows as told: for tests and demonstrations that skip ahead.
#[derive(Debug, Default)]
pub struct SkippingClock {
    skipped_ms: AtomicU64,
}

impl SkippingClock {
    pub fn new() -> Self {
        Self::default()
    }

    /// Moves the clock ahead for everybody who holds it.
    pub fn skip(&self, length: Millis) {
        self.skipped_ms.fetch_add(length.get(), Ordering::SeqCst);
    }
}

impl Clock for SkippingClock {
    fn now(&self) -> UnixMillis {
        SystemClock.now().plus(Millis::new(self.skipped_ms.load(Ordering::SeqCst)))
    }
}
