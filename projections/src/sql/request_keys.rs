//! What idempotency keys were used for: remembered before anything is decided, by all API processes together.
//!
//! INVARIANT: a row is on disk before `first_use` answers. Two processes that are asked at once agree on one of them, and a
//! power cut forgets no key that a command was decided under. Not a read model: the log does not know of requests that
//! changed nothing, so no rebuild could bring these rows back.

use envforge_domain::commit::Position;
use envforge_domain::ids::CommandId;
use envforge_domain::time::{Millis, UnixMillis};

use super::database::{Database, DatabaseError};
use super::statement::Statement;
use super::table::{columns, int, uint};

/// How long a key is remembered. Afterwards the read model of command ids knows those that changed something.
pub const REQUEST_KEYS_KEPT: Millis = Millis::from_hours(24 * 30);
/// Rows of one statement: a sweep holds up nobody for long.
const SWEEP_ROWS: i64 = 5_000;

/// What is known of a key at its use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyUse {
    /// Nobody has used it before.
    First,
    /// The same request came before. `satisfied_at` where it was carried out and changed nothing.
    Again { satisfied_at: Option<Position> },
    /// It was used for another request.
    OtherRequest,
}

columns! {
    struct KeyRow {
        request_digest: String,
        done_position: Option<i64>,
    }
}

fn compared(first: &str, now: &str, satisfied_at: Option<Position>) -> KeyUse {
    if first == now { KeyUse::Again { satisfied_at } } else { KeyUse::OtherRequest }
}

/// Questions and notes about keys.
#[derive(Debug)]
pub struct RequestKeys<'a> {
    database: &'a Database,
}

impl<'a> RequestKeys<'a> {
    pub(super) fn new(database: &'a Database) -> Self {
        Self { database }
    }

    /// Remembers for which request a command is used, and says whether it was used before.
    pub async fn first_use(
        &self,
        command: CommandId,
        digest: [u8; 32],
        now: UnixMillis,
    ) -> Result<KeyUse, DatabaseError> {
        let digest = hex::encode(digest);
        // Between two statements somebody else may be first, or a sweep may take the row away.
        for _ in 0..4 {
            if let Some(known) = self.known(command, &digest).await? {
                return Ok(known);
            }
            let insert = Statement::new("INSERT INTO request_keys (command_id, request_digest, first_at) VALUES (")
                .bind(command.to_string())
                .push(", ")
                .bind(digest.as_str())
                .push(", ")
                .bind(int(now.get()))
                .push(") ON CONFLICT DO NOTHING");
            if self.database.execute_durably(insert).await? == 1 {
                return Ok(KeyUse::First);
            }
        }
        Err(DatabaseError::Row { table: "request_keys", reason: "a key came and went".to_owned() })
    }

    async fn known(&self, command: CommandId, digest: &str) -> Result<Option<KeyUse>, DatabaseError> {
        let find = Statement::new("SELECT request_digest, done_position FROM request_keys WHERE command_id = ")
            .bind(command.to_string());
        if let Some(row) = self.database.fetch_optional::<KeyRow>(find).await? {
            let satisfied_at = row.done_position.map(|position| Position::new(uint(position)));
            return Ok(Some(compared(&row.request_digest, digest, satisfied_at)));
        }
        // A key that is new here may be older than what is kept here: what it changed stands in the log for good. It gets
        // no row again, for a row says who was first.
        let logged = self.database.command_ids().find(command).await?;
        Ok(logged.map(|logged| compared(&hex::encode(logged.request_digest), digest, None)))
    }

    /// Remembers that a request was carried out and changed nothing, so that its repetition changes nothing either.
    pub async fn satisfied(&self, command: CommandId, at: Position) -> Result<(), DatabaseError> {
        let statement = Statement::new("UPDATE request_keys SET done_position = ")
            .bind(int(at.get()))
            .push(" WHERE done_position IS NULL AND command_id = ")
            .bind(command.to_string());
        self.database.execute_durably(statement).await.map(drop)
    }

    /// Forgets keys that were first used before this instant. Answers how many.
    pub async fn sweep(&self, used_before: UnixMillis) -> Result<u64, DatabaseError> {
        let mut swept = 0;
        loop {
            let statement = Statement::new("DELETE FROM request_keys WHERE command_id IN (")
                .push("SELECT command_id FROM request_keys WHERE first_at < ")
                .bind(int(used_before.get()))
                .push(" LIMIT ")
                .bind(SWEEP_ROWS)
                .push(")");
            let now = self.database.execute_durably(statement).await?;
            swept += now;
            if now == 0 {
                return Ok(swept);
            }
        }
    }
}
