//! Shells of one host, with real processes and a real tmux: what one person does holds up nobody else, and what is given up half
//! begun leaves nothing.
#![allow(clippy::unwrap_used, reason = "tests panic")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use envforge_domain::commit::Surface;
use envforge_domain::ids::{OrgId, ProjectId, SessionId, ShellId, UserId, WorkspaceId};
use envforge_domain::project::Repository;
use envforge_domain::shell::{ShellInput, ShellOrder, ShellWhat, TerminalSize};
use envforge_domain::workspace::Branch;
use envforge_runtime::{Config, LocalHost, OpenShell};
use envforge_testkit::TestDir;
use envforge_testkit::tools::Tool;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(60);
/// Less than the host waits for one answer of a tmux.
const AT_ONCE: Duration = Duration::from_secs(4);

struct Machine {
    dir: TestDir,
    host: LocalHost,
}

fn workspace() -> WorkspaceId {
    WorkspaceId::from_uuid(Uuid::from_u128(1))
}

fn person(number: u128) -> UserId {
    UserId::from_uuid(Uuid::from_u128(number))
}

fn terminal() -> ShellWhat {
    let size = TerminalSize { columns: 100, rows: 30 };
    ShellWhat::Terminal { size, term: "xterm".to_owned(), lasting: true, words: Vec::new() }
}

impl Machine {
    async fn open() -> Arc<Self> {
        let dir = TestDir::new();
        let mut config = Config::new(dir.join("state"));
        config.root_guard = Some(env!("CARGO_BIN_EXE_envforge").into());
        let (host, _) = LocalHost::open(config).await.unwrap();
        let machine = Self { dir, host };
        let repository = machine.repository();
        std::fs::create_dir_all(&repository).unwrap();
        std::fs::write(repository.join("app.txt"), "one\n").unwrap();
        let author = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"];
        for arguments in
            [&["init", "--quiet", "--initial-branch=main", "."][..], &["add", "."], &["commit", "-qm", "one"]]
        {
            assert!(
                Command::new("git").args(author).args(arguments).current_dir(&repository).status().unwrap().success()
            );
        }
        Arc::new(machine)
    }

    fn repository(&self) -> PathBuf {
        self.dir.join("repository")
    }

    async fn shell(&self, user: UserId, what: ShellWhat) -> OpenShell {
        let order = ShellOrder {
            shell: ShellId::from_uuid(Uuid::now_v7()),
            org: OrgId::from_uuid(Uuid::from_u128(2)),
            project: ProjectId::from_uuid(Uuid::from_u128(3)),
            workspace: workspace(),
            user,
            session: SessionId::from_uuid(Uuid::from_u128(5)),
            surface: Surface::Cli,
            repository: Repository::parse(self.repository().to_str().unwrap()).unwrap(),
            branch: Branch::parse("main").unwrap(),
            git: None,
            what,
        };
        self.host.open_shell(order, None).await.unwrap()
    }

    /// The first lines that something writes into a file.
    async fn written(&self, file: &Path, lines: usize) -> Vec<String> {
        let begun = Instant::now();
        loop {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            if text.ends_with('\n') && text.lines().count() >= lines {
                return text.lines().map(str::to_owned).collect();
            }
            assert!(begun.elapsed() < PATIENCE, "{}", file.display());
            tokio::time::sleep(Duration::from_millis(2)).await; // pause: between two looks
        }
    }
}

fn is_dead(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

/// Somebody stops the server of their own tmux, and every answer that is waited for there takes as long as the host has patience.
#[tokio::test(flavor = "multi_thread")]
async fn a_persons_tmux_that_does_not_answer_holds_up_themselves_alone() {
    Tool::Tmux.path();
    let machine = Machine::open().await;
    let open = machine.shell(person(1), terminal()).await;
    assert!(open.facts.lasting, "{:?}", open.facts.notice);
    let told = machine.dir.join("server");
    let words = format!("tmux display-message -p '#{{pid}}' > {}\n", told.display());
    open.input.send(ShellInput::Data(words.into_bytes())).await.unwrap();
    let server = machine.written(&told, 1).await.remove(0);
    kill(Pid::from_raw(server.parse().unwrap()), Signal::SIGSTOP).unwrap();
    let waiting: Vec<_> = (0..4)
        .map(|_| {
            let machine = Arc::clone(&machine);
            tokio::spawn(async move { machine.shell(person(1), terminal()).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(500)).await; // pause: until they wait for the server

    let begun = Instant::now();
    let others = machine.shell(person(2), terminal()).await;
    assert!(others.facts.lasting, "{:?}", others.facts.notice);
    let named = machine.host.lasting_shells().await;
    assert!([1, 2].iter().all(|number| named.iter().any(|shell| shell.user == person(*number))), "{}", named.len());
    machine.host.end_lasting_shells(workspace(), person(1)).await.unwrap();
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    assert!(is_dead(&server));
    assert!(machine.host.lasting_shells().await.iter().all(|shell| shell.user == person(2)));
    for open in waiting {
        // Whoever waited was not given what was ended meanwhile.
        let open = tokio::time::timeout(PATIENCE, open).await.unwrap().unwrap();
        assert!(!open.facts.lasting || machine.host.lasting_shells().await.iter().any(|shell| shell.user == person(1)));
    }
    machine.host.shutdown().await;
}

/// As when the line of an agent breaks in the middle of it.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_gives_up_a_shell_that_is_just_beginning_leaves_nothing_of_it() {
    let machine = Machine::open().await;
    for round in 0..20 {
        let told = machine.dir.join(format!("pids-{round}"));
        let script = format!(
            "trap '' TERM HUP; setsid sleep 100000 & echo $! >> {0}; sleep 100000 & echo $! >> {0}; wait",
            told.display()
        );
        let words = ["/bin/sh", "-c", &script].map(str::to_owned).to_vec();
        let pids = tokio::select! {
            pids = machine.written(&told, 2) => pids,
            open = machine.shell(person(1), ShellWhat::Command { words }) => {
                let pids = machine.written(&told, 2).await;
                drop(open);
                pids
            }
        };
        let begun = Instant::now();
        while !pids.iter().all(|pid| is_dead(pid)) {
            assert!(begun.elapsed() < PATIENCE, "round {round}: {pids:?} run on");
            tokio::time::sleep(Duration::from_millis(10)).await; // pause: between two looks
        }
    }
    machine.host.shutdown().await;
}
