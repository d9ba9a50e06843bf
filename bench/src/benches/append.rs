//! Appends: JetStream beside a bare async-nats publisher; the embedded log beside one transaction an append and PostgreSQL

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use envforge_domain::commit::{Expectation, Position, StreamId};
use envforge_eventlog::jetstream::{self, JetStreamLog};
use envforge_eventlog::sqlite::{self, SqliteLog};
use envforge_eventlog::{SharedLog, schema};
use envforge_testkit::{NatsServer, TestDir};
use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, PgConnection, SqliteConnection};
use tokio::runtime::Runtime;
use tokio::sync::Mutex;
use uuid::Uuid;

use super::Extent;
use crate::commits;
use crate::machine::{self, Cores, cpu_of, own_cpu};
use crate::verdict::{Goal, Latencies, Series, Verdicts};

/// Appends that wait for their answer at a time: one a writer.
const IN_FLIGHT: usize = 64;
/// Streams that each writer appends to in turn.
const STREAMS: usize = 16;
/// Connections are made and caches filled before anything counts.
const WARM_UP: Duration = Duration::from_millis(500);

pub(crate) fn run(cores: &Cores, extent: &Extent, verdicts: &mut Verdicts) -> Result<()> {
    let sample = schema::encode(&commits::claim(commits::stream(0, 0)))?;
    println!(
        "append: one commit of {} bytes an append, {IN_FLIGHT} in flight, {STREAMS} streams a writer",
        sample.len()
    );
    println!("(all processes may use all cores; the kernel places them)");
    cores.use_all()?;
    let runtime = machine::runtime()?;
    jetstream(&runtime, extent, verdicts)?;
    embedded(&runtime, extent, verdicts)
}

/// What one turn came to.
struct Turn {
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    client_us: f64,
    server_us: Option<f64>,
}

/// The rows of one contender.
struct Rows {
    per_second: Series,
    p50: Series,
    p99: Series,
    client: Series,
    server: Series,
}

impl Rows {
    fn new(who: &str) -> Self {
        Self {
            per_second: Series::new(who, "appends/s"),
            p50: Series::new(format!("{who}: p50"), "ms"),
            p99: Series::new(format!("{who}: p99"), "ms"),
            client: Series::new(format!("{who}: processor, our process"), "us/append"),
            server: Series::new(format!("{who}: processor, server"), "us/append"),
        }
    }

    fn push(&mut self, turn: &Turn) {
        self.per_second.push(turn.per_second);
        self.p50.push(turn.p50_ms);
        self.p99.push(turn.p99_ms);
        self.client.push(turn.client_us);
        if let Some(server) = turn.server_us {
            self.server.push(server);
        }
    }

    fn print(&self) {
        for series in [&self.per_second, &self.p50, &self.p99, &self.client] {
            println!("{series}");
        }
        if self.server.median() > 0.0 {
            println!("{}", self.server);
        }
    }
}

fn jetstream(runtime: &Runtime, extent: &Extent, verdicts: &mut Verdicts) -> Result<()> {
    println!(
        "\nJetStream: one nats-server for both, R1, file storage, sync_interval 2m (its default) for both; expectation and message id on each message"
    );
    println!("(the publisher sends bytes made beforehand; ours builds and encodes each commit)");
    let server = NatsServer::start();
    let url = server.url();
    let (mut ours, mut bare) = (Rows::new("ours"), Rows::new("bare async-nats publisher"));
    for round in 0..extent.rounds {
        let name = format!("ours{round}");
        ours.push(&runtime.block_on(our_jetstream(&url, &name, extent.turn(), server.id()))?);
        let name = format!("bare{round}");
        bare.push(&runtime.block_on(bare_jetstream(&url, &name, extent.turn(), server.id()))?);
    }
    ours.print();
    bare.print();
    let ratio = ours.per_second.median() / bare.per_second.median();
    verdicts.judge("JetStream appends, ours / bare publisher", ratio, "x", Goal::AtLeast(0.7));
    Ok(())
}

fn log_config(url: &str, name: &str) -> jetstream::Config {
    jetstream::Config { stream: name.to_uppercase(), subject_prefix: name.to_owned(), ..jetstream::Config::new(url) }
}

async fn our_jetstream(url: &str, name: &str, turn: Duration, server: u32) -> Result<Turn> {
    let log: SharedLog = Arc::new(JetStreamLog::open(log_config(url, name)).await?);
    drive(turn, Some(server), append_to(log)).await
}

/// Appends to a log of ours, as `drive` wants it.
fn append_to(log: SharedLog) -> impl AsyncAppend {
    let streams = Arc::new(all_streams());
    move |writer: usize, stream: usize, last: u64| {
        let (log, streams) = (Arc::clone(&log), Arc::clone(&streams));
        async move {
            let commit = commits::claim(streams[writer][stream].clone());
            let appended = log.append(vec![(commit, Expectation::LastAt(Position::new(last)))]).await?;
            Ok(appended.last().get())
        }
    }
}

fn all_streams() -> Vec<Vec<StreamId>> {
    (0..IN_FLIGHT).map(|writer| (0..STREAMS).map(|stream| commits::stream(writer, stream)).collect()).collect()
}

async fn bare_jetstream(url: &str, name: &str, turn: Duration, server: u32) -> Result<Turn> {
    // Makes the stream with the very same settings.
    drop(JetStreamLog::open(log_config(url, name)).await?);
    let context = async_nats::jetstream::new(async_nats::connect(url).await?);
    let subjects: Arc<Vec<Vec<(String, Bytes)>>> = Arc::new(
        all_streams()
            .into_iter()
            .map(|streams| {
                let prepare = |stream: StreamId| {
                    let subject = format!("{name}.{}", stream.subject());
                    Ok((subject, schema::encode(&commits::claim(stream))?))
                };
                streams.into_iter().map(prepare).collect::<Result<_>>()
            })
            .collect::<Result<_>>()?,
    );
    let stream_name = name.to_uppercase();
    let append = move |writer: usize, stream: usize, last: u64| {
        let (context, subjects, stream_name) = (context.clone(), Arc::clone(&subjects), stream_name.clone());
        async move {
            let (subject, payload) = &subjects[writer][stream];
            let message = PublishMessage::build()
                .payload(payload.clone())
                .message_id(Uuid::now_v7().simple().to_string())
                .expected_stream(stream_name)
                .expected_last_subject_sequence(last);
            Ok(context.send_publish(subject.clone(), message).await?.await?.sequence)
        }
    };
    drive(turn, Some(server), append).await
}

fn embedded(runtime: &Runtime, extent: &Extent, verdicts: &mut Verdicts) -> Result<()> {
    println!("\nEmbedded log: SQLite, WAL, synchronous=FULL, group commit; one file each on the same disk");
    println!(
        "PostgreSQL: INSERT with unique (stream, version), one connection a writer, fsync and synchronous_commit on"
    );
    let (mut ours, mut single, mut alone, mut postgres) = (
        Rows::new("ours, group commit"),
        Rows::new("SQLite, one transaction an append"),
        Rows::new("ours, 1 in flight (for information)"),
        Rows::new("PostgreSQL, plain INSERT"),
    );
    let server = machine::usual_postgres();
    for round in 0..extent.rounds {
        let turn = extent.turn();
        let dir = TestDir::new();
        ours.push(&runtime.block_on(our_sqlite(dir.path(), turn, IN_FLIGHT))?);
        let dir = TestDir::new();
        single.push(&runtime.block_on(single_sqlite(dir.path(), turn))?);
        let url = server.create_database(&format!("round_{round}"));
        postgres.push(&runtime.block_on(plain_postgres(&url, turn))?);
        let dir = TestDir::new();
        alone.push(&runtime.block_on(our_sqlite(dir.path(), turn, 1))?);
    }
    for rows in [&ours, &single, &postgres, &alone] {
        rows.print();
    }
    let rate = ours.per_second.median();
    let ratio = rate / single.per_second.median();
    verdicts.judge("embedded appends, grouped / one transaction each", ratio, "x", Goal::AtLeast(12.0));
    let ratio = rate / postgres.per_second.median();
    verdicts.judge("embedded appends / PostgreSQL inserts", ratio, "x", Goal::AtLeast(4.0));
    Ok(())
}

async fn our_sqlite(dir: &Path, turn: Duration, in_flight: usize) -> Result<Turn> {
    let log: SharedLog = Arc::new(SqliteLog::open(sqlite::Config::new(dir.join("log"))).await?);
    drive_some(in_flight, turn, None, append_to(log)).await
}

/// The least that a log without group commit does: one INSERT, one commit, one sync.
async fn single_sqlite(dir: &Path, turn: Duration) -> Result<Turn> {
    let mut connection: SqliteConnection = SqliteConnectOptions::new()
        .filename(dir.join("single.sqlite"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .pragma("wal_autocheckpoint", "4000")
        .disable_statement_logging()
        .connect()
        .await?;
    sqlx::raw_sql(
        "CREATE TABLE log (position INTEGER PRIMARY KEY, stream TEXT NOT NULL, version INTEGER NOT NULL, command BLOB NOT NULL UNIQUE,
         payload BLOB NOT NULL, UNIQUE (stream, version)) STRICT",
    )
    .execute(&mut connection)
    .await?;
    let connection = Arc::new(Mutex::new(connection));
    let prepared = Arc::new(prepared()?);
    let append = move |writer: usize, stream: usize, last: u64| {
        let (connection, prepared) = (Arc::clone(&connection), Arc::clone(&prepared));
        async move {
            let (subject, payload) = &prepared[writer][stream];
            let insert = sqlx::query("INSERT INTO log (stream, version, command, payload) VALUES (?, ?, ?, ?)");
            let insert = insert.bind(subject).bind(last.cast_signed() + 1).bind(Uuid::now_v7().as_bytes().to_vec());
            insert.bind(&payload[..]).execute(&mut *connection.lock().await).await?;
            Ok(last + 1)
        }
    };
    drive(turn, None, append).await
}

async fn plain_postgres(url: &str, turn: Duration) -> Result<Turn> {
    let options: PgConnectOptions = url.parse().context("the server's address")?;
    let options = options.disable_statement_logging();
    let mut connections: Vec<Mutex<PgConnection>> = Vec::with_capacity(IN_FLIGHT);
    for _ in 0..IN_FLIGHT {
        connections.push(Mutex::new(options.connect().await?));
    }
    sqlx::raw_sql(
        "CREATE TABLE log (position BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, stream TEXT NOT NULL, version BIGINT NOT NULL,
         command BYTEA NOT NULL, payload BYTEA NOT NULL, UNIQUE (stream, version))",
    )
    .execute(&mut *connections[0].lock().await)
    .await?;
    let (connections, prepared) = (Arc::new(connections), Arc::new(prepared()?));
    let closing = Arc::clone(&connections);
    let append = move |writer: usize, stream: usize, last: u64| {
        let (connections, prepared) = (Arc::clone(&connections), Arc::clone(&prepared));
        async move {
            let (subject, payload) = &prepared[writer][stream];
            let insert = sqlx::query("INSERT INTO log (stream, version, command, payload) VALUES ($1, $2, $3, $4)");
            let insert = insert.bind(subject).bind(last.cast_signed() + 1).bind(Uuid::now_v7().as_bytes().to_vec());
            insert.bind(&payload[..]).execute(&mut *connections[writer].lock().await).await?;
            Ok(last + 1)
        }
    };
    let outcome = drive(turn, None, append).await;
    for connection in Arc::into_inner(closing).into_iter().flatten() {
        connection.into_inner().close().await?;
    }
    outcome
}

/// Subject and stored bytes of each stream's commits, made beforehand.
fn prepared() -> Result<Vec<Vec<(String, Bytes)>>> {
    let prepare = |stream: StreamId| Ok((stream.subject(), schema::encode(&commits::claim(stream))?));
    all_streams().into_iter().map(|streams| streams.into_iter().map(prepare).collect()).collect()
}

/// Appends to stream number two of writer number one, whose last commit stands at number three; answers where the new one stands.
trait AsyncAppend: Fn(usize, usize, u64) -> Self::Answer + Clone + Send + 'static {
    type Answer: Future<Output = Result<u64>> + Send;
}

impl<A, F: Future<Output = Result<u64>> + Send> AsyncAppend for A
where
    A: Fn(usize, usize, u64) -> F + Clone + Send + 'static,
{
    type Answer = F;
}

async fn drive(turn: Duration, server: Option<u32>, append: impl AsyncAppend) -> Result<Turn> {
    drive_some(IN_FLIGHT, turn, server, append).await
}

/// Writers that append one after the other, for the length of a turn after the warm-up.
async fn drive_some(in_flight: usize, turn: Duration, server: Option<u32>, append: impl AsyncAppend) -> Result<Turn> {
    let (counting, over, done) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..in_flight {
        let (append, counting, over, done) =
            (append.clone(), Arc::clone(&counting), Arc::clone(&over), Arc::clone(&done));
        writers.spawn(async move {
            let (mut lasts, mut latencies, mut next) = ([0; STREAMS], Vec::with_capacity(16_384), 0);
            while !over.load(Ordering::Relaxed) {
                let begun = Instant::now();
                lasts[next] = append(writer, next, lasts[next]).await?;
                if counting.load(Ordering::Relaxed) {
                    latencies.push(begun.elapsed());
                    done.fetch_add(1, Ordering::Relaxed);
                }
                next = (next + 1) % STREAMS;
            }
            Ok::<_, anyhow::Error>(latencies)
        });
    }
    drop(append);
    tokio::time::sleep(WARM_UP).await;
    let (begun, own_before) = (Instant::now(), own_cpu());
    let server_before = server.map(cpu_of).transpose()?;
    counting.store(true, Ordering::Relaxed);
    tokio::time::sleep(turn).await;
    // Read at one moment, while all writers still work: neither a slow start nor the last answers count.
    let (appends, elapsed, own_after) = (done.load(Ordering::Relaxed), begun.elapsed(), own_cpu());
    let server_after = server.map(cpu_of).transpose()?;
    over.store(true, Ordering::Relaxed);
    let mut latencies = Vec::new();
    while let Some(joined) = writers.join_next().await {
        latencies.extend(joined??);
    }
    let latencies = Latencies::new(latencies);
    let per_append = |used: Duration| used.as_secs_f64() * 1e6 / appends.max(1) as f64;
    Ok(Turn {
        per_second: appends as f64 / elapsed.as_secs_f64(),
        p50_ms: latencies.percentile_ms(50.0),
        p99_ms: latencies.percentile_ms(99.0),
        client_us: per_append(own_after.saturating_sub(own_before)),
        server_us: server_after.zip(server_before).map(|(after, before)| per_append(after.saturating_sub(before))),
    })
}
