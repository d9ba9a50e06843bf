//! Stored events of organizations.

use std::collections::BTreeSet;

use envforge_domain::access::{Grant, Grantee, Role, Roles, Scope};
use envforge_domain::dev_link::RouteFamilies;
use envforge_domain::ids::{OrgId, TeamId, UserId};
use envforge_domain::organization::{OrganizationEvent, OrganizationPolicy};
use envforge_domain::revocation::Receipt;
use envforge_domain::root_window::RootPolicy;
use envforge_domain::slug::{OrgSlug, TeamSlug};
use envforge_domain::time::{Millis, UnixMillis};
use serde::de::Error as _;
use serde::{Deserializer, Serializer};
use serde_json::{Value, json};

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
        "organization.owner_recovered.v1" => OwnerRecovered { user: UserId = "user" },
        "organization.policy_changed.v4" => PolicyChanged { policy: OrganizationPolicy = "policy" },
        "organization.revocation_recorded.v3" => RevocationRecorded { receipt: Receipt = "receipt" },
        "team.created.v1" => TeamCreated { team: TeamId = "team", slug: TeamSlug = "slug" },
        "team.renamed.v1" => TeamRenamed { team: TeamId = "team", slug: TeamSlug = "slug" },
        "team.deleted.v1" => TeamDeleted { team: TeamId = "team" },
        "team.member_added.v1" => TeamMemberAdded { team: TeamId = "team", user: UserId = "user" },
        "team.member_removed.v1" => TeamMemberRemoved { team: TeamId = "team", user: UserId = "user" },
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
        link_issuers: Roles = "link_issuers",
        idle_sleep_max: Millis = "idle_sleep_ms_max",
        keep_awake_max: Millis = "keep_awake_ms_max",
        session_lifetime_max: Millis = "session_lifetime_ms_max",
        identity_providers: BTreeSet<String> = "identity_providers",
        service_token_lifetime_max: Millis = "service_token_lifetime_ms_max",
        root: RootPolicy = "root",
        root_window_max: Millis = "root_window_ms_max",
    }
}

/// What the settings that came with the second version were when there was none: no limit.
pub(super) fn policy_changed_v1_to_v2(mut data: Value) -> Result<Value, String> {
    let policy = data["policy"].as_object_mut().ok_or("`policy` must be an object")?;
    for (setting, value) in [
        ("link_issuers", json!(["owner", "admin", "developer", "mod"])),
        ("session_lifetime_ms_max", json!(2_592_000_000_u64)),
        ("identity_providers", json!([])),
    ] {
        if policy.insert(setting.to_owned(), value).is_some() {
            return Err(format!("`{setting}` came with the second version"));
        }
    }
    Ok(data)
}

/// Organizations that had not changed it since there are service tokens allow them for 90 days.
pub(super) fn policy_changed_v2_to_v3(mut data: Value) -> Result<Value, String> {
    let policy = data["policy"].as_object_mut().ok_or("`policy` must be an object")?;
    let (setting, value) = ("service_token_lifetime_ms_max", json!(7_776_000_000_u64));
    if policy.insert(setting.to_owned(), value).is_some() {
        return Err(format!("`{setting}` came with the third version"));
    }
    Ok(data)
}

/// Nobody got root before there were root windows.
pub(super) fn policy_changed_v3_to_v4(mut data: Value) -> Result<Value, String> {
    let policy = data["policy"].as_object_mut().ok_or("`policy` must be an object")?;
    for (setting, value) in [("root", json!("disabled")), ("root_window_ms_max", json!(1_800_000_u64))] {
        if policy.insert(setting.to_owned(), value).is_some() {
            return Err(format!("`{setting}` came with the fourth version"));
        }
    }
    Ok(data)
}

/// A list of roles in a fixed order, none twice.
impl Wire for Roles {
    fn to_wire<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.iter().collect::<Vec<_>>().to_wire(serializer)
    }

    fn from_wire<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let roles = Vec::<Role>::from_wire(deserializer)?;
        let set: Self = roles.iter().copied().collect();
        if set.iter().count() == roles.len() { Ok(set) } else { Err(D::Error::custom("a role stands twice")) }
    }
}

/// A sorted list, none twice.
impl Wire for BTreeSet<String> {
    fn to_wire<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self)
    }

    fn from_wire<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let texts = Vec::<String>::from_wire(deserializer)?;
        let count = texts.len();
        let set: Self = texts.into_iter().collect();
        if set.len() == count { Ok(set) } else { Err(D::Error::custom("a text stands twice")) }
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

/// `organization`, `project:prj_…` or `workspace:prj_…/wsp_…`.
impl Wire for Scope {
    fn to_wire<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Organization => serializer.serialize_str("organization"),
            Self::Project(project) => serializer.collect_str(&format_args!("project:{project}")),
            Self::Workspace { project, workspace } => {
                serializer.collect_str(&format_args!("workspace:{project}/{workspace}"))
            }
        }
    }

    fn from_wire<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, |text| match text.split_once(':') {
            None if text == "organization" => Ok(Self::Organization),
            Some(("project", project)) => project.parse().map(Self::Project).map_err(|error| error.to_string()),
            Some(("workspace", workspace)) => {
                let (project, workspace) = workspace
                    .split_once('/')
                    .ok_or_else(|| format!("`{text}` names no project before its workspace"))?;
                Ok(Self::Workspace {
                    project: project.parse().map_err(|error| format!("{error}"))?,
                    workspace: workspace.parse().map_err(|error| format!("{error}"))?,
                })
            }
            _ => Err(format!("`{text}` is neither `organization` nor `project:prj_…` nor `workspace:prj_…/wsp_…`")),
        })
    }
}
