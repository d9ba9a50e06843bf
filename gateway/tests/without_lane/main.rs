//! The gateway's tests once more, where hyper serves every request: the same rules hold on both ways.
#![allow(clippy::unwrap_used)]

#[path = "../gateway/answers.rs"]
mod answers;
#[path = "../gateway/app.rs"]
mod app;
#[path = "../gateway/client.rs"]
mod client;
#[path = "../gateway/hardening.rs"]
mod hardening;
#[path = "../gateway/members.rs"]
mod members;
#[path = "../gateway/proxying.rs"]
mod proxying;
#[path = "../gateway/secure.rs"]
mod secure;
#[path = "../gateway/share_flow.rs"]
mod share_flow;
#[path = "../gateway/sockets.rs"]
mod sockets;
#[path = "../gateway/waking.rs"]
mod waking;
#[path = "../gateway/world.rs"]
mod world;

const HTTP1_LANE: bool = false;
