//! Whether this process lives, whether it can answer, and its metrics.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};
use envforge_projections::Hot;
use envforge_projections::sql::{Database, ModelName};
use http::{HeaderMap, StatusCode, header};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::edge::Peer;
use crate::problem::Problem;

/// Without a sign of life from the log for this long, rights are not fresh enough to answer.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(5);
const DATABASE_WAIT: Duration = Duration::from_secs(2);

#[derive(Clone)]
pub(crate) struct Health {
    pub(crate) hot: Arc<Hot>,
    pub(crate) database: Database,
    pub(crate) metrics: Option<PrometheusHandle>,
}

pub(crate) fn routes() -> OpenApiRouter<Health> {
    OpenApiRouter::new().routes(routes!(live)).routes(routes!(ready))
}

#[derive(Serialize, ToSchema)]
struct Status {
    status: &'static str,
    /// What does not work, for people.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    problems: Vec<&'static str>,
}

/// The process runs.
#[utoipa::path(get, path = "/healthz", tag = "operation", responses((status = 200, body = Status)),
    extensions(("x-envforge-action" = json!("public"))))]
async fn live() -> axum::Json<Status> {
    axum::Json(Status { status: "ok", problems: vec![] })
}

/// The process can answer: log, rights and read models are within reach.
#[utoipa::path(get, path = "/readyz", tag = "operation",
    responses((status = 200, body = Status), (status = 503, body = Status)),
    extensions(("x-envforge-action" = json!("public"))))]
async fn ready(State(state): State<Health>) -> (StatusCode, axum::Json<Status>) {
    let mut problems = Vec::new();
    if state.hot.failed().is_some() {
        problems.push("the views of rights have stopped");
    } else if !state.hot.is_caught_up() {
        problems.push("the views of rights are still reading the log");
    } else if state.hot.silence() > SILENCE_MAX {
        problems.push("the log gives no sign of life");
    }
    match tokio::time::timeout(DATABASE_WAIT, state.database.position(ModelName::Directory)).await {
        Ok(Ok(_)) => {}
        Ok(Err(_)) | Err(_) => problems.push("the read models are out of reach"),
    }
    let (code, status) =
        if problems.is_empty() { (StatusCode::OK, "ready") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready") };
    (code, axum::Json(Status { status, problems }))
}

/// Metrics in the format of Prometheus, for the machine itself only: they name routes, counts and times.
pub(crate) async fn metrics(
    State(state): State<Health>,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    shown(state.metrics.as_ref(), peer, &headers)
}

/// The same, of a process that serves no API.
pub(crate) async fn metrics_alone(
    State(metrics): State<PrometheusHandle>,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    shown(Some(&metrics), peer, &headers)
}

fn shown(
    metrics: Option<&PrometheusHandle>,
    peer: Option<Extension<Peer>>,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    // A request that was forwarded comes from somewhere else, even where its peer is this machine.
    let forwarded = ["forwarded", "x-forwarded-for"].into_iter().any(|name| headers.contains_key(name));
    let local = peer.is_some_and(|Extension(peer)| peer.0.ip().to_canonical().is_loopback());
    match metrics {
        Some(handle) if local && !forwarded => {
            Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], handle.render()).into_response())
        }
        Some(_) | None => Err(Problem::not_found()),
    }
}
