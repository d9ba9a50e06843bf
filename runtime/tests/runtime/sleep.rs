//! Going to sleep: the hook, the two signals, and what tried to get away.

use std::fs;
use std::time::{Duration, Instant};

use envforge_domain::manifest::Probe;
use envforge_domain::time::Millis;
use envforge_runtime::{LocalHost, Stage, WakeFailure};
use tokio::sync::watch;

use crate::fixture::*;

#[tokio::test]
async fn the_hook_runs_while_the_services_still_answer_and_finds_their_ports() {
    let (host, repository) = (Host::open().await, Repository::with(&[("index.html", "still here\n")]));
    let mut order = order(&repository, [listening("web", WEB_SERVER, http("/"))]);
    let ask = "python3 -c 'import os, urllib.request as u; \
               print(u.urlopen(\"http://127.0.0.1:\" + os.environ[\"ENVFORGE_SERVICE_WEB_PORT\"]).read().decode(), end=\"\")' \
               > \"$ENVFORGE_DATA_DIR/asked\"; echo flushed";
    order.manifest.on_sleep = on_sleep(ask, Millis::from_secs(30));
    host.wake(order).await.unwrap();
    host.host.sleep(workspace(1), 1).await.unwrap();
    assert_eq!(fs::read_to_string(host.data(workspace(1)).join("asked")).unwrap(), "still here\n");
    assert_eq!(fs::read_to_string(host.place(workspace(1)).join("output/on_sleep.log")).unwrap(), "flushed\n");
}

#[tokio::test]
async fn a_hook_that_hangs_is_cut_off_and_ended() {
    let (host, repository) = (Host::open().await, Repository::with(&[]));
    let mut order = order(&repository, [service("app", "exec sleep 1000")]);
    order.manifest.on_sleep = on_sleep("echo $$ > \"$ENVFORGE_DATA_DIR/hook\"; sleep 1000", Millis::new(500));
    host.wake(order).await.unwrap();
    let begin = Instant::now();
    host.host.sleep(workspace(1), 1).await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    assert!(!is_alive(host.pid(workspace(1), "hook").await));
}

#[tokio::test]
async fn a_hook_that_fails_does_not_keep_the_workspace_awake() {
    let (host, repository) = (Host::open().await, Repository::with(&[]));
    let mut order = order(&repository, [service("app", "echo $$ > \"$ENVFORGE_DATA_DIR/pid\"; exec sleep 1000")]);
    order.manifest.on_sleep = on_sleep("exit 1", Millis::from_secs(30));
    host.wake(order).await.unwrap();
    let pid = host.pid(workspace(1), "pid").await;
    host.host.sleep(workspace(1), 1).await.unwrap();
    assert!(!is_alive(pid) && !host.host.is_up(workspace(1), 1));
}

#[tokio::test]
async fn a_service_gets_sigterm_and_time_to_finish() {
    let (host, repository) = (Host::open().await, Repository::with(&[]));
    let command = "trap 'echo saved > \"$ENVFORGE_DATA_DIR/saved\"; exit 0' TERM; \
                   echo up > \"$ENVFORGE_DATA_DIR/up\"; while :; do sleep 0.02; done";
    host.wake(order(&repository, [service("app", command)])).await.unwrap();
    host.written(workspace(1), "up").await;
    host.host.sleep(workspace(1), 1).await.unwrap();
    assert_eq!(fs::read_to_string(host.data(workspace(1)).join("saved")).unwrap(), "saved\n");
    assert!(host.host.reports().take().is_none(), "a sleep is not a crash");
}

#[tokio::test]
async fn a_service_that_ignores_sigterm_is_killed_after_the_grace() {
    let host = Host::configured(|config| config.stop_grace = Duration::from_millis(300)).await;
    let repository = Repository::with(&[]);
    let command = "trap '' TERM; echo $$ > \"$ENVFORGE_DATA_DIR/pid\"; \
                   (echo $$; exec sleep 1000) > \"$ENVFORGE_DATA_DIR/child\" & while :; do sleep 0.02; done";
    host.wake(order(&repository, [service("app", command)])).await.unwrap();
    let pid = host.pid(workspace(1), "pid").await;
    let begin = Instant::now();
    host.host.sleep(workspace(1), 1).await.unwrap();
    assert!(begin.elapsed() >= Duration::from_millis(300), "the grace was given: {:?}", begin.elapsed());
    assert!(!is_alive(pid));
}

#[tokio::test]
async fn what_left_its_group_session_and_parent_is_found_and_ended() {
    let (host, repository) = (Host::open().await, Repository::with(&[]));
    // A daemon of the old school: own session, parent gone. And one that hides its environment, but not its group.
    let command = "setsid sh -c 'sh -c \"echo \\$\\$ > $ENVFORGE_DATA_DIR/daemon; exec sleep 1000\" & exit 0'; \
                   env -i sh -c \"echo \\$\\$ > $ENVFORGE_DATA_DIR/hidden; exec sleep 1000\" & \
                   env -i setsid sh -c \"echo \\$\\$ > $ENVFORGE_DATA_DIR/both; sleep 1000; true\" & wait";
    host.wake(order(&repository, [service("app", command)])).await.unwrap();
    let mut pids = Vec::new();
    for file in ["daemon", "hidden", "both"] {
        pids.push(host.pid(workspace(1), file).await);
    }
    assert!(pids.iter().all(|pid| is_alive(*pid)));
    host.host.sleep(workspace(1), 1).await.unwrap();
    assert_eq!(pids.iter().filter(|pid| is_alive(**pid)).count(), 0);
}

#[tokio::test]
async fn a_sleep_cancels_a_wake_that_goes_on() {
    let (host, repository) = (Host::open().await, Repository::with(&[]));
    let mut slow = service("app", "echo $$ > \"$ENVFORGE_DATA_DIR/pid\"; exec sleep 1000");
    slow.readiness = ready_by(Probe::Command { command: "test -e never-there".to_owned() });
    let order = order(&repository, [slow]);
    let wakes: Vec<_> = (0..2)
        .map(|_| {
            let (host, order) = (host.host.clone(), order.clone());
            tokio::spawn(async move { host.wake(order, watch::channel(Stage::Ready).0).await })
        })
        .collect();
    let pid = host.pid(workspace(1), "pid").await;
    host.host.sleep(workspace(1), 1).await.unwrap();
    assert!(!is_alive(pid));
    for wake in wakes {
        // The second may have come after the sleep.
        let failure = wake.await.unwrap().unwrap_err();
        assert!(matches!(failure, WakeFailure::Cancelled | WakeFailure::Stale { .. }), "{failure}");
    }
}

#[tokio::test]
async fn dropping_every_handle_ends_everything() {
    let (host, repository) = (Host::open().await, Repository::with(&[]));
    host.wake(order(&repository, [service("app", "echo $$ > \"$ENVFORGE_DATA_DIR/pid\"; exec sleep 1000")]))
        .await
        .unwrap();
    let pid = host.pid(workspace(1), "pid").await;
    let Host { host: handle, state, _directory } = host;
    drop(handle);
    eventually("the service ends", || !is_alive(pid)).await;
    eventually("the directory is free", || !state.join("runtimes").join(format!("{}.json", workspace(1))).exists())
        .await;
}

#[tokio::test]
async fn sleeping_what_never_woke_is_fine_and_a_removed_workspace_leaves_no_files() {
    let (host, repository) = (Host::open().await, Repository::with(&[]));
    host.host.sleep(workspace(9), 3).await.unwrap();
    let mut order = order(&repository, [service("app", "echo $$ > \"$ENVFORGE_DATA_DIR/pid\"; exec sleep 1000")]);
    order.epoch = 2;
    host.wake(order).await.unwrap();
    let pid = host.pid(workspace(1), "pid").await;
    host.host.remove(workspace(1)).await.unwrap();
    assert!(!is_alive(pid) && !host.place(workspace(1)).exists() && !host.record(workspace(1)).exists());
}

#[tokio::test]
async fn a_member_that_hides_its_environment_is_ended_also_after_its_groups_leader_has_gone() {
    let (host, repository) = (Host::open().await, Repository::with(&[]));
    let command = "env -i sh -c \"echo \\$\\$ > $ENVFORGE_DATA_DIR/hidden; exec sleep 1000\" & \
                   until test -s \"$ENVFORGE_DATA_DIR/hidden\"; do sleep 0.01; done; exit 3";
    let mut dying = service("app", command);
    dying.readiness = ready_by(Probe::Command { command: "test -e never-there".to_owned() });
    let failure = host.wake(order(&repository, [dying])).await.unwrap_err();
    assert!(matches!(&failure, WakeFailure::Exited { status, .. } if status == "exit status 3"), "{failure}");
    assert!(!is_alive(host.pid(workspace(1), "hidden").await));
}

#[tokio::test]
async fn what_a_crashed_service_left_behind_is_ended_before_it_starts_again() {
    let (host, repository) = (Host::open().await, Repository::with(&[]));
    let command = "if test -e \"$ENVFORGE_DATA_DIR/again\"; then exec sleep 1000; fi; \
                   env -i sh -c \"echo \\$\\$ > $ENVFORGE_DATA_DIR/hidden; exec sleep 1000\" & \
                   until test -e crash; do sleep 0.01; done; echo > \"$ENVFORGE_DATA_DIR/again\"; exit 1";
    host.wake(order(&repository, [service("app", command)])).await.unwrap();
    let hidden = host.pid(workspace(1), "hidden").await;
    fs::write(host.place(workspace(1)).join("checkout/crash"), "").unwrap();
    tokio::time::timeout(PATIENCE, host.host.reports().next()).await.unwrap();
    assert!(!is_alive(hidden));
    host.host.shutdown().await;
}

#[tokio::test]
async fn an_epoch_that_was_over_stays_so_after_a_wake_that_failed() {
    let (host, repository) = (Host::open().await, Repository::with(&[]));
    let mut sound = order(&repository, [service("app", "exec sleep 1000")]);
    host.wake(sound.clone()).await.unwrap();
    host.host.sleep(workspace(1), 1).await.unwrap();
    let mut broken = order(&repository, [service("app", "exit 3")]);
    broken.manifest.services[0].readiness = ready_by(Probe::Command { command: "test -e never-there".to_owned() });
    broken.epoch = 2;
    host.wake(broken).await.unwrap_err();
    host.host.shutdown().await;
    let Host { host: handle, state, _directory } = host;
    drop(handle);
    let (again, _) = LocalHost::open(config(&state)).await.unwrap();
    sound.epoch = 1;
    let outcome = again.wake(sound, watch::channel(Stage::Ready).0).await;
    assert_eq!(outcome, Err(WakeFailure::Stale { epoch: 1, current: 1 }));
    again.shutdown().await;
}

#[tokio::test]
async fn what_the_hook_left_behind_is_ended_also_where_it_hides_its_environment() {
    let (host, repository) = (Host::open().await, Repository::with(&[]));
    let mut order = order(&repository, [service("app", "exec sleep 1000")]);
    let hook = "env -i sh -c \"echo \\$\\$ > $ENVFORGE_DATA_DIR/hidden; exec sleep 1000\" & \
                until test -s \"$ENVFORGE_DATA_DIR/hidden\"; do sleep 0.01; done";
    order.manifest.on_sleep = on_sleep(hook, Millis::from_secs(30));
    host.wake(order).await.unwrap();
    host.host.sleep(workspace(1), 1).await.unwrap();
    assert!(!is_alive(host.pid(workspace(1), "hidden").await));
}
