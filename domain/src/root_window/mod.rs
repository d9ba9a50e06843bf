//! Root windows: each exception from "no root", from its request over its one command to its closeout.
//!
//! Somebody asks with a reason for a workspace and a length; somebody else approves, who does not owe it to them that they can
//! (`provenance`); the window opens with its first use and ends by itself. Break-glass opens at once and is reviewed by somebody else. A window's time is held against clock and
//! policy whenever somebody asks: the events close it in the log. Not here: running and ending the command (runtime).

mod decide;
mod image_change;
mod refusal;

pub use refusal::RootWindowRefusal;

use crate::access::Action;
use crate::aggregate::Aggregate;
use crate::commit::{Actor, StreamKind};
use crate::event::Event;
use crate::ids::{ProjectId, RootWindowId, UserId, WorkspaceId};
use crate::organization::OrganizationPolicy;
use crate::provenance::Independence;
use crate::runtime::Epoch;
use crate::time::{Millis, UnixMillis};

/// What an organization allows of root, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RootPolicy {
    Disabled,
    /// Owners and admins open windows in an emergency, each of which somebody else reviews.
    BreakGlass,
    /// And whoever may ask gets windows that somebody else has approved.
    WorkspaceElevation,
}

impl RootPolicy {
    pub const ALL: [Self; 3] = [Self::Disabled, Self::BreakGlass, Self::WorkspaceElevation];

    pub const fn token(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::BreakGlass => "break_glass",
            Self::WorkspaceElevation => "workspace_elevation",
        }
    }

    pub fn from_token(token: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|policy| policy.token() == token)
    }

    pub const fn allows(self, mode: RootMode) -> bool {
        match mode {
            RootMode::Elevation => matches!(self, Self::WorkspaceElevation),
            RootMode::BreakGlass => !matches!(self, Self::Disabled),
        }
    }
}

/// How a window comes to be. Either way it is for one command, or one shell at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RootMode {
    Elevation,
    BreakGlass,
}

impl RootMode {
    pub const fn token(self) -> &'static str {
        match self {
            Self::Elevation => "elevation",
            Self::BreakGlass => "break_glass",
        }
    }

    /// What the requester must be permitted, when they ask and for as long as the window stands.
    pub const fn ground(self) -> Action {
        match self {
            Self::Elevation => Action::RootRequest,
            Self::BreakGlass => Action::RootBreakGlass,
        }
    }
}

impl RootEnded {
    /// Whether a shell was taken from its person, or never came to them, who may come back for as long as the window is open: their
    /// connection, the way to the host, or its process, was gone. One that they left themselves is over, and its window with it.
    pub const fn missed_its_person(&self) -> bool {
        match self.outcome {
            RootOutcome::Signalled => matches!(self.code, Some(HANG_UP)),
            RootOutcome::Lost | RootOutcome::HostStopped | RootOutcome::NotStarted => true,
            RootOutcome::Exited
            | RootOutcome::Deadline
            | RootOutcome::Revoked
            | RootOutcome::Withdrawn
            | RootOutcome::RightLost
            | RootOutcome::RuntimeGone
            | RootOutcome::NoRoot => false,
        }
    }
}

/// The signal by which a shell ends whose person is gone.
pub const HANG_UP: u32 = 1;

/// What a window is for. Whoever decides on a request sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RootAccess {
    /// One command, whose words stand in the log.
    Command,
    /// One shell on a terminal. What is typed there stands nowhere.
    Shell,
}

impl RootAccess {
    pub const ALL: [Self; 2] = [Self::Command, Self::Shell];

    pub const fn token(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Shell => "shell",
        }
    }

    pub fn from_token(token: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|access| access.token() == token)
    }
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RootOutcome {
    /// By itself, with a status.
    Exited,
    /// By a signal that EnvForge did not send.
    Signalled,
    /// Killed: the window was over.
    Deadline,
    Revoked,
    Withdrawn,
    /// Killed: the requester may no more, or the policy does not allow it any more.
    RightLost,
    /// Killed: the runtime went to sleep or was lost.
    RuntimeGone,
    /// Killed: EnvForge's process on the host ended.
    HostStopped,
    /// Never started: EnvForge is not root on this host.
    NoRoot,
    /// Never started, for another reason of the host's.
    NotStarted,
    /// Nobody knows: the host's process died meanwhile, and with it all that ran.
    Lost,
}

impl RootOutcome {
    pub const ALL: [Self; 11] = [
        Self::Exited,
        Self::Signalled,
        Self::Deadline,
        Self::Revoked,
        Self::Withdrawn,
        Self::RightLost,
        Self::RuntimeGone,
        Self::HostStopped,
        Self::NoRoot,
        Self::NotStarted,
        Self::Lost,
    ];

    pub const fn token(self) -> &'static str {
        match self {
            Self::Exited => "exited",
            Self::Signalled => "signalled",
            Self::Deadline => "deadline",
            Self::Revoked => "revoked",
            Self::Withdrawn => "withdrawn",
            Self::RightLost => "right_lost",
            Self::RuntimeGone => "runtime_gone",
            Self::HostStopped => "host_stopped",
            Self::NoRoot => "no_root",
            Self::NotStarted => "not_started",
            Self::Lost => "lost",
        }
    }

    pub fn from_token(token: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.token() == token)
    }
}

/// What is asked for, as everybody later reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootTerms {
    pub window: RootWindowId,
    pub project: ProjectId,
    pub workspace: WorkspaceId,
    pub requester: UserId,
    pub mode: RootMode,
    pub access: RootAccess,
    pub reason: String,
    pub length: Millis,
    pub requested_at: UnixMillis,
}

/// The one command of a window, or one of its shells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootCommand {
    /// The program and its arguments. They stand in the log: no place for secrets. None of a shell.
    pub words: Vec<String>,
    /// The wake of the runtime on whose host it is to run.
    pub epoch: Epoch,
    pub asked_at: UnixMillis,
    /// When its host took it. Nobody takes it a second time.
    pub started_at: Option<UnixMillis>,
    pub ended: Option<RootEnded>,
}

/// How and when a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootEnded {
    pub outcome: RootOutcome,
    /// The exit status, or the signal's number.
    pub code: Option<u32>,
    pub at: UnixMillis,
    /// `None` where nothing ran, or nobody knows.
    pub changes: Option<RootChanges>,
}

/// What changed on the host while a command ran, whoever changed it. Names alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RootChanges {
    pub packages: Vec<PackageChange>,
    pub files: Vec<FileChange>,
    /// There was more, or not everything could be looked at.
    pub incomplete: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackageChange {
    pub name: String,
    /// The versions; `None` where it was not installed.
    pub before: Option<String>,
    pub after: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileChange {
    pub path: String,
    pub kind: FileChangeKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileChangeKind {
    Added,
    Removed,
    Changed,
}

impl FileChangeKind {
    pub const fn token(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Removed => "removed",
            Self::Changed => "changed",
        }
    }
}

/// What an auditor reads of a window in one place. A command that its host could not speak of yet has no end here; its end
/// follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootCloseout {
    pub requester: UserId,
    /// `None` for break-glass.
    pub approver: Option<UserId>,
    pub mode: RootMode,
    pub access: RootAccess,
    pub opened_at: UnixMillis,
    pub closed_at: UnixMillis,
    /// None or one; of a window for a shell each that its person was given.
    pub commands: Vec<RootCommand>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootWindowEvent {
    Requested {
        terms: RootTerms,
        expires_at: UnixMillis,
    },
    Approved {
        approver: UserId,
        at: UnixMillis,
        use_until: UnixMillis,
    },
    Denied {
        by: UserId,
        reason: Option<String>,
    },
    Withdrawn,
    Revoked {
        by: UserId,
        reason: Option<String>,
    },
    /// Nobody answered in time, or nobody used it.
    Expired,
    Opened {
        at: UnixMillis,
        ends_at: UnixMillis,
    },
    CommandAsked {
        words: Vec<String>,
        epoch: Epoch,
        at: UnixMillis,
    },
    CommandStarted {
        at: UnixMillis,
    },
    CommandEnded {
        ended: RootEnded,
    },
    Closed {
        closeout: RootCloseout,
    },
    Reviewed {
        reviewer: UserId,
        justified: bool,
        note: String,
    },
}

/// What the organization allows: looked-up facts that ride in the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootLimits {
    pub policy: RootPolicy,
    pub length_max: Millis,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootWindowCommand {
    /// Break-glass opens with it.
    Request {
        by: Actor,
        window: RootWindowId,
        project: ProjectId,
        workspace: WorkspaceId,
        mode: RootMode,
        access: RootAccess,
        reason: String,
        length: Millis,
        /// Requests of theirs for this workspace that wait for an answer already.
        pending: usize,
        limits: RootLimits,
        now: UnixMillis,
    },
    Approve {
        by: Actor,
        /// Of the requester, as the log has it.
        independence: Independence,
        limits: RootLimits,
        now: UnixMillis,
    },
    Deny {
        by: Actor,
        reason: Option<String>,
        now: UnixMillis,
    },
    /// By the requester, at any time before its end.
    Withdraw {
        by: Actor,
        now: UnixMillis,
    },
    Revoke {
        by: Actor,
        reason: Option<String>,
        now: UnixMillis,
    },
    Run {
        by: Actor,
        /// None for a shell.
        words: Vec<String>,
        /// The wake that is ready now; `None` where the runtime is not.
        epoch: Option<Epoch>,
        limits: RootLimits,
        now: UnixMillis,
    },
    /// The host takes the command. Refused to whoever comes second.
    ReportStarted {
        now: UnixMillis,
    },
    ReportEnded {
        ended: RootEnded,
    },
    /// Refused before its time.
    Expire {
        now: UnixMillis,
    },
    Review {
        by: Actor,
        independence: Independence,
        justified: bool,
        note: String,
        now: UnixMillis,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RootWindow {
    #[default]
    Unknown,
    Requested {
        terms: RootTerms,
        expires_at: UnixMillis,
    },
    Approved {
        terms: RootTerms,
        approver: UserId,
        use_until: UnixMillis,
    },
    Open(OpenWindow),
    Over(OverWindow),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenWindow {
    pub terms: RootTerms,
    pub approver: Option<UserId>,
    pub opened_at: UnixMillis,
    pub ends_at: UnixMillis,
    /// Shells that were lost before, the oldest first.
    pub before: Vec<RootCommand>,
    pub command: Option<RootCommand>,
    /// Said in the same commit as its end.
    pub ended_by: Option<RootOver>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverWindow {
    pub terms: RootTerms,
    pub approver: Option<UserId>,
    pub over: RootOver,
    /// When it opened, where it ever did, and when it was closed.
    pub open: Option<(UnixMillis, UnixMillis)>,
    /// Shells that were lost before, the oldest first.
    pub before: Vec<RootCommand>,
    pub command: Option<RootCommand>,
    /// Who reviewed it and whether they found it justified.
    pub reviewed: Option<(UserId, bool)>,
}

impl OpenWindow {
    const fn new(terms: RootTerms, approver: Option<UserId>, opened_at: UnixMillis, ends_at: UnixMillis) -> Self {
        Self { terms, approver, opened_at, ends_at, before: Vec::new(), command: None, ended_by: None }
    }
}

/// How a window came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootOver {
    Denied,
    Withdrawn,
    Revoked,
    Expired,
    Closed,
}

/// What a window is at, for lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RootPhase {
    Requested,
    Approved,
    Open,
    Denied,
    Withdrawn,
    Revoked,
    Expired,
    Closed,
    ReviewPending,
    Reviewed,
}

impl RootPhase {
    pub const ALL: [Self; 10] = [
        Self::Requested,
        Self::Approved,
        Self::Open,
        Self::Denied,
        Self::Withdrawn,
        Self::Revoked,
        Self::Expired,
        Self::Closed,
        Self::ReviewPending,
        Self::Reviewed,
    ];

    pub const fn token(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Approved => "approved",
            Self::Open => "open",
            Self::Denied => "denied",
            Self::Withdrawn => "withdrawn",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
            Self::Closed => "closed",
            Self::ReviewPending => "review_pending",
            Self::Reviewed => "reviewed",
        }
    }

    pub fn from_token(token: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.token() == token)
    }
}

impl RootWindow {
    pub const fn terms(&self) -> Option<&RootTerms> {
        match self {
            Self::Unknown => None,
            Self::Requested { terms, .. } | Self::Approved { terms, .. } => Some(terms),
            Self::Open(open) => Some(&open.terms),
            Self::Over(over) => Some(&over.terms),
        }
    }

    pub const fn command(&self) -> Option<&RootCommand> {
        match self {
            Self::Open(open) => open.command.as_ref(),
            Self::Over(over) => over.command.as_ref(),
            Self::Unknown | Self::Requested { .. } | Self::Approved { .. } => None,
        }
    }

    /// When what it is at now is over by itself, held against the organization's policy; `None` once it is over for good.
    pub fn ends_at(&self, policy: &OrganizationPolicy) -> Option<UnixMillis> {
        let allowed = |terms: &RootTerms, end: UnixMillis| {
            if policy.root.allows(terms.mode) { end } else { UnixMillis::EPOCH }
        };
        match self {
            Self::Unknown | Self::Over(_) => None,
            Self::Requested { terms, expires_at } => Some(allowed(terms, *expires_at)),
            Self::Approved { terms, use_until, .. } => Some(allowed(terms, *use_until)),
            Self::Open(open) => {
                Some(allowed(&open.terms, open.ends_at.min(open.opened_at.plus(policy.root_window_max))))
            }
        }
    }

    /// Its end holds from the instant on, whether or not the closing event is there yet.
    pub fn phase(&self, now: UnixMillis) -> Option<RootPhase> {
        Some(match self {
            Self::Unknown => return None,
            Self::Requested { expires_at, .. } if now < *expires_at => RootPhase::Requested,
            Self::Approved { use_until, .. } if now < *use_until => RootPhase::Approved,
            Self::Requested { .. } | Self::Approved { .. } => RootPhase::Expired,
            Self::Open(_) => RootPhase::Open,
            Self::Over(over) => match (over.over, over.terms.mode, over.reviewed) {
                (_, RootMode::BreakGlass, Some(_)) => RootPhase::Reviewed,
                (_, RootMode::BreakGlass, None) => RootPhase::ReviewPending,
                (RootOver::Denied, RootMode::Elevation, _) => RootPhase::Denied,
                (RootOver::Withdrawn, RootMode::Elevation, _) => RootPhase::Withdrawn,
                (RootOver::Revoked, RootMode::Elevation, _) => RootPhase::Revoked,
                (RootOver::Expired, RootMode::Elevation, _) => RootPhase::Expired,
                (RootOver::Closed, RootMode::Elevation, _) => RootPhase::Closed,
            },
        })
    }
}

impl Aggregate for RootWindow {
    const KIND: StreamKind = StreamKind::RootWindow;
    type State = Self;
    type Command = RootWindowCommand;
    type Event = RootWindowEvent;
    type Refusal = RootWindowRefusal;

    fn decide(state: &Self, command: &RootWindowCommand) -> Result<Vec<RootWindowEvent>, RootWindowRefusal> {
        match state {
            Self::Unknown => decide::unknown(command),
            Self::Requested { terms, expires_at } => decide::requested(terms, *expires_at, command),
            Self::Approved { terms, use_until, .. } => decide::approved(terms, *use_until, command),
            Self::Open(open) => decide::open(open, command),
            Self::Over(over) => decide::over(over, command),
        }
    }

    fn evolve(state: Self, event: &RootWindowEvent) -> Self {
        let over = |terms, approver, over| {
            let (before, command) = (Vec::new(), None);
            Self::Over(OverWindow { terms, approver, over, open: None, before, command, reviewed: None })
        };
        match (state, event) {
            (_, RootWindowEvent::Requested { terms, expires_at }) => {
                Self::Requested { terms: terms.clone(), expires_at: *expires_at }
            }
            (Self::Requested { terms, .. }, RootWindowEvent::Approved { approver, use_until, .. }) => {
                Self::Approved { terms, approver: *approver, use_until: *use_until }
            }
            (Self::Requested { terms, .. }, RootWindowEvent::Denied { .. }) => over(terms, None, RootOver::Denied),
            (Self::Requested { terms, .. }, RootWindowEvent::Withdrawn) => over(terms, None, RootOver::Withdrawn),
            (Self::Requested { terms, .. }, RootWindowEvent::Revoked { .. }) => over(terms, None, RootOver::Revoked),
            (Self::Requested { terms, .. }, RootWindowEvent::Expired) => over(terms, None, RootOver::Expired),
            // Break-glass.
            (Self::Requested { terms, .. }, RootWindowEvent::Opened { at, ends_at }) => {
                Self::Open(OpenWindow::new(terms, None, *at, *ends_at))
            }
            (Self::Approved { terms, approver, .. }, RootWindowEvent::Withdrawn) => {
                over(terms, Some(approver), RootOver::Withdrawn)
            }
            (Self::Approved { terms, approver, .. }, RootWindowEvent::Revoked { .. }) => {
                over(terms, Some(approver), RootOver::Revoked)
            }
            (Self::Approved { terms, approver, .. }, RootWindowEvent::Expired) => {
                over(terms, Some(approver), RootOver::Expired)
            }
            (Self::Approved { terms, approver, .. }, RootWindowEvent::Opened { at, ends_at }) => {
                Self::Open(OpenWindow::new(terms, Some(approver), *at, *ends_at))
            }
            (Self::Open(open), event) => evolve_open(open, event),
            (Self::Over(mut over), RootWindowEvent::CommandEnded { ended }) => {
                if let Some(command) = &mut over.command {
                    command.ended = Some(ended.clone());
                }
                Self::Over(over)
            }
            (Self::Over(mut over), RootWindowEvent::Reviewed { reviewer, justified, .. }) => {
                over.reviewed = Some((*reviewer, *justified));
                Self::Over(over)
            }
            (
                state @ (Self::Unknown | Self::Requested { .. } | Self::Approved { .. } | Self::Over(_)),
                RootWindowEvent::Approved { .. }
                | RootWindowEvent::Denied { .. }
                | RootWindowEvent::Withdrawn
                | RootWindowEvent::Revoked { .. }
                | RootWindowEvent::Expired
                | RootWindowEvent::Opened { .. }
                | RootWindowEvent::CommandAsked { .. }
                | RootWindowEvent::CommandStarted { .. }
                | RootWindowEvent::CommandEnded { .. }
                | RootWindowEvent::Closed { .. }
                | RootWindowEvent::Reviewed { .. },
            ) => state,
        }
    }

    fn event_of(event: &Event) -> Option<&RootWindowEvent> {
        if let Event::RootWindow(event) = event { Some(event) } else { None }
    }

    fn action_of(command: &RootWindowCommand) -> Action {
        match command {
            RootWindowCommand::Request { mode, .. } => mode.ground(),
            RootWindowCommand::Approve { .. } => Action::RootApprove,
            RootWindowCommand::Deny { .. } => Action::RootDeny,
            RootWindowCommand::Withdraw { .. } => Action::RootWithdraw,
            RootWindowCommand::Revoke { .. } => Action::RootRevoke,
            RootWindowCommand::Run { .. } => Action::RootRun,
            RootWindowCommand::ReportStarted { .. } | RootWindowCommand::ReportEnded { .. } => Action::RootReport,
            RootWindowCommand::Expire { .. } => Action::RootExpire,
            RootWindowCommand::Review { .. } => Action::RootReview,
        }
    }
}

fn evolve_open(mut open: OpenWindow, event: &RootWindowEvent) -> RootWindow {
    match event {
        RootWindowEvent::Withdrawn => open.ended_by = Some(RootOver::Withdrawn),
        RootWindowEvent::Revoked { .. } => open.ended_by = Some(RootOver::Revoked),
        RootWindowEvent::CommandAsked { words, epoch, at } => {
            open.before.extend(open.command.take());
            open.command =
                Some(RootCommand { words: words.clone(), epoch: *epoch, asked_at: *at, started_at: None, ended: None });
        }
        RootWindowEvent::CommandStarted { at } => {
            if let Some(command) = &mut open.command {
                command.started_at = Some(*at);
            }
        }
        RootWindowEvent::CommandEnded { ended } => {
            if let Some(command) = &mut open.command {
                command.ended = Some(ended.clone());
            }
        }
        RootWindowEvent::Closed { closeout } => {
            return RootWindow::Over(OverWindow {
                terms: open.terms,
                approver: open.approver,
                over: open.ended_by.unwrap_or(RootOver::Closed),
                open: Some((open.opened_at, closeout.closed_at)),
                before: open.before,
                command: open.command,
                reviewed: None,
            });
        }
        RootWindowEvent::Requested { .. }
        | RootWindowEvent::Approved { .. }
        | RootWindowEvent::Denied { .. }
        | RootWindowEvent::Expired
        | RootWindowEvent::Opened { .. }
        | RootWindowEvent::Reviewed { .. } => {}
    }
    RootWindow::Open(open)
}

impl From<RootWindowEvent> for Event {
    fn from(event: RootWindowEvent) -> Self {
        Self::RootWindow(event)
    }
}
