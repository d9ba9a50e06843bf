//! Browsers that are signed in: their cookies, and which of their requests count.
//!
//! The cookie is opaque and names a session of the log; nothing but its hash is stored. Not here: how a browser signs in (`endpoints::oidc`).

use envforge_domain::commit::Surface;
use envforge_domain::secret::Secret;
use envforge_domain::time::Millis;
use envforge_identity::oidc::PublicUrl;
use http::{HeaderMap, HeaderValue, Method, header};

use crate::problem::Problem;

/// 32 bytes in base64url.
const COOKIE_CHARS: usize = 43;

/// Sessions of browsers at this API.
#[derive(Clone)]
pub(crate) struct Browsers {
    origin: String,
    https: bool,
}

/// Which of our cookies. One for each surface: neither sign-in takes the other's place, and none counts under the other's name
/// (docs/adr/0010).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cookie {
    /// Who is signed in to EnvForge itself.
    Console,
    /// Who is signed in for opening workspaces alone.
    Workspaces,
    /// In which browser a sign-in was begun.
    Flow,
}

impl Cookie {
    /// The cookie of a browser's session.
    pub(crate) const fn of(surface: Surface) -> Option<Self> {
        match surface {
            Surface::Console => Some(Self::Console),
            Surface::Gateway => Some(Self::Workspaces),
            Surface::Api | Surface::Cli | Surface::Agent => None,
        }
    }

    /// The surface of the sessions that it names.
    pub(crate) const fn surface(self) -> Option<Surface> {
        match self {
            Self::Console => Some(Surface::Console),
            Self::Workspaces => Some(Surface::Gateway),
            Self::Flow => None,
        }
    }
}

impl Browsers {
    pub(crate) fn new(api_url: &PublicUrl) -> Self {
        Self { origin: api_url.origin(), https: api_url.is_https() }
    }

    /// Browsers take a `__Host-` cookie from https alone, for this host alone, whatever a sibling does. Plain http on one's own machine gets
    /// one without the prefix and without `Secure`.
    fn name(&self, cookie: Cookie) -> &'static str {
        match (cookie, self.https) {
            (Cookie::Console, true) => "__Host-envforge-session",
            (Cookie::Console, false) => "envforge-session",
            (Cookie::Workspaces, true) => "__Host-envforge-workspaces",
            (Cookie::Workspaces, false) => "envforge-workspaces",
            (Cookie::Flow, true) => "__Host-envforge-sign-in",
            (Cookie::Flow, false) => "envforge-sign-in",
        }
    }

    /// `Set-Cookie`.
    pub(crate) fn set(&self, cookie: Cookie, value: &Secret, lifetime: Millis) -> Result<HeaderValue, Problem> {
        let (name, secure) = (self.name(cookie), if self.https { "; Secure" } else { "" });
        let text = format!(
            "{name}={}; Path=/; HttpOnly; SameSite=Lax; Max-Age={}{secure}",
            value.expose(),
            lifetime.as_secs()
        );
        let mut value = HeaderValue::from_str(&text).map_err(|_| Problem::internal("a cookie is not visible ASCII"))?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// Takes it away.
    pub(crate) fn clear(&self, cookie: Cookie) -> Result<HeaderValue, Problem> {
        self.set(cookie, &Secret::new(String::new()), Millis::new(0))
    }

    /// Refuses a form that was not sent from a page of ours.
    pub(crate) fn check_form(&self, headers: &HeaderMap) -> Result<(), Problem> {
        if self.is_of_our_pages(headers) { Ok(()) } else { Err(self.cross_site()) }
    }

    fn cross_site(&self) -> Problem {
        Problem::new(
            "cross_site_request",
            format!("Send `Origin: {}`: a session in a cookie changes things only from its own site.", self.origin),
        )
    }

    /// The cookie of a request. Two of one name are none: which of them is ours, nobody can tell.
    pub(crate) fn get(&self, cookie: Cookie, headers: &HeaderMap) -> Option<Secret> {
        let name = self.name(cookie);
        // As bytes: another cookie on the line may hold any, and neither hides ours nor a second one.
        let lines = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes);
        let pairs = lines.flat_map(|line| line.split(|byte| *byte == b';')).map(<[u8]>::trim_ascii);
        let mut values = pairs.filter_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="));
        match (values.next(), values.next()) {
            (Some(value), None) if value.len() == COOKIE_CHARS => {
                std::str::from_utf8(value).ok().map(|value| Secret::new(value.to_owned()))
            }
            _ => None,
        }
    }

    /// The cookie by which a request says whose it is. A request with `Authorization` is a program's, whatever else it carries. The one for
    /// workspaces counts for nothing here: it is looked at where there is no other, so that its browser is told why.
    pub(crate) fn presented(&self, method: &Method, headers: &HeaderMap) -> Result<Option<(Cookie, Secret)>, Problem> {
        if headers.contains_key(header::AUTHORIZATION) {
            return Ok(None);
        }
        let known = [Cookie::Console, Cookie::Workspaces].into_iter();
        let Some(cookie) = known.filter_map(|cookie| Some((cookie, self.get(cookie, headers)?))).next() else {
            return Ok(None);
        };
        if !method.is_safe() && !self.is_of_our_pages(headers) {
            return Err(self.cross_site());
        }
        Ok(Some(cookie))
    }

    /// Browsers add `Origin` to whatever changes something, and no page can forge it.
    fn is_of_our_pages(&self, headers: &HeaderMap) -> bool {
        let mut origins = headers.get_all(header::ORIGIN).iter();
        let ours = matches!((origins.next(), origins.next()), (Some(origin), None) if origin == self.origin.as_str());
        let fetched = headers.get("sec-fetch-site").is_none_or(|site| site == "same-origin");
        ours && fetched
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn session(lines: &[&[u8]]) -> Option<String> {
        let browsers = Browsers::new(&PublicUrl::parse("https://api.envforge.ai").unwrap());
        let lines = lines.iter().map(|line| (header::COOKIE, HeaderValue::from_bytes(line).unwrap()));
        let mut headers = HeaderMap::new();
        headers.extend(lines);
        browsers.get(Cookie::Console, &headers).map(|secret| secret.expose().to_owned())
    }

    #[test]
    fn the_cookie_is_found_beside_whatever_a_sibling_site_has_set() {
        let value = "a".repeat(COOKIE_CHARS);
        let ours = format!("__Host-envforge-session={value}");
        let ours = ours.as_bytes();
        for lines in [&[ours][..], &[b"a=b", ours], &[&[b"a=\xe9; ", ours, b"; c"].concat()], &[b"a=\xe9", ours]] {
            assert_eq!(session(lines).as_deref(), Some(value.as_str()), "{lines:?}");
        }
        let hidden = [b"a=\xe9; ", ours].concat();
        for lines in
            [&[ours, ours][..], &[ours, &hidden], &[b"__Host-envforge-session=short"], &[b"x__Host-envforge-session"]]
        {
            assert_eq!(session(lines), None, "{lines:?}");
        }
    }
}
