//! A request without a body as it lies on the wire: what the lane serves without taking it apart any further.
//!
//! Not here: whether its bytes have one meaning (`head_scan` has seen to that).

use super::head_scan::{Field, Framing, Head};
use crate::fields::{Fields, Line};

/// A whole head that was scanned.
pub(crate) struct WireRequest<'a> {
    bytes: &'a [u8],
    head: Head,
    fields: &'a [Field],
}

impl<'a> WireRequest<'a> {
    /// `None` where it asks for more than the lane does: a body, an upgrade, an end of the connection, an older
    /// version, or a target that hyper would read in a way of its own.
    pub(crate) fn new(bytes: &'a [u8], head: Head, fields: &'a [Field]) -> Option<Self> {
        let plain = head.framing == Framing::Empty && !head.upgrade && !head.http_1_0 && !head.expects;
        let request = Self { bytes, head, fields };
        let keeps_alive = request.values("connection").all(|value| value.eq_ignore_ascii_case(b"keep-alive"));
        (plain && keeps_alive && request.target().iter().copied().all(is_plain)).then_some(request)
    }

    pub(crate) fn method(&self) -> &'a [u8] {
        &self.bytes[..self.head.method_length]
    }

    fn target(&self) -> &'a [u8] {
        &self.bytes[self.head.method_length + 1..][..self.head.target_length]
    }

    /// Path and query.
    pub(crate) fn target_text(&self) -> &'a str {
        // Checked by `is_plain`: nothing but ASCII.
        std::str::from_utf8(self.target()).unwrap_or_default()
    }

    pub(crate) fn path(&self) -> &'a str {
        let target = self.target_text();
        &target[..memchr::memchr(b'?', target.as_bytes()).unwrap_or(target.len())]
    }
}

impl Fields for WireRequest<'_> {
    fn values<'f>(&'f self, name: &'static str) -> impl Iterator<Item = &'f [u8]> {
        let named = move |field: &&Field| {
            field.name_length() == name.len() && field.name(self.bytes).eq_ignore_ascii_case(name.as_bytes())
        };
        self.fields.iter().filter(named).map(|field| field.value(self.bytes))
    }

    fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        self.fields.iter().map(|field| Line {
            name: field.name(self.bytes),
            value: field.value(self.bytes),
            whole: field.whole(self.bytes),
        })
    }
}

/// Bytes of a target that stand for themselves wherever it is read (RFC 3986), `%` as the beginning of a code.
const PLAIN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = matches!(byte as u8,
            b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z'
            | b'-' | b'.' | b'_' | b'~' | b':' | b'/' | b'?' | b'[' | b']' | b'@' | b'%'
            | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=');
        byte += 1;
    }
    table
};

fn is_plain(byte: u8) -> bool {
    PLAIN[usize::from(byte)]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::head_scan::{HeadScan, scan_with};
    use super::*;
    use proptest::prelude::*;

    fn with<T>(text: &str, look: impl FnOnce(Option<WireRequest<'_>>) -> T) -> T {
        let mut fields = Vec::new();
        let HeadScan::Complete(head) = scan_with(text.as_bytes(), |field| fields.push(field)) else {
            panic!("{text:?} is no head")
        };
        look(WireRequest::new(&text.as_bytes()[..head.length], head, &fields))
    }

    #[test]
    fn fields_are_found_in_any_case_and_order() {
        let text = "GET /a/b?c=d?e HTTP/1.1\r\nHOST: h\r\nCookie: a=b\r\ncookie:c=d\r\nX-Y:\r\n\r\n";
        with(text, |request| {
            let request = request.unwrap();
            assert_eq!((request.method(), request.path(), request.target_text()), (&b"GET"[..], "/a/b", "/a/b?c=d?e"));
            assert_eq!(request.first("host"), Some(&b"h"[..]));
            assert_eq!(request.values("cookie").collect::<Vec<_>>(), [&b"a=b"[..], b"c=d"]);
            assert_eq!((request.first("x-y"), request.first("x")), (Some(&b""[..]), None));
            let wholes: Vec<_> = request.lines().map(|line| line.whole).collect();
            assert_eq!(wholes, [Some(&b"HOST: h\r\n"[..]), Some(b"Cookie: a=b\r\n"), None, None]);
        });
    }

    #[test]
    fn what_asks_for_more_is_not_for_the_lane() {
        for text in [
            "GET / HTTP/1.0\r\nHost: h\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, x-hop\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\nConnection: keep-alive\r\nConnection: x-hop\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET /a\"b HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET /a\\b HTTP/1.1\r\nHost: h\r\n\r\n",
        ] {
            with(text, |request| assert!(request.is_none(), "{text:?}"));
        }
        with("DELETE / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nConnection: Keep-Alive\r\n\r\n", |request| {
            assert!(request.is_some());
        });
    }

    proptest! {
        /// The lane and hyper see the same path and query.
        #[test]
        fn targets_read_as_they_do_for_hyper(target in "/[ -~]{0,20}") {
            prop_assume!(!target.contains([' ', '#']));
            let text = format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n");
            with(&text, |request| {
                if let Some(request) = request {
                    let uri: http::Uri = target.parse().unwrap();
                    prop_assert_eq!(uri.path(), request.path());
                    prop_assert_eq!(uri.path_and_query().unwrap().as_str(), request.target_text());
                }
                Ok(())
            })?;
        }
    }
}
