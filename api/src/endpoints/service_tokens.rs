//! Service tokens: programs act with them, within what the token is for and what its creator may do.
//!
//! A secret is answered once, when it is made. Not here: what a token may be for (domain), its secret (identity), and acting with one
//! (`service_caller`).

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::extract::State;
use envforge_commands::service_tokens::{self, NewServiceToken};
use envforge_commands::{Commands, Done};
use envforge_domain::access::{Action, Permit, Resource, Scope};
use envforge_domain::aggregate::Refusal;
use envforge_domain::event::Event;
use envforge_domain::ids::{OrgId, ServiceTokenId};
use envforge_domain::limits::SERVICE_TOKEN_OVERLAP_DEFAULT;
use envforge_domain::service_token::{ServiceToken, ServiceTokenEvent, ServiceTokenRefusal};
use envforge_domain::slug::ServiceTokenSlug;
use envforge_domain::time::{Millis, UnixMillis};
use envforge_identity::credentials::ServiceTokenKey;
use envforge_identity::sign_in::Identity;
use envforge_projections::service_tokens::{KnownServiceToken, over};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::has_access;
use super::roles::scope_ids;
use crate::access::{Access, Caller, act};
use crate::disclosed::Disclosed;
use crate::instant::Instant;
use crate::page::{Page, Path};
use crate::problem::Problem;
use crate::request_body::{Empty, Json};
use crate::write::{Happened, Write, Written};

#[derive(Clone)]
pub(crate) struct ServiceTokens {
    pub(crate) access: Access,
    pub(crate) commands: Commands,
    pub(crate) identity: Arc<Identity>,
}

has_access!(ServiceTokens);

pub(crate) fn routes() -> OpenApiRouter<ServiceTokens> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(rotate)).routes(routes!(revoke))
}

/// A token to make.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewToken {
    /// Lower-case letters, digits and single hyphens; unique among the organization's tokens that are not over.
    slug: String,
    /// What it is for: tokens of docs/access.md whose row names services.
    actions: Vec<String>,
    /// Slug or id; left out for the whole organization.
    project: Option<String>,
    /// Slug or id of the one workspace where it counts, instead of `project`.
    workspace: Option<String>,
    /// 5 minutes to what the organization's policy allows; 90 days where it is left out, or less where the policy says so.
    expires_in_seconds: Option<u64>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Rotation {
    /// How long the former secret counts too: 24 hours where it is left out, 7 days at most.
    overlap_seconds: Option<u64>,
    /// How long the new secret lives; as long as the former one where it is left out.
    expires_in_seconds: Option<u64>,
}

#[derive(Serialize, ToSchema)]
struct TokenShown {
    id: String,
    slug: String,
    actions: Vec<String>,
    /// The project where it counts; `null` for the whole organization.
    project: Option<String>,
    /// The one workspace where it counts; `null` for all of them.
    workspace: Option<String>,
    /// On whose right it stands.
    created_by: String,
    /// When its present secret was made.
    issued_at: Instant,
    /// As the organization's policy has it now.
    expires_at: Instant,
    /// Which of its secrets is the present one; 1 is the first.
    generation: u32,
    /// Until when the secret before it counts too.
    former_until: Option<Instant>,
    /// To the hour.
    last_used_at: Option<Instant>,
    /// Why it counts for nothing: `revoked`, `expired`, `policy` or `creator`; `null` while it counts.
    over: Option<String>,
}

/// A token with its secret, which is told this once.
#[derive(Serialize, ToSchema)]
struct Issued {
    #[serde(flatten)]
    token: TokenShown,
    /// `Authorization: Bearer <secret>`. Whoever has it acts as the token.
    #[schema(value_type = String)]
    secret: Disclosed,
}

/// The service tokens of the organization, the newest first; ended ones too, of which the oldest are left out.
#[utoipa::path(get, path = "/v1/orgs/{org}/service-tokens", tag = "service tokens",
    responses((status = 200, body = Page<TokenShown>)), extensions(("x-envforge-action" = json!("service_token.read"))))]
async fn list(
    State(state): State<ServiceTokens>,
    caller: Caller,
    Path(org): Path<String>,
) -> Result<axum::Json<Page<TokenShown>>, Problem> {
    let org = state.access.org(&org).await?;
    state.access.permit(&caller, Action::ServiceTokenRead, Resource::Organization(org)).await?;
    let tokens = service_tokens::load(&state.commands, org).await?.state.tokens;
    let uses = state.identity.service_tokens().last_uses(org).await?;
    let used = |id: ServiceTokenId| uses.iter().find(|(used, _)| *used == id).map(|(_, at)| *at);
    let shown = |(id, token): (ServiceTokenId, ServiceToken)| state.shown(org, id, token, used(id), caller.arrival.now);
    Ok(axum::Json(Page { items: tokens.into_iter().rev().map(shown).collect(), next: None }))
}

/// Make a service token for some actions in a place. Nobody makes one that may more than they themselves; from then on it never may
/// more than they may at the time. The secret is answered once; repeated with the same key, the request answers another in its place.
#[utoipa::path(post, path = "/v1/orgs/{org}/service-tokens", tag = "service tokens", request_body = NewToken,
    responses((status = 201, body = Issued)), extensions(("x-envforge-action" = json!("service_token.create"))))]
async fn create(
    State(state): State<ServiceTokens>,
    Path(org): Path<String>,
    request: Write<Json<NewToken>>,
) -> Result<Written<Issued>, Problem> {
    let Write { caller, body: Json(new), context } = request;
    let org = state.access.org(&org).await?;
    let permit = state.access.permit(&caller, Action::ServiceTokenCreate, Resource::Organization(org)).await?;
    let slug: ServiceTokenSlug = new.slug.parse().map_err(|error| Problem::value("slug", error))?;
    let place = state.place(org, new.project.as_deref(), new.workspace.as_deref()).await?;
    let token = ServiceTokenId::from_uuid(context.new_id());
    let new = NewServiceToken {
        token,
        slug,
        actions: actions(&new.actions)?,
        place,
        created_by: caller.user,
        lifetime: new.expires_in_seconds.map(Millis::from_secs),
    };
    let done = act!(state.access, &caller, permit, service_tokens::create(&state.commands, permit, &context, &new));
    state.issue(org, token, 1, &done, context.now).await
}

/// Give a service token another secret, which is answered once. The former one counts for a while longer, so that programs can be
/// given the new one.
#[utoipa::path(post, path = "/v1/orgs/{org}/service-tokens/{token}/rotate", tag = "service tokens",
    request_body = Rotation, responses((status = 201, body = Issued)),
    extensions(("x-envforge-action" = json!("service_token.rotate"))))]
async fn rotate(
    State(state): State<ServiceTokens>,
    Path((org, token)): Path<(String, String)>,
    request: Write<Json<Rotation>>,
) -> Result<Written<Issued>, Problem> {
    let Write { caller, body: Json(rotation), context } = request;
    let org = state.access.org(&org).await?;
    let permit = state.access.permit(&caller, Action::ServiceTokenRotate, Resource::Organization(org)).await?;
    let token = state.named(&permit, &token, context.now).await?;
    let lifetime = rotation.expires_in_seconds.map(Millis::from_secs);
    let overlap = rotation.overlap_seconds.map_or(SERVICE_TOKEN_OVERLAP_DEFAULT, Millis::from_secs);
    let done = act!(
        state.access,
        &caller,
        permit,
        service_tokens::rotate(&state.commands, permit, &context, token, lifetime, overlap)
    );
    let generation = |event: &Event| match event {
        Event::ServiceToken(ServiceTokenEvent::Rotated { generation, .. }) => Some(*generation),
        _ => None,
    };
    let generation = done.events.iter().find_map(generation);
    let generation = generation.ok_or_else(|| Problem::internal("a rotation without its event"))?;
    state.issue(org, token, generation, &done, context.now).await
}

/// Revoke a service token, with all its secrets, at once.
#[utoipa::path(delete, path = "/v1/orgs/{org}/service-tokens/{token}", tag = "service tokens",
    responses((status = 204)), extensions(("x-envforge-action" = json!("service_token.revoke"))))]
async fn revoke(
    State(state): State<ServiceTokens>,
    Path((org, token)): Path<(String, String)>,
    request: Write<Empty>,
) -> Result<Happened, Problem> {
    let Write { caller, context, .. } = request;
    let org = state.access.org(&org).await?;
    let permit = state.access.permit(&caller, Action::ServiceTokenRevoke, Resource::Organization(org)).await?;
    let token = state.named(&permit, &token, context.now).await?;
    let done = act!(state.access, &caller, permit, service_tokens::revoke(&state.commands, permit, &context, token));
    // Its hashes stay until they expire: whoever tries it from now on is refused in its name, and the audit tells.
    Ok(Happened::new(&done))
}

fn actions(tokens: &[String]) -> Result<BTreeSet<Action>, Problem> {
    let known = |token: &String| {
        Action::from_token(token).ok_or_else(|| {
            let shown: String = token.chars().take(60).collect();
            Problem::value("actions", format!("there is no action `{shown}`; docs/access.md lists them"))
        })
    };
    tokens.iter().map(known).collect()
}

impl ServiceTokens {
    /// A token by id or by the name of one that is not over, from the leader.
    async fn named(&self, permit: &Permit, name: &str, now: UnixMillis) -> Result<ServiceTokenId, Problem> {
        if let Ok(token) = name.parse() {
            return Ok(token);
        }
        let slug: ServiceTokenSlug = name.parse().map_err(|_| Problem::not_found())?;
        let tokens = service_tokens::load(&self.commands, permit.org()).await?.state;
        tokens.by_slug(&slug, now).ok_or_else(Problem::not_found)
    }

    async fn place(&self, org: OrgId, project: Option<&str>, workspace: Option<&str>) -> Result<Scope, Problem> {
        match (project, workspace) {
            (None, None) => Ok(Scope::Organization),
            (Some(project), None) => Ok(Scope::Project(self.access.existing_project(org, project).await?)),
            (None, Some(workspace)) => match self.access.workspace(org, workspace).await? {
                Resource::Workspace { project, workspace, .. } => Ok(Scope::Workspace { project, workspace }),
                _ => Err(Problem::not_found()),
            },
            (Some(_), Some(_)) => Err(Problem::value("project", "name either `project` or `workspace`")),
        }
    }

    /// Makes the secret of a generation that the log has, and answers it.
    async fn issue(
        &self,
        org: OrgId,
        token: ServiceTokenId,
        generation: u32,
        done: &Done,
        now: UnixMillis,
    ) -> Result<Written<Issued>, Problem> {
        let known = service_tokens::load(&self.commands, org).await?.state.tokens.remove(&token);
        // A repeated request whose secret was rotated, or whose token was revoked, since.
        let known = known.filter(|known| known.generation == generation && !known.revoked);
        let known = known.ok_or_else(|| Problem::from(&ServiceTokenRefusal::Over as &dyn Refusal))?;
        let key = ServiceTokenKey { token, org, generation };
        let secret = self.identity.service_tokens().issue(key, known.expires_at).await?;
        let token = self.shown(org, token, known, None, now);
        Ok(Written::created(done, Issued { token, secret: Disclosed(secret) }))
    }

    fn shown(
        &self,
        org: OrgId,
        id: ServiceTokenId,
        token: ServiceToken,
        used: Option<UnixMillis>,
        now: UnixMillis,
    ) -> TokenShown {
        let hot = self.access.hot();
        let left = hot.service_tokens.get(id).is_some_and(|known| known.left);
        let known = KnownServiceToken { org, token, left };
        let over = over(&hot.authorization, &known, now).map(|over| over.token().to_owned());
        let token = known.token;
        let ends_at =
            hot.authorization.organization_policy(org).map_or(token.expires_at, |policy| token.ends_at(&policy));
        let (project, workspace) = scope_ids(token.place);
        TokenShown {
            id: id.to_string(),
            slug: token.slug.to_string(),
            actions: token.actions.iter().map(|action| action.token().to_owned()).collect(),
            project,
            workspace,
            created_by: token.created_by.to_string(),
            issued_at: token.issued_at.into(),
            expires_at: ends_at.into(),
            generation: token.generation,
            former_until: token.former_until.filter(|until| now < *until).map(Instant),
            last_used_at: used.map(Instant),
            over,
        }
    }
}
