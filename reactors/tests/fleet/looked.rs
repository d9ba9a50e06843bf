//! What fleets believe of what they see, a look at a time: instances that do not show yet, tokens that another fleet has put, an
//! authority that was replaced.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use envforge_domain::commit::{Position, StreamId};
use envforge_domain::event::Event;
use envforge_domain::host::HostEvent;
use envforge_domain::ids::UserId;
use envforge_domain::machine::{MachineEnd, MachineEvent};
use envforge_domain::runtime::{Epoch, RuntimeEvent, WakeCause};
use envforge_domain::secret::TokenDigest;
use envforge_reactors::fleet::ReadAuthority;
use envforge_testkit::eventually;

use super::logged::{Site, project};
use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

/// Machines for runtimes alone, that are waited for.
fn patient() -> FleetPolicy {
    FleetPolicy { shell_shape: None, boot_deadline: Millis::from_hours(1), ..policy() }
}

fn authority() -> ReadAuthority {
    Arc::new(|| Some(TokenDigest::from_bytes([9; 32])))
}

impl Site {
    /// Somebody opens so many workspaces of the first organization, after the first ones.
    async fn wake(&self, skip: usize, count: usize) {
        let own = self.owners.iter().filter(|(_, of)| **of == org(1)).skip(skip).take(count);
        for (workspace, of) in own {
            let cause = WakeCause::Person(UserId::from_uuid(Uuid::from_u128(1)));
            let (workspace, epoch) = (*workspace, Epoch(1));
            let asked = RuntimeEvent::WakeRequested { epoch, workspace, project: project(), cause };
            let stream = StreamId::runtime(*of, workspace);
            assert!(self.tell(stream, Position::START, vec![Event::Runtime(asked)]).await);
        }
    }

    async fn looked(&self, times: u32) {
        let looks = || self.cloud.counts.lock().unwrap().get("looks").copied().unwrap_or_default();
        let before = looks();
        eventually("fleets look", DEADLINE, async || (looks() >= before + times).then_some(())).await;
    }

    async fn of_machines(&self, which: impl Fn(&MachineEvent) -> bool) -> usize {
        let events = self.events().await;
        events.iter().filter(|(_, event)| matches!(event, Event::Machine(event) if which(event))).count()
    }

    /// How many tokens were issued for each host.
    async fn issued(&self) -> BTreeMap<HostId, usize> {
        let mut issued = BTreeMap::new();
        for (_, event) in self.events().await {
            if let Event::Host(HostEvent::EnrolmentIssued { host, .. }) = event {
                *issued.entry(host).or_default() += 1;
            }
        }
        issued
    }

    async fn until_tokens_lie_ready(&self, count: usize) {
        let ready = async || (self.cloud.tokens.lock().unwrap().len() == count).then_some(());
        eventually("tokens lie ready", DEADLINE, ready).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_does_not_show_yet_is_waited_for_and_one_that_shows_too_late_is_ended() {
    let site = Site::new(None).await;
    site.cloud.hides.store(true, Ordering::SeqCst);
    site.wake(0, 1).await;
    let fleet = site.start_with(patient(), authority());
    let launched = |event: &MachineEvent| matches!(event, MachineEvent::Launched { .. });
    eventually("a launch", DEADLINE, async || (site.of_machines(launched).await == 1).then_some(())).await;
    site.looked(20).await;
    let vanished = |event: &MachineEvent| *event == MachineEvent::Terminated { end: MachineEnd::Vanished };
    assert_eq!(site.of_machines(vanished).await, 0, "it was launched just now");
    site.clock.skip(Millis::from_minutes(5));
    eventually("nobody waits any longer", DEADLINE, async || (site.of_machines(vanished).await == 1).then_some(()))
        .await;
    site.cloud.hides.store(false, Ordering::SeqCst);
    let ended = async || {
        let instances = site.cloud.instances.lock().unwrap();
        (instances["i-1"].state == InstanceState::Terminated).then_some(())
    };
    eventually("it is ended", DEADLINE, ended).await;
    let strange = |event: &MachineEvent| matches!(event, MachineEvent::StrangeReported { .. });
    assert_eq!(site.of_machines(strange).await, 0);
    fleet.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_that_listed_before_another_one_put_a_token_issues_none_of_its_own() {
    let site = Site::new(None).await;
    let fleets = [site.start_with(patient(), authority()), site.start_with(patient(), authority())];
    // Both have listed for the first machine by the time that there is a second one: five workspaces fill one.
    site.wake(0, 5).await;
    site.until_tokens_lie_ready(1).await;
    site.looked(10).await;
    site.clock.skip(Millis::from_secs(5));
    site.wake(5, 1).await;
    site.until_tokens_lie_ready(2).await;
    for _ in 0..3 {
        site.clock.skip(Millis::from_secs(11));
        site.looked(10).await;
    }
    assert_eq!(site.issued().await.into_values().collect::<Vec<_>>(), [1, 1]);
    for fleet in fleets {
        fleet.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_token_carries_the_authority_that_is_there_when_it_is_issued() {
    let site = Site::new(None).await;
    let present = Arc::new(Mutex::new(None));
    let read = Arc::clone(&present);
    let fleet = site.start_with(patient(), Arc::new(move || *read.lock().unwrap()));
    site.wake(0, 5).await;
    site.looked(10).await;
    assert!(site.issued().await.is_empty(), "nobody could tell whom an agent is to trust");
    for (number, skip, count) in [(1_u8, 0, 0), (2, 5, 1)] {
        *present.lock().unwrap() = Some(TokenDigest::from_bytes([number; 32]));
        site.wake(skip, count).await;
        site.until_tokens_lie_ready(usize::from(number)).await;
    }
    let tokens = site.cloud.tokens.lock().unwrap();
    let mut carried: Vec<_> = tokens.values().map(|token| token.authority()).collect();
    carried.sort();
    assert_eq!(carried, [1, 2].map(|number| TokenDigest::from_bytes([number; 32])));
    fleet.abort();
}
