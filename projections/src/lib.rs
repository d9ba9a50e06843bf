//! What the log means: read models folded from it, and their queries.
//!
//! Owns the hot views that processes hold in memory and the read models in PostgreSQL or SQLite. Not here: what may
//! happen (domain), where it is remembered (eventlog), deciding (commands).

pub mod sql;
