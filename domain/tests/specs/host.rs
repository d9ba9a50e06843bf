//! Hosts: one organization each, whatever happens.

use envforge_domain::aggregate::Aggregate;
use envforge_domain::host::*;
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
                        HostEvent::Registered { .. } | HostEvent::Retired => {}
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
    fn any_accepted_history_evolves(steps in prop::collection::vec((0..12u8, 0..6u128, 1..3u128, 1..5_000u32), 1..60)) {
        let commands = steps.into_iter().map(|(verb, number, of, size)| match verb {
            0 => register(),
            1 => HostCommand::Retire,
            2..5 => HostCommand::Release { workspace: workspace(number) },
            _ => place(number, of, Capacity { cpu_millicores: size, memory_mib: size }),
        });
        histories::<Host>(std::iter::once(register()).chain(commands), |before, after| {
            if let Host::Active(active) = after {
                let taken = active.placed.values().fold(Capacity::default(), |sum, needs| sum.plus(needs));
                prop_assert!(taken.fits_into(&active.capacity), "{:?} on {:?}", taken, active.capacity);
            }
            prop_assert!(!matches!((before, after), (Host::Retired, Host::Active(_))));
            Ok(())
        })?;
    }
}
