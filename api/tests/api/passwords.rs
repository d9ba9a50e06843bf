//! Changing one's password, also when it breaks off half-way.

use envforge_domain::commit::StreamKind;
use reqwest::Method;
use serde_json::json;

use crate::house::{House, PASSWORD, Person};

const ANOTHER: &str = "fjord lattice oak 42";

fn change(present: &str, new: &str) -> serde_json::Value {
    json!({"password": present, "new_password": new})
}

#[tokio::test]
async fn a_changed_password_ends_all_sessions_and_gives_the_caller_a_new_one() {
    let house = House::start().await;
    let (here, there) = (house.owner().await, house.owner().await);
    let changed = here.post("/v1/auth/change-password", change(PASSWORD, ANOTHER)).await.expect(200);
    assert_eq!(changed.body["revoked"]["sessions"], 2);
    for person in [&here, &there] {
        person.get("/v1/me").await.expect_problem(401, "session_ended");
        let body = json!({"refresh_token": person.refresh});
        house.anonymous(Method::POST, "/v1/auth/refresh", body).await.expect_problem(401, "refresh_token_invalid");
    }
    let token = changed.body["signed_in"]["access_token"].as_str().unwrap().to_owned();
    let now = Person { token, ..here };
    now.get("/v1/me").await.expect(200);
    house.login("ada@acme.test", PASSWORD).await.expect_problem(401, "wrong_credentials");
    house.login("ada@acme.test", ANOTHER).await.expect(200);
}

#[tokio::test]
async fn a_new_password_must_keep_the_rules_and_the_old_one_must_be_right() {
    let house = House::start().await;
    let owner = house.owner().await;
    let refused = async |present: &str, new: &str, status, code: &str| {
        let answer = owner.post("/v1/auth/change-password", change(present, new)).await;
        answer.expect_problem(status, code)
    };
    refused("not it", ANOTHER, 401, "wrong_credentials").await;
    assert_eq!(refused(PASSWORD, "short", 422, "password_too_short").await.text("field"), "new_password");
    refused(PASSWORD, &"x1".repeat(37), 422, "password_too_long").await;
    refused(PASSWORD, "password1234", 422, "password_common").await;
    owner.get("/v1/me").await.expect(200);
    house.login("ada@acme.test", PASSWORD).await.expect(200);
}

#[tokio::test]
async fn a_change_that_broke_off_before_the_log_knew_is_finished_by_the_same_request() {
    let house = House::start().await;
    let (owner, thief) = (house.owner().await, house.owner().await);
    house.faults.unappendable(Some(StreamKind::User));
    let answer = owner.post("/v1/auth/change-password", change(PASSWORD, ANOTHER)).await;
    answer.expect_problem(503, "log_unavailable");
    // The old password works no more, and no session can be prolonged.
    let body = json!({"refresh_token": thief.refresh});
    house.anonymous(Method::POST, "/v1/auth/refresh", body).await.expect(503);
    house.faults.unappendable(None);
    house.login("ada@acme.test", PASSWORD).await.expect_problem(401, "wrong_credentials");
    owner.post("/v1/auth/change-password", change(PASSWORD, ANOTHER)).await.expect(200);
    thief.get("/v1/me").await.expect_problem(401, "session_ended");
    house.login("ada@acme.test", ANOTHER).await.expect(200);
}

#[tokio::test]
async fn no_event_and_no_problem_holds_a_password() {
    let house = House::start().await;
    let owner = house.owner().await;
    owner.post("/v1/auth/change-password", change("a wrong one 77", ANOTHER)).await.expect(401);
    owner.post("/v1/auth/change-password", change(PASSWORD, ANOTHER)).await.expect(200);
    let everything = house.everything().await;
    for secret in [PASSWORD, ANOTHER, "a wrong one 77", "$2b$", &owner.refresh, &owner.token] {
        assert!(!everything.contains(secret), "{secret}");
    }
}
