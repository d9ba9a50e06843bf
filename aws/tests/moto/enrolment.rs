//! Enrolment tokens of machines: put once the launch is recorded, good for one agent, taken away; over crashes between each two steps.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use envforge_aws::SsmStore;
use envforge_domain::access::Action;
use envforge_domain::commit::{Actor, Position, StreamId, Surface};
use envforge_domain::denial::{DenialEvent, DeniedAttempts};
use envforge_domain::enrolment::EnrolmentToken;
use envforge_domain::event::Event;
use envforge_domain::host::{Host, HostEvent};
use envforge_domain::machine::{Machine, MachineCause, MachineEvent, StopMode};
use envforge_domain::secret::TokenDigest;
use envforge_domain::time::{Clock, Millis};
use envforge_reactors::fleet::FleetPolicy;
use envforge_runtime::secret_store::StoreError;
use envforge_runtime::{EnrolmentStore, MachineProvider as _};
use envforge_testkit::eventually;

use super::failing::second;
use super::site::{CERTIFICATE, Running, Site, policy};
use super::*;

/// Longer than whoever issued a token may take to put it.
const PUT_PATIENCE: Millis = Millis::from_secs(11);

/// The store behind a process that is killed before what it asks for is carried out, or after.
struct Cut {
    store: Arc<SsmStore>,
    put: Option<When>,
    remove: bool,
    reached: AtomicBool,
}

#[derive(Clone, Copy, PartialEq)]
enum When {
    Before,
    After,
}

impl Cut {
    fn new(site: &Site, put: Option<When>, remove: bool) -> Arc<Self> {
        Arc::new(Self { store: Arc::clone(&site.ssm), put, remove, reached: AtomicBool::new(false) })
    }

    async fn die<T>(&self) -> T {
        self.reached.store(true, Ordering::SeqCst);
        std::future::pending().await
    }

    async fn until_reached(&self) {
        let reached = async || self.reached.load(Ordering::SeqCst).then_some(());
        eventually("the fleet comes to where it is killed", DEADLINE, reached).await;
    }
}

#[async_trait]
impl EnrolmentStore for Cut {
    async fn put(&self, token: &EnrolmentToken) -> Result<(), StoreError> {
        if self.put == Some(When::Before) {
            return self.die().await;
        }
        self.store.put(token).await?;
        if self.put == Some(When::After) { self.die().await } else { Ok(()) }
    }

    async fn remove(&self, org: OrgId, host: HostId) -> Result<(), StoreError> {
        if self.remove { self.die().await } else { self.store.remove(org, host).await }
    }

    async fn kept(&self, org: OrgId) -> Result<BTreeMap<HostId, Option<TokenDigest>>, StoreError> {
        self.store.kept(org).await
    }
}

/// One machine that nobody has enrolled on. No shells.
async fn site() -> Site {
    let site = Site::new().await;
    site.workspace(1, 1).await;
    site.wake(1, 1, 1).await;
    site
}

fn patient() -> FleetPolicy {
    FleetPolicy { shell_shape: None, boot_deadline: Millis::from_hours(1), ..policy() }
}

fn cut_start(site: &Site, cut: &Arc<Cut>) -> Running {
    site.start_with_both(Arc::clone(&site.ec2) as _, Arc::clone(cut) as _, patient())
}

async fn machine(site: &Site) -> (HostId, String) {
    let launched = site.happened("a launch", |event| matches!(event, MachineEvent::Launched { .. })).await;
    let on = launched.parse().unwrap();
    let Machine::Live(live) = site.state_of(1, on).await else { panic!("it is gone") };
    (on, live.instance)
}

/// The digest that the log takes.
async fn open(site: &Site, on: HostId) -> Option<TokenDigest> {
    match site.host_of(1, on).await {
        Host::Expected(expected) => Some(expected.enrolment.token),
        Host::Active(active) => active.agent?.next.map(|next| next.token),
        Host::Unknown | Host::Retired | Host::Revoked => None,
    }
}

async fn issued(site: &Site, on: HostId) -> usize {
    let commits = site.log.read_stream(&StreamId::host(org(1), on), Position::START, 100).await.unwrap();
    let events = commits.iter().flat_map(|recorded| &recorded.commit.events);
    events.filter(|event| matches!(event, Event::Host(HostEvent::EnrolmentIssued { .. }))).count()
}

/// Waits until what lies in the store is what the log takes; answers it.
async fn ready(site: &Site, on: HostId) -> EnrolmentToken {
    eventually("the token that counts lies ready", DEADLINE, async || {
        let token = site.token(1, on).await?;
        (Some(token.digest()) == open(site, on).await).then_some(token)
    })
    .await
}

pub(crate) async fn until_taken_away(site: &Site, on: HostId) {
    eventually("the token is taken away", DEADLINE, async || site.token(1, on).await.is_none().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_lies_ready_for_the_agent_of_a_machine_works_once_and_is_taken_away() {
    let site = site().await;
    let fleet = site.start_with(patient());
    let (on, instance) = machine(&site).await;
    let token = ready(&site, on).await;
    assert_eq!((token.org(), token.host()), (org(1), on));
    assert_eq!(site.token(2, on).await.map(|token| token.digest()), None, "it lies under its organization's path");
    site.enrol_with(&token, on, &instance, 1).await.unwrap();
    until_taken_away(&site, on).await;
    let again = site.enrol_with(&token, on, &instance, 1).await;
    assert_eq!(again.unwrap_err().refusal_code(), Some("enrolment_used"));
    assert_eq!(issued(&site, on).await, 1);
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_before_the_token_is_put_makes_it_void_and_another_one_is_put() {
    let site = site().await;
    let cut = Cut::new(&site, Some(When::Before), false);
    let fleet = cut_start(&site, &cut);
    cut.until_reached().await;
    fleet.kill();
    let (on, _) = machine(&site).await;
    let lost = open(&site, on).await.unwrap();
    assert!(site.token(1, on).await.is_none());
    let fleet = site.start_with(patient());
    site.clock.skip(PUT_PATIENCE);
    let token = ready(&site, on).await;
    assert!(token.digest() != lost);
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_after_the_token_was_put_changes_nothing_and_neither_does_a_lost_answer() {
    let site = site().await;
    site.moto.pull("fault", r#"{"action":"PutParameter","after":true,"cut":true}"#);
    let cut = Cut::new(&site, Some(When::After), false);
    let fleet = cut_start(&site, &cut);
    cut.until_reached().await;
    fleet.kill();
    let (on, instance) = machine(&site).await;
    let token = ready(&site, on).await;
    let fleet = site.start_with(patient());
    site.clock.skip(PUT_PATIENCE);
    let looks = site.moto.count("DescribeInstances");
    let looked = async || (site.moto.count("DescribeInstances") > looks + 5).then_some(());
    eventually("the fleet has looked", DEADLINE, looked).await;
    assert_eq!(issued(&site, on).await, 1);
    site.enrol_with(&token, on, &instance, 1).await.unwrap();
    until_taken_away(&site, on).await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_before_a_used_token_is_taken_away_leaves_it_to_the_next_process() {
    let site = site().await;
    let cut = Cut::new(&site, None, true);
    let fleet = cut_start(&site, &cut);
    let (on, instance) = machine(&site).await;
    let token = ready(&site, on).await;
    site.enrol_with(&token, on, &instance, 1).await.unwrap();
    cut.until_reached().await;
    fleet.kill();
    assert!(site.token(1, on).await.is_some());
    let fleet = site.start_with(patient());
    until_taken_away(&site, on).await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_machine_boots_its_token_is_renewed_and_the_old_one_is_void() {
    let site = site().await;
    let fleet = site.start_with(patient());
    let (on, instance) = machine(&site).await;
    let old = ready(&site, on).await;
    site.clock.skip(Millis::from_minutes(11));
    let new = eventually("another token", DEADLINE, async || {
        let token = ready(&site, on).await;
        (token.digest() != old.digest()).then_some(token)
    })
    .await;
    let refused = site.enrol_with(&old, on, &instance, 1).await;
    assert_eq!(refused.unwrap_err().refusal_code(), Some("enrolment_unknown"));
    site.enrol_with(&new, on, &instance, 1).await.unwrap();
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_fleets_issue_one_token() {
    let site = site().await;
    let fleets = [site.start_with(patient()), site.start_with(patient())];
    let (on, instance) = machine(&site).await;
    let token = ready(&site, on).await;
    site.enrol_with(&token, on, &instance, 1).await.unwrap();
    until_taken_away(&site, on).await;
    assert_eq!(issued(&site, on).await, 1);
    for fleet in fleets {
        fleet.stop().await;
    }
}

/// The agent was killed before it had kept what it got for its token.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_lost_what_it_got_for_its_token_gets_another_one() {
    let site = site().await;
    let fleet = site.start_with(patient());
    let (on, instance) = machine(&site).await;
    let token = ready(&site, on).await;
    site.enrol_with(&token, on, &instance, 1).await.unwrap();
    until_taken_away(&site, on).await;
    site.clock.skip(Millis::from_secs(5));
    let now = site.clock.now();
    let attempt = DeniedAttempts {
        actor: Actor::Anonymous,
        about: None,
        action: Action::HostRegister.token().to_owned(),
        surface: Surface::Agent,
        resource: Some(on.to_string()),
        address: None,
        code: "enrolment_used".to_owned(),
        count: 1,
        first_at: now,
        last_at: now,
        requests: vec![],
    };
    site.tell(StreamId::denial(org(1)), vec![Event::Denial(DenialEvent::Recorded { attempts: vec![attempt] })]).await;
    let next = ready(&site, on).await;
    site.clock.skip(Millis::from_secs(5));
    site.enrol_with(&next, on, &instance, 1).await.unwrap();
    until_taken_away(&site, on).await;
    assert_eq!(issued(&site, on).await, 2);
    fleet.stop().await;
}

/// It was off for longer than its agent's certificate lived.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_starts_after_its_certificate_has_ended_enrols_again() {
    let site = site().await;
    let fleet = site.start_with(patient());
    let (on, instance) = machine(&site).await;
    let token = ready(&site, on).await;
    site.enrol_with(&token, on, &instance, 1).await.unwrap();
    site.until_placed(1, on, &[1]).await;
    site.taken(1, 1, 1, on).await;
    site.sleep(1, 1, 1, on).await;
    site.clock.skip(super::site::GRACE);
    site.happened("it has stopped", |event| matches!(event, MachineEvent::Stopped { .. })).await;
    until_taken_away(&site, on).await;
    site.clock.skip(CERTIFICATE);
    site.wake(1, 1, 2).await;
    let again = ready(&site, on).await;
    site.enrol_with(&again, on, &instance, 1).await.unwrap();
    site.until_placed(1, on, &[1]).await;
    until_taken_away(&site, on).await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_whose_agent_never_enrols_is_replaced_more_and_more_slowly() {
    let site = site().await;
    let deadline = Millis::from_minutes(5);
    let fleet = site.start_with(FleetPolicy { boot_deadline: deadline, ..patient() });
    let mut gone = Vec::new();
    for pause_s in [15, 30] {
        let launches = gone.len() + 1;
        site.happened_times("a machine is up", launches, |event| matches!(event, MachineEvent::Started)).await;
        site.clock.skip(deadline);
        site.happened_times("it is given up", launches, |event| {
            matches!(event, MachineEvent::Unhealthy { reason } if reason == "its agent has not enrolled within 5 min")
        })
        .await;
        site.happened_times("it is ended", launches, |event| matches!(event, MachineEvent::Terminated { .. })).await;
        let requested = async || {
            let requested = |(_, event): &(String, MachineEvent)| matches!(event, MachineEvent::Requested { .. });
            site.events().await.iter().filter(|event| requested(event)).count()
        };
        let looks = site.moto.count("DescribeInstances");
        let looked = async || (site.moto.count("DescribeInstances") > looks + 5).then_some(());
        eventually("the fleet has looked", DEADLINE, looked).await;
        assert_eq!(requested().await, launches, "not at once");
        site.clock.skip(Millis::from_secs(pause_s));
        site.happened_times("another one is asked for", launches + 1, |event| {
            matches!(event, MachineEvent::Requested { .. })
        })
        .await;
        let on: HostId = site.events().await[0].0.parse().unwrap();
        eventually("its host is retired", DEADLINE, async || {
            (site.host_of(1, on).await == Host::Retired).then_some(())
        })
        .await;
        until_taken_away(&site, on).await;
        gone.push(on);
    }
    fleet.stop().await;
}

/// The provider takes it for well, and nobody comes through to it.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_whose_agent_stays_away_is_stopped_and_started_and_replaced_where_that_does_not_help() {
    let site = site().await;
    let fleet = site.start_with(patient());
    let (on, instance) = site.runtime_machine(1).await;
    site.until_placed(1, on, &[1]).await;
    site.taken(1, 1, 1, on).await;
    let touched =
        |event: &MachineEvent| matches!(event, MachineEvent::Unhealthy { .. } | MachineEvent::StopRequested { .. });
    let missed = async |minutes| {
        let away = Millis::from_minutes(minutes);
        site.tell(StreamId::host(org(1), on), vec![HostEvent::AgentLookedFor { away }.into()]).await;
        site.looked(3).await;
        site.events().await.iter().filter(|(_, event)| touched(event)).count()
    };
    assert_eq!((missed(14).await, missed(0).await), (0, 0), "it was back before its time");
    assert_eq!(missed(60).await, 0, "what may be awake there goes on");
    site.sleep(1, 1, 1, on).await;
    let stopped = MachineEvent::StopRequested { mode: StopMode::Stop, cause: MachineCause::Unhealthy };
    assert_eq!(site.happened("it is stopped", |event| *event == stopped).await, on.to_string());
    site.happened("it has stopped", |event| matches!(event, MachineEvent::Stopped { .. })).await;

    // It starts for the next wake. Its agent does not come, and the wake gets another one.
    site.clock.skip(Millis::from_secs(5));
    site.wake(1, 1, 2).await;
    site.happened_times("it is up again", 2, |event| matches!(event, MachineEvent::Started)).await;
    assert_eq!(missed(60).await, 1, "no other agent of the organization has come since");
    site.clock.skip(Millis::from_secs(5));
    let other = second(&site, on).await;
    site.until_placed(1, other, &[1]).await;
    site.taken(1, 1, 2, other).await;
    let reason =
        "its agent has been away for 15 min after a stop and a start, while others came, and nothing is awake there";
    site.happened("it is given up", |event| matches!(event, MachineEvent::Unhealthy { reason: why } if why == reason))
        .await;
    let ended = site.happened("it is ended", |event| matches!(event, MachineEvent::Terminated { .. })).await;
    assert_eq!(ended, on.to_string());
    let state = site.ec2.find(&instance).await.unwrap().map(|instance| instance.state);
    assert!(state.is_none_or(|state| state.is_over()), "{state:?}");
    fleet.stop().await;
}

/// What people say of a fleet's host counts for its machine.
#[tokio::test(flavor = "multi_thread")]
async fn a_drained_host_is_emptied_and_its_machine_ended_and_a_revoked_ones_at_once() {
    let site = site().await;
    let fleet = site.start_with(patient());
    for (wakes, revoked) in [(1, false), (2, true)] {
        if wakes > 1 {
            site.wake(1, 1, wakes).await;
        }
        let (on, _) = site.runtime_machine(1).await;
        site.until_placed(1, on, &[1]).await;
        site.taken(1, 1, wakes, on).await;
        let said = if revoked { HostEvent::Revoked } else { HostEvent::Draining };
        site.tell(StreamId::host(org(1), on), vec![Event::Host(said)]).await;
        let ended = |event: &MachineEvent| matches!(event, MachineEvent::Terminated { .. });
        if !revoked {
            site.happened("it is drained", |event| matches!(event, MachineEvent::Draining { .. })).await;
            let terminated = site.events().await.iter().any(|(_, event)| ended(event));
            assert!(!terminated, "what is awake there is waited for");
            site.sleep(1, 1, wakes, on).await;
        }
        site.happened_times("it is ended", if revoked { 2 } else { 1 }, ended).await;
    }
    fleet.stop().await;
}
