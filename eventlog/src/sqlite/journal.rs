//! The journal: where an append is durable before anything else knows of it.
//!
//! Two files beside the log's, written in turn, each from its beginning. A group of appends is one frame; writing it and one sync
//! acknowledge the group, and `apply` brings it into SQLite afterwards. A file is written over once all of it stands there.
//!
//! ```text
//! header   512 bytes: magic, the log's identity, number, salt, checksum
//! frame    on a multiple of 512: magic, checksum, length, commits, salt, first position, recorded_at (ms), then each commit:
//!          lengths of subject and payload, command, subject, payload
//! ```
//! Numbers are little-endian. A checksum covers what stands behind it. The salt is the file's use, drawn at random: what a former
//! use left behind is none of its frames. A frame is written only after the one before it was synced, so at most the last one is
//! torn; positions that are missing before a whole one mean that what was acknowledged is damaged. Not here: reading what is not in SQLite
//! yet (`tail`), judging appends (`group`).

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use envforge_domain::commit::{Position, StreamId};
use envforge_domain::ids::CommandId;
use envforge_domain::time::UnixMillis;
use uuid::Uuid;

use super::file::{place, still_at};
use super::group::NewCommit;
use crate::{LogError, LogIdentity, NotTheSameLog};

pub(super) const FILES: [&str; 2] = ["events.journal-0", "events.journal-1"];

/// Headers and frames stand on multiples of it: no sector that was acknowledged is written again.
const SECTOR: usize = 512;
const HEADER_MAGIC: [u8; 8] = *b"EFJOURN1";
const FRAME_MAGIC: [u8; 4] = *b"EFJF";
const FRAME_HEAD: usize = 40;
const COMMIT_HEAD: usize = 24;
/// A file is left for the other one when it is as long, or longer where SQLite does not keep pace.
pub(super) const TURN_BYTES: u64 = 32 * 1024 * 1024;
/// What is made room for at a time: a sync of what has its place already leaves the file system's own journal alone.
const ROOM_BYTES: u64 = 4 * 1024 * 1024;
/// The first time: most logs are small.
const FIRST_ROOM_BYTES: u64 = 256 * 1024;

/// Why a group is not in the journal.
#[derive(Debug)]
pub(super) enum JournalError {
    /// Nothing of it is.
    Nothing(LogError),
    /// All or nothing of it is.
    Unknown(io::Error),
}

/// A commit as the journal holds it.
pub(super) struct Journaled {
    pub(super) position: Position,
    pub(super) recorded_at: UnixMillis,
    pub(super) stream: StreamId,
    pub(super) command: CommandId,
    pub(super) payload: Bytes,
}

/// The journal of a log that is in use.
#[derive(Debug)]
pub(super) struct Journal {
    directory: PathBuf,
    identity: LogIdentity,
    /// Bytes after which the other file is used.
    turn_bytes: u64,
    /// Of the file in use; the other one is used next with the number above.
    number: u64,
    current: Turn,
    /// What the other file holds up to.
    other_up_to: Position,
    frame: Vec<u8>,
}

/// One use of a file.
#[derive(Debug)]
struct Turn {
    file: File,
    path: PathBuf,
    place: (u64, u64),
    salt: u64,
    /// Where the next frame goes.
    end: u64,
    /// The file's length.
    room: u64,
    /// The last position that it holds.
    up_to: Position,
}

impl Journal {
    /// Begins anew: SQLite holds everything up to `head`. `number`: above any that was read.
    pub(super) fn begin(
        directory: &Path,
        identity: &LogIdentity,
        number: u64,
        head: Position,
        turn_bytes: u64,
    ) -> Result<Self, LogError> {
        let directory = directory.to_owned();
        let current = Turn::begin(&directory, identity, number, head).map_err(|error| {
            LogError::Open(format!("cannot begin the log's journal in {}: {error}", directory.display()))
        })?;
        let (identity, frame) = (identity.clone(), Vec::new());
        Ok(Self { directory, identity, turn_bytes, number, current, other_up_to: head, frame })
    }

    /// Writes and syncs a group. `applied`: up to where SQLite has everything, durably.
    pub(super) fn append(
        &mut self,
        commits: &[NewCommit<'_>],
        recorded_at: UnixMillis,
        applied: Position,
    ) -> Result<(), JournalError> {
        let Some(first) = commits.first() else { return Ok(()) };
        let nothing =
            |error: io::Error| JournalError::Nothing(LogError::Unavailable(format!("the log's journal: {error}")));
        if self.current.end >= self.turn_bytes && self.other_up_to <= applied {
            let next =
                Turn::begin(&self.directory, &self.identity, self.number + 1, self.current.up_to).map_err(nothing)?;
            self.other_up_to = self.current.up_to;
            self.number += 1;
            self.current = next;
        }
        encode(&mut self.frame, self.current.salt, first.end.last, recorded_at, commits);
        still_at(&self.current.path, self.current.place).map_err(JournalError::Nothing)?;
        self.current.make_room(self.frame.len() as u64).map_err(nothing)?;
        // What is torn here is written over by the next frame.
        self.current.file.write_all_at(&self.frame, self.current.end).map_err(nothing)?;
        // What was not synced may be there all the same.
        self.current.file.sync_data().map_err(JournalError::Unknown)?;
        self.current.end += self.frame.len() as u64;
        self.current.up_to = commits.last().map_or(self.current.up_to, |commit| commit.end.last);
        if self.frame.capacity() > 4 * ROOM_BYTES as usize {
            self.frame = Vec::new();
        }
        Ok(())
    }
}

impl Turn {
    fn begin(directory: &Path, identity: &LogIdentity, number: u64, up_to: Position) -> io::Result<Self> {
        let path = directory.join(FILES[usize::from(number % 2 == 1)]);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        let salt = rand::random();
        let room = file.metadata()?.len();
        let place = place(&path)?;
        let mut turn = Self { file, path, place, salt, end: SECTOR as u64, room, up_to };
        turn.make_room(0)?;
        turn.file.write_all_at(&header(identity, number, salt), 0)?;
        turn.file.sync_all()?;
        File::open(directory)?.sync_all()?;
        Ok(turn)
    }

    /// So many bytes more than what is written have their place in the file.
    fn make_room(&mut self, bytes: u64) -> io::Result<()> {
        if self.end + bytes <= self.room {
            return Ok(());
        }
        let more = if self.room < FIRST_ROOM_BYTES { FIRST_ROOM_BYTES } else { ROOM_BYTES.min(self.room) };
        let room = (self.end + bytes).next_multiple_of(SECTOR as u64).max(self.room + more);
        let zeros = vec![0; usize::try_from(FIRST_ROOM_BYTES).unwrap_or(SECTOR)];
        while self.room < room {
            let next = room.min(self.room + FIRST_ROOM_BYTES);
            let length = usize::try_from(next - self.room).unwrap_or(zeros.len());
            self.file.write_all_at(&zeros[..length], self.room)?;
            self.room = next;
        }
        Ok(())
    }
}

fn header(identity: &LogIdentity, number: u64, salt: u64) -> [u8; SECTOR] {
    let mut header = [0; SECTOR];
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        header[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    put(&HEADER_MAGIC);
    put(&identity_digest(identity));
    put(&number.to_le_bytes());
    put(&salt.to_le_bytes());
    let checksum = crc32fast::hash(&header[..at]);
    header[at..at + 4].copy_from_slice(&checksum.to_le_bytes());
    header
}

/// An identity is 32 hexadecimal digits where this EnvForge drew it, and anything in a file that a tool made.
fn identity_digest(identity: &LogIdentity) -> [u8; 32] {
    use sha2::Digest as _;
    sha2::Sha256::digest(identity.0.as_bytes()).into()
}

fn encode(frame: &mut Vec<u8>, salt: u64, first: Position, recorded_at: UnixMillis, commits: &[NewCommit<'_>]) {
    frame.clear();
    frame.resize(FRAME_HEAD, 0);
    for commit in commits {
        let subject_at = frame.len() + COMMIT_HEAD;
        frame.extend_from_slice(&[0; 4]);
        frame.extend_from_slice(&length(commit.payload.len()).to_le_bytes());
        frame.extend_from_slice(commit.command.as_uuid().as_bytes());
        write!(frame, "{}.{}.{}", commit.stream.org(), commit.stream.kind().token(), commit.stream.key())
            .expect("writing to a Vec cannot fail");
        let subject = length(frame.len() - subject_at);
        frame[subject_at - COMMIT_HEAD..subject_at - COMMIT_HEAD + 4].copy_from_slice(&subject.to_le_bytes());
        frame.extend_from_slice(commit.payload);
    }
    let bytes = length(frame.len() - FRAME_HEAD);
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    put(&FRAME_MAGIC);
    put(&[0; 4]);
    put(&bytes.to_le_bytes());
    put(&length(commits.len()).to_le_bytes());
    put(&salt.to_le_bytes());
    put(&first.get().to_le_bytes());
    put(&recorded_at.get().to_le_bytes());
    let checksum = crc32fast::hash(&frame[8..]);
    frame[4..8].copy_from_slice(&checksum.to_le_bytes());
    frame.resize(frame.len().next_multiple_of(SECTOR), 0);
}

/// What waits for the writer at a time is bounded far below.
fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a group is smaller than 4 GiB")
}

/// What is left of a journal by the process that had the log before.
pub(super) struct Left {
    /// Above this one a new journal begins.
    pub(super) number: u64,
    /// Whether there was any.
    pub(super) found: bool,
}

/// Hands out, in order, the commits above `head` of a journal of this log. `head`: where SQLite's part ends.
pub(super) fn read(
    directory: &Path,
    identity: &LogIdentity,
    head: Position,
    mut each: impl FnMut(Journaled) -> Result<(), LogError>,
) -> Result<Left, LogError> {
    let mut files = Vec::new();
    let mut number = 0;
    for name in FILES {
        let path = directory.join(name);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => Bytes::from(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(LogError::Open(format!("{}: {error}", path.display()))),
        };
        if let Some(header) = Header::read(&bytes) {
            if header.identity != identity_digest(identity) {
                let found = format!("{} is another log's journal", path.display());
                return Err(LogError::NotTheSameLog(NotTheSameLog::Replaced { found }));
            }
            number = number.max(header.number);
            files.push((header, path, bytes));
        } else if let Some(frame) = frames(&bytes, None).find(|frame| frame.first > head) {
            let (path, first) = (path.display(), frame.first);
            return Err(LogError::Damaged(format!("{path} holds commits from {first} on, but its header is broken")));
        }
    }
    files.sort_unstable_by_key(|(header, ..)| header.number);
    let mut end = head;
    for (header, path, bytes) in &files {
        for frame in frames(bytes, Some(header.salt)) {
            frame.commits(path, |commit| {
                if commit.position <= end {
                    return Ok(());
                }
                if commit.position != end.next() {
                    let found = commit.position;
                    return Err(LogError::Damaged(format!(
                        "{}: after the commit at {end} comes the one at {found}; what stood between them is broken",
                        path.display()
                    )));
                }
                end = commit.position;
                each(commit)
            })?;
        }
    }
    Ok(Left { number, found: !files.is_empty() })
}

/// Removes it. Everything stands in SQLite, durably.
pub(super) fn remove(directory: &Path) -> io::Result<()> {
    for name in FILES {
        match std::fs::remove_file(directory.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    File::open(directory)?.sync_all()
}

struct Header {
    identity: [u8; 32],
    number: u64,
    salt: u64,
}

impl Header {
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut at = 0;
        let magic: [u8; 8] = take(bytes, &mut at)?;
        let identity = take(bytes, &mut at)?;
        let number = u64::from_le_bytes(take(bytes, &mut at)?);
        let salt = u64::from_le_bytes(take(bytes, &mut at)?);
        let covered = &bytes[..at];
        let checksum = u32::from_le_bytes(take(bytes, &mut at)?);
        (magic == HEADER_MAGIC && checksum == crc32fast::hash(covered)).then_some(Self { identity, number, salt })
    }
}

/// A whole frame.
struct Frame {
    first: Position,
    recorded_at: UnixMillis,
    count: u32,
    body: Bytes,
    /// Where the next one stands.
    next: usize,
}

impl Frame {
    /// `salt`: of the file's use; `None`: of any.
    fn read(bytes: &Bytes, start: usize, salt: Option<u64>) -> Option<Self> {
        let mut at = start;
        let magic: [u8; 4] = take(bytes, &mut at)?;
        let checksum = u32::from_le_bytes(take(bytes, &mut at)?);
        let covered = at;
        let length = u32::from_le_bytes(take(bytes, &mut at)?) as usize;
        let count = u32::from_le_bytes(take(bytes, &mut at)?);
        let found = u64::from_le_bytes(take(bytes, &mut at)?);
        if magic != FRAME_MAGIC || salt.is_some_and(|salt| salt != found) {
            return None;
        }
        let first = Position::new(u64::from_le_bytes(take(bytes, &mut at)?));
        let recorded_at = UnixMillis::new(u64::from_le_bytes(take(bytes, &mut at)?));
        let end = at.checked_add(length).filter(|end| *end <= bytes.len())?;
        if crc32fast::hash(&bytes[covered..end]) != checksum {
            return None;
        }
        Some(Self { first, recorded_at, count, body: bytes.slice(at..end), next: end.next_multiple_of(SECTOR) })
    }

    fn commits(&self, path: &Path, mut each: impl FnMut(Journaled) -> Result<(), LogError>) -> Result<(), LogError> {
        let (mut position, mut at) = (self.first, 0);
        for _ in 0..self.count {
            let commit = self.commit(position, &mut at).ok_or_else(|| {
                LogError::Damaged(format!(
                    "{}: the commit at {position} is not whole in a frame that is",
                    path.display()
                ))
            })?;
            each(commit)?;
            position = position.next();
        }
        Ok(())
    }

    fn commit(&self, position: Position, at: &mut usize) -> Option<Journaled> {
        let subject = u32::from_le_bytes(take(&self.body, at)?) as usize;
        let payload = u32::from_le_bytes(take(&self.body, at)?) as usize;
        let command = CommandId::from_uuid(Uuid::from_bytes(take(&self.body, at)?));
        let payload_at = at.checked_add(subject)?;
        let end = payload_at.checked_add(payload).filter(|end| *end <= self.body.len())?;
        let stream = StreamId::parse_subject(std::str::from_utf8(&self.body[*at..payload_at]).ok()?)?;
        let payload = self.body.slice(payload_at..end);
        *at = end;
        Some(Journaled { position, recorded_at: self.recorded_at, stream, command, payload })
    }
}

/// Whole frames, wherever they begin: what is broken between two of them is told by the positions that are missing then.
fn frames(bytes: &Bytes, salt: Option<u64>) -> impl Iterator<Item = Frame> {
    let mut at = SECTOR;
    std::iter::from_fn(move || {
        while at < bytes.len() {
            match Frame::read(bytes, at, salt) {
                Some(frame) => {
                    at = frame.next;
                    return Some(frame);
                }
                None => at += SECTOR,
            }
        }
        None
    })
}

fn take<const N: usize>(bytes: &[u8], at: &mut usize) -> Option<[u8; N]> {
    let taken = bytes.get(*at..at.checked_add(N)?)?.try_into().ok()?;
    *at += N;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use envforge_domain::commit::StreamKind;
    use envforge_domain::ids::OrgId;
    use envforge_testkit::TestDir;
    use proptest::prelude::*;

    use super::super::tail::StreamEnd;
    use super::*;

    /// Groups of so many commits, from position 1 on.
    fn written(groups: &[usize], turn_bytes: u64) -> (TestDir, LogIdentity) {
        let (directory, identity) = (TestDir::new(), LogIdentity("a log".to_owned()));
        let mut journal = Journal::begin(directory.path(), &identity, 1, Position::START, turn_bytes).unwrap();
        let mut last = Position::START;
        for (number, commits) in groups.iter().enumerate() {
            let payload = Bytes::from(vec![u8::try_from(number).unwrap(); 37 * number]);
            let stream = StreamId::new(OrgId::from_uuid(Uuid::from_u128(1)), StreamKind::Claim, "a").unwrap();
            let commits: Vec<_> = (0..*commits)
                .map(|_| {
                    last = last.next();
                    let end = StreamEnd { id: 1, scope: 1, last };
                    let command = CommandId::from_uuid(Uuid::from_u128(last.get().into()));
                    NewCommit { stream: &stream, end, command, payload: &payload }
                })
                .collect();
            journal.append(&commits, UnixMillis::new(number as u64), Position::new(last.get() / 2)).unwrap();
        }
        (directory, identity)
    }

    fn read_up_to(directory: &TestDir, identity: &LogIdentity, head: Position) -> Result<Position, LogError> {
        let mut last = head;
        read(directory.path(), identity, head, |journaled| {
            assert_eq!(journaled.position, last.next());
            assert_eq!(journaled.command.as_uuid().as_u128(), u128::from(journaled.position.get()));
            assert_eq!(journaled.payload.len() as u64, 37 * journaled.recorded_at.get());
            assert_eq!(journaled.stream.key(), "a");
            last = journaled.position;
            Ok(())
        })
        .map(|left| {
            assert!(left.found);
            last
        })
    }

    #[test]
    fn what_was_written_is_read_again_over_any_number_of_turns() {
        for turn_bytes in [1, 3_000, TURN_BYTES] {
            let (directory, identity) = written(&[1, 4, 1, 9, 30, 2], turn_bytes);
            assert_eq!(read_up_to(&directory, &identity, Position::new(40)), Ok(Position::new(47)), "{turn_bytes}");
        }
    }

    #[test]
    fn a_journal_of_another_log_is_not_taken() {
        let (directory, _) = written(&[1], TURN_BYTES);
        let error = read_up_to(&directory, &LogIdentity("another".to_owned()), Position::START).unwrap_err();
        assert!(matches!(error, LogError::NotTheSameLog(NotTheSameLog::Replaced { .. })), "{error}");
    }

    proptest! {
        /// Whatever breaks: what is read is what was written, and where something is missing before the end that is said. Only
        /// the last group can be missing without a word, which a crash could have torn before it was acknowledged.
        #[test]
        fn a_broken_byte_is_never_read_as_something_else(
            groups in prop::collection::vec(1_usize..6, 1..8),
            at in any::<prop::sample::Index>(),
            flipped in 1_u8..=255,
        ) {
            let (directory, identity) = written(&groups, TURN_BYTES);
            let path = directory.join(FILES[1]);
            let mut bytes = std::fs::read(&path).unwrap();
            let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
            bytes[at.index(used)] ^= flipped;
            std::fs::write(&path, bytes).unwrap();
            let all: usize = groups.iter().sum();
            let without_last = all - groups.last().unwrap();
            match read_up_to(&directory, &identity, Position::START) {
                Ok(last) => prop_assert!([all, without_last].contains(&(last.get() as usize)), "{last}"),
                Err(error) => prop_assert!(matches!(error, LogError::Damaged(_)), "{error}"),
            }
        }

        #[test]
        fn whatever_stands_there_is_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..3_000)) {
            let directory = TestDir::new();
            std::fs::write(directory.join(FILES[0]), bytes).unwrap();
            let identity = LogIdentity("a log".to_owned());
            prop_assert!(read(directory.path(), &identity, Position::START, |_| Ok(())).is_ok_and(|left| !left.found));
        }
    }
}
