//! A person's session as the log knows it: who vouched for them, where it counts, why it ended and what its end closed.
//!
//! Not here: when sessions are opened and ended (`user`), and tokens, which are identity's.

use crate::commit::Surface;
use crate::limits::CLIENT_CHARS_MAX;
use crate::time::UnixMillis;

/// The program that a person signed in with, as it calls itself: `envforge-cli/0.1.0`. For people to recognise their
/// sessions by; nothing is decided on it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClientName(String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a client's name must have 1 to {CLIENT_CHARS_MAX} characters on one line")]
pub struct InvalidClientName;

impl ClientName {
    pub fn parse(text: &str) -> Result<Self, InvalidClientName> {
        let text = text.trim();
        let valid = !text.is_empty()
            && text.chars().count() <= CLIENT_CHARS_MAX
            && !text.chars().any(|character| character.is_control() || matches!(character, '\u{2028}' | '\u{2029}'));
        if valid { Ok(Self(text.to_owned())) } else { Err(InvalidClientName) }
    }

    /// What a client that gave no name is called.
    pub fn of_surface(surface: Surface) -> Self {
        Self(surface.token().to_owned())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The issuer that EnvForge's own accounts have.
pub const LOCAL_ISSUER: &str = "local";

/// An open session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenSession {
    /// The one surface on which it counts, for as long as it lasts.
    pub surface: Surface,
    /// The issuer that vouched for the person: `local`, or an identity provider's.
    pub provider: String,
    pub client: ClientName,
    pub opened_at: UnixMillis,
    /// When the person last proved who they are.
    pub authenticated_at: UnixMillis,
    pub expires_at: UnixMillis,
}

impl OpenSession {
    /// Of one of EnvForge's own accounts that was proven just now, by a client without a name.
    pub fn of_local_account(surface: Surface, now: UnixMillis, expires_at: UnixMillis) -> Self {
        Self {
            surface,
            provider: LOCAL_ISSUER.to_owned(),
            client: ClientName::of_surface(surface),
            opened_at: now,
            authenticated_at: now,
            expires_at,
        }
    }
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SessionEnd {
    LoggedOut,
    Revoked,
    PasswordChanged,
    /// A refresh token was used twice: whoever holds the family may be a thief.
    RefreshReused,
    Deactivated,
    Expired,
    /// The person opened one more than they may have; the oldest made room.
    Displaced,
}
