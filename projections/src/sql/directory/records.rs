//! What the directory's queries answer in: typed records made of rows, and the small JSON values that columns hold.

use std::collections::BTreeMap;

use envforge_domain::access::Role;
use envforge_domain::dev_link::{RouteFamilies, RouteFamily};
use envforge_domain::ids::{HostId, LinkId, OrgId, ProjectId, TeamId, UserId, WorkspaceId};
use envforge_domain::organization::OrganizationPolicy;
use envforge_domain::root_window::RootPolicy;
use envforge_domain::runtime::{ReadyService, WakeCause};
use envforge_domain::slug::{OrgSlug, ProjectSlug, ServiceName, WorkspaceSlug};
use envforge_domain::time::{Millis, UnixMillis};
use envforge_domain::workspace::AccessMode;
use serde::{Deserialize, Serialize};

use super::super::database::DatabaseError;
use super::super::ready_services;
use super::super::table::{Row, uint};
use super::super::wake_cause;
use super::rows::{HostRow, OrganizationRow, ProjectRow, UserRow};

pub(super) fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("texts, numbers and lists always make JSON")
}

/// A grant within `directory_members.grants`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct StoredGrant {
    pub(super) role: String,
    pub(super) project: Option<String>,
    /// Rows of former versions lack it.
    pub(super) workspace: Option<String>,
    pub(super) expires_at: Option<u64>,
}

impl StoredGrant {
    /// The column is written by `to_json` alone; an empty list where somebody else wrote into it.
    pub(super) fn list(text: &str) -> Vec<Self> {
        serde_json::from_str(text).unwrap_or_default()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct HostPlacement {
    pub(super) cpu_millicores: u32,
    pub(super) memory_mib: u32,
}

/// Why a runtime went to sleep, as columns hold it and the API shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum StoredSleepCause {
    Idle { idle_for_ms: u64 },
    Person { by: String },
    WorkspaceArchived,
    Shutdown,
    UsageCap,
    SecretRotated { name: String },
    HostLost,
}

/// An organization.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrganizationRecord {
    pub id: OrgId,
    pub slug: OrgSlug,
    pub name: String,
    pub policy: OrganizationPolicy,
    pub created_at: UnixMillis,
}

/// A role that a member or team holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberGrant {
    pub role: Role,
    /// `None`: the whole organization.
    pub project: Option<ProjectId>,
    /// Only this one of the project.
    pub workspace: Option<WorkspaceId>,
    /// The end of the grant, which may have passed.
    pub expires_at: Option<UnixMillis>,
}

/// A member of an organization, with their name as EnvForge mirrors it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberRecord {
    pub user: UserId,
    /// `None` where the user's own record is in another organization or not folded yet.
    pub name: Option<String>,
    pub email: Option<String>,
    pub active: bool,
    pub since: UnixMillis,
    pub grants: Vec<MemberGrant>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserRecord {
    pub id: UserId,
    pub org: OrgId,
    pub issuer: String,
    pub subject: String,
    pub email: String,
    pub name: String,
    pub created_at: UnixMillis,
    pub deactivated_at: Option<UnixMillis>,
    /// When the latest session was opened.
    pub signed_in_at: Option<UnixMillis>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProjectRecord {
    pub id: ProjectId,
    pub org: OrgId,
    pub slug: ProjectSlug,
    pub name: String,
    pub repository: String,
    pub created_at: UnixMillis,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkspaceRecord {
    pub id: WorkspaceId,
    pub org: OrgId,
    pub project: ProjectId,
    /// For display; `None` only while its project is not folded yet, which the log's order rules out.
    pub project_slug: Option<String>,
    pub slug: WorkspaceSlug,
    pub branch: String,
    /// Canonical text: `Manifest::parse` reads it back.
    pub manifest: String,
    /// 64 hexadecimal digits.
    pub manifest_digest: String,
    pub access_mode: AccessMode,
    pub created_by: Option<UserId>,
    pub created_by_name: Option<String>,
    pub created_at: UnixMillis,
    pub archived_at: Option<UnixMillis>,
    /// `None` before the first wake.
    pub runtime: Option<RuntimeRecord>,
}

/// What a runtime does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RuntimePhase {
    Asleep,
    Waking,
    Ready,
    Sleeping,
    Failed,
}

impl RuntimePhase {
    pub const ALL: [Self; 5] = [Self::Asleep, Self::Waking, Self::Ready, Self::Sleeping, Self::Failed];

    pub const fn token(self) -> &'static str {
        match self {
            Self::Asleep => "asleep",
            Self::Waking => "waking",
            Self::Ready => "ready",
            Self::Sleeping => "sleeping",
            Self::Failed => "failed",
        }
    }

    pub fn from_token(token: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.token() == token)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeRecord {
    pub workspace: WorkspaceId,
    pub phase: RuntimePhase,
    /// While waking: how far it is. When failed while waking: where.
    pub stage: Option<String>,
    pub epoch: u64,
    /// When it entered the phase, by the log's clock.
    pub since: UnixMillis,
    pub wake_cause: WakeCause,
    /// Why it went to sleep last, as JSON with `kind`; `None` while it has not.
    pub sleep_cause: Option<String>,
    /// A wake that follows once it has gone to sleep.
    pub queued_cause: Option<WakeCause>,
    pub failure: Option<String>,
    pub ready_at: Option<UnixMillis>,
    pub lease_until: Option<UnixMillis>,
    pub keep_awake_until: Option<UnixMillis>,
    pub keep_awake_reason: Option<String>,
    pub keep_awake_by: Option<UserId>,
    /// Why a due sleep was put off: `keep_awake` or `open_streams`.
    pub postponed: Option<String>,
    pub active_at: Option<UnixMillis>,
    pub open_streams: Option<u64>,
    /// Of the checkout that runs.
    pub commit_hash: Option<String>,
    /// Services that answered when it became ready.
    pub services: Vec<ReadyService>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LinkPhase {
    Active,
    Expired,
    Revoked,
}

impl LinkPhase {
    pub const ALL: [Self; 3] = [Self::Active, Self::Expired, Self::Revoked];

    pub const fn token(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }

    pub fn from_token(token: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.token() == token)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkRecord {
    pub id: LinkId,
    pub org: OrgId,
    pub project: ProjectId,
    pub workspace: WorkspaceId,
    pub workspace_slug: Option<String>,
    pub service: ServiceName,
    /// As recorded. A link whose `expires_at` has passed is over, whether or not the closing event is there yet.
    pub phase: LinkPhase,
    pub families: RouteFamilies,
    pub label: String,
    pub token_generation: u32,
    pub issued_by: UserId,
    pub issued_by_name: Option<String>,
    pub issued_at: UnixMillis,
    pub expires_at: UnixMillis,
    /// When it was revoked or recorded as expired.
    pub ended_at: Option<UnixMillis>,
    pub revoke_reason: Option<String>,
    pub wake_budget: Option<u32>,
    pub wakes_spent: u32,
    pub first_used_at: Option<UnixMillis>,
    pub sessions_opened: u64,
    /// Blocked attempts by the denial's code.
    pub blocked: BTreeMap<String, u64>,
    pub blocked_at: Option<UnixMillis>,
}

/// For operators only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRecord {
    pub id: HostId,
    pub org: OrgId,
    pub provider: String,
    pub machine: String,
    pub cpu_millicores: u32,
    pub memory_mib: u32,
    pub cpu_millicores_used: u32,
    pub memory_mib_used: u32,
    pub workspaces: Vec<WorkspaceId>,
    pub registered_at: UnixMillis,
    pub retired_at: Option<UnixMillis>,
}

/// Reads columns of one table into the domain's types, saying which table broke.
pub(super) struct Reader(pub(super) &'static str);

impl Reader {
    pub(super) fn broken(&self, reason: impl std::fmt::Display) -> DatabaseError {
        DatabaseError::Row { table: self.0, reason: reason.to_string() }
    }

    pub(super) fn parse<T>(&self, text: &str) -> Result<T, DatabaseError>
    where
        T: std::str::FromStr,
        T::Err: std::fmt::Display,
    {
        text.parse().map_err(|error| self.broken(error))
    }

    pub(super) fn parse_some<T>(&self, text: Option<&str>) -> Result<Option<T>, DatabaseError>
    where
        T: std::str::FromStr,
        T::Err: std::fmt::Display,
    {
        text.map(|text| self.parse(text)).transpose()
    }

    pub(super) fn token<T>(&self, text: &str, from_token: impl Fn(&str) -> Option<T>) -> Result<T, DatabaseError> {
        from_token(text).ok_or_else(|| self.broken(format!("`{text}` is not expected there")))
    }

    pub(super) fn json<T: for<'de> Deserialize<'de>>(&self, text: &str) -> Result<T, DatabaseError> {
        serde_json::from_str(text).map_err(|error| self.broken(error))
    }

    pub(super) fn cause(&self, text: &str) -> Result<WakeCause, DatabaseError> {
        wake_cause::parse(text).map_err(|error| self.broken(error))
    }

    pub(super) fn u32(&self, value: i64) -> Result<u32, DatabaseError> {
        u32::try_from(value).map_err(|error| self.broken(error))
    }

    pub(super) fn families(&self, text: &str) -> Result<RouteFamilies, DatabaseError> {
        let tokens = text.split(',').filter(|token| !token.is_empty());
        tokens.map(|token| self.token(token, RouteFamily::from_token)).collect()
    }

    pub(super) fn access_mode(&self, text: &str) -> Result<AccessMode, DatabaseError> {
        match text {
            "signed_links" => Ok(AccessMode::SignedLinks),
            "tailscale_only" => Ok(AccessMode::TailscaleOnly),
            _ => Err(self.broken(format!("`{text}` is not an access mode"))),
        }
    }

    pub(super) fn services(&self, text: &str) -> Result<Vec<ReadyService>, DatabaseError> {
        ready_services::parse(text).map_err(|error| self.broken(error))
    }

    pub(super) fn grants(&self, text: &str) -> Result<Vec<MemberGrant>, DatabaseError> {
        let stored: Vec<StoredGrant> = self.json(text)?;
        let grant = |grant: StoredGrant| {
            Ok(MemberGrant {
                role: self.parse(&grant.role)?,
                project: self.parse_some(grant.project.as_deref())?,
                workspace: self.parse_some(grant.workspace.as_deref())?,
                expires_at: grant.expires_at.map(UnixMillis::new),
            })
        };
        stored.into_iter().map(grant).collect()
    }
}

pub(super) fn instant(value: i64) -> UnixMillis {
    UnixMillis::new(uint(value))
}

impl TryFrom<OrganizationRow> for OrganizationRecord {
    type Error = DatabaseError;

    fn try_from(row: OrganizationRow) -> Result<Self, DatabaseError> {
        let read = Reader(OrganizationRow::TABLE.name);
        let policy = OrganizationPolicy {
            link_lifetime_max: Millis::new(uint(row.link_lifetime_max_ms)),
            link_families: read.families(&row.link_families)?,
            idle_sleep_max: Millis::new(uint(row.idle_sleep_max_ms)),
            keep_awake_max: Millis::new(uint(row.keep_awake_max_ms)),
            link_issuers: row
                .link_issuers
                .split(',')
                .filter(|token| !token.is_empty())
                .map(|token| read.parse::<Role>(token))
                .collect::<Result<_, _>>()?,
            session_lifetime_max: Millis::new(uint(row.session_lifetime_max_ms)),
            identity_providers: read.json(&row.identity_providers)?,
            service_token_lifetime_max: Millis::new(uint(row.service_token_lifetime_max_ms)),
            root: read.token(&row.root_policy, RootPolicy::from_token)?,
            root_window_max: Millis::new(uint(row.root_window_max_ms)),
        };
        Ok(Self {
            id: read.parse(&row.id)?,
            slug: read.parse(&row.slug)?,
            name: row.name,
            policy,
            created_at: instant(row.created_at),
        })
    }
}

impl TryFrom<UserRow> for UserRecord {
    type Error = DatabaseError;

    fn try_from(row: UserRow) -> Result<Self, DatabaseError> {
        let read = Reader(UserRow::TABLE.name);
        Ok(Self {
            id: read.parse(&row.id)?,
            org: read.parse(&row.org)?,
            issuer: row.issuer,
            subject: row.subject,
            email: row.email,
            name: row.name,
            created_at: instant(row.created_at),
            deactivated_at: row.deactivated_at.map(instant),
            signed_in_at: row.signed_in_at.map(instant),
        })
    }
}

impl TryFrom<ProjectRow> for ProjectRecord {
    type Error = DatabaseError;

    fn try_from(row: ProjectRow) -> Result<Self, DatabaseError> {
        let read = Reader(ProjectRow::TABLE.name);
        Ok(Self {
            id: read.parse(&row.id)?,
            org: read.parse(&row.org)?,
            slug: read.parse(&row.slug)?,
            name: row.name,
            repository: row.repository,
            created_at: instant(row.created_at),
        })
    }
}

impl TryFrom<HostRow> for HostRecord {
    type Error = DatabaseError;

    fn try_from(row: HostRow) -> Result<Self, DatabaseError> {
        let read = Reader(HostRow::TABLE.name);
        let placed: BTreeMap<String, HostPlacement> = read.json(&row.placed)?;
        Ok(Self {
            id: read.parse(&row.id)?,
            org: read.parse(&row.org)?,
            provider: row.provider,
            machine: row.machine,
            cpu_millicores: read.u32(row.cpu_millicores)?,
            memory_mib: read.u32(row.memory_mib)?,
            cpu_millicores_used: placed.values().map(|needs| needs.cpu_millicores).sum(),
            memory_mib_used: placed.values().map(|needs| needs.memory_mib).sum(),
            workspaces: placed.keys().map(|id| read.parse(id)).collect::<Result<_, _>>()?,
            registered_at: instant(row.registered_at),
            retired_at: row.retired_at.map(instant),
        })
    }
}

/// The team of a grantee's id, where it is one.
pub(super) fn team(grantee: &str) -> Option<TeamId> {
    grantee.parse().ok()
}
