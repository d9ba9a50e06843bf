//! The processes of a runtime: how they are started, how they are found again, how they end.
//!
//! Every process of a runtime carries a random marker in its environment, which children inherit. It finds what a process
//! group does not: daemons that called `setsid`, and what is left after a kill -9 of this program. Not here: which
//! processes to start (`service`), or where markers are kept (`record`).
//!
//! INVARIANT: a process that could not be looked at counts as one that still runs. Only what is known to be gone, or
//! somebody else's, is left out.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rand::RngExt;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, getpid, pidfd_open, pidfd_send_signal, waitid};
use serde::{Deserialize, Serialize};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal as signal_stream};
use tokio::time::Instant;

use crate::environment::{Environment, MARKER_VARIABLE, SERVICE_VARIABLE};
use crate::unix_user::{UnixUser, UserBlock};

/// How long a process may take to vanish after SIGKILL. Only one that hangs in the kernel takes longer.
pub(crate) const KILL_PATIENCE: Duration = Duration::from_secs(5);
/// Where Linux shows its processes.
const PROC: &str = "/proc";
/// Environment of one process that is looked at. Linux allows a quarter of the stack limit, 2 MiB by default.
const ENVIRONMENT_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// A random value that no other runtime has ever carried.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Marker(String);

impl Marker {
    pub(crate) fn random() -> Self {
        Self(format!("{:032x}", rand::rng().random::<u128>()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Marker {
    type Error = &'static str;

    // A record with an empty or short marker would match processes that are not ours.
    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            Ok(Self(text))
        } else {
            Err("a marker has 32 hexadecimal digits")
        }
    }
}

/// One process for as long as the machine runs: its id alone may come back as somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) pid: i32,
    /// Clock ticks from boot to the start of the process (field 22 of /proc/PID/stat).
    pub(crate) started_ticks: u64,
}

impl Identity {
    /// Of a process that runs or has not been waited for.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let stat = Stat::read(Path::new(PROC), i32::try_from(pid).ok()?).ok()??;
        Some(stat.identity)
    }

    /// Of this very process.
    pub(crate) fn own() -> Option<Self> {
        Self::of(getpid().as_raw_nonzero().get().unsigned_abs())
    }

    /// Whether it runs. One that could not be looked at counts as one that does.
    pub(crate) fn is_alive(self) -> bool {
        match Stat::read(Path::new(PROC), self.pid) {
            Ok(stat) => stat.is_some_and(|stat| stat.identity == self && !stat.is_dead()),
            Err(_) => true,
        }
    }

    /// Ends it by force, and waits until it is gone. False where it does not go.
    pub(crate) async fn kill(self) -> bool {
        let until = Instant::now() + KILL_PATIENCE;
        while self.is_alive() {
            signal(self, Signal::KILL);
            if Instant::now() >= until {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        true
    }
}

/// What belongs to one runtime.
#[derive(Clone)]
pub(crate) struct Family {
    pub(crate) marker: Marker,
    /// Leaders of the process groups; for members that cleared their environment.
    pub(crate) groups: Vec<Identity>,
    /// Only the processes of this service.
    pub(crate) service: Option<String>,
    /// And whatever has this process for its parent: it takes in what its children let go of. Itself it is none of them.
    pub(crate) children_of: Option<i32>,
    /// And whatever runs as one of its services' users, where they have their own: nothing hides from that.
    pub(crate) users: Option<UserBlock>,
}

/// Processes that do not end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Survivors {
    pub(crate) count: usize,
}

struct Stat {
    identity: Identity,
    state: u8,
    parent: i32,
    group: i32,
    environment: Place,
    environment_bytes: u64,
    /// Where code and environment begin: two processes that have both alike have, or had, one memory.
    layout: (u64, u64),
}

/// Whether there is an environment to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// For good: a kernel thread, or a program that was started with an empty one.
    Nowhere,
    Somewhere,
    /// Another program is just being put into the process (execve): it has memory, and nothing stands in it.
    NotYet,
}

impl Stat {
    /// `None` where the process is gone.
    fn read(proc: &Path, pid: i32) -> io::Result<Option<Self>> {
        let Some(text) = unless_gone(fs::read(proc.join(format!("{pid}/stat"))))? else { return Ok(None) };
        let parsed = Self::parse(pid, &text);
        parsed.map(Some).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat")))
    }

    /// `PID (NAME) STATE PPID PGRP ...`; the name may hold spaces and parentheses, so fields count from the last `)`.
    fn parse(pid: i32, text: &[u8]) -> Option<Self> {
        let end = text.iter().rposition(|byte| *byte == b')')?;
        let rest = std::str::from_utf8(text.get(end + 1..)?).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        let state = *fields.next()?.as_bytes().first()?;
        let parent = fields.next()?.parse().ok()?;
        let group = fields.next()?.parse().ok()?;
        // Fields 6 to 21 lie between the group and the start time.
        let started_ticks = fields.nth(16)?.parse().ok()?;
        // Field 23: kernel threads have no memory. Field 26: where the code begins, which execve says last of all. Fields 50
        // and 51: from where to where the environment stands, the same as long as it is being put there.
        let (memory, code) = (fields.next()?, fields.nth(2)?.parse().ok()?);
        let (from, to) = (fields.nth(23)?, fields.next()?);
        let environment = match from == to {
            _ if memory != "0" && code == 0 => Place::NotYet,
            true => Place::Nowhere,
            false => Place::Somewhere,
        };
        let (from, to): (u64, u64) = (from.parse().ok()?, to.parse().ok()?);
        let (environment_bytes, layout) = (to.saturating_sub(from), (code, from));
        let identity = Identity { pid, started_ticks };
        Some(Self { identity, state, parent, group, environment, environment_bytes, layout })
    }

    fn is_dead(&self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }
}

impl Family {
    /// All of a runtime.
    pub(crate) fn of_runtime(marker: Marker, groups: Vec<Identity>, users: Option<UserBlock>) -> Self {
        Self { marker, groups, service: None, children_of: None, users }
    }

    /// One service of it.
    pub(crate) fn of_service(marker: Marker, service: &str, users: Option<UserBlock>) -> Self {
        Self { marker, groups: Vec::new(), service: Some(service.to_owned()), children_of: None, users }
    }

    /// Every living process of the family. Blocking: reads /proc.
    ///
    /// # Errors
    /// Where something in /proc cannot be looked at: nobody knows then what still runs.
    fn members_in(&self, proc: &Path) -> io::Result<Vec<Identity>> {
        let own = getpid().as_raw_nonzero().get();
        let mut processes: HashMap<i32, Stat> = HashMap::new();
        for entry in fs::read_dir(proc)? {
            if let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok())
                && pid != own
                && self.children_of != Some(pid)
                && let Some(stat) = Stat::read(proc, pid)?
            {
                processes.insert(pid, stat);
            }
        }
        // A group is ours while its leader is the process that we started; a reused id has another start time. Who waits
        // for leaders holds them as zombies until their groups are empty (`Leader`).
        let groups: HashSet<i32> = self
            .groups
            .iter()
            .filter(|leader| processes.get(&leader.pid).is_some_and(|stat| stat.identity == **leader))
            .map(|leader| leader.pid)
            .collect();
        let here = Stat::read(proc, own)?.map(|stat| stat.layout);
        let mut ours: HashSet<i32> = HashSet::new();
        for stat in processes.values().filter(|stat| !stat.is_dead()) {
            // Whom we are starting runs in our own memory until it is what it becomes (vfork), also for a moment after the start
            // has returned. We never fork otherwise.
            if stat.parent == own && Some(stat.layout) == here {
                return Err(becoming(stat.identity.pid));
            }
            let taken_in = self.children_of == Some(stat.parent);
            let pid = stat.identity.pid;
            if taken_in || groups.contains(&stat.group) || self.is_user_of(proc, pid)? || self.marks(proc, stat)? {
                ours.insert(stat.identity.pid);
            }
        }
        // Children of ours are ours, whatever they did to their environment.
        loop {
            let children: Vec<i32> = processes
                .values()
                .filter(|stat| !stat.is_dead() && ours.contains(&stat.parent) && !ours.contains(&stat.identity.pid))
                .map(|stat| stat.identity.pid)
                .collect();
            if children.is_empty() {
                break;
            }
            ours.extend(children);
        }
        Ok(ours.iter().filter_map(|pid| processes.get(pid)).map(|stat| stat.identity).collect())
    }

    fn is_user_of(&self, proc: &Path, pid: i32) -> io::Result<bool> {
        let Some(users) = &self.users else { return Ok(false) };
        let Some(uid) = real_user(proc, pid)? else { return Ok(false) };
        Ok(match &self.service {
            Some(service) => users.service_named(service).is_some_and(|user| user.uid == uid),
            // The shell's user stays: a shell outlives its workspace's runtime.
            None => users.holds(uid) && uid != users.shell().uid,
        })
    }

    /// # Errors
    /// Where it cannot be told yet: a process that becomes another program shows no environment for a moment, or a part of one.
    fn marks(&self, proc: &Path, stat: &Stat) -> io::Result<bool> {
        let pid = stat.identity.pid;
        let Some(environment) = environment_of(proc, pid)? else { return Ok(false) };
        // As much as there was: all of it. Else it was another program's by then, or execve came between two reads.
        if environment.len() as u64 != stat.environment_bytes || stat.environment == Place::NotYet {
            match Stat::read(proc, pid)? {
                None => return Ok(false),
                Some(now) if now.environment == Place::NotYet || now.layout != stat.layout => {
                    return Err(becoming(pid));
                }
                Some(_) => {}
            }
        }
        let carries = |name: &str, value: &str| {
            environment.split(|byte| *byte == 0).any(|variable| {
                variable.strip_prefix(name.as_bytes()).and_then(|rest| rest.strip_prefix(b"="))
                    == Some(value.as_bytes())
            })
        };
        Ok(carries(MARKER_VARIABLE, self.marker.as_str())
            && self.service.as_deref().is_none_or(|service| carries(SERVICE_VARIABLE, service)))
    }

    /// Asks every member to end, and ends by force those that still live after `grace`. Returns how many there were.
    /// Where they cannot be looked for until the end, there may be survivors.
    pub(crate) async fn end(&self, grace: Duration) -> Result<usize, Survivors> {
        self.end_in(Path::new(PROC), grace, KILL_PATIENCE).await
    }

    async fn end_in(&self, proc: &Path, grace: Duration, patience: Duration) -> Result<usize, Survivors> {
        let asked_until = Instant::now() + grace;
        let mut asked: HashSet<Identity> = HashSet::new();
        let mut pause = Duration::from_millis(2);
        loop {
            let (family, proc) = (self.clone(), proc.to_owned());
            let found = tokio::task::spawn_blocking(move || family.members_in(&proc))
                .await
                .expect("reading /proc does not panic and is not cancelled");
            let now = Instant::now();
            let late = now > asked_until + patience;
            let living = match found {
                Ok(living) if living.is_empty() => return Ok(asked.len()),
                Ok(living) if late => return Err(Survivors { count: living.len() }),
                Ok(living) => living,
                Err(error) if late => {
                    tracing::error!(%error, "processes could not be looked for: what was asked to end may still run");
                    return Err(Survivors { count: asked.len().max(1) });
                }
                Err(_) => Vec::new(),
            };
            for member in living {
                let first = asked.insert(member);
                if now >= asked_until {
                    signal(member, Signal::KILL);
                } else if first {
                    signal(member, Signal::TERM);
                }
            }
            let next = (Instant::now() + pause).min(asked_until.max(now + Duration::from_millis(2)));
            tokio::time::sleep_until(next).await;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }
}

/// It cannot be told yet whose a process is.
fn becoming(pid: i32) -> io::Error {
    io::Error::new(io::ErrorKind::WouldBlock, format!("process {pid} is becoming another program"))
}

/// `None` where the process is gone, or is not ours to read: another user's, or more privileged than we are. What we start is
/// neither, unless a program makes itself so, and then its group and its parent still tell.
fn environment_of(proc: &Path, pid: i32) -> io::Result<Option<Vec<u8>>> {
    let mut environment = Vec::new();
    let read = fs::File::open(proc.join(format!("{pid}/environ")))
        .and_then(|file| file.take(ENVIRONMENT_BYTES_MAX).read_to_end(&mut environment));
    match read {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(None),
        read => Ok(unless_gone(read)?.map(|_| environment)),
    }
}

/// `None` where the process is gone.
fn real_user(proc: &Path, pid: i32) -> io::Result<Option<u32>> {
    let Some(status) = unless_gone(fs::read_to_string(proc.join(format!("{pid}/status"))))? else { return Ok(None) };
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let uid = line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok());
    uid.map(Some).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/status")))
}

/// Ends every process of a workspace's users, its shell's too. The number of those that survive SIGKILL otherwise.
pub(crate) async fn end_users(block: &UserBlock) -> Result<(), Survivors> {
    let late = Instant::now() + KILL_PATIENCE;
    loop {
        let found = {
            let block = block.clone();
            tokio::task::spawn_blocking(move || run_by(Path::new(PROC), &block))
                .await
                .expect("reading /proc does not panic and is not cancelled")
        };
        match found {
            Ok(living) if living.is_empty() => return Ok(()),
            Ok(living) if Instant::now() > late => return Err(Survivors { count: living.len() }),
            Err(_) if Instant::now() > late => return Err(Survivors { count: 1 }),
            Ok(living) => living.into_iter().for_each(|member| signal(member, Signal::KILL)),
            Err(error) => tracing::warn!(%error, "processes could not be looked for; trying again"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn run_by(proc: &Path, block: &UserBlock) -> io::Result<Vec<Identity>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(proc)? {
        if let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok())
            && real_user(proc, pid)?.is_some_and(|uid| block.holds(uid))
            && let Some(stat) = Stat::read(proc, pid)?
            && !stat.is_dead()
        {
            found.push(stat.identity);
        }
    }
    Ok(found)
}

/// INVARIANT: only the very process that was found is signalled. The pidfd is taken first and the start time compared
/// after it, so a process id that was reused in between is never hit.
fn signal(member: Identity, signal: Signal) {
    let Some(pid) = Pid::from_raw(member.pid) else { return };
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    let stat = Stat::read(Path::new(PROC), member.pid);
    if stat.is_ok_and(|stat| stat.is_some_and(|stat| stat.identity == member)) {
        match pidfd_send_signal(&handle, signal) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => tracing::warn!(pid = member.pid, %error, "a process of a runtime could not be signalled"),
        }
    }
}

/// Whether this system shows processes as this module needs them.
pub(crate) fn is_supported() -> bool {
    let own = getpid();
    let stat = Stat::read(Path::new(PROC), own.as_raw_nonzero().get());
    stat.is_ok_and(|stat| stat.is_some()) && pidfd_open(own, PidfdFlags::empty()).is_ok()
}

/// Only these two errors say that a process is gone.
fn unless_gone<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => Ok(None),
        Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The first process of a group that was started here. Its end is seen before it is waited for: a zombie keeps its id, and
/// with it its group stays findable, also for members that hide their environment.
pub(crate) struct Leader(Child);

impl Leader {
    pub(crate) fn new(child: Child) -> Self {
        Self(child)
    }

    pub(crate) fn identity(&self) -> Option<Identity> {
        self.0.id().and_then(Identity::of)
    }

    /// How it ended, once it has; it stays a zombie.
    pub(crate) async fn ended(&mut self) -> io::Result<ExitStatus> {
        let pid = self.0.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let Some(pid) = pid else { return self.0.wait().await };
        // Listened to before the first look, so that no end falls in between.
        let mut ends = signal_stream(SignalKind::child())?;
        loop {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
            match waitid(WaitId::Pid(pid), options)? {
                None => {
                    ends.recv().await;
                }
                // As wait(2) encodes it.
                Some(status) => {
                    let raw = match (status.exit_status(), status.terminating_signal()) {
                        (Some(code), _) => code << 8,
                        (None, Some(signal)) => signal,
                        (None, None) => return self.0.wait().await,
                    };
                    return Ok(ExitStatus::from_raw(raw));
                }
            }
        }
    }

    /// Lets the zombie go.
    pub(crate) async fn reap(mut self) {
        if let Err(error) = self.0.wait().await {
            tracing::warn!(%error, "a service's first process could not be waited for");
        }
    }
}

/// `sh -c` in a process group of its own, with exactly this environment, reading nothing; as somebody else where there is a
/// user, whose files the workspace's group may write.
pub(crate) fn shell(command: &str, directory: &Path, environment: &Environment, user: Option<UnixUser>) -> Command {
    let mut process = Command::new("/bin/sh");
    process.arg("-c").current_dir(directory);
    match user {
        None => process.arg(command),
        Some(user) => {
            user.apply(&mut process);
            process.arg(format!("umask 0002\n{command}"))
        }
    };
    contain(&mut process, environment);
    process
}

/// Gives a process exactly this environment, a group of its own, and nothing to read or to write to.
pub(crate) fn contain(process: &mut Command, environment: &Environment) {
    process
        .env_clear()
        .envs(environment.iter())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true);
}

/// How a process ended, in words: `exit status 3`, `signal 9`.
pub(crate) struct Ended(pub(crate) std::process::ExitStatus);

impl fmt::Display for Ended {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.code(), self.0.signal()) {
            (Some(code), _) => write!(formatter, "exit status {code}"),
            (None, Some(signal)) => write!(formatter, "signal {signal}"),
            (None, None) => formatter.write_str("an unknown status"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let stat = Stat::parse(4711, sleeping(4711).replace("(app)", "(a) R 1 (x))").as_bytes()).unwrap();
        assert_eq!((stat.state, stat.parent, stat.group, stat.identity.started_ticks), (b'S', 17, 4711, 77));
        assert_eq!(stat.environment, Place::Somewhere);
    }

    #[test]
    fn a_marker_of_another_shape_is_refused() {
        for text in ["", "abc", "zz000000000000000000000000000000"] {
            assert!(Marker::try_from(text.to_owned()).is_err(), "{text}");
        }
        let marker = Marker::random();
        assert!(Marker::try_from(marker.as_str().to_owned()).is_ok());
    }

    /// What /proc shows of one process, in a directory of its own.
    fn shown(proc: &Path, pid: i32, stat: Option<&str>) -> std::path::PathBuf {
        let process = proc.join(pid.to_string());
        fs::create_dir(&process).unwrap();
        if let Some(stat) = stat {
            fs::write(process.join("stat"), stat).unwrap();
        }
        process
    }

    fn sleeping(pid: i32) -> String {
        with_environment(pid, "4096", "1000", ("8000", "8020"))
    }

    fn with_environment(pid: i32, memory: &str, code: &str, (from, to): (&str, &str)) -> String {
        let zeros = "0 ".repeat(23);
        let before = format!("{pid} (app) S 17 {pid} {pid} 0 -1 0 1 2 3 4 5 6 7 8 20 0 1 0 77");
        format!("{before} {memory} 1 2 {code} {zeros}{from} {to} 0")
    }

    #[test]
    fn a_process_that_becomes_another_program_cannot_be_told_yet() {
        let family =
            Family { marker: Marker::random(), groups: Vec::new(), service: None, children_of: None, users: None };
        let directory = tempfile::tempdir().unwrap();
        let proc = directory.path();
        for (memory, code, ends, tells) in [
            ("4096", "0", ("0", "0"), false),
            ("4096", "0", ("8000", "8000"), false),
            ("0", "0", ("0", "0"), true),
            ("4096", "1000", ("8000", "8000"), true),
            ("4096", "1000", ("8000", "8020"), true),
        ] {
            let process = shown(proc, 4_000_001, Some(&with_environment(4_000_001, memory, code, ends)));
            fs::write(process.join("environ"), "").unwrap();
            assert_eq!(family.members_in(proc).is_ok(), tells, "{memory} {code} {ends:?}");
            fs::remove_dir_all(process).unwrap();
        }
        // Another user's shows the same, and nothing that could be read.
        shown(proc, 4_000_001, Some(&with_environment(4_000_001, "4096", "0", ("0", "0"))));
        assert_eq!(family.members_in(proc).unwrap(), []);
    }

    /// Whoever started a process knows it before the process is the program that it was started for.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_process_is_found_from_its_first_moment() {
        for _ in 0..100 {
            let family =
                Family { marker: Marker::random(), groups: Vec::new(), service: None, children_of: None, users: None };
            let mut young = Command::new("setsid")
                .args(["sleep", "1000"])
                .env(MARKER_VARIABLE, family.marker.as_str())
                .kill_on_drop(true)
                .spawn()
                .unwrap();
            assert_eq!(family.end(Duration::ZERO).await, Ok(1));
            // Dead, though the kernel may be at clearing up.
            tokio::time::timeout(Duration::from_secs(10), young.wait()).await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn processes_that_cannot_be_looked_for_count_as_survivors() {
        let family =
            Family { marker: Marker::random(), groups: Vec::new(), service: None, children_of: None, users: None };
        let directory = tempfile::tempdir().unwrap();
        let proc = directory.path();
        assert!(family.members_in(&proc.join("not-mounted")).is_err());
        // Gone since it was listed, wholly or in part.
        shown(proc, 4_000_001, None);
        shown(proc, 4_000_002, Some(&sleeping(4_000_002)));
        assert_eq!(family.members_in(proc).unwrap(), []);
        // Neither file can be read as what it is.
        let unreadable = shown(proc, 4_000_003, Some(&sleeping(4_000_003)));
        fs::create_dir(unreadable.join("environ")).unwrap();
        assert!(family.members_in(proc).is_err());
        let end = || family.end_in(proc, Duration::ZERO, Duration::ZERO);
        assert_eq!(end().await, Err(Survivors { count: 1 }));
        fs::remove_dir(unreadable.join("environ")).unwrap();
        assert_eq!(end().await, Ok(0));
        shown(proc, 4_000_004, Some("4000004 (app"));
        assert!(family.members_in(proc).is_err());
    }

    #[tokio::test]
    async fn a_leader_that_has_ended_keeps_its_id_until_it_is_let_go() {
        for (script, words) in [("exit 3", "exit status 3"), ("kill -9 $$", "signal 9")] {
            let child = Command::new("sh").arg("-c").arg(script).spawn().unwrap();
            let pid = child.id().unwrap();
            let mut leader = Leader::new(child);
            assert_eq!(Ended(leader.ended().await.unwrap()).to_string(), words);
            assert!(Identity::of(pid).is_some(), "a zombie is still there");
            leader.reap().await;
            assert!(Identity::of(pid).is_none());
        }
    }

    #[tokio::test]
    async fn a_process_whose_id_was_reused_is_left_alone() {
        let mut bystander = Command::new("sleep").arg("60").kill_on_drop(true).spawn().unwrap();
        let pid = bystander.id().unwrap();
        let real = Identity::of(pid).unwrap();
        let reused = Identity { pid: real.pid, started_ticks: real.started_ticks + 1 };
        signal(reused, Signal::KILL);
        let family =
            Family { marker: Marker::random(), groups: vec![reused], service: None, children_of: None, users: None };
        assert_eq!(family.end(Duration::ZERO).await, Ok(0));
        assert_eq!(bystander.try_wait().unwrap(), None, "the bystander still runs");
        bystander.kill().await.unwrap();
    }
}
