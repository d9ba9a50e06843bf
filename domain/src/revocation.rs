//! What taking a right away has closed, as it is told to whoever took it and written down.
//!
//! One form for links, sessions, roles, policies and workspaces. Not here: whose stream it is written to (`user`, `dev_link`,
//! `organization`, `workspace`).

use crate::ids::{ApiProcessId, GatewayId};
use crate::time::Millis;

/// What a revocation closed, and how fast. Written after it: the revocation holds with or without it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Receipt {
    /// Of people and of reviewers.
    pub sessions: u32,
    /// Of those, people's on the command line.
    pub cli_sessions: u32,
    /// Links that are over with it.
    pub links: u32,
    /// WebSockets that were open and are closed, of the gateways that told.
    pub sockets: u32,
    /// Gateways whose sockets are not among them.
    pub uncounted: Vec<Uncounted>,
    /// Terminals, commands, SSH, jobs, followed logs and root shells that were open and are over, of the API processes that told.
    pub shells: u32,
    /// API processes whose shells are not among them.
    pub shells_uncounted: Vec<UncountedShells>,
    /// From the decision until every gateway refused what was revoked.
    pub took: Millis,
}

impl Receipt {
    /// Whether nothing was closed, as far as everybody told.
    pub const fn is_empty(&self) -> bool {
        let nothing = self.sessions == 0 && self.links == 0 && self.sockets == 0 && self.shells == 0;
        nothing && self.uncounted.is_empty() && self.shells_uncounted.is_empty()
    }
}

/// A gateway that did not tell how many sockets it closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uncounted {
    /// `None` where it was not one gateway alone.
    pub gateway: Option<GatewayId>,
    pub why: WhyUncounted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhyUncounted {
    /// It refuses what was revoked. Something was open for longer than was waited for.
    StillClosing,
    /// Its lease is over: nothing was heard of it, and it refuses everything by itself since.
    Lost,
    /// Nothing was heard of it in time, and its lease is not known to be over.
    Silent,
    /// Which gateways there are could not be asked.
    Unknown,
    /// Of a time when gateways in other processes did not report.
    NotReported,
}

impl WhyUncounted {
    pub const fn token(self) -> &'static str {
        match self {
            Self::StillClosing => "still_closing",
            Self::Lost => "gateway_lost",
            Self::Silent => "gateway_silent",
            Self::Unknown => "gateways_unknown",
            Self::NotReported => "not_reported",
        }
    }
}

/// An API process that did not tell how many shells ended there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UncountedShells {
    /// `None` where it was not one process alone.
    pub process: Option<ApiProcessId>,
    pub why: WhyShellsUnknown,
}

/// Why it is not known of shells whether, or how many of them, are over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhyShellsUnknown {
    /// They lost their right. Some were open for longer than was waited for.
    StillClosing,
    /// Its lease is over: nothing was heard of it, and it ends whatever is open by itself since.
    Lost,
    /// Nothing was heard of it in time, and its lease is not known to be over.
    Silent,
    /// Which processes there are could not be asked.
    Unknown,
    /// Of a time when one process alone was asked.
    OtherProcesses,
    /// Of a time when they were not counted.
    NotReported,
}

impl WhyShellsUnknown {
    pub const fn token(self) -> &'static str {
        match self {
            Self::StillClosing => "still_closing",
            Self::Lost => "process_lost",
            Self::Silent => "process_silent",
            Self::Unknown => "processes_unknown",
            Self::OtherProcesses => "other_processes",
            Self::NotReported => "not_reported",
        }
    }
}
