//! The service tokens view: what each token may do, and whether it still counts, in memory.
//!
//! Folded by the aggregate's own `evolve`. What a token's creator holds, the authorization view knows; both together are the facts
//! for the policy. Not here: a token's secret (identity).

use ahash::{AHashMap, AHashSet};
use envforge_domain::access::{ActorFacts, Facts, Resource};
use envforge_domain::aggregate::Aggregate;
use envforge_domain::commit::{Actor, Recorded, StreamKind};
use envforge_domain::event::Event;
use envforge_domain::ids::{OrgId, ServiceTokenId, UserId};
use envforge_domain::organization::OrganizationEvent;
use envforge_domain::service_token::{ServiceToken, ServiceTokenEvent, ServiceTokenOver, ServiceTokens};
use envforge_domain::time::UnixMillis;
use envforge_domain::user::UserEvent;
use parking_lot::RwLock;

use crate::authorization::AuthorizationView;

#[derive(Default)]
pub struct ServiceTokenView {
    inner: RwLock<Inner>,
}

#[derive(Default)]
struct Inner {
    tokens: AHashMap<OrgId, ServiceTokens>,
    orgs: AHashMap<ServiceTokenId, OrgId>,
    /// Tokens whose creator was taken out or deactivated since: they count for nothing even if the creator comes back, like
    /// sessions.
    left: AHashSet<ServiceTokenId>,
}

/// A token as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownServiceToken {
    pub org: OrgId,
    pub token: ServiceToken,
    /// Whether its creator was taken out or deactivated since.
    pub left: bool,
}

impl ServiceTokenView {
    pub fn get(&self, token: ServiceTokenId) -> Option<KnownServiceToken> {
        let inner = self.inner.read();
        let org = *inner.orgs.get(&token)?;
        let known = inner.tokens.get(&org)?.tokens.get(&token)?.clone();
        Some(KnownServiceToken { org, token: known, left: inner.left.contains(&token) })
    }

    /// On whose right a token stands.
    pub fn creator(&self, token: ServiceTokenId) -> Option<UserId> {
        let inner = self.inner.read();
        let org = inner.orgs.get(&token)?;
        Some(inner.tokens.get(org)?.tokens.get(&token)?.created_by)
    }

    /// What the policy needs to know of a program with a token that asks about a resource.
    pub(crate) fn facts(
        &self,
        authorization: &AuthorizationView,
        token: ServiceTokenId,
        resource: &Resource,
        now: UnixMillis,
    ) -> Facts {
        // INVARIANT: the position is read first, so that all that is looked up here is at least as new.
        let Facts { position, actor } = authorization.facts(&Actor::Anonymous, None, resource, now);
        let Some(known) = self.get(token) else { return Facts { position, actor } };
        let of_creator = authorization.facts(&Actor::User(known.token.created_by), None, resource, now).actor;
        let over = over(authorization, &known, now);
        let KnownServiceToken { org, token, .. } = known;
        let (link_issuers, grants, active) = match of_creator {
            ActorFacts::Member { active, link_issuers, grants, .. } => (link_issuers, grants, active),
            _ => Default::default(),
        };
        let over = over.or((!active && org == resource.org()).then_some(ServiceTokenOver::Creator));
        let actor =
            ActorFacts::ServiceToken { org, over, actions: token.actions, place: token.place, link_issuers, grants };
        Facts { position, actor }
    }

    pub(crate) fn apply(&self, recorded: &Recorded) {
        let org = recorded.commit.stream.org();
        match recorded.commit.stream.kind() {
            StreamKind::ServiceTokens => {
                let Inner { tokens, orgs, left } = &mut *self.inner.write();
                let known = tokens.entry(org).or_default();
                for event in recorded.commit.events.iter().filter_map(ServiceTokens::event_of) {
                    let before = known.tokens.len();
                    *known = ServiceTokens::evolve(std::mem::take(known), event);
                    if let ServiceTokenEvent::Created { token, .. } = event {
                        orgs.insert(*token, org);
                        // The aggregate has forgotten others for it.
                        if known.tokens.len() <= before {
                            orgs.retain(|token, of| *of != org || known.tokens.contains_key(token));
                            left.retain(|token| orgs.contains_key(token));
                        }
                    }
                }
            }
            StreamKind::Organization | StreamKind::User => {
                for event in &recorded.commit.events {
                    let gone = match event {
                        Event::Organization(OrganizationEvent::MemberRemoved { user }) => Some(*user),
                        Event::User(UserEvent::Deactivated) => recorded.commit.stream.key().parse().ok(),
                        _ => None,
                    };
                    if let Some(user) = gone {
                        self.inner.write().leave(org, user);
                    }
                }
            }
            _ => {}
        }
    }
}

impl Inner {
    fn leave(&mut self, org: OrgId, user: UserId) {
        let Some(tokens) = self.tokens.get(&org) else { return };
        self.left.extend(tokens.tokens.iter().filter(|(_, token)| token.created_by == user).map(|(id, _)| *id));
    }
}

/// Why a token counts for nothing, by what is known beside its creator's present state.
pub fn over(authorization: &AuthorizationView, known: &KnownServiceToken, now: UnixMillis) -> Option<ServiceTokenOver> {
    let policy = authorization.organization_policy(known.org);
    let by_itself = match policy {
        Some(policy) => known.token.over(&policy, now),
        None => Some(ServiceTokenOver::Policy),
    };
    by_itself.or(known.left.then_some(ServiceTokenOver::Creator))
}
