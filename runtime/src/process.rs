//! The processes of a runtime: how they are started, how they are found again, how they end.
//!
//! Every process of a runtime carries a random marker in its environment, which children inherit. It finds what a process
//! group does not: daemons that called `setsid`, and what is left after a kill -9 of this program. Not here: which
//! processes to start (`service`), or where markers are kept (`record`).

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rand::RngExt;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tokio::time::Instant;

use crate::environment::{Environment, MARKER_VARIABLE, SERVICE_VARIABLE};

/// How long a process may take to vanish after SIGKILL. Only one that hangs in the kernel takes longer.
pub(crate) const KILL_PATIENCE: Duration = Duration::from_secs(5);
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
        let stat = Stat::read(i32::try_from(pid).ok()?)?;
        Some(stat.identity)
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
}

impl Stat {
    fn read(pid: i32) -> Option<Self> {
        let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
        Self::parse(pid, &text)
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
        Some(Self { identity: Identity { pid, started_ticks }, state, parent, group })
    }

    fn is_dead(&self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }
}

impl Family {
    /// Every living process of the family. Blocking: reads /proc.
    pub(crate) fn members(&self) -> Vec<Identity> {
        let own = getpid().as_raw_nonzero().get();
        let mut processes: HashMap<i32, Stat> = HashMap::new();
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        for entry in entries.flatten() {
            if let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok())
                && pid != own
                && let Some(stat) = Stat::read(pid)
            {
                processes.insert(pid, stat);
            }
        }
        // A group is ours while its leader is the process that we started; a reused id has another start time.
        let groups: HashSet<i32> = self
            .groups
            .iter()
            .filter(|leader| processes.get(&leader.pid).is_some_and(|stat| stat.identity == **leader))
            .map(|leader| leader.pid)
            .collect();
        let mut ours: HashSet<i32> = processes
            .values()
            .filter(|stat| !stat.is_dead())
            .filter(|stat| groups.contains(&stat.group) || self.marks(stat.identity.pid))
            .map(|stat| stat.identity.pid)
            .collect();
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
        ours.iter().filter_map(|pid| processes.get(pid)).map(|stat| stat.identity).collect()
    }

    fn marks(&self, pid: i32) -> bool {
        let mut environment = Vec::new();
        // Processes of other users cannot be read and are not ours.
        let Ok(file) = fs::File::open(format!("/proc/{pid}/environ")) else { return false };
        if file.take(ENVIRONMENT_BYTES_MAX).read_to_end(&mut environment).is_err() {
            return false;
        }
        let carries = |name: &str, value: &str| {
            environment.split(|byte| *byte == 0).any(|variable| {
                variable.strip_prefix(name.as_bytes()).and_then(|rest| rest.strip_prefix(b"="))
                    == Some(value.as_bytes())
            })
        };
        carries(MARKER_VARIABLE, self.marker.as_str())
            && self.service.as_deref().is_none_or(|service| carries(SERVICE_VARIABLE, service))
    }

    /// Asks every member to end, and ends by force those that still live after `grace`. Returns how many there were.
    pub(crate) async fn end(&self, grace: Duration) -> Result<usize, Survivors> {
        let asked_until = Instant::now() + grace;
        let mut asked: HashSet<Identity> = HashSet::new();
        let mut pause = Duration::from_millis(2);
        loop {
            let family = self.clone();
            let living = tokio::task::spawn_blocking(move || family.members())
                .await
                .expect("reading /proc does not panic and is not cancelled");
            if living.is_empty() {
                return Ok(asked.len());
            }
            let now = Instant::now();
            if now > asked_until + KILL_PATIENCE {
                return Err(Survivors { count: living.len() });
            }
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

/// INVARIANT: only the very process that was found is signalled. The pidfd is taken first and the start time compared
/// after it, so a process id that was reused in between is never hit.
fn signal(member: Identity, signal: Signal) {
    let Some(pid) = Pid::from_raw(member.pid) else { return };
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    if Stat::read(member.pid).is_some_and(|stat| stat.identity == member) {
        match pidfd_send_signal(&handle, signal) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => tracing::warn!(pid = member.pid, %error, "a process of a runtime could not be signalled"),
        }
    }
}

/// Whether this system shows processes as this module needs them.
pub(crate) fn is_supported() -> bool {
    let own = getpid();
    Stat::read(own.as_raw_nonzero().get()).is_some() && pidfd_open(own, PidfdFlags::empty()).is_ok()
}

/// `sh -c` in a process group of its own, with exactly this environment, reading nothing.
pub(crate) fn shell(command: &str, directory: &Path, environment: &Environment) -> Command {
    let mut process = Command::new("/bin/sh");
    process.arg("-c").arg(command).current_dir(directory);
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
        use std::os::unix::process::ExitStatusExt;
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
        let line = b"4711 (a) R 1 (x)) S 17 23 23 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2";
        let stat = Stat::parse(4711, line).unwrap();
        assert_eq!((stat.state, stat.parent, stat.group, stat.identity.started_ticks), (b'S', 17, 23, 987_654));
    }

    #[test]
    fn a_marker_of_another_shape_is_refused() {
        for text in ["", "abc", "zz000000000000000000000000000000"] {
            assert!(Marker::try_from(text.to_owned()).is_err(), "{text}");
        }
        let marker = Marker::random();
        assert!(Marker::try_from(marker.as_str().to_owned()).is_ok());
    }

    #[tokio::test]
    async fn a_process_whose_id_was_reused_is_left_alone() {
        let mut bystander = Command::new("sleep").arg("60").kill_on_drop(true).spawn().unwrap();
        let pid = bystander.id().unwrap();
        let real = Identity::of(pid).unwrap();
        let reused = Identity { pid: real.pid, started_ticks: real.started_ticks + 1 };
        signal(reused, Signal::KILL);
        let family = Family { marker: Marker::random(), groups: vec![reused], service: None };
        assert_eq!(family.end(Duration::ZERO).await, Ok(0));
        assert_eq!(bystander.try_wait().unwrap(), None, "the bystander still runs");
        bystander.kill().await.unwrap();
    }
}
