//! The directory: what exists, what it is called and how it stands, for people and programs to read.
//!
//! Owns the tables, their fold (`fold`) and their queries (`queries`, with the records they answer in `records`).
//! Not here: rights. Nothing decides by the directory.

mod fold;
mod queries;
mod records;
mod rows;

pub(crate) use fold::DirectoryModel;
pub use queries::{Directory, LinkFilter, Within, WorkspaceFilter};
pub use records::{
    HostRecord, LinkPhase, LinkRecord, MemberGrant, MemberRecord, OrganizationRecord, ProjectRecord, RuntimePhase,
    RuntimeRecord, UserRecord, WorkspaceRecord,
};
pub(crate) use rows::TABLES;
