//! Runtimes that sleep: one wake for any number of requests, and requests that wait for it.
//!
//! The wake runs in a task of its own, so that a client who leaves does not take it along. Between gateways the log
//! decides: whoever asks second is told that a wake is under way. Waiting is bounded in count, bytes and time.
//!
//! Not here: who may wake (`admission` and the access policy), the waking page (`pages`).

use std::hash::Hash;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;
use envforge_domain::access::Permit;
use envforge_domain::ids::WorkspaceId;
use envforge_domain::runtime::Epoch;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

use crate::admission::ForwardPermit;
use crate::config::Limits;
use crate::decisions::{AskWake, Decisions};
use crate::denial::Denial;
use crate::ground::Visitor;
use crate::metric;
use crate::standing::Standing;
use envforge_projections::gateway_view::{GatewayView, RuntimePhase, RuntimeView};

/// A wake that was accepted needs this long at most to show in the view; then it is asked for again.
const ACCEPTED_SHOWS_WITHIN: Duration = Duration::from_secs(3);
/// A runtime that failed is not woken again by the same gateway before this.
const FAILED_AGAIN_AFTER: Duration = Duration::from_secs(15);
/// A refused wake is not asked for again by the same link before this.
const REFUSED_AGAIN_AFTER: Duration = Duration::from_millis(500);
const WAKE_ATTEMPTS_MAX: u32 = 4;
/// What is kept is counted in these, rounded up.
const BYTES_PER_UNIT: usize = 1024;

/// What came of asking for a wake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Pending,
    Accepted,
    Refused(Denial),
}

struct Ask {
    outcome: watch::Receiver<Asked>,
    at: Instant,
    /// What the view showed then: a later epoch is what the ask has led to.
    epoch: Epoch,
}

/// Links have budgets of their own, so each asks for itself; between them the log decides.
type AskKey = (WorkspaceId, Visitor);

pub(crate) struct Waker {
    view: Arc<GatewayView>,
    decisions: Arc<dyn Decisions>,
    standing: Arc<Standing>,
    asks: Mutex<AHashMap<AskKey, Ask>>,
    held: Arc<Semaphore>,
    held_bytes: Arc<Semaphore>,
    per_workspace: Arc<Counts<WorkspaceId>>,
    per_visitor: Arc<Counts<Visitor>>,
    pages: Arc<Semaphore>,
    pages_per_visitor: Arc<Counts<Visitor>>,
    hold: Duration,
    gauge: metrics::Gauge,
}

impl Waker {
    pub(crate) fn new(
        view: Arc<GatewayView>,
        decisions: Arc<dyn Decisions>,
        standing: Arc<Standing>,
        limits: &Limits,
        hold: Duration,
        gauge: metrics::Gauge,
    ) -> Self {
        Self {
            view,
            decisions,
            standing,
            asks: Mutex::default(),
            held: Arc::new(Semaphore::new(limits.held_requests_max)),
            held_bytes: Arc::new(Semaphore::new(limits.held_bytes_max / BYTES_PER_UNIT)),
            per_workspace: Counts::new(limits.held_requests_per_workspace_max),
            per_visitor: Counts::new(limits.held_requests_per_link_max),
            pages: Arc::new(Semaphore::new(limits.waking_pages_max)),
            pages_per_visitor: Counts::new(limits.waking_pages_per_link_max),
            hold,
            gauge,
        }
    }

    /// Makes sure that a wake is asked for, and says at once if it was just refused. For pages, which do not wait.
    pub(crate) fn nudge(&self, permit: &ForwardPermit, runtime: &RuntimeView) -> Result<(), Denial> {
        if comes_by_itself(runtime.phase) {
            return Ok(());
        }
        let outcome = *self.ask(permit, runtime)?.borrow();
        match outcome {
            Asked::Refused(denial) => Err(denial),
            Asked::Pending | Asked::Accepted => Ok(()),
        }
    }

    /// What the last wake that this gateway asked for was refused with, if it was.
    pub(crate) fn refusal(&self, permit: &ForwardPermit) -> Option<Denial> {
        let asks = self.asks.lock();
        let ask = asks.get(&(permit.workspace(), permit.visitor()))?;
        let outcome = *ask.outcome.borrow();
        match outcome {
            Asked::Refused(denial) => Some(denial),
            Asked::Pending | Asked::Accepted => None,
        }
    }

    /// Waits until the service can be reached by who may still reach it. `bytes` is what the waiting request keeps in memory.
    pub(crate) async fn hold(&self, permit: &ForwardPermit, bytes: usize) -> Result<SocketAddr, Denial> {
        let _place = self.place(permit, bytes)?;
        let begun = Instant::now();
        let outcome = tokio::select! {
            // An end that comes together with the app's readiness counts.
            biased;
            denial = self.standing.ended(permit) => Err(denial),
            outcome = self.wait(permit) => outcome,
        };
        let outcome = outcome.and_then(|address| self.standing.check(permit).map(|()| address));
        metric::held(begun.elapsed(), outcome.is_ok());
        outcome
    }

    async fn wait(&self, permit: &ForwardPermit) -> Result<SocketAddr, Denial> {
        let mut runtime = self.view.runtime(permit.workspace());
        let deadline = Instant::now() + self.hold;
        let before: Epoch = runtime.borrow().epoch;
        loop {
            let seen = runtime.borrow_and_update().clone();
            if let Some(address) = endpoint(&seen, permit) {
                return address;
            }
            if seen.phase == RuntimePhase::Failed && seen.epoch > before {
                return Err(why_failed(&seen));
            }
            let mut asked = (!comes_by_itself(seen.phase)).then(|| self.ask(permit, &seen)).transpose()?;
            if let Some(asked) = &asked
                && let Asked::Refused(denial) = *asked.borrow()
            {
                return Err(denial);
            }
            tokio::select! {
                changed = runtime.changed() => {
                    // The view is gone only while the process ends.
                    if changed.is_err() {
                        return Err(Denial::TryAgain);
                    }
                }
                () = outcome_changed(&mut asked) => {}
                () = tokio::time::sleep_until((Instant::now() + ACCEPTED_SHOWS_WITHIN).min(deadline)) => {
                    if Instant::now() >= deadline {
                        metric::wake("hold_timeout");
                        return Err(Denial::WakeTimeout);
                    }
                }
            }
        }
    }

    /// The ask under way, or a new one in a task of its own.
    fn ask(&self, permit: &ForwardPermit, runtime: &RuntimeView) -> Result<watch::Receiver<Asked>, Denial> {
        let key: AskKey = (permit.workspace(), permit.visitor());
        let mut asks = self.asks.lock();
        if let Some(ask) = asks.get(&key) {
            let outcome = *ask.outcome.borrow();
            let age = ask.at.elapsed();
            let stands = match outcome {
                Asked::Pending => true,
                Asked::Accepted if runtime.phase == RuntimePhase::Failed && runtime.epoch > ask.epoch => {
                    if age < FAILED_AGAIN_AFTER {
                        return Err(why_failed(runtime));
                    }
                    false
                }
                // What it led to has shown, and is over again.
                Asked::Accepted if runtime.epoch > ask.epoch => false,
                Asked::Accepted => age < ACCEPTED_SHOWS_WITHIN,
                // The team may have raised the cap meanwhile.
                Asked::Refused(_) => age < REFUSED_AGAIN_AFTER,
            };
            if stands {
                return Ok(ask.outcome.clone());
            }
        }
        if asks.len() > 10_000 {
            asks.retain(|_, ask| ask.at.elapsed() < FAILED_AGAIN_AFTER);
        }
        let (sender, outcome) = watch::channel(Asked::Pending);
        asks.insert(key, Ask { outcome: outcome.clone(), at: Instant::now(), epoch: runtime.epoch });
        drop(asks);
        let ask = AskWake { workspace: key.0, visitor: key.1, session: permit.session(), now: self.standing.now() };
        let permit = match permit.wake_permit(ask.now) {
            Ok(permit) => permit,
            Err(denial) => {
                sender.send_replace(Asked::Refused(denial));
                return Ok(outcome);
            }
        };
        let decisions = Arc::clone(&self.decisions);
        tokio::spawn(async move {
            let result = wake_patiently(&*decisions, &permit, ask).await;
            metric::wake(match result {
                Ok(()) => "asked",
                Err(denial) => denial.code(),
            });
            sender.send_replace(match result {
                Ok(()) => Asked::Accepted,
                Err(denial) => Asked::Refused(denial),
            });
        });
        Ok(outcome)
    }

    fn place(&self, permit: &ForwardPermit, bytes: usize) -> Result<Place, Denial> {
        let full = |_| Denial::TooManyHeld;
        let one = Arc::clone(&self.held).try_acquire_owned().map_err(full)?;
        let units = u32::try_from(bytes.div_ceil(BYTES_PER_UNIT)).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.held_bytes).try_acquire_many_owned(units).map_err(full)?;
        let of_workspace = self.per_workspace.enter(permit.workspace()).ok_or(Denial::TooManyHeld)?;
        let of_visitor = self.per_visitor.enter(permit.visitor()).ok_or(Denial::TooManyHeld)?;
        self.gauge.increment(1);
        Ok(Place { _slots: (one, room), _counted: (of_workspace, of_visitor), gauge: self.gauge.clone() })
    }

    /// A place for a waking page that is told how far the wake is.
    pub(crate) fn page_place(&self, visitor: Visitor) -> Result<PagePlace, Denial> {
        let one = Arc::clone(&self.pages).try_acquire_owned().map_err(|_| Denial::TooManyHeld)?;
        let of_visitor = self.pages_per_visitor.enter(visitor).ok_or(Denial::TooManyHeld)?;
        Ok(PagePlace { _slot: one, _counted: of_visitor })
    }
}

/// Tries again where trying again helps: held requests would rather wait than be told so.
async fn wake_patiently(decisions: &dyn Decisions, permit: &Permit, ask: AskWake) -> Result<(), Denial> {
    let mut pause = Duration::from_millis(50);
    for _ in 1..WAKE_ATTEMPTS_MAX {
        match decisions.wake(permit, ask).await {
            Err(Denial::TryAgain | Denial::AuthorizationStale) => tokio::time::sleep(pause).await,
            outcome => return outcome,
        }
        pause *= 3;
    }
    decisions.wake(permit, ask).await
}

/// Whether another phase follows that was not asked for. A wake that is asked for before the log knows that a runtime is lost wakes
/// nothing.
const fn comes_by_itself(phase: RuntimePhase) -> bool {
    matches!(phase, RuntimePhase::Waking | RuntimePhase::Leaving)
}

/// What a visitor is told of a wake that failed: never a name.
pub(crate) const fn why_failed(runtime: &RuntimeView) -> Denial {
    if runtime.secrets_refused { Denial::SecretsRefused } else { Denial::WakeFailed }
}

/// Where the permit's service answers; `None` while the runtime is not ready.
pub(crate) fn endpoint(runtime: &RuntimeView, permit: &ForwardPermit) -> Option<Result<SocketAddr, Denial>> {
    if runtime.phase != RuntimePhase::Ready {
        return None;
    }
    let found = runtime.endpoints.iter().find(|(service, _)| service == permit.service());
    Some(found.map(|(_, address)| *address).ok_or(Denial::UpstreamUnreachable))
}

/// Pending forever without an ask, or where its outcome is final.
async fn outcome_changed(asked: &mut Option<watch::Receiver<Asked>>) {
    match asked {
        Some(asked) if *asked.borrow() == Asked::Pending => {
            if asked.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
        Some(_) | None => std::future::pending().await,
    }
}

/// How many of each there are, up to a limit.
struct Counts<K> {
    counts: Mutex<AHashMap<K, usize>>,
    max: usize,
}

impl<K: Copy + Eq + Hash> Counts<K> {
    fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { counts: Mutex::default(), max })
    }

    fn enter(self: &Arc<Self>, key: K) -> Option<Counted<K>> {
        let mut counts = self.counts.lock();
        let count = counts.entry(key).or_insert(0);
        if *count >= self.max {
            return None;
        }
        *count += 1;
        Some(Counted { counts: Arc::clone(self), key })
    }
}

/// One that is counted until this is dropped.
struct Counted<K: Copy + Eq + Hash> {
    counts: Arc<Counts<K>>,
    key: K,
}

impl<K: Copy + Eq + Hash> Drop for Counted<K> {
    fn drop(&mut self) {
        let mut counts = self.counts.counts.lock();
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

/// One waiting request.
struct Place {
    _slots: (OwnedSemaphorePermit, OwnedSemaphorePermit),
    _counted: (Counted<WorkspaceId>, Counted<Visitor>),
    gauge: metrics::Gauge,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gauge.decrement(1);
    }
}

/// One waking page that follows.
pub(crate) struct PagePlace {
    _slot: OwnedSemaphorePermit,
    _counted: Counted<Visitor>,
}
