//! The authorization view: who somebody is to an organization, in memory, for the one policy.
//!
//! A pure fold of the log. Not here: the policy itself (`access::authorize`) and asking for freshness (`authorizer`).

use std::sync::atomic::{AtomicU64, Ordering};

use ahash::{AHashMap, AHashSet};
use envforge_domain::access::{Action, ActorFacts, Facts, Grant, Grantee, Request, Resource, authorize};
use envforge_domain::commit::{Actor, Position, Recorded, StreamKind, Surface};
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
    /// INVARIANT: never ahead of what `inner` has, so that facts are at least as new as they say.
    position: AtomicU64,
}

/// How long the issuer of an open link may have issued it, as of a commit that changed that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IssuerRight {
    pub(crate) link: LinkId,
    /// `None` where they may not; the far end of time where no end is set.
    pub(crate) until: Option<UnixMillis>,
}

/// Later than any end.
const FOREVER: UnixMillis = UnixMillis::new(u64::MAX);

#[derive(Default)]
struct Inner {
    organizations: AHashMap<OrgId, OrganizationFacts>,
    organization_by_slug: AHashMap<OrgSlug, OrgId>,
    users: AHashMap<UserId, UserFacts>,
    user_by_subject: AHashMap<(String, String), UserId>,
    links: AHashMap<LinkId, LinkFacts>,
    /// Open links only.
    links_by_issuer: AHashMap<UserId, AHashSet<LinkId>>,
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
    issued_by: UserId,
    /// A link stands on its issuer's right: it is held against the policy where the link was issued, and again
    /// whenever that right changes. `None` while they may not issue it.
    issuer_until: Option<UnixMillis>,
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
        let position = Position::new(self.position.load(Ordering::Acquire));
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
        Facts { position, actor: facts }
    }

    /// Whose rights a link stands on.
    pub fn link_issuer(&self, link: LinkId) -> Option<UserId> {
        self.inner.read().links.get(&link).map(|facts| facts.issued_by)
    }

    /// Links that stand on a person's right and are open now.
    pub fn open_links_of(&self, user: UserId, now: UnixMillis) -> usize {
        let inner = self.inner.read();
        let links = inner.links_by_issuer.get(&user).into_iter().flatten();
        links.filter(|link| matches!(inner.link(**link, now), ActorFacts::Link { live: true, .. })).count()
    }

    /// Who an identity provider's subject is. The first user of a subject keeps it.
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

    pub fn organization_exists(&self, org: OrgId) -> bool {
        self.inner.read().organizations.contains_key(&org)
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

    /// Whether a session of an active member of its organization still counts.
    pub fn session_live(&self, user: UserId, session: SessionId, now: UnixMillis) -> bool {
        let inner = self.inner.read();
        let Some(facts) = inner.users.get(&user) else { return false };
        let member = inner.organizations.get(&facts.org).is_some_and(|org| org.members.contains(&user));
        member && facts.active && facts.session_live(session, now)
    }

    /// Folds one commit; answers which open links' issuers have another right than before.
    pub(crate) fn apply(&self, recorded: &Recorded) -> Vec<IssuerRight> {
        let rights = match recorded.commit.stream.kind() {
            StreamKind::Organization
            | StreamKind::User
            | StreamKind::Workspace
            | StreamKind::Host
            | StreamKind::DevLink => self.apply_relevant(recorded),
            StreamKind::Project
            | StreamKind::Runtime
            | StreamKind::Claim
            | StreamKind::Denial
            | StreamKind::Decision => Vec::new(),
        };
        self.position.store(recorded.position.get(), Ordering::Release);
        rights
    }

    fn apply_relevant(&self, recorded: &Recorded) -> Vec<IssuerRight> {
        let mut rights = Vec::new();
        let mut inner = self.inner.write();
        let org = recorded.commit.stream.org();
        let key = recorded.commit.stream.key();
        for event in &recorded.commit.events {
            match event {
                Event::Organization(event) => {
                    inner.apply_organization(org, event);
                    rights.extend(whose_rights(event).into_iter().flat_map(|user| inner.judge_links_of(user)));
                }
                Event::User(event) => {
                    if let Ok(user) = key.parse() {
                        inner.apply_user(org, user, event);
                        if matches!(event, UserEvent::Deactivated | UserEvent::Reactivated) {
                            rights.extend(inner.judge_links_of(user));
                        }
                    }
                }
                Event::Workspace(event) => {
                    if let Ok(workspace) = key.parse() {
                        inner.apply_workspace(workspace, event);
                    }
                }
                Event::DevLink(event) => {
                    if let Ok(link) = key.parse() {
                        rights.extend(inner.apply_link(org, link, event));
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
                | Event::Denial(_)
                | Event::Decision(_) => {}
            }
        }
        rights
    }
}

/// The user whose rights in the organization an event may change.
fn whose_rights(event: &OrganizationEvent) -> Option<UserId> {
    let grantee = match event {
        OrganizationEvent::MemberAdded { user }
        | OrganizationEvent::MemberRemoved { user }
        | OrganizationEvent::OwnerRecovered { user } => return Some(*user),
        OrganizationEvent::RoleAssigned { grant } => grant.grantee,
        OrganizationEvent::RoleRevoked { grantee, .. } => *grantee,
        OrganizationEvent::Created { .. } | OrganizationEvent::PolicyChanged { .. } => return None,
    };
    match grantee {
        Grantee::User(user) => Some(user),
        Grantee::Team(_) => None,
    }
}

impl Inner {
    fn member(&self, user: UserId, session: Option<SessionId>, org: OrgId, now: UnixMillis) -> ActorFacts {
        let (Some(facts), Some(organization)) = (self.users.get(&user), self.organizations.get(&org)) else {
            return ActorFacts::Nobody;
        };
        // A person's sessions are of one organization, and so is the person.
        if facts.org != org || !organization.members.contains(&user) {
            return ActorFacts::Nobody;
        }
        ActorFacts::Member {
            org,
            active: facts.active,
            session_live: session.is_some_and(|session| facts.session_live(session, now)),
            grants: organization.grants.get(&Grantee::User(user)).cloned().unwrap_or_default(),
        }
    }

    /// Until when a user may issue a link there, by the one policy.
    fn may_issue_until(&self, user: UserId, resource: Resource) -> Option<UnixMillis> {
        let now = UnixMillis::EPOCH;
        let ActorFacts::Member { org, active, grants, .. } = self.member(user, None, resource.org(), now) else {
            return None;
        };
        let (actor, action, surface) = (Actor::User(user), Action::LinkIssue, Surface::Api);
        let allows = |grant: &&Grant| {
            let alone = ActorFacts::Member { org, active, session_live: true, grants: vec![**grant] };
            let facts = Facts { position: Position::START, actor: alone };
            authorize(&facts, &Request { actor, action, resource, surface, now }).is_ok()
        };
        grants.iter().filter(allows).map(|grant| grant.expires_at.unwrap_or(FOREVER)).max()
    }

    /// Holds the open links of an issuer against their rights as they are now.
    fn judge_links_of(&mut self, user: UserId) -> Vec<IssuerRight> {
        let links: Vec<_> = self.links_by_issuer.get(&user).into_iter().flatten().copied().collect();
        let mut changed = Vec::new();
        for link in links {
            let Some(facts) = self.links.get(&link) else { continue };
            let until = self.may_issue_until(user, facts.resource(link));
            if let Some(facts) = self.links.get_mut(&link)
                && facts.issuer_until != until
            {
                facts.issuer_until = until;
                changed.push(IssuerRight { link, until });
            }
        }
        changed
    }

    fn link(&self, link: LinkId, now: UnixMillis) -> ActorFacts {
        let Some(facts) = self.links.get(&link) else { return ActorFacts::Nobody };
        ActorFacts::Link {
            org: facts.org,
            project: facts.project,
            workspace: facts.workspace,
            link,
            live: facts.open
                && now < facts.expires_at
                && facts.issuer_until.is_some_and(|until| now < until)
                && !self.closed_workspaces.contains(&facts.workspace),
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
            OrganizationEvent::Created { .. } | OrganizationEvent::OwnerRecovered { .. } => {}
            OrganizationEvent::MemberAdded { user } => {
                facts.members.insert(*user);
            }
            OrganizationEvent::MemberRemoved { user } => {
                facts.members.remove(user);
                facts.grants.remove(&Grantee::User(*user));
                // Whoever comes back signs in anew.
                if let Some(removed) = self.users.get_mut(user).filter(|removed| removed.org == org) {
                    removed.sessions.clear();
                }
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
            self.user_by_subject.entry((issuer.clone(), subject.clone())).or_insert(user);
            self.users.insert(user, facts);
            return;
        }
        let Some(facts) = self.users.get_mut(&user) else { return };
        match event {
            UserEvent::Created { .. }
            | UserEvent::Invited { .. }
            | UserEvent::InvitationRevoked
            | UserEvent::InvitationAccepted
            | UserEvent::Reauthenticated { .. }
            | UserEvent::PasswordChanged
            | UserEvent::RevocationRecorded { .. } => {}
            UserEvent::ProfileChanged { name } => facts.name.clone_from(name),
            UserEvent::Deactivated => {
                facts.active = false;
                facts.sessions.clear();
            }
            UserEvent::Reactivated => facts.active = true,
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

    /// Answers the issuer's right where it ends before the link.
    fn apply_link(&mut self, org: OrgId, link: LinkId, event: &DevLinkEvent) -> Option<IssuerRight> {
        match event {
            DevLinkEvent::Issued { project, workspace, expires_at, issued_by, .. } => {
                let mut facts = LinkFacts {
                    org,
                    project: *project,
                    workspace: *workspace,
                    expires_at: *expires_at,
                    open: true,
                    issued_by: *issued_by,
                    issuer_until: None,
                };
                // Held against the rights at this position of the log, whatever the decider knew: an issuer who may not
                // issue it has issued a closed link.
                let until = self.may_issue_until(*issued_by, facts.resource(link));
                facts.issuer_until = until;
                self.links.insert(link, facts);
                self.links_by_issuer.entry(*issued_by).or_default().insert(link);
                return (until != Some(FOREVER)).then_some(IssuerRight { link, until });
            }
            DevLinkEvent::Rotated { expires_at, .. } => {
                if let Some(facts) = self.links.get_mut(&link) {
                    facts.expires_at = *expires_at;
                }
            }
            DevLinkEvent::Expired | DevLinkEvent::Revoked { .. } => {
                if let Some(facts) = self.links.get_mut(&link) {
                    facts.open = false;
                    if let Some(links) = self.links_by_issuer.get_mut(&facts.issued_by) {
                        links.remove(&link);
                    }
                }
            }
            DevLinkEvent::FirstUsed { .. }
            | DevLinkEvent::SessionOpened { .. }
            | DevLinkEvent::AllowlistChanged { .. }
            | DevLinkEvent::WakeSpent { .. }
            | DevLinkEvent::AttemptsBlocked { .. } => {}
        }
        None
    }
}

impl UserFacts {
    fn session_live(&self, session: SessionId, now: UnixMillis) -> bool {
        self.sessions.get(&session).is_some_and(|end| now < *end)
    }
}

impl LinkFacts {
    fn resource(&self, link: LinkId) -> Resource {
        Resource::Link { org: self.org, project: self.project, workspace: self.workspace, link }
    }
}

#[cfg(test)]
mod tests;
