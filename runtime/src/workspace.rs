//! One workspace on this host: an actor that takes wakes and sleeps one after the other, so that they never overlap.
//!
//! Not here: other workspaces (`host` has one actor for each), what a wake does (`wake`), what an end does (`running`).

use std::path::PathBuf;
use std::sync::Arc;

use envforge_domain::ids::WorkspaceId;
use tokio::sync::{RwLock, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::environment::Environment;
use crate::failure::{SleepFailure, WakeFailure};
use crate::kept::{self, Found, Happened, Kept, KeptRecord};
use crate::order::{Awake, Stage, WakeOrder};
use crate::process::{self, Family, Identity, Survivors};
use crate::record::{Record, RunningRecord, blocking};
use crate::report::Report;
use crate::running::Running;
use crate::service::GivenUp;
use crate::wake::{self, Failed, Runtimes, Stages};

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
    /// Leaves alone what a keeper holds and ends what none does; the actor ends with it.
    Leave {
        reply: oneshot::Sender<()>,
    },
}

/// Where a job runs, with whose record.
pub(crate) struct JobPlace {
    pub(crate) directory: PathBuf,
    pub(crate) environment: Environment,
    pub(crate) record: RecordOfRuntime,
    pub(crate) standing: Standing,
}

/// Whether a runtime is up, for whoever starts something in it.
///
/// INVARIANT: what is started while this is held, and was found `true`, ends with the runtime: the end waits for it. Afterwards
/// nothing is started.
pub(crate) type Standing = Arc<RwLock<bool>>;

/// By what a runtime's jobs are found.
pub(crate) enum RecordOfRuntime {
    Here(RunningRecord),
    Kept(KeptRecord),
}

impl RecordOfRuntime {
    pub(crate) fn family_of(&self, service: &str) -> Family {
        match self {
            Self::Here(record) => record.family_of(service),
            Self::Kept(record) => record.family_of(service),
        }
    }

    pub(crate) async fn add_group(&self, leader: Identity) -> std::io::Result<()> {
        match self {
            Self::Here(record) => record.add_group(leader).await,
            Self::Kept(record) => record.add_group(leader).await,
        }
    }
}

pub(crate) struct Workspace {
    host: Arc<Runtimes>,
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
    task: JoinHandle<Woken>,
    cancel: CancellationToken,
    stages: Stages,
    waiters: Vec<WakeReply>,
    started: Instant,
}

struct Up {
    epoch: u64,
    runtime: Runtime,
    awake: Awake,
    standing: Standing,
}

impl Up {
    fn new(epoch: u64, runtime: Runtime, awake: Awake) -> Box<Self> {
        Box::new(Self { epoch, runtime, awake, standing: Arc::new(RwLock::new(true)) })
    }
}

type Woken = Result<(Runtime, Awake), Failed>;

/// A runtime that may have processes, and who holds them.
enum Runtime {
    /// This process.
    Here(Box<Running>),
    Kept(Box<Kept>),
}

impl Runtime {
    /// Until it has something to tell. Safe to cancel.
    async fn next(&mut self) -> Happened {
        match self {
            Self::Here(running) => match running.given_up.recv().await {
                Some(given_up) => Happened::GaveUp(given_up),
                None => std::future::pending().await,
            },
            Self::Kept(kept) => kept.next().await,
        }
    }

    async fn end(&mut self, with_hook: bool) -> Result<(), Survivors> {
        match self {
            Self::Here(running) if with_hook => running.sleep().await,
            Self::Here(running) => running.end().await,
            Self::Kept(kept) => kept.end(with_hook).await,
        }
    }

    fn family(&self) -> Family {
        match self {
            Self::Here(running) => running.family(),
            Self::Kept(kept) => kept.family(),
        }
    }

    fn job_place(&self, standing: Standing) -> Option<JobPlace> {
        let (jobs, record) = match self {
            Self::Here(running) => (running.jobs.clone(), RecordOfRuntime::Here(running.record.clone())),
            Self::Kept(kept) => (kept.jobs.clone(), RecordOfRuntime::Kept(kept.record.clone())),
        };
        let (directory, environment) = jobs?;
        Some(JobPlace { directory, environment, record, standing })
    }
}

enum Event {
    Message(Option<Message>),
    WakeEnded(Woken),
    Happened(Happened),
}

/// How an actor is reached, and what it has up, of which commit.
pub(crate) struct Started {
    pub(crate) messages: mpsc::Sender<Message>,
    pub(crate) up: watch::Receiver<Option<u64>>,
    pub(crate) commit: watch::Receiver<Option<String>>,
}

impl Workspace {
    /// `found`: what an earlier process of this host had started, of this epoch.
    pub(crate) fn start(
        host: Arc<Runtimes>,
        id: WorkspaceId,
        over: Option<u64>,
        found: Option<(u64, Found)>,
    ) -> Started {
        let (sender, messages) = mpsc::channel(MESSAGES_MAX);
        let (up, seen) = watch::channel(None);
        let (commit, checked_out) = watch::channel(None);
        let mut actor = Self { host, id, phase: Phase::Asleep, over, up, commit };
        if let Some((epoch, found)) = found {
            actor.take_over(epoch, found);
        }
        tokio::spawn(actor.run(messages));
        Started { messages: sender, up: seen, commit: checked_out }
    }

    fn take_over(&mut self, epoch: u64, found: Found) {
        match found {
            Found::Up(kept, awake) => {
                self.commit.send_replace(Some(awake.commit.clone()));
                self.phase = Phase::Up(Up::new(epoch, Runtime::Kept(Box::new(kept)), awake));
                self.set_up(Some(epoch));
            }
            Found::Waking(kept) => {
                let (stages, cancel) = (Stages::new(watch::channel(Stage::CheckingOut).0), CancellationToken::new());
                let following = kept::follow(kept, stages.clone(), cancel.clone());
                let task = tokio::spawn(async move { following.await.map(kept_here) });
                let (waiters, started) = (Vec::new(), Instant::now());
                self.phase = Phase::Waking(Waking { epoch, task, cancel, stages, waiters, started });
            }
        }
    }

    async fn run(mut self, mut messages: mpsc::Receiver<Message>) {
        loop {
            let event = match &mut self.phase {
                Phase::Asleep | Phase::Stuck(_) => Event::Message(messages.recv().await),
                Phase::Waking(waking) => tokio::select! {
                    ended = &mut waking.task => Event::WakeEnded(wake::settle(ended)),
                    message = messages.recv() => Event::Message(message),
                },
                Phase::Up(up) => tokio::select! {
                    happened = up.runtime.next() => Event::Happened(happened),
                    message = messages.recv() => Event::Message(message),
                },
            };
            match event {
                Event::WakeEnded(result) => self.finish_wake(result).await,
                Event::Happened(Happened::GaveUp(given_up)) => self.fail(given_up).await,
                Event::Happened(Happened::Restarted(report)) => self.host.reports.push(report),
                Event::Happened(Happened::Gone) => self.lose().await,
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
                Event::Message(Some(Message::Leave { reply })) => {
                    self.leave().await;
                    let _ = reply.send(());
                    return;
                }
                // Every handle of the host is gone.
                Event::Message(None) => return self.leave().await,
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
        up.runtime.job_place(Arc::clone(&up.standing))
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
        let (host, stages_too, cancelled) = (Arc::clone(&self.host), stages.clone(), cancel.clone());
        let task = tokio::spawn(async move {
            match host.config.keeper.clone() {
                None => {
                    let (running, awake) = wake::wake(host, order, stages_too, cancelled).await?;
                    Ok((Runtime::Here(Box::new(running)), awake))
                }
                Some(program) => kept::wake(host, order, program, stages_too, cancelled).await.map(kept_here),
            }
        });
        self.phase =
            Phase::Waking(Waking { epoch, task, cancel, stages, waiters: vec![reply], started: Instant::now() });
    }

    async fn finish_wake(&mut self, result: Woken) {
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
            Ok((runtime, awake)) => {
                self.phase = Phase::Up(Up::new(waking.epoch, runtime, awake.clone()));
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

    /// Its keeper has ended, or does not talk any more: what it held ends as well. The epoch is not over, as after a kill -9 of a host.
    async fn lose(&mut self) {
        self.set_up(None);
        tracing::warn!(workspace = %self.id, "a runtime's keeper is gone, and what it held is ended");
        metrics::counter!("keepers_lost_total").increment(1);
        let Phase::Up(up) = std::mem::replace(&mut self.phase, Phase::Asleep) else { return };
        *up.standing.write().await = false;
        let ended = match &up.runtime {
            Runtime::Kept(kept) => kept.end_by_force().await,
            Runtime::Here(_) => return,
        };
        if let Err(survivors) = ended {
            tracing::error!(workspace = %self.id, count = survivors.count, "processes of a lost runtime do not end");
            self.phase = Phase::Stuck(up.runtime.family());
        } else if let Err(error) = self.record(self.over).await {
            tracing::warn!(workspace = %self.id, %error, "the record of a lost runtime could not be closed");
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

    /// What a keeper holds goes on: the next process of this host takes it over.
    async fn leave(&mut self) {
        match &self.phase {
            Phase::Up(up) if matches!(up.runtime, Runtime::Kept(_)) => {}
            Phase::Waking(waking) if self.host.config.keeper.is_some() => {
                waking.task.abort();
                self.phase = Phase::Asleep;
            }
            Phase::Asleep | Phase::Waking(_) | Phase::Up(_) | Phase::Stuck(_) => self.shut_down().await,
        }
    }

    /// Ends whatever there is, with or without the hook. The number of processes that survive SIGKILL otherwise.
    async fn end(&mut self, with_hook: bool) -> Result<(), usize> {
        self.set_up(None);
        if let Phase::Waking(waking) = &mut self.phase {
            waking.cancel.cancel();
            let ended = wake::settle((&mut waking.task).await);
            self.finish_wake(ended).await;
            // It may have become ready in the same moment.
            self.set_up(None);
        }
        let (family, ended) = match std::mem::replace(&mut self.phase, Phase::Asleep) {
            Phase::Asleep | Phase::Waking(_) => return Ok(()),
            Phase::Up(mut up) => {
                *up.standing.write().await = false;
                let ended = up.runtime.end(with_hook).await;
                (up.runtime.family(), ended)
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

fn kept_here((kept, awake): (Kept, Awake)) -> (Runtime, Awake) {
    (Runtime::Kept(Box::new(kept)), awake)
}
