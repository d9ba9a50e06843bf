//! The one writer: a thread that takes what is queued, checks each append on its own, writes those that may be to the journal
//! with one sync, answers each.
//!
//! It is a thread because nothing in it waits for anything but the disk. Not here: encoding and limits (`prepared`), judging
//! (`group`), the journal's form (`journal`), what comes into the file (`apply`), reading (`reader`).

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use ahash::AHashMap;
use bytes::Bytes;
use envforge_domain::commit::{Position, StreamId, StreamKind};
use envforge_domain::ids::{CommandId, OrgId};
use envforge_domain::time::{SharedClock, UnixMillis};
use rusqlite::{Connection, OptionalExtension, Statement};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

use super::file::{LogFile, damage_or};
use super::group::{self, Answer, Knowledge, Known};
use super::journal::{Journal, JournalError};
use super::loaded::Loaded;
use super::tail::{Found, Place, StreamEnd, Tail};
use super::{apply, format};
use crate::measure::Backend;
use crate::prepared::PreparedAppend;
use crate::{AppendError, LogError, schema};

/// Appends of one sync.
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
    pub(super) heads: watch::Receiver<Position>,
}

/// How a log is opened and written.
pub(super) struct Orders {
    pub(super) directory: PathBuf,
    pub(super) clock: SharedClock,
    pub(super) batch_commits: usize,
    pub(super) journal_bytes: u64,
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
    let (mut begun, ends) = match begin(&orders) {
        Ok(begun) => begun,
        Err(error) => return drop(opened.send(Err(error))),
    };
    let tail = Arc::clone(&begun.tail);
    if let Err(error) = serve(&mut begun, ends, orders.clock, &mut jobs, opened) {
        tracing::error!(%error, "the log's writer could not begin");
    }
    tail.end();
    if begun.stores.is_some_and(|stores| stores.join().is_err()) {
        tracing::error!("the thread that brings the journal into the log's file ended badly");
    }
}

/// A log that is ready to be written.
struct Begun {
    file: Arc<LogFile>,
    tail: Arc<Tail>,
    looking_up: Connection,
    /// `None` where it is damaged: nothing is touched, so that it can be mended.
    journal: Option<Journal>,
    stores: Option<JoinHandle<()>>,
}

/// The rest of what was loaded.
struct Ends {
    head: Position,
    recorded_at: UnixMillis,
    scopes: AHashMap<(OrgId, StreamKind), i64>,
    streams_ever: i64,
    scopes_ever: i64,
}

fn begin(orders: &Orders) -> Result<(Begun, Ends), LogError> {
    let (file, connection) = LogFile::open(&orders.directory)?;
    let loaded = Loaded::read(&file, &connection, orders.batch_commits)?;
    let Loaded { head, recorded_at, scopes, scopes_ever, streams_ever, tail, journal_number, damage } = loaded;
    let ends = Ends { head, recorded_at, scopes, streams_ever, scopes_ever };
    let looking_up = file.looking_up()?;
    let (file, tail) = (Arc::new(file), Arc::new(tail));
    if let Some(damage) = damage {
        file.condemn(damage);
        return Ok((Begun { file, tail, looking_up, journal: None, stores: None }, ends));
    }
    apply::all(&connection, &tail)?;
    let journal = Journal::begin(file.directory(), file.identity(), journal_number, head, orders.journal_bytes)?;
    let needed = format::journal_is_needed(&connection, true);
    needed.map_err(|error| LogError::Open(format!("{}: {error}", file.path().display())))?;
    let stores = apply::start(connection, Arc::clone(&file), Arc::clone(&tail))?;
    Ok((Begun { file, tail, looking_up, journal: Some(journal), stores: Some(stores) }, ends))
}

/// Writes until every sender of jobs is gone, with statements that live as long.
fn serve(
    begun: &mut Begun,
    ends: Ends,
    clock: SharedClock,
    jobs: &mut mpsc::Receiver<Job>,
    opened: oneshot::Sender<Result<Opened, LogError>>,
) -> Result<(), rusqlite::Error> {
    let (heads, receiver) = watch::channel(ends.head);
    let told = Opened { file: Arc::clone(&begun.file), tail: Arc::clone(&begun.tail), heads: receiver };
    let writer = Writer {
        sql: Statements::prepare(&begun.looking_up)?,
        file: &begun.file,
        tail: &begun.tail,
        journal: begun.journal.as_mut(),
        ends,
        heads,
        clock,
        broken: None,
    };
    if opened.send(Ok(told)).is_ok() {
        writer.run(jobs);
    }
    Ok(())
}

/// What the writer asks the file.
struct Statements<'c> {
    stream: Statement<'c>,
    command: Statement<'c>,
    payload: Statement<'c>,
}

impl<'c> Statements<'c> {
    fn prepare(connection: &'c Connection) -> Result<Self, rusqlite::Error> {
        Ok(Self {
            stream: connection.prepare(
                "SELECT id, (SELECT max(position) FROM stream_commits WHERE stream = streams.id) FROM streams WHERE subject = ?",
            )?,
            command: connection.prepare("SELECT position, stream FROM command_commits WHERE command = ?")?,
            payload: connection.prepare("SELECT payload FROM log WHERE position = ?")?,
        })
    }
}

struct Writer<'b> {
    sql: Statements<'b>,
    file: &'b LogFile,
    tail: &'b Tail,
    journal: Option<&'b mut Journal>,
    ends: Ends,
    heads: watch::Sender<Position>,
    clock: SharedClock,
    /// Set when a group was written and its sync failed: what the journal holds is unknown until it is read again.
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

impl From<JournalError> for GroupError {
    fn from(error: JournalError) -> Self {
        match error {
            JournalError::Nothing(error) => Self::Nothing(error),
            JournalError::Unknown(error) => Self::Unknown(error.to_string()),
        }
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
                tracing::error!(reason, appends = group.len(), "a sync failed; the log takes no more appends");
                self.broken =
                    Some(format!("a sync of its journal failed ({reason}); restart EnvForge to reopen the log"));
                group.iter().map(|_| Err(AppendError::Unknown)).collect()
            }
        }
    }

    fn try_store(&mut self, group: &[Job]) -> Result<Vec<Answer>, GroupError> {
        self.file.check()?;
        self.tail.wait_for_room().map_err(LogError::Unavailable)?;
        let knowledge = Knowledge {
            ends: self.ends_of(group)?,
            commands: self.known_commands(group)?,
            head: self.ends.head,
            streams_ever: self.ends.streams_ever,
            scopes_ever: self.ends.scopes_ever,
        };
        let (answers, additions) = group::decide(group.iter().map(|job| &job.append), knowledge, &self.ends.scopes);
        let Some(last) = additions.commits.last() else { return Ok(answers) };
        let head = last.end.last;
        let now = self.clock.now();
        if now < self.ends.recorded_at {
            Backend::Sqlite.clock_went_back();
        }
        let recorded_at = now.max(self.ends.recorded_at);
        let journal =
            self.journal.as_mut().ok_or_else(|| LogError::Unavailable("the log has no journal".to_owned()))?;
        journal.append(&additions.commits, recorded_at, self.tail.applied())?;

        self.tail.add(&additions, recorded_at);
        self.ends.head = head;
        self.ends.recorded_at = recorded_at;
        self.ends.streams_ever += i64::try_from(additions.streams.len()).unwrap_or(i64::MAX);
        self.ends.scopes_ever += i64::try_from(additions.scopes.len()).unwrap_or(i64::MAX);
        self.ends.scopes.extend(additions.scopes.iter().map(|(id, org, kind)| ((*org, *kind), *id)));
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
            let last = position(indexed.unwrap_or(0));
            let scope = self.ends.scopes.get(&(stream.org(), stream.kind())).ok_or_else(|| LogError::Undecodable {
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
        for Found { command, mut places, ask_file } in self.tail.find(group.iter().map(|job| job.append.command)) {
            if known.contains_key(&command) {
                continue;
            }
            if ask_file {
                let row = |row: &rusqlite::Row<'_>| Ok(Place { position: position(row.get(0)?), stream: row.get(1)? });
                for place in self.sql.command.query_map([command.as_uuid().as_bytes().as_slice()], row)? {
                    places.push(place?);
                }
                // What is on its way to the file is found in both places.
                places.sort_unstable();
                places.dedup();
            }
            for Place { position, stream } in places {
                let payload: Bytes = match self.tail.at(position) {
                    Some(stored) => stored.payload,
                    None => {
                        let payload: Vec<u8> =
                            self.sql.payload.query_row([position.get().cast_signed()], |row| row.get(0))?;
                        payload.into()
                    }
                };
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
