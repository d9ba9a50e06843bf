//! A member's sessions on the hosts of workspaces: each opened from a session of their browser at the API, on one host, and
//! over with that session at the latest.
//!
//! The end of the session that it was opened from is its end, by one event and not by a second one that could be missing.
//! Not here: whether the member may open the workspace, which is the policy's word at each request (`access`).

use std::collections::BTreeMap;

use crate::ids::{HandoffId, ProjectId, SessionId, WorkspaceId};
use crate::limits::{HANDOFF_LIFETIME, WORKSPACE_SESSIONS_MAX};
use crate::secret::TokenDigest;
use crate::session::{OpenSession, SessionEnd};
use crate::slug::ServiceName;
use crate::time::UnixMillis;
use crate::user::{UserEvent, UserRefusal};

/// An open session on the host of one service of one workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkspaceSession {
    /// The browser's session at the API.
    pub parent: SessionId,
    pub project: ProjectId,
    pub workspace: WorkspaceId,
    pub service: ServiceName,
    pub opened_at: UnixMillis,
    /// Its parent's end.
    pub expires_at: UnixMillis,
}

/// A handoff that a gateway has proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenWorkspace {
    pub session: SessionId,
    pub parent: SessionId,
    pub handoff: HandoffId,
    pub handoff_expires_at: UnixMillis,
    pub project: ProjectId,
    pub workspace: WorkspaceId,
    pub service: ServiceName,
    /// Of the new cookie.
    pub cookie: TokenDigest,
    pub now: UnixMillis,
}

/// One person's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkspaceSessions {
    open: BTreeMap<SessionId, WorkspaceSession>,
    /// Handoffs that were used, for as long as they could be presented again.
    redeemed: BTreeMap<HandoffId, UnixMillis>,
}

impl WorkspaceSessions {
    pub fn iter(&self) -> impl Iterator<Item = (&SessionId, &WorkspaceSession)> {
        self.open.iter()
    }

    pub fn contains(&self, session: SessionId) -> bool {
        self.open.contains_key(&session)
    }

    /// How many stand on a session.
    pub fn opened_from(&self, parent: SessionId) -> usize {
        self.open.values().filter(|open| open.parent == parent).count()
    }

    pub(crate) fn decide_open(
        &self,
        sessions: &BTreeMap<SessionId, OpenSession>,
        asked: &OpenWorkspace,
    ) -> Result<Vec<UserEvent>, UserRefusal> {
        let now = asked.now;
        if self.redeemed.contains_key(&asked.handoff) {
            return Err(UserRefusal::HandoffUsed);
        }
        if asked.handoff_expires_at <= now || asked.handoff_expires_at.since(now) > HANDOFF_LIFETIME {
            return Err(UserRefusal::HandoffExpired { max: HANDOFF_LIFETIME });
        }
        let parent = sessions.get(&asked.parent).filter(|parent| now < parent.expires_at);
        let parent = parent.ok_or(UserRefusal::SessionEnded)?;
        let live = self.open.iter().filter(|(_, open)| now < open.expires_at);
        let mut live: Vec<_> = live.map(|(session, open)| (open.opened_at, *session)).collect();
        live.sort_unstable();
        let displaced = (live.len() + 1).saturating_sub(WORKSPACE_SESSIONS_MAX);
        let mut events: Vec<_> = live
            .into_iter()
            .take(displaced)
            .map(|(_, session)| UserEvent::SessionEnded { session, reason: SessionEnd::Displaced })
            .collect();
        let OpenWorkspace { session, parent: opened_from, handoff, project, workspace, cookie, .. } = *asked;
        events.push(UserEvent::WorkspaceOpened {
            session,
            parent: opened_from,
            handoff,
            project,
            workspace,
            service: asked.service.clone(),
            cookie,
            opened_at: now,
            expires_at: parent.expires_at,
        });
        Ok(events)
    }

    pub(crate) fn evolve(&mut self, event: &UserEvent) {
        match event {
            UserEvent::WorkspaceOpened {
                session,
                parent,
                handoff,
                project,
                workspace,
                service,
                cookie: _,
                opened_at,
                expires_at,
            } => {
                self.open.retain(|_, open| *opened_at < open.expires_at);
                self.redeemed.retain(|_, until| *opened_at < *until);
                self.redeemed.insert(*handoff, opened_at.plus(HANDOFF_LIFETIME));
                let open = WorkspaceSession {
                    parent: *parent,
                    project: *project,
                    workspace: *workspace,
                    service: service.clone(),
                    opened_at: *opened_at,
                    expires_at: *expires_at,
                };
                self.open.insert(*session, open);
            }
            UserEvent::SessionEnded { session, .. } => {
                self.open.retain(|id, open| id != session && open.parent != *session);
            }
            UserEvent::Invited { .. }
            | UserEvent::InvitationRevoked
            | UserEvent::InvitationAccepted
            | UserEvent::Created { .. }
            | UserEvent::ProfileChanged { .. }
            | UserEvent::Deactivated
            | UserEvent::Reactivated
            | UserEvent::SessionOpened { .. }
            | UserEvent::Reauthenticated { .. }
            | UserEvent::PasswordChanged
            | UserEvent::RevocationRecorded { .. } => {}
        }
    }
}
