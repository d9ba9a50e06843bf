//! Usage: rows as the domain's meter counts, whatever happens to the projector.

use envforge_domain::commit::{Actor, Position};
use envforge_domain::runtime::{Epoch, RuntimeCommand, SleepCause, WakeCause};
use envforge_domain::time::{Millis, UnixMillis};
use envforge_projections::sql::{GroupBy, Limit, ModelName, UsageFilter, UsageGroup, UsageTotals};

use crate::harness::{Harness, Kind};
use crate::world::*;

/// 250 millicores and 128 MiB for so many milliseconds.
fn totals(service_ms: u64) -> UsageTotals {
    UsageTotals { service_ms, millicore_ms: service_ms * 250, mib_ms: service_ms * 128 }
}

fn group(key: impl ToString, service_ms: u64) -> UsageGroup {
    UsageGroup { key: key.to_string(), totals: totals(service_ms), unrecorded_service_ms: 0 }
}

/// What is recorded, without what runs.
async fn usage(harness: &Harness, filter: UsageFilter, by: GroupBy) -> Vec<UsageGroup> {
    usage_at(harness, filter, by, UnixMillis::EPOCH).await
}

async fn usage_at(harness: &Harness, filter: UsageFilter, by: GroupBy, now: UnixMillis) -> Vec<UsageGroup> {
    harness.database.meter().usage(org_id(1), &filter, by, now, None, Limit::MAX).await.unwrap().items
}

fn sleep(world: &mut World, workspace: u32) {
    let command = RuntimeCommand::RequestSleep { cause: SleepCause::Person(user_id(1)), now: world.now };
    world.run(1, workspace, Actor::User(user_id(1)), &command).unwrap().unwrap();
}

/// Ready at 08:50 for a visitor of link 1, renewed each minute, asleep at 10:20: 90 minutes over three hours.
fn ninety_minutes() -> World {
    let mut world = World::acme();
    world.pass(50 * MINUTE);
    world.wake(1, 1, 1, WakeCause::Link { link: link_id(1), session: session_id(1) }).unwrap();
    world.ready(1, 1, 1).unwrap();
    for _ in 0..180 {
        world.pass(MINUTE / 2);
        world.renew(1, 1, 1, MINUTE).unwrap();
    }
    sleep(&mut world, 1);
    world
}

pub async fn usage_is_split_at_hours_and_attributed(kind: Kind) {
    let harness = Harness::new(kind).await;
    let world = ninety_minutes();
    let head = world.log.reveal_all();
    harness.project(&world.shared(), ModelName::Meter, head).await;
    let hour = |from: u64| UsageFilter {
        from: Some(UnixMillis::new(EIGHT + from * HOUR)),
        to: Some(UnixMillis::new(EIGHT + (from + 1) * HOUR)),
        ..Default::default()
    };
    for (from, minutes) in [(0, 10), (1, 60), (2, 20)] {
        let expected = [group("web", minutes * MINUTE), group("worker", minutes * MINUTE)];
        assert_eq!(usage(&harness, hour(from), GroupBy::Service).await, expected, "hour {from}");
    }
    assert!(usage(&harness, hour(3), GroupBy::Service).await.is_empty());
    let to = Some(UnixMillis::new(EIGHT + 1));
    let partial = UsageFilter { to, ..Default::default() };
    assert_eq!(usage(&harness, partial, GroupBy::Cause).await, [group("link", 20 * MINUTE)], "ends are whole hours");
    let all = UsageFilter::default();
    assert_eq!(usage(&harness, all.clone(), GroupBy::Link).await, [group(link_id(1), 180 * MINUTE)]);
    let now = world.now;
    let other = harness.database.meter().usage(org_id(2), &all, GroupBy::Service, now, None, Limit::MAX).await.unwrap();
    assert!(other.items.is_empty());
}

pub async fn a_lost_host_is_counted_to_its_last_heartbeat(kind: Kind) {
    let harness = Harness::new(kind).await;
    let mut world = World::acme();
    world.wake(1, 1, 1, WakeCause::Person(user_id(1))).unwrap();
    world.ready(1, 1, 1).unwrap();
    world.pass(20_000);
    world.renew(1, 1, 1, 30_000).unwrap();
    world.pass(10 * MINUTE);
    let lost = RuntimeCommand::DeclareLost { epoch: Epoch(1), confirmed_by: None, now: world.now };
    world.run(1, 1, system(), &lost).unwrap().unwrap();
    let head = world.log.reveal_all();
    harness.project(&world.shared(), ModelName::Meter, head).await;
    let all = UsageFilter::default();
    assert_eq!(usage(&harness, all, GroupBy::Cause).await, [group("person", 40_000)], "two services of 20 s");
    let running = harness.database.meter().running(org_id(1), world.now, None, Limit::MAX).await.unwrap();
    assert!(running.items.is_empty());
}

pub async fn a_restart_in_the_middle_of_an_interval_changes_nothing(kind: Kind) {
    let harness = Harness::new(kind).await;
    let world = ninety_minutes();
    let head = world.log.commits().len() as u64;
    let mut shown = 0;
    while shown < head {
        shown = (shown + 17).min(head);
        world.log.reveal_up_to(Position::new(shown));
        harness.project(&world.shared(), ModelName::Meter, Position::new(shown)).await;
    }
    let all = UsageFilter::default();
    assert_eq!(usage(&harness, all, GroupBy::Link).await, [group(link_id(1), 180 * MINUTE)]);
}

pub async fn what_runs_now_is_estimated_beyond_the_recorded(kind: Kind) {
    let harness = Harness::new(kind).await;
    let mut world = World::acme();
    world.wake(1, 1, 1, WakeCause::Person(user_id(2))).unwrap();
    world.ready(1, 1, 1).unwrap();
    world.pass(20_000);
    world.renew(1, 1, 1, 30_000).unwrap();
    let head = world.log.reveal_all();
    harness.project(&world.shared(), ModelName::Meter, head).await;
    let running = async |after_ms: u64| {
        let now = UnixMillis::new(EIGHT + 20_000 + after_ms);
        harness.database.meter().running(org_id(1), now, None, Limit::MAX).await.unwrap().items
    };
    let found = running(5_000).await;
    assert_eq!(found.iter().map(|usage| usage.service.as_str()).collect::<Vec<_>>(), ["web", "worker"]);
    assert_eq!((found[0].unrecorded, found[0].total), (totals(5_000), totals(25_000)));
    assert_eq!((found[0].workspace, found[0].since), (workspace_id(1), UnixMillis::new(EIGHT)));
    assert_eq!(found[0].cause, Some(WakeCause::Person(user_id(2))));
    assert_eq!(running(HOUR).await[0].unrecorded, totals(30_000), "never beyond the lease");
    let recorded = usage(&harness, UsageFilter::default(), GroupBy::Workspace).await;
    assert_eq!(recorded, [group(workspace_id(1), 40_000)]);
}

/// Two workspaces, one of them woken by a link shortly before nine, the other by a job; nobody gave a sign of life since.
async fn two_that_run(kind: Kind) -> (Harness, World) {
    let harness = Harness::new(kind).await;
    let mut world = World::acme();
    world.project(1, 2, 1).unwrap();
    world.workspace(1, 2, 2, 1).unwrap();
    world.pass(60 * MINUTE - 2_000);
    world.wake(1, 1, 1, WakeCause::Link { link: link_id(1), session: session_id(1) }).unwrap();
    world.ready(1, 1, 1).unwrap();
    world.wake(1, 2, 2, WakeCause::Job { name: "tests".into(), by: user_id(1) }).unwrap();
    world.ready(1, 2, 1).unwrap();
    let head = world.log.reveal_all();
    harness.project(&world.shared(), ModelName::Meter, head).await;
    (harness, world)
}

pub async fn what_runs_is_summed_up_before_anybody_heard_of_it_again(kind: Kind) {
    let (harness, world) = two_that_run(kind).await;
    let now = world.now.plus(Millis::from_secs(5));
    let running = |key: &dyn ToString, ms| UsageGroup { unrecorded_service_ms: ms, ..group(key.to_string(), ms) };
    let all = UsageFilter::default;
    assert!(usage(&harness, all(), GroupBy::Service).await.is_empty(), "nothing is recorded");
    let expected = [running(&"web", 10_000), running(&"worker", 10_000)];
    assert_eq!(usage_at(&harness, all(), GroupBy::Service, now).await, expected);
    let expected = [running(&"", 10_000), running(&link_id(1), 10_000)];
    assert_eq!(usage_at(&harness, all(), GroupBy::Link, now).await, expected);
    let expected = [running(&"job", 10_000), running(&"link", 10_000)];
    assert_eq!(usage_at(&harness, all(), GroupBy::Cause, now).await, expected);
    let expected = [running(&workspace_id(1), 10_000), running(&workspace_id(2), 10_000)];
    assert_eq!(usage_at(&harness, all(), GroupBy::Workspace, now).await, expected);
    let one = UsageFilter { project: Some(project_id(2)), ..all() };
    assert_eq!(usage_at(&harness, one, GroupBy::Project, now).await, [running(&project_id(2), 10_000)]);
    let one = UsageFilter { link: Some(link_id(1)), ..all() };
    assert_eq!(usage_at(&harness, one, GroupBy::Workspace, now).await, [running(&workspace_id(1), 10_000)]);
    let one = UsageFilter { workspace: Some(workspace_id(2)), ..all() };
    assert_eq!(usage_at(&harness, one, GroupBy::Cause, now).await, [running(&"job", 10_000)]);
    // Two seconds before nine, three after; and the pages go on in the database.
    let nine = UnixMillis::new(EIGHT + HOUR);
    let before = UsageFilter { to: Some(nine), ..all() };
    assert_eq!(
        usage_at(&harness, before, GroupBy::Cause, now).await,
        [running(&"job", 4_000), running(&"link", 4_000)]
    );
    let since = UsageFilter { from: Some(nine), ..all() };
    assert_eq!(usage_at(&harness, since, GroupBy::Cause, now).await, [running(&"job", 6_000), running(&"link", 6_000)]);
    let (meter, limit) = (harness.database.meter(), Limit::new(1).unwrap());
    let page = meter.usage(org_id(1), &all(), GroupBy::Cause, now, None, limit).await.unwrap();
    assert_eq!((page.items, page.next.as_deref()), (vec![running(&"job", 10_000)], Some("job")));
    let page = meter.usage(org_id(1), &all(), GroupBy::Cause, now, Some("job"), limit).await.unwrap();
    assert_eq!((page.items, page.next), (vec![running(&"link", 10_000)], None));
    let other = meter.usage(org_id(2), &all(), GroupBy::Cause, now, None, limit).await.unwrap();
    assert!(other.items.is_empty());
}

pub async fn a_sign_of_life_records_what_ran_and_counts_nothing_twice(kind: Kind) {
    let (harness, mut world) = two_that_run(kind).await;
    let sums = async |now| {
        let groups = usage_at(&harness, UsageFilter::default(), GroupBy::Cause, now).await;
        groups.iter().map(|group| (group.totals.service_ms, group.unrecorded_service_ms)).collect::<Vec<_>>()
    };
    let ready = world.now;
    assert_eq!(sums(ready.plus(Millis::from_secs(6))).await, [(12_000, 12_000), (12_000, 12_000)]);
    world.pass(4_000);
    world.renew(1, 1, 1, 30_000).unwrap();
    let head = world.log.reveal_all();
    harness.project(&world.shared(), ModelName::Meter, head).await;
    assert_eq!(sums(ready.plus(Millis::from_secs(6))).await, [(12_000, 12_000), (12_000, 4_000)]);
    // A clock that is behind takes nothing back, and nothing runs beyond its lease.
    assert_eq!(sums(ready).await, [(8_000, 0)]);
    sleep(&mut world, 1);
    let head = world.log.reveal_all();
    harness.project(&world.shared(), ModelName::Meter, head).await;
    assert_eq!(sums(ready.plus(Millis::from_secs(6))).await, [(12_000, 12_000), (8_000, 0)]);
}

pub async fn usage_is_summed_by_every_group(kind: Kind) {
    let harness = Harness::new(kind).await;
    let mut world = World::acme();
    world.project(1, 2, 1).unwrap();
    world.workspace(1, 2, 2, 1).unwrap();
    let causes =
        [(1, 1, WakeCause::Person(user_id(1))), (2, 2, WakeCause::Job { name: "tests".into(), by: user_id(1) })];
    for (project, workspace, cause) in causes {
        world.wake(1, project, workspace, cause).unwrap();
        world.ready(1, workspace, 1).unwrap();
        world.pass(10_000);
        sleep(&mut world, workspace);
    }
    let head = world.log.reveal_all();
    harness.project(&world.shared(), ModelName::Meter, head).await;
    let all = UsageFilter::default();
    assert_eq!(usage(&harness, all.clone(), GroupBy::Link).await, [group("", 40_000)]);
    let expected = [group("job", 20_000), group("person", 20_000)];
    assert_eq!(usage(&harness, all.clone(), GroupBy::Cause).await, expected);
    let expected = [group(project_id(1), 20_000), group(project_id(2), 20_000)];
    assert_eq!(usage(&harness, all.clone(), GroupBy::Project).await, expected);
    let expected = [group(workspace_id(1), 20_000), group(workspace_id(2), 20_000)];
    assert_eq!(usage(&harness, all.clone(), GroupBy::Workspace).await, expected);
    let one = UsageFilter { workspace: Some(workspace_id(2)), ..Default::default() };
    assert_eq!(usage(&harness, one, GroupBy::Service).await, [group("web", 10_000), group("worker", 10_000)]);
    let one = UsageFilter { project: Some(project_id(1)), ..Default::default() };
    assert_eq!(usage(&harness, one, GroupBy::Cause).await, [group("person", 20_000)]);
    let limit = Limit::new(1).unwrap();
    let now = world.now;
    let page = harness.database.meter().usage(org_id(1), &all, GroupBy::Cause, now, None, limit).await.unwrap();
    assert_eq!((page.items, page.next.as_deref()), (vec![group("job", 20_000)], Some("job")));
    let next = page.next.as_deref();
    let page = harness.database.meter().usage(org_id(1), &all, GroupBy::Cause, now, next, limit).await.unwrap();
    assert_eq!((page.items, page.next), (vec![group("person", 20_000)], None));
}
