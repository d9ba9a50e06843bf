//! The body of an answer: streamed, never collected, and ended when the right to it ends.
//!
//! Timers and the watch on revocation are armed only where a body has to wait, so that a small answer costs neither.
//! Not here: the body of a request (`upload`), which ends by the same `Ending`.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use crate::activity::OpenStream;
use crate::connection::{InFlight, http2_stream};
use crate::metric;
use crate::standing::Right;
use crate::upstream::{Exchange, Failed};

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
    #[error("the request body is not as long as was announced")]
    OtherLength,
    #[error("the app ended its answer too early")]
    AppGone,
    #[error("the app's answer is not valid")]
    AppInvalid,
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
    pub(crate) fn has_ended(&mut self) -> bool {
        self.frames = self.frames.wrapping_add(1);
        if let Some(armed) = &mut self.armed {
            armed.moved = true;
        }
        // Reading the clock for each piece would cost more than it is worth; the log's own word on expiry comes too.
        self.right.is_withdrawn() || (self.frames.is_multiple_of(64) && Instant::now() >= self.right.deadline)
    }

    /// Asked where there is nothing to read.
    pub(crate) fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
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
    /// `None` once its connection was given back.
    exchange: Option<Exchange>,
    ending: Ending,
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

    /// Streams what the app answers; its connection goes back to the pool when the answer was read to its end.
    pub(crate) fn app(exchange: Exchange, ending: Ending, open: OpenStream) -> Self {
        Self::of(Kind::App(AppBody { exchange: Some(exchange), ending, _open: open }))
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
            Kind::App(body) => body.is_finished(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Page(content) => SizeHint::with_exact(content.as_ref().map_or(0, |content| content.len() as u64)),
            Kind::Events(_) => SizeHint::default(),
            Kind::App(body) => match body.exchange.as_ref().map(Exchange::remaining) {
                None => SizeHint::with_exact(0),
                Some(remaining) => remaining.map(SizeHint::with_exact).unwrap_or_default(),
            },
        }
    }
}

impl AppBody {
    fn is_finished(&self) -> bool {
        self.exchange.as_ref().is_none_or(Exchange::is_done)
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(exchange) = &mut self.exchange else { return Poll::Ready(None) };
        match exchange.poll_piece(cx) {
            Poll::Ready(Ok(Some(piece))) => {
                if self.ending.has_ended() {
                    metric::ended("body", "access_ended");
                    return Poll::Ready(Some(Err(BodyError::Ended)));
                }
                Poll::Ready(Some(Ok(Frame::data(piece))))
            }
            Poll::Ready(Ok(None)) => {
                self.give_back();
                Poll::Ready(None)
            }
            Poll::Ready(Err(failed)) => Poll::Ready(Some(Err(match failed {
                Failed::Gone { .. } => BodyError::AppGone,
                Failed::Malformed => BodyError::AppInvalid,
                Failed::Upload(error) => error,
            }))),
            Poll::Pending => self.ending.poll_ended(cx).map(|error| Some(Err(error))),
        }
    }

    fn give_back(&mut self) {
        if let Some(exchange) = self.exchange.take() {
            exchange.give_back();
        }
    }
}

impl Drop for AppBody {
    fn drop(&mut self) {
        // Nobody asks again after the last byte of a known length, so the end is seen here.
        if self.is_finished() {
            self.give_back();
        }
    }
}
