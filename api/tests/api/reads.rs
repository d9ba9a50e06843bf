//! Reading one's own writes, pages, audit, usage.

use serde_json::json;

use crate::house::{House, MANIFEST, eventually};

#[tokio::test]
async fn a_read_at_a_writes_position_sees_the_write() {
    let house = House::start().await;
    let owner = house.owner().await;
    for index in 0..30 {
        let slug = format!("p{index}");
        let project = json!({"slug": slug, "name": slug, "repository": "https://git.test/p"});
        let position = owner.post("/v1/orgs/acme/projects", project).await.expect(201).position();
        let read = owner.get_at(&format!("/v1/orgs/acme/projects/{slug}"), position).await.expect(200);
        assert_eq!(read.body["slug"], slug);
    }
}

#[tokio::test]
async fn a_read_beyond_the_log_is_told_where_the_log_ends() {
    let house = House::start().await;
    let owner = house.owner().await;
    let unknown = owner.get_at("/v1/orgs/acme/projects", 1_000_000).await.expect_problem(400, "position_unknown");
    let last = unknown.body["position"].as_u64().unwrap();
    owner.get_at("/v1/orgs/acme/projects", last).await.expect(200);
    owner.get_at("/v1/orgs/acme/projects", last + 1).await.expect_problem(400, "position_unknown");
    let request = owner.request(reqwest::Method::GET, "/v1/orgs/acme").header("EnvForge-Min-Position", "soon");
    crate::house::answer(request).await.expect_problem(400, "header_invalid");
}

#[tokio::test]
async fn a_read_that_the_read_models_do_not_reach_in_time_says_so() {
    let wait = std::time::Duration::from_millis(50);
    let mut house = House::start_with(|config| config.freshness_wait = wait).await;
    let owner = house.owner().await;
    house.stop_projecting().await;
    let project = json!({"slug": "p", "name": "P", "repository": "https://git.test/p"});
    let position = owner.post("/v1/orgs/acme/projects", project).await.expect(201).position();
    let stale = owner.get_at("/v1/orgs/acme/projects", position).await.expect_problem(504, "stale_read");
    assert!(stale.body["position"].as_u64().unwrap() < position);
}

#[tokio::test]
async fn pages_follow_each_other_without_gap_or_repetition() {
    let house = House::start().await;
    let owner = house.owner().await;
    let mut position = 0;
    for index in 0..7 {
        let project = json!({"slug": format!("p{index}"), "name": "P", "repository": "https://git.test/p"});
        position = owner.post("/v1/orgs/acme/projects", project).await.expect(201).position();
    }
    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let page = owner.get_at(&format!("/v1/orgs/acme/projects?limit=3{after}"), position).await.expect(200);
        let items = page.body["items"].as_array().unwrap();
        assert!(items.len() <= 3);
        seen.extend(items.iter().map(|item| item["slug"].as_str().unwrap().to_owned()));
        match page.body["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    seen.sort();
    assert_eq!(seen, (0..7).map(|index| format!("p{index}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn unknown_filters_and_made_up_cursors_are_refused() {
    let house = House::start().await;
    let owner = house.owner().await;
    for query in ["limit=0", "limit=201", "limit=x", "color=red", "limit=1&limit=2"] {
        owner.get(&format!("/v1/orgs/acme/projects?{query}")).await.expect_problem(400, "query_invalid");
    }
    owner.get("/v1/orgs/acme/projects?after=cGxlYXNl").await.expect_problem(400, "cursor_invalid");
    owner.get("/v1/orgs/acme/workspaces?phase=dreaming").await.expect_problem(400, "query_invalid");
    owner.get("/v1/orgs/acme/audit?from=yesterday").await.expect_problem(400, "query_invalid");
    owner.get("/v1/orgs/acme/usage?group_by=colour").await.expect_problem(400, "query_invalid");
}

#[tokio::test]
async fn the_audit_says_who_did_what_on_which_surface_and_for_which_request() {
    let house = House::start().await;
    let owner = house.person_on("ada@acme.test", "cli").await;
    house.workspace(&owner).await;
    let wake = owner.request(reqwest::Method::POST, "/v1/orgs/acme/workspaces/signed-links/wake");
    let wake = crate::house::answer(wake).await.expect(202);
    let request = wake.headers["envforge-request"].to_str().unwrap();
    let audit = format!("/v1/orgs/acme/audit?correlation={request}");
    let rows = owner.get_at(&audit, wake.position()).await.expect(200);
    let row = &rows.body["items"][0];
    assert_eq!(row["type"], "runtime.wake_requested.v1", "{rows:#?}");
    assert_eq!((row["surface"].as_str(), row["outcome"].as_str()), (Some("cli"), Some("done")));
    assert_eq!(row["actor"]["id"], owner.user.as_str());
    assert_eq!(row["position"], wake.position());
}

#[tokio::test]
async fn the_audit_pages_in_both_directions() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let ids = async |order: &str| {
        let (mut seen, mut after) = (Vec::new(), String::new());
        loop {
            let page = owner.get(&format!("/v1/orgs/acme/audit?limit=2&order={order}{after}")).await.expect(200);
            seen.extend(page.body["items"].as_array().unwrap().iter().map(|row| row["position"].as_u64().unwrap()));
            match page.body["next"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => return seen,
            }
        }
    };
    let head = house.log.head().await.unwrap().position.get();
    owner.get_at("/v1/orgs/acme/audit", head).await.expect(200);
    let (mut newest, oldest) = (ids("newest").await, ids("oldest").await);
    newest.reverse();
    assert_eq!(newest, oldest);
    assert!(oldest.len() > 4 && oldest.is_sorted());
}

#[tokio::test]
async fn usage_appears_once_a_runtime_was_ready_and_went_to_sleep() {
    let house = House::start().await;
    let owner = house.owner().await;
    let workspace = house.workspace(&owner).await;
    owner.post("/v1/orgs/acme/workspaces/signed-links/wake", json!({})).await.expect(202);
    let org = house.hot.authorization.organization_by_slug(&"acme".parse().unwrap()).unwrap();
    let ready = house.report_ready(org, workspace.parse().unwrap()).await;
    let running = owner.get_at("/v1/orgs/acme/usage/running", ready).await.expect(200);
    assert_eq!(running.body["items"].as_array().unwrap().len(), 2, "{running:#?}");
    // The log has its own clock, which no test moves: some milliseconds have to pass between ready and asleep.
    let ready_since = std::time::Instant::now();
    eventually("a few milliseconds", async || (ready_since.elapsed().as_millis() > 5).then_some(())).await;
    let slept = owner.post("/v1/orgs/acme/workspaces/signed-links/sleep", json!({})).await.expect(202);
    let usage = owner.get_at("/v1/orgs/acme/usage?group_by=cause", slept.position()).await.expect(200);
    assert_eq!(usage.body["items"][0]["key"], "person");
    assert!(usage.body["items"][0]["service_ms"].as_u64().unwrap() > 0);
}

#[tokio::test]
async fn a_new_name_works_at_once_in_the_very_next_request() {
    let house = House::start().await;
    let owner = house.owner().await;
    for index in 0..20 {
        let project = json!({"slug": format!("p{index}"), "name": "P", "repository": "https://git.test/p"});
        owner.post("/v1/orgs/acme/projects", project).await.expect(201);
        let workspace = json!({
            "project": format!("p{index}"), "slug": format!("w{index}"), "branch": "main", "manifest": MANIFEST,
        });
        owner.post("/v1/orgs/acme/workspaces", workspace).await.expect(201);
        let link = format!("/v1/orgs/acme/workspaces/w{index}/links");
        let id = owner.post(&link, json!({"service": "web"})).await.expect(201).text("id");
        owner.post(&format!("/v1/orgs/acme/links/{id}/revoke"), json!({})).await.expect(200);
    }
}

#[tokio::test]
async fn a_workspace_says_where_its_web_services_answer_as_long_as_links_reach_them() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let path = "/v1/orgs/acme/workspaces/signed-links";
    let one = owner.get(path).await.expect(200);
    assert_eq!(one.body["urls"][0]["url"], "http://web--signed-links--acme.dev.localhost:8443/", "{one:#?}");
    assert_eq!(one.body["urls"][0]["service"], "web");
    let list = owner.get("/v1/orgs/acme/workspaces").await.expect(200);
    assert_eq!(list.body["items"][0].get("urls"), None);
    let closed = owner.put(&format!("{path}/access-mode"), json!({"access_mode": "tailscale_only"})).await.expect(200);
    assert_eq!(owner.get_at(path, closed.position()).await.expect(200).body["urls"], json!([]));
}
