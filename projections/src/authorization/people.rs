//! People as the policy needs them: their organization, whether they are active, and their sessions.

use ahash::AHashMap;
use envforge_domain::commit::Surface;
use envforge_domain::ids::{OrgId, SessionId};
use envforge_domain::organization::OrganizationPolicy;
pub use envforge_domain::organization::SessionOver;
use envforge_domain::time::UnixMillis;
use envforge_domain::user::UserEvent;

pub(super) struct UserFacts {
    pub(super) org: OrgId,
    pub(super) active: bool,
    /// Of the identity provider that vouches for them.
    pub(super) issuer: String,
    pub(super) email: String,
    pub(super) name: String,
    pub(super) sessions: AHashMap<SessionId, SessionFacts>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct SessionFacts {
    /// By the clock that set its end too.
    pub(super) opened_at: UnixMillis,
    pub(super) expires_at: UnixMillis,
    pub(super) surface: Surface,
    /// The session from which a workspace was opened, and with which this one ends.
    pub(super) parent: Option<SessionId>,
}

impl UserFacts {
    pub(super) fn session_live(&self, policy: &OrganizationPolicy, session: SessionId, now: UnixMillis) -> bool {
        self.sessions.get(&session).is_some_and(|session| self.session_over(policy, session, now).is_none())
    }

    /// Held against the policy as it is now, whatever it was at sign-in.
    pub(super) fn session_over(
        &self,
        policy: &OrganizationPolicy,
        session: &SessionFacts,
        now: UnixMillis,
    ) -> Option<SessionOver> {
        policy.session_over(&self.issuer, session.opened_at, session.expires_at, now)
    }

    /// `at`: when it was decided.
    pub(super) fn apply(&mut self, event: &UserEvent, at: UnixMillis) {
        match event {
            UserEvent::Created { .. }
            | UserEvent::Invited { .. }
            | UserEvent::InvitationRevoked
            | UserEvent::InvitationAccepted
            | UserEvent::Reauthenticated { .. }
            | UserEvent::PasswordChanged
            | UserEvent::RevocationRecorded { .. } => {}
            UserEvent::ProfileChanged { name } => self.name.clone_from(name),
            UserEvent::Deactivated => {
                self.active = false;
                self.sessions.clear();
            }
            UserEvent::Reactivated => self.active = true,
            UserEvent::SessionOpened { session, surface, expires_at, .. } => {
                let opened = SessionFacts { opened_at: at, expires_at: *expires_at, surface: *surface, parent: None };
                self.sessions.insert(*session, opened);
            }
            UserEvent::WorkspaceOpened { session, parent, expires_at, .. } => {
                // How long somebody may stay signed in counts from when they signed in.
                if let Some(from) = self.sessions.get(parent).copied() {
                    self.sessions.retain(|_, known| known.parent.is_none() || at < known.expires_at);
                    let expires_at = from.expires_at.min(*expires_at);
                    self.sessions.insert(
                        *session,
                        SessionFacts { expires_at, surface: Surface::Gateway, parent: Some(*parent), ..from },
                    );
                }
            }
            UserEvent::SessionEnded { session, .. } => {
                self.sessions.retain(|id, known| id != session && known.parent != Some(*session));
            }
        }
    }
}
