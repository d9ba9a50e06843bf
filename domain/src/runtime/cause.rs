//! Why a runtime wakes, sleeps or stays awake, and whose use of it was seen.
//!
//! Not here: what comes of it (`runtime`).

use crate::ids::{LinkId, SessionId, UserId};
use crate::secrets::SecretName;
use crate::time::{Millis, UnixMillis};

/// Why a runtime was woken. Every wake carries one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum WakeCause {
    Link { link: LinkId, session: SessionId },
    Person(UserId),
    Job { name: String, by: UserId },
    Agent { name: String, by: UserId },
}

/// Why a runtime goes to sleep, or a sleep was put off.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SleepCause {
    Idle {
        idle_for: Millis,
    },
    Person(UserId),
    WorkspaceArchived,
    /// EnvForge itself stops; the host cannot go on alone.
    Shutdown,
    UsageCap,
    /// A secret that it runs with has another version, and its rules say that this restarts.
    SecretRotated {
        name: SecretName,
    },
}

/// Why a sleep did not happen when it was due.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PostponeCause {
    KeepAwake { until: UnixMillis },
    OpenStreams { count: u32 },
}

/// Whose use of a runtime was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ActivitySource {
    Link(LinkId),
    Person(UserId),
}
