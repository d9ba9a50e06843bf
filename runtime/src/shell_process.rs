//! What a shell runs: started with its streams, carried until it ends, and ended with all that it started.
//!
//! Nothing is buffered beyond a few chunks: who does not read holds up whoever writes. Not here: which shells there are
//! (`shell`), and what SSH makes of one connection (`shell_ssh`).

use std::io;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use envforge_domain::shell::{ShellEnd, ShellInput, ShellOutput, ShellSignal, TerminalSize};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::environment::Environment;
use crate::process::{END_PAUSE, Ended, Family, Leader, Survivors};
use crate::terminal::{self, Terminal, Who};

/// One read of output.
const CHUNK_BYTES: usize = 64 * 1024;
/// Chunks on their way in each direction.
pub(crate) const CHUNKS_MAX: usize = 4;
/// Between SIGTERM and SIGKILL for what is left when a shell is over.
const GRACE: Duration = Duration::from_millis(300);
/// How long output is waited for once nothing of the family runs that could write.
const SILENCE: Duration = Duration::from_secs(1);

/// What to run, and where.
pub(crate) struct Plan<'a> {
    /// Starts processes in sessions of their own.
    pub(crate) helper: &'a std::path::Path,
    pub(crate) words: &'a [String],
    pub(crate) directory: &'a std::path::Path,
    pub(crate) environment: &'a Environment,
    pub(crate) terminal: Option<TerminalSize>,
    pub(crate) who: Who<'a>,
}

/// Something that runs, with its streams.
pub(crate) struct Started {
    leader: Leader,
    streams: Streams,
}

enum Streams {
    Terminal(Arc<Terminal>),
    Pipes {
        input: Option<ChildStdin>,
        output: Option<tokio::process::ChildStdout>,
        error: Option<tokio::process::ChildStderr>,
    },
}

impl Plan<'_> {
    pub(crate) fn start(&self) -> io::Result<Started> {
        let opened = self.terminal.map(Terminal::open).transpose()?;
        let path = opened.as_ref().map(|(_, path)| path.as_path());
        let mut command: Command = terminal::in_own_session(self.helper, path, self.who, self.words);
        let streams = |terminal: bool| if terminal { Stdio::null() } else { Stdio::piped() };
        command
            .env_clear()
            .envs(self.environment.iter())
            .current_dir(self.directory)
            .stdin(streams(opened.is_some()))
            .stdout(streams(opened.is_some()))
            .stderr(streams(opened.is_some()))
            .kill_on_drop(true);
        let child = command.spawn()?;
        Ok(match opened {
            Some((terminal, _)) => {
                Started { leader: Leader::new(child), streams: Streams::Terminal(Arc::new(terminal)) }
            }
            None => Started::with_pipes(child),
        })
    }
}

impl Started {
    /// A process whose streams are pipes, the leader of its group.
    pub(crate) fn with_pipes(mut child: Child) -> Self {
        let streams =
            Streams::Pipes { input: child.stdin.take(), output: child.stdout.take(), error: child.stderr.take() };
        Self { leader: Leader::new(child), streams }
    }

    pub(crate) fn leader(&self) -> Option<crate::process::Identity> {
        self.leader.identity()
    }

    /// Carries bytes until what runs has ended, until `input` is closed by whoever holds its other end, or until `stop`, and then
    /// ends `family`. Says `Over`. What does not end is ended anew until `stop`.
    ///
    /// # Errors
    /// What still runs at `stop`.
    pub(crate) async fn carry(
        self,
        family: Family,
        mut input: mpsc::Receiver<ShellInput>,
        output: mpsc::Sender<ShellOutput>,
        stop: CancellationToken,
    ) -> Result<(), Survivors> {
        let Self { mut leader, streams } = self;
        let group = leader.identity().and_then(|identity| Pid::from_raw(identity.pid));
        // Once nothing runs that could write: what is silent then is over.
        let nothing_runs = CancellationToken::new();
        let mut readers = tokio::task::JoinSet::new();
        let sink = match streams {
            Streams::Terminal(terminal) => {
                readers.spawn(read_terminal(Arc::clone(&terminal), output.clone(), nothing_runs.clone()));
                Sink::Terminal(terminal)
            }
            Streams::Pipes { input, output: out, error } => {
                if let Some(out) = out {
                    readers.spawn(read_pipe(out, output.clone(), ShellOutput::Out, nothing_runs.clone()));
                }
                if let Some(error) = error {
                    readers.spawn(read_pipe(error, output.clone(), ShellOutput::Error, nothing_runs.clone()));
                }
                input.map_or(Sink::Closed, Sink::Pipe)
            }
        };
        let over = tokio::select! {
            biased;
            status = leader.ended() => over_of(status),
            () = stop.cancelled() => (ShellEnd::HostStopped, None),
            () = feed(sink, &mut input, &output, |signal| send(group, signal)) => (ShellEnd::Closed, None),
        };
        let mut ended = family.end(GRACE).await;
        nothing_runs.cancel();
        if matches!(over.0, ShellEnd::Exited | ShellEnd::Signalled) {
            // Whoever is slow gets all of it all the same, for as long as they take something.
            let all = async { while readers.join_next().await.is_some() {} };
            stop.run_until_cancelled(all).await;
        }
        readers.abort_all();
        let (end, code) = over;
        let telling = async {
            let _ = output.send(ShellOutput::Over { end, code }).await;
        };
        // A stop waits for nobody who takes nothing.
        tokio::select! {
            biased;
            () = telling => {}
            () = async { stop.cancelled().await; tokio::time::sleep(SILENCE).await } => {}
        }
        // Who waits for it knows that it is over; it is not forgotten before it is.
        while let Err(Survivors { count }) = ended {
            tracing::error!(count, "processes of a shell do not end, not even by SIGKILL");
            stop.run_until_cancelled(tokio::time::sleep(END_PAUSE)).await.ok_or(Survivors { count })?;
            ended = family.end(Duration::ZERO).await;
        }
        leader.reap().await;
        Ok(())
    }
}

/// Hands over what a client sends, and says what of it was taken, until the client is gone.
pub(crate) async fn feed(
    mut sink: Sink,
    input: &mut mpsc::Receiver<ShellInput>,
    output: &mpsc::Sender<ShellOutput>,
    signal: impl Fn(ShellSignal),
) {
    // What was sent and not taken, which its sender bounds.
    let mut pending = BytesMut::new();
    let (mut taken, mut no_more) = (0, false);
    loop {
        if no_more && pending.is_empty() {
            sink = sink.close().await;
            no_more = false;
        }
        tokio::select! {
            biased;
            () = output.closed() => return,
            next = input.recv() => match next {
                None => return,
                Some(ShellInput::Resize(size)) => sink.resize(size),
                Some(ShellInput::Signal(sent)) => signal(sent),
                Some(ShellInput::End) => no_more = true,
                Some(ShellInput::Data(bytes)) => pending.extend_from_slice(&bytes),
            },
            written = sink.write(&pending), if !pending.is_empty() => {
                let written = match written {
                    Ok(written) => written,
                    // What does not read its input any more gets none.
                    Err(_) => {
                        sink = Sink::Closed;
                        pending.len()
                    }
                };
                pending.advance(written);
                taken += written;
            }
            permit = output.reserve(), if taken > 0 => match permit {
                Ok(permit) => permit.send(ShellOutput::Taken(std::mem::take(&mut taken))),
                Err(_) => return,
            },
        }
    }
}

/// Where input goes.
pub(crate) enum Sink {
    Terminal(Arc<Terminal>),
    Pipe(ChildStdin),
    Closed,
}

impl Sink {
    async fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Terminal(terminal) => terminal.write(bytes).await,
            Self::Pipe(pipe) => pipe.write(bytes).await,
            Self::Closed => Ok(bytes.len()),
        }
    }

    /// Nothing comes any more.
    async fn close(self) -> Self {
        match self {
            Self::Terminal(terminal) => {
                // As somebody at a keyboard says so. A terminal that takes nothing has nobody who reads.
                let _ = tokio::time::timeout(Duration::from_millis(100), terminal.write(&[4])).await;
                Self::Terminal(terminal)
            }
            Self::Pipe(_) | Self::Closed => Self::Closed,
        }
    }

    fn resize(&self, size: TerminalSize) {
        if let Self::Terminal(terminal) = self
            && let Err(error) = terminal.resize(size)
        {
            tracing::debug!(%error, "a terminal could not be resized");
        }
    }
}

fn over_of(status: io::Result<std::process::ExitStatus>) -> (ShellEnd, Option<u32>) {
    use std::os::unix::process::ExitStatusExt as _;
    match status {
        Err(error) => {
            tracing::warn!(%error, "the end of a shell could not be waited for");
            (ShellEnd::Lost, None)
        }
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => (ShellEnd::Exited, u32::try_from(code).ok()),
            (None, Some(signal)) => (ShellEnd::Signalled, u32::try_from(signal).ok()),
            (None, None) => {
                tracing::warn!(status = %Ended(status), "a shell ended in an unknown way");
                (ShellEnd::Lost, None)
            }
        },
    }
}

pub(crate) fn send(group: Option<Pid>, signal: ShellSignal) {
    let signal = match signal {
        ShellSignal::Interrupt => Signal::INT,
        ShellSignal::Quit => Signal::QUIT,
        ShellSignal::Terminate => Signal::TERM,
        ShellSignal::Hangup => Signal::HUP,
        ShellSignal::Kill => Signal::KILL,
    };
    let Some(group) = group else { return };
    // Until it has a session of its own there is no such group. Gone already is as good.
    if kill_process_group(group, signal).is_err() {
        let _ = kill_process(group, signal);
    }
}

pub(crate) async fn read_terminal(
    terminal: Arc<Terminal>,
    output: mpsc::Sender<ShellOutput>,
    nothing_runs: CancellationToken,
) {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let Some(read @ 1..) = patient(terminal.read(&mut buffer), &nothing_runs).await else { return };
        if output.send(ShellOutput::Out(buffer[..read].to_vec())).await.is_err() {
            return;
        }
    }
}

async fn read_pipe(
    mut pipe: impl AsyncRead + Unpin + std::os::fd::AsFd,
    output: mpsc::Sender<ShellOutput>,
    wrap: fn(Vec<u8>) -> ShellOutput,
    nothing_runs: CancellationToken,
) {
    // Fewer and larger steps. Where the system allows no more, it stays as it is.
    let _ = rustix::pipe::fcntl_setpipe_size(pipe.as_fd(), 1024 * 1024);
    loop {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        match patient(pipe.read_buf(&mut chunk), &nothing_runs).await {
            Some(1..) => {}
            _ => return,
        }
        if output.send(wrap(chunk)).await.is_err() {
            return;
        }
    }
}

/// `None` where reading fails, or where nothing runs any more that could write and nothing came for a while.
async fn patient(read: impl Future<Output = io::Result<usize>>, nothing_runs: &CancellationToken) -> Option<usize> {
    tokio::pin!(read);
    tokio::select! {
        biased;
        read = &mut read => read.ok(),
        () = nothing_runs.cancelled() => tokio::time::timeout(SILENCE, read).await.ok()?.ok(),
    }
}
