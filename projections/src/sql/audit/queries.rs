//! Questions to the audit: filters, both directions, a cursor that stays valid while rows are added.

use std::fmt;
use std::str::FromStr;

use envforge_domain::commit::Position;
use envforge_domain::ids::{CommandId, CommitId, CorrelationId, LinkId, OrgId, ProjectId, WorkspaceId};
use envforge_domain::time::UnixMillis;

use super::super::database::{Database, DatabaseError};
use super::super::page::{Limit, Page};
use super::walk::{Question, Walk};

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
        /// Those of the requests that are named.
        requests: Vec<CorrelationId>,
    },
}

impl Outcome {
    /// Whether that request is one of those that were refused.
    pub fn names(&self, request: CorrelationId) -> bool {
        matches!(self, Self::Denied { requests, .. } if requests.contains(&request))
    }
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
    /// What followed from a request, and its own refusal where it is named.
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
    ///
    /// A page is shorter than `limit` and has a `next` all the same where a question that matches little has been looked for
    /// in as much of a very long log as one request may ask for.
    pub async fn rows(
        &self,
        org: OrgId,
        filter: &AuditFilter,
        direction: Direction,
        after: Option<AuditCursor>,
        limit: Limit,
    ) -> Result<Page<AuditRow, AuditCursor>, DatabaseError> {
        Walk::begin(self.database, Question { org, filter, direction, after, limit }).await?.page().await
    }
}

impl AuditFilter {
    /// Whether the filter lets a row through.
    pub(super) fn matches(&self, row: &AuditRow) -> bool {
        fn is<T: PartialEq>(wanted: Option<&T>, found: Option<&T>) -> bool {
            wanted.is_none_or(|wanted| found == Some(wanted))
        }
        let denied = matches!(row.outcome, Outcome::Denied { .. });
        is(self.actor.as_ref(), row.actor_id.as_ref())
            && self.type_prefix.as_ref().is_none_or(|prefix| row.event_type.starts_with(prefix.as_str()))
            && is(self.project.as_ref(), row.project.as_ref())
            && is(self.workspace.as_ref(), row.workspace.as_ref())
            && is(self.link.as_ref(), row.link.as_ref())
            && self.correlation.is_none_or(|wanted| row.correlation == wanted || row.outcome.names(wanted))
            && is(self.denied.as_ref(), Some(&denied))
            && self.from.is_none_or(|from| row.recorded_at >= from)
            && self.to.is_none_or(|to| row.recorded_at < to)
    }
}
