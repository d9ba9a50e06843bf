//! A host in a temporary directory, repositories, manifests, and the questions that tests ask about processes.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use envforge_domain::ids::{OrgId, WorkspaceId};
use envforge_domain::manifest::{Hook, Manifest, Probe, Readiness, Route, Service};
use envforge_domain::slug::ServiceName;
use envforge_domain::time::Millis;
use envforge_runtime::{Awake, Config, LocalHost, Stage, WakeFailure, WakeOrder};
use tempfile::TempDir;
use tokio::sync::watch;
use uuid::Uuid;

/// Long enough for a machine that builds other things at the same time; a test that passes never waits for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const WEB_SERVER: &str = "exec python3 -m http.server --bind 127.0.0.1 \"$PORT\"";

/// Names the process of a test to a process of it.
pub(crate) const TEST: &str = "ENVFORGE_TEST_PROCESS";

/// This test's alone: its users' ids follow from it, and each test has a registry of its own beside the others.
pub(crate) fn workspace(number: u128) -> WorkspaceId {
    let test = std::env::var(TEST).map_or_else(|_| std::process::id(), |id| id.parse().unwrap());
    WorkspaceId::from_uuid(Uuid::from_u128((u128::from(test) << 8) + number))
}

pub(crate) fn name(text: &str) -> ServiceName {
    text.parse().unwrap()
}

/// A repository with one commit on `main`.
pub(crate) struct Repository {
    directory: TempDir,
}

impl Repository {
    pub(crate) fn with(files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let repository = Self { directory };
        repository.git(&["init", "--quiet", "--initial-branch=main"]);
        repository.commit(files);
        repository
    }

    /// A copy of a real directory.
    pub(crate) fn of(source: &Path) -> Self {
        let repository = Self::with(&[("README", "a copy\n")]);
        let copied = Command::new("cp").arg("-R").arg(source.join(".")).arg(repository.path()).status().unwrap();
        assert!(copied.success());
        repository.commit(&[]);
        repository
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn address(&self) -> String {
        self.path().to_str().unwrap().to_owned()
    }

    pub(crate) fn write(&self, file: &str, content: &str) {
        let path = self.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// The new commit's id.
    pub(crate) fn commit(&self, files: &[(&str, &str)]) -> String {
        for (file, content) in files {
            self.write(file, content);
        }
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--allow-empty", "--message", "change"]);
        self.git(&["rev-parse", "HEAD"]).trim().to_owned()
    }

    pub(crate) fn git(&self, arguments: &[&str]) -> String {
        let output = Command::new("git")
            .args(["-c", "user.name=Test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false"])
            .args(arguments)
            .current_dir(self.path())
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .output()
            .unwrap();
        assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

/// A host whose processes end with the test.
pub(crate) struct Host {
    pub(crate) host: LocalHost,
    pub(crate) state: PathBuf,
    pub(crate) _directory: TempDir,
}

impl Host {
    pub(crate) async fn open() -> Self {
        Self::configured(|_| {}).await
    }

    pub(crate) async fn configured(change: impl FnOnce(&mut Config)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        let mut config = config(&state);
        change(&mut config);
        let (host, leftovers) = LocalHost::open(config).await.unwrap();
        assert_eq!(leftovers, []);
        Self { host, state, _directory: directory }
    }

    pub(crate) async fn wake(&self, order: WakeOrder) -> Result<Awake, WakeFailure> {
        tokio::time::timeout(PATIENCE, self.host.wake(order, watch::channel(Stage::CheckingOut).0)).await.unwrap()
    }

    pub(crate) fn place(&self, workspace: WorkspaceId) -> PathBuf {
        self.state.join("workspaces").join(workspace.to_string())
    }

    pub(crate) fn data(&self, workspace: WorkspaceId) -> PathBuf {
        self.place(workspace).join("data")
    }

    pub(crate) fn record(&self, workspace: WorkspaceId) -> PathBuf {
        self.state.join("runtimes").join(format!("{workspace}.json"))
    }

    /// What a service wrote into its data directory, once it is there.
    pub(crate) async fn written(&self, workspace: WorkspaceId, file: &str) -> String {
        let path = self.data(workspace).join(file);
        eventually(&format!("{} is written", path.display()), || {
            fs::read_to_string(&path).is_ok_and(|text| text.ends_with('\n'))
        })
        .await;
        fs::read_to_string(path).unwrap().trim_end().to_owned()
    }

    pub(crate) async fn pid(&self, workspace: WorkspaceId, file: &str) -> u32 {
        self.written(workspace, file).await.parse().unwrap()
    }
}

pub(crate) fn config(state: &Path) -> Config {
    let mut config = Config::new(state);
    config.stop_grace = Duration::from_secs(5);
    config.restart_delay_min = Duration::from_millis(10);
    config.restart_delay_max = Duration::from_millis(40);
    config
}

/// A service without route or port, ready at once.
pub(crate) fn service(text: &str, command: &str) -> Service {
    Service {
        name: name(text),
        command: command.to_owned(),
        directory: None,
        port_variable: None,
        route: Route::None,
        readiness: ready_by(Probe::None),
        cpu_millicores: 100,
        memory_mib: 64,
        secrets: Vec::new(),
        environment: Vec::new(),
    }
}

/// A service that listens on its allotted port.
pub(crate) fn listening(text: &str, command: &str, probe: Probe) -> Service {
    Service { port_variable: Some("PORT".to_owned()), readiness: ready_by(probe), ..service(text, command) }
}

pub(crate) fn http(path: &str) -> Probe {
    Probe::Http { path: path.to_owned() }
}

pub(crate) fn ready_by(probe: Probe) -> Readiness {
    Readiness { probe, interval: Millis::new(20), deadline: Millis::from_secs(40) }
}

pub(crate) fn manifest(services: impl IntoIterator<Item = Service>) -> Manifest {
    Manifest {
        services: services.into_iter().collect(),
        resources: Vec::new(),
        jobs: Vec::new(),
        idle_sleep: Millis::from_minutes(15),
        on_sleep: None,
    }
}

pub(crate) fn on_sleep(command: &str, deadline: Millis) -> Option<Hook> {
    Some(Hook { command: command.to_owned(), deadline })
}

pub(crate) fn order(repository: &Repository, services: impl IntoIterator<Item = Service>) -> WakeOrder {
    WakeOrder {
        org: OrgId::from_uuid(Uuid::from_u128(1)),
        workspace: workspace(1),
        epoch: 1,
        repository: repository.address(),
        branch: "main".to_owned(),
        manifest: manifest(services),
        deadline: Millis::from_secs(50),
        public_hosts: BTreeMap::new(),
        secrets: BTreeMap::new(),
        git: None,
    }
}

/// Whether a process runs; one that waits to be reaped does not.
pub(crate) fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit(')').next().map(|rest| !rest.trim_start().starts_with('Z')))
        .unwrap_or(false)
}

/// Waits for a condition.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await; // pause: between two looks
    }
}

/// Status and whole answer of one request, over a socket of its own.
pub(crate) async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    request(address, format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")).await
}

pub(crate) async fn request(address: SocketAddr, text: String) -> (u16, String) {
    tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        (status, answer)
    })
    .await
    .unwrap()
}
