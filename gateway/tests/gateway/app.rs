//! A small real app behind the gateway, and apps that misbehave.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, stream};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

type Body = UnsyncBoxBody<Bytes, Infallible>;

#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) connections: AtomicUsize,
    pub(crate) requests: AtomicUsize,
    /// Bytes of uploads that arrived.
    pub(crate) uploaded: AtomicU64,
    /// Bytes that endless answers were asked for.
    pub(crate) produced: AtomicU64,
    pub(crate) open_streams: AtomicUsize,
}

pub(crate) struct App {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Seen>,
}

fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).boxed_unsync()
}

impl App {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let counted = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.connections.fetch_add(1, Ordering::SeqCst);
                let seen = Arc::clone(&counted);
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(request, Arc::clone(&seen)));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .with_upgrades()
                        .await;
                });
            }
        });
        Self { address, seen }
    }

    /// An app that answers each connection with these bytes, after it has read one head, and then closes.
    pub(crate) async fn raw(answers: Vec<&'static [u8]>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let counted = Arc::clone(&seen);
        tokio::spawn(async move {
            let mut answers = answers.into_iter().cycle();
            while let Ok((mut stream, _)) = listener.accept().await {
                counted.connections.fetch_add(1, Ordering::SeqCst);
                let answer = answers.next().unwrap();
                let counted = Arc::clone(&counted);
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        match stream.read_u8().await {
                            Ok(byte) => head.push(byte),
                            Err(_) => return,
                        }
                    }
                    counted.requests.fetch_add(1, Ordering::SeqCst);
                    let _ = stream.write_all(answer).await;
                });
            }
        });
        Self { address, seen }
    }
}

async fn answer(request: Request<Incoming>, seen: Arc<Seen>) -> Result<Response<Body>, Infallible> {
    seen.requests.fetch_add(1, Ordering::SeqCst);
    let path = request.uri().path().to_owned();
    Ok(match path.as_str() {
        "/big" => big(&request, &seen),
        "/upload" => upload(request, &seen).await,
        "/events" => events(&seen),
        "/never" => std::future::pending().await,
        "/cookies" => Response::builder()
            .header("set-cookie", "own=1; Path=/")
            .header("set-cookie", "tossed=1; Domain=dev.localhost")
            .header("set-cookie", "envforge_session=stolen")
            .header("service-worker-allowed", "/")
            .header("clear-site-data", "\"cookies\", \"cache\"")
            .header("alt-svc", "h3=\":1\"")
            .body(full("cookies"))
            .unwrap(),
        "/none" => Response::builder().status(StatusCode::NO_CONTENT).body(full("")).unwrap(),
        "/ws" | "/api/live" => websocket(request, &seen),
        "/ws/refused" => Response::builder().status(StatusCode::UNAUTHORIZED).body(full("no")).unwrap(),
        _ => Response::new(full(describe(request).await)),
    })
}

/// What arrived, as the app sees it.
async fn describe(request: Request<Incoming>) -> String {
    let (parts, body) = request.into_parts();
    let mut text = format!("{} {}\n", parts.method, parts.uri);
    for (name, value) in &parts.headers {
        text.push_str(&format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())));
    }
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    text.push_str(&format!("\n{}", String::from_utf8_lossy(&body)));
    text
}

fn big(request: &Request<Incoming>, seen: &Arc<Seen>) -> Response<Body> {
    let bytes: u64 = request.uri().query().and_then(|query| query.parse().ok()).unwrap_or(1024);
    let seen = Arc::clone(seen);
    let chunk = Bytes::from(vec![b'x'; 64 * 1024]);
    let chunks = stream::unfold(bytes, move |left| {
        let (seen, chunk) = (Arc::clone(&seen), chunk.clone());
        async move {
            let size = left.min(chunk.len() as u64);
            seen.produced.fetch_add(size, Ordering::SeqCst);
            (size > 0).then(|| (Ok(Frame::data(chunk.slice(..size as usize))), left - size))
        }
    });
    Response::builder().header("content-length", bytes).body(BodyExt::boxed_unsync(StreamBody::new(chunks))).unwrap()
}

async fn upload(request: Request<Incoming>, seen: &Arc<Seen>) -> Response<Body> {
    let mut body = request.into_body();
    let mut total = 0;
    while let Some(Ok(frame)) = body.frame().await {
        let length = frame.data_ref().map_or(0, Bytes::len) as u64;
        total += length;
        seen.uploaded.fetch_add(length, Ordering::SeqCst);
    }
    Response::new(full(format!("{total}")))
}

struct Open(Arc<Seen>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open_streams.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Server-sent events: one at once, then silence.
fn events(seen: &Arc<Seen>) -> Response<Body> {
    seen.open_streams.fetch_add(1, Ordering::SeqCst);
    let events = stream::unfold((0, Open(Arc::clone(seen))), |(count, open)| async move {
        if count > 0 {
            std::future::pending::<()>().await;
        }
        Some((Ok(Frame::data(Bytes::from_static(b"data: hello\n\n"))), (count + 1, open)))
    });
    Response::builder()
        .header("content-type", "text/event-stream")
        .body(BodyExt::boxed_unsync(StreamBody::new(events)))
        .unwrap()
}

fn websocket(mut request: Request<Incoming>, seen: &Arc<Seen>) -> Response<Body> {
    let Some(key) = request.headers().get("sec-websocket-key").cloned() else {
        return Response::builder().status(StatusCode::BAD_REQUEST).body(full("no key")).unwrap();
    };
    let accept = derive_accept_key(key.as_bytes());
    let upgrade = hyper::upgrade::on(&mut request);
    let seen = Arc::clone(seen);
    seen.open_streams.fetch_add(1, Ordering::SeqCst);
    tokio::spawn(async move {
        let _open = Open(seen);
        let Ok(upgraded) = upgrade.await else { return };
        let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        while let Some(Ok(message)) = socket.next().await {
            if message.is_text() || message.is_binary() {
                let _ = socket.send(message).await;
            }
        }
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header("upgrade", "websocket")
        .header("connection", "Upgrade")
        .header("sec-websocket-accept", accept)
        .body(full(""))
        .unwrap()
}

pub(crate) const SOON: Duration = Duration::from_secs(10);
