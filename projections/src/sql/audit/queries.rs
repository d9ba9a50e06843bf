//! Questions to the audit: filters, both directions, a cursor that stays valid while rows are added.

use std::fmt;
use std::str::FromStr;

use envforge_domain::commit::Position;
use envforge_domain::ids::{CommandId, CommitId, CorrelationId, LinkId, OrgId, ProjectId, WorkspaceId};
use envforge_domain::time::UnixMillis;

use super::super::database::{Database, DatabaseError};
use super::super::page::{Limit, Page};
use super::super::statement::Statement;
use super::super::table::{Row, int, uint};
use super::fold::StoredRow;

/// INVARIANT: a scalar subquery, so that one statement reads one generation, whenever a rebuild switches.
const LIVE: &str = "(SELECT generation FROM read_models WHERE name = 'audit')";

/// Where a row stands: the commit's position and the row's number within the commit. Displays as `17-0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AuditCursor {
    pub position: Position,
    pub ordinal: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an audit cursor: expected a position and a number, such as `17-0`")]
pub struct InvalidAuditCursor {
    pub text: String,
}

impl fmt::Display for AuditCursor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}-{}", self.position, self.ordinal)
    }
}

impl FromStr for AuditCursor {
    type Err = InvalidAuditCursor;

    fn from_str(text: &str) -> Result<Self, InvalidAuditCursor> {
        let parsed = text.split_once('-').and_then(|(position, ordinal)| {
            let cursor = Self { position: Position::new(position.parse().ok()?), ordinal: ordinal.parse().ok()? };
            // One spelling per cursor.
            (cursor.to_string() == text).then_some(cursor)
        });
        parsed.ok_or_else(|| InvalidAuditCursor { text: text.chars().take(60).collect() })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Direction {
    #[default]
    OldestFirst,
    NewestFirst,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// Equal attempts that were refused, with the denial's code.
    Denied {
        code: String,
        count: u64,
    },
}

/// Which rows to list. Everything `None`: all of the organization.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// A user's or link's displayed id, or the name of a part of EnvForge.
    pub actor: Option<String>,
    /// The beginning of an event type or action: `dev_link.`.
    pub type_prefix: Option<String>,
    pub project: Option<ProjectId>,
    pub workspace: Option<WorkspaceId>,
    pub link: Option<LinkId>,
    pub correlation: Option<CorrelationId>,
    /// Only what was refused (`true`), only what was done (`false`).
    pub denied: Option<bool>,
    pub from: Option<UnixMillis>,
    /// Exclusive.
    pub to: Option<UnixMillis>,
}

/// One thing that was done or refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRow {
    pub cursor: AuditCursor,
    pub org: OrgId,
    /// By the log's clock.
    pub recorded_at: UnixMillis,
    /// `user`, `link_visitor`, `agent`, `system` or `anonymous`.
    pub actor_kind: String,
    pub actor_id: Option<String>,
    /// As it was called then.
    pub actor_name: String,
    pub surface: String,
    /// The event's type, or the action's token where it was refused.
    pub event_type: String,
    /// Displayed id of what it is about.
    pub subject: Option<String>,
    pub project: Option<ProjectId>,
    pub workspace: Option<WorkspaceId>,
    pub link: Option<LinkId>,
    pub command: CommandId,
    pub commit: CommitId,
    pub correlation: CorrelationId,
    pub causation: Option<CommitId>,
    pub outcome: Outcome,
    /// A sentence for people.
    pub summary: String,
}

/// Queries of the audit.
#[derive(Debug)]
pub struct Audit<'a> {
    database: &'a Database,
}

impl<'a> Audit<'a> {
    pub(in super::super) fn new(database: &'a Database) -> Self {
        Self { database }
    }

    /// Rows of an organization beyond `after`, in the given direction.
    pub async fn rows(
        &self,
        org: OrgId,
        filter: &AuditFilter,
        direction: Direction,
        after: Option<AuditCursor>,
        limit: Limit,
    ) -> Result<Page<AuditRow, AuditCursor>, DatabaseError> {
        let statement = Self::statement(org, filter, direction, after, limit);
        let rows: Vec<StoredRow> = self.database.fetch_all(statement).await?;
        let items = rows.into_iter().map(AuditRow::try_from).collect::<Result<Vec<_>, _>>()?;
        Ok(Page::cut(items, limit, |row| row.cursor))
    }

    pub(in super::super) fn statement(
        org: OrgId,
        filter: &AuditFilter,
        direction: Direction,
        after: Option<AuditCursor>,
        limit: Limit,
    ) -> Statement {
        let head = format!("SELECT {} FROM audit_rows WHERE generation = {LIVE}", StoredRow::TABLE.column_list());
        let mut statement = filtered(Statement::new(head).push(" AND org = ").bind(org.to_string()), filter);
        if let Some(AuditCursor { position, ordinal }) = after {
            let beyond = match direction {
                Direction::OldestFirst => " AND (position, ordinal) > (",
                Direction::NewestFirst => " AND (position, ordinal) < (",
            };
            statement = statement.push(beyond).bind(int(position.get())).push(", ").bind(i64::from(ordinal)).push(")");
        }
        let order = match direction {
            Direction::OldestFirst => " ORDER BY position, ordinal LIMIT ",
            Direction::NewestFirst => " ORDER BY position DESC, ordinal DESC LIMIT ",
        };
        statement.push(order).bind(limit.probe())
    }
}

fn filtered(statement: Statement, filter: &AuditFilter) -> Statement {
    let mut statement = statement
        .bind_some(" AND actor_id = ", filter.actor.as_deref())
        .bind_some(" AND project = ", filter.project.map(|id| id.to_string()))
        .bind_some(" AND workspace = ", filter.workspace.map(|id| id.to_string()))
        .bind_some(" AND link = ", filter.link.map(|id| id.to_string()))
        .bind_some(" AND correlation = ", filter.correlation.map(|id| id.to_string()))
        .bind_some(" AND outcome = ", filter.denied.map(|denied| if denied { "denied" } else { "done" }))
        .bind_some(" AND recorded_at >= ", filter.from.map(|from| int(from.get())))
        .bind_some(" AND recorded_at < ", filter.to.map(|to| int(to.get())));
    if let Some(prefix) = &filter.type_prefix {
        // Not LIKE: in SQLite it ignores case, and `_` and `%` would need escaping.
        let length = i64::try_from(prefix.chars().count()).unwrap_or(i64::MAX);
        statement = statement.push(" AND SUBSTR(event_type, 1, CAST(").bind(length).push(" AS INTEGER)) = ");
        statement = statement.bind(prefix.as_str());
    }
    statement
}

impl TryFrom<StoredRow> for AuditRow {
    type Error = DatabaseError;

    fn try_from(row: StoredRow) -> Result<Self, DatabaseError> {
        fn id<T: FromStr<Err = envforge_domain::ids::InvalidId>>(text: &str) -> Result<T, DatabaseError> {
            text.parse().map_err(|error: envforge_domain::ids::InvalidId| DatabaseError::Row {
                table: StoredRow::TABLE.name,
                reason: error.to_string(),
            })
        }
        fn some<T: FromStr<Err = envforge_domain::ids::InvalidId>>(
            text: Option<&String>,
        ) -> Result<Option<T>, DatabaseError> {
            text.map(|text| id(text)).transpose()
        }
        let broken = |reason: &str| DatabaseError::Row { table: StoredRow::TABLE.name, reason: reason.to_owned() };
        let outcome = match (row.outcome.as_str(), row.code, row.attempts) {
            ("done", None, None) => Outcome::Done,
            ("denied", Some(code), Some(count)) => Outcome::Denied { code, count: uint(count) },
            _ => return Err(broken("`outcome`, `code` and `attempts` do not fit together")),
        };
        let ordinal = u32::try_from(row.ordinal).map_err(|_| broken("`ordinal` is out of range"))?;
        Ok(Self {
            cursor: AuditCursor { position: Position::new(uint(row.position)), ordinal },
            org: id(&row.org)?,
            recorded_at: UnixMillis::new(uint(row.recorded_at)),
            actor_kind: row.actor_kind,
            actor_id: row.actor_id,
            actor_name: row.actor_name,
            surface: row.surface,
            event_type: row.event_type,
            subject: row.subject,
            project: some(row.project.as_ref())?,
            workspace: some(row.workspace.as_ref())?,
            link: some(row.link.as_ref())?,
            command: id(&row.command)?,
            commit: id(&row.commit_id)?,
            correlation: id(&row.correlation)?,
            causation: some(row.causation.as_ref())?,
            outcome,
            summary: row.summary,
        })
    }
}
