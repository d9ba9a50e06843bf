//! Whether this process lives, whether it can answer, and its metrics.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};
use envforge_domain::commit::Position;
use envforge_projections::Hot;
use envforge_projections::sql::{Database, DatabaseError, ModelName, ProjectorState};
use http::{HeaderMap, StatusCode, header};
use metrics_exporter_prometheus::PrometheusHandle;
use parking_lot::Mutex;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::edge::Peer;
use crate::problem::Problem;

/// Without a sign of life from the log for this long, rights are not fresh enough to answer.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(5);
const DATABASE_WAIT: Duration = Duration::from_secs(2);
/// A read model that another process projects and that is behind the log has stopped when it did not move for this long.
const STILL_MAX: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub(crate) struct Health {
    pub(crate) hot: Arc<Hot>,
    pub(crate) database: Database,
    pub(crate) metrics: Option<PrometheusHandle>,
    pub(crate) movement: Arc<Movement>,
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
    /// What keeps each read model up to date, as far as this process can tell.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    read_models: Vec<ReadModel>,
}

#[derive(Serialize, ToSchema)]
struct ReadModel {
    name: &'static str,
    state: ReadModelState,
}

/// `running`: it follows the log. `retrying`: something is out of reach. `standing_by`: another process keeps it.
/// `failed`: it needs a person. `another_log`: the same, because the log is not the one it was folded from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ReadModelState {
    Running,
    Retrying,
    StandingBy,
    Failed,
    AnotherLog,
    Stopped,
}

impl From<&ProjectorState> for ReadModelState {
    fn from(state: &ProjectorState) -> Self {
        match state {
            ProjectorState::Running => Self::Running,
            ProjectorState::Retrying { .. } => Self::Retrying,
            ProjectorState::StandingBy => Self::StandingBy,
            ProjectorState::Failed { .. } => Self::Failed,
            ProjectorState::AnotherLog { .. } => Self::AnotherLog,
            ProjectorState::Stopped => Self::Stopped,
        }
    }
}

impl ReadModelState {
    const fn problem(self) -> Option<&'static str> {
        match self {
            Self::Running | Self::StandingBy => None,
            Self::Retrying => Some("a read model waits for something out of reach: what is read may be old"),
            Self::Failed | Self::Stopped => Some("a read model has stopped: what is read is old"),
            Self::AnotherLog => {
                Some("a read model was folded from another log: what is read is not what this log says")
            }
        }
    }
}

/// When the read models that another process projects were last seen to move.
#[derive(Default)]
pub(crate) struct Movement(Mutex<HashMap<ModelName, (Position, Instant)>>);

impl Movement {
    fn state(&self, model: ModelName, position: Position, head: Position, now: Instant) -> ReadModelState {
        let mut seen = self.0.lock();
        if position >= head {
            seen.remove(&model);
            return ReadModelState::Running;
        }
        let last = seen.entry(model).or_insert((position, now));
        if last.0 != position {
            *last = (position, now);
        }
        if now.duration_since(last.1) > STILL_MAX { ReadModelState::Stopped } else { ReadModelState::Running }
    }
}

impl Health {
    async fn read_models(&self) -> Result<Vec<ReadModel>, DatabaseError> {
        let here = self.database.projectors();
        let mut states = Vec::new();
        for model in ModelName::ALL {
            // Asked for also where this process projects: it says whether the database answers.
            let position = self.database.position(model).await?;
            let state = match here.iter().find(|(name, _)| *name == model) {
                Some((_, state)) => state.into(),
                None => self.movement.state(model, position, self.hot.position(), Instant::now()),
            };
            states.push(ReadModel { name: model.token(), state });
        }
        Ok(states)
    }
}

/// The process runs.
#[utoipa::path(get, path = "/healthz", tag = "operation", responses((status = 200, body = Status)),
    extensions(("x-envforge-action" = json!("public"))))]
async fn live() -> axum::Json<Status> {
    axum::Json(Status { status: "ok", problems: vec![], read_models: vec![] })
}

/// The process can answer: log, rights and read models are within reach. `degraded` where it can, but what it reads may be
/// old: commands are decided on fresh rights all the same, so it stays in service.
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
    let read_models = match tokio::time::timeout(DATABASE_WAIT, state.read_models()).await {
        Ok(Ok(read_models)) => read_models,
        Ok(Err(_)) | Err(_) => {
            problems.push("the read models are out of reach");
            Vec::new()
        }
    };
    let cannot_answer = !problems.is_empty();
    for problem in read_models.iter().filter_map(|model| model.state.problem()) {
        if !problems.contains(&problem) {
            problems.push(problem);
        }
    }
    let (code, status) = match (cannot_answer, problems.is_empty()) {
        (true, _) => (StatusCode::SERVICE_UNAVAILABLE, "not ready"),
        (false, true) => (StatusCode::OK, "ready"),
        (false, false) => (StatusCode::OK, "degraded"),
    };
    (code, axum::Json(Status { status, problems, read_models }))
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

#[cfg(test)]
mod tests {
    use envforge_domain::claim::ClaimEvent;
    use envforge_domain::commit::{Actor, Commit, Expectation, StreamId, StreamKind, Surface};
    use envforge_domain::event::Event;
    use envforge_domain::ids::{CommandId, CommitId, CorrelationId, OrgId};
    use envforge_domain::time::UnixMillis;
    use envforge_eventlog::SharedLog;
    use envforge_eventlog::sqlite::{Config, SqliteLog};
    use envforge_projections::sql::Supervisor;
    use tokio_util::sync::CancellationToken;
    use uuid::Uuid;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// A log of its own with one commit.
    async fn log(folder: &std::path::Path, name: &str) -> SharedLog {
        let log: SharedLog = Arc::new(SqliteLog::open(Config::new(folder.join(name))).await.unwrap());
        let commit = Commit {
            id: CommitId::from_uuid(Uuid::now_v7()),
            command: CommandId::from_uuid(Uuid::now_v7()),
            request_digest: None,
            stream: StreamId::new(OrgId::SYSTEM, StreamKind::Claim, "a").unwrap(),
            actor: Actor::Anonymous,
            surface: Surface::Api,
            correlation: CorrelationId::from_uuid(Uuid::now_v7()),
            causation: None,
            decided_at: UnixMillis::new(1_795_000_000_000),
            events: vec![Event::Claim(ClaimEvent::Taken { holder: "test".to_owned() })],
        };
        log.append(vec![(commit, Expectation::LastAt(Position::START))]).await.unwrap();
        log
    }

    #[tokio::test]
    async fn a_projector_that_has_stopped_is_said_without_taking_the_process_out_of_service() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (log(folder.path(), "one").await, log(folder.path(), "other").await);
        let file = folder.path().join("read-models.sqlite");
        let database = Database::connect_sqlite(&file).await.unwrap();
        let hot = Hot::start(Arc::clone(&other), CancellationToken::new());
        hot.caught_up().await.unwrap();
        let health = Health { hot, database: database.clone(), metrics: None, movement: Arc::default() };
        let supervisor = Supervisor::start(&one, &database);
        for model in ModelName::ALL {
            database.wait_for(model, Position::new(1), PATIENCE).await.unwrap();
        }
        let (code, axum::Json(status)) = ready(State(health.clone())).await;
        assert_eq!((code, status.status, status.problems), (StatusCode::OK, "ready", vec![]));
        supervisor.stop().await;

        let supervisor = Supervisor::start(&other, &database);
        let status = envforge_testkit::eventually("all projectors to stop", PATIENCE, async || {
            let (code, axum::Json(status)) = ready(State(health.clone())).await;
            assert_eq!(code, StatusCode::OK);
            let states = status.read_models.iter().map(|model| model.state);
            states.eq([ReadModelState::AnotherLog; 4]).then_some(status)
        })
        .await;
        assert_eq!(status.status, "degraded");
        assert_eq!(status.problems.len(), 1, "said once: {:?}", status.problems);
        supervisor.stop().await;
    }

    #[test]
    fn a_read_model_that_another_process_projects_has_stopped_when_it_does_not_move() {
        let movement = Movement::default();
        let (at, head) = (Position::new(4), Position::new(9));
        let begun = Instant::now();
        let state = |position, head, seconds| {
            movement.state(ModelName::Audit, position, head, begun + Duration::from_secs(seconds))
        };
        assert_eq!(state(at, head, 0), ReadModelState::Running, "it may be catching up");
        assert_eq!(state(at, head, 11), ReadModelState::Stopped);
        assert_eq!(state(at.next(), head, 20), ReadModelState::Running, "it moves");
        assert_eq!(state(at.next(), head, 31), ReadModelState::Stopped);
        assert_eq!(state(head, head, 32), ReadModelState::Running);
        assert_eq!(state(head, head.next(), 99), ReadModelState::Running, "it had everything until now");
    }
}
