//! Root windows: ask for root in a workspace, answer a request, run the one command, end it, review a break-glass.
//!
//! Every write answers the window as it is then. Not here: what is decided (domain), and running anything: that is the
//! host's, which hears of it from the log.

use axum::extract::State;
use envforge_commands::root_windows::{self, NewRootWindow};
use envforge_commands::{CommandError, Commands, Done};
use envforge_domain::access::{Action, Resource};
use envforge_domain::ids::RootWindowId;
use envforge_domain::limits::{ROOT_COMMAND_CHARS_MAX, ROOT_COMMAND_WORDS_MAX};
use envforge_domain::root_window::{
    PackageChange, RootAccess, RootChanges, RootMode, RootPhase, RootWindow, RootWindowRefusal,
};
use envforge_domain::shell::ShellFailure;
use envforge_domain::time::{Millis, UnixMillis};
use envforge_projections::Hot;
use envforge_projections::authorization::KnownRootWindow;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::has_access;
use crate::access::{Access, Caller, act};
use crate::config::Shells;
use crate::instant::Instant;
use crate::page::{Page, Path, Query, Slice, one_of};
use crate::problem::Problem;
use crate::reads::{AtLeast, Reads};
use crate::request_body::{Empty, Json, Optional};
use crate::write::{Write, Written};

#[derive(Clone)]
pub(crate) struct RootWindows {
    pub(crate) access: Access,
    pub(crate) commands: Commands,
    pub(crate) reads: Reads,
    /// What reaches hosts.
    pub(crate) hosts: Option<Shells>,
}

has_access!(RootWindows);

pub(crate) fn routes() -> OpenApiRouter<RootWindows> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(request))
        .routes(routes!(break_glass))
        .routes(routes!(get))
        .routes(routes!(approve))
        .routes(routes!(deny))
        .routes(routes!(withdraw))
        .routes(routes!(revoke))
        .routes(routes!(run))
        .routes(routes!(output))
        .routes(routes!(review))
}

/// A root window as everybody who may read it sees it.
#[derive(Serialize, ToSchema)]
#[schema(as = RootWindow)]
struct Shown {
    id: String,
    project: String,
    workspace: String,
    workspace_slug: Option<String>,
    requester: String,
    requester_name: Option<String>,
    /// `elevation` or `break_glass`.
    mode: &'static str,
    /// What it is for: `command` or `shell`.
    access: &'static str,
    reason: String,
    /// How long it is open, from its first use; a break-glass window from the request.
    length_seconds: u64,
    requested_at: Instant,
    /// `requested`, `approved`, `open`, `denied`, `withdrawn`, `revoked`, `expired`, `closed`, `review_pending`, `reviewed`.
    phase: &'static str,
    /// When the request lapses, the approval lapses, or the window ends, as policy and roles are now; `null` once it is over.
    ends_at: Option<Instant>,
    /// Whether it ends before its own time: its requester may no more, or not for as long, or the policy does not allow it.
    right_lost: bool,
    approver: Option<String>,
    approver_name: Option<String>,
    opened_at: Option<Instant>,
    closed_at: Option<Instant>,
    command: Option<Command>,
    reviewer: Option<String>,
    /// What its review said.
    justified: Option<bool>,
    /// What changed on the host, as lines of a Dockerfile for a base image. In the answer for one window alone; `null` where nothing
    /// ran, or nobody knows.
    image_change: Option<String>,
}

/// The one command of a window, or its newest shell.
#[derive(Serialize, ToSchema)]
#[schema(as = RootCommand)]
struct Command {
    /// None of a shell.
    words: Vec<String>,
    asked_at: Instant,
    started_at: Option<Instant>,
    ended_at: Option<Instant>,
    /// `exited`, `signalled`; killed: `deadline`, `revoked`, `withdrawn`, `right_lost`, `runtime_gone`, `host_stopped`; never
    /// started: `no_root` (EnvForge is not root on that host), `not_started`; `lost` where nobody knows. `null` while it runs.
    outcome: Option<&'static str>,
    /// The exit status, or the signal's number.
    code: Option<u32>,
    /// What changed on the host meanwhile, whoever changed it; `null` where nothing ran, or nobody knows.
    changes: Option<Changes>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = RootChanges)]
struct Changes {
    /// At most 100.
    packages: Vec<Package>,
    /// Below /etc and /usr/local. At most 100.
    files: Vec<File>,
    /// There was more, or not everything could be looked at.
    incomplete: bool,
}

#[derive(Serialize, ToSchema)]
#[schema(as = RootPackageChange)]
struct Package {
    name: String,
    /// Versions; `null` where it was not installed.
    before: Option<String>,
    after: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = RootFileChange)]
struct File {
    path: String,
    /// `added`, `removed` or `changed`.
    kind: &'static str,
}

impl From<RootChanges> for Changes {
    fn from(changes: RootChanges) -> Self {
        let package = |PackageChange { name, before, after }| Package { name, before, after };
        Self {
            packages: changes.packages.into_iter().map(package).collect(),
            files: changes.files.into_iter().map(|file| File { path: file.path, kind: file.kind.token() }).collect(),
            incomplete: changes.incomplete,
        }
    }
}

impl Shown {
    fn of(known: KnownRootWindow, now: UnixMillis, hot: &Hot) -> Option<Self> {
        let terms = known.state.terms()?.clone();
        let name = |user| hot.authorization.user(user).map(|user| user.name);
        let command = known.state.command().map(|command| Command {
            words: command.words.clone(),
            asked_at: command.asked_at.into(),
            started_at: command.started_at.map(Instant),
            ended_at: command.ended.as_ref().map(|ended| ended.at.into()),
            outcome: command.ended.as_ref().map(|ended| ended.outcome.token()),
            code: command.ended.as_ref().and_then(|ended| ended.code),
            changes: command.ended.as_ref().and_then(|ended| ended.changes.clone()).map(Into::into),
        });
        let (approver, opened_at, closed_at, reviewed) = match &known.state {
            RootWindow::Unknown | RootWindow::Requested { .. } => (None, None, None, None),
            RootWindow::Approved { approver, .. } => (Some(*approver), None, None, None),
            RootWindow::Open(open) => (open.approver, Some(open.opened_at), None, None),
            RootWindow::Over(over) => {
                (over.approver, over.open.map(|(at, _)| at), over.open.map(|(_, at)| at), over.reviewed)
            }
        };
        Some(Self {
            id: known.window.to_string(),
            project: terms.project.to_string(),
            workspace: terms.workspace.to_string(),
            workspace_slug: hot.gateway.workspace_name(terms.workspace),
            requester: terms.requester.to_string(),
            requester_name: name(terms.requester),
            mode: terms.mode.token(),
            access: terms.access.token(),
            reason: terms.reason,
            length_seconds: terms.length.as_secs(),
            requested_at: terms.requested_at.into(),
            phase: known.state.phase(now)?.token(),
            ends_at: known.ends_at.map(|end| end.max(terms.requested_at).into()),
            right_lost: known.right_lost,
            approver: approver.map(|approver| approver.to_string()),
            approver_name: approver.and_then(name),
            opened_at: opened_at.map(Instant),
            closed_at: closed_at.map(Instant),
            command,
            reviewer: reviewed.map(|(reviewer, _)| reviewer.to_string()),
            justified: reviewed.map(|(_, justified)| justified),
            image_change: None,
        })
    }
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewWindow {
    /// What for: whoever decides on it, and every auditor, reads this.
    reason: String,
    /// 1 to what the organization's policy allows, which is the default.
    minutes: Option<u64>,
    /// `command`, which it is where this is left out, or `shell`: one on a terminal, whose keys stand nowhere.
    access: Option<String>,
}

#[derive(Deserialize, Default, ToSchema)]
#[serde(deny_unknown_fields)]
struct RootAnswer {
    reason: Option<String>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct RootRun {
    /// The program and its arguments; no shell reads them. They stand in the log: no place for secrets.
    command: Vec<String>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct RootReview {
    justified: bool,
    /// What the reviewer found.
    note: String,
}

/// What a command has written, both its outputs as one.
#[derive(Serialize, ToSchema)]
struct RootOutput {
    /// The last 64 KiB of it as far as it has come; bytes that are no UTF-8 are replaced. `null` where it is not known.
    text: Option<String>,
    /// Bytes before those.
    dropped_bytes: u64,
    /// Why it is not known: `host_elsewhere` (neither this API's process nor one that it is told of has a host of it), `host_out_of_reach`, `none_kept`
    /// (nothing was run, a shell was, or the host's process was started anew since).
    unknown: Option<&'static str>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// One phase.
    phase: Option<String>,
    /// 1 to 200; 50 where it is left out.
    limit: Option<u64>,
    /// `next` of the page before.
    after: Option<String>,
}

/// The root windows that the caller may see, the newest first.
#[utoipa::path(get, path = "/v1/orgs/{org}/root-windows", tag = "root", params(ListQuery),
    responses((status = 200, body = Page<Shown>)), extensions(("x-envforge-action" = json!("root.read"))))]
async fn list(
    State(state): State<RootWindows>,
    caller: Caller,
    Path(org): Path<String>,
    Query(query): Query<ListQuery>,
    at: AtLeast,
) -> Result<axum::Json<Page<Shown>>, Problem> {
    let org = state.access.org(&org).await?;
    let listing = state.access.listing(&caller, Action::RootRead, org).await?;
    let tokens = RootPhase::ALL.map(RootPhase::token);
    let phase = one_of("phase", query.phase.as_deref(), RootPhase::from_token, &tokens)?;
    let slice = Slice::new(query.limit, query.after.as_deref())?;
    let now = caller.arrival.now;
    let page = state.reads.root_windows(&listing, at, phase, now, &slice).await?;
    let next = page.next.map(|cursor| crate::page::seal(&cursor));
    let items = page.items.into_iter().filter_map(|known| Shown::of(known, now, state.reads.hot())).collect();
    Ok(axum::Json(Page { items, next }))
}

/// Ask for root in a workspace. Somebody else, an owner or admin, answers within 24 hours; the window's time begins with its
/// first use, within 8 hours of the approval.
#[utoipa::path(post, path = "/v1/orgs/{org}/workspaces/{workspace}/root-windows", tag = "root", request_body = NewWindow,
    responses((status = 201, body = Shown)), extensions(("x-envforge-action" = json!("root.request"))))]
async fn request(
    State(state): State<RootWindows>,
    Path((org, workspace)): Path<(String, String)>,
    request: Write<Json<NewWindow>>,
) -> Result<Written<Shown>, Problem> {
    state.open(&org, &workspace, request, RootMode::Elevation).await
}

/// Open a root window at once, without anybody's approval. Somebody else has to review it before there can be another one.
#[utoipa::path(post, path = "/v1/orgs/{org}/workspaces/{workspace}/root-windows/break-glass", tag = "root",
    request_body = NewWindow, responses((status = 201, body = Shown)),
    extensions(("x-envforge-action" = json!("root.break_glass"))))]
async fn break_glass(
    State(state): State<RootWindows>,
    Path((org, workspace)): Path<(String, String)>,
    request: Write<Json<NewWindow>>,
) -> Result<Written<Shown>, Problem> {
    state.open(&org, &workspace, request, RootMode::BreakGlass).await
}

/// One root window.
#[utoipa::path(get, path = "/v1/orgs/{org}/root-windows/{window}", tag = "root", responses((status = 200, body = Shown)),
    extensions(("x-envforge-action" = json!("root.read"))))]
async fn get(
    State(state): State<RootWindows>,
    caller: Caller,
    Path((org, window)): Path<(String, String)>,
    at: AtLeast,
) -> Result<axum::Json<Shown>, Problem> {
    let (resource, _) = state.named(&org, &window).await?;
    let permit = state.access.permit(&caller, Action::RootRead, resource).await?;
    let known = state.reads.root_window(&permit, at).await?;
    let image_change = known.state.image_change();
    let shown = Shown::of(known, caller.arrival.now, state.reads.hot()).ok_or_else(Problem::not_found)?;
    Ok(axum::Json(Shown { image_change, ..shown }))
}

/// Approve somebody else's request. Nobody approves their own, whatever their roles, nor by an account, a membership or a role that
/// they have from whoever asked.
#[utoipa::path(post, path = "/v1/orgs/{org}/root-windows/{window}/approve", tag = "root",
    responses((status = 200, body = Shown)), extensions(("x-envforge-action" = json!("root.approve"))))]
async fn approve(
    State(state): State<RootWindows>,
    Path((org, window)): Path<(String, String)>,
    request: Write<Empty>,
) -> Result<Written<Shown>, Problem> {
    let Write { caller, context, .. } = request;
    let (resource, id) = state.named(&org, &window).await?;
    let permit = state.access.permit(&caller, Action::RootApprove, resource).await?;
    let done = act!(state.access, &caller, permit, async {
        still_stands(&state.access, id, context.now)?;
        root_windows::approve(&state.commands, permit, &context, id).await
    });
    state.shown(&caller, id, &done).await
}

/// Deny somebody else's request.
#[utoipa::path(post, path = "/v1/orgs/{org}/root-windows/{window}/deny", tag = "root", request_body = Option<RootAnswer>,
    responses((status = 200, body = Shown)), extensions(("x-envforge-action" = json!("root.deny"))))]
async fn deny(
    State(state): State<RootWindows>,
    Path((org, window)): Path<(String, String)>,
    request: Write<Optional<RootAnswer>>,
) -> Result<Written<Shown>, Problem> {
    let Write { caller, body: Optional(answer), context } = request;
    let (resource, id) = state.named(&org, &window).await?;
    let permit = state.access.permit(&caller, Action::RootDeny, resource).await?;
    let reason = answer.reason;
    let done =
        act!(state.access, &caller, permit, root_windows::deny(&state.commands, permit, &context, id, reason.clone()));
    state.shown(&caller, id, &done).await
}

/// Give up one's own window. What runs in it is killed at once.
#[utoipa::path(post, path = "/v1/orgs/{org}/root-windows/{window}/withdraw", tag = "root",
    responses((status = 200, body = Shown)), extensions(("x-envforge-action" = json!("root.withdraw"))))]
async fn withdraw(
    State(state): State<RootWindows>,
    Path((org, window)): Path<(String, String)>,
    request: Write<Empty>,
) -> Result<Written<Shown>, Problem> {
    let Write { caller, context, .. } = request;
    let (resource, id) = state.named(&org, &window).await?;
    let permit = state.access.permit(&caller, Action::RootWithdraw, resource).await?;
    let done = act!(state.access, &caller, permit, root_windows::withdraw(&state.commands, permit, &context, id));
    state.shown(&caller, id, &done).await
}

/// Revoke a window, or a request. What runs in it is killed at once.
#[utoipa::path(post, path = "/v1/orgs/{org}/root-windows/{window}/revoke", tag = "root", request_body = Option<RootAnswer>,
    responses((status = 200, body = Shown)), extensions(("x-envforge-action" = json!("root.revoke"))))]
async fn revoke(
    State(state): State<RootWindows>,
    Path((org, window)): Path<(String, String)>,
    request: Write<Optional<RootAnswer>>,
) -> Result<Written<Shown>, Problem> {
    let Write { caller, body: Optional(answer), context } = request;
    let (resource, id) = state.named(&org, &window).await?;
    let permit = state.access.permit(&caller, Action::RootRevoke, resource).await?;
    let reason = answer.reason;
    let done = act!(
        state.access,
        &caller,
        permit,
        root_windows::revoke(&state.commands, permit, &context, id, reason.clone())
    );
    state.shown(&caller, id, &done).await
}

/// Run the window's one command as root on the workspace's host. The host kills it, with all it started, when the window ends.
#[utoipa::path(post, path = "/v1/orgs/{org}/root-windows/{window}/run", tag = "root", request_body = RootRun,
    responses((status = 202, body = Shown)), extensions(("x-envforge-action" = json!("root.run"))))]
async fn run(
    State(state): State<RootWindows>,
    Path((org, window)): Path<(String, String)>,
    request: Write<Json<RootRun>>,
) -> Result<Written<Shown>, Problem> {
    let Write { caller, body: Json(run), context } = request;
    let (resource, id) = state.named(&org, &window).await?;
    let permit = state.access.permit(&caller, Action::RootRun, resource).await?;
    let words = run.command;
    if words.is_empty() {
        let (max_words, max_chars) = (ROOT_COMMAND_WORDS_MAX, ROOT_COMMAND_CHARS_MAX);
        return Err(CommandError::Refused(Box::new(RootWindowRefusal::Command { max_words, max_chars })).into());
    }
    let done = act!(state.access, &caller, permit, async {
        still_stands(&state.access, id, context.now)?;
        root_windows::run(&state.commands, permit, &context, id, words.clone()).await
    });
    Ok(Written::accepted(&done, state.as_of(&caller, id, &done).await?))
}

/// What the command has written so far, for whoever asked for it. Kept in the host's memory alone.
#[utoipa::path(get, path = "/v1/orgs/{org}/root-windows/{window}/output", tag = "root",
    responses((status = 200, body = RootOutput)), extensions(("x-envforge-action" = json!("root.run"))))]
async fn output(
    State(state): State<RootWindows>,
    caller: Caller,
    Path((org, window)): Path<(String, String)>,
) -> Result<axum::Json<RootOutput>, Problem> {
    let (resource, id) = state.named(&org, &window).await?;
    state.access.permit(&caller, Action::RootRun, resource).await?;
    let known = state.access.hot().authorization.root_window(id).ok_or_else(Problem::not_found)?;
    if known.state.terms().is_none_or(|terms| terms.requester != caller.user) {
        return Err(CommandError::Refused(Box::new(RootWindowRefusal::NotYours)).into());
    }
    let unknown = |why| RootOutput { text: None, dropped_bytes: 0, unknown: Some(why) };
    let (Some(hosts), Some(workspace)) = (&state.hosts, resource.workspace()) else {
        return Ok(axum::Json(unknown("host_elsewhere")));
    };
    Ok(axum::Json(match hosts.host().root_output(resource.org(), workspace, id).await {
        Err(ShellFailure::HostElsewhere) => unknown("host_elsewhere"),
        Err(_) => unknown("host_out_of_reach"),
        Ok(None) => unknown("none_kept"),
        Ok(Some((text, dropped_bytes))) => RootOutput { text: Some(text), dropped_bytes, unknown: None },
    }))
}

/// Review somebody else's break-glass window, once it is over: by what one does not have from whoever opened it. The next one may be
/// opened from then on.
#[utoipa::path(post, path = "/v1/orgs/{org}/root-windows/{window}/review", tag = "root", request_body = RootReview,
    responses((status = 200, body = Shown)), extensions(("x-envforge-action" = json!("root.review"))))]
async fn review(
    State(state): State<RootWindows>,
    Path((org, window)): Path<(String, String)>,
    request: Write<Json<RootReview>>,
) -> Result<Written<Shown>, Problem> {
    let Write { caller, body: Json(found), context } = request;
    let (resource, id) = state.named(&org, &window).await?;
    let permit = state.access.permit(&caller, Action::RootReview, resource).await?;
    let (justified, note) = (found.justified, found.note);
    let done = act!(
        state.access,
        &caller,
        permit,
        root_windows::review(&state.commands, permit, &context, id, justified, note.clone())
    );
    state.shown(&caller, id, &done).await
}

fn access_of(token: Option<&str>) -> Result<RootAccess, Problem> {
    let tokens = RootAccess::ALL.map(RootAccess::token);
    let read = |token| RootAccess::from_token(token).ok_or_else(|| Problem::value("access", tokens.join(", ")));
    token.map_or(Ok(RootAccess::Command), read)
}

/// Refused where its requester's right, or the policy, has ended it: held against views that are at least as fresh as the
/// permit, which the append guards.
pub(super) fn still_stands(access: &Access, window: RootWindowId, now: UnixMillis) -> Result<(), CommandError> {
    match access.hot().authorization.root_window(window) {
        Some(known) if known.right_lost && !known.stands(now) => {
            Err(CommandError::Refused(Box::new(RootWindowRefusal::RightLost)))
        }
        // Its own time is the domain's to hold.
        Some(_) | None => Ok(()),
    }
}

impl RootWindows {
    async fn open(
        &self,
        org: &str,
        workspace: &str,
        request: Write<Json<NewWindow>>,
        mode: RootMode,
    ) -> Result<Written<Shown>, Problem> {
        let Write { caller, body: Json(new), context } = request;
        let org = self.access.org(org).await?;
        let resource = self.access.workspace(org, workspace).await?;
        let permit = self.access.permit(&caller, mode.ground(), resource).await?;
        let workspace = resource.workspace().ok_or_else(Problem::not_found)?;
        let new = NewRootWindow {
            workspace,
            mode,
            access: access_of(new.access.as_deref())?,
            reason: new.reason,
            length: new.minutes.map(Millis::from_minutes),
            pending: 0,
        };
        let (window, done) = act!(self.access, &caller, permit, async {
            let views = &self.access.hot().authorization;
            let pending = views.root_requests_pending(org, caller.user, workspace, context.now);
            let new = NewRootWindow { pending, ..new.clone() };
            root_windows::request(&self.commands, permit, &context, new).await
        });
        Ok(Written::created(&done, self.as_of(&caller, window, &done).await?))
    }

    async fn named(&self, org: &str, window: &str) -> Result<(Resource, RootWindowId), Problem> {
        let org = self.access.org(org).await?;
        match self.access.root_window(org, window).await? {
            resource @ Resource::RootWindow { window, .. } => Ok((resource, window)),
            _ => Err(Problem::not_found()),
        }
    }

    async fn shown(&self, caller: &Caller, window: RootWindowId, done: &Done) -> Result<Written<Shown>, Problem> {
        Ok(Written::ok(done, self.as_of(caller, window, done).await?))
    }

    async fn as_of(&self, caller: &Caller, window: RootWindowId, done: &Done) -> Result<Shown, Problem> {
        self.reads.hot_at(AtLeast(done.position)).await?;
        let known = self.access.hot().authorization.root_window(window);
        let shown = known.and_then(|known| Shown::of(known, caller.arrival.now, self.reads.hot()));
        shown.ok_or_else(|| Problem::internal("a root window without its events"))
    }
}
