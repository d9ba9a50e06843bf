//! The meter: awake time per service, folded from a runtime's events. Integers only.
//!
//! Counts from ready to sleep requested by the log's own clock, half-open, split at UTC hours. A host that died is
//! counted up to its last heartbeat, never later. Nothing is counted for waking, failed or sleeping.

use std::collections::BTreeMap;

use crate::runtime::{Epoch, ReadyService, RuntimeEvent, WakeCause};
use crate::slug::ServiceName;
use crate::time::{Millis, UnixMillis};

/// One UTC hour, counted from the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UtcHour(pub u64);

const HOUR_MS: u64 = 3_600_000;

impl UtcHour {
    pub const fn of(instant: UnixMillis) -> Self {
        Self(instant.get() / HOUR_MS)
    }

    pub const fn start(self) -> UnixMillis {
        UnixMillis::new(self.0 * HOUR_MS)
    }
}

/// What one service used in one hour of one wake. Written over, never added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Usage {
    pub service_ms: u64,
    pub millicore_ms: u64,
    pub mib_ms: u64,
}

/// A usage row's key within one runtime.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UsageKey {
    pub epoch: Epoch,
    pub hour: UtcHour,
    pub service: ServiceName,
}

/// The meter of one runtime. The same events in the same order give the same rows, whenever they are folded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeMeter {
    cause: Option<WakeCause>,
    open: Option<OpenInterval>,
}

/// What a meter remembers of a runtime that is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenInterval {
    pub epoch: Epoch,
    pub since: UnixMillis,
    /// When the log last heard from the host.
    pub heartbeat: UnixMillis,
    pub lease_until: UnixMillis,
    pub services: Vec<ReadyService>,
}

impl RuntimeMeter {
    /// Takes up a meter that was put away: `cause` and `open` as they were answered by the methods of these names.
    pub fn resume(cause: Option<WakeCause>, open: Option<OpenInterval>) -> Self {
        Self { cause, open }
    }

    /// Folds one event. Returns the rows of the interval that it extended or closed: each replaces the row of its key.
    /// `recorded_at` is the log's time of the event, in ms; it never goes back.
    pub fn apply(&mut self, event: &RuntimeEvent, recorded_at: UnixMillis) -> BTreeMap<UsageKey, Usage> {
        match event {
            RuntimeEvent::WakeRequested { cause, .. } => {
                self.cause = Some(cause.clone());
                BTreeMap::new()
            }
            RuntimeEvent::Ready { epoch, services, lease_until, .. } => {
                self.open = Some(OpenInterval {
                    epoch: *epoch,
                    since: recorded_at,
                    heartbeat: recorded_at,
                    lease_until: *lease_until,
                    services: services.clone(),
                });
                BTreeMap::new()
            }
            RuntimeEvent::LeaseRenewed { lease_until, .. } => match &mut self.open {
                Some(open) => {
                    // A renewal proves that the host lived until now; what lies beyond is proven by the next one.
                    open.lease_until = *lease_until;
                    open.heartbeat = recorded_at;
                    open.rows(recorded_at)
                }
                None => BTreeMap::new(),
            },
            RuntimeEvent::SleepRequested { .. } | RuntimeEvent::Failed { .. } => self.close(recorded_at),
            // SPEC, "Billing and audit": closed at the last heartbeat if a host dies.
            RuntimeEvent::Lost { closed_at, .. } => {
                let heartbeat = self.open.as_ref().map_or(recorded_at, |open| open.heartbeat);
                self.close((*closed_at).min(heartbeat))
            }
            RuntimeEvent::WakeQueued { .. }
            | RuntimeEvent::HostChosen { .. }
            | RuntimeEvent::StageReached { .. }
            | RuntimeEvent::SecretsResolved { .. }
            | RuntimeEvent::SecretsRefused { .. }
            | RuntimeEvent::EndpointsBound { .. }
            | RuntimeEvent::ActivitySeen { .. }
            | RuntimeEvent::KeptAwake { .. }
            | RuntimeEvent::KeepAwakeShortened { .. }
            | RuntimeEvent::SleepPostponed { .. }
            | RuntimeEvent::Slept { .. } => BTreeMap::new(),
        }
    }

    /// Why the current or last wake happened: who the cost is attributed to.
    pub fn cause(&self) -> Option<&WakeCause> {
        self.cause.as_ref()
    }

    /// What is being counted; `None` while nothing runs.
    pub fn open(&self) -> Option<&OpenInterval> {
        self.open.as_ref()
    }

    /// The open interval as rows up to `now`, for a live figure. Never beyond the lease.
    pub fn running(&self, now: UnixMillis) -> BTreeMap<UsageKey, Usage> {
        self.open.as_ref().map(|open| open.rows(now)).unwrap_or_default()
    }

    fn close(&mut self, at: UnixMillis) -> BTreeMap<UsageKey, Usage> {
        self.open.take().map(|open| open.rows(at)).unwrap_or_default()
    }
}

impl OpenInterval {
    fn rows(&self, until: UnixMillis) -> BTreeMap<UsageKey, Usage> {
        let until = until.min(self.lease_until);
        let mut rows = BTreeMap::new();
        let mut from = self.since;
        while from < until {
            let hour = UtcHour::of(from);
            let end = until.min(hour.start().plus(Millis::new(HOUR_MS)));
            let length = end.since(from).get();
            for service in &self.services {
                let key = UsageKey { epoch: self.epoch, hour, service: service.name.clone() };
                rows.insert(
                    key,
                    Usage {
                        service_ms: length,
                        millicore_ms: length.saturating_mul(u64::from(service.cpu_millicores)),
                        mib_ms: length.saturating_mul(u64::from(service.memory_mib)),
                    },
                );
            }
            from = end;
        }
        rows
    }
}
