//! The head of an app's answer, and how the body behind it ends.
//!
//! Read by `httparse`, and held against what could be read in two ways: an app that disagrees with itself about the
//! length of its answer gets no further. Not here: which of its headers pass (`header`).

use std::mem::MaybeUninit;

use http::StatusCode;
use httparse::{Header, ParserConfig, Status};

/// Longest accepted head of an answer, interim answers included.
pub(crate) const ANSWER_HEAD_BYTES_MAX: usize = 64 * 1024;
/// Most header lines of one answer.
const ANSWER_HEADERS_MAX: usize = 100;

/// What an app said is not one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// How the body of an answer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AnswerBody {
    /// There is none, by the request's method or the status; a length may be told all the same.
    None {
        announced: Option<u64>,
    },
    Length(u64),
    Chunked,
    UntilClose,
}

/// A whole head. `fields` lie in the connection's buffer.
#[derive(Debug)]
pub(crate) struct AnswerHead<'a> {
    pub(crate) status: StatusCode,
    pub(crate) fields: &'a [Header<'a>],
    pub(crate) body: AnswerBody,
    /// Whether another request may follow on this connection.
    pub(crate) keeps_alive: bool,
    /// `Connection` names headers that belong to this hop.
    pub(crate) nominates: bool,
}

impl AnswerHead<'_> {
    /// The length that the client is told, where one is known.
    pub(crate) fn shown_length(&self) -> Option<u64> {
        match self.body {
            AnswerBody::Length(length) => Some(length),
            // RFC 9110 8.6: not behind 204.
            AnswerBody::None { announced } => announced.filter(|_| self.status != StatusCode::NO_CONTENT),
            AnswerBody::Chunked | AnswerBody::UntilClose => None,
        }
    }
}

/// What the front of a buffer is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Read<R> {
    Incomplete,
    /// 100, 103 and their like: this many bytes that nobody waits for.
    Interim(usize),
    /// The answer's head, this many bytes of it.
    Complete(usize, R),
}

/// Reads a head from the front of `bytes`; `take` sees it where it is whole. `without_body`: the answer to a HEAD.
pub(crate) fn read<R>(
    bytes: &[u8],
    without_body: bool,
    take: impl FnOnce(&AnswerHead<'_>) -> R,
) -> Result<Read<R>, Malformed> {
    let mut room = [const { MaybeUninit::uninit() }; ANSWER_HEADERS_MAX];
    let mut parsed = httparse::Response::new(&mut []);
    let status = ParserConfig::default().parse_response_with_uninit_headers(&mut parsed, bytes, &mut room);
    let length = match status {
        Ok(Status::Complete(length)) if length <= ANSWER_HEAD_BYTES_MAX => length,
        Ok(Status::Partial) if bytes.len() < ANSWER_HEAD_BYTES_MAX => return Ok(Read::Incomplete),
        Ok(Status::Complete(_) | Status::Partial) | Err(_) => return Err(Malformed),
    };
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(Malformed)?;
    if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(Read::Interim(length));
    }
    let is_http_1_1 = parsed.version == Some(1);
    let facts = Facts::of(parsed.headers)?;
    let body = facts.body(status, without_body, is_http_1_1)?;
    let keeps_alive = body != AnswerBody::UntilClose
        && status != StatusCode::SWITCHING_PROTOCOLS
        && !facts.closes
        && (is_http_1_1 || facts.keeps_alive);
    let head = AnswerHead { status, fields: parsed.headers, body, keeps_alive, nominates: facts.nominates };
    Ok(Read::Complete(length, take(&head)))
}

/// What the headers say about the connection and the body.
#[derive(Default)]
struct Facts {
    length: Option<u64>,
    chunked: bool,
    closes: bool,
    keeps_alive: bool,
    nominates: bool,
}

impl Facts {
    fn of(fields: &[Header<'_>]) -> Result<Self, Malformed> {
        let mut facts = Self::default();
        for field in fields {
            let is = |known: &str| field.name.eq_ignore_ascii_case(known);
            match field.name.len() {
                10 if is("connection") => facts.connection(field.value),
                14 if is("content-length") => {
                    let length = parse_length(field.value).ok_or(Malformed)?;
                    if facts.length.replace(length).is_some_and(|before| before != length) {
                        return Err(Malformed);
                    }
                }
                17 if is("transfer-encoding") => {
                    let chunked = field.value.trim_ascii().eq_ignore_ascii_case(b"chunked");
                    if !chunked || std::mem::replace(&mut facts.chunked, true) {
                        return Err(Malformed);
                    }
                }
                _ => {}
            }
        }
        Ok(facts)
    }

    fn connection(&mut self, value: &[u8]) {
        for token in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            if token.eq_ignore_ascii_case(b"close") {
                self.closes = true;
            } else if token.eq_ignore_ascii_case(b"keep-alive") {
                self.keeps_alive = true;
            } else if !token.is_empty() {
                self.nominates = true;
            }
        }
    }

    /// RFC 9112 6.3, where an answer that names both a length and an encoding is refused instead of repaired.
    fn body(&self, status: StatusCode, without_body: bool, is_http_1_1: bool) -> Result<AnswerBody, Malformed> {
        if self.chunked && (self.length.is_some() || !is_http_1_1) {
            return Err(Malformed);
        }
        if without_body || status.is_informational() || matches!(status.as_u16(), 204 | 304) {
            return Ok(AnswerBody::None { announced: self.length });
        }
        Ok(match (self.chunked, self.length) {
            (true, _) => AnswerBody::Chunked,
            (false, Some(length)) => AnswerBody::Length(length),
            (false, None) => AnswerBody::UntilClose,
        })
    }
}

/// 1 to 18 digits and nothing else.
fn parse_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 18 {
        return None;
    }
    value.iter().try_fold(0_u64, |sum, digit| digit.is_ascii_digit().then(|| sum * 10 + u64::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    type Seen = (u16, AnswerBody, bool);

    fn seen(bytes: &[u8], without_body: bool) -> Result<Read<Seen>, Malformed> {
        read(bytes, without_body, |head| (head.status.as_u16(), head.body, head.keeps_alive))
    }

    fn answer(text: &str) -> Result<Seen, Malformed> {
        match seen(text.as_bytes(), false)? {
            Read::Complete(length, seen) => {
                assert_eq!(length, text.len());
                Ok(seen)
            }
            other => panic!("{text:?} gave {other:?}"),
        }
    }

    #[test]
    fn the_end_of_a_body_and_of_a_connection_are_known() {
        use AnswerBody::*;
        for (head, expected) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n", (200, Length(12), true)),
            ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\nContent-Length: 3\r\n\r\n", (200, Length(3), true)),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n", (200, Chunked, true)),
            ("HTTP/1.1 200 OK\r\n\r\n", (200, UntilClose, false)),
            ("HTTP/1.1 404\r\nContent-Length: 0\r\nConnection: Close\r\n\r\n", (404, Length(0), false)),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: x, close\r\n\r\n", (200, Length(0), false)),
            ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", (200, Length(0), false)),
            ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n", (200, Length(0), true)),
            ("HTTP/1.1 204 No Content\r\n\r\n", (204, None { announced: Option::None }, true)),
            ("HTTP/1.1 304 \r\nContent-Length: 9\r\n\r\n", (304, None { announced: Some(9) }, true)),
            ("HTTP/1.1 101 \r\nUpgrade: websocket\r\n\r\n", (101, None { announced: Option::None }, false)),
        ] {
            assert_eq!(answer(head), Ok(expected), "{head:?}");
        }
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n";
        let expected = (200, None { announced: Some(5000) }, true);
        assert_eq!(seen(head, true), Ok(Read::Complete(head.len(), expected)));
        assert_eq!(seen(b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP", false), Ok(Read::Interim(31)));
    }

    #[test]
    fn an_app_that_disagrees_with_itself_is_not_believed() {
        for head in [
            "NOT HTTP AT ALL\r\n\r\n",
            "HTTP/2 200 OK\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/1.1 099 X\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1, 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 304 \r\nContent-Length: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX : a\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n",
        ] {
            assert_eq!(answer(head), Err(Malformed), "{head:?}");
        }
        let long = format!("HTTP/1.1 200 OK\r\nX: {}", "a".repeat(ANSWER_HEAD_BYTES_MAX));
        assert_eq!(seen(long.as_bytes(), false), Err(Malformed));
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(ANSWER_HEADERS_MAX + 1));
        assert_eq!(seen(many.as_bytes(), false), Err(Malformed));
    }

    proptest! {
        #[test]
        fn every_beginning_of_a_head_is_incomplete(cut in 0_usize..70) {
            let head = b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\nSet-Cookie: a=b\r\nX: y\r\n\r\n";
            prop_assume!(cut < head.len());
            prop_assert_eq!(seen(&head[..cut], false), Ok(Read::Incomplete));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), head in any::<bool>()) {
            let _ = seen(&bytes, head);
            let _ = seen(&[b"HTTP/1.1 200 OK\r\n", &bytes[..]].concat(), head);
        }
    }
}
