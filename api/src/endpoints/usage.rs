//! Usage: awake time, CPU and memory, as the meter has them.

use axum::extract::State;
use envforge_domain::access::{Action, Resource};
use envforge_projections::sql::{GroupBy, RunningUsage, UsageFilter, UsageGroup, UsageTotals};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::audit::instant_query;
use super::has_access;
use super::runtime::Cause;
use crate::access::{Access, Caller};
use crate::instant::Instant;
use crate::page::{Page, Path, Query, Slice, one_of, parse_query};
use crate::problem::Problem;
use crate::reads::{AtLeast, Reads};

#[derive(Clone)]
pub(crate) struct Usages {
    pub(crate) access: Access,
    pub(crate) reads: Reads,
}

has_access!(Usages);

pub(crate) fn routes() -> OpenApiRouter<Usages> {
    OpenApiRouter::new().routes(routes!(usage)).routes(routes!(running))
}

/// What one group used. Integers: milliseconds, millicores x milliseconds, MiB x milliseconds.
#[derive(Serialize, ToSchema)]
struct Usage {
    /// A service's name, an id or a kind of cause; empty where no link is behind it.
    key: String,
    service_ms: u64,
    millicore_ms: u64,
    mib_ms: u64,
    /// The part of `service_ms` that is running and not recorded yet.
    unrecorded_service_ms: u64,
}

impl From<UsageGroup> for Usage {
    fn from(group: UsageGroup) -> Self {
        let UsageTotals { service_ms, millicore_ms, mib_ms } = group.totals;
        let unrecorded_service_ms = group.unrecorded_service_ms;
        Self { key: group.key, service_ms, millicore_ms, mib_ms, unrecorded_service_ms }
    }
}

/// What one service of a running runtime uses.
#[derive(Serialize, ToSchema)]
struct RunningService {
    workspace: String,
    project: String,
    service: String,
    cause: Option<Cause>,
    /// Ready since then.
    since: Instant,
    /// Since it became ready.
    service_ms: u64,
    millicore_ms: u64,
    mib_ms: u64,
    /// The part of it that the recorded sums lack so far.
    unrecorded_service_ms: u64,
}

impl From<RunningUsage> for RunningService {
    fn from(running: RunningUsage) -> Self {
        Self {
            workspace: running.workspace.to_string(),
            project: running.project.to_string(),
            service: running.service.to_string(),
            cause: running.cause.as_ref().map(Cause::from),
            since: running.since.into(),
            service_ms: running.total.service_ms,
            millicore_ms: running.total.millicore_ms,
            mib_ms: running.total.mib_ms,
            unrecorded_service_ms: running.unrecorded.service_ms,
        }
    }
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct UsageQuery {
    /// RFC 3339, rounded down to the UTC hour.
    from: Option<String>,
    /// RFC 3339, rounded up to the UTC hour; exclusive.
    to: Option<String>,
    /// `service` (default), `link`, `cause`, `workspace` or `project`.
    group_by: Option<String>,
    /// Id of a project.
    project: Option<String>,
    /// Slug or id.
    workspace: Option<String>,
    link: Option<String>,
    /// 1 to 200; 50 where it is left out.
    limit: Option<u64>,
    /// `next` of the page before.
    after: Option<String>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct RunningQuery {
    /// 1 to 200; 50 where it is left out.
    limit: Option<u64>,
    /// `next` of the page before.
    after: Option<String>,
}

const GROUPS: [&str; 5] = ["service", "link", "cause", "workspace", "project"];

/// Usage up to now, summed up.
#[utoipa::path(get, path = "/v1/orgs/{org}/usage", tag = "usage", params(UsageQuery),
    responses((status = 200, body = Page<Usage>)), extensions(("x-envforge-action" = json!("usage.read"))))]
async fn usage(
    State(state): State<Usages>,
    caller: Caller,
    Path(org): Path<String>,
    Query(query): Query<UsageQuery>,
    at: AtLeast,
) -> Result<axum::Json<Page<Usage>>, Problem> {
    let org = state.access.org(&org).await?;
    let permit = state.access.permit(&caller, Action::UsageRead, Resource::Organization(org)).await?;
    let workspace = match &query.workspace {
        Some(name) => state.access.workspace(org, name).await?.workspace(),
        None => None,
    };
    let filter = UsageFilter {
        from: instant_query("from", query.from.as_deref())?,
        to: instant_query("to", query.to.as_deref())?,
        project: parse_query("project", query.project.as_deref())?,
        workspace,
        link: parse_query("link", query.link.as_deref())?,
    };
    let group_by = one_of("group_by", query.group_by.as_deref(), GroupBy::from_token, &GROUPS)?;
    let slice = Slice::new(query.limit, query.after.as_deref())?;
    let (group_by, now) = (group_by.unwrap_or(GroupBy::Service), caller.arrival.now);
    let page = state.reads.usage(&permit, at, &filter, group_by, now, &slice).await?;
    Ok(axum::Json(Page::of(page, Usage::from)))
}

/// What runs now and what it has used since it became ready.
#[utoipa::path(get, path = "/v1/orgs/{org}/usage/running", tag = "usage", params(RunningQuery),
    responses((status = 200, body = Page<RunningService>)), extensions(("x-envforge-action" = json!("usage.read"))))]
async fn running(
    State(state): State<Usages>,
    caller: Caller,
    Path(org): Path<String>,
    Query(query): Query<RunningQuery>,
    at: AtLeast,
) -> Result<axum::Json<Page<RunningService>>, Problem> {
    let org = state.access.org(&org).await?;
    let permit = state.access.permit(&caller, Action::UsageRead, Resource::Organization(org)).await?;
    let slice = Slice::new(query.limit, query.after.as_deref())?;
    let page = state.reads.running(&permit, at, caller.arrival.now, &slice).await?;
    Ok(axum::Json(Page::of(page, RunningService::from)))
}
