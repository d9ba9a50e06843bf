//! Invitations: somebody is asked to join with some roles; whoever holds the token makes the account and joins.
//!
//! No mail is sent here: the token is answered once, to whoever invites, and they hand it over. Not here: what an invitation
//! may offer (domain), and tokens (identity).

use std::sync::Arc;

use axum::extract::State;
use envforge_commands::context::derived_uuid;
use envforge_commands::{Commands, Context, Repeated, organizations, users};
use envforge_domain::access::{Action, Resource, Role, Scope};
use envforge_domain::commit::{StreamId, Surface};
use envforge_domain::ids::{CommandId, OrgId, UserId};
use envforge_domain::invitation::{Invitation, InvitedRole};
use envforge_domain::limits::INVITATION_LIFETIME_DEFAULT;
use envforge_domain::organization::{Organization, OrganizationCommand};
use envforge_domain::time::Millis;
use envforge_domain::user::{EmailAddress, User, UserCommand};
use envforge_identity::credentials::{Account, InvitationKey};
use envforge_identity::self_hosted::LOCAL_ISSUER;
use envforge_identity::sign_in::Identity;
use envforge_identity::submitted::SubmittedSecret;
use envforge_projections::invitations::OpenInvitation;
use http::HeaderMap;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::has_access;
use super::members::{account_problem, remove_left_over};
use crate::access::{Access, Caller, act, surface_of};
use crate::disclosed::Disclosed;
use crate::edge::Arrival;
use crate::instant::Instant;
use crate::page::{Page, Path};
use crate::problem::Problem;
use crate::reads::{AtLeast, Reads};
use crate::request_body::{Empty, Json};
use crate::sessions::internal;
use crate::write::{Happened, Write, Written};

#[derive(Clone)]
pub(crate) struct Invitations {
    pub(crate) access: Access,
    pub(crate) commands: Commands,
    pub(crate) identity: Arc<Identity>,
    pub(crate) reads: Reads,
}

has_access!(Invitations);

pub(crate) fn routes() -> OpenApiRouter<Invitations> {
    OpenApiRouter::new().routes(routes!(list, invite)).routes(routes!(revoke)).routes(routes!(accept))
}

/// Whom to invite.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewInvitation {
    email: String,
    /// What they will be allowed to do; nothing where it is left out.
    #[serde(default)]
    roles: Vec<NewInvitedRole>,
    /// How long it may be accepted: 60 seconds to 30 days; 7 days where it is left out.
    expires_in_seconds: Option<u64>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewInvitedRole {
    /// `owner`, `admin`, `developer`, `viewer`, `billing`, `explore`, `create` or `mod`.
    role: String,
    /// Slug or id; left out for the whole organization.
    project: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct InvitationShown {
    /// Also the id of the user who is to be.
    id: String,
    email: String,
    roles: Vec<InvitedRoleShown>,
    invited_by: String,
    invited_at: Instant,
    expires_at: Instant,
}

#[derive(Serialize, ToSchema)]
struct InvitedRoleShown {
    role: String,
    project: Option<String>,
}

/// An invitation with its token, which is told this once.
#[derive(Serialize, ToSchema)]
struct Invited {
    #[serde(flatten)]
    invitation: InvitationShown,
    /// Whoever has it can join in their place: hand it over as you would a password.
    #[schema(value_type = String)]
    token: Disclosed,
}

/// How somebody joins.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Acceptance {
    #[schema(value_type = String, format = Password)]
    token: SubmittedSecret,
    name: String,
    /// At least 12 characters, at most 72 bytes, and none that anybody would guess.
    #[schema(value_type = String, format = Password)]
    password: SubmittedSecret,
}

/// Who has joined where. Next they sign in.
#[derive(Serialize, ToSchema)]
struct Accepted {
    user: String,
    email: String,
    name: String,
    org: String,
    org_slug: String,
}

/// Invitations that nobody has accepted yet, the newest first.
#[utoipa::path(get, path = "/v1/orgs/{org}/invitations", tag = "invitations",
    responses((status = 200, body = Page<InvitationShown>)), extensions(("x-envforge-action" = json!("invitation.read"))))]
async fn list(
    State(state): State<Invitations>,
    caller: Caller,
    Path(org): Path<String>,
    at: AtLeast,
) -> Result<axum::Json<Page<InvitationShown>>, Problem> {
    let org = state.access.org(&org).await?;
    let permit = state.access.permit(&caller, Action::InvitationRead, Resource::Organization(org)).await?;
    let open = state.reads.invitations(&permit, at, caller.arrival.now).await?;
    Ok(axum::Json(Page { items: open.into_iter().map(InvitationShown::from).collect(), next: None }))
}

/// Invite somebody. Nobody invites above themselves. The token is answered once; repeated with the same key, the request
/// answers another one in its place.
#[utoipa::path(post, path = "/v1/orgs/{org}/invitations", tag = "invitations", request_body = NewInvitation,
    responses((status = 201, body = Invited)), extensions(("x-envforge-action" = json!("invitation.create"))))]
async fn invite(
    State(state): State<Invitations>,
    Path(org): Path<String>,
    request: Write<Json<NewInvitation>>,
) -> Result<Written<Invited>, Problem> {
    let Write { caller, body: Json(new), context } = request;
    let org = state.access.org(&org).await?;
    let permit = state.access.permit(&caller, Action::InvitationCreate, Resource::Organization(org)).await?;
    let email = EmailAddress::parse(&new.email).map_err(|error| Problem::value("email", error))?;
    let mut roles = Vec::with_capacity(new.roles.len().min(64));
    for role in &new.roles {
        roles.push(InvitedRole {
            role: role.role.parse::<Role>().map_err(|error| Problem::value("roles", error))?,
            scope: match &role.project {
                None => Scope::Organization,
                Some(name) => Scope::Project(state.access.existing_project(org, name).await?),
            },
        });
    }
    if roles.iter().any(|invited| invited.role == Role::Owner) {
        caller.proved_recently()?;
    }
    let user = UserId::from_uuid(context.new_id());
    let accounts = state.identity.self_hosted().credentials();
    if let Some(account) = accounts.account_by_address(&email).await.map_err(internal)?
        && account.user != user
        && !remove_left_over(&state.commands, accounts, &account, context.now).await?
    {
        return Err(Problem::new(
            "account_exists",
            "This e-mail address has an account already; a former member is added again with POST /v1/orgs/{org}/members.",
        )
        .with("email", email.as_str()));
    }
    let lifetime = new.expires_in_seconds.map_or(INVITATION_LIFETIME_DEFAULT, Millis::from_secs);
    let expires_at = context.now.plus(lifetime);
    let invitation = Invitation { user, email, roles, invited_by: caller.user, expires_at };
    let done =
        act!(state.access, &caller, permit, users::invite(&state.commands, permit, &context, invitation.clone()));
    // Of a repeated request: as it was recorded, and only while nobody has accepted or revoked it.
    let User::Invited(invitation) = state.commands.load::<User>(&StreamId::user(org, user)).await?.state else {
        return Err(Problem::new("invitation_accepted", "This invitation was accepted or revoked already."));
    };
    let key = InvitationKey { user, org };
    let token = state.identity.self_hosted().invite(key, invitation.expires_at).await?;
    let invited_at = context.now;
    let shown = InvitationShown::from(OpenInvitation { invitation, invited_at });
    Ok(Written::created(&done, Invited { invitation: shown, token: Disclosed(token) }))
}

/// Take an invitation back. Its token opens nothing from then on.
#[utoipa::path(delete, path = "/v1/orgs/{org}/invitations/{invitation}", tag = "invitations",
    responses((status = 204)), extensions(("x-envforge-action" = json!("invitation.revoke"))))]
async fn revoke(
    State(state): State<Invitations>,
    Path((org, invitation)): Path<(String, String)>,
    request: Write<Empty>,
) -> Result<Happened, Problem> {
    let Write { caller, context, .. } = request;
    let org = state.access.org(&org).await?;
    let permit = state.access.permit(&caller, Action::InvitationRevoke, Resource::Organization(org)).await?;
    let user: UserId = invitation.parse().map_err(|_| Problem::not_found())?;
    let command = UserCommand::RevokeInvitation;
    let done = act!(state.access, &caller, permit, users::change(&state.commands, permit, &context, user, &command));
    state.identity.self_hosted().forget_invitation(user).await?;
    Ok(Happened::new(&done))
}

/// Accept an invitation: with its token, a name and a password somebody makes their account and joins. A request that broke
/// off is finished by the same request again.
#[utoipa::path(post, path = "/v1/invitations/accept", tag = "invitations", request_body = Acceptance,
    responses((status = 201, body = Accepted)), extensions(("x-envforge-action" = json!("public"))))]
async fn accept(
    State(state): State<Invitations>,
    arrival: Arrival,
    headers: HeaderMap,
    Json(request): Json<Acceptance>,
) -> Result<Written<Accepted>, Problem> {
    let surface = surface_of(&headers)?.unwrap_or(Surface::Api);
    let now = arrival.now;
    let unknown =
        || Problem::new("invitation_unknown", "This invitation is not known, or is over. Ask for another one.");
    let token = request.token.into_secret();
    let Some(InvitationKey { user, org }) = state.identity.self_hosted().invitation_of(&token, now).await? else {
        return Err(unknown());
    };
    let loaded = state.commands.load::<User>(&StreamId::user(org, user)).await?.state;
    let (invitation, joined) = match loaded {
        User::Invited(invitation) => (invitation, false),
        // An attempt before this one broke off after the log knew.
        User::Active { .. } => (state.invitation_of(org, user).await?.ok_or_else(unknown)?, true),
        User::Unknown | User::InvitationRevoked | User::Deactivated { .. } => return Err(unknown()),
    };
    let newcomer = users::Newcomer { name: request.name, issuer: LOCAL_ISSUER.to_owned(), subject: user.to_string() };
    if !joined {
        // Refused before an account is stored; decided again, for good, below.
        users::check_acceptance(&state.commands, org, user, &newcomer, now).await?;
    }
    let account = Account { user, org, email: invitation.email.clone() };
    let password = request.password.into_secret();
    state.identity.self_hosted().account_of_invited(&account, password, joined, now).await.map_err(account_problem)?;
    if !joined {
        let permit = state.access.acceptance_permit(org, user, surface, now).await?;
        let context = step(&arrival, user, "accept invitation");
        users::accept(&state.commands, &permit, &context, user, &newcomer).await?;
    }
    let permit = state.access.acceptance_permit(org, user, surface, now).await?;
    let admit = OrganizationCommand::AdmitInvited {
        invited_by: invitation.invited_by,
        user,
        roles: invitation.roles.clone(),
        now,
    };
    // The same command whoever repeats it and whenever: somebody who was taken out since is not let in again.
    let context = step(&arrival, user, "admit invited");
    let done = organizations::change(&state.commands, &permit, &context, &admit).await?;
    state.identity.self_hosted().forget_invitation(user).await?;
    let name = match state.commands.load::<User>(&StreamId::user(org, user)).await?.state {
        User::Active { name, .. } => name,
        User::Unknown | User::Invited(_) | User::InvitationRevoked | User::Deactivated { .. } => newcomer.name,
    };
    let org_slug = match state.commands.load::<Organization>(&StreamId::organization(org)).await?.state {
        Organization::Active(organization) => organization.slug.to_string(),
        Organization::Unknown => String::new(),
    };
    let answer = Accepted {
        user: user.to_string(),
        email: invitation.email.as_str().to_owned(),
        name,
        org: org.to_string(),
        org_slug,
    };
    Ok(Written::created(&done, answer))
}

/// A step of an acceptance: its command follows from whom it is about, so that it happens once.
fn step(arrival: &Arrival, user: UserId, what: &str) -> Context {
    Context {
        command: CommandId::from_uuid(derived_uuid(user.as_uuid().as_bytes(), what)),
        request_digest: None,
        repeated: Some(Repeated { satisfied_at: None }),
        correlation: arrival.correlation,
        causation: None,
        now: arrival.now,
    }
}

impl Invitations {
    /// The invitation of somebody who accepted it, from the log.
    async fn invitation_of(&self, org: OrgId, user: UserId) -> Result<Option<Invitation>, Problem> {
        Ok(users::invitation(&self.commands, org, user).await?)
    }
}

impl From<OpenInvitation> for InvitationShown {
    fn from(open: OpenInvitation) -> Self {
        let OpenInvitation { invitation, invited_at } = open;
        let role = |invited: InvitedRole| InvitedRoleShown {
            role: invited.role.token().to_owned(),
            project: match invited.scope {
                Scope::Organization => None,
                Scope::Project(project) => Some(project.to_string()),
            },
        };
        Self {
            id: invitation.user.to_string(),
            email: invitation.email.as_str().to_owned(),
            roles: invitation.roles.into_iter().map(role).collect(),
            invited_by: invitation.invited_by.to_string(),
            invited_at: invited_at.into(),
            expires_at: invitation.expires_at.into(),
        }
    }
}
