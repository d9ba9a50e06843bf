//! Refused attempts, folded into counts before they reach the log so that an attacker cannot fill it.

use std::net::IpAddr;

use crate::access::Action;
use crate::aggregate::{Aggregate, Refusal, RefusalKind};
use crate::commit::{Actor, Position, StreamKind, Surface};
use crate::event::Event;
use crate::ids::CorrelationId;
use crate::time::UnixMillis;

/// One of the requests behind a count, by which the refusal can be explained afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefusedRequest {
    /// The id that its answer bore.
    pub request: CorrelationId,
    pub at: UnixMillis,
    /// The rights were those of this position.
    pub position: Position,
}

impl RefusedRequest {
    /// Puts it among those that are kept: the newest `max`, in the order of time, each once. `true` where there is one more
    /// than before.
    pub fn keep_in(self, kept: &mut Vec<Self>, max: usize) -> bool {
        if kept.iter().any(|known| known.request == self.request) {
            return false;
        }
        kept.push(self);
        kept.sort_by_key(|known| (known.at, known.request));
        let full = kept.len() > max;
        if full {
            kept.remove(0);
        }
        !full
    }
}

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
    /// Some of them, in the order of time: the newest ones that there was room for.
    pub requests: Vec<RefusedRequest>,
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
    #[error("a report names at most {max} requests, and {of_kind_max} of one kind")]
    TooManyRequests { max: usize, of_kind_max: usize },
}

/// Kinds of attempts in one report.
pub const REPORT_ATTEMPTS_MAX: usize = 100;
/// Requests that one report names.
pub const REPORT_REQUESTS_MAX: usize = 60;
/// Requests of one kind of attempts that are named.
pub const KIND_REQUESTS_MAX: usize = 3;

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
        let named = attempts.iter().map(|kind| kind.requests.len());
        if named.clone().sum::<usize>() > REPORT_REQUESTS_MAX || named.max() > Some(KIND_REQUESTS_MAX) {
            let (max, of_kind_max) = (REPORT_REQUESTS_MAX, KIND_REQUESTS_MAX);
            return Err(DenialRefusal::TooManyRequests { max, of_kind_max });
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
