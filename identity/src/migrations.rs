//! The steps that bring the credential tables up to date, built into the binary.
//!
//! Owns the list of them. Not here: running them (`credentials`).

use sqlx::SqlSafeStr;
use sqlx::migrate::{Migration, MigrationType, Migrator};

/// `<version>_<what>` and its text, in order.
macro_rules! migrations {
    ($($name:literal,)+) => {
        &[$(($name, include_str!(concat!("../migrations/", $name, ".sql"))),)+]
    };
}

/// By hand, since sqlx's `migrate!` would build both database drivers once more; a test holds it against the folder.
const MIGRATIONS: &[(&str, &str)] = migrations![
    "20261124090000_credentials",
    "20261126112400_refresh_tokens_by_session",
    "20261126193000_attempts_and_invitations",
    "20261126200000_oidc",
    "20261127030000_service_tokens",
    "20261127100000_oidc_flow_client",
];

pub(crate) fn migrator() -> Migrator {
    let mut migrator = Migrator { ..Migrator::DEFAULT };
    migrator.migrations = MIGRATIONS.iter().map(|(name, sql)| migration(name, sql)).collect();
    // A name of its own: the read models keep theirs, perhaps in the same database.
    migrator.dangerous_set_table_name("credential_migrations");
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
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
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
