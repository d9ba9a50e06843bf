//! A workspace's runtime: `asleep -> waking -> ready -> sleeping -> asleep`, and `failed`.
//!
//! Owns the state machine, its causes and leases. Not here: how services are started (runtime crate) and what the time
//! costs (`meter`). Each wake opens a new epoch; what a host reports about an older epoch changes nothing.
//!
//! INVARIANT: a wake belongs to one host. It is chosen on the runtime's own stream, where two hosts that want the same
//! wake conflict, before anything is started; only that host's word about the wake counts.

mod cause;
mod command;
mod refusal;

use std::net::SocketAddr;

use crate::access::Action;
use crate::aggregate::Aggregate;
use crate::commit::StreamKind;
use crate::event::Event;
use crate::ids::{HostId, ProjectId, UserId, WorkspaceId};
use crate::limits::{SECRETS_CONSUMED_MAX, SECRETS_OF_EVENT_MAX};
use crate::secrets::{ConsumedSecret, RefusedSecret};
use crate::slug::ServiceName;
use crate::time::UnixMillis;

pub use cause::{ActivitySource, PostponeCause, SleepCause, WakeCause};
pub use command::RuntimeCommand;
pub use refusal::RuntimeRefusal;

/// Counts the wakes of one runtime, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Epoch(pub u64);

/// How far a wake has come. In order.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WakeStage {
    Placed,
    CheckingOut,
    Starting,
    Probing,
}

/// A service that ran, with what the meter needs to know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadyService {
    pub name: ServiceName,
    pub cpu_millicores: u32,
    pub memory_mib: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuntimeEvent {
    WakeRequested {
        epoch: Epoch,
        workspace: WorkspaceId,
        project: ProjectId,
        cause: WakeCause,
    },
    /// A wake that arrived while the runtime was going to sleep; it follows when that is done.
    WakeQueued {
        cause: WakeCause,
    },
    /// The one host that carries out this wake. Where it runs is for operators only.
    HostChosen {
        epoch: Epoch,
        host: HostId,
    },
    StageReached {
        epoch: Epoch,
        stage: WakeStage,
    },
    /// Which version of which secret each service is given in this wake. At most `limits::SECRETS_OF_EVENT_MAX`; more of
    /// them follow.
    SecretsResolved {
        epoch: Epoch,
        consumed: Vec<ConsumedSecret>,
    },
    /// Before `Failed`, where secrets are the reason: at most `limits::SECRETS_OF_EVENT_MAX` of them.
    SecretsRefused {
        epoch: Epoch,
        refused: Vec<RefusedSecret>,
    },
    /// Declared routes answer. `lease_until` bounds what the meter counts without another word from the host.
    Ready {
        epoch: Epoch,
        commit: String,
        services: Vec<ReadyService>,
        lease_until: UnixMillis,
    },
    /// Where the gateway finds the services. For operators only: never on a developer's or reviewer's screen.
    EndpointsBound {
        epoch: Epoch,
        host: HostId,
        endpoints: Vec<(ServiceName, SocketAddr)>,
    },
    LeaseRenewed {
        epoch: Epoch,
        lease_until: UnixMillis,
    },
    /// Traffic that puts off idle sleep, reported coarsely: at most once in `limits::ACTIVITY_INTERVAL` by each gateway.
    ActivitySeen {
        epoch: Epoch,
        at: UnixMillis,
        open_streams: u32,
        source: ActivitySource,
    },
    KeptAwake {
        until: UnixMillis,
        reason: String,
        by: UserId,
    },
    /// The organization allows less than was asked for by now.
    KeepAwakeShortened {
        until: UnixMillis,
    },
    SleepPostponed {
        cause: PostponeCause,
    },
    SleepRequested {
        epoch: Epoch,
        cause: SleepCause,
    },
    Slept {
        epoch: Epoch,
    },
    /// `stage` where it failed while waking; `None` where a ready runtime broke.
    Failed {
        epoch: Epoch,
        stage: Option<WakeStage>,
        reason: String,
    },
    /// The host gave no word for too long, or says itself that the runtime is gone. The meter closes at its last
    /// heartbeat (`Ready` or `LeaseRenewed`), and never after `closed_at`, the end of its lease.
    Lost {
        epoch: Epoch,
        closed_at: UnixMillis,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Runtime {
    /// Never woken, or asleep after `epoch` wakes.
    #[default]
    NeverWoken,
    Asleep {
        epoch: Epoch,
        workspace: WorkspaceId,
        project: ProjectId,
    },
    Waking {
        epoch: Epoch,
        workspace: WorkspaceId,
        project: ProjectId,
        cause: WakeCause,
        stage: Option<WakeStage>,
        host: Option<HostId>,
        /// What its services are given.
        secrets: Vec<ConsumedSecret>,
    },
    Ready(ReadyRuntime),
    Sleeping {
        epoch: Epoch,
        workspace: WorkspaceId,
        project: ProjectId,
        /// `None` where it was put to sleep before a host had been chosen.
        host: Option<HostId>,
        queued: Option<WakeCause>,
    },
    Failed {
        epoch: Epoch,
        workspace: WorkspaceId,
        project: ProjectId,
        /// The secrets that it failed for.
        refused: Vec<RefusedSecret>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadyRuntime {
    pub epoch: Epoch,
    pub workspace: WorkspaceId,
    pub project: ProjectId,
    /// Where it runs. `None` only in the midst of a commit of former times, which chose none.
    pub host: Option<HostId>,
    pub lease_until: UnixMillis,
    pub keep_awake_until: Option<UnixMillis>,
    /// The latest use that was reported; `None` until the first one.
    pub last_activity: Option<UnixMillis>,
    /// The last reason recorded for not sleeping; the same one is not recorded twice.
    pub postponed: Option<PostponeCause>,
    /// What its services were given.
    pub secrets: Vec<ConsumedSecret>,
}

/// 1 to `REASON_CHARS_MAX` characters on one line.
pub fn reason_is_valid(reason: &str) -> bool {
    !reason.trim().is_empty()
        && reason.chars().count() <= crate::limits::REASON_CHARS_MAX
        && !reason.chars().any(char::is_control)
}

impl Runtime {
    /// The wake that is current or was last.
    pub fn epoch(&self) -> Epoch {
        match self {
            Self::NeverWoken => Epoch(0),
            Self::Asleep { epoch, .. }
            | Self::Waking { epoch, .. }
            | Self::Sleeping { epoch, .. }
            | Self::Failed { epoch, .. } => *epoch,
            Self::Ready(ready) => ready.epoch,
        }
    }

    /// The host of the current wake; `None` while none is chosen and once nothing runs.
    pub fn host(&self) -> Option<HostId> {
        match self {
            Self::Waking { host, .. } | Self::Sleeping { host, .. } => *host,
            Self::Ready(ready) => ready.host,
            Self::NeverWoken | Self::Asleep { .. } | Self::Failed { .. } => None,
        }
    }

    /// Refuses the word of a host while another one has the wake.
    fn no_other_host(&self, reported: HostId) -> Result<(), RuntimeRefusal> {
        match self.host() {
            Some(host) if host != reported => Err(RuntimeRefusal::OtherHost),
            Some(_) | None => Ok(()),
        }
    }

    fn same_epoch(&self, reported: Epoch) -> Result<(), RuntimeRefusal> {
        let current = self.epoch();
        if reported == current {
            Ok(())
        } else {
            Err(RuntimeRefusal::OtherEpoch { reported: reported.0, current: current.0 })
        }
    }

    /// A sleep that is done, and the wake that waited for it.
    fn slept(&self) -> Vec<RuntimeEvent> {
        let Self::Sleeping { epoch, workspace, project, queued, .. } = self else { return Vec::new() };
        let mut events = vec![RuntimeEvent::Slept { epoch: *epoch }];
        if let Some(cause) = queued {
            events.push(RuntimeEvent::WakeRequested {
                epoch: Epoch(epoch.0 + 1),
                workspace: *workspace,
                project: *project,
                cause: cause.clone(),
            });
        }
        events
    }

    fn identity(&self) -> Option<(WorkspaceId, ProjectId)> {
        match self {
            Self::NeverWoken => None,
            Self::Asleep { workspace, project, .. }
            | Self::Waking { workspace, project, .. }
            | Self::Sleeping { workspace, project, .. }
            | Self::Failed { workspace, project, .. } => Some((*workspace, *project)),
            Self::Ready(ready) => Some((ready.workspace, ready.project)),
        }
    }
}

impl Aggregate for Runtime {
    const KIND: StreamKind = StreamKind::Runtime;
    type State = Self;
    type Command = RuntimeCommand;
    type Event = RuntimeEvent;
    type Refusal = RuntimeRefusal;

    fn decide(state: &Self, command: &RuntimeCommand) -> Result<Vec<RuntimeEvent>, RuntimeRefusal> {
        match command {
            RuntimeCommand::RequestWake { workspace, project, cause, workspace_active } => {
                if !workspace_active {
                    return Err(RuntimeRefusal::WorkspaceArchived);
                }
                match state {
                    Self::NeverWoken | Self::Asleep { .. } | Self::Failed { .. } => {
                        Ok(vec![RuntimeEvent::WakeRequested {
                            epoch: Epoch(state.epoch().0 + 1),
                            workspace: *workspace,
                            project: *project,
                            cause: cause.clone(),
                        }])
                    }
                    Self::Sleeping { queued: None, .. } => Ok(vec![RuntimeEvent::WakeQueued { cause: cause.clone() }]),
                    Self::Waking { .. } | Self::Ready(_) | Self::Sleeping { queued: Some(_), .. } => Ok(vec![]),
                }
            }
            RuntimeCommand::ChooseHost { epoch, host } => {
                state.same_epoch(*epoch)?;
                state.no_other_host(*host)?;
                match state {
                    Self::Waking { host: None, .. } => {
                        Ok(vec![RuntimeEvent::HostChosen { epoch: *epoch, host: *host }])
                    }
                    Self::Waking { host: Some(_), .. } | Self::Ready(_) => Ok(vec![]),
                    Self::NeverWoken | Self::Asleep { .. } | Self::Sleeping { .. } | Self::Failed { .. } => {
                        Err(RuntimeRefusal::NotAwake)
                    }
                }
            }
            RuntimeCommand::PlaceAnew { epoch, host } => {
                state.same_epoch(*epoch)?;
                state.no_other_host(*host)?;
                match state {
                    Self::Waking { workspace, project, cause, host: Some(_), .. } => {
                        Ok(vec![RuntimeEvent::WakeRequested {
                            epoch: Epoch(epoch.0 + 1),
                            workspace: *workspace,
                            project: *project,
                            cause: cause.clone(),
                        }])
                    }
                    Self::NeverWoken
                    | Self::Asleep { .. }
                    | Self::Waking { host: None, .. }
                    | Self::Ready(_)
                    | Self::Sleeping { .. }
                    | Self::Failed { .. } => Ok(vec![]),
                }
            }
            RuntimeCommand::ReportStage { epoch, stage } => {
                state.same_epoch(*epoch)?;
                match state {
                    Self::Waking { stage: reached, .. } if reached.as_ref() < Some(stage) => {
                        Ok(vec![RuntimeEvent::StageReached { epoch: *epoch, stage: stage.clone() }])
                    }
                    Self::Waking { .. }
                    | Self::NeverWoken
                    | Self::Asleep { .. }
                    | Self::Ready(_)
                    | Self::Sleeping { .. }
                    | Self::Failed { .. } => Ok(vec![]),
                }
            }
            RuntimeCommand::ReportSecrets { epoch, host, consumed } => {
                state.same_epoch(*epoch)?;
                state.no_other_host(*host)?;
                if consumed.len() > SECRETS_CONSUMED_MAX {
                    return Err(RuntimeRefusal::TooManySecrets { max: SECRETS_CONSUMED_MAX });
                }
                match state {
                    Self::Waking { host: None, .. } => Err(RuntimeRefusal::OtherHost),
                    Self::Waking { host: Some(_), secrets, .. } if secrets == consumed => Ok(vec![]),
                    Self::Waking { host: Some(_), .. } => Ok(consumed
                        .chunks(SECRETS_OF_EVENT_MAX)
                        .map(|chunk| RuntimeEvent::SecretsResolved { epoch: *epoch, consumed: chunk.to_vec() })
                        .collect()),
                    Self::NeverWoken
                    | Self::Asleep { .. }
                    | Self::Ready(_)
                    | Self::Sleeping { .. }
                    | Self::Failed { .. } => Err(RuntimeRefusal::NotAwake),
                }
            }
            RuntimeCommand::ReportSecretsRefused { epoch, host, refused } => {
                let reason = RefusedSecret::told(refused);
                let mut events =
                    Self::decide(state, &RuntimeCommand::ReportFailed { epoch: *epoch, host: *host, reason })?;
                if !events.is_empty() {
                    let refused = refused.iter().take(SECRETS_OF_EVENT_MAX).cloned().collect();
                    events.insert(0, RuntimeEvent::SecretsRefused { epoch: *epoch, refused });
                }
                Ok(events)
            }
            RuntimeCommand::Restart { epoch, name, by } => {
                state.same_epoch(*epoch)?;
                match state {
                    Self::Ready(ready) => Ok(vec![
                        RuntimeEvent::SleepRequested {
                            epoch: ready.epoch,
                            cause: SleepCause::SecretRotated { name: name.clone() },
                        },
                        RuntimeEvent::WakeQueued { cause: WakeCause::Person(*by) },
                    ]),
                    Self::NeverWoken
                    | Self::Asleep { .. }
                    | Self::Waking { .. }
                    | Self::Sleeping { .. }
                    | Self::Failed { .. } => Ok(vec![]),
                }
            }
            RuntimeCommand::ReportReady { epoch, commit, host, services, endpoints, lease_until } => {
                state.same_epoch(*epoch)?;
                state.no_other_host(*host)?;
                match state {
                    Self::Waking { host: None, .. } => Err(RuntimeRefusal::OtherHost),
                    Self::Waking { host: Some(_), .. } => Ok(vec![
                        RuntimeEvent::Ready {
                            epoch: *epoch,
                            commit: commit.clone(),
                            services: services.clone(),
                            lease_until: *lease_until,
                        },
                        RuntimeEvent::EndpointsBound { epoch: *epoch, host: *host, endpoints: endpoints.clone() },
                    ]),
                    Self::Ready(_) => Ok(vec![]),
                    // Put to sleep while it was waking: the host hears that from the log and stops it.
                    Self::NeverWoken | Self::Asleep { .. } | Self::Sleeping { .. } | Self::Failed { .. } => {
                        Err(RuntimeRefusal::NotAwake)
                    }
                }
            }
            RuntimeCommand::RenewLease { epoch, host, lease_until } => {
                state.same_epoch(*epoch)?;
                state.no_other_host(*host)?;
                match state {
                    Self::Ready(ready) if ready.lease_until < *lease_until => {
                        Ok(vec![RuntimeEvent::LeaseRenewed { epoch: *epoch, lease_until: *lease_until }])
                    }
                    Self::Ready(_) => Ok(vec![]),
                    Self::NeverWoken
                    | Self::Asleep { .. }
                    | Self::Waking { .. }
                    | Self::Sleeping { .. }
                    | Self::Failed { .. } => Err(RuntimeRefusal::NotAwake),
                }
            }
            RuntimeCommand::RecordActivity { epoch, at, open_streams, source } => {
                state.same_epoch(*epoch)?;
                match state {
                    Self::Ready(ready) if ready.last_activity < Some(*at) => Ok(vec![RuntimeEvent::ActivitySeen {
                        epoch: *epoch,
                        at: *at,
                        open_streams: *open_streams,
                        source: *source,
                    }]),
                    Self::Ready(_)
                    | Self::NeverWoken
                    | Self::Asleep { .. }
                    | Self::Waking { .. }
                    | Self::Sleeping { .. }
                    | Self::Failed { .. } => Ok(vec![]),
                }
            }
            RuntimeCommand::BeginJob { at, by } => match state {
                // Even where it is no news: what follows rests on this being written.
                Self::Ready(ready) => Ok(vec![RuntimeEvent::ActivitySeen {
                    epoch: ready.epoch,
                    at: ready.last_activity.map_or(*at, |last| last.max(*at)),
                    open_streams: 0,
                    source: ActivitySource::Person(*by),
                }]),
                Self::NeverWoken
                | Self::Asleep { .. }
                | Self::Waking { .. }
                | Self::Sleeping { .. }
                | Self::Failed { .. } => Err(RuntimeRefusal::NotAwake),
            },
            RuntimeCommand::KeepAwake { until, reason, by, max, now } => {
                if !reason_is_valid(reason) {
                    return Err(RuntimeRefusal::Reason { max: crate::limits::REASON_CHARS_MAX });
                }
                if until <= now {
                    return Err(RuntimeRefusal::KeepAwakeInThePast);
                }
                if until.since(*now) > *max {
                    return Err(RuntimeRefusal::KeepAwakeTooLong { max: *max });
                }
                match state {
                    Self::Ready(ready) if ready.keep_awake_until == Some(*until) => Ok(vec![]),
                    Self::Ready(_) => {
                        Ok(vec![RuntimeEvent::KeptAwake { until: *until, reason: reason.clone(), by: *by }])
                    }
                    Self::NeverWoken
                    | Self::Asleep { .. }
                    | Self::Waking { .. }
                    | Self::Sleeping { .. }
                    | Self::Failed { .. } => Err(RuntimeRefusal::NotAwake),
                }
            }
            RuntimeCommand::ShortenKeepAwake { epoch, until } => {
                state.same_epoch(*epoch)?;
                match state {
                    Self::Ready(ready) if ready.keep_awake_until.is_some_and(|asked| *until < asked) => {
                        Ok(vec![RuntimeEvent::KeepAwakeShortened { until: *until }])
                    }
                    Self::Ready(_)
                    | Self::NeverWoken
                    | Self::Asleep { .. }
                    | Self::Waking { .. }
                    | Self::Sleeping { .. }
                    | Self::Failed { .. } => Ok(vec![]),
                }
            }
            RuntimeCommand::PostponeSleep { epoch, cause } => {
                state.same_epoch(*epoch)?;
                match state {
                    Self::Ready(ready) if ready.postponed.as_ref() != Some(cause) => {
                        Ok(vec![RuntimeEvent::SleepPostponed { cause: cause.clone() }])
                    }
                    Self::Ready(_)
                    | Self::NeverWoken
                    | Self::Asleep { .. }
                    | Self::Waking { .. }
                    | Self::Sleeping { .. }
                    | Self::Failed { .. } => Ok(vec![]),
                }
            }
            RuntimeCommand::RequestSleep { cause, now } => match state {
                // It was used since somebody found it idle.
                Self::Ready(ReadyRuntime { last_activity: Some(used), .. }) if matches!(cause, SleepCause::Idle { idle_for } if now.since(*used) < *idle_for) => {
                    Ok(vec![])
                }
                Self::Ready(ready) => match (cause, ready.keep_awake_until) {
                    (SleepCause::Idle { .. }, Some(until)) if *now < until => Err(RuntimeRefusal::KeptAwake { until }),
                    (
                        SleepCause::Idle { .. }
                        | SleepCause::Person(_)
                        | SleepCause::WorkspaceArchived
                        | SleepCause::Shutdown
                        | SleepCause::UsageCap
                        | SleepCause::SecretRotated { .. },
                        _,
                    ) => Ok(vec![RuntimeEvent::SleepRequested { epoch: ready.epoch, cause: cause.clone() }]),
                },
                Self::Waking { epoch, .. } => {
                    Ok(vec![RuntimeEvent::SleepRequested { epoch: *epoch, cause: cause.clone() }])
                }
                Self::NeverWoken | Self::Asleep { .. } | Self::Sleeping { .. } | Self::Failed { .. } => Ok(vec![]),
            },
            RuntimeCommand::ReportSlept { epoch, host } => {
                state.same_epoch(*epoch)?;
                state.no_other_host(*host)?;
                Ok(state.slept())
            }
            RuntimeCommand::ReportFailed { epoch, host, reason } => {
                state.same_epoch(*epoch)?;
                state.no_other_host(*host)?;
                let reason: String =
                    reason.chars().filter(|c| !c.is_control()).take(crate::limits::REASON_CHARS_MAX).collect();
                match state {
                    Self::Waking { stage, .. } => Ok(vec![RuntimeEvent::Failed {
                        epoch: *epoch,
                        stage: Some(stage.clone().unwrap_or(WakeStage::Placed)),
                        reason,
                    }]),
                    Self::Ready(_) => Ok(vec![RuntimeEvent::Failed { epoch: *epoch, stage: None, reason }]),
                    Self::NeverWoken | Self::Asleep { .. } | Self::Sleeping { .. } | Self::Failed { .. } => Ok(vec![]),
                }
            }
            RuntimeCommand::DeclareLost { epoch, confirmed_by, now } => {
                state.same_epoch(*epoch)?;
                if let Some(host) = confirmed_by {
                    state.no_other_host(*host)?;
                }
                match state {
                    Self::Ready(ready) if confirmed_by.is_none() && *now < ready.lease_until => {
                        Err(RuntimeRefusal::LeaseHolds { until: ready.lease_until })
                    }
                    Self::Ready(ready) => {
                        Ok(vec![RuntimeEvent::Lost { epoch: *epoch, closed_at: ready.lease_until.min(*now) }])
                    }
                    Self::Waking { stage, host, .. } => Ok(vec![RuntimeEvent::Failed {
                        epoch: *epoch,
                        stage: Some(stage.clone().unwrap_or(WakeStage::Placed)),
                        reason: match host {
                            Some(_) => "the host was lost while waking".to_owned(),
                            None => "no host took this wake".to_owned(),
                        },
                    }]),
                    Self::Sleeping { .. } => Ok(state.slept()),
                    Self::NeverWoken | Self::Asleep { .. } | Self::Failed { .. } => Ok(vec![]),
                }
            }
        }
    }

    fn evolve(state: Self, event: &RuntimeEvent) -> Self {
        if let RuntimeEvent::WakeRequested { epoch, workspace, project, cause } = event {
            return Self::Waking {
                epoch: *epoch,
                workspace: *workspace,
                project: *project,
                cause: cause.clone(),
                stage: None,
                host: None,
                secrets: Vec::new(),
            };
        }
        let host = state.host();
        let Some((workspace, project)) = state.identity() else { return state };
        match (state, event) {
            (Self::Sleeping { epoch, .. }, RuntimeEvent::WakeQueued { cause }) => {
                Self::Sleeping { epoch, workspace, project, host, queued: Some(cause.clone()) }
            }
            (Self::Waking { epoch, cause, stage, secrets, .. }, RuntimeEvent::HostChosen { host, .. }) => {
                Self::Waking { epoch, workspace, project, cause, stage, host: Some(*host), secrets }
            }
            (Self::Waking { epoch, cause, secrets, .. }, RuntimeEvent::StageReached { stage, .. }) => {
                Self::Waking { epoch, workspace, project, cause, stage: Some(stage.clone()), host, secrets }
            }
            (Self::Waking { epoch, cause, stage, mut secrets, .. }, RuntimeEvent::SecretsResolved { consumed, .. }) => {
                // Resolved anew, after a restart of the host's process in the midst of the wake: the last word counts.
                let again = |old: &ConsumedSecret| consumed.iter().any(|new| old.is_for_the_same(new));
                secrets.retain(|old| !again(old));
                secrets.extend(consumed.iter().cloned());
                Self::Waking { epoch, workspace, project, cause, stage, host, secrets }
            }
            (Self::Waking { epoch, .. }, RuntimeEvent::SecretsRefused { refused, .. }) => {
                Self::Failed { epoch, workspace, project, refused: refused.clone() }
            }
            (failed @ Self::Failed { .. }, RuntimeEvent::Failed { .. }) => failed,
            (Self::Waking { secrets, .. }, RuntimeEvent::Ready { epoch, lease_until, .. }) => {
                Self::Ready(ReadyRuntime {
                    epoch: *epoch,
                    workspace,
                    project,
                    host,
                    lease_until: *lease_until,
                    keep_awake_until: None,
                    last_activity: None,
                    postponed: None,
                    secrets,
                })
            }
            // Wakes of former times named their host here for the first time.
            (Self::Ready(ready), RuntimeEvent::EndpointsBound { host, .. }) => {
                Self::Ready(ReadyRuntime { host: Some(*host), ..ready })
            }
            (Self::Ready(ready), RuntimeEvent::LeaseRenewed { lease_until, .. }) => {
                Self::Ready(ReadyRuntime { lease_until: *lease_until, ..ready })
            }
            // Use after a postponed sleep opens a new idle time, whose postponement is worth recording again.
            (Self::Ready(ready), RuntimeEvent::ActivitySeen { at, .. }) => {
                Self::Ready(ReadyRuntime { last_activity: Some(*at), postponed: None, ..ready })
            }
            (
                Self::Ready(ready),
                RuntimeEvent::KeptAwake { until, .. } | RuntimeEvent::KeepAwakeShortened { until },
            ) => Self::Ready(ReadyRuntime { keep_awake_until: Some(*until), ..ready }),
            (Self::Ready(ready), RuntimeEvent::SleepPostponed { cause }) => {
                Self::Ready(ReadyRuntime { postponed: Some(cause.clone()), ..ready })
            }
            (_, RuntimeEvent::SleepRequested { epoch, .. }) => {
                Self::Sleeping { epoch: *epoch, workspace, project, host, queued: None }
            }
            (_, RuntimeEvent::Slept { epoch } | RuntimeEvent::Lost { epoch, .. }) => {
                Self::Asleep { epoch: *epoch, workspace, project }
            }
            (_, RuntimeEvent::Failed { epoch, .. }) => {
                Self::Failed { epoch: *epoch, workspace, project, refused: Vec::new() }
            }
            (
                state,
                RuntimeEvent::WakeRequested { .. }
                | RuntimeEvent::WakeQueued { .. }
                | RuntimeEvent::HostChosen { .. }
                | RuntimeEvent::StageReached { .. }
                | RuntimeEvent::SecretsResolved { .. }
                | RuntimeEvent::SecretsRefused { .. }
                | RuntimeEvent::Ready { .. }
                | RuntimeEvent::EndpointsBound { .. }
                | RuntimeEvent::LeaseRenewed { .. }
                | RuntimeEvent::ActivitySeen { .. }
                | RuntimeEvent::KeptAwake { .. }
                | RuntimeEvent::KeepAwakeShortened { .. }
                | RuntimeEvent::SleepPostponed { .. },
            ) => state,
        }
    }

    fn event_of(event: &Event) -> Option<&RuntimeEvent> {
        if let Event::Runtime(event) = event { Some(event) } else { None }
    }

    fn action_of(command: &RuntimeCommand) -> Action {
        match command {
            RuntimeCommand::RequestWake { .. } => Action::RuntimeWake,
            RuntimeCommand::RequestSleep { .. }
            | RuntimeCommand::PostponeSleep { .. }
            | RuntimeCommand::Restart { .. }
            | RuntimeCommand::ShortenKeepAwake { .. } => Action::RuntimeSleep,
            RuntimeCommand::KeepAwake { .. } => Action::RuntimeKeepAwake,
            RuntimeCommand::BeginJob { .. } => Action::JobRun,
            RuntimeCommand::RecordActivity { .. } => Action::RuntimeRecordActivity,
            RuntimeCommand::ChooseHost { .. }
            | RuntimeCommand::PlaceAnew { .. }
            | RuntimeCommand::ReportStage { .. }
            | RuntimeCommand::ReportSecrets { .. }
            | RuntimeCommand::ReportSecretsRefused { .. }
            | RuntimeCommand::ReportReady { .. }
            | RuntimeCommand::RenewLease { .. }
            | RuntimeCommand::ReportSlept { .. }
            | RuntimeCommand::ReportFailed { .. }
            | RuntimeCommand::DeclareLost { .. } => Action::RuntimeReport,
        }
    }
}

impl From<RuntimeEvent> for Event {
    fn from(event: RuntimeEvent) -> Self {
        Self::Runtime(event)
    }
}
