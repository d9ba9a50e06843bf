//! Inviting, joining, and leaving for a while.

use envforge_commands::{Context, organizations};
use envforge_domain::access::{Action, Resource};
use envforge_domain::commit::{Actor, Component, StreamKind};
use envforge_domain::organization::OrganizationCommand;
use envforge_domain::time::Millis;
use reqwest::Method;
use serde_json::{Value, json};

use crate::house::{Answer, House, PASSWORD, Person};

const INVITATIONS: &str = "/v1/orgs/acme/invitations";

async fn invite(by: &Person, email: &str, roles: Value) -> Answer {
    by.post(INVITATIONS, json!({"email": email, "roles": roles})).await
}

async fn accept(house: &House, token: &str, password: &str) -> Answer {
    let body = json!({"token": token, "name": "Grace", "password": password});
    house.anonymous(Method::POST, "/v1/invitations/accept", body).await
}

#[tokio::test]
async fn whoever_is_invited_chooses_a_password_and_joins_with_the_roles() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let roles = json!([{"role": "viewer"}, {"role": "developer", "project": "orders"}]);
    let invited = invite(&owner, "Grace@Acme.test", roles).await.expect(201);
    assert!(invited.text("token").starts_with("efi_"));
    assert_eq!(invited.text("email"), "grace@acme.test");
    let listed = owner.get(INVITATIONS).await.expect(200);
    assert_eq!(listed.body["items"].as_array().unwrap().len(), 1);
    assert_eq!(listed.body["items"][0]["id"], invited.body["id"]);
    assert!(!listed.body.to_string().contains("efi_"), "the token is told once");
    house.login("grace@acme.test", PASSWORD).await.expect_problem(401, "wrong_credentials");

    let accepted = accept(&house, &invited.text("token"), PASSWORD).await.expect(201);
    assert_eq!((accepted.text("user"), accepted.text("org_slug")), (invited.text("id"), "acme".to_owned()));
    let grace = house.person("grace@acme.test").await;
    let me = grace.get_at("/v1/me", accepted.position()).await.expect(200);
    assert_eq!(me.text("name"), "Grace");
    let roles: Vec<_> = me.body["roles"].as_array().unwrap().iter().map(|role| role["role"].clone()).collect();
    assert!(roles.contains(&json!("viewer")) && roles.contains(&json!("developer")) && roles.len() == 2, "{me:#?}");
    accept(&house, &invited.text("token"), PASSWORD).await.expect_problem(404, "invitation_unknown");
    let listed = owner.get_at(INVITATIONS, accepted.position()).await.expect(200);
    assert!(listed.body["items"].as_array().unwrap().is_empty());
    invite(&owner, "grace@acme.test", json!([])).await.expect_problem(409, "account_exists");
    let everything = house.everything().await;
    for secret in ["efi_", PASSWORD, "$2b$"] {
        assert!(!everything.contains(secret), "{secret}");
    }
}

#[tokio::test]
async fn an_invitation_that_was_revoked_is_over_or_has_no_ground_any_more_opens_nothing() {
    let house = House::start().await;
    let owner = house.owner().await;
    let admin = house.member(&owner, "alex", &["admin"]).await;
    let revoked = invite(&owner, "one@acme.test", json!([])).await.expect(201);
    owner.delete(&format!("{INVITATIONS}/{}", revoked.text("id"))).await.expect(204);
    accept(&house, &revoked.text("token"), PASSWORD).await.expect_problem(404, "invitation_unknown");
    let lapsed = invite(&admin, "two@acme.test", json!([{"role": "developer"}])).await.expect(201);
    owner.delete(&format!("/v1/orgs/acme/roles?user={}&role=admin", admin.user)).await.expect(200);
    accept(&house, &lapsed.text("token"), PASSWORD).await.expect_problem(410, "invitation_lapsed");
    let short =
        owner.post(INVITATIONS, json!({"email": "three@acme.test", "expires_in_seconds": 60})).await.expect(201);
    house.clock.skip(Millis::from_secs(61));
    accept(&house, &short.text("token"), PASSWORD).await.expect_problem(404, "invitation_unknown");
    accept(&house, "efi_made_up", PASSWORD).await.expect_problem(404, "invitation_unknown");
    for email in ["one@acme.test", "two@acme.test", "three@acme.test"] {
        house.login(email, PASSWORD).await.expect_problem(401, "wrong_credentials");
    }
}

#[tokio::test]
async fn nobody_invites_above_themselves_or_without_a_role_that_may() {
    let house = House::start().await;
    let owner = house.owner().await;
    let admin = house.member(&owner, "alex", &["admin"]).await;
    let moderator = house.member(&owner, "mo", &["mod"]).await;
    let dev = house.member(&owner, "dave", &["developer"]).await;
    let role = |role: &str| json!([{"role": role}]);
    invite(&dev, "x@acme.test", json!([])).await.expect_problem(403, "role_missing");
    invite(&admin, "x@acme.test", role("owner")).await.expect_problem(403, "grant_above_yourself");
    invite(&admin, "x@acme.test", role("billing")).await.expect_problem(403, "grant_above_yourself");
    invite(&moderator, "x@acme.test", role("developer")).await.expect_problem(403, "grant_above_yourself");
    invite(&owner, "x@acme.test", role("emperor")).await.expect_problem(422, "value_invalid");
    let late = json!({"email": "x@acme.test", "expires_in_seconds": 2_592_001});
    owner.post(INVITATIONS, late).await.expect_problem(422, "invitation_lifetime_out_of_range");
    invite(&owner, "x@acme.test", json!([{"role": "owner", "project": "nowhere"}]))
        .await
        .expect_problem(404, "not_found");
    house.clock.skip(Millis::from_minutes(16));
    invite(&owner, "x@acme.test", role("owner")).await.expect_problem(403, "reauthentication_required");
    invite(&owner, "x@acme.test", role("admin")).await.expect(201);
}

#[tokio::test]
async fn a_weak_password_spends_nothing() {
    let house = House::start().await;
    let owner = house.owner().await;
    let invited = invite(&owner, "grace@acme.test", json!([])).await.expect(201);
    accept(&house, &invited.text("token"), "password1234").await.expect_problem(422, "password_common");
    let nameless = json!({"token": invited.text("token"), "name": " ", "password": PASSWORD});
    house.anonymous(Method::POST, "/v1/invitations/accept", nameless).await.expect_problem(422, "name_invalid");
    accept(&house, &invited.text("token"), PASSWORD).await.expect(201);
}

/// Whatever was stored before the process died, the same request finishes it, once.
#[tokio::test]
async fn an_acceptance_that_broke_off_anywhere_is_finished_by_the_same_request() {
    for (kind, email) in [(StreamKind::User, "one@acme.test"), (StreamKind::Organization, "two@acme.test")] {
        let house = House::start().await;
        let owner = house.owner().await;
        let invited = invite(&owner, email, json!([{"role": "developer"}])).await.expect(201);
        house.faults.unappendable(Some(kind));
        accept(&house, &invited.text("token"), PASSWORD).await.expect_problem(503, "log_unavailable");
        house.faults.unappendable(None);
        if kind == StreamKind::Organization {
            // They exist and do not belong anywhere yet; nobody else's password takes their place.
            house.login(email, PASSWORD).await.expect_problem(403, "membership_ended");
            accept(&house, &invited.text("token"), "quite another one 3").await.expect_problem(409, "account_exists");
        }
        let accepted = accept(&house, &invited.text("token"), PASSWORD).await.expect(201);
        let member = house.person(email).await;
        let me = member.get_at("/v1/me", accepted.position()).await.expect(200);
        assert_eq!(me.body["roles"][0]["role"], "developer");
        let created = house.everything().await.matches("user.invitation_accepted.v1").count();
        assert_eq!(created, 1);
    }
}

#[tokio::test]
async fn whoever_was_taken_out_is_not_let_in_again_by_an_acceptance_that_never_heard_its_answer() {
    let house = House::start().await;
    let owner = house.owner().await;
    let invited = invite(&owner, "grace@acme.test", json!([{"role": "developer"}])).await.expect(201);
    // All but the last step, which forgets the token: as if the process had died right before it.
    accept(&house, &invited.text("token"), PASSWORD).await.expect(201);
    let org = house.hot.authorization.organization_by_slug(&"acme".parse().unwrap()).unwrap();
    let user = invited.text("id").parse().unwrap();
    let key = envforge_identity::credentials::InvitationKey { user, org };
    let end = house.now().plus(Millis::from_hours(1));
    let again = house.identity.self_hosted().invite(key, end).await.unwrap();
    let command = OrganizationCommand::RemoveMember { by: Actor::System(Component::Setup), user, now: house.now() };
    let permit = house.system(Action::MemberRemove, Resource::Organization(org));
    organizations::change(&house.commands, &permit, &Context::new(house.now()), &command).await.unwrap();
    accept(&house, again.expose(), PASSWORD).await.expect(201);
    house.login("grace@acme.test", PASSWORD).await.expect_problem(403, "membership_ended");
}

#[tokio::test]
async fn a_deactivated_account_loses_its_sessions_and_links_at_once_and_a_reactivated_one_signs_in_anew() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let dev = house.member(&owner, "dave", &["developer"]).await;
    let links = "/v1/orgs/acme/workspaces/signed-links/links";
    for _ in 0..2 {
        dev.post(links, json!({"service": "web"})).await.expect(201);
    }
    let account = format!("/v1/orgs/acme/members/{}", dev.user);
    let gone = owner.post(&format!("{account}/deactivate"), json!({})).await.expect(200);
    assert_eq!((&gone.body["sessions"], &gone.body["links"]), (&json!(1), &json!(2)));
    dev.get("/v1/me").await.expect_problem(403, "account_deactivated");
    house.login("dave@acme.test", PASSWORD).await.expect_problem(403, "account_deactivated");
    let body = json!({"refresh_token": dev.refresh});
    house.anonymous(Method::POST, "/v1/auth/refresh", body).await.expect_problem(401, "refresh_token_invalid");
    owner.post(&format!("{account}/reactivate"), json!({})).await.expect(204);
    dev.get("/v1/me").await.expect_problem(401, "session_ended");
    house.person("dave@acme.test").await.get("/v1/orgs/acme/projects").await.expect(200);
    let of_owner = format!("/v1/orgs/acme/members/{}/deactivate", owner.user);
    owner.post(&of_owner, json!({})).await.expect_problem(409, "last_owner");
    let admin = house.member(&owner, "alex", &["admin"]).await;
    admin.post(&of_owner, json!({})).await.expect_problem(403, "grant_above_yourself");
}

#[tokio::test]
async fn a_person_changes_how_they_are_called() {
    let house = House::start().await;
    let owner = house.owner().await;
    let changed = owner.patch("/v1/me", json!({"name": "Ada Lovelace"})).await.expect(204);
    assert_eq!(owner.get_at("/v1/me", changed.position()).await.expect(200).text("name"), "Ada Lovelace");
    owner.patch("/v1/me", json!({"name": ""})).await.expect_problem(422, "name_invalid");
}
