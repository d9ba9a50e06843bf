//! Specifications of every aggregate: given a history, when a command, then events or a refusal.
#![allow(clippy::unwrap_used)]

mod access;
mod dev_link;
mod given;
mod host;
mod machine;
mod meter;
mod organization;
mod project;
mod provenance;
mod root_window;
mod runtime;
mod secrets;
mod service_token;
mod shells;
mod teams;
mod user;
mod workspace;
