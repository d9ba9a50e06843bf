//! WebSockets that a revocation closes, counted where the gateway runs in this process.
//!
//! What is looked at is what the gateway's own closers count: no gateway is asked. Not here: closing them (projections give the
//! signal, the gateway acts on it).

use std::time::{Duration, Instant};

use envforge_domain::ids::{LinkId, UserId};
use envforge_domain::time::Millis;
use envforge_projections::Hot;
use envforge_projections::gateway_view::Closers;

/// How long a receipt waits for sockets that are closing.
const WAIT: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(2);

/// What is open before a revocation.
pub(crate) struct OpenSockets {
    all_gateways_here: bool,
    open: Vec<(Closers, u32)>,
    since: Instant,
}

/// What of it a revocation has closed.
pub(crate) struct Closed {
    pub(crate) sockets: Option<u32>,
    /// Why that is not known.
    pub(crate) unknown: Option<&'static str>,
    pub(crate) took: Millis,
}

impl OpenSockets {
    /// Somebody's sessions on workspaces' hosts, and links that stand on their right.
    pub(crate) fn of_person(hot: &Hot, user: UserId, all_gateways_here: bool) -> Self {
        let links = hot.authorization.links_issued_by(user).into_iter().filter_map(|link| hot.gateway.link(link));
        let links = links.map(|link| link.closers.clone());
        Self::new(links.chain(hot.gateway.closers_of(user)), all_gateways_here)
    }

    pub(crate) fn of_link(hot: &Hot, link: LinkId, all_gateways_here: bool) -> Self {
        Self::new(hot.gateway.link(link).into_iter().map(|link| link.closers.clone()), all_gateways_here)
    }

    fn new(all: impl Iterator<Item = Closers>, all_gateways_here: bool) -> Self {
        let open =
            all.map(|closers| (closers.open_sockets(), closers)).map(|(open, closers)| (closers, open)).collect();
        Self { all_gateways_here, open, since: Instant::now() }
    }

    /// How many of them were closed, once what was to be closed is.
    pub(crate) async fn closed(&self) -> Closed {
        let (sockets, unknown) = match self.all_gateways_here {
            true => self.count_closed().await.map_or_else(|unknown| (None, Some(unknown)), |count| (Some(count), None)),
            false => (None, Some("gateways_elsewhere")),
        };
        let took = Millis::new(u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX));
        Closed { sockets, unknown, took }
    }

    async fn count_closed(&self) -> Result<u32, &'static str> {
        let closing = || self.open.iter().filter(|(closers, _)| closers.is_closed());
        let deadline = Instant::now() + WAIT;
        while closing().any(|(closers, _)| closers.open_sockets() > 0) {
            if Instant::now() >= deadline {
                return Err("still_closing");
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(closing().map(|(_, open)| *open).sum())
    }
}
