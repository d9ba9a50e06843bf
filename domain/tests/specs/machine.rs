//! Machines: one organization, one purpose, one instance each, from the request to the end.

use envforge_domain::host::Capacity;
use envforge_domain::ids::HostId;
use envforge_domain::machine::*;
use envforge_domain::time::UnixMillis;
use proptest::prelude::*;

use crate::given::*;

fn terms(number: u128, of: u128) -> MachineTerms {
    MachineTerms {
        host: host(number),
        org: org(of),
        purpose: MachinePurpose::Runtime,
        provider: "aws-ec2".to_owned(),
        shape: "m7g.large".to_owned(),
        capacity: Capacity { cpu_millicores: 2_000, memory_mib: 8_192 },
    }
}

fn request() -> MachineCommand {
    MachineCommand::Request { terms: terms(1, 1), cause: MachineCause::Demand }
}

fn launched(instance: &str, of: u128, on: HostId) -> MachineCommand {
    MachineCommand::ReportLaunched { instance: instance.to_owned(), org: org(of), host: on }
}

fn stop() -> MachineCommand {
    MachineCommand::Stop { mode: StopMode::Hibernate, cause: MachineCause::Idle }
}

fn up() -> Given<Machine> {
    given::<Machine>([]).and(request()).and(launched("i-1", 1, host(1))).and(MachineCommand::ReportStarted)
}

#[test]
fn a_request_is_made_once_and_its_terms_never_change() {
    given::<Machine>([]).and(request()).when(request()).then_nothing();
    let smaller = MachineTerms { shape: "t4g.micro".to_owned(), ..terms(1, 1) };
    let other = MachineCommand::Request { terms: smaller, cause: MachineCause::Demand };
    up().when(other).then_refused("machine_requested");
    let theirs = MachineCommand::Request { terms: terms(1, 2), cause: MachineCause::Demand };
    up().when(theirs).then_refused("machine_cross_organization");
}

#[test]
fn an_instance_whose_tags_name_another_organization_or_host_is_not_the_machines() {
    let requested = || given::<Machine>([]).and(request());
    requested().when(launched("i-1", 2, host(1))).then_refused("machine_cross_organization");
    requested().when(launched("i-1", 1, host(2))).then_refused("machine_cross_organization");
    up().when(launched("i-1", 2, host(1))).then_refused("machine_cross_organization");
}

#[test]
fn a_launch_counts_once_and_a_second_instance_is_refused() {
    up().when(launched("i-1", 1, host(1))).then_nothing();
    up().when(launched("i-2", 1, host(1))).then_refused("machine_other_instance");
    up().when(MachineCommand::ReportLaunchFailed { reason: "late".to_owned() }).then_refused("machine_other_instance");
}

#[test]
fn a_launch_that_failed_is_over() {
    let failed = given::<Machine>([]).and(request()).and(MachineCommand::ReportLaunchFailed { reason: "none".into() });
    assert_eq!(failed.state(), &Machine::Over { terms: terms(1, 1), instance: None });
    failed.when(launched("i-1", 1, host(1))).then_refused("machine_over");
}

#[test]
fn it_sleeps_as_it_was_asked_to_and_starts_again() {
    let off = up().and(stop()).and(MachineCommand::ReportStopped);
    off.when(MachineCommand::Start { cause: MachineCause::Demand })
        .then([MachineEvent::StartRequested { cause: MachineCause::Demand }]);
    up().and(stop()).when(MachineCommand::ReportStopped).then([MachineEvent::Stopped { mode: StopMode::Hibernate }]);
}

#[test]
fn a_start_that_failed_leaves_it_off_until_somebody_asks_again() {
    let failed =
        || MachineCommand::ReportStartFailed { why: StartFailure::Capacity, reason: "no m7g.large".to_owned() };
    let start = || MachineCommand::Start { cause: MachineCause::Demand };
    let starting = || up().and(stop()).and(MachineCommand::ReportStopped).and(start());
    starting()
        .when(failed())
        .then([MachineEvent::StartFailed { why: StartFailure::Capacity, reason: "no m7g.large".to_owned() }]);
    starting().and(failed()).when(failed()).then_nothing();
    starting().and(failed()).when(start()).then([MachineEvent::StartRequested { cause: MachineCause::Demand }]);
    up().when(failed()).then_nothing();
}

#[test]
fn whoever_needs_it_up_says_so_now_and_then_and_starts_nothing_by_it() {
    let needed = |at| MachineCommand::Use { cause: MachineCause::Logs, now: UnixMillis::new(at) };
    let told = |at| [MachineEvent::Used { cause: MachineCause::Logs, at: UnixMillis::new(at) }];
    let used = || up().and(needed(100_000));
    up().when(needed(100_000)).then(told(100_000));
    used().when(needed(114_999)).then_nothing();
    used().when(needed(115_000)).then(told(115_000));
    used().when(needed(99_999)).then(told(99_999));
    let stopping = || used().and(stop());
    stopping().when(needed(200_000)).then_nothing();
    stopping().and(MachineCommand::ReportStopped).when(needed(200_000)).then_nothing();
    let logs = || MachineCommand::Start { cause: MachineCause::Logs };
    let starting = || stopping().and(logs());
    stopping().when(logs()).then([MachineEvent::StartRequested { cause: MachineCause::Logs }]);
    starting().when(logs()).then_nothing();
    starting().when(needed(200_000)).then(told(200_000));
}

#[test]
fn a_hibernation_that_is_refused_becomes_a_stop() {
    let plain = || MachineCommand::Stop { mode: StopMode::Stop, cause: MachineCause::NoHibernation };
    let hibernating = || up().and(stop());
    hibernating()
        .when(plain())
        .then([MachineEvent::StopRequested { mode: StopMode::Stop, cause: MachineCause::NoHibernation }]);
    hibernating().and(plain()).when(stop()).then_nothing();
    hibernating()
        .and(plain())
        .when(MachineCommand::ReportStopped)
        .then([MachineEvent::Stopped { mode: StopMode::Stop }]);
}

#[test]
fn what_somebody_else_did_to_it_is_recorded_as_drift() {
    up().when(MachineCommand::ReportStopped).then([
        MachineEvent::StopRequested { mode: StopMode::Stop, cause: MachineCause::Drift },
        MachineEvent::Stopped { mode: StopMode::Stop },
    ]);
    up().and(stop())
        .and(MachineCommand::ReportStopped)
        .when(MachineCommand::ReportStarted)
        .then([MachineEvent::StartRequested { cause: MachineCause::Drift }, MachineEvent::Started]);
}

#[test]
fn what_its_status_checks_say_counts_once_and_for_as_long_as_it_is_up() {
    let checks = |failing| MachineCommand::ReportChecks { failing };
    up().when(checks(true)).then([MachineEvent::ChecksFailed]);
    up().when(checks(false)).then_nothing();
    let failing = || up().and(checks(true));
    failing().when(checks(true)).then_nothing();
    failing().when(checks(false)).then([MachineEvent::ChecksPassed]);
    let off = || failing().and(stop()).and(MachineCommand::ReportStopped);
    off().when(checks(true)).then_nothing();
    let again = off().and(MachineCommand::Start { cause: MachineCause::Demand }).and(MachineCommand::ReportStarted);
    again.when(checks(true)).then([MachineEvent::ChecksFailed]);
    given::<Machine>([]).and(request()).when(checks(true)).then_refused("machine_not_launched");
}

#[test]
fn it_ends_only_drained_and_empty() {
    let terminate = |placed| MachineCommand::Terminate { cause: MachineCause::Unused, placed };
    up().when(terminate(0)).then_refused("machine_not_draining");
    let drained = || up().and(MachineCommand::Drain { cause: MachineCause::Unused });
    drained().when(terminate(2)).then_refused("machine_not_empty");
    drained().when(terminate(0)).then([MachineEvent::TerminationRequested { cause: MachineCause::Unused }]);
    drained()
        .and(stop())
        .and(MachineCommand::ReportStopped)
        .when(MachineCommand::Start { cause: MachineCause::Demand })
        .then_refused("machine_leaving");
}

#[test]
fn a_strange_one_is_reported_once_and_never_becomes_a_machine() {
    let report = || MachineCommand::ReportStrange { instance: "i-9".to_owned(), reason: "nobody asked".to_owned() };
    let strange = || given::<Machine>([]).and(report());
    strange().when(report()).then_nothing();
    strange().when(launched("i-9", 1, host(1))).then_refused("machine_unknown");
    strange().when(request()).then_refused("machine_unknown");
}

proptest! {
    /// Whatever was accepted evolves, and organization, purpose and instance stay what they were.
    #[test]
    fn any_accepted_history_evolves(steps in prop::collection::vec((0..14u8, 1..3u128, 0..2usize), 1..60)) {
        let commands = steps.into_iter().map(|(verb, number, placed)| match verb {
            0 => request(),
            1 => launched(&format!("i-{number}"), number, host(1)),
            2 => MachineCommand::ReportLaunchFailed { reason: "none".to_owned() },
            3 => MachineCommand::Start { cause: MachineCause::Demand },
            4 => MachineCommand::ReportStarted,
            5 => stop(),
            6 => MachineCommand::ReportStopped,
            7 => MachineCommand::ReportUnhealthy { reason: "silent".to_owned() },
            8 => MachineCommand::Drain { cause: MachineCause::Unhealthy },
            9 => MachineCommand::Terminate { cause: MachineCause::Unhealthy, placed },
            10 => MachineCommand::ReportTerminated { end: MachineEnd::Vanished },
            11 => MachineCommand::ReportStartFailed { why: StartFailure::StoppedAgain, reason: "key".to_owned() },
            12 => MachineCommand::Use { cause: MachineCause::Shell, now: UnixMillis::new(number as u64 * 20_000) },
            13 => MachineCommand::ReportChecks { failing: placed > 0 },
            _ => MachineCommand::Request { terms: terms(1, number), cause: MachineCause::WarmPool },
        });
        histories::<Machine>([request()].into_iter().chain(commands), |before, after| {
            if let (Some(before), Some(after)) = (before.terms(), after.terms()) {
                prop_assert_eq!(before, after);
            }
            if let (Some(before), Some(after)) = (before.instance(), after.instance()) {
                prop_assert_eq!(before, after);
            }
            let revived = matches!((before, after), (Machine::Over { .. }, Machine::Live(_)));
            prop_assert!(!revived);
            Ok(())
        })?;
    }
}
