//! Runtimes: waking by a person or by a link, sleeping, keeping awake, and what a host reports.

use envforge_domain::access::Permit;
use envforge_domain::commit::StreamId;
use envforge_domain::dev_link::{DevLink, DevLinkCommand};
use envforge_domain::ids::{LinkId, SessionId, UserId, WorkspaceId};
use envforge_domain::organization::{Organization, OrganizationPolicy};
use envforge_domain::runtime::{Epoch, Runtime, RuntimeCommand, SleepCause, WakeCause};
use envforge_domain::time::UnixMillis;
use envforge_domain::workspace::{Workspace, WorkspaceRefusal};

use crate::{CommandError, Commands, Context, Done};

/// Wakes on behalf of a person, job or agent.
pub async fn wake(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    workspace: WorkspaceId,
    cause: WakeCause,
) -> Result<Done, CommandError> {
    let command = request_wake(commands, permit, workspace, cause).await?;
    commands.execute::<Runtime>(permit, context, &StreamId::runtime(permit.org(), workspace), &command).await
}

/// Wakes on behalf of a link's session. The link's wake budget and the wake stand in one atomic append: a budget cannot
/// be overdrawn by gateways that ask at once, and a wake that happened is counted once.
pub async fn wake_by_link(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    workspace: WorkspaceId,
    link: LinkId,
    session: SessionId,
) -> Result<Done, CommandError> {
    let org = permit.org();
    let stream = StreamId::runtime(org, workspace);
    let runtime = commands.load::<Runtime>(&stream).await?;
    let needs_wake = match &runtime.state {
        Runtime::NeverWoken | Runtime::Asleep { .. } | Runtime::Failed { .. } => true,
        Runtime::Sleeping { queued, .. } => queued.is_none(),
        Runtime::Waking { .. } | Runtime::Ready(_) => false,
    };
    if !needs_wake {
        return Ok(Done { position: runtime.position, events: Vec::new(), duplicate: false });
    }
    let epoch = Epoch(runtime.state.epoch().0 + 1);
    let wake = request_wake(commands, permit, workspace, WakeCause::Link { link, session }).await?;
    commands
        .transaction(context)
        .step::<Runtime>(permit, stream, wake)
        .step::<DevLink>(
            permit,
            StreamId::dev_link(org, link),
            DevLinkCommand::SpendWake { epoch, session, now: context.now },
        )
        .commit()
        .await
}

pub async fn sleep(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    workspace: WorkspaceId,
    cause: SleepCause,
) -> Result<Done, CommandError> {
    let command = RuntimeCommand::RequestSleep { cause, now: context.now };
    commands.execute::<Runtime>(permit, context, &StreamId::runtime(permit.org(), workspace), &command).await
}

/// Keeps a ready runtime awake until an instant, within the organization's cap.
pub async fn keep_awake(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    workspace: WorkspaceId,
    by: UserId,
    until: UnixMillis,
    reason: String,
) -> Result<Done, CommandError> {
    let max = policy(commands, permit).await?.keep_awake_max;
    let command = RuntimeCommand::KeepAwake { until, reason, by, max, now: context.now };
    commands.execute::<Runtime>(permit, context, &StreamId::runtime(permit.org(), workspace), &command).await
}

/// What a host says. The permit is an agent's or the runtime reactor's.
pub async fn report(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    workspace: WorkspaceId,
    report: &RuntimeCommand,
) -> Result<Done, CommandError> {
    commands.execute::<Runtime>(permit, context, &StreamId::runtime(permit.org(), workspace), report).await
}

pub(crate) async fn policy(commands: &Commands, permit: &Permit) -> Result<OrganizationPolicy, CommandError> {
    match commands.load::<Organization>(&StreamId::organization(permit.org())).await?.state {
        Organization::Active(org) => Ok(org.policy),
        Organization::Unknown => {
            Err(CommandError::refused(envforge_domain::organization::OrganizationRefusal::Unknown))
        }
    }
}

async fn request_wake(
    commands: &Commands,
    permit: &Permit,
    workspace: WorkspaceId,
    cause: WakeCause,
) -> Result<RuntimeCommand, CommandError> {
    let (project, workspace_active) =
        match commands.load::<Workspace>(&StreamId::workspace(permit.org(), workspace)).await?.state {
            Workspace::Unknown => return Err(CommandError::refused(WorkspaceRefusal::Unknown)),
            Workspace::Active(active) => (active.project, true),
            Workspace::Archived { project, .. } => (project, false),
        };
    Ok(RuntimeCommand::RequestWake { workspace, project, cause, workspace_active })
}
