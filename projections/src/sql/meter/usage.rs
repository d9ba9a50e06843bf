//! Usage queries: recorded sums by service, link, cause or workspace, and what runs on top of them right now.

use std::collections::BTreeMap;

use envforge_domain::ids::{LinkId, OrgId, ProjectId, WorkspaceId};
use envforge_domain::meter::{RuntimeMeter, Usage, UtcHour};
use envforge_domain::runtime::WakeCause;
use envforge_domain::slug::ServiceName;
use envforge_domain::time::UnixMillis;

use super::super::database::{Database, DatabaseError};
use super::super::page::{Limit, Page};
use super::super::statement::Statement;
use super::super::table::{Row, int, uint};
use super::fold::RuntimeMeterRow;

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
    pub totals: UsageTotals,
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

#[derive(sqlx::FromRow)]
struct SumRow {
    group_key: String,
    service_ms: i64,
    millicore_ms: i64,
    mib_ms: i64,
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

    /// Recorded usage of an organization, summed up; sorted by key, which is the cursor.
    pub async fn usage(
        &self,
        org: OrgId,
        filter: &UsageFilter,
        group_by: GroupBy,
        after: Option<&str>,
        limit: Limit,
    ) -> Result<Page<UsageGroup>, DatabaseError> {
        let key = group_by.expression();
        // PostgreSQL sums bigints up as numeric.
        let statement = Statement::new(format!("SELECT {key} AS group_key"))
            .push(", CAST(SUM(service_ms) AS BIGINT) AS service_ms")
            .push(", CAST(SUM(millicore_ms) AS BIGINT) AS millicore_ms")
            .push(", CAST(SUM(mib_ms) AS BIGINT) AS mib_ms FROM meter_usage WHERE generation = ")
            .push(LIVE);
        let statement = Self::filtered(statement, org, filter);
        let statement = statement.bind_some(&format!(" AND {key} > "), after);
        let statement = statement.push(&format!(" GROUP BY {key} ORDER BY {key} LIMIT ")).bind(limit.probe());
        let rows: Vec<SumRow> = self.database.fetch_all(statement).await?;
        let group = |row: SumRow| UsageGroup {
            totals: UsageTotals {
                service_ms: uint(row.service_ms),
                millicore_ms: uint(row.millicore_ms),
                mib_ms: uint(row.mib_ms),
            },
            key: row.group_key,
        };
        Ok(Page::cut(rows.into_iter().map(group).collect(), limit, |group| group.key.clone()))
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

fn running(row: &RuntimeMeterRow, now: UnixMillis) -> Result<Vec<RunningUsage>, DatabaseError> {
    let broken = |reason: String| DatabaseError::Row { table: RuntimeMeterRow::TABLE.name, reason };
    let meter = row.meter().map_err(broken)?;
    let Some(open) = meter.open() else { return Ok(Vec::new()) };
    let workspace = row.id.parse().map_err(|error: envforge_domain::ids::InvalidId| broken(error.to_string()))?;
    let project = row.project.parse().map_err(|error: envforge_domain::ids::InvalidId| broken(error.to_string()))?;
    let recorded = by_service(&meter, open.heartbeat);
    // Clocks may differ by a little: what is recorded already is never taken back.
    let services = by_service(&meter, now.max(open.heartbeat)).into_iter().map(|(service, total)| {
        let before = recorded.get(&service).copied().unwrap_or_default();
        let unrecorded = UsageTotals {
            service_ms: total.service_ms.saturating_sub(before.service_ms),
            millicore_ms: total.millicore_ms.saturating_sub(before.millicore_ms),
            mib_ms: total.mib_ms.saturating_sub(before.mib_ms),
        };
        RunningUsage {
            workspace,
            project,
            service,
            cause: meter.cause().cloned(),
            since: open.since,
            unrecorded,
            total,
        }
    });
    Ok(services.collect())
}

fn by_service(meter: &RuntimeMeter, until: UnixMillis) -> BTreeMap<ServiceName, UsageTotals> {
    let mut sums: BTreeMap<ServiceName, UsageTotals> = BTreeMap::new();
    for (key, Usage { service_ms, millicore_ms, mib_ms }) in meter.running(until) {
        let sum = sums.entry(key.service).or_default();
        sum.service_ms = sum.service_ms.saturating_add(service_ms);
        sum.millicore_ms = sum.millicore_ms.saturating_add(millicore_ms);
        sum.mib_ms = sum.mib_ms.saturating_add(mib_ms);
    }
    sums
}
