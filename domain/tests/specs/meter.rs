//! The meter: integer milliseconds from ready to sleep requested.

use std::collections::BTreeMap;

use envforge_domain::meter::*;
use envforge_domain::runtime::*;
use envforge_domain::time::Millis;
use proptest::prelude::*;

use crate::given::*;

const HOUR: u64 = 3_600_000;

fn ready(epoch: u64, lease_until: u64) -> RuntimeEvent {
    RuntimeEvent::Ready {
        epoch: Epoch(epoch),
        commit: String::new(),
        services: vec![ReadyService { name: service("web"), cpu_millicores: 250, memory_mib: 128 }],
        lease_until: at(lease_until),
    }
}

fn renewed(lease_until: u64) -> RuntimeEvent {
    RuntimeEvent::LeaseRenewed { epoch: Epoch(1), lease_until: at(lease_until) }
}

fn sleep_requested() -> RuntimeEvent {
    RuntimeEvent::SleepRequested { epoch: Epoch(1), cause: SleepCause::Person(user(1)) }
}

fn run(events: &[(u64, RuntimeEvent)]) -> BTreeMap<UsageKey, Usage> {
    let mut meter = RuntimeMeter::default();
    let mut rows = BTreeMap::new();
    for (time, event) in events {
        rows.extend(meter.apply(event, at(*time)));
    }
    rows
}

fn total(rows: &BTreeMap<UsageKey, Usage>) -> u64 {
    rows.values().map(|usage| usage.service_ms).sum()
}

#[test]
fn time_counts_from_ready_to_sleep_requested() {
    let rows = run(&[
        (1_000, ready(1, 100_000)),
        (61_000, sleep_requested()),
        (65_000, RuntimeEvent::Slept { epoch: Epoch(1) }),
    ]);
    let usage = rows.values().next().unwrap();
    assert_eq!((usage.service_ms, usage.millicore_ms, usage.mib_ms), (60_000, 60_000 * 250, 60_000 * 128));
}

#[test]
fn waking_and_failed_wakes_cost_nothing() {
    let wake = RuntimeEvent::WakeRequested {
        epoch: Epoch(1),
        workspace: workspace(1),
        project: project(1),
        cause: WakeCause::Person(user(1)),
    };
    let failed = RuntimeEvent::Failed { epoch: Epoch(1), stage: Some(WakeStage::Starting), reason: String::new() };
    assert!(run(&[(0, wake), (90_000, failed)]).is_empty());
}

#[test]
fn a_host_that_died_is_counted_to_its_last_heartbeat() {
    let lost = RuntimeEvent::Lost { epoch: Epoch(1), closed_at: at(50_000) };
    let rows = run(&[(0, ready(1, 30_000)), (20_000, renewed(50_000)), (99_000, lost)]);
    assert_eq!(total(&rows), 20_000);
}

#[test]
fn nothing_is_counted_beyond_the_lease() {
    assert_eq!(total(&run(&[(0, ready(1, 30_000)), (90_000, sleep_requested())])), 30_000);
}

#[test]
fn hours_are_split_and_add_up() {
    let rows = run(&[(HOUR - 1_000, ready(1, 10 * HOUR)), (3 * HOUR + 5, sleep_requested())]);
    let hours: Vec<_> = rows.iter().map(|(key, usage)| (key.hour.0, usage.service_ms)).collect();
    assert_eq!(hours, [(0, 1_000), (1, HOUR), (2, HOUR), (3, 5)]);
}

proptest! {
    /// However often leases are renewed in between, the sum is the same, and rows only grow until they close.
    #[test]
    fn renewals_do_not_change_what_is_billed(start in 0..10 * HOUR, length in 1..5 * HOUR, renewals in prop::collection::vec(1..5 * HOUR, 0..20)) {
        let end = start + length;
        let lease = end + HOUR;
        let mut times: Vec<_> = renewals.into_iter().map(|offset| start + offset).filter(|time| *time < end).collect();
        times.sort_unstable();
        let mut events = vec![(start, ready(1, lease))];
        events.extend(times.into_iter().map(|time| (time, renewed(lease))));
        events.push((end, sleep_requested()));
        prop_assert_eq!(total(&run(&events)), length);
        let oracle = (start..end).step_by(HOUR as usize).count();
        prop_assert!(run(&events).len() <= oracle + 1);
        prop_assert_eq!(Millis::new(length), at(end).since(at(start)));
    }
}
