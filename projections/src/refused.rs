//! A refusal of former times, explained: what the policy looked at, read again from the log up to where the view stood then.
//!
//! The policy is the table as it is today; what it said then is the refusal's own code. Not here: which requests were refused
//! (the audit), and what somebody may do now (`authorizer`).

use envforge_domain::access::{Action, ActorFacts, Denial, Facts, Request, Resource, authorize};
use envforge_domain::commit::{Actor, Position, StreamId, Surface};
use envforge_domain::dev_link::{DevLinkEvent, RouteFamilies};
use envforge_domain::event::Event;
use envforge_domain::ids::{LinkId, OrgId, ProjectId, ServiceTokenId, UserId, WorkspaceId};
use envforge_domain::organization::OrganizationPolicy;
use envforge_domain::service_token::ServiceTokenOver;
use envforge_domain::time::UnixMillis;
use envforge_eventlog::SharedLog;

use crate::authorizer::{ShortOf, weighed};
use crate::rights_history::{HistoryError, RightsHistory, Until, active_since, each, service_tokens, stayed};

/// What was looked at.
#[derive(Clone, Debug, Default)]
pub struct LookedAt {
    /// What the policy says to it.
    pub denial: Option<Denial>,
    /// Every grant that the actor held or stood on, also ended ones.
    pub grants: Vec<GrantThen>,
    /// The event that made the person a member; of a token or link, the person on whose right it stood.
    pub member_since: Option<Position>,
    /// The event that had last changed the organization's policy.
    pub policy_at: Option<Position>,
    pub service_token: Option<TokenThen>,
    pub link: Option<LinkThen>,
}

#[derive(Clone, Debug)]
pub struct GrantThen {
    pub grant: envforge_domain::access::Grant,
    /// `None`: it allows it.
    pub short_of: Option<ShortOf>,
    pub given_at: Position,
    /// The event that put the person into the team that holds it.
    pub joined_at: Option<Position>,
}

/// A service token with the event that made it.
#[derive(Clone, Copy, Debug)]
pub struct TokenThen {
    pub token: ServiceTokenId,
    pub created_by: UserId,
    pub made_at: Position,
}

/// A link as it was, each with the event that says so.
#[derive(Clone, Copy, Debug)]
pub struct LinkThen {
    pub link: LinkId,
    pub project: ProjectId,
    pub workspace: WorkspaceId,
    pub issued_by: UserId,
    pub issued_at: Position,
    pub families: (RouteFamilies, Position),
    /// Rotating sets it anew; older share URLs open nothing since.
    pub expires_at: (UnixMillis, Position),
    /// It was revoked, or closed when its time was over.
    pub ended_at: Option<Position>,
}

/// Looks again at what the policy looked at for a person or a program. Nothing of others: they hold no grants.
///
/// `session_live`: whether the session was still open, which is not asked of the log.
pub async fn looked_at(
    log: &SharedLog,
    request: &Request,
    position: Position,
    session_live: bool,
) -> Result<LookedAt, HistoryError> {
    let (org, until) = (request.resource.org(), Until::Position(position));
    let (holder, token) = match request.actor {
        Actor::User(user) => (user, None),
        Actor::ServiceToken(id) => {
            let mut tokens = service_tokens(log, org, until).await?.into_iter();
            let Some((made_at, _, token)) = tokens.find(|(_, known, _)| *known == id) else {
                return Ok(LookedAt::default());
            };
            (token.created_by, Some((TokenThen { token: id, created_by: token.created_by, made_at }, token)))
        }
        Actor::LinkVisitor { .. } | Actor::Agent(_) | Actor::System(_) | Actor::Anonymous => {
            return Ok(LookedAt::default());
        }
    };
    let rights = RightsHistory::read(log, org, until).await?;
    let active = active_since(log, org, holder, until).await?;
    let member_since = rights.members.get(&holder).copied();
    let policy = rights.policy.as_ref().map_or_else(OrganizationPolicy::default, |(policy, _)| policy.clone());
    let held = rights.grants_of(holder);
    let grants = held.iter().map(|held| held.grant).collect();
    let link_issuers = policy.link_issuers;
    let actor = match &token {
        None if member_since.is_none() => ActorFacts::Nobody,
        None => ActorFacts::Member { org, active: active.is_some(), session_live, link_issuers, grants },
        Some((then, token)) => {
            let left = !stayed(then.made_at, member_since, active);
            ActorFacts::ServiceToken {
                org,
                over: token.over(&policy, request.now).or(left.then_some(ServiceTokenOver::Creator)),
                actions: token.actions.clone(),
                place: token.place,
                link_issuers,
                grants,
            }
        }
    };
    let facts = Facts { position, actor };
    let weigh = |held: crate::rights_history::Held| GrantThen {
        grant: held.grant,
        short_of: weighed(&facts, request, held.grant).short_of,
        given_at: held.given_at,
        joined_at: held.joined_at,
    };
    Ok(LookedAt {
        denial: authorize(&facts, request).err(),
        grants: held.into_iter().map(weigh).collect(),
        member_since,
        policy_at: rights.policy.as_ref().map(|(_, at)| *at),
        service_token: token.map(|(then, _)| then),
        link: None,
    })
}

/// Looks again at a link whose visitor was refused, and at the grants on which it stood: those of whoever issued it.
pub async fn link_looked_at(
    log: &SharedLog,
    org: OrgId,
    link: LinkId,
    position: Position,
    now: UnixMillis,
) -> Result<LookedAt, HistoryError> {
    let mut found: Option<LinkThen> = None;
    each(log, &StreamId::dev_link(org, link), Until::Position(position), |at, event| {
        let Event::DevLink(event) = event else { return };
        match (event, &mut found) {
            (DevLinkEvent::Issued { project, workspace, families, expires_at, issued_by, .. }, _) => {
                found = Some(LinkThen {
                    link,
                    project: *project,
                    workspace: *workspace,
                    issued_by: *issued_by,
                    issued_at: at,
                    families: (*families, at),
                    expires_at: (*expires_at, at),
                    ended_at: None,
                });
            }
            (DevLinkEvent::AllowlistChanged { families }, Some(link)) => link.families = (*families, at),
            (DevLinkEvent::Rotated { expires_at, .. }, Some(link)) => link.expires_at = (*expires_at, at),
            (DevLinkEvent::Expired | DevLinkEvent::Revoked { .. }, Some(link)) => link.ended_at = Some(at),
            _ => {}
        }
    })
    .await?;
    let Some(link) = found else { return Ok(LookedAt::default()) };
    let issuing = Request {
        actor: Actor::User(link.issued_by),
        action: Action::LinkIssue,
        resource: Resource::Workspace { org, project: link.project, workspace: link.workspace },
        surface: Surface::Api,
        now,
    };
    let issuer = looked_at(log, &issuing, position, true).await?;
    Ok(LookedAt { denial: None, link: Some(link), ..issuer })
}
