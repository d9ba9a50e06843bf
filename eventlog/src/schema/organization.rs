//! Stored events of organizations.

use envforge_domain::access::{Grant, Grantee, Role, Scope};
use envforge_domain::dev_link::RouteFamilies;
use envforge_domain::ids::{OrgId, UserId};
use envforge_domain::organization::{OrganizationEvent, OrganizationPolicy};
use envforge_domain::slug::OrgSlug;
use envforge_domain::time::{Millis, UnixMillis};
use serde::{Deserializer, Serializer};

use super::wire::{Wire, events, object, text};

events! {
    OrganizationEvent {
        "organization.created.v1" => Created { org: OrgId = "org", slug: OrgSlug = "slug", name: String = "name" },
        "organization.member_added.v1" => MemberAdded { user: UserId = "user" },
        "organization.member_removed.v1" => MemberRemoved { user: UserId = "user" },
        "organization.role_assigned.v1" => RoleAssigned { grant: Grant = "grant" },
        "organization.role_revoked.v1" => RoleRevoked {
            grantee: Grantee = "grantee",
            role: Role = "role",
            scope: Scope = "scope",
        },
        "organization.policy_changed.v1" => PolicyChanged { policy: OrganizationPolicy = "policy" },
        "organization.owner_recovered.v1" => OwnerRecovered { user: UserId = "user" },
    }
}

object! {
    Grant {
        grantee: Grantee = "grantee",
        role: Role = "role",
        scope: Scope = "scope",
        expires_at: Option<UnixMillis> = "expires_at",
    }
}

object! {
    OrganizationPolicy {
        link_lifetime_max: Millis = "link_lifetime_ms_max",
        link_families: RouteFamilies = "link_families",
        idle_sleep_max: Millis = "idle_sleep_ms_max",
        keep_awake_max: Millis = "keep_awake_ms_max",
    }
}

/// `user:usr_…` or `team:tea_…`.
impl Wire for Grantee {
    fn to_wire<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::User(user) => serializer.collect_str(&format_args!("user:{user}")),
            Self::Team(team) => serializer.collect_str(&format_args!("team:{team}")),
        }
    }

    fn from_wire<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, |text| match text.split_once(':') {
            Some(("user", user)) => user.parse().map(Self::User).map_err(|error| error.to_string()),
            Some(("team", team)) => team.parse().map(Self::Team).map_err(|error| error.to_string()),
            _ => Err(format!("`{text}` is neither `user:usr_…` nor `team:tea_…`")),
        })
    }
}

/// `organization` or `project:prj_…`.
impl Wire for Scope {
    fn to_wire<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Organization => serializer.serialize_str("organization"),
            Self::Project(project) => serializer.collect_str(&format_args!("project:{project}")),
        }
    }

    fn from_wire<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, |text| match text.split_once(':') {
            None if text == "organization" => Ok(Self::Organization),
            Some(("project", project)) => project.parse().map(Self::Project).map_err(|error| error.to_string()),
            _ => Err(format!("`{text}` is neither `organization` nor `project:prj_…`")),
        })
    }
}
