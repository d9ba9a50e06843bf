//! Event replay and follow.

use std::time::Duration;

use envforge_commands::{Context, organizations};
use envforge_domain::access::{Action, Resource};
use envforge_domain::ids::UserId;
use envforge_domain::organization::OrganizationCommand;
use envforge_domain::time::Millis;
use envforge_eventlog::{Checkpoint, Filter, Follow};
use futures_util::StreamExt;
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::house::{House, PATIENCE, Person};

fn lines(text: &str) -> Vec<Value> {
    text.lines().filter(|line| !line.is_empty()).map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn replay(person: &Person, query: &str) -> Vec<Value> {
    let request = person.request(Method::GET, &format!("/v1/orgs/acme/events{query}"));
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "application/jsonl");
    lines(&response.text().await.unwrap())
}

/// An open stream, read line by line.
struct Following {
    body: std::pin::Pin<Box<dyn futures_util::Stream<Item = reqwest::Result<bytes::Bytes>> + Send>>,
    buffer: Vec<u8>,
}

impl Following {
    async fn open(person: &Person, query: &str) -> Self {
        let request = person.request(Method::GET, &format!("/v1/orgs/acme/events?follow=true{query}"));
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        Self { body: Box::pin(response.bytes_stream()), buffer: Vec::new() }
    }

    /// The next line, empty ones included; `None` at the end of the stream.
    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(String::from_utf8(line).unwrap().trim_end().to_owned());
            }
            let chunk = tokio::time::timeout(PATIENCE, self.body.next()).await.expect("a line in time")?;
            self.buffer.extend_from_slice(&chunk.expect("the stream does not break off"));
        }
    }

    async fn event(&mut self, event_type: &str) -> Value {
        loop {
            let line = self.line().await.unwrap_or_else(|| panic!("the stream ended before {event_type}"));
            if let Ok(event) = serde_json::from_str::<Value>(&line)
                && event["type"] == event_type
            {
                return event;
            }
        }
    }

    async fn end(&mut self) {
        while self.line().await.is_some() {}
    }
}

#[tokio::test]
async fn the_replay_is_the_log_in_order_as_cloud_events() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let events = replay(&owner, "").await;
    let types: Vec<_> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    let known = [
        "user.created.v1",
        "organization.created.v1",
        "user.session_opened.v2",
        "project.created.v1",
        "workspace.created.v2",
    ];
    let places: Vec<_> = known.map(|known| types.iter().position(|found| *found == known)).into();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{types:?}");
    let positions: Vec<u64> =
        events.iter().map(|event| event["envforgeposition"].as_str().unwrap().parse().unwrap()).collect();
    assert!(positions.is_sorted());
    for event in &events {
        assert_eq!(event["specversion"], "1.0");
        assert!(event["id"].as_str().unwrap().starts_with("com_"));
        assert!(event["source"].as_str().unwrap().starts_with("/orgs/org_"));
        assert!(event["data"].is_object() && event["time"].is_string());
    }
    let mut ids: Vec<_> = events.iter().map(|event| event["id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), events.len(), "ids are unique");
}

#[tokio::test]
async fn filters_and_positions_cut_the_same_events_out() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let all = replay(&owner, "").await;
    let of = |kind: &str| {
        all.iter().filter(|event| event["type"].as_str().unwrap().starts_with(kind)).cloned().collect::<Vec<_>>()
    };
    assert_eq!(replay(&owner, "?kind=workspace").await, of("workspace."));
    assert_eq!(replay(&owner, "?kind=workspace,project").await.len(), of("workspace.").len() + of("project.").len());
    assert_eq!(replay(&owner, "?type=user.session_opened").await, of("user.session_opened"));
    // Why each of them was allowed stands in the log too.
    let why = replay(&owner, "?kind=decision&type=decision.recorded").await;
    let actions: Vec<_> = why.iter().map(|event| event["data"]["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["project.create", "workspace.create"]);
    let position = |event: &Value| event["envforgeposition"].as_str().unwrap().parse::<u64>().unwrap();
    let (from, to) = (position(&all[2]), position(&all[all.len() - 2]));
    let cut: Vec<_> = all.iter().filter(|event| (from..=to).contains(&position(event))).cloned().collect();
    assert_eq!(replay(&owner, &format!("?from={from}&to={to}")).await, cut);
    for query in ["?kind=things", "?type=user.", "?from=x", "?from=0", "?type=nothing.happened"] {
        let answer = owner.get(&format!("/v1/orgs/acme/events{query}")).await;
        if query == "?type=user." {
            answer.expect(200);
        } else {
            answer.expect_problem(400, "query_invalid");
        }
    }
}

#[tokio::test]
async fn hosts_ports_and_other_organizations_never_appear() {
    let house = House::start().await;
    house.organization("globex", "gus@globex.test").await;
    let owner = house.owner().await;
    let workspace = house.workspace(&owner).await;
    owner.post("/v1/orgs/acme/workspaces/signed-links/wake", json!({})).await.expect(202);
    let org = house.hot.authorization.organization_by_slug(&"acme".parse().unwrap()).unwrap();
    house.report_ready(org, workspace.parse().unwrap()).await;
    let events = replay(&owner, "").await;
    let text = serde_json::to_string(&events).unwrap();
    assert!(text.contains("runtime.ready.v1"));
    for hidden in ["endpoints_bound", "49999", "127.0.0.1", "hst_", "globex"] {
        assert!(!text.contains(hidden), "{hidden}");
    }
}

#[tokio::test]
async fn following_sends_what_was_and_then_what_comes() {
    let house = House::start().await;
    let owner = house.owner().await;
    let mut following = Following::open(&owner, "&kind=project,workspace").await;
    house.workspace(&owner).await;
    following.event("project.created.v1").await;
    let created = following.event("workspace.created.v2").await;
    let again = replay(&owner, "?type=workspace.created").await;
    assert_eq!(again, [created]);
}

#[tokio::test]
async fn a_quiet_stream_gives_signs_of_life() {
    let house = House::start_with(|config| config.heartbeat = Duration::from_millis(100)).await;
    let owner = house.owner().await;
    let mut following = Following::open(&owner, "&kind=host").await;
    assert_eq!(following.line().await.as_deref(), Some(""));
    assert_eq!(following.line().await.as_deref(), Some(""));
}

#[tokio::test]
async fn a_stream_ends_when_the_role_the_session_or_the_token_ends() {
    let house = House::start().await;
    let owner = house.owner().await;
    let auditor = house.member(&owner, "aude", &["explore"]).await;
    let mut of_role = Following::open(&auditor, "").await;
    owner.delete(&format!("/v1/orgs/acme/roles?user={}&role=explore", auditor.user)).await.expect(200);
    of_role.end().await;

    let visitor = house.owner().await;
    let mut of_session = Following::open(&visitor, "").await;
    visitor.post("/v1/auth/logout", json!({})).await.expect(204);
    of_session.end().await;

    let mut of_token = Following::open(&owner, "").await;
    house.clock.skip(Millis::from_secs(3_601));
    of_token.end().await;
}

#[tokio::test]
async fn nothing_is_delivered_after_a_revocation_that_was_acknowledged() {
    let house = House::start().await;
    let owner = house.owner().await;
    let auditor = house.member(&owner, "aude", &["explore"]).await;
    let mut following = Following::open(&auditor, "&kind=organization").await;
    following.event("organization.role_assigned.v1").await;
    following.event("organization.role_assigned.v1").await;
    // What decides rights learns nothing for a while, as on a busy machine; what is delivered comes straight from the log.
    house.faults.hold_views(true);
    owner.delete(&format!("/v1/orgs/acme/roles?user={}&role=explore", auditor.user)).await.expect(200);
    let org = house.hot.authorization.organization_by_slug(&"acme".parse().unwrap()).unwrap();
    let permit = house.system(Action::MemberAdd, Resource::Organization(org));
    let add = OrganizationCommand::AddMember { user: UserId::from_uuid(Uuid::now_v7()) };
    organizations::change(&house.commands, &permit, &Context::new(house.now()), &add).await.unwrap();
    // Everybody who follows has had it by the time that another follower has.
    let filter = Filter { org: Some(org), kinds: vec![] };
    let mut log = house.log.follow(Checkpoint::START, filter).await.unwrap();
    loop {
        let next = tokio::time::timeout(PATIENCE, log.next()).await.unwrap().unwrap().unwrap();
        if matches!(next, Follow::Caught { .. }) {
            break;
        }
    }
    house.faults.hold_views(false);
    while let Some(line) = following.line().await {
        assert_eq!(line, "", "delivered after the revocation");
    }
}

#[tokio::test]
async fn streams_end_when_the_process_stops() {
    let house = House::start().await;
    let owner = house.owner().await;
    let mut following = Following::open(&owner, "").await;
    house.stop();
    following.end().await;
}

#[tokio::test]
async fn only_so_many_streams_may_be_open() {
    let house = House::start_with(|config| config.streams_per_user_max = 2).await;
    let owner = house.owner().await;
    let first = Following::open(&owner, "").await;
    let _second = Following::open(&owner, "").await;
    let third = owner.get("/v1/orgs/acme/events?follow=true").await;
    third.expect_problem(429, "too_many_streams");
    drop(first);
    crate::house::eventually("room for another stream", async || {
        let request = owner.request(Method::GET, "/v1/orgs/acme/events?follow=true");
        (request.send().await.unwrap().status() == 200).then_some(())
    })
    .await;
}
