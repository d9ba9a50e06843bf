//! Pages of lists: how many at most, and from where the next one goes on.

use serde::Serialize;

/// How many items a page may have: 1 to 200.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit(u16);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`limit` must be between 1 and {max}, not {found}", max = Limit::MAX.0)]
pub struct LimitOutOfRange {
    pub found: u64,
}

impl Limit {
    pub const MAX: Self = Self(200);
    pub const DEFAULT: Self = Self(50);

    pub fn new(limit: u64) -> Result<Self, LimitOutOfRange> {
        match u16::try_from(limit) {
            Ok(limit @ 1..=200) => Ok(Self(limit)),
            Ok(_) | Err(_) => Err(LimitOutOfRange { found: limit }),
        }
    }

    pub const fn get(self) -> u16 {
        self.0
    }

    /// What a query asks for: one more than a page holds, which tells whether another page follows.
    pub(crate) fn probe(self) -> i64 {
        i64::from(self.0) + 1
    }
}

impl Default for Limit {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// One page of a list. `next` is the cursor of the following page, `None` on the last one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Page<T, C = String> {
    pub items: Vec<T>,
    pub next: Option<C>,
}

impl<T, C> Page<T, C> {
    /// From up to one item more than the limit, which tells whether another page follows.
    pub fn cut(mut items: Vec<T>, limit: Limit, cursor: impl FnOnce(&T) -> C) -> Self {
        let more = items.len() > usize::from(limit.0);
        items.truncate(usize::from(limit.0));
        let next = if more { items.last().map(cursor) } else { None };
        Self { items, next }
    }
}
