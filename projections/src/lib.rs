//! What the log means: read models folded from it, and their queries.
//!
//! Owns the hot views in memory (`hot`: authorization, gateway, resources, placement, invitations, service tokens) with the fresh decisions made on them, and the
//! read models in PostgreSQL or SQLite (`sql`). Not here: what may happen (domain), where it is remembered (eventlog),
//! deciding and appending (commands).

pub mod authorization;
pub mod authorizer;
mod closers;
pub mod denials;
pub mod gateway_view;
pub mod hot;
pub mod invitations;
pub mod placement;
pub mod refused;
pub mod resources;
pub mod rights_history;
mod runtimes;
pub mod service_tokens;
mod session_table;
pub mod sql;
mod witness;

pub use authorizer::{AuthorizeError, Authorizer};
pub use denials::DenialSink;
pub use hot::{Hot, HotConfig, Stale};

#[cfg(test)]
mod given;
