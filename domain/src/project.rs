//! Projects: a repository of an organization, and the unit to which people are assigned.

use crate::access::Action;
use crate::aggregate::{Aggregate, Refusal, RefusalKind};
use crate::commit::StreamKind;
use crate::event::Event;
use crate::ids::ProjectId;
use crate::limits::NAME_CHARS_MAX;
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

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProjectEvent {
    Created { project: ProjectId, slug: ProjectSlug, name: String, repository: Repository },
    Edited { name: String, repository: Repository },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProjectCommand {
    Create { project: ProjectId, slug: ProjectSlug, name: String, repository: Repository },
    Edit { name: String, repository: Repository },
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
}

impl Refusal for ProjectRefusal {
    fn code(&self) -> &'static str {
        match self {
            Self::Unknown => "project_unknown",
            Self::Exists => "project_exists",
            Self::Name { .. } => "name_invalid",
        }
    }

    fn kind(&self) -> RefusalKind {
        match self {
            Self::Unknown => RefusalKind::NotFound,
            Self::Exists => RefusalKind::Conflict,
            Self::Name { .. } => RefusalKind::Invalid,
        }
    }

    fn bounds(&self) -> Vec<(&'static str, u64)> {
        match self {
            Self::Name { max } => vec![("max_chars", *max as u64)],
            Self::Unknown | Self::Exists => vec![],
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
            (Self::Active { name: old_name, repository: old, .. }, ProjectCommand::Edit { name, repository }) => {
                if old_name == name && old == repository {
                    return Ok(vec![]);
                }
                Ok(vec![ProjectEvent::Edited { name: name.clone(), repository: repository.clone() }])
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
            },
            (Self::Active { project, slug, .. }, ProjectEvent::Edited { name, repository }) => {
                Self::Active { project, slug, name: name.clone(), repository: repository.clone() }
            }
            (Self::Unknown, ProjectEvent::Edited { .. }) => Self::Unknown,
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
