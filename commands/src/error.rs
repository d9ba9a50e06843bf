//! Why a command was not carried out.

use envforge_domain::access::Action;
use envforge_domain::aggregate::Refusal;
use envforge_domain::commit::StreamId;
use envforge_eventlog::{AppendError, LogError};

#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The domain said no, expected and by name.
    #[error("{0}")]
    Refused(Box<dyn Refusal>),
    /// A bug, never a client's mistake: the permit at hand allows something else.
    #[error("the permit is for `{}` and does not cover {stream} with `{}`", .permitted.token(), .needed.token())]
    PermitMismatch { permitted: Action, needed: Action, stream: StreamId },
    /// A bug as well: nobody could say later whether the right still stood. Such permits are for looking, not for acting.
    #[error("the permit for `{}` names no streams that its rights rest on", .permitted.token())]
    PermitRestsOnNothing { permitted: Action },
    /// The rights behind the permit have moved since it was given; nothing was done. Ask the policy again: it may still say
    /// yes.
    #[error("what {stream} says about your rights has changed meanwhile")]
    RightsMoved { stream: StreamId },
    /// The command id (an idempotency key) was used for another request.
    #[error("this idempotency key was used for another request")]
    CommandReused,
    /// Others kept winning on this stream; trying again later helps.
    #[error("too many changes to the same thing at once; try again")]
    Contended,
    /// Whether it happened is unknown; repeating the same request is safe.
    #[error("the event log did not answer in time; repeating the same request is safe")]
    Unknown,
    #[error("the commit is too large or malformed: {0}")]
    Unappendable(AppendError),
    #[error(transparent)]
    Log(#[from] LogError),
}

impl CommandError {
    pub(crate) fn refused(refusal: impl Refusal) -> Self {
        Self::Refused(Box::new(refusal))
    }

    /// The refusal's code, where the domain said no.
    pub fn refusal_code(&self) -> Option<&'static str> {
        match self {
            Self::Refused(refusal) => Some(refusal.code()),
            Self::PermitMismatch { .. }
            | Self::PermitRestsOnNothing { .. }
            | Self::RightsMoved { .. }
            | Self::CommandReused
            | Self::Contended
            | Self::Unknown
            | Self::Unappendable(_)
            | Self::Log(_) => None,
        }
    }
}

impl From<AppendError> for CommandError {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::Conflict { .. } => Self::Contended,
            AppendError::RightsMoved { stream, .. } => Self::RightsMoved { stream },
            AppendError::CommandReused { .. } => Self::CommandReused,
            AppendError::Unknown => Self::Unknown,
            AppendError::Log(error) => Self::Log(error),
            error @ (AppendError::TooLarge { .. } | AppendError::Malformed) => Self::Unappendable(error),
        }
    }
}
