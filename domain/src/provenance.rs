//! From whom everybody has what they hold: who would still stand if all that one person ever gave, by themselves or through
//! others, counted for nothing. For decisions that must not be that person's own, in whatever account.
//!
//! A fold of the log, act by act, each held against what its giver had by then. Not here: reading the log (commands), and what
//! the answer means (`root_window`). Why it is like this: docs/adr/0021.

use std::collections::{BTreeMap, BTreeSet};

use crate::access::{Action, Grantee, Resource, Role, Roles, Scope};
use crate::commit::{Actor, Component, Recorded};
use crate::event::Event;
use crate::ids::{TeamId, UserId};
use crate::organization::OrganizationEvent;
use crate::time::UnixMillis;
use crate::user::UserEvent;

/// How somebody who wants to decide stands to whoever asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Independence {
    Independent,
    Depends { on: Derived, others: Others },
}

/// What somebody has from the person in question, and from nobody else: the first of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Derived {
    /// Who made it, invited them, or opened it again, could get into it.
    Account,
    Membership,
    /// Every role that would allow it there.
    Role,
}

impl Derived {
    pub const fn token(self) -> &'static str {
        match self {
            Self::Account => "account",
            Self::Membership => "membership",
            Self::Role => "role",
        }
    }
}

/// Who could decide instead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// By name, a few of them.
    pub people: Vec<(UserId, String)>,
    /// Nobody else could, and all were looked at.
    pub nobody: bool,
}

/// What is left of an organization with one person taken out. What people really hold is all in it; each thing says whether it
/// would be there without them.
#[derive(Clone, Debug)]
pub struct Provenance {
    without: UserId,
    people: BTreeMap<UserId, Origin>,
    /// With whether whoever put them in stood.
    teams: BTreeMap<TeamId, BTreeMap<UserId, bool>>,
    grants: BTreeMap<(Grantee, Role, Scope), Given>,
}

#[derive(Clone, Copy, Debug)]
struct Given {
    expires_at: Option<UnixMillis>,
    stands: bool,
}

#[derive(Clone, Debug, Default)]
struct Origin {
    name: String,
    /// With whether the invitation stands.
    invited_by: Option<(UserId, bool)>,
    /// Whether the account would have been made.
    made: bool,
    /// Whether it would have been opened again, where it was ever closed.
    opened: bool,
    active: bool,
    /// `None`: no member.
    member: Option<bool>,
}

/// Whether an event has a place in this fold.
pub fn matters(event: &Event) -> bool {
    match event {
        Event::Organization(event) => {
            !matches!(event, OrganizationEvent::PolicyChanged { .. } | OrganizationEvent::RevocationRecorded { .. })
        }
        Event::User(event) => matches!(
            event,
            UserEvent::Invited { .. }
                | UserEvent::Created { .. }
                | UserEvent::ProfileChanged { .. }
                | UserEvent::PasswordChanged
                | UserEvent::Deactivated
                | UserEvent::Reactivated
        ),
        _ => false,
    }
}

/// Everybody who ever gave somebody anything, going by these commits of the organization's stream or their own: with their
/// streams, and those of their givers, and so on, the fold can answer about this person.
pub fn givers(user: UserId, commits: &[Recorded]) -> BTreeSet<UserId> {
    let mut teams = BTreeSet::new();
    for event in commits.iter().flat_map(|recorded| &recorded.commit.events) {
        if let Event::Organization(OrganizationEvent::TeamMemberAdded { team, user: joined }) = event
            && *joined == user
        {
            teams.insert(*team);
        }
    }
    let mut givers = BTreeSet::new();
    for recorded in commits {
        for event in &recorded.commit.events {
            let concerns = match event {
                Event::Organization(
                    OrganizationEvent::MemberAdded { user: whom }
                    | OrganizationEvent::TeamMemberAdded { user: whom, .. },
                ) => *whom == user,
                Event::Organization(OrganizationEvent::RoleAssigned { grant }) => match grant.grantee {
                    Grantee::User(whom) => whom == user,
                    Grantee::Team(team) => teams.contains(&team),
                },
                Event::User(event) => {
                    if let UserEvent::Invited { invitation } = event {
                        givers.insert(invitation.invited_by);
                    }
                    true
                }
                _ => false,
            };
            if let (true, Actor::User(giver)) = (concerns, recorded.commit.actor) {
                givers.insert(giver);
            }
        }
    }
    givers
}

impl Provenance {
    pub fn without(person: UserId) -> Self {
        Self { without: person, people: BTreeMap::new(), teams: BTreeMap::new(), grants: BTreeMap::new() }
    }

    /// INVARIANT: commits of the organization's stream and of people's come in the order of the log. Of whose stream is missing
    /// nothing stands.
    pub fn apply(&mut self, recorded: &Recorded) {
        let commit = &recorded.commit;
        for event in &commit.events {
            match event {
                Event::Organization(event) => self.apply_organization(commit.actor, commit.decided_at, event),
                Event::User(event) => {
                    if let Ok(user) = commit.stream.key().parse() {
                        self.apply_user(user, commit.actor, commit.decided_at, event);
                    }
                }
                _ => {}
            }
        }
    }

    /// What somebody has from the person taken out alone; `None` where they could do this without them.
    pub fn derived(&self, user: UserId, action: Action, resource: &Resource, now: UnixMillis) -> Option<Derived> {
        let Some(origin) = self.people.get(&user) else { return Some(Derived::Account) };
        if user == self.without || !(origin.made && origin.opened && origin.active) {
            return Some(Derived::Account);
        }
        if origin.member != Some(true) {
            return Some(Derived::Membership);
        }
        let row = action.row();
        let may = self
            .held(user, now)
            .any(|(role, scope, stands)| stands && row.roles.contains(&role) && scope.covers(row.reach, resource));
        (!may).then_some(Derived::Role)
    }

    /// Those whose roles really allow this, whoever gave them.
    pub fn holders(&self, action: Action, resource: &Resource, now: UnixMillis) -> BTreeSet<UserId> {
        let row = action.row();
        let allows = |((grantee, role, scope), given): (&(Grantee, Role, Scope), &Given)| {
            let live = given.expires_at.is_none_or(|end| now < end);
            (live && row.roles.contains(role) && scope.covers(row.reach, resource)).then_some(*grantee)
        };
        let mut people = BTreeSet::new();
        for grantee in self.grants.iter().filter_map(allows) {
            match grantee {
                Grantee::User(user) => {
                    people.insert(user);
                }
                Grantee::Team(team) => people.extend(self.teams.get(&team).into_iter().flat_map(BTreeMap::keys)),
            }
        }
        people
    }

    /// As they call themselves.
    pub fn name(&self, user: UserId) -> &str {
        self.people.get(&user).map_or("", |origin| &origin.name)
    }

    fn apply_organization(&mut self, by: Actor, at: UnixMillis, event: &OrganizationEvent) {
        match event {
            OrganizationEvent::MemberAdded { user } => {
                let stands = match self.inviter(by, *user) {
                    Some((_, invitation_stands)) => invitation_stands,
                    None => self.counts(by, Action::MemberAdd, Roles::NONE, at),
                };
                self.people.entry(*user).or_default().member = Some(stands);
            }
            OrganizationEvent::MemberRemoved { user } => {
                self.people.entry(*user).or_default().member = None;
                self.grants.retain(|(grantee, ..), _| *grantee != Grantee::User(*user));
                self.teams.values_mut().for_each(|members| {
                    members.remove(user);
                });
            }
            OrganizationEvent::RoleAssigned { grant } => {
                let inviter = match grant.grantee {
                    Grantee::User(user) => self.inviter(by, user),
                    Grantee::Team(_) => None,
                };
                let roles = Roles::of(&[grant.role]);
                let stands = match inviter {
                    Some((inviter, _)) => self.counts(Actor::User(inviter), Action::InvitationCreate, roles, at),
                    None => self.counts(by, Action::RoleAssign, roles, at),
                };
                let given = Given { expires_at: grant.expires_at, stands };
                self.grants.insert((grant.grantee, grant.role, grant.scope), given);
            }
            OrganizationEvent::RoleRevoked { grantee, role, scope } => {
                self.grants.remove(&(*grantee, *role, *scope));
            }
            // With a new password, from the machine's command line: nobody else is in that account any more.
            OrganizationEvent::OwnerRecovered { user } => {
                let stands = matches!(by, Actor::System(_));
                let origin = self.people.entry(*user).or_default();
                (origin.made, origin.opened, origin.member) = (stands, stands, Some(stands));
                if let Some(given) = self.grants.get_mut(&(Grantee::User(*user), Role::Owner, Scope::Organization)) {
                    given.stands = stands;
                }
            }
            OrganizationEvent::TeamDeleted { team } => {
                self.teams.remove(team);
                self.grants.retain(|(grantee, ..), _| *grantee != Grantee::Team(*team));
            }
            OrganizationEvent::TeamMemberAdded { team, user } => {
                // To be in a team is to hold its roles.
                let roles = self.live(Grantee::Team(*team), at).map(|(role, ..)| role).collect();
                let stands = self.counts(by, Action::TeamAddMember, roles, at);
                self.teams.entry(*team).or_default().insert(*user, stands);
            }
            OrganizationEvent::TeamMemberRemoved { team, user } => {
                if let Some(members) = self.teams.get_mut(team) {
                    members.remove(user);
                }
            }
            OrganizationEvent::Created { .. }
            | OrganizationEvent::PolicyChanged { .. }
            | OrganizationEvent::TeamCreated { .. }
            | OrganizationEvent::TeamRenamed { .. }
            | OrganizationEvent::RevocationRecorded { .. } => {}
        }
    }

    fn apply_user(&mut self, user: UserId, by: Actor, at: UnixMillis, event: &UserEvent) {
        match event {
            UserEvent::Invited { invitation } => {
                let inviter = invitation.invited_by;
                let stands = [by, Actor::User(inviter)]
                    .into_iter()
                    .all(|by| self.counts(by, Action::InvitationCreate, Roles::NONE, at));
                self.people.entry(user).or_default().invited_by = Some((inviter, stands));
            }
            UserEvent::Created { name, .. } => {
                let made = match self.inviter(by, user) {
                    Some((_, invitation_stands)) => invitation_stands,
                    None => self.counts(by, Action::UserCreate, Roles::NONE, at),
                };
                let origin = self.people.entry(user).or_default();
                (origin.made, origin.opened, origin.active) = (made, true, true);
                origin.name.clone_from(name);
            }
            // There is no way to set somebody else's; whoever could would be in their account.
            UserEvent::PasswordChanged => {
                if by != Actor::User(user) && !self.counts(by, Action::UserCreate, Roles::NONE, at) {
                    self.people.entry(user).or_default().made = false;
                }
            }
            UserEvent::Deactivated => self.people.entry(user).or_default().active = false,
            UserEvent::Reactivated => {
                let roles = self.held(user, at).map(|(role, ..)| role).collect();
                let opened = self.counts(by, Action::UserReactivate, roles, at);
                let origin = self.people.entry(user).or_default();
                (origin.opened, origin.active) = (opened, true);
            }
            UserEvent::ProfileChanged { name } => self.people.entry(user).or_default().name.clone_from(name),
            UserEvent::InvitationRevoked
            | UserEvent::InvitationAccepted
            | UserEvent::SessionOpened { .. }
            | UserEvent::Reauthenticated { .. }
            | UserEvent::SessionEnded { .. }
            | UserEvent::RevocationRecorded { .. }
            | UserEvent::WorkspaceOpened { .. } => {}
        }
    }

    /// Who stands behind what the identity component writes for somebody who accepted an invitation: their own stream says it.
    /// Whom a provider sends was never invited.
    fn inviter(&self, by: Actor, user: UserId) -> Option<(UserId, bool)> {
        if by != Actor::System(Component::Identity) {
            return None;
        }
        self.people.get(&user)?.invited_by
    }

    /// Whether an act that gives these roles would have been somebody's to do without the person taken out.
    fn counts(&self, by: Actor, action: Action, roles: Roles, at: UnixMillis) -> bool {
        match by {
            Actor::System(_) => true,
            Actor::User(giver) if giver != self.without => {
                let stands = self.people.get(&giver).is_some_and(|origin| origin.made && origin.opened);
                let is_member = self.people.get(&giver).is_some_and(|origin| origin.member == Some(true));
                let everywhere =
                    self.held(giver, at).filter(|(_, scope, stands)| *stands && *scope == Scope::Organization);
                let held: Roles = everywhere.map(|(role, ..)| role).collect();
                let grantable: Roles = held.iter().flat_map(Role::may_grant).copied().collect();
                stands
                    && is_member
                    && action.row().roles.iter().any(|role| held.contains(*role))
                    && roles.minus(grantable).is_empty()
            }
            Actor::User(_)
            | Actor::LinkVisitor { .. }
            | Actor::Agent(_)
            | Actor::ServiceToken(_)
            | Actor::Anonymous => false,
        }
    }

    /// Live roles of a grantee's own, with where they count and whether their giver stood.
    fn live(&self, grantee: Grantee, at: UnixMillis) -> impl Iterator<Item = (Role, Scope, bool)> + '_ {
        // Role and scope begin with their first variants, so that the range holds all of the grantee.
        self.grants
            .range((grantee, Role::Owner, Scope::Organization)..)
            .take_while(move |((holder, ..), _)| *holder == grantee)
            .filter(move |(_, given)| given.expires_at.is_none_or(|end| at < end))
            .map(|((_, role, scope), given)| (*role, *scope, given.stands))
    }

    /// The same of a person, also through teams: those stand only together with the place in the team.
    fn held(&self, user: UserId, at: UnixMillis) -> impl Iterator<Item = (Role, Scope, bool)> + '_ {
        let teams = self.teams.iter().filter_map(move |(team, members)| Some((*team, *members.get(&user)?)));
        let through = teams.flat_map(move |(team, joined)| {
            self.live(Grantee::Team(team), at).map(move |(role, scope, stands)| (role, scope, stands && joined))
        });
        self.live(Grantee::User(user), at).chain(through)
    }
}
