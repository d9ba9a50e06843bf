//! The hosts that this process reaches, as what opens shells for the API of this process.

use std::io;

use envforge_api::{OpenShell, ShellHost};
use envforge_domain::ids::{HostId, OrgId, RootWindowId, UserId, WorkspaceId};
use envforge_domain::job_run::JobOrder;
use envforge_domain::shell::{LastingShell, LogChunk, LogPlace, ShellFailure, ShellOrder, TerminalSize};
use envforge_domain::slug::ServiceName;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::hosts::Hosts;

/// Shells where workspaces lie.
pub(crate) struct HostShells(pub(crate) Hosts);

fn opened(open: envforge_runtime::OpenShell) -> OpenShell {
    let envforge_runtime::OpenShell { facts, input, output } = open;
    OpenShell { facts, input, output }
}

impl HostShells {
    fn host_of(&self, org: OrgId, workspace: WorkspaceId) -> Result<envforge_agent::Host, ShellFailure> {
        let host = self.0.place(org, workspace)?;
        self.0.reach(org, host).ok_or(ShellFailure::OutOfReach)
    }

    fn logs_of(&self, org: OrgId, workspace: WorkspaceId) -> io::Result<envforge_agent::Host> {
        self.host_of(org, workspace).map_err(|failure| io::Error::new(io::ErrorKind::NotConnected, failure))
    }
}

impl ShellHost for HostShells {
    fn place(&self, org: OrgId, workspace: WorkspaceId) -> Result<HostId, ShellFailure> {
        self.0.place(org, workspace)
    }

    fn shell_place(&self, org: OrgId, workspace: WorkspaceId) -> Result<HostId, ShellFailure> {
        self.0.shell_place(org, workspace)
    }

    fn open(&self, host: HostId, order: ShellOrder) -> BoxFuture<'_, Result<OpenShell, ShellFailure>> {
        async move {
            let host = self.0.reach(order.org, host).ok_or(ShellFailure::OutOfReach)?;
            host.open_shell(order).await.map(opened)
        }
        .boxed()
    }

    fn run_job(&self, order: JobOrder) -> BoxFuture<'_, Result<OpenShell, ShellFailure>> {
        async { self.host_of(order.org, order.workspace)?.run_job(order).await.map(opened) }.boxed()
    }

    fn commit(&self, org: OrgId, workspace: WorkspaceId) -> BoxFuture<'_, Option<String>> {
        async move { self.host_of(org, workspace).ok()?.commit_up(workspace).await }.boxed()
    }

    fn end_lasting(&self, org: OrgId, workspace: WorkspaceId, user: UserId) -> BoxFuture<'_, ()> {
        async move {
            // It may have been begun where the workspace lay before.
            let hosts = self.0.all_of(org);
            let ending = hosts.iter().map(|host| host.end_lasting_shells(workspace, user));
            for ended in futures_util::future::join_all(ending).await {
                if let Err(error) = ended {
                    tracing::warn!(%workspace, %error, "what lasts on a host is ended once it is back");
                }
            }
        }
        .boxed()
    }

    fn found_lasting(&self) -> BoxFuture<'_, LastingShell> {
        self.0.found_lasting().boxed()
    }

    fn attach_root(
        &self,
        org: OrgId,
        workspace: WorkspaceId,
        window: RootWindowId,
        size: TerminalSize,
        term: String,
    ) -> BoxFuture<'_, Result<OpenShell, ShellFailure>> {
        async move { self.host_of(org, workspace)?.attach_root(workspace, window, size, term).await.map(opened) }
            .boxed()
    }

    fn root_output(
        &self,
        org: OrgId,
        workspace: WorkspaceId,
        window: RootWindowId,
    ) -> BoxFuture<'_, Result<Option<(String, u64)>, ShellFailure>> {
        async move {
            let output = self.host_of(org, workspace)?.root_output(workspace, window).await;
            output.map_err(|_| ShellFailure::OutOfReach)
        }
        .boxed()
    }

    fn tail(
        &self,
        org: OrgId,
        workspace: WorkspaceId,
        service: ServiceName,
        lines: usize,
    ) -> BoxFuture<'_, io::Result<Option<LogChunk>>> {
        async move { self.logs_of(org, workspace)?.tail_log(workspace, &service, lines).await }.boxed()
    }

    fn more(
        &self,
        org: OrgId,
        workspace: WorkspaceId,
        service: ServiceName,
        from: LogPlace,
    ) -> BoxFuture<'_, io::Result<LogChunk>> {
        async move { self.logs_of(org, workspace)?.log_since(workspace, &service, from).await }.boxed()
    }
}
