//! What an app answers: our reading against hyper's, whatever the cuts, and what a client is then told.

use std::future::poll_fn;
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body_util::{BodyExt as _, Empty};
use httparse::{EMPTY_HEADER, Header, Status};
use hyper_util::rt::TokioIo;

use super::cookies::is_ours;
use super::cuts;
use super::script::{Script, drive};
use super::websocket::websocket;
use crate::connection::AnswerFacts;
use crate::cookie::may_be_set;
use crate::forward::response_parts;
use crate::upstream::answer_body::Decoder;
use crate::upstream::answer_head::{AnswerBody, AnswerHead, Malformed, Read, read};
use crate::upstream::exchange::may_hold_end;

const OWN_HOST: &str = "web--links--acme.dev.envforge.ai";
const LINES_MAX: usize = 104;

/// First byte: whether HEAD was asked, and in how large pieces the answer comes. Behind it the answer.
pub fn app_answer(bytes: &[u8]) {
    let Some((mode, wire)) = bytes.split_first() else { return };
    let (to_head, piece) = (mode & 1 == 1, usize::from(mode >> 1) + 1);
    websocket(wire);
    let mut at = 0;
    let (status, body) = loop {
        match read(&wire[at..], to_head, |head| (head.status, seen(head))) {
            Err(Malformed) | Ok(Read::Incomplete) => return,
            Ok(Read::Interim(length)) => at += length,
            Ok(Read::Complete(length, seen)) => {
                let head = &wire[at..at + length];
                for cut in cuts(length) {
                    let beginning = read(&head[..cut], to_head, |_| ());
                    assert_eq!(beginning, Ok(Read::Incomplete), "cut at {cut}");
                    // What is not looked at for each byte that comes is looked at now.
                    assert!(may_hold_end(&head[cut.saturating_sub(3)..]), "cut at {cut}");
                }
                at += length;
                break seen;
            }
        }
    };
    let rest = &wire[at..];
    let ours = content(body, rest, piece);
    assert_eq!(ours, content(body, rest, rest.len().max(1)), "in pieces of {piece}");
    if let Ok(ours) = ours
        && let Some((theirs_status, theirs)) = as_hyper_reads(wire, to_head, piece)
    {
        assert_eq!((status, ours), (theirs_status, theirs));
    }
}

/// The content of a whole body.
fn content(body: AnswerBody, wire: &[u8], piece: usize) -> Result<Vec<u8>, Malformed> {
    let (mut decoder, mut buffer, mut content) = (Decoder::begin(body), BytesMut::new(), Vec::new());
    let mut pieces = wire.chunks(piece);
    loop {
        while let Some(piece) = decoder.take(&mut buffer)? {
            content.extend_from_slice(&piece);
        }
        if decoder.is_done() {
            return Ok(content);
        }
        match pieces.next() {
            Some(piece) => buffer.extend_from_slice(piece),
            None => {
                decoder.closed()?;
                return Ok(content);
            }
        }
    }
}

/// `None` where hyper reads no whole answer.
fn as_hyper_reads(wire: &[u8], to_head: bool, piece: usize) -> Option<(StatusCode, Vec<u8>)> {
    let asking = async {
        let io = TokioIo::new(Script::app_says(wire, piece));
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.ok()?;
        let method = if to_head { "HEAD" } else { "GET" };
        let request = http::Request::builder().method(method).uri("/").header("host", "h").body(Empty::<Bytes>::new());
        let asked = async {
            let answer = sender.send_request(request.ok()?).await.ok()?;
            let status = answer.status();
            Some((status, answer.into_body().collect().await.ok()?.to_bytes().to_vec()))
        };
        let (mut asked, mut connection) = (std::pin::pin!(asked), std::pin::pin!(connection));
        let mut open = true;
        poll_fn(|cx| {
            if open && connection.as_mut().poll(cx).is_ready() {
                open = false;
            }
            match asked.as_mut().poll(cx) {
                Poll::Ready(answer) => Poll::Ready(answer),
                Poll::Pending if !open => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    };
    drive(asking).flatten()
}

/// How the body ends, by a naive reading, and what a client is told.
fn seen(head: &AnswerHead<'_>) -> AnswerBody {
    let values = |name: &str| -> Vec<&[u8]> {
        head.fields.iter().filter(|field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value).collect()
    };
    let (lengths, encodings) = (values("content-length"), values("transfer-encoding"));
    assert!(lengths.is_empty() || encodings.is_empty(), "a body with two ends");
    assert!(encodings.len() < 2 && encodings.iter().all(|value| value.eq_ignore_ascii_case(b"chunked")));
    let numbers: Vec<u64> = lengths.iter().map(|value| std::str::from_utf8(value).unwrap().parse().unwrap()).collect();
    assert!(numbers.windows(2).all(|pair| pair[0] == pair[1]), "two lengths");
    match head.body {
        AnswerBody::None { announced } => assert_eq!(announced, numbers.first().copied()),
        AnswerBody::Length(length) => assert_eq!(numbers.first(), Some(&length)),
        AnswerBody::Chunked => assert_eq!(encodings.len(), 1),
        AnswerBody::UntilClose => assert!(numbers.is_empty() && encodings.is_empty() && !head.keeps_alive),
    }
    told(head);
    head.body
}

fn told(head: &AnswerHead<'_>) {
    let mut text = Vec::new();
    let facts = AnswerFacts::of_app(head, OWN_HOST, &mut text);
    assert_eq!(facts.has_body, !matches!(head.body, AnswerBody::None { .. }));
    text.extend_from_slice(b"\r\n");
    let mut room = [EMPTY_HEADER; LINES_MAX];
    let mut parsed = httparse::Response::new(&mut room);
    assert_eq!(parsed.parse(&text), Ok(Status::Complete(text.len())), "{}", String::from_utf8_lossy(&text));
    assert_eq!(parsed.code, Some(head.status.as_u16()));
    let lines: &[Header<'_>] = parsed.headers;
    assert!(lines.len() <= head.fields.len());
    let connection: Vec<u8> = (head.fields.iter())
        .filter(|field| field.name.eq_ignore_ascii_case("connection"))
        .flat_map(|field| [field.value, b","].concat())
        .collect();
    let connection = String::from_utf8_lossy(&connection).to_ascii_lowercase();
    let named: Vec<&str> = connection.split(',').map(str::trim).collect();
    for line in lines {
        let name = line.name.to_ascii_lowercase();
        let hop = [
            "connection",
            "keep-alive",
            "te",
            "trailer",
            "transfer-encoding",
            "upgrade",
            "content-length",
            "alt-svc",
            "service-worker-allowed",
        ];
        assert!(!hop.contains(&name.as_str()) && !name.starts_with("proxy-"), "{name}");
        assert!(
            !named.contains(&name.as_str()) || name == "set-cookie" || name == "cookie" || name == "host",
            "{name}"
        );
        if name == "set-cookie" {
            assert!(may_be_set(line.value, OWN_HOST));
            let text = String::from_utf8_lossy(line.value).into_owned();
            assert!(!is_ours(text.split(['=', ';']).next().unwrap().trim().as_bytes()), "{text}");
        }
        if name == "clear-site-data" {
            let own = |token: &str| matches!(token.trim(), "\"cache\"" | "\"storage\"");
            assert!(String::from_utf8_lossy(line.value).split(',').all(own));
        }
    }
    // hyper's way tells the same.
    let parts = response_parts(head, OWN_HOST);
    assert_eq!(parts.status, head.status);
    let mut theirs: Vec<_> =
        parts.headers.iter().map(|(name, value)| (name.as_str().to_owned(), value.as_bytes())).collect();
    theirs.retain(|(name, _)| name != "content-length");
    let mut ours: Vec<_> = lines.iter().map(|line| (line.name.to_ascii_lowercase(), line.value)).collect();
    ours.sort();
    theirs.sort();
    assert_eq!(ours, theirs);
}
