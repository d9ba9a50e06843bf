//! Projects: creation with the claim on their slug, and edits.

use envforge_domain::access::{Action, Permit};
use envforge_domain::claim::{Claim, ClaimCommand, ClaimKey};
use envforge_domain::commit::StreamId;
use envforge_domain::ids::ProjectId;
use envforge_domain::project::{GitChange, Project, ProjectCommand, Repository};
use envforge_domain::slug::ProjectSlug;

use crate::{CommandError, Commands, Context, Done};

/// Creates a project; its id follows from the request.
pub async fn create(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    slug: ProjectSlug,
    name: String,
    repository: Repository,
) -> Result<(ProjectId, Done), CommandError> {
    let project = ProjectId::from_uuid(context.new_id());
    let claim = ClaimKey::ProjectSlug(permit.org(), slug.clone()).stream().expect("a slug is a valid stream key");
    let take = ClaimCommand::Take { holder: project.to_string(), for_action: Action::ProjectCreate };
    let done = commands
        .transaction(context)
        .step::<Project>(
            permit,
            StreamId::project(permit.org(), project),
            ProjectCommand::Create { project, slug, name, repository },
        )
        .step::<Claim>(permit, claim, take)
        .commit()
        .await?;
    Ok((project, done))
}

pub async fn edit(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    project: ProjectId,
    name: String,
    repository: Repository,
    git: GitChange,
) -> Result<Done, CommandError> {
    let stream = StreamId::project(permit.org(), project);
    commands.execute::<Project>(permit, context, &stream, &ProjectCommand::Edit { name, repository, git }).await
}
