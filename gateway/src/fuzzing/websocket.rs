//! An app's answer to a WebSocket handshake, and the frames behind it.

use http::HeaderValue;

use super::cuts;
use crate::upstream::answer_head::{Read, read};
use crate::websocket::frame::{FrameTracker, close_frame};
use crate::websocket::{accept_of, all_of, check_answer};

/// RFC 6455 1.3.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &[u8] = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
const OFFERED: &str = "chat, superchat";

/// The head of an answer, and behind it frames; frames alone where there is none.
pub(super) fn websocket(bytes: &[u8]) {
    let key = HeaderValue::from_static(KEY);
    assert_eq!(accept_of(&key).as_bytes(), ACCEPT);
    let head = read(bytes, false, |head| {
        let headers = all_of(head);
        if check_answer(&headers, &key, Some(&HeaderValue::from_static(OFFERED))).is_err() {
            return;
        }
        let values = |name: &str| -> Vec<&[u8]> {
            head.fields.iter().filter(|field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value).collect()
        };
        assert_eq!(values("sec-websocket-accept"), [ACCEPT]);
        assert!(matches!(values("upgrade").as_slice(), [one] if one.eq_ignore_ascii_case(b"websocket")));
        assert!(matches!(values("sec-websocket-protocol").as_slice(), [] | [b"chat"] | [b"superchat"]));
    });
    match head {
        Ok(Read::Complete(length, ())) => frames(&bytes[length..]),
        Ok(Read::Interim(_) | Read::Incomplete) | Err(_) => frames(bytes),
    }
}

/// Where frames end, whatever the cuts: a close frame of ours stands there and nowhere else.
fn frames(bytes: &[u8]) {
    let ends = ends(bytes);
    for size in [1, 2, 7, bytes.len().max(1)] {
        let (mut tracker, mut at) = (FrameTracker::default(), 0);
        for piece in bytes.chunks(size) {
            tracker.advance(piece);
            at += piece.len();
            assert_eq!(tracker.may_close(), ends.contains(&at), "at {at} in pieces of {size}");
        }
        if tracker.may_close() {
            // And is read as one frame after which nothing follows.
            let frame = close_frame(4403, "access ended");
            for cut in cuts(frame.len()).skip(1) {
                let mut again = FrameTracker::default();
                again.advance(&frame[..cut]);
                assert!(!again.may_close());
            }
            tracker.advance(&frame);
            assert!(!tracker.may_close());
        }
    }
}

/// The places behind whole frames, up to a close frame, by RFC 6455 5.2.
fn ends(bytes: &[u8]) -> Vec<usize> {
    let (mut ends, mut at) = (vec![0], 0_usize);
    while let [first, second, rest @ ..] = &bytes[at..] {
        let mask = if second & 0x80 == 0 { 0 } else { 4 };
        let (extended, length) = match (second & 0x7f, rest) {
            (126, [high, low, ..]) => (2, u64::from(*high) << 8 | u64::from(*low)),
            (127, rest) if rest.len() >= 8 => (8, rest[..8].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))),
            (126 | 127, _) => return ends,
            (short, _) => (0, u64::from(short)),
        };
        let whole = u128::from(length) + (2 + extended + mask) as u128;
        let closes = first & 0x0f == 8;
        if closes || at as u128 + whole > bytes.len() as u128 {
            return ends;
        }
        at += whole as usize;
        ends.push(at);
    }
    ends
}
