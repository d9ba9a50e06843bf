//! The unit of the log: a commit is the events of one decision on one stream, with who, where, why and when.

use std::fmt;

use crate::event::Event;
use crate::ids::{CommandId, CommitId, CorrelationId, HostId, LinkId, OrgId, ServiceTokenId, SessionId, UserId};
use crate::limits;
use crate::time::UnixMillis;

/// A position in the log: 1 for the first commit, strictly growing, 0 for "before everything".
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Position(u64);

impl Position {
    pub const START: Self = Self(0);

    pub const fn new(position: u64) -> Self {
        Self(position)
    }

    pub const fn get(self) -> u64 {
        self.0
    }

    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, formatter)
    }
}

/// The kinds of streams. The token stands in subjects and stored commits, so it is written out and never changes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum StreamKind {
    /// Members, roles and policies of one organization; key: the organization's id.
    Organization,
    /// A user as mirrored, with logins; key: the user's id.
    User,
    Project,
    Workspace,
    /// A workspace's runtime; key: the workspace's id.
    Runtime,
    Host,
    DevLink,
    /// Who holds a name that must be unique; key: the claim's own key, see `claim::ClaimKey`.
    Claim,
    /// Refused attempts, rate-limited; key: the organization's id.
    Denial,
    /// Why commands of people were allowed; key: that of the access stream on which they rested, see `decision`.
    Decision,
    /// The service tokens of one organization; one stream, see `service_token`.
    ServiceTokens,
    /// One exception from "no root"; key: the window's id.
    RootWindow,
    /// What is known of the secrets of one project or workspace, never a value; key: its id.
    Secrets,
    /// One connection to a workspace's shell; key: the shell's id.
    Shell,
    /// One run of a job; key: the run's id.
    JobRun,
    /// A virtual machine of a provider; key: the id of the host that lives on it. A strange one's: the provider's key.
    Machine,
}

impl StreamKind {
    pub const ALL: [Self; 16] = [
        Self::Organization,
        Self::User,
        Self::Project,
        Self::Workspace,
        Self::Runtime,
        Self::Host,
        Self::DevLink,
        Self::Claim,
        Self::Denial,
        Self::Decision,
        Self::ServiceTokens,
        Self::RootWindow,
        Self::Secrets,
        Self::Shell,
        Self::JobRun,
        Self::Machine,
    ];

    pub const fn token(self) -> &'static str {
        match self {
            Self::Organization => "organization",
            Self::User => "user",
            Self::Project => "project",
            Self::Workspace => "workspace",
            Self::Runtime => "runtime",
            Self::Host => "host",
            Self::DevLink => "dev_link",
            Self::Claim => "claim",
            Self::Denial => "denial",
            Self::Decision => "decision",
            Self::ServiceTokens => "service_tokens",
            Self::RootWindow => "root_window",
            Self::Secrets => "secrets",
            Self::Shell => "shell",
            Self::JobRun => "job",
            Self::Machine => "machine",
        }
    }

    pub fn from_token(token: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.token() == token)
    }
}

/// One aggregate's stream: one literal subject, one consistency boundary.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct StreamId {
    org: OrgId,
    kind: StreamKind,
    /// Only `[A-Za-z0-9_-]`, 1 to 100 characters: it is a token of a subject.
    key: Box<str>,
}

/// A key that cannot be one token of a subject.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{key}` cannot name a stream: 1 to 100 characters of A-Z, a-z, 0-9, `_` and `-`")]
pub struct InvalidStreamKey {
    pub key: String,
}

impl StreamId {
    pub fn new(org: OrgId, kind: StreamKind, key: &str) -> Result<Self, InvalidStreamKey> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        if key.is_empty() || key.len() > 100 || !key.bytes().all(allowed) {
            return Err(InvalidStreamKey { key: key.chars().take(120).collect() });
        }
        Ok(Self { org, kind, key: key.into() })
    }

    /// The stream of an aggregate whose key is a typed id. Ids display as `prefix_hex`, which is always a valid key.
    pub(crate) fn of(org: OrgId, kind: StreamKind, id: impl fmt::Display) -> Self {
        Self { org, kind, key: id.to_string().into() }
    }

    pub fn organization(org: OrgId) -> Self {
        Self::of(org, StreamKind::Organization, org)
    }

    pub fn user(org: OrgId, user: UserId) -> Self {
        Self::of(org, StreamKind::User, user)
    }

    pub fn denial(org: OrgId) -> Self {
        Self::of(org, StreamKind::Denial, org)
    }

    pub fn project(org: OrgId, project: crate::ids::ProjectId) -> Self {
        Self::of(org, StreamKind::Project, project)
    }

    pub fn workspace(org: OrgId, workspace: crate::ids::WorkspaceId) -> Self {
        Self::of(org, StreamKind::Workspace, workspace)
    }

    pub fn runtime(org: OrgId, workspace: crate::ids::WorkspaceId) -> Self {
        Self::of(org, StreamKind::Runtime, workspace)
    }

    pub fn host(org: OrgId, host: HostId) -> Self {
        Self::of(org, StreamKind::Host, host)
    }

    pub fn machine(org: OrgId, host: HostId) -> Self {
        Self::of(org, StreamKind::Machine, host)
    }

    /// An instance that nobody asked for, in no organization: what its tags say of one is not believed.
    ///
    /// # Errors
    /// Where the provider's key cannot be a stream's.
    pub fn strange_machine(instance: &str) -> Result<Self, InvalidStreamKey> {
        Self::new(OrgId::SYSTEM, StreamKind::Machine, instance)
    }

    pub fn dev_link(org: OrgId, link: LinkId) -> Self {
        Self::of(org, StreamKind::DevLink, link)
    }

    /// Its key is no id: the decisions that rested on it are none of the organization's stream.
    pub fn service_tokens(org: OrgId) -> Self {
        Self::of(org, StreamKind::ServiceTokens, "tokens")
    }

    pub fn root_window(org: OrgId, window: crate::ids::RootWindowId) -> Self {
        Self::of(org, StreamKind::RootWindow, window)
    }

    pub fn secrets(org: OrgId, owner: crate::secrets::SecretOwner) -> Self {
        Self::of(org, StreamKind::Secrets, owner)
    }

    pub fn shell(org: OrgId, shell: crate::ids::ShellId) -> Self {
        Self::of(org, StreamKind::Shell, shell)
    }

    pub fn job_run(org: OrgId, run: crate::ids::JobRunId) -> Self {
        Self::of(org, StreamKind::JobRun, run)
    }

    /// The decisions that rested on an access stream: of a person on their own, of an organization on its roles.
    pub fn decisions_on(access: &Self) -> Self {
        Self { org: access.org, kind: StreamKind::Decision, key: access.key.clone() }
    }

    pub fn org(&self) -> OrgId {
        self.org
    }

    pub fn kind(&self) -> StreamKind {
        self.kind
    }

    pub fn key(&self) -> &str {
        &self.key
    }

    /// `<org>.<kind>.<key>`: the subject below the log's prefix.
    pub fn subject(&self) -> String {
        format!("{}.{}.{}", self.org, self.kind.token(), self.key)
    }

    /// The inverse of `subject`.
    pub fn parse_subject(subject: &str) -> Option<Self> {
        let mut tokens = subject.split('.');
        let (org, kind, key) = (tokens.next()?, tokens.next()?, tokens.next()?);
        if tokens.next().is_some() {
            return None;
        }
        Self::new(org.parse().ok()?, StreamKind::from_token(kind)?, key).ok()
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.subject())
    }
}

/// Who acts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Actor {
    User(UserId),
    /// A reviewer: a session of a link, or the link itself before a session exists. No person is known.
    LinkVisitor {
        link: LinkId,
        session: Option<SessionId>,
    },
    /// The agent on a host.
    Agent(HostId),
    /// A program with a service token.
    ServiceToken(ServiceTokenId),
    /// EnvForge itself.
    System(Component),
    /// Nobody who proved anything, as in a failed login.
    Anonymous,
}

/// The parts of EnvForge that act on their own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Component {
    /// First start and recovery from the machine's command line.
    Setup,
    Gateway,
    /// Brings runtimes to the state that the log asks for.
    RuntimeReactor,
    /// Fires deadlines: expiry, idle sleep, lost leases.
    Timer,
    Identity,
    /// Brings providers' machines to the state that the log asks for.
    Fleet,
}

/// Where an action was asked for. Every row of the access policy names one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Surface {
    Api,
    Cli,
    Console,
    Gateway,
    Agent,
}

impl Surface {
    pub const ALL: [Self; 5] = [Self::Api, Self::Cli, Self::Console, Self::Gateway, Self::Agent];

    pub const fn token(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Cli => "cli",
            Self::Console => "console",
            Self::Gateway => "gateway",
            Self::Agent => "agent",
        }
    }

    pub fn from_token(token: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|surface| surface.token() == token)
    }
}

/// The events of one decision. Stored as one message, so it is atomic on any server.
#[derive(Clone, Debug, PartialEq)]
pub struct Commit {
    pub id: CommitId,
    pub command: CommandId,
    /// SHA-256 of the request this commit answers; the same command id with another digest is a client's mistake.
    pub request_digest: Option<[u8; 32]>,
    pub stream: StreamId,
    pub actor: Actor,
    pub surface: Surface,
    pub correlation: CorrelationId,
    /// The commit that caused this one, where one did.
    pub causation: Option<CommitId>,
    /// When the decision was made, by the decider's clock. The log adds its own time, which billing uses.
    pub decided_at: UnixMillis,
    /// 1 to `limits::COMMIT_EVENTS_MAX`.
    pub events: Vec<Event>,
}

/// A commit as the log remembers it.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    pub position: Position,
    /// The log's own clock: never goes back from one position to the next.
    pub recorded_at: UnixMillis,
    pub commit: Commit,
}

/// What must hold for a commit to be appended: one statement about one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expectation {
    /// The stream's last commit stands at this position; `Position::START` for a stream without any.
    LastAt(Position),
    /// The commit's own stream may stand anywhere; another one, which the append does not write, must not have moved.
    Guards(Standing),
}

/// Where a stream stood: its last commit, `Position::START` for a stream without any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub stream: StreamId,
    pub last: Position,
}

impl Commit {
    pub const fn event_count_is_valid(count: usize) -> bool {
        count >= 1 && count <= limits::COMMIT_EVENTS_MAX
    }
}
