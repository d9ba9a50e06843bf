//! The hosts that this process reaches, as what opens shells for the API of this process.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use envforge_agent::{ReachedHost, SecretSource, without_login};
use envforge_api::{OpenShell, ShellHost};
use envforge_domain::access::Resource;
use envforge_domain::ids::{HostId, OrgId, RootWindowId, UserId, WorkspaceId};
use envforge_domain::job_run::JobOrder;
use envforge_domain::project::GitCredential;
use envforge_domain::secret::Secret;
use envforge_domain::secrets::{ConsumedSecret, RefusedSecret};
use envforge_domain::shell::{LastingShell, LogChunk, LogPlace, ShellFailure, ShellGit, ShellOrder, TerminalSize};
use envforge_domain::slug::ServiceName;
use envforge_domain::time::SharedClock;
use envforge_projections::Hot;
use envforge_reactors::SecretResolver;
use envforge_runtime::secret_store::SecretStore;
use envforge_runtime::{GitLogin, ShellLogin};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::control_plane::ControlPlane;
use super::hosts::Hosts;

/// Shells where workspaces lie.
pub(crate) struct HostShells {
    pub(crate) hosts: Hosts,
    /// Values that jobs, and git in shells, are given on hosts that this process has. The API names them and never sees one.
    pub(crate) secrets: GivenSecrets,
}

/// The store of a process that has hosts, for what jobs and git in shells are given there. INVARIANT: a process that has none reads no
/// value: it names them to the one that has the host.
#[derive(Clone)]
pub(crate) struct GivenSecrets {
    resolver: Option<SecretResolver>,
    clock: SharedClock,
    hot: Arc<Hot>,
}

impl GivenSecrets {
    pub(crate) fn new(plane: &ControlPlane, store: Option<Arc<dyn SecretStore>>) -> Self {
        let (clock, hot) = (Arc::clone(&plane.clock), Arc::clone(&plane.hot));
        Self { resolver: store.map(SecretResolver::new), clock, hot }
    }

    /// What git shows the repository's server; otherwise why there is nothing.
    async fn read_login(&self, place: Resource, git: &ShellGit) -> Result<ShellLogin, String> {
        let consumed = git.given.as_ref().map_err(|refused| RefusedSecret::named(std::slice::from_ref(refused)))?;
        let mut values = self.values(place, std::slice::from_ref(consumed)).await?;
        let value = values.remove(consumed.name.as_str()).ok_or("the secret store has no value of it")?;
        if !GitCredential::carries(&value) {
            let name = &consumed.name;
            return Err(format!(
                "{name} holds a line break, and git carries a password of one line: `envforge secret set {name}` sets another value"
            ));
        }
        let valid_for = git.expires_at.map(|end| end.since(self.clock.now()));
        let login = GitLogin { username: git.credential.username.clone(), value, valid_for };
        Ok(ShellLogin { login, inside: git.credential.in_shells })
    }

    /// What a shell's git is given on a host, beside the order; otherwise why there is nothing, where the project names a secret for it.
    async fn for_shell(&self, at: &ReachedHost, order: &ShellOrder) -> Result<Option<ShellLogin>, String> {
        match &order.git {
            None => Ok(None),
            Some(git) if git.given.is_ok() && at.gives_by_reference() => Ok(None),
            Some(git) => self.read_login(order.place(), git).await.map(Some),
        }
    }

    /// The values of a job's secrets on a host, beside the order, by name.
    async fn for_job(&self, at: &ReachedHost, order: &JobOrder) -> Result<BTreeMap<String, Secret>, ShellFailure> {
        if at.gives_by_reference() {
            return Ok(BTreeMap::new());
        }
        let values = self.values(order.place(), &order.secrets).await;
        values.map_err(|reason| ShellFailure::NotStarted { reason: format!("its secrets could not be had: {reason}") })
    }

    /// INVARIANT: what another process names is of the workspace's own project, as this one knows it.
    fn knows(&self, place: Resource) -> Result<(), String> {
        let known = place.workspace().and_then(|workspace| self.hot.resources.workspace(workspace));
        if known == Some(place) { Ok(()) } else { Err("the workspace is of another project".to_owned()) }
    }

    async fn values(&self, of: Resource, consumed: &[ConsumedSecret]) -> Result<BTreeMap<String, Secret>, String> {
        if consumed.is_empty() {
            return Ok(BTreeMap::new());
        }
        let resolver = self.resolver.as_ref().ok_or("this process was started without a secret store")?;
        resolver.values_for(of, self.clock.now(), consumed).await
    }
}

/// For what other processes open on hosts of this one.
impl SecretSource for GivenSecrets {
    fn login(&self, place: Resource, git: ShellGit) -> BoxFuture<'_, Result<ShellLogin, String>> {
        async move {
            self.knows(place)?;
            self.read_login(place, &git).await
        }
        .boxed()
    }

    fn of_job(
        &self,
        place: Resource,
        secrets: Vec<ConsumedSecret>,
    ) -> BoxFuture<'_, Result<BTreeMap<String, Secret>, String>> {
        async move {
            self.knows(place)?;
            self.values(place, &secrets).await
        }
        .boxed()
    }
}

/// Not where: that is nobody's business (SPEC, rule 7).
const MOVED: &str = "shells of this workspace were elsewhere before, and this is another clone: what was not pushed from there is not here";

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
            let (login, why) = match self.secrets.for_shell(&at, &order).await {
                Ok(login) => (login, None),
                Err(why) => (None, Some(why)),
            };
            let moved = self.hosts.shells_moved(order.workspace, order.shell, host);
            let mut open = without_login(at.open_shell(order, login).await, why).map(opened)?;
            if moved {
                open.facts = open.facts.noticed(MOVED);
            }
            Ok(open)
        }
        .boxed()
    }

    fn run_job(&self, order: JobOrder) -> BoxFuture<'_, Result<OpenShell, ShellFailure>> {
        async {
            let host = self.host_of(order.org, order.workspace)?;
            let secrets = self.secrets.for_job(&host, &order).await?;
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
