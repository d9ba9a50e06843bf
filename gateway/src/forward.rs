//! Sends an admitted request to its app and streams the answer back.
//!
//! `forward` is the only way to an app besides `websocket`, and both take a `ForwardPermit`.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use envforge_domain::time::UnixMillis;
use http::header::{CONTENT_LENGTH, HOST};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::{Body, Incoming};
use tokio::time::Instant;

use crate::activity::{Activity, OpenStream};
use crate::admission::ForwardPermit;
use crate::body::{Early, Ending, RequestBody, ResponseBody, UploadOutcome};
use crate::config::{Limits, Timeouts};
use crate::denial::Denial;
use crate::header::{self, Forwarded};
use crate::metric::Meters;
use crate::standing::Standing;
use crate::upstream::{Lease, Sent, Upstreams};

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
        let open = self.activity.begin(passage.permit.workspace(), passage.permit.link().link, passage.now);
        let deadline = passage.deadline();
        let (mut parts, incoming) = request.into_parts();
        let early = std::mem::take(&mut passage.early);
        let (body, upload) = self.request_body(&parts.headers, early, incoming, &passage, deadline)?;
        prepare(&mut parts, passage.forwarded);
        let request = Request::from_parts(parts, body);
        let takes_body = matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH);
        let (response, mut lease) = self.exchange(&passage, request, upload.as_deref()).await?;
        self.meters.forwarded.increment(1);
        // An app that ignores a GET's body, or answers before it has read an upload, may mistake the rest.
        if upload.as_ref().is_some_and(|upload| !takes_body || !upload.finished()) {
            lease.retire();
        }
        self.answer(&passage, response, lease, upload, deadline, open)
    }

    fn request_body(
        &self,
        headers: &HeaderMap,
        early: Early,
        incoming: Incoming,
        passage: &Passage<'_>,
        deadline: Instant,
    ) -> Result<(RequestBody, Option<Arc<UploadOutcome>>), Denial> {
        if incoming.is_end_stream() && early.is_empty() {
            return Ok((RequestBody::Empty, None));
        }
        if announced_length(headers).is_some_and(|length| length > self.limits.request_body_bytes_max) {
            return Err(Denial::BodyTooLarge);
        }
        let total = Instant::now() + self.timeouts.request_body_total;
        let right = passage.permit.right(&self.standing, deadline.min(total));
        // Over HTTP/1 the connection itself sees that nothing comes; over HTTP/2 other streams may go on.
        let idle = if passage.http2 { self.timeouts.io.body } else { self.timeouts.request_body_total };
        let ending = Ending::new(right, idle);
        let (body, outcome) = RequestBody::upload(early, incoming, self.limits.request_body_bytes_max, ending);
        Ok((body, Some(outcome)))
    }

    /// Sends, and sends once more where the first connection turned out to be closed and nothing can happen twice.
    async fn exchange(
        &self,
        passage: &Passage<'_>,
        request: Request<RequestBody>,
        upload: Option<&UploadOutcome>,
    ) -> Result<(Response<Incoming>, Lease), Denial> {
        let link = passage.permit.link().link;
        let mut lease = match self.upstreams.ready(link, passage.endpoint)? {
            Some(lease) => lease,
            None => self.waited(passage, self.upstreams.lease(link, passage.endpoint)).await?,
        };
        let repeatable = upload.is_none()
            && matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE);
        let copy = (repeatable && lease.may_be_stale()).then(|| copy_without_body(&request));
        let again = match self.send(passage, &mut lease, request, upload).await? {
            Sent::Answer(response) => return Ok((response, lease)),
            Sent::NotTaken(request) if lease.is_reused() => *request,
            Sent::Failed(error) if lease.is_reused() && closed_without_answer(&error) && copy.is_some() => {
                copy.ok_or(Denial::UpstreamUnreachable)?
            }
            Sent::NotTaken(_) => return Err(Denial::UpstreamUnreachable),
            Sent::Failed(error) => return Err(failure(&error, upload)),
        };
        drop(lease);
        self.meters.retried.increment(1);
        let mut lease = self.waited(passage, self.upstreams.lease_new(link, passage.endpoint)).await?;
        match self.send(passage, &mut lease, again, upload).await? {
            Sent::Answer(response) => Ok((response, lease)),
            Sent::NotTaken(_) => Err(Denial::UpstreamUnreachable),
            Sent::Failed(error) => Err(failure(&error, upload)),
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

    async fn send(
        &self,
        passage: &Passage<'_>,
        lease: &mut Lease,
        request: Request<RequestBody>,
        upload: Option<&UploadOutcome>,
    ) -> Result<Sent, Denial> {
        let head_limit = self.timeouts.response_head;
        let (sending, patience) = lease.send(request);
        let mut sending = std::pin::pin!(sending);
        // Most answers come within this; only the others pay for being watched. What is revoked meanwhile ends at the
        // first piece of its body.
        let quick = poll_fn(|cx| match sending.as_mut().poll(cx) {
            Poll::Ready(sent) => Poll::Ready(Some(sent)),
            Poll::Pending => patience.poll(cx, passage.begun + QUICK).map(|()| None),
        });
        if let Some(sent) = quick.await {
            return Ok(sent);
        }
        let mut ended = Box::pin(self.standing.ended(&passage.permit));
        loop {
            tokio::select! {
                biased;
                denial = ended.as_mut() => return Err(denial),
                sent = sending.as_mut() => return Ok(sent),
                () = tokio::time::sleep(head_limit) => {
                    // The clock for an answer starts when the app has the whole request.
                    if upload.is_none_or(UploadOutcome::finished) {
                        return Err(Denial::UpstreamTimeout);
                    }
                }
            }
        }
    }

    fn answer(
        &self,
        passage: &Passage<'_>,
        response: Response<Incoming>,
        lease: Lease,
        upload: Option<Arc<UploadOutcome>>,
        deadline: Instant,
        open: OpenStream,
    ) -> Result<Response<ResponseBody>, Denial> {
        let (mut parts, incoming) = response.into_parts();
        if parts.status == StatusCode::SWITCHING_PROTOCOLS {
            // Nobody asked for another protocol.
            return Err(Denial::UpstreamInvalid);
        }
        self.meters.answered(parts.status);
        header::to_client(&mut parts.headers, passage.own_host);
        parts.extensions.clear();
        parts.version = Version::HTTP_11;
        let ending = Ending::new(passage.permit.right(&self.standing, deadline), self.timeouts.response_body_idle);
        let body = ResponseBody::app(incoming, lease, upload, ending, open);
        Ok(Response::from_parts(parts, body))
    }
}

pub(crate) fn announced_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok())
}

/// Makes the head an HTTP/1.1 request in origin form with the headers that the app may see.
pub(crate) fn prepare(parts: &mut http::request::Parts, forwarded: &Forwarded) {
    if parts.uri.scheme().is_some() || parts.uri.authority().is_some() {
        if !parts.headers.contains_key(HOST)
            && let Some(authority) = parts.uri.authority()
            && let Ok(host) = HeaderValue::from_str(authority.as_str())
        {
            parts.headers.insert(HOST, host);
        }
        let target = std::mem::take(&mut parts.uri).into_parts().path_and_query;
        parts.uri = target.map(Uri::from).unwrap_or_else(|| Uri::from_static("/"));
    }
    parts.version = Version::HTTP_11;
    parts.extensions.clear();
    header::to_app(&mut parts.headers, forwarded);
}

fn copy_without_body(request: &Request<RequestBody>) -> Request<RequestBody> {
    let mut copy = Request::new(RequestBody::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}

fn closed_without_answer(error: &hyper::Error) -> bool {
    error.is_incomplete_message() || error.is_canceled() || error.is_closed() || is_reset(error)
}

fn is_reset(error: &hyper::Error) -> bool {
    use std::error::Error;
    use std::io::ErrorKind;
    error.source().and_then(|source| source.downcast_ref::<std::io::Error>()).is_some_and(|error| {
        matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted)
    })
}

pub(crate) fn failure(error: &hyper::Error, upload: Option<&UploadOutcome>) -> Denial {
    tracing::debug!(%error, "the app did not answer");
    if upload.is_some_and(UploadOutcome::too_large) {
        Denial::BodyTooLarge
    } else if upload.is_some_and(UploadOutcome::too_slow) {
        Denial::BodyTooSlow
    } else if error.is_parse() {
        Denial::UpstreamInvalid
    } else {
        Denial::UpstreamUnreachable
    }
}

/// An answer that takes longer is watched for the end of its right.
const QUICK: Duration = Duration::from_millis(50);
/// Longest time that anything waits for a client to take a last word.
pub(crate) const LAST_WORD: Duration = Duration::from_secs(1);
