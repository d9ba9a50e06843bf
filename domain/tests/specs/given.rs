//! The given/when/then of the specifications, and small builders of ids.

use envforge_domain::aggregate::{Aggregate, Refusal};
use envforge_domain::event::Event;
use envforge_domain::ids::*;
use envforge_domain::limits::COMMIT_EVENTS_MAX;
use envforge_domain::time::UnixMillis;
use proptest::prelude::{TestCaseError, prop_assert, prop_assert_eq};
use uuid::Uuid;

/// A history that has happened.
pub(crate) struct Given<A: Aggregate> {
    state: A::State,
}

pub(crate) fn given<A: Aggregate>(history: impl IntoIterator<Item = A::Event>) -> Given<A> {
    Given { state: history.into_iter().fold(A::State::default(), |state, event| A::evolve(state, &event)) }
}

/// What a command brought about.
pub(crate) struct Then<A: Aggregate> {
    decided: Result<Vec<A::Event>, A::Refusal>,
}

impl<A: Aggregate> Given<A>
where
    A::State: std::fmt::Debug,
{
    pub(crate) fn when(self, command: A::Command) -> Then<A> {
        Then { decided: A::decide(&self.state, &command) }
    }

    /// Carries out commands in order; a refused one panics.
    pub(crate) fn and(self, command: A::Command) -> Self {
        let events = A::decide(&self.state, &command).unwrap_or_else(|refusal| panic!("{refusal}"));
        Self { state: events.iter().fold(self.state, A::evolve) }
    }

    pub(crate) fn state(&self) -> &A::State {
        &self.state
    }
}

impl<A: Aggregate> Then<A>
where
    A::Event: std::fmt::Debug + PartialEq,
{
    #[track_caller]
    pub(crate) fn then(self, expected: impl IntoIterator<Item = A::Event>) {
        let expected: Vec<_> = expected.into_iter().collect();
        match self.decided {
            Ok(events) => assert_eq!(events, expected),
            Err(refusal) => panic!("refused: {refusal}"),
        }
    }

    #[track_caller]
    pub(crate) fn then_nothing(self) {
        self.then([]);
    }

    #[track_caller]
    pub(crate) fn then_refused(self, code: &str) {
        match self.decided {
            Ok(events) => panic!("accepted: {events:?}"),
            Err(refusal) => assert_eq!(refusal.code(), code, "{refusal}"),
        }
    }

    #[track_caller]
    pub(crate) fn events(self) -> Vec<A::Event> {
        self.decided.unwrap_or_else(|refusal| panic!("refused: {refusal}"))
    }
}

/// Any event that `decide` produced is recognised by its own aggregate.
pub(crate) fn belongs<A: Aggregate>(event: &A::Event) -> bool {
    let event: Event = event.clone().into();
    A::event_of(&event).is_some() && event.stream_kind() == A::KIND
}

/// Carries out commands in order, passing over refused ones, and holds what every aggregate promises: whatever it decided
/// is an event of its own in a bounded commit, evolves, and comes out the same when the history is folded again; deciding
/// changes nothing by itself. `holds` sees the states before and after each accepted command.
pub(crate) fn histories<A: Aggregate>(
    commands: impl IntoIterator<Item = A::Command>,
    mut holds: impl FnMut(&A::State, &A::State) -> Result<(), TestCaseError>,
) -> Result<(), TestCaseError>
where
    A::State: std::fmt::Debug + PartialEq,
    A::Event: std::fmt::Debug + PartialEq,
    A::Refusal: PartialEq,
{
    let mut state = A::State::default();
    let mut history: Vec<Event> = Vec::new();
    for command in commands {
        let decided = A::decide(&state, &command);
        prop_assert_eq!(&decided, &A::decide(&state, &command), "a decision depends on more than state and command");
        let events = match decided {
            Ok(events) => events,
            Err(refusal) => {
                prop_assert!(!refusal.code().is_empty() && !refusal.to_string().is_empty());
                continue;
            }
        };
        prop_assert!(events.len() <= COMMIT_EVENTS_MAX, "{} events in one commit", events.len());
        let before = state.clone();
        for event in &events {
            prop_assert!(belongs::<A>(event), "{event:?} is another aggregate's");
            state = A::evolve(state, event);
            history.push(event.clone().into());
        }
        holds(&before, &state)?;
    }
    prop_assert_eq!(A::fold(&history), state, "the history tells another story than its steps");
    Ok(())
}

macro_rules! ids {
    ($($name:ident -> $id:ident),*) => {$(
        pub(crate) fn $name(number: u128) -> $id { $id::from_uuid(Uuid::from_u128(number)) }
    )*};
}

ids!(org -> OrgId, user -> UserId, project -> ProjectId, workspace -> WorkspaceId, host -> HostId, link -> LinkId,
    session -> SessionId, handoff -> HandoffId, team -> TeamId, token -> ServiceTokenId, window -> RootWindowId,
    shell -> ShellId, run -> JobRunId);

pub(crate) fn at(milliseconds: u64) -> UnixMillis {
    UnixMillis::new(milliseconds)
}

pub(crate) fn service(name: &str) -> envforge_domain::slug::ServiceName {
    name.parse().unwrap()
}
