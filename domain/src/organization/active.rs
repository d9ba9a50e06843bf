//! An organization that exists: who belongs to it, the teams, the grants, and who reaches above whom.

use std::collections::{BTreeMap, BTreeSet};

use super::policy::OrganizationPolicy;
use crate::access::{Action, Grantee, Role, Roles, Scope};
use crate::commit::Actor;
use crate::ids::{OrgId, TeamId, UserId};
use crate::invitation::InvitedRole;
use crate::slug::{OrgSlug, TeamSlug};
use crate::time::UnixMillis;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveOrganization {
    pub org: OrgId,
    pub slug: OrgSlug,
    pub name: String,
    pub policy: OrganizationPolicy,
    pub members: BTreeSet<UserId>,
    pub teams: BTreeMap<TeamId, Team>,
    /// INVARIANT: at least one organization-wide owner without an end, directly and not through a team.
    pub grants: BTreeMap<(Grantee, Role, Scope), Option<UnixMillis>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Team {
    pub slug: TeamSlug,
    /// INVARIANT: members of the organization, all of them.
    pub members: BTreeSet<UserId>,
}

impl ActiveOrganization {
    /// Live roles of a grantee's own, with where they count.
    fn held_by(&self, grantee: Grantee, now: UnixMillis) -> impl Iterator<Item = (Role, Scope)> + '_ {
        // Role and scope begin with their first variants, so that the range holds all of the grantee.
        self.grants
            .range((grantee, Role::Owner, Scope::Organization)..)
            .take_while(move |((holder, _, _), _)| *holder == grantee)
            .filter(move |(_, end)| end.is_none_or(|end| now < end))
            .map(|((_, role, scope), _)| (*role, *scope))
    }

    /// The teams that somebody is in.
    pub fn teams_of(&self, user: UserId) -> impl Iterator<Item = TeamId> + '_ {
        self.teams.iter().filter(move |(_, team)| team.members.contains(&user)).map(|(id, _)| *id)
    }

    /// Live roles of somebody, their own and those of their teams, with where they count.
    fn reach_of(&self, user: UserId, now: UnixMillis) -> impl Iterator<Item = (Role, Scope)> + '_ {
        let of_teams = self.teams_of(user).flat_map(move |team| self.held_by(Grantee::Team(team), now));
        self.held_by(Grantee::User(user), now).chain(of_teams)
    }

    /// The first of these actions that somebody's roles do not let them do everywhere in a place.
    pub fn beyond_doing<'a>(
        &self,
        by: Actor,
        actions: impl IntoIterator<Item = &'a Action>,
        place: Scope,
        now: UnixMillis,
    ) -> Option<Action> {
        let reaches = |held: Scope| match (held, place) {
            (Scope::Organization, _) => true,
            (Scope::Project(held), Scope::Project(project) | Scope::Workspace { project, .. }) => held == project,
            (Scope::Workspace { .. }, Scope::Workspace { .. }) => held == place,
            (Scope::Project(_) | Scope::Workspace { .. }, _) => false,
        };
        let held: Vec<_> = match by {
            Actor::User(user) if self.members.contains(&user) => self.reach_of(user, now).collect(),
            _ => Vec::new(),
        };
        let may = |action: &Action| held.iter().any(|(role, at)| action.row().roles.contains(role) && reaches(*at));
        actions.into_iter().copied().find(|action| !may(action))
    }

    /// Organization-wide roles that somebody holds now, also through teams.
    pub fn roles_of(&self, user: UserId, now: UnixMillis) -> impl Iterator<Item = Role> + '_ {
        self.reach_of(user, now).filter(|(_, scope)| *scope == Scope::Organization).map(|(role, _)| role)
    }

    fn owners(&self) -> usize {
        self.grants
            .iter()
            .filter(|((grantee, role, _), end)| {
                *role == Role::Owner && end.is_none() && matches!(grantee, Grantee::User(_))
            })
            .count()
    }

    /// Owners through a team do not count: the team could be deleted, or left.
    pub fn is_only_owner(&self, user: UserId) -> bool {
        self.owners() == 1 && self.grants.get(&(Grantee::User(user), Role::Owner, Scope::Organization)) == Some(&None)
    }

    /// The first live role of `user`, wherever it counts and however it is held, that `by` could not take from them: nobody
    /// takes somebody out who stands above them.
    pub fn beyond(&self, by: Actor, user: UserId, now: UnixMillis) -> Option<Role> {
        let grantable = self.grantable(by, now);
        self.reach_of(user, now).map(|(role, _)| role).find(|role| !grantable.contains(*role))
    }

    /// The first live role of a team that `by` could not give: to be in a team is to hold its roles.
    pub(super) fn beyond_team(&self, by: Actor, team: TeamId, now: UnixMillis) -> Option<Role> {
        let grantable = self.grantable(by, now);
        self.held_by(Grantee::Team(team), now).map(|(role, _)| role).find(|role| !grantable.contains(*role))
    }

    /// The first of these roles that `by` may not give.
    pub fn beyond_granting(&self, by: Actor, roles: &[InvitedRole], now: UnixMillis) -> Option<Role> {
        let grantable = self.grantable(by, now);
        roles.iter().map(|invited| invited.role).find(|role| !grantable.contains(*role))
    }

    /// The roles that somebody may give and take now.
    pub(super) fn grantable(&self, by: Actor, now: UnixMillis) -> Roles {
        match by {
            Actor::User(user) => self.roles_of(user, now).flat_map(|held| held.may_grant()).copied().collect(),
            Actor::System(_) => Roles::of(&Role::ALL),
            Actor::LinkVisitor { .. } | Actor::Agent(_) | Actor::ServiceToken(_) | Actor::Anonymous => Roles::NONE,
        }
    }
}
