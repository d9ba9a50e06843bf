//! Where people are signed in: their own sessions, and members' for administrators.

use std::sync::Arc;

use axum::extract::State;
use envforge_commands::{Commands, users};
use envforge_domain::access::{Action, Resource};
use envforge_domain::ids::{SessionId, UserId};
use envforge_domain::session::SessionEnd;
use envforge_domain::user::UserCommand;
use envforge_identity::sign_in::Identity;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::has_access;
use crate::access::{Access, Caller, act};
use crate::page::{Page, Path};
use crate::problem::Problem;
use crate::request_body::Empty;
use crate::revocation::Receipt;
use crate::sessions::{SessionShown, Sessions};
use crate::write::{Write, Written};

#[derive(Clone)]
pub(crate) struct People {
    pub(crate) access: Access,
    pub(crate) identity: Arc<Identity>,
    pub(crate) commands: Commands,
    pub(crate) sessions: Sessions,
}

has_access!(People);

pub(crate) fn routes() -> OpenApiRouter<People> {
    OpenApiRouter::new()
        .routes(routes!(own))
        .routes(routes!(revoke_own))
        .routes(routes!(of_member, revoke_all_of_member))
        .routes(routes!(revoke_of_member))
}

/// One's own open sessions, the newest first.
#[utoipa::path(get, path = "/v1/me/sessions", tag = "sessions", responses((status = 200, body = Page<SessionShown>)),
    extensions(("x-envforge-action" = json!("session.read_own"))))]
async fn own(State(state): State<People>, caller: Caller) -> Result<axum::Json<Page<SessionShown>>, Problem> {
    let permit = state.access.permit(&caller, Action::SessionReadOwn, caller.own()).await?;
    // A person has at most 60: one page.
    Ok(axum::Json(Page { items: state.sessions.list(&permit, &caller).await?, next: None }))
}

/// End one of one's own sessions.
#[utoipa::path(delete, path = "/v1/me/sessions/{session}", tag = "sessions",
    responses((status = 200, body = Receipt)), extensions(("x-envforge-action" = json!("session.revoke_own"))))]
async fn revoke_own(
    State(state): State<People>,
    Path(session): Path<String>,
    request: Write<Empty>,
) -> Result<Written<Receipt>, Problem> {
    let Write { caller, context, .. } = request;
    let permit = state.access.permit(&caller, Action::SessionRevokeOwn, caller.own()).await?;
    let session: SessionId = session.parse().map_err(|_| Problem::not_found())?;
    let revoking = state.sessions.revoking(caller.org, caller.user, SessionEnd::LoggedOut, context.now).await?;
    let end = UserCommand::EndOwnSession { session };
    let done = act!(state.access, &caller, permit, users::change(&state.commands, permit, &context, caller.user, &end));
    if done.events.is_empty() && !done.duplicate {
        return Err(Problem::not_found());
    }
    state.identity.sessions().revoke_session(session, context.now).await?;
    let receipt = state.sessions.receipt(revoking, &done, caller.surface, &context).await?;
    Ok(Written::ok(&done, receipt))
}

/// A member's open sessions.
#[utoipa::path(get, path = "/v1/orgs/{org}/members/{user}/sessions", tag = "sessions",
    responses((status = 200, body = Page<SessionShown>)), extensions(("x-envforge-action" = json!("session.read"))))]
async fn of_member(
    State(state): State<People>,
    caller: Caller,
    Path((org, user)): Path<(String, String)>,
) -> Result<axum::Json<Page<SessionShown>>, Problem> {
    let org = state.access.org(&org).await?;
    let user: UserId = user.parse().map_err(|_| Problem::not_found())?;
    let permit = state.access.permit(&caller, Action::SessionRead, Resource::User { org, user }).await?;
    Ok(axum::Json(Page { items: state.sessions.list(&permit, &caller).await?, next: None }))
}

/// End all sessions of a member.
#[utoipa::path(delete, path = "/v1/orgs/{org}/members/{user}/sessions", tag = "sessions",
    responses((status = 200, body = Receipt)), extensions(("x-envforge-action" = json!("session.revoke"))))]
async fn revoke_all_of_member(
    State(state): State<People>,
    Path((org, user)): Path<(String, String)>,
    request: Write<Empty>,
) -> Result<Written<Receipt>, Problem> {
    state.revoke_of_member(&org, &user, None, request).await
}

/// End one session of a member.
#[utoipa::path(delete, path = "/v1/orgs/{org}/members/{user}/sessions/{session}", tag = "sessions",
    responses((status = 200, body = Receipt)), extensions(("x-envforge-action" = json!("session.revoke"))))]
async fn revoke_of_member(
    State(state): State<People>,
    Path((org, user, session)): Path<(String, String, String)>,
    request: Write<Empty>,
) -> Result<Written<Receipt>, Problem> {
    let session: SessionId = session.parse().map_err(|_| Problem::not_found())?;
    state.revoke_of_member(&org, &user, Some(session), request).await
}

impl People {
    /// Nobody ends sessions of those who stand above them.
    async fn revoke_of_member(
        &self,
        org: &str,
        user: &str,
        session: Option<SessionId>,
        request: Write<Empty>,
    ) -> Result<Written<Receipt>, Problem> {
        let Write { caller, context, .. } = request;
        let org = self.access.org(org).await?;
        let user: UserId = user.parse().map_err(|_| Problem::not_found())?;
        let permit = self.access.permit(&caller, Action::SessionRevoke, Resource::User { org, user }).await?;
        let revoking = self.sessions.revoking(org, user, SessionEnd::Revoked, context.now).await?;
        let done =
            act!(self.access, &caller, permit, users::revoke_sessions(&self.commands, permit, &context, user, session));
        if session.is_some() && done.events.is_empty() && !done.duplicate {
            return Err(Problem::not_found());
        }
        match session {
            Some(session) => self.identity.sessions().revoke_session(session, context.now).await?,
            None => self.identity.sessions().revoke_user(user, context.now).await?,
        }
        let receipt = self.sessions.receipt(revoking, &done, caller.surface, &context).await?;
        Ok(Written::ok(&done, receipt))
    }
}
