//! One sample of each event of machines.

use envforge_domain::machine::{
    MachineCause, MachineEnd, MachineEvent, MachinePurpose, MachineTerms, StartFailure, StopMode,
};

use super::*;

pub(crate) fn samples(host: HostId, org: OrgId, capacity: Capacity) -> Vec<MachineEvent> {
    let requested = MachinePurpose::ALL.map(|purpose| MachineEvent::Requested {
        terms: MachineTerms {
            host,
            org,
            purpose,
            provider: "aws-ec2".to_owned(),
            shape: "m7g.large".to_owned(),
            capacity,
        },
        cause: MachineCause::WarmPool,
    });
    let causes = [
        MachineCause::Demand,
        MachineCause::WarmPool,
        MachineCause::Idle,
        MachineCause::Unhealthy,
        MachineCause::Drift,
        MachineCause::Operator,
        MachineCause::Unused,
        MachineCause::NoHibernation,
        MachineCause::Logs,
        MachineCause::Shell,
    ];
    let failures = [StartFailure::Capacity, StartFailure::Quota, StartFailure::Refused, StartFailure::StoppedAgain];
    let modes = [StopMode::Stop, StopMode::Hibernate];
    let mut all = Vec::from(requested);
    all.push(MachineEvent::Launched { instance: "i-0c1e5b2a7d3f49680".to_owned() });
    all.push(MachineEvent::LaunchFailed { reason: "no capacity for m7g.large".to_owned() });
    all.extend(causes.map(|cause| MachineEvent::StartRequested { cause }));
    all.push(MachineEvent::Started);
    all.extend(failures.map(|why| MachineEvent::StartFailed { why, reason: "no capacity for m7g.large".to_owned() }));
    all.extend(modes.map(|mode| MachineEvent::StopRequested { mode, cause: MachineCause::Idle }));
    all.extend(modes.map(|mode| MachineEvent::Stopped { mode }));
    all.extend([MachineEvent::ChecksFailed, MachineEvent::ChecksPassed]);
    all.push(MachineEvent::Unhealthy { reason: "the instance's status check failed".to_owned() });
    all.push(MachineEvent::Draining { cause: MachineCause::Unhealthy });
    all.push(MachineEvent::TerminationRequested { cause: MachineCause::Unhealthy });
    all.extend([MachineEnd::Terminated, MachineEnd::Vanished].map(|end| MachineEvent::Terminated { end }));
    all.push(MachineEvent::Used { cause: MachineCause::Logs, at: UnixMillis::new(1_790_000_000_000) });
    all.push(MachineEvent::StrangeReported {
        instance: "i-0c1e5b2a7d3f49681".to_owned(),
        reason: "no machine was requested for its host".to_owned(),
    });
    all
}
