//! The audit's rows and queries.

use envforge_domain::commit::{Actor, StreamId};
use envforge_domain::dev_link::{BlockedAttempts, DevLinkCommand};
use envforge_domain::host::{Capacity, Host, HostCommand};
use envforge_domain::runtime::WakeCause;
use envforge_domain::time::UnixMillis;
use envforge_projections::sql::{AuditCursor, AuditFilter, AuditRow, Direction, Limit, ModelName, Outcome};

use crate::harness::{Harness, Kind};
use crate::history::request_id;
use crate::world::*;

async fn audit_of(kind: Kind, world: &World) -> Harness {
    let harness = Harness::new(kind).await;
    let head = world.log.reveal_all();
    harness.project(&world.shared(), ModelName::Audit, head).await;
    harness
}

async fn rows(harness: &Harness, filter: AuditFilter) -> Vec<AuditRow> {
    let audit = harness.database.audit();
    audit.rows(org_id(1), &filter, Direction::OldestFirst, None, Limit::MAX).await.unwrap().items
}

pub async fn each_visible_event_has_a_row_with_names(kind: Kind) {
    let mut world = World::acme();
    world.pass(1_000);
    let reason = Some("review is done".to_owned());
    let position = world.share(1, 1, Actor::User(user_id(2)), &DevLinkCommand::Revoke { reason }).unwrap().unwrap();
    let harness = audit_of(kind, &world).await;
    let all = rows(&harness, AuditFilter::default()).await;
    let events: usize = world.log.commits().iter().map(|recorded| recorded.commit.events.len()).sum();
    assert_eq!(all.len(), events);

    let recorded = world.log.commits().pop().unwrap();
    let row = all.last().unwrap();
    assert_eq!(row.cursor, AuditCursor { position, ordinal: 0 });
    assert_eq!((row.actor_kind.as_str(), row.actor_id.clone()), ("user", Some(user_id(2).to_string())));
    assert_eq!((row.actor_name.as_str(), row.surface.as_str()), ("Ben", "cli"));
    assert_eq!(row.event_type, "dev_link.revoked.v1");
    assert_eq!(row.subject, Some(link_id(1).to_string()));
    assert_eq!((row.project, row.workspace, row.link), (Some(project_id(1)), Some(workspace_id(1)), Some(link_id(1))));
    assert_eq!((row.command, row.commit), (recorded.commit.command, recorded.commit.id));
    assert_eq!((row.correlation, row.causation), (recorded.commit.correlation, recorded.commit.causation));
    assert_eq!((&row.outcome, row.recorded_at), (&Outcome::Done, UnixMillis::new(EIGHT + 1_000)));
    assert_eq!(row.summary, "Revoked the link “Link 1”: review is done");
    let sentences: Vec<_> = all.iter().map(|row| row.summary.as_str()).collect();
    for sentence in [
        "Created the organization “Organization 1”",
        "Added Ben as a member",
        "Gave Ben the role developer for project “Project 1”",
        "Created the workspace workspace-1 of “Project 1” on branch main",
        "Issued the link “Link 1” to web of workspace-1 for web, api, assets, websockets, marketing",
    ] {
        assert!(sentences.contains(&sentence), "`{sentence}` is missing in {sentences:#?}");
    }
}

pub async fn refused_attempts_are_rows(kind: Kind) {
    let mut world = World::acme();
    world.denials(1, 1, user_id(2)).unwrap();
    let attempts = vec![
        BlockedAttempts { code: "origin_refused".into(), count: 4, requests: vec![] },
        BlockedAttempts { code: "route_closed".into(), count: 1, requests: vec![] },
    ];
    let (since, until) = (world.now, world.now);
    world.share(1, 1, system(), &DevLinkCommand::RecordBlocked { attempts, since, until }).unwrap();
    let harness = audit_of(kind, &world).await;
    let denied = rows(&harness, AuditFilter { denied: Some(true), ..Default::default() }).await;
    let found: Vec<_> =
        denied.iter().map(|row| (row.actor_kind.as_str(), row.event_type.as_str(), row.outcome.clone())).collect();
    let outcome = |code: &str, count| Outcome::Denied { code: code.into(), count, requests: vec![] };
    let named = |code: &str, count| Outcome::Denied { code: code.into(), count, requests: vec![request_id(count)] };
    assert_eq!(
        found,
        [
            ("user", "workspace.archive", named("role_missing", 3)),
            ("anonymous", "workspace.archive", named("not_signed_in", 17)),
            ("system", "dev_link.attempts_blocked.v2", outcome("origin_refused", 4)),
            ("system", "dev_link.attempts_blocked.v2", outcome("route_closed", 1)),
        ]
    );
    assert_eq!(denied[0].actor_name, "Ben");
    assert_eq!(denied[0].surface, "console");
    assert_eq!((denied[0].workspace, denied[0].project), (Some(workspace_id(1)), Some(project_id(1))));
    assert_eq!(denied[0].summary, "Refused 3 times: workspace.archive on “workspace-1” (role_missing)");
    assert_eq!(denied[3].link, Some(link_id(1)));
    assert_eq!((denied[2].cursor.ordinal, denied[3].cursor.ordinal), (0, 1));
    let by_request = AuditFilter { correlation: Some(request_id(17)), ..Default::default() };
    assert_eq!(rows(&harness, by_request).await, denied[1..2]);
}

pub async fn filters_and_cursors_select_rows(kind: Kind) {
    let mut world = World::acme();
    world.pass(HOUR);
    world.workspace(1, 1, 2, 1).unwrap();
    world.link(1, 1, 2, 2, 1).unwrap();
    world.wake(1, 1, 2, WakeCause::Person(user_id(1))).unwrap();
    let harness = audit_of(kind, &world).await;
    let all = rows(&harness, AuditFilter::default()).await;
    let matching = async |filter: AuditFilter, expected: &dyn Fn(&AuditRow) -> bool| {
        let found = rows(&harness, filter.clone()).await;
        let expected: Vec<_> = all.iter().filter(|row| expected(row)).cloned().collect();
        assert!(!expected.is_empty(), "{filter:?} should find something");
        assert_eq!(found, expected, "{filter:?}");
    };
    let ben = user_id(2).to_string();
    let filter = AuditFilter { actor: Some(ben.clone()), ..Default::default() };
    matching(filter, &|row| row.actor_id.as_ref() == Some(&ben)).await;
    let filter = AuditFilter { type_prefix: Some("dev_link.".into()), ..Default::default() };
    matching(filter, &|row| row.event_type.starts_with("dev_link.")).await;
    assert!(rows(&harness, AuditFilter { type_prefix: Some("DEV%".into()), ..Default::default() }).await.is_empty());
    let filter = AuditFilter { workspace: Some(workspace_id(2)), ..Default::default() };
    matching(filter, &|row| row.workspace == Some(workspace_id(2))).await;
    let filter = AuditFilter { link: Some(link_id(2)), ..Default::default() };
    matching(filter, &|row| row.link == Some(link_id(2))).await;
    let filter = AuditFilter { project: Some(project_id(1)), ..Default::default() };
    matching(filter, &|row| row.project == Some(project_id(1))).await;
    let later = UnixMillis::new(EIGHT + HOUR);
    let filter = AuditFilter { from: Some(later), ..Default::default() };
    matching(filter, &|row| row.recorded_at >= later).await;
    let filter = AuditFilter { to: Some(later), denied: Some(false), ..Default::default() };
    matching(filter, &|row| row.recorded_at < later).await;
    let correlation = all[3].correlation;
    let filter = AuditFilter { correlation: Some(correlation), ..Default::default() };
    matching(filter, &|row| row.correlation == correlation).await;

    for direction in [Direction::OldestFirst, Direction::NewestFirst] {
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let (filter, limit) = (AuditFilter::default(), Limit::new(2).unwrap());
            let audit = harness.database.audit();
            let page = audit.rows(org_id(1), &filter, direction, after, limit).await.unwrap();
            assert!(page.items.len() <= 2);
            seen.extend(page.items);
            let Some(next) = page.next else { break };
            assert_eq!(next.to_string().parse(), Ok(next));
            after = Some(next);
        }
        if direction == Direction::NewestFirst {
            seen.reverse();
        }
        assert_eq!(seen, all);
    }
    assert!("1-01".parse::<AuditCursor>().is_err() && "7".parse::<AuditCursor>().is_err());
    let audit = harness.database.audit();
    let other = audit.rows(org_id(2), &AuditFilter::default(), Direction::OldestFirst, None, Limit::MAX).await.unwrap();
    assert!(other.items.is_empty());
}

pub async fn machines_are_not_shown(kind: Kind) {
    let mut world = World::acme();
    let (host, org) = (host_id(1), org_id(1));
    let capacity = Capacity { cpu_millicores: 4_000, memory_mib: 8_192 };
    let register = HostCommand::Register { host, org, provider: "local".into(), machine: "m-1".into(), capacity };
    world.done::<Host>(StreamId::host(org, host), system(), &register);
    world.wake(1, 1, 1, WakeCause::Person(user_id(1))).unwrap();
    world.ready(1, 1, 1).unwrap();
    let harness = audit_of(kind, &world).await;
    let all = rows(&harness, AuditFilter::default()).await;
    assert_eq!(all.last().unwrap().event_type, "runtime.ready.v1");
    assert_eq!(all.last().unwrap().actor_kind, "agent");
    let shown = format!("{all:?}");
    for hidden in ["m-1", "127.0.0.1", ":4000", &host.to_string()] {
        assert!(!shown.contains(hidden), "`{hidden}` is shown");
    }
}
