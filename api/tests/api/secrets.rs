//! Secrets over HTTP: who may set, list and remove them, and that a value goes to the store and nowhere else.

use std::pin::Pin;
use std::sync::{Arc, Mutex};

use envforge_api::{Config, NotPut, PutBy, SecretPuts};
use envforge_domain::project::GitCredential;
use envforge_domain::secret::Secret;
use envforge_domain::secrets::{PinnedSecret, SecretKey};
use reqwest::Method;
use serde_json::{Value, json};

use crate::house::{House, Person, answer};

const OF_PROJECT: &str = "/v1/orgs/acme/projects/orders/secrets";
const OF_WORKSPACE: &str = "/v1/orgs/acme/workspaces/signed-links/secrets";
const VALUE: &str = "canary-4711-of-the-store";

/// Values in the order in which they came, with their names; `down` refuses.
#[derive(Default)]
struct Store {
    values: Mutex<Vec<(String, String)>>,
    down: Mutex<bool>,
}

impl Store {
    fn count(&self) -> usize {
        self.values.lock().unwrap().len()
    }
}

async fn house() -> (House, Arc<Store>) {
    let store = Arc::new(Store::default());
    let putting = Arc::clone(&store);
    let looking = Arc::clone(&store);
    let put = move |key: SecretKey, value: Secret, _: PutBy| -> Pin<Box<dyn Future<Output = _> + Send>> {
        let store = Arc::clone(&putting);
        Box::pin(async move {
            if *store.down.lock().unwrap() {
                return Err(NotPut::Unavailable { detail: "the disk is full".to_owned() });
            }
            if value.expose().is_empty() {
                return Err(NotPut::Value { max_bytes: 4_096 });
            }
            if value.expose().contains("{{") {
                return Err(NotPut::Untakable { why: "it refuses references" });
            }
            let mut values = store.values.lock().unwrap();
            values.push((key.name.to_string(), value.expose().to_owned()));
            Ok(values.iter().filter(|(name, _)| *name == key.name.as_str()).count() as u64)
        })
    };
    let git_carries = move |pinned: PinnedSecret| -> Pin<Box<dyn Future<Output = _> + Send>> {
        let store = Arc::clone(&looking);
        Box::pin(async move {
            let values = store.values.lock().unwrap();
            let mut of_name = values.iter().filter(|(name, _)| *name == pinned.key.name.as_str());
            let (_, value) = of_name.nth(usize::try_from(pinned.version).unwrap() - 1)?;
            Some(GitCredential::carries(&Secret::new(value.clone())))
        })
    };
    let puts = SecretPuts::new(put, git_carries);
    let house = House::start_with(|config: &mut Config| config.secrets = Some(puts)).await;
    (house, store)
}

fn items(body: &Value) -> Vec<String> {
    body["items"].as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_value_goes_to_the_store_once_a_request_and_into_no_answer_and_no_event() {
    let (house, store) = house().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let path = format!("{OF_PROJECT}/API_KEY");
    let set = |key: &'static str, value: &'static str| {
        let request = owner.request(Method::PUT, &path).header("Idempotency-Key", key);
        answer(request.json(&json!({ "secret": value })))
    };
    let first = set("one", VALUE).await.expect(200);
    assert_eq!(first.body, json!({ "name": "API_KEY", "owner": "project", "version": 1 }));
    // The key remembers the request without its value: another value is answered as the first was.
    for value in [VALUE, "another"] {
        let again = set("one", value).await.expect(200);
        assert_eq!((again.body["version"].as_u64(), again.position()), (Some(1), first.position()));
    }
    assert_eq!(store.count(), 1);
    let second = set("two", VALUE).await.expect(200);
    assert_eq!((second.body["version"].as_u64(), store.count()), (Some(2), 2));
    let listed = owner.get(OF_PROJECT).await.expect(200);
    let history = owner.get(&format!("{path}/history")).await.expect(200);
    assert_eq!(history.body["items"][0]["version"], 2);
    let seen = owner.get(OF_WORKSPACE).await.expect(200);
    for told in [first.body, listed.body, history.body, seen.body, Value::String(house.everything().await)] {
        assert!(!told.to_string().contains(VALUE), "{told}");
    }
}

#[tokio::test]
async fn what_is_refused_puts_nothing_and_what_the_store_refuses_is_not_told() {
    let (house, store) = house().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let path = format!("{OF_PROJECT}/API_KEY");
    for (name, body, code) in [
        ("api_key", json!({ "secret": VALUE }), "value_invalid"),
        ("API_KEY", json!({}), "value_invalid"),
        ("API_KEY", json!({ "secret": VALUE, "rotation": "at once" }), "value_invalid"),
        ("API_KEY", json!({ "secret": VALUE, "workspaces": ["nobody"] }), "value_invalid"),
    ] {
        let refused = owner.put(&format!("{OF_PROJECT}/{name}"), body).await.expect_problem(422, code);
        assert!(!refused.body.to_string().contains(VALUE), "{refused:?}");
    }
    owner.put(&path, json!({ "secret": 4711 })).await.expect_problem(400, "body_invalid");
    let own = format!("{OF_WORKSPACE}/API_KEY");
    let elsewhere = json!({ "secret": VALUE, "workspaces": ["signed-links"] });
    owner.put(&own, elsewhere).await.expect_problem(422, "secret_rules_invalid");
    owner.put(&path, json!({ "services": ["web"] })).await.expect_problem(404, "secret_unknown");
    owner.delete(&path).await.expect_problem(404, "secret_unknown");
    owner.put("/v1/orgs/acme/projects/nothing/secrets/A", json!({ "secret": VALUE })).await.expect(404);
    assert_eq!(store.count(), 0);
    owner.put(&path, json!({ "secret": "" })).await.expect_problem(422, "secret_value_invalid");
    let untakable = format!("{{{{{VALUE}}}}}");
    let refused = owner.put(&path, json!({ "secret": untakable })).await.expect_problem(422, "secret_value_invalid");
    assert!(!refused.body.to_string().contains(VALUE), "{refused:?}");
    assert!(refused.body["detail"].as_str().unwrap().contains("it refuses references"), "{refused:?}");
    *store.down.lock().unwrap() = true;
    let down = owner.put(&path, json!({ "secret": VALUE })).await.expect_problem(503, "secret_store_unavailable");
    assert!(!down.body.to_string().contains("disk"), "{down:?}");
    assert!(items(&owner.get(OF_PROJECT).await.expect(200).body).is_empty(), "the log was told of nothing");
}

#[tokio::test]
async fn people_set_where_their_roles_reach_and_programs_and_billing_do_not() {
    let (house, store) = house().await;
    let owner = house.owner().await;
    let workspace = house.workspace(&owner).await;
    let set =
        async |person: &Person, path: &str| person.put(&format!("{path}/API_KEY"), json!({ "secret": VALUE })).await;
    for role in ["admin", "developer", "mod"] {
        let person = house.member(&owner, role, &[role]).await;
        set(&person, OF_PROJECT).await.expect(200);
        set(&person, OF_WORKSPACE).await.expect(200);
    }
    for role in ["viewer", "explore", "create"] {
        let person = house.member(&owner, role, &[role]).await;
        set(&person, OF_PROJECT).await.expect_problem(403, "role_missing");
        person.delete(&format!("{OF_WORKSPACE}/API_KEY")).await.expect_problem(403, "role_missing");
        assert_eq!(items(&person.get(OF_PROJECT).await.expect(200).body), ["API_KEY"]);
        assert_eq!(person.get(OF_WORKSPACE).await.expect(200).body["items"][0]["owner"], "workspace");
    }
    let billing = house.member(&owner, "bill", &["billing"]).await;
    for path in [OF_PROJECT, OF_WORKSPACE] {
        billing.get(path).await.expect_problem(403, "role_missing");
        set(&billing, path).await.expect_problem(403, "role_missing");
    }
    // A role on the one workspace reaches no secret of its project.
    let guest = house.member(&owner, "guest", &[]).await;
    let role = json!({ "user": guest.user, "role": "developer", "workspace": workspace });
    owner.post("/v1/orgs/acme/roles", role).await.expect(201);
    set(&guest, OF_WORKSPACE).await.expect(200);
    set(&guest, OF_PROJECT).await.expect_problem(403, "role_missing");
    let count = store.count();
    let new = json!({ "slug": "ci", "actions": ["secret.list"] });
    let token = owner.post("/v1/orgs/acme/service-tokens", new).await.expect(201).text("secret");
    let ci = Person { token, ..owner.clone() };
    ci.get(OF_WORKSPACE).await.expect(200);
    set(&ci, OF_WORKSPACE).await.expect_problem(403, "outside_service_token");
    let more = json!({ "slug": "more", "actions": ["secret.set"] });
    let refused = owner.post("/v1/orgs/acme/service-tokens", more).await;
    refused.expect_problem(422, "service_token_actions_invalid");
    assert_eq!(store.count(), count, "nothing was put for whoever may not");
    owner.post("/v1/orgs/acme/workspaces/signed-links/archive", json!({})).await.expect(200);
    set(&owner, OF_WORKSPACE).await.expect_problem(410, "workspace_archived");
}

#[tokio::test]
async fn git_is_given_no_value_of_several_lines_and_whoever_sets_it_up_is_told_what_would_be_right() {
    let (house, store) = house().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let project = "/v1/orgs/acme/projects/orders";
    let (path, own) = (format!("{OF_PROJECT}/GIT_TOKEN"), format!("{OF_WORKSPACE}/GIT_TOKEN"));
    owner.patch(project, json!({ "repository": "https://git.example/acme/orders.git" })).await.expect(200);
    owner.put(&path, json!({ "secret": "one\ntwo" })).await.expect(200);
    let name = json!({ "git_credential": { "secret": "GIT_TOKEN", "in_shells": true } });
    let refused = owner.patch(project, name.clone()).await.expect_problem(422, "git_credential_invalid");
    let told = refused.body["detail"].as_str().unwrap();
    assert!(told.contains("GIT_TOKEN") && told.contains("project orders") && told.contains("one line"), "{told}");
    owner.put(&path, json!({ "secret": VALUE })).await.expect(200);
    owner.patch(project, name).await.expect(200);
    let before = store.count();
    for value in ["one\ntwo", "windows\r"] {
        for path in [&path, &own] {
            let refused = owner.put(path, json!({ "secret": value })).await;
            let refused = refused.expect_problem(422, "secret_value_invalid");
            assert!(refused.body["detail"].as_str().unwrap().contains("line break"), "{refused:?}");
        }
    }
    assert_eq!(store.count(), before, "nothing of it was put");
    // Other secrets have as many lines as they like.
    owner.put(&format!("{OF_PROJECT}/PEM"), json!({ "secret": "one\ntwo" })).await.expect(200);
}
