//! Being asked to stop: Ctrl-C, SIGTERM, or the terminal that goes away.
//!
//! Not here: how a process stops (`running`).

use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// One Ctrl-C may be told twice, by the terminal and by whoever passes it on to a group of processes.
const SAME_REQUEST: Duration = Duration::from_secs(1);

/// The requests to stop that this process hears, from the moment it is made. One that comes before somebody waits for it
/// is kept.
pub(crate) struct StopRequests {
    interrupt: Signal,
    terminate: Signal,
    hangup: Option<Signal>,
    /// The latest one that was waited for.
    heard: Option<Instant>,
}

impl StopRequests {
    /// First of all: what is started before could be left behind by a signal that nobody hears.
    pub(crate) fn listen() -> anyhow::Result<Self> {
        let hear = |kind| signal(kind).context("this process cannot hear signals");
        Ok(Self {
            interrupt: hear(SignalKind::interrupt())?,
            terminate: hear(SignalKind::terminate())?,
            // Whoever started us by `nohup` wants us to outlive the terminal.
            hangup: if ignores_hangup() { None } else { Some(hear(SignalKind::hangup())?) },
            heard: None,
        })
    }

    /// Waits for Ctrl-C alone, from somebody who was heard already and does not want to wait. A closed terminal is told twice,
    /// by the kernel and by the shell, and supervisors repeat themselves: neither is impatience, nor is a Ctrl-C within a second.
    pub(crate) async fn impatience(&mut self) {
        loop {
            if self.interrupt.recv().await.is_none() {
                return std::future::pending().await;
            }
            if self.heard.is_none_or(|heard| heard.elapsed() >= SAME_REQUEST) {
                return;
            }
        }
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = hangup => {}
        }
        self.heard = Some(Instant::now());
    }
}

fn ignores_hangup() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores(&status, SignalKind::hangup()))
}

/// Whether `/proc/PID/status` says that a signal was ignored when the program began.
fn ignores(status: &str, kind: SignalKind) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).map(str::trim);
    let bit = u32::try_from(kind.as_raw_value() - 1).unwrap_or(u32::MAX);
    mask.and_then(|mask| u64::from_str_radix(mask, 16).ok())
        .and_then(|mask| mask.checked_shr(bit))
        .is_some_and(|mask| mask & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hangup_that_nohup_ignores_is_no_request() {
        assert!(ignores("Name:\tenvforge\nSigIgn:\t0000000000001001\n", SignalKind::hangup()));
        assert!(!ignores("Name:\tenvforge\nSigIgn:\t0000000000001000\n", SignalKind::hangup()));
        assert!(!ignores("", SignalKind::hangup()));
    }
}
