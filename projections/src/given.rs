//! Builders of history for the tests of the hot views.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use envforge_domain::access::{Grant, Grantee, Role, Scope};
use envforge_domain::commit::{Actor, Commit, Component, Position, Recorded, StreamId, Surface};
use envforge_domain::dev_link::{DevLinkEvent, Generation, RouteFamilies};
use envforge_domain::event::Event;
use envforge_domain::host::{Capacity, HostEvent};
use envforge_domain::ids::*;
use envforge_domain::manifest::Manifest;
use envforge_domain::organization::OrganizationEvent;
use envforge_domain::project::ProjectEvent;
use envforge_domain::runtime::RuntimeEvent;
use envforge_domain::secret::TokenDigest;
use envforge_domain::time::{Millis, UnixMillis};
use envforge_domain::user::{EmailAddress, OpenSession, UserEvent};
use envforge_domain::workspace::{AccessMode, Branch, WorkspaceEvent};
use uuid::Uuid;

use crate::hot::{Hot, HotConfig};

pub(crate) const NOW: UnixMillis = UnixMillis::new(1_800_000_000_000);
/// When links and sessions of the story end.
pub(crate) const LATER: UnixMillis = NOW.plus(Millis::from_hours(2));
pub(crate) const OWNER: u128 = 1;
pub(crate) const DEVELOPER: u128 = 2;

macro_rules! ids {
    ($($name:ident $id:ident),*) => {
        $(pub(crate) fn $name(number: u128) -> $id {
            $id::from_uuid(Uuid::from_u128(number))
        })*
    };
}
ids!(org OrgId, user UserId, project ProjectId, workspace WorkspaceId, link LinkId, session SessionId, host HostId);

pub(crate) fn cookie(number: u128) -> TokenDigest {
    TokenDigest::of(&number.to_le_bytes())
}

pub(crate) fn role(of: u128, role: Role, scope: Scope, expires_at: Option<UnixMillis>) -> Grant {
    Grant { grantee: Grantee::User(user(of)), role, scope, expires_at }
}

/// Web with a socket, and an API below `/api` where `api` says so.
pub(crate) fn manifest(api: bool) -> Manifest {
    let web = "version: 1\nservices:\n  web:\n    command: ./web\n    route: { web: {}, websockets: [/live] }\n  tool:\n    command: ./tool\n    route: { web: {} }\n";
    let api = if api { "  backend:\n    command: ./api\n    route: { api: /api }\n" } else { "" };
    Manifest::parse(&format!("{web}{api}")).unwrap()
}

pub(crate) fn commit(stream: StreamId, events: Vec<Event>, number: u128) -> Commit {
    let id = Uuid::from_u128(number);
    Commit {
        id: CommitId::from_uuid(id),
        command: CommandId::from_uuid(id),
        request_digest: None,
        stream,
        actor: Actor::System(Component::Setup),
        surface: Surface::Cli,
        correlation: CorrelationId::from_uuid(id),
        causation: None,
        decided_at: NOW,
        events,
    }
}

/// A history under way, and the views that it is folded into.
pub(crate) struct Story {
    pub(crate) hot: Arc<Hot>,
    pub(crate) history: Vec<Recorded>,
    pub(crate) now: UnixMillis,
}

/// A session on the API that is open until `LATER`.
pub(crate) fn opened() -> OpenSession {
    OpenSession::of_local_account(Surface::Api, NOW, LATER)
}

impl Story {
    pub(crate) fn empty() -> Self {
        Self { hot: Hot::unfed(HotConfig::default()), history: Vec::new(), now: NOW }
    }

    /// Organization 1 (`acme`) with an owner and a developer of project 1, each with a session of their number;
    /// workspace 1 (`signed-links`) with link 1 of the developer, which has session 1.
    pub(crate) fn new() -> Self {
        let mut story = Self::empty();
        story.organization(1, "acme");
        story.person(DEVELOPER);
        story.in_organization(OrganizationEvent::MemberAdded { user: user(DEVELOPER) });
        story.grant(role(DEVELOPER, Role::Developer, Scope::Project(project(1)), None));
        story.project(1);
        story.workspace(1, "signed-links");
        story.link(1, DEVELOPER);
        story.visit(1, 1);
        story
    }

    pub(crate) fn append(&mut self, stream: StreamId, events: Vec<Event>) {
        let number = self.history.len() as u64 + 1;
        let commit = commit(stream, events, u128::from(number));
        let recorded = Recorded { position: Position::new(number), recorded_at: self.now, commit };
        self.hot.fold(&recorded);
        self.history.push(recorded);
    }

    /// An organization with its owner.
    pub(crate) fn organization(&mut self, number: u128, slug: &str) {
        let owner = user(OWNER + (number - 1) * 1_000);
        let created =
            OrganizationEvent::Created { org: org(number), slug: slug.parse().unwrap(), name: slug.to_owned() };
        let grant =
            Grant { grantee: Grantee::User(owner), role: Role::Owner, scope: Scope::Organization, expires_at: None };
        let events =
            [created, OrganizationEvent::MemberAdded { user: owner }, OrganizationEvent::RoleAssigned { grant }];
        self.append(StreamId::organization(org(number)), events.map(Event::from).to_vec());
        self.person_of(number, OWNER + (number - 1) * 1_000);
    }

    pub(crate) fn person(&mut self, number: u128) {
        self.person_of(1, number);
    }

    fn person_of(&mut self, of: u128, number: u128) {
        let created = UserEvent::Created {
            user: user(number),
            issuer: "local".to_owned(),
            subject: user(number).to_string(),
            email: EmailAddress::parse(&format!("person{number}@example.com")).unwrap(),
            name: format!("Person {number}"),
        };
        let opened = UserEvent::session_opened(session(number), opened());
        self.append(StreamId::user(org(of), user(number)), vec![created.into(), opened.into()]);
    }

    pub(crate) fn in_organization(&mut self, event: OrganizationEvent) {
        self.append(StreamId::organization(org(1)), vec![event.into()]);
    }

    pub(crate) fn grant(&mut self, grant: Grant) {
        self.in_organization(OrganizationEvent::RoleAssigned { grant });
    }

    pub(crate) fn of_user(&mut self, number: u128, event: UserEvent) {
        self.append(StreamId::user(org(1), user(number)), vec![event.into()]);
    }

    pub(crate) fn project(&mut self, number: u128) {
        let created = ProjectEvent::Created {
            project: project(number),
            slug: format!("project-{number}").parse().unwrap(),
            name: "Orders".to_owned(),
            repository: envforge_domain::project::Repository::parse("https://example.com/orders.git").unwrap(),
        };
        self.append(StreamId::project(org(1), project(number)), vec![created.into()]);
    }

    pub(crate) fn workspace(&mut self, number: u128, slug: &str) {
        let created = WorkspaceEvent::Created {
            workspace: workspace(number),
            project: project(1),
            slug: slug.parse().unwrap(),
            branch: Branch::parse("main").unwrap(),
            manifest: manifest(true),
            access_mode: AccessMode::SignedLinks,
        };
        self.on_workspace(number, created);
    }

    pub(crate) fn on_workspace(&mut self, number: u128, event: WorkspaceEvent) {
        self.append(StreamId::workspace(org(1), workspace(number)), vec![event.into()]);
    }

    /// A link to `web` of workspace 1 with every family and a budget of two wakes.
    pub(crate) fn link(&mut self, number: u128, issued_by: u128) {
        let issued = DevLinkEvent::Issued {
            link: link(number),
            project: project(1),
            workspace: workspace(1),
            service: "web".parse().unwrap(),
            families: RouteFamilies::ALL,
            issued_at: self.now,
            expires_at: self.now.plus(Millis::from_hours(2)),
            label: "review".to_owned(),
            wake_budget: Some(2),
            issued_by: user(issued_by),
        };
        self.on_link(number, issued);
    }

    pub(crate) fn on_link(&mut self, number: u128, event: DevLinkEvent) {
        self.append(StreamId::dev_link(org(1), link(number)), vec![event.into()]);
    }

    /// A session, and a cookie, of that number.
    pub(crate) fn visit(&mut self, link: u128, number: u128) {
        let opened = DevLinkEvent::SessionOpened {
            session: session(number),
            handoff: HandoffId::from_uuid(Uuid::from_u128(number)),
            cookie: cookie(number),
            generation: Generation(1),
            expires_at: LATER,
        };
        self.on_link(link, opened);
    }

    pub(crate) fn on_runtime(&mut self, events: Vec<RuntimeEvent>) {
        self.append(StreamId::runtime(org(1), workspace(1)), events.into_iter().map(Event::from).collect());
    }

    pub(crate) fn host(&mut self, of: u128, number: u128, capacity: Capacity) {
        let registered = HostEvent::Registered {
            host: host(number),
            org: org(of),
            provider: "local".to_owned(),
            machine: format!("local-{number}"),
            capacity,
        };
        self.on_host(of, number, registered);
    }

    pub(crate) fn on_host(&mut self, of: u128, number: u128, event: HostEvent) {
        self.append(StreamId::host(org(of), host(number)), vec![event.into()]);
    }
}
