//! Single processes: how they are started, recognised, signalled and waited for.
//!
//! Not here: which processes belong together, and how all of those end (`family`); which processes to start (`service`), or
//! where markers are kept (`record`).

mod family;

use std::fmt;
use std::fs;
use std::io;
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

use crate::environment::Environment;
use crate::unix_user::UnixUser;

pub(crate) use family::{Family, Survivors, end_users, runs_as};

/// How long a process may take to vanish after SIGKILL. Only one that hangs in the kernel takes longer.
pub(crate) const KILL_PATIENCE: Duration = Duration::from_secs(5);
/// Before what did not end is ended anew.
pub(crate) const END_PAUSE: Duration = Duration::from_secs(1);
/// Where Linux shows its processes.
const PROC: &str = "/proc";

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

struct Stat {
    identity: Identity,
    state: u8,
    parent: i32,
    group: i32,
    threads: u32,
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
        // Fields 20 and 22; 6 to 19 lie between the group and them.
        let (threads, started_ticks) = (fields.nth(14)?.parse().ok()?, fields.nth(1)?.parse().ok()?);
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
        Some(Self { identity, state, parent, group, threads, environment, environment_bytes, layout })
    }

    /// One whose first thread alone has ended shows itself as a zombie, and runs.
    fn is_dead(&self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x') && self.threads <= 1
    }
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

    pub(super) fn sleeping(pid: i32) -> String {
        with_environment(pid, "4096", "1000", ("8000", "8020"))
    }

    pub(super) fn with_environment(pid: i32, memory: &str, code: &str, (from, to): (&str, &str)) -> String {
        let zeros = "0 ".repeat(23);
        let before = format!("{pid} (app) S 17 {pid} {pid} 0 -1 0 1 2 3 4 5 6 7 8 20 0 1 0 77");
        format!("{before} {memory} 1 2 {code} {zeros}{from} {to} 0")
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
}
