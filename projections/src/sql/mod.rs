//! The read models in PostgreSQL and SQLite: directory, audit, meter, command ids; and beside them, what idempotency
//! keys were used for.
//!
//! Owns their tables, projectors, rebuilds and queries; one code for both databases. Not here: the hot views that
//! processes hold in memory, and every decision about rights: rows of the directory are for reading by people and
//! programs that the policy let through.
//!
//! A projector folds commits into rows and moves its checkpoint in the same transaction, so each commit counts exactly
//! once, and a second projector of the same read model is fenced off by the checkpoint. All rows carry a `generation`:
//! a rebuild fills a new one beside the live one, and one row update in `read_models` switches every reader.

mod audit;
mod checkpoint;
mod command_ids;
mod database;
mod digest;
mod directory;
mod freshness;
mod held;
mod meter;
mod migrations;
mod page;
#[cfg(test)]
mod plans;
pub mod projector;
mod ready_services;
pub mod rebuild;
mod request_keys;
mod statement;
pub mod supervisor;
mod table;
mod wake_cause;

pub use audit::{Audit, AuditCursor, AuditFilter, AuditRow, Direction, InvalidAuditCursor, Outcome};
pub use checkpoint::Standing;
pub use command_ids::{CommandIds, CommandRecord};
pub use database::{Database, DatabaseError};
pub use digest::TableDigest;
pub use directory::{
    Directory, HostRecord, LinkFilter, LinkPhase, LinkRecord, MemberGrant, MemberRecord, OrganizationRecord,
    ProjectRecord, RuntimePhase, RuntimeRecord, UserRecord, WorkspaceFilter, WorkspaceRecord,
};
pub use freshness::Stale;
pub use meter::{GroupBy, Meter, RunningUsage, UsageFilter, UsageGroup, UsageTotals};
pub use page::{Limit, LimitOutOfRange, Page};
pub use projector::{ModelName, ProjectorError, UnknownModel};
pub use rebuild::{Comparison, RebuildError, RebuildProgress, Rebuilt};
pub use request_keys::{KeyUse, REQUEST_KEYS_KEPT, RequestKeys};
pub use supervisor::{ProjectorState, Supervisor};
