//! WebSockets that a revocation closes, counted where the gateway runs in this process.
//!
//! What is looked at is what the gateway's own closers count: no gateway is asked. Not here: closing them (projections give the
//! signal, the gateway acts on it).

use std::time::{Duration, Instant};

use envforge_domain::ids::UserId;
use envforge_projections::Hot;
use envforge_projections::gateway_view::Closers;

/// How long a receipt waits for sockets that are closing.
const WAIT: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(2);

/// What somebody has open before a revocation: their sessions on workspaces' hosts, and links that stand on their right.
pub(crate) struct OpenSockets(Vec<(Closers, u32)>);

impl OpenSockets {
    pub(crate) fn of(hot: &Hot, user: UserId) -> Self {
        let links = hot.authorization.links_issued_by(user).into_iter().filter_map(|link| hot.gateway.link(link));
        let links = links.map(|link| link.closers.clone());
        let all = links.chain(hot.gateway.closers_of(user));
        Self(all.map(|closers| (closers.open_sockets(), closers)).map(|(open, closers)| (closers, open)).collect())
    }

    /// How many of them were closed, once what was to be closed is.
    pub(crate) async fn closed(&self) -> Result<u32, &'static str> {
        let closing = || self.0.iter().filter(|(closers, _)| closers.is_closed());
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
