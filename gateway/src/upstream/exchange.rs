//! One request and its answer on a connection to an app, in the task of whoever asked.
//!
//! The answer is read while the request is still being sent: an app may refuse an upload before it has taken it. Not
//! here: which connection (`mod`), who may send what (`admission`), and when waiting ends (`forward`, `body`).

use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::net::TcpStream;

use super::answer_body::Decoder;
use super::answer_head::{self, ANSWER_HEAD_BYTES_MAX, AnswerHead, Read};
use super::wire::Wire;
use super::{Lease, Patience};
use crate::body::BodyError;
use crate::outbox::Outbox;
use crate::upload::Upload;

/// For an answer's head and a small body.
const HEAD_ROOM_BYTES: usize = 4 * 1024;

/// Why there is no answer, or no more of it.
#[derive(Debug)]
pub(crate) enum Failed {
    /// The app closed the connection, or it broke. `untouched`: before any byte of an answer.
    Gone {
        untouched: bool,
    },
    /// What came is no answer.
    Malformed,
    Upload(BodyError),
}

/// What is sent: head, and body if there is one.
pub(crate) struct Outgoing {
    outbox: Outbox,
    body: Option<Box<Body>>,
    /// The answer has no body, whatever it announces.
    is_head: bool,
    /// The kernel has taken some of it.
    begun: bool,
    /// The app takes no more of it.
    broken: bool,
}

struct Body {
    upload: Upload,
    framing: Framing,
    ended: bool,
}

/// How a request's body is framed towards the app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// Bytes that are still to be sent.
    Length(u64),
    Chunked,
}

impl Outgoing {
    /// `head` is the whole head with its empty line.
    pub(crate) fn new(head: Vec<u8>, is_head: bool, body: Option<(Upload, Framing)>) -> Self {
        let body = body.map(|(upload, framing)| Box::new(Body { upload, framing, ended: false }));
        Self { outbox: Outbox::new(head), body, is_head, begun: false, broken: false }
    }

    /// Whether the app was given the whole request.
    pub(crate) fn is_sent(&self) -> bool {
        !self.broken && self.outbox.is_empty() && self.body.as_ref().is_none_or(|body| body.ended)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, wire: &mut Wire) -> Poll<Result<(), BodyError>> {
        loop {
            if self.broken {
                return Poll::Ready(Ok(()));
            }
            let waits_for_body = self.poll_more(cx)?.is_pending();
            if self.outbox.is_empty() {
                return if waits_for_body { Poll::Pending } else { Poll::Ready(Ok(())) };
            }
            if ready!(self.outbox.poll_write(cx, wire.stream(), &mut self.begun)).is_err() {
                // It may have answered before it closed: that is for reading to find out.
                self.broken = true;
            }
        }
    }

    /// Takes the next piece of the body where there is room. Pending where the client has sent no more of it.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        let Some(body) = self.body.as_mut().filter(|body| !body.ended && self.outbox.takes_piece()) else {
            return Poll::Ready(Ok(()));
        };
        let piece = ready!(body.upload.poll_piece(cx)).transpose()?;
        body.ended = piece.is_none() || body.upload.finished();
        if let Framing::Length(remaining) = &mut body.framing {
            let taken = piece.as_ref().map_or(0, |piece| piece.len() as u64);
            *remaining = remaining.checked_sub(taken).ok_or(BodyError::OtherLength)?;
            if body.ended && *remaining > 0 {
                return Poll::Ready(Err(BodyError::OtherLength));
            }
        }
        let chunked = body.framing == Framing::Chunked;
        match piece {
            Some(piece) => self.outbox.push(piece, chunked, body.ended),
            None => self.outbox.end(chunked),
        }
        Poll::Ready(Ok(()))
    }
}

/// A request under way on its connection.
pub(crate) struct Exchange {
    lease: Lease,
    outgoing: Outgoing,
    /// Of the answer's head, interim answers before it included.
    head_bytes: usize,
    /// Bytes of a head that was not whole; it is looked at again when its end may have come.
    searched: usize,
    decoder: Decoder,
    keeps_alive: bool,
    last_read: usize,
}

impl Exchange {
    pub(crate) fn new(lease: Lease, outgoing: Outgoing) -> Self {
        Self { lease, outgoing, head_bytes: 0, searched: 0, decoder: Decoder::Done, keeps_alive: false, last_read: 0 }
    }

    /// The request again, for another connection; `None` where too much of it has gone already. `repeatable` says that
    /// it may happen twice.
    pub(crate) fn again(self, repeatable: bool) -> Option<Outgoing> {
        let Self { lease, mut outgoing, .. } = self;
        let whole = !outgoing.begun || (repeatable && outgoing.body.is_none());
        if !lease.reused || !whole {
            return None;
        }
        outgoing.outbox.rewind();
        (outgoing.begun, outgoing.broken) = (false, false);
        Some(outgoing)
    }

    /// Whether the client has sent the whole request.
    pub(crate) fn is_taken(&self) -> bool {
        self.outgoing.body.as_ref().is_none_or(|body| body.upload.finished())
    }

    pub(crate) fn has_body(&self) -> bool {
        self.outgoing.body.is_some()
    }

    /// The connection's own timer for whoever waits for the answer.
    pub(crate) fn patience(&mut self) -> &mut Patience {
        &mut self.lease.patience
    }

    /// Sends and waits for the answer's head, which `take` sees. Not to be called again after that.
    pub(crate) fn poll_head<R>(
        &mut self,
        cx: &mut Context<'_>,
        take: &mut impl FnMut(&AnswerHead<'_>) -> R,
    ) -> Poll<Result<R, Failed>> {
        loop {
            if let Poll::Ready(Err(error)) = self.outgoing.poll_send(cx, &mut self.lease.wire) {
                return Poll::Ready(Err(Failed::Upload(error)));
            }
            let gone = Failed::Gone { untouched: self.head_bytes == 0 && self.lease.wire.buffer.is_empty() };
            if self.outgoing.broken && !self.outgoing.begun {
                return Poll::Ready(Err(gone));
            }
            if let Some(taken) = self.read_head(take)? {
                return Poll::Ready(Ok(taken));
            }
            match ready!(self.lease.wire.poll_fill(cx, HEAD_ROOM_BYTES)) {
                Ok(0) | Err(_) => return Poll::Ready(Err(gone)),
                Ok(read) => self.last_read = read,
            }
        }
    }

    fn read_head<R>(&mut self, take: &mut impl FnMut(&AnswerHead<'_>) -> R) -> Result<Option<R>, Failed> {
        let buffer = &mut self.lease.wire.buffer;
        loop {
            // A head that dribbles in is not read from its beginning for each byte.
            let from = self.searched.saturating_sub(3);
            if buffer.is_empty() || (self.searched > 0 && !may_hold_end(&buffer[from..]) && !is_long(buffer)) {
                self.searched = buffer.len();
                return Ok(None);
            }
            let (is_head, (body, keeps_alive)) = (self.outgoing.is_head, (&mut self.decoder, &mut self.keeps_alive));
            let read = answer_head::read(buffer, is_head, |head| {
                *body = Decoder::begin(head.body);
                *keeps_alive = head.keeps_alive;
                take(head)
            });
            match read.map_err(|_| Failed::Malformed)? {
                Read::Incomplete => {
                    self.searched = buffer.len();
                    return Ok(None);
                }
                Read::Interim(length) => {
                    self.head_bytes += length;
                    if self.head_bytes > ANSWER_HEAD_BYTES_MAX {
                        return Err(Failed::Malformed);
                    }
                    buffer.advance(length);
                    self.searched = 0;
                }
                Read::Complete(length, taken) => {
                    buffer.advance(length);
                    self.lease.answered();
                    return Ok(Some(taken));
                }
            }
        }
    }

    /// The next piece of the answer's body; `None` at its end. Goes on sending what is left of the request.
    pub(crate) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Failed>> {
        if self.outgoing.body.is_some()
            && let Poll::Ready(Err(error)) = self.outgoing.poll_send(cx, &mut self.lease.wire)
        {
            return Poll::Ready(Err(Failed::Upload(error)));
        }
        loop {
            let piece = self.decoder.take(&mut self.lease.wire.buffer).map_err(|_| Failed::Malformed)?;
            if piece.is_some() || self.decoder.is_done() {
                return Poll::Ready(Ok(piece));
            }
            let room = self.decoder.room(self.last_read);
            match ready!(self.lease.wire.poll_fill(cx, room)) {
                Ok(0) => self.decoder.closed().map_err(|_| Failed::Gone { untouched: false })?,
                Ok(read) => self.last_read = read,
                Err(_) => return Poll::Ready(Err(Failed::Gone { untouched: false })),
            }
        }
    }

    /// Whether the whole answer was read.
    pub(crate) fn is_done(&self) -> bool {
        self.decoder.is_done()
    }

    /// Bytes of the answer's body that are still to come, where that is known.
    pub(crate) fn remaining(&self) -> Option<u64> {
        self.decoder.remaining()
    }

    /// The connection ends with this request: the app may have left bytes of it unread, which it would take for the
    /// next one.
    pub(crate) fn retire(&mut self) {
        self.lease.reusable = false;
    }

    /// Keeps the connection for the next request of its link, if nothing of this one is left on it.
    pub(crate) fn give_back(self) {
        if self.keeps_alive && self.decoder.is_done() && self.outgoing.is_sent() {
            self.lease.give_back();
        }
    }

    /// The stream after a 101, with what the app sent right behind it, and what the connection takes of its limits.
    pub(crate) fn into_upgraded(self) -> (TcpStream, BytesMut) {
        self.lease.into_upgraded()
    }
}

/// Whether an empty line may end here, however an app ends its lines.
pub(crate) fn may_hold_end(bytes: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', bytes).any(|at| matches!(bytes[..at], [.., b'\n'] | [.., b'\n', b'\r']))
}

fn is_long(buffer: &BytesMut) -> bool {
    buffer.len() >= ANSWER_HEAD_BYTES_MAX
}
