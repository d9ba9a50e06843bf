//! Who am I, and what may I do here.

use axum::extract::State;
use envforge_commands::{Commands, users};
use envforge_domain::access::{Action, Grantee};
use envforge_domain::user::UserCommand;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::has_access;
use super::roles::scope_ids;
use crate::access::{Access, Caller, act};
use crate::instant::Instant;
use crate::problem::Problem;
use crate::reads::{AtLeast, Reads};
use crate::request_body::Json;
use crate::write::{Happened, Write};

#[derive(Clone)]
pub(crate) struct Me {
    pub(crate) access: Access,
    pub(crate) commands: Commands,
    pub(crate) reads: Reads,
}

has_access!(Me);

pub(crate) fn routes() -> OpenApiRouter<Me> {
    OpenApiRouter::new().routes(routes!(me, change))
}

/// What a person may change about themselves.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ProfileChange {
    /// 1 to 120 characters.
    name: String,
}

/// The caller, with the roles that they hold now.
#[derive(Serialize, ToSchema)]
struct Profile {
    id: String,
    email: String,
    name: String,
    created_at: Instant,
    session: String,
    org: ProfileOrg,
    roles: Vec<HeldRole>,
    teams: Vec<ProfileTeam>,
}

#[derive(Serialize, ToSchema)]
struct ProfileTeam {
    id: String,
    slug: String,
}

#[derive(Serialize, ToSchema)]
struct ProfileOrg {
    id: String,
    slug: String,
    name: String,
}

#[derive(Serialize, ToSchema)]
struct HeldRole {
    role: String,
    /// The project where it counts; `null` for the whole organization.
    project: Option<String>,
    /// The one workspace of the project where it counts; `null` for all of them.
    workspace: Option<String>,
    /// The team through which it is held; `null` for the caller's own.
    team: Option<String>,
    expires_at: Option<Instant>,
}

/// Who the caller is.
#[utoipa::path(get, path = "/v1/me", tag = "auth", responses((status = 200, body = Profile)),
    extensions(("x-envforge-action" = json!("profile.read"))))]
async fn me(State(state): State<Me>, caller: Caller, at: AtLeast) -> Result<axum::Json<Profile>, Problem> {
    let permit = state.access.permit(&caller, Action::ProfileRead, caller.own()).await?;
    let profile = state.reads.profile(&permit, at).await?;
    let grants = state.reads.hot().authorization.grants(permit.org(), caller.user, caller.arrival.now);
    let teams = state.reads.hot().authorization.teams_of(permit.org(), caller.user);
    let roles = grants
        .into_iter()
        .map(|grant| {
            let (project, workspace) = scope_ids(grant.scope);
            HeldRole {
                role: grant.role.token().to_owned(),
                project,
                workspace,
                team: match grant.grantee {
                    Grantee::User(_) => None,
                    Grantee::Team(team) => Some(team.to_string()),
                },
                expires_at: grant.expires_at.map(Instant),
            }
        })
        .collect();
    Ok(axum::Json(Profile {
        id: profile.user.id.to_string(),
        email: profile.user.email,
        name: profile.user.name,
        created_at: profile.user.created_at.into(),
        session: caller.session_id()?.to_string(),
        org: ProfileOrg {
            id: profile.organization.id.to_string(),
            slug: profile.organization.slug.to_string(),
            name: profile.organization.name,
        },
        roles,
        teams: teams.into_iter().map(|(id, slug)| ProfileTeam { id: id.to_string(), slug: slug.to_string() }).collect(),
    }))
}

/// Change how one is called.
#[utoipa::path(patch, path = "/v1/me", tag = "auth", request_body = ProfileChange, responses((status = 204)),
    extensions(("x-envforge-action" = json!("profile.change"))))]
async fn change(State(state): State<Me>, request: Write<Json<ProfileChange>>) -> Result<Happened, Problem> {
    let Write { caller, body: Json(change), context } = request;
    let permit = state.access.permit(&caller, Action::ProfileChange, caller.own()).await?;
    let command = UserCommand::ChangeProfile { name: change.name };
    let done =
        act!(state.access, &caller, permit, users::change(&state.commands, permit, &context, caller.user, &command));
    Ok(Happened::new(&done))
}
