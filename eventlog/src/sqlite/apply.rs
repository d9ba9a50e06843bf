//! Bringing what the journal has into SQLite: a thread that stores batches of the tail, each with its index in one transaction.
//!
//! An index that is kept up to date with each append dirties a page for each stream that is appended to. Here thousands of commits
//! are sorted first, and a page is dirtied once a batch. Nobody waits for it, unless it falls far behind. Not here: what is in a
//! batch (`tail`), the tables (`format`).

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use envforge_domain::commit::Position;
use envforge_domain::ids::CommandId;
use rusqlite::{Connection, Statement};

use super::file::{LogFile, damage_or};
use super::rows::Rows;
use super::tail::{Segment, Tail};
use super::{format, journal};
use crate::{LogError, NotTheSameLog};

/// Between two tries where the disk is full, or something is in the way.
const ANOTHER_TRY: Duration = Duration::from_millis(500);

/// Stores everything that the tail has.
pub(super) fn all(connection: &Connection, tail: &Tail) -> Result<(), LogError> {
    let open = |error: rusqlite::Error| damage_or(&error, LogError::Open);
    let mut batches = Batches::prepare(connection).map_err(open)?;
    while let Some(batch) = tail.everything() {
        match batches.store(connection, tail.applied(), &batch) {
            Ok(up_to) => tail.stored(up_to),
            Err(Failed::ForGood(error)) => return Err(error),
            Err(Failed::Now(error)) => return Err(open(error)),
        }
    }
    Ok(())
}

/// The thread. It ends when the tail has ended and everything stands in the file, or when that fails then.
pub(super) fn start(connection: Connection, file: Arc<LogFile>, tail: Arc<Tail>) -> Result<JoinHandle<()>, LogError> {
    std::thread::Builder::new()
        .name("envforge-log-file".to_owned())
        .spawn(move || {
            let _at_the_end = NobodyStores(&tail);
            let whole = run(&connection, &file, &tail);
            let closed = match whole {
                Ok(true) => close(&connection, file.directory()),
                Ok(false) => Ok(()),
                Err(error) => Err(error.to_string()),
            };
            let closed = closed.and_then(|()| connection.close().map_err(|(_, error)| error.to_string()));
            if let Err(error) = closed {
                tracing::warn!(error, "closing the log failed; the next start recovers it");
            }
        })
        .map_err(|error| LogError::Open(format!("no thread for the log's file: {error}")))
}

/// Whoever waits for room is told, however the thread ends.
struct NobodyStores<'t>(&'t Tail);

impl Drop for NobodyStores<'_> {
    fn drop(&mut self) {
        self.0.not_stored(
            "nothing is brought into the log's file any more; restart EnvForge to reopen the log".to_owned(),
        );
    }
}

/// `true`: everything that was added stands in the file.
fn run(connection: &Connection, file: &LogFile, tail: &Tail) -> Result<bool, rusqlite::Error> {
    let mut batches = Batches::prepare(connection)?;
    while let Some(batch) = tail.next_batch() {
        match batches.store(connection, tail.applied(), &batch) {
            Ok(up_to) => tail.stored(up_to),
            Err(Failed::ForGood(error)) => {
                tail.not_stored(error.to_string());
                file.condemn(error);
                return Ok(false);
            }
            Err(Failed::Now(error)) => {
                tracing::error!(%error, commits = batch.entries.len(), "the log's file takes nothing; the journal has it");
                tail.not_stored(error.to_string());
                if tail.has_ended() {
                    return Ok(false);
                }
                std::thread::sleep(ANOTHER_TRY);
            }
        }
    }
    Ok(true)
}

/// Nothing stands in the journal alone, nor in the write-ahead log unless somebody reads: a copy of the file is a copy of the log.
fn close(connection: &Connection, directory: &Path) -> Result<(), String> {
    let closed = || {
        format::journal_is_needed(connection, false)?;
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
    };
    closed().map_err(|error: rusqlite::Error| error.to_string())?;
    journal::remove(directory).map_err(|error| error.to_string())
}

/// Why a batch does not stand in the file.
enum Failed {
    /// It may later.
    Now(rusqlite::Error),
    /// The file is not what it was, or broken.
    ForGood(LogError),
}

impl From<rusqlite::Error> for Failed {
    fn from(error: rusqlite::Error) -> Self {
        match damage_or(&error, LogError::Unavailable) {
            damage @ LogError::Damaged(_) => Self::ForGood(damage),
            _ => Self::Now(error),
        }
    }
}

/// The statements that store batches.
struct Batches<'c> {
    begin: Statement<'c>,
    commit: Statement<'c>,
    rollback: Statement<'c>,
    ends_at: Statement<'c>,
    scope: Statement<'c>,
    stream: Statement<'c>,
    up_to: Statement<'c>,
    commits: Rows<'c>,
    streams: Rows<'c>,
    scopes: Rows<'c>,
    commands: Rows<'c>,
}

impl<'c> Batches<'c> {
    fn prepare(connection: &'c Connection) -> Result<Self, rusqlite::Error> {
        let prepare = |sql| connection.prepare(sql);
        let rows = |into, row| Rows::prepare(connection, into, row);
        Ok(Self {
            begin: prepare("BEGIN IMMEDIATE")?,
            commit: prepare("COMMIT")?,
            rollback: prepare("ROLLBACK")?,
            ends_at: prepare("SELECT coalesce(max(position), 0) FROM log")?,
            scope: prepare("INSERT INTO scopes (id, org, kind) VALUES (?, ?, ?)")?,
            stream: prepare("INSERT INTO streams (id, subject) VALUES (?, ?)")?,
            up_to: prepare("UPDATE indexed SET up_to = ?")?,
            commits: rows("log (position, stream, scope, command, recorded_at, payload)", "(?, ?, ?, ?, ?, ?)")?,
            streams: rows("stream_commits (stream, position)", "(?, ?)")?,
            scopes: rows("scope_commits (scope, position)", "(?, ?)")?,
            commands: rows("command_commits (command, stream, position)", "(?, ?, ?)")?,
        })
    }

    /// Answers up to where the file has everything. `after`: where it ended.
    fn store(&mut self, connection: &Connection, after: Position, batch: &Segment) -> Result<Position, Failed> {
        self.begin.execute([])?;
        let stored = self.store_begun(after, batch);
        if !connection.is_autocommit()
            && let Err(error) = self.rollback.execute([])
        {
            tracing::warn!(%error, "rolling back failed");
        }
        stored
    }

    fn store_begun(&mut self, after: Position, batch: &Segment) -> Result<Position, Failed> {
        let ends_at = position(self.ends_at.query_row([], |row| row.get(0))?);
        let up_to = batch.last().unwrap_or(after);
        if ends_at == up_to {
            // It was stored, and its end was not heard.
            return Ok(up_to);
        }
        if ends_at != after {
            let found = format!("it ends at {ends_at}, this process left it at {after}");
            return Err(Failed::ForGood(LogError::NotTheSameLog(NotTheSameLog::Replaced { found })));
        }
        for (id, org, kind) in &batch.scopes {
            self.scope.execute((id, org.to_string(), kind.token()))?;
        }
        for (id, stream) in &batch.streams {
            self.stream.execute((id, stream.subject()))?;
        }
        self.commits.insert(&batch.entries, |statement, at, entry| {
            statement.raw_bind_parameter(at, number(entry.position))?;
            statement.raw_bind_parameter(at + 1, entry.stream)?;
            statement.raw_bind_parameter(at + 2, entry.scope)?;
            statement.raw_bind_parameter(at + 3, entry.command.as_uuid().as_bytes().as_slice())?;
            statement.raw_bind_parameter(at + 4, entry.recorded_at.get().cast_signed())?;
            statement.raw_bind_parameter(at + 5, &entry.payload[..])?;
            Ok(at + 6)
        })?;
        let entries = &batch.entries;
        let mut pairs: Vec<_> = entries.iter().map(|entry| (entry.stream, number(entry.position))).collect();
        pairs.sort_unstable();
        self.streams.insert(&pairs, bind_pair)?;
        pairs.clear();
        pairs.extend(entries.iter().map(|entry| (entry.scope, number(entry.position))));
        pairs.sort_unstable();
        self.scopes.insert(&pairs, bind_pair)?;
        let mut commands: Vec<(CommandId, i64, i64)> =
            entries.iter().map(|entry| (entry.command, entry.stream, number(entry.position))).collect();
        commands.sort_unstable();
        self.commands.insert(&commands, |statement, at, (command, stream, position)| {
            statement.raw_bind_parameter(at, command.as_uuid().as_bytes().as_slice())?;
            bind_pair(statement, at + 1, &(*stream, *position))
        })?;
        self.up_to.execute([number(up_to)])?;
        self.commit.execute([])?;
        Ok(up_to)
    }
}

fn bind_pair(statement: &mut Statement<'_>, at: usize, pair: &(i64, i64)) -> Result<usize, rusqlite::Error> {
    statement.raw_bind_parameter(at, pair.0)?;
    statement.raw_bind_parameter(at + 1, pair.1)?;
    Ok(at + 2)
}

fn number(position: Position) -> i64 {
    position.get().cast_signed()
}

fn position(number: i64) -> Position {
    Position::new(number.cast_unsigned())
}
