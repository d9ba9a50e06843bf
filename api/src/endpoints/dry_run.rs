//! What a change of roles or of the policy would end: the answer of the dry runs. Nothing is changed.
//!
//! The domain decides as it would, and the authorization view tells what its events would end, by the functions with which
//! it folds them. Not here: which change (`organizations`, `roles`).

use envforge_commands::{CommandError, Commands};
use envforge_domain::access::Permit;
use envforge_domain::aggregate::Aggregate;
use envforge_domain::commit::StreamId;
use envforge_domain::organization::{Organization, OrganizationCommand};
use envforge_domain::time::UnixMillis;
use envforge_projections::Hot;
use envforge_projections::authorization::{
    LinkConsequence, LinkLoss, RootWindowConsequence, RootWindowLoss, SessionConsequence, SessionOver,
};
use serde::Serialize;
use utoipa::ToSchema;

use super::links::family_tokens;
use crate::access::Access;
use crate::instant::Instant;
use crate::problem::Problem;

/// Links, and sessions, that are told one by one.
const TOLD_MAX: usize = 1_000;

/// What a change would end.
#[derive(Serialize, ToSchema)]
pub(crate) struct DryRun {
    /// Whether there is anything to change at all.
    changes: bool,
    /// Live links that would end, end earlier or open less. At most 1,000 are told.
    links: Vec<AffectedLink>,
    links_total: u64,
    /// Sessions of people that would be over at once. At most 1,000 are told.
    sessions: Vec<AffectedSession>,
    sessions_total: u64,
    /// Root windows, and requests for them, that would end or end earlier. At most 1,000 are told.
    root_windows: Vec<AffectedRootWindow>,
    root_windows_total: u64,
}

#[derive(Serialize, ToSchema)]
struct AffectedLink {
    id: String,
    label: Option<String>,
    service: Option<String>,
    project: String,
    workspace: String,
    workspace_slug: Option<String>,
    issued_by: String,
    issued_by_name: Option<String>,
    /// Whether it would be over at once.
    ends_now: bool,
    ends_at: Instant,
    /// Route families that it would open no more.
    families_lost: Vec<String>,
    /// `issuer_may_not`, `issuer_for_shorter`, `too_long`, `families`.
    reasons: Vec<&'static str>,
}

#[derive(Serialize, ToSchema)]
struct AffectedSession {
    session: String,
    user: String,
    email: Option<String>,
    name: Option<String>,
    /// `too_old` or `identity_provider`.
    reason: &'static str,
}

#[derive(Serialize, ToSchema)]
struct AffectedRootWindow {
    id: String,
    workspace: String,
    requester: String,
    requester_name: Option<String>,
    /// `requested`, `approved` or `open`.
    phase: &'static str,
    ends_now: bool,
    ends_at: Instant,
    /// `requester_may_not` or `policy`.
    reason: &'static str,
}

/// Decides and changes nothing. A refusal is the answer that the change itself would get.
pub(crate) async fn of(
    access: &Access,
    commands: &Commands,
    permit: &Permit,
    command: &OrganizationCommand,
    now: UnixMillis,
) -> Result<DryRun, Problem> {
    // The permit is for what the command would do.
    if permit.action() != Organization::action_of(command) {
        return Err(Problem::internal("a dry run with the permit for something else"));
    }
    let state = commands.load::<Organization>(&StreamId::organization(permit.org())).await?.state;
    let events = Organization::decide(&state, command).map_err(|refusal| CommandError::Refused(Box::new(refusal)))?;
    let hot = access.hot();
    let found = hot.authorization.consequences(permit.org(), &events, now);
    Ok(DryRun {
        changes: !events.is_empty(),
        links_total: found.links.len() as u64,
        sessions_total: found.sessions.len() as u64,
        links: found.links.iter().take(TOLD_MAX).map(|link| affected_link(hot, link, now)).collect(),
        sessions: found.sessions.iter().take(TOLD_MAX).map(|session| affected_session(hot, session)).collect(),
        root_windows_total: found.root_windows.len() as u64,
        root_windows: found.root_windows.iter().take(TOLD_MAX).map(|found| affected_window(hot, found, now)).collect(),
    })
}

fn affected_link(hot: &Hot, found: &LinkConsequence, now: UnixMillis) -> AffectedLink {
    let view = hot.gateway.link(found.link);
    AffectedLink {
        id: found.link.to_string(),
        label: view.as_ref().map(|view| view.label.clone()),
        service: view.as_ref().map(|view| view.service.to_string()),
        project: found.project.to_string(),
        workspace: found.workspace.to_string(),
        workspace_slug: view.map(|view| view.workspace_name.clone()),
        issued_by: found.issued_by.to_string(),
        issued_by_name: hot.authorization.user(found.issued_by).map(|user| user.name),
        ends_now: found.ends_at <= now,
        ends_at: found.ends_at.into(),
        families_lost: family_tokens(found.families_lost),
        reasons: found
            .reasons
            .iter()
            .map(|reason| match reason {
                LinkLoss::IssuerMayNot => "issuer_may_not",
                LinkLoss::IssuerUntil => "issuer_for_shorter",
                LinkLoss::TooLong => "too_long",
                LinkLoss::Families => "families",
            })
            .collect(),
    }
}

fn affected_window(hot: &Hot, found: &RootWindowConsequence, now: UnixMillis) -> AffectedRootWindow {
    AffectedRootWindow {
        id: found.window.to_string(),
        workspace: found.workspace.to_string(),
        requester: found.requester.to_string(),
        requester_name: hot.authorization.user(found.requester).map(|user| user.name),
        phase: found.phase.token(),
        ends_now: found.ends_at <= now,
        ends_at: found.ends_at.into(),
        reason: match found.reason {
            RootWindowLoss::Requester => "requester_may_not",
            RootWindowLoss::Policy => "policy",
        },
    }
}

fn affected_session(hot: &Hot, found: &SessionConsequence) -> AffectedSession {
    let user = hot.authorization.user(found.user);
    AffectedSession {
        session: found.session.to_string(),
        user: found.user.to_string(),
        email: user.as_ref().map(|user| user.email.clone()),
        name: user.map(|user| user.name),
        reason: match found.reason {
            SessionOver::TooOld => "too_old",
            SessionOver::Provider => "identity_provider",
        },
    }
}
