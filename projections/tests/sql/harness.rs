//! A database of the test's own, and the steps that most tests take with it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use envforge_domain::commit::{Position, Recorded};
use envforge_eventlog::SharedLog;
use envforge_projections::sql::projector::{self, ProjectorError};
use envforge_projections::sql::{Database, ModelName, TableDigest};
use envforge_testkit::Postgres;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::log::{MemoryLog, SharedMemoryLog};

pub const DEADLINE: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Sqlite,
    Postgres,
}

/// A fresh database, gone with the harness.
pub struct Harness {
    pub database: Database,
    raw: Raw,
    address: Address,
}

enum Address {
    Sqlite { path: PathBuf, _directory: tempfile::TempDir },
    Postgres(String),
}

enum Raw {
    Sqlite(sqlx::SqlitePool),
    Postgres(sqlx::PgPool),
}

/// A database that no version of today has seen.
pub struct Former {
    raw: Raw,
    address: Address,
}

impl Former {
    /// An empty one.
    pub async fn new(kind: Kind) -> Self {
        match kind {
            Kind::Sqlite => {
                let directory = tempfile::tempdir().unwrap();
                let path = directory.path().join("read-models.sqlite");
                let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path).create_if_missing(true);
                let raw = sqlx::SqlitePool::connect_with(options).await.unwrap();
                Self { raw: Raw::Sqlite(raw), address: Address::Sqlite { path, _directory: directory } }
            }
            Kind::Postgres => {
                let shared = tokio::task::spawn_blocking(Postgres::shared).await.unwrap();
                let options = sqlx::postgres::PgPoolOptions::new().max_connections(1);
                let raw = options.connect(shared.database_url()).await.unwrap();
                Self { raw: Raw::Postgres(raw), address: Address::Postgres(shared.database_url().to_owned()) }
            }
        }
    }

    /// With the tables of a version, by its last migration.
    pub async fn migrated(kind: Kind, last: i64) -> Self {
        let former = Self::new(kind).await;
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations");
        let mut migrator = sqlx::migrate::Migrator::new(folder).await.unwrap();
        migrator.migrations = migrator.iter().filter(|one| one.version <= last).cloned().collect();
        match &former.raw {
            Raw::Sqlite(pool) => migrator.run(pool).await.unwrap(),
            Raw::Postgres(pool) => migrator.run(pool).await.unwrap(),
        }
        former
    }

    pub async fn execute(&self, sql: String) {
        let sql = sqlx::AssertSqlSafe(sql);
        match &self.raw {
            Raw::Sqlite(pool) => drop(sqlx::query(sql).execute(pool).await.unwrap()),
            Raw::Postgres(pool) => drop(sqlx::query(sql).execute(pool).await.unwrap()),
        }
    }
}

async fn connect(address: &Address) -> Database {
    match address {
        Address::Sqlite { path, .. } => Database::connect_sqlite(path).await.unwrap(),
        Address::Postgres(url) => Database::connect_postgres(url).await.unwrap(),
    }
}

impl Harness {
    pub async fn new(kind: Kind) -> Self {
        Self::on(Former::new(kind).await).await
    }

    /// Today's product on a database that was there before.
    pub async fn on(Former { raw, address }: Former) -> Self {
        let database = connect(&address).await;
        Self { database, raw, address }
    }

    /// The same database as another process has it.
    pub async fn connect_again(&self) -> Database {
        connect(&self.address).await
    }

    /// What a statement counts, asked of the database itself.
    pub async fn count(&self, sql: &'static str) -> i64 {
        match &self.raw {
            Raw::Sqlite(pool) => sqlx::query_scalar(sql).fetch_one(pool).await.unwrap(),
            Raw::Postgres(pool) => sqlx::query_scalar(sql).fetch_one(pool).await.unwrap(),
        }
    }

    pub fn start(&self, log: &SharedLog, model: ModelName) -> Running {
        let cancel = CancellationToken::new();
        let run = projector::run(log.clone(), self.database.clone(), model, cancel.clone());
        Running { cancel, task: tokio::spawn(run) }
    }

    /// Projects until `position` is folded, then stops in order.
    pub async fn project(&self, log: &SharedLog, model: ModelName, position: Position) {
        let running = self.start(log, model);
        self.wait(model, position).await;
        running.stop().await.unwrap();
    }

    pub async fn wait(&self, model: ModelName, position: Position) {
        self.database.wait_for(model, position, DEADLINE).await.unwrap();
    }

    /// Projects everything with all read models and answers their digests.
    pub async fn project_all(&self, log: &SharedLog, position: Position) -> Vec<TableDigest> {
        for model in ModelName::ALL {
            self.project(log, model, position).await;
        }
        self.digests().await
    }

    pub async fn digests(&self) -> Vec<TableDigest> {
        let mut digests = Vec::new();
        for model in ModelName::ALL {
            digests.push(self.database.digest(model).await.unwrap());
        }
        digests
    }
}

pub struct Running {
    cancel: CancellationToken,
    pub task: JoinHandle<Result<(), ProjectorError>>,
}

impl Running {
    pub async fn stop(self) -> Result<(), ProjectorError> {
        self.cancel.cancel();
        self.task.await.unwrap()
    }

    /// Ends it wherever it is, as a crash does.
    pub async fn crash(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

/// The digests of a single pass over the same commits, in a database of its own.
pub async fn single_pass(commits: Vec<Recorded>) -> Vec<TableDigest> {
    let harness = Harness::new(Kind::Sqlite).await;
    let log = Arc::new(MemoryLog::of("log-one", commits));
    let head = log.reveal_all();
    let shared: SharedLog = Arc::new(SharedMemoryLog(log));
    harness.project_all(&shared, head).await
}

impl Harness {
    /// Takes every connection of the product away from under it. SQLite has none to lose.
    pub async fn cut_connections(&self) {
        if let Raw::Postgres(pool) = &self.raw {
            let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() \
                       AND application_name = 'envforge-projections'";
            let cut: i64 = sqlx::query_scalar(sql).fetch_one(pool).await.unwrap();
            assert!(cut > 0, "there was nothing to cut");
        }
    }
}

impl Harness {
    /// Behind the product's back.
    pub async fn execute(&self, sql: &'static str) {
        match &self.raw {
            Raw::Sqlite(pool) => drop(sqlx::query(sql).execute(pool).await.unwrap()),
            Raw::Postgres(pool) => drop(sqlx::query(sql).execute(pool).await.unwrap()),
        }
    }
}
