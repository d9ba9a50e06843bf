//! Databases that a former version left.

use envforge_domain::commit::Position;
use envforge_projections::sql::{AuditFilter, AuditRow, Direction, Limit, ModelName, Outcome, Supervisor};

use crate::harness::{Former, Harness, Kind};
use crate::history::story;
use crate::world::*;

/// The last migration before the audit's tables were replaced.
const BEFORE_THE_TRAIL: i64 = 20_261_127_030_000;

fn text(value: Option<&str>) -> String {
    value.map_or_else(|| "NULL".to_owned(), |value| format!("'{}'", value.replace('\'', "''")))
}

/// A row as the former projector wrote it.
fn former_row(row: &AuditRow) -> String {
    let (outcome, code, attempts) = match &row.outcome {
        Outcome::Done => ("done", None, "NULL".to_owned()),
        Outcome::Denied { code, count, .. } => ("denied", Some(code.as_str()), count.to_string()),
    };
    let shown = |id: Option<String>| text(id.as_deref());
    let values = [
        "1".to_owned(),
        row.cursor.position.to_string(),
        row.cursor.ordinal.to_string(),
        shown(Some(row.org.to_string())),
        row.recorded_at.get().to_string(),
        text(Some(&row.actor_kind)),
        text(row.actor_id.as_deref()),
        text(Some(&row.actor_name)),
        text(Some(&row.surface)),
        text(Some(&row.event_type)),
        text(row.subject.as_deref()),
        shown(row.project.map(|id| id.to_string())),
        shown(row.workspace.map(|id| id.to_string())),
        shown(row.link.map(|id| id.to_string())),
        shown(Some(row.command.to_string())),
        shown(Some(row.commit.to_string())),
        shown(Some(row.correlation.to_string())),
        shown(row.causation.map(|id| id.to_string())),
        text(Some(outcome)),
        text(code),
        attempts,
        text(Some(&row.summary)),
    ];
    format!("INSERT INTO audit_rows VALUES ({})", values.join(", "))
}

async fn all_rows(harness: &Harness) -> Vec<AuditRow> {
    let (audit, mut rows, mut after) = (harness.database.audit(), Vec::new(), None);
    for org in [1, 2] {
        loop {
            let (filter, limit) = (AuditFilter::default(), Limit::MAX);
            let page = audit.rows(org_id(org), &filter, Direction::OldestFirst, after, limit).await.unwrap();
            rows.extend(page.items);
            after = page.next;
            if after.is_none() {
                break;
            }
        }
    }
    rows
}

pub async fn an_audit_of_the_former_tables_is_folded_anew_and_whole(kind: Kind) {
    let world = story();
    let (log, head) = (world.shared(), world.log.reveal_all());
    let expected = Harness::new(Kind::Sqlite).await;
    expected.project(&log, ModelName::Audit, head).await;
    let rows = all_rows(&expected).await;
    assert!(rows.len() > 100, "{}", rows.len());

    // What the former version had folded: all but the last commits, as the last one with a row.
    let former = Former::migrated(kind, BEFORE_THE_TRAIL).await;
    for row in rows.iter().filter(|row| row.cursor.position < head) {
        former.execute(former_row(row)).await;
        if let (Some(id), None) = (&row.subject, row.link) {
            former
                .execute(format!(
                    "INSERT INTO audit_subjects (generation, id, name) VALUES (1, {}, 'former') ON CONFLICT DO NOTHING",
                    text(Some(id))
                ))
                .await;
        }
    }
    let at = head.get() - 1;
    former.execute(format!("UPDATE read_model_checkpoints SET position = {at} WHERE read_model = 'audit'")).await;

    let harness = Harness::on(former).await;
    // How far it is, as `envforge projections ls` tells it: at its start, whatever the former rows say.
    assert_eq!(harness.database.position(ModelName::Audit).await.unwrap(), Position::START);
    let supervisor = Supervisor::start(&log, &harness.database);
    harness.wait(ModelName::Audit, head).await;
    assert_eq!(harness.database.position(ModelName::Audit).await.unwrap(), head);
    assert_eq!(all_rows(&harness).await, rows);
    let digest = async |harness: &Harness| harness.database.digest(ModelName::Audit).await.unwrap();
    assert_eq!(digest(&harness).await, digest(&expected).await);
    supervisor.stop().await;
    let left = "SELECT count(*) FROM read_models WHERE name = 'audit'";
    assert_eq!(harness.count(left).await, 0);
    let tables = match kind {
        Kind::Sqlite => {
            "SELECT count(*) FROM sqlite_master WHERE name LIKE 'audit_rows%' OR name LIKE 'audit_subjects%'"
        }
        Kind::Postgres => {
            "SELECT count(*) FROM pg_class WHERE relname LIKE 'audit_rows%' OR relname LIKE 'audit_subjects%'"
        }
    };
    assert_eq!(harness.count(tables).await, 0);
    // And once more, as any start after it.
    harness.connect_again().await.close().await;
}
