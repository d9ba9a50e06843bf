//! A host, whichever side of a connection it is on.

use std::collections::BTreeMap;
use std::io;

use envforge_domain::ids::{RootWindowId, UserId, WorkspaceId};
use envforge_domain::job_run::JobOrder;
use envforge_domain::secret::Secret;
use envforge_domain::shell::{LastingShell, LogChunk, LogPlace, ShellFailure, ShellOrder, TerminalSize};
use envforge_domain::slug::ServiceName;
use envforge_runtime::{
    Awake, EndedShell, LocalHost, OpenShell, Reports, ShellLogin, SleepFailure, Stage, WakeFailure, WakeOrder,
};
use tokio::sync::watch;

use crate::line::HostLine;
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

    /// What is up there.
    pub fn workspaces_up(&self) -> Vec<WorkspaceId> {
        match self {
            Self::Local(host) => host.epochs_up().into_iter().map(|(workspace, _)| workspace).collect(),
            Self::Remote(host) => host.workspaces_up(),
        }
    }

    /// See `LocalHost::known_shells`; of an agent's host those of its organization.
    ///
    /// # Errors
    /// Where the host does not say all of it.
    pub async fn known_shells(&self) -> io::Result<Vec<EndedShell>> {
        match self {
            Self::Local(host) => Ok(host.known_shells().into_iter().map(|(what, _)| what).collect()),
            Self::Remote(host) => host.known_shells().await,
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

/// A host that this process reaches for shells, jobs and logs.
#[derive(Clone)]
pub enum ReachedHost {
    /// In this process.
    Local(LocalHost),
    /// An agent's, connected to this process or to another one, or another process's own.
    Line(HostLine),
}

impl ReachedHost {
    /// Whether the process that has the host reads values of secrets itself: an order's references are enough.
    pub fn gives_by_reference(&self) -> bool {
        match self {
            Self::Local(_) => false,
            Self::Line(line) => line.gives_by_reference(),
        }
    }

    /// See `LocalHost::open_shell`.
    ///
    /// # Errors
    /// See `ShellFailure`; nothing runs then.
    pub async fn open_shell(&self, order: ShellOrder, login: Option<ShellLogin>) -> Result<OpenShell, ShellFailure> {
        match self {
            Self::Local(host) => host.open_shell(order, login).await,
            Self::Line(line) => line.open_shell(order, login).await,
        }
    }

    /// See `LocalHost::run_job`.
    ///
    /// # Errors
    /// See `ShellFailure`; nothing runs then.
    pub async fn run_job(&self, order: JobOrder, secrets: BTreeMap<String, Secret>) -> Result<OpenShell, ShellFailure> {
        match self {
            Self::Local(host) => host.run_job(order, secrets).await,
            Self::Line(line) => line.run_job(order, secrets).await,
        }
    }

    /// The commit that is checked out where the runtime is up there.
    pub async fn commit_up(&self, workspace: WorkspaceId) -> Option<String> {
        match self {
            Self::Local(host) => host.commit_up(workspace),
            Self::Line(line) => line.commit_up(workspace).await,
        }
    }

    /// See `LocalHost::lasting_shells`.
    ///
    /// # Errors
    /// Where the host does not answer.
    pub async fn lasting_shells(&self) -> io::Result<Vec<LastingShell>> {
        match self {
            Self::Local(host) => Ok(host.lasting_shells().await),
            Self::Line(line) => line.lasting_shells().await,
        }
    }

    /// See `LocalHost::end_lasting_shells`.
    ///
    /// # Errors
    /// Where the host does not answer: what lasts there is found on its next connection. Where it does not end there.
    pub async fn end_lasting_shells(&self, workspace: WorkspaceId, user: UserId) -> io::Result<()> {
        match self {
            Self::Local(host) => host.end_lasting_shells(workspace, user).await.map_err(io::Error::other),
            Self::Line(line) => line.end_lasting_shells(workspace, user).await,
        }
    }

    /// See `LocalHost::tail_log`.
    ///
    /// # Errors
    /// `NotConnected` where the host does not answer.
    pub async fn tail_log(
        &self,
        workspace: WorkspaceId,
        service: &ServiceName,
        lines: usize,
    ) -> io::Result<Option<LogChunk>> {
        match self {
            Self::Local(host) => host.tail_log(workspace, service, lines).await,
            Self::Line(line) => line.tail_log(workspace, service, lines).await,
        }
    }

    /// See `LocalHost::log_since`.
    ///
    /// # Errors
    /// `NotConnected` where the host does not answer.
    pub async fn log_since(
        &self,
        workspace: WorkspaceId,
        service: &ServiceName,
        from: LogPlace,
    ) -> io::Result<LogChunk> {
        match self {
            Self::Local(host) => host.log_since(workspace, service, from).await,
            Self::Line(line) => line.log_since(workspace, service, from).await,
        }
    }

    /// See `LocalHost::attach_root`.
    ///
    /// # Errors
    /// See `ShellFailure`; nothing runs then.
    pub async fn attach_root(
        &self,
        workspace: WorkspaceId,
        window: RootWindowId,
        size: TerminalSize,
        term: String,
    ) -> Result<OpenShell, ShellFailure> {
        match self {
            Self::Local(host) => host.attach_root(window, size, term).await,
            Self::Line(line) => line.attach_root(workspace, window, size, term).await,
        }
    }

    /// See `LocalHost::root_output`.
    ///
    /// # Errors
    /// Where the host does not answer.
    pub async fn root_output(&self, workspace: WorkspaceId, window: RootWindowId) -> io::Result<Option<(String, u64)>> {
        match self {
            Self::Local(host) => Ok(host.root_output(window)),
            Self::Line(line) => line.root_output(workspace, window).await,
        }
    }
}
