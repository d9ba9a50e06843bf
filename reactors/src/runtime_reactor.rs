//! The runtime reactor: brings the runtimes of one host to the state that the log asks for.
//!
//! Level-triggered: every commit about a runtime, every finished errand and every tick compares the log's state with what
//! runs here, so that a crash between an event and its effect is made good by the next comparison. Also what the log no
//! longer wants is ended by it: a host that was given up while it could not be heard finds its runtimes lost or failed.
//! Not here: what an errand does (`errand`), deadlines (`timers`).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use envforge_agent::Host;
use envforge_commands::{Commands, Context};
use envforge_domain::commit::Position;
use envforge_domain::ids::{OrgId, WorkspaceId};
use envforge_domain::limits::{LEASE_RENEWAL_INTERVAL, RUNTIME_LEASE, WAKE_DEADLINE};
use envforge_domain::manifest::Route;
use envforge_domain::project::Project;
use envforge_domain::runtime::{Epoch, Runtime, RuntimeCommand};
use envforge_domain::secrets::{ConsumedSecret, RefusedSecret, Rotation, SecretDeed, SecretOwner, Secrets};
use envforge_domain::slug::HostLabel;
use envforge_domain::time::{Millis, SharedClock};
use envforge_domain::workspace::ActiveWorkspace;
use envforge_eventlog::LogError;
use envforge_projections::placement::Placement;
use envforge_runtime::{Report, WakeOrder};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::errand::{Cleared, Clearing, Errands, Matter};
use crate::host_machine::HostMachine;
use crate::secret_resolver::SecretResolver;
use crate::secret_sweep::Sweep;
use crate::secret_untold::Untold;
use crate::shared_world::{Listening, News, SharedWorld};
use crate::world::{KnownRuntime, World, needs};

/// How long the planned host may leave a wake alone before another one with room takes it: as long as a host's word is
/// believed elsewhere.
const PLANNED_HOST_PATIENCE: Millis = RUNTIME_LEASE;
/// How long a machine that is no host yet may take to step in before a wake without room has failed.
const NEW_HOST_PATIENCE: Millis = Millis::from_secs(10);
/// How often wakes that no host has taken are looked at again.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How often values are looked for of which the log was never told.
const UNTOLD_INTERVAL: Duration = Duration::from_hours(1);
/// Of so many renewals of leases one comes with a look at all of the organization's runtimes, the others with those that may be here.
const RENEWALS_PER_FULL_LOOK: u32 = 6;

/// One host's reactor.
pub struct RuntimeReactor {
    errands: Errands,
    /// `dev.localhost:7080`: what follows a host label in a public address.
    public_authority: String,
    world: SharedWorld,
    listening: Listening,
    /// What this process is doing for a workspace.
    busy: HashMap<WorkspaceId, (Epoch, Task)>,
    /// Workspaces whose last errand changed the log; looked at again once the world shows it.
    ahead: HashMap<WorkspaceId, Position>,
    /// Archived workspaces of which nothing is kept here.
    removed: HashSet<WorkspaceId>,
    finished: mpsc::Receiver<Finished>,
    finishing: mpsc::Sender<Finished>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Task {
    Waking,
    Sleeping,
    Clearing,
    Telling,
}

struct Finished {
    workspace: WorkspaceId,
    epoch: Epoch,
    task: Task,
    cleared: Cleared,
}

/// Who carries out a wake that no host has taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Turn {
    Ours,
    Others,
    /// No host of the organization has room, and no new one came.
    NoRoom,
}

impl RuntimeReactor {
    /// `public_authority` is the gateway's domain with its port where that is not the scheme's own.
    pub fn new(
        world: &SharedWorld,
        commands: Commands,
        host: Host,
        machine: HostMachine,
        clock: SharedClock,
        public_authority: String,
    ) -> Self {
        // As many finishes as runtimes a host may hold; a full channel only delays a comparison.
        let (finishing, finished) = mpsc::channel(1_024);
        Self {
            world: world.clone(),
            listening: world.listen(machine.org),
            errands: Errands { commands, host, machine, clock, secrets: None },
            public_authority,
            busy: HashMap::new(),
            ahead: HashMap::new(),
            removed: HashSet::new(),
            finished,
            finishing,
        }
    }

    /// Has wakes take their services' secrets from a store, and keeps that clear of what was removed.
    #[must_use]
    pub fn with_secrets(mut self, secrets: SecretResolver) -> Self {
        self.errands.secrets = Some(secrets);
        self
    }

    /// Works until `stop`. Then what runs on this machine is put to sleep, for nothing may run here without EnvForge; on an agent's
    /// host it goes on, for another process of ours, or this one when it is back.
    ///
    /// # Errors
    /// When the log cannot be followed any more. Nothing is left running on this machine then either.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), LogError> {
        let mut caught_up = false;
        let mut renewal = tokio::time::interval(LEASE_RENEWAL_INTERVAL.to_duration());
        renewal.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut untold = tokio::time::interval_at(tokio::time::Instant::now() + UNTOLD_INTERVAL, UNTOLD_INTERVAL);
        untold.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let host = self.errands.host.clone();
        let reports = host.reports();
        let mut renewals: u32 = 0;
        loop {
            // A thousand reactors for which nothing waits cost nothing.
            let waited_for = caught_up && self.world.read().has_untaken(self.errands.machine.org);
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                news = self.listening.next() => {
                    if let Some(error) = news.ended {
                        // What the log says from now on is not heard: nothing may run on what it said before.
                        if let Host::Local(host) = &self.errands.host {
                            host.shutdown().await;
                        }
                        return Err(error);
                    }
                    caught_up |= news.caught_up;
                    if caught_up {
                        self.hear(news);
                    }
                }
                Some(finished) = self.finished.recv() => {
                    let workspace = finished.workspace;
                    self.finish(&finished);
                    if caught_up {
                        self.compare(workspace);
                    }
                }
                report = reports.next() => self.told(report),
                () = host.facts_changed(), if caught_up => self.compare_all(),
                _ = look.tick(), if waited_for => self.compare_untaken(),
                _ = untold.tick(), if caught_up => self.look_for_untold(|_| true),
                _ = renewal.tick(), if caught_up => {
                    self.renew_leases();
                    if renewals.is_multiple_of(RENEWALS_PER_FULL_LOOK) {
                        self.compare_all();
                    } else {
                        self.compare_here();
                    }
                    renewals = renewals.wrapping_add(1);
                }
            }
        }
        if let Host::Local(host) = self.errands.host.clone() {
            self.put_to_sleep().await;
            host.shutdown().await;
        }
        Ok(())
    }

    fn hear(&mut self, news: News) {
        if news.caught_up {
            self.compare_all();
            self.sweep_where(|_| true);
            self.look_for_untold(|_| true);
        } else {
            news.touched.into_iter().for_each(|workspace| self.compare(workspace));
            self.compare_shown();
            if news.hosts_changed {
                self.compare_untaken();
            }
            self.follow_secrets(&news.secrets_changed);
        }
        self.sweep_archived(&news.archived);
    }

    /// What runs with another version may have to be restarted, and what was removed is cleared. `changed`: ids of owners.
    fn follow_secrets(&mut self, changed: &HashSet<String>) {
        if changed.is_empty() {
            return;
        }
        let ready: Vec<_> = {
            let world = self.world.read();
            let ready = |workspace: &WorkspaceId| {
                world.runtime(*workspace).is_some_and(|known| matches!(known.state, Runtime::Ready(_)))
            };
            world.runtimes_of(self.errands.machine.org).filter(ready).collect()
        };
        ready.into_iter().for_each(|workspace| self.compare(workspace));
        self.sweep_where(|owner| changed.contains(&owner.to_string()));
        self.look_for_untold(|owner| changed.contains(&owner.to_string()));
    }

    /// Also those of which the log knows no secret: a value may have been put of which it was never told.
    fn look_for_untold(&self, meant: impl Fn(SecretOwner) -> bool) {
        let Some(secrets) = self.errands.secrets.as_ref().filter(|_| self.sweeps()) else { return };
        let (world, store) = (self.world.read(), secrets.store());
        for (org, owners) in world.secret_owners().filter(|(org, _)| self.serves(&world, *org)) {
            let owners: Vec<_> = owners.iter().copied().filter(|owner| meant(*owner)).collect();
            if !owners.is_empty() {
                let (commands, clock) = (self.errands.commands.clone(), self.errands.clock.clone());
                tokio::spawn(Untold { org, owners, commands, clock }.run(Arc::clone(store)));
            }
        }
    }

    /// All of a process's reactors share one store: one for each organization clears it up, however many agents are connected.
    fn sweeps(&self) -> bool {
        self.errands.secrets.is_some() && self.world.is_oldest(self.errands.machine.org, &self.listening)
    }

    /// Also those of which the log knows no secret: a value may have been put of which it was never told.
    fn sweep_archived(&self, archived: &HashSet<(OrgId, WorkspaceId)>) {
        if archived.is_empty() || !self.sweeps() {
            return;
        }
        let world = self.world.read();
        let sweep = |(org, workspace): &(OrgId, WorkspaceId)| {
            let owner = world.secrets_owner(*workspace).filter(|_| self.serves(&world, *org))?;
            Some(Sweep { org: *org, owner, known: world.secrets_of(owner).clone(), archived: true })
        };
        self.sweep(archived.iter().filter_map(sweep).collect());
    }

    /// Clears up for the owners of secrets that are meant and that this host may clear up for.
    fn sweep_where(&self, meant: impl Fn(SecretOwner) -> bool) {
        if !self.sweeps() {
            return;
        }
        let world = self.world.read();
        let served = |(org, owner, known): (OrgId, SecretOwner, &Secrets)| {
            let archived = owner.workspace().is_some_and(|workspace| world.is_archived(workspace));
            let wanted = meant(owner) && self.serves(&world, org);
            wanted.then(|| Sweep { org, owner, known: known.clone(), archived })
        };
        self.sweep(world.secrets().filter_map(served).collect());
    }

    fn sweep(&self, sweeps: Vec<Sweep>) {
        let Some(secrets) = &self.errands.secrets else { return };
        let store = Arc::clone(secrets.store());
        tokio::spawn(async move {
            for sweep in sweeps {
                sweep.run(Arc::clone(&store)).await;
            }
        });
    }

    fn finish(&mut self, finished: &Finished) {
        let workspace = finished.workspace;
        // An errand that was overtaken ends while the one that overtook it is still under way.
        if self.busy.get(&workspace) == Some(&(finished.epoch, finished.task)) {
            self.busy.remove(&workspace);
        }
        if let Some(position) = finished.cleared.released_at {
            self.ahead.insert(workspace, position);
        }
        if finished.cleared.removed {
            self.removed.insert(workspace);
        }
    }

    fn compare_all(&mut self) {
        let workspaces: Vec<_> = self.world.read().runtimes_of(self.errands.machine.org).collect();
        for workspace in workspaces {
            self.compare(workspace);
        }
    }

    /// Compares what may have to do with this host, by the log or by what it says itself: an organization's hosts together look at each of its
    /// runtimes about once.
    fn compare_here(&mut self) {
        let up = self.errands.host.workspaces_up();
        let mut workspaces = {
            let world = self.world.read();
            let mut workspaces = world.runtimes_on(self.errands.machine.host);
            workspaces.extend(world.untaken_of(self.errands.machine.org));
            workspaces
        };
        workspaces.extend(up);
        for workspace in workspaces {
            self.compare(workspace);
        }
    }

    /// Compares the wakes that no host has taken: there may be room for them now, or they have waited for long enough.
    fn compare_untaken(&mut self) {
        let workspaces: Vec<_> = self.world.read().untaken_of(self.errands.machine.org).collect();
        for workspace in workspaces {
            self.compare(workspace);
        }
    }

    /// Compares what waited until the world shows what an errand did.
    fn compare_shown(&mut self) {
        if self.ahead.is_empty() {
            return;
        }
        let position = self.world.read().position();
        let shown = self.ahead.iter().filter(|(_, at)| **at <= position).map(|(workspace, _)| *workspace);
        for workspace in shown.collect::<Vec<_>>() {
            self.compare(workspace);
        }
    }

    /// Holds one runtime's state in the log against this host, and starts what is missing.
    fn compare(&mut self, workspace: WorkspaceId) {
        let shared = self.world.clone();
        let guard = shared.read();
        let world = &*guard;
        if self.ahead.get(&workspace).is_some_and(|at| *at > world.position()) {
            return;
        }
        self.ahead.remove(&workspace);
        let Some(known) = world.runtime(workspace) else { return };
        if !self.serves(world, known.org) {
            return;
        }
        let Some(matter) = matter(world, workspace, known) else { return };
        let (org, epoch) = (known.org, matter.epoch);
        let (here, asked_at) = (self.errands.machine.host, known.asked_at);
        match known.state.clone() {
            Runtime::Waking { host: Some(host), .. } if host == here => self.wake(world, matter, org),
            Runtime::Waking { host: None, .. } => {
                let waited = self.errands.clock.now().since(asked_at);
                match self.turn(world, org, workspace, waited) {
                    Turn::Ours => self.wake(world, matter, org),
                    Turn::Others => self.clear(world, matter, None),
                    Turn::NoRoom => {
                        let reason = "no host of the organization has room for this workspace".to_owned();
                        self.tell_failed(matter, reason);
                    }
                }
            }
            Runtime::Sleeping { host, .. } if host.is_none_or(|host| host == here) => {
                if self.is_busy(matter, Task::Sleeping) {
                    return;
                }
                let errands = self.errands.clone();
                self.start(matter, Task::Sleeping, async move {
                    errands.sleep(matter).await;
                    Cleared::default()
                });
            }
            Runtime::Ready(ready) if ready.host == Some(here) => {
                // Ready in the log, not here: an earlier process was killed and its leftovers were ended at the start.
                if self.errands.host.is_up(workspace, ready.epoch.0) {
                    return self.restart_where_rotated(world, matter, &ready.secrets);
                }
                let now = self.errands.clock.now();
                let report = RuntimeCommand::DeclareLost { epoch, confirmed_by: Some(here), now };
                self.tell(matter, report, "lost");
            }
            // Nothing of it may run anywhere.
            Runtime::Asleep { .. } | Runtime::Failed { .. } => self.clear(world, matter, Some(epoch)),
            // It is another host's: what an earlier wake left here ends.
            Runtime::NeverWoken | Runtime::Waking { .. } | Runtime::Sleeping { .. } | Runtime::Ready(_) => {
                self.clear(world, matter, None);
            }
        }
    }

    /// Restarts a runtime that runs with an older version of a secret whose rules say so, and whose next wake gets all that it
    /// declares: what runs is not ended for a wake that fails.
    fn restart_where_rotated(&mut self, world: &World, matter: Matter, given: &[ConsumedSecret]) {
        let Some(view) = world.secret_view(matter.workspace, self.errands.clock.now()) else { return };
        let Some(rotated) = given.iter().find(|given| view.stale(given) == Some(Rotation::Restart)) else { return };
        let Some(active) = world.workspace(matter.workspace) else { return };
        if let Err(refused) = view.resolve(&active.manifest) {
            let refused = RefusedSecret::named(&refused);
            tracing::info!(workspace = %matter.workspace, rotated = %rotated.name, %refused, "it runs with an older version: its next wake would fail");
            return;
        }
        let changes = view.get(&rotated.name).map(|now| &now.known.changes);
        let set = changes.into_iter().flatten().rev().find(|change| matches!(change.deed, SecretDeed::Set { .. }));
        let Some(by) = set.map(|change| change.by) else { return };
        let report = RuntimeCommand::Restart { epoch: matter.epoch, name: rotated.name.clone(), by };
        self.tell(matter, report, "rotated");
    }

    /// Whether this machine may do anything for an organization: it belongs to that one or to none yet.
    fn serves(&self, world: &World, org: OrgId) -> bool {
        let machine = &self.errands.machine;
        let of_host = world.placement().organization_of(machine.host);
        let of_machine = world.holder_of(&machine.key);
        [machine.org, of_host, of_machine].into_iter().flatten().all(|holder| holder == org)
    }

    fn turn(&self, world: &World, org: OrgId, workspace: WorkspaceId, waited: Millis) -> Turn {
        // An archived workspace needs no room: whoever comes first says that it cannot wake.
        let Some(needs) = world.workspace(workspace).map(needs) else { return Turn::Ours };
        let machine = &self.errands.machine;
        let closed = world.placement().is_closed(machine.host);
        let hosts = world.placement().hosts_of(org, workspace);
        let fits_here = hosts.fits_on(machine.host, &needs);
        match hosts.plan(&needs) {
            Placement::On(host) if host == machine.host => Turn::Ours,
            Placement::On(_) => {
                let in_its_place = !closed && fits_here.unwrap_or_else(|| needs.fits_into(&machine.capacity));
                if in_its_place && waited >= PLANNED_HOST_PATIENCE { Turn::Ours } else { Turn::Others }
            }
            Placement::NeedsHost if !closed && fits_here.is_none() && needs.fits_into(&machine.capacity) => Turn::Ours,
            // One that is asked for takes minutes; the timers give the wake up in the end.
            Placement::NeedsHost if world.placement().has_machines(org) => Turn::Others,
            Placement::NeedsHost if waited >= NEW_HOST_PATIENCE => Turn::NoRoom,
            Placement::NeedsHost => Turn::Others,
        }
    }

    fn wake(&mut self, world: &World, matter: Matter, org: OrgId) {
        if self.is_busy(matter, Task::Waking) {
            return;
        }
        match self.wake_order(world, matter.workspace, org, matter.epoch) {
            Ok((order, active)) => {
                let view = world.secret_view(matter.workspace, self.errands.clock.now());
                let consumed = match view.map_or(Ok(Vec::new()), |view| view.resolve(&active.manifest)) {
                    Ok(consumed) => consumed,
                    Err(refused) => {
                        let (epoch, host) = (matter.epoch, self.errands.machine.host);
                        let report = RuntimeCommand::ReportSecretsRefused { epoch, host, refused };
                        return self.tell(matter, report, "failed");
                    }
                };
                let git = match world.project(active.project) {
                    Some(Project::Active { git, .. }) => git.clone(),
                    Some(Project::Unknown) | None => None,
                };
                let errands = self.errands.clone();
                self.start(matter, Task::Waking, async move {
                    errands.wake(matter, order, (active, git), consumed).await;
                    Cleared::default()
                });
            }
            Err(reason) => self.tell_failed(matter, reason),
        }
    }

    /// Ends what runs here up to a wake (all of it, where another host has the workspace), gives room back, and removes
    /// what is kept of an archived workspace.
    fn clear(&mut self, world: &World, matter: Matter, end: Option<Epoch>) {
        let (workspace, host) = (matter.workspace, &self.errands.host);
        let up = host.epoch_up(workspace).map(Epoch);
        let release = world.placement().is_placed(workspace, self.errands.machine.host);
        let remove = end.is_some() && world.is_archived(workspace) && !self.removed.contains(&workspace);
        let waking = matches!(self.busy.get(&workspace), Some((_, Task::Waking)));
        let clearing = Clearing {
            // Also where nothing is up: what has failed may still be ending, and its room is not free before.
            end: end.filter(|_| release || up.is_some() || waking).or(up),
            release,
            remove,
        };
        if (clearing.end.is_none() && !release && !remove) || self.is_busy(matter, Task::Clearing) {
            return;
        }
        let errands = self.errands.clone();
        self.start(matter, Task::Clearing, async move { errands.clear(matter, clearing).await });
    }

    fn is_busy(&self, matter: Matter, task: Task) -> bool {
        match self.busy.get(&matter.workspace) {
            // A sleep may start while its wake is under way: the host cancels the wake.
            Some((epoch, Task::Waking)) if matches!(task, Task::Sleeping | Task::Clearing) => *epoch != matter.epoch,
            Some(_) => true,
            None => false,
        }
    }

    fn start(&mut self, matter: Matter, task: Task, errand: impl Future<Output = Cleared> + Send + 'static) {
        let (workspace, epoch) = (matter.workspace, matter.epoch);
        self.busy.insert(workspace, (epoch, task));
        let finishing = self.finishing.clone();
        tokio::spawn(async move {
            let cleared = errand.await;
            // The receiver is gone only when the reactor has ended.
            let _ = finishing.send(Finished { workspace, epoch, task, cleared }).await;
        });
    }

    fn tell_failed(&mut self, matter: Matter, reason: String) {
        let host = self.errands.machine.host;
        self.tell(matter, RuntimeCommand::ReportFailed { epoch: matter.epoch, host, reason }, "failed");
    }

    fn tell(&mut self, matter: Matter, report: RuntimeCommand, purpose: &'static str) {
        if self.is_busy(matter, Task::Telling) {
            return;
        }
        let errands = self.errands.clone();
        self.start(matter, Task::Telling, async move {
            errands.report(matter, &report, purpose).await;
            Cleared::default()
        });
    }

    fn told(&mut self, report: Report) {
        match report {
            Report::ServiceRestarted { workspace, service, status, .. } => {
                tracing::warn!(%workspace, %service, %status, "a service was restarted");
            }
            Report::RuntimeFailed { workspace, epoch, service, reason } => {
                let shared = self.world.clone();
                let world = shared.read();
                // A host's word counts for its own organization alone.
                let known = world.runtime(workspace).filter(|known| self.serves(&world, known.org));
                let Some(matter) = known.and_then(|known| matter(&world, workspace, known)) else { return };
                let report = RuntimeCommand::ReportFailed {
                    epoch: Epoch(epoch),
                    host: self.errands.machine.host,
                    reason: format!("service `{service}`: {reason}"),
                };
                let errands = self.errands.clone();
                tokio::spawn(async move {
                    errands.report(matter, &report, "service failed").await;
                });
            }
        }
    }

    /// Tells the log that ready runtimes still are.
    fn renew_leases(&self) {
        if !self.errands.host.is_heard() {
            return;
        }
        let (now, host) = (self.errands.clock.now(), self.errands.machine.host);
        let world = self.world.read();
        for workspace in world.runtimes_on(host) {
            let Some(known) = world.runtime(workspace) else { continue };
            let Runtime::Ready(ready) = &known.state else { continue };
            if ready.host != Some(host) || !self.errands.host.is_up(workspace, ready.epoch.0) {
                continue;
            }
            let Some(matter) = matter(&world, workspace, known) else { continue };
            let lease_until = now.plus(RUNTIME_LEASE);
            let report = RuntimeCommand::RenewLease { epoch: ready.epoch, host, lease_until };
            let errands = self.errands.clone();
            tokio::spawn(async move {
                match errands.send(matter, &Context::new(now), &report).await {
                    Ok(()) => {}
                    // The next renewal is near; the lease outlasts several.
                    Err(error) => tracing::warn!(%workspace, %error, "a lease was not renewed"),
                }
            });
        }
    }

    /// EnvForge stops: nothing may run without it, and the meter closes here rather than at a lease.
    async fn put_to_sleep(&mut self) {
        let here = Some(self.errands.machine.host);
        let awake = |state: &Runtime| matches!(state, Runtime::Ready(_) | Runtime::Waking { .. });
        let matters: Vec<_> = {
            let world = self.world.read();
            let here = world.runtimes().filter(|(_, known)| awake(&known.state) && known.state.host() == here);
            here.filter_map(|(workspace, known)| matter(&world, workspace, known)).collect()
        };
        let tasks = matters.into_iter().map(|matter| {
            let errands = self.errands.clone();
            async move { errands.sleep_at_shutdown(matter).await }
        });
        futures_util::future::join_all(tasks).await;
    }

    fn wake_order(
        &self,
        world: &World,
        workspace: WorkspaceId,
        org: OrgId,
        epoch: Epoch,
    ) -> Result<(WakeOrder, ActiveWorkspace), String> {
        let active = world.workspace(workspace).ok_or("the workspace is archived")?.clone();
        let Some(Project::Active { repository, .. }) = world.project(active.project) else {
            return Err("the project is unknown".to_owned());
        };
        let (org_slug, _) = world.organization(org).ok_or("the organization is unknown")?;
        let public_hosts: BTreeMap<_, _> = active
            .manifest
            .services
            .iter()
            .filter(|service| service.route != Route::None)
            .filter_map(|service| {
                let label = HostLabel::new(service.name.clone(), active.slug.clone(), org_slug.clone()).ok()?;
                Some((service.name.clone(), format!("{label}.{}", self.public_authority)))
            })
            .collect();
        let order = WakeOrder {
            org,
            workspace,
            epoch: epoch.0,
            repository: repository.as_str().to_owned(),
            branch: active.branch.as_str().to_owned(),
            manifest: active.manifest.clone(),
            deadline: WAKE_DEADLINE,
            public_hosts,
            // Taken from the store once the wake is this host's.
            secrets: BTreeMap::new(),
            git: None,
        };
        Ok((order, active))
    }
}

fn matter(world: &World, workspace: WorkspaceId, known: &KnownRuntime) -> Option<Matter> {
    Some(Matter {
        workspace,
        epoch: known.state.epoch(),
        resource: world.resource(workspace)?,
        position: world.position(),
        commit: known.commit,
        correlation: known.correlation,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use envforge_domain::host::Capacity;
    use envforge_domain::ids::HostId;
    use envforge_domain::time::{Clock, UnixMillis};
    use envforge_eventlog::SharedLog;
    use envforge_eventlog::sqlite::{Config, SqliteLog};
    use envforge_runtime::LocalHost;
    use uuid::Uuid;

    use super::*;

    struct Standing;

    impl Clock for Standing {
        fn now(&self) -> UnixMillis {
            UnixMillis::new(1)
        }
    }

    #[tokio::test]
    async fn an_overtaken_errand_that_ends_does_not_end_the_one_that_overtook_it() {
        let directory = tempfile::tempdir().unwrap();
        let log: SharedLog = Arc::new(SqliteLog::open(Config::new(directory.path().join("log"))).await.unwrap());
        let state = envforge_runtime::Config::new(directory.path().join("runtime"));
        let (host, _) = LocalHost::open(state).await.unwrap();
        let id = HostId::from_uuid(Uuid::from_u128(1));
        let machine = HostMachine { key: "local-1".to_owned(), host: id, capacity: Capacity::default(), org: None };
        let commands = Commands::new(Arc::clone(&log));
        let (world, clock, authority) = (SharedWorld::new(log), Arc::new(Standing), "dev.localhost".to_owned());
        let mut reactor = RuntimeReactor::new(&world, commands, Host::Local(host), machine, clock, authority);
        let workspace = WorkspaceId::from_uuid(Uuid::from_u128(2));
        let finished = |epoch, task| Finished { workspace, epoch: Epoch(epoch), task, cleared: Cleared::default() };
        reactor.busy.insert(workspace, (Epoch(3), Task::Sleeping));
        reactor.finish(&finished(3, Task::Waking));
        reactor.finish(&finished(2, Task::Sleeping));
        assert_eq!(reactor.busy.get(&workspace), Some(&(Epoch(3), Task::Sleeping)));
        reactor.finish(&finished(3, Task::Sleeping));
        assert_eq!(reactor.busy.get(&workspace), None);
    }
}
