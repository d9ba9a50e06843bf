//! Follows a request body over the wire, so that the next head is looked for exactly where it begins.
//!
//! Chunk extensions and trailer fields are refused: no browser sends them, and servers disagree about them.
//!
//! Not here: the body's content, which is never copied or looked at.

use super::head_scan::Framing;
use crate::denial::ProtocolFault;

/// Where in a body the connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyScan {
    Done,
    /// Bytes of a body of known length that are still to come.
    Remaining(u64),
    Chunks(Chunk),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chunk {
    Size { value: u64, digits: u8 },
    SizeLineFeed { value: u64 },
    Data { remaining: u64 },
    DataReturn,
    DataLineFeed,
    LastReturn,
    LastLineFeed,
}

const SIZE: Chunk = Chunk::Size { value: 0, digits: 0 };
/// Sixteen would overflow; nobody sends a chunk of more than 2^48 bytes.
const SIZE_DIGITS_MAX: u8 = 12;

impl BodyScan {
    pub(crate) fn begin(framing: Framing) -> Self {
        match framing {
            Framing::Empty => Self::Done,
            Framing::Length(length) => Self::Remaining(length),
            Framing::Chunked => Self::Chunks(SIZE),
        }
    }

    /// Takes what belongs to the body from the front of `bytes` and returns how many bytes that were.
    pub(crate) fn advance(&mut self, bytes: &[u8]) -> Result<usize, ProtocolFault> {
        match self {
            Self::Done => Ok(0),
            Self::Remaining(remaining) => {
                let taken = (*remaining).min(bytes.len() as u64);
                *remaining -= taken;
                if *remaining == 0 {
                    *self = Self::Done;
                }
                // `taken` is at most `bytes.len()`, so it fits.
                Ok(taken as usize)
            }
            Self::Chunks(chunk) => {
                let mut at = 0;
                while at < bytes.len() {
                    if let Chunk::Data { remaining } = chunk {
                        let taken = (*remaining).min((bytes.len() - at) as u64);
                        *remaining -= taken;
                        at += taken as usize;
                        if *remaining == 0 {
                            *chunk = Chunk::DataReturn;
                        }
                        continue;
                    }
                    match chunk.step(bytes[at])? {
                        Some(next) => *chunk = next,
                        None => {
                            *self = Self::Done;
                            return Ok(at + 1);
                        }
                    }
                    at += 1;
                }
                Ok(at)
            }
        }
    }
}

impl Chunk {
    /// The state after one byte of framing; `None` after the last one.
    fn step(self, byte: u8) -> Result<Option<Self>, ProtocolFault> {
        let next = match (self, byte) {
            (Self::Size { value, digits }, digit) if digit.is_ascii_hexdigit() && digits < SIZE_DIGITS_MAX => {
                let digit = char::from(digit).to_digit(16).unwrap_or_default();
                Self::Size { value: value * 16 + u64::from(digit), digits: digits + 1 }
            }
            (Self::Size { value, digits: 1.. }, b'\r') => Self::SizeLineFeed { value },
            (Self::SizeLineFeed { value: 0 }, b'\n') => Self::LastReturn,
            (Self::SizeLineFeed { value }, b'\n') => Self::Data { remaining: value },
            (Self::DataReturn, b'\r') => Self::DataLineFeed,
            (Self::DataLineFeed, b'\n') => SIZE,
            (Self::LastReturn, b'\r') => Self::LastLineFeed,
            (Self::LastLineFeed, b'\n') => return Ok(None),
            (
                Self::Size { .. }
                | Self::SizeLineFeed { .. }
                | Self::Data { .. }
                | Self::DataReturn
                | Self::DataLineFeed
                | Self::LastReturn
                | Self::LastLineFeed,
                _,
            ) => return Err(ProtocolFault::Chunk),
        };
        Ok(Some(next))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_next_head_begins_right_after_the_body() {
        let mut body = BodyScan::begin(Framing::Length(5));
        assert_eq!(body.advance(b"helloGET"), Ok(5));
        assert_eq!(body, BodyScan::Done);
        let mut body = BodyScan::begin(Framing::Chunked);
        assert_eq!(body.advance(b"5\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\nGET"), Ok(30));
        assert_eq!(body, BodyScan::Done);
    }

    #[test]
    fn chunks_that_servers_read_differently_are_refused() {
        for body in [
            &b"5;x=y\r\nhello"[..],
            b"5 \r\nhello",
            b" 5\r\nhello",
            b"5\nhello",
            b"0x5\r\nhello",
            b"\r\n",
            b"-1\r\n",
            b"5\r\nhelloX",
            b"5\r\nhello\nX",
            b"0\r\nX: y\r\n\r\n",
            b"fffffffffffffffff\r\n",
        ] {
            let mut scan = BodyScan::begin(Framing::Chunked);
            assert_eq!(scan.advance(body), Err(ProtocolFault::Chunk), "{:?}", String::from_utf8_lossy(body));
        }
    }

    proptest! {
        /// However the network cuts a body, its end is found at the same byte.
        #[test]
        fn cuts_do_not_move_the_end(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..5), cuts in proptest::collection::vec(1_usize..9, 1..200)) {
            let mut wire = Vec::new();
            for chunk in &chunks {
                wire.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                wire.extend_from_slice(chunk);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b"0\r\n\r\n");
            let end = wire.len();
            wire.extend_from_slice(b"GET / HTTP/1.1\r\n");
            let mut scan = BodyScan::begin(Framing::Chunked);
            let (mut at, mut cut) = (0, cuts.iter().cycle());
            while scan != BodyScan::Done {
                let stop = (at + cut.next().unwrap()).min(wire.len());
                at += scan.advance(&wire[at..stop]).unwrap();
            }
            prop_assert_eq!(at, end);
        }
    }
}
