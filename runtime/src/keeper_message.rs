//! What a host and the keeper of one of its runtimes say to each other.
//!
//! Both begin with a [`Greeting`], whose form is for ever. What follows belongs to one version of it. INVARIANT: types that carry
//! secrets have no `Debug`.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use envforge_domain::slug::ServiceName;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::config::Config;
use crate::environment::Environment;
use crate::frame;
use crate::order::Awake;
use crate::process::Identity;
use crate::wire::{StageMessage, WakeCall, text};

/// Of everything below. A host takes over the keepers that speak its own, and ends others.
const PROTOCOL: u32 = 1;
/// From a connection to both greetings.
pub(crate) const GREETING_WAIT: Duration = Duration::from_secs(5);

/// The first message of either side.
#[derive(Serialize, Deserialize)]
struct Greeting {
    protocol: u32,
}

/// What a host says.
#[derive(Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Ask {
    /// Wake; once in a keeper's life.
    Start(Box<Start>),
    /// End the runtime, and then yourself.
    End { with_hook: bool },
    /// A job has this leader; its marker is the runtime's.
    Group { leader: Identity },
    /// What was said up to this number was taken.
    Read { number: u64 },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Start {
    pub(crate) config: Config,
    pub(crate) boot: String,
    pub(crate) order: WakeCall,
}

/// What a keeper says.
#[derive(Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Say {
    /// Everything that was the case when the host connected has been said.
    Current,
    Stage(StageMessage),
    Ready(ReadyMessage),
    /// The wake did not succeed. Nothing of it runs, but for so many processes that do not end.
    Failed {
        text: String,
        may_pass_on_retry: bool,
        survivors: usize,
    },
    Restarted {
        number: u64,
        #[serde(with = "text")]
        service: ServiceName,
        status: String,
    },
    /// A service's restart budget is spent; the runtime is being ended.
    GaveUp {
        #[serde(with = "text")]
        service: ServiceName,
        reason: String,
    },
    /// The last word.
    Ended {
        survivors: usize,
    },
}

/// A runtime that is up, and what its jobs need. No secret is part of it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReadyMessage {
    endpoints: Vec<(String, SocketAddr)>,
    commit: String,
    jobs: Option<(PathBuf, BTreeMap<String, String>)>,
}

impl ReadyMessage {
    pub(crate) fn of(awake: &Awake, jobs: Option<&(PathBuf, Environment)>) -> Self {
        let named = |(service, address): &(ServiceName, SocketAddr)| (service.to_string(), *address);
        let variables = |environment: &Environment| {
            environment.iter().map(|(name, value)| (name.clone(), value.clone())).collect::<BTreeMap<_, _>>()
        };
        Self {
            endpoints: awake.endpoints.iter().map(named).collect(),
            commit: awake.commit.clone(),
            jobs: jobs.map(|(directory, environment)| (directory.clone(), variables(environment))),
        }
    }

    pub(crate) fn awake(&self) -> io::Result<Awake> {
        let named = |(service, address): &(String, SocketAddr)| {
            let service = service.parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
            Ok((service, *address))
        };
        let endpoints = self.endpoints.iter().map(named).collect::<io::Result<_>>()?;
        Ok(Awake { endpoints, commit: self.commit.clone() })
    }

    pub(crate) fn jobs(self) -> Option<(PathBuf, Environment)> {
        let (directory, variables) = self.jobs?;
        let mut environment = Environment::default();
        for (name, value) in variables {
            environment.set(name, value);
        }
        Some((directory, environment))
    }
}

/// Says who we are and hears who the other is, on either side of a new connection.
///
/// # Errors
/// Where the other is another user's process, is silent, or speaks another version.
pub(crate) async fn greet(stream: &mut UnixStream) -> io::Result<()> {
    let own = rustix::process::geteuid().as_raw();
    if stream.peer_cred()?.uid() != own {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "another user's process is at the other end"));
    }
    let greeting = async {
        frame::write(stream, &Greeting { protocol: PROTOCOL }).await?;
        frame::expect::<Greeting, _>(stream).await
    };
    let theirs = timeout(GREETING_WAIT, greeting).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    if theirs.protocol != PROTOCOL {
        let why = format!("it speaks version {} and this host version {PROTOCOL}", theirs.protocol);
        return Err(io::Error::new(io::ErrorKind::Unsupported, why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn two_of_one_version_meet_and_others_are_told_apart() {
        let (mut one, mut other) = UnixStream::pair().unwrap();
        let (met, heard) = tokio::join!(greet(&mut one), greet(&mut other));
        assert!(met.is_ok() && heard.is_ok());
        for (said, kind) in [
            (r#"{"protocol":2,"more":"of a later time"}"#, io::ErrorKind::Unsupported),
            (r#"{"hello":1}"#, io::ErrorKind::InvalidData),
        ] {
            let (mut host, mut keeper) = UnixStream::pair().unwrap();
            let said: serde_json::Value = serde_json::from_str(said).unwrap();
            frame::write(&mut keeper, &said).await.unwrap();
            assert_eq!(greet(&mut host).await.unwrap_err().kind(), kind);
        }
    }
}
