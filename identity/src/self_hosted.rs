//! Self-hosted identity: accounts with passwords, and the tokens of invitations to make one.
//!
//! Says who somebody is. Sessions are `sessions`', the same for every provider; what happened is recorded in the log by the
//! caller, and what the person may do is decided by the access policy.

use std::net::IpAddr;

use envforge_domain::ids::UserId;
use envforge_domain::secret::Secret;
pub use envforge_domain::session::LOCAL_ISSUER;
use envforge_domain::time::UnixMillis;
use envforge_domain::user::EmailAddress;

use crate::credentials::{Account, Credentials, InvitationKey, Stored, StoredAccount};
use crate::hesitation::Hesitation;
use crate::lockout::{LockedOut, Lockout, LockoutRule};
use crate::password::{self, HashError, PasswordHasher, WeakPassword};
use crate::randomness::Randomness;
use crate::sessions::IdentityError;
use crate::sign_in::Config;

/// What an invitation's token begins with, so that secret scanners recognise one.
pub(crate) const INVITATION_PREFIX: &str = "efi_";

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

/// Somebody changes their own password.
pub struct PasswordChange {
    pub user: UserId,
    pub present: Secret,
    pub new: Secret,
    pub address: IpAddr,
}

/// Why a password was not changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    #[error(transparent)]
    Weak(#[from] WeakPassword),
    #[error(transparent)]
    Login(#[from] LoginError),
    #[error("this account has no password here: it signs in with an identity provider")]
    NoPassword,
    #[error("the password was changed by somebody else at the same moment; sign in with that one")]
    Overtaken,
    #[error(transparent)]
    Account(#[from] AccountError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Why no account was made.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    #[error("there is no such account")]
    Unknown,
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

/// The first owner's account.
pub struct Bootstrapped {
    pub account: Account,
    /// The password that was generated, to be shown once. `None` where one was given or the account existed.
    pub generated_password: Option<Secret>,
    pub created: bool,
}

/// Accounts, passwords, invitations.
pub struct SelfHosted {
    credentials: Credentials,
    hasher: PasswordHasher,
    lockout: Lockout,
    hesitation: Hesitation,
    randomness: Randomness,
}

impl SelfHosted {
    /// Takes about as long as one sign-in: the decoy for unknown accounts is hashed with the configured cost.
    pub(crate) fn open(
        config: &Config,
        credentials: Credentials,
        randomness: Randomness,
    ) -> Result<Self, IdentityError> {
        let hasher = PasswordHasher::new(config.bcrypt_cost, config.hash_workers, config.hash_waiting_max);
        Self::with(hasher, credentials, randomness)
    }

    /// For the machine's command line, one password at a time.
    pub fn for_tools(credentials: Credentials) -> Result<Self, IdentityError> {
        Self::with(PasswordHasher::new(password::BCRYPT_COST_DEFAULT, 1, 4), credentials, Randomness)
    }

    fn with(
        hasher: Result<PasswordHasher, HashError>,
        credentials: Credentials,
        randomness: Randomness,
    ) -> Result<Self, IdentityError> {
        Ok(Self {
            hasher: hasher.map_err(|error| IdentityError::Hash(error.to_string()))?,
            lockout: Lockout::new(credentials.clone(), LockoutRule::ACCOUNT, LockoutRule::ADDRESS),
            credentials,
            hesitation: Hesitation::new(randomness),
            randomness,
        })
    }

    pub fn randomness(&self) -> Randomness {
        self.randomness
    }

    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// Proves an e-mail address and a password. Whoever is refused before anything was compared waits for it a moment.
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
        if let Err(LoginError::LockedOut(_) | LoginError::Busy) = &result {
            self.hesitation.wait().await;
        }
        result
    }

    async fn try_login(&self, attempt: LoginAttempt, now: UnixMillis) -> Result<Account, LoginError> {
        let LoginAttempt { email, password, address } = attempt;
        // The place comes first: an attempt that nobody looks at must not count.
        let place = self.hasher.reserve().map_err(|_| LoginError::Busy)?;
        let parsed = EmailAddress::parse(&email).ok();
        let typed = parsed.as_ref().map_or(email.as_str(), EmailAddress::as_str);
        let begun = self.lockout.begin(typed, parsed.as_ref(), address, now).await.map_err(IdentityError::from)?;
        let (counted, stored) = begun?;
        let hash = stored.as_ref().map(|stored| stored.password_hash.clone());
        match (place.verify(password.clone(), hash).await, stored) {
            (Ok(true), Some(stored)) => {
                counted.succeeded().await.map_err(IdentityError::from)?;
                self.refresh_hash(&stored.account, &stored.password_hash, password).await;
                Ok(stored.account)
            }
            (Ok(_), stored) => Err(LoginError::WrongCredentials { account: stored.map(|stored| stored.account) }),
            (Err(error), _) => {
                counted.withdrawn().await.map_err(IdentityError::from)?;
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

    /// Gives a user a password to sign in with.
    pub async fn create_account(
        &self,
        account: &Account,
        password: Secret,
        now: UnixMillis,
    ) -> Result<(), AccountError> {
        let hash = self.hash_new(password).await?;
        match self.credentials.insert_account(account, &hash, now).await.map_err(IdentityError::from)? {
            Stored::New => Ok(()),
            Stored::Exists => Err(AccountError::Exists),
        }
    }

    /// Holds a new password against the rules and hashes it.
    async fn hash_new(&self, password: Secret) -> Result<String, AccountError> {
        password::check(&password)?;
        let hash = match self.hasher.reserve() {
            Ok(place) => place.hash(password).await,
            Err(error) => Err(error),
        };
        hash.map_err(|error| match error {
            HashError::Busy => AccountError::Busy,
            HashError::Failed(reason) => IdentityError::Hash(reason).into(),
        })
    }

    async fn is_password_of(&self, stored: &StoredAccount, password: Secret) -> Result<bool, AccountError> {
        let place = self.hasher.reserve().map_err(|_| AccountError::Busy)?;
        let matches = place.verify(password, Some(stored.password_hash.clone())).await;
        Ok(matches.map_err(|error| IdentityError::Hash(error.to_string()))?)
    }

    /// Changes a password that is proven by the present one; refresh tokens of this person stop working with that. An
    /// attempt that broke off after it was stored is finished by the same attempt again: then the new one is the proof.
    pub async fn change_password(&self, change: PasswordChange, now: UnixMillis) -> Result<(), ChangeError> {
        let PasswordChange { user, present, new, address } = change;
        let Some(stored) = self.credentials.stored_account_of(user).await.map_err(IdentityError::from)? else {
            return Err(ChangeError::NoPassword);
        };
        password::check(&new)?;
        let email = stored.account.email.as_str().to_owned();
        let attempt = LoginAttempt { email, password: present.clone(), address };
        match self.login(attempt, now).await {
            Ok(_) => {}
            Err(wrong @ LoginError::WrongCredentials { .. }) => {
                let again = self.credentials.stored_account_of(user).await.map_err(IdentityError::from)?;
                return match again {
                    Some(again) if self.is_password_of(&again, new).await? => Ok(()),
                    Some(_) | None => Err(wrong.into()),
                };
            }
            Err(other) => return Err(other.into()),
        }
        let hash = self.hash_new(new).await?;
        // Read again: signing in may have hashed it anew. Another change may have come as well, and what was proven is
        // the password of before.
        let again = self.credentials.stored_account_of(user).await.map_err(IdentityError::from)?;
        let Some(again) = again else { return Err(ChangeError::NoPassword) };
        if again.password_hash != stored.password_hash && !self.is_password_of(&again, present).await? {
            return Err(ChangeError::Overtaken);
        }
        let changed = self.credentials.change_password(user, &again.password_hash, &hash, now).await;
        if changed.map_err(IdentityError::from)? { Ok(()) } else { Err(ChangeError::Overtaken) }
    }

    /// Gives somebody a new password without the present one: recovery from the machine's command line.
    pub async fn reset_password(&self, user: UserId, new: Secret, now: UnixMillis) -> Result<(), AccountError> {
        let hash = self.hash_new(new).await?;
        let stored = self.credentials.stored_account_of(user).await.map_err(IdentityError::from)?;
        let Some(stored) = stored else { return Err(AccountError::Unknown) };
        let changed = self.credentials.change_password(user, &stored.password_hash, &hash, now).await;
        if changed.map_err(IdentityError::from)? { Ok(()) } else { Err(AccountError::Busy) }
    }

    /// The token that makes an account of an invitation. Asked for again, another one takes its place.
    pub async fn invite(&self, key: InvitationKey, expires_at: UnixMillis) -> Result<Secret, IdentityError> {
        let token = self.randomness.token(INVITATION_PREFIX)?;
        self.credentials.put_invitation(token.digest(), key, expires_at).await?;
        Ok(token)
    }

    /// Whom a token invites. `None`: unknown, expired, used or revoked.
    pub async fn invitation_of(&self, token: &Secret, now: UnixMillis) -> Result<Option<InvitationKey>, IdentityError> {
        if !token.expose().starts_with(INVITATION_PREFIX) {
            return Ok(None);
        }
        Ok(self.credentials.invitation(token.digest(), now).await?)
    }

    /// The token of this invitation works no more: it was accepted to the end, or revoked.
    pub async fn forget_invitation(&self, user: UserId) -> Result<(), IdentityError> {
        Ok(self.credentials.remove_invitation(user).await?)
    }

    /// The account of somebody who accepts their invitation. `joined`: the log knows them already, so an earlier attempt
    /// got further than this, and its password is the one; before that the account is nobody's, and the last attempt counts.
    pub async fn account_of_invited(
        &self,
        account: &Account,
        password: Secret,
        joined: bool,
        now: UnixMillis,
    ) -> Result<(), AccountError> {
        let stored = self.credentials.stored_account_of(account.user).await.map_err(IdentityError::from)?;
        match stored {
            None => self.create_account(account, password, now).await,
            Some(stored) if joined => {
                if self.is_password_of(&stored, password).await? {
                    Ok(())
                } else {
                    Err(AccountError::Exists)
                }
            }
            Some(stored) => {
                let hash = self.hash_new(password).await?;
                let user = account.user;
                let changed = self.credentials.change_password(user, &stored.password_hash, &hash, now).await;
                if changed.map_err(IdentityError::from)? { Ok(()) } else { Err(AccountError::Busy) }
            }
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
