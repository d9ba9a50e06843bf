//! Usage queries: sums by service, link, cause or workspace up to this moment, and what runs right now.
//!
//! The recorded rows end at the last heartbeat of what runs. What ran since is added to the question, not to the rows:
//! the fold alone writes those, for they are what is billed.

use std::collections::BTreeMap;

use envforge_domain::ids::{LinkId, OrgId, ProjectId, WorkspaceId};
use envforge_domain::meter::{RuntimeMeter, Usage, UsageKey, UtcHour};
use envforge_domain::runtime::WakeCause;
use envforge_domain::slug::ServiceName;
use envforge_domain::time::UnixMillis;

use super::super::database::{Database, DatabaseError, Transaction};
use super::super::page::{Limit, Page};
use super::super::statement::Statement;
use super::super::table::{Row, columns, int, uint};
use super::fold::{RuntimeMeterRow, attribution};

/// INVARIANT: a scalar subquery, so that one statement reads one generation, whenever a rebuild switches.
const LIVE: &str = "(SELECT generation FROM read_models WHERE name = 'meter')";

/// What sums are made by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupBy {
    Service,
    /// Usage that no link caused stands under an empty key.
    Link,
    /// `link`, `person`, `job`, `agent`.
    Cause,
    Workspace,
    Project,
}

impl GroupBy {
    pub const ALL: [Self; 5] = [Self::Service, Self::Link, Self::Cause, Self::Workspace, Self::Project];

    pub const fn token(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Link => "link",
            Self::Cause => "cause",
            Self::Workspace => "workspace",
            Self::Project => "project",
        }
    }

    pub fn from_token(token: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|group| group.token() == token)
    }

    const fn is_by_id(self) -> bool {
        match self {
            Self::Link | Self::Workspace | Self::Project => true,
            Self::Service | Self::Cause => false,
        }
    }

    const fn expression(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Link => "COALESCE(link, '')",
            Self::Cause => "cause_kind",
            Self::Workspace => "workspace",
            Self::Project => "project",
        }
    }
}

/// Which usage to sum up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UsageFilter {
    /// Rounded down to the UTC hour that holds it; `None`: from the beginning.
    pub from: Option<UnixMillis>,
    /// Exclusive, rounded up to the next UTC hour; `None`: no end.
    pub to: Option<UnixMillis>,
    pub project: Option<ProjectId>,
    pub workspace: Option<WorkspaceId>,
    pub link: Option<LinkId>,
}

impl UsageFilter {
    fn hours(&self) -> (Option<i64>, Option<i64>) {
        let first = self.from.map(|from| int(UtcHour::of(from).0));
        let end = self.to.map(|to| match UtcHour::of(to) {
            hour if hour.start() == to => int(hour.0),
            hour => int(hour.0 + 1),
        });
        (first, end)
    }
}

/// Sums in milliseconds of awake service, of millicores and of MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct UsageTotals {
    pub service_ms: u64,
    pub millicore_ms: u64,
    pub mib_ms: u64,
}

/// One group of a usage query. `key` is an id, a service's name or a kind of cause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageGroup {
    pub key: String,
    /// Up to now.
    pub totals: UsageTotals,
    /// The part of it that is running and not recorded yet: an estimate, until the host's next sign of life.
    pub unrecorded_service_ms: u64,
}

/// What one service of a running runtime uses, beyond what is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningUsage {
    pub workspace: WorkspaceId,
    pub project: ProjectId,
    pub service: ServiceName,
    pub cause: Option<WakeCause>,
    /// Ready since then, by the log's clock.
    pub since: UnixMillis,
    /// From the last heartbeat to now, never beyond the lease: an estimate, for the recorded sums lack just this.
    pub unrecorded: UsageTotals,
    /// Of the whole time since it became ready.
    pub total: UsageTotals,
}

columns! {
    struct SumRow {
        group_key: String,
        service_ms: i64,
        millicore_ms: i64,
        mib_ms: i64,
        unrecorded_ms: i64,
    }
}

/// Queries of the meter.
#[derive(Debug)]
pub struct Meter<'a> {
    database: &'a Database,
}

impl<'a> Meter<'a> {
    pub(in super::super) fn new(database: &'a Database) -> Self {
        Self { database }
    }

    /// Usage of an organization up to `now`, summed up; sorted by key, which is the cursor. `now` by the clock that the log
    /// uses; what is recorded already is never taken back.
    pub async fn usage(
        &self,
        org: OrgId,
        filter: &UsageFilter,
        group_by: GroupBy,
        now: UnixMillis,
        after: Option<&str>,
        limit: Limit,
    ) -> Result<Page<UsageGroup>, DatabaseError> {
        // INVARIANT: rows and open intervals of one moment. A heartbeat between two would be counted twice, or not at all.
        let mut snapshot = self.database.snapshot().await?;
        let mut running = Self::unrecorded(&mut snapshot, org, filter, group_by, now).await?;
        if group_by.is_by_id() {
            // Ids sort the same everywhere, so what cannot stand on this page is left out: the statement stays small however
            // much runs at once.
            let page = running.into_iter().filter(|(key, _)| after.is_none_or(|after| key.as_str() > after));
            running = page.take(usize::from(limit.get()) + 1).collect();
        }
        let key = group_by.expression();
        let recorded = Statement::new("SELECT group_key")
            // PostgreSQL sums bigints up as numeric.
            .push(", CAST(SUM(service_ms) AS BIGINT) AS service_ms")
            .push(", CAST(SUM(millicore_ms) AS BIGINT) AS millicore_ms")
            .push(", CAST(SUM(mib_ms) AS BIGINT) AS mib_ms")
            .push(", CAST(SUM(unrecorded_ms) AS BIGINT) AS unrecorded_ms FROM (")
            .push(&format!("SELECT {key} AS group_key, service_ms, millicore_ms, mib_ms, 0 AS unrecorded_ms "))
            .push("FROM meter_usage WHERE generation = ")
            .push(LIVE);
        let recorded = Self::filtered(recorded, org, filter);
        let mut everything = recorded.bind_some(&format!(" AND {key} > "), after);
        for (index, (key, totals)) in running.into_iter().enumerate() {
            everything = everything
                .push(if index == 0 { " UNION ALL VALUES (" } else { ", (" })
                .bind(key)
                .push(", ")
                .bind(int(totals.service_ms))
                .push(", ")
                .bind(int(totals.millicore_ms))
                .push(", ")
                .bind(int(totals.mib_ms))
                .push(", ")
                .bind(int(totals.service_ms))
                .push(")");
        }
        let statement = everything.push(") AS everything").bind_some(" WHERE group_key > ", after);
        let statement = statement.push(" GROUP BY group_key ORDER BY group_key LIMIT ").bind(limit.probe());
        let rows: Vec<SumRow> = snapshot.fetch_all(statement).await?;
        snapshot.rollback().await?;
        let group = |row: SumRow| UsageGroup {
            totals: UsageTotals {
                service_ms: uint(row.service_ms),
                millicore_ms: uint(row.millicore_ms),
                mib_ms: uint(row.mib_ms),
            },
            unrecorded_service_ms: uint(row.unrecorded_ms),
            key: row.group_key,
        };
        Ok(Page::cut(rows.into_iter().map(group).collect(), limit, |group| group.key.clone()))
    }

    /// What ran since the last heartbeats, by the same groups, hours and filters as the rows.
    async fn unrecorded(
        snapshot: &mut Transaction,
        org: OrgId,
        filter: &UsageFilter,
        group_by: GroupBy,
        now: UnixMillis,
    ) -> Result<BTreeMap<String, UsageTotals>, DatabaseError> {
        let columns = RuntimeMeterRow::TABLE.column_list();
        let statement = Statement::new(format!("SELECT {columns} FROM meter_runtimes WHERE generation = {LIVE}"))
            .push(" AND since IS NOT NULL AND org = ")
            .bind(org.to_string())
            .bind_some(" AND project = ", filter.project.map(|project| project.to_string()))
            .bind_some(" AND id = ", filter.workspace.map(|workspace| workspace.to_string()));
        let rows: Vec<RuntimeMeterRow> = snapshot.fetch_all(statement).await?;
        let (first, end) = filter.hours();
        let link_wanted = filter.link.map(|link| link.to_string());
        let mut sums = BTreeMap::new();
        for row in rows {
            let meter = row.meter().map_err(broken)?;
            let (cause, _, _, link) = attribution(meter.cause());
            if link_wanted.is_some() && link != link_wanted {
                continue;
            }
            for (key, usage) in unrecorded(&meter, now) {
                let hour = int(key.hour.0);
                if first.is_some_and(|first| hour < first) || end.is_some_and(|end| hour >= end) {
                    continue;
                }
                let group = match group_by {
                    GroupBy::Service => key.service.as_str().to_owned(),
                    GroupBy::Link => link.clone().unwrap_or_default(),
                    GroupBy::Cause => cause.clone(),
                    GroupBy::Workspace => row.id.clone(),
                    GroupBy::Project => row.project.clone(),
                };
                sums.entry(group).or_insert_with(UsageTotals::default).add(&usage);
            }
        }
        Ok(sums)
    }

    fn filtered(statement: Statement, org: OrgId, filter: &UsageFilter) -> Statement {
        let (first, end) = filter.hours();
        statement
            .push(" AND org = ")
            .bind(org.to_string())
            .bind_some(" AND hour >= ", first)
            .bind_some(" AND hour < ", end)
            .bind_some(" AND project = ", filter.project.map(|project| project.to_string()))
            .bind_some(" AND workspace = ", filter.workspace.map(|workspace| workspace.to_string()))
            .bind_some(" AND link = ", filter.link.map(|link| link.to_string()))
    }

    /// What runs now, by workspace; the cursor is the workspace's id. `now` by the clock that the log uses.
    pub async fn running(
        &self,
        org: OrgId,
        now: UnixMillis,
        after: Option<&str>,
        limit: Limit,
    ) -> Result<Page<RunningUsage>, DatabaseError> {
        let columns = RuntimeMeterRow::TABLE.column_list();
        let statement = Statement::new(format!("SELECT {columns} FROM meter_runtimes WHERE generation = {LIVE}"))
            .push(" AND since IS NOT NULL AND org = ")
            .bind(org.to_string())
            .bind_some(" AND id > ", after)
            .push(" ORDER BY id LIMIT ")
            .bind(limit.probe());
        let rows: Vec<RuntimeMeterRow> = self.database.fetch_all(statement).await?;
        // A page counts runtimes; each has a few services.
        let Page { items, next } = Page::cut(rows, limit, |row| row.id.clone());
        let services = items.iter().map(|row| running(row, now)).collect::<Result<Vec<_>, _>>()?;
        Ok(Page { items: services.into_iter().flatten().collect(), next })
    }
}

fn broken(reason: String) -> DatabaseError {
    DatabaseError::Row { table: RuntimeMeterRow::TABLE.name, reason }
}

/// The rows of an open interval beyond its last heartbeat. Clocks may differ by a little: what is recorded already is
/// never taken back.
fn unrecorded(meter: &RuntimeMeter, now: UnixMillis) -> BTreeMap<UsageKey, Usage> {
    let Some(open) = meter.open() else { return BTreeMap::new() };
    let recorded = meter.running(open.heartbeat);
    let mut rows = meter.running(now.max(open.heartbeat));
    rows.retain(|key, usage| {
        let before = recorded.get(key).copied().unwrap_or_default();
        usage.service_ms = usage.service_ms.saturating_sub(before.service_ms);
        usage.millicore_ms = usage.millicore_ms.saturating_sub(before.millicore_ms);
        usage.mib_ms = usage.mib_ms.saturating_sub(before.mib_ms);
        usage.service_ms > 0
    });
    rows
}

fn running(row: &RuntimeMeterRow, now: UnixMillis) -> Result<Vec<RunningUsage>, DatabaseError> {
    let meter = row.meter().map_err(broken)?;
    let Some(open) = meter.open() else { return Ok(Vec::new()) };
    let workspace = row.id.parse().map_err(|error: envforge_domain::ids::InvalidId| broken(error.to_string()))?;
    let project = row.project.parse().map_err(|error: envforge_domain::ids::InvalidId| broken(error.to_string()))?;
    let beyond = by_service(unrecorded(&meter, now));
    let services =
        by_service(meter.running(now.max(open.heartbeat))).into_iter().map(|(service, total)| RunningUsage {
            workspace,
            project,
            unrecorded: beyond.get(&service).copied().unwrap_or_default(),
            service,
            cause: meter.cause().cloned(),
            since: open.since,
            total,
        });
    Ok(services.collect())
}

impl UsageTotals {
    fn add(&mut self, Usage { service_ms, millicore_ms, mib_ms }: &Usage) {
        self.service_ms = self.service_ms.saturating_add(*service_ms);
        self.millicore_ms = self.millicore_ms.saturating_add(*millicore_ms);
        self.mib_ms = self.mib_ms.saturating_add(*mib_ms);
    }
}

fn by_service(rows: BTreeMap<UsageKey, Usage>) -> BTreeMap<ServiceName, UsageTotals> {
    let mut sums: BTreeMap<ServiceName, UsageTotals> = BTreeMap::new();
    for (key, usage) in rows {
        sums.entry(key.service).or_default().add(&usage);
    }
    sums
}
