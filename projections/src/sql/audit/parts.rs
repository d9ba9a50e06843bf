//! Parts of the audit: what finds its rows again, written once for 4,096 positions.
//!
//! An index of its own for each thing that rows are looked for by would be written all over by each batch. Here the rows of
//! a part are sorted by what they have in common when the part is complete, and written at the end of two tables. Until then
//! they are looked through one by one.
//!
//! INVARIANT: what stands in the tables after a commit depends on the commits up to it alone: a part is completed by the
//! first commit that lies behind it, whatever batches they come in.

use std::fmt::Write;

use envforge_domain::commit::Position;
use futures_util::future::BoxFuture;

use super::super::database::{DatabaseError, Transaction};
use super::super::held::{Buffer, Written};
use super::super::statement::Statement;
use super::super::table::{Row, int, table};
use super::entry::{Entry, TrailRow};
use super::terms::{Posting, Term, Terms};

/// Positions of one part.
pub(super) const PART_POSITIONS: u16 = 4_096;
/// Rows of postings that one part has at most: one a first byte of a term.
pub(super) const PART_BUCKETS: i64 = 256;

table! {
    pub(super) struct PartRow in "audit_parts", key(part) {
        part: i64,
        recorded_from: i64,
        recorded_to: i64,
    }
}

table! {
    pub(crate) struct PostingsRow in "audit_postings", key(slot) {
        slot: i64,
        postings: String,
    }
}

/// The number of the part in which a position lies, and its place there.
pub(super) fn place(position: i64) -> (i64, u16) {
    let positions = i64::from(PART_POSITIONS);
    (position.div_euclid(positions), u16::try_from(position.rem_euclid(positions)).unwrap_or(0))
}

pub(super) fn first_position(part: i64) -> i64 {
    part.saturating_mul(i64::from(PART_POSITIONS))
}

/// Where the postings of a term stand.
pub(super) fn slot(part: i64, term: Term) -> i64 {
    part * PART_BUCKETS + i64::from(term.bucket())
}

/// Places within a part.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Places([u64; PART_POSITIONS as usize / 64]);

impl Places {
    pub(super) const NONE: Self = Self([0; PART_POSITIONS as usize / 64]);
    pub(super) const ALL: Self = Self([u64::MAX; PART_POSITIONS as usize / 64]);

    fn insert(&mut self, place: u16) {
        self.0[usize::from(place / 64)] |= 1 << (place % 64);
    }

    pub(super) fn unite(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(mine, others)| *mine |= others);
    }

    pub(super) fn intersect(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(mine, others)| *mine &= others);
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = u16> {
        (0..PART_POSITIONS).filter(|place| self.0[usize::from(place / 64)] & (1 << (place % 64)) != 0)
    }
}

/// The places of a term, out of the postings of its bucket.
pub(super) fn places_of(term: Term, row: &PostingsRow) -> Result<Places, DatabaseError> {
    let broken = || DatabaseError::Row {
        table: PostingsRow::TABLE.name,
        reason: format!("`postings` of slot {} are not lists of places", row.slot),
    };
    let mut places = Places::NONE;
    let wanted = format!("{:08x}", term.tag());
    for one in row.postings.split_terminator(';') {
        let (tag, list) = one.split_once(':').ok_or_else(broken)?;
        if tag != wanted {
            continue;
        }
        for run in list.split(',') {
            let (first, last) = run.split_once('-').unwrap_or((run, run));
            let number = |text: &str| text.parse().ok().filter(|place| *place < PART_POSITIONS).ok_or_else(broken);
            (number(first)?..=number(last)?).for_each(|place| places.insert(place));
        }
    }
    Ok(places)
}

/// The part that is being filled, and those that a batch has completed.
#[derive(Default)]
pub(super) struct Parts {
    /// Whether the rows of the part that is not complete are in hand.
    loaded: bool,
    part: i64,
    /// Of each row of that part: by what it is looked for, and its place.
    found: Vec<Posting>,
    recorded: Option<(i64, i64)>,
    complete: Written<PartRow>,
    postings: Written<PostingsRow>,
}

impl Parts {
    /// Says that a commit at `position` is folded: what lies before its part is complete.
    pub(super) fn reach(&mut self, position: Position) {
        let (part, _) = place(int(position.get()));
        if part != self.part {
            self.close();
            self.part = part;
        }
    }

    /// A row of the part that was reached.
    pub(super) fn add(&mut self, position: i64, recorded_at: i64, terms: Terms, entry: &Entry) {
        let (_, place) = place(position);
        terms.each(entry, |term| self.found.push(Posting::new(term, place)));
        let (from, to) = self.recorded.unwrap_or((recorded_at, recorded_at));
        self.recorded = Some((from.min(recorded_at), to.max(recorded_at)));
    }

    fn close(&mut self) {
        let Some((recorded_from, recorded_to)) = self.recorded.take() else { return };
        self.complete.push(PartRow { part: self.part, recorded_from, recorded_to });
        self.found.sort_unstable();
        self.found.dedup();
        for bucket in self.found.chunk_by(|a, b| a.term().bucket() == b.term().bucket()) {
            let mut postings = String::with_capacity(bucket.len() * 14);
            for of_term in bucket.chunk_by(|a, b| a.term() == b.term()) {
                write_places(&mut postings, of_term);
            }
            self.postings.push(PostingsRow { slot: slot(self.part, bucket[0].term()), postings });
        }
        self.found.clear();
    }

    async fn load(&mut self, transaction: &mut Transaction, generation: i64) -> Result<(), DatabaseError> {
        let incomplete = first_incomplete(transaction, generation).await?;
        let columns = TrailRow::TABLE.column_list();
        let statement = Statement::new(format!("SELECT {columns} FROM audit_trail WHERE generation = "))
            .bind(generation)
            .push(" AND position >= ")
            .bind(first_position(incomplete))
            .push(" ORDER BY position, ordinal");
        let rows: Vec<TrailRow> = transaction.fetch_all(statement).await?;
        for row in rows {
            (self.part, _) = place(row.position);
            self.add(row.position, row.recorded_at, Terms::of(&row.org), &row.decoded()?);
        }
        self.loaded = true;
        Ok(())
    }
}

/// The first part that is not complete. It and what follows is the last part that has rows.
pub(super) async fn first_incomplete(transaction: &mut Transaction, generation: i64) -> Result<i64, DatabaseError> {
    let last = Statement::new("SELECT MAX(part) FROM audit_parts WHERE generation = ").bind(generation);
    let last: Vec<(Option<i64>,)> = transaction.fetch_all(last).await?;
    Ok(last.first().and_then(|(part,)| *part).map_or(0, |part| part + 1))
}

/// `tag:1,4,9-12;` of one term, whose places ascend.
fn write_places(postings: &mut String, of_term: &[Posting]) {
    write!(postings, "{:08x}:", of_term[0].term().tag()).expect("writing to a String does not fail");
    for (index, run) in of_term.chunk_by(|a, b| a.place() + 1 == b.place()).enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let (first, last) = (run[0].place(), run[run.len() - 1].place());
        write!(postings, "{comma}{first}").expect("writing to a String does not fail");
        if last > first {
            write!(postings, "-{last}").expect("writing to a String does not fail");
        }
    }
    postings.push(';');
}

impl Buffer for Parts {
    fn load<'a>(
        &'a mut self,
        transaction: &'a mut Transaction,
        generation: i64,
    ) -> BoxFuture<'a, Result<(), DatabaseError>> {
        Box::pin(async move { if self.loaded { Ok(()) } else { Self::load(self, transaction, generation).await } })
    }

    fn write<'a>(
        &'a mut self,
        transaction: &'a mut Transaction,
        generation: i64,
    ) -> BoxFuture<'a, Result<(), DatabaseError>> {
        Box::pin(async move {
            self.complete.write(transaction, generation).await?;
            self.postings.write(transaction, generation).await
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::terms::Kind;
    use super::*;

    #[test]
    fn places_are_read_back_as_they_were_written() {
        let terms = Terms::of("org_1");
        let (rare, often) = (terms.term(Kind::Actor, "usr_1"), terms.term(Kind::Actor, "usr_2"));
        for expected in [vec![0], vec![4_095], vec![0, 1, 2, 7, 9, 10, 4_094, 4_095], (0..4_096).collect()] {
            let mut postings = String::new();
            write_places(&mut postings, &[Posting::new(rare, 3)]);
            let of_often: Vec<_> = expected.iter().map(|place| Posting::new(often, *place)).collect();
            write_places(&mut postings, &of_often);
            let row = PostingsRow { slot: 5, postings };
            assert_eq!(places_of(often, &row).unwrap().iter().collect::<Vec<_>>(), expected);
            assert_eq!(places_of(rare, &row).unwrap().iter().collect::<Vec<_>>(), [3]);
            assert!(places_of(terms.term(Kind::Actor, "usr_3"), &row).unwrap() == Places::NONE);
        }
    }

    #[test]
    fn postings_that_nobody_wrote_are_an_error_and_not_an_empty_list() {
        let term = Terms::of("org_1").term(Kind::Actor, "usr_1");
        for list in ["", "x", "1,", "4096", "3-x"] {
            let row = PostingsRow { slot: 5, postings: format!("{:08x}:{list};", term.tag()) };
            assert!(places_of(term, &row).is_err(), "{list}");
        }
        assert!(places_of(term, &PostingsRow { slot: 5, postings: "junk;".to_owned() }).is_err());
    }
}
