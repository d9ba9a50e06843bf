//! The machine's clock, for what must be compared with instants of the log.

use std::time::SystemTime;

use envforge_domain::time::UnixMillis;

/// Now, in milliseconds; the end of time on a machine whose clock stands before 1970, where everything has expired.
pub(crate) fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixMillis::new(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
