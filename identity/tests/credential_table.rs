//! What the credential table promises, on both databases by one list.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr};

use envforge_domain::commit::Surface;
use envforge_domain::ids::{OrgId, ServiceTokenId, SessionId, UserId};
use envforge_domain::secret::Secret;
use envforge_domain::session::OpenSession;
use envforge_domain::time::{Millis, UnixMillis};
use envforge_domain::user::EmailAddress;
use envforge_identity::credentials::{Account, Credentials, InvitationKey, ServiceTokenKey};
use envforge_identity::key_ring::SigningKeys;
use envforge_identity::self_hosted::{AccountError, LoginAttempt, LoginError, PasswordChange};
use envforge_identity::sessions::{RefreshError, SESSION_LIFETIME};
use envforge_identity::sign_in::{Config, Identity};
use envforge_identity::tokens::{Description, Session};
use envforge_testkit::{Postgres, PostgresDatabase};
use uuid::Uuid;

const NOW: UnixMillis = UnixMillis::new(1_795_000_000_000);
const PASSWORD: &str = "plum kite engine 7";

#[derive(Clone, Copy)]
enum Kind {
    Sqlite,
    Postgres,
}

/// A fresh table, gone with the house.
struct House {
    identity: Identity,
    postgres: Option<PostgresDatabase>,
    directory: tempfile::TempDir,
}

impl House {
    async fn new(kind: Kind) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let postgres = match kind {
            Kind::Sqlite => None,
            Kind::Postgres => Some(tokio::task::spawn_blocking(Postgres::shared).await.unwrap()),
        };
        let credentials = credentials(&postgres, &directory).await;
        Self { identity: identity(credentials, &directory), postgres, directory }
    }

    /// Another process on the same table and key.
    async fn another(&self) -> Identity {
        identity(credentials(&self.postgres, &self.directory).await, &self.directory)
    }
}

async fn credentials(postgres: &Option<PostgresDatabase>, directory: &tempfile::TempDir) -> Credentials {
    match postgres {
        None => Credentials::open_sqlite(&directory.path().join("credentials.sqlite")).await.unwrap(),
        Some(database) => Credentials::connect_postgres(database.database_url()).await.unwrap(),
    }
}

fn identity(credentials: Credentials, directory: &tempfile::TempDir) -> Identity {
    let config = Config {
        issuer: "https://envforge.test".into(),
        audience: "https://api.envforge.test".into(),
        keys: SigningKeys::Hs256 { key_file: directory.path().join("access.key") },
        bcrypt_cost: 4,
        hash_workers: 2,
        hash_waiting_max: 64,
    };
    Identity::open(config, credentials).unwrap()
}

fn account(number: u128, email: &str) -> Account {
    Account {
        user: UserId::from_uuid(Uuid::from_u128(number)),
        org: OrgId::from_uuid(Uuid::from_u128(100)),
        email: EmailAddress::parse(email).unwrap(),
    }
}

fn secret(text: &str) -> Secret {
    Secret::new(text.to_owned())
}

fn session(number: u128) -> Session {
    let Account { user, org, .. } = account(1, "ada@acme.test");
    let session = SessionId::from_uuid(Uuid::from_u128(number));
    Session { user, org, session, expires_at: NOW.plus(SESSION_LIFETIME) }
}

fn opened() -> OpenSession {
    OpenSession::of_local_account(Surface::Cli, NOW, NOW.plus(SESSION_LIFETIME))
}

async fn login(identity: &Identity, email: &str, password: &str) -> Result<Account, LoginError> {
    login_from(Ipv4Addr::LOCALHOST, identity, email, password, NOW).await
}

async fn login_from(
    address: Ipv4Addr,
    identity: &Identity,
    email: &str,
    password: &str,
    now: UnixMillis,
) -> Result<Account, LoginError> {
    let attempt = LoginAttempt { email: email.into(), password: secret(password), address: IpAddr::V4(address) };
    identity.self_hosted().login(attempt, now).await
}

/// How long one has to wait for another attempt. `None`: it was looked at, and was wrong.
fn wait(tried: &Result<Account, LoginError>) -> Option<Millis> {
    match tried {
        Err(LoginError::WrongCredentials { .. }) => None,
        Err(LoginError::LockedOut(locked)) => Some(locked.retry_after),
        other => panic!("{other:?}"),
    }
}

async fn an_account_is_found_by_its_address_by_every_process(kind: Kind) {
    let house = House::new(kind).await;
    assert!(house.identity.self_hosted().credentials().is_empty().await.unwrap());
    let ada = account(1, "Ada@acme.test");
    house.identity.self_hosted().create_account(&ada, secret(PASSWORD), NOW).await.unwrap();
    let other = house.another().await;
    assert_eq!(login(&other, "ADA@acme.test", PASSWORD).await.unwrap(), ada);
    assert_eq!(other.self_hosted().credentials().account_of(ada.user).await.unwrap(), Some(ada.clone()));
    assert_eq!(other.self_hosted().credentials().account_by_address(&ada.email).await.unwrap(), Some(ada));
    assert!(!other.self_hosted().credentials().is_empty().await.unwrap());
}

async fn an_address_and_a_user_have_one_account_however_many_ask_at_once(kind: Kind) {
    let house = House::new(kind).await;
    let accounts: Vec<_> = (1..=6).map(|number| account(number, "ada@acme.test")).collect();
    let created =
        accounts.iter().map(|account| house.identity.self_hosted().create_account(account, secret(PASSWORD), NOW));
    let created = futures_util::future::join_all(created).await;
    assert_eq!(created.iter().filter(|created| created.is_ok()).count(), 1);
    assert!(created.iter().all(|created| matches!(created, Ok(()) | Err(AccountError::Exists))));
    let winner = login(&house.identity, "ada@acme.test", PASSWORD).await.unwrap();
    let again = Account { email: EmailAddress::parse("other@acme.test").unwrap(), ..winner };
    let again = house.identity.self_hosted().create_account(&again, secret(PASSWORD), NOW).await;
    assert!(matches!(again, Err(AccountError::Exists)));
}

async fn a_refresh_token_presented_to_two_processes_at_once_works_in_one(kind: Kind) {
    let house = House::new(kind).await;
    let other = house.another().await;
    for number in 1..=8 {
        let tokens =
            house.identity.sessions().open(&session(number), &opened(), &Description::default(), NOW).await.unwrap();
        let (one, two) = tokio::join!(
            house.identity.sessions().refresh(&tokens.refresh, NOW),
            other.sessions().refresh(&tokens.refresh, NOW)
        );
        assert_eq!([one.is_ok(), two.is_ok()].into_iter().filter(|ok| *ok).count(), 1);
        let (winner, loser) = if let Ok(winner) = one { (winner, two) } else { (two.unwrap(), one) };
        assert!(matches!(loser, Err(RefreshError::Reused { session: ended, .. }) if ended == session(number).session));
        assert!(
            matches!(other.sessions().refresh(&winner.refresh, NOW).await, Err(RefreshError::Revoked { .. })),
            "the family is revoked"
        );
    }
}

async fn a_removed_account_can_neither_sign_in_nor_refresh(kind: Kind) {
    let house = House::new(kind).await;
    let ada = account(1, "ada@acme.test");
    house.identity.self_hosted().create_account(&ada, secret(PASSWORD), NOW).await.unwrap();
    let tokens = house.identity.sessions().open(&session(7), &opened(), &Description::default(), NOW).await.unwrap();
    house.identity.self_hosted().credentials().remove_account(ada.user).await.unwrap();
    assert!(matches!(
        login(&house.identity, "ada@acme.test", PASSWORD).await,
        Err(LoginError::WrongCredentials { .. })
    ));
    assert!(matches!(house.identity.sessions().refresh(&tokens.refresh, NOW).await, Err(RefreshError::Invalid)));
    house.identity.self_hosted().create_account(&account(2, "ada@acme.test"), secret(PASSWORD), NOW).await.unwrap();
}

async fn revoking_a_user_leaves_no_session_and_sweeping_no_old_token(kind: Kind) {
    let house = House::new(kind).await;
    let mut tokens = Vec::new();
    for number in 1..=3 {
        tokens.push(
            house
                .identity
                .sessions()
                .open(&session(number), &opened(), &Description::default(), NOW)
                .await
                .unwrap()
                .refresh,
        );
    }
    house.identity.sessions().revoke_session(session(1).session, NOW).await.unwrap();
    assert!(matches!(house.identity.sessions().refresh(&tokens[0], NOW).await, Err(RefreshError::Revoked { .. })));
    house.identity.sessions().refresh(&tokens[1], NOW).await.unwrap();
    house.identity.sessions().revoke_user(session(1).user, NOW).await.unwrap();
    assert!(matches!(house.identity.sessions().refresh(&tokens[2], NOW).await, Err(RefreshError::Revoked { .. })));
    let end = NOW.plus(SESSION_LIFETIME);
    assert_eq!(house.identity.self_hosted().credentials().sweep(end).await.unwrap(), 0);
    assert_eq!(house.identity.self_hosted().credentials().sweep(end.plus(Millis::new(1))).await.unwrap(), 4);
}

async fn failures_are_counted_by_all_processes_together(kind: Kind) {
    let house = House::new(kind).await;
    let other = house.another().await;
    let ada = account(1, "ada@acme.test");
    house.identity.self_hosted().create_account(&ada, secret(PASSWORD), NOW).await.unwrap();
    let tried = (0..12).map(|number| {
        let identity = if number % 2 == 0 { &house.identity } else { &other };
        login(identity, "ada@acme.test", "not it")
    });
    let tried = futures_util::future::join_all(tried).await;
    let looked_at = |tried: &&Result<Account, LoginError>| matches!(tried, Err(LoginError::WrongCredentials { .. }));
    assert_eq!(tried.iter().filter(looked_at).count(), 6);
    assert!(tried.iter().all(|tried| looked_at(&tried) || matches!(tried, Err(LoginError::LockedOut(_)))));
    // Whoever is unknown is counted alike.
    for _ in 0..6 {
        assert!(matches!(login(&other, "eve@acme.test", "x").await, Err(LoginError::WrongCredentials { .. })));
    }
    assert!(matches!(login(&house.identity, "eve@acme.test", "x").await, Err(LoginError::LockedOut(_))));
}

async fn each_failure_more_doubles_the_delay_up_to_the_longest_and_quiet_forgets_them(kind: Kind) {
    let house = House::new(kind).await;
    let mut now = NOW;
    for email in ["ada@acme.test", "nobody at all"] {
        // From an address of its own each time, so that the account's rule is the one that counts.
        let mut addresses = (1..).map(|number| Ipv4Addr::from_bits(0xc633_6400 + number));
        let mut tried = async |now| {
            let address = addresses.next().unwrap();
            wait(&login_from(address, &house.identity, email, "not it", now).await)
        };
        for _ in 0..6 {
            assert_eq!(tried(now).await, None);
        }
        for delay_s in [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
            let delay = Millis::from_secs(delay_s);
            assert_eq!(tried(now).await, Some(delay), "{email}");
            now = now.plus(delay).minus(Millis::new(1));
            assert_eq!(tried(now).await, Some(Millis::new(1)), "{email} after {delay_s} s");
            now = now.plus(Millis::new(1));
            assert_eq!(tried(now).await, None, "{email} after {delay_s} s");
        }
        now = now.plus(Millis::from_hours(1));
        for _ in 0..6 {
            assert_eq!(tried(now).await, None, "{email} after an hour of quiet");
        }
        assert_eq!(tried(now).await, Some(Millis::from_secs(1)));
    }
}

/// Otherwise a guesser who is locked out could lock out anybody, and whoever is locked out their whole office.
async fn who_is_locked_out_is_counted_neither_for_the_account_nor_for_the_address(kind: Kind) {
    let house = House::new(kind).await;
    let tried = async |identity: &Identity, address: Ipv4Addr, email: &str| {
        wait(&login_from(address, identity, email, "not it", NOW).await)
    };
    let (guesser, office) = (Ipv4Addr::new(198, 51, 100, 7), Ipv4Addr::new(198, 51, 100, 8));
    for number in 0..21 {
        assert_eq!(tried(&house.identity, guesser, &format!("{number}@acme.test")).await, None);
    }
    // Each of another process, which remembers no refusal.
    for _ in 0..3 {
        assert!(tried(&house.another().await, guesser, "ada@acme.test").await.is_some());
    }
    for _ in 0..6 {
        assert_eq!(tried(&house.identity, office, "ada@acme.test").await, None);
    }
    for _ in 0..3 {
        assert!(tried(&house.another().await, office, "ada@acme.test").await.is_some());
    }
    for number in 0..15 {
        assert_eq!(tried(&house.identity, office, &format!("other{number}@acme.test")).await, None);
    }
    assert!(tried(&house.identity, office, "last@acme.test").await.is_some());
}

async fn a_password_is_changed_for_every_process_and_for_one_of_two_at_once(kind: Kind) {
    let house = House::new(kind).await;
    let other = house.another().await;
    let ada = account(1, "ada@acme.test");
    house.identity.self_hosted().create_account(&ada, secret(PASSWORD), NOW).await.unwrap();
    let tokens = house.identity.sessions().open(&session(7), &opened(), &Description::default(), NOW).await.unwrap();
    let change = |new: &str| PasswordChange {
        user: ada.user,
        present: secret(PASSWORD),
        new: secret(new),
        address: IpAddr::V4(Ipv4Addr::LOCALHOST),
    };
    let (one, two) = tokio::join!(
        house.identity.self_hosted().change_password(change("fjord lattice oak 42"), NOW),
        other.self_hosted().change_password(change("pewter kite moss 17"), NOW)
    );
    assert_eq!([one.is_ok(), two.is_ok()].into_iter().filter(|changed| *changed).count(), 1, "{one:?} {two:?}");
    let now_it_is = if one.is_ok() { "fjord lattice oak 42" } else { "pewter kite moss 17" };
    assert!(login(&other, "ada@acme.test", now_it_is).await.is_ok());
    assert!(login(&other, "ada@acme.test", PASSWORD).await.is_err());
    assert!(matches!(other.sessions().refresh(&tokens.refresh, NOW).await, Err(RefreshError::Revoked { .. })));
}

async fn an_invitations_token_is_known_to_every_process_until_it_is_replaced_or_forgotten(kind: Kind) {
    let house = House::new(kind).await;
    let other = house.another().await;
    let Account { user, org, .. } = account(3, "grace@acme.test");
    let (key, end) = (InvitationKey { user, org }, NOW.plus(Millis::from_hours(1)));
    let first = house.identity.self_hosted().invite(key, end).await.unwrap();
    assert_eq!(other.self_hosted().invitation_of(&first, NOW).await.unwrap(), Some(key));
    let second = other.self_hosted().invite(key, end).await.unwrap();
    assert_eq!(house.identity.self_hosted().invitation_of(&first, NOW).await.unwrap(), None);
    assert_eq!(house.identity.self_hosted().invitation_of(&second, end).await.unwrap(), None);
    house.identity.self_hosted().forget_invitation(user).await.unwrap();
    assert_eq!(other.self_hosted().invitation_of(&second, NOW).await.unwrap(), None);
}

async fn a_session_was_last_used_when_it_last_got_tokens(kind: Kind) {
    let house = House::new(kind).await;
    let sessions = house.identity.sessions();
    let tokens = sessions.open(&session(1), &opened(), &Description::default(), NOW).await.unwrap();
    sessions.open(&session(2), &opened(), &Description::default(), NOW).await.unwrap();
    let later = NOW.plus(Millis::from_hours(1));
    sessions.refresh(&tokens.refresh, later).await.unwrap();
    let mut uses = sessions.last_uses(session(1).user).await.unwrap();
    uses.sort_unstable();
    assert_eq!(uses, [(session(1).session, later), (session(2).session, NOW)]);
}

async fn a_service_tokens_secret_is_known_to_every_process_until_it_is_replaced_or_swept(kind: Kind) {
    let house = House::new(kind).await;
    let other = house.another().await;
    let org = OrgId::from_uuid(Uuid::from_u128(100));
    let key = |generation| ServiceTokenKey { token: ServiceTokenId::from_uuid(Uuid::from_u128(7)), org, generation };
    let (one, two) = (house.identity.service_tokens(), other.service_tokens());
    let end = NOW.plus(Millis::from_hours(1));
    let first = one.issue(key(1), end).await.unwrap();
    let second = two.issue(key(2), end.plus(Millis::from_hours(1))).await.unwrap();
    for secrets in [one, two] {
        assert_eq!(secrets.recognise(first.expose(), NOW).await.unwrap(), Some(key(1)));
        assert_eq!(secrets.recognise(second.expose(), NOW).await.unwrap(), Some(key(2)));
        assert_eq!(secrets.last_uses(org).await.unwrap(), [(key(1).token, NOW)]);
    }
    let again = two.issue(key(1), end).await.unwrap();
    assert_eq!(one.recognise(first.expose(), NOW).await.unwrap(), None);
    assert_eq!(one.recognise(again.expose(), NOW).await.unwrap(), Some(key(1)));
    house.identity.self_hosted().credentials().sweep(end.plus(Millis::new(1))).await.unwrap();
    assert_eq!(two.recognise(again.expose(), NOW).await.unwrap(), None);
    assert_eq!(two.recognise(second.expose(), NOW).await.unwrap(), Some(key(2)));
}

/// Every named promise, once on SQLite and once on PostgreSQL.
macro_rules! on_both_databases {
    ($($promise:ident)+) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $promise() {
                super::$promise(super::Kind::Sqlite).await;
            })+
        }

        mod postgres {
            $(#[tokio::test]
            async fn $promise() {
                super::$promise(super::Kind::Postgres).await;
            })+
        }
    };
}

on_both_databases! {
    an_account_is_found_by_its_address_by_every_process
    an_address_and_a_user_have_one_account_however_many_ask_at_once
    a_refresh_token_presented_to_two_processes_at_once_works_in_one
    a_removed_account_can_neither_sign_in_nor_refresh
    revoking_a_user_leaves_no_session_and_sweeping_no_old_token
    failures_are_counted_by_all_processes_together
    each_failure_more_doubles_the_delay_up_to_the_longest_and_quiet_forgets_them
    who_is_locked_out_is_counted_neither_for_the_account_nor_for_the_address
    a_password_is_changed_for_every_process_and_for_one_of_two_at_once
    an_invitations_token_is_known_to_every_process_until_it_is_replaced_or_forgotten
    a_session_was_last_used_when_it_last_got_tokens
    a_service_tokens_secret_is_known_to_every_process_until_it_is_replaced_or_swept
}
