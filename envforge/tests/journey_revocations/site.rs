//! The installation under test, its owner, and workspaces whose app says back what it hears.
//!
//! Not here: the people whose rights are taken (`person`).

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use envforge_testkit::{NatsServer, Postgres, PostgresDatabase, TestDir, TestProcess, eventually, free_port};
use serde_json::{Value, json};

use crate::wire::{Answer, Connection, Request};

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
pub(crate) const PASSWORD: &str = "correct horse battery staple 9";
const OWNER: &str = "owner@example.org";

/// One process of everything, or several of each role that a request can meet.
pub(crate) struct Site {
    pub(crate) dir: TestDir,
    pub(crate) apis: Vec<SocketAddr>,
    pub(crate) gateways: Vec<SocketAddr>,
    /// As browsers know the API.
    pub(crate) api_url: String,
    /// As they know the gateway: `dev.localhost:20123`.
    pub(crate) gateway_name: String,
    owner: String,
    /// The owner's id.
    pub(crate) owner_user: String,
    workspaces: AtomicUsize,
    /// Of the owner's latest change: what they read is at least as new.
    position: AtomicU64,
    // Processes end before what they talk to. In a cluster the first one is the projector, behind it the APIs, and the last ones
    // are the gateways.
    processes: Vec<TestProcess>,
    _servers: Option<(NatsServer, PostgresDatabase)>,
}

/// A workspace that is awake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Workspace {
    pub(crate) number: usize,
    pub(crate) slug: String,
    /// Host label of its web service.
    pub(crate) label: String,
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn start(name: &str, command: &Command, place: &Path) -> TestProcess {
    let logs = place.join(format!("logs-{name}"));
    std::fs::create_dir_all(&logs).unwrap();
    let mut process = TestProcess::spawn(name, command, &logs);
    process.wait_ready("its first line", DEADLINE, |process| process.stdout().contains('\n').then_some(()));
    process
}

impl Site {
    pub(crate) async fn dev() -> Self {
        Self::dev_with(|_, _| Vec::new()).await
    }

    /// With more arguments, made of the API's address and the folder of the test.
    pub(crate) async fn dev_with(more: impl FnOnce(&str, &TestDir) -> Vec<OsString>) -> Self {
        let (dir, api, gateway) = (TestDir::new(), free_port(), free_port());
        let password_file = password_file(&dir);
        let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
        command.args(["dev", "--json", "--log", "warn", "--bcrypt-cost", "10", "--owner-email", OWNER]);
        command.args(["--listen", &loopback(api).to_string(), "--gateway-listen", &loopback(gateway).to_string()]);
        command.arg("--owner-password-file").arg(&password_file).arg("--data").arg(dir.join("data"));
        command.args(more(&format!("http://{}", loopback(api)), &dir));
        let processes = vec![start("dev", &command, dir.path())];
        Self::furnish(dir, vec![api], vec![gateway], processes, None).await
    }

    /// Two APIs and so many gateways over NATS and PostgreSQL.
    pub(crate) async fn cluster(gateways: usize) -> Self {
        Self::cluster_of([&["api"], &["api"]], &["reactors"], gateways).await
    }

    /// The same with these roles in the APIs' processes, and in one process more where that has any.
    pub(crate) async fn cluster_of(with_api: [&[&str]; 2], beside: &[&str], gateways: usize) -> Self {
        let (dir, nats, database) = (TestDir::new(), NatsServer::start(), Postgres::shared());
        let database_url_file = dir.join("database-url");
        std::fs::write(&database_url_file, database.database_url()).unwrap();
        let password_file = password_file(&dir);
        let (apis, gateways) = ([free_port(), free_port()], Vec::from_iter((0..gateways).map(|_| free_port())));
        let command = |verb: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
            command.args(verb).args(["--nats", &nats.url(), "--log", "warn"]);
            command.arg("--database-url-file").arg(&database_url_file).arg("--keys").arg(dir.join("keys"));
            command
        };
        let mut setup = command(&["setup", "--org", "acme", "--owner-email", OWNER, "--owner-password-file"]);
        setup = with_argument_after(&setup, "--owner-password-file", &password_file);
        let output = setup.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut processes = Vec::new();
        let [first, second] = with_api;
        let all = (0..gateways.len()).map(|number| (&["gateway"][..], number));
        let all = [(&["projector"][..], 0), (first, 0), (second, 1), (beside, 0)].into_iter().chain(all);
        for (roles, number) in all.filter(|(roles, _)| !roles.is_empty()) {
            let mut command = command(&[&["serve"], roles].concat());
            let role = roles[0];
            command.args(["--bcrypt-cost", "10", "--allow-local-repositories"]);
            command.args(["--listen", &loopback(apis[number % 2]).to_string()]);
            command.args(["--gateway-listen", &loopback(gateways[number % gateways.len()]).to_string()]);
            command.args(["--gateway-url", &format!("http://dev.localhost:{}", gateways[0])]);
            command.args(["--sign-in-url", &format!("http://127.0.0.1:{}", apis[0])]);
            command.arg("--runtime").arg(dir.join("runtime"));
            command.arg("--state").arg(dir.join(format!("state-{role}-{number}")));
            processes.push(start(&format!("{role}-{number}"), &command, dir.path()));
        }
        Self::furnish(dir, apis.into(), gateways, processes, Some((nats, database))).await
    }

    async fn furnish(
        dir: TestDir,
        apis: Vec<u16>,
        gateways: Vec<u16>,
        processes: Vec<TestProcess>,
        servers: Option<(NatsServer, PostgresDatabase)>,
    ) -> Self {
        let mut site = Self {
            api_url: format!("http://127.0.0.1:{}", apis[0]),
            gateway_name: format!("dev.localhost:{}", gateways[0]),
            apis: apis.into_iter().map(loopback).collect(),
            gateways: gateways.into_iter().map(loopback).collect(),
            owner: String::new(),
            owner_user: String::new(),
            workspaces: AtomicUsize::new(0),
            position: AtomicU64::new(0),
            processes,
            _servers: servers,
            dir,
        };
        let login = site.api("POST", "/v1/auth/login").json(&json!({ "email": OWNER, "password": PASSWORD }));
        let signed_in = site.send(&login, Ipv4Addr::LOCALHOST).await;
        assert_eq!(signed_in.status, 200, "{signed_in:?}");
        site.owner = text(&signed_in.json(), "access_token");
        site.owner_user = text(&signed_in.json()["user"], "id");
        let repository = repository(site.dir.path());
        let project = json!({ "slug": "app", "name": "App", "repository": repository });
        site.as_owner("POST", "/v1/orgs/acme/projects", Some(&project)).await;
        site
    }

    pub(crate) fn api(&self, method: &'static str, path: impl Into<String>) -> Request {
        Request::new(method, self.api_url.trim_start_matches("http://"), path)
    }

    /// A request to the share pages.
    pub(crate) fn share(&self, method: &'static str, path: &str) -> Request {
        Request::new(method, &self.gateway_name, path)
    }

    /// A request to a workspace.
    pub(crate) fn app(&self, method: &'static str, label: &str, path: &str) -> Request {
        Request::new(method, &format!("{label}.{}", self.gateway_name), path)
    }

    /// What a page of the app sends.
    pub(crate) fn form_of_app(&self, label: &str) -> Request {
        let origin = format!("http://{label}.{}", self.gateway_name);
        self.app("POST", label, "/form").fetch().with("origin", origin).form("a=b".to_owned())
    }

    /// To the first API, over a connection of its own.
    pub(crate) async fn send(&self, request: &Request, from: Ipv4Addr) -> Answer {
        Connection::new(self.apis[0], from).send(request).await.0
    }

    /// To the first gateway, over a connection of its own.
    pub(crate) async fn send_to_gateway(&self, request: &Request, from: Ipv4Addr) -> Answer {
        Connection::new(self.gateways[0], from).send(request).await.0
    }

    /// What the owner asks for is done.
    pub(crate) async fn as_owner(&self, method: &'static str, path: &str, body: Option<&Value>) -> Answer {
        self.as_owner_at(0, method, path, body).await
    }

    /// At one of the APIs.
    pub(crate) async fn as_owner_at(
        &self,
        api: usize,
        method: &'static str,
        path: &str,
        body: Option<&Value>,
    ) -> Answer {
        let mut request = self.api(method, path).bearer(&self.owner);
        if let Some(body) = body {
            request = request.json(body);
        }
        if method == "GET" {
            request = request.with("envforge-min-position", self.position.load(Ordering::Relaxed).to_string());
        }
        let answer = Connection::new(self.apis[api], Ipv4Addr::LOCALHOST).send(&request).await.0;
        assert!((200..300).contains(&answer.status), "the owner's {method} {path}: {answer:?}");
        if let Some(position) = answer.header("envforge-position") {
            self.position.fetch_max(position.parse().unwrap(), Ordering::Relaxed);
        }
        answer
    }

    /// Makes a workspace and waits until its app answers.
    pub(crate) async fn workspace(&self) -> Workspace {
        let number = self.workspaces.fetch_add(1, Ordering::Relaxed);
        let slug = format!("place-{number}");
        let manifest = std::fs::read_to_string(self.dir.path().join("app/envforge.yml")).unwrap();
        let made = json!({ "project": "app", "slug": slug, "branch": "main", "manifest": manifest });
        self.as_owner("POST", "/v1/orgs/acme/workspaces", Some(&made)).await;
        self.as_owner("POST", &format!("/v1/orgs/acme/workspaces/{slug}/wake"), None).await;
        eventually("the app", DEADLINE, async || {
            let runtime = self.as_owner("GET", &format!("/v1/orgs/acme/workspaces/{slug}/runtime"), None).await;
            (runtime.json()["phase"] == "ready").then_some(())
        })
        .await;
        Workspace { number, label: format!("web--{slug}--acme"), slug }
    }

    /// The process of a gateway.
    pub(crate) fn gateway_process(&mut self, number: usize) -> &mut TestProcess {
        let first = self.processes.len() - self.gateways.len();
        &mut self.processes[first + number]
    }

    /// One that was killed gets no more requests.
    pub(crate) fn forget_last_gateway(&mut self) {
        self.processes.pop();
        self.gateways.pop();
    }

    /// As receipts call it.
    pub(crate) fn gateway_id(&mut self, number: usize) -> String {
        named(self.gateway_process(number), "gateway_id")
    }

    /// The process of an API, in a cluster.
    pub(crate) fn api_process(&mut self, number: usize) -> &mut TestProcess {
        &mut self.processes[1 + number]
    }

    /// As receipts call it.
    pub(crate) fn api_id(&mut self, number: usize) -> String {
        named(self.api_process(number), "api_id")
    }

    /// What the processes complained about.
    pub(crate) fn complaints(&self) -> String {
        self.processes.iter().map(TestProcess::stderr).collect()
    }
}

pub(crate) fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap_or_else(|| panic!("{field} is missing in {value}")).to_owned()
}

/// What a process calls itself when it starts.
fn named(process: &TestProcess, id: &str) -> String {
    let started: Value = serde_json::from_str(process.stdout().lines().next().unwrap()).unwrap();
    text(&started, id)
}

fn password_file(dir: &TestDir) -> PathBuf {
    let path = dir.join("password");
    std::fs::write(&path, PASSWORD).unwrap();
    path
}

fn with_argument_after(command: &Command, option: &str, argument: &Path) -> Command {
    let mut changed = Command::new(command.get_program());
    for known in command.get_args() {
        changed.arg(known);
        if known == option {
            changed.arg(argument);
        }
    }
    changed
}

const MANIFEST: &str = "\
version: 1
idle_sleep: 30m
services:
  web:
    command: exec python3 app.py
    route: { web: {}, websockets: [/live] }
    readiness: { http: /healthz, interval: 100ms, deadline: 30s }
    cpu: 100m
    memory: 64Mi
";

/// Answers everything, and says back what it hears over a WebSocket.
const APP: &str = r#"
import base64, hashlib, http.server, os

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Upgrade", "").lower() == "websocket":
            return self.live()
        self.send_response(200)
        self.send_header("Content-Length", "7")
        self.end_headers()
        self.wfile.write(b"the app")
    do_GET = do_POST = answer
    def live(self):
        self.close_connection = True
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.end_headers()
        self.wfile.flush()
        while head := self.rfile.read(2):
            mask, size = self.rfile.read(4), head[1] & 0x7F
            said = bytes(byte ^ mask[i % 4] for i, byte in enumerate(self.rfile.read(size)))
            self.wfile.write(bytes([head[0], size]) + said)
            self.wfile.flush()
            if head[0] & 0x0F == 8:
                return
    def log_message(self, *args):
        pass

class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

Server(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"#;

fn repository(below: &Path) -> PathBuf {
    let root = below.join("app");
    std::fs::create_dir_all(&root).unwrap();
    std::fs::write(root.join("envforge.yml"), MANIFEST).unwrap();
    std::fs::write(root.join("app.py"), APP).unwrap();
    envforge_testkit::commit_all(&root);
    root
}
