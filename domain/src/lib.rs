//! What may happen in EnvForge.
//!
//! Owns aggregates (`decide` and `evolve`), the access policy, `envforge.yml`, ids and limits. Pure: no I/O, no async,
//! no clock, no randomness; instants, ids and looked-up facts ride in with commands.

pub mod commit;
pub mod event;
pub mod ids;
pub mod limits;
pub mod manifest;
pub mod secret;
pub mod slug;
pub mod time;
