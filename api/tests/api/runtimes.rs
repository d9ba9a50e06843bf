//! Waking, sleeping, keeping awake.

use envforge_domain::ids::OrgId;
use envforge_domain::time::Millis;
use serde_json::json;

use crate::house::{House, Person};

const RUNTIME: &str = "/v1/orgs/acme/workspaces/signed-links";

/// A ready runtime: its position.
async fn ready(house: &House, owner: &Person) -> (OrgId, u64) {
    let workspace = house.workspace(owner).await;
    owner.post(&format!("{RUNTIME}/wake"), json!({})).await.expect(202);
    let org = house.hot.authorization.organization_by_slug(&"acme".parse().unwrap()).unwrap();
    (org, house.report_ready(org, workspace.parse().unwrap()).await)
}

#[tokio::test]
async fn a_wake_is_under_way_with_its_cause_and_a_second_one_joins_it() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let head = house.log.head().await.unwrap().position.get();
    let asleep = owner.get_at(&format!("{RUNTIME}/runtime"), head).await.expect(200);
    assert_eq!((asleep.text("phase"), asleep.body["epoch"].as_u64()), ("asleep".into(), Some(0)));
    let first = owner.post(&format!("{RUNTIME}/wake"), json!({"job": "unit tests"})).await.expect(202);
    assert_eq!(first.body, json!({"phase": "waking", "epoch": 1}));
    let second = owner.post(&format!("{RUNTIME}/wake"), json!({})).await.expect(202);
    assert_eq!(second.body, json!({"phase": "waking", "epoch": 1}));
    let waking = owner.get_at(&format!("{RUNTIME}/runtime"), first.position()).await.expect(200);
    assert_eq!(waking.body["cause"]["kind"], "job");
    assert_eq!(waking.body["cause"]["name"], "unit tests");
    assert!(waking.body["sleeps_at"].is_null());
    let both = owner.post(&format!("{RUNTIME}/wake"), json!({"job": "a", "agent": "b"})).await;
    both.expect_problem(422, "value_invalid");
}

#[tokio::test]
async fn a_ready_runtime_says_why_it_is_awake_and_when_it_sleeps_and_names_no_address() {
    let house = House::start().await;
    let owner = house.owner().await;
    let (_, position) = ready(&house, &owner).await;
    let runtime = owner.get_at(&format!("{RUNTIME}/runtime"), position).await.expect(200);
    assert_eq!(runtime.text("phase"), "ready");
    assert_eq!(runtime.text("awake_because"), "activity");
    assert!(runtime.body["sleeps_at"].is_string());
    let services = runtime.body["services"].as_array().unwrap();
    assert!(services.iter().all(|service| service["ready"] == true), "{services:?}");
    for address in ["127.0.0.1", "49999", "hst_"] {
        assert!(!runtime.body.to_string().contains(address), "{address}");
    }
}

#[tokio::test]
async fn keeping_awake_is_capped_by_the_organization_and_holds_off_sleep() {
    let house = House::start().await;
    let owner = house.owner().await;
    let (_, position) = ready(&house, &owner).await;
    owner.patch("/v1/orgs/acme/policy", json!({"keep_awake_max_seconds": 3600})).await.expect(200);
    let keep = |seconds: u64| json!({"for_seconds": seconds, "reason": "demo at three"});
    let too_long = owner.post(&format!("{RUNTIME}/keep-awake"), keep(3601)).await;
    assert_eq!(too_long.expect_problem(422, "keep_awake_too_long").body["max_ms"], 3_600_000);
    let kept = owner.post_keyed(&format!("{RUNTIME}/keep-awake"), "keep", keep(3600)).await.expect(200);
    let again = owner.post_keyed(&format!("{RUNTIME}/keep-awake"), "keep", keep(3600)).await.expect(200);
    assert_eq!(kept.body, again.body, "a repeated request keeps awake no longer");
    let runtime = owner.get_at(&format!("{RUNTIME}/runtime"), kept.position().max(position)).await.expect(200);
    assert_eq!(runtime.text("awake_because"), "kept_awake");
    assert_eq!(runtime.text("sleeps_at"), kept.text("until"));
    let no_reason = owner.post(&format!("{RUNTIME}/keep-awake"), json!({"for_seconds": 60, "reason": " "})).await;
    no_reason.expect_problem(422, "reason_invalid");
}

#[tokio::test]
async fn a_sleeping_runtime_cannot_be_kept_awake_and_an_asleep_one_stays_asleep() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let keep = owner.post(&format!("{RUNTIME}/keep-awake"), json!({"for_seconds": 60, "reason": "demo"})).await;
    keep.expect_problem(409, "runtime_not_awake");
    let sleep = owner.post(&format!("{RUNTIME}/sleep"), json!({})).await;
    assert_eq!(sleep.expect(202).body, json!({"phase": "asleep", "epoch": 0}));
}

#[tokio::test]
async fn a_person_puts_a_ready_runtime_to_sleep() {
    let house = House::start().await;
    let owner = house.owner().await;
    let (_, _) = ready(&house, &owner).await;
    let sleep = owner.post(&format!("{RUNTIME}/sleep"), json!({})).await.expect(202);
    assert_eq!(sleep.body, json!({"phase": "sleeping", "epoch": 1}));
}

#[tokio::test]
async fn usage_counts_from_ready_on_and_not_from_the_next_sign_of_life() {
    let house = House::start().await;
    let owner = house.owner().await;
    let (_, position) = ready(&house, &owner).await;
    house.clock.skip(Millis::from_secs(5));
    let usage = owner.get_at("/v1/orgs/acme/usage", position).await.expect(200);
    let items = usage.body["items"].as_array().unwrap();
    assert_eq!(items.iter().map(|row| row["key"].as_str().unwrap()).collect::<Vec<_>>(), ["api", "web"]);
    for row in items {
        let service_ms = row["service_ms"].as_u64().unwrap();
        assert!((5_000..=30_000).contains(&service_ms), "{row}");
        assert_eq!(
            (row["unrecorded_service_ms"].as_u64(), row["millicore_ms"].as_u64()),
            (Some(service_ms), Some(service_ms * 100))
        );
    }
}
