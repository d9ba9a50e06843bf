//! Teams: who is in them. Which roles they hold is given and taken like anybody's, see `roles`.

use axum::extract::State;
use envforge_commands::{Commands, organizations};
use envforge_domain::access::{Action, Resource};
use envforge_domain::ids::{OrgId, TeamId, UserId};
use envforge_domain::organization::OrganizationCommand;
use envforge_domain::slug::TeamSlug;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::has_access;
use super::roles::ScopedRole;
use crate::access::{Access, Caller, act};
use crate::page::{Page, Path, Query, Slice};
use crate::problem::Problem;
use crate::reads::Reads;
use crate::request_body::{Empty, Json};
use crate::revocation::{Receipt, Revocations};
use crate::write::{Write, Written};

#[derive(Clone)]
pub(crate) struct Teams {
    pub(crate) access: Access,
    pub(crate) commands: Commands,
    pub(crate) reads: Reads,
    pub(crate) revocations: Revocations,
}

has_access!(Teams);

pub(crate) fn routes() -> OpenApiRouter<Teams> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(get, rename, delete))
        .routes(routes!(add_member))
        .routes(routes!(remove_member))
}

#[derive(Serialize, ToSchema)]
struct Team {
    id: String,
    slug: String,
    members: u64,
    roles: Vec<ScopedRole>,
}

#[derive(Serialize, ToSchema)]
struct TeamWithMembers {
    id: String,
    slug: String,
    members: Vec<TeamMember>,
    roles: Vec<ScopedRole>,
}

#[derive(Serialize, ToSchema)]
struct TeamMember {
    user: String,
    name: Option<String>,
    email: Option<String>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct TeamName {
    /// Lower-case letters, digits and single hyphens; unique among the teams of the organization.
    slug: String,
}

#[derive(Serialize, ToSchema)]
struct NamedTeam {
    id: String,
    slug: String,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewTeamMember {
    /// A member of the organization.
    user: String,
}

#[derive(Serialize, ToSchema)]
struct AddedTeamMember {
    team: String,
    user: String,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// 1 to 200; 50 where it is left out.
    limit: Option<u64>,
    /// `next` of the page before.
    after: Option<String>,
}

/// The teams of an organization, with the roles that their members hold through them.
#[utoipa::path(get, path = "/v1/orgs/{org}/teams", tag = "teams", params(ListQuery),
    responses((status = 200, body = Page<Team>)), extensions(("x-envforge-action" = json!("team.read"))))]
async fn list(
    State(state): State<Teams>,
    caller: Caller,
    Path(org): Path<String>,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<Page<Team>>, Problem> {
    let org = state.access.org(&org).await?;
    let permit = state.access.permit(&caller, Action::TeamRead, Resource::Organization(org)).await?;
    let slice = Slice::new(query.limit, query.after.as_deref())?;
    let page = state.reads.teams(&permit, &slice)?;
    Ok(axum::Json(Page::of(page, |team| Team {
        id: team.team.to_string(),
        slug: team.slug.to_string(),
        members: team.members.len() as u64,
        roles: team.grants.into_iter().map(ScopedRole::from).collect(),
    })))
}

/// One team, with everybody who is in it.
#[utoipa::path(get, path = "/v1/orgs/{org}/teams/{team}", tag = "teams",
    responses((status = 200, body = TeamWithMembers)), extensions(("x-envforge-action" = json!("team.read"))))]
async fn get(
    State(state): State<Teams>,
    caller: Caller,
    Path((org, team)): Path<(String, String)>,
) -> Result<axum::Json<TeamWithMembers>, Problem> {
    let org = state.access.org(&org).await?;
    let permit = state.access.permit(&caller, Action::TeamRead, Resource::Organization(org)).await?;
    let team = state.reads.team(&permit, state.access.team(org, &team))?;
    let authorization = &state.reads.hot().authorization;
    let member = |user: UserId| {
        let known = authorization.user(user);
        TeamMember {
            user: user.to_string(),
            name: known.as_ref().map(|known| known.name.clone()),
            email: known.map(|known| known.email),
        }
    };
    Ok(axum::Json(TeamWithMembers {
        id: team.team.to_string(),
        slug: team.slug.to_string(),
        members: team.members.into_iter().map(member).collect(),
        roles: team.grants.into_iter().map(ScopedRole::from).collect(),
    }))
}

/// Create a team. It holds no role until one is given.
#[utoipa::path(post, path = "/v1/orgs/{org}/teams", tag = "teams", request_body = TeamName,
    responses((status = 201, body = NamedTeam)), extensions(("x-envforge-action" = json!("team.create"))))]
async fn create(
    State(state): State<Teams>,
    Path(org): Path<String>,
    request: Write<Json<TeamName>>,
) -> Result<Written<NamedTeam>, Problem> {
    let Write { caller, body: Json(new), context } = request;
    let org = state.access.org(&org).await?;
    let permit = state.access.permit(&caller, Action::TeamCreate, Resource::Organization(org)).await?;
    let team = TeamId::from_uuid(context.new_id());
    let command = OrganizationCommand::CreateTeam { team, slug: slug(&new)? };
    let done = act!(state.access, &caller, permit, organizations::change(&state.commands, permit, &context, &command));
    Ok(Written::created(&done, NamedTeam { id: team.to_string(), slug: new.slug }))
}

/// Call a team something else. Its members and roles stay.
#[utoipa::path(patch, path = "/v1/orgs/{org}/teams/{team}", tag = "teams", request_body = TeamName,
    responses((status = 200, body = NamedTeam)), extensions(("x-envforge-action" = json!("team.rename"))))]
async fn rename(
    State(state): State<Teams>,
    Path((org, team)): Path<(String, String)>,
    request: Write<Json<TeamName>>,
) -> Result<Written<NamedTeam>, Problem> {
    let Write { caller, body: Json(new), context } = request;
    let org = state.access.org(&org).await?;
    let permit = state.access.permit(&caller, Action::TeamRename, Resource::Organization(org)).await?;
    let team = state.access.team(org, &team);
    let command = OrganizationCommand::RenameTeam { by: caller.actor(), team, slug: slug(&new)?, now: context.now };
    let done = act!(state.access, &caller, permit, organizations::change(&state.commands, permit, &context, &command));
    Ok(Written::ok(&done, NamedTeam { id: team.to_string(), slug: new.slug }))
}

/// Delete a team, with all its roles. Whatever its members could do through it alone is over at once.
#[utoipa::path(delete, path = "/v1/orgs/{org}/teams/{team}", tag = "teams",
    responses((status = 200, body = Receipt)), extensions(("x-envforge-action" = json!("team.delete"))))]
async fn delete(
    State(state): State<Teams>,
    Path((org, team)): Path<(String, String)>,
    request: Write<Empty>,
) -> Result<Written<Receipt>, Problem> {
    let Write { caller, context, .. } = request;
    let org = state.access.org(&org).await?;
    let permit = state.access.permit(&caller, Action::TeamDelete, Resource::Organization(org)).await?;
    let team = state.access.team(org, &team);
    let command = OrganizationCommand::DeleteTeam { by: caller.actor(), team, now: context.now };
    let changing = Revocations::changing();
    let done = act!(state.access, &caller, permit, organizations::change(&state.commands, permit, &context, &command));
    let receipt = state.revocations.changed(&caller, Resource::Organization(org), changing, &done, &context).await;
    Ok(Written::ok(&done, receipt))
}

/// Put a member into a team, which gives them its roles: only who could give each of them may.
#[utoipa::path(post, path = "/v1/orgs/{org}/teams/{team}/members", tag = "teams", request_body = NewTeamMember,
    responses((status = 201, body = AddedTeamMember)), extensions(("x-envforge-action" = json!("team.add_member"))))]
async fn add_member(
    State(state): State<Teams>,
    Path((org, team)): Path<(String, String)>,
    request: Write<Json<NewTeamMember>>,
) -> Result<Written<AddedTeamMember>, Problem> {
    let Write { caller, body: Json(new), context } = request;
    let org: OrgId = state.access.org(&org).await?;
    let permit = state.access.permit(&caller, Action::TeamAddMember, Resource::Organization(org)).await?;
    let user = new.user.parse().map_err(|error| Problem::value("user", error))?;
    let team = state.access.team(org, &team);
    let command = OrganizationCommand::AddTeamMember { by: caller.actor(), team, user, now: context.now };
    let done = act!(state.access, &caller, permit, organizations::change(&state.commands, permit, &context, &command));
    Ok(Written::created(&done, AddedTeamMember { team: team.to_string(), user: user.to_string() }))
}

/// Take somebody out of a team. What they could do through it alone is over at once, in what is open already too.
#[utoipa::path(delete, path = "/v1/orgs/{org}/teams/{team}/members/{user}", tag = "teams",
    responses((status = 200, body = Receipt)), extensions(("x-envforge-action" = json!("team.remove_member"))))]
async fn remove_member(
    State(state): State<Teams>,
    Path((org, team, user)): Path<(String, String, String)>,
    request: Write<Empty>,
) -> Result<Written<Receipt>, Problem> {
    let Write { caller, context, .. } = request;
    let org = state.access.org(&org).await?;
    let permit = state.access.permit(&caller, Action::TeamRemoveMember, Resource::Organization(org)).await?;
    let user = user.parse().map_err(|_| Problem::not_found())?;
    let team = state.access.team(org, &team);
    let command = OrganizationCommand::RemoveTeamMember { by: caller.actor(), team, user, now: context.now };
    let changing = Revocations::changing();
    let done = act!(state.access, &caller, permit, organizations::change(&state.commands, permit, &context, &command));
    let receipt = state.revocations.changed(&caller, Resource::Organization(org), changing, &done, &context).await;
    Ok(Written::ok(&done, receipt))
}

fn slug(name: &TeamName) -> Result<TeamSlug, Problem> {
    name.slug.parse().map_err(|error| Problem::value("slug", error))
}
