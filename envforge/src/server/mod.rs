//! The roles of the binary: what `dev` runs in one process and `serve` in several.
//!
//! Owns wiring: only here do API, gateway, projections, reactors and stores meet. Not here: anything they decide.

mod activity;
mod api;
mod bootstrap;
mod control_plane;
mod data_dir;
mod demo;
mod demo_repository;
mod denials;
pub(crate) mod dev;
mod gateway_args;
mod known_log;
pub(crate) mod projections;
mod roles;
pub(crate) mod serve;
mod sweeping;
mod telemetry;
