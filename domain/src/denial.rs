//! Refused attempts, folded into counts before they reach the log so that an attacker cannot fill it.

use std::net::IpAddr;

use crate::access::Action;
use crate::aggregate::{Aggregate, Refusal, RefusalKind};
use crate::commit::{Actor, StreamKind, Surface};
use crate::event::Event;
use crate::time::UnixMillis;

/// Equal attempts within one reporting window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeniedAttempts {
    pub actor: Actor,
    /// About whom it was asked, where somebody asked about another: nothing was attempted then.
    pub about: Option<Actor>,
    /// The action's token, or `authenticate` where nobody got as far as an action.
    pub action: String,
    pub surface: Surface,
    /// Displayed id of what it was about, where known.
    pub resource: Option<String>,
    /// Where they came from, for attempts to sign in: the only trace of whoever never did.
    pub address: Option<IpAddr>,
    /// The denial's code.
    pub code: String,
    pub count: u32,
    pub first_at: UnixMillis,
    pub last_at: UnixMillis,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DenialEvent {
    Recorded { attempts: Vec<DeniedAttempts> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DenialCommand {
    Record { attempts: Vec<DeniedAttempts> },
}

/// Denials have no state: each report stands alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Denials;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DenialRefusal {
    #[error("a report holds at most {max} kinds of attempts, this one {found}")]
    TooMany { found: usize, max: usize },
}

/// Kinds of attempts in one report.
pub const REPORT_ATTEMPTS_MAX: usize = 100;

impl Refusal for DenialRefusal {
    fn code(&self) -> &'static str {
        "denial_report_too_large"
    }

    fn kind(&self) -> RefusalKind {
        RefusalKind::Invalid
    }
}

impl Aggregate for Denials {
    const KIND: StreamKind = StreamKind::Denial;
    type State = Self;
    type Command = DenialCommand;
    type Event = DenialEvent;
    type Refusal = DenialRefusal;

    fn decide(_state: &Self, command: &DenialCommand) -> Result<Vec<DenialEvent>, DenialRefusal> {
        let DenialCommand::Record { attempts } = command;
        if attempts.len() > REPORT_ATTEMPTS_MAX {
            return Err(DenialRefusal::TooMany { found: attempts.len(), max: REPORT_ATTEMPTS_MAX });
        }
        Ok(if attempts.is_empty() { vec![] } else { vec![DenialEvent::Recorded { attempts: attempts.clone() }] })
    }

    fn evolve(state: Self, _event: &DenialEvent) -> Self {
        state
    }

    fn event_of(event: &Event) -> Option<&DenialEvent> {
        if let Event::Denial(event) = event { Some(event) } else { None }
    }

    fn action_of(_command: &DenialCommand) -> Action {
        Action::DenialRecord
    }
}

impl From<DenialEvent> for Event {
    fn from(event: DenialEvent) -> Self {
        Self::Denial(event)
    }
}
