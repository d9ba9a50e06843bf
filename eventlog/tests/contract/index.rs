//! The embedded log's file is written behind its journal: whatever it has got to, everything is found, and after a crash too.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use envforge_domain::commit::{Commit, Expectation, Position, Recorded, StreamId, StreamKind};
use envforge_eventlog::sqlite::{Config, SqliteLog};
use envforge_eventlog::{AppendError, Checkpoint, Filter, LogError, NotTheSameLog, SharedLog};
use envforge_testkit::{TestDir, eventually};
use sqlx::{AssertSqlSafe, Connection, SqliteConnection};

use crate::commits::{Follower, all, at, claim, commit, org, stream, text};
use crate::site::{DEADLINE, open_with};

/// A few hundred commits make several.
const BATCH: usize = 150;

fn config(directory: &Path) -> Config {
    Config { batch_commits: BATCH, ..Config::new(directory) }
}

fn streams() -> Vec<StreamId> {
    let kinds = [StreamKind::Claim, StreamKind::DevLink, StreamKind::Runtime];
    (0..7).map(|number| stream(number % 3 + 1, kinds[number as usize % 2], &format!("s{number}"))).collect()
}

/// Appends to a few streams in turn, `count` commits; answers what was appended and where.
async fn fill(log: &SharedLog, count: u64) -> Vec<(Commit, Position)> {
    let streams = streams();
    let mut lasts: Vec<Position> = log.last_positions_of(&streams).await.unwrap();
    let mut appended = Vec::new();
    for number in 0..count as usize {
        let of = number * number % streams.len();
        let commit = commit(&streams[of], &number.to_string());
        let answer = log.append(vec![(commit.clone(), Expectation::LastAt(lasts[of]))]).await.unwrap();
        lasts[of] = answer.last();
        appended.push((commit, answer.last()));
    }
    appended
}

/// Whatever is asked for by stream, by command or by scope is what the log itself says.
async fn everything_is_found(log: &SharedLog) {
    let commits = all(log).await;
    for stream in &streams() {
        let of_stream: Vec<Recorded> =
            commits.iter().filter(|recorded| recorded.commit.stream == *stream).cloned().collect();
        assert_eq!(log.read_stream(stream, Position::START, 10_000).await.unwrap(), of_stream);
        assert_eq!(log.last_of_stream(stream).await.unwrap().as_ref(), of_stream.last());
        let last = of_stream.last().map_or(Position::START, |recorded| recorded.position);
        assert_eq!(log.last_position_of(std::slice::from_ref(stream)).await.unwrap(), last);
        let (mut after, mut paged) = (Position::START, Vec::new());
        loop {
            let page = log.read_stream(stream, after, 13).await.unwrap();
            after = page.last().map_or(after, |recorded| recorded.position);
            paged.extend(page.iter().cloned());
            if page.len() < 13 {
                break;
            }
        }
        assert_eq!(paged, of_stream);
    }
    for filter in [
        Filter { org: Some(org(2)), kinds: vec![] },
        Filter { org: None, kinds: vec![StreamKind::DevLink] },
        Filter { org: Some(org(9)), kinds: vec![] },
    ] {
        let expected: Vec<_> =
            commits.iter().filter(|recorded| filter.accepts(&recorded.commit.stream)).cloned().collect();
        for limit in [7, 10_000] {
            let (mut after, mut found) = (Position::START, Vec::new());
            loop {
                let page = log.read(after, limit, &filter).await.unwrap();
                found.extend(page.commits);
                after = page.read_up_to;
                if page.at_head {
                    break;
                }
            }
            assert_eq!(found, expected, "{filter:?} by {limit}");
        }
    }
}

async fn every_command_gets_its_first_answer(log: &SharedLog, appended: &[(Commit, Position)]) {
    for (commit, position) in appended {
        let again = log.append(vec![(commit.clone(), Expectation::LastAt(Position::START))]).await.unwrap();
        assert!(again.duplicate, "{}", commit.command);
        assert_eq!(again.positions, [*position]);
    }
}

async fn with_a_tool(directory: &Path) -> SqliteConnection {
    SqliteConnection::connect(&format!("sqlite://{}", directory.join("events.sqlite").display())).await.unwrap()
}

/// Up to where the index says that it is complete; it is, and beyond it holds nothing that the log does not.
async fn index_as_far_as_it_says(directory: &Path) -> i64 {
    let mut connection = with_a_tool(directory).await;
    let up_to: i64 = sqlx::query_scalar("SELECT up_to FROM indexed").fetch_one(&mut connection).await.unwrap();
    for (table, columns) in [
        ("stream_commits", "stream, position"),
        ("scope_commits", "scope, position"),
        ("command_commits", "command, stream, position"),
    ] {
        for (what, sql) in [
            (
                "misses",
                format!("SELECT {columns} FROM log WHERE position <= {up_to} EXCEPT SELECT {columns} FROM {table}"),
            ),
            ("makes up", format!("SELECT {columns} FROM {table} EXCEPT SELECT {columns} FROM log")),
        ] {
            let sql = AssertSqlSafe(format!("SELECT count(*) FROM ({sql})"));
            let rows: i64 = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
            assert_eq!(rows, 0, "{table} {what} rows");
        }
    }
    connection.close().await.unwrap();
    up_to
}

async fn close(log: SharedLog, owner: Arc<SqliteLog>) {
    drop(log);
    Arc::into_inner(owner).unwrap().close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_found_wherever_the_file_has_got_to() {
    let directory = TestDir::new();
    let owner = Arc::new(SqliteLog::open(config(directory.path())).await.unwrap());
    let log: SharedLog = owner.clone();
    let mut appended = Vec::new();
    // Few at a time, so that all stages of a batch are seen.
    for _ in 0..12 {
        appended.extend(fill(&log, 37).await);
        everything_is_found(&log).await;
    }
    every_command_gets_its_first_answer(&log, &appended).await;
    close(log, owner).await;
    assert_eq!(index_as_far_as_it_says(directory.path()).await, 444);
    let log: SharedLog = Arc::new(SqliteLog::open(config(directory.path())).await.unwrap());
    everything_is_found(&log).await;
    every_command_gets_its_first_answer(&log, &appended).await;
}

/// All commits are in memory for a while: nothing of them is in the file when it is asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_file_does_not_have_yet_is_found_as_well() {
    let directory = TestDir::new();
    let log: SharedLog = Arc::new(SqliteLog::open(Config::new(directory.path())).await.unwrap());
    // Nothing is brought into the file while another connection writes it.
    let mut tool = with_a_tool(directory.path()).await;
    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut tool).await.unwrap();
    let appended = fill(&log, 100).await;
    everything_is_found(&log).await;
    every_command_gets_its_first_answer(&log, &appended).await;
    let in_file: i64 = sqlx::query_scalar("SELECT count(*) FROM log").fetch_one(&mut tool).await.unwrap();
    assert_eq!(in_file, 0);
    sqlx::raw_sql("COMMIT").execute(&mut tool).await.unwrap();
    tool.close().await.unwrap();
    eventually("the file has everything", DEADLINE, async || {
        (index_as_far_as_it_says(directory.path()).await == 100).then_some(())
    })
    .await;
    everything_is_found(&log).await;
}

/// What opening does not look at is counted afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_is_missing_before_the_end_condemns_the_log() {
    let directory = TestDir::new();
    let log = Arc::new(SqliteLog::open(config(directory.path())).await.unwrap());
    let shared: SharedLog = log.clone();
    fill(&shared, 2 * BATCH as u64).await;
    drop(shared);
    Arc::into_inner(log).unwrap().close().await;
    let mut connection = with_a_tool(directory.path()).await;
    sqlx::query("DELETE FROM log WHERE position = 20").execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    let log: SharedLog = Arc::new(open_with(config(directory.path())).await);
    let missing = LogError::NotTheSameLog(NotTheSameLog::Gap { after: at(19), found: at(21) });
    // One that follows from behind the gap, and sees no commit that it could miss.
    let from = Checkpoint { position: at(2 * BATCH as u64), proof: None };
    let mut follower = Follower::start(&log, from, Filter { org: Some(org(9)), kinds: vec![] }).await;
    assert_eq!(follower.until_error().await, missing);
    let refused = log.append(vec![(commit(&claim("a"), "x"), Expectation::LastAt(Position::START))]).await;
    assert!(matches!(refused, Err(AppendError::Log(error)) if error == missing));
    assert_eq!(log.head().await.unwrap_err(), missing);
}

/// The index ends where the log does not reach: the end of the log was cut off.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_ends_before_its_index_is_not_opened() {
    let directory = TestDir::new();
    let log = Arc::new(SqliteLog::open(config(directory.path())).await.unwrap());
    let shared: SharedLog = log.clone();
    fill(&shared, 2 * BATCH as u64).await;
    drop(shared);
    Arc::into_inner(log).unwrap().close().await;
    let mut connection = with_a_tool(directory.path()).await;
    sqlx::query("DELETE FROM log WHERE position > 100").execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    let Err(error) = SqliteLog::open(config(directory.path())).await else { panic!("opened") };
    assert!(matches!(&error, LogError::NotTheSameLog(NotTheSameLog::Replaced { .. })), "{error}");
}

/// Each was written by the last EnvForge of its format. Format 1: six claim streams of two organizations, 52 commits of 44
/// commands, eight of them of two streams at once. Format 2: the same log with 20 more, of which its index does not know.
fn former_log(directory: &TestDir, format: u8) -> PathBuf {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/log_format_{format}.sqlite"));
    let path = directory.join("events.sqlite");
    std::fs::copy(golden, &path).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_of_a_former_format_is_brought_over_whole() {
    for (format, count) in [(1, 52), (2, 72)] {
        let directory = TestDir::new();
        former_log(&directory, format);
        for opened in 0..2 {
            brought_over(directory.path(), count, opened).await;
            assert_eq!(index_as_far_as_it_says(directory.path()).await, (count + opened + 1) as i64);
        }
    }
}

/// A crash in the middle of a batch left rows in the index of format 2 that it did not speak of, or only some of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_a_crash_of_the_former_format_cut_off_is_written_again() {
    for lost in [
        "DELETE FROM stream_commits",
        "DELETE FROM scope_commits WHERE position % 2 = 0",
        "DELETE FROM command_commits WHERE position > 10",
    ] {
        let directory = TestDir::new();
        former_log(&directory, 2);
        let mut connection = with_a_tool(directory.path()).await;
        sqlx::query("UPDATE indexed SET up_to = 0").execute(&mut connection).await.unwrap();
        sqlx::query(lost).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        brought_over(directory.path(), 72, 0).await;
        assert_eq!(index_as_far_as_it_says(directory.path()).await, 73);
    }
}

/// Opens a log of `count` numbered commits and of `more`, looks whether all is found, and appends one.
async fn brought_over(directory: &Path, count: usize, more: usize) {
    let owner = Arc::new(open_with(Config::new(directory)).await);
    let shared: SharedLog = owner.clone();
    let commits = all(&shared).await;
    assert_eq!(commits.len(), count + more);
    for (number, recorded) in (1..=count).zip(&commits) {
        assert_eq!((recorded.position, text(recorded)), (at(number as u64), number.to_string().as_str()));
    }
    everything_is_found(&shared).await;
    // Each command again, whole.
    let mut left = &commits[..count];
    while let Some(first) = left.first() {
        let of_command = left.iter().take_while(|other| other.commit.command == first.commit.command).count();
        let (now, later) = left.split_at(of_command);
        let again = now.iter().map(|recorded| (recorded.commit.clone(), Expectation::LastAt(Position::START)));
        let answer = shared.append(again.collect()).await.unwrap();
        assert!(answer.duplicate);
        assert_eq!(answer.positions, now.iter().map(|recorded| recorded.position).collect::<Vec<_>>());
        left = later;
    }
    // A stream goes on where it ended.
    let stream = commits[0].commit.stream.clone();
    let of_stream = shared.read_stream(&stream, Position::START, 100).await.unwrap();
    let last = of_stream.last().unwrap().position;
    let stale = shared.append(vec![(commit(&stream, "x"), Expectation::LastAt(at(1)))]).await;
    assert!(matches!(stale, Err(AppendError::Conflict { .. })), "{stale:?}");
    shared.append(vec![(commit(&stream, "new"), Expectation::LastAt(last))]).await.unwrap();
    close(shared, owner).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_of_the_first_format_with_a_missing_commit_is_left_as_it_is() {
    let directory = TestDir::new();
    former_log(&directory, 1);
    let mut connection = with_a_tool(directory.path()).await;
    sqlx::query("DELETE FROM log WHERE position = 7").execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    let error = SqliteLog::open(Config::new(directory.path())).await.err().unwrap();
    assert_eq!(error, LogError::NotTheSameLog(NotTheSameLog::Gap { after: at(6), found: at(8) }));
    let mut connection = with_a_tool(directory.path()).await;
    let format: i64 = sqlx::query_scalar("SELECT format FROM meta").fetch_one(&mut connection).await.unwrap();
    assert_eq!(format, 1);
    connection.close().await.unwrap();
}
