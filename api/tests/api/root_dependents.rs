//! Nobody decides on their own root window by an account of their making: every path on which whoever asked could come to somebody
//! who decides for them, and who decides where everybody else depends on them.

use envforge_commands::{Context, organizations, users};
use envforge_domain::access::{Action, Resource};
use envforge_domain::ids::{OrgId, UserId};
use envforge_domain::organization::OrganizationCommand;
use envforge_domain::secret::Secret;
use envforge_domain::user::{EmailAddress, UserCommand};
use envforge_identity::credentials::Account;
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::house::{Answer, House, PASSWORD, PATIENCE, Person, answer};

const POLICY: &str = "/v1/orgs/acme/policy";
const ASK: &str = "/v1/orgs/acme/workspaces/signed-links/root-windows";
const WINDOWS: &str = "/v1/orgs/acme/root-windows";
const ROLES: &str = "/v1/orgs/acme/roles";
const MEMBERS: &str = "/v1/orgs/acme/members";

fn because() -> Value {
    json!({ "reason": "libpq is missing", "minutes": 20 })
}

/// A house where root may be asked for, its founder, and an admin whom the founder made.
async fn house() -> (House, Person, Person) {
    let house = House::start().await;
    let founder = house.owner().await;
    house.workspace(&founder).await;
    let ann = house.member(&founder, "ann", &["admin"]).await;
    founder.patch(POLICY, json!({ "root": "workspace_elevation" })).await.expect(200);
    (house, founder, ann)
}

async fn asked(who: &Person) -> String {
    who.post(ASK, because()).await.expect(201).text("id")
}

async fn approve(who: &Person, window: &str) -> Answer {
    who.post(&format!("{WINDOWS}/{window}/approve"), json!({})).await
}

/// Asks the admin's request anew, so that each path has one that waits.
async fn decides_for(who: &Person, requester: &Person, allowed: bool) {
    let window = asked(requester).await;
    let answer = approve(who, &window).await;
    if allowed {
        answer.expect(200);
    } else {
        answer.expect_problem(403, "root_decider_depends");
        requester.post(&format!("{WINDOWS}/{window}/withdraw"), json!({})).await.expect(200);
    }
}

async fn give(giver: &Person, whom: &Person, role: &str) {
    giver.post(ROLES, json!({ "user": whom.user, "role": role })).await.expect(201);
}

async fn take(taker: &Person, whom: &Person, role: &str) {
    taker.delete(&format!("{ROLES}?user={}&role={role}", whom.user)).await.expect(200);
}

fn acme(house: &House) -> OrgId {
    house.hot.authorization.organization_by_slug(&"acme".parse().unwrap()).unwrap()
}

/// What `envforge recover-owner` does on the machine: for a new account, or for somebody's who has one.
async fn recovered(house: &House, name: &str, known: Option<&Person>) -> Person {
    let (org, now) = (acme(house), house.now());
    let email = EmailAddress::parse(&format!("{name}@acme.test")).unwrap();
    let password = Secret::new(PASSWORD.to_owned());
    let user: UserId = match known {
        Some(known) => known.user.parse().unwrap(),
        None => UserId::from_uuid(Uuid::now_v7()),
    };
    if known.is_some() {
        house.identity.self_hosted().reset_password(user, password, now).await.unwrap();
    } else {
        let account = Account { user, org, email: email.clone() };
        house.identity.self_hosted().bootstrap(account, Some(password), now).await.unwrap();
        let (issuer, subject) = ("local".to_owned(), user.to_string());
        let create = UserCommand::Create { user, issuer, subject, email: email.clone(), name: name.to_owned() };
        let permit = house.system(Action::UserCreate, Resource::Organization(org));
        users::change(&house.commands, &permit, &Context::new(now), user, &create).await.unwrap();
    }
    let permit = house.system(Action::OwnerRecover, Resource::Organization(org));
    let recover = OrganizationCommand::RecoverOwner { user };
    let done = organizations::change(&house.commands, &permit, &Context::new(now), &recover).await.unwrap();
    house.hot.wait_for(done.position, PATIENCE).await.unwrap();
    house.person(email.as_str()).await
}

#[tokio::test]
async fn an_account_of_the_requesters_making_neither_approves_nor_reviews_on_any_surface_and_it_is_told() {
    let (house, founder, ann) = house().await;
    let second = house.member(&ann, "second", &["admin"]).await;
    let own = asked(&ann).await;
    house.denials.drain();
    let refused = approve(&second, &own).await.expect_problem(403, "root_decider_depends");
    assert_eq!(refused.body["people"], json!([{ "id": founder.user, "name": "Owner of acme" }]));
    let detail = refused.text("detail");
    assert!(detail.contains("your account") && detail.ends_with("Owner of acme can"), "{detail}");
    for surface in ["api", "cli", "console"] {
        let session = house.person_on("second@acme.test", surface).await;
        let path = format!("{WINDOWS}/{own}/approve");
        let request = session.request(Method::POST, &path).header("EnvForge-Surface", surface);
        answer(request.json(&json!({}))).await.expect_problem(403, "root_decider_depends");
    }
    let elsewhere = house.elsewhere(&second).await;
    for _ in 0..2 {
        let again = elsewhere.post_keyed(&format!("{WINDOWS}/{own}/approve"), "again", json!({})).await;
        again.expect_problem(403, "root_decider_depends");
    }
    // It stands in the audit as every attempt does that is denied.
    let drained = house.denials.drain();
    let counted: Vec<_> = drained.iter().flat_map(|(_, attempts)| attempts).collect();
    assert!(counted.iter().all(|attempts| attempts.code == "root_decider_depends"), "{counted:?}");
    assert_eq!(counted.iter().map(|attempts| attempts.count).sum::<u32>(), 6);
    assert!(
        counted.iter().all(|attempts| attempts.action == "root.approve" && attempts.resource.as_ref() == Some(&own))
    );

    // Nor does another role make it somebody else; and nothing of the founder's changes whose account it is.
    give(&founder, &second, "owner").await;
    approve(&second, &own).await.expect_problem(403, "root_decider_depends");
    // Saying no, and ending it, is anybody's who may.
    let other = asked(&ann).await;
    second.post(&format!("{WINDOWS}/{other}/deny"), json!({})).await.expect(200);
    approve(&founder, &own).await.expect(200);
    approve(&second, &own).await.expect_problem(403, "root_decider_depends");

    let broken = ann.post(&format!("{ASK}/break-glass"), because()).await.expect(201).text("id");
    ann.post(&format!("{WINDOWS}/{broken}/withdraw"), json!({})).await.expect(200);
    let review = json!({ "justified": true, "note": "it was right" });
    let path = format!("{WINDOWS}/{broken}/review");
    second.post(&path, review.clone()).await.expect_problem(403, "root_decider_depends");
    second.post(&format!("{ASK}/break-glass"), because()).await.expect_problem(409, "root_review_pending");
    founder.post(&path, review).await.expect(200);
    // Whoever made an account decides on what is asked for by it.
    let of_second = asked(&second).await;
    approve(&ann, &of_second).await.expect(200);
}

#[tokio::test]
async fn whom_the_requester_invited_or_promoted_by_themselves_or_through_others_does_not_decide_for_them() {
    let (house, founder, ann) = house().await;
    let roles = json!([{ "role": "admin" }]);
    let invited = ann.post("/v1/orgs/acme/invitations", json!({ "email": "ivy@acme.test", "roles": roles })).await;
    let acceptance = json!({ "token": invited.expect(201).text("token"), "name": "Ivy", "password": PASSWORD });
    house.anonymous(Method::POST, "/v1/invitations/accept", acceptance).await.expect(201);
    let ivy = house.person("ivy@acme.test").await;
    decides_for(&ivy, &ann, false).await;
    // By the founder's invitation it is another thing.
    let invited = founder.post("/v1/orgs/acme/invitations", json!({ "email": "ida@acme.test", "roles": roles })).await;
    let acceptance = json!({ "token": invited.expect(201).text("token"), "name": "Ida", "password": PASSWORD });
    house.anonymous(Method::POST, "/v1/invitations/accept", acceptance).await.expect(201);
    decides_for(&house.person("ida@acme.test").await, &ann, true).await;

    // Promoted, everywhere and for a project or a workspace alone.
    let cleo = house.member(&founder, "cleo", &["developer"]).await;
    let places = [json!({}), json!({ "project": "orders" }), json!({ "workspace": "signed-links" })];
    for place in &places {
        let mut role = json!({ "user": cleo.user, "role": "admin" });
        role.as_object_mut().unwrap().extend(place.as_object().unwrap().clone());
        ann.post(ROLES, role).await.expect(201);
        decides_for(&cleo, &ann, false).await;
    }
    let dave = house.member(&founder, "dave", &["developer"]).await;
    decides_for(&cleo, &dave, true).await;
    // One of the founder's besides.
    give(&founder, &cleo, "owner").await;
    decides_for(&cleo, &ann, true).await;
    take(&founder, &cleo, "owner").await;
    decides_for(&cleo, &ann, false).await;

    // Through somebody else, and somebody else's somebody else.
    let ben = house.member(&ann, "ben", &["admin"]).await;
    let carl = house.member(&ben, "carl", &["admin"]).await;
    let last = house.member(&carl, "last", &["admin"]).await;
    for (requester, who) in [(&ann, &ben), (&ann, &carl), (&ann, &last), (&ben, &carl), (&ben, &last), (&carl, &last)] {
        decides_for(who, requester, false).await;
        decides_for(requester, who, true).await;
    }
    // What was given stays given when whoever gave it has gone.
    founder.delete(&format!("{MEMBERS}/{}", carl.user)).await.expect(200);
    decides_for(&last, &ann, false).await;
    decides_for(&last, &dave, true).await;
}

#[tokio::test]
async fn neither_a_team_nor_coming_back_makes_anybody_stand_on_what_the_requester_gave() {
    let (house, founder, ann) = house().await;
    let cleo = house.member(&founder, "cleo", &["developer"]).await;
    let team = |slug: &str| json!({ "slug": slug });
    let admins = |slug: &str| json!({ "team": slug, "role": "admin" });
    let join = async |giver: &Person, slug: &str| {
        giver.post(&format!("/v1/orgs/acme/teams/{slug}/members"), json!({ "user": cleo.user })).await.expect(201);
    };
    let leave = async |slug: &str| {
        founder.delete(&format!("/v1/orgs/acme/teams/{slug}/members/{}", cleo.user)).await.expect(200);
    };
    for (slug, maker, giver, joiner, allowed) in [
        ("hers", &ann, &ann, &ann, false),
        ("her-role", &founder, &ann, &founder, false),
        ("her-place", &founder, &founder, &ann, false),
        ("ours", &ann, &founder, &founder, true),
    ] {
        maker.post("/v1/orgs/acme/teams", team(slug)).await.expect(201);
        giver.post(ROLES, admins(slug)).await.expect(201);
        join(joiner, slug).await;
        decides_for(&cleo, &ann, allowed).await;
        leave(slug).await;
    }

    // Taken out and let in again, shut out and let in again: by whom counts.
    give(&founder, &cleo, "admin").await;
    decides_for(&cleo, &ann, true).await;
    for (closer, opener, allowed) in
        [(&ann, &ann, false), (&founder, &founder, true), (&founder, &ann, false), (&ann, &founder, true)]
    {
        closer.post(&format!("{MEMBERS}/{}/deactivate", cleo.user), json!({})).await.expect(200);
        opener.post(&format!("{MEMBERS}/{}/reactivate", cleo.user), json!({})).await.expect(204);
        let back = house.person("cleo@acme.test").await;
        decides_for(&back, &ann, allowed).await;
    }
    for (remover, adder, allowed) in [(&ann, &ann, false), (&founder, &ann, false), (&ann, &founder, true)] {
        remover.delete(&format!("{MEMBERS}/{}", cleo.user)).await.expect(200);
        let again = json!({ "email": "cleo@acme.test", "name": "cleo", "password": PASSWORD });
        adder.post(MEMBERS, again).await.expect(201);
        give(&founder, &cleo, "admin").await;
        let back = house.person("cleo@acme.test").await;
        decides_for(&back, &ann, allowed).await;
    }
}

#[tokio::test]
async fn where_everybody_depends_on_the_founder_the_operator_makes_somebody_who_does_not() {
    let (house, founder, ann) = house().await;
    let own = asked(&founder).await;
    let refused = approve(&ann, &own).await.expect_problem(403, "root_decider_depends");
    assert!(refused.text("detail").contains("envforge recover-owner"), "{refused:?}");
    assert_eq!(refused.body["people"], Value::Null);
    // The founder decides for those whom they made.
    decides_for(&founder, &ann, true).await;

    let olga = recovered(&house, "olga", None).await;
    let refused = approve(&ann, &own).await.expect_problem(403, "root_decider_depends");
    assert_eq!(refused.body["people"], json!([{ "id": olga.user, "name": "olga" }]));
    approve(&olga, &own).await.expect(200);
    decides_for(&founder, &olga, true).await;
    // Whom both have made owes it to neither alone, but for their account.
    give(&olga, &ann, "owner").await;
    decides_for(&ann, &founder, false).await;
    let broken = founder.post(&format!("{ASK}/break-glass"), because()).await.expect(201).text("id");
    founder.post(&format!("{WINDOWS}/{broken}/withdraw"), json!({})).await.expect(200);
    let review = json!({ "justified": true, "note": "it was right" });
    ann.post(&format!("{WINDOWS}/{broken}/review"), review.clone()).await.expect_problem(403, "root_decider_depends");
    olga.post(&format!("{WINDOWS}/{broken}/review"), review).await.expect(200);

    // An account of the founder's making that the operator gave a new password is nobody's but its person's.
    let ann = recovered(&house, "ann", Some(&ann)).await;
    decides_for(&ann, &founder, true).await;
    // Until whoever asks has had it in their hand again.
    founder.post(&format!("{MEMBERS}/{}/deactivate", ann.user), json!({})).await.expect(200);
    founder.post(&format!("{MEMBERS}/{}/reactivate", ann.user), json!({})).await.expect(204);
    decides_for(&house.person("ann@acme.test").await, &founder, false).await;
}

#[tokio::test]
async fn asking_whether_somebody_may_decide_is_answered_as_the_decision_would_be() {
    let (house, founder, ann) = house().await;
    let second = house.member(&ann, "second", &["admin"]).await;
    let own = asked(&ann).await;
    let about = |who: &Person, action: &str, on: &str| json!({ "subject": { "user": who.user }, "action": action, "resource": on });
    let window = format!("root_window/{own}");
    for (who, action, on, allowed, reason) in [
        (&second, "root.approve", &window, false, json!("root_decider_depends")),
        (&second, "root.review", &own, false, json!("root_decider_depends")),
        (&second, "root.deny", &own, true, Value::Null),
        (&ann, "root.approve", &own, false, json!("root_own_request")),
        (&ann, "root.deny", &own, false, json!("root_own_request")),
        (&founder, "root.approve", &own, true, Value::Null),
        (&second, "root.revoke", &own, true, Value::Null),
    ] {
        for path in ["/v1/authz/check", "/v1/authz/explain"] {
            let told = founder.post(path, about(who, action, on)).await.expect(200).body;
            assert_eq!((&told["allowed"], &told["reason"]), (&json!(allowed), &reason), "{action} {path}: {told}");
            assert_eq!(told["condition"], Value::Null);
        }
    }
    // Everybody may ask about themselves.
    let told = second.post("/v1/authz/explain", about(&second, "root.approve", &own)).await.expect(200).body;
    assert_eq!((&told["allowed"], &told["detail"].as_str().is_some()), (&json!(false), &true), "{told}");
    // Of a workspace nobody knows whose window it will be.
    let told = founder.post("/v1/authz/check", about(&second, "root.approve", "workspace/signed-links")).await;
    let told = told.expect(200).body;
    assert_eq!(told["allowed"], true);
    assert!(told["condition"].as_str().unwrap().contains("root_window/ID"), "{told}");
    let told = founder.post("/v1/authz/check", about(&second, "runtime.wake", "workspace/signed-links")).await;
    assert_eq!(told.expect(200).body["condition"], Value::Null);
    founder
        .post("/v1/authz/check", about(&second, "root.approve", "root_window/nothing"))
        .await
        .expect_problem(404, "not_found");
    let checks = json!({ "checks": [about(&second, "root.approve", &own), about(&founder, "root.approve", &own)] });
    let told = founder.post("/v1/authz/check/batch", checks).await.expect(200).body;
    assert_eq!((&told["results"][0]["allowed"], &told["results"][1]["allowed"]), (&json!(false), &json!(true)));
}
