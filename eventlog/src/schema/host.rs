//! Stored events of hosts.

use envforge_domain::host::{Capacity, HostEvent};
use envforge_domain::ids::{HostId, OrgId, WorkspaceId};
use envforge_domain::secret::TokenDigest;
use envforge_domain::slug::HostName;
use envforge_domain::time::{Millis, UnixMillis};

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
        "host.enrolment_issued.v1" => EnrolmentIssued {
            host: HostId = "host",
            org: OrgId = "org",
            name: HostName = "name",
            token: TokenDigest = "token",
            expires_at: UnixMillis = "expires_at",
        },
        "host.enrolled.v1" => Enrolled {
            enrolment: u32 = "enrolment",
            certificate: TokenDigest = "certificate",
            certificate_expires_at: UnixMillis = "certificate_expires_at",
            agent_version: String = "agent_version",
        },
        "host.certificate_renewed.v1" => CertificateRenewed {
            certificate: TokenDigest = "certificate",
            certificate_expires_at: UnixMillis = "certificate_expires_at",
        },
        "host.agent_looked_for.v1" => AgentLookedFor { away: Millis = "away_ms" },
        "host.draining.v1" => Draining,
        "host.revoked.v1" => Revoked,
    }
}

object! {
    Capacity {
        cpu_millicores: u32 = "cpu_millicores",
        memory_mib: u32 = "memory_mib",
    }
}
