//! Users and their sessions.

use envforge_domain::access::Role;
use envforge_domain::aggregate::Aggregate;
use envforge_domain::commit::Surface;
use envforge_domain::limits::COMMIT_EVENTS_MAX;
use envforge_domain::user::*;
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

fn open(number: u128, now: u64) -> UserCommand {
    UserCommand::OpenSession {
        session: session(number),
        surface: Surface::Cli,
        expires_at: at(now + 1_000),
        now: at(now),
    }
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

proptest! {
    /// Whatever was accepted evolves, sessions stay bounded, and a deactivated account stays so.
    #[test]
    fn any_accepted_history_evolves(steps in prop::collection::vec((0..20u8, 0..80u128, 1..3_000u64), 1..200)) {
        let commands = steps.into_iter().map(|(verb, number, now)| match verb {
            0 => UserCommand::Deactivate { beyond: None, only_owner: false },
            1 => UserCommand::EndAllSessions { reason: SessionEnd::RefreshReused },
            2 => UserCommand::RecordPasswordChange,
            3 => UserCommand::EndOwnSession { session: session(number) },
            4 => UserCommand::EndSession { session: session(number), reason: SessionEnd::Revoked },
            5 => create(),
            _ => open(number, now),
        });
        histories::<User>(std::iter::once(create()).chain(commands), |before, after| {
            match after {
                User::Unknown => prop_assert!(false, "a user was forgotten"),
                User::Active { sessions, .. } => prop_assert!(sessions.len() <= SESSIONS_MAX),
                User::Deactivated { .. } => {}
            }
            let revived = matches!((before, after), (User::Deactivated { .. }, User::Active { .. }));
            prop_assert!(!revived);
            Ok(())
        })?;
    }
}
