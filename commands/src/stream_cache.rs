//! Folded states of recently used streams, so that a decision need not read a whole history again.
//!
//! A cached state may be old. That is safe: an append carries its position as expectation, and an answer that appends
//! nothing is given only after the tail was read from the leader.

use std::any::Any;
use std::num::NonZeroUsize;
use std::sync::Arc;

use envforge_domain::aggregate::Aggregate;
use envforge_domain::commit::{Position, Recorded, StreamId};
use envforge_domain::event::Event;
use envforge_domain::ids::CommandId;
use lru::LruCache;
use parking_lot::Mutex;

/// Streams kept; a busy control plane touches few at a time.
const STREAMS_MAX: NonZeroUsize = NonZeroUsize::new(8_192).expect("not zero");
/// Commands remembered per stream, so that an immediate repetition costs nothing. An older one is found where the request
/// is known to be a repetition (`Context::repeated`): the engine then reads the stream again.
const COMMANDS_MAX: usize = 256;

/// A stream folded up to `position`.
pub(crate) struct Folded<S> {
    pub(crate) state: S,
    pub(crate) position: Position,
    /// Newest last.
    pub(crate) commands: Vec<RememberedCommand>,
    /// There were more commands than these.
    pub(crate) forgot: bool,
}

/// A commit as idempotency needs it.
#[derive(Clone)]
pub(crate) struct RememberedCommand {
    pub(crate) command: CommandId,
    pub(crate) request_digest: Option<[u8; 32]>,
    pub(crate) position: Position,
    pub(crate) events: Arc<[Event]>,
}

impl RememberedCommand {
    pub(crate) fn of(recorded: &Recorded) -> Self {
        Self {
            command: recorded.commit.command,
            request_digest: recorded.commit.request_digest,
            position: recorded.position,
            events: recorded.commit.events.clone().into(),
        }
    }
}

impl<S: Clone> Clone for Folded<S> {
    fn clone(&self) -> Self {
        Self {
            state: self.state.clone(),
            position: self.position,
            commands: self.commands.clone(),
            forgot: self.forgot,
        }
    }
}

impl<S: Default> Default for Folded<S> {
    fn default() -> Self {
        Self { state: S::default(), position: Position::START, commands: Vec::new(), forgot: false }
    }
}

impl<S: Clone + Default> Folded<S> {
    /// The next commit of the stream.
    pub(crate) fn apply<A: Aggregate<State = S>>(&mut self, next: RememberedCommand) {
        let mut state = std::mem::take(&mut self.state);
        for event in next.events.iter().filter_map(A::event_of) {
            state = A::evolve(state, event);
        }
        self.state = state;
        self.position = next.position;
        if self.commands.len() >= COMMANDS_MAX {
            self.commands.drain(..COMMANDS_MAX / 2);
            self.forgot = true;
        }
        self.commands.push(next);
    }

    pub(crate) fn find(&self, command: CommandId) -> Option<&RememberedCommand> {
        self.commands.iter().rev().find(|remembered| remembered.command == command)
    }
}

pub(crate) struct StreamCache {
    entries: Mutex<LruCache<StreamId, Arc<dyn Any + Send + Sync>>>,
}

impl StreamCache {
    pub(crate) fn new() -> Self {
        Self { entries: Mutex::new(LruCache::new(STREAMS_MAX)) }
    }

    pub(crate) fn get<S: Clone + Send + Sync + 'static>(&self, stream: &StreamId) -> Option<Arc<Folded<S>>> {
        let entry = self.entries.lock().get(stream).cloned()?;
        entry.downcast().ok()
    }

    pub(crate) fn put<S: Clone + Send + Sync + 'static>(&self, stream: &StreamId, folded: Arc<Folded<S>>) {
        let mut entries = self.entries.lock();
        // A slower loader must not replace what a faster one already knows.
        let newer = entries
            .peek(stream)
            .and_then(|entry| entry.downcast_ref::<Folded<S>>())
            .is_some_and(|kept| kept.position > folded.position);
        if !newer {
            entries.put(stream.clone(), folded);
        }
    }
}
