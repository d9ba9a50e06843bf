//! How `envforge dev` begins and ends: what a start that fails leaves behind, and what a request to stop takes along.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests panic, and hand paths on")]

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use envforge_testkit::{TestDir, TestProcess, wait_for, wait_until};
use nix::sys::signal::Signal;
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(60);
const ANY_PORT: &str = "127.0.0.1:0";

/// A data directory, a developer's repository and settings.
struct Place {
    dir: TestDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: TestDir::new() }
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn dev(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
        command.arg("dev").arg("--data").arg(self.data()).args(args);
        command
    }

    fn on_free_ports(&self, args: &[&str]) -> Command {
        let mut command = self.dev(&["--listen", ANY_PORT, "--gateway-listen", ANY_PORT]);
        command.args(args);
        command
    }

    /// Runs it and waits for its first line, which is JSON.
    fn start(&self, name: &str, command: &Command) -> (TestProcess, Value) {
        let mut process = TestProcess::spawn(name, command, self.dir.path());
        let started = process.wait_ready("the first line", DEADLINE, |process| {
            let out = process.stdout();
            out.contains('\n').then(|| serde_json::from_str(out.lines().next().unwrap()).unwrap())
        });
        (process, started)
    }

    fn login(&self, api: &str, password: &str) -> Output {
        let mut command = self.client(&["login", "--api", api, "--email", "owner@envforge.localhost"]);
        command.arg("--password-stdin").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        writeln!(child.stdin.take().unwrap(), "{password}").unwrap();
        child.wait_with_output().unwrap()
    }

    fn client(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
        command.args(args).env("ENVFORGE_CONFIG_DIR", self.path("config")).env_remove("ENVFORGE_API");
        command.env_remove("ENVFORGE_ORG").current_dir(self.repository());
        command
    }

    fn client_succeeds(&self, args: &[&str]) -> String {
        let output = self.client(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn repository(&self) -> PathBuf {
        let root = self.path("orders");
        std::fs::create_dir_all(&root).unwrap();
        root
    }

    /// A repository with one service, whose processes write their ids down.
    fn make_repository(&self, command: &str) {
        let root = self.repository();
        let manifest = format!(
            "version: 1\nservices:\n  web:\n    command: \"{command}\"\n    route: web\n    readiness: {{ tcp: true, deadline: 4m }}\n"
        );
        std::fs::write(root.join("envforge.yml"), manifest).unwrap();
        let author = ["-c", "user.name=Dana", "-c", "user.email=dana@acme.example", "-c", "commit.gpgsign=false"];
        for args in [&["init", "-q", "-b", "main"][..], &["add", "."], &["commit", "-q", "-m", "one"]] {
            assert!(Command::new("git").args(author).args(args).current_dir(&root).status().unwrap().success());
        }
    }

    fn pids(&self) -> PathBuf {
        self.path("pids")
    }

    /// A daemon that outlives the shell which started it writes its id down, then `rest` follows.
    fn with_a_child(&self, rest: &str) -> String {
        format!("sleep 100000 & echo $! >> {}; {rest}", self.pids().display())
    }

    fn children(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.pids()).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn wait_for_a_child(&self) {
        wait_until("the service's child", DEADLINE, || !self.children().is_empty());
    }

    fn no_child_lives(&self) -> bool {
        assert!(!self.children().is_empty());
        self.children().iter().all(|pid| is_dead(pid))
    }

    /// The data of the events of one type.
    fn events(&self, event_type: &str) -> Vec<Value> {
        let replayed = self.client_succeeds(&["audit", "replay", "--json"]);
        let events = replayed.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        events.filter(|event| event["type"] == event_type).map(|event| event["data"].clone()).collect()
    }

    /// A data directory whose log holds a runtime that is waking, of a process that was killed. The next start wakes it.
    fn with_a_runtime_that_is_waking() -> Self {
        let place = Self::new();
        place.make_repository(&place.with_a_child("wait"));
        let (mut dev, started) = place.start("first", &place.on_free_ports(&["--json"]));
        place.login(started["api"].as_str().unwrap(), started["owner_password"].as_str().unwrap());
        place.client_succeeds(&["up", "--no-wait"]);
        place.wait_for_a_child();
        dev.kill9();
        std::fs::remove_file(place.pids()).unwrap();
        place
    }

    /// A folder for the PATH in which `git` waits, within the demo's repository, for the service's child, and then does
    /// `after`. Elsewhere it is git.
    fn git_that_waits(&self, after: &str) -> String {
        let folder = self.path("bin");
        std::fs::create_dir_all(&folder).unwrap();
        let git = on_path("git");
        let script = format!(
            "#!/bin/sh\ncase \"$PWD\" in */demo/orders)\n  until [ -s {} ]; do sleep 0.05; done\n  {after};;\nesac\nexec {} \"$@\"\n",
            self.pids().display(),
            git.display()
        );
        std::fs::write(folder.join("git"), script).unwrap();
        std::fs::set_permissions(folder.join("git"), std::fs::Permissions::from_mode(0o755)).unwrap();
        format!("{}:{}", folder.display(), std::env::var("PATH").unwrap())
    }
}

fn on_path(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|path| path.is_file()).unwrap()
}

/// A port that somebody listens on for as long as the listener lives.
fn taken() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(ANY_PORT).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn error_of(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stderr);
    let line: Value = serde_json::from_str(text.lines().last().unwrap_or_default())
        .unwrap_or_else(|error| panic!("no JSON on standard error ({error}): {text}"));
    line["error"].clone()
}

#[test]
fn the_first_password_outlives_starts_that_fail_and_is_told_once() {
    let place = Place::new();
    let (_listener, address) = taken();
    let kept = place.data().join("keys/first-password");

    // The account is made, then the gateway's port is found taken.
    let port = address.to_string();
    let failed = place.dev(&["--json", "--listen", ANY_PORT, "--gateway-listen", &port]).output().unwrap();
    assert_eq!(failed.status.code(), Some(1));
    assert!(failed.stdout.is_empty());
    let error = error_of(&failed);
    assert!(error["title"].as_str().unwrap().contains(&port), "{error}");
    assert_eq!(std::fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);

    let (mut dev, started) = place.start("second", &place.on_free_ports(&["--json"]));
    let password = started["owner_password"].as_str().expect("the password that nobody was told yet");
    let login = place.login(started["api"].as_str().unwrap(), password);
    assert!(login.status.success(), "{}", String::from_utf8_lossy(&login.stderr));
    wait_until("the password is forgotten", DEADLINE, || !kept.exists());
    assert!(dev.terminate(DEADLINE).success());

    let (mut dev, started) = place.start("third", &place.on_free_ports(&["--json"]));
    assert_eq!(started["owner_password"], Value::Null);
    assert!(dev.terminate(DEADLINE).success());
}

#[test]
fn an_api_port_that_is_taken_is_said_before_anything_is_made() {
    let place = Place::new();
    let (_listener, address) = taken();
    let port = address.to_string();
    let failed = place.dev(&["--json", "--gateway-listen", ANY_PORT, "--listen", &port]).output().unwrap();
    assert_eq!(failed.status.code(), Some(1));
    assert!(error_of(&failed)["hint"].as_str().unwrap().contains("--listen"));
    assert!(!place.data().exists());
}

#[test]
fn a_demo_without_python_is_refused_before_anything_is_made() {
    let place = Place::new();
    let folder = place.path("bin");
    std::fs::create_dir(&folder).unwrap();
    symlink(on_path("git"), folder.join("git")).unwrap();
    let failed = place.on_free_ports(&["--demo", "--json"]).env("PATH", &folder).output().unwrap();
    assert_eq!(failed.status.code(), Some(1));
    let error = error_of(&failed);
    assert!(error["title"].as_str().unwrap().contains("needs python3"), "{error}");
    assert!(!place.data().exists());
}

#[test]
fn ctrl_c_puts_what_runs_to_sleep_and_leaves_no_process() {
    let place = Place::new();
    place.make_repository(&place.with_a_child("exec python3 -m http.server $PORT --bind 127.0.0.1"));
    let (mut dev, started) = place.start("first", &place.on_free_ports(&["--json"]));
    place.login(started["api"].as_str().unwrap(), started["owner_password"].as_str().unwrap());
    place.client_succeeds(&["up"]);
    dev.signal(Signal::SIGINT);
    assert!(dev.wait(DEADLINE).success(), "{}", dev.stderr());
    assert!(place.no_child_lives());

    let (_dev, started) = place.start("second", &place.on_free_ports(&["--json"]));
    let told = place.login(started["api"].as_str().unwrap(), &first_password(&place));
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    let slept = place.events("runtime.sleep_requested.v1");
    assert_eq!(slept.len(), 1, "{slept:?}");
    assert!(slept[0]["cause"].to_string().contains("shutdown"), "{slept:?}");
    assert_eq!(place.events("runtime.slept.v1").len(), 1);
}

/// Whether a process is gone, or is a dead one that nobody has looked at yet and still has a number.
fn is_dead(pid: &str) -> bool {
    let dead = |stat: String| stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']));
    std::fs::read_to_string(Path::new("/proc").join(pid).join("stat")).map_or(true, dead)
}

/// What the first start of `place` told.
fn first_password(place: &Place) -> String {
    let told = std::fs::read_to_string(place.path("first.stdout")).unwrap();
    let started: Value = serde_json::from_str(told.lines().next().unwrap()).unwrap();
    started["owner_password"].as_str().unwrap().to_owned()
}

#[test]
fn a_terminal_that_goes_away_stops_everything_though_nobody_can_be_told() {
    let place = Place::new();
    place.make_repository(&place.with_a_child("exec python3 -m http.server $PORT --bind 127.0.0.1"));
    // Standard error is a pipe that nobody reads any more: each write to it fails.
    let mut command = Command::new("sh");
    command.args(["-c", r#"mkfifo "$0"; : < "$0" & exec "$@" 2> "$0""#]).arg(place.path("nobody"));
    let dev = place.on_free_ports(&[]);
    command.arg(dev.get_program()).args(dev.get_args());
    let mut dev = TestProcess::spawn("dev", &command, place.dir.path());
    let text = dev.wait_ready("the last line", DEADLINE, |dev| {
        Some(dev.stdout()).filter(|text| text.contains("Ctrl-C stops everything"))
    });
    let line = |name: &str| {
        let found = text.lines().find_map(|line| line.trim().strip_prefix(name));
        found.unwrap_or_else(|| panic!("{name} is not in {text}")).split_whitespace().next().unwrap().to_owned()
    };
    let login = place.login(&line("API"), &line("Password"));
    assert!(login.status.success(), "{}", String::from_utf8_lossy(&login.stderr));
    place.client_succeeds(&["up"]);
    // Kernel and shell both tell that the terminal is closed, one after the other: that is no impatience.
    wait_until("the end", DEADLINE, || {
        dev.signal(Signal::SIGHUP);
        !dev.is_running()
    });
    assert!(dev.wait(DEADLINE).success());
    assert!(place.no_child_lives());
}

#[test]
fn a_start_that_fails_late_leaves_no_process() {
    let place = Place::with_a_runtime_that_is_waking();
    let path = place.git_that_waits("exit 1");
    let failed = place.on_free_ports(&["--demo", "--json"]).env("PATH", path).output().unwrap();
    assert_eq!(failed.status.code(), Some(1));
    let error = error_of(&failed);
    assert!(error["title"].as_str().unwrap().contains("the demo could not be prepared"), "{error}");
    assert!(place.no_child_lives());
}

#[test]
fn ctrl_c_in_the_middle_of_a_start_leaves_no_process() {
    let place = Place::with_a_runtime_that_is_waking();
    let path = place.git_that_waits("while :; do sleep 0.05; done");
    let mut command = place.on_free_ports(&["--demo", "--json"]);
    command.env("PATH", path);
    let mut dev = TestProcess::spawn("interrupted", &command, place.dir.path());
    place.wait_for_a_child();
    dev.signal(Signal::SIGINT);
    assert!(dev.wait(DEADLINE).success(), "{}", dev.stderr());
    assert_eq!(dev.stdout(), "", "it never ran");
    assert!(place.no_child_lives());
}

#[test]
fn a_second_ctrl_c_does_not_wait_and_the_next_start_ends_what_is_left() {
    let place = Place::new();
    // It takes no notice of being asked to end, for which it is given ten seconds.
    let stubborn = format!("trap '' TERM; {}", place.with_a_child("while :; do sleep 0.1; done"));
    place.make_repository(&stubborn);
    let (mut dev, started) = place.start("first", &place.on_free_ports(&["--json", "--log", "info"]));
    place.login(started["api"].as_str().unwrap(), started["owner_password"].as_str().unwrap());
    place.client_succeeds(&["up", "--no-wait"]);
    place.wait_for_a_child();
    dev.signal(Signal::SIGINT);
    dev.wait_ready("the word of stopping", DEADLINE, |dev| dev.stderr().contains("stopping").then_some(()));
    // The same one, told again as process groups do, is no second one.
    let told = Instant::now();
    dev.signal(Signal::SIGINT);
    wait_until("a second", DEADLINE, || told.elapsed() > Duration::from_millis(1_100));
    assert!(dev.is_running(), "{}", dev.stderr());
    dev.signal(Signal::SIGINT);
    assert_eq!(dev.wait(Duration::from_secs(7)).code(), Some(130));

    // What was still on its way to ready is woken anew by the next start, with children of its own.
    let left = place.children();
    let (mut dev, _) = place.start("second", &place.on_free_ports(&["--json"]));
    wait_until("what was left is gone", DEADLINE, || left.iter().all(|pid| is_dead(pid)));
    assert!(dev.terminate(DEADLINE).success());
    assert!(place.no_child_lives());
}

#[test]
fn nothing_starts_on_read_models_of_another_log() {
    let (mine, other) = (Place::new(), Place::new());
    for place in [&mine, &other] {
        let (mut dev, _) = place.start("first", &place.on_free_ports(&["--json"]));
        let folded = || place.data().join("read-models.sqlite").exists();
        wait_until("the read models", DEADLINE, folded);
        assert!(dev.terminate(DEADLINE).success());
    }
    for ending in ["", "-wal", "-shm"] {
        let name = format!("read-models.sqlite{ending}");
        let _ = std::fs::remove_file(mine.data().join(&name));
        if other.data().join(&name).exists() {
            std::fs::copy(other.data().join(&name), mine.data().join(&name)).unwrap();
        }
    }
    let mut dev = TestProcess::spawn("dev", &mine.on_free_ports(&["--json"]), mine.dir.path());
    assert_eq!(dev.wait(DEADLINE).code(), Some(1), "{}", dev.stderr());
    let said = dev.stderr();
    assert!(said.contains("the event log is not the one that the read models know"), "{said}");
}

#[test]
fn dev_says_where_everything_is_and_takes_the_users_own_data_directory() {
    let place = Place::new();
    let mut command = Command::new("sh");
    // Shells allow few open files, and no more than so many.
    command.args(["-c", r#"ulimit -Sn 512; exec "$@""#, "sh", env!("CARGO_BIN_EXE_envforge"), "dev"]);
    command.args(["--listen", ANY_PORT, "--gateway-listen", ANY_PORT]);
    command.env("HOME", place.path("home")).env("XDG_DATA_HOME", place.path("share")).env_remove("ENVFORGE_DATA");
    let mut dev = TestProcess::spawn("dev", &command, place.dir.path());
    let text = dev.wait_ready("the last line", DEADLINE, |dev| {
        Some(dev.stdout()).filter(|text| text.contains("Ctrl-C stops everything"))
    });
    let data = place.path("share").join("envforge");
    assert_eq!(std::fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o700);
    for part in [
        "EnvForge is running.\n\n  API        http://127.0.0.1:",
        "\n  Gateway    http://dev.localhost:",
        &format!("\n  Data       {}\n", data.canonicalize().unwrap().display()),
        "/runtime/workspaces/WORKSPACE-ID/output/SERVICE.log\n",
        "\n  Owner      owner@envforge.localhost\n  Password   ",
        "\n  envforge login --api http://127.0.0.1:",
        "\n  envforge up\n",
        "One organization, this one machine. Services run as you do",
    ] {
        assert!(text.contains(part), "`{part}` is not in:\n{text}");
    }

    let limits = std::fs::read_to_string(format!("/proc/{}/limits", dev.id())).unwrap();
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let [soft, hard] = [0, 1].map(|column| files.split_whitespace().nth(column).unwrap().parse::<u64>().unwrap());
    assert_eq!(soft, hard.min(65_536), "{files}");

    dev.signal(Signal::SIGTERM);
    let status = wait_for("the end", DEADLINE, || (!dev.is_running()).then(|| dev.wait(DEADLINE)));
    assert!(status.success(), "{}", dev.stderr());
    assert!(dev.stderr().contains("Stopping: runtimes are put to sleep"), "{}", dev.stderr());
}
