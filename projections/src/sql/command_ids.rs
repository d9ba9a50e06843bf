//! Which commits answered which command: idempotency beyond the log's window for duplicates.
//!
//! Only commands that came with a request have a row; what EnvForge asks of itself is idempotent by its state.

use envforge_domain::commit::{Position, Recorded, StreamKind};
use envforge_domain::ids::{CommandId, OrgId};
use envforge_domain::time::UnixMillis;

use super::database::{Database, DatabaseError};
use super::held::{Buffer, Written};
use super::projector::ReadModel;
use super::statement::Statement;
use super::table::{Row, Table, int, table, uint};

table! {
    struct CommandRow in "command_ids", key(command, position) {
        command: String,
        position: i64,
        org: String,
        request_digest: String,
        recorded_at: i64,
    }
}

pub(crate) const TABLES: &[&Table] = &[&CommandRow::TABLE];

#[derive(Default)]
pub(crate) struct CommandIdsModel {
    rows: Written<CommandRow>,
}

impl ReadModel for CommandIdsModel {
    fn want(&mut self, _: &Recorded) {}

    fn fold(&mut self, recorded: &Recorded) {
        let Some(digest) = recorded.commit.request_digest else { return };
        // What stands beside an effect only says why it was allowed.
        if recorded.commit.stream.kind() == StreamKind::Decision {
            return;
        }
        self.rows.push(CommandRow {
            command: recorded.commit.command.to_string(),
            position: int(recorded.position.get()),
            org: recorded.commit.stream.org().to_string(),
            request_digest: hex::encode(digest),
            recorded_at: int(recorded.recorded_at.get()),
        });
    }

    fn buffers(&mut self) -> Vec<&mut dyn Buffer> {
        vec![&mut self.rows]
    }
}

/// What a command brought about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandRecord {
    pub command: CommandId,
    /// The organization of the first commit.
    pub org: OrgId,
    /// Of its commits, ascending; several where it was an atomic batch.
    pub positions: Vec<Position>,
    /// SHA-256 of the request: the same command with another one is a client's mistake.
    pub request_digest: [u8; 32],
    pub recorded_at: UnixMillis,
}

/// Queries of command ids.
#[derive(Debug)]
pub struct CommandIds<'a> {
    database: &'a Database,
}

impl<'a> CommandIds<'a> {
    pub(crate) fn new(database: &'a Database) -> Self {
        Self { database }
    }

    /// The commits that answered a command, `None` where there is none (yet: see `Database::wait_for`).
    pub async fn find(&self, command: CommandId) -> Result<Option<CommandRecord>, DatabaseError> {
        let broken = |reason: String| DatabaseError::Row { table: CommandRow::TABLE.name, reason };
        let statement = Statement::new(format!("SELECT {} FROM command_ids ", CommandRow::TABLE.column_list()))
            .push("WHERE generation = (SELECT generation FROM read_models WHERE name = 'command_ids') AND command = ")
            .bind(command.to_string())
            .push(" ORDER BY position");
        let rows: Vec<CommandRow> = self.database.fetch_all(statement).await?;
        let Some(first) = rows.first() else { return Ok(None) };
        let mut request_digest = [0; 32];
        hex::decode_to_slice(&first.request_digest, &mut request_digest).map_err(|error| broken(error.to_string()))?;
        Ok(Some(CommandRecord {
            command,
            org: first.org.parse().map_err(|error: envforge_domain::ids::InvalidId| broken(error.to_string()))?,
            positions: rows.iter().map(|row| Position::new(uint(row.position))).collect(),
            request_digest,
            recorded_at: UnixMillis::new(uint(first.recorded_at)),
        }))
    }
}
