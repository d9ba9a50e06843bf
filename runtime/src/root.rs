//! What runs as root on this host: one command or one shell for a root window, each below a guard of its own (`root_guard`).
//!
//! Layout: `root/<window>.json`, what to find again after a kill -9; `root/<window>.before`, how the host was before. Output is kept in memory alone, and only the end of it:
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
use crate::root_guard::{GUARD, GuardEnd, GuardOrder, GuardReport, end_all, uptime};
use crate::shell::login_shell;
use crate::shell_process::{Sink, feed, read_terminal};
use crate::terminal::Terminal;
use crate::wake::Host;

/// Output of one command that is kept: the end of it.
const OUTPUT_BYTES_MAX: usize = 64 * 1024;
/// Commands whose output is kept: the newest.
const OUTPUTS_MAX: usize = 32;
/// How long a guard may take that was told to end its command, before this process does it itself: root can stop its guard.
const GUARD_PATIENCE: Duration = Duration::from_secs(2);
/// How late a guard may be at the end of its window, before this process does it itself.
const GUARD_LATE_MAX: Duration = Duration::from_secs(1);
/// The longest sleep between two looks at the clock: that of sleeps stands still while a machine is suspended.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// For looking at the whole host; a file system that does not answer holds up no window.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(4);
/// How long a shell may take to end once its terminal has hung up.
const HANG_UP_PATIENCE: Duration = Duration::from_secs(1);
/// How long the last output may take once nothing runs that could write.
const LAST_OUTPUT_WAIT: Duration = Duration::from_secs(1);
/// Where systems show cgroups of version 2: alone, and beside those of version 1.
const CGROUP_ROOTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// What a host keeps of its commands as root.
pub(crate) struct RootRuns {
    directory: PathBuf,
    records: Records<RootWindowId, RootRecord>,
    outputs: Mutex<VecDeque<(RootWindowId, SharedOutput)>>,
    /// Windows whose command an earlier process of this host had taken, and what became of it.
    leftovers: BTreeMap<RootWindowId, RanRoot>,
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
    /// When the window ends, by this host's own clock ([`crate::uptime`]): nothing that lies before the start makes it later.
    pub until: Duration,
}

/// A command that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RanRoot {
    pub outcome: RootOutcome,
    /// The exit status, or the signal's number.
    pub code: Option<u32>,
    /// What changed on this host meanwhile; `None` where nothing ran, or nobody knows.
    pub changes: Option<RootChanges>,
}

/// How it went below its guard.
struct Ended {
    outcome: RootOutcome,
    code: Option<u32>,
    /// Whether anything may have been started.
    ran: bool,
}

impl Ended {
    const fn without_running(outcome: RootOutcome) -> Self {
        Self { outcome, code: None, ran: false }
    }
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
        let records: Records<RootWindowId, RootRecord> = Records::in_directory(directory.clone());
        let mut leftovers = BTreeMap::new();
        for (window, record) in records.read_all()? {
            let groups = if record.boot == boot { record.groups } else { Vec::new() };
            let family = Family::marked(record.marker, groups, None);
            let survivors = end_all(&family, record.cgroup.as_deref()).await;
            if survivors > 0 {
                let waited = envforge_domain::time::Millis::from_secs(KILL_PATIENCE.as_secs());
                return Err(OpenError::Survivors { count: survivors, waited });
            }
            tracing::warn!(%window, "a command that an earlier process ran as root was ended");
            leftovers.insert(window, RanRoot { outcome: RootOutcome::Lost, code: None, changes: None });
        }
        // One look is enough for all: nothing of them runs any more.
        let after = if leftovers.is_empty() { None } else { snapshot().await };
        for (window, left) in &mut leftovers {
            let before = Snapshot::read(&before_path(&directory, *window));
            left.changes = before.zip(after.as_ref()).map(|(before, after)| before.changes_to(after));
        }
        let (doors, stop, running) = (Doors::default(), CancellationToken::new(), TaskTracker::new());
        Ok(Self { directory, records, outputs: Mutex::default(), leftovers, doors, stop, running })
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

    pub(crate) fn leftovers(&self) -> &BTreeMap<RootWindowId, RanRoot> {
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
        let (records, before) = (self.records.clone(), before_path(&self.directory, window));
        blocking(move || match fs::remove_file(before) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => records.remove(window),
        })
        .await
    }
}

fn before_path(directory: &Path, window: RootWindowId) -> PathBuf {
    directory.join(format!("{window}.before"))
}

/// `None` where that takes too long.
async fn snapshot() -> Option<Snapshot> {
    let looking = tokio::task::spawn_blocking(Snapshot::take);
    tokio::time::timeout(SNAPSHOT_PATIENCE, looking).await.ok()?.ok()
}

/// Until an instant of this host's own clock. One that cannot be read any more is no reason to go on.
async fn until_uptime(until: Duration) {
    while let Some(left) = uptime().ok().and_then(|now| until.checked_sub(now)).filter(|left| !left.is_zero()) {
        tokio::time::sleep(left.min(LOOK_INTERVAL)).await;
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
        let before = self.remember_host().await;
        let Ended { outcome, code, ran } = match order.what {
            RootWhat::Command(ref words) => {
                let output = self.host.root.output_of(self.window);
                let plan = Plan { words: words.clone(), terminal: None };
                self.run_below_guard(&order, plan, Some(output), std::future::pending(), kill).await
            }
            RootWhat::Shell => self.run_shell(&order, kill).await,
        };
        let changes = match before {
            _ if !ran => None,
            None => None,
            Some(before) => snapshot().await.map(|after| before.changes_to(&after)),
        };
        RanRoot { outcome, code, changes }
    }

    /// How the host is before, on disk, too: whoever ends what a kill -9 leaves behind says what changed.
    async fn remember_host(&self) -> Option<Arc<Snapshot>> {
        let before = Arc::new(snapshot().await?);
        let (path, kept) = (before_path(&self.host.root.directory, self.window), Arc::clone(&before));
        if let Err(error) = blocking(move || kept.write(&path)).await {
            tracing::warn!(window = %self.window, %error, "how the host was before a command as root is not written down");
        }
        Some(before)
    }

    /// Why nothing is started any more.
    fn over_already(&self, order: &RootOrder, kill: &watch::Receiver<Option<RootOutcome>>) -> Option<RootOutcome> {
        let asked = *kill.borrow();
        if asked.is_some() {
            asked
        } else if self.host.root.stop.is_cancelled() || kill.has_changed().is_err() {
            Some(RootOutcome::HostStopped)
        } else if uptime().is_ok_and(|now| now < order.until) {
            None
        } else {
            Some(RootOutcome::Deadline)
        }
    }

    /// Waits for the one who may, and gives them a shell on their terminal until either is gone.
    async fn run_shell(self, order: &RootOrder, mut kill: watch::Receiver<Option<RootOutcome>>) -> Ended {
        let stop = self.host.root.stop.clone();
        let door = self.host.root.doors.open(self.window);
        let came = tokio::select! {
            biased;
            () = asked_to_end(&mut kill, &stop) => {
                return Ended::without_running(kill.borrow().unwrap_or(RootOutcome::HostStopped));
            }
            () = until_uptime(order.until) => return Ended::without_running(RootOutcome::Deadline),
            came = door.knocked() => came,
        };
        let Some(Visitor { size, term, mut input, output }) = came else {
            tracing::info!(window = %self.window, "nobody came to a shell as root");
            return Ended::without_running(RootOutcome::NotStarted);
        };
        let (terminal, path) = match Terminal::open(size) {
            Ok((terminal, path)) => (Arc::new(terminal), path),
            Err(error) => {
                tracing::warn!(window = %self.window, %error, "there is no terminal for a shell as root");
                return Ended::without_running(RootOutcome::NotStarted);
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
        let over = ShellOutput::Over { end: shell_end(ended.outcome), code: ended.code };
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
    ) -> Ended {
        // Much may have happened since the order: the look at the host, the wait for whoever comes.
        if let Some(outcome) = self.over_already(order, &kill) {
            return Ended::without_running(outcome);
        }
        let stop = self.host.root.stop.clone();
        let mut guard = match self.start_guard(order, plan).await {
            Ok(guard) => guard,
            Err(error) => {
                tracing::warn!(window = %self.window, %error, "a command could not be started as root");
                let survivors = end_all(&self.family(), self.record.cgroup.as_deref()).await;
                return if survivors == 0 {
                    Ended::without_running(RootOutcome::NotStarted)
                } else {
                    Ended { outcome: RootOutcome::Lost, code: None, ran: true }
                };
            }
        };
        let mut lifeline = guard.stdin.take();
        // A shell's own is its terminal.
        let output = output.unwrap_or_default();
        let written = guard.stderr.take().map(|stream| tokio::spawn(copy(stream, output)));
        let mut reports = guard.stdout.take().map(|stream| BufReader::new(stream).lines());
        let (mut told_at, mut hung_up_at) = (None, None);
        let (mut said, mut by_force) = (None, false);
        let overdue = until_uptime(order.until + GUARD_LATE_MAX);
        tokio::pin!(gone, overdue);
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
                () = late => {
                    by_force = true;
                    break;
                }
                () = &mut overdue => {
                    by_force = true;
                    break;
                }
            }
        }
        drop(lifeline);
        let cause = *kill.borrow();
        let hung_up = hung_up_at.is_some() && cause.is_none() && !stop.is_cancelled();
        let told = if told_at.is_some() { RootOutcome::HostStopped } else { RootOutcome::Deadline };
        let (outcome, code) = match said {
            Some(GuardReport::NotStarted) => (self.over_already(order, &kill).unwrap_or(RootOutcome::NotStarted), None),
            Some(GuardReport::Ended { how: GuardEnd::Exited, code, .. }) => (RootOutcome::Exited, code),
            Some(GuardReport::Ended { how: GuardEnd::Signalled, code, .. }) => (RootOutcome::Signalled, code),
            Some(GuardReport::Ended { how: GuardEnd::Deadline, .. }) => (RootOutcome::Deadline, None),
            Some(GuardReport::Ended { how: GuardEnd::Told, .. }) | None if hung_up && (said.is_some() || by_force) => {
                (RootOutcome::Signalled, Some(HANG_UP))
            }
            Some(GuardReport::Ended { how: GuardEnd::Told, .. }) => (cause.unwrap_or(RootOutcome::HostStopped), None),
            None if by_force => {
                tracing::warn!(window = %self.window, "the guard of a command as root ends nothing: it is ended without it");
                (cause.unwrap_or(told), None)
            }
            Some(GuardReport::Started { .. }) | None => (cause.unwrap_or(RootOutcome::Lost), None),
        };
        // Whatever the guard said: root could have said it for it. And the guard last, as long as it lives it tells its children.
        let keeper = guard.id().and_then(|id| i32::try_from(id).ok());
        let family = Family { children_of: keeper, ..self.family() };
        if end_all(&family, self.record.cgroup.as_deref()).await > 0 {
            tracing::error!(window = %self.window, "processes of a command as root do not end, not even by SIGKILL");
        }
        let _ = guard.start_kill();
        let _ = tokio::time::timeout(KILL_PATIENCE, guard.wait()).await;
        if let Some(written) = written {
            let _ = tokio::time::timeout(LAST_OUTPUT_WAIT, written).await;
        }
        let has_started = !self.record.groups.is_empty();
        Ended { outcome, code, ran: has_started || !matches!(said, Some(GuardReport::NotStarted)) }
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
            until_uptime_ms: u64::try_from(order.until.as_millis()).unwrap_or(0),
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
        Family::marked(self.record.marker.clone(), self.record.groups.clone(), None)
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
