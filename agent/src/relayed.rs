//! The asking side of a relay: which hosts another process of the control plane has, and the lines to them.
//!
//! Not here: when to connect, and again (the caller), and what becomes of two processes that name the same host (the newer connection is
//! its agent's own, or of the process that has the machine now).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use envforge_domain::ids::{HostId, OrgId};
use envforge_domain::time::SharedClock;
use tokio::io::{ReadHalf, WriteHalf};
use tokio::time::{Instant, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::connection::asking;
use crate::enrol::connect_as;
use crate::frame;
use crate::line::{AsOf, Calls, HostLine};
use crate::listener::HANDSHAKE_WAIT;
use crate::relay_key::{RELAY_NAME, RelayKey};
use crate::relay_wire::{HostMessage, RELAY_PATH, RelayCall, RelayHears, RelaySays};
use crate::stream::ByteStream;
use crate::wire::{HEARTBEAT_INTERVAL, SILENCE_MAX};

/// A process that names more has none.
const HOSTS_MAX: usize = 10_000;

/// A host that the process at the other end has: its agent is connected there, or it is that process's own machine.
#[derive(Clone)]
pub struct RelayedHost {
    /// Whose it is; `None` of a machine that nobody uses yet.
    pub org: Option<OrgId>,
    pub host: HostId,
    /// It is that process's own machine: the log may not know it yet.
    pub own_machine: bool,
    /// Another one where the agent has connected again, or the process began anew.
    pub connection: u64,
    pub since: Instant,
    calls: Calls,
    as_of: AsOf,
}

impl RelayedHost {
    /// The way to it for something of an organization.
    pub fn line(&self, org: OrgId) -> HostLine {
        HostLine::over_relay(org, self.host, self.calls.clone(), Arc::clone(&self.as_of))
    }
}

/// A connection to a process that has hosts. Whatever was open over it ends with it.
pub struct RelayConnection {
    says: ReadHalf<ByteStream>,
    calls: Calls,
    as_of: AsOf,
    _closed: DropGuard,
}

impl RelayConnection {
    /// `at`: host and port.
    ///
    /// # Errors
    /// Where nobody is there, or it is no process of this control plane.
    pub async fn open(at: &str, key: &RelayKey, clock: &SharedClock, as_of: AsOf) -> io::Result<Self> {
        let config = key.client_config(clock.now()).map_err(io::Error::other)?;
        let stream = connect_as(at, RELAY_NAME, config).await?;
        let (requests, connection) = timeout(HANDSHAKE_WAIT, asking().handshake::<_, Bytes>(stream))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
            .map_err(io::Error::other)?;
        let closed = CancellationToken::new();
        let ending = closed.clone();
        tokio::spawn(async move {
            // With the connection's future goes the socket.
            if let Some(Err(error)) = ending.run_until_cancelled(connection).await {
                tracing::debug!(%error, "a connection to another process broke");
            }
            ending.cancel();
        });
        let guard = closed.clone().drop_guard();
        let calls = Calls::new(requests);
        let (says, hears) = tokio::io::split(calls.open(RELAY_PATH, &RelayCall::Hosts).await?);
        tokio::spawn(speak(hears, closed));
        Ok(Self { says, calls, as_of, _closed: guard })
    }

    /// All hosts that are there, each time that they are others. Not safe to cancel.
    ///
    /// # Errors
    /// Where the connection is gone, or has been silent.
    pub async fn next(&mut self) -> io::Result<Vec<RelayedHost>> {
        loop {
            let next = timeout(SILENCE_MAX, frame::expect_call(&mut self.says)).await;
            match next.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the other process fell silent"))?? {
                RelaySays::Alive => {}
                RelaySays::Hosts { hosts } if hosts.len() > HOSTS_MAX => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "more hosts than a process has"));
                }
                RelaySays::Hosts { hosts } => return hosts.into_iter().map(|host| self.host(host)).collect(),
            }
        }
    }

    fn host(&self, message: HostMessage) -> io::Result<RelayedHost> {
        let HostMessage { org, host, own_machine, connection, age_ms } = message;
        let invalid = |_| io::Error::new(io::ErrorKind::InvalidData, "a host of no organization");
        let org = org.map(|org| org.parse()).transpose().map_err(invalid)?;
        let now = Instant::now();
        let since = now.checked_sub(Duration::from_millis(age_ms)).unwrap_or(now);
        let (calls, as_of) = (self.calls.clone(), Arc::clone(&self.as_of));
        Ok(RelayedHost { org, host, own_machine, connection, since, calls, as_of })
    }
}

/// Says that this process lives, until the connection ends.
async fn speak(mut to: WriteHalf<ByteStream>, closed: CancellationToken) {
    let speaking = async {
        let mut alive = tokio::time::interval(HEARTBEAT_INTERVAL);
        alive.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            alive.tick().await;
            if frame::write(&mut to, &RelayHears::Alive).await.is_err() {
                break;
            }
        }
    };
    closed.run_until_cancelled(speaking).await;
    closed.cancel();
}
