//! Stored events of machines.

use envforge_domain::host::Capacity;
use envforge_domain::ids::{HostId, OrgId};
use envforge_domain::machine::{
    MachineCause, MachineEnd, MachineEvent, MachinePurpose, MachineTerms, StartFailure, StopMode,
};
use envforge_domain::time::UnixMillis;

use super::wire::{events, object, tokens};

events! {
    MachineEvent {
        "machine.requested.v1" => Requested { terms: MachineTerms = "terms", cause: MachineCause = "cause" },
        "machine.launched.v1" => Launched { instance: String = "instance" },
        "machine.launch_failed.v1" => LaunchFailed { reason: String = "reason" },
        "machine.start_requested.v1" => StartRequested { cause: MachineCause = "cause" },
        "machine.started.v1" => Started,
        "machine.start_failed.v1" => StartFailed { why: StartFailure = "why", reason: String = "reason" },
        "machine.stop_requested.v1" => StopRequested { mode: StopMode = "mode", cause: MachineCause = "cause" },
        "machine.stopped.v1" => Stopped { mode: StopMode = "mode" },
        "machine.checks_failed.v1" => ChecksFailed,
        "machine.checks_passed.v1" => ChecksPassed,
        "machine.unhealthy.v1" => Unhealthy { reason: String = "reason" },
        "machine.draining.v1" => Draining { cause: MachineCause = "cause" },
        "machine.termination_requested.v1" => TerminationRequested { cause: MachineCause = "cause" },
        "machine.terminated.v1" => Terminated { end: MachineEnd = "end" },
        "machine.used.v1" => Used { cause: MachineCause = "cause", at: UnixMillis = "at" },
        "machine.strange_reported.v1" => StrangeReported { instance: String = "instance", reason: String = "reason" },
    }
}

object! {
    MachineTerms {
        host: HostId = "host",
        org: OrgId = "org",
        purpose: MachinePurpose = "purpose",
        provider: String = "provider",
        shape: String = "shape",
        capacity: Capacity = "capacity",
    }
}

tokens! {
    MachinePurpose {
        "shell" => Shell,
        "runtime" => Runtime,
    }
}

tokens! {
    MachineCause {
        "demand" => Demand,
        "warm_pool" => WarmPool,
        "idle" => Idle,
        "unhealthy" => Unhealthy,
        "drift" => Drift,
        "operator" => Operator,
        "unused" => Unused,
        "no_hibernation" => NoHibernation,
        "logs" => Logs,
        "shell" => Shell,
    }
}

tokens! {
    StartFailure {
        "capacity" => Capacity,
        "quota" => Quota,
        "refused" => Refused,
        "stopped_again" => StoppedAgain,
    }
}

tokens! {
    StopMode {
        "stop" => Stop,
        "hibernate" => Hibernate,
    }
}

tokens! {
    MachineEnd {
        "terminated" => Terminated,
        "vanished" => Vanished,
    }
}
