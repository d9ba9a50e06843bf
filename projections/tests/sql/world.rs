//! Builds valid histories: every event comes out of an aggregate's own decision.

use std::collections::HashMap;
use std::sync::Arc;

use envforge_domain::access::{Grant, Grantee, Role, Scope};
use envforge_domain::aggregate::{Aggregate, Refusal};
use envforge_domain::commit::{Actor, Commit, Component, Position, StreamId, Surface};
use envforge_domain::dev_link::{DevLink, DevLinkCommand, Generation, LinkLimits, RouteFamilies};
use envforge_domain::event::Event;
use envforge_domain::ids::{
    CommandId, CommitId, CorrelationId, HandoffId, HostId, LinkId, OrgId, ProjectId, SessionId, UserId, WorkspaceId,
};
use envforge_domain::manifest::Manifest;
use envforge_domain::organization::{Organization, OrganizationCommand};
use envforge_domain::project::{Project, ProjectCommand, Repository};
use envforge_domain::runtime::{Epoch, ReadyService, Runtime, RuntimeCommand, WakeCause};
use envforge_domain::secret::TokenDigest;
use envforge_domain::time::{Millis, UnixMillis};
use envforge_domain::user::{EmailAddress, User, UserCommand};
use envforge_domain::workspace::{AccessMode, Branch, Workspace, WorkspaceCommand};
use envforge_eventlog::SharedLog;
use uuid::Uuid;

use crate::log::{MemoryLog, SharedMemoryLog};

pub const MANIFEST: &str = "version: 1
services:
  web:
    command: ./web
    route: web
    cpu: 250m
    memory: 128Mi
";

/// The first instant of an hour: 2026-11-24T08:00:00Z.
pub const EIGHT: u64 = 1_795_507_200_000;
pub const MINUTE: u64 = 60_000;
pub const HOUR: u64 = 3_600_000;

pub struct World {
    pub log: Arc<MemoryLog>,
    pub now: UnixMillis,
    streams: HashMap<StreamId, Vec<Event>>,
    commits: u128,
}

pub fn uuid(kind: u8, number: u32) -> Uuid {
    Uuid::from_u128(u128::from(kind) << 64 | u128::from(number))
}

pub fn org_id(number: u32) -> OrgId {
    OrgId::from_uuid(uuid(1, number))
}

pub fn user_id(number: u32) -> UserId {
    UserId::from_uuid(uuid(2, number))
}

pub fn project_id(number: u32) -> ProjectId {
    ProjectId::from_uuid(uuid(3, number))
}

pub fn workspace_id(number: u32) -> WorkspaceId {
    WorkspaceId::from_uuid(uuid(4, number))
}

pub fn link_id(number: u32) -> LinkId {
    LinkId::from_uuid(uuid(5, number))
}

pub fn session_id(number: u32) -> SessionId {
    SessionId::from_uuid(uuid(6, number))
}

pub fn host_id(number: u32) -> HostId {
    HostId::from_uuid(uuid(7, number))
}

pub fn command_id(number: u32) -> CommandId {
    CommandId::from_uuid(uuid(8, number))
}

pub fn system() -> Actor {
    Actor::System(Component::Timer)
}

/// Limits that allow everything.
pub fn limits() -> LinkLimits {
    LinkLimits {
        lifetime_max: Millis::from_hours(24),
        families_allowed: RouteFamilies::ALL,
        families_declared: RouteFamilies::ALL,
    }
}

pub fn service(name: &str) -> ReadyService {
    ReadyService { name: name.parse().unwrap(), cpu_millicores: 250, memory_mib: 128 }
}

impl World {
    pub fn new() -> Self {
        Self {
            log: Arc::new(MemoryLog::new("log-one")),
            now: UnixMillis::new(EIGHT),
            streams: HashMap::new(),
            commits: 0,
        }
    }

    pub fn shared(&self) -> SharedLog {
        Arc::new(SharedMemoryLog(Arc::clone(&self.log)))
    }

    pub fn pass(&mut self, milliseconds: u64) {
        self.now = self.now.plus(Millis::new(milliseconds));
    }

    /// Decides and appends. `Err` is the refusal's code; `Ok(None)` where the command was satisfied already.
    pub fn act<A: Aggregate>(
        &mut self,
        stream: StreamId,
        actor: Actor,
        command: &A::Command,
    ) -> Result<Option<Position>, &'static str> {
        let history = self.streams.entry(stream.clone()).or_default();
        let state = A::fold(history.iter());
        let events = A::decide(&state, command).map_err(|refusal| refusal.code())?;
        if events.is_empty() {
            return Ok(None);
        }
        let events: Vec<Event> = events.into_iter().map(Into::into).collect();
        history.extend(events.iter().cloned());
        self.commits += 1;
        let surface = if matches!(actor, Actor::User(_)) { Surface::Cli } else { Surface::Gateway };
        let commit = Commit {
            id: CommitId::from_uuid(Uuid::from_u128(self.commits)),
            command: CommandId::from_uuid(uuid(8, self.commits as u32)),
            // Every third commit answers no request.
            request_digest: (!self.commits.is_multiple_of(3)).then_some([self.commits as u8; 32]),
            stream,
            actor,
            surface,
            correlation: CorrelationId::from_uuid(Uuid::from_u128(self.commits / 2)),
            causation: (self.commits > 1).then(|| CommitId::from_uuid(Uuid::from_u128(self.commits - 1))),
            decided_at: self.now,
            events,
        };
        Ok(Some(self.log.push_hidden(commit, self.now)))
    }

    /// Like `act`, where the test knows that it is accepted.
    pub fn done<A: Aggregate>(&mut self, stream: StreamId, actor: Actor, command: &A::Command) -> Position {
        self.act::<A>(stream, actor, command).expect("accepted").expect("not satisfied already")
    }

    pub fn user(&mut self, org: u32, number: u32, name: &str) -> Result<Option<Position>, &'static str> {
        let user = user_id(number);
        let command = UserCommand::Create {
            user,
            issuer: "local".into(),
            subject: user.to_string(),
            email: EmailAddress::parse(&format!("{}@example.org", name.to_lowercase())).unwrap(),
            name: name.into(),
        };
        self.act::<User>(StreamId::user(org_id(org), user), system(), &command)
    }

    pub fn organization(&mut self, number: u32, owner: u32) -> Result<Option<Position>, &'static str> {
        let org = org_id(number);
        let command = OrganizationCommand::Create {
            org,
            slug: format!("org-{number}").parse().unwrap(),
            name: format!("Organization {number}"),
            owner: user_id(owner),
        };
        self.act::<Organization>(StreamId::organization(org), system(), &command)
    }

    pub fn organize(
        &mut self,
        org: u32,
        by: u32,
        command: &OrganizationCommand,
    ) -> Result<Option<Position>, &'static str> {
        self.act::<Organization>(StreamId::organization(org_id(org)), Actor::User(user_id(by)), command)
    }

    pub fn grant(&mut self, org: u32, to: u32, role: Role, scope: Scope) -> Result<Option<Position>, &'static str> {
        let grant = Grant { grantee: Grantee::User(user_id(to)), role, scope, expires_at: None };
        let by = Actor::User(user_id(1));
        self.organize(org, 1, &OrganizationCommand::AssignRole { by, grant, now: self.now })
    }

    pub fn project(&mut self, org: u32, number: u32, by: u32) -> Result<Option<Position>, &'static str> {
        let command = ProjectCommand::Create {
            project: project_id(number),
            slug: format!("project-{number}").parse().unwrap(),
            name: format!("Project {number}"),
            repository: Repository::parse("https://example.org/repository.git").unwrap(),
        };
        let stream = StreamId::project(org_id(org), project_id(number));
        self.act::<Project>(stream, Actor::User(user_id(by)), &command)
    }

    pub fn workspace(
        &mut self,
        org: u32,
        project: u32,
        number: u32,
        by: u32,
    ) -> Result<Option<Position>, &'static str> {
        let command = WorkspaceCommand::Create {
            workspace: workspace_id(number),
            project: project_id(project),
            org_slug: format!("org-{org}").parse().unwrap(),
            slug: format!("workspace-{number}").parse().unwrap(),
            branch: Branch::parse("main").unwrap(),
            manifest: Manifest::parse(MANIFEST).unwrap(),
            access_mode: AccessMode::SignedLinks,
        };
        self.work(org, number, by, &command)
    }

    pub fn work(
        &mut self,
        org: u32,
        workspace: u32,
        by: u32,
        command: &WorkspaceCommand,
    ) -> Result<Option<Position>, &'static str> {
        let stream = StreamId::workspace(org_id(org), workspace_id(workspace));
        self.act::<Workspace>(stream, Actor::User(user_id(by)), command)
    }

    pub fn link(
        &mut self,
        org: u32,
        project: u32,
        workspace: u32,
        number: u32,
        by: u32,
    ) -> Result<Option<Position>, &'static str> {
        let command = DevLinkCommand::Issue {
            link: link_id(number),
            project: project_id(project),
            workspace: workspace_id(workspace),
            service: "web".parse().unwrap(),
            families: RouteFamilies::ALL,
            lifetime: Millis::from_hours(2),
            label: format!("Link {number}"),
            wake_budget: Some(3),
            issued_by: user_id(by),
            limits: limits(),
            now: self.now,
        };
        self.share(org, number, Actor::User(user_id(by)), &command)
    }

    pub fn share(
        &mut self,
        org: u32,
        link: u32,
        actor: Actor,
        command: &DevLinkCommand,
    ) -> Result<Option<Position>, &'static str> {
        self.act::<DevLink>(StreamId::dev_link(org_id(org), link_id(link)), actor, command)
    }

    pub fn session(
        &mut self,
        org: u32,
        link: u32,
        session: u32,
        generation: u32,
    ) -> Result<Option<Position>, &'static str> {
        let command = DevLinkCommand::OpenSession {
            handoff: HandoffId::from_uuid(uuid(9, session)),
            handoff_expires_at: self.now.plus(Millis::from_secs(20)),
            session: session_id(session),
            cookie: TokenDigest::of(&session.to_le_bytes()),
            generation: Generation(generation),
            now: self.now,
        };
        self.share(org, link, Actor::LinkVisitor { link: link_id(link), session: None }, &command)
    }

    pub fn run(
        &mut self,
        org: u32,
        workspace: u32,
        actor: Actor,
        command: &RuntimeCommand,
    ) -> Result<Option<Position>, &'static str> {
        self.act::<Runtime>(StreamId::runtime(org_id(org), workspace_id(workspace)), actor, command)
    }

    pub fn wake(
        &mut self,
        org: u32,
        project: u32,
        workspace: u32,
        cause: WakeCause,
    ) -> Result<Option<Position>, &'static str> {
        let command = RuntimeCommand::RequestWake {
            workspace: workspace_id(workspace),
            project: project_id(project),
            cause,
            workspace_active: true,
        };
        self.run(org, workspace, system(), &command)
    }

    pub fn ready(&mut self, org: u32, workspace: u32, epoch: u64) -> Result<Option<Position>, &'static str> {
        let choose = RuntimeCommand::ChooseHost { epoch: Epoch(epoch), host: host_id(1) };
        self.run(org, workspace, system(), &choose)?;
        let command = RuntimeCommand::ReportReady {
            epoch: Epoch(epoch),
            commit: "0123abcd".into(),
            host: host_id(1),
            services: vec![service("web"), service("worker")],
            endpoints: vec![("web".parse().unwrap(), "127.0.0.1:4000".parse().unwrap())],
            lease_until: self.now.plus(Millis::from_secs(30)),
        };
        self.run(org, workspace, Actor::Agent(host_id(1)), &command)
    }

    pub fn renew(
        &mut self,
        org: u32,
        workspace: u32,
        epoch: u64,
        lease_ms: u64,
    ) -> Result<Option<Position>, &'static str> {
        let lease_until = self.now.plus(Millis::new(lease_ms));
        let command = RuntimeCommand::RenewLease { epoch: Epoch(epoch), host: host_id(1), lease_until };
        self.run(org, workspace, Actor::Agent(host_id(1)), &command)
    }

    /// Users ada (1) and ben (2), organization 1 of ada with member ben, project 1, workspace 1, link 1.
    pub fn acme() -> Self {
        let mut world = Self::new();
        world.user(1, 1, "Ada").unwrap();
        world.user(1, 2, "Ben").unwrap();
        world.organization(1, 1).unwrap();
        world.organize(1, 1, &OrganizationCommand::AddMember { user: user_id(2) }).unwrap();
        world.project(1, 1, 1).unwrap();
        world.grant(1, 2, Role::Developer, Scope::Project(project_id(1))).unwrap();
        world.workspace(1, 1, 1, 2).unwrap();
        world.link(1, 1, 1, 1, 2).unwrap();
        world
    }
}
