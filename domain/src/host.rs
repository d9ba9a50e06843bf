//! Hosts: machines that belong to exactly one organization, and what is placed on them.
//!
//! INVARIANT: a host never holds workspaces of two organizations (SPEC, rule 1). Held here, and again by the claim on
//! the machine, by the planner and by the agent.

use std::collections::BTreeMap;

use crate::access::Action;
use crate::aggregate::{Aggregate, Refusal, RefusalKind};
use crate::commit::StreamKind;
use crate::event::Event;
use crate::ids::{HostId, OrgId, WorkspaceId};

/// CPU and memory, as a host offers or a workspace needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Capacity {
    pub cpu_millicores: u32,
    pub memory_mib: u32,
}

impl Capacity {
    pub fn fits_into(&self, room: &Self) -> bool {
        self.cpu_millicores <= room.cpu_millicores && self.memory_mib <= room.memory_mib
    }

    pub fn minus(&self, taken: &Self) -> Self {
        Self {
            cpu_millicores: self.cpu_millicores.saturating_sub(taken.cpu_millicores),
            memory_mib: self.memory_mib.saturating_sub(taken.memory_mib),
        }
    }

    pub fn plus(&self, more: &Self) -> Self {
        Self {
            cpu_millicores: self.cpu_millicores.saturating_add(more.cpu_millicores),
            memory_mib: self.memory_mib.saturating_add(more.memory_mib),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostEvent {
    /// `machine` is the provider's own key of the machine, the same as in its claim.
    Registered {
        host: HostId,
        org: OrgId,
        provider: String,
        machine: String,
        capacity: Capacity,
    },
    Placed {
        workspace: WorkspaceId,
        needs: Capacity,
    },
    Released {
        workspace: WorkspaceId,
    },
    Retired,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostCommand {
    Register { host: HostId, org: OrgId, provider: String, machine: String, capacity: Capacity },
    Place { workspace: WorkspaceId, org: OrgId, needs: Capacity },
    Release { workspace: WorkspaceId },
    Retire,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Host {
    #[default]
    Unknown,
    Active(ActiveHost),
    Retired,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveHost {
    pub host: HostId,
    pub org: OrgId,
    pub machine: String,
    pub capacity: Capacity,
    pub placed: BTreeMap<WorkspaceId, Capacity>,
}

impl ActiveHost {
    pub fn room(&self) -> Capacity {
        self.placed.values().fold(self.capacity, |room, taken| room.minus(taken))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostRefusal {
    #[error("there is no such host")]
    Unknown,
    #[error("the host is registered already")]
    Registered,
    #[error("the host is retired")]
    Retired,
    #[error("the host belongs to another organization")]
    CrossOrganization,
    #[error("the workspace needs {} millicores and {} MiB, the host has {} and {} left", .needs.cpu_millicores, .needs.memory_mib, .room.cpu_millicores, .room.memory_mib)]
    NoRoom { needs: Capacity, room: Capacity },
    #[error("the host still holds {count} workspaces; release them first")]
    NotEmpty { count: usize },
}

impl Refusal for HostRefusal {
    fn code(&self) -> &'static str {
        match self {
            Self::Unknown => "host_unknown",
            Self::Registered => "host_registered",
            Self::Retired => "host_retired",
            Self::CrossOrganization => "host_cross_organization",
            Self::NoRoom { .. } => "host_no_room",
            Self::NotEmpty { .. } => "host_not_empty",
        }
    }

    fn kind(&self) -> RefusalKind {
        match self {
            Self::Unknown => RefusalKind::NotFound,
            Self::Registered | Self::NoRoom { .. } | Self::NotEmpty { .. } => RefusalKind::Conflict,
            Self::Retired => RefusalKind::Gone,
            Self::CrossOrganization => RefusalKind::Forbidden,
        }
    }
}

impl Aggregate for Host {
    const KIND: StreamKind = StreamKind::Host;
    type State = Self;
    type Command = HostCommand;
    type Event = HostEvent;
    type Refusal = HostRefusal;

    fn decide(state: &Self, command: &HostCommand) -> Result<Vec<HostEvent>, HostRefusal> {
        match (state, command) {
            (Self::Unknown, HostCommand::Register { host, org, provider, machine, capacity }) => {
                Ok(vec![HostEvent::Registered {
                    host: *host,
                    org: *org,
                    provider: provider.clone(),
                    machine: machine.clone(),
                    capacity: *capacity,
                }])
            }
            (Self::Active(active), HostCommand::Register { host, org, machine, .. })
                if active.host == *host && active.org == *org && active.machine == *machine =>
            {
                Ok(vec![])
            }
            (Self::Active(_), HostCommand::Register { .. }) => Err(HostRefusal::Registered),
            (Self::Active(active), HostCommand::Place { workspace, org, needs }) => {
                if active.org != *org {
                    return Err(HostRefusal::CrossOrganization);
                }
                if active.placed.get(workspace) == Some(needs) {
                    return Ok(vec![]);
                }
                let mut without = active.clone();
                without.placed.remove(workspace);
                let room = without.room();
                if !needs.fits_into(&room) {
                    return Err(HostRefusal::NoRoom { needs: *needs, room });
                }
                Ok(vec![HostEvent::Placed { workspace: *workspace, needs: *needs }])
            }
            (Self::Active(active), HostCommand::Release { workspace }) => {
                Ok(if active.placed.contains_key(workspace) {
                    vec![HostEvent::Released { workspace: *workspace }]
                } else {
                    vec![]
                })
            }
            (Self::Active(active), HostCommand::Retire) => match active.placed.len() {
                0 => Ok(vec![HostEvent::Retired]),
                count => Err(HostRefusal::NotEmpty { count }),
            },
            (Self::Retired, HostCommand::Retire) => Ok(vec![]),
            (Self::Retired, HostCommand::Register { .. } | HostCommand::Place { .. } | HostCommand::Release { .. }) => {
                Err(HostRefusal::Retired)
            }
            (Self::Unknown, HostCommand::Place { .. } | HostCommand::Release { .. } | HostCommand::Retire) => {
                Err(HostRefusal::Unknown)
            }
        }
    }

    fn evolve(state: Self, event: &HostEvent) -> Self {
        match (state, event) {
            (_, HostEvent::Registered { host, org, machine, capacity, .. }) => Self::Active(ActiveHost {
                host: *host,
                org: *org,
                machine: machine.clone(),
                capacity: *capacity,
                placed: BTreeMap::new(),
            }),
            (Self::Active(mut active), HostEvent::Placed { workspace, needs }) => {
                active.placed.insert(*workspace, *needs);
                Self::Active(active)
            }
            (Self::Active(mut active), HostEvent::Released { workspace }) => {
                active.placed.remove(workspace);
                Self::Active(active)
            }
            (Self::Active(_), HostEvent::Retired) => Self::Retired,
            (
                state @ (Self::Unknown | Self::Retired),
                HostEvent::Placed { .. } | HostEvent::Released { .. } | HostEvent::Retired,
            ) => state,
        }
    }

    fn event_of(event: &Event) -> Option<&HostEvent> {
        if let Event::Host(event) = event { Some(event) } else { None }
    }

    fn action_of(command: &HostCommand) -> Action {
        match command {
            HostCommand::Register { .. } | HostCommand::Retire => Action::HostRegister,
            HostCommand::Place { .. } | HostCommand::Release { .. } => Action::HostPlace,
        }
    }
}

impl From<HostEvent> for Event {
    fn from(event: HostEvent) -> Self {
        Self::Host(event)
    }
}
