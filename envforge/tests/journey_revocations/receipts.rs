//! What revocations say that they closed, where gateways, or several processes of the API, run as processes of their own: also
//! when one of them was killed, or stands still.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use envforge_testkit::eventually;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Child;

use crate::person::Person;
use crate::probe::{Meaning, Outcome};
use crate::site::{DEADLINE, Site};
use crate::wire::{Connection, Heard};

/// A gateway of which nothing is heard is waited for that long, with what asking and looking take.
const LEASE: Duration = Duration::from_secs(8);
/// Nobody is waited for.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Takes the link of somebody, who gets another one; answers the receipt, and how long it took.
async fn revoke_link(site: &Site, person: &mut Person) -> (Value, Duration) {
    let link = person.link.take().unwrap();
    let asked = Instant::now();
    let revoked = site.as_owner("POST", &format!("/v1/orgs/acme/links/{}/revoke", link.id), Some(&json!({}))).await;
    let took = asked.elapsed();
    person.sockets.retain(|held| held.what != "socket of a reviewer");
    (revoked.json()["receipt"].clone(), took)
}

/// The receipt that was written down last.
async fn recorded(site: &Site) -> Value {
    let events = site.as_owner("GET", "/v1/orgs/acme/events?type=dev_link.revocation_recorded", None).await;
    let last = events.body.lines().rfind(|line| !line.is_empty()).unwrap_or_else(|| panic!("{events:?}"));
    serde_json::from_str::<Value>(last).unwrap()["data"]["receipt"].clone()
}

/// Takes the role of somebody at the second API; answers the receipt, and how long it took.
async fn revoke_role(site: &Site, person: &Person) -> (Value, Duration) {
    let asked = Instant::now();
    let path = format!("/v1/orgs/acme/roles?user={}&role=admin", person.user);
    let revoked = site.as_owner_at(1, "DELETE", &path, None).await;
    (revoked.json(), asked.elapsed())
}

/// A command of somebody's in the workspace, as its line begins: the client, and the command's process on the host.
async fn open_shell(site: &Site, person: &Person, workspace: &str) -> (Child, String) {
    let args = ["shell", workspace, "--", "sh", "-c", "echo $$; exec sleep 100000"];
    let mut shell = person.command(site, &args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(shell.stdout.take().unwrap()).lines();
    let line = tokio::time::timeout(DEADLINE, lines.next_line()).await.unwrap().unwrap();
    (shell, line.unwrap_or_else(|| panic!("{}", site.complaints())))
}

fn is_alive(process: &str) -> bool {
    Path::new("/proc").join(process).exists()
}

async fn until_dead(process: &str, within: Duration) {
    eventually("the end of the shell's process", within, async || (!is_alive(process)).then_some(())).await;
}

fn unknown(gateway: &str, reason: &str) -> Value {
    json!([{ "gateway": gateway, "reason": reason }])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_counts_the_sockets_of_all_gateways_and_names_those_that_were_killed_or_stand_still() {
    let mut site = Site::cluster(3).await;
    let home = site.workspace().await;
    let mut person = Person::hire(&site, 1, false, &home).await;
    person.refit(&site).await;

    let (receipt, took) = revoke_link(&site, &mut person).await;
    assert_eq!((&receipt["sockets"], &receipt["links"]), (&json!(3), &json!(1)), "one at each gateway: {receipt}");
    assert_eq!((&receipt["sessions"], &receipt["gateways_unknown"]), (&json!(1), &json!([])), "{receipt}");
    assert!(took < AT_ONCE, "{took:?}");
    let written = recorded(&site).await;
    assert_eq!((&written["sockets"], &written["uncounted"]), (&json!(3), &json!([])), "{written}");

    // Killed: it is waited for until its lease is over, once.
    person.refit(&site).await;
    let killed = site.gateway_id(2);
    site.gateway_process(2).kill9();
    let (receipt, took) = revoke_link(&site, &mut person).await;
    assert_eq!((&receipt["sockets"], &receipt["sockets_unknown"]), (&Value::Null, &json!("gateway_lost")), "{receipt}");
    assert_eq!(receipt["gateways_unknown"], unknown(&killed, "gateway_lost"), "{receipt}");
    assert!(took < LEASE, "{took:?}");
    println!("with one killed: {} ms", took.as_millis());
    let written = recorded(&site).await;
    assert_eq!(written["uncounted"], json!([{ "gateway": killed, "why": "gateway_lost" }]), "{written}");
    assert_eq!(written["sockets"], 2, "those of the others: {written}");
    site.forget_last_gateway();
    person.sockets.clear();
    person.refit(&site).await;
    let (receipt, took) = revoke_link(&site, &mut person).await;
    assert_eq!((&receipt["sockets"], &receipt["gateways_unknown"]), (&json!(2), &json!([])), "{receipt}");
    assert!(took < AT_ONCE, "{took:?}");

    // Stopped in the middle of everything: it refuses from the moment on at which it goes on.
    person.refit(&site).await;
    let (frozen, cookie) = (site.gateway_id(1), person.reviewers_cookie());
    let mut at_frozen = Connection::new(site.gateways[1], Ipv4Addr::LOCALHOST);
    let page = site.app("GET", &home.label, "/data").fetch().with("cookie", &cookie);
    assert_eq!(Meaning::App.of(&at_frozen.send(&page).await.0), Outcome::LetIn);
    let mut held = person.take_socket("socket of a reviewer", 1);
    site.gateway_process(1).signal(Signal::SIGSTOP);
    let (receipt, took) = revoke_link(&site, &mut person).await;
    assert_eq!(receipt["gateways_unknown"], unknown(&frozen, "gateway_lost"), "{receipt}");
    assert!(took < LEASE, "{took:?}");
    println!("with one that stands still: {} ms", took.as_millis());
    site.gateway_process(1).signal(Signal::SIGCONT);
    for _ in 0..50 {
        let answer = at_frozen.send(&page).await.0;
        assert_ne!(Meaning::App.of(&answer), Outcome::LetIn, "{answer:?}");
        assert!(matches!(answer.status, 401 | 403 | 410 | 503), "{answer:?}");
    }
    assert_eq!(held.open.say("after", Duration::from_secs(3)).await, Heard::Closed);

    // It enters anew by itself, and is counted again.
    let deadline = Instant::now() + DEADLINE;
    let member = site.app("GET", &home.label, "/data").fetch().with("cookie", person.members_cookie());
    while Meaning::App.of(&at_frozen.send(&member).await.0) != Outcome::LetIn {
        assert!(Instant::now() < deadline, "it never serves again");
    }
    person.sockets.clear();
    person.refit(&site).await;
    let (receipt, _) = revoke_link(&site, &mut person).await;
    assert_eq!((&receipt["sockets"], &receipt["gateways_unknown"]), (&json!(2), &json!([])), "{receipt}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_counts_the_shells_of_all_processes_of_the_api_and_names_those_that_stand_still_or_were_killed() {
    let mut site = Site::cluster_of([&["api", "reactors"], &["api"]], &[], 1).await;
    let home = site.workspace().await;
    let mut person = Person::hire(&site, 1, false, &home).await;
    person.refit(&site).await;

    // Open at the first one, and the right is taken at the second.
    let (mut client, process) = open_shell(&site, &person, &home.slug).await;
    let (receipt, took) = revoke_role(&site, &person).await;
    until_dead(&process, AT_ONCE).await;
    assert_eq!((&receipt["shells"], &receipt["processes_unknown"]), (&json!(1), &json!([])), "{receipt}");
    assert_eq!(receipt["shells_unknown"], Value::Null, "{receipt}");
    assert!(took < AT_ONCE, "{took:?}");
    tokio::time::timeout(DEADLINE, client.wait()).await.unwrap().unwrap();
    let events = site.as_owner("GET", "/v1/orgs/acme/events?type=organization.revocation_recorded", None).await;
    let last: Value = serde_json::from_str(events.body.lines().rfind(|line| !line.is_empty()).unwrap()).unwrap();
    let written = &last["data"]["receipt"];
    assert_eq!((&written["shells"], &written["shells_uncounted"]), (&json!(1), &json!([])), "{written}");

    // It stands still with a shell that it holds: the receipt says that nothing is known of it, and nothing is counted.
    person.give_role(&site).await;
    let (mut client, process) = open_shell(&site, &person, &home.slug).await;
    let frozen = site.api_id(0);
    site.api_process(0).signal(Signal::SIGSTOP);
    let (receipt, took) = revoke_role(&site, &person).await;
    let lost = json!([{ "process": frozen, "reason": "process_lost" }]);
    assert_eq!((&receipt["shells"], &receipt["processes_unknown"]), (&json!(0), &lost), "{receipt}");
    assert_eq!(receipt["shells_unknown"], "process_lost", "{receipt}");
    assert!(took < LEASE, "{took:?}");
    assert!(is_alive(&process), "nobody has ended it");
    site.api_process(0).signal(Signal::SIGCONT);
    until_dead(&process, AT_ONCE).await;
    tokio::time::timeout(DEADLINE, client.wait()).await.unwrap().unwrap();

    // It enters anew by itself, before which it keeps no shell, and is counted again.
    person.give_role(&site).await;
    eventually("a shell at the process that stood still", DEADLINE, async || {
        let ran = person.command(&site, &["shell", &home.slug, "--", "true"]).output().await.unwrap();
        ran.status.success().then_some(())
    })
    .await;
    let (mut client, process) = open_shell(&site, &person, &home.slug).await;
    let (receipt, _) = revoke_role(&site, &person).await;
    assert_eq!((&receipt["shells"], &receipt["processes_unknown"]), (&json!(1), &json!([])), "{receipt}");
    until_dead(&process, AT_ONCE).await;
    tokio::time::timeout(DEADLINE, client.wait()).await.unwrap().unwrap();
    person.give_role(&site).await;
    site.api_process(0).kill9();
    let (receipt, took) = revoke_role(&site, &person).await;
    assert_eq!(receipt["processes_unknown"], lost, "{receipt}");
    assert!(took < LEASE, "{took:?}");
}
