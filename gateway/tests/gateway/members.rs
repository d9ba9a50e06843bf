//! Members who open a workspace without a link: from its host to the API's sign-in and back, and every way in which that ends.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use envforge_domain::access::{Grantee, Role, Scope};
use envforge_domain::commit::{Position, StreamId, Surface};
use envforge_domain::event::Event;
use envforge_domain::ids::{OrgId, SessionId, UserId, WorkspaceId};
use envforge_domain::organization::OrganizationEvent;
use envforge_domain::runtime::{ActivitySource, RuntimeEvent, WakeCause};
use envforge_domain::secret::TokenDigest;
use envforge_domain::slug::HostLabel;
use envforge_domain::time::Millis;
use envforge_domain::user::{OpenSession, SessionEnd, UserEvent};
use envforge_domain::workspace::AccessMode;
use envforge_gateway::Visitor;
use envforge_identity::workspace_handoff::{WorkspaceHandoff, browser_of};
use futures_util::SinkExt;
use tokio_tungstenite::tungstenite::protocol::Message;
use uuid::Uuid;

use crate::app::App;
use crate::client::{Answer, NAVIGATION};
use crate::sockets::{close_code, next};
use crate::world::{COOKIE, DOMAIN, LABEL, World, now, until};

const API: &str = "http://api.localhost:7070";

/// Who the world's link is by: a developer.
fn ada() -> UserId {
    UserId::from_uuid(Uuid::from_u128(6))
}

fn session(number: u128) -> SessionId {
    SessionId::from_uuid(Uuid::from_u128(number))
}

/// A browser on its way: what it keeps, and the digest by which the API knows it.
struct Browser {
    kept: String,
    digest: TokenDigest,
}

async fn world() -> World {
    let world = World::with(|config| config.sign_in_at = Some(API.to_owned())).await;
    world.sign_in(50, Millis::from_hours(8)).await;
    world
}

impl World {
    /// Ada signs in at the API.
    async fn sign_in(&self, number: u128, lifetime: Millis) {
        let opened = OpenSession::of_local_account(Surface::Console, now(), now().plus(lifetime));
        self.of_ada(UserEvent::session_opened(session(number), opened)).await;
    }

    async fn of_ada(&self, event: UserEvent) {
        self.append(StreamId::user(self.org(), ada()), vec![event.into()]).await;
    }

    async fn of_organization(&self, event: OrganizationEvent) {
        self.append(StreamId::organization(self.org()), vec![event.into()]).await;
    }

    fn bare(&self, label: &str, path: &str, more: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nHost: {label}.{DOMAIN}:{}\r\n{more}\r\n", self.port())
    }

    /// Opens a page without a session, and is sent to sign in.
    async fn begin(&self, label: &str, path: &str) -> Browser {
        let answer = self.raw(self.bare(label, path, NAVIGATION)).await.unwrap();
        assert_eq!(answer.status, 303, "{}", answer.body);
        let location = answer.header("location");
        let query =
            location.strip_prefix(&format!("{API}/open?host={label}&browser=")).unwrap_or_else(|| panic!("{location}"));
        let kept = answer.header("set-cookie").split(';').next().unwrap().to_owned();
        assert!(kept.starts_with("envforge_sign_in="), "{kept}");
        assert!(!location.contains(kept.split(['=', '.']).nth(1).unwrap()), "what the browser keeps is told to nobody");
        Browser { kept, digest: browser_of(query).unwrap() }
    }

    fn handoff(&self, browser: &Browser) -> WorkspaceHandoff {
        WorkspaceHandoff {
            handoff: WorkspaceHandoff::new_id(),
            user: ada(),
            parent: session(50),
            org: self.org(),
            project: self.project(),
            workspace: self.workspace(),
            host: HostLabel::parse(LABEL).unwrap(),
            browser: browser.digest,
            expires_at: WorkspaceHandoff::end(now()),
        }
    }

    /// Comes back from the API with a handoff.
    async fn arrive(&self, label: &str, kept: &str, handoff: &WorkspaceHandoff) -> Answer {
        let code = self.sign_handoff(handoff);
        let more = NAVIGATION.replace("Sec-Fetch-Site: none", "Sec-Fetch-Site: cross-site");
        let path = format!("/.envforge/signed-in?code={}", code.expose());
        self.raw(self.bare(label, &path, &format!("Cookie: {kept}\r\n{more}"))).await.unwrap()
    }

    /// The whole way; answers the value of the session's cookie.
    async fn enter(&self, path: &str) -> String {
        let browser = self.begin(LABEL, path).await;
        let arrived = self.arrive(LABEL, &browser.kept, &self.handoff(&browser)).await;
        assert_eq!((arrived.status, arrived.header("location")), (303, path), "{}", arrived.body);
        arrived.cookie("envforge_session").unwrap()
    }

    async fn fetch_as(&self, cookie: &str, path: &str) -> Answer {
        let request =
            self.get(path, "Sec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\n");
        self.raw(request.replace(COOKIE, cookie)).await.unwrap()
    }
}

#[tokio::test]
async fn a_member_gets_from_the_host_to_the_app_by_signing_in() {
    let (world, app) = (world().await, App::start().await);
    world.ready(app.address).await;
    let cookie = world.enter("/orders?page=2").await;
    let answer = world.fetch_as(&cookie, "/api/orders").await;
    assert!(answer.body.starts_with("GET /api/orders\n"), "{}", answer.body);
    assert!(!answer.body.contains("envforge_"), "the app sees nothing of ours: {}", answer.body);
    let seen = world.activity.of(world.workspace()).unwrap();
    assert_eq!(seen.visitor, Some(Visitor::Member(ada())));
    assert_eq!(seen.visitor.unwrap().activity(), ActivitySource::Person(ada()));
    // The log names the session at the API from which it was opened.
    let commits = world.log.read_stream(&StreamId::user(world.org(), ada()), Position::START, 100).await.unwrap();
    let opened = commits.iter().flat_map(|recorded| &recorded.commit.events).find_map(|event| match event {
        Event::User(UserEvent::WorkspaceOpened { parent, workspace, .. }) => Some((*parent, *workspace)),
        _ => None,
    });
    assert_eq!(opened, Some((session(50), world.workspace())));
}

#[tokio::test]
async fn scripts_get_a_typed_no_and_every_host_sends_people_to_sign_in() {
    let world = world().await;
    world.create_workspace(WorkspaceId::from_uuid(Uuid::from_u128(8)), "hidden", AccessMode::TailscaleOnly).await;
    let known = world.raw(world.bare(LABEL, "/", NAVIGATION)).await.unwrap();
    for label in ["web--nowhere--acme", "web--signed-links--nobody", "web--hidden--acme"] {
        let answer = world.raw(world.bare(label, "/", NAVIGATION)).await.unwrap();
        assert_eq!(answer.status, known.status);
        let (here, there) = (known.header("location"), answer.header("location"));
        assert_eq!(here.len() - LABEL.len(), there.len() - label.len(), "{there}");
        let names = |answer: &Answer| answer.headers.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&known), names(&answer), "existence is not revealed");
    }
    let script = "Sec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\n";
    let frame = "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: iframe\r\n";
    let socket = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for kind in [script, socket] {
        let answer = world.raw(world.bare(LABEL, "/ws", kind)).await.unwrap();
        assert_eq!((answer.status, answer.code()), (403, "access_required".to_owned()));
        assert_eq!(answer.header("content-type"), "application/problem+json");
    }
    assert_eq!(
        world.raw(world.bare(LABEL, "/", frame)).await.unwrap().status,
        403,
        "no page is shown within another one"
    );
    let posted = world.raw(world.bare(LABEL, "/", NAVIGATION).replace("GET", "POST")).await.unwrap();
    assert_eq!(posted.status, 403);
}

#[tokio::test]
async fn a_handoff_opens_once_on_its_host_in_its_browser_in_time() {
    let (world, app) = (world().await, App::start().await);
    world.ready(app.address).await;
    let browser = world.begin(LABEL, "/").await;
    let other = world.begin(LABEL, "/").await;
    assert!(other.kept != browser.kept, "another browser keeps something else");
    let refused = async |label: &str, kept: &str, handoff: &WorkspaceHandoff| {
        let answer = world.arrive(label, kept, handoff).await;
        assert_eq!(answer.status, 403, "{}", answer.body);
        assert!(answer.cookie("envforge_session").is_none());
    };
    let good = world.handoff(&browser);
    // Signed in as somebody else by a link: the browser was not the one that asked.
    refused(LABEL, &other.kept, &good).await;
    refused(LABEL, "a=b", &good).await;
    refused(LABEL, &format!("{}; {}", browser.kept, browser.kept), &good).await;
    refused("backend--signed-links--acme", &browser.kept, &good).await;
    let late = WorkspaceHandoff { expires_at: now(), ..good.clone() };
    refused(LABEL, &browser.kept, &late).await;
    let elsewhere = WorkspaceHandoff { workspace: WorkspaceId::from_uuid(Uuid::from_u128(99)), ..good.clone() };
    refused(LABEL, &browser.kept, &elsewhere).await;
    let far = WorkspaceHandoff { expires_at: now().plus(Millis::from_hours(1)), ..good.clone() };
    refused(LABEL, &browser.kept, &far).await;
    let foreign = WorkspaceHandoff { org: OrgId::from_uuid(Uuid::from_u128(98)), ..good.clone() };
    refused(LABEL, &browser.kept, &foreign).await;
    assert_eq!(world.arrive(LABEL, &browser.kept, &good).await.status, 303);
    refused(LABEL, &browser.kept, &good).await;
    // Over all gateways of the domain: the log has the last word.
    let another = world.another().await;
    let code = world.sign_handoff(&good);
    let path = format!("/.envforge/signed-in?code={}", code.expose());
    let request = world.bare(LABEL, &path, &format!("Cookie: {}\r\n{NAVIGATION}", browser.kept));
    let mut client = crate::client::Client::connect(another.address()).await;
    client.send(request.replace(&format!(":{}", world.port()), &format!(":{}", another.address().port()))).await;
    assert_eq!(client.answer().await.unwrap().status, 403);
}

#[tokio::test]
async fn who_signs_out_is_out_at_once_with_what_is_open() {
    let (world, app) = (world().await, App::start().await);
    world.ready(app.address).await;
    for end in ["of the session at the API", "of its own", "of the account", "of the membership"] {
        world.sign_in(50, Millis::from_hours(8)).await;
        let cookie = world.enter("/").await;
        let mut socket = world.socket_of("/ws", &cookie).await;
        let begun = Instant::now();
        let over = |session| UserEvent::SessionEnded { session, reason: SessionEnd::LoggedOut };
        match end {
            "of the session at the API" => world.of_ada(over(session(50))).await,
            "of its own" => {
                let own = world.hot.gateway.member(&TokenDigest::of(cookie.as_bytes())).unwrap().session;
                world.of_ada(over(own)).await;
            }
            "of the account" => {
                world.of_ada(UserEvent::Deactivated).await;
                world.of_ada(UserEvent::Reactivated).await;
            }
            _ => world.of_organization(OrganizationEvent::MemberRemoved { user: ada() }).await,
        }
        assert_eq!(close_code(next(&mut socket).await), Some(4403), "{end}");
        assert!(begun.elapsed() < Duration::from_secs(1), "{end}: {:?}", begun.elapsed());
        let answer = world.fetch_as(&cookie, "/api/orders").await;
        assert_eq!((answer.status, answer.code()), (403, "access_required".to_owned()), "{end}");
    }
}

#[tokio::test]
async fn a_lost_role_closes_everything_and_a_given_one_opens_it_again() {
    let (world, app) = (world().await, App::start().await);
    world.ready(app.address).await;
    let cookie = world.enter("/").await;
    let mut socket = world.socket_of("/ws", &cookie).await;
    let (grantee, role, scope) = (Grantee::User(ada()), Role::Developer, Scope::Organization);
    world.of_organization(OrganizationEvent::RoleRevoked { grantee, role, scope }).await;
    assert_eq!(close_code(next(&mut socket).await), Some(4403));
    let refused = world.fetch_as(&cookie, "/api/orders").await;
    assert_eq!((refused.status, refused.code()), (403, "workspace_not_allowed".to_owned()));
    let page = world.raw(world.get("/", NAVIGATION).replace(COOKIE, &cookie)).await.unwrap();
    assert!(page.status == 403 && page.body.contains("You may not open this workspace"), "{}", page.body);
    // A role that looks and does not open; then one for this workspace alone, until an instant.
    let grant = |role, scope, expires_at| OrganizationEvent::RoleAssigned {
        grant: envforge_domain::access::Grant { grantee, role, scope, expires_at },
    };
    world.of_organization(grant(Role::Viewer, Scope::Organization, None)).await;
    assert_eq!(world.fetch_as(&cookie, "/api/orders").await.status, 403);
    let here = Scope::Workspace { project: world.project(), workspace: world.workspace() };
    let end = now().plus(Millis::new(700));
    world.of_organization(grant(Role::Developer, here, Some(end))).await;
    assert_eq!(world.fetch_as(&cookie, "/api/orders").await.status, 200);
    let mut socket = world.socket_of("/ws", &cookie).await;
    assert_eq!(close_code(next(&mut socket).await), Some(4403), "the role's end is the socket's");
    assert!(now() >= end);
    // Each refusal is held under the id of its answer, for the policy's own reason.
    let refused_late = world.fetch_as(&cookie, "/api/orders").await;
    assert_eq!(refused_late.code(), "workspace_not_allowed");
    let drained = world.denials.drain();
    let held: BTreeMap<_, _> =
        drained.iter().flat_map(|(_, kinds)| kinds).map(|kind| (kind.code.as_str(), kind)).collect();
    let named = |code: &str| held[code].requests.iter().map(|request| request.request.to_string()).collect::<Vec<_>>();
    assert!(named("role_missing").contains(&refused.header("envforge-request").to_owned()), "{held:?}");
    assert!(page.body.contains(page.header("envforge-request")), "{}", page.body);
    assert_eq!(named("grant_expired"), [refused_late.header("envforge-request")]);
    assert!(held["role_missing"].requests.iter().all(|request| request.position > Position::START));
    assert_eq!(held["role_missing"].action, "workspace.open");
}

#[tokio::test]
async fn the_policys_session_length_counts_from_signing_in() {
    let (world, app) = (world().await, App::start().await);
    world.ready(app.address).await;
    let cookie = world.enter("/").await;
    let member = |world: &World| world.hot.gateway.member(&TokenDigest::of(cookie.as_bytes())).unwrap();
    assert!(member(&world).ends_at > now().plus(Millis::from_hours(7)));
    let policy = envforge_domain::organization::OrganizationPolicy {
        session_lifetime_max: Millis::from_minutes(15),
        ..Default::default()
    };
    world.of_organization(OrganizationEvent::PolicyChanged { policy }).await;
    assert!(member(&world).ends_at <= now().plus(Millis::from_minutes(15)));
    assert_eq!(world.fetch_as(&cookie, "/api/orders").await.status, 200);
    let other = envforge_domain::organization::OrganizationPolicy {
        identity_providers: ["https://id.test/".to_owned()].into(),
        ..Default::default()
    };
    let mut socket = world.socket_of("/ws", &cookie).await;
    world.of_organization(OrganizationEvent::PolicyChanged { policy: other }).await;
    assert_eq!(close_code(next(&mut socket).await), Some(4403), "a provider that is not allowed any more");
}

#[tokio::test]
async fn a_member_wakes_what_sleeps_in_their_own_name() {
    let (world, app) = (world().await, App::start().await);
    let cookie = world.enter("/").await;
    let page = world.raw(world.get("/", NAVIGATION).replace(COOKIE, &cookie)).await.unwrap();
    assert!(page.status == 202 && page.body.contains("Starting the app"), "{}", page.body);
    let held = tokio::spawn({
        let request = world.get("/api/orders", "Sec-Fetch-Mode: cors\r\n").replace(COOKIE, &cookie);
        let mut client = world.client().await;
        async move {
            client.send(request).await;
            client.answer().await.unwrap()
        }
    });
    world.woken().await;
    world.ready(app.address).await;
    assert_eq!(held.await.unwrap().status, 200);
    let stream = StreamId::runtime(world.org(), world.workspace());
    let commits = world.log.read_stream(&stream, Position::START, 100).await.unwrap();
    let causes: Vec<_> = commits
        .iter()
        .flat_map(|recorded| &recorded.commit.events)
        .filter_map(|event| match event {
            Event::Runtime(RuntimeEvent::WakeRequested { cause, .. }) => Some(cause.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(causes, [WakeCause::Person(ada())]);
}

#[tokio::test]
async fn a_members_session_is_bound_to_its_host_and_guarded_like_a_reviewers() {
    let (world, app) = (world().await, App::start().await);
    world.ready(app.address).await;
    let cookie = world.enter("/").await;
    let on_other_host = world
        .get("/", "Sec-Fetch-Mode: cors\r\n")
        .replace(COOKIE, &cookie)
        .replace(LABEL, "backend--signed-links--acme");
    assert_eq!(world.raw(on_other_host).await.unwrap().code(), "access_required");
    for (more, code) in [
        ("Origin: http://evil.test\r\nSec-Fetch-Mode: cors\r\n", "foreign_origin"),
        ("Sec-Fetch-Site: same-site\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\n", "foreign_site"),
    ] {
        let answer = world.raw(world.get("/api/orders", more).replace(COOKIE, &cookie)).await.unwrap();
        assert_eq!(answer.code(), code, "{more}");
    }
    let twice = world.get("/api/orders", &format!("Cookie: envforge_session={cookie}\r\nSec-Fetch-Mode: cors\r\n"));
    assert_eq!(world.raw(twice.replace(COOKIE, &cookie)).await.unwrap().code(), "duplicate_session");
    // The end of a link is nothing to a member, and Tailscale-only is.
    let mut socket = world.socket_of("/ws", &cookie).await;
    world.revoke().await;
    socket.send(Message::text("still here")).await.unwrap();
    assert_eq!(next(&mut socket).await, Some(Message::text("still here")));
    world.access_mode(AccessMode::TailscaleOnly).await;
    assert_eq!(close_code(next(&mut socket).await), Some(4403));
    assert_eq!(world.fetch_as(&cookie, "/api/orders").await.code(), "access_required");
    until("nothing is open", || world.activity.of(world.workspace()).is_none_or(|seen| seen.open_sockets == 0)).await;
}
