//! What the provider says of its people afterwards: signed events, and SCIM.

use super::*;

/// HMAC-SHA256 (RFC 2104), written out: tests name no library that the product does not.
fn hmac(key: &[u8], message: &[u8]) -> String {
    use sha2::{Digest as _, Sha256};
    let padded = |with: u8| {
        let mut block = [with; 64];
        block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
        block
    };
    let inner = Sha256::new().chain_update(padded(0x36)).chain_update(message).finalize();
    let outer = Sha256::new().chain_update(padded(0x5c)).chain_update(inner).finalize();
    outer.iter().map(|byte| format!("{byte:02x}")).collect()
}

const EVENTS_SECRET: &str = "the-secret-of-the-providers-events";
const SCIM_TOKEN: &str = "the-token-of-the-scim-client-of-acme";

async fn world_with_events() -> (World, tempfile::TempDir) {
    let secrets = tempfile::tempdir().unwrap();
    let file = |name: &str, secret: &str| {
        let path = secrets.path().join(name);
        std::fs::write(&path, secret).unwrap();
        path
    };
    let more = json!({
        "events_secret_file": file("events", EVENTS_SECRET),
        "organizations": [
            { "provider_id": "org_acme", "slug": "acme", "join": true, "role": "viewer", "scim_token_file": file("scim", SCIM_TOKEN) },
            { "provider_id": "org_other", "slug": "other" },
        ],
    });
    (World::start_with(OidcOptions::default(), more).await, secrets)
}

impl World {
    async fn event(&self, base: &str, at_s: u64, secret: &str, body: &Value) -> Answer {
        let text = body.to_string();
        let tag = hmac(secret.as_bytes(), format!("{at_s}.{text}").as_bytes());
        let request = self.house.client.post(format!("{base}/v1/auth/oidc/events"));
        answer(request.header("envforge-event-signature", format!("t={at_s},v1={tag}")).body(text)).await
    }

    async fn scim(&self, method: Method, path: &str, token: &str, body: Value) -> Answer {
        let request = self.house.client.request(method, format!("{}/v1/scim{path}", self.house.base));
        let request = request.header("content-type", "application/scim+json").bearer_auth(token);
        answer(if body.is_null() { request } else { request.body(body.to_string()) }).await
    }
}

#[tokio::test]
async fn who_is_deactivated_at_the_provider_has_nothing_left_here() {
    let (world, _secrets) = world_with_events().await;
    let mut browser = world.signed_in().await;
    let tokens = world.at_terminal().await;
    let now = world.house.now().get() / 1_000;
    let event = json!({"id": "event-1", "type": "user.deactivated", "subject": "auth0|ada"});
    let base = world.house.base.clone();
    for (at, secret, reason) in [
        (now, "another-secret-of-somebody-else", "signature"),
        (now - 301, EVENTS_SECRET, "age"),
        (now + 302, EVENTS_SECRET, "age"),
    ] {
        let refused = world.event(&base, at, secret, &event).await.expect_problem(401, "event_not_signed");
        assert_eq!(refused.text("reason"), reason);
    }
    browser.me().await.expect(200);
    world.event(&base, now, EVENTS_SECRET, &event).await.expect(204);
    browser.me().await.expect_problem(403, "account_deactivated");
    world.person(&tokens).me().await.expect_problem(403, "account_deactivated");
    let refresh = json!({"refresh_token": tokens.text("refresh_token")});
    world.post("/v1/auth/refresh", refresh).await.expect_problem(401, "refresh_token_invalid");
    let mut again = world.browser();
    let callback = again.follow_to_callback("").await;
    again.get(&callback).await.expect_problem(403, "account_deactivated");
    // The same message at another process does nothing, and nobody unknown is a mistake.
    let another = world.house.another().await;
    world.event(&another, now, EVENTS_SECRET, &event).await.expect(204);
    let unknown = json!({"id": "event-2", "type": "user.deactivated", "subject": "auth0|nobody"});
    world.event(&another, now, EVENTS_SECRET, &unknown).await.expect(204);
    let owner = world.house.owner().await;
    owner.get("/v1/me").await.expect(200);
}

#[tokio::test]
async fn an_organizations_scim_client_makes_finds_and_deactivates_its_people_and_nobody_else() {
    use base64::Engine as _;
    let id = |subject: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(subject);
    let (world, _secrets) = world_with_events().await;
    world.house.organization("other", "olga@other.test").await;
    let new = json!({
        "schemas": ["urn:ietf:params:scim:schemas:core:2.0:User"], "userName": "dave@acme.test", "externalId": "auth0|dave",
        "displayName": "Dave", "emails": [{ "value": "dave@acme.test", "primary": true }], "active": true,
    });
    for (path, token) in
        [("/acme/Users", "a-made-up-token-of-nobody"), ("/other/Users", SCIM_TOKEN), ("/nowhere/Users", SCIM_TOKEN)]
    {
        world.scim(Method::POST, path, token, new.clone()).await.expect_problem(401, "unauthenticated");
    }
    let made = world.scim(Method::POST, "/acme/Users", SCIM_TOKEN, new.clone()).await.expect(201);
    assert_eq!(made.headers["content-type"], "application/scim+json");
    assert_eq!((made.text("userName"), made.body["active"].clone()), ("dave@acme.test".to_owned(), json!(true)));
    world.scim(Method::POST, "/acme/Users", SCIM_TOKEN, new).await.expect_problem(409, "user_exists");
    let found = "/acme/Users?filter=externalId%20eq%20%22auth0%7Cdave%22";
    let found = world.scim(Method::GET, found, SCIM_TOKEN, json!(null)).await.expect(200);
    assert_eq!((&found.body["totalResults"], &found.body["Resources"][0]["id"]), (&json!(1), &made.body["id"]));
    let nobody = "/acme/Users?filter=externalId%20eq%20%22auth0%7Cnobody%22";
    assert_eq!(world.scim(Method::GET, nobody, SCIM_TOKEN, json!(null)).await.expect(200).body["totalResults"], 0);

    // Who was made by SCIM signs in as that record.
    world.be("auth0|dave", Some("org_acme"), "dave@acme.test").await;
    let mut dave = world.signed_in().await;
    assert_eq!(dave.me().await.expect(200).text("name"), "Dave");
    let path = format!("/acme/Users/{}", made.text("id"));
    let written = |active: Value| json!({"externalId": "auth0|dave", "displayName": "David", "active": active});
    for active in [json!(true), json!("True"), json!(null)] {
        let same = world.scim(Method::PUT, &path, SCIM_TOKEN, written(active)).await.expect(200);
        assert_eq!(same.body, made.body, "names are taken at first sight alone");
    }
    let another = json!({"externalId": "auth0|ada", "active": false});
    world.scim(Method::PUT, &path, SCIM_TOKEN, another).await.expect_problem(422, "value_invalid");
    world.scim(Method::PUT, &path, SCIM_TOKEN, written(json!("no"))).await.expect_problem(422, "value_invalid");
    world.scim(Method::PUT, &path, "a-made-up-token-of-nobody", written(json!(false))).await.expect(401);
    dave.me().await.expect(200);
    let leave = json!({"schemas": ["urn:ietf:params:scim:api:messages:2.0:PatchOp"], "Operations": [{"op": "replace", "path": "active", "value": false}]});
    let left = world.scim(Method::PATCH, &path, SCIM_TOKEN, leave.clone()).await.expect(200);
    assert_eq!(left.body["active"], false);
    dave.me().await.expect_problem(403, "account_deactivated");
    world.scim(Method::PATCH, &path, SCIM_TOKEN, leave).await.expect(200);
    let back = json!({"Operations": [{"op": "replace", "value": {"active": true}}]});
    world.scim(Method::PATCH, &path, SCIM_TOKEN, back).await.expect_problem(403, "account_deactivated");
    world.scim(Method::PUT, &path, SCIM_TOKEN, written(json!(true))).await.expect_problem(403, "account_deactivated");

    // A provider that knows no patch.
    world.be("auth0|erin", Some("org_acme"), "erin@acme.test").await;
    let mut erin = world.signed_in().await;
    let path = format!("/acme/Users/{}", id("auth0|erin"));
    let left = world.scim(Method::PUT, &path, SCIM_TOKEN, json!({"active": "False"})).await.expect(200);
    assert_eq!(left.body["active"], false);
    erin.me().await.expect_problem(403, "account_deactivated");

    // Somebody who left for good; and whoever the provider did not make cannot be named.
    let mut ada = {
        world.be("auth0|ada", Some("org_acme"), "ada@acme.test").await;
        world.signed_in().await
    };
    ada.me().await.expect(200);
    world.scim(Method::DELETE, &format!("/acme/Users/{}", id("auth0|ada")), SCIM_TOKEN, json!(null)).await.expect(204);
    ada.me().await.expect_problem(403, "account_deactivated");
    let owner = world.house.owner().await;
    for somebody in [owner.user.clone(), id(&owner.user)] {
        let path = format!("/acme/Users/{somebody}");
        world.scim(Method::DELETE, &path, SCIM_TOKEN, json!(null)).await.expect_problem(404, "not_found");
    }
    owner.get("/v1/me").await.expect(200);
}
