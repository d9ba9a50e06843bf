//! The authorization view: who somebody is to an organization, in memory, for the one policy.
//!
//! A pure fold of the log. Not here: the policy itself (`access::authorize`) and asking for freshness (`authorizer`).

use ahash::{AHashMap, AHashSet};
use envforge_domain::access::{ActorFacts, Facts, Grant, Grantee};
use envforge_domain::commit::{Actor, Position, Recorded};
use envforge_domain::dev_link::DevLinkEvent;
use envforge_domain::event::Event;
use envforge_domain::host::HostEvent;
use envforge_domain::ids::{HostId, LinkId, OrgId, ProjectId, SessionId, UserId, WorkspaceId};
use envforge_domain::organization::{OrganizationEvent, OrganizationPolicy};
use envforge_domain::slug::OrgSlug;
use envforge_domain::time::UnixMillis;
use envforge_domain::user::UserEvent;
use envforge_domain::workspace::{AccessMode, WorkspaceEvent};
use parking_lot::RwLock;

/// The view. Readers hold its lock for a few look-ups.
#[derive(Default)]
pub struct AuthorizationView {
    inner: RwLock<Inner>,
}

#[derive(Default)]
struct Inner {
    position: Position,
    organizations: AHashMap<OrgId, OrganizationFacts>,
    organization_by_slug: AHashMap<OrgSlug, OrgId>,
    users: AHashMap<UserId, UserFacts>,
    user_by_subject: AHashMap<(String, String), UserId>,
    links: AHashMap<LinkId, LinkFacts>,
    /// Workspaces at whose hosts no link works: archived or Tailscale-only.
    closed_workspaces: AHashSet<WorkspaceId>,
    hosts: AHashMap<HostId, OrgId>,
}

struct OrganizationFacts {
    slug: OrgSlug,
    name: String,
    policy: OrganizationPolicy,
    members: AHashSet<UserId>,
    grants: AHashMap<Grantee, Vec<Grant>>,
}

struct UserFacts {
    org: OrgId,
    active: bool,
    email: String,
    name: String,
    sessions: AHashMap<SessionId, UnixMillis>,
}

struct LinkFacts {
    org: OrgId,
    project: ProjectId,
    workspace: WorkspaceId,
    expires_at: UnixMillis,
    open: bool,
}

/// An organization's name as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrganizationName {
    pub org: OrgId,
    pub slug: OrgSlug,
    pub name: String,
}

/// A user as people see them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserName {
    pub user: UserId,
    pub org: OrgId,
    pub email: String,
    pub name: String,
}

impl AuthorizationView {
    /// What the policy needs to know about an actor in an organization, as of the view's position and `now`.
    pub fn facts(&self, actor: &Actor, session: Option<SessionId>, org: OrgId, now: UnixMillis) -> Facts {
        let inner = self.inner.read();
        let facts = match actor {
            Actor::User(user) => inner.member(*user, session, org, now),
            Actor::LinkVisitor { link, .. } => inner.link(*link, now),
            Actor::Agent(host) => {
                inner.hosts.get(host).map_or(ActorFacts::Nobody, |org| ActorFacts::Agent { org: *org, host: *host })
            }
            Actor::System(_) => ActorFacts::System,
            Actor::Anonymous => ActorFacts::Nobody,
        };
        Facts { position: inner.position, actor: facts }
    }

    pub fn user_by_subject(&self, issuer: &str, subject: &str) -> Option<(OrgId, UserId)> {
        let inner = self.inner.read();
        let user = *inner.user_by_subject.get(&(issuer.to_owned(), subject.to_owned()))?;
        Some((inner.users.get(&user)?.org, user))
    }

    pub fn organization_by_slug(&self, slug: &OrgSlug) -> Option<OrgId> {
        self.inner.read().organization_by_slug.get(slug).copied()
    }

    pub fn organization(&self, org: OrgId) -> Option<OrganizationName> {
        let inner = self.inner.read();
        let facts = inner.organizations.get(&org)?;
        Some(OrganizationName { org, slug: facts.slug.clone(), name: facts.name.clone() })
    }

    pub fn organization_policy(&self, org: OrgId) -> Option<OrganizationPolicy> {
        self.inner.read().organizations.get(&org).map(|facts| facts.policy)
    }

    pub fn user(&self, user: UserId) -> Option<UserName> {
        let inner = self.inner.read();
        let facts = inner.users.get(&user)?;
        Some(UserName { user, org: facts.org, email: facts.email.clone(), name: facts.name.clone() })
    }

    /// Live grants of a user in an organization, for tokens and profiles.
    pub fn grants(&self, org: OrgId, user: UserId, now: UnixMillis) -> Vec<Grant> {
        let inner = self.inner.read();
        let grants = inner.organizations.get(&org).and_then(|facts| facts.grants.get(&Grantee::User(user)));
        grants.into_iter().flatten().filter(|grant| grant.is_live(now)).copied().collect()
    }

    pub fn session_live(&self, user: UserId, session: SessionId, now: UnixMillis) -> bool {
        self.inner.read().session_live(user, session, now)
    }

    pub(crate) fn apply(&self, recorded: &Recorded) {
        let mut inner = self.inner.write();
        let org = recorded.commit.stream.org();
        let key = recorded.commit.stream.key();
        for event in &recorded.commit.events {
            match event {
                Event::Organization(event) => inner.apply_organization(org, event),
                Event::User(event) => {
                    if let Ok(user) = key.parse() {
                        inner.apply_user(org, user, event);
                    }
                }
                Event::Workspace(event) => {
                    if let Ok(workspace) = key.parse() {
                        inner.apply_workspace(workspace, event);
                    }
                }
                Event::DevLink(event) => {
                    if let Ok(link) = key.parse() {
                        inner.apply_link(org, link, event);
                    }
                }
                Event::Host(HostEvent::Registered { host, org, .. }) => {
                    inner.hosts.insert(*host, *org);
                }
                Event::Host(HostEvent::Retired) => {
                    if let Ok(host) = key.parse::<HostId>() {
                        inner.hosts.remove(&host);
                    }
                }
                Event::Host(HostEvent::Placed { .. } | HostEvent::Released { .. })
                | Event::Project(_)
                | Event::Runtime(_)
                | Event::Claim(_)
                | Event::Denial(_) => {}
            }
        }
        inner.position = recorded.position;
    }
}

impl Inner {
    fn member(&self, user: UserId, session: Option<SessionId>, org: OrgId, now: UnixMillis) -> ActorFacts {
        let (Some(facts), Some(organization)) = (self.users.get(&user), self.organizations.get(&org)) else {
            return ActorFacts::Nobody;
        };
        if !organization.members.contains(&user) {
            return ActorFacts::Nobody;
        }
        ActorFacts::Member {
            org,
            active: facts.active,
            session_live: session.is_some_and(|session| self.session_live(user, session, now)),
            grants: organization.grants.get(&Grantee::User(user)).cloned().unwrap_or_default(),
        }
    }

    fn session_live(&self, user: UserId, session: SessionId, now: UnixMillis) -> bool {
        self.users.get(&user).and_then(|facts| facts.sessions.get(&session)).is_some_and(|end| now < *end)
    }

    fn link(&self, link: LinkId, now: UnixMillis) -> ActorFacts {
        let Some(facts) = self.links.get(&link) else { return ActorFacts::Nobody };
        ActorFacts::Link {
            org: facts.org,
            project: facts.project,
            workspace: facts.workspace,
            link,
            live: facts.open && now < facts.expires_at && !self.closed_workspaces.contains(&facts.workspace),
        }
    }

    fn apply_organization(&mut self, org: OrgId, event: &OrganizationEvent) {
        if let OrganizationEvent::Created { org, slug, name } = event {
            let facts = OrganizationFacts {
                slug: slug.clone(),
                name: name.clone(),
                policy: OrganizationPolicy::default(),
                members: AHashSet::new(),
                grants: AHashMap::new(),
            };
            self.organization_by_slug.insert(slug.clone(), *org);
            self.organizations.insert(*org, facts);
            return;
        }
        let Some(facts) = self.organizations.get_mut(&org) else { return };
        match event {
            OrganizationEvent::Created { .. } => {}
            OrganizationEvent::MemberAdded { user } => {
                facts.members.insert(*user);
            }
            OrganizationEvent::MemberRemoved { user } => {
                facts.members.remove(user);
                facts.grants.remove(&Grantee::User(*user));
            }
            OrganizationEvent::RoleAssigned { grant } => {
                let grants = facts.grants.entry(grant.grantee).or_default();
                grants.retain(|held| (held.role, held.scope) != (grant.role, grant.scope));
                grants.push(*grant);
            }
            OrganizationEvent::RoleRevoked { grantee, role, scope } => {
                if let Some(grants) = facts.grants.get_mut(grantee) {
                    grants.retain(|held| (held.role, held.scope) != (*role, *scope));
                }
            }
            OrganizationEvent::PolicyChanged { policy } => facts.policy = *policy,
        }
    }

    fn apply_user(&mut self, org: OrgId, user: UserId, event: &UserEvent) {
        if let UserEvent::Created { issuer, subject, email, name, .. } = event {
            let facts = UserFacts {
                org,
                active: true,
                email: email.as_str().to_owned(),
                name: name.clone(),
                sessions: AHashMap::new(),
            };
            self.user_by_subject.insert((issuer.clone(), subject.clone()), user);
            self.users.insert(user, facts);
            return;
        }
        let Some(facts) = self.users.get_mut(&user) else { return };
        match event {
            UserEvent::Created { .. } | UserEvent::PasswordChanged => {}
            UserEvent::Deactivated => {
                facts.active = false;
                facts.sessions.clear();
            }
            UserEvent::SessionOpened { session, expires_at, .. } => {
                facts.sessions.insert(*session, *expires_at);
            }
            UserEvent::SessionEnded { session, .. } => {
                facts.sessions.remove(session);
            }
        }
    }

    fn apply_workspace(&mut self, workspace: WorkspaceId, event: &WorkspaceEvent) {
        let closed = match event {
            WorkspaceEvent::Created { access_mode, .. } | WorkspaceEvent::AccessModeChanged { access_mode } => {
                *access_mode == AccessMode::TailscaleOnly
            }
            WorkspaceEvent::Archived => true,
            WorkspaceEvent::ManifestChanged { .. } => return,
        };
        if closed {
            self.closed_workspaces.insert(workspace);
        } else {
            self.closed_workspaces.remove(&workspace);
        }
    }

    fn apply_link(&mut self, org: OrgId, link: LinkId, event: &DevLinkEvent) {
        match event {
            DevLinkEvent::Issued { project, workspace, expires_at, .. } => {
                let facts =
                    LinkFacts { org, project: *project, workspace: *workspace, expires_at: *expires_at, open: true };
                self.links.insert(link, facts);
            }
            DevLinkEvent::Rotated { expires_at, .. } => {
                if let Some(facts) = self.links.get_mut(&link) {
                    facts.expires_at = *expires_at;
                }
            }
            DevLinkEvent::Expired | DevLinkEvent::Revoked { .. } => {
                if let Some(facts) = self.links.get_mut(&link) {
                    facts.open = false;
                }
            }
            DevLinkEvent::FirstUsed { .. }
            | DevLinkEvent::SessionOpened { .. }
            | DevLinkEvent::AllowlistChanged { .. }
            | DevLinkEvent::WakeSpent { .. }
            | DevLinkEvent::AttemptsBlocked { .. } => {}
        }
    }
}
