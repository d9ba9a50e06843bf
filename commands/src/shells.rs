//! Shells: opening one in an active workspace, and how it ended.

use envforge_domain::access::Permit;
use envforge_domain::commit::StreamId;
use envforge_domain::ids::{HostId, SessionId, ShellId, UserId, WorkspaceId};
use envforge_domain::project::Repository;
use envforge_domain::shell::{Shell, ShellCommand, ShellEnd, ShellGit, ShellKind, ShellTerms};
use envforge_domain::workspace::Branch;

use crate::links::active_workspace;
use crate::secrets;
use crate::{CommandError, Commands, Context, Done};

/// Who connects to what.
#[derive(Clone, Copy, Debug)]
pub struct NewShell {
    pub workspace: WorkspaceId,
    pub user: UserId,
    pub session: SessionId,
    pub kind: ShellKind,
    /// Where it is going to be.
    pub host: HostId,
}

/// A shell that the log knows of, with where its code comes from.
#[derive(Clone, Debug)]
pub struct Connected {
    pub shell: ShellId,
    pub repository: Repository,
    pub branch: Branch,
    pub git: Option<ShellGit>,
    pub done: Done,
}

/// Writes down that somebody connects; the shell's id follows from the request.
pub async fn connect(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    new: NewShell,
) -> Result<Connected, CommandError> {
    let NewShell { workspace, user, session, kind, host } = new;
    let active = active_workspace(commands, permit, workspace).await?;
    let seen = secrets::seen(commands, permit.org(), active.project, workspace).await?;
    let view = seen.view(context.now);
    let git = view.git.zip(view.resolve_git()).map(|(credential, given)| ShellGit {
        credential: credential.clone(),
        given,
        expires_at: view.get(&credential.secret).and_then(|found| found.known.expires_at),
    });
    let given = git.as_ref().and_then(|git| git.given.clone().ok());
    let shell = ShellId::from_uuid(context.new_id());
    let (project, host, at) = (active.project, Some(host), context.now);
    let terms = ShellTerms { shell, project, workspace, user, session, kind, host, git: given, at };
    let stream = StreamId::shell(permit.org(), shell);
    let done = commands.execute::<Shell>(permit, context, &stream, &ShellCommand::Connect { terms }).await?;
    Ok(Connected { shell, repository: seen.repository, branch: active.branch, git, done })
}

/// Writes down how a shell ended. One that is over stays as it is.
pub async fn disconnect(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    shell: ShellId,
    end: ShellEnd,
    code: Option<u32>,
) -> Result<Done, CommandError> {
    let command = ShellCommand::Disconnect { end, code, now: context.now };
    commands.execute::<Shell>(permit, context, &StreamId::shell(permit.org(), shell), &command).await
}
