//! Machines that do not do what they are asked: starts that fail, hibernation that is refused, agents whose certificates have ended, and
//! what people and wakes that wait for them get instead.

use envforge_domain::commit::StreamId;
use envforge_domain::event::Event;
use envforge_domain::host::{Host, HostEvent};
use envforge_domain::ids::{SessionId, ShellId, UserId};
use envforge_domain::limits::RENEWAL_RECORD_INTERVAL;
use envforge_domain::machine::{
    Machine, MachineCause, MachineEnd, MachineEvent, MachinePurpose, Power, StartFailure, StopMode,
};
use envforge_domain::runtime::{Epoch, Runtime};
use envforge_domain::shell::{ShellEnd, ShellEnded, ShellEvent, ShellKind, ShellTerms};
use envforge_domain::time::{Clock, Millis};
use envforge_reactors::fleet::FleetPolicy;
use envforge_runtime::{InstanceState, MachineProvider};
use envforge_testkit::eventually;

use super::enrolment::until_taken_away;
use super::site::{CERTIFICATE, GRACE, Running, Site, policy, project, workspace};
use super::*;

/// Machines for runtimes alone, all of one shape.
fn runtimes() -> FleetPolicy {
    FleetPolicy { shell_shape: None, ..policy() }
}

/// A machine that has run workspace 1 once and was stopped since.
async fn stopped(site: &Site, policy: FleetPolicy) -> (Running, HostId, String) {
    site.workspace(1, 1).await;
    site.wake(1, 1, 1).await;
    let fleet = site.start_with(policy);
    let (on, instance) = site.runtime_machine(1).await;
    site.until_placed(1, on, &[1]).await;
    site.taken(1, 1, 1, on).await;
    site.sleep(1, 1, 1, on).await;
    site.clock.skip(GRACE);
    site.happened("it has stopped", |event| matches!(event, MachineEvent::Stopped { .. })).await;
    (fleet, on, instance)
}

/// Waits for a second machine for runtimes, enrols there, and answers its host.
pub(crate) async fn second(site: &Site, first: HostId) -> HostId {
    let (on, instance) = eventually("another machine that is up", DEADLINE, async || {
        for (key, event) in site.events().await {
            let MachineEvent::Requested { terms, .. } = event else { continue };
            if terms.host == first || terms.purpose != MachinePurpose::Runtime {
                continue;
            }
            if let Machine::Live(live) = site.state_of(1, key.parse().unwrap()).await
                && live.power == Power::On
            {
                return Some((terms.host, live.instance));
            }
        }
        None
    })
    .await;
    site.enrol(on, &instance, 1).await;
    on
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wake_whose_machine_cannot_start_for_lack_of_capacity_gets_another_one() {
    let site = Site::new().await;
    let (fleet, on, _) = stopped(&site, runtimes()).await;
    site.moto.fault("StartInstances", "InsufficientInstanceCapacity", 500, 1_000);
    site.wake(1, 1, 2).await;
    let refused = |event: &MachineEvent| {
        matches!(event, MachineEvent::StartFailed { why: StartFailure::Capacity, reason }
            if reason.contains("InsufficientInstanceCapacity"))
    };
    assert_eq!(site.happened("the start failed", refused).await, on.to_string());
    let other = second(&site, on).await;
    site.until_placed(1, other, &[1]).await;
    site.looked(5).await;
    assert_eq!(site.moto.count("StartInstances"), 1, "it is not asked for all the time");
    let Machine::Live(live) = site.state_of(1, on).await else { panic!("its disk is gone") };
    assert_eq!(live.power, Power::Off(StopMode::Stop));
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_stops_again_whenever_it_starts_says_why_and_keeps_no_wake_waiting() {
    let site = Site::new().await;
    let (fleet, on, instance) = stopped(&site, runtimes()).await;
    site.moto.pull("doom", r#"{"action":"StartInstances","reason":"Client.InvalidKMSKey.InvalidState","times":1000}"#);
    site.wake(1, 1, 2).await;
    let again = |event: &MachineEvent| {
        matches!(event, MachineEvent::StartFailed { why: StartFailure::StoppedAgain, reason }
            if reason.contains("Client.InvalidKMSKey.InvalidState"))
    };
    assert_eq!(site.happened("it stopped again", again).await, on.to_string());
    let other = second(&site, on).await;
    site.until_placed(1, other, &[1]).await;
    assert_eq!(site.moto.count("StartInstances"), 1);
    assert_eq!(site.ec2.find(&instance).await.unwrap().unwrap().state, InstanceState::Stopped);
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_starts_late_is_used_again() {
    let site = Site::new().await;
    let (fleet, on, _) = stopped(&site, FleetPolicy { machines_max: 1, ..runtimes() }).await;
    site.moto.fault("StartInstances", "InsufficientInstanceCapacity", 500, 1);
    site.moto.fault("RunInstances", "InsufficientInstanceCapacity", 500, 1_000);
    site.wake(1, 1, 2).await;
    site.happened("no other one either", |event| matches!(event, MachineEvent::LaunchFailed { .. })).await;
    site.clock.skip(Millis::from_secs(15));
    site.happened_times("it is up again", 2, |event| matches!(event, MachineEvent::Started)).await;
    site.until_placed(1, on, &[1]).await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_cannot_hibernate_is_stopped_however_that_shows() {
    for launched_for_it in [false, true] {
        let site = Site::new().await;
        // Stand-ins hibernate what was launched as an m7g.xlarge; policies may say anything by now.
        let mut hibernating = FleetPolicy { hibernate: true, ..runtimes() };
        let which = usize::from(launched_for_it);
        hibernating.shapes =
            vec![envforge_reactors::fleet::Shape { hibernates: true, ..policy().shapes[which].clone() }];
        if launched_for_it {
            site.moto.fault("StopInstances", "UnsupportedOperation", 400, 1);
        }
        let (fleet, on, _) = stopped(&site, hibernating).await;
        let all = site.events().await;
        let stops: Vec<_> = all
            .into_iter()
            .filter(|(_, event)| matches!(event, MachineEvent::StopRequested { .. } | MachineEvent::Stopped { .. }))
            .collect();
        let (mode, key) = (StopMode::Stop, on.to_string());
        let idle = MachineEvent::StopRequested { mode: StopMode::Hibernate, cause: MachineCause::Idle };
        let instead = MachineEvent::StopRequested { mode, cause: MachineCause::NoHibernation };
        let expected = [idle, instead, MachineEvent::Stopped { mode }].map(|event| (key.clone(), event));
        assert_eq!(stops, expected);
        assert_eq!(site.moto.count("StopInstances"), 1 + u64::from(launched_for_it));
        fleet.stop().await;
    }
}

/// A stop for idleness and a wake that the host has just taken cross.
#[tokio::test(flavor = "multi_thread")]
async fn a_wake_that_a_host_took_while_its_machine_was_stopped_starts_it() {
    let site = Site::new().await;
    let (fleet, on, _) = stopped(&site, runtimes()).await;
    site.wake(1, 1, 2).await;
    site.taken(1, 1, 2, on).await;
    site.happened_times("it is up again", 2, |event| matches!(event, MachineEvent::Started)).await;
    site.looked(3).await;
    let runtime = site.runtime(1, 1).await;
    assert!(matches!(runtime, Runtime::Waking { epoch: Epoch(2), host: Some(host), .. } if host == on), "{runtime:?}");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wake_whose_host_cannot_come_back_goes_to_another_one() {
    let site = Site::new().await;
    let (fleet, on, _) = stopped(&site, runtimes()).await;
    site.moto.fault("StartInstances", "InsufficientInstanceCapacity", 500, 1_000);
    site.wake(1, 1, 2).await;
    site.taken(1, 1, 2, on).await;
    let anew =
        async || matches!(site.runtime(1, 1).await, Runtime::Waking { epoch: Epoch(3), host: None, .. }).then_some(());
    eventually("any host may take it", DEADLINE, anew).await;
    let other = second(&site, on).await;
    site.until_placed(1, other, &[1]).await;
    fleet.stop().await;
}

/// The control plane was away for longer than the certificate of the agent lived; the machine was up all the while.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_certificate_ended_gets_a_token_and_no_wake_before_it_has_enrolled() {
    let site = Site::new().await;
    site.workspace(1, 1).await;
    site.wake(1, 1, 1).await;
    let warm = FleetPolicy { warm: 1, ..runtimes() };
    let fleet = site.start_with(warm.clone());
    let (on, instance) = site.runtime_machine(1).await;
    site.until_placed(1, on, &[1]).await;
    site.taken(1, 1, 1, on).await;
    site.sleep(1, 1, 1, on).await;
    until_taken_away(&site, on).await;
    fleet.stop().await;
    site.clock.skip(CERTIFICATE);
    site.clock.skip(RENEWAL_RECORD_INTERVAL);
    site.wake(1, 1, 2).await;
    let fleet = site.start_with(warm);
    let token = eventually("a token lies ready", DEADLINE, async || site.token(1, on).await).await;
    site.looked(5).await;
    let Host::Active(active) = site.host_of(1, on).await else { panic!("it is a host") };
    assert!(active.placed.is_empty(), "its agent cannot take it");
    // The one that was kept warm beside it never had an agent.
    let given_up = |(key, event): &(String, MachineEvent)| {
        *key == on.to_string() && matches!(event, MachineEvent::Unhealthy { .. })
    };
    assert!(!site.events().await.iter().any(given_up), "it has as long as any to enrol");
    site.enrol_with(&token, on, &instance, 1).await.unwrap();
    site.until_placed(1, on, &[1]).await;
    fleet.stop().await;
}

/// What agents connect to is away: nobody looks for them.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_certificate_ended_keeps_its_machine_however_long_it_does_not_come() {
    let site = Site::new().await;
    site.workspace(1, 1).await;
    let warm = FleetPolicy { warm: 1, ..runtimes() };
    let fleet = site.start_with(warm.clone());
    let (on, instance) = site.runtime_machine(1).await;
    until_taken_away(&site, on).await;
    fleet.stop().await;
    site.clock.skip(CERTIFICATE);
    site.clock.skip(RENEWAL_RECORD_INTERVAL);
    let fleet = site.start_with(warm);
    for _ in 0..4 {
        eventually("a token lies ready", DEADLINE, async || site.token(1, on).await).await;
        site.looked(5).await;
        site.clock.skip(policy().boot_deadline);
    }
    site.looked(5).await;
    let ends =
        |event: &MachineEvent| matches!(event, MachineEvent::Unhealthy { .. } | MachineEvent::StopRequested { .. });
    assert!(!site.events().await.iter().any(|(key, event)| *key == on.to_string() && ends(event)));
    site.enrol(on, &instance, 1).await;
    until_taken_away(&site, on).await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_machine_for_shells_stays_until_they_are_over_beside_the_one_that_takes_its_place() {
    let site = Site::new().await;
    site.workspace(1, 1).await;
    let fleet = site.start();
    let started = |event: &MachineEvent| matches!(event, MachineEvent::Started);
    let on: HostId = site.happened("the machine for shells is up", started).await.parse().unwrap();
    let Machine::Live(live) = site.state_of(1, on).await else { panic!("it is up") };
    site.enrol(on, &live.instance, 1).await;
    let (shell, user, at) =
        (ShellId::from_uuid(Uuid::from_u128(5)), UserId::from_uuid(Uuid::from_u128(1)), site.clock.now());
    let terms = ShellTerms {
        shell,
        project: project(),
        workspace: workspace(1),
        user,
        session: SessionId::from_uuid(Uuid::from_u128(6)),
        kind: ShellKind::Terminal,
        host: Some(on),
        git: None,
        at,
    };
    let stream = StreamId::shell(org(1), shell);
    site.tell(stream.clone(), vec![Event::Shell(ShellEvent::Connected { terms })]).await;
    site.tell(StreamId::host(org(1), on), vec![Event::Host(HostEvent::Draining)]).await;
    site.happened("it is drained", |event| matches!(event, MachineEvent::Draining { .. })).await;
    site.happened_times("another one is up", 2, started).await;
    site.looked(5).await;
    assert_eq!(site.moto.count("TerminateInstances"), 0, "somebody is at work there");
    let ended = ShellEnded { end: ShellEnd::Exited, code: Some(0), at, duration: Millis::new(1) };
    let over = ShellEvent::Disconnected { user, workspace: workspace(1), ended };
    site.tell(stream, vec![Event::Shell(over)]).await;
    let ended = MachineEvent::Terminated { end: MachineEnd::Terminated };
    assert_eq!(site.happened("it is ended", |event| *event == ended).await, on.to_string());
    fleet.stop().await;
}
