//! One organization's rights in memory: its members, teams, grants and policy, and what they come to for somebody.
//!
//! Not here: how grants are found (`grants`), who somebody is, and links (`people`, `links`).

use ahash::{AHashMap, AHashSet};
use envforge_domain::access::{Action, ActorFacts, Facts, Grant, Grantee, Request, Resource, authorize};
use envforge_domain::commit::{Actor, Position, Surface};
use envforge_domain::ids::{OrgId, TeamId, UserId};
use envforge_domain::organization::{OrganizationEvent, OrganizationPolicy};
use envforge_domain::slug::{OrgSlug, TeamSlug};
use envforge_domain::time::UnixMillis;

use super::grants::{Grants, Holder};
use super::people::UserFacts;

/// Later than any end.
const FOREVER: UnixMillis = UnixMillis::new(u64::MAX);

#[derive(Clone)]
pub(super) struct OrganizationFacts {
    pub(super) org: OrgId,
    pub(super) slug: OrgSlug,
    pub(super) name: String,
    pub(super) policy: OrganizationPolicy,
    /// With whose grants count for each: their own and those of their teams, sorted by holder.
    members: AHashMap<UserId, Vec<(Holder, Grantee)>>,
    teams: AHashMap<TeamId, TeamFacts>,
    grants: Grants,
}

#[derive(Clone)]
struct TeamFacts {
    slug: TeamSlug,
    members: AHashSet<UserId>,
}

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

impl OrganizationFacts {
    pub(super) fn new(org: OrgId, slug: OrgSlug, name: String) -> Self {
        Self {
            org,
            slug,
            name,
            policy: OrganizationPolicy::default(),
            members: AHashMap::new(),
            teams: AHashMap::new(),
            grants: Grants::default(),
        }
    }

    pub(super) fn has_member(&self, user: UserId) -> bool {
        self.members.contains_key(&user)
    }

    pub(super) fn members(&self) -> impl Iterator<Item = UserId> + '_ {
        self.members.keys().copied()
    }

    /// The grants of somebody and of their teams that may count for a resource.
    pub(super) fn reaching(&self, user: UserId, resource: &Resource) -> Vec<Grant> {
        self.members.get(&user).map(|grantees| self.grants.reaching(grantees, resource)).unwrap_or_default()
    }

    /// All live grants of somebody, their own and those of their teams.
    pub(super) fn grants_of(&self, user: UserId, now: UnixMillis) -> Vec<Grant> {
        let grantees = self.members.get(&user).into_iter().flatten();
        let grants = grantees.flat_map(|(_, grantee)| self.grants.of(*grantee));
        grants.filter(|grant| grant.is_live(now)).copied().collect()
    }

    fn teams_with(&self, user: UserId) -> impl Iterator<Item = TeamId> {
        self.members.get(&user).into_iter().flatten().filter_map(|(_, grantee)| match grantee {
            Grantee::Team(team) => Some(*team),
            Grantee::User(_) => None,
        })
    }

    pub(super) fn teams_of(&self, user: UserId) -> Vec<(TeamId, TeamSlug)> {
        let named = |team| Some((team, self.teams.get(&team)?.slug.clone()));
        let mut teams: Vec<_> = self.teams_with(user).filter_map(named).collect();
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
        let grants = self.grants.of(Grantee::Team(id)).to_vec();
        Some(TeamDetail { team: id, slug: team.slug.clone(), members, grants })
    }

    /// Until when somebody may do something there, as issue a link, by the one policy. `None` where they may not; the far end
    /// of time where no end is set.
    pub(super) fn may_until(
        &self,
        user: UserId,
        person: Option<&UserFacts>,
        action: Action,
        resource: Resource,
    ) -> Option<UnixMillis> {
        let person = person.filter(|person| person.org == self.org && self.has_member(user))?;
        let (actor, surface, now) = (Actor::User(user), Surface::Api, UnixMillis::EPOCH);
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
            OrganizationEvent::Created { .. }
            | OrganizationEvent::OwnerRecovered { .. }
            | OrganizationEvent::RevocationRecorded { .. } => return Touched::Nobody,
            OrganizationEvent::MemberAdded { user } => {
                let grantee = Grantee::User(*user);
                let holder = self.grants.holder(grantee);
                self.members.entry(*user).or_insert_with(|| vec![(holder, grantee)]);
                return Touched::Members(vec![*user]);
            }
            OrganizationEvent::MemberRemoved { user } => {
                for (_, grantee) in self.members.remove(user).into_iter().flatten() {
                    if let Grantee::Team(team) = grantee
                        && let Some(team) = self.teams.get_mut(&team)
                    {
                        team.members.remove(user);
                    }
                }
                self.grants.take_all(Grantee::User(*user));
                return Touched::Members(vec![*user]);
            }
            OrganizationEvent::RoleAssigned { grant } => {
                self.grants.put(*grant);
                return self.holders(grant.grantee);
            }
            OrganizationEvent::RoleRevoked { grantee, role, scope } => {
                self.grants.take(*grantee, *role, *scope);
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
                    gone.members.into_iter().for_each(|user| self.forget_team_of(user, *team));
                }
                self.grants.take_all(Grantee::Team(*team));
                return touched;
            }
            OrganizationEvent::TeamMemberAdded { team, user } => {
                if let (Some(facts), Some(grantees)) = (self.teams.get_mut(team), self.members.get_mut(user))
                    && facts.members.insert(*user)
                {
                    let grantee = Grantee::Team(*team);
                    grantees.push((self.grants.holder(grantee), grantee));
                    grantees.sort_unstable_by_key(|(holder, _)| *holder);
                }
                return Touched::Members(vec![*user]);
            }
            OrganizationEvent::TeamMemberRemoved { team, user } => {
                if let Some(facts) = self.teams.get_mut(team) {
                    facts.members.remove(user);
                }
                self.forget_team_of(*user, *team);
                return Touched::Members(vec![*user]);
            }
        }
        Touched::Nobody
    }

    fn forget_team_of(&mut self, user: UserId, team: TeamId) {
        if let Some(grantees) = self.members.get_mut(&user) {
            grantees.retain(|(_, grantee)| *grantee != Grantee::Team(team));
        }
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
