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
    /// And one for the resource's workspace.
    Workspace,
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
    /// A program with a service token for this, where whoever made the token may do it by their roles.
    ServiceToken,
}

impl Principal {
    pub const fn token(self) -> &'static str {
        match self {
            Self::LinkVisitor => "link_visitor",
            Self::Agent => "agent",
            Self::System => "system",
            Self::Member => "member",
            Self::ServiceToken => "service_token",
        }
    }
}

/// One row of the policy.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub action: Action,
    pub token: &'static str,
    pub reach: Reach,
    pub roles: &'static [Role],
    /// Each with the surfaces on which it may, which are no one else's.
    pub principals: &'static [(Principal, &'static [Surface])],
    /// Where the roles count; empty where there are none.
    pub surfaces: &'static [Surface],
}

impl Row {
    /// Where somebody without a role may do it; empty where they may not.
    pub fn surfaces_of(&self, principal: Principal) -> &'static [Surface] {
        self.principals.iter().find(|(named, _)| *named == principal).map_or(&[], |(_, surfaces)| surfaces)
    }

    /// Whether anybody may do it there.
    pub(super) fn exists_on(&self, surface: Surface) -> bool {
        self.surfaces.contains(&surface) || self.principals.iter().any(|(_, surfaces)| surfaces.contains(&surface))
    }
}

use Role::{Admin, Billing, Create, Developer, Explore, Mod, Owner, Viewer};

/// The surfaces where people act for themselves.
const PEOPLE: &[Surface] = &[Surface::Api, Surface::Cli, Surface::Console];
/// The machine's command line: first start and recovery.
const SETUP: &[Surface] = &[Surface::Cli];
/// Those, and workspaces' own hosts with the sign-in that opens them.
const PEOPLE_AND_GATEWAY: &[Surface] = &[Surface::Api, Surface::Cli, Surface::Console, Surface::Gateway];
/// Those where people act, and hosts.
const PEOPLE_AND_AGENT: &[Surface] = &[Surface::Api, Surface::Cli, Surface::Console, Surface::Agent];
const GATEWAY: &[Surface] = &[Surface::Gateway];
/// A host's agent, and EnvForge's own components that run beside it.
const AGENT: &[Surface] = &[Surface::Agent];
/// Where programs act with a service token.
const SERVICES: &[Surface] = &[Surface::Api];
const EVERYWHERE: &[Surface] = &Surface::ALL;
/// No role may do it, on whatever surface.
const NOWHERE: &[Surface] = &[];

macro_rules! actions {
    ($($(#[$doc:meta])* $name:ident $token:literal, $reach:ident, [$($role:ident)*], [$($principal:ident on $on:ident)*], $surfaces:ident;)*) => {
        /// What somebody may want to do.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Action { $($(#[$doc])* $name,)* }

        /// The whole policy, one row an action, in the order of `Action`.
        pub const TABLE: &[Row] = &[$(Row {
            action: Action::$name,
            token: $token,
            reach: Reach::$reach,
            roles: &[$($role),*],
            principals: &[$((Principal::$principal, $on)),*],
            surfaces: $surfaces,
        }),*];
    };
}

actions! {
    /// Comes to be with its first owner, from the machine's command line.
    OrganizationCreate "organization.create", Organization, [], [System on SETUP], NOWHERE;
    OrganizationRead "organization.read", Organization, [Owner Admin Developer Viewer Billing Explore Create Mod], [ServiceToken on SERVICES], PEOPLE;
    OrganizationChangePolicy "organization.change_policy", Organization, [Owner Admin Mod], [], PEOPLE;
    MemberRead "member.read", Organization, [Owner Admin Mod], [ServiceToken on SERVICES], PEOPLE;
    MemberAdd "member.add", Organization, [Owner Admin Mod], [System on PEOPLE_AND_GATEWAY], PEOPLE;
    MemberRemove "member.remove", Organization, [Owner Admin Mod], [System on SETUP], PEOPLE;
    /// Which roles may be given to whom is decided by `Role::may_grant`.
    RoleAssign "role.assign", Organization, [Owner Admin Mod], [System on PEOPLE_AND_GATEWAY], PEOPLE;
    RoleRevoke "role.revoke", Organization, [Owner Admin Mod], [System on SETUP], PEOPLE;
    TeamRead "team.read", Organization, [Owner Admin Mod], [ServiceToken on SERVICES], PEOPLE;
    TeamCreate "team.create", Organization, [Owner Admin Mod], [], PEOPLE;
    /// This and the following are for teams whose every role one's own roles reach: to be in a team is to hold its roles.
    TeamRename "team.rename", Organization, [Owner Admin Mod], [], PEOPLE;
    TeamDelete "team.delete", Organization, [Owner Admin Mod], [], PEOPLE;
    TeamAddMember "team.add_member", Organization, [Owner Admin Mod], [], PEOPLE;
    TeamRemoveMember "team.remove_member", Organization, [Owner Admin Mod], [], PEOPLE;
    UserCreate "user.create", Organization, [Owner Admin Mod], [System on PEOPLE_AND_GATEWAY], PEOPLE;
    UserDeactivate "user.deactivate", Organization, [Owner Admin Mod], [System on PEOPLE], PEOPLE;
    /// Records of signing in and out, written by the identity component.
    UserRecordSession "user.record_session", Organization, [], [System on PEOPLE_AND_GATEWAY], NOWHERE;
    /// What taking roles, tightening a policy or closing a workspace has closed. Written by whoever counted it.
    RevocationRecord "revocation.record", Organization, [], [System on PEOPLE], NOWHERE;
    SessionRevokeOwn "session.revoke_own", Organization, [], [Member on PEOPLE], NOWHERE;
    ProfileRead "profile.read", Organization, [], [Member on PEOPLE], NOWHERE;
    ProjectCreate "project.create", Organization, [Owner Admin Create Mod], [ServiceToken on SERVICES], PEOPLE;
    ProjectEdit "project.edit", Project, [Owner Admin Create Mod], [ServiceToken on SERVICES], PEOPLE;
    ProjectRead "project.read", Project, [Owner Admin Developer Viewer Explore Create Mod], [ServiceToken on SERVICES], PEOPLE;
    WorkspaceCreate "workspace.create", Project, [Owner Admin Developer Create Mod], [ServiceToken on SERVICES], PEOPLE;
    WorkspaceRead "workspace.read", Workspace, [Owner Admin Developer Viewer Explore Create Mod], [ServiceToken on SERVICES], PEOPLE;
    WorkspaceChangeManifest "workspace.change_manifest", Workspace, [Owner Admin Developer Create Mod], [ServiceToken on SERVICES], PEOPLE;
    WorkspaceChangeAccessMode "workspace.change_access_mode", Workspace, [Owner Admin Mod], [], PEOPLE;
    WorkspaceArchive "workspace.archive", Workspace, [Owner Admin Developer Create Mod], [ServiceToken on SERVICES], PEOPLE;
    RuntimeWake "runtime.wake", Workspace, [Owner Admin Developer Create Mod], [LinkVisitor on GATEWAY ServiceToken on SERVICES], PEOPLE_AND_GATEWAY;
    RuntimeSleep "runtime.sleep", Workspace, [Owner Admin Developer Create Mod], [System on AGENT ServiceToken on SERVICES], PEOPLE;
    RuntimeKeepAwake "runtime.keep_awake", Workspace, [Owner Admin Developer Create Mod], [ServiceToken on SERVICES], PEOPLE;
    /// Traffic that puts off idle sleep.
    RuntimeRecordActivity "runtime.record_activity", Workspace, [], [System on GATEWAY], NOWHERE;
    /// What a host says of a runtime: stages, ready, asleep, failed, leases.
    RuntimeReport "runtime.report", Workspace, [], [Agent on AGENT System on AGENT], NOWHERE;
    HostRegister "host.register", Organization, [], [Agent on AGENT System on AGENT], NOWHERE;
    HostPlace "host.place", Workspace, [], [System on AGENT], NOWHERE;
    /// Lets an agent enrol as a host of the organization, once.
    HostEnrol "host.enrol", Organization, [Owner Admin], [System on AGENT], PEOPLE;
    /// Names and states: machines and addresses are for nobody.
    HostRead "host.read", Organization, [Owner Admin], [], PEOPLE;
    HostDrain "host.drain", Organization, [Owner Admin], [], PEOPLE;
    HostRevoke "host.revoke", Organization, [Owner Admin], [], PEOPLE;
    LinkIssue "link.issue", Workspace, [Owner Admin Developer Mod], [], PEOPLE;
    LinkRead "link.read", Workspace, [Owner Admin Developer Viewer Mod], [ServiceToken on SERVICES], PEOPLE;
    /// Shows the share URL again: whoever may do this could have issued the link.
    LinkShare "link.share", Workspace, [Owner Admin Developer Mod], [], PEOPLE;
    LinkChangeAllowlist "link.change_allowlist", Workspace, [Owner Admin Developer Mod], [], PEOPLE;
    LinkRotate "link.rotate", Workspace, [Owner Admin Developer Mod], [], PEOPLE;
    LinkRevoke "link.revoke", Workspace, [Owner Admin Developer Mod], [ServiceToken on SERVICES], PEOPLE;
    /// The closing event of a link whose time is over. Expiry itself needs no event to hold.
    LinkExpire "link.expire", Workspace, [], [System on AGENT], NOWHERE;
    /// The POST of a share page: from a proven token to a session on one host.
    LinkOpenSession "link.open_session", Workspace, [], [LinkVisitor on GATEWAY], NOWHERE;
    /// Counters that the gateway keeps about a link: wakes spent, attempts blocked.
    LinkRecordUse "link.record_use", Workspace, [], [LinkVisitor on GATEWAY System on GATEWAY], NOWHERE;
    /// One request or socket of the app surface.
    AppForward "app.forward", Workspace, [], [LinkVisitor on GATEWAY], NOWHERE;
    /// A member's own browser on a workspace's host: its session, and each request and socket of it.
    WorkspaceOpen "workspace.open", Workspace, [Owner Admin Developer Create Mod], [], GATEWAY;
    AuditRead "audit.read", Organization, [Owner Admin Explore Create Mod], [ServiceToken on SERVICES], PEOPLE;
    UsageRead "usage.read", Organization, [Owner Admin Viewer Billing Explore Create Mod], [ServiceToken on SERVICES], PEOPLE;
    DenialRecord "denial.record", Organization, [], [System on EVERYWHERE], NOWHERE;
    /// A person proves once more who they are.
    SessionReauthenticate "session.reauthenticate", Organization, [], [Member on PEOPLE], NOWHERE;
    SessionReadOwn "session.read_own", Organization, [], [Member on PEOPLE], NOWHERE;
    /// Where members are signed in. Whose sessions may be ended is decided by `Role::may_grant`.
    SessionRead "session.read", Organization, [Owner Admin Mod], [], PEOPLE;
    SessionRevoke "session.revoke", Organization, [Owner Admin Mod], [], PEOPLE;
    PasswordChangeOwn "password.change_own", Organization, [], [Member on PEOPLE], NOWHERE;
    ProfileChange "profile.change", Organization, [], [Member on PEOPLE], NOWHERE;
    UserReactivate "user.reactivate", Organization, [Owner Admin Mod], [System on SETUP], PEOPLE;
    InvitationCreate "invitation.create", Organization, [Owner Admin Mod], [], PEOPLE;
    InvitationRead "invitation.read", Organization, [Owner Admin Mod], [], PEOPLE;
    InvitationRevoke "invitation.revoke", Organization, [Owner Admin Mod], [], PEOPLE;
    /// Whoever holds the token joins: written by the identity component, which has seen it.
    InvitationAccept "invitation.accept", Organization, [], [System on PEOPLE], NOWHERE;
    /// Break-glass, from the machine's command line.
    OwnerRecover "owner.recover", Organization, [], [System on SETUP], NOWHERE;
    /// What a token may do is decided by `service_token`: no more than its creator.
    ServiceTokenCreate "service_token.create", Organization, [Owner Admin], [], PEOPLE;
    ServiceTokenRead "service_token.read", Organization, [Owner Admin Mod], [], PEOPLE;
    ServiceTokenRotate "service_token.rotate", Organization, [Owner Admin], [], PEOPLE;
    ServiceTokenRevoke "service_token.revoke", Organization, [Owner Admin], [], PEOPLE;
    /// Asks whether somebody else may do something, and why.
    AuthzCheck "authz.check", Workspace, [Owner Admin Mod], [ServiceToken on SERVICES], PEOPLE;
    /// Asks for a root window. No link, agent or service token has a row for any of these.
    RootRequest "root.request", Workspace, [Owner Admin Developer], [], PEOPLE;
    /// Opens one at once, where nobody is there to approve it. Somebody else reviews it.
    RootBreakGlass "root.break_glass", Workspace, [Owner Admin], [], PEOPLE;
    RootRead "root.read", Workspace, [Owner Admin Developer], [], PEOPLE;
    /// Of somebody else's request; the domain refuses one's own, and those of whoever gave one what one decides by.
    RootApprove "root.approve", Workspace, [Owner Admin], [], PEOPLE;
    RootDeny "root.deny", Workspace, [Owner Admin], [], PEOPLE;
    RootRevoke "root.revoke", Workspace, [Owner Admin], [], PEOPLE;
    /// Of somebody else's break-glass window.
    RootReview "root.review", Workspace, [Owner Admin], [], PEOPLE;
    /// Of one's own window, as is running a command in it.
    RootWithdraw "root.withdraw", Workspace, [Owner Admin Developer], [], PEOPLE;
    RootRun "root.run", Workspace, [Owner Admin Developer], [], PEOPLE;
    /// The closing event of a window whose time is over. Expiry itself needs no event to hold.
    RootExpire "root.expire", Workspace, [], [System on AGENT], NOWHERE;
    /// What a host says of a command that runs as root.
    RootReport "root.report", Workspace, [], [System on AGENT], NOWHERE;
    /// Puts a value into the store, and says who may use it. Nobody reads one back; no link, agent or service token sets one.
    SecretSet "secret.set", Workspace, [Owner Admin Developer Mod], [], PEOPLE;
    /// Names, versions and who set them; never a value.
    SecretList "secret.list", Workspace, [Owner Admin Developer Viewer Explore Create Mod], [ServiceToken on SERVICES], PEOPLE;
    SecretRemove "secret.remove", Workspace, [Owner Admin Developer Mod], [], PEOPLE;
    /// Takes from the store what the services of one waking workspace declare and may use. No person has a row for it.
    SecretResolve "secret.resolve", Workspace, [], [System on AGENT], NOWHERE;
    /// A terminal, a command or SSH in the workspace, asleep or awake; each frame of it. No link, agent or service token has a row for it.
    ShellOpen "shell.open", Workspace, [Owner Admin Developer Mod], [], PEOPLE;
    /// The end of a shell, as whoever carried it saw it, or as the host finds after its own death.
    ShellReport "shell.report", Workspace, [], [System on PEOPLE_AND_AGENT], NOWHERE;
    /// What services write, which may hold anything.
    LogsRead "logs.read", Workspace, [Owner Admin Developer Create Mod], [], PEOPLE;
    /// Runs a job that envforge.yml declares. It wakes the runtime.
    JobRun "job.run", Workspace, [Owner Admin Developer Create Mod], [ServiceToken on SERVICES], PEOPLE;
    JobReport "job.report", Workspace, [], [System on PEOPLE_AND_AGENT], NOWHERE;
    /// Asks a provider for a machine of the organization, and for its start, stop, drain and end.
    MachineManage "machine.manage", Organization, [], [System on AGENT], NOWHERE;
    /// What a provider says of machines.
    MachineReport "machine.report", Organization, [], [System on AGENT], NOWHERE;
}

impl Action {
    pub const fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }

    pub const fn token(self) -> &'static str {
        self.row().token
    }

    /// Whether it gives somebody a link or makes one open more, which the organization's policy leaves to some roles.
    pub const fn gives_links(self) -> bool {
        matches!(self, Self::LinkIssue | Self::LinkShare | Self::LinkChangeAllowlist | Self::LinkRotate)
    }

    pub fn from_token(token: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.token == token).map(|row| row.action)
    }
}
