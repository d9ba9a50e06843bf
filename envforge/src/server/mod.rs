//! The roles of the binary: what `dev` runs in one process and `serve` in several.
//!
//! Owns wiring: only here do API, gateway, projections, reactors and stores meet. Not here: anything they decide.

pub(crate) mod access_tokens;
mod activity;
pub(crate) mod agent;
mod agent_file;
mod agents;
pub(crate) mod agents_authority;
mod api;
mod bootstrap;
mod control_plane;
mod data_dir;
mod demo;
mod demo_repository;
mod denials;
pub(crate) mod dev;
mod first_password;
mod fleet;
#[cfg(feature = "aws")]
mod fleet_config;
mod gateway_args;
mod gateway_place;
mod handshakes;
mod hosts;
mod known_log;
pub(crate) mod metadata_service;
mod open_files;
pub(crate) mod projections;
mod provider;
pub(crate) mod recovery;
mod relays;
mod roles;
mod running;
mod secret_store;
pub(crate) mod serve;
mod service_users;
mod shells;
mod stop;
mod sweeping;
pub(crate) mod telemetry;

pub(crate) use self::data_dir::DataDir;

use envforge_eventlog::LogError;

use crate::cli::failure::Failure;

/// A value of the command line, or which one is wrong and why.
fn usable<T, E: std::fmt::Display>(name: &str, value: Result<T, E>) -> Result<T, Failure> {
    value.map_err(|error| Failure::usage(format!("{name}: {error}"), ""))
}

/// What is shown of an error of a role. Its exit code says whether the command line, another machine or this one is at
/// fault.
pub(crate) fn failure(error: anyhow::Error) -> Failure {
    let error = match error.downcast::<Failure>() {
        Ok(failure) => return failure,
        Err(error) => error,
    };
    let what = format!("{error:#}");
    match error.chain().find_map(|cause| cause.downcast_ref::<LogError>()) {
        Some(LogError::Unavailable(_)) => {
            Failure::unreachable(what, "see whether it runs, and whether this machine may reach it")
        }
        Some(LogError::Open(_) | LogError::NotTheSameLog(_) | LogError::Undecodable { .. } | LogError::Damaged(_))
        | None => Failure::local(what, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_fails_with_the_exit_codes_of_every_other_command() {
        let exit = |error: anyhow::Error| failure(error).exit().code();
        let unavailable = anyhow::Error::from(LogError::Unavailable("refused".to_owned()));
        assert_eq!(exit(unavailable.context("the timers")), 6);
        assert_eq!(exit(anyhow::Error::from(Failure::usage("x", "")).context("while starting")), 2);
        assert_eq!(exit(anyhow::Error::from(Failure::Interrupted)), 130);
        assert_eq!(exit(anyhow::anyhow!("anything else")), 1);
    }
}
