//! The shell of a root window, on the terminal of whoever asked for it; another one where that was lost.
//!
//! Not here: the window's life (`root_windows`), and running the shell: its host hears of it from the log, and this connection meets it
//! there. It ends with the connection, and the window with it.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::response::Response;
use envforge_commands::{CommandError, root_windows};
use envforge_domain::access::{Action, Resource};
use envforge_domain::ids::{RootWindowId, WorkspaceId};
use envforge_domain::limits::ROOT_WINDOW_MAX;
use envforge_domain::root_window::{OverWindow, RootAccess, RootOutcome, RootOver, RootWindow, RootWindowRefusal};
use envforge_domain::shell::{ShellEnd, ShellFailure, ShellWhat};
use envforge_domain::time::SharedClock;
use futures_util::FutureExt as _;
use http::HeaderMap;
use serde_json::json;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::root_windows::still_stands;
use super::shells::{Order, ShellEndpoints, upgraded};
use crate::access::{Access, Caller, act};
use crate::page::Path;
use crate::problem::Problem;
use crate::shell_host::OpenShell;
use crate::shell_socket::{Client, Ground, Verdict};

/// How often the window is looked at while its shell is on its way.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// For the log to hear how a shell ended, before its person is told what the host said.
const OUTCOME_WAIT: Duration = Duration::from_secs(3);

pub(crate) fn routes() -> OpenApiRouter<ShellEndpoints> {
    OpenApiRouter::new().routes(routes!(shell))
}

/// Open the shell of a root window that was asked for with `access: shell`: a WebSocket as of the workspace's shell, with a terminal
/// as its order. What is typed and shown is kept nowhere. The host kills it, with all it started, when the window ends; `end` is the
/// outcome that the window then shows.
#[utoipa::path(get, path = "/v1/orgs/{org}/root-windows/{window}/shell", tag = "root",
    responses((status = 101, description = "The connection is a WebSocket now.")),
    extensions(("x-envforge-action" = json!("root.run"))))]
async fn shell(
    State(state): State<ShellEndpoints>,
    caller: Caller,
    Path((org, window)): Path<(String, String)>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let org = state.access.org(&org).await?;
    let resource = state.access.root_window(org, &window).await?;
    let Resource::RootWindow { workspace, window, .. } = resource else { return Err(Problem::not_found()) };
    state.access.permit(&caller, Action::RootRun, resource).await?;
    // Nobody but whoever asked for it, in a session of theirs.
    caller.session_id()?;
    let known = state.access.hot().authorization.root_window(window).ok_or_else(Problem::not_found)?;
    if known.state.terms().is_none_or(|terms| terms.requester != caller.user) {
        return Err(CommandError::Refused(Box::new(RootWindowRefusal::NotYours)).into());
    }
    let (upgrade, open) = state.admit(&caller, &headers, upgrade)?;
    if known.state.terms().is_some_and(|terms| terms.access != RootAccess::Shell) {
        return Err(CommandError::Refused(Box::new(RootWindowRefusal::ForCommand)).into());
    }
    let ground = state.ground_on(&caller, Action::RootRun, resource);
    Ok(upgraded(upgrade, move |socket| async move {
        let held = state.hold(&ground);
        state.serve_root(Client::new(socket), ground, workspace, window).await;
        drop((open, held));
    }))
}

/// Why the shell is over, in the words of its window's outcomes. What its host says of its own process is believed; whether the window
/// was over, and by whom, is the log's to say, which hears of it from the host at the same time.
async fn verdict(access: Access, clock: SharedClock, window: RootWindowId, end: ShellEnd) -> &'static str {
    if !matches!(end, ShellEnd::TimeOver | ShellEnd::RightLost | ShellEnd::Lost) {
        return end.token();
    }
    let looks = OUTCOME_WAIT.as_millis() / LOOK_INTERVAL.as_millis();
    for _ in 0..looks {
        let Some(known) = access.hot().authorization.root_window(window) else { break };
        if let Some(ended) = known.state.command().and_then(|command| command.ended.as_ref()) {
            return ended.outcome.token();
        }
        match &known.state {
            RootWindow::Over(OverWindow { over: RootOver::Revoked, .. }) => return RootOutcome::Revoked.token(),
            RootWindow::Over(OverWindow { over: RootOver::Withdrawn, .. }) => return RootOutcome::Withdrawn.token(),
            _ if known.right_lost => return RootOutcome::RightLost.token(),
            _ if known.ends_at.is_some_and(|ends_at| ends_at <= clock.now()) => return RootOutcome::Deadline.token(),
            _ => tokio::time::sleep(LOOK_INTERVAL).await,
        }
    }
    match end {
        ShellEnd::TimeOver => RootOutcome::Deadline.token(),
        end => end.token(),
    }
}

impl ShellEndpoints {
    async fn serve_root(self, mut client: Client, ground: Ground, workspace: WorkspaceId, window: RootWindowId) {
        let Some(order) = client.order::<Order>().await else { return };
        match self.begin_root(&ground, workspace, window, order).await {
            Err(problem) => client.refuse(&problem).await,
            Ok(open) => {
                self.opened_by_runtime(&ground);
                client.say(&json!({ "type": "opened", "lasting": false })).await;
                let (access, clock) = (self.access.clone(), ground.clock.clone());
                let verdict: Verdict = Arc::new(move |end| verdict(access.clone(), clock.clone(), window, end).boxed());
                client.carry(open, &ground, ROOT_WINDOW_MAX.to_duration(), self.stop(), Some(verdict)).await;
            }
        }
    }

    async fn begin_root(
        &self,
        ground: &Ground,
        workspace: WorkspaceId,
        window: RootWindowId,
        order: Order,
    ) -> Result<OpenShell, Problem> {
        let ShellWhat::Terminal { size, term, words, .. } = ShellWhat::try_from(order)? else {
            return Err(Problem::value("open", "a terminal: the shell of a root window is on one"));
        };
        if !words.is_empty() {
            return Err(Problem::value("words", "none: the window is for a shell"));
        }
        self.until_ended(window).await;
        let (host, org) = (self.host()?.host(), ground.resource.org());
        // A host that is out of reach would be waited for in vain, in a window that is open by then.
        host.place(org, workspace)?;
        let caller = ground.caller_now();
        let permit = self.access.permit(&caller, ground.action, ground.resource).await?;
        let context = self.context(ground);
        act!(self.access, &caller, permit, async {
            still_stands(&self.access, window, context.now)?;
            root_windows::run(self.commands(), permit, &context, window, Vec::new()).await
        });
        let why = tokio::select! {
            came = host.attach_root(org, workspace, window, size, term) => return came.map_err(Problem::from),
            why = self.over_before(window) => why,
            _ = ground.until_ended() => "the right to it does not stand any more",
        };
        Err(ShellFailure::NotStarted { reason: why.to_owned() }.into())
    }

    /// Whoever comes back is there before the host has said that what they lost has ended. One that somebody sits before is waited for in vain.
    async fn until_ended(&self, window: RootWindowId) {
        let looks = OUTCOME_WAIT.as_millis() / LOOK_INTERVAL.as_millis();
        for _ in 0..looks {
            let known = self.access.hot().authorization.root_window(window);
            let command = known.as_ref().and_then(|known| known.state.command());
            if command.is_none_or(|command| command.ended.is_some()) {
                return;
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Why no shell comes to be any more.
    async fn over_before(&self, window: RootWindowId) -> &'static str {
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            let Some(known) = self.access.hot().authorization.root_window(window) else { continue };
            let ended = known.state.command().and_then(|command| command.ended.as_ref());
            match ended.map(|ended| ended.outcome) {
                Some(RootOutcome::NoRoot) => {
                    return "EnvForge is not root on the workspace's host, so it cannot give root";
                }
                Some(_) => return "its host did not begin it",
                None if matches!(known.state, RootWindow::Over(_)) => return "the root window is over",
                None => {}
            }
        }
    }
}
