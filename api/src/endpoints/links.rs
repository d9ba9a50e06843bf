//! Signed dev links: issue, list, change what they open, rotate, revoke.

use axum::extract::State;
use envforge_commands::links::{self, NewLink as New};
use envforge_commands::{Commands, Context, Done};
use envforge_domain::access::{Action, Permit, Resource};
use envforge_domain::commit::StreamId;
use envforge_domain::dev_link::{DevLink, DevLinkEvent, RouteFamilies, RouteFamily};
use envforge_domain::event::Event;
use envforge_domain::ids::{LinkId, OrgId};
use envforge_domain::revocation;
use envforge_domain::slug::ServiceName;
use envforge_domain::time::{Millis, UnixMillis};
use envforge_projections::sql::{LinkPhase, LinkRecord};
use envforge_projections::{Hot, gateway_view};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::has_access;
use crate::access::{Access, Caller, act};
use crate::disclosed::Disclosed;
use crate::instant::Instant;
use crate::page::{Page, Path, Query, Slice, one_of};
use crate::problem::Problem;
use crate::reads::{AtLeast, Reads};
use crate::request_body::{Json, Optional};
use crate::revocation::{Over, Receipt, Revocations};
use crate::sessions::part_of;
use crate::share::{self, Share};
use crate::write::{Write, Written};

#[derive(Clone)]
pub(crate) struct Links {
    pub(crate) access: Access,
    pub(crate) commands: Commands,
    pub(crate) reads: Reads,
    pub(crate) share: Share,
    pub(crate) revocations: Revocations,
}

has_access!(Links);

pub(crate) fn routes() -> OpenApiRouter<Links> {
    OpenApiRouter::new()
        .routes(routes!(list, issue))
        .routes(routes!(list_all))
        .routes(routes!(get))
        .routes(routes!(rotate))
        .routes(routes!(change_families))
        .routes(routes!(revoke))
}

/// A link as everybody who may read it sees it. Holds no token.
#[derive(Serialize, ToSchema)]
pub(crate) struct Link {
    id: String,
    project: String,
    workspace: String,
    workspace_slug: Option<String>,
    service: String,
    /// `active`, `expired` or `revoked`.
    phase: String,
    families: Vec<String>,
    label: String,
    /// Counts the share URLs of this link; only the newest one works.
    generation: u32,
    issued_by: String,
    issued_by_name: Option<String>,
    issued_at: Instant,
    expires_at: Instant,
    ended_at: Option<Instant>,
    revoke_reason: Option<String>,
    wake_budget: Option<u32>,
    wakes_spent: u32,
    first_used_at: Option<Instant>,
    sessions_opened: u64,
    /// Blocked attempts by their reason.
    blocked: std::collections::BTreeMap<String, u64>,
    blocked_at: Option<Instant>,
    /// What it opens right now: less than `families` where the organization allows less by now; nothing where the link is
    /// over, or its issuer may not have issued it any more.
    open_families: Vec<String>,
    /// When it is over, its issuer's right and the organization's longest link included; `null` where it is over.
    open_until: Option<Instant>,
}

/// What a link opens right now, as the gateway has it.
pub(crate) struct OpenNow {
    pub(crate) families: RouteFamilies,
    until: UnixMillis,
}

impl OpenNow {
    pub(crate) fn of(record: &LinkRecord, now: UnixMillis, hot: &Hot) -> Option<Self> {
        let open = match hot.gateway.link(record.id) {
            Some(view) if view.phase == gateway_view::LinkPhase::Active => {
                Self { families: view.families, until: view.expires_at }
            }
            Some(_) => return None,
            // Not there yet, or over for so long that it was forgotten.
            None if record.phase == LinkPhase::Active => Self { families: record.families, until: record.expires_at },
            None => return None,
        };
        (now < open.until).then_some(open)
    }
}

impl Link {
    pub(crate) fn of(record: LinkRecord, now: UnixMillis, hot: &Hot) -> Self {
        let open = OpenNow::of(&record, now, hot);
        Self {
            open_families: open.as_ref().map(|open| family_tokens(open.families)).unwrap_or_default(),
            open_until: open.map(|open| open.until.into()),
            id: record.id.to_string(),
            project: record.project.to_string(),
            workspace: record.workspace.to_string(),
            workspace_slug: record.workspace_slug.clone(),
            service: record.service.to_string(),
            phase: phase_of(&record, now).token().to_owned(),
            families: family_tokens(record.families),
            label: record.label,
            generation: record.token_generation,
            issued_by: record.issued_by.to_string(),
            issued_by_name: record.issued_by_name,
            issued_at: record.issued_at.into(),
            expires_at: record.expires_at.into(),
            ended_at: record.ended_at.map(Instant),
            revoke_reason: record.revoke_reason,
            wake_budget: record.wake_budget,
            wakes_spent: record.wakes_spent,
            first_used_at: record.first_used_at.map(Instant),
            sessions_opened: record.sessions_opened,
            blocked: record.blocked,
            blocked_at: record.blocked_at.map(Instant),
        }
    }
}

/// Expiry holds from the instant on, whether or not its closing event is there yet.
pub(crate) fn phase_of(record: &LinkRecord, now: UnixMillis) -> LinkPhase {
    if record.phase == LinkPhase::Active && now >= record.expires_at { LinkPhase::Expired } else { record.phase }
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewLink {
    /// A web service of the manifest.
    service: String,
    /// `web`, `api`, `assets`, `websockets`, `marketing`; all that are declared and allowed where it is left out.
    families: Option<Vec<String>>,
    /// 2 hours where it is left out, or less where the organization allows less.
    lifetime_seconds: Option<u64>,
    /// For whom or what it is; the service's name where it is left out.
    label: Option<String>,
    /// Wakes that the link may cause; no limit of its own where it is left out.
    wake_budget: Option<u32>,
}

/// A link as it was issued, with its share URL.
#[derive(Serialize, ToSchema)]
struct IssuedLink {
    id: String,
    project: String,
    workspace: String,
    service: String,
    families: Vec<String>,
    label: String,
    generation: u32,
    issued_at: Instant,
    expires_at: Instant,
    wake_budget: Option<u32>,
    /// Whoever has it can open the app until it ends.
    #[schema(value_type = String)]
    share_url: Disclosed,
}

#[derive(Deserialize, Default, ToSchema)]
#[serde(deny_unknown_fields)]
struct Rotation {
    /// From now on; the end stays where it is left out.
    lifetime_seconds: Option<u64>,
}

#[derive(Serialize, ToSchema)]
struct RotatedLink {
    id: String,
    generation: u32,
    expires_at: Instant,
    #[schema(value_type = String)]
    share_url: Disclosed,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct FamiliesChange {
    families: Vec<String>,
}

#[derive(Serialize, ToSchema)]
struct ChangedFamilies {
    id: String,
    families: Vec<String>,
}

#[derive(Deserialize, Default, ToSchema)]
#[serde(deny_unknown_fields)]
struct Revocation {
    reason: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct RevokedLink {
    id: String,
    phase: &'static str,
    receipt: Receipt,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// `active`, `expired` or `revoked`, as recorded.
    phase: Option<String>,
    /// 1 to 200; 50 where it is left out.
    limit: Option<u64>,
    /// `next` of the page before.
    after: Option<String>,
}

impl ListQuery {
    fn phase(&self) -> Result<Option<LinkPhase>, Problem> {
        one_of("phase", self.phase.as_deref(), LinkPhase::from_token, &LinkPhase::ALL.map(LinkPhase::token))
    }
}

/// The links of a workspace.
#[utoipa::path(get, path = "/v1/orgs/{org}/workspaces/{workspace}/links", tag = "links", params(ListQuery),
    responses((status = 200, body = Page<Link>)), extensions(("x-envforge-action" = json!("link.read"))))]
async fn list(
    State(state): State<Links>,
    caller: Caller,
    Path((org, workspace)): Path<(String, String)>,
    Query(query): Query<ListQuery>,
    at: AtLeast,
) -> Result<axum::Json<Page<Link>>, Problem> {
    let org = state.access.org(&org).await?;
    let resource = state.access.workspace(org, &workspace).await?;
    let permit = state.access.permit(&caller, Action::LinkRead, resource).await?;
    let slice = Slice::new(query.limit, query.after.as_deref())?;
    let page = state.reads.links_of(&permit, at, query.phase()?, &slice).await?;
    Ok(axum::Json(Page::of(page, |record| Link::of(record, caller.arrival.now, state.reads.hot()))))
}

/// All links that the caller may see.
#[utoipa::path(get, path = "/v1/orgs/{org}/links", tag = "links", params(ListQuery),
    responses((status = 200, body = Page<Link>)), extensions(("x-envforge-action" = json!("link.read"))))]
async fn list_all(
    State(state): State<Links>,
    caller: Caller,
    Path(org): Path<String>,
    Query(query): Query<ListQuery>,
    at: AtLeast,
) -> Result<axum::Json<Page<Link>>, Problem> {
    let org = state.access.org(&org).await?;
    let listing = state.access.listing(&caller, Action::LinkRead, org).await?;
    let slice = Slice::new(query.limit, query.after.as_deref())?;
    let page = state.reads.links(&listing, at, query.phase()?, &slice).await?;
    Ok(axum::Json(Page::of(page, |record| Link::of(record, caller.arrival.now, state.reads.hot()))))
}

/// Issue a link to the app surface of one service.
#[utoipa::path(post, path = "/v1/orgs/{org}/workspaces/{workspace}/links", tag = "links", request_body = NewLink,
    responses((status = 201, body = IssuedLink)), extensions(("x-envforge-action" = json!("link.issue"))))]
async fn issue(
    State(state): State<Links>,
    Path((org, workspace)): Path<(String, String)>,
    request: Write<Json<NewLink>>,
) -> Result<Written<IssuedLink>, Problem> {
    let Write { caller, body: Json(new), context } = request;
    let org = state.access.org(&org).await?;
    let resource = state.access.workspace(org, &workspace).await?;
    let permit = state.access.permit(&caller, Action::LinkIssue, resource).await?;
    let service: ServiceName = new.service.parse().map_err(|error| Problem::value("service", error))?;
    let new = New {
        workspace: resource.workspace().ok_or_else(Problem::not_found)?,
        families: new.families.map(|families| families_of("families", &families)).transpose()?,
        lifetime: new.lifetime_seconds.map(Millis::from_secs),
        label: new.label.unwrap_or_else(|| service.to_string()),
        service,
        wake_budget: new.wake_budget,
        issued_by: caller.user,
    };
    let (_, done) = act!(state.access, &caller, permit, links::issue(&state.commands, permit, &context, new.clone()));
    let issued = state.issued(org, &done)?;
    Ok(Written::created(&done, issued))
}

/// One link.
#[utoipa::path(get, path = "/v1/orgs/{org}/links/{link}", tag = "links", responses((status = 200, body = Link)),
    extensions(("x-envforge-action" = json!("link.read"))))]
async fn get(
    State(state): State<Links>,
    caller: Caller,
    Path((org, link)): Path<(String, String)>,
    at: AtLeast,
) -> Result<axum::Json<Link>, Problem> {
    let org = state.access.org(&org).await?;
    let resource = state.access.link(org, &link).await?;
    let permit = state.access.permit(&caller, Action::LinkRead, resource).await?;
    Ok(axum::Json(Link::of(state.reads.link(&permit, at).await?, caller.arrival.now, state.reads.hot())))
}

/// Replace the share URL. The one before stops working at once, open sessions included.
#[utoipa::path(post, path = "/v1/orgs/{org}/links/{link}/rotate", tag = "links", request_body = Option<Rotation>,
    responses((status = 200, body = RotatedLink)), extensions(("x-envforge-action" = json!("link.rotate"))))]
async fn rotate(
    State(state): State<Links>,
    Path((org, link)): Path<(String, String)>,
    request: Write<Optional<Rotation>>,
) -> Result<Written<RotatedLink>, Problem> {
    let Write { caller, body: Optional(rotation), context } = request;
    let (resource, id) = state.named(&org, &link).await?;
    let permit = state.access.permit(&caller, Action::LinkRotate, resource).await?;
    let lifetime = rotation.lifetime_seconds.map(Millis::from_secs);
    let done = act!(state.access, &caller, permit, links::rotate(&state.commands, permit, &context, id, lifetime));
    let generation = done.events.iter().find_map(|event| match event {
        Event::DevLink(DevLinkEvent::Rotated { generation, .. }) => Some(*generation),
        _ => None,
    });
    let claims = state.share.claims(resource.org(), id, generation).await?;
    let claims = claims.ok_or_else(|| Problem::internal("a rotated link without its events"))?;
    let answer = RotatedLink {
        id: id.to_string(),
        generation: claims.generation.0,
        expires_at: claims.expires_at.into(),
        share_url: state.share.url(&claims),
    };
    Ok(Written::ok(&done, answer))
}

/// Change which route families the link opens. What is taken away closes at once, WebSockets included.
#[utoipa::path(put, path = "/v1/orgs/{org}/links/{link}/families", tag = "links", request_body = FamiliesChange,
    responses((status = 200, body = ChangedFamilies)), extensions(("x-envforge-action" = json!("link.change_allowlist"))))]
async fn change_families(
    State(state): State<Links>,
    Path((org, link)): Path<(String, String)>,
    request: Write<Json<FamiliesChange>>,
) -> Result<Written<ChangedFamilies>, Problem> {
    let Write { caller, body: Json(change), context } = request;
    let (resource, id) = state.named(&org, &link).await?;
    let permit = state.access.permit(&caller, Action::LinkChangeAllowlist, resource).await?;
    let families = families_of("families", &change.families)?;
    let done =
        act!(state.access, &caller, permit, links::change_allowlist(&state.commands, permit, &context, id, families));
    let answer = ChangedFamilies { id: id.to_string(), families: family_tokens(families) };
    Ok(Written::ok(&done, answer))
}

/// Close the link for good, with everything that is open through it.
#[utoipa::path(post, path = "/v1/orgs/{org}/links/{link}/revoke", tag = "links", request_body = Option<Revocation>,
    responses((status = 200, body = RevokedLink)), extensions(("x-envforge-action" = json!("link.revoke"))))]
async fn revoke(
    State(state): State<Links>,
    Path((org, link)): Path<(String, String)>,
    request: Write<Optional<Revocation>>,
) -> Result<Written<RevokedLink>, Problem> {
    let Write { caller, body: Optional(revocation), context } = request;
    let (resource, id) = state.named(&org, &link).await?;
    let permit = state.access.permit(&caller, Action::LinkRevoke, resource).await?;
    let begun = std::time::Instant::now();
    let sessions = state.sessions_of(&permit, id, context.now).await?;
    let done = act!(
        state.access,
        &caller,
        permit,
        links::revoke(&state.commands, permit, &context, id, revocation.reason.clone())
    );
    let over = Over { sessions, cli_sessions: 0, links: usize::from(!done.events.is_empty()) };
    state.revocations.known(&done.commits()).await;
    let receipt = state.revocations.receipt(&done.commits(), over, begun).await;
    let receipt = match done.events.is_empty() {
        true => receipt,
        // Of a repeated request: what its first answer said.
        false => {
            let recorded = state.record(&caller, resource, id, &receipt, &part_of(&context, "receipt")).await;
            recorded.unwrap_or_else(|problem| {
                tracing::warn!(code = problem.code(), "the receipt of a revocation could not be written down");
                receipt
            })
        }
    };
    let receipt = Receipt::from(&receipt);
    Ok(Written::ok(&done, RevokedLink { id: id.to_string(), phase: LinkPhase::Revoked.token(), receipt }))
}

impl Links {
    async fn named(&self, org: &str, link: &str) -> Result<(Resource, LinkId), Problem> {
        let org = self.access.org(org).await?;
        match self.access.link(org, link).await? {
            resource @ Resource::Link { link, .. } => Ok((resource, link)),
            _ => Err(Problem::not_found()),
        }
    }

    /// Reviewers' sessions that would end with the link.
    async fn sessions_of(&self, permit: &Permit, link: LinkId, now: UnixMillis) -> Result<usize, Problem> {
        match self.commands.load::<DevLink>(&StreamId::dev_link(permit.org(), link)).await?.state {
            DevLink::Active(active) => Ok(active.sessions.values().filter(|end| now < **end).count()),
            DevLink::Unknown | DevLink::Expired { .. } | DevLink::Revoked { .. } => Ok(0),
        }
    }

    async fn record(
        &self,
        caller: &Caller,
        resource: Resource,
        link: LinkId,
        receipt: &revocation::Receipt,
        context: &Context,
    ) -> Result<revocation::Receipt, Problem> {
        let permit = self.access.permit(caller, Action::LinkRevoke, resource).await?;
        let done = act!(
            self.access,
            caller,
            permit,
            links::record_revocation(&self.commands, permit, context, link, receipt.clone())
        );
        let receipt_of = |event: &Event| match event {
            Event::DevLink(DevLinkEvent::RevocationRecorded { receipt }) => Some(receipt.clone()),
            _ => None,
        };
        Ok(done.events.iter().find_map(receipt_of).unwrap_or_else(|| receipt.clone()))
    }

    /// From the event itself, so that a repeated request gets the very same answer.
    fn issued(&self, org: OrgId, done: &Done) -> Result<IssuedLink, Problem> {
        let issued = done.events.iter().find_map(|event| {
            let Event::DevLink(event @ DevLinkEvent::Issued { project, label, wake_budget, .. }) = event else {
                return None;
            };
            let claims = share::of_issued(org, event)?;
            Some(IssuedLink {
                id: claims.link.to_string(),
                project: project.to_string(),
                workspace: claims.workspace.to_string(),
                service: claims.service.to_string(),
                families: family_tokens(claims.families),
                label: label.clone(),
                generation: claims.generation.0,
                issued_at: claims.issued_at.into(),
                expires_at: claims.expires_at.into(),
                wake_budget: *wake_budget,
                share_url: self.share.url(&claims),
            })
        });
        issued.ok_or_else(|| Problem::internal("an issued link without its event"))
    }
}

/// Tokens in their fixed order.
pub(crate) fn family_tokens(families: RouteFamilies) -> Vec<String> {
    families.iter().map(|family| family.token().to_owned()).collect()
}

/// Reads route families.
pub(crate) fn families_of(field: &str, tokens: &[String]) -> Result<RouteFamilies, Problem> {
    let read = |token: &String| {
        RouteFamily::from_token(token).ok_or_else(|| {
            let shown: String = token.chars().take(40).collect();
            Problem::value(field, format!("`{shown}` is not a route family: web, api, assets, websockets or marketing"))
        })
    };
    tokens.iter().map(read).collect()
}
