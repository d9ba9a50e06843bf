//! What runs as root on this host: one command or one shell for a root window, each below a guard of its own (`root_guard`).
//!
//! Layout: `root/<window>.json`, what to find again after a kill -9. Output is kept in memory alone, and only the end of it:
//! it may hold secrets. Of a shell nothing is kept. Not here: whether somebody may (the caller brings an order that the log has allowed).

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use envforge_domain::ids::{RootWindowId, WorkspaceId};
use envforge_domain::root_window::{HANG_UP, RootChanges, RootOutcome};
use envforge_domain::shell::{ShellEnd, ShellOutput};
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::environment::MARKER_VARIABLE;
use crate::failure::OpenError;
use crate::output::private_directory;
use crate::process::{Family, Identity, KILL_PATIENCE, Marker};
use crate::record::{Records, blocking};
use crate::root_diff::Snapshot;
use crate::root_door::{Doors, Visitor};
use crate::root_guard::{GUARD, GuardEnd, GuardOrder, GuardReport, end_all};
use crate::shell::login_shell;
use crate::shell_process::{Sink, feed, read_terminal};
use crate::terminal::Terminal;
use crate::wake::Host;

/// Output of one command that is kept: the end of it.
const OUTPUT_BYTES_MAX: usize = 64 * 1024;
/// Commands whose output is kept: the newest.
const OUTPUTS_MAX: usize = 32;
/// How long a guard that was told to end its command may take; it kills for `KILL_PATIENCE` at most, twice.
const GUARD_PATIENCE: Duration = Duration::from_secs(2 * KILL_PATIENCE.as_secs() + 2);
/// How long a shell may take to end once its terminal has hung up.
const HANG_UP_PATIENCE: Duration = Duration::from_secs(1);
/// How long the last output may take once nothing runs that could write.
const LAST_OUTPUT_WAIT: Duration = Duration::from_secs(1);
/// Where systems show cgroups of version 2: alone, and beside those of version 1.
const CGROUP_ROOTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// What a host keeps of its commands as root.
pub(crate) struct RootRuns {
    records: Records<RootWindowId, RootRecord>,
    outputs: Mutex<VecDeque<(RootWindowId, SharedOutput)>>,
    /// Windows whose command an earlier process of this host had taken.
    leftovers: Vec<RootWindowId>,
    doors: Doors,
    stop: CancellationToken,
    running: TaskTracker,
}

/// What must be found again.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RootRecord {
    marker: Marker,
    boot: String,
    groups: Vec<Identity>,
    cgroup: Option<PathBuf>,
}

type SharedOutput = Arc<Mutex<Output>>;

#[derive(Default)]
struct Output {
    bytes: VecDeque<u8>,
    dropped: u64,
}

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootWhat {
    /// A program and its arguments, without a terminal.
    Command(Vec<String>),
    /// A shell on the terminal of whoever comes for it ([`crate::LocalHost::attach_root`]), and as long as they stay.
    Shell,
}

/// One command, or one shell, to run.
pub struct RootOrder {
    pub workspace: WorkspaceId,
    pub what: RootWhat,
    /// How much of the window is left.
    pub remaining: Duration,
}

/// A command that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RanRoot {
    pub outcome: RootOutcome,
    /// The exit status, or the signal's number.
    pub code: Option<u32>,
    /// What changed on this host meanwhile; `None` where nothing ran.
    pub changes: Option<RootChanges>,
}

/// A command that was taken: its record is on disk, nothing runs yet.
pub struct TakenRoot {
    host: Arc<Host>,
    window: RootWindowId,
    record: RootRecord,
}

impl RootRuns {
    /// Ends what an earlier process left behind.
    pub(crate) async fn open(state_dir: &Path, boot: &str) -> Result<Self, OpenError> {
        let directory = state_dir.join("root");
        private_directory(&directory).map_err(|source| OpenError::State { path: directory.clone(), source })?;
        let records: Records<RootWindowId, RootRecord> = Records::in_directory(directory);
        let mut leftovers = Vec::new();
        for (window, record) in records.read_all()? {
            let groups = if record.boot == boot { record.groups } else { Vec::new() };
            let family = Family { marker: record.marker, groups, service: None, children_of: None, users: None };
            let survivors = end_all(&family, record.cgroup.as_deref()).await;
            if survivors > 0 {
                let waited = envforge_domain::time::Millis::from_secs(KILL_PATIENCE.as_secs());
                return Err(OpenError::Survivors { count: survivors, waited });
            }
            tracing::warn!(%window, "a command that an earlier process ran as root was ended");
            leftovers.push(window);
        }
        let (doors, stop, running) = (Doors::default(), CancellationToken::new(), TaskTracker::new());
        Ok(Self { records, outputs: Mutex::default(), leftovers, doors, stop, running })
    }

    fn output_of(&self, window: RootWindowId) -> SharedOutput {
        let mut outputs = self.outputs.lock().unwrap_or_else(PoisonError::into_inner);
        if outputs.len() >= OUTPUTS_MAX {
            outputs.pop_front();
        }
        let output = SharedOutput::default();
        outputs.push_back((window, Arc::clone(&output)));
        output
    }

    pub(crate) fn leftovers(&self) -> &[RootWindowId] {
        &self.leftovers
    }

    /// The end of what a window's command has written, and how many bytes came before.
    pub(crate) fn output(&self, window: RootWindowId) -> Option<(String, u64)> {
        let outputs = self.outputs.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, output) = outputs.iter().rev().find(|(of, _)| *of == window)?;
        let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
        let dropped = output.dropped;
        Some((String::from_utf8_lossy(output.bytes.make_contiguous()).into_owned(), dropped))
    }

    /// Where whoever may comes to the shell of a window.
    pub(crate) fn doors(&self) -> &Doors {
        &self.doors
    }

    /// Ends all commands, and waits for it. Nothing is started any more.
    pub(crate) async fn shut_down(&self) {
        self.stop.cancel();
        self.running.close();
        self.running.wait().await;
    }

    /// Nothing of it has to be found again: its end stands in the log.
    pub(crate) async fn forget(&self, window: RootWindowId) -> io::Result<()> {
        let records = self.records.clone();
        blocking(move || records.remove(window)).await
    }
}

/// Why this host runs nothing as root.
pub(crate) fn refusal(host: &Host) -> Option<RootOutcome> {
    if !geteuid().is_root() {
        Some(RootOutcome::NoRoot)
    } else if host.config.root_guard.is_none() {
        Some(RootOutcome::NotStarted)
    } else {
        None
    }
}

/// INVARIANT: the marker is on disk before the first process that carries it starts, and before the log hears of a start.
pub(crate) async fn take(host: Arc<Host>, window: RootWindowId) -> io::Result<TakenRoot> {
    let cgroup = cgroup_of(window);
    let record = RootRecord { marker: Marker::random(), boot: host.boot.clone(), groups: Vec::new(), cgroup };
    let (records, kept) = (host.root.records.clone(), record.clone());
    blocking(move || records.write(window, &kept)).await?;
    Ok(TakenRoot { host, window, record })
}

/// Where a window's cgroup is made, below this process's own. There is none before something starts in it.
fn cgroup_of(window: RootWindowId) -> Option<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?.to_owned();
    let root = CGROUP_ROOTS.iter().map(Path::new).find(|root| root.join("cgroup.procs").exists())?;
    Some(root.join(own).join(format!("envforge-root-{window}")))
}

impl TakenRoot {
    /// Runs the command to its end: by itself, at the end of the window, or when `kill` gives a reason. Nothing of it is left
    /// running then, which the guard sees to also where this process dies or this future is dropped.
    pub async fn run(self, order: RootOrder, kill: watch::Receiver<Option<RootOutcome>>) -> RanRoot {
        let _running = self.host.root.running.token();
        let before = tokio::task::spawn_blocking(Snapshot::take).await.ok();
        let (outcome, code) = match order.what {
            RootWhat::Command(ref words) => {
                let output = self.host.root.output_of(self.window);
                let plan = Plan { words: words.clone(), terminal: None };
                self.run_below_guard(&order, plan, Some(output), std::future::pending(), kill).await
            }
            RootWhat::Shell => self.run_shell(&order, kill).await,
        };
        let ran = !matches!(outcome, RootOutcome::NoRoot | RootOutcome::NotStarted);
        let changes = match before.filter(|_| ran) {
            None => None,
            Some(before) => tokio::task::spawn_blocking(move || before.changes_to(&Snapshot::take())).await.ok(),
        };
        RanRoot { outcome, code, changes }
    }

    /// Waits for the one who may, and gives them a shell on their terminal until either is gone.
    async fn run_shell(
        self,
        order: &RootOrder,
        mut kill: watch::Receiver<Option<RootOutcome>>,
    ) -> (RootOutcome, Option<u32>) {
        let stop = self.host.root.stop.clone();
        let door = self.host.root.doors.open(self.window);
        let came = tokio::select! {
            biased;
            () = asked_to_end(&mut kill, &stop) => {
                return (kill.borrow().unwrap_or(RootOutcome::HostStopped), None);
            }
            came = door.knocked() => came,
        };
        let Some(Visitor { size, term, mut input, output }) = came else {
            tracing::info!(window = %self.window, "nobody came to a shell as root");
            return (RootOutcome::NotStarted, None);
        };
        let (terminal, path) = match Terminal::open(size) {
            Ok((terminal, path)) => (Arc::new(terminal), path),
            Err(error) => {
                tracing::warn!(window = %self.window, %error, "there is no terminal for a shell as root");
                return (RootOutcome::NotStarted, None);
            }
        };
        let nothing_runs = CancellationToken::new();
        let reading = tokio::spawn(read_terminal(Arc::clone(&terminal), output.clone(), nothing_runs.clone()));
        let plan = Plan { words: login_shell(), terminal: Some((path, term)) };
        let ended = {
            let aborting = reading.abort_handle();
            let gone = async {
                // What a person types as a signal, a terminal makes one.
                feed(Sink::Terminal(terminal), &mut input, &output, |_| {}).await;
                // With the last of this side's ends the terminal hangs up.
                aborting.abort();
            };
            self.run_below_guard(order, plan, None, gone, kill).await
        };
        nothing_runs.cancel();
        let _ = tokio::time::timeout(LAST_OUTPUT_WAIT, reading).await;
        let over = ShellOutput::Over { end: shell_end(ended.0), code: ended.1 };
        let _ = tokio::time::timeout(LAST_OUTPUT_WAIT, output.send(over)).await;
        ended
    }

    /// `gone`: whoever it is for has left it.
    async fn run_below_guard(
        mut self,
        order: &RootOrder,
        plan: Plan,
        output: Option<SharedOutput>,
        gone: impl Future<Output = ()>,
        mut kill: watch::Receiver<Option<RootOutcome>>,
    ) -> (RootOutcome, Option<u32>) {
        let stop = self.host.root.stop.clone();
        let mut guard = match self.start_guard(order, plan).await {
            Ok(guard) => guard,
            Err(error) => {
                tracing::warn!(window = %self.window, %error, "a command could not be started as root");
                let survivors = end_all(&self.family(), self.record.cgroup.as_deref()).await;
                return (if survivors == 0 { RootOutcome::NotStarted } else { RootOutcome::Lost }, None);
            }
        };
        let mut lifeline = guard.stdin.take();
        // A shell's own is its terminal.
        let output = output.unwrap_or_default();
        let written = guard.stderr.take().map(|stream| tokio::spawn(copy(stream, output)));
        let mut reports = guard.stdout.take().map(|stream| BufReader::new(stream).lines());
        let (mut told_at, mut hung_up_at) = (None, None);
        let mut said = None;
        tokio::pin!(gone);
        loop {
            let next = async {
                match &mut reports {
                    Some(lines) => lines.next_line().await,
                    None => Ok(None),
                }
            };
            let (late, unmoved) = (at_last(told_at), at_last(hung_up_at.filter(|_| told_at.is_none())));
            tokio::select! {
                line = next => match line.ok().flatten().and_then(|line| serde_json::from_str(&line).ok()) {
                    Some(GuardReport::Started { guard, leader }) => {
                        self.record.groups = vec![guard, leader];
                        self.remember().await;
                    }
                    Some(report @ (GuardReport::NotStarted | GuardReport::Ended { .. })) => {
                        said = Some(report);
                        break;
                    }
                    // The guard is gone without a word.
                    None => break,
                },
                () = asked_to_end(&mut kill, &stop), if told_at.is_none() => {
                    told_at = Some(tokio::time::Instant::now() + GUARD_PATIENCE);
                    lifeline = None;
                }
                () = &mut gone, if hung_up_at.is_none() => {
                    hung_up_at = Some(tokio::time::Instant::now() + HANG_UP_PATIENCE);
                }
                // What does not end where its terminal hangs up is killed.
                () = unmoved => {
                    told_at = Some(tokio::time::Instant::now() + GUARD_PATIENCE);
                    lifeline = None;
                }
                () = late => break,
            }
        }
        drop(lifeline);
        let cause = *kill.borrow();
        let hung_up = hung_up_at.is_some() && cause.is_none() && !stop.is_cancelled();
        let by_guard = match said {
            Some(GuardReport::NotStarted) => (RootOutcome::NotStarted, None),
            Some(GuardReport::Ended { how: GuardEnd::Exited, code, .. }) => (RootOutcome::Exited, code),
            Some(GuardReport::Ended { how: GuardEnd::Signalled, code, .. }) => (RootOutcome::Signalled, code),
            Some(GuardReport::Ended { how: GuardEnd::Deadline, .. }) => (RootOutcome::Deadline, None),
            Some(GuardReport::Ended { how: GuardEnd::Told, .. }) if hung_up => (RootOutcome::Signalled, Some(HANG_UP)),
            Some(GuardReport::Ended { how: GuardEnd::Told, .. }) => (cause.unwrap_or(RootOutcome::HostStopped), None),
            Some(GuardReport::Started { .. }) | None => (cause.unwrap_or(RootOutcome::Lost), None),
        };
        let clean = matches!(said, Some(GuardReport::NotStarted | GuardReport::Ended { survivors: 0, .. }));
        if !clean && end_all(&self.family(), self.record.cgroup.as_deref()).await > 0 {
            tracing::error!(window = %self.window, "processes of a command as root do not end, not even by SIGKILL");
        }
        let _ = guard.wait().await;
        if let Some(written) = written {
            let _ = tokio::time::timeout(LAST_OUTPUT_WAIT, written).await;
        }
        by_guard
    }

    async fn start_guard(&mut self, order: &RootOrder, plan: Plan) -> io::Result<tokio::process::Child> {
        // INVARIANT: where it is stands on disk by now. Where the system lets nobody make one, marker, group and parents must do.
        if let Some(path) = &self.record.cgroup
            && let Err(error) = fs::create_dir(path)
        {
            tracing::info!(%error, "a command as root gets no cgroup of its own here");
            self.record.cgroup = None;
        }
        let Plan { words, terminal } = plan;
        let config = &self.host.config;
        let program = config.root_guard.as_ref().ok_or_else(|| io::Error::other("no guard is configured"))?;
        let own = [
            ("PATH", config.path.clone()),
            ("LANG", "C.UTF-8".to_owned()),
            ("HOME", "/root".to_owned()),
            ("USER", "root".to_owned()),
            ("LOGNAME", "root".to_owned()),
            ("SHELL", "/bin/sh".to_owned()),
            ("ENVFORGE_WORKSPACE", order.workspace.to_string()),
            ("ENVFORGE_ROOT_WINDOW", self.window.to_string()),
            (MARKER_VARIABLE, self.record.marker.as_str().to_owned()),
        ];
        let mut environment: BTreeMap<_, _> = own.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let (terminal, term) = terminal.unzip();
        environment.extend(term.map(|term| ("TERM".to_owned(), term)));
        let mut line = serde_json::to_vec(&GuardOrder {
            words,
            directory: self.host.place(order.workspace).join("checkout"),
            environment,
            remaining_ms: u64::try_from(order.remaining.as_millis()).unwrap_or(0),
            marker: self.record.marker.clone(),
            cgroup: self.record.cgroup.clone(),
            terminal,
        })?;
        line.push(b'\n');
        let mut guard = Command::new(program)
            .arg(GUARD)
            .env_clear()
            .env(MARKER_VARIABLE, self.record.marker.as_str())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(lifeline) = &mut guard.stdin {
            lifeline.write_all(&line).await?;
        }
        Ok(guard)
    }

    fn family(&self) -> Family {
        let (marker, groups) = (self.record.marker.clone(), self.record.groups.clone());
        Family { marker, groups, service: None, children_of: None, users: None }
    }

    /// The marker finds all but what hides; the groups are for that.
    async fn remember(&self) {
        let (records, window, record) = (self.host.root.records.clone(), self.window, self.record.clone());
        if let Err(error) = blocking(move || records.write(window, &record)).await {
            tracing::warn!(%window, %error, "what runs as root could not be written down more exactly");
        }
    }
}

/// What a guard starts.
struct Plan {
    words: Vec<String>,
    /// The other end of the agent's terminal, and its name.
    terminal: Option<(PathBuf, String)>,
}

/// Also where whoever could ask is gone, and where the host ends.
async fn asked_to_end(kill: &mut watch::Receiver<Option<RootOutcome>>, stop: &CancellationToken) {
    let _ = stop.run_until_cancelled(kill.wait_for(Option::is_some)).await;
}

async fn at_last(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// What whoever sits before a shell is told.
const fn shell_end(outcome: RootOutcome) -> ShellEnd {
    match outcome {
        RootOutcome::Exited => ShellEnd::Exited,
        RootOutcome::Signalled => ShellEnd::Signalled,
        RootOutcome::Deadline => ShellEnd::TimeOver,
        RootOutcome::Revoked | RootOutcome::Withdrawn | RootOutcome::RightLost => ShellEnd::RightLost,
        RootOutcome::RuntimeGone => ShellEnd::RuntimeGone,
        RootOutcome::HostStopped => ShellEnd::HostStopped,
        RootOutcome::NoRoot | RootOutcome::NotStarted => ShellEnd::NotStarted,
        RootOutcome::Lost => ShellEnd::Lost,
    }
}

/// Keeps the end of a stream, and lets its writer never wait.
async fn copy(mut stream: impl tokio::io::AsyncRead + Unpin, output: SharedOutput) {
    let mut chunk = vec![0; 8 * 1024];
    while let Ok(read) = stream.read(&mut chunk).await {
        if read == 0 {
            return;
        }
        let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
        output.bytes.extend(&chunk[..read]);
        let over = output.bytes.len().saturating_sub(OUTPUT_BYTES_MAX);
        output.bytes.drain(..over);
        output.dropped += over as u64;
    }
}
