//! The one writer: takes what is queued, checks each append on its own, stores those that may be in one transaction with
//! one sync, answers each.
//!
//! Not here: encoding and limits (`prepared`), reading (`reader`).

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;

use bytes::Bytes;
use envforge_domain::commit::{Expectation, Position, StreamId, StreamKind};
use envforge_domain::ids::{CommandId, OrgId};
use envforge_domain::time::{SharedClock, UnixMillis};
use lru::LruCache;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Connection, Row, SqliteConnection};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

use super::file::LogFile;
use super::reader;
use crate::measure::Backend;
use crate::prepared::PreparedAppend;
use crate::{AppendError, Appended, LogError, NotTheSameLog, schema};

/// Appends of one transaction.
const GROUP_APPENDS_MAX: usize = 256;
/// Rows of one INSERT and values of one IN list.
const ROWS_MAX: usize = 64;
/// Streams whose last position is known without asking the file.
const STREAMS_CACHED_MAX: NonZeroUsize = NonZeroUsize::new(65_536).expect("not zero");

/// One append on its way.
pub(super) struct Job {
    pub(super) append: PreparedAppend,
    pub(super) reply: oneshot::Sender<Result<Appended, AppendError>>,
    /// Its share of the bytes that may wait.
    pub(super) _bytes: OwnedSemaphorePermit,
}

#[derive(Clone, Copy, Debug)]
struct StreamState {
    id: i64,
    scope: i64,
    last: Position,
}

/// A commit of a command that was appended before.
#[derive(Clone, Copy, Debug)]
struct Known {
    position: Position,
    stream: i64,
    request_digest: Option<[u8; 32]>,
}

pub(super) struct Writer {
    connection: SqliteConnection,
    file: Arc<LogFile>,
    head: Position,
    recorded_at: UnixMillis,
    streams: LruCache<StreamId, StreamState>,
    scopes: HashMap<(OrgId, StreamKind), i64>,
    streams_ever: i64,
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

impl From<sqlx::Error> for GroupError {
    fn from(error: sqlx::Error) -> Self {
        Self::Nothing(reader::failed(&error))
    }
}

impl From<LogError> for GroupError {
    fn from(error: LogError) -> Self {
        Self::Nothing(error)
    }
}

/// What one group adds, before it is stored.
#[derive(Default)]
struct Additions {
    rows: Vec<NewRow>,
    streams: Vec<(i64, String)>,
    scopes: Vec<(i64, OrgId, StreamKind)>,
}

struct NewRow {
    position: Position,
    stream: i64,
    scope: i64,
    command: CommandId,
    payload: Bytes,
}

impl Writer {
    pub(super) async fn new(
        mut connection: SqliteConnection,
        file: Arc<LogFile>,
        clock: SharedClock,
    ) -> Result<(Self, watch::Receiver<Position>), LogError> {
        let failed = |error: sqlx::Error| LogError::Open(error.to_string());
        let last: Option<(i64, i64)> =
            sqlx::query_as("SELECT position, recorded_at FROM log ORDER BY position DESC LIMIT 1")
                .fetch_optional(&mut connection)
                .await
                .map_err(failed)?;
        let (head, recorded_at) = last.map_or((Position::START, UnixMillis::EPOCH), |(position, recorded_at)| {
            (Position::new(position.cast_unsigned()), UnixMillis::new(recorded_at.cast_unsigned()))
        });
        whole(&mut connection, head).await?;
        let streams_ever: i64 = sqlx::query_scalar("SELECT coalesce(max(id), 0) FROM streams")
            .fetch_one(&mut connection)
            .await
            .map_err(failed)?;
        let mut scopes = HashMap::new();
        let rows: Vec<(i64, String, String)> =
            sqlx::query_as("SELECT id, org, kind FROM scopes").fetch_all(&mut connection).await.map_err(failed)?;
        for (id, org, kind) in rows {
            let damaged = || LogError::Open(format!("scope {id} is damaged: {org}.{kind}"));
            let org = org.parse().map_err(|_| damaged())?;
            scopes.insert((org, StreamKind::from_token(&kind).ok_or_else(damaged)?), id);
        }
        let (heads, receiver) = watch::channel(head);
        let streams = LruCache::sparse(STREAMS_CACHED_MAX);
        let writer =
            Self { connection, file, head, recorded_at, streams, scopes, streams_ever, heads, clock, broken: None };
        Ok((writer, receiver))
    }

    /// Runs until every sender is gone, then closes the file.
    pub(super) async fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        let mut group = Vec::with_capacity(GROUP_APPENDS_MAX);
        while jobs.recv_many(&mut group, GROUP_APPENDS_MAX).await > 0 {
            let answers = self.store(&group).await;
            for (job, answer) in group.drain(..).zip(answers) {
                // A caller that gave up does not take back its append.
                let _ = job.reply.send(answer);
            }
        }
        if let Err(error) = self.connection.close().await {
            tracing::warn!(%error, "closing the log failed; the next start recovers it");
        }
    }

    async fn store(&mut self, group: &[Job]) -> Vec<Result<Appended, AppendError>> {
        if let Some(reason) = &self.broken {
            return group.iter().map(|_| Err(LogError::Unavailable(reason.clone()).into())).collect();
        }
        match self.try_store(group).await {
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

    async fn try_store(&mut self, group: &[Job]) -> Result<Vec<Result<Appended, AppendError>>, GroupError> {
        self.file.check_place()?;
        let mut transaction = self.connection.begin_with("BEGIN IMMEDIATE").await?;
        let mut known = known_commands(&mut transaction, group, self.head).await?;
        let mut states = HashMap::new();
        let mut unknown = Vec::new();
        let written = group.iter().flat_map(|job| &job.append.commits).map(|commit| &commit.stream);
        let guarded = group.iter().flat_map(|job| job.append.guards()).map(|guard| &guard.stream);
        for stream in written.chain(guarded) {
            match self.streams.get(stream) {
                Some(state) => drop(states.insert(stream.clone(), *state)),
                None => unknown.push(stream),
            }
        }
        unknown.sort_unstable();
        unknown.dedup();
        load_streams(&mut transaction, &unknown, &self.scopes, &mut states).await?;

        let mut additions = Additions::default();
        let mut head = self.head;
        let mut streams_ever = self.streams_ever;
        let mut answers = Vec::with_capacity(group.len());
        for Job { append, .. } in group {
            if let Some(answer) = known.get(&append.command).and_then(|known| answered_before(append, known, &states)) {
                answers.push(answer);
                continue;
            }
            let last_of = |stream: &StreamId| states.get(stream).map_or(Position::START, |state| state.last);
            if let Some(refusal) = refusal(append, last_of) {
                answers.push(Err(refusal));
                continue;
            }
            let mut positions = Vec::with_capacity(append.commits.len());
            for commit in &append.commits {
                head = head.next();
                positions.push(head);
                let state = states.entry(commit.stream.clone()).or_insert_with(|| {
                    let key = (commit.stream.org(), commit.stream.kind());
                    let scopes_ever = i64::try_from(self.scopes.len()).unwrap_or(i64::MAX);
                    let scope = *self.scopes.entry(key).or_insert_with(|| {
                        additions.scopes.push((scopes_ever + 1, key.0, key.1));
                        scopes_ever + 1
                    });
                    streams_ever += 1;
                    additions.streams.push((streams_ever, commit.stream.subject()));
                    StreamState { id: streams_ever, scope, last: Position::START }
                });
                state.last = head;
                let (stream, request_digest) = (state.id, append.request_digest);
                known.entry(append.command).or_default().push(Known { position: head, stream, request_digest });
                additions.rows.push(NewRow {
                    position: head,
                    stream: state.id,
                    scope: state.scope,
                    command: append.command,
                    payload: commit.payload.clone(),
                });
            }
            answers.push(Ok(Appended { positions, duplicate: false }));
        }

        if additions.rows.is_empty() {
            transaction.rollback().await?;
            return Ok(answers);
        }
        let now = self.clock.now();
        if now < self.recorded_at {
            Backend::Sqlite.clock_went_back();
        }
        let recorded_at = now.max(self.recorded_at);
        let stored = match additions.insert(&mut transaction, recorded_at).await {
            // Nothing was committed yet, whatever went wrong.
            Err(error) => Err(GroupError::from(error)),
            Ok(()) => transaction.commit().await.map_err(|error| {
                // Full disks and locks leave the transaction undone; after anything else the file has the last word.
                match error.as_database_error().and_then(|error| error.code()).as_deref() {
                    Some("13" | "5") => GroupError::from(error),
                    _ => GroupError::Unknown(error.to_string()),
                }
            }),
        };
        if let Err(error) = stored {
            for (_, org, kind) in additions.scopes {
                self.scopes.remove(&(org, kind));
            }
            return Err(error);
        }
        self.head = head;
        self.recorded_at = recorded_at;
        self.streams_ever = streams_ever;
        for (stream, state) in states {
            self.streams.put(stream, state);
        }
        self.heads.send_replace(head);
        Ok(answers)
    }
}

/// Fails where a commit up to the head is missing: positions have no gaps. Followers of a part of the log rely on it, who
/// could not see what they do not ask for.
async fn whole(connection: &mut SqliteConnection, head: Position) -> Result<(), LogError> {
    let failed = |error: sqlx::Error| LogError::Open(error.to_string());
    let count: i64 =
        sqlx::query_scalar("SELECT count(*) FROM log").fetch_one(&mut *connection).await.map_err(failed)?;
    if count.cast_unsigned() == head.get() {
        return Ok(());
    }
    let gap: Option<(i64, i64)> = sqlx::query_as(
        "SELECT before, position FROM (SELECT position, lag(position, 1, 0) OVER (ORDER BY position) AS before FROM log) WHERE position <> before + 1 ORDER BY position LIMIT 1",
    )
    .fetch_optional(connection)
    .await
    .map_err(failed)?;
    let position = |number: i64| Position::new(number.cast_unsigned());
    Err(LogError::NotTheSameLog(match gap {
        Some((after, found)) => NotTheSameLog::Gap { after: position(after), found: position(found) },
        None => NotTheSameLog::Replaced { found: format!("it ends at {head} and holds {count} commits") },
    }))
}

impl Additions {
    async fn insert(&self, connection: &mut SqliteConnection, recorded_at: UnixMillis) -> Result<(), sqlx::Error> {
        for chunk in self.scopes.chunks(ROWS_MAX) {
            let sql = format!("INSERT INTO scopes (id, org, kind) VALUES {}", repeated("(?,?,?)", chunk.len()));
            let mut query = sqlx::query(AssertSqlSafe(sql));
            for (id, org, kind) in chunk {
                query = query.bind(id).bind(org.to_string()).bind(kind.token());
            }
            query.execute(&mut *connection).await?;
        }
        for chunk in self.streams.chunks(ROWS_MAX) {
            let sql = format!("INSERT INTO streams (id, subject) VALUES {}", repeated("(?,?)", chunk.len()));
            let mut query = sqlx::query(AssertSqlSafe(sql));
            for (id, subject) in chunk {
                query = query.bind(id).bind(subject);
            }
            query.execute(&mut *connection).await?;
        }
        for chunk in self.rows.chunks(ROWS_MAX) {
            let sql = format!(
                "INSERT INTO log (position, stream, scope, command, recorded_at, payload) VALUES {}",
                repeated("(?,?,?,?,?,?)", chunk.len())
            );
            let mut query = sqlx::query(AssertSqlSafe(sql));
            for row in chunk {
                query = query
                    .bind(row.position.get().cast_signed())
                    .bind(row.stream)
                    .bind(row.scope)
                    .bind(row.command.as_uuid().as_bytes().as_slice())
                    .bind(recorded_at.get().cast_signed())
                    .bind(&row.payload[..]);
            }
            query.execute(&mut *connection).await?;
        }
        Ok(())
    }
}

/// `item` as often as given, with commas between. Equal lengths give equal texts: the statement is prepared once.
fn repeated(item: &str, times: usize) -> String {
    let mut text = String::with_capacity((item.len() + 1) * times);
    for index in 0..times {
        if index > 0 {
            text.push(',');
        }
        text.push_str(item);
    }
    text
}

/// Why an append may not be stored where streams end as `last_of` says: its rights first, then its own streams.
fn refusal(append: &PreparedAppend, last_of: impl Fn(&StreamId) -> Position) -> Option<AppendError> {
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
fn answered_before(
    append: &PreparedAppend,
    known: &[Known],
    states: &HashMap<StreamId, StreamState>,
) -> Option<Result<Appended, AppendError>> {
    let reused = || Some(Err(AppendError::CommandReused { command: append.command }));
    let known_in = |stream: &StreamId| {
        let id = states.get(stream)?.id;
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

/// The commits of those commands of the group that were appended before. On the way it makes sure that the file still
/// ends where this writer left it.
async fn known_commands(
    connection: &mut SqliteConnection,
    group: &[Job],
    head: Position,
) -> Result<HashMap<CommandId, Vec<Known>>, GroupError> {
    let mut known: HashMap<CommandId, Vec<Known>> = HashMap::new();
    for chunk in group.chunks(ROWS_MAX) {
        let sql = format!(
            "SELECT NULL, max(position), NULL, NULL FROM log UNION ALL SELECT command, position, stream, payload FROM log WHERE command IN ({})",
            repeated("?", chunk.len())
        );
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for job in chunk {
            query = query.bind(job.append.command.as_uuid().as_bytes().as_slice());
        }
        for row in query.fetch_all(&mut *connection).await? {
            let position = Position::new(row.try_get::<Option<i64>, _>(1)?.unwrap_or(0).cast_unsigned());
            if row.try_get::<Option<&[u8]>, _>(0)?.is_none() {
                if position != head {
                    let found = format!("it ends at {position}, this process left it at {head}");
                    return Err(LogError::NotTheSameLog(NotTheSameLog::Replaced { found }).into());
                }
                continue;
            }
            let commit = schema::decode(row.try_get(3)?)
                .map_err(|error| LogError::Undecodable { position, reason: error.to_string() })?;
            let (stream, request_digest) = (row.try_get(2)?, commit.request_digest);
            let commits = known.entry(commit.command).or_default();
            // A command that stands in two chunks of the group is found twice.
            if commits.iter().all(|known| known.position != position) {
                commits.push(Known { position, stream, request_digest });
            }
        }
    }
    Ok(known)
}

async fn load_streams(
    connection: &mut SqliteConnection,
    streams: &[&StreamId],
    scopes: &HashMap<(OrgId, StreamKind), i64>,
    states: &mut HashMap<StreamId, StreamState>,
) -> Result<(), GroupError> {
    for chunk in streams.chunks(ROWS_MAX) {
        let sql = format!(
            "SELECT subject, id, (SELECT max(position) FROM log WHERE log.stream = streams.id) FROM streams WHERE subject IN ({})",
            repeated("?", chunk.len())
        );
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for stream in chunk {
            query = query.bind(stream.subject());
        }
        for row in query.fetch_all(&mut *connection).await? {
            let (stream, state) = stream_state(&row, scopes)?;
            states.insert(stream, state);
        }
    }
    Ok(())
}

fn stream_state(
    row: &SqliteRow,
    scopes: &HashMap<(OrgId, StreamKind), i64>,
) -> Result<(StreamId, StreamState), GroupError> {
    let subject: &str = row.try_get(0)?;
    let last = Position::new(row.try_get::<Option<i64>, _>(2)?.unwrap_or(0).cast_unsigned());
    let damaged = || LogError::Undecodable { position: last, reason: format!("its stream `{subject}` is damaged") };
    let stream = StreamId::parse_subject(subject).ok_or_else(damaged)?;
    let scope = *scopes.get(&(stream.org(), stream.kind())).ok_or_else(damaged)?;
    Ok((stream, StreamState { id: row.try_get(1)?, scope, last }))
}
