//! What runs on a host outlives its agent: killed, stopped, or replaced by another version. What is dead is dead, and the meter knows.

use std::path::{Path, PathBuf};

use envforge_testkit::{TestProcess, eventually, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::site::{DEADLINE, Site, is_dead};

/// The process that holds the one runtime of a host.
fn keeper(site: &Site, name: &str) -> Pid {
    let records = std::fs::read_dir(site.dir.join(name).join("runtime/runtimes")).unwrap();
    let read =
        |path: PathBuf| -> serde_json::Value { serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap() };
    let keepers = records.flatten().filter_map(|record| read(record.path())["keeper"]["pid"].as_i64());
    let [keeper] = keepers.collect::<Vec<_>>()[..] else { panic!("not one keeper") };
    Pid::from_raw(keeper.try_into().unwrap())
}

fn count(site: &Site, event: &str) -> usize {
    site.runtime_events().iter().filter(|(name, _)| name.contains(event)).count()
}

/// Until the control plane has heard of the runtime again.
async fn until_renewed(site: &Site) {
    let before = count(site, "lease_renewed");
    eventually("a renewed lease", DEADLINE, async || (count(site, "lease_renewed") > before).then_some(())).await;
}

/// Enrolled, with one workspace awake; the process id of its service.
async fn awake() -> (Site, TestProcess, TestProcess, String) {
    let (site, dev) = Site::new();
    let token = site.enrolment("builder");
    let agent = site.agent("builder", &site.at(), Some(&token));
    site.until_host("builder", "active").await;
    site.json(&["up"]);
    let started = site.starts_on("builder").pop().unwrap();
    (site, dev, agent, started)
}

/// It was awake once, without a gap, and its sleep ends all of it.
async fn slept_after_one_stretch(site: &Site, started: &str, keeper: Pid) {
    site.json(&["workspace", "sleep", "main"]);
    site.until_phase("asleep").await;
    assert!(is_dead(started));
    wait_until("the end of the keeper", DEADLINE, || is_dead(&keeper.to_string()));
    site.until_metered().await;
    assert_eq!((count(site, "runtime.ready"), count(site, "runtime.lost")), (1, 0), "{:?}", site.runtime_events());
    assert_eq!(site.starts_on("builder"), [started]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_outlives_a_kill_9_of_its_agent_and_the_meter_has_no_gap() {
    let (site, _dev, mut agent, started) = awake().await;
    let keeper = keeper(&site, "builder");
    for _ in 0..2 {
        agent.kill9();
        assert_eq!(site.app_through_the_gateway().await.trim(), started, "nobody but the agent is gone");
        agent = site.agent("builder", &site.at(), None);
        assert!(!agent.stderr().contains("ended what"), "{}", agent.stderr());
        until_renewed(&site).await;
        assert_eq!(site.app_through_the_gateway().await.trim(), started, "the same process, started once");
    }
    assert!(!is_dead(&keeper.to_string()));
    // A crash is still seen, and what comes of it is heard.
    kill(Pid::from_raw(started.parse().unwrap()), Signal::SIGKILL).unwrap();
    wait_until("the service's next process", DEADLINE, || site.starts_on("builder").len() == 2);
    let started = site.starts_on("builder").pop().unwrap();
    eventually("the next process", DEADLINE, async || {
        (site.app_through_the_gateway().await.trim().lines().last() == Some(started.as_str())).then_some(())
    })
    .await;
    site.json(&["workspace", "sleep", "main"]);
    site.until_phase("asleep").await;
    assert!(is_dead(&started));
    site.until_metered().await;
    assert_eq!((count(&site, "runtime.ready"), count(&site, "runtime.lost")), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_replaced_by_another_version_without_touching_what_runs() {
    let (site, _dev, mut agent, started) = awake().await;
    let keeper = keeper(&site, "builder");
    assert!(agent.terminate(DEADLINE).success(), "{}", agent.stderr());
    assert!(!is_dead(&started));
    let other = site.dir.join("envforge-next");
    std::fs::copy(env!("CARGO_BIN_EXE_envforge"), &other).unwrap();
    let mut agent = site.agent_of(&other, "builder");
    until_renewed(&site).await;
    assert_eq!(site.app_through_the_gateway().await.trim(), started);
    slept_after_one_stretch(&site, &started, keeper).await;
    // The next wake is the new version's.
    site.json(&["up"]);
    let program = |pid: Pid| std::fs::read_link(Path::new("/proc").join(pid.to_string()).join("exe")).unwrap();
    let next = self::keeper(&site, "builder");
    assert_eq!(program(next), other);
    assert!(agent.terminate(DEADLINE).success(), "{}", agent.stderr());
    assert!(!is_dead(&next.to_string()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_told_to_end_runtimes_on_stop_does() {
    let (site, _dev, mut agent, started) = awake().await;
    agent.kill9();
    let mut command = site.agent_command("builder", &site.at(), None);
    command.arg("--end-runtimes-on-stop");
    let mut agent = site.started("builder", &command);
    until_renewed(&site).await;
    let keeper = keeper(&site, "builder");
    assert!(agent.terminate(DEADLINE).success(), "{}", agent.stderr());
    assert!(is_dead(&started) && is_dead(&keeper.to_string()));
    site.until_phase("asleep").await;
    site.until_metered().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_keeper_takes_its_runtime_along_and_nothing_else() {
    let (site, _dev, mut agent, started) = awake().await;
    until_renewed(&site).await;
    kill(keeper(&site, "builder"), Signal::SIGKILL).unwrap();
    wait_until("the end of what it held", DEADLINE, || is_dead(&started));
    site.until_phase("asleep").await;
    site.until_metered().await;
    assert_eq!(count(&site, "runtime.lost"), 1);
    assert!(agent.is_running());
    // With its agent, which says so when it is back.
    site.json(&["up"]);
    let started = site.starts_on("builder").pop().unwrap();
    let keeper = keeper(&site, "builder");
    agent.kill9();
    kill(keeper, Signal::SIGKILL).unwrap();
    assert!(!is_dead(&started), "nobody is left to end it");
    let agent = site.agent("builder", &site.at(), None);
    wait_until("the end of what both left behind", DEADLINE, || is_dead(&started));
    assert!(agent.stderr().contains("cannot be taken over"), "{}", agent.stderr());
    site.until_phase("asleep").await;
    site.until_metered().await;
    assert_eq!(count(&site, "runtime.lost"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_was_revoked_while_its_agent_was_away_ends_what_runs_when_it_is_back() {
    let (site, _dev, mut agent, started) = awake().await;
    let keeper = keeper(&site, "builder");
    agent.kill9();
    site.json(&["host", "revoke", "builder"]);
    assert!(!is_dead(&started), "nobody reaches it");
    let mut agent = TestProcess::spawn("back", &site.agent_command("builder", &site.at(), None), site.dir.path());
    assert!(!agent.wait(DEADLINE).success());
    assert!(agent.stderr().contains("host_revoked"), "{}", agent.stderr());
    assert!(is_dead(&started) && is_dead(&keeper.to_string()));
}
