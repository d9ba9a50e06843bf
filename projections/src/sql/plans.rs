//! How the databases answer questions about one organization among many: by an index, never by walking the others.

use envforge_domain::ids::{CorrelationId, LinkId, OrgId};
use envforge_domain::time::UnixMillis;
use uuid::Uuid;

use super::audit::{Audit, AuditFilter, Direction};
use super::database::Database;
use super::directory::Directory;
use super::page::Limit;
use super::statement::Statement;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Sqlite,
    Postgres,
}

const ORG: OrgId = OrgId::from_uuid(Uuid::from_u128(7));

/// Rows of a hundred organizations, of which `ORG` has one in ten.
async fn fill(database: &Database) {
    let count = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) ";
    let org = format!("CASE WHEN i % 10 = 0 THEN '{ORG}' ELSE 'org_' || (i % 100) END");
    let members = format!(
        "{count} INSERT INTO directory_members (generation, id, org, grantee, is_member, grants, since) \
         SELECT 1, {org} || '/' || i, {org}, 'usr_' || i, 1, '[]', 0 FROM n"
    );
    let rows = format!(
        "{count} INSERT INTO audit_rows (generation, position, ordinal, org, recorded_at, actor_kind, actor_id, \
         actor_name, surface, event_type, link, command, commit_id, correlation, outcome, summary) \
         SELECT 1, i, 0, {org}, i * 1000, 'user', 'usr_' || (i % 97), 'Ada', 'api', 'dev_link.issued.v1', \
         'lnk_' || (i % 89), 'cmd', 'cmt', 'cor_' || i, 'done', 'did it' FROM n"
    );
    let mut transaction = database.begin().await.unwrap();
    for sql in [members, rows, "ANALYZE".to_owned()] {
        transaction.execute(Statement::new(sql)).await.unwrap();
    }
    transaction.commit().await.unwrap();
}

async fn plan(kind: Kind, database: &Database, statement: Statement) -> String {
    let explain = match kind {
        Kind::Sqlite => "EXPLAIN QUERY PLAN ",
        Kind::Postgres => "EXPLAIN ",
    };
    let statement = Statement { text: format!("{explain}{}", statement.text), ..statement };
    let lines: Vec<String> = match kind {
        Kind::Sqlite => {
            let rows: Vec<(i64, i64, i64, String)> = database.fetch_all(statement).await.unwrap();
            rows.into_iter().map(|(.., detail)| detail).collect()
        }
        Kind::Postgres => {
            let rows: Vec<(String,)> = database.fetch_all(statement).await.unwrap();
            rows.into_iter().map(|(line,)| line).collect()
        }
    };
    lines.join("\n")
}

async fn one_organization_is_found_by_an_index(kind: Kind, database: &Database) {
    fill(database).await;
    let limit = Limit::MAX;
    let correlation = CorrelationId::from_uuid(Uuid::from_u128(1));
    let link = LinkId::from_uuid(Uuid::from_u128(2));
    let at = |seconds: u64| Some(UnixMillis::new(seconds * 1000));
    let audit = |filter: AuditFilter| Audit::statement(ORG, &filter, Direction::NewestFirst, None, limit);
    let everything = AuditFilter::default;
    for (question, statement, index) in [
        ("members", Directory::members_statement(ORG, None, limit), "directory_members_org"),
        ("team grants", Directory::team_grants_statement(ORG), "directory_members_org"),
        ("an actor", audit(AuditFilter { actor: Some("usr_5".to_owned()), ..everything() }), "audit_rows_actor"),
        ("a link", audit(AuditFilter { link: Some(link), ..everything() }), "audit_rows_link"),
        (
            "a correlation",
            audit(AuditFilter { correlation: Some(correlation), ..everything() }),
            "audit_rows_correlation",
        ),
        ("an hour", audit(AuditFilter { from: at(1_000), to: at(1_060), ..everything() }), "audit_rows_recorded"),
    ] {
        let plan = plan(kind, database, statement).await;
        assert!(plan.contains(index), "{question}: {plan}");
        let walked = ["SCAN t", "SCAN audit_rows", "Seq Scan on directory_members", "Seq Scan on audit_rows"];
        assert!(!walked.iter().any(|scan| plan.contains(scan)), "{question}: {plan}");
    }
}

#[tokio::test]
async fn one_organization_is_found_by_an_index_in_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::connect_sqlite(&folder.path().join("read-models.sqlite")).await.unwrap();
    one_organization_is_found_by_an_index(Kind::Sqlite, &database).await;
}

mod in_postgres {
    use envforge_testkit::Postgres;

    use super::*;

    #[tokio::test]
    async fn one_organization_is_found_by_an_index_there() {
        let shared = tokio::task::spawn_blocking(Postgres::shared).await.unwrap();
        let database = Database::connect_postgres(shared.database_url()).await.unwrap();
        one_organization_is_found_by_an_index(Kind::Postgres, &database).await;
        database.close().await;
    }
}
