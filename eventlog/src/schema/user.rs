//! Stored events of users and their sessions.

use envforge_domain::access::{Role, Scope};
use envforge_domain::commit::Surface;
use envforge_domain::ids::{HandoffId, ProjectId, SessionId, UserId, WorkspaceId};
use envforge_domain::invitation::{Invitation, InvitedRole};
use envforge_domain::revocation::Receipt;
use envforge_domain::secret::TokenDigest;
use envforge_domain::slug::ServiceName;
use envforge_domain::time::UnixMillis;
use envforge_domain::user::{ClientName, EmailAddress, SessionEnd, UserEvent};
use serde::{Deserializer, Serializer};
use serde_json::Value;

use super::wire::{Wire, events, object, text, tokens};

events! {
    UserEvent {
        "user.created.v1" => Created {
            user: UserId = "user",
            issuer: String = "issuer",
            subject: String = "subject",
            email: EmailAddress = "email",
            name: String = "name",
        },
        "user.deactivated.v1" => Deactivated,
        "user.session_opened.v2" => SessionOpened {
            session: SessionId = "session",
            surface: Surface = "surface",
            provider: String = "provider",
            client: ClientName = "client",
            opened_at: UnixMillis = "opened_at",
            authenticated_at: UnixMillis = "authenticated_at",
            expires_at: UnixMillis = "expires_at",
        },
        "user.session_ended.v1" => SessionEnded { session: SessionId = "session", reason: SessionEnd = "reason" },
        "user.password_changed.v1" => PasswordChanged,
        "user.invited.v1" => Invited { invitation: Invitation = "invitation" },
        "user.invitation_revoked.v1" => InvitationRevoked,
        "user.invitation_accepted.v1" => InvitationAccepted,
        "user.profile_changed.v1" => ProfileChanged { name: String = "name" },
        "user.reactivated.v1" => Reactivated,
        "user.reauthenticated.v1" => Reauthenticated {
            session: SessionId = "session",
            authenticated_at: UnixMillis = "authenticated_at",
        },
        "user.workspace_opened.v1" => WorkspaceOpened {
            session: SessionId = "session",
            parent: SessionId = "parent",
            handoff: HandoffId = "handoff",
            project: ProjectId = "project",
            workspace: WorkspaceId = "workspace",
            service: ServiceName = "service",
            cookie: TokenDigest = "cookie_sha256",
            opened_at: UnixMillis = "opened_at",
            expires_at: UnixMillis = "expires_at",
        },
        "user.revocation_recorded.v4" => RevocationRecorded { cause: SessionEnd = "cause", receipt: Receipt = "receipt" },
    }
}

object! {
    Invitation {
        user: UserId = "user",
        email: EmailAddress = "email",
        roles: Vec<InvitedRole> = "roles",
        invited_by: UserId = "invited_by",
        expires_at: UnixMillis = "expires_at",
    }
}

object! {
    InvitedRole { role: Role = "role", scope: Scope = "scope" }
}

tokens! {
    SessionEnd {
        "logged_out" => LoggedOut,
        "revoked" => Revoked,
        "password_changed" => PasswordChanged,
        "refresh_reused" => RefreshReused,
        "deactivated" => Deactivated,
        "expired" => Expired,
        "displaced" => Displaced,
    }
}

impl Wire for EmailAddress {
    fn to_wire<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }

    fn from_wire<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, Self::parse)
    }
}

impl Wire for ClientName {
    fn to_wire<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }

    fn from_wire<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, Self::parse)
    }
}

/// The first version named neither provider nor client nor when it was opened. All of its sessions were EnvForge's own,
/// and none lasted longer than 30 days: counted back from its end, a session is never taken for younger than it is.
pub(super) fn session_opened_v1_to_v2(mut data: Value) -> Result<Value, String> {
    const LONGEST_MS: u64 = 30 * 24 * 60 * 60 * 1_000;
    let expires_at = data["expires_at"].as_u64().ok_or("`expires_at` must be a number")?;
    let opened_at = expires_at.saturating_sub(LONGEST_MS);
    data["client"] = data["surface"].clone();
    data["provider"] = "local".into();
    data["opened_at"] = opened_at.into();
    data["authenticated_at"] = opened_at.into();
    Ok(data)
}
