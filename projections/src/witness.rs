//! What a revocation asks of the gateway of this process; and where there is no other, of all gateways.
//!
//! Not here: finding those of other processes (eventlog).

use std::time::{Duration, Instant};

use async_trait::async_trait;
use envforge_domain::commit::Position;
use envforge_domain::revocation::{Uncounted, WhyUncounted};
use envforge_eventlog::gateways::{Account, Gateways, Witness};

use crate::hot::Hot;

/// How long a commit that stands in the log may take to get here. Whoever asks asks again.
const READ_WAIT: Duration = Duration::from_secs(2);
/// How long sockets that were told to close are waited for.
const CLOSE_WAIT: Duration = Duration::from_secs(1);
const CLOSE_PAUSE: Duration = Duration::from_millis(2);

#[async_trait]
impl Witness for Hot {
    fn is_fresh(&self) -> bool {
        self.fresh().is_ok()
    }

    async fn has_read(&self, position: Position) -> bool {
        self.wait_for(position, READ_WAIT).await.is_ok()
    }

    async fn closed_by(&self, commits: &[Position]) -> Option<u32> {
        let deadline = Instant::now() + CLOSE_WAIT;
        loop {
            let closed = self.gateway.sockets_closed_by(commits);
            if closed.is_some() || !self.gateway.remembers(commits) || Instant::now() >= deadline {
                return closed;
            }
            tokio::time::sleep(CLOSE_PAUSE).await;
        }
    }

    fn was_waited_for(&self, at: Instant) {
        self.gateway.was_waited_for(at);
    }
}

/// No gateway runs anywhere else. Whoever asks has waited for these views before: that they are behind is told at once.
#[async_trait]
impl Gateways for Hot {
    fn is_all_there_is(&self) -> bool {
        true
    }

    async fn have_read(&self, commits: &[Position]) -> Account {
        let last = commits.iter().copied().max().unwrap_or(Position::START);
        let why = match self.position() >= last {
            false => WhyUncounted::Silent,
            true => match self.closed_by(commits).await {
                Some(sockets) => return Account { sockets, ..Account::default() },
                None => WhyUncounted::StillClosing,
            },
        };
        Account { uncounted: vec![Uncounted { gateway: None, why }], ..Account::default() }
    }
}
