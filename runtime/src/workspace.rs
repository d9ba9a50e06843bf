//! One workspace on this host: an actor that takes wakes and sleeps one after the other, so that they never overlap.
//!
//! Not here: other workspaces (`host` has one actor for each), what a wake does (`wake`), what an end does (`running`).

use std::path::PathBuf;
use std::sync::Arc;

use envforge_domain::ids::WorkspaceId;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::environment::Environment;
use crate::failure::{SleepFailure, WakeFailure};
use crate::order::{Awake, Stage, WakeOrder};
use crate::process::{self, Family};
use crate::record::{Record, RunningRecord, blocking};
use crate::report::Report;
use crate::running::Running;
use crate::service::GivenUp;
use crate::wake::{self, Failed, Host, Stages};

/// Requests that wait while the actor ends something.
pub(crate) const MESSAGES_MAX: usize = 64;
/// Callers that wait for one wake.
const WAITERS_MAX: usize = 1024;

type WakeReply = oneshot::Sender<Result<Awake, WakeFailure>>;

pub(crate) enum Message {
    Wake {
        order: Box<WakeOrder>,
        stages: watch::Sender<Stage>,
        reply: WakeReply,
    },
    Sleep {
        epoch: u64,
        reply: oneshot::Sender<Result<(), SleepFailure>>,
    },
    /// What a job needs, where the runtime is up.
    Job {
        reply: oneshot::Sender<Option<JobPlace>>,
    },
    /// Ends and forgets everything of the workspace on this host, its data too.
    Remove {
        reply: oneshot::Sender<Result<(), SleepFailure>>,
    },
    /// Ends what runs; the actor ends with it.
    Shutdown {
        reply: oneshot::Sender<()>,
    },
}

/// Where a job runs, with whose record.
pub(crate) struct JobPlace {
    pub(crate) directory: PathBuf,
    pub(crate) environment: Environment,
    pub(crate) record: RunningRecord,
}

pub(crate) struct Workspace {
    host: Arc<Host>,
    id: WorkspaceId,
    phase: Phase,
    /// The last epoch that must not wake again.
    over: Option<u64>,
    up: watch::Sender<Option<u64>>,
    /// Of the newest wake that got ready.
    commit: watch::Sender<Option<String>>,
}

enum Phase {
    Asleep,
    Waking(Waking),
    Up(Box<Up>),
    /// Processes that did not end by SIGKILL; each further request tries again.
    Stuck(Family),
}

struct Waking {
    epoch: u64,
    task: JoinHandle<Result<(Running, Awake), Failed>>,
    cancel: CancellationToken,
    stages: Stages,
    waiters: Vec<WakeReply>,
    started: Instant,
}

struct Up {
    epoch: u64,
    running: Running,
    awake: Awake,
}

enum Event {
    Message(Option<Message>),
    WakeEnded(Result<(Running, Awake), Failed>),
    GaveUp(GivenUp),
}

impl Workspace {
    pub(crate) fn start(
        host: Arc<Host>,
        id: WorkspaceId,
        over: Option<u64>,
    ) -> (mpsc::Sender<Message>, watch::Receiver<Option<u64>>, watch::Receiver<Option<String>>) {
        let (sender, messages) = mpsc::channel(MESSAGES_MAX);
        let (up, seen) = watch::channel(None);
        let (commit, checked_out) = watch::channel(None);
        tokio::spawn(Self { host, id, phase: Phase::Asleep, over, up, commit }.run(messages));
        (sender, seen, checked_out)
    }

    async fn run(mut self, mut messages: mpsc::Receiver<Message>) {
        loop {
            let event = match &mut self.phase {
                Phase::Asleep | Phase::Stuck(_) => Event::Message(messages.recv().await),
                Phase::Waking(waking) => tokio::select! {
                    ended = &mut waking.task => Event::WakeEnded(settle(ended)),
                    message = messages.recv() => Event::Message(message),
                },
                Phase::Up(up) => tokio::select! {
                    Some(given_up) = up.running.given_up.recv() => Event::GaveUp(given_up),
                    message = messages.recv() => Event::Message(message),
                },
            };
            match event {
                Event::WakeEnded(result) => self.finish_wake(result).await,
                Event::GaveUp(given_up) => self.fail(given_up).await,
                Event::Message(Some(Message::Wake { order, stages, reply })) => self.wake(*order, stages, reply).await,
                Event::Message(Some(Message::Sleep { epoch, reply })) => {
                    // A caller that went away still gets its sleep.
                    let _ = reply.send(self.sleep(epoch).await);
                }
                Event::Message(Some(Message::Job { reply })) => {
                    let _ = reply.send(self.job_place());
                }
                Event::Message(Some(Message::Remove { reply })) => {
                    let _ = reply.send(self.remove().await);
                }
                Event::Message(Some(Message::Shutdown { reply })) => {
                    self.shut_down().await;
                    let _ = reply.send(());
                    return;
                }
                // Every handle of the host is gone.
                Event::Message(None) => return self.shut_down().await,
            }
        }
    }

    fn set_up(&self, epoch: Option<u64>) {
        if self.up.send_replace(epoch) != epoch {
            self.host.changes.send_modify(|changes| *changes += 1);
        }
    }

    fn job_place(&self) -> Option<JobPlace> {
        let Phase::Up(up) = &self.phase else { return None };
        let (directory, environment) = up.running.jobs.clone()?;
        Some(JobPlace { directory, environment, record: up.running.record.clone() })
    }

    fn epoch(&self) -> Option<u64> {
        match &self.phase {
            Phase::Asleep | Phase::Stuck(_) => None,
            Phase::Waking(waking) => Some(waking.epoch),
            Phase::Up(up) => Some(up.epoch),
        }
    }

    async fn wake(&mut self, order: WakeOrder, stages: watch::Sender<Stage>, reply: WakeReply) {
        let epoch = order.epoch;
        let newest = self.over.max(self.epoch());
        if let Some(current) = newest
            && (epoch < current || self.over == Some(epoch))
        {
            let _ = reply.send(Err(WakeFailure::Stale { epoch, current }));
            return;
        }
        match &mut self.phase {
            Phase::Waking(waking) if waking.epoch == epoch => {
                waking.waiters.retain(|waiter| !waiter.is_closed());
                if waking.waiters.len() >= WAITERS_MAX {
                    let _ = reply.send(Err(WakeFailure::TooManyWaiters { max: WAITERS_MAX }));
                } else {
                    waking.stages.join(stages);
                    waking.waiters.push(reply);
                }
                return;
            }
            Phase::Up(up) if up.epoch == epoch => {
                stages.send_replace(Stage::Ready);
                let _ = reply.send(Ok(up.awake.clone()));
                return;
            }
            Phase::Asleep | Phase::Waking(_) | Phase::Up(_) | Phase::Stuck(_) => {}
        }
        // What an older epoch runs ends first.
        if let Err(count) = self.end(true).await {
            let _ = reply.send(Err(WakeFailure::Survivors { count }));
            return;
        }
        let (stages, cancel) = (Stages::new(stages), CancellationToken::new());
        let task = tokio::spawn(wake::wake(Arc::clone(&self.host), order, stages.clone(), cancel.clone()));
        self.phase =
            Phase::Waking(Waking { epoch, task, cancel, stages, waiters: vec![reply], started: Instant::now() });
    }

    async fn finish_wake(&mut self, result: Result<(Running, Awake), Failed>) {
        let Phase::Waking(waking) = std::mem::replace(&mut self.phase, Phase::Asleep) else {
            unreachable!("only a wake that goes on can end");
        };
        let outcome = match &result {
            Ok(_) => "ready",
            Err(failed) => failed.failure.kind(),
        };
        metrics::counter!("wakes_total", "outcome" => outcome).increment(1);
        metrics::histogram!("wake_seconds", "outcome" => outcome).record(waking.started.elapsed().as_secs_f64());
        let answer = match result {
            Ok((running, awake)) => {
                self.phase = Phase::Up(Box::new(Up { epoch: waking.epoch, running, awake: awake.clone() }));
                self.commit.send_replace(Some(awake.commit.clone()));
                self.set_up(Some(waking.epoch));
                Ok(awake)
            }
            Err(Failed { failure, stuck: Some(family) }) => {
                self.phase = Phase::Stuck(family);
                Err(failure)
            }
            Err(Failed { failure, stuck: None }) => {
                // This epoch may be tried again; those that were over before stay so.
                if let Err(error) = self.record(self.over).await {
                    tracing::warn!(workspace = %self.id, %error, "the record of a failed wake could not be closed");
                }
                Err(failure)
            }
        };
        for waiter in waking.waiters {
            // A caller that went away is not an error: the runtime stays under this actor's control.
            let _ = waiter.send(answer.clone());
        }
    }

    async fn fail(&mut self, given_up: GivenUp) {
        let Some(epoch) = self.epoch() else { return };
        self.set_up(None);
        self.over = self.over.max(Some(epoch));
        self.host.reports.push(Report::RuntimeFailed {
            workspace: self.id,
            epoch,
            service: given_up.service,
            reason: given_up.reason,
        });
        if let Err(count) = self.end(false).await {
            tracing::error!(workspace = %self.id, count, "processes of a failed runtime do not end");
            return;
        }
        if let Err(error) = self.record(self.over).await {
            tracing::warn!(workspace = %self.id, %error, "the record of a failed runtime could not be closed");
        }
    }

    async fn sleep(&mut self, epoch: u64) -> Result<(), SleepFailure> {
        if self.epoch().is_some_and(|current| current > epoch) {
            // A late order for an epoch that a newer one has ended already.
            return Ok(());
        }
        let closed = self.over.is_some_and(|over| over >= epoch);
        if closed && matches!(self.phase, Phase::Asleep) {
            return Ok(());
        }
        self.over = self.over.max(Some(epoch));
        self.end(true).await.map_err(|count| SleepFailure::Survivors { count })?;
        self.record(self.over).await.map_err(|error| SleepFailure::State { reason: error.to_string() })
    }

    async fn remove(&mut self) -> Result<(), SleepFailure> {
        self.end(true).await.map_err(|count| SleepFailure::Survivors { count })?;
        let (place, id, users) = (self.host.place(self.id), self.id, self.host.users.clone());
        let known = users.as_ref().map(|users| users.known(id)).transpose();
        let known = known.map_err(|error| SleepFailure::State { reason: error.to_string() })?.flatten();
        if let Some(block) = known {
            // Its shell's too: its ids may be somebody else's soon.
            let ended = process::end_users(&block).await;
            ended.map_err(|survivors| SleepFailure::Survivors { count: survivors.count })?;
        }
        blocking(move || {
            match std::fs::remove_dir_all(place) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            users.map_or(Ok(()), |users| users.release(id))
        })
        .await
        .map_err(|error| SleepFailure::State { reason: error.to_string() })?;
        self.record(self.over).await.map_err(|error| SleepFailure::State { reason: error.to_string() })
    }

    async fn shut_down(&mut self) {
        // The epoch is not over: the control plane may wake it again on the next start of this host.
        match self.end(true).await {
            Ok(()) => {
                if let Err(error) = self.record(self.over).await {
                    tracing::warn!(workspace = %self.id, %error, "the record could not be closed");
                }
            }
            Err(count) => {
                tracing::error!(workspace = %self.id, count, "processes do not end; the next start tries again")
            }
        }
    }

    /// Ends whatever there is, with or without the hook. The number of processes that survive SIGKILL otherwise.
    async fn end(&mut self, with_hook: bool) -> Result<(), usize> {
        self.set_up(None);
        if let Phase::Waking(waking) = &mut self.phase {
            waking.cancel.cancel();
            let ended = settle((&mut waking.task).await);
            self.finish_wake(ended).await;
            // It may have become ready in the same moment.
            self.set_up(None);
        }
        let (family, ended) = match std::mem::replace(&mut self.phase, Phase::Asleep) {
            Phase::Asleep | Phase::Waking(_) => return Ok(()),
            Phase::Up(mut up) => {
                let ended = if with_hook { up.running.sleep().await } else { up.running.end().await };
                (up.running.family(), ended)
            }
            Phase::Stuck(family) => {
                let ended = family.end(std::time::Duration::ZERO).await.map(drop);
                (family, ended)
            }
        };
        ended.map_err(|survivors| {
            self.phase = Phase::Stuck(family);
            survivors.count
        })
    }

    async fn record(&self, over: Option<u64>) -> std::io::Result<()> {
        let (records, id) = (self.host.records.clone(), self.id);
        blocking(move || match over {
            Some(epoch) => records.write(id, &Record::Over { epoch }),
            None => records.remove(id),
        })
        .await
    }
}

fn settle(ended: Result<Result<(Running, Awake), Failed>, tokio::task::JoinError>) -> Result<(Running, Awake), Failed> {
    ended.unwrap_or_else(|error| {
        Err(WakeFailure::State { reason: format!("the wake ended unexpectedly: {error}") }.into())
    })
}
