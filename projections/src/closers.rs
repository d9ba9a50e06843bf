//! What ends the things a link has open: one signal for each route family, with the reason it was given for; and which
//! commit ended which open sockets.
//!
//! A signal is given once. Where the link goes on, fresh ones take the place of those that were given, so that a family
//! that was narrowed and widened again can be ended again. Not here: when to give them (`gateway_view`).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use envforge_domain::commit::Position;
use envforge_domain::dev_link::{RouteFamilies, RouteFamily};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// Commits that ended open sockets, of which it is known how many. Whoever asks, asks within seconds.
const CLOSINGS_KEPT: usize = 4_096;

/// Why open requests and sockets of a link were ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    Revoked,
    Expired,
    /// A newer share link took this one's place.
    Rotated,
    /// The family is no longer in the link's allowlist, or no longer among what the organization lets links open.
    Narrowed,
    /// Whoever issued the link may issue no link there any more, or not for as long.
    IssuerLostRight,
    /// The workspace's routes have changed; what is still declared is admitted anew.
    RoutesChanged,
    /// The workspace was taken off the public gateway.
    TailscaleOnly,
    Archived,
    /// The host on which the workspace was awake is trusted no more; whoever may come in is admitted anew.
    HostRevoked,
    /// A member's session, or the one from which it was opened, has ended.
    SignedOut,
    /// A member may open the workspace no more, or not for as long.
    MemberLostRight,
    /// The log is not the one that was followed: nobody knows what still stands.
    ViewsFailed,
}

impl CloseReason {
    /// Whether links and sessions stand as before, and only what they had open is over.
    pub(crate) const fn leaves_right(self) -> bool {
        match self {
            Self::RoutesChanged | Self::HostRevoked => true,
            Self::Revoked
            | Self::Expired
            | Self::Rotated
            | Self::Narrowed
            | Self::IssuerLostRight
            | Self::TailscaleOnly
            | Self::Archived
            | Self::SignedOut
            | Self::MemberLostRight
            | Self::ViewsFailed => false,
        }
    }
}

/// Given, each for its route family, when what was admitted is no longer allowed.
#[derive(Clone, Debug, Default)]
pub struct Closers {
    families: [Arc<Closer>; RouteFamily::ALL.len()],
}

/// One open socket, for as long as this is kept. It stands on its path's family and on that of sockets.
#[derive(Debug)]
pub struct OpenSocket([Arc<Closer>; 2]);

impl Drop for OpenSocket {
    fn drop(&mut self) {
        let given = self.0.iter().filter_map(|closer| closer.given.get()?.closing.as_ref());
        // Counted once, for what ended it first.
        if let Some(closing) = given.min_by_key(|closing| closing.position) {
            closing.closed.fetch_add(1, Ordering::AcqRel);
        }
        // INVARIANT: counted as closed before it is not open any more.
        for closer in &self.0 {
            closer.sockets.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Most links have nothing open: the token is made for the first who waits for it.
#[derive(Debug, Default)]
struct Closer {
    token: OnceLock<CancellationToken>,
    given: OnceLock<Given>,
    /// Sockets of this process that stand on it.
    sockets: AtomicU32,
}

#[derive(Debug)]
struct Given {
    reason: CloseReason,
    /// `None` where nothing in the log ended it.
    closing: Option<Arc<Closing>>,
}

/// What is over with some commits, open or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Over {
    pub links: usize,
    /// Reviewers' sessions of those links, and of share URLs that others took the place of.
    pub link_sessions: usize,
    /// Members' sessions on workspaces' hosts that ended, or whose right did.
    pub member_sessions: usize,
    /// Runtimes that were ready on a host which is trusted no more.
    pub runtimes: usize,
}

/// What one commit ended.
#[derive(Debug)]
pub(crate) struct Closing {
    position: Position,
    over: Mutex<Over>,
    /// Sockets that were told by it, and are closed.
    closed: AtomicU32,
    told: Mutex<Vec<Arc<Closer>>>,
}

impl Closing {
    fn new(position: Position) -> Arc<Self> {
        Arc::new(Self { position, over: Mutex::default(), closed: AtomicU32::new(0), told: Mutex::default() })
    }

    /// Whether every socket that it told is closed.
    fn is_over(&self) -> bool {
        self.told.lock().iter().all(|closer| closer.sockets.load(Ordering::Acquire) == 0)
    }
}

/// Which commit ended which open sockets: the one that is being folded ends what is ended meanwhile.
#[derive(Debug)]
pub(crate) struct Closings(Mutex<Kept>);

#[derive(Debug)]
struct Kept {
    current: Arc<Closing>,
    /// Of those that ended open sockets, the newest, in the log's order.
    recent: VecDeque<Arc<Closing>>,
    forgotten_up_to: Position,
}

impl Default for Closings {
    fn default() -> Self {
        let current = Closing::new(Position::START);
        Self(Mutex::new(Kept { current, recent: VecDeque::new(), forgotten_up_to: Position::START }))
    }
}

impl Closings {
    /// From here on what is closed is closed because of this commit.
    pub(crate) fn begin(&self, position: Position) {
        self.0.lock().current = Closing::new(position);
    }

    /// Ends what is open in these families.
    pub(crate) fn close(&self, closers: &Closers, families: RouteFamilies, reason: CloseReason) {
        let current = Arc::clone(&self.0.lock().current);
        closers.close(families, reason, Some(&current));
        if !current.told.lock().is_empty() {
            self.keep(current);
        }
    }

    /// Counts what is over with the commit that is being folded.
    pub(crate) fn count(&self, count: impl FnOnce(&mut Over)) {
        let current = Arc::clone(&self.0.lock().current);
        count(&mut current.over.lock());
        self.keep(current);
    }

    fn keep(&self, current: Arc<Closing>) {
        let mut kept = self.0.lock();
        if kept.recent.back().is_some_and(|last| last.position == current.position) {
            return;
        }
        kept.recent.push_back(current);
        if kept.recent.len() > CLOSINGS_KEPT
            && let Some(forgotten) = kept.recent.pop_front()
        {
            kept.forgotten_up_to = forgotten.position;
        }
    }

    /// What is over with these commits, which are folded; nothing where they are too old to know.
    pub(crate) fn over_with(&self, commits: &[Position]) -> Over {
        let kept = self.0.lock();
        let asked = kept.recent.iter().rev().filter(|closing| commits.contains(&closing.position));
        asked.fold(Over::default(), |sum, closing| {
            let over = *closing.over.lock();
            Over {
                links: sum.links + over.links,
                link_sessions: sum.link_sessions + over.link_sessions,
                member_sessions: sum.member_sessions + over.member_sessions,
                runtimes: sum.runtimes + over.runtimes,
            }
        })
    }

    /// Whether none of these commits is too old to know what it closed.
    pub(crate) fn remembers(&self, commits: &[Position]) -> bool {
        let kept = self.0.lock();
        commits.iter().all(|position| *position > kept.forgotten_up_to)
    }

    /// How many sockets these commits have closed, once all that they told are; `None` until then, and where one of the
    /// commits is too old to know. For commits that are folded.
    pub(crate) fn closed_by(&self, commits: &[Position]) -> Option<u32> {
        if !self.remembers(commits) {
            return None;
        }
        let kept = self.0.lock();
        let asked = kept.recent.iter().rev().filter(|closing| commits.contains(&closing.position));
        asked.map(|closing| closing.is_over().then(|| closing.closed.load(Ordering::Acquire))).sum()
    }
}

impl Closers {
    /// Cancelled when what this link has open in a family must end; at once for whoever asks after that.
    pub fn of(&self, family: RouteFamily) -> &CancellationToken {
        self.families[family as usize].token.get_or_init(CancellationToken::new)
    }

    /// Why `of(family)` was cancelled; `None` while it was not.
    pub fn reason(&self, family: RouteFamily) -> Option<CloseReason> {
        self.families[family as usize].given.get().map(|given| given.reason)
    }

    /// Counts a socket that a gateway of this process has opened on a path of this family.
    pub fn socket_opened(&self, family: RouteFamily) -> OpenSocket {
        let on = [family, RouteFamily::Websockets].map(|family| Arc::clone(&self.families[family as usize]));
        for closer in &on {
            closer.sockets.fetch_add(1, Ordering::AcqRel);
        }
        OpenSocket(on)
    }

    /// Ends what is open in these families. `closing` is told what was open.
    pub(crate) fn close(&self, families: RouteFamilies, reason: CloseReason, closing: Option<&Arc<Closing>>) {
        for family in families.iter() {
            let closer = &self.families[family as usize];
            if let Some(closing) = closing
                && closer.given.get().is_none()
                && closer.sockets.load(Ordering::Acquire) > 0
            {
                closing.told.lock().push(Arc::clone(closer));
            }
            // The first reason stays: it is the one that took effect.
            let _ = closer.given.set(Given { reason, closing: closing.cloned() });
            // INVARIANT: the reason is there before the signal.
            self.of(family).cancel();
        }
    }

    /// These closers with fresh ones for some families.
    pub(crate) fn renewed(&self, families: RouteFamilies) -> Self {
        let mut next = self.clone();
        for family in families.iter() {
            next.families[family as usize] = Arc::default();
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const API: RouteFamilies = RouteFamilies::NONE.with(RouteFamily::Api);

    #[test]
    fn closing_one_family_says_why_and_leaves_the_others_open() {
        let closers = Closers::default();
        let (api, web) = (closers.of(RouteFamily::Api).clone(), closers.of(RouteFamily::Web).clone());
        closers.close(API, CloseReason::Narrowed, None);
        assert!(api.is_cancelled() && !web.is_cancelled());
        assert_eq!(closers.reason(RouteFamily::Api), Some(CloseReason::Narrowed));
        assert_eq!(closers.reason(RouteFamily::Web), None);
    }

    const fn at(position: u64) -> Position {
        Position::new(position)
    }

    #[test]
    fn a_socket_is_counted_for_the_commit_that_ended_it_first() {
        let (closers, closings) = (Closers::default(), Closings::default());
        let [web, api] = [RouteFamily::Web, RouteFamily::Api].map(|family| closers.socket_opened(family));
        closings.begin(at(7));
        closings.close(&closers, API, CloseReason::Narrowed);
        assert_eq!(closings.closed_by(&[at(7)]), None, "told, and still open");
        closings.begin(at(8));
        closings.close(&closers, RouteFamilies::ALL, CloseReason::Revoked);
        drop(api);
        assert_eq!((closings.closed_by(&[at(7)]), closings.closed_by(&[at(8)])), (Some(1), None));
        drop(web);
        assert_eq!((closings.closed_by(&[at(7)]), closings.closed_by(&[at(8)])), (Some(1), Some(1)));
        assert_eq!((closings.closed_by(&[at(7), at(8)]), closings.closed_by(&[at(9)])), (Some(2), Some(0)));
    }

    #[test]
    fn what_ended_by_itself_or_was_opened_anew_is_not_counted() {
        let (closers, closings) = (Closers::default(), Closings::default());
        drop(closers.socket_opened(RouteFamily::Web));
        let renewed = closers.renewed(RouteFamilies::ALL);
        let open = renewed.socket_opened(RouteFamily::Web);
        closings.begin(at(3));
        closings.close(&closers, RouteFamilies::ALL, CloseReason::Rotated);
        assert_eq!(closings.closed_by(&[at(3)]), Some(0));
        drop(open);
        assert_eq!(closings.closed_by(&[at(3)]), Some(0));
    }

    #[test]
    fn what_is_too_old_to_know_is_not_told_as_nothing() {
        let closings = Closings::default();
        for position in 1..=CLOSINGS_KEPT as u64 + 2 {
            let closers = Closers::default();
            let open = closers.socket_opened(RouteFamily::Web);
            closings.begin(at(position));
            closings.close(&closers, RouteFamilies::ALL, CloseReason::Revoked);
            drop(open);
        }
        assert_eq!((closings.closed_by(&[at(2)]), closings.closed_by(&[at(3)])), (None, Some(1)));
    }

    #[test]
    fn whoever_asks_after_the_end_is_told_at_once() {
        let closers = Closers::default();
        closers.close(RouteFamilies::ALL, CloseReason::Revoked, None);
        assert!(closers.of(RouteFamily::Websockets).is_cancelled());
    }

    #[test]
    fn renewed_closers_can_be_given_again_and_share_the_untouched_ones() {
        let closers = Closers::default();
        closers.close(API, CloseReason::Narrowed, None);
        let renewed = closers.renewed(API);
        assert!(!renewed.of(RouteFamily::Api).is_cancelled());
        renewed.close(RouteFamilies::ALL, CloseReason::Revoked, None);
        assert!(closers.of(RouteFamily::Web).is_cancelled(), "one signal for both generations of the view");
        assert_eq!(closers.reason(RouteFamily::Api), Some(CloseReason::Narrowed));
        assert_eq!(renewed.reason(RouteFamily::Api), Some(CloseReason::Revoked));
    }
}
