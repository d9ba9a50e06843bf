//! Stored events of dev links. What was granted and digests of cookies, never a token or a cookie.

use envforge_domain::denial::RefusedRequest;
use envforge_domain::dev_link::{BlockedAttempts, DevLinkEvent, Generation, RouteFamilies};
use envforge_domain::ids::{HandoffId, LinkId, ProjectId, SessionId, UserId, WorkspaceId};
use envforge_domain::revocation::Receipt;
use envforge_domain::runtime::Epoch;
use envforge_domain::secret::TokenDigest;
use envforge_domain::slug::ServiceName;
use envforge_domain::time::UnixMillis;

use super::wire::{events, object};

events! {
    DevLinkEvent {
        "dev_link.issued.v1" => Issued {
            link: LinkId = "link",
            project: ProjectId = "project",
            workspace: WorkspaceId = "workspace",
            service: ServiceName = "service",
            families: RouteFamilies = "families",
            issued_at: UnixMillis = "issued_at",
            expires_at: UnixMillis = "expires_at",
            label: String = "label",
            wake_budget: Option<u32> = "wake_budget",
            issued_by: UserId = "issued_by",
        },
        "dev_link.first_used.v1" => FirstUsed { at: UnixMillis = "at" },
        "dev_link.session_opened.v1" => SessionOpened {
            session: SessionId = "session",
            handoff: HandoffId = "handoff",
            cookie: TokenDigest = "cookie_sha256",
            generation: Generation = "generation",
            expires_at: UnixMillis = "expires_at",
        },
        "dev_link.allowlist_changed.v1" => AllowlistChanged { families: RouteFamilies = "families" },
        "dev_link.rotated.v1" => Rotated {
            generation: Generation = "generation",
            issued_at: UnixMillis = "issued_at",
            expires_at: UnixMillis = "expires_at",
        },
        "dev_link.wake_spent.v1" => WakeSpent { epoch: Epoch = "epoch", session: SessionId = "session" },
        "dev_link.attempts_blocked.v2" => AttemptsBlocked {
            attempts: Vec<BlockedAttempts> = "attempts",
            since: UnixMillis = "since",
            until: UnixMillis = "until",
        },
        "dev_link.expired.v1" => Expired,
        "dev_link.revoked.v1" => Revoked { reason: Option<String> = "reason" },
        "dev_link.revocation_recorded.v4" => RevocationRecorded { receipt: Receipt = "receipt" },
    }
}

object! {
    BlockedAttempts {
        code: String = "code",
        count: u32 = "count",
        requests: Vec<RefusedRequest> = "requests",
    }
}
