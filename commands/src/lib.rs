//! The write side: a permit and a command in, appended events out.
//!
//! Owns loading an aggregate, deciding, appending with optimistic concurrency, retrying, and idempotency by command id;
//! and one file per noun with the looked-up facts that its commands need. Not here: whether the actor may (domain's
//! policy, asked through projections) and what readers see (projections).

pub mod context;
mod engine;
mod error;
mod fence;
pub mod hosts;
mod independence;
pub mod job_runs;
pub mod links;
pub mod machines;
pub mod organizations;
pub mod projects;
pub mod root_windows;
pub mod runtimes;
pub mod secrets;
pub mod service_tokens;
pub mod shells;
mod stream_cache;
mod transaction;
pub mod users;
pub mod workspaces;

pub use context::{Context, Repeated};
pub use engine::{Commands, Done, Loaded, back_off, noting_withdrawals};
pub use error::CommandError;
pub use transaction::Transaction;
