//! Roles: given to and taken from users and teams, for the whole organization or one project.

use axum::extract::State;
use envforge_commands::{Commands, organizations};
use envforge_domain::access::{Action, Grant, Grantee, Resource, Role, Scope};
use envforge_domain::commit::StreamId;
use envforge_domain::ids::OrgId;
use envforge_domain::organization::OrganizationCommand;
use envforge_domain::project::Project;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::has_access;
use crate::access::{Access, act};
use crate::instant::{self, Instant};
use crate::page::{Path, Query};
use crate::problem::Problem;
use crate::request_body::{Empty, Json};
use crate::write::{Happened, Write, Written};

#[derive(Clone)]
pub(crate) struct Roles {
    pub(crate) access: Access,
    pub(crate) commands: Commands,
}

has_access!(Roles);

pub(crate) fn routes() -> OpenApiRouter<Roles> {
    OpenApiRouter::new().routes(routes!(assign, revoke))
}

/// A role to give. Exactly one of `user` and `team`.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewRole {
    user: Option<String>,
    team: Option<String>,
    /// `owner`, `admin`, `developer`, `viewer`, `billing`, `explore`, `create` or `mod`.
    role: String,
    /// Slug or id; left out for the whole organization.
    project: Option<String>,
    /// RFC 3339; left out for no end.
    expires_at: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct AssignedRole {
    user: Option<String>,
    team: Option<String>,
    role: String,
    project: Option<String>,
    expires_at: Option<Instant>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct RevokeQuery {
    /// Exactly one of `user` and `team`.
    user: Option<String>,
    team: Option<String>,
    role: String,
    /// Slug or id; left out for the whole organization.
    project: Option<String>,
}

/// Give a role.
#[utoipa::path(post, path = "/v1/orgs/{org}/roles", tag = "members", request_body = NewRole,
    responses((status = 201, body = AssignedRole)), extensions(("x-envforge-action" = json!("role.assign"))))]
async fn assign(
    State(state): State<Roles>,
    Path(org): Path<String>,
    request: Write<Json<NewRole>>,
) -> Result<Written<AssignedRole>, Problem> {
    let Write { caller, body: Json(new), context } = request;
    let org = state.access.org(&org).await?;
    let permit = state.access.permit(&caller, Action::RoleAssign, Resource::Organization(org)).await?;
    let expires_at = new
        .expires_at
        .map(|text| {
            instant::parse(&text)
                .ok_or_else(|| Problem::value("expires_at", format!("`{text}` is not an RFC 3339 instant")))
        })
        .transpose()?;
    let grant = Grant {
        grantee: grantee(new.user.as_deref(), new.team.as_deref())?,
        role: new.role.parse::<Role>().map_err(|error| Problem::value("role", error))?,
        scope: state.existing_scope(org, new.project.as_deref()).await?,
        expires_at,
    };
    if grant.role == Role::Owner {
        caller.proved_recently()?;
    }
    let command = OrganizationCommand::AssignRole { by: caller.actor(), grant, now: context.now };
    let done = act!(state.access, &caller, permit, organizations::change(&state.commands, permit, &context, &command));
    let answer = AssignedRole {
        user: new.user,
        team: new.team,
        role: grant.role.token().to_owned(),
        project: match grant.scope {
            Scope::Organization => None,
            Scope::Project(project) => Some(project.to_string()),
        },
        expires_at: grant.expires_at.map(Instant),
    };
    Ok(Written::created(&done, answer))
}

/// Take a role. It is gone at once, in what is open already too.
#[utoipa::path(delete, path = "/v1/orgs/{org}/roles", tag = "members", params(RevokeQuery), responses((status = 204)),
    extensions(("x-envforge-action" = json!("role.revoke"))))]
async fn revoke(
    State(state): State<Roles>,
    Path(org): Path<String>,
    Query(query): Query<RevokeQuery>,
    request: Write<Empty>,
) -> Result<Happened, Problem> {
    let Write { caller, context, .. } = request;
    let org = state.access.org(&org).await?;
    let permit = state.access.permit(&caller, Action::RoleRevoke, Resource::Organization(org)).await?;
    let role: Role = query.role.parse().map_err(|error| Problem::value("role", error))?;
    if role == Role::Owner {
        caller.proved_recently()?;
    }
    let command = OrganizationCommand::RevokeRole {
        by: caller.actor(),
        grantee: grantee(query.user.as_deref(), query.team.as_deref())?,
        role,
        scope: state.scope(org, query.project.as_deref()).await?,
        now: context.now,
    };
    let done = act!(state.access, &caller, permit, organizations::change(&state.commands, permit, &context, &command));
    Ok(Happened::new(&done))
}

impl Roles {
    /// A role for a project that comes to be later would count there.
    async fn existing_scope(&self, org: OrgId, project: Option<&str>) -> Result<Scope, Problem> {
        let scope = self.scope(org, project).await?;
        if let Scope::Project(project) = scope
            && self.commands.load::<Project>(&StreamId::project(org, project)).await?.state == Project::Unknown
        {
            return Err(Problem::not_found());
        }
        Ok(scope)
    }

    async fn scope(&self, org: OrgId, project: Option<&str>) -> Result<Scope, Problem> {
        let Some(name) = project else { return Ok(Scope::Organization) };
        let resource = self.access.project(org, name).await?;
        resource.project().map(Scope::Project).ok_or_else(Problem::not_found)
    }
}

fn grantee(user: Option<&str>, team: Option<&str>) -> Result<Grantee, Problem> {
    match (user, team) {
        (Some(user), None) => user.parse().map(Grantee::User).map_err(|error| Problem::value("user", error)),
        (None, Some(team)) => team.parse().map(Grantee::Team).map_err(|error| Problem::value("team", error)),
        (Some(_), Some(_)) | (None, None) => Err(Problem::value("user", "name exactly one of `user` and `team`")),
    }
}
