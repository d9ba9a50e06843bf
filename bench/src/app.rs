//! The app behind a measured installation: answers at once, remembers when requests came, keeps WebSockets open.
//!
//! It is this program again, started by the product's own runtime as the workspace's `web`.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// When requests for `/held` came, in microseconds since 1970; more than a benchmark ever sends are not kept.
const ARRIVALS_MAX: usize = 100_000;

#[derive(Default)]
struct Arrivals(std::sync::Mutex<Vec<u64>>);

impl Arrivals {
    fn with<T>(&self, act: impl FnOnce(&mut Vec<u64>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

#[allow(clippy::disallowed_methods, reason = "the app is told its port by the runtime, as every app is")]
pub(crate) async fn serve() -> Result<()> {
    let port: u16 = std::env::var("PORT").context("PORT")?.parse().context("PORT")?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    let arrivals = Arc::new(Arrivals::default());
    loop {
        let (stream, _) = listener.accept().await?;
        let _ = stream.set_nodelay(true);
        let arrivals = Arc::clone(&arrivals);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let response = answer(request, &arrivals);
                async { Ok::<_, Infallible>(response) }
            });
            // A connection that ends badly shows as failed requests in the load.
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            let _ = connection.with_upgrades().await;
        });
    }
}

fn answer(request: Request<Incoming>, arrivals: &Arrivals) -> Response<Full<Bytes>> {
    match request.uri().path() {
        "/held" => arrivals.with(|all| {
            if all.len() < ARRIVALS_MAX {
                all.push(crate::benches::now_us());
            }
        }),
        "/arrivals" => {
            let text = arrivals.with(|all| all.iter().map(|at| format!("{at}\n")).collect::<String>());
            return Response::new(Full::from(text));
        }
        "/live" => return upgrade(request),
        _ => {}
    }
    Response::new(Full::from("ok"))
}

/// Takes a WebSocket and says nothing on it until the other side ends it.
fn upgrade(mut request: Request<Incoming>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    let Some(key) = request.headers().get("sec-websocket-key").cloned() else {
        *response.status_mut() = StatusCode::BAD_REQUEST;
        return response;
    };
    tokio::spawn(async move {
        let Ok(upgraded) = hyper::upgrade::on(&mut request).await else { return };
        let mut stream = TokioIo::new(upgraded);
        let mut bytes = [0; 1024];
        while stream.read(&mut bytes).await.is_ok_and(|count| count > 0) {}
    });
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert("connection", hyper::header::HeaderValue::from_static("Upgrade"));
    headers.insert("upgrade", hyper::header::HeaderValue::from_static("websocket"));
    if let Ok(accept) = derive_accept_key(key.as_bytes()).parse() {
        headers.insert("sec-websocket-accept", accept);
    }
    response
}
