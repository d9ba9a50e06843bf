//! What one group of appends comes to: an answer for each, and the rows of those that may be stored.
//!
//! Pure: what is known of streams and commands is looked up before, and stored afterwards (`writer`).

use ahash::AHashMap;
use bytes::Bytes;
use envforge_domain::commit::{Expectation, Position, StreamId, StreamKind};
use envforge_domain::ids::{CommandId, OrgId};

use super::tail::StreamEnd;
use crate::prepared::PreparedAppend;
use crate::{AppendError, Appended};

pub(super) type Answer = Result<Appended, AppendError>;

/// A commit of a command that was appended before.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) position: Position,
    pub(super) stream: i64,
    pub(super) request_digest: Option<[u8; 32]>,
}

/// What the group needs to know.
pub(super) struct Knowledge<'g> {
    /// Of all streams that it writes or guards and that have commits.
    pub(super) ends: AHashMap<&'g StreamId, StreamEnd>,
    /// Of all its commands that were appended before.
    pub(super) commands: AHashMap<CommandId, Vec<Known>>,
    pub(super) head: Position,
    pub(super) streams_ever: i64,
    pub(super) scopes_ever: i64,
}

/// A commit that is to be stored, where its stream ends with it.
pub(super) struct NewCommit<'g> {
    pub(super) stream: &'g StreamId,
    pub(super) end: StreamEnd,
    pub(super) command: CommandId,
    pub(super) payload: &'g Bytes,
}

impl NewCommit<'_> {
    /// Its organization and kind.
    pub(super) fn scope(&self) -> (OrgId, StreamKind) {
        (self.stream.org(), self.stream.kind())
    }
}

/// What the group adds.
#[derive(Default)]
pub(super) struct Additions<'g> {
    pub(super) commits: Vec<NewCommit<'g>>,
    pub(super) streams: Vec<(i64, &'g StreamId)>,
    pub(super) scopes: Vec<(i64, OrgId, StreamKind)>,
}

impl Additions<'_> {
    /// The number of a scope that the file does not have.
    fn scope(&mut self, (org, kind): (OrgId, StreamKind), scopes_ever: &mut i64) -> i64 {
        if let Some((id, ..)) = self.scopes.iter().find(|added| (added.1, added.2) == (org, kind)) {
            return *id;
        }
        *scopes_ever += 1;
        self.scopes.push((*scopes_ever, org, kind));
        *scopes_ever
    }
}

/// Judges each append on what those before it in the group leave behind.
pub(super) fn decide<'g>(
    appends: impl ExactSizeIterator<Item = &'g PreparedAppend>,
    mut knowledge: Knowledge<'g>,
    scopes: &AHashMap<(OrgId, StreamKind), i64>,
) -> (Vec<Answer>, Additions<'g>) {
    let mut additions = Additions::default();
    let mut answers = Vec::with_capacity(appends.len());
    for append in appends {
        let known = knowledge.commands.get(&append.command);
        if let Some(answer) = known.and_then(|known| answered_before(append, known, &knowledge.ends)) {
            answers.push(answer);
            continue;
        }
        if let Some(refusal) = refusal(append, &knowledge.ends) {
            answers.push(Err(refusal));
            continue;
        }
        let mut positions = Vec::with_capacity(append.commits.len());
        for commit in &append.commits {
            knowledge.head = knowledge.head.next();
            let position = knowledge.head;
            positions.push(position);
            let end = match knowledge.ends.get_mut(&commit.stream) {
                Some(end) => {
                    end.last = position;
                    *end
                }
                None => {
                    let of = (commit.stream.org(), commit.stream.kind());
                    let scope =
                        scopes.get(&of).copied().unwrap_or_else(|| additions.scope(of, &mut knowledge.scopes_ever));
                    knowledge.streams_ever += 1;
                    additions.streams.push((knowledge.streams_ever, &commit.stream));
                    let end = StreamEnd { id: knowledge.streams_ever, scope, last: position };
                    knowledge.ends.insert(&commit.stream, end);
                    end
                }
            };
            let known = Known { position, stream: end.id, request_digest: append.request_digest };
            knowledge.commands.entry(append.command).or_default().push(known);
            let (stream, command, payload) = (&commit.stream, append.command, &commit.payload);
            additions.commits.push(NewCommit { stream, end, command, payload });
        }
        answers.push(Ok(Appended { positions, duplicate: false }));
    }
    (answers, additions)
}

/// Why an append may not be stored where streams end as `ends` says: its rights first, then its own streams.
fn refusal(append: &PreparedAppend, ends: &AHashMap<&StreamId, StreamEnd>) -> Option<AppendError> {
    let last_of = |stream: &StreamId| ends.get(stream).map_or(Position::START, |end| end.last);
    if let Some(guard) = append.guards().find(|guard| guard.last != last_of(&guard.stream)) {
        return Some(AppendError::RightsMoved { stream: guard.stream.clone(), expected: guard.last });
    }
    append.commits.iter().find_map(|commit| match commit.expectation {
        Expectation::LastAt(expected) if expected != last_of(&commit.stream) => {
            Some(AppendError::Conflict { stream: commit.stream.clone(), expected })
        }
        Expectation::LastAt(_) | Expectation::Guards(_) => None,
    })
}

/// The answer to an append that was made before. The first commit's stream tells; the rest of a batch stands beside it.
fn answered_before(append: &PreparedAppend, known: &[Known], ends: &AHashMap<&StreamId, StreamEnd>) -> Option<Answer> {
    let reused = || Some(Err(AppendError::CommandReused { command: append.command }));
    let known_in = |stream: &StreamId| {
        let id = ends.get(stream)?.id;
        known.iter().find(|known| known.stream == id)
    };
    let mut streams = append.commits.iter().map(|commit| &commit.stream);
    let Some(first) = known_in(streams.next()?) else {
        // Whole or not at all: where only a later commit's stream has the command, that was another append.
        return if streams.any(|stream| known_in(stream).is_some()) { reused() } else { None };
    };
    if first.request_digest != append.request_digest {
        return reused();
    }
    let stands_at = |position: u64| known.iter().any(|known| known.position.get() == position);
    let (mut from, mut to, commits) = (first.position.get(), first.position.get(), append.commits.len() as u64);
    while to - from + 1 < commits && stands_at(to + 1) {
        to += 1;
    }
    while to - from + 1 < commits && stands_at(from - 1) {
        from -= 1;
    }
    Some(Ok(Appended { positions: (from..=to).map(Position::new).collect(), duplicate: true }))
}
