//! What the gateway refuses before it looks anything up, by raw bytes.

use std::time::Duration;

use envforge_gateway::ProtocolFault;

use crate::app::App;
use crate::client::Client;
use crate::world::World;

async fn ready() -> (World, App) {
    let (world, app) = (World::start().await, App::start().await);
    world.ready(app.address).await;
    (world, app)
}

#[tokio::test]
async fn every_ambiguous_request_is_refused_with_its_code_and_its_connection_closed() {
    let (world, app) = ready().await;
    let (host, cookie) = (world.host(), world.cookie_header());
    let start = |line: &str| format!("{line}\r\nHost: {host}\r\nCookie: {cookie}\r\n");
    let post = start("POST / HTTP/1.1");
    let get = start("GET / HTTP/1.1");
    let table: Vec<(String, ProtocolFault)> = vec![
        (format!("{post}Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"), ProtocolFault::RepeatedContentLength),
        (format!("{post}Content-Length: 2\r\nContent-Length: 2\r\n\r\nab"), ProtocolFault::RepeatedContentLength),
        (format!("{post}Content-Length: 2, 2\r\n\r\nab"), ProtocolFault::ContentLength),
        (format!("{post}Content-Length: +2\r\n\r\nab"), ProtocolFault::ContentLength),
        (
            format!("{post}Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            ProtocolFault::LengthAndEncoding,
        ),
        (
            format!("{post}Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n"),
            ProtocolFault::LengthAndEncoding,
        ),
        (format!("{post}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"), ProtocolFault::TransferEncoding),
        (
            format!("{post}Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n"),
            ProtocolFault::TransferEncoding,
        ),
        (format!("{post}Transfer-Encoding: \u{b}chunked\r\n\r\n0\r\n\r\n"), ProtocolFault::HeaderValue),
        (format!("{get}X-A: b\r\n c\r\n\r\n"), ProtocolFault::FoldedHeader),
        (format!("{get}X-A : b\r\n\r\n"), ProtocolFault::HeaderName),
        (format!("{get}X-A: b\0c\r\n\r\n"), ProtocolFault::HeaderValue),
        (format!("{get}X-A: b\rc: d\r\n\r\n"), ProtocolFault::HeaderValue),
        (get.replace("\r\n", "\n") + "\n", ProtocolFault::BareLineFeed),
        (format!("{get}X-A: b\n\r\n"), ProtocolFault::BareLineFeed),
        (format!("{get}Host: {host}\r\n\r\n"), ProtocolFault::RepeatedHost),
        ("GET / HTTP/1.1\r\nX-A: b\r\n\r\n".to_owned(), ProtocolFault::MissingHost),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n".to_owned(), ProtocolFault::InvalidHost),
        ("GET / HTTP/1.1\r\nHost: user@host\r\n\r\n".to_owned(), ProtocolFault::InvalidHost),
        (start("GET http://evil.example/ HTTP/1.1") + "\r\n", ProtocolFault::AbsoluteForm),
        (start(&format!("GET http://{host}/ HTTP/1.1")) + "\r\n", ProtocolFault::AbsoluteForm),
        (start(&format!("GET HTTPS://{host}/ HTTP/1.1")) + "\r\n", ProtocolFault::AbsoluteForm),
        (start("GET ftp://evil.example/ HTTP/1.1") + "\r\n", ProtocolFault::Target),
        (start("CONNECT evil.example:443 HTTP/1.1") + "\r\n", ProtocolFault::Connect),
        (start("TRACE / HTTP/1.1") + "\r\n", ProtocolFault::Method),
        (start("ENVFORGE-REFUSED /bad_target HTTP/1.1") + "\r\n", ProtocolFault::Method),
        (
            format!(
                "{get}Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
            ),
            ProtocolFault::UpgradeToken,
        ),
        (format!("{get}Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n\r\n"), ProtocolFault::UpgradeToken),
        (start("POST / HTTP/1.0") + "Content-Length: 2\r\n\r\nab", ProtocolFault::OldVersionBody),
        (format!("{get}Expect: something\r\n\r\n"), ProtocolFault::Expectation),
        (start("GET / HTTP/3.0") + "\r\n", ProtocolFault::Version),
        (format!("\r\n{get}\r\n"), ProtocolFault::RequestLine),
        (format!("{get}X-A: {}\r\n\r\n", "b".repeat(20_000)), ProtocolFault::HeadTooLarge),
        (format!("{get}{}\r\n", "X-A: b\r\n".repeat(100)), ProtocolFault::TooManyHeaders),
        (format!("{get}X-A: {}", "b".repeat(400_000)), ProtocolFault::HeadTooLarge),
    ];
    for (request, fault) in table {
        let shown: String = request.chars().take(200).collect();
        let mut client = world.client().await;
        client.send(&request).await;
        let answer = client.answer().await.unwrap_or_else(|| panic!("no answer to {shown:?}"));
        assert_eq!((answer.status, answer.code().as_str()), (fault.status().as_u16(), fault.code()), "{shown:?}");
        assert!(client.is_closed().await, "still open after {shown:?}");
    }
    assert_eq!(app.seen.requests.load(std::sync::atomic::Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_refused_request_behind_a_good_one_does_not_take_it_along() {
    let (world, _app) = ready().await;
    let mut client = world.client().await;
    client.send(world.get("/first", "") + &world.get("/second", "Host: twice\r\n") + &world.get("/third", "")).await;
    assert!(client.answer().await.unwrap().body.starts_with("GET /first\n"));
    assert_eq!(client.answer().await.unwrap().code(), "host_repeated");
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn pipelined_requests_with_bodies_are_told_apart() {
    let (world, app) = ready().await;
    let host = world.host();
    let origin = format!("http://{host}");
    let head = format!("POST /x HTTP/1.1\r\nHost: {host}\r\nCookie: {}\r\nOrigin: {origin}\r\n", world.cookie_header());
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut client = world.client().await;
    client
        .send(
            format!("{head}Content-Length: {}\r\n\r\n{smuggled}", smuggled.len())
                + &format!("{head}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{smuggled}\r\n0\r\n\r\n", smuggled.len())
                + &world.get("/last", ""),
        )
        .await;
    for _ in 0..2 {
        let answer = client.answer().await.unwrap();
        assert!(answer.body.starts_with("POST /x\n") && answer.body.ends_with(smuggled), "{answer:?}");
    }
    assert!(client.answer().await.unwrap().body.starts_with("GET /last\n"));
    assert_eq!(app.seen.requests.load(std::sync::atomic::Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_chunk_with_extension_ends_the_connection_and_reaches_no_app_whole() {
    let (world, app) = ready().await;
    let host = world.host();
    let request = format!(
        "POST /upload HTTP/1.1\r\nHost: {host}\r\nCookie: {}\r\nOrigin: http://{host}\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\n\r\n",
        world.cookie_header()
    );
    let mut client = world.client().await;
    client.send(request).await;
    // Whatever is said, it is no success, and the connection does not go on.
    assert!(client.answer().await.is_none_or(|answer| answer.status >= 400));
    assert!(client.is_closed().await);
    assert_eq!(app.seen.uploaded.load(std::sync::atomic::Ordering::SeqCst), 0);
}

#[tokio::test]
async fn ambiguous_paths_are_refused_where_a_prefix_decides() {
    let (world, app) = ready().await;
    for path in [
        "/api%2fx",
        "/%61pi",
        "//api",
        "/x//api",
        "/x/..%2fapi",
        "/x/../api",
        "/x/%2e%2e/api",
        "/api;x",
        "/x\\api",
        "/%00",
        "/x%0d%0ay",
        "/x/.",
        "/%5capi",
        "/%2561pi",
    ] {
        let answer = world.fetch(path).await;
        assert_eq!((answer.status, answer.code().as_str()), (400, "ambiguous_path"), "{path}");
    }
    assert_eq!(app.seen.requests.load(std::sync::atomic::Ordering::SeqCst), 0);
    assert!(
        world
            .fetch("/caf%C3%A9/.well-known?x=%2e%2e%2f")
            .await
            .body
            .starts_with("GET /caf%C3%A9/.well-known?x=%2e%2e%2f\n")
    );
}

#[tokio::test]
async fn a_head_in_single_bytes_is_understood_and_a_head_that_stops_is_not_waited_for() {
    let (world, app) =
        (World::with(|config| config.timeouts.io.head = Duration::from_secs(1)).await, App::start().await);
    world.ready(app.address).await;
    let mut client = world.client().await;
    for byte in world.get("/slow", "").as_bytes() {
        client.send([*byte]).await;
    }
    assert!(client.answer().await.unwrap().body.starts_with("GET /slow\n"));
    client.send("GET /never HTTP/1.1\r\nHost").await;
    assert!(client.is_closed().await);
    let mut silent = world.client().await;
    assert!(silent.is_closed().await);
    // A byte now and then is no progress.
    let mut dripping = world.client().await;
    let begun = tokio::time::Instant::now();
    let drip = async {
        for byte in world.get(&format!("/{}", "x".repeat(2_000)), "").as_bytes() {
            dripping.send([*byte]).await;
            tokio::time::sleep(Duration::from_millis(25)).await; // pause: a client that drips on purpose
            if tokio::time::timeout(Duration::from_millis(1), dripping.is_closed()).await.is_ok() {
                return true;
            }
        }
        false
    };
    assert!(drip.await && begun.elapsed() < Duration::from_secs(8));
}

#[tokio::test]
async fn an_idle_connection_is_closed_but_not_while_it_waits_for_an_answer() {
    let world = World::with(|config| config.timeouts.io.idle = Duration::from_millis(200)).await;
    let app = App::start().await;
    world.ready(app.address).await;
    let mut waiting = world.client().await;
    waiting.send(world.get("/events", "")).await;
    assert_eq!(waiting.head().await.unwrap().status, 200);
    assert_eq!(waiting.chunk().await.unwrap(), b"data: hello\n\n");
    let mut idle = world.client().await;
    idle.send(world.get("/x", "")).await;
    assert_eq!(idle.answer().await.unwrap().status, 200);
    assert!(idle.is_closed().await);
    // The stream has been silent for longer than the idle connection was.
    assert_eq!(app.seen.open_streams.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[tokio::test]
async fn connections_of_one_address_are_limited_and_leave_room_when_they_end() {
    let world = World::with(|config| config.limits.connections_per_address_max = 2).await;
    let app = App::start().await;
    world.ready(app.address).await;
    let mut first = world.client().await;
    let mut second = world.client().await;
    for client in [&mut first, &mut second] {
        client.send(world.get("/x", "")).await;
        assert_eq!(client.answer().await.unwrap().status, 200);
    }
    assert!(world.client().await.is_closed().await);
    drop(first);
    let deadline = tokio::time::Instant::now() + crate::app::SOON;
    loop {
        let mut third = Client::connect(world.address()).await;
        third.send(world.get("/x", "")).await;
        if third.answer().await.is_some_and(|answer| answer.status == 200) {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "no room after a connection ended");
    }
}

#[tokio::test]
async fn no_spelling_of_a_path_gets_a_link_without_api_to_the_api() {
    let (world, app) = ready().await;
    let web_only = envforge_domain::dev_link::RouteFamilies::NONE.with(envforge_domain::dev_link::RouteFamily::Web);
    world.narrow(web_only).await;
    // A fixed sequence (Knuth's MMIX constants), so that a failure repeats.
    let mut state = 1_u64;
    let mut pick = move |count: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % count
    };
    let mut client = world.client().await;
    let mut passed = 0;
    for _ in 0..3_000 {
        let mut path = String::new();
        for byte in "/api/orders".bytes() {
            let character = char::from(byte);
            match (character, pick(12)) {
                ('/', 0) => path.push_str("//"),
                ('/', 1) => path.push_str("/./"),
                ('/', 2) => path.push_str("/x/../"),
                ('/', 3) => path.push_str("/%2e/"),
                ('/', 4) => path.push_str("%2f"),
                ('/', 5) => path.push_str("/x/..%2f"),
                ('/', 6) => path.push_str(";/"),
                ('/', 7) => path.push('\\'),
                (_, 0) => path.push_str(&format!("%{byte:02x}")),
                (_, 1) => path.push_str(&format!("%{byte:02X}")),
                (_, 2) => path.push_str(&format!("%25{byte:02x}")),
                (_, 3) => path.push(character.to_ascii_uppercase()),
                _ => path.push(character),
            }
        }
        client.send(world.get(&path, "")).await;
        let Some(answer) = client.answer().await else {
            client = world.client().await;
            continue;
        };
        if answer.status == 200 {
            passed += 1;
            assert!(!path.starts_with("/api"), "{path}");
            // What passed reads as another path, however often it is decoded and folded.
            let mut decoded = path.clone();
            for _ in 0..3 {
                decoded = percent_encoding::percent_decode_str(&decoded).decode_utf8_lossy().into_owned();
            }
            assert!(!decoded.starts_with("/api/") && !decoded.starts_with("//"), "{path} reads as {decoded}");
        }
        if answer.header("connection") == "close" || answer.status == 400 {
            client = world.client().await;
        }
    }
    assert_eq!(app.seen.requests.load(std::sync::atomic::Ordering::SeqCst), passed);
}
