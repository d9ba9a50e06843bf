//! Where people are signed in, and how that ends.

use envforge_domain::commit::{Actor, Position, StreamId};
use envforge_domain::event::Event;
use envforge_domain::ids::UserId;
use envforge_domain::revocation::Receipt;
use envforge_domain::session::SessionEnd;
use envforge_domain::time::Millis;
use envforge_domain::user::UserEvent;
use reqwest::Method;
use serde_json::json;

use crate::house::{House, PASSWORD, Person, answer};

async fn refresh(house: &House, person: &Person) -> crate::house::Answer {
    house.anonymous(Method::POST, "/v1/auth/refresh", json!({"refresh_token": person.refresh})).await
}

/// What the log says of a person's revocations, with who wrote it.
async fn receipts(house: &House, person: &Person) -> Vec<(Actor, SessionEnd, Receipt)> {
    let org = house.hot.authorization.organization_by_slug(&"acme".parse().unwrap()).unwrap();
    let user: UserId = person.user.parse().unwrap();
    let commits = house.log.read_stream(&StreamId::user(org, user), Position::START, 1_000).await.unwrap();
    let of = |event: &Event| match event {
        Event::User(UserEvent::RevocationRecorded { cause, receipt }) => Some((*cause, receipt.clone())),
        _ => None,
    };
    let all = commits.iter().map(|recorded| &recorded.commit);
    all.flat_map(|commit| commit.events.iter().filter_map(of).map(|(cause, receipt)| (commit.actor, cause, receipt)))
        .collect()
}

#[tokio::test]
async fn a_person_sees_where_they_are_signed_in_and_which_one_this_is() {
    let house = House::start().await;
    let cli = house.client.post(format!("{}/v1/auth/login", house.base)).header("EnvForge-Surface", "cli");
    let body = json!({"email": "ada@acme.test", "password": PASSWORD, "client": "envforge-cli/0.1.0"});
    let cli = house.signed_in(answer(cli.json(&body)).await);
    house.clock.skip(Millis::from_minutes(10));
    let api = house.owner().await;
    let page = api.get("/v1/me/sessions").await.expect(200);
    let seen: Vec<_> = page.body["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|session| {
            let text = |field: &str| session[field].as_str().unwrap().to_owned();
            (text("surface"), text("client"), text("provider"), session["current"].as_bool().unwrap())
        })
        .collect();
    let row =
        |surface: &str, client: &str, current| (surface.to_owned(), client.to_owned(), "local".to_owned(), current);
    assert_eq!(seen, [row("api", "api", true), row("cli", "envforge-cli/0.1.0", false)]);
    // Used again, a session says so to the hour.
    house.clock.skip(Millis::from_hours(2));
    let again = refresh(&house, &cli).await.expect(200);
    let cli = Person { token: again.text("access_token"), refresh: again.text("refresh_token"), ..cli };
    let page = cli.get("/v1/me/sessions").await.expect(200);
    let session = &page.body["items"][1];
    assert_eq!(session["surface"], "cli", "{page:#?}");
    assert!(session["last_used_at"].as_str() > session["opened_at"].as_str(), "{session}");
    assert_eq!(session["authenticated_at"], session["opened_at"]);
}

#[tokio::test]
async fn one_of_my_sessions_ends_at_once_and_the_receipt_says_what_was_closed() {
    let house = House::start().await;
    let (here, there) = (house.owner().await, house.owner().await);
    let there_id = there.get("/v1/me").await.expect(200).text("session");
    let gone = here.delete(&format!("/v1/me/sessions/{there_id}")).await.expect(200);
    assert_eq!((&gone.body["sessions"], &gone.body["links"], &gone.body["sockets"]), (&json!(1), &json!(0), &json!(0)));
    assert!(gone.body["took_ms"].is_u64());
    there.get("/v1/me").await.expect_problem(401, "session_ended");
    refresh(&house, &there).await.expect_problem(401, "refresh_token_invalid");
    here.get("/v1/me").await.expect(200);
    let written = receipts(&house, &here).await;
    assert_eq!(written.len(), 1);
    assert_eq!((written[0].1, written[0].2.sessions), (SessionEnd::LoggedOut, 1));
    here.delete(&format!("/v1/me/sessions/{there_id}")).await.expect_problem(404, "not_found");
    here.delete("/v1/me/sessions/nonsense").await.expect_problem(404, "not_found");
}

#[tokio::test]
async fn signing_out_everywhere_leaves_no_session_and_a_repetition_gets_the_first_receipt() {
    let house = House::start().await;
    let (here, there) = (house.owner().await, house.owner().await);
    let other = house.member(&here, "dave", &["developer"]).await;
    let first = here.post_keyed("/v1/auth/logout-all", "everything", json!({})).await.expect(200);
    assert_eq!(first.body["sessions"], 2);
    for person in [&here, &there] {
        person.get("/v1/me").await.expect_problem(401, "session_ended");
        refresh(&house, person).await.expect_problem(401, "refresh_token_invalid");
    }
    other.get("/v1/me").await.expect(200);
    assert_eq!(receipts(&house, &here).await.len(), 1);
}

#[tokio::test]
async fn an_administrator_sees_and_ends_sessions_of_members_but_of_nobody_above() {
    let house = House::start().await;
    let owner = house.owner().await;
    let admin = house.member(&owner, "alex", &["admin"]).await;
    let dev = house.member(&owner, "dave", &["developer"]).await;
    let also = house.person("dave@acme.test").await;
    let sessions = format!("/v1/orgs/acme/members/{}/sessions", dev.user);
    dev.get(&sessions).await.expect_problem(403, "role_missing");
    let page = admin.get(&sessions).await.expect(200);
    assert_eq!(page.body["items"].as_array().unwrap().len(), 2);
    assert!(page.body["items"].as_array().unwrap().iter().all(|session| session["current"] == false));
    let one = page.body["items"][1]["id"].as_str().unwrap();
    admin.delete(&format!("{sessions}/{one}")).await.expect(200);
    dev.get("/v1/me").await.expect_problem(401, "session_ended");
    also.get("/v1/me").await.expect(200);
    let all = admin.delete(&sessions).await.expect(200);
    assert_eq!(all.body["sessions"], 1);
    also.get("/v1/me").await.expect_problem(401, "session_ended");
    refresh(&house, &also).await.expect_problem(401, "refresh_token_invalid");
    assert_eq!(receipts(&house, &dev).await.len(), 2);
    let of_owner = format!("/v1/orgs/acme/members/{}/sessions", owner.user);
    admin.get(&of_owner).await.expect(200);
    admin.delete(&of_owner).await.expect_problem(403, "grant_above_yourself");
    owner.get("/v1/me").await.expect(200);
    admin
        .get("/v1/orgs/acme/members/usr_00000000000000000000000000000009/sessions")
        .await
        .expect_problem(404, "not_found");
}

#[tokio::test]
async fn people_of_another_organization_have_no_sessions_here() {
    let house = House::start().await;
    house.organization("globex", "gus@globex.test").await;
    let (ada, gus) = (house.owner().await, house.person("gus@globex.test").await);
    let here = format!("/v1/orgs/acme/members/{}/sessions", gus.user);
    ada.get(&here).await.expect_problem(404, "not_found");
    ada.delete(&here).await.expect_problem(404, "user_unknown");
    gus.get("/v1/me").await.expect(200);
}

#[tokio::test]
async fn an_old_proof_is_not_enough_for_ownership_and_policy_and_a_new_one_is() {
    let house = House::start().await;
    let owner = house.owner().await;
    let heir = house.member(&owner, "hera", &["admin"]).await;
    let make_owner = json!({"user": heir.user, "role": "owner"});
    let policy = json!({"keep_awake_max_seconds": 60});
    house.clock.skip(Millis::from_minutes(16));
    let refused = owner.post("/v1/orgs/acme/roles", make_owner.clone()).await;
    let refused = refused.expect_problem(403, "reauthentication_required");
    assert_eq!(refused.body["max_age_seconds"], 900);
    owner.patch("/v1/orgs/acme/policy", policy.clone()).await.expect_problem(403, "reauthentication_required");
    // Whoever may not anyway learns nothing of it, and ordinary work goes on.
    owner.post("/v1/orgs/acme/roles", json!({"user": heir.user, "role": "viewer"})).await.expect(201);
    let wrong = owner.post("/v1/auth/reauthenticate", json!({"password": "not it at all"})).await;
    wrong.expect_problem(401, "wrong_credentials");
    let proved = owner.post("/v1/auth/reauthenticate", json!({"password": PASSWORD})).await.expect(200);
    let owner = Person { token: proved.text("access_token"), ..owner };
    owner.post("/v1/orgs/acme/roles", make_owner).await.expect(201);
    owner.patch("/v1/orgs/acme/policy", policy).await.expect(200);
    // Refreshing keeps the proof as old as it is.
    house.clock.skip(Millis::from_minutes(16));
    let again = refresh(&house, &owner).await.expect(200);
    let owner = Person { token: again.text("access_token"), ..owner };
    let take = format!("/v1/orgs/acme/roles?user={}&role=owner", heir.user);
    owner.delete(&take).await.expect_problem(403, "reauthentication_required");
}

#[tokio::test]
async fn guessing_by_reauthentication_is_slowed_down_like_signing_in() {
    let house = House::start().await;
    let owner = house.owner().await;
    for _ in 0..6 {
        owner.post("/v1/auth/reauthenticate", json!({"password": "x"})).await.expect_problem(401, "wrong_credentials");
    }
    owner.post("/v1/auth/reauthenticate", json!({"password": PASSWORD})).await.expect_problem(429, "too_many_attempts");
    house.login("ada@acme.test", PASSWORD).await.expect_problem(429, "too_many_attempts");
}

#[tokio::test]
async fn a_provider_that_the_policy_does_not_allow_signs_nobody_in_and_renews_nothing() {
    let house = House::start().await;
    let owner = house.owner().await;
    let dave = house.member(&owner, "dave", &["developer"]).await;
    // Somebody else's provider vouches for the owner of this change, so that it locks nobody out who asks.
    house.policy(|policy| policy.identity_providers = ["https://id.test/".to_owned()].into()).await;
    let refused = house.login("dave@acme.test", PASSWORD).await.expect_problem(403, "identity_provider_not_allowed");
    assert_eq!(refused.body["provider"], "local");
    house.login("dave@acme.test", "plum kite engine 8").await.expect_problem(401, "wrong_credentials");
    refresh(&house, &dave).await.expect_problem(403, "identity_provider_not_allowed");
    let denied = |code: &str| {
        let drained = house.denials.drain();
        let attempts = drained.iter().flat_map(|(_, attempts)| attempts);
        let of_code = attempts.filter(|attempts| attempts.code == code);
        of_code.map(|attempts| (attempts.resource.clone(), attempts.action.clone(), attempts.count)).collect::<Vec<_>>()
    };
    assert_eq!(
        denied("identity_provider_not_allowed"),
        [(Some(dave.user.clone()), "authenticate".to_owned(), 2)],
        "both are in the audit, as one kind"
    );
    // Loosened again, the policy gives back what it alone took: the refused renewal has not used the token up.
    house.policy(|policy| policy.identity_providers.clear()).await;
    refresh(&house, &dave).await.expect(200);
    house.login("dave@acme.test", PASSWORD).await.expect(200);
}

#[tokio::test]
async fn a_session_that_is_older_than_the_policy_allows_is_not_renewed() {
    let house = House::start().await;
    let owner = house.owner().await;
    let dave = house.member(&owner, "dave", &["developer"]).await;
    house.policy(|policy| policy.session_lifetime_max = Millis::from_hours(2)).await;
    house.clock.skip(Millis::from_minutes(119));
    let again = refresh(&house, &dave).await.expect(200);
    let dave = Person { token: again.text("access_token"), refresh: again.text("refresh_token"), ..dave };
    house.clock.skip(Millis::from_minutes(2));
    let refused = refresh(&house, &dave).await.expect_problem(401, "session_ended");
    assert_eq!(refused.body["reason"], "too_old");
    let drained = house.denials.drain();
    assert!(drained.iter().flat_map(|(_, attempts)| attempts).any(|attempts| attempts.code == "session_ended"));
    house.login("dave@acme.test", PASSWORD).await.expect(200);
    house.policy(|policy| policy.session_lifetime_max = Millis::from_hours(24)).await;
    refresh(&house, &dave).await.expect(200);
}
