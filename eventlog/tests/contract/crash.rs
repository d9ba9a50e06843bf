//! kill -9 at any moment: what was acknowledged is there, once.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use envforge_domain::commit::{Commit, Expectation, Position, Recorded};
use envforge_domain::ids::CommandId;
use envforge_eventlog::sqlite::Config;
use envforge_eventlog::{AppendError, LogError, SharedLog};
use tokio::task::JoinSet;

use crate::commits::{all, claim, commit, text};
use crate::site::{Site, open, open_with};

const ADDRESS: &str = "ENVFORGE_CONTRACT_WRITER_ADDRESS";
const APPENDS: &str = "ENVFORGE_CONTRACT_WRITER_APPENDS";
const BATCH: &str = "ENVFORGE_CONTRACT_WRITER_BATCH";
/// Of a writing process that is given a batch: the journal turns over and over.
const JOURNAL_BYTES: u64 = 64 * 1024;
const WRITERS: usize = 8;

/// An append that was acknowledged to its caller.
#[derive(Clone, Debug)]
pub struct Acknowledged {
    pub command: CommandId,
    pub positions: Vec<Position>,
}

/// One writer's loop: numbers its commits, appends every fourth one together with one of a second stream, and repeats
/// an append whose fate is unknown until it gets an answer.
pub async fn write(log: &SharedLog, writer: usize, left: &AtomicU64, acknowledge: impl FnMut(Acknowledged)) {
    write_in_parts(log, writer, left, 2, acknowledge).await;
}

/// The same, with other than two streams in every fourth append.
pub async fn write_in_parts(
    log: &SharedLog,
    writer: usize,
    left: &AtomicU64,
    parts_max: usize,
    mut acknowledge: impl FnMut(Acknowledged),
) {
    let streams = [claim(&format!("w{writer}")), claim(&format!("w{writer}-more"))];
    let mut state = Vec::new();
    for stream in &streams {
        let last = loop {
            match log.last_of_stream(stream).await {
                Ok(last) => break last,
                Err(error) => must_be_out_of_reach(error.into()).await,
            }
        };
        let next = last.as_ref().map_or(0, |last| text(last).parse::<u64>().unwrap() + 1);
        state.push((next, last.map_or(Position::START, |last| last.position)));
    }
    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
        let parts = if state[0].0 % 4 == 3 { parts_max } else { 1 };
        let mut commits: Vec<(Commit, Expectation)> = Vec::new();
        for (stream, (next, last)) in streams.iter().zip(&state).take(parts) {
            let mut commit = commit(stream, &next.to_string());
            commit.command = commits.first().map_or(commit.command, |(first, _)| first.command);
            commits.push((commit, Expectation::LastAt(*last)));
        }
        let appended = loop {
            match log.append(commits.clone()).await {
                Ok(appended) => break appended,
                Err(error) => must_be_out_of_reach(error).await,
            }
        };
        for ((next, last), position) in state.iter_mut().zip(&appended.positions) {
            (*next, *last) = (*next + 1, *position);
        }
        acknowledge(Acknowledged { command: commits[0].0.command, positions: appended.positions });
    }
}

/// Nobody else writes these streams: only a log out of reach may stand in the way.
async fn must_be_out_of_reach(error: AppendError) {
    match error {
        AppendError::Unknown | AppendError::Log(LogError::Unavailable(_)) => tokio::task::yield_now().await,
        other => panic!("{other}"),
    }
}

/// INVARIANT: each acknowledged append stands at its positions, no command stands twice in a stream, no number is
/// missing or doubled.
pub fn verify(commits: &[Recorded], acknowledged: &[Acknowledged]) {
    let by_position: HashMap<Position, &Recorded> =
        commits.iter().map(|recorded| (recorded.position, recorded)).collect();
    for Acknowledged { command, positions } in acknowledged {
        for position in positions {
            let stored = by_position.get(position).unwrap_or_else(|| panic!("{command} at {position} is lost"));
            assert_eq!(stored.commit.command, *command, "another commit stands at {position}");
        }
    }
    let (mut seen, mut next_of) = (HashSet::new(), HashMap::new());
    for (index, recorded) in (1..).zip(commits) {
        assert_eq!(recorded.position, Position::new(index));
        let stream = recorded.commit.stream.key();
        assert!(seen.insert((recorded.commit.command, stream)), "{} stands twice", recorded.commit.command);
        let next: &mut u64 = next_of.entry(stream).or_default();
        assert_eq!(text(recorded), next.to_string(), "in stream {stream}");
        *next += 1;
    }
}

pub fn spawn_writer(address: &str, appends: u64, batch: Option<usize>) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "crash::a_writing_process_acknowledges_what_it_appended", "--nocapture"])
        .env(ADDRESS, address)
        .env(APPENDS, appends.to_string())
        .stdout(Stdio::piped());
    if let Some(commits) = batch {
        command.env(BATCH, commits.to_string());
    }
    command.spawn().unwrap()
}

/// What a writing process said until it was gone; it is killed after `kill_after` acknowledgements.
pub fn read_acknowledged(mut child: Child, kill_after: Option<usize>) -> Vec<Acknowledged> {
    let mut acknowledged = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let Some(rest) = line.strip_prefix("ack ") else { continue };
        let mut words = rest.split(' ');
        // The last line may be cut off: it was not acknowledged to anybody.
        let Some(Ok(command)) = words.next().map(CommandId::from_str) else { continue };
        let Some(positions) = words.next().and_then(|text| text.strip_suffix(';')) else { continue };
        let positions = positions.split(',').map(|text| Position::new(text.parse().unwrap())).collect();
        acknowledged.push(Acknowledged { command, positions });
        if Some(acknowledged.len()) == kill_after {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    acknowledged
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writing_process_acknowledges_what_it_appended() {
    if let Ok(address) = std::env::var(ADDRESS) {
        return be_the_writing_process(&address, std::env::var(APPENDS).unwrap().parse().unwrap()).await;
    }
    let site = Site::sqlite();
    let child = spawn_writer(&site.address(), 20, None);
    let acknowledged = tokio::task::spawn_blocking(|| read_acknowledged(child, None)).await.unwrap();
    assert_eq!(acknowledged.len(), 20);
    verify(&all(&site.open().await).await, &acknowledged);
}

async fn be_the_writing_process(address: &str, appends: u64) {
    let log: SharedLog = match std::env::var(BATCH) {
        Ok(commits) => {
            let batch_commits = commits.parse().unwrap();
            Arc::new(open_with(Config { batch_commits, journal_bytes: JOURNAL_BYTES, ..Config::new(address) }).await)
        }
        Err(_) => open(address).await,
    };
    let left = Arc::new(AtomicU64::new(appends));
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let (log, left) = (log.clone(), Arc::clone(&left));
        writers.spawn(async move {
            write(&log, writer, &left, |Acknowledged { command, positions }| {
                let positions: Vec<String> = positions.iter().map(ToString::to_string).collect();
                // One write: lines of several writers never mix, and a killed process leaves whole lines or none.
                std::io::stdout().write_all(format!("ack {command} {};\n", positions.join(",")).as_bytes()).unwrap();
            })
            .await;
        });
    }
    writers.join_all().await;
}

pub async fn every_acknowledged_commit_survives_kill_9_of_the_writer(site: Site) {
    let mut acknowledged = Vec::new();
    for _ in 0..6 {
        let child = spawn_writer(&site.address(), u64::MAX, None);
        let kill_after = rand::random_range(1..400);
        let said = tokio::task::spawn_blocking(move || read_acknowledged(child, Some(kill_after))).await.unwrap();
        assert!(said.len() >= kill_after, "the writing process ended by itself after {} appends", said.len());
        acknowledged.extend(said);
        verify(&all(&site.open().await).await, &acknowledged);
    }
}

/// The file is written behind the journal: it is killed in the middle of batches and turns, and goes on after them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_between_the_journal_and_the_file_loses_and_doubles_nothing() {
    let site = Site::sqlite();
    let mut acknowledged = Vec::new();
    for _ in 0..8 {
        let child = spawn_writer(&site.address(), u64::MAX, Some(120));
        let kill_after = rand::random_range(1..500);
        let said = tokio::task::spawn_blocking(move || read_acknowledged(child, Some(kill_after))).await.unwrap();
        acknowledged.extend(said);
        let log = site.open().await;
        let commits = all(&log).await;
        verify(&commits, &acknowledged);
        for writer in 0..WRITERS {
            for stream in [claim(&format!("w{writer}")), claim(&format!("w{writer}-more"))] {
                let expected: Vec<_> =
                    commits.iter().filter(|recorded| recorded.commit.stream == stream).cloned().collect();
                assert_eq!(log.read_stream(&stream, Position::START, usize::MAX).await.unwrap(), expected);
            }
        }
        // What was acknowledged is known again, whichever of file and tail has it.
        for recorded in commits.iter().rev().take(200) {
            let again = vec![(recorded.commit.clone(), Expectation::LastAt(Position::START))];
            let answer = log.append(again).await.unwrap();
            assert!(answer.duplicate && answer.positions[0] <= recorded.position, "{}", recorded.commit.command);
        }
    }
}
