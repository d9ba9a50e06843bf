//! The HTTP API: commands in, queries and event streams out.
//!
//! Owns routes, the shapes of requests and answers, the one mapping of errors to RFC 9457 problems, idempotency by key, the
//! OpenAPI document and the listener. Not here: who somebody is (identity), what they may do (domain's policy, asked through
//! projections), what happens (commands).
//!
//! How a request is answered: `edge` gives it an id and a time; `access::Caller` says who asks; names in the path become a
//! `Resource`; `Access::permit` asks the policy; the `Permit` goes along to commands or to `reads`, which accept nothing
//! without one.

mod access;
mod address_rate;
mod api;
mod browser;
mod config;
mod disclosed;
mod edge;
mod endpoints;
mod form;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod instant;
mod listener;
mod open_shells;
mod openapi;
mod page;
mod pages;
pub mod problem;
mod reads;
mod request_body;
mod revocation;
mod sessions;
mod share;
mod shell_host;
mod shell_socket;
mod write;

pub use access::SURFACE_HEADER;
pub use api::{Parts, document, metrics_router, render, router};
pub use config::{AgentsAt, Config, GatewayUrl, InvalidGatewayUrl, NotPut, PutBy, SecretPuts, Shells};
pub use edge::REQUEST_HEADER;
pub use listener::serve;
pub use openapi::{ACTION_EXTENSION, action_of};
pub use reads::MIN_POSITION_HEADER;
pub use shell_host::{OpenShell, ShellHost};
pub use write::{IDEMPOTENCY_HEADER, POSITION_HEADER};
