//! kill -9 of the process that runs the host, and the next start.
#![allow(clippy::disallowed_methods, reason = "the test binary runs itself as a child, told by its environment")]

use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use envforge_runtime::{Leftover, LocalHost, Stage};
use tokio::sync::watch;

use crate::fixture::*;

/// Set for the process that is going to be killed: this test runs itself again as that process.
const STATE: &str = "ENVFORGE_TEST_CRASH_STATE";
const REPOSITORY: &str = "ENVFORGE_TEST_CRASH_REPOSITORY";

/// One in the service's group, one in a session of its own without a parent, one that hides its environment in the group.
const COMMAND: &str = "echo $$ > \"$ENVFORGE_DATA_DIR/leader\"; trap '' TERM; \
    setsid sh -c 'sh -c \"echo \\$\\$ > $ENVFORGE_DATA_DIR/daemon; exec sleep 1000\" & exit 0'; \
    env -i sh -c \"echo \\$\\$ > $ENVFORGE_DATA_DIR/hidden; exec sleep 1000\" & \
    while :; do sleep 0.05; done";

#[tokio::test]
async fn after_kill_9_the_next_start_finds_and_ends_every_process_and_harms_nobody_else() {
    if let (Ok(state), Ok(repository)) = (std::env::var(STATE), std::env::var(REPOSITORY)) {
        return be_killed(state, repository).await;
    }
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let repository = Repository::with(&[]);
    let mut victim = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::after_kill_9_the_next_start_finds_and_ends_every_process_and_harms_nobody_else"])
        .env(STATE, &state)
        .env(TEST, std::process::id().to_string())
        .env(REPOSITORY, repository.address())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    eventually("the other process has its runtimes up", || {
        assert_eq!(victim.try_wait().unwrap(), None, "the other process ended by itself");
        state.join("up").exists()
    })
    .await;
    let mut bystander = tokio::process::Command::new("sleep").arg("1000").kill_on_drop(true).spawn().unwrap();
    assert!(LocalHost::open(config(&state)).await.is_err(), "while it lives, nobody else may open the directory");
    victim.start_kill().unwrap();
    assert_eq!(victim.wait().await.unwrap().signal(), Some(9));

    let mut pids = Vec::new();
    for number in [1, 2] {
        for file in ["leader", "daemon", "hidden"] {
            let path = state.join("workspaces").join(workspace(number).to_string()).join("data").join(file);
            pids.push(std::fs::read_to_string(path).unwrap().trim().parse::<u32>().unwrap());
        }
    }
    assert!(pids.iter().all(|pid| is_alive(*pid)), "there is something to find");
    let (host, mut leftovers) = LocalHost::open(config(&state)).await.unwrap();
    assert_eq!(pids.iter().filter(|pid| is_alive(**pid)).count(), 0);
    assert_eq!(bystander.try_wait().unwrap(), None);
    leftovers.sort_by_key(|leftover| leftover.workspace);
    let [
        Leftover { workspace: first, epoch: 1, processes: some },
        Leftover { workspace: second, epoch: 1, processes: more },
    ] = leftovers[..]
    else {
        panic!("{leftovers:?}")
    };
    assert_eq!((first, second), (workspace(1), workspace(2)));
    assert!(some >= 3 && more >= 3, "{leftovers:?}");

    // The same epoch may be woken again: it never slept.
    let mut again = order(&repository, [service("app", "exec sleep 1000")]);
    again.workspace = workspace(2);
    host.wake(again, watch::channel(Stage::Ready).0).await.unwrap();
    host.shutdown().await;
    drop(host);
    bystander.kill().await.unwrap();
}

async fn be_killed(state: String, repository: String) {
    let state = std::path::PathBuf::from(state);
    let (host, _) = LocalHost::open(config(&state)).await.unwrap();
    for number in [1, 2] {
        let mut order = order(&Repository::with(&[]), [service("app", COMMAND)]);
        order.repository.clone_from(&repository);
        order.workspace = workspace(number);
        host.wake(order, watch::channel(Stage::Ready).0).await.unwrap();
        for file in ["leader", "daemon", "hidden"] {
            let path = state.join("workspaces").join(workspace(number).to_string()).join("data").join(file);
            eventually(file, || std::fs::read_to_string(&path).is_ok_and(|text| text.ends_with('\n'))).await;
        }
    }
    std::fs::write(state.join("up"), "").unwrap();
    std::future::pending::<()>().await;
}
