//! The handoff card: everything that somebody needs in order to hand a link to a reviewer.

use axum::extract::State;
use envforge_commands::Commands;
use envforge_domain::access::{Action, Resource};
use envforge_domain::commit::StreamId;
use envforge_domain::dev_link::RouteFamily;
use envforge_domain::manifest::{Manifest, Route};
use envforge_domain::slug::{HostLabel, ServiceName};
use envforge_domain::workspace::Workspace;
use envforge_projections::sql::LinkPhase;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::has_access;
use super::links::{Link, OpenNow, phase_of};
use crate::access::{Access, Caller};
use crate::disclosed::Disclosed;
use crate::page::Path;
use crate::problem::Problem;
use crate::reads::{AtLeast, Reads};
use crate::share::Share;

#[derive(Clone)]
pub(crate) struct Handoff {
    pub(crate) access: Access,
    pub(crate) commands: Commands,
    pub(crate) reads: Reads,
    pub(crate) share: Share,
}

has_access!(Handoff);

pub(crate) fn routes() -> OpenApiRouter<Handoff> {
    OpenApiRouter::new().routes(routes!(card))
}

/// The link, its scope and end, and route by route whether it answers.
#[derive(Serialize, ToSchema)]
struct Card {
    link: Link,
    organization: String,
    workspace: String,
    /// Where the app will be, once the share URL was opened.
    host: String,
    /// `null` where the link is over.
    #[schema(value_type = Option<String>)]
    share_url: Option<Disclosed>,
    /// `asleep`, `waking`, `ready`, `sleeping` or `failed`. Opening the link wakes a sleeping one.
    phase: String,
    routes: Vec<CardRoute>,
}

#[derive(Serialize, ToSchema)]
struct CardRoute {
    /// The route family.
    family: &'static str,
    path: String,
    service: String,
    /// Whether the link opens it.
    open: bool,
    /// Whether its service answered when the runtime became ready, and still runs.
    ready: bool,
}

/// The card of a link, with its share URL.
#[utoipa::path(get, path = "/v1/orgs/{org}/links/{link}/handoff", tag = "links", responses((status = 200, body = Card)),
    extensions(("x-envforge-action" = json!("link.share"))))]
async fn card(
    State(state): State<Handoff>,
    caller: Caller,
    Path((org, link)): Path<(String, String)>,
    at: AtLeast,
) -> Result<axum::Json<Card>, Problem> {
    let org = state.access.org(&org).await?;
    let resource = state.access.link(org, &link).await?;
    let Resource::Link { workspace, link, .. } = resource else { return Err(Problem::not_found()) };
    let permit = state.access.permit(&caller, Action::LinkShare, resource).await?;
    let record = state.reads.link(&permit, at).await?;
    let (manifest, slug) = match state.commands.load::<Workspace>(&StreamId::workspace(org, workspace)).await?.state {
        Workspace::Active(active) => (active.manifest, active.slug),
        Workspace::Archived { .. } => {
            return Err(Problem::new("workspace_archived", "The workspace is archived; its links are closed."));
        }
        Workspace::Unknown => return Err(Problem::not_found()),
    };
    let organization = state.reads.hot().authorization.organization(org).ok_or_else(Problem::not_found)?;
    let label = HostLabel::new(record.service.clone(), slug.clone(), organization.slug)
        .map_err(|error| Problem::internal(error.to_string()))?;
    let live = phase_of(&record, caller.arrival.now) == LinkPhase::Active;
    let claims = if live { state.share.claims(org, link, None).await? } else { None };
    let runtime = state.reads.runtime_of(&permit);
    let open = OpenNow::of(&record, caller.arrival.now, state.reads.hot());
    let routes = declared(&manifest, &record.service)
        .map(|(family, path, service)| CardRoute {
            family: family.token(),
            path,
            service: service.to_string(),
            open: live && open.as_ref().is_some_and(|open| open.families.contains(family)),
            ready: runtime.is_ready(service),
        })
        .collect();
    Ok(axum::Json(Card {
        organization: organization.name,
        workspace: slug.to_string(),
        host: state.share.gateway().host(&label),
        share_url: claims.as_ref().map(|claims| state.share.url(claims)),
        phase: runtime.phase.to_owned(),
        routes,
        link: Link::of(record, caller.arrival.now, state.reads.hot()),
    }))
}

/// The app-surface routes of one web service's host: its own, and those that share its origin.
fn declared<'a>(
    manifest: &'a Manifest,
    base: &'a ServiceName,
) -> impl Iterator<Item = (RouteFamily, String, &'a ServiceName)> {
    manifest.services.iter().flat_map(move |service| {
        let (own, websockets) = match &service.route {
            Route::Web { websockets } if service.name == *base => {
                (Some((RouteFamily::Web, "/".to_owned())), websockets.as_slice())
            }
            Route::Web { .. } | Route::None => (None, [].as_slice()),
            Route::Api { prefix, websockets } => {
                (Some((RouteFamily::Api, prefix.as_str().to_owned())), websockets.as_slice())
            }
            Route::Assets { prefix } => (Some((RouteFamily::Assets, prefix.as_str().to_owned())), [].as_slice()),
            Route::Marketing { prefix } => (Some((RouteFamily::Marketing, prefix.as_str().to_owned())), [].as_slice()),
        };
        let sockets = websockets.iter().map(|path| (RouteFamily::Websockets, path.as_str().to_owned()));
        own.into_iter().chain(sockets).map(|(family, path)| (family, path, &service.name))
    })
}
