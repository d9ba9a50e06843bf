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
/// be overdrawn by gateways that ask at once, and a link pays for the wakes that it caused and for no other, each once.
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
    let wake = request_wake(commands, permit, workspace, WakeCause::Link { link, session }).await?;
    let spend = {
        let (stream, now) = (stream.clone(), context.now);
        move || {
            let stream = stream.clone();
            async move {
                // Also a queued wake opens the epoch after the current one.
                let epoch = Epoch(commands.load::<Runtime>(&stream).await?.state.epoch().0 + 1);
                Ok(DevLinkCommand::SpendWake { epoch, session, now })
            }
        }
    };
    commands
        .transaction(context)
        .step::<Runtime>(permit, stream, wake)
        .step_with::<DevLink, _>(permit, StreamId::dev_link(org, link), spend)
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
