//! Asking about rights over HTTP: by other services, why somebody may, why a request was allowed, and who could at some time.

use envforge_domain::commit::Actor;
use envforge_domain::ids::UserId;
use serde_json::{Value, json};

use crate::house::{Answer, House, Person, eventually};

const CHECK: &str = "/v1/authz/check";
const EXPLAIN: &str = "/v1/authz/explain";
const TOKENS: &str = "/v1/orgs/acme/service-tokens";
const WORKSPACE: &str = "/v1/orgs/acme/workspaces/signed-links";

fn about(user: &str, action: &str, resource: &str) -> Value {
    json!({"subject": {"user": user}, "action": action, "resource": resource})
}

/// Another service, with a token for asking and nothing else.
async fn service(owner: &Person) -> Person {
    let issued = owner.post(TOKENS, json!({"slug": "billing", "actions": ["authz.check"]})).await.expect(201);
    Person { token: issued.text("secret"), ..owner.clone() }
}

#[tokio::test]
async fn another_service_asks_whether_somebody_may_and_gets_the_rule_or_the_reason() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let dave = house.member(&owner, "dave", &["viewer"]).await;
    let service = service(&owner).await;
    let yes = service.post(CHECK, about(&dave.user, "workspace.read", "workspace/signed-links")).await.expect(200);
    assert_eq!((&yes.body["allowed"], &yes.body["rule"]["kind"]), (&json!(true), &json!("grant")));
    assert_eq!(
        (&yes.body["rule"]["grant"]["role"], &yes.body["rule"]["grant"]["user"]),
        (&json!("viewer"), &json!(dave.user))
    );
    assert_eq!(yes.headers["envforge-position"].to_str().unwrap(), yes.body["position"].to_string());
    house.denials.drain();
    let no = service.post(CHECK, about(&dave.user, "runtime.wake", "workspace/signed-links")).await.expect(200);
    assert_eq!(
        (&no.body["allowed"], &no.body["reason"], &no.body["rule"]),
        (&json!(false), &json!("role_missing"), &Value::Null)
    );
    // The audit has it as a question of the service's, and as no attempt of the person's.
    let drained = house.denials.drain();
    let attempts: Vec<_> = drained.iter().flat_map(|(_, attempts)| attempts).collect();
    assert_eq!(attempts.len(), 1);
    assert_eq!(attempts[0].about, Some(Actor::User(dave.user.parse().unwrap())));
    assert!(matches!(attempts[0].actor, Actor::ServiceToken(_)));
    assert_eq!((attempts[0].action.as_str(), attempts[0].code.as_str()), ("runtime.wake", "role_missing"));
    // Nobody signed out or unknown is more than that.
    let nobody = UserId::from_uuid(uuid::Uuid::from_u128(7)).to_string();
    let unknown = service.post(CHECK, about(&nobody, "workspace.read", "workspace/signed-links")).await.expect(200);
    assert_eq!(unknown.body["reason"], "not_a_member");
    for (body, status, code) in [
        (about(&dave.user, "rule.the_world", "organization"), 422, "value_invalid"),
        (about(&dave.user, "usage.read", "nowhere"), 422, "value_invalid"),
        (about(&dave.user, "workspace.read", "workspace/nowhere"), 404, "not_found"),
        (json!({"subject": {}, "action": "usage.read", "resource": "organization"}), 422, "value_invalid"),
    ] {
        service.post(CHECK, body).await.expect_problem(status, code);
    }
}

#[tokio::test]
async fn who_may_not_ask_is_told_nothing_and_an_answer_knows_what_was_revoked_elsewhere() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let dave = house.member(&owner, "dave", &["developer"]).await;
    let question = about(&owner.user, "runtime.wake", "workspace/signed-links");
    dave.post(CHECK, question).await.expect_problem(403, "role_missing");
    let other = house.organization("other", "eve@other.test").await;
    let eve = house.person("eve@other.test").await;
    eve.post(CHECK, about(&dave.user, "runtime.wake", "workspace/signed-links")).await.expect_problem(404, "not_found");
    let of_acme = eve.post(CHECK, about(&dave.user, "usage.read", &other.to_string())).await.expect(200);
    assert_eq!(of_acme.body["reason"], "not_a_member", "another organization's people are nobody there");
    // The leader's word, each time.
    let service = service(&owner).await;
    let elsewhere = house.elsewhere(&service).await;
    for round in 0..5 {
        let asked = about(&dave.user, "runtime.wake", "workspace/signed-links");
        assert_eq!(elsewhere.post(CHECK, asked.clone()).await.expect(200).body["allowed"], true, "round {round}");
        owner.delete(&format!("/v1/orgs/acme/roles?user={}&role=developer", dave.user)).await.expect(200);
        assert_eq!(elsewhere.post(CHECK, asked).await.expect(200).body["allowed"], false, "round {round}");
        owner.post("/v1/orgs/acme/roles", json!({"user": dave.user, "role": "developer"})).await.expect(201);
    }
}

#[tokio::test]
async fn a_hundred_questions_are_answered_at_once_in_their_order_and_no_more() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let dave = house.member(&owner, "dave", &["viewer"]).await;
    let service = service(&owner).await;
    let question = |number: usize| match number % 3 {
        0 => about(&dave.user, "workspace.read", "workspace/signed-links"),
        1 => about(&dave.user, "usage.read", "organization"),
        _ => about(&dave.user, "runtime.wake", "workspace/signed-links"),
    };
    let checks: Vec<_> = (0..100).map(question).collect();
    let answer = service.post("/v1/authz/check/batch", json!({ "checks": checks })).await.expect(200);
    let results = answer.body["results"].as_array().unwrap();
    assert_eq!(results.len(), 100);
    for (number, result) in results.iter().enumerate() {
        assert_eq!(result["allowed"], json!(number % 3 != 2), "{number}");
    }
    let drained = house.denials.drain();
    let denied: Vec<_> = drained.iter().flat_map(|(_, attempts)| attempts).map(|kind| kind.count).collect();
    assert_eq!(denied, [33], "counted as one kind");
    for wrong in [vec![], (0..101).map(question).collect()] {
        service.post("/v1/authz/check/batch", json!({ "checks": wrong })).await.expect_problem(422, "value_invalid");
    }
}

#[tokio::test]
async fn a_service_token_is_asked_about_like_a_person() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let token = owner.post(TOKENS, json!({"slug": "ci", "actions": ["runtime.wake"]})).await.expect(201).text("id");
    let about = |action: &str| json!({"subject": {"service_token": token}, "action": action, "resource": "workspace/signed-links"});
    let yes = owner.post(CHECK, about("runtime.wake")).await.expect(200);
    assert_eq!((&yes.body["allowed"], &yes.body["rule"]["grant"]["role"]), (&json!(true), &json!("owner")));
    let no = owner.post(CHECK, about("workspace.read")).await.expect(200);
    assert_eq!(no.body["reason"], "outside_service_token");
    owner.delete(&format!("{TOKENS}/ci")).await.expect(204);
    assert_eq!(owner.post(CHECK, about("runtime.wake")).await.expect(200).body["reason"], "service_token_over");
}

#[tokio::test]
async fn a_right_is_explained_by_its_grants_and_the_events_behind_them() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let dave = house.member(&owner, "dave", &[]).await;
    owner.post("/v1/orgs/acme/teams", json!({"slug": "crew"})).await.expect(201);
    let joined = owner.post("/v1/orgs/acme/teams/crew/members", json!({"user": dave.user})).await.expect(201);
    let given = owner
        .post("/v1/orgs/acme/roles", json!({"team": "crew", "role": "developer", "project": "orders"}))
        .await
        .expect(201);
    let viewer = owner.post("/v1/orgs/acme/roles", json!({"user": dave.user, "role": "viewer"})).await.expect(201);
    let told = owner.post(EXPLAIN, about(&dave.user, "runtime.wake", "workspace/signed-links")).await.expect(200);
    assert_eq!((&told.body["allowed"], &told.body["rule"]["grant"]["role"]), (&json!(true), &json!("developer")));
    let grants = told.body["grants"].as_array().unwrap();
    let of = |role: &str| grants.iter().find(|grant| grant["role"] == role).unwrap();
    let events = |grant: &Value| (grant["short_of"].clone(), grant["given_at"].clone(), grant["joined_at"].clone());
    assert_eq!(events(of("developer")), (Value::Null, json!(given.position()), json!(joined.position())));
    assert_eq!(events(of("viewer")), (json!("role"), json!(viewer.position()), Value::Null));
    assert!(told.body["member_since"].as_u64().unwrap() < joined.position());
    // A place that a grant does not reach is told as that; so is what is over.
    let told = owner.post(EXPLAIN, about(&dave.user, "project.edit", "project/orders")).await.expect(200);
    assert_eq!(told.body["allowed"], false);
    let told = owner.post(EXPLAIN, about(&dave.user, "usage.read", "organization")).await.expect(200);
    assert_eq!(told.body["rule"]["grant"]["role"], "viewer");
    // Everybody may ask about themselves, and about nobody else.
    let own = dave.post(EXPLAIN, about(&dave.user, "member.add", "organization")).await.expect(200);
    assert_eq!((&own.body["allowed"], &own.body["reason"]), (&json!(false), &json!("role_missing")));
    assert_eq!(own.body["roles"], json!(["owner", "admin", "mod"]));
    dave.post(EXPLAIN, about(&owner.user, "member.add", "organization")).await.expect_problem(403, "role_missing");
}

fn request_of(answer: &Answer) -> &str {
    answer.headers["envforge-request"].to_str().unwrap()
}

#[tokio::test]
async fn a_request_is_explained_by_the_record_beside_its_events() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let dave = house.member(&owner, "dave", &[]).await;
    let given = owner
        .post("/v1/orgs/acme/roles", json!({"user": dave.user, "role": "developer", "project": "orders"}))
        .await
        .expect(201);
    let woken = dave.post(&format!("{WORKSPACE}/wake"), json!({})).await.expect(202);
    // The right may go: why it was there then stays told.
    owner.delete(&format!("/v1/orgs/acme/roles?user={}&role=developer&project=orders", dave.user)).await.expect(200);
    let why = owner.get(&format!("/v1/orgs/acme/why/{}", request_of(&woken))).await.expect(200);
    let events = why.body["events"].as_array().unwrap();
    assert_eq!(events.len(), 1, "{why:#?}");
    assert_eq!((&events[0]["type"], &events[0]["actor"]), (&json!("runtime.wake_requested.v1"), &json!(dave.user)));
    let decision = &events[0]["decision"];
    assert_eq!(
        (&decision["rule"]["action"], &decision["rule"]["grant"]["role"]),
        (&json!("runtime.wake"), &json!("developer"))
    );
    assert_eq!(decision["given_at"], json!(given.position()));
    assert!(decision["facts_at"].as_u64().unwrap() >= given.position());
    assert_eq!(decision["rests_on"].as_array().unwrap().len(), 2);
    // A change of rights guards by its own expectation, and has its record too.
    let why = owner.get(&format!("/v1/orgs/acme/why/{}", request_of(&given))).await.expect(200);
    assert_eq!(why.body["events"][0]["decision"]["rule"]["grant"]["role"], "owner");
    let long_ago = owner.get("/v1/orgs/acme/why/cor_01a21aef966671919bb6675767bc2af4").await;
    assert_eq!(long_ago.expect_problem(404, "request_not_recorded").body["why_not"], "unknown");
    owner.get("/v1/orgs/acme/why/nonsense").await.expect_problem(404, "not_found");
    dave.get(&format!("/v1/orgs/acme/why/{}", request_of(&given))).await.expect_problem(403, "role_missing");
}

/// An instant after everything that was answered so far, and before what comes.
async fn between(house: &House) -> String {
    let before = house.now();
    eventually("the clock to go on", async || (house.now() > before).then_some(())).await;
    let at = house.now();
    eventually("the clock to go on", async || (house.now() > at).then_some(())).await;
    jiff::Timestamp::from_millisecond(i64::try_from(at.get()).unwrap()).unwrap().to_string()
}

#[tokio::test]
async fn who_could_open_a_workspace_at_some_time_is_told_from_the_log() {
    let house = House::start().await;
    let owner = house.owner().await;
    let too_early = between(&house).await;
    house.workspace(&owner).await;
    let dave = house.member(&owner, "dave", &[]).await;
    let nobody_yet = between(&house).await;
    let given = owner
        .post("/v1/orgs/acme/roles", json!({"user": dave.user, "role": "developer", "project": "orders"}))
        .await
        .expect(201);
    let link = dave
        .post(&format!("{WORKSPACE}/links"), json!({"service": "web", "label": "review"}))
        .await
        .expect(201)
        .text("id");
    owner.post(TOKENS, json!({"slug": "ci", "actions": ["workspace.read", "usage.read"]})).await.expect(201);
    let all = between(&house).await;
    owner.delete(&format!("/v1/orgs/acme/roles?user={}&role=developer&project=orders", dave.user)).await.expect(200);
    let without_role = between(&house).await;
    owner.delete(&format!("{TOKENS}/ci")).await.expect(204);
    let at_the_end = between(&house).await;
    let asked = async |at: &str| owner.get(&format!("{WORKSPACE}/access?at={at}")).await.expect(200).body;
    let ids = |then: &Value, list: &str, field: &str| -> Vec<String> {
        then[list].as_array().unwrap().iter().map(|item| item[field].as_str().unwrap().to_owned()).collect()
    };
    let mut both = vec![owner.user.clone(), dave.user.clone()];
    both.sort();

    let then = asked(&nobody_yet).await;
    assert_eq!((ids(&then, "people", "user"), ids(&then, "links", "id").len()), (vec![owner.user.clone()], 0));
    let then = asked(&all).await;
    assert_eq!(ids(&then, "people", "user"), both);
    assert_eq!((ids(&then, "links", "id"), ids(&then, "service_tokens", "slug")), (vec![link], vec!["ci".to_owned()]));
    let people = then["people"].as_array().unwrap();
    let of_dave = people.iter().find(|person| person["user"] == json!(dave.user)).unwrap();
    assert_eq!(of_dave["grants"][0]["given_at"], json!(given.position()));
    assert!(of_dave["actions"].as_array().unwrap().contains(&json!("link.issue")), "{of_dave}");
    // Without their role neither they nor their link: it stood on it.
    let then = asked(&without_role).await;
    assert_eq!((ids(&then, "people", "user"), ids(&then, "links", "id").len()), (vec![owner.user.clone()], 0));
    assert_eq!(ids(&then, "service_tokens", "slug"), ["ci"]);
    let then = asked(&at_the_end).await;
    assert_eq!(ids(&then, "service_tokens", "slug").len(), 0);
    owner.get(&format!("{WORKSPACE}/access?at={too_early}")).await.expect_problem(400, "query_invalid");
    owner.get(&format!("{WORKSPACE}/access?at=2999-01-01T00:00:00Z")).await.expect_problem(400, "query_invalid");
    dave.get(&format!("{WORKSPACE}/access")).await.expect_problem(403, "role_missing");
}
