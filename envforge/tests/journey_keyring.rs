//! Credentials of the command line in a real keyring: GNOME's, on a bus of the test's own. The API is a double.
//!
//! Not here: the file that serves where there is no keyring (`cli_errors`, `cli_dev`).
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests panic, and hand paths on")]

mod double;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use envforge_testkit::{SessionBus, TestDir};
use serde_json::{Value, json};

use double::{Double, problem};

const FAR_AWAY: u64 = 32_503_680_000_000;
/// A command that asks the API one thing.
const ASK: &[&str] = &["session", "ls", "--json"];

/// One person's command line on one machine.
struct Machine {
    dir: TestDir,
    bus: String,
    keep: &'static str,
}

impl Machine {
    fn on(bus: &SessionBus) -> Self {
        Self { dir: TestDir::new(), bus: bus.address(), keep: "auto" }
    }

    fn keeping(mut self, keep: &'static str) -> Self {
        self.keep = keep;
        self
    }

    fn file(&self) -> PathBuf {
        self.dir.join("config").join("credentials.json")
    }

    fn stored(&self) -> Value {
        serde_json::from_str(&std::fs::read_to_string(self.file()).unwrap()).unwrap()
    }

    fn store(&self, stored: &Value) {
        std::fs::create_dir_all(self.file().parent().unwrap()).unwrap();
        std::fs::write(self.file(), stored.to_string()).unwrap();
        std::fs::set_permissions(self.file(), std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// Signed in with the tokens of this number, in the file.
    fn signed_in(&self, api: &str, number: u32, expires_at_unix_ms: u64) {
        self.store(&json!({"version": 1, "accounts": {api: account(number, expires_at_unix_ms)}}));
    }

    fn command(&self, api: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
        command.args(arguments).args(["--api", api]).current_dir(self.dir.path());
        command.env("ENVFORGE_CONFIG_DIR", self.dir.join("config")).env("ENVFORGE_CREDENTIALS", self.keep);
        command.env("DBUS_SESSION_BUS_ADDRESS", &self.bus).env("XDG_RUNTIME_DIR", self.dir.path());
        command.env_remove("ENVFORGE_ORG").stdin(Stdio::null());
        command
    }

    fn run(&self, api: &str, arguments: &[&str]) -> Output {
        shown(self.command(api, arguments).output().unwrap())
    }

    fn login(&self, api: &str) -> Output {
        let arguments = ["login", "--json", "--email", "dana@acme.example", "--password-stdin"];
        let mut command = self.command(api, &arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"plum kite engine 7\n").unwrap();
        shown(child.wait_with_output().unwrap())
    }

    /// What `envforge doctor` says of the credentials.
    fn doctor(&self, api: &str) -> (String, String) {
        let report: Value = serde_json::from_slice(&self.run(api, &["doctor", "--json"]).stdout).unwrap();
        let check = report["checks"].as_array().unwrap().iter().find(|check| check["name"] == "credentials").unwrap();
        let text = |field: &str| check[field].as_str().unwrap().to_owned();
        (text("verdict"), text("found"))
    }

    /// No file of ours holds a token.
    fn assert_nothing_on_disk(&self) {
        fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
                if entry.file_type().unwrap().is_dir() { walk(&entry.path(), found) } else { found.push(entry.path()) }
            }
        }
        let mut files = Vec::new();
        walk(self.dir.path(), &mut files);
        assert!(!files.is_empty());
        for file in files {
            let text = String::from_utf8_lossy(&std::fs::read(&file).unwrap()).into_owned();
            assert!(!text.contains("secret-"), "{}: {text}", file.display());
        }
    }
}

/// Whatever is shown holds no token.
fn shown(output: Output) -> Output {
    for stream in [&output.stdout, &output.stderr] {
        let text = String::from_utf8_lossy(stream);
        assert!(!text.contains("secret-"), "a token was shown: {text}");
    }
    output
}

fn account(number: u32, expires_at_unix_ms: u64) -> Value {
    json!({"access_token": format!("secret-access-{number}"), "refresh_token": format!("secret-refresh-{number}"),
        "access_expires_at_unix_ms": expires_at_unix_ms, "email": "dana@acme.example", "user": "usr_1", "org": "org_1",
        "org_slug": "acme"})
}

type Canned = (u16, &'static str, String);

fn tokens(number: u32) -> Canned {
    let body = json!({"access_token": format!("secret-access-{number}"), "refresh_token": format!("secret-refresh-{number}"),
        "expires_in": 3_600, "user": {"id": "usr_1", "email": "dana@acme.example"}, "org": {"id": "org_1", "slug": "acme"}});
    (200, "", body.to_string())
}

fn nothing() -> Canned {
    (200, "", json!({"items": []}).to_string())
}

fn refused() -> Canned {
    (401, "", problem(401, "unauthenticated"))
}

/// What the API was asked, and with which token.
fn asked(double: &Double) -> Vec<String> {
    let with = |request: &double::Request| {
        let sent: Value = serde_json::from_str(&request.body).unwrap_or_default();
        let bearer = request.header("authorization").map(|value| value.trim_start_matches("Bearer ").to_owned());
        let token = sent["refresh_token"].as_str().map(str::to_owned).or(bearer).unwrap_or_default();
        let line: Vec<_> = request.line.split(' ').collect();
        format!("{} {}", line[1].trim_start_matches("/v1/"), token.trim_start_matches("secret-"))
    };
    double.got().iter().map(with).collect()
}

#[track_caller]
fn assert_done(output: &Output) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.is_empty(), "{output:?}");
}

#[track_caller]
fn assert_fails(output: &Output, words: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && text.contains(words), "`{words}` in {output:?}");
}

#[test]
fn a_login_goes_to_the_open_keyring_renewals_stay_there_and_a_logout_takes_it_out() {
    let bus = SessionBus::with_keyring();
    let machine = Machine::on(&bus);
    let double = Double::answering(vec![tokens(1), nothing(), refused(), tokens(2), nothing(), nothing(), nothing()]);
    let api = double.url.as_str();
    assert_done(&machine.login(api));
    assert_eq!((bus.secrets("application", "envforge"), bus.secrets("api", api)), (1, 1));
    machine.assert_nothing_on_disk();
    assert_done(&machine.run(api, ASK));
    // The server takes the access token no more: it is renewed, in its place.
    assert_done(&machine.run(api, ASK));
    machine.assert_nothing_on_disk();
    assert_eq!(bus.secrets("api", api), 1);
    let (verdict, found) = machine.doctor(api);
    assert_eq!((verdict.as_str(), found.as_str()), ("ok", "in the keyring `Login`"));
    let before = asked(&double).len();
    assert_done(&machine.run(api, &["logout", "--json"]));
    assert_eq!(asked(&double)[before..], ["auth/logout access-2"]);
    assert_eq!(
        asked(&double)[1..5],
        ["me/sessions access-1", "me/sessions access-1", "auth/refresh refresh-1", "me/sessions access-2"]
    );
    assert_eq!(bus.secrets("application", "envforge"), 0);
    assert_eq!(machine.stored(), json!({"version": 1, "accounts": {}}));
}

#[test]
fn who_is_signed_in_by_the_file_stays_so_and_moves_to_the_keyring_with_the_next_renewal() {
    let bus = SessionBus::with_keyring();
    let machine = Machine::on(&bus);
    let double = Double::answering(vec![nothing()]);
    let api = double.url.as_str();
    machine.signed_in(api, 1, FAR_AWAY);
    assert_done(&machine.run(api, ASK));
    assert_eq!(bus.secrets("application", "envforge"), 0, "reading moves nothing");
    assert!(machine.doctor(api).1.ends_with("to be moved to the keyring `Login`"));
    let double = Double::answering(vec![refused(), tokens(2), nothing()]);
    let api = double.url.as_str();
    machine.signed_in(api, 1, FAR_AWAY);
    assert_done(&machine.run(api, ASK));
    assert_eq!(asked(&double), ["me/sessions access-1", "auth/refresh refresh-1", "me/sessions access-2"]);
    assert_eq!(bus.secrets("application", "envforge"), 1);
    machine.assert_nothing_on_disk();
}

#[test]
fn a_move_that_died_anywhere_leaves_one_refresh_token_and_it_is_the_unused_one() {
    let bus = SessionBus::with_keyring();
    let machine = Machine::on(&bus);
    let double = Double::answering(vec![tokens(2), nothing()]);
    let api = double.url.as_str();
    assert_done(&machine.login(api));
    let announced = machine.stored();
    // The new ones are in the keyring and the old ones still in the file.
    let mut both = announced.clone();
    both["accounts"][api] = account(1, FAR_AWAY);
    machine.store(&both);
    assert_done(&machine.run(api, ASK));
    // Announced, and nothing has come to the keyring but what an older move left there.
    both["in_keyring"][api]["id"] = json!("01920000-0000-7000-8000-000000000000");
    machine.store(&both);
    assert_done(&machine.run(api, ASK));
    // Announced, and nothing has come there at all.
    let elsewhere = Machine::on(&bus);
    elsewhere.store(&both);
    assert_done(&elsewhere.run(api, ASK));
    assert_eq!(asked(&double)[1..], ["me/sessions access-2", "me/sessions access-1", "me/sessions access-1"]);
    // Somebody took it out of the keyring: signed out, and told so.
    elsewhere.store(&announced);
    let out = elsewhere.run(api, ASK);
    assert_eq!(out.status.code(), Some(3), "{out:?}");
}

#[test]
fn without_an_open_keyring_the_file_serves_at_once_and_without_a_word() {
    let empty = SessionBus::start();
    let mut frozen = SessionBus::with_keyring();
    frozen.freeze_keyring(true);
    let locked = SessionBus::with_keyring();
    locked.lock_keyring();
    let mut nobody = Machine::on(&empty);
    nobody.bus = format!("unix:path={}", nobody.dir.join("no-bus").display());
    let machines = [
        (nobody, "this session has no bus", 1),
        (Machine::on(&empty), "no program on this session's bus keeps secrets", 1),
        (Machine::on(&locked), "it is locked", 1),
        (Machine::on(&frozen), "it did not answer within 1 s", 2),
    ];
    for (machine, why, seconds_max) in machines {
        let double = Double::answering(vec![tokens(1), nothing()]);
        let api = double.url.as_str();
        // One that asks for a keyring alone is refused before anything is sent.
        let machine = machine.keeping("keyring");
        let refused = machine.login(api);
        assert_fails(&refused, "ENVFORGE_CREDENTIALS=keyring, and the keyring of this machine cannot be used");
        assert_fails(&refused, why);
        assert_eq!(asked(&double), Vec::<String>::new());
        let machine = machine.keeping("auto");
        let begun = Instant::now();
        assert_done(&machine.login(api));
        // Around the wait: what a loaded machine takes to start a program.
        assert!(begun.elapsed() < Duration::from_secs(seconds_max + 8), "{why}: {:?}", begun.elapsed());
        assert_eq!(machine.stored()["accounts"][api]["refresh_token"], "secret-refresh-1", "{why}");
        assert_done(&machine.run(api, ASK));
        let (verdict, found) = machine.doctor(api);
        assert_eq!(verdict, "ok", "{found}");
        assert!(found.contains("yours alone; the keyring is not used") && found.contains(why), "{found}");
    }
    frozen.freeze_keyring(false);
}

#[test]
fn credentials_in_a_keyring_that_cannot_be_opened_are_not_lost_and_a_new_login_does_without_it() {
    let mut bus = SessionBus::with_keyring();
    let machine = Machine::on(&bus);
    let double = Double::answering(vec![tokens(1), nothing(), tokens(2), nothing()]);
    let api = double.url.as_str();
    assert_done(&machine.login(api));
    bus.end_keyring();
    let out_of_reach = machine.run(api, ASK);
    assert_fails(&out_of_reach, "are in this machine's keyring, which cannot be used");
    bus.open_keyring();
    assert_done(&machine.run(api, ASK));
    // Whoever says `file` is not led to the keyring.
    let machine = machine.keeping("file");
    assert_fails(&machine.run(api, ASK), "it is not asked: ENVFORGE_CREDENTIALS=file says so");
    let machine = machine.keeping("auto");
    bus.lock_keyring();
    assert_done(&machine.login(api));
    bus.end_keyring();
    bus.open_keyring();
    assert_done(&machine.run(api, ASK));
    let got = asked(&double);
    assert_eq!(got.last().unwrap(), "me/sessions access-2", "the newer login, not what the keyring still has: {got:?}");
    let nobody = Machine::on(&SessionBus::start());
    nobody.store(&json!({"version": 1, "accounts": {}, "in_keyring": {api: {"id": "gone"}}}));
    assert_eq!(nobody.doctor(api).0, "fail");
}

#[test]
fn commands_at_once_renew_once_and_each_folder_of_settings_has_its_own() {
    let bus = SessionBus::with_keyring();
    let (machine, other) = (Machine::on(&bus), Machine::on(&bus));
    let mut short = tokens(1);
    short.2 = short.2.replace("3600", "1");
    let double = Double::answering(vec![short, tokens(7), tokens(2), nothing()]);
    let api = double.url.as_str();
    assert_done(&machine.login(api));
    assert_done(&other.login(api));
    assert_eq!(bus.secrets("api", api), 2);
    let running: Vec<_> = (0..6)
        .map(|_| machine.command(api, ASK).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
        .collect();
    for child in running {
        assert_done(&shown(child.wait_with_output().unwrap()));
    }
    let got = asked(&double);
    assert_eq!(got[2], "auth/refresh refresh-1");
    assert_eq!(got[3..], ["me/sessions access-2"; 6]);
    assert_done(&other.run(api, ASK));
    assert_eq!(asked(&double).last().unwrap(), "me/sessions access-7");
}

#[test]
fn a_place_that_is_none_is_told_with_those_that_are() {
    let bus = SessionBus::start();
    let machine = Machine::on(&bus).keeping("wallet");
    let output = machine.run("http://127.0.0.1:9", ASK);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("`wallet` is no place for credentials"), "{output:?}");
}
