//! The guard of one command that runs as root: a process of its own, between the agent and the command.
//!
//! It holds the window's end, and it ends the command, with all that came of it, when the window is over, when it is told
//! to, and when the agent is gone, however that died: its standard input is the agent's lifeline. What the command starts
//! and lets go of becomes the guard's child, so that it finds processes that left their group and cleared their environment.
//! Not here: who may run what (`root` gets an order that the log has allowed).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use rustix::process::{Signal, getpid, getppid, set_child_subreaper, set_parent_process_death_signal, setsid};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::process::{END_PAUSE, Family, Identity, KILL_PATIENCE, Leader, Marker};
use crate::terminal::control;

/// First arguments of the binary by which it becomes a guard, or the command itself. No verbs: people never type them.
pub(crate) const GUARD: &str = "root-guard";
const EXEC: &str = "root-exec";
/// In the place of a path: there is none.
const NONE: &str = "-";
/// Between two looks at the clock.
const TICK: Duration = Duration::from_millis(100);
/// One order, as a line.
const ORDER_BYTES_MAX: u64 = 256 * 1024;

/// What a guard is told, as one line of JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GuardOrder {
    pub(crate) words: Vec<String>,
    pub(crate) directory: PathBuf,
    pub(crate) environment: BTreeMap<String, String>,
    /// When the window ends, by this host's own clock (`uptime`).
    pub(crate) until_uptime_ms: u64,
    pub(crate) marker: Marker,
    /// A cgroup (version 2) for the command alone, where there is one.
    pub(crate) cgroup: Option<PathBuf>,
    /// Becomes the command's own, where it is a shell. Its other end is the agent's.
    pub(crate) terminal: Option<PathBuf>,
}

/// What a guard says, each as one line of JSON.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(tag = "said", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum GuardReport {
    Started { guard: Identity, leader: Identity },
    NotStarted,
    Ended { how: GuardEnd, code: Option<u32>, survivors: usize },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum GuardEnd {
    Exited,
    Signalled,
    /// The window was over.
    Deadline,
    /// The agent said so, or is gone.
    Told,
}

/// Whether this process was started to be a guard, or the command below one; then it is one until it ends. `arguments`: the
/// whole command line.
pub fn guard_main(arguments: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    let mut arguments = arguments.into_iter().skip(1);
    match arguments.next()?.to_str()? {
        GUARD => Some(match guard() {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        }),
        EXEC => Some(become_command(arguments)),
        _ => None,
    }
}

/// Seconds since boot, time asleep included: a machine that was suspended wakes behind the window's end.
pub fn uptime() -> io::Result<Duration> {
    let text = fs::read_to_string("/proc/uptime")?;
    let seconds = text.split_ascii_whitespace().next().and_then(|first| first.parse::<f64>().ok());
    seconds.map(Duration::from_secs_f64).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/uptime"))
}

fn guard() -> io::Result<()> {
    let mut input = BufReader::new(io::stdin());
    let mut line = String::new();
    input.by_ref().take(ORDER_BYTES_MAX).read_line(&mut line)?;
    let order: GuardOrder = serde_json::from_str(&line)?;
    let end = Duration::from_millis(order.until_uptime_ms);
    // A session of its own: no terminal's signal reaches it. Already its leader is as good.
    let _ = setsid();
    set_child_subreaper(Some(getpid()))?;
    // Root can stop it. With the agent nobody is left who would end it all the same: then it goes on, and hears that it is alone.
    set_parent_process_death_signal(Some(Signal::CONT))?;
    let (gone, told) = oneshot::channel();
    std::thread::spawn(move || {
        let mut rest = [0; 64];
        while matches!(input.read(&mut rest), Ok(bytes) if bytes > 0) {}
        // Nobody waits any more where the command has ended.
        let _ = gone.send(());
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(keep(order, end, told))
}

async fn keep(order: GuardOrder, end: Duration, mut told: oneshot::Receiver<()>) -> io::Result<()> {
    let own = getpid().as_raw_nonzero().get();
    let is_alone = !matches!(told.try_recv(), Err(oneshot::error::TryRecvError::Empty));
    if is_alone || uptime().map_or(true, |now| now >= end) {
        return say(GuardReport::NotStarted);
    }
    let mut leader = match start(&order) {
        Ok(leader) => leader,
        Err(_) => return say(GuardReport::NotStarted),
    };
    let (Some(guard), Some(identity)) = (u32::try_from(own).ok().and_then(Identity::of), leader.identity()) else {
        return say(GuardReport::NotStarted);
    };
    say(GuardReport::Started { guard, leader: identity })?;
    let family = Family { children_of: Some(own), ..Family::marked(order.marker.clone(), vec![identity], None) };
    let (how, code) = {
        let ended = leader.ended();
        tokio::pin!(ended);
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                biased;
                status = &mut ended => break match status {
                    Ok(status) => match (status.code(), status.signal()) {
                        (Some(code), _) => (GuardEnd::Exited, u32::try_from(code).ok()),
                        (None, signal) => (GuardEnd::Signalled, signal.and_then(|signal| u32::try_from(signal).ok())),
                    },
                    Err(_) => (GuardEnd::Told, None),
                },
                _ = &mut told => break (GuardEnd::Told, None),
                // A clock that cannot be read any more is no reason to go on.
                _ = tick.tick() => if uptime().is_ok_and(|now| now < end) { continue } else { break (GuardEnd::Deadline, None) },
            }
        }
    };
    let mut survivors = end_all(&family, order.cgroup.as_deref()).await;
    // Said in any case: whoever waits for it then does what they can themselves, and ends the guard last.
    let said = say(GuardReport::Ended { how, code, survivors });
    while survivors > 0 {
        tokio::time::sleep(END_PAUSE).await;
        survivors = end_all(&family, order.cgroup.as_deref()).await;
    }
    leader.reap().await;
    said
}

/// Kills a command with all that came of it. How many processes did not end.
pub(crate) async fn end_all(family: &Family, cgroup: Option<&Path>) -> usize {
    if let Some(cgroup) = cgroup {
        // Older kernels have no such file; the family is looked for in any case.
        let _ = fs::write(cgroup.join("cgroup.kill"), "1");
    }
    let survivors = family.end(Duration::ZERO).await.map_or_else(|survivors| survivors.count, |_| 0);
    let Some(cgroup) = cgroup else { return survivors };
    // What neither marker, group nor parent tells is in the cgroup, unless it took itself out, as root can.
    let until = tokio::time::Instant::now() + KILL_PATIENCE;
    loop {
        match fs::remove_dir(cgroup) {
            Ok(()) => return survivors,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return survivors,
            Err(_) if tokio::time::Instant::now() >= until => return survivors.max(1),
            Err(_) => {
                let _ = fs::write(cgroup.join("cgroup.kill"), "1");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

fn start(order: &GuardOrder) -> io::Result<Leader> {
    let output = io::stderr().as_fd().try_clone_to_owned()?;
    let or_none = |path: &Option<PathBuf>| path.clone().unwrap_or_else(|| PathBuf::from(NONE));
    let mut command = tokio::process::Command::new("/proc/self/exe");
    command
        .arg(EXEC)
        .arg(or_none(&order.cgroup))
        .arg(or_none(&order.terminal))
        .args(&order.words)
        .env_clear()
        .envs(&order.environment)
        .current_dir(&order.directory)
        .stdin(Stdio::null())
        .stdout(Stdio::from(output))
        .stderr(Stdio::inherit())
        .kill_on_drop(true);
    command.spawn().map(Leader::new)
}

/// The child below the guard: a session and group of its own, in the cgroup, killed with its guard; then the command itself.
fn become_command(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        // The requester reads this as the command's output.
        let _ = writeln!(io::stderr(), "envforge: {what}: {error}");
        ExitCode::from(126)
    };
    let guard = getppid();
    let (Some(cgroup), Some(terminal), Some(program)) = (arguments.next(), arguments.next(), arguments.next()) else {
        return failed("no command", &"nothing was named");
    };
    if let Err(error) = setsid() {
        return failed("no session of its own", &error);
    }
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        return failed("it could not be tied to its guard", &error);
    }
    // It may have died before it was tied.
    if getppid() != guard {
        return failed("its guard is gone", &"nothing was run");
    }
    if cgroup != NONE
        && let Err(error) = fs::write(Path::new(&cgroup).join("cgroup.procs"), "0")
    {
        return failed("it could not be put into its cgroup", &error);
    }
    if terminal != NONE
        && let Err(error) = control(Path::new(&terminal), None)
    {
        return failed("it got no terminal of its own", &error);
    }
    let error = std::process::Command::new(&program).args(arguments).exec();
    let shown = program.to_string_lossy().into_owned();
    let _ = writeln!(io::stderr(), "envforge: `{shown}` could not be run: {error}");
    ExitCode::from(if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 })
}

fn say(report: GuardReport) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, &report)?;
    out.write_all(b"\n")?;
    out.flush()
}
