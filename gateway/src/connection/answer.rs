//! Answers as the lane writes them: the head as text, the body behind it.
//!
//! Not here: which headers of the app pass (`header`), and when what is written (`lane`).

use envforge_domain::time::UnixMillis;
use http::{Response, StatusCode};
use hyper::body::Body;

use crate::body::ResponseBody;
use crate::header;
use crate::upstream::{AnswerBody, AnswerHead};

/// An answer whose status line and headers were written, but for those that frame its body.
pub(crate) struct Answer {
    pub(crate) head: AnswerFacts,
    pub(crate) body: ResponseBody,
    /// Now; told to the client where the app has not said what time it is.
    pub(crate) now: UnixMillis,
}

/// What of an answer's head is still to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AnswerFacts {
    pub(crate) length: Option<u64>,
    pub(crate) has_body: bool,
    pub(crate) is_dated: bool,
}

impl AnswerFacts {
    /// Writes what the client may see of an app's head.
    pub(crate) fn of_app(head: &AnswerHead<'_>, own_host: &str, out: &mut Vec<u8>) -> Self {
        push_status(out, head.status);
        let mut is_dated = false;
        header::to_client(head.fields, head.nominates, own_host, |name, value| {
            is_dated |= name.eq_ignore_ascii_case(b"date");
            header::push_line(out, name, value);
        });
        let has_body = !matches!(head.body, AnswerBody::None { .. });
        Self { length: head.shown_length(), has_body, is_dated }
    }

    /// Writes the head of an answer of our own.
    pub(crate) fn of_page(response: &Response<ResponseBody>, to_head: bool, out: &mut Vec<u8>) -> Self {
        push_status(out, response.status());
        for (name, value) in response.headers() {
            header::push_line(out, name.as_str().as_bytes(), value.as_bytes());
        }
        Self { length: response.body().size_hint().exact(), has_body: !to_head, is_dated: false }
    }
}

fn push_status(out: &mut Vec<u8>, status: StatusCode) {
    for part in ["HTTP/1.1 ", status.as_str(), " ", status.canonical_reason().unwrap_or_default(), "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
}
