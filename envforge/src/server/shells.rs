//! The agent of this process as what opens shells for the API of this process.

use envforge_api::{OpenShell, ShellHost};
use envforge_domain::ids::{UserId, WorkspaceId};
use envforge_domain::job_run::JobOrder;
use envforge_domain::shell::{LogChunk, LogPlace, ShellFailure, ShellOrder};
use envforge_domain::slug::ServiceName;
use envforge_runtime::LocalHost;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

/// Shells where this process runs workspaces.
pub(crate) struct LocalShells(pub(crate) LocalHost);

fn opened(open: envforge_runtime::OpenShell) -> OpenShell {
    let envforge_runtime::OpenShell { facts, input, output } = open;
    OpenShell { facts, input, output }
}

impl ShellHost for LocalShells {
    fn open(&self, order: ShellOrder) -> BoxFuture<'_, Result<OpenShell, ShellFailure>> {
        async { self.0.open_shell(order).await.map(opened) }.boxed()
    }

    fn run_job(&self, order: JobOrder) -> BoxFuture<'_, Result<OpenShell, ShellFailure>> {
        async { self.0.run_job(order).await.map(opened) }.boxed()
    }

    fn commit(&self, workspace: WorkspaceId) -> Option<String> {
        self.0.commit_up(workspace)
    }

    fn end_lasting(&self, workspace: WorkspaceId, user: UserId) -> BoxFuture<'_, ()> {
        self.0.end_lasting_shells(workspace, user).boxed()
    }

    fn tail(
        &self,
        workspace: WorkspaceId,
        service: ServiceName,
        lines: usize,
    ) -> BoxFuture<'_, std::io::Result<Option<LogChunk>>> {
        async move { self.0.tail_log(workspace, &service, lines).await }.boxed()
    }

    fn more(
        &self,
        workspace: WorkspaceId,
        service: ServiceName,
        from: LogPlace,
    ) -> BoxFuture<'_, std::io::Result<LogChunk>> {
        async move { self.0.log_since(workspace, &service, from).await }.boxed()
    }
}
