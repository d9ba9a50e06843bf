//! What ends the things a link has open: one signal for each route family, with the reason it was given for.
//!
//! A signal is given once. Where the link goes on, fresh ones take the place of those that were given, so that a family
//! that was narrowed and widened again can be ended again. Not here: when to give them (`gateway_view`).

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use envforge_domain::dev_link::{RouteFamilies, RouteFamily};
use tokio_util::sync::CancellationToken;

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
    /// A member's session, or the one from which it was opened, has ended.
    SignedOut,
    /// A member may open the workspace no more, or not for as long.
    MemberLostRight,
    /// The log is not the one that was followed: nobody knows what still stands.
    ViewsFailed,
}

/// Given, each for its route family, when what was admitted is no longer allowed.
#[derive(Clone, Debug, Default)]
pub struct Closers {
    families: [Arc<Closer>; RouteFamily::ALL.len()],
    /// Open now, of whatever age: the same for these and for those that take their place.
    sockets: Arc<AtomicU32>,
}

/// One open socket, for as long as this is kept.
#[derive(Debug)]
pub struct OpenSocket(Arc<AtomicU32>);

impl Drop for OpenSocket {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Most links have nothing open: the token is made for the first who waits for it.
#[derive(Debug, Default)]
struct Closer {
    token: OnceLock<CancellationToken>,
    reason: OnceLock<CloseReason>,
}

impl Closers {
    /// Cancelled when what this link has open in a family must end; at once for whoever asks after that.
    pub fn of(&self, family: RouteFamily) -> &CancellationToken {
        self.families[family as usize].token.get_or_init(CancellationToken::new)
    }

    /// Why `of(family)` was cancelled; `None` while it was not.
    pub fn reason(&self, family: RouteFamily) -> Option<CloseReason> {
        self.families[family as usize].reason.get().copied()
    }

    /// Counts a socket that a gateway of this process has opened.
    pub fn socket_opened(&self) -> OpenSocket {
        self.sockets.fetch_add(1, Ordering::AcqRel);
        OpenSocket(Arc::clone(&self.sockets))
    }

    /// Sockets open at gateways of this process.
    pub fn open_sockets(&self) -> u32 {
        self.sockets.load(Ordering::Acquire)
    }

    /// Whether everything was ended.
    pub fn is_closed(&self) -> bool {
        RouteFamily::ALL.into_iter().all(|family| self.reason(family).is_some())
    }

    /// Ends what is open in these families.
    pub(crate) fn close(&self, families: RouteFamilies, reason: CloseReason) {
        for family in families.iter() {
            // The first reason stays: it is the one that took effect.
            let _ = self.families[family as usize].reason.set(reason);
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
        closers.close(API, CloseReason::Narrowed);
        assert!(api.is_cancelled() && !web.is_cancelled());
        assert_eq!(closers.reason(RouteFamily::Api), Some(CloseReason::Narrowed));
        assert_eq!(closers.reason(RouteFamily::Web), None);
    }

    #[test]
    fn open_sockets_are_counted_over_what_takes_the_place_of_closers() {
        let closers = Closers::default();
        let first = closers.socket_opened();
        let renewed = closers.renewed(RouteFamilies::ALL);
        let second = renewed.socket_opened();
        assert_eq!((closers.open_sockets(), renewed.open_sockets()), (2, 2));
        closers.close(RouteFamilies::ALL, CloseReason::Revoked);
        assert!(closers.is_closed() && !renewed.is_closed());
        drop(first);
        drop(second);
        assert_eq!(closers.open_sockets(), 0);
    }

    #[test]
    fn whoever_asks_after_the_end_is_told_at_once() {
        let closers = Closers::default();
        closers.close(RouteFamilies::ALL, CloseReason::Revoked);
        assert!(closers.of(RouteFamily::Websockets).is_cancelled());
    }

    #[test]
    fn renewed_closers_can_be_given_again_and_share_the_untouched_ones() {
        let closers = Closers::default();
        closers.close(API, CloseReason::Narrowed);
        let renewed = closers.renewed(API);
        assert!(!renewed.of(RouteFamily::Api).is_cancelled());
        renewed.close(RouteFamilies::ALL, CloseReason::Revoked);
        assert!(closers.of(RouteFamily::Web).is_cancelled(), "one signal for both generations of the view");
        assert_eq!(closers.reason(RouteFamily::Api), Some(CloseReason::Narrowed));
        assert_eq!(renewed.reason(RouteFamily::Api), Some(CloseReason::Revoked));
    }
}
