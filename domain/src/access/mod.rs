//! The access policy: facts + actor + action + resource + surface -> `Permit` or `Denial`.
//!
//! Owns the table of all actions, the roles and the one function that makes a `Permit`. Not here: where the facts come
//! from (projections' authorization view) and who somebody is (identity).

mod action;
mod role;

pub use action::{Action, Principal, Reach, Row, TABLE};
pub use role::{Grant, Grantee, InvalidRole, Role, Roles, Scope};

use std::collections::BTreeSet;

use crate::commit::{Actor, Position, Standing, Surface};
use crate::ids::{HostId, LinkId, OrgId, ProjectId, RootWindowId, SessionId, UserId, WorkspaceId};
use crate::service_token::ServiceTokenOver;
use crate::time::UnixMillis;

/// What the action is about. Every resource belongs to one organization.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resource {
    Organization(OrgId),
    User { org: OrgId, user: UserId },
    Project { org: OrgId, project: ProjectId },
    Workspace { org: OrgId, project: ProjectId, workspace: WorkspaceId },
    Link { org: OrgId, project: ProjectId, workspace: WorkspaceId, link: LinkId },
    Host { org: OrgId, host: HostId },
    RootWindow { org: OrgId, project: ProjectId, workspace: WorkspaceId, window: RootWindowId },
}

impl Resource {
    pub const fn org(&self) -> OrgId {
        match self {
            Self::Organization(org)
            | Self::User { org, .. }
            | Self::Project { org, .. }
            | Self::Workspace { org, .. }
            | Self::Link { org, .. }
            | Self::Host { org, .. }
            | Self::RootWindow { org, .. } => *org,
        }
    }

    pub const fn project(&self) -> Option<ProjectId> {
        match self {
            Self::Project { project, .. }
            | Self::Workspace { project, .. }
            | Self::Link { project, .. }
            | Self::RootWindow { project, .. } => Some(*project),
            Self::Organization(_) | Self::User { .. } | Self::Host { .. } => None,
        }
    }

    pub const fn workspace(&self) -> Option<WorkspaceId> {
        match self {
            Self::Workspace { workspace, .. } | Self::Link { workspace, .. } | Self::RootWindow { workspace, .. } => {
                Some(*workspace)
            }
            Self::Organization(_) | Self::User { .. } | Self::Project { .. } | Self::Host { .. } => None,
        }
    }

    /// The displayed id of the innermost thing named.
    pub fn display_id(&self) -> String {
        match self {
            Self::Organization(id) => id.to_string(),
            Self::User { user, .. } => user.to_string(),
            Self::Project { project, .. } => project.to_string(),
            Self::Workspace { workspace, .. } => workspace.to_string(),
            Self::Link { link, .. } => link.to_string(),
            Self::Host { host, .. } => host.to_string(),
            Self::RootWindow { window, .. } => window.to_string(),
        }
    }
}

/// What is known about the actor, as of a position of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The authorization view had applied everything up to here.
    pub position: Position,
    pub actor: ActorFacts,
}

/// What the log says about the actor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ActorFacts {
    /// Not a member of the resource's organization, unknown, or nobody.
    Nobody,
    Member {
        org: OrgId,
        active: bool,
        /// The session under which the request came; `false` once it was ended.
        session_live: bool,
        /// Whose links the organization's policy allows.
        link_issuers: Roles,
        /// Grants of the user and of the user's teams; those that do not reach the resource may be left out.
        grants: Vec<Grant>,
    },
    /// A link and whether it still stands.
    Link { org: OrgId, project: ProjectId, workspace: WorkspaceId, link: LinkId, live: bool },
    /// A host's agent that proved itself.
    Agent { org: OrgId, host: HostId },
    /// A service token, with what its creator holds.
    ServiceToken {
        org: OrgId,
        /// Why it counts for nothing, where it does not.
        over: Option<ServiceTokenOver>,
        actions: BTreeSet<Action>,
        place: Scope,
        link_issuers: Roles,
        /// Its creator's, as they are now.
        grants: Vec<Grant>,
    },
    /// EnvForge's own component.
    System,
}

/// A question to the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub actor: Actor,
    pub action: Action,
    pub resource: Resource,
    pub surface: Surface,
    pub now: UnixMillis,
}

/// Proof that the policy allowed one action of one actor on one resource. Only `authorize` makes one; whatever acts
/// takes it as an argument, so that an endpoint without a decision does not compile.
#[derive(Debug, PartialEq, Eq)]
pub struct Permit {
    actor: Actor,
    action: Action,
    resource: Resource,
    surface: Surface,
    basis: Basis,
    position: Position,
    rests_on: Vec<Standing>,
    decided_at: UnixMillis,
}

/// Which line of the policy allowed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    Grant(Grant),
    Principal(Principal),
}

impl Permit {
    pub const fn actor(&self) -> Actor {
        self.actor
    }

    pub const fn action(&self) -> Action {
        self.action
    }

    pub const fn resource(&self) -> Resource {
        self.resource
    }

    pub const fn org(&self) -> OrgId {
        self.resource.org()
    }

    pub const fn surface(&self) -> Surface {
        self.surface
    }

    pub const fn basis(&self) -> Basis {
        self.basis
    }

    /// The position of the facts it was decided on.
    pub const fn position(&self) -> Position {
        self.position
    }

    /// Names the streams on which the rights rest, and where they stood at the latest when the facts were taken. The
    /// permit holds for as long as none of them moves; whatever is appended on it says so to the log.
    #[must_use]
    pub fn resting_on(mut self, streams: impl IntoIterator<Item = Standing>) -> Self {
        // INVARIANT: streams are added and never taken away: a permit can only be made to hold for less.
        self.rests_on.extend(streams);
        self
    }

    /// Empty for those whose rights do not stand in the log: EnvForge's own components.
    pub fn rests_on(&self) -> &[Standing] {
        &self.rests_on
    }

    pub const fn decided_at(&self) -> UnixMillis {
        self.decided_at
    }
}

/// Why the policy said no. Codes are stable; clients and metrics use them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Denial {
    #[error("no member of this organization")]
    NotAMember,
    #[error("this account is deactivated")]
    Deactivated,
    #[error("this session has ended; sign in again")]
    SessionEnded,
    #[error("`{}` is not possible on the {} surface", .action.token(), .surface.token())]
    Surface { action: Action, surface: Surface },
    #[error("`{}` needs one of these roles here: {}", .action.token(), roles_that_may(*.action))]
    Role { action: Action },
    #[error("the role for this has ended")]
    GrantExpired { action: Action },
    #[error("the organization's policy lets {} give links", if .allowed.is_empty() { "nobody".to_owned() } else { .allowed.display() })]
    LinkIssuers { allowed: Roles },
    #[error("this link does not open that")]
    OutsideLink,
    #[error("this link is no longer open")]
    LinkEnded,
    #[error("an agent may act for its own organization only")]
    OtherOrganization,
    #[error("this service token counts for nothing any more: {}", match .over {
        ServiceTokenOver::Revoked => "it was revoked",
        ServiceTokenOver::Expired => "its time is over",
        ServiceTokenOver::Policy => "the organization's policy does not allow one that old",
        ServiceTokenOver::Creator => "whoever made it is no active member",
    })]
    ServiceTokenOver { over: ServiceTokenOver },
    #[error("this service token is not for `{}` there", .action.token())]
    OutsideServiceToken { action: Action },
}

fn roles_that_may(action: Action) -> String {
    action.row().roles.iter().map(|role| role.token()).collect::<Vec<_>>().join(", ")
}

impl Denial {
    pub const fn code(self) -> &'static str {
        match self {
            Self::NotAMember => "not_a_member",
            Self::Deactivated => "account_deactivated",
            Self::SessionEnded => "session_ended",
            Self::Surface { .. } => "surface_not_allowed",
            Self::Role { .. } => "role_missing",
            Self::GrantExpired { .. } => "grant_expired",
            Self::LinkIssuers { .. } => "link_issuer_not_allowed",
            Self::OutsideLink => "outside_link",
            Self::LinkEnded => "link_ended",
            Self::OtherOrganization => "other_organization",
            Self::ServiceTokenOver { .. } => "service_token_over",
            Self::OutsideServiceToken { .. } => "outside_service_token",
        }
    }

    /// Whether the resource's existence must stay hidden from the actor.
    pub const fn hides_existence(self) -> bool {
        matches!(self, Self::NotAMember | Self::OtherOrganization)
    }
}

/// Decides. Pure: the same facts and request give the same answer anywhere.
pub fn authorize(facts: &Facts, request: &Request) -> Result<Permit, Denial> {
    let row = request.action.row();
    if !row.exists_on(request.surface) {
        return Err(Denial::Surface { action: request.action, surface: request.surface });
    }
    let basis = match &facts.actor {
        ActorFacts::Nobody => Err(Denial::NotAMember),
        ActorFacts::Member { org, active, session_live, link_issuers, grants } => {
            if *org != request.resource.org() {
                Err(Denial::NotAMember)
            } else if !active {
                Err(Denial::Deactivated)
            } else if !session_live {
                Err(Denial::SessionEnded)
            } else {
                member(row, request, *link_issuers, grants)
            }
        }
        ActorFacts::Link { org, project, workspace, link, live } => {
            let inside = match request.resource {
                Resource::Workspace { org: of, project: on, workspace: at } => {
                    (of, on, at) == (*org, *project, *workspace)
                }
                Resource::Link { org: of, project: on, workspace: at, link: by } => {
                    (of, on, at, by) == (*org, *project, *workspace, *link)
                }
                Resource::Organization(_)
                | Resource::User { .. }
                | Resource::Project { .. }
                | Resource::Host { .. }
                | Resource::RootWindow { .. } => false,
            };
            if row.surfaces_of(Principal::LinkVisitor).is_empty() || !inside {
                Err(Denial::OutsideLink)
            } else if !live {
                Err(Denial::LinkEnded)
            } else {
                principal(row, Principal::LinkVisitor, request.surface)
            }
        }
        ActorFacts::Agent { org, host: _ } => {
            if *org != request.resource.org() {
                Err(Denial::OtherOrganization)
            } else {
                principal(row, Principal::Agent, request.surface)
            }
        }
        ActorFacts::ServiceToken { org, over, actions, place, link_issuers, grants } => {
            if *org != request.resource.org() {
                Err(Denial::NotAMember)
            } else if let Some(over) = over {
                Err(Denial::ServiceTokenOver { over: *over })
            } else if row.surfaces_of(Principal::ServiceToken).is_empty()
                || !actions.contains(&request.action)
                || !place.covers(row.reach, &request.resource)
            {
                Err(Denial::OutsideServiceToken { action: request.action })
            } else {
                // Nothing but the intersection: the table's row for services, the token's own scope, its creator's roles.
                principal(row, Principal::ServiceToken, request.surface)
                    .and_then(|_| by_grant(row, request, *link_issuers, grants))
            }
        }
        ActorFacts::System => principal(row, Principal::System, request.surface),
    }?;
    Ok(Permit {
        actor: request.actor,
        action: request.action,
        resource: request.resource,
        surface: request.surface,
        basis,
        position: facts.position,
        rests_on: Vec::new(),
        decided_at: request.now,
    })
}

fn principal(row: &Row, principal: Principal, surface: Surface) -> Result<Basis, Denial> {
    match row.surfaces_of(principal) {
        [] => Err(Denial::Role { action: row.action }),
        surfaces if surfaces.contains(&surface) => Ok(Basis::Principal(principal)),
        _ => Err(Denial::Surface { action: row.action, surface }),
    }
}

fn member(row: &Row, request: &Request, link_issuers: Roles, grants: &[Grant]) -> Result<Basis, Denial> {
    let own =
        matches!((request.actor, request.resource), (Actor::User(actor), Resource::User { user, .. }) if actor == user);
    if own && !row.surfaces_of(Principal::Member).is_empty() {
        return principal(row, Principal::Member, request.surface);
    }
    by_grant(row, request, link_issuers, grants)
}

fn by_grant(row: &Row, request: &Request, link_issuers: Roles, grants: &[Grant]) -> Result<Basis, Denial> {
    if !row.roles.is_empty() && !row.surfaces.contains(&request.surface) {
        return Err(Denial::Surface { action: request.action, surface: request.surface });
    }
    let (mut expired, mut barred) = (false, false);
    for grant in grants {
        if !row.roles.contains(&grant.role) || !grant.scope.covers(row.reach, &request.resource) {
            continue;
        }
        if !grant.is_live(request.now) {
            expired = true;
        } else if request.action.gives_links() && !link_issuers.contains(grant.role) {
            barred = true;
        } else {
            return Ok(Basis::Grant(*grant));
        }
    }
    Err(match (barred, expired) {
        (true, _) => Denial::LinkIssuers { allowed: link_issuers },
        (false, true) => Denial::GrantExpired { action: request.action },
        (false, false) => Denial::Role { action: request.action },
    })
}

/// A session under which a person acts, as facts need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SignedIn {
    pub org: OrgId,
    pub user: UserId,
    pub session: SessionId,
}
