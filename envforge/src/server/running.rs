//! What a process has started so far, and how all of it ends: after a request to stop, after a failure, and after a start
//! that failed or was interrupted half-way.
//!
//! Not here: what is started (`dev`, `serve`), or when to stop (`stop`).

use envforge_domain::ids::ApiProcessId;
use envforge_eventlog::jetstream::Enrolled;
use envforge_gateway::Gateway;
use envforge_projections::sql::Supervisor;
use tokio_util::sync::CancellationToken;

use super::control_plane::Essential;
use super::stop::StopRequests;
use crate::cli::failure::Failure;

/// Filled while a process starts.
#[derive(Default)]
pub(crate) struct Running {
    pub(crate) essential: Essential,
    pub(crate) gateway: Option<Gateway>,
    /// The gateway's place among those for which revocations wait.
    pub(crate) enrolled: Option<Enrolled>,
    /// The same of the shells that are open at the API of this process.
    pub(crate) enrolled_shells: Option<Enrolled<ApiProcessId>>,
    pub(crate) projector: Option<Supervisor>,
    /// Ends the essential tasks.
    pub(crate) stop: CancellationToken,
    /// Ends the views that those tasks decide on, after them.
    pub(crate) stop_views: CancellationToken,
}

impl Running {
    /// INVARIANT: nothing that was started is left running, however far the start came.
    async fn end(self) {
        if let Some(gateway) = self.gateway {
            gateway.stop().await;
        }
        // INVARIANT: not before the gateway has ended what was open.
        if let Some(enrolled) = self.enrolled {
            enrolled.leave().await;
        }
        self.stop.cancel();
        self.essential.finish().await;
        // INVARIANT: not before the API has ended what was open.
        if let Some(enrolled) = self.enrolled_shells {
            enrolled.leave().await;
        }
        if let Some(projector) = self.projector {
            projector.stop().await;
        }
        self.stop_views.cancel();
    }
}

/// Starts, works until a request to stop or the first failure, and ends everything. A second Ctrl-C does not wait for that:
/// whatever still runs is ended by the next start.
///
/// # Errors
/// Why the start failed or an essential task ended; `Interrupted` after a second Ctrl-C.
pub(crate) async fn until_asked_to_stop(
    mut asked: StopRequests,
    start: impl AsyncFnOnce(&mut Running) -> anyhow::Result<()>,
    stopping: impl FnOnce(),
) -> anyhow::Result<()> {
    let mut running = Running::default();
    let started = tokio::select! {
        () = asked.next() => None,
        started = start(&mut running) => Some(started),
    };
    let outcome = match started {
        None => Ok(()),
        Some(Err(error)) => Err(error),
        Some(Ok(())) => {
            tokio::select! {
                () = asked.next() => Ok(()),
                failure = running.essential.first_failure() => Err(failure),
            }
        }
    };
    if outcome.is_ok() {
        tracing::info!("stopping");
        stopping();
    }
    tokio::select! {
        () = running.end() => outcome,
        () = asked.impatience() => Err(Failure::Interrupted.into()),
    }
}
