//! Root windows as the log has them, and until when each stands now: its own end, its requester's right, the policy.
//!
//! All of an organization's windows are kept: people ask for them one by one. Not here: what becomes of a window (the
//! domain's own `evolve`).

use std::collections::BTreeMap;

use envforge_domain::access::Resource;
use envforge_domain::aggregate::Aggregate;
use envforge_domain::ids::{OrgId, RootWindowId, UserId, WorkspaceId};
use envforge_domain::root_window::{RootPhase, RootWindow, RootWindowEvent};
use envforge_domain::time::UnixMillis;
use tokio::sync::watch;

use super::organization::OrganizationFacts;
use super::{AuthorizationView, Inner};

/// The windows of one organization, the oldest first.
pub(super) type RootWindows = BTreeMap<RootWindowId, RootWindow>;

/// A window as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownRootWindow {
    pub org: OrgId,
    pub window: RootWindowId,
    pub state: RootWindow,
    /// When it, or what it waits for, is over: its own end, held against policy and requester's right. `None` once it is over
    /// for good.
    pub ends_at: Option<UnixMillis>,
    /// Whether the requester, or the policy, ends it before its own time.
    pub right_lost: bool,
}

impl KnownRootWindow {
    /// Whether something may still happen in it.
    pub fn stands(&self, now: UnixMillis) -> bool {
        self.ends_at.is_some_and(|end| now < end)
    }

    pub fn resource(&self) -> Option<Resource> {
        let terms = self.state.terms()?;
        let (org, project, workspace, window) = (self.org, terms.project, terms.workspace, self.window);
        Some(Resource::RootWindow { org, project, workspace, window })
    }
}

/// A window that a change would end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootWindowConsequence {
    pub window: RootWindowId,
    pub workspace: WorkspaceId,
    pub requester: UserId,
    pub phase: RootPhase,
    /// At once, where that is not later than the question.
    pub ends_at: UnixMillis,
    pub reason: RootWindowLoss,
}

/// Why a window would end, or end earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootWindowLoss {
    /// Its requester could not ask for it any more, or not for as long.
    Requester,
    /// The policy does not allow such windows, or none as long.
    Policy,
}

/// How long a window stands, by its two reasons.
struct Ends {
    by_policy: UnixMillis,
    by_right: UnixMillis,
}

impl Ends {
    fn both(&self) -> UnixMillis {
        self.by_policy.min(self.by_right)
    }
}

impl AuthorizationView {
    pub fn root_window(&self, window: RootWindowId) -> Option<KnownRootWindow> {
        let inner = self.inner.read();
        let org = *inner.root_window_orgs.get(&window)?;
        inner.known_root_window(org, window)
    }

    /// The windows of an organization, the newest first.
    pub fn root_windows(&self, org: OrgId) -> Vec<KnownRootWindow> {
        let inner = self.inner.read();
        let windows = inner.root_windows.get(&org).into_iter().flat_map(|windows| windows.keys().rev());
        windows.filter_map(|window| inner.known_root_window(org, *window)).collect()
    }

    /// How many requests of one person for one workspace wait for an answer.
    pub fn root_requests_pending(
        &self,
        org: OrgId,
        requester: UserId,
        workspace: WorkspaceId,
        now: UnixMillis,
    ) -> usize {
        let inner = self.inner.read();
        let windows = inner.root_windows.get(&org).into_iter().flat_map(BTreeMap::values);
        let of_theirs = windows.filter(|state| {
            let is_pending = state.phase(now) == Some(RootPhase::Requested);
            is_pending
                && state.terms().is_some_and(|terms| (terms.requester, terms.workspace) == (requester, workspace))
        });
        of_theirs.count()
    }

    /// Windows, of whatever organization, with a command that has no end yet.
    pub fn root_commands_under_way(&self) -> Vec<KnownRootWindow> {
        let inner = self.inner.read();
        let windows = inner.root_commands.iter();
        windows.filter_map(|window| inner.known_root_window(*inner.root_window_orgs.get(window)?, *window)).collect()
    }

    /// How many those are; told whenever it changes.
    pub fn root_commands_count(&self) -> watch::Receiver<usize> {
        self.inner.read().root_commands_count.subscribe()
    }
}

impl Inner {
    pub(super) fn apply_root_window(&mut self, org: OrgId, window: RootWindowId, event: &RootWindowEvent) {
        self.root_window_orgs.insert(window, org);
        let state = self.root_windows.entry(org).or_default().entry(window).or_default();
        *state = RootWindow::evolve(std::mem::take(state), event);
        if state.command().is_some_and(|command| command.ended.is_none()) {
            self.root_commands.insert(window);
        } else {
            self.root_commands.remove(&window);
        }
        let now = self.root_commands.len();
        self.root_commands_count.send_if_modified(|count| std::mem::replace(count, now) != now);
    }

    fn known_root_window(&self, org: OrgId, window: RootWindowId) -> Option<KnownRootWindow> {
        let state = self.root_windows.get(&org)?.get(&window)?;
        let ends = self.organizations.get(&org).and_then(|facts| self.ends(window, state, facts));
        let own = self.own_end(state);
        Some(KnownRootWindow {
            org,
            window,
            right_lost: ends.as_ref().zip(own).is_some_and(|(ends, own)| ends.both() < own),
            ends_at: ends.map(|ends| ends.both()),
            state: state.clone(),
        })
    }

    /// Without policy and rights.
    fn own_end(&self, state: &RootWindow) -> Option<UnixMillis> {
        match state {
            RootWindow::Unknown | RootWindow::Over(_) => None,
            RootWindow::Requested { expires_at, .. } => Some(*expires_at),
            RootWindow::Approved { use_until, .. } => Some(*use_until),
            RootWindow::Open(open) => Some(open.ends_at),
        }
    }

    /// As these facts of the organization make it: what is in force, or what would be.
    fn ends(&self, window: RootWindowId, state: &RootWindow, organization: &OrganizationFacts) -> Option<Ends> {
        let by_policy = state.ends_at(&organization.policy)?;
        let terms = state.terms()?;
        let (org, project, workspace) = (organization.org, terms.project, terms.workspace);
        let resource = Resource::RootWindow { org, project, workspace, window };
        let person = self.users.get(&terms.requester);
        let by_right = organization.may_until(terms.requester, person, terms.mode.ground(), resource);
        Some(Ends { by_policy, by_right: by_right.unwrap_or(UnixMillis::EPOCH) })
    }

    /// What other facts of the organization would end.
    pub(super) fn root_window_consequences(
        &self,
        before: &OrganizationFacts,
        after: &OrganizationFacts,
        now: UnixMillis,
    ) -> Vec<RootWindowConsequence> {
        let windows = self.root_windows.get(&before.org).into_iter().flatten();
        let ending = windows.filter_map(|(window, state)| {
            let (is, would_be) = (self.ends(*window, state, before)?, self.ends(*window, state, after)?);
            let (terms, phase) = (state.terms()?, state.phase(now)?);
            if now >= is.both() || would_be.both() >= is.both() {
                return None;
            }
            let reason = match would_be.by_policy < is.both() {
                true => RootWindowLoss::Policy,
                false => RootWindowLoss::Requester,
            };
            Some(RootWindowConsequence {
                window: *window,
                workspace: terms.workspace,
                requester: terms.requester,
                phase,
                ends_at: would_be.both().max(now),
                reason,
            })
        });
        ending.collect()
    }
}
