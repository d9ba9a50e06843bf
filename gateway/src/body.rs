//! Bodies in both directions: streamed, never collected, and ended when the right to them ends.
//!
//! Timers and the watch on revocation are armed only where a body has to wait, so that a small answer costs neither.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use crate::activity::OpenStream;
use crate::connection::{InFlight, http2_stream};
use crate::metric;
use crate::standing::Right;
use crate::upstream::Lease;

#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("access to this stream has ended")]
    Ended,
    #[error("the app sent nothing for too long")]
    AppIdle,
    #[error("the request body is too large")]
    TooLarge,
    #[error("the request body took too long")]
    TooSlow,
    #[error(transparent)]
    Http(#[from] hyper::Error),
}

/// What ends a stream before its own end.
pub(crate) struct Ending {
    right: Right,
    idle: Duration,
    armed: Option<Box<Armed>>,
    frames: u32,
}

struct Armed {
    withdrawn: Pin<Box<dyn Future<Output = ()> + Send>>,
    timer: Pin<Box<Sleep>>,
    /// Something came since the timer was set.
    moved: bool,
}

impl Ending {
    pub(crate) fn new(right: Right, idle: Duration) -> Self {
        Self { right, idle, armed: None, frames: 0 }
    }

    /// Asked for each piece that is there at once.
    fn has_ended(&mut self) -> bool {
        self.frames = self.frames.wrapping_add(1);
        if let Some(armed) = &mut self.armed {
            armed.moved = true;
        }
        // Reading the clock for each piece would cost more than it is worth; the log's own word on expiry comes too.
        self.right.is_withdrawn() || (self.frames.is_multiple_of(64) && Instant::now() >= self.right.deadline)
    }

    /// Asked where there is nothing to read.
    fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        let next = |now: Instant, idle: Duration, deadline: Instant| (now + idle).min(deadline);
        let deadline = self.right.deadline;
        let armed = self.armed.get_or_insert_with(|| {
            Box::new(Armed {
                withdrawn: Box::pin(self.right.withdrawn()),
                timer: Box::pin(tokio::time::sleep_until(next(Instant::now(), self.idle, deadline))),
                moved: false,
            })
        });
        if armed.withdrawn.as_mut().poll(cx).is_ready() {
            metric::ended("body", "access_ended");
            return Poll::Ready(BodyError::Ended);
        }
        loop {
            ready!(armed.timer.as_mut().poll(cx));
            let now = Instant::now();
            if now >= deadline {
                metric::ended("body", "expired");
                return Poll::Ready(BodyError::Ended);
            }
            if !std::mem::take(&mut armed.moved) {
                metric::ended("body", "app_idle");
                return Poll::Ready(BodyError::AppIdle);
            }
            armed.timer.as_mut().reset(next(now, self.idle, deadline));
        }
    }
}

/// The body of an answer.
pub(crate) struct ResponseBody {
    kind: Kind,
    /// The connection is not idle while this lives.
    in_flight: Option<InFlight>,
    /// The stream's task is told when this is asked for more.
    http2: bool,
}

enum Kind {
    Empty,
    Page(Option<Bytes>),
    /// Of our own, with an end of its own.
    Events(Pin<Box<dyn Stream<Item = Bytes> + Send>>),
    App(AppBody),
}

struct AppBody {
    incoming: Incoming,
    ending: Ending,
    lease: Option<Lease>,
    /// A connection whose request body is still under way cannot carry another request.
    upload: Option<Arc<UploadOutcome>>,
    finished: bool,
    _open: OpenStream,
}

impl ResponseBody {
    pub(crate) fn empty() -> Self {
        Self::of(Kind::Empty)
    }

    pub(crate) fn page(content: Bytes) -> Self {
        Self::of(Kind::Page(Some(content)))
    }

    pub(crate) fn events(events: impl Stream<Item = Bytes> + Send + 'static) -> Self {
        Self::of(Kind::Events(Box::pin(events)))
    }

    /// Streams what the app answers; the lease goes back to the pool when the answer was read to its end.
    pub(crate) fn app(
        incoming: Incoming,
        lease: Lease,
        upload: Option<Arc<UploadOutcome>>,
        ending: Ending,
        open: OpenStream,
    ) -> Self {
        let finished = incoming.is_end_stream();
        Self::of(Kind::App(AppBody { incoming, ending, lease: Some(lease), upload, finished, _open: open }))
    }

    fn of(kind: Kind) -> Self {
        Self { kind, in_flight: None, http2: false }
    }

    /// On its way to the client, as a request under way of its connection.
    pub(crate) fn begun(mut self, in_flight: InFlight, http2: bool) -> Self {
        self.in_flight = Some(in_flight);
        self.http2 = http2;
        if http2 {
            http2_stream::begun(match &self.kind {
                Kind::App(body) => Some(&body.ending.right),
                Kind::Empty | Kind::Page(_) | Kind::Events(_) => None,
            });
        }
        self
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let polled = match &mut this.kind {
            Kind::Empty => Poll::Ready(None),
            Kind::Page(content) => Poll::Ready(content.take().map(|content| Ok(Frame::data(content)))),
            Kind::Events(events) => {
                events.as_mut().poll_next(cx).map(|event| event.map(|event| Ok(Frame::data(event))))
            }
            Kind::App(body) => body.poll_frame(cx),
        };
        if this.http2 {
            http2_stream::asked(polled.is_pending());
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Empty => true,
            Kind::Page(content) => content.is_none(),
            Kind::Events(_) => false,
            Kind::App(body) => body.finished || body.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Page(content) => SizeHint::with_exact(content.as_ref().map_or(0, |content| content.len() as u64)),
            Kind::Events(_) => SizeHint::default(),
            Kind::App(body) => body.incoming.size_hint(),
        }
    }
}

impl AppBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            return match Pin::new(&mut self.incoming).poll_frame(cx) {
                // Trailers end at this hop.
                Poll::Ready(Some(Ok(frame))) if !frame.is_data() => continue,
                Poll::Ready(Some(Ok(frame))) => {
                    if self.ending.has_ended() {
                        metric::ended("body", "access_ended");
                        return Poll::Ready(Some(Err(BodyError::Ended)));
                    }
                    Poll::Ready(Some(Ok(frame)))
                }
                Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error.into()))),
                Poll::Ready(None) => {
                    self.finished = true;
                    self.give_back();
                    Poll::Ready(None)
                }
                Poll::Pending => self.ending.poll_ended(cx).map(|error| Some(Err(error))),
            };
        }
    }
}

impl AppBody {
    fn give_back(&mut self) {
        let whole = self.upload.as_deref().is_none_or(UploadOutcome::finished);
        if let Some(lease) = self.lease.take()
            && whole
        {
            lease.give_back();
        }
    }
}

impl Drop for AppBody {
    fn drop(&mut self) {
        // hyper does not ask again after the last byte of a known length, so the end is seen here.
        if self.finished || self.incoming.is_end_stream() {
            self.give_back();
        }
    }
}

/// The beginning of a body that came while its request was held.
#[derive(Default)]
pub(crate) struct Early {
    pieces: VecDeque<Bytes>,
    bytes: usize,
}

/// Bytes read of a body whose request is held: enough to see a client leave that sends a form or waits for its turn.
pub(crate) const EARLY_BYTES_MAX: usize = 64 * 1024;

impl Early {
    /// Reads on within the bound. Comes back when the client has left; nobody would see it if nobody read.
    pub(crate) async fn read(&mut self, body: &mut Incoming) {
        while self.bytes < EARLY_BYTES_MAX && !body.is_end_stream() {
            match body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(piece) = frame.into_data() {
                        self.bytes += piece.len();
                        self.pieces.push_back(piece);
                    }
                }
                Some(Err(_)) => return,
                None => break,
            }
        }
        std::future::pending().await
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    fn next(&mut self) -> Option<Bytes> {
        let piece = self.pieces.pop_front()?;
        self.bytes -= piece.len();
        Some(piece)
    }
}

/// The body of a request on its way to the app.
pub(crate) enum RequestBody {
    Empty,
    Upload(Box<Upload>),
}

pub(crate) struct Upload {
    early: Early,
    incoming: Incoming,
    remaining_bytes: u64,
    ending: Ending,
    outcome: Arc<UploadOutcome>,
}

/// How an upload went, for the one who waits for the answer.
#[derive(Debug, Default)]
pub(crate) struct UploadOutcome {
    finished: AtomicBool,
    too_large: AtomicBool,
    too_slow: AtomicBool,
}

impl UploadOutcome {
    pub(crate) fn finished(&self) -> bool {
        self.finished.load(Ordering::Acquire)
    }

    pub(crate) fn too_large(&self) -> bool {
        self.too_large.load(Ordering::Acquire)
    }

    pub(crate) fn too_slow(&self) -> bool {
        self.too_slow.load(Ordering::Acquire)
    }
}

impl RequestBody {
    /// `ending`'s deadline bounds the whole upload.
    pub(crate) fn upload(
        early: Early,
        incoming: Incoming,
        bytes_max: u64,
        ending: Ending,
    ) -> (Self, Arc<UploadOutcome>) {
        let outcome = Arc::new(UploadOutcome::default());
        let upload = Upload { early, incoming, remaining_bytes: bytes_max, ending, outcome: Arc::clone(&outcome) };
        (Self::Upload(Box::new(upload)), outcome)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Upload(upload) => upload.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Upload(upload) => upload.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Upload(upload) => {
                let (early, rest) = (upload.early.bytes as u64, upload.incoming.size_hint());
                let mut whole = SizeHint::new();
                whole.set_lower(rest.lower() + early);
                if let Some(upper) = rest.upper() {
                    whole.set_upper(upper + early);
                }
                whole
            }
        }
    }
}

impl Upload {
    fn is_end_stream(&self) -> bool {
        self.early.is_empty() && self.incoming.is_end_stream()
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.early.next() {
            Some(piece) => Poll::Ready(Some(Ok(Frame::data(piece)))),
            None => Pin::new(&mut self.incoming).poll_frame(cx),
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            return match self.poll_next(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    let Some(data) = frame.data_ref() else { continue };
                    let length = data.len() as u64;
                    if length > self.remaining_bytes {
                        self.outcome.too_large.store(true, Ordering::Release);
                        return Poll::Ready(Some(Err(BodyError::TooLarge)));
                    }
                    self.remaining_bytes -= length;
                    if self.ending.has_ended() {
                        return Poll::Ready(Some(Err(BodyError::Ended)));
                    }
                    if self.is_end_stream() {
                        self.outcome.finished.store(true, Ordering::Release);
                    }
                    Poll::Ready(Some(Ok(frame)))
                }
                Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error.into()))),
                Poll::Ready(None) => {
                    self.outcome.finished.store(true, Ordering::Release);
                    Poll::Ready(None)
                }
                Poll::Pending => self.ending.poll_ended(cx).map(|ended| {
                    let BodyError::AppIdle = ended else { return Some(Err(ended)) };
                    self.outcome.too_slow.store(true, Ordering::Release);
                    Some(Err(BodyError::TooSlow))
                }),
            };
        }
    }
}
