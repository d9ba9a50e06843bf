//! Checks on a parsed request, for both protocols, before anything is looked up.
//!
//! Over HTTP/1 `connection::head_scan` has already seen the bytes; what is repeated here guards HTTP/2 and keeps the
//! service safe by itself.

use http::header::{CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING};
use http::{Method, Request, Version};

use crate::connection::HEADERS_MAX;
use crate::denial::ProtocolFault;
use crate::forward::target_of;

/// The host a request names, as sent.
pub(crate) fn check<B>(request: &Request<B>) -> Result<&[u8], ProtocolFault> {
    let headers = request.headers();
    if headers.len() > HEADERS_MAX {
        return Err(ProtocolFault::TooManyHeaders);
    }
    if request.method() == Method::TRACE {
        return Err(ProtocolFault::Method);
    }
    // Over HTTP/2 other bytes come this far, and an app would read them in the first line of its request.
    if !target_of(request.uri()).bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(ProtocolFault::Target);
    }
    let http2 = request.version() == Version::HTTP_2;
    if request.method() == Method::CONNECT {
        // RFC 8441 with any other protocol would reach the app as something that nobody asked for.
        let protocol = request.extensions().get::<hyper::ext::Protocol>().map(hyper::ext::Protocol::as_str);
        if !http2 || protocol != Some("websocket") {
            return Err(ProtocolFault::Connect);
        }
    }
    if http2 {
        let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
        if lengths.next().is_some() && lengths.next().is_some() {
            return Err(ProtocolFault::RepeatedContentLength);
        }
        if headers.contains_key(TRANSFER_ENCODING) {
            return Err(ProtocolFault::TransferEncoding);
        }
        if headers.get(EXPECT).is_some_and(|value| !value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
            return Err(ProtocolFault::Expectation);
        }
    }
    let mut hosts = headers.get_all(HOST).iter();
    let (host, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err(ProtocolFault::RepeatedHost);
    }
    match (request.uri().authority(), host) {
        (Some(_), _) if !http2 => Err(ProtocolFault::AbsoluteForm),
        (Some(authority), Some(host)) if !authority.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes()) => {
            Err(ProtocolFault::AuthorityHost)
        }
        (_, Some(host)) => Ok(host.as_bytes()),
        (Some(authority), None) => Ok(authority.as_str().as_bytes()),
        (None, None) => Err(ProtocolFault::MissingHost),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn request(version: Version, method: &str, uri: &str, headers: &[(&str, &str)]) -> Request<()> {
        let mut builder = Request::builder().version(version).method(method).uri(uri);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap()
    }

    #[test]
    fn over_http_2_the_authority_is_the_host() {
        let h2 = Version::HTTP_2;
        assert_eq!(check(&request(h2, "GET", "https://a.dev/x", &[])), Ok(&b"a.dev"[..]));
        assert_eq!(check(&request(h2, "GET", "https://a.dev/x", &[("host", "A.dev")])), Ok(&b"A.dev"[..]));
        for (method, uri, headers, fault) in [
            ("GET", "https://a.dev/x", &[("host", "b.dev")][..], ProtocolFault::AuthorityHost),
            ("GET", "/x", &[], ProtocolFault::MissingHost),
            ("CONNECT", "a.dev:443", &[], ProtocolFault::Connect),
            ("TRACE", "https://a.dev/x", &[], ProtocolFault::Method),
            ("GET", "https://a.dev/caf\u{e9}", &[], ProtocolFault::Target),
            ("GET", "https://a.dev/x?\u{e9}", &[], ProtocolFault::Target),
            (
                "POST",
                "https://a.dev/x",
                &[("content-length", "1"), ("content-length", "1")],
                ProtocolFault::RepeatedContentLength,
            ),
            ("POST", "https://a.dev/x", &[("transfer-encoding", "chunked")], ProtocolFault::TransferEncoding),
            ("POST", "https://a.dev/x", &[("expect", "magic")], ProtocolFault::Expectation),
        ] {
            assert_eq!(check(&request(h2, method, uri, headers)), Err(fault), "{method} {uri}");
        }
    }

    #[test]
    fn of_the_protocols_of_an_extended_connect_websockets_alone_are_served() {
        let connect = |protocol| {
            let mut request = request(Version::HTTP_2, "CONNECT", "https://a.dev/x", &[]);
            request.extensions_mut().insert(hyper::ext::Protocol::from_static(protocol));
            check(&request).map(<[u8]>::to_vec)
        };
        assert_eq!(connect("websocket"), Ok(b"a.dev".to_vec()));
        for protocol in ["connect-udp", "connect-tcp", "webtransport", "WebSocket", ""] {
            assert_eq!(connect(protocol), Err(ProtocolFault::Connect), "{protocol}");
        }
    }

    #[test]
    fn over_http_1_one_host_header_decides() {
        let h1 = Version::HTTP_11;
        assert_eq!(check(&request(h1, "GET", "/x", &[("host", "a.dev")])), Ok(&b"a.dev"[..]));
        for headers in [&[][..], &[("host", "a.dev")]] {
            let absolute = request(h1, "GET", "http://a.dev/x", headers);
            assert_eq!(check(&absolute), Err(ProtocolFault::AbsoluteForm));
        }
        assert_eq!(check(&request(h1, "GET", "/", &[("host", "a"), ("host", "a")])), Err(ProtocolFault::RepeatedHost));
    }
}
