//! How many commits a second a log takes: `append_rate sqlite DIRECTORY [IN_FLIGHT [APPENDS]]`, or
//! `append_rate jetstream nats://HOST:PORT [IN_FLIGHT [APPENDS]]`. Build it with `--release`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use envforge_domain::claim::ClaimEvent;
use envforge_domain::commit::{Actor, Commit, Expectation, Position, StreamId, StreamKind, Surface};
use envforge_domain::event::Event;
use envforge_domain::ids::{CommandId, CommitId, CorrelationId, OrgId};
use envforge_domain::time::UnixMillis;
use envforge_eventlog::SharedLog;
use envforge_eventlog::sqlite::{Config, SqliteLog};
use uuid::Uuid;

fn commit(stream: StreamId, text: &str) -> Commit {
    Commit {
        id: CommitId::from_uuid(Uuid::now_v7()),
        command: CommandId::from_uuid(Uuid::now_v7()),
        request_digest: None,
        stream,
        actor: Actor::Anonymous,
        surface: Surface::Api,
        correlation: CorrelationId::from_uuid(Uuid::now_v7()),
        causation: None,
        decided_at: UnixMillis::new(1_790_000_000_000),
        events: vec![Event::Claim(ClaimEvent::Taken { holder: text.to_owned() })],
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [backend, place, rest @ ..] = &arguments[..] else { return Err("append_rate sqlite DIRECTORY".into()) };
    let in_flight: usize = rest.first().map_or(Ok(64), |text| text.parse())?;
    let appends: u64 = rest.get(1).map_or(Ok(100_000), |text| text.parse())?;
    let log: SharedLog = match backend.as_str() {
        "sqlite" => Arc::new(SqliteLog::open(Config::new(place)).await?),
        other => return Err(format!("unknown backend {other}").into()),
    };
    let left = Arc::new(AtomicU64::new(appends));
    let started = Instant::now();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..in_flight {
        let (log, left) = (Arc::clone(&log), Arc::clone(&left));
        writers.spawn(async move {
            let org = OrgId::from_uuid(Uuid::from_u128(writer as u128 % 7 + 1));
            let mut latencies_us = Vec::new();
            let mut streams: Vec<(StreamId, Position)> = (0..16)
                .map(|_| {
                    (
                        StreamId::new(org, StreamKind::Claim, &Uuid::now_v7().simple().to_string()).expect("hex"),
                        Position::START,
                    )
                })
                .collect();
            let text = "x".repeat(120);
            let mut turn = 0;
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                turn += 1;
                let index = turn % streams.len();
                let (stream, last) = &mut streams[index];
                let begun = Instant::now();
                let appended = log
                    .append(vec![(commit(stream.clone(), &text), Expectation::LastAt(*last))])
                    .await
                    .expect("nobody else writes this stream");
                latencies_us.push(begun.elapsed().as_micros());
                *last = appended.last();
            }
            latencies_us
        });
    }
    let mut latencies_us: Vec<u128> = writers.join_all().await.into_iter().flatten().collect();
    let elapsed = started.elapsed();
    latencies_us.sort_unstable();
    let percentile = |percent: usize| latencies_us[(latencies_us.len() - 1) * percent / 100];
    println!(
        "{backend}: {appends} appends, {in_flight} in flight: {:.0}/s, p50 {} us, p99 {} us",
        appends as f64 / elapsed.as_secs_f64(),
        percentile(50),
        percentile(99)
    );
    Ok(())
}
