//! Cookies that are ours and cookies that are the app's, kept apart in both directions.
//!
//! The app never sees a cookie of ours and can never set one. Its own cookies pass byte for byte.

use envforge_domain::secret::{Secret, TokenDigest};
use http::HeaderValue;

use crate::config::Scheme;
use crate::denial::Denial;
use crate::fields::Fields;

/// Names that begin so belong to the gateway, in any case: browsers treat the `__Host-` prefix so.
const RESERVED: [&str; 4] = ["__host-envforge", "__secure-envforge", "envforge_", "__http-envforge"];
/// 256 bits in base64url without padding.
const TOKEN_LENGTH: usize = 43;

/// The session cookie's name under this scheme.
pub(crate) const fn session_name(scheme: Scheme) -> &'static str {
    match scheme {
        Scheme::Https => "__Host-envforge_session",
        Scheme::PlainHttpDev => "envforge_session",
    }
}

/// The name of what a browser keeps while somebody signs in.
const fn sign_in_name(scheme: Scheme) -> &'static str {
    match scheme {
        Scheme::Https => "__Host-envforge_sign_in",
        Scheme::PlainHttpDev => "envforge_sign_in",
    }
}

fn is_reserved(name: &[u8]) -> bool {
    // Asked for each cookie: the first byte decides for most.
    matches!(name.first(), Some(b'_' | b'e' | b'E'))
        && RESERVED
            .iter()
            .any(|prefix| name.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix.as_bytes())))
}

fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

/// The pieces of a Cookie line between its semicolons.
struct Pieces<'a>(Option<&'a [u8]>);

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let line = self.0?;
        match memchr::memchr(b';', line) {
            Some(at) => {
                self.0 = Some(&line[at + 1..]);
                Some(&line[..at])
            }
            None => self.0.take(),
        }
    }
}

/// The pairs of all Cookie lines; HTTP/2 sends one line a cookie.
fn pairs(fields: &impl Fields) -> impl Iterator<Item = &[u8]> {
    fields.values("cookie").flat_map(|line| Pieces(Some(line))).map(trim)
}

fn name_of(pair: &[u8]) -> &[u8] {
    trim(&pair[..memchr::memchr(b'=', pair).unwrap_or(pair.len())])
}

/// Digest of the one session cookie. Two of the name mean that somebody planted one: neither is believed.
pub(crate) fn session(fields: &impl Fields, scheme: Scheme) -> Result<Option<TokenDigest>, Denial> {
    let wanted = session_name(scheme).as_bytes();
    let mut found = None;
    for pair in pairs(fields) {
        let Some(value) = pair.strip_prefix(wanted).and_then(|rest| rest.strip_prefix(b"=")) else { continue };
        if found.replace(value).is_some() {
            return Err(Denial::DuplicateSession);
        }
    }
    Ok(found.filter(|value| value.len() == TOKEN_LENGTH).map(TokenDigest::of))
}

/// What a browser keeps while somebody signs in; none where there are two.
pub(crate) fn sign_in(fields: &impl Fields, scheme: Scheme) -> Option<&str> {
    let wanted = sign_in_name(scheme).as_bytes();
    let mut found = pairs(fields).filter_map(|pair| pair.strip_prefix(wanted).and_then(|rest| rest.strip_prefix(b"=")));
    match (found.next(), found.next()) {
        (Some(value), None) => std::str::from_utf8(value).ok(),
        _ => None,
    }
}

/// Writes the Cookie line without ours, all lines joined into one as HTTP/1 wants it; none where nothing is left.
pub(crate) fn to_app(fields: &impl Fields, out: &mut Vec<u8>) {
    let begin = out.len();
    out.extend_from_slice(b"cookie: ");
    let empty = out.len();
    let (mut lines, mut found_ours) = (0, false);
    for line in fields.values("cookie") {
        lines += 1;
        for (index, piece) in Pieces(Some(line)).enumerate() {
            let pair = trim(piece);
            let ours = is_reserved(name_of(pair));
            found_ours |= ours;
            if ours || pair.is_empty() {
                continue;
            }
            if out.len() == empty {
                out.extend_from_slice(pair);
                continue;
            }
            // Between pieces of one line whatever blank was there stays; between lines RFC 9113 8.2.3 sets `; `.
            out.push(b';');
            if index == 0 && !matches!(piece.first(), Some(b' ' | b'\t')) {
                out.push(b' ');
            }
            out.extend_from_slice(piece);
        }
    }
    if lines == 1 && !found_ours {
        out.truncate(empty);
        out.extend_from_slice(fields.first("cookie").unwrap_or_default());
    }
    if out.len() == empty {
        out.truncate(begin);
    } else {
        out.extend_from_slice(b"\r\n");
    }
}

/// Whether the app may set this: not our names, no nameless cookie (a browser would read its value as a name), and no
/// Domain but its own host.
pub(crate) fn may_be_set(line: &[u8], own_host: &str) -> bool {
    let mut parts = line.split(|byte| *byte == b';');
    let pair = trim(parts.next().unwrap_or_default());
    let name = name_of(pair);
    if !pair.contains(&b'=') || name.is_empty() || is_reserved(name) {
        return false;
    }
    parts.all(|attribute| {
        let attribute = trim(attribute);
        let mut sides = attribute.splitn(2, |byte| *byte == b'=');
        let key = trim(sides.next().unwrap_or_default());
        if !key.eq_ignore_ascii_case(b"domain") {
            return true;
        }
        let domain = trim(sides.next().unwrap_or_default());
        let domain = domain.strip_prefix(b".").unwrap_or(domain);
        domain.is_empty() || domain.eq_ignore_ascii_case(own_host.as_bytes())
    })
}

/// The Set-Cookie line that opens a session. It lives until the browser closes; the link's expiry is ours to hold.
pub(crate) fn set_session(scheme: Scheme, token: &Secret) -> HeaderValue {
    let secure = match scheme {
        Scheme::Https => "; Secure",
        Scheme::PlainHttpDev => "",
    };
    let line = format!("{}={}; Path=/; HttpOnly; SameSite=Lax{secure}", session_name(scheme), token.expose());
    let mut value = HeaderValue::from_str(&line).unwrap_or_else(|_| clear_session(scheme));
    value.set_sensitive(true);
    value
}

/// Kept for as long as somebody may take to sign in.
pub(crate) fn set_sign_in(scheme: Scheme, value: &Secret) -> HeaderValue {
    let secure = match scheme {
        Scheme::Https => "; Secure",
        Scheme::PlainHttpDev => "",
    };
    let line =
        format!("{}={}; Path=/; HttpOnly; SameSite=Lax; Max-Age=900{secure}", sign_in_name(scheme), value.expose());
    let mut value = HeaderValue::from_str(&line).unwrap_or_else(|_| clear_sign_in(scheme));
    value.set_sensitive(true);
    value
}

pub(crate) fn clear_sign_in(scheme: Scheme) -> HeaderValue {
    HeaderValue::from_static(match scheme {
        Scheme::Https => "__Host-envforge_sign_in=; Path=/; HttpOnly; SameSite=Lax; Secure; Max-Age=0",
        Scheme::PlainHttpDev => "envforge_sign_in=; Path=/; HttpOnly; SameSite=Lax; Max-Age=0",
    })
}

pub(crate) fn clear_session(scheme: Scheme) -> HeaderValue {
    HeaderValue::from_static(match scheme {
        Scheme::Https => "__Host-envforge_session=; Path=/; HttpOnly; SameSite=Lax; Secure; Max-Age=0",
        Scheme::PlainHttpDev => "envforge_session=; Path=/; HttpOnly; SameSite=Lax; Max-Age=0",
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const TOKEN: &str = "0123456789012345678901234567890123456789abc";

    fn with<'a>(lines: &[&'a str]) -> Vec<(&'a str, &'a str)> {
        lines.iter().map(|line| ("Cookie", *line)).collect()
    }

    fn stripped(lines: &[&str]) -> Option<String> {
        let mut out = Vec::new();
        to_app(&with(lines), &mut out);
        let line = String::from_utf8(out).unwrap();
        (!line.is_empty()).then(|| line.strip_prefix("cookie: ").unwrap().strip_suffix("\r\n").unwrap().to_owned())
    }

    #[test]
    fn our_cookie_is_found_and_never_reaches_the_app() {
        let ours = format!("__Host-envforge_session={TOKEN}");
        let digest = TokenDigest::of(TOKEN.as_bytes());
        assert_eq!(session(&with(&[&ours]), Scheme::Https), Ok(Some(digest)));
        assert_eq!(session(&with(&["a=b", &ours, "c=d"]), Scheme::Https), Ok(Some(digest)));
        assert_eq!(session(&with(&[&format!("a=b; {ours}; c=d")]), Scheme::Https), Ok(Some(digest)));
        assert_eq!(session(&with(&["a=b"]), Scheme::Https), Ok(None));
        assert_eq!(session(&with(&["__Host-envforge_session=short"]), Scheme::Https), Ok(None));
        assert_eq!(stripped(&[&ours]), None);
        assert_eq!(stripped(&[&format!("a=b; {ours}; c=d")]).as_deref(), Some("a=b; c=d"));
        assert_eq!(stripped(&[&format!("{ours}; a=b")]).as_deref(), Some("a=b"));
        assert_eq!(stripped(&["a=b", &ours, "c=d"]).as_deref(), Some("a=b; c=d"));
        assert_eq!(stripped(&["a=b; __HOST-ENVFORGE_session=x"]).as_deref(), Some("a=b"));
        assert_eq!(stripped(&["a=b; envforge_session =x"]).as_deref(), Some("a=b"));
    }

    #[test]
    fn two_session_cookies_are_refused_wherever_they_stand() {
        let ours = format!("__Host-envforge_session={TOKEN}");
        for lines in [
            vec![format!("{ours}; {ours}")],
            vec![ours.clone(), ours.clone()],
            vec![ours, "__Host-envforge_session=x".to_owned()],
        ] {
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            assert_eq!(session(&with(&lines), Scheme::Https), Err(Denial::DuplicateSession));
        }
    }

    #[test]
    fn the_app_sets_its_own_cookies_and_no_others() {
        let host = "web--links--acme.dev.envforge.ai";
        for (line, allowed) in [
            ("a=b", true),
            ("a=b; Path=/; HttpOnly; Domain=web--links--acme.dev.envforge.ai", true),
            ("a=b; domain=.WEB--links--acme.dev.envforge.ai", true),
            ("__Host-app=1; Secure; Path=/", true),
            ("a=b; Domain=dev.envforge.ai", false),
            ("a=b; DOMAIN = .envforge.ai", false),
            ("a=b; Domain=web--links--acme.dev.envforge.ai; Domain=envforge.ai", false),
            ("__Host-envforge_session=x", false),
            ("__host-ENVFORGE_session=x", false),
            ("envforge_session=x", false),
            (" envforge_session =x", false),
            ("=__Host-envforge_session=x", false),
            ("__Host-envforge_session", false),
            ("", false),
        ] {
            assert_eq!(may_be_set(line.as_bytes(), host), allowed, "{line}");
        }
    }

    proptest! {
        /// Without a cookie of ours on one line, not a byte changes; with one, the others keep order and bytes.
        #[test]
        fn other_cookies_keep_every_byte(names in proptest::collection::vec("[a-z]{1,5}=[!-:<-~]{0,8}", 1..6), at in 0_usize..6) {
            let line = names.join("; ");
            prop_assume!(!names.iter().any(|name| is_reserved(name.as_bytes())));
            prop_assert_eq!(stripped(&[&line]), Some(line.clone()));
            let mut with_ours = names.clone();
            with_ours.insert(at.min(names.len()), format!("__Host-envforge_session={TOKEN}"));
            prop_assert_eq!(stripped(&[&with_ours.join("; ")]), Some(line));
        }
    }
}
