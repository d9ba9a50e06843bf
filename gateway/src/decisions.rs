//! What the gateway asks the write side to decide: sessions, wakes, counters. Everything else it reads.

use envforge_domain::access::Permit;
use envforge_domain::commit::Position;
use envforge_domain::dev_link::{BlockedAttempts, Generation};
use envforge_domain::ids::{CorrelationId, HandoffId, LinkId, SessionId, WorkspaceId};
use envforge_domain::secret::TokenDigest;
use envforge_domain::time::UnixMillis;
use envforge_identity::workspace_handoff::WorkspaceHandoff;
use envforge_projections::gateway_view::MemberView;
use futures_util::future::BoxFuture;

use crate::denial::Denial;
use crate::ground::Visitor;

/// A handoff that proved itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenSession {
    pub link: LinkId,
    pub handoff: HandoffId,
    pub handoff_expires_at: UnixMillis,
    pub generation: Generation,
    pub session: SessionId,
    /// Digest of the new cookie; the cookie itself never leaves the gateway.
    pub cookie: TokenDigest,
    pub now: UnixMillis,
}

/// A wake that an admitted request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AskWake {
    pub workspace: WorkspaceId,
    pub visitor: Visitor,
    pub session: SessionId,
    pub now: UnixMillis,
}

/// A member's handoff that proved itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenWorkspaceSession {
    pub handoff: WorkspaceHandoff,
    pub session: SessionId,
    /// Digest of the new cookie.
    pub cookie: TokenDigest,
    pub request: Option<CorrelationId>,
    pub now: UnixMillis,
}

/// Refused requests of one link between two instants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocked {
    pub link: LinkId,
    pub attempts: Vec<BlockedAttempts>,
    pub since: UnixMillis,
    pub until: UnixMillis,
}

/// The write side as the gateway needs it. Each method takes the policy's permit for just that action.
pub trait Decisions: Send + Sync + 'static {
    /// Opens a session, once a handoff over all gateways. Answers the position that shows it.
    fn open_session<'a>(&'a self, permit: &'a Permit, ask: OpenSession) -> BoxFuture<'a, Result<Position, Denial>>;

    /// Opens a member's session on a workspace's host, once a handoff over all gateways. There is no permit yet: whether the
    /// member may is asked on rights as fresh as the log's leader has them.
    fn open_workspace(&self, ask: OpenWorkspaceSession) -> BoxFuture<'_, Result<Position, Denial>>;

    /// Counts, for the audit, what a member was refused by the policy, for the policy's own reason.
    fn record_denied(&self, member: &MemberView, request: Option<CorrelationId>, now: UnixMillis);

    /// Asks for a wake; one that is under way already is fine.
    fn wake<'a>(&'a self, permit: &'a Permit, ask: AskWake) -> BoxFuture<'a, Result<(), Denial>>;

    fn record_blocked<'a>(&'a self, permit: &'a Permit, blocked: Blocked) -> BoxFuture<'a, Result<(), Denial>>;
}
