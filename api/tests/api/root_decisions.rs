//! Nobody decides on their own root window: every path on which somebody could come to their own request as somebody else. What the
//! domain refuses by itself (agents, links, EnvForge's own components) stands in its specs.

use serde_json::{Value, json};

use crate::house::{Answer, House, PASSWORD, Person, answer};

const POLICY: &str = "/v1/orgs/acme/policy";
const ASK: &str = "/v1/orgs/acme/workspaces/signed-links/root-windows";
const WINDOWS: &str = "/v1/orgs/acme/root-windows";

fn because() -> Value {
    json!({ "reason": "libpq is missing", "minutes": 20 })
}

/// Approving and denying.
async fn decide(who: &Person, window: &str) -> [Answer; 2] {
    let path = |verb: &str| format!("{WINDOWS}/{window}/{verb}");
    [who.post(&path("approve"), json!({})).await, who.post(&path("deny"), json!({})).await]
}

async fn may_not(who: &Person, window: &str) {
    for refused in decide(who, window).await {
        refused.expect_problem(403, "root_own_request");
    }
}

/// A house where root may be asked for, its owner, and an admin who asks.
async fn house() -> (House, Person, Person) {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let ann = house.member(&owner, "ann", &["admin", "developer"]).await;
    owner.patch(POLICY, json!({ "root": "workspace_elevation" })).await.expect(200);
    (house, owner, ann)
}

async fn phase(who: &Person, window: &str) -> String {
    who.get(&format!("{WINDOWS}/{window}")).await.expect(200).text("phase")
}

#[tokio::test]
async fn a_key_that_somebody_else_used_and_another_process_answer_nobodys_own_request() {
    let (house, owner, ann) = house().await;
    let own = ann.post(ASK, because()).await.expect(201).text("id");
    let approve = format!("{WINDOWS}/{own}/approve");
    // Repeated, and where another process has never heard of the first attempt.
    let elsewhere = house.elsewhere(&ann).await;
    for who in [&ann, &ann, &elsewhere] {
        who.post_keyed(&approve, "ann's", json!({})).await.expect_problem(403, "root_own_request");
    }
    // The owner approves somebody else's and ann's with a key that ann then sends, too.
    let other = house.member(&owner, "dave", &["developer"]).await.post(ASK, because()).await.expect(201).text("id");
    let granted = owner.post_keyed(&format!("{WINDOWS}/{other}/approve"), "shared", json!({})).await;
    granted.expect(200);
    for who in [&ann, &elsewhere] {
        let refused = who.post_keyed(&approve, "shared", json!({})).await;
        assert!(matches!(refused.status, 403 | 409 | 422), "{refused:?}");
    }
    assert_eq!(phase(&owner, &own).await, "requested");
    owner.post_keyed(&approve, "owner's", json!({})).await.expect(200);
    for key in ["owner's", "ann's", "shared"] {
        let refused = ann.post_keyed(&approve, key, json!({})).await;
        assert!(matches!(refused.status, 403 | 409 | 422), "{refused:?}");
    }
}

#[tokio::test]
async fn neither_a_changed_policy_nor_roles_that_come_and_go_make_somebody_another_person() {
    let (house, owner, ann) = house().await;
    let own = ann.post(ASK, because()).await.expect(201).text("id");
    // Every way to root that there is, opened and closed while it waits; ann may close ways herself.
    for (who, root) in [(&owner, "break_glass"), (&owner, "workspace_elevation"), (&ann, "disabled")] {
        who.patch(POLICY, json!({ "root": root })).await.expect(200);
        for refused in decide(&ann, &own).await {
            assert!(matches!(refused.code(), "root_own_request" | "root_right_lost"), "{root}: {refused:?}");
        }
    }
    owner.patch(POLICY, json!({ "root": "workspace_elevation", "root_window_max_seconds": 60 })).await.expect(200);
    for refused in decide(&ann, &own).await {
        assert!(matches!(refused.code(), "root_own_request" | "root_right_lost"), "{refused:?}");
    }
    owner.patch(POLICY, json!({ "root_window_max_seconds": 1_800 })).await.expect(200);
    may_not(&ann, &own).await;
    // Without the role under which she asked, with another one, and with both again.
    let role = |role: &str| json!({ "user": ann.user, "role": role });
    owner.delete(&format!("/v1/orgs/acme/roles?user={}&role=developer", ann.user)).await.expect(200);
    may_not(&ann, &own).await;
    owner.post("/v1/orgs/acme/roles", role("developer")).await.expect(201);
    owner.post("/v1/orgs/acme/roles", role("owner")).await.expect(201);
    may_not(&ann, &own).await;
    // Shut out and let in again: by the same address, and so the same person.
    owner.post(&format!("/v1/orgs/acme/members/{}/deactivate", ann.user), json!({})).await.expect(200);
    owner.post(&format!("/v1/orgs/acme/members/{}/reactivate", ann.user), json!({})).await.expect(204);
    let back = house.person("ann@acme.test").await;
    assert_eq!(back.user, ann.user);
    may_not(&back, &own).await;
    // Removed and added anew she has what she had before, her own request too.
    owner.delete(&format!("/v1/orgs/acme/members/{}", ann.user)).await.expect(200);
    let back = house.member(&owner, "ann", &["admin", "developer"]).await;
    assert_eq!(back.user, ann.user);
    may_not(&back, &own).await;
    // Nobody gets a second account of one address, however it is spelled.
    for email in ["ann@acme.test", "Ann@ACME.test"] {
        let second = json!({ "email": email, "name": "Ann again", "password": PASSWORD });
        let refused = owner.post("/v1/orgs/acme/members", second).await;
        assert!(matches!(refused.status, 409 | 422), "{email}: {refused:?}");
    }
    assert_eq!(phase(&owner, &own).await, "requested");
}

#[tokio::test]
async fn neither_a_link_nor_a_program_nor_another_session_reviews_or_approves_for_its_person() {
    let (house, owner, ann) = house().await;
    let broken = ann.post(&format!("{ASK}/break-glass"), because()).await.expect(201).text("id");
    ann.post(&format!("{WINDOWS}/{broken}/withdraw"), json!({})).await.expect(200);
    let own = ann.post(ASK, because()).await.expect(201).text("id");
    let review = json!({ "justified": true, "note": "it was right" });
    let paths = [format!("{WINDOWS}/{broken}/review"), format!("{WINDOWS}/{own}/approve")];
    let body = |path: &str| if path.ends_with("review") { review.clone() } else { json!({}) };
    // Sessions of hers on every surface, whatever they say that they are.
    for surface in ["api", "cli", "console"] {
        let session = house.person_on("ann@acme.test", surface).await;
        for (path, said) in paths.iter().flat_map(|path| ["api", "cli", "console"].map(|said| (path, said))) {
            let request = session.request(reqwest::Method::POST, path).header("EnvForge-Surface", said);
            let refused = answer(request.json(&body(path))).await;
            assert_eq!(refused.status, 403, "{surface} as {said}: {refused:?}");
        }
    }
    // A link that she issued, in every place where a token is taken.
    let link = ann.post("/v1/orgs/acme/workspaces/signed-links/links", json!({ "service": "web" })).await.expect(201);
    let url = link.text("share_url");
    let token = url.rsplit('/').next().unwrap();
    let visitor = Person { token: token.to_owned(), ..ann.clone() };
    let program = ann.post("/v1/orgs/acme/service-tokens", json!({ "slug": "ci", "actions": ["usage.read"] })).await;
    let program = Person { token: program.expect(201).text("secret"), ..ann.clone() };
    for path in &paths {
        assert_eq!(visitor.post(path, body(path)).await.status, 401, "{path}");
        let with_cookie = house.client.post(format!("{}{path}", house.base)).header("Cookie", format!("ef_s={token}"));
        assert_eq!(answer(with_cookie.json(&body(path))).await.status, 401, "{path}");
        program.post(path, body(path)).await.expect_problem(403, "outside_service_token");
    }
    assert_eq!(phase(&owner, &own).await, "requested");
    assert_eq!(phase(&owner, &broken).await, "review_pending");
    // Somebody else does both.
    owner.post(&paths[0], review).await.expect(200);
    owner.post(&paths[1], json!({})).await.expect(200);
}
