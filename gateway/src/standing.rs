//! Whether what was admitted is still allowed: asked again where a request waited, and watched while anything is open.
//!
//! A link's own end is told by its closers and known by its expiry. That this gateway knows nothing any more, because
//! the log has been silent for too long, is told here, to everything open at once. Not here: admitting (`admission`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use envforge_domain::dev_link::RouteFamily;
use envforge_domain::time::{SharedClock, UnixMillis};
use envforge_projections::gateway_view::GatewayView;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admission::ForwardPermit;
use crate::denial::Denial;
use crate::ground::Ground;
use crate::metric;

pub(crate) struct Standing {
    view: Arc<GatewayView>,
    clock: SharedClock,
    staleness_max: Duration,
    /// How often everything open was ended; asked for each piece of a body, so it is no lock.
    cuts: AtomicU64,
    /// Cancelled by the next cut, which then puts a fresh one here.
    next_cut: Mutex<CancellationToken>,
}

impl Standing {
    pub(crate) fn new(view: Arc<GatewayView>, clock: SharedClock, staleness_max: Duration) -> Arc<Self> {
        Arc::new(Self { view, clock, staleness_max, cuts: AtomicU64::new(0), next_cut: Mutex::default() })
    }

    pub(crate) fn now(&self) -> UnixMillis {
        self.clock.now()
    }

    /// Whether the log was heard within the limit.
    pub(crate) fn is_fresh(&self) -> bool {
        self.view.freshness().last_heard.elapsed() <= self.staleness_max
    }

    /// Ends everything open while the log is silent for too long. Called every half second; each time, because what
    /// was admitted just before the first cut may have been opened just after it.
    pub(crate) fn look(&self) {
        if self.is_fresh() {
            return;
        }
        metric::ended("everything", "authorization_stale");
        let ended = {
            let mut next = self.next_cut.lock();
            self.cuts.fetch_add(1, Ordering::Release);
            std::mem::take(&mut *next)
        };
        ended.cancel();
    }

    pub(crate) fn cuts(&self) -> u64 {
        self.cuts.load(Ordering::Acquire)
    }

    /// Cancelled by the first cut after `seen` of them.
    pub(crate) fn cut_after(&self, seen: u64) -> CancellationToken {
        let next = self.next_cut.lock();
        if self.cuts() == seen {
            return next.clone();
        }
        let given = CancellationToken::new();
        given.cancel();
        given
    }

    /// Holds a request that waited against the state of now, before anything of it is sent.
    pub(crate) fn check(&self, permit: &ForwardPermit) -> Result<(), Denial> {
        let now = self.clock.now();
        if permit.is_withdrawn() {
            Err(permit.ended(&self.view, now))
        } else if now >= permit.ends_at() {
            Err(permit.expired())
        } else if self.is_fresh() {
            Ok(())
        } else {
            Err(Denial::AuthorizationStale)
        }
    }

    /// Comes back when the right of a waiting request ends, and says why.
    pub(crate) async fn ended(&self, permit: &ForwardPermit) -> Denial {
        let cut = self.cut_after(self.cuts());
        tokio::select! {
            biased;
            () = permit.cancel().cancelled() => permit.ended(&self.view, self.clock.now()),
            () = permit.cancel_sockets().cancelled(), if permit.is_socket() => permit.ended(&self.view, self.clock.now()),
            () = cut.cancelled() => Denial::AuthorizationStale,
            () = tokio::time::sleep_until(self.instant_of(permit.ends_at())) => permit.expired(),
        }
    }

    /// The same moment on the clock of timers.
    pub(crate) fn instant_of(&self, at: UnixMillis) -> Instant {
        Instant::now() + at.since(self.clock.now()).to_duration()
    }
}

/// The right to one open stream, for as long as it is open.
#[derive(Clone)]
pub(crate) struct Right {
    ground: Ground,
    /// Of the path.
    family: RouteFamily,
    standing: Arc<Standing>,
    cuts_before: u64,
    /// When it ends by itself.
    pub(crate) deadline: Instant,
}

impl Right {
    pub(crate) fn new(ground: Ground, family: RouteFamily, standing: &Arc<Standing>, deadline: Instant) -> Self {
        Self { ground, family, standing: Arc::clone(standing), cuts_before: standing.cuts(), deadline }
    }

    /// Whether it was taken away. Costs two loads; its own end is the timers' to see.
    pub(crate) fn is_withdrawn(&self) -> bool {
        // INVARIANT: the view sets the reason before it gives the signal.
        self.ground.is_withdrawn(self.family) || self.standing.cuts() != self.cuts_before
    }

    /// Comes back when it is taken away.
    pub(crate) fn withdrawn(&self) -> impl Future<Output = ()> + Send + use<> {
        let ended = self.ground.cancel(self.family).clone();
        let cut = self.standing.cut_after(self.cuts_before);
        async move {
            tokio::select! {
                biased;
                () = ended.cancelled() => {}
                () = cut.cancelled() => {}
            }
        }
    }
}
