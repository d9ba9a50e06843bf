//! The gateway's questions to the write side, answered by the event log.
//!
//! Each is decided on rights as fresh as the log's leader has them, not on the gateway's memory, which is right for
//! refusing and a moment old for granting. Not here: the decisions themselves (domain, commands).

use std::sync::Arc;

use envforge_commands::{CommandError, Commands, Context, back_off, links, runtimes, users};
use envforge_domain::access::{self, Action, Permit, Resource};
use envforge_domain::commit::{Actor, Position, Surface};
use envforge_domain::denial::RefusedRequest;
use envforge_domain::ids::{CorrelationId, SessionId, UserId};
use envforge_domain::runtime::WakeCause;
use envforge_domain::time::UnixMillis;
use envforge_domain::workspace_session::OpenWorkspace;
use envforge_projections::gateway_view::MemberView;
use envforge_projections::{AuthorizeError, Authorizer};
use futures_util::future::BoxFuture;

use crate::decisions::{AskWake, Blocked, Decisions, OpenSession, OpenWorkspaceSession};
use crate::denial::Denial;
use crate::ground::Visitor;

/// Questions to the policy for one command; others' changes of rights can come in between that often.
const PERMITS_MAX: u32 = 16;

pub struct LogDecisions {
    commands: Arc<Commands>,
    authorizer: Authorizer,
}

impl LogDecisions {
    pub fn new(commands: Arc<Commands>, authorizer: Authorizer) -> Self {
        Self { commands, authorizer }
    }

    fn authorizer_in(&self, request: Option<CorrelationId>) -> Authorizer {
        request.map_or_else(|| self.authorizer.clone(), |request| self.authorizer.in_request(request))
    }

    /// The same question to the policy, on fresh facts.
    async fn fresh(&self, permit: &Permit, session: Option<SessionId>, now: UnixMillis) -> Result<Permit, Denial> {
        let asked =
            self.authorizer.permit(permit.actor(), session, permit.action(), permit.resource(), permit.surface(), now);
        asked.await.map_err(|error| match error {
            AuthorizeError::Denied(access::Denial::LinkEnded) => Denial::LinkEnded,
            AuthorizeError::Denied(denial) => {
                tracing::warn!(code = denial.code(), "the policy refused what the gateway's view had allowed");
                match permit.actor() {
                    Actor::User(_) => of_member(denial),
                    Actor::LinkVisitor { .. }
                    | Actor::Agent(_)
                    | Actor::ServiceToken(_)
                    | Actor::System(_)
                    | Actor::Anonymous => Denial::AccessRequired,
                }
            }
            AuthorizeError::Stale(_) | AuthorizeError::Log(_) => Denial::AuthorizationStale,
        })
    }

    async fn wake_by_member(&self, permit: &Permit, ask: &AskWake, user: UserId) -> Result<(), Denial> {
        let mut rounds = 0;
        let done = loop {
            let permit = self.fresh(permit, Some(ask.session), ask.now).await?;
            let (context, cause) = (Context::new(ask.now), WakeCause::Person(user));
            let done = runtimes::wake(&self.commands, &permit, &context, ask.workspace, cause).await;
            if !is_to_be_asked_again(&done, &mut rounds).await {
                break done;
            }
        };
        done.map(|_| ()).map_err(|error| match error.refusal_code() {
            Some("workspace_archived") => Denial::WorkspaceClosed,
            Some(_) => Denial::WakeRefused,
            None => unavailable(&error),
        })
    }

    async fn open_for_member(&self, ask: OpenWorkspaceSession) -> Result<Position, Denial> {
        let OpenWorkspaceSession { handoff, session, cookie, request, now } = ask;
        let authorizer = self.authorizer_in(request);
        let resource = Resource::Workspace { org: handoff.org, project: handoff.project, workspace: handoff.workspace };
        let actor = Actor::User(handoff.user);
        let asked = OpenWorkspace {
            session,
            parent: handoff.parent,
            handoff: handoff.handoff,
            handoff_expires_at: handoff.expires_at,
            project: handoff.project,
            workspace: handoff.workspace,
            service: handoff.host.service().clone(),
            cookie,
            now,
        };
        let context = Context::new(now);
        let mut rounds = 0;
        loop {
            let (action, surface) = (Action::WorkspaceOpen, Surface::Gateway);
            let permit = authorizer.permit(actor, Some(handoff.parent), action, resource, surface, now);
            let permit = permit.await.map_err(|error| match error {
                AuthorizeError::Denied(denial) => of_member(denial),
                AuthorizeError::Stale(_) | AuthorizeError::Log(_) => Denial::AuthorizationStale,
            })?;
            let done = users::open_workspace(&self.commands, &permit, &context, handoff.user, asked.clone()).await;
            if is_to_be_asked_again(&done, &mut rounds).await {
                continue;
            }
            return done.map(|done| done.position).map_err(|error| match error.refusal_code() {
                Some("handoff_used" | "handoff_expired") => Denial::SignInInvalid,
                Some(_) => Denial::SignedOut,
                None => unavailable(&error),
            });
        }
    }
}

/// A command guards the rights that it rests on: where others change rights meanwhile, the policy is asked again.
async fn is_to_be_asked_again<T>(done: &Result<T, CommandError>, rounds: &mut u32) -> bool {
    if !matches!(done, Err(CommandError::RightsMoved { .. })) || *rounds >= PERMITS_MAX {
        return false;
    }
    *rounds += 1;
    back_off(*rounds).await;
    true
}

/// What a member is told whom the policy refused.
fn of_member(denial: access::Denial) -> Denial {
    match denial {
        access::Denial::SessionEnded => Denial::SignedOut,
        _ => Denial::RightEnded,
    }
}

impl Decisions for LogDecisions {
    fn open_session<'a>(&'a self, permit: &'a Permit, ask: OpenSession) -> BoxFuture<'a, Result<Position, Denial>> {
        Box::pin(async move {
            let redeemed = links::RedeemedHandoff {
                link: ask.link,
                handoff: ask.handoff,
                handoff_expires_at: ask.handoff_expires_at,
                generation: ask.generation,
                session: ask.session,
                cookie: ask.cookie,
            };
            let (context, mut rounds) = (Context::new(ask.now), 0);
            let done = loop {
                let permit = self.fresh(permit, None, ask.now).await?;
                let done = links::open_session(&self.commands, &permit, &context, &redeemed).await;
                if !is_to_be_asked_again(&done, &mut rounds).await {
                    break done;
                }
            };
            done.map(|done| done.position).map_err(|error| match error.refusal_code() {
                Some("handoff_used" | "handoff_expired") => Denial::HandoffInvalid,
                Some("link_too_many_sessions") => Denial::TooManySessions,
                Some(_) => Denial::LinkEnded,
                None => unavailable(&error),
            })
        })
    }

    fn open_workspace(&self, ask: OpenWorkspaceSession) -> BoxFuture<'_, Result<Position, Denial>> {
        Box::pin(self.open_for_member(ask))
    }

    fn record_denied(&self, member: &MemberView, request: Option<CorrelationId>, now: UnixMillis) {
        let (actor, resource) = (Actor::User(member.user), member.resource());
        let (action, surface) = (Action::WorkspaceOpen, Surface::Gateway);
        let authorizer = self.authorizer_in(request);
        // The view says that there is no right, and not why. The policy says why, and its no is held with its reason.
        match authorizer.permit_from_memory(actor, Some(member.session), action, resource, surface, now) {
            Err(AuthorizeError::Denied(_)) => {}
            // The right came back at this moment, or the log has just fallen silent.
            Ok(_) | Err(AuthorizeError::Stale(_) | AuthorizeError::Log(_)) => {
                let refused = access::Request { actor, action, resource, surface, now };
                let position = authorizer.hot().position();
                let of = request.map(|request| RefusedRequest { request, at: now, position });
                authorizer.denials().hold(&refused, Denial::RightEnded.code(), of);
            }
        }
    }

    fn wake<'a>(&'a self, permit: &'a Permit, ask: AskWake) -> BoxFuture<'a, Result<(), Denial>> {
        Box::pin(async move {
            let link = match ask.visitor {
                Visitor::Link(link) => link,
                Visitor::Member(user) => return self.wake_by_member(permit, &ask, user).await,
            };
            let (context, mut rounds) = (Context::new(ask.now), 0);
            let done = loop {
                let permit = self.fresh(permit, Some(ask.session), ask.now).await?;
                let (workspace, session) = (ask.workspace, ask.session);
                let done = runtimes::wake_by_link(&self.commands, &permit, &context, workspace, link, session).await;
                if !is_to_be_asked_again(&done, &mut rounds).await {
                    break done;
                }
            };
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
            let permit = self.fresh(permit, None, blocked.until).await?;
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
