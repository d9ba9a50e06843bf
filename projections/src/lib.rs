//! The read side: what queries, gateway and policy ask.
//!
//! Owns the hot views in memory (`hot`: authorization, gateway, resources) with the fresh decisions made on them, and the
//! SQL read models (`sql`). Not here: deciding and appending (commands).

pub mod authorization;
pub mod authorizer;
pub mod denials;
pub mod gateway_view;
pub mod hot;
pub mod resources;

pub use authorizer::{AuthorizeError, Authorizer};
pub use denials::DenialSink;
pub use hot::{Hot, Stale};
