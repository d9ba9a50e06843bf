//! The eight roles and where they reach.

use std::fmt;
use std::str::FromStr;

use crate::ids::{ProjectId, TeamId, UserId};
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
