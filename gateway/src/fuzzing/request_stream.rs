//! A whole connection of a client: what the service is asked, through the lane or hyper, is what lies on the wire.

use std::sync::Arc;

use envforge_domain::time::UnixMillis;
use http::{Request, Response, StatusCode, Uri};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use parking_lot::Mutex;

use super::script::{Script, drive};
use crate::body::ResponseBody;
use crate::connection::body_scan::BodyScan;
use crate::connection::head_scan::{Field, Framing, Head, HeadScan, scan_with};
use crate::connection::{Answer, AnswerFacts, REFUSED_METHOD, Serve, WireRequest, serve_stream};
use crate::fields::Fields;
use crate::forward::target_of;

/// A request as somebody has read it.
#[derive(Debug)]
struct Seen {
    method: String,
    target: String,
    fields: usize,
    /// `None`: its end has not come.
    body: Option<Vec<u8>>,
    /// Nothing is answered behind it.
    is_last: bool,
}

/// First byte: whether the connection begins on the lane, and in how large pieces it comes. Behind it the connection.
pub fn request_stream(bytes: &[u8]) {
    let Some((mode, wire)) = bytes.split_first() else { return };
    let (lane, size) = (mode & 1 == 0, usize::from(mode >> 1));
    // A head in single bytes is looked at for each of them: for short inputs alone.
    let piece = if wire.len() <= 128 { size + 1 } else { 16 * (size + 1) };
    let (expected, end) = on_the_wire(wire);
    let recorder = Arc::new(Recorder::default());
    drive(serve_stream(Script::client_says(wire, piece), lane, Arc::clone(&recorder)));
    let mut asked = std::mem::take(&mut *recorder.0.lock());
    let told_refused = asked.pop_if(|last| last.method == REFUSED_METHOD).is_some();
    assert!(asked.iter().all(|asked| asked.method != REFUSED_METHOD), "something after a refusal");
    assert!(asked.len() <= expected.len(), "nobody sent the last of {asked:?}");
    for (asked, expected) in asked.iter().zip(&expected) {
        assert_eq!((&asked.method, &asked.target), (&expected.method, &expected.target));
        assert_eq!(asked.fields, expected.fields);
        // Where a later body is broken, whatever came with it in one piece is nobody's, the end of this one too.
        let lost = end == End::Broken && asked.body.is_none();
        assert!(lost || asked.body == expected.body, "{asked:?} of {expected:?}");
    }
    let open = |seen: &Seen| seen.body.is_some() && !seen.is_last;
    let answered = &expected[..asked.len()];
    assert!(answered.iter().rev().skip(1).all(open), "something behind the last of {asked:?}");
    // Nothing is passed over: what is not asked comes after an end, or is answered 400 by hyper.
    let ended = answered.last().is_some_and(|last| !open(last));
    if !ended {
        match expected.get(asked.len()) {
            Some(next) => assert!(end == End::Broken || next.target.parse::<Uri>().is_err(), "{next:?} was not asked"),
            None => assert_eq!(told_refused, end == End::Refused),
        }
    }
    assert!(!told_refused || (end == End::Refused && asked.len() == expected.len()));
}

/// What follows the requests of a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// Nothing, or a beginning.
    Open,
    /// A head that may not pass.
    Refused,
    /// The last body's framing makes no sense.
    Broken,
}

fn on_the_wire(wire: &[u8]) -> (Vec<Seen>, End) {
    let (mut seen, mut at) = (Vec::new(), 0);
    loop {
        let mut fields = Vec::new();
        let rest = &wire[at..];
        let head = match scan_with(rest, |field| fields.push(field)) {
            HeadScan::Complete(head) => head,
            HeadScan::Incomplete => return (seen, End::Open),
            HeadScan::Refused(_) => return (seen, End::Refused),
        };
        at += head.length;
        let behind = &wire[at..];
        let body = body(head, behind);
        let is_last = is_last(head, rest, &fields);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let (method, target) = rest.split_at(head.method_length);
        seen.push(Seen {
            method: text(method),
            target: text(&target[1..=head.target_length]),
            fields: fields.len(),
            body: body.as_ref().map(|(content, _)| content.clone()),
            is_last,
        });
        match body {
            Some((_, length)) => at += length,
            None if BodyScan::begin(head.framing).advance(behind).is_err() => return (seen, End::Broken),
            None => return (seen, End::Open),
        }
    }
}

/// Content and length on the wire of a whole body, as a naive reader and the scan both see it.
fn body(head: Head, wire: &[u8]) -> Option<(Vec<u8>, usize)> {
    let naive = match head.framing {
        Framing::Empty => Some((Vec::new(), 0)),
        Framing::Length(length) => {
            let length = usize::try_from(length).unwrap();
            wire.get(..length).map(|content| (content.to_vec(), length))
        }
        Framing::Chunked => chunks(wire),
    };
    for piece in [1, 3, wire.len().max(1)] {
        let (mut scan, mut at) = (BodyScan::begin(head.framing), 0);
        let broken = wire.chunks(piece).any(|piece| match scan.advance(piece) {
            Ok(taken) => {
                at += taken;
                false
            }
            Err(_) => true,
        });
        let whole = (!broken && scan == BodyScan::Done).then_some(at);
        assert_eq!(whole, naive.as_ref().map(|(_, length)| *length), "in pieces of {piece}");
    }
    naive
}

/// Chunks as RFC 9112 7.1 has them, without extensions and trailers.
fn chunks(wire: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut content, mut at) = (Vec::new(), 0);
    loop {
        let digits = wire[at..].iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        if !(1..=12).contains(&digits) || wire.get(at + digits..at + digits + 2)? != b"\r\n" {
            return None;
        }
        let size = usize::from_str_radix(std::str::from_utf8(&wire[at..at + digits]).unwrap(), 16).unwrap();
        at += digits + 2;
        content.extend_from_slice(wire.get(at..at.checked_add(size)?)?);
        at += size;
        if wire.get(at..at + 2)? != b"\r\n" {
            return None;
        }
        at += 2;
        if size == 0 {
            return Some((content, at));
        }
    }
}

fn is_last(head: Head, bytes: &[u8], fields: &[Field]) -> bool {
    let connection = fields.iter().filter(|field| field.name(bytes).eq_ignore_ascii_case(b"connection"));
    let values: Vec<String> =
        connection.map(|field| String::from_utf8_lossy(field.value(bytes)).to_ascii_lowercase()).collect();
    let says = |word: &str| values.iter().flat_map(|value| value.split(',')).any(|token| token.trim() == word);
    says("close") || (head.http_1_0 && !says("keep-alive"))
}

/// Writes down what it is asked, and says nothing of interest.
#[derive(Default)]
struct Recorder(Mutex<Vec<Seen>>);

impl Serve for Recorder {
    async fn serve(self: &Arc<Self>, request: Request<Incoming>) -> Response<ResponseBody> {
        let target = target_of(request.uri()).to_owned();
        let (method, fields) = (request.method().as_str().to_owned(), request.headers().len());
        let seen = Seen { method, target, fields, body: None, is_last: false };
        let index = {
            let mut all = self.0.lock();
            all.push(seen);
            all.len() - 1
        };
        let body = request.into_body().collect().await.ok().map(|body| body.to_bytes().to_vec());
        self.0.lock()[index].body = body;
        Response::new(ResponseBody::empty())
    }

    async fn pass(self: &Arc<Self>, request: &WireRequest<'_>, text: &mut Vec<u8>) -> Option<Answer> {
        let method = String::from_utf8(request.method().to_vec()).unwrap();
        let (target, fields) = (request.target_text().to_owned(), request.lines().count());
        self.0.lock().push(Seen { method, target, fields, body: Some(Vec::new()), is_last: false });
        let mut response = Response::new(ResponseBody::empty());
        *response.status_mut() = StatusCode::OK;
        let head = AnswerFacts::of_page(&response, request.method() == b"HEAD", text);
        Some(Answer { head, body: response.into_body(), now: UnixMillis::EPOCH })
    }
}
