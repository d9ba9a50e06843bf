//! What the two sides say to each other, as JSON. One version for all of it: [`PATH`].
//!
//! INVARIANT: types that carry secrets have no `Debug`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use envforge_domain::ids::{OrgId, WorkspaceId};
use envforge_domain::slug::ServiceName;
use envforge_runtime::wire::{StageMessage, text};
use envforge_runtime::{Awake, Report, WakeFailure};
use serde::{Deserialize, Serialize};

pub(crate) use envforge_runtime::wire::{SecretText, WakeCall};

use crate::shell_wire::SHELL;

/// Where all calls go; another version of what follows is another path.
pub(crate) const PATH: &str = "/v1/call";
/// How often either side says something where it has nothing to say.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);
/// Without a word for this long the other side counts as gone, and the connection with it.
pub const SILENCE_MAX: Duration = Duration::from_secs(15);

/// The code of whoever cannot say whether an agent may come: the log or a view does not answer.
pub const UNDECIDED: &str = "unavailable";

const REASON_CHARS_MAX: usize = 1_000;

/// What the control plane opens a stream for; the first message on it.
#[derive(Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Call {
    /// The one stream on which the agent tells facts, for as long as the connection lives.
    Session,
    /// This workspace is to be awake at this epoch.
    Wake(Box<WakeCall>),
    /// It is to be asleep, up to this epoch.
    Sleep {
        #[serde(with = "text")]
        org: OrgId,
        #[serde(with = "text")]
        workspace: WorkspaceId,
        epoch: u64,
    },
    /// Nothing of it is to be kept.
    Remove {
        #[serde(with = "text")]
        org: OrgId,
        #[serde(with = "text")]
        workspace: WorkspaceId,
    },
    Stream(StreamHeader),
    /// The connection ends here, and why.
    Refused {
        code: String,
        text: String,
    },
}

/// What a byte stream is for; the bytes follow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamHeader {
    #[serde(with = "text")]
    pub org: OrgId,
    #[serde(with = "text")]
    pub workspace: WorkspaceId,
    /// Which of the agent's programs gets the bytes.
    pub purpose: String,
    /// What that program needs to know.
    pub parameters: BTreeMap<String, String>,
}

impl StreamHeader {
    /// Whether something may begin with it on a host that has done nothing for its organization yet.
    pub fn may_begin(&self) -> bool {
        self.purpose == SHELL
    }
}

/// Whether the agent took a stream.
#[derive(Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum StreamAnswer {
    Open,
    Refused { reason: String },
}

/// What the agent answers to a wake: stages, and one of the others at the end.
#[derive(Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum WakeAnswer {
    Stage(StageMessage),
    Ready {
        facts: u64,
        endpoints: Vec<(String, SocketAddr)>,
        commit: String,
    },
    /// A sleep or a newer wake overtook it, or the agent ends.
    Overtaken,
    Failed {
        text: String,
        may_pass_on_retry: bool,
    },
}

impl WakeAnswer {
    pub(crate) fn of_outcome(outcome: Result<Awake, WakeFailure>, facts: u64) -> Self {
        match outcome {
            Ok(Awake { endpoints, commit }) => {
                let endpoints = endpoints.into_iter().map(|(name, address)| (name.to_string(), address));
                Self::Ready { facts, endpoints: endpoints.collect(), commit }
            }
            Err(WakeFailure::Cancelled | WakeFailure::ShuttingDown) => Self::Overtaken,
            Err(failure) => Self::Failed { text: failure.to_string(), may_pass_on_retry: failure.may_pass_on_retry() },
        }
    }
}

/// What the agent answers to a sleep or a removal.
#[derive(Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum EndAnswer {
    Ended { facts: u64 },
    Failed { text: String },
}

/// What the agent says of its own accord.
#[derive(Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Up {
    /// First of all.
    Hello {
        agent_version: String,
    },
    /// Everything that is up here. `facts` grows with each change.
    Facts {
        facts: u64,
        up: BTreeMap<String, u64>,
    },
    Report(ReportMessage),
    Alive,
    /// A key to certify, in place of the one before it.
    Renew {
        request: String,
    },
}

/// What the control plane says on the same stream.
#[derive(Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Down {
    Alive,
    Certificate { chain: String, expires_at_unix_ms: u64 },
    NotCertified { reason: String },
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum ReportMessage {
    Restarted {
        #[serde(with = "text")]
        workspace: WorkspaceId,
        epoch: u64,
        #[serde(with = "text")]
        service: ServiceName,
        status: String,
    },
    Failed {
        #[serde(with = "text")]
        workspace: WorkspaceId,
        epoch: u64,
        #[serde(with = "text")]
        service: ServiceName,
        reason: String,
    },
}

impl From<Report> for ReportMessage {
    fn from(report: Report) -> Self {
        match report {
            Report::ServiceRestarted { workspace, epoch, service, status } => {
                Self::Restarted { workspace, epoch, service, status }
            }
            Report::RuntimeFailed { workspace, epoch, service, reason } => {
                Self::Failed { workspace, epoch, service, reason }
            }
        }
    }
}

impl From<ReportMessage> for Report {
    fn from(message: ReportMessage) -> Self {
        match message {
            ReportMessage::Restarted { workspace, epoch, service, status } => {
                Self::ServiceRestarted { workspace, epoch, service, status: shortened(status) }
            }
            ReportMessage::Failed { workspace, epoch, service, reason } => {
                Self::RuntimeFailed { workspace, epoch, service, reason: shortened(reason) }
            }
        }
    }
}

/// What an agent says in words may end up in the log, which takes no more of it.
pub(crate) fn shortened(text: String) -> String {
    if text.chars().count() <= REASON_CHARS_MAX { text } else { text.chars().take(REASON_CHARS_MAX).collect() }
}

/// An agent that wants to enrol.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EnrolCall {
    pub(crate) token: SecretText,
    /// PEM, PKCS #10.
    pub(crate) request: String,
    pub(crate) machine: String,
    pub(crate) cpu_millicores: u32,
    pub(crate) memory_mib: u32,
    pub(crate) agent_version: String,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum EnrolAnswer {
    Granted { chain: String, expires_at_unix_ms: u64 },
    Refused { code: String, text: String },
}
