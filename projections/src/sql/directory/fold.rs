//! From commits to the directory's rows.

use std::collections::BTreeMap;

use envforge_domain::access::{Grantee, Role, Scope};
use envforge_domain::commit::{Actor, Recorded};
use envforge_domain::dev_link::{DevLinkEvent, RouteFamilies};
use envforge_domain::event::Event;
use envforge_domain::host::HostEvent;
use envforge_domain::manifest::Manifest;
use envforge_domain::organization::{OrganizationEvent, OrganizationPolicy};
use envforge_domain::project::ProjectEvent;
use envforge_domain::runtime::{PostponeCause, RuntimeEvent, SleepCause, WakeStage};
use envforge_domain::user::UserEvent;
use envforge_domain::workspace::{AccessMode, WorkspaceEvent};

use super::super::held::{Buffer, Held};
use super::super::projector::ReadModel;
use super::super::ready_services;
use super::super::table::int;
use super::super::wake_cause;
use super::records::{HostPlacement, LinkPhase, RuntimePhase, StoredGrant, StoredSleepCause, to_json};
use super::rows::{HostRow, LinkRow, MemberRow, OrganizationRow, ProjectRow, RuntimeRow, UserRow, WorkspaceRow};

/// The directory's rows on their way.
#[derive(Default)]
pub(crate) struct DirectoryModel {
    organizations: Held<OrganizationRow>,
    members: Held<MemberRow>,
    users: Held<UserRow>,
    projects: Held<ProjectRow>,
    workspaces: Held<WorkspaceRow>,
    runtimes: Held<RuntimeRow>,
    links: Held<LinkRow>,
    hosts: Held<HostRow>,
}

/// When and where an event happened, as columns hold it.
struct At<'a> {
    org: String,
    /// The displayed id in the stream's key.
    key: &'a str,
    time: i64,
    actor: Actor,
}

fn member_id(org: &str, grantee: &str) -> String {
    format!("{org}/{grantee}")
}

fn grantee_id(grantee: Grantee) -> String {
    match grantee {
        Grantee::User(user) => user.to_string(),
        Grantee::Team(team) => team.to_string(),
    }
}

pub(super) fn families_text(families: RouteFamilies) -> String {
    families.iter().map(|family| family.token()).collect::<Vec<_>>().join(",")
}

const fn access_mode_token(mode: AccessMode) -> &'static str {
    match mode {
        AccessMode::SignedLinks => "signed_links",
        AccessMode::TailscaleOnly => "tailscale_only",
    }
}

const fn stage_token(stage: &WakeStage) -> &'static str {
    match stage {
        WakeStage::Placed => "placed",
        WakeStage::CheckingOut => "checking_out",
        WakeStage::Starting => "starting",
        WakeStage::Probing => "probing",
    }
}

impl ReadModel for DirectoryModel {
    fn want(&mut self, recorded: &Recorded) {
        let stream = &recorded.commit.stream;
        for event in &recorded.commit.events {
            match event {
                Event::Organization(event) => self.want_organization(&stream.org().to_string(), stream.key(), event),
                Event::User(UserEvent::Created { .. }) => {}
                Event::User(_) => self.users.want(stream.key()),
                // What git is given is read from the project's own stream.
                Event::Project(ProjectEvent::Created { .. } | ProjectEvent::GitCredentialChanged { .. }) => {}
                Event::Project(ProjectEvent::Edited { .. }) => self.projects.want(stream.key()),
                Event::Workspace(WorkspaceEvent::Created { .. }) => {}
                Event::Workspace(_) => self.workspaces.want(stream.key()),
                Event::Runtime(_) => self.runtimes.want(stream.key()),
                Event::DevLink(DevLinkEvent::Issued { .. }) => {}
                Event::DevLink(_) => self.links.want(stream.key()),
                Event::Host(HostEvent::Registered { .. }) => {}
                Event::Host(_) => self.hosts.want(stream.key()),
                Event::Claim(_)
                | Event::Denial(_)
                | Event::Decision(_)
                | Event::ServiceToken(_)
                | Event::RootWindow(_)
                | Event::Shell(_)
                | Event::JobRun(_)
                | Event::Secrets(_)
                | Event::Machine(_) => {}
            }
        }
    }

    fn fold(&mut self, recorded: &Recorded) {
        let commit = &recorded.commit;
        let at = At {
            org: commit.stream.org().to_string(),
            key: commit.stream.key(),
            time: int(recorded.recorded_at.get()),
            actor: commit.actor,
        };
        for event in &commit.events {
            match event {
                Event::Organization(event) => self.organization(&at, event),
                Event::User(event) => self.user(&at, event),
                Event::Project(event) => self.project(&at, event),
                Event::Workspace(event) => self.workspace(&at, event),
                Event::Runtime(event) => self.runtime(&at, event),
                Event::DevLink(event) => self.link(&at, event),
                Event::Host(event) => self.host(&at, event),
                // A claim repeats what its holder's own event says; denials are the audit's; tokens and secrets are listed from their
                // streams, and root windows from memory.
                Event::Claim(_)
                | Event::Denial(_)
                | Event::Decision(_)
                | Event::ServiceToken(_)
                | Event::RootWindow(_)
                | Event::Shell(_)
                | Event::JobRun(_)
                | Event::Secrets(_)
                | Event::Machine(_) => {}
            }
        }
    }

    fn buffers(&mut self) -> Vec<&mut dyn Buffer> {
        vec![
            &mut self.organizations,
            &mut self.members,
            &mut self.users,
            &mut self.projects,
            &mut self.workspaces,
            &mut self.runtimes,
            &mut self.links,
            &mut self.hosts,
        ]
    }
}

impl DirectoryModel {
    fn want_organization(&mut self, org: &str, key: &str, event: &OrganizationEvent) {
        match event {
            OrganizationEvent::Created { .. }
            | OrganizationEvent::OwnerRecovered { .. }
            | OrganizationEvent::RevocationRecorded { .. } => {}
            OrganizationEvent::PolicyChanged { .. } => self.organizations.want(key),
            OrganizationEvent::MemberAdded { user } | OrganizationEvent::MemberRemoved { user } => {
                self.members.want(&member_id(org, &user.to_string()));
            }
            OrganizationEvent::RoleAssigned { grant } => self.members.want(&member_id(org, &grantee_id(grant.grantee))),
            OrganizationEvent::RoleRevoked { grantee, .. } => self.members.want(&member_id(org, &grantee_id(*grantee))),
            OrganizationEvent::TeamDeleted { team } => self.members.want(&member_id(org, &team.to_string())),
            OrganizationEvent::TeamCreated { .. }
            | OrganizationEvent::TeamRenamed { .. }
            | OrganizationEvent::TeamMemberAdded { .. }
            | OrganizationEvent::TeamMemberRemoved { .. } => {}
        }
    }

    fn organization(&mut self, at: &At<'_>, event: &OrganizationEvent) {
        match event {
            OrganizationEvent::Created { org, slug, name } => {
                let policy = OrganizationPolicy::default();
                let mut row = OrganizationRow {
                    id: org.to_string(),
                    slug: slug.to_string(),
                    name: name.clone(),
                    link_lifetime_max_ms: 0,
                    link_families: String::new(),
                    link_issuers: String::new(),
                    idle_sleep_max_ms: 0,
                    keep_awake_max_ms: 0,
                    session_lifetime_max_ms: 0,
                    identity_providers: String::new(),
                    service_token_lifetime_max_ms: 0,
                    root_policy: String::new(),
                    root_window_max_ms: 0,
                    created_at: at.time,
                };
                set_policy(&mut row, &policy);
                self.organizations.put(row);
            }
            OrganizationEvent::PolicyChanged { policy } => {
                if let Some(row) = self.organizations.edit(at.key) {
                    set_policy(row, policy);
                }
            }
            // What it brought follows as events of its own.
            OrganizationEvent::OwnerRecovered { .. } | OrganizationEvent::RevocationRecorded { .. } => {}
            OrganizationEvent::MemberAdded { user } => self.member(at, &user.to_string()).is_member = 1,
            // The domain takes all grants along with the member.
            OrganizationEvent::MemberRemoved { user } => self.members.remove(&member_id(&at.org, &user.to_string())),
            OrganizationEvent::RoleAssigned { grant } => {
                let expires_at = grant.expires_at.map(|end| end.get());
                self.change_grants(at, grant.grantee, grant.role, grant.scope, |grants, new| {
                    grants.push(StoredGrant { expires_at, ..new });
                });
            }
            OrganizationEvent::RoleRevoked { grantee, role, scope } => {
                self.change_grants(at, *grantee, *role, *scope, |_, _| {});
                let id = member_id(&at.org, &grantee_id(*grantee));
                if self.members.get(&id).is_some_and(|row| row.is_member == 0 && row.grants == "[]") {
                    self.members.remove(&id);
                }
            }
            // The domain takes all grants along with the team. Who is in a team is asked of the authorization view.
            OrganizationEvent::TeamDeleted { team } => self.members.remove(&member_id(&at.org, &team.to_string())),
            OrganizationEvent::TeamCreated { .. }
            | OrganizationEvent::TeamRenamed { .. }
            | OrganizationEvent::TeamMemberAdded { .. }
            | OrganizationEvent::TeamMemberRemoved { .. } => {}
        }
    }

    /// The row of a grantee, made where there is none.
    fn member(&mut self, at: &At<'_>, grantee: &str) -> &mut MemberRow {
        let id = member_id(&at.org, grantee);
        if self.members.get(&id).is_none() {
            self.members.put(MemberRow {
                id: id.clone(),
                org: at.org.clone(),
                grantee: grantee.to_owned(),
                is_member: 0,
                grants: "[]".to_owned(),
                since: at.time,
            });
        }
        self.members.edit(&id).expect("the row was put in above where it was missing")
    }

    /// Takes the grant of this role and scope away, then lets `add` put one in; keeps a fixed order.
    fn change_grants(
        &mut self,
        at: &At<'_>,
        grantee: Grantee,
        role: Role,
        scope: Scope,
        add: impl FnOnce(&mut Vec<StoredGrant>, StoredGrant),
    ) {
        let row = self.member(at, &grantee_id(grantee));
        let (project, workspace) = match scope {
            Scope::Organization => (None, None),
            Scope::Project(project) => (Some(project.to_string()), None),
            Scope::Workspace { project, workspace } => (Some(project.to_string()), Some(workspace.to_string())),
        };
        let new = StoredGrant { role: role.token().to_owned(), project, workspace, expires_at: None };
        let mut grants = StoredGrant::list(&row.grants);
        grants.retain(|grant| {
            (&grant.role, &grant.project, &grant.workspace) != (&new.role, &new.project, &new.workspace)
        });
        add(&mut grants, new);
        grants.sort();
        row.grants = to_json(&grants);
    }

    fn user(&mut self, at: &At<'_>, event: &UserEvent) {
        match event {
            UserEvent::Created { user, issuer, subject, email, name } => self.users.put(UserRow {
                id: user.to_string(),
                org: at.org.clone(),
                issuer: issuer.clone(),
                subject: subject.clone(),
                email: email.as_str().to_owned(),
                name: name.clone(),
                created_at: at.time,
                deactivated_at: None,
                signed_in_at: None,
            }),
            UserEvent::Deactivated => {
                if let Some(row) = self.users.edit(at.key) {
                    row.deactivated_at = Some(at.time);
                }
            }
            UserEvent::SessionOpened { .. } => {
                if let Some(row) = self.users.edit(at.key) {
                    row.signed_in_at = Some(at.time);
                }
            }
            UserEvent::Reactivated => {
                if let Some(row) = self.users.edit(at.key) {
                    row.deactivated_at = None;
                }
            }
            UserEvent::ProfileChanged { name } => {
                if let Some(row) = self.users.edit(at.key) {
                    row.name.clone_from(name);
                }
            }
            // Whoever is invited is nobody until they are created.
            UserEvent::Invited { .. }
            | UserEvent::InvitationRevoked
            | UserEvent::InvitationAccepted
            | UserEvent::Reauthenticated { .. }
            | UserEvent::SessionEnded { .. }
            | UserEvent::PasswordChanged
            | UserEvent::RevocationRecorded { .. }
            | UserEvent::WorkspaceOpened { .. } => {}
        }
    }

    fn project(&mut self, at: &At<'_>, event: &ProjectEvent) {
        match event {
            ProjectEvent::Created { project, slug, name, repository } => self.projects.put(ProjectRow {
                id: project.to_string(),
                org: at.org.clone(),
                slug: slug.to_string(),
                name: name.clone(),
                repository: repository.as_str().to_owned(),
                created_at: at.time,
            }),
            ProjectEvent::Edited { name, repository } => {
                if let Some(row) = self.projects.edit(at.key) {
                    row.name.clone_from(name);
                    repository.as_str().clone_into(&mut row.repository);
                }
            }
            ProjectEvent::GitCredentialChanged { .. } => {}
        }
    }

    fn workspace(&mut self, at: &At<'_>, event: &WorkspaceEvent) {
        if let WorkspaceEvent::Created { workspace, project, slug, branch, manifest, access_mode } = event {
            let created_by = if let Actor::User(user) = at.actor { Some(user.to_string()) } else { None };
            let mut row = WorkspaceRow {
                id: workspace.to_string(),
                org: at.org.clone(),
                project: project.to_string(),
                slug: slug.to_string(),
                branch: branch.as_str().to_owned(),
                manifest: String::new(),
                manifest_digest: String::new(),
                access_mode: access_mode_token(*access_mode).to_owned(),
                created_by,
                created_at: at.time,
                archived_at: None,
            };
            set_manifest(&mut row, manifest);
            return self.workspaces.put(row);
        }
        let Some(row) = self.workspaces.edit(at.key) else { return };
        match event {
            WorkspaceEvent::Created { .. } | WorkspaceEvent::RevocationRecorded { .. } => {}
            WorkspaceEvent::ManifestChanged { manifest } => set_manifest(row, manifest),
            WorkspaceEvent::AccessModeChanged { access_mode } => {
                access_mode_token(*access_mode).clone_into(&mut row.access_mode);
            }
            WorkspaceEvent::Archived => row.archived_at = Some(at.time),
        }
    }

    fn runtime(&mut self, at: &At<'_>, event: &RuntimeEvent) {
        if let RuntimeEvent::WakeRequested { epoch, workspace, project, cause } = event {
            return self.runtimes.put(RuntimeRow {
                id: workspace.to_string(),
                org: at.org.clone(),
                project: project.to_string(),
                phase: RuntimePhase::Waking.token().to_owned(),
                stage: None,
                epoch: int(epoch.0),
                since: at.time,
                wake_cause: wake_cause::to_text(cause),
                sleep_cause: None,
                queued_cause: None,
                failure: None,
                ready_at: None,
                lease_until: None,
                keep_awake_until: None,
                keep_awake_reason: None,
                keep_awake_by: None,
                postponed: None,
                active_at: None,
                open_streams: None,
                commit_hash: None,
                services: "[]".to_owned(),
            });
        }
        let Some(row) = self.runtimes.edit(at.key) else { return };
        match event {
            RuntimeEvent::WakeRequested { .. } => {}
            RuntimeEvent::WakeQueued { cause } => row.queued_cause = Some(wake_cause::to_text(cause)),
            RuntimeEvent::StageReached { stage, .. } => row.stage = Some(stage_token(stage).to_owned()),
            RuntimeEvent::Ready { commit, services, lease_until, .. } => {
                enter(row, RuntimePhase::Ready, at.time);
                row.stage = None;
                row.ready_at = Some(at.time);
                row.lease_until = Some(int(lease_until.get()));
                row.commit_hash = Some(commit.clone());
                row.services = ready_services::to_text(services);
            }
            // Hosts and addresses are for operators and the gateway's view alone.
            RuntimeEvent::HostChosen { .. } | RuntimeEvent::EndpointsBound { .. } => {}
            // Told from the runtime's own stream, held against that of the secrets.
            RuntimeEvent::SecretsResolved { .. } | RuntimeEvent::SecretsRefused { .. } => {}
            RuntimeEvent::LeaseRenewed { lease_until, .. } => row.lease_until = Some(int(lease_until.get())),
            RuntimeEvent::ActivitySeen { at: seen, open_streams, .. } => {
                row.active_at = Some(int(seen.get()));
                row.open_streams = Some(i64::from(*open_streams));
                row.postponed = None;
            }
            RuntimeEvent::KeptAwake { until, reason, by } => {
                row.keep_awake_until = Some(int(until.get()));
                row.keep_awake_reason = Some(reason.clone());
                row.keep_awake_by = Some(by.to_string());
            }
            RuntimeEvent::KeepAwakeShortened { until } => row.keep_awake_until = Some(int(until.get())),
            RuntimeEvent::SleepPostponed { cause } => {
                row.postponed = Some(match cause {
                    PostponeCause::KeepAwake { .. } => "keep_awake".to_owned(),
                    PostponeCause::OpenStreams { .. } => "open_streams".to_owned(),
                });
                if let PostponeCause::OpenStreams { count } = cause {
                    row.open_streams = Some(i64::from(*count));
                }
            }
            RuntimeEvent::SleepRequested { cause, .. } => {
                enter(row, RuntimePhase::Sleeping, at.time);
                row.sleep_cause = Some(to_json(&sleep_cause(cause)));
                close(row);
            }
            RuntimeEvent::Slept { .. } => enter(row, RuntimePhase::Asleep, at.time),
            RuntimeEvent::Lost { .. } => {
                enter(row, RuntimePhase::Asleep, at.time);
                row.sleep_cause = Some(to_json(&StoredSleepCause::HostLost));
                close(row);
            }
            RuntimeEvent::Failed { stage, reason, .. } => {
                enter(row, RuntimePhase::Failed, at.time);
                row.stage = stage.as_ref().map(|stage| stage_token(stage).to_owned());
                row.failure = Some(reason.clone());
                close(row);
            }
        }
    }

    fn link(&mut self, at: &At<'_>, event: &DevLinkEvent) {
        if let DevLinkEvent::Issued {
            link,
            project,
            workspace,
            service,
            families,
            issued_at,
            expires_at,
            label,
            wake_budget,
            issued_by,
        } = event
        {
            return self.links.put(LinkRow {
                id: link.to_string(),
                org: at.org.clone(),
                project: project.to_string(),
                workspace: workspace.to_string(),
                service: service.to_string(),
                phase: LinkPhase::Active.token().to_owned(),
                families: families_text(*families),
                label: label.clone(),
                token_generation: 1,
                issued_by: issued_by.to_string(),
                issued_at: int(issued_at.get()),
                expires_at: int(expires_at.get()),
                ended_at: None,
                revoke_reason: None,
                wake_budget: wake_budget.map(i64::from),
                wakes_spent: 0,
                first_used_at: None,
                sessions_opened: 0,
                blocked: "{}".to_owned(),
                blocked_at: None,
            });
        }
        let Some(row) = self.links.edit(at.key) else { return };
        match event {
            DevLinkEvent::Issued { .. } => {}
            DevLinkEvent::FirstUsed { at } => row.first_used_at = Some(int(at.get())),
            DevLinkEvent::SessionOpened { .. } => row.sessions_opened += 1,
            DevLinkEvent::AllowlistChanged { families } => row.families = families_text(*families),
            DevLinkEvent::Rotated { generation, expires_at, .. } => {
                row.token_generation = i64::from(generation.0);
                row.expires_at = int(expires_at.get());
            }
            DevLinkEvent::WakeSpent { .. } => row.wakes_spent += 1,
            DevLinkEvent::AttemptsBlocked { attempts, until, .. } => {
                let mut blocked: BTreeMap<String, u64> = serde_json::from_str(&row.blocked).unwrap_or_default();
                for kind in attempts {
                    let count = blocked.entry(kind.code.clone()).or_default();
                    *count = count.saturating_add(u64::from(kind.count));
                }
                row.blocked = to_json(&blocked);
                row.blocked_at = Some(int(until.get()));
            }
            DevLinkEvent::Expired => {
                LinkPhase::Expired.token().clone_into(&mut row.phase);
                row.ended_at = Some(at.time);
            }
            DevLinkEvent::Revoked { reason } => {
                LinkPhase::Revoked.token().clone_into(&mut row.phase);
                row.ended_at = Some(at.time);
                row.revoke_reason.clone_from(reason);
            }
            DevLinkEvent::RevocationRecorded { .. } => {}
        }
    }

    fn host(&mut self, at: &At<'_>, event: &HostEvent) {
        if let HostEvent::Registered { host, org, provider, machine, capacity } = event {
            return self.hosts.put(HostRow {
                id: host.to_string(),
                org: org.to_string(),
                provider: provider.clone(),
                machine: machine.clone(),
                cpu_millicores: i64::from(capacity.cpu_millicores),
                memory_mib: i64::from(capacity.memory_mib),
                placed: "{}".to_owned(),
                registered_at: at.time,
                retired_at: None,
            });
        }
        let Some(row) = self.hosts.edit(at.key) else { return };
        let mut placed: BTreeMap<String, HostPlacement> = serde_json::from_str(&row.placed).unwrap_or_default();
        match event {
            HostEvent::Registered { .. } => {}
            HostEvent::Placed { workspace, needs } => {
                let needs = HostPlacement { cpu_millicores: needs.cpu_millicores, memory_mib: needs.memory_mib };
                placed.insert(workspace.to_string(), needs);
            }
            HostEvent::Released { workspace } => {
                placed.remove(&workspace.to_string());
            }
            HostEvent::Retired | HostEvent::Revoked => row.retired_at = Some(at.time),
            // Who may enrol, and with what, is not the directory's.
            HostEvent::EnrolmentIssued { .. }
            | HostEvent::Enrolled { .. }
            | HostEvent::CertificateRenewed { .. }
            | HostEvent::AgentLookedFor { .. }
            | HostEvent::Draining => {}
        }
        row.placed = to_json(&placed);
    }
}

fn set_policy(row: &mut OrganizationRow, policy: &OrganizationPolicy) {
    row.link_lifetime_max_ms = int(policy.link_lifetime_max.get());
    row.link_families = families_text(policy.link_families);
    row.idle_sleep_max_ms = int(policy.idle_sleep_max.get());
    row.keep_awake_max_ms = int(policy.keep_awake_max.get());
    row.link_issuers = policy.link_issuers.iter().map(Role::token).collect::<Vec<_>>().join(",");
    row.session_lifetime_max_ms = int(policy.session_lifetime_max.get());
    row.identity_providers = to_json(&policy.identity_providers);
    row.service_token_lifetime_max_ms = int(policy.service_token_lifetime_max.get());
    policy.root.token().clone_into(&mut row.root_policy);
    row.root_window_max_ms = int(policy.root_window_max.get());
}

fn set_manifest(row: &mut WorkspaceRow, manifest: &Manifest) {
    row.manifest = manifest.render();
    row.manifest_digest = manifest.digest().to_string();
}

fn enter(row: &mut RuntimeRow, phase: RuntimePhase, time: i64) {
    phase.token().clone_into(&mut row.phase);
    row.since = time;
}

/// What held only while it was ready.
fn close(row: &mut RuntimeRow) {
    row.lease_until = None;
    row.keep_awake_until = None;
    row.keep_awake_reason = None;
    row.keep_awake_by = None;
    row.postponed = None;
    row.open_streams = None;
}

fn sleep_cause(cause: &SleepCause) -> StoredSleepCause {
    match cause {
        SleepCause::Idle { idle_for } => StoredSleepCause::Idle { idle_for_ms: idle_for.get() },
        SleepCause::Person(user) => StoredSleepCause::Person { by: user.to_string() },
        SleepCause::WorkspaceArchived => StoredSleepCause::WorkspaceArchived,
        SleepCause::Shutdown => StoredSleepCause::Shutdown,
        SleepCause::UsageCap => StoredSleepCause::UsageCap,
        SleepCause::SecretRotated { name } => StoredSleepCause::SecretRotated { name: name.to_string() },
    }
}
