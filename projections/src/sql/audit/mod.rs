//! The audit: who did what, on which surface, why, when and with which outcome.
//!
//! Owns the rows (`fold`), the sentence for people in each of them (`summary`) and the queries. Not here: events that
//! name machines, which are for operators alone, and the replay of whole events, which reads the log.

mod fold;
mod queries;
mod summary;

pub(crate) use fold::{AuditModel, TABLES};
pub use queries::{Audit, AuditCursor, AuditFilter, AuditRow, Direction, InvalidAuditCursor, Outcome};
