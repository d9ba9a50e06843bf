//! What two processes of the control plane say to each other about the hosts that one of them has, as JSON. One version for all of it:
//! [`RELAY_PATH`].

use envforge_domain::ids::HostId;
use envforge_runtime::wire::text;
use serde::{Deserialize, Serialize};

use crate::given::GivenCall;
use crate::wire::StreamHeader;

/// Where all calls go; another version of what follows is another path.
pub(crate) const RELAY_PATH: &str = "/v1/relay";
/// How a connection says what it is for.
pub(crate) const RELAY_PROTOCOL: &[u8] = b"envforge-relay/1";

/// What a stream is opened for; the first message on it.
#[derive(Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum RelayCall {
    /// The one stream on which the process that has hosts says which, for as long as the connection lives.
    Hosts,
    /// A byte stream to a host's programs. It is judged by a log that reaches at least to `as_of`.
    Stream {
        #[serde(with = "text")]
        host: HostId,
        as_of: u64,
        header: StreamHeader,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        given: Option<GivenCall>,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum RelayAnswer {
    Open,
    /// Open, though git has no credential there.
    OpenWithout {
        lacks: String,
    },
    /// It does not have that host, or not for that organization.
    NotHere,
    Refused {
        reason: String,
    },
}

/// What the process that has hosts says of its own accord.
#[derive(Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum RelaySays {
    /// All of them.
    Hosts {
        hosts: Vec<HostMessage>,
    },
    Alive,
}

/// What the asking process says on the same stream.
#[derive(Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum RelayHears {
    Alive,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HostMessage {
    /// `None` of a machine that nobody uses yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) org: Option<String>,
    #[serde(with = "text")]
    pub(crate) host: HostId,
    /// It is the machine of that process, without an agent.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) own_machine: bool,
    /// Another one where the agent has connected again.
    pub(crate) connection: u64,
    /// How long it has been there. Clocks of two machines differ.
    pub(crate) age_ms: u64,
}
