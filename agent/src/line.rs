//! The way to the programs of an agent's host: its connection, or that of another process of the control plane that holds it.
//!
//! Owns how a call begins on a connection, and how a byte stream comes to be over either way. Not here: what passes over one (`shells`,
//! `roots`).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use envforge_domain::ids::{HostId, OrgId, WorkspaceId};
use h2::client::SendRequest;
use http::Request;
use serde::Serialize;
use tokio::time::timeout;

use crate::frame;
use crate::relay_wire::{RELAY_PATH, RelayAnswer, RelayCall};
use crate::stream::ByteStream;
use crate::wire::{Call, PATH, StreamAnswer, StreamHeader, shortened};

/// Until a call is under way.
const CALL_WAIT: Duration = Duration::from_secs(10);

/// The asking side of a connection. Clones are one.
#[derive(Clone)]
pub(crate) struct Calls(SendRequest<Bytes>);

impl Calls {
    pub(crate) fn new(requests: SendRequest<Bytes>) -> Self {
        Self(requests)
    }

    /// Begins a call.
    ///
    /// # Errors
    /// `Unsupported` where the other side has no such path; `TimedOut` where it takes no call.
    pub(crate) async fn open(&self, path: &str, call: &impl Serialize) -> io::Result<ByteStream> {
        let opening = async {
            let mut calls = self.0.clone().ready().await.map_err(io::Error::other)?;
            let request = Request::post(format!("https://other-side{path}")).body(()).map_err(io::Error::other)?;
            let (response, send) = calls.send_request(request, false).map_err(io::Error::other)?;
            let response = response.await.map_err(io::Error::other)?;
            if !response.status().is_success() {
                let why = format!("the other side answered {}", response.status());
                return Err(io::Error::new(io::ErrorKind::Unsupported, why));
            }
            let mut stream = ByteStream::new(send, response.into_body());
            frame::write_call(&mut stream, call).await?;
            Ok(stream)
        };
        timed(opening).await
    }
}

pub(crate) async fn timed<T>(wait: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(CALL_WAIT, wait).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// How far this process knows the log: a process that passes something on knows at least as much before it judges.
pub type AsOf = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Opens byte streams to one host's programs. Clones are one.
#[derive(Clone)]
pub struct HostLine {
    org: OrgId,
    calls: Calls,
    way: Way,
}

#[derive(Clone)]
enum Way {
    /// The connection is its agent's.
    Agent,
    /// The connection is to the process that has it.
    Relay { host: HostId, as_of: AsOf },
}

impl HostLine {
    pub(crate) fn of_agent(org: OrgId, calls: Calls) -> Self {
        Self { org, calls, way: Way::Agent }
    }

    pub(crate) fn over_relay(org: OrgId, host: HostId, calls: Calls, as_of: AsOf) -> Self {
        Self { org, calls, way: Way::Relay { host, as_of } }
    }

    /// Whose host it is.
    pub fn org(&self) -> OrgId {
        self.org
    }

    pub(crate) fn calls(&self) -> &Calls {
        &self.calls
    }

    pub(crate) fn header(&self, workspace: WorkspaceId, purpose: &str) -> StreamHeader {
        let (org, purpose) = (self.org, purpose.to_owned());
        StreamHeader { org, workspace, purpose, parameters: Default::default() }
    }

    /// Opens a byte stream to one of the agent's programs.
    ///
    /// # Errors
    /// `ConnectionRefused` where the agent has no such program or does not let this one in, or the process in between does not;
    /// `NotConnected` where that one does not have the host.
    pub async fn open_stream(&self, header: StreamHeader) -> io::Result<ByteStream> {
        let refused = |reason: String| io::Error::new(io::ErrorKind::ConnectionRefused, shortened(reason));
        match &self.way {
            Way::Agent => {
                let mut stream = self.calls.open(PATH, &Call::Stream(header)).await?;
                match timed(frame::expect(&mut stream)).await? {
                    StreamAnswer::Open => Ok(stream),
                    StreamAnswer::Refused { reason } => Err(refused(reason)),
                }
            }
            Way::Relay { host, as_of } => {
                let call = RelayCall::Stream { host: *host, as_of: as_of(), header };
                let mut stream = self.calls.open(RELAY_PATH, &call).await?;
                match timed(frame::expect(&mut stream)).await? {
                    RelayAnswer::Open => Ok(stream),
                    RelayAnswer::NotHere => Err(io::ErrorKind::NotConnected.into()),
                    RelayAnswer::Refused { reason } => Err(refused(reason)),
                }
            }
        }
    }
}
