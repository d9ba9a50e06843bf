//! Signing in and out, and proving once more who one is.
//!
//! Identity proves who somebody is; `sessions` opens and ends what follows from it. Requests that carry a refresh token or open
//! a session are not idempotent by key: a refresh token works once.

use axum::extract::State;
use envforge_commands::{Commands, users};
use envforge_domain::access::Action;
use envforge_domain::commit::Surface;
use envforge_domain::session::{ClientName, LOCAL_ISSUER, SessionEnd};
use envforge_domain::user::UserCommand;
use envforge_identity::self_hosted::{ChangeError, LoginAttempt, LoginError, PasswordChange};
use envforge_identity::sessions::RefreshError;
use envforge_identity::sign_in::{Identity, Proven};
use envforge_identity::submitted::SubmittedSecret;
use envforge_identity::tokens::Session;
use http::HeaderMap;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::has_access;
use crate::access::{Access, Caller, act, surface_of};
use crate::disclosed::Disclosed;
use crate::edge::Arrival;
use crate::instant::Instant;
use crate::problem::Problem;
use crate::request_body::{Empty, Json};
use crate::revocation::Receipt;
use crate::sessions::{Sessions, SignedIn, Standing, internal, not_allowed, part_of, session_ended, whole_seconds};
use crate::write::{Happened, Write, Written};

#[derive(Clone)]
pub(crate) struct Auth {
    pub(crate) access: Access,
    pub(crate) identity: Arc<Identity>,
    pub(crate) commands: Commands,
    pub(crate) sessions: Sessions,
}

has_access!(Auth);

pub(crate) fn routes() -> OpenApiRouter<Auth> {
    OpenApiRouter::new()
        .routes(routes!(login))
        .routes(routes!(refresh))
        .routes(routes!(logout))
        .routes(routes!(logout_all))
        .routes(routes!(reauthenticate))
        .routes(routes!(change_password))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct LoginRequest {
    email: String,
    #[schema(value_type = String, format = Password)]
    password: SubmittedSecret,
    /// What the program calls itself, for the list of sessions: 1 to 100 characters.
    client: Option<String>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct RefreshRequest {
    #[schema(value_type = String, format = Password)]
    refresh_token: SubmittedSecret,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ReauthenticateRequest {
    #[schema(value_type = String, format = Password)]
    password: SubmittedSecret,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PasswordRequest {
    /// The present one.
    #[schema(value_type = String, format = Password)]
    password: SubmittedSecret,
    /// At least 12 characters, at most 72 bytes, and none that anybody would guess.
    #[schema(value_type = String, format = Password)]
    new_password: SubmittedSecret,
}

/// A new access token of the same session, which says when its person last proved who they are.
#[derive(Serialize, ToSchema)]
struct Reauthenticated {
    #[schema(value_type = String)]
    access_token: Disclosed,
    /// Seconds for which the access token is good.
    expires_in: u64,
    authenticated_at: Instant,
}

/// What the change closed, and a session to go on with.
#[derive(Serialize, ToSchema)]
struct PasswordChanged {
    revoked: Receipt,
    signed_in: SignedIn,
}

/// Sign in with e-mail address and password. The session counts on the surface that `EnvForge-Surface` names, and on no
/// other.
#[utoipa::path(post, path = "/v1/auth/login", tag = "auth", request_body = LoginRequest,
    responses((status = 200, body = SignedIn)), extensions(("x-envforge-action" = json!("public"))))]
async fn login(
    State(auth): State<Auth>,
    arrival: Arrival,
    headers: HeaderMap,
    Json(request): Json<LoginRequest>,
) -> Result<Written<SignedIn>, Problem> {
    let surface = surface_of(&headers)?.unwrap_or(Surface::Api);
    let client = client_name(request.client.as_deref())?;
    let attempt =
        LoginAttempt { email: request.email, password: request.password.into_secret(), address: arrival.address };
    let proven = auth.prove(attempt, surface, &arrival).await?;
    let opened = auth.sessions.open(&proven, surface, client, &arrival).await;
    let (position, signed_in) =
        auth.access.sign_in_outcome(opened, Some((proven.org, proven.user)), surface, &arrival)?;
    Ok(Written::ok(position, signed_in))
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
    let named = surface_of(&headers)?;
    let surface = named.unwrap_or(Surface::Api);
    let token = request.refresh_token.into_secret();
    let session = match auth.identity.sessions().session_of(&token, arrival.now).await {
        Ok(session) => session,
        Err(error) => return Err(auth.not_refreshed(error, surface, &arrival).await),
    };
    // The token is used only now that its session is known to stand: where the log cannot say, it works again.
    let (opened, position) = match auth.sessions.standing(&session, arrival.now).await? {
        Standing::Live { opened, position } => (opened, position),
        Standing::NotAllowed { opened, over } => {
            let (who, refused) = (Some((session.org, session.user)), Err(not_allowed(over, &opened)));
            return auth.access.sign_in_outcome(refused, who, opened.surface, &arrival);
        }
        Standing::Ended => {
            auth.identity.sessions().revoke_session(session.session, arrival.now).await?;
            return Err(session_ended());
        }
        Standing::NotAMember => {
            let end = UserCommand::EndSession { session: session.session, reason: SessionEnd::Revoked };
            auth.sessions.record(session.org, session.user, surface, &arrival, &end).await?;
            auth.identity.sessions().revoke_session(session.session, arrival.now).await?;
            return Err(session_ended());
        }
    };
    if named.is_some_and(|named| named != opened.surface) {
        return Err(other_surface(opened.surface));
    }
    let refreshed = match auth.identity.sessions().refresh(&token, arrival.now).await {
        Ok(refreshed) => refreshed,
        Err(error) => return Err(auth.not_refreshed(error, opened.surface, &arrival).await),
    };
    let description = auth.sessions.description(session.org, session.user, arrival.now);
    let (access, signed_in) = auth.identity.sessions().mint(&session, &opened, &description, arrival.now)?;
    let answer = auth.sessions.signed_in(&session, access, signed_in.expires_at, refreshed.refresh, arrival.now)?;
    Ok(Written::ok(position, answer))
}

/// End this session.
#[utoipa::path(post, path = "/v1/auth/logout", tag = "auth", responses((status = 204)),
    extensions(("x-envforge-action" = json!("session.revoke_own"))))]
async fn logout(State(auth): State<Auth>, request: Write<Empty>) -> Result<Happened, Problem> {
    let Write { caller, context, .. } = request;
    let permit = auth.access.permit(&caller, Action::SessionRevokeOwn, caller.own()).await?;
    let session = caller.session_id()?;
    let end = UserCommand::EndOwnSession { session };
    let done = act!(auth.access, &caller, permit, users::change(&auth.commands, permit, &context, caller.user, &end));
    // Only after the log knows: a refresh token that outlives its session is refused, the other way round it would be
    // a session that nobody can end by refreshing.
    auth.identity.sessions().revoke_session(session, caller.arrival.now).await?;
    Ok(Happened::new(&done))
}

/// End all of one's own sessions, this one too.
#[utoipa::path(post, path = "/v1/auth/logout-all", tag = "auth", responses((status = 200, body = Receipt)),
    extensions(("x-envforge-action" = json!("session.revoke_own"))))]
async fn logout_all(State(auth): State<Auth>, request: Write<Empty>) -> Result<Written<Receipt>, Problem> {
    let Write { caller, context, .. } = request;
    let permit = auth.access.permit(&caller, Action::SessionRevokeOwn, caller.own()).await?;
    let revoking = auth.sessions.revoking(caller.org, caller.user, SessionEnd::LoggedOut, context.now).await?;
    let end = UserCommand::EndOwnSessions;
    let done = act!(auth.access, &caller, permit, users::change(&auth.commands, permit, &context, caller.user, &end));
    auth.identity.sessions().revoke_user(caller.user, caller.arrival.now).await?;
    let receipt = auth.sessions.receipt(revoking, &done, caller.surface, &context).await?;
    Ok(Written::ok(&done, receipt))
}

/// Prove once more who one is, within the session: some actions want a proof that is at most 15 minutes old.
#[utoipa::path(post, path = "/v1/auth/reauthenticate", tag = "auth", request_body = ReauthenticateRequest,
    responses((status = 200, body = Reauthenticated)),
    extensions(("x-envforge-action" = json!("session.reauthenticate"))))]
async fn reauthenticate(
    State(auth): State<Auth>,
    request: Write<Json<ReauthenticateRequest>>,
) -> Result<Written<Reauthenticated>, Problem> {
    let Write { caller, body: Json(request), context } = request;
    let arrival = caller.arrival;
    let permit = auth.access.permit(&caller, Action::SessionReauthenticate, caller.own()).await?;
    let account = auth.identity.self_hosted().credentials().account_of(caller.user).await.map_err(internal)?;
    let Some(account) = account else { return Err(no_password()) };
    let attempt = LoginAttempt {
        email: account.email.as_str().to_owned(),
        password: request.password.into_secret(),
        address: arrival.address,
    };
    let proven = auth.prove(attempt, caller.surface, &arrival).await?;
    let prove =
        UserCommand::Reauthenticate { session: caller.session_id()?, authenticated_at: proven.authenticated_at };
    let done = act!(auth.access, &caller, permit, users::change(&auth.commands, permit, &context, caller.user, &prove));
    let session = caller.session()?;
    let Standing::Live { opened, .. } = auth.sessions.standing(&session, arrival.now).await? else {
        return Err(session_ended());
    };
    let session = Session { expires_at: opened.expires_at, ..session };
    let description = auth.sessions.description(caller.org, caller.user, arrival.now);
    let (access, signed_in) = auth.identity.sessions().mint(&session, &opened, &description, arrival.now)?;
    let answer = Reauthenticated {
        access_token: Disclosed(access),
        expires_in: whole_seconds(signed_in.expires_at.since(arrival.now)),
        authenticated_at: opened.authenticated_at.into(),
    };
    Ok(Written::ok(&done, answer))
}

/// Change one's own password. All sessions end; the answer holds a new one.
#[utoipa::path(post, path = "/v1/auth/change-password", tag = "auth", request_body = PasswordRequest,
    responses((status = 200, body = PasswordChanged)),
    extensions(("x-envforge-action" = json!("password.change_own"))))]
async fn change_password(
    State(auth): State<Auth>,
    request: Write<Json<PasswordRequest>>,
) -> Result<Written<PasswordChanged>, Problem> {
    let Write { caller, body: Json(request), context } = request;
    let arrival = caller.arrival;
    let permit = auth.access.permit(&caller, Action::PasswordChangeOwn, caller.own()).await?;
    let client = match auth.sessions.standing(&caller.session()?, arrival.now).await? {
        Standing::Live { opened, .. } => opened.client,
        Standing::NotAllowed { .. } | Standing::Ended | Standing::NotAMember => return Err(session_ended()),
    };
    let revoking = auth.sessions.revoking(caller.org, caller.user, SessionEnd::PasswordChanged, arrival.now).await?;
    let change = PasswordChange {
        user: caller.user,
        present: request.password.into_secret(),
        new: request.new_password.into_secret(),
        address: arrival.address,
    };
    // The table first: whatever breaks off from here on, the old password works no more, and the same request again ends
    // the sessions.
    match auth.identity.self_hosted().change_password(change, arrival.now).await {
        Ok(()) => {}
        Err(ChangeError::Login(error)) => {
            auth.failed(&error, caller.surface, &arrival);
            return Err(error.into());
        }
        Err(error) => return Err(error.into()),
    }
    let change = UserCommand::ChangeOwnPassword;
    let done =
        act!(auth.access, &caller, permit, users::change(&auth.commands, permit, &context, caller.user, &change));
    auth.identity.sessions().revoke_user(caller.user, arrival.now).await?;
    let revoked = auth.sessions.receipt(revoking, &done, caller.surface, &part_of(&context, "change")).await?;
    let proven = Proven {
        user: caller.user,
        org: caller.org,
        provider: LOCAL_ISSUER.to_owned(),
        authenticated_at: arrival.now,
        ends_by: None,
    };
    let (position, signed_in) = auth.sessions.open(&proven, caller.surface, Some(client), &arrival).await?;
    Ok(Written::ok(position, PasswordChanged { revoked, signed_in }))
}

/// The session is of another surface than the request says.
pub(crate) fn other_surface(surface: Surface) -> Problem {
    let token = surface.token();
    let detail = match surface {
        Surface::Gateway => {
            "This browser is signed in for opening workspaces, which counts nowhere else. Sign in here: /sign-in."
                .to_owned()
        }
        Surface::Api | Surface::Cli | Surface::Console | Surface::Agent => format!(
            "This session was opened for `{token}` and counts nowhere else. Leave `EnvForge-Surface` out, or sign in there."
        ),
    };
    Problem::new("session_of_another_surface", detail).with("surface", token)
}

/// What a program calls itself.
pub(super) fn client_name(given: Option<&str>) -> Result<Option<ClientName>, Problem> {
    given.map(ClientName::parse).transpose().map_err(|error| Problem::value("client", error))
}

fn no_password() -> Problem {
    Problem::new("no_password_here", "This account has no password here: it signs in with an identity provider.")
}

impl Auth {
    /// Proves a password, and has a failure counted.
    pub(super) async fn prove(
        &self,
        attempt: LoginAttempt,
        surface: Surface,
        arrival: &Arrival,
    ) -> Result<Proven, Problem> {
        match self.identity.self_hosted().login(attempt, arrival.now).await {
            Ok(account) => Ok(Proven {
                user: account.user,
                org: account.org,
                provider: LOCAL_ISSUER.to_owned(),
                authenticated_at: arrival.now,
                ends_by: None,
            }),
            Err(error) => {
                self.failed(&error, surface, arrival);
                Err(error.into())
            }
        }
    }

    fn failed(&self, error: &LoginError, surface: Surface, arrival: &Arrival) {
        if let LoginError::WrongCredentials { account } = error {
            self.access.record_failed_login(account.as_ref(), surface, arrival);
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
        match self.sessions.record(org, user, surface, arrival, &end).await {
            Ok(_) => error.into(),
            Err(problem) => problem,
        }
    }
}

impl From<ChangeError> for Problem {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::Weak(weak) => Self::from(weak).with("field", "new_password"),
            ChangeError::Login(error) => error.into(),
            ChangeError::NoPassword => no_password(),
            ChangeError::Overtaken => Self::new("contended", error.to_string()).retry_after_s(1),
            ChangeError::Account(error) => super::members::account_problem(error),
            ChangeError::Identity(error) => error.into(),
        }
    }
}

impl Caller {
    /// The session that the caller acts in. Its end is the access token's, and later in truth.
    fn session(&self) -> Result<Session, Problem> {
        let session = self.session_id()?;
        Ok(Session { user: self.user, org: self.org, session, expires_at: self.expires_at })
    }
}
