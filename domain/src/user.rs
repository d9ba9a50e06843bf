//! Users as EnvForge mirrors them, with their sessions. Credentials live elsewhere and never in the log.

use std::collections::BTreeMap;

use crate::access::{Action, Role};
use crate::aggregate::{Aggregate, Refusal, RefusalKind};
use crate::commit::{StreamKind, Surface};
use crate::event::Event;
use crate::ids::{SessionId, UserId};
use crate::limits::EMAIL_CHARS_MAX;
use crate::project::name_is_valid;
use crate::time::UnixMillis;

/// An address for people to recognise each other by. Never a key: users are keyed on issuer and subject.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EmailAddress(String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an e-mail address: expected name@domain with exactly one `@`, at most 254 characters")]
pub struct InvalidEmailAddress {
    text: String,
}

impl EmailAddress {
    /// Parses and lower-cases.
    pub fn parse(text: &str) -> Result<Self, InvalidEmailAddress> {
        let mut parts = text.split('@');
        let valid = match (parts.next(), parts.next(), parts.next()) {
            (Some(name), Some(domain), None) => {
                !name.is_empty()
                    && !domain.is_empty()
                    && text.len() <= EMAIL_CHARS_MAX
                    && text.bytes().all(|byte| byte.is_ascii_graphic())
                    && !domain.starts_with('.')
                    && !domain.ends_with('.')
                    && domain.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-'))
            }
            _ => false,
        };
        if valid {
            Ok(Self(text.to_ascii_lowercase()))
        } else {
            Err(InvalidEmailAddress { text: text.chars().take(80).collect() })
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
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

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserEvent {
    /// `issuer` and `subject` are the identity provider's; `local` and the user's own id where EnvForge provides identity.
    Created {
        user: UserId,
        issuer: String,
        subject: String,
        email: EmailAddress,
        name: String,
    },
    Deactivated,
    SessionOpened {
        session: SessionId,
        surface: Surface,
        expires_at: UnixMillis,
    },
    SessionEnded {
        session: SessionId,
        reason: SessionEnd,
    },
    PasswordChanged,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserCommand {
    Create {
        user: UserId,
        issuer: String,
        subject: String,
        email: EmailAddress,
        name: String,
    },
    /// With what the organization knows of the person: see `ActiveOrganization::beyond` and `is_only_owner`.
    Deactivate {
        beyond: Option<Role>,
        only_owner: bool,
    },
    OpenSession {
        session: SessionId,
        surface: Surface,
        expires_at: UnixMillis,
        now: UnixMillis,
    },
    EndSession {
        session: SessionId,
        reason: SessionEnd,
    },
    /// Ends all, as logout everywhere, password change and reuse of a refresh token do.
    EndAllSessions {
        reason: SessionEnd,
    },
    /// The new hash is stored in the credential table in the same step; every session ends.
    RecordPasswordChange,
    /// A person ends their own session; same effect as `EndSession`, another right.
    EndOwnSession {
        session: SessionId,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum User {
    #[default]
    Unknown,
    Active {
        user: UserId,
        sessions: BTreeMap<SessionId, UnixMillis>,
    },
    Deactivated {
        user: UserId,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserRefusal {
    #[error("there is no such user")]
    Unknown,
    #[error("the user exists already")]
    Exists,
    #[error("this account is deactivated")]
    Deactivated,
    #[error("a name must have 1 to {max} characters")]
    Name { max: usize },
    #[error("you cannot deactivate somebody with the role `{role}`: your own roles do not reach it")]
    AboveYourself { role: Role },
    #[error("the last owner cannot be deactivated; assign another owner first")]
    LastOwner,
}

/// Open sessions of one person. Expired ones make room by themselves, and then the oldest does: signing in is never
/// refused for want of room. Ending all of them fits into one commit.
pub const SESSIONS_MAX: usize = crate::limits::COMMIT_EVENTS_MAX - 4;

impl Refusal for UserRefusal {
    fn code(&self) -> &'static str {
        match self {
            Self::Unknown => "user_unknown",
            Self::Exists => "user_exists",
            Self::Deactivated => "account_deactivated",
            Self::Name { .. } => "name_invalid",
            Self::AboveYourself { .. } => "grant_above_yourself",
            Self::LastOwner => "last_owner",
        }
    }

    fn kind(&self) -> RefusalKind {
        match self {
            Self::Unknown => RefusalKind::NotFound,
            Self::Exists | Self::LastOwner => RefusalKind::Conflict,
            Self::Deactivated | Self::AboveYourself { .. } => RefusalKind::Forbidden,
            Self::Name { .. } => RefusalKind::Invalid,
        }
    }

    fn bounds(&self) -> Vec<(&'static str, u64)> {
        match self {
            Self::Name { max } => vec![("max_chars", *max as u64)],
            Self::Unknown | Self::Exists | Self::Deactivated | Self::AboveYourself { .. } | Self::LastOwner => vec![],
        }
    }
}

impl Aggregate for User {
    const KIND: StreamKind = StreamKind::User;
    type State = Self;
    type Command = UserCommand;
    type Event = UserEvent;
    type Refusal = UserRefusal;

    fn decide(state: &Self, command: &UserCommand) -> Result<Vec<UserEvent>, UserRefusal> {
        match (state, command) {
            (Self::Unknown, UserCommand::Create { user, issuer, subject, email, name }) => {
                if !name_is_valid(name) {
                    return Err(UserRefusal::Name { max: crate::limits::NAME_CHARS_MAX });
                }
                Ok(vec![UserEvent::Created {
                    user: *user,
                    issuer: issuer.clone(),
                    subject: subject.clone(),
                    email: email.clone(),
                    name: name.clone(),
                }])
            }
            (Self::Active { .. } | Self::Deactivated { .. }, UserCommand::Create { .. }) => Err(UserRefusal::Exists),
            (
                Self::Unknown,
                UserCommand::Deactivate { .. }
                | UserCommand::OpenSession { .. }
                | UserCommand::EndSession { .. }
                | UserCommand::EndOwnSession { .. }
                | UserCommand::EndAllSessions { .. }
                | UserCommand::RecordPasswordChange,
            ) => Err(UserRefusal::Unknown),
            (Self::Active { sessions, .. }, command) => decide_active(sessions, command),
            (
                Self::Deactivated { .. },
                UserCommand::Deactivate { .. }
                | UserCommand::EndSession { .. }
                | UserCommand::EndOwnSession { .. }
                | UserCommand::EndAllSessions { .. },
            ) => Ok(vec![]),
            (Self::Deactivated { .. }, UserCommand::OpenSession { .. } | UserCommand::RecordPasswordChange) => {
                Err(UserRefusal::Deactivated)
            }
        }
    }

    fn evolve(state: Self, event: &UserEvent) -> Self {
        match (state, event) {
            (_, UserEvent::Created { user, .. }) => Self::Active { user: *user, sessions: BTreeMap::new() },
            (Self::Active { user, .. }, UserEvent::Deactivated) => Self::Deactivated { user },
            (Self::Active { user, mut sessions }, UserEvent::SessionOpened { session, expires_at, .. }) => {
                sessions.insert(*session, *expires_at);
                Self::Active { user, sessions }
            }
            (Self::Active { user, mut sessions }, UserEvent::SessionEnded { session, .. }) => {
                sessions.remove(session);
                Self::Active { user, sessions }
            }
            (state @ Self::Active { .. }, UserEvent::PasswordChanged) => state,
            (
                state @ (Self::Unknown | Self::Deactivated { .. }),
                UserEvent::Deactivated
                | UserEvent::SessionOpened { .. }
                | UserEvent::SessionEnded { .. }
                | UserEvent::PasswordChanged,
            ) => state,
        }
    }

    fn event_of(event: &Event) -> Option<&UserEvent> {
        if let Event::User(event) = event { Some(event) } else { None }
    }

    fn action_of(command: &UserCommand) -> Action {
        match command {
            UserCommand::Create { .. } => Action::UserCreate,
            UserCommand::Deactivate { .. } => Action::UserDeactivate,
            UserCommand::OpenSession { .. }
            | UserCommand::EndSession { .. }
            | UserCommand::EndAllSessions { .. }
            | UserCommand::RecordPasswordChange => Action::UserRecordSession,
            UserCommand::EndOwnSession { .. } => Action::SessionRevokeOwn,
        }
    }
}

fn decide_active(
    sessions: &BTreeMap<SessionId, UnixMillis>,
    command: &UserCommand,
) -> Result<Vec<UserEvent>, UserRefusal> {
    let end_all = |reason| {
        sessions.keys().map(move |session| UserEvent::SessionEnded { session: *session, reason }).collect::<Vec<_>>()
    };
    let end = |session: &SessionId, reason| {
        Ok(if sessions.contains_key(session) {
            vec![UserEvent::SessionEnded { session: *session, reason }]
        } else {
            vec![]
        })
    };
    match command {
        UserCommand::Create { .. } => Err(UserRefusal::Exists),
        UserCommand::Deactivate { beyond: Some(role), .. } => Err(UserRefusal::AboveYourself { role: *role }),
        UserCommand::Deactivate { beyond: None, only_owner: true } => Err(UserRefusal::LastOwner),
        // Deactivation ends every session by itself: the state forgets them, and views treat it so.
        UserCommand::Deactivate { beyond: None, only_owner: false } => Ok(vec![UserEvent::Deactivated]),
        UserCommand::OpenSession { session, surface, expires_at, now } => {
            if sessions.contains_key(session) {
                return Ok(vec![]);
            }
            let expired: Vec<_> = sessions.iter().filter(|(_, end)| *end <= now).map(|(id, _)| *id).collect();
            let mut live: Vec<_> = sessions.iter().filter(|(_, end)| *end > now).map(|(id, end)| (*end, *id)).collect();
            live.sort_unstable();
            // All last equally long, so the one that ends first is the oldest.
            let displaced = (live.len() + 1).saturating_sub(SESSIONS_MAX);
            // At most a few expired sessions are swept along, so that one commit stays small.
            let mut events: Vec<_> = expired
                .into_iter()
                .take(16)
                .map(|session| UserEvent::SessionEnded { session, reason: SessionEnd::Expired })
                .collect();
            events.extend(
                live.into_iter()
                    .take(displaced)
                    .map(|(_, session)| UserEvent::SessionEnded { session, reason: SessionEnd::Displaced }),
            );
            events.push(UserEvent::SessionOpened { session: *session, surface: *surface, expires_at: *expires_at });
            Ok(events)
        }
        UserCommand::EndSession { session, reason } => end(session, *reason),
        UserCommand::EndOwnSession { session } => end(session, SessionEnd::LoggedOut),
        UserCommand::EndAllSessions { reason } => Ok(end_all(*reason)),
        UserCommand::RecordPasswordChange => {
            let mut events = vec![UserEvent::PasswordChanged];
            events.extend(end_all(SessionEnd::PasswordChanged));
            Ok(events)
        }
    }
}

impl From<UserEvent> for Event {
    fn from(event: UserEvent) -> Self {
        Self::User(event)
    }
}
