//! Stored events of users and their sessions.

use envforge_domain::commit::Surface;
use envforge_domain::ids::{SessionId, UserId};
use envforge_domain::time::UnixMillis;
use envforge_domain::user::{EmailAddress, SessionEnd, UserEvent};
use serde::{Deserializer, Serializer};

use super::wire::{Wire, events, text, tokens};

events! {
    UserEvent {
        "user.created.v1" => Created {
            user: UserId = "user",
            issuer: String = "issuer",
            subject: String = "subject",
            email: EmailAddress = "email",
            name: String = "name",
        },
        "user.deactivated.v1" => Deactivated,
        "user.session_opened.v1" => SessionOpened {
            session: SessionId = "session",
            surface: Surface = "surface",
            expires_at: UnixMillis = "expires_at",
        },
        "user.session_ended.v1" => SessionEnded { session: SessionId = "session", reason: SessionEnd = "reason" },
        "user.password_changed.v1" => PasswordChanged,
    }
}

tokens! {
    SessionEnd {
        "logged_out" => LoggedOut,
        "revoked" => Revoked,
        "password_changed" => PasswordChanged,
        "refresh_reused" => RefreshReused,
        "deactivated" => Deactivated,
        "expired" => Expired,
        "displaced" => Displaced,
    }
}

impl Wire for EmailAddress {
    fn to_wire<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }

    fn from_wire<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, Self::parse)
    }
}
