//! Signing in and out.
//!
//! Identity proves who somebody is; the log records that a session was opened or ended, and from then on the
//! authorization view knows. Only members of their organization, as the log's leader has it, get tokens. These requests
//! carry secrets and are not idempotent by key: a refresh token works once.

use axum::extract::State;
use envforge_commands::{Commands, Context, Done, users};
use envforge_domain::access::{Action, Scope};
use envforge_domain::commit::{Position, StreamId, Surface};
use envforge_domain::event::Event;
use envforge_domain::ids::{CommandId, OrgId, SessionId, UserId};
use envforge_domain::organization::Organization;
use envforge_domain::secret::Secret;
use envforge_domain::slug::OrgSlug;
use envforge_domain::time::UnixMillis;
use envforge_domain::user::{SessionEnd, User, UserCommand, UserEvent};
use envforge_identity::self_hosted::{LoginAttempt, LoginError, RefreshError, SESSION_LIFETIME, SelfHosted};
use envforge_identity::submitted::SubmittedSecret;
use envforge_identity::tokens::{Description, Session};
use envforge_projections::Hot;
use http::HeaderMap;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::has_access;
use crate::access::{Access, act, surface_of};
use crate::disclosed::Disclosed;
use crate::edge::Arrival;
use crate::problem::Problem;
use crate::request_body::{Empty, Json};
use crate::write::{Happened, Write, Written};

#[derive(Clone)]
pub(crate) struct Auth {
    pub(crate) access: Access,
    pub(crate) identity: Arc<SelfHosted>,
    pub(crate) commands: Commands,
    pub(crate) hot: Arc<Hot>,
}

has_access!(Auth);

pub(crate) fn routes() -> OpenApiRouter<Auth> {
    OpenApiRouter::new().routes(routes!(login)).routes(routes!(refresh)).routes(routes!(logout))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct LoginRequest {
    email: String,
    #[schema(value_type = String, format = Password)]
    password: SubmittedSecret,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct RefreshRequest {
    #[schema(value_type = String, format = Password)]
    refresh_token: SubmittedSecret,
}

/// Tokens and whose they are.
#[derive(Serialize, ToSchema)]
pub(super) struct SignedIn {
    #[schema(value_type = String)]
    access_token: Disclosed,
    /// Works once; the answer to its use holds the next one.
    #[schema(value_type = String)]
    refresh_token: Disclosed,
    /// Seconds for which the access token is good.
    expires_in: u64,
    user: SignedInUser,
    org: SignedInOrg,
}

#[derive(Serialize, ToSchema)]
struct SignedInUser {
    id: String,
    email: String,
    name: String,
}

#[derive(Serialize, ToSchema)]
struct SignedInOrg {
    id: String,
    slug: String,
}

/// Sign in with e-mail address and password.
#[utoipa::path(post, path = "/v1/auth/login", tag = "auth", request_body = LoginRequest,
    responses((status = 200, body = SignedIn)), extensions(("x-envforge-action" = json!("public"))))]
async fn login(
    State(auth): State<Auth>,
    arrival: Arrival,
    headers: HeaderMap,
    Json(request): Json<LoginRequest>,
) -> Result<Written<SignedIn>, Problem> {
    let surface = surface_of(&headers)?;
    let attempt =
        LoginAttempt { email: request.email, password: request.password.into_secret(), address: arrival.address };
    let account = match auth.identity.login(attempt, arrival.now).await {
        Ok(account) => account,
        Err(error) => {
            if let LoginError::WrongCredentials { account: Some(account) } = &error {
                auth.access.record_failed_login(account.org, account.user, surface, arrival.now);
            }
            return Err(error.into());
        }
    };
    let session = auth.new_session(account.org, account.user, arrival.now.plus(SESSION_LIFETIME), &arrival)?;
    let done = auth.open(&session, surface, &arrival).await?;
    auth.tokens(&session, &done, &arrival).await
}

/// Trade a refresh token for new tokens.
#[utoipa::path(post, path = "/v1/auth/refresh", tag = "auth", request_body = RefreshRequest,
    responses((status = 200, body = SignedIn)), extensions(("x-envforge-action" = json!("public"))))]
async fn refresh(
    State(auth): State<Auth>,
    arrival: Arrival,
    headers: HeaderMap,
    Json(request): Json<RefreshRequest>,
) -> Result<Written<SignedIn>, Problem> {
    let surface = surface_of(&headers)?;
    let token = request.refresh_token.into_secret();
    let session = match auth.identity.session_of(&token, arrival.now).await {
        Ok(session) => session,
        Err(error) => return Err(auth.not_refreshed(error, surface, &arrival).await),
    };
    // The token is used only now that its session is known to stand: where the log cannot say, it works again.
    let position = match auth.standing(&session, arrival.now).await? {
        Standing::Live(position) => position,
        Standing::Ended => {
            auth.identity.revoke_session(session.session, arrival.now).await?;
            return Err(session_ended());
        }
        Standing::NotAMember => {
            let end = UserCommand::EndSession { session: session.session, reason: SessionEnd::Revoked };
            auth.record(session.org, session.user, surface, &arrival, &end).await?;
            auth.identity.revoke_session(session.session, arrival.now).await?;
            return Err(session_ended());
        }
    };
    let refreshed = match auth.identity.refresh(&token, arrival.now).await {
        Ok(refreshed) => refreshed,
        Err(error) => return Err(auth.not_refreshed(error, surface, &arrival).await),
    };
    let description = auth.description(session.org, session.user, arrival.now);
    let (access, signed_in) = auth.identity.mint(&session, &description, arrival.now)?;
    let answer = auth.signed_in(&session, access, signed_in.expires_at, refreshed.refresh, arrival.now)?;
    Ok(Written::ok(position, answer))
}

/// End this session.
#[utoipa::path(post, path = "/v1/auth/logout", tag = "auth", responses((status = 204)),
    extensions(("x-envforge-action" = json!("session.revoke_own"))))]
async fn logout(State(auth): State<Auth>, request: Write<Empty>) -> Result<Happened, Problem> {
    let Write { caller, context, .. } = request;
    let permit = auth.access.permit(&caller, Action::SessionRevokeOwn, caller.own()).await?;
    let end = UserCommand::EndOwnSession { session: caller.session };
    let done = act!(auth.access, &caller, permit, users::change(&auth.commands, permit, &context, caller.user, &end));
    // Only after the log knows: a refresh token that outlives its session is refused, the other way round it would be
    // a session that nobody can end by refreshing.
    auth.identity.revoke_session(caller.session, caller.arrival.now).await?;
    Ok(Happened::new(&done))
}

/// How long signing in waits until the views know the new session.
pub(super) const WAIT_FOR_VIEW: std::time::Duration = std::time::Duration::from_secs(2);

/// Whether a session may go on, as the log's leader has it.
enum Standing {
    Live(Position),
    Ended,
    NotAMember,
}

fn session_ended() -> Problem {
    Problem::new("session_ended", "This session has ended; sign in again.")
}

/// The sessions that a commit ended.
fn sessions_ended(done: &Done) -> impl Iterator<Item = SessionId> + '_ {
    done.events.iter().filter_map(|event| match event {
        Event::User(UserEvent::SessionEnded { session, .. }) => Some(*session),
        _ => None,
    })
}

impl Auth {
    /// A session that nobody knows of yet.
    pub(super) fn new_session(
        &self,
        org: OrgId,
        user: UserId,
        expires_at: UnixMillis,
        arrival: &Arrival,
    ) -> Result<Session, Problem> {
        let session = SessionId::from_uuid(self.identity.randomness().uuid_v7(arrival.now).map_err(internal)?);
        Ok(Session { user, org, session, expires_at: expires_at.min(arrival.now.plus(SESSION_LIFETIME)) })
    }

    /// Opens a session for somebody who has proven who they are, whichever way: members alone get one.
    pub(super) async fn open(&self, session: &Session, surface: Surface, arrival: &Arrival) -> Result<Done, Problem> {
        let Session { user, org, .. } = *session;
        self.check_membership(org, user).await?;
        let open = UserCommand::OpenSession {
            session: session.session,
            surface,
            expires_at: session.expires_at,
            now: arrival.now,
        };
        let done = self.record(org, user, surface, arrival, &open).await.map_err(|problem| {
            // A first start that broke off between the two: not the fault of whoever signs in.
            if problem.code() == "user_unknown" { internal("an account has no user in the log") } else { problem }
        })?;
        for ended in sessions_ended(&done) {
            self.identity.revoke_session(ended, arrival.now).await?;
        }
        // Taken out between the first look and now, a person whose sessions were ended then would have this one left.
        if let Err(problem) = self.check_membership(org, user).await {
            self.end(session, SessionEnd::Revoked, surface, arrival).await?;
            return Err(problem);
        }
        // The organization and the user are in the view for sure once it stands at the commit that opened the session.
        self.hot.wait_for(done.position, WAIT_FOR_VIEW).await.map_err(|stale| {
            Problem::new("rights_stale", "You are signed in, but your rights are not known here yet. Sign in again.")
                .retry_after_s(1)
                .because(stale.to_string())
        })?;
        Ok(done)
    }

    /// Ends a session, in the log first: a refresh token that outlives its session is refused.
    pub(super) async fn end(
        &self,
        session: &Session,
        reason: SessionEnd,
        surface: Surface,
        arrival: &Arrival,
    ) -> Result<(), Problem> {
        let end = UserCommand::EndSession { session: session.session, reason };
        self.record(session.org, session.user, surface, arrival, &end).await?;
        Ok(self.identity.revoke_session(session.session, arrival.now).await?)
    }

    /// The tokens of a session that was just opened.
    pub(super) async fn tokens(
        &self,
        session: &Session,
        done: &Done,
        arrival: &Arrival,
    ) -> Result<Written<SignedIn>, Problem> {
        let description = self.description(session.org, session.user, arrival.now);
        let tokens = self.identity.open_session(session, &description, arrival.now).await?;
        let answer =
            self.signed_in(session, tokens.access, tokens.signed_in.expires_at, tokens.refresh, arrival.now)?;
        Ok(Written::ok(done, answer))
    }

    /// Members alone get tokens; somebody who was taken out proves who they are and gets none.
    async fn check_membership(&self, org: OrgId, user: UserId) -> Result<Position, Problem> {
        let loaded = self.commands.load::<Organization>(&StreamId::organization(org)).await?;
        match &loaded.state {
            Organization::Active(organization) if organization.members.contains(&user) => Ok(loaded.position),
            Organization::Active(_) | Organization::Unknown => {
                Err(Problem::new("membership_ended", "You do not belong to this organization any more."))
            }
        }
    }

    async fn standing(&self, session: &Session, now: UnixMillis) -> Result<Standing, Problem> {
        let loaded = self.commands.load::<User>(&StreamId::user(session.org, session.user)).await?;
        let live = match &loaded.state {
            User::Active { sessions, .. } => sessions.get(&session.session).is_some_and(|end| now < *end),
            User::Unknown | User::Deactivated { .. } => false,
        };
        if !live {
            return Ok(Standing::Ended);
        }
        match self.check_membership(session.org, session.user).await {
            Ok(position) => Ok(Standing::Live(position.max(loaded.position))),
            Err(problem) if problem.code() == "membership_ended" => Ok(Standing::NotAMember),
            Err(problem) => Err(problem),
        }
    }

    /// What a refused refresh token means for its session: one that was used twice or revoked does not keep it open.
    async fn not_refreshed(&self, error: RefreshError, surface: Surface, arrival: &Arrival) -> Problem {
        let (user, org, session, reason) = match error {
            RefreshError::Reused { user, org, session } => (user, org, session, SessionEnd::RefreshReused),
            RefreshError::Revoked { user, org, session } => (user, org, session, SessionEnd::Revoked),
            RefreshError::Invalid | RefreshError::Identity(_) => return error.into(),
        };
        let end = UserCommand::EndSession { session, reason };
        match self.record(org, user, surface, arrival, &end).await {
            Ok(_) => error.into(),
            Err(problem) => problem,
        }
    }

    /// Records on the user's stream that they signed in or that a session had to end.
    pub(super) async fn record(
        &self,
        org: OrgId,
        user: UserId,
        surface: Surface,
        arrival: &Arrival,
        command: &UserCommand,
    ) -> Result<Done, Problem> {
        let permit = self.access.identity_permit(org, user, surface, arrival.now).await?;
        let context = Context {
            command: CommandId::from_uuid(self.identity.randomness().uuid_v7(arrival.now).map_err(internal)?),
            request_digest: None,
            repeated: None,
            correlation: arrival.correlation,
            causation: None,
            now: arrival.now,
        };
        Ok(users::change(&self.commands, &permit, &context, user, command).await?)
    }

    fn description(&self, org: OrgId, user: UserId, now: UnixMillis) -> Description {
        let grants = self.hot.authorization.grants(org, user, now);
        let mut roles: Vec<_> =
            grants.iter().filter(|grant| grant.scope == Scope::Organization).map(|grant| grant.role).collect();
        roles.sort_unstable();
        roles.dedup();
        Description { roles, teams: Vec::new() }
    }

    fn signed_in(
        &self,
        session: &Session,
        access: Secret,
        access_expires_at: UnixMillis,
        refresh: Secret,
        now: UnixMillis,
    ) -> Result<SignedIn, Problem> {
        let unknown = || Problem::internal("somebody with an account has no record in the views");
        let user = self.hot.authorization.user(session.user).ok_or_else(unknown)?;
        let org = self.hot.authorization.organization(session.org);
        Ok(SignedIn {
            access_token: Disclosed(access),
            refresh_token: Disclosed(refresh),
            // Its end stands in whole seconds; what is lost by that is not told as a second less.
            expires_in: access_expires_at.since(now).get().div_ceil(1_000),
            user: SignedInUser { id: session.user.to_string(), email: user.email, name: user.name },
            org: SignedInOrg {
                id: session.org.to_string(),
                slug: org.map_or_else(String::new, |org| OrgSlug::to_string(&org.slug)),
            },
        })
    }
}

fn internal(error: impl std::fmt::Display) -> Problem {
    Problem::internal(error.to_string())
}
