//! A workspace's runtime: what it does and why, waking it, putting it to sleep, keeping it awake.

use axum::extract::State;
use envforge_commands::{Commands, runtimes};
use envforge_domain::access::{Action, Resource};
use envforge_domain::commit::StreamId;
use envforge_domain::event::Event;
use envforge_domain::ids::WorkspaceId;
use envforge_domain::limits::{IDLE_SLEEP_MAX, NAME_CHARS_MAX};
use envforge_domain::manifest::{Manifest, Route};
use envforge_domain::project::name_is_valid;
use envforge_domain::runtime::{Runtime as Aggregate, RuntimeEvent, SleepCause, WakeCause};
use envforge_domain::time::{Millis, UnixMillis};
use envforge_projections::sql::{RuntimePhase, RuntimeRecord, WorkspaceRecord};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::has_access;
use crate::access::{Access, Caller, act};
use crate::instant::Instant;
use crate::page::Path;
use crate::problem::Problem;
use crate::reads::{AtLeast, Reads};
use crate::request_body::{Empty, Json, Optional};
use crate::write::{Write, Written};

#[derive(Clone)]
pub(crate) struct Runtimes {
    pub(crate) access: Access,
    pub(crate) commands: Commands,
    pub(crate) reads: Reads,
}

has_access!(Runtimes);

pub(crate) fn routes() -> OpenApiRouter<Runtimes> {
    OpenApiRouter::new().routes(routes!(get)).routes(routes!(wake)).routes(routes!(sleep)).routes(routes!(keep_awake))
}

/// What a runtime does. Names no host, port or address.
#[derive(Serialize, ToSchema)]
struct Runtime {
    /// `asleep`, `waking`, `ready`, `sleeping` or `failed`.
    phase: String,
    /// While waking: `placed`, `checking_out`, `starting` or `probing`. When failed while waking: where.
    stage: Option<String>,
    /// Counts the wakes from 1; 0 before the first.
    epoch: u64,
    /// Since when it is in this phase.
    since: Option<Instant>,
    /// Why it was woken last.
    cause: Option<Cause>,
    /// While it is ready: `kept_awake`, `open_streams` or `activity`.
    awake_because: Option<String>,
    /// Why it sleeps: `idle`, `person`, `workspace_archived`, `shutdown`, `usage_cap`, `secret_rotated`, or `host_lost` where its host died.
    asleep_because: Option<String>,
    /// When it goes to sleep unless something happens; `null` while it is not ready or a stream is open.
    sleeps_at: Option<Instant>,
    kept_awake_until: Option<Instant>,
    kept_awake_reason: Option<String>,
    /// Why it failed.
    failure: Option<String>,
    /// The commit that is checked out.
    commit: Option<String>,
    services: Vec<Service>,
}

/// Why a runtime was woken.
#[derive(Serialize, ToSchema)]
pub(crate) struct Cause {
    /// `link`, `person`, `job` or `agent`.
    kind: &'static str,
    /// The person behind it; `null` for a reviewer, whom nobody knows.
    by: Option<String>,
    /// Of the job or agent.
    name: Option<String>,
    link: Option<String>,
}

impl From<&WakeCause> for Cause {
    fn from(cause: &WakeCause) -> Self {
        match cause {
            WakeCause::Link { link, .. } => Self { kind: "link", by: None, name: None, link: Some(link.to_string()) },
            WakeCause::Person(user) => Self { kind: "person", by: Some(user.to_string()), name: None, link: None },
            WakeCause::Job { name, by } => {
                Self { kind: "job", by: Some(by.to_string()), name: Some(name.clone()), link: None }
            }
            WakeCause::Agent { name, by } => {
                Self { kind: "agent", by: Some(by.to_string()), name: Some(name.clone()), link: None }
            }
        }
    }
}

#[derive(Serialize, ToSchema)]
struct Service {
    name: String,
    /// `web`, `api`, `assets`, `marketing` or `none`.
    route: &'static str,
    ready: bool,
}

/// On whose behalf to wake; a person's where neither is given.
#[derive(Deserialize, Default, ToSchema)]
#[serde(deny_unknown_fields)]
struct WakeRequest {
    /// Name of a job or test run.
    job: Option<String>,
    /// Name of an agent.
    agent: Option<String>,
}

/// What was asked for is under way, or was so already.
#[derive(Serialize, ToSchema)]
struct Phase {
    phase: String,
    epoch: u64,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct KeepAwake {
    for_seconds: u64,
    reason: String,
}

#[derive(Serialize, ToSchema)]
struct KeptAwake {
    until: Instant,
    reason: String,
}

/// What the runtime does, and why.
#[utoipa::path(get, path = "/v1/orgs/{org}/workspaces/{workspace}/runtime", tag = "runtime",
    responses((status = 200, body = Runtime)), extensions(("x-envforge-action" = json!("workspace.read"))))]
async fn get(
    State(state): State<Runtimes>,
    caller: Caller,
    Path((org, workspace)): Path<(String, String)>,
    at: AtLeast,
) -> Result<axum::Json<Runtime>, Problem> {
    let (resource, _) = state.named(&org, &workspace).await?;
    let permit = state.access.permit(&caller, Action::WorkspaceRead, resource).await?;
    let record = state.reads.workspace(&permit, at).await?;
    let idle_max = state.reads.idle_sleep_max(&permit).unwrap_or(IDLE_SLEEP_MAX);
    Ok(axum::Json(Runtime::of(record, idle_max)?))
}

/// Wake the runtime. Waking one that is awake or waking changes nothing.
#[utoipa::path(post, path = "/v1/orgs/{org}/workspaces/{workspace}/wake", tag = "runtime",
    request_body = Option<WakeRequest>, responses((status = 202, body = Phase)),
    extensions(("x-envforge-action" = json!("runtime.wake"))))]
async fn wake(
    State(state): State<Runtimes>,
    Path((org, workspace)): Path<(String, String)>,
    request: Write<Optional<WakeRequest>>,
) -> Result<Written<Phase>, Problem> {
    let Write { caller, body: Optional(wake), context } = request;
    let (resource, id) = state.named(&org, &workspace).await?;
    let permit = state.access.permit(&caller, Action::RuntimeWake, resource).await?;
    let named = |field: &str, name: String| {
        let reason = format!("a name must have 1 to {NAME_CHARS_MAX} characters");
        if name_is_valid(&name) { Ok(name) } else { Err(Problem::value(field, reason)) }
    };
    let cause = match (wake.job, wake.agent) {
        (None, None) => match state.access.job_of(&caller) {
            None => WakeCause::Person(caller.user),
            Some(name) => WakeCause::Job { name, by: caller.user },
        },
        (Some(job), None) => WakeCause::Job { name: named("job", job)?, by: caller.user },
        (None, Some(agent)) => WakeCause::Agent { name: named("agent", agent)?, by: caller.user },
        (Some(_), Some(_)) => return Err(Problem::value("job", "name at most one of `job` and `agent`")),
    };
    let done =
        act!(state.access, &caller, permit, runtimes::wake(&state.commands, permit, &context, id, cause.clone()));
    let phase = state.phase(resource, id, &done.events).await?;
    Ok(Written::accepted(&done, phase))
}

/// Put the runtime to sleep.
#[utoipa::path(post, path = "/v1/orgs/{org}/workspaces/{workspace}/sleep", tag = "runtime",
    responses((status = 202, body = Phase)), extensions(("x-envforge-action" = json!("runtime.sleep"))))]
async fn sleep(
    State(state): State<Runtimes>,
    Path((org, workspace)): Path<(String, String)>,
    request: Write<Empty>,
) -> Result<Written<Phase>, Problem> {
    let Write { caller, context, .. } = request;
    let (resource, id) = state.named(&org, &workspace).await?;
    let permit = state.access.permit(&caller, Action::RuntimeSleep, resource).await?;
    let cause = SleepCause::Person(caller.user);
    let done =
        act!(state.access, &caller, permit, runtimes::sleep(&state.commands, permit, &context, id, cause.clone()));
    let phase = state.phase(resource, id, &done.events).await?;
    Ok(Written::accepted(&done, phase))
}

/// Keep a ready runtime awake for a while, within the organization's cap.
#[utoipa::path(post, path = "/v1/orgs/{org}/workspaces/{workspace}/keep-awake", tag = "runtime",
    request_body = KeepAwake, responses((status = 200, body = KeptAwake)),
    extensions(("x-envforge-action" = json!("runtime.keep_awake"))))]
async fn keep_awake(
    State(state): State<Runtimes>,
    Path((org, workspace)): Path<(String, String)>,
    request: Write<Json<KeepAwake>>,
) -> Result<Written<KeptAwake>, Problem> {
    let Write { caller, body: Json(keep), context } = request;
    let (resource, id) = state.named(&org, &workspace).await?;
    let permit = state.access.permit(&caller, Action::RuntimeKeepAwake, resource).await?;
    let until = context.now.plus(Millis::from_secs(keep.for_seconds));
    let done = act!(
        state.access,
        &caller,
        permit,
        runtimes::keep_awake(&state.commands, permit, &context, id, caller.user, until, keep.reason.clone())
    );
    // A repeated request has another `now`, but what was promised is what the log says.
    let recorded = done.events.iter().find_map(|event| match event {
        Event::Runtime(RuntimeEvent::KeptAwake { until, .. }) => Some(*until),
        _ => None,
    });
    let answer = KeptAwake { until: recorded.unwrap_or(until).into(), reason: keep.reason };
    Ok(Written::ok(&done, answer))
}

impl Runtimes {
    async fn named(&self, org: &str, workspace: &str) -> Result<(Resource, WorkspaceId), Problem> {
        let org = self.access.org(org).await?;
        let resource = self.access.workspace(org, workspace).await?;
        Ok((resource, resource.workspace().ok_or_else(Problem::not_found)?))
    }

    /// The phase that a command led to; where it changed nothing, the one that the runtime is in.
    async fn phase(&self, resource: Resource, id: WorkspaceId, events: &[Event]) -> Result<Phase, Problem> {
        let led_to = events.iter().find_map(|event| match event {
            Event::Runtime(RuntimeEvent::WakeRequested { epoch, .. }) => Some((RuntimePhase::Waking, *epoch)),
            Event::Runtime(RuntimeEvent::SleepRequested { epoch, .. }) => Some((RuntimePhase::Sleeping, *epoch)),
            _ => None,
        });
        let (phase, epoch) = match led_to {
            Some(led_to) => led_to,
            None => {
                let state = self.commands.load::<Aggregate>(&StreamId::runtime(resource.org(), id)).await?.state;
                let phase = match &state {
                    Aggregate::NeverWoken | Aggregate::Asleep { .. } => RuntimePhase::Asleep,
                    Aggregate::Waking { .. } => RuntimePhase::Waking,
                    Aggregate::Ready(_) => RuntimePhase::Ready,
                    Aggregate::Sleeping { .. } => RuntimePhase::Sleeping,
                    Aggregate::Failed { .. } => RuntimePhase::Failed,
                };
                (phase, state.epoch())
            }
        };
        Ok(Phase { phase: phase.token().to_owned(), epoch: epoch.0 })
    }
}

impl Runtime {
    fn of(workspace: WorkspaceRecord, idle_max: Millis) -> Result<Self, Problem> {
        let manifest = Manifest::parse(&workspace.manifest)
            .map_err(|errors| Problem::internal(format!("a recorded manifest cannot be read: {errors}")))?;
        let runtime = workspace.runtime;
        let ready = |name: &str| {
            runtime.as_ref().is_some_and(|runtime| {
                runtime.phase == RuntimePhase::Ready
                    && runtime.services.iter().any(|service| service.name.as_str() == name)
            })
        };
        let services = manifest
            .services
            .iter()
            .map(|service| Service {
                name: service.name.to_string(),
                route: match service.route {
                    Route::None => "none",
                    Route::Web { .. } => "web",
                    Route::Api { .. } => "api",
                    Route::Assets { .. } => "assets",
                    Route::Marketing { .. } => "marketing",
                },
                ready: ready(service.name.as_str()),
            })
            .collect();
        let Some(runtime) = runtime else {
            return Ok(Self {
                phase: RuntimePhase::Asleep.token().to_owned(),
                stage: None,
                epoch: 0,
                since: None,
                cause: None,
                awake_because: None,
                asleep_because: None,
                sleeps_at: None,
                kept_awake_until: None,
                kept_awake_reason: None,
                failure: None,
                commit: None,
                services,
            });
        };
        let awake = Awake::of(&runtime, manifest.idle_sleep.min(idle_max));
        let asleep_because = asleep_because(&runtime);
        Ok(Self {
            phase: runtime.phase.token().to_owned(),
            stage: runtime.stage,
            epoch: runtime.epoch,
            since: Some(runtime.since.into()),
            cause: Some((&runtime.wake_cause).into()),
            awake_because: awake.as_ref().map(|awake| awake.because.to_owned()),
            asleep_because,
            sleeps_at: awake.and_then(|awake| awake.sleeps_at).map(Instant),
            kept_awake_until: runtime.keep_awake_until.map(Instant),
            kept_awake_reason: runtime.keep_awake_reason,
            failure: runtime.failure,
            commit: runtime.commit_hash,
            services,
        })
    }
}

/// What kind of cause put it to sleep. The read model keeps causes as JSON with a `kind`.
fn asleep_because(runtime: &RuntimeRecord) -> Option<String> {
    if !matches!(runtime.phase, RuntimePhase::Asleep | RuntimePhase::Sleeping) {
        return None;
    }
    let cause: serde_json::Value = serde_json::from_str(runtime.sleep_cause.as_deref()?).ok()?;
    Some(cause["kind"].as_str()?.to_owned())
}

/// Why a ready runtime is awake, and until when.
struct Awake {
    because: &'static str,
    sleeps_at: Option<UnixMillis>,
}

impl Awake {
    fn of(runtime: &RuntimeRecord, idle_sleep: Millis) -> Option<Self> {
        if runtime.phase != RuntimePhase::Ready {
            return None;
        }
        if runtime.open_streams.is_some_and(|count| count > 0) {
            return Some(Self { because: "open_streams", sleeps_at: None });
        }
        let active_at = [runtime.active_at, runtime.ready_at].into_iter().flatten().max().unwrap_or(runtime.since);
        let idle_at = active_at.plus(idle_sleep);
        match runtime.keep_awake_until.filter(|until| *until > idle_at) {
            Some(until) => Some(Self { because: "kept_awake", sleeps_at: Some(until) }),
            None => Some(Self { because: "activity", sleeps_at: Some(idle_at) }),
        }
    }
}
