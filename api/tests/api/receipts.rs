//! What is answered, and written down, when roles, memberships, policies and workspaces are taken away.

use envforge_domain::commit::{Actor, Component, Position, StreamId, StreamKind};
use envforge_domain::event::Event;
use envforge_domain::organization::OrganizationEvent;
use envforge_domain::revocation::Receipt;
use envforge_domain::user::UserEvent;
use envforge_domain::workspace::WorkspaceEvent;
use serde_json::{Value, json};

use crate::house::{House, Person};

const LINKS: &str = "/v1/orgs/acme/workspaces/signed-links/links";
const POLICY: &str = "/v1/orgs/acme/policy";

/// Receipts of a stream of that kind, with who wrote them.
async fn written(house: &House, kind: StreamKind) -> Vec<(Actor, Receipt)> {
    let all = house.log.read(Position::START, 10_000, &envforge_eventlog::Filter::everything()).await.unwrap().commits;
    let of_kind = all.into_iter().filter(|recorded| recorded.commit.stream.kind() == kind);
    let receipt = |event: Event| match event {
        Event::Organization(OrganizationEvent::RevocationRecorded { receipt })
        | Event::Workspace(WorkspaceEvent::RevocationRecorded { receipt })
        | Event::User(UserEvent::RevocationRecorded { receipt, .. }) => Some(receipt),
        _ => None,
    };
    of_kind
        .flat_map(|recorded| {
            let actor = recorded.commit.actor;
            recorded.commit.events.into_iter().filter_map(receipt).map(move |receipt| (actor, receipt))
        })
        .collect()
}

async fn new_link(person: &Person) {
    person.post(LINKS, json!({"service": "web"})).await.expect(201);
}

fn counts(receipt: &Value) -> [u64; 3] {
    ["sessions", "cli_sessions", "links"].map(|field| receipt[field].as_u64().unwrap_or_else(|| panic!("{receipt}")))
}

fn told(receipt: &Value) -> (&Value, &Value) {
    assert!(receipt["took_ms"].is_u64(), "{receipt}");
    assert_eq!((&receipt["shells"], &receipt["shells_unknown"]), (&json!(0), &Value::Null), "{receipt}");
    (&receipt["sockets"], &receipt["gateways_unknown"])
}

#[tokio::test]
async fn a_role_that_is_taken_answers_which_links_ended_with_it() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let dev = house.member(&owner, "dave", &["developer"]).await;
    new_link(&dev).await;
    new_link(&dev).await;
    new_link(&owner).await;
    let path = format!("/v1/orgs/acme/roles?user={}&role=developer", dev.user);
    let taken = owner.delete(&path).await.expect(200);
    assert_eq!(counts(&taken.body), [0, 0, 2], "{}", taken.body);
    assert_eq!(told(&taken.body), (&json!(0), &json!([])));
    let written_down = written(&house, StreamKind::Organization).await;
    let [(actor, receipt)] = &written_down[..] else { panic!("{written_down:?}") };
    assert_eq!((*actor, receipt.links), (Actor::System(Component::Identity), 2));
    dev.get("/v1/me").await.expect(200);
}

#[tokio::test]
async fn a_team_that_is_lost_answers_as_a_role_does_and_a_repetition_says_the_same() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let [dave, dora] = [house.member(&owner, "dave", &[]).await, house.member(&owner, "dora", &[]).await];
    owner.post("/v1/orgs/acme/teams", json!({"slug": "platform"})).await.expect(201);
    for person in [&dave, &dora] {
        owner.post("/v1/orgs/acme/teams/platform/members", json!({"user": person.user})).await.expect(201);
    }
    owner.post("/v1/orgs/acme/roles", json!({"team": "platform", "role": "developer"})).await.expect(201);
    for person in [&dave, &dora] {
        new_link(person).await;
    }
    let out = owner.delete(&format!("/v1/orgs/acme/teams/platform/members/{}", dave.user)).await.expect(200);
    assert_eq!(counts(&out.body), [0, 0, 1], "{}", out.body);
    let request = || {
        let delete = owner.request(reqwest::Method::DELETE, "/v1/orgs/acme/teams/platform");
        crate::house::answer(delete.header("Idempotency-Key", "the-team"))
    };
    let gone = request().await.expect(200);
    assert_eq!(counts(&gone.body), [0, 0, 1], "{}", gone.body);
    assert_eq!(request().await.expect(200).body, gone.body);
    assert_eq!(written(&house, StreamKind::Organization).await.len(), 2);
}

#[tokio::test]
async fn whoever_is_taken_out_or_deactivated_loses_sessions_and_links_and_both_are_counted() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    for (name, remove) in [("dave", true), ("dora", false)] {
        let here = house.member(&owner, name, &["developer"]).await;
        house.person_on(&format!("{name}@acme.test"), "cli").await;
        new_link(&here).await;
        let member = format!("/v1/orgs/acme/members/{}", here.user);
        let gone = match remove {
            true => owner.delete(&member).await,
            false => owner.post(&format!("{member}/deactivate"), json!({})).await,
        };
        let gone = gone.expect(200).body;
        assert_eq!(counts(&gone), [2, 1, 1], "{name}: {gone}");
        assert_eq!(told(&gone), (&json!(0), &json!([])), "{name}");
    }
    let written = written(&house, StreamKind::User).await;
    assert_eq!(written.iter().map(|(_, receipt)| receipt.sessions).collect::<Vec<_>>(), [2, 2], "{written:?}");
}

#[tokio::test]
async fn a_policy_that_is_tightened_answers_what_it_ended_and_one_that_is_loosened_writes_nothing_down() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let dev = house.member(&owner, "dave", &["developer"]).await;
    new_link(&dev).await;
    let issuers = owner.patch(POLICY, json!({"link_issuers": ["owner"]})).await.expect(200);
    assert_eq!(issuers.body["link_issuers"], json!(["owner"]));
    assert_eq!(counts(&issuers.body["receipt"]), [0, 0, 1], "{}", issuers.body);
    let loosened = owner.patch(POLICY, json!({"link_issuers": ["owner", "developer"]})).await.expect(200);
    assert_eq!(counts(&loosened.body["receipt"]), [0, 0, 0], "{}", loosened.body);
    assert_eq!(written(&house, StreamKind::Organization).await.len(), 1);

    house.clock.skip(envforge_domain::time::Millis::from_hours(2));
    let owner = house.owner().await;
    house.person_on("dave@acme.test", "cli").await;
    house.clock.skip(envforge_domain::time::Millis::from_minutes(10));
    let again = house.owner().await;
    let shorter = again.patch(POLICY, json!({"session_lifetime_max_seconds": 3_600})).await.expect(200);
    // The owner's first session and the developer's are older than an hour.
    assert_eq!(counts(&shorter.body["receipt"])[..2], [2, 0], "{}", shorter.body);
    owner.get("/v1/me").await.expect(200);
}

#[tokio::test]
async fn a_workspace_that_is_closed_or_archived_answers_which_links_it_closed() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    new_link(&owner).await;
    let mode = "/v1/orgs/acme/workspaces/signed-links/access-mode";
    let closed = owner.put(mode, json!({"access_mode": "tailscale_only"})).await.expect(200).body;
    assert_eq!(counts(&closed["receipt"]), [0, 0, 1], "{closed}");
    let opened = owner.put(mode, json!({"access_mode": "signed_links"})).await.expect(200).body;
    assert_eq!(counts(&opened["receipt"]), [0, 0, 0], "{opened}");
    let archived = owner.post("/v1/orgs/acme/workspaces/signed-links/archive", json!({})).await.expect(200).body;
    assert_eq!((&archived["archived"], counts(&archived["receipt"])), (&json!(true), [0, 0, 1]), "{archived}");
    let written = written(&house, StreamKind::Workspace).await;
    assert_eq!(written.iter().map(|(_, receipt)| receipt.links).collect::<Vec<_>>(), [1, 1], "{written:?}");
    let org = house.hot.authorization.organization_by_slug(&"acme".parse().unwrap()).unwrap();
    let stream = house.log.last_of_stream(&StreamId::organization(org)).await.unwrap().unwrap();
    assert!(
        stream
            .commit
            .events
            .iter()
            .all(|event| !matches!(event, Event::Organization(OrganizationEvent::RevocationRecorded { .. })))
    );
}
