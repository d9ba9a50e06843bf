//! What tests may rely on when they start a PostgreSQL.
#![allow(clippy::unwrap_used)]

use envforge_testkit::{Postgres, PostgresOptions, tools::Tool};
use std::process::Command;

fn query(url: &str, sql: &str) -> String {
    let psql = Tool::PostgresBin.path().join("psql");
    let output = Command::new(psql).args([url, "--no-psqlrc", "-tA", "-c", sql]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn what_was_committed_is_there_after_kill9() {
    let mut server = Postgres::start();
    query(&server.database_url(), "CREATE TABLE kept (n integer)");
    query(&server.database_url(), "INSERT INTO kept VALUES (42)");
    server.kill9();
    server.restart();
    assert_eq!(query(&server.database_url(), "SELECT n FROM kept"), "42");
}

#[test]
fn settings_are_applied() {
    let server = Postgres::start_with(PostgresOptions {
        durable: true,
        settings: vec![("max_connections".into(), "17".into())],
    });
    assert_eq!(query(&server.database_url(), "SHOW max_connections"), "17");
    assert_eq!(query(&server.database_url(), "SHOW fsync"), "on");
}

#[test]
fn databases_of_the_shared_server_know_nothing_of_each_other() {
    let (one, other) = (Postgres::shared(), Postgres::shared());
    query(one.database_url(), "CREATE TABLE mine (n integer)");
    assert_eq!(query(other.database_url(), "SELECT count(*) FROM pg_tables WHERE tablename = 'mine'"), "0");
}
