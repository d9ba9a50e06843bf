//! The story of root in a workspace, with the command line against `envforge dev`: asked for, approved by somebody else, used
//! once, ended by whatever ends it, and nothing left running when EnvForge itself is killed.
//!
//! Where the tests do not run as root there is nothing to give: then the story is that this is said.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests panic, and hand paths on")]

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use envforge_testkit::{TestDir, TestProcess, wait_until};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(60);
/// How soon everything must be dead once a window ends.
const AT_ONCE: Duration = Duration::from_secs(5);
const OWNER: &str = "owner@envforge.localhost";
const DANA: &str = "dana@acme.example";
const OLGA: &str = "olga@acme.example";
const PASSWORD: &str = "plum kite engine 7";
const MANIFEST: &str = "\
version: 1
services:
  web:
    command: exec python3 -m http.server \"$PORT\" --bind 127.0.0.1
    route: { web: {} }
    readiness: { http: /, interval: 100ms, deadline: 60s }
";

struct Place {
    dir: TestDir,
}

impl Place {
    fn start(&self, name: &str) -> (TestProcess, Value) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
        command.args(["dev", "--json", "--listen", "127.0.0.1:0", "--gateway-listen", "127.0.0.1:0", "--data"]);
        command.arg(self.dir.join("data"));
        let mut dev = TestProcess::spawn(name, &command, self.dir.path());
        let started = dev.wait_ready("the first line", DEADLINE, |process| {
            let out = process.stdout();
            out.contains('\n').then(|| serde_json::from_str(out.lines().next().unwrap()).unwrap())
        });
        (dev, started)
    }

    fn client(&self, who: &str, args: &[&str], stdin: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
        command.args(args).env("ENVFORGE_CONFIG_DIR", self.dir.join(who)).env("ENVFORGE_CREDENTIALS", "file");
        command.env_remove("ENVFORGE_API").env_remove("ENVFORGE_ORG").current_dir(self.dir.join("orders"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A command that asks for nothing may be gone already.
        let _ = writeln!(child.stdin.take().unwrap(), "{stdin}");
        child.wait_with_output().unwrap()
    }

    #[track_caller]
    fn json(&self, who: &str, args: &[&str]) -> Value {
        let output = self.client(who, &[&["--json"], args].concat(), "");
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        serde_json::from_str(text.lines().last().unwrap_or("null")).unwrap()
    }

    #[track_caller]
    fn refused(&self, who: &str, args: &[&str]) -> String {
        let output = self.client(who, args, "");
        assert_ne!(output.status.code(), Some(0), "{args:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    fn login(&self, who: &str, api: &str, email: &str, password: &str) {
        let output = self.client(who, &["login", "--api", api, "--email", email, "--password-stdin"], password);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn repository(&self) {
        let root = self.dir.join("orders");
        std::fs::create_dir_all(&root).unwrap();
        std::fs::write(root.join("envforge.yml"), MANIFEST).unwrap();
        let author = ["-c", "user.name=Dana", "-c", "user.email=dana@acme.example", "-c", "commit.gpgsign=false"];
        for args in [&["init", "-q", "-b", "main"][..], &["add", "."], &["commit", "-q", "-m", "one"]] {
            assert!(Command::new("git").args(author).args(args).current_dir(&root).status().unwrap().success());
        }
    }

    fn pids(&self) -> PathBuf {
        self.dir.join("pids")
    }

    /// A script that never ends, of whose processes one hides in a session of its own without an environment.
    fn tenacious(&self) -> String {
        let pids = self.pids();
        let pids = pids.display();
        format!(
            "trap '' TERM; echo $$ >> {pids}; sleep 100000 & echo $! >> {pids}; \
             setsid env -i /bin/sh -c 'echo $$ >> {pids}; exec sleep 100000' & wait"
        )
    }

    fn processes(&self) -> Vec<String> {
        std::fs::read_to_string(self.pids()).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// A window of Dana's, approved, in which the script runs.
    fn running(&self) -> String {
        let _ = std::fs::remove_file(self.pids());
        let window = self.json("dana", &["root", "request", "main", "--reason", "a long job", "--for", "20m"]);
        let window = window["id"].as_str().unwrap().to_owned();
        self.json("owner", &["root", "approve", &window]);
        let script = self.tenacious();
        self.json("dana", &["root", "run", &window, "--detach", "--", "/bin/sh", "-c", &script]);
        wait_until("the command's processes", DEADLINE, || self.processes().len() == 3);
        window
    }

    #[track_caller]
    fn all_die_at_once(&self, since: Instant) {
        wait_until("the end of all processes", DEADLINE, || self.processes().iter().all(|pid| is_dead(pid)));
        assert!(since.elapsed() < AT_ONCE, "{:?}", since.elapsed());
    }

    /// Waits for the closeout, and answers the window.
    fn ended(&self, window: &str, outcome: &str) -> Value {
        let mut shown = Value::Null;
        wait_until("the command's end in the log", DEADLINE, || {
            shown = self.json("owner", &["root", "show", window]);
            shown["command"]["outcome"].is_string()
        });
        assert_eq!(shown["command"]["outcome"], outcome, "{shown}");
        shown
    }
}

fn is_dead(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

#[test]
fn root_is_asked_for_approved_used_once_and_ends_whatever_happens() {
    let place = Place { dir: TestDir::new() };
    place.repository();
    let (mut dev, started) = place.start("first");
    let (api, password) = (started["api"].as_str().unwrap(), started["owner_password"].as_str().unwrap());
    place.login("owner", api, OWNER, password);
    place.json("owner", &["up"]);
    let added = place.client(
        "owner",
        &["org", "member", "add", "--email", DANA, "--name", "Dana", "--password-stdin"],
        PASSWORD,
    );
    assert_eq!(added.status.code(), Some(0), "{}", String::from_utf8_lossy(&added.stderr));
    place.json("owner", &["org", "role", "assign", DANA, "developer"]);
    place.login("dana", api, DANA, PASSWORD);

    // Closed by default.
    let ask = ["root", "request", "main", "--reason", "who am I", "--for", "20m"];
    assert!(place.refused("dana", &ask).contains("root policy is `disabled`"));
    place.json("owner", &["org", "policy", "set", "--root", "workspace_elevation"]);
    let window = place.json("dana", &ask)["id"].as_str().unwrap().to_owned();
    let run = ["root", "run", &window, "--", "/bin/sh", "-c", "id -u; echo by $ENVFORGE_ROOT_WINDOW; exit 0"];
    assert!(place.refused("dana", &run).contains("approved"));
    assert!(place.refused("dana", &["root", "approve", &window]).contains("owner, admin"));
    // An owner's own is no different.
    let own = place.json("owner", &["root", "request", "main", "--reason", "mine", "--for", "20m"]);
    assert_eq!(own["workspace_slug"], "main");
    let own = own["id"].as_str().unwrap();
    for verb in ["approve", "deny"] {
        let told = place.refused("owner", &["root", verb, own]);
        assert!(told.contains("somebody else"), "{told}");
    }
    assert!(place.refused("dana", &["root", "approve", own]).contains("owner, admin"));
    // Nor does whoever has all they have from the owner decide for them.
    place.json("owner", &["org", "role", "assign", DANA, "admin"]);
    let told = place.refused("dana", &["root", "approve", own]);
    assert!(
        told.contains("you have your account from whoever asked") && told.contains("envforge recover-owner"),
        "{told}"
    );
    let on_it = format!("root_window/{own}");
    let why = place.json("dana", &["why", "--action", "root.approve", "--on", &on_it]);
    assert_eq!((&why["allowed"], &why["reason"]), (&false.into(), &"root_decider_depends".into()));
    let why = place.client("dana", &["why", "--action", "root.approve", "--on", "workspace/main"], "");
    assert!(String::from_utf8_lossy(&why.stdout).contains("but not on their own root windows"), "{why:?}");
    place.json("owner", &["org", "role", "revoke", DANA, "admin"]);
    place.json("owner", &["root", "withdraw", own]);
    place.json("owner", &["root", "approve", &window]);
    if !rustix::process::geteuid().is_root() {
        assert!(place.refused("dana", &run).contains("EnvForge is not root"), "nothing is pretended");
        place.ended(&window, "no_root");
        return;
    }
    let out = place.client("dana", &run, "");
    assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(String::from_utf8_lossy(&out.stdout), format!("0\nby {window}\n"));
    assert!(place.refused("dana", &run).contains("over"), "once");
    let shown = place.ended(&window, "exited");
    assert_eq!((&shown["phase"], &shown["command"]["code"]), (&"closed".into(), &0.into()));
    // What it wrote stands nowhere but in memory; what it was stands in the closeout.
    let closed = place.json("owner", &["audit", "log", "--type", "root_window.closed"]);
    let summary = closed["items"][0]["summary"].as_str().unwrap().to_owned();
    assert!(summary.contains("of Dana (approved by") && summary.contains("/bin/sh -c id -u"), "{summary}");

    // Revoked, given up, a lost role, the policy, a sleeping runtime: all of it is dead within seconds, also what hid.
    for (end, outcome) in [
        (&["root", "revoke"][..], "revoked"),
        (&["root", "withdraw"], "withdrawn"),
        (&["org", "role", "revoke", DANA, "developer"], "right_lost"),
        (&["org", "policy", "set", "--root", "disabled"], "right_lost"),
        (&["workspace", "sleep", "main"], "runtime_gone"),
    ] {
        let window = place.running();
        let since = Instant::now();
        match end {
            ["root", "withdraw"] => place.json("dana", &[end, &[&*window]].concat()),
            ["root", ..] => place.json("owner", &[end, &[&*window]].concat()),
            _ => place.json("owner", end),
        };
        place.all_die_at_once(since);
        place.ended(&window, outcome);
        place.json("owner", &["org", "role", "assign", DANA, "developer"]);
        place.json("owner", &["org", "policy", "set", "--root", "workspace_elevation"]);
    }
    place.json("owner", &["up"]);

    // EnvForge's process dies: what it ran as root dies with it, without anybody's help. The next start says so.
    let window = place.running();
    let since = Instant::now();
    dev.kill9();
    place.all_die_at_once(since);
    drop(dev);
    // Who decides for the owner is made by the operator.
    let data = place.dir.join("data");
    let olga = place.json("operator", &["recover-owner", "--data", data.to_str().unwrap(), "--email", OLGA]);
    let (mut dev, started) = place.start("second");
    place.login("owner", started["api"].as_str().unwrap(), OWNER, password);
    place.login("olga", started["api"].as_str().unwrap(), OLGA, olga["password"].as_str().unwrap());
    let own = place.json("owner", &["root", "request", "main", "--reason", "mine", "--for", "20m"]);
    let approved = place.json("olga", &["root", "approve", own["id"].as_str().unwrap()]);
    assert_eq!((&approved["phase"], &approved["approver"]), (&"approved".into(), &olga["user"]));
    place.json("owner", &["root", "withdraw", own["id"].as_str().unwrap()]);
    let shown = place.ended(&window, "lost");
    assert_eq!(shown["phase"], "closed");
    // A stop that is asked for takes it along, too.
    place.login("dana", started["api"].as_str().unwrap(), DANA, PASSWORD);
    place.json("owner", &["up"]);
    let _window = place.running();
    let since = Instant::now();
    assert!(dev.terminate(DEADLINE).success(), "{}", dev.stderr());
    place.all_die_at_once(since);
}
