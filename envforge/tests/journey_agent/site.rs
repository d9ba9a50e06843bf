//! A control plane on fixed ports, a developer, and agents, all as processes of their own.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use envforge_testkit::{TestDir, TestProcess, eventually, free_port};
use reqwest::header::{ACCEPT, COOKIE, LOCATION, ORIGIN, SET_COOKIE};
use reqwest::{Client, StatusCode};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
const OWNER: &str = "owner@envforge.localhost";
/// Writes its process id down: whoever still answers with it was not started anew.
const MANIFEST: &str = "\
version: 1
services:
  web:
    command: echo $$ >> \"$ENVFORGE_DATA_DIR/starts\"; cd \"$ENVFORGE_DATA_DIR\"; exec python3 -m http.server \"$PORT\" --bind \"$HOST\"
    route: { web: {} }
    readiness: { http: /, interval: 100ms, deadline: 60s }
";

pub(crate) struct Site {
    pub(crate) dir: TestDir,
    api_port: u16,
    gateway_port: u16,
    pub(crate) agents_port: u16,
    certificate_seconds: u64,
    password: String,
    starts: u32,
    /// Every answer of the command line, by what was asked.
    answers: Mutex<Vec<(String, Vec<u8>)>>,
}

impl Site {
    pub(crate) fn new() -> (Self, TestProcess) {
        Self::with_certificates_of(86_400)
    }

    pub(crate) fn with_certificates_of(certificate_seconds: u64) -> (Self, TestProcess) {
        let dir = TestDir::new();
        let ports = [free_port(), free_port(), free_port()];
        let [api_port, gateway_port, agents_port] = ports;
        let password = String::new();
        let answers = Mutex::default();
        let mut site =
            Self { dir, api_port, gateway_port, agents_port, certificate_seconds, password, starts: 0, answers };
        let (dev, started) = site.start();
        site.password = started["owner_password"].as_str().unwrap().to_owned();
        site.repository();
        site.login();
        (site, dev)
    }

    /// Roles in one process around NATS and PostgreSQL, none of which runs workspaces itself.
    pub(crate) fn over(nats: &str, database_url: &str) -> (Self, TestProcess) {
        let site = Self::set_up(nats, database_url);
        let roles = site.started("roles", &site.roles(nats, "127.0.0.1"));
        site.begin();
        (site, roles)
    }

    /// Keys and the first owner, around NATS and PostgreSQL.
    pub(crate) fn set_up(nats: &str, database_url: &str) -> Self {
        let dir = TestDir::new();
        let [api_port, gateway_port, agents_port] = [free_port(), free_port(), free_port()];
        let (certificate_seconds, password) = (86_400, "plum kite engine 7".to_owned());
        let answers = Mutex::default();
        let site = Self { dir, api_port, gateway_port, agents_port, certificate_seconds, password, starts: 1, answers };
        let owner = site.dir.join("owner-password");
        std::fs::write(site.dir.join("database-url"), database_url).unwrap();
        std::fs::write(&owner, &site.password).unwrap();
        let mut setup = site.stores(nats, &["setup"]);
        setup.args(["--org", "acme", "--owner-email", OWNER, "--owner-password-file"]).arg(&owner);
        let set_up = setup.output().unwrap();
        assert!(set_up.status.success(), "{}", String::from_utf8_lossy(&set_up.stderr));
        site
    }

    pub(crate) fn stores(&self, nats: &str, verb: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
        command.args(verb).args(["--nats", nats, "--database-url-file"]).arg(self.dir.join("database-url"));
        command.arg("--keys").arg(self.dir.join("keys"));
        command
    }

    /// All roles but those that run workspaces. `agents`: the address at which agents find them.
    pub(crate) fn roles(&self, nats: &str, agents: &str) -> Command {
        self.serve(&["api", "gateway", "projector", "agents"], nats, agents)
    }

    /// Some roles in one process.
    pub(crate) fn serve(&self, roles: &[&str], nats: &str, agents: &str) -> Command {
        let mut serve = self.stores(nats, &[&["serve", "--allow-local-repositories"], roles].concat());
        serve.args(["--gateway-url", &format!("http://dev.localhost:{}", self.gateway_port)]);
        for (name, address, port) in [
            ("listen", "127.0.0.1", self.api_port),
            ("gateway-listen", "127.0.0.1", self.gateway_port),
            ("agents-listen", agents, self.agents_port),
        ] {
            serve.arg(format!("--{name}")).arg(format!("{address}:{port}"));
        }
        serve.arg("--runtime").arg(self.dir.join("runtime"));
        serve
    }

    /// A repository, and the owner signed in.
    pub(crate) fn begin(&self) {
        self.repository();
        self.login();
    }

    /// The control plane, where it was before.
    pub(crate) fn start(&mut self) -> (TestProcess, Value) {
        self.starts += 1;
        let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
        command.args(["dev", "--json", "--data"]).arg(self.dir.join("data"));
        for (name, port) in
            [("listen", self.api_port), ("gateway-listen", self.gateway_port), ("agents-listen", self.agents_port)]
        {
            command.arg(format!("--{name}")).arg(format!("127.0.0.1:{port}"));
        }
        command.arg("--agent-certificate-seconds").arg(self.certificate_seconds.to_string());
        started(&format!("dev-{}", self.starts), &command, &self.dir)
    }

    fn repository(&self) {
        std::fs::create_dir_all(self.dir.join("orders")).unwrap();
        self.git(&["init", "-q", "-b", "main"]);
        self.commit(MANIFEST);
    }

    /// Commits a manifest.
    pub(crate) fn commit(&self, manifest: &str) {
        std::fs::write(self.dir.join("orders/envforge.yml"), manifest).unwrap();
        self.git(&["add", "."]);
        self.git(&["commit", "-q", "-m", "one"]);
    }

    fn git(&self, args: &[&str]) {
        let author = ["-c", "user.name=Dana", "-c", "user.email=dana@acme.example", "-c", "commit.gpgsign=false"];
        let mut git = Command::new("git");
        assert!(git.args(author).args(args).current_dir(self.dir.join("orders")).status().unwrap().success());
    }

    /// Sets a secret of the project.
    pub(crate) fn set_secret(&self, name: &str, value: &str, more: &[&str]) {
        let output = self.client(&[&["secret", "set", name, "--project", "orders"], more].concat(), value);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn login(&self) {
        let api = format!("http://127.0.0.1:{}", self.api_port);
        let output = self.client(&["login", "--api", &api, "--email", OWNER, "--password-stdin"], &self.password);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// A command line of whoever is signed in in that folder.
    pub(crate) fn command_of(&self, who: &str, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
        command.args(args).env("ENVFORGE_CONFIG_DIR", self.dir.join(who)).env("ENVFORGE_CREDENTIALS", "file");
        command.env_remove("ENVFORGE_API").env_remove("ENVFORGE_ORG").env("TERM", "xterm");
        command.current_dir(self.dir.join("orders"));
        command
    }

    /// An access token of the owner, from the API itself.
    pub(crate) async fn access_token(&self) -> String {
        let login = serde_json::json!({ "email": OWNER, "password": self.password });
        let asked = self.browser().post(format!("{}/v1/auth/login", self.api())).json(&login);
        let answer: Value = asked.send().await.unwrap().error_for_status().unwrap().json().await.unwrap();
        answer["access_token"].as_str().unwrap().to_owned()
    }

    /// Somebody of the organization's people, with a password, as a developer.
    pub(crate) fn add_developer(&self, email: &str, password: &str) {
        let add = ["org", "member", "add", "--email", email, "--name", "Dana", "--password-stdin"];
        let added = self.run("config", &add, password);
        assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
        self.json(&["org", "role", "assign", email, "developer"]);
    }

    /// The owner, at another API from another machine.
    pub(crate) fn sign_in_owner_as(&self, who: &str, api: &str) {
        self.sign_in_as(who, OWNER, &self.password, api);
    }

    /// `who`: the folder in which that person's machine keeps what a login was.
    pub(crate) fn sign_in_as(&self, who: &str, email: &str, password: &str, api: &str) {
        let signed_in = self.run(who, &["login", "--api", api, "--email", email, "--password-stdin"], password);
        assert!(signed_in.status.success(), "{}", String::from_utf8_lossy(&signed_in.stderr));
    }

    /// A command line of somebody's, to its end.
    pub(crate) fn run(&self, who: &str, args: &[&str], stdin: &str) -> Output {
        let mut command = self.command_of(who, args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A command that asks for nothing may be gone already.
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        child.wait_with_output().unwrap()
    }

    pub(crate) fn answers(&self) -> Vec<(String, Vec<u8>)> {
        self.answers.lock().unwrap().clone()
    }

    pub(crate) fn client(&self, args: &[&str], stdin: &str) -> Output {
        let mut command = self.command_of("config", args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A command that asks for nothing may be gone already.
        let _ = writeln!(child.stdin.take().unwrap(), "{stdin}");
        let output = child.wait_with_output().unwrap();
        let answer = [&output.stdout[..], &output.stderr].concat();
        self.answers.lock().unwrap().push((format!("`envforge {}`", args.join(" ")), answer));
        output
    }

    #[track_caller]
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let output = self.client(&[&["--json"], args].concat(), "");
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        serde_json::from_str(text.lines().last().unwrap_or("null")).unwrap()
    }

    #[track_caller]
    pub(crate) fn shown(&self, args: &[&str]) -> String {
        let output = self.client(args, "");
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    pub(crate) fn refused(&self, args: &[&str]) -> String {
        let output = self.client(args, "");
        assert_ne!(output.status.code(), Some(0), "{args:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Issues an enrolment for a host; the file with its token.
    pub(crate) fn enrolment(&self, name: &str) -> PathBuf {
        let file = self.dir.join(format!("{name}-token"));
        self.json(&["host", "enrol", name, "--out", file.to_str().unwrap()]);
        file
    }

    pub(crate) fn agent_command(&self, name: &str, at: &str, token: Option<&PathBuf>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
        command.args(["agent", "--json", "--log-format", "text", "--control-plane", at, "--data"]);
        command.arg(self.dir.join(name));
        // Where a test closes the folder of its site, everything runs as root on purpose.
        command.arg("--services-as-own-user");
        if let Some(token) = token {
            command.arg("--enrolment-file").arg(token);
        }
        command
    }

    /// An agent that has enrolled.
    pub(crate) fn agent(&self, name: &str, at: &str, token: Option<&PathBuf>) -> TestProcess {
        started(name, &self.agent_command(name, at, token), &self.dir).0
    }

    pub(crate) fn api(&self) -> String {
        format!("http://127.0.0.1:{}", self.api_port)
    }

    /// An agent of a program that lies elsewhere.
    pub(crate) fn agent_of(&self, program: &std::path::Path, name: &str) -> TestProcess {
        let usual = self.agent_command(name, &self.at(), None);
        let mut command = Command::new(program);
        command.args(usual.get_args());
        self.started(name, &command)
    }

    pub(crate) fn started(&self, name: &str, command: &Command) -> TestProcess {
        started(name, command, &self.dir).0
    }

    pub(crate) fn at(&self) -> String {
        format!("127.0.0.1:{}", self.agents_port)
    }

    pub(crate) async fn until_host(&self, name: &str, state: &str) {
        eventually(&format!("the host {name} to be {state}"), DEADLINE, async || {
            let page = self.json(&["host", "ls"]);
            let items = page["items"].as_array().unwrap().clone();
            items.iter().any(|host| host["name"] == name && host["state"] == state).then_some(())
        })
        .await;
    }

    pub(crate) async fn until_phase(&self, phase: &str) {
        eventually(&format!("the runtime to be {phase}"), DEADLINE, async || {
            let shown = self.json(&["workspace", "show", "main"]);
            (shown["runtime"]["phase"] == phase).then_some(())
        })
        .await;
    }

    /// Where a host keeps what its services write; `None` where the workspace never was on it.
    pub(crate) fn starts_on(&self, name: &str) -> Vec<String> {
        let workspaces = self.dir.join(name).join("runtime/workspaces");
        let places = std::fs::read_dir(workspaces).into_iter().flatten().flatten();
        let read = |place: std::fs::DirEntry| std::fs::read_to_string(place.path().join("data/starts")).ok();
        places.filter_map(read).flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
    }

    /// A client that finds the gateway: browsers resolve everything below `localhost` by themselves.
    pub(crate) fn browser(&self) -> Client {
        let loopback = std::net::SocketAddr::from(([127, 0, 0, 1], self.gateway_port));
        Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .resolve("dev.localhost", loopback)
            .resolve("web--main--acme.dev.localhost", loopback)
            .build()
            .unwrap()
    }

    /// What the app serves to somebody who comes by a new link.
    pub(crate) async fn app_through_the_gateway(&self) -> String {
        let reviewer = self.reviewer().await;
        eventually("the app", DEADLINE, async || {
            let (status, text) = reviewer.answer("/starts").await.ok()?;
            (status == StatusCode::OK).then_some(text)
        })
        .await
    }

    /// Opens a new link as a reviewer without a browser does.
    pub(crate) async fn reviewer(&self) -> Reviewer {
        let link = self.json(&["link", "create", "--label", "review", "--for", "1h"]);
        let share_url = link["share_url"].as_str().unwrap();
        let client = self.browser();
        let navigate = |request: reqwest::RequestBuilder, site: &str| {
            let request = request.header("Sec-Fetch-Site", site).header("Sec-Fetch-Mode", "navigate");
            request.header("Sec-Fetch-Dest", "document").header("User-Agent", "journey")
        };
        let origin = format!("http://dev.localhost:{}", self.gateway_port);
        let post = client.post(share_url).header(ORIGIN, origin);
        let opened = navigate(post, "same-origin").send().await.unwrap();
        assert_eq!(opened.status(), StatusCode::SEE_OTHER, "{}", opened.text().await.unwrap());
        let handoff = opened.headers()[LOCATION].to_str().unwrap().to_owned();
        let redeemed = navigate(client.get(&handoff), "same-site").send().await.unwrap();
        assert_eq!(redeemed.status(), StatusCode::SEE_OTHER);
        let cookie = redeemed.headers()[SET_COOKIE].to_str().unwrap().split(';').next().unwrap().to_owned();
        let url = handoff.split("/.envforge").next().unwrap().to_owned();
        Reviewer { client, cookie, url, gateway_port: self.gateway_port }
    }

    /// Events of the runtime, with the instants of the log's clock, oldest first.
    pub(crate) fn runtime_events(&self) -> Vec<(String, jiff::Timestamp)> {
        let replayed = self.shown(&["audit", "replay", "--json"]);
        let events = replayed.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let runtime = events.filter(|event| event["type"].as_str().unwrap().contains("runtime."));
        runtime
            .map(|event| {
                let name = event["type"].as_str().unwrap().to_owned();
                (name, event["time"].as_str().unwrap().parse().unwrap())
            })
            .collect()
    }

    /// What the meter has to say by the log alone: from each "ready" to the sleep that was asked for, or to the last word of a host that
    /// was lost.
    pub(crate) fn awake_ms(&self) -> u64 {
        let (mut total, mut ready, mut heard) = (0, None, None);
        for (name, at) in self.runtime_events() {
            let since = |from: Option<jiff::Timestamp>, to: jiff::Timestamp| {
                from.map_or(0, |from| u64::try_from((to.as_millisecond() - from.as_millisecond()).max(0)).unwrap())
            };
            if name.contains("runtime.ready") {
                (ready, heard) = (Some(at), Some(at));
            } else if name.contains("runtime.lease_renewed") {
                heard = Some(at);
            } else if name.contains("runtime.sleep_requested") {
                total += since(ready.take(), at);
            } else if name.contains("runtime.lost") || name.contains("runtime.failed") {
                total += heard.map_or(0, |heard| since(ready.take(), heard));
            }
        }
        total
    }

    /// Until the meter says what the log does.
    pub(crate) async fn until_metered(&self) {
        eventually("the meter says what the log does", DEADLINE, async || {
            let usage = self.json(&["usage"]);
            let items = usage["items"].as_array().unwrap().clone();
            let used = items.iter().map(|item| item["service_ms"].as_u64().unwrap_or_default()).sum::<u64>();
            (used == self.awake_ms() && used > 0).then_some(())
        })
        .await;
    }
}

/// Somebody who has come by a link.
#[derive(Clone)]
pub(crate) struct Reviewer {
    client: Client,
    cookie: String,
    url: String,
    gateway_port: u16,
}

impl Reviewer {
    /// Asks as a script of the app's own page does.
    pub(crate) async fn asks(&self, path: &str) -> (StatusCode, String) {
        self.answer(path).await.unwrap()
    }

    async fn answer(&self, path: &str) -> reqwest::Result<(StatusCode, String)> {
        let request = self.client.get(format!("{}{path}", self.url)).header(COOKIE, &self.cookie);
        let answer = request.header(ACCEPT, "application/json").send().await?;
        Ok((answer.status(), answer.text().await?))
    }

    /// A WebSocket to the app.
    pub(crate) async fn socket(&self, path: &str) -> WebSocketStream<TcpStream> {
        let mut request = format!("{}{path}", self.url.replace("http:", "ws:")).into_client_request().unwrap();
        request.headers_mut().insert(COOKIE, self.cookie.parse().unwrap());
        request.headers_mut().insert(ORIGIN, self.url.parse().unwrap());
        let stream = TcpStream::connect(("127.0.0.1", self.gateway_port)).await.unwrap();
        tokio_tungstenite::client_async(request, stream).await.unwrap().0
    }
}

fn started(name: &str, command: &Command, dir: &TestDir) -> (TestProcess, Value) {
    let mut process = TestProcess::spawn(name, command, dir.path());
    let line = process.wait_ready("the first line", DEADLINE, |process| {
        let out = process.stdout();
        out.contains('\n').then(|| serde_json::from_str(out.lines().next().unwrap()).unwrap())
    });
    (process, line)
}

pub(crate) fn is_dead(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

/// No machine, no address, nothing of where it connects from.
pub(crate) fn names_no_machine(shown: &str) -> bool {
    let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_else(|_| "no machine id".to_owned());
    !["127.0.0.1", "local-", machine.trim()].iter().any(|hidden| !hidden.is_empty() && shown.contains(hidden))
}
