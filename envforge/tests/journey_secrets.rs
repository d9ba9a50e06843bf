//! The story of secrets, with the command line against `envforge dev`: set once, given to the service that declares them and to
//! nobody else, rotated, forbidden, removed.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests panic, and hand paths on")]

#[allow(dead_code, reason = "of what terminals can do, only asking is looked at here")]
#[path = "journey_shell/tty.rs"]
mod tty;

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use envforge_testkit::{TestDir, TestProcess, wait_until};
use serde_json::Value;
use tty::Tty;

const DEADLINE: Duration = Duration::from_secs(60);
const OWNER: &str = "owner@envforge.localhost";
const MANIFEST: &str = "\
version: 1
services:
  web:
    command: env > \"$ENVFORGE_DATA_DIR/web.env\"; exec python3 -m http.server \"$PORT\" --bind 127.0.0.1
    route: { web: {} }
    readiness: { http: /, interval: 100ms, deadline: 60s }
    secrets: [API_KEY, PEM]
  worker:
    command: env > \"$ENVFORGE_DATA_DIR/worker.env\"; exec sleep 100000
    readiness: { none: true }
    secrets: [QUEUE_URL]
jobs:
  unit: { command: 'echo \"job $JOB_TOKEN $API_KEY\"', secrets: [JOB_TOKEN] }
";

struct Place {
    dir: TestDir,
    starts: AtomicU32,
}

impl Place {
    fn new() -> Self {
        Self { dir: TestDir::new(), starts: AtomicU32::new(0) }
    }

    fn start(&self) -> (TestProcess, Value) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
        command.args(["dev", "--json", "--listen", "127.0.0.1:0", "--gateway-listen", "127.0.0.1:0", "--data"]);
        command.arg(self.dir.join("data")).arg("--runtime").arg(self.dir.join("runtime"));
        // Each with an output of its own.
        let name = format!("dev-{}", self.starts.fetch_add(1, Ordering::Relaxed));
        let mut dev = TestProcess::spawn(&name, &command, self.dir.path());
        let started = dev.wait_ready("the first line", DEADLINE, |process| {
            let out = process.stdout();
            out.contains('\n').then(|| serde_json::from_str(out.lines().next().unwrap()).unwrap())
        });
        (dev, started)
    }

    fn as_owner(&self, mut command: Command) -> Command {
        command.env("ENVFORGE_CONFIG_DIR", self.dir.join("owner")).env("ENVFORGE_CREDENTIALS", "file");
        command.env_remove("ENVFORGE_API").env_remove("ENVFORGE_ORG").current_dir(self.dir.join("orders"));
        command
    }

    fn client(&self, args: &[&str], stdin: &str) -> Output {
        let mut command = self.as_owner(Command::new(env!("CARGO_BIN_EXE_envforge")));
        command.args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A command that asks for nothing may be gone already.
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        child.wait_with_output().unwrap()
    }

    #[track_caller]
    fn json(&self, args: &[&str], stdin: &str) -> Value {
        let output = self.client(&[&["--json"], args].concat(), stdin);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        serde_json::from_str(text.lines().last().unwrap_or("null")).unwrap()
    }

    #[track_caller]
    fn refused(&self, args: &[&str], stdin: &str) -> String {
        let output = self.client(args, stdin);
        assert_ne!(output.status.code(), Some(0), "{args:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
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

    /// Where a service writes what it found in its environment when it started.
    fn file_of(&self, service: &str) -> PathBuf {
        let workspaces = self.dir.join("runtime/workspaces");
        let place: PathBuf = std::fs::read_dir(workspaces).unwrap().next().unwrap().unwrap().path();
        place.join(format!("data/{service}.env"))
    }

    fn environment(&self, service: &str) -> String {
        std::fs::read_to_string(self.file_of(service)).unwrap()
    }

    fn stale(&self) -> Vec<(String, u64)> {
        let seen = self.json(&["secret", "ls"], "");
        let mut stale = Vec::new();
        for item in seen["items"].as_array().unwrap() {
            for given in item["given"].as_array().unwrap().iter().filter(|given| given["stale"] == true) {
                stale.push((item["name"].as_str().unwrap().to_owned(), given["version"].as_u64().unwrap()));
            }
        }
        stale
    }
}

#[test]
fn secrets_reach_the_services_that_declare_them_and_nobody_else() {
    let place = Place::new();
    place.repository();
    let (_dev, started) = place.start();
    let (api, password) = (started["api"].as_str().unwrap(), started["owner_password"].as_str().unwrap());
    let login = ["login", "--api", api, "--email", OWNER, "--password-stdin"];
    assert_eq!(place.client(&login, &format!("{password}\n")).status.code(), Some(0));

    // Nothing is set: everything that is missing is named with its service, and nothing started.
    let told = place.refused(&["up"], "");
    for name in ["API_KEY", "PEM", "QUEUE_URL", "`web`", "`worker`"] {
        assert!(told.contains(name), "`{name}` is not in: {told}");
    }
    assert!(!place.dir.join("runtime/workspaces").read_dir().is_ok_and(|mut places| places.next().is_some()));
    let seen = place.json(&["secret", "ls"], "");
    assert_eq!(seen["stopped"].as_array().unwrap().len(), 3, "{seen}");
    assert_eq!(seen["refused"], seen["stopped"]);

    let set = place.json(&["secret", "set", "API_KEY", "--project", "orders"], "value of the project\n");
    assert_eq!((set["version"].as_u64(), set["owner"].as_str()), (Some(1), Some("project")));
    place.json(&["secret", "set", "PEM", "--project", "orders", "--service", "web"], "one\ntwo\n");
    place.json(&["secret", "set", "QUEUE_URL"], "amqp://workspace");
    place.json(&["secret", "set", "LEFT_OVER"], "nobody declares it");
    // What nothing declares is named before anything starts, and stops nothing.
    let up = place.client(&["--json", "up"], "");
    assert_eq!(up.status.code(), Some(0), "{}", String::from_utf8_lossy(&up.stderr));
    let (events, first) = (String::from_utf8(up.stdout).unwrap(), "\"event\":\"undeclared_secret\"");
    let named = events.lines().position(|line| line.contains(first) && line.contains("\"LEFT_OVER\""));
    let started = events.lines().position(|line| line.contains("\"event\":\"stage\""));
    assert!(named.is_some() && started.is_none_or(|started| named < Some(started)), "{events}");
    assert_eq!(events.matches(first).count(), 1, "{events}");
    let told = place.client(&["workspace", "wake"], "");
    let told = String::from_utf8_lossy(&told.stderr).into_owned();
    assert!(told.contains("the secret LEFT_OVER is set for this workspace, and nothing"), "{told}");
    let (web, worker) = (place.environment("web"), place.environment("worker"));
    assert!(web.contains("API_KEY=value of the project\n") && web.contains("PEM=one\ntwo\n"), "{web}");
    assert!(!web.contains("QUEUE_URL") && !web.contains("LEFT_OVER") && !worker.contains("LEFT_OVER"));
    assert!(worker.contains("QUEUE_URL=amqp://workspace\n") && !worker.contains("API_KEY"), "{worker}");
    // As root each of them is somebody else, and its file the workspace's.
    let owners = ["web", "worker"].map(|service| std::fs::metadata(place.file_of(service)).unwrap());
    let (uids, gids) = (owners.each_ref().map(|owner| owner.uid()), owners.each_ref().map(|owner| owner.gid()));
    assert_eq!((uids[0] != uids[1], gids[0] == gids[1]), (rustix::process::geteuid().is_root(), true));
    let seen = place.json(&["secret", "ls"], "");
    let named = |name: &str| seen["items"].as_array().unwrap().iter().find(|item| item["name"] == name).unwrap();
    assert_eq!(named("API_KEY")["given"][0]["version"], 1);
    assert_eq!(named("LEFT_OVER")["declared_by"], serde_json::json!([]));
    assert_eq!(seen["undeclared"], serde_json::json!(["LEFT_OVER"]));
    assert_eq!((&seen["stale"], &seen["refused"]), (&Value::Bool(false), &serde_json::json!([])));

    // A workspace's own goes before its project's. Until its rules say otherwise, what runs goes on, and is shown as stale.
    place.json(&["secret", "set", "API_KEY"], "value of the workspace");
    assert_eq!(place.stale(), [("API_KEY".to_owned(), 1)]);
    let shown = place.client(&["workspace", "show"], "");
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("service web runs with API_KEY version 1"), "{shown}");
    assert!(place.environment("web").contains("value of the project"));

    // From then on another version restarts.
    place.json(&["secret", "set", "API_KEY", "--keep-value", "--on-rotation", "restart"], "");
    wait_until("the restart", DEADLINE, || place.environment("web").contains("value of the workspace"));
    wait_until("the runtime", DEADLINE, || place.json(&["workspace", "show"], "")["runtime"]["phase"] == "ready");
    assert_eq!(place.stale(), []);
    place.json(&["secret", "set", "API_KEY"], "third value");
    wait_until("the restart", DEADLINE, || place.environment("web").contains("third value"));
    wait_until("the runtime", DEADLINE, || place.json(&["workspace", "show"], "")["runtime"]["phase"] == "ready");

    // Nothing is restarted into a wake that would fail for want of another secret, until that one is there.
    let runtime = || place.json(&["workspace", "show"], "")["runtime"].clone();
    let before = runtime()["epoch"].as_u64().unwrap();
    place.json(&["secret", "rm", "QUEUE_URL", "--yes"], "");
    place.json(&["secret", "set", "API_KEY"], "fourth value");
    std::thread::sleep(Duration::from_secs(2)); // pause: a restart that must not come
    assert_eq!((&runtime()["phase"], runtime()["epoch"].as_u64()), (&"ready".into(), Some(before)));
    let listed = place.client(&["secret", "ls"], "");
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    for said in
        ["stale: restarts once nothing stops the next wake", "QUEUE_URL, which service worker declares, has no value"]
    {
        assert!(listed.contains(said), "{listed}");
    }
    place.json(&["secret", "set", "QUEUE_URL"], "amqp://workspace");
    wait_until("the restart", DEADLINE, || place.environment("web").contains("fourth value"));
    wait_until("the runtime", DEADLINE, || runtime()["phase"] == "ready");
    assert_eq!(runtime()["epoch"].as_u64(), Some(before + 1));
    let history = place.json(&["secret", "history", "API_KEY"], "");
    let deeds: Vec<_> = history["items"].as_array().unwrap().iter().map(|item| item["deed"].clone()).collect();
    assert_eq!(deeds, ["set", "set", "rules_changed", "set"]);

    // A service that its rules do not name is refused at the next wake, by name.
    place.json(&["secret", "set", "PEM", "--project", "orders", "--keep-value", "--service", "worker"], "");
    place.json(&["workspace", "sleep"], "");
    let told = place.refused(&["workspace", "wake"], "");
    assert!(told.contains("PEM may not be used by service `web` here"), "{told}");

    // One that was removed is gone from the store, and another one of its name has nothing of it.
    place.json(&["secret", "set", "PEM", "--project", "orders", "--keep-value", "--all-services"], "");
    place.json(&["secret", "rm", "PEM", "--project", "orders", "--yes"], "");
    let told = place.refused(&["workspace", "wake"], "");
    assert!(told.contains("PEM (service `web`) has no value"), "{told}");
    let kept = || {
        let found = Command::new("find").arg(place.dir.join("data/secrets/values")).args(["-name", "PEM"]).output();
        !found.unwrap().stdout.is_empty()
    };
    wait_until("the store without it", DEADLINE, || !kept());
    place.json(&["secret", "set", "PEM", "--project", "orders"], "another");
    place.json(&["workspace", "wake"], "");
    assert!(place.environment("web").contains("PEM=another\n"));
    // The owner's history knows all of it.
    let history = place.json(&["secret", "history", "PEM", "--project", "orders"], "");
    assert!(history["items"].as_array().unwrap().iter().any(|item| item["deed"] == "removed"), "{history}");
    assert!(history["items"][0]["by_name"].as_str().is_some_and(|name| !name.starts_with("usr_")), "{history}");

    // A job is given what it declares and nothing else, and does not run without.
    let told = place.refused(&["run", "unit"], "");
    assert!(told.contains("JOB_TOKEN (job `unit`) has no value"), "{told}");
    place.json(&["secret", "set", "JOB_TOKEN"], "for the job");
    let ran = place.client(&["run", "unit"], "");
    assert!(String::from_utf8_lossy(&ran.stdout).contains("job for the job \n"), "{ran:?}");
    assert!(!place.environment("web").contains("JOB_TOKEN"));

    // A value that has ended is named as one that is missing.
    let set = place.json(&["secret", "set", "PEM", "--project", "orders", "--expires-in", "2s"], "short");
    assert_eq!(set["version"], 2);
    let refused = || place.json(&["secret", "ls"], "")["refused"].clone();
    wait_until("the value's end", DEADLINE, || refused()[0]["problem"] == "expired");
    place.json(&["workspace", "sleep"], "");
    let told = place.refused(&["workspace", "wake"], "");
    assert!(told.contains("PEM (service `web`) has expired"), "{told}");
    let told = place.refused(&["project", "edit", "orders", "--git-credential", "PEM"], "");
    assert!(told.contains("https://"), "{told}");

    // On a terminal it is asked for and not shown; on the command line it is refused, and not repeated.
    let mut command = Command::new("setsid");
    command.args([
        "--ctty",
        "--wait",
        env!("CARGO_BIN_EXE_envforge"),
        "secret",
        "set",
        "PROMPTED",
        "--project",
        "orders",
    ]);
    let mut terminal = Tty::start(place.as_owner(command));
    terminal.shows("Value of PROMPTED: ");
    terminal.types("typed-canary\r");
    assert!(terminal.ends().success(), "{}", terminal.text());
    assert!(!terminal.text().contains("typed-canary"), "{}", terminal.text());
    let history = place.json(&["secret", "history", "PROMPTED", "--project", "orders"], "");
    assert_eq!(history["items"][0]["version"], 1, "{history}");
    let told = place.refused(&["secret", "set", "API_KEY", "value-on-the-command-line"], "");
    assert!(told.contains("never stands on the command line") && !told.contains("value-on-the"), "{told}");

    let told = place.refused(&["secret", "set", "API_KEY"], "");
    assert!(told.contains("empty"), "{told}");
    let told = place.refused(&["secret", "set", "API_KEY"], &"x".repeat(4097));
    assert!(told.contains("4096"), "{told}");
}

/// Versions that lie in the store, those with a note, and those that the log names.
fn kept(place: &Place) -> [Vec<u64>; 3] {
    let mut found = [Vec::new(), Vec::new(), Vec::new()];
    let mut folders = vec![place.dir.join("data/secrets/values")];
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()) {
            let number = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
            match (path.is_dir(), path.extension().and_then(|kind| kind.to_str()), number) {
                (true, _, _) => folders.push(path),
                (false, Some("age"), Some(version)) => found[0].push(version),
                (false, Some("note"), Some(version)) => found[1].push(version),
                _ => {}
            }
        }
    }
    let history = place.json(&["secret", "history", "API_KEY", "--project", "orders"], "");
    found[2] = history["items"].as_array().unwrap().iter().filter_map(|item| item["version"].as_u64()).collect();
    found.iter_mut().for_each(|versions| versions.sort_unstable());
    found
}

/// Where the crash falls is up to chance, hence several; what is said of it is not.
#[test]
fn a_kill_between_put_and_event_leaves_notes_beside_what_the_log_does_not_name_and_nowhere_else() {
    let place = Place::new();
    place.repository();
    let (mut dev, started) = place.start();
    let password = started["owner_password"].as_str().unwrap().to_owned();
    let sign_in = |started: &Value| {
        let api = started["api"].as_str().unwrap();
        place.json(&["login", "--api", api, "--email", OWNER, "--password-stdin"], &format!("{password}\n"));
    };
    sign_in(&started);
    // The project comes to be; its workspace wakes without secrets in no case.
    place.refused(&["up"], "");
    place.json(&["secret", "set", "API_KEY", "--project", "orders"], "first");
    for round in 0..4_u64 {
        std::thread::scope(|scope| {
            let setting = |number: u64| {
                let place = &place;
                move || {
                    let value = format!("value {round} {number}");
                    place.client(&["secret", "set", "API_KEY", "--project", "orders"], &value)
                }
            };
            let setters: Vec<_> = (0..4).map(|number| scope.spawn(setting(number))).collect();
            std::thread::sleep(Duration::from_millis(40 + 25 * round)); // pause: so that the kill comes in their midst
            dev.kill9();
            setters.into_iter().for_each(|setter| drop(setter.join().unwrap()));
        });
        let (again, started) = place.start();
        dev = again;
        sign_in(&started);
        wait_until("notes of what the log names to go", DEADLINE, || {
            let [_, noted, named] = kept(&place);
            !noted.iter().any(|version| named.contains(version))
        });
        let [values, noted, named] = kept(&place);
        println!("{} values, {} of them unrecorded", values.len(), values.len() - named.len());
        assert!(named.iter().all(|version| values.contains(version)), "{named:?} of {values:?}");
        let unnamed: Vec<_> = values.iter().filter(|version| !named.contains(version)).collect();
        assert!(unnamed.iter().all(|version| noted.contains(version)), "{unnamed:?} of {noted:?}");
    }
}
