//! How many files and sockets this process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// A gateway takes 20,000 connections, each with one to an app; files, the log and the database need few more.
const WANTED: u64 = 65_536;

/// Raises the soft limit, which is often 1,024, as far as the hard one allows. What is started later inherits it.
pub(crate) fn raise() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(WANTED, |maximum| maximum.min(WANTED));
    // No limit at all is none.
    let Some(current) = limit.current.filter(|current| *current < wanted) else { return };
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum }) {
        tracing::warn!(%error, current, wanted, "the limit of open files could not be raised");
    } else if wanted < WANTED {
        tracing::warn!(wanted, needed = WANTED, "few files may be open at once; raise the hard limit (ulimit -Hn)");
    }
}
