//! The hosts that this process reaches: this machine's own, those whose agents are connected here, and those of another process that passes
//! streams on: its machine's own, and those whose agents are connected to it.
//!
//! Owns on which of them a workspace lies, and which of this process's own another one reaches. Not here: whom to trust (`agents`), the
//! connections between processes (`relays`), and what is done there (agent, runtime, reactors).

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use envforge_agent::{
    HostHere, HostIdentity, HostLine, ReachedHost, RelayedHost, RemoteHost, StreamHandler, StreamHeader,
};
use envforge_commands::{Commands, Context};
use envforge_domain::ids::{HostId, OrgId, ShellId, WorkspaceId};
use envforge_domain::shell::{LastingShell, ShellFailure};
use envforge_domain::time::SharedClock;
use envforge_projections::Hot;
use envforge_reactors::{HostMachine, NotTaken, SharedWorld};
use envforge_runtime::LocalHost;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What lasts on hosts and was not held to anybody's right yet.
const FOUND_MAX: usize = 1_024;
/// Hosts that are asked at the same time what lasts there.
const ASKED_MAX: usize = 16;
/// Before a host that did not say what lasts there is asked again: doubled each time.
const ASK_PAUSE_MIN: Duration = Duration::from_millis(250);
const ASK_PAUSE_MAX: Duration = Duration::from_secs(15);
/// How often it is looked whose this machine is: other processes are told.
const OWNER_INTERVAL: Duration = Duration::from_millis(200);

/// Clones are one.
#[derive(Clone)]
pub(crate) struct Hosts(Arc<Inner>);

struct Inner {
    hot: Arc<Hot>,
    local: Mutex<Option<Local>>,
    connected: Mutex<HashMap<HostId, Connected>>,
    /// How often somebody entered.
    entries: AtomicU64,
    /// What this process has, for others.
    here: watch::Sender<Vec<HostHere>>,
    connections: AtomicU64,
    /// By the process at the other end; `None` while that is out of reach.
    relays: Mutex<Vec<Option<HashMap<HostId, RelayedHost>>>>,
    /// `None` where no API is in this process: those of others ask themselves.
    find: Option<mpsc::Sender<LastingShell>>,
    found: tokio::sync::Mutex<mpsc::Receiver<LastingShell>>,
    asking: Semaphore,
}

/// This machine.
#[derive(Clone)]
struct Local {
    host: LocalHost,
    machine: HostMachine,
    world: SharedWorld,
    commands: Commands,
    clock: SharedClock,
    /// What other processes reach.
    programs: StreamHandler,
    number: u64,
    since: Instant,
}

impl Local {
    /// Something of an organization is to begin here: this machine is the organization's from then on, as by a wake.
    async fn belong_to(&self, org: OrgId, hot: &Hot) -> Result<(), NotTaken> {
        let (position, now) = (hot.position(), self.clock.now());
        self.machine.belong_to(org, &self.commands, (position, now), |_| Context::new(now)).await
    }

    /// The way for other processes.
    fn line(&self, org: OrgId) -> HostLine {
        HostLine::here(org, self.host.clone(), Arc::clone(&self.programs))
    }
}

/// A host whose agent is connected to this process.
struct Connected {
    identity: HostIdentity,
    remote: RemoteHost,
    closed: CancellationToken,
    number: u64,
    since: Instant,
}

/// One of the other processes whose hosts this one reaches.
#[derive(Clone, Copy)]
pub(crate) struct Relay(usize);

/// One connection to a host, by itself or through another process: what lasts there is asked for on each.
pub(crate) struct Connection {
    host: HostId,
    relay: Option<Relay>,
    number: u64,
    line: HostLine,
}

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
            asking: Semaphore::new(ASKED_MAX),
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
        let (number, since, programs) = (self.next_number(), Instant::now(), envforge_agent::programs());
        *self.local() = Some(Local { host, machine, world, commands, clock, programs, number, since });
        self.count();
    }

    fn next_number(&self) -> u64 {
        self.0.connections.fetch_add(1, Ordering::Relaxed)
    }

    /// Whose this machine is by what this process knows of the log; `None` where it is nobody's yet.
    fn owner(&self, local: &Local) -> Option<OrgId> {
        let by_claim = local.world.holder_of(&local.machine.key);
        by_claim.or_else(|| self.0.hot.placement.organization_of(local.machine.host))
    }

    /// Tells other processes whose this machine is, each time that it is somebody else's.
    pub(crate) async fn watch_owner(self) {
        let mut tick = tokio::time::interval(OWNER_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut told = None;
        loop {
            tick.tick().await;
            let owner = self.local().as_ref().map(|local| self.owner(local));
            if std::mem::replace(&mut told, owner) != owner {
                self.count();
            }
        }
    }

    /// The newer connection is the agent's own: it has given the older one up.
    pub(crate) fn enter(&self, identity: HostIdentity, remote: RemoteHost, closed: &CancellationToken) -> Connection {
        let (number, since) = (self.next_number(), Instant::now());
        let entered = Connection { host: identity.host, relay: None, number, line: remote.line().clone() };
        let connected = Connected { identity, remote, closed: closed.clone(), number, since };
        let former = self.connected().insert(identity.host, connected);
        self.0.entries.fetch_add(1, Ordering::Release);
        if let Some(former) = former {
            former.closed.cancel();
        }
        self.count();
        entered
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

    /// Says what this process has.
    fn count(&self) {
        let connected = self.connected();
        metrics::gauge!("envforge_agents_connected").set(connected.len() as f64);
        let here = connected.values().filter(|at| !at.closed.is_cancelled()).map(|at| {
            let HostIdentity { org, host, .. } = at.identity;
            HostHere { org: Some(org), host, own_machine: false, connection: at.number, since: at.since }
        });
        let local = self.local().as_ref().map(|local| HostHere {
            org: self.owner(local),
            host: local.machine.host,
            own_machine: true,
            connection: local.number,
            since: local.since,
        });
        // Told under the lock: an older list never comes after a newer one.
        self.0.here.send_replace(here.chain(local).collect());
    }

    /// A process with an API that reached hosts through this one is gone: whoever else has one asks anew what lasts on them, which the other
    /// may have been alone to watch. Answers them as connected anew.
    pub(crate) fn ask_anew(&self) -> Vec<Connection> {
        let mut anew: Vec<_> = {
            let mut connected = self.connected();
            let renumbered = connected.iter_mut().map(|(host, at)| {
                at.number = self.next_number();
                Connection { host: *host, relay: None, number: at.number, line: at.remote.line().clone() }
            });
            renumbered.collect()
        };
        let own = self.local().as_mut().and_then(|local| {
            local.number = self.next_number();
            let (host, number, line) = (local.machine.host, local.number, local.line(self.owner(local)?));
            Some(Connection { host, relay: None, number, line })
        });
        anew.extend(own);
        self.count();
        anew
    }

    /// Whether a host's agent is connected to this very process, and heard. What is reached through another process is not.
    pub(crate) fn is_heard_here(&self, org: OrgId, host: HostId) -> bool {
        let connected = self.connected();
        let at = connected.get(&host).filter(|at| at.identity.org == org && !at.closed.is_cancelled());
        at.is_some_and(|at| at.remote.is_heard())
    }

    /// What this process has.
    pub(crate) fn here(&self) -> watch::Receiver<Vec<HostHere>> {
        self.0.here.subscribe()
    }

    /// The line to a host that this process has, for a stream of another one. INVARIANT: never to another organization's host, nor for
    /// another organization's workspace (SPEC, rule 1), whatever that process says.
    pub(crate) async fn line_for(&self, host: HostId, header: &StreamHeader) -> Option<HostLine> {
        let StreamHeader { org, workspace, .. } = header;
        let of_org = |workspace| self.0.hot.resources.workspace(workspace).is_some_and(|found| found.org() == *org);
        if !workspace.as_uuid().is_nil() && !of_org(*workspace) {
            return None;
        }
        let local = self.local().clone();
        if let Some(local) = local.filter(|local| local.machine.host == host) {
            return self.own_line(&local, header).await;
        }
        let connected = self.connected();
        let at = connected.get(&host).filter(|at| at.identity.org == *org && !at.closed.is_cancelled())?;
        let trusted = self.0.hot.placement.enrolment_of(*org, host) == Some(at.identity.enrolment);
        trusted.then(|| at.remote.line().clone())
    }

    /// The line to this machine. By this process's views it is the organization's, or nobody's: before anything begins there for somebody
    /// the log says whose it is.
    async fn own_line(&self, local: &Local, header: &StreamHeader) -> Option<HostLine> {
        let by_claim = local.world.holder_of(&local.machine.key);
        let by_host = self.0.hot.placement.organization_of(local.machine.host);
        if [by_claim, by_host].into_iter().flatten().any(|of| of != header.org) {
            return None;
        }
        if header.may_begin()
            && let Err(error) = local.belong_to(header.org, &self.0.hot).await
        {
            tracing::warn!(org = %header.org, %error, "this machine takes nothing of an organization");
            return None;
        }
        Some(local.line(header.org))
    }

    /// Another process from which hosts may come.
    pub(crate) fn add_relay(&self) -> Relay {
        let mut relays = self.relays();
        relays.push(None);
        Relay(relays.len() - 1)
    }

    /// What another process has now. Answers the connections that were not there before.
    pub(crate) fn relay_has(&self, relay: Relay, hosts: Vec<RelayedHost>) -> Vec<Connection> {
        let mut relays = self.relays();
        let Some(known) = relays.get_mut(relay.0) else { return Vec::new() };
        let before = known.take().unwrap_or_default();
        let is_new = |at: &&RelayedHost| {
            let known = before.get(&at.host);
            known.is_none_or(|known| (known.connection, known.org) != (at.connection, at.org))
        };
        // Nothing lasts where nobody has been.
        let fresh = hosts.iter().filter(is_new).filter_map(|at| {
            let (host, number, line) = (at.host, at.connection, at.line(at.org?));
            Some(Connection { host, relay: Some(relay), number, line })
        });
        let fresh = fresh.collect();
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
    /// as that is a host of its organization; else the first of those that are connected and take something new, this machine after them,
    /// and after that another process's.
    ///
    /// # Errors
    /// Where there is none, or it is not to be reached: its files lie nowhere else.
    pub(crate) fn place(&self, org: OrgId, workspace: WorkspaceId) -> Result<HostId, ShellFailure> {
        let placement = &self.0.hot.placement;
        if let Some(host) = placement.lies_on(workspace) {
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
        connected.or_else(local).or_else(|| self.machine_elsewhere(org)).ok_or_else(|| match misses_relay() {
            true => ShellFailure::OutOfReach,
            false => ShellFailure::HostElsewhere,
        })
    }

    /// The machine of another process that is the organization's without the log naming its host yet, or is nobody's. Whoever has a host
    /// that takes something new, though it is away, takes no second machine for itself.
    fn machine_elsewhere(&self, org: OrgId) -> Option<HostId> {
        let machines: Vec<_> = {
            let relays = self.relays();
            let all = relays.iter().flatten().flat_map(HashMap::values).filter(|at| at.own_machine);
            all.map(|at| (at.org, at.host)).collect()
        };
        let takes_another = self.0.hot.placement.open_hosts_of(org).is_empty();
        let fits =
            |(of, host): &(Option<OrgId>, HostId)| (of.is_some() || takes_another) && self.reach(org, *host).is_some();
        let first = machines.into_iter().filter(fits).min_by_key(|(of, host)| (of.is_none(), *host));
        first.map(|(_, host)| host)
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
    /// connection is the agent's own; the log says whose it is. Where it does not yet, a machine may be anybody's, and the process that has
    /// it asks the log before anything begins there.
    fn relayed(&self, org: OrgId, host: HostId) -> Option<(Instant, HostLine)> {
        let by_log = self.0.hot.placement.organization_of(host);
        if by_log.is_some_and(|of| of != org) {
            return None;
        }
        let is_theirs = |at: &&RelayedHost| match at.org {
            Some(of) => of == org && (by_log.is_some() || at.own_machine),
            None => at.own_machine,
        };
        let relays = self.relays();
        let having = relays.iter().flatten().filter_map(|hosts| hosts.get(&host)).filter(is_theirs);
        having.max_by_key(|at| at.since).map(|at| (at.since, at.line(org)))
    }

    /// A host on which something of an organization is to begin. This machine is the organization's from then on, as by a wake; another
    /// process's sees to that itself.
    ///
    /// # Errors
    /// Where it is not to be reached, or is another organization's.
    pub(crate) async fn take(&self, org: OrgId, host: HostId) -> Result<ReachedHost, ShellFailure> {
        let found = self.reach(org, host).ok_or(ShellFailure::OutOfReach)?;
        if let Some(local) = self.local_of(org).filter(|local| local.machine.host == host) {
            local.belong_to(org, &self.0.hot).await.map_err(|error| {
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

    /// Asks a host that has just connected what lasts there, for whoever holds that to rights: until it has said so, or that connection
    /// stands no more. The next one is asked anew.
    pub(crate) async fn find_lasting(&self, connection: &Connection) {
        let Some(find) = &self.0.find else { return };
        let mut pause = ASK_PAUSE_MIN;
        loop {
            let said = {
                // One that is slow to answer holds up the others for no longer than that.
                let Ok(_turn) = self.0.asking.acquire().await else { return };
                connection.line.lasting_shells().await
            };
            match said {
                Ok(all) => {
                    for one in all {
                        // Where the API has ended, so does the process.
                        let _ = find.send(one).await;
                    }
                    return;
                }
                Err(error) => tracing::warn!(host = %connection.host, %error, "a host does not say what lasts there"),
            }
            tokio::time::sleep(pause).await;
            if !self.stands(connection) {
                return;
            }
            pause = (pause * 2).min(ASK_PAUSE_MAX);
        }
    }

    fn stands(&self, connection: &Connection) -> bool {
        let Connection { host, relay, number, .. } = connection;
        match relay {
            None => {
                let is_own = |local: &Local| local.machine.host == *host && local.number == *number;
                let connected = self.connected();
                connected.get(host).is_some_and(|at| at.number == *number && !at.closed.is_cancelled())
                    || self.local().as_ref().is_some_and(is_own)
            }
            Some(relay) => {
                let relays = self.relays();
                let having = relays.get(relay.0).and_then(Option::as_ref);
                having.and_then(|hosts| hosts.get(host)).is_some_and(|at| at.connection == *number)
            }
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
    use std::collections::BTreeMap;
    use std::sync::atomic::AtomicUsize;

    use envforge_agent::{RelayConnection, RelayKey, RelayListener, Relayed, SecretSource};
    use envforge_domain::access::Resource;
    use envforge_domain::secret::Secret;
    use envforge_domain::secrets::ConsumedSecret;
    use envforge_domain::shell::ShellGit;
    use envforge_eventlog::SharedLog;
    use envforge_eventlog::sqlite::{Config, SqliteLog};
    use envforge_identity::clock::SystemClock;
    use envforge_runtime::ShellLogin;
    use envforge_testkit::{TestDir, eventually};
    use futures_util::FutureExt as _;
    use futures_util::future::BoxFuture;
    use uuid::Uuid;

    use super::*;

    struct NoSecrets;

    impl SecretSource for NoSecrets {
        fn login(&self, _: Resource, _: ShellGit) -> BoxFuture<'_, Result<ShellLogin, String>> {
            std::future::ready(Err("there are none".to_owned())).boxed()
        }

        fn of_job(
            &self,
            _: Resource,
            _: Vec<ConsumedSecret>,
        ) -> BoxFuture<'_, Result<BTreeMap<String, Secret>, String>> {
            std::future::ready(Err("there are none".to_owned())).boxed()
        }
    }

    /// Another process, that has a host of which it says that it does not: its view is behind, or the host's agent is slow. How often it was
    /// asked, and a connection to it.
    async fn not_here(dir: &TestDir) -> (Arc<AtomicUsize>, RelayConnection) {
        let clock: SharedClock = Arc::new(SystemClock);
        let files = ["relay.key", "relay.crt"].map(|name| dir.join(name));
        let key = Arc::new(RelayKey::load_or_create(&files[0], &files[1], clock.now()).unwrap());
        let at = "127.0.0.1:0".parse().unwrap();
        let listener = RelayListener::bind(at, Arc::clone(&key), Arc::clone(&clock)).await.unwrap();
        let address = listener.local_address().unwrap().to_string();
        let [org, host] = [1, 2].map(Uuid::from_u128);
        let (org, host) = (OrgId::from_uuid(org), HostId::from_uuid(host));
        let at = HostHere { org: Some(org), host, own_machine: false, connection: 7, since: Instant::now() };
        let (told, here) = watch::channel(vec![at]);
        let asked = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&asked);
        let lines = move |_, _, _| {
            // Kept for as long as anybody may ask.
            let _told = &told;
            counted.fetch_add(1, Ordering::SeqCst);
            std::future::ready(None).boxed()
        };
        let relayed = Relayed { here, lines: Arc::new(lines), secrets: Arc::new(NoSecrets) };
        tokio::spawn(async move {
            let greeted = listener.accept().await.unwrap().hello().await.unwrap();
            let _ = greeted.arrive().await.unwrap().serve(relayed).await;
        });
        (asked, RelayConnection::open(&address, &key, &clock, Arc::new(|| 0)).await.unwrap())
    }

    #[tokio::test]
    async fn a_host_that_does_not_say_what_lasts_there_is_asked_again_while_its_connection_stands() {
        let dir = TestDir::new();
        let log: SharedLog = Arc::new(SqliteLog::open(Config::new(dir.join("log"))).await.unwrap());
        let stop = CancellationToken::new();
        let hosts = Hosts::new(Hot::start(log, stop.clone()), true);
        let (asked, mut connection) = not_here(&dir).await;
        let relay = hosts.add_relay();
        let [fresh] = <[_; 1]>::try_from(hosts.relay_has(relay, connection.next().await.unwrap())).ok().unwrap();
        let finding = tokio::spawn({
            let hosts = hosts.clone();
            async move { hosts.find_lasting(&fresh).await }
        });
        let patience = Duration::from_secs(20);
        let again = async || (asked.load(Ordering::SeqCst) >= 3).then_some(());
        eventually("it is asked again", patience, again).await;
        assert!(!finding.is_finished());
        hosts.relay_is_gone(relay);
        tokio::time::timeout(patience, finding).await.unwrap().unwrap();
        stop.cancel();
    }

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
        let head = Arc::clone(&log);
        let (id, world, commands) = (machine.host, SharedWorld::new(Arc::clone(&log)), Commands::new(log));
        let hosts = Hosts::new(hot, false);
        let free = |hosts: &Hosts| hosts.here().borrow().iter().map(|at| at.org).collect::<Vec<_>>();
        hosts.add_local(host.clone(), machine, world, commands, Arc::new(SystemClock));
        let [acme, globex] = [1, 2].map(|number| OrgId::from_uuid(Uuid::from_u128(number)));
        assert!(hosts.reach(acme, id).is_some() && hosts.reach(globex, id).is_some(), "it is nobody's yet");
        assert_eq!(free(&hosts), [None]);
        assert!(hosts.take(acme, id).await.is_ok());
        assert!(matches!(hosts.take(globex, id).await.err(), Some(ShellFailure::HostElsewhere)));
        assert!(hosts.take(acme, id).await.is_ok());
        // Nor for what another process asks for, whatever that one believes; and they all hear whose it is.
        let asked = |org, purpose: &str| StreamHeader {
            org,
            workspace: WorkspaceId::from_uuid(Uuid::nil()),
            purpose: purpose.to_owned(),
            parameters: BTreeMap::default(),
        };
        assert!(hosts.line_for(id, &asked(globex, "shell")).await.is_none());
        hosts.0.hot.wait_for(head.head().await.unwrap().position, Duration::from_secs(10)).await.unwrap();
        for purpose in ["shell", "job", "logs", "commit", "lasting", "root"] {
            assert!(hosts.line_for(id, &asked(acme, purpose)).await.is_some(), "{purpose}");
            assert!(hosts.line_for(id, &asked(globex, purpose)).await.is_none(), "{purpose}");
        }
        let unknown = StreamHeader { workspace: WorkspaceId::from_uuid(Uuid::from_u128(3)), ..asked(acme, "logs") };
        assert!(hosts.line_for(id, &unknown).await.is_none(), "nor for a workspace that is not the organization's");
        let lines = hosts.ask_anew();
        assert_eq!(lines.iter().map(|at| at.line.org()).collect::<Vec<_>>(), [acme]);
        let here = hosts.here().borrow().clone();
        assert_eq!(
            here.iter().map(|at| (at.org, at.host, at.own_machine)).collect::<Vec<_>>(),
            [(Some(acme), id, true)]
        );
        host.shutdown().await;
        stop.cancel();
    }
}
