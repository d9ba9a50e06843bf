//! WebSockets: a validated handshake on both sides, then bytes until somebody ends it.
//!
//! No byte passes before the app has answered a correct 101. A socket ends at once when the right to it ends, with
//! close code 4403 where the framing allows. Not here: who may open one (`admission`), messages (never looked at).

pub(crate) mod frame;
mod splice;

use std::sync::Arc;

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_LENGTH, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, request, response};
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::body::{Ending, ResponseBody};
use crate::config;
use crate::connection::{ConnectionState, GuardedIo};
use crate::denial::Denial;
use crate::forward::{Forwarding, Passage, RequestLine, failure, response_parts, target_of};
use crate::ground::Visitor;
use crate::header;
use crate::metric;
use crate::upstream::{AnswerHead, Exchange, Outgoing};
use splice::{Ended, Limits, Splice};

use ahash::AHashMap;

/// The sockets of a gateway: counted, bounded, and all ended at shutdown.
pub(crate) struct Sockets {
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
    per_visitor: Mutex<AHashMap<Visitor, usize>>,
    limits: config::Limits,
    open: metrics::Gauge,
}

impl Sockets {
    pub(crate) fn new(limits: &config::Limits, open: metrics::Gauge) -> Arc<Self> {
        Arc::new(Self {
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            per_visitor: Mutex::default(),
            limits: limits.clone(),
            open,
        })
    }

    fn enter(self: &Arc<Self>, visitor: Visitor) -> Option<Socket> {
        let mut per_visitor = self.per_visitor.lock();
        let count = per_visitor.entry(visitor).or_insert(0);
        if *count >= self.limits.websockets_per_link_max || self.tasks.len() >= self.limits.websockets_max {
            return None;
        }
        *count += 1;
        self.open.increment(1);
        Some(Socket { sockets: Arc::clone(self), visitor })
    }
}

/// One counted socket.
struct Socket {
    sockets: Arc<Sockets>,
    visitor: Visitor,
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.sockets.open.decrement(1);
        let mut per_visitor = self.sockets.per_visitor.lock();
        if let Some(count) = per_visitor.get_mut(&self.visitor) {
            *count -= 1;
            if *count == 0 {
                per_visitor.remove(&self.visitor);
            }
        }
    }
}

/// How the client asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Handshake {
    /// RFC 6455 over HTTP/1.1, with the client's key.
    Http1 { key: HeaderValue },
    /// RFC 8441 over HTTP/2.
    Http2,
}

/// Whether this asks for a websocket, and whether it asks rightly.
pub(crate) fn handshake<B>(request: &Request<B>) -> Result<Option<Handshake>, Denial> {
    if request.version() == Version::HTTP_2 {
        let protocol = request.extensions().get::<hyper::ext::Protocol>().map(hyper::ext::Protocol::as_str);
        return match (request.method(), protocol) {
            (&Method::CONNECT, Some("websocket")) => {
                version_is_13(request.headers())?;
                Ok(Some(Handshake::Http2))
            }
            _ => Ok(None),
        };
    }
    if !request.headers().contains_key(UPGRADE) {
        return Ok(None);
    }
    let headers = request.headers();
    version_is_13(headers)?;
    let names_upgrade = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .any(|token| token.trim_ascii().eq_ignore_ascii_case(b"upgrade"));
    let mut keys = headers.get_all(SEC_WEBSOCKET_KEY).iter();
    let (key, more) = (keys.next(), keys.next());
    let key = key.filter(|key| STANDARD.decode(key.as_bytes()).is_ok_and(|nonce| nonce.len() == 16));
    match key {
        Some(key) if more.is_none() && names_upgrade => Ok(Some(Handshake::Http1 { key: key.clone() })),
        _ => Err(Denial::BadHandshake),
    }
}

fn version_is_13(headers: &HeaderMap) -> Result<(), Denial> {
    let version = headers.get(SEC_WEBSOCKET_VERSION).map(HeaderValue::as_bytes);
    if version == Some(b"13") { Ok(()) } else { Err(Denial::BadHandshake) }
}

/// RFC 6455 4.2.2: proof that the other side understood the handshake.
pub(crate) fn accept_of(key: &HeaderValue) -> String {
    let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    context.update(key.as_bytes());
    context.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(context.finish())
}

impl Forwarding {
    /// Opens the socket to the app first; the client hears 101 only after the app said a correct one.
    pub(crate) async fn websocket(
        &self,
        sockets: &Arc<Sockets>,
        passage: Passage<'_>,
        mut request: Request<Incoming>,
        handshake: Handshake,
        connection: &Arc<ConnectionState>,
    ) -> Result<Response<ResponseBody>, Denial> {
        let Some(socket) = sockets.enter(passage.permit.visitor()) else { return Err(Denial::UpstreamBusy) };
        let open = self.activity.begin(passage.permit.workspace(), passage.permit.visitor(), passage.now);
        let cuts_before = self.standing.cuts();
        let deadline = passage.deadline();
        let client_upgrade = hyper::upgrade::on(&mut request);
        let offered = request.headers().get(SEC_WEBSOCKET_PROTOCOL).cloned();
        let key = match &handshake {
            Handshake::Http1 { key } => key.clone(),
            Handshake::Http2 => fresh_key()?,
        };
        let outgoing = to_app(&request.into_parts().0, &key, passage.forwarded);
        let visitor = passage.permit.visitor();
        // A socket's connection is never used for anything else, before or after.
        let lease = self.waited(&passage, self.upstreams.lease_new(visitor, passage.endpoint)).await?;
        let mut exchange = Exchange::new(lease, outgoing);
        let own_host = passage.own_host;
        let mut take = |head: &AnswerHead<'_>| (response_parts(head, own_host), all_of(head));
        let (mut parts, said) = self.watched(&passage, &mut exchange, &mut take).await?.map_err(failure)?;
        if parts.status != StatusCode::SWITCHING_PROTOCOLS {
            return self.refused_by_app(&passage, parts, exchange, deadline, open);
        }
        check_answer(&said, &key, offered.as_ref())?;
        self.meters.forwarded.increment(1);
        self.meters.answered(parts.status);
        parts.headers.remove(SEC_WEBSOCKET_ACCEPT);
        parts.headers.remove(CONTENT_LENGTH);
        if let Some(extensions) = said.get(SEC_WEBSOCKET_EXTENSIONS) {
            parts.headers.insert(SEC_WEBSOCKET_EXTENSIONS, extensions.clone());
        }
        if let Handshake::Http1 { key } = &handshake {
            let accept = HeaderValue::from_str(&accept_of(key)).map_err(|_| Denial::BadHandshake)?;
            parts.headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
            parts.headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
            parts.headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
            parts.version = Version::HTTP_11;
            connection.set_upgraded();
        } else {
            parts.status = StatusCode::OK;
            parts.version = Version::HTTP_2;
        }
        let limits = Limits { idle: self.timeouts.websocket_idle, deadline };
        let splice = Splice {
            cancel: [passage.permit.cancel().clone(), passage.permit.cancel_sockets().clone()],
            cut: self.standing.cut_after(cuts_before),
            stop: sockets.stop.clone(),
            limits,
            open: open.into_socket(),
            standing: Arc::clone(&self.standing),
        };
        // Over HTTP/2 the connection goes on around the socket and must not pass for idle.
        let in_flight = connection.begin_request();
        let counted = passage.permit.socket_opened();
        sockets.tasks.spawn(async move {
            let (app, app_early) = exchange.into_upgraded();
            let ended = run(splice, client_upgrade, app, app_early.freeze()).await;
            metric::ended("websocket", ended.as_str());
            drop((socket, in_flight, counted));
        });
        Ok(Response::from_parts(parts, ResponseBody::empty()))
    }

    /// The app said no in plain HTTP: the client may read that.
    fn refused_by_app(
        &self,
        passage: &Passage<'_>,
        parts: response::Parts,
        exchange: Exchange,
        deadline: tokio::time::Instant,
        open: crate::activity::OpenStream,
    ) -> Result<Response<ResponseBody>, Denial> {
        if parts.status.is_success() {
            // Neither a switch nor a refusal: over HTTP/2 a 200 would even mean that the socket is open.
            return Err(Denial::UpstreamInvalid);
        }
        self.meters.answered(parts.status);
        let ending = Ending::new(passage.permit.right(&self.standing, deadline), self.timeouts.response_body_idle);
        Ok(Response::from_parts(parts, ResponseBody::app(exchange, ending, open)))
    }
}

fn fresh_key() -> Result<HeaderValue, Denial> {
    let mut nonce = [0_u8; 16];
    getrandom::fill(&mut nonce).map_err(|_| Denial::TryAgain)?;
    HeaderValue::from_str(&STANDARD.encode(nonce)).map_err(|_| Denial::TryAgain)
}

fn to_app(request: &request::Parts, key: &HeaderValue, forwarded: &header::Forwarded) -> Outgoing {
    let mut head = RequestLine { method: &Method::GET, target: target_of(&request.uri) }.begin();
    header::to_app(&request.headers, forwarded, &["sec-websocket-key", "sec-websocket-version"], &mut head);
    head.extend_from_slice(b"connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n");
    header::push_line(&mut head, SEC_WEBSOCKET_KEY.as_str().as_bytes(), key.as_bytes());
    head.extend_from_slice(b"\r\n");
    Outgoing::new(head, false, None)
}

/// Everything that the app said, what ends at this hop included.
pub(crate) fn all_of(head: &AnswerHead<'_>) -> HeaderMap {
    let pair = |field: &httparse::Header<'_>| {
        Some((HeaderName::from_bytes(field.name.as_bytes()).ok()?, HeaderValue::from_bytes(field.value).ok()?))
    };
    let mut headers = HeaderMap::new();
    for (name, value) in head.fields.iter().filter_map(pair) {
        headers.append(name, value);
    }
    headers
}

pub(crate) fn check_answer(
    headers: &HeaderMap,
    key: &HeaderValue,
    offered: Option<&HeaderValue>,
) -> Result<(), Denial> {
    // Of two lines of a name nobody knows which one the browser takes.
    let once = [UPGRADE, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL]
        .iter()
        .all(|name| headers.get_all(name).iter().nth(1).is_none());
    let upgrade = headers.get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    let accept = headers.get(SEC_WEBSOCKET_ACCEPT).is_some_and(|value| value.as_bytes() == accept_of(key).as_bytes());
    let chosen = match headers.get(SEC_WEBSOCKET_PROTOCOL) {
        None => true,
        Some(chosen) => offered.is_some_and(|offered| {
            offered
                .as_bytes()
                .split(|byte| *byte == b',')
                .any(|name| name.trim_ascii() == chosen.as_bytes().trim_ascii())
        }),
    };
    if once && upgrade && accept && chosen { Ok(()) } else { Err(Denial::UpstreamInvalid) }
}

/// Waits for the client's side to have switched, then copies.
async fn run(splice: Splice, client: OnUpgrade, app: TcpStream, app_early: Bytes) -> Ended {
    let Ok(client) = client.await else { return Ended::Broken };
    // Over HTTP/1 the stream is taken out of its wrapper, over HTTP/2 it is one of many of a connection.
    match client.downcast::<TokioIo<GuardedIo<TcpStream>>>() {
        Ok(parts) => match (parts.io.into_inner().into_upgraded(), parts.read_buf.is_empty()) {
            (Some(client), true) => splice.run(client, app, app_early).await,
            _ => Ended::EarlyBytes,
        },
        Err(client) => match client.downcast::<TokioIo<GuardedIo<TlsStream<TcpStream>>>>() {
            Ok(parts) => match (parts.io.into_inner().into_upgraded(), parts.read_buf.is_empty()) {
                (Some(client), true) => splice.run(client, app, app_early).await,
                _ => Ended::EarlyBytes,
            },
            Err(client) => splice.run(TokioIo::<Upgraded>::new(client), app, app_early).await,
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn request(headers: &[(&str, &str)]) -> Request<()> {
        let mut builder = Request::builder().uri("/ws");
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap()
    }

    #[test]
    fn the_accept_value_is_the_one_of_the_rfc() {
        assert_eq!(accept_of(&HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==")), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn only_a_complete_handshake_is_one() {
        let good = [
            ("upgrade", "websocket"),
            ("connection", "keep-alive, Upgrade"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        assert!(matches!(handshake(&request(&good)), Ok(Some(Handshake::Http1 { .. }))));
        assert_eq!(handshake(&request(&[])), Ok(None));
        for missing in 1..good.len() {
            let mut headers = good.to_vec();
            headers.remove(missing);
            assert_eq!(handshake(&request(&headers)), Err(Denial::BadHandshake), "without {}", good[missing].0);
        }
        let mut short = good;
        short[3].1 = "c2hvcnQ=";
        assert_eq!(handshake(&request(&short)), Err(Denial::BadHandshake));
    }

    #[test]
    fn an_app_cannot_choose_what_was_not_offered() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        let mut headers = HeaderMap::new();
        headers.insert(UPGRADE, HeaderValue::from_static("WebSocket"));
        assert_eq!(check_answer(&headers, &key, None), Err(Denial::UpstreamInvalid));
        headers.insert(SEC_WEBSOCKET_ACCEPT, HeaderValue::from_static("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert_eq!(check_answer(&headers, &key, None), Ok(()));
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("b"));
        assert_eq!(check_answer(&headers, &key, None), Err(Denial::UpstreamInvalid));
        assert_eq!(check_answer(&headers, &key, Some(&HeaderValue::from_static("a, b"))), Ok(()));
        headers.append(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("c"));
        assert_eq!(
            check_answer(&headers, &key, Some(&HeaderValue::from_static("a, b"))),
            Err(Denial::UpstreamInvalid),
            "a second one"
        );
    }
}
