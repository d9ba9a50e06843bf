//! The audit of a log of several parts: what is found in it, by every filter, and that it does not depend on batches.

use std::sync::Arc;

use envforge_domain::commit::{Actor, Commit, Position, Recorded, StreamId};
use envforge_domain::denial::DenialEvent;
use envforge_domain::dev_link::DevLinkEvent;
use envforge_domain::event::{Event, Visibility};
use envforge_domain::ids::{CommitId, CorrelationId, OrgId};
use envforge_domain::time::UnixMillis;
use envforge_domain::user::UserEvent;
use envforge_eventlog::SharedLog;
use envforge_projections::sql::rebuild::rebuild;
use envforge_projections::sql::{
    AuditCursor, AuditFilter, AuditRow, Direction, Limit, ModelName, Outcome, TableDigest,
};
use uuid::Uuid;

use crate::harness::{Harness, Kind};
use crate::history::random_story;
use crate::log::{MemoryLog, SharedMemoryLog};
use crate::world::*;

/// Positions of one part, as the migration's comment has it.
const PART: u64 = 4_096;
/// Three parts that are complete, and some rows of a fourth.
const COMMITS: u64 = 3 * PART + 300;
/// Where something happens that happens nowhere else: at the borders of parts.
const RARE: [u64; 8] = [2, PART - 1, PART, PART + 1, 2 * PART, 2 * PART + 7, 3 * PART - 1, 3 * PART + 250];

/// The story's commits over and over in no order: the audit folds what it is told, and decides nothing.
fn long_log() -> Vec<Recorded> {
    let mut world = random_story(1_000, 42);
    world.denials(1, 1, user_id(1)).unwrap();
    world.link(1, 1, 1, 50, 2).unwrap();
    world.session(1, 50, 500, 1).unwrap();
    let rare = user_id(99);
    let stream = StreamId::workspace(org_id(1), workspace_id(9));
    world.workspace(1, 1, 9, 1).unwrap();
    let mut templates: Vec<Commit> = world.log.commits().into_iter().map(|recorded| recorded.commit).collect();
    let of_rare = templates.pop().unwrap();
    assert_eq!(of_rare.stream, stream);
    let (mut dice, mut recorded_at) = (7_u64, EIGHT);
    let commits = (1..=COMMITS).map(|position| {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // The log's clock may also go back.
        recorded_at = if dice >> 40 & 63 == 0 { recorded_at - 20 } else { recorded_at + (dice >> 50 & 31) };
        let is_rare = RARE.contains(&position);
        let template = if is_rare { &of_rare } else { &templates[(dice >> 33) as usize % templates.len()] };
        let commit = Commit {
            id: CommitId::from_uuid(Uuid::from_u128(u128::from(position))),
            correlation: CorrelationId::from_uuid(Uuid::from_u128(u128::from(position % 2_000))),
            actor: if is_rare { Actor::User(rare) } else { template.actor },
            ..template.clone()
        };
        Recorded { position: Position::new(position), recorded_at: UnixMillis::new(recorded_at), commit }
    });
    commits.collect()
}

/// How many rows the audit has of a commit.
fn rows_of(commit: &Commit) -> usize {
    let rows = commit.events.iter().map(|event| match event {
        Event::Decision(_) => 0,
        event if event.visibility() == Visibility::Operator => 0,
        Event::Denial(DenialEvent::Recorded { attempts }) => attempts.len(),
        Event::DevLink(DevLinkEvent::AttemptsBlocked { attempts, .. }) => attempts.len(),
        _ => 1,
    });
    rows.sum()
}

fn log_of(commits: &[Recorded]) -> (Arc<MemoryLog>, SharedLog) {
    let log = Arc::new(MemoryLog::of("log-one", commits.to_vec()));
    let shared: SharedLog = Arc::new(SharedMemoryLog(Arc::clone(&log)));
    (log, shared)
}

async fn folded_at_once(kind: Kind, commits: &[Recorded]) -> Harness {
    let harness = Harness::new(kind).await;
    let (log, shared) = log_of(commits);
    let head = log.reveal_all();
    harness.project(&shared, ModelName::Audit, head).await;
    harness
}

/// All pages of a question, one after the other.
async fn paged(harness: &Harness, org: OrgId, filter: &AuditFilter, direction: Direction, limit: u64) -> Vec<AuditRow> {
    let (limit, mut after, mut found) = (Limit::new(limit).unwrap(), None, Vec::new());
    loop {
        let page = harness.database.audit().rows(org, filter, direction, after, limit).await.unwrap();
        assert!(page.items.len() <= usize::from(limit.get()));
        // Nothing here is so long that a page may be short and not the last one.
        assert!(page.next.is_none() || page.items.len() == usize::from(limit.get()), "{filter:?}");
        found.extend(page.items);
        let Some(next) = page.next else { return found };
        after = Some(next);
    }
}

/// What a filter means, said once more and otherwise.
fn lets_through(filter: &AuditFilter, row: &AuditRow) -> bool {
    let AuditFilter { actor, type_prefix, project, workspace, link, correlation, denied, from, to } = filter.clone();
    let (refused, named) = match &row.outcome {
        Outcome::Done => (false, Vec::new()),
        Outcome::Denied { requests, .. } => (true, requests.clone()),
    };
    !(actor.is_some() && actor != row.actor_id
        || type_prefix.is_some_and(|prefix| row.event_type.get(..prefix.len()) != Some(&prefix))
        || project.is_some() && project != row.project
        || workspace.is_some() && workspace != row.workspace
        || link.is_some() && link != row.link
        || correlation.is_some_and(|correlation| correlation != row.correlation && !named.contains(&correlation))
        || denied.is_some_and(|denied| denied != refused)
        || from.is_some_and(|from| row.recorded_at < from)
        || to.is_some_and(|to| row.recorded_at >= to))
}

/// Each filter alone by each value that there is, and many together.
fn filters(all: &[AuditRow]) -> Vec<AuditFilter> {
    let none = AuditFilter::default;
    let mut filters = vec![none()];
    let distinct = |of: &dyn Fn(&AuditRow) -> Option<String>| {
        let mut values: Vec<_> = all.iter().filter_map(of).collect();
        values.sort();
        values.dedup();
        values
    };
    let actors = distinct(&|row| row.actor_id.clone());
    let types = distinct(&|row| Some(row.event_type.clone()));
    let workspaces = distinct(&|row| row.workspace.map(|id| id.to_string()));
    assert!(actors.len() >= 5 && types.len() >= 15 && workspaces.len() >= 3, "{actors:?} {types:?} {workspaces:?}");
    filters.extend(actors.iter().map(|actor| AuditFilter { actor: Some(actor.clone()), ..none() }));
    filters.extend(["nobody", "usr_", "", "\0"].map(|actor| AuditFilter { actor: Some(actor.into()), ..none() }));
    let prefixes = ["", "dev_link.", "dev_link.issued.v1", "workspace.", "runtime", "DEV_LINK.", "%", "dev_link_"];
    filters.extend(prefixes.map(|prefix| AuditFilter { type_prefix: Some(prefix.into()), ..none() }));
    filters.extend(types.into_iter().map(|whole| AuditFilter { type_prefix: Some(whole), ..none() }));
    for workspace in &workspaces {
        let workspace = Some(workspace.parse().unwrap());
        filters.push(AuditFilter { workspace, ..none() });
        filters.push(AuditFilter { workspace, denied: Some(true), ..none() });
        filters.push(AuditFilter { workspace, type_prefix: Some("runtime.wake".into()), ..none() });
        filters.push(AuditFilter { workspace, actor: actors.first().cloned(), ..none() });
    }
    let numbers = (1..15).chain([50]);
    filters.extend(numbers.clone().map(|number| AuditFilter { project: Some(project_id(number)), ..none() }));
    filters.extend(numbers.map(|number| AuditFilter { link: Some(link_id(number)), ..none() }));
    filters.extend([true, false].map(|denied| AuditFilter { denied: Some(denied), ..none() }));
    for number in [0, 1, 96, 1_999, 2_000] {
        let correlation = Some(CorrelationId::from_uuid(Uuid::from_u128(number)));
        filters.push(AuditFilter { correlation, ..none() });
        filters.push(AuditFilter { correlation, denied: Some(false), ..none() });
    }
    let times: Vec<UnixMillis> = [0, 10, all.len() / 3, all.len() / 3 + 40, all.len() - 9]
        .into_iter()
        .map(|index| all[index].recorded_at)
        .collect();
    for (index, from) in times.iter().enumerate() {
        filters.push(AuditFilter { from: Some(*from), ..none() });
        filters.push(AuditFilter { to: Some(*from), ..none() });
        for to in &times[index..] {
            filters.push(AuditFilter { from: Some(*from), to: Some(*to), ..none() });
            filters.push(AuditFilter { from: Some(*from), to: Some(*to), actor: actors.last().cloned(), ..none() });
        }
    }
    filters
}

pub async fn every_filter_finds_in_a_long_log_what_it_means(kind: Kind) {
    let commits = long_log();
    let harness = folded_at_once(kind, &commits).await;
    assert_eq!(harness.count("SELECT count(*) FROM audit_parts").await, 3);
    for org in [org_id(1), org_id(2)] {
        let all = paged(&harness, org, &AuditFilter::default(), Direction::OldestFirst, 200).await;
        let own = commits.iter().filter(|recorded| recorded.commit.stream.org() == org);
        let expected: Vec<_> = own
            .flat_map(|recorded| (0..rows_of(&recorded.commit)).map(move |ordinal| (recorded, ordinal)))
            .map(|(recorded, ordinal)| {
                (AuditCursor { position: recorded.position, ordinal: ordinal as u32 }, recorded.commit.id)
            })
            .collect();
        assert!(expected.len() > 2_000, "{}", expected.len());
        let found: Vec<_> = all.iter().map(|row| (row.cursor, row.commit)).collect();
        assert!(found == expected, "the rows of {org} are not those of its commits");
        let mut found_something = 0;
        for filter in filters(&all) {
            let mut expected: Vec<_> = all.iter().filter(|row| lets_through(&filter, row)).collect();
            found_something += usize::from(!expected.is_empty());
            let limit = if expected.len() < 100 { 7 } else { 200 };
            for direction in [Direction::OldestFirst, Direction::NewestFirst] {
                let found = paged(&harness, org, &filter, direction, limit).await;
                assert!(found.iter().eq(expected.iter().copied()), "{direction:?} {filter:?}");
                expected.reverse();
            }
        }
        assert!(found_something > 60, "{found_something}");
    }
    let rare = AuditFilter { actor: Some(user_id(99).to_string()), ..AuditFilter::default() };
    let found = paged(&harness, org_id(1), &rare, Direction::OldestFirst, 3).await;
    assert_eq!(found.iter().map(|row| row.cursor.position.get()).collect::<Vec<_>>(), RARE);
    assert!(paged(&harness, org_id(2), &rare, Direction::NewestFirst, 3).await.is_empty());
    assert!(paged(&harness, org_id(3), &AuditFilter::default(), Direction::NewestFirst, 3).await.is_empty());
}

async fn folded_in_pieces(kind: Kind, commits: &[Recorded], ends: impl Iterator<Item = u64>) -> TableDigest {
    let harness = Harness::new(kind).await;
    let (log, shared) = log_of(commits);
    let head = commits.len() as u64;
    for (index, end) in ends.map(|end| end.min(head)).chain([head]).enumerate() {
        let running = harness.start(&shared, ModelName::Audit);
        log.reveal_up_to(Position::new(end));
        harness.wait(ModelName::Audit, Position::new(end)).await;
        if index.is_multiple_of(2) { running.crash().await } else { running.stop().await.unwrap() }
    }
    harness.database.digest(ModelName::Audit).await.unwrap()
}

pub async fn a_restart_in_the_middle_of_a_part_changes_nothing(kind: Kind) {
    let commits = long_log();
    let harness = folded_at_once(kind, &commits).await;
    let once = harness.database.digest(ModelName::Audit).await.unwrap();
    let borders = [1, 1_000, PART - 2, PART - 1, PART, PART + 1, 2 * PART - 1, 2 * PART + 700, 3 * PART, COMMITS - 1];
    assert_eq!(folded_in_pieces(kind, &commits, borders.into_iter()).await, once, "restarts around borders");
    // A batch each, since the next is shown only when the one before is folded.
    for piece in [97, 499] {
        let ends = (1..COMMITS / piece).map(|number| number * piece);
        assert_eq!(folded_in_pieces(kind, &commits, ends).await, once, "pieces of {piece}");
    }
    let (log, shared) = log_of(&commits);
    log.reveal_all();
    assert!(rebuild(&shared, &harness.database, ModelName::Audit, |_| {}).await.unwrap().unchanged());
    let rare = AuditFilter { workspace: Some(workspace_id(9)), ..AuditFilter::default() };
    assert_eq!(paged(&harness, org_id(1), &rare, Direction::NewestFirst, 200).await.len(), RARE.len());
}

pub async fn the_same_log_gives_the_same_rows_on_both_databases(kind: Kind) {
    let commits = long_log();
    let one = folded_at_once(kind, &commits).await.database.digest(ModelName::Audit).await.unwrap();
    let other = folded_at_once(Kind::Sqlite, &commits[..]).await.database.digest(ModelName::Audit).await.unwrap();
    assert_eq!(one, other);
}

pub async fn a_page_ends_where_it_has_looked_into_enough_parts(kind: Kind) {
    let commits = long_log();
    let harness = folded_at_once(kind, &commits[..PART as usize + 10]).await;
    // Many more parts, in which others did things that nobody asks for here.
    let parts = "INSERT INTO audit_parts (generation, part, recorded_from, recorded_to) \
                 WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9000) \
                 SELECT 1, i, 0, 9000000000000 FROM n";
    harness.execute(parts).await;
    let rare = AuditFilter { actor: Some(user_id(99).to_string()), ..AuditFilter::default() };
    let audit = harness.database.audit();
    let limit = Limit::new(10).unwrap();
    let first = audit.rows(org_id(1), &rare, Direction::NewestFirst, None, limit).await.unwrap();
    assert!(first.items.is_empty());
    assert!(first.next.is_some(), "there is more to look into");
    let second = audit.rows(org_id(1), &rare, Direction::NewestFirst, first.next, limit).await.unwrap();
    let positions = second.items.iter().map(|row| row.cursor.position.get()).collect::<Vec<_>>();
    assert_eq!((positions, second.next), (vec![PART - 1, 2], None));
    // And from the other end: what was found is answered at once, the rest of the parts is looked into next.
    let first = audit.rows(org_id(1), &rare, Direction::OldestFirst, None, limit).await.unwrap();
    assert_eq!(first.items.len(), 2);
    let next = first.next.unwrap();
    assert_eq!(next.to_string().parse(), Ok(next));
    let second = audit.rows(org_id(1), &rare, Direction::OldestFirst, Some(next), limit).await.unwrap();
    assert!(second.items.is_empty() && second.next.is_none());
}

pub async fn a_text_with_a_nul_is_kept_and_a_name_with_one_is_the_same_after_a_restart(kind: Kind) {
    let acme = World::acme().log.commits();
    let mut commits = acme.clone();
    // The events' own rules would not let such texts in; a log that is older than they are may have them.
    let mut push = |like: usize, event: Event| {
        let position = Position::new(commits.len() as u64 + 1);
        let commit = Commit { events: vec![event], ..acme[like].commit.clone() };
        commits.push(Recorded { position, recorded_at: UnixMillis::new(EIGHT), commit });
    };
    push(7, Event::DevLink(DevLinkEvent::Revoked { reason: Some("done\0now".into()) }));
    push(1, Event::User(UserEvent::ProfileChanged { name: "Be\0n".into() }));
    push(3, acme[3].commit.events[0].clone());
    let once = folded_at_once(kind, &commits).await;
    let rows = paged(&once, org_id(1), &AuditFilter::default(), Direction::OldestFirst, 200).await;
    let told = &rows[rows.len() - 3];
    assert_eq!(told.summary, "Revoked the link “Link 1”: done\0now");
    assert_eq!(rows.last().unwrap().summary, "Added Be\u{fffd}n as a member");
    let before_it = commits.len() as u64 - 1;
    let in_pieces = folded_in_pieces(kind, &commits, [before_it].into_iter()).await;
    assert_eq!(in_pieces, once.database.digest(ModelName::Audit).await.unwrap());
}
