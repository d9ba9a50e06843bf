//! One service of one runtime: started, watched, its output copied, started again when it crashes.
//!
//! Not here: whether it is ready (`readiness`), and ending it: `running` ends all processes of a runtime together.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use envforge_domain::ids::WorkspaceId;
use envforge_domain::slug::ServiceName;
use tokio::net::unix::pipe::Receiver;
use tokio::process::Child;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::backoff::RestartBudget;
use crate::config::Config;
use crate::environment::Environment;
use crate::output::{self, RotatingFile};
use crate::process::{self, Ended, Identity};
use crate::record::RunningRecord;
use crate::report::{Report, Reports};

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
    /// Cancelled before processes are ended, so that an end is not taken for a crash.
    pub(crate) stop: CancellationToken,
    /// True from the moment when every service was ready. Until then an end is final.
    pub(crate) ready: watch::Receiver<bool>,
    pub(crate) given_up: mpsc::Sender<GivenUp>,
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

impl ServicePlan {
    pub(crate) fn start(self, supervision: Supervision) -> Supervised {
        let (life, seen) = watch::channel(Life::Starting);
        let name = self.name.clone();
        let task = AbortOnDropHandle::new(tokio::spawn(self.supervise(supervision, life)));
        Supervised { name, life: seen, task }
    }

    async fn supervise(self, mut supervision: Supervision, life: watch::Sender<Life>) {
        let mut budget = RestartBudget::new(&supervision.config);
        loop {
            let status = match self.run(&supervision, &life).await {
                Ok(status) => {
                    life.send_replace(Life::Exited(status.clone()));
                    status
                }
                Err(error) => {
                    let reason = error.to_string();
                    life.send_replace(Life::NotStarted(reason.clone()));
                    reason
                }
            };
            // Before the runtime is ready the wake decides; it stops us or makes the runtime ready.
            tokio::select! {
                biased;
                () = supervision.stop.cancelled() => return,
                ready = supervision.ready.wait_for(|ready| *ready) => if ready.is_err() { return },
            }
            let Some(delay) = budget.spend(Instant::now()) else {
                let restarts = supervision.config.restarts_max;
                let reason = format!("it ended with {status} after {restarts} restarts within the window");
                // One message per service and room for each: never full. Nobody listens when the runtime is ending.
                supervision.given_up.try_send(GivenUp { service: self.name.clone(), reason }).ok();
                return;
            };
            tracing::warn!(workspace = %supervision.workspace, service = %self.name, status, "a service ended and is started again");
            tokio::select! {
                () = supervision.stop.cancelled() => return,
                () = self.clear_and_wait(&supervision, delay) => {}
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
    async fn clear_and_wait(&self, supervision: &Supervision, delay: Duration) {
        let family = supervision.record.family_of(self.name.as_str());
        if let Err(survivors) = family.end(LEFTOVER_GRACE).await {
            tracing::warn!(service = %self.name, count = survivors.count, "processes of a crashed service do not end");
        }
        tokio::time::sleep(delay).await;
    }

    /// Runs the service once; how it ended.
    async fn run(&self, supervision: &Supervision, life: &watch::Sender<Life>) -> io::Result<String> {
        let (mut child, output) = self.spawn(supervision)?;
        if let Some(leader) = child.id().and_then(Identity::of)
            && let Err(error) = supervision.record.add_group(leader).await
        {
            // The marker finds it all the same; the group is for members that hide it.
            tracing::warn!(%error, "a process group could not be recorded");
        }
        life.send_replace(Life::Running);
        let status = child.wait().await?;
        // A process that left the group may hold the pipe for as long as it lives, hence the bound.
        let _ = tokio::time::timeout(LAST_OUTPUT_WAIT, output).await;
        Ok(Ended(status).to_string())
    }

    fn spawn(&self, supervision: &Supervision) -> io::Result<(Child, AbortOnDropHandle<()>)> {
        let file = RotatingFile::open(&supervision.output, self.name.as_str(), &supervision.config)?;
        let (reader, writer) = io::pipe()?;
        let mut command = process::shell(&self.command, &self.directory, &self.environment);
        command.stdout(Stdio::from(writer.try_clone()?)).stderr(Stdio::from(writer));
        let source = Receiver::from_owned_fd(reader.into())?;
        let child = command.spawn()?;
        // The command still holds the pipe's other end; with it open the copy would never end.
        drop(command);
        Ok((child, AbortOnDropHandle::new(tokio::spawn(output::copy(source, file)))))
    }
}
