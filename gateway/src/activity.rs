//! Who uses which workspace right now: the attributed activity that decides over idle sleep.
//!
//! Counted are requests that were admitted and streams that are open (answers under way, sockets). Requests that were
//! refused are no activity: a scanner keeps nothing awake. Not here: the decision to sleep (reactors).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use ahash::AHashMap;
use envforge_domain::ids::WorkspaceId;
use envforge_domain::time::UnixMillis;
use parking_lot::{Mutex, RwLock};

use crate::ground::Visitor;

/// Shared between gateway and reactors; cheap to clone.
#[derive(Clone, Default)]
pub struct Activity {
    workspaces: Arc<RwLock<AHashMap<WorkspaceId, Arc<Counters>>>>,
}

#[derive(Default)]
struct Counters {
    last: AtomicU64,
    open: AtomicU32,
    sockets: AtomicU32,
    /// Whose request was the last to begin; read once in a while, written by each request.
    visitor: Mutex<Option<Visitor>>,
}

/// What is known about one workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkspaceActivity {
    pub workspace: WorkspaceId,
    /// Last admitted request, or last byte of a socket.
    pub last_at: UnixMillis,
    /// Answers and sockets under way.
    pub open_streams: u32,
    /// Of those, sockets.
    pub open_sockets: u32,
    /// Whose request began last.
    pub visitor: Option<Visitor>,
}

impl Activity {
    /// `None` where this gateway has seen nothing since it started.
    pub fn of(&self, workspace: WorkspaceId) -> Option<WorkspaceActivity> {
        self.workspaces.read().get(&workspace).map(|counters| counters.read(workspace))
    }

    /// All workspaces that this gateway has served.
    pub fn all(&self) -> Vec<WorkspaceActivity> {
        self.workspaces.read().iter().map(|(workspace, counters)| counters.read(*workspace)).collect()
    }

    /// Forgets workspaces without open streams whose last request is older than `before`.
    pub fn forget(&self, before: UnixMillis) {
        self.workspaces.write().retain(|_, counters| {
            counters.open.load(Ordering::Acquire) > 0
                || Arc::strong_count(counters) > 1
                || counters.last.load(Ordering::Relaxed) >= before.get()
        });
    }

    /// Counts a request as begun.
    pub(crate) fn begin(&self, workspace: WorkspaceId, visitor: Visitor, now: UnixMillis) -> OpenStream {
        let known = self.workspaces.read().get(&workspace).map(Arc::clone);
        let counters = known.unwrap_or_else(|| Arc::clone(self.workspaces.write().entry(workspace).or_default()));
        counters.last.fetch_max(now.get(), Ordering::Relaxed);
        counters.open.fetch_add(1, Ordering::AcqRel);
        *counters.visitor.lock() = Some(visitor);
        OpenStream { counters, socket: false }
    }
}

impl Counters {
    fn read(&self, workspace: WorkspaceId) -> WorkspaceActivity {
        WorkspaceActivity {
            workspace,
            last_at: UnixMillis::new(self.last.load(Ordering::Relaxed)),
            open_streams: self.open.load(Ordering::Acquire),
            open_sockets: self.sockets.load(Ordering::Acquire),
            visitor: *self.visitor.lock(),
        }
    }
}

/// One open stream of a workspace; it ends when dropped.
pub(crate) struct OpenStream {
    counters: Arc<Counters>,
    socket: bool,
}

impl OpenStream {
    pub(crate) fn into_socket(mut self) -> Self {
        self.counters.sockets.fetch_add(1, Ordering::AcqRel);
        self.socket = true;
        self
    }

    pub(crate) fn touch(&self, now: UnixMillis) {
        self.counters.last.fetch_max(now.get(), Ordering::Relaxed);
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        if self.socket {
            self.counters.sockets.fetch_sub(1, Ordering::AcqRel);
        }
        self.counters.open.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use envforge_domain::ids::LinkId;
    use uuid::Uuid;

    #[test]
    fn open_streams_are_counted_until_they_end() {
        let activity = Activity::default();
        let workspace = WorkspaceId::from_uuid(Uuid::from_u128(1));
        let visitor = Visitor::Link(LinkId::from_uuid(Uuid::from_u128(2)));
        assert_eq!(activity.of(workspace), None);
        let first = activity.begin(workspace, visitor, UnixMillis::new(5));
        let socket = activity.begin(workspace, visitor, UnixMillis::new(3)).into_socket();
        let seen = activity.of(workspace).unwrap();
        assert_eq!((seen.last_at, seen.open_streams, seen.open_sockets), (UnixMillis::new(5), 2, 1));
        assert_eq!(seen.visitor, Some(visitor));
        drop(first);
        activity.forget(UnixMillis::new(10));
        assert_eq!(activity.of(workspace).unwrap().open_streams, 1);
        drop(socket);
        activity.forget(UnixMillis::new(10));
        assert_eq!(activity.of(workspace), None);
    }
}
