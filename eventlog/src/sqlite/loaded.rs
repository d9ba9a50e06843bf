//! What the writer needs to know of a log that it has just opened: its end, its scopes, its tail.
//!
//! Takes as long as the tail is, whatever the log's length. What stands before the tail is counted afterwards, while the log is in
//! use (`count`). Not here: the tables (`format`).

use ahash::AHashMap;
use envforge_domain::commit::{Position, StreamId, StreamKind};
use envforge_domain::ids::{CommandId, OrgId};
use envforge_domain::time::UnixMillis;
use rusqlite::{Connection, OptionalExtension, Row};
use uuid::Uuid;

use super::file::damage_or;
use super::index::{Behind, Entry};
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
    pub(super) behind: Behind,
    /// Why the tail could not be read to its end.
    pub(super) damage: Option<LogError>,
}

/// One commit of the tail.
struct TailRow {
    position: i64,
    stream: i64,
    scope: i64,
    command: [u8; 16],
    recorded_at: i64,
    subject: String,
}

impl TailRow {
    fn from_row(row: &Row<'_>) -> Result<Self, rusqlite::Error> {
        Ok(Self {
            position: row.get(0)?,
            stream: row.get(1)?,
            scope: row.get(2)?,
            command: row.get(3)?,
            recorded_at: row.get(4)?,
            subject: row.get(5)?,
        })
    }
}

impl Loaded {
    pub(super) fn read(connection: &Connection, index_batch_commits: usize) -> Result<Self, LogError> {
        let indexed: i64 = connection.query_row("SELECT up_to FROM indexed", [], |row| row.get(0)).map_err(failed)?;
        let (scopes, scopes_ever) = scopes(connection)?;
        let last_command: Option<[u8; 16]> =
            connection.query_row("SELECT max(command) FROM command_commits", [], |row| row.get(0)).map_err(failed)?;
        let last_command = last_command.map(|bytes| CommandId::from_uuid(Uuid::from_bytes(bytes)));
        let mut loaded = Self {
            head: position(indexed),
            recorded_at: recorded_at(connection, indexed)?,
            scopes,
            scopes_ever,
            streams_ever: connection
                .query_row("SELECT coalesce(max(id), 0) FROM streams", [], |row| row.get(0))
                .map_err(failed)?,
            tail: Tail::new(position(indexed)),
            behind: Behind::new(last_command, index_batch_commits),
            damage: None,
        };
        match loaded.read_tail(connection, indexed) {
            Ok(()) => Ok(loaded),
            // It is opened for those who ask why, and for what can still be read.
            Err(damage @ LogError::Damaged(_)) => {
                let last = "SELECT coalesce(max(position), 0) FROM log";
                loaded.head = position(connection.query_row(last, [], |row| row.get(0)).map_err(failed)?);
                loaded.damage = Some(damage);
                Ok(loaded)
            }
            Err(error) => Err(error),
        }
    }

    fn read_tail(&mut self, connection: &Connection, indexed: i64) -> Result<(), LogError> {
        let mut statement = connection
            .prepare(
                "SELECT position, stream, scope, command, recorded_at, subject FROM log LEFT JOIN streams ON streams.id = log.stream WHERE position > ? ORDER BY position",
            )
            .map_err(failed)?;
        for row in statement.query_map([indexed], TailRow::from_row).map_err(failed)? {
            self.take(&row.map_err(failed)?)?;
        }
        Ok(())
    }

    /// Positions have no gaps: followers of a part of the log rely on it, who could not see what they do not ask for.
    fn take(&mut self, row: &TailRow) -> Result<(), LogError> {
        let found = position(row.position);
        if found != self.head.next() {
            return Err(LogError::NotTheSameLog(NotTheSameLog::Gap { after: self.head, found }));
        }
        let stream = StreamId::parse_subject(&row.subject)
            .ok_or_else(|| LogError::Open(format!("stream {} is damaged: {}", row.stream, row.subject)))?;
        self.head = found;
        self.recorded_at = UnixMillis::new(row.recorded_at.cast_unsigned());
        self.tail.add([(&stream, StreamEnd { id: row.stream, scope: row.scope, last: found })].into_iter());
        let command = CommandId::from_uuid(Uuid::from_bytes(row.command));
        self.behind.push(Entry { position: found, stream: row.stream, scope: row.scope, command });
        Ok(())
    }
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

/// When the last commit was recorded that the index has. Fails where it is missing: the index is never ahead of the log.
fn recorded_at(connection: &Connection, indexed: i64) -> Result<UnixMillis, LogError> {
    if indexed == 0 {
        return Ok(UnixMillis::EPOCH);
    }
    let found: Option<i64> = connection
        .query_row("SELECT recorded_at FROM log WHERE position = ?", [indexed], |row| row.get(0))
        .optional()
        .map_err(failed)?;
    found.map(|recorded_at| UnixMillis::new(recorded_at.cast_unsigned())).ok_or_else(|| {
        let found = format!("its index reaches to {indexed}, where no commit stands");
        LogError::NotTheSameLog(NotTheSameLog::Replaced { found })
    })
}

fn failed(error: rusqlite::Error) -> LogError {
    damage_or(&error, LogError::Open)
}

fn position(number: i64) -> Position {
    Position::new(number.cast_unsigned())
}
