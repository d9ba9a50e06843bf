//! What a connection's service and its byte stream tell each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// What the connection's service tells its byte stream.
#[derive(Debug, Default)]
pub(crate) struct ConnectionState {
    /// Requests whose answer is not finished: the connection is not idle, however silent.
    in_flight: AtomicU32,
    /// The service has answered 101: what follows is not HTTP.
    upgraded: AtomicBool,
    /// A request has begun since the last look.
    served: AtomicBool,
}

impl ConnectionState {
    pub(crate) fn begin_request(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.served.store(true, Ordering::Relaxed);
        InFlight(Arc::clone(self))
    }

    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub(crate) fn take_served(&self) -> bool {
        self.served.swap(false, Ordering::Relaxed)
    }

    pub(super) fn is_upgraded(&self) -> bool {
        self.upgraded.load(Ordering::Acquire)
    }

    /// Called before the 101 is handed to hyper, so that no byte of the new protocol is read as HTTP.
    pub(crate) fn set_upgraded(&self) {
        self.upgraded.store(true, Ordering::Release);
    }
}

/// One request being answered; ends when dropped.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<ConnectionState>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
