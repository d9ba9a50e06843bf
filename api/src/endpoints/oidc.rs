//! Signing in through an OpenID provider, and its back channel.
//!
//! The API talks to the provider itself and takes tokens from nobody else: browsers and command lines bring codes, which are worth nothing
//! without the verifier or the device that asked (docs/adr/0008). Not here: what a person becomes (`oidc_mirror`), tokens and flows (identity).

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use envforge_domain::commit::Surface;
use envforge_domain::ids::OrgId;
use envforge_domain::session::{ClientName, SessionEnd};
use envforge_domain::slug::OrgSlug;
use envforge_identity::oidc::{
    Challenge, Client, DevicePoll, FlowError, InvalidToken, Loopback, Oidc, ProviderError, ReturnTo, Seen, TokenError,
    WebAnswer,
};
use envforge_identity::submitted::SubmittedSecret;
use envforge_identity::tokens::Session;
use envforge_projections::Hot;
use http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::{Auth, client_name};
use super::oidc_mirror::{open_session, surface_of};
use super::sign_in_page::{client_for, failed_page, is_navigation, welcome};
use crate::address_rate::AddressRate;
use crate::browser::{Browsers, Cookie};
use crate::disclosed::Disclosed;
use crate::edge::Arrival;
use crate::page::{Query, wrong_query};
use crate::problem::Problem;
use crate::reads::Reads;
use crate::request_body::{Json, collect};
use crate::sessions::SignedIn;
use crate::write::Written;

/// Sign-ins that one address may begin in a minute. Each is a request to the provider or a row.
const BEGUN_MAX: u32 = 60;
/// Codes and devices that one address may ask about in a minute: an office of people at terminals asks every five seconds each.
const ASKED_MAX: u32 = 600;
/// A logout token has about 700 bytes.
const LOGOUT_BODY_BYTES_MAX: usize = 32 * 1024;
const TEXT_CHARS_MAX: usize = 256;
/// What the list of sessions calls one that opens workspaces.
const WORKSPACES_NAME: &str = "sign-in to workspaces";

#[derive(Clone)]
pub(crate) struct Login {
    pub(super) auth: Auth,
    pub(super) hot: Arc<Hot>,
    reads: Reads,
    provider: Option<(Arc<Oidc>, Browsers)>,
    begun: Arc<AddressRate>,
    pub(super) asked: Arc<AddressRate>,
}

impl Login {
    pub(crate) fn new(
        auth: Auth,
        hot: Arc<Hot>,
        reads: Reads,
        oidc: Option<Arc<Oidc>>,
        browsers: Option<Browsers>,
    ) -> Self {
        let rate = |per_minute| Arc::new(AddressRate::new("too_many_sign_ins", per_minute));
        Self { auth, hot, reads, provider: oidc.zip(browsers), begun: rate(BEGUN_MAX), asked: rate(ASKED_MAX) }
    }

    pub(super) fn provider(&self) -> Result<(&Oidc, &Browsers), Problem> {
        match &self.provider {
            Some((oidc, browsers)) => Ok((oidc, browsers)),
            None => Err(Problem::new("provider_not_configured", "No OpenID provider is configured here.")),
        }
    }

    /// The provider, for a client that is registered there.
    fn provider_for(&self, client: Client) -> Result<(&Oidc, &Browsers), Problem> {
        let (oidc, browsers) = self.provider()?;
        match oidc.config().client(client) {
            Some(_) => Ok((oidc, browsers)),
            None => Err(FlowError::NoClient(client).into()),
        }
    }

    /// What the provider's answer proved. A refused one says nothing certain of who it was for: the audit has it among the
    /// records of the installation, like a wrong address.
    fn proven<T>(&self, outcome: Result<T, FlowError>, client: Client, arrival: &Arrival) -> Result<T, Problem> {
        outcome.map_err(|error| self.refused(error.into(), client, arrival))
    }

    fn refused(&self, problem: Problem, client: Client, arrival: &Arrival) -> Problem {
        let outcome = Err::<std::convert::Infallible, _>(problem);
        let Err(problem) = self.auth.access.sign_in_outcome(outcome, None, surface_of(client), arrival);
        problem
    }
}

pub(crate) fn routes() -> OpenApiRouter<Login> {
    OpenApiRouter::new()
        .routes(routes!(providers))
        .routes(routes!(start))
        .routes(routes!(callback))
        .routes(routes!(device))
        .routes(routes!(device_token))
        .routes(routes!(loopback))
        .routes(routes!(loopback_token))
        .routes(routes!(backchannel_logout))
}

/// Ways to sign in.
#[derive(Serialize, ToSchema)]
struct Providers {
    items: Vec<ProviderItem>,
}

#[derive(Serialize, ToSchema)]
struct ProviderItem {
    /// `password` or `oidc`.
    id: &'static str,
    /// The OpenID provider's issuer.
    issuer: Option<String>,
    /// `password`; `web` (GET /v1/auth/oidc/start), `device` and `loopback`.
    flows: Vec<&'static str>,
}

/// How somebody can sign in here.
#[utoipa::path(get, path = "/v1/auth/providers", tag = "auth", responses((status = 200, body = Providers)),
    extensions(("x-envforge-action" = json!("public"))))]
async fn providers(State(state): State<Login>) -> axum::Json<Providers> {
    let mut items = vec![ProviderItem { id: "password", issuer: None, flows: vec!["password"] }];
    if let Some((oidc, _)) = &state.provider {
        let has = |client| oidc.config().client(client).is_some();
        let mut flows = Vec::new();
        flows.extend(has(Client::Web).then_some("web"));
        flows.extend(has(Client::Cli).then_some("device"));
        flows.extend(has(Client::Cli).then_some("loopback"));
        items.push(ProviderItem { id: "oidc", issuer: Some(oidc.config().issuer().to_owned()), flows });
    }
    axum::Json(Providers { items })
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct StartQuery {
    /// Slug of the organization; without it the provider asks, or there is but one.
    organization: Option<String>,
    /// Path of this site to which the browser goes when it is signed in; `/` where it is left out.
    return_to: Option<String>,
}

/// Begin to sign in with a browser: it is sent to the provider. On the way to a workspace (`return_to=/open?…`) as the Gateway's
/// client, where there is one: the session that follows opens workspaces and counts for nothing else.
#[utoipa::path(get, path = "/v1/auth/oidc/start", tag = "auth", params(StartQuery), responses((status = 303)),
    extensions(("x-envforge-action" = json!("public"))))]
async fn start(
    State(state): State<Login>,
    arrival: Arrival,
    headers: HeaderMap,
    Query(query): Query<StartQuery>,
) -> Result<Response, Problem> {
    let (oidc, _) = state.provider()?;
    let return_to = match query.return_to.as_deref() {
        None => ReturnTo::default(),
        Some(text) => ReturnTo::parse(text).map_err(|error| wrong_query("return_to", error))?,
    };
    let client = client_for(oidc.config(), &return_to);
    let (oidc, browsers) = state.provider_for(client)?;
    let organization = organization(oidc, &state.hot, query.organization.as_deref())?;
    state.begun.take(&arrival)?;
    let known = browsers.get(Cookie::Flow, &headers);
    let begun = oidc.begin_web(client, organization.as_deref(), return_to, known, arrival.now).await?;
    let cookie = browsers.set(Cookie::Flow, &begun.browser, begun.lifetime)?;
    Ok((StatusCode::SEE_OTHER, [(header::SET_COOKIE, cookie), (header::LOCATION, location(&begun.url)?)])
        .into_response())
}

/// What the provider sends along with the browser. It may send more.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct CallbackQuery {
    state: Option<String>,
    code: Option<String>,
    error: Option<String>,
    /// RFC 9207.
    iss: Option<String>,
}

/// Where the provider sends the browser back to: it is signed in by a cookie and goes on to `return_to`.
#[utoipa::path(get, path = "/v1/auth/oidc/callback", tag = "auth", params(CallbackQuery), responses((status = 303)),
    extensions(("x-envforge-action" = json!("public"))))]
async fn callback(
    State(state): State<Login>,
    arrival: Arrival,
    headers: HeaderMap,
    Query(query): Query<CallbackQuery>,
) -> Result<Response, Problem> {
    match called_back(&state, &arrival, &headers, &query).await {
        Err(problem) if is_navigation(&headers) => Ok(failed_page(problem)),
        answer => answer,
    }
}

async fn called_back(
    state: &Login,
    arrival: &Arrival,
    headers: &HeaderMap,
    query: &CallbackQuery,
) -> Result<Response, Problem> {
    let (oidc, browsers) = state.provider()?;
    state.asked.take(arrival)?;
    let browser = browsers.get(Cookie::Flow, headers);
    let returned = oidc.returned(query.state.as_deref().unwrap_or_default(), browser.as_ref(), arrival.now).await;
    // Which client a made-up state was for, nobody can tell.
    let returned = state.proven(returned, Client::Web, arrival)?;
    let client = returned.client();
    let answer = WebAnswer { code: query.code.as_deref(), error: query.error.as_deref(), issuer: query.iss.as_deref() };
    let finished = oidc.finish_web(returned, answer, arrival.now).await;
    let (proven, return_to) = state.proven(finished, client, arrival)?;
    let name = match client {
        Client::Gateway => {
            Some(ClientName::parse(WORKSPACES_NAME).map_err(|error| Problem::internal(error.to_string()))?)
        }
        Client::Web | Client::Cli => None,
    };
    let opened = open_session(state, oidc, &proven, name, arrival).await?;
    welcome(&state.auth, &state.reads, browsers, headers, &opened, &return_to, arrival).await
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct DeviceRequest {
    /// Slug of the organization; without it the provider decides, or there is but one.
    organization: Option<String>,
}

/// A sign-in that waits for a person at the provider's page.
#[derive(Serialize, ToSchema)]
struct Device {
    #[schema(value_type = String)]
    device_code: Disclosed,
    user_code: String,
    /// Where the person enters the code.
    verification_uri: String,
    /// The same with the code in it.
    verification_uri_complete: Option<String>,
    /// Seconds.
    expires_in: u64,
    /// Seconds between two questions.
    interval: u64,
}

/// Begin to sign in at a terminal: somebody opens the page, anywhere.
#[utoipa::path(post, path = "/v1/auth/oidc/device", tag = "auth", request_body = DeviceRequest,
    responses((status = 200, body = Device)), extensions(("x-envforge-action" = json!("public"))))]
async fn device(
    State(state): State<Login>,
    arrival: Arrival,
    Json(request): Json<DeviceRequest>,
) -> Result<axum::Json<Device>, Problem> {
    let (oidc, _) = state.provider_for(Client::Cli)?;
    let organization = organization(oidc, &state.hot, request.organization.as_deref())?;
    state.begun.take(&arrival)?;
    let device = oidc.begin_device(organization.as_deref(), arrival.now).await?;
    Ok(axum::Json(Device {
        device_code: Disclosed(device.device_code),
        user_code: device.user_code,
        verification_uri: device.verification_uri,
        verification_uri_complete: device.verification_uri_complete,
        expires_in: device.expires_in_s,
        interval: device.interval_s,
    }))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct DeviceTokenRequest {
    #[schema(value_type = String, format = Password)]
    device_code: SubmittedSecret,
    /// What the program calls itself, for the list of sessions: 1 to 100 characters.
    client: Option<String>,
}

/// Nobody has decided yet.
#[derive(Serialize, ToSchema)]
struct Waiting {
    /// `pending`; `slow_down`: ask five seconds less often from now on.
    status: &'static str,
}

/// Ask whether somebody has signed the terminal in.
#[utoipa::path(post, path = "/v1/auth/oidc/device/token", tag = "auth", request_body = DeviceTokenRequest,
    responses((status = 200, body = SignedIn), (status = 202, body = Waiting)), extensions(("x-envforge-action" = json!("public"))))]
async fn device_token(
    State(state): State<Login>,
    arrival: Arrival,
    Json(request): Json<DeviceTokenRequest>,
) -> Result<Response, Problem> {
    let (oidc, _) = state.provider_for(Client::Cli)?;
    let client = client_name(request.client.as_deref())?;
    state.asked.take(&arrival)?;
    let waiting = |status| Ok((StatusCode::ACCEPTED, axum::Json(Waiting { status })).into_response());
    let polled = oidc.poll_device(&request.device_code.into_secret(), arrival.now).await;
    let refused = |problem| state.refused(problem, Client::Cli, &arrival);
    match state.proven(polled, Client::Cli, &arrival)? {
        DevicePoll::Proven(proven) => {
            let opened = open_session(&state, oidc, &proven, client, &arrival).await?;
            let tokens = state.auth.sessions.tokens(&opened, arrival.now).await?;
            Ok(Written::ok(opened.position, tokens).into_response())
        }
        DevicePoll::Pending => waiting("pending"),
        DevicePoll::SlowDown => waiting("slow_down"),
        DevicePoll::Denied => {
            Err(refused(Problem::new("sign_in_denied", "Somebody said no at the identity provider's page."))
                .with("reason", "access_denied"))
        }
        DevicePoll::Expired => {
            Err(refused(Problem::new("sign_in_expired", "Nobody has entered the code in time, or it was used before.")))
        }
    }
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct LoopbackRequest {
    /// Where the command line listens on its machine: http://127.0.0.1:PORT/callback.
    port: u16,
    /// Random text that the browser brings back.
    state: String,
    /// Random text that the ID token must hold.
    nonce: String,
    /// PKCE, S256.
    code_challenge: String,
    /// Slug of the organization; without it the provider asks, or there is but one.
    organization: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct LoopbackUrl {
    /// Where the browser goes.
    url: String,
}

/// Begin to sign in with a browser on the command line's own machine.
#[utoipa::path(post, path = "/v1/auth/oidc/loopback", tag = "auth", request_body = LoopbackRequest,
    responses((status = 200, body = LoopbackUrl)), extensions(("x-envforge-action" = json!("public"))))]
async fn loopback(
    State(state): State<Login>,
    arrival: Arrival,
    Json(request): Json<LoopbackRequest>,
) -> Result<axum::Json<LoopbackUrl>, Problem> {
    let (oidc, _) = state.provider_for(Client::Cli)?;
    let organization = organization(oidc, &state.hot, request.organization.as_deref())?;
    let challenge = Challenge::parse(&request.code_challenge)
        .ok_or_else(|| Problem::value("code_challenge", "expected a SHA-256 in base64url, 43 characters"))?;
    random_text("state", &request.state)?;
    random_text("nonce", &request.nonce)?;
    state.begun.take(&arrival)?;
    let here = Loopback { port: port(request.port)?, nonce: &request.nonce };
    let url = oidc.begin_loopback(here, &request.state, &challenge, organization.as_deref(), arrival.now).await?;
    Ok(axum::Json(LoopbackUrl { url }))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct LoopbackTokenRequest {
    /// As when it was begun.
    port: u16,
    nonce: String,
    #[schema(value_type = String, format = Password)]
    code: SubmittedSecret,
    #[schema(value_type = String, format = Password)]
    code_verifier: SubmittedSecret,
    /// What the program calls itself, for the list of sessions: 1 to 100 characters.
    client: Option<String>,
}

/// Trade what the browser brought to the command line.
#[utoipa::path(post, path = "/v1/auth/oidc/loopback/token", tag = "auth", request_body = LoopbackTokenRequest,
    responses((status = 200, body = SignedIn)), extensions(("x-envforge-action" = json!("public"))))]
async fn loopback_token(
    State(state): State<Login>,
    arrival: Arrival,
    Json(request): Json<LoopbackTokenRequest>,
) -> Result<Written<SignedIn>, Problem> {
    let (oidc, _) = state.provider_for(Client::Cli)?;
    let client = client_name(request.client.as_deref())?;
    random_text("nonce", &request.nonce)?;
    let verifier = request.code_verifier.into_secret();
    random_text("code_verifier", verifier.expose())?;
    state.asked.take(&arrival)?;
    let here = Loopback { port: port(request.port)?, nonce: &request.nonce };
    let code = request.code.into_secret();
    let finished = oidc.finish_loopback(here, code.expose(), &verifier, arrival.now).await;
    let proven = state.proven(finished, Client::Cli, &arrival)?;
    let opened = open_session(&state, oidc, &proven, client, &arrival).await?;
    let tokens = state.auth.sessions.tokens(&opened, arrival.now).await?;
    Ok(Written::ok(opened.position, tokens))
}

/// The form of OpenID Connect Back-Channel Logout 1.0.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes the form, which is read by hand")]
struct LogoutForm {
    logout_token: String,
}

/// The provider says that somebody has signed out there: their sessions here end.
#[utoipa::path(post, path = "/v1/auth/oidc/backchannel-logout", tag = "auth",
    request_body(content = LogoutForm, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200)), extensions(("x-envforge-action" = json!("public"))))]
async fn backchannel_logout(
    State(state): State<Login>,
    arrival: Arrival,
    request: Request,
) -> Result<StatusCode, Problem> {
    let (oidc, _) = state.provider()?;
    let body = collect(request.into_body(), LOGOUT_BODY_BYTES_MAX).await?;
    let token = logout_token(&body).ok_or_else(|| {
        Problem::new("body_invalid", "Send a form with `logout_token` (application/x-www-form-urlencoded).")
    })?;
    let logout = oidc.verify_logout_token(token, arrival.now).await.map_err(|error| match error {
        TokenError::Invalid(invalid) => {
            Problem::new("logout_token_invalid", format!("{invalid}.")).with("reason", invalid.code())
        }
        TokenError::Provider(error) => error.into(),
    })?;
    let internal = |error: envforge_identity::credentials::CredentialsError| Problem::internal(error.to_string());
    if oidc.seen("logout", &logout.id).await.map_err(internal)? == Seen::Before {
        return Ok(StatusCode::OK);
    }
    let (subject, session) = (logout.subject.as_deref(), logout.provider_session.as_deref());
    let ended = oidc.end(subject, session, logout.issued_at, arrival.now).await.map_err(internal)?;
    for ended in &ended {
        // Its length does not matter to whoever ends it.
        let session = Session { user: ended.user, org: ended.org, session: ended.session, expires_at: arrival.now };
        state.auth.sessions.end(&session, SessionEnd::LoggedOut, Surface::Api, &arrival).await?;
    }
    metrics::counter!("envforge_provider_logouts_total").increment(1);
    tracing::info!(sessions = ended.len(), "the identity provider ended sessions");
    oidc.mark_seen("logout", &logout.id, logout.expires_at).await.map_err(internal)?;
    Ok(StatusCode::OK)
}

/// The one member that counts. A JWT needs no percent-encoding, so what has one is none.
fn logout_token(body: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(body).ok()?;
    let mut values = text.split('&').filter_map(|pair| pair.strip_prefix("logout_token="));
    match (values.next(), values.next()) {
        (Some(token), None) if !token.is_empty() && !token.contains(['%', '+']) => Some(token),
        _ => None,
    }
}

/// The provider's id of an organization that somebody names by our slug or id. The only one there is need not be named.
fn organization(oidc: &Oidc, hot: &Hot, slug: Option<&str>) -> Result<Option<String>, Problem> {
    match (slug, oidc.config().organizations()) {
        (None, [only]) => Ok(Some(only.provider_id.clone())),
        (None, _) => Ok(None),
        (Some(slug), _) => {
            // The command line may have remembered its id.
            let by_id = slug.parse::<OrgId>().ok().and_then(|id| hot.authorization.organization(id));
            let slug: OrgSlug = match by_id {
                Some(organization) => organization.slug,
                None => slug.parse().map_err(|_| Problem::not_found())?,
            };
            let mapped = oidc.config().organization_of(&slug).ok_or_else(Problem::not_found)?;
            Ok(Some(mapped.provider_id.clone()))
        }
    }
}

fn random_text(field: &str, text: &str) -> Result<(), Problem> {
    let fits = (43..=TEXT_CHARS_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    if fits { Ok(()) } else { Err(Problem::value(field, "expected 43 to 256 visible ASCII characters")) }
}

/// Ports below belong to services of the machine.
fn port(port: u16) -> Result<u16, Problem> {
    if port >= 1_024 { Ok(port) } else { Err(Problem::value("port", "expected 1024 or above")) }
}

fn location(url: &str) -> Result<http::HeaderValue, Problem> {
    http::HeaderValue::from_str(url).map_err(|_| Problem::internal("a location is not visible ASCII"))
}

impl From<FlowError> for Problem {
    fn from(error: FlowError) -> Self {
        match error {
            FlowError::NoClient(_) => Self::new("provider_not_configured", format!("{error}.")),
            FlowError::StateUnknown => Self::new("sign_in_unknown", format!("{error}. Begin again.")),
            FlowError::Denied { error: reason } => {
                Self::new("sign_in_denied", "The identity provider did not sign you in.").with("reason", reason)
            }
            FlowError::CodeRefused => {
                Self::new("sign_in_invalid", format!("{error}. Begin again.")).with("reason", "code")
            }
            FlowError::OtherIssuer => Self::new("sign_in_invalid", format!("{error}.")).with("reason", "issuer"),
            FlowError::Token(invalid) => invalid.into(),
            FlowError::Provider(error) => error.into(),
            FlowError::Credentials(error) => Self::internal(error.to_string()),
            FlowError::NoRandomness(error) => Self::internal(error.to_string()),
        }
    }
}

impl From<InvalidToken> for Problem {
    fn from(invalid: InvalidToken) -> Self {
        Self::new("sign_in_invalid", format!("The identity provider's answer was not accepted: {invalid}."))
            .with("reason", invalid.code())
    }
}

impl From<ProviderError> for Problem {
    fn from(error: ProviderError) -> Self {
        match error {
            ProviderError::NotOffered(_) => Self::new("provider_not_configured", format!("{error}.")),
            // What it says stands in our logs: it is about our configuration.
            ProviderError::Refused { ref error, ref description } => {
                Self::internal(format!("the identity provider refused: {error}: {description}"))
            }
            ProviderError::Unreachable(_)
            | ProviderError::Status(_)
            | ProviderError::TooLarge
            | ProviderError::Malformed(_) => {
                Self::new("provider_unavailable", "The identity provider cannot be asked right now. Try again.")
                    .retry_after_s(5)
                    .because(error.to_string())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_form_of_a_logout_has_one_token() {
        assert_eq!(logout_token(b"logout_token=a.b.c"), Some("a.b.c"));
        assert_eq!(logout_token(b"x=1&logout_token=a.b.c&y"), Some("a.b.c"));
        for wrong in ["", "logout_token=", "logout_token=a&logout_token=b", "token=a", "logout_token=a%2Eb", "{}"] {
            assert_eq!(logout_token(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
