//! Workspaces: a branch of a project's repository and the services that its `envforge.yml` declares.

use crate::access::Action;
use crate::aggregate::{Aggregate, Refusal, RefusalKind};
use crate::commit::StreamKind;
use crate::event::Event;
use crate::ids::{ProjectId, WorkspaceId};
use crate::manifest::{Manifest, Route};
use crate::revocation::Receipt;
use crate::slug::{HostLabel, LABEL_LENGTH_MAX, LabelTooLong, OrgSlug, WorkspaceSlug};

/// Who may reach a workspace from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AccessMode {
    /// Signed links work at the public gateway.
    SignedLinks,
    /// At the public gateway indistinguishable from a host that does not exist.
    TailscaleOnly,
}

/// A branch name as Git allows it, which cannot be taken for an option.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Branch(String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a branch name Git accepts: 1 to 200 characters, no spaces, `..`, `~`, `^`, `:`, `?`, `*`, `[`, `\\`, and not starting with `-` or `/`"
)]
pub struct InvalidBranch {
    text: String,
}

impl Branch {
    pub fn parse(text: &str) -> Result<Self, InvalidBranch> {
        let forbidden = |c: char| c.is_control() || matches!(c, ' ' | '~' | '^' | ':' | '?' | '*' | '[' | '\\');
        let bad = text.is_empty()
            || text.len() > 200
            || text.chars().any(forbidden)
            || text.starts_with(['-', '/', '.'])
            || text.ends_with(['/', '.'])
            || text.ends_with(".lock")
            || ["..", "//", "@{", "/."].iter().any(|part| text.contains(part))
            || text == "@";
        if bad { Err(InvalidBranch { text: text.chars().take(120).collect() }) } else { Ok(Self(text.to_owned())) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkspaceEvent {
    Created {
        workspace: WorkspaceId,
        project: ProjectId,
        slug: WorkspaceSlug,
        branch: Branch,
        manifest: Manifest,
        access_mode: AccessMode,
    },
    ManifestChanged {
        manifest: Manifest,
    },
    AccessModeChanged {
        access_mode: AccessMode,
    },
    Archived,
    /// What closing it closed.
    RevocationRecorded {
        receipt: Receipt,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkspaceCommand {
    /// The organization's slug is a looked-up fact: every routed service must fit into one DNS label with it.
    Create {
        workspace: WorkspaceId,
        project: ProjectId,
        org_slug: OrgSlug,
        slug: WorkspaceSlug,
        branch: Branch,
        manifest: Manifest,
        access_mode: AccessMode,
    },
    ChangeManifest {
        org_slug: OrgSlug,
        manifest: Manifest,
    },
    ChangeAccessMode {
        access_mode: AccessMode,
    },
    Archive,
    /// What the commands before closed.
    RecordRevocation {
        receipt: Receipt,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Workspace {
    #[default]
    Unknown,
    Active(ActiveWorkspace),
    Archived {
        workspace: WorkspaceId,
        project: ProjectId,
        slug: WorkspaceSlug,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveWorkspace {
    pub workspace: WorkspaceId,
    pub project: ProjectId,
    pub slug: WorkspaceSlug,
    pub branch: Branch,
    pub manifest: Manifest,
    pub access_mode: AccessMode,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorkspaceRefusal {
    #[error("there is no such workspace")]
    Unknown,
    #[error("the workspace exists already")]
    Exists,
    #[error("the workspace is archived; create a new one with another slug")]
    Archived,
    #[error(transparent)]
    LabelTooLong(#[from] LabelTooLong),
}

impl Refusal for WorkspaceRefusal {
    fn code(&self) -> &'static str {
        match self {
            Self::Unknown => "workspace_unknown",
            Self::Exists => "workspace_exists",
            Self::Archived => "workspace_archived",
            Self::LabelTooLong(_) => "host_label_too_long",
        }
    }

    fn kind(&self) -> RefusalKind {
        match self {
            Self::Unknown => RefusalKind::NotFound,
            Self::Exists => RefusalKind::Conflict,
            Self::Archived => RefusalKind::Gone,
            Self::LabelTooLong(_) => RefusalKind::Invalid,
        }
    }

    fn bounds(&self) -> Vec<(&'static str, u64)> {
        match self {
            Self::LabelTooLong(label) => vec![("length", label.length as u64), ("max", LABEL_LENGTH_MAX as u64)],
            Self::Unknown | Self::Exists | Self::Archived => vec![],
        }
    }
}

/// Every routed service must have a host label, or a link fails at the click instead of here.
fn check_labels(manifest: &Manifest, slug: &WorkspaceSlug, org: &OrgSlug) -> Result<(), LabelTooLong> {
    for service in manifest.services.iter().filter(|service| service.route != Route::None) {
        HostLabel::new(service.name.clone(), slug.clone(), org.clone())?;
    }
    Ok(())
}

impl Aggregate for Workspace {
    const KIND: StreamKind = StreamKind::Workspace;
    type State = Self;
    type Command = WorkspaceCommand;
    type Event = WorkspaceEvent;
    type Refusal = WorkspaceRefusal;

    fn decide(state: &Self, command: &WorkspaceCommand) -> Result<Vec<WorkspaceEvent>, WorkspaceRefusal> {
        match (state, command) {
            (
                Self::Unknown,
                WorkspaceCommand::Create { workspace, project, org_slug, slug, branch, manifest, access_mode },
            ) => {
                check_labels(manifest, slug, org_slug)?;
                Ok(vec![WorkspaceEvent::Created {
                    workspace: *workspace,
                    project: *project,
                    slug: slug.clone(),
                    branch: branch.clone(),
                    manifest: manifest.clone(),
                    access_mode: *access_mode,
                }])
            }
            (Self::Active(_) | Self::Archived { .. }, WorkspaceCommand::Create { .. }) => Err(WorkspaceRefusal::Exists),
            (Self::Active(active), WorkspaceCommand::ChangeManifest { org_slug, manifest }) => {
                check_labels(manifest, &active.slug, org_slug)?;
                if &active.manifest == manifest {
                    return Ok(vec![]);
                }
                Ok(vec![WorkspaceEvent::ManifestChanged { manifest: manifest.clone() }])
            }
            (Self::Active(active), WorkspaceCommand::ChangeAccessMode { access_mode }) => {
                if active.access_mode == *access_mode {
                    return Ok(vec![]);
                }
                Ok(vec![WorkspaceEvent::AccessModeChanged { access_mode: *access_mode }])
            }
            (Self::Active(_), WorkspaceCommand::Archive) => Ok(vec![WorkspaceEvent::Archived]),
            (Self::Archived { .. }, WorkspaceCommand::Archive) => Ok(vec![]),
            (Self::Active(_) | Self::Archived { .. }, WorkspaceCommand::RecordRevocation { receipt }) => {
                Ok(vec![WorkspaceEvent::RevocationRecorded { receipt: receipt.clone() }])
            }
            (
                Self::Archived { .. },
                WorkspaceCommand::ChangeManifest { .. } | WorkspaceCommand::ChangeAccessMode { .. },
            ) => Err(WorkspaceRefusal::Archived),
            (
                Self::Unknown,
                WorkspaceCommand::ChangeManifest { .. }
                | WorkspaceCommand::ChangeAccessMode { .. }
                | WorkspaceCommand::Archive
                | WorkspaceCommand::RecordRevocation { .. },
            ) => Err(WorkspaceRefusal::Unknown),
        }
    }

    fn evolve(state: Self, event: &WorkspaceEvent) -> Self {
        match (state, event) {
            (_, WorkspaceEvent::Created { workspace, project, slug, branch, manifest, access_mode }) => {
                Self::Active(ActiveWorkspace {
                    workspace: *workspace,
                    project: *project,
                    slug: slug.clone(),
                    branch: branch.clone(),
                    manifest: manifest.clone(),
                    access_mode: *access_mode,
                })
            }
            (Self::Active(active), WorkspaceEvent::ManifestChanged { manifest }) => {
                Self::Active(ActiveWorkspace { manifest: manifest.clone(), ..active })
            }
            (Self::Active(active), WorkspaceEvent::AccessModeChanged { access_mode }) => {
                Self::Active(ActiveWorkspace { access_mode: *access_mode, ..active })
            }
            (Self::Active(active), WorkspaceEvent::Archived) => {
                Self::Archived { workspace: active.workspace, project: active.project, slug: active.slug }
            }
            (state, WorkspaceEvent::RevocationRecorded { .. }) => state,
            (
                state @ (Self::Unknown | Self::Archived { .. }),
                WorkspaceEvent::ManifestChanged { .. }
                | WorkspaceEvent::AccessModeChanged { .. }
                | WorkspaceEvent::Archived,
            ) => state,
        }
    }

    fn event_of(event: &Event) -> Option<&WorkspaceEvent> {
        if let Event::Workspace(event) = event { Some(event) } else { None }
    }

    fn action_of(command: &WorkspaceCommand) -> Action {
        match command {
            WorkspaceCommand::Create { .. } => Action::WorkspaceCreate,
            WorkspaceCommand::ChangeManifest { .. } => Action::WorkspaceChangeManifest,
            WorkspaceCommand::ChangeAccessMode { .. } => Action::WorkspaceChangeAccessMode,
            WorkspaceCommand::Archive => Action::WorkspaceArchive,
            WorkspaceCommand::RecordRevocation { .. } => Action::RevocationRecord,
        }
    }
}

impl From<WorkspaceEvent> for Event {
    fn from(event: WorkspaceEvent) -> Self {
        Self::Workspace(event)
    }
}
