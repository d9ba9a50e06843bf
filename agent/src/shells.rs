//! Shells, jobs and logs of workspaces on an agent's host: the agent's programs for them, and the control plane's calls. The same programs
//! serve other processes of the control plane on the machine of one without an agent (`HostLine::here`).
//!
//! INVARIANT: a shell ends with its stream. The stream ends with whoever holds the shell in the control plane, and with the connection,
//! which ends after `SILENCE_MAX` without a word. Not here: who may have a shell (the control plane has asked, and goes on asking while
//! it is open), and what runs in one (runtime).

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use envforge_domain::ids::{OrgId, UserId, WorkspaceId};
use envforge_domain::job_run::JobOrder;
use envforge_domain::secret::Secret;
use envforge_domain::shell::{LastingShell, LogChunk, LogPlace, ShellFailure, ShellInput, ShellOrder, ShellOutput};
use envforge_domain::slug::ServiceName;
use envforge_runtime::{EndedShell, LocalHost, OpenShell, ShellLogin, ShellPlace, UntoldEnd};
use futures_util::FutureExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::agent::{StreamHandler, StreamProgram};
use crate::frame;
use crate::given::GivenCall;
use crate::line::HostLine;
use crate::remote::RemoteHost;
use crate::root_wire::ROOT;
use crate::roots::Roots;
use crate::shell_wire::{
    COMMIT, ENDS, EndMessage, JOB, JobCall, KNOWN, LASTING, LOG_BYTES_MAX, LOGS, LastingAnswer, LastingCall,
    LogsAnswer, LogsCall, SHELL, ShellAnswer, ShellCall, read_input, read_output, write_input, write_output,
};
use crate::stream::ByteStream;
use crate::wire::StreamHeader;

/// Chunks on their way in each direction, beside what the connection holds.
const CHUNKS_MAX: usize = 4;
/// For what is said at once.
const ANSWER_WAIT: Duration = Duration::from_secs(10);
/// From the end of something to its being told here: whoever carried it tells first, and knows more. Longer than that one goes on trying.
const END_WAIT: Duration = Duration::from_secs(40);
/// A host that lists more is none.
const LASTING_MAX: usize = 10_000;
/// So does one that knows more shells and jobs: open ones, and ends that nobody has told yet.
const KNOWN_MAX: usize = 100_000;
const COMMIT_CHARS_MAX: usize = 64;

/// What an agent serves on byte streams.
pub fn programs() -> StreamHandler {
    let roots = Arc::<Roots>::default();
    Arc::new(move |header, host| {
        let StreamHeader { org, workspace, .. } = *header;
        let host = host.clone();
        let program: StreamProgram = match header.purpose.as_str() {
            SHELL => Box::new(move |stream| quietly(shell(stream, host, org, workspace)).boxed()),
            JOB => Box::new(move |stream| quietly(job(stream, host, org, workspace)).boxed()),
            LOGS => Box::new(move |stream| quietly(logs(stream, host, workspace)).boxed()),
            COMMIT => Box::new(move |stream| quietly(commit(stream, host, workspace)).boxed()),
            LASTING => Box::new(move |stream| quietly(lasting(stream, host, org, workspace)).boxed()),
            ROOT => {
                let roots = Arc::clone(&roots);
                Box::new(move |stream| quietly(roots.serve(stream, host, workspace)).boxed())
            }
            ENDS => Box::new(move |stream| quietly(ends(stream, host, org)).boxed()),
            KNOWN => Box::new(move |stream| quietly(known(stream, host, org)).boxed()),
            _ => return None,
        };
        Some(program)
    })
}

/// A stream that breaks is the other side's to notice.
async fn quietly(program: impl Future<Output = io::Result<()>>) {
    if let Err(error) = program.await {
        tracing::debug!(%error, "a stream of the control plane broke");
    }
}

async fn shell(mut stream: ByteStream, host: LocalHost, org: OrgId, workspace: WorkspaceId) -> io::Result<()> {
    let call: ShellCall = timed(frame::expect(&mut stream)).await?;
    let opened = match call.order(org, workspace) {
        Ok((order, login)) => while_asked(&mut stream, host.open_shell(order, login)).await?,
        Err(reason) => Err(ShellFailure::NotStarted { reason }),
    };
    serve(stream, opened).await
}

async fn job(mut stream: ByteStream, host: LocalHost, org: OrgId, workspace: WorkspaceId) -> io::Result<()> {
    let call: JobCall = timed(frame::expect_call(&mut stream)).await?;
    let (order, secrets) = call.order(org, workspace);
    let begun = while_asked(&mut stream, host.run_job(order, secrets)).await?;
    serve(stream, begun).await
}

/// Waits for what is begun for a stream, and lets go of it where that ends first: whoever asked for it is gone, or may no more. Looked at
/// before each step, so that nothing more begins then.
async fn while_asked<T>(stream: &mut ByteStream, beginning: impl Future<Output = T>) -> io::Result<T> {
    tokio::select! {
        biased;
        // Nothing is said there before the answer.
        said = stream.read_u8() => Err(match said {
            Ok(_) => io::ErrorKind::InvalidData.into(),
            Err(gone) => gone,
        }),
        begun = beginning => Ok(begun),
    }
}

/// Answers, and carries it to its end. Whatever ends this ends the shell: nobody holds its input any more.
pub(crate) async fn serve(mut stream: ByteStream, opened: Result<OpenShell, ShellFailure>) -> io::Result<()> {
    let OpenShell { facts, input, mut output } = match opened {
        Ok(open) => open,
        Err(failure) => {
            frame::write(&mut stream, &ShellAnswer::from(failure)).await?;
            return stream.shutdown().await;
        }
    };
    frame::write(&mut stream, &ShellAnswer::opened(facts)).await?;
    let (mut reading, mut writing) = tokio::io::split(stream);
    let feeding = async {
        while let Some(said) = read_input(&mut reading).await? {
            // One that is over takes nothing; its last words are on their way.
            if input.send(said).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
        Ok(())
    };
    let telling = async {
        while let Some(said) = output.recv().await {
            write_output(&mut writing, &said).await?;
        }
        writing.shutdown().await
    };
    let over = tokio::select! {
        gone = feeding => return gone,
        told = telling => told,
    };
    // Until the other side has read it all.
    let mut rest = [0; 1024];
    let _ = timeout(ANSWER_WAIT, async { while reading.read(&mut rest).await.is_ok_and(|read| read > 0) {} }).await;
    over
}

async fn logs(mut stream: ByteStream, host: LocalHost, workspace: WorkspaceId) -> io::Result<()> {
    let found = match timed(frame::expect(&mut stream)).await? {
        LogsCall::Tail { service, lines } => host.tail_log(workspace, &service, lines).await,
        LogsCall::Since { service, file, offset } => {
            host.log_since(workspace, &service, LogPlace { file, offset }).await.map(Some)
        }
    };
    match found {
        Ok(Some(chunk)) => {
            frame::write(&mut stream, &LogsAnswer::of(&chunk)).await?;
            stream.write_all(&chunk.bytes).await?;
        }
        Ok(None) => frame::write(&mut stream, &LogsAnswer::None).await?,
        Err(error) => frame::write(&mut stream, &LogsAnswer::Failed { reason: error.to_string() }).await?,
    }
    stream.shutdown().await
}

async fn commit(mut stream: ByteStream, host: LocalHost, workspace: WorkspaceId) -> io::Result<()> {
    frame::write(&mut stream, &host.commit_up(workspace)).await?;
    stream.shutdown().await
}

async fn lasting(mut stream: ByteStream, host: LocalHost, org: OrgId, workspace: WorkspaceId) -> io::Result<()> {
    match timed(frame::expect(&mut stream)).await? {
        LastingCall::All => {
            let all = host.lasting_shells().await;
            let all: Vec<_> = all.iter().filter(|shell| shell.org == org).map(LastingAnswer::of).collect();
            frame::write(&mut stream, &all).await?;
        }
        LastingCall::End { user } => {
            // The end goes on where the stream breaks.
            let ending = tokio::spawn(async move { host.end_lasting_shells(workspace, user).await });
            let failed = ending.await.map_err(io::Error::other)?.err().map(|error| error.to_string());
            frame::write(&mut stream, &failed).await?;
        }
    }
    stream.shutdown().await
}

/// Ends that nobody has told, each once, when whoever carried it has had time to tell.
pub struct DueEnds {
    untold: watch::Receiver<Vec<UntoldEnd>>,
    said: Vec<EndedShell>,
}

impl DueEnds {
    pub fn of(host: &LocalHost) -> Self {
        Self { untold: host.untold_ends(), said: Vec::new() }
    }

    /// The next ones of an organization, or of all. Safe to cancel.
    ///
    /// # Errors
    /// Where the host is gone.
    pub async fn next(&mut self, org: Option<OrgId>) -> io::Result<Vec<UntoldEnd>> {
        loop {
            let now = tokio::time::Instant::now();
            let all = self.untold.borrow_and_update().clone();
            self.said.retain(|known| all.iter().any(|end| end.what == *known));
            let (mut due, mut next) = (Vec::new(), None);
            let of_org = |end: &UntoldEnd| org.is_none_or(|org| org == end.place.org);
            for end in all.into_iter().filter(|end| of_org(end) && !self.said.contains(&end.what)) {
                let at = end.since + END_WAIT;
                if at <= now {
                    due.push(end)
                } else {
                    next = Some(next.map_or(at, |next: tokio::time::Instant| next.min(at)))
                }
            }
            if !due.is_empty() {
                self.said.extend(due.iter().map(|end| end.what));
                return Ok(due);
            }
            let later = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.untold.changed() => changed.map_err(io::Error::other)?,
                () = later => {}
            }
        }
    }
}

/// Says each end that nobody has told, until it is said back.
async fn ends(stream: ByteStream, host: LocalHost, org: OrgId) -> io::Result<()> {
    let mut due = DueEnds::of(&host);
    let (mut reading, mut writing) = tokio::io::split(stream);
    let telling = async {
        loop {
            for end in due.next(Some(org)).await? {
                frame::write(&mut writing, &EndMessage::of_untold(&end)).await?;
            }
        }
    };
    let hearing = async {
        while let Some(told) = frame::read::<EndMessage, _>(&mut reading).await? {
            if let Some((what, _)) = told.read(org)
                && let Err(error) = host.told(what).await
            {
                tracing::warn!(?what, %error, "the record of what has ended was not removed");
            }
        }
        Ok(())
    };
    tokio::select! {
        told = telling => told,
        heard = hearing => heard,
    }
}

/// Says each shell and job that it knows, and `null` after the last.
async fn known(mut stream: ByteStream, host: LocalHost, org: OrgId) -> io::Result<()> {
    for (what, place) in host.known_shells().into_iter().filter(|(_, place)| place.org == org) {
        frame::write(&mut stream, &Some(EndMessage::of(what, place))).await?;
    }
    frame::write(&mut stream, &None::<EndMessage>).await?;
    stream.shutdown().await
}

pub(crate) async fn timed<T>(wait: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(ANSWER_WAIT, wait).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

impl HostLine {
    /// See `LocalHost::open_shell`. It ends with the connection, and says nothing more then. Over a relay what git is given by the order is
    /// read at its other end, where no `login` is.
    ///
    /// # Errors
    /// See `ShellFailure`.
    pub async fn open_shell(&self, order: ShellOrder, login: Option<ShellLogin>) -> Result<OpenShell, ShellFailure> {
        let reads_there = login.is_none() && self.gives_by_reference();
        let given = GivenCall::of_git(&order).filter(|_| reads_there);
        self.begin_shell(SHELL, (order.org, order.workspace), &ShellCall::of(&order, login.as_ref()), given).await
    }

    /// See `LocalHost::run_job`. It ends with the connection, and says nothing more then. Over a relay what the order names is read at its
    /// other end, where no `secrets` are.
    ///
    /// # Errors
    /// See `ShellFailure`.
    pub async fn run_job(&self, order: JobOrder, secrets: BTreeMap<String, Secret>) -> Result<OpenShell, ShellFailure> {
        let reads_there = secrets.is_empty() && self.gives_by_reference();
        let given = GivenCall::of_job(&order).filter(|_| reads_there);
        self.begin_shell(JOB, (order.org, order.workspace), &JobCall::of(&order, &secrets), given).await
    }

    /// `org`: whose workspace it is by the order, which the host holds against its own.
    pub(crate) async fn begin_shell(
        &self,
        purpose: &str,
        (org, workspace): (OrgId, WorkspaceId),
        call: &impl serde::Serialize,
        given: Option<GivenCall>,
    ) -> Result<OpenShell, ShellFailure> {
        let header = StreamHeader { org, ..self.header(workspace, purpose) };
        let (mut stream, lacks) = self.open_given(header, given).await.map_err(|error| failure(&error))?;
        let begun = async {
            let answered = async {
                // A job's has the values of its secrets.
                frame::write_call(&mut stream, call).await?;
                // A clone takes its time; the connection tells where nobody is there any more.
                frame::expect::<ShellAnswer, _>(&mut stream).await
            };
            let facts = answered.await.map_err(|error| failure(&error))?.facts()?;
            let (input, fed) = mpsc::channel(CHUNKS_MAX);
            let (said, output) = mpsc::channel(CHUNKS_MAX);
            tokio::spawn(async move { quietly(carry(stream, fed, said)).await });
            Ok(OpenShell { facts, input, output })
        };
        without_login(begun.await, lacks)
    }

    /// See `LocalHost::commit_up`. `None` also where the host does not answer.
    pub async fn commit_up(&self, workspace: WorkspaceId) -> Option<String> {
        let asking = async {
            let mut stream = self.open_stream(self.header(workspace, COMMIT)).await?;
            frame::expect::<Option<String>, _>(&mut stream).await
        };
        let commit = timed(asking).await.ok().flatten()?;
        let plain = commit.len() <= COMMIT_CHARS_MAX && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
        plain.then_some(commit)
    }

    /// See `LocalHost::tail_log`.
    ///
    /// # Errors
    /// Where it cannot be read there; `NotConnected` where the host does not answer.
    pub async fn tail_log(
        &self,
        workspace: WorkspaceId,
        service: &ServiceName,
        lines: usize,
    ) -> io::Result<Option<LogChunk>> {
        self.logs(workspace, &LogsCall::Tail { service: service.clone(), lines }).await
    }

    /// See `LocalHost::log_since`.
    ///
    /// # Errors
    /// Where it cannot be read there; `NotConnected` where the host does not answer.
    pub async fn log_since(
        &self,
        workspace: WorkspaceId,
        service: &ServiceName,
        from: LogPlace,
    ) -> io::Result<LogChunk> {
        let LogPlace { file, offset } = from;
        let call = LogsCall::Since { service: service.clone(), file, offset };
        Ok(self.logs(workspace, &call).await?.unwrap_or(LogChunk { next: from, ..LogChunk::default() }))
    }

    async fn logs(&self, workspace: WorkspaceId, call: &LogsCall) -> io::Result<Option<LogChunk>> {
        let asking = async {
            let mut stream = self.open_stream(self.header(workspace, LOGS)).await?;
            frame::write(&mut stream, call).await?;
            Ok(match frame::expect(&mut stream).await? {
                LogsAnswer::None => Ok(None),
                LogsAnswer::Failed { reason } => Err(io::Error::other(crate::wire::shortened(reason))),
                LogsAnswer::Chunk { bytes: length, .. } if length > LOG_BYTES_MAX => {
                    Err(io::Error::new(io::ErrorKind::InvalidData, "more of a log than was asked for"))
                }
                LogsAnswer::Chunk { bytes: length, file, offset, gap } => {
                    let mut bytes = vec![0; length];
                    stream.read_exact(&mut bytes).await?;
                    Ok(Some(LogChunk { bytes, next: LogPlace { file, offset }, gap }))
                }
            })
        };
        timed(asking).await.map_err(|error| io::Error::new(io::ErrorKind::NotConnected, error))?
    }

    /// What lasts there beyond connections.
    ///
    /// # Errors
    /// Where the host does not answer.
    pub async fn lasting_shells(&self) -> io::Result<Vec<LastingShell>> {
        let nowhere = WorkspaceId::from_uuid(uuid::Uuid::nil());
        let all: Vec<LastingAnswer> = timed(async {
            let mut stream = self.open_stream(self.header(nowhere, LASTING)).await?;
            frame::write(&mut stream, &LastingCall::All).await?;
            frame::expect(&mut stream).await
        })
        .await?;
        if all.len() > LASTING_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "more than lasts on a host"));
        }
        Ok(all.iter().map(|answer| answer.shell(self.org())).collect())
    }

    /// See `LocalHost::end_lasting_shells`.
    ///
    /// # Errors
    /// Where the host does not answer: what lasts there is told anew on its next connection. Where it does not end there.
    pub async fn end_lasting_shells(&self, workspace: WorkspaceId, user: UserId) -> io::Result<()> {
        let failed: Option<String> = timed(async {
            let mut stream = self.open_stream(self.header(workspace, LASTING)).await?;
            frame::write(&mut stream, &LastingCall::End { user }).await?;
            frame::expect(&mut stream).await
        })
        .await?;
        failed.map_or(Ok(()), |reason| Err(io::Error::other(crate::wire::shortened(reason))))
    }
}

impl RemoteHost {
    /// See `LocalHost::known_shells`; those of the connection's organization.
    ///
    /// # Errors
    /// Where the host does not answer, or does not say all of it.
    pub async fn known_shells(&self) -> io::Result<Vec<EndedShell>> {
        let nowhere = WorkspaceId::from_uuid(uuid::Uuid::nil());
        timed(async {
            let mut stream = self.line().open_stream(self.line().header(nowhere, KNOWN)).await?;
            let mut all = Vec::new();
            while let Some(known) = frame::expect::<Option<EndMessage>, _>(&mut stream).await? {
                let known = known.read(self.org()).filter(|_| all.len() < KNOWN_MAX);
                let (what, _) = known.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
                all.push(what);
            }
            Ok(all)
        })
        .await
    }

    /// Ends of shells and jobs that the log may not know, as long as the connection lives. Each is said once.
    ///
    /// # Errors
    /// Where the host does not answer.
    pub async fn ends(&self) -> io::Result<RemoteEnds> {
        let nowhere = WorkspaceId::from_uuid(uuid::Uuid::nil());
        let stream = self.line().open_stream(self.line().header(nowhere, ENDS)).await?;
        Ok(RemoteEnds { org: self.org(), stream })
    }
}

/// See `RemoteHost::ends`.
pub struct RemoteEnds {
    org: OrgId,
    stream: ByteStream,
}

impl RemoteEnds {
    /// The next one; `None` where the connection is gone. Not safe to cancel.
    pub async fn next(&mut self) -> Option<(EndedShell, ShellPlace)> {
        frame::read::<EndMessage, _>(&mut self.stream).await.ok()??.read(self.org)
    }

    /// The log knows of it.
    ///
    /// # Errors
    /// Where the connection is gone; it is said again on the next one.
    pub async fn told(&mut self, what: EndedShell, place: ShellPlace) -> io::Result<()> {
        frame::write(&mut self.stream, &EndMessage::of(what, place)).await
    }
}

/// Tells the person what git lacks, beside what else there is to tell.
///
/// # Errors
/// Those of `opened`.
pub fn without_login(opened: Result<OpenShell, ShellFailure>, why: Option<String>) -> Result<OpenShell, ShellFailure> {
    let Some(why) = why else { return opened };
    match opened {
        Ok(open) => {
            let facts = open.facts.noticed(&format!("git has no credential here: {why}"));
            Ok(OpenShell { facts, ..open })
        }
        Err(ShellFailure::Checkout { reason }) => Err(ShellFailure::Checkout { reason: format!("{reason}; {why}") }),
        Err(failure) => Err(failure),
    }
}

fn failure(error: &io::Error) -> ShellFailure {
    match error.kind() {
        // The agent has answered: an older one, or not this organization's.
        io::ErrorKind::ConnectionRefused | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
            ShellFailure::NotStarted { reason: crate::wire::shortened(error.to_string()) }
        }
        _ => ShellFailure::OutOfReach,
    }
}

/// Carries both directions until one side is gone. INVARIANT: the host takes no more than it was given.
async fn carry(
    stream: ByteStream,
    mut fed: mpsc::Receiver<ShellInput>,
    said: mpsc::Sender<ShellOutput>,
) -> io::Result<()> {
    let (mut reading, mut writing) = tokio::io::split(stream);
    let on_their_way = AtomicUsize::new(0);
    let feeding = async {
        let mut takes = true;
        while let Some(input) = fed.recv().await {
            if let ShellInput::Data(bytes) = &input {
                on_their_way.fetch_add(bytes.len(), Ordering::AcqRel);
            }
            // One that is over takes nothing; its last words are on their way.
            takes = takes && write_input(&mut writing, &input).await.is_ok();
        }
        // Whoever held it has let go.
        Ok(())
    };
    let hearing = async {
        while let Some(output) = read_output(&mut reading).await? {
            if let ShellOutput::Taken(taken) = output {
                let before =
                    on_their_way.fetch_update(Ordering::AcqRel, Ordering::Acquire, |before| before.checked_sub(taken));
                if before.is_err() {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "a host took more than it was given"));
                }
            }
            let over = matches!(output, ShellOutput::Over { .. });
            if said.send(output).await.is_err() || over {
                return Ok(());
            }
        }
        Ok(())
    };
    tokio::select! {
        fed = feeding => fed,
        heard = hearing => heard,
        // A client that takes nothing more is gone, also while the host says nothing.
        () = said.closed() => Ok(()),
    }
}
