//! The gateway over real sockets, against a real app.
#![allow(clippy::unwrap_used)]

mod answers;
mod app;
mod client;
mod hardening;
mod members;
mod policies;
mod proxying;
mod secure;
mod share_flow;
mod sockets;
mod waking;
mod world;

/// Requests begin on the lane. `tests/without_lane` runs the same tests where hyper serves all of them.
const HTTP1_LANE: bool = true;
