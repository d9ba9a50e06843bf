//! The seam to whatever runs shells: finds the host of a workspace, opens a shell there, and carries its bytes.
//!
//! Hosts are in this process, or their agents are connected to it, or another process that this one is told of has them. Where nothing is
//! so whoever asks is told (`host_elsewhere`,
//! `host_out_of_reach`). Not here: rights, and the connection to the client (`shell_socket`).

use envforge_domain::ids::{HostId, OrgId, RootWindowId, UserId, WorkspaceId};
use envforge_domain::job_run::JobOrder;
use envforge_domain::shell::{
    LastingShell, LogChunk, LogPlace, ShellFacts, ShellFailure, ShellInput, ShellOrder, ShellOutput, TerminalSize,
};
use envforge_domain::slug::ServiceName;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

/// A shell that a host has opened. Dropping `input` ends it, with all that it started.
pub struct OpenShell {
    pub facts: ShellFacts,
    pub input: mpsc::Sender<ShellInput>,
    /// Ends with `Over`, or without it where the host is gone.
    pub output: mpsc::Receiver<ShellOutput>,
}

/// Opens shells where workspaces run.
pub trait ShellHost: Send + Sync {
    /// The host on which the workspace lies, or is going to.
    ///
    /// # Errors
    /// Where there is none that can be reached from here.
    fn place(&self, org: OrgId, workspace: WorkspaceId) -> Result<HostId, ShellFailure>;

    /// The host of its shells.
    ///
    /// # Errors
    /// Where there is none that can be reached from here.
    fn shell_place(&self, org: OrgId, workspace: WorkspaceId) -> Result<HostId, ShellFailure>;

    /// # Errors
    /// See [`ShellFailure`]; nothing runs then.
    fn open(&self, host: HostId, order: ShellOrder) -> BoxFuture<'_, Result<OpenShell, ShellFailure>>;

    /// Runs a job in the environment of the runtime, which must be awake.
    ///
    /// # Errors
    /// See [`ShellFailure`]; nothing runs then.
    fn run_job(&self, order: JobOrder) -> BoxFuture<'_, Result<OpenShell, ShellFailure>>;

    /// The commit that is checked out where the runtime is awake on a host that can be reached from here.
    fn commit(&self, org: OrgId, workspace: WorkspaceId) -> BoxFuture<'_, Option<String>>;

    /// Ends what lasts of somebody's shells in a workspace, on each host that can be reached from here and knows of no sign-in attached to
    /// it that `stands`. Answers those that do. What lasts elsewhere is found once it can be reached ([`ShellHost::found_lasting`]).
    fn end_lasting<'a>(
        &'a self,
        org: OrgId,
        workspace: WorkspaceId,
        user: UserId,
        stands: &'a (dyn Fn(&LastingShell) -> bool + Send + Sync),
    ) -> BoxFuture<'a, Vec<LastingShell>>;

    /// The next sign-in that a host names on which something lasts there, of those that this process may not know. Waits for ever
    /// where no host does. Safe to cancel.
    fn found_lasting(&self) -> BoxFuture<'_, LastingShell>;

    /// Comes to the shell of a root window that the log has asked for, on the host of the workspace's runtime. Waits a while for it.
    ///
    /// # Errors
    /// See [`ShellFailure`]; nothing runs then.
    fn attach_root(
        &self,
        org: OrgId,
        workspace: WorkspaceId,
        window: RootWindowId,
        size: TerminalSize,
        term: String,
    ) -> BoxFuture<'_, Result<OpenShell, ShellFailure>>;

    /// The end of what a root window's command has written, and how many bytes came before. `None` where none is kept.
    ///
    /// # Errors
    /// Where its host cannot be reached from here.
    fn root_output(
        &self,
        org: OrgId,
        workspace: WorkspaceId,
        window: RootWindowId,
    ) -> BoxFuture<'_, Result<Option<(String, u64)>, ShellFailure>>;

    /// The last lines of a service's output, at most 10,000 and 1 MiB, and where it goes on. `None` where it never wrote.
    ///
    /// # Errors
    /// `NotConnected` where its host is out of reach.
    fn tail(
        &self,
        org: OrgId,
        workspace: WorkspaceId,
        service: ServiceName,
        lines: usize,
    ) -> BoxFuture<'_, std::io::Result<Option<LogChunk>>>;

    /// What came since.
    ///
    /// # Errors
    /// `NotConnected` where its host is out of reach.
    fn more(
        &self,
        org: OrgId,
        workspace: WorkspaceId,
        service: ServiceName,
        from: LogPlace,
    ) -> BoxFuture<'_, std::io::Result<LogChunk>>;
}
