//! The command line against the real thing: `envforge dev` on this machine, a Git repository, and what a developer types.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests panic, and hand paths on")]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use envforge_testkit::{TestDir, TestProcess};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(60);

const MANIFEST: &str = "\
version: 1
services:
  web:
    command: exec python3 -m http.server \"$PORT\" --bind 127.0.0.1
    route: { web: {} }
    readiness: { http: /, interval: 100ms, deadline: 30s }
";

/// A control plane, and a developer's machine with a repository.
struct World {
    dir: TestDir,
    _dev: TestProcess,
    started: Value,
}

impl World {
    fn start() -> Self {
        let dir = TestDir::new();
        let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
        command.args(["dev", "--json", "--listen", "127.0.0.1:0", "--gateway-listen", "127.0.0.1:0", "--data"]);
        command.arg(dir.join("data"));
        let mut dev = TestProcess::spawn("envforge dev", &command, dir.path());
        let started = dev.wait_ready("the first line", DEADLINE, |process| {
            let out = process.stdout();
            out.contains('\n').then(|| serde_json::from_str(out.lines().next().unwrap()).unwrap())
        });
        let world = Self { dir, _dev: dev, started };
        world.make_repository();
        world
    }

    fn signed_in() -> Self {
        let world = Self::start();
        let login = world.login("owner@envforge.localhost", world.started["owner_password"].as_str().unwrap());
        assert_eq!(login.status.code(), Some(0), "{}", String::from_utf8_lossy(&login.stderr));
        world
    }

    fn repository(&self) -> PathBuf {
        self.dir.join("orders")
    }

    fn config(&self) -> PathBuf {
        self.dir.join("config")
    }

    fn make_repository(&self) {
        let repository = self.repository();
        std::fs::create_dir(&repository).unwrap();
        std::fs::write(repository.join("envforge.yml"), MANIFEST).unwrap();
        std::fs::write(repository.join("index.html"), "hello").unwrap();
        git(&repository, &["init", "-q", "-b", "feature/First_steps"]);
        git(&repository, &["add", "."]);
        git(&repository, &["commit", "-q", "-m", "one"]);
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
        command.args(args).env("ENVFORGE_CONFIG_DIR", self.config()).current_dir(self.repository());
        command.env_remove("ENVFORGE_API").env_remove("ENVFORGE_ORG");
        command
    }

    fn login(&self, email: &str, password: &str) -> Output {
        let api = self.started["api"].as_str().unwrap();
        let mut command = self.command(&["login", "--json", "--api", api, "--email", email, "--password-stdin"]);
        with_stdin(&mut command, password)
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// The JSON of a command that must succeed: its last line.
    fn json(&self, args: &[&str]) -> Value {
        let output = self.run(&[args, &["--json"]].concat());
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        serde_json::from_str(text.lines().last().unwrap()).unwrap_or_else(|error| panic!("{args:?}: {error}: {text}"))
    }

    /// The text of a command that must succeed.
    fn text(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The error of a command that must end with `exit`.
    fn refused(&self, exit: i32, args: &[&str]) -> Value {
        let output = self.run(&[args, &["--json"]].concat());
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(exit), "{args:?}: {text}");
        let error: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        error["error"].clone()
    }
}

fn with_stdin(command: &mut Command, line: &str) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    writeln!(child.stdin.take().unwrap(), "{line}").unwrap();
    child.wait_with_output().unwrap()
}

fn git(folder: &Path, args: &[&str]) {
    let author = ["-c", "user.name=Dana", "-c", "user.email=dana@acme.example", "-c", "commit.gpgsign=false"];
    let output = Command::new("git").args(author).args(args).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn items(page: &Value) -> &[Value] {
    page["items"].as_array().unwrap()
}

#[test]
fn a_branch_comes_up_is_shared_and_revoked_with_the_commands_of_the_readme() {
    let world = World::signed_in();

    // Up: creates what is missing, wakes, waits, prints the address.
    let lines = world.text(&["up", "--json"]);
    let events: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kinds: Vec<_> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(kinds[..2], ["project_created", "workspace_created"], "{lines}");
    let ready = events.last().unwrap();
    assert_eq!(ready["event"], "ready", "{lines}");
    assert_eq!((&ready["workspace"], &ready["project"]), (&json!("feature-first-steps"), &json!("orders")));
    let gateway = world.started["gateway"].as_str().unwrap().strip_prefix("http://").unwrap();
    assert_eq!(
        ready["urls"],
        json!([{"service": "web", "url": format!("http://web--feature-first-steps--acme.{gateway}/")}])
    );

    // Again: nothing new, the same wake.
    let again = world.json(&["up"]);
    assert_eq!((&again["id"], &again["epoch"]), (&ready["id"], &json!(1)));
    assert_eq!(items(&world.json(&["workspace", "ls"])).len(), 1);
    assert_eq!(items(&world.json(&["project", "ls"])).len(), 1);

    // A changed manifest is sent; a restart is a new wake.
    let file = world.repository().join("envforge.yml");
    std::fs::write(&file, MANIFEST.replace("deadline: 30s", "deadline: 20s")).unwrap();
    let restarted = world.text(&["up", "--restart", "--json"]);
    assert!(restarted.contains("\"manifest_changed\"") && restarted.contains("\"restarting\""), "{restarted}");
    let runtime = world.json(&["workspace", "show"])["runtime"].clone();
    assert_eq!((&runtime["phase"], &runtime["epoch"]), (&json!("ready"), &json!(2)));

    // A link for the branch one stands in.
    let link = world.json(&["link", "create", "--for", "2h", "--label", "Dana's review", "--wake-budget", "5"]);
    assert!(link["share_url"].as_str().unwrap().contains("/share/"), "{link}");
    assert_eq!((&link["label"], &link["wake_budget"]), (&json!("Dana's review"), &json!(5)));
    let id = link["id"].as_str().unwrap();
    let card = world.text(&["link", "handoff", id]);
    assert!(card.contains("Dana's review") && card.contains("open  answers"), "{card}");
    assert_eq!(items(&world.json(&["link", "ls"])).len(), 1);
    let rotated = world.json(&["link", "rotate", id]);
    assert_ne!(rotated["share_url"], link["share_url"]);
    assert_eq!(world.refused(1, &["link", "allow", id, "--families", "api"])["code"], "link_families_not_declared");
    world.json(&["link", "revoke", id, "--reason", "review done"]);
    assert_eq!(world.json(&["link", "show", id])["phase"], "revoked");
    assert!(world.text(&["link", "handoff", id]).starts_with("This link is revoked"));

    // Who did what, and what it cost.
    world.json(&["workspace", "sleep"]);
    let rows = world.json(&["audit", "log", "--link", id, "--oldest-first"]);
    let types: Vec<_> = items(&rows).iter().map(|row| row["type"].as_str().unwrap()).collect();
    let revoked = ["dev_link.revoked.v1", "dev_link.revocation_recorded.v4"];
    assert_eq!(types, [&["dev_link.issued.v1", "dev_link.rotated.v1"], &revoked[..]].concat());
    assert!(items(&rows).iter().all(|row| row["surface"] == "cli"), "{rows}");
    let usage = world.json(&["usage", "--by", "service"]);
    assert!(items(&usage).iter().any(|row| row["key"] == "web" && row["service_ms"].as_u64() > Some(0)), "{usage}");
    let report = world.json(&["doctor"]);
    assert_eq!(report["ok"], true, "{report}");

    // Archived for good.
    assert_eq!(world.refused(2, &["workspace", "archive"])["code"], "usage");
    world.json(&["workspace", "archive", "--yes"]);
    assert_eq!(world.refused(4, &["workspace", "show"])["code"], "not_found");
    // Its name is retired: the branch comes up under another one.
    let reborn = world.json(&["up", "--no-wait"]);
    let slug = reborn["workspace"].as_str().unwrap();
    assert!(slug.starts_with("feature-first-steps-"), "{slug}");
}

#[test]
fn two_processes_with_a_token_that_has_ended_share_one_new_one() {
    let world = World::signed_in();
    for round in 0..3 {
        let file = world.config().join("credentials.json");
        let mut stored: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        let api = world.started["api"].as_str().unwrap();
        stored["accounts"][api]["access_expires_at_unix_ms"] = json!(0);
        let before = stored["accounts"][api]["refresh_token"].clone();
        std::fs::write(&file, stored.to_string()).unwrap();
        let children: Vec<_> = (0..4)
            .map(|_| {
                let mut command = world.command(&["org", "show", "--json"]);
                command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
            })
            .collect();
        for child in children {
            let output = child.wait_with_output().unwrap();
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(0), "round {round}: {text}");
        }
        let after: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        assert_ne!(after["accounts"][api]["refresh_token"], before, "it was used and replaced");
    }
}

#[test]
fn members_get_roles_and_lose_them_and_a_session_ends_with_its_logout() {
    let world = World::signed_in();
    let add = &["org", "member", "add", "--email", "dana@acme.example", "--name", "Dana", "--password-stdin", "--json"];
    let password = "a long enough passphrase";
    let added = with_stdin(&mut world.command(add), password);
    assert_eq!(added.status.code(), Some(0), "{}", String::from_utf8_lossy(&added.stderr));
    world.json(&["project", "create", "orders", "--repository", "https://git.example/acme/orders.git"]);
    world.json(&[
        "org",
        "role",
        "assign",
        "dana@acme.example",
        "viewer",
        "--project",
        "orders",
        "--until",
        "2099-12-31",
    ]);
    let members = world.json(&["org", "member", "ls"]);
    let dana = items(&members).iter().find(|member| member["email"] == "dana@acme.example").unwrap();
    assert_eq!(dana["roles"][0]["role"], "viewer");
    assert_eq!(world.refused(5, &["org", "role", "revoke", "owner@envforge.localhost", "owner"])["code"], "last_owner");
    let policy = world.json(&["org", "policy", "set", "--link-lifetime-max", "24h", "--link-families", "web,api"]);
    assert_eq!(
        (&policy["link_lifetime_max_seconds"], &policy["link_families"]),
        (&json!(86_400), &json!(["web", "api"]))
    );

    // Dana sees the project, and may not invite.
    assert_eq!(world.login("dana@acme.example", password).status.code(), Some(0));
    assert_eq!(items(&world.json(&["project", "ls"])).len(), 1);
    assert_eq!(world.refused(3, &["org", "policy", "set", "--link-lifetime-max", "48h"])["exit_code"], 3);
    let stolen = std::fs::read(world.config().join("credentials.json")).unwrap();
    assert_eq!(world.json(&["logout"])["signed_out"], true);
    assert_eq!(world.refused(3, &["project", "ls"])["code"], "signed_out");
    // A copy of the tokens is worth nothing after the logout.
    std::fs::write(world.config().join("credentials.json"), stolen).unwrap();
    assert_eq!(world.refused(3, &["project", "ls"])["exit_code"], 3);
}

#[test]
fn a_replay_that_follows_shows_what_happens_next_once_and_in_order() {
    let world = World::signed_in();
    let replayed = world.text(&["audit", "replay"]);
    let before: Vec<Value> = replayed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(before.iter().all(|event| event["specversion"] == "1.0"));

    let mut follower = world.command(&["audit", "replay", "--follow"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    for event in &before {
        let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(line["id"], event["id"]);
    }
    world.json(&["project", "create", "orders", "--repository", "https://git.example/acme/orders.git"]);
    let next: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(next["type"], "project.created.v1");
    follower.kill().unwrap();
    follower.wait().unwrap();

    let kinds = world.text(&["audit", "replay", "--kind", "project"]);
    assert_eq!(kinds.lines().count(), 1, "{kinds}");
}

#[test]
fn a_workspace_is_created_woken_kept_awake_and_its_link_narrowed() {
    let world = World::signed_in();
    let repository = world.repository().display().to_string();
    world.json(&["project", "create", "orders", "--repository", &repository]);
    let create =
        ["workspace", "create", "--project", "orders", "--branch", "feature/First_steps", "--slug", "first-steps"];
    let created = world.json(&create);
    assert_eq!((&created["slug"], &created["branch"]), (&json!("first-steps"), &json!("feature/First_steps")));
    assert_eq!(world.json(&["workspace", "show", "first-steps"])["runtime"]["phase"], "asleep");

    // Awake for a while takes a runtime that is ready.
    let keep = ["workspace", "keep-awake", "first-steps", "--for", "30m", "--reason", "demo at 14:00"];
    assert_eq!(world.refused(5, &keep)["code"], "runtime_not_awake");
    let asked = world.json(&["workspace", "wake", "first-steps", "--no-wait"]);
    assert_eq!((&asked["workspace"], &asked["epoch"]), (&json!("first-steps"), &json!(1)));
    let ready = world.json(&["workspace", "wake", "first-steps"]);
    assert_eq!(
        (&ready["event"], &ready["epoch"], &ready["runtime"]["phase"]),
        (&json!("ready"), &json!(1), &json!("ready"))
    );
    assert!(world.text(&["workspace", "wake", "first-steps"]).contains("is ready"));
    let kept = world.json(&keep);
    assert_eq!(kept["reason"], "demo at 14:00");
    let card = world.text(&["workspace", "show", "first-steps"]);
    assert!(card.contains("kept awake: demo at 14:00"), "{card}");

    // What a link opens is narrowed, and the audit says so.
    let link = world.json(&["link", "create", "--workspace", "first-steps"]);
    let id = link["id"].as_str().unwrap();
    let allowed = world.json(&["link", "allow", id, "--families", "web"]);
    assert_eq!(allowed["families"], json!(["web"]), "{allowed}");
    let rows = world.json(&["audit", "log", "--link", id, "--type", "dev_link."]);
    assert!(items(&rows).iter().any(|row| row["surface"] == "cli"), "{rows}");

    world.json(&["workspace", "sleep", "first-steps"]);
    envforge_testkit::wait_until("the runtime sleeps and says why", DEADLINE, || {
        let runtime = world.json(&["workspace", "show", "first-steps"])["runtime"].clone();
        runtime["phase"] == "asleep" && runtime["asleep_because"] == "person"
    });
}

#[test]
fn a_wake_that_fails_says_where_the_services_said_why() {
    let world = World::signed_in();
    std::fs::write(world.repository().join("envforge.yml"), MANIFEST.replace("exec", "echo broken >&2; exit 3;"))
        .unwrap();
    let error = world.refused(1, &["up"]);
    assert!(error["title"].as_str().unwrap().contains("exit status 3"), "{error}");
    let hint = error["hint"].as_str().unwrap();
    let below = hint.split_once("runtime/workspaces/").unwrap().1;
    let (workspace, _) = below.split_once('/').unwrap();
    let output = world.dir.join("data/runtime/workspaces").join(workspace).join("output/web.log");
    assert_eq!(std::fs::read_to_string(&output).unwrap(), "broken\n", "{hint}");
}

#[test]
fn a_tail_shows_what_happens_from_now_on_by_name() {
    let world = World::signed_in();
    let mut tail = world.command(&["audit", "tail"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Said once it knows where the log ends: what comes later is shown.
    let waits = BufReader::new(tail.stderr.take().unwrap()).lines().next().unwrap().unwrap();
    assert!(waits.contains("Waiting for events"), "{waits}");
    let mut lines = BufReader::new(tail.stdout.take().unwrap()).lines();
    world.json(&["project", "create", "orders", "--repository", "https://git.example/acme/orders.git"]);
    let line = lines.next().unwrap().unwrap();
    for part in ["project.created", "owner@envforge.localhost", "cli"] {
        assert!(line.contains(part), "`{part}` is not in: {line}");
    }
    tail.kill().unwrap();
    tail.wait().unwrap();
}

#[test]
fn an_interrupted_up_leaves_nothing_half_done() {
    use nix::sys::signal::{Signal, kill};
    let world = World::signed_in();
    // The service starts when this file is there, so that the command is interrupted while it waits.
    let gate = world.dir.join("go");
    let wait = format!("until [ -e {} ]; do sleep 0.05; done; exec", gate.display());
    std::fs::write(world.repository().join("envforge.yml"), MANIFEST.replace("exec", &wait)).unwrap();
    let mut up = world.command(&["up", "--json"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(up.stdout.take().unwrap()).lines();
    while !lines.next().unwrap().unwrap().contains("\"stage\"") {}
    kill(nix::unistd::Pid::from_raw(i32::try_from(up.id()).unwrap()), Signal::SIGINT).unwrap();
    assert_eq!(up.wait().unwrap().code(), Some(130));
    std::fs::write(&gate, "").unwrap();
    let ready = world.json(&["up"]);
    assert_eq!((&ready["event"], &ready["epoch"]), (&json!("ready"), &json!(1)), "the wake went on by itself");
}
