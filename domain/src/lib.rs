//! What may happen in EnvForge.
//!
//! Owns aggregates (`decide` and `evolve`), the access policy, `envforge.yml`, ids and limits. Pure: no I/O, no async,
//! no clock, no randomness; instants, ids and looked-up facts ride in with commands.

pub mod access;
pub mod aggregate;
pub mod claim;
pub mod commit;
pub mod decision;
pub mod denial;
pub mod dev_link;
pub mod enrolment;
pub mod event;
pub mod failures;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod host;
pub mod ids;
pub mod invitation;
pub mod job_run;
pub mod limits;
pub mod machine;
pub mod manifest;
pub mod meter;
pub mod network;
pub mod organization;
pub mod project;
pub mod provenance;
pub mod revocation;
pub mod root_window;
pub mod routing;
pub mod runtime;
pub mod secret;
pub mod secrets;
pub mod service_token;
pub mod session;
pub mod shell;
pub mod slug;
pub mod time;
pub mod user;
pub mod workspace;
pub mod workspace_session;
