//! The API over real HTTP: each file a chapter, each test a sentence.
#![allow(unreachable_pub, reason = "a test binary has no outside")]
#![allow(clippy::unwrap_used)]

mod asleep_hosts;
mod authz;
mod document;
mod events;
mod faults;
mod host_double;
mod house;
mod invitations;
mod journey_oidc;
mod limits;
mod links;
mod pages;
mod passwords;
mod permissions;
mod policies;
mod reads;
mod receipts;
mod refusals;
mod rights;
mod root_decisions;
mod root_dependents;
mod root_windows;
mod runtimes;
mod secrets;
mod service_tokens;
mod sessions;
mod shells;
mod signing_in;
mod teams;
mod writes;
