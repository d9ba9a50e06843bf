//! A row of the audit as it is stored.
//!
//! Owns the row's table and the JSON in it. What is looked for stands in the postings besides (`terms`): the database
//! itself sees of a row only its place, its organization and its time.

use std::borrow::Cow;
use std::str::FromStr;

use envforge_domain::commit::Position;
use envforge_domain::ids::InvalidId;
use envforge_domain::time::UnixMillis;
use serde::{Deserialize, Serialize};

use super::super::database::DatabaseError;
use super::super::table::{Row, table, uint};
use super::queries::{AuditCursor, AuditRow, Outcome};

table! {
    pub(crate) struct TrailRow in "audit_trail", key(position, ordinal) {
        position: i64,
        ordinal: i64,
        org: String,
        recorded_at: i64,
        entry: String,
    }
}

/// What stands in `entry`. Short names, since each row bears them; a field that is missing was `None`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    #[serde(rename = "by")]
    pub(super) actor_kind: Cow<'static, str>,
    #[serde(rename = "id", skip_serializing_if = "Option::is_none", default)]
    pub(super) actor_id: Option<String>,
    #[serde(rename = "name")]
    pub(super) actor_name: Cow<'static, str>,
    #[serde(rename = "on")]
    pub(super) surface: Cow<'static, str>,
    #[serde(rename = "type")]
    pub(super) event_type: Cow<'static, str>,
    #[serde(rename = "of", skip_serializing_if = "Option::is_none", default)]
    pub(super) subject: Option<String>,
    #[serde(rename = "prj", skip_serializing_if = "Option::is_none", default)]
    pub(super) project: Option<String>,
    #[serde(rename = "wsp", skip_serializing_if = "Option::is_none", default)]
    pub(super) workspace: Option<String>,
    #[serde(rename = "lnk", skip_serializing_if = "Option::is_none", default)]
    pub(super) link: Option<String>,
    #[serde(rename = "cmd")]
    pub(super) command: String,
    #[serde(rename = "cmt")]
    pub(super) commit: String,
    #[serde(rename = "cor")]
    pub(super) correlation: String,
    #[serde(rename = "cause", skip_serializing_if = "Option::is_none", default)]
    pub(super) causation: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) denied: Option<Denied>,
    #[serde(rename = "what")]
    pub(super) summary: String,
}

/// Equal attempts that were refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Denied {
    pub(super) code: String,
    pub(super) count: u64,
    /// Those of the requests that are named.
    #[serde(rename = "req", skip_serializing_if = "Vec::is_empty", default)]
    pub(super) requests: Vec<String>,
}

fn broken(reason: String) -> DatabaseError {
    DatabaseError::Row { table: TrailRow::TABLE.name, reason }
}

impl Entry {
    /// The text that is stored. U+0000 stands in it as an escape, which both databases take.
    pub(super) fn encode(&self) -> String {
        serde_json::to_string(self).expect("texts and numbers are JSON")
    }
}

impl TrailRow {
    pub(super) fn decoded(&self) -> Result<Entry, DatabaseError> {
        serde_json::from_str(&self.entry).map_err(|error| broken(format!("`entry` at {}: {error}", self.position)))
    }

    pub(super) fn cursor(&self) -> Result<AuditCursor, DatabaseError> {
        let ordinal = u32::try_from(self.ordinal).map_err(|_| broken("`ordinal` is out of range".to_owned()))?;
        Ok(AuditCursor { position: Position::new(uint(self.position)), ordinal })
    }
}

impl TryFrom<TrailRow> for AuditRow {
    type Error = DatabaseError;

    fn try_from(row: TrailRow) -> Result<Self, DatabaseError> {
        fn id<T: FromStr<Err = InvalidId>>(text: &str) -> Result<T, DatabaseError> {
            text.parse().map_err(|error: InvalidId| broken(error.to_string()))
        }
        fn some<T: FromStr<Err = InvalidId>>(text: Option<&String>) -> Result<Option<T>, DatabaseError> {
            text.map(|text| id(text)).transpose()
        }
        let entry = row.decoded()?;
        Ok(Self {
            cursor: row.cursor()?,
            org: id(&row.org)?,
            recorded_at: UnixMillis::new(uint(row.recorded_at)),
            actor_kind: entry.actor_kind.into_owned(),
            actor_id: entry.actor_id,
            actor_name: entry.actor_name.into_owned(),
            surface: entry.surface.into_owned(),
            event_type: entry.event_type.into_owned(),
            subject: entry.subject,
            project: some(entry.project.as_ref())?,
            workspace: some(entry.workspace.as_ref())?,
            link: some(entry.link.as_ref())?,
            command: id(&entry.command)?,
            commit: id(&entry.commit)?,
            correlation: id(&entry.correlation)?,
            causation: some(entry.causation.as_ref())?,
            outcome: match entry.denied {
                None => Outcome::Done,
                Some(Denied { code, count, requests }) => {
                    let requests = requests.iter().map(|request| id(request)).collect::<Result<_, _>>()?;
                    Outcome::Denied { code, count, requests }
                }
            },
            summary: entry.summary,
        })
    }
}
