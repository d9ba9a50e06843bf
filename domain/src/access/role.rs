//! The eight roles and where they reach.

use std::fmt;
use std::str::FromStr;

use crate::access::{Reach, Resource};
use crate::ids::{ProjectId, TeamId, UserId, WorkspaceId};
use crate::time::UnixMillis;

/// Source: SPEC, "Identity", roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    Owner,
    Admin,
    Developer,
    Viewer,
    Billing,
    Explore,
    Create,
    Mod,
}

impl Role {
    pub const ALL: [Self; 8] = [
        Self::Owner,
        Self::Admin,
        Self::Developer,
        Self::Viewer,
        Self::Billing,
        Self::Explore,
        Self::Create,
        Self::Mod,
    ];

    pub const fn token(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Admin => "admin",
            Self::Developer => "developer",
            Self::Viewer => "viewer",
            Self::Billing => "billing",
            Self::Explore => "explore",
            Self::Create => "create",
            Self::Mod => "mod",
        }
    }

    /// The roles that a holder of this one may give and take. Nobody grants above themselves.
    pub const fn may_grant(self) -> &'static [Self] {
        match self {
            Self::Owner => &Self::ALL,
            Self::Admin => &[Self::Admin, Self::Developer, Self::Viewer, Self::Explore, Self::Create, Self::Mod],
            Self::Mod => &[Self::Explore, Self::Create, Self::Mod],
            Self::Developer | Self::Viewer | Self::Billing | Self::Explore | Self::Create => &[],
        }
    }

    /// Owner and billing authority concern the organization as a whole.
    pub const fn only_org_wide(self) -> bool {
        matches!(self, Self::Owner | Self::Billing)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.token())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a role: owner, admin, developer, viewer, billing, explore, create or mod")]
pub struct InvalidRole(pub String);

impl FromStr for Role {
    type Err = InvalidRole;

    fn from_str(text: &str) -> Result<Self, InvalidRole> {
        Self::ALL
            .into_iter()
            .find(|role| role.token() == text)
            .ok_or_else(|| InvalidRole(text.chars().take(40).collect()))
    }
}

/// A set of roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Roles(u8);

impl Roles {
    pub const NONE: Self = Self(0);

    pub const fn with(self, role: Role) -> Self {
        Self(self.0 | 1 << role as u8)
    }

    pub const fn of(roles: &[Role]) -> Self {
        let mut set = Self::NONE;
        let mut index = 0;
        while index < roles.len() {
            set = set.with(roles[index]);
            index += 1;
        }
        set
    }

    pub const fn contains(self, role: Role) -> bool {
        self.0 & (1 << role as u8) != 0
    }

    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub const fn minus(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub fn iter(self) -> impl Iterator<Item = Role> {
        Role::ALL.into_iter().filter(move |role| self.contains(*role))
    }

    /// Tokens joined by commas, in a fixed order.
    pub fn display(self) -> String {
        self.iter().map(Role::token).collect::<Vec<_>>().join(", ")
    }
}

impl FromIterator<Role> for Roles {
    fn from_iter<T: IntoIterator<Item = Role>>(roles: T) -> Self {
        roles.into_iter().fold(Self::NONE, Self::with)
    }
}

/// Who holds a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Grantee {
    User(UserId),
    Team(TeamId),
}

/// Where a grant reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    Organization,
    Project(ProjectId),
    /// One workspace of a project, with its runtime and its links; nothing else of the project.
    Workspace {
        project: ProjectId,
        workspace: WorkspaceId,
    },
}

impl Scope {
    /// Whether a grant that reaches here counts for an action of that reach on a resource.
    pub fn covers(self, reach: Reach, resource: &Resource) -> bool {
        match (self, reach) {
            (Self::Organization, Reach::Organization | Reach::Project | Reach::Workspace) => true,
            (Self::Project(project), Reach::Project | Reach::Workspace) => resource.project() == Some(project),
            (Self::Workspace { project, workspace }, Reach::Workspace) => {
                resource.project() == Some(project) && resource.workspace() == Some(workspace)
            }
            (Self::Project(_), Reach::Organization)
            | (Self::Workspace { .. }, Reach::Organization | Reach::Project) => false,
        }
    }
}

/// One role given to somebody, somewhere, perhaps until some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Grant {
    pub grantee: Grantee,
    pub role: Role,
    pub scope: Scope,
    pub expires_at: Option<UnixMillis>,
}

impl Grant {
    pub fn is_live(&self, now: UnixMillis) -> bool {
        self.expires_at.is_none_or(|end| now < end)
    }
}
