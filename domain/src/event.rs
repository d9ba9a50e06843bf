//! Every event of every aggregate, under one type. Each aggregate's file owns its own events.
//!
//! Not here: how events are stored (eventlog's schemas), which is frozen where these types may still change.

use crate::claim::ClaimEvent;
use crate::commit::StreamKind;
use crate::decision::DecisionEvent;
use crate::denial::DenialEvent;
use crate::dev_link::DevLinkEvent;
use crate::host::HostEvent;
use crate::job_run::JobRunEvent;
use crate::machine::MachineEvent;
use crate::organization::OrganizationEvent;
use crate::project::ProjectEvent;
use crate::root_window::RootWindowEvent;
use crate::runtime::RuntimeEvent;
use crate::secrets::SecretsEvent;
use crate::service_token::ServiceTokenEvent;
use crate::shell::ShellEvent;
use crate::user::UserEvent;
use crate::workspace::WorkspaceEvent;

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Organization(OrganizationEvent),
    User(UserEvent),
    Project(ProjectEvent),
    Workspace(WorkspaceEvent),
    Runtime(RuntimeEvent),
    Host(HostEvent),
    DevLink(DevLinkEvent),
    Claim(ClaimEvent),
    Denial(DenialEvent),
    Decision(DecisionEvent),
    ServiceToken(ServiceTokenEvent),
    RootWindow(RootWindowEvent),
    Secrets(SecretsEvent),
    Shell(ShellEvent),
    JobRun(JobRunEvent),
    Machine(MachineEvent),
}

/// Who may read an event through the event API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visibility {
    /// Customers' auditors.
    Organization,
    /// Names hosts or ports, which never reach a developer's or reviewer's screen (SPEC, rule 7).
    Operator,
}

impl Event {
    /// The only kind of stream in which this event may stand.
    pub const fn stream_kind(&self) -> StreamKind {
        match self {
            Self::Organization(_) => StreamKind::Organization,
            Self::User(_) => StreamKind::User,
            Self::Project(_) => StreamKind::Project,
            Self::Workspace(_) => StreamKind::Workspace,
            Self::Runtime(_) => StreamKind::Runtime,
            Self::Host(_) => StreamKind::Host,
            Self::DevLink(_) => StreamKind::DevLink,
            Self::Claim(_) => StreamKind::Claim,
            Self::Denial(_) => StreamKind::Denial,
            Self::Decision(_) => StreamKind::Decision,
            Self::ServiceToken(_) => StreamKind::ServiceTokens,
            Self::RootWindow(_) => StreamKind::RootWindow,
            Self::Secrets(_) => StreamKind::Secrets,
            Self::Shell(_) => StreamKind::Shell,
            Self::JobRun(_) => StreamKind::JobRun,
            Self::Machine(_) => StreamKind::Machine,
        }
    }

    /// Whether it may take away what a gateway lets in. Holds of whatever does.
    pub const fn may_withdraw(&self) -> bool {
        match self {
            Self::Organization(event) => match event {
                OrganizationEvent::MemberRemoved { .. }
                | OrganizationEvent::RoleRevoked { .. }
                // With an end, it may take the place of one without.
                | OrganizationEvent::RoleAssigned { .. }
                | OrganizationEvent::PolicyChanged { .. }
                | OrganizationEvent::TeamDeleted { .. }
                | OrganizationEvent::TeamMemberRemoved { .. } => true,
                OrganizationEvent::Created { .. }
                | OrganizationEvent::MemberAdded { .. }
                | OrganizationEvent::OwnerRecovered { .. }
                | OrganizationEvent::TeamCreated { .. }
                | OrganizationEvent::TeamRenamed { .. }
                | OrganizationEvent::TeamMemberAdded { .. }
                | OrganizationEvent::RevocationRecorded { .. } => false,
            },
            Self::User(event) => match event {
                UserEvent::Deactivated | UserEvent::SessionEnded { .. } | UserEvent::PasswordChanged => true,
                UserEvent::Invited { .. }
                | UserEvent::InvitationRevoked
                | UserEvent::InvitationAccepted
                | UserEvent::Created { .. }
                | UserEvent::ProfileChanged { .. }
                | UserEvent::Reactivated
                | UserEvent::SessionOpened { .. }
                | UserEvent::Reauthenticated { .. }
                | UserEvent::WorkspaceOpened { .. }
                | UserEvent::RevocationRecorded { .. } => false,
            },
            Self::Workspace(event) => match event {
                WorkspaceEvent::ManifestChanged { .. }
                | WorkspaceEvent::AccessModeChanged { .. }
                | WorkspaceEvent::Archived => true,
                WorkspaceEvent::Created { .. } | WorkspaceEvent::RevocationRecorded { .. } => false,
            },
            Self::DevLink(event) => match event {
                DevLinkEvent::AllowlistChanged { .. }
                | DevLinkEvent::Rotated { .. }
                | DevLinkEvent::Expired
                | DevLinkEvent::Revoked { .. } => true,
                DevLinkEvent::Issued { .. }
                | DevLinkEvent::FirstUsed { .. }
                | DevLinkEvent::SessionOpened { .. }
                | DevLinkEvent::WakeSpent { .. }
                | DevLinkEvent::AttemptsBlocked { .. }
                | DevLinkEvent::RevocationRecorded { .. } => false,
            },
            // No gateway takes service tokens or knows of root and shells, and none lets anybody in by what the others say.
            Self::ServiceToken(_)
            | Self::RootWindow(_)
            | Self::Shell(_)
            | Self::JobRun(_)
            | Self::Project(_)
            | Self::Runtime(_)
            | Self::Host(_)
            | Self::Machine(_)
            | Self::Claim(_)
            | Self::Denial(_)
            | Self::Decision(_)
            | Self::Secrets(_) => false,
        }
    }

    pub const fn visibility(&self) -> Visibility {
        match self {
            Self::Runtime(RuntimeEvent::EndpointsBound { .. } | RuntimeEvent::HostChosen { .. })
            | Self::Host(_)
            | Self::Machine(_) => Visibility::Operator,
            Self::Runtime(_)
            | Self::Organization(_)
            | Self::User(_)
            | Self::Project(_)
            | Self::Workspace(_)
            | Self::DevLink(_)
            | Self::Claim(_)
            | Self::Denial(_)
            | Self::Decision(_)
            | Self::ServiceToken(_)
            | Self::RootWindow(_)
            | Self::Shell(_)
            | Self::JobRun(_)
            | Self::Secrets(_) => Visibility::Organization,
        }
    }
}
