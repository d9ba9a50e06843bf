//! What revocations say that they closed, where gateways run as processes of their own: also when one of them was killed, or
//! stands still.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

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
