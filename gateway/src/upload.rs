//! The body of a request on its way to the app: streamed, bounded, and ended when the right to it ends.
//!
//! Not here: how it is framed towards the app (`upstream`), and the body of the answer (`body`).

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::body::{BodyError, Ending};

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

/// A body under way.
pub(crate) struct Upload {
    early: Early,
    incoming: Incoming,
    remaining_bytes: u64,
    ending: Ending,
    finished: bool,
}

impl Upload {
    /// `ending`'s deadline bounds the whole upload.
    pub(crate) fn new(early: Early, incoming: Incoming, bytes_max: u64, ending: Ending) -> Self {
        Self { early, incoming, remaining_bytes: bytes_max, ending, finished: false }
    }

    /// Whether the client has sent all of it.
    pub(crate) fn finished(&self) -> bool {
        self.finished
    }

    pub(crate) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        loop {
            return match self.poll_next(cx) {
                Poll::Ready(Some(Ok(None))) => continue,
                Poll::Ready(Some(Ok(Some(piece)))) => {
                    let length = piece.len() as u64;
                    if length > self.remaining_bytes {
                        return Poll::Ready(Some(Err(BodyError::TooLarge)));
                    }
                    self.remaining_bytes -= length;
                    if self.ending.has_ended() {
                        return Poll::Ready(Some(Err(BodyError::Ended)));
                    }
                    self.finished = self.early.is_empty() && self.incoming.is_end_stream();
                    Poll::Ready(Some(Ok(piece)))
                }
                Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error))),
                Poll::Ready(None) => {
                    self.finished = true;
                    Poll::Ready(None)
                }
                Poll::Pending => self.ending.poll_ended(cx).map(|ended| {
                    let BodyError::AppIdle = ended else { return Some(Err(ended)) };
                    Some(Err(BodyError::TooSlow))
                }),
            };
        }
    }

    /// `Ok(None)` for what is no content: trailers end at this hop.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Option<Bytes>, BodyError>>> {
        if let Some(piece) = self.early.next() {
            return Poll::Ready(Some(Ok(Some(piece))));
        }
        let frame = Pin::new(&mut self.incoming).poll_frame(cx);
        frame.map(|frame| frame.map(|frame| Ok(frame?.into_data().ok().filter(|piece| !piece.is_empty()))))
    }
}
