//! Signed dev links: every verb, with the limits that organization and manifest set.

use envforge_domain::access::{Action, Permit};
use envforge_domain::commit::StreamId;
use envforge_domain::dev_link::{
    BlockedAttempts, DevLink, DevLinkCommand, DevLinkRefusal, Generation, LinkLimits, RouteFamilies,
};
use envforge_domain::ids::{HandoffId, LinkId, SessionId, UserId, WorkspaceId};
use envforge_domain::revocation::Receipt;
use envforge_domain::routing::RouteTable;
use envforge_domain::secret::TokenDigest;
use envforge_domain::slug::ServiceName;
use envforge_domain::time::{Millis, UnixMillis};
use envforge_domain::workspace::{ActiveWorkspace, Workspace, WorkspaceRefusal};

use crate::runtimes::policy;
use crate::{CommandError, Commands, Context, Done};

/// What is asked of a new link. `None` means the default.
#[derive(Clone)]
pub struct NewLink {
    pub workspace: WorkspaceId,
    pub service: ServiceName,
    /// Default: everything that the manifest declares and the organization allows.
    pub families: Option<RouteFamilies>,
    /// Default: `limits::LINK_LIFETIME_DEFAULT`, or the organization's maximum where that is shorter.
    pub lifetime: Option<Millis>,
    pub label: String,
    pub wake_budget: Option<u32>,
    pub issued_by: UserId,
}

/// Issues a link; its id follows from the request.
pub async fn issue(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    new: NewLink,
) -> Result<(LinkId, Done), CommandError> {
    let link = LinkId::from_uuid(context.new_id());
    let stream = StreamId::dev_link(permit.org(), link);
    if let Some(done) = commands.answered::<DevLink>(permit, context, &stream, Action::LinkIssue).await? {
        return Ok((link, done));
    }
    let workspace = active_workspace(commands, permit, new.workspace).await?;
    let limits = limits(commands, permit, &workspace, &new.service).await?;
    let command = DevLinkCommand::Issue {
        link,
        project: workspace.project,
        workspace: new.workspace,
        families: new.families.unwrap_or_else(|| limits.families_declared.intersection(limits.families_allowed)),
        lifetime: new.lifetime.unwrap_or(envforge_domain::limits::LINK_LIFETIME_DEFAULT.min(limits.lifetime_max)),
        service: new.service,
        label: new.label,
        wake_budget: new.wake_budget,
        issued_by: new.issued_by,
        limits,
        now: context.now,
    };
    let done = commands.execute::<DevLink>(permit, context, &stream, &command).await?;
    Ok((link, done))
}

/// A redeemed handoff, as the gateway proved it.
pub struct RedeemedHandoff {
    pub link: LinkId,
    pub handoff: HandoffId,
    pub handoff_expires_at: UnixMillis,
    pub generation: Generation,
    pub session: SessionId,
    pub cookie: TokenDigest,
}

/// Turns a handoff into a session, once, whichever gateway asks.
pub async fn open_session(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    redeemed: &RedeemedHandoff,
) -> Result<Done, CommandError> {
    let command = DevLinkCommand::OpenSession {
        handoff: redeemed.handoff,
        handoff_expires_at: redeemed.handoff_expires_at,
        session: redeemed.session,
        cookie: redeemed.cookie,
        generation: redeemed.generation,
        now: context.now,
    };
    let stream = StreamId::dev_link(permit.org(), redeemed.link);
    commands.execute::<DevLink>(permit, context, &stream, &command).await
}

pub async fn change_allowlist(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    link: LinkId,
    families: RouteFamilies,
) -> Result<Done, CommandError> {
    let stream = StreamId::dev_link(permit.org(), link);
    if let Some(done) = commands.answered::<DevLink>(permit, context, &stream, Action::LinkChangeAllowlist).await? {
        return Ok(done);
    }
    let limits = limits_of_link(commands, permit, link).await?;
    let command = DevLinkCommand::ChangeAllowlist { families, limits, now: context.now };
    execute(commands, permit, context, link, &command).await
}

/// Makes every older token and session of the link void. The caller mints the new token.
pub async fn rotate(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    link: LinkId,
    lifetime: Option<Millis>,
) -> Result<Done, CommandError> {
    let stream = StreamId::dev_link(permit.org(), link);
    if let Some(done) = commands.answered::<DevLink>(permit, context, &stream, Action::LinkRotate).await? {
        return Ok(done);
    }
    let limits = limits_of_link(commands, permit, link).await?;
    let command = DevLinkCommand::Rotate { lifetime, limits, now: context.now };
    execute(commands, permit, context, link, &command).await
}

pub async fn revoke(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    link: LinkId,
    reason: Option<String>,
) -> Result<Done, CommandError> {
    execute(commands, permit, context, link, &DevLinkCommand::Revoke { reason }).await
}

/// What a revocation closed.
pub async fn record_revocation(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    link: LinkId,
    receipt: Receipt,
) -> Result<Done, CommandError> {
    execute(commands, permit, context, link, &DevLinkCommand::RecordRevocation { receipt }).await
}

/// The closing event of a link whose time is over.
pub async fn expire(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    link: LinkId,
) -> Result<Done, CommandError> {
    execute(commands, permit, context, link, &DevLinkCommand::Expire { now: context.now }).await
}

/// Counters that a gateway kept between `since` and `until`.
pub async fn record_blocked(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    link: LinkId,
    attempts: Vec<BlockedAttempts>,
    since: UnixMillis,
    until: UnixMillis,
) -> Result<Done, CommandError> {
    execute(commands, permit, context, link, &DevLinkCommand::RecordBlocked { attempts, since, until }).await
}

async fn execute(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    link: LinkId,
    command: &DevLinkCommand,
) -> Result<Done, CommandError> {
    commands.execute::<DevLink>(permit, context, &StreamId::dev_link(permit.org(), link), command).await
}

pub(crate) async fn active_workspace(
    commands: &Commands,
    permit: &Permit,
    workspace: WorkspaceId,
) -> Result<ActiveWorkspace, CommandError> {
    match commands.load::<Workspace>(&StreamId::workspace(permit.org(), workspace)).await?.state {
        Workspace::Unknown => Err(CommandError::refused(WorkspaceRefusal::Unknown)),
        Workspace::Archived { .. } => Err(CommandError::refused(WorkspaceRefusal::Archived)),
        Workspace::Active(active) => Ok(active),
    }
}

async fn limits_of_link(commands: &Commands, permit: &Permit, link: LinkId) -> Result<LinkLimits, CommandError> {
    match commands.load::<DevLink>(&StreamId::dev_link(permit.org(), link)).await?.state {
        DevLink::Unknown => Err(CommandError::refused(DevLinkRefusal::Unknown)),
        DevLink::Expired { .. } => Err(CommandError::refused(DevLinkRefusal::Expired)),
        DevLink::Revoked { .. } => Err(CommandError::refused(DevLinkRefusal::Revoked)),
        DevLink::Active(active) => {
            let workspace = active_workspace(commands, permit, active.workspace).await?;
            limits(commands, permit, &workspace, &active.service).await
        }
    }
}

async fn limits(
    commands: &Commands,
    permit: &Permit,
    workspace: &ActiveWorkspace,
    service: &ServiceName,
) -> Result<LinkLimits, CommandError> {
    let policy = policy(commands, permit).await?;
    let families_declared =
        RouteTable::of(&workspace.manifest, service).map(|table| table.families()).unwrap_or_default();
    Ok(LinkLimits { lifetime_max: policy.link_lifetime_max, families_allowed: policy.link_families, families_declared })
}
