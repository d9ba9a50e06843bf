//! On what an admitted request stands: a reviewer's link, or a member's own session; and under which name its share of
//! places, connections and activity is counted.
//!
//! Not here: whether it may pass (`admission`).

use std::sync::Arc;

use envforge_domain::access::{Action, ActorFacts};
use envforge_domain::commit::Actor;
use envforge_domain::dev_link::{Generation, RouteFamilies, RouteFamily};
use envforge_domain::ids::{LinkId, SessionId, UserId, WorkspaceId};
use envforge_domain::runtime::ActivitySource;
use envforge_domain::slug::{HostLabel, ServiceName};
use envforge_domain::time::UnixMillis;
use envforge_projections::gateway_view::{
    CloseReason, Closers, GatewayView, LinkPhase, LinkView, MemberView, OpenSocket,
};
use tokio_util::sync::CancellationToken;

use crate::denial::Denial;

/// Whose requests these are. Limits hold for each alone, and connections to apps are shared with nobody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Visitor {
    /// Everybody who came by one link.
    Link(LinkId),
    /// A member, in whatever browser.
    Member(UserId),
}

impl Visitor {
    /// Who keeps a runtime awake.
    pub const fn activity(self) -> ActivitySource {
        match self {
            Self::Link(link) => ActivitySource::Link(link),
            Self::Member(user) => ActivitySource::Person(user),
        }
    }
}

#[derive(Clone)]
pub(crate) enum Ground {
    /// With the generation of the session.
    Link(Arc<LinkView>, Generation),
    Member(Arc<MemberView>),
}

impl Ground {
    pub(crate) fn visitor(&self) -> Visitor {
        match self {
            Self::Link(link, _) => Visitor::Link(link.link),
            Self::Member(member) => Visitor::Member(member.user),
        }
    }

    /// The actor for the policy, in a session.
    pub(crate) fn actor(&self, session: Option<SessionId>) -> Actor {
        match self {
            Self::Link(link, _) => Actor::LinkVisitor { link: link.link, session },
            Self::Member(member) => Actor::User(member.user),
        }
    }

    /// The action of each request.
    pub(crate) const fn action(&self) -> Action {
        match self {
            Self::Link(..) => Action::AppForward,
            Self::Member(_) => Action::WorkspaceOpen,
        }
    }

    /// The link for which refusals are counted.
    pub(crate) fn link(&self) -> Option<LinkId> {
        match self {
            Self::Link(link, _) => Some(link.link),
            Self::Member(_) => None,
        }
    }

    pub(crate) fn workspace(&self) -> WorkspaceId {
        match self {
            Self::Link(link, _) => link.workspace,
            Self::Member(member) => member.workspace,
        }
    }

    pub(crate) fn host(&self) -> &HostLabel {
        match self {
            Self::Link(link, _) => &link.host,
            Self::Member(member) => &member.host,
        }
    }

    /// As people call the workspace.
    pub(crate) fn workspace_name(&self) -> &str {
        match self {
            Self::Link(link, _) => &link.workspace_name,
            Self::Member(member) => &member.workspace_name,
        }
    }

    /// The service of the host.
    pub(crate) fn service(&self) -> &ServiceName {
        match self {
            Self::Link(link, _) => &link.service,
            Self::Member(member) => member.host.service(),
        }
    }

    /// A member may use all that is declared.
    pub(crate) fn families(&self) -> RouteFamilies {
        match self {
            Self::Link(link, _) => link.families,
            Self::Member(_) => RouteFamilies::ALL,
        }
    }

    pub(crate) fn ends_at(&self) -> UnixMillis {
        match self {
            Self::Link(link, _) => link.expires_at,
            Self::Member(member) => member.ends_at,
        }
    }

    /// Whether it still stands at `now`, by itself and as the view had it.
    pub(crate) fn stands(&self, now: UnixMillis) -> Result<(), Denial> {
        match self {
            Self::Link(link, generation) => {
                match link.phase {
                    LinkPhase::Revoked => return Err(Denial::LinkRevoked),
                    LinkPhase::Expired => return Err(Denial::LinkExpired),
                    LinkPhase::Active => {}
                }
                if now >= link.expires_at {
                    return Err(Denial::LinkExpired);
                }
                if *generation != link.generation {
                    return Err(Denial::LinkRotated);
                }
                Ok(())
            }
            Self::Member(member) if member.right.is_none() => Err(Denial::RightEnded),
            Self::Member(member) if now >= member.ends_at => Err(self.expired()),
            Self::Member(_) => Ok(()),
        }
    }

    /// The same visitor's ground as the view has it by now.
    pub(crate) fn renewed(&self, view: &GatewayView) -> Result<Self, Denial> {
        match self {
            Self::Link(link, generation) => {
                let link = view.link(link.link).ok_or(Denial::LinkRevoked)?;
                Ok(Self::Link(link, *generation))
            }
            Self::Member(member) => {
                let member = view.member(&member.cookie).ok_or(Denial::SignedOut)?;
                Ok(Self::Member(member))
            }
        }
    }

    /// What is said where it ended by itself, when its time was over.
    pub(crate) fn expired(&self) -> Denial {
        match self {
            Self::Link(..) => Denial::LinkExpired,
            Self::Member(member) if member.ends_at < member.signed_in_until => Denial::RightEnded,
            Self::Member(_) => Denial::SignedOut,
        }
    }

    /// What the policy decides on.
    pub(crate) fn facts(&self, now: UnixMillis) -> ActorFacts {
        match self {
            Self::Link(link, _) => ActorFacts::Link {
                org: link.org,
                project: link.project,
                workspace: link.workspace,
                link: link.link,
                live: link.phase == LinkPhase::Active && now < link.expires_at,
            },
            Self::Member(member) => member.right.clone().unwrap_or(ActorFacts::Nobody),
        }
    }

    /// Whether the right to a family was taken away since it was given.
    pub(crate) fn is_withdrawn(&self, family: RouteFamily) -> bool {
        self.closers().reason(family).is_some()
    }

    /// Whether that was for the host on which the app ran, and not for the right.
    pub(crate) fn has_lost_host(&self, family: RouteFamily) -> bool {
        self.closers().reason(family) == Some(CloseReason::HostRevoked)
    }

    /// Cancelled when that happens.
    pub(crate) fn cancel(&self, family: RouteFamily) -> &CancellationToken {
        self.closers().of(family)
    }

    /// Counted for as long as it is kept.
    pub(crate) fn socket_opened(&self, family: RouteFamily) -> OpenSocket {
        self.closers().socket_opened(family)
    }

    fn closers(&self) -> &Closers {
        match self {
            Self::Link(link, _) => &link.closers,
            Self::Member(member) => &member.closers,
        }
    }
}
