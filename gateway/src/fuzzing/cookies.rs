//! Cookies in both directions: what an app is sent holds none of ours, and what it sets is none of ours.

use http::HeaderMap;
use http::header::{COOKIE, HeaderValue};

use envforge_domain::secret::TokenDigest;

use super::codes::handoff_codes;
use crate::config::Scheme;
use crate::cookie::{may_be_set, session, session_name, sign_in, to_app};
use crate::denial::Denial;
use crate::sign_in::{Kept, is_own_target};

const OWN_HOST: &str = "web--links--acme.dev.envforge.ai";

/// Lines of a request's cookies; each is also tried as what an app sets. Behind a byte 255: the code by which a browser gets one.
pub fn cookies(bytes: &[u8]) {
    if let [0xff, rest @ ..] = bytes {
        return handoff_codes(rest);
    }
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n').take(100) {
        set_by_app(line);
        let Ok(value) = HeaderValue::from_bytes(line) else { continue };
        headers.append(COOKIE, value);
    }
    let mut out = Vec::new();
    to_app(&headers, &mut out);
    let lines: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    let all: Vec<&[u8]> = lines.iter().flat_map(|line| pairs(line)).collect();
    if out.is_empty() {
        assert!(all.iter().all(|pair| pair.is_empty() || is_ours(name_of(pair))), "a cookie of the app's is lost");
    } else {
        let line = out.strip_prefix(b"cookie: ").unwrap().strip_suffix(b"\r\n").unwrap();
        assert!(!line.contains(&b'\r') && !line.contains(&b'\n'));
        holds_none_of_ours(line);
        // All others, in their order.
        let kept = |pair: &&[u8]| !pair.is_empty() && !is_ours(name_of(pair));
        assert!(all.iter().copied().filter(kept).eq(pairs(line).into_iter().filter(kept)));
    }
    for scheme in [Scheme::Https, Scheme::PlainHttpDev] {
        let prefix = [session_name(scheme).as_bytes(), b"="].concat();
        let ours: Vec<&[u8]> = all.iter().filter_map(|pair| pair.strip_prefix(prefix.as_slice())).collect();
        match session(&headers, scheme) {
            Ok(Some(digest)) => {
                assert_eq!((ours.len(), ours[0].len()), (1, 43));
                assert_eq!(digest, TokenDigest::of(ours[0]));
            }
            Ok(None) => assert!(ours.is_empty() || (ours.len() == 1 && ours[0].len() != 43)),
            Err(denial) => assert!(denial == Denial::DuplicateSession && ours.len() > 1),
        }
        let prefix = match scheme {
            Scheme::Https => "__Host-envforge_sign_in=",
            Scheme::PlainHttpDev => "envforge_sign_in=",
        };
        let kept: Vec<&[u8]> = all.iter().filter_map(|pair| pair.strip_prefix(prefix.as_bytes())).collect();
        match (sign_in(&headers, scheme), kept.as_slice()) {
            (Some(value), [one]) => assert_eq!(value.as_bytes(), *one),
            (Some(value), kept) => panic!("{value} of {}", kept.len()),
            (None, kept) => assert!(kept.len() != 1 || std::str::from_utf8(kept[0]).is_err()),
        }
        if let Some(kept) = Kept::read(&headers, scheme) {
            // Written again it reads the same, and a browser that is sent there stays on its host.
            let target = kept.target.as_str();
            assert!(is_own_target(target));
            assert!(target.starts_with('/') && !matches!(target.as_bytes().get(1), Some(b'/' | b'\\')));
            let written = kept.write(scheme);
            let pair = written.as_bytes().split(|byte| *byte == b';').next().unwrap();
            let mut again = HeaderMap::new();
            again.insert(COOKIE, HeaderValue::from_bytes(pair).unwrap());
            let again = Kept::read(&again, scheme).unwrap();
            assert!(again.target == target && again.digest() == kept.digest());
        }
    }
}

fn set_by_app(line: &[u8]) {
    if !may_be_set(line, OWN_HOST) {
        return;
    }
    // As RFC 6265 5.2 has a browser read it.
    let text = String::from_utf8_lossy(line).to_ascii_lowercase();
    let mut parts = text.split(';');
    let blank = |char| char == ' ' || char == '\t';
    let (name, _) = parts.next().unwrap().split_once('=').unwrap();
    let name = name.trim_matches(blank);
    assert!(!name.is_empty() && !is_ours(name.as_bytes()), "{text}");
    for attribute in parts {
        let (key, value) = attribute.split_once('=').unwrap_or((attribute, ""));
        if key.trim_matches(blank) == "domain" {
            let domain = value.trim_matches(blank);
            let domain = domain.strip_prefix('.').unwrap_or(domain);
            assert!(domain.is_empty() || domain == OWN_HOST, "{text}");
        }
    }
}

/// As servers read a line, the lenient ones included.
pub(super) fn holds_none_of_ours(line: &[u8]) {
    for pair in pairs(line) {
        assert!(!is_ours(name_of(pair)), "{}", String::from_utf8_lossy(line));
    }
}

fn pairs(line: &[u8]) -> Vec<&[u8]> {
    line.split(|byte| *byte == b';').map(trim).collect()
}

fn name_of(pair: &[u8]) -> &[u8] {
    trim(pair.split(|byte| *byte == b'=').next().unwrap())
}

fn trim(bytes: &[u8]) -> &[u8] {
    let begin = bytes.iter().position(|byte| !matches!(byte, b' ' | b'\t')).unwrap_or(bytes.len());
    let end = bytes.iter().rposition(|byte| !matches!(byte, b' ' | b'\t')).map_or(begin, |last| last + 1);
    &bytes[begin..end]
}

pub(super) fn is_ours(name: &[u8]) -> bool {
    let name = name.to_ascii_lowercase();
    let begins = |prefix: &str| name.starts_with(prefix.as_bytes());
    begins("envforge_") || ["__host-", "__secure-", "__http-"].iter().any(|prefix| begins(&format!("{prefix}envforge")))
}
