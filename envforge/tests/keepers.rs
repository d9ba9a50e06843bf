//! Keepers of runtimes, as this program's own binary with real processes: what a host finds again, what it does not take over, and for
//! how long a keeper waits.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests panic, and read what processes wrote")]

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use envforge_domain::ids::{JobRunId, OrgId, ProjectId, WorkspaceId};
use envforge_domain::job_run::JobOrder;
use envforge_domain::manifest::Manifest;
use envforge_domain::secret::Secret;
use envforge_domain::shell::{ShellEnd, ShellFailure, ShellOutput};
use envforge_domain::time::Millis;
use envforge_runtime::{
    Awake, Config, EndedShell, Leftover, LocalHost, OpenShell, Report, Stage, WakeFailure, WakeOrder,
};
use envforge_testkit::{TestDir, eventually, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::watch;
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(30);
const SECRET: &str = "a-value-that-nobody-else-reads";

/// A state directory with a repository beside it.
struct Machine {
    dir: TestDir,
    alone_max: Duration,
}

fn workspace() -> WorkspaceId {
    WorkspaceId::from_uuid(Uuid::from_u128(1))
}

impl Machine {
    fn new() -> Self {
        let machine = Self { dir: TestDir::new(), alone_max: PATIENCE };
        std::fs::create_dir_all(machine.dir.join("repository")).unwrap();
        for arguments in [
            &["init", "--quiet", "--initial-branch=main", "."][..],
            &["-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "--allow-empty", "-m", "one"],
        ] {
            let mut git = Command::new("git");
            assert!(git.args(arguments).current_dir(machine.dir.join("repository")).status().unwrap().success());
        }
        machine
    }

    fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    async fn open(&self) -> (LocalHost, Vec<Leftover>) {
        self.open_as(true).await
    }

    /// With a keeper for each runtime, or as a process that holds all of them itself.
    async fn open_as(&self, kept: bool) -> (LocalHost, Vec<Leftover>) {
        let mut config = Config::new(self.state());
        config.keeper = Some(env!("CARGO_BIN_EXE_envforge").into());
        config.root_guard = config.keeper.clone();
        if !kept {
            config.keeper = None;
        }
        config.alone_max = self.alone_max;
        config.restarts_max = 1;
        config.restart_delay_min = Duration::from_millis(10);
        config.restart_delay_max = Duration::from_millis(10);
        config.stop_grace = Duration::from_secs(2);
        let opened = eventually("the directory's lock", PATIENCE, async || LocalHost::open(config.clone()).await.ok());
        opened.await
    }

    fn order(&self, manifest: &str) -> WakeOrder {
        WakeOrder {
            org: OrgId::from_uuid(Uuid::from_u128(2)),
            workspace: workspace(),
            epoch: 1,
            repository: self.dir.join("repository").to_str().unwrap().to_owned(),
            branch: "main".to_owned(),
            manifest: Manifest::parse(manifest).unwrap(),
            deadline: Millis::from_secs(30),
            public_hosts: BTreeMap::new(),
            secrets: BTreeMap::from([("API_KEY".to_owned(), Secret::new(SECRET.to_owned()))]),
            git: None,
        }
    }

    fn data(&self, file: &str) -> PathBuf {
        self.state().join("workspaces").join(workspace().to_string()).join("data").join(file)
    }

    /// The last line of a file that a service writes.
    fn written(&self, file: &str) -> String {
        wait_until(file, PATIENCE, || std::fs::read_to_string(self.data(file)).is_ok_and(|text| text.ends_with('\n')));
        std::fs::read_to_string(self.data(file)).unwrap().lines().last().unwrap().to_owned()
    }

    fn record(&self) -> serde_json::Value {
        let file = self.state().join("runtimes").join(format!("{}.json", workspace()));
        serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
    }

    fn keeper(&self) -> Pid {
        Pid::from_raw(self.record()["keeper"]["pid"].as_i64().unwrap().try_into().unwrap())
    }

    fn socket(&self) -> PathBuf {
        self.state().join("keepers").join(format!("{}.sock", workspace()))
    }
}

async fn wake(host: &LocalHost, order: WakeOrder) -> Result<Awake, WakeFailure> {
    tokio::time::timeout(PATIENCE, host.wake(order, watch::channel(Stage::CheckingOut).0)).await.unwrap()
}

fn is_dead(pid: impl ToString) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.to_string())).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

fn signal(pid: &str, signal: Signal) {
    kill(Pid::from_raw(pid.parse().unwrap()), signal).unwrap();
}

const APP: &str = "\
version: 1
services:
  app:
    command: echo $$ >> \"$ENVFORGE_DATA_DIR/app\"; exec sleep 100000
    readiness: { none: true }
    secrets: [API_KEY]
on_sleep: { command: echo slept >> \"$ENVFORGE_DATA_DIR/hook\" }
";

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_left_finds_its_runtimes_again_and_sleeps_them() {
    let machine = Machine::new();
    let (host, _) = machine.open().await;
    let awake = wake(&host, machine.order(APP)).await.unwrap();
    let (app, keeper) = (machine.written("app"), machine.keeper());
    host.leave().await;
    assert!(wake(&host, machine.order(APP)).await.is_err(), "it has left");
    drop(host);
    let (host, leftovers) = machine.open().await;
    assert_eq!((leftovers, host.epochs_up()), (vec![], vec![(workspace(), 1)]));
    assert_eq!(host.commit_up(workspace()), Some(awake.commit.clone()));
    assert_eq!(wake(&host, machine.order(APP)).await.unwrap(), awake, "the same epoch is up already");
    assert!(matches!(wake(&host, WakeOrder { epoch: 0, ..machine.order(APP) }).await, Err(WakeFailure::Stale { .. })));
    assert_eq!((machine.written("app"), is_dead(&app)), (app.clone(), false));
    host.sleep(workspace(), 1).await.unwrap();
    assert!(is_dead(&app) && is_dead(keeper));
    assert_eq!(machine.written("hook"), "slept");
    assert_eq!(machine.record()["state"], "over");
    // A newer one, which is removed with all that the host keeps of it.
    wake(&host, WakeOrder { epoch: 2, ..machine.order(APP) }).await.unwrap();
    let app = machine.written("app");
    drop(host);
    let (host, _) = machine.open().await;
    host.remove(workspace()).await.unwrap();
    assert!(is_dead(&app) && !machine.data("app").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keeper_shows_no_secret_and_its_services_inherit_nothing() {
    let machine = Machine::new();
    let (host, _) = machine.open().await;
    wake(&host, machine.order(APP)).await.unwrap();
    let (app, keeper) = (machine.written("app"), machine.keeper().to_string());
    let shown = |pid: &str, file: &str| std::fs::read(Path::new("/proc").join(pid).join(file)).unwrap_or_default();
    for file in ["cmdline", "environ"] {
        assert!(!String::from_utf8_lossy(&shown(&keeper, file)).contains(SECRET), "{file}");
    }
    assert!(String::from_utf8_lossy(&shown(&app, "environ")).contains(SECRET), "the service has it");
    assert_eq!(String::from_utf8_lossy(&shown(&keeper, "comm")).trim(), "envforge-keeper");
    // What nobody may dump belongs to root, whoever runs it.
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(format!("/proc/{keeper}/environ")).unwrap());
    assert_eq!(owner, 0);
    let open = |pid: &str| -> BTreeMap<String, PathBuf> {
        let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        let named = entries.map(|fd| (fd.file_name().into_string().unwrap(), std::fs::read_link(fd.path())));
        named.filter_map(|(name, file)| Some((name, file.ok()?))).collect()
    };
    // Whoever runs the tests may have left something open for all of them.
    let (ours, theirs) = (open("self"), open(&app));
    let foreign: Vec<_> = theirs.iter().filter(|(fd, file)| ours.get(*fd) != Some(file)).collect();
    let usual = |file: &Path| file == Path::new("/dev/null") || file.to_string_lossy().starts_with("pipe:");
    assert!(foreign.len() <= 3 && foreign.iter().all(|(fd, file)| fd.len() == 1 && usual(file)), "{theirs:?}");
    let session = |pid: &str| {
        String::from_utf8(shown(pid, "stat"))
            .unwrap()
            .rsplit(") ")
            .next()
            .unwrap()
            .split(' ')
            .nth(3)
            .unwrap()
            .to_owned()
    };
    assert_eq!(session(&keeper), keeper);
    use std::os::unix::fs::PermissionsExt as _;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&machine.socket()), mode(machine.socket().parent().unwrap())), (0o600, 0o700));
    let found = Command::new("grep").args(["-rl", SECRET]).arg(machine.state()).output().unwrap();
    assert!(found.stdout.is_empty(), "{}", String::from_utf8_lossy(&found.stdout));
    host.shutdown().await;
    assert!(is_dead(&app) && is_dead(keeper));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wake_goes_on_without_its_host_and_is_joined_again() {
    let machine = Machine::new();
    let slow = APP.replace("exec sleep", "while ! test -e \"$ENVFORGE_DATA_DIR/go\"; do sleep 0.02; done; exec sleep");
    let slow = slow.replace(
        "readiness: { none: true }",
        "readiness: { command: test -e \"$ENVFORGE_DATA_DIR/go\", interval: 50ms }",
    );
    let (host, _) = machine.open().await;
    let (stages, mut stage) = watch::channel(Stage::CheckingOut);
    let waking = tokio::spawn({
        let (host, order) = (host.clone(), machine.order(&slow));
        async move { host.wake(order, stages).await }
    });
    stage.wait_for(|stage| matches!(stage, Stage::Probing { .. })).await.unwrap();
    host.leave().await;
    assert!(waking.await.unwrap().is_err());
    drop(host);
    let (host, leftovers) = machine.open().await;
    assert_eq!((leftovers, host.epochs_up()), (vec![], vec![]), "it wakes, and is not up yet");
    let joined = tokio::spawn({
        let (host, order) = (host.clone(), machine.order(&slow));
        async move { wake(&host, order).await }
    });
    std::fs::write(machine.data("go"), "").unwrap();
    joined.await.unwrap().unwrap();
    assert_eq!(std::fs::read_to_string(machine.data("app")).unwrap().lines().count(), 1, "started once");
    // One that is not joined, but cancelled.
    host.sleep(workspace(), 1).await.unwrap();
    std::fs::remove_file(machine.data("go")).unwrap();
    let (stages, mut stage) = watch::channel(Stage::CheckingOut);
    let order = WakeOrder { epoch: 2, ..machine.order(&slow) };
    let waking = tokio::spawn({
        let host = host.clone();
        async move { host.wake(order, stages).await }
    });
    stage.wait_for(|stage| matches!(stage, Stage::Probing { .. })).await.unwrap();
    let app = machine.written("app");
    host.sleep(workspace(), 2).await.unwrap();
    assert_eq!(waking.await.unwrap(), Err(WakeFailure::Cancelled));
    assert!(is_dead(&app));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_while_no_host_listens_is_told_to_the_next() {
    let machine = Machine::new();
    let (host, _) = machine.open().await;
    wake(&host, machine.order(APP)).await.unwrap();
    let first = machine.written("app");
    drop(host);
    signal(&first, Signal::SIGKILL);
    wait_until("the next process", PATIENCE, || machine.written("app") != first);
    let (host, _) = machine.open().await;
    let restarted = tokio::time::timeout(PATIENCE, host.reports().next()).await.unwrap();
    assert!(
        matches!(&restarted, Report::ServiceRestarted { epoch: 1, status, .. } if status == "signal 9"),
        "{restarted:?}"
    );
    assert!(host.is_up(workspace(), 1));
    drop(host);
    // Its restarts are spent.
    let second = machine.written("app");
    signal(&second, Signal::SIGKILL);
    wait_until("the end of it", PATIENCE, || is_dead(&second));
    let (host, leftovers) = machine.open().await;
    assert_eq!(leftovers, []);
    // The one before may be told again: it was taken, and its host was gone before it had said so.
    loop {
        match tokio::time::timeout(PATIENCE, host.reports().next()).await.unwrap() {
            Report::ServiceRestarted { .. } => {}
            Report::RuntimeFailed { epoch, .. } => break assert_eq!(epoch, 1),
        }
    }
    wait_until("it is not up", PATIENCE, || !host.is_up(workspace(), 1));
    assert!(matches!(wake(&host, machine.order(APP)).await, Err(WakeFailure::Stale { .. })), "its epoch is over");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keeper_alone_for_too_long_puts_its_runtime_to_sleep() {
    let machine = Machine { alone_max: Duration::from_secs(1), ..Machine::new() };
    let (host, _) = machine.open().await;
    wake(&host, machine.order(APP)).await.unwrap();
    let (app, keeper) = (machine.written("app"), machine.keeper());
    assert!(!is_dead(keeper));
    drop(host);
    wait_until("the keeper's end", PATIENCE, || is_dead(keeper));
    assert!(is_dead(&app));
    assert_eq!(machine.written("hook"), "slept");
    let (host, leftovers) = machine.open().await;
    assert_eq!(leftovers, [Leftover { workspace: workspace(), epoch: 1, processes: 0 }]);
    // One whose state directory is removed waits for nobody.
    let machine = Machine::new();
    let (other, _) = machine.open().await;
    wake(&other, machine.order(APP)).await.unwrap();
    let (app, keeper) = (machine.written("app"), machine.keeper());
    drop((host, other));
    std::fs::remove_dir_all(machine.state()).unwrap();
    wait_until("the keeper's end", PATIENCE, || is_dead(keeper) && is_dead(&app));
    // And one that is told to end does, with the hook.
    let machine = Machine::new();
    let (host, _) = machine.open().await;
    wake(&host, machine.order(APP)).await.unwrap();
    let (app, keeper) = (machine.written("app"), machine.keeper());
    kill(keeper, Signal::SIGTERM).unwrap();
    wait_until("the keeper's end", PATIENCE, || is_dead(keeper) && is_dead(&app));
    assert_eq!(machine.written("hook"), "slept");
    wait_until("the host sees it", PATIENCE, || !host.is_up(workspace(), 1));
    wake(&host, machine.order(APP)).await.unwrap();
    host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keeper_that_cannot_be_talked_to_is_ended_with_all_that_it_holds() {
    let machine = Machine::new();
    // Silent: it was stopped.
    let (host, _) = machine.open().await;
    wake(&host, machine.order(APP)).await.unwrap();
    let (app, keeper) = (machine.written("app"), machine.keeper());
    drop(host);
    kill(keeper, Signal::SIGSTOP).unwrap();
    let (host, leftovers) = machine.open().await;
    assert_eq!(leftovers.len(), 1);
    assert!(is_dead(&app) && is_dead(keeper));
    // Of another version: somebody else answers in its place.
    wake(&host, machine.order(APP)).await.unwrap();
    let (app, keeper) = (machine.written("app"), machine.keeper());
    drop(host);
    std::fs::remove_file(machine.socket()).unwrap();
    let listener = UnixListener::bind(machine.socket()).unwrap();
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut theirs = [0; 18];
        stream.read_exact(&mut theirs).unwrap();
        let greeting = br#"{"protocol":999}"#;
        stream.write_all(&u32::try_from(greeting.len()).unwrap().to_be_bytes()).unwrap();
        stream.write_all(greeting).unwrap();
        String::from_utf8_lossy(&theirs[4..]).into_owned()
    });
    let (host, leftovers) = machine.open().await;
    assert_eq!(answering.join().unwrap(), r#"{"protocol":1}"#);
    assert_eq!(leftovers.len(), 1);
    assert!(is_dead(&app) && is_dead(keeper));
    // And where nobody knows keepers.
    wake(&host, machine.order(APP)).await.unwrap();
    let (app, keeper) = (machine.written("app"), machine.keeper());
    drop(host);
    let plain = Config::new(machine.state());
    let opened = eventually("the lock", PATIENCE, async || LocalHost::open(plain.clone()).await.ok());
    let (_host, leftovers) = opened.await;
    assert_eq!(leftovers.len(), 1);
    assert!(is_dead(&app) && is_dead(keeper));
}

/// Set for the process that is going to be killed: this test runs itself again as that process.
const VICTIM: &str = "ENVFORGE_TEST_KEEPERS_VICTIM";

fn job(number: u128, command: &str) -> JobOrder {
    JobOrder {
        run: JobRunId::from_uuid(Uuid::from_u128(number)),
        org: OrgId::from_uuid(Uuid::from_u128(2)),
        project: ProjectId::from_uuid(Uuid::from_u128(3)),
        workspace: workspace(),
        name: "job".to_owned(),
        command: command.to_owned(),
        secrets: Vec::new(),
    }
}

async fn be_killed(dir: &str) {
    let mut config = Config::new(Path::new(dir).join("state"));
    config.keeper = Some(env!("CARGO_BIN_EXE_envforge").into());
    config.root_guard = config.keeper.clone();
    let opened = eventually("the directory's lock", PATIENCE, async || LocalHost::open(config.clone()).await.ok());
    let (host, _) = opened.await;
    let command = "setsid sleep 100000 & echo $! > \"$ENVFORGE_DATA_DIR/left\"; echo $$ > \"$ENVFORGE_DATA_DIR/job\"; sleep 100000";
    let _job = host.run_job(job(5, command), BTreeMap::new()).await.unwrap();
    std::future::pending().await
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_run_beside_a_kept_runtime_and_end_with_their_host() {
    if let Ok(dir) = std::env::var(VICTIM) {
        return be_killed(&dir).await;
    }
    let machine = Machine::new();
    let (host, _) = machine.open().await;
    wake(&host, machine.order(APP)).await.unwrap();
    let app = machine.written("app");
    let command = "echo \"$ENVFORGE_WORKSPACE $API_KEY\"; pwd";
    let mut job = host.run_job(job(4, command), BTreeMap::new()).await.unwrap();
    let mut text = Vec::new();
    loop {
        match tokio::time::timeout(PATIENCE, job.output.recv()).await.unwrap().unwrap() {
            ShellOutput::Out(bytes) | ShellOutput::Error(bytes) => text.extend(bytes),
            ShellOutput::Taken(_) => {}
            ShellOutput::Over { end, code } => {
                assert_eq!((end, code), (ShellEnd::Exited, Some(0)));
                break;
            }
        }
    }
    let text = String::from_utf8(text).unwrap();
    assert!(text.starts_with(&format!("{} \n", workspace())) && text.trim_end().ends_with("/checkout"), "{text}");
    drop(host);

    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "jobs_run_beside_a_kept_runtime_and_end_with_their_host"])
        .env(VICTIM, machine.dir.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let (job, left) = (machine.written("job"), machine.written("left"));
    assert!(!is_dead(&job) && !is_dead(&left));
    victim.kill().unwrap();
    victim.wait().unwrap();
    let (host, leftovers) = machine.open().await;
    assert_eq!((leftovers, host.is_up(workspace(), 1)), (vec![], true), "the runtime goes on");
    assert!(is_dead(&job) && is_dead(&left) && !is_dead(&app));
    let told: Vec<_> = host.untold_ends().borrow().iter().map(|end| end.what).collect();
    assert_eq!(told, [EndedShell::Job(JobRunId::from_uuid(Uuid::from_u128(5)))]);
    host.shutdown().await;
    assert!(is_dead(&app));
}

async fn until_over(mut job: OpenShell) {
    let over = async {
        loop {
            match job.output.recv().await {
                Some(ShellOutput::Over { .. }) | None => return,
                Some(_) => {}
            }
        }
    };
    // With its runtime.
    tokio::time::timeout(PATIENCE, over).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_starts_while_its_runtime_goes_to_sleep_ends_with_it_or_is_refused() {
    let machine = Machine::new();
    let pids = machine.dir.join("pids");
    let (mut epoch, mut number, mut ended, mut refused) = (0, 10, 0, 0);
    for kept in [true, false] {
        let (host, _) = machine.open_as(kept).await;
        for round in 0..8 {
            epoch += 1;
            wake(&host, WakeOrder { epoch, ..machine.order(APP) }).await.unwrap();
            let mut jobs = tokio::task::JoinSet::new();
            for _ in 0..4 {
                number += 1;
                let (host, order) =
                    (host.clone(), job(number, &format!("echo $$ >> {}; exec sleep 100000", pids.display())));
                jobs.spawn(async move { host.run_job(order, BTreeMap::new()).await });
            }
            tokio::time::sleep(Duration::from_millis(round * 2)).await; // pause: another moment of the start in each round
            host.sleep(workspace(), epoch).await.unwrap();
            while let Some(begun) = jobs.join_next().await {
                match begun.unwrap() {
                    Ok(open) => {
                        until_over(open).await;
                        ended += 1;
                    }
                    Err(ShellFailure::NotAwake) => refused += 1,
                    Err(other) => panic!("{other:?}"),
                }
            }
            let alive: Vec<_> = std::fs::read_to_string(&pids)
                .unwrap_or_default()
                .lines()
                .filter(|pid| !is_dead(pid))
                .map(str::to_owned)
                .collect();
            assert!(alive.is_empty(), "{alive:?} outlived epoch {epoch}");
        }
        host.shutdown().await;
    }
    println!("{ended} ended with their runtime, {refused} were refused");
    assert_eq!(ended + refused, 64);
    assert!(ended > 0 && refused > 0, "both happen: {ended}, {refused}");
}
