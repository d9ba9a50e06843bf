//! One organization's rights in memory: its members, teams, grants and policy, and what they come to for somebody.
//!
//! A decision touches the grants of one person and of their teams that reach the resource, however many others there are.
//! Not here: who somebody is, and links (`people`, `links`).

use ahash::{AHashMap, AHashSet};
use envforge_domain::access::{Action, ActorFacts, Facts, Grant, Grantee, Request, Resource, Role, Scope, authorize};
use envforge_domain::commit::{Actor, Position, Surface};
use envforge_domain::ids::{OrgId, TeamId, UserId};
use envforge_domain::organization::{OrganizationEvent, OrganizationPolicy};
use envforge_domain::slug::{OrgSlug, TeamSlug};
use envforge_domain::time::UnixMillis;

use super::people::UserFacts;

/// Later than any end.
const FOREVER: UnixMillis = UnixMillis::new(u64::MAX);

#[derive(Clone)]
pub(super) struct OrganizationFacts {
    pub(super) org: OrgId,
    pub(super) slug: OrgSlug,
    pub(super) name: String,
    pub(super) policy: OrganizationPolicy,
    /// With the teams that each is in.
    members: AHashMap<UserId, Vec<TeamId>>,
    teams: AHashMap<TeamId, TeamFacts>,
    grants: AHashMap<Grantee, Grants>,
}

#[derive(Clone)]
struct TeamFacts {
    slug: TeamSlug,
    members: AHashSet<UserId>,
}

/// The grants of one grantee, by where they reach, so that those for a resource are found among thousands.
#[derive(Clone, Default)]
struct Grants(Vec<Grant>);

/// Whose rights an event may have changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Touched {
    Nobody,
    Members(Vec<UserId>),
    Everybody,
}

/// A team as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TeamName {
    pub team: TeamId,
    pub slug: TeamSlug,
    pub members: usize,
}

/// A team with who is in it and what they hold through it, sorted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TeamDetail {
    pub team: TeamId,
    pub slug: TeamSlug,
    pub members: Vec<UserId>,
    pub grants: Vec<Grant>,
}

impl Grants {
    fn place(&self, scope: Scope, role: Role) -> Result<usize, usize> {
        self.0.binary_search_by(|held| (held.scope, held.role).cmp(&(scope, role)))
    }

    fn put(&mut self, grant: Grant) {
        match self.place(grant.scope, grant.role) {
            Ok(at) => self.0[at] = grant,
            Err(at) => self.0.insert(at, grant),
        }
    }

    fn take(&mut self, scope: Scope, role: Role) {
        if let Ok(at) = self.place(scope, role) {
            self.0.remove(at);
        }
    }

    fn at(&self, scope: Scope) -> impl Iterator<Item = &Grant> {
        // Short lists are the rule, and to walk one is faster than to search it.
        let from = if self.0.len() <= 8 { 0 } else { self.0.partition_point(|held| held.scope < scope) };
        self.0[from..].iter().skip_while(move |held| held.scope < scope).take_while(move |held| held.scope == scope)
    }

    fn reaching(&self, resource: &Resource, found: &mut Vec<Grant>) {
        found.extend(self.at(Scope::Organization));
        let Some(project) = resource.project() else { return };
        found.extend(self.at(Scope::Project(project)));
        let Some(workspace) = resource.workspace() else { return };
        found.extend(self.at(Scope::Workspace { project, workspace }));
    }
}

impl OrganizationFacts {
    pub(super) fn new(org: OrgId, slug: OrgSlug, name: String) -> Self {
        Self {
            org,
            slug,
            name,
            policy: OrganizationPolicy::default(),
            members: AHashMap::new(),
            teams: AHashMap::new(),
            grants: AHashMap::new(),
        }
    }

    pub(super) fn has_member(&self, user: UserId) -> bool {
        self.members.contains_key(&user)
    }

    pub(super) fn members(&self) -> impl Iterator<Item = UserId> + '_ {
        self.members.keys().copied()
    }

    /// What somebody holds, their own and through teams, each as the grantee's.
    fn holdings(&self, user: UserId) -> impl Iterator<Item = &Grants> {
        let teams = self.members.get(&user).into_iter().flatten().map(|team| Grantee::Team(*team));
        std::iter::once(Grantee::User(user)).chain(teams).filter_map(|grantee| self.grants.get(&grantee))
    }

    /// The grants of somebody and of their teams that may count for a resource.
    pub(super) fn reaching(&self, user: UserId, resource: &Resource) -> Vec<Grant> {
        let mut found = Vec::with_capacity(4);
        self.holdings(user).for_each(|grants| grants.reaching(resource, &mut found));
        found
    }

    /// All live grants of somebody, their own and those of their teams.
    pub(super) fn grants_of(&self, user: UserId, now: UnixMillis) -> Vec<Grant> {
        self.holdings(user).flat_map(|grants| &grants.0).filter(|grant| grant.is_live(now)).copied().collect()
    }

    pub(super) fn teams_of(&self, user: UserId) -> Vec<(TeamId, TeamSlug)> {
        let teams = self.members.get(&user).into_iter().flatten();
        let mut teams: Vec<_> = teams.filter_map(|id| Some((*id, self.teams.get(id)?.slug.clone()))).collect();
        teams.sort_unstable();
        teams
    }

    pub(super) fn team_by_slug(&self, slug: &TeamSlug) -> Option<TeamId> {
        self.teams.iter().find(|(_, team)| team.slug == *slug).map(|(id, _)| *id)
    }

    pub(super) fn team_names(&self) -> Vec<TeamName> {
        let name = |(id, team): (&TeamId, &TeamFacts)| TeamName {
            team: *id,
            slug: team.slug.clone(),
            members: team.members.len(),
        };
        let mut teams: Vec<_> = self.teams.iter().map(name).collect();
        teams.sort_unstable_by_key(|team| team.team);
        teams
    }

    pub(super) fn team(&self, id: TeamId) -> Option<TeamDetail> {
        let team = self.teams.get(&id)?;
        let mut members: Vec<_> = team.members.iter().copied().collect();
        members.sort_unstable();
        let grants = self.grants.get(&Grantee::Team(id)).map(|grants| grants.0.clone()).unwrap_or_default();
        Some(TeamDetail { team: id, slug: team.slug.clone(), members, grants })
    }

    /// Until when somebody may issue a link there, by the one policy. `None` where they may not; the far end of time where
    /// no end is set.
    pub(super) fn may_issue_until(
        &self,
        user: UserId,
        person: Option<&UserFacts>,
        resource: Resource,
    ) -> Option<UnixMillis> {
        let person = person.filter(|person| person.org == self.org && self.has_member(user))?;
        let (actor, action, surface, now) = (Actor::User(user), Action::LinkIssue, Surface::Api, UnixMillis::EPOCH);
        let allows = |grant: &&Grant| {
            let alone = ActorFacts::Member {
                org: self.org,
                active: person.active,
                session_live: true,
                link_issuers: self.policy.link_issuers,
                grants: vec![**grant],
            };
            let facts = Facts { position: Position::START, actor: alone };
            authorize(&facts, &Request { actor, action, resource, surface, now }).is_ok()
        };
        let grants = self.reaching(user, &resource);
        grants.iter().filter(allows).map(|grant| grant.expires_at.unwrap_or(FOREVER)).max()
    }

    pub(super) fn apply(&mut self, event: &OrganizationEvent) -> Touched {
        match event {
            OrganizationEvent::Created { .. } | OrganizationEvent::OwnerRecovered { .. } => return Touched::Nobody,
            OrganizationEvent::MemberAdded { user } => {
                self.members.entry(*user).or_default();
                return Touched::Members(vec![*user]);
            }
            OrganizationEvent::MemberRemoved { user } => {
                for team in self.members.remove(user).into_iter().flatten() {
                    if let Some(team) = self.teams.get_mut(&team) {
                        team.members.remove(user);
                    }
                }
                self.grants.remove(&Grantee::User(*user));
                return Touched::Members(vec![*user]);
            }
            OrganizationEvent::RoleAssigned { grant } => {
                self.grants.entry(grant.grantee).or_default().put(*grant);
                return self.holders(grant.grantee);
            }
            OrganizationEvent::RoleRevoked { grantee, role, scope } => {
                if let Some(grants) = self.grants.get_mut(grantee) {
                    grants.take(*scope, *role);
                }
                return self.holders(*grantee);
            }
            OrganizationEvent::PolicyChanged { policy } => {
                self.policy = policy.clone();
                return Touched::Everybody;
            }
            OrganizationEvent::TeamCreated { team, slug } => {
                self.teams.insert(*team, TeamFacts { slug: slug.clone(), members: AHashSet::new() });
            }
            OrganizationEvent::TeamRenamed { team, slug } => {
                if let Some(team) = self.teams.get_mut(team) {
                    team.slug = slug.clone();
                }
            }
            OrganizationEvent::TeamDeleted { team } => {
                let touched = self.holders(Grantee::Team(*team));
                if let Some(gone) = self.teams.remove(team) {
                    for user in gone.members {
                        if let Some(teams) = self.members.get_mut(&user) {
                            teams.retain(|other| other != team);
                        }
                    }
                }
                self.grants.remove(&Grantee::Team(*team));
                return touched;
            }
            OrganizationEvent::TeamMemberAdded { team, user } => {
                if let (Some(facts), Some(teams)) = (self.teams.get_mut(team), self.members.get_mut(user))
                    && facts.members.insert(*user)
                {
                    teams.push(*team);
                }
                return Touched::Members(vec![*user]);
            }
            OrganizationEvent::TeamMemberRemoved { team, user } => {
                if let Some(facts) = self.teams.get_mut(team) {
                    facts.members.remove(user);
                }
                if let Some(teams) = self.members.get_mut(user) {
                    teams.retain(|other| other != team);
                }
                return Touched::Members(vec![*user]);
            }
        }
        Touched::Nobody
    }

    fn holders(&self, grantee: Grantee) -> Touched {
        Touched::Members(match grantee {
            Grantee::User(user) => vec![user],
            Grantee::Team(team) => {
                self.teams.get(&team).map(|team| team.members.iter().copied().collect()).unwrap_or_default()
            }
        })
    }
}
