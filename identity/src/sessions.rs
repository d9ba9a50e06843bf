//! Sessions of whatever provider, as tokens: short access tokens, and refresh tokens that work once each.
//!
//! Not here: who may have one (`sign_in`, `self_hosted`), and that a session was opened or ended, which the caller records
//! in the log.

use envforge_domain::ids::{OrgId, SessionId, UserId};
use envforge_domain::secret::Secret;
use envforge_domain::session::OpenSession;
use envforge_domain::time::{Millis, UnixMillis};

use crate::credentials::{Credentials, CredentialsError, Looked, Presented, RefreshRecord};
use crate::key_ring::{KeyRingError, PublicKey};
use crate::randomness::{NoRandomness, Randomness};
use crate::tokens::{AccessTokens, Description, InvalidToken, MintError, Session, SignedIn};

/// How long a session lasts, however often it is refreshed (SPEC, "Identity": 30 days).
pub const SESSION_LIFETIME: Millis = Millis::from_hours(24 * 30);
/// What a refresh token begins with, so that secret scanners recognise one.
const REFRESH_PREFIX: &str = "efr_";

/// Identity could not do its work: our failure, not the caller's.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error(transparent)]
    KeyRing(#[from] KeyRingError),
    #[error(transparent)]
    Mint(#[from] MintError),
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    #[error("password hashing failed: {0}")]
    Hash(String),
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

/// The tokens of a session that was just opened.
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

/// Makes, proves and revokes tokens.
pub struct Sessions {
    credentials: Credentials,
    access: AccessTokens,
    randomness: Randomness,
}

impl Sessions {
    pub(crate) fn new(credentials: Credentials, access: AccessTokens, randomness: Randomness) -> Self {
        Self { credentials, access, randomness }
    }

    /// Tokens for a session that the log knows now. Every refresh token that follows belongs to its family.
    pub async fn open(
        &self,
        session: &Session,
        opened: &OpenSession,
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
        let (access, signed_in) = self.mint(session, opened, description, now)?;
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
        opened: &OpenSession,
        description: &Description,
        now: UnixMillis,
    ) -> Result<(Secret, SignedIn), IdentityError> {
        Ok(self.access.mint(session, opened, description, now, self.randomness)?)
    }

    /// Proves a presented access token. Whether its session is still live, the authorization view knows.
    pub fn verify(&self, token: &str, now: UnixMillis) -> Result<SignedIn, InvalidToken> {
        self.access.verify(token, now).inspect_err(|error| {
            metrics::counter!("envforge_access_tokens_refused_total", "reason" => error.code()).increment(1);
        })
    }

    pub(crate) fn public_keys(&self, now: UnixMillis) -> Vec<PublicKey> {
        self.access.public_keys(now)
    }

    /// No refresh token of this session works any more.
    pub async fn revoke_session(&self, session: SessionId, now: UnixMillis) -> Result<(), IdentityError> {
        Ok(self.credentials.revoke_session(session, now).await?)
    }

    /// No refresh token of this user works any more.
    pub async fn revoke_user(&self, user: UserId, now: UnixMillis) -> Result<(), IdentityError> {
        Ok(self.credentials.revoke_user(user, now).await?)
    }

    /// When each of a person's sessions was last given tokens: to the hour, when it was last used.
    pub async fn last_uses(&self, user: UserId) -> Result<Vec<(SessionId, UnixMillis)>, IdentityError> {
        Ok(self.credentials.last_uses(user).await?)
    }
}

fn refused(outcome: &'static str, error: RefreshError) -> RefreshError {
    metrics::counter!("envforge_refreshes_total", "outcome" => outcome).increment(1);
    error
}
