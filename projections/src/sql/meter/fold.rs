//! From commits of runtimes to usage rows and meter states.

use envforge_domain::commit::Recorded;
use envforge_domain::event::Event;
use envforge_domain::meter::{OpenInterval, RuntimeMeter, Usage, UsageKey, UtcHour};
use envforge_domain::runtime::{Epoch, RuntimeEvent, WakeCause};
use envforge_domain::time::UnixMillis;

use super::super::held::{Buffer, Held};
use super::super::projector::ReadModel;
use super::super::table::{Row, Table, id_table, int, uint};
use super::super::{ready_services, wake_cause};

id_table! {
    pub(super) struct UsageRow in "meter_usage" {
        id: String,
        org: String,
        project: String,
        workspace: String,
        epoch: i64,
        hour: i64,
        service: String,
        cause_kind: String,
        cause_by: Option<String>,
        cause_name: Option<String>,
        link: Option<String>,
        service_ms: i64,
        millicore_ms: i64,
        mib_ms: i64,
    }
}

id_table! {
    pub(super) struct RuntimeMeterRow in "meter_runtimes" {
        id: String,
        org: String,
        project: String,
        cause: Option<String>,
        epoch: Option<i64>,
        since: Option<i64>,
        heartbeat: Option<i64>,
        lease_until: Option<i64>,
        services: Option<String>,
    }
}

pub(crate) const TABLES: &[&Table] = &[&UsageRow::TABLE, &RuntimeMeterRow::TABLE];

impl RuntimeMeterRow {
    /// The domain's meter as it was put away. `Err` says what in the row cannot be read.
    pub(super) fn meter(&self) -> Result<RuntimeMeter, String> {
        let cause = self.cause.as_deref().map(wake_cause::parse).transpose()?;
        let open = match (self.epoch, self.since, self.heartbeat, self.lease_until, self.services.as_deref()) {
            (Some(epoch), Some(since), Some(heartbeat), Some(lease_until), Some(services)) => Some(OpenInterval {
                epoch: Epoch(uint(epoch)),
                since: UnixMillis::new(uint(since)),
                heartbeat: UnixMillis::new(uint(heartbeat)),
                lease_until: UnixMillis::new(uint(lease_until)),
                services: ready_services::parse(services)?,
            }),
            (None, None, None, None, None) => None,
            _ => return Err("an open interval is there in part only".to_owned()),
        };
        Ok(RuntimeMeter::resume(cause, open))
    }

    fn put_away(&mut self, meter: &RuntimeMeter) {
        let open = meter.open();
        self.cause = meter.cause().map(wake_cause::to_text);
        self.epoch = open.map(|open| int(open.epoch.0));
        self.since = open.map(|open| int(open.since.get()));
        self.heartbeat = open.map(|open| int(open.heartbeat.get()));
        self.lease_until = open.map(|open| int(open.lease_until.get()));
        self.services = open.map(|open| ready_services::to_text(&open.services));
    }
}

/// The meter's rows on their way.
#[derive(Default)]
pub(crate) struct MeterModel {
    usage: Held<UsageRow>,
    runtimes: Held<RuntimeMeterRow>,
}

/// Who the cost of a wake is attributed to: kind, person, name, link.
pub(super) fn attribution(cause: Option<&WakeCause>) -> (String, Option<String>, Option<String>, Option<String>) {
    let kind = cause.map_or("unknown", wake_cause::kind).to_owned();
    match cause {
        Some(WakeCause::Link { link, .. }) => (kind, None, None, Some(link.to_string())),
        Some(WakeCause::Person(by)) => (kind, Some(by.to_string()), None, None),
        Some(WakeCause::Job { name, by } | WakeCause::Agent { name, by }) => {
            (kind, Some(by.to_string()), Some(name.clone()), None)
        }
        None => (kind, None, None, None),
    }
}

impl ReadModel for MeterModel {
    fn want(&mut self, recorded: &Recorded) {
        if recorded.commit.events.iter().any(|event| matches!(event, Event::Runtime(_))) {
            self.runtimes.want(recorded.commit.stream.key());
        }
    }

    fn fold(&mut self, recorded: &Recorded) {
        for event in &recorded.commit.events {
            if let Event::Runtime(event) = event {
                self.runtime(recorded, event);
            }
        }
    }

    fn buffers(&mut self) -> Vec<&mut dyn Buffer> {
        vec![&mut self.usage, &mut self.runtimes]
    }
}

impl MeterModel {
    fn runtime(&mut self, recorded: &Recorded, event: &RuntimeEvent) {
        let workspace = recorded.commit.stream.key();
        if let RuntimeEvent::WakeRequested { project, .. } = event
            && self.runtimes.get(workspace).is_none()
        {
            self.runtimes.put(RuntimeMeterRow {
                id: workspace.to_owned(),
                org: recorded.commit.stream.org().to_string(),
                project: project.to_string(),
                cause: None,
                epoch: None,
                since: None,
                heartbeat: None,
                lease_until: None,
                services: None,
            });
        }
        // The meter looks at what changes it, and that is all that changes the row.
        match event {
            RuntimeEvent::WakeRequested { .. }
            | RuntimeEvent::Ready { .. }
            | RuntimeEvent::LeaseRenewed { .. }
            | RuntimeEvent::SleepRequested { .. }
            | RuntimeEvent::Failed { .. }
            | RuntimeEvent::Lost { .. } => {}
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
            | RuntimeEvent::Slept { .. } => return,
        }
        let Some(row) = self.runtimes.edit(workspace) else { return };
        let mut meter = match row.meter() {
            Ok(meter) => meter,
            Err(reason) => {
                // Written by this fold alone. Counting nothing is right until the next wake; a rebuild mends it.
                tracing::error!(%workspace, %reason, "the meter's state cannot be read; rebuild the read model `meter`");
                metrics::counter!("envforge_meter_state_unreadable_total").increment(1);
                RuntimeMeter::default()
            }
        };
        let heartbeat = meter.open().map(|open| open.heartbeat);
        let mut rows = meter.apply(event, recorded.recorded_at);
        // Hours that ended before the last heartbeat were written complete then.
        if let (RuntimeEvent::LeaseRenewed { .. } | RuntimeEvent::SleepRequested { .. }, Some(heartbeat)) =
            (event, heartbeat)
        {
            rows.retain(|key, _| key.hour >= UtcHour::of(heartbeat));
        }
        row.put_away(&meter);
        let (org, project) = (row.org.clone(), row.project.clone());
        let cause = meter.cause();
        for (key, usage) in rows {
            self.usage.put(usage_row(&org, &project, workspace, &key, usage, cause));
        }
    }
}

fn usage_row(
    org: &str,
    project: &str,
    workspace: &str,
    key: &UsageKey,
    usage: Usage,
    cause: Option<&WakeCause>,
) -> UsageRow {
    let (cause_kind, cause_by, cause_name, link) = attribution(cause);
    UsageRow {
        id: format!("{workspace}/{}/{}/{}", key.epoch.0, key.hour.0, key.service),
        org: org.to_owned(),
        project: project.to_owned(),
        workspace: workspace.to_owned(),
        epoch: int(key.epoch.0),
        hour: int(key.hour.0),
        service: key.service.to_string(),
        cause_kind,
        cause_by,
        cause_name,
        link,
        service_ms: int(usage.service_ms),
        millicore_ms: int(usage.millicore_ms),
        mib_ms: int(usage.mib_ms),
    }
}
