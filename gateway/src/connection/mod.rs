//! From an accepted socket to requests that have exactly one meaning.
//!
//! Owns the accept loop, TLS, connection limits, the inspection of heads before anybody parses them, the lane on which
//! most requests are answered, and timeouts of the client's side. hyper serves HTTP/2 and what the lane does not. Not
//! here: what a request may do.

mod answer;
pub(crate) mod body_scan;
mod connection_state;
mod guarded_io;
pub(crate) mod head_scan;
pub(crate) mod http2_stream;
mod lane;
mod listener;
mod signal;
mod tls;
mod wire_request;

pub(crate) use answer::{Answer, AnswerFacts};
pub(crate) use wire_request::WireRequest;

pub(crate) use connection_state::{ConnectionState, InFlight};
pub(crate) use guarded_io::GuardedIo;
pub use guarded_io::IoTimeouts;
pub use head_scan::{HEAD_BYTES_MAX, HEADERS_MAX};
pub use listener::ListenError;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use listener::serve_stream;
pub(crate) use listener::{Client, HTTP2_STREAM_WINDOW_BYTES, Serve, bind, serve};
pub use tls::{Certificates, TlsError};

/// The method of the head that stands in for a refused one; its path is `/` and the fault's code. Clients cannot
/// send it over HTTP/1, and over HTTP/2 it is no more than an unknown method.
pub(crate) const REFUSED_METHOD: &str = "ENVFORGE-REFUSED";
