//! A host, whichever side of a connection it is on.

use envforge_domain::ids::WorkspaceId;
use envforge_runtime::{Awake, LocalHost, Reports, SleepFailure, Stage, WakeFailure, WakeOrder};
use tokio::sync::watch;

use crate::remote::RemoteHost;

/// Where reactors bring about what the log asks for.
#[derive(Clone)]
pub enum Host {
    /// In this process.
    Local(LocalHost),
    /// Behind its agent's connection.
    Remote(RemoteHost),
}

impl Host {
    /// See `LocalHost::wake`.
    ///
    /// # Errors
    /// See `WakeFailure`.
    pub async fn wake(&self, order: WakeOrder, stages: watch::Sender<Stage>) -> Result<Awake, WakeFailure> {
        match self {
            Self::Local(host) => host.wake(order, stages).await,
            Self::Remote(host) => host.wake(order, stages).await,
        }
    }

    /// See `LocalHost::sleep`.
    ///
    /// # Errors
    /// See `SleepFailure`.
    pub async fn sleep(&self, workspace: WorkspaceId, epoch: u64) -> Result<(), SleepFailure> {
        match self {
            Self::Local(host) => host.sleep(workspace, epoch).await,
            Self::Remote(host) => host.sleep(workspace, epoch).await,
        }
    }

    /// See `LocalHost::remove`.
    ///
    /// # Errors
    /// See `SleepFailure`.
    pub async fn remove(&self, workspace: WorkspaceId) -> Result<(), SleepFailure> {
        match self {
            Self::Local(host) => host.remove(workspace).await,
            Self::Remote(host) => host.remove(workspace).await,
        }
    }

    pub fn reports(&self) -> Reports {
        match self {
            Self::Local(host) => host.reports(),
            Self::Remote(host) => host.reports(),
        }
    }

    /// Whether that epoch is ready there and not being put to sleep.
    pub fn is_up(&self, workspace: WorkspaceId, epoch: u64) -> bool {
        self.epoch_up(workspace) == Some(epoch)
    }

    /// The epoch that is ready there, whatever anybody asked for.
    pub fn epoch_up(&self, workspace: WorkspaceId) -> Option<u64> {
        match self {
            Self::Local(host) => host.epoch_up(workspace),
            Self::Remote(host) => host.epoch_up(workspace),
        }
    }

    /// Waits until what is up there has changed on its own; for ever where `reports` tell all of it.
    pub async fn facts_changed(&self) {
        match self {
            Self::Local(_) => std::future::pending().await,
            Self::Remote(host) => host.facts_changed().await,
        }
    }

    /// Whether what is known of it is young enough to renew leases on.
    pub fn is_heard(&self) -> bool {
        match self {
            Self::Local(_) => true,
            Self::Remote(host) => host.is_heard(),
        }
    }
}
