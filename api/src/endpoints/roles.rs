//! Roles: given to and taken from users and teams, for the whole organization, one project or one workspace.

use axum::extract::State;
use envforge_commands::{Commands, organizations};
use envforge_domain::access::{Action, Grant, Grantee, Resource, Role, Scope};
use envforge_domain::commit::StreamId;
use envforge_domain::ids::OrgId;
use envforge_domain::organization::OrganizationCommand;
use envforge_domain::project::Project;
use envforge_domain::time::UnixMillis;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::dry_run::{self, DryRun};
use super::has_access;
use crate::access::{Access, Caller, act};
use crate::instant::{self, Instant};
use crate::page::{Path, Query};
use crate::problem::Problem;
use crate::request_body::{Empty, Json};
use crate::revocation::{Receipt, Revocations};
use crate::write::{Write, Written};

#[derive(Clone)]
pub(crate) struct Roles {
    pub(crate) access: Access,
    pub(crate) commands: Commands,
    pub(crate) revocations: Revocations,
}

has_access!(Roles);

pub(crate) fn routes() -> OpenApiRouter<Roles> {
    OpenApiRouter::new().routes(routes!(assign, revoke)).routes(routes!(dry_run))
}

/// A role with where it counts.
#[derive(Serialize, ToSchema)]
pub(crate) struct ScopedRole {
    role: String,
    /// The project where it counts; `null` for the whole organization.
    project: Option<String>,
    /// The one workspace of the project where it counts; `null` for all of them.
    workspace: Option<String>,
    expires_at: Option<Instant>,
}

impl From<Grant> for ScopedRole {
    fn from(grant: Grant) -> Self {
        let (project, workspace) = scope_ids(grant.scope);
        Self { role: grant.role.token().to_owned(), project, workspace, expires_at: grant.expires_at.map(Instant) }
    }
}

/// The displayed ids of the project and the workspace where a grant counts.
pub(crate) fn scope_ids(scope: Scope) -> (Option<String>, Option<String>) {
    match scope {
        Scope::Organization => (None, None),
        Scope::Project(project) => (Some(project.to_string()), None),
        Scope::Workspace { project, workspace } => (Some(project.to_string()), Some(workspace.to_string())),
    }
}

/// A role to give. Exactly one of `user` and `team`.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewRole {
    user: Option<String>,
    /// Slug or id.
    team: Option<String>,
    /// `owner`, `admin`, `developer`, `viewer`, `billing`, `explore`, `create` or `mod`.
    role: String,
    /// Slug or id; left out for the whole organization.
    project: Option<String>,
    /// Slug or id of the one workspace where it counts, instead of `project`.
    workspace: Option<String>,
    /// RFC 3339; left out for no end.
    expires_at: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct AssignedRole {
    user: Option<String>,
    team: Option<String>,
    role: String,
    project: Option<String>,
    workspace: Option<String>,
    expires_at: Option<Instant>,
}

/// A change of roles to try out: a role to give, or with `revoke` one to take.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct RoleTrial {
    user: Option<String>,
    /// Slug or id.
    team: Option<String>,
    role: String,
    /// Slug or id; left out for the whole organization.
    project: Option<String>,
    /// Slug or id of the one workspace where it counts, instead of `project`.
    workspace: Option<String>,
    /// RFC 3339; left out for no end.
    expires_at: Option<String>,
    /// `true` to take the role; it is given where this is left out.
    #[serde(default)]
    revoke: bool,
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
    /// Slug or id, instead of `project`.
    workspace: Option<String>,
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
    let grant = Grant {
        grantee: state.grantee(org, new.user.as_deref(), new.team.as_deref())?,
        role: new.role.parse::<Role>().map_err(|error| Problem::value("role", error))?,
        scope: state.existing_scope(org, new.project.as_deref(), new.workspace.as_deref()).await?,
        expires_at: end(new.expires_at.as_deref())?,
    };
    if grant.role == Role::Owner {
        caller.proved_recently()?;
    }
    let command = OrganizationCommand::AssignRole { by: caller.actor(), grant, now: context.now };
    let done = act!(state.access, &caller, permit, organizations::change(&state.commands, permit, &context, &command));
    let (project, workspace) = scope_ids(grant.scope);
    let (user, team) = match grant.grantee {
        Grantee::User(user) => (Some(user.to_string()), None),
        Grantee::Team(team) => (None, Some(team.to_string())),
    };
    let answer = AssignedRole {
        user,
        team,
        role: grant.role.token().to_owned(),
        project,
        workspace,
        expires_at: grant.expires_at.map(Instant),
    };
    Ok(Written::created(&done, answer))
}

/// Take a role. It is gone at once, in what is open already too.
#[utoipa::path(delete, path = "/v1/orgs/{org}/roles", tag = "members", params(RevokeQuery),
    responses((status = 200, body = Receipt)), extensions(("x-envforge-action" = json!("role.revoke"))))]
async fn revoke(
    State(state): State<Roles>,
    Path(org): Path<String>,
    Query(query): Query<RevokeQuery>,
    request: Write<Empty>,
) -> Result<Written<Receipt>, Problem> {
    let Write { caller, context, .. } = request;
    let org = state.access.org(&org).await?;
    let permit = state.access.permit(&caller, Action::RoleRevoke, Resource::Organization(org)).await?;
    let role: Role = query.role.parse().map_err(|error| Problem::value("role", error))?;
    if role == Role::Owner {
        caller.proved_recently()?;
    }
    let command = OrganizationCommand::RevokeRole {
        by: caller.actor(),
        grantee: state.grantee(org, query.user.as_deref(), query.team.as_deref())?,
        role: query.role.parse().map_err(|error| Problem::value("role", error))?,
        scope: state.scope(org, query.project.as_deref(), query.workspace.as_deref()).await?,
        now: context.now,
    };
    let changing = Revocations::changing();
    let done = act!(state.access, &caller, permit, organizations::change(&state.commands, permit, &context, &command));
    let receipt = state.revocations.changed(&caller, Resource::Organization(org), changing, &done, &context).await;
    Ok(Written::ok(&done, receipt))
}

/// What giving or taking a role would end. Nothing is changed.
#[utoipa::path(post, path = "/v1/orgs/{org}/roles/dry-run", tag = "members", request_body = RoleTrial,
    responses((status = 200, body = DryRun)), extensions(("x-envforge-action" = json!("role.assign"))))]
async fn dry_run(
    State(state): State<Roles>,
    caller: Caller,
    Path(org): Path<String>,
    Json(trial): Json<RoleTrial>,
) -> Result<axum::Json<DryRun>, Problem> {
    let org = state.access.org(&org).await?;
    let action = if trial.revoke { Action::RoleRevoke } else { Action::RoleAssign };
    let permit = state.access.permit(&caller, action, Resource::Organization(org)).await?;
    let (by, now) = (caller.actor(), caller.arrival.now);
    let grantee = state.grantee(org, trial.user.as_deref(), trial.team.as_deref())?;
    let role = trial.role.parse().map_err(|error| Problem::value("role", error))?;
    let (project, workspace) = (trial.project.as_deref(), trial.workspace.as_deref());
    let command = if trial.revoke {
        let scope = state.scope(org, project, workspace).await?;
        OrganizationCommand::RevokeRole { by, grantee, role, scope, now }
    } else {
        let scope = state.existing_scope(org, project, workspace).await?;
        let grant = Grant { grantee, role, scope, expires_at: end(trial.expires_at.as_deref())? };
        OrganizationCommand::AssignRole { by, grant, now }
    };
    Ok(axum::Json(dry_run::of(&state.access, &state.commands, &permit, &command, now).await?))
}

impl Roles {
    /// A role for something that comes to be later would count there.
    async fn existing_scope(
        &self,
        org: OrgId,
        project: Option<&str>,
        workspace: Option<&str>,
    ) -> Result<Scope, Problem> {
        let scope = self.scope(org, project, workspace).await?;
        if let Scope::Project(project) = scope
            && self.commands.load::<Project>(&StreamId::project(org, project)).await?.state == Project::Unknown
        {
            return Err(Problem::not_found());
        }
        Ok(scope)
    }

    async fn scope(&self, org: OrgId, project: Option<&str>, workspace: Option<&str>) -> Result<Scope, Problem> {
        match (project, workspace) {
            (None, None) => Ok(Scope::Organization),
            (Some(name), None) => {
                let resource = self.access.project(org, name).await?;
                resource.project().map(Scope::Project).ok_or_else(Problem::not_found)
            }
            (None, Some(name)) => match self.access.workspace(org, name).await? {
                Resource::Workspace { project, workspace, .. } => Ok(Scope::Workspace { project, workspace }),
                _ => Err(Problem::not_found()),
            },
            (Some(_), Some(_)) => Err(Problem::value("workspace", "name either a project or one workspace")),
        }
    }

    fn grantee(&self, org: OrgId, user: Option<&str>, team: Option<&str>) -> Result<Grantee, Problem> {
        match (user, team) {
            (Some(user), None) => user.parse().map(Grantee::User).map_err(|error| Problem::value("user", error)),
            (None, Some(team)) => Ok(Grantee::Team(self.access.team(org, team))),
            (Some(_), Some(_)) | (None, None) => Err(Problem::value("user", "name exactly one of `user` and `team`")),
        }
    }
}

fn end(text: Option<&str>) -> Result<Option<UnixMillis>, Problem> {
    let invalid = |text| Problem::value("expires_at", format!("`{text}` is not an RFC 3339 instant"));
    text.map(|text| instant::parse(text).ok_or_else(|| invalid(text))).transpose()
}
