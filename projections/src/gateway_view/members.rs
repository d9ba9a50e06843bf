//! Members' sessions on workspaces' hosts, each with its right as of now and what ends the things it has open.
//!
//! A session is held against rights again whenever something is said of its person or of the organization's rights. One
//! that ended is forgotten; one whose right was taken stays, and stands again should the right come back. Not here:
//! deciding over requests (the gateway) and what the right is (`authorization`).

use std::sync::Arc;

use ahash::AHashMap;
use envforge_domain::access::{ActorFacts, Grantee, Resource};
use envforge_domain::commit::Recorded;
use envforge_domain::dev_link::RouteFamilies;
use envforge_domain::event::Event;
use envforge_domain::ids::{OrgId, ProjectId, SessionId, UserId, WorkspaceId};
use envforge_domain::organization::OrganizationEvent;
use envforge_domain::secret::TokenDigest;
use envforge_domain::slug::HostLabel;
use envforge_domain::time::UnixMillis;
use envforge_domain::user::UserEvent;
use parking_lot::{Mutex, RwLock};

use super::{CloseReason, Closers};
use crate::authorization::AuthorizationView;
use crate::closers::Closings;

/// Sessions held before those whose time is over are looked for.
const SWEPT_SESSIONS_MIN: usize = 1_024;

/// A member's session on one host as of now. Replaced as a whole by each change.
#[derive(Debug, Clone)]
pub struct MemberView {
    pub user: UserId,
    pub session: SessionId,
    /// The browser's session at the API, with which this one ends.
    pub parent: SessionId,
    pub org: OrgId,
    pub project: ProjectId,
    pub workspace: WorkspaceId,
    pub workspace_name: String,
    pub host: HostLabel,
    /// Of its cookie.
    pub cookie: TokenDigest,
    /// What the policy decides on; `None` while the member may not open the workspace.
    pub right: Option<ActorFacts>,
    /// The session's own end, or that of the right, whichever comes first.
    pub ends_at: UnixMillis,
    /// The session's own.
    pub signed_in_until: UnixMillis,
    pub closers: Closers,
}

impl MemberView {
    pub fn resource(&self) -> Resource {
        Resource::Workspace { org: self.org, project: self.project, workspace: self.workspace }
    }
}

pub(super) struct Members {
    by_cookie: RwLock<AHashMap<TokenDigest, Arc<MemberView>>>,
    closings: Arc<Closings>,
    fold: Mutex<Fold>,
}

/// What only the writer needs.
#[derive(Default)]
struct Fold {
    cookies: AHashMap<SessionId, TokenDigest>,
    by_user: AHashMap<UserId, Vec<SessionId>>,
    /// Sweeps when there are so many.
    sweep_at: usize,
}

impl Members {
    pub(super) fn new(closings: Arc<Closings>) -> Self {
        Self { by_cookie: RwLock::default(), closings, fold: Mutex::default() }
    }

    pub(super) fn get(&self, cookie: &TokenDigest) -> Option<Arc<MemberView>> {
        self.by_cookie.read().get(cookie).cloned()
    }

    pub(super) fn len(&self) -> usize {
        self.by_cookie.read().len()
    }

    /// Folds one commit, whose rights are folded already. `host_of`: the label and the name of a workspace that was opened.
    pub(super) fn apply(
        &self,
        recorded: &Recorded,
        rights: &AuthorizationView,
        host_of: impl Fn(&UserEvent) -> Option<(HostLabel, String)>,
    ) {
        let (org, at) = (recorded.commit.stream.org(), recorded.recorded_at);
        let mut fold = self.fold.lock();
        for event in &recorded.commit.events {
            match event {
                Event::User(event) => {
                    if let Ok(user) = recorded.commit.stream.key().parse() {
                        self.apply_user(&mut fold, org, user, event, at, rights, &host_of);
                    }
                }
                Event::Organization(event) => self.apply_organization(&mut fold, org, event, at, rights),
                Event::Workspace(_)
                | Event::Runtime(_)
                | Event::DevLink(_)
                | Event::Project(_)
                | Event::Host(_)
                | Event::Claim(_)
                | Event::Denial(_)
                | Event::Decision(_)
                | Event::ServiceToken(_)
                | Event::RootWindow(_)
                | Event::Shell(_)
                | Event::JobRun(_)
                | Event::Secrets(_)
                | Event::Machine(_) => {}
            }
        }
    }

    #[allow(clippy::too_many_arguments, reason = "one event with what it is held against")]
    fn apply_user(
        &self,
        fold: &mut Fold,
        org: OrgId,
        user: UserId,
        event: &UserEvent,
        at: UnixMillis,
        rights: &AuthorizationView,
        host_of: &impl Fn(&UserEvent) -> Option<(HostLabel, String)>,
    ) {
        match event {
            UserEvent::WorkspaceOpened { session, parent, project, workspace, cookie, expires_at, .. } => {
                let Some((host, workspace_name)) = host_of(event) else { return };
                let view = MemberView {
                    user,
                    session: *session,
                    parent: *parent,
                    org,
                    project: *project,
                    workspace: *workspace,
                    workspace_name,
                    host,
                    cookie: *cookie,
                    right: None,
                    ends_at: *expires_at,
                    signed_in_until: *expires_at,
                    closers: Closers::default(),
                };
                self.open(fold, judged(&view, rights, at), at);
            }
            UserEvent::SessionEnded { session, .. } => {
                self.end(fold, user, CloseReason::SignedOut, |view| {
                    view.session == *session || view.parent == *session
                });
            }
            UserEvent::Deactivated => self.end(fold, user, CloseReason::SignedOut, |_| true),
            UserEvent::Created { .. }
            | UserEvent::Invited { .. }
            | UserEvent::InvitationRevoked
            | UserEvent::InvitationAccepted
            | UserEvent::ProfileChanged { .. }
            | UserEvent::Reactivated
            | UserEvent::SessionOpened { .. }
            | UserEvent::Reauthenticated { .. }
            | UserEvent::PasswordChanged
            | UserEvent::RevocationRecorded { .. } => {}
        }
    }

    fn apply_organization(
        &self,
        fold: &mut Fold,
        org: OrgId,
        event: &OrganizationEvent,
        at: UnixMillis,
        rights: &AuthorizationView,
    ) {
        match event {
            OrganizationEvent::MemberRemoved { user } => self.end(fold, *user, CloseReason::SignedOut, |_| true),
            OrganizationEvent::RoleAssigned { grant } => self.judge_grantee(fold, org, grant.grantee, at, rights),
            OrganizationEvent::RoleRevoked { grantee, .. } => self.judge_grantee(fold, org, *grantee, at, rights),
            OrganizationEvent::TeamMemberAdded { user, .. } | OrganizationEvent::TeamMemberRemoved { user, .. } => {
                self.judge_grantee(fold, org, Grantee::User(*user), at, rights);
            }
            OrganizationEvent::TeamDeleted { .. } | OrganizationEvent::PolicyChanged { .. } => {
                self.judge_all(fold, org, at, rights);
            }
            OrganizationEvent::Created { .. }
            | OrganizationEvent::MemberAdded { .. }
            | OrganizationEvent::TeamCreated { .. }
            | OrganizationEvent::TeamRenamed { .. }
            | OrganizationEvent::OwnerRecovered { .. }
            | OrganizationEvent::RevocationRecorded { .. } => {}
        }
    }

    fn judge_grantee(&self, fold: &mut Fold, org: OrgId, grantee: Grantee, at: UnixMillis, rights: &AuthorizationView) {
        match grantee {
            Grantee::Team(_) => self.judge_all(fold, org, at, rights),
            Grantee::User(user) => {
                let sessions = fold.by_user.get(&user).cloned().unwrap_or_default();
                let cookies: Vec<_> =
                    sessions.iter().filter_map(|session| fold.cookies.get(session)).copied().collect();
                self.judge(&cookies, at, rights);
            }
        }
    }

    fn judge_all(&self, fold: &Fold, org: OrgId, at: UnixMillis, rights: &AuthorizationView) {
        let open = self.by_cookie.read();
        let concerned = fold.cookies.values().filter(|cookie| open.get(*cookie).is_some_and(|view| view.org == org));
        let cookies: Vec<_> = concerned.copied().collect();
        drop(open);
        self.judge(&cookies, at, rights);
    }

    fn judge(&self, cookies: &[TokenDigest], at: UnixMillis, rights: &AuthorizationView) {
        for cookie in cookies {
            let Some(before) = self.get(cookie) else { continue };
            let mut after = judged(&before, rights, at);
            let less = after.right.is_none() && before.right.is_some() || after.ends_at < before.ends_at;
            if after.right.is_none() && before.right.is_some() {
                self.closings.count(|over| over.member_sessions += 1);
            }
            if less {
                after.closers = after.closers.renewed(RouteFamilies::ALL);
            }
            self.by_cookie.write().insert(*cookie, Arc::new(after));
            // INVARIANT: the change is visible before the closers are given.
            if less {
                self.closings.close(&before.closers, RouteFamilies::ALL, CloseReason::MemberLostRight);
            }
        }
    }

    /// Ends what a workspace's sessions have open; they go on.
    pub(super) fn close_workspace(
        &self,
        workspace: WorkspaceId,
        reason: CloseReason,
        concerned: impl Fn(&MemberView) -> bool,
    ) {
        let open = self.by_cookie.read();
        let here = open.values().filter(|view| view.workspace == workspace && concerned(view));
        let closing: Vec<_> = here.cloned().collect();
        drop(open);
        for before in closing {
            if !reason.leaves_right() && before.right.is_some() {
                self.closings.count(|over| over.member_sessions += 1);
            }
            let mut after = (*before).clone();
            after.closers = after.closers.renewed(RouteFamilies::ALL);
            self.by_cookie.write().insert(before.cookie, Arc::new(after));
            self.closings.close(&before.closers, RouteFamilies::ALL, reason);
        }
    }

    pub(super) fn close_all(&self, reason: CloseReason) {
        let all: Vec<_> = self.by_cookie.read().values().cloned().collect();
        for view in all {
            view.closers.close(RouteFamilies::ALL, reason, None);
        }
    }

    fn open(&self, fold: &mut Fold, view: MemberView, at: UnixMillis) {
        if fold.cookies.len() >= fold.sweep_at.max(SWEPT_SESSIONS_MIN) {
            self.sweep(fold, at);
            fold.sweep_at = fold.cookies.len() * 2;
        }
        fold.cookies.insert(view.session, view.cookie);
        fold.by_user.entry(view.user).or_default().push(view.session);
        self.by_cookie.write().insert(view.cookie, Arc::new(view));
    }

    fn end(&self, fold: &mut Fold, user: UserId, reason: CloseReason, over: impl Fn(&MemberView) -> bool) {
        let Some(mut sessions) = fold.by_user.remove(&user) else { return };
        sessions.retain(|session| {
            let Some(cookie) = fold.cookies.get(session).copied() else { return false };
            let Some(view) = self.get(&cookie) else { return false };
            if !over(&view) {
                return true;
            }
            fold.cookies.remove(session);
            if reason != CloseReason::Expired {
                self.closings.count(|over| over.member_sessions += 1);
            }
            self.by_cookie.write().remove(&cookie);
            // INVARIANT: gone from the view before anything open is told.
            self.closings.close(&view.closers, RouteFamilies::ALL, reason);
            false
        });
        if !sessions.is_empty() {
            fold.by_user.insert(user, sessions);
        }
    }

    /// Forgets sessions whose own time is over: nobody says so of each.
    fn sweep(&self, fold: &mut Fold, at: UnixMillis) {
        let open = self.by_cookie.read();
        let over: Vec<_> = open.values().filter(|view| view.signed_in_until <= at).cloned().collect();
        drop(open);
        for view in over {
            self.end(fold, view.user, CloseReason::Expired, |other| other.session == view.session);
        }
    }
}

/// The session held against rights as they are now.
fn judged(view: &MemberView, rights: &AuthorizationView, at: UnixMillis) -> MemberView {
    let right = rights.opening_right(view.user, view.session, view.resource(), at);
    let mut next = view.clone();
    match right {
        Some(right) => {
            (next.right, next.ends_at) = (Some(right.facts), right.until);
            next.signed_in_until = right.signed_in_until;
        }
        None => next.right = None,
    }
    next
}
