//! What the provider's tables promise, on both databases by one list.
#![allow(clippy::unwrap_used)]

use envforge_testkit::{Postgres, PostgresDatabase};
use serde_json::json;
use uuid::Uuid;

use super::*;
use crate::oidc::{Config, Settings};

const NOW: UnixMillis = UnixMillis::new(1_795_000_000_000);
const ISSUER: &str = "https://tenant.us.auth0.com/";

#[derive(Clone, Copy)]
enum Kind {
    Sqlite,
    Postgres,
}

/// A fresh database, gone with the house.
struct House {
    credentials: Credentials,
    oidc: Oidc,
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
        let credentials = open(&postgres, &directory).await;
        Self { oidc: oidc(&credentials), credentials, postgres, directory }
    }

    /// Another process on the same database.
    async fn another(&self) -> Oidc {
        oidc(&open(&self.postgres, &self.directory).await)
    }

    /// Remembers a session of a person and answers it as one that would be ended.
    async fn session(&self, number: u128, subject: &str, provider_session: Option<&str>) -> EndedSession {
        let (session, proven) = (session(number), proven(subject, provider_session));
        self.oidc.remember_session(&session, &proven, NOW).await.unwrap();
        EndedSession { session: session.session, user: session.user, org: session.org }
    }
}

async fn open(postgres: &Option<PostgresDatabase>, directory: &tempfile::TempDir) -> Credentials {
    match postgres {
        None => Credentials::open_sqlite(&directory.path().join("credentials.sqlite")).await.unwrap(),
        Some(database) => Credentials::connect_postgres(database.database_url()).await.unwrap(),
    }
}

fn oidc(credentials: &Credentials) -> Oidc {
    let settings: Settings = serde_json::from_value(json!({
        "issuer": ISSUER, "audience": "https://api.envforge.ai", "api_url": "https://api.envforge.ai",
        "clients": { "web": { "id": "web" }, "cli": { "id": "cli" }, "gateway": { "id": "gateway" } },
        "organizations": [{ "provider_id": "org_1", "slug": "acme" }],
    }))
    .unwrap();
    Oidc::new(Config::check(settings, |_| Err(std::io::ErrorKind::NotFound.into())).unwrap(), credentials).unwrap()
}

fn session(number: u128) -> Session {
    Session {
        user: UserId::from_uuid(Uuid::from_u128(1_000 + number)),
        org: OrgId::from_uuid(Uuid::from_u128(100)),
        session: SessionId::from_uuid(Uuid::from_u128(number)),
        expires_at: NOW.plus(Millis::from_hours(8)),
    }
}

fn proven(subject: &str, provider_session: Option<&str>) -> Proven {
    Proven {
        issuer: ISSUER.to_owned(),
        subject: subject.to_owned(),
        organization: "org_1".to_owned(),
        client: Client::Web,
        provider_session: provider_session.map(str::to_owned),
        email: None,
        name: None,
        authenticated_at: NOW,
        issued_at: NOW,
        ends_at: NOW.plus(Millis::from_hours(8)),
    }
}

fn secret(text: &str) -> Secret {
    Secret::new(text.to_owned())
}

async fn a_sign_in_is_taken_up_once_and_in_time_in_the_browser_where_it_was_begun(kind: Kind) {
    let house = House::new(kind).await;
    let other = house.another().await;
    let (browser, end) = (secret("browser").digest(), NOW.plus(Millis::from_minutes(10)));
    for (state, organization) in [("one", Some("org_1".to_owned())), ("two", None)] {
        let flow = Flow {
            client: Client::Gateway,
            nonce: secret("nonce"),
            verifier: secret("verifier"),
            organization,
            return_to: ReturnTo::parse("/workspaces").unwrap(),
        };
        house.oidc.store.begin(secret(state).digest(), browser, &flow, NOW, end).await.unwrap();
    }
    let one = secret("one").digest();
    assert!(other.store.take(one, secret("another browser").digest(), NOW).await.unwrap().is_none());
    let (here, there) = tokio::join!(house.oidc.store.take(one, browser, NOW), other.store.take(one, browser, NOW));
    let taken: Vec<_> = [here.unwrap(), there.unwrap()].into_iter().flatten().collect();
    let [flow] = taken.as_slice() else { panic!("{} took it up", taken.len()) };
    assert_eq!((flow.client, flow.organization.as_deref()), (Client::Gateway, Some("org_1")));
    assert_eq!(
        (flow.nonce.expose(), flow.verifier.expose(), flow.return_to.as_str()),
        ("nonce", "verifier", "/workspaces")
    );
    assert!(other.store.take(secret("two").digest(), browser, end).await.unwrap().is_none(), "it took too long");
}

async fn a_session_that_the_provider_ends_is_found_and_no_other(kind: Kind) {
    let house = House::new(kind).await;
    let ada = house.session(1, "auth0|ada", Some("s-1")).await;
    house.session(2, "auth0|ada", Some("s-2")).await;
    house.session(3, "auth0|bob", None).await;
    let other = house.another().await;
    let ended = other.end(Some("auth0|bob"), Some("s-1"), NOW, NOW).await.unwrap();
    assert_eq!(ended, [], "that session is another person's");
    let ended = other.end(Some("auth0|ada"), Some("s-1"), NOW, NOW).await.unwrap();
    assert_eq!(ended, [ada]);
    assert!(house.oidc.has_ended(&proven("auth0|ada", Some("s-1"))).await.unwrap());
    for still_there in [proven("auth0|ada", Some("s-2")), proven("auth0|ada", None), proven("auth0|bob", None)] {
        assert!(!house.oidc.has_ended(&still_there).await.unwrap(), "{still_there:?}");
    }
    let over = NOW.plus(Millis::from_hours(8));
    assert_eq!(other.end(None, Some("s-1"), over, over).await.unwrap(), [], "it is over anyway");
    assert_eq!(other.end(None, None, NOW, NOW).await.unwrap(), [], "nobody is named");
}

async fn a_person_whom_the_provider_ends_loses_what_was_there_and_may_sign_in_again(kind: Kind) {
    let house = House::new(kind).await;
    let other = house.another().await;
    let first = house.session(1, "auth0|ada", Some("s-1")).await;
    let second = house.session(2, "auth0|ada", None).await;
    house.session(3, "auth0|bob", None).await;
    assert_eq!(other.end(Some("auth0|ada"), None, NOW, NOW).await.unwrap(), [first, second]);
    let before = proven("auth0|ada", Some("s-3"));
    assert!(house.oidc.has_ended(&before).await.unwrap());
    assert!(!house.oidc.has_ended(&Proven { issued_at: NOW.plus(Millis::new(1)), ..before.clone() }).await.unwrap());
    // An older message that comes late takes nothing of that back.
    other.end(Some("auth0|ada"), None, NOW.minus(Millis::from_minutes(10)), NOW).await.unwrap();
    assert!(house.oidc.has_ended(&before).await.unwrap());
}

async fn a_message_that_was_carried_out_is_known_to_every_process_by_its_kind(kind: Kind) {
    let house = House::new(kind).await;
    let other = house.another().await;
    assert_eq!(other.seen("logout", "m-1").await.unwrap(), Seen::Never);
    for oidc in [&house.oidc, &other] {
        oidc.mark_seen("logout", "m-1", NOW.plus(Millis::from_hours(1))).await.unwrap();
    }
    assert_eq!(other.seen("logout", "m-1").await.unwrap(), Seen::Before);
    for (kind, id) in [("logout", "m-2"), ("user", "m-1")] {
        assert_eq!(other.seen(kind, id).await.unwrap(), Seen::Never, "{kind} {id}");
    }
}

async fn a_browsers_cookie_speaks_for_its_session_as_it_was_opened(kind: Kind) {
    let house = House::new(kind).await;
    let session = session(1);
    let opened = OpenSession {
        authenticated_at: NOW.minus(Millis::from_minutes(5)),
        ..OpenSession::of_local_account(Surface::Console, NOW, session.expires_at)
    };
    house.credentials.insert_browser_session(&secret("cookie"), &session, &opened).await.unwrap();
    let other = open(&house.postgres, &house.directory).await;
    let signed_in = other.browser_session(&secret("cookie"), NOW).await.unwrap().unwrap();
    assert_eq!((signed_in.user, signed_in.org, signed_in.session), (session.user, session.org, session.session));
    assert_eq!((signed_in.surface, signed_in.client), (Surface::Console, opened.client));
    assert_eq!((signed_in.authenticated_at, signed_in.expires_at), (opened.authenticated_at, session.expires_at));
    for (cookie, now) in [("another", NOW), ("cookie", session.expires_at)] {
        assert_eq!(other.browser_session(&secret(cookie), now).await.unwrap(), None, "{cookie}");
    }
}

async fn what_is_over_is_forgotten_and_nothing_else(kind: Kind) {
    let house = House::new(kind).await;
    house.session(1, "auth0|ada", Some("s-1")).await;
    house.oidc.end(None, Some("s-9"), NOW, NOW).await.unwrap();
    house.oidc.mark_seen("logout", "m-1", NOW.plus(Millis::from_hours(1))).await.unwrap();
    let opened = OpenSession::of_local_account(Surface::Console, NOW, session(1).expires_at);
    house.credentials.insert_browser_session(&secret("cookie"), &session(1), &opened).await.unwrap();
    for (after, swept) in [(Millis::from_minutes(1), 0), (Millis::from_hours(1), 1), (Millis::from_hours(8), 2)] {
        assert_eq!(house.credentials.sweep_provider_tables(NOW.plus(after)).await.unwrap(), swept, "{after}");
    }
    assert!(house.oidc.has_ended(&proven("auth0|ada", Some("s-9"))).await.unwrap(), "endings are kept for longer");
    assert_eq!(house.credentials.sweep_provider_tables(NOW.plus(ENDING_KEPT)).await.unwrap(), 1);
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
    a_sign_in_is_taken_up_once_and_in_time_in_the_browser_where_it_was_begun
    a_session_that_the_provider_ends_is_found_and_no_other
    a_person_whom_the_provider_ends_loses_what_was_there_and_may_sign_in_again
    a_message_that_was_carried_out_is_known_to_every_process_by_its_kind
    a_browsers_cookie_speaks_for_its_session_as_it_was_opened
    what_is_over_is_forgotten_and_nothing_else
}
