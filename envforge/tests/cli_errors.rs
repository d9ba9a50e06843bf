//! What the command line makes of an API that refuses, breaks, is away or asks for patience: exit codes, hints, retries.
//!
//! The API here is a double that answers canned errors. What succeeds is tested against the real one (`cli_dev`).
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests panic, and hand paths on")]

mod double;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use envforge_testkit::{TestDir, free_port};
use serde_json::{Value, json};

use double::{Double, problem};

const ACCESS: &str = "secret-access-token";
const REFRESH: &str = "secret-refresh-token";

/// Somebody who is signed in at `api`, with a token that is good for as long as `expires_in_ms`.
fn signed_in(dir: &Path, api: &str, expires_at_unix_ms: u64) {
    let account = json!({"access_token": ACCESS, "refresh_token": REFRESH, "access_expires_at_unix_ms": expires_at_unix_ms,
        "email": "dana@acme.example", "user": "usr_1", "org": "org_1", "org_slug": "acme"});
    let stored = json!({"version": 1, "accounts": {api: account}});
    std::fs::write(dir.join("credentials.json"), stored.to_string()).unwrap();
}

const FAR_AWAY: u64 = 32_503_680_000_000;

fn envforge(dir: &Path, api: &str, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
    command
        .args(args)
        .arg("--api")
        .arg(api)
        .env("ENVFORGE_CONFIG_DIR", dir)
        .env("ENVFORGE_CREDENTIALS", "file")
        .env_remove("ENVFORGE_ORG")
        .current_dir(dir);
    let output = command.output().unwrap();
    for stream in [&output.stdout, &output.stderr] {
        let text = String::from_utf8_lossy(stream);
        assert!(!text.contains(ACCESS) && !text.contains(REFRESH), "a token was shown: {text}");
    }
    output
}

fn error(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stderr);
    let parsed: Value = serde_json::from_str(text.lines().last().unwrap_or_default())
        .unwrap_or_else(|error| panic!("no JSON on standard error ({error}): {text}"));
    parsed["error"].clone()
}

#[test]
fn every_kind_of_refusal_has_its_exit_code_and_says_what_to_try() {
    for (status, code, exit) in [
        (400, "query_invalid", 1),
        (403, "role_missing", 3),
        (404, "workspace_unknown", 4),
        (409, "name_taken", 5),
        (410, "workspace_archived", 4),
        (422, "value_invalid", 1),
        (500, "internal", 1),
    ] {
        let dir = TestDir::new();
        let double = Double::problem(status, code);
        signed_in(dir.path(), &double.url, FAR_AWAY);
        let output = envforge(dir.path(), &double.url, &["workspace", "show", "x", "--json"]);
        let error = error(&output);
        assert_eq!(output.status.code(), Some(exit), "{error}");
        assert_eq!((&error["code"], &error["status"]), (&json!(code), &json!(status)));
        assert_eq!((&error["exit_code"], &error["request_id"]), (&json!(exit), &json!("cor_7")));
        assert!(output.stdout.is_empty());
        assert_eq!(double.got().len(), 1, "{status} is not asked again");
    }
}

#[test]
fn people_read_title_detail_hint_and_request() {
    let dir = TestDir::new();
    let double = Double::problem(404, "workspace_unknown");
    signed_in(dir.path(), &double.url, FAR_AWAY);
    let output = envforge(dir.path(), &double.url, &["workspace", "show", "x"]);
    let text = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[..2], ["error: It was refused", "  for a reason"], "{text}");
    assert!(lines[2].starts_with("hint: check the name"), "{text}");
    assert_eq!(lines[3], "request: cor_7", "{text}");
}

#[test]
fn a_write_that_is_sent_again_keeps_its_idempotency_key() {
    let dir = TestDir::new();
    let busy = |code| (503, "retry-after: 0\r\n", problem(503, code));
    let double =
        Double::answering(vec![busy("outcome_unknown"), busy("timed_out"), (409, "", problem(409, "name_taken"))]);
    signed_in(dir.path(), &double.url, FAR_AWAY);
    let output = envforge(dir.path(), &double.url, &["workspace", "sleep", "x"]);
    assert_eq!(output.status.code(), Some(5));
    let got = double.got();
    let keys: Vec<_> = got.iter().map(|request| request.header("idempotency-key").unwrap()).collect();
    assert_eq!(keys.len(), 3);
    assert!(keys.iter().all(|key| *key == keys[0] && key.len() == 36), "{keys:?}");
    assert!(got.iter().all(|request| request.line.starts_with("POST /v1/orgs/acme/workspaces/x/sleep ")));
    assert!(got.iter().all(|request| request.header("envforge-surface") == Some("cli")));

    envforge(dir.path(), &double.url, &["workspace", "sleep", "x"]);
    assert_ne!(
        double.got().last().unwrap().header("idempotency-key"),
        Some(keys[0]),
        "another command is another write"
    );
}

#[test]
fn a_server_that_stays_unavailable_is_given_up_with_the_code_of_the_unreachable() {
    let dir = TestDir::new();
    let double = Double::answering(vec![(503, "retry-after: 0\r\n", problem(503, "log_unavailable"))]);
    signed_in(dir.path(), &double.url, FAR_AWAY);
    let output = envforge(dir.path(), &double.url, &["workspace", "show", "x", "--json"]);
    assert_eq!(output.status.code(), Some(6));
    assert_eq!(error(&output)["code"], "log_unavailable");
    assert_eq!(double.got().len(), 4, "one attempt and three more");
}

#[test]
fn a_server_that_asks_for_long_patience_is_not_waited_for() {
    let dir = TestDir::new();
    let double = Double::answering(vec![(503, "retry-after: 600\r\n", problem(503, "overloaded"))]);
    signed_in(dir.path(), &double.url, FAR_AWAY);
    let output = envforge(dir.path(), &double.url, &["org", "show", "--json"]);
    assert_eq!((output.status.code(), double.got().len()), (Some(6), 1));
}

#[test]
fn roles_fail_with_the_codes_and_the_json_of_every_other_command() {
    let dir = TestDir::new();
    let role = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
        command.args(args).arg("--json").current_dir(dir.path()).env_remove("ENVFORGE_ORG");
        let output = command.output().unwrap();
        let error = error(&output);
        assert_eq!(error["exit_code"], json!(output.status.code()), "{args:?}: {error}");
        assert!(output.stdout.is_empty(), "{args:?}");
        error
    };
    let nats = format!("nats://127.0.0.1:{}", free_port());
    let stores = ["--nats", &nats, "--keys", "keys"];
    let any = ["--metrics-listen", "127.0.0.1:0", "--gateway-listen", "127.0.0.1:0", "--runtime", "runtime"];

    let error = role(&[&["serve", "reactors"], &stores[..], &any].concat());
    assert_eq!((&error["code"], &error["exit_code"]), (&json!("unreachable"), &json!(6)));
    let setup = ["setup", "--org", "acme", "--owner-email", "owner@example.org"];
    assert_eq!(role(&[&setup[..], &stores].concat())["exit_code"], 6);
    let error = role(&[&["serve", "gateway"], &stores[..], &any].concat());
    assert_eq!((&error["code"], &error["exit_code"]), (&json!("unreachable"), &json!(6)));
    let error = role(&[&["serve", "api"], &stores[..], &["--metrics-listen", "0.0.0.0:0"]].concat());
    assert!(error["title"].as_str().unwrap().contains("loopback"), "{error}");
    let error = role(&[&["serve", "gateway"], &stores[..], &any, &["--sign-in-url", "https://api.test/v1"]].concat());
    assert!(error["title"].as_str().unwrap().contains("is not the public URL of an API"), "{error}");
    let provider = json!({
        "issuer": "https://id.test/", "audience": "envforge", "api_url": "https://api.test",
        "clients": { "cli": { "id": "cli" } }, "organizations": [{ "provider_id": "org_1", "slug": "acme" }],
    });
    std::fs::write(dir.join("oidc.json"), provider.to_string()).unwrap();
    let two = ["--metrics-listen", "127.0.0.1:0", "--oidc", "oidc.json", "--sign-in-url", "https://other.test"];
    let error = role(&[&["serve", "api"], &stores[..], &two].concat());
    let title = error["title"].as_str().unwrap();
    assert!(title.contains("https://other.test") && title.contains("`api_url` https://api.test"), "{error}");
    let error = role(&["dev", "--data", "data", "--org", "No Slug"]);
    assert_eq!((&error["code"], &error["exit_code"]), (&json!("usage"), &json!(2)));
    assert_eq!(role(&["dev", "--data", "data", "--listen", "0.0.0.0:0"])["exit_code"], 2);
    assert_eq!(role(&["projections", "rebuild", "nonsense", "--data", "data"])["exit_code"], 2);
    std::fs::write(dir.join("file"), "").unwrap();
    assert_eq!(role(&["projections", "ls", "--data", "file"])["exit_code"], 1);
}

/// Where the tests are not root there is nothing to refuse.
#[test]
fn as_root_no_host_starts_below_a_closed_directory_unless_it_is_told_to() {
    use envforge_runtime::{NoUsers, UnixUsers};
    use std::os::unix::fs::PermissionsExt as _;
    let dir = TestDir::new();
    let closed = dir.join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).unwrap();
    if UnixUsers::supported(&closed.join("runtime")) == Err(NoUsers::NotRoot) {
        return eprintln!("not root: nothing was tested");
    }
    let nats = format!("nats://127.0.0.1:{}", free_port());
    let reactors = ["serve", "reactors", "--nats", &nats, "--keys", "keys", "--runtime", "closed/runtime"];
    let agent = ["agent", "--control-plane", "127.0.0.1:9", "--data", "closed/above/agent"];
    for (host, otherwise) in [(&reactors[..], "unreachable"), (&agent, "usage")] {
        let told = |more: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
            command.args(host).args(more).arg("--json").current_dir(dir.path()).env_remove("ENVFORGE_ORG");
            error(&command.output().unwrap())
        };
        let refused = told(&[]);
        let title = refused["title"].as_str().unwrap();
        assert!(title.contains("would run as root") && title.contains(closed.to_str().unwrap()), "{refused}");
        assert!(refused["hint"].as_str().unwrap().contains("--services-as-own-user"), "{refused}");
        let accepted = told(&["--services-as-own-user"]);
        assert_eq!(accepted["code"], otherwise, "it went on: {accepted}");
    }
}

#[test]
fn a_command_line_that_is_none_is_an_error_of_json_too() {
    let dir = TestDir::new();
    for (args, part) in [
        (&["workspace", "ls", "--nonsense", "--json"][..], "--nonsense"),
        (&["link", "--json", "allow"], "required arguments were not provided"),
        (&["dev", "--json", "--listen", "nowhere"], "nowhere"),
    ] {
        let output = envforge(dir.path(), "http://127.0.0.1:1", args);
        let error = error(&output);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert_eq!((&error["code"], &error["exit_code"]), (&json!("usage"), &json!(2)));
        assert!(error["title"].as_str().unwrap().contains(part), "{error}");
    }
    let help = envforge(dir.path(), "http://127.0.0.1:1", &["link", "--json", "--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(String::from_utf8(help.stdout).unwrap().contains("Usage:"));
}

#[test]
fn an_api_that_is_away_is_said_at_once() {
    let dir = TestDir::new();
    let api = format!("http://127.0.0.1:{}", free_port());
    signed_in(dir.path(), &api, FAR_AWAY);
    let started = Instant::now();
    let output = envforge(dir.path(), &api, &["workspace", "ls", "--json"]);
    assert_eq!(output.status.code(), Some(6));
    assert_eq!(error(&output)["code"], "unreachable");
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
}

#[test]
fn a_session_that_the_server_ended_is_forgotten_here() {
    let dir = TestDir::new();
    let double = Double::problem(401, "refresh_token_reused");
    signed_in(dir.path(), &double.url, FAR_AWAY);
    let output = envforge(dir.path(), &double.url, &["workspace", "ls", "--json"]);
    let error = error(&output);
    assert_eq!(output.status.code(), Some(3), "{error}");
    assert!(error["hint"].as_str().unwrap().contains("envforge login"), "{error}");
    let lines: Vec<_> = double.got().iter().map(|request| request.line.clone()).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[1].starts_with("POST /v1/auth/refresh "), "{lines:?}");
    let kept = std::fs::read_to_string(dir.join("credentials.json")).unwrap();
    assert!(!kept.contains(ACCESS) && !kept.contains(REFRESH), "{kept}");
    let mode = std::fs::metadata(dir.join("credentials.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "rewritten for its owner alone");
}

#[test]
fn a_refresh_that_failed_for_another_reason_keeps_the_session() {
    let dir = TestDir::new();
    let double = Double::problem(500, "internal");
    signed_in(dir.path(), &double.url, 0);
    let output = envforge(dir.path(), &double.url, &["workspace", "ls", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let got = double.got();
    assert_eq!(got.len(), 1, "{got:?}");
    assert_eq!(got[0].header("authorization"), None, "a token that has ended is not sent");
    assert!(std::fs::read_to_string(dir.join("credentials.json")).unwrap().contains(REFRESH));
}

#[test]
fn a_redirect_is_not_followed_with_the_token() {
    let dir = TestDir::new();
    let elsewhere = Double::problem(500, "internal");
    let location: &'static str = Box::leak(format!("location: {}/\r\n", elsewhere.url).into_boxed_str());
    let double = Double::answering(vec![(302, location, String::new())]);
    signed_in(dir.path(), &double.url, FAR_AWAY);
    let output = envforge(dir.path(), &double.url, &["workspace", "ls", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(elsewhere.got().len(), 0);
}

#[test]
fn somebody_elses_page_is_not_taken_for_an_answer() {
    let dir = TestDir::new();
    let double = Double::answering(vec![(200, "", "<html>welcome</html>".to_owned())]);
    signed_in(dir.path(), &double.url, FAR_AWAY);
    let output = envforge(dir.path(), &double.url, &["org", "show"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("not JSON"));
}

#[test]
fn wrong_credentials_leave_nothing_behind() {
    let dir = TestDir::new();
    let double = Double::problem(401, "wrong_credentials");
    let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
    command.args(["login", "--json", "--email", "dana@acme.example", "--password-stdin", "--api", &double.url]);
    command
        .env("ENVFORGE_CONFIG_DIR", dir.path())
        .env("ENVFORGE_CREDENTIALS", "file")
        .stdin(std::process::Stdio::piped());
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"wrong horse\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(error(&output)["code"], "wrong_credentials");
    assert!(!dir.join("credentials.json").exists() && !dir.join("profile.json").exists());
    assert_eq!(double.got().len(), 1, "a wrong password is not tried twice");
}

#[test]
fn mistakes_on_the_command_line_end_with_2_and_send_nothing() {
    let dir = TestDir::new();
    let double = Double::problem(500, "internal");
    signed_in(dir.path(), &double.url, FAR_AWAY);
    for args in [
        &["link", "create", "--families", "shell"][..],
        &["link", "create", "--for", "2 moons"],
        &["link", "revoke", "wsp_1"],
        &["workspace", "archive", "x"],
        &["audit", "log", "--since", "soonish"],
        &["audit", "replay", "--from", "0"],
        &["org", "policy", "set"],
        &["org", "role", "assign", "dana@acme.example", "king"],
        &["up"],
    ] {
        let output = envforge(dir.path(), &double.url, args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(double.got().len(), 0);
}

#[test]
fn a_broken_manifest_is_shown_with_a_caret_before_anything_is_sent() {
    let dir = TestDir::new();
    let double = Double::problem(500, "internal");
    signed_in(dir.path(), &double.url, FAR_AWAY);
    let git =
        |args: &[&str]| assert!(Command::new("git").current_dir(dir.path()).args(args).status().unwrap().success());
    git(&["init", "-q", "-b", "main"]);
    std::fs::write(dir.join("envforge.yml"), "version: 1\nservices:\n  web:\n    comand: x\n    route: { web: {} }\n")
        .unwrap();
    let output = envforge(dir.path(), &double.url, &["up"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("envforge.yml:4:5: ") && text.contains("\n    |     ^\n"), "{text}");
    let json = envforge(dir.path(), &double.url, &["up", "--json"]);
    assert!(error(&json)["title"].as_str().unwrap().contains("envforge.yml:4:5:"));
    assert_eq!(double.got().len(), 0);
}

#[test]
fn doctor_fails_and_says_why_where_nothing_is_right() {
    let dir = TestDir::new();
    let api = format!("http://127.0.0.1:{}", free_port());
    let output = envforge(dir.path(), &api, &["doctor", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &report["ok"]), (Some(1), &json!(false)));
    let verdict = |name: &str| {
        let checks = report["checks"].as_array().unwrap();
        checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no check {name}"))["verdict"]
            .clone()
    };
    assert_eq!((verdict("api"), verdict("session"), verdict("git")), (json!("fail"), json!("fail"), json!("ok")));
    assert_eq!(verdict("repository"), json!("warn"));
}

#[test]
fn completions_are_made_for_each_shell_and_help_lists_the_exit_codes() {
    let dir = TestDir::new();
    for shell in ["bash", "zsh", "fish"] {
        let output = envforge(dir.path(), "http://127.0.0.1:1", &["completions", shell]);
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && script.contains("keep-awake"), "{shell}");
    }
    let help = Command::new(env!("CARGO_BIN_EXE_envforge")).args(["help", "exit-codes"]).output().unwrap();
    let text = String::from_utf8(help.stdout).unwrap();
    for line in ["3    not signed in", "6    the API cannot be reached", "130  interrupted"] {
        assert!(text.contains(line), "`{line}` is not in:\n{text}");
    }
}

#[test]
fn pages_of_the_audit_that_are_empty_are_followed_and_not_without_end() {
    let page = |items: Value, next: Value| (200, "", json!({ "items": items, "next": next }).to_string());
    let empty = |number: usize| page(json!([]), json!(format!("cursor-{number}")));
    let row = json!({ "position": 7, "at": "2026-11-24T08:00:00Z", "actor": { "name": "Dana" }, "surface": "cli",
        "type": "dev_link.revoked.v1", "outcome": "done", "summary": "closed a link" });
    let dir = TestDir::new();
    let log = ["audit", "log", "--type", "dev_link.", "--json"];

    // What fits lies behind pages on which nothing does.
    let found: Vec<_> = (0..3).map(empty).chain([page(json!([row]), Value::Null)]).collect();
    let api = Double::answering(found);
    signed_in(dir.path(), &api.url, FAR_AWAY);
    let output = envforge(dir.path(), &api.url, &log);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&shown["items"][0]["position"], &shown["next"]), (&json!(7), &Value::Null), "{shown}");
    let asked: Vec<_> = api.got().into_iter().map(|request| request.line).collect();
    assert_eq!(asked.len(), 4, "{asked:?}");
    assert!(asked[3].contains("after=cursor-2") && asked[3].contains("type=dev_link."), "{asked:?}");

    // A hundred in a row are enough, and whoever asked is told that there is more to look into.
    let api = Double::answering((0..150).map(empty).collect());
    signed_in(dir.path(), &api.url, FAR_AWAY);
    let output = envforge(dir.path(), &api.url, &log);
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&shown["items"], &shown["next"]), (&json!([]), &json!("cursor-100")), "{shown}");
    assert_eq!(api.got().len(), 101);

    // Nor is the same cursor asked for again and again.
    let api = Double::answering(vec![empty(1)]);
    signed_in(dir.path(), &api.url, FAR_AWAY);
    let output = envforge(dir.path(), &api.url, &log[..4]);
    assert_eq!(api.got().len(), 2);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("Nothing that fits was found so far"), "{text}");
}

#[test]
fn logs_wait_for_a_machine_that_comes_up_with_one_line_about_it() {
    let dir = TestDir::new();
    let starting = || (503, "retry-after: 1\r\n", problem(503, "host_starting"));
    let double = Double::answering(vec![starting(), starting(), (200, "", "its last line\n".to_owned())]);
    signed_in(dir.path(), &double.url, FAR_AWAY);
    let output = envforge(dir.path(), &double.url, &["logs", "main", "web", "--org", "acme"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), &*output.stdout), (Some(0), &b"its last line\n"[..]), "{said}");
    assert_eq!(said, "The machine of this workspace's host is starting; this may take a few minutes.\n");
    assert_eq!(double.got().len(), 3);
}
