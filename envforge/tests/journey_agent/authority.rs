//! The operator replaces the authority for agents while one is connected and runs something.

use std::process::Command;
use std::time::{Duration, Instant};

use envforge_testkit::{TestProcess, eventually, wait_until};
use serde_json::Value;

use crate::site::{DEADLINE, Site, is_dead};

const CERTIFICATE_SECONDS: u64 = 10;

fn rotate(site: &Site, more: &[&str]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
    command.args(["--json", "rotate-agents-authority", "--keys"]).arg(site.dir.join("data/keys")).args(more);
    let output = command.output().unwrap();
    let told = if output.status.success() { output.stdout } else { output.stderr };
    (output.status.success(), String::from_utf8(told).unwrap())
}

fn authority(told: &str) -> String {
    serde_json::from_str::<Value>(told.lines().last().unwrap()).unwrap()["authority"].as_str().unwrap().to_owned()
}

/// Whom the agent trusts: the one that the control plane came by, and the one that certified it where that is another.
fn trusted(site: &Site) -> (String, Option<String>) {
    let text = std::fs::read_to_string(site.dir.join("builder/agent.json")).unwrap();
    let kept: Value = serde_json::from_str(&text).unwrap();
    (kept["authority"].as_str().unwrap().to_owned(), kept["next_authority"].as_str().map(str::to_owned))
}

fn restarted(site: &mut Site, dev: &mut TestProcess) {
    assert!(dev.terminate(DEADLINE).success(), "{}", dev.stderr());
    *dev = site.start().0;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_replaces_the_authority_while_an_agent_runs_something() {
    let (mut site, mut dev) = Site::with_certificates_of(CERTIFICATE_SECONDS);
    let token = site.enrolment("builder");
    let mut agent = site.agent("builder", &site.at(), Some(&token));
    site.until_host("builder", "active").await;
    site.json(&["up"]);
    let started = site.starts_on("builder").pop().unwrap();
    let (first, none) = trusted(&site);
    assert_eq!(none, None);
    assert!(rotate(&site, &["--finish"]).1.contains("no other authority"));

    let (done, told) = rotate(&site, &[]);
    assert!(done, "{told}");
    let (second, begun) = (authority(&told), Instant::now());
    assert!(rotate(&site, &[]).1.contains("already"));
    assert!(rotate(&site, &["--finish"]).1.contains("may count"), "a day is not over");
    restarted(&mut site, &mut dev);
    eventually("both trusted", DEADLINE, async || {
        (trusted(&site) == (first.clone(), Some(second.clone()))).then_some(())
    })
    .await;
    // A host that comes meanwhile learns both at once.
    let token = site.enrolment("late");
    let machine = site.dir.join("late-machine");
    std::fs::write(&machine, "0123456789abcdef0123456789abcdef\n").unwrap();
    let mut command = site.agent_command("late", &site.at(), Some(&token));
    command.arg("--machine-id").arg(&machine);
    let mut late = site.started("late", &command);
    site.until_host("late", "active").await;

    let life = Duration::from_secs(CERTIFICATE_SECONDS + 1);
    wait_until("the life of a certificate", 2 * life, || begun.elapsed() > life);
    let (done, told) = rotate(&site, &["--finish", "--agent-certificate-seconds", &CERTIFICATE_SECONDS.to_string()]);
    assert!(done && authority(&told) == second, "{told}");
    restarted(&mut site, &mut dev);
    eventually("the first one is dropped", DEADLINE, async || (trusted(&site) == (second.clone(), None)).then_some(()))
        .await;
    assert_eq!(site.app_through_the_gateway().await.trim(), started, "the same process, started once");
    assert!(!is_dead(&started) && agent.is_running() && late.is_running(), "{}{}", agent.stderr(), late.stderr());
    // Tokens carry the one that is left.
    let token = site.enrolment("builder");
    assert!(std::fs::read_to_string(token).unwrap().contains(&second));
}
