//! Organizations: members, teams, roles and policies. The owner of every right.
//!
//! Teams live on this stream and on none of their own: whoever's command rests on rights through a team is then stopped by
//! the same guard as everybody (docs/adr/0005).

mod active;
mod policy;
mod refusal;

use std::collections::{BTreeMap, BTreeSet};

pub use active::{ActiveOrganization, Team};
pub use policy::{LINK_ISSUERS, LOCAL_PROVIDER, OrganizationPolicy, SessionOver};
pub use refusal::OrganizationRefusal;

use crate::access::{Action, Grant, Grantee, Role, Scope};
use crate::aggregate::Aggregate;
use crate::commit::{Actor, StreamKind};
use crate::event::Event;
use crate::ids::{OrgId, TeamId, UserId};
use crate::invitation::InvitedRole;
use crate::limits;
use crate::project::name_is_valid;
use crate::revocation::Receipt;
use crate::slug::{OrgSlug, TeamSlug};
use crate::time::UnixMillis;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OrganizationEvent {
    Created {
        org: OrgId,
        slug: OrgSlug,
        name: String,
    },
    MemberAdded {
        user: UserId,
    },
    /// With their roles, and out of their teams.
    MemberRemoved {
        user: UserId,
    },
    RoleAssigned {
        grant: Grant,
    },
    RoleRevoked {
        grantee: Grantee,
        role: Role,
        scope: Scope,
    },
    PolicyChanged {
        policy: OrganizationPolicy,
    },
    /// Break-glass: whoever has the machine's command line made somebody an owner. What they got follows in the same commit.
    OwnerRecovered {
        user: UserId,
    },
    TeamCreated {
        team: TeamId,
        slug: TeamSlug,
    },
    TeamRenamed {
        team: TeamId,
        slug: TeamSlug,
    },
    /// With its grants.
    TeamDeleted {
        team: TeamId,
    },
    TeamMemberAdded {
        team: TeamId,
        user: UserId,
    },
    TeamMemberRemoved {
        team: TeamId,
        user: UserId,
    },
    /// What taking roles or tightening the policy closed.
    RevocationRecorded {
        receipt: Receipt,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OrganizationCommand {
    /// With its first owner.
    Create {
        org: OrgId,
        slug: OrgSlug,
        name: String,
        owner: UserId,
    },
    AddMember {
        user: UserId,
    },
    /// Whoever takes somebody out takes all their roles with that.
    RemoveMember {
        by: Actor,
        user: UserId,
        now: UnixMillis,
    },
    AssignRole {
        by: Actor,
        grant: Grant,
        now: UnixMillis,
    },
    RevokeRole {
        by: Actor,
        grantee: Grantee,
        role: Role,
        scope: Scope,
        now: UnixMillis,
    },
    ChangePolicy {
        by: Actor,
        policy: OrganizationPolicy,
        /// The identity provider of whoever asks. `None` where nobody can be locked out.
        provider: Option<String>,
        now: UnixMillis,
    },
    /// Of somebody whose account is deactivated in the same append: they leave their teams, and are no owner any more.
    Retire {
        by: Actor,
        user: UserId,
        now: UnixMillis,
    },
    /// Somebody accepted their invitation: they join with its roles, on the right of whoever invited them.
    AdmitInvited {
        invited_by: UserId,
        user: UserId,
        roles: Vec<InvitedRole>,
        now: UnixMillis,
    },
    /// What the commands before closed.
    RecordRevocation {
        receipt: Receipt,
    },
    /// From the machine's command line alone.
    RecoverOwner {
        user: UserId,
    },
    CreateTeam {
        team: TeamId,
        slug: TeamSlug,
    },
    RenameTeam {
        by: Actor,
        team: TeamId,
        slug: TeamSlug,
        now: UnixMillis,
    },
    DeleteTeam {
        by: Actor,
        team: TeamId,
        now: UnixMillis,
    },
    AddTeamMember {
        by: Actor,
        team: TeamId,
        user: UserId,
        now: UnixMillis,
    },
    RemoveTeamMember {
        by: Actor,
        team: TeamId,
        user: UserId,
        now: UnixMillis,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Organization {
    #[default]
    Unknown,
    Active(ActiveOrganization),
}

impl Aggregate for Organization {
    const KIND: StreamKind = StreamKind::Organization;
    type State = Self;
    type Command = OrganizationCommand;
    type Event = OrganizationEvent;
    type Refusal = OrganizationRefusal;

    fn decide(state: &Self, command: &OrganizationCommand) -> Result<Vec<OrganizationEvent>, OrganizationRefusal> {
        match (state, command) {
            (Self::Unknown, OrganizationCommand::Create { org, slug, name, owner }) => {
                if !name_is_valid(name) {
                    return Err(OrganizationRefusal::Name { max: limits::NAME_CHARS_MAX });
                }
                let grant = Grant {
                    grantee: Grantee::User(*owner),
                    role: Role::Owner,
                    scope: Scope::Organization,
                    expires_at: None,
                };
                Ok(vec![
                    OrganizationEvent::Created { org: *org, slug: slug.clone(), name: name.clone() },
                    OrganizationEvent::MemberAdded { user: *owner },
                    OrganizationEvent::RoleAssigned { grant },
                ])
            }
            (Self::Active(_), OrganizationCommand::Create { .. }) => Err(OrganizationRefusal::Exists),
            (Self::Active(org), command) => decide_active(org, command),
            (
                Self::Unknown,
                OrganizationCommand::AddMember { .. }
                | OrganizationCommand::RemoveMember { .. }
                | OrganizationCommand::AssignRole { .. }
                | OrganizationCommand::RevokeRole { .. }
                | OrganizationCommand::ChangePolicy { .. }
                | OrganizationCommand::Retire { .. }
                | OrganizationCommand::AdmitInvited { .. }
                | OrganizationCommand::RecoverOwner { .. }
                | OrganizationCommand::CreateTeam { .. }
                | OrganizationCommand::RenameTeam { .. }
                | OrganizationCommand::DeleteTeam { .. }
                | OrganizationCommand::AddTeamMember { .. }
                | OrganizationCommand::RemoveTeamMember { .. }
                | OrganizationCommand::RecordRevocation { .. },
            ) => Err(OrganizationRefusal::Unknown),
        }
    }

    fn evolve(state: Self, event: &OrganizationEvent) -> Self {
        match (state, event) {
            (_, OrganizationEvent::Created { org, slug, name }) => Self::Active(ActiveOrganization {
                org: *org,
                slug: slug.clone(),
                name: name.clone(),
                policy: OrganizationPolicy::default(),
                members: BTreeSet::new(),
                teams: BTreeMap::new(),
                grants: BTreeMap::new(),
            }),
            (Self::Active(mut org), event) => {
                match event {
                    OrganizationEvent::Created { .. }
                    | OrganizationEvent::OwnerRecovered { .. }
                    | OrganizationEvent::RevocationRecorded { .. } => {}
                    OrganizationEvent::MemberAdded { user } => {
                        org.members.insert(*user);
                    }
                    OrganizationEvent::MemberRemoved { user } => {
                        org.members.remove(user);
                        org.grants.retain(|(grantee, _, _), _| *grantee != Grantee::User(*user));
                        org.teams.values_mut().for_each(|team| {
                            team.members.remove(user);
                        });
                    }
                    OrganizationEvent::RoleAssigned { grant } => {
                        org.grants.insert((grant.grantee, grant.role, grant.scope), grant.expires_at);
                    }
                    OrganizationEvent::RoleRevoked { grantee, role, scope } => {
                        org.grants.remove(&(*grantee, *role, *scope));
                    }
                    OrganizationEvent::PolicyChanged { policy } => org.policy = policy.clone(),
                    OrganizationEvent::TeamCreated { team, slug } => {
                        org.teams.insert(*team, Team { slug: slug.clone(), members: BTreeSet::new() });
                    }
                    OrganizationEvent::TeamRenamed { team, slug } => {
                        if let Some(team) = org.teams.get_mut(team) {
                            team.slug = slug.clone();
                        }
                    }
                    OrganizationEvent::TeamDeleted { team } => {
                        org.teams.remove(team);
                        org.grants.retain(|(grantee, _, _), _| *grantee != Grantee::Team(*team));
                    }
                    OrganizationEvent::TeamMemberAdded { team, user } => {
                        if let Some(team) = org.teams.get_mut(team) {
                            team.members.insert(*user);
                        }
                    }
                    OrganizationEvent::TeamMemberRemoved { team, user } => {
                        if let Some(team) = org.teams.get_mut(team) {
                            team.members.remove(user);
                        }
                    }
                }
                Self::Active(org)
            }
            (
                Self::Unknown,
                OrganizationEvent::MemberAdded { .. }
                | OrganizationEvent::MemberRemoved { .. }
                | OrganizationEvent::RoleAssigned { .. }
                | OrganizationEvent::RoleRevoked { .. }
                | OrganizationEvent::PolicyChanged { .. }
                | OrganizationEvent::OwnerRecovered { .. }
                | OrganizationEvent::TeamCreated { .. }
                | OrganizationEvent::TeamRenamed { .. }
                | OrganizationEvent::TeamDeleted { .. }
                | OrganizationEvent::TeamMemberAdded { .. }
                | OrganizationEvent::TeamMemberRemoved { .. }
                | OrganizationEvent::RevocationRecorded { .. },
            ) => Self::Unknown,
        }
    }

    fn event_of(event: &Event) -> Option<&OrganizationEvent> {
        if let Event::Organization(event) = event { Some(event) } else { None }
    }

    fn action_of(command: &OrganizationCommand) -> Action {
        match command {
            OrganizationCommand::Create { .. } => Action::OrganizationCreate,
            OrganizationCommand::AddMember { .. } => Action::MemberAdd,
            OrganizationCommand::RemoveMember { .. } => Action::MemberRemove,
            OrganizationCommand::AssignRole { .. } => Action::RoleAssign,
            OrganizationCommand::RevokeRole { .. } => Action::RoleRevoke,
            OrganizationCommand::ChangePolicy { .. } => Action::OrganizationChangePolicy,
            OrganizationCommand::Retire { .. } => Action::UserDeactivate,
            OrganizationCommand::AdmitInvited { .. } => Action::InvitationAccept,
            OrganizationCommand::RecoverOwner { .. } => Action::OwnerRecover,
            OrganizationCommand::RecordRevocation { .. } => Action::RevocationRecord,
            OrganizationCommand::CreateTeam { .. } => Action::TeamCreate,
            OrganizationCommand::RenameTeam { .. } => Action::TeamRename,
            OrganizationCommand::DeleteTeam { .. } => Action::TeamDelete,
            OrganizationCommand::AddTeamMember { .. } => Action::TeamAddMember,
            OrganizationCommand::RemoveTeamMember { .. } => Action::TeamRemoveMember,
        }
    }
}

fn decide_active(
    org: &ActiveOrganization,
    command: &OrganizationCommand,
) -> Result<Vec<OrganizationEvent>, OrganizationRefusal> {
    match command {
        OrganizationCommand::Create { .. } => Err(OrganizationRefusal::Exists),
        OrganizationCommand::AddMember { user } => {
            Ok(if org.members.contains(user) { vec![] } else { vec![OrganizationEvent::MemberAdded { user: *user }] })
        }
        OrganizationCommand::RemoveMember { by, user, now } => {
            if !org.members.contains(user) {
                return Ok(vec![]);
            }
            check_may_take_out(org, *by, *user, *now)?;
            Ok(vec![OrganizationEvent::MemberRemoved { user: *user }])
        }
        OrganizationCommand::AssignRole { by, grant, now } => assign_role(org, *by, grant, *now),
        OrganizationCommand::RevokeRole { by, grantee, role, scope, now } => {
            if !org.grants.contains_key(&(*grantee, *role, *scope)) {
                return Err(OrganizationRefusal::NotAssigned);
            }
            if !org.grantable(*by, *now).contains(*role) {
                return Err(OrganizationRefusal::AboveYourself { role: *role });
            }
            if let (Grantee::User(user), Role::Owner) = (grantee, role)
                && org.is_only_owner(*user)
            {
                return Err(OrganizationRefusal::LastOwner);
            }
            Ok(vec![OrganizationEvent::RoleRevoked { grantee: *grantee, role: *role, scope: *scope }])
        }
        OrganizationCommand::ChangePolicy { by, policy, provider, now } => {
            policy.check()?;
            // High-risk policy is the owners' (SPEC, "Roles"); closing a way to root is anybody's who may change the policy.
            if policy.opens_more_root_than(&org.policy) && !org.grantable(*by, *now).contains(Role::Owner) {
                return Err(OrganizationRefusal::PolicyRootOwnersOnly);
            }
            if let Some(provider) = provider.as_ref().filter(|provider| !policy.allows_provider(provider)) {
                return Err(OrganizationRefusal::PolicyLocksYouOut { provider: provider.clone() });
            }
            let policy = policy.clone();
            Ok(if org.policy == policy { vec![] } else { vec![OrganizationEvent::PolicyChanged { policy }] })
        }
        OrganizationCommand::AdmitInvited { invited_by, user, roles, now } => {
            if let Some(role) = org.beyond_granting(Actor::User(*invited_by), roles, *now) {
                return Err(OrganizationRefusal::AboveYourself { role });
            }
            if org.grants.len() + roles.len() > limits::GRANTS_MAX {
                return Err(OrganizationRefusal::TooManyGrants { max: limits::GRANTS_MAX });
            }
            let grants = roles.iter().map(|invited| Grant {
                grantee: Grantee::User(*user),
                role: invited.role,
                scope: invited.scope,
                expires_at: None,
            });
            Ok(joined(org, *user, grants).collect())
        }
        OrganizationCommand::RecordRevocation { receipt } => {
            Ok(vec![OrganizationEvent::RevocationRecorded { receipt: receipt.clone() }])
        }
        OrganizationCommand::RecoverOwner { user } => {
            let (grantee, scope) = (Grantee::User(*user), Scope::Organization);
            let owner = Grant { grantee, role: Role::Owner, scope, expires_at: None };
            let mut events = vec![OrganizationEvent::OwnerRecovered { user: *user }];
            events.extend(joined(org, *user, [owner]));
            Ok(events)
        }
        OrganizationCommand::Retire { by, user, now } => {
            check_may_take_out(org, *by, *user, *now)?;
            let user = *user;
            let mut events: Vec<_> =
                org.teams_of(user).map(|team| OrganizationEvent::TeamMemberRemoved { team, user }).collect();
            let (grantee, role, scope) = (Grantee::User(user), Role::Owner, Scope::Organization);
            // Whoever can do nothing any more does not count as the owner that there always is.
            if org.grants.contains_key(&(grantee, role, scope)) {
                events.push(OrganizationEvent::RoleRevoked { grantee, role, scope });
            }
            Ok(events)
        }
        OrganizationCommand::CreateTeam { team, slug } => {
            if org.teams.get(team).is_some_and(|known| known.slug == *slug) {
                return Ok(vec![]);
            }
            check_team_name(org, slug)?;
            if org.teams.len() >= limits::TEAMS_MAX {
                return Err(OrganizationRefusal::TooManyTeams { max: limits::TEAMS_MAX });
            }
            Ok(vec![OrganizationEvent::TeamCreated { team: *team, slug: slug.clone() }])
        }
        OrganizationCommand::RenameTeam { by, team, slug, now } => {
            // Teams are named when people are added: who could not add anybody may not call it something else either.
            if check_team(org, *by, *team, *now)?.slug == *slug {
                return Ok(vec![]);
            }
            check_team_name(org, slug)?;
            Ok(vec![OrganizationEvent::TeamRenamed { team: *team, slug: slug.clone() }])
        }
        OrganizationCommand::DeleteTeam { by, team, now } => {
            check_team(org, *by, *team, *now)?;
            Ok(vec![OrganizationEvent::TeamDeleted { team: *team }])
        }
        OrganizationCommand::AddTeamMember { by, team, user, now } => {
            let known = check_team(org, *by, *team, *now)?;
            if known.members.contains(user) {
                return Ok(vec![]);
            }
            if !org.members.contains(user) {
                return Err(OrganizationRefusal::NotAMember);
            }
            if known.members.len() >= limits::TEAM_MEMBERS_MAX {
                return Err(OrganizationRefusal::TeamFull { max: limits::TEAM_MEMBERS_MAX });
            }
            if org.teams_of(*user).count() >= limits::TEAMS_OF_MEMBER_MAX {
                return Err(OrganizationRefusal::MemberOfTooManyTeams { max: limits::TEAMS_OF_MEMBER_MAX });
            }
            Ok(vec![OrganizationEvent::TeamMemberAdded { team: *team, user: *user }])
        }
        OrganizationCommand::RemoveTeamMember { by, team, user, now } => {
            if !check_team(org, *by, *team, *now)?.members.contains(user) {
                return Ok(vec![]);
            }
            Ok(vec![OrganizationEvent::TeamMemberRemoved { team: *team, user: *user }])
        }
    }
}

fn assign_role(
    org: &ActiveOrganization,
    by: Actor,
    grant: &Grant,
    now: UnixMillis,
) -> Result<Vec<OrganizationEvent>, OrganizationRefusal> {
    match grant.grantee {
        Grantee::User(user) if !org.members.contains(&user) => return Err(OrganizationRefusal::NotAMember),
        Grantee::Team(team) if !org.teams.contains_key(&team) => return Err(OrganizationRefusal::TeamUnknown),
        Grantee::User(_) | Grantee::Team(_) => {}
    }
    if grant.role.only_org_wide() && grant.scope != Scope::Organization {
        return Err(OrganizationRefusal::OrgWideOnly { role: grant.role });
    }
    if !grant.is_live(now) {
        return Err(OrganizationRefusal::EndsInThePast);
    }
    if !org.grantable(by, now).contains(grant.role) {
        return Err(OrganizationRefusal::AboveYourself { role: grant.role });
    }
    let key = (grant.grantee, grant.role, grant.scope);
    match org.grants.get(&key) {
        Some(end) if *end == grant.expires_at => return Ok(vec![]),
        // An end on the last endless owner would leave the organization without one.
        Some(None) if grant.expires_at.is_some() => {
            if let (Grantee::User(user), Role::Owner) = (grant.grantee, grant.role)
                && org.is_only_owner(user)
            {
                return Err(OrganizationRefusal::LastOwner);
            }
        }
        None if org.grants.len() >= limits::GRANTS_MAX => {
            return Err(OrganizationRefusal::TooManyGrants { max: limits::GRANTS_MAX });
        }
        Some(_) | None => {}
    }
    Ok(vec![OrganizationEvent::RoleAssigned { grant: *grant }])
}

fn check_may_take_out(
    org: &ActiveOrganization,
    by: Actor,
    user: UserId,
    now: UnixMillis,
) -> Result<(), OrganizationRefusal> {
    if let Some(role) = org.beyond(by, user, now) {
        return Err(OrganizationRefusal::AboveYourself { role });
    }
    if org.is_only_owner(user) {
        return Err(OrganizationRefusal::LastOwner);
    }
    Ok(())
}

/// A team that exists, all of whose roles `by` could give and take.
fn check_team(
    org: &ActiveOrganization,
    by: Actor,
    team: TeamId,
    now: UnixMillis,
) -> Result<&Team, OrganizationRefusal> {
    let known = org.teams.get(&team).ok_or(OrganizationRefusal::TeamUnknown)?;
    match org.beyond_team(by, team, now) {
        Some(role) => Err(OrganizationRefusal::AboveYourself { role }),
        None => Ok(known),
    }
}

fn check_team_name(org: &ActiveOrganization, slug: &TeamSlug) -> Result<(), OrganizationRefusal> {
    if org.teams.values().any(|team| team.slug == *slug) {
        return Err(OrganizationRefusal::TeamNameTaken { name: slug.clone() });
    }
    Ok(())
}

/// What somebody who is to be a member with these grants does not have yet.
fn joined(
    org: &ActiveOrganization,
    user: UserId,
    grants: impl IntoIterator<Item = Grant>,
) -> impl Iterator<Item = OrganizationEvent> {
    let missing = |grant: &Grant| org.grants.get(&(grant.grantee, grant.role, grant.scope)) != Some(&grant.expires_at);
    let member = (!org.members.contains(&user)).then_some(OrganizationEvent::MemberAdded { user });
    member.into_iter().chain(grants.into_iter().filter(missing).map(|grant| OrganizationEvent::RoleAssigned { grant }))
}

impl From<OrganizationEvent> for Event {
    fn from(event: OrganizationEvent) -> Self {
        Self::Organization(event)
    }
}
