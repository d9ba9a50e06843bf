//! Shells: somebody's connection to a workspace's shell, from its beginning to its end, and what travels over it.
//!
//! Not here: what runs at its other end (runtime), and the right to it while it is open, which whoever carries it looks at
//! again and again (api).

use crate::access::{Action, Resource};
use crate::aggregate::{Aggregate, Refusal, RefusalKind};
use crate::commit::{StreamKind, Surface};
use crate::event::Event;
use crate::ids::{HostId, OrgId, ProjectId, SessionId, ShellId, UserId, WorkspaceId};
use crate::project::{GitCredential, Repository};
use crate::secrets::{ConsumedSecret, RefusedSecret};
use crate::time::{Millis, UnixMillis};
use crate::workspace::Branch;

/// What somebody connects to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ShellKind {
    /// A terminal, by itself or attached to a session that outlives it.
    Terminal,
    /// One command without a terminal.
    Command,
    /// OpenSSH with whatever it carries.
    Ssh,
}

impl ShellKind {
    pub const ALL: [Self; 3] = [Self::Terminal, Self::Command, Self::Ssh];

    pub const fn token(self) -> &'static str {
        match self {
            Self::Terminal => "terminal",
            Self::Command => "command",
            Self::Ssh => "ssh",
        }
    }
}

/// Why a shell, or a job's run, is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ShellEnd {
    /// What ran there ended by itself.
    Exited,
    Signalled,
    /// The client went away.
    Closed,
    /// The client gave no sign of life.
    Silent,
    /// The client broke the rules of the connection.
    Violation,
    /// The longest that it may be open is over.
    TimeOver,
    /// The session of whoever opened it was ended.
    SessionEnded,
    /// Whoever opened it may no more.
    RightLost,
    WorkspaceArchived,
    /// Whether the right still stood could not be made sure of.
    RightsUnknown,
    /// The runtime that it needs went to sleep or failed.
    RuntimeGone,
    HostStopped,
    /// It was never begun.
    NotStarted,
    /// Nobody knows: the host's process was killed.
    Lost,
}

impl ShellEnd {
    pub const ALL: [Self; 14] = [
        Self::Exited,
        Self::Signalled,
        Self::Closed,
        Self::Silent,
        Self::Violation,
        Self::TimeOver,
        Self::SessionEnded,
        Self::RightLost,
        Self::WorkspaceArchived,
        Self::RightsUnknown,
        Self::RuntimeGone,
        Self::HostStopped,
        Self::NotStarted,
        Self::Lost,
    ];

    pub const fn token(self) -> &'static str {
        match self {
            Self::Exited => "exited",
            Self::Signalled => "signalled",
            Self::Closed => "closed",
            Self::Silent => "silent",
            Self::Violation => "violation",
            Self::TimeOver => "time_over",
            Self::SessionEnded => "session_ended",
            Self::RightLost => "right_lost",
            Self::WorkspaceArchived => "workspace_archived",
            Self::RightsUnknown => "rights_unknown",
            Self::RuntimeGone => "runtime_gone",
            Self::HostStopped => "host_stopped",
            Self::NotStarted => "not_started",
            Self::Lost => "lost",
        }
    }
}

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    pub columns: u16,
    pub rows: u16,
}

/// Signals that a client may send to what runs at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShellSignal {
    Interrupt,
    Quit,
    Terminate,
    Hangup,
    Kill,
}

/// What a client sends, in order. Whoever carries it holds the client to `limits::SHELL_WINDOW_BYTES` of data that the host has
/// not said to have taken: the host itself takes whatever comes, so that signals never wait behind data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShellInput {
    Data(Vec<u8>),
    /// Nothing comes any more.
    End,
    Resize(TerminalSize),
    Signal(ShellSignal),
}

/// What a host sends, in order. `Over` is the last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShellOutput {
    Out(Vec<u8>),
    Error(Vec<u8>),
    /// So many bytes of input were taken by what runs there.
    Taken(usize),
    Over {
        end: ShellEnd,
        code: Option<u32>,
    },
}

/// What a host is asked for. The caller has seen that whoever asks may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShellOrder {
    pub shell: ShellId,
    pub org: OrgId,
    pub project: ProjectId,
    pub workspace: WorkspaceId,
    pub user: UserId,
    /// The sign-in on which it stands; what lasts is held to it.
    pub session: SessionId,
    pub surface: Surface,
    pub repository: Repository,
    pub branch: Branch,
    /// What git is given, by reference.
    pub git: Option<ShellGit>,
    pub what: ShellWhat,
}

impl ShellOrder {
    /// The workspace that it is for.
    pub const fn place(&self) -> Resource {
        Resource::Workspace { org: self.org, project: self.project, workspace: self.workspace }
    }
}

/// What git is given in a shell: the project's credential, whose value whoever has a store hands to the host beside the order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShellGit {
    pub credential: GitCredential,
    /// What is wrong with it otherwise.
    pub given: Result<ConsumedSecret, RefusedSecret>,
    /// From when on it is not given any more.
    pub expires_at: Option<UnixMillis>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShellWhat {
    Terminal {
        size: TerminalSize,
        /// The kind of terminal: `xterm-256color`.
        term: String,
        /// In a session that survives disconnects, where the host can.
        lasting: bool,
        /// A program with its arguments instead of the shell; nothing lasts then.
        words: Vec<String>,
    },
    Command {
        words: Vec<String>,
    },
    /// The bytes of OpenSSH, whose client proves itself by this key: `ssh-ed25519 AAAA…`.
    Ssh {
        client_key: String,
    },
}

impl ShellWhat {
    pub const fn kind(&self) -> ShellKind {
        match self {
            Self::Terminal { .. } => ShellKind::Terminal,
            Self::Command { .. } => ShellKind::Command,
            Self::Ssh { .. } => ShellKind::Ssh,
        }
    }
}

/// What a host says of a shell that it opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShellFacts {
    /// It survives a disconnect.
    pub lasting: bool,
    /// What the person should know, in one sentence.
    pub notice: Option<String>,
    /// Of SSH: the workspace's host key, as `ssh-ed25519 AAAA…`.
    pub host_key: Option<String>,
}

impl ShellFacts {
    /// With one thing more that the person should know.
    pub fn noticed(mut self, more: &str) -> Self {
        self.notice = Some(match self.notice {
            Some(notice) => format!("{notice}; {more}"),
            None => more.to_owned(),
        });
        self
    }
}

/// What a service wrote, from a place on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogChunk {
    pub bytes: Vec<u8>,
    /// Where the next one begins.
    pub next: LogPlace,
    /// Something before it was lost: the file has rotated away.
    pub gap: bool,
}

/// A place in a service's output: the file by its number on the disk, and the bytes before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogPlace {
    pub file: u64,
    pub offset: u64,
}

/// Why a host opened no shell. Nothing runs then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShellFailure {
    #[error(
        "no host of this workspace is in reach of this API's process: `serve api --relays` has to name each process with `agents` or \
         `reactors` that has hosts, and that one to listen with --relay-listen; or the organization has no host yet"
    )]
    HostElsewhere,
    #[error("the host on which this workspace lies is out of reach; its files are there and nowhere else")]
    OutOfReach,
    #[error("too many shells are open {place}: at most {max}", place = if *.of_workspace { "in this workspace" } else { "on this host" })]
    TooMany { max: usize, of_workspace: bool },
    #[error("the repository could not be cloned: {reason}")]
    Checkout { reason: String },
    #[error("what was asked for is no key of an SSH client")]
    ClientKey,
    #[error("the runtime is not awake")]
    NotAwake,
    #[error("the host is shutting down")]
    ShuttingDown,
    #[error("it could not be started: {reason}")]
    NotStarted { reason: String },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShellTerms {
    pub shell: ShellId,
    pub project: ProjectId,
    pub workspace: WorkspaceId,
    pub user: UserId,
    pub session: SessionId,
    pub kind: ShellKind,
    /// Where it is; `None` of those of former times, which were on the control plane's own machine.
    pub host: Option<HostId>,
    /// The version that git is given, for the first clone and, where the project says so, inside.
    pub git: Option<ConsumedSecret>,
    pub at: UnixMillis,
}

/// Somebody's shells that outlive their connections, and one of the sign-ins on which they stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastingShell {
    pub org: OrgId,
    pub project: ProjectId,
    pub workspace: WorkspaceId,
    pub user: UserId,
    pub session: SessionId,
    pub surface: Surface,
}

/// How a shell, or a job's run, ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShellEnded {
    pub end: ShellEnd,
    /// The exit status, or the signal's number.
    pub code: Option<u32>,
    pub at: UnixMillis,
    pub duration: Millis,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShellEvent {
    Connected {
        terms: ShellTerms,
    },
    /// Says by itself whose it was: its commit is EnvForge's own.
    Disconnected {
        user: UserId,
        workspace: WorkspaceId,
        ended: ShellEnded,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShellCommand {
    Connect { terms: ShellTerms },
    Disconnect { end: ShellEnd, code: Option<u32>, now: UnixMillis },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Shell {
    #[default]
    Unknown,
    Open(ShellTerms),
    Over,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShellRefusal {
    #[error("there is no such shell")]
    Unknown,
    #[error("this shell was opened already")]
    Exists,
}

impl Refusal for ShellRefusal {
    fn code(&self) -> &'static str {
        match self {
            Self::Unknown => "shell_unknown",
            Self::Exists => "shell_exists",
        }
    }

    fn kind(&self) -> RefusalKind {
        match self {
            Self::Unknown => RefusalKind::NotFound,
            Self::Exists => RefusalKind::Conflict,
        }
    }
}

impl Aggregate for Shell {
    const KIND: StreamKind = StreamKind::Shell;
    type State = Self;
    type Command = ShellCommand;
    type Event = ShellEvent;
    type Refusal = ShellRefusal;

    fn decide(state: &Self, command: &ShellCommand) -> Result<Vec<ShellEvent>, ShellRefusal> {
        match (state, command) {
            (Self::Unknown, ShellCommand::Connect { terms }) => {
                Ok(vec![ShellEvent::Connected { terms: terms.clone() }])
            }
            (Self::Open(_) | Self::Over, ShellCommand::Connect { .. }) => Err(ShellRefusal::Exists),
            (Self::Unknown, ShellCommand::Disconnect { .. }) => Err(ShellRefusal::Unknown),
            (Self::Open(terms), ShellCommand::Disconnect { end, code, now }) => Ok(vec![ShellEvent::Disconnected {
                user: terms.user,
                workspace: terms.workspace,
                ended: ShellEnded { end: *end, code: *code, at: *now, duration: now.since(terms.at) },
            }]),
            (Self::Over, ShellCommand::Disconnect { .. }) => Ok(vec![]),
        }
    }

    fn evolve(state: Self, event: &ShellEvent) -> Self {
        match (state, event) {
            (_, ShellEvent::Connected { terms }) => Self::Open(terms.clone()),
            (_, ShellEvent::Disconnected { .. }) => Self::Over,
        }
    }

    fn event_of(event: &Event) -> Option<&ShellEvent> {
        if let Event::Shell(event) = event { Some(event) } else { None }
    }

    fn action_of(command: &ShellCommand) -> Action {
        match command {
            ShellCommand::Connect { .. } => Action::ShellOpen,
            ShellCommand::Disconnect { .. } => Action::ShellReport,
        }
    }
}

impl From<ShellEvent> for Event {
    fn from(event: ShellEvent) -> Self {
        Self::Shell(event)
    }
}
