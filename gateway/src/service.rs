//! What happens to each request: checks, host, share flow or admission, wake, forward. One `Connection` a client.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use envforge_domain::time::{SharedClock, UnixMillis};
use http::header::{CONNECTION, HOST};
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use hyper::body::Incoming;
use parking_lot::Mutex;

use crate::admission::{self, ForwardPermit, Refused, RequestHead, Rules, wants_page};
use crate::blocked::BlockedCounters;
use crate::body::ResponseBody;
use crate::config::Config;
use crate::connection::{Client, REFUSED_METHOD, Serve};
use crate::denial::{Denial, ProtocolFault};
use crate::forward::{Forwarding, Passage};
use crate::header::Forwarded;
use crate::host::{Host, WorkspaceHost, split};
use crate::metric;
use crate::pages::{self, Audience};
use crate::request_check;
use crate::share::{HANDOFF_PATH, Share};
use crate::standing::Standing;
use crate::wake::{self, Waker};
use crate::websocket::{self, Handshake, Sockets};
use envforge_projections::gateway_view::{GatewayView, RuntimePhase};

/// Paths that the gateway keeps for itself on workspace hosts.
const RESERVED: &str = "/.envforge/";
/// Where the waking page asks how far the wake is.
pub(crate) const WAKE_PATH: &str = "/.envforge/wake";
/// Longest time that one such question waits for news.
const WAKE_NEWS_MAX: Duration = Duration::from_secs(20);

/// Everything that connections share.
pub(crate) struct Shared {
    pub(crate) config: Arc<Config>,
    pub(crate) view: Arc<GatewayView>,
    pub(crate) forwarding: Forwarding,
    pub(crate) sockets: Arc<Sockets>,
    pub(crate) waker: Waker,
    pub(crate) share: Share,
    pub(crate) standing: Arc<Standing>,
    pub(crate) blocked: Arc<BlockedCounters>,
    pub(crate) clock: SharedClock,
}

/// One client's connection: remembers the last host, which rarely changes.
pub(crate) struct Connection {
    shared: Arc<Shared>,
    client: Client,
    last_host: Mutex<Option<Arc<KnownHost>>>,
}

struct KnownHost {
    raw: Box<[u8]>,
    host: Host,
    forwarded: Forwarded,
}

/// A denial with whom it is told to.
struct Told {
    denial: Denial,
    audience: Audience,
}

impl Connection {
    pub(crate) fn new(shared: Arc<Shared>, client: Client) -> Self {
        Self { shared, client, last_host: Mutex::new(None) }
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<ResponseBody>, Told> {
        let handshake = websocket::handshake(&request);
        let is_socket = !matches!(handshake, Ok(None));
        let audience = if wants_page(request.method(), request.headers(), is_socket) {
            Audience::Person
        } else {
            Audience::Program
        };
        let told = |denial| Told { denial, audience };
        if !self.client.http2 && request.method().as_str() == REFUSED_METHOD {
            let fault = request.uri().path().strip_prefix('/').and_then(ProtocolFault::from_code);
            return Err(told(fault.unwrap_or(ProtocolFault::RequestLine).into()));
        }
        let known = self.host_of(&request).map_err(told)?;
        let handshake = handshake.map_err(told)?;
        match &known.host {
            Host::Gateway => {
                let (method, path) = (request.method(), request.uri().path());
                self.gateway_page(method, path, request.headers(), handshake.is_some()).await.map_err(told)
            }
            // Says as much as a workspace without session: nothing.
            Host::Unknown => Err(told(Denial::AccessRequired)),
            Host::Workspace(host) => {
                self.workspace(request, handshake, host, &known.forwarded, audience).await.map_err(told)
            }
        }
    }

    fn host_of<B>(&self, request: &Request<B>) -> Result<Arc<KnownHost>, Denial> {
        let raw = request_check::check(request)?;
        if let Some(known) = &*self.last_host.lock()
            && *known.raw == *raw
        {
            return Ok(Arc::clone(known));
        }
        let config = &self.shared.config;
        let host = Host::parse(config, raw)?;
        if let Some(server_name) = &self.client.server_name
            && split(raw)?.0 != **server_name
        {
            // A browser that reuses a connection for another name of one certificate opens a new one on 421.
            return Err(Denial::Misdirected);
        }
        let sent = match request.headers().get(HOST) {
            Some(host) => host.clone(),
            None => HeaderValue::from_bytes(raw).map_err(|_| ProtocolFault::InvalidHost)?,
        };
        let forwarded = Forwarded::new(self.client.address, &sent, config.scheme.as_str());
        let known = Arc::new(KnownHost { raw: raw.into(), host, forwarded });
        *self.last_host.lock() = Some(Arc::clone(&known));
        Ok(known)
    }

    async fn gateway_page(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        websocket: bool,
    ) -> Result<Response<ResponseBody>, Denial> {
        if websocket {
            return Err(Denial::NotFound);
        }
        match path.strip_prefix("/share/") {
            Some(token) => {
                let answer = self.shared.share.answer(method, token, headers, &self.client).await;
                answer.map_err(|refused| self.counted(refused))
            }
            None if path == "/robots.txt" => Ok(pages::robots()),
            None => Err(Denial::NotFound),
        }
    }

    async fn workspace(
        &self,
        request: Request<Incoming>,
        handshake: Option<Handshake>,
        host: &WorkspaceHost,
        forwarded: &Forwarded,
        audience: Audience,
    ) -> Result<Response<ResponseBody>, Denial> {
        let shared = &*self.shared;
        let now = shared.clock.now();
        let path = request.uri().path();
        if path.starts_with(RESERVED) || path == &RESERVED[..RESERVED.len() - 1] {
            return self.reserved(request, host, now).await;
        }
        let head = RequestHead {
            host,
            method: request.method(),
            path,
            headers: request.headers(),
            websocket: handshake.is_some(),
        };
        let permit = self.admit(&head, now)?;
        let endpoint = match self.endpoint(&permit, request.method(), request.headers(), audience).await {
            Ok(Reached::App(endpoint)) => endpoint,
            Ok(Reached::WakingPage(page)) => return Ok(*page),
            // What a link may not cause counts; what befalls a runtime does not.
            Err(denial @ (Denial::WakeBudgetSpent | Denial::WakeRefused | Denial::TooManyHeld)) => {
                return Err(self.counted(Refused { denial, link: Some(permit.link().link) }));
            }
            Err(denial) => return Err(denial),
        };
        // A held request starts anew: it was held against the state again when its wait was over.
        let (now, begun) = (shared.clock.now(), tokio::time::Instant::now());
        let passage = Passage { permit, endpoint, forwarded, own_host: host.name(), http2: self.client.http2, now, begun };
        match handshake {
            None => shared.forwarding.forward(passage, request).await,
            Some(handshake) => {
                shared.forwarding.websocket(&shared.sockets, passage, request, handshake, &self.client.state).await
            }
        }
    }

    fn admit(&self, head: &RequestHead<'_>, now: UnixMillis) -> Result<ForwardPermit, Denial> {
        let config = &self.shared.config;
        let rules = Rules { scheme: config.scheme, staleness_max: config.timeouts.staleness_max };
        admission::admit(&self.shared.view, rules, head, now).map_err(|refused| self.counted(refused))
    }

    /// A refusal, counted for its link where one is known.
    fn counted(&self, refused: Refused) -> Denial {
        if let Some(link) = refused.link {
            self.shared.blocked.count(link, refused.denial, self.shared.clock.now());
        }
        refused.denial
    }

    async fn endpoint(
        &self,
        permit: &ForwardPermit,
        method: &Method,
        headers: &HeaderMap,
        audience: Audience,
    ) -> Result<Reached, Denial> {
        let waker = &self.shared.waker;
        let runtime = self.shared.view.runtime(permit.workspace());
        let seen = {
            let seen = runtime.borrow();
            if let Some(address) = wake::endpoint(&seen, permit) {
                return address.map(Reached::App);
            }
            seen.clone()
        };
        if audience == Audience::Person && matches!(*method, Method::GET | Method::HEAD) {
            waker.nudge(permit, &seen)?;
            return Ok(Reached::WakingPage(Box::new(pages::waking(permit.link(), &seen))));
        }
        let head_bytes = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 64).sum::<usize>();
        waker.hold(permit, head_bytes).await.map(Reached::App)
    }

    async fn reserved(
        &self,
        request: Request<Incoming>,
        host: &WorkspaceHost,
        now: UnixMillis,
    ) -> Result<Response<ResponseBody>, Denial> {
        let (method, uri, headers) = (request.method(), request.uri(), request.headers());
        match uri.path() {
            HANDOFF_PATH => {
                let answer = self.shared.share.redeem(method, host, uri.query(), headers, &self.client).await;
                answer.map_err(|refused| self.counted(refused))
            }
            WAKE_PATH => {
                let head = RequestHead { host, method, path: "/", headers, websocket: false };
                let permit = self.admit(&head, now)?;
                if *method != Method::GET {
                    return Err(Denial::MethodNotAllowed);
                }
                let seen = uri.query().and_then(|query| query.strip_prefix("seen=")).unwrap_or_default();
                self.wake_news(&permit, seen).await
            }
            // Admitted or not, there is nothing here; without a session that is not said.
            _ => {
                let head = RequestHead { host, method, path: "/", headers, websocket: false };
                self.admit(&head, now)?;
                Err(Denial::NotFound)
            }
        }
    }

    /// Answers when something has changed since `seen`, or after a while.
    async fn wake_news(&self, permit: &ForwardPermit, seen: &str) -> Result<Response<ResponseBody>, Denial> {
        let waker = &self.shared.waker;
        let _place = waker.page_place(permit.link().link)?;
        let mut runtime = self.shared.view.runtime(permit.workspace());
        let deadline = tokio::time::Instant::now() + WAKE_NEWS_MAX;
        loop {
            let news = runtime.borrow_and_update().clone();
            let refusal = match news.phase {
                RuntimePhase::Ready | RuntimePhase::Waking => None,
                RuntimePhase::Asleep | RuntimePhase::Sleeping | RuntimePhase::Failed => waker.refusal(permit),
            };
            let answer = pages::WakeNews::new(&news, refusal);
            if answer.tag != seen || tokio::time::Instant::now() >= deadline {
                return Ok(pages::wake_news(&answer));
            }
            tokio::select! {
                changed = runtime.changed() => changed.map_err(|_| Denial::TryAgain)?,
                denial = self.shared.standing.ended(permit) => return Err(denial),
                // A refused wake changes no runtime: look again now and then.
                () = tokio::time::sleep(Duration::from_millis(500)) => {}
            }
        }
    }
}

enum Reached {
    App(SocketAddr),
    WakingPage(Box<Response<ResponseBody>>),
}

impl Serve for Connection {
    async fn serve(self: &Arc<Self>, request: Request<Incoming>) -> Response<ResponseBody> {
        let in_flight = self.client.state.begin_request();
        let response = match self.answer(request).await {
            Ok(response) => response,
            Err(Told { denial, audience }) => {
                metric::denial(denial.code());
                let mut response = pages::denial(denial, audience, self.shared.config.scheme);
                if matches!(denial, Denial::Protocol(_)) && !self.client.http2 {
                    // Whoever writes such requests is not trusted with a second one on this connection.
                    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                response
            }
        };
        response.map(|body| body.begun(in_flight, self.client.http2))
    }
}
