//! The hosts that this process reaches: this machine's own, those whose agents are connected here, and those whose agents are connected to
//! another process that passes streams on.
//!
//! Owns on which of them a workspace lies. Not here: whom to trust (`agents`), the connections between processes (`relays`), and what is
//! done there (agent, runtime, reactors).

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use envforge_agent::{HostHere, HostIdentity, HostLine, ReachedHost, RelayedHost, RemoteHost, StreamHeader};
use envforge_commands::{Commands, Context};
use envforge_domain::ids::{HostId, OrgId, ShellId, WorkspaceId};
use envforge_domain::shell::{LastingShell, ShellFailure};
use envforge_domain::time::SharedClock;
use envforge_projections::Hot;
use envforge_reactors::{HostMachine, NotTaken, SharedWorld};
use envforge_runtime::LocalHost;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
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
    /// How often somebody entered.
    entries: AtomicU64,
    /// What is connected here, for other processes.
    here: watch::Sender<Vec<HostHere>>,
    connections: AtomicU64,
    /// By the process at the other end; `None` while that is out of reach.
    relays: Mutex<Vec<Option<HashMap<HostId, RelayedHost>>>>,
    /// `None` where no API is in this process: those of others ask themselves.
    find: Option<mpsc::Sender<LastingShell>>,
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
    number: u64,
    since: Instant,
}

/// One of the other processes whose agents this one reaches.
#[derive(Clone, Copy)]
pub(crate) struct Relay(usize);

impl Hosts {
    /// `with_api`: whether an API in this process holds to rights what lasts on hosts.
    pub(crate) fn new(hot: Arc<Hot>, with_api: bool) -> Self {
        let (find, found) = mpsc::channel(FOUND_MAX);
        let find = with_api.then_some(find);
        Self(Arc::new(Inner {
            hot,
            local: Mutex::default(),
            connected: Mutex::default(),
            entries: AtomicU64::default(),
            here: watch::Sender::default(),
            connections: AtomicU64::default(),
            relays: Mutex::default(),
            find,
            found: tokio::sync::Mutex::new(found),
        }))
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
        let (number, since) = (self.0.connections.fetch_add(1, Ordering::Relaxed), Instant::now());
        let connected = Connected { identity, remote, closed: closed.clone(), number, since };
        let former = self.connected().insert(identity.host, connected);
        self.0.entries.fetch_add(1, Ordering::Release);
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

    /// How often somebody entered: whoever reads this before `close` meets all of them.
    pub(crate) fn entries(&self) -> u64 {
        self.0.entries.load(Ordering::Acquire)
    }

    pub(crate) fn close(&self, untrusted: impl Fn(&HostIdentity) -> bool) {
        for Connected { identity, closed, .. } in self.connected().values() {
            if untrusted(identity) && !closed.is_cancelled() {
                tracing::warn!(host = %identity.host, "an agent that is trusted no more is disconnected");
                closed.cancel();
            }
        }
    }

    /// Says what is connected here.
    fn count(&self) {
        let connected = self.connected();
        metrics::gauge!("envforge_agents_connected").set(connected.len() as f64);
        let here = connected.values().filter(|at| !at.closed.is_cancelled()).map(|at| {
            let HostIdentity { org, host, .. } = at.identity;
            HostHere { org, host, connection: at.number, since: at.since }
        });
        // Told under the lock: an older list never comes after a newer one.
        self.0.here.send_replace(here.collect());
    }

    /// A process with an API that reached hosts through this one is gone: whoever else has one asks anew what lasts on them, which the other
    /// may have been alone to watch. Answers the lines to them.
    pub(crate) fn ask_anew(&self) -> Vec<HostLine> {
        let lines = {
            let mut connected = self.connected();
            let renumbered = connected.values_mut().map(|at| {
                at.number = self.0.connections.fetch_add(1, Ordering::Relaxed);
                at.remote.line().clone()
            });
            renumbered.collect()
        };
        self.count();
        lines
    }

    /// Whether a host's agent is connected to this very process, and heard. What is reached through another process is not.
    pub(crate) fn is_heard_here(&self, org: OrgId, host: HostId) -> bool {
        let connected = self.connected();
        let at = connected.get(&host).filter(|at| at.identity.org == org && !at.closed.is_cancelled());
        at.is_some_and(|at| at.remote.is_heard())
    }

    /// What is connected here.
    pub(crate) fn here(&self) -> watch::Receiver<Vec<HostHere>> {
        self.0.here.subscribe()
    }

    /// The line to a host that is connected here, for a stream of another process. INVARIANT: never to another organization's host, nor
    /// for another organization's workspace (SPEC, rule 1), whatever that process says.
    pub(crate) fn line_for(&self, host: HostId, header: &StreamHeader) -> Option<HostLine> {
        let StreamHeader { org, workspace, .. } = header;
        let of_org = |workspace| self.0.hot.resources.workspace(workspace).is_some_and(|found| found.org() == *org);
        if !workspace.as_uuid().is_nil() && !of_org(*workspace) {
            return None;
        }
        let connected = self.connected();
        let at = connected.get(&host).filter(|at| at.identity.org == *org && !at.closed.is_cancelled())?;
        let trusted = self.0.hot.placement.enrolment_of(*org, host) == Some(at.identity.enrolment);
        trusted.then(|| at.remote.line().clone())
    }

    /// Another process from which hosts may come.
    pub(crate) fn add_relay(&self) -> Relay {
        let mut relays = self.relays();
        relays.push(None);
        Relay(relays.len() - 1)
    }

    /// What another process has now. Answers the lines to those that were not there before.
    pub(crate) fn relay_has(&self, relay: Relay, hosts: Vec<RelayedHost>) -> Vec<HostLine> {
        let mut relays = self.relays();
        let Some(known) = relays.get_mut(relay.0) else { return Vec::new() };
        let before = known.take().unwrap_or_default();
        let is_new = |at: &&RelayedHost| before.get(&at.host).is_none_or(|known| known.connection != at.connection);
        let fresh = hosts.iter().filter(is_new).map(|at| at.line.clone()).collect();
        let same = |mut at: RelayedHost| {
            // An age that is told again is no better than the first.
            if let Some(known) = before.get(&at.host).filter(|known| known.connection == at.connection) {
                at.since = known.since;
            }
            (at.host, at)
        };
        *known = Some(hosts.into_iter().map(same).collect());
        fresh
    }

    pub(crate) fn relay_is_gone(&self, relay: Relay) {
        if let Some(known) = self.relays().get_mut(relay.0) {
            *known = None;
        }
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
        // A process that is away for now may have one.
        let misses_relay = || self.relays().iter().any(Option::is_none);
        connected.or_else(local).ok_or_else(|| match misses_relay() {
            true => ShellFailure::OutOfReach,
            false => ShellFailure::HostElsewhere,
        })
    }

    /// A host, where it can be reached from here. INVARIANT: never another organization's (SPEC, rule 1).
    pub(crate) fn reach(&self, org: OrgId, host: HostId) -> Option<ReachedHost> {
        if let Some(local) = self.local_of(org).filter(|local| local.machine.host == host) {
            return Some(ReachedHost::Local(local.host));
        }
        let connected = self.connected();
        let here = connected.get(&host).filter(|at| at.identity.org == org && !at.closed.is_cancelled());
        let here = here.map(|at| (at.since, at.remote.line().clone()));
        // Also where this process has it itself: the agent has given the older connection up, whoever has not noticed yet.
        let newest = self.relayed(org, host).into_iter().chain(here).max_by_key(|(since, _)| *since);
        newest.map(|(_, line)| ReachedHost::Line(line))
    }

    /// Where other processes have it, and since when by this machine's clock: they tell how long it has been. Of several, the newest
    /// connection is the agent's own; the log says whose it is.
    fn relayed(&self, org: OrgId, host: HostId) -> Option<(Instant, HostLine)> {
        if self.0.hot.placement.organization_of(host) != Some(org) {
            return None;
        }
        let relays = self.relays();
        let having = relays.iter().flatten().filter_map(|hosts| hosts.get(&host)).filter(|at| at.org == org);
        having.max_by_key(|at| at.since).map(|at| (at.since, at.line.clone()))
    }

    /// A host on which something of an organization is to begin. This machine is the organization's from then on, as by a wake.
    ///
    /// # Errors
    /// Where it is not to be reached, or is another organization's.
    pub(crate) async fn take(&self, org: OrgId, host: HostId) -> Result<ReachedHost, ShellFailure> {
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
    pub(crate) fn all_of(&self, org: OrgId) -> Vec<ReachedHost> {
        let local = self.local_of(org).map(|local| local.machine.host);
        let here = self.connected().keys().copied().collect::<Vec<_>>();
        let relayed: Vec<_> = self.relays().iter().flatten().flat_map(HashMap::keys).copied().collect();
        let all: BTreeSet<_> = local.into_iter().chain(here).chain(relayed).collect();
        all.into_iter().filter_map(|host| self.reach(org, host)).collect()
    }

    /// This machine, unless another organization uses it.
    fn local_of(&self, org: OrgId) -> Option<Local> {
        let local = self.local().clone()?;
        let holder = local.world.holder_of(&local.machine.key);
        holder.is_none_or(|holder| holder == org).then_some(local)
    }

    /// Asks a host that has just connected what lasts there, for whoever holds that to rights.
    pub(crate) async fn find_lasting(&self, line: &HostLine) {
        let Some(find) = &self.0.find else { return };
        match line.lasting_shells().await {
            Ok(all) => {
                for one in all {
                    // Where the API has ended, so does the process.
                    let _ = find.send(one).await;
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

    fn relays(&self) -> std::sync::MutexGuard<'_, Vec<Option<HashMap<HostId, RelayedHost>>>> {
        self.0.relays.lock().unwrap_or_else(PoisonError::into_inner)
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
        let hosts = Hosts::new(hot, false);
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
