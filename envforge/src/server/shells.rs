//! The agent of this process as what opens shells for the API of this process.

use std::collections::BTreeMap;

use envforge_api::{OpenShell, ShellHost};
use envforge_domain::access::Resource;
use envforge_domain::ids::{UserId, WorkspaceId};
use envforge_domain::job_run::JobOrder;
use envforge_domain::secret::Secret;
use envforge_domain::secrets::{ConsumedSecret, RefusedSecret};
use envforge_domain::shell::{LogChunk, LogPlace, ShellFailure, ShellOrder};
use envforge_domain::slug::ServiceName;
use envforge_domain::time::SharedClock;
use envforge_reactors::SecretResolver;
use envforge_runtime::{GitLogin, LocalHost};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

/// Shells where this process runs workspaces.
pub(crate) struct LocalShells {
    pub(crate) host: LocalHost,
    /// Values that jobs, and git in shells, are given. The API names them and never sees one.
    pub(crate) secrets: GivenSecrets,
}

/// The process's secret store, for what jobs and git in shells are given.
#[derive(Clone)]
pub(crate) struct GivenSecrets {
    pub(crate) resolver: Option<SecretResolver>,
    pub(crate) clock: SharedClock,
}

impl GivenSecrets {
    /// What git shows the repository's server; otherwise why there is nothing, where the project names a secret for it.
    pub(crate) async fn login(&self, order: &ShellOrder) -> Result<Option<GitLogin>, String> {
        let Some(git) = &order.git else { return Ok(None) };
        let consumed = git.given.as_ref().map_err(|refused| RefusedSecret::named(std::slice::from_ref(refused)))?;
        let mut values = self.values(order.place(), std::slice::from_ref(consumed)).await?;
        let value = values.remove(consumed.name.as_str()).ok_or("the secret store has no value of it")?;
        let valid_for = git.expires_at.map(|end| end.since(self.clock.now()));
        Ok(Some(GitLogin { username: git.credential.username.clone(), value, valid_for }))
    }

    /// The values of a job's secrets, by name.
    pub(crate) async fn of_job(&self, order: &JobOrder) -> Result<BTreeMap<String, Secret>, ShellFailure> {
        let values = self.values(order.place(), &order.secrets).await;
        values.map_err(|reason| ShellFailure::NotStarted { reason: format!("its secrets could not be had: {reason}") })
    }

    async fn values(&self, of: Resource, consumed: &[ConsumedSecret]) -> Result<BTreeMap<String, Secret>, String> {
        if consumed.is_empty() {
            return Ok(BTreeMap::new());
        }
        let resolver = self.resolver.as_ref().ok_or("this process was started without a secret store")?;
        resolver.values_for(of, self.clock.now(), consumed).await
    }
}

/// Tells the person what git lacks, beside what else there is to tell.
pub(crate) fn without_login(
    opened: Result<OpenShell, ShellFailure>,
    why: Option<String>,
) -> Result<OpenShell, ShellFailure> {
    let Some(why) = why else { return opened };
    match opened {
        Ok(mut open) => {
            let lacks = format!("git has no credential here: {why}");
            let notice = open.facts.notice.take();
            open.facts.notice = Some(notice.map_or(lacks.clone(), |notice| format!("{notice}; {lacks}")));
            Ok(open)
        }
        Err(ShellFailure::Checkout { reason }) => Err(ShellFailure::Checkout { reason: format!("{reason}; {why}") }),
        Err(failure) => Err(failure),
    }
}

fn opened(open: envforge_runtime::OpenShell) -> OpenShell {
    let envforge_runtime::OpenShell { facts, input, output } = open;
    OpenShell { facts, input, output }
}

impl ShellHost for LocalShells {
    fn open(&self, order: ShellOrder) -> BoxFuture<'_, Result<OpenShell, ShellFailure>> {
        async {
            let (login, why) = match self.secrets.login(&order).await {
                Ok(login) => (login, None),
                Err(why) => (None, Some(why)),
            };
            without_login(self.host.open_shell(order, login).await.map(opened), why)
        }
        .boxed()
    }

    fn run_job(&self, order: JobOrder) -> BoxFuture<'_, Result<OpenShell, ShellFailure>> {
        async {
            let secrets = self.secrets.of_job(&order).await?;
            self.host.run_job(order, secrets).await.map(opened)
        }
        .boxed()
    }

    fn commit(&self, workspace: WorkspaceId) -> Option<String> {
        self.host.commit_up(workspace)
    }

    fn end_lasting(&self, workspace: WorkspaceId, user: UserId) -> BoxFuture<'_, ()> {
        self.host.end_lasting_shells(workspace, user).boxed()
    }

    fn tail(
        &self,
        workspace: WorkspaceId,
        service: ServiceName,
        lines: usize,
    ) -> BoxFuture<'_, std::io::Result<Option<LogChunk>>> {
        async move { self.host.tail_log(workspace, &service, lines).await }.boxed()
    }

    fn more(
        &self,
        workspace: WorkspaceId,
        service: ServiceName,
        from: LogPlace,
    ) -> BoxFuture<'_, std::io::Result<LogChunk>> {
        async move { self.host.log_since(workspace, &service, from).await }.boxed()
    }
}
