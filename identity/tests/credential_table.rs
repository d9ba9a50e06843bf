//! What the credential table promises, on both databases by one list.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr};

use envforge_domain::ids::{OrgId, SessionId, UserId};
use envforge_domain::secret::Secret;
use envforge_domain::time::{Millis, UnixMillis};
use envforge_domain::user::EmailAddress;
use envforge_identity::credentials::{Account, Credentials};
use envforge_identity::self_hosted::{
    AccountError, Config, LoginAttempt, LoginError, RefreshError, SESSION_LIFETIME, SelfHosted,
};
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
    identity: SelfHosted,
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
    async fn another(&self) -> SelfHosted {
        identity(credentials(&self.postgres, &self.directory).await, &self.directory)
    }
}

async fn credentials(postgres: &Option<PostgresDatabase>, directory: &tempfile::TempDir) -> Credentials {
    match postgres {
        None => Credentials::open_sqlite(&directory.path().join("credentials.sqlite")).await.unwrap(),
        Some(database) => Credentials::connect_postgres(database.database_url()).await.unwrap(),
    }
}

fn identity(credentials: Credentials, directory: &tempfile::TempDir) -> SelfHosted {
    let config = Config {
        issuer: "https://envforge.test".into(),
        audience: "https://api.envforge.test".into(),
        key_file: directory.path().join("access.key"),
        bcrypt_cost: 4,
        hash_workers: 2,
        hash_waiting_max: 64,
    };
    SelfHosted::open(config, credentials).unwrap()
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

async fn login(identity: &SelfHosted, email: &str, password: &str) -> Result<Account, LoginError> {
    let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
    identity.login(LoginAttempt { email: email.into(), password: secret(password), address }, NOW).await
}

async fn an_account_is_found_by_its_address_by_every_process(kind: Kind) {
    let house = House::new(kind).await;
    assert!(house.identity.credentials().is_empty().await.unwrap());
    let ada = account(1, "Ada@acme.test");
    house.identity.create_account(&ada, secret(PASSWORD), NOW).await.unwrap();
    let other = house.another().await;
    assert_eq!(login(&other, "ADA@acme.test", PASSWORD).await.unwrap(), ada);
    assert_eq!(other.credentials().account_of(ada.user).await.unwrap(), Some(ada.clone()));
    assert_eq!(other.credentials().account_by_address(&ada.email).await.unwrap(), Some(ada));
    assert!(!other.credentials().is_empty().await.unwrap());
}

async fn an_address_and_a_user_have_one_account_however_many_ask_at_once(kind: Kind) {
    let house = House::new(kind).await;
    let accounts: Vec<_> = (1..=6).map(|number| account(number, "ada@acme.test")).collect();
    let created = accounts.iter().map(|account| house.identity.create_account(account, secret(PASSWORD), NOW));
    let created = futures_util::future::join_all(created).await;
    assert_eq!(created.iter().filter(|created| created.is_ok()).count(), 1);
    assert!(created.iter().all(|created| matches!(created, Ok(()) | Err(AccountError::Exists))));
    let winner = login(&house.identity, "ada@acme.test", PASSWORD).await.unwrap();
    let again = Account { email: EmailAddress::parse("other@acme.test").unwrap(), ..winner };
    let again = house.identity.create_account(&again, secret(PASSWORD), NOW).await;
    assert!(matches!(again, Err(AccountError::Exists)));
}

async fn a_refresh_token_presented_to_two_processes_at_once_works_in_one(kind: Kind) {
    let house = House::new(kind).await;
    let other = house.another().await;
    for number in 1..=8 {
        let tokens = house.identity.open_session(&session(number), &Description::default(), NOW).await.unwrap();
        let (one, two) =
            tokio::join!(house.identity.refresh(&tokens.refresh, NOW), other.refresh(&tokens.refresh, NOW));
        assert_eq!([one.is_ok(), two.is_ok()].into_iter().filter(|ok| *ok).count(), 1);
        let (winner, loser) = if let Ok(winner) = one { (winner, two) } else { (two.unwrap(), one) };
        assert!(matches!(loser, Err(RefreshError::Reused { session: ended, .. }) if ended == session(number).session));
        assert!(
            matches!(other.refresh(&winner.refresh, NOW).await, Err(RefreshError::Revoked { .. })),
            "the family is revoked"
        );
    }
}

async fn a_removed_account_can_neither_sign_in_nor_refresh(kind: Kind) {
    let house = House::new(kind).await;
    let ada = account(1, "ada@acme.test");
    house.identity.create_account(&ada, secret(PASSWORD), NOW).await.unwrap();
    let tokens = house.identity.open_session(&session(7), &Description::default(), NOW).await.unwrap();
    house.identity.credentials().remove_account(ada.user).await.unwrap();
    assert!(matches!(
        login(&house.identity, "ada@acme.test", PASSWORD).await,
        Err(LoginError::WrongCredentials { .. })
    ));
    assert!(matches!(house.identity.refresh(&tokens.refresh, NOW).await, Err(RefreshError::Invalid)));
    house.identity.create_account(&account(2, "ada@acme.test"), secret(PASSWORD), NOW).await.unwrap();
}

async fn revoking_a_user_leaves_no_session_and_sweeping_no_old_token(kind: Kind) {
    let house = House::new(kind).await;
    let mut tokens = Vec::new();
    for number in 1..=3 {
        tokens.push(house.identity.open_session(&session(number), &Description::default(), NOW).await.unwrap().refresh);
    }
    house.identity.revoke_session(session(1).session, NOW).await.unwrap();
    assert!(matches!(house.identity.refresh(&tokens[0], NOW).await, Err(RefreshError::Revoked { .. })));
    house.identity.refresh(&tokens[1], NOW).await.unwrap();
    house.identity.revoke_user(session(1).user, NOW).await.unwrap();
    assert!(matches!(house.identity.refresh(&tokens[2], NOW).await, Err(RefreshError::Revoked { .. })));
    let end = NOW.plus(SESSION_LIFETIME);
    assert_eq!(house.identity.credentials().sweep(end).await.unwrap(), 0);
    assert_eq!(house.identity.credentials().sweep(end.plus(Millis::new(1))).await.unwrap(), 4);
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
}
