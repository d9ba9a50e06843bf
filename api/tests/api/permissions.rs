//! What somebody may not do, and what they may not even know.

use envforge_domain::access::{Action, Principal, TABLE};
use envforge_domain::commit::Surface;
use reqwest::Method;
use serde_json::{Value, json};

use crate::house::{House, answer};

#[tokio::test]
async fn a_viewer_may_look_and_not_touch_and_learns_which_roles_may() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let viewer = house.member(&owner, "vera", &["viewer"]).await;
    viewer.get("/v1/orgs/acme/workspaces/signed-links").await.expect(200);
    let wake = viewer.post("/v1/orgs/acme/workspaces/signed-links/wake", json!({})).await;
    let problem = wake.expect_problem(403, "role_missing");
    assert_eq!(problem.body["action"], "runtime.wake");
    assert!(problem.text("detail").contains("developer"));
    let recorded = house.denials.drain();
    assert!(recorded.iter().flat_map(|(_, attempts)| attempts).any(|attempt| attempt.action == "runtime.wake"));
}

#[tokio::test]
async fn another_organization_and_one_that_nobody_has_look_the_same() {
    let house = House::start().await;
    let globex = house.organization("globex", "gus@globex.test").await;
    let owner = house.owner().await;
    let mut seen = Vec::new();
    for org in ["globex", &globex.to_string(), "initech", "org_00000000000000000000000000000007", "Not A Slug"] {
        for path in ["", "/projects", "/workspaces", "/members", "/events", "/audit", "/usage", "/projects/orders"] {
            let mut hidden = owner.get(&format!("/v1/orgs/{org}{path}")).await.expect_problem(404, "not_found");
            hidden.body.as_object_mut().unwrap().remove("instance");
            seen.push(hidden.body);
        }
    }
    assert!(seen.iter().all(|body| *body == seen[0]), "{seen:#?}");
}

#[tokio::test]
async fn a_thing_of_another_organization_is_unknown_here() {
    let house = House::start().await;
    house.organization("globex", "gus@globex.test").await;
    let (ada, gus) = (house.owner().await, house.person("gus@globex.test").await);
    let workspace = house.workspace(&ada).await;
    let issued = ada.post("/v1/orgs/acme/workspaces/signed-links/links", json!({"service": "web"})).await.expect(201);
    let (link, position) = (issued.text("id"), issued.position());
    for path in [format!("workspaces/{workspace}"), format!("links/{link}"), format!("links/{link}/handoff")] {
        gus.get(&format!("/v1/orgs/globex/{path}")).await.expect_problem(404, "not_found");
    }
    gus.post(&format!("/v1/orgs/globex/links/{link}/revoke"), json!({})).await.expect_problem(404, "not_found");
    let read = ada.get_at(&format!("/v1/orgs/acme/links/{link}"), position).await.expect(200);
    assert_eq!(read.body["phase"], "active");
}

#[tokio::test]
async fn a_role_that_was_taken_is_gone_with_the_answer() {
    let house = House::start().await;
    let owner = house.owner().await;
    let dev = house.member(&owner, "dave", &["developer"]).await;
    dev.get("/v1/orgs/acme/projects").await.expect(200);
    for round in 0..20 {
        owner.delete(&format!("/v1/orgs/acme/roles?user={}&role=developer", dev.user)).await.expect(200);
        dev.get("/v1/orgs/acme/projects").await.expect_problem(403, "role_missing");
        let role = json!({"user": dev.user, "role": "developer"});
        owner.post("/v1/orgs/acme/roles", role).await.expect(201);
        assert_eq!(dev.get("/v1/orgs/acme/projects").await.status, 200, "round {round}");
    }
}

#[tokio::test]
async fn somebody_who_was_taken_out_knows_the_organization_no_more() {
    let house = House::start().await;
    let owner = house.owner().await;
    let dev = house.member(&owner, "dave", &["developer"]).await;
    owner.delete(&format!("/v1/orgs/acme/members/{}", dev.user)).await.expect(200);
    dev.get("/v1/orgs/acme").await.expect_problem(404, "not_found");
    dev.get("/v1/me").await.expect_problem(404, "not_found");
}

#[tokio::test]
async fn nobody_takes_out_whoever_stands_above_them() {
    let house = House::start().await;
    let owner = house.owner().await;
    let second = house.member(&owner, "olga", &["owner"]).await;
    let admin = house.member(&owner, "abe", &["admin"]).await;
    let cashier = house.member(&owner, "bill", &["billing"]).await;
    let moderator = house.member(&owner, "mia", &["mod"]).await;
    for (who, whom) in
        [(&moderator, &admin), (&moderator, &second), (&moderator, &cashier), (&admin, &cashier), (&admin, &owner)]
    {
        let refused = who.delete(&format!("/v1/orgs/acme/members/{}", whom.user)).await;
        refused.expect_problem(403, "grant_above_yourself");
        whom.get("/v1/me").await.expect(200);
    }
    admin.delete(&format!("/v1/orgs/acme/members/{}", moderator.user)).await.expect(200);
    owner.delete(&format!("/v1/orgs/acme/members/{}", second.user)).await.expect(200);
}

#[tokio::test]
async fn a_role_for_one_project_shows_that_project_and_no_other() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let other = json!({"slug": "secret", "name": "Secret", "repository": "https://git.test/acme/secret"});
    let position = owner.post("/v1/orgs/acme/projects", other).await.expect(201).position();
    let guest = house.member(&owner, "gina", &[]).await;
    guest.get("/v1/orgs/acme/projects").await.expect_problem(403, "role_missing");
    let role = json!({"user": guest.user, "role": "developer", "project": "orders"});
    let position = owner.post("/v1/orgs/acme/roles", role).await.expect(201).position().max(position);
    let slugs = |answer: &Value| -> Vec<String> {
        answer["items"].as_array().unwrap().iter().map(|item| item["slug"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(slugs(&guest.get_at("/v1/orgs/acme/projects", position).await.expect(200).body), ["orders"]);
    assert_eq!(slugs(&guest.get_at("/v1/orgs/acme/workspaces", position).await.expect(200).body), ["signed-links"]);
    guest.get("/v1/orgs/acme/projects/secret").await.expect_problem(403, "role_missing");
    let new = json!({"slug": "x", "name": "X", "repository": "https://git.test/x"});
    guest.post("/v1/orgs/acme/projects", new).await.expect_problem(403, "role_missing");
}

#[tokio::test]
async fn nobody_grants_above_themselves_and_the_last_owner_stays() {
    let house = House::start().await;
    let owner = house.owner().await;
    let admin = house.member(&owner, "abe", &["admin"]).await;
    let role = json!({"user": admin.user, "role": "owner"});
    admin.post("/v1/orgs/acme/roles", role).await.expect_problem(403, "grant_above_yourself");
    let last = owner.delete(&format!("/v1/orgs/acme/roles?user={}&role=owner", owner.user)).await;
    last.expect_problem(409, "last_owner");
    owner.delete(&format!("/v1/orgs/acme/members/{}", owner.user)).await.expect_problem(409, "last_owner");
    let project_owner = json!({"user": admin.user, "role": "owner", "project": "nowhere"});
    owner.post("/v1/orgs/acme/roles", project_owner).await.expect_problem(404, "not_found");
}

#[tokio::test]
async fn a_role_for_nobody_or_nowhere_is_refused() {
    let house = House::start().await;
    let owner = house.owner().await;
    let team = json!({"team": "tea_00000000000000000000000000000007", "role": "viewer"});
    owner.post("/v1/orgs/acme/roles", team).await.expect_problem(404, "team_unknown");
    let guest = house.member(&owner, "gina", &[]).await;
    let nowhere = json!({"user": guest.user, "role": "viewer", "project": "prj_00000000000000000000000000000007"});
    owner.post("/v1/orgs/acme/roles", nowhere).await.expect_problem(404, "not_found");
}

#[tokio::test]
async fn a_surface_must_be_one_that_people_have() {
    let house = House::start().await;
    let owner = house.owner().await;
    let on = |surface: &str| owner.request(Method::GET, "/v1/orgs/acme").header("EnvForge-Surface", surface);
    // The first read right after the first start: its answer is as fresh as it asks for.
    let head = house.log.head().await.unwrap().position.to_string();
    answer(on("api").header("EnvForge-Min-Position", head)).await.expect(200);
    for surface in ["gateway", "agent", "", "CLI"] {
        answer(on(surface)).await.expect_problem(400, "header_invalid");
    }
}

#[tokio::test]
async fn a_session_of_one_surface_is_refused_on_the_others() {
    let house = House::start().await;
    let surfaces = ["api", "cli", "console"];
    for opened_on in surfaces {
        let person = house.person_on("ada@acme.test", opened_on).await;
        person.get("/v1/me").await.expect(200);
        for named in surfaces {
            let read = person.request(Method::GET, "/v1/me").header("EnvForge-Surface", named);
            let refresh = house.client.post(format!("{}/v1/auth/refresh", house.base));
            let refresh = refresh.header("EnvForge-Surface", named).json(&json!({"refresh_token": person.refresh}));
            if named == opened_on {
                answer(read).await.expect(200);
                continue;
            }
            let refused = answer(read).await.expect_problem(403, "session_of_another_surface");
            assert_eq!(refused.text("surface"), opened_on);
            // The token is not spent by the attempt.
            answer(refresh).await.expect_problem(403, "session_of_another_surface");
        }
        let body = json!({"refresh_token": person.refresh});
        house.anonymous(Method::POST, "/v1/auth/refresh", body).await.expect(200);
    }
}

/// Walks every operation of the document as a member without any role: each one must be refused for the very action
/// that it names. Nothing that the document promises can be reached without asking the policy.
#[tokio::test]
async fn every_operation_asks_for_the_action_that_it_names() {
    let house = House::start().await;
    let owner = house.owner().await;
    let workspace = house.workspace(&owner).await;
    let links = "/v1/orgs/acme/workspaces/signed-links/links";
    let link = owner.post(links, json!({"service": "web"})).await.expect(201).text("id");
    owner.patch("/v1/orgs/acme/policy", json!({"root": "workspace_elevation"})).await.expect(200);
    let windows = "/v1/orgs/acme/workspaces/signed-links/root-windows";
    let window = owner.post(windows, json!({"reason": "a look"})).await.expect(201).text("id");
    let nobody = house.member(&owner, "noel", &[]).await;
    let document = envforge_api::document();
    let mut refused = std::collections::BTreeSet::new();
    for (template, item) in &document.paths.paths {
        let operations = [
            (Method::GET, &item.get),
            (Method::POST, &item.post),
            (Method::PUT, &item.put),
            (Method::PATCH, &item.patch),
            (Method::DELETE, &item.delete),
        ];
        for (method, operation) in operations {
            let Some(operation) = operation else { continue };
            let action = envforge_api::action_of(operation).unwrap_or_else(|| panic!("{method} {template} names none"));
            // What anybody may do, and what is everybody's own.
            if Action::from_token(action).is_none_or(|action| !action.row().surfaces_of(Principal::Member).is_empty()) {
                assert!(action == "public" || Action::from_token(action).is_some(), "{method} {template}: {action}");
                continue;
            }
            let mut path = template.clone();
            for (name, value) in [
                ("org", "acme"),
                ("project", "orders"),
                ("workspace", workspace.as_str()),
                ("link", link.as_str()),
                ("window", window.as_str()),
                ("user", nobody.user.as_str()),
                ("session", "ses_00000000000000000000000000000007"),
                ("invitation", "usr_00000000000000000000000000000007"),
                ("team", "nobodys-team"),
                ("token", "svt_00000000000000000000000000000007"),
                ("request", "cor_00000000000000000000000000000007"),
            ] {
                path = path.replace(&format!("{{{name}}}"), value);
            }
            if template.ends_with("/roles") && method == Method::DELETE {
                path.push_str(&format!("?user={}&role=viewer", nobody.user));
            }
            let request = nobody.request(method.clone(), &path);
            let bodiless = matches!(method, Method::GET | Method::DELETE);
            let request = if bodiless { request } else { request.json(&body_for(template)) };
            let problem = answer(request).await;
            assert_eq!((problem.status, problem.code()), (403, "role_missing"), "{method} {template}: {problem:#?}");
            assert_eq!(problem.body["action"], action, "{method} {template}");
            refused.insert(action.to_owned());
        }
    }
    let people = |row: &&envforge_domain::access::Row| {
        row.surfaces.contains(&Surface::Api) && !row.roles.is_empty() && row.surfaces_of(Principal::Agent).is_empty()
    };
    // Actions that have a role but no operation of their own yet.
    let without = ["user.create"];
    let expected: std::collections::BTreeSet<_> = TABLE
        .iter()
        .filter(people)
        .map(|row| row.token.to_owned())
        .filter(|token| !without.contains(&token.as_str()))
        .collect();
    assert_eq!(refused, expected);
}

/// A body of the right shape, so that what is refused is refused for the missing role.
fn body_for(template: &str) -> Value {
    let other = json!({"user": "usr_00000000000000000000000000000007"});
    let question = json!({"subject": other, "action": "usage.read", "resource": "organization"});
    let body = [
        ("/authz/check", question.clone()),
        ("/authz/explain", question.clone()),
        ("/authz/check/batch", json!({ "checks": [question] })),
        ("/hosts", json!({"name": "new"})),
        ("/service-tokens", json!({"slug": "new", "actions": ["usage.read"]})),
        ("/policy/dry-run", json!({"keep_awake_max_seconds": 60})),
        ("/roles/dry-run", json!({"user": "usr_00000000000000000000000000000007", "role": "viewer"})),
        ("/teams/{team}/members", json!({"user": "usr_00000000000000000000000000000007"})),
        ("/teams", json!({"slug": "new"})),
        ("/teams/{team}", json!({"slug": "new"})),
        ("/policy", json!({"keep_awake_max_seconds": 60})),
        ("/members", json!({"email": "new@acme.test", "name": "New", "password": "plum kite engine 9"})),
        ("/invitations", json!({"email": "new@acme.test"})),
        ("/roles", json!({"user": "usr_00000000000000000000000000000007", "role": "viewer"})),
        ("/projects", json!({"slug": "new", "name": "New", "repository": "https://git.test/new"})),
        ("/projects/{project}", json!({"name": "New"})),
        ("/workspaces", json!({"project": "orders", "slug": "new", "branch": "main", "manifest": "version: 1"})),
        ("/manifest", json!({"manifest": "version: 1"})),
        ("/access-mode", json!({"access_mode": "signed_links"})),
        ("/keep-awake", json!({"for_seconds": 60, "reason": "test"})),
        ("/links", json!({"service": "web"})),
        ("/families", json!({"families": ["web"]})),
        ("/root-windows", json!({"reason": "a look"})),
        ("/break-glass", json!({"reason": "a look"})),
        ("/run", json!({"command": ["id"]})),
        ("/review", json!({"justified": true, "note": "seen"})),
    ];
    body.into_iter().find(|(end, _)| template.ends_with(end)).map_or(json!({}), |(_, body)| body)
}
