//! One service of one runtime: started, watched, its output copied, started again when it crashes.
//!
//! Not here: whether it is ready (`readiness`), and ending it: `running` ends all processes of a runtime together.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use envforge_domain::ids::WorkspaceId;
use envforge_domain::slug::ServiceName;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::accounts::{self, Names};
use crate::backoff::RestartBudget;
use crate::config::Config;
use crate::environment::Environment;
use crate::output::{self, RotatingFile};
use crate::process::{self, Ended, Leader};
use crate::record::RunningRecord;
use crate::report::{Report, Reports};
use crate::unix_user::UnixUser;

/// For what is left of a crashed service before it is started again.
const LEFTOVER_GRACE: Duration = Duration::from_secs(1);
/// For the last output of a service whose processes have all ended.
const LAST_OUTPUT_WAIT: Duration = Duration::from_secs(1);

/// How to start one service.
pub(crate) struct ServicePlan {
    pub(crate) name: ServiceName,
    pub(crate) command: String,
    pub(crate) directory: PathBuf,
    pub(crate) environment: Environment,
    /// Its own, where services have their own.
    pub(crate) user: Option<UnixUser>,
    /// Where that user has a name.
    pub(crate) names: Option<Names>,
}

/// What the services of one runtime share.
#[derive(Clone)]
pub(crate) struct Supervision {
    pub(crate) config: Arc<Config>,
    pub(crate) workspace: WorkspaceId,
    pub(crate) epoch: u64,
    pub(crate) record: RunningRecord,
    pub(crate) output: PathBuf,
    pub(crate) reports: Reports,
    pub(crate) stop: Stop,
    /// True from the moment when every service was ready. Until then an end is final.
    pub(crate) ready: watch::Receiver<bool>,
    pub(crate) given_up: mpsc::Sender<GivenUp>,
}

/// How the services of a runtime are told to stop. Clones are one.
#[derive(Clone, Default)]
pub(crate) struct Stop {
    asked: CancellationToken,
    ended: CancellationToken,
    starting: Arc<Mutex<()>>,
}

impl Stop {
    /// Before processes are ended, so that an end is not taken for a crash.
    ///
    /// INVARIANT: after this, no service starts another process; what had been started can be found.
    pub(crate) fn ask(&self) {
        let _none_starts = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        self.asked.cancel();
    }

    /// After their processes have been ended: supervisors may let go of what holds their groups together.
    pub(crate) fn tell_ended(&self) {
        self.ended.cancel();
    }

    async fn asked(&self) {
        self.asked.cancelled().await;
    }

    /// Starts a process unless the runtime is being stopped.
    fn unless_asked<T>(&self, start: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let _not_asked_meanwhile = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        if self.asked.is_cancelled() {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "the runtime is being stopped"));
        }
        start()
    }
}

/// A service whose restart budget is spent.
pub(crate) struct GivenUp {
    pub(crate) service: ServiceName,
    pub(crate) reason: String,
}

#[derive(Clone)]
pub(crate) enum Life {
    Starting,
    Running,
    NotStarted(String),
    Exited(String),
}

/// A service that is looked after. Dropping it kills the service.
pub(crate) struct Supervised {
    pub(crate) name: ServiceName,
    pub(crate) life: watch::Receiver<Life>,
    pub(crate) task: AbortOnDropHandle<()>,
}

impl Supervision {
    /// Holds the group together until its members have been ended.
    async fn let_go(&self, leader: Option<Leader>) {
        self.stop.ended.cancelled().await;
        if let Some(leader) = leader {
            leader.reap().await;
        }
    }
}

impl ServicePlan {
    pub(crate) fn start(self, supervision: Supervision) -> Supervised {
        let (life, seen) = watch::channel(Life::Starting);
        let name = self.name.clone();
        let task = AbortOnDropHandle::new(tokio::spawn(self.supervise(supervision, life)));
        Supervised { name, life: seen, task }
    }

    async fn supervise(self, supervision: Supervision, life: watch::Sender<Life>) {
        let mut budget = RestartBudget::new(&supervision.config);
        let mut ready = supervision.ready.clone();
        loop {
            let (status, leader) = match self.run(&supervision, &life).await {
                Ok((status, leader)) => {
                    life.send_replace(Life::Exited(status.clone()));
                    (status, Some(leader))
                }
                Err(error) => {
                    let reason = error.to_string();
                    life.send_replace(Life::NotStarted(reason.clone()));
                    (reason, None)
                }
            };
            // Before the runtime is ready the wake decides; it stops us or makes the runtime ready.
            let over = tokio::select! {
                biased;
                () = supervision.stop.asked() => true,
                ready = ready.wait_for(|ready| *ready) => ready.is_err(),
            };
            if over {
                return supervision.let_go(leader).await;
            }
            let Some(delay) = budget.spend(Instant::now()) else {
                let restarts = supervision.config.restarts_max;
                let reason = format!("it ended with {status} after {restarts} restarts within the window");
                // One message per service and room for each: never full. Nobody listens when the runtime is ending.
                supervision.given_up.try_send(GivenUp { service: self.name.clone(), reason }).ok();
                return supervision.let_go(leader).await;
            };
            tracing::warn!(workspace = %supervision.workspace, service = %self.name, status, "a service ended and is started again");
            tokio::select! {
                biased;
                () = supervision.stop.asked() => return supervision.let_go(leader).await,
                () = self.clear_and_wait(&supervision, leader.as_ref(), delay) => {}
            }
            if let Some(leader) = leader {
                leader.reap().await;
            }
            metrics::counter!("service_restarts_total").increment(1);
            supervision.reports.push(Report::ServiceRestarted {
                workspace: supervision.workspace,
                epoch: supervision.epoch,
                service: self.name.clone(),
                status,
            });
        }
    }

    /// What the crashed service left behind would hold its port.
    async fn clear_and_wait(&self, supervision: &Supervision, leader: Option<&Leader>, delay: Duration) {
        let mut family = supervision.record.family_of(self.name.as_str());
        family.groups.extend(leader.and_then(Leader::identity));
        if let Err(survivors) = family.end(LEFTOVER_GRACE).await {
            tracing::warn!(service = %self.name, count = survivors.count, "processes of a crashed service do not end");
        }
        tokio::time::sleep(delay).await;
    }

    /// Runs the service once; how it ended, and what holds its group together.
    async fn run(&self, supervision: &Supervision, life: &watch::Sender<Life>) -> io::Result<(String, Leader)> {
        let (mut leader, output) = self.spawn(supervision)?;
        if let Some(identity) = leader.identity()
            && let Err(error) = supervision.record.add_group(identity).await
        {
            // The marker finds it all the same; the group is for members that hide it.
            tracing::warn!(%error, "a process group could not be recorded");
        }
        life.send_replace(Life::Running);
        let status = leader.ended().await?;
        // A process that left the group may hold the pipe for as long as it lives, hence the bound.
        let _ = tokio::time::timeout(LAST_OUTPUT_WAIT, output).await;
        Ok((Ended(status).to_string(), leader))
    }

    fn spawn(&self, supervision: &Supervision) -> io::Result<(Leader, AbortOnDropHandle<()>)> {
        let file = RotatingFile::open(&supervision.output, self.name.as_str(), &supervision.config)?;
        let (reader, writer) = io::pipe()?;
        if let Some(user) = self.user {
            // So that it can open its output by name, as `/dev/stderr`.
            user.own(&writer)?;
        }
        let mut command = process::shell(&self.command, &self.directory, &self.environment, self.user);
        command.stdout(Stdio::from(writer.try_clone()?)).stderr(Stdio::from(writer));
        let source = Receiver::from_owned_fd(reader.into())?;
        let child = supervision.stop.unless_asked(|| accounts::start(&mut command, self.names.as_ref()))?;
        // The command still holds the pipe's other end; with it open the copy would never end.
        drop(command);
        Ok((Leader::new(child), AbortOnDropHandle::new(tokio::spawn(output::copy(source, file)))))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::record::Records;

    #[tokio::test]
    async fn a_service_whose_runtime_is_being_stopped_starts_no_process() {
        let directory = tempfile::tempdir().unwrap();
        let workspace = WorkspaceId::from_uuid(uuid::Uuid::from_u128(1));
        let records = Records::in_directory(directory.path().to_owned());
        let plan = ServicePlan {
            name: "app".parse().unwrap(),
            command: "echo started > started; exec sleep 1000".to_owned(),
            directory: directory.path().to_owned(),
            environment: Environment::default(),
            user: None,
            names: None,
        };
        let stop = Stop::default();
        stop.ask();
        let supervision = Supervision {
            config: Arc::new(Config::new(directory.path())),
            workspace,
            epoch: 1,
            record: RunningRecord::begin(records, workspace, 1, "boot".to_owned(), None, None).await.unwrap(),
            output: directory.path().to_owned(),
            reports: Reports::new(8),
            stop: stop.clone(),
            ready: watch::channel(false).1,
            given_up: mpsc::channel(1).0,
        };
        let mut service = plan.start(supervision);
        let life = service.life.wait_for(|life| !matches!(life, Life::Starting)).await.unwrap().clone();
        assert!(matches!(life, Life::NotStarted(_)), "it runs");
        assert!(!directory.path().join("started").exists());
        stop.tell_ended();
        service.task.await.unwrap();
    }
}
