//! The API put together: what it is made of, its router and its document.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use envforge_commands::Commands;
use envforge_domain::time::SharedClock;
use envforge_eventlog::SharedLog;
use envforge_eventlog::gateways::Gateways;
use envforge_identity::oidc::Oidc;
use envforge_identity::share_token::SigningKey;
use envforge_identity::sign_in::Identity;
use envforge_projections::sql::Database;
use envforge_projections::{Authorizer, Hot};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::sync::CancellationToken;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::access::Access;
use crate::address_rate::AddressRate;
use crate::browser::Browsers;
use crate::config::Config;
use crate::edge::{Edge, edge, no_such_method, nothing_here};
use crate::endpoints::{
    access_then, audit, auth, authz, decisions, events, handoff, health, hosts, invitations, links, me, members, oidc,
    oidc_events, organizations, problems, projects, roles, root_shell, root_windows, runtime, secrets, service_tokens,
    sessions as session_endpoints, shells, sign_in_page, teams, usage, workspaces,
};
use crate::open_shells::OpenShells;
use crate::openapi;
use crate::reads::Reads;
use crate::revocation::Revocations;
use crate::sessions::Sessions;
use crate::share::Share;
use crate::write::Keys;

/// What the binary hands over. Taken apart at once: each router gets its own few.
pub struct Parts {
    pub config: Config,
    pub clock: SharedClock,
    pub log: SharedLog,
    pub commands: Commands,
    pub authorizer: Authorizer,
    pub database: Database,
    pub identity: Arc<Identity>,
    /// Those for which revocations wait.
    pub gateways: Arc<dyn Gateways>,
    /// The OpenID provider, where there is one.
    pub oidc: Option<Arc<Oidc>>,
    pub share_key: Arc<SigningKey>,
    /// For `/metrics`; without it there is none.
    pub metrics: Option<PrometheusHandle>,
    /// Ends open event streams, and the listener.
    pub stop: CancellationToken,
}

/// The API's router, complete with its outermost layer.
pub fn router(parts: Parts) -> Router {
    let Parts { config, clock, log, commands, authorizer, database, identity, gateways, .. } = parts;
    let Parts { oidc, share_key, metrics, stop, .. } = parts;
    let hot: Arc<Hot> = Arc::clone(authorizer.hot());
    let keys = Keys::new(database.clone());
    // The provider calls back where its configuration says: browsers know this API by that address.
    let public_url = oidc.as_ref().map(|oidc| oidc.config().api_url().clone()).or_else(|| config.public_url.clone());
    let browsers = public_url.as_ref().map(Browsers::new);
    let access =
        Access::new(Arc::clone(&identity), authorizer, commands.clone(), keys.clone()).with_browsers(browsers.clone());
    let reads = Reads::new(Arc::clone(&log), database.clone(), Arc::clone(&hot), config.freshness_wait);
    let share = Share::new(Arc::clone(&log), share_key, config.gateway_url.clone());
    let streams = events::Streams::new(&config);
    let health = health::Health { hot: Arc::clone(&hot), database, metrics, movement: Arc::default() };

    let with_commands = |access: &Access| (access.clone(), commands.clone(), reads.clone());
    let open_shells = OpenShells::default();
    let (g, o) = (Arc::clone(&gateways), open_shells.clone());
    let revocations = Revocations::new(access.clone(), commands.clone(), Arc::clone(&hot), g, o);
    let (a, c, r) = with_commands(&access);
    let organizations =
        organizations::Organizations { access: a, commands: c, reads: r, revocations: revocations.clone() };
    let (a, c, r) = with_commands(&access);
    let sessions = Sessions::new(a.clone(), Arc::clone(&identity), c.clone(), Arc::clone(&hot), revocations.clone());
    let members = members::Members {
        access: a,
        commands: c,
        reads: r,
        identity: Arc::clone(&identity),
        sessions: sessions.clone(),
    };
    let (a, c, r) = with_commands(&access);
    let invitations = invitations::Invitations { access: a, commands: c, identity: Arc::clone(&identity), reads: r };
    let (a, c, r) = with_commands(&access);
    let local_repositories = config.local_repositories;
    let projects =
        projects::Projects { access: a, commands: c, reads: r, local_repositories, secrets: config.secrets.clone() };
    let (a, c, r) = with_commands(&access);
    let workspaces = workspaces::Workspaces {
        access: a,
        commands: c,
        reads: r,
        gateway: config.gateway_url.clone(),
        revocations: revocations.clone(),
    };
    let (a, c, r) = with_commands(&access);
    let runtimes = runtime::Runtimes { access: a, commands: c, reads: r };
    let (a, c, r) = with_commands(&access);
    let links =
        links::Links { access: a, commands: c, reads: r, share: share.clone(), revocations: revocations.clone() };
    let (a, c, r) = with_commands(&access);
    let hosts = config.shells.clone();
    let windows = root_windows::RootWindows { access: a, commands: c, reads: r, hosts };
    let shells = shells::ShellEndpoints::new(&access, &commands, &clock, &config, open_shells, &stop);
    let (a, c, r) = with_commands(&access);
    let secret_routes =
        secrets::Secrets { access: a, commands: c, reads: r, clock: Arc::clone(&clock), store: config.secrets.clone() };
    let (a, c, r) = with_commands(&access);
    let handoff = handoff::Handoff { access: a, commands: c, reads: r, share: share.clone() };
    let (a, c, r) = with_commands(&access);
    let teams = teams::Teams { access: a, commands: c, reads: r, revocations: revocations.clone() };
    let roles = roles::Roles { access: access.clone(), commands: commands.clone(), revocations };
    let people = session_endpoints::People {
        access: access.clone(),
        identity: Arc::clone(&identity),
        commands: commands.clone(),
        sessions: sessions.clone(),
    };
    let tokens = service_tokens::ServiceTokens {
        access: access.clone(),
        commands: commands.clone(),
        identity: Arc::clone(&identity),
    };
    let (a, c, r) = with_commands(&access);
    let machines = hosts::Hosts { access: a, commands: c, reads: r, agents: config.agents.clone() };
    let jwks = Arc::clone(&identity);
    let auth = auth::Auth { access: access.clone(), identity, commands: commands.clone(), sessions };
    let pages = browsers.clone().map(|browsers| sign_in_page::SignInPages {
        access: access.clone(),
        auth: auth.clone(),
        commands: auth.commands.clone(),
        reads: reads.clone(),
        hot: Arc::clone(&hot),
        browsers,
        oidc: oidc.clone(),
        share,
    });
    let oidc = oidc::Login::new(auth.clone(), Arc::clone(&hot), reads.clone(), oidc, browsers);
    let me = me::Me { access: access.clone(), commands: people.commands.clone(), reads: reads.clone() };
    let audits = audit::Audits { access: access.clone(), reads: reads.clone() };
    let questions = authz::Authz { access: access.clone(), log: Arc::clone(&log) };
    let then = access_then::AccessThen { access: access.clone(), reads: reads.clone(), log: Arc::clone(&log) };
    let decided = decisions::Decisions { access: access.clone(), reads: reads.clone(), log: Arc::clone(&log) };
    let usages = usage::Usages { access: access.clone(), reads };
    let events = events::Events { access, log, clock: Arc::clone(&clock), streams, heartbeat: config.heartbeat, stop };

    let keys_clock = Arc::clone(&clock);
    let (router, document) = OpenApiRouter::new()
        .merge(auth::routes().with_state(auth))
        .merge(oidc::routes().with_state(oidc.clone()))
        .merge(oidc_events::routes().with_state(oidc))
        .merge(me::routes().with_state(me))
        .merge(session_endpoints::routes().with_state(people))
        .merge(service_tokens::routes().with_state(tokens))
        .merge(hosts::routes().with_state(machines))
        .merge(authz::routes().with_state(questions))
        .merge(decisions::routes().with_state(decided))
        .merge(access_then::routes().with_state(then))
        .merge(organizations::routes().with_state(organizations))
        .merge(members::routes().with_state(members))
        .merge(invitations::routes().with_state(invitations))
        .merge(roles::routes().with_state(roles))
        .merge(teams::routes().with_state(teams))
        .merge(projects::routes().with_state(projects))
        .merge(workspaces::routes().with_state(workspaces))
        .merge(runtime::routes().with_state(runtimes))
        .merge(links::routes().with_state(links))
        .merge(root_windows::routes().with_state(windows))
        .merge(secrets::routes().with_state(secret_routes))
        .merge(root_shell::routes().with_state(shells.clone()))
        .merge(shells::routes().with_state(shells))
        .merge(handoff::routes().with_state(handoff))
        .merge(events::routes().with_state(events))
        .merge(audit::routes().with_state(audits))
        .merge(usage::routes().with_state(usages))
        .merge(problems::routes())
        .merge(health::routes().with_state(health.clone()))
        .split_for_parts();
    let document = openapi::finish(document);
    let mut anonymous = openapi::anonymous_routes(&document);
    anonymous.extend(sign_in_page::FORMS.map(str::to_owned));
    let page_rate = Arc::new(AddressRate::new("too_many_requests", config.pages_per_minute_per_address));
    let layer = Arc::new(Edge::new(&config, clock, keys, commands, hot, gateways, anonymous));
    let document = bytes::Bytes::from(render(&document));
    let serve_document =
        move || async move { ([(header::CONTENT_TYPE, "application/json")], document).into_response() };
    let router = match pages {
        Some(pages) => router.merge(sign_in_page::routes(page_rate).with_state(pages)),
        None => router,
    };
    router
        .route("/v1/openapi.json", get(serve_document))
        .route("/.well-known/jwks.json", get(public_keys).with_state((Arc::clone(&jwks), Arc::clone(&keys_clock))))
        .route("/metrics", get(health::metrics).with_state(health))
        .fallback(nothing_here)
        .method_not_allowed_fallback(no_such_method)
        .layer(axum::middleware::from_fn_with_state(layer, edge))
}

/// The public halves of the keys that sign access tokens (RFC 7517): none where a secret signs them.
async fn public_keys(State((identity, clock)): State<(Arc<Identity>, SharedClock)>) -> impl IntoResponse {
    let keys = identity.public_keys(clock.now());
    // A new key is published ten minutes before it signs anything.
    ([(header::CACHE_CONTROL, "public, max-age=300")], axum::Json(serde_json::json!({ "keys": keys })))
}

/// `/metrics` alone, for processes that serve no API.
pub fn metrics_router(metrics: PrometheusHandle) -> Router {
    Router::new().route("/metrics", get(health::metrics_alone).with_state(metrics)).fallback(nothing_here)
}

/// The OpenAPI document, without anything running.
pub fn document() -> OpenApi {
    let mut document = auth::routes().into_openapi();
    for more in [
        oidc::routes().into_openapi(),
        oidc_events::routes().into_openapi(),
        me::routes().into_openapi(),
        session_endpoints::routes().into_openapi(),
        service_tokens::routes().into_openapi(),
        hosts::routes().into_openapi(),
        authz::routes().into_openapi(),
        decisions::routes().into_openapi(),
        access_then::routes().into_openapi(),
        organizations::routes().into_openapi(),
        members::routes().into_openapi(),
        invitations::routes().into_openapi(),
        roles::routes().into_openapi(),
        teams::routes().into_openapi(),
        projects::routes().into_openapi(),
        workspaces::routes().into_openapi(),
        runtime::routes().into_openapi(),
        links::routes().into_openapi(),
        root_windows::routes().into_openapi(),
        secrets::routes().into_openapi(),
        root_shell::routes().into_openapi(),
        shells::routes().into_openapi(),
        handoff::routes().into_openapi(),
        events::routes().into_openapi(),
        audit::routes().into_openapi(),
        usage::routes().into_openapi(),
        problems::routes().into_openapi(),
        health::routes().into_openapi(),
    ] {
        document.merge(more);
    }
    openapi::finish(document)
}

/// The document's text, as served and as committed in `docs/openapi.json`.
pub fn render(document: &OpenApi) -> String {
    let mut text = document.to_pretty_json().expect("a document of texts");
    text.push('\n');
    text
}
