//! This machine's clock, for stamping what is recorded where nothing else was given.

use envforge_domain::time::{Clock, UnixMillis};

pub(crate) struct SystemClock;

impl Clock for SystemClock {
    #[allow(
        clippy::disallowed_methods,
        reason = "the embedded log stamps what it records; tests hand it a clock of theirs"
    )]
    fn now(&self) -> UnixMillis {
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        UnixMillis::new(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
    }
}
