//! The hosts that this process reaches: this machine's own, and those whose agents are connected here.
//!
//! Owns on which of them a workspace lies. Not here: whom to trust (`agents`), and what is done there (agent, runtime, reactors).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use envforge_agent::{Host, HostIdentity, RemoteHost};
use envforge_domain::ids::{HostId, OrgId, WorkspaceId};
use envforge_domain::shell::{LastingShell, ShellFailure};
use envforge_projections::Hot;
use envforge_reactors::{HostMachine, SharedWorld};
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

    pub(crate) fn add_local(&self, host: LocalHost, machine: HostMachine, world: SharedWorld) {
        *self.local() = Some(Local { host, machine, world });
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
    /// goes there, too. One that is drained gets no more of them.
    ///
    /// # Errors
    /// As [`Hosts::place`]; also while the machine for shells is on its way.
    pub(crate) fn shell_place(&self, org: OrgId, workspace: WorkspaceId) -> Result<HostId, ShellFailure> {
        let placement = &self.0.hot.placement;
        let for_shells: Vec<_> =
            placement.open_hosts_of(org).into_iter().filter(|host| placement.is_for_shells(*host)).collect();
        match for_shells.iter().find(|host| self.reach(org, **host).is_some()) {
            Some(host) => Ok(*host),
            None if !placement.has_machine_for_shells(org) => self.place(org, workspace),
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
