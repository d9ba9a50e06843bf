//! What takes time: taking a wake, waking, sleeping, clearing, and telling the log what came of it.
//!
//! Each errand may be run again at any time and does what is still missing. Not here: which one is due
//! (`runtime_reactor`).

use std::collections::BTreeMap;
use std::time::Duration;

use envforge_agent::Host as Runner;
use envforge_commands::{CommandError, Commands, Context, hosts, runtimes};
use envforge_domain::access::{Action, Resource};
use envforge_domain::aggregate::Aggregate;
use envforge_domain::commit::{Component, Position};
use envforge_domain::ids::{CommitId, CorrelationId, WorkspaceId};
use envforge_domain::limits::{RUNTIME_LEASE, SECRETS_CONSUMED_MAX};
use envforge_domain::project::GitCredential;
use envforge_domain::runtime::{Epoch, ReadyService, Runtime, RuntimeCommand, RuntimeRefusal, SleepCause, WakeStage};
use envforge_domain::secret::Secret;
use envforge_domain::secrets::ConsumedSecret;
use envforge_domain::time::SharedClock;
use envforge_domain::workspace::ActiveWorkspace;
use envforge_runtime::{GitLogin, SleepFailure, Stage, WakeFailure, WakeOrder};
use tokio::sync::watch;

use crate::host_machine::{HostMachine, NotTaken};
use crate::permit::system_permit;
use crate::secret_resolver::{SecretResolver, Unresolved};
use crate::world::needs;

/// Reports that wait for the log; each is retried until it is answered.
const REPORT_ATTEMPTS_MAX: u32 = 60;
/// After a wake that this host did not get, until the log says who has it.
const NOT_TAKEN_PAUSE: Duration = Duration::from_millis(500);

/// Runs errands on one host. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Errands {
    pub(crate) commands: Commands,
    pub(crate) host: Runner,
    pub(crate) machine: HostMachine,
    pub(crate) clock: SharedClock,
    /// Where this host has a secret store.
    pub(crate) secrets: Option<SecretResolver>,
}

/// What an errand is about, and on which grounds it is run.
#[derive(Clone, Copy)]
pub(crate) struct Matter {
    pub(crate) workspace: WorkspaceId,
    pub(crate) epoch: Epoch,
    pub(crate) resource: Resource,
    /// What the reactor knew of the log.
    pub(crate) position: Position,
    /// The commit that it is a reaction to: for causation.
    pub(crate) commit: CommitId,
    pub(crate) correlation: CorrelationId,
}

/// What a host keeps of a workspace that must not stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Clearing {
    /// The wake up to which nothing may run here.
    pub(crate) end: Option<Epoch>,
    /// Room that is held for it.
    pub(crate) release: bool,
    /// Checkout, data and output: the workspace is archived.
    pub(crate) remove: bool,
}

/// What came of a clearing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cleared {
    /// A reader at this position sees that the room was given back.
    pub(crate) released_at: Option<Position>,
    pub(crate) removed: bool,
}

impl Errands {
    /// Takes the wake for this host and carries it out.
    pub(crate) async fn wake(
        &self,
        matter: Matter,
        mut order: WakeOrder,
        (active, git): (ActiveWorkspace, Option<GitCredential>),
        consumed: Vec<ConsumedSecret>,
    ) {
        if let Err(reason) = self.take(matter, &active).await {
            tracing::info!(workspace = %matter.workspace, %reason, "this host did not take a wake");
            tokio::time::sleep(NOT_TAKEN_PAUSE).await;
            return;
        }
        match self.secrets_of(matter, consumed).await {
            Ok(mut secrets) => {
                // Git's is git's alone.
                order.git = git.and_then(|git| {
                    let value = secrets.remove(git.secret.as_str())?;
                    Some(GitLogin { username: git.username, value, valid_for: None })
                });
                order.secrets = secrets;
            }
            Err(None) => return,
            Err(Some(failure)) => {
                self.report(matter, &failure, "woken").await;
                return;
            }
        }
        let (stages, mut stage) = watch::channel(Stage::CheckingOut);
        let tell_stages = async {
            // Stages are for people who watch: neither the host nor the end of the wake waits for one. One that is not recorded in time is
            // overtaken by the next.
            let mut told = WakeStage::Placed;
            self.stage(matter, told.clone()).await;
            while stage.changed().await.is_ok() {
                let reached = match &*stage.borrow_and_update() {
                    Stage::CheckingOut => WakeStage::CheckingOut,
                    Stage::Starting { .. } => WakeStage::Starting,
                    Stage::Probing { .. } => WakeStage::Probing,
                    Stage::Ready => break,
                };
                if told < reached {
                    told = reached;
                    self.stage(matter, told.clone()).await;
                }
            }
        };
        let (woken, ()) = tokio::join!(self.host.wake(order, stages), tell_stages);
        let (epoch, host) = (matter.epoch, self.machine.host);
        let report = match woken {
            Ok(awake) => RuntimeCommand::ReportReady {
                epoch,
                commit: awake.commit,
                host,
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
            // The wake goes on there, or does not; whoever hears of that host next finds out.
            Err(WakeFailure::OutOfReach) => return,
            Err(failure) => RuntimeCommand::ReportFailed { epoch, host, reason: failure.to_string() },
        };
        if !self.report(matter, &report, "woken").await {
            // The log refused it (put to sleep or given up meanwhile): the next comparison ends what runs.
            tracing::info!(workspace = %matter.workspace, epoch = epoch.0, "a finished wake was no longer wanted");
        }
    }

    /// The values that the services are given; what is told instead where there are none. `None`: the wake is not wanted any more.
    ///
    /// INVARIANT: which versions are given stands in the log before any of them is read.
    async fn secrets_of(
        &self,
        matter: Matter,
        consumed: Vec<ConsumedSecret>,
    ) -> Result<BTreeMap<String, Secret>, Option<RuntimeCommand>> {
        let (epoch, host) = (matter.epoch, self.machine.host);
        if consumed.is_empty() {
            return Ok(BTreeMap::new());
        }
        let failed = |reason: String| Some(RuntimeCommand::ReportFailed { epoch, host, reason });
        if consumed.len() > SECRETS_CONSUMED_MAX {
            return Err(failed(RuntimeRefusal::TooManySecrets { max: SECRETS_CONSUMED_MAX }.to_string()));
        }
        let Some(resolver) = &self.secrets else {
            return Err(failed("services declare secrets, and this host has no secret store".to_owned()));
        };
        let report = RuntimeCommand::ReportSecrets { epoch, host, consumed: consumed.clone() };
        if !self.report(matter, &report, "secrets").await {
            return Err(None);
        }
        let permit = system_permit(
            Component::RuntimeReactor,
            Action::SecretResolve,
            matter.resource,
            matter.position,
            self.clock.now(),
        )
        .map_err(|denial| failed(denial.to_string()))?;
        resolver.resolve(&permit, &consumed).await.map_err(|unresolved| match unresolved {
            Unresolved::Refused(refused) => Some(RuntimeCommand::ReportSecretsRefused { epoch, host, refused }),
            Unresolved::Store(error) => {
                tracing::warn!(workspace = %matter.workspace, %error, "secrets of a wake could not be had");
                failed(format!("secrets could not be had, and nothing was started: the store is {}", error.kind()))
            }
            Unresolved::Permit => failed("the policy does not allow to resolve secrets".to_owned()),
        })
    }

    pub(crate) async fn sleep(&self, matter: Matter) {
        if !self.end(matter.workspace, matter.epoch).await {
            // Something still runs: the next comparison tries again.
            return;
        }
        let report = RuntimeCommand::ReportSlept { epoch: matter.epoch, host: self.machine.host };
        self.report(matter, &report, "slept").await;
    }

    /// EnvForge stops: asks for the sleep itself, then does it.
    pub(crate) async fn sleep_at_shutdown(&self, matter: Matter) {
        let now = self.clock.now();
        let context = Context::caused_by(matter.commit, matter.correlation, "shutdown", now);
        let permit =
            system_permit(Component::RuntimeReactor, Action::RuntimeSleep, matter.resource, matter.position, now);
        if let Ok(permit) = permit
            && let Err(error) =
                runtimes::sleep(&self.commands, &permit, &context, matter.workspace, SleepCause::Shutdown).await
        {
            tracing::warn!(workspace = %matter.workspace, %error, "the sleep at shutdown was not recorded");
        }
        self.sleep(matter).await;
    }

    /// Ends, gives back and removes what the log no longer wants here, without a report: the log says so already.
    pub(crate) async fn clear(&self, matter: Matter, clearing: Clearing) -> Cleared {
        let mut cleared = Cleared::default();
        // INVARIANT: room is given back only once nothing runs in it.
        if let Some(epoch) = clearing.end
            && !self.end(matter.workspace, epoch).await
        {
            return cleared;
        }
        if clearing.release {
            match self.release(matter).await {
                Ok(position) => cleared.released_at = Some(position),
                Err(error) => {
                    tracing::warn!(workspace = %matter.workspace, %error, "room was not given back yet");
                    tokio::time::sleep(NOT_TAKEN_PAUSE).await;
                }
            }
        }
        if clearing.remove {
            match self.host.remove(matter.workspace).await {
                Ok(()) => cleared.removed = true,
                Err(failure) => {
                    tracing::warn!(workspace = %matter.workspace, %failure, "an archived workspace was not removed yet");
                }
            }
        }
        cleared
    }

    /// Records a fact, again and again until the log answers. `false` where the domain refused it.
    pub(crate) async fn report(&self, matter: Matter, report: &RuntimeCommand, purpose: &str) -> bool {
        let workspace = matter.workspace;
        // One id for all attempts: a lost acknowledgement must not become a second fact.
        let context = Context::caused_by(matter.commit, matter.correlation, purpose, self.clock.now());
        for attempt in 0..REPORT_ATTEMPTS_MAX {
            match self.send(matter, &context, report).await {
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

    /// Records a fact, once.
    pub(crate) async fn send(
        &self,
        matter: Matter,
        context: &Context,
        report: &RuntimeCommand,
    ) -> Result<(), CommandError> {
        let action = Runtime::action_of(report);
        let permit = system_permit(Component::RuntimeReactor, action, matter.resource, matter.position, context.now);
        let permit = match permit {
            Ok(permit) => permit,
            Err(denial) => {
                tracing::error!(%denial, "the policy does not allow the runtime reactor to report");
                return Ok(());
            }
        };
        runtimes::report(&self.commands, &permit, context, matter.workspace, report).await.map(drop)
    }

    async fn stage(&self, matter: Matter, stage: WakeStage) {
        let purpose = format!("stage {stage:?}");
        let report = RuntimeCommand::ReportStage { epoch: matter.epoch, stage };
        let context = Context::caused_by(matter.commit, matter.correlation, &purpose, self.clock.now());
        if let Err(error) = self.send(matter, &context, &report).await {
            tracing::debug!(workspace = %matter.workspace, %error, "a stage was not recorded");
        }
    }

    /// Ends a runtime and everything older of the workspace. `false` where something still runs.
    async fn end(&self, workspace: WorkspaceId, epoch: Epoch) -> bool {
        for attempt in 0..REPORT_ATTEMPTS_MAX {
            match self.host.sleep(workspace, epoch.0).await {
                Ok(()) => return true,
                Err(SleepFailure::OutOfReach) => return false,
                Err(failure) => {
                    tracing::warn!(%workspace, attempt, %failure, "a sleep did not end everything; trying again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
        false
    }

    /// Makes sure that this machine is a host of the workspace's organization, holds room for the workspace, and has the
    /// wake.
    ///
    /// INVARIANT: nothing is started before the last of these steps was accepted. Two hosts may hold room for a moment; the
    /// one that does not get the wake gives it back at its next comparison.
    async fn take(&self, matter: Matter, active: &ActiveWorkspace) -> Result<(), NotTaken> {
        let now = self.clock.now();
        let context = |purpose: &str| self.caused(matter, purpose);
        self.machine.belong_to(matter.resource.org(), &self.commands, (matter.position, now), context).await?;
        let permit =
            system_permit(Component::RuntimeReactor, Action::HostPlace, matter.resource, matter.position, now)?;
        let context = self.caused(matter, "place");
        let needs = needs(active);
        hosts::place(&self.commands, &permit, &context, self.machine.host, matter.workspace, needs).await?;
        let permit =
            system_permit(Component::RuntimeReactor, Action::RuntimeReport, matter.resource, matter.position, now)?;
        let choose = RuntimeCommand::ChooseHost { epoch: matter.epoch, host: self.machine.host };
        let context = self.caused(matter, "choose");
        runtimes::report(&self.commands, &permit, &context, matter.workspace, &choose).await?;
        Ok(())
    }

    async fn release(&self, matter: Matter) -> Result<Position, NotTaken> {
        let now = self.clock.now();
        let permit =
            system_permit(Component::RuntimeReactor, Action::HostPlace, matter.resource, matter.position, now)?;
        let context = self.caused(matter, "release");
        let host = self.machine.host;
        Ok(hosts::release(&self.commands, &permit, &context, host, matter.workspace).await?.position)
    }

    /// A request of its own with a cause. Whoever repeats it decides anew on what stands in the log then: unlike a report,
    /// room may be taken and given back several times for one and the same commit.
    fn caused(&self, matter: Matter, purpose: &str) -> Context {
        let now = self.clock.now();
        let fresh = Context::new(now);
        Context { command: fresh.command, ..Context::caused_by(matter.commit, matter.correlation, purpose, now) }
    }
}
