//! What the embedded log adds: one process, one file, private, never swapped unnoticed.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use envforge_domain::commit::{Expectation, Position};
use envforge_domain::time::{Clock, UnixMillis};
use envforge_eventlog::sqlite::{Config, SqliteLog};
use envforge_eventlog::{AppendError, Checkpoint, EventLog, Filter, LogError, NotTheSameLog, SharedLog};
use envforge_testkit::{TestDir, eventually};
use sqlx::{Connection, SqliteConnection};

use crate::commits::{Follower, add, after, all, append, at, claim, commit};
use crate::site::{DEADLINE, Site};

#[tokio::test]
async fn a_second_owner_is_told_that_the_log_is_in_use() {
    let site = Site::sqlite();
    let log = site.open().await;
    let Err(LogError::Open(reason)) = SqliteLog::open(Config::new(site.address())).await else { panic!("two owners") };
    assert!(reason.contains("is in use by another process"), "{reason}");
    add(&log, &claim("a"), "still works").await;
}

#[tokio::test]
async fn a_closed_log_can_be_opened_at_once() {
    let directory = TestDir::new();
    for _ in 0..5 {
        let log = SqliteLog::open(Config::new(directory.join("log"))).await.unwrap();
        let (commit, head) = (commit(&claim("a"), "x"), log.head().await.unwrap().position);
        log.append(vec![(commit, Expectation::LastAt(head))]).await.unwrap();
        log.close().await;
    }
}

#[tokio::test]
async fn a_format_of_a_newer_envforge_is_not_opened() {
    let site = Site::sqlite();
    drop(site.restart(site.open().await).await);
    let path = std::path::Path::new(&site.address()).join("events.sqlite");
    let mut connection = SqliteConnection::connect(&format!("sqlite://{}", path.display())).await.unwrap();
    sqlx::query("UPDATE meta SET format = 4").execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    let reason = loop {
        match SqliteLog::open(Config::new(site.address())).await {
            Err(LogError::Open(reason)) if reason.contains("in use") => {}
            Err(LogError::Open(reason)) => break reason,
            other => panic!("{:?}", other.err()),
        }
    };
    assert!(reason.contains("has format 4, this EnvForge works with format 3"), "{reason}");
}

#[tokio::test]
async fn a_file_that_is_no_log_is_not_opened() {
    let directory = TestDir::new();
    std::fs::write(directory.join("events.sqlite"), "certainly not a database, but long enough to be read").unwrap();
    let Err(LogError::Open(reason)) = SqliteLog::open(Config::new(directory.path())).await else { panic!("opened") };
    assert!(reason.contains("not a database"), "{reason}");
}

#[tokio::test]
async fn directory_and_files_are_for_their_owner_alone() {
    let site = Site::sqlite();
    let log = site.open().await;
    add(&log, &claim("a"), "1").await;
    let directory = std::path::PathBuf::from(site.address());
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&directory), 0o700);
    let mut files = 0;
    for entry in std::fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
        files += 1;
    }
    assert_eq!(files, 5, "database, write-ahead log, shared memory, lock, journal");
}

/// The file under the log's feet is replaced by an older copy, as a careless restore would.
#[tokio::test]
async fn a_file_swapped_while_in_use_takes_no_appends_and_ends_followers() {
    let site = Site::sqlite();
    let log = site.open().await;
    add(&log, &claim("a"), "1").await;
    let mut follower = Follower::start(&log, Checkpoint::START, Filter::everything()).await;
    follower.next_commit().await;
    let path = std::path::Path::new(&site.address()).join("events.sqlite");
    let old = path.with_extension("old");
    std::fs::copy(&path, &old).unwrap();
    std::fs::rename(&old, &path).unwrap();
    let refused = append(&log, &commit(&claim("a"), "2"), after(1)).await;
    assert!(
        matches!(refused, Err(AppendError::Log(LogError::NotTheSameLog(NotTheSameLog::Replaced { .. })))),
        "{refused:?}"
    );
    for error in [follower.until_error().await, log.head().await.unwrap_err()] {
        assert!(matches!(error, LogError::NotTheSameLog(NotTheSameLog::Replaced { .. })), "{error}");
    }
}

#[tokio::test]
async fn a_deleted_file_takes_no_appends() {
    let site = Site::sqlite();
    let log = site.open().await;
    add(&log, &claim("a"), "1").await;
    std::fs::remove_file(std::path::Path::new(&site.address()).join("events.sqlite")).unwrap();
    let refused = append(&log, &commit(&claim("a"), "2"), after(1)).await;
    assert!(
        matches!(refused, Err(AppendError::Log(LogError::NotTheSameLog(NotTheSameLog::Replaced { .. })))),
        "{refused:?}"
    );
}

async fn with_a_tool(site: &Site, sql: &'static str) {
    let path = std::path::Path::new(&site.address()).join("events.sqlite");
    let mut connection = SqliteConnection::connect(&format!("sqlite://{}", path.display())).await.unwrap();
    sqlx::query(sql).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

async fn until_the_file_has(site: &Site, head: i64) {
    let path = std::path::Path::new(&site.address()).join("events.sqlite");
    let mut connection = SqliteConnection::connect(&format!("sqlite://{}?mode=ro", path.display())).await.unwrap();
    eventually("the journal is brought into the file", DEADLINE, async || {
        let last = sqlx::query_scalar("SELECT coalesce(max(position), 0) FROM log").fetch_one(&mut connection).await;
        last.is_ok_and(|last: i64| last >= head).then_some(())
    })
    .await;
}

/// Opens it once its former owner let go of it.
async fn reopen(site: &Site) -> Result<SqliteLog, LogError> {
    loop {
        match SqliteLog::open(Config::new(site.address())).await {
            Err(LogError::Open(reason)) if reason.contains("in use") => {}
            other => return other,
        }
    }
}

/// Somebody deletes a row with a tool of their own, between two starts.
#[tokio::test]
async fn a_log_with_a_missing_commit_is_not_opened() {
    let site = Site::sqlite();
    let log = site.open().await;
    for number in 0..5 {
        add(&log, &claim("a"), &number.to_string()).await;
    }
    drop(log);
    drop(site.open().await);
    with_a_tool(&site, "DELETE FROM log WHERE position = 3").await;
    let error = reopen(&site).await.err().unwrap();
    assert_eq!(error, LogError::NotTheSameLog(NotTheSameLog::Gap { after: at(2), found: at(4) }));
    with_a_tool(&site, "DELETE FROM log WHERE position < 3").await;
    let error = reopen(&site).await.err().unwrap();
    assert_eq!(error, LogError::NotTheSameLog(NotTheSameLog::Gap { after: at(0), found: at(4) }));
}

/// The same while the log is in use. Whoever follows a part of it sees that some of the rest is gone.
#[tokio::test]
async fn a_commit_deleted_while_in_use_ends_followers_wherever_it_stood() {
    let mine = Filter { org: Some(crate::commits::org(1)), kinds: vec![] };
    let others = Filter { org: Some(crate::commits::org(2)), kinds: vec![] };
    for (deleted, missing) in [
        ("DELETE FROM log WHERE position = 3", NotTheSameLog::Gap { after: at(2), found: at(4) }),
        (
            "DELETE FROM log WHERE position = 5",
            NotTheSameLog::Replaced { found: "nothing stands above 4 although it ended at 5".to_owned() },
        ),
    ] {
        let site = Site::sqlite();
        let log = site.open().await;
        for number in 0..5 {
            add(&log, &claim("a"), &number.to_string()).await;
        }
        until_the_file_has(&site, 5).await;
        with_a_tool(&site, deleted).await;
        let mut everything = Follower::start(&log, Checkpoint::START, Filter::everything()).await;
        assert_eq!(everything.until_error().await, LogError::NotTheSameLog(missing));
        let found = "4 commits stand above 0 and up to 5".to_owned();
        for filter in [mine.clone(), others.clone()] {
            let mut filtered = Follower::start(&log, Checkpoint::START, filter).await;
            let error = filtered.until_error().await;
            assert_eq!(error, LogError::NotTheSameLog(NotTheSameLog::Replaced { found: found.clone() }));
        }
    }
}

/// A page of the file is overwritten, as by a dying disk.
#[tokio::test]
async fn a_damaged_page_is_final_and_said() {
    let site = Site::sqlite();
    let log = SqliteLog::open(Config::new(site.address())).await.unwrap();
    let mut last = Position::START;
    for _ in 0..300 {
        let appended = log.append(vec![(commit(&claim("a"), &"x".repeat(700)), Expectation::LastAt(last))]).await;
        last = appended.unwrap().last();
    }
    log.close().await;
    with_a_tool(&site, "PRAGMA wal_checkpoint(TRUNCATE)").await;
    let path = std::path::Path::new(&site.address()).join("events.sqlite");
    let mut bytes = std::fs::read(&path).unwrap();
    // Leaves of the log itself are most of the file; the first byte of a page says that it is one.
    let leaves: Vec<usize> = (1..bytes.len() / 4096).map(|page| page * 4096).filter(|at| bytes[*at] == 0x0d).collect();
    assert!(leaves.len() > 40, "{} leaves", leaves.len());
    bytes[leaves[leaves.len() / 2]] = 0xff;
    std::fs::write(&path, bytes).unwrap();
    let log: SharedLog = Arc::new(SqliteLog::open(Config::new(site.address())).await.unwrap());
    let mut follower = Follower::start(&log, Checkpoint::START, Filter::everything()).await;
    for error in [
        follower.until_error().await,
        log.read(Position::START, 1_000, &Filter::everything()).await.unwrap_err(),
        log.read_stream(&claim("a"), Position::START, 1_000).await.unwrap_err(),
    ] {
        assert!(matches!(&error, LogError::Damaged(reason) if reason.contains("malformed")), "{error}");
    }
}

/// A commit that a newer EnvForge wrote.
#[tokio::test]
async fn an_unknown_event_halts_followers_and_readers() {
    let site = Site::sqlite();
    let log = site.open().await;
    for number in 0..3 {
        add(&log, &claim("a"), &number.to_string()).await;
    }
    drop(log);
    drop(site.open().await);
    let path = std::path::Path::new(&site.address()).join("events.sqlite");
    let mut connection = SqliteConnection::connect(&format!("sqlite://{}", path.display())).await.unwrap();
    sqlx::query("UPDATE log SET payload = CAST(replace(payload, 'claim.taken.v1', 'claim.taken.v7') AS BLOB) WHERE position = 2")
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
    let log = site.open().await;
    let mut follower = Follower::start(&log, Checkpoint::START, Filter::everything()).await;
    follower.next_commit().await;
    for error in [
        follower.until_error().await,
        log.read(Position::START, 10, &Filter::everything()).await.unwrap_err(),
        log.read_stream(&claim("a"), Position::START, 10).await.unwrap_err(),
    ] {
        let LogError::Undecodable { position, reason } = error else { panic!("{error}") };
        assert_eq!(position, at(2));
        assert!(reason.contains("claim.taken.v7"), "{reason}");
    }
}

/// A clock of which each reading is the next of a list.
struct Readings(std::sync::Mutex<Vec<u64>>);

impl Clock for Readings {
    fn now(&self) -> UnixMillis {
        UnixMillis::new(self.0.lock().unwrap().pop().unwrap())
    }
}

#[tokio::test]
async fn recorded_times_do_not_go_back_with_the_clock() {
    let directory = TestDir::new();
    let mut expected = Vec::new();
    for (readings, recorded) in [([100, 300, 200], [100, 300, 300]), ([250, 50, 400], [300, 300, 400])] {
        let clock = Arc::new(Readings(std::sync::Mutex::new(readings.into_iter().rev().collect())));
        let log = SqliteLog::open(Config { clock, ..Config::new(directory.join("log")) }).await.unwrap();
        for _ in readings {
            let (commit, head) = (commit(&claim("a"), "x"), log.head().await.unwrap().position);
            log.append(vec![(commit, Expectation::LastAt(head))]).await.unwrap();
        }
        expected.extend(recorded);
        let page = log.read(Position::START, 10, &Filter::everything()).await.unwrap();
        assert_eq!(page.commits.iter().map(|recorded| recorded.recorded_at.get()).collect::<Vec<_>>(), expected);
        log.close().await;
    }
}

#[tokio::test]
async fn an_append_whose_caller_gives_up_is_stored_whole_or_not_at_all() {
    let site = Site::sqlite();
    let log = site.open().await;
    let mut last = Position::START;
    for number in 0..50 {
        let commit = commit(&claim("a"), &number.to_string());
        let expected = Expectation::LastAt(last);
        tokio::select! {
            biased;
            answer = append(&log, &commit, expected.clone()) => last = answer.unwrap().last(),
            () = tokio::task::yield_now() => {
                // The same command again gets the one answer there is.
                last = append(&log, &commit, expected).await.unwrap().last();
            }
        }
    }
    assert_eq!(all(&log).await.len(), 50);
}

/// A reader that stays at an old state of the file keeps the write-ahead log from beginning anew, and nothing else from going on.
#[tokio::test(flavor = "multi_thread")]
async fn the_write_ahead_log_is_copied_into_the_file_while_appends_go_on() {
    let site = Site::sqlite();
    let log = site.open().await;
    let size = |file: &str| std::fs::metadata(std::path::Path::new(&site.address()).join(file)).unwrap().len();
    let text = "x".repeat(40_000);
    let fill = async |megabytes: usize| {
        let writers = (0..8).map(|writer| {
            let (log, text, stream) = (Arc::clone(&log), text.clone(), claim(&format!("writer-{writer}")));
            tokio::spawn(async move {
                for _ in 0..megabytes * 25 / 8 {
                    add(&log, &stream, &text).await;
                }
            })
        });
        futures_util::future::join_all(writers).await.into_iter().for_each(Result::unwrap);
    };
    fill(20).await;
    let copied = || (size("events.sqlite") > 10_000_000).then_some(());
    eventually("the write-ahead log is copied", DEADLINE, async || copied()).await;
    let path = std::path::Path::new(&site.address()).join("events.sqlite");
    let mut reader = SqliteConnection::connect(&format!("sqlite://{}?mode=ro", path.display())).await.unwrap();
    let mut old = reader.begin().await.unwrap();
    let seen = "SELECT max(position) FROM log";
    let before: i64 = sqlx::query_scalar(seen).fetch_one(&mut *old).await.unwrap();
    fill(40).await;
    let head = |log: SharedLog| async move { log.head().await.unwrap().position.get().cast_signed() };
    until_the_file_has(&site, head(log.clone()).await).await;
    assert_eq!(sqlx::query_scalar::<_, i64>(seen).fetch_one(&mut *old).await.unwrap(), before);
    let long = size("events.sqlite-wal");
    assert!(long > 35_000_000, "the reader's pages were written over: {long}");
    old.rollback().await.unwrap();
    fill(60).await;
    until_the_file_has(&site, head(log.clone()).await).await;
    let after = size("events.sqlite-wal");
    assert!(after < long + 30_000_000, "it did not begin anew: {long}, {after}");
    let head = log.head().await.unwrap().position;
    assert_eq!(all(&log).await.len() as u64, head.get());
}
