//! WebSockets over HTTP/1.1: handshake, bytes, and every way to end.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use envforge_domain::dev_link::{RouteFamilies, RouteFamily};
use envforge_domain::time::Millis;
use envforge_gateway::Config;
use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Message, Role};

use crate::app::{App, SOON};
use crate::world::{COOKIE, LINK, NewLink, World, until};

const OTHER: &str = "other67890123456789012345678901234567890abc";

const HANDSHAKE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

async fn ready() -> (World, App) {
    let (world, app) = (World::start().await, App::start().await);
    world.ready(app.address).await;
    (world, app)
}

impl World {
    fn own_origin(&self) -> String {
        format!("Origin: http://{}\r\n", self.host())
    }

    pub(crate) async fn socket(&self, path: &str) -> WebSocketStream<TcpStream> {
        self.socket_of(path, COOKIE).await
    }

    pub(crate) async fn socket_of(&self, path: &str, cookie: &str) -> WebSocketStream<TcpStream> {
        let mut client = self.client().await;
        let request = self.get(path, &format!("{HANDSHAKE}{}", self.own_origin()));
        client.send(request.replace(COOKIE, cookie)).await;
        let answer = client.head().await.unwrap();
        assert_eq!((answer.status, answer.header("sec-websocket-accept")), (101, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        WebSocketStream::from_raw_socket(client.stream.into_inner(), Role::Client, None).await
    }
}

pub(crate) async fn next(socket: &mut WebSocketStream<TcpStream>) -> Option<Message> {
    tokio::time::timeout(SOON, socket.next()).await.expect("a message in time").and_then(Result::ok)
}

pub(crate) fn close_code(message: Option<Message>) -> Option<u16> {
    match message {
        Some(Message::Close(Some(frame))) => Some(frame.code.into()),
        _ => None,
    }
}

#[tokio::test]
async fn messages_of_any_size_come_back_in_order() {
    let (world, app) = ready().await;
    let mut socket = world.socket("/ws").await;
    for size in [0, 1, 125, 126, 65_535, 65_536, 1_000_000] {
        let message = Message::binary(vec![size as u8; size]);
        socket.send(message.clone()).await.unwrap();
        assert_eq!(next(&mut socket).await, Some(message));
    }
    let seen = world.activity.of(world.workspace()).unwrap();
    assert_eq!((seen.open_streams, seen.open_sockets), (1, 1));
    socket.close(None).await.unwrap();
    while next(&mut socket).await.is_some() {}
    until("the app's socket ends", || app.seen.open_streams.load(Ordering::SeqCst) == 0).await;
    until("nothing is open", || world.activity.of(world.workspace()).unwrap().open_sockets == 0).await;
}

#[tokio::test]
async fn a_revoked_link_closes_silent_and_chatty_sockets_within_a_second() {
    let (world, app) = ready().await;
    let mut sockets = Vec::new();
    for _ in 0..20 {
        let mut socket = world.socket("/ws").await;
        socket.send(Message::text("hello")).await.unwrap();
        assert_eq!(next(&mut socket).await, Some(Message::text("hello")));
        sockets.push(socket);
    }
    let begun = Instant::now();
    world.revoke().await;
    for (index, socket) in sockets.iter_mut().enumerate() {
        if index % 2 == 0 {
            let _ = socket.send(Message::text("still here?")).await;
        }
        loop {
            match next(socket).await {
                Some(Message::Text(_)) => {}
                closed => {
                    assert_eq!(close_code(closed), Some(4403));
                    break;
                }
            }
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    until("the app's sockets end", || app.seen.open_streams.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn expiry_narrowing_and_shutdown_close_sockets_with_their_code() {
    let (world, _app) = ready().await;
    let mut narrowed = world.socket("/ws").await;
    world.narrow(RouteFamilies::NONE.with(RouteFamily::Web)).await;
    assert_eq!(close_code(next(&mut narrowed).await), Some(4403));

    let (world, _app) = ready().await;
    world.issue(NewLink { number: 9, cookie: OTHER, lifetime: Millis::new(500), ..LINK }).await;
    let mut expiring = world.socket_of("/ws", OTHER).await;
    assert_eq!(close_code(next(&mut expiring).await), Some(4403));

    let (world, _app) = ready().await;
    let mut open = world.socket("/ws").await;
    world.gateway.stop().await;
    assert_eq!(close_code(next(&mut open).await), Some(1012));
}

#[tokio::test]
async fn an_idle_socket_is_closed_and_a_used_one_is_not() {
    let world = World::with(|config| config.timeouts.websocket_idle = Duration::from_millis(600)).await;
    let app = App::start().await;
    world.ready(app.address).await;
    let (mut idle, mut used) = (world.socket("/ws").await, world.socket("/ws").await);
    let begun = Instant::now();
    let mut rounds = 0;
    loop {
        used.send(Message::text("ping")).await.unwrap();
        assert_eq!(next(&mut used).await, Some(Message::text("ping")));
        rounds += 1;
        if let Ok(message) = tokio::time::timeout(Duration::from_millis(100), idle.next()).await {
            assert_eq!(close_code(message.and_then(Result::ok)), Some(4408));
            break;
        }
        assert!(begun.elapsed() < SOON);
    }
    assert!(rounds >= 3 && begun.elapsed() >= Duration::from_millis(500));
}

#[tokio::test]
async fn sockets_open_only_from_the_own_origin_on_declared_paths_with_a_whole_handshake() {
    let (world, app) = ready().await;
    let own = world.own_origin();
    for (path, headers, status, code) in [
        ("/ws", HANDSHAKE.to_owned(), 403, "foreign_origin"),
        ("/ws", format!("{HANDSHAKE}Origin: http://web--other--acme.dev.localhost\r\n"), 403, "foreign_origin"),
        ("/ws", format!("{HANDSHAKE}Origin: null\r\nSec-Fetch-Site: same-origin\r\n"), 403, "foreign_origin"),
        ("/ws", format!("{HANDSHAKE}{own}Sec-Fetch-Site: same-site\r\n"), 403, "foreign_site"),
        ("/other", format!("{HANDSHAKE}{own}"), 403, "websocket_not_declared"),
        ("/api/other", format!("{HANDSHAKE}{own}"), 403, "websocket_not_declared"),
        ("/ws", format!("{own}{}", HANDSHAKE.replace("13", "8")), 400, "bad_websocket_handshake"),
        ("/ws", format!("{own}{}", HANDSHAKE.replace("dGhl", "")), 400, "bad_websocket_handshake"),
        ("/ws", format!("{own}{}", HANDSHAKE.replace("Connection: Upgrade\r\n", "")), 400, "bad_websocket_handshake"),
        ("//ws", format!("{HANDSHAKE}{own}"), 400, "ambiguous_path"),
    ] {
        let answer = world.raw(world.get(path, &headers)).await.unwrap();
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{path} {headers:?}");
    }
    assert_eq!(app.seen.requests.load(Ordering::SeqCst), 0);
    // An app that says no in HTTP is heard, and the connection goes on.
    let mut client = world.client().await;
    client.send(world.get("/ws/refused", &format!("{HANDSHAKE}{own}"))).await;
    assert_eq!(client.answer().await.unwrap().status, 401);
    client.send(world.get("/after", "")).await;
    assert!(client.answer().await.unwrap().body.starts_with("GET /after\n"));
}

#[tokio::test]
async fn a_link_without_api_opens_no_socket_below_it() {
    let (world, _app) = ready().await;
    drop(world.socket("/api/live").await);
    let mut open = world.socket("/api/live").await;
    world.narrow(RouteFamilies::ALL.minus(RouteFamilies::NONE.with(RouteFamily::Api))).await;
    assert_eq!(close_code(next(&mut open).await), Some(4403));
    let answer = world.raw(world.get("/api/live", &format!("{HANDSHAKE}{}", world.own_origin()))).await.unwrap();
    assert_eq!(answer.code(), "route_not_included");
}

#[tokio::test]
async fn bytes_before_the_101_reach_no_app() {
    let (world, app) = ready().await;
    let mut client = world.client().await;
    let mut request = world.get("/ws", &format!("{HANDSHAKE}{}", world.own_origin())).into_bytes();
    request.extend_from_slice(b"\x81\x85\0\0\0\0early");
    client.send(request).await;
    let _ = client.head().await;
    assert!(client.is_closed().await);
    until("the app's socket ends", || app.seen.open_streams.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn an_app_with_a_wrong_101_opens_nothing() {
    let world = World::start().await;
    for wrong in [
        &b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: wrong\r\n\r\n"[..],
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: other\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    ] {
        let app = App::raw(vec![wrong]).await;
        world.ready(app.address).await;
        let answer = world.raw(world.get("/ws", &format!("{HANDSHAKE}{}", world.own_origin()))).await.unwrap();
        assert_eq!((answer.status, answer.code().as_str()), (502, "app_answer_invalid"));
    }
}

#[tokio::test]
async fn sockets_of_one_link_are_limited() {
    let world = World::with(|config| config.limits.websockets_per_link_max = 2).await;
    let app = App::start().await;
    world.ready(app.address).await;
    let (first, _second) = (world.socket("/ws").await, world.socket("/ws").await);
    let request = world.get("/ws", &format!("{HANDSHAKE}{}", world.own_origin()));
    assert_eq!(world.raw(&request).await.unwrap().code(), "app_busy");
    drop(first);
    until("one has ended", || world.activity.of(world.workspace()).unwrap().open_sockets == 1).await;
    drop(world.socket("/ws").await);
}

/// Sockets stay open for hours: they take no request's place, nor that of the next socket.
#[tokio::test]
async fn open_sockets_keep_no_connection_of_their_link_from_requests() {
    let one = |config: &mut Config| {
        config.limits.upstream_connections_per_link_max = 1;
        config.limits.upstream_connections_per_endpoint_max = 1;
        config.timeouts.upstream_connect = Duration::from_millis(500);
    };
    let world = World::with(one).await;
    let app = App::start().await;
    world.ready(app.address).await;
    let _open = [world.socket("/ws").await, world.socket("/ws").await, world.socket("/ws").await];
    assert_eq!(world.raw(world.get("/", "")).await.unwrap().status, 200);
    drop(world.socket("/ws").await);
}

#[tokio::test]
async fn without_word_from_the_log_what_is_open_ends() {
    // Above the log's heartbeat of one second.
    let world = World::with(|config| config.timeouts.staleness_max = Duration::from_millis(1_500)).await;
    let app = App::start().await;
    world.ready(app.address).await;
    let mut socket = world.socket("/ws").await;
    let (mut events, mut waiting, mut download) = (world.client().await, world.client().await, world.client().await);
    events.send(world.get("/events", "")).await;
    assert_eq!(events.head().await.unwrap().status, 200);
    assert_eq!(events.chunk().await.unwrap(), b"data: hello\n\n");
    waiting.send(world.get("/never", "")).await;
    download.send(world.get("/big?10000000000", "")).await;
    assert_eq!(download.head().await.unwrap().status, 200);
    until("all are open", || world.activity.of(world.workspace()).is_some_and(|seen| seen.open_streams == 4)).await;
    let taking = tokio::spawn(async move {
        let mut buffer = vec![0; 65_536];
        while let Ok(1..) = tokio::io::AsyncReadExt::read(&mut download.stream, &mut buffer).await {}
    });
    world.deaf.cancel();
    assert_eq!(close_code(next(&mut socket).await), Some(1013));
    assert_eq!(events.chunk().await, None);
    assert_eq!(waiting.answer().await.unwrap().code(), "authorization_stale");
    tokio::time::timeout(SOON, taking).await.expect("the download ends in time").unwrap();
    until("nothing is open", || world.activity.of(world.workspace()).unwrap().open_streams == 0).await;
}
