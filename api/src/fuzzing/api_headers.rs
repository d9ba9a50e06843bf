//! The headers that the API reads: bearer tokens, cookies and origins of browsers, idempotency keys, positions, surfaces,
//! addresses behind proxies.

use std::net::IpAddr;

use axum::extract::FromRequestParts as _;
use envforge_domain::commit::Surface;
use envforge_identity::oidc::PublicUrl;
use futures_util::FutureExt as _;
use http::{HeaderName, HeaderValue, Method, Request, header};

use crate::access::{SURFACE_HEADER, bearer, surface_of};
use crate::browser::{Browsers, Cookie};
use crate::edge::client_address;
use crate::reads::{AtLeast, MIN_POSITION_HEADER};
use crate::request_body::media_type;
use crate::write::{IDEMPOTENCY_HEADER, idempotency_key};

const ORIGIN: &str = "https://api.envforge.ai";

/// Lines of a method and of headers.
pub(super) fn api_headers(bytes: &[u8]) {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let Ok(method) = Method::from_bytes(lines.next().unwrap_or_default()) else { return };
    let mut request = Request::new(());
    let mut given: Vec<(HeaderName, &[u8])> = Vec::new();
    for line in lines.take(100) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let value = line[colon + 1..].trim_ascii();
        let (Ok(name), Ok(written)) = (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(value)) else {
            continue;
        };
        request.headers_mut().append(&name, written);
        given.push((name, value));
    }
    let values = |name: &HeaderName| -> Vec<&[u8]> {
        given.iter().filter(|(known, _)| known == name).map(|(_, value)| *value).collect()
    };
    let headers = request.headers();
    for value in values(&header::AUTHORIZATION) {
        authorization(value);
    }
    match (idempotency_key(headers), values(&IDEMPOTENCY_HEADER).as_slice()) {
        (Ok(None), []) => {}
        (Ok(Some(key)), [one]) => {
            assert!(key.as_bytes() == *one && (1..=200).contains(&key.len()));
            assert!(key.bytes().all(|byte| byte.is_ascii_graphic()));
        }
        (Err(_), given) => assert!(!given.is_empty()),
        (key, given) => panic!("{:?} of {}", key.ok(), given.len()),
    }
    match (surface_of(headers), values(&SURFACE_HEADER).first()) {
        (Ok(None), None) => {}
        (Ok(Some(surface)), Some(value)) => {
            assert!(surface.token().as_bytes() == *value && surface != Surface::Gateway);
        }
        (Err(_), Some(_)) => {}
        (surface, value) => panic!("{:?} of {value:?}", surface.ok()),
    }
    addresses(headers, &values(&HeaderName::from_static("x-forwarded-for")));
    browser(&method, headers, &values(&header::COOKIE), &values(&header::ORIGIN));
    if let Some(kind) = media_type(headers) {
        assert!(values(&header::CONTENT_TYPE)[0].starts_with(kind.as_bytes()) && !kind.contains(';'));
    }
    let positions = values(&MIN_POSITION_HEADER).into_iter().map(<[u8]>::to_vec).collect::<Vec<_>>();
    let (mut parts, ()) = request.into_parts();
    let at = AtLeast::from_request_parts(&mut parts, &()).now_or_never().unwrap();
    match (at, positions.first()) {
        (Ok(AtLeast(position)), None) => assert_eq!(position.get(), 0),
        (Ok(AtLeast(position)), Some(value)) => {
            assert_eq!(position.get().to_string().as_bytes(), value.as_slice(), "one spelling");
        }
        (Err(_), Some(_)) => {}
        (Err(_), None) => panic!("a position that nobody gave"),
    }
}

fn authorization(value: &[u8]) {
    let Ok(text) = std::str::from_utf8(value) else { return };
    match bearer(text) {
        Some(token) => {
            assert!(text.len() == token.len() + 7 && text.ends_with(token) && !token.contains(' '));
            assert!(text[..7].eq_ignore_ascii_case("bearer "));
        }
        None => {
            let plain = text.strip_prefix("Bearer ").is_some_and(|token| !token.is_empty() && !token.contains(' '));
            assert!(!plain, "{text}");
        }
    }
}

/// Nobody chooses their address but by a proxy that we trust.
fn addresses(headers: &http::HeaderMap, forwarded: &[&[u8]]) {
    let peer: IpAddr = [10, 0, 0, 1].into();
    assert_eq!(client_address(peer, headers, &[]), peer);
    let trusted = [peer, [10, 0, 0, 2].into()];
    let seen = client_address(peer, headers, &trusted);
    let named = |address: IpAddr| {
        let hops = forwarded.iter().flat_map(|line| line.split(|byte| *byte == b','));
        let mut hops = hops.filter_map(|hop| std::str::from_utf8(hop).ok()?.trim().parse::<IpAddr>().ok());
        hops.any(|hop| hop.to_canonical() == address)
    };
    assert!(seen == peer || named(seen), "{seen}");
}

fn browser(method: &Method, headers: &http::HeaderMap, cookies: &[&[u8]], origins: &[&[u8]]) {
    let browsers = Browsers::new(&PublicUrl::parse(ORIGIN).unwrap());
    let pairs = || cookies.iter().flat_map(|line| line.split(|byte| *byte == b';')).map(<[u8]>::trim_ascii);
    for (cookie, name) in [
        (Cookie::Console, "__Host-envforge-session="),
        (Cookie::Workspaces, "__Host-envforge-workspaces="),
        (Cookie::Flow, "__Host-envforge-sign-in="),
    ] {
        let ours: Vec<&[u8]> = pairs().filter_map(|pair| pair.strip_prefix(name.as_bytes())).collect();
        match (browsers.get(cookie, headers), ours.as_slice()) {
            (Some(secret), [one]) => assert_eq!(secret.expose().as_bytes(), *one),
            (Some(_), given) => panic!("one of {}", given.len()),
            // Whatever else stands beside it.
            (None, [one]) => assert!(one.len() != 43 || !one.is_ascii(), "lost"),
            (None, _) => {}
        }
    }
    let of_our_pages = origins == [ORIGIN.as_bytes()];
    assert!(browsers.check_form(headers).is_err() || of_our_pages);
    if let Ok(Some(_)) = browsers.presented(method, headers) {
        assert!(!headers.contains_key(header::AUTHORIZATION));
        assert!(matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE) || of_our_pages);
    }
}
