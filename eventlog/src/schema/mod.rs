//! Stored forms of commits and events, and the way back.
//!
//! Owns the bytes: wire names, JSON shapes, size limits, upcasting. They are frozen once written, where the domain's types
//! may change freely. Not here: where the bytes are kept (the backends), what an event means (domain).
//!
//! A stored commit is one compact JSON object; `commit` describes it. Whatever cannot be decoded without a doubt (an
//! unknown type, version, field or value) is an error: a reader halts, it never skips.

mod claim;
mod commit;
mod decision;
mod denial;
mod dev_link;
mod event;
mod host;
mod job_run;
mod machine;
mod manifest;
mod organization;
mod project;
mod revocation;
mod root_window;
mod runtime;
mod secrets;
mod service_token;
mod shell;
mod upcast;
mod user;
mod wire;
mod workspace;

use bytes::Bytes;
use envforge_domain::commit::Commit;
use envforge_domain::event::Event;

pub use event::{event_data, event_type};

/// Every event type that can stand in a log, with its version, current ones and former ones; sorted.
pub fn event_types() -> Vec<&'static str> {
    let mut types: Vec<_> = event::TYPES.concat().into_iter().chain(upcast::former_types()).collect();
    types.sort_unstable();
    types
}

/// The types that `encode` writes today; sorted.
pub fn current_event_types() -> Vec<&'static str> {
    let mut types = event::TYPES.concat();
    types.sort_unstable();
    types
}

/// Why a commit cannot be stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    #[error("{what} has {found} {unit}, the limit is {limit}")]
    TooLarge { what: &'static str, unit: &'static str, found: usize, limit: usize },
    #[error("a commit must hold at least one event")]
    NoEvents,
    #[error("an event of a {event} cannot stand in a stream of a {stream}")]
    WrongStream { event: &'static str, stream: &'static str },
}

/// Why stored bytes cannot be read. The reader needs a newer EnvForge, or the log is damaged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("it is not a stored commit: {0}")]
    Malformed(String),
    #[error("its format is version {found}, this EnvForge reads up to {known}")]
    UnknownFormat { found: u32, known: u32 },
    #[error("it holds an event of the unknown type or version `{0}`")]
    UnknownEvent(String),
    #[error("the data of event `{event_type}` do not fit: {reason}")]
    Event { event_type: String, reason: String },
}

/// The bytes under which a commit is stored.
pub fn encode(commit: &Commit) -> Result<Bytes, EncodeError> {
    commit::encode(commit)
}

/// The commit that was stored as these bytes.
pub fn decode(stored: &[u8]) -> Result<Commit, DecodeError> {
    commit::decode(stored)
}

/// One event in its stored form, without a commit around it: its type and its data. What golden files hold.
pub fn decode_event(event_type: &str, data: &str) -> Result<Event, DecodeError> {
    event::decode(event_type, data)
}
