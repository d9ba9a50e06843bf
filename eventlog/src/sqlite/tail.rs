//! What the log has and its file does not yet: every commit from the journal's acknowledgement until `apply` has stored it,
//! where streams end, and which commands stand there.
//!
//! INVARIANT: a commit leaves the tail only after the transaction that stored it, with its index. Whoever asks the tail first
//! and the file afterwards misses nothing, and may find a commit in both. Not here: making it durable (`journal`), storing it
//! (`apply`).

use std::num::NonZeroUsize;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ahash::AHashMap;
use bytes::Bytes;
use envforge_domain::commit::{Position, StreamId, StreamKind};
use envforge_domain::ids::{CommandId, OrgId};
use envforge_domain::time::UnixMillis;
use lru::LruCache;

use super::group::Additions;
use super::reader::{Stored, StoredPage};
use crate::Filter;

/// Streams whose end is known without asking the file.
const STREAMS_MAX: NonZeroUsize = NonZeroUsize::new(65_536).expect("not zero");
/// Commits that are stored together, and as many again wait meanwhile: sorted, they dirty each page of the index once.
pub(super) const BATCH_COMMITS: usize = 16_384;
/// Or payloads of so many bytes.
const BATCH_BYTES: usize = 16 * 1024 * 1024;
/// Or after so long: what a start after a crash has to read again, and how far a copy of the file alone is behind.
const BATCH_AGE: Duration = Duration::from_millis(250);
/// Appends wait for the file where so many batches are ahead of it.
const BATCHES_AHEAD_MAX: usize = 4;
/// Commits looked at by one filtered read.
const LOOKED_AT_MAX: usize = 4_096;

/// A stream with commits, as the file numbers it.
#[derive(Clone, Copy, Debug)]
pub(super) struct StreamEnd {
    pub(super) id: i64,
    pub(super) scope: i64,
    pub(super) last: Position,
}

/// Where a commit of a command stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) position: Position,
    pub(super) stream: i64,
}

/// A commit that the file may not have yet.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) position: Position,
    pub(super) recorded_at: UnixMillis,
    pub(super) stream: i64,
    pub(super) scope: i64,
    pub(super) command: CommandId,
    pub(super) payload: Bytes,
    org: OrgId,
    kind: StreamKind,
}

impl Entry {
    fn stored(&self) -> Stored {
        Stored { position: self.position, recorded_at: self.recorded_at, payload: self.payload.clone() }
    }
}

/// Commits of a stream, ascending. The end's position is the last one's.
#[derive(Debug)]
struct InStream {
    end: StreamEnd,
    positions: Vec<Position>,
}

/// Most commands have one commit.
#[derive(Debug)]
struct Places {
    first: Place,
    others: Vec<Place>,
}

/// Commits that follow each other.
#[derive(Debug, Default)]
pub(super) struct Segment {
    /// In the order of their positions, without gaps.
    pub(super) entries: Vec<Entry>,
    pub(super) streams: Vec<(i64, StreamId)>,
    pub(super) scopes: Vec<(i64, OrgId, StreamKind)>,
    by_stream: AHashMap<StreamId, InStream>,
    by_command: AHashMap<CommandId, Places>,
    bytes: usize,
    since: Option<Instant>,
}

impl Segment {
    pub(super) fn last(&self) -> Option<Position> {
        self.entries.last().map(|entry| entry.position)
    }

    /// The entries above a position.
    fn above(&self, after: Position) -> &[Entry] {
        let Some(first) = self.entries.first() else { return &[] };
        let skipped = after.next().get().saturating_sub(first.position.get());
        usize::try_from(skipped).ok().and_then(|skipped| self.entries.get(skipped..)).unwrap_or(&[])
    }

    fn places_of(&self, command: CommandId) -> impl Iterator<Item = Place> {
        self.by_command
            .get(&command)
            .into_iter()
            .flat_map(|places| std::iter::once(places.first).chain(places.others.iter().copied()))
    }

    fn push(&mut self, stream: &StreamId, end: StreamEnd, command: CommandId, payload: Bytes, recorded_at: UnixMillis) {
        self.bytes += payload.len();
        self.entries.push(Entry {
            position: end.last,
            recorded_at,
            stream: end.id,
            scope: end.scope,
            command,
            payload,
            org: stream.org(),
            kind: stream.kind(),
        });
        match self.by_stream.get_mut(stream) {
            Some(known) => {
                known.end = end;
                known.positions.push(end.last);
            }
            None => drop(self.by_stream.insert(stream.clone(), InStream { end, positions: vec![end.last] })),
        }
        let place = Place { position: end.last, stream: end.id };
        self.by_command
            .entry(command)
            .and_modify(|places| places.others.push(place))
            .or_insert(Places { first: place, others: Vec::new() });
    }
}

#[derive(Debug)]
pub(super) struct Tail {
    inner: Mutex<Inner>,
    /// `apply` waits for something to do.
    work: Condvar,
    /// The writer waits for room.
    room: Condvar,
    batch_commits: usize,
}

#[derive(Debug)]
struct Inner {
    ends: LruCache<StreamId, StreamEnd>,
    /// The file has everything up to here, durably.
    applied: Position,
    /// No command above this one stands in the file: younger ones, whose ids grow with time, are not looked for.
    last_command: Option<CommandId>,
    /// On its way to the file.
    leaving: Option<Arc<Segment>>,
    /// What comes above.
    fresh: Segment,
    /// Why the file takes nothing more at the moment.
    stuck: Option<String>,
    /// Nothing is added any more.
    ended: bool,
}

/// What the tail knows of a command.
pub(super) struct Found {
    pub(super) command: CommandId,
    pub(super) places: Vec<Place>,
    /// Whether the file may know of more.
    pub(super) ask_file: bool,
}

impl Tail {
    pub(super) fn new(applied: Position, last_command: Option<CommandId>, batch_commits: usize) -> Self {
        let inner = Inner {
            ends: LruCache::sparse(STREAMS_MAX),
            applied,
            last_command,
            leaving: None,
            fresh: Segment::default(),
            stuck: None,
            ended: false,
        };
        Self { inner: Mutex::new(inner), work: Condvar::new(), room: Condvar::new(), batch_commits }
    }

    /// Each change is whole before anything can panic.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Up to where the file has everything.
    pub(super) fn applied(&self) -> Position {
        self.lock().applied
    }

    /// What is known of these streams, in order; `None`: the tail holds none of its commits. For the writer: what it asks for stays
    /// known the longest.
    pub(super) fn ends_of<'a>(
        &self,
        streams: impl Iterator<Item = &'a StreamId>,
        mut each: impl FnMut(&'a StreamId, Option<StreamEnd>),
    ) {
        let mut inner = self.lock();
        for stream in streams {
            let end = inner.ends.get(stream).copied().or_else(|| inner.end_in_tail(stream));
            each(stream, end);
        }
    }

    /// Of these commands, those that the tail has or the file may have.
    pub(super) fn find(&self, commands: impl Iterator<Item = CommandId>) -> Vec<Found> {
        let inner = self.lock();
        commands
            .filter_map(|command| {
                let places: Vec<Place> = inner.segments().flat_map(|segment| segment.places_of(command)).collect();
                let ask_file = inner.last_command.is_some_and(|last| command <= last);
                (ask_file || !places.is_empty()).then_some(Found { command, places, ask_file })
            })
            .collect()
    }

    /// Where the stream ends. `None`: the tail holds none of its commits, the file all of them, or there is none.
    pub(super) fn last_of(&self, stream: &StreamId) -> Option<Position> {
        let inner = self.lock();
        inner.ends.peek(stream).copied().or_else(|| inner.end_in_tail(stream)).map(|end| end.last)
    }

    /// The commit at a position; `None`: the file has it, or nobody.
    pub(super) fn at(&self, position: Position) -> Option<Stored> {
        let before = Position::new(position.get().checked_sub(1)?);
        let inner = self.lock();
        inner.above(before).next().filter(|entry| entry.position == position).map(Entry::stored)
    }

    /// The first of a stream's commits above `after`, at most `limit`, as far as the file may not have them.
    pub(super) fn of_stream(&self, stream: &StreamId, after: Position, limit: usize) -> Vec<Stored> {
        let inner = self.lock();
        let mut stored = Vec::new();
        for segment in inner.segments() {
            let positions = segment.by_stream.get(stream).into_iter().flat_map(|known| &known.positions);
            for position in positions.filter(|position| **position > after).take(limit - stored.len()) {
                let before = Position::new(position.get().saturating_sub(1));
                stored.extend(segment.above(before).first().map(Entry::stored));
            }
        }
        stored
    }

    /// Commits above `after` and up to `head` that pass the filter. `None`: the file has what comes after `after`.
    pub(super) fn page(
        &self,
        after: Position,
        head: Position,
        limit: usize,
        bytes_max: usize,
        filter: &Filter,
    ) -> Option<StoredPage> {
        let inner = self.lock();
        if after < inner.applied {
            return None;
        }
        let (mut commits, mut bytes, mut read_up_to) = (Vec::new(), 0, after);
        for entry in inner.above(after).take(LOOKED_AT_MAX).take_while(|entry| entry.position <= head) {
            read_up_to = entry.position;
            if !filter.accepts_scope(entry.org, entry.kind) {
                continue;
            }
            bytes += entry.payload.len();
            commits.push(entry.stored());
            if commits.len() >= limit || bytes >= bytes_max {
                break;
            }
        }
        Some(StoredPage { commits, read_up_to })
    }

    /// A group that the journal has.
    pub(super) fn add(&self, additions: &Additions<'_>, recorded_at: UnixMillis) {
        let mut inner = self.lock();
        let before = inner.fresh.entries.len();
        for commit in &additions.commits {
            // Most streams are known: their names are copied for the others alone.
            match inner.ends.get_mut(commit.stream) {
                Some(known) => *known = commit.end,
                None => drop(inner.ends.put(commit.stream.clone(), commit.end)),
            }
            inner.fresh.push(commit.stream, commit.end, commit.command, commit.payload.clone(), recorded_at);
        }
        inner.fresh.streams.extend(additions.streams.iter().map(|(id, stream)| (*id, (*stream).clone())));
        inner.fresh.scopes.extend(&additions.scopes);
        let full = before < self.batch_commits && inner.fresh.entries.len() >= self.batch_commits;
        if before == 0 {
            inner.fresh.since = Some(Instant::now());
        }
        drop(inner);
        // Otherwise it waits for more, or is at work.
        if before == 0 || full {
            self.work.notify_one();
        }
    }

    /// Waits until the file is not too far behind. Fails with why it does not come after.
    pub(super) fn wait_for_room(&self) -> Result<(), String> {
        let mut inner = self.lock();
        loop {
            let (commits, bytes) = (inner.fresh.entries.len(), inner.fresh.bytes);
            if commits < BATCHES_AHEAD_MAX * self.batch_commits && bytes < BATCHES_AHEAD_MAX * BATCH_BYTES {
                return Ok(());
            }
            if let Some(stuck) = &inner.stuck {
                return Err(stuck.clone());
            }
            inner = self.room.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Streams that were looked up in the file.
    pub(super) fn remember<'a>(&self, ends: impl Iterator<Item = (&'a StreamId, StreamEnd)>) {
        let mut inner = self.lock();
        for (stream, end) in ends {
            inner.ends.put(stream.clone(), end);
        }
    }

    /// All of it that is not in the file, at once. `None`: nothing.
    pub(super) fn everything(&self) -> Option<Arc<Segment>> {
        let mut inner = self.lock();
        (inner.leaving.is_some() || !inner.fresh.entries.is_empty()).then(|| inner.hand_out())
    }

    /// The next batch for the file; waits for it. What was handed out and did not come into the file is handed out again.
    /// `None`: everything is there, and nothing is added any more.
    pub(super) fn next_batch(&self) -> Option<Arc<Segment>> {
        let mut inner = self.lock();
        loop {
            if inner.leaving.is_some() {
                return Some(inner.hand_out());
            }
            let age = inner.fresh.since.map(|since| since.elapsed()).unwrap_or_default();
            let full = inner.fresh.entries.len() >= self.batch_commits || inner.fresh.bytes >= BATCH_BYTES;
            match inner.fresh.since {
                None if inner.ended => return None,
                None => inner = self.work.wait(inner).unwrap_or_else(PoisonError::into_inner),
                Some(_) if inner.ended || full || age >= BATCH_AGE => return Some(inner.hand_out()),
                Some(_) => {
                    let waited = self.work.wait_timeout(inner, BATCH_AGE - age);
                    inner = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }

    /// The batch that was handed out stands in the file, durably.
    pub(super) fn stored(&self, up_to: Position) {
        let mut inner = self.lock();
        inner.applied = up_to;
        inner.stuck = None;
        let gone = inner.leaving.take();
        drop(inner);
        self.room.notify_one();
        drop(gone);
    }

    /// The batch that was handed out did not come into the file, for this reason.
    pub(super) fn not_stored(&self, reason: String) {
        self.lock().stuck = Some(reason);
        self.room.notify_one();
    }

    /// Nothing is added any more.
    pub(super) fn end(&self) {
        self.lock().ended = true;
        self.work.notify_one();
    }

    /// Whether `end` was told.
    pub(super) fn has_ended(&self) -> bool {
        self.lock().ended
    }
}

impl Inner {
    /// What is on its way, or else what comes above.
    fn hand_out(&mut self) -> Arc<Segment> {
        let fresh = &mut self.fresh;
        let leaving = self.leaving.get_or_insert_with(|| {
            let leaving = std::mem::take(fresh);
            // Before the file can have them.
            self.last_command = self.last_command.max(leaving.by_command.keys().max().copied());
            Arc::new(leaving)
        });
        Arc::clone(leaving)
    }

    fn segments(&self) -> impl Iterator<Item = &Segment> {
        self.leaving.as_deref().into_iter().chain(std::iter::once(&self.fresh))
    }

    fn above(&self, after: Position) -> impl Iterator<Item = &Entry> {
        self.segments().flat_map(move |segment| segment.above(after))
    }

    fn end_in_tail(&self, stream: &StreamId) -> Option<StreamEnd> {
        let segments = std::iter::once(&self.fresh).chain(self.leaving.as_deref());
        segments.filter_map(|segment| segment.by_stream.get(stream)).map(|known| known.end).next()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::group::NewCommit;
    use super::*;

    fn stream(key: &str) -> StreamId {
        StreamId::new(OrgId::from_uuid(Uuid::from_u128(1)), StreamKind::Claim, key).expect("a key")
    }

    fn command(number: u64) -> CommandId {
        CommandId::from_uuid(Uuid::from_u128(number.into()))
    }

    fn add(tail: &Tail, key: &str, position: u64) {
        let (stream, payload) = (stream(key), Bytes::from_static(b"{}"));
        let end = StreamEnd { id: 1, scope: 1, last: Position::new(position) };
        let commits = vec![NewCommit { stream: &stream, end, command: command(position), payload: &payload }];
        tail.add(&Additions { commits, ..Additions::default() }, UnixMillis::new(position));
    }

    fn positions(stored: impl IntoIterator<Item = Stored>) -> Vec<u64> {
        stored.into_iter().map(|stored| stored.position.get()).collect()
    }

    fn of_stream(tail: &Tail, key: &str, after: u64, limit: usize) -> Vec<u64> {
        positions(tail.of_stream(&stream(key), Position::new(after), limit))
    }

    fn page(tail: &Tail, after: u64, head: u64, limit: usize) -> Option<(Vec<u64>, u64)> {
        let filter = Filter { org: None, kinds: vec![StreamKind::Claim] };
        let page = tail.page(Position::new(after), Position::new(head), limit, usize::MAX, &filter)?;
        Some((positions(page.commits), page.read_up_to.get()))
    }

    #[test]
    fn a_commit_is_in_the_tail_until_the_file_has_it() {
        let tail = Tail::new(Position::new(10), None, 3);
        for (key, position) in [("a", 11), ("b", 12), ("a", 13)] {
            add(&tail, key, position);
        }
        let batch = tail.next_batch().expect("a full one");
        add(&tail, "a", 14);
        assert_eq!(batch.last(), Some(Position::new(13)));
        assert_eq!((of_stream(&tail, "a", 0, 10), of_stream(&tail, "a", 11, 1)), (vec![11, 13, 14], vec![13]));
        assert_eq!((page(&tail, 9, 14, 9), page(&tail, 10, 14, 9)), (None, Some((vec![11, 12, 13, 14], 14))));
        assert_eq!((page(&tail, 11, 13, 9), page(&tail, 12, 14, 1)), (Some((vec![12, 13], 13)), Some((vec![13], 13))));
        assert_eq!(positions(tail.at(Position::new(12))), [12]);
        assert_eq!(positions([10, 15].into_iter().filter_map(|at| tail.at(Position::new(at)))), [0; 0]);
        // It was not stored: the same once more.
        tail.not_stored("full".to_owned());
        assert!(Arc::ptr_eq(&batch, &tail.next_batch().expect("a batch")));
        tail.stored(Position::new(13));
        assert_eq!((tail.applied(), of_stream(&tail, "a", 0, 10)), (Position::new(13), vec![14]));
        assert_eq!((page(&tail, 12, 14, 9), page(&tail, 13, 14, 9)), (None, Some((vec![14], 14))));
        let remembered = tail.last_of(&stream("b"));
        assert_eq!(remembered, Some(Position::new(12)), "though it is no longer in the tail");
    }

    #[test]
    fn commands_are_looked_for_in_the_file_only_where_it_may_have_them() {
        let tail = Tail::new(Position::START, Some(command(5)), 1);
        add(&tail, "a", 7);
        let find = |number| {
            let found = tail.find([command(number)].into_iter()).pop();
            found.map(|found| (found.places.len(), found.ask_file))
        };
        assert_eq!((find(4), find(6), find(7), find(8)), (Some((0, true)), None, Some((1, false)), None));
        tail.next_batch().expect("a full one");
        assert_eq!((find(6), find(7), find(8)), (Some((0, true)), Some((1, true)), None));
    }

    #[test]
    fn appends_wait_for_the_file_and_hear_why_it_does_not_come_after() {
        let tail = Tail::new(Position::START, None, 1);
        for position in 1..=BATCHES_AHEAD_MAX as u64 {
            assert_eq!(tail.wait_for_room(), Ok(()));
            add(&tail, "a", position);
        }
        tail.not_stored("the disk is full".to_owned());
        assert_eq!(tail.wait_for_room(), Err("the disk is full".to_owned()));
        std::thread::scope(|scope| {
            let last = tail.next_batch().and_then(|batch| batch.last()).expect("a batch");
            tail.stored(last);
            scope.spawn(|| assert_eq!(tail.wait_for_room(), Ok(())));
        });
        tail.end();
        assert!(tail.next_batch().is_none());
    }
}
