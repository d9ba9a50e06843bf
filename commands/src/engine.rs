//! Load, decide, append, retry: the one way in which anything changes.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use envforge_domain::access::{Action, Permit, Resource};
use envforge_domain::aggregate::Aggregate;
use envforge_domain::commit::{Actor, Commit, Position, StreamId, StreamKind};
use envforge_domain::event::Event;
use envforge_domain::ids::{CommitId, OrgId};
use envforge_domain::limits::BATCH_COMMITS_MAX;
use envforge_eventlog::{AppendError, Checkpoint, LogError, SharedLog};
use uuid::Uuid;

use crate::context::Context;
use crate::error::CommandError;
use crate::fence::{Fenced, fenced};
use crate::stream_cache::{Folded, RememberedCommand, StreamCache};
use crate::transaction::Transaction;

/// Rounds of load, decide and append before giving up with `Contended`.
pub(crate) const ATTEMPTS_MAX: u32 = 8;
/// Commits per read while loading a stream.
const LOAD_PAGE: usize = 1_000;

tokio::task_local! {
    /// The furthest position that an answer to this task named where it may have taken a right away.
    static WITHDRAWN: Cell<Position>;
}

/// Runs a future, and tells besides how far the commands that were answered within it may have taken rights away: whoever is to
/// wait until no gateway lets these in waits for that position. `Position::START` where none did. What the future spawns does
/// not count.
pub async fn noting_withdrawals<F: Future>(future: F) -> (F::Output, Position) {
    WITHDRAWN.scope(Cell::new(Position::START), async { (future.await, WITHDRAWN.with(Cell::get)) }).await
}

/// Carries out commands. Cheap to clone; all clones share one cache.
#[derive(Clone)]
pub struct Commands {
    log: SharedLog,
    cache: Arc<StreamCache>,
    /// The furthest position that an answer named.
    answered_up_to: Arc<AtomicU64>,
}

/// What a command did.
#[derive(Clone, Debug, PartialEq)]
pub struct Done {
    /// A reader at this position sees the effect.
    pub position: Position,
    /// Where its first commit stands.
    pub from: Position,
    /// Events of the commit; of the first one where the command was repeated; empty where it was satisfied already.
    pub events: Vec<Event>,
    /// The command had been carried out before.
    pub duplicate: bool,
}

/// An aggregate's state, fresh from the log's leader.
#[derive(Clone, Debug)]
pub struct Loaded<S> {
    pub state: S,
    pub position: Position,
}

impl Done {
    /// Where its commits stand: appended together, they follow each other.
    pub fn commits(&self) -> Vec<Position> {
        (self.from.get()..=self.position.get()).take(BATCH_COMMITS_MAX).map(Position::new).collect()
    }
}

impl Commands {
    pub fn new(log: SharedLog) -> Self {
        Self { log, cache: Arc::new(StreamCache::new()), answered_up_to: Arc::default() }
    }

    /// The furthest position that any answer of these commands has named. Whoever sees what stands there sees the effect of
    /// every command that was answered.
    pub fn answered_up_to(&self) -> Position {
        Position::new(self.answered_up_to.load(Ordering::Acquire))
    }

    /// Every answer passes here.
    pub(crate) fn answered_with(&self, done: Done) -> Done {
        self.answered_up_to.fetch_max(done.position.get(), Ordering::AcqRel);
        // What was taken before may be on its way to gateways still.
        if done.events.is_empty() || done.events.iter().any(Event::may_withdraw) {
            let _ = WITHDRAWN.try_with(|withdrawn| withdrawn.set(withdrawn.get().max(done.position)));
        }
        done
    }

    /// Whether the log has what stood there once. One that was put back to an older state, or is another one, has not.
    ///
    /// # Errors
    /// Where it cannot be said now.
    pub async fn holds(&self, checkpoint: &Checkpoint) -> Result<bool, LogError> {
        match self.log.verify(checkpoint).await {
            Ok(()) => Ok(true),
            Err(LogError::NotTheSameLog(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn log(&self) -> &SharedLog {
        &self.log
    }

    /// Decides one command on one stream and appends what it decided.
    ///
    /// # Errors
    /// `Refused` where the domain says no; `PermitMismatch` where the permit is for another action or thing; `RightsMoved`
    /// where the rights that the permit rests on may not stand any more.
    pub async fn execute<A: Aggregate>(
        &self,
        permit: &Permit,
        context: &Context,
        stream: &StreamId,
        command: &A::Command,
    ) -> Result<Done, CommandError> {
        self.carry_out::<A>(permit, context, stream, command).await.map(|done| self.answered_with(done))
    }

    async fn carry_out<A: Aggregate>(
        &self,
        permit: &Permit,
        context: &Context,
        stream: &StreamId,
        command: &A::Command,
    ) -> Result<Done, CommandError> {
        check_permit(permit, A::action_of(command), stream)?;
        // Where an answer from memory would do, a repetition still asks the leader.
        let mut fresh = context.repeated.is_some();
        for attempt in 0..ATTEMPTS_MAX {
            let folded = self.folded::<A>(stream, fresh).await?;
            if let Some(done) = self.answered_before(&folded, context, stream).await? {
                return Ok(done);
            }
            let decided = A::decide(&folded.state, command);
            let events = match decided {
                Ok(events) if !events.is_empty() => events,
                // Only the leader's word is good enough for an answer that appends nothing.
                Ok(_) | Err(_) if !fresh => {
                    fresh = true;
                    continue;
                }
                Ok(_) => {
                    return Ok(Done {
                        position: folded.position,
                        from: folded.position,
                        events: Vec::new(),
                        duplicate: false,
                    });
                }
                Err(refusal) => {
                    metrics::counter!("envforge_commands_total", "kind" => A::KIND.token(), "outcome" => "refused")
                        .increment(1);
                    return Err(CommandError::refused(refusal));
                }
            };
            let commit = commit(permit, context, stream, events.into_iter().map(Into::into).collect());
            let events = commit.events.clone();
            let append = match fenced(context, &[permit], vec![(commit, folded.position)])? {
                Fenced::Ready(append) => append,
                Fenced::Behind => {
                    fresh = true;
                    continue;
                }
            };
            match self.log.append(append).await {
                Ok(appended) => {
                    metrics::counter!("envforge_commands_total", "kind" => A::KIND.token(), "outcome" => "done")
                        .increment(1);
                    if appended.duplicate {
                        // Appended by an earlier attempt whose answer was lost: answer from what stands in the log.
                        // What was decided now was never stored and must not be told.
                        if let Some(first) = self.find_in_stream(stream, context).await? {
                            return first_answer(&first, context);
                        }
                    }
                    // The first commit is the effect; those behind it say why it was allowed.
                    let position = appended.positions.first().copied().unwrap_or(folded.position);
                    if !appended.duplicate {
                        self.remember::<A>(stream, &folded, context, position, &events);
                    }
                    return Ok(Done { position, from: position, events, duplicate: appended.duplicate });
                }
                Err(AppendError::Conflict { .. }) => {
                    fresh = true;
                    back_off(attempt).await;
                }
                Err(error) => {
                    if let AppendError::RightsMoved { .. } = error {
                        metrics::counter!("envforge_commands_total", "kind" => A::KIND.token(), "outcome" => "rights_moved")
                            .increment(1);
                    }
                    return Err(error.into());
                }
            }
        }
        metrics::counter!("envforge_commands_total", "kind" => A::KIND.token(), "outcome" => "contended").increment(1);
        Err(CommandError::Contended)
    }

    /// Folds what was just appended behind `folded`: nothing came in between, and the next command on this stream would otherwise
    /// be decided on what was before, conflict, and read it from the log.
    fn remember<A: Aggregate>(
        &self,
        stream: &StreamId,
        folded: &Folded<A::State>,
        context: &Context,
        position: Position,
        events: &[Event],
    ) {
        let Context { command, request_digest, .. } = *context;
        let mut next = folded.clone();
        next.apply::<A>(RememberedCommand { command, request_digest, position, events: events.into() });
        self.cache.put(stream, Arc::new(next));
    }

    /// An aggregate's current state, from the leader.
    pub async fn load<A: Aggregate>(&self, stream: &StreamId) -> Result<Loaded<A::State>, LogError> {
        let folded = self.folded::<A>(stream, true).await?;
        Ok(Loaded { state: folded.state.clone(), position: folded.position })
    }

    /// The first answer to this very request, where it was carried out on this stream before. For use cases whose
    /// looked-up facts may have changed since: a repeated request gets its first answer and not a new refusal.
    pub(crate) async fn answered<A: Aggregate>(
        &self,
        permit: &Permit,
        context: &Context,
        stream: &StreamId,
        needed: Action,
    ) -> Result<Option<Done>, CommandError> {
        check_permit(permit, needed, stream)?;
        let folded = self.folded::<A>(stream, true).await?;
        let before = self.answered_before(&folded, context, stream).await?;
        Ok(before.map(|done| self.answered_with(done)))
    }

    /// The first answer, where this command stands in the stream already, or where it is known to have changed nothing.
    /// For a repetition `folded` must be fresh: an older state may lack the very commit.
    pub(crate) async fn answered_before<S: Clone + Default>(
        &self,
        folded: &Folded<S>,
        context: &Context,
        stream: &StreamId,
    ) -> Result<Option<Done>, CommandError> {
        if let Some(first) = folded.find(context.command) {
            return first_answer(first, context).map(Some);
        }
        let Some(repeated) = context.repeated else { return Ok(None) };
        if folded.forgot
            && let Some(first) = self.find_in_stream(stream, context).await?
        {
            return first_answer(&first, context).map(Some);
        }
        let satisfied = |position| Done { position, from: position, events: Vec::new(), duplicate: true };
        Ok(repeated.satisfied_at.map(satisfied))
    }

    /// The commit of this command, from the leader, however long ago it was.
    pub(crate) async fn find_in_stream(
        &self,
        stream: &StreamId,
        context: &Context,
    ) -> Result<Option<RememberedCommand>, LogError> {
        let mut after = Position::START;
        loop {
            let page = self.log.read_stream(stream, after, LOAD_PAGE).await?;
            if let Some(found) = page.iter().find(|recorded| recorded.commit.command == context.command) {
                return Ok(Some(RememberedCommand::of(found)));
            }
            match page.last() {
                Some(last) if page.len() == LOAD_PAGE => after = last.position,
                Some(_) | None => return Ok(None),
            }
        }
    }

    /// Several streams in one atomic append, for claims.
    pub fn transaction<'a>(&'a self, context: &'a Context) -> Transaction<'a> {
        Transaction::new(self, context)
    }

    /// The folded stream; with `fresh`, including everything the leader has.
    pub(crate) async fn folded<A: Aggregate>(
        &self,
        stream: &StreamId,
        fresh: bool,
    ) -> Result<Arc<Folded<A::State>>, LogError> {
        let cached = self.cache.get::<A::State>(stream);
        if let (Some(cached), false) = (&cached, fresh) {
            return Ok(Arc::clone(cached));
        }
        let known = cached.unwrap_or_default();
        let mut folded: Option<Folded<A::State>> = None;
        loop {
            let after = folded.as_ref().map_or(known.position, |folded| folded.position);
            let page = self.log.read_stream(stream, after, LOAD_PAGE).await?;
            let full = page.len() == LOAD_PAGE;
            if !page.is_empty() {
                let target = folded.get_or_insert_with(|| (*known).clone());
                page.iter().for_each(|recorded| target.apply::<A>(RememberedCommand::of(recorded)));
            }
            if !full {
                break;
            }
        }
        let folded = folded.map_or(known, Arc::new);
        self.cache.put(stream, Arc::clone(&folded));
        Ok(folded)
    }
}

/// What a commit answered, to the request that it answered.
pub(crate) fn first_answer(first: &RememberedCommand, context: &Context) -> Result<Done, CommandError> {
    if first.request_digest != context.request_digest {
        return Err(CommandError::CommandReused);
    }
    Ok(Done { position: first.position, from: first.position, events: first.events.to_vec(), duplicate: true })
}

/// Waits a little longer, and less predictably, each time somebody else was first.
pub async fn back_off(attempt: u32) {
    let ceiling_us = 200_u64 << attempt.min(8);
    let wait = rand::random_range(0..=ceiling_us);
    tokio::time::sleep(Duration::from_micros(wait)).await;
}

pub(crate) fn commit(permit: &Permit, context: &Context, stream: &StreamId, events: Vec<Event>) -> Commit {
    Commit {
        id: CommitId::from_uuid(Uuid::now_v7()),
        command: context.command,
        request_digest: context.request_digest,
        stream: stream.clone(),
        actor: permit.actor(),
        surface: permit.surface(),
        correlation: context.correlation,
        causation: context.causation,
        decided_at: context.now,
        events,
    }
}

/// The permit must be for this action, in this organization, on this very thing.
pub(crate) fn check_permit(permit: &Permit, needed: Action, stream: &StreamId) -> Result<(), CommandError> {
    let in_organization = stream.org() == permit.org() || stream.kind() == StreamKind::Claim;
    if permit.action() == needed && in_organization && covers(permit, stream) {
        return Ok(());
    }
    Err(CommandError::PermitMismatch { permitted: permit.action(), needed, stream: stream.clone() })
}

fn covers(permit: &Permit, stream: &StreamId) -> bool {
    let resource = permit.resource();
    let is = |id: &dyn std::fmt::Display| stream.key() == id.to_string();
    match stream.kind() {
        // A claim is only ever appended beside the event that needs it.
        StreamKind::Claim => true,
        // Nobody decides on decisions: they stand beside what was decided.
        StreamKind::Decision => false,
        StreamKind::ServiceTokens => matches!(resource, Resource::Organization(_)),
        StreamKind::Organization | StreamKind::Denial => is(&resource.org()),
        StreamKind::User => match resource {
            Resource::User { user, .. } => is(&user),
            Resource::Organization(_) => true,
            // Who opens a workspace has a session more, on their own stream.
            Resource::Workspace { .. } => matches!(permit.actor(), Actor::User(user) if is(&user)),
            Resource::Project { .. } | Resource::Link { .. } | Resource::Host { .. } | Resource::RootWindow { .. } => {
                false
            }
        },
        StreamKind::Project => match resource {
            Resource::Project { project, .. } => is(&project),
            // Creating one is an action on the organization.
            Resource::Organization(_) => true,
            Resource::User { .. }
            | Resource::Workspace { .. }
            | Resource::Link { .. }
            | Resource::Host { .. }
            | Resource::RootWindow { .. } => false,
        },
        StreamKind::Workspace => match resource {
            Resource::Workspace { workspace, .. } => is(&workspace),
            // Creating one is an action on its project.
            Resource::Project { .. } => true,
            Resource::Organization(_)
            | Resource::User { .. }
            | Resource::Link { .. }
            | Resource::Host { .. }
            | Resource::RootWindow { .. } => false,
        },
        StreamKind::Runtime => match resource {
            Resource::Workspace { workspace, .. } | Resource::Link { workspace, .. } => is(&workspace),
            Resource::Organization(_)
            | Resource::User { .. }
            | Resource::Project { .. }
            | Resource::Host { .. }
            | Resource::RootWindow { .. } => false,
        },
        StreamKind::DevLink => match resource {
            Resource::Link { link, .. } => is(&link),
            // Issuing one is an action on its workspace.
            Resource::Workspace { .. } => true,
            Resource::Organization(_)
            | Resource::User { .. }
            | Resource::Project { .. }
            | Resource::Host { .. }
            | Resource::RootWindow { .. } => false,
        },
        StreamKind::RootWindow => match resource {
            Resource::RootWindow { window, .. } => is(&window),
            // Asking for one is an action on its workspace.
            Resource::Workspace { .. } => true,
            Resource::Organization(_)
            | Resource::User { .. }
            | Resource::Project { .. }
            | Resource::Link { .. }
            | Resource::Host { .. } => false,
        },
        StreamKind::Secrets => match resource {
            Resource::Project { project, .. } => is(&project),
            Resource::Workspace { workspace, .. } => is(&workspace),
            Resource::Organization(_)
            | Resource::User { .. }
            | Resource::Link { .. }
            | Resource::Host { .. }
            | Resource::RootWindow { .. } => false,
        },
        // Opening a shell and running a job are actions on the workspace.
        StreamKind::Shell | StreamKind::JobRun => matches!(resource, Resource::Workspace { .. }),
        StreamKind::Machine => match resource {
            Resource::Host { host, .. } => is(&host),
            // A strange machine's stream is in no organization, and its key is the provider's.
            Resource::Organization(org) => org == OrgId::SYSTEM,
            Resource::User { .. }
            | Resource::Project { .. }
            | Resource::Workspace { .. }
            | Resource::Link { .. }
            | Resource::RootWindow { .. } => false,
        },
        StreamKind::Host => match resource {
            Resource::Host { host, .. } => is(&host),
            // Placing is an action on the workspace that is placed.
            Resource::Workspace { .. } | Resource::Organization(_) => true,
            Resource::User { .. } | Resource::Project { .. } | Resource::Link { .. } | Resource::RootWindow { .. } => {
                false
            }
        },
    }
}
