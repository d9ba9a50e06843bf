//! A command as root on this machine, below its guard: this program's own binary, real processes.
//!
//! Where the tests do not run as root there is nothing to give: then they hold that it is refused.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests panic, and read what processes wrote")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use envforge_domain::ids::{RootWindowId, WorkspaceId};
use envforge_domain::root_window::RootOutcome;
use envforge_domain::shell::{ShellEnd, ShellInput, ShellOutput, TerminalSize};
use envforge_runtime::{Config, LocalHost, OpenShell, RootOrder, RootWhat};
use envforge_testkit::{TestDir, eventually, wait_until};
use tokio::sync::watch;
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(600);

struct Machine {
    dir: TestDir,
    host: LocalHost,
    workspace: WorkspaceId,
}

impl Machine {
    /// `None` where these tests are not root.
    async fn open() -> Option<Self> {
        let dir = TestDir::new();
        let mut config = Config::new(dir.path());
        config.root_guard = Some(env!("CARGO_BIN_EXE_envforge").into());
        let (host, _) = LocalHost::open(config).await.unwrap();
        let workspace = WorkspaceId::from_uuid(Uuid::from_u128(1));
        std::fs::create_dir_all(dir.join("workspaces").join(workspace.to_string()).join("checkout")).unwrap();
        if rustix::process::geteuid().is_root() {
            assert_eq!(host.root_refusal(), None);
            return Some(Self { dir, host, workspace });
        }
        assert_eq!(host.root_refusal(), Some(RootOutcome::NoRoot), "nobody is promised what this host cannot give");
        None
    }

    fn window(number: u128) -> RootWindowId {
        RootWindowId::from_uuid(Uuid::from_u128(number))
    }

    /// Runs a script until it ends, its time is over, or `end` is given a reason.
    async fn run(
        &self,
        number: u128,
        script: &str,
        remaining: Duration,
        end: watch::Receiver<Option<RootOutcome>>,
    ) -> (RootOutcome, Option<u32>) {
        let words = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let taken = self.host.take_root(Self::window(number)).await.unwrap();
        let what = RootWhat::Command(words);
        let ran = taken.run(RootOrder { workspace: self.workspace, what, remaining }, end).await;
        assert!(ran.changes.is_some(), "something ran");
        (ran.outcome, ran.code)
    }

    fn pids(&self) -> PathBuf {
        self.dir.join("pids")
    }

    /// A script whose processes hide as well as they can without being anybody else's, and never end.
    fn tenacious(&self) -> String {
        format!(
            "trap '' TERM; p={}; echo $$ >> $p; sleep 100000 & echo $! >> $p; \
             setsid env -i /bin/sh -c 'trap \"\" TERM HUP; echo $$ >> '$p'; sleep 100000 & echo $! >> '$p'; wait' & \
             (setsid env -i /bin/sleep 100000 & echo $! >> $p); echo begun; wait",
            self.pids().display()
        )
    }

    fn started(&self) -> Vec<String> {
        std::fs::read_to_string(self.pids()).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    async fn until_all_started(&self) {
        let (path, count) = (self.pids(), 5);
        tokio::task::spawn_blocking(move || {
            wait_until("all processes", PATIENCE, || {
                std::fs::read_to_string(&path).unwrap_or_default().lines().count() >= count
            });
        })
        .await
        .unwrap();
    }

    fn alive(&self) -> Vec<String> {
        self.started().into_iter().filter(|pid| is_alive(pid)).collect()
    }

    fn no_record_but(&self, windows: usize) {
        let records = std::fs::read_dir(self.dir.join("root")).unwrap().count();
        assert_eq!(records, windows);
    }
}

fn is_alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn nobody_asks() -> (watch::Sender<Option<RootOutcome>>, watch::Receiver<Option<RootOutcome>>) {
    watch::channel(None)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_root_in_a_session_and_group_of_its_own_and_its_end_is_told() {
    let Some(machine) = Machine::open().await else { return };
    let (_keep, end) = nobody_asks();
    // Fields 5 and 6 of its stat: process group and session.
    let script = "id -u; pwd; echo to-err >&2; echo $$; cut -d' ' -f5,6 /proc/$$/stat; env | grep -c SECRET; exit 3";
    let ended = machine.run(1, script, LONG, end).await;
    assert_eq!(ended, (RootOutcome::Exited, Some(3)));
    let (text, dropped) = machine.host.root_output(Machine::window(1)).unwrap();
    let lines: Vec<_> = text.lines().collect();
    let [user, directory, on_error, pid, group_and_session, secrets] = lines[..] else { panic!("{text}") };
    assert_eq!((user, on_error, secrets, dropped), ("0", "to-err", "0", 0), "{text}");
    assert!(directory.ends_with("/checkout"), "{directory}");
    assert_eq!(group_and_session, format!("{pid} {pid}"));
    assert_eq!(machine.host.root_output(Machine::window(2)), None);
    machine.no_record_but(1);
    machine.host.forget_root(Machine::window(1)).await.unwrap();
    machine.no_record_but(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_command_writes_is_kept_within_bounds_and_a_program_that_is_not_there_says_so() {
    let Some(machine) = Machine::open().await else { return };
    let (_keep, end) = nobody_asks();
    let script = "head -c 1000000 /dev/zero | tr '\\0' x; echo; echo last";
    assert_eq!(machine.run(1, script, LONG, end.clone()).await, (RootOutcome::Exited, Some(0)));
    let (text, dropped) = machine.host.root_output(Machine::window(1)).unwrap();
    assert_eq!(text.len() as u64 + dropped, 1_000_006);
    assert!(text.len() == 64 * 1024 && text.ends_with("last\n"));
    let words = vec!["/nowhere/to-be-found".to_owned()];
    let taken = machine.host.take_root(Machine::window(2)).await.unwrap();
    let order = RootOrder { workspace: machine.workspace, what: RootWhat::Command(words), remaining: LONG };
    let ran = taken.run(order, end).await;
    assert_eq!((ran.outcome, ran.code), (RootOutcome::Exited, Some(127)));
    assert!(machine.host.root_output(Machine::window(2)).unwrap().0.contains("could not be run"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_command_changed_below_etc_is_told() {
    let Some(machine) = Machine::open().await else { return };
    let (_keep, end) = nobody_asks();
    let file = format!("/etc/envforge-test-{}", std::process::id());
    let words =
        ["/bin/sh", "-c", &format!("echo x > {file}; sleep 0.05; echo y >> {file}")].map(str::to_owned).to_vec();
    let taken = machine.host.take_root(Machine::window(1)).await.unwrap();
    let order = RootOrder { workspace: machine.workspace, what: RootWhat::Command(words), remaining: LONG };
    let ran = taken.run(order, end).await;
    std::fs::remove_file(&file).unwrap();
    let changes = ran.changes.unwrap();
    assert!(changes.files.iter().any(|change| change.path == file && change.kind.token() == "added"), "{changes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_end_of_the_window_everything_that_the_command_started_is_dead() {
    let Some(machine) = Machine::open().await else { return };
    let (_keep, end) = nobody_asks();
    let begun = Instant::now();
    let ended = machine.run(1, &machine.tenacious(), Duration::from_secs(2), end).await;
    assert_eq!(ended, (RootOutcome::Deadline, None));
    assert!((2..7).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    assert_eq!((machine.started().len(), machine.alive()), (5, vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_told_to_end_it_ends_all_of_it_and_says_why() {
    let Some(machine) = Machine::open().await else { return };
    let (ask, end) = nobody_asks();
    let script = machine.tenacious();
    let asking = async {
        machine.until_all_started().await;
        let asked = Instant::now();
        ask.send(Some(RootOutcome::Revoked)).unwrap();
        asked
    };
    let (ended, asked) = tokio::join!(machine.run(1, &script, LONG, end), asking);
    assert_eq!(ended, (RootOutcome::Revoked, None));
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    assert_eq!(machine.alive(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_command_leaves_running_ends_with_it() {
    let Some(machine) = Machine::open().await else { return };
    let (_keep, end) = nobody_asks();
    let script = machine.tenacious().replace("echo begun; wait", "sleep 0.3; exit 0");
    assert_eq!(machine.run(1, &script, LONG, end).await, (RootOutcome::Exited, Some(0)));
    assert_eq!(machine.alive(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_kills_its_guard_dies_with_it() {
    let Some(machine) = Machine::open().await else { return };
    let (_keep, end) = nobody_asks();
    // Its parent is the guard.
    let script = format!("{}; true", machine.tenacious().replace("echo begun; wait", "sleep 0.3; kill -9 $PPID; wait"));
    assert_eq!(machine.run(1, &script, LONG, end).await, (RootOutcome::Lost, None));
    let record = machine.dir.join("root").join(format!("{}.json", Machine::window(1)));
    let record: serde_json::Value = serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
    // Without a cgroup (docs/root.md) nothing tells those that hid from marker, group and parent.
    if record["cgroup"].is_string() {
        assert_eq!(machine.alive(), Vec::<String>::new());
    }
}

/// The machine has a file system for them, and nobody else's window has this number.
#[tokio::test(flavor = "multi_thread")]
async fn a_window_that_was_taken_and_never_run_leaves_no_cgroup_and_one_that_ran_takes_its_own_along() {
    let Some(machine) = Machine::open().await else { return };
    let number = Uuid::now_v7().as_u128();
    let taken = machine.host.take_root(Machine::window(number)).await.unwrap();
    let record = machine.dir.join("root").join(format!("{}.json", Machine::window(number)));
    let record: serde_json::Value = serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
    let Some(cgroup) = record["cgroup"].as_str().map(PathBuf::from) else {
        return eprintln!("there are no cgroups of version 2 here, and nothing was tested");
    };
    assert!(!cgroup.exists(), "{}", cgroup.display());
    drop(taken);
    assert!(!cgroup.exists());
    let (_keep, end) = nobody_asks();
    let script = "grep ^0:: /proc/self/cgroup";
    assert_eq!(machine.run(number, script, LONG, end).await, (RootOutcome::Exited, Some(0)));
    let (text, _) = machine.host.root_output(Machine::window(number)).unwrap();
    let name = cgroup.file_name().unwrap().to_str().unwrap();
    if !text.trim().ends_with(name) {
        eprintln!("nobody may make a cgroup here: {text}");
    }
    assert!(!cgroup.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_where_agent_and_guard_were_killed_at_once_is_ended_by_the_next_start() {
    let Some(machine) = Machine::open().await else { return };
    let window = Machine::window(1);
    let taken = machine.host.take_root(window).await.unwrap();
    let record = machine.dir.join("root").join(format!("{window}.json"));
    let record: serde_json::Value = serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
    // As the command would be: it carries the marker, and nobody holds it.
    let mut left = std::process::Command::new("setsid")
        .args(["sleep", "100000"])
        .env("ENVFORGE_RUNTIME", record["marker"].as_str().unwrap())
        .spawn()
        .unwrap();
    let Machine { dir, host, .. } = machine;
    drop((taken, host));
    let mut config = Config::new(dir.path());
    config.root_guard = Some(env!("CARGO_BIN_EXE_envforge").into());
    // A process that was just started holds what this one had open for a moment, the directory's lock with it.
    let opened = eventually("the directory's lock", PATIENCE, async || LocalHost::open(config.clone()).await.ok());
    let (host, _) = opened.await;
    assert_eq!(host.root_leftovers(), [window]);
    assert!(left.try_wait().unwrap().is_some_and(|status| !status.success()), "it was killed");
    // Until its end stands in the log, it is found again.
    assert!(dir.join("root").join(format!("{window}.json")).exists());
    host.forget_root(window).await.unwrap();
    assert!(!dir.join("root").join(format!("{window}.json")).exists());
}

/// All that a shell shows until it is over, and how it ended.
async fn shown(mut open: OpenShell, typed: &[&str]) -> (String, ShellEnd, Option<u32>) {
    let OpenShell { input, output, .. } = &mut open;
    for keys in typed {
        input.send(ShellInput::Data(keys.as_bytes().to_vec())).await.unwrap();
    }
    let mut text = Vec::new();
    loop {
        match tokio::time::timeout(PATIENCE, output.recv()).await.unwrap().unwrap() {
            ShellOutput::Out(bytes) | ShellOutput::Error(bytes) => text.extend(bytes),
            ShellOutput::Taken(_) => {}
            ShellOutput::Over { end, code } => return (String::from_utf8_lossy(&text).replace('\r', ""), end, code),
        }
    }
}

const SIZE: TerminalSize = TerminalSize { columns: 100, rows: 30 };

impl Machine {
    /// A shell of a window, as its requester comes to it, and how what ran ended.
    async fn shell(
        &self,
        number: u128,
        remaining: Duration,
        end: watch::Receiver<Option<RootOutcome>>,
        come: impl AsyncFnOnce(OpenShell),
    ) -> (RootOutcome, Option<u32>) {
        let taken = self.host.take_root(Self::window(number)).await.unwrap();
        let order = RootOrder { workspace: self.workspace, what: RootWhat::Shell, remaining };
        let coming = async {
            let open = self.host.attach_root(Self::window(number), SIZE, "xterm".to_owned()).await.unwrap();
            come(open).await;
        };
        let (ran, ()) = tokio::join!(taken.run(order, end), coming);
        assert!(ran.changes.is_some(), "something ran");
        (ran.outcome, ran.code)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_is_root_on_a_terminal_of_its_own_and_nobody_comes_to_it_twice() {
    let Some(machine) = Machine::open().await else { return };
    let (_keep, end) = nobody_asks();
    let ended = machine.shell(1, LONG, end, async |open| {
        let keys = ["id -u; tty; stty size; echo $TERM $ENVFORGE_ROOT_WINDOW\n", "echo 'se''cret'\n", "exit 5\n"];
        let (text, end, code) = shown(open, &keys).await;
        assert_eq!((end, code), (ShellEnd::Exited, Some(5)), "{text}");
        for wanted in ["0\n/dev/pts/", "\n30 100\n", &format!("xterm {}", Machine::window(1)), "secret\n"] {
            assert!(text.contains(wanted), "{wanted}: {text}");
        }
    });
    assert_eq!(ended.await, (RootOutcome::Exited, Some(5)));
    assert_eq!(machine.host.root_output(Machine::window(1)), None, "nothing of it is kept");
    let grep = std::process::Command::new("grep").args(["-rl", "secret"]).arg(machine.dir.path()).output().unwrap();
    assert!(grep.stdout.is_empty(), "{}", String::from_utf8_lossy(&grep.stdout));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_ends_with_its_window_its_person_and_whoever_ends_it_and_all_it_started_with_it() {
    let Some(machine) = Machine::open().await else { return };
    let script = format!("{}\n", machine.tenacious());
    // Its time is over.
    let (_keep, end) = nobody_asks();
    let begun = Instant::now();
    let ended = machine.shell(1, Duration::from_secs(3), end, async |open| {
        assert_eq!(shown(open, &[&script]).await.1, ShellEnd::TimeOver);
    });
    assert_eq!(ended.await, (RootOutcome::Deadline, None));
    assert!((3..8).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    assert_eq!((machine.started().len(), machine.alive()), (5, vec![]));
    // Its person leaves without a word.
    std::fs::remove_file(machine.pids()).unwrap();
    let (_keep, end) = nobody_asks();
    let ended = machine.shell(2, LONG, end, async |open| {
        open.input.send(ShellInput::Data(script.clone().into_bytes())).await.unwrap();
        machine.until_all_started().await;
    });
    assert_eq!(ended.await, (RootOutcome::Signalled, Some(1)));
    assert_eq!(machine.alive(), Vec::<String>::new());
    // Somebody revokes it.
    std::fs::remove_file(machine.pids()).unwrap();
    let (ask, end) = nobody_asks();
    let ended = machine.shell(3, LONG, end, async |open| {
        open.input.send(ShellInput::Data(script.clone().into_bytes())).await.unwrap();
        machine.until_all_started().await;
        ask.send(Some(RootOutcome::Revoked)).unwrap();
        assert_eq!(shown(open, &[]).await.1, ShellEnd::RightLost);
    });
    assert_eq!(ended.await, (RootOutcome::Revoked, None));
    assert_eq!(machine.alive(), Vec::<String>::new());
    // The host stops.
    std::fs::remove_file(machine.pids()).unwrap();
    let (_keep, end) = nobody_asks();
    let ended = machine.shell(4, LONG, end, async |open| {
        open.input.send(ShellInput::Data(script.clone().into_bytes())).await.unwrap();
        machine.until_all_started().await;
        let stopping = machine.host.clone();
        tokio::join!(stopping.shutdown(), async {
            assert_eq!(shown(open, &[]).await.1, ShellEnd::HostStopped);
        });
    });
    assert_eq!(ended.await, (RootOutcome::HostStopped, None));
    assert_eq!(machine.alive(), Vec::<String>::new());
}
