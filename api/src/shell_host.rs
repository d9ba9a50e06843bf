//! The seam to whatever runs shells: opens one in a workspace, and carries its bytes.
//!
//! Where the host lives in this process it is the agent itself. Where it is another one there is none yet, and whoever asks
//! for a shell is told so (`host_elsewhere`). Not here: rights, and the connection to the client (`shell_socket`).

use envforge_domain::ids::{UserId, WorkspaceId};
use envforge_domain::job_run::JobOrder;
use envforge_domain::shell::{LogChunk, LogPlace, ShellFacts, ShellFailure, ShellInput, ShellOrder, ShellOutput};
use envforge_domain::slug::ServiceName;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

/// A shell that a host has opened. Dropping `input` ends it, with all that it started.
pub struct OpenShell {
    pub facts: ShellFacts,
    pub input: mpsc::Sender<ShellInput>,
    /// Ends with `Over`.
    pub output: mpsc::Receiver<ShellOutput>,
}

/// Opens shells where workspaces run.
pub trait ShellHost: Send + Sync {
    /// # Errors
    /// See [`ShellFailure`]; nothing runs then.
    fn open(&self, order: ShellOrder) -> BoxFuture<'_, Result<OpenShell, ShellFailure>>;

    /// Runs a job in the environment of the runtime, which must be awake.
    ///
    /// # Errors
    /// See [`ShellFailure`]; nothing runs then.
    fn run_job(&self, order: JobOrder) -> BoxFuture<'_, Result<OpenShell, ShellFailure>>;

    /// The commit that is checked out where the runtime is awake on this host.
    fn commit(&self, workspace: WorkspaceId) -> Option<String>;

    /// Ends what lasts of somebody's shells in a workspace.
    fn end_lasting(&self, workspace: WorkspaceId, user: UserId) -> BoxFuture<'_, ()>;

    /// The last lines of a service's output, at most 10,000 and 1 MiB, and where it goes on. `None` where it never wrote.
    fn tail(
        &self,
        workspace: WorkspaceId,
        service: ServiceName,
        lines: usize,
    ) -> BoxFuture<'_, std::io::Result<Option<LogChunk>>>;

    /// What came since.
    fn more(
        &self,
        workspace: WorkspaceId,
        service: ServiceName,
        from: LogPlace,
    ) -> BoxFuture<'_, std::io::Result<LogChunk>>;
}
