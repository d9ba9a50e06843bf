//! The meter: awake time per service and hour, attributed to what woke the runtime.
//!
//! Owns the tables, the fold and the usage queries. Not here: what is counted (domain's `meter`).
//!
//! Why the state of each running meter is a row of its own, and not read again from the log after a restart: the running
//! estimate needs it in processes that project nothing, the projector goes on without a request per runtime, and it
//! moves in the same transaction as the usage rows, so the two cannot part.

mod fold;
mod usage;

pub(crate) use fold::{MeterModel, TABLES};
pub use usage::{GroupBy, Meter, RunningUsage, UsageFilter, UsageGroup, UsageTotals};
