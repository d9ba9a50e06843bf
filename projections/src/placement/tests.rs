//! The planner: best fit, the same answer each time, and never another organization's host.
#![allow(clippy::unwrap_used)]

use envforge_domain::host::HostEvent;
use proptest::prelude::*;

use super::*;
use crate::given::*;

const fn capacity(cpu_millicores: u32, memory_mib: u32) -> Capacity {
    Capacity { cpu_millicores, memory_mib }
}

impl Story {
    fn hosts(&self) -> &PlacementView {
        &self.hot.placement
    }

    fn plan(&self, of: u128, number: u128, needs: Capacity) -> Placement {
        self.hosts().hosts_of(org(of), workspace(number)).plan(&needs)
    }

    fn place(&mut self, of: u128, on: u128, number: u128, needs: Capacity) {
        self.on_host(of, on, HostEvent::Placed { workspace: workspace(number), needs });
    }
}

#[test]
fn the_fullest_host_that_fits_is_chosen_and_of_equal_ones_the_oldest() {
    let mut story = Story::empty();
    for (number, memory_mib) in [(3, 4_000), (2, 2_000), (1, 2_000), (4, 900)] {
        story.host(1, number, capacity(8_000, memory_mib));
    }
    assert_eq!(story.plan(1, 1, capacity(100, 1_000)), Placement::On(host(1)));
    story.place(1, 1, 1, capacity(100, 1_000));
    assert_eq!(story.plan(1, 2, capacity(100, 1_000)), Placement::On(host(1)), "exactly full");
    assert_eq!(story.plan(1, 2, capacity(100, 1_500)), Placement::On(host(2)));
    assert_eq!(story.plan(1, 2, capacity(100, 4_001)), Placement::NeedsHost);
    assert_eq!(story.plan(1, 2, capacity(8_001, 1)), Placement::NeedsHost);
}

#[test]
fn a_workspace_stays_where_it_is_while_it_fits_there() {
    let mut story = Story::empty();
    story.host(1, 1, capacity(1_000, 1_000));
    story.host(1, 2, capacity(1_000, 4_000));
    story.place(1, 2, 1, capacity(500, 3_500));
    assert_eq!(story.plan(1, 1, capacity(500, 900)), Placement::On(host(2)));
    assert_eq!(story.plan(1, 1, capacity(500, 4_000)), Placement::On(host(2)), "its own room counts");
    assert_eq!(story.hosts().host_of(workspace(1)), Some(host(2)));
}

#[test]
fn a_workspace_goes_back_to_the_host_of_its_last_wake_while_it_fits_there() {
    use envforge_domain::runtime::{Epoch, RuntimeEvent};
    let mut story = Story::empty();
    story.host(1, 1, capacity(1_000, 1_000));
    story.host(1, 2, capacity(1_000, 4_000));
    story.on_runtime(vec![RuntimeEvent::HostChosen { epoch: Epoch(1), host: host(2) }]);
    assert_eq!(story.plan(1, 1, capacity(500, 500)), Placement::On(host(2)), "its data lies there");
    assert_eq!(story.plan(1, 2, capacity(500, 500)), Placement::On(host(1)), "another one goes by room alone");
    story.place(1, 2, 3, capacity(500, 3_900));
    assert_eq!(story.plan(1, 1, capacity(500, 500)), Placement::On(host(1)), "it is full by now");
}

#[test]
fn the_host_of_the_shell_before_is_known_whether_the_newest_one_is_or_not() {
    use envforge_domain::commit::StreamId;
    use envforge_domain::ids::{ProjectId, SessionId, ShellId, UserId};
    use envforge_domain::shell::{ShellEvent, ShellKind, ShellTerms};
    use envforge_domain::time::UnixMillis;
    let id = |number: u128| ShellId::from_uuid(uuid::Uuid::from_u128(number));
    let mut story = Story::empty();
    let before = |story: &Story, shell| story.hosts().host_of_shell_before(workspace(1), id(shell));
    assert_eq!(before(&story, 1), None);
    for (shell, on) in [(1, Some(1)), (2, Some(1)), (3, None), (4, Some(2)), (5, Some(2))] {
        let terms = ShellTerms {
            shell: id(shell),
            project: ProjectId::from_uuid(uuid::Uuid::nil()),
            workspace: workspace(1),
            user: UserId::from_uuid(uuid::Uuid::nil()),
            session: SessionId::from_uuid(uuid::Uuid::nil()),
            kind: ShellKind::Terminal,
            host: on.map(host),
            git: None,
            at: UnixMillis::new(1),
        };
        let stream = StreamId::shell(org(1), id(shell));
        story.append(stream, vec![Event::Shell(ShellEvent::Connected { terms })]);
    }
    assert_eq!([before(&story, 5), before(&story, 6)], [Some(host(2)); 2]);
    story.on_host(1, 2, HostEvent::Retired);
    assert_eq!(before(&story, 6), Some(host(2)), "what lay there is not here");
}

#[test]
fn a_workspace_that_moved_is_not_lost_by_its_release() {
    let mut story = Story::empty();
    story.host(1, 1, capacity(1_000, 1_000));
    story.host(1, 2, capacity(1_000, 1_000));
    story.place(1, 1, 7, capacity(1, 1));
    story.place(1, 2, 7, capacity(1, 1));
    story.on_host(1, 1, HostEvent::Released { workspace: workspace(7) });
    assert_eq!(story.hosts().host_of(workspace(7)), Some(host(2)));
    assert!(story.hosts().placed(host(1)).unwrap().is_empty());
    story.on_host(1, 1, HostEvent::Retired);
    assert_eq!(story.hosts().placed(host(1)), None);
    assert_eq!(story.plan(1, 8, capacity(1_000, 1_000)), Placement::NeedsHost, "retired hosts take nothing");
}

#[test]
fn no_runtime_goes_to_a_host_that_is_for_shells() {
    use envforge_domain::commit::StreamId;
    use envforge_domain::machine::{MachineCause, MachineEnd, MachineEvent, MachinePurpose, MachineTerms, StopMode};
    let mut story = Story::empty();
    for (number, purpose) in [(1, MachinePurpose::Shell), (2, MachinePurpose::Runtime)] {
        let terms = MachineTerms {
            host: host(number),
            org: org(1),
            purpose,
            provider: "aws-ec2".to_owned(),
            shape: "m7g.large".to_owned(),
            capacity: capacity(1_000, 1_000),
        };
        let requested = MachineEvent::Requested { terms, cause: MachineCause::Demand };
        story.append(StreamId::machine(org(1), host(number)), vec![requested.into()]);
    }
    let machine = |story: &mut Story, number, events: &[MachineEvent]| {
        story.append(StreamId::machine(org(1), host(number)), events.iter().cloned().map(Into::into).collect());
    };
    let up = [MachineEvent::Launched { instance: "i-1".to_owned() }, MachineEvent::Started];
    machine(&mut story, 1, &up);
    story.host(1, 1, capacity(1_000, 1_000));
    assert_eq!(story.plan(1, 1, capacity(1, 1)), Placement::NeedsHost);
    assert!(story.hosts().is_for_shells(host(1)) && !story.hosts().is_for_shells(host(2)));
    assert!(story.hosts().is_closed(host(1)) && story.hosts().has_machines(org(1)));
    machine(&mut story, 2, &up);
    story.host(1, 2, capacity(1_000, 1_000));
    assert_eq!(story.plan(1, 1, capacity(1, 1)), Placement::On(host(2)));

    // Nothing comes to one that goes, or that is not up.
    let stop = MachineEvent::StopRequested { mode: StopMode::Stop, cause: MachineCause::Idle };
    machine(&mut story, 2, &[stop, MachineEvent::Stopped { mode: StopMode::Stop }]);
    assert_eq!(story.plan(1, 1, capacity(1, 1)), Placement::NeedsHost);
    machine(&mut story, 2, &[MachineEvent::StartRequested { cause: MachineCause::Demand }, MachineEvent::Started]);
    assert_eq!(story.plan(1, 1, capacity(1, 1)), Placement::On(host(2)));
    machine(&mut story, 2, &[MachineEvent::Draining { cause: MachineCause::Operator }]);
    assert_eq!(story.plan(1, 1, capacity(1, 1)), Placement::NeedsHost);
    for number in [1, 2] {
        machine(&mut story, number, &[MachineEvent::Terminated { end: MachineEnd::Terminated }]);
    }
    assert!(!story.hosts().has_machines(org(1)));
}

#[test]
fn how_a_machine_stands_is_known_to_whoever_needs_what_lies_on_it() {
    use envforge_domain::commit::StreamId;
    use envforge_domain::machine::{MachineCause, MachineEnd, MachineEvent, MachineTerms, StartFailure, StopMode};
    use envforge_domain::runtime::{Epoch, RuntimeEvent};
    let mut story = Story::empty();
    let machine = |story: &mut Story, event: MachineEvent| {
        story.append(StreamId::machine(org(1), host(1)), vec![event.into()]);
        story.hosts().standing(host(1), story.now)
    };
    let terms = MachineTerms {
        host: host(1),
        org: org(1),
        purpose: MachinePurpose::Runtime,
        provider: "aws-ec2".to_owned(),
        shape: "m7g.large".to_owned(),
        capacity: capacity(1_000, 1_000),
    };
    let (mode, cause) = (StopMode::Stop, MachineCause::Logs);
    let (coming, off) = (Some(MachineStanding::Starting), Some(MachineStanding::Off));
    assert_eq!(story.hosts().standing(host(1), NOW), None);
    assert_eq!(machine(&mut story, MachineEvent::Requested { terms, cause: MachineCause::Demand }), coming);
    assert_eq!(machine(&mut story, MachineEvent::Launched { instance: "i-1".to_owned() }), coming);
    let fresh = machine(&mut story, MachineEvent::Started);
    assert_eq!(fresh, Some(MachineStanding::Fresh), "its agent may be on its way");
    story.host(1, 1, capacity(1_000, 1_000));
    story.on_runtime(vec![RuntimeEvent::HostChosen { epoch: Epoch(1), host: host(1) }]);
    let later = NOW.plus(envforge_domain::limits::MACHINE_START_WAIT);
    assert_eq!(story.hosts().standing(host(1), later), Some(MachineStanding::Up));
    assert!(story.hosts().is_to_be_told_of_use(host(1), NOW));
    machine(&mut story, MachineEvent::Used { cause, at: NOW });
    assert!(!story.hosts().is_to_be_told_of_use(host(1), NOW), "somebody has said so");
    assert!(story.hosts().is_to_be_told_of_use(host(1), later));
    story.place(1, 1, 2, capacity(1, 1));
    assert!(!story.hosts().is_to_be_told_of_use(host(1), later), "what is awake there keeps it up");
    story.on_host(1, 1, HostEvent::Released { workspace: workspace(2) });

    assert_eq!(story.hosts().shell_machine_of(org(1), workspace(1)), Some(host(1)));
    assert_eq!(story.hosts().shell_machine_of(org(1), workspace(9)), Some(host(1)), "it is nowhere yet");
    assert_eq!(story.hosts().shell_machine_of(org(2), workspace(1)), None);
    assert_eq!(machine(&mut story, MachineEvent::StopRequested { mode, cause: MachineCause::Idle }), off);
    assert_eq!(machine(&mut story, MachineEvent::Stopped { mode }), off);
    assert!(!story.hosts().is_to_be_told_of_use(host(1), later), "it starts nothing");
    assert_eq!(machine(&mut story, MachineEvent::StartRequested { cause }), coming);
    let (why, until) = (StartFailure::Quota, NOW.plus(Millis::from_secs(15)));
    let failed = machine(&mut story, MachineEvent::StartFailed { why, reason: "quota".to_owned() });
    assert_eq!(failed, Some(MachineStanding::NotStarting { why, until }));
    assert_eq!(story.hosts().standing(host(1), until), off, "it may be tried again");
    let draining = machine(&mut story, MachineEvent::Draining { cause: MachineCause::Operator });
    assert_eq!(draining, Some(MachineStanding::Leaving));
    assert_eq!(story.hosts().lies_on(workspace(1)), Some(host(1)));
    assert!(!story.hosts().is_gone(org(1), host(1)) && story.hosts().is_gone(org(2), host(1)));
    assert_eq!(machine(&mut story, MachineEvent::Terminated { end: MachineEnd::Vanished }), None);
    assert!(story.hosts().is_gone(org(1), host(1)), "before its host is retired");
}

#[test]
fn shells_are_where_the_machine_for_them_is_furthest_on_its_way() {
    use envforge_domain::commit::StreamId;
    use envforge_domain::machine::{MachineCause, MachineEvent, MachineTerms, StopMode};
    let mut story = Story::empty();
    story.host(1, 7, capacity(1_000, 1_000));
    assert_eq!(story.hosts().shell_machine_of(org(1), workspace(1)), None, "on no provider's machine");
    let shell = |story: &Story| story.hosts().shell_machine_of(org(1), workspace(1));
    let machine = |story: &mut Story, number: u128, events: Vec<MachineEvent>| {
        let events = events.into_iter().map(Into::into).collect();
        story.append(StreamId::machine(org(1), host(number)), events);
    };
    let requested = |number| MachineEvent::Requested {
        terms: MachineTerms {
            host: host(number),
            org: org(1),
            purpose: MachinePurpose::Shell,
            provider: "aws-ec2".to_owned(),
            shape: "t4g.small".to_owned(),
            capacity: capacity(1_000, 1_000),
        },
        cause: MachineCause::Demand,
    };
    let (launched, mode) = (MachineEvent::Launched { instance: "i-1".to_owned() }, StopMode::Stop);
    let stop = MachineEvent::StopRequested { mode, cause: MachineCause::Unhealthy };
    machine(&mut story, 1, vec![requested(1), launched.clone(), MachineEvent::Started]);
    assert_eq!(shell(&story), Some(host(1)));
    machine(&mut story, 1, vec![stop, MachineEvent::Stopped { mode }]);
    assert_eq!(shell(&story), Some(host(1)));
    machine(&mut story, 2, vec![requested(2)]);
    assert_eq!(shell(&story), Some(host(2)));
    machine(&mut story, 1, vec![MachineEvent::StartRequested { cause: MachineCause::Shell }]);
    assert_eq!(shell(&story), Some(host(1)));
    machine(&mut story, 1, vec![MachineEvent::Draining { cause: MachineCause::Operator }]);
    assert_eq!(shell(&story), Some(host(2)));
}

#[test]
fn no_wake_is_led_to_a_machine_that_nobody_reaches_or_that_fails_or_is_over() {
    use envforge_domain::commit::StreamId;
    use envforge_domain::machine::{MachineCause, MachineEnd, MachineEvent, MachinePurpose, MachineTerms, StopMode};
    let terms = MachineTerms {
        host: host(1),
        org: org(1),
        purpose: MachinePurpose::Runtime,
        provider: "aws-ec2".to_owned(),
        shape: "m7g.large".to_owned(),
        capacity: capacity(1_000, 1_000),
    };
    let mut story = Story::empty();
    let machine = |story: &mut Story, events: Vec<MachineEvent>| {
        story.append(StreamId::machine(org(1), host(1)), events.into_iter().map(Into::into).collect());
    };
    let looked = |story: &mut Story, away| story.on_host(1, 1, HostEvent::AgentLookedFor { away });
    machine(
        &mut story,
        vec![
            MachineEvent::Requested { terms, cause: MachineCause::Demand },
            MachineEvent::Launched { instance: "i-1".to_owned() },
            MachineEvent::Started,
        ],
    );
    story.host(1, 1, capacity(1_000, 1_000));
    let takes = |story: &Story| {
        let open = story.plan(1, 1, capacity(1, 1)) == Placement::On(host(1));
        assert_ne!(open, story.hosts().is_closed(host(1)));
        open
    };
    assert!(takes(&story));
    // Missed, and there again; missed, and started anew.
    looked(&mut story, Millis::from_minutes(6));
    assert!(!takes(&story));
    assert_eq!(story.hosts().open_hosts_of(org(1)), [host(1)], "a shell says by itself that it is out of reach");
    looked(&mut story, Millis::ZERO);
    assert!(takes(&story));
    looked(&mut story, Millis::from_minutes(6));
    let stop = MachineEvent::StopRequested { mode: StopMode::Stop, cause: MachineCause::Unhealthy };
    let start = MachineEvent::StartRequested { cause: MachineCause::Demand };
    let restart = [stop, MachineEvent::Stopped { mode: StopMode::Stop }, start, MachineEvent::Started];
    machine(&mut story, restart.clone().into());
    assert!(takes(&story));
    // Its checks fail, and pass; fail, and it starts on other hardware.
    machine(&mut story, vec![MachineEvent::ChecksFailed]);
    assert!(!takes(&story));
    machine(&mut story, vec![MachineEvent::ChecksPassed]);
    assert!(takes(&story));
    machine(&mut story, vec![MachineEvent::ChecksFailed]);
    machine(&mut story, restart.into());
    assert!(takes(&story));
    // Gone, while its host still holds room for something.
    story.place(1, 1, 7, capacity(1, 1));
    machine(&mut story, vec![MachineEvent::Terminated { end: MachineEnd::Vanished }]);
    assert!(!takes(&story));
    assert!(!story.hosts().has_machines(org(1)));
    assert!(story.hosts().open_hosts_of(org(1)).is_empty());
    story.on_host(1, 1, HostEvent::Released { workspace: workspace(7) });
    story.on_host(1, 1, HostEvent::Retired);
    assert_eq!(story.plan(1, 1, capacity(1, 1)), Placement::NeedsHost);
}

#[test]
fn an_organization_without_hosts_needs_one_however_empty_others_are() {
    let mut story = Story::empty();
    story.host(2, 1, capacity(64_000, 64_000));
    assert_eq!(story.plan(1, 1, capacity(1, 1)), Placement::NeedsHost);
    assert_eq!(story.plan(2, 1, capacity(1, 1)), Placement::On(host(1)));
}

proptest! {
    #[test]
    fn no_schedule_places_a_workspace_on_another_organizations_host(
        steps in prop::collection::vec((0_u8..4, 0_u128..4, 0_u128..12, 1_u32..500), 1..120)
    ) {
        let mut story = Story::empty();
        let mut owner_of: BTreeMap<HostId, u128> = BTreeMap::new();
        for (what, of, number, size) in steps {
            // A workspace is of one organization for good, as ids are in the log.
            let (id, needs) = (number * 4 + of, capacity(size, size));
            match what {
                0 if owner_of.len() < 12 => {
                    let next = owner_of.len() as u128;
                    owner_of.insert(host(next), of);
                    story.host(of, next, capacity(1_000, 1_000));
                }
                1 => {
                    if let Some(on) = story.hosts().host_of(workspace(id)) {
                        let on = on.as_uuid().as_u128();
                        story.on_host(of, on, HostEvent::Released { workspace: workspace(id) });
                    }
                }
                _ => {
                    let hosts = story.hosts().hosts_of(org(of), workspace(id));
                    let planned = hosts.plan(&needs);
                    prop_assert_eq!(planned, hosts.plan(&needs));
                    match planned {
                        Placement::On(on) => {
                            prop_assert_eq!(owner_of[&on], of);
                            // What is planned is what the host's own aggregate accepts.
                            let room = story.hosts().inner.read().hosts[&on].1;
                            let own = story.hosts().placed(on).unwrap().get(&workspace(id)).copied();
                            prop_assert!(needs.fits_into(&room.plus(&own.unwrap_or_default())));
                            story.place(of, on.as_uuid().as_u128(), id, needs);
                        }
                        Placement::NeedsHost => {
                            let room = |(host, _): (&HostId, _)| story.hosts().inner.read().hosts[host].1;
                            let none = owner_of.iter().filter(|(_, owner)| **owner == of).map(room);
                            prop_assert!(none.into_iter().all(|room| !needs.fits_into(&room)));
                        }
                    }
                }
            }
        }
    }
}

/// A million planned placements, with releases, of four organizations that want twice what their hosts hold. The checker shares no code with it.
#[test]
fn a_million_planned_placements_never_mix_organizations() {
    let mut inner = Inner::default();
    for number in 0..16 {
        let registered = HostEvent::Registered {
            host: host(number),
            org: org(number % 4),
            provider: "local".to_owned(),
            machine: format!("local-{number}"),
            capacity: capacity(8, 8),
        };
        inner.apply(host(number), &registered);
    }
    let view = PlacementView { inner: RwLock::new(inner), ..PlacementView::default() };
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    let (mut on, mut placed, mut refused) = (vec![None; 256], 0_u32, 0_u32);
    while placed < 1_000_000 {
        let number = next(256);
        let id = workspace(u128::from(number));
        if let Some(held) = on[number as usize].take() {
            view.inner.write().apply(host(held), &HostEvent::Released { workspace: id });
            continue;
        }
        let of = u128::from(number % 4);
        match view.hosts_of(org(of), id).plan(&capacity(1, 1)) {
            Placement::NeedsHost => refused += 1,
            Placement::On(chosen) => {
                let chosen = chosen.as_uuid().as_u128();
                assert_eq!(chosen % 4, of, "host {chosen} is another organization's");
                view.inner.write().apply(host(chosen), &HostEvent::Placed { workspace: id, needs: capacity(1, 1) });
                on[number as usize] = Some(chosen);
                placed += 1;
            }
        }
    }
    for number in 0..16 {
        let held = view.placed(host(number)).unwrap();
        assert!(held.len() <= 8 && held.keys().all(|id| id.as_uuid().as_u128() % 4 == number % 4));
    }
    assert!(refused > 100_000, "full hosts must be part of it: {refused} refused");
}
