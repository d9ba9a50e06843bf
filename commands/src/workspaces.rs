//! Workspaces: creation with the claim on their slug, changes, and archiving, which retires the slug for good.

use envforge_domain::access::{Action, Permit};
use envforge_domain::claim::{Claim, ClaimCommand, ClaimKey};
use envforge_domain::commit::StreamId;
use envforge_domain::ids::{ProjectId, WorkspaceId};
use envforge_domain::manifest::Manifest;
use envforge_domain::organization::Organization;
use envforge_domain::project::Project;
use envforge_domain::revocation::Receipt;
use envforge_domain::slug::{OrgSlug, WorkspaceSlug};
use envforge_domain::workspace::{AccessMode, Branch, Workspace, WorkspaceCommand, WorkspaceRefusal};

use crate::{CommandError, Commands, Context, Done};

/// What a new workspace is made of.
#[derive(Clone)]
pub struct NewWorkspace {
    pub project: ProjectId,
    pub slug: WorkspaceSlug,
    pub branch: Branch,
    pub manifest: Manifest,
    pub access_mode: AccessMode,
}

/// Creates a workspace; its id follows from the request. The permit is for its project.
pub async fn create(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    new: NewWorkspace,
) -> Result<(WorkspaceId, Done), CommandError> {
    let org = permit.org();
    let project = commands.load::<Project>(&StreamId::project(org, new.project)).await?;
    if project.state == Project::Unknown {
        return Err(CommandError::refused(envforge_domain::project::ProjectRefusal::Unknown));
    }
    let workspace = WorkspaceId::from_uuid(context.new_id());
    let claim = ClaimKey::WorkspaceSlug(org, new.slug.clone()).stream().expect("a slug is a valid stream key");
    let take = ClaimCommand::Take { holder: workspace.to_string(), for_action: Action::WorkspaceCreate };
    let create = WorkspaceCommand::Create {
        workspace,
        project: new.project,
        org_slug: org_slug(commands, permit).await?,
        slug: new.slug,
        branch: new.branch,
        manifest: new.manifest,
        access_mode: new.access_mode,
    };
    let done = commands
        .transaction(context)
        .step::<Workspace>(permit, StreamId::workspace(org, workspace), create)
        .step::<Claim>(permit, claim, take)
        .commit()
        .await?;
    Ok((workspace, done))
}

pub async fn change_manifest(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    workspace: WorkspaceId,
    manifest: Manifest,
) -> Result<Done, CommandError> {
    let command = WorkspaceCommand::ChangeManifest { org_slug: org_slug(commands, permit).await?, manifest };
    commands.execute::<Workspace>(permit, context, &StreamId::workspace(permit.org(), workspace), &command).await
}

pub async fn change_access_mode(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    workspace: WorkspaceId,
    access_mode: AccessMode,
) -> Result<Done, CommandError> {
    let command = WorkspaceCommand::ChangeAccessMode { access_mode };
    commands.execute::<Workspace>(permit, context, &StreamId::workspace(permit.org(), workspace), &command).await
}

/// Archives a workspace and retires its slug in one step. The runtime is put to sleep by its reactor.
pub async fn archive(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    workspace: WorkspaceId,
) -> Result<Done, CommandError> {
    let org = permit.org();
    let stream = StreamId::workspace(org, workspace);
    let slug = match commands.load::<Workspace>(&stream).await?.state {
        Workspace::Unknown => return Err(CommandError::refused(WorkspaceRefusal::Unknown)),
        Workspace::Active(active) => active.slug,
        Workspace::Archived { slug, .. } => slug,
    };
    let claim = ClaimKey::WorkspaceSlug(org, slug).stream().expect("a slug is a valid stream key");
    let retire = ClaimCommand::Retire { holder: workspace.to_string(), for_action: Action::WorkspaceArchive };
    commands
        .transaction(context)
        .step::<Workspace>(permit, stream, WorkspaceCommand::Archive)
        .step::<Claim>(permit, claim, retire)
        .commit()
        .await
}

/// What closing a workspace closed.
pub async fn record_revocation(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    workspace: WorkspaceId,
    receipt: Receipt,
) -> Result<Done, CommandError> {
    let command = WorkspaceCommand::RecordRevocation { receipt };
    commands.execute::<Workspace>(permit, context, &StreamId::workspace(permit.org(), workspace), &command).await
}

async fn org_slug(commands: &Commands, permit: &Permit) -> Result<OrgSlug, CommandError> {
    match commands.load::<Organization>(&StreamId::organization(permit.org())).await?.state {
        Organization::Active(org) => Ok(org.slug),
        Organization::Unknown => {
            Err(CommandError::refused(envforge_domain::organization::OrganizationRefusal::Unknown))
        }
    }
}
