//! Commands over a real embedded log: idempotency, claims, contention and the one wake.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use envforge_commands::context::derived_uuid;
use envforge_commands::{
    CommandError, Commands, Context, hosts, links, organizations, projects, runtimes, users, workspaces,
};
use envforge_domain::access::{
    Action, ActorFacts, Facts, Grant, Grantee, Permit, Principal, Request, Resource, Role, Scope, authorize,
};
use envforge_domain::commit::{Actor, Component, Position, Recorded, Standing, StreamId, Surface};
use envforge_domain::decision::DecisionEvent;
use envforge_domain::dev_link::{DevLinkEvent, Generation};
use envforge_domain::event::Event;
use envforge_domain::host::Capacity;
use envforge_domain::ids::*;
use envforge_domain::manifest::Manifest;
use envforge_domain::organization::{LINK_ISSUERS, OrganizationCommand};
use envforge_domain::project::Repository;
use envforge_domain::runtime::{Epoch, RuntimeCommand, RuntimeEvent, WakeCause};
use envforge_domain::secret::TokenDigest;
use envforge_domain::session::{LOCAL_ISSUER, OpenSession};
use envforge_domain::time::{Millis, UnixMillis};
use envforge_domain::user::{EmailAddress, User, UserCommand};
use envforge_domain::workspace::{AccessMode, Branch};
use envforge_eventlog::{EventLog, Filter, LogError, SharedLog};
use envforge_testkit::{InterferedLog, Interference};
use futures_util::future::BoxFuture;
use uuid::Uuid;

const NOW: UnixMillis = UnixMillis::new(1_800_000_000_000);

fn owner() -> UserId {
    UserId::from_uuid(Uuid::from_u128(1))
}

fn acme() -> OrgId {
    OrgId::from_uuid(Uuid::from_u128(100))
}

/// A permit as the policy gives it to the owner, resting on where the log stands now.
async fn permit(log: &Arc<dyn EventLog>, action: Action, resource: Resource) -> Permit {
    let grant =
        Grant { grantee: Grantee::User(owner()), role: Role::Owner, scope: Scope::Organization, expires_at: None };
    let actor = ActorFacts::Member {
        org: resource.org(),
        active: true,
        session_live: true,
        link_issuers: LINK_ISSUERS,
        grants: vec![grant],
    };
    let facts = Facts { position: Position::START, actor };
    let streams = vec![StreamId::organization(resource.org()), StreamId::user(resource.org(), owner())];
    authorize(&facts, &Request { actor: Actor::User(owner()), action, resource, surface: Surface::Api, now: NOW })
        .unwrap()
        .resting_on(standings(log, streams).await)
}

async fn standings(log: &Arc<dyn EventLog>, streams: Vec<StreamId>) -> Vec<Standing> {
    let lasts = log.last_positions_of(&streams).await.unwrap();
    streams.into_iter().zip(lasts).map(|(stream, last)| Standing { stream, last }).collect()
}

fn system(component: Component, action: Action, resource: Resource) -> Permit {
    let facts = Facts { position: Position::START, actor: ActorFacts::System };
    let surface = action.row().surfaces_of(Principal::System)[0];
    authorize(&facts, &Request { actor: Actor::System(component), action, resource, surface, now: NOW }).unwrap()
}

/// Of a link that the owner gave.
async fn visitor(
    log: &Arc<dyn EventLog>,
    action: Action,
    resource: Resource,
    link: LinkId,
    session: SessionId,
) -> Permit {
    let Resource::Link { org, project, workspace, .. } = resource else { panic!("a visitor acts on a link") };
    let facts =
        Facts { position: Position::START, actor: ActorFacts::Link { org, project, workspace, link, live: true } };
    let actor = Actor::LinkVisitor { link, session: Some(session) };
    let (on_link, on_workspace) = (StreamId::dev_link(org, link), StreamId::workspace(org, workspace));
    let streams = vec![StreamId::organization(org), on_link, StreamId::user(org, owner()), on_workspace];
    authorize(&facts, &Request { actor, action, resource, surface: Surface::Gateway, now: NOW })
        .unwrap()
        .resting_on(standings(log, streams).await)
}

struct World {
    _directory: tempfile::TempDir,
    log: Arc<dyn EventLog>,
    commands: Commands,
    project: ProjectId,
    workspace: WorkspaceId,
}

impl World {
    fn on_workspace(&self) -> Resource {
        Resource::Workspace { org: acme(), project: self.project, workspace: self.workspace }
    }

    /// All events of the log, oldest first.
    async fn history(&self) -> Vec<Event> {
        let page = self.log.read(Position::START, 10_000, &Filter::everything()).await.unwrap();
        page.commits.into_iter().flat_map(|recorded| recorded.commit.events).collect()
    }
}

fn manifest() -> Manifest {
    Manifest::parse(
        "version: 1\nservices:\n  web:\n    command: ./web\n    route: { web: {}, websockets: [/live] }\n  api:\n    command: ./api\n    route: { api: /api }\n",
    )
    .unwrap()
}

async fn organization(commands: &Commands, org: OrgId, slug: &str) -> Result<envforge_commands::Done, CommandError> {
    let permit = system(Component::Setup, Action::OrganizationCreate, Resource::Organization(org));
    organizations::create(commands, &permit, &Context::new(NOW), org, slug.parse().unwrap(), slug.to_owned(), owner())
        .await
}

async fn world() -> World {
    let directory = tempfile::tempdir().unwrap();
    let config = envforge_eventlog::sqlite::Config::new(directory.path());
    let log: Arc<dyn EventLog> = Arc::new(envforge_eventlog::sqlite::SqliteLog::open(config).await.unwrap());
    let commands = Commands::new(Arc::clone(&log));
    organization(&commands, acme(), "acme").await.unwrap();
    let on_org = permit(&log, Action::ProjectCreate, Resource::Organization(acme())).await;
    let (project, _) = projects::create(
        &commands,
        &on_org,
        &Context::new(NOW),
        "orders".parse().unwrap(),
        "Orders".to_owned(),
        Repository::parse("/srv/orders").unwrap(),
    )
    .await
    .unwrap();
    let (workspace, _) = create_workspace(&log, &commands, project, &Context::new(NOW), "signed-links").await.unwrap();
    World { _directory: directory, log, commands, project, workspace }
}

async fn create_workspace(
    log: &Arc<dyn EventLog>,
    commands: &Commands,
    project: ProjectId,
    context: &Context,
    slug: &str,
) -> Result<(WorkspaceId, envforge_commands::Done), CommandError> {
    let on_project = permit(log, Action::WorkspaceCreate, Resource::Project { org: acme(), project }).await;
    let new = workspaces::NewWorkspace {
        project,
        slug: slug.parse().unwrap(),
        branch: Branch::parse("main").unwrap(),
        manifest: manifest(),
        access_mode: AccessMode::SignedLinks,
    };
    workspaces::create(commands, &on_project, context, new).await
}

async fn issue(
    world: &World,
    context: &Context,
    wake_budget: Option<u32>,
) -> Result<(LinkId, envforge_commands::Done), CommandError> {
    let new = links::NewLink {
        workspace: world.workspace,
        service: "web".parse().unwrap(),
        families: None,
        lifetime: None,
        label: "review".to_owned(),
        wake_budget,
        issued_by: owner(),
    };
    let permit = permit(&world.log, Action::LinkIssue, world.on_workspace()).await;
    links::issue(&world.commands, &permit, context, new).await
}

async fn open_session(
    world: &World,
    commands: &Commands,
    link: LinkId,
    number: u128,
    handoff: u128,
) -> Result<SessionId, CommandError> {
    let resource = Resource::Link { org: acme(), project: world.project, workspace: world.workspace, link };
    let session = SessionId::from_uuid(Uuid::from_u128(number));
    let redeemed = links::RedeemedHandoff {
        link,
        handoff: HandoffId::from_uuid(Uuid::from_u128(handoff)),
        handoff_expires_at: UnixMillis::new(NOW.get() + 10_000),
        generation: Generation(1),
        session,
        cookie: TokenDigest::of(&number.to_be_bytes()),
    };
    let permit = visitor(&world.log, Action::LinkOpenSession, resource, link, session).await;
    links::open_session(commands, &permit, &Context::new(NOW), &redeemed).await.map(|_| session)
}

#[tokio::test]
async fn the_same_request_again_gets_the_first_answer_and_another_one_under_its_id_is_refused() {
    let world = world().await;
    let context = Context { request_digest: Some([7; 32]), ..Context::new(NOW) };
    let (link, first) = issue(&world, &context, None).await.unwrap();
    let (again, second) = issue(&world, &context, None).await.unwrap();
    assert_eq!((link, first.position, first.events.clone()), (again, second.position, second.events));
    assert!(second.duplicate && !first.duplicate);
    let other = Context { request_digest: Some([8; 32]), ..context };
    assert!(matches!(issue(&world, &other, None).await, Err(CommandError::CommandReused)));
    // Also for somebody whose memory is empty.
    let fresh = Commands::new(Arc::clone(&world.log));
    let world = World { commands: fresh, ..world };
    assert!(issue(&world, &context, None).await.unwrap().1.duplicate);
}

#[tokio::test]
async fn a_workspace_slug_is_taken_once_however_many_ask_at_once() {
    let world = world().await;
    let project = world.project;
    let attempts = (0..8).map(|_| {
        let (log, commands) = (Arc::clone(&world.log), Commands::new(Arc::clone(&world.log)));
        tokio::spawn(async move {
            create_workspace(&log, &commands, project, &Context::new(NOW), "racy").await.map(|(id, _)| id)
        })
    });
    let outcomes = futures_util::future::join_all(attempts).await;
    let won = outcomes.iter().filter(|outcome| outcome.as_ref().unwrap().is_ok()).count();
    assert_eq!(won, 1);
    for outcome in outcomes {
        if let Err(error) = outcome.unwrap() {
            assert_eq!(error.refusal_code(), Some("name_taken"), "{error}");
        }
    }
    let created = world.history().await.iter().filter(|event| matches!(event, Event::Workspace(_))).count();
    assert_eq!(created, 2, "a refused claim must leave no workspace behind");
}

#[tokio::test]
async fn an_archived_workspaces_slug_is_never_used_again() {
    let world = world().await;
    let archive = permit(&world.log, Action::WorkspaceArchive, world.on_workspace()).await;
    workspaces::archive(&world.commands, &archive, &Context::new(NOW), world.workspace).await.unwrap();
    let context = Context::new(NOW);
    let again = create_workspace(&world.log, &world.commands, world.project, &context, "signed-links");
    let error = again.await.unwrap_err();
    assert_eq!(error.refusal_code(), Some("name_retired"));
    let wake = permit(&world.log, Action::RuntimeWake, world.on_workspace()).await;
    let cause = WakeCause::Person(owner());
    let error = runtimes::wake(&world.commands, &wake, &Context::new(NOW), world.workspace, cause).await.unwrap_err();
    assert_eq!(error.refusal_code(), Some("workspace_archived"));
}

#[tokio::test]
async fn a_thousand_requests_over_four_gateways_are_one_wake() {
    let world = Arc::new(world().await);
    let (link, _) = issue(&world, &Context::new(NOW), Some(1)).await.unwrap();
    let session = open_session(&world, &world.commands, link, 5, 5).await.unwrap();
    let resource = Resource::Link { org: acme(), project: world.project, workspace: world.workspace, link };
    let gateways: Vec<_> = (0..4).map(|_| Commands::new(Arc::clone(&world.log))).collect();
    let requests = (0..1_000).map(|number| {
        let (world, commands) = (Arc::clone(&world), gateways[number % 4].clone());
        tokio::spawn(async move {
            let permit = visitor(&world.log, Action::RuntimeWake, resource, link, session).await;
            runtimes::wake_by_link(&commands, &permit, &Context::new(NOW), world.workspace, link, session).await
        })
    });
    let mut contended = 0;
    for outcome in futures_util::future::join_all(requests).await {
        match outcome.unwrap() {
            Ok(_) => {}
            // Nothing was done and the caller may ask again; a gateway asks once per workspace anyway.
            Err(CommandError::Contended | CommandError::RightsMoved { .. }) => contended += 1,
            Err(error) => panic!("{error}"),
        }
    }
    let history = world.history().await;
    let wakes =
        history.iter().filter(|event| matches!(event, Event::Runtime(RuntimeEvent::WakeRequested { .. }))).count();
    let spent = history.iter().filter(|event| matches!(event, Event::DevLink(DevLinkEvent::WakeSpent { .. }))).count();
    assert_eq!((wakes, spent), (1, 1), "{contended} were contended");
}

#[tokio::test]
async fn a_spent_wake_budget_wakes_nothing() {
    let world = world().await;
    let (link, _) = issue(&world, &Context::new(NOW), Some(1)).await.unwrap();
    let session = open_session(&world, &world.commands, link, 5, 5).await.unwrap();
    let resource = Resource::Link { org: acme(), project: world.project, workspace: world.workspace, link };
    let wake = || async {
        let permit = visitor(&world.log, Action::RuntimeWake, resource, link, session).await;
        runtimes::wake_by_link(&world.commands, &permit, &Context::new(NOW), world.workspace, link, session).await
    };
    wake().await.unwrap();
    let report = system(Component::RuntimeReactor, Action::RuntimeReport, world.on_workspace());
    let host = HostId::from_uuid(Uuid::from_u128(7));
    let failed = RuntimeCommand::ReportFailed { epoch: Epoch(1), host, reason: "broken".to_owned() };
    runtimes::report(&world.commands, &report, &Context::new(NOW), world.workspace, &failed).await.unwrap();
    let before = world.log.head().await.unwrap().position;
    assert_eq!(wake().await.unwrap_err().refusal_code(), Some("wake_budget_spent"));
    assert_eq!(world.log.head().await.unwrap().position, before, "nothing may be half done");
}

#[tokio::test]
async fn a_handoff_is_redeemed_once_over_several_gateways() {
    let world = Arc::new(world().await);
    let (link, _) = issue(&world, &Context::new(NOW), None).await.unwrap();
    let attempts = (0..8_u128).map(|number| {
        let world = Arc::clone(&world);
        tokio::spawn(async move {
            let commands = Commands::new(Arc::clone(&world.log));
            open_session(&world, &commands, link, 50 + number, 9).await
        })
    });
    let outcomes = futures_util::future::join_all(attempts).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.as_ref().unwrap().is_ok()).count(), 1);
}

#[tokio::test]
async fn a_machine_belongs_to_one_organization() {
    let world = world().await;
    let other = OrgId::from_uuid(Uuid::from_u128(200));
    organization(&world.commands, other, "globex").await.unwrap();
    let register = |org: OrgId| {
        let commands = world.commands.clone();
        async move {
            let host = HostId::from_uuid(derived_uuid(org.as_uuid().as_bytes(), "host"));
            let permit = system(Component::RuntimeReactor, Action::HostRegister, Resource::Host { org, host });
            let machine = hosts::MachineKey::parse("local-1").unwrap();
            let capacity = Capacity { cpu_millicores: 1_000, memory_mib: 1_024 };
            hosts::register(&commands, &permit, &Context::new(NOW), host, "local".to_owned(), machine, capacity).await
        }
    };
    register(acme()).await.unwrap();
    assert_eq!(register(other).await.unwrap_err().refusal_code(), Some("name_taken"));
}

#[tokio::test]
async fn a_permit_for_one_thing_does_nothing_to_another() {
    let world = world().await;
    let (link, _) = issue(&world, &Context::new(NOW), None).await.unwrap();
    let elsewhere = Resource::Link {
        org: acme(),
        project: world.project,
        workspace: world.workspace,
        link: LinkId::from_uuid(Uuid::from_u128(404)),
    };
    let wrong_link = permit(&world.log, Action::LinkRevoke, elsewhere).await;
    let outcome = links::revoke(&world.commands, &wrong_link, &Context::new(NOW), link, None).await;
    assert!(matches!(outcome, Err(CommandError::PermitMismatch { .. })));
    let resource = Resource::Link { org: acme(), project: world.project, workspace: world.workspace, link };
    let wrong_action = permit(&world.log, Action::LinkRead, resource).await;
    let outcome = links::revoke(&world.commands, &wrong_action, &Context::new(NOW), link, None).await;
    assert!(matches!(outcome, Err(CommandError::PermitMismatch { .. })));
    let other_org = Resource::Link {
        org: OrgId::from_uuid(Uuid::from_u128(200)),
        project: world.project,
        workspace: world.workspace,
        link,
    };
    let stream = StreamId::dev_link(acme(), link);
    let command = envforge_domain::dev_link::DevLinkCommand::Revoke { reason: None };
    let outcome = world
        .commands
        .execute::<envforge_domain::dev_link::DevLink>(
            &permit(&world.log, Action::LinkRevoke, other_org).await,
            &Context::new(NOW),
            &stream,
            &command,
        )
        .await;
    assert!(matches!(outcome, Err(CommandError::PermitMismatch { .. })));
}

#[tokio::test]
async fn nobody_deactivates_an_owner_from_below_and_nobody_the_last_one() {
    let world = world().await;
    let resource = Resource::Organization(acme());
    let create = UserCommand::Create {
        user: owner(),
        issuer: "local".to_owned(),
        subject: "1".to_owned(),
        email: EmailAddress::parse("ada@acme.test").unwrap(),
        name: "Ada".to_owned(),
    };
    let setup = system(Component::Setup, Action::UserCreate, resource);
    users::change(&world.commands, &setup, &Context::new(NOW), owner(), &create).await.unwrap();
    let below = UserId::from_uuid(Uuid::from_u128(2));
    let facts = ActorFacts::Member {
        org: acme(),
        active: true,
        session_live: true,
        link_issuers: LINK_ISSUERS,
        grants: vec![Grant {
            grantee: Grantee::User(below),
            role: Role::Admin,
            scope: Scope::Organization,
            expires_at: None,
        }],
    };
    let facts = Facts { position: Position::START, actor: facts };
    let action = Action::UserDeactivate;
    let request = Request { actor: Actor::User(below), action, resource, surface: Surface::Api, now: NOW };
    let admins = authorize(&facts, &request).unwrap();
    let refused = users::deactivate(&world.commands, &admins, &Context::new(NOW), owner()).await.unwrap_err();
    assert_eq!(refused.refusal_code(), Some("grant_above_yourself"));
    let owners = permit(&world.log, action, resource).await;
    let refused = users::deactivate(&world.commands, &owners, &Context::new(NOW), owner()).await.unwrap_err();
    assert_eq!(refused.refusal_code(), Some("last_owner"));
}

#[tokio::test]
async fn a_refusal_is_given_on_the_leaders_word_and_not_from_memory() {
    let world = world().await;
    let (link, _) = issue(&world, &Context::new(NOW), None).await.unwrap();
    let resource = Resource::Link { org: acme(), project: world.project, workspace: world.workspace, link };
    let stale = Commands::new(Arc::clone(&world.log));
    open_session(&world, &stale, link, 1, 1).await.unwrap();
    let revoke = permit(&world.log, Action::LinkRevoke, resource).await;
    links::revoke(&world.commands, &revoke, &Context::new(NOW), link, None).await.unwrap();
    let error = open_session(&world, &stale, link, 2, 2).await.unwrap_err();
    assert_eq!(error.refusal_code(), Some("link_revoked"));
}

#[tokio::test]
async fn what_a_person_does_stands_beside_why_it_was_allowed() {
    let world = world().await;
    let (_, done) = issue(&world, &Context::new(NOW), None).await.unwrap();
    let page = world.log.read(done.position, 10, &Filter::everything()).await.unwrap();
    let [recorded, held] = &page.commits[..] else { panic!("{page:?}") };
    let (on_org, on_owner) = (StreamId::organization(acme()), StreamId::user(acme(), owner()));
    let last = world.log.last_position_of(std::slice::from_ref(&on_org)).await.unwrap();
    assert_eq!(recorded.commit.stream, StreamId::decisions_on(&on_owner));
    let [Event::Decision(DecisionEvent::Recorded { action, resource, rests_on, .. })] = &recorded.commit.events[..]
    else {
        panic!("{recorded:?}")
    };
    assert_eq!((action.as_str(), resource.as_str()), ("link.issue", world.workspace.to_string().as_str()));
    let stood = [Standing { stream: on_org.clone(), last }, Standing { stream: on_owner, last: Position::START }];
    assert_eq!(rests_on[..], stood);
    assert_eq!(held.commit.stream, StreamId::decisions_on(&on_org));
    assert_eq!(held.commit.events, [Event::Decision(DecisionEvent::Held { last })]);
    // EnvForge's own components need nothing beside what they do.
    let before = world.log.head().await.unwrap().position;
    move_rights(&world, 3).await;
    assert_eq!(world.log.head().await.unwrap().position, before.next());
}

#[tokio::test]
async fn a_visitor_of_a_link_rests_on_its_issuers_right_and_says_so_and_a_moved_one_stops_it() {
    let world = world().await;
    let (link, _) = issue(&world, &Context::new(NOW), None).await.unwrap();
    let before = world.log.head().await.unwrap().position;
    let session = open_session(&world, &world.commands, link, 1, 1).await.unwrap();
    let page = world.log.read(before, 10, &Filter::everything()).await.unwrap();
    let [opened, recorded, held @ ..] = &page.commits[..] else { panic!("{page:?}") };
    let on_link = StreamId::dev_link(acme(), link);
    assert_eq!(opened.commit.stream, on_link);
    assert_eq!(recorded.commit.stream, StreamId::decisions_on(&on_link));
    let [Event::Decision(DecisionEvent::Recorded { action, rests_on, .. })] = &recorded.commit.events[..] else {
        panic!("{recorded:?}")
    };
    assert_eq!((action.as_str(), rests_on.len()), ("link.open_session", 4));
    // The organization's by the record; the link's own by what is expected of it.
    assert_eq!(held.len(), 2, "of the issuer and of the workspace: {held:?}");

    // Somebody else of the same link comes in between, and nobody minds.
    let resource = Resource::Link { org: acme(), project: world.project, workspace: world.workspace, link };
    let decided = visitor(&world.log, Action::RuntimeWake, resource, link, session).await;
    open_session(&world, &world.commands, link, 2, 2).await.unwrap();
    move_rights(&world, 2).await;
    let context = Context::new(NOW);
    let refused = runtimes::wake_by_link(&world.commands, &decided, &context, world.workspace, link, session).await;
    let Err(CommandError::RightsMoved { stream }) = refused else { panic!("{refused:?}") };
    assert_eq!(stream, StreamId::organization(acme()));
    assert!(!world.history().await.iter().any(|event| matches!(event, Event::Runtime(_))), "nothing is half done");
    let decided = visitor(&world.log, Action::RuntimeWake, resource, link, session).await;
    runtimes::wake_by_link(&world.commands, &decided, &Context::new(NOW), world.workspace, link, session)
        .await
        .unwrap();
}

/// Adds somebody to the organization, by EnvForge itself.
async fn move_rights(world: &World, number: u128) {
    let add = system(Component::Setup, Action::MemberAdd, Resource::Organization(acme()));
    let command = OrganizationCommand::AddMember { user: UserId::from_uuid(Uuid::from_u128(number)) };
    organizations::change(&world.commands, &add, &Context::new(NOW), &command).await.unwrap();
}

#[tokio::test]
async fn a_command_whose_rights_have_moved_does_nothing_and_says_so() {
    let world = world().await;
    let on_workspace = permit(&world.log, Action::RuntimeWake, world.on_workspace()).await;
    let on_organization = permit(&world.log, Action::MemberAdd, Resource::Organization(acme())).await;
    let archive = permit(&world.log, Action::WorkspaceArchive, world.on_workspace()).await;
    move_rights(&world, 50).await;
    let before = world.log.head().await.unwrap().position;
    let cause = WakeCause::Person(owner());
    let (commands, context) = (&world.commands, Context::new(NOW));
    let add = OrganizationCommand::AddMember { user: UserId::from_uuid(Uuid::from_u128(51)) };
    for (what, outcome) in [
        ("a command", runtimes::wake(commands, &on_workspace, &context, world.workspace, cause).await.map(|_| ())),
        // Its own expectation would hold on the newer state, on which its permit does not rest.
        (
            "on the rights' own stream",
            organizations::change(commands, &on_organization, &context, &add).await.map(|_| ()),
        ),
        ("of several streams", workspaces::archive(commands, &archive, &context, world.workspace).await.map(|_| ())),
    ] {
        match outcome {
            Err(CommandError::RightsMoved { stream }) => assert_eq!(stream, StreamId::organization(acme()), "{what}"),
            other => panic!("{what}: {other:?}"),
        }
    }
    assert_eq!(world.log.head().await.unwrap().position, before);
    let again = permit(&world.log, Action::MemberAdd, Resource::Organization(acme())).await;
    organizations::change(commands, &again, &context, &add).await.unwrap();
}

#[tokio::test]
async fn a_repeated_command_gets_its_first_answer_though_its_rights_have_moved() {
    let world = world().await;
    let context = Context::new(NOW);
    let wake = permit(&world.log, Action::RuntimeWake, world.on_workspace()).await;
    let cause = WakeCause::Person(owner());
    let first = runtimes::wake(&world.commands, &wake, &context, world.workspace, cause.clone()).await.unwrap();
    let slug = "second";
    let of_several = Context::new(NOW);
    let (_, created) = create_workspace(&world.log, &world.commands, world.project, &of_several, slug).await.unwrap();
    move_rights(&world, 50).await;
    // Also for somebody whose memory is empty.
    for commands in [world.commands.clone(), Commands::new(Arc::clone(&world.log))] {
        let again = runtimes::wake(&commands, &wake, &context, world.workspace, cause.clone()).await.unwrap();
        assert!(again.duplicate);
        assert_eq!((again.position, &again.events), (first.position, &first.events));
        let (_, again) = create_workspace(&world.log, &commands, world.project, &of_several, slug).await.unwrap();
        assert!(again.duplicate && !created.duplicate);
    }
}

#[tokio::test]
async fn a_persons_permit_that_rests_on_nothing_changes_nothing() {
    let world = world().await;
    let grant =
        Grant { grantee: Grantee::User(owner()), role: Role::Owner, scope: Scope::Organization, expires_at: None };
    let actor = ActorFacts::Member {
        org: acme(),
        active: true,
        session_live: true,
        link_issuers: LINK_ISSUERS,
        grants: vec![grant],
    };
    let facts = Facts { position: Position::START, actor };
    let (action, resource) = (Action::RuntimeWake, world.on_workspace());
    let request = Request { actor: Actor::User(owner()), action, resource, surface: Surface::Api, now: NOW };
    let from_memory = authorize(&facts, &request).unwrap();
    let cause = WakeCause::Person(owner());
    let outcome = runtimes::wake(&world.commands, &from_memory, &Context::new(NOW), world.workspace, cause).await;
    assert!(matches!(outcome, Err(CommandError::PermitRestsOnNothing { .. })), "{outcome:?}");
}

/// A log on which somebody else acts at the worst moment: before one of the reads of a stream.
struct Interrupted {
    log: SharedLog,
    stream: StreamId,
    reads_until: AtomicUsize,
    interruption: tokio::sync::Mutex<Option<BoxFuture<'static, ()>>>,
}

#[async_trait]
impl Interference for Interrupted {
    fn real(&self) -> &SharedLog {
        &self.log
    }

    async fn read_stream(&self, stream: &StreamId, after: Position, limit: usize) -> Result<Vec<Recorded>, LogError> {
        if *stream == self.stream && self.reads_until.fetch_sub(1, Ordering::SeqCst) == 1 {
            let interruption = self.interruption.lock().await.take().unwrap();
            interruption.await;
        }
        self.log.read_stream(stream, after, limit).await
    }
}

#[tokio::test]
async fn a_link_pays_only_for_the_wakes_that_it_caused_however_others_come_in_between() {
    // The second link, or a person, wakes before the first, second or third look at the runtime.
    for (reads, by_person) in [(1, false), (2, false), (3, false), (1, true), (2, true), (3, true)] {
        let world = Arc::new(world().await);
        let mut visitors = Vec::new();
        for number in [5, 6] {
            let (link, _) = issue(&world, &Context::new(NOW), Some(9)).await.unwrap();
            let session = open_session(&world, &world.commands, link, number, number).await.unwrap();
            let resource = Resource::Link { org: acme(), project: world.project, workspace: world.workspace, link };
            let permit = visitor(&world.log, Action::RuntimeWake, resource, link, session).await;
            visitors.push((permit, link, session));
        }
        let (permit, link, session) = visitors.remove(0);
        let (others, other, others_session) = visitors.remove(0);
        let other_wake = {
            let world = Arc::clone(&world);
            async move {
                let (commands, workspace, context) = (&world.commands, world.workspace, Context::new(NOW));
                if by_person {
                    let permit = self::permit(&world.log, Action::RuntimeWake, world.on_workspace()).await;
                    let cause = WakeCause::Person(owner());
                    runtimes::wake(commands, &permit, &context, workspace, cause).await.unwrap();
                } else {
                    runtimes::wake_by_link(commands, &others, &context, workspace, other, others_session)
                        .await
                        .unwrap();
                }
            }
        };
        let interrupted = Interrupted {
            log: Arc::clone(&world.log),
            stream: StreamId::runtime(acme(), world.workspace),
            reads_until: AtomicUsize::new(reads),
            interruption: tokio::sync::Mutex::new(Some(Box::pin(other_wake))),
        };
        let commands = Commands::new(Arc::new(InterferedLog(interrupted)));
        runtimes::wake_by_link(&commands, &permit, &Context::new(NOW), world.workspace, link, session).await.unwrap();

        let history = world.history().await;
        let woken_by = |event: &Event| match event {
            Event::Runtime(RuntimeEvent::WakeRequested { cause: WakeCause::Link { link, .. }, epoch, .. }) => {
                Some((*link, *epoch))
            }
            _ => None,
        };
        let woken: Vec<_> = history.iter().filter_map(woken_by).collect();
        let page = world.log.read(Position::START, 10_000, &Filter::everything()).await.unwrap();
        let spent: Vec<_> = page
            .commits
            .iter()
            .flat_map(|recorded| recorded.commit.events.iter().map(|event| (recorded.commit.stream.key(), event)))
            .filter_map(|(key, event)| match event {
                Event::DevLink(DevLinkEvent::WakeSpent { epoch, .. }) => Some((key.parse().unwrap(), *epoch)),
                _ => None,
            })
            .collect();
        assert_eq!(spent, woken, "interrupted at read {reads}, by a person: {by_person}");
    }
}

#[tokio::test]
async fn who_appended_last_knows_where_the_stream_ends_and_reads_nothing_again() {
    let world = world().await;
    let user = UserId::from_uuid(Uuid::from_u128(9));
    let stream = StreamId::user(acme(), user);
    let counted = Arc::new(InterferedLog(Interrupted {
        log: Arc::clone(&world.log),
        stream: stream.clone(),
        reads_until: AtomicUsize::new(usize::MAX),
        interruption: tokio::sync::Mutex::new(None),
    }));
    let commands = Commands::new(counted.clone());
    let create = UserCommand::Create {
        user,
        issuer: LOCAL_ISSUER.to_owned(),
        subject: user.to_string(),
        email: EmailAddress::parse("ada@acme.test").unwrap(),
        name: "Ada".to_owned(),
    };
    let permit = system(Component::Setup, Action::UserCreate, Resource::Organization(acme()));
    users::change(&commands, &permit, &Context::new(NOW), user, &create).await.unwrap();
    let permit = system(Component::Identity, Action::UserRecordSession, Resource::User { org: acme(), user });
    let open = async |commands: &Commands, number| {
        let session = SessionId::from_uuid(Uuid::from_u128(number));
        let opened = OpenSession::of_local_account(Surface::Api, NOW, NOW.plus(Millis::from_hours(1)));
        let open = UserCommand::OpenSession { session, opened, now: NOW };
        users::change(commands, &permit, &Context::new(NOW), user, &open).await.unwrap()
    };
    for number in 1..=4 {
        open(&commands, number).await;
    }
    let reads = || usize::MAX - counted.reads_until.load(Ordering::SeqCst);
    assert_eq!(reads(), 1, "before the first of them");
    // What another process appended is read, and nothing of it is lost.
    let elsewhere = open(&world.commands, 5).await;
    assert!(open(&commands, 6).await.position > elsewhere.position);
    assert_eq!(reads(), 2);
    let User::Active { sessions, .. } = commands.load::<User>(&stream).await.unwrap().state else { panic!() };
    assert_eq!(sessions.len(), 6);
}
