//! The review over NATS JetStream and PostgreSQL, with API, gateway, projector and reactors as processes of their own,
//! each killed with SIGKILL and started again in the middle.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests panic, and hand tools' paths on")]

mod browser;
mod reviewer;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use envforge_testkit::{NatsServer, Postgres, PostgresDatabase, TestDir, TestProcess, eventually, free_port};
use reqwest::header::{COOKIE, LOCATION, ORIGIN, SET_COOKIE};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use reviewer::Reviewer;

const DEADLINE: Duration = Duration::from_secs(60);

struct Cluster {
    place: TestDir,
    nats: NatsServer,
    _database: PostgresDatabase,
    database_url_file: PathBuf,
    api_port: u16,
    gateway_port: u16,
    starts: u32,
}

impl Cluster {
    fn new() -> Self {
        let place = TestDir::new();
        let database = Postgres::shared();
        let database_url_file = place.path().join("database-url");
        std::fs::write(&database_url_file, database.database_url()).unwrap();
        Self {
            nats: NatsServer::start(),
            _database: database,
            database_url_file,
            api_port: free_port(),
            gateway_port: free_port(),
            place,
            starts: 0,
        }
    }

    fn gateway_url(&self) -> String {
        format!("http://dev.localhost:{}", self.gateway_port)
    }

    fn command(&self, verb: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
        command.args(verb).args(["--nats", &self.nats.url(), "--log", "warn"]);
        command.arg("--database-url-file").arg(&self.database_url_file);
        command.arg("--keys").arg(self.place.path().join("keys"));
        command
    }

    /// Makes keys, organization and owner; answers the owner's password.
    fn set_up(&self) -> String {
        let mut command = self.command(&["setup", "--org", "acme", "--owner-email", "owner@example.org", "--json"]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let line: Value = serde_json::from_slice(&output.stdout).unwrap();
        line["owner_password"].as_str().unwrap().to_owned()
    }

    fn start(&mut self, role: &str) -> TestProcess {
        self.starts += 1;
        let mut command = self.command(&["serve", role]);
        command.args(["--listen", &format!("127.0.0.1:{}", self.api_port)]);
        command.args(["--gateway-listen", &format!("127.0.0.1:{}", self.gateway_port)]);
        command.args(["--gateway-url", &self.gateway_url()]);
        // The demo's repository is a path of this machine.
        command.arg("--allow-local-repositories");
        command.arg("--runtime").arg(self.place.path().join("runtime"));
        command.arg("--secret-store").arg(format!("file:{}", self.place.path().join("secrets").display()));
        let logs = self.place.path().join(format!("logs-{}-{role}", self.starts));
        std::fs::create_dir_all(&logs).unwrap();
        let mut process = TestProcess::spawn(role, &command, &logs);
        process.wait_ready("its first line", DEADLINE, |process| process.stdout().contains('\n').then_some(()));
        process
    }

    fn api(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.api_port)
    }

    /// Browsers resolve everything below `localhost` to this machine; a library asks the system, which may not.
    fn client(&self) -> Client {
        let loopback = std::net::SocketAddr::from(([127, 0, 0, 1], self.gateway_port));
        Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .resolve("dev.localhost", loopback)
            .resolve("web--main--acme.dev.localhost", loopback)
            .build()
            .unwrap()
    }

    fn owner(&self, client: &Client, token: &str) -> Owner<'_> {
        Owner { cluster: self, client: client.clone(), token: token.to_owned() }
    }

    /// Until this file is there, the app's web service does not begin to listen.
    fn gate(&self) -> PathBuf {
        self.place.join("gate")
    }

    fn open_gate(&self) {
        std::fs::write(self.gate(), "").unwrap();
    }
}

/// The owner, who repeats what a process that died did not answer.
struct Owner<'a> {
    cluster: &'a Cluster,
    client: Client,
    token: String,
}

impl Owner<'_> {
    async fn get(&self, path: &str) -> Option<Value> {
        let answer = self.client.get(self.cluster.api(path)).bearer_auth(&self.token).send().await.ok()?;
        answer.error_for_status().ok()?.json().await.ok()
    }

    /// Types and data of the organization's events of this type.
    async fn events(&self, kind: &str) -> Option<Vec<Value>> {
        let path = format!("/v1/orgs/acme/events?type={kind}");
        let answer = self.client.get(self.cluster.api(&path)).bearer_auth(&self.token).send().await.ok()?;
        let text = answer.error_for_status().ok()?.text().await.ok()?;
        text.lines().filter(|line| !line.is_empty()).map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// How often something of this kind happened.
    async fn count(&self, kind: &str) -> usize {
        eventually("the events", DEADLINE, async || self.events(kind).await).await.len()
    }

    async fn until_events(&self, what: &str, kind: &str, holds: impl Fn(&[Value]) -> bool) {
        eventually(what, DEADLINE, async || holds(&self.events(kind).await?).then_some(())).await;
    }

    fn revoke(&self, link: &str) -> reqwest::RequestBuilder {
        let url = self.cluster.api(&format!("/v1/orgs/acme/links/{link}/revoke"));
        let request = self.client.post(url).bearer_auth(&self.token).json(&json!({ "reason": "done" }));
        request.header("Idempotency-Key", format!("revoke-{link}"))
    }

    /// Until it is answered, by whichever process.
    async fn revoke_until_answered(&self, link: &str) {
        eventually("the answer to a repeated request", DEADLINE, async || {
            let answer = self.revoke(link).send().await.ok()?;
            assert!(answer.status().is_server_error() || answer.status() == StatusCode::OK, "{answer:?}");
            (answer.status() == StatusCode::OK).then_some(())
        })
        .await;
    }
}

/// The demo app as a Git repository of its own, with a web service that waits for `gate` and needs a secret.
fn repository(below: &Path, gate: &Path) -> PathBuf {
    let root = below.join("orders");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/orders");
    let copied = Command::new("cp").args(["-r", source]).arg(&root).status().unwrap();
    assert!(copied.success());
    let manifest = root.join("envforge.yml");
    let text = std::fs::read_to_string(&manifest).unwrap();
    let given = "[ $CLUSTER_SECRET = by-reference ]";
    let waits = format!("until [ -e {} ] && {given}; do sleep 0.05; done; exec python3 web/server.py", gate.display());
    let declared = "secrets: [CLUSTER_SECRET]";
    let changed = text.replace("command: python3 web/server.py", &format!("command: \"{waits}\"\n    {declared}"));
    assert_ne!(changed, text);
    std::fs::write(&manifest, changed).unwrap();
    envforge_testkit::commit_all(&root);
    root
}

/// Signs in, makes project, workspace and link; answers the token, the link's id and its share URL.
async fn prepare(cluster: &Cluster, client: &Client, password: &str) -> (String, String, String) {
    let login = json!({ "email": "owner@example.org", "password": password });
    let answer = client.post(cluster.api("/v1/auth/login")).json(&login).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let token = answer.json::<Value>().await.unwrap()["access_token"].as_str().unwrap().to_owned();
    let post = async |path: &str, body: Value| -> Value {
        let answer = client.post(cluster.api(path)).bearer_auth(&token).json(&body).send().await.unwrap();
        let status = answer.status();
        let answer: Value = answer.json().await.unwrap();
        assert_eq!(status, StatusCode::CREATED, "{path}: {answer}");
        answer
    };
    let root = repository(cluster.place.path(), &cluster.gate());
    post("/v1/orgs/acme/projects", json!({ "slug": "orders", "name": "Orders", "repository": root })).await;
    let secret = cluster.api("/v1/orgs/acme/projects/orders/secrets/CLUSTER_SECRET");
    let set = client.put(secret).bearer_auth(&token).json(&json!({ "secret": "by-reference" })).send().await.unwrap();
    assert_eq!(set.status(), StatusCode::OK, "the API puts what the reactors read");
    let manifest = std::fs::read_to_string(root.join("envforge.yml")).unwrap();
    let workspace = json!({ "project": "orders", "slug": "main", "branch": "main", "manifest": manifest });
    post("/v1/orgs/acme/workspaces", workspace).await;
    let link = post("/v1/orgs/acme/workspaces/main/links", json!({ "service": "web", "label": "review" })).await;
    (token, link["id"].as_str().unwrap().to_owned(), link["share_url"].as_str().unwrap().to_owned())
}

/// A reviewer without a browser: the same requests, in the same order. Answers cookie and workspace URL.
async fn open_link(cluster: &Cluster, client: &Client, share_url: &str) -> (String, String) {
    let navigate = |request: reqwest::RequestBuilder, site: &str| {
        request
            .header("Sec-Fetch-Site", site)
            .header("Sec-Fetch-Mode", "navigate")
            .header("Sec-Fetch-Dest", "document")
            .header("User-Agent", "journey")
    };
    let share = navigate(client.get(share_url), "none").send().await.unwrap();
    assert_eq!(share.status(), StatusCode::OK);
    let post = client.post(share_url).header(ORIGIN, cluster.gateway_url());
    let opened = navigate(post, "same-origin").send().await.unwrap();
    assert_eq!(opened.status(), StatusCode::SEE_OTHER);
    let handoff = opened.headers()[LOCATION].to_str().unwrap().to_owned();
    let redeemed = navigate(client.get(&handoff), "same-site").send().await.unwrap();
    assert_eq!(redeemed.status(), StatusCode::SEE_OTHER, "{}", redeemed.text().await.unwrap());
    let cookie = redeemed.headers()[SET_COOKIE].to_str().unwrap().split(';').next().unwrap().to_owned();
    // Once, whoever asks.
    let twice = navigate(client.get(&handoff), "same-site").send().await.unwrap();
    assert_ne!(twice.status(), StatusCode::SEE_OTHER, "a handoff must work once");
    let url = handoff.split("/.envforge").next().unwrap().to_owned();
    (cookie, url)
}

async fn orders(client: &Client, url: &str, cookie: &str) -> StatusCode {
    let request = client.get(format!("{url}/api/orders")).header(COOKIE, cookie).header("Accept", "application/json");
    match request.send().await {
        Ok(answer) => answer.status(),
        // The gateway is being started again.
        Err(_) => StatusCode::BAD_GATEWAY,
    }
}

/// A reviewer's request, repeated while gateways come and go.
async fn until_answered(client: Client, url: String, cookie: String, status: StatusCode) {
    eventually("an answer by whichever gateway", DEADLINE, async || {
        (orders(&client, &url, &cookie).await == status).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_review_survives_the_death_of_every_process_over_nats_and_postgres() {
    let mut cluster = Cluster::new();
    let password = cluster.set_up();
    let mut projector = cluster.start("projector");
    let mut api = cluster.start("api");
    // In whichever order: reactors say on which machine they run.
    let mut gateway = cluster.start("gateway");
    let mut reactors = cluster.start("reactors");
    let client = cluster.client();
    cluster.open_gate();
    let (token, link, share_url) = prepare(&cluster, &client, &password).await;
    let (cookie, url) = open_link(&cluster, &client, &share_url).await;
    // The runtime sleeps: this request wakes it, is held, and is answered by the app.
    assert_eq!(orders(&client, &url, &cookie).await, StatusCode::OK);

    let answered = async |what: &str| {
        eventually(what, DEADLINE, async || (orders(&client, &url, &cookie).await == StatusCode::OK).then_some(()))
            .await;
    };
    gateway.kill9();
    gateway = cluster.start("gateway");
    answered("the app, through a new gateway with the old cookie").await;
    projector.kill9();
    api.kill9();
    projector = cluster.start("projector");
    api = cluster.start("api");
    answered("the app, without anybody having noticed").await;
    reactors.kill9();
    reactors = cluster.start("reactors");
    answered("the app, woken anew after its host died").await;

    let revoke = cluster.api(&format!("/v1/orgs/acme/links/{link}/revoke"));
    let revoked = client.post(revoke).bearer_auth(&token).json(&json!({ "reason": "done" })).send().await.unwrap();
    assert_eq!(revoked.status(), StatusCode::OK);
    eventually("the reviewer is out", Duration::from_secs(2), async || {
        (orders(&client, &url, &cookie).await == StatusCode::GONE).then_some(())
    })
    .await;

    let events = client.get(cluster.api("/v1/orgs/acme/events")).bearer_auth(&token).send().await.unwrap();
    let events = events.text().await.unwrap();
    let count = |kind: &str| events.lines().filter(|line| line.contains(&format!("{kind}.v1\""))).count();
    assert_eq!((count("dev_link.issued"), count("dev_link.session_opened"), count("dev_link.revoked")), (1, 1, 1));
    assert_eq!(count("runtime.wake_requested"), 2, "one wake by the link, one after the host died");
    eventually("the new projector has folded the revocation into the audit", DEADLINE, async || {
        let audit = client.get(cluster.api("/v1/orgs/acme/audit?type=dev_link.revoked")).bearer_auth(&token).send();
        audit.await.unwrap().text().await.unwrap().contains(&link).then_some(())
    })
    .await;
    for process in [&mut gateway, &mut api, &mut reactors, &mut projector] {
        assert!(process.terminate(DEADLINE).success(), "{}", process.stderr());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_process_refused_another_explains_over_nats_and_postgres() {
    let mut cluster = Cluster::new();
    let password = cluster.set_up();
    let _projector = cluster.start("projector");
    let _refuses = cluster.start("api");
    let (_reactors, _gateway) = (cluster.start("reactors"), cluster.start("gateway"));
    let client = cluster.client();
    cluster.open_gate();
    let (token, link, share_url) = prepare(&cluster, &client, &password).await;
    let new = json!({ "slug": "ci", "actions": ["workspace.read"] });
    let made = client.post(cluster.api("/v1/orgs/acme/service-tokens")).bearer_auth(&token).json(&new);
    let made: Value = made.send().await.unwrap().json().await.unwrap();
    let id_of = |answer: &reqwest::Response| answer.headers()["envforge-request"].to_str().unwrap().to_owned();
    let wake = client.post(cluster.api("/v1/orgs/acme/workspaces/main/wake"));
    let by_api = wake.bearer_auth(made["secret"].as_str().unwrap()).send().await.unwrap();
    assert_eq!(by_api.status(), StatusCode::FORBIDDEN);
    let (cookie, url) = open_link(&cluster, &client, &share_url).await;
    let owner = cluster.owner(&client, &token);
    assert_eq!(owner.revoke(&link).send().await.unwrap().status(), StatusCode::OK);
    until_answered(client.clone(), url.clone(), cookie.clone(), StatusCode::GONE).await;
    let by_gateway = client.get(format!("{url}/api/orders")).header(COOKIE, &cookie).send().await.unwrap();
    assert_eq!(by_gateway.status(), StatusCode::GONE);

    cluster.api_port = free_port();
    let _explains = cluster.start("api");
    let owner = cluster.owner(&client, &token);
    let why = async |answer: &reqwest::Response| {
        let path = format!("/v1/orgs/acme/why/{}", id_of(answer));
        eventually("the refusal by another process", DEADLINE, async || owner.get(&path).await).await["refusals"][0]
            .clone()
    };
    let refusal = why(&by_api).await;
    assert_eq!((&refusal["action"], &refusal["reason"]), (&json!("runtime.wake"), &json!("outside_service_token")));
    assert_eq!((&refusal["service_token"]["id"], &refusal["grants"][0]["role"]), (&made["id"], &json!("owner")));
    let refusal = why(&by_gateway).await;
    assert_eq!((&refusal["actor"], &refusal["reason"]), (&json!(link), &json!("link_revoked")));
    assert!(refusal["link"]["ended_at"].as_u64() > refusal["link"]["issued_at"].as_u64(), "{refusal:#}");
    assert!(refusal["facts_at"].as_u64() >= refusal["link"]["ended_at"].as_u64(), "{refusal:#}");
}

/// What a role said on its first line.
fn said(role: &TestProcess) -> Value {
    serde_json::from_str(role.stdout().lines().next().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_show_their_metrics_and_end_when_the_log_is_no_longer_the_same() {
    let mut cluster = Cluster::new();
    cluster.set_up();
    let mut roles: Vec<_> = ["reactors", "gateway", "projector"].map(|role| (role, cluster.start(role))).into();
    for (role, process) in &roles {
        let url = said(process)["metrics"].as_str().unwrap().to_owned();
        let text = reqwest::get(&url).await.unwrap().text().await.unwrap();
        // Without upkeep the memory of histograms grows until somebody asks.
        assert!(text.contains("envforge_metrics_upkeeps_total"), "{role}: {text}");
        let elsewhere = url.replace("/metrics", "/readyz");
        assert_eq!(reqwest::get(&elsewhere).await.unwrap().status(), StatusCode::NOT_FOUND, "{role}");
        let forwarded = Client::new().get(&url).header("X-Forwarded-For", "192.0.2.1").send().await.unwrap();
        assert_eq!(forwarded.status(), StatusCode::NOT_FOUND, "{role}");
    }

    cluster.nats.lose_store();
    cluster.nats.restart();
    // Another log at the same place, with an organization of its own.
    let mut setup = cluster.command(&["setup", "--org", "other", "--owner-email", "owner@example.com"]);
    let _ = setup.output().unwrap();
    for (role, process) in &mut roles {
        assert_eq!(process.wait(DEADLINE).code(), Some(1), "{role}");
        assert!(process.stderr().contains("log is not the one"), "{role}: {}", process.stderr());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_reviews_over_nats_and_postgres_although_the_reactors_die_while_the_app_starts() {
    let mut cluster = Cluster::new();
    let password = cluster.set_up();
    let (_projector, _api) = (cluster.start("projector"), cluster.start("api"));
    let mut reactors = cluster.start("reactors");
    let _gateway = cluster.start("gateway");
    let client = cluster.client();
    let (token, link, share_url) = prepare(&cluster, &client, &password).await;
    let shots = cluster.place.join("shots");
    std::fs::create_dir_all(&shots).unwrap();
    let mut reviewer = Reviewer::open(&share_url, &shots);
    reviewer.sees_the_share_page(&["acme", "main", "web"]);

    // A stage that lasts no longer than its report takes is overtaken by the next; the gate holds the app in either.
    let starts = |event: &Value| matches!(event["data"]["stage"].as_str(), Some("starting" | "probing"));
    cluster
        .owner(&client, &token)
        .until_events("the stage `starting`", "runtime.stage_reached", |events| events.iter().any(starts))
        .await;
    reactors.kill9();
    reactors = cluster.start("reactors");
    cluster.open_gate();
    reviewer.sees_it_waking("http://web--main--acme.dev.localhost");
    reviewer.uses_the_app();

    let owner = cluster.owner(&client, &token);
    assert_eq!(owner.count("runtime.wake_requested").await, 1, "the wake went on, it did not begin anew");
    assert_eq!(owner.count("runtime.ready").await, 1);
    assert_eq!(owner.revoke(&link).send().await.unwrap().status(), StatusCode::OK);
    reviewer.go_on();
    reviewer.is_out();

    let sleep = client.post(cluster.api("/v1/orgs/acme/workspaces/main/sleep")).bearer_auth(&owner.token);
    assert_eq!(sleep.send().await.unwrap().status(), StatusCode::ACCEPTED);
    owner.until_events("its sleep", "runtime.slept", |events| events.len() == 1).await;
    eventually("the meter of what was used", DEADLINE, async || {
        let by_link = owner.get("/v1/orgs/acme/usage?group_by=link").await?;
        let items = by_link["items"].as_array().unwrap();
        items.iter().any(|item| item["key"] == *link && item["service_ms"].as_u64() > Some(0)).then_some(())
    })
    .await;
    assert!(reactors.terminate(DEADLINE).success(), "{}", reactors.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_under_way_when_its_process_is_killed_happens_once_over_nats_and_postgres() {
    let mut cluster = Cluster::new();
    let password = cluster.set_up();
    let mut projector = cluster.start("projector");
    let mut api = cluster.start("api");
    let _reactors = cluster.start("reactors");
    let mut gateway = cluster.start("gateway");
    let client = cluster.client();
    let (token, link, share_url) = prepare(&cluster, &client, &password).await;
    let (cookie, url) = open_link(&cluster, &client, &share_url).await;

    // The gateway, while it holds requests for a runtime that wakes.
    let mut visits = JoinSet::new();
    for _ in 0..8 {
        let (client, url, cookie) = (client.clone(), url.clone(), cookie.clone());
        visits.spawn_blocking(move || {
            Handle::current().block_on(until_answered(client, url, cookie, StatusCode::OK));
        });
    }
    cluster
        .owner(&client, &token)
        .until_events("the wake", "runtime.wake_requested", |events| !events.is_empty())
        .await;
    gateway.kill9();
    gateway = cluster.start("gateway");
    cluster.open_gate();
    visits.join_all().await;
    assert_eq!(cluster.owner(&client, &token).count("runtime.wake_requested").await, 1, "held requests wake once");

    // The projector, while its read models are read: they stand still, and then lack and double nothing.
    let renamed = async |cluster: &Cluster, name: &str| {
        let request = client.patch(cluster.api("/v1/orgs/acme/projects/orders")).bearer_auth(&token);
        let answer = request.json(&json!({ "name": name })).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
    };
    let read = async |cluster: &Cluster| {
        let owner = cluster.owner(&client, &token);
        let audit = owner.get("/v1/orgs/acme/audit?type=project.edited&order=oldest&limit=200").await.unwrap();
        let items = audit["items"].as_array().unwrap();
        items.iter().map(|row| row["position"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    let mut seen = Vec::new();
    for round in 0..3 {
        for change in 0..10 {
            renamed(&cluster, &format!("Orders {round} {change}")).await;
            let now = read(&cluster).await;
            assert!(now.starts_with(&seen), "rows that were there are gone: {seen:?}, then {now:?}");
            seen = now;
        }
        projector.kill9();
        seen = read(&cluster).await;
        projector = cluster.start("projector");
    }
    let positions = eventually("the whole story in the audit", DEADLINE, async || {
        let now = read(&cluster).await;
        (now.len() >= 30).then_some(now)
    })
    .await;
    assert_eq!(positions.len(), 30, "{positions:?}");
    assert!(positions.is_sorted_by(|one, next| one < next), "{positions:?}");

    // The API, while it revokes: its client repeats the request and gets one revocation.
    let mut links = vec![link];
    for label in ["one", "two"] {
        let request = client.post(cluster.api("/v1/orgs/acme/workspaces/main/links")).bearer_auth(&token);
        let answer = request.json(&json!({ "service": "web", "label": label })).send().await.unwrap();
        links.push(answer.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned());
    }
    for (round, link) in links.iter().enumerate() {
        let request = cluster.owner(&client, &token).revoke(link);
        let asked = tokio::spawn(async move { request.send().await.map(|answer| answer.status()) });
        if round == 0 {
            // Appended, and perhaps not answered.
            until_answered(client.clone(), url.clone(), cookie.clone(), StatusCode::GONE).await;
        } else {
            // On its way.
            tokio::task::yield_now().await;
        }
        api.kill9();
        let _ = asked.await.unwrap();
        api = cluster.start("api");
        cluster.owner(&client, &token).revoke_until_answered(link).await;
        cluster.owner(&client, &token).revoke_until_answered(link).await;
    }
    let revoked = cluster.owner(&client, &token).count("dev_link.revoked").await;
    assert_eq!(revoked, links.len(), "one event for each link");
    for process in [&mut gateway, &mut api, &mut projector] {
        assert!(process.terminate(DEADLINE).success(), "{}", process.stderr());
    }
}
