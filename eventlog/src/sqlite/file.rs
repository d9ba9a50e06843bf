//! The log's file: its directory, its lock, its place, how it is opened, and whether it was found to be unusable.
//!
//! Not here: its tables (`format`), appending (`writer`) and reading (`reader`).

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use sqlx::ConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;

use super::format;
use crate::{LogError, LogIdentity, NotTheSameLog};

const FILE: &str = "events.sqlite";
const LOCK: &str = "events.lock";

const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Pages of the write-ahead log from which on it is copied into the file, by the thread that writes and that nobody waits for.
const CHECKPOINT_PAGES: i64 = 4_000;
/// Bytes that are left of the write-ahead log for the next round.
const WAL_BYTES_KEPT: i64 = 64 * 1024 * 1024;
/// Of the connection that writes, in KiB: the pages of the index that a batch comes back to.
const WRITER_CACHE_KIB: i64 = 16 * 1024;
/// Statements that a reading connection keeps prepared.
const STATEMENT_CACHE: usize = 128;

/// An opened, locked log file.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    identity: LogIdentity,
    /// Device and inode: the same path may name another file later.
    place: (u64, u64),
    /// What was found wrong with it since it was opened.
    fault: OnceLock<LogError>,
    /// Held for as long as this process may write; the kernel lets go of it when the process dies.
    _lock: File,
}

impl LogFile {
    /// Creates the log where there is none, takes its lock, checks its format. Answers the one connection that writes.
    pub(super) fn open(directory: &Path) -> Result<(Self, Connection), LogError> {
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
        let mut connection = connect(&path).map_err(|error| LogError::Open(format!("{}: {error}", path.display())))?;
        let identity = format::prepare(&mut connection, &path)?;
        // The file's first pages and the directory entries of -wal and -shm.
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(|error| opened("cannot sync", error))?;
        let place = place(&path).map_err(|error| opened("cannot look at the log in", error))?;
        Ok((Self { path, identity, place, fault: OnceLock::new(), _lock: lock }, connection))
    }

    pub(super) fn identity(&self) -> &LogIdentity {
        &self.identity
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    /// A connection of one thread that looks things up.
    pub(super) fn looking_up(&self) -> Result<Connection, LogError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connect = || {
            let connection = Connection::open_with_flags(&self.path, flags)?;
            connection.busy_timeout(BUSY_TIMEOUT)?;
            connection.pragma_update(None, "trusted_schema", "OFF")?;
            Ok(connection)
        };
        connect().map_err(|error: rusqlite::Error| LogError::Open(format!("{}: {error}", self.path.display())))
    }

    pub(super) fn reader_options(&self) -> SqliteConnectOptions {
        SqliteConnectOptions::new()
            .filename(&self.path)
            .read_only(true)
            .create_if_missing(false)
            .busy_timeout(BUSY_TIMEOUT)
            .pragma("trusted_schema", "OFF")
            .statement_cache_capacity(STATEMENT_CACHE)
            .disable_statement_logging()
    }

    /// From now on nothing is appended to it and nobody follows it any more.
    pub(super) fn condemn(&self, fault: LogError) {
        tracing::error!(error = %fault, "the log takes no more appends");
        let _ = self.fault.set(fault);
    }

    /// Fails when something was found wrong with the log.
    pub(super) fn check_fault(&self) -> Result<(), LogError> {
        self.fault.get().map_or(Ok(()), |fault| Err(fault.clone()))
    }

    /// Both: what must hold before anything is appended, or delivered to a follower.
    pub(super) fn check(&self) -> Result<(), LogError> {
        self.check_fault()?;
        self.check_place()
    }

    pub(super) fn check_place(&self) -> Result<(), LogError> {
        still_at(&self.path, self.place)
    }
}

/// Fails when the path names another file than the one that was opened there: appends to a file that nobody finds again must not
/// be acknowledged.
pub(super) fn still_at(path: &Path, opened: (u64, u64)) -> Result<(), LogError> {
    let found = match place(path) {
        Ok(place) if place == opened => return Ok(()),
        Ok(_) => format!("{} is another file", path.display()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => format!("{} is gone", path.display()),
        Err(error) => return Err(LogError::Unavailable(format!("{}: {error}", path.display()))),
    };
    Err(LogError::NotTheSameLog(NotTheSameLog::Replaced { found }))
}

/// Device and inode.
pub(super) fn place(path: &Path) -> io::Result<(u64, u64)> {
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

/// A connection of one thread that has it for as long as it lives.
fn connect(path: &Path) -> Result<Connection, rusqlite::Error> {
    let connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // INVARIANT: FULL syncs the write-ahead log at each commit. What is here is durable, and the journal may forget it.
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    connection.pragma_update(None, "journal_size_limit", WAL_BYTES_KEPT)?;
    connection.pragma_update(None, "cache_size", -WRITER_CACHE_KIB)?;
    connection.pragma_update(None, "trusted_schema", "OFF")?;
    // The log's writer makes the numbers of streams and scopes itself, in the transaction of the commits that name them.
    connection.pragma_update(None, "foreign_keys", "OFF")?;
    Ok(connection)
}

/// SQLite's codes for a file that is broken or none of its own. Its extended codes have these in their lowest byte.
const CORRUPT: i32 = 11;
const NOT_A_DATABASE: i32 = 26;

/// What SQLite's code and words mean: that the file is broken, or what `other` makes of the words.
pub(super) fn damage_or_code(code: Option<i32>, text: String, other: impl FnOnce(String) -> LogError) -> LogError {
    match code.map(|code| code & 0xff) {
        Some(CORRUPT | NOT_A_DATABASE) => LogError::Damaged(text),
        Some(_) | None => other(text),
    }
}

/// The same of an error of a thread's own connection.
pub(super) fn damage_or(error: &rusqlite::Error, other: impl FnOnce(String) -> LogError) -> LogError {
    damage_or_code(error.sqlite_error().map(|error| error.extended_code), error.to_string(), other)
}
