//! What the provider shows against what the log says.

use envforge_domain::machine::{Machine, MachineEnd, Power};
use envforge_reactors::fleet::{Act, Compared, Finding, compare};
use envforge_runtime::InstanceState;

use super::*;

fn compared(machines: Vec<Machine>, instances: &[Instance]) -> Compared {
    compare(PROVIDER, &machines.into_iter().map(known).collect(), instances)
}

fn requested(number: u128, of: u128) -> Machine {
    Machine::Requested { terms: terms(number, of) }
}

fn strange_ids(compared: &Compared) -> Vec<&str> {
    let strange = |finding: &'_ Finding| matches!(finding, Finding::Strange { .. });
    let ids = compared.findings.iter().filter(|finding| strange(finding));
    ids.map(|finding| if let Finding::Strange { instance, .. } = finding { instance.as_str() } else { "" }).collect()
}

#[test]
fn a_request_is_launched_until_its_instance_is_seen() {
    let launch = Act::Launch { host: host(1), terms: terms(1, 1) };
    assert_eq!(compared(vec![requested(1, 1)], &[]).acts, [launch]);
    let seen = instance("i-1", &terms(1, 1), InstanceState::Pending);
    let again = compared(vec![requested(1, 1)], std::slice::from_ref(&seen));
    assert_eq!(again.findings, [Finding::Launched { host: host(1), instance: seen }]);
    assert_eq!(again.acts, []);
}

#[test]
fn an_instance_of_another_organization_is_never_adopted() {
    let theirs = instance("i-1", &terms(1, 2), InstanceState::Running);
    let compared = compared(vec![requested(1, 1)], std::slice::from_ref(&theirs));
    assert_eq!(strange_ids(&compared), ["i-1"]);
    assert_eq!(compared.acts, [Act::Launch { host: host(1), terms: terms(1, 1) }]);
}

#[test]
fn tags_that_were_changed_make_an_instance_strange_and_untouchable() {
    for power in [Power::Starting, Power::On, Power::Stopping(STOP), Power::Off(STOP), Power::Ending] {
        for state in [InstanceState::Running, InstanceState::Stopped, InstanceState::Pending] {
            let theirs = instance("i-1", &terms(1, 2), state);
            let compared = compared(vec![Machine::Live(live(1, 1, power))], &[theirs]);
            assert_eq!((compared.acts.as_slice(), strange_ids(&compared)), (&[][..], vec!["i-1"]));
        }
    }
}

#[test]
fn a_second_instance_and_one_without_a_request_are_strange_and_an_ended_one_is_not() {
    let machine = || Machine::Live(live(1, 1, Power::On));
    let own = instance("i-1", &terms(1, 1), InstanceState::Running);
    let second = instance("i-2", &terms(1, 1), InstanceState::Running);
    let nobodys = instance("i-3", &terms(3, 1), InstanceState::Stopped);
    let ended = instance("i-4", &terms(4, 1), InstanceState::Terminated);
    let untagged = Instance { tags: Default::default(), ..instance("i-5", &terms(5, 1), InstanceState::Running) };
    let compared = compared(vec![machine()], &[own, second, nobodys, ended, untagged]);
    assert_eq!(strange_ids(&compared), ["i-2", "i-3", "i-5"]);
    assert_eq!(compared.findings.len(), 3);
    assert_eq!(compared.acts, []);
}

#[test]
fn an_instance_of_a_machine_that_is_over_is_ended_where_it_never_was_up_and_is_strange_else() {
    let late = |of| instance("i-1", &terms(1, of), InstanceState::Running);
    let end = Act::Terminate { terms: terms(1, 1), instance: "i-1".to_owned() };
    for id in [None, Some("i-1".to_owned())] {
        let over = Machine::Over { terms: terms(1, 1), instance: id };
        let found = compared(vec![over.clone()], &[late(1)]);
        assert_eq!((found.acts.as_slice(), found.findings.as_slice()), (std::slice::from_ref(&end), &[][..]));
        let theirs = compared(vec![over.clone()], &[late(2)]);
        assert_eq!(
            (theirs.acts.as_slice(), strange_ids(&theirs)),
            (&[][..], vec!["i-1"]),
            "its tags are another one's"
        );
        let (host, known) = known(over);
        let was_up = BTreeMap::from([(host, KnownMachine { was_up: true, ..known })]);
        let found = compare(PROVIDER, &was_up, &[late(1)]);
        assert_eq!(
            (found.acts.as_slice(), strange_ids(&found)),
            (&[][..], vec!["i-1"]),
            "somebody's work may lie there"
        );
        let ended = instance("i-1", &terms(1, 1), InstanceState::Ending);
        assert_eq!(compare(PROVIDER, &was_up, &[ended]), Compared::default());
    }
    let other = Machine::Over { terms: terms(1, 1), instance: Some("i-2".to_owned()) };
    assert_eq!(strange_ids(&compared(vec![other], &[late(1)])), ["i-1"], "a second one of its launch is none of it");
}

#[test]
fn each_state_of_the_provider_is_reported_or_mended() {
    use InstanceState::{Ending, Pending, Running, Stopped, Stopping, Terminated};
    let (h, t, i) = (host(1), terms(1, 1), "i-1".to_owned());
    let started = || vec![Finding::Started { host: h }];
    let stopped = || vec![Finding::Stopped { host: h }];
    let ended = |end| vec![Finding::Ended { host: h, end }];
    let start = Act::Start { terms: t.clone(), instance: i.clone() };
    let stop = Act::Stop { terms: t.clone(), instance: i.clone(), mode: STOP };
    let terminate = Act::Terminate { terms: t.clone(), instance: i.clone() };
    let table = [
        (Power::Starting, Pending, vec![], vec![]),
        (Power::Starting, Running, started(), vec![]),
        (Power::Starting, Stopping, vec![], vec![]),
        (Power::Starting, Stopped, vec![], vec![start]),
        (Power::On, Running, vec![], vec![]),
        (Power::On, Stopped, stopped(), vec![]),
        (Power::Stopping(STOP), Running, vec![], vec![stop]),
        (Power::Stopping(STOP), Stopped, stopped(), vec![]),
        (Power::Off(STOP), Running, started(), vec![]),
        (Power::Off(STOP), Stopped, vec![], vec![]),
        (Power::Ending, Running, vec![], vec![terminate.clone()]),
        (Power::Ending, Stopped, vec![], vec![terminate]),
        (Power::Ending, Ending, vec![], vec![]),
        (Power::Ending, Terminated, ended(MachineEnd::Terminated), vec![]),
        (Power::On, Terminated, ended(MachineEnd::Vanished), vec![]),
        (Power::Starting, Terminated, ended(MachineEnd::Vanished), vec![]),
    ];
    for (power, state, findings, acts) in table {
        let shown = instance("i-1", &t, state);
        let compared = compared(vec![Machine::Live(live(1, 1, power))], &[shown]);
        assert_eq!(compared, Compared { findings, acts }, "{power:?} {state:?}");
    }
}

#[test]
fn checks_that_pass_again_are_reported_where_the_log_says_that_they_fail() {
    let found = |recorded, fails| {
        let machine = Machine::Live(LiveMachine { impaired: recorded, ..live(1, 1, Power::On) });
        let shown = Instance { impaired: fails, ..instance("i-1", &terms(1, 1), InstanceState::Running) };
        compared(vec![machine], &[shown]).findings
    };
    let host = host(1);
    assert_eq!(found(false, false), []);
    for recorded in [false, true] {
        assert_eq!(found(recorded, true), [Finding::Impaired { host }]);
    }
    assert_eq!(found(true, false), [Finding::Recovered { host }]);
}

#[test]
fn what_the_provider_does_not_list_is_missing_and_of_another_provider_is_left_alone() {
    let here = compared(vec![Machine::Live(live(1, 1, Power::On))], &[]);
    assert_eq!(here.findings, [Finding::Missing { host: host(1), instance: "i-1".to_owned() }]);
    let mut elsewhere = live(1, 1, Power::On);
    elsewhere.terms.provider = "other".to_owned();
    assert_eq!(compared(vec![Machine::Live(elsewhere)], &[]), Compared::default());
}
