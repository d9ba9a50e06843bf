//! Who may do what as the log says it, and how that ends.
#![allow(clippy::unwrap_used)]

use envforge_domain::access::{Denial, Role, Scope};
use envforge_domain::commit::{Component, StreamId};
use envforge_domain::host::Capacity;
use envforge_domain::time::Millis;
use envforge_domain::user::{EmailAddress, SessionEnd};

use super::*;
use crate::given::*;

const LINK_VISIT: Action = Action::AppForward;

impl Story {
    fn rights(&self) -> &AuthorizationView {
        &self.hot.authorization
    }

    /// What the policy says to a person with the session of their number.
    fn ask(&self, who: u128, action: Action, now: UnixMillis) -> Result<(), Denial> {
        self.ask_about(Actor::User(user(who)), Some(session(who)), action, on_project(1), Surface::Api, now)
    }

    fn ask_visitor(&self, now: UnixMillis) -> Result<(), Denial> {
        let actor = Actor::LinkVisitor { link: link(1), session: Some(session(1)) };
        let resource = Resource::Workspace { org: org(1), project: project(1), workspace: workspace(1) };
        self.ask_about(actor, Some(session(1)), LINK_VISIT, resource, Surface::Gateway, now)
    }

    fn ask_about(
        &self,
        actor: Actor,
        session: Option<SessionId>,
        action: Action,
        resource: Resource,
        surface: Surface,
        now: UnixMillis,
    ) -> Result<(), Denial> {
        let facts = self.rights().facts(&actor, session, resource.org(), now);
        authorize(&facts, &Request { actor, action, resource, surface, now }).map(|_| ())
    }
}

fn on_project(of: u128) -> Resource {
    Resource::Project { org: org(of), project: project(1) }
}

const EDIT: Action = Action::ProjectEdit;
const READ: Action = Action::ProjectRead;

#[test]
fn people_may_what_their_roles_allow_where_they_hold_them() {
    let story = Story::new();
    assert_eq!(story.ask(OWNER, EDIT, NOW), Ok(()));
    assert_eq!(story.ask(DEVELOPER, READ, NOW), Ok(()));
    assert_eq!(story.ask(DEVELOPER, EDIT, NOW), Err(Denial::Role { action: EDIT }));
    assert_eq!(story.ask(77, READ, NOW), Err(Denial::NotAMember));
    let elsewhere = Resource::Project { org: org(1), project: project(2) };
    let actor = Actor::User(user(DEVELOPER));
    let asked = story.ask_about(actor, Some(session(DEVELOPER)), READ, elsewhere, Surface::Api, NOW);
    assert_eq!(asked, Err(Denial::Role { action: READ }));
}

#[test]
fn a_revoked_role_is_gone_with_its_commit() {
    let mut story = Story::new();
    story.in_organization(OrganizationEvent::RoleRevoked {
        grantee: Grantee::User(user(DEVELOPER)),
        role: Role::Developer,
        scope: Scope::Project(project(1)),
    });
    assert_eq!(story.ask(DEVELOPER, READ, NOW), Err(Denial::Role { action: READ }));
    assert!(story.rights().grants(org(1), user(DEVELOPER), NOW).is_empty());
}

#[test]
fn a_role_ends_at_its_time_without_any_event() {
    let mut story = Story::new();
    let end = NOW.plus(Millis::from_minutes(5));
    story.grant(role(DEVELOPER, Role::Developer, Scope::Project(project(1)), Some(end)));
    assert_eq!(story.ask(DEVELOPER, READ, end.minus(Millis::new(1))), Ok(()));
    assert_eq!(story.ask(DEVELOPER, READ, end), Err(Denial::GrantExpired { action: READ }));
    assert_eq!(story.rights().grants(org(1), user(DEVELOPER), end), []);
    // The new end took the place of the old, endless one: one grant, not two.
    assert_eq!(story.rights().grants(org(1), user(DEVELOPER), NOW).len(), 1);
}

#[test]
fn a_session_ends_by_its_verb_by_its_time_and_with_the_account() {
    let gone = Err(Denial::SessionEnded);
    let mut story = Story::new();
    assert_eq!(story.ask(DEVELOPER, READ, LATER), gone);
    story.of_user(DEVELOPER, UserEvent::SessionEnded { session: session(DEVELOPER), reason: SessionEnd::LoggedOut });
    assert_eq!(story.ask(DEVELOPER, READ, NOW), gone);
    assert!(!story.rights().session_live(user(DEVELOPER), session(DEVELOPER), NOW));
    assert!(story.rights().session_live(user(OWNER), session(OWNER), NOW));
    let no_session = story.ask_about(Actor::User(user(OWNER)), None, READ, on_project(1), Surface::Api, NOW);
    assert_eq!(no_session, gone);
    story.of_user(OWNER, UserEvent::Deactivated);
    assert_eq!(story.ask(OWNER, READ, NOW), Err(Denial::Deactivated));
    assert!(!story.rights().session_live(user(OWNER), session(OWNER), NOW));
}

#[test]
fn whoever_is_removed_and_comes_back_signs_in_anew_without_the_old_roles() {
    let mut story = Story::new();
    story.in_organization(OrganizationEvent::MemberRemoved { user: user(DEVELOPER) });
    assert_eq!(story.ask(DEVELOPER, READ, NOW), Err(Denial::NotAMember));
    assert!(!story.rights().session_live(user(DEVELOPER), session(DEVELOPER), NOW));
    story.in_organization(OrganizationEvent::MemberAdded { user: user(DEVELOPER) });
    assert_eq!(story.ask(DEVELOPER, READ, NOW), Err(Denial::SessionEnded));
    story.of_user(DEVELOPER, UserEvent::session_opened(session(50), opened()));
    let actor = Actor::User(user(DEVELOPER));
    let asked = story.ask_about(actor, Some(session(50)), READ, on_project(1), Surface::Api, NOW);
    assert_eq!(asked, Err(Denial::Role { action: READ }));
}

#[test]
fn a_person_of_one_organization_is_nobody_in_another() {
    let mut story = Story::new();
    story.organization(2, "globex");
    // Even where the other organization names them a member: their sessions are of their own one.
    story.append(StreamId::organization(org(2)), vec![OrganizationEvent::MemberAdded { user: user(OWNER) }.into()]);
    let actor = Actor::User(user(OWNER));
    let asked = story.ask_about(actor, Some(session(OWNER)), READ, on_project(2), Surface::Api, NOW);
    assert_eq!(asked, Err(Denial::NotAMember));
}

#[test]
fn the_first_user_of_a_subject_keeps_it() {
    let mut story = Story::new();
    story.organization(2, "globex");
    let thief = UserEvent::Created {
        user: user(90),
        issuer: "local".to_owned(),
        subject: user(OWNER).to_string(),
        email: EmailAddress::parse("thief@example.com").unwrap(),
        name: "Thief".to_owned(),
    };
    story.append(StreamId::user(org(2), user(90)), vec![thief.into()]);
    let found = story.rights().user_by_subject("local", &user(OWNER).to_string());
    assert_eq!(found, Some((org(1), user(OWNER))));
    assert_eq!(story.rights().user_by_subject("elsewhere", &user(OWNER).to_string()), None);
}

#[test]
fn a_link_visitor_comes_in_until_the_link_its_workspace_or_its_issuer_say_no() {
    let ended = Err(Denial::LinkEnded);
    assert_eq!(Story::new().ask_visitor(NOW), Ok(()));
    assert_eq!(Story::new().ask_visitor(LATER), ended);
    let endings: [fn(&mut Story); 6] = [
        |story| story.on_link(1, DevLinkEvent::Revoked { reason: None }),
        |story| story.on_link(1, DevLinkEvent::Expired),
        |story| story.on_workspace(1, WorkspaceEvent::Archived),
        |story| {
            let access_mode = AccessMode::TailscaleOnly;
            story.on_workspace(1, WorkspaceEvent::AccessModeChanged { access_mode });
        },
        |story| story.in_organization(OrganizationEvent::MemberRemoved { user: user(DEVELOPER) }),
        |story| story.of_user(DEVELOPER, UserEvent::Deactivated),
    ];
    for end in endings {
        let mut story = Story::new();
        end(&mut story);
        assert_eq!(story.ask_visitor(NOW), ended, "after {:?}", story.history.last().unwrap().commit.events);
    }
    let mut story = Story::new();
    story.grant(role(DEVELOPER, Role::Developer, Scope::Project(project(1)), Some(NOW.plus(Millis::new(9)))));
    assert_eq!((story.ask_visitor(NOW), story.ask_visitor(NOW.plus(Millis::new(9)))), (Ok(()), ended));
}

#[test]
fn an_agent_acts_for_the_organization_of_its_host_until_it_is_retired() {
    let mut story = Story::new();
    story.host(1, 5, Capacity { cpu_millicores: 1, memory_mib: 1 });
    let ask = |story: &Story, of: u128| {
        let resource = Resource::Workspace { org: org(of), project: project(1), workspace: workspace(1) };
        story.ask_about(Actor::Agent(host(5)), None, Action::RuntimeReport, resource, Surface::Agent, NOW)
    };
    assert_eq!(ask(&story, 1), Ok(()));
    assert_eq!(ask(&story, 2), Err(Denial::OtherOrganization));
    story.on_host(1, 5, HostEvent::Retired);
    assert_eq!(ask(&story, 1), Err(Denial::NotAMember));
}

#[test]
fn facts_say_up_to_where_they_reach() {
    let story = Story::new();
    let facts = story.rights().facts(&Actor::System(Component::Timer), None, org(1), NOW);
    assert_eq!(facts.position.get(), story.history.len() as u64);
}

/// A decision is a few look-ups, however many grants there are: it touches those of one person.
#[test]
fn a_hundred_thousand_grants_of_others_are_no_part_of_a_decision() {
    let mut story = Story::new();
    for number in 0..100_000_u128 {
        let grant = role(1_000 + number, Role::Developer, Scope::Project(project(number % 100)), None);
        story.rights().inner.write().apply_organization(org(1), &OrganizationEvent::RoleAssigned { grant });
    }
    let facts = story.rights().facts(&Actor::User(user(DEVELOPER)), Some(session(DEVELOPER)), org(1), NOW);
    let ActorFacts::Member { grants, .. } = facts.actor else { panic!("{facts:?}") };
    assert_eq!(grants.len(), 1);
    story.in_organization(OrganizationEvent::MemberRemoved { user: user(DEVELOPER) });
    assert_eq!(story.ask(DEVELOPER, READ, NOW), Err(Denial::NotAMember));
}

/// As when the commit was on its way while the role was taken.
#[test]
fn a_link_issued_without_the_right_to_it_is_closed() {
    let mut story = Story::empty();
    story.organization(1, "acme");
    story.person(DEVELOPER);
    story.in_organization(OrganizationEvent::MemberAdded { user: user(DEVELOPER) });
    story.project(1);
    story.workspace(1, "signed-links");
    story.link(1, DEVELOPER);
    story.visit(1, 1);
    assert_eq!(story.ask_visitor(NOW), Err(Denial::LinkEnded));
    assert_ne!(story.hot.gateway.link(link(1)).unwrap().phase, crate::gateway_view::LinkPhase::Active);
    // It is like any link whose issuer has lost the right: with the right it opens.
    story.grant(role(DEVELOPER, Role::Developer, Scope::Project(project(1)), None));
    assert_eq!(story.ask_visitor(NOW), Ok(()));
}
