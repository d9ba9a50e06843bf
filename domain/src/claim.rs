//! Claims: names and machines that only one holder may have, over all streams.
//!
//! A claim is a stream of its own, appended in one atomic batch with the event that needs it. A retired claim is never
//! taken again: a reused slug would inherit the cookies and service workers of the former workspace.

use crate::access::Action;
use crate::aggregate::{Aggregate, Refusal, RefusalKind};
use crate::commit::{InvalidStreamKey, StreamId, StreamKind};
use crate::event::Event;
use crate::ids::OrgId;
use crate::slug::{OrgSlug, ProjectSlug, WorkspaceSlug};

/// What is claimed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ClaimKey {
    OrgSlug(OrgSlug),
    ProjectSlug(OrgId, ProjectSlug),
    WorkspaceSlug(OrgId, WorkspaceSlug),
    /// A machine, by the provider's own key (`local-<machine id>`, an instance id): one organization per VM.
    Machine(String),
    /// The one break-glass window of an organization that nobody has reviewed yet.
    BreakGlass(OrgId),
}

impl ClaimKey {
    pub fn stream(&self) -> Result<StreamId, InvalidStreamKey> {
        let (org, key) = match self {
            Self::OrgSlug(slug) => (OrgId::SYSTEM, format!("orgslug_{slug}")),
            Self::ProjectSlug(org, slug) => (*org, format!("prjslug_{slug}")),
            Self::WorkspaceSlug(org, slug) => (*org, format!("wspslug_{slug}")),
            Self::Machine(machine) => (OrgId::SYSTEM, format!("machine_{machine}")),
            Self::BreakGlass(org) => (*org, "breakglass".to_owned()),
        };
        StreamId::new(org, StreamKind::Claim, &key)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimEvent {
    /// `holder` is the displayed id of who has it now.
    Taken { holder: String },
    /// Nobody gets it again.
    Retired { holder: String },
    /// The next may have it.
    Released { holder: String },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimCommand {
    /// `for_action` is the action that needs the claim; a claim is never taken for its own sake.
    Take {
        holder: String,
        for_action: Action,
    },
    Retire {
        holder: String,
        for_action: Action,
    },
    /// For what is held for a time, as a break-glass window is until its review. Names are retired instead.
    Release {
        holder: String,
        for_action: Action,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Claim {
    #[default]
    Free,
    Held {
        holder: String,
    },
    Retired {
        holder: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimRefusal {
    #[error("this name is taken already; choose another")]
    Taken { holder: String },
    #[error("this name was used before and is retired: choose one that was never used")]
    Retired,
    #[error("this name is not held by the one who retires it")]
    NotHeld,
}

impl Refusal for ClaimRefusal {
    fn code(&self) -> &'static str {
        match self {
            Self::Taken { .. } => "name_taken",
            Self::Retired => "name_retired",
            Self::NotHeld => "name_not_held",
        }
    }

    fn kind(&self) -> RefusalKind {
        RefusalKind::Conflict
    }
}

impl Aggregate for Claim {
    const KIND: StreamKind = StreamKind::Claim;
    type State = Self;
    type Command = ClaimCommand;
    type Event = ClaimEvent;
    type Refusal = ClaimRefusal;

    fn decide(state: &Self, command: &ClaimCommand) -> Result<Vec<ClaimEvent>, ClaimRefusal> {
        match (state, command) {
            (Self::Free, ClaimCommand::Take { holder, .. }) => Ok(vec![ClaimEvent::Taken { holder: holder.clone() }]),
            (Self::Held { holder: held }, ClaimCommand::Take { holder, .. }) if held == holder => Ok(vec![]),
            (Self::Held { holder }, ClaimCommand::Take { .. }) => Err(ClaimRefusal::Taken { holder: holder.clone() }),
            (Self::Retired { .. }, ClaimCommand::Take { .. }) => Err(ClaimRefusal::Retired),
            (Self::Held { holder: held }, ClaimCommand::Retire { holder, .. }) if held == holder => {
                Ok(vec![ClaimEvent::Retired { holder: holder.clone() }])
            }
            (Self::Retired { holder: held }, ClaimCommand::Retire { holder, .. }) if held == holder => Ok(vec![]),
            (Self::Held { holder: held }, ClaimCommand::Release { holder, .. }) if held == holder => {
                Ok(vec![ClaimEvent::Released { holder: holder.clone() }])
            }
            (Self::Free, ClaimCommand::Release { .. }) => Ok(vec![]),
            (Self::Held { .. } | Self::Retired { .. }, ClaimCommand::Release { .. })
            | (Self::Free | Self::Held { .. } | Self::Retired { .. }, ClaimCommand::Retire { .. }) => {
                Err(ClaimRefusal::NotHeld)
            }
        }
    }

    fn evolve(_state: Self, event: &ClaimEvent) -> Self {
        match event {
            ClaimEvent::Taken { holder } => Self::Held { holder: holder.clone() },
            ClaimEvent::Retired { holder } => Self::Retired { holder: holder.clone() },
            ClaimEvent::Released { .. } => Self::Free,
        }
    }

    fn event_of(event: &Event) -> Option<&ClaimEvent> {
        if let Event::Claim(event) = event { Some(event) } else { None }
    }

    fn action_of(command: &ClaimCommand) -> Action {
        match command {
            ClaimCommand::Take { for_action, .. }
            | ClaimCommand::Retire { for_action, .. }
            | ClaimCommand::Release { for_action, .. } => *for_action,
        }
    }
}

impl From<ClaimEvent> for Event {
    fn from(event: ClaimEvent) -> Self {
        Self::Claim(event)
    }
}
