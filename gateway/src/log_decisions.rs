//! The gateway's questions to the write side, answered by the event log.
//!
//! Each is decided on rights as fresh as the log's leader has them, not on the gateway's memory, which is right for
//! refusing and a moment old for granting. Not here: the decisions themselves (domain, commands).

use std::sync::Arc;

use envforge_commands::{CommandError, Commands, Context, links, runtimes};
use envforge_domain::access::{self, Permit};
use envforge_domain::commit::{Actor, Position};
use envforge_domain::time::UnixMillis;
use envforge_projections::{AuthorizeError, Authorizer};
use futures_util::future::BoxFuture;

use crate::decisions::{AskWake, Blocked, Decisions, OpenSession};
use crate::denial::Denial;

pub struct LogDecisions {
    commands: Arc<Commands>,
    authorizer: Authorizer,
}

impl LogDecisions {
    pub fn new(commands: Arc<Commands>, authorizer: Authorizer) -> Self {
        Self { commands, authorizer }
    }

    /// The same question to the policy, on fresh facts.
    async fn fresh(&self, permit: &Permit, now: UnixMillis) -> Result<Permit, Denial> {
        let session = match permit.actor() {
            Actor::LinkVisitor { session, .. } => session,
            Actor::User(_) | Actor::Agent(_) | Actor::ServiceToken(_) | Actor::System(_) | Actor::Anonymous => None,
        };
        let asked =
            self.authorizer.permit(permit.actor(), session, permit.action(), permit.resource(), permit.surface(), now);
        asked.await.map_err(|error| match error {
            AuthorizeError::Denied(access::Denial::LinkEnded) => Denial::LinkEnded,
            AuthorizeError::Denied(denial) => {
                tracing::warn!(code = denial.code(), "the policy refused what the gateway's view had allowed");
                Denial::AccessRequired
            }
            AuthorizeError::Stale(_) | AuthorizeError::Log(_) => Denial::AuthorizationStale,
        })
    }
}

impl Decisions for LogDecisions {
    fn open_session<'a>(&'a self, permit: &'a Permit, ask: OpenSession) -> BoxFuture<'a, Result<Position, Denial>> {
        Box::pin(async move {
            let permit = self.fresh(permit, ask.now).await?;
            let redeemed = links::RedeemedHandoff {
                link: ask.link,
                handoff: ask.handoff,
                handoff_expires_at: ask.handoff_expires_at,
                generation: ask.generation,
                session: ask.session,
                cookie: ask.cookie,
            };
            let done = links::open_session(&self.commands, &permit, &Context::new(ask.now), &redeemed).await;
            done.map(|done| done.position).map_err(|error| match error.refusal_code() {
                Some("handoff_used" | "handoff_expired") => Denial::HandoffInvalid,
                Some("link_too_many_sessions") => Denial::TooManySessions,
                Some(_) => Denial::LinkEnded,
                None => unavailable(&error),
            })
        })
    }

    fn wake<'a>(&'a self, permit: &'a Permit, ask: AskWake) -> BoxFuture<'a, Result<(), Denial>> {
        Box::pin(async move {
            let permit = self.fresh(permit, ask.now).await?;
            let context = Context::new(ask.now);
            let done =
                runtimes::wake_by_link(&self.commands, &permit, &context, ask.workspace, ask.link, ask.session).await;
            done.map(|_| ()).map_err(|error| match error.refusal_code() {
                Some("wake_budget_spent") => Denial::WakeBudgetSpent,
                Some("link_revoked") => Denial::LinkRevoked,
                Some("link_expired") => Denial::LinkExpired,
                Some("link_rotated" | "link_session_unknown") => Denial::LinkRotated,
                Some("workspace_archived") => Denial::WorkspaceClosed,
                Some(_) => Denial::WakeRefused,
                None => unavailable(&error),
            })
        })
    }

    fn record_blocked<'a>(&'a self, permit: &'a Permit, blocked: Blocked) -> BoxFuture<'a, Result<(), Denial>> {
        Box::pin(async move {
            let permit = self.fresh(permit, blocked.until).await?;
            let context = Context::new(blocked.until);
            let Blocked { link, attempts, since, until } = blocked;
            let done = links::record_blocked(&self.commands, &permit, &context, link, attempts, since, until).await;
            done.map(|_| ()).map_err(|error| unavailable(&error))
        })
    }
}

fn unavailable(error: &CommandError) -> Denial {
    tracing::warn!(%error, "the write side did not carry out what the gateway asked for");
    Denial::TryAgain
}
