//! Users and their sessions.

use envforge_domain::access::{Role, Scope};
use envforge_domain::aggregate::Aggregate;
use envforge_domain::commit::Surface;
use envforge_domain::ids::{HandoffId, SessionId};
use envforge_domain::invitation::{Invitation, InvitedRole};
use envforge_domain::limits::{COMMIT_EVENTS_MAX, HANDOFF_LIFETIME, WORKSPACE_SESSIONS_MAX};
use envforge_domain::revocation::Receipt;
use envforge_domain::secret::TokenDigest;
use envforge_domain::time::Millis;
use envforge_domain::user::*;
use envforge_domain::workspace_session::OpenWorkspace;
use proptest::prelude::*;

use crate::given::*;

fn created() -> UserEvent {
    UserEvent::Created {
        user: user(1),
        issuer: "local".to_owned(),
        subject: "1".to_owned(),
        email: EmailAddress::parse("Dana@Example.org").unwrap(),
        name: "Dana".to_owned(),
    }
}

fn deactivate() -> UserCommand {
    UserCommand::Deactivate { beyond: None, only_owner: false }
}

fn opened(now: u64) -> OpenSession {
    OpenSession::of_local_account(Surface::Cli, at(now), at(now + 1_000))
}

fn open(number: u128, now: u64) -> UserCommand {
    UserCommand::OpenSession { session: session(number), opened: opened(now), now: at(now) }
}

#[test]
fn an_address_is_kept_in_one_spelling_and_nonsense_is_refused() {
    assert_eq!(EmailAddress::parse("Dana@Example.org").unwrap().as_str(), "dana@example.org");
    for text in ["", "a", "a@", "@b", "a@evil@corp", "a b@c", "a@b@c", "a@.b", "a\n@b"] {
        assert!(EmailAddress::parse(text).is_err(), "{text}");
    }
}

#[test]
fn a_password_change_ends_every_session_in_one_commit() {
    let many = (0..SESSIONS_MAX as u128).fold(given::<User>([created()]), |given, number| given.and(open(number, 1)));
    let events = many.when(UserCommand::RecordPasswordChange).events();
    assert_eq!(events.len(), SESSIONS_MAX + 1);
    assert!(events.len() <= COMMIT_EVENTS_MAX);
}

#[test]
fn a_person_has_a_bounded_number_of_sessions_and_the_oldest_or_expired_ones_make_room() {
    // Their numbers go down: neither the id nor the order of the map tells which is the oldest.
    let full = || {
        (0..SESSIONS_MAX as u64)
            .fold(given::<User>([created()]), |given, round| given.and(open(u128::from(500 - round), 1 + round)))
    };
    let ended = |events: &[UserEvent]| -> Vec<_> {
        let end = |event: &UserEvent| match event {
            UserEvent::SessionEnded { session, reason } => Some((*session, *reason)),
            _ => None,
        };
        events.iter().filter_map(end).collect()
    };
    let events = full().when(open(1_000, 100)).events();
    assert_eq!(ended(&events), [(session(500), SessionEnd::Displaced)]);
    assert!(matches!(events.last(), Some(UserEvent::SessionOpened { .. })));
    let User::Active { sessions, .. } = full().and(open(1_000, 100)).state().clone() else { panic!() };
    assert_eq!(sessions.len(), SESSIONS_MAX);
    let events = full().when(open(1_000, 5_000)).events();
    assert!(ended(&events).iter().all(|(_, reason)| *reason == SessionEnd::Expired) && events.len() > 1);
    assert!(matches!(events.last(), Some(UserEvent::SessionOpened { .. })));
}

#[test]
fn a_deactivated_account_opens_nothing() {
    given::<User>([created(), UserEvent::Deactivated]).when(open(1, 1)).then_refused("account_deactivated");
    given::<User>([created()]).and(open(1, 1)).when(deactivate()).then([UserEvent::Deactivated]);
}

#[test]
fn nobody_deactivates_above_themselves_nor_the_last_owner() {
    let beyond = |beyond, only_owner| {
        given::<User>([created()]).and(open(1, 1)).when(UserCommand::Deactivate { beyond, only_owner })
    };
    beyond(Some(Role::Billing), false).then_refused("grant_above_yourself");
    beyond(Some(Role::Owner), true).then_refused("grant_above_yourself");
    beyond(None, true).then_refused("last_owner");
    beyond(None, false).then([UserEvent::Deactivated]);
}

#[test]
fn ending_an_unknown_session_is_no_event() {
    given::<User>([created()]).when(UserCommand::EndOwnSession { session: session(4) }).then_nothing();
    assert!(belongs::<User>(&created()));
    assert_eq!(User::KIND.token(), "user");
}

fn create() -> UserCommand {
    UserCommand::Create {
        user: user(1),
        issuer: "local".to_owned(),
        subject: "1".to_owned(),
        email: EmailAddress::parse("dana@example.org").unwrap(),
        name: "Dana".to_owned(),
    }
}

fn invitation(roles: &[(Role, Scope)], expires_at: u64) -> Invitation {
    Invitation {
        user: user(1),
        email: EmailAddress::parse("dana@example.org").unwrap(),
        roles: roles.iter().map(|(role, scope)| InvitedRole { role: *role, scope: *scope }).collect(),
        invited_by: user(2),
        expires_at: at(expires_at),
    }
}

fn invite(roles: &[(Role, Scope)], expires_at: u64, beyond: Option<Role>) -> UserCommand {
    UserCommand::Invite { invitation: invitation(roles, expires_at), beyond, now: at(0) }
}

fn accept(now: u64, beyond: Option<Role>) -> UserCommand {
    let (issuer, subject) = ("local".to_owned(), "1".to_owned());
    UserCommand::AcceptInvitation { name: "Dana".to_owned(), issuer, subject, beyond, now: at(now) }
}

const WHOLE: Scope = Scope::Organization;
const HOUR: u64 = 3_600_000;

#[test]
fn whoever_accepts_an_invitation_comes_to_be_in_the_same_commit() {
    let invited = UserEvent::Invited { invitation: invitation(&[(Role::Developer, WHOLE)], HOUR) };
    given::<User>([]).when(invite(&[(Role::Developer, WHOLE)], HOUR, None)).then([invited.clone()]);
    let created = UserEvent::Created {
        user: user(1),
        issuer: "local".to_owned(),
        subject: "1".to_owned(),
        email: EmailAddress::parse("dana@example.org").unwrap(),
        name: "Dana".to_owned(),
    };
    given::<User>([invited.clone()]).when(accept(5, None)).then([UserEvent::InvitationAccepted, created]);
    let accepted = || given::<User>([]).and(invite(&[], HOUR, None)).and(accept(5, None));
    accepted().when(accept(6, None)).then_refused("invitation_accepted");
    accepted().when(UserCommand::RevokeInvitation).then_refused("invitation_accepted");
    assert!(matches!(accepted().state(), User::Active { name, .. } if name == "Dana"));
}

#[test]
fn an_invitation_opens_nothing_once_it_expired_was_revoked_or_lost_its_ground() {
    let invited = || given::<User>([]).and(invite(&[(Role::Developer, WHOLE)], HOUR, None));
    assert_eq!(invited().when(accept(HOUR - 1, None)).events().len(), 2);
    invited().when(accept(HOUR, None)).then_refused("invitation_expired");
    invited().when(accept(5, Some(Role::Developer))).then_refused("invitation_lapsed");
    let revoked = || invited().and(UserCommand::RevokeInvitation);
    revoked().when(accept(5, None)).then_refused("invitation_revoked");
    revoked().when(UserCommand::RevokeInvitation).then_nothing();
    revoked().when(invite(&[], HOUR, None)).then_refused("user_exists");
    invited().when(open(1, 1)).then_refused("user_unknown");
}

#[test]
fn nobody_invites_above_themselves_without_end_or_with_roles_that_cannot_be() {
    let refused = |roles: &[(Role, Scope)], expires_at, beyond, code| {
        given::<User>([]).when(invite(roles, expires_at, beyond)).then_refused(code);
    };
    refused(&[(Role::Owner, WHOLE)], HOUR, Some(Role::Owner), "grant_above_yourself");
    refused(&[], 59_999, None, "invitation_lifetime_out_of_range");
    refused(&[], 24 * 30 * HOUR + 1, None, "invitation_lifetime_out_of_range");
    refused(&[(Role::Viewer, WHOLE), (Role::Viewer, WHOLE)], HOUR, None, "invitation_roles_invalid");
    refused(&[(Role::Billing, Scope::Project(project(1)))], HOUR, None, "role_org_wide_only");
    given::<User>([created()]).when(invite(&[], HOUR, None)).then_refused("user_exists");
}

#[test]
fn a_reactivated_account_has_no_session_of_before() {
    let reactivate = |beyond| UserCommand::Reactivate { beyond };
    let gone = || given::<User>([created()]).and(open(1, 1)).and(deactivate());
    gone().when(reactivate(None)).then([UserEvent::Reactivated]);
    gone().when(reactivate(Some(Role::Owner))).then_refused("grant_above_yourself");
    assert!(matches!(gone().and(reactivate(None)).state(), User::Active { sessions, .. } if sessions.is_empty()));
    given::<User>([created()]).when(reactivate(None)).then_nothing();
}

#[test]
fn an_administrator_ends_sessions_of_those_whom_their_roles_reach() {
    let revoke = |session, beyond| UserCommand::RevokeSessions { session, beyond };
    let two = || given::<User>([created()]).and(open(1, 1)).and(open(2, 1));
    let ended = |number| UserEvent::SessionEnded { session: session(number), reason: SessionEnd::Revoked };
    two().when(revoke(Some(session(1)), None)).then([ended(1)]);
    two().when(revoke(None, None)).then([ended(1), ended(2)]);
    two().when(revoke(None, Some(Role::Owner))).then_refused("grant_above_yourself");
    two().when(revoke(Some(session(9)), None)).then_nothing();
    let own = two().when(UserCommand::EndOwnSessions).events();
    assert!(own.iter().all(|event| matches!(event, UserEvent::SessionEnded { reason: SessionEnd::LoggedOut, .. })));
}

#[test]
fn a_proof_of_identity_is_of_one_open_session_and_never_gets_older() {
    let prove = |number, now| UserCommand::Reauthenticate { session: session(number), authenticated_at: at(now) };
    let opened = || given::<User>([created()]).and(open(1, 100));
    opened().when(prove(1, 200)).then([UserEvent::Reauthenticated { session: session(1), authenticated_at: at(200) }]);
    opened().and(prove(1, 200)).when(prove(1, 150)).then_nothing();
    opened().when(prove(2, 200)).then_refused("session_ended");
    let User::Active { sessions, .. } = opened().and(prove(1, 200)).state().clone() else { panic!() };
    let open = &sessions[&session(1)];
    assert_eq!((open.opened_at, open.authenticated_at, open.expires_at), (at(100), at(200), at(1_100)));
}

#[test]
fn a_name_is_changed_once_and_only_to_one_that_can_be_read() {
    let rename = |name: &str| UserCommand::ChangeProfile { name: name.to_owned() };
    given::<User>([created()]).when(rename("Dana X")).then([UserEvent::ProfileChanged { name: "Dana X".to_owned() }]);
    given::<User>([created()]).when(rename("Dana")).then_nothing();
    given::<User>([created()]).when(rename(" ")).then_refused("name_invalid");
    given::<User>([created(), UserEvent::Deactivated]).when(rename("X")).then_refused("account_deactivated");
}

#[test]
fn a_client_is_called_on_one_line() {
    assert_eq!(ClientName::parse(" envforge-cli/1 ").unwrap().as_str(), "envforge-cli/1");
    for wrong in ["", "  ", "a\nb", "a\u{2028}b", &"x".repeat(101)] {
        assert!(ClientName::parse(wrong).is_err(), "{wrong:?}");
    }
}

/// A session at a workspace's host, opened from another one by a handoff that is over 30 seconds after `now`.
fn enter(number: u128, parent: u128, handoff: u128, now: u64) -> UserCommand {
    UserCommand::OpenWorkspace(OpenWorkspace {
        session: session(number),
        parent: session(parent),
        handoff: HandoffId::from_uuid(uuid::Uuid::from_u128(handoff)),
        handoff_expires_at: at(now).plus(HANDOFF_LIFETIME),
        project: project(1),
        workspace: workspace(1),
        service: "web".parse().unwrap(),
        cookie: TokenDigest::of(&number.to_be_bytes()),
        now: at(now),
    })
}

fn workspaces_of(user: &User) -> Vec<SessionId> {
    let User::Active { workspaces, .. } = user else { return Vec::new() };
    workspaces.iter().map(|(session, _)| *session).collect()
}

#[test]
fn a_workspace_is_opened_from_an_open_session_once_a_handoff_and_ends_with_it() {
    let signed_in = || given::<User>([created()]).and(open(1, 100)).and(open(2, 100));
    let entered = || signed_in().and(enter(11, 1, 1, 200)).and(enter(12, 2, 2, 200));
    assert_eq!(workspaces_of(entered().state()), [session(11), session(12)]);
    entered().when(enter(13, 1, 1, 250)).then_refused("handoff_used");
    signed_in().when(enter(11, 3, 1, 200)).then_refused("session_ended");
    signed_in().when(enter(11, 1, 1, 1_100)).then_refused("session_ended");
    // Its own end, and that of the session from which it was opened: one event each.
    let own = UserCommand::EndOwnSession { session: session(11) };
    let ended = |number, reason| UserEvent::SessionEnded { session: session(number), reason };
    entered().when(own).then([ended(11, SessionEnd::LoggedOut)]);
    let parent = UserCommand::EndSession { session: session(1), reason: SessionEnd::LoggedOut };
    assert_eq!(workspaces_of(entered().and(parent).state()), [session(12)]);
    let all = entered().when(UserCommand::EndOwnSessions).events();
    assert_eq!(all.len(), 2, "what was opened from a session needs no event of its own: {all:?}");
    assert_eq!(workspaces_of(entered().and(UserCommand::EndOwnSessions).state()), []);
    assert_eq!(workspaces_of(entered().and(deactivate()).and(UserCommand::Reactivate { beyond: None }).state()), []);
}

#[test]
fn a_late_or_far_dated_handoff_opens_nothing() {
    let signed_in = || given::<User>([created()]).and(open(1, 100));
    let with_end = |end: u64| match enter(11, 1, 1, 200) {
        UserCommand::OpenWorkspace(asked) => {
            UserCommand::OpenWorkspace(OpenWorkspace { handoff_expires_at: at(end), ..asked })
        }
        other => other,
    };
    signed_in().when(with_end(200)).then_refused("handoff_expired");
    signed_in().when(with_end(200 + HANDOFF_LIFETIME.get() + 1)).then_refused("handoff_expired");
}

#[test]
fn the_oldest_workspace_session_makes_room_and_no_session_elsewhere_does() {
    let signed_in = given::<User>([created()]).and(open(1, 100));
    let full = (0..WORKSPACE_SESSIONS_MAX as u128)
        .fold(signed_in, |given, number| given.and(enter(1_000 - number, 1, number, 200 + number as u64)));
    let events = full.when(enter(5_000, 1, 5_000, 900)).events();
    let displaced = UserEvent::SessionEnded { session: session(1_000), reason: SessionEnd::Displaced };
    assert_eq!(events.len(), 2);
    assert_eq!(events[0], displaced);
}

proptest! {
    /// Whatever was accepted evolves, sessions stay bounded, and only reactivation brings an account back, without them.
    #[test]
    fn any_accepted_history_evolves(
        invited: bool,
        steps in prop::collection::vec((0..26u8, 0..80u128, 1..3_000u64), 1..200),
    ) {
        let receipt = Receipt { sessions: 1, took: Millis::new(1), ..Receipt::default() };
        let commands = steps.into_iter().map(|(verb, number, now)| match verb {
            0 => UserCommand::Deactivate { beyond: None, only_owner: false },
            1 => UserCommand::EndAllSessions { reason: SessionEnd::RefreshReused },
            2 => UserCommand::RecordPasswordChange,
            3 => UserCommand::EndOwnSession { session: session(number) },
            4 => UserCommand::EndSession { session: session(number), reason: SessionEnd::Revoked },
            5 => create(),
            6 => UserCommand::Reactivate { beyond: None },
            7 => UserCommand::RevokeSessions { session: (number % 2 == 0).then(|| session(number)), beyond: None },
            8 => UserCommand::Reauthenticate { session: session(number), authenticated_at: at(now) },
            9 => UserCommand::RecordRevocation { cause: SessionEnd::Revoked, receipt: receipt.clone() },
            10 => UserCommand::ChangeProfile { name: format!("Dana {number}") },
            11 => accept(now, None),
            12 => UserCommand::RevokeInvitation,
            13 => UserCommand::ChangeOwnPassword,
            14..=17 => enter(number + 100, number, number, now),
            _ => open(number, now),
        });
        let first = if invited { invite(&[(Role::Viewer, WHOLE)], HOUR, None) } else { create() };
        histories::<User>(std::iter::once(first).chain(commands), |before, after| {
            match after {
                User::Unknown => prop_assert!(false, "a user was forgotten"),
                User::Active { sessions, workspaces, .. } => {
                    prop_assert!(sessions.len() <= SESSIONS_MAX);
                    prop_assert!(workspaces.iter().count() <= WORKSPACE_SESSIONS_MAX);
                    // None outlives the session that it was opened from.
                    let stands = workspaces.iter().all(|(_, open)| {
                        sessions.get(&open.parent).is_some_and(|parent| open.expires_at <= parent.expires_at)
                    });
                    prop_assert!(stands);
                }
                User::Invited(_) | User::InvitationRevoked | User::Deactivated { .. } => {}
            }
            if let (User::Deactivated { .. } | User::Invited(_), User::Active { sessions, .. }) = (before, after) {
                prop_assert!(sessions.is_empty());
            }
            let reopened =
                matches!((before, after), (User::InvitationRevoked, User::Active { .. } | User::Invited(_)));
            prop_assert!(!reopened);
            Ok(())
        })?;
    }
}
