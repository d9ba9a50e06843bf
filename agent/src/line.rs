//! The way to the programs of a host: its agent's connection, or that of another process of the control plane that holds it, or none at
//! all, where the host is this process's own and another one asks.
//!
//! Owns how a call begins on a connection, and how a byte stream comes to be over each way. Not here: what passes over one (`shells`,
//! `roots`).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use envforge_domain::ids::{HostId, OrgId, WorkspaceId};
use envforge_runtime::LocalHost;
use h2::client::SendRequest;
use http::Request;
use serde::Serialize;
use tokio::time::timeout;

use crate::agent::{FOREIGN, StreamHandler, not_served};
use crate::frame;
use crate::given::GivenCall;
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
    way: Way,
}

#[derive(Clone)]
enum Way {
    /// The connection is its agent's.
    Agent(Calls),
    /// The connection is to the process that has it.
    Relay { calls: Calls, host: HostId, as_of: AsOf },
    /// This very process has it.
    Here { host: LocalHost, programs: StreamHandler },
}

impl HostLine {
    pub(crate) fn of_agent(org: OrgId, calls: Calls) -> Self {
        Self { org, way: Way::Agent(calls) }
    }

    pub(crate) fn over_relay(org: OrgId, host: HostId, calls: Calls, as_of: AsOf) -> Self {
        Self { org, way: Way::Relay { calls, host, as_of } }
    }

    /// The way for other processes to this process's own host: to the programs that an agent serves ([`crate::programs`]), without an
    /// agent. `org`: whose workspaces they may ask for.
    pub fn here(org: OrgId, host: LocalHost, programs: StreamHandler) -> Self {
        Self { org, way: Way::Here { host, programs } }
    }

    /// Whose host it is.
    pub fn org(&self) -> OrgId {
        self.org
    }

    /// Whether the process at its other end reads values of secrets itself, and is told which.
    pub(crate) fn gives_by_reference(&self) -> bool {
        matches!(self.way, Way::Relay { .. })
    }

    pub(crate) fn header(&self, workspace: WorkspaceId, purpose: &str) -> StreamHeader {
        let (org, purpose) = (self.org, purpose.to_owned());
        StreamHeader { org, workspace, purpose, parameters: Default::default() }
    }

    /// Opens a byte stream to one of the host's programs.
    ///
    /// # Errors
    /// `ConnectionRefused` where the host has no such program or does not let this one in, or the process in between does not;
    /// `NotConnected` where that one does not have the host.
    pub async fn open_stream(&self, header: StreamHeader) -> io::Result<ByteStream> {
        self.open_given(header, None).await.map(|(stream, _)| stream)
    }

    /// As [`HostLine::open_stream`]. `given`: which secrets the process in between is to read for it, where there is one. Answers besides
    /// what git lacks there.
    pub(crate) async fn open_given(
        &self,
        header: StreamHeader,
        given: Option<GivenCall>,
    ) -> io::Result<(ByteStream, Option<String>)> {
        let refused = |reason: String| io::Error::new(io::ErrorKind::ConnectionRefused, shortened(reason));
        match &self.way {
            Way::Agent(calls) => {
                let mut stream = calls.open(PATH, &Call::Stream(header)).await?;
                match timed(frame::expect(&mut stream)).await? {
                    StreamAnswer::Open => Ok((stream, None)),
                    StreamAnswer::Refused { reason } => Err(refused(reason)),
                }
            }
            Way::Relay { calls, host, as_of } => {
                // A store takes its time, and may ask for patience.
                let waits = given.is_some();
                let call = RelayCall::Stream { host: *host, as_of: as_of(), header, given };
                let mut stream = calls.open(RELAY_PATH, &call).await?;
                let answer = frame::expect(&mut stream);
                match if waits { answer.await? } else { timed(answer).await? } {
                    RelayAnswer::Open => Ok((stream, None)),
                    RelayAnswer::OpenWithout { lacks } => Ok((stream, Some(shortened(lacks)))),
                    RelayAnswer::NotHere => Err(io::ErrorKind::NotConnected.into()),
                    RelayAnswer::Refused { reason } => Err(refused(reason)),
                }
            }
            Way::Here { host, programs } => {
                if header.org != self.org {
                    return Err(refused(FOREIGN.to_owned()));
                }
                let program = programs(&header, host).ok_or_else(|| refused(not_served(&header)))?;
                let (ours, theirs) = ByteStream::pair();
                // Ends with the stream, as a program of an agent does.
                tokio::spawn(program(theirs));
                Ok((ours, None))
            }
        }
    }
}
