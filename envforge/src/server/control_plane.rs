//! What every role needs: the log, commands on it, the hot views with fresh decisions, a clock, and its essential tasks.

use std::sync::Arc;

use envforge_commands::Commands;
use envforge_domain::time::SharedClock;
use envforge_eventlog::SharedLog;
use envforge_identity::clock::SystemClock;
use envforge_projections::{Authorizer, DenialSink, Hot, HotConfig};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::known_log::KnownLog;

/// A process's view of the log. Cheap to clone.
#[derive(Clone)]
pub(crate) struct ControlPlane {
    pub(crate) log: SharedLog,
    pub(crate) commands: Commands,
    pub(crate) hot: Arc<Hot>,
    pub(crate) authorizer: Authorizer,
    pub(crate) clock: SharedClock,
}

impl ControlPlane {
    /// Starts the hot views and waits until they have what the log holds.
    pub(crate) async fn start(log: &KnownLog, stop: CancellationToken) -> anyhow::Result<Self> {
        let log = Arc::clone(log.log());
        let clock: SharedClock = Arc::new(SystemClock);
        let hot_config = HotConfig { clock: Some(Arc::clone(&clock)), ..HotConfig::default() };
        let hot = Hot::start_with(Arc::clone(&log), hot_config, stop);
        hot.caught_up().await?;
        let authorizer = Authorizer::new(Arc::clone(&log), Arc::clone(&hot), Arc::new(DenialSink::default()));
        Ok(Self { commands: Commands::new(Arc::clone(&log)), log, hot, authorizer, clock })
    }
}

/// Tasks without which a role is of no use: when one fails, the process ends and says why.
#[derive(Default)]
pub(crate) struct Essential {
    tasks: JoinSet<(&'static str, anyhow::Result<()>)>,
}

impl Essential {
    pub(crate) fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        self.tasks.spawn(async move { (name, task.await) });
    }

    /// Waits for the first task that ends; while nobody stops them, an end is a failure.
    pub(crate) async fn first_failure(&mut self) -> anyhow::Error {
        match self.tasks.join_next().await {
            Some(Ok((name, Ok(())))) => anyhow::anyhow!("{name} ended unexpectedly"),
            Some(Ok((name, Err(error)))) => error.context(name),
            Some(Err(error)) => anyhow::anyhow!(error),
            None => std::future::pending().await,
        }
    }

    /// Waits until all have ended, after they were told to stop.
    pub(crate) async fn finish(mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            match ended {
                Ok((_, Ok(()))) => {}
                Ok((name, Err(error))) => tracing::warn!(name, %error, "ended with an error while stopping"),
                Err(error) => tracing::error!(%error, "a task ended badly"),
            }
        }
    }
}
