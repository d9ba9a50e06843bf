//! The story of a review, told by a real browser against `envforge dev --demo`: a link is opened, a sleeping runtime
//! wakes, the app works, the link is revoked and the reviewer is out at once; the audit replay shows who did what.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests panic, and hand tools' paths on")]

mod browser;
mod reviewer;

use std::process::Command;
use std::time::{Duration, Instant};

use envforge_testkit::{TestDir, TestProcess, eventually};
use serde_json::{Value, json};

use reviewer::Reviewer;

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

    /// The newest row of the audit of this type that names `subject`, as soon as it is there.
    async fn audit_row(&self, kind: &str, subject: &str) -> Value {
        eventually(&format!("{kind} in the audit"), DEADLINE, async || {
            let page = self.get(&format!("/v1/orgs/acme/audit?type={kind}")).await;
            page["items"].as_array().unwrap().iter().find(|row| row.to_string().contains(subject)).cloned()
        })
        .await
    }

    /// What it closed.
    async fn revoke(&self, link: &str) -> Value {
        let url = format!("{}/v1/orgs/acme/links/{link}/revoke", self.api);
        let request = self.client.post(url).bearer_auth(&self.token).json(&json!({ "reason": "done" }));
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        answer.json::<Value>().await.unwrap()["receipt"].clone()
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
    reviewer.sees_the_share_page(&["acme", "signed-links", "web"]);
    reviewer.sees_it_waking(dev.text("workspace_url"));
    reviewer.uses_the_app();

    let owner = Owner::login(dev.text("api"), dev.text("owner_email"), dev.text("owner_password")).await;
    let runtime = owner.get("/v1/orgs/acme/workspaces/signed-links/runtime").await;
    assert_eq!(runtime["phase"], "ready");
    assert_eq!(runtime["cause"]["link"], *link, "{runtime}");
    let receipt = owner.revoke(link).await;
    assert_eq!((&receipt["sessions"], &receipt["sockets"]), (&json!(1), &json!(1)), "{receipt}");
    reviewer.go_on();
    reviewer.is_out();

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

    let recorded = owner.audit_row("dev_link.revocation_recorded", link).await;
    assert!(recorded.to_string().contains("were closed: 1 session, 1 link, 1 connection"), "{recorded}");
    // The audit says who, from where, and in words what.
    let me = owner.get("/v1/me").await["id"].clone();
    let revoked = owner.audit_row("dev_link.revoked", link).await;
    assert_eq!((&revoked["actor"]["kind"], &revoked["actor"]["id"]), (&json!("user"), &me), "{revoked}");
    assert_eq!((&revoked["actor"]["name"], &revoked["surface"]), (&json!("Owner"), &json!("api")), "{revoked}");
    let opened = owner.audit_row("dev_link.session_opened", link).await;
    assert_eq!((&opened["actor"]["kind"], &opened["actor"]["id"]), (&json!("link_visitor"), &json!(link)), "{opened}");
    assert_eq!(opened["surface"], "gateway", "{opened}");
    let workspace = owner.get("/v1/orgs/acme/workspaces/signed-links").await["id"].as_str().unwrap().to_owned();
    let woken = owner.audit_row("runtime.wake_requested", &workspace).await;
    assert_eq!((&woken["actor"]["kind"], &woken["actor"]["id"]), (&json!("link_visitor"), &json!(link)), "{woken}");
    let ready = owner.audit_row("runtime.ready", &workspace).await;
    assert!(matches!(ready["actor"]["kind"].as_str(), Some("system" | "agent")), "{ready}");
    assert_eq!(ready["surface"], "agent", "{ready}");

    // What the review cost, once the runtime sleeps: each service, on account of this link.
    let sleep = format!("{}/v1/orgs/acme/workspaces/signed-links/sleep", owner.api);
    assert_eq!(owner.client.post(&sleep).bearer_auth(&owner.token).send().await.unwrap().status(), 202);
    until_phase(&owner, "asleep").await;
    eventually("the meter of what was used", DEADLINE, async || {
        let by_service = owner.get("/v1/orgs/acme/usage").await;
        let used = |key: &str| {
            let items = by_service["items"].as_array().unwrap();
            items.iter().find(|item| item["key"] == key).and_then(|item| item["service_ms"].as_u64()) > Some(0)
        };
        ["web", "api", "mailbox"].into_iter().all(used).then_some(())
    })
    .await;
    let by_link = owner.get("/v1/orgs/acme/usage?group_by=link").await;
    let [cost] = by_link["items"].as_array().unwrap().as_slice() else { panic!("{by_link}") };
    assert_eq!(cost["key"], *link, "{by_link}");
    for unit in ["service_ms", "millicore_ms", "mib_ms"] {
        assert!(cost[unit].as_u64() > Some(0), "{by_link}");
    }
    assert_eq!(owner.get("/v1/orgs/acme/usage/running").await["items"], json!([]));
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
    eventually(phase, DEADLINE, async || {
        let runtime = owner.get("/v1/orgs/acme/workspaces/signed-links/runtime").await;
        assert_ne!(runtime["phase"], "failed", "after {:?}: {runtime}", begun.elapsed());
        (runtime["phase"] == phase).then_some(())
    })
    .await;
}
