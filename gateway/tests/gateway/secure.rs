//! TLS from files with reload, HTTP/2, and WebSockets over HTTP/2.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use envforge_domain::time::Millis;
use envforge_gateway::{Config, Scheme, TlsFiles};
use futures_util::{SinkExt, StreamExt};
use http::{Method, Request};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Message, Role};

use crate::app::App;
use crate::client::Client;
use crate::world::{COOKIE, DOMAIN, LABEL, LINK, NewLink, World};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gateway").join(name)
}

fn secure(config: &mut Config) {
    config.scheme = Scheme::Https;
    config.public_port = 443;
    config.tls =
        Some(TlsFiles { certificate_chain: file("test-localhost.pem"), private_key: file("test-localhost.key") });
}

async fn connect(world: &World, name: &str, protocols: &[&[u8]]) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(file("test-ca.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let stream = TcpStream::connect(world.address()).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(name.to_owned()).unwrap(), stream).await
}

fn host() -> String {
    format!("{LABEL}.{DOMAIN}")
}

#[tokio::test]
async fn over_tls_the_cookie_is_host_bound_and_the_app_hears_https() {
    let (world, app) = (World::with(secure).await, App::start().await);
    world.ready(app.address).await;
    let mut client =
        Client { stream: tokio::io::BufReader::new(connect(&world, &host(), &[b"http/1.1"]).await.unwrap()) };
    client
        .send(format!("GET /x HTTP/1.1\r\nHost: {}\r\nCookie: __Host-envforge_session={COOKIE}\r\n\r\n", host()))
        .await;
    let answer = client.answer().await.unwrap();
    assert!(answer.body.contains("x-forwarded-proto: https") && !answer.body.contains("cookie:"), "{answer:?}");
    // The name without the prefix is nobody's session here.
    client.send(format!("GET /x HTTP/1.1\r\nHost: {}\r\nCookie: envforge_session={COOKIE}\r\n\r\n", host())).await;
    assert_eq!(client.answer().await.unwrap().code(), "access_required");
    // One connection, one name.
    client.send(format!("GET /x HTTP/1.1\r\nHost: web--other--acme.{DOMAIN}\r\n\r\n")).await;
    let answer = client.answer().await.unwrap();
    assert_eq!((answer.status, answer.code().as_str()), (421, "misdirected_request"));
}

#[tokio::test]
async fn http_2_is_served_with_many_streams_and_split_cookies() {
    let (world, app) = (World::with(secure).await, App::start().await);
    world.ready(app.address).await;
    let stream = connect(&world, &host(), &[b"h2", b"http/1.1"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (sender, connection) =
        hyper::client::conn::http2::handshake::<_, _, Full<Bytes>>(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let requests: Vec<_> = (0..40)
        .map(|index| {
            let mut sender = sender.clone();
            tokio::spawn(async move {
                let request = Request::builder()
                    .method(Method::POST)
                    .uri(format!("https://{}/{index}", host()))
                    .header("cookie", "a=b")
                    .header("cookie", format!("__Host-envforge_session={COOKIE}"))
                    .header("cookie", "c=d")
                    .header("origin", format!("https://{}", host()))
                    .body(Full::new(Bytes::from(format!("body {index}"))))
                    .unwrap();
                let answer = sender.send_request(request).await.unwrap();
                assert_eq!(answer.status(), 200);
                let body = answer.into_body().collect().await.unwrap().to_bytes();
                let text = String::from_utf8(body.to_vec()).unwrap();
                assert!(text.starts_with(&format!("POST /{index}\n")), "{text}");
                assert!(text.contains("\ncookie: a=b; c=d\n"), "{text}");
                assert!(text.contains(&format!("\nhost: {}\n", host())), "{text}");
                assert!(text.ends_with(&format!("\nbody {index}")), "{text}");
            })
        })
        .collect();
    for request in requests {
        request.await.unwrap();
    }
}

#[tokio::test]
async fn http_2_requests_with_two_meanings_are_refused() {
    let (world, app) = (World::with(secure).await, App::start().await);
    world.ready(app.address).await;
    let stream = connect(&world, &host(), &[b"h2"]).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake::<_, _, Empty<Bytes>>(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let request =
        |uri: String| Request::builder().uri(uri).header("cookie", format!("__Host-envforge_session={COOKIE}"));
    let two_hosts = request(format!("https://{}/", host())).header("host", "other").body(Empty::new()).unwrap();
    assert_eq!(sender.send_request(two_hosts).await.unwrap().status(), 400);
    let other_host = request(format!("https://web--other--acme.{DOMAIN}/")).body(Empty::new()).unwrap();
    assert_eq!(sender.send_request(other_host).await.unwrap().status(), 421);
    let refused =
        request(format!("https://{}/bad_target", host())).method("ENVFORGE-REFUSED").body(Empty::new()).unwrap();
    assert_eq!(sender.send_request(refused).await.unwrap().status(), 403);
    let fine = request(format!("https://{}/fine", host())).body(Empty::new()).unwrap();
    assert_eq!(sender.send_request(fine).await.unwrap().status(), 200);
    assert_eq!(app.seen.requests.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_websocket_over_http_2_echoes_and_is_closed_when_revoked() {
    let (world, app) = (World::with(secure).await, App::start().await);
    world.ready(app.address).await;
    let stream = connect(&world, &host(), &[b"h2"]).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake::<_, _, Empty<Bytes>>(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    // The server's settings allow the protocol once they have arrived.
    let warm = Request::builder()
        .uri(format!("https://{}/warm", host()))
        .header("cookie", format!("__Host-envforge_session={COOKIE}"))
        .body(Empty::new())
        .unwrap();
    assert_eq!(sender.send_request(warm).await.unwrap().status(), 200);
    let request = Request::builder()
        .method(Method::CONNECT)
        .uri(format!("https://{}/ws", host()))
        .extension(hyper::ext::Protocol::from_static("websocket"))
        .header("cookie", format!("__Host-envforge_session={COOKIE}"))
        .header("origin", format!("https://{}", host()))
        .header("sec-websocket-version", "13")
        .body(Empty::new())
        .unwrap();
    let answer = sender.send_request(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    let upgraded = hyper::upgrade::on(answer).await.unwrap();
    let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await;
    socket.send(Message::text("over h2")).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("over h2"));
    world.revoke().await;
    let closed = tokio::time::timeout(crate::app::SOON, socket.next()).await.unwrap();
    assert!(matches!(closed, Some(Ok(Message::Close(Some(frame)))) if u16::from(frame.code) == 4403));
}

async fn taken_to_its_end(stream: &mut TlsStream<TcpStream>) {
    let mut buffer = [0; 4096];
    let ends = async { while let Ok(1..) = stream.read(&mut buffer).await {} };
    tokio::time::timeout(crate::app::SOON, ends).await.expect("an end in time");
}

#[tokio::test]
async fn an_http_2_client_that_says_nothing_is_not_waited_for() {
    let world = World::with(|config| {
        secure(config);
        config.timeouts.io.head = Duration::from_millis(300);
    })
    .await;
    let mut silent = connect(&world, &host(), &[b"h2"]).await.unwrap();
    taken_to_its_end(&mut silent).await;
    // Half a preface is none, however slowly the rest comes.
    let mut slow = connect(&world, &host(), &[b"h2"]).await.unwrap();
    slow.write_all(b"PRI * HTTP/2.0").await.unwrap();
    taken_to_its_end(&mut slow).await;
}

#[tokio::test]
async fn an_http_2_client_that_does_not_answer_a_shutdown_is_not_waited_for() {
    let world = World::with(|config| {
        secure(config);
        config.timeouts.io.idle = Duration::from_millis(300);
        config.timeouts.drain = Duration::from_millis(300);
    })
    .await;
    let mut stream = connect(&world, &host(), &[b"h2"]).await.unwrap();
    // The preface and empty settings, then not a word.
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    taken_to_its_end(&mut stream).await;
}

type Upload = http_body_util::combinators::UnsyncBoxBody<Bytes, std::convert::Infallible>;

/// A client whose windows are closed: it gets heads and takes no body.
async fn takes_nothing(world: &World) -> hyper::client::conn::http2::SendRequest<Upload> {
    let stream = connect(world, &host(), &[b"h2"]).await.unwrap();
    let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(0)
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

fn get(path: &str, cookie: &str) -> Request<Upload> {
    Request::builder()
        .uri(format!("https://{}{path}", host()))
        .header("cookie", format!("__Host-envforge_session={cookie}"))
        .body(Empty::new().boxed_unsync())
        .unwrap()
}

async fn nothing_is_open(world: &World) {
    let open = || world.activity.of(world.workspace()).unwrap().open_streams;
    crate::world::until("nothing is open", || open() == 0).await;
}

#[tokio::test]
async fn a_closed_window_defeats_neither_revocation_nor_expiry() {
    const OTHER: &str = "other67890123456789012345678901234567890abc";
    let (world, app) = (World::with(secure).await, App::start().await);
    world.ready(app.address).await;
    let mut client = takes_nothing(&world).await;
    world.issue(NewLink { number: 9, cookie: OTHER, lifetime: Millis::new(500), ..LINK }).await;
    let expiring = client.send_request(get("/big?10000000", OTHER)).await.unwrap();
    assert_eq!(expiring.status(), 200);
    nothing_is_open(&world).await;
    assert!(expiring.into_body().collect().await.is_err());
    let revoked = client.send_request(get("/big?10000000", COOKIE)).await.unwrap();
    assert_eq!(revoked.status(), 200);
    assert_eq!(world.activity.of(world.workspace()).unwrap().open_streams, 1);
    world.revoke().await;
    nothing_is_open(&world).await;
    assert!(revoked.into_body().collect().await.is_err());
}

#[tokio::test]
async fn a_stream_of_which_nothing_is_taken_ends_and_leaves_the_others() {
    let world = World::with(|config| {
        secure(config);
        config.timeouts.io.write = Duration::from_millis(300);
    })
    .await;
    let app = App::start().await;
    world.ready(app.address).await;
    let mut client = takes_nothing(&world).await;
    // Of an app and, for who has no session, of the gateway itself.
    let stalled = client.send_request(get("/big?10000000", COOKIE)).await.unwrap();
    let refused = client.send_request(get("/x", "nobodys")).await.unwrap();
    assert_eq!((stalled.status().as_u16(), refused.status().as_u16()), (200, 403));
    for answer in [stalled, refused] {
        let end = tokio::time::timeout(crate::app::SOON, answer.into_body().collect()).await.expect("an end in time");
        assert!(end.is_err());
    }
    nothing_is_open(&world).await;
    assert_eq!(client.send_request(get("/none", COOKIE)).await.unwrap().status(), 204);
}

#[tokio::test]
async fn an_http_2_upload_that_stops_is_not_waited_for() {
    let world = World::with(|config| {
        secure(config);
        config.timeouts.io.body = Duration::from_millis(300);
    })
    .await;
    let app = App::start().await;
    world.ready(app.address).await;
    let mut client = takes_nothing(&world).await;
    let first = futures_util::stream::once(async { Ok(hyper::body::Frame::data(Bytes::from_static(b"hello"))) });
    let body = StreamBody::new(first.chain(futures_util::stream::pending()));
    let mut request = get("/upload", COOKIE);
    *request.method_mut() = Method::POST;
    request.headers_mut().insert("origin", format!("https://{}", host()).parse().unwrap());
    let request = request.map(|_| body.boxed_unsync());
    let answer = tokio::time::timeout(crate::app::SOON, client.send_request(request)).await.expect("in time").unwrap();
    assert_eq!(answer.status(), 408);
}

#[tokio::test]
async fn an_event_stream_over_http_2_ends_when_the_link_is_revoked() {
    let (world, app) = (World::with(secure).await, App::start().await);
    world.ready(app.address).await;
    let stream = connect(&world, &host(), &[b"h2"]).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake::<_, _, Upload>(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let mut events = sender.send_request(get("/events", COOKIE)).await.unwrap().into_body();
    assert_eq!(events.frame().await.unwrap().unwrap().into_data().unwrap(), "data: hello\n\n");
    world.revoke().await;
    let end = tokio::time::timeout(Duration::from_secs(1), events.frame()).await.expect("an end at once");
    assert!(end.is_none_or(|frame| frame.is_err()));
    nothing_is_open(&world).await;
    crate::world::until("the app's stream ends", || app.seen.open_streams.load(Ordering::SeqCst) == 0).await;
    assert_eq!(sender.send_request(get("/events", COOKIE)).await.unwrap().status(), 410);
}

/// The certificate that a new connection is shown.
async fn shown(world: &World) -> CertificateDer<'static> {
    let stream = connect(world, &host(), &[b"h2"]).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

#[tokio::test]
async fn a_changed_certificate_is_used_and_a_broken_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let files = TlsFiles {
        certificate_chain: directory.path().join("chain.pem"),
        private_key: directory.path().join("key.pem"),
    };
    let put = |name: &str| {
        std::fs::copy(file(&format!("{name}.pem")), &files.certificate_chain).unwrap();
        std::fs::copy(file(&format!("{name}.key")), &files.private_key).unwrap();
    };
    let certificate = |name: &str| CertificateDer::from_pem_file(file(name)).unwrap();
    put("test-localhost");
    let given = files.clone();
    let world = World::with(move |config| {
        secure(config);
        config.tls = Some(given);
    })
    .await;
    let (first, renewed) = (certificate("test-localhost.pem"), certificate("test-localhost-renewed.pem"));
    assert_eq!(shown(&world).await, first);
    let certificates = world.gateway.certificates().unwrap();
    assert!(!certificates.reload_if_changed().unwrap());
    // A certificate that does not belong to the key changes nothing: half of a renewal may be on the disk already.
    std::fs::copy(file("test-localhost-renewed.pem"), &files.certificate_chain).unwrap();
    assert!(certificates.reload_if_changed().is_err());
    assert_eq!(shown(&world).await, first);
    std::fs::write(&files.certificate_chain, "").unwrap();
    assert!(certificates.reload().is_err());
    assert_eq!(shown(&world).await, first);
    put("test-localhost-renewed");
    assert!(certificates.reload_if_changed().unwrap());
    assert_eq!(shown(&world).await, renewed);
    // Plain http on a TLS port is no request.
    let mut plain = Client::connect(world.address()).await;
    plain.send("GET / HTTP/1.1\r\nHost: dev.localhost\r\n\r\n").await;
    assert!(plain.answer().await.is_none());
}

#[tokio::test]
async fn a_wrong_configuration_is_told_whole_before_anything_listens() {
    let mut config = Config::new("Dev_.example", Scheme::PlainHttpDev, "127.0.0.1:0".parse().unwrap());
    config.limits.connections_max = 0;
    assert_eq!(config.problems().len(), 3, "{:?}", config.problems());
}

#[tokio::test]
async fn a_websocket_over_tls_and_http_1_echoes_and_is_closed_when_revoked() {
    let (world, app) = (World::with(secure).await, App::start().await);
    world.ready(app.address).await;
    let mut client =
        Client { stream: tokio::io::BufReader::new(connect(&world, &host(), &[b"http/1.1"]).await.unwrap()) };
    client
        .send(format!(
            "GET /ws HTTP/1.1\r\nHost: {host}\r\nCookie: __Host-envforge_session={COOKIE}\r\nOrigin: https://{host}\r\n\
             Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            host = host()
        ))
        .await;
    assert_eq!(client.head().await.unwrap().status, 101);
    let mut socket = WebSocketStream::from_raw_socket(client.stream.into_inner(), Role::Client, None).await;
    let large = Message::binary(vec![7_u8; 300_000]);
    socket.send(large.clone()).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), large);
    world.revoke().await;
    let closed = tokio::time::timeout(crate::app::SOON, socket.next()).await.unwrap();
    assert!(matches!(closed, Some(Ok(Message::Close(Some(frame)))) if u16::from(frame.code) == 4403));
}
