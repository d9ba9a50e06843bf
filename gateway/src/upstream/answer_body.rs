//! Takes the content of an app's answer out of its framing.
//!
//! Chunk extensions and trailers end at this hop, within a bound. Not here: reading (`wire`).

use bytes::{Buf, Bytes, BytesMut};

use super::answer_head::{AnswerBody, Malformed};

/// Read at once where more than this is to come: fewer calls for what is large.
const PIECE_BYTES_MAX: usize = 256 * 1024;
const PIECE_BYTES_MIN: usize = 8 * 1024;
/// Bytes of extensions and trailers of one answer.
const OVERHEAD_BYTES_MAX: u32 = 16 * 1024;
/// Sixteen would overflow.
const SIZE_DIGITS_MAX: u8 = 15;

/// Where in a body the connection stands.
#[derive(Debug)]
pub(crate) enum Decoder {
    Done,
    /// Bytes that are still to come.
    Length(u64),
    UntilClose,
    Chunked(Chunks),
}

#[derive(Debug)]
pub(crate) struct Chunks {
    state: Chunk,
    overhead: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chunk {
    Size {
        value: u64,
        digits: u8,
    },
    /// Blanks and extensions behind a size.
    Extension {
        value: u64,
    },
    SizeLineFeed {
        value: u64,
    },
    /// With nothing remaining its line ends.
    Data {
        remaining: u64,
    },
    DataLineFeed,
    TrailerStart,
    Trailer,
    TrailerLineFeed,
    LastLineFeed,
}

const SIZE: Chunk = Chunk::Size { value: 0, digits: 0 };

impl Decoder {
    pub(crate) fn begin(body: AnswerBody) -> Self {
        match body {
            AnswerBody::None { .. } | AnswerBody::Length(0) => Self::Done,
            AnswerBody::Length(length) => Self::Length(length),
            AnswerBody::UntilClose => Self::UntilClose,
            AnswerBody::Chunked => Self::Chunked(Chunks { state: SIZE, overhead: 0 }),
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// Bytes that are still to come, where that is known.
    pub(crate) fn remaining(&self) -> Option<u64> {
        match self {
            Self::Done => Some(0),
            Self::Length(remaining) => Some(*remaining),
            Self::UntilClose | Self::Chunked(_) => None,
        }
    }

    /// For how much the next read should make room, after `last` bytes came by the one before.
    pub(crate) fn room(&self, last: usize) -> usize {
        let most = match self {
            Self::Length(remaining) => usize::try_from(*remaining).unwrap_or(PIECE_BYTES_MAX),
            // What fills its room is probably long.
            Self::Done | Self::UntilClose | Self::Chunked(_) => last.saturating_mul(2),
        };
        most.clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX)
    }

    /// The next piece of content from the front of `buffer`; `None` where more has to be read first, or `is_done`.
    pub(crate) fn take(&mut self, buffer: &mut BytesMut) -> Result<Option<Bytes>, Malformed> {
        match self {
            Self::Done => Ok(None),
            Self::Length(remaining) => {
                // At most the buffer's length, so it fits.
                let taken = (*remaining).min(buffer.len() as u64) as usize;
                *remaining -= taken as u64;
                if *remaining == 0 {
                    *self = Self::Done;
                }
                Ok(piece(buffer, taken))
            }
            Self::UntilClose => Ok(piece(buffer, buffer.len())),
            Self::Chunked(chunks) => {
                let mut is_last = chunks.skip(buffer)?;
                let piece = match &mut chunks.state {
                    Chunk::Data { remaining } if !is_last => {
                        let taken = (*remaining).min(buffer.len() as u64) as usize;
                        *remaining -= taken as u64;
                        piece(buffer, taken)
                    }
                    _ => None,
                };
                // The end often comes with the last piece: known now, it is sent on with it.
                is_last = is_last || chunks.skip(buffer)?;
                if is_last {
                    *self = Self::Done;
                }
                Ok(piece)
            }
        }
    }

    /// The app has closed: the end of a body that ends so, and of no other.
    pub(crate) fn closed(&mut self) -> Result<(), Malformed> {
        match self {
            Self::Done | Self::UntilClose => {
                *self = Self::Done;
                Ok(())
            }
            Self::Length(_) | Self::Chunked(_) => Err(Malformed),
        }
    }
}

fn piece(buffer: &mut BytesMut, length: usize) -> Option<Bytes> {
    (length > 0).then(|| buffer.split_to(length).freeze())
}

impl Chunks {
    /// Takes framing from the front of `buffer` up to the next content. Answers whether that was the end of the body.
    fn skip(&mut self, buffer: &mut BytesMut) -> Result<bool, Malformed> {
        let mut at = 0;
        let mut is_last = false;
        while let Some(&byte) = buffer.get(at) {
            if matches!(self.state, Chunk::Data { remaining: 1.. }) {
                break;
            }
            at += 1;
            match self.step(byte)? {
                Some(next) => self.state = next,
                None => {
                    is_last = true;
                    break;
                }
            }
        }
        buffer.advance(at);
        Ok(is_last)
    }

    /// The state after one byte of framing; `None` after the last one.
    fn step(&mut self, byte: u8) -> Result<Option<Chunk>, Malformed> {
        let next = match (self.state, byte) {
            (Chunk::Size { value, digits }, digit) if digit.is_ascii_hexdigit() && digits < SIZE_DIGITS_MAX => {
                let digit = char::from(digit).to_digit(16).unwrap_or_default();
                Chunk::Size { value: value * 16 + u64::from(digit), digits: digits + 1 }
            }
            (Chunk::Size { value, digits: 1.. } | Chunk::Extension { value }, b'\r') => Chunk::SizeLineFeed { value },
            (Chunk::Size { value, digits: 1.. }, b' ' | b'\t' | b';') => Chunk::Extension { value },
            (Chunk::SizeLineFeed { value: 0 }, b'\n') => Chunk::TrailerStart,
            (Chunk::SizeLineFeed { value }, b'\n') => Chunk::Data { remaining: value },
            (Chunk::Data { remaining: 0 }, b'\r') => Chunk::DataLineFeed,
            (Chunk::DataLineFeed, b'\n') => SIZE,
            (Chunk::TrailerStart, b'\r') => Chunk::LastLineFeed,
            (Chunk::LastLineFeed, b'\n') => return Ok(None),
            (Chunk::Trailer, b'\r') => Chunk::TrailerLineFeed,
            (Chunk::TrailerLineFeed, b'\n') => Chunk::TrailerStart,
            (Chunk::Extension { .. } | Chunk::TrailerStart | Chunk::Trailer, b'\n' | 0) => return Err(Malformed),
            (Chunk::Extension { value }, _) => {
                self.overhead += 1;
                Chunk::Extension { value }
            }
            (Chunk::TrailerStart | Chunk::Trailer, _) => {
                self.overhead += 1;
                Chunk::Trailer
            }
            (
                Chunk::Size { .. }
                | Chunk::SizeLineFeed { .. }
                | Chunk::Data { .. }
                | Chunk::DataLineFeed
                | Chunk::TrailerLineFeed
                | Chunk::LastLineFeed,
                _,
            ) => return Err(Malformed),
        };
        if self.overhead > OVERHEAD_BYTES_MAX { Err(Malformed) } else { Ok(Some(next)) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    /// What comes of a body when it arrives in pieces of these sizes; and what is left behind it.
    fn decoded(body: AnswerBody, wire: &[u8], cuts: &[usize]) -> Result<(Vec<u8>, Vec<u8>), Malformed> {
        let (mut decoder, mut buffer, mut content) = (Decoder::begin(body), BytesMut::new(), Vec::new());
        let (mut at, mut cuts) = (0, cuts.iter().cycle());
        loop {
            while let Some(piece) = decoder.take(&mut buffer)? {
                content.extend_from_slice(&piece);
            }
            if decoder.is_done() {
                buffer.extend_from_slice(&wire[at..]);
                return Ok((content, buffer.to_vec()));
            }
            if at == wire.len() {
                decoder.closed()?;
                return Ok((content, Vec::new()));
            }
            let end = (at + cuts.next().unwrap()).min(wire.len());
            buffer.extend_from_slice(&wire[at..end]);
            at = end;
        }
    }

    fn chunked(chunks: &[Vec<u8>], extension: &str, trailers: &str) -> Vec<u8> {
        let mut wire = Vec::new();
        for chunk in chunks {
            wire.extend_from_slice(format!("{:X}{extension}\r\n", chunk.len()).as_bytes());
            wire.extend_from_slice(chunk);
            wire.extend_from_slice(b"\r\n");
        }
        wire.extend_from_slice(format!("0{extension}\r\n{trailers}\r\n").as_bytes());
        wire
    }

    #[test]
    fn the_end_of_chunks_is_known_with_their_last_piece() {
        let mut decoder = Decoder::begin(AnswerBody::Chunked);
        let mut buffer = BytesMut::from(&b"5\r\nhello\r\n0\r\n\r\n"[..]);
        assert_eq!(decoder.take(&mut buffer).unwrap().as_deref(), Some(&b"hello"[..]));
        assert!(decoder.is_done() && buffer.is_empty());
    }

    #[test]
    fn broken_chunks_and_short_bodies_are_no_answers() {
        for wire in [
            &b"5\nhello\r\n0\r\n\r\n"[..],
            b"5\r\nhelloX\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b" 5\r\nhello\r\n",
            b"0x5\r\nhello",
            b"-1\r\n",
            b"\r\n",
            b";\r\n",
            b"ffffffffffffffff\r\n",
            b"5;a\nb\r\nhello",
            b"0\r\nX: y\n\r\n",
            b"0\r\nX: y\rZ",
            b"5\r\nhell",
            b"5\r\nhello\r\n",
            b"5\r\nhello\r\n0\r\n",
        ] {
            assert_eq!(decoded(AnswerBody::Chunked, wire, &[3]), Err(Malformed), "{:?}", String::from_utf8_lossy(wire));
        }
        let endless = [&b"5;"[..], &vec![b'a'; OVERHEAD_BYTES_MAX as usize + 1]].concat();
        assert_eq!(decoded(AnswerBody::Chunked, &endless, &[999]), Err(Malformed));
        let endless = [&b"0\r\n"[..], &b"X: y\r\n".repeat(OVERHEAD_BYTES_MAX as usize)].concat();
        assert_eq!(decoded(AnswerBody::Chunked, &endless, &[999]), Err(Malformed));
        assert_eq!(decoded(AnswerBody::Length(5), b"hell", &[2]), Err(Malformed));
        assert_eq!(decoded(AnswerBody::UntilClose, b"hello", &[2]), Ok((b"hello".to_vec(), Vec::new())));
    }

    proptest! {
        /// However the network cuts an answer, its content and its end are the same.
        #[test]
        fn cuts_change_nothing(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..5),
            extension in prop_oneof![Just(""), Just(" "), Just(";a=b"), Just("\t;x=\"y\"")],
            trailers in prop_oneof![Just(""), Just("X: y\r\n"), Just("A: b\r\nC: d\r\n")],
            cuts in proptest::collection::vec(1_usize..9, 1..200),
        ) {
            let (content, next) = (chunks.concat(), b"HTTP/1.1 200".to_vec());
            let wire = [chunked(&chunks, extension, trailers), next.clone()].concat();
            prop_assert_eq!(decoded(AnswerBody::Chunked, &wire, &cuts), Ok((content.clone(), next.clone())));
            let wire = [content.clone(), next.clone()].concat();
            prop_assert_eq!(decoded(AnswerBody::Length(content.len() as u64), &wire, &cuts), Ok((content, next)));
        }

        #[test]
        fn no_bytes_make_it_panic_or_depend_on_cuts(
            wire in proptest::collection::vec(prop_oneof![any::<u8>(), prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'0'), Just(b'2'), Just(b';')]], 0..100),
            cuts in proptest::collection::vec(1_usize..9, 1..30),
        ) {
            prop_assert_eq!(decoded(AnswerBody::Chunked, &wire, &cuts), decoded(AnswerBody::Chunked, &wire, &[1000]));
        }
    }
}
