//! Queries of the directory.

use envforge_domain::access::{Role, Scope};
use envforge_domain::commit::{Actor, StreamId};
use envforge_domain::dev_link::{BlockedAttempts, DevLinkCommand, RouteFamilies, RouteFamily};
use envforge_domain::host::{Capacity, Host, HostCommand};
use envforge_domain::manifest::Manifest;
use envforge_domain::organization::{OrganizationCommand, OrganizationPolicy};
use envforge_domain::runtime::{Epoch, RuntimeCommand, SleepCause, WakeCause, WakeStage};
use envforge_domain::time::{Millis, UnixMillis};
use envforge_domain::user::{User, UserCommand};
use envforge_domain::workspace::{AccessMode, WorkspaceCommand};
use envforge_projections::sql::{Limit, LinkFilter, LinkPhase, ModelName, RuntimePhase, Within, WorkspaceFilter};

use crate::harness::{Harness, Kind};
use crate::world::*;

async fn directory_of(kind: Kind, world: &World) -> Harness {
    let harness = Harness::new(kind).await;
    let head = world.log.reveal_all();
    harness.project(&world.shared(), ModelName::Directory, head).await;
    harness
}

pub async fn organizations_members_and_roles_are_listed(kind: Kind) {
    let mut world = World::acme();
    world.user(1, 3, "Cleo").unwrap();
    world.organize(1, 1, &OrganizationCommand::AddMember { user: user_id(3) }).unwrap();
    world.grant(1, 3, Role::Viewer, Scope::Organization).unwrap();
    world.grant(1, 3, Role::Admin, Scope::Organization).unwrap();
    let policy = OrganizationPolicy { link_lifetime_max: Millis::from_hours(3), ..OrganizationPolicy::default() };
    world
        .organize(
            1,
            1,
            &OrganizationCommand::ChangePolicy {
                by: system(),
                policy: policy.clone(),
                provider: None,
                now: UnixMillis::EPOCH,
            },
        )
        .unwrap();
    world
        .organize(1, 1, &OrganizationCommand::RemoveMember { by: system(), user: user_id(2), now: world.now })
        .unwrap();
    world
        .act::<User>(
            StreamId::user(org_id(1), user_id(3)),
            system(),
            &UserCommand::Deactivate { beyond: None, only_owner: false },
        )
        .unwrap();
    world.organization(2, 1).unwrap();
    let harness = directory_of(kind, &world).await;
    let directory = harness.database.directory();

    let acme = directory.organization(org_id(1)).await.unwrap().unwrap();
    assert_eq!((acme.slug.as_str(), acme.name.as_str(), &acme.policy), ("org-1", "Organization 1", &policy));
    assert_eq!(acme.created_at, UnixMillis::new(EIGHT));
    assert_eq!(directory.organization_by_slug(&"org-1".parse().unwrap()).await.unwrap(), Some(acme));
    assert_eq!(directory.organization_by_slug(&"org-9".parse().unwrap()).await.unwrap(), None);
    let all = directory.organizations(None, None, Limit::MAX).await.unwrap();
    assert_eq!(all.items.len(), 2);
    let of_cleo = directory.organizations(Some(user_id(3)), None, Limit::MAX).await.unwrap();
    assert_eq!(of_cleo.items.iter().map(|org| org.id).collect::<Vec<_>>(), [org_id(1)]);

    let members = directory.members(org_id(1), None, Limit::MAX).await.unwrap().items;
    assert_eq!(members.iter().map(|member| member.user).collect::<Vec<_>>(), [user_id(1), user_id(3)]);
    assert_eq!(members[0].name.as_deref(), Some("Ada"));
    assert_eq!(members[0].email.as_deref(), Some("ada@example.org"));
    assert!(members[0].active && !members[1].active);
    assert_eq!(members[0].grants[0].role, Role::Owner);
    let roles: Vec<_> = members[1].grants.iter().map(|grant| (grant.role, grant.project)).collect();
    assert_eq!(roles, [(Role::Admin, None), (Role::Viewer, None)]);
    assert!(directory.team_grants(org_id(1)).await.unwrap().is_empty());

    let cleo = directory.user(user_id(3)).await.unwrap().unwrap();
    assert_eq!((cleo.issuer.as_str(), cleo.deactivated_at), ("local", Some(UnixMillis::new(EIGHT))));
    assert_eq!(directory.users(org_id(1), None, Limit::MAX).await.unwrap().items.len(), 3);
}

pub async fn projects_and_workspaces_are_found_by_id_and_slug(kind: Kind) {
    let mut world = World::acme();
    world.project(1, 2, 1).unwrap();
    world.workspace(1, 2, 2, 1).unwrap();
    let text = format!("{MANIFEST}  api:\n    command: ./api\n");
    let manifest = Manifest::parse(&text).unwrap();
    let org_slug = "org-1".parse().unwrap();
    let change = WorkspaceCommand::ChangeManifest { org_slug, manifest: manifest.clone() };
    world.work(1, 2, 1, &change).unwrap();
    let mode = WorkspaceCommand::ChangeAccessMode { access_mode: AccessMode::TailscaleOnly };
    world.work(1, 2, 1, &mode).unwrap();
    world.work(1, 1, 2, &WorkspaceCommand::Archive).unwrap();
    let harness = directory_of(kind, &world).await;
    let directory = harness.database.directory();

    let project = directory.project(org_id(1), project_id(2)).await.unwrap().unwrap();
    assert_eq!(project.repository, "https://example.org/repository.git");
    let by_slug = directory.project_by_slug(org_id(1), &"project-2".parse().unwrap()).await.unwrap();
    assert_eq!(by_slug, Some(project));
    assert_eq!(directory.projects(org_id(1), None, None, Limit::MAX).await.unwrap().items.len(), 2);
    let only = directory.projects(org_id(1), Some(&[project_id(2)]), None, Limit::MAX).await.unwrap();
    assert_eq!(only.items.iter().map(|project| project.id).collect::<Vec<_>>(), [project_id(2)]);
    assert!(directory.projects(org_id(1), Some(&[]), None, Limit::MAX).await.unwrap().items.is_empty());

    let workspace = directory.workspace(org_id(1), workspace_id(2)).await.unwrap().unwrap();
    assert_eq!(Manifest::parse(&workspace.manifest).unwrap(), manifest);
    assert_eq!(workspace.manifest_digest, manifest.digest().to_string());
    assert_eq!(workspace.access_mode, AccessMode::TailscaleOnly);
    assert_eq!(workspace.project_slug.as_deref(), Some("project-2"));
    assert_eq!(workspace.created_by_name.as_deref(), Some("Ada"));
    assert_eq!((workspace.branch.as_str(), workspace.archived_at, &workspace.runtime), ("main", None, &None));
    let by_slug = directory.workspace_by_slug(org_id(1), &"workspace-2".parse().unwrap()).await.unwrap();
    assert_eq!(by_slug, Some(workspace));

    let list = async |filter: WorkspaceFilter| {
        let page = directory.workspaces(org_id(1), &filter, None, Limit::MAX).await.unwrap();
        page.items.iter().map(|workspace| workspace.id).collect::<Vec<_>>()
    };
    assert_eq!(list(WorkspaceFilter::default()).await, [workspace_id(1), workspace_id(2)]);
    assert_eq!(list(WorkspaceFilter { archived: Some(true), ..Default::default() }).await, [workspace_id(1)]);
    assert_eq!(list(WorkspaceFilter { archived: Some(false), ..Default::default() }).await, [workspace_id(2)]);
    let of_project = WorkspaceFilter {
        within: Some(Within { projects: vec![project_id(2)], workspaces: vec![] }),
        ..Default::default()
    };
    assert_eq!(list(of_project).await, [workspace_id(2)]);
    let ready = WorkspaceFilter { phase: Some(RuntimePhase::Ready), ..Default::default() };
    assert!(list(ready).await.is_empty());
    let asleep = WorkspaceFilter { phase: Some(RuntimePhase::Asleep), ..Default::default() };
    assert_eq!(list(asleep).await.len(), 2, "what was never woken is asleep");
}

pub async fn lists_go_on_at_their_cursor(kind: Kind) {
    let mut world = World::acme();
    for number in 2..=7 {
        world.workspace(1, 1, number, 1).unwrap();
    }
    let harness = directory_of(kind, &world).await;
    let (mut seen, mut after) = (Vec::new(), None::<String>);
    let limit = Limit::new(3).unwrap();
    let mut pages = 0;
    loop {
        let filter = WorkspaceFilter::default();
        let directory = harness.database.directory();
        let page = directory.workspaces(org_id(1), &filter, after.as_deref(), limit).await.unwrap();
        seen.extend(page.items.iter().map(|workspace| workspace.id));
        pages += 1;
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    assert_eq!(seen, (1..=7).map(workspace_id).collect::<Vec<_>>());
    assert_eq!(pages, 3);
    let members = harness.database.directory().members(org_id(1), None, Limit::new(1).unwrap()).await.unwrap();
    assert_eq!(members.next, Some(user_id(1).to_string()));
    let rest = harness.database.directory().members(org_id(1), members.next.as_deref(), limit).await.unwrap();
    assert_eq!(rest.items.iter().map(|member| member.user).collect::<Vec<_>>(), [user_id(2)]);
    assert!(Limit::new(0).is_err() && Limit::new(201).is_err() && Limit::new(200).is_ok());
}

pub async fn a_runtime_is_shown_as_it_stands(kind: Kind) {
    let harness = Harness::new(kind).await;
    let mut world = World::acme();
    let shared = world.shared();
    let running = harness.start(&shared, ModelName::Directory);
    let look = async |world: &World| {
        harness.wait(ModelName::Directory, world.log.reveal_all()).await;
        harness.database.directory().runtime(org_id(1), workspace_id(1)).await.unwrap()
    };
    assert_eq!(look(&world).await, None);

    world.pass(1_000);
    let cause = WakeCause::Link { link: link_id(1), session: session_id(1) };
    world.wake(1, 1, 1, cause.clone()).unwrap();
    let stage = RuntimeCommand::ReportStage { epoch: Epoch(1), stage: WakeStage::CheckingOut };
    world.run(1, 1, Actor::Agent(host_id(1)), &stage).unwrap();
    let waking = look(&world).await.unwrap();
    assert_eq!((waking.phase, waking.epoch, waking.stage.as_deref()), (RuntimePhase::Waking, 1, Some("checking_out")));
    assert_eq!((waking.since, waking.wake_cause), (UnixMillis::new(EIGHT + 1_000), cause));

    world.pass(2_000);
    world.ready(1, 1, 1).unwrap();
    let keep = RuntimeCommand::KeepAwake {
        until: world.now.plus(Millis::from_minutes(30)),
        reason: "demo at ten".into(),
        by: user_id(2),
        max: Millis::from_hours(1),
        now: world.now,
    };
    world.run(1, 1, Actor::User(user_id(2)), &keep).unwrap();
    let ready = look(&world).await.unwrap();
    assert_eq!((ready.phase, ready.stage.as_deref()), (RuntimePhase::Ready, None));
    assert_eq!(ready.since, UnixMillis::new(EIGHT + 3_000));
    assert_eq!(ready.services, [service("web"), service("worker")]);
    assert_eq!(ready.keep_awake_reason.as_deref(), Some("demo at ten"));
    assert_eq!(ready.keep_awake_by, Some(user_id(2)));
    assert_eq!(ready.commit_hash.as_deref(), Some("0123abcd"));

    let sleep = RuntimeCommand::RequestSleep { cause: SleepCause::Person(user_id(2)), now: world.now };
    world.run(1, 1, Actor::User(user_id(2)), &sleep).unwrap();
    world.wake(1, 1, 1, WakeCause::Person(user_id(1))).unwrap();
    let sleeping = look(&world).await.unwrap();
    assert_eq!((sleeping.phase, sleeping.keep_awake_until), (RuntimePhase::Sleeping, None));
    assert_eq!(sleeping.queued_cause, Some(WakeCause::Person(user_id(1))));
    assert!(sleeping.sleep_cause.unwrap().contains("person"));

    world
        .run(1, 1, Actor::Agent(host_id(1)), &RuntimeCommand::ReportSlept { epoch: Epoch(1), host: host_id(1) })
        .unwrap();
    let again = look(&world).await.unwrap();
    assert_eq!((again.phase, again.epoch, again.queued_cause), (RuntimePhase::Waking, 2, None));
    let failed = RuntimeCommand::ReportFailed { epoch: Epoch(2), host: host_id(1), reason: "web left with 1".into() };
    world.run(1, 1, Actor::Agent(host_id(1)), &failed).unwrap();
    let failed = look(&world).await.unwrap();
    assert_eq!((failed.phase, failed.failure.as_deref()), (RuntimePhase::Failed, Some("web left with 1")));
    let workspace = harness.database.directory().workspace(org_id(1), workspace_id(1)).await.unwrap().unwrap();
    assert_eq!(workspace.runtime, Some(failed));
    running.stop().await.unwrap();
}

pub async fn a_link_is_shown_with_its_use(kind: Kind) {
    let mut world = World::acme();
    world.link(1, 1, 1, 2, 1).unwrap();
    world.pass(5_000);
    world.session(1, 1, 1, 1).unwrap();
    world.session(1, 1, 2, 1).unwrap();
    let visitor = Actor::LinkVisitor { link: link_id(1), session: Some(session_id(1)) };
    let spend = DevLinkCommand::SpendWake { epoch: Epoch(1), session: session_id(1), now: world.now };
    world.share(1, 1, visitor, &spend).unwrap();
    for count in [4, 3] {
        let attempts = vec![BlockedAttempts { code: "origin_refused".into(), count, requests: vec![] }];
        let (since, until) = (world.now, world.now);
        world.share(1, 1, system(), &DevLinkCommand::RecordBlocked { attempts, since, until }).unwrap();
    }
    let families: RouteFamilies = [RouteFamily::Web, RouteFamily::Assets].into_iter().collect();
    let by = Actor::User(user_id(2));
    let now = world.now;
    world.share(1, 1, by, &DevLinkCommand::ChangeAllowlist { families, limits: limits(), now }).unwrap();
    let lifetime = Some(Millis::from_hours(4));
    world.share(1, 1, by, &DevLinkCommand::Rotate { lifetime, limits: limits(), now }).unwrap();
    world.pass(1_000);
    let reason = Some("review is done".to_owned());
    world.share(1, 1, by, &DevLinkCommand::Revoke { reason: reason.clone() }).unwrap();
    let harness = directory_of(kind, &world).await;
    let directory = harness.database.directory();

    let link = directory.link(org_id(1), link_id(1)).await.unwrap().unwrap();
    assert_eq!(link.phase, LinkPhase::Revoked);
    assert_eq!((link.ended_at, &link.revoke_reason), (Some(UnixMillis::new(EIGHT + 6_000)), &reason));
    assert_eq!(link.families, families);
    assert_eq!((link.token_generation, link.sessions_opened, link.wakes_spent), (2, 2, 1));
    assert_eq!(link.first_used_at, Some(UnixMillis::new(EIGHT + 5_000)));
    assert_eq!(link.expires_at, UnixMillis::new(EIGHT + 5_000 + 4 * HOUR));
    assert_eq!(link.blocked.iter().collect::<Vec<_>>(), [(&"origin_refused".to_owned(), &7)]);
    assert_eq!((link.workspace_slug.as_deref(), link.issued_by_name.as_deref()), (Some("workspace-1"), Some("Ben")));
    assert_eq!((link.wake_budget, link.label.as_str()), (Some(3), "Link 1"));

    let list = async |filter: LinkFilter| {
        let page = directory.links(org_id(1), &filter, None, Limit::MAX).await.unwrap();
        page.items.iter().map(|link| link.id).collect::<Vec<_>>()
    };
    assert_eq!(list(LinkFilter::default()).await, [link_id(1), link_id(2)]);
    assert_eq!(list(LinkFilter { phase: Some(LinkPhase::Active), ..Default::default() }).await, [link_id(2)]);
    assert_eq!(list(LinkFilter { workspace: Some(workspace_id(1)), ..Default::default() }).await.len(), 2);
    assert!(list(LinkFilter { workspace: Some(workspace_id(9)), ..Default::default() }).await.is_empty());
    assert!(list(LinkFilter { within: Some(Within::default()), ..Default::default() }).await.is_empty());
}

pub async fn hosts_are_shown_with_what_they_hold(kind: Kind) {
    let mut world = World::acme();
    let capacity = Capacity { cpu_millicores: 4_000, memory_mib: 8_192 };
    let (host, org) = (host_id(1), org_id(1));
    let stream = || StreamId::host(org, host);
    let register = HostCommand::Register { host, org, provider: "local".into(), machine: "m-1".into(), capacity };
    world.done::<Host>(stream(), system(), &register);
    for number in [1, 2] {
        let needs = Capacity { cpu_millicores: 500, memory_mib: 256 };
        world.done::<Host>(stream(), system(), &HostCommand::Place { workspace: workspace_id(number), org, needs });
    }
    world.done::<Host>(stream(), system(), &HostCommand::Release { workspace: workspace_id(1) });
    let harness = directory_of(kind, &world).await;
    let found = harness.database.directory().host(host).await.unwrap().unwrap();
    assert_eq!((found.provider.as_str(), found.machine.as_str()), ("local", "m-1"));
    assert_eq!((found.cpu_millicores, found.cpu_millicores_used, found.memory_mib_used), (4_000, 500, 256));
    assert_eq!(found.workspaces, [workspace_id(2)]);
    let hosts = harness.database.directory().hosts(org, None, Limit::DEFAULT).await.unwrap();
    assert_eq!((hosts.items, hosts.next), (vec![found], None));
}

pub async fn another_organization_sees_nothing(kind: Kind) {
    let mut world = World::acme();
    world.organization(2, 11).unwrap();
    world.wake(1, 1, 1, WakeCause::Person(user_id(1))).unwrap();
    let harness = directory_of(kind, &world).await;
    let (directory, other) = (harness.database.directory(), org_id(2));
    assert_eq!(directory.workspace(other, workspace_id(1)).await.unwrap(), None);
    assert_eq!(directory.workspace_by_slug(other, &"workspace-1".parse().unwrap()).await.unwrap(), None);
    assert_eq!(directory.project(other, project_id(1)).await.unwrap(), None);
    assert_eq!(directory.runtime(other, workspace_id(1)).await.unwrap(), None);
    assert_eq!(directory.link(other, link_id(1)).await.unwrap(), None);
    let links = LinkFilter { workspace: Some(workspace_id(1)), ..Default::default() };
    assert!(directory.links(other, &links, None, Limit::MAX).await.unwrap().items.is_empty());
    let all = WorkspaceFilter::default();
    assert!(directory.workspaces(other, &all, None, Limit::MAX).await.unwrap().items.is_empty());
    assert!(directory.hosts(other, None, Limit::MAX).await.unwrap().items.is_empty());
}
