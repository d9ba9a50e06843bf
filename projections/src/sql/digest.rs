//! What a generation holds, as one number: for comparing two generations, two databases, two ways of folding.

use std::fmt;

use sha2::{Digest, Sha256};

use super::database::{Database, DatabaseError, Transaction};
use super::projector::ModelName;
use super::table::Value;

/// Equal exactly where the rows are equal, whatever their order, generation and database. Finds mistakes, not forgers:
/// the rows' SHA-256 are added up.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct TableDigest {
    sum: [u64; 4],
    pub rows: u64,
}

impl fmt::Display for TableDigest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.sum.iter().try_for_each(|lane| write!(formatter, "{lane:016x}"))?;
        write!(formatter, " over {} rows", self.rows)
    }
}

impl fmt::Debug for TableDigest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl TableDigest {
    fn add(&mut self, table: &str, values: &[Value<'_>]) {
        let mut hash = Sha256::new();
        hash.update(table.as_bytes());
        for value in values {
            match value {
                Value::Int(None) | Value::Text(None) => hash.update([0]),
                Value::Int(Some(value)) => {
                    hash.update([1]);
                    hash.update(value.to_le_bytes());
                }
                Value::Text(Some(text)) => {
                    hash.update([2]);
                    hash.update((text.len() as u64).to_le_bytes());
                    hash.update(text.as_bytes());
                }
            }
        }
        let row: [u8; 32] = hash.finalize().into();
        for (lane, bytes) in self.sum.iter_mut().zip(row.chunks_exact(8)) {
            let bytes = bytes.try_into().expect("chunks_exact(8) gives eight bytes");
            *lane = lane.wrapping_add(u64::from_le_bytes(bytes));
        }
        self.rows += 1;
    }
}

/// The digest of all tables of one generation.
pub(crate) async fn of_generation(
    transaction: &mut Transaction,
    model: ModelName,
    generation: i64,
) -> Result<TableDigest, DatabaseError> {
    let mut digest = TableDigest::default();
    for table in model.tables() {
        transaction.scan(table, generation, &mut |values| digest.add(table.name, values)).await?;
    }
    Ok(digest)
}

impl Database {
    /// The digest of a read model's live rows, all as of one moment. Reads every row.
    pub async fn digest(&self, model: ModelName) -> Result<TableDigest, DatabaseError> {
        let mut snapshot = self.snapshot().await?;
        let standing = super::checkpoint::live_in(&mut snapshot, model).await?;
        let digest = of_generation(&mut snapshot, model, standing.generation).await?;
        snapshot.rollback().await?;
        Ok(digest)
    }
}
