//! Runtimes.

use envforge_domain::runtime::*;
use envforge_domain::time::{Millis, UnixMillis};
use proptest::prelude::*;

use crate::given::*;

fn wake(cause: WakeCause) -> RuntimeCommand {
    RuntimeCommand::RequestWake { workspace: workspace(1), project: project(1), cause, workspace_active: true }
}

fn by_person() -> WakeCause {
    WakeCause::Person(user(1))
}

fn by_link() -> WakeCause {
    WakeCause::Link { link: link(1), session: session(1) }
}

fn requested(epoch: u64, cause: WakeCause) -> RuntimeEvent {
    RuntimeEvent::WakeRequested { epoch: Epoch(epoch), workspace: workspace(1), project: project(1), cause }
}

fn chosen(epoch: u64) -> RuntimeEvent {
    RuntimeEvent::HostChosen { epoch: Epoch(epoch), host: host(1) }
}

fn choose(epoch: u64, number: u128) -> RuntimeCommand {
    RuntimeCommand::ChooseHost { epoch: Epoch(epoch), host: host(number) }
}

fn ready(epoch: u64, lease_until: u64) -> RuntimeEvent {
    RuntimeEvent::Ready {
        epoch: Epoch(epoch),
        commit: "c0ffee".to_owned(),
        services: vec![],
        lease_until: at(lease_until),
    }
}

fn report_ready(epoch: u64) -> RuntimeCommand {
    RuntimeCommand::ReportReady {
        epoch: Epoch(epoch),
        commit: "c0ffee".to_owned(),
        host: host(1),
        services: vec![],
        endpoints: vec![],
        lease_until: at(30_000),
    }
}

fn sleep(cause: SleepCause, now: u64) -> RuntimeCommand {
    RuntimeCommand::RequestSleep { cause, now: at(now) }
}

fn idle() -> SleepCause {
    SleepCause::Idle { idle_for: Millis::from_minutes(15) }
}

#[test]
fn many_wakes_at_once_are_one_wake() {
    given::<Runtime>([]).when(wake(by_link())).then([requested(1, by_link())]);
    given::<Runtime>([requested(1, by_link())]).when(wake(by_person())).then_nothing();
    given::<Runtime>([requested(1, by_link()), ready(1, 30_000)]).when(wake(by_person())).then_nothing();
}

#[test]
fn a_wake_while_going_to_sleep_is_queued_once_and_follows() {
    let sleeping = || {
        [requested(1, by_person()), ready(1, 30_000), RuntimeEvent::SleepRequested { epoch: Epoch(1), cause: idle() }]
    };
    given::<Runtime>(sleeping()).when(wake(by_link())).then([RuntimeEvent::WakeQueued { cause: by_link() }]);
    given::<Runtime>(sleeping()).and(wake(by_link())).when(wake(by_person())).then_nothing();
    given::<Runtime>(sleeping())
        .and(wake(by_link()))
        .when(RuntimeCommand::ReportSlept { epoch: Epoch(1), host: host(1) })
        .then([RuntimeEvent::Slept { epoch: Epoch(1) }, requested(2, by_link())]);
}

#[test]
fn an_archived_workspace_is_not_woken() {
    given::<Runtime>([])
        .when(RuntimeCommand::RequestWake {
            workspace: workspace(1),
            project: project(1),
            cause: by_link(),
            workspace_active: false,
        })
        .then_refused("workspace_archived");
}

#[test]
fn what_a_host_says_of_an_older_wake_changes_nothing() {
    let second = || {
        [
            requested(1, by_person()),
            RuntimeEvent::Failed { epoch: Epoch(1), stage: None, reason: String::new() },
            requested(2, by_person()),
        ]
    };
    given::<Runtime>(second()).when(report_ready(1)).then_refused("runtime_other_epoch");
    given::<Runtime>(second())
        .when(RuntimeCommand::ReportFailed { epoch: Epoch(1), host: host(1), reason: "x".to_owned() })
        .then_refused("runtime_other_epoch");
}

#[test]
fn stages_only_go_forward() {
    let probing =
        || [requested(1, by_person()), RuntimeEvent::StageReached { epoch: Epoch(1), stage: WakeStage::Probing }];
    given::<Runtime>(probing())
        .when(RuntimeCommand::ReportStage { epoch: Epoch(1), stage: WakeStage::Starting })
        .then_nothing();
}

#[test]
fn keeping_awake_puts_off_idle_sleep_but_not_a_persons() {
    let kept = || {
        [
            requested(1, by_person()),
            ready(1, 30_000),
            RuntimeEvent::KeptAwake { until: at(9_000), reason: "demo".to_owned(), by: user(1) },
        ]
    };
    given::<Runtime>(kept()).when(sleep(idle(), 8_999)).then_refused("runtime_kept_awake");
    given::<Runtime>(kept())
        .when(sleep(idle(), 9_000))
        .then([RuntimeEvent::SleepRequested { epoch: Epoch(1), cause: idle() }]);
    let person = SleepCause::Person(user(1));
    given::<Runtime>(kept())
        .when(sleep(person.clone(), 10))
        .then([RuntimeEvent::SleepRequested { epoch: Epoch(1), cause: person }]);
}

#[test]
fn what_is_kept_awake_is_shortened_and_never_lengthened() {
    let kept = || {
        [
            requested(1, by_person()),
            ready(1, 30_000),
            RuntimeEvent::KeptAwake { until: at(9_000), reason: "demo".to_owned(), by: user(1) },
        ]
    };
    let shorten = |epoch, until| RuntimeCommand::ShortenKeepAwake { epoch: Epoch(epoch), until: at(until) };
    given::<Runtime>(kept()).when(shorten(1, 9_000)).then_nothing();
    given::<Runtime>(kept()).when(shorten(1, 9_001)).then_nothing();
    given::<Runtime>(kept()).when(shorten(2, 5_000)).then_refused("runtime_other_epoch");
    given::<Runtime>([requested(1, by_person()), ready(1, 30_000)]).when(shorten(1, 5_000)).then_nothing();
    given::<Runtime>(kept()).when(shorten(1, 5_000)).then([RuntimeEvent::KeepAwakeShortened { until: at(5_000) }]);
    let shortened = given::<Runtime>(kept()).and(shorten(1, 5_000));
    shortened.when(sleep(idle(), 5_000)).then([RuntimeEvent::SleepRequested { epoch: Epoch(1), cause: idle() }]);
}

#[test]
fn a_job_begins_in_a_ready_runtime_alone_and_puts_off_an_idle_sleep_that_was_due() {
    let begin = |now: u64| RuntimeCommand::BeginJob { at: at(now), by: user(1) };
    let seen = |now: u64| RuntimeEvent::ActivitySeen {
        epoch: Epoch(1),
        at: at(now),
        open_streams: 0,
        source: ActivitySource::Person(user(1)),
    };
    let awake = || given::<Runtime>([requested(1, by_person()), ready(1, 30_000)]);
    awake().when(begin(5)).then([seen(5)]);
    // Written even where it is no news: whoever sleeps it meanwhile conflicts.
    awake().and(begin(5)).when(begin(5)).then([seen(5)]);
    awake().and(begin(5)).when(begin(4)).then([seen(5)]);
    awake().and(begin(900_000)).when(sleep(idle(), 900_001)).then_nothing();
    let slept = [RuntimeEvent::SleepRequested { epoch: Epoch(1), cause: idle() }];
    awake().and(begin(5)).when(sleep(idle(), 900_005)).then(slept);
    given::<Runtime>([requested(1, by_person())]).when(begin(5)).then_refused("runtime_not_awake");
    awake().and(sleep(SleepCause::Person(user(1)), 5)).when(begin(6)).then_refused("runtime_not_awake");
}

#[test]
fn keeping_awake_has_the_organizations_cap() {
    let keep = |until: u64| RuntimeCommand::KeepAwake {
        until: at(until),
        reason: "demo".to_owned(),
        by: user(1),
        max: Millis::from_hours(1),
        now: at(1_000),
    };
    let awake = || [requested(1, by_person()), ready(1, 30_000)];
    given::<Runtime>(awake()).when(keep(1_000 + 3_600_001)).then_refused("keep_awake_too_long");
    given::<Runtime>(awake()).when(keep(1_000)).then_refused("keep_awake_in_the_past");
    given::<Runtime>([]).when(keep(2_000)).then_refused("runtime_not_awake");
}

#[test]
fn a_wake_whose_host_went_away_becomes_the_next_wake_of_the_same_cause() {
    let anew = |of: u128| RuntimeCommand::PlaceAnew { epoch: Epoch(1), host: host(of) };
    let waking = || [requested(1, by_person()), chosen(1)];
    given::<Runtime>(waking()).when(anew(1)).then([requested(2, by_person())]);
    given::<Runtime>(waking()).when(anew(2)).then_refused("runtime_other_host");
    given::<Runtime>(waking()).and(anew(1)).when(anew(1)).then_refused("runtime_other_epoch");
    given::<Runtime>([requested(1, by_person())]).when(anew(1)).then_nothing();
    given::<Runtime>([requested(1, by_person()), chosen(1), ready(1, 30_000)]).when(anew(1)).then_nothing();
}

#[test]
fn a_runtime_is_lost_only_after_its_lease_or_on_the_hosts_word() {
    let lost = |confirmed_by: Option<u128>, now: u64| RuntimeCommand::DeclareLost {
        epoch: Epoch(1),
        confirmed_by: confirmed_by.map(host),
        now: at(now),
    };
    let awake = || [requested(1, by_person()), chosen(1), ready(1, 30_000)];
    given::<Runtime>(awake()).when(lost(None, 29_999)).then_refused("lease_holds");
    given::<Runtime>(awake())
        .when(lost(None, 40_000))
        .then([RuntimeEvent::Lost { epoch: Epoch(1), closed_at: at(30_000) }]);
    given::<Runtime>(awake())
        .when(lost(Some(1), 10_000))
        .then([RuntimeEvent::Lost { epoch: Epoch(1), closed_at: at(10_000) }]);
}

#[test]
fn a_wake_belongs_to_the_host_that_was_chosen_first() {
    let waking = || [requested(1, by_link())];
    given::<Runtime>(waking()).when(choose(1, 1)).then([chosen(1)]);
    given::<Runtime>(waking()).and(choose(1, 1)).when(choose(1, 1)).then_nothing();
    given::<Runtime>(waking()).and(choose(1, 1)).when(choose(1, 2)).then_refused("runtime_other_host");
    given::<Runtime>(waking()).when(choose(2, 1)).then_refused("runtime_other_epoch");
    given::<Runtime>(waking())
        .and(sleep(SleepCause::Person(user(1)), 5))
        .when(choose(1, 1))
        .then_refused("runtime_not_awake");
}

#[test]
fn a_wake_that_no_host_has_taken_cannot_become_ready() {
    given::<Runtime>([requested(1, by_link())]).when(report_ready(1)).then_refused("runtime_other_host");
}

#[test]
fn only_the_chosen_host_is_believed() {
    let (epoch, other) = (Epoch(1), host(2));
    let sleeping = RuntimeEvent::SleepRequested { epoch, cause: idle() };
    let chosen_for_1 = || vec![requested(1, by_link()), chosen(1)];
    let ready_on_1 = || [chosen_for_1(), vec![ready(1, 30_000)]].concat();
    let asleep_on_1 = || [ready_on_1(), vec![sleeping.clone()]].concat();
    let failed = || RuntimeCommand::ReportFailed { epoch, host: other, reason: "broken".to_owned() };
    let RuntimeCommand::ReportReady { commit, services, endpoints, lease_until, .. } = report_ready(1) else {
        unreachable!("it is made so")
    };
    let ready_on_2 = || RuntimeCommand::ReportReady {
        epoch,
        commit: commit.clone(),
        host: other,
        services: services.clone(),
        endpoints: endpoints.clone(),
        lease_until,
    };
    for (history, command) in [
        (chosen_for_1(), ready_on_2()),
        (chosen_for_1(), failed()),
        (ready_on_1(), ready_on_2()),
        (ready_on_1(), failed()),
        (ready_on_1(), RuntimeCommand::RenewLease { epoch, host: other, lease_until: at(60_000) }),
        (ready_on_1(), RuntimeCommand::DeclareLost { epoch, confirmed_by: Some(other), now: at(1) }),
        (asleep_on_1(), RuntimeCommand::ReportSlept { epoch, host: other }),
    ] {
        given::<Runtime>(history).when(command).then_refused("runtime_other_host");
    }
    given::<Runtime>(asleep_on_1())
        .when(RuntimeCommand::ReportSlept { epoch, host: host(1) })
        .then([RuntimeEvent::Slept { epoch }]);
}

#[test]
fn a_runtime_that_became_ready_before_hosts_were_chosen_belongs_to_the_host_of_its_endpoints() {
    let bound = RuntimeEvent::EndpointsBound { epoch: Epoch(1), host: host(1), endpoints: vec![] };
    let history = || [requested(1, by_person()), ready(1, 30_000), bound.clone()];
    let renew = |number| RuntimeCommand::RenewLease { epoch: Epoch(1), host: host(number), lease_until: at(60_000) };
    given::<Runtime>(history()).when(renew(2)).then_refused("runtime_other_host");
    given::<Runtime>(history())
        .when(renew(1))
        .then([RuntimeEvent::LeaseRenewed { epoch: Epoch(1), lease_until: at(60_000) }]);
}

#[test]
fn a_failure_text_is_bounded_and_on_one_line() {
    let reason = format!("a\nb{}", "x".repeat(10_000));
    let events = given::<Runtime>([requested(1, by_person())])
        .when(RuntimeCommand::ReportFailed { epoch: Epoch(1), host: host(1), reason })
        .events();
    let RuntimeEvent::Failed { reason, stage, .. } = &events[0] else { panic!("{events:?}") };
    assert!(reason.chars().count() <= 400 && !reason.contains('\n'));
    assert_eq!(*stage, Some(WakeStage::Placed));
}

fn any_command() -> impl Strategy<Value = RuntimeCommand> {
    let epoch = (0..4u64).prop_map(Epoch);
    let time = (0..100_000u64).prop_map(UnixMillis::new);
    prop_oneof![
        3 => Just(wake(by_link())),
        3 => Just(wake(by_person())),
        1 => (epoch.clone(), 0..4usize).prop_map(|(epoch, stage)| RuntimeCommand::ReportStage {
            epoch,
            stage: [WakeStage::Placed, WakeStage::CheckingOut, WakeStage::Starting, WakeStage::Probing][stage].clone(),
        }),
        3 => (1..4u64, 1..3u128).prop_map(|(epoch, number)| choose(epoch, number)),
        3 => (1..4u64).prop_map(report_ready),
        1 => (epoch.clone(), time.clone()).prop_map(|(epoch, lease_until)| RuntimeCommand::RenewLease { epoch, host: host(1), lease_until }),
        1 => (epoch.clone(), time.clone()).prop_map(|(epoch, at)| RuntimeCommand::RecordActivity { epoch, at, open_streams: 0, source: ActivitySource::Link(link(1)) }),
        1 => time.clone().prop_map(|at| RuntimeCommand::BeginJob { at, by: user(1) }),
        1 => time.clone().prop_map(|until| RuntimeCommand::KeepAwake { until, reason: "r".to_owned(), by: user(1), max: Millis::from_hours(1), now: at(50) }),
        2 => time.clone().prop_map(|now| RuntimeCommand::RequestSleep { cause: idle(), now }),
        1 => (epoch.clone(), 1..3u128).prop_map(|(epoch, number)| RuntimeCommand::PlaceAnew { epoch, host: host(number) }),
        2 => (epoch.clone(), 1..3u128).prop_map(|(epoch, number)| RuntimeCommand::ReportSlept { epoch, host: host(number) }),
        1 => (epoch.clone(), 1..3u128).prop_map(|(epoch, number)| RuntimeCommand::ReportFailed { epoch, host: host(number), reason: "broken".to_owned() }),
        1 => (epoch, any::<bool>(), time).prop_map(|(epoch, confirms, now)| RuntimeCommand::DeclareLost { epoch, confirmed_by: confirms.then(|| host(1)), now }),
    ]
}

proptest! {
    /// Any accepted history evolves, epochs only grow, each wake has exactly one cause, and a queued wake is never lost.
    #[test]
    fn any_accepted_history_evolves(commands in prop::collection::vec(any_command(), 1..60)) {
        let mut wakes = 0;
        histories::<Runtime>(commands, |before, after| {
            prop_assert!(after.epoch() >= before.epoch());
            if after.epoch() > before.epoch() {
                wakes += 1;
                prop_assert_eq!(after.epoch(), Epoch(wakes));
                prop_assert!(matches!(after, Runtime::Waking { .. }), "a wake that is no wake: {:?}", after);
            }
            if matches!(before, Runtime::Sleeping { queued: Some(_), .. }) {
                let kept = matches!(after, Runtime::Sleeping { queued: Some(_), .. } | Runtime::Waking { .. });
                prop_assert!(kept, "a queued wake was lost: {:?}", after);
            }
            Ok(())
        })?;
    }
}
