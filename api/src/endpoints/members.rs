//! Members of an organization.
//!
//! Adding somebody who has no account yet makes their account with a first password; `invitations` lets them choose their own.

use std::sync::Arc;

use axum::extract::State;
use envforge_commands::{CommandError, Commands, Context, Done, organizations, users};
use envforge_domain::access::{Action, Permit, Resource};
use envforge_domain::commit::StreamId;
use envforge_domain::ids::{OrgId, TeamId, UserId};
use envforge_domain::limits::NAME_CHARS_MAX;
use envforge_domain::organization::{Organization, OrganizationCommand};
use envforge_domain::project::name_is_valid;
use envforge_domain::slug::TeamSlug;
use envforge_domain::time::UnixMillis;
use envforge_domain::user::{EmailAddress, SessionEnd, User, UserCommand};
use envforge_identity::credentials::{Account, Credentials};
use envforge_identity::self_hosted::{AccountError, LOCAL_ISSUER};
use envforge_identity::sign_in::Identity;
use envforge_identity::submitted::SubmittedSecret;
use envforge_projections::sql::MemberRecord;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::has_access;
use crate::access::{Access, Caller, act};
use crate::instant::Instant;
use crate::page::{Page, Path, Query, Slice};
use crate::problem::Problem;
use crate::reads::{AtLeast, Reads};
use crate::request_body::{Empty, Json};
use crate::revocation::Receipt;
use crate::sessions::{Sessions, internal, part_of};
use crate::write::{Happened, Write, Written};

#[derive(Clone)]
pub(crate) struct Members {
    pub(crate) access: Access,
    pub(crate) commands: Commands,
    pub(crate) reads: Reads,
    pub(crate) identity: Arc<Identity>,
    pub(crate) sessions: Sessions,
}

has_access!(Members);

pub(crate) fn routes() -> OpenApiRouter<Members> {
    OpenApiRouter::new()
        .routes(routes!(list, add))
        .routes(routes!(remove))
        .routes(routes!(deactivate))
        .routes(routes!(reactivate))
}

#[derive(Serialize, ToSchema)]
struct Member {
    user: String,
    name: Option<String>,
    email: Option<String>,
    active: bool,
    since: Instant,
    /// Their own. What they hold through teams, the teams say.
    roles: Vec<MemberRole>,
    /// Slugs of the teams that they are in.
    teams: Vec<String>,
}

#[derive(Serialize, ToSchema)]
struct MemberRole {
    role: String,
    project: Option<String>,
    workspace: Option<String>,
    expires_at: Option<Instant>,
}

impl Member {
    fn of(record: MemberRecord, teams: Vec<(TeamId, TeamSlug)>) -> Self {
        let role = |grant: envforge_projections::sql::MemberGrant| MemberRole {
            role: grant.role.token().to_owned(),
            project: grant.project.map(|project| project.to_string()),
            workspace: grant.workspace.map(|workspace| workspace.to_string()),
            expires_at: grant.expires_at.map(Instant),
        };
        Self {
            user: record.user.to_string(),
            name: record.name,
            email: record.email,
            active: record.active,
            since: record.since.into(),
            roles: record.grants.into_iter().map(role).collect(),
            teams: teams.into_iter().map(|(_, slug)| slug.to_string()).collect(),
        }
    }
}

/// Somebody new.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewMember {
    email: String,
    name: String,
    /// The first password, at least 12 characters. Somebody who was a member before keeps account, name and password.
    #[schema(value_type = String, format = Password)]
    password: SubmittedSecret,
}

#[derive(Serialize, ToSchema)]
struct AddedMember {
    user: String,
    email: String,
    name: String,
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

/// The members of an organization, with their roles.
#[utoipa::path(get, path = "/v1/orgs/{org}/members", tag = "members", params(ListQuery),
    responses((status = 200, body = Page<Member>)), extensions(("x-envforge-action" = json!("member.read"))))]
async fn list(
    State(state): State<Members>,
    caller: Caller,
    Path(org): Path<String>,
    Query(query): Query<ListQuery>,
    at: AtLeast,
) -> Result<axum::Json<Page<Member>>, Problem> {
    let org = state.access.org(&org).await?;
    let permit = state.access.permit(&caller, Action::MemberRead, Resource::Organization(org)).await?;
    let slice = Slice::new(query.limit, query.after.as_deref())?;
    let page = state.reads.members(&permit, at, &slice).await?;
    let authorization = &state.reads.hot().authorization;
    Ok(axum::Json(Page::of(page, |member| {
        let teams = authorization.teams_of(org, member.user);
        Member::of(member, teams)
    })))
}

/// Make an account for somebody and add them, or add somebody again who was taken out. They have no role until one is
/// given.
#[utoipa::path(post, path = "/v1/orgs/{org}/members", tag = "members", request_body = NewMember,
    responses((status = 201, body = AddedMember)), extensions(("x-envforge-action" = json!("member.add"))))]
async fn add(
    State(state): State<Members>,
    Path(org): Path<String>,
    request: Write<Json<NewMember>>,
) -> Result<Written<AddedMember>, Problem> {
    let Write { caller, body: Json(new), context } = request;
    let org = state.access.org(&org).await?;
    let add = state.access.permit(&caller, Action::MemberAdd, Resource::Organization(org)).await?;
    let create = state.access.permit(&caller, Action::UserCreate, Resource::Organization(org)).await?;
    let email = EmailAddress::parse(&new.email).map_err(|error| Problem::value("email", error))?;
    if !name_is_valid(&new.name) {
        return Err(Problem::value("name", format!("a name must have 1 to {NAME_CHARS_MAX} characters")));
    }
    let user = UserId::from_uuid(context.new_id());
    let account = Account { user, org, email: email.clone() };
    // The account comes first: its address is unique, and a user record that nobody can sign in to would stay forever.
    if let AccountOf::Former(user) = state.account(&account, new.password, &caller).await? {
        return state.add_again(&caller, add, &context, user, &account).await;
    }

    let command = UserCommand::Create {
        user,
        issuer: LOCAL_ISSUER.to_owned(),
        subject: user.to_string(),
        email: email.clone(),
        name: new.name.clone(),
    };
    let creating = part_of(&context, "create user");
    act!(state.access, &caller, create, users::change(&state.commands, create, &creating, user, &command));
    let command = OrganizationCommand::AddMember { user };
    let done = act!(state.access, &caller, add, organizations::change(&state.commands, add, &context, &command));
    let answer = AddedMember { user: user.to_string(), email: email.as_str().to_owned(), name: new.name };
    Ok(Written::created(&done, answer))
}

/// Take somebody out, with all their roles.
#[utoipa::path(delete, path = "/v1/orgs/{org}/members/{user}", tag = "members",
    responses((status = 200, body = Receipt)), extensions(("x-envforge-action" = json!("member.remove"))))]
async fn remove(
    State(state): State<Members>,
    Path((org, user)): Path<(String, String)>,
    request: Write<Empty>,
) -> Result<Written<Receipt>, Problem> {
    let Write { caller, context, .. } = request;
    let org = state.access.org(&org).await?;
    let permit = state.access.permit(&caller, Action::MemberRemove, Resource::Organization(org)).await?;
    let user = user.parse().map_err(|_| Problem::not_found())?;
    let command = OrganizationCommand::RemoveMember { by: caller.actor(), user, now: context.now };
    let revoking = state.sessions.revoking(org, user, SessionEnd::Revoked, context.now).await?.of_account();
    let done = act!(state.access, &caller, permit, organizations::change(&state.commands, permit, &context, &command));
    let ended = state.end_sessions(org, user, &caller, &context).await?;
    let steps: Vec<&Done> = std::iter::once(&done).chain(&ended).collect();
    let receipt = state.sessions.receipt_of_all(revoking, &steps, caller.surface, &context).await?;
    Ok(Written::ok(&done, receipt))
}

/// Close somebody's account: their sessions and the links that stand on their right end at once. They stay a member, without
/// any right until they are reactivated.
#[utoipa::path(post, path = "/v1/orgs/{org}/members/{user}/deactivate", tag = "members",
    responses((status = 200, body = Receipt)), extensions(("x-envforge-action" = json!("user.deactivate"))))]
async fn deactivate(
    State(state): State<Members>,
    Path((org, user)): Path<(String, String)>,
    request: Write<Empty>,
) -> Result<Written<Receipt>, Problem> {
    let Write { caller, context, .. } = request;
    let org = state.access.org(&org).await?;
    let user: UserId = user.parse().map_err(|_| Problem::not_found())?;
    let permit = state.access.permit(&caller, Action::UserDeactivate, Resource::User { org, user }).await?;
    let revoking = state.sessions.revoking(org, user, SessionEnd::Deactivated, context.now).await?;
    let done = act!(state.access, &caller, permit, users::deactivate(&state.commands, permit, &context, user));
    state.identity.sessions().revoke_user(user, context.now).await?;
    let receipt = state.sessions.receipt(revoking, &done, caller.surface, &context).await?;
    Ok(Written::ok(&done, receipt))
}

/// Open somebody's account again. They sign in anew; links that have not been revoked or ended meanwhile open again.
#[utoipa::path(post, path = "/v1/orgs/{org}/members/{user}/reactivate", tag = "members", responses((status = 204)),
    extensions(("x-envforge-action" = json!("user.reactivate"))))]
async fn reactivate(
    State(state): State<Members>,
    Path((org, user)): Path<(String, String)>,
    request: Write<Empty>,
) -> Result<Happened, Problem> {
    let Write { caller, context, .. } = request;
    let org = state.access.org(&org).await?;
    let user: UserId = user.parse().map_err(|_| Problem::not_found())?;
    let permit = state.access.permit(&caller, Action::UserReactivate, Resource::User { org, user }).await?;
    let done = act!(state.access, &caller, permit, users::reactivate(&state.commands, permit, &context, user));
    Ok(Happened::new(&done))
}

/// Removes an account whose user never came to be: it is left over from a request that broke off. `false`: it is somebody's.
pub(crate) async fn remove_left_over(
    commands: &Commands,
    accounts: &Credentials,
    account: &Account,
    now: UnixMillis,
) -> Result<bool, Problem> {
    let left_over = match commands.load::<User>(&StreamId::user(account.org, account.user)).await?.state {
        User::Unknown | User::InvitationRevoked => true,
        User::Invited(invitation) => !invitation.is_open(now),
        User::Active { .. } | User::Deactivated { .. } => false,
    };
    if left_over {
        accounts.remove_account(account.user).await.map_err(internal)?;
    }
    Ok(left_over)
}

/// Whose account an address is.
enum AccountOf {
    /// The new member's own, just made or by an earlier attempt of the same request.
    New,
    /// Somebody's who was of this organization before, or is.
    Former(UserId),
}

impl Members {
    /// Adds somebody who has an account here. Whoever is a member already is not added again.
    async fn add_again(
        &self,
        caller: &Caller,
        permit: Permit,
        context: &Context,
        user: UserId,
        account: &Account,
    ) -> Result<Written<AddedMember>, Problem> {
        let command = OrganizationCommand::AddMember { user };
        let done = act!(self.access, caller, permit, organizations::change(&self.commands, permit, context, &command));
        if done.events.is_empty() && !done.duplicate {
            return Err(exists(account));
        }
        let name = self.reads.hot().authorization.user(user).map_or_else(String::new, |known| known.name);
        let answer = AddedMember { user: user.to_string(), email: account.email.as_str().to_owned(), name };
        Ok(Written::created(&done, answer))
    }

    /// Ends whatever is open of somebody who was taken out. Nothing of it works for them any more; it must not work again
    /// either when they come back.
    async fn end_sessions(
        &self,
        org: OrgId,
        user: UserId,
        caller: &Caller,
        context: &Context,
    ) -> Result<Option<Done>, Problem> {
        // A repeated request must not end what somebody opened who is back since.
        let organization = self.commands.load::<Organization>(&StreamId::organization(org)).await?.state;
        if matches!(organization, Organization::Active(organization) if organization.members.contains(&user)) {
            return Ok(None);
        }
        let permit = self.access.identity_permit(org, user, caller.surface, caller.arrival.now).await?;
        let command = UserCommand::EndAllSessions { reason: SessionEnd::Revoked };
        match users::change(&self.commands, &permit, &part_of(context, "end sessions"), user, &command).await {
            Ok(done) => {
                self.identity.sessions().revoke_user(user, caller.arrival.now).await?;
                Ok(Some(done))
            }
            // Nobody of this organization: what they have elsewhere is nobody's business here.
            Err(CommandError::Refused(refusal)) if refusal.code() == "user_unknown" => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes the account, or finds the one that an earlier attempt of the same request made.
    async fn account(
        &self,
        account: &Account,
        password: SubmittedSecret,
        caller: &Caller,
    ) -> Result<AccountOf, Problem> {
        let exists = || exists(account);
        if let Some(known) =
            self.identity.self_hosted().credentials().account_of(account.user).await.map_err(internal)?
        {
            return if known.email == account.email { Ok(AccountOf::New) } else { Err(exists()) };
        }
        let now = caller.arrival.now;
        match self.identity.self_hosted().create_account(account, password.clone().into_secret(), now).await {
            Ok(()) => Ok(AccountOf::New),
            Err(AccountError::Exists) => {
                let Some(left) = self
                    .identity
                    .self_hosted()
                    .credentials()
                    .account_by_address(&account.email)
                    .await
                    .map_err(internal)?
                else {
                    return Err(exists());
                };
                let stream = StreamId::user(left.org, left.user);
                let state = self.commands.load::<User>(&stream).await?.state;
                if matches!(state, User::Active { .. }) && left.org == account.org {
                    return Ok(AccountOf::Former(left.user));
                }
                let accounts = self.identity.self_hosted().credentials();
                if !remove_left_over(&self.commands, accounts, &left, now).await? {
                    return Err(exists());
                }
                self.identity
                    .self_hosted()
                    .create_account(account, password.into_secret(), now)
                    .await
                    .map_err(account_problem)?;
                Ok(AccountOf::New)
            }
            Err(error) => Err(account_problem(error)),
        }
    }
}

fn exists(account: &Account) -> Problem {
    Problem::new("account_exists", "This e-mail address has an account already.").with("email", account.email.as_str())
}

pub(crate) fn account_problem(error: AccountError) -> Problem {
    match error {
        AccountError::Weak(weak) => Problem::from(weak).with("field", "password"),
        AccountError::Unknown => internal(error),
        AccountError::Exists => Problem::new("account_exists", error.to_string()),
        AccountError::Busy => Problem::new("sign_in_busy", error.to_string()).retry_after_s(1),
        AccountError::Identity(error) => error.into(),
    }
}
