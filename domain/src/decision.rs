//! Why a command of a person was allowed: what is written beside its events, in one append.
//!
//! Such a commit is what holds the command to its rights: it stands in the log only if the access stream that it guards
//! had not moved. Not here: the policy (`access`) and who puts commits together (commands).

use crate::access::Basis;
use crate::commit::{Position, Standing};
use crate::event::Event;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecisionEvent {
    /// The whole answer, in the stream of the person who asked. The commit around it says who, where and for which
    /// command.
    Recorded {
        /// The action's token.
        action: String,
        /// Displayed id of what it was about.
        resource: String,
        /// The line of the policy that allowed it.
        basis: Basis,
        /// The facts were those of this position.
        position: Position,
        /// The streams on which the rights rested. None of them had moved when this was appended.
        rests_on: Vec<Standing>,
    },
    /// Beside `Recorded`, for a further access stream: it had not moved either.
    Held { last: Position },
}

impl From<DecisionEvent> for Event {
    fn from(event: DecisionEvent) -> Self {
        Self::Decision(event)
    }
}
