//! How many commits a second a log takes, and how fast it is read again, side by side with the bare client.
//!
//! `append_rate sqlite DIRECTORY [IN_FLIGHT [APPENDS]]`, `append_rate jetstream nats://HOST:PORT [IN_FLIGHT [APPENDS]]`.
//! Build it with `--release`. The bare publisher sends the same messages with the same headers and checks nothing. Guarded
//! appends are those of people: the command's commit, and two beside it that each guard a stream of the person's rights.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::message::PublishMessage;
use envforge_domain::claim::ClaimEvent;
use envforge_domain::commit::{Actor, Commit, Expectation, Position, Standing, StreamId, StreamKind, Surface};
use envforge_domain::event::Event;
use envforge_domain::ids::{CommandId, CommitId, CorrelationId, OrgId};
use envforge_domain::time::UnixMillis;
use envforge_eventlog::jetstream::JetStreamLog;
use envforge_eventlog::sqlite::SqliteLog;
use envforge_eventlog::{Checkpoint, Filter, Follow, SharedLog, jetstream, schema, sqlite};
use futures_util::StreamExt;
use uuid::Uuid;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Streams of each writer.
const STREAMS: usize = 16;

fn commit(stream: StreamId) -> Commit {
    Commit {
        id: CommitId::from_uuid(Uuid::now_v7()),
        command: CommandId::from_uuid(Uuid::now_v7()),
        request_digest: None,
        stream,
        actor: Actor::Anonymous,
        surface: Surface::Api,
        correlation: CorrelationId::from_uuid(Uuid::now_v7()),
        causation: None,
        decided_at: UnixMillis::new(1_795_000_000_000),
        events: vec![Event::Claim(ClaimEvent::Taken { holder: "x".repeat(120) })],
    }
}

fn streams(writer: usize) -> Vec<(StreamId, Position)> {
    let org = OrgId::from_uuid(Uuid::from_u128(writer as u128 % 7 + 1));
    (0..STREAMS)
        .map(|_| {
            let key = Uuid::now_v7().simple().to_string();
            (StreamId::new(org, StreamKind::Claim, &key).expect("hexadecimal digits are a key"), Position::START)
        })
        .collect()
}

/// Lets `in_flight` writers append until `appends` are done; prints the rate.
async fn measure<F>(
    what: &str,
    in_flight: usize,
    appends: u64,
    append: impl Fn(StreamId, Position) -> F + Clone + Send + 'static,
) -> Result<(), Error>
where
    F: Future<Output = Result<Position, Error>> + Send,
{
    let left = Arc::new(AtomicU64::new(appends));
    let started = Instant::now();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..in_flight {
        let (left, append) = (Arc::clone(&left), append.clone());
        writers.spawn(async move {
            let (mut streams, mut latencies) = (streams(writer), Vec::new());
            let mut turn = 0;
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                let (stream, last) = &mut streams[turn % STREAMS];
                let begun = Instant::now();
                *last = append(stream.clone(), *last).await?;
                latencies.push(begun.elapsed());
                turn += 1;
            }
            Ok::<_, Error>(latencies)
        });
    }
    let mut latencies: Vec<Duration> = Vec::new();
    while let Some(joined) = writers.join_next().await {
        latencies.extend(joined??);
    }
    let elapsed = started.elapsed();
    latencies.sort_unstable();
    let percentile = |percent: usize| latencies[(latencies.len() - 1) * percent / 100].as_micros();
    let rate = appends as f64 / elapsed.as_secs_f64();
    println!(
        "{what}: {rate:.0} appends/s, {in_flight} in flight, p50 {} us, p99 {} us",
        percentile(50),
        percentile(99)
    );
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [backend, place, rest @ ..] = &arguments[..] else { return Err("append_rate sqlite DIRECTORY".into()) };
    let in_flight: usize = rest.first().map_or(Ok(64), |text| text.parse())?;
    let appends: u64 = rest.get(1).map_or(Ok(100_000), |text| text.parse())?;
    let log: SharedLog = match backend.as_str() {
        "sqlite" => Arc::new(SqliteLog::open(sqlite::Config::new(place)).await?),
        "jetstream" => Arc::new(JetStreamLog::open(jetstream::Config::new(place)).await?),
        other => return Err(format!("unknown backend {other}").into()),
    };
    for _ in 0..3 {
        if backend == "jetstream" {
            bare_append(place, in_flight, appends).await?;
        }
        let log = Arc::clone(&log);
        measure("log", in_flight, appends, move |stream, last| {
            let log = Arc::clone(&log);
            async move { Ok(log.append(vec![(commit(stream), Expectation::LastAt(last))]).await?.last()) }
        })
        .await?;
    }
    let rights = rights(&log).await?;
    // A batch costs a lone JetStream server a hundred times as much as a single message.
    let guarded_appends = if backend == "jetstream" { appends / 100 } else { appends };
    for _ in 0..3 {
        let (log, rights) = (Arc::clone(&log), Arc::clone(&rights));
        measure("log, guarded", in_flight, guarded_appends, move |stream, last| {
            let (log, rights) = (Arc::clone(&log), Arc::clone(&rights));
            async move { Ok(log.append(guarded(commit(stream), last, &rights)).await?.positions[0]) }
        })
        .await?;
    }
    for _ in 0..3 {
        if backend == "jetstream" {
            bare_replay(place).await?;
        }
        let started = Instant::now();
        let mut follower = log.follow(Checkpoint::START, Filter::everything()).await?;
        let mut commits = 0;
        while let Some(Follow::Commit { .. }) = follower.next().await.transpose()? {
            commits += 1;
        }
        println!("log: {:.0} commits/s followed", f64::from(commits) / started.elapsed().as_secs_f64());
    }
    Ok(())
}

/// Two streams that people's rights rest on, and where they stand.
async fn rights(log: &SharedLog) -> Result<Arc<[Standing]>, Error> {
    let mut rights = Vec::new();
    for (stream, _) in streams(0).into_iter().take(2) {
        let appended = log.append(vec![(commit(stream.clone()), Expectation::LastAt(Position::START))]).await?;
        rights.push(Standing { stream, last: appended.last() });
    }
    Ok(rights.into())
}

fn guarded(command: Commit, last: Position, rights: &[Standing]) -> Vec<(Commit, Expectation)> {
    let beside = rights.iter().map(|standing| {
        let key = format!("beside-{}", standing.stream.key());
        let stream = StreamId::new(command.stream.org(), StreamKind::Claim, &key).expect("a key with a word before it");
        (Commit { stream, ..command.clone() }, Expectation::Guards(standing.clone()))
    });
    let beside: Vec<_> = beside.collect();
    [(command, Expectation::LastAt(last))].into_iter().chain(beside).collect()
}

async fn bare_append(url: &str, in_flight: usize, appends: u64) -> Result<(), Error> {
    let context = async_nats::jetstream::new(async_nats::connect(url).await?);
    measure("bare publisher", in_flight, appends, move |stream, last| {
        let context = context.clone();
        async move {
            let commit = commit(stream);
            let message = PublishMessage::build()
                .payload(schema::encode(&commit)?)
                .message_id(commit.command.to_string())
                .expected_last_subject_sequence(last.get());
            let subject = format!("envforge.{}", commit.stream.subject());
            Ok(Position::new(context.send_publish(subject, message).await?.await?.sequence))
        }
    })
    .await
}

/// A pull consumer that decodes each message as JSON, and no more.
async fn bare_replay(url: &str) -> Result<(), Error> {
    let context = async_nats::jetstream::new(async_nats::connect(url).await?);
    let stream = context.get_stream("ENVFORGE").await?;
    let end = stream.cached_info().state.last_sequence;
    let config = pull::Config { ack_policy: AckPolicy::None, memory_storage: true, ..pull::Config::default() };
    let consumer: PullConsumer = stream.create_consumer(config).await?;
    let started = Instant::now();
    let mut messages = consumer.stream().max_messages_per_batch(2_000).messages().await?;
    for _ in 0..end {
        let message = messages.next().await.ok_or("the consumer ended")??;
        let _: serde_json::Value = serde_json::from_slice(&message.payload)?;
    }
    println!("bare consumer: {:.0} commits/s decoded", end as f64 / started.elapsed().as_secs_f64());
    Ok(())
}
