//! What an organization allows at most, over HTTP: at once, foretold by a dry run; and grants for single workspaces.

use envforge_domain::commit::Position;
use envforge_domain::dev_link::{RouteFamilies, RouteFamily};
use envforge_domain::time::Millis;
use envforge_projections::gateway_view::LinkPhase;
use serde_json::{Value, json};

use crate::house::{Answer, House, MANIFEST, PASSWORD, PATIENCE, Person};

const POLICY: &str = "/v1/orgs/acme/policy";
const LINKS: &str = "/v1/orgs/acme/workspaces/signed-links/links";

async fn settled(house: &House, answer: Answer) -> Answer {
    house.hot.wait_for(Position::new(answer.position()), PATIENCE).await.unwrap();
    answer
}

async fn change(house: &House, owner: &Person, policy: Value) {
    settled(house, owner.patch(POLICY, policy).await.expect(200)).await;
}

async fn dry_run(owner: &Person, policy: Value) -> Value {
    owner.post(&format!("{POLICY}/dry-run"), policy).await.expect(200).body
}

#[tokio::test]
async fn every_setting_is_shown_as_it_was_set_and_what_is_left_out_stays() {
    let house = House::start().await;
    let owner = house.owner().await;
    let before = owner.get("/v1/orgs/acme").await.expect(200).body["policy"].clone();
    assert_eq!(before["link_issuers"], json!(["owner", "admin", "developer", "mod"]));
    assert_eq!(
        (&before["session_lifetime_max_seconds"], &before["identity_providers"]),
        (&json!(2_592_000), &json!([]))
    );
    let asked = json!({
        "link_issuers": ["owner"], "session_lifetime_max_seconds": 3600, "identity_providers": ["local", "https://id.test/"],
    });
    let mut changed = owner.patch(POLICY, asked).await.expect(200);
    assert!(changed.body.as_object_mut().unwrap().remove("receipt").is_some());
    assert_eq!(changed.body["identity_providers"], json!(["https://id.test/", "local"]));
    let after = owner.get("/v1/orgs/acme").await.expect(200).body["policy"].clone();
    assert_eq!(after, changed.body);
    assert_eq!(after["link_families"], before["link_families"]);
    for (wrong, status, code) in [
        (json!({"link_issuers": ["viewer"]}), 422, "policy_link_issuers_invalid"),
        (json!({"link_issuers": ["king"]}), 422, "value_invalid"),
        (json!({"session_lifetime_max_seconds": 60}), 422, "policy_out_of_range"),
        (json!({"identity_providers": ["acme"]}), 422, "policy_identity_providers_invalid"),
        (json!({"identity_providers": ["https://id.test/"]}), 409, "policy_locks_you_out"),
    ] {
        owner.patch(POLICY, wrong.clone()).await.expect_problem(status, code);
        owner.post(&format!("{POLICY}/dry-run"), wrong).await.expect_problem(status, code);
    }
}

#[tokio::test]
async fn roles_that_may_give_links_no_more_lose_theirs_as_the_dry_run_said() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let dave = house.member(&owner, "dave", &["developer"]).await;
    let of_dave = dave.post(LINKS, json!({"service": "web", "label": "dave's"})).await.expect(201).text("id");
    let of_owner = settled(&house, owner.post(LINKS, json!({"service": "web"})).await.expect(201)).await.text("id");
    let only_owners = json!({"link_issuers": ["owner"]});
    let told = dry_run(&owner, only_owners.clone()).await;
    assert_eq!((&told["changes"], &told["links_total"], &told["sessions_total"]), (&json!(true), &json!(1), &json!(0)));
    let link = &told["links"][0];
    assert_eq!((&link["id"], &link["label"], &link["ends_now"]), (&json!(of_dave), &json!("dave's"), &json!(true)));
    assert_eq!((&link["reasons"], &link["issued_by_name"]), (&json!(["issuer_may_not"]), &json!("dave")));
    let phase = |link: &str| house.hot.gateway.link(link.parse().unwrap()).unwrap().phase;
    assert_eq!(phase(&of_dave), LinkPhase::Active, "a dry run changes nothing");
    let shown = async || owner.get(&format!("/v1/orgs/acme/links/{of_dave}")).await.expect(200).body;
    assert_eq!(shown().await["open_families"], json!(["web", "api", "websockets"]));
    change(&house, &owner, only_owners).await;
    assert_eq!((phase(&of_dave), phase(&of_owner)), (LinkPhase::Revoked, LinkPhase::Active));
    let closed = shown().await;
    assert_eq!((&closed["phase"], &closed["open_until"]), (&json!("active"), &Value::Null));
    assert_eq!((&closed["open_families"], &closed["families"]), (&json!([]), &json!(["web", "api", "websockets"])));
    let refused = dave.post(LINKS, json!({"service": "web"})).await.expect_problem(403, "link_issuer_not_allowed");
    assert_eq!(refused.body["roles"], json!(["owner"]));
    dave.get(LINKS).await.expect(200);
    dave.post(&format!("/v1/orgs/acme/links/{of_dave}/revoke"), json!({})).await.expect(200);
    // Loosened again, the policy gives back what it took, and not what a person ended.
    change(&house, &owner, json!({"link_issuers": ["owner", "developer"]})).await;
    assert_eq!(phase(&of_dave), LinkPhase::Revoked);
}

#[tokio::test]
async fn links_open_less_and_for_less_time_when_the_organization_allows_less() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let issued = owner.post(LINKS, json!({"service": "web", "lifetime_seconds": 86_400})).await.expect(201);
    let link = settled(&house, issued).await.text("id").parse().unwrap();
    let view = || house.hot.gateway.link(link).unwrap();
    let (whole, end) = (view().families, view().expires_at);
    let told = dry_run(&owner, json!({"link_families": ["web"], "link_lifetime_max_seconds": 3600})).await;
    assert_eq!(told["links"][0]["families_lost"], json!(["api", "websockets"]));
    assert_eq!(told["links"][0]["reasons"], json!(["too_long", "families"]));
    change(&house, &owner, json!({"link_families": ["web"]})).await;
    assert_eq!(view().families, RouteFamilies::NONE.with(RouteFamily::Web));
    change(&house, &owner, json!({"link_lifetime_max_seconds": 3600})).await;
    assert_eq!(view().expires_at, view().issued_at.plus(Millis::from_hours(1)));
    change(&house, &owner, json!({"link_families": ["web", "api", "assets", "websockets", "marketing"]})).await;
    change(&house, &owner, json!({"link_lifetime_max_seconds": 604_800})).await;
    assert_eq!((view().families, view().expires_at), (whole, end));
}

#[tokio::test]
async fn whoever_is_signed_in_for_longer_than_allowed_has_to_sign_in_again() {
    let house = House::start().await;
    let owner = house.owner().await;
    let dave = house.member(&owner, "dave", &["developer"]).await;
    house.clock.skip(Millis::from_minutes(40));
    let fresh = house.owner().await;
    let told = dry_run(&fresh, json!({"session_lifetime_max_seconds": 1800})).await;
    assert_eq!(told["sessions_total"], 2, "{told:#}");
    assert!(told["sessions"].as_array().unwrap().iter().all(|session| session["reason"] == "too_old"));
    dave.get("/v1/orgs/acme").await.expect(200);
    change(&house, &fresh, json!({"session_lifetime_max_seconds": 1800})).await;
    dave.get("/v1/orgs/acme").await.expect_problem(401, "session_ended");
    owner.get("/v1/orgs/acme").await.expect_problem(401, "session_ended");
    fresh.get("/v1/orgs/acme").await.expect(200);
    let again = house.login("dave@acme.test", PASSWORD).await.expect(200).text("access_token");
    let mut dave = dave;
    dave.token = again;
    dave.get("/v1/orgs/acme").await.expect(200);
    house.clock.skip(Millis::from_minutes(31));
    dave.get("/v1/orgs/acme").await.expect_problem(401, "session_ended");
}

#[tokio::test]
async fn a_dry_run_of_a_role_tells_what_its_loss_would_end_and_refuses_like_the_change() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let dave = house.member(&owner, "dave", &["developer"]).await;
    let issued = dave.post(LINKS, json!({"service": "web"})).await.expect(201);
    let link = settled(&house, issued).await.text("id");
    let trial = "/v1/orgs/acme/roles/dry-run";
    let revoke = json!({"user": dave.user, "role": "developer", "revoke": true});
    let told = owner.post(trial, revoke.clone()).await.expect(200).body;
    assert_eq!((&told["links"][0]["id"], &told["links"][0]["reasons"]), (&json!(link), &json!(["issuer_may_not"])));
    let shorter = json!({"user": dave.user, "role": "developer", "expires_at": "2999-01-01T00:00:00Z"});
    assert_eq!(owner.post(trial, shorter).await.expect(200).body["links_total"], 0);
    let more = json!({"user": dave.user, "role": "viewer"});
    assert_eq!(owner.post(trial, more).await.expect(200).body["links_total"], 0);
    let same = json!({"user": dave.user, "role": "developer"});
    assert_eq!(owner.post(trial, same).await.expect(200).body["changes"], false);
    let last = json!({"user": owner.user, "role": "owner", "revoke": true});
    owner.post(trial, last).await.expect_problem(409, "last_owner");
    let mia = house.member(&owner, "mia", &["mod"]).await;
    mia.post(trial, revoke).await.expect_problem(403, "grant_above_yourself");
    dave.post(trial, json!({"user": dave.user, "role": "viewer"})).await.expect_problem(403, "role_missing");
    assert_eq!(house.hot.gateway.link(link.parse().unwrap()).unwrap().phase, LinkPhase::Active);
}

#[tokio::test]
async fn somebody_who_is_assigned_to_one_workspace_sees_and_works_on_that_one() {
    let house = House::start().await;
    let owner = house.owner().await;
    let assigned = house.workspace(&owner).await;
    let other = json!({"project": "orders", "slug": "other", "branch": "other", "manifest": MANIFEST});
    owner.post("/v1/orgs/acme/workspaces", other).await.expect(201);
    for workspace in ["signed-links", "other"] {
        let path = format!("/v1/orgs/acme/workspaces/{workspace}/links");
        owner.post(&path, json!({"service": "web"})).await.expect(201);
    }
    let gina = house.member(&owner, "gina", &[]).await;
    let role = json!({"user": gina.user, "role": "developer", "workspace": "signed-links"});
    let given = owner.post("/v1/orgs/acme/roles", role).await.expect(201);
    assert_eq!(given.body["workspace"], json!(assigned));
    let slugs = |answer: &Answer, field: &str| -> Vec<String> {
        let items = answer.body["items"].as_array().unwrap();
        items.iter().map(|item| item[field].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(slugs(&gina.get("/v1/orgs/acme/workspaces").await.expect(200), "slug"), ["signed-links"]);
    assert_eq!(slugs(&gina.get("/v1/orgs/acme/links").await.expect(200), "workspace_slug"), ["signed-links"]);
    gina.get("/v1/orgs/acme/workspaces/signed-links").await.expect(200);
    gina.post("/v1/orgs/acme/workspaces/signed-links/wake", json!({})).await.expect(202);
    gina.post(LINKS, json!({"service": "web"})).await.expect(201);
    for (path, code) in [
        ("/v1/orgs/acme/workspaces/other", "role_missing"),
        ("/v1/orgs/acme/workspaces/other/links", "role_missing"),
        ("/v1/orgs/acme/projects", "role_missing"),
        ("/v1/orgs/acme/projects/orders", "role_missing"),
        ("/v1/orgs/acme/members", "role_missing"),
    ] {
        gina.get(path).await.expect_problem(403, code);
    }
    // With a team on the other one, both are hers; with the project, all of it.
    owner.post("/v1/orgs/acme/teams", json!({"slug": "helpers"})).await.expect(201);
    owner.post("/v1/orgs/acme/teams/helpers/members", json!({"user": gina.user})).await.expect(201);
    owner
        .post("/v1/orgs/acme/roles", json!({"team": "helpers", "role": "viewer", "workspace": "other"}))
        .await
        .expect(201);
    assert_eq!(slugs(&gina.get("/v1/orgs/acme/workspaces").await.expect(200), "slug"), ["signed-links", "other"]);
    gina.post("/v1/orgs/acme/workspaces/other/wake", json!({})).await.expect_problem(403, "role_missing");
    let query = format!("user={}&role=developer&workspace=signed-links", gina.user);
    owner.delete(&format!("/v1/orgs/acme/roles?{query}")).await.expect(200);
    assert_eq!(slugs(&gina.get("/v1/orgs/acme/workspaces").await.expect(200), "slug"), ["other"]);
    let both = json!({"user": gina.user, "role": "viewer", "workspace": "other", "project": "orders"});
    owner.post("/v1/orgs/acme/roles", both).await.expect_problem(422, "value_invalid");
    let nowhere = json!({"user": gina.user, "role": "viewer", "workspace": "nowhere"});
    owner.post("/v1/orgs/acme/roles", nowhere).await.expect_problem(404, "not_found");
    let billing = json!({"user": gina.user, "role": "billing", "workspace": "other"});
    owner.post("/v1/orgs/acme/roles", billing).await.expect_problem(422, "role_org_wide_only");
}
