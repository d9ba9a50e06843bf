//! Secrets of projects and workspaces: what the log is told once the store has the value.
//!
//! The value comes first: under the key that `prepare` names, and in the version that the store answers. A crash in between
//! leaves a version that no event names, which nobody ever reads; reactors withdraw it a day later (ADR 19).

use envforge_domain::access::{Action, Permit};
use envforge_domain::aggregate::Aggregate;
use envforge_domain::commit::StreamId;
use envforge_domain::ids::{OrgId, ProjectId, UserId, WorkspaceId};
use envforge_domain::project::{GitCredential, Project, ProjectRefusal, Repository};
use envforge_domain::secrets::{SecretKey, SecretName, SecretOwner, SecretRules, SecretView, Secrets, SecretsCommand};
use envforge_domain::time::UnixMillis;

use crate::{CommandError, Commands, Context, Done, Loaded};

/// What is asked for about one secret.
#[derive(Clone, Debug)]
pub struct SecretChange {
    pub owner: SecretOwner,
    pub name: SecretName,
    /// Of the value that is set.
    pub expires_at: Option<UnixMillis>,
    /// `None`: as they are.
    pub rules: Option<SecretRules>,
    pub by: UserId,
}

/// What to do about a value that is to be set.
#[derive(Clone, Debug)]
pub enum Prepared {
    /// The request was carried out before: nothing is put.
    Answered(Done),
    /// Put it under this key.
    Put(SecretKey),
}

/// Whether a value may be set, and where it goes. Nothing is put that the log would refuse.
pub async fn prepare(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    change: &SecretChange,
) -> Result<Prepared, CommandError> {
    let stream = StreamId::secrets(permit.org(), change.owner);
    if let Some(done) = commands.answered::<Secrets>(permit, context, &stream, Action::SecretSet).await? {
        return Ok(Prepared::Answered(done));
    }
    let state = commands.load::<Secrets>(&stream).await?.state;
    let generation = state.generation_of(&change.name);
    let next = state.known(&change.name).and_then(|known| known.version).map_or(1, |version| version + 1);
    Secrets::decide(&state, &set_command(change, generation, next, context)).map_err(CommandError::refused)?;
    Ok(Prepared::Put(SecretKey { org: permit.org(), owner: change.owner, name: change.name.clone(), generation }))
}

/// Tells the log of a version that the store keeps.
pub async fn set(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    change: &SecretChange,
    key: &SecretKey,
    version: u64,
) -> Result<Done, CommandError> {
    let command = set_command(change, key.generation, version, context);
    execute(commands, permit, context, change.owner, &command).await
}

/// Changes who may use a secret and what a new version does; its value stays.
pub async fn change_rules(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    change: &SecretChange,
    rules: &SecretRules,
) -> Result<Done, CommandError> {
    let SecretChange { name, by, .. } = change.clone();
    let command = SecretsCommand::ChangeRules { name, rules: rules.clone(), by, now: context.now };
    execute(commands, permit, context, change.owner, &command).await
}

/// No wake gets it from then on. Its value is cleared by a reactor.
pub async fn remove(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    change: &SecretChange,
) -> Result<Done, CommandError> {
    let command = SecretsCommand::Remove { name: change.name.clone(), by: change.by, now: context.now };
    execute(commands, permit, context, change.owner, &command).await
}

/// What is known of an owner's secrets, as the log's leader has it.
pub async fn load(commands: &Commands, org: OrgId, owner: SecretOwner) -> Result<Loaded<Secrets>, CommandError> {
    Ok(commands.load::<Secrets>(&StreamId::secrets(org, owner)).await?)
}

/// What a workspace sees of secrets, as the log's leader has it.
#[derive(Clone, Debug)]
pub struct Seen {
    project: ProjectId,
    workspace: WorkspaceId,
    of_project: Secrets,
    of_workspace: Secrets,
    pub git: Option<GitCredential>,
    pub repository: Repository,
}

impl Seen {
    /// The names of all that may be used.
    pub fn held(&self) -> impl Iterator<Item = &SecretName> {
        self.of_project.held().chain(self.of_workspace.held()).map(|(name, _)| name)
    }

    pub fn view(&self, now: UnixMillis) -> SecretView<'_> {
        SecretView {
            project: self.project,
            workspace: self.workspace,
            of_project: &self.of_project,
            of_workspace: &self.of_workspace,
            git: self.git.as_ref(),
            now,
        }
    }
}

/// # Errors
/// Where the log cannot be read, or knows no such project.
pub async fn seen(
    commands: &Commands,
    org: OrgId,
    project: ProjectId,
    workspace: WorkspaceId,
) -> Result<Seen, CommandError> {
    let of_project = load(commands, org, SecretOwner::Project(project)).await?.state;
    let of_workspace = load(commands, org, SecretOwner::Workspace { project, workspace }).await?.state;
    match commands.load::<Project>(&StreamId::project(org, project)).await?.state {
        Project::Active { repository, git, .. } => {
            Ok(Seen { project, workspace, of_project, of_workspace, git, repository })
        }
        Project::Unknown => Err(CommandError::refused(ProjectRefusal::Unknown)),
    }
}

fn set_command(change: &SecretChange, generation: u32, version: u64, context: &Context) -> SecretsCommand {
    let SecretChange { owner, name, expires_at, rules, by } = change.clone();
    SecretsCommand::Set { owner, name, generation, version, expires_at, rules, by, now: context.now }
}

async fn execute(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    owner: SecretOwner,
    command: &SecretsCommand,
) -> Result<Done, CommandError> {
    commands.execute::<Secrets>(permit, context, &StreamId::secrets(permit.org(), owner), command).await
}
