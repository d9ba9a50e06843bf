//! A project's secret for git against a real git server over HTTPS: who gets it, who does not, and that it is kept nowhere. As
//! root the shells here are users of their own; elsewhere everything runs as whoever runs the tests.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests panic, and read what processes wrote")]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use envforge_domain::commit::Surface;
use envforge_domain::ids::{OrgId, ProjectId, SessionId, ShellId, UserId, WorkspaceId};
use envforge_domain::manifest::Manifest;
use envforge_domain::project::Repository;
use envforge_domain::secret::Secret;
use envforge_domain::shell::{ShellFailure, ShellOrder, ShellOutput, ShellWhat};
use envforge_domain::time::Millis;
use envforge_domain::workspace::Branch;
use envforge_runtime::{
    CheckoutFailure, Config, GitLogin, LocalHost, OpenShell, ShellLogin, Stage, WakeFailure, WakeOrder,
};
use envforge_testkit::{GitServer, TestDir};
use tokio::sync::watch;
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(60);
const USER: &str = "x-access-token";
const MANIFEST: &str = "version: 1\nservices:\n  app:\n    command: exec sleep 100000\n    port: none\n";

struct Machine {
    dir: TestDir,
    host: LocalHost,
    server: GitServer,
    value: String,
}

/// This test's alone: its users' ids follow from it, and each test has a registry of its own beside the others.
fn workspace() -> WorkspaceId {
    WorkspaceId::from_uuid(Uuid::from_u128(u128::from(std::process::id())))
}

fn run(directory: &Path, arguments: &[&str]) {
    let identity = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "protocol.file.allow=always"];
    let done = Command::new("git").args(identity).args(arguments).current_dir(directory).output().unwrap();
    assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// A repository with one commit on `main`.
fn repository(directory: &Path) -> PathBuf {
    std::fs::create_dir_all(directory).unwrap();
    run(directory, &["init", "--quiet", "--initial-branch=main", "."]);
    std::fs::write(directory.join("app.txt"), "one\n").unwrap();
    run(directory, &["add", "."]);
    run(directory, &["commit", "--quiet", "-m", "one"]);
    directory.to_owned()
}

impl Machine {
    async fn open() -> Self {
        let dir = TestDir::new();
        for directory in dir.path().ancestors().filter(|directory| directory.starts_with("/tmp/")) {
            // Folders of tests are private on some machines, and other users must get in.
            let mode = std::fs::metadata(directory).unwrap().permissions().mode();
            std::fs::set_permissions(directory, std::fs::Permissions::from_mode(mode | 0o711)).unwrap();
        }
        let value = format!("canary-{}", Uuid::now_v7().simple());
        let server = GitServer::start(USER, &value);
        server.add("orders", &repository(&dir.join("orders")));
        let authority = dir.join("authority.pem");
        std::fs::copy(server.authority(), &authority).unwrap();
        std::fs::set_permissions(&authority, std::fs::Permissions::from_mode(0o644)).unwrap();
        let mut config = Config::new(dir.join("state"));
        config.path = std::env::var("PATH").unwrap();
        config.root_guard = Some(env!("CARGO_BIN_EXE_envforge").into());
        config.unix_users = Some(dir.join("registry"));
        config.git_environment.push(("GIT_SSL_CAINFO".to_owned(), authority.to_string_lossy().into_owned()));
        let (host, _) = LocalHost::open(config).await.unwrap();
        Self { dir, host, server, value }
    }

    /// Another server, which git believes just as well.
    fn other_server(&self) -> GitServer {
        let other = GitServer::start(USER, &self.value);
        other.add("orders", &self.dir.join("orders"));
        let mut believed = std::fs::read_to_string(self.dir.join("authority.pem")).unwrap();
        believed.push_str(&std::fs::read_to_string(other.authority()).unwrap());
        std::fs::write(self.dir.join("authority.pem"), believed).unwrap();
        other
    }

    fn login(&self, value: &str, valid_for: Option<Millis>) -> GitLogin {
        GitLogin { username: USER.to_owned(), value: Secret::new(value.to_owned()), valid_for }
    }

    async fn wake(&self, epoch: u64, address: &str, git: Option<GitLogin>) -> Result<String, WakeFailure> {
        let order = WakeOrder {
            org: OrgId::from_uuid(Uuid::from_u128(2)),
            workspace: workspace(),
            epoch,
            repository: address.to_owned(),
            branch: "main".to_owned(),
            manifest: Manifest::parse(MANIFEST).unwrap(),
            deadline: Millis::from_secs(60),
            public_hosts: BTreeMap::new(),
            secrets: BTreeMap::new(),
            git,
        };
        self.host.wake(order, watch::channel(Stage::CheckingOut).0).await.map(|awake| awake.commit)
    }

    async fn try_shell(&self, script: &str, login: Option<GitLogin>) -> Result<OpenShell, ShellFailure> {
        let order = ShellOrder {
            shell: ShellId::from_uuid(Uuid::now_v7()),
            org: OrgId::from_uuid(Uuid::from_u128(2)),
            project: ProjectId::from_uuid(Uuid::from_u128(3)),
            workspace: workspace(),
            user: UserId::from_uuid(Uuid::from_u128(4)),
            session: SessionId::from_uuid(Uuid::from_u128(5)),
            surface: Surface::Cli,
            repository: Repository::parse(&self.server.url("localhost", "orders")).unwrap(),
            branch: Branch::parse("main").unwrap(),
            // Its value comes beside the order.
            git: None,
            what: ShellWhat::Command { words: ["/bin/sh", "-c", script].map(str::to_owned).to_vec() },
        };
        self.host.open_shell(order, login.map(|login| ShellLogin { login, inside: true })).await
    }

    /// What a script writes in a shell, and its exit status.
    async fn shell(&self, script: &str, login: Option<GitLogin>) -> (String, Option<u32>) {
        let mut open = self.try_shell(&format!("exec 2>&1; {script}"), login).await.unwrap();
        let mut text = Vec::new();
        loop {
            match tokio::time::timeout(PATIENCE, open.output.recv()).await.unwrap().unwrap() {
                ShellOutput::Out(bytes) | ShellOutput::Error(bytes) => text.extend(bytes),
                ShellOutput::Taken(_) => {}
                ShellOutput::Over { code, .. } => return (String::from_utf8_lossy(&text).into_owned(), code),
            }
        }
    }

    /// Where a value stands: files below the host's own folder, arguments and environments of processes.
    fn places_of(&self, value: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let grep = Command::new("grep").args(["-rlaF", value]).arg(self.dir.path()).output().unwrap();
        found.extend(String::from_utf8_lossy(&grep.stdout).lines().map(PathBuf::from));
        for process in std::fs::read_dir("/proc").unwrap().flatten() {
            for name in ["environ", "cmdline"] {
                let path = process.path().join(name);
                let holds = |bytes: Vec<u8>| bytes.windows(value.len()).any(|window| window == value.as_bytes());
                if std::fs::read(&path).is_ok_and(holds) {
                    found.push(path);
                }
            }
        }
        found
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_right_secret_opens_a_private_repository_and_it_is_kept_nowhere() {
    let machine = Machine::open().await;
    let address = machine.server.url("localhost", "orders");
    let failed = |failure: WakeFailure| match failure {
        WakeFailure::Checkout(failure) => failure,
        other => panic!("{other}"),
    };
    let failure = failed(machine.wake(1, &address, None).await.unwrap_err());
    assert_eq!(failure, CheckoutFailure::CredentialNeeded);
    let wrong = format!("wrong-{}", Uuid::now_v7().simple());
    let failure = failed(machine.wake(2, &address, Some(machine.login(&wrong, None))).await.unwrap_err());
    assert_eq!(failure, CheckoutFailure::CredentialRefused);
    let failure =
        failed(machine.wake(3, &address, Some(machine.login(&machine.value, Some(Millis::ZERO)))).await.unwrap_err());
    assert_eq!(failure, CheckoutFailure::CredentialRefused, "one that is over is shown to nobody");
    assert!(!machine.server.requests().contains("with the credential"));
    let local = machine.dir.join("orders").to_string_lossy().into_owned();
    let failure = failed(machine.wake(4, &local, Some(machine.login(&machine.value, None))).await.unwrap_err());
    assert!(matches!(failure, CheckoutFailure::Credential { .. }), "{failure}");

    let commit = machine.wake(5, &address, Some(machine.login(&machine.value, None))).await.unwrap();
    assert_eq!(commit.len(), 40);
    assert!(machine.server.requests().contains("with the credential"));
    assert_eq!(machine.places_of(&machine.value), Vec::<PathBuf>::new());
    assert_eq!(machine.places_of(&wrong), Vec::<PathBuf>::new());
    // The search finds what is there.
    std::fs::write(machine.dir.join("state/planted"), format!("x{}x", machine.value)).unwrap();
    let sleeper = Command::new("sleep").arg("100").env("PLANTED", &machine.value).spawn();
    let mut sleeper = sleeper.unwrap();
    let environ = PathBuf::from(format!("/proc/{}/environ", sleeper.id()));
    let found = machine.places_of(&machine.value);
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    assert_eq!(found, [machine.dir.join("state/planted"), environ]);
    machine.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_a_redirect_nor_a_submodule_leads_the_secret_to_another_host() {
    let machine = Machine::open().await;
    let other = machine.other_server();
    machine.server.move_to(&other.base("localhost"));
    let moved = format!("{}/moved/acme/orders.git", machine.server.base("localhost"));
    let failure = machine.wake(1, &moved, Some(machine.login(&machine.value, None))).await.unwrap_err();
    assert_eq!(failure, WakeFailure::Checkout(CheckoutFailure::Redirected));
    assert_eq!(other.requests(), "", "nobody went there");
    // By another name it is another host, too.
    let repository = machine.dir.join("with-submodules");
    repository_with(&repository, &other.url("127.0.0.1", "orders"));
    machine.server.add("parent", &repository);
    let parent = machine.server.url("localhost", "parent");
    machine.wake(2, &parent, Some(machine.login(&machine.value, None))).await.unwrap();
    assert_eq!(other.requests(), "");
    machine.host.shutdown().await;
}

/// A repository that names another one as its submodule.
fn repository_with(directory: &Path, submodule: &str) {
    repository(directory);
    let modules = format!("[submodule \"sub\"]\n\tpath = sub\n\turl = {submodule}\n");
    std::fs::write(directory.join(".gitmodules"), modules).unwrap();
    run(directory, &["add", "."]);
    let of = "160000,0123456789012345678901234567890123456789,sub";
    run(directory, &["update-index", "--add", "--cacheinfo", of]);
    run(directory, &["commit", "--quiet", "-m", "a submodule"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn git_in_a_shell_has_it_for_its_own_repository_while_the_shell_is_open() {
    let machine = Machine::open().await;
    let other = machine.other_server();
    let failure = machine.try_shell("true", None).await.err().unwrap();
    assert!(matches!(&failure, ShellFailure::Checkout { reason } if reason.contains("--git-credential")), "{failure}");
    let login = || Some(machine.login(&machine.value, None));
    let push = "echo two > app.txt && git -c user.name=t -c user.email=t@t commit -qam two && git push -q && git fetch -q && git pull -q && echo done";
    let (text, code) = machine.shell(push, login()).await;
    assert_eq!((text.as_str(), code), ("done\n", Some(0)));
    // Of another host, of another repository and of another scheme git asks a person, who is not there.
    for address in [
        other.url("localhost", "orders"),
        machine.server.url("localhost", "other"),
        machine.server.url("127.0.0.1", "orders"),
    ] {
        let (text, code) = machine.shell(&format!("GIT_TERMINAL_PROMPT=0 git ls-remote {address}"), login()).await;
        assert!(text.contains("could not read Username") && code == Some(128), "{address}: {text}");
    }
    assert!(!other.requests().contains("credential"), "{}", other.requests());
    let (text, _) = machine
        .shell("env; cat .git/config; cat /proc/*/cmdline /proc/*/environ 2>/dev/null | tr '\\0' '\\n'", login())
        .await;
    assert!(text.contains("GIT_CONFIG_VALUE_1") && !text.contains(&machine.value), "{text}");
    let (text, _) = machine
        .shell("git config --get-all credential.helper; git fetch -q 2>&1; ls -A ~; cat ~/.git-credentials", login())
        .await;
    assert!(!text.contains(&machine.value), "{text}");
    assert_eq!(machine.places_of(&machine.value), Vec::<PathBuf>::new());

    // One that is over is given to nobody.
    let fetch = "GIT_TERMINAL_PROMPT=0 git fetch -q";
    let (text, code) = machine.shell(fetch, Some(machine.login(&machine.value, Some(Millis::ZERO)))).await;
    assert!(text.contains("could not read Username") && code != Some(0), "{text}");
    let (text, code) = machine.shell(fetch, login()).await;
    assert_eq!((text.as_str(), code), ("", Some(0)));
    // A new value counts at once, also for a shell that is open.
    machine.server.take("another");
    let (text, code) = machine.shell(fetch, login()).await;
    assert!(code != Some(0) && !text.contains(&machine.value), "{text}");
    let (text, code) = machine.shell(fetch, Some(machine.login("another", None))).await;
    assert_eq!((text.as_str(), code), ("", Some(0)));
    machine.host.shutdown().await;
}

/// What git cannot carry is not given to it, and nobody is kept from their shell by that.
#[tokio::test(flavor = "multi_thread")]
async fn a_value_of_several_lines_fails_no_shell_and_is_told() {
    let machine = Machine::open().await;
    let login = |value: &str| Some(machine.login(value, None));
    assert_eq!(machine.shell("echo cloned", login(&machine.value)).await, ("cloned\n".to_owned(), Some(0)));
    let several = format!("{}\nprotocol=http", machine.value);
    let open = machine.try_shell("git config --get-all credential.helper; true", login(&several)).await.unwrap();
    let notice = open.facts.notice.clone().unwrap();
    assert!(notice.contains("line break") && !notice.contains(&machine.value), "{notice}");
    let fetch = "GIT_TERMINAL_PROMPT=0 git fetch -q";
    let (text, code) = machine.shell(fetch, login(&several)).await;
    assert!(text.contains("could not read Username") && code != Some(0), "{text}");
    let (text, code) = machine.shell(fetch, login(&machine.value)).await;
    assert_eq!((text.as_str(), code), ("", Some(0)));
    machine.host.shutdown().await;
}
