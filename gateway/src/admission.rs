//! Who may pass: the one place where a request for a workspace host becomes a `ForwardPermit`.
//!
//! Reads memory only. Without a valid session every host gives the same answer, whether it exists or not. Not here:
//! whether the wire form is sound (`connection`, `request_check`), and what passing does (`forward`, `websocket`).

use std::sync::Arc;
use std::time::Duration;

use envforge_domain::access::{self, Action, ActorFacts, Facts, Permit, Resource};
use envforge_domain::commit::{Actor, Component, Position, Surface};
use envforge_domain::dev_link::{RouteFamilies, RouteFamily};
use envforge_domain::ids::{LinkId, SessionId, WorkspaceId};
use envforge_domain::secret::TokenDigest;
use envforge_domain::slug::ServiceName;
use envforge_domain::time::UnixMillis;
use envforge_domain::workspace::AccessMode;
use http::Method;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::Scheme;
use crate::cookie;
use crate::denial::Denial;
use crate::fields::Fields;
use crate::ground::{Ground, Visitor};
use crate::host::WorkspaceHost;
use crate::path::CheckedPath;
use crate::standing::{Right, Standing};
use envforge_projections::gateway_view::{GatewayView, LinkView, OpenSocket, WorkspaceRoutes};

/// What admission looks at.
pub struct RequestHead<'a, F> {
    pub host: &'a WorkspaceHost,
    pub method: &'a Method,
    /// Without the query.
    pub path: &'a str,
    pub fields: &'a F,
    /// A websocket handshake, over HTTP/1 or HTTP/2.
    pub websocket: bool,
}

/// What admission holds requests against besides the view.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    pub scheme: Scheme,
    pub staleness_max: Duration,
}

/// Proof that one request may go to one service. Only `admit` makes one; `forward` and `websocket` take nothing else.
pub struct ForwardPermit {
    permit: Permit,
    ground: Ground,
    session: SessionId,
    /// Where that is another one than the host's own.
    service: Option<ServiceName>,
    /// The family of the path.
    base: RouteFamily,
    /// What must stay allowed for as long as the request lives: the path's family, and `Websockets` for a socket.
    families: RouteFamilies,
}

/// A refusal, and the link it is counted for where one is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    pub denial: Denial,
    pub link: Option<LinkId>,
}

impl From<Denial> for Refused {
    fn from(denial: Denial) -> Self {
        Self { denial, link: None }
    }
}

impl ForwardPermit {
    pub fn workspace(&self) -> WorkspaceId {
        self.ground.workspace()
    }

    pub fn visitor(&self) -> Visitor {
        self.ground.visitor()
    }

    pub fn session(&self) -> SessionId {
        self.session
    }

    pub fn service(&self) -> &ServiceName {
        self.service.as_ref().unwrap_or_else(|| self.ground.service())
    }

    /// The link for which refusals are counted.
    pub(crate) fn link(&self) -> Option<LinkId> {
        self.ground.link()
    }

    pub(crate) fn workspace_name(&self) -> &str {
        self.ground.workspace_name()
    }

    /// Cancelled when the right to this path ends before its time.
    pub(crate) fn cancel(&self) -> &CancellationToken {
        self.ground.cancel(self.base)
    }

    /// Cancelled when sockets end; a socket needs this and its path's family.
    pub(crate) fn cancel_sockets(&self) -> &CancellationToken {
        self.ground.cancel(RouteFamily::Websockets)
    }

    /// Counts the socket that this opens.
    pub(crate) fn socket_opened(&self) -> OpenSocket {
        self.ground.socket_opened(self.base)
    }

    /// Whether it opens a socket.
    pub(crate) fn is_socket(&self) -> bool {
        self.families.contains(RouteFamily::Websockets)
    }

    /// Whether the right was taken away since it was given.
    pub(crate) fn is_withdrawn(&self) -> bool {
        self.families.iter().any(|family| self.ground.is_withdrawn(family))
    }

    /// The right to the answer, which outlives the request.
    pub(crate) fn right(&self, standing: &Arc<Standing>, deadline: Instant) -> Right {
        Right::new(self.ground.clone(), self.base, standing, deadline)
    }

    /// When the right ends by itself.
    pub(crate) fn ends_at(&self) -> UnixMillis {
        self.ground.ends_at()
    }

    /// What is said when it has.
    pub(crate) fn expired(&self) -> Denial {
        self.ground.expired()
    }

    /// The decision of the access policy that this rests on.
    pub fn decision(&self) -> &Permit {
        &self.permit
    }

    /// The policy's word on waking what this request needs.
    pub(crate) fn wake_permit(&self, now: UnixMillis) -> Result<Permit, Denial> {
        let (action, resource) = (Action::RuntimeWake, self.permit.resource());
        authorize(&self.ground, Some(self.session), action, resource, self.permit.position(), now)
    }

    /// Why a request that was cancelled under way is refused now.
    pub(crate) fn ended(&self, view: &GatewayView, now: UnixMillis) -> Denial {
        let standing = self.ground.renewed(view).and_then(|ground| ground.stands(now).map(|()| ground));
        match standing {
            Err(denial) => denial,
            Ok(ground) if !self.families.minus(ground.families()).is_empty() => Denial::RouteNotIncluded,
            // The visitor may come again: the app wakes elsewhere.
            Ok(_) if self.families.iter().any(|family| self.ground.has_lost_host(family)) => {
                Denial::UpstreamUnreachable
            }
            Ok(_) => Denial::WorkspaceClosed,
        }
    }
}

/// Decides over one request. The order matters: nothing about a workspace shows before a session is proven.
pub fn admit<F: Fields>(
    view: &GatewayView,
    rules: Rules,
    head: &RequestHead<'_, F>,
    now: UnixMillis,
) -> Result<ForwardPermit, Refused> {
    let freshness = view.freshness();
    if freshness.last_heard.elapsed() > rules.staleness_max {
        return Err(Denial::AuthorizationStale.into());
    }
    let cookie = cookie::session(head.fields, rules.scheme)?;
    // All lookups happen for everybody: an unknown host takes as long as a known one.
    let session = cookie.and_then(|cookie| view.session(&cookie)).or_else(|| view.session(&ABSENT));
    let link = session.and_then(|session| view.link(session.link));
    let member = if session.is_none() { cookie.and_then(|cookie| view.member(&cookie)) } else { None };
    let workspace = view.workspace_by_label(&head.host.label);
    let (ground, session) = match (session, link, member) {
        (Some(session), Some(link), _) => (Ground::Link(link, session.generation), session.session),
        (_, _, Some(member)) => {
            let session = member.session;
            (Ground::Member(member), session)
        }
        _ => return Err(Denial::AccessRequired.into()),
    };
    if *ground.host() != head.host.label {
        return Err(Denial::AccessRequired.into());
    }
    let refuse = |denial| Refused { denial, link: ground.link() };
    let Some(workspace) = workspace.filter(|workspace| workspace.workspace == ground.workspace()) else {
        return Err(refuse(Denial::AccessRequired));
    };
    if !is_open(&workspace) {
        return Err(refuse(Denial::AccessRequired));
    }
    let (service, base, families) = decide(&workspace, &ground, head, now).map_err(refuse)?;
    let resource =
        Resource::Workspace { org: workspace.org, project: workspace.project, workspace: workspace.workspace };
    let permit =
        authorize(&ground, Some(session), ground.action(), resource, freshness.position, now).map_err(refuse)?;
    let service = (service != ground.service()).then(|| service.clone());
    Ok(ForwardPermit { permit, service, session, base, families, ground })
}

/// Whether signed links work here at all; a Tailscale-only workspace looks like none.
pub(crate) fn is_open(workspace: &WorkspaceRoutes) -> bool {
    workspace.access_mode == AccessMode::SignedLinks
}

/// Looked up where there is no cookie; no cookie has this digest.
const ABSENT: TokenDigest = TokenDigest::from_bytes([0; 32]);

fn decide<'w>(
    workspace: &'w WorkspaceRoutes,
    ground: &Ground,
    head: &RequestHead<'_, impl Fields>,
    now: UnixMillis,
) -> Result<(&'w ServiceName, RouteFamily, RouteFamilies), Denial> {
    if workspace.archived {
        return Err(Denial::WorkspaceClosed);
    }
    ground.stands(now)?;
    check_site(head)?;
    let path = CheckedPath::new(head.path)?;
    let table = &workspace.routes;
    let prefix_decides = head.websocket || ground.families() != RouteFamilies::ALL || table.services().nth(1).is_some();
    let path = if prefix_decides { path.for_prefix()? } else { path.as_str() };
    let base = table.route(path, false).ok_or(Denial::RouteNotIncluded)?;
    let mut families = RouteFamilies::NONE.with(base.family);
    if head.websocket {
        let socket = table.route(path, true).ok_or(Denial::WebsocketNotDeclared)?;
        families = families.with(socket.family);
    }
    // A socket needs its path's own family too: a link without `api` opens no socket below `/api`.
    if !families.minus(ground.families()).is_empty() {
        return Err(Denial::RouteNotIncluded);
    }
    Ok((base.service, base.family, families))
}

/// The one policy has the last word, on the gateway as anywhere.
fn authorize(
    ground: &Ground,
    session: Option<SessionId>,
    action: Action,
    resource: Resource,
    position: Position,
    now: UnixMillis,
) -> Result<Permit, Denial> {
    let actor = ground.actor(session);
    let request = access::Request { actor, action, resource, surface: Surface::Gateway, now };
    let refused = match ground {
        Ground::Link(..) => Denial::RouteNotIncluded,
        Ground::Member(_) => Denial::RightEnded,
    };
    access::authorize(&Facts { position, actor: ground.facts(now) }, &request).map_err(|denial| match denial {
        access::Denial::LinkEnded => Denial::LinkRevoked,
        _ => refused,
    })
}

const fn link_resource(link: &LinkView) -> Resource {
    Resource::Link { org: link.org, project: link.project, workspace: link.workspace, link: link.link }
}

/// The policy's word on opening a session of a link, for a handoff that proved itself.
pub(crate) fn open_session_permit(link: &Arc<LinkView>, position: Position, now: UnixMillis) -> Result<Permit, Denial> {
    let ground = Ground::Link(Arc::clone(link), link.generation);
    authorize(&ground, None, Action::LinkOpenSession, link_resource(link), position, now)
}

/// The policy's word on the gateway's own counters of a link, which outlive it.
pub(crate) fn record_permit(link: &LinkView, position: Position, now: UnixMillis) -> Result<Permit, Denial> {
    let request = access::Request {
        actor: Actor::System(Component::Gateway),
        action: Action::LinkRecordUse,
        resource: link_resource(link),
        surface: Surface::Gateway,
        now,
    };
    access::authorize(&Facts { position, actor: ActorFacts::System }, &request).map_err(|_| Denial::RouteNotIncluded)
}

/// Whether the request comes from the workspace's own pages, or is a person who follows a link.
pub(crate) fn check_site(head: &RequestHead<'_, impl Fields>) -> Result<(), Denial> {
    let site = head.fields.first("sec-fetch-site");
    let mut origins = head.fields.values("origin");
    let origin = origins.next();
    if origins.next().is_some() {
        return Err(Denial::ForeignOrigin);
    }
    let own = origin == Some(head.host.origin.as_bytes());
    let safe = matches!(*head.method, Method::GET | Method::HEAD | Method::OPTIONS) && !head.websocket;
    if head.websocket && !own {
        return Err(Denial::ForeignOrigin);
    }
    // A page with `Referrer-Policy: no-referrer` posts with `Origin: null`; the browser's own word then decides.
    let opaque_own = origin == Some(b"null") && site == Some(b"same-origin");
    if !safe && !own && !opaque_own {
        return Err(Denial::ForeignOrigin);
    }
    match site {
        Some(b"same-origin" | b"none") => Ok(()),
        // An older browser: a safe request with a foreign Origin is somebody else's script.
        None if origin.is_none() || own => Ok(()),
        None => Err(Denial::ForeignOrigin),
        Some(_) if is_top_level_navigation(head.method, head.fields) => Ok(()),
        Some(_) => Err(Denial::ForeignSite),
    }
}

pub(crate) fn is_top_level_navigation(method: &Method, fields: &impl Fields) -> bool {
    let is = |name: &'static str, value: &[u8]| fields.first(name) == Some(value);
    matches!(*method, Method::GET | Method::HEAD)
        && is("sec-fetch-mode", b"navigate")
        && is("sec-fetch-dest", b"document")
}

/// Whether a person looks at the answer: pages for them, typed JSON for everything else.
pub(crate) fn wants_page(method: &Method, fields: &impl Fields, websocket: bool) -> bool {
    if websocket {
        return false;
    }
    match fields.first("sec-fetch-mode") {
        Some(mode) => mode == b"navigate",
        None => {
            matches!(*method, Method::GET | Method::HEAD)
                && fields.first("accept").is_some_and(|accept| memchr::memmem::find(accept, b"text/html").is_some())
        }
    }
}
