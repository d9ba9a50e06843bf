//! Runtimes that sleep: the waking page, held requests, one wake.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use envforge_domain::runtime::WakeStage;

use crate::app::App;
use crate::client::NAVIGATION;
use envforge_domain::time::Millis;

use crate::world::{COOKIE, LINK, NewLink, World};

const OTHER: &str = "other67890123456789012345678901234567890abc";

#[tokio::test]
async fn a_person_gets_a_page_that_follows_the_wake_and_shows_nothing_of_the_inside() {
    let world = World::start().await;
    let page = world.visit("/orders").await;
    assert_eq!(page.status, 202);
    assert!(page.body.contains("signed-links") && page.body.contains("Checking that it answers"));
    let policy = page.header("content-security-policy");
    assert!(
        policy.contains("script-src 'sha256-") && policy.contains("connect-src 'self'") && !policy.contains("unsafe")
    );
    world.woken().await;
    let news = world.fetch("/.envforge/wake?seen=").await;
    let first: serde_json::Value = serde_json::from_str(&news.body).unwrap();
    assert_eq!((first["phase"].as_str(), first["step"].as_u64()), (Some("waking"), Some(0)));
    let path = format!("/.envforge/wake?seen={}", first["seen"].as_str().unwrap());
    let (news, ()) = tokio::join!(world.fetch(&path), async {
        world.stage(WakeStage::Probing).await;
    });
    let second: serde_json::Value = serde_json::from_str(&news.body).unwrap();
    assert_eq!(second["step"], 3);
    let app = App::start().await;
    world.ready(app.address).await;
    let news = world.fetch(&format!("/.envforge/wake?seen={}", second["seen"].as_str().unwrap())).await;
    let last: serde_json::Value = serde_json::from_str(&news.body).unwrap();
    assert_eq!(last["phase"], "ready");
    assert!(world.visit("/orders").await.body.starts_with("GET /orders\n"));
    assert_eq!(world.wakes().await, 1);
}

fn news(chunk: Option<Vec<u8>>) -> serde_json::Value {
    let event = String::from_utf8(chunk.expect("news")).unwrap();
    let data = event.strip_prefix("data: ").and_then(|rest| rest.strip_suffix("\n\n"));
    serde_json::from_str(data.unwrap_or_else(|| panic!("{event:?} is no event"))).unwrap()
}

#[tokio::test]
async fn a_waking_page_is_told_every_stage_until_the_app_is_there() {
    let (world, app) = (World::start().await, App::start().await);
    assert_eq!(world.visit("/").await.status, 202);
    world.woken().await;
    let mut events = world.client().await;
    events.send(world.get("/.envforge/wake/events", "")).await;
    assert_eq!(events.head().await.unwrap().header("content-type"), "text/event-stream");
    assert_eq!(news(events.chunk().await)["phase"], "waking");
    for (stage, step) in [(WakeStage::Starting, 2), (WakeStage::Probing, 3)] {
        world.stage(stage).await;
        assert_eq!(news(events.chunk().await)["step"], step);
    }
    world.ready(app.address).await;
    assert_eq!(news(events.chunk().await)["phase"], "ready");
    assert_eq!(events.chunk().await.unwrap(), b"", "nothing follows");
    assert_eq!(world.wakes().await, 1);
}

#[tokio::test]
async fn a_waking_page_is_told_nothing_once_the_link_has_ended() {
    let world = World::start().await;
    let mut events = world.client().await;
    events.send(world.get("/.envforge/wake/events", "")).await;
    assert_eq!(events.head().await.unwrap().status, 200);
    assert_eq!(news(events.chunk().await)["phase"], "asleep");
    world.revoke().await;
    assert_eq!(events.chunk().await.unwrap(), b"");
    assert_eq!(world.fetch("/.envforge/wake/events").await.code(), "link_revoked");
    assert_eq!(world.wakes().await, 0, "following wakes nothing");
}

#[tokio::test]
async fn two_hundred_requests_are_held_for_one_wake_and_all_answered() {
    let (world, app) = (World::start().await, App::start().await);
    let world = std::sync::Arc::new(world);
    let requests: Vec<_> = (0..200)
        .map(|index| {
            let world = std::sync::Arc::clone(&world);
            tokio::spawn(async move { world.fetch(&format!("/{index}")).await.status })
        })
        .collect();
    world.woken().await;
    world.stage(WakeStage::Starting).await;
    assert_eq!(app.seen.requests.load(Ordering::SeqCst), 0);
    world.ready(app.address).await;
    for request in requests {
        assert_eq!(request.await.unwrap(), 200);
    }
    assert_eq!(world.wakes().await, 1);
    assert_eq!(app.seen.requests.load(Ordering::SeqCst), 200);
    // An app's queue of connections is short; what overflows it is tried again only after a second.
    let connections = app.seen.connections.load(Ordering::SeqCst);
    assert!(connections < 64, "{connections} connections for one burst");
}

impl World {
    fn post(&self, path: &str, framing: &str) -> String {
        let (host, cookie) = (self.host(), self.cookie_header());
        format!(
            "POST {path} HTTP/1.1\r\nHost: {host}\r\nCookie: {cookie}\r\nOrigin: http://{host}\r\n{framing}\r\n\r\n"
        )
    }
}

#[tokio::test]
async fn a_held_upload_arrives_whole() {
    // More than is read while it is held.
    let body: String = (0..60_000).map(|index| format!("{:05}", index)).collect();
    for (framing, sent) in [
        (format!("Content-Length: {}", body.len()), body.clone()),
        ("Transfer-Encoding: chunked".to_owned(), format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len())),
        ("Content-Length: 5".to_owned(), "hello".to_owned()),
    ] {
        let (world, app) = (World::start().await, App::start().await);
        let request = world.post("/x", &framing) + &sent;
        let (answer, ()) = tokio::join!(world.raw(request), async {
            world.woken().await;
            world.ready(app.address).await;
        });
        let expected = if sent == "hello" { "hello" } else { &body };
        assert!(answer.unwrap().body.ends_with(&format!("\n{expected}")), "{framing}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_during_a_held_upload_leaves_its_place() {
    let world = World::with(|config| config.limits.held_requests_max = 1).await;
    let mut client = world.client().await;
    client.send(world.post("/x", "Content-Length: 100000") + "the beginning").await;
    world.woken().await;
    assert_eq!(world.fetch("/y").await.code(), "too_many_held");
    drop(client);
    let free = async {
        loop {
            let mut next = world.client().await;
            next.send(world.get("/y", "")).await;
            // Held now, where it was refused before.
            if tokio::time::timeout(Duration::from_millis(200), next.answer()).await.is_err() {
                return;
            }
        }
    };
    tokio::time::timeout(crate::app::SOON, free).await.expect("the place is free in time");
}

#[tokio::test]
async fn what_held_uploads_may_keep_is_bounded() {
    let world = World::with(|config| config.limits.held_bytes_max = 100 * 1024).await;
    let mut first = world.client().await;
    first.send(world.post("/x", "Content-Length: 1000000")).await;
    world.woken().await;
    assert_eq!(world.raw(world.post("/y", "Content-Length: 1000000")).await.unwrap().code(), "too_many_held");
    let mut small = world.client().await;
    small.send(world.post("/z", "Content-Length: 5") + "hello").await;
    let held = tokio::time::timeout(Duration::from_millis(200), small.answer()).await.is_err();
    assert!(held, "a small one has room beside it");
}

#[tokio::test]
async fn a_client_that_leaves_does_not_take_the_wake_along_nor_keep_its_place() {
    let world = World::with(|config| config.limits.held_requests_max = 1).await;
    let app = App::start().await;
    let mut client = world.client().await;
    client.send(world.get("/x", "")).await;
    world.woken().await;
    let full = world.fetch("/y").await;
    assert_eq!((full.status, full.code().as_str(), full.header("retry-after")), (503, "too_many_held", "5"));
    drop(client);
    let answer = tokio::time::timeout(crate::app::SOON, async {
        loop {
            let (answer, ()) = tokio::join!(world.fetch("/z"), async { world.ready(app.address).await });
            if answer.status == 200 {
                return answer;
            }
        }
    });
    assert!(answer.await.unwrap().body.starts_with("GET /z\n"));
    assert_eq!(world.wakes().await, 1);
}

#[tokio::test]
async fn a_refused_wake_is_told_to_programs_and_people() {
    let world = World::start().await;
    world.issue(NewLink { number: 9, cookie: OTHER, wake_budget: Some(0), ..LINK }).await;
    let get = |path: &str, more: &str| world.get(path, more).replace(COOKIE, OTHER);
    let answer = world.raw(get("/x", "")).await.unwrap();
    assert_eq!((answer.status, answer.code().as_str()), (429, "wake_budget_spent"));
    let page = world.raw(get("/x", NAVIGATION)).await.unwrap();
    assert!(page.status == 429 || page.status == 202, "{}", page.status);
    let news = world.raw(get("/.envforge/wake?seen=", "")).await.unwrap();
    assert!(news.body.contains("wake_budget_spent"), "{}", news.body);
    assert_eq!(world.wakes().await, 0);
}

#[tokio::test]
async fn a_wake_that_fails_or_takes_too_long_ends_the_wait() {
    let world = World::with(|config| config.timeouts.hold = Duration::from_millis(400)).await;
    let begun = Instant::now();
    let answer = world.fetch("/x").await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "wake_timeout"));
    assert!(begun.elapsed() < Duration::from_secs(3));

    let world = World::start().await;
    let (answer, ()) = tokio::join!(world.fetch("/x"), async {
        world.woken().await;
        world.fail().await;
    });
    assert_eq!((answer.status, answer.code().as_str()), (502, "wake_failed"));
    // For a while nobody tries again, and nobody waits for nothing.
    assert_eq!(world.fetch("/y").await.code(), "wake_failed");
    assert_eq!(world.visit("/y").await.status, 502);
    assert_eq!(world.wakes().await, 1);
    let news = world.fetch("/.envforge/wake?seen=").await;
    assert!(news.body.contains("The app did not start") && !news.body.contains("private reason"));
}

#[tokio::test]
async fn who_waits_is_told_that_secrets_stopped_a_wake_and_not_which() {
    let world = World::start().await;
    let (answer, ()) = tokio::join!(world.fetch("/x"), async {
        world.woken().await;
        world.fail_for_a_secret("PRIVATE_NAME").await;
    });
    assert_eq!((answer.status, answer.code().as_str()), (502, "secrets_refused"));
    let news = world.fetch("/.envforge/wake?seen=").await;
    assert!(news.body.contains("needs a secret"), "{}", news.body);
    let page = world.visit("/y").await;
    for told in [&answer.body, &news.body, &page.body] {
        assert!(!told.contains("PRIVATE_NAME"), "{told}");
    }
}

#[tokio::test]
async fn a_revoked_link_lets_go_of_who_waits() {
    let world = World::start().await;
    let (answer, ()) = tokio::join!(world.fetch("/x"), async {
        world.woken().await;
        world.revoke().await;
    });
    assert_eq!((answer.status, answer.code().as_str()), (410, "link_revoked"));
}

#[tokio::test]
async fn who_waits_is_let_go_at_the_links_end_and_not_at_the_waits() {
    let world = World::start().await;
    world.issue(NewLink { number: 9, cookie: OTHER, lifetime: Millis::new(500), ..LINK }).await;
    let begun = Instant::now();
    let answer = world.raw(world.get("/x", "").replace(COOKIE, OTHER)).await.unwrap();
    assert_eq!((answer.status, answer.code().as_str()), (410, "link_expired"));
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn an_end_that_comes_together_with_the_apps_readiness_counts() {
    let (world, app) = (std::sync::Arc::new(World::start().await), App::start().await);
    // A connection that is there already makes nobody wait once more.
    world.ready(app.address).await;
    assert_eq!(world.fetch("/before").await.status, 200);
    world.go_to_sleep().await;
    world.slept().await;
    let requests: Vec<_> = (0..20)
        .map(|index| {
            let world = std::sync::Arc::clone(&world);
            tokio::spawn(async move { world.fetch(&format!("/{index}")).await })
        })
        .collect();
    world.woken().await;
    world.ready_and_revoked(app.address).await;
    for request in requests {
        assert_eq!(request.await.unwrap().code(), "link_revoked");
    }
    assert_eq!(app.seen.requests.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn who_waits_for_a_connection_to_the_app_is_let_go_when_the_link_ends() {
    let world = World::with(|config| config.limits.upstream_connections_per_endpoint_max = 1).await;
    let app = App::start().await;
    world.ready(app.address).await;
    world.issue(NewLink { number: 9, cookie: OTHER, ..LINK }).await;
    let mut first = world.client().await;
    first.send(world.get("/events", "").replace(COOKIE, OTHER)).await;
    assert_eq!(first.head().await.unwrap().status, 200);
    let begun = Instant::now();
    let (answer, ()) = tokio::join!(world.fetch("/x"), async {
        let waits = || world.activity.of(world.workspace()).is_some_and(|seen| seen.open_streams == 2);
        crate::world::until("the second one waits", waits).await;
        world.revoke().await;
    });
    assert_eq!((answer.status, answer.code().as_str()), (410, "link_revoked"));
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    assert_eq!(app.seen.requests.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn one_link_keeps_neither_connections_nor_places_from_the_others() {
    let world = World::with(|config| {
        config.limits.upstream_connections_per_link_max = 1;
        config.limits.held_requests_per_link_max = 1;
        config.limits.waking_pages_per_link_max = 1;
        config.timeouts.upstream_connect = Duration::from_millis(200);
    })
    .await;
    let app = App::start().await;
    world.issue(NewLink { number: 9, cookie: OTHER, ..LINK }).await;
    let other = |path: &str| world.raw(world.get(path, "").replace(COOKIE, OTHER));
    let mut holding = world.client().await;
    holding.send(world.get("/events", "")).await;
    world.woken().await;
    assert_eq!(world.fetch("/y").await.code(), "too_many_held");
    // A waking page takes no place of a held request, nor a second one that of another link's.
    let news: serde_json::Value = serde_json::from_str(&world.fetch("/.envforge/wake?seen=").await.body).unwrap();
    let wait_for_more = format!("/.envforge/wake?seen={}", news["seen"].as_str().unwrap());
    let mut following = world.client().await;
    following.send(world.get(&wait_for_more, "")).await;
    let full = async { while world.fetch(&wait_for_more).await.status != 503 {} };
    tokio::time::timeout(crate::app::SOON, full).await.expect("a full house in time");
    assert_eq!(other("/.envforge/wake?seen=").await.unwrap().status, 200);
    let (held, ()) = tokio::join!(other("/x"), world.ready(app.address));
    assert_eq!(held.unwrap().status, 200);
    assert_eq!(holding.head().await.unwrap().status, 200);
    let busy = world.fetch("/y").await;
    assert_eq!((busy.status, busy.code().as_str()), (503, "app_busy"));
    assert_eq!(other("/x").await.unwrap().status, 200);
    // What a link itself left idle makes room for what needs a connection of its own.
    drop(holding);
    crate::world::until("the stream ended", || app.seen.open_streams.load(Ordering::SeqCst) == 0).await;
    assert_eq!(world.fetch("/y").await.status, 200);
}

#[tokio::test]
async fn who_has_no_session_wakes_nothing() {
    let world = World::start().await;
    for request in [
        world.get("/x", "").replace("Cookie", "X-Nothing"),
        world.get("/x", "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\n"),
        world.get("/.envforge/wake", "").replace("Cookie", "X-Nothing"),
    ] {
        assert_eq!(world.raw(request).await.unwrap().status, 403);
    }
    assert_eq!(world.wakes().await, 0);
    assert!(world.activity.of(world.workspace()).is_none());
}

#[tokio::test]
async fn a_request_that_arrives_while_going_to_sleep_is_answered_after_one_more_wake() {
    let (world, app) = (World::start().await, App::start().await);
    let (first, ()) = tokio::join!(world.fetch("/first"), async {
        world.woken().await;
        world.ready(app.address).await;
    });
    assert_eq!(first.status, 200);
    world.go_to_sleep().await;
    let (second, ()) = tokio::join!(world.fetch("/second"), async {
        let stream = envforge_domain::commit::StreamId::runtime(world.org(), world.workspace());
        let deadline = Instant::now() + crate::app::SOON;
        // The wake is queued in the log; the host finishes going to sleep, and the wake follows.
        loop {
            let last = world.log.last_of_stream(&stream).await.unwrap().unwrap().commit;
            if format!("{:?}", last.events).contains("WakeQueued") {
                break;
            }
            assert!(Instant::now() < deadline, "no wake was queued");
            tokio::time::sleep(Duration::from_millis(5)).await; // pause: between two looks
        }
        world.slept().await;
        world.ready(app.address).await;
    });
    assert!(second.body.starts_with("GET /second\n"), "{second:?}");
}

#[tokio::test]
async fn whoever_woke_a_runtime_that_sleeps_again_wakes_it_again_at_once() {
    let (world, app) = (World::start().await, App::start().await);
    let mut begun = Instant::now();
    for _ in 0..2 {
        begun = Instant::now();
        let (answer, ()) = tokio::join!(world.fetch("/"), async {
            world.woken().await;
            world.ready(app.address).await;
        });
        assert_eq!(answer.status, 200);
        world.go_to_sleep().await;
        world.slept().await;
    }
    // Within the time for which an accepted wake is waited for to show.
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(world.wakes().await, 2);
}

#[tokio::test]
async fn four_gateways_with_four_hundred_requests_make_one_wake_and_lose_none() {
    let (world, app) = (World::start().await, App::start().await);
    let mut gateways = Vec::new();
    for _ in 0..3 {
        gateways.push(world.another().await);
    }
    let mut ports = vec![world.port()];
    ports.extend(gateways.iter().map(|gateway| gateway.address().port()));
    let requests: Vec<_> = (0..400)
        .map(|index: usize| {
            let port = ports[index % ports.len()];
            let request = world.get(&format!("/{index}"), "").replace(&world.port().to_string(), &port.to_string());
            tokio::spawn(async move {
                let mut client = crate::client::Client::connect(([127, 0, 0, 1], port).into()).await;
                client.send(request).await;
                client.answer().await.unwrap().status
            })
        })
        .collect();
    world.woken().await;
    world.ready(app.address).await;
    for request in requests {
        assert_eq!(request.await.unwrap(), 200);
    }
    assert_eq!(world.wakes().await, 1);
    assert_eq!(app.seen.requests.load(Ordering::SeqCst), 400);
    for gateway in gateways {
        gateway.stop().await;
    }
}
