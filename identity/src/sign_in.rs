//! The seam between EnvForge and whoever proves people's identity: whatever the provider, a request is somebody signed in,
//! and a proof of identity becomes a session of EnvForge's own.
//!
//! Not here: proving a password (`self_hosted`), an identity provider's tokens (`oidc`), and the record of it (the log).

use envforge_domain::ids::{OrgId, UserId};
use envforge_domain::secret::Secret;
use envforge_domain::time::{Millis, UnixMillis};

use crate::clock::{Clock as _, SystemClock};
use crate::credentials::{Credentials, CredentialsError};
use crate::key_ring::{KeyRing, PublicKey, SigningKeys};
use crate::randomness::Randomness;
use crate::self_hosted::SelfHosted;
use crate::service_tokens::ServiceTokenSecrets;
use crate::sessions::{IdentityError, Sessions};
use crate::tokens::{ACCESS_LIFETIME, AccessTokens, InvalidToken, SignedIn};

/// A retired key verifies for as long as what it signed: an access token's life, and what clocks may differ.
pub const KEYS_OVERLAP: Millis = Millis::new(ACCESS_LIFETIME.get() + 60_000);

/// What the operator may choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `iss` of access tokens: this installation's own URL.
    pub issuer: String,
    /// `aud` of access tokens.
    pub audience: String,
    /// What signs access tokens; made at the first start, mode 0600.
    pub keys: SigningKeys,
    /// bcrypt's cost, 10 to 16 in production.
    pub bcrypt_cost: u32,
    /// Passwords hashed at the same time. Each keeps one core busy.
    pub hash_workers: usize,
    /// Sign-ins that may wait for a worker; the next one is answered `Busy`.
    pub hash_waiting_max: usize,
}

/// What a request presents for itself.
#[derive(Clone, Copy)]
pub enum Presented<'a> {
    /// `Authorization: Bearer …`: command line and programs.
    Bearer(&'a str),
    /// A browser's cookie: opaque, and known by its hash.
    Cookie(&'a Secret),
}

/// Why a request is nobody's.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error(transparent)]
    Token(#[from] InvalidToken),
    #[error("no session of a browser has this cookie")]
    Cookie,
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
}

/// Somebody whose identity a provider has just proven. A session is opened for them and for nobody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proven {
    pub user: UserId,
    pub org: OrgId,
    /// The provider's issuer; `local` for EnvForge's own accounts.
    pub provider: String,
    /// When the provider last asked them for proof.
    pub authenticated_at: UnixMillis,
    /// A session never outlives the provider's own.
    pub ends_by: Option<UnixMillis>,
}

/// Who somebody is, whichever provider said so.
pub struct Identity {
    sessions: Sessions,
    self_hosted: SelfHosted,
    service_tokens: ServiceTokenSecrets,
    randomness: Randomness,
}

impl Identity {
    /// Takes about as long as one sign-in, see `SelfHosted`.
    pub fn open(config: Config, credentials: Credentials) -> Result<Self, IdentityError> {
        let randomness = Randomness;
        let keys = KeyRing::open(&config.keys, KEYS_OVERLAP, SystemClock.now())?;
        let self_hosted = SelfHosted::open(&config, credentials.clone(), randomness)?;
        let service_tokens = ServiceTokenSecrets::new(credentials.clone(), randomness);
        let access = AccessTokens::new(config.issuer, config.audience, keys);
        let sessions = Sessions::new(credentials, access, randomness);
        Ok(Self { sessions, self_hosted, service_tokens, randomness })
    }

    /// Proves what a request presents. Whether the session is still live, the authorization view knows.
    pub async fn verify(&self, presented: Presented<'_>, now: UnixMillis) -> Result<SignedIn, VerifyError> {
        match presented {
            Presented::Bearer(token) => Ok(self.sessions.verify(token, now)?),
            Presented::Cookie(cookie) => {
                let signed_in = self.self_hosted.credentials().browser_session(cookie, now).await?;
                signed_in.ok_or(VerifyError::Cookie)
            }
        }
    }

    /// Tokens of sessions, the same for every provider.
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// EnvForge's own accounts.
    pub fn self_hosted(&self) -> &SelfHosted {
        &self.self_hosted
    }

    /// Secrets of service tokens.
    pub fn service_tokens(&self) -> &ServiceTokenSecrets {
        &self.service_tokens
    }

    /// The public halves of the keys that sign access tokens; none where a secret does.
    pub fn public_keys(&self, now: UnixMillis) -> Vec<PublicKey> {
        self.sessions.public_keys(now)
    }

    pub fn randomness(&self) -> Randomness {
        self.randomness
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::net::IpAddr;

    use crate::credentials::Account;
    use crate::password::WeakPassword;
    use crate::self_hosted::{AccountError, ChangeError, LoginAttempt, LoginError, PasswordChange};
    use crate::sessions::{RefreshError, SESSION_LIFETIME, SessionTokens};
    use crate::tokens::{Description, Session};
    use envforge_domain::commit::Surface;
    use envforge_domain::ids::SessionId;
    use envforge_domain::session::OpenSession;
    use envforge_domain::user::EmailAddress;
    use uuid::Uuid;

    const NOW: UnixMillis = UnixMillis::new(1_795_000_000_000);
    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const PASSWORD: &str = "plum kite engine 7";

    struct House {
        identity: Identity,
        directory: tempfile::TempDir,
    }

    fn ada() -> Account {
        Account {
            user: UserId::from_uuid(Uuid::from_u128(1)),
            org: OrgId::from_uuid(Uuid::from_u128(2)),
            email: EmailAddress::parse("Ada@Acme.test").unwrap(),
        }
    }

    fn session(number: u128) -> Session {
        let session = SessionId::from_uuid(Uuid::from_u128(number));
        Session { user: ada().user, org: ada().org, session, expires_at: NOW.plus(SESSION_LIFETIME) }
    }

    fn opened() -> OpenSession {
        OpenSession::of_local_account(Surface::Cli, NOW, NOW.plus(SESSION_LIFETIME))
    }

    fn secret(text: &str) -> Secret {
        Secret::new(text.to_owned())
    }

    async fn open(directory: &std::path::Path, cost: u32) -> Identity {
        let credentials = Credentials::open_sqlite(&directory.join("credentials.db")).await.unwrap();
        let config = Config {
            issuer: "https://envforge.test".into(),
            audience: "https://api.envforge.test".into(),
            keys: SigningKeys::Hs256 { key_file: directory.join("access.key") },
            bcrypt_cost: cost,
            hash_workers: 2,
            hash_waiting_max: 16,
        };
        Identity::open(config, credentials).unwrap()
    }

    async fn house() -> House {
        let directory = tempfile::tempdir().unwrap();
        let identity = open(directory.path(), 4).await;
        identity.self_hosted().bootstrap(ada(), Some(secret(PASSWORD)), NOW).await.unwrap();
        House { identity, directory }
    }

    impl House {
        async fn login(&self, email: &str, password: &str, now: UnixMillis) -> Result<Account, LoginError> {
            let attempt = LoginAttempt { email: email.into(), password: secret(password), address: HOME };
            self.identity.self_hosted().login(attempt, now).await
        }

        async fn session(&self, number: u128) -> (Session, SessionTokens) {
            let session = session(number);
            let tokens =
                self.identity.sessions().open(&session, &opened(), &Description::default(), NOW).await.unwrap();
            (session, tokens)
        }
    }

    #[tokio::test]
    async fn a_cookie_speaks_for_its_session_until_the_session_is_over() {
        let house = house().await;
        let (session, opened, cookie) =
            (session(1), OpenSession { surface: Surface::Console, ..opened() }, secret("a cookie"));
        let credentials = house.identity.self_hosted().credentials();
        credentials.insert_browser_session(&cookie, &session, &opened).await.unwrap();
        let signed_in = house.identity.verify(Presented::Cookie(&cookie), NOW).await.unwrap();
        assert_eq!((signed_in.user, signed_in.org, signed_in.session), (session.user, session.org, session.session));
        assert_eq!((signed_in.surface, signed_in.client), (Surface::Console, opened.client));
        assert_eq!((signed_in.authenticated_at, signed_in.expires_at), (NOW, session.expires_at));
        for (wrong, now) in [(&cookie, session.expires_at), (&secret("another cookie"), NOW)] {
            let refused = house.identity.verify(Presented::Cookie(wrong), now).await;
            assert!(matches!(refused, Err(VerifyError::Cookie)), "{refused:?}");
        }
    }

    #[tokio::test]
    async fn the_right_password_signs_in_whatever_the_case_of_the_address() {
        let house = house().await;
        assert_eq!(house.login("ADA@acme.TEST", PASSWORD, NOW).await.unwrap(), ada());
    }

    #[tokio::test]
    async fn a_wrong_password_an_unknown_address_and_nonsense_get_the_same_answer() {
        let house = house().await;
        for (email, password) in
            [("ada@acme.test", "plum kite engine 8"), ("bob@acme.test", PASSWORD), ("nonsense", PASSWORD)]
        {
            let error = house.login(email, password, NOW).await.unwrap_err();
            assert!(matches!(error, LoginError::WrongCredentials { .. }), "{email}: {error}");
        }
    }

    #[tokio::test]
    async fn guessing_locks_even_the_right_password_out_until_the_delay_is_over() {
        let house = house().await;
        for _ in 0..6 {
            assert!(matches!(
                house.login("ada@acme.test", "wrong", NOW).await,
                Err(LoginError::WrongCredentials { .. })
            ));
        }
        let Err(LoginError::LockedOut(locked)) = house.login("ada@acme.test", PASSWORD, NOW).await else {
            panic!("the seventh attempt was looked at")
        };
        assert!(house.login("ada@acme.test", PASSWORD, NOW.plus(locked.retry_after)).await.is_ok());
        assert!(house.login("ada@acme.test", PASSWORD, NOW.plus(locked.retry_after)).await.is_ok(), "success forgives");
    }

    #[tokio::test]
    async fn bootstrap_prints_a_generated_password_once_and_changes_nothing_the_second_time() {
        let directory = tempfile::tempdir().unwrap();
        let identity = open(directory.path(), 4).await;
        assert!(identity.self_hosted().credentials().is_empty().await.unwrap());
        let first = identity.self_hosted().bootstrap(ada(), None, NOW).await.unwrap();
        assert!(first.created);
        let password = first.generated_password.unwrap();
        let again = identity.self_hosted().bootstrap(ada(), Some(secret("another good one 7")), NOW).await.unwrap();
        assert!(!again.created && again.generated_password.is_none());
        let attempt = LoginAttempt { email: "ada@acme.test".into(), password, address: HOME };
        assert!(identity.self_hosted().login(attempt, NOW).await.is_ok());
    }

    #[tokio::test]
    async fn a_second_account_of_an_address_and_a_weak_password_are_refused() {
        let house = house().await;
        let bob = Account { user: UserId::from_uuid(Uuid::from_u128(3)), ..ada() };
        assert!(matches!(
            house.identity.self_hosted().create_account(&bob, secret(PASSWORD), NOW).await,
            Err(AccountError::Exists)
        ));
        let bob = Account { email: EmailAddress::parse("bob@acme.test").unwrap(), ..bob };
        assert!(matches!(
            house.identity.self_hosted().create_account(&bob, secret("password1234"), NOW).await,
            Err(AccountError::Weak(WeakPassword::Common))
        ));
    }

    #[tokio::test]
    async fn a_refresh_token_works_once_and_using_it_again_revokes_the_whole_family() {
        let house = house().await;
        let (session, tokens) = house.session(9).await;
        let (_, other) = house.session(10).await;
        let second = house.identity.sessions().refresh(&tokens.refresh, NOW).await.unwrap();
        assert_eq!(second.session, session);
        let third = house.identity.sessions().refresh(&second.refresh, NOW).await.unwrap();
        let Err(RefreshError::Reused { session: reused, .. }) =
            house.identity.sessions().refresh(&tokens.refresh, NOW).await
        else {
            panic!("a used token was accepted or not recognised")
        };
        assert_eq!(reused, session.session);
        assert!(matches!(
            house.identity.sessions().refresh(&third.refresh, NOW).await,
            Err(RefreshError::Revoked { .. })
        ));
        assert!(house.identity.sessions().refresh(&other.refresh, NOW).await.is_ok(), "another session goes on");
    }

    #[tokio::test]
    async fn a_refresh_token_that_is_only_looked_at_is_not_spent() {
        let house = house().await;
        let (session, tokens) = house.session(9).await;
        let identity = &house.identity;
        for _ in 0..3 {
            assert_eq!(identity.sessions().session_of(&tokens.refresh, NOW).await.unwrap(), session);
        }
        let next = identity.sessions().refresh(&tokens.refresh, NOW).await.unwrap().refresh;
        let end = NOW.plus(SESSION_LIFETIME);
        assert!(matches!(identity.sessions().session_of(&next, end).await, Err(RefreshError::Invalid)));
        assert!(matches!(identity.sessions().session_of(&secret("efr_nobody"), NOW).await, Err(RefreshError::Invalid)));
        // Whoever shows a used one has copied it, looked at or not.
        assert!(matches!(identity.sessions().session_of(&tokens.refresh, NOW).await, Err(RefreshError::Reused { .. })));
        assert!(
            matches!(identity.sessions().session_of(&next, NOW).await, Err(RefreshError::Revoked { session: ended, .. }) if ended == session.session)
        );
    }

    #[tokio::test]
    async fn of_many_who_present_the_same_token_at_once_exactly_one_gets_a_successor() {
        let house = house().await;
        let (_, tokens) = house.session(9).await;
        let presented = (0..8).map(|_| house.identity.sessions().refresh(&tokens.refresh, NOW));
        let answers = futures_util::future::join_all(presented).await;
        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1);
        let winner = answers.into_iter().find_map(Result::ok).unwrap();
        assert!(
            matches!(house.identity.sessions().refresh(&winner.refresh, NOW).await, Err(RefreshError::Revoked { .. })),
            "and it is revoked"
        );
    }

    #[tokio::test]
    async fn a_session_does_not_outlive_its_end_its_revocation_or_its_user() {
        let house = house().await;
        let (first, one) = house.session(9).await;
        let (_, two) = house.session(10).await;
        let (_, three) = house.session(11).await;
        let identity = &house.identity;
        identity.sessions().revoke_session(first.session, NOW).await.unwrap();
        assert!(matches!(identity.sessions().refresh(&one.refresh, NOW).await, Err(RefreshError::Revoked { .. })));
        let end = NOW.plus(SESSION_LIFETIME);
        assert!(matches!(identity.sessions().refresh(&two.refresh, end).await, Err(RefreshError::Invalid)));
        identity.sessions().revoke_user(ada().user, NOW).await.unwrap();
        assert!(matches!(identity.sessions().refresh(&three.refresh, NOW).await, Err(RefreshError::Revoked { .. })));
    }

    #[tokio::test]
    async fn accounts_sessions_and_tokens_survive_a_restart_and_a_new_cost() {
        let House { identity, directory } = house().await;
        let tokens = identity.sessions().open(&session(9), &opened(), &Description::default(), NOW).await.unwrap();
        drop(identity);
        let house = House { identity: open(directory.path(), 5).await, directory };
        let verified = house.identity.verify(Presented::Bearer(tokens.access.expose()), NOW).await;
        assert_eq!(verified.unwrap(), tokens.signed_in);
        assert!(house.identity.sessions().refresh(&tokens.refresh, NOW).await.is_ok());
        assert!(house.login("ada@acme.test", PASSWORD, NOW).await.is_ok());
        let stored = house.identity.self_hosted().credentials().account_by_email(&ada().email).await.unwrap().unwrap();
        assert!(stored.password_hash.starts_with("$2b$05$"), "hashed again with the new cost");
        assert!(house.login("ada@acme.test", PASSWORD, NOW).await.is_ok());
    }

    #[tokio::test]
    async fn the_credential_file_holds_no_password_and_no_token() {
        let house = house().await;
        let (_, tokens) = house.session(9).await;
        let secrets = [PASSWORD, tokens.refresh.expose(), tokens.access.expose()];
        for entry in std::fs::read_dir(house.directory.path()).unwrap() {
            let path = entry.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            for text in secrets {
                assert!(memchr::memmem::find(&bytes, text.as_bytes()).is_none(), "{}", path.display());
            }
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o077, 0, "{}", path.display());
        }
    }

    #[tokio::test]
    async fn expired_tokens_are_swept_and_live_ones_stay() {
        let house = house().await;
        let (_, tokens) = house.session(9).await;
        let end = NOW.plus(SESSION_LIFETIME);
        assert_eq!(house.identity.self_hosted().credentials().sweep(end).await.unwrap(), 0);
        assert!(house.identity.sessions().refresh(&tokens.refresh, NOW).await.is_ok());
        assert_eq!(house.identity.self_hosted().credentials().sweep(end.plus(Millis::new(1))).await.unwrap(), 2);
    }

    fn change(present: &str, new: &str) -> PasswordChange {
        PasswordChange { user: ada().user, present: secret(present), new: secret(new), address: HOME }
    }

    #[tokio::test]
    async fn a_changed_password_is_the_only_one_and_ends_every_refresh_token() {
        let house = house().await;
        let (_, tokens) = house.session(9).await;
        let accounts = house.identity.self_hosted();
        let another = "fjord lattice oak 42";
        let wrong = accounts.change_password(change("not it at all 1", another), NOW).await;
        assert!(matches!(wrong, Err(ChangeError::Login(LoginError::WrongCredentials { .. }))));
        let weak = accounts.change_password(change(PASSWORD, "password1234"), NOW).await;
        assert!(matches!(weak, Err(ChangeError::Weak(WeakPassword::Common))));
        let long = accounts.change_password(change(PASSWORD, &"x1".repeat(37)), NOW).await;
        assert!(matches!(long, Err(ChangeError::Weak(WeakPassword::TooLong { found: 74, .. }))));
        accounts.change_password(change(PASSWORD, another), NOW).await.unwrap();
        assert!(house.login("ada@acme.test", PASSWORD, NOW).await.is_err());
        assert!(house.login("ada@acme.test", another, NOW).await.is_ok());
        assert!(matches!(
            house.identity.sessions().refresh(&tokens.refresh, NOW).await,
            Err(RefreshError::Revoked { .. })
        ));
        // The same attempt again, as after an answer that got lost.
        accounts.change_password(change(PASSWORD, another), NOW).await.unwrap();
        assert!(house.login("ada@acme.test", another, NOW).await.is_ok());
    }

    #[tokio::test]
    async fn the_token_of_an_invitation_works_until_it_is_replaced_expired_or_forgotten() {
        let house = house().await;
        let accounts = house.identity.self_hosted();
        let key = crate::credentials::InvitationKey { user: UserId::from_uuid(Uuid::from_u128(5)), org: ada().org };
        let end = NOW.plus(Millis::from_hours(1));
        let first = accounts.invite(key, end).await.unwrap();
        assert_eq!(accounts.invitation_of(&first, NOW).await.unwrap(), Some(key));
        assert_eq!(accounts.invitation_of(&first, end).await.unwrap(), None);
        let second = accounts.invite(key, end).await.unwrap();
        assert_eq!(accounts.invitation_of(&first, NOW).await.unwrap(), None);
        assert_eq!(accounts.invitation_of(&second, NOW).await.unwrap(), Some(key));
        accounts.forget_invitation(key.user).await.unwrap();
        assert_eq!(accounts.invitation_of(&second, NOW).await.unwrap(), None);
        assert_eq!(accounts.invitation_of(&secret("efr_something else"), NOW).await.unwrap(), None);
    }
}
