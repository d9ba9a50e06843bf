//! How the databases answer questions about one organization among many: by an index, never by walking the others.

use envforge_domain::commit::Position;
use envforge_domain::ids::OrgId;
use envforge_domain::time::UnixMillis;
use uuid::Uuid;

use super::audit::{AuditCursor, AuditFilter, Direction, PostingsRow, Question, TrailRow};
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
        "{count} INSERT INTO audit_trail (generation, position, ordinal, org, recorded_at, entry) \
         SELECT 1, i, 0, {org}, i * 1000, '{{}}' FROM n"
    );
    // As many parts as a log of 80 million commits has, and some of their postings.
    let parts = format!(
        "{count} INSERT INTO audit_parts (generation, part, recorded_from, recorded_to) \
         SELECT 1, i, i * 1000, i * 1000 + 999 FROM n"
    );
    let postings = format!(
        "{count} INSERT INTO audit_postings (generation, slot, postings) SELECT 1, i, '00000000:' || i % 4096 || ';' FROM n"
    );
    let mut transaction = database.begin().await.unwrap();
    for sql in [members, rows, parts, postings, "ANALYZE".to_owned()] {
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
    for (question, statement) in [
        ("members", Directory::members_statement(ORG, None, limit)),
        ("team grants", Directory::team_grants_statement(ORG)),
    ] {
        let plan = plan(kind, database, statement).await;
        assert!(plan.contains("directory_members_org"), "{question}: {plan}");
        let walked = ["SCAN t", "Seq Scan on directory_members"];
        assert!(!walked.iter().any(|scan| plan.contains(scan)), "{question}: {plan}");
    }
}

/// Each statement of a page of the audit reads what it asks for, and not a table.
async fn audit_pages_are_found_by_the_primary_keys(kind: Kind, database: &Database) {
    fill(database).await;
    let at = |seconds: u64| Some(UnixMillis::new(seconds * 1000));
    let hour = AuditFilter { from: at(10_000), to: at(10_060), ..AuditFilter::default() };
    let everything = AuditFilter::default();
    let after = Some(AuditCursor { position: Position::new(19_990), ordinal: 0 });
    let transaction = database.snapshot().await.unwrap();
    let mut statements = vec![
        ("postings", "audit_postings", transaction.by_number::<PostingsRow>(1, "slot", &[7, 300, 9_000])),
        ("rows of postings", "audit_trail", transaction.by_number::<TrailRow>(1, "position", &[7, 300, 9_000])),
    ];
    transaction.rollback().await.unwrap();
    for direction in [Direction::NewestFirst, Direction::OldestFirst] {
        for (filter, after) in [(&everything, None), (&everything, after), (&hour, None)] {
            let question = Question { org: ORG, filter, direction, after, limit: Limit::MAX };
            statements.push(("rows without postings", "audit_trail", question.rows_statement(1, 4, after, 201)));
            statements.push(("parts", "audit_parts", question.parts_statement(1, Some(9_000), 8)));
        }
    }
    for (question, table, statement) in statements {
        let text = statement.text.clone();
        let plan = plan(kind, database, statement).await;
        // Primary keys: so both name the index of one.
        let index = match kind {
            Kind::Sqlite => format!("sqlite_autoindex_{table}_1"),
            Kind::Postgres => format!("{table}_pkey"),
        };
        assert!(plan.contains(&index), "{question}, `{text}`: {plan}");
        let mut walked = vec![format!("SCAN {table}"), format!("Seq Scan on {table}"), "TEMP B-TREE".into()];
        // Of the one part without postings PostgreSQL may also sort what fits.
        if table != "audit_trail" {
            walked.push("Sort".into());
        }
        assert!(!walked.iter().any(|scan| plan.contains(scan)), "{question}, `{text}`: {plan}");
    }
}

#[tokio::test]
async fn one_organization_is_found_by_an_index_in_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::connect_sqlite(&folder.path().join("read-models.sqlite")).await.unwrap();
    one_organization_is_found_by_an_index(Kind::Sqlite, &database).await;
}

#[tokio::test]
async fn audit_pages_are_found_by_the_primary_keys_in_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::connect_sqlite(&folder.path().join("read-models.sqlite")).await.unwrap();
    audit_pages_are_found_by_the_primary_keys(Kind::Sqlite, &database).await;
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

    #[tokio::test]
    async fn audit_pages_are_found_by_the_primary_keys_there() {
        let shared = tokio::task::spawn_blocking(Postgres::shared).await.unwrap();
        let database = Database::connect_postgres(shared.database_url()).await.unwrap();
        audit_pages_are_found_by_the_primary_keys(Kind::Postgres, &database).await;
        database.close().await;
    }
}
