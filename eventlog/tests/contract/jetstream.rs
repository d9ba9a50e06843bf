//! What the log of a cluster adds: servers that die, streams that are deleted or set up wrongly, silence.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_nats::jetstream::stream::{self, DiscardPolicy};
use envforge_domain::commit::{Commit, Expectation, Position, StreamKind};
use envforge_domain::secret::Secret;
use envforge_eventlog::jetstream::{Config, Credentials, JetStreamLog};
use envforge_eventlog::{AppendError, Checkpoint, Filter, LogError, NotTheSameLog, SharedLog};
use envforge_testkit::{NatsOptions, NatsServer};
use tokio::task::JoinSet;

use crate::commits::{Follower, add, after, all, append, at, claim, commit, refusal, texts};
use crate::crash::{verify, write_in_parts};
use crate::site::{DEADLINE, Site};

async fn context(site: &Site) -> async_nats::jetstream::Context {
    let url = site.servers()[0].url();
    async_nats::jetstream::new(async_nats::connect(url).await.unwrap())
}

/// Kills servers in the middle of appends, while a follower reads all along; `kill` does one round.
async fn survives(site: Site, writers_count: usize, parts_max: usize, rounds: usize, kill: fn(&Site, usize)) {
    let log = site.open().await;
    let site = Arc::new(site);
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    let left = Arc::new(AtomicU64::new(u64::MAX));
    let mut writers = JoinSet::new();
    for writer in 0..writers_count {
        let (log, left, acknowledged) = (log.clone(), Arc::clone(&left), Arc::clone(&acknowledged));
        writers.spawn(async move {
            let acknowledge = |append| acknowledged.lock().unwrap().push(append);
            write_in_parts(&log, writer, &left, parts_max, acknowledge).await;
        });
    }
    let mut follower = Follower::start(&log, Checkpoint::START, Filter::everything()).await;
    let mut followed = Vec::new();
    let followed_count = Arc::new(AtomicU64::new(0));
    let killer = tokio::task::spawn_blocking({
        let (acknowledged, followed_count) = (Arc::clone(&acknowledged), Arc::clone(&followed_count));
        move || {
            for round in 0..rounds {
                // One failure at a time: both sides have recovered from the one before.
                let (appended, more) = (acknowledged.lock().unwrap().len(), rand::random_range(20..200));
                let delivered = followed_count.load(Ordering::Relaxed);
                envforge_testkit::wait_until("appends and the follower go on", DEADLINE, || {
                    acknowledged.lock().unwrap().len() >= appended + more
                        && followed_count.load(Ordering::Relaxed) > delivered
                });
                kill(&site, round);
            }
            left.store(100, Ordering::Relaxed);
            site
        }
    });
    while !killer.is_finished() {
        followed.push(follower.next_commit().await.0);
        followed_count.fetch_add(1, Ordering::Relaxed);
    }
    let site = killer.await.unwrap();
    writers.join_all().await;
    let head = log.head().await.unwrap().position;
    followed.extend(follower.until_caught(head).await);
    let commits = all(&log).await;
    verify(&commits, &acknowledged.lock().unwrap());
    assert_eq!(followed, commits, "the follower saw each commit once, across every restart");
    drop(site);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_commit_survives_kill_9_of_the_server() {
    survives(Site::jetstream(), 6, 2, 6, |site, _| site.servers()[0].restart()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_commit_survives_kill_9_of_one_server_of_a_cluster_after_the_other() {
    // Few enough writers that a server that comes back can catch up with them. No batches: killed amid those, replicas of
    // nats-server 2.15.1 count more messages than positions, and the stream may have no leader again (about one run in five).
    // The log then answers `Unavailable` or ends its followers; what was acknowledged is not given up for it.
    survives(Site::jetstream_cluster(), 2, 1, 4, |site, round| {
        site.servers()[round % 3].restart();
        // A server that is still catching up when the next one dies makes two failures at once: seen with 2.15.1, the
        // servers then disagree about what the stream holds, and followers end, saying so.
        let healthy = || site.servers().iter().all(NatsServer::is_healthy);
        envforge_testkit::wait_until("every server has the whole stream again", DEADLINE, healthy);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_goes_on_by_itself_after_the_server_was_killed() {
    let site = Site::jetstream();
    let log = site.open().await;
    let mut follower = Follower::start(&log, Checkpoint::START, Filter::everything()).await;
    for number in 0..4 {
        add(&log, &claim("a"), &number.to_string()).await;
        assert_eq!(follower.next_texts(1).await, [number.to_string()]);
        tokio::task::block_in_place(|| site.servers()[0].restart());
    }
    follower.until_caught(at(4)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_to_a_silent_server_is_unknown_and_can_be_repeated() {
    let site = Site::jetstream();
    let config = Config {
        append_timeout: Duration::from_millis(600),
        request_timeout: Duration::from_millis(200),
        ..Config::new(site.address())
    };
    let log: SharedLog = Arc::new(JetStreamLog::open(config).await.unwrap());
    add(&log, &claim("a"), "before").await;
    let signal = |name: &str| {
        let id = site.servers()[0].id().to_string();
        assert!(std::process::Command::new("kill").args([name, &id]).status().unwrap().success());
    };
    signal("-STOP");
    let unanswered = commit(&claim("a"), "unanswered");
    let started = Instant::now();
    let answer = append(&log, &unanswered, after(1)).await;
    assert!(matches!(answer, Err(AppendError::Unknown)), "{answer:?}");
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    signal("-CONT");
    let appended = loop {
        match append(&log, &unanswered, after(1)).await {
            Ok(appended) => break appended,
            Err(AppendError::Unknown | AppendError::Log(LogError::Unavailable(_))) => {
                assert!(started.elapsed() < DEADLINE);
            }
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!(appended.positions, [at(2)]);
    assert_eq!(texts(&all(&log).await), ["before", "unanswered"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_start_at_once_make_one_log() {
    let site = Arc::new(Site::jetstream());
    let mut opening = JoinSet::new();
    for _ in 0..8 {
        let site = Arc::clone(&site);
        opening.spawn(async move { site.open().await.head().await.unwrap().identity });
    }
    let identities = opening.join_all().await;
    assert!(identities.iter().all(|identity| *identity == identities[0]), "{identities:?}");
}

/// The followers of a stream that is deleted, and of one that was made anew under its name, end, and nothing is appended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_deleted_while_in_use_ends_followers() {
    for made_anew in [false, true] {
        let site = Site::jetstream();
        let log = site.open().await;
        for number in 0..5 {
            add(&log, &claim("a"), &number.to_string()).await;
        }
        let mut everything = Follower::start(&log, Checkpoint::START, Filter::everything()).await;
        let filter = Filter { org: Some(crate::commits::org(1)), kinds: vec![] };
        let mut filtered = Follower::start(&log, Checkpoint::START, filter).await;
        let (_, checkpoint) = everything.next_commit().await;
        everything.until_caught(at(5)).await;
        filtered.until_caught(at(5)).await;
        context(&site).await.delete_stream("ENVFORGE").await.unwrap();
        if made_anew {
            let other = site.open().await;
            for number in 0..9 {
                add(&other, &claim("a"), &format!("other {number}")).await;
            }
        }
        let expected = |error: &LogError| match error {
            LogError::NotTheSameLog(NotTheSameLog::Replaced { .. }) => !made_anew,
            LogError::NotTheSameLog(NotTheSameLog::Identity { .. }) => made_anew,
            _ => false,
        };
        for error in [
            everything.until_error().await,
            filtered.until_error().await,
            log.head().await.unwrap_err(),
            refusal(&log, checkpoint).await,
        ] {
            assert!(expected(&error), "made anew: {made_anew}: {error}");
        }
        // Neither to a stream that is new in both, nor where the new one happens to end where ours did.
        for (stream, expected_last) in [(claim("b"), after(0)), (claim("a"), after(9))] {
            match append(&log, &commit(&stream, "lost"), expected_last).await {
                Err(AppendError::Log(error)) => assert!(expected(&error), "made anew: {made_anew}: {error}"),
                other => panic!("made anew: {made_anew}: {other:?}"),
            }
        }
        if made_anew {
            let other = site.open().await;
            assert_eq!(other.head().await.unwrap().position, at(9), "nothing was appended to the other log");
        }
    }
}

/// Nobody follows, so that the append itself has to find out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_to_a_shorter_stream_in_its_place_is_not_acknowledged() {
    let site = Site::jetstream();
    let log = site.open().await;
    for number in 0..5 {
        add(&log, &claim("a"), &number.to_string()).await;
    }
    context(&site).await.delete_stream("ENVFORGE").await.unwrap();
    let other = site.open().await;
    add(&other, &claim("a"), "other").await;
    for _ in 0..2 {
        let refused = append(&log, &commit(&claim("b"), "lost"), after(0)).await;
        assert!(
            matches!(refused, Err(AppendError::Log(LogError::NotTheSameLog(NotTheSameLog::Replaced { .. })))),
            "{refused:?}"
        );
    }
    assert_eq!(other.head().await.unwrap().position, at(2), "once it is known, nothing is sent any more");
}

/// The servers come back with another log, which has more commits than ours had.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_after_a_reconnection_to_a_longer_stream_in_its_place_is_not_acknowledged() {
    let site = Site::jetstream();
    let log = site.open().await;
    add(&log, &claim("a"), "1").await;
    tokio::task::block_in_place(|| {
        let mut servers = site.servers();
        servers[0].lose_store();
        servers[0].restart();
    });
    let other = site.open().await;
    for number in 0..9 {
        add(&other, &claim("a"), &format!("other {number}")).await;
    }
    let started = Instant::now();
    let refused = loop {
        match append(&log, &commit(&claim("b"), "lost"), after(0)).await {
            // It may not have come back yet.
            Err(AppendError::Unknown | AppendError::Log(LogError::Unavailable(_))) => {
                assert!(started.elapsed() < DEADLINE);
            }
            answer => break answer,
        }
    };
    assert!(
        matches!(refused, Err(AppendError::Log(LogError::NotTheSameLog(NotTheSameLog::Identity { .. })))),
        "{refused:?}"
    );
}

/// Whoever decides on a stream as it was long ago hears `Conflict` after a few requests, not after one a commit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conflict_far_behind_the_streams_end_costs_few_requests_in_jetstream() {
    const BEHIND: usize = 5_000;
    // Without a sync before each acknowledgement: thousands of commits are wanted here, not their safety.
    let server = NatsServer::start();
    let log: SharedLog = Arc::new(JetStreamLog::open(Config::new(server.url())).await.unwrap());
    let mut last = add(&log, &claim("a"), "first").await;
    // Batches hold one commit a stream, so these go one after the other; past the log, since that needs no round trip each.
    let publisher = async_nats::jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let subject = format!("envforge.{}", claim("a").subject());
    let mut waiting = Vec::new();
    for number in 0..BEHIND {
        let stored = envforge_eventlog::schema::encode(&commit(&claim("a"), &number.to_string())).unwrap();
        waiting.push(publisher.publish(subject.clone(), stored).await.unwrap());
        if waiting.len() == 250 {
            for acknowledgement in waiting.drain(..) {
                last = at(acknowledgement.await.unwrap().sequence);
            }
        }
    }
    assert_eq!(last, at(BEHIND as u64 + 1));
    // Whatever is asked of the stream passes by here as well.
    let spy = async_nats::connect(server.url()).await.unwrap();
    let mut requests = spy.subscribe("$JS.API.>").await.unwrap();
    spy.flush().await.unwrap();
    let stale = append(&log, &commit(&claim("a"), "stale"), after(1)).await;
    assert!(matches!(stale, Err(AppendError::Conflict { .. })), "{stale:?}");
    spy.flush().await.unwrap();
    let mut count = 0;
    while let Some(Some(_)) = futures_util::FutureExt::now_or_never(futures_util::StreamExt::next(&mut requests)) {
        count += 1;
    }
    assert!((2..=20).contains(&count), "{count} requests");
    // What was stored long ago with another expectation is still found.
    let found = log.read_stream(&claim("a"), at(3_000), 1).await.unwrap().remove(0);
    let again = append(&log, &found.commit, after(1)).await.unwrap();
    assert_eq!((again.positions, again.duplicate), (vec![found.position], true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_could_not_be_a_log_is_refused_with_what_to_mend() {
    let site = Site::jetstream();
    drop(site.open().await);
    let context = context(&site).await;
    let good = context.get_stream("ENVFORGE").await.unwrap().cached_info().config.clone();
    let drifted = stream::Config { discard: DiscardPolicy::Old, max_age: Duration::from_secs(3_600), ..good };
    context.update_stream(&drifted).await.unwrap();
    let Err(LogError::Open(reason)) = JetStreamLog::open(Config::new(site.address())).await else { panic!("opened") };
    assert!(reason.contains("`discard` is old and must be new"), "{reason}");
    assert!(reason.contains("`max_age` is 3600s and must be unlimited"), "{reason}");
    let three = Config { replicas: 3, ..Config::new(site.address()) };
    let Err(LogError::Open(reason)) = JetStreamLog::open(three).await else { panic!("opened") };
    assert!(reason.contains("`num_replicas` is 1 and must be at least 3"), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stream_is_made_so_that_the_server_refuses_to_forget() {
    let site = Site::jetstream();
    let log = site.open().await;
    add(&log, &claim("a"), "1").await;
    let stream = context(&site).await.get_stream("ENVFORGE").await.unwrap();
    assert!(stream.delete_message(1).await.is_err());
    assert!(stream.purge().await.is_err());
    let mut weaker = stream.cached_info().config.clone();
    weaker.deny_delete = false;
    assert!(context(&site).await.update_stream(&weaker).await.is_err());
    assert_eq!(texts(&all(&log).await), ["1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_cannot_prove_who_they_are_is_told_so() {
    let extra_configuration = "authorization { user: envforge, password: \"right\" }".to_owned();
    let server = NatsServer::start_with(&NatsOptions { extra_configuration, ..NatsOptions::default() });
    let config = |password: &str| Config {
        credentials: Credentials::UserPassword {
            user: "envforge".to_owned(),
            password: Secret::new(password.to_owned()),
        },
        ..Config::new(server.url())
    };
    let Err(LogError::Open(reason)) = JetStreamLog::open(config("wrong")).await else { panic!("opened") };
    assert!(reason.contains("authorization"), "{reason}");
    assert!(!reason.contains("wrong"), "{reason}");
    let missing = Config { credentials: Credentials::File("/nowhere/at.all".into()), ..Config::new(server.url()) };
    let Err(LogError::Open(reason)) = JetStreamLog::open(missing).await else { panic!("opened") };
    assert!(reason.contains("credentials file /nowhere/at.all"), "{reason}");
    let log: SharedLog = Arc::new(JetStreamLog::open(config("right")).await.unwrap());
    assert_eq!(add(&log, &claim("a"), "1").await, at(1));
}

/// What the documentation says a process needs is enough for everything but making the stream, and for nothing worse.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_least_rights_are_enough() {
    let extra_configuration = r#"
        authorization { users: [
            { user: operator, password: "operator" }
            { user: envforge, password: "envforge", permissions: {
                publish: [ "envforge.>", "$JS.API.STREAM.INFO.ENVFORGE", "$JS.API.STREAM.MSG.GET.ENVFORGE",
                    "$JS.API.DIRECT.GET.ENVFORGE", "$JS.API.CONSUMER.CREATE.ENVFORGE.>",
                    "$JS.API.CONSUMER.INFO.ENVFORGE.>", "$JS.API.CONSUMER.MSG.NEXT.ENVFORGE.>" ]
                subscribe: [ "_INBOX.>" ]
            } }
        ] }"#
        .to_owned();
    let server = NatsServer::start_with(&NatsOptions { extra_configuration, ..NatsOptions::default() });
    let config = |user: &str| Config {
        credentials: Credentials::UserPassword { user: user.to_owned(), password: Secret::new(user.to_owned()) },
        open_timeout: Duration::from_millis(300),
        request_timeout: Duration::from_millis(300),
        ..Config::new(server.url())
    };
    assert!(JetStreamLog::open(config("envforge")).await.is_err(), "it cannot make the stream");
    drop(JetStreamLog::open(config("operator")).await.unwrap());
    let log: SharedLog = Arc::new(JetStreamLog::open(config("envforge")).await.unwrap());
    let mut everything = Follower::start(&log, Checkpoint::START, Filter::everything()).await;
    let filter = Filter { org: None, kinds: vec![StreamKind::Claim, StreamKind::DevLink] };
    let mut filtered = Follower::start(&log, Checkpoint::START, filter).await;
    add(&log, &claim("a"), "1").await;
    let first = commit(&claim("a"), "2");
    let second = Commit { command: first.command, ..commit(&claim("b"), "2") };
    log.append(vec![(first, after(1)), (second, after(0))]).await.unwrap();
    for follower in [&mut everything, &mut filtered] {
        assert_eq!(follower.next_texts(3).await, ["1", "2", "2"]);
        follower.until_caught(at(3)).await;
    }
    assert_eq!(all(&log).await.len(), 3);
    assert_eq!(log.read_stream(&claim("a"), Position::START, 10).await.unwrap().len(), 2);
    let options = async_nats::ConnectOptions::with_user_and_password("envforge".to_owned(), "envforge".to_owned());
    let client = options.connect(server.url()).await.unwrap();
    let mut context = async_nats::jetstream::new(client);
    context.set_timeout(Duration::from_millis(300));
    assert!(context.delete_stream("ENVFORGE").await.is_err());
    assert_eq!(log.head().await.unwrap().position, at(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_to_a_deleted_stream_says_that_it_is_gone() {
    let site = Site::jetstream();
    let log = site.open().await;
    add(&log, &claim("a"), "1").await;
    context(&site).await.delete_stream("ENVFORGE").await.unwrap();
    let started = Instant::now();
    let gone = append(&log, &commit(&claim("a"), "2"), after(1)).await;
    assert!(matches!(gone, Err(AppendError::Log(LogError::NotTheSameLog(NotTheSameLog::Replaced { .. })))), "{gone:?}");
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_not_there_is_named() {
    let port = envforge_testkit::free_port();
    let Err(LogError::Open(reason)) = JetStreamLog::open(Config::new(format!("nats://127.0.0.1:{port}"))).await else {
        panic!("opened")
    };
    assert!(reason.contains(&format!("cannot connect to nats://127.0.0.1:{port}")), "{reason}");
}

/// Somebody publishes into the log past EnvForge: readers halt rather than skip.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_no_commit_halts_followers() {
    let site = Site::jetstream();
    let log = site.open().await;
    add(&log, &claim("a"), "1").await;
    let subject = format!("envforge.{}", claim("b").subject());
    context(&site).await.publish(subject, "not a commit".into()).await.unwrap().await.unwrap();
    let mut follower = Follower::start(&log, Checkpoint::START, Filter::everything()).await;
    follower.next_commit().await;
    for error in [
        follower.until_error().await,
        log.read(Position::START, 10, &Filter::everything()).await.unwrap_err(),
        log.last_of_stream(&claim("b")).await.unwrap_err(),
    ] {
        assert!(matches!(error, LogError::Undecodable { position, .. } if position == at(2)), "{error}");
    }
    let blind = append(&log, &commit(&claim("a"), "2"), Expectation::LastAt(at(1))).await.unwrap();
    assert_eq!(blind.last(), at(3));
}
