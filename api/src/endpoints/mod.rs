//! The endpoints, one file a noun: thin handlers that read a request, get a permit and call commands or queries.
//!
//! Each router has a state of its own with just what it needs. Not here: what every request has in common (`edge`), who
//! asks (`access`), how a problem looks (`problem`).

pub(crate) mod access_then;
pub(crate) mod audit;
pub(crate) mod auth;
pub(crate) mod authz;
pub(crate) mod decisions;
pub(crate) mod dry_run;
pub(crate) mod events;
pub(crate) mod handoff;
pub(crate) mod health;
mod host_starts;
pub(crate) mod hosts;
pub(crate) mod invitations;
mod lasting_shells;
pub(crate) mod links;
mod logs;
pub(crate) mod me;
pub(crate) mod members;
pub(crate) mod oidc;
pub(crate) mod oidc_events;
mod oidc_mirror;
pub(crate) mod organizations;
pub(crate) mod problems;
pub(crate) mod projects;
mod refusals;
pub(crate) mod roles;
pub(crate) mod root_shell;
pub(crate) mod root_windows;
pub(crate) mod runtime;
pub(crate) mod secrets;
pub(crate) mod service_tokens;
pub(crate) mod sessions;
pub(crate) mod shells;
pub(crate) mod sign_in_page;
pub(crate) mod teams;
pub(crate) mod usage;
pub(crate) mod workspaces;

/// Lets extractors find the part of a router's state that they need.
macro_rules! has_access {
    ($state:ty) => {
        impl axum::extract::FromRef<$state> for crate::access::Access {
            fn from_ref(state: &$state) -> Self {
                state.access.clone()
            }
        }
    };
}
pub(crate) use has_access;
