//! Shells as the workspace's own user, as root with real processes: who they are, what they may touch, and that terminals
//! and what lasts work all the same; and that services and jobs have names as they do. Where the tests are not root there are no such users, and they say so.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests panic, and read what processes wrote")]

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use envforge_domain::commit::Surface;
use envforge_domain::ids::{JobRunId, OrgId, ProjectId, SessionId, ShellId, UserId, WorkspaceId};
use envforge_domain::job_run::JobOrder;
use envforge_domain::manifest::Manifest;
use envforge_domain::project::Repository;
use envforge_domain::secret::Secret;
use envforge_domain::shell::{ShellEnd, ShellInput, ShellOrder, ShellOutput, ShellWhat, TerminalSize};
use envforge_domain::time::Millis;
use envforge_domain::workspace::Branch;
use envforge_runtime::{Config, LocalHost, NoUsers, OpenShell, Stage, UnixUsers, UserBlock, WakeOrder};
use envforge_testkit::TestDir;
use envforge_testkit::tools::Tool;
use tokio::sync::watch;
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(30);

struct Machine {
    dir: TestDir,
    host: LocalHost,
}

/// This test's alone: its users' ids follow from it, and each test has a registry of its own beside the others.
fn workspace() -> WorkspaceId {
    WorkspaceId::from_uuid(Uuid::from_u128(u128::from(std::process::id())))
}

fn words(script: &str) -> Vec<String> {
    ["/bin/sh", "-c", script].map(str::to_owned).to_vec()
}

impl Machine {
    /// `None` where these tests are not root.
    async fn open() -> Option<Self> {
        Self::configured(|_| {}).await
    }

    async fn configured(change: impl FnOnce(&mut Config)) -> Option<Self> {
        let dir = TestDir::new();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let state = dir.join("state");
        match UnixUsers::supported(&state) {
            Ok(()) => {}
            Err(NoUsers::NotRoot) => {
                eprintln!("not root: shells have no users of their own here, and nothing was tested");
                return None;
            }
            Err(NoUsers::Unreachable { directory, mode }) => {
                // Folders of tests are private on some machines.
                let public = std::fs::Permissions::from_mode(mode | 0o711);
                std::fs::set_permissions(directory, public).unwrap();
                UnixUsers::supported(&state).unwrap();
            }
        }
        let mut config = Config::new(&state);
        config.root_guard = Some(env!("CARGO_BIN_EXE_envforge").into());
        config.unix_users = Some(dir.join("registry"));
        change(&mut config);
        let (host, _) = LocalHost::open(config).await.unwrap();
        let machine = Self { dir, host };
        machine.git(&["init", "--quiet", "--initial-branch=main", "."]);
        std::fs::write(machine.repository().join("app.txt"), "one\n").unwrap();
        machine.git(&["add", "."]);
        machine.git(&["-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "-m", "one"]);
        Some(machine)
    }

    fn repository(&self) -> std::path::PathBuf {
        self.dir.join("repository")
    }

    fn order(&self, manifest: &str) -> WakeOrder {
        WakeOrder {
            org: OrgId::from_uuid(Uuid::from_u128(2)),
            workspace: workspace(),
            epoch: 1,
            repository: self.repository().to_string_lossy().into_owned(),
            branch: "main".to_owned(),
            manifest: Manifest::parse(manifest).unwrap(),
            deadline: Millis::from_secs(60),
            public_hosts: BTreeMap::new(),
            secrets: BTreeMap::new(),
            git: None,
        }
    }

    async fn wake(&self, manifest: &str) {
        self.host.wake(self.order(manifest), watch::channel(Stage::CheckingOut).0).await.unwrap();
    }

    async fn job(&self, command: &str, secrets: BTreeMap<String, Secret>) -> OpenShell {
        let order = JobOrder {
            run: JobRunId::from_uuid(Uuid::now_v7()),
            org: OrgId::from_uuid(Uuid::from_u128(2)),
            project: ProjectId::from_uuid(Uuid::from_u128(3)),
            workspace: workspace(),
            name: "unit".to_owned(),
            command: command.to_owned(),
            secrets: Vec::new(),
        };
        self.host.run_job(order, secrets).await.unwrap()
    }

    fn data(&self) -> std::path::PathBuf {
        self.dir.join("state/workspaces").join(workspace().to_string()).join("data")
    }

    fn git(&self, arguments: &[&str]) {
        std::fs::create_dir_all(self.repository()).unwrap();
        let done = Command::new("git").args(arguments).current_dir(self.repository()).status().unwrap();
        assert!(done.success(), "{arguments:?}");
    }

    async fn shell(&self, what: ShellWhat) -> OpenShell {
        let order = ShellOrder {
            shell: ShellId::from_uuid(Uuid::now_v7()),
            org: OrgId::from_uuid(Uuid::from_u128(2)),
            project: ProjectId::from_uuid(Uuid::from_u128(3)),
            workspace: workspace(),
            user: UserId::from_uuid(Uuid::from_u128(4)),
            session: SessionId::from_uuid(Uuid::from_u128(5)),
            surface: Surface::Cli,
            repository: Repository::parse(self.repository().to_str().unwrap()).unwrap(),
            branch: Branch::parse("main").unwrap(),
            git: None,
            what,
        };
        self.host.open_shell(order, None).await.unwrap()
    }

    fn block(&self) -> UserBlock {
        self.host.unix_users().unwrap().known(workspace()).unwrap().unwrap()
    }

    fn work(&self) -> std::path::PathBuf {
        self.dir.join("state").join("workspaces").join(workspace().to_string()).join("shell/work")
    }
}

/// All that it writes until it ends, and its exit status.
async fn all_of(mut open: OpenShell) -> (String, Option<u32>) {
    let mut text = Vec::new();
    loop {
        match tokio::time::timeout(PATIENCE, open.output.recv()).await.unwrap().unwrap() {
            ShellOutput::Out(bytes) | ShellOutput::Error(bytes) => text.extend(bytes),
            ShellOutput::Taken(_) => {}
            ShellOutput::Over { end, code } => {
                assert_eq!(end, ShellEnd::Exited);
                return (String::from_utf8_lossy(&text).replace('\r', ""), code);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_the_workspaces_user_and_works_in_a_clone_of_its_own() {
    let Some(machine) = Machine::open().await else { return };
    let script = "id -u; id -g; id -G; umask; cat app.txt; git status --short --branch; echo two > app.txt; git diff --stat | tail -1; \
                  touch \"$HOME/mine\" && echo home; cat /etc/shadow 2>/dev/null || echo no; exit 7";
    let (text, code) = all_of(machine.shell(ShellWhat::Command { words: words(script) }).await).await;
    let shell = machine.block().shell();
    let (uid, gid) = (shell.uid.to_string(), shell.gid.to_string());
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[..5], [&uid, &gid, &gid, "0002", "one"], "{text}");
    assert!(lines[5].starts_with("## main"), "{text}");
    assert!(lines[6].contains("1 insertion"), "{text}");
    assert_eq!((&lines[7..], code), (&["home", "no"][..], Some(7)));
    assert_eq!(std::fs::metadata(machine.work().join("app.txt")).unwrap().uid(), shell.uid);
    machine.host.shutdown().await;
}

/// Who a shell's user is by name, and what of it the machine knows: nothing.
#[tokio::test(flavor = "multi_thread")]
async fn the_workspaces_user_has_a_name_and_a_home_and_the_machine_keeps_its_own_accounts() {
    let Some(machine) = Machine::open().await else { return };
    let before = std::fs::read("/etc/passwd").unwrap();
    let script = "id -un; id -gn; echo ~workspace; echo \"$HOME\"; python3 -c 'import pwd, os; print(pwd.getpwuid(os.getuid()).pw_shell)'; \
                  getent passwd root | cut -d: -f1; sh -c 'echo more >> /etc/passwd' 2> /dev/null || echo kept";
    let (text, _) = all_of(machine.shell(ShellWhat::Command { words: words(script) }).await).await;
    let home = machine.work().with_file_name("home").display().to_string();
    let mut lines = text.lines();
    let known: Vec<_> = lines.by_ref().take(6).collect();
    assert_eq!(known[..4], ["workspace", "workspace", &home, &home], "{text}");
    assert!(known[4].ends_with("sh") && known[5] == "root" && text.ends_with("kept\n"), "{text}");
    // A terminal that lasts is the same somebody.
    let size = TerminalSize { columns: 80, rows: 24 };
    let what = ShellWhat::Terminal { size, term: "xterm".to_owned(), lasting: true, words: Vec::new() };
    let open = machine.shell(what).await;
    if open.facts.lasting {
        open.input.send(ShellInput::Data(b"id -un > ~/who; exit\r".to_vec())).await.unwrap();
        all_of(open).await;
        assert_eq!(std::fs::read_to_string(Path::new(&home).join("who")).unwrap(), "workspace\n");
    } else {
        assert!(open.facts.notice.is_some());
    }
    assert_eq!(std::fs::read("/etc/passwd").unwrap(), before);
    machine.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_reads_nothing_of_the_hosts() {
    let Some(machine) = Machine::open().await else { return };
    let state = machine.dir.join("state");
    let read = format!("exec 2>&1; ls {} || ls {}/shells || echo nothing", state.display(), state.display());
    let (text, _) = all_of(machine.shell(ShellWhat::Command { words: words(&read) }).await).await;
    assert_eq!(text.lines().last(), Some("nothing"), "{text}");
    // What its own parent was given is not its to read either: that runs as EnvForge.
    let parent = "cat /proc/$PPID/environ > /dev/null 2>&1 || echo refused";
    let (text, _) = all_of(machine.shell(ShellWhat::Command { words: words(parent) }).await).await;
    assert_eq!(text, "refused\n");
    machine.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_belongs_to_the_workspaces_user_and_what_lasts_runs_as_them() {
    let Some(machine) = Machine::open().await else { return };
    let size = TerminalSize { columns: 100, rows: 30 };
    let terminal = |lasting, words| ShellWhat::Terminal { size, term: "xterm".to_owned(), lasting, words };
    let script = "stat -c %u \"$(tty)\"; stty size; echo x > \"$(tty)\" && echo wrote";
    let (text, code) = all_of(machine.shell(terminal(false, words(script))).await).await;
    let uid = machine.block().shell().uid.to_string();
    assert_eq!((text.lines().collect::<Vec<_>>(), code), (vec![&*uid, "30 100", "x", "wrote"], Some(0)));

    let open = machine.shell(terminal(true, Vec::new())).await;
    assert!(open.facts.lasting, "{:?}", open.facts.notice);
    let told = machine.work().join("who");
    let command = format!("id -u > {}\n", told.display());
    open.input.send(ShellInput::Data(command.into_bytes())).await.unwrap();
    let written = until_written(&told).await;
    assert_eq!(written.trim(), uid);
    machine.host.shutdown().await;
    let left = Command::new("ps").args(["-o", "stat=,args=", "-u", &uid]).output().unwrap();
    let left = String::from_utf8_lossy(&left.stdout).into_owned();
    // What has ended and was not waited for yet does not run.
    assert_eq!(left.lines().find(|line| !line.starts_with('Z')), None, "nothing of theirs runs any more");
}

/// A job that was given a secret runs as somebody else than shells and services, and none of them reads it.
#[tokio::test(flavor = "multi_thread")]
async fn a_jobs_secrets_are_read_by_no_shell_and_no_service() {
    let Some(machine) = Machine::open().await else { return };
    let manifest = "version: 1\nservices:\n  app:\n    command: sh steal.sh > \"$ENVFORGE_DATA_DIR/stolen\"; exec sleep 100000\n    port: none\n";
    let steal = "while ! test -s \"$ENVFORGE_DATA_DIR/job\"; do sleep 0.02; done; \
                 cat /proc/$(cat \"$ENVFORGE_DATA_DIR/job\")/environ 2>/dev/null || echo refused\n";
    std::fs::write(machine.repository().join("steal.sh"), steal).unwrap();
    machine.git(&["add", "."]);
    machine.git(&["-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "-m", "two"]);
    machine.wake(manifest).await;
    let data = machine.data();
    let secrets = || BTreeMap::from([("JOB_TOKEN".to_owned(), Secret::new("the value of the job".to_owned()))]);
    let waits = "id -u; echo \"$JOB_TOKEN\"; touch \"$HOME/kept\"; echo $$ > \"$ENVFORGE_DATA_DIR/job\"; \
                 while ! test -e \"$ENVFORGE_DATA_DIR/go\"; do sleep 0.02; done";
    let job = machine.job(waits, secrets()).await;
    assert_eq!(until_written(&data.join("stolen")).await, "refused\n");
    let read = format!(
        "cat /proc/$(cat {}/job)/environ 2>/dev/null || echo refused; touch {}/go",
        data.display(),
        data.display()
    );
    let (text, _) = all_of(machine.shell(ShellWhat::Command { words: words(&read) }).await).await;
    assert_eq!(text, "refused\n");
    let (text, code) = all_of(job).await;
    let block = machine.block();
    let lines: Vec<_> = text.lines().collect();
    let uid: u32 = lines[0].parse().unwrap();
    let service = block.service(&"app".parse().unwrap()).unwrap().uid;
    assert!(block.holds(uid) && uid != block.shell().uid && uid != service, "{uid}: {block:?}");
    assert_eq!((lines[1], code), ("the value of the job", Some(0)));
    // It keeps its user and its home; one without secrets is the shells'.
    let again = machine.job("id -u; ls \"$HOME\"", secrets()).await;
    assert_eq!(all_of(again).await.0, format!("{uid}\nkept\n"));
    let plain = machine.job("id -u; echo \"[$JOB_TOKEN]\"", BTreeMap::new()).await;
    assert_eq!(all_of(plain).await.0, format!("{}\n[]\n", block.shell().uid));
    machine.host.shutdown().await;
}

const DATABASE: &str = r#"version: 1
services:
  database:
    command: |
      initdb --no-sync --auth=trust -D "$HOME/cluster" > "$HOME/initdb.txt" 2>&1 || { cat "$HOME/initdb.txt"; exit 1; }
      { id -un; id -gn; getent passwd "$(id -u)" | cut -d: -f6; echo "$HOME"; } > "$ENVFORGE_DATA_DIR/service"
      exec postgres -D "$HOME/cluster" -p "$PORT" -c unix_socket_directories=
    readiness:
      command: psql -h 127.0.0.1 -p "$PORT" -d postgres -Atc "select current_user" > "$ENVFORGE_DATA_DIR/probe"
      deadline: 60s
  other:
    command: echo $$ > "$ENVFORGE_DATA_DIR/pid"; id -un > "$ENVFORGE_DATA_DIR/other"; exec sleep 100000
    port: none
on_sleep: { command: id -un > "$ENVFORGE_DATA_DIR/hook" }
"#;

/// A database's own programs give up where their user has no name. A keeper starts them, as on a host with an agent.
#[tokio::test(flavor = "multi_thread")]
async fn services_their_probes_and_what_runs_before_sleep_find_their_users_by_name() {
    let bin = Tool::PostgresBin.path();
    let before = std::fs::read("/etc/passwd").unwrap();
    let machine = Machine::configured(|config| {
        config.keeper = Some(env!("CARGO_BIN_EXE_envforge").into());
        config.path = format!("{}:{}", bin.display(), config.path);
    });
    let Some(machine) = machine.await else { return };
    machine.wake(DATABASE).await;
    let service = until_written(&machine.data().join("service")).await;
    let lines: Vec<_> = service.lines().collect();
    assert_eq!(lines[..2], ["service-database", "workspace"], "{service}");
    assert_eq!(lines[2], lines[3], "its home is where it keeps things");
    assert_eq!(until_written(&machine.data().join("probe")).await, "service-database\n");
    assert_eq!(until_written(&machine.data().join("other")).await, "service-other\n");
    let (text, _) = all_of(machine.job("id -un", BTreeMap::new()).await).await;
    assert_eq!(text, "workspace\n");
    // As where somebody replaces the machine's files: what is started again has its name again.
    let pid = std::fs::read_to_string(machine.data().join("pid")).unwrap();
    let uncover = ["-t", pid.trim(), "-m", "umount", "/etc/passwd"];
    assert!(Command::new("nsenter").args(uncover).status().unwrap().success());
    std::fs::remove_file(machine.data().join("other")).unwrap();
    assert!(Command::new("kill").args(["-9", pid.trim()]).status().unwrap().success());
    assert_eq!(until_written(&machine.data().join("other")).await, "service-other\n");
    machine.host.sleep(workspace(), 1).await.unwrap();
    assert_eq!(until_written(&machine.data().join("hook")).await, "workspace\n");
    assert_eq!(std::fs::read("/etc/passwd").unwrap(), before, "the machine's own stay as they are");
    machine.host.shutdown().await;
}

/// What the dynamic loader does as it is told by a job's variables it does as the job's user: no program before the job is root.
#[tokio::test(flavor = "multi_thread")]
async fn variables_of_a_job_move_no_program_that_is_root() {
    let Some(machine) = Machine::open().await else { return };
    machine.wake("version: 1\nservices:\n  app:\n    command: exec sleep 100000\n    port: none\n").await;
    let traces = machine.data().join("loader");
    let told = [("LD_DEBUG", "files".to_owned()), ("LD_DEBUG_OUTPUT", traces.display().to_string())];
    let told = told.into_iter().map(|(name, value)| (name.to_owned(), Secret::new(value))).collect();
    let (text, code) = all_of(machine.job("id -u; id -un", told).await).await;
    let (uid, name) = text.trim().split_once('\n').unwrap();
    assert_eq!((name, code), ("service-job.unit", Some(0)), "{text}");
    let written = std::fs::read_dir(machine.data()).unwrap().map(|entry| entry.unwrap());
    let owners: Vec<_> = written
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("loader."))
        .map(|entry| entry.metadata().unwrap().uid().to_string())
        .collect();
    assert!(owners.len() >= 3 && owners.iter().all(|owner| owner == uid), "{owners:?} and not {uid} alone");
    machine.host.shutdown().await;
}

async fn until_written(path: &Path) -> String {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || {
        envforge_testkit::wait_until("the terminal wrote", PATIENCE, || {
            std::fs::read_to_string(&path).is_ok_and(|text| text.ends_with('\n'))
        });
        std::fs::read_to_string(&path).unwrap()
    })
    .await
    .unwrap()
}
