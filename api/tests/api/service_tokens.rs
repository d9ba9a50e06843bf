//! Service tokens over HTTP: what a program may do with one, and how that ends.

use envforge_domain::commit::{Actor, Position, StreamId, StreamKind};
use envforge_domain::decision::DecisionEvent;
use envforge_domain::event::Event;
use envforge_domain::ids::OrgId;
use envforge_domain::time::Millis;
use serde_json::{Value, json};

use crate::house::{Answer, House, Person};

const TOKENS: &str = "/v1/orgs/acme/service-tokens";
const WORKSPACE: &str = "/v1/orgs/acme/workspaces/signed-links";

/// Whoever sends this secret.
fn program(owner: &Person, issued: &Answer) -> Person {
    Person { token: issued.text("secret"), ..owner.clone() }
}

async fn token(owner: &Person, slug: &str, actions: &[&str]) -> Answer {
    owner.post(TOKENS, json!({"slug": slug, "actions": actions})).await.expect(201)
}

async fn shown(owner: &Person, slug: &str) -> Value {
    let page = owner.get(TOKENS).await.expect(200);
    page.body["items"].as_array().unwrap().iter().find(|token| token["slug"] == slug).unwrap().clone()
}

fn acme(house: &House) -> OrgId {
    house.hot.authorization.organization_by_slug(&"acme".parse().unwrap()).unwrap()
}

#[tokio::test]
async fn a_program_acts_with_its_token_within_its_actions_and_place_and_in_its_own_name() {
    let house = House::start().await;
    let owner = house.owner().await;
    let workspace = house.workspace(&owner).await;
    let issued = token(&owner, "ci", &["workspace.read", "runtime.wake"]).await;
    assert!(issued.text("secret").starts_with("evf_st_"));
    let ci = program(&owner, &issued);
    ci.get(WORKSPACE).await.expect(200);
    assert_eq!(ci.get("/v1/orgs/acme/workspaces").await.expect(200).body["items"][0]["id"], json!(workspace));
    ci.post(&format!("{WORKSPACE}/wake"), json!({})).await.expect(202);
    for (path, body) in [("sleep", json!({})), ("archive", json!({}))] {
        ci.post(&format!("{WORKSPACE}/{path}"), body).await.expect_problem(403, "outside_service_token");
    }
    for path in ["/v1/me", "/v1/me/sessions", "/v1/orgs/acme/members", TOKENS, "/v1/orgs/acme"] {
        ci.get(path).await.expect_problem(403, "outside_service_token");
    }
    ci.post(TOKENS, json!({"slug": "more", "actions": ["usage.read"]}))
        .await
        .expect_problem(403, "outside_service_token");
    ci.post("/v1/auth/logout", json!({})).await.expect_problem(403, "outside_service_token");
    let wrong = ci.request(reqwest::Method::GET, WORKSPACE).header("EnvForge-Surface", "cli");
    crate::house::answer(wrong).await.expect_problem(403, "session_of_another_surface");

    // The log says who it was, and on which rights it rested: the organization's, the tokens' and the creator's.
    let (org, id) = (acme(&house), issued.text("id").parse().unwrap());
    let runtime = StreamId::runtime(org, workspace.parse().unwrap());
    let woken = house.log.read_stream(&runtime, Position::START, 10).await.unwrap();
    assert_eq!(woken[0].commit.actor, Actor::ServiceToken(id));
    let decisions = StreamId::decisions_on(&StreamId::service_tokens(org));
    let recorded = house.log.read_stream(&decisions, Position::START, 10).await.unwrap();
    let [Event::Decision(DecisionEvent::Recorded { action, rests_on, .. })] = &recorded[0].commit.events[..] else {
        panic!("{recorded:?}")
    };
    let kinds: Vec<_> = rests_on.iter().map(|standing| standing.stream.kind()).collect();
    assert_eq!(
        (action.as_str(), kinds.as_slice()),
        ("runtime.wake", &[StreamKind::Organization, StreamKind::ServiceTokens, StreamKind::User][..])
    );
    // In the audit it has its name, also where it was refused.
    let audit = format!("/v1/orgs/acme/audit?actor={}", issued.text("id"));
    let rows = owner.get(&audit).await.expect(200);
    let row = &rows.body["items"][0];
    assert_eq!(
        (&row["actor"]["name"], &row["type"]),
        (&json!("service token ci"), &json!("runtime.wake_requested.v1")),
        "{row:#}"
    );
    let denied = house.denials.drain();
    let refused = denied.iter().flat_map(|(_, attempts)| attempts).filter(|kind| kind.actor == Actor::ServiceToken(id));
    assert!(refused.into_iter().all(|kind| kind.code == "outside_service_token"));
    assert!(!house.everything().await.contains("evf_st_"), "no secret in any event");
}

#[tokio::test]
async fn a_token_for_one_workspace_sees_and_reaches_that_one() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let other = json!({"project": "orders", "slug": "other", "branch": "other", "manifest": crate::house::MANIFEST});
    owner.post("/v1/orgs/acme/workspaces", other).await.expect(201);
    let new = json!({"slug": "one", "actions": ["workspace.read", "link.read"], "workspace": "signed-links"});
    let one = program(&owner, &owner.post(TOKENS, new).await.expect(201));
    one.get(WORKSPACE).await.expect(200);
    one.get("/v1/orgs/acme/workspaces/other").await.expect_problem(403, "outside_service_token");
    let listed = one.get("/v1/orgs/acme/workspaces").await.expect(200);
    assert_eq!(listed.body["items"].as_array().unwrap().len(), 1);
    let wrong = json!({"slug": "two", "actions": ["usage.read"], "workspace": "signed-links"});
    owner.post(TOKENS, wrong).await.expect_problem(422, "service_token_actions_invalid");
    let wrong = json!({"slug": "two", "actions": ["role.assign"]});
    owner.post(TOKENS, wrong).await.expect_problem(422, "service_token_actions_invalid");
    let wrong = json!({"slug": "two", "actions": ["rule.the_world"]});
    owner.post(TOKENS, wrong).await.expect_problem(422, "value_invalid");
}

#[tokio::test]
async fn a_revoked_token_opens_nothing_from_the_answer_on_and_at_no_other_process() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let issued = token(&owner, "ci", &["workspace.read", "runtime.wake", "runtime.sleep"]).await;
    let ci = program(&owner, &issued);
    let elsewhere = house.elsewhere(&ci).await;
    ci.get(WORKSPACE).await.expect(200);
    elsewhere.get(WORKSPACE).await.expect(200);
    owner.delete(&format!("{TOKENS}/ci")).await.expect(204);
    for program in [&ci, &elsewhere] {
        let refused = program.get(WORKSPACE).await.expect_problem(401, "service_token_over");
        assert_eq!(refused.body["reason"], "revoked");
        program.post(&format!("{WORKSPACE}/wake"), json!({})).await.expect_problem(401, "service_token_over");
    }
    assert_eq!(shown(&owner, "ci").await["over"], "revoked");
    owner.delete(&format!("{TOKENS}/{}", issued.text("id"))).await.expect(204);
    let rotation = owner.post(&format!("{TOKENS}/{}/rotate", issued.text("id")), json!({})).await;
    rotation.expect_problem(410, "service_token_over");
    // Its name is free again.
    token(&owner, "ci", &["usage.read"]).await;
}

#[tokio::test]
async fn a_rotated_token_has_two_secrets_for_a_while() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let first = program(&owner, &token(&owner, "ci", &["workspace.read"]).await);
    let rotated = owner.post(&format!("{TOKENS}/ci/rotate"), json!({"overlap_seconds": 600})).await.expect(201);
    let second = program(&owner, &rotated);
    assert_eq!(rotated.body["generation"], 2);
    first.get(WORKSPACE).await.expect(200);
    second.get(WORKSPACE).await.expect(200);
    house.clock.skip(Millis::from_minutes(10));
    first.get(WORKSPACE).await.expect_problem(401, "unauthenticated");
    second.get(WORKSPACE).await.expect(200);
    // Without an overlap, the former one is over with the answer, elsewhere too.
    let elsewhere = house.elsewhere(&second).await;
    let third = owner.post(&format!("{TOKENS}/ci/rotate"), json!({"overlap_seconds": 0})).await.expect(201);
    for former in [&second, &elsewhere] {
        former.get(WORKSPACE).await.expect_problem(401, "unauthenticated");
    }
    program(&owner, &third).get(WORKSPACE).await.expect(200);
    let denied = house.denials.drain();
    let codes: Vec<_> = denied.iter().flat_map(|(_, attempts)| attempts).map(|kind| kind.code.as_str()).collect();
    assert_eq!(codes, ["service_token_rotated"], "refused in the token's name");
    owner
        .post(&format!("{TOKENS}/ci/rotate"), json!({"overlap_seconds": 700_000}))
        .await
        .expect_problem(422, "service_token_overlap_too_long");
}

#[tokio::test]
async fn a_repeated_request_answers_a_secret_that_works_in_place_of_the_first() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let new = json!({"slug": "ci", "actions": ["workspace.read"]});
    let first = owner.post_keyed(TOKENS, "make-ci", new.clone()).await.expect(201);
    let again = owner.post_keyed(TOKENS, "make-ci", new.clone()).await.expect(201);
    assert_eq!((first.text("id"), first.position()), (again.text("id"), again.position()));
    program(&owner, &first).get(WORKSPACE).await.expect_problem(401, "unauthenticated");
    program(&owner, &again).get(WORKSPACE).await.expect(200);
    owner.post(TOKENS, new.clone()).await.expect_problem(409, "service_token_name_taken");
    owner.post(&format!("{TOKENS}/ci/rotate"), json!({})).await.expect(201);
    owner.post_keyed(TOKENS, "make-ci", new).await.expect_problem(410, "service_token_over");
}

#[tokio::test]
async fn a_token_never_may_more_than_its_creator_and_ends_with_them() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let adam = house.member(&owner, "adam", &["admin"]).await;
    let issued =
        adam.post(TOKENS, json!({"slug": "ci", "actions": ["workspace.read", "audit.read"]})).await.expect(201);
    let ci = program(&adam, &issued);
    ci.get(WORKSPACE).await.expect(200);
    ci.get("/v1/orgs/acme/audit").await.expect(200);
    // Taken a role, its creator takes the token along, action by action.
    owner.post("/v1/orgs/acme/roles", json!({"user": adam.user, "role": "viewer"})).await.expect(201);
    owner.delete(&format!("/v1/orgs/acme/roles?user={}&role=admin", adam.user)).await.expect(200);
    ci.get(WORKSPACE).await.expect(200);
    ci.get("/v1/orgs/acme/audit").await.expect_problem(403, "role_missing");
    adam.post(TOKENS, json!({"slug": "two", "actions": ["workspace.read"]})).await.expect_problem(403, "role_missing");
    // Taken out and let in again, their token stays over: somebody makes another one.
    owner.delete(&format!("/v1/orgs/acme/members/{}", adam.user)).await.expect(200);
    let refused = ci.get(WORKSPACE).await.expect_problem(401, "service_token_over");
    assert_eq!(refused.body["reason"], "creator");
    let again = json!({"email": "adam@acme.test", "name": "adam", "password": crate::house::PASSWORD});
    owner.post("/v1/orgs/acme/members", again).await.expect(201);
    owner.post("/v1/orgs/acme/roles", json!({"user": adam.user, "role": "admin"})).await.expect(201);
    ci.get(WORKSPACE).await.expect_problem(401, "service_token_over");
    assert_eq!(shown(&owner, "ci").await["over"], "creator");
}

#[tokio::test]
async fn nobody_gets_into_their_hands_what_they_may_not_do_themselves() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let mia = house.member(&owner, "mia", &["mod"]).await;
    mia.get(TOKENS).await.expect(200);
    let new = json!({"slug": "ci", "actions": ["workspace.read"]});
    mia.post(TOKENS, new).await.expect_problem(403, "role_missing");
    // What a stolen session must not be able to do.
    house.clock.skip(Millis::from_minutes(16));
    let new = json!({"slug": "ci", "actions": ["workspace.read"]});
    owner.post(TOKENS, new).await.expect_problem(403, "reauthentication_required");
}

#[tokio::test]
async fn a_policy_ends_tokens_that_are_older_than_it_allows_and_may_allow_none() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let ci = program(&owner, &token(&owner, "ci", &["workspace.read"]).await);
    house.clock.skip(Millis::from_hours(2));
    let owner = house.owner().await;
    let policy = |seconds: u64| json!({"service_token_lifetime_max_seconds": seconds});
    owner.patch("/v1/orgs/acme/policy", policy(3_600)).await.expect(200);
    let refused = ci.get(WORKSPACE).await.expect_problem(401, "service_token_over");
    assert_eq!(refused.body["reason"], "policy");
    let long = json!({"slug": "long", "actions": ["workspace.read"], "expires_in_seconds": 7_200});
    owner.post(TOKENS, long).await.expect_problem(422, "service_token_lifetime_out_of_range");
    owner.patch("/v1/orgs/acme/policy", policy(0)).await.expect(200);
    let new = json!({"slug": "short", "actions": ["workspace.read"]});
    owner.post(TOKENS, new).await.expect_problem(403, "service_tokens_not_allowed");
    // Loosened again, the policy gives back what it alone took.
    owner.patch("/v1/orgs/acme/policy", policy(86_400)).await.expect(200);
    ci.get(WORKSPACE).await.expect(200);
    house.clock.skip(Millis::from_hours(22));
    ci.get(WORKSPACE).await.expect_problem(401, "service_token_over");
}

#[tokio::test]
async fn a_made_up_secret_is_nobodys_and_a_use_is_told_to_the_hour() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let issued = token(&owner, "ci", &["workspace.read"]).await;
    let ci = program(&owner, &issued);
    assert_eq!(shown(&owner, "ci").await["last_used_at"], Value::Null);
    ci.get(WORKSPACE).await.expect(200);
    assert!(shown(&owner, "ci").await["last_used_at"].is_string());
    house.denials.drain();
    for wrong in [format!("evf_st_{}", "a".repeat(43)), "evf_st_x".to_owned()] {
        let nobody = Person { token: wrong, ..owner.clone() };
        nobody.get(WORKSPACE).await.expect_problem(401, "unauthenticated");
    }
    let drained = house.denials.drain();
    assert_eq!((drained[0].0, drained[0].1[0].count), (OrgId::SYSTEM, 2));
}
