//! Tables as code: their columns, keys and rows, and the two bulk forms of writing them.
//!
//! Every column is a 64-bit integer or a text, which both databases treat alike. Not here: connections (`database`),
//! what the rows mean (each read model's own file).

use std::borrow::Cow;
use std::fmt::Write;

use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CellType {
    Int,
    Text,
}

/// One value of one row.
#[derive(Clone, Debug)]
pub(crate) enum Value<'a> {
    Int(Option<i64>),
    Text(Option<Cow<'a, str>>),
}

/// A Rust type that stands in a column.
pub(crate) trait Cell {
    const TYPE: CellType;
    fn value(&self) -> Value<'_>;
}

/// PostgreSQL cannot store U+0000 in a text: both databases get the replacement character, so that both hold the same.
pub(crate) fn storable(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { Cow::Owned(text.replace('\0', "\u{fffd}")) } else { Cow::Borrowed(text) }
}

impl Cell for i64 {
    const TYPE: CellType = CellType::Int;
    fn value(&self) -> Value<'_> {
        Value::Int(Some(*self))
    }
}

impl Cell for Option<i64> {
    const TYPE: CellType = CellType::Int;
    fn value(&self) -> Value<'_> {
        Value::Int(*self)
    }
}

impl Cell for String {
    const TYPE: CellType = CellType::Text;
    fn value(&self) -> Value<'_> {
        Value::Text(Some(storable(self)))
    }
}

impl Cell for Option<String> {
    const TYPE: CellType = CellType::Text;
    fn value(&self) -> Value<'_> {
        Value::Text(self.as_deref().map(storable))
    }
}

/// SQL integers are signed. Nothing counted here reaches 2^63 (as milliseconds, 292 million years).
pub(crate) fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The inverse of `int`. Negative values are never written.
pub(crate) fn uint(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// One table of a read model. `generation` is its first column and stands in no list here.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) name: &'static str,
    pub(crate) columns: &'static [(&'static str, CellType)],
    /// Columns that, after `generation`, make the primary key.
    pub(crate) key: &'static [&'static str],
}

/// Rows that both databases can be asked for.
pub(crate) trait FromRows:
    for<'r> sqlx::FromRow<'r, SqliteRow> + for<'r> sqlx::FromRow<'r, PgRow> + Send + Unpin
{
}

impl<T> FromRows for T where T: for<'r> sqlx::FromRow<'r, SqliteRow> + for<'r> sqlx::FromRow<'r, PgRow> + Send + Unpin {}

/// One row of one table.
pub(crate) trait Row: FromRows + Clone + PartialEq + Sync + 'static {
    const TABLE: Table;

    /// Appends the row's values in the order of the table's columns.
    fn write<'a>(&'a self, values: &mut Vec<Value<'a>>);
}

/// A row that is found by one text.
pub(crate) trait IdRow: Row {
    fn id(&self) -> &str;
}

/// A struct that is read from the columns of its fields' names; `..part: Type` reads another such struct from the same
/// row. Instead of sqlx's derive: its macros would build both database drivers once more, for the compiler's own use.
macro_rules! columns {
    ($(#[$meta:meta])* $vis:vis struct $row:ident {
        $(..$part:ident: $part_type:ty,)?
        $($field_vis:vis $field:ident: $type:ty,)+
    }) => {
        $(#[$meta])*
        $vis struct $row { $($part: $part_type,)? $($field_vis $field: $type,)+ }

        impl<'r, R: sqlx::Row> sqlx::FromRow<'r, R> for $row
        where
            &'static str: sqlx::ColumnIndex<R>,
            $($part_type: sqlx::FromRow<'r, R>,)?
            $($type: sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,)+
        {
            fn from_row(row: &'r R) -> Result<Self, sqlx::Error> {
                Ok(Self {
                    $($part: <$part_type>::from_row(row)?,)?
                    $($field: row.try_get(stringify!($field))?,)+
                })
            }
        }
    };
}

/// Makes a row's struct and says in which table it stands: `table! { struct R in "r", key(id) { id: String, } }`.
macro_rules! table {
    ($(#[$doc:meta])* $vis:vis struct $row:ident in $table:literal, key($($key:ident),+) {
        $($field:ident: $type:ty,)+
    }) => {
        $crate::sql::table::columns! {
            $(#[$doc])*
            #[derive(Clone, Debug, PartialEq)]
            $vis struct $row { $(pub(crate) $field: $type,)+ }
        }

        impl $crate::sql::table::Row for $row {
            const TABLE: $crate::sql::table::Table = $crate::sql::table::Table {
                name: $table,
                columns: &[$((stringify!($field), <$type as $crate::sql::table::Cell>::TYPE),)+],
                key: &[$(stringify!($key)),+],
            };

            fn write<'a>(&'a self, values: &mut Vec<$crate::sql::table::Value<'a>>) {
                values.extend([$($crate::sql::table::Cell::value(&self.$field),)+]);
            }
        }
    };
}

/// The same for a row whose key is its column `id`.
macro_rules! id_table {
    ($(#[$doc:meta])* $vis:vis struct $row:ident in $table:literal { $($field:ident: $type:ty,)+ }) => {
        $crate::sql::table::table! { $(#[$doc])* $vis struct $row in $table, key(id) { $($field: $type,)+ } }

        impl $crate::sql::table::IdRow for $row {
            fn id(&self) -> &str {
                &self.id
            }
        }
    };
}

pub(crate) use {columns, id_table, table};

/// What to do with a row whose key is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnConflict {
    /// It is written over.
    Replace,
    /// It is an error: such a row is written once.
    Fail,
}

impl Table {
    /// Columns joined by commas.
    pub(crate) fn column_list(&self) -> String {
        self.columns.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    }

    /// SQLite: `INSERT ... VALUES (?, ...), ...` for `rows` rows, the generation first in each.
    pub(crate) fn insert_values(&self, rows: usize, on_conflict: OnConflict) -> String {
        let mut sql = format!("INSERT INTO {} (generation, {}) VALUES ", self.name, self.column_list());
        for row in 0..rows {
            sql.push_str(if row == 0 { "(?" } else { ",(?" });
            self.columns.iter().for_each(|_| sql.push_str(",?"));
            sql.push(')');
        }
        self.push_conflict(&mut sql, on_conflict);
        sql
    }

    /// PostgreSQL: one text for any number of rows, an array a column.
    pub(crate) fn insert_arrays(&self, on_conflict: OnConflict) -> String {
        let mut sql = format!(
            "INSERT INTO {} (generation, {}) SELECT $1::bigint, given.* FROM UNNEST(",
            self.name,
            self.column_list()
        );
        for (index, (_, cell)) in self.columns.iter().enumerate() {
            let array = match cell {
                CellType::Int => "bigint[]",
                CellType::Text => "text[]",
            };
            let comma = if index == 0 { "" } else { ", " };
            write!(sql, "{comma}${}::{array}", index + 2).expect("writing to a String does not fail");
        }
        sql.push_str(") AS given");
        self.push_conflict(&mut sql, on_conflict);
        sql
    }

    fn push_conflict(&self, sql: &mut String, on_conflict: OnConflict) {
        if on_conflict == OnConflict::Fail {
            return;
        }
        write!(sql, " ON CONFLICT (generation, {}) DO UPDATE SET ", self.key.join(", "))
            .expect("writing to a String does not fail");
        let others = self.columns.iter().filter(|(name, _)| !self.key.contains(name));
        for (index, (name, _)) in others.enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(sql, "{comma}{name} = EXCLUDED.{name}").expect("writing to a String does not fail");
        }
    }
}
