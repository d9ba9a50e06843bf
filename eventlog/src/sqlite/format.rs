//! What the log's file holds, how a new one begins, and how one of a former format becomes one of today's.
//!
//! ```text
//! meta              format, identity, and whether commits may stand in the journal alone (`journal`)
//! log               every commit at its position, as far as the journal has been brought into the file (`apply`)
//! streams, scopes   numbers for subjects and for pairs of organization and kind
//! stream_commits    where the commits of a stream, of a scope and of a command stand
//! scope_commits
//! command_commits
//! indexed           up to which position they are complete: the end of `log`
//! ```
//! Not here: opening and locking the file (`file`), reading and writing the tables.

use std::path::Path;

use envforge_domain::commit::Position;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};

use crate::{LogError, LogIdentity, NotTheSameLog};

/// Raised when an older EnvForge could not work with the file any more.
const FORMAT: i64 = 3;
/// Had no journal, and wrote its index behind the log: it may end before the log does.
const WITHOUT_JOURNAL: i64 = 2;
/// Kept an index of each kind up to date with each append.
const WITH_INDEXES: i64 = 1;

const SCHEMA: &str = "
CREATE TABLE meta (format INTEGER NOT NULL, identity TEXT NOT NULL, journal INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE TABLE scopes (id INTEGER PRIMARY KEY, org TEXT NOT NULL, kind TEXT NOT NULL, UNIQUE (org, kind)) STRICT;
CREATE TABLE streams (id INTEGER PRIMARY KEY, subject TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE log (
    position INTEGER PRIMARY KEY,
    stream INTEGER NOT NULL REFERENCES streams (id),
    scope INTEGER NOT NULL REFERENCES scopes (id),
    command BLOB NOT NULL,
    recorded_at INTEGER NOT NULL,
    payload BLOB NOT NULL
) STRICT;
";

const INDEX: &str = "
CREATE TABLE stream_commits (
    stream INTEGER NOT NULL, position INTEGER NOT NULL, PRIMARY KEY (stream, position)
) STRICT, WITHOUT ROWID;
CREATE TABLE scope_commits (
    scope INTEGER NOT NULL, position INTEGER NOT NULL, PRIMARY KEY (scope, position)
) STRICT, WITHOUT ROWID;
CREATE TABLE command_commits (
    command BLOB NOT NULL, stream INTEGER NOT NULL, position INTEGER NOT NULL, PRIMARY KEY (command, stream)
) STRICT, WITHOUT ROWID;
CREATE TABLE indexed (up_to INTEGER NOT NULL) STRICT;
";

/// The former indexes hold their rows in the order of the new tables.
const FROM_INDEXES: &str = "
INSERT INTO stream_commits SELECT stream, position FROM log INDEXED BY log_by_stream ORDER BY stream, position;
INSERT INTO scope_commits SELECT scope, position FROM log INDEXED BY log_by_scope ORDER BY scope, position;
INSERT INTO command_commits
    SELECT command, stream, position FROM log INDEXED BY log_by_command ORDER BY command, stream;
INSERT INTO indexed SELECT coalesce(max(position), 0) FROM log;
DROP INDEX log_by_stream;
DROP INDEX log_by_scope;
DROP INDEX log_by_command;
";

/// What a crash left of a batch stands there already.
const INDEX_REST: &str = "
INSERT OR IGNORE INTO stream_commits
    SELECT stream, position FROM log WHERE position > (SELECT up_to FROM indexed) ORDER BY stream, position;
INSERT OR IGNORE INTO scope_commits
    SELECT scope, position FROM log WHERE position > (SELECT up_to FROM indexed) ORDER BY scope, position;
INSERT OR IGNORE INTO command_commits
    SELECT command, stream, position FROM log WHERE position > (SELECT up_to FROM indexed) ORDER BY command, stream;
UPDATE indexed SET up_to = max(up_to, (SELECT coalesce(max(position), 0) FROM log));
";

/// Makes the tables where there are none, brings those of a former format up to date, and says which log this is.
pub(super) fn prepare(connection: &mut Connection, path: &Path) -> Result<LogIdentity, LogError> {
    let failed = |error: rusqlite::Error| LogError::Open(format!("{}: {error}", path.display()));
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    let tables: i64 = transaction
        .query_row("SELECT count(*) FROM sqlite_schema WHERE type = 'table'", [], |row| row.get(0))
        .map_err(failed)?;
    if tables == 0 {
        let identity = hex::encode(rand::random::<[u8; 16]>());
        begin_new(&transaction, &identity).map_err(failed)?;
        transaction.commit().map_err(failed)?;
        return Ok(LogIdentity(identity));
    }
    let (format, identity): (i64, String) = transaction
        .query_row("SELECT format, identity FROM meta", [], |row| Ok((row.get(0)?, row.get(1)?)))
        .map_err(|error| LogError::Open(format!("{} is not an EnvForge log: {error}", path.display())))?;
    match format {
        FORMAT => {}
        WITH_INDEXES | WITHOUT_JOURNAL => {
            tracing::info!(path = %path.display(), "bringing the log to format {FORMAT}");
            if format == WITH_INDEXES {
                whole(&transaction).map_err(failed)??;
            }
            let bring = || {
                if format == WITH_INDEXES {
                    transaction.execute_batch(INDEX)?;
                    transaction.execute_batch(FROM_INDEXES)?;
                }
                transaction.execute_batch(INDEX_REST)?;
                transaction.execute_batch("ALTER TABLE meta ADD COLUMN journal INTEGER NOT NULL DEFAULT 0")?;
                transaction.execute("UPDATE meta SET format = ?", [FORMAT])
            };
            bring().map_err(failed)?;
            transaction.commit().map_err(failed)?;
        }
        _ => {
            return Err(LogError::Open(format!(
                "{} has format {format}, this EnvForge works with format {FORMAT}; use the EnvForge that wrote it, or a newer one",
                path.display()
            )));
        }
    }
    Ok(LogIdentity(identity))
}

fn begin_new(transaction: &Transaction<'_>, identity: &str) -> Result<(), rusqlite::Error> {
    transaction.execute_batch(SCHEMA)?;
    transaction.execute_batch(INDEX)?;
    transaction.execute("INSERT INTO indexed (up_to) VALUES (0)", [])?;
    transaction.execute("INSERT INTO meta (format, identity) VALUES (?, ?)", (FORMAT, identity))?;
    Ok(())
}

/// Whether commits may stand in the journal and not in the file.
pub(super) fn needs_journal(connection: &Connection) -> Result<bool, rusqlite::Error> {
    connection.query_row("SELECT journal FROM meta", [], |row| row.get(0))
}

/// Says so from now on, durably.
pub(super) fn journal_is_needed(connection: &Connection, needed: bool) -> Result<(), rusqlite::Error> {
    connection.execute("UPDATE meta SET journal = ?", [needed]).map(drop)
}

/// Fails where a commit of a log of the first format is missing: what is brought over must be whole.
fn whole(transaction: &Transaction<'_>) -> Result<Result<(), LogError>, rusqlite::Error> {
    let (head, count): (i64, i64) = transaction.query_row(
        "SELECT (SELECT coalesce(max(position), 0) FROM log), (SELECT count(*) FROM log INDEXED BY log_by_scope)",
        [],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    if count == head {
        return Ok(Ok(()));
    }
    let gap = transaction
        .query_row(
            "SELECT before, position FROM (SELECT position, lag(position, 1, 0) OVER (ORDER BY position) AS before FROM log) WHERE position <> before + 1 ORDER BY position LIMIT 1",
            [],
            |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)),
        )
        .optional()?;
    let position = |number: i64| Position::new(number.cast_unsigned());
    Ok(Err(LogError::NotTheSameLog(match gap {
        Some((after, found)) => NotTheSameLog::Gap { after: position(after), found: position(found) },
        None => NotTheSameLog::Replaced { found: format!("it ends at {head} and holds {count} commits") },
    })))
}
