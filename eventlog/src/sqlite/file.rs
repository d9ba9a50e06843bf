//! The log's file: its directory, its lock, its identity, its format.
//!
//! Not here: appending (`writer`) and reading (`reader`).

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqliteConnection};

use crate::{LogError, LogIdentity, NotTheSameLog};

/// Raised when an older EnvForge could not work with the file any more.
const FORMAT: i64 = 1;

const FILE: &str = "events.sqlite";
const LOCK: &str = "events.lock";

/// Statements of the writer differ by their number of rows; all of them stay prepared.
const STATEMENT_CACHE: usize = 512;

const SCHEMA: &str = "
CREATE TABLE meta (format INTEGER NOT NULL, identity TEXT NOT NULL) STRICT;
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
CREATE UNIQUE INDEX log_by_command ON log (command, stream);
CREATE INDEX log_by_stream ON log (stream);
CREATE INDEX log_by_scope ON log (scope);
";

/// An opened, locked log file.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    identity: LogIdentity,
    /// Device and inode: the same path may name another file later.
    place: (u64, u64),
    /// Held for as long as this process may write; the kernel lets go of it when the process dies.
    _lock: File,
}

impl LogFile {
    /// Creates the log where there is none, takes its lock, checks its format.
    pub(super) async fn open(directory: &Path) -> Result<(Self, SqliteConnection), LogError> {
        let path = directory.join(FILE);
        let opened = |what: &str, error: io::Error| LogError::Open(format!("{what} {}: {error}", directory.display()));
        prepare_directory(directory).map_err(|error| opened("cannot prepare the directory", error))?;
        let lock = lock(directory)?;
        let is_new = !path.exists();
        if is_new {
            // Made by us rather than by SQLite so that nobody else may read it; its -wal and -shm inherit the mode.
            let create = || -> io::Result<()> {
                OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?.sync_all()?;
                File::open(directory)?.sync_all()
            };
            create().map_err(|error| opened("cannot create the log in", error))?;
        }
        let failed = |error: sqlx::Error| LogError::Open(format!("{}: {error}", path.display()));
        let mut connection = options(&path).connect().await.map_err(failed)?;
        let identity = identity(&mut connection, &path).await?;
        // The file's first pages and the directory entries of -wal and -shm.
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(|error| opened("cannot sync", error))?;
        let place = place(&path).map_err(|error| opened("cannot look at the log in", error))?;
        Ok((Self { path, identity, place, _lock: lock }, connection))
    }

    pub(super) fn identity(&self) -> &LogIdentity {
        &self.identity
    }

    pub(super) fn reader_options(&self) -> SqliteConnectOptions {
        options(&self.path).read_only(true).create_if_missing(false)
    }

    /// Fails when the path names another file than the one that was opened: appends to a file that nobody finds again
    /// must not be acknowledged.
    pub(super) fn check_place(&self) -> Result<(), LogError> {
        let found = match place(&self.path) {
            Ok(place) if place == self.place => return Ok(()),
            Ok(_) => format!("{} is another file", self.path.display()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => format!("{} is gone", self.path.display()),
            Err(error) => return Err(LogError::Unavailable(format!("{}: {error}", self.path.display()))),
        };
        Err(LogError::NotTheSameLog(NotTheSameLog::Replaced { found }))
    }
}

fn place(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

fn prepare_directory(directory: &Path) -> io::Result<()> {
    if !directory.exists() {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        if let Some(parent) = directory.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            File::open(parent)?.sync_all()?;
        }
    }
    // A directory that holds something else keeps its mode: it is not ours alone. The log's files are 0600 anyway.
    let ours = std::fs::read_dir(directory)?
        .all(|entry| entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("events.")));
    let loose = std::fs::metadata(directory)?.permissions().mode() & 0o077 != 0;
    if ours && loose {
        std::fs::set_permissions(directory, Permissions::from_mode(0o700))?;
    }
    Ok(())
}

fn lock(directory: &Path) -> Result<File, LogError> {
    let path = directory.join(LOCK);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|error| LogError::Open(format!("{}: {error}", path.display())))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(LogError::Open(format!(
            "{} is in use by another process; stop that EnvForge first, or give this one another data directory",
            directory.display()
        ))),
        Err(std::fs::TryLockError::Error(error)) => Err(LogError::Open(format!("{}: {error}", path.display()))),
    }
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .journal_mode(SqliteJournalMode::Wal)
        // INVARIANT: FULL syncs the write-ahead log at each commit. An acknowledged append survives a power loss.
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(std::time::Duration::from_secs(5))
        .pragma("wal_autocheckpoint", "4000")
        .pragma("journal_size_limit", "67108864")
        .pragma("trusted_schema", "OFF")
        .statement_cache_capacity(STATEMENT_CACHE)
        .disable_statement_logging()
}

async fn identity(connection: &mut SqliteConnection, path: &Path) -> Result<LogIdentity, LogError> {
    let failed = |error: sqlx::Error| LogError::Open(format!("{}: {error}", path.display()));
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
    let tables: i64 = sqlx::query_scalar("SELECT count(*) FROM sqlite_schema WHERE type = 'table'")
        .fetch_one(&mut *transaction)
        .await
        .map_err(failed)?;
    if tables == 0 {
        sqlx::raw_sql(SCHEMA).execute(&mut *transaction).await.map_err(failed)?;
        let identity = hex::encode(rand::random::<[u8; 16]>());
        sqlx::query("INSERT INTO meta (format, identity) VALUES (?, ?)")
            .bind(FORMAT)
            .bind(&identity)
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
        return Ok(LogIdentity(identity));
    }
    let (format, identity): (i64, String) = sqlx::query_as("SELECT format, identity FROM meta")
        .fetch_one(&mut *transaction)
        .await
        .map_err(|error| LogError::Open(format!("{} is not an EnvForge log: {error}", path.display())))?;
    transaction.rollback().await.map_err(failed)?;
    if format != FORMAT {
        return Err(LogError::Open(format!(
            "{} has format {format}, this EnvForge works with format {FORMAT}; use the EnvForge that wrote it, or a newer one",
            path.display()
        )));
    }
    Ok(LogIdentity(identity))
}
