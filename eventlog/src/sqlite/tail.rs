//! What the writer and the readers know of the log's end without asking the file: where streams end, and where the commits
//! stand that the index does not have yet.
//!
//! INVARIANT: a commit leaves the tail only after the index that has it was stored. Whoever asks the tail first and the
//! file afterwards misses nothing, and may find a commit in both. Not here: writing the index (`index`).

use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ahash::AHashMap;
use envforge_domain::commit::{Position, StreamId};
use lru::LruCache;

/// Streams whose end is known without asking the file.
const STREAMS_MAX: NonZeroUsize = NonZeroUsize::new(65_536).expect("not zero");

/// A stream with commits, as the file numbers it.
#[derive(Clone, Copy, Debug)]
pub(super) struct StreamEnd {
    pub(super) id: i64,
    pub(super) scope: i64,
    pub(super) last: Position,
}

/// Positions of each stream, ascending.
type Positions = AHashMap<StreamId, Vec<Position>>;

#[derive(Debug)]
pub(super) struct Tail(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    ends: LruCache<StreamId, StreamEnd>,
    /// The index is complete up to here.
    indexed: Position,
    /// On their way to the index.
    leaving: Positions,
    /// Those above.
    fresh: Positions,
}

impl Tail {
    pub(super) fn new(indexed: Position) -> Self {
        let ends = LruCache::sparse(STREAMS_MAX);
        Self(Mutex::new(Inner { ends, indexed, leaving: AHashMap::new(), fresh: AHashMap::new() }))
    }

    /// Each change is whole before anything can panic.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Up to where the index can be asked.
    pub(super) fn indexed(&self) -> Position {
        self.lock().indexed
    }

    /// What is known of these streams, in order. For the writer: what it asks for stays known the longest.
    pub(super) fn ends_of<'a>(
        &self,
        streams: impl Iterator<Item = &'a StreamId>,
        mut each: impl FnMut(&'a StreamId, Option<StreamEnd>),
    ) {
        let mut inner = self.lock();
        for stream in streams {
            each(stream, inner.ends.get(stream).copied());
        }
    }

    /// Where the stream ends. `None`: the tail holds none of its commits, the index all of them, or there is none.
    pub(super) fn last_of(&self, stream: &StreamId) -> Option<Position> {
        let inner = self.lock();
        inner.ends.peek(stream).map(|end| end.last).or_else(|| inner.last_in_tail(stream))
    }

    /// The same without the streams that are only remembered.
    pub(super) fn last_in_tail(&self, stream: &StreamId) -> Option<Position> {
        self.lock().last_in_tail(stream)
    }

    /// The first of a stream's commits above `after`, at most `limit`, as far as the index may not have them.
    pub(super) fn positions_of(&self, stream: &StreamId, after: Position, limit: usize) -> Vec<Position> {
        let inner = self.lock();
        let parts = [inner.leaving.get(stream), inner.fresh.get(stream)];
        parts.into_iter().flatten().flatten().copied().filter(|position| *position > after).take(limit).collect()
    }

    /// Commits that were stored, in the order of their positions.
    pub(super) fn add<'a>(&self, commits: impl Iterator<Item = (&'a StreamId, StreamEnd)>) {
        let mut inner = self.lock();
        for (stream, end) in commits {
            // Most streams are known: their names are copied for the others alone.
            match inner.ends.get_mut(stream) {
                Some(known) => *known = end,
                None => drop(inner.ends.put(stream.clone(), end)),
            }
            match inner.fresh.get_mut(stream) {
                Some(positions) => positions.push(end.last),
                None => drop(inner.fresh.insert(stream.clone(), vec![end.last])),
            }
        }
    }

    /// Streams that were looked up in the file.
    pub(super) fn remember<'a>(&self, ends: impl Iterator<Item = (&'a StreamId, StreamEnd)>) {
        let mut inner = self.lock();
        for (stream, end) in ends {
            inner.ends.put(stream.clone(), end);
        }
    }

    /// Everything that is here now is about to be written to the index.
    pub(super) fn leave(&self) {
        let mut inner = self.lock();
        inner.leaving = std::mem::take(&mut inner.fresh);
    }

    /// What was leaving stands in the index, which is complete up to `indexed`.
    pub(super) fn left(&self, indexed: Position) {
        let mut inner = self.lock();
        inner.indexed = indexed;
        let gone = std::mem::take(&mut inner.leaving);
        drop(inner);
        drop(gone);
    }
}

impl Inner {
    fn last_in_tail(&self, stream: &StreamId) -> Option<Position> {
        let last = |positions: &Positions| positions.get(stream).and_then(|positions| positions.last().copied());
        last(&self.fresh).or_else(|| last(&self.leaving))
    }
}

#[cfg(test)]
mod tests {
    use envforge_domain::commit::StreamKind;
    use envforge_domain::ids::OrgId;
    use uuid::Uuid;

    use super::*;

    fn stream(key: &str) -> StreamId {
        StreamId::new(OrgId::from_uuid(Uuid::from_u128(1)), StreamKind::Claim, key).expect("a key")
    }

    fn add(tail: &Tail, key: &str, position: u64) {
        let end = StreamEnd { id: 1, scope: 1, last: Position::new(position) };
        tail.add([(&stream(key), end)].into_iter());
    }

    fn positions(tail: &Tail, key: &str, after: u64, limit: usize) -> Vec<u64> {
        tail.positions_of(&stream(key), Position::new(after), limit).iter().map(|position| position.get()).collect()
    }

    #[test]
    fn a_commit_is_in_the_tail_until_the_index_has_it() {
        let tail = Tail::new(Position::START);
        add(&tail, "a", 1);
        add(&tail, "b", 2);
        add(&tail, "a", 3);
        tail.leave();
        add(&tail, "a", 4);
        assert_eq!(positions(&tail, "a", 0, 10), [1, 3, 4]);
        assert_eq!(positions(&tail, "a", 1, 1), [3]);
        assert_eq!(tail.indexed(), Position::START);
        tail.left(Position::new(3));
        assert_eq!((positions(&tail, "a", 0, 10), positions(&tail, "b", 0, 10)), (vec![4], vec![]));
        assert_eq!(tail.indexed(), Position::new(3));
        assert_eq!(
            tail.last_of(&stream("b")),
            Some(Position::new(2)),
            "remembered, though it is no longer in the tail"
        );
        assert_eq!(tail.last_in_tail(&stream("b")), None);
    }
}
