//! Several streams in one atomic append: a claim and the event that needs it.

use std::future::Future;
use std::pin::Pin;

use envforge_domain::access::Permit;
use envforge_domain::aggregate::Aggregate;
use envforge_domain::commit::{Commit, Position, StreamId};
use envforge_domain::limits::BATCH_COMMITS_MAX;
use envforge_eventlog::AppendError;

use crate::context::Context;
use crate::engine::{ATTEMPTS_MAX, Commands, Done, answered_before, back_off, check_permit, commit};
use crate::error::CommandError;
use crate::fence::{Fenced, fenced};

type Decided = Result<StepOutcome, CommandError>;
type Step<'a> = Box<dyn Fn() -> Pin<Box<dyn Future<Output = Decided> + Send + 'a>> + Send + Sync + 'a>;

enum StepOutcome {
    /// This step stands in its stream already.
    Before(Done),
    Append(Commit, Position),
    Satisfied(Position),
}

/// Steps that happen together or not at all. The first step's stream answers for the whole when it is repeated.
pub struct Transaction<'a> {
    commands: &'a Commands,
    context: &'a Context,
    steps: Vec<Step<'a>>,
    /// Of the steps, in their order.
    permits: Vec<&'a Permit>,
}

impl<'a> Transaction<'a> {
    pub(crate) fn new(commands: &'a Commands, context: &'a Context) -> Self {
        Self { commands, context, steps: Vec::new(), permits: Vec::new() }
    }

    /// Adds a decision on another stream. Each stream may appear once.
    #[must_use]
    pub fn step<A: Aggregate>(mut self, permit: &'a Permit, stream: StreamId, command: A::Command) -> Self
    where
        A::Command: 'a,
    {
        let (commands, context) = (self.commands, self.context);
        let command = std::sync::Arc::new(command);
        self.permits.push(permit);
        self.steps.push(Box::new(move || {
            let (stream, command) = (stream.clone(), std::sync::Arc::clone(&command));
            Box::pin(async move {
                check_permit(permit, A::action_of(&command), &stream)?;
                let folded = commands.folded::<A>(&stream, true).await?;
                if let Some(done) = answered_before(&folded, context)? {
                    return Ok(StepOutcome::Before(done));
                }
                let events = A::decide(&folded.state, &command).map_err(CommandError::refused)?;
                if events.is_empty() {
                    return Ok(StepOutcome::Satisfied(folded.position));
                }
                let commit = commit(permit, context, &stream, events.into_iter().map(Into::into).collect());
                Ok(StepOutcome::Append(commit, folded.position))
            })
        }));
        self
    }

    /// Decides all steps on the leader's current state and appends them as one.
    pub async fn commit(self) -> Result<Done, CommandError> {
        debug_assert!(self.steps.len() <= BATCH_COMMITS_MAX);
        for attempt in 0..ATTEMPTS_MAX {
            let mut decided = Vec::with_capacity(self.steps.len());
            let mut satisfied = Position::START;
            for (index, step) in self.steps.iter().enumerate() {
                match step().await? {
                    StepOutcome::Before(done) if index == 0 => return Ok(done),
                    StepOutcome::Before(done) => satisfied = satisfied.max(done.position),
                    StepOutcome::Satisfied(position) => satisfied = satisfied.max(position),
                    StepOutcome::Append(commit, at) => decided.push((commit, at)),
                }
            }
            if decided.is_empty() {
                return Ok(Done { position: satisfied, events: Vec::new(), duplicate: false });
            }
            let events = decided.iter().flat_map(|(commit, _)| commit.events.iter().cloned()).collect();
            let steps = decided.len();
            let Fenced::Ready(append) = fenced(self.context, &self.permits, decided)? else {
                back_off(attempt).await;
                continue;
            };
            match self.commands.log().append(append).await {
                Ok(appended) => {
                    // Behind the last step stands why all this was allowed.
                    let position = appended.positions.get(steps - 1).copied().unwrap_or_else(|| appended.last());
                    return Ok(Done { position, events, duplicate: appended.duplicate });
                }
                Err(AppendError::Conflict { .. }) => back_off(attempt).await,
                Err(error) => return Err(error.into()),
            }
        }
        Err(CommandError::Contended)
    }
}
