//! Servers end also when their test is killed with SIGKILL, which no drop sees. Linux only: it is `setpriv` that asks the kernel for it.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use envforge_testkit::{TestDir, TestProcess, wait_for, wait_until};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(10);
const ROLE: &str = "ENVFORGE_TESTKIT_VICTIM";

/// Alone this does nothing; as the victim of the test below it starts a process, tells its id, and waits to be killed.
#[test]
fn victim() {
    let Some(told) = std::env::var_os(ROLE).map(PathBuf::from) else { return };
    let dir = TestDir::new();
    let mut forever = Command::new("tail");
    forever.args(["-f", "/dev/null"]);
    // Started by a thread that ends, as test threads do: the process has to outlive that and only that.
    let process =
        std::thread::scope(|scope| scope.spawn(|| TestProcess::spawn("forever", &forever, dir.path())).join().unwrap());
    std::fs::write(told.with_extension("partial"), process.id().to_string()).unwrap();
    std::fs::rename(told.with_extension("partial"), &told).unwrap();
    loop {
        std::thread::park();
    }
}

#[test]
fn a_test_killed_with_sigkill_takes_its_processes_along() {
    let dir = TestDir::new();
    let told = dir.join("process-id");
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "victim", "--nocapture"])
        .env(ROLE, &told)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let started = wait_for("the victim's process", DEADLINE, || std::fs::read_to_string(&told).ok());
    assert!(runs(&started));
    victim.kill().unwrap();
    victim.wait().unwrap();
    wait_until("the end of the victim's process", DEADLINE, || !runs(&started));
}

/// A zombie that its new parent has not looked at yet runs no more.
fn runs(process: &str) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(process).join("stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}
