//! Counts refused requests per link and reason, and hands the sums to the write side now and then.
//!
//! Bounded: an attacker can raise numbers, not memory and not the log. Not here: metrics of refusals without a link.

use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;
use envforge_domain::dev_link::{BLOCKED_KINDS_MAX, BlockedAttempts};
use envforge_domain::ids::LinkId;
use envforge_domain::time::{SharedClock, UnixMillis};
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

pub(crate) struct BlockedCounters {
    counts: Mutex<AHashMap<LinkId, LinkCounts>>,
}

struct LinkCounts {
    since: UnixMillis,
    by_code: Vec<(&'static str, u32)>,
}

impl BlockedCounters {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { counts: Mutex::default() })
    }

    pub(crate) fn count(&self, link: LinkId, denial: Denial, now: UnixMillis) {
        let mut counts = self.counts.lock();
        if counts.len() >= LINKS_MAX && !counts.contains_key(&link) {
            metric::blocked_report("dropped");
            return;
        }
        let entry = counts.entry(link).or_insert_with(|| LinkCounts { since: now, by_code: Vec::new() });
        let code = denial.code();
        let known = entry.by_code.iter().any(|(known, _)| *known == code);
        if !known && entry.by_code.len() >= BLOCKED_KINDS_MAX {
            metric::blocked_report("dropped");
            return;
        }
        match entry.by_code.iter_mut().find(|(known, _)| *known == code) {
            Some((_, count)) => *count = count.saturating_add(1),
            None => entry.by_code.push((code, 1)),
        }
    }

    fn take(&self, now: UnixMillis) -> Vec<Blocked> {
        let mut counts = self.counts.lock();
        let links: Vec<LinkId> = counts.keys().copied().take(REPORTS_PER_ROUND_MAX).collect();
        let taken = links.into_iter().filter_map(|link| counts.remove(&link).map(|entry| (link, entry)));
        taken
            .map(|(link, entry)| Blocked {
                link,
                attempts: entry
                    .by_code
                    .into_iter()
                    .map(|(code, count)| BlockedAttempts { code: code.to_owned(), count })
                    .collect(),
                since: entry.since,
                until: now,
            })
            .collect()
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
            for blocked in self.take(clock.now()) {
                let Some(link) = view.link(blocked.link) else { continue };
                let permit = match admission::record_permit(&link, view.freshness().position, blocked.until) {
                    Ok(permit) => permit,
                    Err(_) => continue,
                };
                let outcome = decisions.record_blocked(&permit, blocked).await;
                metric::blocked_report(if outcome.is_ok() { "recorded" } else { "failed" });
            }
            if stopping {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use uuid::Uuid;

    #[test]
    fn attempts_are_summed_by_link_and_code_and_taken_once() {
        let counters = BlockedCounters::new();
        let link = LinkId::from_uuid(Uuid::from_u128(1));
        for _ in 0..3 {
            counters.count(link, Denial::RouteNotIncluded, UnixMillis::new(5));
        }
        counters.count(link, Denial::ForeignOrigin, UnixMillis::new(6));
        let taken = counters.take(UnixMillis::new(u64::MAX));
        assert_eq!(taken.len(), 1);
        assert_eq!(taken[0].since, UnixMillis::new(5));
        let counts: Vec<(&str, u32)> = taken[0].attempts.iter().map(|a| (a.code.as_str(), a.count)).collect();
        assert_eq!(counts, [("route_not_included", 3), ("foreign_origin", 1)]);
        assert!(counters.take(UnixMillis::new(u64::MAX)).is_empty());
    }

    #[test]
    fn attackers_raise_numbers_and_not_memory() {
        let counters = BlockedCounters::new();
        for index in 0..2 * LINKS_MAX as u128 {
            counters.count(LinkId::from_uuid(Uuid::from_u128(index)), Denial::AmbiguousPath, UnixMillis::new(5));
        }
        assert_eq!(counters.counts.lock().len(), LINKS_MAX);
        assert_eq!(counters.take(UnixMillis::new(0)).len(), REPORTS_PER_ROUND_MAX);
    }
}
