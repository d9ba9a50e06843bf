//! The review over NATS JetStream and PostgreSQL, with API, gateway, projector and reactors as processes of their own,
//! each killed with SIGKILL and started again in the middle.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests panic, and hand tools' paths on")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use envforge_testkit::{NatsServer, Postgres, PostgresDatabase, TestDir, TestProcess, eventually, free_port};
use reqwest::header::{COOKIE, LOCATION, ORIGIN, SET_COOKIE};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

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
        let logs = self.place.path().join(format!("logs-{}-{role}", self.starts));
        std::fs::create_dir_all(&logs).unwrap();
        let mut process = TestProcess::spawn(role, &command, &logs);
        process.wait_ready("its first line", DEADLINE, |process| process.stdout().contains('\n').then_some(()));
        process
    }

    fn api(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.api_port)
    }
}

/// The demo app as a Git repository of its own.
fn repository(below: &Path) -> PathBuf {
    let root = below.join("orders");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/orders");
    let copied = Command::new("cp").args(["-r", source]).arg(&root).status().unwrap();
    assert!(copied.success());
    for arguments in [
        &["init", "-q", "-b", "main"][..],
        &["add", "-A"],
        &["-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-q", "-m", "first"],
    ] {
        assert!(Command::new("git").args(arguments).current_dir(&root).status().unwrap().success());
    }
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
    let root = repository(cluster.place.path());
    post("/v1/orgs/acme/projects", json!({ "slug": "orders", "name": "Orders", "repository": root })).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_review_survives_the_death_of_every_process_over_nats_and_postgres() {
    let mut cluster = Cluster::new();
    let password = cluster.set_up();
    let mut projector = cluster.start("projector");
    let mut api = cluster.start("api");
    // A gateway stands beside the reactors, and sees their machine's key.
    let mut reactors = cluster.start("reactors");
    let mut gateway = cluster.start("gateway");
    // Browsers resolve everything below `localhost` to this machine; a library asks the system, which may not.
    let loopback = std::net::SocketAddr::from(([127, 0, 0, 1], cluster.gateway_port));
    let client = Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .resolve("dev.localhost", loopback)
        .resolve("web--main--acme.dev.localhost", loopback)
        .build()
        .unwrap();

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
