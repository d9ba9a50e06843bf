//! Projects: a repository of an organization, and the unit to which people are assigned.

use crate::access::Action;
use crate::aggregate::{Aggregate, Refusal, RefusalKind};
use crate::commit::StreamKind;
use crate::event::Event;
use crate::ids::ProjectId;
use crate::limits::NAME_CHARS_MAX;
use crate::secret::Secret;
use crate::secrets::SecretName;
use crate::slug::ProjectSlug;

/// Where the code is: `https://…`, `ssh://…`, `git@host:path`, or a path of this machine for the local provider.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Repository(String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a repository: expected https://…, ssh://…, git@host:path, file://… or an absolute path, without a password or token"
)]
pub struct InvalidRepository {
    text: String,
}

/// What of a refused address may be repeated: nothing of what stands before an `@`, which may be a password.
fn shown(text: &str) -> String {
    match text.rsplit_once('@') {
        Some((_, rest)) => format!("…@{}", rest.chars().take(120).collect::<String>()),
        None => text.chars().take(120).collect(),
    }
}

impl Repository {
    pub const CHARS_MAX: usize = 500;

    pub fn parse(text: &str) -> Result<Self, InvalidRepository> {
        let printable = text.chars().all(|c| !c.is_control() && !c.is_whitespace()) || text.starts_with('/');
        let scheme_is_known =
            ["https://", "ssh://", "git@", "file:///", "/"].iter().any(|start| text.starts_with(start));
        if text.len() > Self::CHARS_MAX
            || !printable
            || text.contains('\0')
            || !scheme_is_known
            || holds_credentials(text)
        {
            return Err(InvalidRepository { text: shown(text) });
        }
        Ok(Self(text.to_owned()))
    }

    /// What an event says. It was accepted by the rules of its day and stays readable under stricter ones.
    pub fn recorded(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// Whether git asks for it over HTTPS, the only way on which it is given a secret.
    pub fn is_https(&self) -> bool {
        self.0.starts_with("https://")
    }

    /// Whether it names a path of whatever machine checks it out.
    pub fn is_local(&self) -> bool {
        self.0.starts_with('/') || self.0.starts_with("file://")
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// `https://user:token@host` and `ssh://user:password@host` would carry a secret into the log. A user name alone is one
/// with https, where it may be a token; with ssh it is how the host is reached.
fn holds_credentials(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    match authority.rsplit_once('@') {
        Some((user, _)) => scheme != "ssh" || user.contains(':'),
        None => false,
    }
}

/// What git shows the server of a project's repository. It counts for the repository that the project had when it was set.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GitCredential {
    /// Whose value is the password: the workspace's own secret of that name, or the project's.
    pub secret: SecretName,
    /// 1 to `USERNAME_CHARS_MAX` printable characters of ASCII without `:`.
    pub username: String,
    /// Whether git gets it in shells too, where whoever works there can read it.
    pub in_shells: bool,
}

impl GitCredential {
    pub const USERNAME_CHARS_MAX: usize = 100;
    /// Takes the tokens of GitHub's apps; other servers with tokens look at the token alone.
    pub const USERNAME: &str = "x-access-token";

    /// Whether git can show a value as a password: it carries one line.
    pub fn carries(value: &Secret) -> bool {
        !value.expose().contains(['\n', '\r', '\0'])
    }

    fn username_is_valid(&self) -> bool {
        let fits = (1..=Self::USERNAME_CHARS_MAX).contains(&self.username.len());
        fits && self.username.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':')
    }
}

/// What becomes of a project's credential for git.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum GitChange {
    /// It stays, unless the repository becomes another one: nobody decided to show it to that one's server.
    #[default]
    Keep,
    Remove,
    Set(GitCredential),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProjectEvent {
    Created { project: ProjectId, slug: ProjectSlug, name: String, repository: Repository },
    Edited { name: String, repository: Repository },
    GitCredentialChanged { credential: Option<GitCredential> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProjectCommand {
    Create { project: ProjectId, slug: ProjectSlug, name: String, repository: Repository },
    Edit { name: String, repository: Repository, git: GitChange },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Project {
    #[default]
    Unknown,
    Active {
        project: ProjectId,
        slug: ProjectSlug,
        name: String,
        repository: Repository,
        git: Option<GitCredential>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProjectRefusal {
    #[error("there is no such project")]
    Unknown,
    #[error("the project exists already")]
    Exists,
    #[error("a name must have 1 to {max} characters")]
    Name { max: usize },
    #[error("git is given a secret for a repository at https://… alone")]
    GitNeedsHttps,
    #[error("a user name for git has 1 to {max} printable characters of ASCII, without `:`")]
    GitUsername { max: usize },
}

impl Refusal for ProjectRefusal {
    fn code(&self) -> &'static str {
        match self {
            Self::Unknown => "project_unknown",
            Self::Exists => "project_exists",
            Self::Name { .. } => "name_invalid",
            Self::GitNeedsHttps | Self::GitUsername { .. } => "git_credential_invalid",
        }
    }

    fn kind(&self) -> RefusalKind {
        match self {
            Self::Unknown => RefusalKind::NotFound,
            Self::Exists => RefusalKind::Conflict,
            Self::Name { .. } | Self::GitNeedsHttps | Self::GitUsername { .. } => RefusalKind::Invalid,
        }
    }

    fn bounds(&self) -> Vec<(&'static str, u64)> {
        match self {
            Self::Name { max } | Self::GitUsername { max } => vec![("max_chars", *max as u64)],
            Self::Unknown | Self::Exists | Self::GitNeedsHttps => vec![],
        }
    }
}

/// A name people read: 1 to `NAME_CHARS_MAX` characters, no control characters, not only blanks.
pub fn name_is_valid(name: &str) -> bool {
    !name.trim().is_empty() && name.chars().count() <= NAME_CHARS_MAX && !name.chars().any(char::is_control)
}

impl Aggregate for Project {
    const KIND: StreamKind = StreamKind::Project;
    type State = Self;
    type Command = ProjectCommand;
    type Event = ProjectEvent;
    type Refusal = ProjectRefusal;

    fn decide(state: &Self, command: &ProjectCommand) -> Result<Vec<ProjectEvent>, ProjectRefusal> {
        let (ProjectCommand::Create { name, .. } | ProjectCommand::Edit { name, .. }) = command;
        if !name_is_valid(name) {
            return Err(ProjectRefusal::Name { max: NAME_CHARS_MAX });
        }
        match (state, command) {
            (Self::Unknown, ProjectCommand::Create { project, slug, name, repository }) => {
                Ok(vec![ProjectEvent::Created {
                    project: *project,
                    slug: slug.clone(),
                    name: name.clone(),
                    repository: repository.clone(),
                }])
            }
            (Self::Active { .. }, ProjectCommand::Create { .. }) => Err(ProjectRefusal::Exists),
            (Self::Unknown, ProjectCommand::Edit { .. }) => Err(ProjectRefusal::Unknown),
            (
                Self::Active { name: old_name, repository: old, git: old_git, .. },
                ProjectCommand::Edit { name, repository, git },
            ) => {
                let credential = match git {
                    GitChange::Keep if old == repository => old_git.clone(),
                    GitChange::Keep | GitChange::Remove => None,
                    GitChange::Set(credential) => Some(credential.clone()),
                };
                if let Some(credential) = &credential {
                    if !repository.is_https() {
                        return Err(ProjectRefusal::GitNeedsHttps);
                    }
                    if !credential.username_is_valid() {
                        return Err(ProjectRefusal::GitUsername { max: GitCredential::USERNAME_CHARS_MAX });
                    }
                }
                let mut events = Vec::new();
                if old_name != name || old != repository {
                    events.push(ProjectEvent::Edited { name: name.clone(), repository: repository.clone() });
                }
                if *old_git != credential {
                    events.push(ProjectEvent::GitCredentialChanged { credential });
                }
                Ok(events)
            }
        }
    }

    fn evolve(state: Self, event: &ProjectEvent) -> Self {
        match (state, event) {
            (_, ProjectEvent::Created { project, slug, name, repository }) => Self::Active {
                project: *project,
                slug: slug.clone(),
                name: name.clone(),
                repository: repository.clone(),
                git: None,
            },
            (Self::Active { project, slug, git, .. }, ProjectEvent::Edited { name, repository }) => {
                Self::Active { project, slug, name: name.clone(), repository: repository.clone(), git }
            }
            (
                Self::Active { project, slug, name, repository, .. },
                ProjectEvent::GitCredentialChanged { credential },
            ) => Self::Active { project, slug, name, repository, git: credential.clone() },
            (Self::Unknown, ProjectEvent::Edited { .. } | ProjectEvent::GitCredentialChanged { .. }) => Self::Unknown,
        }
    }

    fn event_of(event: &Event) -> Option<&ProjectEvent> {
        if let Event::Project(event) = event { Some(event) } else { None }
    }

    fn action_of(command: &ProjectCommand) -> Action {
        match command {
            ProjectCommand::Create { .. } => Action::ProjectCreate,
            ProjectCommand::Edit { .. } => Action::ProjectEdit,
        }
    }
}

impl From<ProjectEvent> for Event {
    fn from(event: ProjectEvent) -> Self {
        Self::Project(event)
    }
}
