//! The gateway over real sockets, against a real app.
#![allow(clippy::unwrap_used)]

mod app;
mod client;
mod hardening;
mod policies;
mod proxying;
mod secure;
mod share_flow;
mod sockets;
mod waking;
mod world;
