//! Serves what most requests on an HTTP/1.1 connection are, without taking them apart: no body, no upgrade, an app that
//! is ready. Whatever else comes goes to hyper, with the whole rest of the connection.
//!
//! A request is hyper's until the service takes it; from then on it is answered here. Not here: what may pass and
//! where to (the service), reading heads and the client's deadlines (`guarded_io`).

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::Body;
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use super::answer::Answer;
use super::guarded_io::{GuardedIo, Next};
use super::head_scan::{Field, Head};
use super::listener::Serve;
use super::signal::Signal;
use super::wire_request::WireRequest;
use crate::body::ResponseBody;
use crate::header;
use crate::outbox::Outbox;

/// What becomes of a connection after the lane.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    Closed,
    /// Its next request is for hyper.
    HandedOver,
}

/// Serves until something comes that is hyper's, or the connection ends.
pub(super) async fn run<S: Serve, I>(io: &mut GuardedIo<I>, service: &Arc<S>, stop: &CancellationToken) -> End
where
    I: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut stopping = Signal::new(stop);
    let mut fields: Vec<Field> = Vec::with_capacity(32);
    let mut text = Vec::new();
    loop {
        let next = poll_fn(|cx| match stopping.poll(cx) {
            Poll::Ready(()) => Poll::Ready(Ok(Next::End)),
            Poll::Pending => io.poll_head(cx, &mut fields),
        });
        let (bytes, head) = match next.await {
            Ok(Next::Head(bytes, head)) => (bytes, head),
            Ok(Next::Refused) => return End::HandedOver,
            Ok(Next::End) => {
                let _ = poll_fn(|cx| Pin::new(&mut *io).poll_shutdown(cx)).await;
                return End::Closed;
            }
            Err(error) => {
                tracing::debug!(%error, "connection ended");
                return End::Closed;
            }
        };
        text.clear();
        let answer = match answer(io, service, &bytes, head, &fields, &mut text).await {
            Asked::Answered(answer) => answer,
            Asked::NotOurs => {
                io.give_back(&bytes);
                return End::HandedOver;
            }
            Asked::Left => return End::Closed,
        };
        drop(bytes);
        let is_last = stop.is_cancelled();
        let mut sending = Sending::begin(answer, is_last, &mut text);
        match poll_fn(|cx| sending.poll(cx, io)).await {
            Ok(()) if !is_last => text = sending.outbox.into_text(),
            Ok(()) => {
                let _ = poll_fn(|cx| Pin::new(&mut *io).poll_shutdown(cx)).await;
                return End::Closed;
            }
            Err(error) => {
                tracing::debug!(%error, "an answer ended early");
                return End::Closed;
            }
        }
    }
}

/// What came of asking the service.
enum Asked {
    Answered(Answer),
    NotOurs,
    /// The client has left before there was an answer.
    Left,
}

/// Asks the service, and the client whether it still waits.
async fn answer<S: Serve, I: AsyncRead + Unpin>(
    io: &mut GuardedIo<I>,
    service: &Arc<S>,
    bytes: &Bytes,
    head: Head,
    fields: &[Field],
    text: &mut Vec<u8>,
) -> Asked {
    let Some(request) = WireRequest::new(bytes, head, fields) else { return Asked::NotOurs };
    let mut passing = pin!(service.pass(&request, text));
    poll_fn(|cx| match passing.as_mut().poll(cx) {
        Poll::Ready(Some(answer)) => Poll::Ready(Asked::Answered(answer)),
        Poll::Ready(None) => Poll::Ready(Asked::NotOurs),
        Poll::Pending => io.poll_left(cx).map(|()| Asked::Left),
    })
    .await
}

/// An answer on its way to the client.
struct Sending {
    outbox: Outbox,
    body: ResponseBody,
    chunked: bool,
    ended: bool,
}

impl Sending {
    /// Ends the head in `text`, which is taken.
    fn begin(answer: Answer, is_last: bool, text: &mut Vec<u8>) -> Self {
        let Answer { head, body, now } = answer;
        let chunked = head.has_body && head.length.is_none();
        if let Some(length) = head.length {
            header::push_length(text, length);
        } else if chunked {
            text.extend_from_slice(b"transfer-encoding: chunked\r\n");
        }
        if is_last {
            text.extend_from_slice(b"connection: close\r\n");
        }
        if !head.is_dated
            && let Ok(now) = Timestamp::from_millisecond(now.get().cast_signed())
            && let Ok(date) = DateTimePrinter::new().timestamp_to_rfc9110_string(&now)
        {
            header::push_line(text, b"date", date.as_bytes());
        }
        text.extend_from_slice(b"\r\n");
        let ended = !head.has_body || (!chunked && body.is_end_stream());
        Self { outbox: Outbox::new(std::mem::take(text)), body, chunked, ended }
    }

    /// Until the whole answer was written, or nothing more of it can be.
    fn poll<I: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut GuardedIo<I>,
    ) -> Poll<io::Result<()>> {
        loop {
            let waits_for_app = self.poll_more(cx)?.is_pending();
            ready!(self.outbox.poll_write(cx, Pin::new(io), &mut false))?;
            if waits_for_app || self.ended {
                // What was written lies in TLS's buffers until now.
                ready!(Pin::new(&mut *io).poll_flush(cx))?;
            }
            if self.ended {
                return Poll::Ready(Ok(()));
            }
            if waits_for_app {
                return io.poll_left(cx).map(|()| Err(io::ErrorKind::ConnectionAborted.into()));
            }
        }
    }

    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.ended || !self.outbox.takes_piece() {
            return Poll::Ready(Ok(()));
        }
        match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Ok(frame)) => {
                self.ended = self.body.is_end_stream();
                if let Ok(piece) = frame.into_data()
                    && !piece.is_empty()
                {
                    self.outbox.push(piece, self.chunked, self.ended);
                } else if self.ended {
                    self.outbox.end(self.chunked);
                }
                Poll::Ready(Ok(()))
            }
            Some(Err(error)) => Poll::Ready(Err(io::Error::other(error))),
            None => {
                self.ended = true;
                self.outbox.end(self.chunked);
                Poll::Ready(Ok(()))
            }
        }
    }
}
