//! Self-hosted identity: accounts with passwords, sessions with refresh tokens.
//!
//! Says who somebody is. That a session was opened or ended is recorded in the log by the caller, and what the person may
//! do is decided by the access policy. Invitations, password changes and other providers stand beside this, not in it.

use std::net::IpAddr;
use std::path::PathBuf;

use envforge_domain::ids::{OrgId, SessionId, UserId};
use envforge_domain::secret::Secret;
use envforge_domain::time::{Millis, UnixMillis};
use envforge_domain::user::EmailAddress;

use crate::credentials::{Account, Credentials, CredentialsError, Looked, Presented, RefreshRecord, Stored};
use crate::key_file::{self, KeyFileError};
use crate::lockout::{LockedOut, Lockout, LockoutRule};
use crate::password::{self, HashError, PasswordHasher, WeakPassword};
use crate::randomness::{NoRandomness, Randomness};
use crate::tokens::{AccessTokens, Description, InvalidToken, MintError, Session, SignedIn};

/// How long a session lasts, however often it is refreshed (SPEC, "Identity": 30 days).
pub const SESSION_LIFETIME: Millis = Millis::from_hours(24 * 30);
/// What a refresh token begins with, so that secret scanners recognise one.
const REFRESH_PREFIX: &str = "efr_";
/// Names this provider in users' records.
pub const LOCAL_ISSUER: &str = "local";

/// What the operator may choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `iss` of access tokens: this installation's own URL.
    pub issuer: String,
    /// `aud` of access tokens.
    pub audience: String,
    /// The signing key; made at the first start, mode 0600.
    pub key_file: PathBuf,
    /// bcrypt's cost, 10 to 16 in production.
    pub bcrypt_cost: u32,
    /// Passwords hashed at the same time. Each keeps one core busy.
    pub hash_workers: usize,
    /// Sign-ins that may wait for a worker; the next one is answered `Busy`.
    pub hash_waiting_max: usize,
}

/// Identity could not do its work: our failure, not the caller's.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    #[error(transparent)]
    Mint(#[from] MintError),
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    #[error("password hashing failed: {0}")]
    Hash(String),
}

/// Why somebody is not signed in.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The same answer, after the same time, for an unknown address and a wrong password.
    #[error("this e-mail address and password do not belong together")]
    WrongCredentials {
        /// Whose password was tried, for the record of failed attempts; never for the answer.
        account: Option<Account>,
    },
    #[error(transparent)]
    LockedOut(#[from] LockedOut),
    #[error("too many people are signing in right now; try again in a moment")]
    Busy,
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Why a session was not refreshed.
#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    /// Unknown or expired: which one is nobody's business.
    #[error("this refresh token is not valid; sign in again")]
    Invalid,
    /// To whoever presents it the same as `Invalid`. The caller must end the session in the log where it still stands there:
    /// whoever revoked the token may have broken off before.
    #[error("this refresh token is not valid; sign in again")]
    Revoked { user: UserId, org: OrgId, session: SessionId },
    /// Somebody used it before: the family is revoked, and the caller must end the session in the log.
    #[error("this refresh token was used before; its session has ended, sign in again")]
    Reused { user: UserId, org: OrgId, session: SessionId },
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Why no account was made.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    #[error(transparent)]
    Weak(#[from] WeakPassword),
    #[error("this e-mail address or user has an account already")]
    Exists,
    #[error("too many passwords are being hashed right now; try again in a moment")]
    Busy,
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Who signs in from where.
pub struct LoginAttempt {
    pub email: String,
    pub password: Secret,
    pub address: IpAddr,
}

/// The tokens of a session that was just opened or refreshed.
pub struct SessionTokens {
    pub access: Secret,
    pub signed_in: SignedIn,
    pub refresh: Secret,
}

/// A session that was proven by its refresh token, with the next one.
pub struct Refreshed {
    pub session: Session,
    pub refresh: Secret,
}

/// The first owner's account.
pub struct Bootstrapped {
    pub account: Account,
    /// The password that was generated, to be shown once. `None` where one was given or the account existed.
    pub generated_password: Option<Secret>,
    pub created: bool,
}

/// Accounts, passwords, tokens.
pub struct SelfHosted {
    credentials: Credentials,
    hasher: PasswordHasher,
    lockout: Lockout,
    access: AccessTokens,
    randomness: Randomness,
}

impl SelfHosted {
    /// Takes about as long as one sign-in: the decoy for unknown accounts is hashed with the configured cost.
    pub fn open(config: Config, credentials: Credentials) -> Result<Self, IdentityError> {
        let randomness = Randomness;
        let key = key_file::open_or_create(&config.key_file, randomness)?;
        Ok(Self {
            credentials,
            hasher: PasswordHasher::new(config.bcrypt_cost, config.hash_workers, config.hash_waiting_max)
                .map_err(|error| IdentityError::Hash(error.to_string()))?,
            lockout: Lockout::new(LockoutRule::ACCOUNT, LockoutRule::ADDRESS),
            access: AccessTokens::new(config.issuer, config.audience, &key),
            randomness,
        })
    }

    pub fn randomness(&self) -> Randomness {
        self.randomness
    }

    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// Proves an e-mail address and a password.
    pub async fn login(&self, attempt: LoginAttempt, now: UnixMillis) -> Result<Account, LoginError> {
        let result = self.try_login(attempt, now).await;
        let outcome = match &result {
            Ok(_) => "ok",
            Err(LoginError::WrongCredentials { .. }) => "wrong_credentials",
            Err(LoginError::LockedOut(_)) => "locked_out",
            Err(LoginError::Busy) => "busy",
            Err(LoginError::Identity(_)) => "error",
        };
        metrics::counter!("envforge_logins_total", "outcome" => outcome).increment(1);
        result
    }

    async fn try_login(&self, attempt: LoginAttempt, now: UnixMillis) -> Result<Account, LoginError> {
        let LoginAttempt { email, password, address } = attempt;
        // The place comes first: an attempt that nobody looks at must not count.
        let place = self.hasher.reserve().map_err(|_| LoginError::Busy)?;
        let parsed = EmailAddress::parse(&email).ok();
        let counted = self.lockout.begin(parsed.as_ref().map_or(email.as_str(), EmailAddress::as_str), address, now)?;
        let stored = match &parsed {
            Some(email) => match self.credentials.account_by_email(email).await {
                Ok(stored) => stored,
                Err(error) => {
                    counted.withdrawn();
                    return Err(IdentityError::from(error).into());
                }
            },
            None => None,
        };
        let hash = stored.as_ref().map(|stored| stored.password_hash.clone());
        match (place.verify(password.clone(), hash).await, stored) {
            (Ok(true), Some(stored)) => {
                counted.succeeded();
                self.refresh_hash(&stored.account, &stored.password_hash, password).await;
                Ok(stored.account)
            }
            (Ok(_), stored) => Err(LoginError::WrongCredentials { account: stored.map(|stored| stored.account) }),
            (Err(error), _) => {
                counted.withdrawn();
                Err(IdentityError::Hash(error.to_string()).into())
            }
        }
    }

    /// Hashes again where the cost has changed since. A failure changes nothing for the person who signs in.
    async fn refresh_hash(&self, account: &Account, old: &str, password: Secret) {
        if !self.hasher.is_outdated(old) {
            return;
        }
        let Ok(place) = self.hasher.reserve() else { return };
        let replaced = match place.hash(password).await {
            Ok(new) => self.credentials.replace_hash(account.user, old, &new).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = replaced {
            tracing::warn!(user = %account.user, error, "a password could not be hashed with the new cost");
        }
    }

    /// Tokens for a session that the log knows now. Every refresh token that follows belongs to its family.
    pub async fn open_session(
        &self,
        session: &Session,
        description: &Description,
        now: UnixMillis,
    ) -> Result<SessionTokens, IdentityError> {
        let refresh = self.randomness.token(REFRESH_PREFIX)?;
        let record = RefreshRecord {
            family: self.randomness.uuid_v7(now)?.simple().to_string(),
            session: session.session,
            user: session.user,
            org: session.org,
            expires_at: session.expires_at,
        };
        self.credentials.insert_refresh(refresh.digest(), &record, now).await?;
        let (access, signed_in) = self.mint(session, description, now)?;
        Ok(SessionTokens { access, signed_in, refresh })
    }

    /// Whose session a refresh token continues, without using the token. The caller makes sure that the session still
    /// stands in the log before `refresh`: a token is not spent on a question that nobody could answer.
    pub async fn session_of(&self, token: &Secret, now: UnixMillis) -> Result<Session, RefreshError> {
        if !token.expose().starts_with(REFRESH_PREFIX) {
            return Err(refused("invalid", RefreshError::Invalid));
        }
        match self.credentials.look_up_refresh(token.digest(), now).await.map_err(IdentityError::from)? {
            Looked::Live(RefreshRecord { session, user, org, expires_at, .. }) => {
                Ok(Session { user, org, session, expires_at })
            }
            // Presenting it tells a thief from a race as little as ever: the family is revoked.
            Looked::Used => Err(self.refresh(token, now).await.err().unwrap_or(RefreshError::Invalid)),
            Looked::Revoked(RefreshRecord { session, user, org, .. }) => {
                Err(refused("invalid", RefreshError::Revoked { user, org, session }))
            }
            Looked::Expired | Looked::Unknown => Err(refused("invalid", RefreshError::Invalid)),
        }
    }

    /// Trades a refresh token for the next one, once the caller knows that its session still stands in the log.
    pub async fn refresh(&self, token: &Secret, now: UnixMillis) -> Result<Refreshed, RefreshError> {
        if !token.expose().starts_with(REFRESH_PREFIX) {
            return Err(refused("invalid", RefreshError::Invalid));
        }
        let refresh = self.randomness.token(REFRESH_PREFIX).map_err(IdentityError::from)?;
        let presented = self
            .credentials
            .present_refresh(token.digest(), refresh.digest(), now)
            .await
            .map_err(IdentityError::from)?;
        match presented {
            Presented::Rotated(RefreshRecord { family: _, session, user, org, expires_at }) => {
                metrics::counter!("envforge_refreshes_total", "outcome" => "ok").increment(1);
                Ok(Refreshed { session: Session { user, org, session, expires_at }, refresh })
            }
            Presented::Reused(RefreshRecord { user, org, session, .. }) => {
                tracing::warn!(%user, %org, %session, "a refresh token was used twice; its family is revoked");
                Err(refused("reused", RefreshError::Reused { user, org, session }))
            }
            Presented::Revoked(RefreshRecord { user, org, session, .. }) => {
                Err(refused("invalid", RefreshError::Revoked { user, org, session }))
            }
            Presented::Expired | Presented::Unknown => Err(refused("invalid", RefreshError::Invalid)),
        }
    }

    /// An access token for a session that the caller knows to be live.
    pub fn mint(
        &self,
        session: &Session,
        description: &Description,
        now: UnixMillis,
    ) -> Result<(Secret, SignedIn), IdentityError> {
        Ok(self.access.mint(session, description, now, self.randomness)?)
    }

    /// Proves a presented access token. Whether its session is still live, the authorization view knows.
    pub fn verify(&self, token: &str, now: UnixMillis) -> Result<SignedIn, InvalidToken> {
        self.access.verify(token, now).inspect_err(|error| {
            metrics::counter!("envforge_access_tokens_refused_total", "reason" => error.code()).increment(1);
        })
    }

    /// No refresh token of this session works any more.
    pub async fn revoke_session(&self, session: SessionId, now: UnixMillis) -> Result<(), IdentityError> {
        Ok(self.credentials.revoke_session(session, now).await?)
    }

    /// No refresh token of this user works any more.
    pub async fn revoke_user(&self, user: UserId, now: UnixMillis) -> Result<(), IdentityError> {
        Ok(self.credentials.revoke_user(user, now).await?)
    }

    /// Gives a user a password to sign in with.
    pub async fn create_account(
        &self,
        account: &Account,
        password: Secret,
        now: UnixMillis,
    ) -> Result<(), AccountError> {
        password::check(&password)?;
        let hash = match self.hasher.reserve() {
            Ok(place) => place.hash(password).await,
            Err(error) => Err(error),
        };
        let hash = hash.map_err(|error| match error {
            HashError::Busy => AccountError::Busy,
            HashError::Failed(reason) => IdentityError::Hash(reason).into(),
        })?;
        match self.credentials.insert_account(account, &hash, now).await.map_err(IdentityError::from)? {
            Stored::New => Ok(()),
            Stored::Exists => Err(AccountError::Exists),
        }
    }

    /// The account of an installation's first owner. Calling it again changes nothing, so a first start that was
    /// interrupted simply starts again; a password is generated where none is given.
    pub async fn bootstrap(
        &self,
        account: Account,
        password: Option<Secret>,
        now: UnixMillis,
    ) -> Result<Bootstrapped, AccountError> {
        if let Some(existing) = self.credentials.account_of(account.user).await.map_err(IdentityError::from)? {
            return Ok(Bootstrapped { account: existing, generated_password: None, created: false });
        }
        let (password, generated_password) = match password {
            Some(given) => (given, None),
            None => {
                let generated = self.randomness.password().map_err(IdentityError::from)?;
                (generated.clone(), Some(generated))
            }
        };
        self.create_account(&account, password, now).await?;
        Ok(Bootstrapped { account, generated_password, created: true })
    }
}

fn refused(outcome: &'static str, error: RefreshError) -> RefreshError {
    metrics::counter!("envforge_refreshes_total", "outcome" => outcome).increment(1);
    error
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::credentials::Account;
    use uuid::Uuid;

    const NOW: UnixMillis = UnixMillis::new(1_795_000_000_000);
    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const PASSWORD: &str = "plum kite engine 7";

    struct House {
        identity: SelfHosted,
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

    fn secret(text: &str) -> Secret {
        Secret::new(text.to_owned())
    }

    async fn open(directory: &std::path::Path, cost: u32) -> SelfHosted {
        let credentials = Credentials::open_sqlite(&directory.join("credentials.db")).await.unwrap();
        let config = Config {
            issuer: "https://envforge.test".into(),
            audience: "https://api.envforge.test".into(),
            key_file: directory.join("access.key"),
            bcrypt_cost: cost,
            hash_workers: 2,
            hash_waiting_max: 16,
        };
        SelfHosted::open(config, credentials).unwrap()
    }

    async fn house() -> House {
        let directory = tempfile::tempdir().unwrap();
        let identity = open(directory.path(), 4).await;
        identity.bootstrap(ada(), Some(secret(PASSWORD)), NOW).await.unwrap();
        House { identity, directory }
    }

    impl House {
        async fn login(&self, email: &str, password: &str, now: UnixMillis) -> Result<Account, LoginError> {
            let attempt = LoginAttempt { email: email.into(), password: secret(password), address: HOME };
            self.identity.login(attempt, now).await
        }

        async fn session(&self, number: u128) -> (Session, SessionTokens) {
            let session = session(number);
            let tokens = self.identity.open_session(&session, &Description::default(), NOW).await.unwrap();
            (session, tokens)
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
        assert!(identity.credentials().is_empty().await.unwrap());
        let first = identity.bootstrap(ada(), None, NOW).await.unwrap();
        assert!(first.created);
        let password = first.generated_password.unwrap();
        let again = identity.bootstrap(ada(), Some(secret("another good one 7")), NOW).await.unwrap();
        assert!(!again.created && again.generated_password.is_none());
        let attempt = LoginAttempt { email: "ada@acme.test".into(), password, address: HOME };
        assert!(identity.login(attempt, NOW).await.is_ok());
    }

    #[tokio::test]
    async fn a_second_account_of_an_address_and_a_weak_password_are_refused() {
        let house = house().await;
        let bob = Account { user: UserId::from_uuid(Uuid::from_u128(3)), ..ada() };
        assert!(matches!(house.identity.create_account(&bob, secret(PASSWORD), NOW).await, Err(AccountError::Exists)));
        let bob = Account { email: EmailAddress::parse("bob@acme.test").unwrap(), ..bob };
        assert!(matches!(
            house.identity.create_account(&bob, secret("password1234"), NOW).await,
            Err(AccountError::Weak(WeakPassword::Common))
        ));
    }

    #[tokio::test]
    async fn a_refresh_token_works_once_and_using_it_again_revokes_the_whole_family() {
        let house = house().await;
        let (session, tokens) = house.session(9).await;
        let (_, other) = house.session(10).await;
        let second = house.identity.refresh(&tokens.refresh, NOW).await.unwrap();
        assert_eq!(second.session, session);
        let third = house.identity.refresh(&second.refresh, NOW).await.unwrap();
        let Err(RefreshError::Reused { session: reused, .. }) = house.identity.refresh(&tokens.refresh, NOW).await
        else {
            panic!("a used token was accepted or not recognised")
        };
        assert_eq!(reused, session.session);
        assert!(matches!(house.identity.refresh(&third.refresh, NOW).await, Err(RefreshError::Revoked { .. })));
        assert!(house.identity.refresh(&other.refresh, NOW).await.is_ok(), "another session goes on");
    }

    #[tokio::test]
    async fn a_refresh_token_that_is_only_looked_at_is_not_spent() {
        let house = house().await;
        let (session, tokens) = house.session(9).await;
        let identity = &house.identity;
        for _ in 0..3 {
            assert_eq!(identity.session_of(&tokens.refresh, NOW).await.unwrap(), session);
        }
        let next = identity.refresh(&tokens.refresh, NOW).await.unwrap().refresh;
        let end = NOW.plus(SESSION_LIFETIME);
        assert!(matches!(identity.session_of(&next, end).await, Err(RefreshError::Invalid)));
        assert!(matches!(identity.session_of(&secret("efr_nobody"), NOW).await, Err(RefreshError::Invalid)));
        // Whoever shows a used one has copied it, looked at or not.
        assert!(matches!(identity.session_of(&tokens.refresh, NOW).await, Err(RefreshError::Reused { .. })));
        assert!(
            matches!(identity.session_of(&next, NOW).await, Err(RefreshError::Revoked { session: ended, .. }) if ended == session.session)
        );
    }

    #[tokio::test]
    async fn of_many_who_present_the_same_token_at_once_exactly_one_gets_a_successor() {
        let house = house().await;
        let (_, tokens) = house.session(9).await;
        let presented = (0..8).map(|_| house.identity.refresh(&tokens.refresh, NOW));
        let answers = futures_util::future::join_all(presented).await;
        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1);
        let winner = answers.into_iter().find_map(Result::ok).unwrap();
        assert!(
            matches!(house.identity.refresh(&winner.refresh, NOW).await, Err(RefreshError::Revoked { .. })),
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
        identity.revoke_session(first.session, NOW).await.unwrap();
        assert!(matches!(identity.refresh(&one.refresh, NOW).await, Err(RefreshError::Revoked { .. })));
        let end = NOW.plus(SESSION_LIFETIME);
        assert!(matches!(identity.refresh(&two.refresh, end).await, Err(RefreshError::Invalid)));
        identity.revoke_user(ada().user, NOW).await.unwrap();
        assert!(matches!(identity.refresh(&three.refresh, NOW).await, Err(RefreshError::Revoked { .. })));
    }

    #[tokio::test]
    async fn accounts_sessions_and_tokens_survive_a_restart_and_a_new_cost() {
        let House { identity, directory } = house().await;
        let tokens = identity.open_session(&session(9), &Description::default(), NOW).await.unwrap();
        drop(identity);
        let house = House { identity: open(directory.path(), 5).await, directory };
        assert_eq!(house.identity.verify(tokens.access.expose(), NOW), Ok(tokens.signed_in));
        assert!(house.identity.refresh(&tokens.refresh, NOW).await.is_ok());
        assert!(house.login("ada@acme.test", PASSWORD, NOW).await.is_ok());
        let stored = house.identity.credentials().account_by_email(&ada().email).await.unwrap().unwrap();
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
        assert_eq!(house.identity.credentials().sweep(end).await.unwrap(), 0);
        assert!(house.identity.refresh(&tokens.refresh, NOW).await.is_ok());
        assert_eq!(house.identity.credentials().sweep(end.plus(Millis::new(1))).await.unwrap(), 2);
    }
}
