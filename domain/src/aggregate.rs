//! What every aggregate is: a state, a pure decision and a pure fold.

use std::fmt;

use crate::access::Action;
use crate::commit::StreamKind;
use crate::event::Event;
use crate::ids::UserId;

/// A consistency boundary. One aggregate instance = one stream.
///
/// `decide` is total: it answers events, no events (the command is satisfied already), or a refusal.
/// Any history that `decide` produced can be folded by `evolve`.
pub trait Aggregate {
    const KIND: StreamKind;
    type State: Default + Clone + Send + Sync + 'static;
    type Command: Send + Sync;
    type Event: Into<Event> + Clone + Send + 'static;
    type Refusal: Refusal;

    fn decide(state: &Self::State, command: &Self::Command) -> Result<Vec<Self::Event>, Self::Refusal>;

    fn evolve(state: Self::State, event: &Self::Event) -> Self::State;

    /// This aggregate's event, or `None` for another's.
    fn event_of(event: &Event) -> Option<&Self::Event>;

    /// What the actor must be permitted to do.
    fn action_of(command: &Self::Command) -> Action;

    /// Folds a whole history.
    fn fold<'a>(events: impl IntoIterator<Item = &'a Event>) -> Self::State {
        events.into_iter().filter_map(Self::event_of).fold(Self::State::default(), Self::evolve)
    }
}

/// A domain "no": expected, tested by name, saying what would be allowed.
pub trait Refusal: fmt::Display + fmt::Debug + Send + Sync + 'static {
    /// Stable, for programs: `lifetime_too_long`.
    fn code(&self) -> &'static str;

    fn kind(&self) -> RefusalKind;

    /// What would be allowed, as numbers for programs; units last (`max_ms`). Empty where no number helps.
    fn bounds(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }

    /// Who could do it instead, by id and name. Empty where that does not help.
    fn people(&self) -> &[(UserId, String)] {
        &[]
    }
}

/// What a refusal means for the one who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusalKind {
    /// The thing does not exist.
    NotFound,
    /// It exists or is in a state that excludes the command.
    Conflict,
    /// The command itself breaks a rule.
    Invalid,
    /// It was there and is over: revoked, expired, archived.
    Gone,
    /// A policy or budget says no.
    Forbidden,
}
