//! Exactly once: replays, crashes, rivals, broken logs, and waiting for a position.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use envforge_domain::commit::{Expectation, Position};
use envforge_eventlog::sqlite::{Config, SqliteLog};
use envforge_eventlog::{EventLog, Filter, LogError, SharedLog};
use envforge_projections::sql::projector::ProjectorError;
use envforge_projections::sql::rebuild::rebuild;
use envforge_projections::sql::{ModelName, ProjectorState, Stale, Supervisor};
use envforge_testkit::eventually;

use crate::harness::{DEADLINE, Harness, Kind, single_pass};
use crate::history;
use crate::log::{MemoryLog, SharedMemoryLog};
use crate::world::{World, command_id};

pub async fn replaying_twice_equals_once(kind: Kind) {
    let harness = Harness::new(kind).await;
    let world = history::story();
    let head = world.log.reveal_all();
    let once = harness.project_all(&world.shared(), head).await;
    // The second run starts from the checkpoints and finds nothing to do; a third sees one more commit.
    assert_eq!(harness.project_all(&world.shared(), head).await, once);
    assert_eq!(single_pass(world.log.commits()).await, once);
    assert!(once.iter().all(|digest| digest.rows > 0), "{once:?}");
}

pub async fn a_crash_between_batches_equals_a_single_pass(kind: Kind) {
    let harness = Harness::new(kind).await;
    let world = history::random_story(400, 7);
    let (log, shared) = (Arc::clone(&world.log), world.shared());
    let commits = log.commits();
    let head = commits.len() as u64;
    for model in ModelName::ALL {
        log.reveal_up_to(Position::START);
        // Each round shows a few more commits and ends the projector while it may be anywhere in them.
        for round in 1..=8 {
            let running = harness.start(&shared, model);
            let until = Position::new(head * round / 8);
            log.reveal_up_to(until);
            if round % 2 == 0 {
                harness.wait(model, Position::new(head * (round - 1) / 8 + 1)).await;
            }
            running.crash().await;
        }
        harness.project(&shared, model, Position::new(head)).await;
    }
    assert_eq!(harness.digests().await, single_pass(commits).await);
}

pub async fn of_two_projectors_one_is_fenced_off_and_rows_are_exact(kind: Kind) {
    let harness = Harness::new(kind).await;
    let world = history::random_story(300, 11);
    let (log, shared) = (Arc::clone(&world.log), world.shared());
    let commits = log.commits();
    let model = ModelName::Directory;
    let rivals = [harness.start(&shared, model), harness.start(&shared, model)];
    // One commit at a time, until the two met: then one of them has ended.
    let mut shown = 0;
    while rivals.iter().all(|rival| !rival.task.is_finished()) {
        shown += 1;
        assert!(shown <= commits.len() as u64, "both projectors went on to the end");
        log.reveal_up_to(Position::new(shown));
        harness.wait(model, Position::new(shown)).await;
    }
    let head = log.reveal_all();
    harness.wait(model, head).await;
    let [one, other] = rivals;
    let (fenced, survivor) = if one.task.is_finished() { (one, other) } else { (other, one) };
    let error = fenced.task.await.unwrap().unwrap_err();
    assert!(matches!(error, ProjectorError::FencedOff { model: ModelName::Directory, .. }), "{error}");
    assert!(error.to_string().contains("fenced off"), "{error}");
    survivor.stop().await.unwrap();
    assert_eq!(harness.database.digest(model).await.unwrap(), single_pass(commits).await[model as usize]);
}

pub async fn a_commit_that_cannot_be_read_halts_after_what_came_before_it(kind: Kind) {
    let harness = Harness::new(kind).await;
    let world = World::acme();
    world.log.make_undecodable(Position::new(5));
    world.log.reveal_all();
    for model in ModelName::ALL {
        let running = harness.start(&world.shared(), model);
        let error = running.task.await.unwrap().unwrap_err();
        assert!(matches!(&error, ProjectorError::Log { error: LogError::Undecodable { .. }, .. }), "{error}");
        assert!(!error.is_transient());
        assert!(error.to_string().contains("dev_link.vanished.v9"), "{error}");
        assert_eq!(harness.database.position(model).await.unwrap(), Position::new(4));
    }
}

pub async fn another_log_in_its_place_halts(kind: Kind) {
    let harness = Harness::new(kind).await;
    let world = World::acme();
    let head = world.log.reveal_all();
    harness.project(&world.shared(), ModelName::Audit, head).await;
    let before = harness.database.digest(ModelName::Audit).await.unwrap();
    let other = Arc::new(MemoryLog::of("log-two", world.log.commits()));
    other.reveal_all();
    let other: SharedLog = Arc::new(SharedMemoryLog(other));
    let error = harness.start(&other, ModelName::Audit).task.await.unwrap().unwrap_err();
    assert!(matches!(&error, ProjectorError::Log { error: LogError::NotTheSameLog(_), .. }), "{error}");
    assert!(!error.is_transient());
    assert_eq!(harness.database.digest(ModelName::Audit).await.unwrap(), before);
}

pub async fn a_waiting_read_returns_once_its_position_is_folded(kind: Kind) {
    let harness = Harness::new(kind).await;
    let world = World::acme();
    let head = Position::new(world.log.commits().len() as u64);
    let running = harness.start(&world.shared(), ModelName::Directory);
    // A clone shares the news of this process; another process has to look at the checkpoint.
    let waiting = [harness.database.clone(), harness.connect_again().await]
        .map(|database| tokio::spawn(async move { database.wait_for(ModelName::Directory, head, DEADLINE).await }));
    world.log.reveal_all();
    for waiting in waiting {
        waiting.await.unwrap().unwrap();
    }
    assert_eq!(harness.database.position(ModelName::Directory).await.unwrap(), head);
    running.stop().await.unwrap();
}

pub async fn a_read_that_would_be_stale_says_how_far_it_got(kind: Kind) {
    let harness = Harness::new(kind).await;
    let world = World::acme();
    let head = world.log.reveal_all();
    harness.project(&world.shared(), ModelName::Directory, head).await;
    let wanted = head.next();
    let stale = harness.database.wait_for(ModelName::Directory, wanted, Duration::from_millis(30)).await.unwrap_err();
    assert!(matches!(stale, Stale::Behind { position, .. } if position == head), "{stale}");
}

pub async fn a_lost_connection_is_survived_by_the_supervisor(kind: Kind) {
    let harness = Harness::new(kind).await;
    let world = history::story();
    let commits = world.log.commits();
    let half = Position::new(commits.len() as u64 / 2);
    world.log.reveal_up_to(half);
    let supervisor = Supervisor::start(&world.shared(), &harness.database);
    for model in ModelName::ALL {
        harness.wait(model, half).await;
    }
    harness.cut_connections().await;
    let head = world.log.reveal_all();
    for model in ModelName::ALL {
        harness.wait(model, head).await;
    }
    supervisor.stop().await;
    assert_eq!(harness.digests().await, single_pass(commits).await);
}

pub async fn a_second_supervisor_stands_by(kind: Kind) {
    let harness = Harness::new(kind).await;
    let world = history::random_story(120, 3);
    let commits = world.log.commits();
    let supervisors =
        [Supervisor::start(&world.shared(), &harness.database), Supervisor::start(&world.shared(), &harness.database)];
    for shown in 1..=commits.len() as u64 {
        world.log.reveal_up_to(Position::new(shown));
        harness.wait(ModelName::Audit, Position::new(shown)).await;
    }
    let stands_by = || async {
        let states: Vec<_> = supervisors.iter().flat_map(Supervisor::states).collect();
        let of_audit = states.iter().filter(|(model, _)| *model == ModelName::Audit);
        let standing = of_audit.filter(|(_, state)| *state == ProjectorState::StandingBy).count();
        (standing == 1).then_some(())
    };
    eventually("one of two supervisors stands by", DEADLINE, stands_by).await;
    let head = Position::new(commits.len() as u64);
    for model in ModelName::ALL {
        harness.wait(model, head).await;
    }
    for supervisor in supervisors {
        supervisor.stop().await;
    }
    assert_eq!(harness.digests().await, single_pass(commits).await);
}

/// A log that went back stops the projectors, which say so; a rebuild takes what the log says now, and they go on.
pub async fn a_supervisor_on_another_log_says_so_and_goes_on_after_a_rebuild(kind: Kind) {
    let harness = Harness::new(kind).await;
    let world = history::random_story(60, 19);
    let commits = world.log.commits();
    let head = world.log.reveal_all();
    harness.project_all(&world.shared(), head).await;
    let old = Arc::new(MemoryLog::of("log-one", commits[..commits.len() / 2].to_vec()));
    let half = old.reveal_all();
    let shared: SharedLog = Arc::new(SharedMemoryLog(Arc::clone(&old)));
    assert_eq!(harness.database.projectors(), []);
    let supervisor = Supervisor::start(&shared, &harness.database);
    let said = tokio::time::timeout(DEADLINE, supervisor.another_log()).await.unwrap();
    assert!(said.contains("the log is not the one that was followed"), "{said}");
    let all_stopped = || async {
        // Each says so when it has looked: the first may have before the last has begun.
        let states = harness.database.projectors();
        let stopped = states.iter().filter(|(_, state)| matches!(state, ProjectorState::AnotherLog { .. })).count();
        (stopped == ModelName::ALL.len()).then_some(())
    };
    eventually("all projectors say that it is another log", DEADLINE, all_stopped).await;
    // The rebuild is another process's.
    let operator = harness.connect_again().await;
    for model in ModelName::ALL {
        assert_eq!(rebuild(&shared, &operator, model, |_| {}).await.unwrap().switched_at, half);
    }
    let running = || async {
        let states = supervisor.states();
        states.iter().all(|(_, state)| *state == ProjectorState::Running).then_some(())
    };
    eventually("all projectors go on", DEADLINE, running).await;
    // A position that only the log before had is not taken for folded.
    let stale = harness.database.wait_for(ModelName::Audit, head, Duration::from_millis(30)).await.unwrap_err();
    assert!(matches!(stale, Stale::Behind { position, .. } if position == half), "{stale}");
    for recorded in &commits[commits.len() / 2..] {
        old.push_hidden(recorded.commit.clone(), recorded.recorded_at);
    }
    old.reveal_all();
    for model in ModelName::ALL {
        harness.wait(model, head).await;
    }
    supervisor.stop().await;
    assert_eq!(harness.digests().await, single_pass(commits).await);
}

/// The supervisor's projectors on the log as customers have it, ended anywhere, on a log that is opened again.
pub async fn over_the_embedded_log(kind: Kind) {
    let harness = Harness::new(kind).await;
    let world = history::random_story(300, 21);
    let directory = tempfile::tempdir().unwrap();
    let commits = world.log.commits();
    let mut positions = HashMap::new();
    for part in commits.chunks(commits.len() / 3) {
        let log = Arc::new(SqliteLog::open(Config::new(directory.path())).await.unwrap());
        let shared: SharedLog = log.clone();
        let supervisor = Supervisor::start(&shared, &harness.database);
        for recorded in part {
            let stream = recorded.commit.stream.clone();
            let last = positions.get(&stream).copied().unwrap_or(Position::START);
            let appended = log.append(vec![(recorded.commit.clone(), Expectation::LastAt(last))]).await.unwrap();
            assert_eq!(appended.last(), recorded.position);
            positions.insert(stream, appended.last());
        }
        // Ended while it may be in the middle: whatever is not folded now is folded by the next one.
        harness.wait(ModelName::Directory, part[part.len() / 2].position).await;
        supervisor.stop().await;
        drop(shared);
        Arc::into_inner(log).expect("a stopped supervisor holds no log").close().await;
    }
    let log: SharedLog = Arc::new(SqliteLog::open(Config::new(directory.path())).await.unwrap());
    let page = log.read(Position::START, commits.len() + 1, &Filter::everything()).await.unwrap();
    let head = page.commits.last().unwrap().position;
    assert_eq!(head, commits.last().unwrap().position);
    // The log has its own clock, so the single pass is over what it remembers.
    let found = harness.project_all(&log, head).await;
    assert_eq!(found, single_pass(page.commits).await);
}

pub async fn commands_with_a_request_are_found_by_their_id(kind: Kind) {
    let harness = Harness::new(kind).await;
    let world = World::acme();
    let head = world.log.reveal_all();
    harness.project(&world.shared(), ModelName::CommandIds, head).await;
    let queries = harness.database.command_ids();
    for recorded in world.log.commits() {
        let found = queries.find(recorded.commit.command).await.unwrap();
        match recorded.commit.request_digest {
            Some(digest) => {
                let found = found.expect("a command with a request");
                assert_eq!(found.positions, [recorded.position]);
                assert_eq!(found.request_digest, digest);
                assert_eq!(found.org, recorded.commit.stream.org());
                assert_eq!(found.recorded_at, recorded.recorded_at);
            }
            None => assert_eq!(found, None),
        }
    }
    assert_eq!(queries.find(command_id(9_999)).await.unwrap(), None);
}
