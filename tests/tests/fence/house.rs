//! An organization on a real log, and nodes that each follow it on their own.

use std::collections::BTreeSet;
use std::sync::Arc;

use envforge_commands::context::derived_uuid;
use envforge_commands::service_tokens::{self, NewServiceToken};
use envforge_commands::{
    CommandError, Commands, Context, Done, links, organizations, projects, runtimes, users, workspaces,
};
use envforge_domain::access::{
    Action, ActorFacts, Facts, Grant, Grantee, Permit, Principal, Request, Resource, Role, Scope, authorize,
};
use envforge_domain::commit::{Actor, Component, Position, Recorded, StreamId, Surface};
use envforge_domain::dev_link::Generation;
use envforge_domain::ids::{HandoffId, LinkId, OrgId, ProjectId, ServiceTokenId, SessionId, UserId, WorkspaceId};
use envforge_domain::manifest::Manifest;
use envforge_domain::organization::OrganizationCommand;
use envforge_domain::project::Repository;
use envforge_domain::secret::TokenDigest;
use envforge_domain::time::{Millis, UnixMillis};
use envforge_domain::user::{EmailAddress, OpenSession, SessionEnd, UserCommand};
use envforge_domain::workspace::{AccessMode, Branch};
use envforge_eventlog::jetstream::{self, JetStreamLog};
use envforge_eventlog::sqlite::{self, SqliteLog};
use envforge_eventlog::{Filter, SharedLog};
use envforge_projections::{AuthorizeError, Authorizer, Hot};
use envforge_testkit::NatsServer;
use tokio_util::sync::CancellationToken;

pub const NOW: UnixMillis = UnixMillis::new(1_800_000_000_000);
const LATER: UnixMillis = UnixMillis::new(1_800_009_000_000);

fn derived(what: &str) -> uuid::Uuid {
    derived_uuid(b"fence", what)
}

pub fn acme() -> OrgId {
    OrgId::from_uuid(derived("acme"))
}

pub fn person(name: &str) -> UserId {
    UserId::from_uuid(derived(name))
}

/// The first person's one role, and what they may do with it wherever they are.
pub fn grant(of: UserId, role: Role) -> Grant {
    Grant { grantee: Grantee::User(of), role, scope: Scope::Organization, expires_at: None }
}

/// Where a log is, and whatever keeps it there.
pub struct Site {
    pub log: SharedLog,
    /// How often each worker of a race tries; a single JetStream server stores about a hundred batches a second.
    pub tries: usize,
    _directory: Option<tempfile::TempDir>,
    _server: Option<NatsServer>,
}

impl Site {
    pub async fn sqlite() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let log = Arc::new(SqliteLog::open(sqlite::Config::new(directory.path())).await.unwrap());
        Self { log, tries: 120, _directory: Some(directory), _server: None }
    }

    pub async fn jetstream() -> Self {
        let server = NatsServer::start();
        let log = Arc::new(JetStreamLog::open(jetstream::Config::new(server.url())).await.unwrap());
        Self { log, tries: 30, _directory: None, _server: Some(server) }
    }
}

/// A link, and where it leads.
#[derive(Clone, Debug)]
pub struct Visit {
    pub workspace: WorkspaceId,
    pub link: LinkId,
    resource: Resource,
}

/// One process: its own memory of streams, its own follower of the log.
#[derive(Clone)]
pub struct Node {
    pub commands: Commands,
    pub authorizer: Authorizer,
}

impl Node {
    pub async fn start(log: &SharedLog) -> Self {
        let hot = Hot::start(Arc::clone(log), CancellationToken::new());
        hot.caught_up().await.unwrap();
        let authorizer = Authorizer::new(Arc::clone(log), hot, Arc::default());
        Self { commands: Commands::new(Arc::clone(log)), authorizer }
    }

    /// Asks the policy on behalf of somebody who is signed in.
    pub async fn permit(
        &self,
        who: UserId,
        session: SessionId,
        action: Action,
        resource: Resource,
    ) -> Result<Permit, AuthorizeError> {
        self.authorizer.permit(Actor::User(who), Some(session), action, resource, Surface::Api, NOW).await
    }

    /// Asks the policy on behalf of a program that shows a token's secret of that generation. As in the API, the secret is held
    /// against the view once that is as fresh as the permit. `None`: the token has another secret by now.
    pub async fn permit_of_program(
        &self,
        token: ServiceTokenId,
        generation: u32,
        action: Action,
        resource: Resource,
    ) -> Result<Option<Permit>, AuthorizeError> {
        let asked = self.authorizer.permit(Actor::ServiceToken(token), None, action, resource, Surface::Api, NOW);
        let permit = asked.await?;
        let known = self.authorizer.hot().service_tokens.get(token);
        Ok(known.is_some_and(|known| known.token.admits(generation, NOW)).then_some(permit))
    }

    /// Somebody makes a token for one action in the whole organization.
    pub async fn make_token(
        &self,
        permit: &Permit,
        creator: UserId,
        number: usize,
        action: Action,
    ) -> Result<ServiceTokenId, CommandError> {
        let token = ServiceTokenId::from_uuid(derived(&format!("token {number}")));
        let new = NewServiceToken {
            token,
            slug: format!("ci-{number}").parse().unwrap(),
            actions: BTreeSet::from([action]),
            place: Scope::Organization,
            created_by: creator,
            lifetime: None,
        };
        service_tokens::create(&self.commands, permit, &Context::new(NOW), &new).await.map(|_| token)
    }

    /// Gives a token another secret, at once; answers its generation.
    pub async fn rotate_token(&self, permit: &Permit, token: ServiceTokenId) -> Result<u32, CommandError> {
        service_tokens::rotate(&self.commands, permit, &Context::new(NOW), token, None, Millis::ZERO).await?;
        Ok(service_tokens::load(&self.commands, acme()).await?.state.tokens[&token].generation)
    }

    pub async fn edit_project(
        &self,
        permit: &Permit,
        context: &Context,
        project: ProjectId,
        name: String,
    ) -> Result<Done, CommandError> {
        let kept = envforge_domain::project::GitChange::Keep;
        projects::edit(&self.commands, permit, context, project, name, repository(), kept).await
    }

    pub async fn add_member(&self, permit: &Permit, context: &Context, user: UserId) -> Result<Done, CommandError> {
        organizations::change(&self.commands, permit, context, &OrganizationCommand::AddMember { user }).await
    }

    /// Somebody shares a new workspace by a link.
    pub async fn share(&self, project: ProjectId, by: (UserId, SessionId), slug: &str) -> Visit {
        let (user, session) = by;
        let permit = self.permit(user, session, Action::WorkspaceCreate, Resource::Project { org: acme(), project });
        let new = workspaces::NewWorkspace {
            project,
            slug: slug.parse().unwrap(),
            branch: Branch::parse("main").unwrap(),
            manifest: Manifest::parse("version: 1\nservices:\n  web:\n    command: ./web\n    route: { web: {} }\n")
                .unwrap(),
            access_mode: AccessMode::SignedLinks,
        };
        let created = workspaces::create(&self.commands, &permit.await.unwrap(), &Context::new(NOW), new).await;
        let workspace = created.unwrap().0;
        let on_workspace = Resource::Workspace { org: acme(), project, workspace };
        let permit = self.permit(user, session, Action::LinkIssue, on_workspace).await.unwrap();
        let new = links::NewLink {
            workspace,
            service: "web".parse().unwrap(),
            families: None,
            lifetime: None,
            label: "review".to_owned(),
            wake_budget: None,
            issued_by: user,
        };
        let link = links::issue(&self.commands, &permit, &Context::new(NOW), new).await.unwrap().0;
        Visit { workspace, link, resource: Resource::Link { org: acme(), project, workspace, link } }
    }

    /// As a gateway asks, of somebody who came by a link.
    pub async fn visitors_permit(
        &self,
        visit: &Visit,
        session: Option<SessionId>,
        action: Action,
    ) -> Result<Permit, AuthorizeError> {
        let actor = Actor::LinkVisitor { link: visit.link, session };
        self.authorizer.permit(actor, None, action, visit.resource, Surface::Gateway, NOW).await
    }

    /// Opens the link's session of that number.
    pub async fn visit(&self, visit: &Visit, number: u32) -> Result<SessionId, CommandError> {
        let name = |what: &str| derived(&format!("{what} {number} of {}", visit.link));
        let session = SessionId::from_uuid(name("session"));
        let redeemed = links::RedeemedHandoff {
            link: visit.link,
            handoff: HandoffId::from_uuid(name("handoff")),
            handoff_expires_at: UnixMillis::new(NOW.get() + 10_000),
            generation: Generation(1),
            session,
            cookie: TokenDigest::of(&number.to_be_bytes()),
        };
        let permit = self.visitors_permit(visit, None, Action::LinkOpenSession).await.unwrap();
        links::open_session(&self.commands, &permit, &Context::new(NOW), &redeemed).await.map(|_| session)
    }

    /// Wakes the workspace in a session of the link.
    pub async fn wake(&self, visit: &Visit, session: SessionId) -> Result<Done, CommandError> {
        let permit = self.visitors_permit(visit, Some(session), Action::RuntimeWake).await.unwrap();
        let (workspace, link) = (visit.workspace, visit.link);
        runtimes::wake_by_link(&self.commands, &permit, &Context::new(NOW), workspace, link, session).await
    }

    /// Lets nobody in by links any more.
    pub async fn close(
        &self,
        project: ProjectId,
        visit: &Visit,
        by: (UserId, SessionId),
    ) -> Result<Done, CommandError> {
        let resource = Resource::Workspace { org: acme(), project, workspace: visit.workspace };
        let permit = self.permit(by.0, by.1, Action::WorkspaceChangeAccessMode, resource).await.unwrap();
        let context = Context::new(NOW);
        workspaces::change_access_mode(&self.commands, &permit, &context, visit.workspace, AccessMode::TailscaleOnly)
            .await
    }

    /// EnvForge itself changes the organization.
    pub async fn organize(&self, command: OrganizationCommand) -> Result<Done, CommandError> {
        let action = match &command {
            OrganizationCommand::AddMember { .. } => Action::MemberAdd,
            OrganizationCommand::RemoveMember { .. } => Action::MemberRemove,
            OrganizationCommand::AssignRole { .. } => Action::RoleAssign,
            OrganizationCommand::RevokeRole { .. } => Action::RoleRevoke,
            other => panic!("{other:?}"),
        };
        let permit = system(action, Resource::Organization(acme()));
        organizations::change(&self.commands, &permit, &Context::new(NOW), &command).await
    }

    /// EnvForge itself changes a person's account.
    pub async fn account(&self, user: UserId, command: UserCommand) -> Result<Done, CommandError> {
        let action = match &command {
            UserCommand::Create { .. } => Action::UserCreate,
            UserCommand::Deactivate { .. } => Action::UserDeactivate,
            _ => Action::UserRecordSession,
        };
        let permit = system(action, Resource::User { org: acme(), user });
        users::change(&self.commands, &permit, &Context::new(NOW), user, &command).await
    }

    /// A member with one role and one session.
    pub async fn hire(&self, name: &str, role: Role) -> (UserId, SessionId) {
        let user = person(name);
        let create = UserCommand::Create {
            user,
            issuer: "local".to_owned(),
            subject: user.to_string(),
            email: EmailAddress::parse(&format!("{name}@example.com")).unwrap(),
            name: name.to_owned(),
        };
        self.account(user, create).await.unwrap();
        self.organize(OrganizationCommand::AddMember { user }).await.unwrap();
        self.organize(assign(grant(user, role))).await.unwrap();
        let session = SessionId::from_uuid(derived(&format!("{name} 0")));
        self.account(user, open(session)).await.unwrap();
        (user, session)
    }

    pub async fn project(&self, slug: &str, owner: (UserId, SessionId)) -> ProjectId {
        let on_org =
            self.permit(owner.0, owner.1, Action::ProjectCreate, Resource::Organization(acme())).await.unwrap();
        let (slug, name) = (slug.parse().unwrap(), slug.to_owned());
        projects::create(&self.commands, &on_org, &Context::new(NOW), slug, name, repository()).await.unwrap().0
    }

    /// The organization with its owner, who is signed in.
    pub async fn found(&self) -> (UserId, SessionId) {
        let permit = system(Action::OrganizationCreate, Resource::Organization(acme()));
        let (slug, name) = ("acme".parse().unwrap(), "Acme".to_owned());
        organizations::create(&self.commands, &permit, &Context::new(NOW), acme(), slug, name, person("owner"))
            .await
            .unwrap();
        self.hire("owner", Role::Owner).await
    }
}

pub fn open(session: SessionId) -> UserCommand {
    let opened = OpenSession::of_local_account(Surface::Api, NOW, LATER);
    UserCommand::OpenSession { session, opened, now: NOW }
}

pub fn end(session: SessionId) -> UserCommand {
    UserCommand::EndSession { session, reason: SessionEnd::Revoked }
}

pub fn assign(grant: Grant) -> OrganizationCommand {
    OrganizationCommand::AssignRole { by: Actor::System(Component::Setup), grant, now: NOW }
}

pub fn remove(user: UserId) -> OrganizationCommand {
    OrganizationCommand::RemoveMember { by: Actor::System(Component::Setup), user, now: NOW }
}

pub fn deactivate() -> UserCommand {
    UserCommand::Deactivate { beyond: None, only_owner: false }
}

pub fn revoke(by: Actor, grant: Grant) -> OrganizationCommand {
    let Grant { grantee, role, scope, .. } = grant;
    OrganizationCommand::RevokeRole { by, grantee, role, scope, now: NOW }
}

fn repository() -> Repository {
    Repository::parse("/srv/orders").unwrap()
}

pub fn system(action: Action, resource: Resource) -> Permit {
    let facts = Facts { position: Position::START, actor: ActorFacts::System };
    let (actor, surface) = (Actor::System(Component::Setup), action.row().surfaces_of(Principal::System)[0]);
    authorize(&facts, &Request { actor, action, resource, surface, now: NOW }).unwrap()
}

/// Everything that was ever appended.
pub async fn history(log: &SharedLog) -> Vec<Recorded> {
    let (mut commits, mut after) = (Vec::new(), Position::START);
    loop {
        let page = log.read(after, 1_000, &Filter::everything()).await.unwrap();
        commits.extend(page.commits);
        after = page.read_up_to;
        if page.at_head {
            return commits;
        }
    }
}

pub async fn last_of(log: &SharedLog, stream: StreamId) -> Position {
    log.last_position_of(&[stream]).await.unwrap()
}
