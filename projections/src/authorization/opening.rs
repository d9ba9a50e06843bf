//! A member's right to open a workspace, as open requests and sockets need it: what the policy decides on, and until when it
//! stands if nobody changes anything.
//!
//! Not here: whom to tell when it changes (`gateway_view::members`).

use envforge_domain::access::{Action, ActorFacts, Facts, Request, Resource, authorize};
use envforge_domain::commit::{Actor, Position, Surface};
use envforge_domain::ids::{SessionId, UserId};
use envforge_domain::time::UnixMillis;

use super::AuthorizationView;

/// A right that stands.
#[derive(Clone, Debug)]
pub(crate) struct OpeningRight {
    pub(crate) facts: ActorFacts,
    /// The end of the session, or of the last grant that gives it, whichever comes first.
    pub(crate) until: UnixMillis,
    pub(crate) signed_in_until: UnixMillis,
}

impl AuthorizationView {
    /// `None` where the session does not count, or its person may not open the workspace.
    pub(crate) fn opening_right(
        &self,
        user: UserId,
        session: SessionId,
        resource: Resource,
        now: UnixMillis,
    ) -> Option<OpeningRight> {
        let inner = self.inner.read();
        let facts = inner.member(user, Some(session), &resource, now);
        let (actor, action, surface) = (Actor::User(user), Action::WorkspaceOpen, Surface::Gateway);
        // The position is that of nobody's permit: only whether there is one is asked here.
        let facts = Facts { position: Position::START, actor: facts };
        authorize(&facts, &Request { actor, action, resource, surface, now }).ok()?;
        let ActorFacts::Member { grants, .. } = &facts.actor else { return None };
        let row = action.row();
        let gives = grants.iter().filter(|grant| {
            row.roles.contains(&grant.role) && grant.scope.covers(row.reach, &resource) && grant.is_live(now)
        });
        let granted_until = gives.map(|grant| grant.expires_at.unwrap_or(UnixMillis::new(u64::MAX))).max()?;
        let signed_in = inner.users.get(&user)?.sessions.get(&session)?;
        let policy = &inner.organizations.get(&resource.org())?.policy;
        let signed_in_until = signed_in.expires_at.min(policy.session_ends_at(signed_in.opened_at));
        Some(OpeningRight { until: granted_until.min(signed_in_until), signed_in_until, facts: facts.actor })
    }
}
