//! What the planner says of one organization's fleet.

use envforge_domain::machine::{Machine, MachineCause, MachinePurpose, Power, StopMode};
use envforge_domain::time::{Millis, UnixMillis};
use envforge_reactors::fleet::{Demand, FleetPolicy, OrganizationFleet, PlanRefusal, Step, WhyGivenUp, plan};

use super::*;

const NEEDS: Capacity = Capacity { cpu_millicores: 1_000, memory_mib: 3_000 };

fn demand(number: u128, of: u128, needs: Capacity) -> Demand {
    Demand { workspace: workspace(number), org: org(of), needs, before: None, taken_by: None }
}

fn on(number: u128, of: u128) -> Machine {
    Machine::Live(live(number, of, Power::On))
}

fn off(number: u128, of: u128) -> Machine {
    Machine::Live(live(number, of, Power::Off(STOP)))
}

fn wanting(machines: Vec<MachineView>, demands: Vec<Demand>) -> OrganizationFleet {
    OrganizationFleet { demands, ..fleet(1, machines) }
}

fn steps(fleet: &OrganizationFleet) -> Vec<Step> {
    plan(fleet, &policy(), NOON).steps
}

#[test]
fn workspaces_are_packed_and_no_more_machines_asked_for_than_needed() {
    let demands = (1..=4).map(|number| demand(number, 1, NEEDS)).collect();
    let planned = steps(&wanting(vec![], demands));
    // Two of 3,000 MiB fit on 8,192.
    let requested: Vec<_> = planned.iter().filter(|step| matches!(step, Step::Request { .. })).collect();
    assert_eq!((planned.len(), requested.len()), (2, 2), "{planned:?}");
}

#[test]
fn a_wake_goes_where_it_fits_tightest_on_a_machine_that_is_up() {
    let machines = vec![
        view(off(1, 1), &[], NOON),
        view(on(2, 1), &[], NOON),
        view(on(3, 1), &[(9, NEEDS)], NOON),
        view(on(4, 1), &[(8, capacity(1_000, 6_000))], NOON),
    ];
    let planned = steps(&wanting(machines, vec![demand(1, 1, NEEDS)]));
    assert_eq!(planned, [Step::Place { workspace: workspace(1), host: host(3), needs: NEEDS }]);
}

#[test]
fn a_machine_whose_agent_has_not_enrolled_keeps_no_wake_from_one_whose_has() {
    let silent = MachineView { agent: AgentState::Awaited, ..view(on(1, 1), &[], NOON) };
    let planned = steps(&wanting(vec![silent, view(on(2, 1), &[], NOON)], vec![demand(1, 1, NEEDS)]));
    assert_eq!(planned, [Step::Place { workspace: workspace(1), host: host(2), needs: NEEDS }]);
}

#[test]
fn a_stopped_machine_is_started_before_another_one_is_asked_for() {
    let planned = steps(&wanting(vec![view(off(1, 1), &[], NOON)], vec![demand(1, 1, NEEDS)]));
    assert_eq!(planned, [Step::Start { host: host(1), cause: MachineCause::Demand }]);
}

#[test]
fn a_workspace_goes_back_to_where_its_checkout_lies() {
    let machines = vec![view(on(1, 1), &[(9, NEEDS)], NOON), view(off(2, 1), &[], NOON)];
    let again = Demand { before: Some(host(2)), ..demand(1, 1, NEEDS) };
    assert_eq!(steps(&wanting(machines, vec![again])), [Step::Start { host: host(2), cause: MachineCause::Demand }]);
}

#[test]
fn another_organizations_machine_or_workspace_is_refused_whatever_the_planner_is_told() {
    let machines = vec![view(on(1, 2), &[], NOON)];
    let fleet = wanting(machines, vec![demand(1, 1, NEEDS), demand(2, 2, NEEDS)]);
    let planned = plan(&fleet, &policy(), NOON);
    assert_eq!(
        planned.refusals,
        [
            PlanRefusal::CrossOrganization { workspace: None, host: Some(host(1)) },
            PlanRefusal::CrossOrganization { workspace: Some(workspace(2)), host: None },
        ]
    );
    let [Step::Request { terms, .. }] = planned.steps.as_slice() else { panic!("{:?}", planned.steps) };
    assert_eq!(terms.org, org(1));
    assert_ne!(terms.host, host(1));
}

#[test]
fn a_view_that_calls_another_organizations_machine_ours_is_not_believed() {
    let theirs = MachineView { org: org(1), ..view(on(1, 2), &[], NOON) };
    let planned = plan(&wanting(vec![theirs], vec![demand(1, 1, NEEDS)]), &policy(), NOON);
    assert_eq!(planned.refusals, [PlanRefusal::CrossOrganization { workspace: None, host: Some(host(1)) }]);
    assert!(matches!(planned.steps.as_slice(), [Step::Request { .. }]), "{:?}", planned.steps);
}

#[test]
fn a_machine_without_an_awake_runtime_stops_after_the_grace_and_not_before() {
    let since = |length: Millis| fleet(1, vec![view(on(1, 1), &[], NOON.minus(length))]);
    assert_eq!(steps(&since(Millis::from_minutes(9))), []);
    let stop = Step::Stop { host: host(1), mode: StopMode::Stop, cause: MachineCause::Idle };
    assert_eq!(steps(&since(GRACE)), [stop]);
    let busy = fleet(1, vec![view(on(1, 1), &[(1, NEEDS)], UnixMillis::EPOCH)]);
    assert_eq!(steps(&busy), []);
    let hibernating = FleetPolicy { hibernate: true, ..policy() };
    let planned = plan(&since(GRACE), &hibernating, NOON).steps;
    assert_eq!(planned, [Step::Stop { host: host(1), mode: StopMode::Hibernate, cause: MachineCause::Idle }]);
}

#[test]
fn a_machine_that_somebody_needs_with_nothing_awake_there_stays_up_while_they_are_there() {
    let long_idle = || view(on(1, 1), &[], UnixMillis::EPOCH);
    let stop = [Step::Stop { host: host(1), mode: StopMode::Stop, cause: MachineCause::Idle }];
    assert_eq!(steps(&fleet(1, vec![long_idle()])), stop);
    assert_eq!(steps(&fleet(1, vec![MachineView { open_shells: 1, ..long_idle() }])), []);
    let needed = |needed_until| fleet(1, vec![MachineView { needed_until, ..long_idle() }]);
    assert_eq!(steps(&needed(NOON.plus(Millis::from_secs(1)))), []);
    assert_eq!(steps(&needed(NOON)), stop);
    // Started for somebody, it is nobody's but its grace's.
    let started = MachineView { starts: Starts { asked_at: NOON, ..Starts::default() }, ..view(on(1, 1), &[], NOON) };
    assert_eq!(steps(&fleet(1, vec![started])), []);
}

#[test]
fn the_warm_pool_is_filled_from_stopped_machines_first_and_kept_from_stopping() {
    let warm = |warm| FleetPolicy { warm, ..policy() };
    let machines = vec![view(on(1, 1), &[], UnixMillis::EPOCH), view(off(2, 1), &[], NOON)];
    let fleet = fleet(1, machines);
    assert_eq!(plan(&fleet, &warm(1), NOON).steps, []);
    let two = plan(&fleet, &warm(2), NOON).steps;
    assert_eq!(two, [Step::Start { host: host(2), cause: MachineCause::WarmPool }]);
    let three = plan(&fleet, &warm(3), NOON).steps;
    assert!(
        matches!(three.as_slice(), [Step::Start { .. }, Step::Request { cause: MachineCause::WarmPool, .. }]),
        "{three:?}"
    );
}

#[test]
fn a_failing_machine_is_drained_emptied_and_ended_and_takes_nothing() {
    let mut failing = live(1, 1, Power::On);
    failing.unhealthy = true;
    let planned = steps(&wanting(vec![view(Machine::Live(failing.clone()), &[], NOON)], vec![demand(1, 1, NEEDS)]));
    assert!(
        matches!(planned.as_slice(), [Step::Drain { cause: MachineCause::Unhealthy, .. }, Step::Request { .. }]),
        "{planned:?}"
    );
    failing.draining = true;
    let mut held = view(Machine::Live(failing.clone()), &[(1, NEEDS)], NOON);
    assert_eq!(steps(&fleet(1, vec![held.clone()])), [], "a runtime that may be awake there is waited for");
    held.stale.insert(workspace(1));
    let stop = Step::Stop { host: host(1), mode: StopMode::Stop, cause: MachineCause::Unhealthy };
    assert_eq!(steps(&fleet(1, vec![held.clone()])), [stop]);
    failing.power = Power::Off(STOP);
    held.state = Machine::Live(failing.clone());
    assert_eq!(steps(&fleet(1, vec![held])), [Step::Release { workspace: workspace(1), host: host(1) }]);
    let empty = fleet(1, vec![view(Machine::Live(failing), &[], NOON)]);
    assert_eq!(steps(&empty), [Step::Terminate { host: host(1), cause: MachineCause::Unhealthy }]);
}

#[test]
fn a_machine_whose_agent_does_not_enrol_in_time_is_given_up() {
    let deadline = policy().boot_deadline;
    let given_up = Step::GiveUp { host: host(1), why: WhyGivenUp::NotEnrolled { deadline } };
    let awaited = |agent, up_for| MachineView { agent, up_at: NOON.minus(up_for), ..view(on(1, 1), &[], NOON) };
    let one = |machine| steps(&fleet(1, vec![machine]));
    for agent in [AgentState::Absent, AgentState::Awaited] {
        assert_eq!(one(awaited(agent, Millis::new(deadline.get() - 1))), []);
        assert_eq!(one(awaited(agent, deadline)), std::slice::from_ref(&given_up));
    }
    assert_eq!(one(awaited(AgentState::Enrolled, deadline)), []);
    // Machines for shells have agents as well.
    let mut shell = fleet(1, vec![]);
    shell.machines[0].agent = AgentState::Awaited;
    shell.machines[0].up_at = UnixMillis::EPOCH;
    assert!(matches!(steps(&shell).as_slice(), [Step::GiveUp { .. }]));
}

#[test]
fn a_host_that_people_drain_or_revoke_takes_its_machine_along() {
    for agent in [AgentState::Draining, AgentState::Revoked] {
        let held = |placed: &[(u128, Capacity)]| MachineView { agent, ..view(on(1, 1), placed, NOON) };
        let drain = Step::Drain { host: host(1), cause: MachineCause::Operator };
        let planned = steps(&wanting(vec![held(&[(1, NEEDS)])], vec![demand(2, 1, NEEDS)]));
        assert!(matches!(planned.as_slice(), [first, Step::Request { .. }] if *first == drain), "{planned:?}");
        let mut draining = live(1, 1, Power::On);
        draining.draining = true;
        let drained = |placed: &[(u128, Capacity)]| {
            let state = Machine::Live(draining.clone());
            steps(&fleet(1, vec![MachineView { agent, ..view(state, placed, NOON) }]))
        };
        assert_eq!(drained(&[(1, NEEDS)]), [], "what is awake there is waited for");
        assert_eq!(drained(&[]), [Step::Terminate { host: host(1), cause: MachineCause::Operator }]);
    }
    let over = |agent| {
        let state = Machine::Over { terms: terms(1, 1), instance: None };
        steps(&fleet(1, vec![MachineView { agent, ..view(state, &[], NOON) }]))
    };
    assert_eq!(over(AgentState::Awaited), [Step::Retire { host: host(1) }], "nobody may enrol as it any more");
    for agent in [AgentState::Absent, AgentState::Revoked, AgentState::Retired] {
        assert_eq!(over(agent), []);
    }
}

#[test]
fn without_a_shape_for_shells_none_is_asked_for() {
    let mut fleet = fleet(1, vec![]);
    fleet.machines.clear();
    assert_eq!(plan(&fleet, &FleetPolicy { shell_shape: None, ..policy() }, NOON).steps, []);
}

#[test]
fn a_machine_that_is_gone_gives_back_its_room_and_its_host_is_retired() {
    let over = Machine::Over { terms: terms(1, 1), instance: Some("i-1".to_owned()) };
    let mut held = view(over.clone(), &[(1, NEEDS)], NOON);
    held.stale.insert(workspace(1));
    assert_eq!(steps(&fleet(1, vec![held])), [Step::Release { workspace: workspace(1), host: host(1) }]);
    assert_eq!(steps(&fleet(1, vec![view(over, &[], NOON)])), [Step::Retire { host: host(1) }]);
}

#[test]
fn after_a_failed_launch_the_next_one_waits_and_tries_another_shape() {
    let mut fleet = wanting(vec![], vec![demand(1, 1, NEEDS)]);
    fleet.failures.add(NOON);
    let planned = plan(&fleet, &policy(), NOON.plus(Millis::from_secs(14)));
    let until = NOON.plus(Millis::from_secs(15));
    assert_eq!((planned.steps, planned.refusals), (vec![], vec![PlanRefusal::Pausing { until }]));
    let planned = plan(&fleet, &policy(), until).steps;
    let [Step::Request { terms, .. }] = planned.as_slice() else { panic!("{planned:?}") };
    assert_eq!(terms.shape, "m7g.xlarge");
}

#[test]
fn what_is_too_large_and_what_is_beyond_the_limit_is_refused() {
    let huge = wanting(vec![], vec![demand(1, 1, capacity(1, 1_000_000))]);
    let planned = plan(&huge, &policy(), NOON);
    assert_eq!(planned.refusals, [PlanRefusal::TooLarge { workspace: workspace(1) }]);
    let limited = FleetPolicy { machines_max: 1, ..policy() };
    let planned = plan(&wanting(vec![], vec![demand(1, 1, NEEDS)]), &limited, NOON);
    assert_eq!((planned.steps, planned.refusals), (vec![], vec![PlanRefusal::MachinesMax { max: 1 }]));
}

#[test]
fn shells_have_a_machine_as_long_as_there_are_workspaces() {
    let mut fleet = fleet(1, vec![]);
    fleet.machines.clear();
    let planned = steps(&fleet);
    let [Step::Request { terms, .. }] = planned.as_slice() else { panic!("{planned:?}") };
    assert_eq!((terms.purpose, terms.shape.as_str()), (MachinePurpose::Shell, "t4g.small"));
    let unused = OrganizationFleet { workspaces: 0, ..super::fleet(1, vec![view(off(1, 1), &[], NOON)]) };
    let planned = steps(&unused);
    assert_eq!(planned.len(), 2, "{planned:?}");
    assert!(planned.iter().all(|step| matches!(step, Step::Drain { cause: MachineCause::Unused, .. })));
}

#[test]
fn two_planners_that_know_the_same_ask_for_the_same_machine() {
    let fleet = wanting(vec![], vec![demand(1, 1, NEEDS)]);
    assert_eq!(steps(&fleet), steps(&fleet));
}

fn failed(mut machine: MachineView, at: &[UnixMillis]) -> MachineView {
    at.iter().for_each(|at| machine.starts.failures.add(*at));
    machine
}

fn is_request(step: &Step) -> bool {
    matches!(step, Step::Request { .. })
}

#[test]
fn a_machine_whose_start_failed_keeps_no_wake_waiting_and_is_tried_again_later() {
    let start = Step::Start { host: host(1), cause: MachineCause::Demand };
    let again = Demand { before: Some(host(1)), ..demand(1, 1, NEEDS) };
    let with = |machines| wanting(machines, vec![again.clone()]);
    let failing = failed(view(off(1, 1), &[], NOON), &[NOON]);
    let at = |fleet: &OrganizationFleet, after_s| plan(fleet, &policy(), NOON.plus(Millis::from_secs(after_s))).steps;
    let planned = at(&with(vec![failing.clone()]), 14);
    assert!(matches!(planned.as_slice(), [Step::Request { .. }]), "{planned:?}");
    assert_eq!(at(&with(vec![failing.clone()]), 15), [start]);
    // Also while the second attempt is under way.
    let starting = failed(view(Machine::Live(live(1, 1, Power::Starting)), &[], NOON), &[NOON]);
    assert!(at(&with(vec![starting.clone()]), 15).iter().any(is_request));
    // Beside another one it is not needed, though the checkout lies there.
    let ready = view(on(2, 1), &[], NOON);
    let planned = at(&with(vec![failing, ready]), 15);
    assert_eq!(planned, [Step::Place { workspace: workspace(1), host: host(2), needs: NEEDS }]);
    // Nor does one keep a wake waiting that is neither up nor refused.
    let slow = view(Machine::Live(live(1, 1, Power::Starting)), &[], NOON);
    assert_eq!(at(&with(vec![slow.clone()]), 299), []);
    assert!(at(&with(vec![slow]), 300).iter().any(is_request));
}

#[test]
fn a_machine_that_does_not_start_is_not_among_those_that_are_allowed() {
    let failing = failed(view(off(1, 1), &[], NOON), &[NOON]);
    let two = FleetPolicy { machines_max: 2, ..policy() };
    let planned = plan(&wanting(vec![failing], vec![demand(1, 1, NEEDS)]), &two, NOON);
    assert!(planned.steps.iter().any(is_request), "{planned:?}");
}

#[test]
fn shells_get_another_machine_while_theirs_does_not_start_and_the_older_one_stays() {
    let shell = |number, state: Power, requested_at| {
        let mut live = live(number, 1, state);
        live.terms.purpose = MachinePurpose::Shell;
        MachineView { requested_at, ..view(Machine::Live(live), &[], NOON) }
    };
    let planned = |machines: Vec<MachineView>, after_s| {
        let fleet = OrganizationFleet { machines, ..fleet(1, vec![]) };
        plan(&fleet, &policy(), NOON.plus(Millis::from_secs(after_s))).steps
    };
    let failing = failed(shell(1, Power::Off(STOP), NOON), &[NOON]);
    assert!(matches!(planned(vec![failing.clone()], 0).as_slice(), [Step::Request { .. }]));
    let second = |power| shell(2, power, NOON.plus(Millis::from_secs(1)));
    assert_eq!(planned(vec![failing.clone(), second(Power::Starting)], 14), []);
    let start = Step::Start { host: host(1), cause: MachineCause::Demand };
    assert_eq!(planned(vec![failing, second(Power::On)], 15), [start], "what people left there is there alone");
    // What they left on the younger one since stays on its disk; it is there where the older one does not start again.
    let back = |second| vec![shell(1, Power::On, NOON), second];
    let spare = Step::Stop { host: host(2), mode: STOP, cause: MachineCause::Unused };
    assert_eq!(planned(back(second(Power::On)), 599), []);
    assert_eq!(planned(back(second(Power::On)), 600), [spare]);
    assert_eq!(planned(back(MachineView { open_shells: 1, ..second(Power::On) }), 600), []);
    let missed = MachineView { away: Millis::from_minutes(6), ..shell(1, Power::On, NOON) };
    assert_eq!(planned(vec![missed, second(Power::On)], 600), [], "nobody gets through to the older one");
    assert_eq!(planned(back(second(Power::Off(STOP))), 600), []);
    let failing = failed(shell(1, Power::Off(STOP), NOON), &[NOON]);
    let start = Step::Start { host: host(2), cause: MachineCause::Demand };
    assert_eq!(planned(vec![failing, second(Power::Off(STOP))], 0), [start]);
    // It is a disk and takes no place from machines for runtimes.
    let two = FleetPolicy { machines_max: 2, ..policy() };
    let machines = back(second(Power::Off(STOP)));
    let wanting = OrganizationFleet { machines, demands: vec![demand(1, 1, NEEDS)], ..fleet(1, vec![]) };
    assert!(plan(&wanting, &two, NOON).steps.iter().any(is_request));
}

#[test]
fn a_machine_whose_checks_fail_is_stopped_once_with_nothing_awake_and_given_up_the_second_time() {
    let impaired = |minutes, placed: &[(u128, Capacity)]| {
        let since = NOON.minus(Millis::from_minutes(minutes));
        MachineView { impaired_since: Some(since), ..view(on(1, 1), placed, NOON) }
    };
    let one = |machine: MachineView| steps(&fleet(1, vec![machine]));
    assert_eq!(one(impaired(4, &[])), []);
    let stop = Step::Stop { host: host(1), mode: StopMode::Stop, cause: MachineCause::Unhealthy };
    assert_eq!(one(impaired(5, &[])), std::slice::from_ref(&stop));
    assert_eq!(one(impaired(5, &[(1, NEEDS)])), [], "a runtime that may be awake there is waited for");
    assert_eq!(one(MachineView { open_shells: 1, ..impaired(5, &[]) }), [], "and so are shells");
    let planned = steps(&wanting(vec![impaired(5, &[])], vec![demand(1, 1, NEEDS)]));
    assert!(planned.iter().any(is_request), "nothing new comes: {planned:?}");
    // What the log says counts also for a process that has just begun to look.
    let mut recorded = live(1, 1, Power::On);
    recorded.impaired = true;
    let recorded = view(Machine::Live(recorded), &[], NOON);
    let planned = steps(&wanting(vec![recorded], vec![demand(1, 1, NEEDS)]));
    assert!(planned[0] == stop && is_request(&planned[1]), "{planned:?}");
    let after = |hours| {
        let at = Some(NOON.minus(Millis::from_hours(hours)));
        one(MachineView { stopped_as_unhealthy_at: at, ..impaired(5, &[(1, NEEDS)]) })
    };
    assert_eq!(after(23), [Step::GiveUpChecks { host: host(1) }]);
    assert_eq!(after(24), []);
}

#[test]
fn a_machine_that_is_drained_waits_for_the_shells_that_are_open_on_it() {
    let mut shell = live(1, 1, Power::On);
    (shell.terms.purpose, shell.draining) = (MachinePurpose::Shell, true);
    let draining = |agent, drained_ago, open_shells| {
        let drained_at = Some(NOON.minus(drained_ago));
        let state = Machine::Live(shell.clone());
        let machine = MachineView { agent, drained_at, open_shells, ..view(state, &[], NOON) };
        steps(&fleet(1, vec![machine]))
    };
    let (draining_host, day) = (AgentState::Draining, Millis::from_hours(24));
    let ends = [Step::Terminate { host: host(1), cause: MachineCause::Operator }];
    assert_eq!(draining(draining_host, Millis::from_hours(23), 1), []);
    assert_eq!(draining(draining_host, Millis::from_hours(23), 0), ends);
    assert_eq!(draining(draining_host, day, 1), ends, "for as long as a shell may be open");
    assert_eq!(draining(AgentState::Revoked, Millis::from_secs(0), 1), ends, "nobody is to work there any more");
}

#[test]
fn a_wake_whose_machine_was_stopped_under_it_starts_it_or_goes_elsewhere() {
    let taken = Demand { taken_by: Some(host(1)), ..demand(1, 1, NEEDS) };
    let planned = |machine: MachineView| steps(&wanting(vec![machine], vec![taken.clone()]));
    let start = [Step::Start { host: host(1), cause: MachineCause::Demand }];
    let anew = [Step::PlaceAnew { workspace: workspace(1), host: host(1) }];
    for power in [Power::Off(STOP), Power::Stopping(STOP)] {
        assert_eq!(planned(view(Machine::Live(live(1, 1, power)), &[], NOON)), start);
    }
    for power in [Power::On, Power::Starting] {
        assert_eq!(planned(view(Machine::Live(live(1, 1, power)), &[], UnixMillis::EPOCH)), []);
    }
    assert_eq!(planned(failed(view(off(1, 1), &[], NOON), &[NOON])), anew);
    let mut leaving = live(1, 1, Power::Off(STOP));
    leaving.draining = true;
    let drained = planned(view(Machine::Live(leaving.clone()), &[(1, NEEDS)], NOON));
    assert_eq!(drained, anew);
    leaving.power = Power::Stopping(STOP);
    let stopping = planned(view(Machine::Live(leaving), &[(1, NEEDS)], NOON));
    assert_eq!(stopping, [], "something may still run there");
    let over = Machine::Over { terms: terms(1, 1), instance: None };
    assert!(planned(view(over, &[(1, NEEDS)], NOON)).contains(&anew[0]));
}
