//! Shells and jobs of a workspace: what its team reaches while the runtime sleeps, and what of it runs.
//!
//! Not here: frames and how long a right lasts (`shell_socket`), what runs (`shell_host`), machines that are off (`host_starts`), what lasts
//! beyond connections (`lasting_shells`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::response::{IntoResponse, Response};
use envforge_commands::{CommandError, Commands, Context, Done, job_runs, runtimes, shells};
use envforge_domain::access::{Action, Resource};
use envforge_domain::commit::{Component, Surface};
use envforge_domain::ids::{JobRunId, ShellId, WorkspaceId};
use envforge_domain::job_run::JobOrder;
use envforge_domain::limits::{
    ACTIVITY_INTERVAL, JOB_RUN_MAX, MACHINE_START_WAIT, SHELL_CHARS_MAX, SHELL_OPEN_MAX, SHELL_WORDS_MAX,
    SHELLS_OF_PERSON_MAX, WAKE_DEADLINE,
};
use envforge_domain::manifest::Job;
use envforge_domain::runtime::{ActivitySource, RuntimeCommand, WakeCause};
use envforge_domain::shell::{ShellEnd, ShellFailure, ShellOrder, ShellWhat, TerminalSize};
use envforge_domain::time::SharedClock;
use envforge_projections::gateway_view::RuntimePhase;
use http::{HeaderMap, header};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::events::{OpenStream, Streams};
use super::has_access;
use super::host_starts::{Asking, Need};
use super::lasting_shells::Lasting;
use crate::access::{Access, Caller, act};
use crate::config::{Config, Shells};
use crate::open_shells::{Held, OpenShells};
use crate::page::Path;
use crate::problem::Problem;
use crate::shell_socket::{Client, Ground, MESSAGE_BYTES_MAX, PROTOCOL};

/// How often whoever waits looks again, a follower of logs for more, and at their right.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// How often a runtime is woken for one job: something may put it to sleep before the job has begun.
const JOB_WAKES_MAX: u32 = 3;
/// Before a shell is opened anew on a host that has only just come up.
const OPEN_PAUSE: Duration = Duration::from_secs(1);
/// A term's name.
const TERM_CHARS_MAX: usize = 64;
const SIZE_MAX: u16 = 4_000;
const REPORT_ATTEMPTS_MAX: u32 = 20;

#[derive(Clone)]
pub(crate) struct ShellEndpoints {
    pub(super) access: Access,
    commands: Commands,
    pub(super) clock: SharedClock,
    pub(super) host: Option<Shells>,
    pub(super) open: Arc<Streams>,
    held: OpenShells,
    pub(super) lasting: Arc<Mutex<Lasting>>,
    pub(super) asking: Asking,
    stop: CancellationToken,
}

has_access!(ShellEndpoints);

pub(crate) fn routes() -> OpenApiRouter<ShellEndpoints> {
    OpenApiRouter::new().routes(routes!(shell)).routes(routes!(run)).routes(routes!(super::logs::logs))
}

/// What a client asks for: its first message, with `open` saying which.
#[derive(Clone, Deserialize)]
#[serde(tag = "open", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Order {
    Terminal {
        columns: u16,
        rows: u16,
        term: String,
        /// Survive a disconnect, where the host can.
        #[serde(default)]
        lasting: bool,
        /// A program instead of the shell.
        #[serde(default)]
        words: Vec<String>,
    },
    Command {
        words: Vec<String>,
    },
    Ssh {
        client_key: String,
    },
}

impl TryFrom<Order> for ShellWhat {
    type Error = Problem;

    fn try_from(order: Order) -> Result<Self, Problem> {
        Ok(match order {
            Order::Terminal { columns, rows, term, lasting, words } => {
                let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"+-._".contains(&byte);
                if term.is_empty() || term.len() > TERM_CHARS_MAX || !term.bytes().all(plain) {
                    return Err(Problem::value("term", "a terminal's name: letters, digits, `+`, `-`, `.`, `_`"));
                }
                if ![columns, rows].iter().all(|size| (1..=SIZE_MAX).contains(size)) {
                    return Err(Problem::value("columns", format!("1 to {SIZE_MAX} columns and rows")));
                }
                let words = if words.is_empty() { words } else { command(words)? };
                Self::Terminal {
                    size: TerminalSize { columns, rows },
                    term,
                    lasting: lasting && words.is_empty(),
                    words,
                }
            }
            Order::Command { words } => Self::Command { words: command(words)? },
            Order::Ssh { client_key } => Self::Ssh { client_key },
        })
    }
}

fn command(words: Vec<String>) -> Result<Vec<String>, Problem> {
    let chars: usize = words.iter().map(|word| word.chars().count()).sum();
    let fits = (1..=SHELL_WORDS_MAX).contains(&words.len()) && chars <= SHELL_CHARS_MAX;
    if fits && !words[0].is_empty() && !words.iter().any(|word| word.contains('\0')) {
        return Ok(words);
    }
    Err(Problem::new(
        "shell_command_invalid",
        format!("1 to {SHELL_WORDS_MAX} words, the first of which names a program."),
    )
    .with("max_words", SHELL_WORDS_MAX)
    .with("max_chars", SHELL_CHARS_MAX))
}

impl From<ShellFailure> for Problem {
    fn from(failure: ShellFailure) -> Self {
        let detail = format!("{failure}.");
        match failure {
            ShellFailure::HostElsewhere => Self::new("host_elsewhere", detail),
            ShellFailure::OutOfReach => Self::new("host_out_of_reach", detail).retry_after_s(5),
            ShellFailure::TooMany { max, .. } => Self::new("too_many_shells", detail).with("max", max),
            ShellFailure::Checkout { .. } => Self::new("checkout_failed", detail),
            ShellFailure::ClientKey => Self::value("client_key", failure),
            ShellFailure::NotAwake => Self::new("runtime_not_awake", detail),
            ShellFailure::ShuttingDown => Self::new("overloaded", detail).retry_after_s(1),
            ShellFailure::NotStarted { .. } => Self::new("shell_not_started", detail),
        }
    }
}

/// Open a shell: a WebSocket with the subprotocol `envforge.shell.v1`, whose frames docs/shell.md describes. Works whatever the
/// runtime does, wakes nothing, and ends with the right to it.
#[utoipa::path(get, path = "/v1/orgs/{org}/workspaces/{workspace}/shell", tag = "shell",
    responses((status = 101, description = "The connection is a WebSocket now.")),
    extensions(("x-envforge-action" = json!("shell.open"))))]
async fn shell(
    State(state): State<ShellEndpoints>,
    caller: Caller,
    Path((org, workspace)): Path<(String, String)>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let ground = state.ground(&caller, &org, &workspace, Action::ShellOpen).await?;
    let (upgrade, open) = state.admit(&caller, &headers, upgrade)?;
    Ok(upgraded(upgrade, |socket| async move {
        let held = state.hold(&ground);
        state.serve_shell(Client::new(socket), ground).await;
        drop((open, held));
    }))
}

/// Run a job that envforge.yml declares, where the runtime is awake; it is woken for it. A WebSocket like a shell's: output,
/// and at the end the exit status. Whoever goes away ends the job.
#[utoipa::path(get, path = "/v1/orgs/{org}/workspaces/{workspace}/jobs/{job}/run", tag = "shell",
    responses((status = 101, description = "The connection is a WebSocket now.")),
    extensions(("x-envforge-action" = json!("job.run"))))]
async fn run(
    State(state): State<ShellEndpoints>,
    caller: Caller,
    Path((org, workspace, job)): Path<(String, String, String)>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let ground = state.ground(&caller, &org, &workspace, Action::JobRun).await?;
    let (upgrade, open) = state.admit(&caller, &headers, upgrade)?;
    let permit = state.access.permit(&caller, Action::JobRun, ground.resource).await?;
    let id = workspace_of(&ground)?;
    let (project, job) = job_runs::declared(&state.commands, &permit, id, &job).await?;
    Ok(upgraded(upgrade, move |socket| async move {
        let order = JobOrder {
            // Named by the log, once it has been started.
            run: JobRunId::from_uuid(uuid::Uuid::nil()),
            org: ground.resource.org(),
            project,
            workspace: id,
            name: job.name.clone(),
            command: job.command.clone(),
            // Resolved once the runtime is awake.
            secrets: Vec::new(),
        };
        let held = state.hold(&ground);
        state.serve_job(Client::new(socket), ground, job, order).await;
        drop((open, held));
    }))
}

pub(super) fn workspace_of(ground: &Ground) -> Result<WorkspaceId, Problem> {
    ground.resource.workspace().ok_or_else(Problem::not_found)
}

pub(super) fn upgraded<F: Future<Output = ()> + Send + 'static>(
    upgrade: WebSocketUpgrade,
    serve: impl FnOnce(WebSocket) -> F + Send + 'static,
) -> Response {
    let upgrade = upgrade.protocols([PROTOCOL]).max_message_size(MESSAGE_BYTES_MAX).max_frame_size(MESSAGE_BYTES_MAX);
    // Large writes go out whole, and at once.
    upgrade.write_buffer_size(0).on_upgrade(serve).into_response()
}

impl ShellEndpoints {
    pub(super) fn commands(&self) -> &Commands {
        &self.commands
    }

    pub(super) fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// It is open from now on, and on the receipt of whatever takes the right to it.
    pub(super) fn hold(&self, ground: &Ground) -> Held {
        let ground = ground.clone();
        self.held.hold(move || ground.is_taken())
    }

    /// It is open where the workspace's runtime is.
    pub(super) fn opened_by_runtime(&self, ground: &Ground) {
        let host = ground.resource.workspace().and_then(|workspace| self.access.hot().placement.host_of(workspace));
        host.into_iter().for_each(|host| ground.opened_on(host));
    }

    /// As it is now; nothing is asked here.
    pub(super) fn ground_on(&self, caller: &Caller, action: Action, resource: Resource) -> Ground {
        let (access, clock, open) = (self.access.clone(), Arc::clone(&self.clock), self.held.clone());
        Ground { access, clock, caller: *caller, action, resource, open, host: Arc::default() }
    }

    pub(crate) fn new(
        access: &Access,
        commands: &Commands,
        clock: &SharedClock,
        config: &Config,
        held: OpenShells,
        stop: &CancellationToken,
    ) -> Self {
        let endpoints = Self {
            access: access.clone(),
            commands: commands.clone(),
            clock: Arc::clone(clock),
            host: config.shells.clone(),
            open: Streams::of(config.shells_max, SHELLS_OF_PERSON_MAX, ("too_many_shells", "shells, jobs and logs")),
            held,
            lasting: Arc::default(),
            asking: Asking::default(),
            stop: stop.clone(),
        };
        if endpoints.host.is_some() {
            tokio::spawn(endpoints.clone().hold_found());
        }
        endpoints
    }

    pub(super) fn host(&self) -> Result<&Shells, Problem> {
        self.host.as_ref().ok_or_else(|| ShellFailure::HostElsewhere.into())
    }

    /// The right, as fresh as the log's leader has it.
    pub(super) async fn ground(
        &self,
        caller: &Caller,
        org: &str,
        workspace: &str,
        action: Action,
    ) -> Result<Ground, Problem> {
        let org = self.access.org(org).await?;
        let resource = self.access.workspace(org, workspace).await?;
        self.ground_of(caller, action, resource).await
    }

    /// The same of a workspace that was found.
    pub(super) async fn ground_of(
        &self,
        caller: &Caller,
        action: Action,
        resource: Resource,
    ) -> Result<Ground, Problem> {
        self.access.permit(caller, action, resource).await?;
        let ground = self.ground_on(caller, action, resource);
        match ground.lost() {
            Some(ShellEnd::WorkspaceArchived) => Err(Problem::new("workspace_archived", "The workspace is archived.")),
            _ => Ok(ground),
        }
    }

    /// Only now is the request looked at as what it is: nobody without the right learns anything from it.
    pub(super) fn admit(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
        upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
    ) -> Result<(WebSocketUpgrade, OpenStream), Problem> {
        // A page of another site can open a WebSocket with a browser's cookies, but sends its origin and no bearer token.
        if headers.contains_key(header::ORIGIN) || headers.contains_key(header::COOKIE) {
            return Err(Problem::new("shell_not_for_browsers", "Shells are for programs that hold an access token."));
        }
        let upgrade = upgrade.map_err(|rejection| Problem::new("websocket_required", rejection.to_string()))?;
        let speaks = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
        if !speaks.flat_map(|value| value.split(',')).any(|protocol| protocol.trim() == PROTOCOL) {
            return Err(Problem::new("websocket_required", format!("Name the subprotocol `{PROTOCOL}`.")));
        }
        self.host()?;
        Ok((upgrade, self.open.open(caller.user)?))
    }

    async fn serve_shell(self, mut client: Client, ground: Ground) {
        let Some(order) = client.order::<Order>().await else { return };
        let begun = Instant::now();
        let opened = loop {
            match self.open_shell(&mut client, &ground, order.clone()).await {
                // Its machine went off under it, or its agent is not back.
                Err(problem)
                    if problem.code() == "host_out_of_reach"
                        && begun.elapsed() < MACHINE_START_WAIT.to_duration()
                        && self.is_coming(&ground, Need::Shell) =>
                {
                    tokio::time::sleep(OPEN_PAUSE).await;
                }
                opened => break opened,
            }
        };
        match opened {
            Err(problem) => client.refuse(&problem).await,
            Ok(None) => {}
            Ok(Some((shell, open))) => {
                let carried = client.carry(open, &ground, SHELL_OPEN_MAX.to_duration(), &self.stop, None).await;
                self.tell(&ground, Whose::Shell(shell), carried.0, carried.1).await;
            }
        }
    }

    /// The log knows of a shell before anything runs. `None` where the client went away, or was told why not.
    async fn open_shell(
        &self,
        client: &mut Client,
        ground: &Ground,
        order: Order,
    ) -> Result<Option<(ShellId, crate::shell_host::OpenShell)>, Problem> {
        let what = ShellWhat::try_from(order)?;
        let Some(place) = self.shell_host(client, ground).await? else { return Ok(None) };
        let (caller, workspace) = (ground.caller_now(), workspace_of(ground)?);
        let session = caller.session_id()?;
        let host = self.host()?.host();
        let new = shells::NewShell { workspace, user: caller.user, session, kind: what.kind(), host: place };
        let context = self.context(ground);
        let permit = self.access.permit(&caller, ground.action, ground.resource).await?;
        let connected = act!(self.access, &caller, permit, shells::connect(&self.commands, permit, &context, new));
        let shell = connected.shell;
        let project = ground.resource.project().ok_or_else(Problem::not_found)?;
        let order = ShellOrder {
            shell,
            org: ground.resource.org(),
            project,
            workspace,
            user: caller.user,
            session,
            surface: caller.surface,
            repository: connected.repository,
            branch: connected.branch,
            git: connected.git,
            what,
        };
        let lasts = matches!(order.what, ShellWhat::Terminal { lasting: true, .. } | ShellWhat::Ssh { .. });
        let opened = client.until_begun(ground, &self.stop, host.open(place, order)).await;
        // Also where nothing was opened: what lasts is begun before the connection to it is.
        let left = match &opened {
            Ok(Ok(open)) => open.facts.lasting,
            Ok(Err(_)) | Err(_) => lasts,
        };
        if left {
            self.hold_lasting(ground, workspace);
        }
        match opened {
            Ok(Ok(open)) => {
                ground.opened_on(place);
                let facts = &open.facts;
                let told = json!({ "type": "opened", "shell": shell.to_string(), "lasting": facts.lasting,
                    "notice": facts.notice, "host_key": facts.host_key });
                client.say(&told).await;
                Ok(Some((shell, open)))
            }
            Ok(Err(failure)) => {
                self.tell(ground, Whose::Shell(shell), ShellEnd::NotStarted, None).await;
                Err(failure.into())
            }
            Err(end) => {
                self.give_up(client, ground, Whose::Shell(shell), end).await;
                Ok(None)
            }
        }
    }

    async fn serve_job(self, mut client: Client, ground: Ground, job: Job, order: JobOrder) {
        let name = job.name.clone();
        match self.begin_job(&mut client, &ground, job, order).await {
            Err(problem) => client.refuse(&problem).await,
            Ok(None) => {}
            Ok(Some((run, open))) => {
                let _busy = AbortOnDropHandle::new(tokio::spawn(self.clone().keep_awake(ground.clone())));
                let carried = client.carry(open, &ground, JOB_RUN_MAX.to_duration(), &self.stop, None).await;
                tracing::debug!(%run, name, end = carried.0.token(), "a job is over");
                self.tell(&ground, Whose::Job(run), carried.0, carried.1).await;
            }
        }
    }

    /// Wakes, and starts the job. `None` where the client went away, or was told why not.
    async fn begin_job(
        &self,
        client: &mut Client,
        ground: &Ground,
        job: Job,
        order: JobOrder,
    ) -> Result<Option<(JobRunId, crate::shell_host::OpenShell)>, Problem> {
        let mut wakes = 0;
        loop {
            wakes += 1;
            match self.begin_job_once(client, ground, job.clone(), order.clone()).await {
                // It was put to sleep between its wake and the job's start: whoever asks for a job wants it awake.
                Err(problem) if problem.code() == "runtime_not_awake" && wakes < JOB_WAKES_MAX => {}
                begun => return begun,
            }
        }
    }

    async fn begin_job_once(
        &self,
        client: &mut Client,
        ground: &Ground,
        job: Job,
        order: JobOrder,
    ) -> Result<Option<(JobRunId, crate::shell_host::OpenShell)>, Problem> {
        let (caller, workspace) = (ground.caller_now(), order.workspace);
        let permit = self.access.permit(&caller, Action::RuntimeWake, ground.resource).await?;
        let context = self.context(ground);
        // Nothing is woken for a job that lacks a secret.
        job_runs::secrets_of(&self.commands, &permit, &context, (order.project, workspace), &job).await?;
        let cause = WakeCause::Job { name: job.name.clone(), by: caller.user };
        let woken = act!(
            self.access,
            &caller,
            permit,
            runtimes::wake(&self.commands, permit, &context, workspace, cause.clone())
        );
        client.say(&json!({ "type": "waking" })).await;
        let end = tokio::select! {
            end = self.until_awake(ground, workspace, &woken) => end,
            () = client.gone() => return Ok(None),
        };
        if let Some(end) = end {
            client.over(end).await;
            return Ok(None);
        }
        let host = self.host()?.host();
        let org = ground.resource.org();
        let commit = match host.commit(org, workspace).await {
            Some(commit) => commit,
            None => return Err(host.place(org, workspace).err().unwrap_or(ShellFailure::HostElsewhere).into()),
        };
        let caller = ground.caller_now();
        let permit = self.access.permit(&caller, ground.action, ground.resource).await?;
        let context = self.context(ground);
        let of = (order.project, workspace);
        let secrets = job_runs::secrets_of(&self.commands, &permit, &context, of, &job).await?;
        let order = JobOrder { secrets: secrets.clone(), ..order };
        let new = job_runs::NewJobRun { workspace, project: order.project, job, by: caller.user, commit, secrets };
        let (run, _) =
            act!(self.access, &caller, permit, job_runs::start(&self.commands, permit, &context, new.clone()));
        match client.until_begun(ground, &self.stop, host.run_job(JobOrder { run, ..order })).await {
            Ok(Ok(open)) => {
                self.opened_by_runtime(ground);
                client.say(&json!({ "type": "opened", "run": run.to_string(), "commit": new.commit })).await;
                Ok(Some((run, open)))
            }
            Ok(Err(failure)) => {
                self.tell(ground, Whose::Job(run), ShellEnd::NotStarted, None).await;
                Err(failure.into())
            }
            Err(end) => {
                self.give_up(client, ground, Whose::Job(run), end).await;
                Ok(None)
            }
        }
    }

    /// Comes back once the runtime is awake, or with the reason why it does not get there.
    async fn until_awake(&self, ground: &Ground, workspace: WorkspaceId, woken: &Done) -> Option<ShellEnd> {
        if self.access.hot().wait_for(woken.position, WAKE_DEADLINE.to_duration()).await.is_err() {
            return Some(ShellEnd::RightsUnknown);
        }
        let mut runtime = self.access.hot().gateway.runtime(workspace);
        // A sleep that is under way may come before the wake.
        let deadline = tokio::time::Instant::now() + 2 * WAKE_DEADLINE.to_duration();
        loop {
            let phase = runtime.borrow_and_update().phase;
            match phase {
                RuntimePhase::Ready if self.is_up_here(ground, workspace).await => return None,
                RuntimePhase::Failed => return Some(ShellEnd::RuntimeGone),
                RuntimePhase::Asleep
                | RuntimePhase::Waking
                | RuntimePhase::Ready
                | RuntimePhase::Sleeping
                | RuntimePhase::Leaving => {}
            }
            tokio::select! {
                () = self.stop.cancelled() => return Some(ShellEnd::HostStopped),
                () = tokio::time::sleep_until(deadline) => return Some(ShellEnd::RuntimeGone),
                () = tokio::time::sleep(LOOK_INTERVAL) => {
                    if let Some(end) = ground.lost() {
                        return Some(end);
                    }
                }
                _ = runtime.changed() => {}
            }
        }
    }

    async fn is_up_here(&self, ground: &Ground, workspace: WorkspaceId) -> bool {
        let Some(host) = &self.host else { return false };
        host.host().commit(ground.resource.org(), workspace).await.is_some()
    }

    /// A job is use of the runtime for as long as it runs.
    async fn keep_awake(self, ground: Ground) {
        let mut tick = tokio::time::interval(ACTIVITY_INTERVAL.to_duration());
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let now = self.clock.now();
            let Some(workspace) = ground.resource.workspace() else { return };
            let runtime = self.access.hot().gateway.runtime(workspace).borrow().clone();
            let permit = self.access.component_permit(
                Component::Gateway,
                Action::RuntimeRecordActivity,
                ground.resource,
                Surface::Gateway,
                now,
            );
            let command = RuntimeCommand::RecordActivity {
                epoch: runtime.epoch,
                at: now,
                open_streams: 0,
                source: ActivitySource::Person(ground.caller.user),
            };
            if let Ok(permit) = permit
                && let Err(error) =
                    runtimes::report(&self.commands, &permit, &Context::new(now), workspace, &command).await
            {
                tracing::debug!(%error, "a job's use of its runtime was not recorded");
            }
        }
    }

    /// A request of its own that belongs to the one by which the shell was opened.
    pub(super) fn context(&self, ground: &Ground) -> Context {
        Context { correlation: ground.caller.arrival.correlation, ..Context::new(self.clock.now()) }
    }

    /// What is over before it began, for its client and for the log.
    async fn give_up(&self, client: &mut Client, ground: &Ground, over: Whose, end: ShellEnd) {
        if end != ShellEnd::Closed {
            client.over(end).await;
        }
        self.tell(ground, over, end, None).await;
    }

    /// Writes down an end, by EnvForge itself: whoever it concerns may do nothing any more.
    async fn tell(&self, ground: &Ground, over: Whose, end: ShellEnd, code: Option<u32>) {
        let (context, surface) = (self.context(ground), ground.caller.surface);
        for attempt in 0..REPORT_ATTEMPTS_MAX {
            let now = self.clock.now();
            let permit =
                self.access.component_permit(Component::Identity, over.action(), ground.resource, surface, now);
            let error = match permit {
                Ok(permit) => {
                    let told = match over {
                        Whose::Shell(shell) => {
                            shells::disconnect(&self.commands, &permit, &context, shell, end, code).await
                        }
                        Whose::Job(run) => job_runs::finish(&self.commands, &permit, &context, run, end, code).await,
                    };
                    match told {
                        Ok(_) => return,
                        Err(CommandError::Refused(refusal)) => {
                            tracing::error!(%refusal, "the end of a shell was refused");
                            return;
                        }
                        Err(error) => error.to_string(),
                    }
                }
                Err(problem) => problem.code().to_owned(),
            };
            tracing::warn!(error, attempt, "the end of a shell was not recorded yet");
            tokio::time::sleep(Duration::from_millis(u64::from(attempt) * 100 + 50)).await;
        }
        tracing::error!("the end of a shell could not be recorded");
    }
}

/// What is over.
#[derive(Clone, Copy)]
enum Whose {
    Shell(ShellId),
    Job(JobRunId),
}

impl Whose {
    const fn action(self) -> Action {
        match self {
            Self::Shell(_) => Action::ShellReport,
            Self::Job(_) => Action::JobReport,
        }
    }
}
