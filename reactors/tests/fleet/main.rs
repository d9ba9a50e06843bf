//! The fleet: its planner, its comparison with a provider, and what both promise over any history.
#![allow(clippy::unwrap_used)]

mod checker;
mod compared;
mod kept;
mod logged;
mod looked;
mod million;
mod needed;
mod planned;

use std::collections::{BTreeMap, BTreeSet};

use envforge_domain::host::Capacity;
use envforge_domain::ids::{CommitId, CorrelationId, HostId, OrgId, WorkspaceId};
use envforge_domain::machine::{LiveMachine, Machine, MachinePurpose, MachineTerms, Power, StopMode};
use envforge_domain::time::{Millis, UnixMillis};
use envforge_reactors::fleet::{AgentState, FleetPolicy, KnownMachine, MachineView, OrganizationFleet, Shape, Starts};
use envforge_runtime::{Instance, InstanceState, InstanceTags};
use uuid::Uuid;

pub(crate) const PROVIDER: &str = "aws-ec2";
pub(crate) const GRACE: Millis = Millis::from_minutes(10);
pub(crate) const NOON: UnixMillis = UnixMillis::new(1_800_000_000_000);

/// What a run's luck is made of; ENVFORGE_TEST_SEED repeats one.
#[allow(clippy::disallowed_methods, reason = "for whoever looks into a failure")]
pub(crate) fn seed() -> u64 {
    let seed = std::env::var("ENVFORGE_TEST_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("ENVFORGE_TEST_SEED={seed}");
    seed
}

pub(crate) fn org(number: u128) -> OrgId {
    OrgId::from_uuid(Uuid::from_u128(number))
}

pub(crate) fn host(number: u128) -> HostId {
    HostId::from_uuid(Uuid::from_u128(number))
}

pub(crate) fn workspace(number: u128) -> WorkspaceId {
    WorkspaceId::from_uuid(Uuid::from_u128(number))
}

pub(crate) fn capacity(cpu_millicores: u32, memory_mib: u32) -> Capacity {
    Capacity { cpu_millicores, memory_mib }
}

pub(crate) fn policy() -> FleetPolicy {
    let shape = |name: &str, size: Capacity| Shape { name: name.to_owned(), capacity: size, hibernates: true };
    FleetPolicy {
        provider: PROVIDER.to_owned(),
        shapes: vec![shape("m7g.large", capacity(8_000, 8_192)), shape("m7g.xlarge", capacity(16_000, 16_384))],
        shell_shape: Some(shape("t4g.small", capacity(8_000, 2_048))),
        grace: GRACE,
        warm: 0,
        hibernate: false,
        machines_max: 20,
        boot_deadline: Millis::from_minutes(5),
        agent_deadline: Millis::from_minutes(15),
        impaired_after: Millis::from_minutes(5),
        start_patience: Millis::from_hours(6),
        shell_patience: Millis::from_hours(24),
    }
}

pub(crate) fn terms(number: u128, of: u128) -> MachineTerms {
    MachineTerms {
        host: host(number),
        org: org(of),
        purpose: MachinePurpose::Runtime,
        provider: PROVIDER.to_owned(),
        shape: "m7g.large".to_owned(),
        capacity: capacity(8_000, 8_192),
    }
}

pub(crate) fn live(number: u128, of: u128, power: Power) -> LiveMachine {
    let instance = format!("i-{number}");
    LiveMachine {
        terms: terms(number, of),
        instance,
        power,
        impaired: false,
        unhealthy: false,
        draining: false,
        used_at: UnixMillis::EPOCH,
    }
}

pub(crate) fn view(state: Machine, placed: &[(u128, Capacity)], used_at: UnixMillis) -> MachineView {
    let terms = state.terms().unwrap().clone();
    let placed: BTreeMap<_, _> = placed.iter().map(|(number, needs)| (workspace(*number), *needs)).collect();
    MachineView {
        host: terms.host,
        org: terms.org,
        purpose: terms.purpose,
        capacity: terms.capacity,
        state,
        agent: AgentState::Enrolled,
        requested_at: NOON,
        up_at: NOON,
        away: Millis::ZERO,
        missed_for: Millis::ZERO,
        heard_at: NOON,
        enrolled_at: NOON,
        token: Default::default(),
        starts: Starts { asked_at: NOON, ..Starts::default() },
        impaired_since: None,
        stopped_as_unhealthy_at: None,
        drained_at: None,
        placed,
        stale: BTreeSet::new(),
        open_shells: 0,
        used_at,
        needed_until: UnixMillis::EPOCH,
    }
}

/// With a machine for shells that is up, so that only runtimes are planned for.
pub(crate) fn fleet(of: u128, machines: Vec<MachineView>) -> OrganizationFleet {
    let mut shell = live(90 + of, of, Power::On);
    shell.terms.purpose = MachinePurpose::Shell;
    let machines: Vec<_> = machines.into_iter().chain([view(Machine::Live(shell), &[], NOON)]).collect();
    let requested_ever = machines.len();
    OrganizationFleet {
        org: org(of),
        machines,
        demands: Vec::new(),
        workspaces: 1,
        requested_ever,
        failures: Default::default(),
        agents_wanted: 9,
    }
}

pub(crate) fn known(state: Machine) -> (HostId, KnownMachine) {
    let id = Uuid::from_u128(7);
    let host = state.terms().unwrap().host;
    let known = KnownMachine {
        state,
        requested: CommitId::from_uuid(id),
        commit: CommitId::from_uuid(id),
        correlation: CorrelationId::from_uuid(id),
        requested_at: NOON,
        up_at: NOON,
        was_up: false,
        starts: Default::default(),
        stopped_as_unhealthy_at: None,
        drained_at: None,
        host: Default::default(),
    };
    (host, known)
}

pub(crate) fn instance(id: &str, of: &MachineTerms, state: InstanceState) -> Instance {
    Instance {
        id: id.to_owned(),
        state,
        tags: InstanceTags {
            org: Some(of.org),
            host: Some(of.host),
            purpose: Some(of.purpose.token().to_owned()),
            version: Some("0.1.0".to_owned()),
        },
        impaired: false,
        hibernates: false,
        reason: None,
    }
}

pub(crate) const STOP: StopMode = StopMode::Stop;
