//! Teams over HTTP: what somebody holds through one, and how that ends.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use envforge_projections::gateway_view::LinkPhase;
use reqwest::Method;
use serde_json::{Value, json};

use crate::house::{Answer, House, PASSWORD, Person, answer};

const TEAMS: &str = "/v1/orgs/acme/teams";

async fn team(owner: &Person, slug: &str, members: &[&Person], roles: &[&str]) -> String {
    let team = owner.post(TEAMS, json!({"slug": slug})).await.expect(201).text("id");
    for member in members {
        owner.post(&format!("{TEAMS}/{slug}/members"), json!({"user": member.user})).await.expect(201);
    }
    for role in roles {
        owner.post("/v1/orgs/acme/roles", json!({"team": slug, "role": role})).await.expect(201);
    }
    team
}

fn claims(access_token: &str) -> Value {
    let payload = access_token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap()
}

fn items(answer: &Answer) -> &Vec<Value> {
    answer.body["items"].as_array().unwrap()
}

#[tokio::test]
async fn a_teams_roles_are_its_members_roles_from_one_answer_to_the_other() {
    let house = House::start().await;
    let owner = house.owner().await;
    let dave = house.member(&owner, "dave", &[]).await;
    dave.get("/v1/orgs/acme/projects").await.expect_problem(403, "role_missing");
    let id = team(&owner, "platform", &[&dave], &["developer"]).await;
    let member = format!("{TEAMS}/platform/members/{}", dave.user);
    for round in 0..10 {
        assert_eq!(dave.get("/v1/orgs/acme/projects").await.status, 200, "round {round}");
        owner.delete(&member).await.expect(200);
        dave.get("/v1/orgs/acme/projects").await.expect_problem(403, "role_missing");
        owner.post(&format!("{TEAMS}/{id}/members"), json!({"user": dave.user})).await.expect(201);
    }
    owner.delete("/v1/orgs/acme/roles?team=platform&role=developer").await.expect(200);
    dave.get("/v1/orgs/acme/projects").await.expect_problem(403, "role_missing");
    owner.post("/v1/orgs/acme/roles", json!({"team": id, "role": "viewer"})).await.expect(201);
    dave.get("/v1/orgs/acme/projects").await.expect(200);
    owner.delete(&format!("{TEAMS}/platform")).await.expect(200);
    dave.get("/v1/orgs/acme/projects").await.expect_problem(403, "role_missing");
}

#[tokio::test]
async fn lists_profile_and_access_token_tell_teams_and_what_is_held_through_them() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let dave = house.member(&owner, "dave", &["billing"]).await;
    let id = team(&owner, "platform", &[&dave], &["developer"]).await;
    owner
        .post("/v1/orgs/acme/roles", json!({"team": "platform", "role": "admin", "project": "orders"}))
        .await
        .expect(201);
    let other = team(&owner, "alone", &[], &[]).await;

    let teams = owner.get(TEAMS).await.expect(200);
    assert_eq!(items(&teams).iter().map(|team| team["id"].clone()).collect::<Vec<_>>(), [json!(id), json!(other)]);
    assert_eq!((&items(&teams)[0]["slug"], &items(&teams)[0]["members"]), (&json!("platform"), &json!(1)));
    let shown = owner.get(&format!("{TEAMS}/platform")).await.expect(200);
    assert_eq!(shown.body["members"], json!([{"user": dave.user, "name": "dave", "email": "dave@acme.test"}]));
    let first = owner.get(&format!("{TEAMS}?limit=1")).await.expect(200);
    let second = owner.get(&format!("{TEAMS}?limit=1&after={}", first.text("next"))).await.expect(200);
    assert_eq!((&items(&second)[0]["id"], &second.body["next"]), (&json!(other), &Value::Null));

    let me = dave.get("/v1/me").await.expect(200);
    assert_eq!(me.body["teams"], json!([{"id": id, "slug": "platform"}]));
    let held: Vec<_> = me.body["roles"].as_array().unwrap().iter().map(|held| (&held["role"], &held["team"])).collect();
    assert!(held.contains(&(&json!("billing"), &Value::Null)), "{held:?}");
    assert!(held.contains(&(&json!("developer"), &json!(id))) && held.contains(&(&json!("admin"), &json!(id))));
    // Organization-wide roles, however they are held, and teams: what other services are told.
    let login = house.login("dave@acme.test", PASSWORD).await.expect(200);
    let claims = claims(&login.text("access_token"));
    assert_eq!((&claims["roles"], &claims["teams"]), (&json!(["developer", "billing"]), &json!([id])));
    let members = owner.get("/v1/orgs/acme/members").await.expect(200);
    let of_dave = items(&members).iter().find(|member| member["email"] == "dave@acme.test").unwrap();
    assert_eq!(of_dave["teams"], json!(["platform"]));
}

#[tokio::test]
async fn nobody_gets_above_themselves_by_way_of_a_team() {
    let house = House::start().await;
    let owner = house.owner().await;
    let mia = house.member(&owner, "mia", &["mod"]).await;
    let abe = house.member(&owner, "abe", &["admin"]).await;
    team(&owner, "owners", &[], &["owner"]).await;
    team(&owner, "admins", &[], &["admin"]).await;
    let join = |team: &str| format!("{TEAMS}/{team}/members");
    for (who, path) in [(&mia, join("admins")), (&mia, join("owners")), (&abe, join("owners"))] {
        let refused = who.post(&path, json!({"user": who.user})).await;
        refused.expect_problem(403, "grant_above_yourself");
    }
    abe.delete(&format!("{TEAMS}/owners")).await.expect_problem(403, "grant_above_yourself");
    let rename = abe.patch(&format!("{TEAMS}/owners"), json!({"slug": "interns"})).await;
    rename.expect_problem(403, "grant_above_yourself");
    // A team of one's own, and then more for it than one has.
    team(&mia, "mods", &[&mia], &["mod"]).await;
    let role = json!({"team": "mods", "role": "admin"});
    mia.post("/v1/orgs/acme/roles", role).await.expect_problem(403, "grant_above_yourself");
    abe.post(&join("admins"), json!({"user": abe.user})).await.expect(201);
    // Who owns through a team does not make up for the last owner.
    owner.post(&join("owners"), json!({"user": abe.user})).await.expect(201);
    let last = abe.delete(&format!("/v1/orgs/acme/roles?user={}&role=owner", owner.user)).await;
    last.expect_problem(409, "last_owner");
}

#[tokio::test]
async fn a_teams_slug_must_be_free_and_a_team_must_be_there() {
    let house = House::start().await;
    let owner = house.owner().await;
    team(&owner, "platform", &[], &[]).await;
    owner.post(TEAMS, json!({"slug": "platform"})).await.expect_problem(409, "team_name_taken");
    let wrong = owner.post(TEAMS, json!({"slug": "Plat Form"})).await.expect_problem(422, "value_invalid");
    assert_eq!(wrong.body["field"], "slug");
    let stranger = json!({"user": "usr_00000000000000000000000000000007"});
    owner.post(&format!("{TEAMS}/platform/members"), stranger).await.expect_problem(422, "member_unknown");
    owner.get(&format!("{TEAMS}/nobody")).await.expect_problem(404, "not_found");
    owner.delete(&format!("{TEAMS}/nobody")).await.expect_problem(404, "team_unknown");
    let renamed = owner.patch(&format!("{TEAMS}/platform"), json!({"slug": "infra"})).await.expect(200);
    assert_eq!(owner.get(&format!("{TEAMS}/infra")).await.expect(200).body["id"], renamed.body["id"]);
    owner.get(&format!("{TEAMS}/platform")).await.expect_problem(404, "not_found");
}

#[tokio::test]
async fn a_repeated_deletion_gets_its_first_answer_though_the_slug_is_gone() {
    let house = House::start().await;
    let owner = house.owner().await;
    team(&owner, "platform", &[], &[]).await;
    let delete = || {
        let request = owner.request(Method::DELETE, &format!("{TEAMS}/platform"));
        answer(request.header("Idempotency-Key", "away-with-it"))
    };
    let first = delete().await.expect(200);
    let again = delete().await.expect(200);
    assert_eq!(again.position(), first.position());
}

#[tokio::test]
async fn a_link_stands_on_a_right_through_a_team_and_falls_with_it() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let dave = house.member(&owner, "dave", &[]).await;
    team(&owner, "platform", &[&dave], &["developer"]).await;
    let link = dave.post("/v1/orgs/acme/workspaces/signed-links/links", json!({"service": "web"})).await.expect(201);
    let link = link.text("id").parse().unwrap();
    let phase = || house.hot.gateway.link(link).unwrap().phase;
    let settled = async |answer: Answer| {
        let position = envforge_domain::commit::Position::new(answer.position());
        house.hot.wait_for(position, crate::house::PATIENCE).await.unwrap();
    };
    let member = format!("{TEAMS}/platform/members");
    dave.get("/v1/me").await.expect(200);
    assert_eq!(phase(), LinkPhase::Active);
    settled(owner.delete(&format!("{member}/{}", dave.user)).await.expect(200)).await;
    assert_eq!(phase(), LinkPhase::Revoked);
    settled(owner.post(&member, json!({"user": dave.user})).await.expect(201)).await;
    assert_eq!(phase(), LinkPhase::Active, "the right is back, and nobody had ended the link");
    settled(owner.delete(&format!("{TEAMS}/platform")).await.expect(200)).await;
    assert_eq!(phase(), LinkPhase::Revoked);
}
