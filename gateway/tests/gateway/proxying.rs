//! Requests that pass: headers, cookies, bodies, connections to the app.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::app::App;
use envforge_domain::time::Millis;

use crate::world::{COOKIE, LINK, NewLink, World, until};

const OTHER: &str = "other67890123456789012345678901234567890abc";

async fn ready() -> (World, App) {
    let (world, app) = (World::start().await, App::start().await);
    world.ready(app.address).await;
    (world, app)
}

#[tokio::test]
async fn the_app_sees_its_own_headers_and_ours_and_nobody_elses() {
    let (world, _app) = ready().await;
    let more = "X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Host: evil\r\nForwarded: for=1.2.3.4\r\nX-Real-IP: 1.2.3.4\r\n\
                X-EnvForge-Org: acme\r\nx_forwarded_for: 1.2.3.4\r\nAuthorization: Bearer app\r\nX-App: kept\r\n\
                Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nTE: trailers\r\n";
    let request = world.get("/page?q=1", more).replace("Cookie: ", "Cookie: theme=dark;  odd=\"a b\"; ");
    let answer = world.raw(request).await.unwrap();
    let host = world.host();
    let mut lines: Vec<&str> = answer.body.trim_end().lines().collect();
    assert_eq!(lines.remove(0), "GET /page?q=1");
    lines.sort_unstable();
    let mut expected = vec![
        "authorization: Bearer app".to_owned(),
        "cookie: theme=dark;  odd=\"a b\"".to_owned(),
        format!("forwarded: for=127.0.0.1;host=\"{host}\";proto=http"),
        format!("host: {host}"),
        "x-app: kept".to_owned(),
        "x-forwarded-for: 127.0.0.1".to_owned(),
        format!("x-forwarded-host: {host}"),
        "x-forwarded-proto: http".to_owned(),
    ];
    expected.sort();
    assert_eq!(lines, expected);
}

#[tokio::test]
async fn the_app_sets_its_own_cookies_alone_and_cannot_redirect_the_transport() {
    let (world, _app) = ready().await;
    let answer = world.fetch("/cookies").await;
    assert_eq!(answer.header("set-cookie"), "own=1; Path=/");
    assert_eq!(answer.header("clear-site-data"), "\"cache\"");
    assert!(!answer.headers.contains_key("alt-svc") && !answer.headers.contains_key("service-worker-allowed"));
}

#[tokio::test]
async fn one_connection_carries_many_requests_and_so_does_the_one_to_the_app() {
    let (world, app) = ready().await;
    let mut client = world.client().await;
    for index in 0..50 {
        client.send(world.get(&format!("/{index}"), "")).await;
        assert!(client.answer().await.unwrap().body.starts_with(&format!("GET /{index}\n")));
    }
    for path in ["/none", "/big?0", "/big?100000"] {
        client.send(world.get(path, "")).await;
        assert!(client.answer().await.unwrap().status < 300);
    }
    assert_eq!(app.seen.connections.load(Ordering::SeqCst), 1);
    assert_eq!(app.seen.requests.load(Ordering::SeqCst), 53);
}

#[tokio::test]
async fn head_requests_and_http_1_0_clients_are_served() {
    let (world, _app) = ready().await;
    let mut client = world.client().await;
    client.send(world.get("/big?5000", "").replacen("GET", "HEAD", 1)).await;
    let head = client.head().await.unwrap();
    assert_eq!((head.status, head.header("content-length")), (200, "5000"));
    client.send(world.get("/after", "")).await;
    assert!(client.answer().await.unwrap().body.starts_with("GET /after\n"));
    let old = world.get("/old", "").replacen("HTTP/1.1", "HTTP/1.0", 1);
    assert!(world.raw(old).await.unwrap().body.starts_with("GET /old\n"));
}

#[tokio::test]
async fn same_origin_api_goes_to_the_service_that_declares_it() {
    let (world, web) = ready().await;
    let backend = App::start().await;
    let endpoints = [("web", web.address), ("backend", backend.address)];
    world.ready_at(&endpoints).await;
    for (path, app) in [("/", &web), ("/apix", &web), ("/api", &backend), ("/api/orders?x=/", &backend)] {
        let before = app.seen.requests.load(Ordering::SeqCst);
        assert!(world.fetch(path).await.body.starts_with(&format!("GET {path}\n")));
        assert_eq!(app.seen.requests.load(Ordering::SeqCst), before + 1, "{path}");
    }
}

#[tokio::test]
async fn a_hundred_megabytes_pass_down_without_being_collected() {
    let (world, app) = ready().await;
    const BYTES: usize = 100 * 1024 * 1024;
    let mut client = world.client().await;
    client.send(world.get(&format!("/big?{BYTES}"), "")).await;
    assert_eq!(client.head().await.unwrap().header("content-length"), BYTES.to_string());
    // A client that does not read holds the app back: what is on its way is a few buffers, not the file.
    let mut before = 0;
    until("the app is held back", || {
        let produced = app.seen.produced.load(Ordering::SeqCst);
        std::mem::replace(&mut before, produced) == produced && produced > 0 && {
            std::thread::sleep(Duration::from_millis(50)); // pause: between two looks
            app.seen.produced.load(Ordering::SeqCst) == produced
        }
    })
    .await;
    assert!(before < 24 * 1024 * 1024, "{before} bytes were taken from the app for a client that reads nothing");
    let mut total = 0;
    let mut buffer = vec![0; 256 * 1024];
    while total < BYTES {
        total += client.stream.read(&mut buffer).await.unwrap();
    }
    assert_eq!(total, BYTES);
    // The connection goes on.
    client.send(world.get("/after", "")).await;
    assert!(client.answer().await.unwrap().body.starts_with("GET /after\n"));
}

#[tokio::test]
async fn a_hundred_megabytes_pass_up() {
    let (world, app) = ready().await;
    const CHUNKS: usize = 1600;
    let host = world.host();
    let mut client = world.client().await;
    client
        .send(format!(
            "POST /upload HTTP/1.1\r\nHost: {host}\r\nCookie: {}\r\nOrigin: http://{host}\r\nContent-Length: {}\r\n\r\n",
            world.cookie_header(),
            CHUNKS * 65_536
        ))
        .await;
    let chunk = vec![b'y'; 65_536];
    for _ in 0..CHUNKS {
        client.stream.get_mut().write_all(&chunk).await.unwrap();
    }
    assert_eq!(client.answer().await.unwrap().body, (CHUNKS * 65_536).to_string());
    assert_eq!(app.seen.uploaded.load(Ordering::SeqCst), (CHUNKS * 65_536) as u64);
    client.send(world.get("/after", "")).await;
    assert!(client.answer().await.unwrap().body.starts_with("GET /after\n"));
}

#[tokio::test]
async fn uploads_above_the_limit_are_refused_announced_or_not() {
    let world = World::with(|config| config.limits.request_body_bytes_max = 1000).await;
    let app = App::start().await;
    world.ready(app.address).await;
    let host = world.host();
    let head = format!(
        "POST /upload HTTP/1.1\r\nHost: {host}\r\nCookie: {}\r\nOrigin: http://{host}\r\n",
        world.cookie_header()
    );
    let announced = world.raw(format!("{head}Content-Length: 1001\r\n\r\n")).await.unwrap();
    assert_eq!((announced.status, announced.code().as_str()), (413, "body_too_large"));
    let body = "z".repeat(2000);
    let grown = world.raw(format!("{head}Transfer-Encoding: chunked\r\n\r\n7d0\r\n{body}\r\n0\r\n\r\n")).await.unwrap();
    assert_eq!((grown.status, grown.code().as_str()), (413, "body_too_large"));
    let small = world.raw(format!("{head}Content-Length: 5\r\n\r\nhello")).await.unwrap();
    assert_eq!(small.body, "5");
}

#[tokio::test]
async fn links_never_share_a_connection_to_the_app() {
    let (world, app) = ready().await;
    assert_eq!(world.fetch("/a").await.status, 200);
    assert_eq!(world.fetch("/a").await.status, 200);
    assert_eq!(app.seen.connections.load(Ordering::SeqCst), 1);
    world.issue(NewLink { number: 99, cookie: OTHER, ..LINK }).await;
    let request = world.get("/a", "").replace(COOKIE, OTHER);
    assert_eq!(world.raw(request).await.unwrap().status, 200);
    assert_eq!(app.seen.connections.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_request_on_a_connection_that_the_app_just_closed_is_sent_again_once() {
    let world = World::start().await;
    // Answers once a connection and closes it without having said so.
    let app = App::raw(vec![b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"]).await;
    world.ready(app.address).await;
    for _ in 0..20 {
        assert_eq!(world.fetch("/x").await.body, "ok");
    }
    assert_eq!(app.seen.requests.load(Ordering::SeqCst), 20);
}

#[tokio::test]
async fn a_dead_a_broken_and_a_silent_app_each_have_their_answer() {
    let world = World::with(|config| config.timeouts.response_head = Duration::from_millis(200)).await;
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    world.ready(nobody).await;
    let answer = world.fetch("/x").await;
    assert_eq!((answer.status, answer.code().as_str()), (502, "app_unreachable"));
    assert!(!answer.body.contains("127.0.0.1") && !answer.body.contains(&nobody.port().to_string()));
    world.ready(App::raw(vec![b"NOT HTTP AT ALL\r\n\r\n"]).await.address).await;
    assert_eq!(world.fetch("/x").await.code(), "app_answer_invalid");
    world
        .ready(
            App::raw(vec![b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"])
                .await
                .address,
        )
        .await;
    assert_eq!(world.fetch("/x").await.status, 502);
    world.ready(App::start().await.address).await;
    let answer = world.fetch("/never").await;
    assert_eq!((answer.status, answer.code().as_str()), (504, "app_timeout"));
    let page = world.visit("/never").await;
    assert_eq!((page.status, page.header("content-type")), (504, "text/html; charset=utf-8"));
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_stream_along() {
    let (world, app) = ready().await;
    let mut client = world.client().await;
    client.send(world.get("/events", "")).await;
    client.head().await.unwrap();
    until("the stream is open", || world.activity.of(world.workspace()).is_some_and(|seen| seen.open_streams == 1))
        .await;
    drop(client);
    until("the app's stream ends", || app.seen.open_streams.load(Ordering::SeqCst) == 0).await;
    until("it is no activity any more", || world.activity.of(world.workspace()).unwrap().open_streams == 0).await;
}

#[tokio::test]
async fn streams_end_at_once_when_the_link_is_revoked() {
    let (world, app) = ready().await;
    let mut client = world.client().await;
    client.send(world.get("/events", "")).await;
    client.head().await.unwrap();
    client.chunk().await.unwrap();
    let begun = std::time::Instant::now();
    world.revoke().await;
    assert_eq!(client.chunk().await, None);
    assert!(begun.elapsed() < Duration::from_secs(1));
    until("the app's stream ends", || app.seen.open_streams.load(Ordering::SeqCst) == 0).await;
    let answer = world.fetch("/events").await;
    assert_eq!((answer.status, answer.code().as_str()), (410, "link_revoked"));
}

#[tokio::test]
async fn a_request_that_waits_for_its_answer_is_ended_by_expiry() {
    let (world, _app) = ready().await;
    world.issue(NewLink { number: 9, cookie: OTHER, lifetime: Millis::new(400), ..LINK }).await;
    let answer = world.raw(world.get("/never", "").replace(COOKIE, OTHER)).await.unwrap();
    assert_eq!((answer.status, answer.code().as_str()), (410, "link_expired"));
}

#[tokio::test]
async fn a_stopping_gateway_finishes_what_is_under_way() {
    let (world, _app) = ready().await;
    let mut busy = world.client().await;
    busy.send(world.get("/big?20000000", "")).await;
    assert_eq!(busy.head().await.unwrap().status, 200);
    let address = world.address();
    let reading = tokio::spawn(async move {
        let mut total = 0;
        let mut buffer = vec![0; 65_536];
        loop {
            match busy.stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return total,
                Ok(read) => total += read,
            }
        }
    });
    world.gateway.stop().await;
    assert_eq!(reading.await.unwrap(), 20_000_000);
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_not_waited_for() {
    let world = World::with(|config| config.timeouts.io.write = Duration::from_millis(300)).await;
    let app = App::start().await;
    world.ready(app.address).await;
    let mut client = world.client().await;
    client.send(world.get("/big?1000000000", "")).await;
    client.head().await.unwrap();
    // Nothing is read: the gateway gives up, and with it the stream counts no more.
    until("the stream ends", || world.activity.of(world.workspace()).unwrap().open_streams == 0).await;
    assert!(app.seen.produced.load(Ordering::SeqCst) < 100_000_000);
}

#[tokio::test]
async fn after_a_body_that_an_app_may_leave_unread_its_connection_is_not_used_again() {
    let (world, app) = ready().await;
    let mut client = world.client().await;
    for expected in [1, 2] {
        client.send(world.get("/x", "Content-Length: 5\r\n") + "hello").await;
        assert!(client.answer().await.unwrap().body.ends_with("hello"));
        assert_eq!(app.seen.connections.load(Ordering::SeqCst), expected);
    }
}
