//! A runtime that may have processes: from the first service's start until nothing of it is left.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use envforge_domain::limits;
use envforge_domain::manifest::Hook;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use crate::accounts::{self, Names};
use crate::config::Config;
use crate::environment::Environment;
use crate::output::{self, RotatingFile};
use crate::port::ReservedPort;
use crate::process::{self, Ended, Family, Leader, Survivors};
use crate::record::RunningRecord;
use crate::service::{GivenUp, Stop, Supervised};
use crate::unix_user::UnixUser;

/// For supervisors to notice that their processes are gone.
const SUPERVISOR_WAIT: Duration = Duration::from_secs(3);
/// The file of the hook's output. No service can have this name: it holds `_`.
const HOOK_OUTPUT: &str = "on_sleep";

/// Runs once before the services are stopped.
pub(crate) struct SleepHook {
    pub(crate) hook: Hook,
    pub(crate) directory: PathBuf,
    pub(crate) environment: Environment,
    /// The shell's, where services have their own.
    pub(crate) user: Option<UnixUser>,
    /// Where that user has a name.
    pub(crate) names: Option<Names>,
}

pub(crate) struct Running {
    pub(crate) config: Arc<Config>,
    pub(crate) record: RunningRecord,
    pub(crate) output: PathBuf,
    pub(crate) services: Vec<Supervised>,
    pub(crate) ports: Vec<ReservedPort>,
    pub(crate) stop: Stop,
    pub(crate) ready: watch::Sender<bool>,
    pub(crate) given_up: mpsc::Receiver<GivenUp>,
    pub(crate) hook: Option<SleepHook>,
    /// Where jobs run, and in which environment.
    pub(crate) jobs: Option<(PathBuf, Environment)>,
    pub(crate) _room: OwnedSemaphorePermit,
}

impl Running {
    pub(crate) fn family(&self) -> Family {
        self.record.family()
    }

    /// The hook, then SIGTERM, then SIGKILL. Nothing of the runtime survives an `Ok`.
    pub(crate) async fn sleep(&mut self) -> Result<(), Survivors> {
        let mut leader = None;
        if let Some(hook) = self.hook.take() {
            let outcome = self.run_hook(&hook, &mut leader).await;
            metrics::counter!("on_sleep_total", "outcome" => outcome).increment(1);
        }
        self.end().await?;
        if let Some(leader) = leader {
            leader.reap().await;
        }
        Ok(())
    }

    /// Without the hook: for wakes that did not succeed and runtimes that failed.
    pub(crate) async fn end(&mut self) -> Result<(), Survivors> {
        self.stop.ask();
        let ended = self.family().end(self.config.stop_grace).await;
        self.stop.tell_ended();
        for service in std::mem::take(&mut self.services) {
            if tokio::time::timeout(SUPERVISOR_WAIT, service.task).await.is_err() {
                tracing::warn!(service = %service.name, "a service's supervisor did not end in time and was aborted");
            }
        }
        self.ports.clear();
        ended?;
        // A supervisor that was aborted has killed its first process alone, and what restarts a service may have been half
        // done: nothing is taken on trust.
        self.family().end(Duration::ZERO).await.map(drop)
    }

    /// `started` holds the hook's group together until its members have been ended.
    async fn run_hook(&self, hook: &SleepHook, started: &mut Option<Leader>) -> &'static str {
        let limit = hook.hook.deadline.to_duration().min(limits::ON_SLEEP_MAX.to_duration());
        let mut command = process::shell(&hook.hook.command, &hook.directory, &hook.environment, hook.user);
        let mut copier = None;
        let file = RotatingFile::open(&self.output, HOOK_OUTPUT, &self.config);
        if let (Ok(file), Ok((reader, writer))) = (file, std::io::pipe())
            && let (Ok(source), Ok(errors)) =
                (tokio::net::unix::pipe::Receiver::from_owned_fd(reader.into()), writer.try_clone())
        {
            if let Some(user) = hook.user
                && let Err(error) = user.own(&writer)
            {
                tracing::warn!(%error, "on_sleep cannot open its output by name");
            }
            command.stdout(writer).stderr(errors);
            copier = Some(AbortOnDropHandle::new(tokio::spawn(output::copy(source, file))));
        }
        let leader = match accounts::start(&mut command, hook.names.as_ref()) {
            Ok(child) => started.insert(Leader::new(child)),
            Err(error) => {
                tracing::warn!(%error, "on_sleep could not be started");
                return "not_started";
            }
        };
        drop(command);
        if let Some(identity) = leader.identity()
            && let Err(error) = self.record.add_group(identity).await
        {
            tracing::warn!(%error, "a process group could not be recorded");
        }
        let outcome = match tokio::time::timeout(limit, leader.ended()).await {
            Ok(Ok(status)) if status.success() => "succeeded",
            Ok(Ok(status)) => {
                tracing::warn!(status = %Ended(status), "on_sleep failed; the workspace goes to sleep all the same");
                "failed"
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "on_sleep could not be waited for");
                "failed"
            }
            Err(_) => {
                tracing::warn!(limit_ms = limit.as_millis(), "on_sleep took too long and is ended with the services");
                "too_slow"
            }
        };
        // What it left behind is ended with everything else; its last words are not worth a wait.
        if let Some(copier) = copier
            && outcome != "too_slow"
        {
            let _ = tokio::time::timeout(Duration::from_millis(500), copier).await;
        }
        outcome
    }
}
