//! What the gateway sees after each kind of change, and what is ended by it.
#![allow(clippy::unwrap_used)]

use envforge_domain::access::{Role, Roles, Scope};
use envforge_domain::dev_link::RouteFamily;
use envforge_domain::host::HostEvent;
use envforge_domain::ids::HostId;
use envforge_domain::organization::OrganizationPolicy;
use envforge_domain::runtime::{Epoch, RuntimeEvent, SleepCause, WakeCause, WakeStage};
use envforge_domain::user::UserEvent;

use super::*;
use crate::given::*;

impl Story {
    fn view(&self) -> &GatewayView {
        &self.hot.gateway
    }

    fn link_view(&self) -> Arc<LinkView> {
        self.view().link(link(1)).unwrap()
    }

    fn host_of(&self, service: &str) -> Option<Arc<WorkspaceRoutes>> {
        self.view().workspace_by_label(&HostLabel::parse(&format!("{service}--signed-links--acme")).unwrap())
    }
}

const API: RouteFamilies = RouteFamilies::NONE.with(RouteFamily::Api);

/// Everything a link has open, and why it was ended.
fn ended(before: &LinkView) -> Vec<(RouteFamily, CloseReason)> {
    RouteFamily::ALL
        .into_iter()
        .filter_map(|family| {
            let reason = before.closers.reason(family);
            assert_eq!(reason.is_some(), before.closers.of(family).is_cancelled());
            reason.map(|reason| (family, reason))
        })
        .collect()
}

fn all(reason: CloseReason) -> Vec<(RouteFamily, CloseReason)> {
    RouteFamily::ALL.into_iter().map(|family| (family, reason)).collect()
}

#[test]
fn a_cookie_leads_to_its_session_link_and_host() {
    let story = Story::new();
    let found = story.view().session(&cookie(1)).unwrap();
    assert_eq!(found, SessionView { session: session(1), link: link(1), generation: Generation(1) });
    let view = story.link_view();
    assert_eq!((view.phase, view.expires_at, view.wakes_left), (LinkPhase::Active, LATER, Some(2)));
    assert_eq!(view.host.to_string(), "web--signed-links--acme");
    assert_eq!(story.host_of("web").unwrap().workspace, workspace(1));
    assert!(story.host_of("backend").is_none(), "only web services have hosts");
    assert_eq!(story.view().session(&cookie(2)), None);
    assert!(ended(&view).is_empty());
}

#[test]
fn revoking_ends_everything_open_and_says_so() {
    let mut story = Story::new();
    let before = story.link_view();
    story.on_link(1, DevLinkEvent::Revoked { reason: None });
    assert_eq!(ended(&before), all(CloseReason::Revoked));
    assert_eq!(story.link_view().phase, LinkPhase::Revoked);
    assert!(story.link_view().closers.of(RouteFamily::Web).is_cancelled());
}

#[test]
fn an_expired_link_that_is_revoked_shows_as_revoked() {
    let mut story = Story::new();
    story.on_link(1, DevLinkEvent::Expired);
    assert_eq!(story.link_view().phase, LinkPhase::Expired);
    story.on_link(1, DevLinkEvent::Revoked { reason: None });
    assert_eq!(story.link_view().phase, LinkPhase::Revoked);
}

#[test]
fn a_family_narrowed_and_widened_again_can_be_ended_again() {
    let mut story = Story::new();
    let first = story.link_view();
    story.on_link(1, DevLinkEvent::AllowlistChanged { families: RouteFamilies::ALL.minus(API) });
    assert_eq!(ended(&first), [(RouteFamily::Api, CloseReason::Narrowed)]);
    assert!(!story.link_view().families.contains(RouteFamily::Api));
    story.on_link(1, DevLinkEvent::AllowlistChanged { families: RouteFamilies::ALL });
    let second = story.link_view();
    assert!(ended(&second).is_empty());
    story.on_link(1, DevLinkEvent::Revoked { reason: None });
    assert_eq!(ended(&second), all(CloseReason::Revoked));
    assert_eq!(first.closers.reason(RouteFamily::Web), Some(CloseReason::Revoked), "what stayed open ends now");
}

#[test]
fn rotating_ends_the_old_generation_and_leaves_the_link_open() {
    let mut story = Story::new();
    let before = story.link_view();
    let (generation, expires_at) = (Generation(2), LATER.plus(Millis::from_hours(1)));
    story.on_link(1, DevLinkEvent::Rotated { generation, issued_at: NOW, expires_at });
    assert_eq!(ended(&before), all(CloseReason::Rotated));
    let after = story.link_view();
    assert_eq!((after.generation, after.phase, after.expires_at), (generation, LinkPhase::Active, expires_at));
    assert!(ended(&after).is_empty());
    assert_eq!(story.view().session(&cookie(1)).unwrap().generation, Generation(1), "which is refused");
}

#[test]
fn tailscale_only_and_archive_end_what_is_open() {
    for (event, reason) in [
        (WorkspaceEvent::AccessModeChanged { access_mode: AccessMode::TailscaleOnly }, CloseReason::TailscaleOnly),
        (WorkspaceEvent::Archived, CloseReason::Archived),
    ] {
        let mut story = Story::new();
        let before = story.link_view();
        story.on_workspace(1, event);
        assert_eq!(ended(&before), all(reason));
        let host = story.host_of("web").unwrap();
        assert!(host.archived || host.access_mode == AccessMode::TailscaleOnly);
    }
}

#[test]
fn opening_a_workspace_to_links_again_ends_nothing() {
    let mut story = Story::new();
    story.on_workspace(1, WorkspaceEvent::AccessModeChanged { access_mode: AccessMode::TailscaleOnly });
    let closed = story.link_view();
    story.on_workspace(1, WorkspaceEvent::AccessModeChanged { access_mode: AccessMode::SignedLinks });
    assert!(ended(&closed).is_empty());
    assert_eq!(story.host_of("web").unwrap().access_mode, AccessMode::SignedLinks);
}

#[test]
fn a_manifest_ends_only_what_it_routes_otherwise() {
    let mut story = Story::new();
    let before = story.link_view();
    let mut cheaper = manifest(true);
    cheaper.services[0].cpu_millicores += 1;
    story.on_workspace(1, WorkspaceEvent::ManifestChanged { manifest: cheaper });
    assert!(ended(&before).is_empty());
    story.on_workspace(1, WorkspaceEvent::ManifestChanged { manifest: manifest(false) });
    assert_eq!(ended(&before), all(CloseReason::RoutesChanged));
    let mut without_tool = manifest(false);
    without_tool.services.retain(|service| service.name.as_str() != "tool");
    assert!(story.host_of("tool").is_some());
    story.on_workspace(1, WorkspaceEvent::ManifestChanged { manifest: without_tool });
    assert!(story.host_of("tool").is_none(), "a service that is gone has no host");
}

#[test]
fn a_link_stands_on_its_issuers_role_and_comes_back_with_it() {
    let developer = |scope, end| role(DEVELOPER, Role::Developer, scope, end);
    let at_project = Scope::Project(project(1));
    let mut story = Story::new();
    let before = story.link_view();
    let grant = developer(at_project, None);
    story.in_organization(OrganizationEvent::RoleRevoked {
        grantee: grant.grantee,
        role: grant.role,
        scope: grant.scope,
    });
    assert_eq!(ended(&before), all(CloseReason::IssuerLostRight));
    assert_eq!(story.link_view().phase, LinkPhase::Revoked);
    // A role for another project, or one that may issue no links, brings nothing back.
    story.grant(developer(Scope::Project(project(2)), None));
    story.grant(role(DEVELOPER, Role::Viewer, Scope::Organization, None));
    assert_eq!(story.link_view().phase, LinkPhase::Revoked);
    story.grant(developer(at_project, Some(NOW.plus(Millis::from_minutes(30)))));
    let back = story.link_view();
    assert_eq!((back.phase, back.expires_at), (LinkPhase::Active, NOW.plus(Millis::from_minutes(30))));
    assert!(ended(&back).is_empty());
    // A shorter role ends what was admitted for longer; a longer one ends nothing.
    story.grant(developer(at_project, Some(NOW.plus(Millis::from_minutes(10)))));
    assert_eq!(ended(&back), all(CloseReason::IssuerLostRight));
    let short = story.link_view();
    story.grant(developer(at_project, None));
    assert!(ended(&short).is_empty());
    assert_eq!(story.link_view().expires_at, LATER);
}

#[test]
fn a_removed_or_deactivated_issuer_takes_the_links_along() {
    let mut story = Story::new();
    let before = story.link_view();
    story.in_organization(OrganizationEvent::MemberRemoved { user: user(DEVELOPER) });
    assert_eq!(ended(&before), all(CloseReason::IssuerLostRight));
    let mut story = Story::new();
    let before = story.link_view();
    story.of_user(OWNER, UserEvent::Deactivated);
    assert!(ended(&before).is_empty(), "somebody else's account");
    story.of_user(DEVELOPER, UserEvent::Deactivated);
    assert_eq!(ended(&before), all(CloseReason::IssuerLostRight));
    assert_eq!(story.link_view().phase, LinkPhase::Revoked);
}

#[test]
fn a_link_of_a_role_with_an_end_ends_with_it() {
    let mut story = Story::new();
    let end = NOW.plus(Millis::from_minutes(5));
    story.grant(role(DEVELOPER, Role::Developer, Scope::Project(project(1)), Some(end)));
    story.link(2, DEVELOPER);
    assert_eq!(story.view().link(link(2)).unwrap().expires_at, end);
}

#[test]
fn wakes_are_counted_down_to_none() {
    let mut story = Story::new();
    for left in [1, 0, 0] {
        story.on_link(1, DevLinkEvent::WakeSpent { epoch: Epoch(1), session: session(1) });
        assert_eq!(story.link_view().wakes_left, Some(left));
    }
}

#[test]
fn an_ended_link_is_known_for_a_week() {
    let mut story = Story::new();
    story.on_link(1, DevLinkEvent::Revoked { reason: None });
    story.now = NOW.plus(ENDED_LINKS_KEPT).minus(Millis::new(1));
    story.project(2);
    assert!(story.view().link(link(1)).is_some());
    story.now = NOW.plus(ENDED_LINKS_KEPT);
    story.project(3);
    assert!(story.view().link(link(1)).is_none());
}

#[test]
fn sessions_of_ended_links_are_swept_and_those_of_open_ones_stay() {
    let mut story = Story::new();
    story.link(2, DEVELOPER);
    let many = SWEPT_SESSIONS_MIN as u128;
    (0..many).for_each(|number| story.visit(2, 100 + number));
    // A suspended link is not an ended one: its sessions come back with its issuer's role.
    story.in_organization(OrganizationEvent::MemberRemoved { user: user(DEVELOPER) });
    assert_eq!(story.view().session_count(), SWEPT_SESSIONS_MIN + 1);
    story.on_link(2, DevLinkEvent::Revoked { reason: None });
    assert_eq!(story.view().session_count(), 1);
    assert!(story.view().session(&cookie(1)).is_some());
}

#[test]
fn a_runtime_is_ready_only_with_its_endpoints() {
    let mut story = Story::new();
    let seen = story.view().runtime(workspace(1));
    assert_eq!(*seen.borrow(), RuntimeView::default());
    let (epoch, cause) = (Epoch(1), WakeCause::Person(user(OWNER)));
    story.on_runtime(vec![RuntimeEvent::WakeRequested { epoch, workspace: workspace(1), project: project(1), cause }]);
    story.on_runtime(vec![RuntimeEvent::StageReached { epoch, stage: WakeStage::Starting }]);
    assert_eq!((seen.borrow().phase, seen.borrow().stage.clone()), (RuntimePhase::Waking, Some(WakeStage::Starting)));
    let ready =
        RuntimeEvent::Ready { epoch, commit: "0".repeat(40), services: vec![], lease_until: NOW.plus(Millis::new(1)) };
    let endpoints = vec![("web".parse().unwrap(), "127.0.0.1:4000".parse().unwrap())];
    let bound = RuntimeEvent::EndpointsBound {
        epoch,
        host: HostId::from_uuid(*host(1).as_uuid()),
        endpoints: endpoints.clone(),
    };
    story.on_runtime(vec![ready.clone()]);
    assert_eq!(seen.borrow().phase, RuntimePhase::Waking);
    story.now = NOW.plus(Millis::from_secs(7));
    story.on_runtime(vec![ready, bound]);
    assert_eq!(
        *seen.borrow(),
        RuntimeView {
            phase: RuntimePhase::Ready,
            epoch,
            stage: None,
            since: story.now,
            endpoints,
            secrets_refused: false
        }
    );
    let cause = SleepCause::Shutdown;
    story.on_runtime(vec![RuntimeEvent::SleepRequested { epoch, cause }]);
    assert!(seen.borrow().endpoints.is_empty(), "whoever goes to sleep takes nothing more");
}

#[test]
fn nobody_is_led_to_a_revoked_host_and_what_was_open_there_is_over() {
    let mut story = Story::new();
    let seen = story.view().runtime(workspace(1));
    let cause = WakeCause::Person(user(OWNER));
    let waking = |epoch| {
        let (workspace, project, cause) = (workspace(1), project(1), cause.clone());
        vec![RuntimeEvent::WakeRequested { epoch, workspace, project, cause }]
    };
    let bound = |epoch, number| {
        let (commit, lease_until) = ("0".repeat(40), NOW.plus(Millis::new(1)));
        let endpoints = vec![("web".parse().unwrap(), "127.0.0.1:4000".parse().unwrap())];
        let ready = RuntimeEvent::Ready { epoch, commit, services: vec![], lease_until };
        vec![ready, RuntimeEvent::EndpointsBound { epoch, host: host(number), endpoints }]
    };
    story.on_runtime(waking(Epoch(1)));
    story.on_runtime(bound(Epoch(1), 1));
    let before = story.link_view();
    let open = before.closers.socket_opened(RouteFamily::Web);
    story.on_host(1, 2, HostEvent::Revoked);
    assert!(seen.borrow().phase == RuntimePhase::Ready && ended(&before).is_empty(), "it is another host");
    story.on_host(1, 1, HostEvent::Revoked);
    let at = story.history.last().unwrap().position;
    assert!(seen.borrow().phase == RuntimePhase::Leaving && seen.borrow().endpoints.is_empty());
    assert_eq!(ended(&before), all(CloseReason::HostRevoked));
    let after = story.link_view();
    assert!(after.phase == LinkPhase::Active && ended(&after).is_empty(), "whoever has the link may come again");
    assert_eq!(story.view().sockets_closed_by(&[at]), None, "told, and still open");
    drop(open);
    assert_eq!(story.view().sockets_closed_by(&[at]), Some(1));
    assert_eq!(story.view().over_with(&[at]), Over { runtimes: 1, ..Over::default() });
    story.on_runtime(vec![RuntimeEvent::Lost { epoch: Epoch(1), closed_at: NOW }]);
    assert_eq!(seen.borrow().phase, RuntimePhase::Asleep);
    // What it says of a wake that it had begun leads nobody there.
    story.on_runtime(waking(Epoch(2)));
    story.on_runtime(bound(Epoch(2), 1));
    assert_eq!(seen.borrow().phase, RuntimePhase::Waking);
    story.on_runtime(bound(Epoch(2), 3));
    assert_eq!(seen.borrow().phase, RuntimePhase::Ready);
}

#[test]
fn a_failed_view_is_stale_at_once_and_ends_everything() {
    let story = Story::new();
    let before = story.link_view();
    story.view().heard(Position::new(9), Some(Instant::now()));
    story.view().fail();
    story.view().heard(Position::new(10), Some(Instant::now()));
    let freshness = story.view().freshness();
    assert!(freshness.failed && freshness.last_heard.elapsed() >= FAILED_AGE);
    assert_eq!(ended(&before), all(CloseReason::ViewsFailed));
}

fn policy(change: impl FnOnce(&mut OrganizationPolicy)) -> OrganizationEvent {
    let mut policy = OrganizationPolicy::default();
    change(&mut policy);
    OrganizationEvent::PolicyChanged { policy }
}

#[test]
fn a_policy_that_lets_links_open_less_ends_what_is_open_of_that_and_nothing_else() {
    let mut story = Story::new();
    let before = story.link_view();
    story.in_organization(policy(|policy| policy.link_families = RouteFamilies::ALL.minus(API)));
    assert_eq!(ended(&before), [(RouteFamily::Api, CloseReason::Narrowed)]);
    let narrowed = story.link_view();
    assert_eq!((narrowed.families, narrowed.phase), (RouteFamilies::ALL.minus(API), LinkPhase::Active));
    // What the link itself gives up meanwhile stays given up when the organization allows it again.
    let web = RouteFamilies::NONE.with(RouteFamily::Web);
    story.on_link(1, DevLinkEvent::AllowlistChanged { families: web.with(RouteFamily::Api) });
    assert_eq!(story.link_view().families, web);
    story.in_organization(policy(|_| {}));
    assert_eq!(story.link_view().families, web.with(RouteFamily::Api));
    // A link that is issued under a policy is held to it, whatever its issuer knew.
    story.in_organization(policy(|policy| policy.link_families = RouteFamilies::NONE));
    story.link(2, DEVELOPER);
    assert!(story.view().link(link(2)).unwrap().families.is_empty());
}

#[test]
fn a_shorter_longest_link_ends_older_ones_at_once_and_others_sooner() {
    let mut story = Story::new();
    story.now = NOW.plus(Millis::from_minutes(60));
    story.link(2, DEVELOPER);
    let (old, new) = (story.link_view(), story.view().link(link(2)).unwrap());
    story.in_organization(policy(|policy| policy.link_lifetime_max = Millis::from_minutes(30)));
    assert_eq!(ended(&old), all(CloseReason::IssuerLostRight));
    assert_eq!(ended(&new), all(CloseReason::IssuerLostRight), "what was admitted for longer");
    assert_eq!(story.link_view().expires_at, NOW.plus(Millis::from_minutes(30)), "half an hour ago");
    assert_eq!(story.view().link(link(2)).unwrap().expires_at, NOW.plus(Millis::from_minutes(90)));
    // A new share URL begins anew, and still ends with the longest link.
    let generation = Generation(2);
    story.on_link(1, DevLinkEvent::Rotated { generation, issued_at: story.now, expires_at: LATER });
    assert_eq!(story.link_view().expires_at, NOW.plus(Millis::from_minutes(90)));
    story.in_organization(policy(|_| {}));
    assert_eq!(story.link_view().expires_at, LATER);
}

#[test]
fn roles_that_may_give_no_links_any_more_take_theirs_along_and_bring_back_no_ended_one() {
    let mut story = Story::new();
    story.link(2, OWNER);
    story.link(3, DEVELOPER);
    let (of_developer, of_owner) = (story.link_view(), story.view().link(link(2)).unwrap());
    story.in_organization(policy(|policy| policy.link_issuers = Roles::of(&[Role::Owner])));
    assert_eq!(ended(&of_developer), all(CloseReason::IssuerLostRight));
    assert!(ended(&of_owner).is_empty());
    story.on_link(3, DevLinkEvent::Revoked { reason: None });
    story.in_organization(policy(|_| {}));
    assert_eq!(story.link_view().phase, LinkPhase::Active);
    assert_eq!(story.view().link(link(3)).unwrap().phase, LinkPhase::Revoked);
}

#[test]
fn a_link_stands_on_its_issuers_role_through_a_team() {
    let team = envforge_domain::ids::TeamId::from_uuid(uuid::Uuid::from_u128(1));
    let user = user(DEVELOPER);
    let grant = envforge_domain::access::Grant {
        grantee: envforge_domain::access::Grantee::Team(team),
        ..role(DEVELOPER, Role::Developer, Scope::Workspace { project: project(1), workspace: workspace(1) }, None)
    };
    let own = role(DEVELOPER, Role::Developer, Scope::Project(project(1)), None);
    let (grantee, held, scope) = (own.grantee, own.role, own.scope);
    for end in [
        OrganizationEvent::TeamMemberRemoved { team, user },
        OrganizationEvent::TeamDeleted { team },
        OrganizationEvent::RoleRevoked { grantee: grant.grantee, role: grant.role, scope: grant.scope },
        OrganizationEvent::MemberRemoved { user },
    ] {
        let mut story = Story::new();
        story.in_organization(OrganizationEvent::TeamCreated { team, slug: "platform".parse().unwrap() });
        story.in_organization(OrganizationEvent::TeamMemberAdded { team, user });
        story.grant(grant);
        story.in_organization(OrganizationEvent::RoleRevoked { grantee, role: held, scope });
        let before = story.link_view();
        assert_eq!(before.phase, LinkPhase::Active, "the team's role is enough");
        story.in_organization(end.clone());
        assert_eq!(ended(&before), all(CloseReason::IssuerLostRight), "{end:?}");
        assert_eq!(story.link_view().phase, LinkPhase::Revoked);
    }
}
