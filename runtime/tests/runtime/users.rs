//! Services with users of their own, as root with real processes: what siblings and the shell cannot read, and that everything
//! else goes on as before. Where the tests are not root there are no such users, and they say so.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use envforge_domain::manifest::Probe;
use envforge_domain::secret::Secret;
use envforge_domain::time::Millis;
use envforge_runtime::{LocalHost, NoUsers, Stage, UnixUser, UnixUsers, UserBlock};
use tempfile::TempDir;
use tokio::sync::watch;

use crate::fixture::*;

/// A host whose state directory others can enter; `None` where the tests do not run as root.
async fn host() -> Option<(Host, PathBuf)> {
    let directory = open_directory();
    let state = directory.path().join("state");
    if UnixUsers::supported(&state) == Err(NoUsers::NotRoot) {
        eprintln!("not root: services have no users of their own here, and nothing was tested");
        return None;
    }
    let registry = directory.path().join("registry");
    let mut config = config(&state);
    config.unix_users = Some(registry.clone());
    let (host, _) = LocalHost::open(config).await.unwrap();
    Some((Host { host, state, _directory: directory }, registry))
}

fn open_directory() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

fn block(host: &Host) -> UserBlock {
    host.host.unix_users().unwrap().known(workspace(1)).unwrap().unwrap()
}

/// What a script that runs as somebody writes to its standard output.
fn run_as(user: UnixUser, script: &str) -> (bool, String) {
    let mut command = Command::new("/bin/sh");
    let output = command.arg("-c").arg(script).uid(user.uid).gid(user.gid).current_dir("/").output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[tokio::test]
async fn neither_siblings_nor_the_shell_read_a_services_secrets() {
    let Some((host, _)) = host().await else { return };
    let repository = Repository::with(&[("app.txt", "one\n")]);
    let steal = "while ! test -s \"$ENVFORGE_DATA_DIR/holder\"; do sleep 0.02; done; pid=$(cat \"$ENVFORGE_DATA_DIR/holder\"); \
                 { cat /proc/$pid/environ || echo refused; } > \"$ENVFORGE_DATA_DIR/stolen\" 2>/dev/null; \
                 { cat \"$HOME/../holder/kept\" || echo refused; } > \"$ENVFORGE_DATA_DIR/home\" 2>/dev/null; exec sleep 1000";
    let mut holder = service(
        "holder",
        "echo \"$API_KEY\" > \"$HOME/kept\"; echo $$ > \"$ENVFORGE_DATA_DIR/holder\"; exec sleep 1000",
    );
    holder.secrets = vec!["API_KEY".to_owned()];
    let mut order = order(&repository, [holder, service("thief", steal)]);
    order.secrets.insert("API_KEY".to_owned(), Secret::new("canary-4711".to_owned()));
    host.wake(order).await.unwrap();
    let pid = host.pid(workspace(1), "holder").await;
    assert!(fs::read_to_string(format!("/proc/{pid}/environ")).unwrap().contains("canary-4711"), "root sees it");
    assert_eq!(host.written(workspace(1), "stolen").await, "refused");
    assert_eq!(host.written(workspace(1), "home").await, "refused");
    let block = block(&host);
    let (read, text) = run_as(block.shell(), &format!("cat /proc/{pid}/environ"));
    assert!(!read && text.is_empty(), "{text}");
    let (read, _) = run_as(block.shell(), &format!("ls {}", host.place(workspace(1)).join("homes/holder").display()));
    assert!(!read);
    let (read, _) = run_as(block.shell(), &format!("ls {}", host.state.join("runtimes").display()));
    assert!(!read, "the host's own records are nobody's to read");
    let owner = block.service(&name("holder")).unwrap();
    let status = fs::metadata(format!("/proc/{pid}")).unwrap();
    assert_eq!((status.uid(), status.gid()), (owner.uid, owner.gid));
    assert_ne!(owner.uid, block.service(&name("thief")).unwrap().uid);
    // No group of root's came along.
    let groups = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let groups = groups.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap().trim().to_owned();
    assert_eq!(groups, "");
    host.host.shutdown().await;
}

#[tokio::test]
async fn all_of_a_workspace_write_its_checkout_and_the_next_wake_makes_it_the_branch_again() {
    let Some((host, _)) = host().await else { return };
    let repository = Repository::with(&[("src/app.txt", "one\n"), (".gitignore", "kept\n")]);
    let mess = "mkdir -m 700 -p src/mine && echo x > src/mine/file && echo two > src/app.txt && echo k > kept && \
                id -u > \"$ENVFORGE_DATA_DIR/web\"; echo out > /dev/stderr; exec sleep 1000";
    let probe = "test -s \"$ENVFORGE_DATA_DIR/web\" && id -u > \"$ENVFORGE_DATA_DIR/probe\"";
    let other = "while ! test -s kept; do sleep 0.02; done; echo more >> kept; echo done > \"$ENVFORGE_DATA_DIR/other\"; exec sleep 1000";
    let probed = envforge_domain::manifest::Service {
        readiness: ready_by(Probe::Command { command: probe.to_owned() }),
        ..service("web", mess)
    };
    let mut first = order(&repository, [probed, service("other", other)]);
    first.manifest.on_sleep = on_sleep("id -u > \"$ENVFORGE_DATA_DIR/hook\"; echo hooked", Millis::from_secs(30));
    host.wake(first.clone()).await.unwrap();
    host.written(workspace(1), "other").await;
    let block = block(&host);
    let web = block.service(&name("web")).unwrap().uid.to_string();
    assert_eq!(host.written(workspace(1), "web").await, web);
    assert_eq!(host.written(workspace(1), "probe").await, web);
    let tree = host.place(workspace(1)).join("checkout");
    let (wrote, _) = run_as(block.shell(), &format!("umask 0002; echo s > {}/src/shell.txt", tree.display()));
    assert!(wrote, "the shell writes the checkout too");
    host.host.sleep(workspace(1), 1).await.unwrap();
    assert_eq!(host.written(workspace(1), "hook").await, block.shell().uid.to_string());
    let output = host.place(workspace(1)).join("output");
    assert_eq!(fs::read_to_string(output.join("on_sleep.log")).unwrap(), "hooked\n");
    assert_eq!(fs::read_to_string(output.join("web.log")).unwrap(), "out\n");
    assert_eq!(fs::read_to_string(tree.join("kept")).unwrap(), "k\nmore\n");
    let commit = repository.commit(&[("src/new.txt", "new\n")]);
    let second = envforge_runtime::WakeOrder { epoch: 2, ..first };
    assert_eq!(host.wake(second).await.unwrap().commit, commit);
    assert!(!tree.join("src/shell.txt").exists(), "what is not of the branch is gone");
    assert_eq!(fs::read_to_string(tree.join("src/new.txt")).unwrap(), "new\n");
    assert_eq!(fs::metadata(tree.join("src/new.txt")).unwrap().uid(), block.shell().uid);
    host.host.shutdown().await;
}

#[tokio::test]
async fn what_hides_from_everything_else_is_found_by_its_user() {
    let Some((host, _)) = host().await else { return };
    let repository = Repository::with(&[]);
    let hide =
        "(setsid env -i /bin/sh -c \"echo \\$\\$ > '$ENVFORGE_DATA_DIR/hidden'; exec sleep 1000\" &) ; exec sleep 1000";
    host.wake(order(&repository, [service("app", hide)])).await.unwrap();
    let pid = host.pid(workspace(1), "hidden").await;
    assert!(is_alive(pid));
    host.host.sleep(workspace(1), 1).await.unwrap();
    assert!(!is_alive(pid), "it hides behind no marker, group or parent");
    host.host.shutdown().await;
}

#[tokio::test]
async fn nothing_of_a_removed_workspace_runs_or_is_held() {
    let Some((host, registry)) = host().await else { return };
    let repository = Repository::with(&[]);
    host.wake(order(&repository, [service("app", "exec sleep 1000")])).await.unwrap();
    let shell = block(&host).shell();
    let mut left = Command::new("sleep").arg("1000").uid(shell.uid).gid(shell.gid).current_dir("/").spawn().unwrap();
    host.host.sleep(workspace(1), 1).await.unwrap();
    assert!(left.try_wait().unwrap().is_none(), "a shell outlives the runtime");
    host.host.remove(workspace(1)).await.unwrap();
    left.wait().unwrap();
    assert!(!host.place(workspace(1)).exists());
    assert_eq!(host.host.unix_users().unwrap().known(workspace(1)).unwrap(), None);
    let held: Vec<_> = fs::read_dir(registry).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(held, ["lock"]);
    host.host.shutdown().await;
}

#[tokio::test]
async fn a_state_directory_that_others_cannot_enter_gives_nobody_a_user() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let state = directory.path().join("state");
    match UnixUsers::supported(&state) {
        Err(NoUsers::NotRoot) => return eprintln!("not root: nothing was tested"),
        other => {
            assert_eq!(other, Err(NoUsers::Unreachable { directory: directory.path().to_owned(), mode: 0o700 }));
        }
    }
    // A link from elsewhere opens no directory.
    let elsewhere = open_directory();
    std::os::unix::fs::symlink(directory.path(), elsewhere.path().join("link")).unwrap();
    let through = UnixUsers::supported(&elsewhere.path().join("link/state"));
    assert_eq!(through, Err(NoUsers::Unreachable { directory: directory.path().to_owned(), mode: 0o700 }));
    let mut config = config(&state);
    config.unix_users = Some(directory.path().join("registry"));
    let (host, _) = LocalHost::open(config).await.unwrap();
    assert!(host.unix_users().is_none());
    let repository = Repository::with(&[]);
    let order = order(&repository, [service("app", "id -u > \"$ENVFORGE_DATA_DIR/id\"; exec sleep 1000")]);
    host.wake(order, watch::channel(Stage::CheckingOut).0).await.unwrap();
    let file = state.join("workspaces").join(workspace(1).to_string()).join("data/id");
    eventually("the service's id", || fs::read_to_string(&file).is_ok_and(|text| text == "0\n")).await;
    host.shutdown().await;
}
