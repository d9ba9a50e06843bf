//! What the planner ends, and what it keeps: disks on which people's work may lie.

use envforge_domain::failures::Failures;
use envforge_domain::machine::{Machine, MachineCause, MachinePurpose, Power};
use envforge_domain::time::{Millis, UnixMillis};
use envforge_reactors::fleet::{Demand, FleetPolicy, OrganizationFleet, Step, Token, WhyGivenUp, plan};

use super::*;

const NEEDS: Capacity = Capacity { cpu_millicores: 1_000, memory_mib: 3_000 };
const HOUR: Millis = Millis::from_hours(1);
/// Of an agent, and of a boot.
const DEADLINE: Millis = Millis::from_minutes(15);
const BOOT: Millis = Millis::from_minutes(5);

fn ago(length: Millis) -> UnixMillis {
    NOON.minus(length)
}

fn on(number: u128) -> MachineView {
    MachineView { up_at: ago(HOUR), heard_at: ago(Millis::from_minutes(20)), ..up(number) }
}

fn up(number: u128) -> MachineView {
    view(Machine::Live(live(number, 1, Power::On)), &[], NOON)
}

/// For so long, while others got through and in all.
fn missed(length: Millis, machine: MachineView) -> MachineView {
    MachineView { away: length, missed_for: length, ..machine }
}

/// It was stopped and started half an hour ago, and its agent has not come since.
fn started_in_vain(machine: MachineView) -> MachineView {
    let (stopped, up_at) = (Some(ago(Millis::from_minutes(31))), ago(Millis::from_minutes(30)));
    MachineView { stopped_as_unhealthy_at: stopped, up_at, heard_at: ago(HOUR), ..machine }
}

fn lapsed(ready_for: Option<Millis>, machine: MachineView) -> MachineView {
    let token = Token::Needed { ready_since: ready_for.map(ago) };
    MachineView { agent: AgentState::Lapsed, token, ..machine }
}

fn shells(mut machine: MachineView) -> MachineView {
    if let Machine::Live(live) = &mut machine.state {
        live.terms.purpose = MachinePurpose::Shell;
    }
    MachineView { purpose: MachinePurpose::Shell, ..machine }
}

/// What is planned beside the machine for shells, which is well.
fn steps(machines: Vec<MachineView>) -> Vec<Step> {
    plan(&fleet(1, machines), &policy(), NOON).steps
}

fn stop(number: u128) -> Step {
    Step::Stop { host: host(number), mode: STOP, cause: MachineCause::Unhealthy }
}

fn given_up(number: u128) -> Step {
    Step::GiveUp { host: host(number), why: WhyGivenUp::AgentAway { deadline: DEADLINE } }
}

fn demand() -> Demand {
    Demand { workspace: workspace(1), org: org(1), needs: NEEDS, before: Some(host(1)), taken_by: None }
}

fn is_request(step: &Step) -> bool {
    matches!(step, Step::Request { .. })
}

fn ends(step: &Step) -> bool {
    matches!(
        step,
        Step::GiveUp { .. }
            | Step::GiveUpChecks { .. }
            | Step::Drain { .. }
            | Step::Terminate { .. }
            | Step::Stop { .. }
    )
}

#[test]
fn a_machine_whose_agent_is_missed_is_stopped_once_and_goes_only_where_that_did_not_help() {
    let short = Millis::new(DEADLINE.get() - 1);
    assert_eq!(steps(vec![missed(short, on(1))]), []);
    assert_eq!(steps(vec![missed(DEADLINE, on(1))]), [stop(1)]);
    assert_eq!(steps(vec![missed(DEADLINE, started_in_vain(on(1)))]), [given_up(1)]);
    assert_eq!(steps(vec![missed(short, started_in_vain(on(1)))]), []);
    // It helped: the agent came, and is missed anew.
    let helped = MachineView { heard_at: ago(Millis::from_minutes(20)), ..started_in_vain(on(1)) };
    assert_eq!(steps(vec![missed(DEADLINE, helped)]), [stop(1)]);
    // The stop was long ago.
    let yesterday =
        MachineView { stopped_as_unhealthy_at: Some(ago(Millis::from_hours(24))), ..started_in_vain(on(1)) };
    assert_eq!(steps(vec![missed(DEADLINE, yesterday)]), [stop(1)]);
    // What may be awake there goes on, and nobody's shell is cut off.
    let held = |machine: MachineView| MachineView { placed: [(workspace(7), NEEDS)].into(), ..machine };
    let stale = |machine: MachineView| MachineView { stale: [workspace(7)].into(), ..held(machine) };
    assert_eq!(steps(vec![missed(HOUR, held(on(1)))]), []);
    assert_eq!(steps(vec![missed(HOUR, held(started_in_vain(on(1))))]), []);
    assert_eq!(steps(vec![missed(HOUR, stale(on(1)))]), [stop(1)]);
    assert_eq!(steps(vec![missed(HOUR, MachineView { open_shells: 1, ..on(1) })]), []);
}

#[test]
fn while_no_agent_gets_through_nothing_is_stopped_or_ended() {
    // For hours, and not for long while another one got through.
    let out = |machine: MachineView| MachineView {
        away: Millis::from_minutes(1),
        missed_for: Millis::from_hours(9),
        ..machine
    };
    let all = |machines: Vec<MachineView>| {
        let shell = out(shells(on(91)));
        let machines = machines.into_iter().map(out).chain([shell]).collect();
        plan(&OrganizationFleet { machines, ..fleet(1, vec![]) }, &policy(), NOON).steps
    };
    assert_eq!(all(vec![on(1), on(2)]), []);
    assert_eq!(all(vec![lapsed(Some(HOUR), on(1)), lapsed(Some(HOUR), on(2))]), []);
    let planned = all(vec![started_in_vain(on(1)), lapsed(Some(HOUR), started_in_vain(on(2)))]);
    assert!(!planned.iter().any(ends), "{planned:?}");
    // Of a stop and a start before the way in failed, too.
    let none = |machine: MachineView| plan(&fleet(1, vec![out(machine)]), &policy(), NOON).steps;
    assert_eq!(none(started_in_vain(on(1))), []);
}

#[test]
fn a_machine_is_given_up_only_once_another_one_of_its_organization_came_the_same_way() {
    let lost = || missed(DEADLINE, started_in_vain(on(1)));
    let beside = |other: MachineView| {
        let machines = vec![lost(), shells(other)];
        plan(&OrganizationFleet { machines, ..fleet(1, vec![]) }, &policy(), NOON).steps
    };
    assert_eq!(beside(up(2)), [given_up(1)]);
    assert_eq!(beside(MachineView { heard_at: ago(HOUR), ..on(2) }), [], "it came before");
    assert_eq!(beside(missed(Millis::from_minutes(1), on(2))), [], "it is missed, too");
    assert_eq!(beside(lapsed(None, up(2))), []);
    let off = view(Machine::Live(live(2, 1, Power::Off(STOP))), &[], NOON);
    assert!(!beside(off).iter().any(ends));
    // One after the other, and the next one once those that come are here.
    let second = || missed(DEADLINE, started_in_vain(on(2)));
    assert_eq!(steps(vec![lost(), second()]), [given_up(1)]);
    for unsettled in [
        MachineView { agent: AgentState::Awaited, up_at: NOON, ..up(3) },
        view(Machine::Live(live(3, 1, Power::Starting)), &[], NOON),
        view(Machine::Requested { terms: terms(3, 1) }, &[], NOON),
    ] {
        assert_eq!(steps(vec![lost(), unsettled]), []);
    }
}

#[test]
fn an_agent_whose_certificate_has_ended_costs_no_disk_before_others_have_enrolled() {
    // However long it has not enrolled: nobody looked, since what agents connect to is away.
    assert_eq!(steps(vec![lapsed(Some(Millis::from_hours(9)), on(1))]), []);
    assert_eq!(steps(vec![lapsed(None, on(1))]), []);
    assert_eq!(steps(vec![missed(DEADLINE, lapsed(Some(BOOT), on(1)))]), [stop(1)]);
    let lost = |ready_for| missed(DEADLINE, lapsed(ready_for, started_in_vain(on(1))));
    let enrolled = |length| MachineView { enrolled_at: ago(length), ..shells(up(2)) };
    let beside = |ready_for, other| {
        let machines = vec![lost(ready_for), other];
        plan(&OrganizationFleet { machines, ..fleet(1, vec![]) }, &policy(), NOON).steps
    };
    let minutes = |minutes| Some(Millis::from_minutes(minutes));
    assert_eq!(beside(minutes(10), enrolled(Millis::from_minutes(9))), [given_up(1)]);
    assert_eq!(beside(minutes(10), enrolled(Millis::from_minutes(11))), [], "none has enrolled since");
    assert_eq!(beside(minutes(4), enrolled(Millis::from_minutes(3))), [], "it has as long as any");
    assert_eq!(beside(None, enrolled(Millis::from_minutes(3))), [], "nothing lies there for it to enrol with");
    // Two of them do not wait for each other.
    let two =
        vec![lost(minutes(10)), MachineView { host: host(3), state: on(3).state, ..lost(minutes(10)) }, enrolled(BOOT)];
    assert_eq!(plan(&OrganizationFleet { machines: two, ..fleet(1, vec![]) }, &policy(), NOON).steps, [given_up(1)]);
}

#[test]
fn the_only_machine_of_all_is_stopped_and_started_and_never_ended() {
    let shell = |machine| {
        let only = MachineView { missed_for: DEADLINE, away: Millis::from_minutes(1), ..shells(machine) };
        OrganizationFleet { machines: vec![only], agents_wanted: 1, ..fleet(1, vec![]) }
    };
    let planned = |fleet: &OrganizationFleet| plan(fleet, &policy(), NOON).steps;
    assert_eq!(planned(&shell(on(1))), [stop(1)]);
    // People get another machine for their shells beside it, whose agent shows whether the way in fails.
    let lost = shell(started_in_vain(on(1)));
    let another = planned(&lost);
    let [Step::Request { terms, .. }] = another.as_slice() else { panic!("{another:?}") };
    assert_eq!(terms.purpose, MachinePurpose::Shell);
    let mut both = lost.clone();
    both.machines.push(shells(up(2)));
    assert_eq!(planned(&both), []);
    both.machines[0] = missed(DEADLINE, both.machines[0].clone());
    assert_eq!(planned(&both), [given_up(1)]);
    // Among several it is not this that decides.
    let several = OrganizationFleet { agents_wanted: 2, ..shell(on(1)) };
    assert_eq!(planned(&several), []);
}

#[test]
fn a_machine_to_which_nobody_gets_through_takes_no_place_from_one_that_serves() {
    let one = FleetPolicy { machines_max: 1, shell_shape: None, ..policy() };
    let planned = |machine| {
        let fleet = OrganizationFleet { machines: vec![machine], demands: vec![demand()], ..fleet(1, vec![]) };
        plan(&fleet, &one, NOON).steps
    };
    assert!(planned(missed(Millis::from_minutes(7), on(1))).is_empty(), "no wake is led there");
    assert!(planned(missed(DEADLINE, started_in_vain(on(1)))).iter().any(is_request));
}

#[test]
fn a_machine_that_was_stopped_while_its_agent_was_missed_is_started_as_any_other() {
    for power in [Power::Off(STOP), Power::Stopping(STOP)] {
        let stopped = missed(Millis::from_minutes(7), view(Machine::Live(live(1, 1, power)), &[], NOON));
        let fleet = OrganizationFleet { demands: vec![demand()], ..fleet(1, vec![stopped]) };
        let start = Step::Start { host: host(1), cause: MachineCause::Demand };
        assert_eq!(plan(&fleet, &policy(), NOON).steps, [start]);
    }
    let starting = missed(HOUR, view(Machine::Live(live(1, 1, Power::Starting)), &[], NOON));
    let fleet = OrganizationFleet { demands: vec![demand()], ..fleet(1, vec![starting]) };
    assert_eq!(plan(&fleet, &policy(), NOON).steps, [], "it is waited for");
}

#[test]
fn only_a_machine_that_stops_again_for_long_while_others_come_up_is_replaced() {
    let series = |every: Millis, times: u64| {
        let mut failures = Failures::default();
        (0..times).for_each(|number| failures.add(NOON.plus(Millis::new(every.get() * number))));
        failures
    };
    let drained = |failures, stopped_again, other_up_after: Millis| {
        let mut machine = view(Machine::Live(live(1, 1, Power::Off(STOP))), &[], NOON);
        (machine.starts.failures, machine.starts.stopped_again) = (failures, stopped_again);
        let mut fleet = fleet(1, vec![machine]);
        fleet.machines[1].up_at = NOON.plus(other_up_after);
        let planned = plan(&fleet, &policy(), NOON.plus(Millis::from_hours(24))).steps;
        planned == [Step::Drain { host: host(1), cause: MachineCause::Unhealthy }]
    };
    let (eight, none) = (series(HOUR, 8), Failures::default());
    assert!(drained(eight, eight, HOUR));
    assert!(!drained(eight, none, HOUR), "a quota, a right or no capacity says nothing of the machine");
    assert!(!drained(eight, eight, Millis::ZERO), "no other one came up: it may be the key of all");
    assert!(!drained(series(Millis::from_minutes(30), 8), series(Millis::from_minutes(30), 8), HOUR));
    assert!(!drained(eight, series(Millis::from_hours(6), 2), HOUR), "two in six hours are not six hours of failing");
    // Seven of last week and one of today are eight, and no series.
    let mut apart = series(Millis::from_minutes(15), 7);
    apart.add(NOON.plus(Millis::from_hours(7 * 24)));
    assert!(!drained(apart, apart, HOUR));
}
