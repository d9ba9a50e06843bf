//! What happens to each request: checks, host, share flow or admission, wake, forward. One `Connection` a client.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use envforge_domain::denial::RefusedRequest;
use envforge_domain::ids::CorrelationId;
use envforge_domain::time::{SharedClock, UnixMillis};
use envforge_identity::randomness::Randomness;
use futures_util::stream;
use http::header::CONNECTION;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri};
use hyper::body::{Body, Incoming};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::admission::{self, ForwardPermit, Refused, RequestHead, Rules, wants_page};
use crate::blocked::BlockedCounters;
use crate::body::ResponseBody;
use crate::config::Config;
use crate::connection::{Answer, AnswerFacts, Client, HTTP2_STREAM_WINDOW_BYTES, REFUSED_METHOD, Serve, WireRequest};
use crate::cookie;
use crate::denial::{Denial, ProtocolFault};
use crate::fields::Fields;
use crate::forward::{Forwarding, Passage, RequestLine, announced_length, target_of};
use crate::header::Forwarded;
use crate::host::{Host, WorkspaceHost, split};
use crate::metric;
use crate::pages::{self, Audience, WakeNews};
use crate::request_check;
use crate::share::{HANDOFF_PATH, Share};
use crate::sign_in::{ARRIVAL_PATH, SIGN_IN_PATH};
use crate::standing::Standing;
use crate::upload::{EARLY_BYTES_MAX, Early};
use crate::upstream::{AnswerHead, Outgoing};
use crate::wake::{self, PagePlace, Waker};
use crate::websocket::{self, Handshake, Sockets};
use envforge_projections::gateway_view::{GatewayView, RuntimePhase, RuntimeView};

/// Paths that the gateway keeps for itself on workspace hosts.
const RESERVED: &str = "/.envforge/";
/// Where the waking page is told how far the wake is.
const WAKE_EVENTS_PATH: &str = "/.envforge/wake/events";
/// Where it asks instead, if events do not reach it.
const WAKE_PATH: &str = "/.envforge/wake";
/// Longest silence in events.
const EVENTS_SILENCE_MAX: Duration = Duration::from_secs(15);
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

/// What a refused request is called in its answer and afterwards. Made when it is needed: most requests are not refused.
#[derive(Default)]
struct RequestId(OnceLock<Option<CorrelationId>>);

impl RequestId {
    /// `None`: the operating system gave no random bytes.
    fn get(&self, now: UnixMillis) -> Option<CorrelationId> {
        *self.0.get_or_init(|| Randomness.uuid_v7(now).ok().map(CorrelationId::from_uuid))
    }
}

impl Connection {
    pub(crate) fn new(shared: Arc<Shared>, client: Client) -> Self {
        Self { shared, client, last_host: Mutex::new(None) }
    }

    async fn answer(&self, request: Request<Incoming>, id: &RequestId) -> Result<Response<ResponseBody>, Told> {
        let handshake = websocket::handshake(&request);
        let is_socket = !matches!(handshake, Ok(None));
        let audience = audience(request.method(), request.headers(), is_socket);
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
                self.gateway_page(method, path, request.headers(), handshake.is_some(), id).await.map_err(told)
            }
            // Says as much as a workspace without session: nothing.
            Host::Unknown => Err(told(Denial::AccessRequired)),
            Host::Workspace(host) => {
                self.workspace(request, handshake, host, &known.forwarded, audience, id).await.map_err(told)
            }
        }
    }

    fn host_of<B>(&self, request: &Request<B>) -> Result<Arc<KnownHost>, Denial> {
        self.known(request_check::check(request)?)
    }

    /// What a host means that was sent as `raw`.
    fn known(&self, raw: &[u8]) -> Result<Arc<KnownHost>, Denial> {
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
        let sent = std::str::from_utf8(raw).map_err(|_| ProtocolFault::InvalidHost)?;
        let forwarded = Forwarded::new(self.client.address, sent, config.scheme.as_str());
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
        id: &RequestId,
    ) -> Result<Response<ResponseBody>, Denial> {
        if websocket {
            return Err(Denial::NotFound);
        }
        match path.strip_prefix("/share/") {
            Some(token) => {
                let answer = self.shared.share.answer(method, token, headers, &self.client).await;
                answer.map_err(|refused| self.counted(refused, id))
            }
            None if path == "/robots.txt" => Ok(pages::robots()),
            None => Err(Denial::NotFound),
        }
    }

    async fn workspace(
        &self,
        mut request: Request<Incoming>,
        handshake: Option<Handshake>,
        host: &WorkspaceHost,
        forwarded: &Forwarded,
        audience: Audience,
        id: &RequestId,
    ) -> Result<Response<ResponseBody>, Denial> {
        let shared = &*self.shared;
        let now = shared.clock.now();
        let path = request.uri().path();
        if is_reserved(path) {
            return self.reserved(request, host, now, id).await;
        }
        let head = RequestHead {
            host,
            method: request.method(),
            path,
            fields: request.headers(),
            websocket: handshake.is_some(),
        };
        let permit = match self.admit(&head, now, id) {
            Err(Denial::AccessRequired) if audience == Audience::Person && *head.method == Method::GET => {
                return self.signing_in(host, request.uri(), request.headers());
            }
            admitted => admitted?,
        };
        let (endpoint, early, now) = match self.endpoint(&permit, &mut request, audience).await {
            Ok(Reached::App(endpoint)) => (endpoint, Early::default(), now),
            // A held request starts anew: it was held against the state again when its wait was over.
            Ok(Reached::AppAfterHold(endpoint, early)) => (endpoint, early, shared.clock.now()),
            Ok(Reached::WakingPage(page)) => return Ok(*page),
            // What a link may not cause counts; what befalls a runtime does not.
            Err(denial @ (Denial::WakeBudgetSpent | Denial::WakeRefused | Denial::TooManyHeld)) => {
                return Err(self.counted(Refused { denial, link: permit.link() }, id));
            }
            Err(denial) => return Err(denial),
        };
        let begun = tokio::time::Instant::now();
        let passage =
            Passage { permit, endpoint, forwarded, own_host: host.name(), http2: self.client.http2, early, now, begun };
        match handshake {
            None => shared.forwarding.forward(passage, request).await,
            Some(handshake) => {
                shared.forwarding.websocket(&shared.sockets, passage, request, handshake, &self.client.state).await
            }
        }
    }

    /// Nobody is known here: members sign in. Top-level alone, since no page may be made to show itself within another one.
    fn signing_in(
        &self,
        host: &WorkspaceHost,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<Response<ResponseBody>, Denial> {
        if headers.get("sec-fetch-dest").is_some_and(|dest| dest != "document") {
            return Err(Denial::AccessRequired);
        }
        self.shared.share.begin_sign_in(host, target_of(uri), headers)
    }

    fn admit(
        &self,
        head: &RequestHead<'_, impl Fields>,
        now: UnixMillis,
        id: &RequestId,
    ) -> Result<ForwardPermit, Denial> {
        let shared = &*self.shared;
        admission::admit(&shared.view, self.rules(), head, now).map_err(|refused| {
            if refused.denial == Denial::RightEnded {
                let cookie = cookie::session(head.fields, shared.config.scheme).ok().flatten();
                if let Some(member) = cookie.and_then(|cookie| shared.view.member(&cookie)) {
                    shared.share.decisions.record_denied(&member, id.get(now), now);
                }
            }
            self.counted(refused, id)
        })
    }

    fn rules(&self) -> Rules {
        let config = &self.shared.config;
        Rules { scheme: config.scheme, staleness_max: config.timeouts.staleness_max }
    }

    /// A refusal, counted for its link where one is known.
    fn counted(&self, refused: Refused, id: &RequestId) -> Denial {
        if let Some(link) = refused.link {
            let (at, position) = (self.shared.clock.now(), self.shared.view.freshness().position);
            let of = id.get(at).map(|request| RefusedRequest { request, at, position });
            self.shared.blocked.count(link, refused.denial, of, at);
        }
        refused.denial
    }

    async fn endpoint(
        &self,
        permit: &ForwardPermit,
        request: &mut Request<Incoming>,
        audience: Audience,
    ) -> Result<Reached, Denial> {
        let waker = &self.shared.waker;
        let seen = self.shared.view.look_at_runtime(permit.workspace(), |runtime| {
            wake::endpoint(runtime, permit).ok_or_else(|| runtime.clone())
        });
        let seen = match seen {
            Ok(address) => return address.map(Reached::App),
            Err(seen) => seen,
        };
        if audience == Audience::Person && matches!(*request.method(), Method::GET | Method::HEAD) {
            waker.nudge(permit, &seen)?;
            return Ok(Reached::WakingPage(Box::new(pages::waking(permit.workspace_name(), &seen))));
        }
        // In a box: what most requests never need.
        Box::pin(self.held(permit, request)).await
    }

    /// Waits for the runtime, or for the client to leave.
    async fn held(&self, permit: &ForwardPermit, request: &mut Request<Incoming>) -> Result<Reached, Denial> {
        let head = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 64).sum::<usize>();
        let bytes = head + self.kept_of_body(request);
        let mut early = Early::default();
        let outcome = tokio::select! {
            biased;
            outcome = self.shared.waker.hold(permit, bytes) => Some(outcome),
            () = early.read(request.body_mut()) => None,
        };
        match outcome {
            Some(outcome) => outcome.map(|address| Reached::AppAfterHold(address, early)),
            // Nobody hears this.
            None => Err(Denial::TryAgain),
        }
    }

    /// What may be kept of a held request's body: what we read, and over HTTP/2 what fills the stream's window besides.
    fn kept_of_body(&self, request: &Request<Incoming>) -> usize {
        if request.body().is_end_stream() {
            return 0;
        }
        let most = EARLY_BYTES_MAX + if self.client.http2 { HTTP2_STREAM_WINDOW_BYTES as usize } else { 0 };
        let announced = announced_length(request.headers()).and_then(|length| usize::try_from(length).ok());
        announced.map_or(most, |length| length.min(most))
    }

    async fn reserved(
        &self,
        request: Request<Incoming>,
        host: &WorkspaceHost,
        now: UnixMillis,
        id: &RequestId,
    ) -> Result<Response<ResponseBody>, Denial> {
        let (method, uri, headers) = (request.method(), request.uri(), request.headers());
        match uri.path() {
            HANDOFF_PATH => {
                let answer = self.shared.share.redeem(method, host, uri.query(), headers, &self.client).await;
                answer.map_err(|refused| self.counted(refused, id))
            }
            // Also for whoever came by a link before: a member may have both.
            SIGN_IN_PATH => match *method {
                Method::GET => self.signing_in(host, &Uri::from_static("/"), headers),
                _ => Err(Denial::MethodNotAllowed),
            },
            ARRIVAL_PATH => {
                let answer = self.shared.share.arrive(method, host, uri.query(), headers, id.get(now)).await;
                answer.map_err(|refused| self.counted(refused, id))
            }
            WAKE_PATH | WAKE_EVENTS_PATH => {
                let head = RequestHead { host, method, path: "/", fields: headers, websocket: false };
                let permit = self.admit(&head, now, id)?;
                if *method != Method::GET {
                    return Err(Denial::MethodNotAllowed);
                }
                if uri.path() == WAKE_EVENTS_PATH {
                    return self.wake_events(permit);
                }
                let seen = uri.query().and_then(|query| query.strip_prefix("seen=")).unwrap_or_default();
                self.wake_news(permit, seen).await
            }
            // Admitted or not, there is nothing here; without a session that is not said.
            _ => {
                let head = RequestHead { host, method, path: "/", fields: headers, websocket: false };
                self.admit(&head, now, id)?;
                Err(Denial::NotFound)
            }
        }
    }

    /// Answers when something has changed since `seen`, or after a while. For pages that cannot follow events.
    async fn wake_news(&self, permit: ForwardPermit, seen: &str) -> Result<Response<ResponseBody>, Denial> {
        let mut following = Following::new(&self.shared, permit)?;
        let deadline = tokio::time::Instant::now() + WAKE_NEWS_MAX;
        loop {
            let news = following.news();
            if news.tag != seen || tokio::time::Instant::now() >= deadline {
                return Ok(pages::wake_news(&news));
            }
            following.changed().await?;
        }
    }

    /// Tells everything that changes until the wake is over, or the right to know of it.
    fn wake_events(&self, permit: ForwardPermit) -> Result<Response<ResponseBody>, Denial> {
        let following = Following::new(&self.shared, permit)?;
        let told = (following, String::new(), tokio::time::Instant::now());
        let events = stream::unfold(Some(told), |told| async {
            let (mut following, seen, last) = told?;
            loop {
                let news = following.news();
                let now = tokio::time::Instant::now();
                if news.tag != seen {
                    let event = news.event();
                    return Some((event, (!news.is_last()).then_some((following, news.tag, now))));
                }
                // Whatever stands between keeps a stream open in which something comes.
                if now >= last + EVENTS_SILENCE_MAX {
                    return Some((Bytes::from_static(b":\n\n"), Some((following, seen, now))));
                }
                following.changed().await.ok()?;
            }
        });
        Ok(pages::wake_events(events))
    }
}

/// A waking page that is told how far the wake is.
struct Following {
    shared: Arc<Shared>,
    permit: ForwardPermit,
    runtime: watch::Receiver<RuntimeView>,
    _place: PagePlace,
}

impl Following {
    fn new(shared: &Arc<Shared>, permit: ForwardPermit) -> Result<Self, Denial> {
        let place = shared.waker.page_place(permit.visitor())?;
        let runtime = shared.view.runtime(permit.workspace());
        Ok(Self { shared: Arc::clone(shared), permit, runtime, _place: place })
    }

    fn news(&mut self) -> WakeNews {
        let runtime = self.runtime.borrow_and_update().clone();
        let refusal = match runtime.phase {
            RuntimePhase::Ready | RuntimePhase::Waking | RuntimePhase::Leaving => None,
            RuntimePhase::Asleep | RuntimePhase::Sleeping | RuntimePhase::Failed => {
                self.shared.waker.refusal(&self.permit)
            }
        };
        WakeNews::new(&runtime, refusal)
    }

    async fn changed(&mut self) -> Result<(), Denial> {
        tokio::select! {
            biased;
            denial = self.shared.standing.ended(&self.permit) => Err(denial),
            changed = self.runtime.changed() => changed.map_err(|_| Denial::TryAgain),
            // A refused wake changes no runtime: look again now and then.
            () = tokio::time::sleep(Duration::from_millis(500)) => Ok(()),
        }
    }
}

enum Reached {
    App(SocketAddr),
    AppAfterHold(SocketAddr, Early),
    WakingPage(Box<Response<ResponseBody>>),
}

impl Connection {
    /// What is said instead of an app's answer.
    fn denied(&self, Told { denial, audience }: Told, id: &RequestId) -> Response<ResponseBody> {
        metric::denial(denial.code());
        let config = &self.shared.config;
        // On the gateway's own domain there is nothing to sign in to.
        let member = config.sign_in_at.is_some()
            && matches!(self.last_host.lock().as_deref(), Some(KnownHost { host: Host::Workspace(_), .. }));
        pages::denial(denial, audience, config.scheme, member, id.get(self.shared.clock.now()))
    }
}

impl Serve for Connection {
    async fn serve(self: &Arc<Self>, request: Request<Incoming>) -> Response<ResponseBody> {
        let in_flight = self.client.state.begin_request();
        let id = RequestId::default();
        let response = match self.answer(request, &id).await {
            Ok(response) => response,
            Err(told) => {
                let faulty = matches!(told.denial, Denial::Protocol(_));
                let mut response = self.denied(told, &id);
                if faulty && !self.client.http2 {
                    // Whoever writes such requests is not trusted with a second one on this connection.
                    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                response
            }
        };
        response.map(|body| body.begun(in_flight, self.client.http2))
    }

    async fn pass(self: &Arc<Self>, request: &WireRequest<'_>, text: &mut Vec<u8>) -> Option<Answer> {
        let shared = &*self.shared;
        let known = self.known(request.first("host")?).ok()?;
        let Host::Workspace(host) = &known.host else { return None };
        let (method, path) = (Method::from_bytes(request.method()).ok()?, request.path());
        if is_reserved(path) {
            return None;
        }
        let now = shared.clock.now();
        let head = RequestHead { host, method: &method, path, fields: request, websocket: false };
        // Whoever is refused is refused, told and counted by `serve`.
        let permit = admission::admit(&shared.view, self.rules(), &head, now).ok()?;
        let endpoint = shared.view.look_at_runtime(permit.workspace(), |runtime| wake::endpoint(runtime, &permit));
        let endpoint = endpoint?.ok()?;
        let in_flight = self.client.state.begin_request();
        let (own_host, early) = (host.name(), Early::default());
        let (forwarded, begun) = (&known.forwarded, tokio::time::Instant::now());
        let passage = Passage { permit, endpoint, forwarded, own_host, http2: false, early, now, begun };
        let line = RequestLine { method: &method, target: request.target_text() };
        let outgoing = Outgoing::new(line.with(request, forwarded, None), method == Method::HEAD, None);
        let take = |head: &AnswerHead<'_>| AnswerFacts::of_app(head, own_host, text);
        let passed = shared.forwarding.pass(&passage, &method, outgoing, take).await;
        let (head, body) = match passed {
            Ok(passed) => passed,
            Err(denial) => {
                let audience = audience(&method, request, false);
                let response = self.denied(Told { denial, audience }, &RequestId::default());
                text.clear();
                (AnswerFacts::of_page(&response, method == Method::HEAD, text), response.into_body())
            }
        };
        Some(Answer { head, body: body.begun(in_flight, false), now })
    }
}

fn is_reserved(path: &str) -> bool {
    path.starts_with(RESERVED) || path == &RESERVED[..RESERVED.len() - 1]
}

fn audience(method: &Method, fields: &impl Fields, is_socket: bool) -> Audience {
    if wants_page(method, fields, is_socket) { Audience::Person } else { Audience::Program }
}
