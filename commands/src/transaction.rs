//! Several streams in one atomic append: a claim and the event that needs it.

use std::future::Future;
use std::pin::Pin;

use envforge_domain::access::Permit;
use envforge_domain::aggregate::Aggregate;
use envforge_domain::commit::{Commit, Position, StreamId};
use envforge_domain::limits::BATCH_COMMITS_MAX;
use envforge_eventlog::AppendError;

use crate::context::Context;
use crate::engine::{ATTEMPTS_MAX, Commands, Done, back_off, check_permit, commit, first_answer};
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

/// Steps that happen together or not at all.
///
/// The first step drives: its stream answers for the whole when it is repeated, and where there is nothing left to do on it
/// nothing is appended at all. The others stand for what it costs or claims.
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
    pub fn step<A: Aggregate>(self, permit: &'a Permit, stream: StreamId, command: A::Command) -> Self
    where
        A::Command: Clone + 'a,
    {
        self.step_with::<A, _>(permit, stream, move || std::future::ready(Ok(command.clone())))
    }

    /// `step` with a command that is made anew in each attempt, from what it loads. What it loads of an earlier step's
    /// stream is what that step was decided on: had it moved on in between, the append conflicts.
    #[must_use]
    pub fn step_with<A: Aggregate, F>(
        mut self,
        permit: &'a Permit,
        stream: StreamId,
        command: impl Fn() -> F + Send + Sync + 'a,
    ) -> Self
    where
        A::Command: 'a,
        F: Future<Output = Result<A::Command, CommandError>> + Send + 'a,
    {
        let (commands, context) = (self.commands, self.context);
        self.permits.push(permit);
        self.steps.push(Box::new(move || {
            let (stream, command) = (stream.clone(), command());
            Box::pin(async move {
                let command = command.await?;
                check_permit(permit, A::action_of(&command), &stream)?;
                let folded = commands.folded::<A>(&stream, true).await?;
                if let Some(done) = commands.answered_before(&folded, context, &stream).await? {
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
        let commands = self.commands;
        self.carry_out().await.map(|done| commands.answered_with(done))
    }

    async fn carry_out(self) -> Result<Done, CommandError> {
        debug_assert!(self.steps.len() <= BATCH_COMMITS_MAX);
        'attempts: for attempt in 0..ATTEMPTS_MAX {
            let mut decided = Vec::with_capacity(self.steps.len());
            let mut driven_from = Position::START;
            for (index, step) in self.steps.iter().enumerate() {
                match step().await {
                    Ok(StepOutcome::Before(done)) if index == 0 => {
                        // The others stand beside it: whoever reads at the answer's position sees them all.
                        let mut position = done.position;
                        for other in &self.steps[1..] {
                            if let Ok(StepOutcome::Before(other)) = other().await {
                                position = position.max(other.position);
                            }
                        }
                        return Ok(Done { position, ..done });
                    }
                    Ok(StepOutcome::Satisfied(position)) if index == 0 => {
                        return Ok(Done { position, from: position, events: Vec::new(), duplicate: false });
                    }
                    // What another step stands for is there already.
                    Ok(StepOutcome::Before(_) | StepOutcome::Satisfied(_)) => {}
                    Ok(StepOutcome::Append(commit, at)) => {
                        if index == 0 {
                            driven_from = at;
                        }
                        decided.push((commit, at));
                    }
                    // A no to what nobody needs any more is none.
                    Err(CommandError::Refused(_)) if index > 0 && self.moved_on(driven_from).await? => {
                        back_off(attempt).await;
                        continue 'attempts;
                    }
                    Err(error) => return Err(error),
                }
            }
            let events = decided.iter().flat_map(|(commit, _)| commit.events.iter().cloned()).collect();
            let answering = decided[0].0.stream.clone();
            let steps = decided.len();
            let Fenced::Ready(append) = fenced(self.context, &self.permits, decided)? else {
                back_off(attempt).await;
                continue;
            };
            match self.commands.log().append(append).await {
                Ok(appended) => {
                    // Behind the last step stands why all this was allowed.
                    let position = appended.positions.get(steps - 1).copied().unwrap_or_else(|| appended.last());
                    // What was decided now was never stored where an earlier attempt was.
                    let first = match appended.duplicate {
                        true => self.commands.find_in_stream(&answering, self.context).await?,
                        false => None,
                    };
                    return match first {
                        Some(first) => first_answer(&first, self.context).map(|done| Done { position, ..done }),
                        None => {
                            let from = appended.positions.first().copied().unwrap_or(position);
                            Ok(Done { position, from, events, duplicate: appended.duplicate })
                        }
                    };
                }
                Err(AppendError::Conflict { .. }) => back_off(attempt).await,
                Err(error) => return Err(error.into()),
            }
        }
        Err(CommandError::Contended)
    }

    /// Whether the first step would be decided on another state by now.
    async fn moved_on(&self, driven_from: Position) -> Result<bool, CommandError> {
        let Some(first) = self.steps.first() else { return Ok(false) };
        Ok(match first().await? {
            StepOutcome::Before(_) | StepOutcome::Satisfied(_) => true,
            StepOutcome::Append(_, at) => at != driven_from,
        })
    }
}
