//! What runs on a host outlives its agent: killed, stopped, or replaced by another version. What is dead is dead, and the meter knows.

use std::path::{Path, PathBuf};

use envforge_testkit::{NatsServer, Postgres, TestProcess, eventually, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::proxy::Proxy;
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

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_outlives_a_log_that_does_not_answer_when_its_agent_comes_back() {
    let (mut nats, database) = (NatsServer::start(), Postgres::shared());
    let site = Site::set_up(&nats.url(), database.database_url());
    let roles = site.started("roles", site.roles(&nats.url(), "127.0.0.1").env("ENVFORGE_LOG", "info"));
    site.begin();
    let proxy = Proxy::to(site.agents_port).await;
    let token = site.enrolment("builder");
    let mut agent = site.agent("builder", &proxy.address(), Some(&token));
    site.until_host("builder", "active").await;
    site.json(&["up"]);
    let started = site.starts_on("builder").pop().unwrap();
    nats.kill9();
    let tries = || agent.stderr().matches("the control plane is out of reach").count();
    proxy.cut();
    wait_until("the end of the connection", DEADLINE, || tries() > 0);
    proxy.mend();
    wait_until("an agent that is not told whether it may come", DEADLINE, || roles.stderr().contains("undecided"));
    nats.restart();
    until_renewed(&site).await;
    assert_eq!((site.app_through_the_gateway().await.trim(), count(&site, "runtime.lost")), (started.as_str(), 0));
    assert!(agent.is_running());
}

/// The worker looks for the secret of the other: in /proc, in its home, in the keeper, with the agent.
const TWO_SERVICES: &str = "\
version: 1
services:
  web:
    command: id -u > \"$ENVFORGE_DATA_DIR/web.user\"; echo \"$API_KEY\" > \"$HOME/kept\"; echo $$ >> \"$ENVFORGE_DATA_DIR/starts\"; cd \"$ENVFORGE_DATA_DIR\"; exec python3 -m http.server \"$PORT\" --bind \"$HOST\"
    route: { web: {} }
    readiness: { http: /, interval: 100ms, deadline: 60s }
    secrets: [API_KEY]
  worker:
    command: while ! test -s \"$ENVFORGE_DATA_DIR/look\"; do sleep 0.05; done; id -u > \"$ENVFORGE_DATA_DIR/worker.user\"; for file in $(cat \"$ENVFORGE_DATA_DIR/look\"); do cat \"$file\" || echo \"refused $file\"; done > \"$ENVFORGE_DATA_DIR/stolen\" 2>/dev/null; echo done >> \"$ENVFORGE_DATA_DIR/stolen\"; exec sleep 100000
    readiness: { none: true }
";

#[tokio::test(flavor = "multi_thread")]
async fn services_on_an_agents_host_have_users_of_their_own_and_read_no_siblings_secret() {
    use std::os::unix::fs::PermissionsExt as _;
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not root: services have no users of their own here, and nothing was tested");
        return;
    }
    let (site, _dev) = Site::new();
    // Folders of tests are private; the agent's own it opens itself.
    for directory in site.dir.path().ancestors() {
        let mode = std::fs::metadata(directory).unwrap().permissions().mode();
        if mode & 0o001 == 0 {
            std::fs::set_permissions(directory, std::fs::Permissions::from_mode(mode | 0o711)).unwrap();
        }
    }
    let token = site.enrolment("builder");
    let mut agent = site.agent("builder", &site.at(), Some(&token));
    site.until_host("builder", "active").await;
    site.commit(TWO_SERVICES);
    assert!(site.refused(&["up"]).contains("API_KEY"));
    site.set_secret("API_KEY", "the-value-of-the-key", &[]);
    site.json(&["up"]);
    let (folder, keeper) = (site.dir.join("builder"), keeper(&site, "builder"));
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!([mode(&folder), mode(&folder.join("runtime")), mode(&folder.join("agent.json"))], [0o711, 0o711, 0o600]);
    let place = std::fs::read_dir(folder.join("runtime/workspaces")).unwrap().next().unwrap().unwrap().path();
    let (web, data) = (site.starts_on("builder").pop().unwrap(), place.join("data"));
    assert_eq!(std::fs::read_to_string(place.join("homes/web/kept")).unwrap(), "the-value-of-the-key\n");
    let wanted = [
        format!("/proc/{web}/environ"),
        format!("/proc/{keeper}/environ"),
        format!("/proc/{keeper}/maps"),
        format!("/proc/{}/environ", agent.id()),
        place.join("homes/web/kept").display().to_string(),
        place.join("output/web.log").display().to_string(),
        folder.join("agent.json").display().to_string(),
        folder.join("runtime/users").join(place.file_name().unwrap()).with_extension("json").display().to_string(),
        folder.join("runtime/runtimes").join(place.file_name().unwrap()).with_extension("json").display().to_string(),
        folder.join("runtime/keepers").join(place.file_name().unwrap()).with_extension("log").display().to_string(),
    ];
    assert!(wanted.iter().all(|file| std::fs::metadata(file).is_ok()), "{wanted:?}");
    std::fs::write(data.join("look.new"), wanted.join("\n")).unwrap();
    std::fs::rename(data.join("look.new"), data.join("look")).unwrap();
    let read = |file: &str| std::fs::read_to_string(data.join(file)).unwrap_or_default();
    wait_until("the worker's looks", DEADLINE, || read("stolen").ends_with("done\n"));
    let refused: Vec<String> = wanted.iter().map(|file| format!("refused {file}")).collect();
    assert_eq!(read("stolen").lines().collect::<Vec<_>>(), [&refused[..], &["done".to_owned()]].concat());
    let users: Vec<u32> = ["web.user", "worker.user"].map(|file| read(file).trim().parse().unwrap()).to_vec();
    assert!(users.iter().all(|user| *user > 1_900_000_000) && users[0] != users[1], "{users:?}");
    // Another process of the agent knows whose they are.
    agent.kill9();
    let _agent = site.agent("builder", &site.at(), None);
    until_renewed(&site).await;
    site.json(&["workspace", "sleep", "main"]);
    site.until_phase("asleep").await;
    assert!(is_dead(&web) && is_dead(&keeper.to_string()));
}
