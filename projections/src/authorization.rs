//! The authorization view: who somebody is to an organization, in memory, for the one policy.
//!
//! A pure fold of the log. Not here: the policy itself (`access::authorize`) and asking for freshness (`authorizer`).

mod dry_run;
mod grants;
mod links;
mod opening;
mod organization;
mod people;
mod root_windows;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use ahash::{AHashMap, AHashSet};
use envforge_domain::access::{ActorFacts, Facts, Grant, Resource};
use envforge_domain::commit::{Actor, Position, Recorded, StreamKind};
use envforge_domain::dev_link::DevLinkEvent;
use envforge_domain::event::Event;
use envforge_domain::host::HostEvent;
use envforge_domain::ids::{HostId, LinkId, OrgId, RootWindowId, SessionId, TeamId, UserId, WorkspaceId};
use envforge_domain::organization::{OrganizationEvent, OrganizationPolicy};
use envforge_domain::slug::{OrgSlug, TeamSlug};
use envforge_domain::time::UnixMillis;
use envforge_domain::user::UserEvent;
use envforge_domain::workspace::{AccessMode, WorkspaceEvent};
use parking_lot::RwLock;
use tokio::sync::watch;

pub use self::dry_run::{Consequences, LinkConsequence, LinkLoss, SessionConsequence};
pub(crate) use self::links::{LinkRight, LinkTerms};
pub use self::organization::{TeamDetail, TeamName};
pub use self::people::SessionOver;
pub use self::root_windows::{KnownRootWindow, RootWindowConsequence, RootWindowLoss};

use self::links::LinkFacts;
use self::organization::{OrganizationFacts, Touched};
use self::people::UserFacts;
use self::root_windows::RootWindows;

/// The view. Readers hold its lock for a few look-ups.
#[derive(Default)]
pub struct AuthorizationView {
    inner: RwLock<Inner>,
    /// INVARIANT: never ahead of what `inner` has, so that facts are at least as new as they say.
    position: AtomicU64,
}

#[derive(Default)]
struct Inner {
    organizations: AHashMap<OrgId, OrganizationFacts>,
    organization_by_slug: AHashMap<OrgSlug, OrgId>,
    users: AHashMap<UserId, UserFacts>,
    user_by_subject: AHashMap<(String, String), UserId>,
    links: AHashMap<LinkId, LinkFacts>,
    /// Open links only.
    links_by_issuer: AHashMap<UserId, AHashSet<LinkId>>,
    /// Open links only.
    links_by_org: AHashMap<OrgId, AHashSet<LinkId>>,
    /// Workspaces at whose hosts no link works: archived or Tailscale-only.
    closed_workspaces: AHashSet<WorkspaceId>,
    hosts: AHashMap<HostId, OrgId>,
    root_windows: AHashMap<OrgId, RootWindows>,
    root_window_orgs: AHashMap<RootWindowId, OrgId>,
    /// Windows with a command that has no end yet: few, whatever there was.
    root_commands: BTreeSet<RootWindowId>,
    /// How many those are.
    root_commands_count: watch::Sender<usize>,
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
    /// What the policy needs to know about an actor who asks about a resource, as of the view's position and `now`.
    pub fn facts(&self, actor: &Actor, session: Option<SessionId>, resource: &Resource, now: UnixMillis) -> Facts {
        let position = Position::new(self.position.load(Ordering::Acquire));
        let inner = self.inner.read();
        let facts = match actor {
            Actor::User(user) => inner.member(*user, session, resource, now),
            Actor::LinkVisitor { link, .. } => inner.link(*link, now),
            Actor::Agent(host) => {
                inner.hosts.get(host).map_or(ActorFacts::Nobody, |org| ActorFacts::Agent { org: *org, host: *host })
            }
            Actor::System(_) => ActorFacts::System,
            // A token's facts are put together from this view and that of tokens.
            Actor::ServiceToken(_) | Actor::Anonymous => ActorFacts::Nobody,
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

    /// Links that stand on a person's right.
    pub fn links_issued_by(&self, user: UserId) -> Vec<LinkId> {
        self.inner.read().links_by_issuer.get(&user).into_iter().flatten().copied().collect()
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
        self.inner.read().organizations.get(&org).map(|facts| facts.policy.clone())
    }

    pub fn user(&self, user: UserId) -> Option<UserName> {
        let inner = self.inner.read();
        let facts = inner.users.get(&user)?;
        Some(UserName { user, org: facts.org, email: facts.email.clone(), name: facts.name.clone() })
    }

    /// Live grants of a user in an organization, their own and those of their teams, for tokens and profiles.
    pub fn grants(&self, org: OrgId, user: UserId, now: UnixMillis) -> Vec<Grant> {
        let inner = self.inner.read();
        inner.organizations.get(&org).map(|facts| facts.grants_of(user, now)).unwrap_or_default()
    }

    /// The teams that somebody is in, sorted.
    pub fn teams_of(&self, org: OrgId, user: UserId) -> Vec<(TeamId, TeamSlug)> {
        self.inner.read().organizations.get(&org).map(|facts| facts.teams_of(user)).unwrap_or_default()
    }

    /// The teams of an organization, by id.
    pub fn teams(&self, org: OrgId) -> Vec<TeamName> {
        self.inner.read().organizations.get(&org).map(OrganizationFacts::team_names).unwrap_or_default()
    }

    pub fn team(&self, org: OrgId, team: TeamId) -> Option<TeamDetail> {
        self.inner.read().organizations.get(&org)?.team(team)
    }

    pub fn team_by_slug(&self, org: OrgId, slug: &TeamSlug) -> Option<TeamId> {
        self.inner.read().organizations.get(&org)?.team_by_slug(slug)
    }

    /// The identity provider by which somebody signs in.
    pub fn provider_of(&self, user: UserId) -> Option<String> {
        self.inner.read().users.get(&user).map(|facts| facts.issuer.clone())
    }

    /// Whether a session of an active member of its organization still counts.
    pub fn session_live(&self, user: UserId, session: SessionId, now: UnixMillis) -> bool {
        let inner = self.inner.read();
        let Some(facts) = inner.users.get(&user) else { return false };
        let Some(organization) = inner.organizations.get(&facts.org) else { return false };
        organization.has_member(user) && facts.active && facts.session_live(&organization.policy, session, now)
    }

    /// Folds one commit; answers which open links stand on other terms than before.
    pub(crate) fn apply(&self, recorded: &Recorded) -> Vec<LinkRight> {
        let rights = match recorded.commit.stream.kind() {
            StreamKind::Organization
            | StreamKind::User
            | StreamKind::Workspace
            | StreamKind::Host
            | StreamKind::DevLink
            | StreamKind::RootWindow => self.apply_relevant(recorded),
            StreamKind::Project
            | StreamKind::Runtime
            | StreamKind::Claim
            | StreamKind::Denial
            | StreamKind::Decision
            | StreamKind::ServiceTokens
            | StreamKind::Shell
            | StreamKind::JobRun
            | StreamKind::Secrets
            | StreamKind::Machine => Vec::new(),
        };
        self.position.store(recorded.position.get(), Ordering::Release);
        rights
    }

    fn apply_relevant(&self, recorded: &Recorded) -> Vec<LinkRight> {
        let mut rights = Vec::new();
        let mut inner = self.inner.write();
        let org = recorded.commit.stream.org();
        let key = recorded.commit.stream.key();
        for event in &recorded.commit.events {
            match event {
                Event::Organization(event) => {
                    let touched = inner.apply_organization(org, event);
                    inner.judge(org, &touched, &mut rights);
                }
                Event::User(event) => {
                    if let Ok(user) = key.parse() {
                        inner.apply_user(org, user, event, recorded.commit.decided_at);
                        if matches!(event, UserEvent::Deactivated | UserEvent::Reactivated) {
                            inner.judge_links_of(user, &mut rights);
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
                        inner.apply_link(org, link, event, &mut rights);
                    }
                }
                Event::RootWindow(event) => {
                    if let Ok(window) = key.parse() {
                        inner.apply_root_window(org, window, event);
                    }
                }
                Event::Host(HostEvent::Registered { host, org, .. }) => {
                    inner.hosts.insert(*host, *org);
                }
                Event::Host(HostEvent::Retired | HostEvent::Revoked) => {
                    if let Ok(host) = key.parse::<HostId>() {
                        inner.hosts.remove(&host);
                    }
                }
                Event::Host(
                    HostEvent::Placed { .. }
                    | HostEvent::Released { .. }
                    | HostEvent::EnrolmentIssued { .. }
                    | HostEvent::Enrolled { .. }
                    | HostEvent::CertificateRenewed { .. }
                    | HostEvent::AgentLookedFor { .. }
                    | HostEvent::Draining,
                )
                | Event::Project(_)
                | Event::Runtime(_)
                | Event::Claim(_)
                | Event::Denial(_)
                | Event::Decision(_)
                | Event::ServiceToken(_)
                | Event::Shell(_)
                | Event::JobRun(_)
                | Event::Secrets(_)
                | Event::Machine(_) => {}
            }
        }
        rights
    }
}

impl Inner {
    fn member(&self, user: UserId, session: Option<SessionId>, resource: &Resource, now: UnixMillis) -> ActorFacts {
        let org = resource.org();
        let (Some(facts), Some(organization)) = (self.users.get(&user), self.organizations.get(&org)) else {
            return ActorFacts::Nobody;
        };
        // A person's sessions are of one organization, and so is the person.
        if facts.org != org || !organization.has_member(user) {
            return ActorFacts::Nobody;
        }
        ActorFacts::Member {
            org,
            active: facts.active,
            session_live: session.is_some_and(|session| facts.session_live(&organization.policy, session, now)),
            link_issuers: organization.policy.link_issuers,
            grants: organization.reaching(user, resource),
        }
    }

    /// Holds the links that an event may concern against rights and policy as they are now.
    fn judge(&mut self, org: OrgId, touched: &Touched, rights: &mut Vec<LinkRight>) {
        match touched {
            Touched::Nobody => {}
            Touched::Members(users) => users.iter().for_each(|user| self.judge_links_of(*user, rights)),
            Touched::Everybody => {
                let links: Vec<_> = self.links_by_org.get(&org).into_iter().flatten().copied().collect();
                links.into_iter().for_each(|link| self.judge_link(link, rights));
            }
        }
    }

    fn judge_links_of(&mut self, user: UserId, rights: &mut Vec<LinkRight>) {
        let links: Vec<_> = self.links_by_issuer.get(&user).into_iter().flatten().copied().collect();
        links.into_iter().for_each(|link| self.judge_link(link, rights));
    }

    fn judge_link(&mut self, link: LinkId, rights: &mut Vec<LinkRight>) {
        let Some(facts) = self.links.get_mut(&link) else { return };
        let terms = facts.terms_by(link, self.organizations.get(&facts.org), self.users.get(&facts.issued_by));
        if facts.terms != terms {
            facts.terms = terms;
            rights.push(LinkRight { link, terms });
        }
    }

    fn link(&self, link: LinkId, now: UnixMillis) -> ActorFacts {
        let Some(facts) = self.links.get(&link) else { return ActorFacts::Nobody };
        ActorFacts::Link {
            org: facts.org,
            project: facts.project,
            workspace: facts.workspace,
            link,
            live: facts.is_live(now) && !self.closed_workspaces.contains(&facts.workspace),
        }
    }

    fn apply_organization(&mut self, org: OrgId, event: &OrganizationEvent) -> Touched {
        if let OrganizationEvent::Created { org, slug, name } = event {
            self.organization_by_slug.insert(slug.clone(), *org);
            self.organizations.insert(*org, OrganizationFacts::new(*org, slug.clone(), name.clone()));
            return Touched::Nobody;
        }
        let Some(facts) = self.organizations.get_mut(&org) else { return Touched::Nobody };
        // Whoever comes back signs in anew.
        if let OrganizationEvent::MemberRemoved { user } = event
            && let Some(removed) = self.users.get_mut(user).filter(|removed| removed.org == org)
        {
            removed.sessions.clear();
        }
        facts.apply(event)
    }

    fn apply_user(&mut self, org: OrgId, user: UserId, event: &UserEvent, at: UnixMillis) {
        if let UserEvent::Created { issuer, subject, email, name, .. } = event {
            let facts = UserFacts {
                org,
                active: true,
                issuer: issuer.clone(),
                email: email.as_str().to_owned(),
                name: name.clone(),
                sessions: AHashMap::new(),
            };
            self.user_by_subject.entry((issuer.clone(), subject.clone())).or_insert(user);
            self.users.insert(user, facts);
            return;
        }
        if let Some(facts) = self.users.get_mut(&user) {
            facts.apply(event, at);
        }
    }

    fn apply_workspace(&mut self, workspace: WorkspaceId, event: &WorkspaceEvent) {
        let closed = match event {
            WorkspaceEvent::Created { access_mode, .. } | WorkspaceEvent::AccessModeChanged { access_mode } => {
                *access_mode == AccessMode::TailscaleOnly
            }
            WorkspaceEvent::Archived => true,
            WorkspaceEvent::ManifestChanged { .. } | WorkspaceEvent::RevocationRecorded { .. } => return,
        };
        if closed {
            self.closed_workspaces.insert(workspace);
        } else {
            self.closed_workspaces.remove(&workspace);
        }
    }

    fn apply_link(&mut self, org: OrgId, link: LinkId, event: &DevLinkEvent, rights: &mut Vec<LinkRight>) {
        match event {
            DevLinkEvent::Issued { project, workspace, families, issued_at, expires_at, issued_by, .. } => {
                let facts = LinkFacts {
                    org,
                    project: *project,
                    workspace: *workspace,
                    issued_at: *issued_at,
                    expires_at: *expires_at,
                    families: *families,
                    open: true,
                    issued_by: *issued_by,
                    terms: LinkTerms::NONE,
                };
                self.links.insert(link, facts);
                self.links_by_issuer.entry(*issued_by).or_default().insert(link);
                self.links_by_org.entry(org).or_default().insert(link);
                // Held against the rights at this position of the log, whatever the decider knew: an issuer who may not
                // issue it has issued a closed link.
                self.judge_link(link, rights);
            }
            DevLinkEvent::Rotated { issued_at, expires_at, .. } => {
                if let Some(facts) = self.links.get_mut(&link) {
                    facts.issued_at = *issued_at;
                    facts.expires_at = *expires_at;
                    self.judge_link(link, rights);
                }
            }
            DevLinkEvent::AllowlistChanged { families } => {
                if let Some(facts) = self.links.get_mut(&link) {
                    facts.families = *families;
                }
            }
            DevLinkEvent::Expired | DevLinkEvent::Revoked { .. } => {
                if let Some(facts) = self.links.get_mut(&link) {
                    facts.open = false;
                    if let Some(links) = self.links_by_issuer.get_mut(&facts.issued_by) {
                        links.remove(&link);
                    }
                    if let Some(links) = self.links_by_org.get_mut(&facts.org) {
                        links.remove(&link);
                    }
                }
            }
            DevLinkEvent::FirstUsed { .. }
            | DevLinkEvent::SessionOpened { .. }
            | DevLinkEvent::WakeSpent { .. }
            | DevLinkEvent::AttemptsBlocked { .. }
            | DevLinkEvent::RevocationRecorded { .. } => {}
        }
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
