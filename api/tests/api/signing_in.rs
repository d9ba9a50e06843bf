//! Signing in, staying signed in, signing out.

use envforge_commands::{Context, organizations};
use envforge_domain::access::{Action, Resource};
use envforge_domain::commit::{Actor, Component, StreamId};
use envforge_domain::ids::OrgId;
use envforge_domain::organization::OrganizationCommand;
use envforge_domain::time::Millis;
use envforge_domain::user::{SESSIONS_MAX, User};
use reqwest::Method;
use serde_json::json;

use crate::house::{House, PASSWORD, Person, answer};

#[tokio::test]
async fn the_owner_signs_in_and_sees_who_they_are() {
    let house = House::start().await;
    let login = house.login("Ada@ACME.test", PASSWORD).await.expect(200);
    assert_eq!(login.body["org"]["slug"], "acme");
    assert_eq!(login.body["user"]["email"], "ada@acme.test");
    assert_eq!(login.body["expires_in"], 3600);
    let me = house.owner().await.get("/v1/me").await.expect(200);
    assert_eq!(
        me.body["roles"],
        json!([{"role": "owner", "project": null, "workspace": null, "team": null, "expires_at": null}])
    );
    assert_eq!(me.body["org"]["slug"], "acme");
}

#[tokio::test]
async fn a_wrong_password_and_an_unknown_address_get_the_same_problem() {
    let house = House::start().await;
    let wrong = house.login("ada@acme.test", "plum kite engine 8").await.expect_problem(401, "wrong_credentials");
    let unknown = house.login("eve@acme.test", PASSWORD).await.expect_problem(401, "wrong_credentials");
    let without_instance = |mut body: serde_json::Value| body.as_object_mut().unwrap().remove("instance").map(|_| body);
    assert_eq!(without_instance(wrong.body), without_instance(unknown.body));
}

#[tokio::test]
async fn a_failed_login_is_counted_for_the_audit_and_holds_no_password() {
    let house = House::start().await;
    house.login("ada@acme.test", "plum kite engine 8").await.expect(401);
    let drained = house.denials.drain();
    let attempts: Vec<_> = drained.iter().flat_map(|(_, attempts)| attempts).collect();
    assert_eq!(attempts.len(), 1);
    assert_eq!((attempts[0].action.as_str(), attempts[0].code.as_str()), ("authenticate", "wrong_credentials"));
    assert_eq!(attempts[0].address, Some(std::net::Ipv4Addr::LOCALHOST.into()));
    assert!(!format!("{drained:?}").contains("engine 8"));
    house.login("nobody@acme.test", "plum kite engine 8").await.expect(401);
    let drained = house.denials.drain();
    assert_eq!((drained[0].0, drained[0].1[0].code.as_str()), (OrgId::SYSTEM, "unknown_account"));
    assert!(!format!("{drained:?}").contains("nobody"), "what was typed may be a password");
}

#[tokio::test]
async fn guessing_is_slowed_down_and_says_for_how_long() {
    let house = House::start().await;
    for _ in 0..6 {
        house.login("ada@acme.test", "not it").await.expect_problem(401, "wrong_credentials");
    }
    let locked = house.login("ada@acme.test", PASSWORD).await.expect_problem(429, "too_many_attempts");
    let seconds: u64 = locked.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!(seconds >= 1);
    house.clock.skip(Millis::from_secs(seconds));
    house.login("ada@acme.test", PASSWORD).await.expect(200);
}

#[tokio::test]
async fn a_password_of_the_wrong_type_is_not_repeated_in_the_problem() {
    let house = House::start().await;
    let body = json!({"email": "ada@acme.test", "password": 31_415_926_535_u64});
    let problem = house.anonymous(Method::POST, "/v1/auth/login", body).await.expect_problem(400, "body_invalid");
    assert!(!problem.body.to_string().contains("31415926535"));
}

#[tokio::test]
async fn without_a_token_with_a_forged_one_or_with_two_nothing_is_answered() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.anonymous(Method::GET, "/v1/me", json!(null)).await.expect_problem(401, "unauthenticated");
    let url = format!("{}/v1/me", house.base);
    let forged = format!("{}x", owner.token);
    let refused = answer(house.client.get(&url).bearer_auth(&forged)).await.expect_problem(401, "unauthenticated");
    assert!(refused.headers.contains_key("www-authenticate"));
    answer(house.client.get(&url).bearer_auth(&owner.token).bearer_auth(&forged)).await.expect(401);
    answer(house.client.get(&url).basic_auth("ada@acme.test", Some(PASSWORD))).await.expect(401);
    answer(house.client.get(&url).bearer_auth(&owner.refresh)).await.expect(401);
}

#[tokio::test]
async fn an_access_token_ends_after_an_hour_and_the_refresh_token_gives_another() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.clock.skip(Millis::from_secs(3_610));
    owner.get("/v1/me").await.expect_problem(401, "unauthenticated");
    let body = json!({"refresh_token": owner.refresh});
    let refreshed = house.anonymous(Method::POST, "/v1/auth/refresh", body).await.expect(200);
    let token = refreshed.text("access_token");
    answer(house.client.get(format!("{}/v1/me", house.base)).bearer_auth(token)).await.expect(200);
}

#[tokio::test]
async fn a_refresh_token_that_is_used_twice_ends_the_session_at_once() {
    let house = House::start().await;
    let owner = house.owner().await;
    let refresh = |token: &str| json!({"refresh_token": token});
    let first = house.anonymous(Method::POST, "/v1/auth/refresh", refresh(&owner.refresh)).await.expect(200);
    let again = house.anonymous(Method::POST, "/v1/auth/refresh", refresh(&owner.refresh)).await;
    again.expect_problem(401, "refresh_token_reused");
    let next = first.text("refresh_token");
    house
        .anonymous(Method::POST, "/v1/auth/refresh", refresh(&next))
        .await
        .expect_problem(401, "refresh_token_invalid");
    owner.get("/v1/me").await.expect_problem(401, "session_ended");
    house.owner().await.get("/v1/me").await.expect(200);
}

#[tokio::test]
async fn signing_in_often_ends_the_oldest_session_and_never_locks_anybody_out() {
    let house = House::start().await;
    let first = house.owner().await;
    let second = house.owner().await;
    for _ in 2..=SESSIONS_MAX {
        house.owner().await;
    }
    first.get("/v1/me").await.expect_problem(401, "session_ended");
    let body = json!({"refresh_token": first.refresh});
    house.anonymous(Method::POST, "/v1/auth/refresh", body).await.expect_problem(401, "refresh_token_invalid");
    second.get("/v1/me").await.expect(200);
    let body = json!({"refresh_token": second.refresh});
    house.anonymous(Method::POST, "/v1/auth/refresh", body).await.expect(200);
}

#[tokio::test]
async fn somebody_who_was_taken_out_gets_no_tokens_until_they_are_added_again() {
    let house = House::start().await;
    let owner = house.owner().await;
    let dev = house.member(&owner, "dave", &["developer"]).await;
    let refresh = async |person: &Person| {
        house.anonymous(Method::POST, "/v1/auth/refresh", json!({"refresh_token": person.refresh})).await
    };
    owner.delete(&format!("/v1/orgs/acme/members/{}", dev.user)).await.expect(200);
    house.login("dave@acme.test", PASSWORD).await.expect_problem(403, "membership_ended");
    refresh(&dev).await.expect_problem(401, "refresh_token_invalid");

    let again = json!({"email": "dave@acme.test", "name": "Somebody else", "password": "quite another one 3"});
    let added = owner.post_keyed("/v1/orgs/acme/members", "again", again.clone()).await.expect(201);
    assert_eq!((added.text("user"), added.text("name")), (dev.user.clone(), "dave".to_owned()));
    let repeated = owner.post_keyed("/v1/orgs/acme/members", "again", again.clone()).await.expect(201);
    assert_eq!(repeated.body, added.body);
    owner.post("/v1/orgs/acme/members", again).await.expect_problem(409, "account_exists");
    dev.get("/v1/me").await.expect_problem(401, "session_ended");
    refresh(&dev).await.expect_problem(401, "refresh_token_invalid");
    house.login("dave@acme.test", "quite another one 3").await.expect_problem(401, "wrong_credentials");
    let back = house.person("dave@acme.test").await;
    back.get("/v1/me").await.expect(200);
    back.get("/v1/orgs/acme/projects").await.expect_problem(403, "role_missing");
    refresh(&back).await.expect(200);
}

#[tokio::test]
async fn taking_somebody_out_elsewhere_ends_nothing_here() {
    let house = House::start().await;
    house.organization("globex", "gus@globex.test").await;
    let (ada, gus) = (house.owner().await, house.person("gus@globex.test").await);
    gus.delete(&format!("/v1/orgs/globex/members/{}", ada.user)).await.expect(200);
    ada.get("/v1/me").await.expect(200);
    let body = json!({"refresh_token": ada.refresh});
    house.anonymous(Method::POST, "/v1/auth/refresh", body).await.expect(200);
}

#[tokio::test]
async fn a_membership_that_ended_is_noticed_however_far_its_removal_got() {
    let house = House::start().await;
    let owner = house.owner().await;
    let dev = house.member(&owner, "dave", &["developer"]).await;
    // The removal alone, as if the process had died before it ended the sessions.
    let org = house.hot.authorization.organization_by_slug(&"acme".parse().unwrap()).unwrap();
    let command = OrganizationCommand::RemoveMember {
        by: Actor::System(Component::Setup),
        user: dev.user.parse().unwrap(),
        now: house.now(),
    };
    let permit = house.system(Action::MemberRemove, Resource::Organization(org));
    organizations::change(&house.commands, &permit, &Context::new(house.now()), &command).await.unwrap();
    let refresh =
        async || house.anonymous(Method::POST, "/v1/auth/refresh", json!({"refresh_token": dev.refresh})).await;
    refresh().await.expect_problem(401, "session_ended");
    refresh().await.expect_problem(401, "refresh_token_invalid");
    house.login("dave@acme.test", PASSWORD).await.expect_problem(403, "membership_ended");
    let user = house.commands.load::<User>(&StreamId::user(org, dev.user.parse().unwrap())).await.unwrap().state;
    assert!(matches!(user, User::Active { sessions, .. } if sessions.is_empty()));
}

#[tokio::test]
async fn a_refresh_token_is_not_spent_while_nobody_can_tell_whether_its_session_stands() {
    let house = House::start().await;
    let owner = house.owner().await;
    let refresh =
        async || house.anonymous(Method::POST, "/v1/auth/refresh", json!({"refresh_token": owner.refresh})).await;
    house.faults.users_unreadable(true);
    refresh().await.expect_problem(503, "log_unavailable");
    refresh().await.expect_problem(503, "log_unavailable");
    house.faults.users_unreadable(false);
    refresh().await.expect(200);
}

#[tokio::test]
async fn a_revoked_refresh_token_ends_its_session_where_it_still_stands() {
    let house = House::start().await;
    let owner = house.owner().await;
    let session = owner.get("/v1/me").await.expect(200).text("session");
    house.identity.sessions().revoke_session(session.parse().unwrap(), house.now()).await.unwrap();
    owner.get("/v1/me").await.expect(200);
    let body = json!({"refresh_token": owner.refresh});
    house.anonymous(Method::POST, "/v1/auth/refresh", body).await.expect_problem(401, "refresh_token_invalid");
    owner.get("/v1/me").await.expect_problem(401, "session_ended");
}

#[tokio::test]
async fn logging_out_ends_this_session_and_no_other() {
    let house = House::start().await;
    let (here, there) = (house.owner().await, house.owner().await);
    here.post("/v1/auth/logout", json!({})).await.expect(204);
    here.get("/v1/me").await.expect_problem(401, "session_ended");
    let body = json!({"refresh_token": here.refresh});
    house.anonymous(Method::POST, "/v1/auth/refresh", body).await.expect_problem(401, "refresh_token_invalid");
    there.get("/v1/me").await.expect(200);
}
