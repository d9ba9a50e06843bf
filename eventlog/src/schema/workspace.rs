//! Stored events of workspaces.

use envforge_domain::ids::{ProjectId, WorkspaceId};
use envforge_domain::manifest::Manifest;
use envforge_domain::revocation::Receipt;
use envforge_domain::slug::WorkspaceSlug;
use envforge_domain::workspace::{AccessMode, Branch, WorkspaceEvent};
use serde::{Deserializer, Serializer};

use super::wire::{Wire, events, text, tokens};

events! {
    WorkspaceEvent {
        "workspace.created.v2" => Created {
            workspace: WorkspaceId = "workspace",
            project: ProjectId = "project",
            slug: WorkspaceSlug = "slug",
            branch: Branch = "branch",
            manifest: Manifest = "manifest",
            access_mode: AccessMode = "access_mode",
        },
        "workspace.manifest_changed.v2" => ManifestChanged { manifest: Manifest = "manifest" },
        "workspace.access_mode_changed.v1" => AccessModeChanged { access_mode: AccessMode = "access_mode" },
        "workspace.archived.v1" => Archived,
        "workspace.revocation_recorded.v3" => RevocationRecorded { receipt: Receipt = "receipt" },
    }
}

tokens! {
    AccessMode {
        "signed_links" => SignedLinks,
        "tailscale_only" => TailscaleOnly,
    }
}

impl Wire for Branch {
    fn to_wire<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }

    fn from_wire<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, Self::parse)
    }
}
