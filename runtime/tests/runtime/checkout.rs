//! What git brings and what it is kept from doing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use envforge_runtime::{CheckoutFailure, WakeFailure};

use crate::fixture::*;

#[tokio::test]
async fn each_wake_has_the_branch_as_it_is_then() {
    let (host, repository) = (Host::open().await, Repository::with(&[("old", "1\n"), (".gitignore", "cache\n")]));
    let mut order = order(&repository, [service("app", "touch cache untracked; exec sleep 1000")]);
    host.wake(order.clone()).await.unwrap();
    let tree = host.place(workspace(1)).join("checkout");
    eventually("the service wrote its files", || tree.join("untracked").exists()).await;
    fs::write(tree.join("old"), "scribbled\n").unwrap();
    host.host.sleep(workspace(1), 1).await.unwrap();

    repository.git(&["checkout", "--quiet", "--orphan", "rewritten"]);
    repository.git(&["rm", "--quiet", "--force", "old"]);
    let tip = repository.commit(&[("new", "2\n")]);
    repository.git(&["branch", "--force", "main", "HEAD"]);
    // What is not committed does not come along.
    repository.write("new", "not committed\n");
    order.epoch = 2;
    order.manifest = manifest([service("app", "exec sleep 1000")]);
    let awake = host.wake(order).await.unwrap();
    assert_eq!(awake.commit, tip);
    assert_eq!(fs::read_to_string(tree.join("new")).unwrap(), "2\n");
    assert!(!tree.join("old").exists() && !tree.join("untracked").exists());
    assert!(tree.join("cache").exists(), "what the branch ignores is kept for the next wake");
    host.host.shutdown().await;
}

#[tokio::test]
async fn a_file_url_and_another_branch_work() {
    let (host, repository) = (Host::open().await, Repository::with(&[("on", "main\n")]));
    repository.git(&["checkout", "--quiet", "-b", "feature/signed-links"]);
    let tip = repository.commit(&[("on", "feature\n")]);
    let mut order = order(&repository, [service("app", "cat on > \"$ENVFORGE_DATA_DIR/on\"; exec sleep 1000")]);
    order.repository = format!("file://{}", repository.address());
    order.branch = "feature/signed-links".to_owned();
    assert_eq!(host.wake(order).await.unwrap().commit, tip);
    assert_eq!(host.written(workspace(1), "on").await, "feature");
    host.host.shutdown().await;
}

#[tokio::test]
async fn a_missing_branch_is_named_with_its_nearest_neighbours() {
    let (host, repository) = (Host::open().await, Repository::with(&[]));
    for branch in ["signed-links", "signed-link", "billing", "gateway", "console", "docs"] {
        repository.git(&["branch", branch]);
    }
    let mut order = order(&repository, [service("app", "sleep 1000")]);
    order.branch = "singed-links".to_owned();
    let failure = host.wake(order).await.unwrap_err();
    let WakeFailure::Checkout(CheckoutFailure::NoSuchBranch { branch, near }) = &failure else { panic!("{failure}") };
    assert_eq!(branch, "singed-links");
    assert_eq!(near.len(), 5);
    assert_eq!(near[..2], ["signed-links", "signed-link"]);
    assert!(failure.to_string().contains("near names are `signed-links`"), "{failure}");
    assert!(!failure.may_pass_on_retry());
}

#[tokio::test]
async fn addresses_and_branches_that_could_run_programs_never_reach_git() {
    let (host, repository) = (Host::open().await, Repository::with(&[]));
    let canary = host.state.join("canary");
    let touch = format!("touch {}", canary.display());
    for address in [format!("ext::sh -c {touch}"), format!("--upload-pack={touch}"), "http://example.com/x".to_owned()]
    {
        let mut order = order(&repository, [service("app", "sleep 1000")]);
        order.repository = address;
        let failure = host.wake(order).await.unwrap_err();
        assert!(matches!(failure, WakeFailure::Checkout(CheckoutFailure::Repository { .. })), "{failure}");
    }
    let mut order = order(&repository, [service("app", "sleep 1000")]);
    order.branch = format!("--upload-pack={touch}");
    let failure = host.wake(order).await.unwrap_err();
    assert!(matches!(failure, WakeFailure::Checkout(CheckoutFailure::Branch { .. })), "{failure}");
    assert!(!canary.exists());
}

#[tokio::test]
async fn no_repository_at_the_address_is_told_from_a_missing_branch() {
    let host = Host::open().await;
    let empty = Repository::with(&[]);
    let mut order = order(&empty, [service("app", "sleep 1000")]);
    order.repository = "/nonexistent/repository".to_owned();
    let failure = host.wake(order).await.unwrap_err();
    assert!(
        matches!(&failure, WakeFailure::Checkout(CheckoutFailure::Unreachable { detail }) if detail.contains("does not appear to be a git repository")),
        "{failure}"
    );
    assert!(failure.may_pass_on_retry());
}

#[tokio::test]
async fn hooks_and_configuration_in_the_way_are_not_obeyed() {
    let (host, repository) = (Host::open().await, Repository::with(&[("file", "1\n")]));
    let canary = host.state.join("canary");
    let mut order = order(&repository, [service("app", "exec sleep 1000")]);
    host.wake(order.clone()).await.unwrap();
    host.host.sleep(workspace(1), 1).await.unwrap();
    // As a service could have left it behind in its own checkout and in the repository's hooks.
    let (tree, own) = (host.place(workspace(1)).join("checkout"), host.place(workspace(1)).join("repository.git"));
    fs::write(tree.join(".git"), "gitdir: /nonexistent\n").unwrap();
    fs::create_dir_all(own.join("hooks")).unwrap();
    for hook in ["post-checkout", "reference-transaction", "pre-auto-gc"] {
        let path = own.join("hooks").join(hook);
        fs::write(&path, format!("#!/bin/sh\ntouch {}\n", canary.display())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let tip = repository.commit(&[("file", "2\n")]);
    order.epoch = 2;
    assert_eq!(host.wake(order).await.unwrap().commit, tip);
    assert_eq!(fs::read_to_string(tree.join("file")).unwrap(), "2\n");
    assert!(!canary.exists());
    host.host.shutdown().await;
}

#[tokio::test]
async fn a_broken_checkout_and_stale_locks_are_made_good() {
    let (host, repository) = (Host::open().await, Repository::with(&[("file", "1\n")]));
    let mut order = order(&repository, [service("app", "exec sleep 1000")]);
    host.wake(order.clone()).await.unwrap();
    let own = host.place(workspace(1)).join("repository.git");
    host.host.sleep(workspace(1), 1).await.unwrap();
    for lock in ["index.lock", "shallow.lock", "HEAD.lock"] {
        fs::write(own.join(lock), "").unwrap();
    }
    order.epoch = 2;
    host.wake(order.clone()).await.unwrap();
    host.host.sleep(workspace(1), 2).await.unwrap();
    fs::write(own.join("index"), "not an index").unwrap();
    order.epoch = 3;
    host.wake(order).await.unwrap();
    assert_eq!(fs::read_to_string(host.place(workspace(1)).join("checkout/file")).unwrap(), "1\n");
    host.host.shutdown().await;
}

#[tokio::test]
async fn a_checkout_that_hangs_is_given_up_and_its_processes_end() {
    // A git that never answers stands on the path before the real one.
    let tools = tempfile::tempdir().unwrap();
    let git = tools.path().join("git");
    let pid = tools.path().join("pid");
    fs::write(&git, format!("#!/bin/sh\nsleep 1000 &\necho $! > {}\nwait\n", pid.display())).unwrap();
    fs::set_permissions(&git, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:/usr/bin:/bin", tools.path().display());
    let host = Host::configured(|config| {
        config.path = path;
        config.checkout_duration_max = Duration::from_secs(1);
    })
    .await;
    let repository = Repository::with(&[]);
    let failure = host.wake(order(&repository, [service("app", "sleep 1000")])).await.unwrap_err();
    assert!(matches!(failure, WakeFailure::Checkout(CheckoutFailure::TooSlow { .. })), "{failure}");
    let hanging: u32 = fs::read_to_string(pid).unwrap().trim().parse().unwrap();
    assert!(!is_alive(hanging));
}

#[tokio::test]
async fn a_host_without_git_says_so() {
    let host = Host::configured(|config| config.path = "/nonexistent".to_owned()).await;
    let repository = Repository::with(&[]);
    let failure = host.wake(order(&repository, [service("app", "sleep 1000")])).await.unwrap_err();
    assert_eq!(failure, WakeFailure::Checkout(CheckoutFailure::GitMissing));
}
