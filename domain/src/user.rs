//! Users as EnvForge mirrors them, from their invitation on, with their sessions. Credentials live elsewhere and never in
//! the log.

use std::collections::BTreeMap;

use crate::access::{Action, Role, Scope};
use crate::aggregate::{Aggregate, Refusal, RefusalKind};
use crate::commit::{StreamKind, Surface};
use crate::event::Event;
use crate::ids::{HandoffId, ProjectId, SessionId, UserId, WorkspaceId};
use crate::invitation::Invitation;
use crate::limits::{
    EMAIL_CHARS_MAX, INVITATION_LIFETIME_MAX, INVITATION_LIFETIME_MIN, INVITATION_ROLES_MAX, NAME_CHARS_MAX,
};
use crate::project::name_is_valid;
use crate::revocation::Receipt;
use crate::secret::TokenDigest;
use crate::slug::ServiceName;
use crate::time::{Millis, UnixMillis};
use crate::workspace_session::{OpenWorkspace, WorkspaceSessions};

pub use crate::session::{ClientName, OpenSession, SessionEnd};

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

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserEvent {
    /// Somebody is to join; they are nobody until they accept.
    Invited {
        invitation: Invitation,
    },
    InvitationRevoked,
    /// `Created` follows in the same commit.
    InvitationAccepted,
    /// `issuer` and `subject` are the identity provider's; `local` and the user's own id where EnvForge provides identity.
    Created {
        user: UserId,
        issuer: String,
        subject: String,
        email: EmailAddress,
        name: String,
    },
    ProfileChanged {
        name: String,
    },
    Deactivated,
    Reactivated,
    SessionOpened {
        session: SessionId,
        surface: Surface,
        provider: String,
        client: ClientName,
        opened_at: UnixMillis,
        authenticated_at: UnixMillis,
        expires_at: UnixMillis,
    },
    /// The person proved once more who they are, within a session.
    Reauthenticated {
        session: SessionId,
        authenticated_at: UnixMillis,
    },
    SessionEnded {
        session: SessionId,
        reason: SessionEnd,
    },
    PasswordChanged,
    /// What a revocation closed.
    RevocationRecorded {
        cause: SessionEnd,
        receipt: Receipt,
    },
    /// A session on the host of one service of a workspace, opened from one of a browser at the API, which it does not outlive.
    WorkspaceOpened {
        session: SessionId,
        parent: SessionId,
        handoff: HandoffId,
        project: ProjectId,
        workspace: WorkspaceId,
        service: ServiceName,
        cookie: TokenDigest,
        opened_at: UnixMillis,
        expires_at: UnixMillis,
    },
}

impl UserEvent {
    pub fn session_opened(session: SessionId, opened: OpenSession) -> Self {
        let OpenSession { surface, provider, client, opened_at, authenticated_at, expires_at } = opened;
        Self::SessionOpened { session, surface, provider, client, opened_at, authenticated_at, expires_at }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserCommand {
    /// `beyond`: the first of its roles that whoever invites may not give; see `ActiveOrganization::beyond_granting`.
    Invite {
        invitation: Invitation,
        beyond: Option<Role>,
        now: UnixMillis,
    },
    RevokeInvitation,
    /// `beyond`: the first of its roles that whoever invited may no longer give.
    AcceptInvitation {
        name: String,
        issuer: String,
        subject: String,
        beyond: Option<Role>,
        now: UnixMillis,
    },
    Create {
        user: UserId,
        issuer: String,
        subject: String,
        email: EmailAddress,
        name: String,
    },
    /// A person changes how they are called.
    ChangeProfile {
        name: String,
    },
    /// With what the organization knows of the person: see `ActiveOrganization::beyond` and `is_only_owner`.
    Deactivate {
        beyond: Option<Role>,
        only_owner: bool,
    },
    Reactivate {
        beyond: Option<Role>,
    },
    OpenSession {
        session: SessionId,
        opened: OpenSession,
        now: UnixMillis,
    },
    EndSession {
        session: SessionId,
        reason: SessionEnd,
    },
    /// Ends all, as reuse of a refresh token and removal from an organization do.
    EndAllSessions {
        reason: SessionEnd,
    },
    /// The new hash is stored in the credential table in the same step; every session ends.
    RecordPasswordChange,
    /// What the commands before closed.
    RecordRevocation {
        cause: SessionEnd,
        receipt: Receipt,
    },
    /// A person ends their own session; same effect as `EndSession`, another right.
    EndOwnSession {
        session: SessionId,
    },
    /// A person ends all of their own.
    EndOwnSessions,
    /// An administrator ends one session of somebody, or all. `beyond` as in `Deactivate`.
    RevokeSessions {
        session: Option<SessionId>,
        beyond: Option<Role>,
    },
    /// A person proved once more who they are.
    Reauthenticate {
        session: SessionId,
        authenticated_at: UnixMillis,
    },
    /// A person changes their own password, which they proved; the hash as with `RecordPasswordChange`.
    ChangeOwnPassword,
    /// A member opens a workspace in the browser in which they are signed in.
    OpenWorkspace(OpenWorkspace),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum User {
    #[default]
    Unknown,
    Invited(Invitation),
    /// Whoever is invited again is another user.
    InvitationRevoked,
    Active {
        user: UserId,
        name: String,
        sessions: BTreeMap<SessionId, OpenSession>,
        workspaces: WorkspaceSessions,
    },
    Deactivated {
        user: UserId,
        name: String,
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
    #[error("the role `{role}` is above your own: your roles do not reach it")]
    AboveYourself { role: Role },
    #[error("the last owner cannot be deactivated; assign another owner first")]
    LastOwner,
    #[error("this session has ended")]
    SessionEnded,
    #[error("an invitation must be open for {min} to {max}")]
    InvitationLifetime { min: Millis, max: Millis },
    #[error("an invitation has at most {max} roles, each once")]
    InvitationRoles { max: usize },
    #[error("the role `{role}` counts for the whole organization only")]
    OrgWideOnly { role: Role },
    #[error("this invitation was revoked")]
    InvitationRevoked,
    #[error("this invitation has expired; ask for another one")]
    InvitationExpired,
    #[error("whoever made this invitation may no longer give the role `{role}`; ask for another one")]
    InvitationLapsed { role: Role },
    #[error("this invitation was accepted already")]
    InvitationAccepted,
    #[error("this handoff was used already; open the workspace again")]
    HandoffUsed,
    #[error("this handoff is older than {max}; open the workspace again")]
    HandoffExpired { max: Millis },
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
            Self::SessionEnded => "session_ended",
            Self::InvitationLifetime { .. } => "invitation_lifetime_out_of_range",
            Self::InvitationRoles { .. } => "invitation_roles_invalid",
            Self::OrgWideOnly { .. } => "role_org_wide_only",
            Self::InvitationRevoked => "invitation_revoked",
            Self::InvitationExpired => "invitation_expired",
            Self::InvitationLapsed { .. } => "invitation_lapsed",
            Self::InvitationAccepted => "invitation_accepted",
            Self::HandoffUsed => "handoff_used",
            Self::HandoffExpired { .. } => "handoff_expired",
        }
    }

    fn kind(&self) -> RefusalKind {
        match self {
            Self::Unknown => RefusalKind::NotFound,
            Self::Exists | Self::LastOwner | Self::InvitationAccepted => RefusalKind::Conflict,
            Self::Deactivated | Self::AboveYourself { .. } => RefusalKind::Forbidden,
            Self::Name { .. }
            | Self::InvitationLifetime { .. }
            | Self::InvitationRoles { .. }
            | Self::OrgWideOnly { .. } => RefusalKind::Invalid,
            Self::SessionEnded
            | Self::InvitationRevoked
            | Self::InvitationExpired
            | Self::InvitationLapsed { .. }
            | Self::HandoffUsed
            | Self::HandoffExpired { .. } => RefusalKind::Gone,
        }
    }

    fn bounds(&self) -> Vec<(&'static str, u64)> {
        match self {
            Self::Name { max } => vec![("max_chars", *max as u64)],
            Self::InvitationRoles { max } => vec![("max", *max as u64)],
            Self::InvitationLifetime { min, max } => vec![("min_ms", min.get()), ("max_ms", max.get())],
            Self::HandoffExpired { max } => vec![("max_ms", max.get())],
            Self::Unknown
            | Self::Exists
            | Self::Deactivated
            | Self::AboveYourself { .. }
            | Self::LastOwner
            | Self::SessionEnded
            | Self::OrgWideOnly { .. }
            | Self::InvitationRevoked
            | Self::InvitationExpired
            | Self::InvitationLapsed { .. }
            | Self::InvitationAccepted
            | Self::HandoffUsed => vec![],
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
        match state {
            Self::Unknown => decide_unknown(command),
            Self::Invited(invitation) => decide_invited(invitation, command),
            Self::InvitationRevoked => decide_uninvited(command),
            Self::Active { name, sessions, workspaces, .. } => decide_active(name, sessions, workspaces, command),
            Self::Deactivated { .. } => decide_deactivated(command),
        }
    }

    fn evolve(state: Self, event: &UserEvent) -> Self {
        match (state, event) {
            (_, UserEvent::Created { user, name, .. }) => Self::Active {
                user: *user,
                name: name.clone(),
                sessions: BTreeMap::new(),
                workspaces: WorkspaceSessions::default(),
            },
            (Self::Unknown, UserEvent::Invited { invitation }) => Self::Invited(invitation.clone()),
            (Self::Invited(_), UserEvent::InvitationRevoked) => Self::InvitationRevoked,
            (Self::Active { user, name, .. }, UserEvent::Deactivated) => Self::Deactivated { user, name },
            (Self::Deactivated { user, name }, UserEvent::Reactivated) => {
                Self::Active { user, name, sessions: BTreeMap::new(), workspaces: WorkspaceSessions::default() }
            }
            (Self::Active { user, sessions, workspaces, .. }, UserEvent::ProfileChanged { name }) => {
                Self::Active { user, name: name.clone(), sessions, workspaces }
            }
            (Self::Active { user, name, mut sessions, mut workspaces }, event) => {
                evolve_sessions(&mut sessions, event);
                workspaces.evolve(event);
                Self::Active { user, name, sessions, workspaces }
            }
            // What is left changes nothing there.
            (
                state @ (Self::Unknown | Self::Invited(_) | Self::InvitationRevoked | Self::Deactivated { .. }),
                UserEvent::Invited { .. }
                | UserEvent::InvitationRevoked
                | UserEvent::InvitationAccepted
                | UserEvent::ProfileChanged { .. }
                | UserEvent::Deactivated
                | UserEvent::Reactivated
                | UserEvent::SessionOpened { .. }
                | UserEvent::Reauthenticated { .. }
                | UserEvent::SessionEnded { .. }
                | UserEvent::PasswordChanged
                | UserEvent::RevocationRecorded { .. }
                | UserEvent::WorkspaceOpened { .. },
            ) => state,
        }
    }

    fn event_of(event: &Event) -> Option<&UserEvent> {
        if let Event::User(event) = event { Some(event) } else { None }
    }

    fn action_of(command: &UserCommand) -> Action {
        match command {
            UserCommand::Invite { .. } => Action::InvitationCreate,
            UserCommand::RevokeInvitation => Action::InvitationRevoke,
            UserCommand::AcceptInvitation { .. } => Action::InvitationAccept,
            UserCommand::Create { .. } => Action::UserCreate,
            UserCommand::ChangeProfile { .. } => Action::ProfileChange,
            UserCommand::Deactivate { .. } => Action::UserDeactivate,
            UserCommand::Reactivate { .. } => Action::UserReactivate,
            UserCommand::OpenSession { .. }
            | UserCommand::EndSession { .. }
            | UserCommand::EndAllSessions { .. }
            | UserCommand::RecordPasswordChange
            | UserCommand::RecordRevocation { .. } => Action::UserRecordSession,
            UserCommand::EndOwnSession { .. } | UserCommand::EndOwnSessions => Action::SessionRevokeOwn,
            UserCommand::RevokeSessions { .. } => Action::SessionRevoke,
            UserCommand::Reauthenticate { .. } => Action::SessionReauthenticate,
            UserCommand::ChangeOwnPassword => Action::PasswordChangeOwn,
            UserCommand::OpenWorkspace(_) => Action::WorkspaceOpen,
        }
    }
}

fn evolve_sessions(sessions: &mut BTreeMap<SessionId, OpenSession>, event: &UserEvent) {
    match event {
        UserEvent::SessionOpened { session, surface, provider, client, opened_at, authenticated_at, expires_at } => {
            let opened = OpenSession {
                surface: *surface,
                provider: provider.clone(),
                client: client.clone(),
                opened_at: *opened_at,
                authenticated_at: *authenticated_at,
                expires_at: *expires_at,
            };
            sessions.insert(*session, opened);
        }
        UserEvent::Reauthenticated { session, authenticated_at } => {
            if let Some(opened) = sessions.get_mut(session) {
                opened.authenticated_at = *authenticated_at;
            }
        }
        UserEvent::SessionEnded { session, .. } => {
            sessions.remove(session);
        }
        UserEvent::Invited { .. }
        | UserEvent::InvitationRevoked
        | UserEvent::InvitationAccepted
        | UserEvent::Created { .. }
        | UserEvent::ProfileChanged { .. }
        | UserEvent::Deactivated
        | UserEvent::Reactivated
        | UserEvent::PasswordChanged
        | UserEvent::RevocationRecorded { .. }
        | UserEvent::WorkspaceOpened { .. } => {}
    }
}

fn decide_unknown(command: &UserCommand) -> Result<Vec<UserEvent>, UserRefusal> {
    match command {
        UserCommand::Create { user, issuer, subject, email, name } => {
            check_name(name)?;
            Ok(vec![UserEvent::Created {
                user: *user,
                issuer: issuer.clone(),
                subject: subject.clone(),
                email: email.clone(),
                name: name.clone(),
            }])
        }
        UserCommand::Invite { invitation, beyond, now } => {
            check_invitation(invitation, *now)?;
            match beyond {
                Some(role) => Err(UserRefusal::AboveYourself { role: *role }),
                None => Ok(vec![UserEvent::Invited { invitation: invitation.clone() }]),
            }
        }
        UserCommand::RevokeInvitation
        | UserCommand::AcceptInvitation { .. }
        | UserCommand::ChangeProfile { .. }
        | UserCommand::Deactivate { .. }
        | UserCommand::Reactivate { .. }
        | UserCommand::OpenSession { .. }
        | UserCommand::EndSession { .. }
        | UserCommand::EndAllSessions { .. }
        | UserCommand::RecordPasswordChange
        | UserCommand::RecordRevocation { .. }
        | UserCommand::EndOwnSession { .. }
        | UserCommand::EndOwnSessions
        | UserCommand::RevokeSessions { .. }
        | UserCommand::Reauthenticate { .. }
        | UserCommand::ChangeOwnPassword
        | UserCommand::OpenWorkspace(_) => Err(UserRefusal::Unknown),
    }
}

fn decide_invited(invitation: &Invitation, command: &UserCommand) -> Result<Vec<UserEvent>, UserRefusal> {
    match command {
        UserCommand::AcceptInvitation { name, issuer, subject, beyond, now } => {
            check_name(name)?;
            if !invitation.is_open(*now) {
                return Err(UserRefusal::InvitationExpired);
            }
            if let Some(role) = beyond {
                return Err(UserRefusal::InvitationLapsed { role: *role });
            }
            Ok(vec![
                UserEvent::InvitationAccepted,
                UserEvent::Created {
                    user: invitation.user,
                    issuer: issuer.clone(),
                    subject: subject.clone(),
                    email: invitation.email.clone(),
                    name: name.clone(),
                },
            ])
        }
        UserCommand::RevokeInvitation => Ok(vec![UserEvent::InvitationRevoked]),
        UserCommand::Invite { .. } | UserCommand::Create { .. } => Err(UserRefusal::Exists),
        UserCommand::ChangeProfile { .. }
        | UserCommand::Deactivate { .. }
        | UserCommand::Reactivate { .. }
        | UserCommand::OpenSession { .. }
        | UserCommand::EndSession { .. }
        | UserCommand::EndAllSessions { .. }
        | UserCommand::RecordPasswordChange
        | UserCommand::RecordRevocation { .. }
        | UserCommand::EndOwnSession { .. }
        | UserCommand::EndOwnSessions
        | UserCommand::RevokeSessions { .. }
        | UserCommand::Reauthenticate { .. }
        | UserCommand::ChangeOwnPassword
        | UserCommand::OpenWorkspace(_) => Err(UserRefusal::Unknown),
    }
}

fn decide_uninvited(command: &UserCommand) -> Result<Vec<UserEvent>, UserRefusal> {
    match command {
        UserCommand::RevokeInvitation => Ok(vec![]),
        UserCommand::AcceptInvitation { .. } => Err(UserRefusal::InvitationRevoked),
        UserCommand::Invite { .. } | UserCommand::Create { .. } => Err(UserRefusal::Exists),
        UserCommand::ChangeProfile { .. }
        | UserCommand::Deactivate { .. }
        | UserCommand::Reactivate { .. }
        | UserCommand::OpenSession { .. }
        | UserCommand::EndSession { .. }
        | UserCommand::EndAllSessions { .. }
        | UserCommand::RecordPasswordChange
        | UserCommand::RecordRevocation { .. }
        | UserCommand::EndOwnSession { .. }
        | UserCommand::EndOwnSessions
        | UserCommand::RevokeSessions { .. }
        | UserCommand::Reauthenticate { .. }
        | UserCommand::ChangeOwnPassword
        | UserCommand::OpenWorkspace(_) => Err(UserRefusal::Unknown),
    }
}

fn decide_active(
    name: &str,
    sessions: &BTreeMap<SessionId, OpenSession>,
    workspaces: &WorkspaceSessions,
    command: &UserCommand,
) -> Result<Vec<UserEvent>, UserRefusal> {
    // What was opened from a session ends with it and needs no event of its own.
    let end_all = |reason| {
        sessions.keys().map(move |session| UserEvent::SessionEnded { session: *session, reason }).collect::<Vec<_>>()
    };
    let end = |session: &SessionId, reason| {
        Ok(if sessions.contains_key(session) || workspaces.contains(*session) {
            vec![UserEvent::SessionEnded { session: *session, reason }]
        } else {
            vec![]
        })
    };
    match command {
        UserCommand::Invite { .. } | UserCommand::Create { .. } => Err(UserRefusal::Exists),
        UserCommand::RevokeInvitation | UserCommand::AcceptInvitation { .. } => Err(UserRefusal::InvitationAccepted),
        UserCommand::ChangeProfile { name: wanted } => {
            check_name(wanted)?;
            Ok(if wanted == name { vec![] } else { vec![UserEvent::ProfileChanged { name: wanted.clone() }] })
        }
        UserCommand::Deactivate { beyond: Some(role), .. }
        | UserCommand::Reactivate { beyond: Some(role) }
        | UserCommand::RevokeSessions { beyond: Some(role), .. } => Err(UserRefusal::AboveYourself { role: *role }),
        UserCommand::Deactivate { beyond: None, only_owner: true } => Err(UserRefusal::LastOwner),
        // Deactivation ends every session by itself: the state forgets them, and views treat it so.
        UserCommand::Deactivate { beyond: None, only_owner: false } => Ok(vec![UserEvent::Deactivated]),
        UserCommand::Reactivate { beyond: None } => Ok(vec![]),
        UserCommand::OpenSession { session, opened, now } => Ok(open(sessions, *session, opened, *now)),
        UserCommand::EndSession { session, reason } => end(session, *reason),
        UserCommand::EndOwnSession { session } => end(session, SessionEnd::LoggedOut),
        UserCommand::EndAllSessions { reason } => Ok(end_all(*reason)),
        UserCommand::EndOwnSessions => Ok(end_all(SessionEnd::LoggedOut)),
        UserCommand::RevokeSessions { session: Some(session), beyond: None } => end(session, SessionEnd::Revoked),
        UserCommand::RevokeSessions { session: None, beyond: None } => Ok(end_all(SessionEnd::Revoked)),
        UserCommand::Reauthenticate { session, authenticated_at } => match sessions.get(session) {
            None => Err(UserRefusal::SessionEnded),
            Some(opened) if opened.authenticated_at >= *authenticated_at => Ok(vec![]),
            Some(_) => Ok(vec![UserEvent::Reauthenticated { session: *session, authenticated_at: *authenticated_at }]),
        },
        UserCommand::RecordPasswordChange | UserCommand::ChangeOwnPassword => {
            let mut events = vec![UserEvent::PasswordChanged];
            events.extend(end_all(SessionEnd::PasswordChanged));
            Ok(events)
        }
        UserCommand::RecordRevocation { cause, receipt } => {
            Ok(vec![UserEvent::RevocationRecorded { cause: *cause, receipt: receipt.clone() }])
        }
        UserCommand::OpenWorkspace(asked) => workspaces.decide_open(sessions, asked),
    }
}

fn decide_deactivated(command: &UserCommand) -> Result<Vec<UserEvent>, UserRefusal> {
    match command {
        UserCommand::Invite { .. } | UserCommand::Create { .. } => Err(UserRefusal::Exists),
        UserCommand::RevokeInvitation | UserCommand::AcceptInvitation { .. } => Err(UserRefusal::InvitationAccepted),
        UserCommand::Reactivate { beyond: Some(role) } => Err(UserRefusal::AboveYourself { role: *role }),
        UserCommand::Reactivate { beyond: None } => Ok(vec![UserEvent::Reactivated]),
        UserCommand::RecordRevocation { cause, receipt } => {
            Ok(vec![UserEvent::RevocationRecorded { cause: *cause, receipt: receipt.clone() }])
        }
        UserCommand::Deactivate { .. }
        | UserCommand::EndSession { .. }
        | UserCommand::EndOwnSession { .. }
        | UserCommand::EndOwnSessions
        | UserCommand::RevokeSessions { .. }
        | UserCommand::EndAllSessions { .. } => Ok(vec![]),
        UserCommand::ChangeProfile { .. }
        | UserCommand::OpenSession { .. }
        | UserCommand::Reauthenticate { .. }
        | UserCommand::ChangeOwnPassword
        | UserCommand::RecordPasswordChange
        | UserCommand::OpenWorkspace(_) => Err(UserRefusal::Deactivated),
    }
}

fn open(
    sessions: &BTreeMap<SessionId, OpenSession>,
    session: SessionId,
    opened: &OpenSession,
    now: UnixMillis,
) -> Vec<UserEvent> {
    if sessions.contains_key(&session) {
        return vec![];
    }
    let is_over = |opened: &OpenSession| opened.expires_at <= now;
    let expired = sessions.iter().filter(|(_, opened)| is_over(opened)).map(|(id, _)| *id);
    let mut live: Vec<_> = sessions
        .iter()
        .filter(|(_, opened)| !is_over(opened))
        .map(|(id, opened)| (opened.opened_at, opened.expires_at, *id))
        .collect();
    live.sort_unstable();
    let displaced = (live.len() + 1).saturating_sub(SESSIONS_MAX);
    // At most a few expired sessions are swept along, so that one commit stays small.
    let mut events: Vec<_> =
        expired.take(16).map(|session| UserEvent::SessionEnded { session, reason: SessionEnd::Expired }).collect();
    events.extend(
        live.into_iter()
            .take(displaced)
            .map(|(_, _, session)| UserEvent::SessionEnded { session, reason: SessionEnd::Displaced }),
    );
    events.push(UserEvent::session_opened(session, opened.clone()));
    events
}

fn check_name(name: &str) -> Result<(), UserRefusal> {
    if name_is_valid(name) { Ok(()) } else { Err(UserRefusal::Name { max: NAME_CHARS_MAX }) }
}

fn check_invitation(invitation: &Invitation, now: UnixMillis) -> Result<(), UserRefusal> {
    let (min, max) = (INVITATION_LIFETIME_MIN, INVITATION_LIFETIME_MAX);
    let open_for = invitation.expires_at.since(now);
    if open_for < min || open_for > max {
        return Err(UserRefusal::InvitationLifetime { min, max });
    }
    let mut roles = invitation.roles.clone();
    roles.sort_unstable();
    roles.dedup();
    if roles.len() != invitation.roles.len() || roles.len() > INVITATION_ROLES_MAX {
        return Err(UserRefusal::InvitationRoles { max: INVITATION_ROLES_MAX });
    }
    match roles.iter().find(|invited| invited.role.only_org_wide() && invited.scope != Scope::Organization) {
        Some(invited) => Err(UserRefusal::OrgWideOnly { role: invited.role }),
        None => Ok(()),
    }
}

impl From<UserEvent> for Event {
    fn from(event: UserEvent) -> Self {
        Self::User(event)
    }
}
