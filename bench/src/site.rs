//! A whole installation under measure: the product's own binary, as `dev` in one process or as roles around NATS and PostgreSQL.
//!
//! It signs in, makes a workspace whose app is this program again, issues links and opens them as a browser does. Not here: what is measured.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use envforge_testkit::{NatsServer, Postgres, TestDir, TestProcess, free_port};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper::header::{HeaderMap, HeaderValue, LOCATION, SET_COOKIE};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpSocket;

use crate::machine;

const DEADLINE: Duration = Duration::from_secs(60);
const DOMAIN: &str = "dev.localhost";
const EMAIL: &str = "owner@example.org";
/// The host's traces say when a wake was ordered and when its services were ready.
const TRACES: [&str; 4] = ["--log", "warn,envforge_runtime=info", "--log-format", "json"];
/// The label of the workspace's `web`.
const LABEL: &str = "web--main--acme";

/// Answers of an API or a gateway.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// One keep-alive connection.
pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
}

impl Connection {
    /// From another loopback address, so that no limit of connections per address is met by the benchmark itself.
    pub(crate) async fn open(address: SocketAddr, from: Ipv4Addr) -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((from, 0)))?;
        let stream = socket.connect(address).await.with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender })
    }

    pub(crate) async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Answer> {
        self.sender.ready().await?;
        let (head, body) = self.sender.send_request(request).await?.into_parts();
        Ok(Answer { status: head.status, headers: head.headers, body: body.collect().await?.to_bytes() })
    }
}

/// A session of a link in a browser.
#[derive(Clone)]
pub(crate) struct Visit {
    pub(crate) link: String,
    pub(crate) cookie: String,
}

/// The installation, its owner signed in, its one workspace made.
pub(crate) struct Site {
    api: SocketAddr,
    pub(crate) gateways: Vec<SocketAddr>,
    /// The port that browsers use; where several gateways listen, a balancer would.
    public_port: u16,
    token: String,
    // Processes end before what they talk to.
    processes: Vec<TestProcess>,
    /// In which of them runtimes run.
    host: usize,
    _servers: Option<(NatsServer, Postgres)>,
    _place: TestDir,
}

impl Site {
    /// One process, embedded stores.
    pub(crate) async fn dev() -> Result<Self> {
        let place = TestDir::new();
        let (api_port, gateway_port) = (free_port(), free_port());
        let password_file = password_file(place.path())?;
        let mut command = Command::new(product()?);
        command.args(["dev", "--json", "--owner-email", EMAIL, "--owner-password-file"]).arg(&password_file);
        command.args(TRACES);
        command.args(["--listen", &loopback(api_port).to_string()]);
        command
            .args(["--gateway-listen", &loopback(gateway_port).to_string(), "--data"])
            .arg(place.path().join("data"));
        let process = start("dev", &command, place.path());
        Self::furnish(place, api_port, vec![loopback(gateway_port)], gateway_port, vec![process], 0, None).await
    }

    /// A projector, an API, a reactor and so many gateways, each a process. The API reaches the reactor's machine over a relay.
    pub(crate) async fn cluster(gateways: usize) -> Result<Self> {
        Self::cluster_of(&["projector", "api", "reactors"], gateways).await
    }

    /// The same with a process that agents connect to, and one agent, on which runtimes run.
    pub(crate) async fn cluster_with_agent(gateways: usize) -> Result<Self> {
        let mut site = Self::cluster_of(&["agents", "projector", "api", "reactors"], gateways).await?;
        let issued = site.call("POST", "/v1/orgs/acme/hosts", Some(&json!({ "name": "bench" }))).await?;
        let (token, place) = (site._place.path().join("token"), site._place.path());
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&token)?;
        file.write_all(issued["token"].as_str().context("an enrolment without a token")?.as_bytes())?;
        let mut command = Command::new(product()?);
        command.args(["agent", "--json", "--control-plane", &site.agents()?, "--enrolment-file"]).arg(&token);
        command.args(TRACES).arg("--data").arg(place.join("agent"));
        let agent = start("agent", &command, place);
        site.host = site.processes.len();
        site.processes.push(agent);
        let deadline = Instant::now() + DEADLINE;
        loop {
            let hosts = site.call("GET", "/v1/orgs/acme/hosts", None).await?;
            let mut active = hosts["items"].as_array().into_iter().flatten();
            if active.any(|host| host["state"] == "active") {
                return Ok(site);
            }
            ensure!(Instant::now() < deadline, "the agent is no host: {hosts}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn cluster_of(roles: &[&str], gateways: usize) -> Result<Self> {
        let place = TestDir::new();
        let (nats, postgres) = (NatsServer::start(), machine::usual_postgres());
        let database_url_file = place.path().join("database-url");
        std::fs::write(&database_url_file, postgres.create_database("site"))?;
        let password_file = password_file(place.path())?;
        let (api_port, public_port, relay) = (free_port(), free_port(), loopback(free_port()).to_string());
        let command = |verb: &[&str]| {
            let mut command = Command::new(product()?);
            command.args(verb).args(TRACES).args(["--nats", &nats.url(), "--database-url-file"]);
            command.arg(&database_url_file).arg("--keys").arg(place.path().join("keys"));
            anyhow::Ok(command)
        };
        let mut setup = command(&["setup", "--org", "acme", "--owner-email", EMAIL, "--owner-password-file"])?;
        setup = with_password_file(setup, &password_file);
        let output = setup.output().context("envforge setup")?;
        ensure!(output.status.success(), "envforge setup: {}", String::from_utf8_lossy(&output.stderr));
        let mut processes = Vec::new();
        let mut serve = |role: &str, name: &str, gateway_port: u16| {
            let mut command = command(&["serve", role])?;
            command.args(["--listen", &loopback(api_port).to_string()]);
            command.args(["--gateway-listen", &loopback(gateway_port).to_string()]);
            command.args(["--gateway-url", &format!("http://{DOMAIN}:{public_port}"), "--runtime"]);
            command.arg(place.path().join("runtime")).arg("--allow-local-repositories");
            command.args(["--agents-listen", &loopback(0).to_string()]);
            match role {
                "api" => command.args(["--relays", &relay]),
                "reactors" => command.args(["--relay-listen", &relay]),
                _ => &mut command,
            };
            processes.push(start(name, &command, place.path()));
            anyhow::Ok(())
        };
        for role in roles {
            serve(role, role, public_port)?;
        }
        let ports: Vec<u16> = std::iter::once(public_port).chain((1..gateways).map(|_| free_port())).collect();
        for (number, port) in ports.iter().enumerate() {
            serve("gateway", &format!("gateway-{number}"), *port)?;
        }
        let gateways = ports.into_iter().map(loopback).collect();
        let host = roles.iter().position(|role| *role == "reactors").context("nobody runs runtimes")?;
        Self::furnish(place, api_port, gateways, public_port, processes, host, Some((nats, postgres))).await
    }

    async fn furnish(
        place: TestDir,
        api_port: u16,
        gateways: Vec<SocketAddr>,
        public_port: u16,
        processes: Vec<TestProcess>,
        host: usize,
        servers: Option<(NatsServer, Postgres)>,
    ) -> Result<Self> {
        let repository = repository(place.path())?;
        let mut site = Self {
            api: loopback(api_port),
            gateways,
            public_port,
            token: String::new(),
            processes,
            host,
            _servers: servers,
            _place: place,
        };
        let login = json!({ "email": EMAIL, "password": PASSWORD });
        let signed_in = site.call("POST", "/v1/auth/login", Some(&login)).await?;
        site.token = signed_in["access_token"].as_str().context("no access token")?.to_owned();
        let project = json!({ "slug": "app", "name": "App", "repository": repository });
        site.call("POST", "/v1/orgs/acme/projects", Some(&project)).await?;
        let manifest = std::fs::read_to_string(repository.join("envforge.yml"))?;
        let workspace = json!({ "project": "app", "slug": "main", "branch": "main", "manifest": manifest });
        site.call("POST", "/v1/orgs/acme/workspaces", Some(&workspace)).await?;
        Ok(site)
    }

    /// A connection to the API and one call over it.
    pub(crate) async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let mut connection = self.api_connection().await?;
        self.call_over(&mut connection, method, path, body).await
    }

    /// The process that was started first.
    pub(crate) fn process(&self) -> &TestProcess {
        &self.processes[0]
    }

    /// What the process in which runtimes run has traced.
    pub(crate) fn host_traces(&self) -> String {
        self.processes[self.host].stderr()
    }

    /// Where agents connect, as the first line of the process that was started first names it.
    pub(crate) fn agents(&self) -> Result<String> {
        let out = self.process().stdout();
        let line: Value = serde_json::from_str(out.lines().next().context("no first line")?)?;
        Ok(line["agents"].as_str().context("it listens for no agents")?.to_owned())
    }

    pub(crate) fn api(&self) -> SocketAddr {
        self.api
    }

    pub(crate) async fn api_connection(&self) -> Result<Connection> {
        Connection::open(self.api, Ipv4Addr::LOCALHOST).await
    }

    pub(crate) async fn call_over(
        &self,
        connection: &mut Connection,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value> {
        let mut request = Request::builder().method(method).uri(path).header("host", self.api.to_string());
        if !self.token.is_empty() {
            request = request.header("authorization", format!("Bearer {}", self.token));
        }
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let payload = body.map(Value::to_string).unwrap_or_default();
        let answer = connection.send(request.body(Full::from(payload))?).await?;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        ensure!(answer.status.is_success(), "{method} {path}: {} {text}", answer.status);
        Ok(serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// Issues a link and opens it, as a browser would.
    pub(crate) async fn visit(&self) -> Result<Visit> {
        let issued = json!({ "service": "web", "label": "measured" });
        let issued = self.call("POST", "/v1/orgs/acme/workspaces/main/links", Some(&issued)).await?;
        let text = |field: &str| Ok::<_, anyhow::Error>(issued[field].as_str().context("the link")?.to_owned());
        let (link, share_url) = (text("id")?, text("share_url")?);
        let share_path = share_url.split_once("/share/").map(|(_, token)| format!("/share/{token}"));
        let share_path = share_path.context("the share URL names no share page")?;
        let domain = format!("{DOMAIN}:{}", self.public_port);
        let mut connection = Connection::open(self.gateways[0], Ipv4Addr::LOCALHOST).await?;
        let navigate = |method: &str, path: &str, host: &str, site: &str| {
            let request = Request::builder().method(method).uri(path).header("host", host);
            let request = request.header("sec-fetch-site", site).header("sec-fetch-mode", "navigate");
            let request = request.header("sec-fetch-dest", "document").header("user-agent", "bench");
            if method == "POST" { request.header("origin", format!("http://{host}")) } else { request }
        };
        // A gateway that has not seen the link yet says so; it follows the log.
        let deadline = Instant::now() + DEADLINE;
        let opened = loop {
            let request = navigate("POST", &share_path, &domain, "same-origin").body(Full::default())?;
            let answer = connection.send(request).await?;
            if answer.status == StatusCode::SEE_OTHER {
                break answer;
            }
            ensure!(Instant::now() < deadline, "the share page answers {}", answer.status);
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
        let location = opened.headers.get(LOCATION).context("no handoff")?.to_str()?.to_owned();
        let host = self.host();
        let path = location.split_once(&host).context("the handoff leads elsewhere")?.1.to_owned();
        let redeemed = connection.send(navigate("GET", &path, &host, "same-site").body(Full::default())?).await?;
        ensure!(redeemed.status == StatusCode::SEE_OTHER, "the handoff answers {}", redeemed.status);
        let cookie = redeemed.headers.get(SET_COOKIE).context("no cookie")?.to_str()?;
        let cookie = cookie.split(';').next().unwrap_or_default().to_owned();
        Ok(Visit { link, cookie })
    }

    /// The workspace's host as browsers write it.
    pub(crate) fn host(&self) -> String {
        format!("{LABEL}.{DOMAIN}:{}", self.public_port)
    }

    /// What a script of the page asks for.
    pub(crate) fn fetch(&self, visit: &Visit, path: &str) -> Result<Request<Full<Bytes>>> {
        let request = Request::builder().method("GET").uri(path).header("host", self.host());
        let request = request.header("accept", "application/json").header("sec-fetch-site", "same-origin");
        let request = request.header("sec-fetch-mode", "cors").header("sec-fetch-dest", "empty");
        Ok(request.header("cookie", HeaderValue::from_str(&visit.cookie)?).body(Full::default())?)
    }

    /// Waits until the app answers through each gateway; the first request wakes it.
    pub(crate) async fn until_it_answers(&self, visit: &Visit) -> Result<()> {
        let deadline = Instant::now() + DEADLINE;
        for gateway in &self.gateways {
            loop {
                let mut connection = Connection::open(*gateway, Ipv4Addr::LOCALHOST).await?;
                let answer = connection.send(self.fetch(visit, "/ping")?).await?;
                if answer.status == StatusCode::OK {
                    break;
                }
                if Instant::now() > deadline {
                    bail!("the app answers {}: {}", answer.status, String::from_utf8_lossy(&answer.body));
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        Ok(())
    }

    /// Opens a WebSocket through a gateway.
    pub(crate) async fn socket(
        &self,
        gateway: SocketAddr,
        from: Ipv4Addr,
        visit: &Visit,
    ) -> Result<crate::load::Socket> {
        use tokio_tungstenite::tungstenite::client::IntoClientRequest;
        let mut request = format!("ws://{}/live", self.host()).into_client_request()?;
        let headers = request.headers_mut();
        headers.insert("origin", HeaderValue::from_str(&format!("http://{}", self.host()))?);
        headers.insert("cookie", HeaderValue::from_str(&visit.cookie)?);
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((from, 0)))?;
        let stream = socket.connect(gateway).await?;
        stream.set_nodelay(true)?;
        let (socket, _) = tokio_tungstenite::client_async(request, stream).await.map_err(refused)?;
        Ok(socket)
    }

    /// Opens the WebSocket of a shell in the workspace.
    pub(crate) async fn shell(&self) -> Result<crate::load::Socket> {
        use tokio_tungstenite::tungstenite::client::IntoClientRequest;
        let mut request = format!("ws://{}/v1/orgs/acme/workspaces/main/shell", self.api).into_client_request()?;
        let headers = request.headers_mut();
        headers.insert("authorization", HeaderValue::from_str(&format!("Bearer {}", self.token))?);
        headers.insert("sec-websocket-protocol", HeaderValue::from_static("envforge.shell.v1"));
        let stream = tokio::net::TcpStream::connect(self.api).await?;
        stream.set_nodelay(true)?;
        let (socket, _) = tokio_tungstenite::client_async(request, stream).await.map_err(refused)?;
        Ok(socket)
    }

    pub(crate) async fn revoke(&self, over: &mut Connection, visit: &Visit) -> Result<()> {
        let path = format!("/v1/orgs/acme/links/{}/revoke", visit.link);
        self.call_over(over, "POST", &path, Some(&json!({ "reason": "measured" }))).await.map(drop)
    }

    /// All events so far, oldest first.
    pub(crate) async fn events(&self) -> Result<Vec<Value>> {
        let Value::String(lines) = self.call("GET", "/v1/orgs/acme/events", None).await? else {
            bail!("the replay is no JSON Lines");
        };
        lines.lines().filter(|line| !line.is_empty()).map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    /// Puts the runtime to sleep and waits until it is.
    pub(crate) async fn sleep(&self) -> Result<()> {
        self.call("POST", "/v1/orgs/acme/workspaces/main/sleep", None).await?;
        let deadline = Instant::now() + DEADLINE;
        loop {
            let runtime = self.call("GET", "/v1/orgs/acme/workspaces/main/runtime", None).await?;
            if runtime["phase"] == "asleep" {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the runtime does not fall asleep: {runtime}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

const PASSWORD: &str = "correct horse battery staple 9";

fn password_file(below: &Path) -> Result<PathBuf> {
    let path = below.join("password");
    std::fs::write(&path, PASSWORD)?;
    Ok(path)
}

/// `setup --owner-password-file FILE ...`: the file's name goes where the option stands.
fn with_password_file(command: Command, file: &Path) -> Command {
    let mut changed = Command::new(command.get_program());
    for argument in command.get_args() {
        changed.arg(argument);
        if argument == "--owner-password-file" {
            changed.arg(file);
        }
    }
    changed
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// The product's binary, built beside this one.
fn product() -> Result<PathBuf> {
    let path = std::env::current_exe().context("where this program is")?.with_file_name("envforge");
    ensure!(path.exists(), "{} is missing: `cargo xtask bench` builds it", path.display());
    Ok(path)
}

fn start(name: &str, command: &Command, place: &Path) -> TestProcess {
    let mut process = TestProcess::spawn(name, command, place);
    process.wait_ready("its first line", DEADLINE, |process| process.stdout().contains('\n').then_some(()));
    process
}

/// A repository whose `web` is this program.
fn repository(below: &Path) -> Result<PathBuf> {
    let root = below.join("app");
    std::fs::create_dir_all(&root)?;
    let program = std::env::current_exe()?;
    let manifest = format!(
        "version: 1\nidle_sleep: 30m\nservices:\n  web:\n    command: \"exec {} serve-app\"\n    \
         route: {{ web: {{}}, websockets: [/live] }}\n    readiness: {{ http: /healthz, interval: 100ms, deadline: 30s }}\n    \
         cpu: 100m\n    memory: 64Mi\n",
        program.display()
    );
    std::fs::write(root.join("envforge.yml"), manifest)?;
    let author = ["-c", "user.name=bench", "-c", "user.email=bench@example.org"];
    for arguments in
        [&["init", "-q", "-b", "main"][..], &["add", "-A"], &[&author[..], &["commit", "-q", "-m", "first"]].concat()]
    {
        let status = Command::new("git").args(arguments).current_dir(&root).status().context("git")?;
        ensure!(status.success(), "git {arguments:?} failed");
    }
    Ok(root)
}

/// Why a handshake was not taken, in the gateway's own words.
fn refused(error: tokio_tungstenite::tungstenite::Error) -> anyhow::Error {
    match error {
        tokio_tungstenite::tungstenite::Error::Http(answer) => {
            let body = answer.body().as_deref().map(String::from_utf8_lossy).unwrap_or_default();
            anyhow::anyhow!("the handshake was refused with {}: {body}", answer.status())
        }
        other => anyhow::Error::new(other).context("the handshake failed"),
    }
}
