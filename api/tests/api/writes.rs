//! Idempotency, conflicts and invalid requests.

use reqwest::Method;
use serde_json::json;

use crate::house::{House, MANIFEST, answer};

#[tokio::test]
async fn the_same_key_and_body_get_the_same_answer_and_one_project() {
    let house = House::start().await;
    let owner = house.owner().await;
    let project = json!({"slug": "orders", "name": "Orders", "repository": "https://git.test/acme/orders"});
    let first = owner.post_keyed("/v1/orgs/acme/projects", "create-1", project.clone()).await.expect(201);
    // Another order of keys is the same request.
    let same = r#"{ "repository": "https://git.test/acme/orders", "name": "Orders", "slug": "orders" }"#;
    let request = owner.request(Method::POST, "/v1/orgs/acme/projects").header("Idempotency-Key", "create-1");
    let again = answer(request.header("Content-Type", "application/json").body(same)).await.expect(201);
    assert_eq!(first.body, again.body);
    let projects = owner.get_at("/v1/orgs/acme/projects", first.position()).await.expect(200);
    assert_eq!(projects.body["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn the_same_key_for_another_request_is_refused_wherever_it_is_used() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let project = |slug: &str| json!({"slug": slug, "name": "P", "repository": "https://git.test/p"});
    let first = owner.post_keyed("/v1/orgs/acme/projects", "k", project("one")).await.expect(201);
    let other_body = owner.post_keyed("/v1/orgs/acme/projects", "k", project("two")).await;
    other_body.expect_problem(422, "idempotency_key_reused");
    let other_thing = owner
        .request(Method::POST, "/v1/orgs/acme/workspaces/signed-links/wake")
        .header("Idempotency-Key", "k")
        .header("EnvForge-Min-Position", first.position());
    answer(other_thing).await.expect_problem(422, "idempotency_key_reused");
}

#[tokio::test]
async fn two_processes_agree_on_a_key_whatever_the_read_models_know() {
    let mut house = House::start().await;
    let here = house.owner().await;
    let there = house.elsewhere(&here).await;
    house.stop_projecting().await;
    let project = |slug: &str| json!({"slug": slug, "name": "P", "repository": "https://git.test/p"});
    let first = here.post_keyed("/v1/orgs/acme/projects", "k", project("one")).await.expect(201);
    let again = there.post_keyed("/v1/orgs/acme/projects", "k", project("one")).await.expect(201);
    assert_eq!((first.position(), first.body), (again.position(), again.body));
    for other in [&here, &there] {
        let policy = other.request(Method::PATCH, "/v1/orgs/acme/policy").header("Idempotency-Key", "k");
        let refused = answer(policy.json(&json!({"keep_awake_max_seconds": 60}))).await;
        refused.expect_problem(422, "idempotency_key_reused");
        let refused = other.post_keyed("/v1/orgs/acme/projects", "k", project("two")).await;
        refused.expect_problem(422, "idempotency_key_reused");
    }
    let many = (0..20).map(|round| {
        let at = if round % 2 == 0 { &here } else { &there };
        at.post_keyed("/v1/orgs/acme/projects", "many", project("many"))
    });
    let answers = futures_util::future::join_all(many).await;
    let ids: std::collections::BTreeSet<_> = answers.into_iter().map(|answer| answer.expect(201).text("id")).collect();
    assert_eq!(ids.len(), 1);
}

#[tokio::test]
async fn a_request_that_changed_nothing_changes_nothing_when_it_is_repeated() {
    let house = House::start().await;
    let owner = house.owner().await;
    let policy = async |key: &str, seconds: u64| {
        let request = owner.request(Method::PATCH, "/v1/orgs/acme/policy").header("Idempotency-Key", key);
        answer(request.json(&json!({"keep_awake_max_seconds": seconds}))).await.expect(200)
    };
    policy("change", 60).await;
    let satisfied = policy("nothing", 60).await;
    let last = policy("other", 120).await.position();
    assert_eq!(policy("nothing", 60).await.position(), satisfied.position());
    let now = owner.get_at("/v1/orgs/acme", last).await.expect(200);
    assert_eq!(now.body["policy"]["keep_awake_max_seconds"], 120);
}

#[tokio::test]
async fn without_the_database_a_keyed_request_is_not_carried_out_and_others_are() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.database.close().await;
    let project = |slug: &str| json!({"slug": slug, "name": "P", "repository": "https://git.test/p"});
    let refused = owner.post_keyed("/v1/orgs/acme/projects", "k", project("one")).await;
    refused.expect_problem(503, "request_keys_unavailable");
    owner.post("/v1/orgs/acme/projects", project("one")).await.expect(201);
}

#[tokio::test]
async fn the_same_key_of_another_person_is_another_request() {
    let house = House::start().await;
    let owner = house.owner().await;
    let admin = house.member(&owner, "abe", &["admin"]).await;
    let project = |slug: &str| json!({"slug": slug, "name": "P", "repository": "https://git.test/p"});
    let one = owner.post_keyed("/v1/orgs/acme/projects", "k", project("one")).await.expect(201);
    let two = admin.post_keyed("/v1/orgs/acme/projects", "k", project("two")).await.expect(201);
    assert_ne!(one.body["id"], two.body["id"]);
}

#[tokio::test]
async fn a_repeated_issue_gets_the_same_share_url_even_after_the_link_was_revoked() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let path = "/v1/orgs/acme/workspaces/signed-links/links";
    let body = json!({"service": "web", "label": "for Rita", "lifetime_seconds": 600});
    let first = owner.post_keyed(path, "issue-1", body.clone()).await.expect(201);
    let id = first.text("id");
    let rotated =
        owner.post_keyed(&format!("/v1/orgs/acme/links/{id}/rotate"), "rotate-1", json!({})).await.expect(200);
    owner.put(&format!("/v1/orgs/acme/links/{id}/families"), json!({"families": ["web"]})).await.expect(200);
    owner.post(&format!("/v1/orgs/acme/links/{id}/revoke"), json!({})).await.expect(200);
    assert_eq!(owner.post_keyed(path, "issue-1", body).await.expect(201).body, first.body);
    let again = owner.post_keyed(&format!("/v1/orgs/acme/links/{id}/rotate"), "rotate-1", json!({})).await.expect(200);
    assert_eq!(again.body, rotated.body);
}

#[tokio::test]
async fn a_hundred_repetitions_at_once_create_one_workspace() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let body = json!({"project": "orders", "slug": "many", "branch": "main", "manifest": MANIFEST});
    let requests = (0..100).map(|_| owner.post_keyed("/v1/orgs/acme/workspaces", "many", body.clone()));
    let answers = futures_util::future::join_all(requests).await;
    let ids: std::collections::BTreeSet<_> = answers.into_iter().map(|answer| answer.expect(201).text("id")).collect();
    assert_eq!(ids.len(), 1);
}

#[tokio::test]
async fn what_the_log_keeps_of_a_request_does_not_depend_on_its_password() {
    let house = House::start().await;
    let owner = house.owner().await;
    let bob = |password: &str| json!({"email": "bob@acme.test", "name": "Bob", "password": password});
    let first = owner.post_keyed("/v1/orgs/acme/members", "bob", bob("plum kite engine 9")).await.expect(201);
    // The digest in the log is the only thing that tells two requests with one key apart.
    let again = owner.post_keyed("/v1/orgs/acme/members", "bob", bob("quite another one 3")).await.expect(201);
    assert_eq!(first.body, again.body);
    house.login("bob@acme.test", "quite another one 3").await.expect_problem(401, "wrong_credentials");
    house.login("bob@acme.test", "plum kite engine 9").await.expect(200);
}

#[tokio::test]
async fn keys_that_are_no_keys_are_refused() {
    let house = House::start().await;
    let owner = house.owner().await;
    for key in ["", "two words", &"k".repeat(201)] {
        let refused = owner.post_keyed("/v1/orgs/acme/projects", key, json!({})).await;
        refused.expect_problem(400, "idempotency_key_invalid");
    }
}

#[tokio::test]
async fn a_taken_slug_is_a_conflict_and_a_retired_one_stays_so() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let again = json!({"project": "orders", "slug": "signed-links", "branch": "other", "manifest": MANIFEST});
    owner.post("/v1/orgs/acme/workspaces", again.clone()).await.expect_problem(409, "name_taken");
    owner.post("/v1/orgs/acme/workspaces/signed-links/archive", json!({})).await.expect(200);
    owner.post("/v1/orgs/acme/workspaces", again).await.expect_problem(409, "name_retired");
    let wake = owner.post("/v1/orgs/acme/workspaces/signed-links/wake", json!({})).await;
    wake.expect_problem(410, "workspace_archived");
}

#[tokio::test]
async fn a_wrong_value_is_named_and_says_what_would_be_right() {
    let house = House::start().await;
    let owner = house.owner().await;
    let project = |slug: &str, repository: &str| json!({"slug": slug, "name": "P", "repository": repository});
    let bad = owner.post("/v1/orgs/acme/projects", project("Bad Slug", "https://git.test/p")).await;
    assert_eq!(bad.expect_problem(422, "value_invalid").body["field"], "slug");
    let secret = owner.post("/v1/orgs/acme/projects", project("p", "https://me:hunter2@git.test/p")).await;
    let secret = secret.expect_problem(422, "value_invalid");
    assert_eq!(secret.body["field"], "repository");
    assert!(!secret.body.to_string().contains("hunter2"));
    let secret = owner.post("/v1/orgs/acme/projects", project("p", "ssh://me:hunter2@git.test/p")).await;
    assert!(!secret.expect_problem(422, "value_invalid").body.to_string().contains("hunter2"));
    for local in ["/etc", "file:///etc"] {
        let local = owner.post("/v1/orgs/acme/projects", project("p", local)).await;
        assert_eq!(local.expect_problem(422, "value_invalid").body["field"], "repository");
    }
    let unknown = json!({"slug": "p", "name": "P", "repository": "https://git.test/p", "owner": "me"});
    let unknown = owner.post("/v1/orgs/acme/projects", unknown).await.expect_problem(400, "body_invalid");
    assert!(unknown.text("detail").contains("owner"));
}

#[tokio::test]
async fn a_path_of_the_machine_is_a_repository_where_the_operator_says_so() {
    let house = House::start_with(|config| config.local_repositories = true).await;
    let owner = house.owner().await;
    let local = json!({"slug": "p", "name": "P", "repository": "/srv/orders"});
    owner.post("/v1/orgs/acme/projects", local).await.expect(201);
    owner.patch("/v1/orgs/acme/projects/p", json!({"repository": "file:///srv/orders"})).await.expect(200);
}

#[tokio::test]
async fn each_mistake_of_a_manifest_has_its_line_and_column() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let path = "/v1/orgs/acme/workspaces/signed-links/manifest";
    let yaml = "version: 1\nservices:\n  web:\n    comand: ./web\n";
    let request = owner.request(Method::PUT, path).header("Content-Type", "application/yaml");
    let problem = answer(request.body(yaml)).await.expect_problem(422, "manifest_invalid");
    let first = &problem.body["errors"][0];
    assert_eq!((first["line"].as_u64(), first["column"].as_u64()), (Some(4), Some(5)), "{problem:#?}");
    let request = owner.request(Method::PUT, path).header("Content-Type", "text/yaml");
    let good = answer(request.body(MANIFEST.replace("./web", "./web2"))).await.expect(200);
    let now = owner.get_at("/v1/orgs/acme/workspaces/signed-links", good.position()).await.expect(200);
    assert_eq!(now.body["manifest_digest"], good.body["manifest_digest"]);
    assert!(now.text("manifest").contains("./web2"));
}

#[tokio::test]
async fn a_policy_change_keeps_what_it_does_not_name_and_stays_within_limits() {
    let house = House::start().await;
    let owner = house.owner().await;
    let before = owner.get("/v1/orgs/acme").await.expect(200).body["policy"].clone();
    let change = json!({"keep_awake_max_seconds": 1800, "link_families": ["web", "api"]});
    let mut after = owner.patch("/v1/orgs/acme/policy", change).await.expect(200);
    assert!(after.body.as_object_mut().unwrap().remove("receipt").is_some());
    assert_eq!(after.body["keep_awake_max_seconds"], 1800);
    assert_eq!(after.body["link_families"], json!(["web", "api"]));
    assert_eq!(after.body["link_lifetime_max_seconds"], before["link_lifetime_max_seconds"]);
    let read = owner.get_at("/v1/orgs/acme", after.position()).await.expect(200);
    assert_eq!(read.body["policy"], after.body);
    let out = owner.patch("/v1/orgs/acme/policy", json!({"link_lifetime_max_seconds": 5})).await;
    assert!(out.expect_problem(422, "policy_out_of_range").body["min_ms"].is_u64());
    let unknown = owner.patch("/v1/orgs/acme/policy", json!({"link_families": ["ssh"]})).await;
    assert_eq!(unknown.expect_problem(422, "value_invalid").body["field"], "link_families");
}

#[tokio::test]
async fn adding_a_member_again_with_the_same_key_is_harmless_and_an_address_belongs_to_one() {
    let house = House::start().await;
    let owner = house.owner().await;
    let bob = json!({"email": "bob@acme.test", "name": "Bob", "password": "plum kite engine 9"});
    let first = owner.post_keyed("/v1/orgs/acme/members", "bob", bob.clone()).await.expect(201);
    let again = owner.post_keyed("/v1/orgs/acme/members", "bob", bob.clone()).await.expect(201);
    assert_eq!(first.body, again.body);
    owner.post("/v1/orgs/acme/members", bob).await.expect_problem(409, "account_exists");
    let weak = json!({"email": "eve@acme.test", "name": "Eve", "password": "password1234"});
    owner.post("/v1/orgs/acme/members", weak).await.expect_problem(422, "password_common");
    let members = owner.get_at("/v1/orgs/acme/members", again.position()).await.expect(200);
    assert_eq!(members.body["items"].as_array().unwrap().len(), 2);
}
