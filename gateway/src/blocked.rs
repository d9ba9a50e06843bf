//! Counts refused requests per link and reason, and hands the sums to the write side now and then.
//!
//! Bounded: an attacker can raise numbers, not memory and not the log. Not here: metrics of refusals without a link.

use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;
use envforge_domain::denial::{KIND_REQUESTS_MAX, RefusedRequest};
use envforge_domain::dev_link::{BLOCKED_KINDS_MAX, BlockedAttempts};
use envforge_domain::ids::LinkId;
use envforge_domain::time::{Millis, SharedClock, UnixMillis};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::admission;
use crate::decisions::{Blocked, Decisions};
use crate::denial::Denial;
use crate::metric;
use envforge_projections::gateway_view::GatewayView;

/// Links counted at once; attempts on more are in the metrics alone.
const LINKS_MAX: usize = 4_096;
/// Reports in one round; the rest waits for the next.
const REPORTS_PER_ROUND_MAX: usize = 64;
/// Between a link's first reports. Each one doubles it, so that who goes on for a day fills no log.
const INTERVAL_MIN: Millis = Millis::from_secs(20);
const INTERVAL_MAX: Millis = Millis::from_hours(1);

pub(crate) struct BlockedCounters {
    counts: Mutex<AHashMap<LinkId, LinkCounts>>,
}

struct LinkCounts {
    /// Of what is counted now; meaningless while that is nothing.
    since: UnixMillis,
    by_code: Vec<OfCode>,
    /// Not reported before.
    due: UnixMillis,
    interval: Millis,
}

struct OfCode {
    code: &'static str,
    count: u32,
    requests: Vec<RefusedRequest>,
}

/// What one link has had refused.
struct Taken {
    link: LinkId,
    since: UnixMillis,
    by_code: Vec<OfCode>,
}

impl LinkCounts {
    fn new(now: UnixMillis) -> Self {
        Self { since: now, by_code: Vec::new(), due: now, interval: INTERVAL_MIN }
    }

    /// `false` where the kind is one too many.
    fn add(&mut self, more: OfCode) -> bool {
        let full = self.by_code.len() >= BLOCKED_KINDS_MAX;
        match self.by_code.iter_mut().find(|known| known.code == more.code) {
            Some(known) => {
                known.count = known.count.saturating_add(more.count);
                for request in more.requests {
                    request.keep_in(&mut known.requests, KIND_REQUESTS_MAX);
                }
            }
            None if full => return false,
            None => self.by_code.push(more),
        }
        true
    }
}

impl BlockedCounters {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { counts: Mutex::default() })
    }

    /// `of`: the request, where its answer bears an id.
    pub(crate) fn count(&self, link: LinkId, denial: Denial, of: Option<RefusedRequest>, now: UnixMillis) {
        let mut counts = self.counts.lock();
        if counts.len() >= LINKS_MAX && !counts.contains_key(&link) {
            // Who is quiet gives way: only its pace is forgotten.
            counts.retain(|_, entry| !entry.by_code.is_empty());
            if counts.len() >= LINKS_MAX {
                metric::blocked_report("dropped");
                return;
            }
        }
        let entry = counts.entry(link).or_insert_with(|| LinkCounts::new(now));
        if entry.by_code.is_empty() {
            entry.since = now;
        }
        if !entry.add(OfCode { code: denial.code(), count: 1, requests: of.into_iter().collect() }) {
            metric::blocked_report("dropped");
        }
    }

    /// What is due, or at the end everything; the longest due first.
    fn take(&self, now: UnixMillis, everything: bool) -> Vec<Taken> {
        let mut counts = self.counts.lock();
        // A link that was quiet for as long as it would have had to wait begins anew.
        counts.retain(|_, entry| !entry.by_code.is_empty() || now < entry.due.plus(entry.interval));
        let is_due = |entry: &LinkCounts| !entry.by_code.is_empty() && (everything || now >= entry.due);
        let mut due: Vec<_> =
            counts.iter().filter(|(_, entry)| is_due(entry)).map(|(link, entry)| (entry.due, *link)).collect();
        due.sort_unstable();
        due.truncate(REPORTS_PER_ROUND_MAX);
        let taken = due.into_iter().filter_map(|(_, link)| {
            let entry = counts.get_mut(&link)?;
            entry.due = now.plus(entry.interval);
            entry.interval = Millis::new(entry.interval.get().saturating_mul(2)).min(INTERVAL_MAX);
            Some(Taken { link, since: entry.since, by_code: std::mem::take(&mut entry.by_code) })
        });
        taken.collect()
    }

    /// Counts again what could not be reported, for the next round.
    fn put_back(&self, taken: Taken, now: UnixMillis) {
        let mut counts = self.counts.lock();
        let entry = counts.entry(taken.link).or_insert_with(|| LinkCounts::new(now));
        entry.since = taken.since;
        entry.due = now;
        for of_code in taken.by_code {
            if !entry.add(of_code) {
                metric::blocked_report("dropped");
            }
        }
    }

    /// Reports every `interval` until stopped, and once more then.
    pub(crate) async fn report(
        self: Arc<Self>,
        view: Arc<GatewayView>,
        decisions: Arc<dyn Decisions>,
        clock: SharedClock,
        interval: Duration,
        stop: CancellationToken,
    ) {
        loop {
            let stopping = tokio::select! {
                () = tokio::time::sleep(interval) => false,
                () = stop.cancelled() => true,
            };
            for taken in self.take(clock.now(), stopping) {
                self.report_one(&view, &*decisions, taken, clock.now()).await;
            }
            if stopping {
                return;
            }
        }
    }

    async fn report_one(&self, view: &GatewayView, decisions: &dyn Decisions, taken: Taken, until: UnixMillis) {
        // A link that the view has forgotten ended long ago; nobody reads its counters.
        let Some(link) = view.link(taken.link) else { return };
        let Ok(permit) = admission::record_permit(&link, view.freshness().position, until) else { return };
        let attempts = taken.by_code.iter().map(|OfCode { code, count, requests }| BlockedAttempts {
            code: (*code).to_owned(),
            count: *count,
            requests: requests.clone(),
        });
        let blocked = Blocked { link: taken.link, attempts: attempts.collect(), since: taken.since, until };
        match decisions.record_blocked(&permit, blocked).await {
            Ok(()) => metric::blocked_report("recorded"),
            Err(_) => {
                metric::blocked_report("failed");
                self.put_back(taken, until);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use envforge_domain::commit::Position;
    use envforge_domain::ids::CorrelationId;
    use uuid::Uuid;

    fn link(number: u128) -> LinkId {
        LinkId::from_uuid(Uuid::from_u128(number))
    }

    const fn at(second: u64) -> UnixMillis {
        UnixMillis::new(second * 1_000)
    }

    fn sums(taken: &Taken) -> Vec<(&'static str, u32)> {
        taken.by_code.iter().map(|of_code| (of_code.code, of_code.count)).collect()
    }

    #[test]
    fn attempts_are_summed_by_link_and_code_and_taken_once() {
        let counters = BlockedCounters::new();
        for _ in 0..3 {
            counters.count(link(1), Denial::RouteNotIncluded, None, at(5));
        }
        counters.count(link(1), Denial::ForeignOrigin, None, at(6));
        let taken = counters.take(at(7), false);
        assert_eq!(taken.len(), 1);
        assert_eq!(taken[0].since, at(5));
        assert_eq!(sums(&taken[0]), [("route_not_included", 3), ("foreign_origin", 1)]);
        assert!(counters.take(at(10_000), true).is_empty());
    }

    #[test]
    fn what_could_not_be_reported_is_counted_on() {
        let counters = BlockedCounters::new();
        counters.count(link(1), Denial::RouteNotIncluded, None, at(5));
        let taken = counters.take(at(7), false).pop().unwrap();
        counters.count(link(1), Denial::RouteNotIncluded, None, at(8));
        counters.count(link(1), Denial::ForeignSite, None, at(8));
        counters.put_back(taken, at(9));
        let again = counters.take(at(9), false).pop().unwrap();
        assert_eq!((again.since, sums(&again)), (at(5), vec![("route_not_included", 2), ("foreign_site", 1)]));
    }

    #[test]
    fn who_goes_on_and_on_is_reported_ever_more_rarely_until_a_pause() {
        let counters = BlockedCounters::new();
        let mut reports = Vec::new();
        for second in 0..24 * 3_600 {
            counters.count(link(1), Denial::RouteNotIncluded, None, at(second));
            if !counters.take(at(second), false).is_empty() {
                reports.push(second);
            }
        }
        assert_eq!(reports[..5], [0, 20, 60, 140, 300]);
        assert!(reports.len() < 35, "{} reports in a day", reports.len());
        // Long quiet, then again: the first report comes at once.
        assert!(counters.take(at(40 * 3_600), false).len() <= 1);
        assert!(counters.take(at(60 * 3_600), false).is_empty());
        counters.count(link(1), Denial::RouteNotIncluded, None, at(60 * 3_600));
        assert_eq!(counters.take(at(60 * 3_600), false).len(), 1);
    }

    #[test]
    fn attackers_raise_numbers_and_not_memory() {
        let counters = BlockedCounters::new();
        for index in 0..2 * LINKS_MAX as u128 {
            counters.count(link(index), Denial::AmbiguousPath, None, at(5));
        }
        assert_eq!(counters.counts.lock().len(), LINKS_MAX);
        assert_eq!(counters.take(at(5), false).len(), REPORTS_PER_ROUND_MAX);
        // A quiet link gives way to a new one.
        counters.count(link(u128::MAX), Denial::AmbiguousPath, None, at(5));
        assert!(counters.counts.lock().contains_key(&link(u128::MAX)));
    }

    #[test]
    fn the_newest_requests_of_a_kind_keep_their_names_also_where_they_were_put_back() {
        let named = |second: u64| {
            let request = CorrelationId::from_uuid(Uuid::from_u128(u128::from(second)));
            Some(RefusedRequest { request, at: at(second), position: Position::new(second) })
        };
        let counters = BlockedCounters::new();
        for second in 1..=4 {
            counters.count(link(1), Denial::RouteNotIncluded, named(second), at(second));
        }
        let taken = counters.take(at(5), false).pop().unwrap();
        counters.count(link(1), Denial::RouteNotIncluded, named(5), at(5));
        counters.put_back(taken, at(6));
        let again = counters.take(at(6), false).pop().unwrap();
        let kept: Vec<_> = again.by_code[0].requests.iter().map(|request| request.at).collect();
        assert_eq!((again.by_code[0].count, kept), (5, vec![at(3), at(4), at(5)]));
    }
}
