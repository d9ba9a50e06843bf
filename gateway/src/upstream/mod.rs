//! Connections to apps. One pool, kept apart by visitor: two links never share a connection, so that nothing that one
//! reviewer sends can change how another one's request is read.
//!
//! Owns opening, reusing, bounding and evicting connections, and which addresses may be reached at all. A connection
//! has no task of its own: whoever leases it writes and reads. Not here: who may send what (`admission`), headers
//! (`header`).

pub(crate) mod answer_body;
pub(crate) mod answer_head;
pub(crate) mod exchange;
mod wire;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use ahash::AHashMap;
use bytes::BytesMut;
use parking_lot::{Mutex, RwLock};
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, Sleep};

use crate::config::{Limits, Timeouts};
use crate::denial::Denial;
use crate::ground::Visitor;
use crate::metric::Meters;
pub(crate) use answer_head::{AnswerBody, AnswerHead};
pub(crate) use exchange::{Exchange, Failed, Framing, Outgoing};
use wire::Wire;

/// Connections to one endpoint that are being opened at the same time, each until the app has answered on it: the kernel says
/// that a connection is open before an app has taken it from its queue. When a runtime has just woken, everybody who waited comes at
/// once; more than fit into the queue (5 in Python's http.server, 128 usually) are tried again only after a second.
const OPENING_MAX: usize = 4;
/// An app that takes longer for its first answer has taken the connection all the same, most probably.
const FIRST_ANSWER: Duration = Duration::from_millis(50);

pub(crate) struct Upstreams {
    endpoints: RwLock<AHashMap<SocketAddr, Arc<Endpoint>>>,
    connections_per_endpoint_max: usize,
    connections_per_link_max: usize,
    connect_timeout: Duration,
    idle_max: Duration,
    meters: Arc<Meters>,
    /// Where this gateway itself listens: never an upstream.
    own: SocketAddr,
}

struct Endpoint {
    address: SocketAddr,
    slots: Arc<Semaphore>,
    opening: Arc<Semaphore>,
    /// Touched where a connection opens or is waited for, and not by requests that find one.
    shares: Mutex<AHashMap<Visitor, Arc<Share>>>,
    /// Requests that wait for a connection, of all visitors.
    waiting: AtomicUsize,
    idle: Mutex<AHashMap<Visitor, VecDeque<Idle>>>,
}

struct Idle {
    wire: Wire,
    slot: Slot,
    patience: Patience,
    since: Instant,
}

/// A timer that lives as long as its connection. Requests on it come one after the other, so it fires at or before the
/// moment that the present one asks for, and is then set anew: those that are answered soon do not touch it.
pub(crate) struct Patience(Pin<Box<Sleep>>);

impl Patience {
    fn new() -> Self {
        Self(Box::pin(tokio::time::sleep(Duration::ZERO)))
    }

    /// `Ready` at `due`, which is never before that of an earlier call.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, due: Instant) -> Poll<()> {
        loop {
            ready!(self.0.as_mut().poll(cx));
            if Instant::now() >= due {
                return Poll::Ready(());
            }
            self.0.as_mut().reset(due);
        }
    }
}

/// What one link may have of an endpoint.
struct Share {
    slots: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// A connection of the link has come back while one of its requests waits.
    returned: Notify,
}

/// A connection in use. Dropping it closes the connection; `give_back` keeps it for the same visitor.
pub(crate) struct Lease {
    wire: Wire,
    slot: Slot,
    patience: Patience,
    endpoint: Arc<Endpoint>,
    visitor: Visitor,
    /// It has carried another request: the app may have closed it at the very moment we use it.
    reused: bool,
    /// Whether another request may follow on this connection.
    reusable: bool,
    /// Dropped with the first answer on a new connection.
    unproven: Option<oneshot::Sender<()>>,
}

impl Upstreams {
    pub(crate) fn new(limits: &Limits, timeouts: &Timeouts, own: SocketAddr, meters: Arc<Meters>) -> Arc<Self> {
        Arc::new(Self {
            endpoints: RwLock::default(),
            connections_per_endpoint_max: limits.upstream_connections_per_endpoint_max,
            connections_per_link_max: limits.upstream_connections_per_link_max,
            connect_timeout: timeouts.upstream_connect,
            idle_max: timeouts.upstream_idle,
            meters,
            own,
        })
    }

    /// The connection to `address` that `visitor` used last, if it is there and ready at once.
    pub(crate) fn ready(&self, visitor: Visitor, address: SocketAddr) -> Result<Option<Lease>, Denial> {
        let endpoint = self.endpoint(address)?;
        while let Some(idle) = endpoint.take_idle(visitor) {
            if idle.wire.is_quiet() {
                return Ok(Some(self.reuse(endpoint, visitor, idle)));
            }
        }
        Ok(None)
    }

    /// A connection to `address` for `visitor`: one that is used and comes back, or a new one. May wait for either.
    pub(crate) async fn lease(&self, visitor: Visitor, address: SocketAddr) -> Result<Lease, Denial> {
        let endpoint = self.endpoint(address)?;
        let share = endpoint.share(visitor, self.connections_per_link_max);
        let waiting = Waiting::new(&endpoint, &share);
        let until = Instant::now() + self.connect_timeout;
        let slot = loop {
            while let Some(idle) = endpoint.take_idle(visitor) {
                if idle.wire.is_quiet() {
                    drop(waiting);
                    return Ok(self.reuse(endpoint, visitor, idle));
                }
            }
            tokio::select! {
                biased;
                slot = endpoint.slot(&share, visitor) => break slot,
                () = share.returned.notified() => {}
                () = tokio::time::sleep_until(until) => return Err(Denial::UpstreamBusy),
            }
        };
        drop(waiting);
        self.open(endpoint, visitor, slot.ok_or(Denial::UpstreamBusy)?).await
    }

    /// A new connection, whatever is idle.
    pub(crate) async fn lease_new(&self, visitor: Visitor, address: SocketAddr) -> Result<Lease, Denial> {
        let endpoint = self.endpoint(address)?;
        let share = endpoint.share(visitor, self.connections_per_link_max);
        let waiting = Waiting::new(&endpoint, &share);
        let slot = tokio::time::timeout(self.connect_timeout, async {
            let mut slot = std::pin::pin!(endpoint.slot(&share, visitor));
            loop {
                tokio::select! {
                    biased;
                    slot = slot.as_mut() => break slot,
                    // Of no use here but for its slot.
                    () = share.returned.notified() => endpoint.evict_oldest_of(visitor),
                }
            }
        });
        let slot = slot.await;
        drop(waiting);
        self.open(endpoint, visitor, slot.ok().flatten().ok_or(Denial::UpstreamBusy)?).await
    }

    fn reuse(&self, endpoint: Arc<Endpoint>, visitor: Visitor, idle: Idle) -> Lease {
        self.meters.reused.increment(1);
        let Idle { wire, slot, patience, .. } = idle;
        Lease { wire, slot, patience, endpoint, visitor, reused: true, reusable: true, unproven: None }
    }

    async fn open(&self, endpoint: Arc<Endpoint>, visitor: Visitor, mut slot: Slot) -> Result<Lease, Denial> {
        let stream = match tokio::time::timeout(self.connect_timeout, TcpStream::connect(endpoint.address)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::debug!(%error, "the app did not accept a connection");
                return Err(Denial::UpstreamUnreachable);
            }
            Err(_) => return Err(Denial::UpstreamTimeout),
        };
        // Heads and chunks are written whole; waiting to join them only adds latency.
        let _ = stream.set_nodelay(true);
        self.meters.connected.increment(1);
        let (opening, (unproven, first_answer)) = (slot.opening.take(), oneshot::channel());
        tokio::spawn(async move {
            let _ = tokio::time::timeout(FIRST_ANSWER, first_answer).await;
            drop(opening);
        });
        let (wire, patience, unproven) = (Wire::new(stream), Patience::new(), Some(unproven));
        Ok(Lease { wire, slot, patience, endpoint, visitor, reused: false, reusable: true, unproven })
    }

    fn endpoint(&self, address: SocketAddr) -> Result<Arc<Endpoint>, Denial> {
        if let Some(known) = self.endpoints.read().get(&address) {
            return Ok(Arc::clone(known));
        }
        if !may_be_reached(address, self.own) {
            tracing::error!(%address, "refused an upstream address that no runtime may have");
            return Err(Denial::UpstreamUnreachable);
        }
        let new = || {
            Arc::new(Endpoint {
                address,
                slots: Arc::new(Semaphore::new(self.connections_per_endpoint_max)),
                opening: Arc::new(Semaphore::new(OPENING_MAX)),
                shares: Mutex::default(),
                waiting: AtomicUsize::new(0),
                idle: Mutex::default(),
            })
        };
        Ok(Arc::clone(self.endpoints.write().entry(address).or_insert_with(new)))
    }

    /// Closes what has been idle for too long and forgets endpoints without connections. Called every few seconds.
    pub(crate) fn sweep(&self) {
        let now = Instant::now();
        for endpoint in self.endpoints.read().values() {
            endpoint.idle.lock().retain(|_, connections| {
                connections.retain(|idle| now.duration_since(idle.since) < self.idle_max && idle.wire.is_quiet());
                !connections.is_empty()
            });
            endpoint.shares.lock().retain(|_, share| {
                Arc::strong_count(share) > 1 || share.slots.available_permits() < self.connections_per_link_max
            });
        }
        self.endpoints.write().retain(|_, endpoint| {
            Arc::strong_count(endpoint) > 1
                || endpoint.slots.available_permits() < self.connections_per_endpoint_max
                || !endpoint.idle.lock().is_empty()
        });
    }
}

/// Whatever a record says, these are never apps: they would turn the gateway into a way around other boundaries.
fn may_be_reached(address: SocketAddr, own: SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    let never = match ip {
        IpAddr::V4(v4) => v4.is_unspecified() || v4.is_link_local() || v4.is_multicast() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unspecified() || v6.is_unicast_link_local() || v6.is_multicast(),
    };
    let is_own = address.port() == own.port() && (ip == own.ip() || (own.ip().is_unspecified() && ip.is_loopback()));
    !never && !is_own && address.port() != 0
}

impl Endpoint {
    fn take_idle(&self, visitor: Visitor) -> Option<Idle> {
        // Last in, first out: the fewest connections stay warm, the rest ages out.
        self.idle.lock().get_mut(&visitor)?.pop_back()
    }

    fn keep(&self, visitor: Visitor, idle: Idle) {
        self.idle.lock().entry(visitor).or_default().push_back(idle);
    }

    /// Keeps a connection that has come back, or lets it go to who waits.
    fn take_back(&self, visitor: Visitor, idle: Idle) {
        self.keep(visitor, idle);
        // INVARIANT: who waits is counted before it looks at what is idle, so either it sees the connection or it is
        // seen here.
        if self.waiting.load(Ordering::Relaxed) == 0 {
            return;
        }
        let share = self.shares.lock().get(&visitor).map(Arc::clone);
        match share.filter(|share| share.waiting.load(Ordering::Relaxed) > 0) {
            Some(share) => share.returned.notify_one(),
            // Another link's request gets the slot.
            None => self.evict_oldest(),
        }
    }

    fn share(&self, visitor: Visitor, connections_max: usize) -> Arc<Share> {
        let new = || {
            let slots = Arc::new(Semaphore::new(connections_max));
            Arc::new(Share { slots, waiting: AtomicUsize::new(0), returned: Notify::new() })
        };
        Arc::clone(self.shares.lock().entry(visitor).or_insert_with(new))
    }

    /// The link's own share first: who has used it up waits without taking anything from the others.
    async fn slot(&self, share: &Share, visitor: Visitor) -> Option<Slot> {
        let of_link = acquire(&share.slots, || self.evict_oldest_of(visitor)).await?;
        // Other links' idle connections give way before anybody waits.
        let of_endpoint = acquire(&self.slots, || self.evict_oldest()).await?;
        let opening = Arc::clone(&self.opening).acquire_owned().await.ok()?;
        Some(Slot { _of_endpoint: of_endpoint, _of_link: of_link, opening: Some(opening) })
    }

    fn evict_oldest(&self) {
        let idle = self.idle.lock();
        let oldest = idle.iter().filter_map(|(visitor, all)| all.front().map(|first| (first.since, *visitor))).min();
        drop(idle);
        if let Some((_, visitor)) = oldest {
            self.evict_oldest_of(visitor);
        }
    }

    fn evict_oldest_of(&self, visitor: Visitor) {
        if let Some(connections) = self.idle.lock().get_mut(&visitor) {
            connections.pop_front();
        }
    }
}

/// A permit at once, or else, after room was made, as soon as there is one.
async fn acquire(slots: &Arc<Semaphore>, make_room: impl FnOnce()) -> Option<OwnedSemaphorePermit> {
    if let Ok(slot) = Arc::clone(slots).try_acquire_owned() {
        return Some(slot);
    }
    make_room();
    Arc::clone(slots).acquire_owned().await.ok()
}

/// One request that waits for a connection.
struct Waiting {
    endpoint: Arc<Endpoint>,
    share: Arc<Share>,
}

impl Waiting {
    fn new(endpoint: &Arc<Endpoint>, share: &Arc<Share>) -> Self {
        endpoint.waiting.fetch_add(1, Ordering::Relaxed);
        share.waiting.fetch_add(1, Ordering::Relaxed);
        Self { endpoint: Arc::clone(endpoint), share: Arc::clone(share) }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.endpoint.waiting.fetch_sub(1, Ordering::Relaxed);
        self.share.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What an open connection takes of its endpoint and of its link's share.
pub(crate) struct Slot {
    _of_endpoint: OwnedSemaphorePermit,
    _of_link: OwnedSemaphorePermit,
    /// Until it is known that the app has taken it.
    opening: Option<OwnedSemaphorePermit>,
}

impl Lease {
    /// The app has answered: it has taken the connection.
    fn answered(&mut self) {
        self.unproven = None;
    }

    fn give_back(self) {
        let Self { mut wire, slot, patience, endpoint, visitor, reusable, .. } = self;
        if !reusable || !wire.buffer.is_empty() {
            return;
        }
        wire.rest();
        endpoint.take_back(visitor, Idle { wire, slot, patience, since: Instant::now() });
    }

    /// Gives its slot back: sockets have limits of their own (`Sockets`), and a link's open ones must not keep its requests, or its
    /// next socket, from the app.
    fn into_upgraded(self) -> (TcpStream, BytesMut) {
        self.wire.into_parts()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn addresses_that_no_runtime_has_are_never_reached() {
        let own: SocketAddr = "0.0.0.0:8443".parse().unwrap();
        for address in [
            "169.254.169.254:80",
            "0.0.0.0:80",
            "224.0.0.1:80",
            "255.255.255.255:80",
            "127.0.0.1:8443",
            "127.0.0.1:0",
            "[::]:80",
            "[fe80::1]:80",
            "[::ffff:169.254.169.254]:80",
        ] {
            assert!(!may_be_reached(address.parse().unwrap(), own), "{address}");
        }
        assert!(may_be_reached("127.0.0.1:3000".parse().unwrap(), own));
        assert!(may_be_reached("10.0.3.4:8443".parse().unwrap(), own));
    }
}
