//! The runtime reactor: brings the runtimes of one host to the state that the log asks for.
//!
//! Level-triggered: every commit about a runtime, every finished task and every tick compares the log's state with what
//! runs here, so that a crash between an event and its effect is made good by the next comparison. Not here: deadlines
//! (timers).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use envforge_commands::{CommandError, Commands, Context, hosts, runtimes};
use envforge_domain::access::{Action, Denial, Resource};
use envforge_domain::commit::{Component, Position};
use envforge_domain::host::Host;
use envforge_domain::ids::{CommitId, CorrelationId, OrgId, WorkspaceId};
use envforge_domain::limits::{LEASE_RENEWAL_INTERVAL, RUNTIME_LEASE, WAKE_DEADLINE};
use envforge_domain::manifest::Route;
use envforge_domain::project::Project;
use envforge_domain::runtime::{Epoch, ReadyService, Runtime, RuntimeCommand, SleepCause, WakeStage};
use envforge_domain::slug::HostLabel;
use envforge_domain::time::SharedClock;
use envforge_domain::workspace::ActiveWorkspace;
use envforge_eventlog::{Checkpoint, Filter, Follow, LogError, SharedLog};
use envforge_runtime::{LocalHost, Report, Stage, WakeFailure, WakeOrder};
use futures_util::StreamExt;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::host_machine::LocalMachine;
use crate::permit::system_permit;
use crate::world::{World, needs};

/// Reports that wait for the log; each is retried until it is answered.
const REPORT_ATTEMPTS_MAX: u32 = 60;

/// One host's reactor.
pub struct RuntimeReactor {
    shared: Arc<Shared>,
    world: World,
    /// What this process is doing for a workspace, by epoch.
    busy: HashMap<WorkspaceId, (Epoch, Task)>,
    finished: mpsc::Receiver<WorkspaceId>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Task {
    Waking,
    Sleeping,
    Telling,
}

struct Shared {
    log: SharedLog,
    commands: Commands,
    host: LocalHost,
    machine: LocalMachine,
    clock: SharedClock,
    /// `dev.localhost:7080`: what follows a host label in a public address.
    public_authority: String,
    finished: mpsc::Sender<WorkspaceId>,
}

/// What woke the reactor and why it acts: for causation.
#[derive(Clone, Copy)]
struct Origin {
    commit: CommitId,
    correlation: CorrelationId,
}

impl RuntimeReactor {
    /// `public_authority` is the gateway's domain with its port where that is not the scheme's own.
    pub fn new(
        log: SharedLog,
        commands: Commands,
        host: LocalHost,
        machine: LocalMachine,
        clock: SharedClock,
        public_authority: String,
    ) -> Self {
        // As many finishes as runtimes a host may hold; a full channel only delays a comparison.
        let (sender, finished) = mpsc::channel(1_024);
        let shared = Shared { log, commands, host, machine, clock, public_authority, finished: sender };
        Self { shared: Arc::new(shared), world: World::default(), busy: HashMap::new(), finished }
    }

    /// Follows the log until `stop`; then puts what runs here to sleep and ends.
    ///
    /// # Errors
    /// When the log cannot be followed any more: not the same log, or undecodable.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), LogError> {
        let log = Arc::clone(&self.shared.log);
        let mut follow = log.follow(Checkpoint::START, Filter::everything()).await?;
        let mut caught_up = false;
        let mut renewal = tokio::time::interval(LEASE_RENEWAL_INTERVAL.to_duration());
        renewal.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let reports = self.shared.host.reports();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                next = follow.next() => match next {
                    None => return Err(LogError::Unavailable("the log's stream ended".to_owned())),
                    Some(Err(error)) => return Err(error),
                    Some(Ok(Follow::Commit { recorded, .. })) => {
                        let touched = self.world.apply(&recorded);
                        if let (true, Some(workspace)) = (caught_up, touched) {
                            self.compare(workspace);
                        }
                    }
                    Some(Ok(Follow::Caught { .. })) => {
                        if !caught_up {
                            caught_up = true;
                            self.compare_all();
                        }
                    }
                },
                Some(workspace) = self.finished.recv() => {
                    self.busy.remove(&workspace);
                    if caught_up {
                        self.compare(workspace);
                    }
                }
                report = reports.next() => self.told(report),
                _ = renewal.tick(), if caught_up => {
                    self.renew_leases();
                    self.compare_all();
                }
            }
        }
        self.put_to_sleep().await;
        Ok(())
    }

    fn compare_all(&mut self) {
        let workspaces: Vec<_> = self.world.runtimes().map(|(workspace, _)| workspace).collect();
        for workspace in workspaces {
            self.compare(workspace);
        }
    }

    /// Holds one runtime's state in the log against this host, and starts what is missing.
    fn compare(&mut self, workspace: WorkspaceId) {
        let Some(known) = self.world.runtime(workspace) else { return };
        let Some(resource) = self.world.resource(workspace) else { return };
        let origin = Origin { commit: known.commit, correlation: known.correlation };
        let (org, position) = (known.org, self.world.position());
        // A runtime placed on another host is that host's business.
        if self.world.placement(workspace).is_some_and(|host| host != self.shared.machine.host) {
            return;
        }
        match known.state.clone() {
            Runtime::Waking { epoch, .. } => {
                if self.is_busy(workspace, epoch, Task::Waking) {
                    return;
                }
                match self.wake_order(workspace, org, epoch) {
                    Ok((order, active)) => self.start(workspace, epoch, Task::Waking, {
                        let shared = Arc::clone(&self.shared);
                        async move { shared.wake(order, active, resource, position, origin).await }
                    }),
                    Err(reason) => {
                        let report = RuntimeCommand::ReportFailed { epoch, reason };
                        self.tell(workspace, epoch, resource, position, origin, report, "failed");
                    }
                }
            }
            Runtime::Sleeping { epoch, .. } => {
                if self.is_busy(workspace, epoch, Task::Sleeping) {
                    return;
                }
                let shared = Arc::clone(&self.shared);
                self.start(workspace, epoch, Task::Sleeping, async move {
                    shared.sleep(workspace, epoch, resource, position, origin).await;
                });
            }
            Runtime::Ready(ready) => {
                // Ready in the log, not here: an earlier process was killed and its leftovers were ended at the start.
                if self.shared.host.is_up(workspace, ready.epoch.0) || self.busy.contains_key(&workspace) {
                    return;
                }
                let report = RuntimeCommand::DeclareLost {
                    epoch: ready.epoch,
                    host_confirms: true,
                    now: self.shared.clock.now(),
                };
                self.tell(workspace, ready.epoch, resource, position, origin, report, "lost");
            }
            Runtime::NeverWoken | Runtime::Asleep { .. } | Runtime::Failed { .. } => {}
        }
    }

    fn is_busy(&self, workspace: WorkspaceId, epoch: Epoch, task: Task) -> bool {
        match self.busy.get(&workspace) {
            // A sleep may start while its wake is under way: the host cancels the wake.
            Some((busy_epoch, Task::Waking)) if task == Task::Sleeping && *busy_epoch == epoch => false,
            Some(_) => true,
            None => false,
        }
    }

    fn start(
        &mut self,
        workspace: WorkspaceId,
        epoch: Epoch,
        task: Task,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        self.busy.insert(workspace, (epoch, task));
        let finished = self.shared.finished.clone();
        tokio::spawn(async move {
            work.await;
            // The receiver is gone only when the reactor has ended.
            let _ = finished.send(workspace).await;
        });
    }

    #[allow(clippy::too_many_arguments, reason = "what a report is about, and on which grounds")]
    fn tell(
        &mut self,
        workspace: WorkspaceId,
        epoch: Epoch,
        resource: Resource,
        position: Position,
        origin: Origin,
        report: RuntimeCommand,
        purpose: &'static str,
    ) {
        if self.busy.contains_key(&workspace) {
            return;
        }
        let shared = Arc::clone(&self.shared);
        self.start(workspace, epoch, Task::Telling, async move {
            shared.report(workspace, resource, position, origin, &report, purpose).await;
        });
    }

    fn told(&mut self, report: Report) {
        match report {
            Report::ServiceRestarted { workspace, service, status, .. } => {
                tracing::warn!(%workspace, %service, %status, "a service was restarted");
            }
            Report::RuntimeFailed { workspace, epoch, service, reason } => {
                let (Some(known), Some(resource)) = (self.world.runtime(workspace), self.world.resource(workspace))
                else {
                    return;
                };
                let origin = Origin { commit: known.commit, correlation: known.correlation };
                let report = RuntimeCommand::ReportFailed {
                    epoch: Epoch(epoch),
                    reason: format!("service `{service}`: {reason}"),
                };
                let shared = Arc::clone(&self.shared);
                let position = self.world.position();
                tokio::spawn(async move {
                    shared.report(workspace, resource, position, origin, &report, "service failed").await;
                });
            }
        }
    }

    /// Tells the log that ready runtimes still are.
    fn renew_leases(&self) {
        let now = self.shared.clock.now();
        for (workspace, known) in self.world.runtimes() {
            let Runtime::Ready(ready) = &known.state else { continue };
            if !self.shared.host.is_up(workspace, ready.epoch.0) {
                continue;
            }
            let Some(resource) = self.world.resource(workspace) else { continue };
            let report = RuntimeCommand::RenewLease { epoch: ready.epoch, lease_until: now.plus(RUNTIME_LEASE) };
            let shared = Arc::clone(&self.shared);
            let position = self.world.position();
            tokio::spawn(async move {
                let context = Context::new(now);
                match shared.send(workspace, resource, position, &context, &report).await {
                    Ok(()) => {}
                    // The next renewal is near; the lease outlasts several.
                    Err(error) => tracing::warn!(%workspace, %error, "a lease was not renewed"),
                }
            });
        }
    }

    /// EnvForge stops: nothing may run without it, and the meter closes here rather than at a lease.
    async fn put_to_sleep(&mut self) {
        let runtimes: Vec<_> = self
            .world
            .runtimes()
            .filter(|(_, known)| matches!(known.state, Runtime::Ready(_) | Runtime::Waking { .. }))
            .filter_map(|(workspace, known)| {
                let origin = Origin { commit: known.commit, correlation: known.correlation };
                let mine = self.world.placement(workspace).is_none_or(|host| host == self.shared.machine.host);
                mine.then_some((workspace, known.state.epoch(), self.world.resource(workspace)?, origin))
            })
            .collect();
        let position = self.world.position();
        let tasks = runtimes.into_iter().map(|(workspace, epoch, resource, origin)| {
            let shared = Arc::clone(&self.shared);
            async move {
                let now = shared.clock.now();
                let context = Context::caused_by(origin.commit, origin.correlation, "shutdown", now);
                let permit = system_permit(Component::RuntimeReactor, Action::RuntimeSleep, resource, position, now);
                if let Ok(permit) = permit
                    && let Err(error) =
                        runtimes::sleep(&shared.commands, &permit, &context, workspace, SleepCause::Shutdown).await
                {
                    tracing::warn!(%workspace, %error, "the sleep at shutdown was not recorded");
                }
                shared.sleep(workspace, epoch, resource, position, origin).await;
            }
        });
        futures_util::future::join_all(tasks).await;
        self.shared.host.shutdown().await;
    }

    fn wake_order(
        &self,
        workspace: WorkspaceId,
        org: OrgId,
        epoch: Epoch,
    ) -> Result<(WakeOrder, ActiveWorkspace), String> {
        let active = self.world.workspace(workspace).ok_or("the workspace is archived")?.clone();
        let Some(Project::Active { repository, .. }) = self.world.project(active.project) else {
            return Err("the project is unknown".to_owned());
        };
        let (org_slug, _) = self.world.organization(org).ok_or("the organization is unknown")?;
        let public_hosts: BTreeMap<_, _> = active
            .manifest
            .services
            .iter()
            .filter(|service| service.route != Route::None)
            .filter_map(|service| {
                let label = HostLabel::new(service.name.clone(), active.slug.clone(), org_slug.clone()).ok()?;
                Some((service.name.clone(), format!("{label}.{}", self.shared.public_authority)))
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
            // Secret stores come with their own issue; a service that declares one fails the wake, by name.
            secrets: BTreeMap::new(),
        };
        Ok((order, active))
    }
}

impl Shared {
    async fn wake(
        &self,
        order: WakeOrder,
        active: ActiveWorkspace,
        resource: Resource,
        position: Position,
        origin: Origin,
    ) {
        let (workspace, epoch) = (order.workspace, Epoch(order.epoch));
        if let Err(reason) = self.place(&active, resource, position, origin).await {
            let report = RuntimeCommand::ReportFailed { epoch, reason };
            self.report(workspace, resource, position, origin, &report, "not placed").await;
            return;
        }
        self.stage(workspace, epoch, resource, position, origin, WakeStage::Placed).await;
        let (stages, mut stage) = watch::channel(Stage::CheckingOut);
        let tell_stages = async {
            // Stages are for people who watch; one that is not recorded in time is overtaken by the next.
            while stage.changed().await.is_ok() {
                let reached = match &*stage.borrow_and_update() {
                    Stage::CheckingOut => WakeStage::CheckingOut,
                    Stage::Starting { .. } => WakeStage::Starting,
                    Stage::Probing { .. } | Stage::Ready => WakeStage::Probing,
                };
                self.stage(workspace, epoch, resource, position, origin, reached).await;
            }
        };
        let (woken, ()) = tokio::join!(self.host.wake(order, stages), tell_stages);
        let report = match woken {
            Ok(awake) => RuntimeCommand::ReportReady {
                epoch,
                commit: awake.commit,
                host: self.machine.host,
                services: active
                    .manifest
                    .services
                    .iter()
                    .map(|service| ReadyService {
                        name: service.name.clone(),
                        cpu_millicores: service.cpu_millicores,
                        memory_mib: service.memory_mib,
                    })
                    .collect(),
                endpoints: awake.endpoints,
                lease_until: self.clock.now().plus(RUNTIME_LEASE),
            },
            // A sleep overtook the wake; it reports for itself.
            Err(WakeFailure::Cancelled | WakeFailure::ShuttingDown) => return,
            Err(failure) => RuntimeCommand::ReportFailed { epoch, reason: failure.to_string() },
        };
        if !self.report(workspace, resource, position, origin, &report, "woken").await {
            // The log refused it (put to sleep meanwhile): the sleep that the log asks for ends what runs.
            tracing::info!(%workspace, epoch = epoch.0, "a finished wake was no longer wanted");
        }
    }

    async fn sleep(
        &self,
        workspace: WorkspaceId,
        epoch: Epoch,
        resource: Resource,
        position: Position,
        origin: Origin,
    ) {
        for attempt in 0..REPORT_ATTEMPTS_MAX {
            match self.host.sleep(workspace, epoch.0).await {
                Ok(()) => break,
                Err(failure) => {
                    tracing::warn!(%workspace, attempt, %failure, "a sleep did not end everything; trying again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
        self.report(workspace, resource, position, origin, &RuntimeCommand::ReportSlept { epoch }, "slept").await;
    }

    /// Makes sure that this machine is a host of the workspace's organization and holds the workspace.
    async fn place(
        &self,
        active: &ActiveWorkspace,
        resource: Resource,
        position: Position,
        origin: Origin,
    ) -> Result<(), String> {
        let (org, host) = (resource.org(), self.machine.host);
        let now = self.clock.now();
        let internal = |denial: Denial| denial.to_string();
        let known = self
            .commands
            .load::<Host>(&envforge_domain::commit::StreamId::host(org, host))
            .await
            .map_err(|error| error.to_string())?;
        if known.state == Host::Unknown {
            let on = Resource::Host { org, host };
            let permit =
                system_permit(Component::RuntimeReactor, Action::HostRegister, on, position, now).map_err(internal)?;
            let context = Context::caused_by(origin.commit, origin.correlation, "register host", now);
            let machine = hosts::MachineKey::parse(&self.machine.key).map_err(|error| error.to_string())?;
            let registered = hosts::register(
                &self.commands,
                &permit,
                &context,
                host,
                "local".to_owned(),
                machine,
                self.machine.capacity,
            );
            match registered.await {
                Ok(_) => {}
                Err(error) if error.refusal_code() == Some("name_taken") => {
                    return Err(
                        "this machine belongs to another organization, and no machine is shared between two".to_owned()
                    );
                }
                Err(error) => return Err(error.to_string()),
            }
        }
        let permit =
            system_permit(Component::RuntimeReactor, Action::HostPlace, resource, position, now).map_err(internal)?;
        let context = Context::caused_by(origin.commit, origin.correlation, "place", now);
        match hosts::place(&self.commands, &permit, &context, host, active.workspace, needs(active)).await {
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn stage(
        &self,
        workspace: WorkspaceId,
        epoch: Epoch,
        resource: Resource,
        position: Position,
        origin: Origin,
        stage: WakeStage,
    ) {
        let purpose = format!("stage {stage:?}");
        let report = RuntimeCommand::ReportStage { epoch, stage };
        let now = self.clock.now();
        let context = Context::caused_by(origin.commit, origin.correlation, &purpose, now);
        if let Err(error) = self.send(workspace, resource, position, &context, &report).await {
            tracing::debug!(%workspace, %error, "a stage was not recorded");
        }
    }

    /// Records a fact, again and again until the log answers. `false` where the domain refused it.
    async fn report(
        &self,
        workspace: WorkspaceId,
        resource: Resource,
        position: Position,
        origin: Origin,
        report: &RuntimeCommand,
        purpose: &str,
    ) -> bool {
        let now = self.clock.now();
        // One id for all attempts: a lost acknowledgement must not become a second fact.
        let context = Context::caused_by(origin.commit, origin.correlation, purpose, now);
        for attempt in 0..REPORT_ATTEMPTS_MAX {
            match self.send(workspace, resource, position, &context, report).await {
                Ok(()) => return true,
                Err(CommandError::Refused(refusal)) => {
                    tracing::info!(%workspace, %refusal, purpose, "the log did not take a report");
                    return false;
                }
                Err(error) => {
                    tracing::warn!(%workspace, %error, attempt, purpose, "a report was not recorded yet");
                    tokio::time::sleep(Duration::from_millis(u64::from(attempt.min(20)) * 100 + 50)).await;
                }
            }
        }
        tracing::error!(%workspace, purpose, "a report could not be recorded; the next comparison makes it good");
        false
    }

    async fn send(
        &self,
        workspace: WorkspaceId,
        resource: Resource,
        position: Position,
        context: &Context,
        report: &RuntimeCommand,
    ) -> Result<(), CommandError> {
        let permit =
            match system_permit(Component::RuntimeReactor, Action::RuntimeReport, resource, position, context.now) {
                Ok(permit) => permit,
                Err(denial) => {
                    tracing::error!(%denial, "the policy does not allow the runtime reactor to report");
                    return Ok(());
                }
            };
        runtimes::report(&self.commands, &permit, context, workspace, report).await.map(drop)
    }
}
