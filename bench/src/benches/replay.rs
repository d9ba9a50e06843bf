//! Replays: the hot views from JetStream beside a bare pull consumer; the SQL read models on SQLite and PostgreSQL

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use async_nats::jetstream::consumer::{AckPolicy, pull};
use envforge_domain::commit::{Actor, Position, Recorded};
use envforge_eventlog::jetstream::{self, JetStreamLog};
use envforge_eventlog::{Checkpoint, EventLog, Filter, Follow, SharedLog, schema};
use envforge_projections::Hot;
use envforge_projections::sql::projector;
use envforge_projections::sql::{AuditFilter, Database, Direction, Limit, ModelName};
use envforge_testkit::{NatsOptions, NatsServer, TestDir};
use futures_util::StreamExt;
use serde::Deserialize;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use super::Extent;
use crate::commits::{self, History};
use crate::machine::{self, Cores, cpu_of, own_cpu};
use crate::memory_log::MemoryLog;
use crate::verdict::{Goal, Series, Verdicts};

const STREAM: &str = "HISTORY";
/// As our own follower asks for them.
const PULL_MESSAGES: usize = 2_000;
const PULL_BYTES: usize = 8 * 1024 * 1024;
/// Messages on their way while the log is filled.
const FILL_IN_FLIGHT: usize = 1_000;
/// Of so many commits one is by a person, whose rows the audit is asked for; the rest are by a part of EnvForge.
const RARE_EVERY: u64 = 100_000;
/// How often each page of the audit is asked for.
const PAGES: usize = 15;
const DEADLINE: Duration = Duration::from_secs(600);

pub(crate) fn run(cores: &Cores, extent: &Extent, verdicts: &mut Verdicts) -> Result<()> {
    println!("replay: {} commits of one organization at work (workspaces, links, sessions, runtimes)", extent.commits);
    println!("(all processes may use all cores; the kernel places them)");
    cores.use_all()?;
    let runtime = machine::runtime()?;
    if extent.model.is_none() {
        hot_views(&runtime, extent, verdicts)?;
    }
    read_models(&runtime, extent, verdicts)
}

fn hot_views(runtime: &Runtime, extent: &Extent, verdicts: &mut Verdicts) -> Result<()> {
    println!("\nHot views from JetStream: one nats-server for all");
    let server = NatsServer::start_with(&NatsOptions::default());
    let url = server.url();
    let commits = extent.commits;
    let bytes = runtime.block_on(fill(&url, commits))?;
    println!("log filled: {:.0} bytes a commit on average", bytes as f64 / commits as f64);
    let mut rates = [
        Series::new("bare pull consumer, bytes only", "commits/s"),
        Series::new("bare pull consumer, JSON decoded", "commits/s"),
        Series::new("ours: log followed, commits decoded", "commits/s"),
        Series::new("ours: hot views folded", "commits/s"),
    ];
    let mut processor = rates.clone().map(|series| {
        let name = series.to_string();
        Series::new(format!("{}: processor", name.trim().split("  ").next().unwrap_or_default()), "us/commit")
    });
    let mut on_server = Series::new("nats-server: processor, for our hot views", "us/commit");
    for _ in 0..extent.rounds {
        for contender in 0..rates.len() {
            let (before, server_before) = (own_cpu(), cpu_of(server.id())?);
            let elapsed = runtime.block_on(async {
                match contender {
                    0 => bare(&url, commits, |_| Ok(())).await,
                    1 => bare(&url, commits, decode_plainly).await,
                    2 => followed(&url, commits).await,
                    _ => folded(&url, commits).await,
                }
            })?;
            rates[contender].push(commits as f64 / elapsed.as_secs_f64());
            processor[contender].push((own_cpu() - before).as_secs_f64() * 1e6 / commits as f64);
            if contender == 3 {
                on_server.push((cpu_of(server.id())? - server_before).as_secs_f64() * 1e6 / commits as f64);
            }
        }
    }
    rates.iter().chain(&processor).chain([&on_server]).for_each(|series| println!("{series}"));
    let ratio = rates[3].median() / rates[1].median();
    verdicts.judge("hot views / bare consumer that decodes JSON", ratio, "x", Goal::AtLeast(0.6));
    Ok(())
}

fn config(url: &str) -> jetstream::Config {
    jetstream::Config { stream: STREAM.to_owned(), ..jetstream::Config::new(url) }
}

/// Fills the log as fast as the server takes it; answers the bytes of all commits.
async fn fill(url: &str, commits: u64) -> Result<u64> {
    drop(JetStreamLog::open(config(url)).await?);
    let client = async_nats::connect(url).await?;
    let context = async_nats::jetstream::new(client);
    let mut waiting = std::collections::VecDeque::with_capacity(FILL_IN_FLIGHT);
    let mut bytes = 0;
    for commit in History::new(commits) {
        let commit = commit?;
        let payload = schema::encode(&commit)?;
        bytes += payload.len() as u64;
        waiting.push_back(context.publish(format!("envforge.{}", commit.stream.subject()), payload).await?);
        if waiting.len() >= FILL_IN_FLIGHT
            && let Some(oldest) = waiting.pop_front()
        {
            oldest.await?;
        }
    }
    for acknowledgement in waiting {
        acknowledgement.await?;
    }
    Ok(bytes)
}

/// What a consumer without our schemas would decode: the envelope, and the events' data as they are.
#[derive(Deserialize)]
struct Envelope {
    id: String,
    command: String,
    stream: String,
    actor: String,
    decided_at: u64,
    events: Vec<PlainEvent>,
}

#[derive(Deserialize)]
struct PlainEvent {
    r#type: String,
    data: serde_json::Value,
}

fn decode_plainly(payload: &[u8]) -> Result<()> {
    let envelope: Envelope = serde_json::from_slice(payload)?;
    // All of it is looked at, so that none of it can be left out by the compiler.
    std::hint::black_box((envelope.id, envelope.command, envelope.stream, envelope.actor, envelope.decided_at));
    for event in envelope.events {
        std::hint::black_box((event.r#type, event.data));
    }
    Ok(())
}

async fn bare(url: &str, commits: u64, each: impl Fn(&[u8]) -> Result<()>) -> Result<Duration> {
    let context = async_nats::jetstream::new(async_nats::connect(url).await?);
    let stream = context.get_stream(STREAM).await?;
    let begun = Instant::now();
    let config = pull::Config {
        ack_policy: AckPolicy::None,
        memory_storage: true,
        num_replicas: 1,
        inactive_threshold: Duration::from_secs(60),
        ..pull::Config::default()
    };
    let consumer = stream.create_consumer(config).await?;
    let messages = consumer.stream().max_messages_per_batch(PULL_MESSAGES).max_bytes_per_batch(PULL_BYTES);
    let mut messages = messages.messages().await?;
    for _ in 0..commits {
        let message = messages.next().await.context("the consumer ended early")??;
        each(&message.payload)?;
    }
    Ok(begun.elapsed())
}

async fn followed(url: &str, commits: u64) -> Result<Duration> {
    let log = JetStreamLog::open(config(url)).await?;
    let begun = Instant::now();
    let mut follow = log.follow(Checkpoint::START, Filter::everything()).await?;
    let mut seen = 0;
    while seen < commits {
        if let Follow::Commit { recorded, .. } = follow.next().await.context("the log ended its stream")?? {
            std::hint::black_box(&recorded);
            seen += 1;
        }
    }
    Ok(begun.elapsed())
}

async fn folded(url: &str, commits: u64) -> Result<Duration> {
    let log: SharedLog = Arc::new(JetStreamLog::open(config(url)).await?);
    let stop = CancellationToken::new();
    let begun = Instant::now();
    let hot = Hot::start(log, stop.clone());
    hot.wait_for(Position::new(commits), DEADLINE).await?;
    let elapsed = begun.elapsed();
    if hot.gateway.session_count() == 0 {
        bail!("the fold left no sessions behind");
    }
    stop.cancel();
    Ok(elapsed)
}

fn read_models(runtime: &Runtime, extent: &Extent, verdicts: &mut Verdicts) -> Result<()> {
    println!(
        "\nSQL read models: commits from memory, up to {} a transaction with the checkpoint in it",
        projector::BATCH_COMMITS_MAX
    );
    println!("(PostgreSQL at default durability; SQLite as the read models use it, synchronous=NORMAL)");
    let recorded: Vec<Recorded> = History::new(extent.commits)
        .zip(1..)
        .map(|(commit, position)| {
            let recorded_at = History::recorded_at(position);
            let mut commit = commit?;
            if position % RARE_EVERY == 0 {
                commit.actor = Actor::User(commits::person());
            }
            Ok(Recorded { position: Position::new(position), recorded_at, commit })
        })
        .collect::<Result<_>>()?;
    let log: SharedLog = Arc::new(MemoryLog::new(recorded));
    let server = machine::usual_postgres();
    for model in ModelName::ALL.into_iter().filter(|model| extent.model.is_none_or(|only| only == *model)) {
        let mut sqlite = Series::new(format!("{model} on SQLite"), "commits/s");
        let mut postgres = Series::new(format!("{model} on PostgreSQL"), "commits/s");
        // Of PostgreSQL, our half of it.
        let mut sqlite_processor = Series::new(format!("{model} on SQLite: processor"), "us/commit");
        let mut postgres_processor = Series::new(format!("{model} on PostgreSQL: our processor"), "us/commit");
        for round in 0..extent.rounds {
            let dir = TestDir::new();
            let path = dir.join("read-models.sqlite");
            let before = own_cpu();
            let database = runtime.block_on(Database::connect_sqlite(&path))?;
            let elapsed = runtime.block_on(projected(&log, &database, model, extent.commits))?;
            sqlite.push(extent.commits as f64 / elapsed.as_secs_f64());
            sqlite_processor.push((own_cpu() - before).as_secs_f64() * 1e6 / extent.commits as f64);
            if model == ModelName::Audit && round == 0 {
                runtime.block_on(audit_pages(&database, "SQLite", extent.commits))?;
            }
            runtime.block_on(database.close());
            let url = server.create_database(&format!("{model}_{round}"));
            let before = own_cpu();
            let database = runtime.block_on(Database::connect_postgres(&url))?;
            let elapsed = runtime.block_on(projected(&log, &database, model, extent.commits))?;
            postgres.push(extent.commits as f64 / elapsed.as_secs_f64());
            postgres_processor.push((own_cpu() - before).as_secs_f64() * 1e6 / extent.commits as f64);
            if model == ModelName::Audit && round == 0 {
                runtime.block_on(audit_pages(&database, "PostgreSQL", extent.commits))?;
            }
            runtime.block_on(database.close());
        }
        println!("{sqlite}\n{sqlite_processor}\n{postgres}\n{postgres_processor}");
        verdicts.judge(&format!("{model} on SQLite"), sqlite.median(), "commits/s", Goal::AtLeast(50_000.0));
        verdicts.judge(&format!("{model} on PostgreSQL"), postgres.median(), "commits/s", Goal::AtLeast(50_000.0));
    }
    Ok(())
}

async fn projected(log: &SharedLog, database: &Database, model: ModelName, commits: u64) -> Result<Duration> {
    let cancel = CancellationToken::new();
    let begun = Instant::now();
    let running = tokio::spawn(projector::run(Arc::clone(log), database.clone(), model, cancel.clone()));
    // Asked for seldom: a waiter that is woken by each batch would be measured with it.
    while database.position(model).await? < Position::new(commits) {
        if running.is_finished() || begun.elapsed() > DEADLINE {
            bail!("the projector of {model} stands at {} of {commits}", database.position(model).await?);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let elapsed = begun.elapsed();
    cancel.cancel();
    running.await??;
    Ok(elapsed)
}

/// The first page of questions that match little or much, the newest rows first.
async fn audit_pages(database: &Database, on: &str, commits: u64) -> Result<()> {
    println!("  audit on {on}: {} rows in all its tables", database.digest(ModelName::Audit).await?.rows);
    let none = AuditFilter::default;
    let (from, to) = (History::recorded_at(commits / 2), History::recorded_at(commits / 2 + 1_000));
    for (question, filter) in [
        ("everything", none()),
        ("a rare actor", AuditFilter { actor: Some(commits::person().to_string()), ..none() }),
        ("an actor of no row", AuditFilter { actor: Some("nobody".to_owned()), ..none() }),
        ("one link of many", AuditFilter { link: Some(commits::link(7)), ..none() }),
        ("one workspace of many", AuditFilter { workspace: Some(commits::workspace(7)), ..none() }),
        ("denials, of which there are none", AuditFilter { denied: Some(true), ..none() }),
        ("a type seen at the beginning", AuditFilter { type_prefix: Some("project.".to_owned()), ..none() }),
        ("50 seconds half-way", AuditFilter { from: Some(from), to: Some(to), ..none() }),
    ] {
        let mut milliseconds = Series::new(question, "ms");
        let mut rows = 0;
        for _ in 0..PAGES {
            let begun = Instant::now();
            let audit = database.audit();
            let page = audit.rows(commits::org(), &filter, Direction::NewestFirst, None, Limit::DEFAULT).await?;
            rows = page.items.len();
            milliseconds.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        let (median, worst) = (milliseconds.median(), milliseconds.worst());
        println!("  audit page on {on}, {question}: {median:.2} ms, at most {worst:.2} ms ({rows} rows)");
    }
    Ok(())
}
