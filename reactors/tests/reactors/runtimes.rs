//! One host's runtimes: woken, put to sleep, given up, and ended when the log no longer wants them.

use envforge_domain::limits::{RUNTIME_LEASE, WAKE_DEADLINE};
use envforge_domain::runtime::{Epoch, Runtime, RuntimeCommand, RuntimeEvent, SleepCause};
use envforge_domain::time::Millis;
use envforge_testkit::eventually;

use crate::site::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_wake_that_the_log_asks_for_is_carried_out_and_a_sleep_too() {
    let site = Site::new().await;
    let running = site.start().await;
    site.wake().await;
    site.until("ready", ready).await;
    let address = site.address().await;
    tokio::net::TcpStream::connect(address).await.unwrap();
    site.sleep().await;
    site.until("asleep", asleep).await;
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "nothing may listen on {address} any more");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wake_asked_for_while_nobody_listened_is_carried_out_later() {
    let site = Site::new().await;
    site.wake().await;
    let running = site.start().await;
    site.until("ready", ready).await;
    running.stop().await;
    assert!(asleep(&site.state_of(site.workspace).await), "a stopping EnvForge puts its runtimes to sleep");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_cannot_start_fails_the_wake_without_showing_its_output() {
    let site = Site::with("echo hunter2; exit 3").await;
    let running = site.start().await;
    site.wake().await;
    site.until("failed", failed).await;
    let reason = site.events().await.into_iter().find_map(|event| match event {
        RuntimeEvent::Failed { reason, .. } => Some(reason),
        _ => None,
    });
    let reason = reason.unwrap();
    assert!(reason.contains("web") && !reason.contains("hunter2"), "{reason}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archived_workspace_is_put_to_sleep_and_nothing_of_it_is_kept() {
    let site = Site::new().await;
    let (running, ticking) = (site.start().await, site.tick());
    site.wake().await;
    site.until("ready", ready).await;
    let place = running.place(site.workspace);
    assert!(place.is_dir());
    site.archive(site.workspace).await;
    site.until("asleep", asleep).await;
    site.until_placed(running.id, &[]).await;
    eventually("what was kept of it is removed", DEADLINE, async || (!place.exists()).then_some(())).await;
    ticking.stop().await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_starts_again_says_what_it_lost() {
    let site = Site::new().await;
    let running = site.start().await;
    site.wake().await;
    site.until("ready", ready).await;
    // The agent dies without a word: nothing is put to sleep. A directory is held by one process, so the machine's next
    // agent gets another one here, with the host's key.
    running.reactor.abort();
    let new = site.directory.path().join("runtime-2");
    std::fs::create_dir(&new).unwrap();
    std::fs::copy(running.state.join("machine-key"), new.join("machine-key")).unwrap();
    running.host.shutdown().await;
    let running = site.start_as(Agent { state: "runtime-2", ..Agent::default() }).await;
    site.until("asleep", asleep).await;
    assert!(site.events().await.iter().any(|event| matches!(event, RuntimeEvent::Lost { .. })));
    site.wake().await;
    site.until("ready again", ready).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_that_was_given_up_while_its_host_lived_is_ended_there() {
    let site = Site::new().await;
    let running = site.start().await;
    site.wake().await;
    site.until("ready", ready).await;
    let address = site.address().await;
    // As after a suspended machine or a log that was out of reach for longer than the lease.
    site.clock.skip(Millis::new(2 * RUNTIME_LEASE.get() + 1_000));
    let lost = RuntimeCommand::DeclareLost { epoch: Epoch(1), confirmed_by: None, now: site.now() };
    site.report(site.workspace, &lost).await.unwrap();
    assert!(asleep(&site.state_of(site.workspace).await));
    until_closed(address).await;
    site.until_placed(running.id, &[]).await;
    site.wake().await;
    site.until("ready again", ready).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wake_that_takes_forever_is_given_up_and_its_processes_end() {
    let site = Site::with("echo $$ > \"$ENVFORGE_DATA_DIR/pid\"; exec sleep 1000").await;
    let (running, ticking) = (site.start().await, site.tick());
    site.wake().await;
    let pid = pid(&running, site.workspace).await;
    site.clock.skip(Millis::new(WAKE_DEADLINE.get() + RUNTIME_LEASE.get()));
    site.until("failed", failed).await;
    until_ended(pid).await;
    site.until_placed(running.id, &[]).await;
    ticking.stop().await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wake_that_was_given_up_is_cancelled_on_its_host() {
    let site = Site::with("echo $$ > \"$ENVFORGE_DATA_DIR/pid\"; exec sleep 1000").await;
    let running = site.start().await;
    site.wake().await;
    let pid = pid(&running, site.workspace).await;
    let given_up = RuntimeCommand::DeclareLost { epoch: Epoch(1), confirmed_by: None, now: site.now() };
    site.report(site.workspace, &given_up).await.unwrap();
    until_ended(pid).await;
    assert!(failed(&site.state_of(site.workspace).await));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wake_that_arrives_while_going_to_sleep_follows() {
    let site = Site::new().await;
    let hook = "on_sleep: { command: \"until test -e $ENVFORGE_DATA_DIR/gate; do sleep 0.02; done\", deadline: 30s }\n";
    let slow = manifest(SERVER).replace("services:", &format!("{hook}services:"));
    let thing = site.workspace_of(acme(), site.workspace.project, "slow", &slow).await;
    let running = site.start().await;
    site.wake_of(thing).await;
    site.until_of(thing, "ready", ready).await;
    site.sleep_of(thing).await;
    site.wake_of(thing).await;
    let queued = site.state_of(thing).await;
    assert!(matches!(queued, Runtime::Sleeping { queued: Some(_), .. }), "{queued:?}");
    std::fs::write(running.place(thing).join("data/gate"), "").unwrap();
    let again = site.until_of(thing, "ready again", |state| ready(state) && state.epoch() == Epoch(2)).await;
    assert_eq!(again.host(), Some(running.id));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unused_runtime_goes_to_sleep_and_says_why() {
    let site = Site::new().await;
    let (running, ticking) = (site.start().await, site.tick());
    site.wake().await;
    site.until("ready", ready).await;
    site.clock.skip(Millis::from_secs(31));
    site.until("asleep", asleep).await;
    let idle = site.events().await.into_iter().any(|event| {
        matches!(event, RuntimeEvent::SleepRequested { cause: SleepCause::Idle { idle_for }, .. } if idle_for >= Millis::from_secs(30))
    });
    assert!(idle);
    ticking.stop().await;
    running.stop().await;
}
