//! Signed dev links through the API.

use envforge_domain::time::Millis;
use serde_json::{Value, json};

use crate::house::{House, Person};

const LINKS: &str = "/v1/orgs/acme/workspaces/signed-links/links";

async fn issue(owner: &Person, body: Value) -> crate::house::Answer {
    owner.post(LINKS, body).await
}

fn token(url: &str) -> &str {
    url.strip_prefix("http://dev.localhost:8443/share/").unwrap_or_else(|| panic!("not a share URL: {url}"))
}

#[tokio::test]
async fn an_issued_link_has_a_share_url_whose_token_says_what_it_opens() {
    let house = House::start().await;
    let owner = house.owner().await;
    let workspace = house.workspace(&owner).await;
    let link = issue(&owner, json!({"service": "web", "label": "for Rita", "wake_budget": 3})).await.expect(201);
    assert_eq!(link.body["families"], json!(["web", "api", "websockets"]), "all that is declared");
    let claims = house.verification.verify(token(&link.text("share_url")), house.now()).unwrap();
    assert_eq!(claims.link.to_string(), link.text("id"));
    assert_eq!(claims.workspace.to_string(), workspace);
    assert_eq!(claims.service.as_str(), "web");
    let read = owner.get_at(&format!("/v1/orgs/acme/links/{}", link.text("id")), link.position()).await.expect(200);
    assert_eq!((read.text("label"), read.body["wake_budget"].as_u64()), ("for Rita".into(), Some(3)));
    assert!(!read.body.to_string().contains(token(&link.text("share_url"))), "reading a link shows no token");
}

#[tokio::test]
async fn no_token_stands_in_the_log_or_in_a_list() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let link = issue(&owner, json!({"service": "web"})).await.expect(201);
    let secret = token(&link.text("share_url")).to_owned();
    let secret = secret.rsplit('.').next().unwrap();
    let list = owner.get_at(LINKS, link.position()).await.expect(200);
    assert_eq!(list.body["items"].as_array().unwrap().len(), 1);
    let all = owner.get_at("/v1/orgs/acme/links?phase=active", link.position()).await.expect(200);
    assert_eq!(all.body["items"], list.body["items"]);
    let events = owner.get("/v1/orgs/acme/events").await.expect(200);
    let audit = owner.get_at("/v1/orgs/acme/audit", link.position()).await.expect(200);
    for answer in [list, all, events, audit] {
        assert!(!answer.body.to_string().contains(secret));
    }
}

#[tokio::test]
async fn rotating_gives_another_url_of_the_next_generation() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let link = issue(&owner, json!({"service": "web"})).await.expect(201);
    let path = format!("/v1/orgs/acme/links/{}", link.text("id"));
    let rotated = owner.post(&format!("{path}/rotate"), json!({"lifetime_seconds": 600})).await.expect(200);
    assert_eq!(rotated.body["generation"], 2);
    let claims = house.verification.verify(token(&rotated.text("share_url")), house.now()).unwrap();
    assert_eq!(claims.generation.0, 2);
    assert_ne!(rotated.text("share_url"), link.text("share_url"));
    let card = owner.get_at(&format!("{path}/handoff"), rotated.position()).await.expect(200);
    assert_eq!(card.text("share_url"), rotated.text("share_url"), "the card shows the newest one, the very same");
}

#[tokio::test]
async fn the_card_says_route_by_route_what_is_open_and_what_answers() {
    let house = House::start().await;
    let owner = house.owner().await;
    let workspace = house.workspace(&owner).await;
    let link = issue(&owner, json!({"service": "web", "families": ["web", "api"]})).await.expect(201);
    let path = format!("/v1/orgs/acme/links/{}/handoff", link.text("id"));
    let card = owner.get_at(&path, link.position()).await.expect(200);
    assert_eq!(card.text("host"), "http://web--signed-links--acme.dev.localhost:8443/");
    assert_eq!(card.body["phase"], "asleep");
    let routes = |card: &crate::house::Answer, field: &str| -> Vec<(String, bool)> {
        let routes = card.body["routes"].as_array().unwrap();
        routes.iter().map(|r| (r["path"].as_str().unwrap().to_owned(), r[field].as_bool().unwrap())).collect()
    };
    assert_eq!(routes(&card, "open"), [("/".into(), true), ("/live".into(), false), ("/api".into(), true)]);
    assert!(routes(&card, "ready").iter().all(|(_, ready)| !ready));
    owner.post("/v1/orgs/acme/workspaces/signed-links/wake", json!({})).await.expect(202);
    let org = house.hot.authorization.organization_by_slug(&"acme".parse().unwrap()).unwrap();
    let position = house.report_ready(org, workspace.parse().unwrap()).await;
    house.hot.wait_for(envforge_domain::commit::Position::new(position), crate::house::PATIENCE).await.unwrap();
    let card = owner.get_at(&path, position).await.expect(200);
    assert!(routes(&card, "ready").iter().all(|(_, ready)| *ready), "{card:#?}");
    assert!(!card.body.to_string().contains("49999"), "no port reaches a developer's screen");
}

#[tokio::test]
async fn a_revoked_link_is_over_for_good_and_shows_no_url() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let link = issue(&owner, json!({"service": "web"})).await.expect(201);
    let path = format!("/v1/orgs/acme/links/{}", link.text("id"));
    let revoke =
        async || owner.post_keyed(&format!("{path}/revoke"), "the-end", json!({"reason": "review is over"})).await;
    let revoked = revoke().await.expect(200);
    assert_eq!(revoked.body["phase"], "revoked");
    let receipt = &revoked.body["receipt"];
    assert_eq!(
        (&receipt["sessions"], &receipt["links"], &receipt["sockets"], &receipt["gateways_unknown"]),
        (&json!(0), &json!(1), &json!(0), &json!([])),
        "{receipt}"
    );
    // The same request again tells what its first answer told; another one has closed nothing.
    assert_eq!(revoke().await.expect(200).body, revoked.body);
    owner.post(&format!("{path}/revoke"), json!({})).await.expect(200);
    owner.post(&format!("{path}/rotate"), json!({})).await.expect_problem(410, "link_revoked");
    let change = owner.put(&format!("{path}/families"), json!({"families": ["web"]})).await;
    change.expect_problem(410, "link_revoked");
    let read = owner.get_at(&path, revoked.position()).await.expect(200);
    assert_eq!((read.text("phase"), read.text("revoke_reason")), ("revoked".into(), "review is over".into()));
    let card = owner.get_at(&format!("{path}/handoff"), revoked.position()).await.expect(200);
    assert!(card.body["share_url"].is_null());
    assert!(card.body["routes"].as_array().unwrap().iter().all(|route| route["open"] == false));
}

#[tokio::test]
async fn a_link_is_expired_from_its_instant_on_without_any_event() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let link = issue(&owner, json!({"service": "web", "lifetime_seconds": 60})).await.expect(201);
    house.clock.skip(Millis::from_secs(61));
    let path = format!("/v1/orgs/acme/links/{}", link.text("id"));
    assert_eq!(owner.get_at(&path, link.position()).await.expect(200).body["phase"], "expired");
    owner.post(&format!("{path}/rotate"), json!({})).await.expect_problem(410, "link_expired");
}

#[tokio::test]
async fn a_link_stays_within_what_the_organization_and_the_manifest_allow() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    owner.patch("/v1/orgs/acme/policy", json!({"link_families": ["web", "assets"]})).await.expect(200);
    let not_allowed = issue(&owner, json!({"service": "web", "families": ["api"]})).await;
    not_allowed.expect_problem(403, "link_families_not_allowed");
    let not_declared = issue(&owner, json!({"service": "web", "families": ["assets"]})).await;
    not_declared.expect_problem(422, "link_families_not_declared");
    let too_long = issue(&owner, json!({"service": "web", "lifetime_seconds": 864_000_000})).await;
    assert_eq!(too_long.expect_problem(422, "link_lifetime_out_of_range").body["max_ms"], 7 * 24 * 3_600_000);
    issue(&owner, json!({"service": "web", "families": []})).await.expect_problem(422, "link_without_families");
    let database = issue(&owner, json!({"service": "database", "families": ["web"]})).await;
    database.expect_problem(422, "link_families_not_declared");
    issue(&owner, json!({"service": "web", "wake_budget": 0})).await.expect_problem(422, "wake_budget_out_of_range");
    issue(&owner, json!({"service": "web", "families": ["ssh"]})).await.expect_problem(422, "value_invalid");
    let narrowed = issue(&owner, json!({"service": "web"})).await.expect(201);
    assert_eq!(narrowed.body["families"], json!(["web"]), "what is left out is what is declared and allowed");
}
