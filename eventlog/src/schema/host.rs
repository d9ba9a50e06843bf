//! Stored events of hosts.

use envforge_domain::host::{Capacity, HostEvent};
use envforge_domain::ids::{HostId, OrgId, WorkspaceId};

use super::wire::{events, object};

events! {
    HostEvent {
        "host.registered.v1" => Registered {
            host: HostId = "host",
            org: OrgId = "org",
            provider: String = "provider",
            machine: String = "machine",
            capacity: Capacity = "capacity",
        },
        "host.placed.v1" => Placed { workspace: WorkspaceId = "workspace", needs: Capacity = "needs" },
        "host.released.v1" => Released { workspace: WorkspaceId = "workspace" },
        "host.retired.v1" => Retired,
    }
}

object! {
    Capacity {
        cpu_millicores: u32 = "cpu_millicores",
        memory_mib: u32 = "memory_mib",
    }
}
