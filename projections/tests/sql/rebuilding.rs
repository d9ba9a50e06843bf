//! Rebuilds beside the live generation.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use envforge_domain::commit::Position;
use envforge_eventlog::SharedLog;
use envforge_projections::sql::rebuild::rebuild;
use envforge_projections::sql::{Comparison, Limit, ModelName, RebuildError, WorkspaceFilter};

use crate::harness::{Harness, Kind, single_pass};
use crate::history;
use crate::log::{MemoryLog, SharedMemoryLog};
use crate::world::{World, org_id, workspace_id};

pub async fn a_rebuild_while_writing_fails_no_read_and_loses_nothing(kind: Kind) {
    let harness = Harness::new(kind).await;
    let world = history::random_story(700, 5);
    let (log, shared) = (Arc::clone(&world.log), world.shared());
    let commits = log.commits();
    let head = Position::new(commits.len() as u64);
    let half = Position::new(head.get() / 2);
    let model = ModelName::Directory;
    log.reveal_up_to(half);
    let live = harness.start(&shared, model);
    harness.wait(model, half).await;

    // Readers that never stop asking: the organization must be there, whichever generation answers.
    let (done, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let reader = {
        let (database, done, reads) = (harness.database.clone(), Arc::clone(&done), Arc::clone(&reads));
        tokio::spawn(async move {
            let mut position = Position::START;
            while !done.load(Ordering::Relaxed) {
                let organization = database.directory().organization(org_id(1)).await.expect("no failed read");
                assert!(organization.is_some(), "the organization vanished");
                let filter = WorkspaceFilter::default();
                database.directory().workspaces(org_id(1), &filter, None, Limit::MAX).await.expect("no failed read");
                let now = database.position(model).await.expect("no failed read");
                assert!(now >= position, "readers went back from {position} to {now}");
                position = now;
                reads.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    // A writer that goes on while each batch of the rebuild is folded.
    let mut shown = half;
    let rebuilt = rebuild(&shared, &harness.database, model, |_| {
        shown = Position::new((shown.get() + 20).min(head.get()));
        log.reveal_up_to(shown);
    });
    let rebuilt = rebuilt.await.unwrap();
    assert!(rebuilt.unchanged(), "{rebuilt:?}");
    assert!(rebuilt.switched_at >= half);

    log.reveal_all();
    harness.wait(model, head).await;
    assert!(!live.task.is_finished(), "the live projector goes on with the new generation");
    live.stop().await.unwrap();
    done.store(true, Ordering::Relaxed);
    reader.await.unwrap();
    assert!(reads.load(Ordering::Relaxed) > 0);
    assert_eq!(harness.database.digest(model).await.unwrap(), single_pass(commits).await[model as usize]);
    let sql = "SELECT count(*) FROM directory_workspaces WHERE generation <> 2";
    assert_eq!(harness.count(sql).await, 0, "the old generation is gone");
    assert!(harness.count("SELECT count(*) FROM directory_workspaces").await > 0);
}

pub async fn a_rebuild_puts_right_what_was_wrong_and_says_so(kind: Kind) {
    let harness = Harness::new(kind).await;
    let world = World::acme();
    let head = world.log.reveal_all();
    harness.project(&world.shared(), ModelName::Directory, head).await;
    // Somebody wrote into the table.
    harness.execute("UPDATE directory_workspaces SET branch = 'evil'").await;
    let rebuilt = rebuild(&world.shared(), &harness.database, ModelName::Directory, |_| {}).await.unwrap();
    assert!(!rebuilt.unchanged());
    assert!(matches!(rebuilt.comparison, Comparison::Compared { at, .. } if at == head), "{rebuilt:?}");
    let workspace = harness.database.directory().workspace(org_id(1), workspace_id(1)).await.unwrap().unwrap();
    assert_eq!(workspace.branch, "main");
    for model in [ModelName::Audit, ModelName::Meter, ModelName::CommandIds] {
        harness.project(&world.shared(), model, head).await;
        let rebuilt = rebuild(&world.shared(), &harness.database, model, |_| {}).await.unwrap();
        assert!(rebuilt.unchanged(), "{rebuilt:?}");
    }
}

pub async fn a_newer_rebuild_ends_an_older_one(kind: Kind) {
    let harness = Harness::new(kind).await;
    let world = history::random_story(60, 9);
    let (log, shared) = (Arc::clone(&world.log), world.shared());
    let head = log.reveal_all();
    harness.project(&shared, ModelName::Audit, head).await;
    let before = harness.database.digest(ModelName::Audit).await.unwrap();

    // The older one follows a log that shows its first half only, so it waits in the middle.
    let slow = Arc::new(MemoryLog::of("log-one", log.commits()));
    slow.reveal_up_to(Position::new(head.get() / 2));
    let slow_shared: SharedLog = Arc::new(SharedMemoryLog(Arc::clone(&slow)));
    let (database, halfway) = (harness.database.clone(), Arc::new(tokio::sync::Notify::new()));
    let told = Arc::clone(&halfway);
    let older =
        tokio::spawn(async move { rebuild(&slow_shared, &database, ModelName::Audit, |_| told.notify_one()).await });
    halfway.notified().await;
    let newer = rebuild(&shared, &harness.database, ModelName::Audit, |_| {}).await.unwrap();
    assert!(newer.unchanged());
    slow.reveal_all();
    let error = older.await.unwrap().unwrap_err();
    assert!(matches!(error, RebuildError::Superseded { model: ModelName::Audit }), "{error}");
    assert_eq!(harness.database.digest(ModelName::Audit).await.unwrap(), before);
}

pub async fn an_unfinished_rebuild_leaves_the_live_rows_alone(kind: Kind) {
    let harness = Harness::new(kind).await;
    let world = history::random_story(60, 13);
    let (log, shared) = (Arc::clone(&world.log), world.shared());
    let commits = log.commits();
    let head = log.reveal_all();
    harness.project(&shared, ModelName::Audit, head).await;
    let before = harness.database.digest(ModelName::Audit).await.unwrap();
    let slow = Arc::new(MemoryLog::of("log-one", commits.clone()));
    slow.reveal_up_to(Position::new(head.get() / 2));
    let slow: SharedLog = Arc::new(SharedMemoryLog(slow));
    let (database, halfway) = (harness.database.clone(), Arc::new(tokio::sync::Notify::new()));
    let told = Arc::clone(&halfway);
    let crashed = tokio::spawn(async move { rebuild(&slow, &database, ModelName::Audit, |_| told.notify_one()).await });
    halfway.notified().await;
    crashed.abort();
    let _ = crashed.await;
    assert_eq!(harness.database.digest(ModelName::Audit).await.unwrap(), before);
    let leftover = "SELECT count(*) FROM audit_trail WHERE generation = 2";
    assert!(harness.count(leftover).await > 0);
    let rebuilt = rebuild(&shared, &harness.database, ModelName::Audit, |_| {}).await.unwrap();
    assert!(rebuilt.unchanged());
    assert_eq!(harness.count(leftover).await, 0, "the next rebuild clears away what the crashed one left");
}

/// The log was put back to an older state, or another one stands in its place: the rows follow it when they are told to.
pub async fn a_rebuild_on_a_log_that_went_back_takes_what_it_says_now(kind: Kind) {
    let world = history::random_story(60, 17);
    let commits = world.log.commits();
    let head = world.log.reveal_all();
    let half = Position::new(head.get() / 2);
    for identity in ["log-one", "log-two"] {
        let harness = Harness::new(kind).await;
        harness.project(&world.shared(), ModelName::Directory, head).await;
        let old = Arc::new(MemoryLog::of(identity, commits[..commits.len() / 2].to_vec()));
        old.reveal_all();
        let shared: SharedLog = Arc::new(SharedMemoryLog(Arc::clone(&old)));
        let rebuilt = rebuild(&shared, &harness.database, ModelName::Directory, |_| {}).await.unwrap();
        assert!(matches!(rebuilt.comparison, Comparison::OfAnotherLog { at, .. } if at == head), "{rebuilt:?}");
        assert!(!rebuilt.unchanged());
        assert_eq!(rebuilt.switched_at, half);
        assert_eq!(harness.database.position(ModelName::Directory).await.unwrap(), half);
        let expected = single_pass(old.commits()).await;
        assert_eq!(
            harness.database.digest(ModelName::Directory).await.unwrap(),
            expected[ModelName::Directory as usize]
        );
        assert_eq!(harness.count("SELECT count(*) FROM directory_workspaces WHERE generation = 1").await, 0);
        // The log goes on from there, and so do the rows.
        for recorded in &commits[commits.len() / 2..] {
            old.push_hidden(recorded.commit.clone(), recorded.recorded_at);
        }
        old.reveal_all();
        harness.project(&shared, ModelName::Directory, head).await;
        let expected = single_pass(commits.clone()).await;
        assert_eq!(
            harness.database.digest(ModelName::Directory).await.unwrap(),
            expected[ModelName::Directory as usize]
        );
    }
}
