//! The agent against real things: git repositories made on the spot, shells, python's web server, signals and kill -9.
// The environment is read where a test asks what leaks from it, or tells its second process what to be.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod checkout;
mod crash;
mod fixture;
mod orders;
mod output;
mod readiness;
mod sleep;
mod supervision;
mod users;
mod wake;
