//! What is to be written next on an HTTP/1 connection, towards a client or an app: text, and behind it one piece of a
//! body with what frames it.
//!
//! Not here: what is written, and when.

use std::io::{self, IoSlice, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::AsyncWrite;

/// Up to here copying a piece costs less than a second slice of a write.
const JOINED_BYTES_MAX: usize = 8 * 1024;

/// Bytes in the order in which they go: text, piece, tail.
#[derive(Default)]
pub(crate) struct Outbox {
    text: Vec<u8>,
    sent: usize,
    piece: Bytes,
    /// What ends a chunk, and all of them.
    tail: &'static [u8],
}

impl Outbox {
    pub(crate) fn new(text: Vec<u8>) -> Self {
        Self { text, ..Self::default() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.sent == self.text.len() && self.is_text_alone()
    }

    fn is_text_alone(&self) -> bool {
        self.piece.is_empty() && self.tail.is_empty()
    }

    /// Whether the pieces before are gone, or so small that they wait together.
    pub(crate) fn takes_piece(&self) -> bool {
        self.is_text_alone() && self.text.len() - self.sent < JOINED_BYTES_MAX
    }

    /// Room for text, of which the part that was sent is forgotten.
    pub(crate) fn text(&mut self) -> &mut Vec<u8> {
        if self.sent > 0 && self.sent == self.text.len() {
            self.text.clear();
            self.sent = 0;
        }
        &mut self.text
    }

    /// Adds a piece that is not empty, where `takes_piece`.
    pub(crate) fn push(&mut self, piece: Bytes, chunked: bool, is_last: bool) {
        let text = self.text();
        if chunked {
            // Writing to a vector does not fail.
            let _ = write!(text, "{:x}\r\n", piece.len());
        }
        let tail: &'static [u8] = match (chunked, is_last) {
            (false, _) => b"",
            (true, false) => b"\r\n",
            (true, true) => b"\r\n0\r\n\r\n",
        };
        if piece.len() <= JOINED_BYTES_MAX {
            text.extend_from_slice(&piece);
            text.extend_from_slice(tail);
        } else {
            (self.piece, self.tail) = (piece, tail);
        }
    }

    /// The end of a body whose last piece did not say so.
    pub(crate) fn end(&mut self, chunked: bool) {
        if chunked {
            self.text().extend_from_slice(b"0\r\n\r\n");
        }
    }

    /// Its memory, for the text of the next one.
    pub(crate) fn into_text(self) -> Vec<u8> {
        self.text
    }

    /// Everything again from the beginning, where nothing but text was sent and none was added since.
    pub(crate) fn rewind(&mut self) {
        self.sent = 0;
    }

    /// Writes until nothing is left. `begun` is set with the first byte that is taken.
    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        mut to: Pin<&mut impl AsyncWrite>,
        begun: &mut bool,
    ) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let text = &self.text[self.sent..];
            let polled = if self.is_text_alone() {
                to.as_mut().poll_write(cx, text)
            } else {
                to.as_mut()
                    .poll_write_vectored(cx, &[IoSlice::new(text), IoSlice::new(&self.piece), IoSlice::new(self.tail)])
            };
            let written = ready!(polled)?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            *begun = true;
            self.written(written);
        }
        Poll::Ready(Ok(()))
    }

    fn written(&mut self, bytes: usize) {
        let of_text = bytes.min(self.text.len() - self.sent);
        self.sent += of_text;
        let of_piece = (bytes - of_text).min(self.piece.len());
        self.piece.advance(of_piece);
        if of_piece > 0 && self.piece.is_empty() {
            // What it lies in is free for the next one.
            self.piece = Bytes::new();
        }
        self.tail = &self.tail[bytes - of_text - of_piece..];
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use tokio::io::AsyncReadExt;

    /// What arrives when the other side takes `room` bytes at a time.
    fn sent(pieces: &[Vec<u8>], chunked: bool, room: usize) -> Vec<u8> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut near, mut far) = tokio::io::duplex(room);
            let writing = async {
                let mut outbox = Outbox::new(b"head\r\n\r\n".to_vec());
                let mut begun = false;
                for (index, piece) in pieces.iter().enumerate() {
                    let is_last = index + 1 == pieces.len();
                    outbox.push(Bytes::from(piece.clone()), chunked, is_last && index % 2 == 0);
                    if is_last && index % 2 == 1 {
                        std::future::poll_fn(|cx| outbox.poll_write(cx, Pin::new(&mut near), &mut begun))
                            .await
                            .unwrap();
                        outbox.end(chunked);
                    }
                    std::future::poll_fn(|cx| outbox.poll_write(cx, Pin::new(&mut near), &mut begun)).await.unwrap();
                }
                assert!(begun && outbox.is_empty());
                drop(near);
            };
            let mut read = Vec::new();
            tokio::join!(writing, async { far.read_to_end(&mut read).await.unwrap() });
            read
        })
    }

    proptest! {
        #[test]
        fn everything_arrives_in_order_however_it_is_taken(
            pieces in proptest::collection::vec(prop_oneof![proptest::collection::vec(any::<u8>(), 1..50), Just(vec![7; JOINED_BYTES_MAX + 1])], 1..5),
            chunked in any::<bool>(),
            room in 1_usize..5_000,
        ) {
            let mut expected = b"head\r\n\r\n".to_vec();
            for piece in &pieces {
                if chunked {
                    expected.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                }
                expected.extend_from_slice(piece);
                if chunked {
                    expected.extend_from_slice(b"\r\n");
                }
            }
            if chunked {
                expected.extend_from_slice(b"0\r\n\r\n");
            }
            prop_assert_eq!(sent(&pieces, chunked, room), expected);
        }
    }
}
