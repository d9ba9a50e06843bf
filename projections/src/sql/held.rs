//! Rows that a projector has in hand between reading and writing them.
//!
//! Owns which rows a batch needs, has changed, or has removed. INVARIANT: a projector is the only writer of its
//! generation (the checkpoint fences off every other), so rows stay valid in memory until a transaction fails.

use ahash::{AHashMap, AHashSet};
use futures_util::future::BoxFuture;

use super::database::{DatabaseError, Transaction};
use super::table::{IdRow, OnConflict, Row, Table};

/// Rows kept in memory after a batch.
const HELD_ROWS_MAX: usize = 50_000;

/// What the runner does with a read model's rows, whatever they are.
pub(crate) trait Buffer: Send {
    fn load<'a>(
        &'a mut self,
        transaction: &'a mut Transaction,
        generation: i64,
    ) -> BoxFuture<'a, Result<(), DatabaseError>>;

    fn write<'a>(
        &'a mut self,
        transaction: &'a mut Transaction,
        generation: i64,
    ) -> BoxFuture<'a, Result<(), DatabaseError>>;
}

/// Rows by id: loaded where a fold needs them, written over where it changed them.
#[derive(Debug)]
pub(crate) struct Held<R> {
    /// `None`: known not to be there.
    rows: AHashMap<String, Option<R>>,
    wanted: AHashSet<String>,
    changed: AHashSet<String>,
}

impl<R> Default for Held<R> {
    fn default() -> Self {
        Self { rows: AHashMap::default(), wanted: AHashSet::default(), changed: AHashSet::default() }
    }
}

impl<R: IdRow> Held<R> {
    const TABLE: &'static Table = &R::TABLE;

    /// Says that the fold of this batch will look at the row.
    pub(crate) fn want(&mut self, id: &str) {
        if !self.rows.contains_key(id) && !self.wanted.contains(id) {
            self.wanted.insert(id.to_owned());
        }
    }

    pub(crate) fn get(&self, id: &str) -> Option<&R> {
        self.rows.get(id)?.as_ref()
    }

    /// The row, to be changed. `None` where there is none, which no valid history brings about.
    pub(crate) fn edit(&mut self, id: &str) -> Option<&mut R> {
        let row = self.rows.get_mut(id)?.as_mut()?;
        if !self.changed.contains(id) {
            self.changed.insert(id.to_owned());
        }
        Some(row)
    }

    /// A new row, or one in place of another.
    pub(crate) fn put(&mut self, row: R) {
        let id = row.id().to_owned();
        self.changed.insert(id.clone());
        self.rows.insert(id, Some(row));
    }

    pub(crate) fn remove(&mut self, id: &str) {
        self.changed.insert(id.to_owned());
        self.rows.insert(id.to_owned(), None);
    }
}

impl<R: IdRow> Buffer for Held<R> {
    fn load<'a>(
        &'a mut self,
        transaction: &'a mut Transaction,
        generation: i64,
    ) -> BoxFuture<'a, Result<(), DatabaseError>> {
        Box::pin(async move {
            if self.wanted.is_empty() {
                return Ok(());
            }
            let ids: Vec<String> = self.wanted.drain().collect();
            let found: Vec<R> = transaction.fetch_by_id(generation, &ids).await?;
            self.rows.extend(ids.into_iter().map(|id| (id, None)));
            self.rows.extend(found.into_iter().map(|row| (row.id().to_owned(), Some(row))));
            Ok(())
        })
    }

    fn write<'a>(
        &'a mut self,
        transaction: &'a mut Transaction,
        generation: i64,
    ) -> BoxFuture<'a, Result<(), DatabaseError>> {
        Box::pin(async move {
            if !self.changed.is_empty() {
                let mut values = Vec::with_capacity(self.changed.len() * Self::TABLE.columns.len());
                let mut removed = Vec::new();
                for id in self.changed.drain() {
                    match self.rows.get(&id) {
                        Some(Some(row)) => row.write(&mut values),
                        Some(None) | None => removed.push(id),
                    }
                }
                transaction.insert(Self::TABLE, generation, &values, OnConflict::Replace).await?;
                transaction.delete_by_id(Self::TABLE, generation, &removed).await?;
            }
            // Also where they were only looked at.
            if self.rows.len() > HELD_ROWS_MAX {
                self.rows.clear();
            }
            Ok(())
        })
    }
}

/// Rows that are written once and never looked at again by the fold.
#[derive(Debug)]
pub(crate) struct Written<R>(Vec<R>);

impl<R> Default for Written<R> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<R: Row> Written<R> {
    const TABLE: &'static Table = &R::TABLE;

    pub(crate) fn push(&mut self, row: R) {
        self.0.push(row);
    }
}

impl<R: Row> Buffer for Written<R> {
    fn load<'a>(&'a mut self, _: &'a mut Transaction, _: i64) -> BoxFuture<'a, Result<(), DatabaseError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn write<'a>(
        &'a mut self,
        transaction: &'a mut Transaction,
        generation: i64,
    ) -> BoxFuture<'a, Result<(), DatabaseError>> {
        Box::pin(async move {
            let mut values = Vec::with_capacity(self.0.len() * Self::TABLE.columns.len());
            self.0.iter().for_each(|row| row.write(&mut values));
            transaction.insert(Self::TABLE, generation, &values, OnConflict::Fail).await?;
            drop(values);
            self.0.clear();
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::database::Database;
    use super::super::table::id_table;
    use super::*;

    id_table! {
        struct Looked in "audit_names" {
            id: String,
            name: String,
        }
    }

    #[tokio::test]
    async fn rows_that_are_only_looked_at_do_not_pile_up() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::connect_sqlite(&folder.path().join("read-models.sqlite")).await.unwrap();
        let mut transaction = database.begin().await.unwrap();
        let mut held = Held::<Looked>::default();
        for batch in 0..4 {
            (0..HELD_ROWS_MAX / 2).for_each(|number| held.want(&format!("{batch}-{number}")));
            held.load(&mut transaction, 1).await.unwrap();
            held.write(&mut transaction, 1).await.unwrap();
            assert!(held.rows.len() <= HELD_ROWS_MAX, "{} rows", held.rows.len());
        }
    }
}
