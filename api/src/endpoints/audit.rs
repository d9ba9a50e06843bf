//! The audit: who did what, on which surface, why, when and with which outcome.

use axum::extract::State;
use envforge_domain::access::{Action, Resource};
use envforge_projections::sql::{AuditFilter, AuditRow, Direction, Outcome};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::has_access;
use crate::access::{Access, Caller};
use crate::instant::{self, Instant};
use crate::page::{Page, Path, Query, Slice, cursor_invalid, one_of, parse_query, wrong_query};
use crate::problem::Problem;
use crate::reads::{AtLeast, Reads};

#[derive(Clone)]
pub(crate) struct Audits {
    pub(crate) access: Access,
    pub(crate) reads: Reads,
}

has_access!(Audits);

pub(crate) fn routes() -> OpenApiRouter<Audits> {
    OpenApiRouter::new().routes(routes!(rows))
}

/// One thing that was done or refused.
#[derive(Serialize, ToSchema)]
struct AuditEntry {
    /// Position of the commit in the log.
    position: u64,
    at: Instant,
    actor: AuditActor,
    /// `api`, `cli`, `console`, `gateway` or `agent`.
    surface: String,
    /// The event's type, or the action where it was refused.
    #[serde(rename = "type")]
    event_type: String,
    /// Displayed id of what it is about.
    subject: Option<String>,
    project: Option<String>,
    workspace: Option<String>,
    link: Option<String>,
    /// `done` or `denied`.
    outcome: &'static str,
    /// Why it was refused.
    code: Option<String>,
    /// How many equal attempts were refused.
    attempts: Option<u64>,
    /// Of those, the requests that can be explained by their ids (`why`): a few of many.
    requests: Vec<String>,
    /// A sentence for people.
    summary: String,
    command: String,
    commit: String,
    /// The request that it goes back to: the `EnvForge-Request` of its answer.
    correlation: String,
    /// The commit that caused it.
    causation: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct AuditActor {
    /// `user`, `link_visitor`, `agent`, `service_token`, `system` or `anonymous`.
    kind: String,
    id: Option<String>,
    name: String,
}

impl From<AuditRow> for AuditEntry {
    fn from(row: AuditRow) -> Self {
        let (outcome, code, attempts, requests) = match row.outcome {
            Outcome::Done => ("done", None, None, Vec::new()),
            Outcome::Denied { code, count, requests } => ("denied", Some(code), Some(count), requests),
        };
        Self {
            position: row.cursor.position.get(),
            at: row.recorded_at.into(),
            actor: AuditActor { kind: row.actor_kind, id: row.actor_id, name: row.actor_name },
            surface: row.surface,
            event_type: row.event_type,
            subject: row.subject,
            project: row.project.map(|id| id.to_string()),
            workspace: row.workspace.map(|id| id.to_string()),
            link: row.link.map(|id| id.to_string()),
            outcome,
            code,
            attempts,
            requests: requests.iter().map(ToString::to_string).collect(),
            summary: row.summary,
            command: row.command.to_string(),
            commit: row.commit.to_string(),
            correlation: row.correlation.to_string(),
            causation: row.causation.map(|id| id.to_string()),
        }
    }
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct AuditQuery {
    /// Id of a user or link, or the name of a part of EnvForge.
    actor: Option<String>,
    /// The beginning of an event type or action: `dev_link.`.
    #[serde(rename = "type")]
    event_type: Option<String>,
    /// Id of a project.
    project: Option<String>,
    /// Slug or id.
    workspace: Option<String>,
    link: Option<String>,
    /// The request that everything goes back to.
    correlation: Option<String>,
    /// `done` or `denied`.
    outcome: Option<String>,
    /// RFC 3339, inclusive.
    from: Option<String>,
    /// RFC 3339, exclusive.
    to: Option<String>,
    /// `newest` (default) or `oldest` first.
    order: Option<String>,
    /// 1 to 200; 50 where it is left out.
    limit: Option<u64>,
    /// `next` of the page before.
    after: Option<String>,
}

/// Rows of the audit.
///
/// A page may be short, or empty, and have a `next` all the same: a question that matches little in a very long log is answered in pieces.
#[utoipa::path(get, path = "/v1/orgs/{org}/audit", tag = "audit", params(AuditQuery),
    responses((status = 200, body = Page<AuditEntry>)), extensions(("x-envforge-action" = json!("audit.read"))))]
async fn rows(
    State(state): State<Audits>,
    caller: Caller,
    Path(org): Path<String>,
    Query(query): Query<AuditQuery>,
    at: AtLeast,
) -> Result<axum::Json<Page<AuditEntry>>, Problem> {
    let org = state.access.org(&org).await?;
    let permit = state.access.permit(&caller, Action::AuditRead, Resource::Organization(org)).await?;
    let workspace = match &query.workspace {
        Some(name) => state.access.workspace(org, name).await?.workspace(),
        None => None,
    };
    let denied = |text: &str| match text {
        "denied" => Some(true),
        "done" => Some(false),
        _ => None,
    };
    let direction = |text: &str| match text {
        "newest" => Some(Direction::NewestFirst),
        "oldest" => Some(Direction::OldestFirst),
        _ => None,
    };
    let filter = AuditFilter {
        project: parse_query("project", query.project.as_deref())?,
        workspace,
        link: parse_query("link", query.link.as_deref())?,
        correlation: parse_query("correlation", query.correlation.as_deref())?,
        denied: one_of("outcome", query.outcome.as_deref(), denied, &["done", "denied"])?,
        from: instant_query("from", query.from.as_deref())?,
        to: instant_query("to", query.to.as_deref())?,
        actor: query.actor,
        type_prefix: query.event_type,
    };
    let order = one_of("order", query.order.as_deref(), direction, &["newest", "oldest"])?;
    let slice = Slice::new(query.limit, query.after.as_deref())?;
    let after = slice.after.as_deref().map(str::parse).transpose().map_err(|_| cursor_invalid())?;
    let direction = order.unwrap_or(Direction::NewestFirst);
    let page = state.reads.audit(&permit, at, &filter, direction, after, slice.limit).await?;
    Ok(axum::Json(Page::of(page, AuditEntry::from)))
}

/// Reads an RFC 3339 parameter.
pub(crate) fn instant_query(
    name: &str,
    text: Option<&str>,
) -> Result<Option<envforge_domain::time::UnixMillis>, Problem> {
    let wrong = |text: &str| wrong_query(name, format!("`{text}` is not an RFC 3339 instant"));
    text.map(|text| instant::parse(text).ok_or_else(|| wrong(text))).transpose()
}
