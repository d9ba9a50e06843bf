//! A connection that is kept at hand, for statements of which each sign-in waits for several.
//!
//! A pool asks each connection that comes back whether it is still there, which costs as much as a statement. Not here: what is
//! asked, and everything that is asked one at a time (the pool).

use std::sync::Arc;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, PgPool, SqlitePool};
use tokio::sync::{Mutex, MutexGuard};

use super::Pool;

/// Where statements go. One at a time on SQLite, which writes one at a time anyway.
#[derive(Clone)]
pub(crate) enum Lane {
    Kept(Arc<Kept>),
    /// A table in memory has but one connection, which everything shares.
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

impl Lane {
    /// Connects at the first use.
    pub(crate) fn kept(options: SqliteConnectOptions) -> Self {
        Self::Kept(Arc::new(Kept { options, connection: Mutex::new(None) }))
    }

    pub(crate) fn pooled(pool: &Pool) -> Self {
        match pool {
            Pool::Sqlite(pool) => Self::Sqlite(pool.clone()),
            Pool::Postgres(pool) => Self::Postgres(pool.clone()),
        }
    }
}

pub(crate) struct Kept {
    options: SqliteConnectOptions,
    connection: Mutex<Option<SqliteConnection>>,
}

impl Kept {
    /// The connection, once everybody before has their answer. A statement that is given up half-way is carried out all the same.
    pub(crate) async fn hold(&self) -> Result<MutexGuard<'_, Option<SqliteConnection>>, sqlx::Error> {
        let mut held = self.connection.lock().await;
        if held.is_none() {
            *held = Some(self.options.connect().await?);
        }
        Ok(held)
    }
}

/// One statement on whatever the lane leads to, as `on_either` has it. `$body` is a `Result` of sqlx's.
macro_rules! on_lane {
    ($lane:expr, $connection:ident => $body:expr) => {
        match &$lane {
            $crate::credentials::Lane::Kept(kept) => {
                let mut held = kept.hold().await?;
                let result = match held.as_mut() {
                    Some($connection) => $body,
                    None => Err(sqlx::Error::WorkerCrashed),
                };
                // What the database itself has to say leaves the connection as it was; after anything else another one is taken.
                if result.as_ref().is_err_and(|error| error.as_database_error().is_none()) {
                    *held = None;
                }
                result
            }
            $crate::credentials::Lane::Sqlite($connection) => $body,
            $crate::credentials::Lane::Postgres($connection) => $body,
        }
    };
}
pub(crate) use on_lane;
