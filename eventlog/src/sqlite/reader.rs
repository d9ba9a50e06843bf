//! Reading the log's file: pages, single streams, the commit at a checkpoint. Readers never wait for the writer.
//!
//! Whatever the file does not have yet, the tail does: it is asked first (`tail`).

use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use envforge_domain::commit::{Position, Recorded, StreamId};
use envforge_domain::time::UnixMillis;
use futures_util::TryStreamExt;
use sqlx::sqlite::{SqlitePool, SqlitePoolOptions, SqliteRow};
use sqlx::{AssertSqlSafe, Row};

use super::file::{LogFile, damage_or_code};
use super::tail::Tail;
use crate::{Filter, LogError, schema};

/// A page ends after this many stored bytes, so that readers stay small whatever the commits' sizes.
const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Above this many scopes a filtered read looks at every commit of a range instead of merging the scopes' indexes.
const SCOPES_MERGED_MAX: usize = 32;
/// Positions looked at by one unmerged filtered read.
const SCAN_POSITIONS_MAX: u64 = 20_000;

#[derive(Clone)]
pub(super) struct Reader {
    pool: SqlitePool,
    tail: Arc<Tail>,
}

/// A commit with the bytes it was read from, whose digest makes a checkpoint.
pub(super) struct Stored {
    pub(super) position: Position,
    pub(super) recorded_at: UnixMillis,
    pub(super) payload: Bytes,
}

impl Stored {
    fn from_row(row: &SqliteRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            position: Position::new(row.try_get::<i64, _>(0)?.cast_unsigned()),
            recorded_at: UnixMillis::new(row.try_get::<i64, _>(1)?.cast_unsigned()),
            payload: row.try_get::<Vec<u8>, _>(2)?.into(),
        })
    }

    pub(super) fn decode(&self) -> Result<Recorded, LogError> {
        let commit = schema::decode(&self.payload)
            .map_err(|error| LogError::Undecodable { position: self.position, reason: error.to_string() })?;
        Ok(Recorded { position: self.position, recorded_at: self.recorded_at, commit })
    }
}

/// Commits in order, and how far the log was looked at.
pub(super) struct StoredPage {
    pub(super) commits: Vec<Stored>,
    pub(super) read_up_to: Position,
}

/// What an error of the file means for whoever asked.
fn failed(error: &sqlx::Error) -> LogError {
    let code = error.as_database_error().and_then(|error| error.code()).and_then(|code| code.parse().ok());
    damage_or_code(code, error.to_string(), LogError::Unavailable)
}

impl Reader {
    pub(super) async fn open(file: &LogFile, tail: Arc<Tail>, readers: u32) -> Result<Self, LogError> {
        // Every connection is opened now and kept: one opened later could find another file at the same path.
        let pool = SqlitePoolOptions::new()
            .min_connections(readers)
            .max_connections(readers)
            .idle_timeout(None)
            .max_lifetime(None)
            .test_before_acquire(false)
            .acquire_timeout(std::time::Duration::from_secs(10))
            .connect_with(file.reader_options())
            .await
            .map_err(|error| LogError::Open(error.to_string()))?;
        Ok(Self { pool, tail })
    }

    pub(super) async fn close(&self) {
        self.pool.close().await;
    }

    pub(super) async fn at(&self, position: Position) -> Result<Option<Stored>, LogError> {
        if let Some(stored) = self.tail.at(position) {
            return Ok(Some(stored));
        }
        sqlx::query("SELECT position, recorded_at, payload FROM log WHERE position = ?")
            .bind(position.get().cast_signed())
            .fetch_optional(&self.pool)
            .await
            .and_then(|row| row.as_ref().map(Stored::from_row).transpose())
            .map_err(|error| failed(&error))
    }

    /// How many commits stand above `after` and up to `end`.
    pub(super) async fn count(&self, after: Position, end: Position) -> Result<u64, LogError> {
        // The tail has no gaps.
        let applied = self.tail.applied();
        let in_tail = end.get().saturating_sub(applied.max(after).get());
        if after >= applied {
            return Ok(in_tail);
        }
        let end = end.min(applied);
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM log WHERE position > ? AND position <= ?")
            .bind(after.get().cast_signed())
            .bind(end.get().cast_signed())
            .fetch_one(&self.pool)
            .await
            .map_err(|error| failed(&error))?;
        Ok(count.cast_unsigned() + in_tail)
    }

    /// The first gap above `after` and up to `end`: what stands before it and behind it.
    pub(super) async fn gap(&self, after: Position, end: Position) -> Result<Option<(Position, Position)>, LogError> {
        let query = sqlx::query_as(
            "SELECT before, position FROM (SELECT position, lag(position, 1, ?1) OVER (ORDER BY position) AS before FROM log WHERE position > ?1 AND position <= ?2) WHERE position <> before + 1 ORDER BY position LIMIT 1",
        );
        let gap: Option<(i64, i64)> = query
            .bind(after.get().cast_signed())
            .bind(end.get().cast_signed())
            .fetch_optional(&self.pool)
            .await
            .map_err(|error| failed(&error))?;
        let position = |number: i64| Position::new(number.cast_unsigned());
        Ok(gap.map(|(before, found)| (position(before), position(found))))
    }

    /// In order; at most `limit`.
    pub(super) async fn stream(
        &self,
        stream: &StreamId,
        after: Position,
        limit: usize,
    ) -> Result<Vec<Stored>, LogError> {
        // Whoever knows a stream asks mostly whether there is more.
        if self.tail.last_of(stream).is_some_and(|last| last <= after) {
            return Ok(Vec::new());
        }
        let in_tail = self.tail.of_stream(stream, after, limit);
        let query = sqlx::query(
            "SELECT position, recorded_at, payload FROM log WHERE position IN (
                 SELECT position FROM stream_commits
                 WHERE stream = (SELECT id FROM streams WHERE subject = ?1) AND position > ?2 ORDER BY position LIMIT ?3
             ) ORDER BY position",
        )
        .bind(stream.subject())
        .bind(after.get().cast_signed())
        .bind(i64::try_from(limit).unwrap_or(i64::MAX));
        let rows = query.fetch_all(&self.pool).await.map_err(|error| failed(&error))?;
        let mut stored: Vec<Stored> =
            rows.iter().map(Stored::from_row).collect::<Result<_, _>>().map_err(|error| failed(&error))?;
        // What was on its way to the file may be found in both places.
        let in_file = stored.last().map_or(after, |last| last.position);
        stored.extend(in_tail.into_iter().filter(|in_tail| in_tail.position > in_file));
        stored.truncate(limit);
        Ok(stored)
    }

    pub(super) async fn last_of_stream(&self, stream: &StreamId) -> Result<Option<Stored>, LogError> {
        match self.last_position_of(stream).await? {
            Position::START => Ok(None),
            last => self.at(last).await,
        }
    }

    pub(super) async fn last_positions_of(&self, streams: &[StreamId]) -> Result<Vec<Position>, LogError> {
        let mut lasts = Vec::with_capacity(streams.len());
        for stream in streams {
            lasts.push(self.last_position_of(stream).await?);
        }
        Ok(lasts)
    }

    /// `Position::START` for a stream without commits.
    async fn last_position_of(&self, stream: &StreamId) -> Result<Position, LogError> {
        if let Some(last) = self.tail.last_of(stream) {
            return Ok(last);
        }
        let position: Option<i64> = sqlx::query_scalar(
            "SELECT max(position) FROM stream_commits WHERE stream = (SELECT id FROM streams WHERE subject = ?)",
        )
        .bind(stream.subject())
        .fetch_one(&self.pool)
        .await
        .map_err(|error| failed(&error))?;
        Ok(Position::new(position.unwrap_or(0).cast_unsigned()))
    }

    /// Commits above `after` and up to `head` that pass the filter; at most `limit`, fewer where they are large.
    pub(super) async fn page(
        &self,
        after: Position,
        head: Position,
        limit: usize,
        filter: &Filter,
    ) -> Result<StoredPage, LogError> {
        if head <= after || limit == 0 {
            return Ok(StoredPage { commits: Vec::new(), read_up_to: after });
        }
        if let Some(page) = self.tail.page(after, head, limit, PAGE_BYTES_MAX, filter) {
            return Ok(page);
        }
        // The tail begins no lower from now on.
        let applied = head.min(self.tail.applied());
        let mut page = self.page_of_file(after, applied, limit, filter).await?;
        let bytes: usize = page.commits.iter().map(|stored| stored.payload.len()).sum();
        if page.read_up_to == applied && page.commits.len() < limit && bytes < PAGE_BYTES_MAX {
            let more = (limit - page.commits.len(), PAGE_BYTES_MAX - bytes);
            // Where the file has caught up meanwhile, the next page goes on.
            if let Some(rest) = self.tail.page(applied, head, more.0, more.1, filter) {
                page.commits.extend(rest.commits);
                page.read_up_to = rest.read_up_to;
            }
        }
        Ok(page)
    }

    /// The same of what the file has; it has everything up to `head`.
    async fn page_of_file(
        &self,
        after: Position,
        head: Position,
        limit: usize,
        filter: &Filter,
    ) -> Result<StoredPage, LogError> {
        let limit_rows = i64::try_from(limit).unwrap_or(i64::MAX);
        if filter.org.is_none() && filter.kinds.is_empty() {
            let query = sqlx::query(
                "SELECT position, recorded_at, payload FROM log WHERE position > ? AND position <= ? ORDER BY position LIMIT ?",
            );
            let query = query.bind(after.get().cast_signed()).bind(head.get().cast_signed()).bind(limit_rows);
            return self.collect(query, limit, head).await;
        }
        let scopes = self.scopes(filter).await?;
        if scopes.is_empty() {
            return Ok(StoredPage { commits: Vec::new(), read_up_to: head });
        }
        if scopes.len() <= SCOPES_MERGED_MAX {
            let mut sql = String::from("SELECT position, recorded_at, payload FROM log WHERE position IN (");
            for (index, scope) in scopes.iter().enumerate() {
                let union = if index == 0 { "" } else { " UNION ALL " };
                write!(
                    sql,
                    "{union}SELECT position FROM scope_commits WHERE scope = {scope} AND position > ?1 AND position <= ?2"
                )
                .expect("writing to a String cannot fail");
            }
            sql.push_str(" ORDER BY 1 LIMIT ?3) ORDER BY position");
            let query = sqlx::query(AssertSqlSafe(sql)).persistent(scopes.len() <= 2);
            let query = query.bind(after.get().cast_signed()).bind(head.get().cast_signed()).bind(limit_rows);
            return self.collect(query, limit, head).await;
        }
        let end = head.min(Position::new(after.get().saturating_add(SCAN_POSITIONS_MAX)));
        let mut sql = String::from(
            "SELECT position, recorded_at, payload FROM log WHERE position > ?1 AND position <= ?2 AND scope IN (SELECT id FROM scopes WHERE 1",
        );
        if let Some(org) = filter.org {
            write!(sql, " AND org = '{org}'").expect("writing to a String cannot fail");
        }
        push_kinds(&mut sql, filter);
        sql.push_str(") ORDER BY position LIMIT ?3");
        let query = sqlx::query(AssertSqlSafe(sql)).persistent(false);
        let query = query.bind(after.get().cast_signed()).bind(end.get().cast_signed()).bind(limit_rows);
        self.collect(query, limit, end).await
    }

    async fn scopes(&self, filter: &Filter) -> Result<Vec<i64>, LogError> {
        let mut sql = String::from("SELECT id FROM scopes WHERE 1");
        if let Some(org) = filter.org {
            write!(sql, " AND org = '{org}'").expect("writing to a String cannot fail");
        }
        push_kinds(&mut sql, filter);
        write!(sql, " LIMIT {}", SCOPES_MERGED_MAX + 1).expect("writing to a String cannot fail");
        sqlx::query_scalar(AssertSqlSafe(sql))
            .persistent(false)
            .fetch_all(&self.pool)
            .await
            .map_err(|error| failed(&error))
    }

    async fn collect(
        &self,
        query: sqlx::query::Query<'_, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>,
        limit: usize,
        end: Position,
    ) -> Result<StoredPage, LogError> {
        let mut rows = query.fetch(&self.pool);
        let mut commits = Vec::new();
        let mut bytes = 0;
        while let Some(row) = rows.try_next().await.map_err(|error| failed(&error))? {
            let stored = Stored::from_row(&row).map_err(|error| failed(&error))?;
            bytes += stored.payload.len();
            let position = stored.position;
            commits.push(stored);
            if commits.len() >= limit || bytes >= PAGE_BYTES_MAX {
                return Ok(StoredPage { commits, read_up_to: position });
            }
        }
        Ok(StoredPage { commits, read_up_to: end })
    }
}

/// Kinds are our own written-out tokens and ids are hexadecimal: nothing here comes from outside.
fn push_kinds(sql: &mut String, filter: &Filter) {
    if filter.kinds.is_empty() {
        return;
    }
    sql.push_str(" AND kind IN (");
    for (index, kind) in filter.kinds.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        write!(sql, "{comma}'{}'", kind.token()).expect("writing to a String cannot fail");
    }
    sql.push(')');
}
