//! Stored events of secrets: names, versions and rules. None of them holds a value, its length or its hash.

use std::collections::BTreeSet;

use envforge_domain::ids::{ProjectId, UserId, WorkspaceId};
use envforge_domain::secrets::{Rotation, SecretName, SecretOwner, SecretRules, SecretsEvent};
use envforge_domain::slug::ServiceName;
use envforge_domain::time::UnixMillis;
use serde::de::Error as _;
use serde::{Deserializer, Serializer};
use serde_json::Value;

use super::wire::{Wire, Wired, events, kinds, object, tokens};

events! {
    SecretsEvent {
        "secrets.set.v2" => Set {
            owner: SecretOwner = "owner",
            name: SecretName = "name",
            generation: u32 = "generation",
            version: u64 = "version",
            expires_at: Option<UnixMillis> = "expires_at",
            by: UserId = "by",
            at: UnixMillis = "at",
        },
        "secrets.rules_changed.v1" => RulesChanged {
            name: SecretName = "name",
            rules: SecretRules = "rules",
            by: UserId = "by",
            at: UnixMillis = "at",
        },
        "secrets.removed.v1" => Removed {
            name: SecretName = "name",
            generation: u32 = "generation",
            by: UserId = "by",
            at: UnixMillis = "at",
        },
    }
}

kinds! {
    SecretOwner {
        "project" => Project(project: ProjectId = "project"),
        "workspace" => Workspace { project: ProjectId = "project", workspace: WorkspaceId = "workspace" },
    }
}

object! {
    SecretRules {
        services: BTreeSet<ServiceName> = "services",
        workspaces: BTreeSet<WorkspaceId> = "workspaces",
        rotation: Rotation = "rotation",
    }
}

tokens! {
    Rotation {
        "mark_stale" => MarkStale,
        "restart" => Restart,
    }
}

/// Secrets had no end.
pub(super) fn set_v1_to_v2(mut data: Value) -> Result<Value, String> {
    data["expires_at"] = Value::Null;
    Ok(data)
}

/// In order, none twice.
macro_rules! sets {
    ($($type:ty),*) => {$(
        impl Wire for BTreeSet<$type> {
            fn to_wire<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_seq(self.iter().map(Wired))
            }

            fn from_wire<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let values = Vec::<$type>::from_wire(deserializer)?;
                let count = values.len();
                let set: Self = values.into_iter().collect();
                if set.len() == count { Ok(set) } else { Err(D::Error::custom("one of them stands twice")) }
            }
        }
    )*};
}

sets!(ServiceName, WorkspaceId);
