//! The steps that bring a database's tables up to date, built into the binary.
//!
//! Owns the list of them. Not here: running them (`database`).

use sqlx::SqlSafeStr;
use sqlx::migrate::{Migration, MigrationType, Migrator};

/// `<version>_<what>` and its text, in order.
macro_rules! migrations {
    ($($name:literal,)+) => {
        &[$(($name, include_str!(concat!("../../../migrations/", $name, ".sql"))),)+]
    };
}

/// By hand, since sqlx's `migrate!` would build both database drivers once more; a test holds it against the folder.
const MIGRATIONS: &[(&str, &str)] = migrations![
    "20261124070000_read_models",
    "20261124070100_directory",
    "20261124070200_audit",
    "20261124070300_meter",
    "20261124070400_command_ids",
    "20261126112300_request_keys",
    "20261126160000_indexes_within_an_organization",
    "20261126200000_organization_policy",
    "20261127030000_service_token_policy",
    "20261127090000_audit_trail",
    "20261127200000_root_policy",
    "20261127210000_former_audit",
];

pub(super) fn migrator() -> Migrator {
    let mut migrator = Migrator { ..Migrator::DEFAULT };
    migrator.migrations = MIGRATIONS.iter().map(|(name, sql)| migration(name, sql)).collect();
    // A database that a newer version has touched serves an older one that is rolled back to: migrations add, and take away only
    // what the version before them did not use any more.
    migrator.set_ignore_missing(true);
    migrator
}

/// INVARIANT: reads names and texts as sqlx does, whose checksums stand in the databases that exist.
fn migration(name: &str, sql: &'static str) -> Migration {
    let (version, what) = name.split_once('_').unwrap_or((name, ""));
    let version = version.parse().unwrap_or(i64::MAX);
    Migration::new(version, what.replace('_', " ").into(), MigrationType::Simple, sql.into_sql_str(), false)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn the_list_is_what_sqlx_finds_in_the_folder() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations");
        let found = Migrator::new(folder).await.unwrap();
        let facts = |migrator: &Migrator| {
            let facts = |one: &Migration| {
                (one.version, one.description.clone(), one.migration_type, one.checksum.clone(), one.no_tx)
            };
            migrator.iter().map(facts).collect::<Vec<_>>()
        };
        assert_eq!(facts(&migrator()), facts(&found));
    }
}
