//! From a workspace's host to the API's sign-in and back: how a member gets a session on the host without any link.
//!
//! The host gives the browser something to keep and sends it to the API with its digest. Whoever signs in there comes back
//! with a handoff for that digest alone, so nobody can be signed in as somebody else by a link that they were sent. Where
//! the browser wanted to go stays in the cookie: the API never hears of it. Not here: minting handoffs (the API), and what
//! the session may then do (`admission`).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use envforge_domain::ids::{CorrelationId, SessionId};
use envforge_domain::secret::{Secret, TokenDigest};
use envforge_identity::workspace_handoff::browser_text;
use http::header::SET_COOKIE;
use http::{HeaderMap, HeaderValue, Method, Response};
use uuid::Uuid;

use crate::admission::{Refused, is_open};
use crate::body::ResponseBody;
use crate::config::Scheme;
use crate::cookie;
use crate::decisions::OpenWorkspaceSession;
use crate::denial::Denial;
use crate::host::WorkspaceHost;
use crate::metric;
use crate::share::{Share, fresh_cookie, redirect};

/// Where a member is sent to sign in, on the workspace host.
pub(crate) const SIGN_IN_PATH: &str = "/.envforge/sign-in";
/// Where a member's handoff is redeemed.
pub(crate) const ARRIVAL_PATH: &str = "/.envforge/signed-in";
/// Longest target that is kept while somebody signs in; a longer one becomes `/`.
const TARGET_BYTES_MAX: usize = 1_024;

/// What a browser keeps while somebody signs in: something only it has, and where it wanted to go.
pub(crate) struct Kept {
    secret: Secret,
    pub(crate) target: String,
}

impl Kept {
    /// `None` for whatever we would not have written.
    pub(crate) fn read(headers: &HeaderMap, scheme: Scheme) -> Option<Self> {
        let value = cookie::sign_in(headers, scheme)?;
        let (secret, target) = value.split_once('.')?;
        let whole = URL_SAFE_NO_PAD.decode(secret).is_ok_and(|bytes| bytes.len() == 32);
        let target = String::from_utf8(URL_SAFE_NO_PAD.decode(target).ok()?).ok()?;
        (whole && is_own_target(&target)).then(|| Self { secret: Secret::new(secret.to_owned()), target })
    }

    pub(crate) fn digest(&self) -> TokenDigest {
        self.secret.digest()
    }

    pub(crate) fn write(&self, scheme: Scheme) -> HeaderValue {
        let value = format!("{}.{}", self.secret.expose(), URL_SAFE_NO_PAD.encode(&self.target));
        cookie::set_sign_in(scheme, &Secret::new(value))
    }
}

/// A path of the same host. `//host` and `/\host` are other hosts to a browser.
pub(crate) fn is_own_target(target: &str) -> bool {
    target.starts_with('/')
        && !target.starts_with("//")
        && target.len() <= TARGET_BYTES_MAX
        && target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\')
}

impl Share {
    /// Sends a browser to the API's sign-in. The same for every host, whether it exists or not.
    pub(crate) fn begin_sign_in(
        &self,
        host: &WorkspaceHost,
        target: &str,
        headers: &HeaderMap,
    ) -> Result<Response<ResponseBody>, Denial> {
        let Some(api) = &self.config.sign_in_at else { return Err(Denial::AccessRequired) };
        let scheme = self.config.scheme;
        let target = if is_own_target(target) { target } else { "/" };
        // Another tab of this browser may be signing in already: both come back with the same.
        let secret = match Kept::read(headers, scheme) {
            Some(kept) => kept.secret,
            None => fresh_cookie()?,
        };
        let kept = Kept { secret, target: target.to_owned() };
        let url = format!("{api}/open?host={}&browser={}", host.label, browser_text(kept.digest()));
        metric::share("sent_to_sign_in");
        let mut response = redirect(&Secret::new(url))?;
        response.headers_mut().insert(SET_COOKIE, kept.write(scheme));
        Ok(response)
    }

    /// Redeems a member's handoff: a session cookie and the way to where they wanted to go.
    pub(crate) async fn arrive(
        &self,
        method: &Method,
        host: &WorkspaceHost,
        query: Option<&str>,
        headers: &HeaderMap,
        request: Option<CorrelationId>,
    ) -> Result<Response<ResponseBody>, Refused> {
        if *method != Method::GET {
            return Err(Denial::MethodNotAllowed.into());
        }
        check_arrival(headers)?;
        self.check_fresh()?;
        let scheme = self.config.scheme;
        let kept = Kept::read(headers, scheme);
        let opened = match &kept {
            Some(kept) => self.open_for_member(kept, host, query, request).await,
            None => Err(Denial::SignInInvalid),
        };
        match opened {
            Ok(cookie) => {
                metric::share("signed_in");
                let target = kept.map_or_else(|| "/".to_owned(), |kept| kept.target);
                let mut response = redirect(&Secret::new(target))?;
                response.headers_mut().append(SET_COOKIE, cookie::set_session(scheme, &cookie));
                response.headers_mut().append(SET_COOKIE, cookie::clear_sign_in(scheme));
                Ok(response)
            }
            // The address bar still shows the used code after a reload: who is in already goes on.
            Err(Denial::SignInInvalid) if self.is_member_here(host, headers) => {
                Ok(redirect(&Secret::new("/".to_owned()))?)
            }
            Err(denial) => Err(denial.into()),
        }
    }

    async fn open_for_member(
        &self,
        kept: &Kept,
        host: &WorkspaceHost,
        query: Option<&str>,
        request: Option<CorrelationId>,
    ) -> Result<Secret, Denial> {
        let code = query.and_then(|query| query.strip_prefix("code=")).ok_or(Denial::SignInInvalid)?;
        let now = self.clock.now();
        let handoff = self.verifier.verify_handoff(code, now).map_err(|_| Denial::SignInInvalid)?;
        if handoff.host != host.label || handoff.browser != kept.digest() {
            return Err(Denial::SignInInvalid);
        }
        // What the label leads to must be what was signed for, and open to the public gateway at all.
        let workspace = self.view.workspace_by_label(&host.label);
        let workspace = workspace
            .filter(|workspace| workspace.workspace == handoff.workspace && !workspace.archived && is_open(workspace));
        if workspace.is_none() {
            return Err(Denial::AccessRequired);
        }
        let cookie = fresh_cookie()?;
        let digest = cookie.digest();
        let session = SessionId::from_uuid(Uuid::now_v7());
        let ask = OpenWorkspaceSession { handoff, session, cookie: digest, request, now };
        self.decisions.open_workspace(ask).await?;
        self.wait_for_session(|view| view.member(&digest).is_some()).await?;
        Ok(cookie)
    }

    fn is_member_here(&self, host: &WorkspaceHost, headers: &HeaderMap) -> bool {
        let cookie = cookie::session(headers, self.config.scheme).ok().flatten();
        cookie.and_then(|cookie| self.view.member(&cookie)).is_some_and(|member| member.host == host.label)
    }
}

/// A handoff arrives as a top-level navigation, from whatever site the API is to this one: it is worth nothing without what
/// the browser keeps.
fn check_arrival(headers: &HeaderMap) -> Result<(), Denial> {
    let value = |name: &str| headers.get(name).map(HeaderValue::as_bytes);
    let top_level = value("sec-fetch-mode").is_none_or(|mode| mode == b"navigate")
        && value("sec-fetch-dest").is_none_or(|dest| dest == b"document");
    if top_level { Ok(()) } else { Err(Denial::ForeignSite) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Ok(value) = HeaderValue::from_str(&format!("__Host-envforge_sign_in={value}")) {
            headers.append("cookie", value);
        }
        headers
    }

    #[test]
    fn only_paths_of_the_same_host_are_gone_back_to() {
        for own in ["/", "/orders?page=2", "/a//b", "/a:b@c"] {
            assert!(is_own_target(own), "{own}");
        }
        for other in ["", "orders", "//evil.test", "/\\evil.test", "https://evil.test", "/a b", "/a\nb", "/\u{e9}"] {
            assert!(!is_own_target(other), "{other}");
        }
        assert!(!is_own_target(&format!("/{}", "a".repeat(TARGET_BYTES_MAX))));
    }

    #[test]
    fn what_the_browser_keeps_is_read_back_and_nothing_else_is() {
        let secret = URL_SAFE_NO_PAD.encode([7; 32]);
        let target = URL_SAFE_NO_PAD.encode("/orders");
        let kept = Kept::read(&sent(&format!("{secret}.{target}")), Scheme::Https);
        assert!(kept.is_some_and(|kept| kept.target == "/orders" && kept.secret.expose() == secret));
        let foreign = URL_SAFE_NO_PAD.encode("//evil.test");
        for wrong in
            ["", ".", &secret, &format!("{secret}.{foreign}"), &format!("short.{target}"), &format!("{secret}.!")]
        {
            assert!(Kept::read(&sent(wrong), Scheme::Https).is_none(), "{wrong}");
        }
        let mut twice = sent(&format!("{secret}.{target}"));
        twice.append("cookie", twice["cookie"].clone());
        assert!(Kept::read(&twice, Scheme::Https).is_none(), "which of two is ours nobody can tell");
    }
}
