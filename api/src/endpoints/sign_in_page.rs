//! Pages on which people sign in and out with a browser, and the way on to a workspace's host.
//!
//! A form counts where it was sent from our own page, says the browser; a sign-in leads to paths of this site alone, or to a
//! workspace's host, whose name the gateway's address ends. Not here: sessions (`sessions`), an OpenID provider (`oidc`), and
//! what a page looks like (`pages`).

use std::sync::Arc;

use axum::Router;
use axum::extract::{FromRequestParts, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use envforge_commands::context::derived_uuid;
use envforge_commands::{Commands, Context, users};
use envforge_domain::access::{Action, Resource};
use envforge_domain::commit::Surface;
use envforge_domain::ids::CommandId;
use envforge_domain::secret::Secret;
use envforge_domain::session::SessionEnd;
use envforge_domain::slug::HostLabel;
use envforge_domain::user::UserCommand;
use envforge_domain::workspace::AccessMode;
use envforge_identity::oidc::{self, Client, Oidc, ReturnTo};
use envforge_identity::self_hosted::LoginAttempt;
use envforge_identity::tokens::Session;
use envforge_identity::workspace_handoff::{WorkspaceHandoff, browser_of};
use envforge_projections::Hot;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Deserialize;

use super::auth::Auth;
use crate::access::{Access, Caller, act};
use crate::address_rate::AddressRate;
use crate::browser::{Browsers, Cookie};
use crate::edge::Arrival;
use crate::form::{Form, encoded};
use crate::page::Query;
use crate::pages::{self, Person, SignInPage};
use crate::problem::Problem;
use crate::reads::Reads;
use crate::sessions::{Opened, internal};
use crate::share::Share;

/// Forms that strangers send: they take no place of whoever has signed in.
pub(crate) const FORMS: [&str; 2] = ["/sign-in", "/sign-out"];
/// Where a workspace's host sends browsers.
const OPEN_PATH: &str = "/open";

#[derive(Clone)]
pub(crate) struct SignInPages {
    pub(crate) access: Access,
    pub(crate) auth: Auth,
    pub(crate) commands: Commands,
    pub(crate) reads: Reads,
    pub(crate) hot: Arc<Hot>,
    pub(crate) browsers: Browsers,
    pub(crate) oidc: Option<Arc<Oidc>>,
    pub(crate) share: Share,
}

impl axum::extract::FromRef<SignInPages> for Access {
    fn from_ref(state: &SignInPages) -> Self {
        state.access.clone()
    }
}

/// Not part of the documented API: people use these, programs have `/v1`. Signing out is held up by nobody else at one's address.
pub(crate) fn routes(rate: Arc<AddressRate>) -> Router<SignInPages> {
    Router::new()
        .route("/", get(home))
        .route("/sign-in", get(page).post(sign_in))
        .route(OPEN_PATH, get(open))
        .route_layer(axum::middleware::from_fn_with_state(rate, at_most))
        .route("/sign-out", post(sign_out))
        .route("/signed-out", get(signed_out))
}

/// Refuses what an address asks for too often, before anything is looked up for it.
async fn at_most(
    State(rate): State<Arc<AddressRate>>,
    arrival: Arrival,
    request: axum::extract::Request,
    next: Next,
) -> Result<Response, Page> {
    rate.take(&arrival)?;
    Ok(next.run(request).await)
}

/// Who asks, by the sessions of their browser that still count.
struct Somebody {
    console: Option<Caller>,
    /// In a session that opens workspaces and counts for nothing else.
    workspaces: Option<Caller>,
}

impl Somebody {
    /// Who opens workspaces here. Whoever is signed in to EnvForge itself comes first: that is who the pages say it is.
    fn opener(&self) -> Option<&Caller> {
        self.console.as_ref().or(self.workspaces.as_ref())
    }
}

impl FromRequestParts<SignInPages> for Somebody {
    type Rejection = Page;

    async fn from_request_parts(parts: &mut Parts, state: &SignInPages) -> Result<Self, Page> {
        // Pages are for people in their browsers; a program or a terminal that asks for one is nobody here.
        if parts.headers.contains_key(header::AUTHORIZATION) {
            return Ok(Self { console: None, workspaces: None });
        }
        let arrival = Arrival::from_request_parts(parts, state).await?;
        let console = state.auth.sessions.in_browser(Cookie::Console, &parts.headers, &arrival).await?;
        let workspaces = state.auth.sessions.in_browser(Cookie::Workspaces, &parts.headers, &arrival).await?;
        Ok(Self { console, workspaces })
    }
}

/// A problem that a person reads.
struct Page(Problem);

impl From<Problem> for Page {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for Page {
    fn into_response(self) -> Response {
        count(&self.0);
        pages::failed(&self.0)
    }
}

/// A page's problem counts as one of the API's.
fn count(problem: &Problem) {
    if let Some(reason) = problem.internal_reason() {
        tracing::error!(code = problem.code(), reason, "a page failed on our side");
    }
    metrics::counter!("envforge_api_problems_total", "code" => problem.code()).increment(1);
}

/// The page of a browser's sign-in that failed at the provider.
pub(crate) fn failed_page(problem: Problem) -> Response {
    Page(problem).into_response()
}

/// Whether a person looks at the answer.
pub(crate) fn is_navigation(headers: &HeaderMap) -> bool {
    match headers.get("sec-fetch-mode") {
        Some(mode) => mode == "navigate",
        None => headers
            .get(header::ACCEPT)
            .and_then(|accept| accept.to_str().ok())
            .is_some_and(|accept| accept.contains("text/html")),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PageQuery {
    return_to: Option<String>,
}

async fn home(State(state): State<SignInPages>, somebody: Somebody) -> Result<Response, Page> {
    match (somebody.console, somebody.workspaces) {
        (Some(caller), _) => state.with_person(&caller, pages::home),
        (None, Some(caller)) => state.with_person(&caller, pages::for_workspaces),
        (None, None) => Ok(see_other("/sign-in")?),
    }
}

async fn page(
    State(state): State<SignInPages>,
    somebody: Somebody,
    Query(query): Query<PageQuery>,
) -> Result<Response, Page> {
    // A target that is none of ours is not followed, and not argued about.
    let return_to = query.return_to.as_deref().and_then(|text| ReturnTo::parse(text).ok()).unwrap_or_default();
    let there = if is_way_to_workspace(&return_to) { somebody.opener() } else { somebody.console.as_ref() };
    if there.is_some() {
        return Ok(see_other(return_to.as_str())?);
    }
    Ok(state.sign_in_page(&return_to, "", None))
}

async fn sign_in(State(state): State<SignInPages>, arrival: Arrival, request: axum::extract::Request) -> Response {
    let (parts, body) = request.into_parts();
    let form = match Form::read(&parts.headers, body).await {
        Ok(form) => form,
        Err(problem) => return Page(problem).into_response(),
    };
    let return_to = ReturnTo::parse(form.text("return_to")).unwrap_or_default();
    match state.signed_in(&parts.headers, &form, &arrival).await {
        Ok(opened) => {
            let SignInPages { auth, reads, browsers, .. } = &state;
            match welcome(auth, reads, browsers, &parts.headers, &opened, &return_to, &arrival).await {
                Ok(response) => response,
                Err(problem) => Page(problem).into_response(),
            }
        }
        Err(problem) => {
            count(&problem);
            state.sign_in_page(&return_to, form.text("email"), Some(&problem))
        }
    }
}

async fn sign_out(State(state): State<SignInPages>, request: axum::extract::Request) -> Result<Response, Page> {
    let (mut parts, body) = request.into_parts();
    state.browsers.check_form(&parts.headers)?;
    let form = Form::read(&parts.headers, body).await?;
    let Somebody { console, workspaces } = Somebody::from_request_parts(&mut parts, &state).await?;
    // Both, so that nothing of this browser stays open. Everywhere is for the one that may do more than open workspaces.
    if let Some(caller) = console {
        state.end(&caller, form.text("everywhere") == "yes").await?;
    }
    if let Some(caller) = workspaces {
        end_in_browser(&state.auth, &caller).await?;
    }
    let mut response = see_other("/signed-out")?;
    for cookie in [Cookie::Console, Cookie::Workspaces] {
        response.headers_mut().append(header::SET_COOKIE, state.browsers.clear(cookie)?);
    }
    Ok(response)
}

async fn signed_out() -> Response {
    pages::signed_out()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OpenQuery {
    /// Label of the workspace's host.
    host: String,
    /// Digest of what the host gave the browser to keep.
    browser: String,
}

/// A workspace's host sent a browser here: whoever is signed in and may open the workspace goes back with a handoff.
async fn open(
    State(state): State<SignInPages>,
    somebody: Somebody,
    Query(query): Query<OpenQuery>,
) -> Result<Response, Page> {
    let wrong = || Problem::new("query_invalid", "Open the workspace again: this address is not one that it sends to.");
    let host = HostLabel::parse(&query.host).ok_or_else(wrong)?;
    let browser = browser_of(&query.browser).ok_or_else(wrong)?;
    let Some(caller) = somebody.opener() else {
        let back = format!("{OPEN_PATH}?host={}&browser={}", query.host, query.browser);
        return Ok(see_other(&format!("/sign-in?return_to={}", encoded(&back)))?);
    };
    // The same answer for what does not exist and for what is not theirs.
    let found = state.hot.gateway.workspace_by_label(&host);
    let found = found.filter(|found| found.access_mode == AccessMode::SignedLinks && !found.archived);
    let Some(found) = found else {
        count(&Problem::not_found());
        return state.with_person(caller, pages::not_yours);
    };
    let (org, project, workspace) = (found.org, found.project, found.workspace);
    let permit = match state.access.opening(caller, Resource::Workspace { org, project, workspace }).await {
        Ok(permit) => permit,
        Err(problem) if problem.status() == StatusCode::FORBIDDEN || problem.status() == StatusCode::NOT_FOUND => {
            count(&problem);
            return state.with_person(caller, pages::not_yours);
        }
        Err(problem) => return Err(problem.into()),
    };
    let handoff = WorkspaceHandoff {
        handoff: WorkspaceHandoff::new_id(),
        user: caller.user,
        parent: caller.session_id()?,
        org: permit.org(),
        project,
        workspace,
        host,
        browser,
        expires_at: WorkspaceHandoff::end(caller.arrival.now),
    };
    let target = state.share.arrival(&handoff);
    Ok(see_other_secret(&target)?)
}

impl SignInPages {
    fn sign_in_page(&self, return_to: &ReturnTo, email: &str, problem: Option<&Problem>) -> Response {
        let config = self.oidc.as_ref().map(|oidc| oidc.config());
        let config = config.filter(|config| config.client(client_for(config, return_to)).is_some());
        let provider = config.map(|config| host_of(config.issuer()).to_owned());
        let page = SignInPage {
            provider: provider.as_deref(),
            return_to,
            email,
            problem,
            from_workspace: is_way_to_workspace(return_to),
        };
        pages::sign_in(&page, &self.share.gateway().hosts())
    }

    async fn signed_in(&self, headers: &HeaderMap, form: &Form, arrival: &Arrival) -> Result<Opened, Problem> {
        self.browsers.check_form(headers)?;
        let password = form.get("password").cloned().unwrap_or_else(|| Secret::new(String::new()));
        let attempt = LoginAttempt { email: form.text("email").to_owned(), password, address: arrival.address };
        let proven = self.auth.prove(attempt, Surface::Console, arrival).await?;
        let session = self.auth.sessions.new_session(&proven, arrival.now)?;
        let opened = self.auth.sessions.open_as(session, &proven, Surface::Console, None, arrival).await;
        self.access.sign_in_outcome(opened, Some((proven.org, proven.user)), Surface::Console, arrival)
    }

    async fn end(&self, caller: &Caller, everywhere: bool) -> Result<(), Problem> {
        let now = caller.arrival.now;
        let command = derived_uuid(caller.arrival.correlation.as_uuid().as_bytes(), "sign-out");
        let context = Context {
            command: CommandId::from_uuid(command),
            request_digest: None,
            repeated: None,
            correlation: caller.arrival.correlation,
            causation: None,
            now,
        };
        let permit = self.access.permit(caller, Action::SessionRevokeOwn, caller.own()).await?;
        let end = match everywhere {
            true => UserCommand::EndOwnSessions,
            false => UserCommand::EndOwnSession { session: caller.session_id()? },
        };
        act!(self.access, caller, permit, users::change(&self.commands, permit, &context, caller.user, &end));
        let sessions = self.auth.identity.sessions();
        match everywhere {
            true => sessions.revoke_user(caller.user, now).await?,
            false => sessions.revoke_session(caller.session_id()?, now).await?,
        }
        Ok(())
    }

    fn with_person(&self, caller: &Caller, page: impl FnOnce(&Person<'_>) -> Response) -> Result<Response, Page> {
        let authorization = &self.hot.authorization;
        let (user, org) = (authorization.user(caller.user), authorization.organization(caller.org));
        let (Some(user), Some(org)) = (user, org) else {
            return Err(Page(internal("somebody who is signed in has no record in the views")));
        };
        Ok(page(&Person { name: &user.name, email: &user.email, organization: &org.name }))
    }
}

/// Signs a browser in and sends it on.
pub(super) async fn welcome(
    auth: &Auth,
    reads: &Reads,
    browsers: &Browsers,
    headers: &HeaderMap,
    opened: &Opened,
    return_to: &ReturnTo,
    arrival: &Arrival,
) -> Result<Response, Problem> {
    // Browsers remember no positions: what they read next must know whom it is asked by.
    reads.settle(opened.position).await;
    let cookie =
        Cookie::of(opened.opened.surface).ok_or_else(|| internal("a browser has no session of that surface"))?;
    let value = auth.sessions.browser_cookie(opened).await?;
    let lifetime = opened.session.expires_at.since(arrival.now);
    let mut response = see_other(return_to.as_str())?;
    response.headers_mut().append(header::SET_COOKIE, browsers.set(cookie, &value, lifetime)?);
    // A browser is one person's: what somebody else had open in it on the other surface is over.
    let other = if cookie == Cookie::Console { Cookie::Workspaces } else { Cookie::Console };
    if let Some(caller) = auth.sessions.in_browser(other, headers, arrival).await?
        && caller.user != opened.session.user
    {
        end_in_browser(auth, &caller).await?;
        response.headers_mut().append(header::SET_COOKIE, browsers.clear(other)?);
    }
    Ok(response)
}

/// Ends the session of a browser, because of what happens in that browser.
async fn end_in_browser(auth: &Auth, caller: &Caller) -> Result<(), Problem> {
    let Caller { user, org, expires_at, surface, .. } = *caller;
    let session = Session { user, org, session: caller.session_id()?, expires_at };
    auth.sessions.end(&session, SessionEnd::LoggedOut, surface, &caller.arrival).await
}

/// Whether somebody signs in in order to open a workspace.
fn is_way_to_workspace(return_to: &ReturnTo) -> bool {
    return_to.as_str().strip_prefix(OPEN_PATH).is_some_and(|rest| rest.starts_with('?'))
}

/// As which client a browser is sent to the provider: the Gateway's on the way to a workspace, where there is one.
pub(super) fn client_for(config: &oidc::Config, return_to: &ReturnTo) -> Client {
    let apart = is_way_to_workspace(return_to) && config.client(Client::Gateway).is_some();
    if apart { Client::Gateway } else { Client::Web }
}

/// The host of an issuer, as people know their provider.
fn host_of(issuer: &str) -> &str {
    let rest = issuer.split_once("://").map_or(issuer, |(_, rest)| rest);
    rest.split(['/', ':']).next().unwrap_or(rest)
}

fn see_other(target: &str) -> Result<Response, Problem> {
    see_other_secret(&Secret::new(target.to_owned()))
}

fn see_other_secret(target: &Secret) -> Result<Response, Problem> {
    let mut location = HeaderValue::from_str(target.expose()).map_err(|_| internal("a target is not visible ASCII"))?;
    location.set_sensitive(true);
    Ok((StatusCode::SEE_OTHER, [(header::LOCATION, location)]).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_is_called_by_its_host() {
        assert_eq!(host_of("https://acme.eu.auth0.com/"), "acme.eu.auth0.com");
        assert_eq!(host_of("http://127.0.0.1:4000/realms/a"), "127.0.0.1");
    }
}
