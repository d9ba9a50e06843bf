//! The one writer: a thread that takes what is queued, checks each append on its own, stores those that may be in one
//! transaction with one sync, answers each.
//!
//! It is a thread because nothing in it waits for anything but the disk: a group passes from one statement to the next without
//! a change of threads. Not here: encoding and limits (`prepared`), judging (`group`), the index (`index`), reading (`reader`).

use std::path::PathBuf;
use std::sync::Arc;

use ahash::AHashMap;
use envforge_domain::commit::{Position, StreamId, StreamKind};
use envforge_domain::ids::{CommandId, OrgId};
use envforge_domain::time::{SharedClock, UnixMillis};
use rusqlite::{Connection, OptionalExtension, Statement};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

use super::checkpoint::Checkpoints;
use super::file::{LogFile, damage_or};
use super::group::{self, Answer, Knowledge, Known};
use super::index::{Behind, Entry, IndexStatements};
use super::loaded::Loaded;
use super::recent::RecentCommits;
use super::rows::Rows;
use super::tail::{StreamEnd, Tail};
use crate::measure::Backend;
use crate::prepared::PreparedAppend;
use crate::{AppendError, LogError, NotTheSameLog, schema};

/// Appends of one transaction.
const GROUP_APPENDS_MAX: usize = 256;

/// One append on its way.
pub(super) struct Job {
    pub(super) append: PreparedAppend,
    pub(super) reply: oneshot::Sender<Answer>,
    /// Its share of the bytes that may wait.
    pub(super) _bytes: OwnedSemaphorePermit,
}

/// What everybody else needs of a log that was opened.
pub(super) struct Opened {
    pub(super) file: Arc<LogFile>,
    pub(super) tail: Arc<Tail>,
    pub(super) recent: Arc<RecentCommits>,
    pub(super) heads: watch::Receiver<Position>,
}

/// How a log is opened and written.
pub(super) struct Orders {
    pub(super) directory: PathBuf,
    pub(super) clock: SharedClock,
    pub(super) index_batch_commits: usize,
}

/// A thread that opens the log and writes it until every sender of jobs is gone. The second answer comes when it has ended.
pub(super) async fn start(
    orders: Orders,
    jobs: mpsc::Receiver<Job>,
) -> Result<(Opened, oneshot::Receiver<()>), LogError> {
    let (opened, answer) = oneshot::channel();
    let (ended, end) = oneshot::channel();
    std::thread::Builder::new()
        .name("envforge-log".to_owned())
        .spawn(move || {
            write(orders, opened, jobs);
            // Nobody may wait for it.
            let _ = ended.send(());
        })
        .map_err(|error| LogError::Open(format!("no thread for the log's writer: {error}")))?;
    let opened = answer.await.unwrap_or_else(|_| Err(LogError::Open("the log's writer ended badly".to_owned())))?;
    Ok((opened, end))
}

fn write(orders: Orders, opened: oneshot::Sender<Result<Opened, LogError>>, mut jobs: mpsc::Receiver<Job>) {
    let begun = LogFile::open(&orders.directory).and_then(|(file, connection)| {
        let loaded = Loaded::read(&connection, orders.index_batch_commits)?;
        Ok((file, connection, loaded))
    });
    let (file, connection, loaded) = match begun {
        Ok(begun) => begun,
        Err(error) => return drop(opened.send(Err(error))),
    };
    let checkpoints = match Checkpoints::start(&file, &connection) {
        Ok(checkpoints) => checkpoints,
        Err(error) => return drop(opened.send(Err(error))),
    };
    if let Err(error) = serve(&connection, checkpoints, file, loaded, orders.clock, &mut jobs, opened) {
        tracing::error!(%error, "the log's writer could not begin");
    }
    if let Err((_, error)) = connection.close() {
        tracing::warn!(%error, "closing the log failed; the next start recovers it");
    }
}

/// Writes until every sender of jobs is gone, with statements that live as long.
fn serve(
    connection: &Connection,
    checkpoints: Checkpoints,
    file: LogFile,
    loaded: Loaded,
    clock: SharedClock,
    jobs: &mut mpsc::Receiver<Job>,
    opened: oneshot::Sender<Result<Opened, LogError>>,
) -> Result<(), rusqlite::Error> {
    if let Some(damage) = loaded.damage {
        file.condemn(damage);
    }
    let (file, tail) = (Arc::new(file), Arc::new(loaded.tail));
    let (heads, receiver) = watch::channel(loaded.head);
    let recent = Arc::new(RecentCommits::default());
    let told =
        Opened { file: Arc::clone(&file), tail: Arc::clone(&tail), recent: Arc::clone(&recent), heads: receiver };
    let writer = Writer {
        connection,
        checkpoints,
        sql: Statements::prepare(connection)?,
        index_sql: IndexStatements::prepare(connection)?,
        file,
        tail,
        recent,
        behind: loaded.behind,
        head: loaded.head,
        recorded_at: loaded.recorded_at,
        scopes: loaded.scopes,
        streams_ever: loaded.streams_ever,
        scopes_ever: loaded.scopes_ever,
        heads,
        clock,
        broken: None,
    };
    if opened.send(Ok(told)).is_ok() {
        writer.run(jobs);
    }
    Ok(())
}

/// The writer's statements but for those of the index.
struct Statements<'c> {
    begin: Statement<'c>,
    commit: Statement<'c>,
    rollback: Statement<'c>,
    ends_at: Statement<'c>,
    stream: Statement<'c>,
    command: Statement<'c>,
    payload: Statement<'c>,
    insert_scope: Statement<'c>,
    insert_stream: Statement<'c>,
    commits: Rows<'c>,
}

impl<'c> Statements<'c> {
    fn prepare(connection: &'c Connection) -> Result<Self, rusqlite::Error> {
        let prepare = |sql| connection.prepare(sql);
        Ok(Self {
            begin: prepare("BEGIN IMMEDIATE")?,
            commit: prepare("COMMIT")?,
            rollback: prepare("ROLLBACK")?,
            ends_at: prepare("SELECT coalesce(max(position), 0) FROM log")?,
            stream: prepare(
                "SELECT id, (SELECT max(position) FROM stream_commits WHERE stream = streams.id) FROM streams WHERE subject = ?",
            )?,
            command: prepare("SELECT position, stream FROM command_commits WHERE command = ?")?,
            payload: prepare("SELECT payload FROM log WHERE position = ?")?,
            insert_scope: prepare("INSERT INTO scopes (id, org, kind) VALUES (?, ?, ?)")?,
            insert_stream: prepare("INSERT INTO streams (id, subject) VALUES (?, ?)")?,
            commits: Rows::prepare(
                connection,
                "INSERT",
                "log (position, stream, scope, command, recorded_at, payload)",
                "(?, ?, ?, ?, ?, ?)",
            )?,
        })
    }
}

struct Writer<'c> {
    connection: &'c Connection,
    checkpoints: Checkpoints,
    sql: Statements<'c>,
    index_sql: IndexStatements<'c>,
    file: Arc<LogFile>,
    tail: Arc<Tail>,
    recent: Arc<RecentCommits>,
    behind: Behind,
    head: Position,
    recorded_at: UnixMillis,
    scopes: AHashMap<(OrgId, StreamKind), i64>,
    streams_ever: i64,
    scopes_ever: i64,
    heads: watch::Sender<Position>,
    clock: SharedClock,
    /// Set when a commit failed half-way: what the file holds is unknown until it is opened again.
    broken: Option<String>,
}

/// A group that was not stored.
enum GroupError {
    /// Nothing of it was.
    Nothing(LogError),
    /// All or nothing of it was.
    Unknown(String),
}

impl From<rusqlite::Error> for GroupError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Nothing(damage_or(&error, LogError::Unavailable))
    }
}

impl From<LogError> for GroupError {
    fn from(error: LogError) -> Self {
        Self::Nothing(error)
    }
}

impl Writer<'_> {
    fn run(mut self, jobs: &mut mpsc::Receiver<Job>) {
        let mut group = Vec::with_capacity(GROUP_APPENDS_MAX);
        while jobs.blocking_recv_many(&mut group, GROUP_APPENDS_MAX) > 0 {
            let answers = self.store(&group);
            for (job, answer) in group.drain(..).zip(answers) {
                // A caller that gave up does not take back its append.
                let _ = job.reply.send(answer);
            }
            self.checkpoints.committed(self.connection);
        }
    }

    fn store(&mut self, group: &[Job]) -> Vec<Answer> {
        if let Some(reason) = &self.broken {
            return group.iter().map(|_| Err(LogError::Unavailable(reason.clone()).into())).collect();
        }
        match self.try_store(group) {
            Ok(answers) => answers,
            Err(GroupError::Nothing(error)) => {
                tracing::error!(%error, appends = group.len(), "appends were not stored");
                group.iter().map(|_| Err(error.clone().into())).collect()
            }
            Err(GroupError::Unknown(reason)) => {
                tracing::error!(reason, appends = group.len(), "a commit failed; the log takes no more appends");
                self.broken = Some(format!("a commit failed ({reason}); restart EnvForge to reopen the log"));
                group.iter().map(|_| Err(AppendError::Unknown)).collect()
            }
        }
    }

    fn try_store(&mut self, group: &[Job]) -> Result<Vec<Answer>, GroupError> {
        self.file.check()?;
        if self.behind.begin() {
            self.tail.leave();
        }
        self.sql.begin.execute([])?;
        let stored = self.store_begun(group);
        // Where nothing was to be stored, or something failed on the way.
        if !self.connection.is_autocommit()
            && let Err(error) = self.sql.rollback.execute([])
        {
            tracing::warn!(%error, "rolling back failed");
        }
        stored
    }

    fn store_begun(&mut self, group: &[Job]) -> Result<Vec<Answer>, GroupError> {
        let ends_at = position(self.sql.ends_at.query_row([], |row| row.get(0))?);
        if ends_at != self.head {
            let found = format!("it ends at {ends_at}, this process left it at {}", self.head);
            return Err(LogError::NotTheSameLog(NotTheSameLog::Replaced { found }).into());
        }
        let knowledge = Knowledge {
            ends: self.ends_of(group)?,
            commands: self.known_commands(group)?,
            head: self.head,
            streams_ever: self.streams_ever,
            scopes_ever: self.scopes_ever,
        };
        let (answers, additions) = group::decide(group.iter().map(|job| &job.append), knowledge, &self.scopes);
        let Some(last) = additions.commits.last() else { return Ok(answers) };
        let head = last.end.last;
        let now = self.clock.now();
        if now < self.recorded_at {
            Backend::Sqlite.clock_went_back();
        }
        let recorded_at = now.max(self.recorded_at);
        for (id, org, kind) in &additions.scopes {
            self.sql.insert_scope.execute((id, org.to_string(), kind.token()))?;
        }
        for (id, stream) in &additions.streams {
            self.sql.insert_stream.execute((id, stream.subject()))?;
        }
        self.sql.commits.insert(&additions.commits, |statement, at, commit| {
            statement.raw_bind_parameter(at, commit.end.last.get().cast_signed())?;
            statement.raw_bind_parameter(at + 1, commit.end.id)?;
            statement.raw_bind_parameter(at + 2, commit.end.scope)?;
            statement.raw_bind_parameter(at + 3, commit.command.as_uuid().as_bytes().as_slice())?;
            statement.raw_bind_parameter(at + 4, recorded_at.get().cast_signed())?;
            statement.raw_bind_parameter(at + 5, &commit.payload[..])?;
            Ok(at + 6)
        })?;
        let slice = self.behind.write(&mut self.index_sql, additions.commits.len())?;
        self.sql.commit.execute([]).map_err(|error| match error.sqlite_error_code() {
            // Full disks and locks leave the transaction undone; after anything else the file has the last word.
            Some(rusqlite::ErrorCode::DiskFull | rusqlite::ErrorCode::DatabaseBusy) => GroupError::from(error),
            _ => GroupError::Unknown(error.to_string()),
        })?;

        self.head = head;
        self.recorded_at = recorded_at;
        self.streams_ever += i64::try_from(additions.streams.len()).unwrap_or(i64::MAX);
        self.scopes_ever += i64::try_from(additions.scopes.len()).unwrap_or(i64::MAX);
        self.scopes.extend(additions.scopes.iter().map(|(id, org, kind)| ((*org, *kind), *id)));
        self.tail.add(additions.commits.iter().map(|commit| (commit.stream, commit.end)));
        let recent = additions.commits.iter().map(|commit| (commit.end.last, commit.scope(), commit.payload));
        self.recent.add(recorded_at, recent);
        for commit in &additions.commits {
            let StreamEnd { id: stream, scope, last: position } = commit.end;
            self.behind.push(Entry { position, stream, scope, command: commit.command });
        }
        if let Some(indexed) = slice.and_then(|slice| self.behind.stored(slice)) {
            self.tail.left(indexed);
        }
        self.heads.send_replace(head);
        Ok(answers)
    }

    /// Where the streams end that the group writes or guards.
    fn ends_of<'g>(&mut self, group: &'g [Job]) -> Result<AHashMap<&'g StreamId, StreamEnd>, GroupError> {
        let mut ends = AHashMap::with_capacity(group.len());
        let mut unknown: Vec<&StreamId> = Vec::new();
        let written = group.iter().flat_map(|job| &job.append.commits).map(|commit| &commit.stream);
        let guarded = group.iter().flat_map(|job| job.append.guards()).map(|guard| &guard.stream);
        self.tail.ends_of(written.chain(guarded), |stream, end| match end {
            Some(end) => drop(ends.insert(stream, end)),
            None => unknown.push(stream),
        });
        unknown.sort_unstable();
        unknown.dedup();
        for stream in &unknown {
            let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get::<_, Option<i64>>(1)?));
            let Some((id, indexed)) = self.sql.stream.query_row([stream.subject()], row).optional()? else { continue };
            // The tail holds what the index does not have yet.
            let last = self.tail.last_in_tail(stream).unwrap_or_else(|| position(indexed.unwrap_or(0)));
            let scope = self.scopes.get(&(stream.org(), stream.kind())).ok_or_else(|| LogError::Undecodable {
                position: last,
                reason: format!("its stream `{stream}` is damaged"),
            })?;
            ends.insert(*stream, StreamEnd { id, scope: *scope, last });
        }
        self.tail.remember(unknown.iter().filter_map(|stream| ends.get(stream).map(|end| (*stream, *end))));
        Ok(ends)
    }

    /// The commits of those commands of the group that were appended before.
    fn known_commands(&mut self, group: &[Job]) -> Result<AHashMap<CommandId, Vec<Known>>, GroupError> {
        let mut known: AHashMap<CommandId, Vec<Known>> = AHashMap::with_capacity(group.len());
        for job in group {
            let command = job.append.command;
            if known.contains_key(&command) {
                continue;
            }
            let mut places: Vec<(Position, i64)> =
                self.behind.places_of(command).map(|place| (place.position, place.stream)).collect();
            if self.behind.may_hold(command) {
                let row = |row: &rusqlite::Row<'_>| Ok((position(row.get(0)?), row.get(1)?));
                for place in self.sql.command.query_map([command.as_uuid().as_bytes().as_slice()], row)? {
                    places.push(place?);
                }
                // What is on its way to the index is found in both places.
                places.sort_unstable();
                places.dedup();
            }
            for (position, stream) in places {
                let payload: Vec<u8> = self.sql.payload.query_row([position.get().cast_signed()], |row| row.get(0))?;
                let commit = schema::decode(&payload)
                    .map_err(|error| LogError::Undecodable { position, reason: error.to_string() })?;
                let request_digest = commit.request_digest;
                known.entry(command).or_default().push(Known { position, stream, request_digest });
            }
        }
        Ok(known)
    }
}

fn position(number: i64) -> Position {
    Position::new(number.cast_unsigned())
}
