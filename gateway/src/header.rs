//! Which headers cross the gateway, in each direction.
//!
//! Towards the app: hop-by-hop headers, names with `_`, and everything that claims to speak for a proxy are dropped;
//! the forwarding headers are set by us alone. The app keeps its own `Authorization`. Towards the client: hop-by-hop
//! headers, `Alt-Svc`, `Service-Worker-Allowed`, cookies for other hosts and `Clear-Site-Data` beyond the app's own
//! origin are dropped.

use std::net::{IpAddr, SocketAddr};

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::cookie;
use crate::metric;

pub(crate) static CLEAR_SITE_DATA: HeaderName = HeaderName::from_static("clear-site-data");
static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// What we tell the app about the client; made once for a connection and host.
#[derive(Clone)]
pub(crate) struct Forwarded {
    address: HeaderValue,
    host: HeaderValue,
    proto: HeaderValue,
    all: HeaderValue,
}

impl Forwarded {
    /// `host` is the Host header's value, already known to be one of ours.
    pub(crate) fn new(client: SocketAddr, host: &HeaderValue, scheme: &'static str) -> Self {
        let address = client.ip().to_canonical();
        let node = match address {
            IpAddr::V4(v4) => v4.to_string(),
            // RFC 7239 6: IPv6 stands in brackets and quotes.
            IpAddr::V6(v6) => format!("\"[{v6}]\""),
        };
        let host_text = host.to_str().unwrap_or_default();
        let all = format!("for={node};host=\"{host_text}\";proto={scheme}");
        let text = |text: &str| HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""));
        Self {
            address: text(&address.to_string()),
            host: host.clone(),
            proto: HeaderValue::from_static(scheme),
            all: text(&all),
        }
    }
}

/// Makes the client's headers the app's. Call after everything that reads the client's own.
pub(crate) fn to_app(headers: &mut HeaderMap, forwarded: &Forwarded) {
    remove_nominated(headers);
    remove_where(headers, is_dropped_to_app);
    cookie::strip_ours(headers);
    headers.insert(&X_FORWARDED_FOR, forwarded.address.clone());
    headers.insert(&X_FORWARDED_HOST, forwarded.host.clone());
    headers.insert(&X_FORWARDED_PROTO, forwarded.proto.clone());
    headers.insert(header::FORWARDED, forwarded.all.clone());
}

fn remove_where(headers: &mut HeaderMap, mut is_dropped: impl FnMut(&HeaderName) -> bool) {
    let mut dropped: [Option<HeaderName>; 8] = Default::default();
    loop {
        // Few messages carry any; more than eight are handled by another round.
        let mut count = 0;
        for name in headers.keys() {
            if is_dropped(name) && count < dropped.len() {
                dropped[count] = Some(name.clone());
                count += 1;
            }
        }
        for name in dropped[..count].iter_mut().filter_map(Option::take) {
            headers.remove(name);
        }
        if count < dropped.len() {
            break;
        }
    }
}

fn is_dropped_to_app(name: &HeaderName) -> bool {
    let text = name.as_str();
    match text.as_bytes()[0] {
        b'x' => {
            text.starts_with("x-forwarded")
                || text.starts_with("x-envforge")
                || matches!(
                    text,
                    "x-real-ip"
                        | "x-client-ip"
                        | "x-original-url"
                        | "x-rewrite-url"
                        | "x-original-host"
                        | "x-cluster-client-ip"
                )
                || text.contains('_')
        }
        b'f' => text == "forwarded" || text == "forwarded-for" || text.contains('_'),
        _ => is_hop_by_hop(name) || text.contains('_') || text == "true-client-ip",
    }
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    let text = name.as_str();
    match text.as_bytes()[0] {
        b'c' => text == "connection",
        b'k' => text == "keep-alive",
        b'p' => text.starts_with("proxy-"),
        b't' => matches!(text, "te" | "trailer" | "transfer-encoding"),
        b'u' => text == "upgrade",
        b'h' => text == "http2-settings",
        b'e' => text == "expect",
        _ => false,
    }
}

/// Headers that `Connection` names belong to this hop (RFC 9110 7.6.1). `keep-alive`, `close` and `upgrade` name
/// what is dropped anyway. Host and cookies cannot be named away.
fn remove_nominated(headers: &mut HeaderMap) {
    let plain = |value: &HeaderValue| {
        [&b"keep-alive"[..], b"close", b"upgrade"].iter().any(|known| value.as_bytes().eq_ignore_ascii_case(known))
    };
    if headers.get_all(header::CONNECTION).iter().all(plain) {
        return;
    }
    let nominated: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|token| HeaderName::from_bytes(token.trim_ascii()).ok())
        .filter(|name| !matches!(*name, header::HOST | header::COOKIE | header::SET_COOKIE | header::CONTENT_LENGTH))
        .collect();
    for name in nominated {
        headers.remove(name);
    }
}

/// Makes the app's headers the client's. Looks at each name once instead of asking for each that is not there.
pub(crate) fn to_client(headers: &mut HeaderMap, own_host: &str) {
    let (mut nominates, mut sets_cookies, mut clears) = (false, false, false);
    remove_where(headers, |name| {
        let text = name.as_str();
        match text.as_bytes()[0] {
            b'a' => text == "alt-svc",
            b'c' => {
                nominates |= text == "connection";
                clears |= *name == CLEAR_SITE_DATA;
                false
            }
            b's' => {
                sets_cookies |= text == "set-cookie";
                text == "service-worker-allowed"
            }
            _ => is_hop_by_hop(name),
        }
    });
    if nominates {
        remove_nominated(headers);
        headers.remove(header::CONNECTION);
    }
    if clears {
        keep_own_clear_site_data(headers);
    }
    if sets_cookies {
        cookie::keep_own_set_cookies(headers, own_host);
    }
}

/// An app may clear what is its own origin's. Cookies are the whole domain's, sibling workspaces and our own included,
/// and so is what `*` and names to come may mean.
fn keep_own_clear_site_data(headers: &mut HeaderMap) {
    let is_own = |token: &[u8]| matches!(token, b"\"cache\"" | b"\"storage\"");
    let tokens = |value: &HeaderValue| -> Vec<Box<[u8]>> {
        value.as_bytes().split(|byte| *byte == b',').map(|token| token.trim_ascii().into()).collect()
    };
    let all: Vec<_> = headers.get_all(&CLEAR_SITE_DATA).iter().flat_map(tokens).collect();
    if all.iter().all(|token| is_own(token)) {
        return;
    }
    metric::dropped("clear_site_data");
    headers.remove(&CLEAR_SITE_DATA);
    let kept: Vec<_> = all.into_iter().filter(|token| is_own(token)).collect();
    if let Ok(value) = HeaderValue::from_bytes(&kept.join(&b", "[..]))
        && !kept.is_empty()
    {
        headers.insert(&CLEAR_SITE_DATA, value);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn forwarded() -> Forwarded {
        Forwarded::new("[2001:db8::7]:1".parse().unwrap(), &HeaderValue::from_static("h.dev:8"), "https")
    }

    #[test]
    fn whoever_claims_to_be_a_proxy_is_not_believed() {
        let mut headers = map(&[
            ("host", "h.dev:8"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-for", "5.6.7.8"),
            ("x-forwarded-host", "evil"),
            ("x-forwarded-proto", "gopher"),
            ("x-forwarded-prefix", "/x"),
            ("x-forwarded", "x"),
            ("forwarded", "for=9.9.9.9"),
            ("x-real-ip", "1.2.3.4"),
            ("x-envforge-org", "acme"),
            ("x_forwarded_for", "1.2.3.4"),
            ("content_length", "3"),
            ("true-client-ip", "1.1.1.1"),
            ("x-original-url", "/admin"),
            ("authorization", "Bearer app"),
            ("x-app", "kept"),
            ("accept", "*/*"),
        ]);
        to_app(&mut headers, &forwarded());
        let mut left: Vec<(String, String)> =
            headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
        left.sort();
        let expected = [
            ("accept", "*/*"),
            ("authorization", "Bearer app"),
            ("forwarded", "for=\"[2001:db8::7]\";host=\"h.dev:8\";proto=https"),
            ("host", "h.dev:8"),
            ("x-app", "kept"),
            ("x-forwarded-for", "2001:db8::7"),
            ("x-forwarded-host", "h.dev:8"),
            ("x-forwarded-proto", "https"),
        ];
        let expected: Vec<(String, String)> =
            expected.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        assert_eq!(left, expected);
    }

    #[test]
    fn hop_by_hop_headers_and_those_that_connection_names_stay_on_their_hop() {
        let mut headers = map(&[
            ("host", "h"),
            ("connection", "keep-alive, x-hop, host, cookie"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("trailer", "x"),
            ("upgrade", "websocket"),
            ("proxy-authorization", "basic"),
            ("proxy-connection", "keep-alive"),
            ("cookie", "a=b"),
            ("expect", "100-continue"),
        ]);
        to_app(&mut headers, &forwarded());
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["cookie", "forwarded", "host", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"]);
    }

    #[test]
    fn the_app_cannot_reach_past_its_host() {
        let mut headers = map(&[
            ("alt-svc", "h3=\"evil:443\""),
            ("transfer-encoding", "chunked"),
            ("te", "trailers"),
            ("trailer", "x"),
            ("upgrade", "x"),
            ("proxy-authenticate", "basic"),
            ("proxy-authentication-info", "x"),
            ("proxy-connection", "close"),
            ("service-worker-allowed", "/"),
            ("connection", "x-internal"),
            ("x-internal", "1"),
            ("keep-alive", "timeout=5"),
            ("set-cookie", "a=b"),
            ("set-cookie", "c=d; Domain=dev.envforge.ai"),
            ("clear-site-data", "\"cache\""),
            ("content-type", "text/plain"),
        ]);
        to_client(&mut headers, "web--a--b.dev.envforge.ai");
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["clear-site-data", "content-type", "set-cookie"]);
        assert_eq!(headers.get_all("set-cookie").iter().count(), 1);
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
            let mut headers = map(&[("content-length", "0")]);
            for value in sent {
                headers.append("clear-site-data", HeaderValue::from_static(value));
            }
            to_client(&mut headers, "web--a--b.dev.envforge.ai");
            let left: Vec<&str> =
                headers.get_all("clear-site-data").iter().map(|value| value.to_str().unwrap()).collect();
            assert_eq!(left, kept.into_iter().collect::<Vec<_>>(), "{sent:?}");
        }
    }
}
