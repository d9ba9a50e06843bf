//! What a host is asked for, and what it answers: the wake order, its stages, and the runtime that came of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use envforge_domain::ids::{OrgId, WorkspaceId};
use envforge_domain::manifest::Manifest;
use envforge_domain::secret::Secret;
use envforge_domain::slug::ServiceName;
use envforge_domain::time::Millis;

use crate::git_login::GitLogin;

/// One wake of one workspace. Without `Debug`: it carries secrets.
#[derive(Clone)]
pub struct WakeOrder {
    pub org: OrgId,
    pub workspace: WorkspaceId,
    /// Grows with each wake of the workspace. Orders for the same epoch are one wake; an epoch that was put to sleep
    /// never wakes again.
    pub epoch: u64,
    /// `https://`, `ssh://`, `user@host:path`, `file://` or an absolute path.
    pub repository: String,
    /// A branch's short name (`main`, `feature/links`). Its tip is checked out at each wake.
    pub branch: String,
    pub manifest: Manifest,
    /// For the whole wake; at most `limits::WAKE_DEADLINE` counts.
    pub deadline: Millis,
    /// Public host with port, per service (`web--links--acme.dev.localhost:7080`): exported to dev servers, which check
    /// Host headers against it, and sent by readiness probes. Services without an entry get none.
    pub public_hosts: BTreeMap<ServiceName, String>,
    /// Values of the secrets that services declare, by name. A service gets only those that it declares.
    pub secrets: BTreeMap<String, Secret>,
    /// What git shows the repository's server, where it is reached over https.
    pub git: Option<GitLogin>,
}

/// A runtime that is up: every declared readiness held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Awake {
    /// Services that listen, in the manifest's order. Fixed for the whole epoch. For the gateway alone: never shown to a person.
    pub endpoints: Vec<(ServiceName, SocketAddr)>,
    /// The checked out commit's git id, in hexadecimal.
    pub commit: String,
}

/// How far a wake is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    CheckingOut,
    Starting { service: ServiceName },
    Probing { service: ServiceName },
    Ready,
}
