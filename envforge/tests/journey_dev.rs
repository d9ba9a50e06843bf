//! The story of a review, told by a real browser against `envforge dev --demo`: a link is opened, a sleeping runtime
//! wakes, the app works, the link is revoked and the reviewer is out at once; the audit replay shows who did what.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests panic, and hand tools' paths on")]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use envforge_testkit::tools::Tool;
use envforge_testkit::{TestDir, TestProcess};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(60);

/// `envforge dev --demo --json` on free ports, and what its first line said.
struct Dev {
    process: TestProcess,
    started: Value,
}

impl Dev {
    fn start(data: &std::path::Path, logs: &std::path::Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
        command.args([
            "dev",
            "--demo",
            "--json",
            "--listen",
            "127.0.0.1:0",
            "--gateway-listen",
            "127.0.0.1:0",
            "--data",
        ]);
        command.arg(data);
        std::fs::create_dir_all(logs).unwrap();
        let mut process = TestProcess::spawn("envforge dev", &command, logs);
        let started = process.wait_ready("the first line", DEADLINE, |process| {
            let out = process.stdout();
            out.contains('\n').then(|| serde_json::from_str(out.lines().next().unwrap()).unwrap())
        });
        Self { process, started }
    }

    fn text(&self, field: &str) -> &str {
        self.started[field].as_str().unwrap_or_else(|| panic!("{field} is missing in {}", self.started))
    }
}

/// The API as its owner uses it.
struct Owner {
    client: reqwest::Client,
    api: String,
    token: String,
}

impl Owner {
    async fn login(api: &str, email: &str, password: &str) -> Self {
        let client = reqwest::Client::new();
        let answer = client
            .post(format!("{api}/v1/auth/login"))
            .json(&json!({ "email": email, "password": password }))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 200);
        let token = answer.json::<Value>().await.unwrap()["access_token"].as_str().unwrap().to_owned();
        Self { client, api: api.to_owned(), token }
    }

    async fn get(&self, path: &str) -> Value {
        let answer = self.client.get(format!("{}{path}", self.api)).bearer_auth(&self.token).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        answer.json().await.unwrap()
    }

    async fn events(&self) -> Vec<Value> {
        let answer =
            self.client.get(format!("{}/v1/orgs/acme/events", self.api)).bearer_auth(&self.token).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let text = answer.text().await.unwrap();
        text.lines().filter(|line| !line.is_empty()).map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    async fn revoke(&self, link: &str) {
        let url = format!("{}/v1/orgs/acme/links/{link}/revoke", self.api);
        let answer = self.client.post(url).bearer_auth(&self.token).json(&json!({ "reason": "done" })).send().await;
        assert_eq!(answer.unwrap().status(), 200);
    }
}

/// A reviewer's browser, told what to do by lines.
struct Reviewer {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
    stdin: ChildStdin,
}

impl Reviewer {
    fn open(share_url: &str, shots: &std::path::Path) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/browser/review.mjs");
        let mut child = Command::new(Tool::Node.path())
            .args([script, share_url])
            .arg(shots)
            .env("ENVFORGE_TEST_BROWSER_DIR", Tool::BrowserDir.path())
            .env("ENVFORGE_TEST_CHROMIUM", Tool::Chromium.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let stdin = child.stdin.take().unwrap();
        Self { child, lines, stdin }
    }

    fn saw(&mut self, event: &str) -> Value {
        let line = self.lines.next().unwrap_or_else(|| panic!("the browser ended before `{event}`")).unwrap();
        let saw: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(saw["event"], event, "{saw}");
        saw
    }

    fn go_on(&mut self) {
        writeln!(self.stdin).unwrap();
    }
}

impl Drop for Reviewer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reviewer_opens_the_link_uses_the_app_and_is_out_when_it_is_revoked() {
    let place = TestDir::new();
    let shots = place.path().join("shots");
    std::fs::create_dir_all(&shots).unwrap();
    let dev = Dev::start(&place.path().join("data"), &place.path().join("logs"));
    let link = dev.text("link_id");
    let mut reviewer = Reviewer::open(dev.text("share_url"), &shots);

    let share = reviewer.saw("share");
    for word in ["acme", "signed-links", "web"] {
        assert!(share["text"].as_str().unwrap().contains(word), "{share}");
    }
    assert_eq!(share["cookies"], 0, "looking at a share page must leave nothing behind");

    let opened = reviewer.saw("opened");
    assert!(opened["url"].as_str().unwrap().starts_with(dev.text("workspace_url")), "{opened}");

    let app = reviewer.saw("app");
    assert!(app["orders"].as_i64().unwrap() > 0, "{app}");
    assert_eq!(app["style"], 200);
    assert!(app["echo"].as_str().unwrap().contains("across the gateway"), "{app}");
    assert_eq!(app["socket"], "open");
    assert!(!app["cookie"].as_str().unwrap().contains("envforge"), "scripts must not see the session: {app}");
    assert_eq!(app["failures"], json!([]));

    let owner = Owner::login(dev.text("api"), dev.text("owner_email"), dev.text("owner_password")).await;
    let runtime = owner.get("/v1/orgs/acme/workspaces/signed-links/runtime").await;
    assert_eq!(runtime["phase"], "ready");
    assert_eq!(runtime["cause"]["link"], *link, "{runtime}");
    owner.revoke(link).await;
    reviewer.go_on();

    let revoked = reviewer.saw("revoked");
    assert!(revoked["socketMs"].as_u64().unwrap() < 1_000, "{revoked}");
    let api = &revoked["api"];
    assert!(matches!(api["status"].as_u64(), Some(401 | 403 | 410)) && api["redirected"] == false, "{api}");
    assert!(api["type"].as_str().unwrap().contains("json") && api["body"]["code"].is_string(), "{api}");
    let looks = reviewer.saw("looks")["looked"].as_array().unwrap().clone();
    assert_eq!(looks.len(), 9, "three pages in three views: {looks:?}");
    for look in &looks {
        assert!(look["overflow"].as_f64().unwrap() <= 0.0 && look["sticksOut"] == json!([]), "{look}");
        // WCAG 2.2, 1.4.3: what is read at this size.
        assert!(look["contrast"].as_f64().unwrap() >= 4.5, "{look}");
        assert_eq!(look["ground"].as_f64().unwrap() < 0.2, look["scheme"] == "dark", "{look}");
    }
    let again = reviewer.saw("share-again");
    assert_eq!(again["buttons"], 0, "{again}");

    let types: Vec<String> =
        owner.events().await.iter().map(|event| event["type"].as_str().unwrap().to_owned()).collect();
    for wanted in [
        "dev_link.issued.v1",
        "dev_link.first_used.v1",
        "dev_link.session_opened.v1",
        "runtime.wake_requested.v1",
        "runtime.ready.v1",
        "dev_link.revoked.v1",
    ] {
        assert!(types.iter().any(|found| found.ends_with(wanted)), "{wanted} is missing in {types:?}");
    }
    assert!(!types.iter().any(|found| found.contains("endpoints_bound")), "addresses are for operators alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_start_goes_on_where_the_first_one_was_killed_in_this_journey() {
    let place = TestDir::new();
    let (data, logs) = (place.path().join("data"), place.path().join("logs"));
    let mut first = Dev::start(&data, &logs.join("first"));
    let password = first.text("owner_password").to_owned();
    let (email, link) = (first.text("owner_email").to_owned(), first.text("link_id").to_owned());
    let owner = Owner::login(first.text("api"), &email, &password).await;
    let wake = format!("{}/v1/orgs/acme/workspaces/signed-links/wake", owner.api);
    assert_eq!(owner.client.post(&wake).bearer_auth(&owner.token).send().await.unwrap().status(), 202);
    until_phase(&owner, "ready").await;
    first.process.kill9();

    let mut second = Dev::start(&data, &logs.join("second"));
    assert_eq!(second.started["owner_password"], Value::Null, "a password is shown once");
    assert_eq!(second.text("link_id"), link, "the demo's link lives on");
    let owner = Owner::login(second.text("api"), &email, &password).await;
    // What ran was ended, and the log says so: the meter is closed.
    until_phase(&owner, "asleep").await;
    let runtime = owner.get("/v1/orgs/acme/workspaces/signed-links/runtime").await;
    assert_eq!(runtime["asleep_because"], "host_lost", "{runtime}");
    let types: Vec<Value> = owner.events().await.into_iter().map(|event| event["type"].clone()).collect();
    assert!(types.iter().any(|found| found.as_str().unwrap().ends_with("runtime.lost.v1")), "{types:?}");
    assert!(second.process.terminate(DEADLINE).success(), "{}", second.process.stderr());
}

async fn until_phase(owner: &Owner, phase: &str) {
    let begun = Instant::now();
    envforge_testkit::eventually(phase, DEADLINE, async || {
        let runtime = owner.get("/v1/orgs/acme/workspaces/signed-links/runtime").await;
        assert_ne!(runtime["phase"], "failed", "after {:?}: {runtime}", begun.elapsed());
        (runtime["phase"] == phase).then_some(())
    })
    .await;
}
