//! The data plane: share flow, admission, wake and proxy.
//!
//! Owns everything between a browser's connection and an app's port: reading requests so that they have one meaning,
//! deciding from memory who may pass, waking what sleeps, and ending what is no longer allowed. `admission::admit`
//! makes the `ForwardPermit` without which nothing reaches an app. Not here: deciding and remembering (commands, event
//! log), the read model itself (projections), starting apps (runtime).

mod activity;
mod admission;
mod blocked;
mod body;
mod config;
mod connection;
mod cookie;
mod decisions;
mod denial;
mod fields;
mod forward;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod gateway;
mod ground;
mod handoff;
mod header;
mod host;
mod log_decisions;
mod metric;
mod outbox;
mod pages;
mod path;
mod request_check;
mod service;
mod share;
mod sign_in;
mod standing;
mod upload;
mod upstream;
mod wake;
mod websocket;

pub use activity::{Activity, WorkspaceActivity};
pub use admission::{ForwardPermit, Refused, RequestHead, Rules, admit};
pub use config::{Config, Limits, Scheme, Timeouts, TlsFiles};
pub use connection::{Certificates, HEAD_BYTES_MAX, HEADERS_MAX, IoTimeouts, ListenError, TlsError};
pub use decisions::{AskWake, Blocked, Decisions, OpenSession, OpenWorkspaceSession};
pub use denial::{Denial, ProtocolFault, Words};
pub use fields::{Fields, Line};
pub use gateway::{Gateway, Parts, StartError};
pub use ground::Visitor;
pub use handoff::HandoffKey;
pub use host::{Host, WorkspaceHost};
pub use log_decisions::LogDecisions;
