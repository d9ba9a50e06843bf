//! Why a request was refused, asked afterwards by its id.

use envforge_domain::access::{Action, Resource};
use envforge_domain::commit::StreamId;
use envforge_domain::denial::{DenialCommand, Denials};
use envforge_domain::ids::OrgId;
use envforge_domain::time::Millis;
use serde_json::{Value, json};

use crate::house::{Answer, House, Person, eventually};

const TOKENS: &str = "/v1/orgs/acme/service-tokens";
const WORKSPACE: &str = "/v1/orgs/acme/workspaces/signed-links";

fn request_of(answer: &Answer) -> String {
    answer.headers["envforge-request"].to_str().unwrap().to_owned()
}

/// What each process does every few seconds.
async fn report(house: &House) {
    for (org, attempts) in house.denials.drain() {
        let permit = house.system(Action::DenialRecord, Resource::Organization(org));
        let (context, command) = (envforge_commands::Context::new(house.now()), DenialCommand::Record { attempts });
        house.commands.execute::<Denials>(&permit, &context, &StreamId::denial(org), &command).await.unwrap();
    }
}

async fn why(asked_by: &Person, refused: &Answer) -> Value {
    let path = format!("/v1/orgs/acme/why/{}", request_of(refused));
    eventually("the refusal in the audit", async || {
        let answer = asked_by.get(&path).await;
        (answer.status == 200).then_some(answer.body)
    })
    .await
}

#[tokio::test]
async fn a_refused_request_is_explained_by_the_grants_that_fell_short() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let dave = house.member(&owner, "dave", &[]).await;
    let given = owner.post("/v1/orgs/acme/roles", json!({"user": dave.user, "role": "viewer"})).await.expect(201);
    let refused = dave.post(&format!("{WORKSPACE}/wake"), json!({})).await.expect(403);
    assert_eq!(refused.body["instance"], format!("urn:envforge:request:{}", request_of(&refused)));
    // Who asks too soon is told so.
    let path = format!("/v1/orgs/acme/why/{}", request_of(&refused));
    let soon = owner.get(&path).await.expect_problem(404, "request_not_recorded");
    assert_eq!((&soon.body["why_not"], soon.headers["retry-after"].to_str().unwrap()), (&json!("too_recent"), "5"));
    report(&house).await;
    // The role may go, and another process be asked: why it was refused stays told.
    owner.delete(&format!("/v1/orgs/acme/roles?user={}&role=viewer", dave.user)).await.expect(200);
    let told = why(&house.elsewhere(&owner).await, &refused).await;
    assert_eq!(told["events"], json!([]));
    let refusal = &told["refusals"][0];
    let text = |field: &str| refusal[field].as_str().unwrap_or_default();
    assert_eq!((text("actor_kind"), text("actor"), text("surface")), ("user", dave.user.as_str(), "api"));
    assert_eq!((text("action"), text("reason")), ("runtime.wake", "role_missing"));
    assert!(text("resource").starts_with("wsp_") && text("detail").contains("developer"), "{refusal:#?}");
    assert_eq!(refusal["roles"], json!(["owner", "admin", "developer", "create", "mod"]));
    let grants = refusal["grants"].as_array().unwrap();
    assert_eq!(grants.len(), 1, "{refusal:#?}");
    assert_eq!((&grants[0]["role"], &grants[0]["short_of"]), (&json!("viewer"), &json!("role")));
    assert_eq!(grants[0]["given_at"], json!(given.position()));
    assert!(refusal["facts_at"].as_u64().unwrap() >= given.position());
    assert!(refusal["member_since"].as_u64().unwrap() < given.position());
    // The audit's row leads there.
    let rows = owner.get("/v1/orgs/acme/audit?outcome=denied&type=runtime.wake").await.expect(200);
    assert_eq!(rows.body["items"][0]["requests"], json!([request_of(&refused)]));
    dave.get(&path).await.expect_problem(403, "role_missing");
}

#[tokio::test]
async fn a_refused_program_is_explained_by_its_token_and_a_refused_password_by_whose_it_was() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let made = owner.post(TOKENS, json!({"slug": "ci", "actions": ["workspace.read"]})).await.expect(201);
    let ci = Person { token: made.text("secret"), ..owner.clone() };
    let refused = ci.post(&format!("{WORKSPACE}/wake"), json!({})).await.expect_problem(403, "outside_service_token");
    let wrong = house.login("ada@acme.test", "a wrong password, typed by somebody").await.expect(401);
    let nobody = house.login("nobody@acme.test", "a wrong password, typed by somebody").await.expect(401);
    owner.delete(&format!("{TOKENS}/ci")).await.expect(204);
    report(&house).await;
    let refusal = &why(&owner, &refused).await["refusals"][0];
    assert_eq!(
        (&refusal["actor_kind"], &refusal["reason"]),
        (&json!("service_token"), &json!("outside_service_token"))
    );
    assert_eq!(refusal["service_token"]["created_by"], json!(owner.user));
    assert_eq!(refusal["service_token"]["made_at"], json!(made.position()));
    assert_eq!(
        (&refusal["grants"][0]["role"], &refusal["grants"][0]["short_of"]),
        (&json!("owner"), &json!("subject"))
    );
    let refusal = &why(&owner, &wrong).await["refusals"][0];
    assert_eq!((&refusal["action"], &refusal["reason"]), (&json!("authenticate"), &json!("wrong_credentials")));
    assert_eq!((&refusal["resource"], &refusal["grants"]), (&json!(owner.user), &json!([])));
    // Nobody's account was tried: that belongs to no organization, and neither does a request without a token.
    let unsigned = house.anonymous(reqwest::Method::GET, "/v1/me", json!({})).await.expect(401);
    house.clock.skip(Millis::from_secs(60));
    for answer in [&nobody, &unsigned] {
        let path = format!("/v1/orgs/acme/why/{}", request_of(answer));
        let unknown = owner.get(&path).await.expect_problem(404, "request_not_recorded");
        assert_eq!(unknown.body["why_not"], "unknown", "{:#?}", unknown.body);
    }
    // What the log keeps of it: ids, and nothing that was typed.
    let records = house.log.read_stream(&StreamId::denial(OrgId::SYSTEM), Default::default(), 10).await.unwrap();
    let kept = format!("{records:?}");
    assert!(
        kept.contains(&format!("{:?}", request_of(&nobody).parse::<envforge_domain::ids::CorrelationId>().unwrap()))
    );
    assert!(!kept.contains("typed by somebody") && !kept.contains("nobody@acme.test"), "{kept}");
}

#[tokio::test]
async fn another_organizations_refusals_are_not_told() {
    let house = House::start().await;
    house.owner().await;
    house.organization("other", "otto@other.test").await;
    let otto = house.person("otto@other.test").await;
    let dave = house.member(&house.owner().await, "dave", &[]).await;
    let refused = dave.get("/v1/orgs/acme/members").await.expect(403);
    report(&house).await;
    why(&house.owner().await, &refused).await;
    house.clock.skip(Millis::from_secs(60));
    let path = format!("/v1/orgs/other/why/{}", request_of(&refused));
    let unknown = otto.get(&path).await.expect_problem(404, "request_not_recorded");
    assert_eq!(unknown.body["why_not"], "unknown");
    otto.get(&format!("/v1/orgs/acme/why/{}", request_of(&refused))).await.expect(404);
}

#[tokio::test]
async fn a_flood_keeps_few_names_and_says_that_of_the_others() {
    let house = House::start().await;
    let owner = house.owner().await;
    let dave = house.member(&owner, "dave", &[]).await;
    let mut refused = Vec::new();
    for _ in 0..20 {
        refused.push(dave.get("/v1/orgs/acme/members").await.expect(403));
    }
    report(&house).await;
    let told = why(&owner, &refused[19]).await;
    assert_eq!(told["refusals"][0]["attempts"], 20);
    house.clock.skip(Millis::from_secs(60));
    let path = format!("/v1/orgs/acme/why/{}", request_of(&refused[0]));
    let counted = owner.get(&path).await.expect_problem(404, "request_not_recorded");
    assert_eq!((&counted.body["why_not"], &counted.body["counted"]), (&json!("over_limit"), &json!(17)));
}
