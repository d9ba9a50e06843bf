//! Root windows over HTTP: who may ask, who may answer, and what ends them. What runs is the host's (`envforge`'s journey).

use envforge_domain::commit::{Position, StreamId};
use envforge_domain::ids::{OrgId, WorkspaceId};
use envforge_domain::time::Millis;
use serde_json::{Value, json};

use crate::house::{Answer, House, PASSWORD, Person};

const POLICY: &str = "/v1/orgs/acme/policy";
const ASK: &str = "/v1/orgs/acme/workspaces/signed-links/root-windows";
const WINDOWS: &str = "/v1/orgs/acme/root-windows";

fn because() -> Value {
    json!({ "reason": "libpq is missing", "minutes": 20 })
}

async fn ask(who: &Person) -> String {
    who.post(ASK, because()).await.expect(201).text("id")
}

async fn tell(who: &Person, window: &str, verb: &str) -> Answer {
    who.post(&format!("{WINDOWS}/{window}/{verb}"), json!({})).await
}

async fn run(who: &Person, window: &str) -> Answer {
    who.post(&format!("{WINDOWS}/{window}/run"), json!({ "command": ["id", "-u"] })).await
}

async fn seen(who: &Person, window: &str) -> Value {
    who.get(&format!("{WINDOWS}/{window}")).await.expect(200).body
}

/// A house where root may be asked for, its owner, an admin and a developer.
async fn open_house() -> (House, Person, Person, Person) {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let admin = house.member(&owner, "ann", &["admin"]).await;
    let dev = house.member(&owner, "dave", &["developer"]).await;
    owner.patch(POLICY, json!({ "root": "workspace_elevation" })).await.expect(200);
    (house, owner, admin, dev)
}

async fn wake(house: &House, owner: &Person) {
    owner.post("/v1/orgs/acme/workspaces/signed-links/wake", json!({})).await.expect(202);
    let shown = owner.get("/v1/orgs/acme/workspaces/signed-links").await.expect(200).text("id");
    let workspace: WorkspaceId = shown.parse().unwrap();
    house.report_ready(acme(house), workspace).await;
}

fn acme(house: &House) -> OrgId {
    house.hot.authorization.organization_by_slug(&"acme".parse().unwrap()).unwrap()
}

#[tokio::test]
async fn root_is_closed_until_an_owner_opens_a_way_to_it() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let admin = house.member(&owner, "ann", &["admin"]).await;
    assert_eq!(owner.get("/v1/orgs/acme").await.expect(200).body["policy"]["root"], "disabled");
    owner.post(ASK, because()).await.expect_problem(403, "root_not_allowed");
    owner.post(&format!("{ASK}/break-glass"), because()).await.expect_problem(403, "root_not_allowed");
    for root in ["break_glass", "workspace_elevation"] {
        admin.patch(POLICY, json!({ "root": root })).await.expect_problem(403, "policy_root_owners_only");
    }
    owner.patch(POLICY, json!({ "root": "always" })).await.expect_problem(422, "value_invalid");
    owner
        .patch(POLICY, json!({ "root_window_max_seconds": 9 * 3_600 }))
        .await
        .expect_problem(422, "policy_out_of_range");
    owner.patch(POLICY, json!({ "root": "break_glass" })).await.expect(200);
    owner.post(ASK, because()).await.expect_problem(403, "root_not_allowed");
    admin.patch(POLICY, json!({ "root": "disabled" })).await.expect(200);
    admin.post(&format!("{ASK}/break-glass"), because()).await.expect_problem(403, "root_not_allowed");
}

#[tokio::test]
async fn nobody_approves_their_own_request_on_any_way() {
    let (house, owner, admin, dev) = open_house().await;
    let window = ask(&dev).await;
    tell(&dev, &window, "approve").await.expect_problem(403, "role_missing");
    // A second role, and one through a team: still the same person.
    owner.post("/v1/orgs/acme/roles", json!({ "user": dev.user, "role": "admin" })).await.expect(201);
    tell(&dev, &window, "approve").await.expect_problem(403, "root_own_request");
    tell(&dev, &window, "deny").await.expect_problem(403, "root_own_request");
    owner.delete(&format!("/v1/orgs/acme/roles?user={}&role=admin", dev.user)).await.expect(200);
    owner.post("/v1/orgs/acme/teams", json!({ "slug": "admins" })).await.expect(201);
    owner.post("/v1/orgs/acme/roles", json!({ "team": "admins", "role": "admin" })).await.expect(201);
    owner.post("/v1/orgs/acme/teams/admins/members", json!({ "user": dev.user })).await.expect(201);
    tell(&dev, &window, "approve").await.expect_problem(403, "root_own_request");
    // Another session, on another surface.
    let elsewhere = house.person_on("dave@acme.test", "console").await;
    let request = elsewhere.request(reqwest::Method::POST, &format!("{WINDOWS}/{window}/approve"));
    let request = request.header("EnvForge-Surface", "console");
    crate::house::answer(request).await.expect_problem(403, "root_own_request");
    // No program is for any of it, and one made by the requester reads nothing of it either.
    for action in ["root.approve", "root.run", "root.request", "root.read", "root.break_glass", "root.review"] {
        let token = json!({ "slug": "ci", "actions": [action] });
        dev.post("/v1/orgs/acme/service-tokens", token).await.expect_problem(422, "service_token_actions_invalid");
    }
    let made = dev.post("/v1/orgs/acme/service-tokens", json!({ "slug": "ci", "actions": ["usage.read"] })).await;
    let program = Person { token: made.expect(201).text("secret"), ..dev.clone() };
    tell(&program, &window, "approve").await.expect_problem(403, "outside_service_token");
    run(&program, &window).await.expect_problem(403, "outside_service_token");
    // Somebody else does, and an owner's own is no different.
    let approved = tell(&admin, &window, "approve").await.expect(200).body;
    assert_eq!((&approved["phase"], &approved["approver"]), (&json!("approved"), &json!(admin.user)));
    let own = ask(&owner).await;
    tell(&owner, &own, "approve").await.expect_problem(403, "root_own_request");
    // Nor is whoever has all they have from them somebody else.
    tell(&dev, &own, "approve").await.expect_problem(403, "root_decider_depends");
}

#[tokio::test]
async fn an_approval_needs_a_fresh_proof_of_identity() {
    let (house, _, admin, dev) = open_house().await;
    let window = ask(&dev).await;
    house.clock.skip(Millis::from_minutes(16));
    for verb in ["approve", "review"] {
        let body = if verb == "review" { json!({ "justified": true, "note": "x" }) } else { json!({}) };
        admin.post(&format!("{WINDOWS}/{window}/{verb}"), body).await.expect_problem(403, "reauthentication_required");
    }
    admin.post(&format!("{ASK}/break-glass"), because()).await.expect_problem(403, "reauthentication_required");
    let proved = admin.post("/v1/auth/reauthenticate", json!({ "password": PASSWORD })).await.expect(200);
    let admin = Person { token: proved.text("access_token"), ..admin };
    tell(&admin, &window, "approve").await.expect(200);
}

#[tokio::test]
async fn a_window_opens_with_its_first_use_for_one_command_of_its_requester() {
    let (house, owner, admin, dev) = open_house().await;
    let window = ask(&dev).await;
    run(&dev, &window).await.expect_problem(409, "root_not_approved");
    tell(&admin, &window, "approve").await.expect(200);
    run(&dev, &window).await.expect_problem(409, "root_runtime_not_ready");
    wake(&house, &owner).await;
    run(&admin, &window).await.expect_problem(403, "root_not_yours");
    house.clock.skip(Millis::from_minutes(5));
    let open = run(&dev, &window).await.expect(202).body;
    assert_eq!((&open["phase"], &open["command"]["words"]), (&json!("open"), &json!(["id", "-u"])));
    let (opened, ends) = (open["opened_at"].as_str().unwrap(), open["ends_at"].as_str().unwrap());
    assert!(opened > open["requested_at"].as_str().unwrap() && ends > opened, "{open}");
    run(&dev, &window).await.expect_problem(410, "root_window_used");
    // Its output is the requester's alone, and no host is in this process.
    let output = dev.get(&format!("{WINDOWS}/{window}/output")).await.expect(200).body;
    assert_eq!(output, json!({ "text": null, "dropped_bytes": 0, "unknown": "host_elsewhere" }));
    admin.get(&format!("{WINDOWS}/{window}/output")).await.expect_problem(403, "root_not_yours");
    let revoked = tell(&admin, &window, "revoke").await.expect(200).body;
    assert_eq!((&revoked["phase"], &revoked["closed_at"].is_string()), (&json!("revoked"), &true));
    // The log tells the whole story, and the audit who.
    let stream = StreamId::root_window(acme(&house), window.parse().unwrap());
    let stored = house.log.read_stream(&stream, Position::START, 50).await.unwrap();
    let events = stored.iter().flat_map(|recorded| &recorded.commit.events);
    let types: Vec<_> = events.map(envforge_eventlog::schema::event_type).collect();
    let told = ["requested.v2", "approved.v1", "opened.v1", "command_asked.v1", "revoked.v1", "closed.v2"];
    assert_eq!(types, told.map(|name| format!("root_window.{name}")));
    let rows = owner.get("/v1/orgs/acme/audit?type=root_window.closed").await.expect(200).body;
    let summary = rows["items"][0]["summary"].as_str().unwrap_or_default().to_owned();
    assert!(summary.contains("dave") && summary.contains("approved by ann") && summary.contains("id -u"), "{rows}");
}

#[tokio::test]
async fn a_change_that_takes_the_right_away_ends_windows_at_once_as_the_dry_run_said() {
    let (house, owner, admin, dev) = open_house().await;
    wake(&house, &owner).await;
    let (waiting, approved, open) = (ask(&dev).await, ask(&dev).await, ask(&dev).await);
    for window in [&approved, &open] {
        tell(&admin, window, "approve").await.expect(200);
    }
    run(&dev, &open).await.expect(202);
    let ends_of = |told: &Value| {
        let windows = told["root_windows"].as_array().unwrap();
        let mut windows: Vec<_> = windows.iter().map(|window| window["id"].as_str().unwrap().to_owned()).collect();
        assert!(told["root_windows"].as_array().unwrap().iter().all(|window| window["ends_now"] == true), "{told}");
        windows.sort();
        windows
    };
    let mut all = vec![waiting.clone(), approved.clone(), open.clone()];
    all.sort();
    let revoke = json!({ "user": dev.user, "role": "developer", "revoke": true });
    let told = owner.post("/v1/orgs/acme/roles/dry-run", revoke).await.expect(200).body;
    assert_eq!((ends_of(&told), &told["root_windows"][0]["reason"]), (all.clone(), &json!("requester_may_not")));
    let closed = json!({ "root": "break_glass" });
    let told = owner.post(&format!("{POLICY}/dry-run"), closed.clone()).await.expect(200).body;
    assert_eq!((ends_of(&told), &told["root_windows"][0]["reason"]), (all, &json!("policy")));
    let shorter = owner.post(&format!("{POLICY}/dry-run"), json!({ "root_window_max_seconds": 60 })).await;
    assert_eq!(shorter.expect(200).body["root_windows"][0]["id"], json!(open), "only what is open for longer");

    for window in [&waiting, &approved, &open] {
        assert_eq!(seen(&dev, window).await["right_lost"], false);
    }
    owner.delete(&format!("/v1/orgs/acme/roles?user={}&role=developer", dev.user)).await.expect(200);
    for window in [&waiting, &approved, &open] {
        assert_eq!(seen(&admin, window).await["right_lost"], true);
    }
    tell(&admin, &waiting, "approve").await.expect_problem(403, "root_right_lost");
    run(&dev, &approved).await.expect_problem(403, "role_missing");
    // The role is back, and with it what nobody ended; then the policy goes.
    owner.post("/v1/orgs/acme/roles", json!({ "user": dev.user, "role": "developer" })).await.expect(201);
    assert_eq!(seen(&dev, &open).await["right_lost"], false);
    admin.patch(POLICY, closed).await.expect(200);
    assert_eq!(seen(&dev, &open).await["right_lost"], true);
    run(&dev, &approved).await.expect_problem(403, "root_right_lost");
    tell(&admin, &waiting, "approve").await.expect_problem(403, "root_right_lost");
}

#[tokio::test]
async fn a_break_glass_opens_at_once_and_the_next_one_waits_for_somebody_elses_review() {
    let (house, owner, admin, dev) = open_house().await;
    dev.post(&format!("{ASK}/break-glass"), because()).await.expect_problem(403, "role_missing");
    let broken = admin.post(&format!("{ASK}/break-glass"), because()).await.expect(201);
    assert_eq!((&broken.body["phase"], &broken.body["approver"]), (&json!("open"), &Value::Null));
    let window = broken.text("id");
    let review = |justified: bool| json!({ "justified": justified, "note": "the disk was full" });
    let next = format!("{WINDOWS}/{window}/review");
    owner.post(&next, review(true)).await.expect_problem(409, "root_window_not_over");
    let refused = owner.post(&format!("{ASK}/break-glass"), because()).await;
    assert!(refused.expect_problem(409, "root_review_pending").text("detail").contains(&window));
    let given_up = tell(&admin, &window, "withdraw").await.expect(200).body;
    assert_eq!(given_up["phase"], "review_pending");
    admin.post(&format!("{ASK}/break-glass"), because()).await.expect_problem(409, "root_review_pending");
    admin.post(&next, review(true)).await.expect_problem(403, "root_own_request");
    let reviewed = owner.post(&next, review(false)).await.expect(200).body;
    assert_eq!((&reviewed["phase"], &reviewed["justified"]), (&json!("reviewed"), &json!(false)));
    owner.post(&format!("{ASK}/break-glass"), because()).await.expect(201);
    // Elevations go on beside it.
    ask(&dev).await;
    let pages = owner.get(&format!("{WINDOWS}?limit=2")).await.expect(200).body;
    assert_eq!(pages["items"].as_array().unwrap().len(), 2);
    let rest = owner.get(&format!("{WINDOWS}?after={}", pages["next"].as_str().unwrap())).await.expect(200).body;
    assert_eq!(rest["items"][0]["id"], json!(window));
    let viewer = house.member(&owner, "vera", &["viewer"]).await;
    viewer.get(WINDOWS).await.expect_problem(403, "role_missing");
}

#[tokio::test]
async fn a_repeated_request_is_one_window() {
    let (_house, owner, admin, dev) = open_house().await;
    let first = dev.post_keyed(ASK, "k1", because()).await.expect(201);
    let again = dev.post_keyed(ASK, "k1", because()).await.expect(201);
    assert_eq!((first.text("id"), first.position()), (again.text("id"), again.position()));
    let glass = format!("{ASK}/break-glass");
    let first = admin.post_keyed(&glass, "k2", because()).await.expect(201);
    let again = admin.post_keyed(&glass, "k2", because()).await.expect(201);
    assert_eq!(first.text("id"), again.text("id"));
    let window = first.text("id");
    tell(&admin, &window, "withdraw").await.expect(200);
    owner.post(&format!("{WINDOWS}/{window}/review"), json!({ "justified": true, "note": "ok" })).await.expect(200);
    let again = admin.post_keyed(&glass, "k2", because()).await.expect(201);
    assert_eq!(again.text("id"), window, "not a second one");
}

#[tokio::test]
async fn whoever_has_five_requests_for_a_workspace_waiting_is_answered_first() {
    let (_house, _owner, admin, dev) = open_house().await;
    let mut windows = Vec::new();
    for _ in 0..4 {
        windows.push(ask(&dev).await);
    }
    let last = dev.post_keyed(ASK, "last", because()).await.expect(201);
    let refused = dev.post(ASK, because()).await.expect_problem(409, "root_requests_too_many");
    assert_eq!(refused.body["max"], 5, "{}", refused.body);
    let again = dev.post_keyed(ASK, "last", because()).await.expect(201);
    assert_eq!(again.text("id"), last.text("id"), "what was asked for is no further request");
    // Somebody else's count for them, and an emergency waits for nobody.
    ask(&admin).await;
    admin.post(&format!("{ASK}/break-glass"), because()).await.expect(201);
    tell(&admin, &windows[0], "deny").await.expect(200);
    windows.push(ask(&dev).await);
    tell(&dev, &windows[1], "withdraw").await.expect(200);
    tell(&admin, &windows[2], "approve").await.expect(200);
    ask(&dev).await;
    ask(&dev).await;
    dev.post(ASK, because()).await.expect_problem(409, "root_requests_too_many");
}
