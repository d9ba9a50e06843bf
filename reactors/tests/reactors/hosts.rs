//! Several hosts and organizations on one log: who carries out a wake, and what room is left afterwards.

use std::collections::BTreeSet;

use envforge_domain::commit::Position;
use envforge_domain::event::Event;
use envforge_domain::host::HostEvent;
use envforge_domain::limits::{RUNTIME_LEASE, WAKE_DEADLINE};
use envforge_domain::runtime::RuntimeEvent;
use envforge_domain::time::Millis;
use envforge_eventlog::Filter;
use envforge_testkit::eventually;

use crate::site::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_host_with_room_for_one_serves_any_number_of_workspaces_one_after_the_other() {
    let site = Site::new().await;
    let running = site.start_as(Agent { capacity: Some(small()), ..Agent::default() }).await;
    let ticking = site.tick();
    for round in 0..4 {
        let thing = site.another(&format!("round-{round}")).await;
        site.wake_of(thing).await;
        site.until_of(thing, "ready", ready).await;
        if round % 2 == 0 {
            site.sleep_of(thing).await;
        } else {
            site.archive(thing).await;
        }
        site.until_of(thing, "asleep", asleep).await;
        if round % 2 == 1 {
            let place = running.place(thing);
            eventually("what was kept of it is removed", DEADLINE, async || (!place.exists()).then_some(())).await;
        }
    }
    site.until_placed(running.id, &[]).await;
    ticking.stop().await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wake_without_room_waits_for_some_and_fails_when_none_comes() {
    let site = Site::new().await;
    let running = site.start_as(Agent { capacity: Some(small()), ..Agent::default() }).await;
    let (second, third) = (site.another("second").await, site.another("third").await);
    site.wake().await;
    site.until("ready", ready).await;
    site.wake_of(second).await;
    site.sleep().await;
    site.until_of(second, "ready in the first one's room", ready).await;
    site.wake_of(third).await;
    site.clock.skip(Millis::from_secs(11));
    site.until_of(third, "failed", failed).await;
    let reason = site.events_of(third).await.into_iter().find_map(|event| match event {
        RuntimeEvent::Failed { reason, .. } => Some(reason),
        _ => None,
    });
    assert_eq!(reason.unwrap(), "no host of the organization has room for this workspace");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_machines_make_one_wake_and_one_set_of_services_of_it() {
    for reversed in [false, true] {
        let site = Site::new().await;
        let mut agents = [("one", MACHINE), ("two", OTHER_MACHINE)];
        if reversed {
            agents.reverse();
        }
        let mut machines = Vec::new();
        for (state, machine_id) in agents {
            machines.push(site.start_as(Agent { state, machine_id, ..Agent::default() }).await);
        }
        site.wake().await;
        let host = site.until("ready", ready).await.host().unwrap();
        // The one that did not get it gives its room back, and has started nothing.
        for machine in &machines {
            let mine = machine.id == host;
            site.until_placed(machine.id, if mine { std::slice::from_ref(&site.workspace) } else { &[] }).await;
            assert_eq!(machine.starts(site.workspace), usize::from(mine));
        }
        site.sleep().await;
        site.until("asleep", asleep).await;
        site.wake().await;
        let again = site.until("ready again", ready).await.host().unwrap();
        assert_eq!(again, host, "it goes back to where its data lies");
        let events = site.events().await;
        let count = |wanted: fn(&RuntimeEvent) -> bool| events.iter().filter(|event| wanted(event)).count();
        assert_eq!(count(|event| matches!(event, RuntimeEvent::HostChosen { .. })), 2);
        assert_eq!(count(|event| matches!(event, RuntimeEvent::Ready { .. })), 2);
        assert_eq!(count(|event| matches!(event, RuntimeEvent::Failed { .. })), 0);
        assert_eq!(machines.iter().map(|machine| machine.starts(site.workspace)).sum::<usize>(), 2);
        for machine in machines {
            machine.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_gone_is_stood_in_for_by_another_one_with_room() {
    let site = Site::new().await;
    let first = site.start_as(Agent { state: "one", ..Agent::default() }).await;
    site.wake().await;
    site.until("ready", ready).await;
    first.stop().await;
    let second = site.start_as(Agent { state: "two", machine_id: OTHER_MACHINE, ..Agent::default() }).await;
    site.wake().await;
    site.clock.skip(RUNTIME_LEASE);
    assert_eq!(site.until("ready elsewhere", ready).await.host(), Some(second.id));
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_of_another_organization_keeps_out_of_a_wake() {
    let site = Site::new().await;
    let of_acme = site.start_as(Agent { state: "one", ..Agent::default() }).await;
    site.wake().await;
    site.until("ready", ready).await;
    let project = site.organization(globex(), "globex").await;
    let theirs = site.workspace_of(globex(), project, "main", &manifest(SERVER)).await;
    site.wake_of(theirs).await;
    // Whoever carries out a later wake has seen the earlier one.
    let later = site.another("later").await;
    site.wake_of(later).await;
    site.until_of(later, "ready", ready).await;
    let events = site.events_of(theirs).await;
    assert!(matches!(events.as_slice(), [RuntimeEvent::WakeRequested { .. }]), "{events:?}");
    let of_globex = site.start_as(Agent { state: "two", machine_id: OTHER_MACHINE, ..Agent::default() }).await;
    assert_eq!(site.until_of(theirs, "ready", ready).await.host(), Some(of_globex.id));
    of_globex.stop().await;
    of_acme.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_state_folders_on_one_machine_never_serve_two_organizations() {
    let site = Site::new().await;
    let project = site.organization(globex(), "globex").await;
    let theirs = site.workspace_of(globex(), project, "main", &manifest(SERVER)).await;
    let of_acme = site.start_as(Agent { state: "one", ..Agent::default() }).await;
    site.wake().await;
    site.until("ready", ready).await;
    let beside = site.start_as(Agent { state: "two", ..Agent::default() }).await;
    site.wake_of(theirs).await;
    let ticking = site.tick();
    // Long enough for whoever might step in, and then for the timers.
    site.clock.skip(RUNTIME_LEASE);
    site.clock.skip(WAKE_DEADLINE);
    site.until_of(theirs, "failed", failed).await;
    let reason = site.events_of(theirs).await.into_iter().find_map(|event| match event {
        RuntimeEvent::Failed { reason, .. } => Some(reason),
        _ => None,
    });
    assert_eq!(reason.unwrap(), "no host took this wake");
    let owners = site.history().await.into_iter().filter_map(|event| match event {
        Event::Host(HostEvent::Registered { org, .. }) => Some(org),
        _ => None,
    });
    assert_eq!(owners.collect::<Vec<_>>(), [acme()]);
    ticking.stop().await;
    beside.stop().await;
    of_acme.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_was_registered_by_its_folders_key_claims_its_machine_at_the_next_wake() {
    let site = Site::new().await;
    let before = site.start_as(Agent { state: "one", machine_id: "", ..Agent::default() }).await;
    site.wake().await;
    site.until("ready", ready).await;
    let folder = site.directory.path().join("one-again");
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(before.state.join("machine-key"), folder.join("machine-key")).unwrap();
    let host = before.id;
    before.stop().await;
    let now = site.start_as(Agent { state: "one-again", ..Agent::default() }).await;
    site.wake().await;
    assert_eq!(site.until("ready again", ready).await.host(), Some(host));
    let page = site.log.read(Position::START, 10_000, &Filter::everything()).await.unwrap();
    let machines: BTreeSet<_> = page
        .commits
        .iter()
        .filter(|recorded| recorded.commit.stream.key().starts_with("machine_"))
        .map(|recorded| recorded.commit.stream.key().to_owned())
        .collect();
    assert_eq!(machines.len(), 2, "{machines:?}");
    now.stop().await;
}
