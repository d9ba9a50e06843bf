//! What tests start and wait for: nats-server, PostgreSQL, an OpenID provider, a git server, a stand-in for AWS, a keyring, other processes, free ports, folders, conditions with a deadline.
//!
//! It owns no test and knows no crate of the product but, with the feature `log`, the log: any crate can use it in `[dev-dependencies]`. It installs nothing: `cargo xtask
//! test` does, and hands the paths over in `ENVFORGE_TEST_*` variables.
//!
//! Everything started here ends with the test: on drop, on panic, and, where Linux's `setpriv` is at hand, also when the test itself is
//! killed with SIGKILL.
//!
//! A test that starts a server or a browser carries `nats`, `jetstream`, `postgres`, `browser`, `journey`, `cluster` or `moto` in the name of its
//! binary, module or function: `.config/nextest.toml` runs those two at a time, and `cargo xtask test --fast` leaves them out.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "test support: it reads ENVFORGE_TEST_* and fails by panicking, as tests do"
)]

mod dir;
mod fuzz_inputs;
mod git;
mod keyring;
mod local_http;
#[cfg(feature = "log")]
mod log;
mod moto;
mod nats;
mod oidc;
mod port;
mod postgres;
mod process;
mod repository;
pub mod tools;
mod wait;

pub use dir::TestDir;
pub use fuzz_inputs::feed_fuzz_inputs;
pub use git::GitServer;
pub use keyring::SessionBus;
#[cfg(feature = "log")]
pub use log::{InterferedLog, Interference};
pub use moto::Moto;
pub use nats::{NatsOptions, NatsServer};
pub use oidc::{OIDC_GATEWAY_SECRET, OIDC_WEB_SECRET, OidcOptions, OidcProvider};
pub use port::free_port;
pub use postgres::{Postgres, PostgresDatabase, PostgresOptions};
pub use process::TestProcess;
pub use repository::commit_all;
#[cfg(feature = "tokio")]
pub use wait::eventually;
pub use wait::{wait_for, wait_until};
