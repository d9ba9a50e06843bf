//! Which headers cross the gateway, in each direction.
//!
//! Towards the app: hop-by-hop headers, names with `_`, and everything that claims to speak for a proxy are dropped;
//! the forwarding headers are set by us alone. The app keeps its own `Authorization`. Towards the client: hop-by-hop
//! headers, `Alt-Svc`, `Service-Worker-Allowed`, cookies for other hosts and `Clear-Site-Data` beyond the app's own
//! origin are dropped.

use std::net::{IpAddr, SocketAddr};

use httparse::Header;

use crate::cookie;
use crate::fields::Fields;
use crate::metric;

/// What we tell the app about host and client, as header lines; made once for a connection and host.
pub(crate) struct Forwarded {
    lines: Box<[u8]>,
}

impl Forwarded {
    /// `host` is the Host header's value, already known to be one of ours.
    pub(crate) fn new(client: SocketAddr, host: &str, scheme: &'static str) -> Self {
        let address = client.ip().to_canonical();
        let node = match address {
            IpAddr::V4(v4) => v4.to_string(),
            // RFC 7239 6: IPv6 stands in brackets and quotes.
            IpAddr::V6(v6) => format!("\"[{v6}]\""),
        };
        let lines = format!(
            "host: {host}\r\nx-forwarded-for: {address}\r\nx-forwarded-host: {host}\r\nx-forwarded-proto: {scheme}\r\n\
             forwarded: for={node};host=\"{host}\";proto={scheme}\r\n"
        );
        Self { lines: lines.into_bytes().into() }
    }
}

/// Writes the header lines that the app may see, without the empty line. What frames a body is not among them, nor is
/// what `except` names.
pub(crate) fn to_app(fields: &impl Fields, forwarded: &Forwarded, except: &[&str], out: &mut Vec<u8>) {
    out.extend_from_slice(&forwarded.lines);
    let nominated = nominated(fields.values("connection"));
    let mut has_cookies = false;
    for line in fields.lines() {
        match Upward::of(line.name) {
            Upward::Passes => {
                let is = |known: &[u8]| line.name.eq_ignore_ascii_case(known);
                if nominated.iter().any(|known| is(known)) || except.iter().any(|known| is(known.as_bytes())) {
                    continue;
                }
                match line.whole {
                    Some(whole) => out.extend_from_slice(whole),
                    None => push_line(out, line.name, line.value),
                }
            }
            Upward::Cookie => has_cookies = true,
            Upward::Ends => {}
        }
    }
    if has_cookies {
        cookie::to_app(fields, out);
    }
}

pub(crate) fn push_line(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// The length of a body as a line. Written for each answer, so it goes without the formatting machinery.
pub(crate) fn push_length(out: &mut Vec<u8>, mut length: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        // One decimal digit, so it fits.
        digits[at] = b'0' + (length % 10) as u8;
        length /= 10;
        if length == 0 {
            break;
        }
    }
    push_line(out, b"content-length", &digits[at..]);
}

/// What becomes of a client's header.
enum Upward {
    Passes,
    /// Ours are taken out of it.
    Cookie,
    /// It ends here, or is written by us.
    Ends,
}

impl Upward {
    /// `name` in any case, not empty.
    fn of(name: &[u8]) -> Self {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        let begins =
            |known: &str| name.len() >= known.len() && name[..known.len()].eq_ignore_ascii_case(known.as_bytes());
        let ends = match name[0] | 0x20 {
            b'x' => {
                begins("x-forwarded")
                    || begins("x-envforge")
                    || is("x-real-ip")
                    || is("x-client-ip")
                    || is("x-original-url")
                    || is("x-rewrite-url")
                    || is("x-original-host")
                    || is("x-cluster-client-ip")
            }
            b'f' => is("forwarded") || is("forwarded-for"),
            b'c' if is("cookie") => return Self::Cookie,
            b'c' => is("content-length") || is_hop_by_hop(name),
            b'h' => is("host") || is_hop_by_hop(name),
            b't' => is("true-client-ip") || is_hop_by_hop(name),
            _ => is_hop_by_hop(name),
        };
        // Some servers read `_` as `-`.
        if ends || name.contains(&b'_') { Self::Ends } else { Self::Passes }
    }
}

/// `name` in any case, not empty.
fn is_hop_by_hop(name: &[u8]) -> bool {
    let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
    match name[0] | 0x20 {
        b'c' => is("connection"),
        b'k' => is("keep-alive"),
        b'p' => name.len() >= 6 && name[..6].eq_ignore_ascii_case(b"proxy-"),
        b't' => is("te") || is("trailer") || is("transfer-encoding"),
        b'u' => is("upgrade"),
        b'h' => is("http2-settings"),
        b'e' => is("expect"),
        _ => false,
    }
}

/// Headers that `Connection` names belong to this hop (RFC 9110 7.6.1). `keep-alive`, `close` and `upgrade` name
/// what is dropped anyway. Host and cookies cannot be named away.
fn nominated<'a>(connection: impl Iterator<Item = &'a [u8]>) -> Vec<&'a [u8]> {
    const NOT: [&str; 7] = ["keep-alive", "close", "upgrade", "host", "cookie", "set-cookie", "content-length"];
    connection
        .flat_map(|value| value.split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|token| !token.is_empty() && !NOT.iter().any(|known| token.eq_ignore_ascii_case(known.as_bytes())))
        .collect()
}

/// Hands on the app's headers that the client may see. What frames the body is not among them. `nominates`: the app's
/// `Connection` names more than the connection's own fate.
pub(crate) fn to_client(fields: &[Header<'_>], nominates: bool, own_host: &str, mut hand_on: impl FnMut(&[u8], &[u8])) {
    let is = |field: &Header<'_>, known: &str| field.name.eq_ignore_ascii_case(known);
    let nominated = if nominates {
        nominated(fields.iter().filter(|field| is(field, "connection")).map(|field| field.value))
    } else {
        Vec::new()
    };
    let mut clears = false;
    for field in fields {
        let name = field.name.as_bytes();
        let ends = match name[0] | 0x20 {
            b'a' => is(field, "alt-svc"),
            b'c' if is(field, "clear-site-data") => {
                clears = true;
                true
            }
            b'c' => is(field, "content-length") || is(field, "connection"),
            b's' if is(field, "set-cookie") => {
                let allowed = cookie::may_be_set(field.value, own_host);
                if !allowed {
                    metric::dropped("set_cookie");
                }
                !allowed
            }
            b's' => is(field, "service-worker-allowed"),
            _ => is_hop_by_hop(name),
        };
        if !ends && !nominated.iter().any(|known| name.eq_ignore_ascii_case(known)) {
            hand_on(name, field.value);
        }
    }
    if clears && !nominated.iter().any(|known| known.eq_ignore_ascii_case(b"clear-site-data")) {
        let values = fields.iter().filter(|field| is(field, "clear-site-data")).map(|field| field.value);
        clear_site_data(values, hand_on);
    }
}

/// An app may clear what is its own origin's. Cookies are the whole domain's, sibling workspaces and our own included,
/// and so is what `*` and names to come may mean.
fn clear_site_data<'a>(values: impl Iterator<Item = &'a [u8]>, mut hand_on: impl FnMut(&[u8], &[u8])) {
    let is_own = |token: &&[u8]| matches!(*token, b"\"cache\"" | b"\"storage\"");
    let all: Vec<&[u8]> = values.flat_map(|value| value.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii).collect();
    let kept: Vec<&[u8]> = all.iter().copied().filter(is_own).collect();
    if kept.len() < all.len() {
        metric::dropped("clear_site_data");
    }
    if !kept.is_empty() {
        hand_on(b"clear-site-data", &kept.join(&b", "[..]));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn forwarded() -> Forwarded {
        Forwarded::new("[2001:db8::7]:1".parse().unwrap(), "h.dev:8", "https")
    }

    fn seen_by_app(fields: &[(&str, &str)]) -> Vec<String> {
        let mut out = Vec::new();
        to_app(&fields.to_vec(), &forwarded(), &[], &mut out);
        let mut lines: Vec<String> =
            String::from_utf8(out).unwrap().split_terminator("\r\n").map(str::to_owned).collect();
        lines.sort();
        lines
    }

    fn seen_by_client(fields: &[(&'static str, &'static str)]) -> Vec<String> {
        let fields: Vec<Header<'_>> =
            fields.iter().map(|(name, value)| Header { name, value: value.as_bytes() }).collect();
        let mut lines = Vec::new();
        to_client(&fields, true, "web--a--b.dev.envforge.ai", |name, value| {
            lines.push(format!("{}: {}", String::from_utf8_lossy(name), String::from_utf8_lossy(value)));
        });
        lines.sort();
        lines
    }

    #[test]
    fn whoever_claims_to_be_a_proxy_is_not_believed() {
        let fields = [
            ("Host", "h.dev:8"),
            ("x-forwarded-for", "1.2.3.4"),
            ("X-Forwarded-For", "5.6.7.8"),
            ("x-forwarded-host", "evil"),
            ("x-forwarded-proto", "gopher"),
            ("X-FORWARDED-Prefix", "/x"),
            ("x-forwarded", "x"),
            ("Forwarded", "for=9.9.9.9"),
            ("X-Real-IP", "1.2.3.4"),
            ("X-EnvForge-Org", "acme"),
            ("x_forwarded_for", "1.2.3.4"),
            ("content_length", "3"),
            ("True-Client-IP", "1.1.1.1"),
            ("x-original-url", "/admin"),
            ("Authorization", "Bearer app"),
            ("x-app", "kept"),
            ("accept", "*/*"),
            ("content-length", "9"),
        ];
        let expected = [
            "Authorization: Bearer app",
            "accept: */*",
            "forwarded: for=\"[2001:db8::7]\";host=\"h.dev:8\";proto=https",
            "host: h.dev:8",
            "x-app: kept",
            "x-forwarded-for: 2001:db8::7",
            "x-forwarded-host: h.dev:8",
            "x-forwarded-proto: https",
        ];
        assert_eq!(seen_by_app(&fields), expected);
    }

    #[test]
    fn hop_by_hop_headers_and_those_that_connection_names_stay_on_their_hop() {
        let lines = seen_by_app(&[
            ("host", "h"),
            ("connection", "keep-alive, x-hop, host, cookie"),
            ("X-Hop", "1"),
            ("keep-alive", "timeout=5"),
            ("TE", "trailers"),
            ("trailer", "x"),
            ("upgrade", "websocket"),
            ("proxy-authorization", "basic"),
            ("Proxy-Connection", "keep-alive"),
            ("cookie", "a=b"),
            ("expect", "100-continue"),
        ]);
        let names: Vec<&str> = lines.iter().map(|line| line.split(':').next().unwrap()).collect();
        assert_eq!(names, ["cookie", "forwarded", "host", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"]);
    }

    #[test]
    fn lengths_are_written_in_decimal_digits() {
        for length in [0, 7, 10, 1_024, u64::MAX] {
            let mut out = Vec::new();
            push_length(&mut out, length);
            assert_eq!(String::from_utf8(out).unwrap(), format!("content-length: {length}\r\n"));
        }
    }

    #[test]
    fn what_is_excepted_is_for_its_caller_to_write() {
        let mut out = Vec::new();
        let fields = vec![("Sec-WebSocket-Key", "1"), ("Sec-WebSocket-Protocol", "chat")];
        to_app(&fields, &forwarded(), &["sec-websocket-key"], &mut out);
        assert!(String::from_utf8(out).unwrap().ends_with("\r\nSec-WebSocket-Protocol: chat\r\n"));
    }

    #[test]
    fn the_app_cannot_reach_past_its_host() {
        let lines = seen_by_client(&[
            ("Alt-Svc", "h3=\"evil:443\""),
            ("transfer-encoding", "chunked"),
            ("content-length", "3"),
            ("te", "trailers"),
            ("trailer", "x"),
            ("upgrade", "x"),
            ("proxy-authenticate", "basic"),
            ("proxy-authentication-info", "x"),
            ("Proxy-Connection", "close"),
            ("Service-Worker-Allowed", "/"),
            ("connection", "x-internal, set-cookie"),
            ("X-Internal", "1"),
            ("keep-alive", "timeout=5"),
            ("set-cookie", "a=b"),
            ("Set-Cookie", "c=d; Domain=dev.envforge.ai"),
            ("clear-site-data", "\"cache\""),
            ("content-type", "text/plain"),
        ]);
        assert_eq!(lines, ["clear-site-data: \"cache\"", "content-type: text/plain", "set-cookie: a=b"]);
    }

    #[test]
    fn the_app_clears_its_own_origins_data_and_nobodys_cookies() {
        for (sent, kept) in [
            (&["\"cache\""][..], Some("\"cache\"")),
            (&["\"cache\", \"storage\""], Some("\"cache\", \"storage\"")),
            (&["\"cookies\""], None),
            (&["\"*\""], None),
            (&["*"], None),
            (&["\"storage\",\"cookies\" , \"cache\""], Some("\"storage\", \"cache\"")),
            (&["\"storage\"", "\"cookies\""], Some("\"storage\"")),
            (&["\"executionContexts\""], None),
        ] {
            let fields: Vec<_> = sent.iter().map(|value| ("Clear-Site-Data", *value)).collect();
            let expected: Vec<String> = kept.iter().map(|value| format!("clear-site-data: {value}")).collect();
            assert_eq!(seen_by_client(&fields), expected, "{sent:?}");
        }
    }
}
