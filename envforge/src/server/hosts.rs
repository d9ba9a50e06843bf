//! The hosts that this process reaches: this machine's own, and those whose agents are connected here.
//!
//! Owns on which of them a workspace lies. Not here: whom to trust (`agents`), and what is done there (agent, runtime, reactors).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use envforge_agent::{Host, HostIdentity, RemoteHost};
use envforge_commands::{Commands, Context};
use envforge_domain::ids::{HostId, OrgId, ShellId, WorkspaceId};
use envforge_domain::shell::{LastingShell, ShellFailure};
use envforge_domain::time::SharedClock;
use envforge_projections::Hot;
use envforge_reactors::{HostMachine, NotTaken, SharedWorld};
use envforge_runtime::LocalHost;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// What lasts on hosts and was not held to anybody's right yet.
const FOUND_MAX: usize = 1_024;

/// Clones are one.
#[derive(Clone)]
pub(crate) struct Hosts(Arc<Inner>);

struct Inner {
    hot: Arc<Hot>,
    local: Mutex<Option<Local>>,
    connected: Mutex<HashMap<HostId, Connected>>,
    find: mpsc::Sender<LastingShell>,
    found: tokio::sync::Mutex<mpsc::Receiver<LastingShell>>,
}

/// This machine.
#[derive(Clone)]
struct Local {
    host: LocalHost,
    machine: HostMachine,
    world: SharedWorld,
    commands: Commands,
    clock: SharedClock,
}

/// A host whose agent is connected to this process.
struct Connected {
    identity: HostIdentity,
    remote: RemoteHost,
    closed: CancellationToken,
}

impl Hosts {
    pub(crate) fn new(hot: Arc<Hot>) -> Self {
        let (find, found) = mpsc::channel(FOUND_MAX);
        let (local, connected) = (Mutex::default(), Mutex::default());
        Self(Arc::new(Inner { hot, local, connected, find, found: tokio::sync::Mutex::new(found) }))
    }

    pub(crate) fn add_local(
        &self,
        host: LocalHost,
        machine: HostMachine,
        world: SharedWorld,
        commands: Commands,
        clock: SharedClock,
    ) {
        *self.local() = Some(Local { host, machine, world, commands, clock });
    }

    /// The newer connection is the agent's own: it has given the older one up.
    pub(crate) fn enter(&self, identity: HostIdentity, remote: RemoteHost, closed: &CancellationToken) {
        let connected = Connected { identity, remote, closed: closed.clone() };
        let former = self.connected().insert(identity.host, connected);
        if let Some(former) = former {
            former.closed.cancel();
        }
        self.count();
    }

    pub(crate) fn leave(&self, identity: HostIdentity, closed: &CancellationToken) {
        {
            let mut connected = self.connected();
            // Its successor may stand there already, whose connection is open.
            if closed.is_cancelled() && connected.get(&identity.host).is_some_and(|at| at.closed.is_cancelled()) {
                connected.remove(&identity.host);
            }
        }
        self.count();
    }

    pub(crate) fn close(&self, untrusted: impl Fn(&HostIdentity) -> bool) {
        for Connected { identity, closed, .. } in self.connected().values() {
            if untrusted(identity) && !closed.is_cancelled() {
                tracing::warn!(host = %identity.host, "an agent that is trusted no more is disconnected");
                closed.cancel();
            }
        }
    }

    fn count(&self) {
        metrics::gauge!("envforge_agents_connected").set(self.connected().len() as f64);
    }

    /// The host of a workspace's shells: the organization's machine for shells, where there is one, whether the runtime is awake or not,
    /// so that the team's clone is at one place; else where the workspace lies. The log knows the last shell's host, so that the next one
    /// goes there, too.
    ///
    /// # Errors
    /// As [`Hosts::place`].
    pub(crate) fn shell_place(&self, org: OrgId, workspace: WorkspaceId) -> Result<HostId, ShellFailure> {
        let placement = &self.0.hot.placement;
        let for_shells: Vec<_> =
            placement.open_hosts_of(org).into_iter().filter(|host| placement.is_for_shells(*host)).collect();
        match for_shells.iter().find(|host| self.reach(org, **host).is_some()) {
            Some(host) => Ok(*host),
            None if for_shells.is_empty() => self.place(org, workspace),
            None => Err(ShellFailure::OutOfReach),
        }
    }

    /// The host on which a workspace lies: where it is placed; while it sleeps, where it was awake or had a shell the last time, as long
    /// as that is a host of its organization; else the first of those that are connected and take something new, and this machine after
    /// them.
    ///
    /// # Errors
    /// Where there is none, or it is not to be reached: its files lie nowhere else.
    pub(crate) fn place(&self, org: OrgId, workspace: WorkspaceId) -> Result<HostId, ShellFailure> {
        let placement = &self.0.hot.placement;
        if let Some(host) = placement.host_of(workspace).or_else(|| placement.last_host_of(workspace)) {
            if self.reach(org, host).is_some() {
                return Ok(host);
            }
            if placement.organization_of(host) == Some(org) {
                return Err(ShellFailure::OutOfReach);
            }
        }
        let connected = placement.open_hosts_of(org).into_iter().find(|host| self.reach(org, *host).is_some());
        let local = || self.local_of(org).map(|local| local.machine.host);
        connected.or_else(local).ok_or(ShellFailure::HostElsewhere)
    }

    /// A host, where it can be reached from here. INVARIANT: never another organization's (SPEC, rule 1).
    pub(crate) fn reach(&self, org: OrgId, host: HostId) -> Option<Host> {
        if let Some(local) = self.local_of(org).filter(|local| local.machine.host == host) {
            return Some(Host::Local(local.host));
        }
        let connected = self.connected();
        let found = connected.get(&host).filter(|at| at.identity.org == org && !at.closed.is_cancelled())?;
        Some(Host::Remote(found.remote.clone()))
    }

    /// A host on which something of an organization is to begin. This machine is the organization's from then on, as by a wake.
    ///
    /// # Errors
    /// Where it is not to be reached, or is another organization's.
    pub(crate) async fn take(&self, org: OrgId, host: HostId) -> Result<Host, ShellFailure> {
        let found = self.reach(org, host).ok_or(ShellFailure::OutOfReach)?;
        if let Some(local) = self.local_of(org).filter(|local| local.machine.host == host) {
            let (position, now) = (self.0.hot.position(), local.clock.now());
            let taken = local.machine.belong_to(org, &local.commands, (position, now), |_| Context::new(now)).await;
            taken.map_err(|error| {
                tracing::warn!(%org, %error, "this machine takes nothing of an organization");
                match error {
                    NotTaken::Command(error) if error.refusal_code().is_some() => ShellFailure::HostElsewhere,
                    NotTaken::Command(_) | NotTaken::Key(_) | NotTaken::Denied(_) => ShellFailure::OutOfReach,
                }
            })?;
        }
        Ok(found)
    }

    /// Whether the shells of a workspace before this one were on another host than this one is.
    pub(crate) fn shells_moved(&self, workspace: WorkspaceId, shell: ShellId, host: HostId) -> bool {
        self.0.hot.placement.host_of_shell_before(workspace, shell).is_some_and(|before| before != host)
    }

    /// All of an organization's that can be reached from here.
    pub(crate) fn all_of(&self, org: OrgId) -> Vec<Host> {
        let local = self.local_of(org).map(|local| Host::Local(local.host));
        let connected = self.connected();
        let of_org = connected.values().filter(|at| at.identity.org == org && !at.closed.is_cancelled());
        local.into_iter().chain(of_org.map(|at| Host::Remote(at.remote.clone()))).collect()
    }

    /// This machine, unless another organization uses it.
    fn local_of(&self, org: OrgId) -> Option<Local> {
        let local = self.local().clone()?;
        let holder = local.world.holder_of(&local.machine.key);
        holder.is_none_or(|holder| holder == org).then_some(local)
    }

    /// Asks a host that has just connected what lasts there, for whoever holds that to rights.
    pub(crate) async fn find_lasting(&self, remote: &RemoteHost) {
        match remote.lasting_shells().await {
            Ok(all) => {
                for one in all {
                    // Where no API is in this process nobody takes it, and none was begun from here either.
                    let _ = self.0.find.send(one).await;
                }
            }
            Err(error) => tracing::warn!(%error, "a host does not say what lasts there"),
        }
    }

    /// The next one that was found. Safe to cancel.
    pub(crate) async fn found_lasting(&self) -> LastingShell {
        match self.0.found.lock().await.recv().await {
            Some(found) => found,
            None => std::future::pending().await,
        }
    }

    fn local(&self) -> std::sync::MutexGuard<'_, Option<Local>> {
        self.0.local.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connected(&self) -> std::sync::MutexGuard<'_, HashMap<HostId, Connected>> {
        self.0.connected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use envforge_eventlog::SharedLog;
    use envforge_eventlog::sqlite::{Config, SqliteLog};
    use envforge_identity::clock::SystemClock;
    use envforge_testkit::TestDir;
    use uuid::Uuid;

    use super::*;

    /// The process's own view of claims need not know the newest one: the log does.
    #[tokio::test]
    async fn this_machine_is_the_organizations_whose_shell_opens_first_and_no_other_ones() {
        let dir = TestDir::new();
        let log: SharedLog = Arc::new(SqliteLog::open(Config::new(dir.join("log"))).await.unwrap());
        let stop = CancellationToken::new();
        let hot = Hot::start(Arc::clone(&log), stop.clone());
        hot.caught_up().await.unwrap();
        let (host, _) = LocalHost::open(envforge_runtime::Config::new(dir.join("state"))).await.unwrap();
        let machine_id = dir.join("machine-id");
        std::fs::write(&machine_id, "0123456789abcdef0123456789abcdef").unwrap();
        let machine = HostMachine::open(&dir.join("state"), &machine_id).unwrap();
        let (id, world, commands) = (machine.host, SharedWorld::new(Arc::clone(&log)), Commands::new(log));
        let hosts = Hosts::new(hot);
        hosts.add_local(host.clone(), machine, world, commands, Arc::new(SystemClock));
        let [acme, globex] = [1, 2].map(|number| OrgId::from_uuid(Uuid::from_u128(number)));
        assert!(hosts.reach(acme, id).is_some() && hosts.reach(globex, id).is_some(), "it is nobody's yet");
        assert!(hosts.take(acme, id).await.is_ok());
        assert!(matches!(hosts.take(globex, id).await.err(), Some(ShellFailure::HostElsewhere)));
        assert!(hosts.take(acme, id).await.is_ok());
        host.shutdown().await;
        stop.cancel();
    }
}
