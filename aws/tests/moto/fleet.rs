//! The fleet on EC2: from a wake to a machine and back, and what becomes of failures, crashes and other people's machines.

use std::sync::Arc;

use async_trait::async_trait;
use envforge_commands::hosts::MachineKey;
use envforge_commands::{Context, machines};
use envforge_domain::access::{Action, Resource};
use envforge_domain::commit::{Position, StreamId};
use envforge_domain::host::Host;
use envforge_domain::machine::{Machine, MachineCause, MachineCommand, MachineEnd, MachineEvent, Power, StopMode};
use envforge_domain::time::{Clock, Millis};
use envforge_reactors::fleet::{
    Act, ActError, AgentState, Demand, Executor, FleetPolicy, Grounds, MachineView, OrganizationFleet, PlanRefusal,
    launch_token, machine_key, plan,
};
use envforge_runtime::{Instance, InstanceState, LaunchOrder, MachineProvider, ProviderError};
use envforge_testkit::eventually;

use super::site::{GRACE, Site, policy, workspace};
use super::*;

fn started(event: &MachineEvent) -> bool {
    matches!(event, MachineEvent::Started)
}

async fn running(site: &Site) -> usize {
    let all = site.ec2.list().await.unwrap();
    all.iter().filter(|instance| instance.state == InstanceState::Running).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wake_gets_a_machine_which_stops_after_the_grace_and_starts_for_the_next_wake() {
    let site = Site::new().await;
    site.moto.pull("behave", r#"{"pending":300,"stopping":300,"shutting-down":300}"#);
    site.workspace(1, 1).await;
    let fleet = site.start();
    // Shells come with the workspace, runtimes with the wake.
    let shells: HostId = site.happened("the machine for shells is up", started).await.parse().unwrap();
    let Machine::Live(live) = site.state_of(1, shells).await else { panic!("it is not up") };
    site.enrol(shells, &live.instance, 1).await;
    site.wake(1, 1, 1).await;
    let (on, instance) = site.runtime_machine(1).await;
    site.until_placed(1, on, &[1]).await;
    site.taken(1, 1, 1, on).await;
    site.sleep(1, 1, 1, on).await;
    site.clock.skip(GRACE);
    let idle = |event: &MachineEvent| {
        matches!(event, MachineEvent::StopRequested { mode: StopMode::Stop, cause: MachineCause::Idle })
    };
    assert_eq!(site.happened("it is idle", idle).await, on.to_string());
    site.happened("it has stopped", |event| matches!(event, MachineEvent::Stopped { .. })).await;
    assert_eq!(running(&site).await, 1, "only shells cost anything now");
    site.wake(1, 1, 2).await;
    site.happened("it is wanted", |event| {
        matches!(event, MachineEvent::StartRequested { cause: MachineCause::Demand })
    })
    .await;
    site.until_placed(1, on, &[1]).await;
    assert_eq!(site.ec2.find(&instance).await.unwrap().unwrap().state, InstanceState::Running);
    assert_eq!(site.ec2.list().await.unwrap().len(), 2, "no third machine was launched");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workspaces_of_one_organization_share_a_machine_and_those_of_two_never_do() {
    let site = Site::new().await;
    for (number, of) in [(1, 1), (2, 1), (3, 2), (4, 2)] {
        site.workspace(number, of).await;
        site.wake(number, of, 1).await;
    }
    let fleet = site.start();
    let (first, one) = site.runtime_machine(1).await;
    let (second, other) = site.runtime_machine(2).await;
    site.until_placed(1, first, &[1, 2]).await;
    site.until_placed(2, second, &[3, 4]).await;
    assert_ne!((first, &one), (second, &other));
    assert_eq!(site.ec2.list().await.unwrap().len(), 4);
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_the_call_and_its_event_finds_the_same_machine_again() {
    let site = Site::new().await;
    let terms = order(7, 1).terms;
    let request = MachineCommand::Request { terms: terms.clone(), cause: MachineCause::Demand };
    site.machine(1, host(7), &request).await.unwrap();
    let requested = site.log.last_of_stream(&StreamId::machine(org(1), host(7))).await.unwrap().unwrap().commit.id;
    // A process that made the call and was killed before it wrote down the answer.
    let token = launch_token(requested);
    let launched = site.ec2.launch(&LaunchOrder { terms, token }).await.unwrap();
    for _ in 0..2 {
        let fleet = site.start();
        site.happened("the launch is known", |event| matches!(event, MachineEvent::Launched { .. })).await;
        fleet.kill();
    }
    let events = site.events().await;
    let launches: Vec<_> = events.iter().filter(|(_, event)| matches!(event, MachineEvent::Launched { .. })).collect();
    let expected = (host(7).to_string(), MachineEvent::Launched { instance: launched.id });
    assert_eq!(launches, [&expected]);
    assert_eq!(site.ec2.list().await.unwrap().len(), 1);
    assert_eq!(site.moto.count("RunInstances"), 1, "it was found by its tags");
}

/// Does not see what it launched: as EC2's listings are for a while after a launch.
struct Blind(Arc<envforge_aws::Ec2>);

#[async_trait]
impl MachineProvider for Blind {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    async fn launch(&self, order: &LaunchOrder) -> Result<Instance, ProviderError> {
        self.0.launch(order).await
    }

    async fn find(&self, instance: &str) -> Result<Option<Instance>, ProviderError> {
        self.0.find(instance).await
    }

    async fn list(&self) -> Result<Vec<Instance>, ProviderError> {
        Ok(Vec::new())
    }

    async fn start(&self, instance: &str) -> Result<(), ProviderError> {
        self.0.start(instance).await
    }

    async fn stop(&self, instance: &str, mode: StopMode) -> Result<(), ProviderError> {
        self.0.stop(instance, mode).await
    }

    async fn terminate(&self, instance: &str) -> Result<(), ProviderError> {
        self.0.terminate(instance).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_is_made_good_by_the_token_where_listings_lag_and_a_late_listing_ends_nothing() {
    let site = Site::new().await;
    let terms = order(7, 1).terms;
    let request = MachineCommand::Request { terms: terms.clone(), cause: MachineCause::Demand };
    site.machine(1, host(7), &request).await.unwrap();
    let requested = site.log.last_of_stream(&StreamId::machine(org(1), host(7))).await.unwrap().unwrap().commit.id;
    let launched = site.ec2.launch(&LaunchOrder { terms, token: launch_token(requested) }).await.unwrap();
    let fleet = site.start_on(Arc::new(Blind(Arc::clone(&site.ec2))), policy());
    let known = MachineEvent::Launched { instance: launched.id };
    site.happened("the launch is known", |event| *event == known).await;
    let looks = site.moto.count("DescribeInstances");
    // Many looks that do not list it: each time it is looked for by its id, and found.
    eventually("it was missed and looked for", DEADLINE, async || {
        (site.moto.count("DescribeInstances") > looks + 3).then_some(())
    })
    .await;
    assert!(matches!(site.state_of(1, host(7)).await, Machine::Live(_)));
    assert_eq!(site.ec2.list().await.unwrap().len(), 1);
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_answers_and_throttling_cost_no_second_machine() {
    let site = Site::new().await;
    site.moto.pull("fault", r#"{"action":"RunInstances","after":true,"cut":true,"times":2}"#);
    site.moto.fault("RunInstances", "RequestLimitExceeded", 503, 4);
    site.moto.fault("DescribeInstances", "RequestLimitExceeded", 503, 8);
    site.workspace(1, 1).await;
    site.wake(1, 1, 1).await;
    let fleet = site.start();
    site.happened_times("both machines are up", 2, started).await;
    assert_eq!(site.ec2.list().await.unwrap().len(), 2);
    assert!(site.events().await.iter().all(|(_, event)| !matches!(event, MachineEvent::StrangeReported { .. })));
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_fleets_on_one_log_ask_for_the_same_machines() {
    let site = Site::new().await;
    for number in 1..=3 {
        site.workspace(number, 1).await;
        site.wake(number, 1, 1).await;
    }
    let fleets = [site.start(), site.start()];
    site.happened_times("both machines are up", 2, started).await;
    let (on, _) = site.runtime_machine(1).await;
    site.until_placed(1, on, &[1, 2, 3]).await;
    assert_eq!(site.ec2.list().await.unwrap().len(), 2);
    for fleet in fleets {
        fleet.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launch_without_capacity_fails_and_the_next_one_waits_and_takes_another_shape() {
    let site = Site::new().await;
    site.workspace(1, 1).await;
    let fleet = site.start();
    site.happened("the machine for shells is up", started).await;
    site.moto.fault("RunInstances", "InsufficientInstanceCapacity", 500, 5);
    site.wake(1, 1, 1).await;
    site.happened("the launch failed", |event| {
        matches!(event, MachineEvent::LaunchFailed { reason } if reason.contains("InsufficientInstanceCapacity"))
    })
    .await;
    site.clock.skip(Millis::from_secs(15));
    site.happened(
        "another shape is asked for",
        |event| matches!(event, MachineEvent::Requested { terms, .. } if terms.shape == "m7g.xlarge"),
    )
    .await;
    site.happened_times("it is up", 2, started).await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launch_that_was_half_done_is_over_and_another_one_takes_its_place() {
    let site = Site::new().await;
    site.workspace(1, 1).await;
    let fleet = site.start();
    site.happened("the machine for shells is up", started).await;
    site.moto.pull("doom", r#"{"reason":"Client.VolumeLimitExceeded"}"#);
    site.wake(1, 1, 1).await;
    let ended = MachineEvent::Terminated { end: MachineEnd::Vanished };
    let first = site.happened("it ended by itself", |event| *event == ended).await;
    site.clock.skip(Millis::from_secs(15));
    let (on, _) = site.runtime_machine(1).await;
    assert_ne!(on.to_string(), first);
    site.until_placed(1, on, &[1]).await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_do_to_a_machine_is_recorded_and_a_vanished_one_is_replaced() {
    let site = Site::new().await;
    site.workspace(1, 1).await;
    let fleet = site.start();
    let shells: HostId = site.happened("the machine for shells is up", started).await.parse().unwrap();
    let Machine::Live(live) = site.state_of(1, shells).await else { panic!("it was up") };
    site.ec2.stop(&live.instance, StopMode::Stop).await.unwrap();
    site.happened("the stop is known", |event| {
        matches!(event, MachineEvent::StopRequested { cause: MachineCause::Drift, .. })
    })
    .await;
    site.happened_times("shells are always up", 2, started).await;
    site.moto.pull("vanish", &format!(r#"{{"instance":"{}"}}"#, live.instance));
    let ended = MachineEvent::Terminated { end: MachineEnd::Vanished };
    assert_eq!(site.happened("it is gone", |event| *event == ended).await, shells.to_string());
    site.happened_times("another one is up", 3, started).await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_fails_its_checks_is_stopped_once_and_replaced_when_they_fail_again() {
    let site = Site::new().await;
    site.workspace(1, 1).await;
    site.wake(1, 1, 1).await;
    let fleet = site.start_with(FleetPolicy { shell_shape: None, ..policy() });
    let (on, instance) = site.runtime_machine(1).await;
    site.until_placed(1, on, &[1]).await;
    site.taken(1, 1, 1, on).await;
    // The first time it is stopped, with nothing awake on it, and starts with its disk for the next wake.
    site.moto.pull("impair", &format!(r#"{{"instance":"{instance}"}}"#));
    site.looked(5).await;
    site.clock.skip(Millis::from_minutes(4));
    site.sleep(1, 1, 1, on).await;
    site.looked(5).await;
    assert!(site.events().await.iter().all(|(_, event)| !matches!(event, MachineEvent::StopRequested { .. })));
    site.clock.skip(Millis::from_minutes(1));
    let healed = |event: &MachineEvent| {
        matches!(event, MachineEvent::StopRequested { mode: StopMode::Stop, cause: MachineCause::Unhealthy })
    };
    assert_eq!(site.happened("it is stopped", healed).await, on.to_string());
    site.happened("it has stopped", |event| matches!(event, MachineEvent::Stopped { .. })).await;
    site.wake(1, 1, 2).await;
    site.until_placed(1, on, &[1]).await;
    site.taken(1, 1, 2, on).await;
    assert_eq!(site.ec2.find(&instance).await.unwrap().unwrap().state, InstanceState::Running, "the same instance");

    // The second time it is replaced.
    site.moto.pull("impair", &format!(r#"{{"instance":"{instance}"}}"#));
    site.looked(5).await;
    site.clock.skip(Millis::from_minutes(5));
    let unhealthy = site.happened("it is failing", |event| matches!(event, MachineEvent::Unhealthy { .. })).await;
    assert_eq!(unhealthy, on.to_string());
    site.happened("it drains", |event| matches!(event, MachineEvent::Draining { .. })).await;
    assert!(matches!(site.state_of(1, on).await, Machine::Live(_)), "a runtime that may be awake there is waited for");
    site.sleep(1, 1, 2, on).await;
    let ended = MachineEvent::Terminated { end: MachineEnd::Terminated };
    assert_eq!(site.happened("it is ended", |event| *event == ended).await, on.to_string());
    eventually("its host is retired", DEADLINE, async || {
        matches!(site.host_of(1, on).await, Host::Retired).then_some(())
    })
    .await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_warm_pool_is_there_before_anybody_wakes_anything() {
    let site = Site::new().await;
    site.workspace(1, 1).await;
    let fleet = site.start_with(FleetPolicy { warm: 2, ..policy() });
    site.happened_times("shells and two more are up", 3, started).await;
    site.clock.skip(GRACE);
    site.wake(1, 1, 1).await;
    let (on, _) = site.runtime_machine(1).await;
    site.until_placed(1, on, &[1]).await;
    site.happened_times("the pool is filled again", 4, started).await;
    assert!(site.events().await.iter().all(|(_, event)| !matches!(event, MachineEvent::StopRequested { .. })));
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strange_instances_are_reported_once_and_neither_adopted_nor_touched() {
    let site = Site::new().await;
    // Somebody launched by hand, with our tags, for a host that nobody asked for.
    let strange = site.ec2.launch(&order(7, 2)).await.unwrap().id;
    site.workspace(1, 1).await;
    let fleet = site.start();
    let key = site.happened("it is strange", |event| matches!(event, MachineEvent::StrangeReported { .. })).await;
    assert_eq!(key, strange);
    site.happened("the organization's own is up", started).await;
    // A request for that very host by another organization: the instance is not its answer.
    let request = MachineCommand::Request { terms: order(7, 1).terms, cause: MachineCause::Demand };
    site.machine(1, host(7), &request).await.unwrap();
    eventually("its own instance was launched", DEADLINE, async || {
        let state = site.state_of(1, host(7)).await;
        state.instance().map(|instance| assert_ne!(instance, strange))
    })
    .await;
    let reports = site.events().await;
    let reports = reports.iter().filter(|(key, _)| *key == strange).count();
    assert_eq!(reports, 1);
    assert_eq!(site.ec2.find(&strange).await.unwrap().unwrap().state, InstanceState::Running);
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_whose_tags_were_changed_is_not_touched_any_more() {
    let site = Site::new().await;
    site.workspace(1, 1).await;
    site.wake(1, 1, 1).await;
    let fleet = site.start();
    let (on, instance) = site.runtime_machine(1).await;
    site.until_placed(1, on, &[1]).await;
    let tags = format!(r#"{{"instance":"{instance}","tags":{{"envforge:organization":"{}"}}}}"#, org(2));
    site.moto.pull("tags", &tags);
    site.happened("it is strange", |event| matches!(event, MachineEvent::StrangeReported { .. })).await;
    site.taken(1, 1, 1, on).await;
    site.sleep(1, 1, 1, on).await;
    site.clock.skip(GRACE);
    site.happened("its stop is wanted", |event| matches!(event, MachineEvent::StopRequested { .. })).await;
    let looks = site.moto.count("DescribeInstances");
    eventually("it was looked at again and again", DEADLINE, async || {
        (site.moto.count("DescribeInstances") > looks + 5).then_some(())
    })
    .await;
    assert_eq!(site.ec2.find(&instance).await.unwrap().unwrap().state, InstanceState::Running);
    assert_eq!(site.moto.count("StopInstances"), 0);
    fleet.stop().await;
}

/// The planner is broken: its acts name another organization's instance. So is the agent there: it has come as a host of the planner's
/// organization, and a workspace is placed on it. The executor reads the tags and refuses.
#[tokio::test(flavor = "multi_thread")]
async fn with_planner_and_agent_broken_the_executor_touches_nothing_of_another_organization() {
    let site = Site::new().await;
    site.workspace(1, 1).await;
    let theirs = site.ec2.launch(&order(7, 2)).await.unwrap().id;
    site.register(host(7), &theirs, 1).await.unwrap();
    site.place(1, 1, host(7)).await.unwrap();
    let executor = Executor::new(Arc::clone(&site.ec2) as _, site.commands.clone(), Arc::clone(&site.clock) as _);
    let id = Uuid::from_u128(1);
    let grounds = Grounds {
        requested: envforge_domain::ids::CommitId::from_uuid(id),
        commit: envforge_domain::ids::CommitId::from_uuid(id),
        correlation: envforge_domain::ids::CorrelationId::from_uuid(id),
        position: Position::START,
    };
    let before = site.ec2.find(&theirs).await.unwrap();
    for terms in [order(7, 1).terms, order(8, 2).terms] {
        let instance = theirs.clone();
        let acts = [
            Act::Start { terms: terms.clone(), instance: instance.clone() },
            Act::Stop { terms: terms.clone(), instance: instance.clone(), mode: StopMode::Stop },
            Act::Terminate { terms, instance },
        ];
        for act in acts {
            let refused = executor.act(&act, grounds).await;
            assert!(matches!(refused, Err(ActError::CrossOrganization { .. })), "{act:?}: {refused:?}");
        }
    }
    assert_eq!(site.ec2.find(&theirs).await.unwrap(), before);
    for action in ["StartInstances", "StopInstances", "TerminateInstances"] {
        assert_eq!(site.moto.count(action), 0, "{action}");
    }
}

/// The executor is broken: it believes whatever instance it is shown. So is the agent: it has enrolled as ours and takes whatever is
/// placed there. The planner names nothing of another organization, however the machine stands.
#[tokio::test(flavor = "multi_thread")]
async fn with_executor_and_agent_broken_the_planner_names_nothing_of_another_organization() {
    let site = Site::new().await;
    let theirs = order(7, 2).terms;
    let live = envforge_domain::machine::LiveMachine {
        terms: theirs.clone(),
        instance: site.ec2.launch(&order(7, 2)).await.unwrap().id,
        power: Power::On,
        impaired: false,
        unhealthy: false,
        draining: false,
        used_at: Default::default(),
    };
    let fleet = OrganizationFleet {
        org: org(1),
        machines: vec![MachineView {
            host: theirs.host,
            // Even where the view itself takes it for ours.
            org: org(1),
            purpose: theirs.purpose,
            capacity: theirs.capacity,
            state: Machine::Live(live),
            agent: AgentState::Enrolled,
            requested_at: Default::default(),
            up_at: Default::default(),
            away: Millis::ZERO,
            missed_for: Millis::ZERO,
            heard_at: Default::default(),
            enrolled_at: Default::default(),
            token: Default::default(),
            starts: Default::default(),
            impaired_since: None,
            stopped_as_unhealthy_at: None,
            drained_at: None,
            open_shells: 0,
            placed: Default::default(),
            stale: Default::default(),
            used_at: Default::default(),
            needed_until: Default::default(),
        }],
        demands: Vec::new(),
        workspaces: 1,
        requested_ever: 0,
        failures: Default::default(),
        agents_wanted: 1,
    };
    let demand = |number, of| Demand {
        workspace: workspace(number),
        org: org(of),
        needs: theirs.capacity,
        before: Some(host(7)),
        taken_by: None,
    };
    let taken = Demand { taken_by: Some(host(7)), ..demand(3, 1) };
    let stop = StopMode::Stop;
    for power in [Power::On, Power::Off(stop), Power::Starting, Power::Stopping(stop), Power::Ending] {
        let mut fleet = fleet.clone();
        fleet.demands = vec![demand(1, 1), demand(2, 2), taken.clone()];
        let Machine::Live(live) = &mut fleet.machines[0].state else { panic!("it is live") };
        live.power = power;
        let planned = plan(&fleet, &policy(), site.clock.now());
        let crossed = |workspace, host| PlanRefusal::CrossOrganization { workspace, host };
        assert!(planned.refusals.contains(&crossed(None, Some(host(7)))), "{planned:?}");
        assert!(planned.refusals.contains(&crossed(Some(workspace(2)), None)), "{planned:?}");
        let steps = format!("{:?}", planned.steps);
        for theirs in [host(7).to_string(), workspace(2).to_string(), org(2).to_string()] {
            assert!(!steps.contains(&theirs), "{theirs} {power:?}: {planned:?}");
        }
    }
}

/// Planner and executor are broken: an instance is recorded for a second organization, and a workspace placed there. The
/// claim on the machine and the host's own rule refuse.
#[tokio::test(flavor = "multi_thread")]
async fn with_both_broken_the_log_refuses_a_second_organization_on_a_machine() {
    let site = Site::new().await;
    site.workspace(1, 1).await;
    site.workspace(2, 2).await;
    site.wake(1, 1, 1).await;
    let fleet = site.start();
    let (on, instance) = site.runtime_machine(1).await;
    site.until_placed(1, on, &[1]).await;
    fleet.stop().await;
    let request = MachineCommand::Request { terms: order(8, 2).terms, cause: MachineCause::Demand };
    site.machine(2, host(8), &request).await.unwrap();
    let permit = site.permit(Action::MachineReport, Resource::Host { org: org(2), host: host(8) });
    let report = MachineCommand::ReportLaunched { instance: instance.clone(), org: org(2), host: host(8) };
    let key = MachineKey::parse(&machine_key("aws-ec2", &instance)).unwrap();
    let context = Context::new(site.clock.now());
    let launched = machines::launched(&site.commands, &permit, &context, host(8), key, report).await;
    assert_eq!(launched.unwrap_err().refusal_code(), Some("name_taken"));
    let enrolled = site.register(host(8), &instance, 2).await;
    assert_eq!(enrolled.unwrap_err().refusal_code(), Some("name_taken"));
    let placed = site.place(2, 2, on).await;
    assert_eq!(placed.unwrap_err().refusal_code(), Some("host_unknown"), "their stream knows no such host");
}
