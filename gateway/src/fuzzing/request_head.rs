//! The head of a request: our scan against `httparse`, the lane's reading against hyper's, and what an app is then sent.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version};
use httparse::{EMPTY_HEADER, Header, Status};

use super::{config, cuts};
use crate::admission::{RequestHead, check_site, is_top_level_navigation, wants_page};
use crate::connection::WireRequest;
use crate::connection::head_scan::{Field, Framing, HEADERS_MAX, Head, HeadScan, scan, scan_with};
use crate::fields::Fields;
use crate::forward::{RequestLine, target_of};
use crate::header::Forwarded;
use crate::host::{Host, WorkspaceHost};
use crate::{cookie, request_check, share, websocket};

const OWN_HOST: &str = "web--links--acme.dev.envforge.ai";

pub fn request_head(bytes: &[u8]) {
    let mut fields = Vec::new();
    match scan_with(bytes, |field| fields.push(field)) {
        HeadScan::Incomplete => {}
        HeadScan::Refused(_) => {
            let more = [bytes, b"\r\nHost: h\r\n\r\n"].concat();
            assert!(matches!(scan(&more), HeadScan::Refused(_)), "more bytes make nothing right");
        }
        HeadScan::Complete(head) => {
            for cut in cuts(head.length) {
                assert_eq!(scan(&bytes[..cut]), HeadScan::Incomplete, "cut at {cut}");
            }
            assert_eq!(scan(&bytes[..head.length]), HeadScan::Complete(head));
            passes(&bytes[..head.length], head, &fields);
        }
    }
}

/// A head that may pass has one meaning.
fn passes(bytes: &[u8], head: Head, fields: &[Field]) {
    let mut room = [EMPTY_HEADER; HEADERS_MAX];
    let mut theirs = httparse::Request::new(&mut room);
    assert_eq!(theirs.parse(bytes), Ok(Status::Complete(bytes.len())));
    let (method, target) = (theirs.method.unwrap(), theirs.path.unwrap());
    assert_eq!(method.as_bytes(), &bytes[..head.method_length]);
    assert_eq!(target.as_bytes(), &bytes[head.method_length + 1..][..head.target_length]);
    assert_eq!(theirs.version, Some(u8::from(!head.http_1_0)));
    let theirs: &[Header<'_>] = theirs.headers;
    assert_eq!(fields.len(), theirs.len());
    for (field, line) in fields.iter().zip(theirs) {
        assert_eq!((field.name(bytes), field.value(bytes)), (line.name.as_bytes(), line.value));
    }
    for (index, byte) in bytes.iter().enumerate() {
        let whole = match byte {
            b'\r' => bytes.get(index + 1) == Some(&b'\n'),
            b'\n' => index > 0 && bytes[index - 1] == b'\r',
            b'\t' => true,
            control => *control >= 0x20 && *control != 0x7f,
        };
        assert!(whole, "byte {byte:#x} at {index}");
    }
    framing(head, method, target, theirs);
    assert!(method != "CONNECT" && method != "TRACE");
    assert!(target.starts_with('/') || (target == "*" && method == "OPTIONS"));
    assert!(!target.contains('#'));

    let Some(request) = as_hyper_reads(method, target, head, theirs) else { return };
    let host = request_check::check(&request).unwrap();
    let _ = Host::parse(&config(), host);
    socket(&request, head, theirs);
    share_page(request.headers(), theirs);
    over_http_2(&request);
    sent_to_app(method, &request, target_of(request.uri()));
    if let Some(lane) = WireRequest::new(bytes, head, fields) {
        agree(&lane, &request);
    }
}

fn framing(head: Head, method: &str, target: &str, lines: &[Header<'_>]) {
    let values = |name: &str| -> Vec<&[u8]> {
        lines.iter().filter(|line| line.name.eq_ignore_ascii_case(name)).map(|line| line.value).collect()
    };
    assert_eq!(values("host").len(), 1, "{method} {target}");
    let (lengths, encodings) = (values("content-length"), values("transfer-encoding"));
    let expected = match (lengths.as_slice(), encodings.as_slice()) {
        ([], []) => Framing::Empty,
        ([length], []) => match std::str::from_utf8(length).unwrap().parse().unwrap() {
            0 => Framing::Empty,
            length => Framing::Length(length),
        },
        ([], [encoding]) if encoding.eq_ignore_ascii_case(b"chunked") => Framing::Chunked,
        other => panic!("a body with two ends: {other:?}"),
    };
    assert_eq!(head.framing, expected);
    assert_eq!(head.upgrade, !values("upgrade").is_empty());
    assert_eq!(head.expects, !values("expect").is_empty());
}

/// `None` where hyper answers 400 by itself.
fn as_hyper_reads(method: &str, target: &str, head: Head, lines: &[Header<'_>]) -> Option<Request<()>> {
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(method.as_bytes()).unwrap();
    *request.uri_mut() = target.parse::<Uri>().ok()?;
    *request.version_mut() = if head.http_1_0 { Version::HTTP_10 } else { Version::HTTP_11 };
    for line in lines {
        let name = HeaderName::from_bytes(line.name.as_bytes()).unwrap();
        request.headers_mut().append(name, HeaderValue::from_bytes(line.value).unwrap());
    }
    Some(request)
}

/// A WebSocket handshake asks rightly or is none.
fn socket(request: &Request<()>, head: Head, lines: &[Header<'_>]) {
    let handshake = websocket::handshake(request);
    if !head.upgrade {
        assert_eq!(handshake, Ok(None));
    }
    if let Ok(Some(websocket::Handshake::Http1 { key })) = handshake {
        let named = |name: &'static str| lines.iter().filter(move |line| line.name.eq_ignore_ascii_case(name));
        assert_eq!(named("sec-websocket-key").count(), 1);
        assert_eq!(STANDARD.decode(&key).unwrap().len(), 16);
        assert_eq!(named("sec-websocket-version").next().unwrap().value, b"13");
        let connection = named("connection").map(|line| String::from_utf8_lossy(line.value).to_ascii_lowercase());
        assert!(connection.collect::<Vec<_>>().join(",").split(',').any(|token| token.trim() == "upgrade"));
    }
}

/// Forms of the share page and what arrives from it.
fn share_page(headers: &HeaderMap, lines: &[Header<'_>]) {
    let own = "https://dev.envforge.ai";
    let values = |name: &str| -> Vec<&[u8]> {
        lines.iter().filter(|line| line.name.eq_ignore_ascii_case(name)).map(|line| line.value).collect()
    };
    let (site, origins) = (values("sec-fetch-site"), values("origin"));
    if share::check_form(headers, own).is_ok() {
        let no_other = origins.iter().all(|origin| *origin == own.as_bytes() || *origin == b"null");
        assert!(no_other && origins.len() < 2);
        let browser_says_so = site.first() == Some(&&b"same-origin"[..]);
        assert!(browser_says_so || (site.is_empty() && origins == [own.as_bytes()]));
    }
    if share::check_arrival(headers, false).is_ok() {
        assert!(site.first().is_none_or(|site| *site != b"cross-site"));
        assert!(values("sec-fetch-dest").first().is_none_or(|dest| *dest == b"document"));
        assert!(values("sec-fetch-mode").first().is_none_or(|mode| *mode == b"navigate"));
    }
}

/// The same request over HTTP/2, where nobody has scanned its bytes.
fn over_http_2(request: &Request<()>) {
    let host = request.headers()["host"].to_str().unwrap_or_default();
    let Ok(uri) = format!("https://{host}{}", request.uri()).parse::<Uri>() else { return };
    let mut again = request.clone();
    *again.uri_mut() = uri;
    *again.version_mut() = Version::HTTP_2;
    if let Ok(checked) = request_check::check(&again) {
        assert!(checked.eq_ignore_ascii_case(again.uri().authority().unwrap().as_str().as_bytes()));
        assert!(again.headers().get("transfer-encoding").is_none());
    }
}

/// Whatever asks over requests hears the same of both readings.
fn agree(lane: &WireRequest<'_>, request: &Request<()>) {
    let (method, headers) = (request.method(), request.headers());
    assert_eq!(lane.method(), method.as_str().as_bytes());
    assert_eq!((lane.path(), lane.target_text()), (request.uri().path(), target_of(request.uri())));
    for scheme in [crate::config::Scheme::Https, crate::config::Scheme::PlainHttpDev] {
        assert_eq!(cookie::session(lane, scheme), cookie::session(headers, scheme));
        assert_eq!(cookie::sign_in(lane, scheme), cookie::sign_in(headers, scheme));
    }
    assert_eq!(wants_page(method, lane, false), wants_page(method, headers, false));
    let (ours, theirs) = (same_site(lane, method), same_site(headers, method));
    assert_eq!(ours, theirs);
    let (ours, theirs) =
        (lines_to_app(method, lane, lane.target_text()), sent_to_app(method.as_str(), request, lane.target_text()));
    assert_eq!(ours, theirs);
}

/// The answer for a plain request; a socket's is held against the rule alone.
fn same_site(fields: &impl Fields, method: &Method) -> bool {
    let Ok(Host::Workspace(host)) = Host::parse(&config(), OWN_HOST.as_bytes()) else { panic!("{OWN_HOST}") };
    let allows = |websocket| check_site(&head(&host, method, fields, websocket)).is_ok();
    let origins: Vec<&[u8]> = fields.values("origin").collect();
    let own = origins == [host.origin.as_bytes()];
    let site = fields.first("sec-fetch-site");
    let same_origin = site == Some(b"same-origin");
    if allows(true) {
        assert!(own, "a socket from elsewhere");
    }
    let plain = allows(false);
    if plain {
        let safe = matches!(method.as_str(), "GET" | "HEAD" | "OPTIONS");
        assert!(origins.len() < 2);
        assert!(safe || own || (origins == [b"null"] && same_origin), "another site's form");
        let elsewhere = site.is_some_and(|site| site != b"same-origin" && site != b"none");
        assert!(!elsewhere || is_top_level_navigation(method, fields), "another site's script");
    }
    plain
}

fn head<'a, F: Fields>(
    host: &'a WorkspaceHost,
    method: &'a Method,
    fields: &'a F,
    websocket: bool,
) -> RequestHead<'a, F> {
    RequestHead { host, method, path: "/", fields, websocket }
}

type Lines = BTreeMap<String, Vec<Vec<u8>>>;

fn sent_to_app(method: &str, request: &Request<()>, target: &str) -> Lines {
    lines_to_app(&Method::from_bytes(method.as_bytes()).unwrap(), request.headers(), target)
}

/// What an app reads of the head that we write: nothing that belongs to this hop, to the gateway, or to nobody.
fn lines_to_app(method: &Method, fields: &impl Fields, target: &str) -> Lines {
    let forwarded = Forwarded::new(([203, 0, 113, 9], 1).into(), OWN_HOST, "https");
    let bytes = RequestLine { method, target }.with(fields, &forwarded, None);
    let mut room = [EMPTY_HEADER; HEADERS_MAX + 8];
    let mut parsed = httparse::Request::new(&mut room);
    assert_eq!(parsed.parse(&bytes), Ok(Status::Complete(bytes.len())), "{}", String::from_utf8_lossy(&bytes));
    assert_eq!((parsed.method, parsed.path, parsed.version), (Some(method.as_str()), Some(target), Some(1)));
    let mut lines = Lines::new();
    for line in parsed.headers.iter() {
        lines.entry(line.name.to_ascii_lowercase()).or_default().push(line.value.to_vec());
    }
    let ours = |name: &str, value: &str| assert_eq!(lines[name], [value.as_bytes()], "{name}");
    ours("host", OWN_HOST);
    ours("x-forwarded-for", "203.0.113.9");
    ours("x-forwarded-host", OWN_HOST);
    ours("x-forwarded-proto", "https");
    ours("forwarded", &format!("for=203.0.113.9;host=\"{OWN_HOST}\";proto=https"));
    for (name, values) in &lines {
        let own = matches!(name.as_str(), "x-forwarded-for" | "x-forwarded-host" | "x-forwarded-proto");
        assert!(own || !name.starts_with("x-forwarded"), "{name}");
        let proxied = name.starts_with("proxy-") || name.starts_with("x-envforge") || name.contains('_');
        assert!(!proxied, "{name}");
        let hop = ["connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "expect", "x-real-ip"];
        assert!(!hop.contains(&name.as_str()), "{name}");
        let body = matches!(*method, Method::POST | Method::PUT | Method::PATCH);
        assert!(name != "content-length" || (body && *values == [b"0"]), "{name}");
        if name == "cookie" {
            assert_eq!(values.len(), 1);
            super::cookies::holds_none_of_ours(&values[0]);
        }
    }
    lines
}
