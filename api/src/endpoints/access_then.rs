//! Who could open a workspace at some time: people, links and service tokens, from the log.
//!
//! It costs reading the organization's stream up to then, the stream of each person who held a role that reached the workspace, that
//! of its tokens and its own; nothing is kept for it. Roles are held against the policy's table as it is today, and a link that was
//! rotated since against its latest end. Not here: who may now (`authz`).

use std::collections::BTreeMap;

use axum::extract::State;
use envforge_domain::access::{Action, ActorFacts, Facts, Permit, Reach, Request, Resource, TABLE, authorize};
use envforge_domain::commit::{Actor, Position, Surface};
use envforge_domain::ids::{OrgId, UserId, WorkspaceId};
use envforge_domain::organization::OrganizationPolicy;
use envforge_domain::time::UnixMillis;
use envforge_eventlog::SharedLog;
use envforge_projections::rights_history::{self, Held, RightsHistory, Until};
use envforge_projections::sql::Limit;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::audit::instant_query;
use super::authz::GrantShown;
use super::has_access;
use crate::access::{Access, Caller};
use crate::instant::Instant;
use crate::page::{Path, Query, Slice, wrong_query};
use crate::problem::Problem;
use crate::reads::{AtLeast, Reads};

/// People whose accounts are looked at, each a read of their stream.
const PEOPLE_MAX: usize = 1_000;
/// Links of the workspace that are looked at, by pages.
const LINK_PAGES_MAX: usize = 5;

#[derive(Clone)]
pub(crate) struct AccessThen {
    pub(crate) access: Access,
    pub(crate) reads: Reads,
    pub(crate) log: SharedLog,
}

has_access!(AccessThen);

pub(crate) fn routes() -> OpenApiRouter<AccessThen> {
    OpenApiRouter::new().routes(routes!(access_then))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct AtQuery {
    /// RFC 3339, by the log's clock; now where it is left out.
    at: Option<String>,
}

/// Who could open it.
#[derive(Serialize, ToSchema)]
struct Then {
    workspace: String,
    at: Instant,
    /// Position of the last change of the organization's rights that is in it.
    position: u64,
    people: Vec<PersonThen>,
    links: Vec<LinkThen>,
    service_tokens: Vec<TokenThen>,
    /// Whether there were more people (1,000) or links (1,000) than are looked at.
    truncated: bool,
}

#[derive(Serialize, ToSchema)]
struct PersonThen {
    user: String,
    name: Option<String>,
    /// What they could do there, of the actions on a workspace.
    actions: Vec<&'static str>,
    grants: Vec<HeldThen>,
}

#[derive(Serialize, ToSchema)]
struct HeldThen {
    #[serde(flatten)]
    grant: GrantShown,
    /// Position of the event that gave it.
    given_at: u64,
    /// Position of the event that put the person into the team.
    joined_at: Option<u64>,
}

/// A link that was open: whoever had its share URL could use the app of its service.
#[derive(Serialize, ToSchema)]
struct LinkThen {
    id: String,
    label: String,
    service: String,
    /// On whose right it stood.
    issued_by: String,
    expires_at: Instant,
}

#[derive(Serialize, ToSchema)]
struct TokenThen {
    id: String,
    slug: String,
    /// On whose right it stood.
    created_by: String,
    actions: Vec<&'static str>,
}

/// What somebody could do, with the event since which their account was open.
struct Could {
    actions: Vec<Action>,
    since: Position,
}

/// Who could open a workspace at some time. Answered from the log, which takes longer the more changes of rights there were.
#[utoipa::path(get, path = "/v1/orgs/{org}/workspaces/{workspace}/access", tag = "authorization", params(AtQuery),
    responses((status = 200, body = Then)), extensions(("x-envforge-action" = json!("audit.read"))))]
async fn access_then(
    State(state): State<AccessThen>,
    caller: Caller,
    Path((org, workspace)): Path<(String, String)>,
    Query(query): Query<AtQuery>,
    at_least: AtLeast,
) -> Result<axum::Json<Then>, Problem> {
    let org = state.access.org(&org).await?;
    let permit = state.access.permit(&caller, Action::AuditRead, Resource::Organization(org)).await?;
    let now = caller.arrival.now;
    let at = instant_query("at", query.at.as_deref())?.unwrap_or(now);
    if at > now {
        return Err(wrong_query("at", "it lies in the future, of which the log knows nothing"));
    }
    let place = state.access.workspace(org, &workspace).await?;
    let Resource::Workspace { workspace, .. } = place else { return Err(Problem::not_found()) };
    let until = Until::Time(at);
    let open_to_links = rights_history::was_open_to_links(&state.log, org, workspace, until).await?;
    let Some(open_to_links) = open_to_links else {
        return Err(wrong_query("at", "there was no such workspace yet"));
    };
    let rights = RightsHistory::read(&state.log, org, until).await?;
    let policy = rights.policy.as_ref().map(|(policy, _)| policy.clone()).unwrap_or_default();
    let (people, mut truncated) = state.people(org, &rights, &policy, &place, at).await?;
    let mut links = Vec::new();
    if open_to_links {
        let more = state.links(&permit, at_least, workspace, at, &people, &policy, &mut links).await?;
        truncated |= more;
    }
    let service_tokens = state.tokens(org, &place, at, &rights, &people, &policy).await?;
    let names = &state.reads.hot().authorization;
    let people = people.iter().map(|(user, could)| PersonThen {
        user: user.to_string(),
        name: names.user(*user).map(|known| known.name),
        actions: could.actions.iter().map(|action| action.token()).collect(),
        grants: rights
            .held_by(*user, at)
            .into_iter()
            .filter(|held| held.grant.scope.covers(Reach::Workspace, &place))
            .map(HeldThen::from)
            .collect(),
    });
    Ok(axum::Json(Then {
        workspace: workspace.to_string(),
        at: at.into(),
        position: rights.position.get(),
        people: people.collect(),
        links,
        service_tokens,
        truncated,
    }))
}

impl From<Held> for HeldThen {
    fn from(held: Held) -> Self {
        let Held { grant, given_at, joined_at } = held;
        Self { grant: grant.into(), given_at: given_at.get(), joined_at: joined_at.map(Position::get) }
    }
}

/// What of the actions on a workspace these grants allowed, by the one policy.
fn allowed(
    org: OrgId,
    user: UserId,
    held: &[Held],
    policy: &OrganizationPolicy,
    place: &Resource,
    now: UnixMillis,
) -> Vec<Action> {
    let grants = held.iter().map(|held| held.grant).collect();
    let actor = ActorFacts::Member { org, active: true, session_live: true, link_issuers: policy.link_issuers, grants };
    let facts = Facts { position: Position::START, actor };
    let may = |action: Action| {
        let (actor, resource, surface) = (Actor::User(user), *place, Surface::Api);
        authorize(&facts, &Request { actor, action, resource, surface, now }).is_ok()
    };
    let on_workspaces = TABLE.iter().filter(|row| row.reach == Reach::Workspace && !row.roles.is_empty());
    on_workspaces.map(|row| row.action).filter(|action| may(*action)).collect()
}

impl AccessThen {
    async fn people(
        &self,
        org: OrgId,
        rights: &RightsHistory,
        policy: &OrganizationPolicy,
        place: &Resource,
        at: UnixMillis,
    ) -> Result<(BTreeMap<UserId, Could>, bool), Problem> {
        let mut people = BTreeMap::new();
        for (looked_at, user) in rights_history::holders(rights).into_iter().enumerate() {
            let actions = allowed(org, user, &rights.held_by(user, at), policy, place, at);
            if !actions.contains(&Action::WorkspaceRead) {
                continue;
            }
            if looked_at >= PEOPLE_MAX {
                return Ok((people, true));
            }
            if let Some(since) = rights_history::active_since(&self.log, org, user, Until::Time(at)).await? {
                people.insert(user, Could { actions, since });
            }
        }
        Ok((people, false))
    }

    /// Adds the links that were open; answers whether there are more than are looked at.
    #[expect(clippy::too_many_arguments, reason = "what was open hangs on all of it")]
    async fn links(
        &self,
        permit: &Permit,
        at_least: AtLeast,
        workspace: WorkspaceId,
        at: UnixMillis,
        people: &BTreeMap<UserId, Could>,
        policy: &OrganizationPolicy,
        links: &mut Vec<LinkThen>,
    ) -> Result<bool, Problem> {
        let mut slice = Slice { limit: Limit::MAX, after: None };
        for _ in 0..LINK_PAGES_MAX {
            let page = self.reads.links_ever(permit, at_least, workspace, &slice).await?;
            for link in page.items {
                let ends_at = link.expires_at.min(policy.link_ends_at(link.issued_at));
                let ended = link.ended_at.is_some_and(|ended| ended <= at);
                let stood = people.get(&link.issued_by).is_some_and(|could| could.actions.contains(&Action::LinkIssue));
                if link.issued_at <= at && at < ends_at && !ended && stood {
                    links.push(LinkThen {
                        id: link.id.to_string(),
                        label: link.label,
                        service: link.service.to_string(),
                        issued_by: link.issued_by.to_string(),
                        expires_at: ends_at.into(),
                    });
                }
            }
            match page.next {
                Some(next) => slice.after = Some(next),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    async fn tokens(
        &self,
        org: OrgId,
        place: &Resource,
        at: UnixMillis,
        rights: &RightsHistory,
        people: &BTreeMap<UserId, Could>,
        policy: &OrganizationPolicy,
    ) -> Result<Vec<TokenThen>, Problem> {
        let mut found = Vec::new();
        for (made, id, token) in rights_history::service_tokens(&self.log, org, Until::Time(at)).await? {
            let Some(could) = people.get(&token.created_by) else { continue };
            let joined = rights.members.get(&token.created_by).copied();
            let stayed = rights_history::stayed(made, joined, Some(could.since));
            if !stayed || token.over(policy, at).is_some() || !token.place.covers(Reach::Workspace, place) {
                continue;
            }
            let may: Vec<_> = token.actions.iter().filter(|action| could.actions.contains(*action)).collect();
            if may.contains(&&Action::WorkspaceRead) {
                found.push(TokenThen {
                    id: id.to_string(),
                    slug: token.slug.to_string(),
                    created_by: token.created_by.to_string(),
                    actions: may.into_iter().map(|action| action.token()).collect(),
                });
            }
        }
        Ok(found)
    }
}
