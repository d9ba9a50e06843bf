//! The agent against real things: git repositories made on the spot, shells, python's web server, signals and kill -9.
#![allow(clippy::unwrap_used)]

mod checkout;
mod crash;
mod fixture;
mod orders;
mod output;
mod readiness;
mod sleep;
mod supervision;
mod wake;
