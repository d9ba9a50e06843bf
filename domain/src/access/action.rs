//! Every action that exists, with its row of the policy: who may do it, where it counts, on which surfaces.
//!
//! This is the policy. `tests/golden/access.txt` is generated from it and reviewed like code.

use super::role::Role;
use crate::commit::Surface;

/// What a grant must cover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Only an organization-wide grant counts.
    Organization,
    /// A grant for the resource's project counts too.
    Project,
}

/// Those who act without a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Principal {
    /// A reviewer's session, on the one workspace and service of its link.
    LinkVisitor,
    /// A host's agent, on the workspaces of its organization.
    Agent,
    /// EnvForge itself.
    System,
    /// Any signed-in member, on what is their own.
    Member,
}

/// One row of the policy.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub action: Action,
    pub token: &'static str,
    pub reach: Reach,
    pub roles: &'static [Role],
    pub principals: &'static [Principal],
    pub surfaces: &'static [Surface],
}

use Role::{Admin, Billing, Create, Developer, Explore, Mod, Owner, Viewer};

/// The surfaces where people act for themselves.
const PEOPLE: &[Surface] = &[Surface::Api, Surface::Cli, Surface::Console];
const GATEWAY: &[Surface] = &[Surface::Gateway];
const AGENT: &[Surface] = &[Surface::Agent];
/// People's surfaces and those of EnvForge's own components.
const PEOPLE_GATEWAY_AGENT: &[Surface] =
    &[Surface::Api, Surface::Cli, Surface::Console, Surface::Gateway, Surface::Agent];
const PEOPLE_AND_AGENT: &[Surface] = &[Surface::Api, Surface::Cli, Surface::Console, Surface::Agent];

macro_rules! actions {
    ($($(#[$doc:meta])* $name:ident $token:literal, $reach:ident, [$($role:ident)*], [$($principal:ident)*], $surfaces:expr;)*) => {
        /// What somebody may want to do.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Action { $($(#[$doc])* $name,)* }

        /// The whole policy, one row an action, in the order of `Action`.
        pub const TABLE: &[Row] = &[$(Row {
            action: Action::$name,
            token: $token,
            reach: Reach::$reach,
            roles: &[$($role),*],
            principals: &[$(Principal::$principal),*],
            surfaces: $surfaces,
        }),*];
    };
}

actions! {
    /// Comes to be with its first owner, from the machine's command line.
    OrganizationCreate "organization.create", Organization, [], [System], PEOPLE;
    OrganizationRead "organization.read", Organization, [Owner Admin Developer Viewer Billing Explore Create Mod], [], PEOPLE;
    OrganizationChangePolicy "organization.change_policy", Organization, [Owner Admin Mod], [], PEOPLE;
    MemberRead "member.read", Organization, [Owner Admin Mod], [], PEOPLE;
    MemberAdd "member.add", Organization, [Owner Admin Mod], [System], PEOPLE;
    MemberRemove "member.remove", Organization, [Owner Admin Mod], [System], PEOPLE;
    /// Which roles may be given to whom is decided by `Role::may_grant`.
    RoleAssign "role.assign", Organization, [Owner Admin Mod], [System], PEOPLE;
    RoleRevoke "role.revoke", Organization, [Owner Admin Mod], [System], PEOPLE;
    UserCreate "user.create", Organization, [Owner Admin Mod], [System], PEOPLE;
    UserDeactivate "user.deactivate", Organization, [Owner Admin Mod], [System], PEOPLE;
    /// Records of signing in and out, written by the identity component.
    UserRecordSession "user.record_session", Organization, [], [System], PEOPLE;
    SessionRevokeOwn "session.revoke_own", Organization, [], [Member], PEOPLE;
    ProfileRead "profile.read", Organization, [], [Member], PEOPLE;
    ProjectCreate "project.create", Organization, [Owner Admin Create Mod], [], PEOPLE;
    ProjectEdit "project.edit", Project, [Owner Admin Create Mod], [], PEOPLE;
    ProjectRead "project.read", Project, [Owner Admin Developer Viewer Explore Create Mod], [], PEOPLE;
    WorkspaceCreate "workspace.create", Project, [Owner Admin Developer Create Mod], [], PEOPLE;
    WorkspaceRead "workspace.read", Project, [Owner Admin Developer Viewer Explore Create Mod], [], PEOPLE;
    WorkspaceChangeManifest "workspace.change_manifest", Project, [Owner Admin Developer Create Mod], [], PEOPLE;
    WorkspaceChangeAccessMode "workspace.change_access_mode", Project, [Owner Admin Mod], [], PEOPLE;
    WorkspaceArchive "workspace.archive", Project, [Owner Admin Developer Create Mod], [], PEOPLE;
    RuntimeWake "runtime.wake", Project, [Owner Admin Developer Create Mod], [LinkVisitor], PEOPLE_GATEWAY_AGENT;
    RuntimeSleep "runtime.sleep", Project, [Owner Admin Developer Create Mod], [System], PEOPLE_AND_AGENT;
    RuntimeKeepAwake "runtime.keep_awake", Project, [Owner Admin Developer Create Mod], [], PEOPLE;
    /// Traffic that puts off idle sleep.
    RuntimeRecordActivity "runtime.record_activity", Project, [], [System], GATEWAY;
    /// What a host says of a runtime: stages, ready, asleep, failed, leases.
    RuntimeReport "runtime.report", Project, [], [Agent System], AGENT;
    HostRegister "host.register", Organization, [], [Agent System], AGENT;
    HostPlace "host.place", Project, [], [System], AGENT;
    LinkIssue "link.issue", Project, [Owner Admin Developer Mod], [], PEOPLE;
    LinkRead "link.read", Project, [Owner Admin Developer Viewer Mod], [], PEOPLE;
    /// Shows the share URL again: whoever may do this could have issued the link.
    LinkShare "link.share", Project, [Owner Admin Developer Mod], [], PEOPLE;
    LinkChangeAllowlist "link.change_allowlist", Project, [Owner Admin Developer Mod], [], PEOPLE;
    LinkRotate "link.rotate", Project, [Owner Admin Developer Mod], [], PEOPLE;
    LinkRevoke "link.revoke", Project, [Owner Admin Developer Mod], [], PEOPLE;
    /// The closing event of a link whose time is over. Expiry itself needs no event to hold.
    LinkExpire "link.expire", Project, [], [System], AGENT;
    /// The POST of a share page: from a proven token to a session on one host.
    LinkOpenSession "link.open_session", Project, [], [LinkVisitor], GATEWAY;
    /// Counters that the gateway keeps about a link: wakes spent, attempts blocked.
    LinkRecordUse "link.record_use", Project, [], [LinkVisitor System], GATEWAY;
    /// One request or socket of the app surface.
    AppForward "app.forward", Project, [], [LinkVisitor], GATEWAY;
    AuditRead "audit.read", Organization, [Owner Admin Explore Create Mod], [], PEOPLE;
    UsageRead "usage.read", Organization, [Owner Admin Viewer Billing Explore Create Mod], [], PEOPLE;
    DenialRecord "denial.record", Organization, [], [System], PEOPLE_GATEWAY_AGENT;
}

impl Action {
    pub const fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }

    pub const fn token(self) -> &'static str {
        self.row().token
    }

    pub fn from_token(token: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.token == token).map(|row| row.action)
    }
}
