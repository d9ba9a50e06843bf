//! Hosts: one organization each, whatever happens.

use envforge_domain::aggregate::Aggregate;
use envforge_domain::host::*;
use envforge_domain::secret::TokenDigest;
use envforge_domain::time::Millis;
use proptest::prelude::*;

use crate::given::*;

const CAPACITY: Capacity = Capacity { cpu_millicores: 4_000, memory_mib: 8_192 };
const SMALL: Capacity = Capacity { cpu_millicores: 1_000, memory_mib: 1_024 };

fn registered() -> HostEvent {
    HostEvent::Registered {
        host: host(1),
        org: org(1),
        provider: "local".to_owned(),
        machine: "local-1".to_owned(),
        capacity: CAPACITY,
    }
}

fn place(on: u128, of: u128, needs: Capacity) -> HostCommand {
    HostCommand::Place { workspace: workspace(on), org: org(of), needs }
}

#[test]
fn a_host_refuses_another_organizations_workspace() {
    given::<Host>([registered()]).when(place(1, 2, SMALL)).then_refused("host_cross_organization");
}

#[test]
fn a_host_holds_what_fits() {
    let full = (1..=4).fold(given::<Host>([registered()]), |given, number| given.and(place(number, 1, SMALL)));
    full.when(place(5, 1, SMALL)).then_refused("host_no_room");
    given::<Host>([registered()])
        .and(place(1, 1, CAPACITY))
        .when(place(1, 1, SMALL))
        .then([HostEvent::Placed { workspace: workspace(1), needs: SMALL }]);
}

#[test]
fn a_host_is_retired_only_when_empty() {
    given::<Host>([registered()]).and(place(1, 1, SMALL)).when(HostCommand::Retire).then_refused("host_not_empty");
    given::<Host>([registered()]).when(HostCommand::Retire).then([HostEvent::Retired]);
    given::<Host>([registered(), HostEvent::Retired]).when(place(1, 1, SMALL)).then_refused("host_retired");
}

/// Held against the log alone: no schedule of random placements and releases puts two organizations on one host.
#[test]
fn a_million_random_placements_never_mix_organizations() {
    // A small deterministic generator: the schedule is the same on every run and needs no crate.
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    let tiny = Capacity { cpu_millicores: 1, memory_mib: 1 };
    let mut hosts: Vec<Host> = (0..16)
        .map(|number| {
            Host::evolve(
                Host::default(),
                &HostEvent::Registered {
                    host: host(number),
                    org: org(number % 4),
                    provider: "local".to_owned(),
                    machine: format!("m{number}"),
                    capacity: Capacity { cpu_millicores: 8, memory_mib: 8 },
                },
            )
        })
        .collect();
    // The checker shares no code with the aggregate: who holds what, by workspace's own organization.
    let mut held: Vec<std::collections::HashMap<u128, u128>> = vec![Default::default(); hosts.len()];
    let (mut placed, mut refused) = (0_u32, 0_u32);
    for _ in 0..1_000_000 {
        let index = next(16) as usize;
        let number = u128::from(next(64));
        let command = if next(4) == 0 {
            HostCommand::Release { workspace: workspace(number) }
        } else {
            HostCommand::Place { workspace: workspace(number), org: org(number % 4), needs: tiny }
        };
        match Host::decide(&hosts[index], &command) {
            Err(_) => refused += 1,
            Ok(events) => {
                for event in &events {
                    match event {
                        HostEvent::Placed { .. } => {
                            placed += 1;
                            held[index].insert(number, number % 4);
                        }
                        HostEvent::Released { .. } => {
                            held[index].remove(&number);
                        }
                        _ => {}
                    }
                    hosts[index] = Host::evolve(std::mem::take(&mut hosts[index]), event);
                }
                assert!(
                    held[index].values().all(|of| *of == (index as u128) % 4),
                    "host {index} holds {:?}",
                    held[index]
                );
                assert!(held[index].len() <= 8);
            }
        }
    }
    assert!(
        placed > 10_000 && refused > 100_000,
        "the schedule must exercise both: {placed} placed, {refused} refused"
    );
}

fn token(number: u8) -> TokenDigest {
    TokenDigest::of(&[number])
}

fn issue(secret: u8) -> HostCommand {
    HostCommand::IssueEnrolment {
        host: host(1),
        org: org(1),
        name: "builder".parse().unwrap(),
        token: token(secret),
        lifetime: Millis::from_minutes(15),
        now: at(1_000),
    }
}

fn enrolling(of: u128, secret: u8, machine: &str, now: u64) -> HostCommand {
    HostCommand::Enrol(Enrolling {
        host: host(1),
        org: org(of),
        token: token(secret),
        machine: machine.to_owned(),
        capacity: CAPACITY,
        certificate: TokenDigest::of(b"certificate"),
        certificate_expires_at: at(now + 86_400_000),
        agent_version: "1".to_owned(),
        now: at(now),
    })
}

fn enrolled(enrolment: u32, now: u64) -> HostEvent {
    HostEvent::Enrolled {
        enrolment,
        certificate: TokenDigest::of(b"certificate"),
        certificate_expires_at: at(now + 86_400_000),
        agent_version: "1".to_owned(),
    }
}

#[test]
fn an_enrolment_works_once_in_time_for_its_own_organization() {
    let issued = || given::<Host>([]).and(issue(1));
    let registered = HostEvent::Registered {
        host: host(1),
        org: org(1),
        provider: "agent".to_owned(),
        machine: "m1".to_owned(),
        capacity: CAPACITY,
    };
    issued().when(enrolling(1, 1, "m1", 2_000)).then([registered, enrolled(1, 2_000)]);
    issued().when(enrolling(1, 2, "m1", 2_000)).then_refused("enrolment_unknown");
    issued().when(enrolling(2, 1, "m1", 2_000)).then_refused("enrolment_unknown");
    issued().when(enrolling(1, 1, "m1", 1_000 + 15 * 60_000)).then_refused("enrolment_expired");
    given::<Host>([]).when(enrolling(1, 1, "m1", 2_000)).then_refused("enrolment_unknown");
    let used = || issued().and(enrolling(1, 1, "m1", 2_000));
    used().when(enrolling(1, 1, "m1", 3_000)).then_refused("enrolment_used");
    // Another one is for the same machine, and replaces the certificates before it.
    let again = || used().and(issue(2));
    again().when(enrolling(1, 2, "m2", 3_000)).then_refused("host_other_machine");
    again().when(enrolling(1, 1, "m1", 3_000)).then_refused("enrolment_used");
    again().when(enrolling(1, 2, "m1", 3_000)).then([enrolled(2, 3_000)]);
    // The machine that EnvForge runs on itself enrols nowhere.
    given::<Host>([self::registered()]).when(issue(1)).then_refused("host_without_agent");
}

#[test]
fn a_newer_enrolment_is_issued_in_place_of_one_that_nobody_used() {
    let twice = || given::<Host>([]).and(issue(1)).and(issue(2));
    twice().when(enrolling(1, 1, "m1", 2_000)).then_refused("enrolment_unknown");
    assert!(matches!(twice().and(enrolling(1, 2, "m1", 2_000)).state(), Host::Active(_)));
    let HostCommand::IssueEnrolment { host, org, name, token, now, .. } = issue(1) else { unreachable!() };
    for lifetime in [Millis::from_secs(29), Millis::from_hours(25)] {
        let command = HostCommand::IssueEnrolment { host, org, name: name.clone(), token, lifetime, now };
        given::<Host>([]).when(command).then_refused("enrolment_lifetime");
    }
}

#[test]
fn a_revoked_host_is_trusted_with_nothing_any_more() {
    let active = || given::<Host>([]).and(issue(1)).and(enrolling(1, 1, "m1", 2_000));
    active().and(place(1, 1, SMALL)).when(HostCommand::Revoke).then([HostEvent::Revoked]);
    given::<Host>([]).and(issue(1)).when(HostCommand::Revoke).then([HostEvent::Revoked]);
    let revoked = || active().and(issue(2)).and(HostCommand::Revoke);
    revoked().when(place(1, 1, SMALL)).then_refused("host_revoked");
    revoked().when(enrolling(1, 2, "m1", 3_000)).then_refused("host_revoked");
    revoked().when(issue(3)).then_refused("host_revoked");
    revoked().when(renewal(1, 4_000)).then_refused("host_revoked");
    revoked().when(HostCommand::Release { workspace: workspace(1) }).then_nothing();
    revoked().when(HostCommand::Revoke).then_nothing();
}

fn renewal(enrolment: u32, now: u64) -> HostCommand {
    HostCommand::RecordRenewal {
        enrolment,
        certificate: TokenDigest::of(b"next"),
        certificate_expires_at: at(now + 86_400_000),
        now: at(now),
    }
}

#[test]
fn renewals_are_recorded_sparsely_and_only_of_the_enrolment_that_counts() {
    let active = || given::<Host>([]).and(issue(1)).and(enrolling(1, 1, "m1", 0));
    active().when(renewal(2, 43_200_000)).then_refused("enrolment_replaced");
    active().when(renewal(1, 60_000)).then_nothing();
    let later = || active().and(renewal(1, 43_200_000));
    assert_eq!(active().when(renewal(1, 43_200_000)).events().len(), 1);
    later().when(renewal(1, 43_260_000)).then_nothing();
}

#[test]
fn a_draining_host_keeps_what_it_has_and_takes_nothing_more() {
    let draining = || {
        let active = given::<Host>([]).and(issue(1)).and(enrolling(1, 1, "m1", 2_000));
        active.and(place(1, 1, SMALL)).and(HostCommand::Drain)
    };
    draining().when(place(2, 1, SMALL)).then_refused("host_draining");
    draining().when(place(1, 1, SMALL)).then_nothing();
    draining().when(HostCommand::Drain).then_nothing();
    draining().when(HostCommand::Retire).then_refused("host_not_empty");
    draining()
        .and(HostCommand::Release { workspace: workspace(1) })
        .when(HostCommand::Retire)
        .then([HostEvent::Retired]);
}

fn register() -> HostCommand {
    HostCommand::Register {
        host: host(1),
        org: org(1),
        provider: "local".to_owned(),
        machine: "local-1".to_owned(),
        capacity: CAPACITY,
    }
}

proptest! {
    /// Whatever was accepted evolves, what is placed fits, and a retired host stays empty.
    #[test]
    fn any_accepted_history_evolves(steps in prop::collection::vec((0..17u8, 0..6u128, 1..3u128, 1..5_000u32), 1..60)) {
        let commands = steps.into_iter().map(|(verb, number, of, size)| match verb {
            0 => register(),
            1 => HostCommand::Retire,
            2..5 => HostCommand::Release { workspace: workspace(number) },
            12 => issue(of as u8),
            13 => enrolling(of, (size % 3) as u8, "m1", u64::from(size)),
            14 => renewal(of as u32, u64::from(size) * 10_000),
            15 => HostCommand::Drain,
            16 if size % 7 == 0 => HostCommand::Revoke,
            _ => place(number, of, Capacity { cpu_millicores: size, memory_mib: size }),
        });
        let first = if commands.len() % 2 == 0 { register() } else { issue(1) };
        histories::<Host>(std::iter::once(first).chain(commands), |before, after| {
            if let Host::Active(active) = after {
                let taken = active.placed.values().fold(Capacity::default(), |sum, needs| sum.plus(needs));
                prop_assert!(taken.fits_into(&active.capacity), "{:?} on {:?}", taken, active.capacity);
            }
            prop_assert!(!matches!((before, after), (Host::Retired | Host::Revoked, Host::Active(_) | Host::Expected(_))));
            Ok(())
        })?;
    }
}
