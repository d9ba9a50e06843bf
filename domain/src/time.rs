//! Instants and durations as integers. The domain never reads a clock: instants ride in with commands.

use std::fmt;

/// Milliseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct UnixMillis(u64);

/// A length of time in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Millis(u64);

impl UnixMillis {
    pub const EPOCH: Self = Self(0);

    pub const fn new(milliseconds: u64) -> Self {
        Self(milliseconds)
    }

    pub const fn get(self) -> u64 {
        self.0
    }

    /// Time from `earlier` to `self`; zero where `earlier` is the later one.
    pub const fn since(self, earlier: Self) -> Millis {
        Millis(self.0.saturating_sub(earlier.0))
    }

    pub const fn plus(self, length: Millis) -> Self {
        Self(self.0.saturating_add(length.0))
    }

    pub const fn minus(self, length: Millis) -> Self {
        Self(self.0.saturating_sub(length.0))
    }
}

impl Millis {
    pub const ZERO: Self = Self(0);

    pub const fn new(milliseconds: u64) -> Self {
        Self(milliseconds)
    }

    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1_000))
    }

    pub const fn from_minutes(minutes: u64) -> Self {
        Self::from_secs(minutes.saturating_mul(60))
    }

    pub const fn from_hours(hours: u64) -> Self {
        Self::from_minutes(hours.saturating_mul(60))
    }

    pub const fn get(self) -> u64 {
        self.0
    }

    pub const fn as_secs(self) -> u64 {
        self.0 / 1_000
    }

    pub const fn to_duration(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0)
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ms if ms < 1_000 => write!(formatter, "{ms} ms"),
            ms if ms % 3_600_000 == 0 => write!(formatter, "{} h", ms / 3_600_000),
            ms if ms % 60_000 == 0 => write!(formatter, "{} min", ms / 60_000),
            ms => write!(formatter, "{} s", ms / 1_000),
        }
    }
}

/// Says what time it is. The domain never asks; whoever does is handed one, so that tests move it instead of sleeping.
pub trait Clock: Send + Sync + 'static {
    fn now(&self) -> UnixMillis;
}

/// A clock that components share.
pub type SharedClock = std::sync::Arc<dyn Clock>;
