//! The audit: who did what, on which surface, why, when and with which outcome.
//!
//! Owns the rows (`entry`, `fold`), the sentence for people in each of them (`summary`), what finds them again (`terms`,
//! `parts`) and the queries (`queries`, `walk`). Not here: events that name machines, which are for operators alone, and
//! the replay of whole events, which reads the log.

mod entry;
mod fold;
mod parts;
mod queries;
mod summary;
mod terms;
mod walk;

pub(crate) use fold::{AuditModel, TABLES};
#[cfg(test)]
pub(crate) use parts::PostingsRow;
#[cfg(test)]
pub(crate) use {entry::TrailRow, walk::Question};

pub use queries::{Audit, AuditCursor, AuditFilter, AuditRow, Direction, InvalidAuditCursor, Outcome};
