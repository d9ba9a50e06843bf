//! Rows of one table, many to a statement: a statement costs more than a row, and one that goes on keeps its place in the table.
//!
//! Not here: which rows (`apply`).

use rusqlite::{Connection, Statement};

/// Rows of the largest statement; the next ones have an eighth as many each.
const ROWS_AT_ONCE: usize = 64;
const FEWER_ROWS_AT_ONCE: usize = 8;

/// Writes rows of one table.
pub(super) struct Rows<'c> {
    many: Statement<'c>,
    some: Statement<'c>,
    one: Statement<'c>,
}

impl<'c> Rows<'c> {
    /// `into` is the table with its columns, `row` a row's parameters.
    pub(super) fn prepare(connection: &'c Connection, into: &str, row: &str) -> Result<Self, rusqlite::Error> {
        let of = |rows: usize| connection.prepare(&format!("INSERT INTO {into} VALUES {}", vec![row; rows].join(",")));
        Ok(Self { many: of(ROWS_AT_ONCE)?, some: of(FEWER_ROWS_AT_ONCE)?, one: of(1)? })
    }

    /// `bind` binds one row from the given parameter on, and answers the one behind it.
    pub(super) fn insert<T>(
        &mut self,
        rows: &[T],
        bind: impl Fn(&mut Statement<'_>, usize, &T) -> Result<usize, rusqlite::Error>,
    ) -> Result<(), rusqlite::Error> {
        let execute = |statement: &mut Statement<'_>, rows: &[T]| {
            let mut parameter = 1;
            for row in rows {
                parameter = bind(statement, parameter, row)?;
            }
            let executed = statement.raw_execute();
            // It would keep the last rows' payloads until it is used again.
            statement.clear_bindings();
            executed.map(drop)
        };
        let (many, rest) = rows.as_chunks::<ROWS_AT_ONCE>();
        many.iter().try_for_each(|rows| execute(&mut self.many, rows))?;
        let (some, rest) = rest.as_chunks::<FEWER_ROWS_AT_ONCE>();
        some.iter().try_for_each(|rows| execute(&mut self.some, rows))?;
        rest.chunks(1).try_for_each(|row| execute(&mut self.one, row))
    }
}
