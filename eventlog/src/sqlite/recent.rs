//! The last commits in memory, for followers that keep up with the log: what comes is then handed on without a change of threads
//! and a read of the file for each of them.
//!
//! INVARIANT: a commit is here only once it is stored, and before the log's head says so. Not here: what a follower finds when
//! it begins, which it reads from the file (`follow`).

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use envforge_domain::commit::{Position, StreamKind};
use envforge_domain::ids::OrgId;
use envforge_domain::time::UnixMillis;

use super::reader::{Stored, StoredPage};
use crate::Filter;

const COMMITS_MAX: usize = 1_024;
const BYTES_MAX: usize = 4 * 1024 * 1024;

/// A commit as it was stored, and what a filter asks about it.
struct Recent {
    position: Position,
    recorded_at: UnixMillis,
    org: OrgId,
    kind: StreamKind,
    payload: Bytes,
}

#[derive(Default)]
pub(super) struct RecentCommits(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    /// In order, without gaps.
    commits: VecDeque<Recent>,
    bytes: usize,
}

impl RecentCommits {
    /// Each change is whole before anything can panic.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Commits that were stored at the same time, in the order of their positions, each with its organization and kind.
    pub(super) fn add<'a>(
        &self,
        recorded_at: UnixMillis,
        commits: impl Iterator<Item = (Position, (OrgId, StreamKind), &'a Bytes)>,
    ) {
        let mut inner = self.lock();
        for (position, (org, kind), payload) in commits {
            inner.bytes += payload.len();
            inner.commits.push_back(Recent { position, recorded_at, org, kind, payload: payload.clone() });
        }
        while inner.commits.len() > COMMITS_MAX || inner.bytes > BYTES_MAX {
            let Some(oldest) = inner.commits.pop_front() else { break };
            inner.bytes -= oldest.payload.len();
        }
    }

    /// What stands above `after`, up to `head` and at most `limit` looked at. `None`: some of it is not here any more.
    pub(super) fn page(&self, after: Position, head: Position, limit: usize, filter: &Filter) -> Option<StoredPage> {
        let inner = self.lock();
        let first = inner.commits.front()?.position;
        let skipped = after.next().get().checked_sub(first.get())?;
        let skipped = usize::try_from(skipped).ok()?;
        let mut page = StoredPage { commits: Vec::new(), read_up_to: after };
        let wanted = inner.commits.iter().skip(skipped).take_while(|recent| recent.position <= head).take(limit);
        for recent in wanted {
            page.read_up_to = recent.position;
            if filter.accepts_scope(recent.org, recent.kind) {
                let Recent { position, recorded_at, .. } = *recent;
                page.commits.push(Stored { position, recorded_at, payload: recent.payload.clone() });
            }
        }
        (page.read_up_to > after).then_some(page)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use uuid::Uuid;

    const NOW: UnixMillis = UnixMillis::new(7);

    fn org(number: u128) -> OrgId {
        OrgId::from_uuid(Uuid::from_u128(number))
    }

    fn at(number: u64) -> Position {
        Position::new(number)
    }

    /// Adds one for each position, of two organizations in turn.
    fn add(recent: &RecentCommits, positions: std::ops::RangeInclusive<u64>, bytes: usize) {
        let payload = Bytes::from(vec![0; bytes]);
        let of = |number: u64| (org(u128::from(number % 2)), StreamKind::Claim);
        recent.add(NOW, positions.map(|number| (at(number), of(number), &payload)));
    }

    fn positions(page: &StoredPage) -> Vec<u64> {
        page.commits.iter().map(|stored| stored.position.get()).collect()
    }

    #[test]
    fn whoever_keeps_up_gets_what_came_up_to_the_head_and_no_more_than_they_asked_for() {
        let recent = RecentCommits::default();
        let everything = Filter::everything();
        assert!(recent.page(at(0), at(3), 10, &everything).is_none(), "nothing is here yet");
        add(&recent, 5..=9, 10);
        let page = recent.page(at(6), at(8), 10, &everything).unwrap();
        assert_eq!((positions(&page), page.read_up_to), (vec![7, 8], at(8)));
        let page = recent.page(at(4), at(9), 3, &everything).unwrap();
        assert_eq!((positions(&page), page.read_up_to), (vec![5, 6, 7], at(7)));
        assert!(recent.page(at(3), at(9), 10, &everything).is_none(), "the fourth is not here");
        assert!(recent.page(at(9), at(9), 10, &everything).is_none());
    }

    #[test]
    fn a_filter_hides_commits_and_says_how_far_it_looked() {
        let recent = RecentCommits::default();
        add(&recent, 1..=4, 10);
        let of_one = Filter { org: Some(org(1)), kinds: vec![StreamKind::Claim] };
        let page = recent.page(at(1), at(4), 10, &of_one).unwrap();
        assert_eq!((positions(&page), page.read_up_to), (vec![3], at(4)));
        let of_users = Filter { org: None, kinds: vec![StreamKind::User] };
        let page = recent.page(at(1), at(4), 10, &of_users).unwrap();
        assert_eq!((positions(&page), page.read_up_to), (vec![], at(4)));
    }

    #[test]
    fn neither_many_nor_large_commits_stay() {
        let recent = RecentCommits::default();
        let everything = Filter::everything();
        let many = COMMITS_MAX as u64;
        add(&recent, 1..=many + 1, 1);
        assert!(recent.page(at(0), at(many), 10, &everything).is_none());
        assert_eq!(positions(&recent.page(at(1), at(many), 1, &everything).unwrap()), [2]);
        add(&recent, many + 2..=many + 4, BYTES_MAX / 2);
        assert!(recent.page(at(many + 1), at(many + 4), 10, &everything).is_none());
        let page = recent.page(at(many + 2), at(many + 4), 10, &everything).unwrap();
        assert_eq!(positions(&page), [many + 3, many + 4]);
    }
}
