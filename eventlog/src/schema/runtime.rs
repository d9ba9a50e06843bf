//! Stored events of runtimes.

use std::net::SocketAddr;

use envforge_domain::ids::{HostId, LinkId, ProjectId, SessionId, UserId, WorkspaceId};
use envforge_domain::runtime::{
    ActivitySource, Epoch, PostponeCause, ReadyService, RuntimeEvent, SleepCause, WakeCause, WakeStage,
};
use envforge_domain::secrets::{ConsumedSecret, RefusedSecret, SecretConsumer, SecretName, SecretOwner, SecretProblem};
use envforge_domain::slug::ServiceName;
use envforge_domain::time::{Millis, UnixMillis};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::wire::{Unwired, Wire, Wired, events, kinds, object, tokens};

events! {
    RuntimeEvent {
        "runtime.wake_requested.v1" => WakeRequested {
            epoch: Epoch = "epoch",
            workspace: WorkspaceId = "workspace",
            project: ProjectId = "project",
            cause: WakeCause = "cause",
        },
        "runtime.wake_queued.v1" => WakeQueued { cause: WakeCause = "cause" },
        "runtime.host_chosen.v1" => HostChosen { epoch: Epoch = "epoch", host: HostId = "host" },
        "runtime.stage_reached.v1" => StageReached { epoch: Epoch = "epoch", stage: WakeStage = "stage" },
        "runtime.secrets_resolved.v1" => SecretsResolved {
            epoch: Epoch = "epoch",
            consumed: Vec<ConsumedSecret> = "consumed",
        },
        "runtime.secrets_refused.v1" => SecretsRefused {
            epoch: Epoch = "epoch",
            refused: Vec<RefusedSecret> = "refused",
        },
        "runtime.ready.v1" => Ready {
            epoch: Epoch = "epoch",
            commit: String = "commit",
            services: Vec<ReadyService> = "services",
            lease_until: UnixMillis = "lease_until",
        },
        "runtime.endpoints_bound.v1" => EndpointsBound {
            epoch: Epoch = "epoch",
            host: HostId = "host",
            endpoints: Vec<(ServiceName, SocketAddr)> = "endpoints",
        },
        "runtime.lease_renewed.v1" => LeaseRenewed { epoch: Epoch = "epoch", lease_until: UnixMillis = "lease_until" },
        "runtime.activity_seen.v1" => ActivitySeen {
            epoch: Epoch = "epoch",
            at: UnixMillis = "at",
            open_streams: u32 = "open_streams",
            source: ActivitySource = "source",
        },
        "runtime.kept_awake.v1" => KeptAwake {
            until: UnixMillis = "until",
            reason: String = "reason",
            by: UserId = "by",
        },
        "runtime.keep_awake_shortened.v1" => KeepAwakeShortened { until: UnixMillis = "until" },
        "runtime.sleep_postponed.v1" => SleepPostponed { cause: PostponeCause = "cause" },
        "runtime.sleep_requested.v1" => SleepRequested { epoch: Epoch = "epoch", cause: SleepCause = "cause" },
        "runtime.slept.v1" => Slept { epoch: Epoch = "epoch" },
        "runtime.failed.v1" => Failed {
            epoch: Epoch = "epoch",
            stage: Option<WakeStage> = "stage",
            reason: String = "reason",
        },
        "runtime.lost.v1" => Lost { epoch: Epoch = "epoch", closed_at: UnixMillis = "closed_at" },
    }
}

kinds! {
    WakeCause {
        "link" => Link { link: LinkId = "link", session: SessionId = "session" },
        "person" => Person(user: UserId = "user"),
        "job" => Job { name: String = "name", by: UserId = "by" },
        "agent" => Agent { name: String = "name", by: UserId = "by" },
    }
}

kinds! {
    ActivitySource {
        "link" => Link(link: LinkId = "link"),
        "person" => Person(user: UserId = "user"),
    }
}

kinds! {
    SleepCause {
        "idle" => Idle { idle_for: Millis = "idle_for_ms" },
        "person" => Person(user: UserId = "user"),
        "workspace_archived" => WorkspaceArchived,
        "shutdown" => Shutdown,
        "usage_cap" => UsageCap,
        "secret_rotated" => SecretRotated { name: SecretName = "name" },
    }
}

kinds! {
    PostponeCause {
        "keep_awake" => KeepAwake { until: UnixMillis = "until" },
        "open_streams" => OpenStreams { count: u32 = "count" },
    }
}

tokens! {
    WakeStage {
        "placed" => Placed,
        "checking_out" => CheckingOut,
        "starting" => Starting,
        "probing" => Probing,
    }
}

object! {
    ConsumedSecret {
        consumer: SecretConsumer = "service",
        name: SecretName = "name",
        owner: SecretOwner = "owner",
        generation: u32 = "generation",
        version: u64 = "version",
    }
}

object! {
    RefusedSecret {
        consumer: SecretConsumer = "service",
        name: SecretName = "name",
        problem: SecretProblem = "problem",
    }
}

tokens! {
    SecretProblem {
        "missing" => Missing,
        "forbidden" => Forbidden,
        "expired" => Expired,
        "damaged" => Damaged,
    }
}

object! {
    ReadyService {
        name: ServiceName = "name",
        cpu_millicores: u32 = "cpu_millicores",
        memory_mib: u32 = "memory_mib",
    }
}

/// Where a service listens: `["web","127.0.0.1:40001"]`.
impl Wire for (ServiceName, SocketAddr) {
    fn to_wire<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (Wired(&self.0), Wired(&self.1)).serialize(serializer)
    }

    fn from_wire<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (Unwired(service), Unwired(address)) = Deserialize::deserialize(deserializer)?;
        Ok((service, address))
    }
}
