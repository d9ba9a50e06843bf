//! Organizations: members, roles and policies. The owner of every right.

use std::collections::{BTreeMap, BTreeSet};

use crate::access::{Action, Grant, Grantee, Role, Scope};
use crate::aggregate::{Aggregate, Refusal, RefusalKind};
use crate::commit::{Actor, StreamKind};
use crate::dev_link::RouteFamilies;
use crate::event::Event;
use crate::ids::{OrgId, UserId};
use crate::invitation::InvitedRole;
use crate::limits;
use crate::project::name_is_valid;
use crate::slug::OrgSlug;
use crate::time::{Millis, UnixMillis};

/// What an organization allows at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrganizationPolicy {
    pub link_lifetime_max: Millis,
    pub link_families: RouteFamilies,
    pub idle_sleep_max: Millis,
    pub keep_awake_max: Millis,
}

impl Default for OrganizationPolicy {
    fn default() -> Self {
        Self {
            link_lifetime_max: Millis::from_hours(24 * 7),
            link_families: RouteFamilies::ALL,
            idle_sleep_max: Millis::from_hours(4),
            keep_awake_max: Millis::from_hours(4),
        }
    }
}

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
        policy: OrganizationPolicy,
    },
    /// Somebody accepted their invitation: they join with its roles, on the right of whoever invited them.
    AdmitInvited {
        invited_by: UserId,
        user: UserId,
        roles: Vec<InvitedRole>,
        now: UnixMillis,
    },
    /// From the machine's command line alone.
    RecoverOwner {
        user: UserId,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Organization {
    #[default]
    Unknown,
    Active(ActiveOrganization),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveOrganization {
    pub org: OrgId,
    pub slug: OrgSlug,
    pub name: String,
    pub policy: OrganizationPolicy,
    pub members: BTreeSet<UserId>,
    /// INVARIANT: at least one organization-wide owner without an end.
    pub grants: BTreeMap<(Grantee, Role, Scope), Option<UnixMillis>>,
}

impl ActiveOrganization {
    /// Organization-wide roles that somebody holds now. Roles through teams come with teams.
    pub fn roles_of(&self, user: UserId, now: UnixMillis) -> impl Iterator<Item = Role> + '_ {
        self.grants
            .iter()
            .filter(move |((grantee, _, scope), end)| {
                *grantee == Grantee::User(user) && *scope == Scope::Organization && end.is_none_or(|end| now < end)
            })
            .map(|((_, role, _), _)| *role)
    }

    fn owners(&self) -> usize {
        self.grants
            .iter()
            .filter(|((grantee, role, _), end)| {
                *role == Role::Owner && end.is_none() && matches!(grantee, Grantee::User(_))
            })
            .count()
    }

    pub fn is_only_owner(&self, user: UserId) -> bool {
        self.owners() == 1 && self.grants.get(&(Grantee::User(user), Role::Owner, Scope::Organization)) == Some(&None)
    }

    /// The first live role of `user`, wherever it counts, that `by` could not take from them: nobody takes somebody out
    /// who stands above them.
    pub fn beyond(&self, by: Actor, user: UserId, now: UnixMillis) -> Option<Role> {
        self.grants
            .iter()
            .filter(|((grantee, _, _), end)| *grantee == Grantee::User(user) && end.is_none_or(|end| now < end))
            .map(|((_, role, _), _)| *role)
            .find(|role| !self.may_grant(by, *role, now))
    }

    /// The first of these roles that `by` may not give.
    pub fn beyond_granting(&self, by: Actor, roles: &[InvitedRole], now: UnixMillis) -> Option<Role> {
        roles.iter().map(|invited| invited.role).find(|role| !self.may_grant(by, *role, now))
    }

    fn may_grant(&self, by: Actor, role: Role, now: UnixMillis) -> bool {
        match by {
            Actor::User(user) => self.roles_of(user, now).any(|held| held.may_grant().contains(&role)),
            Actor::System(_) => true,
            Actor::LinkVisitor { .. } | Actor::Agent(_) | Actor::Anonymous => false,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrganizationRefusal {
    #[error("there is no such organization")]
    Unknown,
    #[error("the organization exists already")]
    Exists,
    #[error("a name must have 1 to {max} characters")]
    Name { max: usize },
    #[error("this user is not a member; add them first")]
    NotAMember,
    #[error("there is no such team; give the role to its members")]
    TeamUnknown,
    #[error("the last owner cannot be removed; assign another owner first")]
    LastOwner,
    #[error("you cannot give or take the role `{role}`: your own roles do not reach it")]
    AboveYourself { role: Role },
    #[error("the role `{role}` counts for the whole organization only")]
    OrgWideOnly { role: Role },
    #[error("the end of a grant must lie in the future")]
    EndsInThePast,
    #[error("this role is not assigned there")]
    NotAssigned,
    #[error("`{setting}` must be between {min} and {max}")]
    PolicyOutOfRange { setting: &'static str, min: Millis, max: Millis },
    #[error("an organization has at most {max} grants")]
    TooManyGrants { max: usize },
}

/// Grants of one organization; keeps its state and view bounded.
pub const GRANTS_MAX: usize = 200_000;

impl Refusal for OrganizationRefusal {
    fn code(&self) -> &'static str {
        match self {
            Self::Unknown => "organization_unknown",
            Self::Exists => "organization_exists",
            Self::Name { .. } => "name_invalid",
            Self::NotAMember => "member_unknown",
            Self::TeamUnknown => "team_unknown",
            Self::LastOwner => "last_owner",
            Self::AboveYourself { .. } => "grant_above_yourself",
            Self::OrgWideOnly { .. } => "role_org_wide_only",
            Self::EndsInThePast => "grant_ends_in_the_past",
            Self::NotAssigned => "role_not_assigned",
            Self::PolicyOutOfRange { .. } => "policy_out_of_range",
            Self::TooManyGrants { .. } => "too_many_grants",
        }
    }

    fn kind(&self) -> RefusalKind {
        match self {
            Self::Unknown | Self::TeamUnknown | Self::NotAssigned => RefusalKind::NotFound,
            Self::Exists | Self::LastOwner => RefusalKind::Conflict,
            Self::Name { .. }
            | Self::NotAMember
            | Self::OrgWideOnly { .. }
            | Self::EndsInThePast
            | Self::PolicyOutOfRange { .. } => RefusalKind::Invalid,
            Self::AboveYourself { .. } | Self::TooManyGrants { .. } => RefusalKind::Forbidden,
        }
    }

    fn bounds(&self) -> Vec<(&'static str, u64)> {
        match self {
            Self::PolicyOutOfRange { min, max, .. } => vec![("min_ms", min.get()), ("max_ms", max.get())],
            Self::Name { max } => vec![("max_chars", *max as u64)],
            Self::TooManyGrants { max } => vec![("max", *max as u64)],
            Self::Unknown
            | Self::Exists
            | Self::NotAMember
            | Self::TeamUnknown
            | Self::LastOwner
            | Self::AboveYourself { .. }
            | Self::OrgWideOnly { .. }
            | Self::EndsInThePast
            | Self::NotAssigned => vec![],
        }
    }
}

fn check_policy(policy: &OrganizationPolicy) -> Result<(), OrganizationRefusal> {
    let ranges = [
        ("link_lifetime_max", policy.link_lifetime_max, limits::LINK_LIFETIME_MIN, limits::LINK_LIFETIME_MAX),
        ("idle_sleep_max", policy.idle_sleep_max, limits::IDLE_SLEEP_MIN, limits::IDLE_SLEEP_MAX),
        ("keep_awake_max", policy.keep_awake_max, Millis::ZERO, limits::KEEP_AWAKE_MAX),
    ];
    match ranges.into_iter().find(|(_, value, min, max)| value < min || value > max) {
        Some((setting, _, min, max)) => Err(OrganizationRefusal::PolicyOutOfRange { setting, min, max }),
        None => Ok(()),
    }
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
                | OrganizationCommand::AdmitInvited { .. }
                | OrganizationCommand::RecoverOwner { .. },
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
                grants: BTreeMap::new(),
            }),
            (Self::Active(mut org), event) => {
                match event {
                    OrganizationEvent::Created { .. } | OrganizationEvent::OwnerRecovered { .. } => {}
                    OrganizationEvent::MemberAdded { user } => {
                        org.members.insert(*user);
                    }
                    OrganizationEvent::MemberRemoved { user } => {
                        org.members.remove(user);
                        org.grants.retain(|(grantee, _, _), _| *grantee != Grantee::User(*user));
                    }
                    OrganizationEvent::RoleAssigned { grant } => {
                        org.grants.insert((grant.grantee, grant.role, grant.scope), grant.expires_at);
                    }
                    OrganizationEvent::RoleRevoked { grantee, role, scope } => {
                        org.grants.remove(&(*grantee, *role, *scope));
                    }
                    OrganizationEvent::PolicyChanged { policy } => org.policy = *policy,
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
                | OrganizationEvent::OwnerRecovered { .. },
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
            OrganizationCommand::AdmitInvited { .. } => Action::InvitationAccept,
            OrganizationCommand::RecoverOwner { .. } => Action::OwnerRecover,
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
            if let Some(role) = org.beyond(*by, *user, *now) {
                return Err(OrganizationRefusal::AboveYourself { role });
            }
            if org.is_only_owner(*user) {
                return Err(OrganizationRefusal::LastOwner);
            }
            Ok(vec![OrganizationEvent::MemberRemoved { user: *user }])
        }
        OrganizationCommand::AssignRole { by, grant, now } => {
            match grant.grantee {
                Grantee::User(user) if !org.members.contains(&user) => return Err(OrganizationRefusal::NotAMember),
                Grantee::User(_) => {}
                // A role for a team that comes to be later would be held by whoever gets that id.
                Grantee::Team(_) => return Err(OrganizationRefusal::TeamUnknown),
            }
            if grant.role.only_org_wide() && grant.scope != Scope::Organization {
                return Err(OrganizationRefusal::OrgWideOnly { role: grant.role });
            }
            if !grant.is_live(*now) {
                return Err(OrganizationRefusal::EndsInThePast);
            }
            if !org.may_grant(*by, grant.role, *now) {
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
                None if org.grants.len() >= GRANTS_MAX => {
                    return Err(OrganizationRefusal::TooManyGrants { max: GRANTS_MAX });
                }
                Some(_) | None => {}
            }
            Ok(vec![OrganizationEvent::RoleAssigned { grant: *grant }])
        }
        OrganizationCommand::RevokeRole { by, grantee, role, scope, now } => {
            if !org.grants.contains_key(&(*grantee, *role, *scope)) {
                return Err(OrganizationRefusal::NotAssigned);
            }
            if !org.may_grant(*by, *role, *now) {
                return Err(OrganizationRefusal::AboveYourself { role: *role });
            }
            if let (Grantee::User(user), Role::Owner) = (grantee, role)
                && org.is_only_owner(*user)
            {
                return Err(OrganizationRefusal::LastOwner);
            }
            Ok(vec![OrganizationEvent::RoleRevoked { grantee: *grantee, role: *role, scope: *scope }])
        }
        OrganizationCommand::ChangePolicy { policy } => {
            check_policy(policy)?;
            Ok(if org.policy == *policy { vec![] } else { vec![OrganizationEvent::PolicyChanged { policy: *policy }] })
        }
        OrganizationCommand::AdmitInvited { invited_by, user, roles, now } => {
            if let Some(role) = org.beyond_granting(Actor::User(*invited_by), roles, *now) {
                return Err(OrganizationRefusal::AboveYourself { role });
            }
            if org.grants.len() + roles.len() > GRANTS_MAX {
                return Err(OrganizationRefusal::TooManyGrants { max: GRANTS_MAX });
            }
            let grants = roles.iter().map(|invited| Grant {
                grantee: Grantee::User(*user),
                role: invited.role,
                scope: invited.scope,
                expires_at: None,
            });
            Ok(joined(org, *user, grants).collect())
        }
        OrganizationCommand::RecoverOwner { user } => {
            let (grantee, scope) = (Grantee::User(*user), Scope::Organization);
            let owner = Grant { grantee, role: Role::Owner, scope, expires_at: None };
            let mut events = vec![OrganizationEvent::OwnerRecovered { user: *user }];
            events.extend(joined(org, *user, [owner]));
            Ok(events)
        }
    }
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
