//! The database of the read models: SQLite embedded, PostgreSQL in production.
//!
//! Owns connections, transactions and the few operations in which the two differ. Everything above is written once.
//! Not here: what stands in the tables.

use std::borrow::Cow;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, join};
use sqlx::postgres::{PgArguments, PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Arguments, AssertSqlSafe, Connection as _, Postgres, Sqlite};

use super::audit::Audit;
use super::command_ids::CommandIds;
use super::directory::Directory;
use super::freshness::Freshness;
use super::meter::Meter;
use super::migrations;
use super::request_keys::RequestKeys;
use super::statement::{Argument, Statement};
use super::table::{CellType, FromRows, OnConflict, Row, Table, Value};

const READERS_MAX: u32 = 8;
const POSTGRES_CONNECTIONS_MAX: u32 = 16;
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
const SQLITE_BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Pages of the write-ahead log before it is copied into the file. Indexes by things that many commits are about are written
/// all over: with a longer log a page that several batches change is copied once. What is left of it is cut to as much.
const SQLITE_WAL_PAGES: &str = "16384";
const SQLITE_WAL_BYTES_KEPT: &str = "67108864";
/// Rows of one SQLite statement: few sizes, so that few statements are prepared, all below SQLite's 32,766 values.
const SQLITE_ROWS: [usize; 4] = [128, 32, 8, 1];
/// Ids asked for by one SQLite statement.
const SQLITE_IDS: [usize; 3] = [128, 16, 1];

/// What went wrong between us and the database.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    #[error("the read models' database: {0}")]
    Sql(#[from] sqlx::Error),
    #[error("the read models' tables could not be brought up to date: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    #[error("the read models' database address is not understood: {0}; expected postgres://user@host/database")]
    Address(String),
    /// A row holds what no projector of this version writes.
    #[error("a row of `{table}` cannot be read: {reason}; rebuild the read model")]
    Row { table: &'static str, reason: String },
}

impl DatabaseError {
    /// Whether trying again later could help: the connection, not the statement, failed.
    pub fn is_transient(&self) -> bool {
        let Self::Sql(error) = self else { return false };
        match error {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::WorkerCrashed => true,
            sqlx::Error::Database(error) => error.code().is_some_and(|code| transient_code(&code)),
            _ => false,
        }
    }
}

/// PostgreSQL: connection trouble (08), rollbacks to be repeated (40), lack of resources (53), operators (57).
/// SQLite: busy and locked (5 and 6, with their extended codes), disk full (13) and input/output (10).
fn transient_code(code: &str) -> bool {
    match code.len() {
        5 => ["08", "40", "53", "57"].iter().any(|class| code.starts_with(class)),
        _ => code.parse::<u32>().is_ok_and(|code| matches!(code & 0xff, 5 | 6 | 10 | 13)),
    }
}

/// Connections to the read models. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Database {
    pool: Pool,
    pub(crate) freshness: Arc<Freshness>,
}

#[derive(Clone, Debug)]
enum Pool {
    /// One writing connection: projectors queue for it in order instead of polling for SQLite's lock.
    Sqlite {
        writer: SqlitePool,
        readers: SqlitePool,
        /// Writes what no projector could fold again: synced to disk at each commit.
        durable: SqlitePool,
    },
    Postgres(PgPool),
}

impl Database {
    /// Opens the file, or makes it, and brings its tables up to date.
    ///
    /// `synchronous=NORMAL`: a power cut may take the last transactions, rows and checkpoint together, and the projector
    /// folds them again.
    pub async fn connect_sqlite(path: &Path) -> Result<Self, DatabaseError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(SQLITE_BUSY_TIMEOUT)
            .pragma("cache_size", "-65536")
            .pragma("wal_autocheckpoint", SQLITE_WAL_PAGES)
            .pragma("journal_size_limit", SQLITE_WAL_BYTES_KEPT)
            .pragma("temp_store", "memory")
            .statement_cache_capacity(256);
        let writer = outside_transactions(SqlitePoolOptions::new())
            .max_connections(1)
            .acquire_timeout(Duration::from_secs(30))
            .idle_timeout(None)
            .max_lifetime(None)
            .test_before_acquire(false)
            .connect_with(options.clone())
            .await?;
        migrations::migrator().run(&writer).await?;
        let durable = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .test_before_acquire(false)
            .connect_with(options.clone().synchronous(SqliteSynchronous::Full))
            .await?;
        let readers = outside_transactions(SqlitePoolOptions::new())
            .max_connections(READERS_MAX)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .test_before_acquire(false)
            .connect_with(options.pragma("query_only", "1"))
            .await?;
        Ok(Self { pool: Pool::Sqlite { writer, readers, durable }, freshness: Arc::default() })
    }

    /// Connects and brings the tables up to date. `url` is `postgres://user@host:port/database`.
    pub async fn connect_postgres(url: &str) -> Result<Self, DatabaseError> {
        let options = PgConnectOptions::from_str(url)
            .map_err(|_| DatabaseError::Address("not a PostgreSQL URL".into()))?
            .application_name("envforge-projections")
            // What a crash of the server could take, rows and checkpoint together, is folded again from the log.
            .options([("synchronous_commit", "off")])
            .statement_cache_capacity(256);
        let pool = PgPoolOptions::new()
            .max_connections(POSTGRES_CONNECTIONS_MAX)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_with(options)
            .await?;
        migrations::migrator().run(&pool).await?;
        Ok(Self { pool: Pool::Postgres(pool), freshness: Arc::default() })
    }

    /// Closes all connections; waits for those in use.
    pub async fn close(&self) {
        match &self.pool {
            Pool::Sqlite { writer, readers, durable } => {
                readers.close().await;
                durable.close().await;
                writer.close().await;
            }
            Pool::Postgres(pool) => pool.close().await,
        }
    }

    /// Has the planner look at tables that were just filled: PostgreSQL does by itself within a minute or so, and answers from
    /// guesses until then. SQLite's plans do not depend on it (`plans`).
    pub(crate) async fn analyze(&self, model: super::ModelName) -> Result<(), DatabaseError> {
        let Pool::Postgres(pool) = &self.pool else { return Ok(()) };
        for table in model.tables() {
            sqlx::query(AssertSqlSafe(format!("ANALYZE {}", table.name))).execute(pool).await?;
        }
        Ok(())
    }

    /// Organizations, members, users, projects, workspaces, runtimes, links, hosts.
    pub fn directory(&self) -> Directory<'_> {
        Directory::new(self)
    }

    /// Who did what.
    pub fn audit(&self) -> Audit<'_> {
        Audit::new(self)
    }

    /// Awake time.
    pub fn meter(&self) -> Meter<'_> {
        Meter::new(self)
    }

    /// Which commits answered a command.
    pub fn command_ids(&self) -> CommandIds<'_> {
        CommandIds::new(self)
    }

    /// For which requests idempotency keys were used.
    pub fn request_keys(&self) -> RequestKeys<'_> {
        RequestKeys::new(self)
    }

    /// One statement that is on disk when this answers, as the log's own commits are. Answers how many rows it touched.
    pub(crate) async fn execute_durably(&self, statement: Statement) -> Result<u64, DatabaseError> {
        let Statement { text, arguments } = statement;
        let sql = AssertSqlSafe(text);
        Ok(match &self.pool {
            Pool::Sqlite { durable, .. } => {
                sqlx::query_with(sql, sqlite(arguments)?).execute(durable).await?.rows_affected()
            }
            Pool::Postgres(pool) => {
                let mut transaction = begun(pool, "BEGIN").await?;
                sqlx::query("SET LOCAL synchronous_commit = on").execute(&mut *transaction).await?;
                let touched =
                    sqlx::query_with(sql, postgres(arguments)?).execute(&mut *transaction).await?.rows_affected();
                transaction.commit().await?;
                touched
            }
        })
    }

    /// A transaction that writes.
    pub(crate) async fn begin(&self) -> Result<Transaction, DatabaseError> {
        Ok(match &self.pool {
            Pool::Sqlite { writer, .. } => Transaction::Sqlite(begun(writer, "BEGIN IMMEDIATE").await?),
            Pool::Postgres(pool) => Transaction::Postgres(begun(pool, "BEGIN").await?),
        })
    }

    /// A transaction that reads one state of everything, whatever is written meanwhile.
    pub(crate) async fn snapshot(&self) -> Result<Transaction, DatabaseError> {
        Ok(match &self.pool {
            Pool::Sqlite { readers, .. } => Transaction::Sqlite(begun(readers, "BEGIN").await?),
            Pool::Postgres(pool) => {
                Transaction::Postgres(begun(pool, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?)
            }
        })
    }

    pub(crate) async fn fetch_all<T: FromRows>(&self, statement: Statement) -> Result<Vec<T>, DatabaseError> {
        let Statement { text, arguments } = statement;
        let sql = AssertSqlSafe(text);
        Ok(match &self.pool {
            Pool::Sqlite { readers, .. } => sqlx::query_as_with(sql, sqlite(arguments)?).fetch_all(readers).await?,
            Pool::Postgres(pool) => sqlx::query_as_with(sql, postgres(arguments)?).fetch_all(pool).await?,
        })
    }

    /// The first row, if any.
    pub(crate) async fn fetch_optional<T: FromRows>(&self, statement: Statement) -> Result<Option<T>, DatabaseError> {
        Ok(self.fetch_all(statement).await?.into_iter().next())
    }
}

/// Keeps no connection that sqlx takes to be in a transaction. Where the disk is full or fails SQLite ends a transaction by itself; sqlx 0.9
/// goes on counting it, and nothing could begin on that connection ever again.
fn outside_transactions(options: SqlitePoolOptions) -> SqlitePoolOptions {
    options.after_release(|connection, _| {
        Box::pin(async move {
            if connection.is_in_transaction() {
                // What was dropped is rolled back before this is answered.
                connection.ping().await?;
            }
            Ok(!connection.is_in_transaction())
        })
    })
}

/// Begins in a task of its own. sqlx 0.9 forgets a transaction whose beginning is given up half-way, as it is when a client
/// goes away: the pool would hand out a connection that reads an old state for ever, or whose writes are never committed.
async fn begun<D: sqlx::Database>(
    pool: &sqlx::Pool<D>,
    how: &'static str,
) -> Result<sqlx::Transaction<'static, D>, sqlx::Error> {
    let pool = pool.clone();
    let beginning = tokio::spawn(async move { pool.begin_with(how).await });
    beginning.await.unwrap_or_else(|error| Err(sqlx::Error::Io(std::io::Error::other(error))))
}

/// A transaction on either database. Rolled back where it is dropped.
pub(crate) enum Transaction {
    Sqlite(sqlx::Transaction<'static, Sqlite>),
    Postgres(sqlx::Transaction<'static, Postgres>),
}

impl Transaction {
    pub(crate) async fn commit(self) -> Result<(), DatabaseError> {
        match self {
            Self::Sqlite(transaction) => transaction.commit().await?,
            Self::Postgres(transaction) => transaction.commit().await?,
        }
        Ok(())
    }

    pub(crate) async fn rollback(self) -> Result<(), DatabaseError> {
        match self {
            Self::Sqlite(transaction) => transaction.rollback().await?,
            Self::Postgres(transaction) => transaction.rollback().await?,
        }
        Ok(())
    }

    /// Answers how many rows it touched.
    pub(crate) async fn execute(&mut self, statement: Statement) -> Result<u64, DatabaseError> {
        let Statement { text, arguments } = statement;
        let sql = AssertSqlSafe(text);
        Ok(match self {
            Self::Sqlite(connection) => {
                sqlx::query_with(sql, sqlite(arguments)?).execute(&mut **connection).await?.rows_affected()
            }
            Self::Postgres(connection) => {
                sqlx::query_with(sql, postgres(arguments)?).execute(&mut **connection).await?.rows_affected()
            }
        })
    }

    pub(crate) async fn fetch_all<T: FromRows>(&mut self, statement: Statement) -> Result<Vec<T>, DatabaseError> {
        let Statement { text, arguments } = statement;
        let sql = AssertSqlSafe(text);
        Ok(match self {
            Self::Sqlite(connection) => {
                sqlx::query_as_with(sql, sqlite(arguments)?).fetch_all(&mut **connection).await?
            }
            Self::Postgres(connection) => {
                sqlx::query_as_with(sql, postgres(arguments)?).fetch_all(&mut **connection).await?
            }
        })
    }

    /// Rows of one generation by their ids, in no order.
    pub(crate) async fn fetch_by_id<R: Row>(
        &mut self,
        generation: i64,
        ids: &[String],
    ) -> Result<Vec<R>, DatabaseError> {
        let table = &R::TABLE;
        let head = format!("SELECT {} FROM {} WHERE generation = ", table.column_list(), table.name);
        match self {
            Self::Postgres(connection) => {
                let sql = AssertSqlSafe(format!("{head}$1 AND id = ANY($2)"));
                Ok(sqlx::query_as(sql).bind(generation).bind(ids).fetch_all(&mut **connection).await?)
            }
            Self::Sqlite(_) => {
                let mut found = Vec::with_capacity(ids.len());
                for chunk in chunks(ids, &SQLITE_IDS) {
                    let statement = Statement::new(head.clone()).bind(generation).push(" AND ");
                    found.extend(self.fetch_all(statement.bind_in("id", chunk.iter().map(String::as_str))).await?);
                }
                Ok(found)
            }
        }
    }

    /// Asks for rows of one generation whose `column` is one of the numbers, in no order.
    pub(crate) fn by_number<R: Row>(&self, generation: i64, column: &'static str, numbers: &[i64]) -> Statement {
        let table = &R::TABLE;
        let list = numbers.iter().map(i64::to_string).collect::<Vec<_>>().join(",");
        let statement =
            Statement::new(format!("SELECT {} FROM {} WHERE generation = ", table.column_list(), table.name))
                .bind(generation)
                .push(&format!(" AND {column}"));
        // One text for any number of them.
        match self {
            Self::Postgres(_) => statement.push(" = ANY(CAST(string_to_array(").bind(list).push(", ',') AS BIGINT[]))"),
            Self::Sqlite(_) => statement.push(" IN (SELECT value FROM json_each(").bind(format!("[{list}]")).push("))"),
        }
    }

    /// Removes rows of one generation by their ids.
    pub(crate) async fn delete_by_id(
        &mut self,
        table: &'static Table,
        generation: i64,
        ids: &[String],
    ) -> Result<(), DatabaseError> {
        for chunk in chunks(ids, &SQLITE_IDS) {
            let statement = Statement::new(format!("DELETE FROM {} WHERE generation = ", table.name));
            let statement = statement.bind(generation).push(" AND ");
            self.execute(statement.bind_in("id", chunk.iter().map(String::as_str))).await?;
        }
        Ok(())
    }

    /// Writes rows of one generation in bulk. `values` holds row after row.
    pub(crate) async fn insert(
        &mut self,
        table: &'static Table,
        generation: i64,
        values: &[Value<'_>],
        on_conflict: OnConflict,
    ) -> Result<(), DatabaseError> {
        if values.is_empty() {
            return Ok(());
        }
        match self {
            Self::Postgres(connection) => {
                let arguments = arrays(table, generation, values).map_err(sqlx::Error::Encode)?;
                let sql = AssertSqlSafe(table.insert_arrays(on_conflict));
                sqlx::query_with(sql, arguments).execute(&mut **connection).await?;
            }
            Self::Sqlite(connection) => {
                let mut statements = sqlite_inserts(table, generation, values, on_conflict);
                let mut next = statements.next();
                while let Some(statement) = next {
                    let (sql, arguments) = statement.map_err(sqlx::Error::Encode)?;
                    let insert = sqlx::query_with(AssertSqlSafe(sql), arguments).execute(&mut **connection);
                    // The connection works in a thread of its own: the next values are copied meanwhile.
                    let (inserted, prepared) = join(insert, async { statements.next() }).await;
                    inserted?;
                    next = prepared;
                }
            }
        }
        Ok(())
    }

    /// Hands every row of one generation to `visit`, in no order: first the values, column by column.
    pub(crate) fn scan<'a>(
        &'a mut self,
        table: &'static Table,
        generation: i64,
        visit: &'a mut (dyn FnMut(&[Value<'static>]) + Send),
    ) -> BoxFuture<'a, Result<(), DatabaseError>> {
        let sql = AssertSqlSafe(format!("SELECT {} FROM {} WHERE generation = $1", table.column_list(), table.name));
        Box::pin(async move {
            match self {
                Self::Sqlite(connection) => {
                    let rows = sqlx::query(sql).bind(generation).fetch(&mut **connection);
                    scan_rows(table, rows, visit).await
                }
                Self::Postgres(connection) => {
                    let rows = sqlx::query(sql).bind(generation).fetch(&mut **connection);
                    scan_rows(table, rows, visit).await
                }
            }
        })
    }
}

async fn scan_rows<'a, R>(
    table: &Table,
    mut rows: futures_util::stream::BoxStream<'a, Result<R, sqlx::Error>>,
    visit: &mut (dyn FnMut(&[Value<'static>]) + Send),
) -> Result<(), DatabaseError>
where
    R: sqlx::Row,
    usize: sqlx::ColumnIndex<R>,
    for<'r> Option<i64>: sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
    for<'r> Option<String>: sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
{
    use futures_util::TryStreamExt;
    let mut values = Vec::with_capacity(table.columns.len());
    while let Some(row) = rows.try_next().await? {
        values.clear();
        for (index, (_, cell)) in table.columns.iter().enumerate() {
            values.push(match cell {
                CellType::Int => Value::Int(row.try_get(index)?),
                CellType::Text => Value::Text(row.try_get::<Option<String>, _>(index)?.map(Cow::Owned)),
            });
        }
        visit(&values);
    }
    Ok(())
}

/// Cuts a list into pieces of few different lengths.
fn chunks<'a>(mut rest: &'a [String], lengths: &'static [usize]) -> impl Iterator<Item = &'a [String]> {
    std::iter::from_fn(move || {
        let length = lengths.iter().copied().find(|length| *length <= rest.len())?;
        let (now, later) = rest.split_at(length);
        rest = later;
        Some(now)
    })
}

fn sqlite(values: Vec<Argument>) -> Result<SqliteArguments, sqlx::Error> {
    let mut arguments = SqliteArguments::default();
    for value in values {
        match value {
            Argument::Int(value) => Arguments::add(&mut arguments, value),
            Argument::Text(value) => Arguments::add(&mut arguments, value),
        }
        .map_err(sqlx::Error::Encode)?;
    }
    Ok(arguments)
}

fn postgres(values: Vec<Argument>) -> Result<PgArguments, sqlx::Error> {
    let mut arguments = PgArguments::default();
    for value in values {
        match value {
            Argument::Int(value) => arguments.add(value),
            Argument::Text(value) => arguments.add(value),
        }
        .map_err(sqlx::Error::Encode)?;
    }
    Ok(arguments)
}

fn values_of(generation: i64, width: usize, values: &[Value<'_>]) -> Result<SqliteArguments, sqlx::error::BoxDynError> {
    let mut arguments = SqliteArguments::default();
    Arguments::reserve(&mut arguments, values.len() + values.len() / width, 0);
    for row in values.chunks(width) {
        Arguments::add(&mut arguments, generation)?;
        for value in row {
            match value {
                Value::Int(value) => Arguments::add(&mut arguments, *value)?,
                // A boxed text is the one form that the driver copies once.
                Value::Text(text) => Arguments::add(&mut arguments, text.as_deref().map(Box::<str>::from))?,
            }
        }
    }
    Ok(arguments)
}

/// The statements that write these rows to SQLite, in few different lengths.
fn sqlite_inserts<'a>(
    table: &'static Table,
    generation: i64,
    values: &'a [Value<'_>],
    on_conflict: OnConflict,
) -> impl Iterator<Item = Result<(String, SqliteArguments), sqlx::error::BoxDynError>> + Send + 'a {
    let width = table.columns.len();
    let mut rest = values;
    std::iter::from_fn(move || {
        let rows = SQLITE_ROWS.iter().copied().find(|rows| rows * width <= rest.len())?;
        let (now, later) = rest.split_at(rows * width);
        rest = later;
        let sql = table.insert_values(rows, on_conflict);
        Some(values_of(generation, width, now).map(|arguments| (sql, arguments)))
    })
}

fn arrays(table: &Table, generation: i64, values: &[Value<'_>]) -> Result<PgArguments, sqlx::error::BoxDynError> {
    let width = table.columns.len();
    let mut arguments = PgArguments::default();
    arguments.add(generation)?;
    for (index, (_, cell)) in table.columns.iter().enumerate() {
        let column = values.iter().skip(index).step_by(width);
        match cell {
            CellType::Int => {
                let column = column.map(|value| if let Value::Int(value) = value { *value } else { None });
                arguments.add(column.collect::<Vec<Option<i64>>>())?;
            }
            CellType::Text => {
                let column = column.map(|value| if let Value::Text(value) = value { value.as_deref() } else { None });
                arguments.add(column.collect::<Vec<Option<&str>>>())?;
            }
        }
    }
    Ok(arguments)
}

#[cfg(test)]
mod in_sqlite {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_full_disk_ends_a_transaction_and_not_all_that_come_after_it() {
        let directory = tempfile::tempdir().unwrap();
        let database = Database::connect_sqlite(&directory.path().join("read-models")).await.unwrap();
        let fill = || Statement::new("INSERT INTO filler VALUES (zeroblob(1000000))");
        let mut transaction = database.begin().await.unwrap();
        transaction.execute(Statement::new("CREATE TABLE filler (bytes BLOB)")).await.unwrap();
        transaction.commit().await.unwrap();
        let mut transaction = database.begin().await.unwrap();
        // On this connection: no page more than there are.
        transaction.execute(Statement::new("PRAGMA max_page_count = 1")).await.unwrap();
        let full = transaction.execute(fill()).await.unwrap_err();
        assert!(full.is_transient(), "{full}");
        drop(transaction);
        let mut transaction = database.begin().await.unwrap();
        transaction.execute(fill()).await.unwrap();
        transaction.commit().await.unwrap();
    }
}

#[cfg(test)]
mod in_postgres {
    #![allow(clippy::unwrap_used)]
    use std::future::poll_fn;
    use std::task::Poll;

    use envforge_testkit::Postgres;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_transaction_whose_beginning_is_given_up_leaves_nothing_behind() {
        let shared = tokio::task::spawn_blocking(Postgres::shared).await.unwrap();
        let database = Database::connect_postgres(shared.database_url()).await.unwrap();
        for polls in 0..60_u32 {
            let mut beginning = Box::pin(database.snapshot());
            for _ in 0..polls % 6 {
                let ended = poll_fn(|cx| Poll::Ready(beginning.as_mut().poll(cx).is_ready())).await;
                if ended {
                    break;
                }
                tokio::task::yield_now().await;
            }
            drop(beginning);
            // With more of them at once than were given up, one gets the connection that was left.
            let mut writes = tokio::task::JoinSet::new();
            for _ in 0..4 {
                let database = database.clone();
                writes.spawn(async move {
                    let Transaction::Postgres(mut transaction) = database.begin().await.unwrap() else { panic!() };
                    let read_only: String =
                        sqlx::query_scalar("SHOW transaction_read_only").fetch_one(&mut *transaction).await.unwrap();
                    read_only
                });
            }
            assert!(writes.join_all().await.iter().all(|read_only| read_only == "off"), "after {polls} polls");
        }
        database.close().await;
    }
}
