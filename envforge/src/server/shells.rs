//! The hosts that this process reaches, as what opens shells for the API of this process.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use envforge_agent::ReachedHost;
use envforge_api::{OpenShell, ShellHost};
use envforge_domain::access::Resource;
use envforge_domain::ids::{HostId, OrgId, RootWindowId, UserId, WorkspaceId};
use envforge_domain::job_run::JobOrder;
use envforge_domain::project::GitCredential;
use envforge_domain::secret::Secret;
use envforge_domain::secrets::{ConsumedSecret, RefusedSecret};
use envforge_domain::shell::{LastingShell, LogChunk, LogPlace, ShellFailure, ShellOrder, TerminalSize};
use envforge_domain::slug::ServiceName;
use envforge_domain::time::SharedClock;
use envforge_reactors::SecretResolver;
use envforge_runtime::{GitLogin, ShellLogin};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::hosts::Hosts;

/// Shells where workspaces lie.
pub(crate) struct HostShells {
    pub(crate) hosts: Hosts,
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
    pub(crate) async fn login(&self, order: &ShellOrder) -> Result<Option<ShellLogin>, String> {
        let Some(git) = &order.git else { return Ok(None) };
        let consumed = git.given.as_ref().map_err(|refused| RefusedSecret::named(std::slice::from_ref(refused)))?;
        let mut values = self.values(order.place(), std::slice::from_ref(consumed)).await?;
        let value = values.remove(consumed.name.as_str()).ok_or("the secret store has no value of it")?;
        if !GitCredential::carries(&value) {
            let name = &consumed.name;
            return Err(format!(
                "{name} holds a line break, and git carries a password of one line: `envforge secret set {name}` sets another value"
            ));
        }
        let valid_for = git.expires_at.map(|end| end.since(self.clock.now()));
        let login = GitLogin { username: git.credential.username.clone(), value, valid_for };
        Ok(Some(ShellLogin { login, inside: git.credential.in_shells }))
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

/// Not where: that is nobody's business (SPEC, rule 7).
const MOVED: &str = "shells of this workspace were elsewhere before, and this is another clone: what was not pushed from there is not here";

/// With one thing more that the person should know, if there is one.
fn noticed(mut open: OpenShell, more: Option<&str>) -> OpenShell {
    let notices: Vec<_> = open.facts.notice.as_deref().into_iter().chain(more).collect();
    open.facts.notice = (!notices.is_empty()).then(|| notices.join("; "));
    open
}

/// Tells the person what git lacks, beside what else there is to tell.
pub(crate) fn without_login(
    opened: Result<OpenShell, ShellFailure>,
    why: Option<String>,
) -> Result<OpenShell, ShellFailure> {
    let Some(why) = why else { return opened };
    match opened {
        Ok(open) => {
            let lacks = format!("git has no credential here: {why}");
            Ok(noticed(open, Some(&lacks)))
        }
        Err(ShellFailure::Checkout { reason }) => Err(ShellFailure::Checkout { reason: format!("{reason}; {why}") }),
        Err(failure) => Err(failure),
    }
}

fn opened(open: envforge_runtime::OpenShell) -> OpenShell {
    let envforge_runtime::OpenShell { facts, input, output } = open;
    OpenShell { facts, input, output }
}

/// What lasts outlives a right by no more than these, where its host answers at all.
const END_ATTEMPTS_MAX: u32 = 60;
const END_PAUSE: Duration = Duration::from_secs(1);

impl HostShells {
    fn host_of(&self, org: OrgId, workspace: WorkspaceId) -> Result<ReachedHost, ShellFailure> {
        let host = self.hosts.place(org, workspace)?;
        self.hosts.reach(org, host).ok_or(ShellFailure::OutOfReach)
    }

    fn logs_of(&self, org: OrgId, workspace: WorkspaceId) -> io::Result<ReachedHost> {
        self.host_of(org, workspace).map_err(|failure| io::Error::new(io::ErrorKind::NotConnected, failure))
    }
}

/// Until the host has done it, or names who keeps it from that. One that went away meanwhile is asked what lasts there once it is back.
async fn end_lasting(
    host: &ReachedHost,
    (workspace, user): (WorkspaceId, UserId),
    stands: &(dyn Fn(&LastingShell) -> bool + Send + Sync),
) -> Vec<LastingShell> {
    let ending = async || {
        let mut attached = host.lasting_shells().await?;
        attached.retain(|one| (one.workspace, one.user) == (workspace, user) && stands(one));
        if attached.is_empty() {
            host.end_lasting_shells(workspace, user).await?;
        }
        Ok::<_, io::Error>(attached)
    };
    for attempt in 1..=END_ATTEMPTS_MAX {
        match ending().await {
            Ok(attached) => return attached,
            Err(error) => tracing::warn!(%workspace, %error, attempt, "what lasts on a host was not ended yet"),
        }
        tokio::time::sleep(END_PAUSE).await;
    }
    Vec::new()
}

impl ShellHost for HostShells {
    fn place(&self, org: OrgId, workspace: WorkspaceId) -> Result<HostId, ShellFailure> {
        self.hosts.place(org, workspace)
    }

    fn shell_place(&self, org: OrgId, workspace: WorkspaceId) -> Result<HostId, ShellFailure> {
        self.hosts.shell_place(org, workspace)
    }

    fn open(&self, host: HostId, order: ShellOrder) -> BoxFuture<'_, Result<OpenShell, ShellFailure>> {
        async move {
            let at = self.hosts.take(order.org, host).await?;
            let (login, why) = match self.secrets.login(&order).await {
                Ok(login) => (login, None),
                Err(why) => (None, Some(why)),
            };
            let moved = self.hosts.shells_moved(order.workspace, order.shell, host).then_some(MOVED);
            let open = without_login(at.open_shell(order, login).await.map(opened), why)?;
            Ok(noticed(open, moved))
        }
        .boxed()
    }

    fn run_job(&self, order: JobOrder) -> BoxFuture<'_, Result<OpenShell, ShellFailure>> {
        async {
            let host = self.host_of(order.org, order.workspace)?;
            let secrets = self.secrets.of_job(&order).await?;
            host.run_job(order, secrets).await.map(opened)
        }
        .boxed()
    }

    fn commit(&self, org: OrgId, workspace: WorkspaceId) -> BoxFuture<'_, Option<String>> {
        async move { self.host_of(org, workspace).ok()?.commit_up(workspace).await }.boxed()
    }

    fn end_lasting<'a>(
        &'a self,
        org: OrgId,
        workspace: WorkspaceId,
        user: UserId,
        stands: &'a (dyn Fn(&LastingShell) -> bool + Send + Sync),
    ) -> BoxFuture<'a, Vec<LastingShell>> {
        async move {
            // It may have been begun where the workspace lay before.
            let hosts = self.hosts.all_of(org);
            let ending = hosts.iter().map(|host| end_lasting(host, (workspace, user), stands));
            futures_util::future::join_all(ending).await.concat()
        }
        .boxed()
    }

    fn found_lasting(&self) -> BoxFuture<'_, LastingShell> {
        self.hosts.found_lasting().boxed()
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
