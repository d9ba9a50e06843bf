//! From a share URL to a session: an inert page, a form that mints a handoff, and its redemption on the workspace host.
//!
//! GET has no effect: link scanners open nothing and wake nothing. POST must come from our own page. The handoff is
//! redeemed once, by the log's word. Not here: what the session may then do (`admission`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use envforge_domain::dev_link::Generation;
use envforge_domain::ids::{LinkId, SessionId};
use envforge_domain::secret::{Secret, TokenDigest};
use envforge_domain::time::{SharedClock, UnixMillis};
use envforge_identity::share_token::ShareVerifier;
use http::header::{LOCATION, ORIGIN, SET_COOKIE, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use uuid::Uuid;

use crate::admission::{self, Refused};
use crate::body::ResponseBody;
use crate::config::Config;
use crate::connection::Client;
use crate::cookie;
use crate::decisions::{Decisions, OpenSession};
use crate::denial::Denial;
use crate::handoff::{Binding, Handoff, HandoffKey};
use crate::host::WorkspaceHost;
use crate::metric;
use crate::pages;
use crate::standing::Standing;
use envforge_projections::gateway_view::{GatewayView, LinkPhase, LinkView};

/// Where a handoff is redeemed, on the workspace host.
pub(crate) const HANDOFF_PATH: &str = "/.envforge/handoff";
/// How long a share page waits for a link that its genuine token names.
const LINK_SHOWS_WITHIN: Duration = Duration::from_secs(1);
/// How long a redeemed session may take to reach this gateway's own view.
const SESSION_SHOWS_WITHIN: Duration = Duration::from_secs(3);

pub(crate) struct Share {
    pub(crate) config: Arc<Config>,
    pub(crate) view: Arc<GatewayView>,
    pub(crate) verifier: ShareVerifier,
    pub(crate) handoff_key: HandoffKey,
    pub(crate) decisions: Arc<dyn Decisions>,
    pub(crate) standing: Arc<Standing>,
    pub(crate) clock: SharedClock,
    /// `https://dev.envforge.ai`
    pub(crate) origin: String,
}

impl Share {
    /// Everything under `/share/` of the gateway's own domain. What is refused of a link that is known counts for it.
    pub(crate) async fn answer(
        &self,
        method: &Method,
        token: &str,
        headers: &HeaderMap,
        client: &Client,
    ) -> Result<Response<ResponseBody>, Refused> {
        match *method {
            Method::GET | Method::HEAD => {
                let link = self.link_of(token).await?;
                metric::share("shown");
                let host = WorkspaceHost::new(&self.config, link.host.clone());
                Ok(pages::share(&link, &host, self.clock.now()))
            }
            Method::POST => {
                check_form(headers, &self.origin).map_err(|denial| {
                    let claims = self.verifier.verify(token, self.clock.now()).ok();
                    self.refused(denial, claims.map(|claims| claims.link))
                })?;
                self.check_fresh()?;
                let link = self.link_of(token).await?;
                let host = WorkspaceHost::new(&self.config, link.host.clone());
                let handoff = Handoff::new(link.link, link.generation, self.clock.now());
                let binding = Binding { host: host.name(), browser: self.browser(headers, client) };
                let code = handoff.seal(&self.handoff_key, &binding);
                metric::share("handed_off");
                let target = Secret::new(format!("{}{HANDOFF_PATH}?code={}", host.origin, code.expose()));
                Ok(redirect(&target)?)
            }
            _ => Err(Denial::MethodNotAllowed.into()),
        }
    }

    /// Redeems a handoff on its workspace host: a session cookie and the way to the app.
    pub(crate) async fn redeem(
        &self,
        method: &Method,
        host: &WorkspaceHost,
        query: Option<&str>,
        headers: &HeaderMap,
        client: &Client,
    ) -> Result<Response<ResponseBody>, Refused> {
        if *method != Method::GET {
            return Err(Denial::MethodNotAllowed.into());
        }
        check_arrival(headers, self.config.domain_is_public_suffix)?;
        self.check_fresh()?;
        match self.open(host, query, headers, client).await {
            Ok(cookie) => {
                metric::share("opened");
                let mut response = redirect(&Secret::new("/".to_owned()))?;
                response.headers_mut().insert(SET_COOKIE, cookie);
                Ok(response)
            }
            // The address bar still shows the used code after a reload: who is in already goes on.
            Err(Refused { denial: Denial::HandoffInvalid, .. }) if self.has_session(host, headers) => {
                Ok(redirect(&Secret::new("/".to_owned()))?)
            }
            Err(refused) => Err(refused),
        }
    }

    async fn open(
        &self,
        host: &WorkspaceHost,
        query: Option<&str>,
        headers: &HeaderMap,
        client: &Client,
    ) -> Result<HeaderValue, Refused> {
        let code = query.and_then(|query| query.strip_prefix("code=")).ok_or(Denial::HandoffInvalid)?;
        let binding = Binding { host: host.name(), browser: self.browser(headers, client) };
        let now = self.clock.now();
        let handoff = Handoff::open(code, &self.handoff_key, &binding, now).ok_or(Denial::HandoffInvalid)?;
        let refuse = |denial| self.refused(denial, Some(handoff.link));
        let link = self.view.link(handoff.link).filter(|link| link.host == host.label);
        let link = link.ok_or_else(|| refuse(Denial::HandoffInvalid))?;
        if link.generation != handoff.generation || !stands(&link, now) {
            return Err(refuse(Denial::LinkEnded));
        }
        let permit = admission::open_session_permit(&link, self.view.freshness().position, now)?;
        let cookie = fresh_cookie()?;
        let ask = OpenSession {
            link: link.link,
            handoff: handoff.id,
            handoff_expires_at: handoff.expires_at,
            generation: handoff.generation,
            session: SessionId::from_uuid(Uuid::now_v7()),
            cookie: cookie.digest(),
            now,
        };
        let digest = ask.cookie;
        self.decisions.open_session(&permit, ask).await.map_err(|denial| match denial {
            Denial::HandoffInvalid | Denial::TooManySessions | Denial::LinkEnded => refuse(denial),
            // Nobody's attempt: our own side could not answer.
            denial => denial.into(),
        })?;
        self.wait_for_session(|view| view.session(&digest).is_some()).await?;
        Ok(cookie::set_session(self.config.scheme, &cookie))
    }

    fn refused(&self, denial: Denial, link: Option<LinkId>) -> Refused {
        Refused { denial, link: link.filter(|link| self.view.link(*link).is_some()) }
    }

    /// The redirect must not arrive before the session does.
    pub(crate) async fn wait_for_session(&self, shows: impl Fn(&GatewayView) -> bool) -> Result<(), Denial> {
        let deadline = Instant::now() + SESSION_SHOWS_WITHIN;
        while !shows(&self.view) {
            if Instant::now() >= deadline {
                return Err(Denial::AuthorizationStale);
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    /// Forged, unknown, rotated, revoked and expired tokens give one answer.
    async fn link_of(&self, token: &str) -> Result<Arc<LinkView>, Refused> {
        let now = self.clock.now();
        let claims = self.verifier.verify(token, now).map_err(|_| Denial::LinkEnded)?;
        let refuse = || self.refused(Denial::LinkEnded, Some(claims.link));
        let link = self.shown_link(claims.link, claims.generation).await.ok_or_else(refuse)?;
        let same = link.generation == claims.generation && link.org == claims.org && link.workspace == claims.workspace;
        // A workspace that was archived or closed to links shows nothing, not even its name.
        let open = self
            .view
            .workspace_by_label(&link.host)
            .is_some_and(|workspace| !workspace.archived && admission::is_open(&workspace));
        if same && open && stands(&link, now) { Ok(link) } else { Err(refuse()) }
    }

    /// A genuine token may be opened before this gateway has heard of its link: it was issued a moment ago, elsewhere.
    /// Only tokens that we signed get here, so nobody can make the gateway wait for links that never were.
    async fn shown_link(&self, id: LinkId, generation: Generation) -> Option<Arc<LinkView>> {
        let deadline = Instant::now() + LINK_SHOWS_WITHIN;
        loop {
            let link = self.view.link(id);
            let behind = link.as_ref().is_none_or(|link| link.generation < generation);
            if !behind || Instant::now() >= deadline {
                return link;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) fn check_fresh(&self) -> Result<(), Denial> {
        if self.standing.is_fresh() { Ok(()) } else { Err(Denial::AuthorizationStale) }
    }

    fn has_session(&self, host: &WorkspaceHost, headers: &HeaderMap) -> bool {
        let cookie = cookie::session(headers, self.config.scheme).ok().flatten();
        let link =
            cookie.and_then(|cookie| self.view.session(&cookie)).and_then(|session| self.view.link(session.link));
        link.is_some_and(|link| link.host == host.label)
    }

    /// What ties a handoff to the browser that asked for it.
    fn browser(&self, headers: &HeaderMap, client: &Client) -> TokenDigest {
        let mut facts = Vec::with_capacity(200);
        if self.config.handoff_bound_to_address {
            let address = client.address.ip().to_canonical();
            // Browsers reach localhost names by either loopback address.
            let text = if address.is_loopback() { "loopback".to_owned() } else { address.to_string() };
            facts.extend_from_slice(text.as_bytes());
        }
        facts.push(0);
        for agent in headers.get_all(USER_AGENT) {
            facts.extend_from_slice(agent.as_bytes());
            facts.push(0);
        }
        TokenDigest::of(&facts)
    }
}

/// The form must have been sent from our own page, which has this origin.
pub(crate) fn check_form(headers: &HeaderMap, own_origin: &str) -> Result<(), Denial> {
    let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
    let mut origins = headers.get_all(ORIGIN).iter().map(HeaderValue::as_bytes);
    let (origin, second) = (origins.next(), origins.next());
    let own_origin = origin == Some(own_origin.as_bytes());
    let allowed = match site {
        Some(site) => site == b"same-origin" && (own_origin || origin.is_none() || origin == Some(b"null")),
        None => own_origin,
    };
    if allowed && second.is_none() { Ok(()) } else { Err(Denial::ForeignForm) }
}

/// A handoff arrives as a top-level navigation from the share page, or from nowhere.
pub(crate) fn check_arrival(headers: &HeaderMap, domain_is_public_suffix: bool) -> Result<(), Denial> {
    let value = |name: &str| headers.get(name).map(HeaderValue::as_bytes);
    let site = match value("sec-fetch-site") {
        None | Some(b"same-site" | b"same-origin" | b"none") => true,
        Some(b"cross-site") => domain_is_public_suffix,
        Some(_) => false,
    };
    let top_level = value("sec-fetch-mode").is_none_or(|mode| mode == b"navigate")
        && value("sec-fetch-dest").is_none_or(|dest| dest == b"document");
    if site && top_level { Ok(()) } else { Err(Denial::ForeignSite) }
}

fn stands(link: &LinkView, now: UnixMillis) -> bool {
    link.phase == LinkPhase::Active && now < link.expires_at
}

pub(crate) fn fresh_cookie() -> Result<Secret, Denial> {
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes).map_err(|_| Denial::TryAgain)?;
    Ok(Secret::new(URL_SAFE_NO_PAD.encode(bytes)))
}

/// 303: the next request is a GET, whatever this one was.
pub(crate) fn redirect(target: &Secret) -> Result<Response<ResponseBody>, Denial> {
    let mut location = HeaderValue::from_str(target.expose()).map_err(|_| Denial::TryAgain)?;
    location.set_sensitive(true);
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = StatusCode::SEE_OTHER;
    response.headers_mut().insert(LOCATION, location);
    pages::protect(response.headers_mut());
    Ok(response)
}
