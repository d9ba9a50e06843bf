//! Root windows: every verb, with what the organization's policy allows, what the runtime is at, and from whom whoever decides has
//! what they decide by looked up.

use envforge_domain::access::{Action, Permit, Resource};
use envforge_domain::aggregate::Refusal as _;
use envforge_domain::claim::{Claim, ClaimCommand, ClaimKey, ClaimRefusal};
use envforge_domain::commit::{Actor, StreamId};
use envforge_domain::ids::{OrgId, RootWindowId, UserId, WorkspaceId};
use envforge_domain::provenance::Independence;
use envforge_domain::root_window::{
    RootAccess, RootEnded, RootLimits, RootMode, RootWindow, RootWindowCommand, RootWindowRefusal,
};
use envforge_domain::runtime::Runtime;
use envforge_domain::time::{Millis, UnixMillis};

use crate::independence::{self, Asked};
use crate::links::active_workspace;
use crate::runtimes::policy;
use crate::{CommandError, Commands, Context, Done};

/// What is asked for.
#[derive(Clone, Debug)]
pub struct NewRootWindow {
    pub workspace: WorkspaceId,
    pub mode: RootMode,
    pub access: RootAccess,
    pub reason: String,
    /// As long as the policy allows where it is left out.
    pub length: Option<Millis>,
    /// Requests of theirs for this workspace that wait for an answer already.
    pub pending: usize,
}

/// Asks for a window; its id follows from the request. A break-glass window opens at once, and holds the organization's
/// claim on break-glass until somebody else has reviewed it.
pub async fn request(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    new: NewRootWindow,
) -> Result<(RootWindowId, Done), CommandError> {
    let window = RootWindowId::from_uuid(context.new_id());
    let stream = StreamId::root_window(permit.org(), window);
    if let Some(done) = commands.answered::<RootWindow>(permit, context, &stream, new.mode.ground()).await? {
        return Ok((window, done));
    }
    let limits = limits(commands, permit).await?;
    let NewRootWindow { workspace, mode, access, reason, length, pending } = new;
    let project = active_workspace(commands, permit, workspace).await?.project;
    let length = length.unwrap_or(limits.length_max);
    let (by, now) = (permit.actor(), context.now);
    let command = RootWindowCommand::Request {
        by,
        window,
        project,
        workspace,
        mode,
        access,
        reason,
        length,
        pending,
        limits,
        now,
    };
    if mode == RootMode::Elevation {
        return Ok((window, commands.execute::<RootWindow>(permit, context, &stream, &command).await?));
    }
    let take = ClaimCommand::Take { holder: window.to_string(), for_action: Action::RootBreakGlass };
    let opened = commands
        .transaction(context)
        .step::<RootWindow>(permit, stream, command)
        .step::<Claim>(permit, claim(permit.org()), take)
        .commit()
        .await;
    match opened {
        Ok(done) => Ok((window, done)),
        Err(CommandError::Refused(refusal)) => Err(review_pending(commands, permit, refusal).await?),
        Err(error) => Err(error),
    }
}

/// The claim says "taken"; here that is the window that waits for its review.
async fn review_pending(
    commands: &Commands,
    permit: &Permit,
    refusal: Box<dyn envforge_domain::aggregate::Refusal>,
) -> Result<CommandError, CommandError> {
    if refusal.code() != (ClaimRefusal::Taken { holder: String::new() }).code() {
        return Ok(CommandError::Refused(refusal));
    }
    let held = commands.load::<Claim>(&claim(permit.org())).await?.state;
    let window = if let Claim::Held { holder } = held { holder } else { String::new() };
    Ok(CommandError::refused(RootWindowRefusal::ReviewPending { window }))
}

fn claim(org: OrgId) -> StreamId {
    ClaimKey::BreakGlass(org).stream().expect("the key is a literal")
}

pub async fn approve(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    window: RootWindowId,
) -> Result<Done, CommandError> {
    let limits = limits(commands, permit).await?;
    let independence = independence(commands, permit, context, window).await?;
    let command = RootWindowCommand::Approve { by: permit.actor(), independence, limits, now: context.now };
    execute(commands, permit, context, window, &command).await
}

/// How whoever decides stands to whoever asked for the window. The append guards what it is read from.
async fn independence(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    window: RootWindowId,
) -> Result<Independence, CommandError> {
    let state = commands.load::<RootWindow>(&StreamId::root_window(permit.org(), window)).await?.state;
    match (permit.actor(), state.terms()) {
        (Actor::User(decider), Some(terms)) if decider != terms.requester => {
            let (requester, action, resource) = (terms.requester, permit.action(), permit.resource());
            let asked = Asked { requester, action, resource, now: context.now, others: true };
            Ok(independence::of(commands, decider, &asked).await?)
        }
        // No person, no window, or their own: refused for that.
        _ => Ok(Independence::Independent),
    }
}

/// What speaks against somebody's deciding on a window besides the policy: that they asked for it, or have what they decide by from
/// whoever did. Nothing is decided.
pub async fn against_decider(
    commands: &Commands,
    resource: Resource,
    action: Action,
    decider: UserId,
    now: UnixMillis,
) -> Result<Option<RootWindowRefusal>, CommandError> {
    let Resource::RootWindow { org, window, .. } = resource else { return Ok(None) };
    let state = commands.load::<RootWindow>(&StreamId::root_window(org, window)).await?.state;
    let Some(requester) = state.terms().map(|terms| terms.requester) else { return Ok(None) };
    if !matches!(action, Action::RootApprove | Action::RootDeny | Action::RootReview) {
        return Ok(None);
    }
    if decider == requester {
        return Ok(Some(RootWindowRefusal::OwnRequest));
    }
    if action == Action::RootDeny {
        return Ok(None);
    }
    let asked = Asked { requester, action, resource, now, others: false };
    Ok(match independence::of(commands, decider, &asked).await? {
        Independence::Independent => None,
        Independence::Depends { on, others } => Some(RootWindowRefusal::DeciderDepends { on, others }),
    })
}

pub async fn deny(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    window: RootWindowId,
    reason: Option<String>,
) -> Result<Done, CommandError> {
    let command = RootWindowCommand::Deny { by: permit.actor(), reason, now: context.now };
    execute(commands, permit, context, window, &command).await
}

pub async fn withdraw(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    window: RootWindowId,
) -> Result<Done, CommandError> {
    let command = RootWindowCommand::Withdraw { by: permit.actor(), now: context.now };
    execute(commands, permit, context, window, &command).await
}

pub async fn revoke(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    window: RootWindowId,
    reason: Option<String>,
) -> Result<Done, CommandError> {
    let command = RootWindowCommand::Revoke { by: permit.actor(), reason, now: context.now };
    execute(commands, permit, context, window, &command).await
}

/// Asks the host of the workspace's runtime to run the window's one command; its one shell where there are no words.
pub async fn run(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    window: RootWindowId,
    words: Vec<String>,
) -> Result<Done, CommandError> {
    let stream = StreamId::root_window(permit.org(), window);
    if let Some(done) = commands.answered::<RootWindow>(permit, context, &stream, Action::RootRun).await? {
        return Ok(done);
    }
    let limits = limits(commands, permit).await?;
    let workspace = permit.resource().workspace().ok_or(CommandError::refused(RootWindowRefusal::Unknown))?;
    let epoch = match commands.load::<Runtime>(&StreamId::runtime(permit.org(), workspace)).await?.state {
        Runtime::Ready(ready) => Some(ready.epoch),
        _ => None,
    };
    let command = RootWindowCommand::Run { by: permit.actor(), words, epoch, limits, now: context.now };
    execute(commands, permit, context, window, &command).await
}

/// The host takes the command. Whoever comes second is refused.
pub async fn report_started(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    window: RootWindowId,
) -> Result<Done, CommandError> {
    execute(commands, permit, context, window, &RootWindowCommand::ReportStarted { now: context.now }).await
}

pub async fn report_ended(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    window: RootWindowId,
    ended: RootEnded,
) -> Result<Done, CommandError> {
    execute(commands, permit, context, window, &RootWindowCommand::ReportEnded { ended }).await
}

/// The closing event of a window whose time is over.
pub async fn expire(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    window: RootWindowId,
) -> Result<Done, CommandError> {
    execute(commands, permit, context, window, &RootWindowCommand::Expire { now: context.now }).await
}

/// Somebody else looks at what a break-glass window was used for. The next one may be opened from here on.
pub async fn review(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    window: RootWindowId,
    justified: bool,
    note: String,
) -> Result<Done, CommandError> {
    let stream = StreamId::root_window(permit.org(), window);
    let (by, now) = (permit.actor(), context.now);
    let independence = independence(commands, permit, context, window).await?;
    let release = ClaimCommand::Release { holder: window.to_string(), for_action: Action::RootReview };
    commands
        .transaction(context)
        .step::<RootWindow>(permit, stream, RootWindowCommand::Review { by, independence, justified, note, now })
        .step::<Claim>(permit, claim(permit.org()), release)
        .commit()
        .await
}

async fn limits(commands: &Commands, permit: &Permit) -> Result<RootLimits, CommandError> {
    let policy = policy(commands, permit).await?;
    Ok(RootLimits { policy: policy.root, length_max: policy.root_window_max })
}

async fn execute(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    window: RootWindowId,
    command: &RootWindowCommand,
) -> Result<Done, CommandError> {
    commands.execute::<RootWindow>(permit, context, &StreamId::root_window(permit.org(), window), command).await
}
