//! How shells, jobs and logs pass over a byte stream: one order and its answer as JSON, then blocks of bytes.
//!
//! A block is one byte that says what it is, four bytes of length, big-endian, and so many bytes.

use std::collections::BTreeMap;
use std::io;

use envforge_domain::commit::Surface;
use envforge_domain::ids::{JobRunId, OrgId, ProjectId, SessionId, ShellId, UserId, WorkspaceId};
use envforge_domain::job_run::JobOrder;
use envforge_domain::limits::SHELL_WINDOW_BYTES;
use envforge_domain::project::Repository;
use envforge_domain::secret::Secret;
use envforge_domain::shell::{
    LastingShell, LogChunk, LogPlace, ShellEnd, ShellFacts, ShellFailure, ShellInput, ShellOrder, ShellOutput,
    ShellSignal, ShellWhat, TerminalSize,
};
use envforge_domain::slug::ServiceName;
use envforge_domain::workspace::Branch;
use envforge_runtime::wire::{GitCall, SecretText, text};
use envforge_runtime::{EndedShell, ShellLogin, ShellPlace, UntoldEnd};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::wire::shortened;

/// What a stream is for.
pub(crate) const SHELL: &str = "shell";
pub(crate) const JOB: &str = "job";
pub(crate) const LOGS: &str = "logs";
pub(crate) const COMMIT: &str = "commit";
/// What lasts beyond connections, and its end.
pub(crate) const LASTING: &str = "lasting";
/// Ends that the log may not know, as they come to be.
pub(crate) const ENDS: &str = "ends";
/// What is open there, and whose end is untold.
pub(crate) const KNOWN: &str = "known";

/// The largest block: all input that a client may have on its way.
const BLOCK_BYTES_MAX: usize = SHELL_WINDOW_BYTES;
/// A chunk of logs.
pub(crate) const LOG_BYTES_MAX: usize = 1024 * 1024 + 64 * 1024;

const DATA: u8 = 0;
const END: u8 = 1;
const RESIZE: u8 = 2;
const SIGNAL: u8 = 3;
const OUT: u8 = 0;
const ERROR: u8 = 1;
const TAKEN: u8 = 2;
const OVER: u8 = 3;

const SIGNALS: [ShellSignal; 5] =
    [ShellSignal::Interrupt, ShellSignal::Quit, ShellSignal::Terminate, ShellSignal::Hangup, ShellSignal::Kill];

/// What a host may say of why something is over: rights, time and the client are the control plane's to judge.
const HOST_ENDS: [ShellEnd; 6] = [
    ShellEnd::Exited,
    ShellEnd::Signalled,
    ShellEnd::Closed,
    ShellEnd::RuntimeGone,
    ShellEnd::HostStopped,
    ShellEnd::NotStarted,
];

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// A shell to open. Organization and workspace are the stream's.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ShellCall {
    #[serde(with = "text")]
    shell: ShellId,
    #[serde(with = "text")]
    project: ProjectId,
    #[serde(with = "text")]
    user: UserId,
    #[serde(with = "text")]
    session: SessionId,
    surface: SurfaceName,
    repository: String,
    branch: String,
    what: What,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    git: Option<ShellGitCall>,
}

/// What git is given there.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShellGitCall {
    login: GitCall,
    inside: bool,
}

impl ShellGitCall {
    fn of(git: &ShellLogin) -> Self {
        Self { login: GitCall::of(&git.login), inside: git.inside }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "open", rename_all = "snake_case", deny_unknown_fields)]
enum What {
    Terminal { columns: u16, rows: u16, term: String, lasting: bool, words: Vec<String> },
    Command { words: Vec<String> },
    Ssh { client_key: String },
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum SurfaceName {
    Api,
    Cli,
    Console,
    Gateway,
    Agent,
}

impl From<Surface> for SurfaceName {
    fn from(surface: Surface) -> Self {
        match surface {
            Surface::Api => Self::Api,
            Surface::Cli => Self::Cli,
            Surface::Console => Self::Console,
            Surface::Gateway => Self::Gateway,
            Surface::Agent => Self::Agent,
        }
    }
}

impl From<SurfaceName> for Surface {
    fn from(name: SurfaceName) -> Self {
        match name {
            SurfaceName::Api => Self::Api,
            SurfaceName::Cli => Self::Cli,
            SurfaceName::Console => Self::Console,
            SurfaceName::Gateway => Self::Gateway,
            SurfaceName::Agent => Self::Agent,
        }
    }
}

impl ShellCall {
    pub(crate) fn of(order: &ShellOrder, login: Option<&ShellLogin>) -> Self {
        let what = match order.what.clone() {
            ShellWhat::Terminal { size: TerminalSize { columns, rows }, term, lasting, words } => {
                What::Terminal { columns, rows, term, lasting, words }
            }
            ShellWhat::Command { words } => What::Command { words },
            ShellWhat::Ssh { client_key } => What::Ssh { client_key },
        };
        Self {
            shell: order.shell,
            project: order.project,
            user: order.user,
            session: order.session,
            surface: order.surface.into(),
            repository: order.repository.as_str().to_owned(),
            branch: order.branch.as_str().to_owned(),
            what,
            git: login.map(ShellGitCall::of),
        }
    }

    /// With what the process that passes it on has read for git.
    pub(crate) fn with_login(self, login: &ShellLogin) -> Self {
        Self { git: Some(ShellGitCall::of(login)), ..self }
    }

    /// What is wrong with it where it is no order.
    pub(crate) fn order(self, org: OrgId, workspace: WorkspaceId) -> Result<(ShellOrder, Option<ShellLogin>), String> {
        let what = match self.what {
            What::Terminal { columns, rows, term, lasting, words } => {
                ShellWhat::Terminal { size: TerminalSize { columns, rows }, term, lasting, words }
            }
            What::Command { words } => ShellWhat::Command { words },
            What::Ssh { client_key } => ShellWhat::Ssh { client_key },
        };
        let login = self.git.map(|git| ShellLogin { login: git.login.login(), inside: git.inside });
        let order = ShellOrder {
            shell: self.shell,
            org,
            project: self.project,
            workspace,
            user: self.user,
            session: self.session,
            surface: self.surface.into(),
            repository: Repository::parse(&self.repository).map_err(|error| error.to_string())?,
            branch: Branch::parse(&self.branch).map_err(|error| error.to_string())?,
            // It came beside the order, with its value.
            git: None,
            what,
        };
        Ok((order, login))
    }
}

/// A job to run.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct JobCall {
    #[serde(with = "text")]
    run: JobRunId,
    #[serde(with = "text")]
    project: ProjectId,
    name: String,
    command: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    secrets: BTreeMap<String, SecretText>,
}

impl JobCall {
    pub(crate) fn of(order: &JobOrder, secrets: &BTreeMap<String, Secret>) -> Self {
        Self {
            run: order.run,
            project: order.project,
            name: order.name.clone(),
            command: order.command.clone(),
            secrets: BTreeMap::new(),
        }
        .with_secrets(secrets)
    }

    /// With the values of its secrets.
    pub(crate) fn with_secrets(self, secrets: &BTreeMap<String, Secret>) -> Self {
        let secrets = secrets.iter().map(|(name, value)| (name.clone(), SecretText::new(value))).collect();
        Self { secrets, ..self }
    }

    pub(crate) fn order(self, org: OrgId, workspace: WorkspaceId) -> (JobOrder, BTreeMap<String, Secret>) {
        let Self { run, project, name, command, secrets } = self;
        // Their values came beside the order.
        let order = JobOrder { run, org, project, workspace, name, command, secrets: Vec::new() };
        (order, secrets.into_iter().map(|(name, value)| (name, value.secret())).collect())
    }
}

/// Whether a shell or a job was begun.
#[derive(Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum ShellAnswer {
    Opened { lasting: bool, notice: Option<String>, host_key: Option<String> },
    TooMany { max: usize, of_workspace: bool },
    Checkout { reason: String },
    ClientKey,
    NotAwake,
    ShuttingDown,
    NotStarted { reason: String },
}

impl ShellAnswer {
    pub(crate) fn opened(facts: ShellFacts) -> Self {
        let ShellFacts { lasting, notice, host_key } = facts;
        Self::Opened { lasting, notice, host_key }
    }

    pub(crate) fn facts(self) -> Result<ShellFacts, ShellFailure> {
        match self {
            Self::Opened { lasting, notice, host_key } => {
                Ok(ShellFacts { lasting, notice: notice.map(shortened), host_key: host_key.map(shortened) })
            }
            Self::TooMany { max, of_workspace } => Err(ShellFailure::TooMany { max, of_workspace }),
            Self::Checkout { reason } => Err(ShellFailure::Checkout { reason: shortened(reason) }),
            Self::ClientKey => Err(ShellFailure::ClientKey),
            Self::NotAwake => Err(ShellFailure::NotAwake),
            Self::ShuttingDown => Err(ShellFailure::ShuttingDown),
            Self::NotStarted { reason } => Err(ShellFailure::NotStarted { reason: shortened(reason) }),
        }
    }
}

impl From<ShellFailure> for ShellAnswer {
    fn from(failure: ShellFailure) -> Self {
        match failure {
            ShellFailure::TooMany { max, of_workspace } => Self::TooMany { max, of_workspace },
            ShellFailure::Checkout { reason } => Self::Checkout { reason },
            ShellFailure::ClientKey => Self::ClientKey,
            ShellFailure::NotAwake => Self::NotAwake,
            ShellFailure::ShuttingDown => Self::ShuttingDown,
            ShellFailure::NotStarted { reason } => Self::NotStarted { reason },
            // A host says neither of itself.
            ShellFailure::HostElsewhere | ShellFailure::OutOfReach => Self::NotStarted { reason: failure.to_string() },
        }
    }
}

/// What of a service's output is wanted.
#[derive(Serialize, Deserialize)]
#[serde(tag = "logs", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum LogsCall {
    Tail {
        #[serde(with = "text")]
        service: ServiceName,
        lines: usize,
    },
    Since {
        #[serde(with = "text")]
        service: ServiceName,
        file: u64,
        offset: u64,
    },
}

/// What there is of it; so many bytes follow.
#[derive(Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum LogsAnswer {
    /// It never wrote here.
    None,
    Chunk {
        bytes: usize,
        file: u64,
        offset: u64,
        gap: bool,
    },
    Failed {
        reason: String,
    },
}

impl LogsAnswer {
    pub(crate) fn of(chunk: &LogChunk) -> Self {
        let LogPlace { file, offset } = chunk.next;
        Self::Chunk { bytes: chunk.bytes.len(), file, offset, gap: chunk.gap }
    }
}

/// What is asked about what lasts.
#[derive(Serialize, Deserialize)]
#[serde(tag = "lasting", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum LastingCall {
    All,
    /// In the stream's workspace. Answered with `null`, or with why it did not end.
    End {
        #[serde(with = "text")]
        user: UserId,
    },
}

/// One sign-in on which something that lasts stands.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LastingAnswer {
    #[serde(with = "text")]
    project: ProjectId,
    #[serde(with = "text")]
    workspace: WorkspaceId,
    #[serde(with = "text")]
    user: UserId,
    #[serde(with = "text")]
    session: SessionId,
    surface: SurfaceName,
}

impl LastingAnswer {
    pub(crate) fn of(shell: &LastingShell) -> Self {
        let LastingShell { project, workspace, user, session, surface, .. } = *shell;
        Self { project, workspace, user, session, surface: surface.into() }
    }

    pub(crate) fn shell(&self, org: OrgId) -> LastingShell {
        let Self { project, workspace, user, session, surface } = *self;
        LastingShell { org, project, workspace, user, session, surface: surface.into() }
    }
}

/// An end, both ways: the agent says it, and the control plane says it back once the log knows. Also what an agent knows of.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EndMessage {
    shell: Option<String>,
    job: Option<String>,
    #[serde(with = "text")]
    project: ProjectId,
    #[serde(with = "text")]
    workspace: WorkspaceId,
}

impl EndMessage {
    pub(crate) fn of(what: EndedShell, place: ShellPlace) -> Self {
        let (shell, job) = match what {
            EndedShell::Shell(shell) => (Some(shell.to_string()), None),
            EndedShell::Job(run) => (None, Some(run.to_string())),
        };
        Self { shell, job, project: place.project, workspace: place.workspace }
    }

    pub(crate) fn read(&self, org: OrgId) -> Option<(EndedShell, ShellPlace)> {
        let what = match (&self.shell, &self.job) {
            (Some(shell), None) => EndedShell::Shell(shell.parse().ok()?),
            (None, Some(run)) => EndedShell::Job(run.parse().ok()?),
            _ => return None,
        };
        Some((what, ShellPlace { org, project: self.project, workspace: self.workspace }))
    }

    pub(crate) fn of_untold(end: &UntoldEnd) -> Self {
        Self::of(end.what, end.place)
    }
}

async fn write_block<W: AsyncWrite + Unpin>(to: &mut W, kind: u8, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(|_| invalid("a block that is too large"))?;
    let mut block = Vec::with_capacity(bytes.len() + 5);
    block.push(kind);
    block.extend_from_slice(&length.to_be_bytes());
    block.extend_from_slice(bytes);
    to.write_all(&block).await
}

/// `None` where the stream ended between two.
async fn read_block<R: AsyncRead + Unpin>(from: &mut R) -> io::Result<Option<(u8, Vec<u8>)>> {
    let mut head = [0; 5];
    match from.read(&mut head[..1]).await? {
        0 => return Ok(None),
        _ => from.read_exact(&mut head[1..]).await?,
    };
    let [kind, length @ ..] = head;
    let length = u32::from_be_bytes(length) as usize;
    if length > BLOCK_BYTES_MAX {
        return Err(invalid("a block that is too large"));
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes).await?;
    Ok(Some((kind, bytes)))
}

/// Writes what a client sends. Not safe to cancel, as all that follow.
pub(crate) async fn write_input<W: AsyncWrite + Unpin>(to: &mut W, input: &ShellInput) -> io::Result<()> {
    match input {
        ShellInput::Data(bytes) => write_block(to, DATA, bytes).await,
        ShellInput::End => write_block(to, END, &[]).await,
        ShellInput::Resize(TerminalSize { columns, rows }) => {
            let [c, d] = columns.to_be_bytes();
            let [r, s] = rows.to_be_bytes();
            write_block(to, RESIZE, &[c, d, r, s]).await
        }
        ShellInput::Signal(signal) => {
            let index = SIGNALS.iter().position(|known| known == signal).and_then(|index| u8::try_from(index).ok());
            write_block(to, SIGNAL, &[index.ok_or_else(|| invalid("no such signal"))?]).await
        }
    }
}

pub(crate) async fn read_input<R: AsyncRead + Unpin>(from: &mut R) -> io::Result<Option<ShellInput>> {
    let Some((kind, bytes)) = read_block(from).await? else { return Ok(None) };
    Ok(Some(match (kind, bytes.as_slice()) {
        (DATA, _) => ShellInput::Data(bytes),
        (END, []) => ShellInput::End,
        (RESIZE, &[c, d, r, s]) => {
            ShellInput::Resize(TerminalSize { columns: u16::from_be_bytes([c, d]), rows: u16::from_be_bytes([r, s]) })
        }
        (SIGNAL, &[index]) => {
            let signal = SIGNALS.get(usize::from(index)).ok_or_else(|| invalid("no such signal"))?;
            ShellInput::Signal(*signal)
        }
        _ => return Err(invalid("no input of a shell")),
    }))
}

/// Writes what a host says.
pub(crate) async fn write_output<W: AsyncWrite + Unpin>(to: &mut W, output: &ShellOutput) -> io::Result<()> {
    match output {
        ShellOutput::Out(bytes) => write_block(to, OUT, bytes).await,
        ShellOutput::Error(bytes) => write_block(to, ERROR, bytes).await,
        ShellOutput::Taken(bytes) => write_block(to, TAKEN, &(*bytes as u64).to_be_bytes()).await,
        ShellOutput::Over { end, code } => {
            let over = serde_json::to_vec(&Over { end: end.token().to_owned(), code: *code })?;
            write_block(to, OVER, &over).await
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Over {
    end: String,
    code: Option<u32>,
}

pub(crate) async fn read_output<R: AsyncRead + Unpin>(from: &mut R) -> io::Result<Option<ShellOutput>> {
    let Some((kind, bytes)) = read_block(from).await? else { return Ok(None) };
    Ok(Some(match kind {
        OUT => ShellOutput::Out(bytes),
        ERROR => ShellOutput::Error(bytes),
        TAKEN => {
            let bytes = bytes.try_into().map_err(|_| invalid("no number of bytes"))?;
            ShellOutput::Taken(usize::try_from(u64::from_be_bytes(bytes)).unwrap_or(usize::MAX))
        }
        OVER => {
            let Over { end, code } = serde_json::from_slice(&bytes)?;
            let end = HOST_ENDS.into_iter().find(|known| known.token() == end).unwrap_or(ShellEnd::Lost);
            ShellOutput::Over { end, code }
        }
        _ => return Err(invalid("no output of a shell")),
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn input_and_output_are_read_back() {
        let inputs = [
            ShellInput::Data(b"typed\0\xff".to_vec()),
            ShellInput::Resize(TerminalSize { columns: 300, rows: 7 }),
            ShellInput::End,
        ];
        let mut written = Vec::new();
        for input in inputs.iter().cloned().chain(SIGNALS.map(ShellInput::Signal)) {
            write_input(&mut written, &input).await.unwrap();
            assert_eq!(read_input(&mut written.as_slice()).await.unwrap(), Some(input));
            written.clear();
        }
        for output in [
            ShellOutput::Out(vec![7; 64 * 1024]),
            ShellOutput::Error(b"bad".to_vec()),
            ShellOutput::Taken(70_000),
            ShellOutput::Over { end: ShellEnd::Exited, code: Some(3) },
        ] {
            write_output(&mut written, &output).await.unwrap();
            assert_eq!(read_output(&mut written.as_slice()).await.unwrap(), Some(output));
            written.clear();
        }
        assert_eq!(read_output(&mut &b""[..]).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_host_judges_no_rights_and_no_length_is_believed() {
        let mut written = Vec::new();
        write_output(&mut written, &ShellOutput::Over { end: ShellEnd::RightLost, code: None }).await.unwrap();
        let over = read_output(&mut written.as_slice()).await.unwrap();
        assert_eq!(over, Some(ShellOutput::Over { end: ShellEnd::Lost, code: None }));
        for wrong in [&[OUT, 0xff, 0xff, 0xff, 0xff, 0][..], &[DATA, 0, 0], &[9, 0, 0, 0, 0], &[SIGNAL, 0, 0, 0, 1, 9]]
        {
            assert!(read_input(&mut { wrong }).await.is_err(), "{wrong:?}");
        }
    }
}
