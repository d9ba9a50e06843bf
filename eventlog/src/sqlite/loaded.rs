//! What a log is found to be when it is opened: its end, its scopes, what only the journal has.
//!
//! Looks at the end of the file alone, so that it takes no longer for a long log; what stands before is counted afterwards, while
//! the log is in use (`count`). Not here: the tables (`format`), the journal's form (`journal`).

use ahash::AHashMap;
use envforge_domain::commit::{Position, StreamId, StreamKind};
use envforge_domain::ids::{CommandId, OrgId};
use envforge_domain::time::UnixMillis;
use rusqlite::{Connection, OptionalExtension, Row};
use uuid::Uuid;

use super::file::{LogFile, damage_or};
use super::format;
use super::group::{Additions, NewCommit};
use super::journal::{self, Journaled};
use super::tail::{StreamEnd, Tail};
use crate::{LogError, NotTheSameLog};

/// A log as it was found.
pub(super) struct Loaded {
    pub(super) head: Position,
    pub(super) recorded_at: UnixMillis,
    pub(super) scopes: AHashMap<(OrgId, StreamKind), i64>,
    pub(super) scopes_ever: i64,
    pub(super) streams_ever: i64,
    pub(super) tail: Tail,
    /// The next journal's.
    pub(super) journal_number: u64,
    /// Why its end could not be read.
    pub(super) damage: Option<LogError>,
}

impl Loaded {
    /// `batch_commits`: at the end of the file, so many are looked at.
    pub(super) fn read(file: &LogFile, connection: &Connection, batch_commits: usize) -> Result<Self, LogError> {
        let head = position(number(connection, "SELECT coalesce(max(position), 0) FROM log")?);
        let indexed = position(number(connection, "SELECT up_to FROM indexed")?);
        if indexed != head {
            let found = format!("it ends at {head}, its index at {indexed}");
            return Err(LogError::NotTheSameLog(NotTheSameLog::Replaced { found }));
        }
        let (scopes, scopes_ever) = scopes(connection)?;
        let last_command: Option<[u8; 16]> =
            connection.query_row("SELECT max(command) FROM command_commits", [], |row| row.get(0)).map_err(failed)?;
        let last_command = last_command.map(|bytes| CommandId::from_uuid(Uuid::from_bytes(bytes)));
        let mut loaded = Self {
            head,
            recorded_at: UnixMillis::EPOCH,
            scopes,
            scopes_ever,
            streams_ever: number(connection, "SELECT coalesce(max(id), 0) FROM streams")?,
            tail: Tail::new(head, last_command, batch_commits),
            journal_number: 1,
            damage: None,
        };
        match loaded.look_at_end(connection, batch_commits) {
            Ok(()) => {}
            // It is opened for those who ask why, and for what can still be read.
            Err(damage @ LogError::Damaged(_)) => loaded.damage = Some(damage),
            Err(error) => return Err(error),
        }
        loaded.read_journal(file, connection)?;
        Ok(loaded)
    }

    fn look_at_end(&mut self, connection: &Connection, batch_commits: usize) -> Result<(), LogError> {
        let last = "SELECT recorded_at FROM log WHERE position = ?";
        let recorded_at: Option<i64> =
            connection.query_row(last, [self.head.get().cast_signed()], |row| row.get(0)).optional().map_err(failed)?;
        self.recorded_at = UnixMillis::new(recorded_at.unwrap_or(0).cast_unsigned());
        let from = self.head.get().saturating_sub(batch_commits as u64);
        let mut after = position(from.cast_signed());
        let mut positions =
            connection.prepare("SELECT position FROM log WHERE position > ? ORDER BY position").map_err(failed)?;
        for found in positions.query_map([from.cast_signed()], |row| row.get(0)).map_err(failed)? {
            let found = position(found.map_err(failed)?);
            if found != after.next() {
                // What is missing may begin before what was looked at.
                let after = if after.get() == from { before(connection, found)? } else { after };
                return Err(LogError::NotTheSameLog(NotTheSameLog::Gap { after, found }));
            }
            after = found;
        }
        Ok(())
    }

    /// Takes up what only the journal has.
    fn read_journal(&mut self, file: &LogFile, connection: &Connection) -> Result<(), LogError> {
        let needed = format::needs_journal(connection).map_err(failed)?;
        let mut id = connection.prepare("SELECT id FROM streams WHERE subject = ?").map_err(failed)?;
        let mut new: AHashMap<StreamId, i64> = AHashMap::new();
        let left = journal::read(file.directory(), file.identity(), self.head, |journaled| {
            let stream = &journaled.stream;
            let known = match new.get(stream) {
                Some(id) => Some(*id),
                None => id.query_row([stream.subject()], |row| row.get(0)).optional().map_err(failed)?,
            };
            if known.is_none() {
                new.insert(stream.clone(), self.streams_ever + 1);
            }
            self.take(&journaled, known);
            Ok(())
        })?;
        if needed && !left.found {
            return Err(LogError::Open(format!(
                "the journal of {} is missing: the last commits that were acknowledged may stand in {} alone; put them back beside it, from the same copy",
                file.path().display(),
                journal::FILES.join(" and "),
            )));
        }
        self.journal_number = left.number + 1;
        Ok(())
    }

    fn take(&mut self, journaled: &Journaled, known: Option<i64>) {
        let stream = &journaled.stream;
        let mut additions = Additions::default();
        let id = known.unwrap_or_else(|| {
            self.streams_ever += 1;
            additions.streams.push((self.streams_ever, stream));
            self.streams_ever
        });
        let of = (stream.org(), stream.kind());
        let scope = *self.scopes.entry(of).or_insert_with(|| {
            self.scopes_ever += 1;
            additions.scopes.push((self.scopes_ever, of.0, of.1));
            self.scopes_ever
        });
        let end = StreamEnd { id, scope, last: journaled.position };
        additions.commits.push(NewCommit { stream, end, command: journaled.command, payload: &journaled.payload });
        self.tail.add(&additions, journaled.recorded_at);
        (self.head, self.recorded_at) = (journaled.position, journaled.recorded_at);
    }
}

/// The last commit before one.
fn before(connection: &Connection, found: Position) -> Result<Position, LogError> {
    let sql = "SELECT coalesce(max(position), 0) FROM log WHERE position < ?";
    connection.query_row(sql, [found.get().cast_signed()], |row| row.get(0)).map(position).map_err(failed)
}

type Scopes = AHashMap<(OrgId, StreamKind), i64>;

/// The scopes by what they are, and the last of their numbers.
fn scopes(connection: &Connection) -> Result<(Scopes, i64), LogError> {
    let (mut scopes, mut ever) = (AHashMap::new(), 0);
    let mut statement = connection.prepare("SELECT id, org, kind FROM scopes").map_err(failed)?;
    let row = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?));
    for row in statement.query_map([], row).map_err(failed)? {
        let (id, org, kind) = row.map_err(failed)?;
        let damaged = || LogError::Open(format!("scope {id} is damaged: {org}.{kind}"));
        let of = (org.parse().map_err(|_| damaged())?, StreamKind::from_token(&kind).ok_or_else(damaged)?);
        scopes.insert(of, id);
        ever = ever.max(id);
    }
    Ok((scopes, ever))
}

fn number(connection: &Connection, sql: &str) -> Result<i64, LogError> {
    connection.query_row(sql, [], |row| row.get(0)).map_err(failed)
}

fn failed(error: rusqlite::Error) -> LogError {
    damage_or(&error, LogError::Open)
}

fn position(number: i64) -> Position {
    Position::new(number.cast_unsigned())
}
