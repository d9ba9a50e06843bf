//! Sends an admitted request to its app and streams the answer back.
//!
//! `forward` is the only way to an app besides `websocket`, and both take a `ForwardPermit`.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use envforge_domain::time::UnixMillis;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, response};
use hyper::body::{Body, Incoming};
use tokio::time::Instant;

use crate::activity::Activity;
use crate::admission::ForwardPermit;
use crate::body::{BodyError, Ending, ResponseBody};
use crate::config::{Limits, Timeouts};
use crate::denial::Denial;
use crate::fields::Fields;
use crate::header::{self, Forwarded};
use crate::metric::Meters;
use crate::standing::Standing;
use crate::upload::{Early, Upload};
use crate::upstream::{AnswerHead, Exchange, Failed, Framing, Lease, Outgoing, Upstreams};

/// What forwarding needs, shared by all requests.
pub(crate) struct Forwarding {
    pub(crate) upstreams: Arc<Upstreams>,
    pub(crate) standing: Arc<Standing>,
    pub(crate) activity: Activity,
    pub(crate) meters: Arc<Meters>,
    pub(crate) limits: Limits,
    pub(crate) timeouts: Timeouts,
}

/// One request on its way.
pub(crate) struct Passage<'a> {
    pub(crate) permit: ForwardPermit,
    pub(crate) endpoint: SocketAddr,
    pub(crate) forwarded: &'a Forwarded,
    /// Host name of the workspace, for its cookies.
    pub(crate) own_host: &'a str,
    pub(crate) http2: bool,
    pub(crate) early: Early,
    pub(crate) now: UnixMillis,
    /// The same moment on the clock of timers.
    pub(crate) begun: Instant,
}

impl Passage<'_> {
    /// When the right to this request ends, on the clock of timers.
    pub(crate) fn deadline(&self) -> Instant {
        self.begun + self.permit.ends_at().since(self.now).to_duration()
    }
}

impl Forwarding {
    pub(crate) async fn forward(
        &self,
        mut passage: Passage<'_>,
        request: Request<Incoming>,
    ) -> Result<Response<ResponseBody>, Denial> {
        let (parts, incoming) = request.into_parts();
        let early = std::mem::take(&mut passage.early);
        let body = self.upload(&parts.headers, early, incoming, &passage)?;
        let head = RequestLine { method: &parts.method, target: target_of(&parts.uri) };
        let bytes = head.with(&parts.headers, passage.forwarded, body.as_ref().map(|(_, framing)| *framing));
        let outgoing = Outgoing::new(bytes, parts.method == Method::HEAD, body);
        let own_host = passage.own_host;
        let take = |head: &AnswerHead<'_>| response_parts(head, own_host);
        let (parts, body) = self.pass(&passage, &parts.method, outgoing, take).await?;
        Ok(Response::from_parts(parts, body))
    }

    /// Sends `outgoing`, lets `take` see the head of the answer, and makes its body one that ends with the right to it.
    pub(crate) async fn pass<R>(
        &self,
        passage: &Passage<'_>,
        method: &Method,
        outgoing: Outgoing,
        mut take: impl FnMut(&AnswerHead<'_>) -> R,
    ) -> Result<(R, ResponseBody), Denial> {
        let open = self.activity.begin(passage.permit.workspace(), passage.permit.visitor(), passage.now);
        let take = |head: &AnswerHead<'_>| (head.status, take(head));
        let ((status, taken), mut exchange) = self.exchange(passage, method, outgoing, take).await?;
        self.meters.forwarded.increment(1);
        if status == StatusCode::SWITCHING_PROTOCOLS {
            // Nobody asked for another protocol.
            return Err(Denial::UpstreamInvalid);
        }
        self.meters.answered(status);
        // An app that ignores a GET's body, or answers before it has read an upload, may mistake the rest.
        let takes_body = matches!(*method, Method::POST | Method::PUT | Method::PATCH);
        if exchange.has_body() && !(takes_body && exchange.is_taken()) {
            exchange.retire();
        }
        let right = passage.permit.right(&self.standing, passage.deadline());
        let ending = Ending::new(right, self.timeouts.response_body_idle);
        Ok((taken, ResponseBody::app(exchange, ending, open)))
    }

    fn upload(
        &self,
        headers: &HeaderMap,
        early: Early,
        incoming: Incoming,
        passage: &Passage<'_>,
    ) -> Result<Option<(Upload, Framing)>, Denial> {
        if incoming.is_end_stream() && early.is_empty() {
            return Ok(None);
        }
        let announced = announced_length(headers);
        if announced.is_some_and(|length| length > self.limits.request_body_bytes_max) {
            return Err(Denial::BodyTooLarge);
        }
        let total = Instant::now() + self.timeouts.request_body_total;
        let right = passage.permit.right(&self.standing, passage.deadline().min(total));
        // Over HTTP/1 the connection itself sees that nothing comes; over HTTP/2 other streams may go on.
        let idle = if passage.http2 { self.timeouts.io.body } else { self.timeouts.request_body_total };
        let upload = Upload::new(early, incoming, self.limits.request_body_bytes_max, Ending::new(right, idle));
        Ok(Some((upload, announced.map_or(Framing::Chunked, Framing::Length))))
    }

    /// Sends, and sends once more where the first connection turned out to be closed and nothing can happen twice.
    async fn exchange<R>(
        &self,
        passage: &Passage<'_>,
        method: &Method,
        outgoing: Outgoing,
        mut take: impl FnMut(&AnswerHead<'_>) -> R,
    ) -> Result<(R, Exchange), Denial> {
        let visitor = passage.permit.visitor();
        let lease = match self.upstreams.ready(visitor, passage.endpoint)? {
            Some(lease) => lease,
            None => self.waited(passage, self.upstreams.lease(visitor, passage.endpoint)).await?,
        };
        let mut exchange = Exchange::new(lease, outgoing);
        let failed = match self.send(passage, &mut exchange, &mut take).await? {
            Ok(taken) => return Ok((taken, exchange)),
            Err(failed) => failed,
        };
        let repeatable = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE);
        let outgoing = match failed {
            Failed::Gone { untouched: true } => exchange.again(repeatable).ok_or(Denial::UpstreamUnreachable)?,
            failed => return Err(failure(failed)),
        };
        self.meters.retried.increment(1);
        let lease = self.waited(passage, self.upstreams.lease_new(visitor, passage.endpoint)).await?;
        let mut exchange = Exchange::new(lease, outgoing);
        match self.send(passage, &mut exchange, &mut take).await? {
            Ok(taken) => Ok((taken, exchange)),
            Err(failed) => Err(failure(failed)),
        }
    }

    /// A connection that had to be waited for, for who may still use it. In a box, since most requests find one ready.
    pub(crate) async fn waited(
        &self,
        passage: &Passage<'_>,
        lease: impl Future<Output = Result<Lease, Denial>>,
    ) -> Result<Lease, Denial> {
        let lease = Box::pin(async {
            tokio::select! {
                biased;
                denial = self.standing.ended(&passage.permit) => Err(denial),
                lease = lease => lease,
            }
        });
        let lease = lease.await?;
        self.standing.check(&passage.permit)?;
        Ok(lease)
    }

    async fn send<R>(
        &self,
        passage: &Passage<'_>,
        exchange: &mut Exchange,
        take: &mut impl FnMut(&AnswerHead<'_>) -> R,
    ) -> Result<Result<R, Failed>, Denial> {
        // Most answers come within this; only the others pay for being watched. What is revoked meanwhile ends at the
        // first piece of its body.
        let quick = poll_fn(|cx| match exchange.poll_head(cx, take) {
            Poll::Ready(sent) => Poll::Ready(Some(sent)),
            Poll::Pending => exchange.patience().poll(cx, passage.begun + QUICK).map(|()| None),
        });
        match quick.await {
            Some(sent) => Ok(sent),
            None => Box::pin(self.watched(passage, exchange, take)).await,
        }
    }

    /// Waits on for an answer that takes its time, for as long as it may be waited for.
    pub(crate) async fn watched<R>(
        &self,
        passage: &Passage<'_>,
        exchange: &mut Exchange,
        take: &mut impl FnMut(&AnswerHead<'_>) -> R,
    ) -> Result<Result<R, Failed>, Denial> {
        let mut ended = std::pin::pin!(self.standing.ended(&passage.permit));
        loop {
            tokio::select! {
                biased;
                denial = ended.as_mut() => return Err(denial),
                sent = poll_fn(|cx| exchange.poll_head(cx, take)) => return Ok(sent),
                () = tokio::time::sleep(self.timeouts.response_head) => {
                    // The clock for an answer starts when the app has the whole request.
                    if exchange.is_taken() {
                        return Err(Denial::UpstreamTimeout);
                    }
                }
            }
        }
    }
}

pub(crate) fn announced_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok())
}

/// The target in origin form, whatever form the request had it in.
pub(crate) fn target_of(uri: &http::Uri) -> &str {
    uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str)
}

/// The first line of a request to an app.
pub(crate) struct RequestLine<'a> {
    pub(crate) method: &'a Method,
    pub(crate) target: &'a str,
}

impl RequestLine<'_> {
    /// The whole head with the headers that the app may see.
    pub(crate) fn with(&self, fields: &impl Fields, forwarded: &Forwarded, framing: Option<Framing>) -> Vec<u8> {
        let mut out = self.begin();
        header::to_app(fields, forwarded, &[], &mut out);
        match framing {
            Some(Framing::Length(length)) => header::push_length(&mut out, length),
            Some(Framing::Chunked) => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
            // RFC 9110 8.6: where a method gives a body a meaning, its absence is said.
            None if matches!(*self.method, Method::POST | Method::PUT | Method::PATCH) => {
                header::push_length(&mut out, 0);
            }
            None => {}
        }
        out.extend_from_slice(b"\r\n");
        out
    }

    /// The first line alone, with room for the rest.
    pub(crate) fn begin(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD_BYTES);
        for part in [self.method.as_str(), " ", self.target, " HTTP/1.1\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
        out
    }
}

/// The head of an answer as hyper sends it to the client.
pub(crate) fn response_parts(head: &AnswerHead<'_>, own_host: &str) -> response::Parts {
    let mut response = Response::new(());
    *response.status_mut() = head.status;
    let headers = response.headers_mut();
    header::to_client(head.fields, head.nominates, own_host, |name, value| {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    });
    if let Some(length) = head.shown_length() {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    response.into_parts().0
}

pub(crate) fn failure(failed: Failed) -> Denial {
    tracing::debug!(?failed, "the app did not answer");
    match failed {
        Failed::Upload(BodyError::TooLarge) => Denial::BodyTooLarge,
        Failed::Upload(BodyError::TooSlow) => Denial::BodyTooSlow,
        Failed::Malformed => Denial::UpstreamInvalid,
        Failed::Gone { .. } | Failed::Upload(_) => Denial::UpstreamUnreachable,
    }
}

/// Most heads fit.
const HEAD_BYTES: usize = 1024;
/// An answer that takes longer is watched for the end of its right.
const QUICK: Duration = Duration::from_millis(50);
/// Longest time that anything waits for a client to take a last word.
pub(crate) const LAST_WORD: Duration = Duration::from_secs(1);
