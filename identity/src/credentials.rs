//! The credential table: hashes of passwords, refresh tokens and invitations' tokens, in SQLite or PostgreSQL, and failed
//! attempts to sign in.
//!
//! The only place where any of it is kept; none of it ever stands in the log. Not here: whether a password is right
//! (`password`), who may try (`lockout`), what a session may do (the access policy).

use std::path::Path;
use std::time::Duration;

use envforge_domain::ids::{OrgId, SessionId, UserId};
use envforge_domain::secret::TokenDigest;
use envforge_domain::time::UnixMillis;
use envforge_domain::user::EmailAddress;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{PgPool, SqlitePool};

use crate::lockout::LockoutRule;
use crate::migrations;

/// The credential table could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error("the credential table is out of reach: {0}")]
    Database(#[from] sqlx::Error),
    #[error("the credential table could not be prepared: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    #[error("the credential table's file could not be made: {0}")]
    File(#[from] std::io::Error),
    #[error("the credential table holds a damaged {column}")]
    Damaged { column: &'static str },
}

/// Somebody with a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub user: UserId,
    pub org: OrgId,
    pub email: EmailAddress,
}

/// An account with the hash that only `identity` may see.
pub(crate) struct StoredAccount {
    pub(crate) account: Account,
    pub(crate) password_hash: String,
}

/// Whether a new account was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stored {
    New,
    /// The user or the address has an account already; nothing was changed.
    Exists,
}

/// A refresh token as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RefreshRecord {
    pub(crate) family: String,
    pub(crate) session: SessionId,
    pub(crate) user: UserId,
    pub(crate) org: OrgId,
    pub(crate) expires_at: UnixMillis,
}

/// What became of presenting a refresh token.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Presented {
    /// It was good, is used now, and its successor is stored.
    Rotated(RefreshRecord),
    /// It was used before: its whole family is revoked now.
    Reused(RefreshRecord),
    Revoked(RefreshRecord),
    Expired,
    Unknown,
}

/// What is known of a refresh token that was only looked at.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Looked {
    Live(RefreshRecord),
    Used,
    Revoked(RefreshRecord),
    Expired,
    Unknown,
}

#[derive(Clone)]
pub(crate) enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

/// The same statement on either database: the dialects agree on all that is used here.
macro_rules! on_either {
    ($database:expr, $pool:ident => $body:expr) => {
        match &$database {
            $crate::credentials::Pool::Sqlite($pool) => $body,
            $crate::credentials::Pool::Postgres($pool) => $body,
        }
    };
}
pub(crate) use on_either;

mod attempts;
mod invitations;
mod lane;
mod service_tokens;

pub(crate) use attempts::Counting;
pub use invitations::InvitationKey;
pub(crate) use lane::{Lane, on_lane};
pub use service_tokens::ServiceTokenKey;

/// The credential table.
#[derive(Clone)]
pub struct Credentials {
    pub(crate) pool: Pool,
    /// The same database, for failed attempts alone.
    attempts: Lane,
    /// The same, for the first tokens of sessions.
    openings: Lane,
}

type AccountRow = (String, String, String, String);
type RefreshRow = (String, String, String, String, i64, Option<i64>, Option<i64>);

impl Credentials {
    /// Opens or makes the SQLite file, readable by its owner alone.
    pub async fn open_sqlite(path: &Path) -> Result<Self, CredentialsError> {
        create_private(path)?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .busy_timeout(Duration::from_secs(5));
        // A rotated refresh token that is forgotten with the power would be reported as stolen. Attempts may be: whoever guesses
        // does not cut the power, and a sync for each would be most of what signing in costs.
        let (sure, quick) =
            (options.clone().synchronous(SqliteSynchronous::Full), options.synchronous(SqliteSynchronous::Normal));
        let pool = SqlitePoolOptions::new().max_connections(4).acquire_timeout(Duration::from_secs(5));
        // A file does not hang up: to ask a connection whether it is there takes as long as a statement.
        let pool = pool.test_before_acquire(false).connect_with(sure.clone()).await?;
        let credentials = Self { pool: Pool::Sqlite(pool), attempts: Lane::kept(quick), openings: Lane::kept(sure) };
        credentials.migrate().await?;
        Ok(credentials)
    }

    /// A table of this process alone, gone with it.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) async fn open_in_memory() -> Result<Self, CredentialsError> {
        // The one connection is the table: it must never be closed.
        let options = SqlitePoolOptions::new().max_connections(1).idle_timeout(None).max_lifetime(None);
        let pool = options.connect_with(SqliteConnectOptions::new().in_memory(true)).await?;
        let credentials = Self::pooled(Pool::Sqlite(pool));
        credentials.migrate().await?;
        Ok(credentials)
    }

    /// Connects to PostgreSQL. `url` may hold a password: errors do not repeat it.
    pub async fn connect_postgres(url: &str) -> Result<Self, CredentialsError> {
        let pool = sqlx::postgres::PgPoolOptions::new()
            .max_connections(8)
            .acquire_timeout(Duration::from_secs(5))
            .connect(url)
            .await?;
        let credentials = Self::pooled(Pool::Postgres(pool));
        credentials.migrate().await?;
        Ok(credentials)
    }

    fn pooled(pool: Pool) -> Self {
        Self { attempts: Lane::pooled(&pool), openings: Lane::pooled(&pool), pool }
    }

    async fn migrate(&self) -> Result<(), CredentialsError> {
        let migrator = migrations::migrator();
        on_either!(self.pool, pool => migrator.run(pool).await?);
        Ok(())
    }

    pub(crate) async fn insert_account(
        &self,
        account: &Account,
        password_hash: &str,
        now: UnixMillis,
    ) -> Result<Stored, CredentialsError> {
        let inserted = on_either!(self.pool, pool => sqlx::query(
            "INSERT INTO credential_accounts (user_id, org_id, email, password_hash, created_at, password_changed_at) \
             VALUES ($1, $2, $3, $4, $5, $5) ON CONFLICT DO NOTHING",
        )
        .bind(account.user.to_string())
        .bind(account.org.to_string())
        .bind(account.email.as_str())
        .bind(password_hash)
        .bind(millis(now))
        .execute(pool)
        .await?
        .rows_affected());
        Ok(if inserted == 1 { Stored::New } else { Stored::Exists })
    }

    pub(crate) async fn account_by_email(
        &self,
        email: &EmailAddress,
    ) -> Result<Option<StoredAccount>, CredentialsError> {
        let row: Option<AccountRow> = on_either!(self.pool, pool => sqlx::query_as(
            "SELECT user_id, org_id, email, password_hash FROM credential_accounts WHERE email = $1",
        )
        .bind(email.as_str())
        .fetch_optional(pool)
        .await?);
        row.map(|row| read_account(&row)).transpose()
    }

    /// Whose account an address is.
    pub async fn account_by_address(&self, email: &EmailAddress) -> Result<Option<Account>, CredentialsError> {
        Ok(self.account_by_email(email).await?.map(|stored| stored.account))
    }

    /// The account of a user, where they have one.
    pub async fn account_of(&self, user: UserId) -> Result<Option<Account>, CredentialsError> {
        Ok(self.stored_account_of(user).await?.map(|stored| stored.account))
    }

    /// Whether anybody can sign in at all.
    pub async fn is_empty(&self) -> Result<bool, CredentialsError> {
        let row: Option<(String,)> = on_either!(self.pool, pool => sqlx::query_as(
            "SELECT user_id FROM credential_accounts LIMIT 1",
        )
        .fetch_optional(pool)
        .await?);
        Ok(row.is_none())
    }

    /// Replaces a hash made with another cost, unless the password was changed meanwhile.
    pub(crate) async fn replace_hash(&self, user: UserId, old: &str, new: &str) -> Result<(), CredentialsError> {
        on_either!(self.pool, pool => sqlx::query(
            "UPDATE credential_accounts SET password_hash = $3 WHERE user_id = $1 AND password_hash = $2",
        )
        .bind(user.to_string())
        .bind(old)
        .bind(new)
        .execute(pool)
        .await
        .map(drop)?);
        Ok(())
    }

    /// Stores the hash of a new password in the place of `old`; from then on no refresh token of this person works.
    /// `false`: somebody else changed it meanwhile, and nothing was done.
    pub(crate) async fn change_password(
        &self,
        user: UserId,
        old: &str,
        new: &str,
        now: UnixMillis,
    ) -> Result<bool, CredentialsError> {
        on_either!(self.pool, pool => {
            let mut transaction = begun(pool).await?;
            let changed = sqlx::query(
                "UPDATE credential_accounts SET password_hash = $3, password_changed_at = $4 \
                 WHERE user_id = $1 AND password_hash = $2",
            )
            .bind(user.to_string())
            .bind(old)
            .bind(new)
            .bind(millis(now))
            .execute(&mut *transaction)
            .await?
            .rows_affected();
            sqlx::query(
                "UPDATE credential_refresh_tokens SET revoked_at = $2 WHERE user_id = $1 AND revoked_at IS NULL",
            )
            .bind(user.to_string())
            .bind(millis(now))
            .execute(&mut *transaction)
            .await?;
            if changed == 1 {
                transaction.commit().await?;
            } else {
                transaction.rollback().await?;
            }
            Ok(changed == 1)
        })
    }

    pub(crate) async fn stored_account_of(&self, user: UserId) -> Result<Option<StoredAccount>, CredentialsError> {
        let row: Option<AccountRow> = on_either!(self.pool, pool => sqlx::query_as(
            "SELECT user_id, org_id, email, password_hash FROM credential_accounts WHERE user_id = $1",
        )
        .bind(user.to_string())
        .fetch_optional(pool)
        .await?);
        row.map(|row| read_account(&row)).transpose()
    }

    /// When each of a person's sessions was last given tokens: to the hour, when it was last used.
    pub async fn last_uses(&self, user: UserId) -> Result<Vec<(SessionId, UnixMillis)>, CredentialsError> {
        let rows: Vec<(String, i64)> = on_either!(self.pool, pool => sqlx::query_as(
            "SELECT session_id, MAX(issued_at) FROM credential_refresh_tokens WHERE user_id = $1 GROUP BY session_id",
        )
        .bind(user.to_string())
        .fetch_all(pool)
        .await?);
        rows.into_iter()
            .map(|(session, at)| {
                let session = session.parse().map_err(|_| CredentialsError::Damaged { column: "session_id" })?;
                Ok((session, UnixMillis::new(u64::try_from(at).unwrap_or(0))))
            })
            .collect()
    }

    /// Takes a whole account away, with everything that could sign in as it.
    pub async fn remove_account(&self, user: UserId) -> Result<(), CredentialsError> {
        on_either!(self.pool, pool => {
            let mut transaction = begun(pool).await?;
            for statement in [
                "DELETE FROM credential_accounts WHERE user_id = $1",
                "DELETE FROM credential_refresh_tokens WHERE user_id = $1",
            ] {
                sqlx::query(statement).bind(user.to_string()).execute(&mut *transaction).await?;
            }
            transaction.commit().await?;
        });
        Ok(())
    }

    pub(crate) async fn insert_refresh(
        &self,
        hash: TokenDigest,
        record: &RefreshRecord,
        now: UnixMillis,
    ) -> Result<(), CredentialsError> {
        let inserted = on_lane!(self.openings, connection => insert_refresh(hash, record, now).execute(connection).await.map(drop));
        Ok(inserted?)
    }

    /// Uses a refresh token and stores its successor in one step. Of two who present the same token at the same
    /// moment one gets a successor, and the other one revokes it: the rule cannot tell a thief from a race.
    pub(crate) async fn present_refresh(
        &self,
        hash: TokenDigest,
        successor: TokenDigest,
        now: UnixMillis,
    ) -> Result<Presented, CredentialsError> {
        on_either!(self.pool, pool => {
            let mut transaction = begun(pool).await?;
            // The write comes first: it takes the lock on which the other presenter waits, on both databases.
            let used = sqlx::query(
                "UPDATE credential_refresh_tokens SET used_at = $2 \
                 WHERE token_hash = $1 AND used_at IS NULL AND revoked_at IS NULL AND expires_at > $2",
            )
            .bind(hex::encode(hash.as_bytes()))
            .bind(millis(now))
            .execute(&mut *transaction)
            .await?
            .rows_affected();
            let row: Option<RefreshRow> = sqlx::query_as(
                "SELECT family, session_id, user_id, org_id, expires_at, used_at, revoked_at \
                 FROM credential_refresh_tokens WHERE token_hash = $1",
            )
            .bind(hex::encode(hash.as_bytes()))
            .fetch_optional(&mut *transaction)
            .await?;
            let Some(row) = row else { return Ok(Presented::Unknown) };
            let record = read_refresh(&row)?;
            let (used_at, revoked_at) = (row.5, row.6);
            let presented = if used == 1 {
                insert_refresh(successor, &record, now).execute(&mut *transaction).await?;
                Presented::Rotated(record)
            } else if revoked_at.is_some() {
                Presented::Revoked(record)
            } else if used_at.is_some() {
                sqlx::query("UPDATE credential_refresh_tokens SET revoked_at = $2 WHERE family = $1 AND revoked_at IS NULL")
                    .bind(&record.family)
                    .bind(millis(now))
                    .execute(&mut *transaction)
                    .await?;
                Presented::Reused(record)
            } else {
                Presented::Expired
            };
            transaction.commit().await?;
            Ok(presented)
        })
    }

    /// Looks at a refresh token without using it.
    pub(crate) async fn look_up_refresh(&self, hash: TokenDigest, now: UnixMillis) -> Result<Looked, CredentialsError> {
        let row: Option<RefreshRow> = on_either!(self.pool, pool => sqlx::query_as(
            "SELECT family, session_id, user_id, org_id, expires_at, used_at, revoked_at \
             FROM credential_refresh_tokens WHERE token_hash = $1",
        )
        .bind(hex::encode(hash.as_bytes()))
        .fetch_optional(pool)
        .await?);
        let Some(row) = row else { return Ok(Looked::Unknown) };
        let (record, used_at, revoked_at) = (read_refresh(&row)?, row.5, row.6);
        Ok(if revoked_at.is_some() {
            Looked::Revoked(record)
        } else if used_at.is_some() {
            Looked::Used
        } else if record.expires_at <= now {
            Looked::Expired
        } else {
            Looked::Live(record)
        })
    }

    pub(crate) async fn revoke_session(&self, session: SessionId, now: UnixMillis) -> Result<(), CredentialsError> {
        on_either!(self.pool, pool => sqlx::query(
            "UPDATE credential_refresh_tokens SET revoked_at = $2 WHERE session_id = $1 AND revoked_at IS NULL",
        )
        .bind(session.to_string())
        .bind(millis(now))
        .execute(pool)
        .await
        .map(drop)?);
        Ok(())
    }

    pub(crate) async fn revoke_user(&self, user: UserId, now: UnixMillis) -> Result<(), CredentialsError> {
        on_either!(self.pool, pool => sqlx::query(
            "UPDATE credential_refresh_tokens SET revoked_at = $2 WHERE user_id = $1 AND revoked_at IS NULL",
        )
        .bind(user.to_string())
        .bind(millis(now))
        .execute(pool)
        .await
        .map(drop)?);
        Ok(())
    }

    /// Forgets refresh tokens and invitations whose time was over before this instant, and attempts that were forgiven by
    /// then.
    /// Returns how many refresh tokens.
    pub async fn sweep(&self, expired_before: UnixMillis) -> Result<u64, CredentialsError> {
        let quiet_since = expired_before.minus(LockoutRule::ADDRESS.forget_after);
        for (statement, before) in [
            ("DELETE FROM credential_invitations WHERE expires_at < $1", expired_before),
            ("DELETE FROM credential_attempts WHERE last_at < $1", quiet_since),
            ("DELETE FROM credential_service_tokens WHERE expires_at < $1", expired_before),
        ] {
            on_either!(self.pool, pool => sqlx::query(statement).bind(millis(before)).execute(pool).await.map(drop)?);
        }
        Ok(on_either!(self.pool, pool => sqlx::query("DELETE FROM credential_refresh_tokens WHERE expires_at < $1")
            .bind(millis(expired_before))
            .execute(pool)
            .await?
            .rows_affected()))
    }
}

/// Begins in a task of its own: sqlx 0.9 forgets a transaction whose beginning is given up half-way, as it is when a client goes
/// away, and whatever its connection did next would never be committed.
pub(crate) async fn begun<DB: sqlx::Database>(
    pool: &sqlx::Pool<DB>,
) -> Result<sqlx::Transaction<'static, DB>, sqlx::Error> {
    let pool = pool.clone();
    let beginning = tokio::spawn(async move { pool.begin().await });
    beginning.await.unwrap_or_else(|error| Err(sqlx::Error::Io(std::io::Error::other(error))))
}

fn insert_refresh<'q, DB>(
    hash: TokenDigest,
    record: &RefreshRecord,
    now: UnixMillis,
) -> sqlx::query::Query<'q, DB, <DB as sqlx::Database>::Arguments>
where
    DB: sqlx::Database,
    String: sqlx::Encode<'q, DB> + sqlx::Type<DB>,
    i64: sqlx::Encode<'q, DB> + sqlx::Type<DB>,
{
    sqlx::query(
        "INSERT INTO credential_refresh_tokens (token_hash, family, session_id, user_id, org_id, issued_at, expires_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(hex::encode(hash.as_bytes()))
    .bind(record.family.clone())
    .bind(record.session.to_string())
    .bind(record.user.to_string())
    .bind(record.org.to_string())
    .bind(millis(now))
    .bind(millis(record.expires_at))
}

fn read_account((user, org, email, hash): &AccountRow) -> Result<StoredAccount, CredentialsError> {
    Ok(StoredAccount {
        account: Account {
            user: user.parse().map_err(|_| CredentialsError::Damaged { column: "user_id" })?,
            org: org.parse().map_err(|_| CredentialsError::Damaged { column: "org_id" })?,
            email: EmailAddress::parse(email).map_err(|_| CredentialsError::Damaged { column: "email" })?,
        },
        password_hash: hash.clone(),
    })
}

fn read_refresh(
    (family, session, user, org, expires_at, _, _): &RefreshRow,
) -> Result<RefreshRecord, CredentialsError> {
    Ok(RefreshRecord {
        family: family.clone(),
        session: session.parse().map_err(|_| CredentialsError::Damaged { column: "session_id" })?,
        user: user.parse().map_err(|_| CredentialsError::Damaged { column: "user_id" })?,
        org: org.parse().map_err(|_| CredentialsError::Damaged { column: "org_id" })?,
        expires_at: u64::try_from(*expires_at)
            .map(UnixMillis::new)
            .map_err(|_| CredentialsError::Damaged { column: "expires_at" })?,
    })
}

/// Year 292 million: what lies beyond is stored as that.
pub(crate) fn millis(instant: UnixMillis) -> i64 {
    i64::try_from(instant.get()).unwrap_or(i64::MAX)
}

/// SQLite gives its side files the mode of the main file, so that one is made first.
fn create_private(path: &Path) -> Result<(), std::io::Error> {
    use std::os::unix::fs::OpenOptionsExt as _;
    match std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map(drop),
    }
}
