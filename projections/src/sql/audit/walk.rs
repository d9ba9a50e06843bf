//! One page of the audit: through the parts that are complete, by their postings, and through the rows of the one that is not.
//!
//! INVARIANT: postings only say where it is worth looking. Every row is held against the organization and the whole filter
//! before it is answered, since terms may share a number.

use std::ops::ControlFlow;

use ahash::AHashMap;
use envforge_domain::commit::Position;
use envforge_domain::ids::OrgId;

use super::super::checkpoint;
use super::super::database::{Database, DatabaseError, Transaction};
use super::super::page::{Limit, Page};
use super::super::projector::ModelName;
use super::super::statement::Statement;
use super::super::table::{Row, int, uint};
use super::entry::TrailRow;
use super::parts::{self, Places, PostingsRow};
use super::queries::{AuditCursor, AuditFilter, AuditRow, Direction};
use super::terms::{self, Kind, Term, Terms};

/// Parts whose postings are asked for together: few at first, since most questions find enough at once.
const GROUP_PARTS: [i64; 4] = [2, 8, 32, 128];
/// Rows of postings asked for together.
const GROUP_SLOTS: usize = 4_096;
/// Parts that one request looks into: 33 million commits.
const PARTS_MAX: usize = 8_192;
/// Rows asked for together: at least, and at most.
const ROWS_MIN: usize = 16;
const ROWS_MAX: usize = 512;

/// What is asked for.
#[derive(Clone, Copy)]
pub(crate) struct Question<'a> {
    pub(crate) org: OrgId,
    pub(crate) filter: &'a AuditFilter,
    pub(crate) direction: Direction,
    pub(crate) after: Option<AuditCursor>,
    pub(crate) limit: Limit,
}

/// A page on its way. All of it is read from one state of the database.
pub(super) struct Walk<'a> {
    transaction: Transaction,
    generation: i64,
    question: Question<'a>,
    /// What a row must have: one term of each list.
    required: Vec<Vec<Term>>,
    found: Vec<AuditRow>,
}

/// Why a walk stops before its end.
enum Stop {
    /// There is more than the page holds.
    Full,
    /// As many parts were looked into as one request may ask for.
    Tired { looked_up_to: AuditCursor },
}

type Step = Result<ControlFlow<Stop>, DatabaseError>;

impl Question<'_> {
    /// Rows from the first part on that has no postings.
    pub(crate) fn rows_statement(
        &self,
        generation: i64,
        incomplete: i64,
        after: Option<AuditCursor>,
        rows_max: usize,
    ) -> Statement {
        let head = format!("SELECT {} FROM audit_trail WHERE generation = ", TrailRow::TABLE.column_list());
        let mut statement = Statement::new(head)
            .bind(generation)
            .push(" AND position >= ")
            .bind(parts::first_position(incomplete))
            .push(" AND org = ")
            .bind(self.org.to_string())
            .bind_some(" AND recorded_at >= ", self.filter.from.map(|from| int(from.get())))
            .bind_some(" AND recorded_at < ", self.filter.to.map(|to| int(to.get())));
        if let Some(AuditCursor { position, ordinal }) = after {
            let beyond = match self.direction {
                Direction::OldestFirst => " AND (position, ordinal) > (",
                Direction::NewestFirst => " AND (position, ordinal) < (",
            };
            statement = statement.push(beyond).bind(int(position.get())).push(", ").bind(i64::from(ordinal)).push(")");
        }
        let order = match self.direction {
            Direction::OldestFirst => " ORDER BY position, ordinal LIMIT ",
            Direction::NewestFirst => " ORDER BY position DESC, ordinal DESC LIMIT ",
        };
        statement.push(order).bind(i64::try_from(rows_max).unwrap_or(i64::MAX))
    }

    /// Parts that are complete and may have rows of the time that is asked for.
    pub(crate) fn parts_statement(&self, generation: i64, bound: Option<i64>, group: i64) -> Statement {
        let (within, order) = match self.direction {
            Direction::NewestFirst => (" AND part <= ", " ORDER BY part DESC LIMIT "),
            Direction::OldestFirst => (" AND part >= ", " ORDER BY part LIMIT "),
        };
        Statement::new("SELECT part FROM audit_parts WHERE generation = ")
            .bind(generation)
            .bind_some(within, bound)
            .bind_some(" AND recorded_to >= ", self.filter.from.map(|from| int(from.get())))
            .bind_some(" AND recorded_from < ", self.filter.to.map(|to| int(to.get())))
            .push(order)
            .bind(group)
    }

    fn looks_for_something(&self) -> bool {
        let AuditFilter { actor, type_prefix, project, workspace, link, correlation, denied, from: _, to: _ } =
            self.filter;
        actor.is_some()
            || type_prefix.is_some()
            || project.is_some()
            || workspace.is_some()
            || link.is_some()
            || correlation.is_some()
            || denied.is_some()
    }
}

impl<'a> Walk<'a> {
    pub(super) async fn begin(database: &Database, question: Question<'a>) -> Result<Self, DatabaseError> {
        let mut transaction = database.snapshot().await?;
        let generation = checkpoint::live_in(&mut transaction, ModelName::Audit).await?.generation;
        let required = required(&mut transaction, generation, question.org, question.filter).await?;
        let found = Vec::with_capacity(usize::from(question.limit.get()) + 1);
        Ok(Self { transaction, generation, question, required, found })
    }

    pub(super) async fn page(mut self) -> Result<Page<AuditRow, AuditCursor>, DatabaseError> {
        // A type that no row has: the database need not be asked where.
        let stopped = match self.required.iter().any(Vec::is_empty) {
            true => ControlFlow::Continue(()),
            false => self.walk().await?,
        };
        self.transaction.rollback().await?;
        Ok(match stopped {
            ControlFlow::Break(Stop::Tired { looked_up_to }) => Page { items: self.found, next: Some(looked_up_to) },
            ControlFlow::Break(Stop::Full) | ControlFlow::Continue(()) => {
                Page::cut(self.found, self.question.limit, |row| row.cursor)
            }
        })
    }

    async fn walk(&mut self) -> Step {
        let incomplete = parts::first_incomplete(&mut self.transaction, self.generation).await?;
        match self.question.direction {
            Direction::NewestFirst => match self.through_rows(incomplete).await? {
                ControlFlow::Continue(()) => self.through_parts().await,
                stopped => Ok(stopped),
            },
            Direction::OldestFirst => match self.through_parts().await? {
                ControlFlow::Continue(()) => self.through_rows(incomplete).await,
                stopped => Ok(stopped),
            },
        }
    }

    /// The rows from the first part on that has no postings yet, one by one.
    async fn through_rows(&mut self, incomplete: i64) -> Step {
        let mut after = self.question.after;
        loop {
            let wanted = self.still_wanted();
            // Without a term that is rare nearly every row is one that was asked for.
            let rows_max = if self.question.looks_for_something() { ROWS_MAX } else { wanted };
            let statement = self.question.rows_statement(self.generation, incomplete, after, rows_max);
            let rows: Vec<TrailRow> = self.transaction.fetch_all(statement).await?;
            let asked = rows.len();
            for row in rows {
                after = Some(row.cursor()?);
                if self.take(row)?.is_break() {
                    return Ok(ControlFlow::Break(Stop::Full));
                }
            }
            if asked < rows_max {
                return Ok(ControlFlow::Continue(()));
            }
        }
    }

    /// The parts that are complete and may have such rows, by their postings.
    async fn through_parts(&mut self) -> Step {
        let mut bound = self.question.after.map(|after| parts::place(int(after.position.get())).0);
        let mut looked = 0;
        let mut groups = GROUP_PARTS.into_iter();
        let slots_a_part = self.required.iter().map(Vec::len).sum::<usize>();
        let group_max = i64::try_from(GROUP_SLOTS / slots_a_part.max(1)).unwrap_or(i64::MAX).max(1);
        let mut group = group_max;
        loop {
            group = groups.next().unwrap_or(group).min(group_max);
            let statement = self.question.parts_statement(self.generation, bound, group);
            let group_parts: Vec<(i64,)> = self.transaction.fetch_all(statement).await?;
            let group_parts: Vec<i64> = group_parts.into_iter().map(|(part,)| part).collect();
            let Some(last) = group_parts.last().copied() else { return Ok(ControlFlow::Continue(())) };
            let postings = self.postings(&group_parts).await?;
            for part in &group_parts {
                let places = self.places(*part, &postings)?;
                if let stopped @ ControlFlow::Break(_) = self.through_places(*part, &places).await? {
                    return Ok(stopped);
                }
            }
            looked += group_parts.len();
            let (next, looked_up_to) = match self.question.direction {
                Direction::NewestFirst => (last - 1, cursor(parts::first_position(last), 0)),
                Direction::OldestFirst => (last + 1, cursor(parts::first_position(last + 1) - 1, u32::MAX)),
            };
            bound = Some(next);
            if looked >= PARTS_MAX {
                return Ok(ControlFlow::Break(Stop::Tired { looked_up_to }));
            }
        }
    }

    async fn postings(&mut self, parts: &[i64]) -> Result<AHashMap<i64, PostingsRow>, DatabaseError> {
        let terms = self.required.iter().flatten();
        let slots = terms.flat_map(|term| parts.iter().map(|part| parts::slot(*part, *term)));
        let slots: Vec<i64> = slots.collect();
        let statement = self.transaction.by_number::<PostingsRow>(self.generation, "slot", &slots);
        let rows: Vec<PostingsRow> = self.transaction.fetch_all(statement).await?;
        Ok(rows.into_iter().map(|row| (row.slot, row)).collect())
    }

    /// Where in a part rows have everything that is required.
    fn places(&self, part: i64, postings: &AHashMap<i64, PostingsRow>) -> Result<Places, DatabaseError> {
        let mut all = Places::ALL;
        for terms in &self.required {
            let mut any = Places::NONE;
            for term in terms {
                if let Some(row) = postings.get(&parts::slot(part, *term)) {
                    any.unite(&parts::places_of(*term, row)?);
                }
            }
            all.intersect(&any);
        }
        Ok(all)
    }

    async fn through_places(&mut self, part: i64, places: &Places) -> Step {
        let positions = places.iter().map(|place| parts::first_position(part) + i64::from(place));
        let mut positions: Vec<i64> = positions.filter(|position| self.may_lie_beyond(*position)).collect();
        if self.question.direction == Direction::NewestFirst {
            positions.reverse();
        }
        let mut rest = positions.as_slice();
        let mut count = self.still_wanted().clamp(ROWS_MIN, ROWS_MAX);
        while !rest.is_empty() {
            let (now, later) = rest.split_at(count.min(rest.len()));
            rest = later;
            // Where few of the rows fit (those of an hour, in a part of a day) the part is not asked for piece by piece.
            count = (count * 2).min(ROWS_MAX);
            let statement = self.transaction.by_number::<TrailRow>(self.generation, "position", now);
            let mut rows: Vec<TrailRow> = self.transaction.fetch_all(statement).await?;
            rows.sort_unstable_by_key(|row| (row.position, row.ordinal));
            if self.question.direction == Direction::NewestFirst {
                rows.reverse();
            }
            for row in rows {
                if self.take(row)?.is_break() {
                    return Ok(ControlFlow::Break(Stop::Full));
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn still_wanted(&self) -> usize {
        usize::from(self.question.limit.get()) + 1 - self.found.len()
    }

    fn may_lie_beyond(&self, position: i64) -> bool {
        self.question.after.is_none_or(|after| match self.question.direction {
            Direction::NewestFirst => position <= int(after.position.get()),
            Direction::OldestFirst => position >= int(after.position.get()),
        })
    }

    /// Keeps the row if it is one that was asked for. Breaks once there is one more than the page holds.
    fn take(&mut self, row: TrailRow) -> Result<ControlFlow<()>, DatabaseError> {
        let row = AuditRow::try_from(row)?;
        let beyond = self.question.after.is_none_or(|after| match self.question.direction {
            Direction::NewestFirst => row.cursor < after,
            Direction::OldestFirst => row.cursor > after,
        });
        if beyond && row.org == self.question.org && self.question.filter.matches(&row) {
            self.found.push(row);
        }
        Ok(if self.found.len() > usize::from(self.question.limit.get()) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        })
    }
}

fn cursor(position: i64, ordinal: u32) -> AuditCursor {
    AuditCursor { position: Position::new(uint(position)), ordinal }
}

/// One list a condition, of the terms of which a row must have one.
async fn required(
    transaction: &mut Transaction,
    generation: i64,
    org: OrgId,
    filter: &AuditFilter,
) -> Result<Vec<Vec<Term>>, DatabaseError> {
    let of = Terms::of(&org.to_string());
    let mut required = Vec::new();
    let single = [
        filter.actor.clone().map(|actor| of.term(Kind::Actor, &actor)),
        filter.project.map(|project| of.term(Kind::Project, &project.to_string())),
        filter.workspace.map(|workspace| of.term(Kind::Workspace, &workspace.to_string())),
        filter.link.map(|link| of.term(Kind::Link, &link.to_string())),
        filter.correlation.map(|correlation| of.term(Kind::Correlation, &correlation.to_string())),
        filter.denied.map(|denied| of.term(Kind::Outcome, terms::outcome(denied))),
    ];
    required.extend(single.into_iter().flatten().map(|term| vec![term]));
    if let Some(prefix) = &filter.type_prefix {
        let types = Statement::new("SELECT id FROM audit_types WHERE generation = ").bind(generation);
        let types: Vec<(String,)> = transaction.fetch_all(types).await?;
        let matching = types.iter().filter(|(id,)| id.starts_with(prefix.as_str()));
        required.push(matching.map(|(id,)| of.term(Kind::Type, id)).collect());
    }
    if required.is_empty() {
        required.push(vec![of.term(Kind::Organization, "")]);
    }
    Ok(required)
}
