//! What the log tells about itself: `eventlog_append_seconds`, `eventlog_appends_total{backend,outcome}`,
//! `eventlog_follow_lag_seconds{backend}`, `eventlog_clock_went_back_total{backend}`.
//!
//! Not here: exporting them (the binary installs a recorder).

use std::time::{Duration, Instant};

use envforge_domain::time::{Clock, UnixMillis};
use metrics::{counter, histogram};

use crate::clock::SystemClock;
use crate::{AppendError, Appended, LogError};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    Sqlite,
    JetStream,
}

impl Backend {
    const fn token(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::JetStream => "jetstream",
        }
    }

    pub(crate) fn appended(self, started: Instant, result: &Result<Appended, AppendError>) {
        histogram!("eventlog_append_seconds", "backend" => self.token()).record(started.elapsed());
        let outcome = match result {
            Ok(Appended { duplicate: false, .. }) => "appended",
            Ok(Appended { duplicate: true, .. }) => "duplicate",
            Err(AppendError::Conflict { .. }) => "conflict",
            Err(AppendError::RightsMoved { .. }) => "rights_moved",
            Err(AppendError::CommandReused { .. }) => "command_reused",
            Err(AppendError::TooLarge { .. }) => "too_large",
            Err(AppendError::Malformed) => "malformed",
            Err(AppendError::Unknown) => "unknown",
            Err(AppendError::Log(LogError::Unavailable(_))) => "unavailable",
            Err(AppendError::Log(_)) => "unusable",
        };
        counter!("eventlog_appends_total", "backend" => self.token(), "outcome" => outcome).increment(1);
    }

    /// How long after its recording a commit reached a follower. Called once a page, not once a commit.
    pub(crate) fn followed(self, recorded_at: UnixMillis) {
        let lag = Duration::from_millis(SystemClock.now().since(recorded_at).get());
        histogram!("eventlog_follow_lag_seconds", "backend" => self.token()).record(lag);
    }

    /// The log's clock stood behind its last commit; the commit got the later of the two times.
    pub(crate) fn clock_went_back(self) {
        counter!("eventlog_clock_went_back_total", "backend" => self.token()).increment(1);
    }
}
