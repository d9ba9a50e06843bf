//! An `envforge dev`, a repository and people's command lines against it.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use envforge_testkit::{TestDir, TestProcess, wait_until};
use nix::sys::signal::Signal;
use serde_json::Value;

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
pub(crate) const OWNER: &str = "owner@envforge.localhost";
pub(crate) const DANA: &str = "dana@acme.example";
pub(crate) const PASSWORD: &str = "plum kite engine 7";
const MANIFEST: &str = "\
version: 1
services:
  web:
    command: exec python3 -u -m http.server \"$PORT\" --bind 127.0.0.1
    route: { web: {} }
    readiness: { http: /, interval: 100ms, deadline: 60s }
jobs:
  unit: { command: \"echo ran $ENVFORGE_SERVICE; echo bad >&2; test -f envforge.yml; exit 3\", kind: test }
  long: { command: \"echo begun; exec sleep 100000\", kind: agent }
";

pub(crate) struct Place {
    pub(crate) dir: TestDir,
    pub(crate) dev: TestProcess,
    pub(crate) api: String,
}

impl Place {
    /// Everything runs, the owner and Dana, a developer, are signed in, and the workspace `main` has never woken.
    pub(crate) fn start() -> Self {
        let dir = TestDir::new();
        let root = dir.join("orders");
        std::fs::create_dir_all(&root).unwrap();
        std::fs::write(root.join("envforge.yml"), MANIFEST).unwrap();
        let author = ["-c", "user.name=Dana", "-c", "user.email=dana@acme.example", "-c", "commit.gpgsign=false"];
        for args in [&["init", "-q", "-b", "main"][..], &["add", "."], &["commit", "-q", "-m", "one"]] {
            assert!(Command::new("git").args(author).args(args).current_dir(&root).status().unwrap().success());
        }
        std::fs::write(dir.join("password"), PASSWORD).unwrap();
        let (dev, api) = begin(&dir, "first");
        let place = Self { dir, dev, api };
        place.login("owner", OWNER);
        let root = place.dir.join("orders").display().to_string();
        place.json("owner", &["project", "create", "orders", "--name", "Orders", "--repository", &root]);
        place.json("owner", &["workspace", "create", "--project", "orders", "--branch", "main", "--slug", "main"]);
        let add = ["org", "member", "add", "--email", DANA, "--name", "Dana", "--password-stdin"];
        assert!(place.client("owner", &add, PASSWORD).status.success());
        place.make_developer();
        place.login("dana", DANA);
        place
    }

    pub(crate) fn make_developer(&self) {
        self.json("owner", &["org", "role", "assign", DANA, "developer"]);
    }

    /// After this process was killed.
    pub(crate) fn start_again(&mut self) {
        let (dev, api) = begin(&self.dir, "second");
        (self.dev, self.api) = (dev, api);
        self.login("owner", OWNER);
    }

    pub(crate) fn command(&self, who: &str, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
        command.args(args).current_dir(self.dir.join("orders"));
        self.signed_in_as(&mut command, who);
        command
    }

    pub(crate) fn signed_in_as(&self, command: &mut Command, who: &str) {
        command.env("ENVFORGE_CONFIG_DIR", self.dir.join(who)).env("ENVFORGE_CREDENTIALS", "file");
        command.env_remove("ENVFORGE_API").env_remove("ENVFORGE_ORG").env("TERM", "xterm");
    }

    /// A command that goes on.
    pub(crate) fn begin(&self, who: &str, args: &[&str]) -> Child {
        let mut command = self.command(who, args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    pub(crate) fn client(&self, who: &str, args: &[&str], stdin: &str) -> Output {
        let mut child = self.begin(who, args);
        // A command that asks for nothing may be gone already.
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        child.wait_with_output().unwrap()
    }

    #[track_caller]
    pub(crate) fn json(&self, who: &str, args: &[&str]) -> Value {
        let output = self.client(who, &[&["--json"], args].concat(), "");
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        serde_json::from_str(text.lines().last().unwrap_or("null")).unwrap()
    }

    pub(crate) fn login(&self, who: &str, email: &str) {
        let args = ["login", "--api", &self.api, "--email", email, "--password-stdin"];
        let output = self.client(who, &args, PASSWORD);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Where processes of tests write their ids.
    pub(crate) fn pids(&self) -> PathBuf {
        self.dir.join("pids")
    }

    pub(crate) fn processes(&self) -> Vec<String> {
        std::fs::read_to_string(self.pids()).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// A script with three processes that do not want to end, one of them in a session of its own.
    pub(crate) fn tenacious(&self) -> String {
        let _ = std::fs::remove_file(self.pids());
        let pids = self.pids().display().to_string();
        format!(
            "trap '' TERM HUP; echo $$ >> {pids}; sleep 100000 & echo $! >> {pids}; \
             setsid sh -c 'echo $$ >> {pids}; exec sleep 100000' & wait"
        )
    }

    pub(crate) fn until_they_run(&self, count: usize) {
        wait_until("the shell's processes", DEADLINE, || self.processes().len() >= count);
    }

    pub(crate) fn alive(&self) -> usize {
        self.processes().iter().filter(|pid| !is_dead(pid)).count()
    }

    /// What the audit says of ends of shells, the newest first.
    pub(crate) fn ends(&self) -> Vec<String> {
        let rows = self.json("owner", &["audit", "log", "--type", "shell.disconnected", "--limit", "50"]);
        let items = rows["items"].as_array().unwrap();
        items.iter().map(|row| row["summary"].as_str().unwrap().to_owned()).collect()
    }

    #[track_caller]
    pub(crate) fn ended_as(&self, wanted: &str) {
        wait_until(&format!("`{wanted}` in the audit"), DEADLINE, || {
            self.ends().iter().any(|end| end.contains(wanted))
        });
    }
}

/// A terminal that lasts is nobody's child: only who ends in order takes it along.
impl Drop for Place {
    fn drop(&mut self) {
        self.dev.signal(Signal::SIGTERM);
        let begun = Instant::now();
        while self.dev.is_running() && begun.elapsed() < DEADLINE {
            std::thread::sleep(Duration::from_millis(20)); // pause: a drop may not panic, as waiting does
        }
    }
}

pub(crate) fn is_dead(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

fn begin(dir: &TestDir, name: &str) -> (TestProcess, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
    command.args(["dev", "--json", "--listen", "127.0.0.1:0", "--gateway-listen", "127.0.0.1:0"]);
    command.arg("--owner-password-file").arg(dir.join("password")).arg("--data").arg(dir.join("data"));
    command.env("CANARY_OF_THE_CONTROL_PLANE", "nobody's");
    let mut dev = TestProcess::spawn(name, &command, dir.path());
    let api = dev.wait_ready("the first line", DEADLINE, |process| {
        let out = process.stdout();
        let line = out.contains('\n').then(|| out.lines().next().unwrap().to_owned())?;
        serde_json::from_str::<Value>(&line).unwrap()["api"].as_str().map(str::to_owned)
    });
    (dev, api)
}
