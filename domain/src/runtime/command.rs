//! What a runtime is asked for and told. Not here: what is decided about it (`super`).

use std::net::SocketAddr;

use super::{ActivitySource, Epoch, PostponeCause, ReadyService, SleepCause, WakeCause, WakeStage};
use crate::ids::{HostId, ProjectId, UserId, WorkspaceId};
use crate::secrets::{ConsumedSecret, RefusedSecret, SecretName};
use crate::slug::ServiceName;
use crate::time::{Millis, UnixMillis};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuntimeCommand {
    RequestWake {
        workspace: WorkspaceId,
        project: ProjectId,
        cause: WakeCause,
        workspace_active: bool,
    },
    /// A host takes the wake. Nothing may be started for it before this was accepted.
    ChooseHost {
        epoch: Epoch,
        host: HostId,
    },
    /// The host that took the wake is gone, or cannot be started: nothing of the wake runs there or will. It becomes the next wake,
    /// of the same cause, which any host may take.
    PlaceAnew {
        epoch: Epoch,
        host: HostId,
    },
    ReportStage {
        epoch: Epoch,
        stage: WakeStage,
    },
    /// What the services are given; before anything is started.
    ReportSecrets {
        epoch: Epoch,
        host: HostId,
        consumed: Vec<ConsumedSecret>,
    },
    /// Secrets that services declare and cannot be given: nothing was started.
    ReportSecretsRefused {
        epoch: Epoch,
        host: HostId,
        refused: Vec<RefusedSecret>,
    },
    /// Puts it to sleep and wakes it again, in the name of whoever set the new version.
    Restart {
        epoch: Epoch,
        name: SecretName,
        by: UserId,
    },
    ReportReady {
        epoch: Epoch,
        commit: String,
        host: HostId,
        services: Vec<ReadyService>,
        endpoints: Vec<(ServiceName, SocketAddr)>,
        lease_until: UnixMillis,
    },
    RenewLease {
        epoch: Epoch,
        host: HostId,
        lease_until: UnixMillis,
    },
    RecordActivity {
        epoch: Epoch,
        at: UnixMillis,
        open_streams: u32,
        source: ActivitySource,
    },
    /// A job is about to run: with its start in one append, so that it stands in front of a sleep or is refused.
    BeginJob {
        at: UnixMillis,
        by: UserId,
    },
    /// `max` is the organization's cap.
    KeepAwake {
        until: UnixMillis,
        reason: String,
        by: UserId,
        max: Millis,
        now: UnixMillis,
    },
    /// Down to what the organization's policy allows since; longer than asked for is never.
    ShortenKeepAwake {
        epoch: Epoch,
        until: UnixMillis,
    },
    PostponeSleep {
        epoch: Epoch,
        cause: PostponeCause,
    },
    RequestSleep {
        cause: SleepCause,
        now: UnixMillis,
    },
    ReportSlept {
        epoch: Epoch,
        host: HostId,
    },
    /// By the wake's host; while none is chosen, by any that found no room for it.
    ReportFailed {
        epoch: Epoch,
        host: HostId,
        reason: String,
    },
    /// Refused while the lease holds, unless the host itself says that nothing runs any more, or is trusted no more.
    DeclareLost {
        epoch: Epoch,
        confirmed_by: Option<HostId>,
        now: UnixMillis,
    },
}
