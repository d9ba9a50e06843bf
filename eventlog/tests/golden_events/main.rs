//! Every event version that was ever written decodes forever: `golden/events/<type>.json` holds one of each, and
//! `golden/variants/<type>.json` one of each shape that its values take, down to every token of every enum.
//!
//! A golden file is never edited once it has landed. A new event type or version needs a sample here;
//! `ENVFORGE_WRITE_GOLDEN=1 cargo nextest run -p envforge-eventlog golden` writes the missing files and no other.
#![allow(clippy::unwrap_used)]
#![allow(clippy::disallowed_methods, reason = "missing golden files are written on request")]

mod machines;
mod root_windows;
mod secrets;
mod shells;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::str::FromStr;

use envforge_domain::access::{Action, Basis, Grant, Grantee, Principal, Role, Roles, Scope};
use envforge_domain::claim::ClaimEvent;
use envforge_domain::commit::{Actor, Commit, Component, Position, Standing, StreamId, StreamKind, Surface};
use envforge_domain::decision::DecisionEvent;
use envforge_domain::denial::{DenialEvent, DeniedAttempts, RefusedRequest};
use envforge_domain::dev_link::{BlockedAttempts, DevLinkEvent, Generation, RouteFamilies, RouteFamily};
use envforge_domain::event::Event;
use envforge_domain::host::{Capacity, HostEvent};
use envforge_domain::ids::{
    ApiProcessId, CommandId, CommitId, CorrelationId, GatewayId, HandoffId, HostId, LinkId, OrgId, ProjectId,
    RootWindowId, ServiceTokenId, SessionId, TeamId, UserId, WorkspaceId,
};
use envforge_domain::invitation::{Invitation, InvitedRole};
use envforge_domain::manifest::{
    Hook, Job, JobKind, Manifest, PathPrefix, Probe, Readiness, Resource, ResourceMode, Route, Service,
};
use envforge_domain::organization::{OrganizationEvent, OrganizationPolicy};
use envforge_domain::project::{GitCredential, ProjectEvent, Repository};
use envforge_domain::revocation::{Receipt, Uncounted, UncountedShells, WhyShellsUnknown, WhyUncounted};
use envforge_domain::root_window::RootPolicy;
use envforge_domain::runtime::{
    ActivitySource, Epoch, PostponeCause, ReadyService, RuntimeEvent, SleepCause, WakeCause, WakeStage,
};
use envforge_domain::secret::TokenDigest;
use envforge_domain::service_token::ServiceTokenEvent;
use envforge_domain::slug::ServiceName;
use envforge_domain::time::{Millis, UnixMillis};
use envforge_domain::user::{ClientName, EmailAddress, OpenSession, SessionEnd, UserEvent};
use envforge_domain::workspace::{AccessMode, Branch, WorkspaceEvent};
use envforge_eventlog::schema::{self, DecodeError, EncodeError};
use proptest::prelude::*;
use serde_json::Value;
use uuid::Uuid;

fn uuid(number: u128) -> Uuid {
    Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 | number)
}

fn at(seconds: u64) -> UnixMillis {
    UnixMillis::new(1_795_000_000_000 + seconds * 1_000)
}

fn parsed<T: FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

fn service(name: &str, route: Route, probe: Probe) -> Service {
    Service {
        name: parsed(name),
        command: format!("python3 -m {name} \"--tür\""),
        directory: Some("services".to_owned()),
        port_variable: Some("PORT".to_owned()),
        route,
        readiness: Readiness { probe, interval: Millis::new(500), deadline: Millis::from_secs(60) },
        cpu_millicores: 500,
        memory_mib: 256,
        secrets: vec!["DATABASE_URL".to_owned()],
        environment: vec![("LOG".to_owned(), "info\n".to_owned())],
    }
}

fn manifest() -> Manifest {
    let path = |text: &str| PathPrefix::parse(text).unwrap();
    Manifest {
        services: vec![
            service("web", Route::Web { websockets: vec![path("/ws")] }, Probe::Http { path: "/health".to_owned() }),
            service("api", Route::Api { prefix: path("/api"), websockets: vec![] }, Probe::Tcp),
            service("static", Route::Assets { prefix: path("/assets") }, Probe::Command { command: "true".to_owned() }),
            service("site", Route::Marketing { prefix: path("/") }, Probe::None),
            Service { directory: None, port_variable: None, ..service("worker", Route::None, Probe::None) },
        ],
        resources: [ResourceMode::Runtime, ResourceMode::Shared, ResourceMode::CustomerCloud]
            .map(|mode| Resource { name: "db".to_owned(), kind: "postgres".to_owned(), mode })
            .to_vec(),
        jobs: [JobKind::Test, JobKind::Agent]
            .map(|kind| Job {
                name: "unit".to_owned(),
                command: "make test".to_owned(),
                kind,
                secrets: vec!["API_KEY".to_owned()],
            })
            .to_vec(),
        idle_sleep: Millis::from_minutes(15),
        on_sleep: Some(Hook { command: "make park".to_owned(), deadline: Millis::from_secs(20) }),
    }
}

fn opened(surface: Surface) -> OpenSession {
    OpenSession {
        surface,
        provider: "local".to_owned(),
        client: ClientName::parse("envforge-cli/0.1.0").unwrap(),
        opened_at: at(0),
        authenticated_at: at(5),
        expires_at: at(3_600),
    }
}

/// At least one sample per event; the first of a type is its golden one.
/// With each reason for which a gateway, or shells, are not counted.
fn receipts() -> [Receipt; 2] {
    let gateway = Some(GatewayId::from_uuid(uuid(14)));
    let lone =
        [WhyUncounted::StillClosing, WhyUncounted::Lost, WhyUncounted::Silent].map(|why| Uncounted { gateway, why });
    let all = [WhyUncounted::Unknown, WhyUncounted::NotReported].map(|why| Uncounted { gateway: None, why });
    let counts = Receipt {
        sessions: 3,
        cli_sessions: 1,
        links: 1,
        sockets: 2,
        uncounted: vec![],
        shells: 2,
        shells_uncounted: vec![],
        took: Millis::new(42),
    };
    let process = Some(ApiProcessId::from_uuid(uuid(15)));
    let shells = [WhyShellsUnknown::StillClosing, WhyShellsUnknown::Lost, WhyShellsUnknown::Silent]
        .map(|why| UncountedShells { process, why });
    let of_all = [WhyShellsUnknown::Unknown, WhyShellsUnknown::OtherProcesses, WhyShellsUnknown::NotReported]
        .map(|why| UncountedShells { process: None, why });
    let uncounted = Receipt {
        uncounted: lone.into_iter().chain(all).collect(),
        shells_uncounted: shells.into_iter().chain(of_all).collect(),
        ..counts.clone()
    };
    [counts, uncounted]
}

fn samples() -> Vec<Event> {
    let (org, user, team) = (OrgId::from_uuid(uuid(1)), UserId::from_uuid(uuid(2)), TeamId::from_uuid(uuid(3)));
    let (project, workspace) = (ProjectId::from_uuid(uuid(4)), WorkspaceId::from_uuid(uuid(5)));
    let (host, link, session) = (HostId::from_uuid(uuid(6)), LinkId::from_uuid(uuid(7)), SessionId::from_uuid(uuid(8)));
    let web: ServiceName = parsed("web");
    let families: RouteFamilies = [RouteFamily::Web, RouteFamily::Websockets].into_iter().collect();
    let capacity = Capacity { cpu_millicores: 4_000, memory_mib: 8_192 };
    let repository = Repository::parse("https://github.com/acme/orders").unwrap();
    let grant = |grantee, role, scope, expires_at| Grant { grantee, role, scope, expires_at };
    let epoch = Epoch(3);

    let organization = [
        OrganizationEvent::Created { org, slug: parsed("acme"), name: "Acme \"Söhne\" GmbH".to_owned() },
        OrganizationEvent::MemberAdded { user },
        OrganizationEvent::MemberRemoved { user },
        OrganizationEvent::RoleAssigned {
            grant: grant(Grantee::User(user), Role::Developer, Scope::Project(project), Some(at(60))),
        },
        OrganizationEvent::RoleAssigned { grant: grant(Grantee::Team(team), Role::Owner, Scope::Organization, None) },
        OrganizationEvent::RoleRevoked { grantee: Grantee::Team(team), role: Role::Viewer, scope: Scope::Organization },
        OrganizationEvent::PolicyChanged { policy: OrganizationPolicy::default() },
        OrganizationEvent::PolicyChanged {
            policy: OrganizationPolicy { link_families: RouteFamilies::NONE, ..OrganizationPolicy::default() },
        },
        OrganizationEvent::OwnerRecovered { user },
        OrganizationEvent::PolicyChanged {
            policy: OrganizationPolicy {
                link_issuers: Roles::of(&[Role::Owner]),
                identity_providers: ["https://acme.eu.auth0.com/", "local"].map(str::to_owned).into(),
                session_lifetime_max: Millis::from_hours(8),
                service_token_lifetime_max: Millis::from_hours(24 * 30),
                root: RootPolicy::WorkspaceElevation,
                root_window_max: Millis::from_hours(1),
                ..OrganizationPolicy::default()
            },
        },
        OrganizationEvent::PolicyChanged {
            policy: OrganizationPolicy { root: RootPolicy::BreakGlass, ..OrganizationPolicy::default() },
        },
        OrganizationEvent::TeamCreated { team, slug: parsed("platform") },
        OrganizationEvent::TeamRenamed { team, slug: parsed("platform-2") },
        OrganizationEvent::TeamMemberAdded { team, user },
        OrganizationEvent::TeamMemberRemoved { team, user },
        OrganizationEvent::TeamDeleted { team },
    ];
    let of_workspace = [
        OrganizationEvent::RoleAssigned {
            grant: grant(Grantee::User(user), Role::Viewer, Scope::Workspace { project, workspace }, None),
        },
        OrganizationEvent::RoleRevoked {
            grantee: Grantee::Team(team),
            role: Role::Developer,
            scope: Scope::Workspace { project, workspace },
        },
    ];
    let roles = Role::ALL.map(|role| {
        let (grantee, scope) = (Grantee::User(user), Scope::Project(project));
        OrganizationEvent::RoleRevoked { grantee, role, scope }
    });
    let users = [
        UserEvent::Created {
            user,
            issuer: "local".to_owned(),
            subject: user.to_string(),
            email: EmailAddress::parse("ada@example.com").unwrap(),
            name: "Ada".to_owned(),
        },
        UserEvent::Deactivated,
        UserEvent::session_opened(session, opened(Surface::Cli)),
        UserEvent::PasswordChanged,
        UserEvent::Invited {
            invitation: Invitation {
                user,
                email: EmailAddress::parse("grace@example.com").unwrap(),
                roles: vec![
                    InvitedRole { role: Role::Developer, scope: Scope::Project(project) },
                    InvitedRole { role: Role::Viewer, scope: Scope::Organization },
                ],
                invited_by: user,
                expires_at: at(3_600),
            },
        },
        UserEvent::InvitationRevoked,
        UserEvent::InvitationAccepted,
        UserEvent::ProfileChanged { name: "Ada Lovelace".to_owned() },
        UserEvent::Reactivated,
        UserEvent::Reauthenticated { session, authenticated_at: at(60) },
        UserEvent::WorkspaceOpened {
            session: SessionId::from_uuid(uuid(12)),
            parent: session,
            handoff: HandoffId::from_uuid(uuid(13)),
            project,
            workspace,
            service: web.clone(),
            cookie: TokenDigest::of(b"a cookie"),
            opened_at: at(7),
            expires_at: at(3_600),
        },
    ];
    let user_receipts =
        receipts().map(|receipt| UserEvent::RevocationRecorded { cause: SessionEnd::LoggedOut, receipt });
    let ends = [
        SessionEnd::LoggedOut,
        SessionEnd::Revoked,
        SessionEnd::PasswordChanged,
        SessionEnd::RefreshReused,
        SessionEnd::Deactivated,
        SessionEnd::Expired,
        SessionEnd::Displaced,
    ]
    .map(|reason| UserEvent::SessionEnded { session, reason });
    let surfaces = Surface::ALL.map(|surface| UserEvent::session_opened(session, opened(surface)));
    let projects = [
        ProjectEvent::Created {
            project,
            slug: parsed("orders"),
            name: "Orders".to_owned(),
            repository: repository.clone(),
        },
        ProjectEvent::Edited { name: "Orders 2".to_owned(), repository },
        ProjectEvent::GitCredentialChanged {
            credential: Some(GitCredential {
                secret: parsed("GIT_TOKEN"),
                username: "x-access-token".to_owned(),
                in_shells: true,
            }),
        },
        ProjectEvent::GitCredentialChanged { credential: None },
    ];
    let workspaces = [
        WorkspaceEvent::Created {
            workspace,
            project,
            slug: parsed("signed-links"),
            branch: Branch::parse("feature/signed-links").unwrap(),
            manifest: manifest(),
            access_mode: AccessMode::SignedLinks,
        },
        WorkspaceEvent::ManifestChanged { manifest: manifest() },
        WorkspaceEvent::ManifestChanged { manifest: Manifest { on_sleep: None, jobs: vec![], ..manifest() } },
        WorkspaceEvent::AccessModeChanged { access_mode: AccessMode::TailscaleOnly },
        WorkspaceEvent::Archived,
    ];
    let wakes = [
        WakeCause::Link { link, session },
        WakeCause::Person(user),
        WakeCause::Job { name: "unit".to_owned(), by: user },
        WakeCause::Agent { name: "fixer".to_owned(), by: user },
    ]
    .map(|cause| RuntimeEvent::WakeRequested { epoch, workspace, project, cause });
    let stages = [WakeStage::Placed, WakeStage::CheckingOut, WakeStage::Starting, WakeStage::Probing]
        .map(|stage| RuntimeEvent::StageReached { epoch, stage });
    let sleeps = [
        SleepCause::Idle { idle_for: Millis::from_minutes(15) },
        SleepCause::Person(user),
        SleepCause::WorkspaceArchived,
        SleepCause::Shutdown,
        SleepCause::UsageCap,
    ]
    .map(|cause| RuntimeEvent::SleepRequested { epoch, cause });
    let runtimes = [
        RuntimeEvent::WakeQueued { cause: WakeCause::Person(user) },
        RuntimeEvent::HostChosen { epoch, host },
        RuntimeEvent::Ready {
            epoch,
            commit: "4f2a9c".to_owned(),
            services: vec![ReadyService { name: web.clone(), cpu_millicores: 500, memory_mib: 256 }],
            lease_until: at(30),
        },
        RuntimeEvent::EndpointsBound {
            epoch,
            host,
            endpoints: vec![(web.clone(), parsed("127.0.0.1:40001")), (parsed("api"), parsed("[::1]:40002"))],
        },
        RuntimeEvent::LeaseRenewed { epoch, lease_until: at(60) },
        RuntimeEvent::ActivitySeen { epoch, at: at(45), open_streams: 1, source: ActivitySource::Link(link) },
        RuntimeEvent::ActivitySeen { epoch, at: at(46), open_streams: 0, source: ActivitySource::Person(user) },
        RuntimeEvent::KeptAwake { until: at(1_800), reason: "demo at noon".to_owned(), by: user },
        RuntimeEvent::KeepAwakeShortened { until: at(900) },
        RuntimeEvent::SleepPostponed { cause: PostponeCause::KeepAwake { until: at(1_800) } },
        RuntimeEvent::SleepPostponed { cause: PostponeCause::OpenStreams { count: 2 } },
        RuntimeEvent::Slept { epoch },
        RuntimeEvent::Failed { epoch, stage: Some(WakeStage::Probing), reason: "web did not answer".to_owned() },
        RuntimeEvent::Failed { epoch, stage: None, reason: "web ended with 1".to_owned() },
        RuntimeEvent::Lost { epoch, closed_at: at(90) },
    ];
    let hosts = [
        HostEvent::Registered { host, org, provider: "local".to_owned(), machine: "local-7c3f".to_owned(), capacity },
        HostEvent::Placed { workspace, needs: capacity },
        HostEvent::Released { workspace },
        HostEvent::Retired,
        HostEvent::EnrolmentIssued {
            host,
            org,
            name: "builder-1".parse().unwrap(),
            token: TokenDigest::of(b"an enrolment"),
            expires_at: at(900),
        },
        HostEvent::Enrolled {
            enrolment: 1,
            certificate: TokenDigest::of(b"a certificate"),
            certificate_expires_at: at(86_400),
            agent_version: "0.1.0".to_owned(),
        },
        HostEvent::CertificateRenewed {
            certificate: TokenDigest::of(b"another certificate"),
            certificate_expires_at: at(129_600),
        },
        HostEvent::AgentLookedFor { away: Millis::from_minutes(7) },
        HostEvent::Draining,
        HostEvent::Revoked,
    ];
    let request = CorrelationId::from_uuid(uuid(12));
    let requests = vec![RefusedRequest { request, at: at(9), position: Position::new(41) }];
    let links = [
        DevLinkEvent::Issued {
            link,
            project,
            workspace,
            service: web,
            families,
            issued_at: at(0),
            expires_at: at(7_200),
            label: "for Grace".to_owned(),
            wake_budget: Some(5),
            issued_by: user,
        },
        DevLinkEvent::FirstUsed { at: at(5) },
        DevLinkEvent::SessionOpened {
            session,
            handoff: HandoffId::from_uuid(uuid(9)),
            cookie: TokenDigest::of(b"a cookie"),
            generation: Generation(1),
            expires_at: at(7_200),
        },
        DevLinkEvent::AllowlistChanged { families: RouteFamilies::ALL },
        DevLinkEvent::Rotated { generation: Generation(2), issued_at: at(10), expires_at: at(7_210) },
        DevLinkEvent::WakeSpent { epoch, session },
        DevLinkEvent::AttemptsBlocked {
            attempts: vec![BlockedAttempts {
                code: "route_not_allowed".to_owned(),
                count: 7,
                requests: requests.clone(),
            }],
            since: at(0),
            until: at(60),
        },
        DevLinkEvent::Expired,
        DevLinkEvent::Revoked { reason: Some("review done".to_owned()) },
        DevLinkEvent::Revoked { reason: None },
    ];
    let organization_receipts = receipts().map(|receipt| OrganizationEvent::RevocationRecorded { receipt });
    let workspace_receipts = receipts().map(|receipt| WorkspaceEvent::RevocationRecorded { receipt });
    let link_receipts = receipts().map(|receipt| DevLinkEvent::RevocationRecorded { receipt });
    let holder = workspace.to_string();
    let claims = [
        ClaimEvent::Taken { holder: holder.clone() },
        ClaimEvent::Retired { holder: holder.clone() },
        ClaimEvent::Released { holder },
    ];
    let attempts = [
        Actor::LinkVisitor { link, session: Some(session) },
        Actor::LinkVisitor { link, session: None },
        Actor::User(user),
        Actor::Agent(host),
        Actor::System(Component::Setup),
        Actor::System(Component::Gateway),
        Actor::System(Component::RuntimeReactor),
        Actor::System(Component::Timer),
        Actor::System(Component::Identity),
        Actor::Anonymous,
        Actor::ServiceToken(ServiceTokenId::from_uuid(uuid(9))),
    ]
    .map(|actor| DeniedAttempts {
        actor,
        action: "workspace.wake".to_owned(),
        surface: Surface::Gateway,
        resource: Some(workspace.to_string()),
        about: matches!(actor, Actor::ServiceToken(_)).then_some(Actor::User(user)),
        address: (actor == Actor::Anonymous).then(|| parsed("2001:db8::7")),
        code: "wake_budget_spent".to_owned(),
        count: 12,
        first_at: at(0),
        last_at: at(9),
        requests: if matches!(actor, Actor::User(_)) { requests.clone() } else { vec![] },
    });
    let denials = [DenialEvent::Recorded { attempts: attempts.to_vec() }];
    let granted = grant(Grantee::User(user), Role::Developer, Scope::Project(project), Some(at(60)));
    let principals =
        [Principal::Member, Principal::LinkVisitor, Principal::Agent, Principal::System, Principal::ServiceToken];
    let bases = principals.map(Basis::Principal);
    let decisions = [Basis::Grant(granted)].into_iter().chain(bases).map(|basis| DecisionEvent::Recorded {
        action: Action::LinkIssue.token().to_owned(),
        resource: workspace.to_string(),
        basis,
        position: Position::new(41),
        rests_on: vec![
            Standing { stream: StreamId::organization(org), last: Position::new(40) },
            Standing { stream: StreamId::user(org, user), last: Position::START },
        ],
    });
    let held = DecisionEvent::Held { last: Position::new(40) };

    let mut all: Vec<Event> = Vec::new();
    all.extend(organization.into_iter().chain(roles).chain(of_workspace).map(Event::Organization));
    all.extend(users.into_iter().chain(ends).chain(surfaces).chain(user_receipts).map(Event::User));
    all.extend(projects.map(Event::Project));
    all.extend(workspaces.map(Event::Workspace));
    all.extend(wakes.into_iter().chain(stages).chain(sleeps).chain(runtimes).map(Event::Runtime));
    all.extend(hosts.map(Event::Host));
    all.extend(links.into_iter().chain(link_receipts).map(Event::DevLink));
    all.extend(organization_receipts.map(Event::Organization));
    all.extend(workspace_receipts.map(Event::Workspace));
    all.extend(claims.map(Event::Claim));
    all.extend(denials.map(Event::Denial));
    all.extend(decisions.chain([held]).map(Event::Decision));
    let token = ServiceTokenId::from_uuid(uuid(9));
    let places = [Scope::Organization, Scope::Project(project), Scope::Workspace { project, workspace }];
    let created = places.map(|place| ServiceTokenEvent::Created {
        token,
        slug: parsed("ci"),
        actions: [Action::WorkspaceRead, Action::RuntimeWake].into(),
        place,
        created_by: user,
        issued_at: at(0),
        expires_at: at(3_600),
    });
    let rotated = ServiceTokenEvent::Rotated {
        token,
        generation: 2,
        issued_at: at(60),
        expires_at: at(3_660),
        former_until: at(120),
    };
    let tokens = created.into_iter().chain([rotated, ServiceTokenEvent::Revoked { token }]);
    all.extend(tokens.map(Event::ServiceToken));
    all.extend(root_windows::samples(project, workspace, user).into_iter().map(Event::RootWindow));
    all.extend(secrets::samples(project, workspace, user).into_iter().map(Event::Secrets));
    all.extend(secrets::of_runtimes(epoch, project, workspace).into_iter().map(Event::Runtime));
    all.extend(shells::samples(project, workspace, user, session));
    all.extend(machines::samples(host, org, capacity).into_iter().map(Event::Machine));
    all
}

fn commit_of(events: Vec<Event>) -> Commit {
    let kind = events.first().map_or(StreamKind::Claim, Event::stream_kind);
    Commit {
        id: CommitId::from_uuid(uuid(100)),
        command: CommandId::from_uuid(uuid(101)),
        request_digest: Some([7; 32]),
        stream: StreamId::new(OrgId::from_uuid(uuid(1)), kind, "key").unwrap(),
        actor: Actor::User(UserId::from_uuid(uuid(2))),
        surface: Surface::Api,
        correlation: CorrelationId::from_uuid(uuid(102)),
        causation: Some(CommitId::from_uuid(uuid(99))),
        decided_at: at(0),
        events,
    }
}

fn claim(holder: usize) -> Event {
    Event::Claim(ClaimEvent::Taken { holder: "x".repeat(holder) })
}

fn stored_claim() -> String {
    String::from_utf8(schema::encode(&commit_of(vec![claim(3)])).unwrap().to_vec()).unwrap()
}

fn golden() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn golden_types() -> BTreeSet<String> {
    types_in("events")
}

fn types_in(folder: &str) -> BTreeSet<String> {
    std::fs::read_dir(golden().join(folder))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect()
}

fn compare(path: &std::path::Path, current: &Value) {
    if !path.exists() && std::env::var_os("ENVFORGE_WRITE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, serde_json::to_string_pretty(current).unwrap() + "\n").unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let written: Value = serde_json::from_str(&written).unwrap();
    assert_eq!(&written, current, "{} is not what is written today: a stored shape is frozen", path.display());
}

#[test]
fn golden_every_event_variant_has_a_sample_and_every_sample_is_stored_as_its_golden_file() {
    let mut seen = BTreeSet::new();
    for event in samples() {
        let event_type = schema::event_type(&event);
        if seen.insert(event_type) {
            compare(&golden().join(format!("events/{event_type}.json")), &schema::event_data(&event));
        }
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), schema::current_event_types());
}

/// Samples of one type in their order, as stored.
fn variants() -> BTreeMap<&'static str, Vec<Event>> {
    let mut variants: BTreeMap<&str, Vec<Event>> = BTreeMap::new();
    for event in samples() {
        variants.entry(schema::event_type(&event)).or_default().push(event);
    }
    variants
}

/// A new variant of a value is a new sample at the end of its type's: the file is written anew with
/// `ENVFORGE_WRITE_GOLDEN=1` after it was removed, and its difference shows what was added.
#[test]
fn golden_every_variant_is_stored_as_its_golden_file() {
    for (event_type, events) in variants() {
        let current = events.iter().map(schema::event_data).collect::<Vec<_>>();
        compare(&golden().join(format!("variants/{event_type}.json")), &Value::Array(current));
    }
    let current: BTreeSet<String> = schema::current_event_types().into_iter().map(str::to_owned).collect();
    assert!(types_in("variants").is_superset(&current));
}

#[test]
fn golden_every_variant_decodes_and_current_ones_encode_to_the_same_again() {
    for event_type in types_in("variants") {
        let file = std::fs::read_to_string(golden().join(format!("variants/{event_type}.json"))).unwrap();
        for data in serde_json::from_str::<Vec<Value>>(&file).unwrap() {
            let event = schema::decode_event(&event_type, &data.to_string()).unwrap();
            if schema::current_event_types().contains(&event_type.as_str()) {
                assert_eq!(schema::event_type(&event), event_type);
                assert_eq!(schema::event_data(&event), data, "{event_type}");
            }
        }
    }
}

/// What the schema can write is what the samples show: each token stands in a golden file of variants.
#[test]
fn golden_every_token_of_every_stored_enum_stands_in_a_file_of_variants() {
    let mut shown = BTreeSet::new();
    for event_type in types_in("variants") {
        let file = std::fs::read_to_string(golden().join(format!("variants/{event_type}.json"))).unwrap();
        texts(&serde_json::from_str(&file).unwrap(), &mut shown);
    }
    let mut missing = Vec::new();
    for entry in std::fs::read_dir(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/schema")).unwrap() {
        let source = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        missing.extend(tokens(&source).into_iter().filter(|token| !shown.contains(token)));
    }
    assert_eq!(missing, Vec::<String>::new(), "tokens without a sample");
    assert!(shown.contains("usage_cap") && shown.contains("customer_cloud") && shown.contains("explore"));
}

/// The tokens that a schema file declares: `"token" => Variant` within `tokens!` and `kinds!`.
fn tokens(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut within = false;
    for line in source.lines() {
        if line.starts_with("tokens!") || line.starts_with("kinds!") {
            within = true;
        }
        if within && let Some((token, _)) = line.trim().strip_prefix('"').and_then(|rest| rest.split_once("\" => ")) {
            found.push(token.to_owned());
        }
        within &= !line.starts_with('}');
    }
    found
}

/// Every text in a value.
fn texts(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::String(text) => drop(found.insert(text.clone())),
        Value::Array(values) => values.iter().for_each(|value| texts(value, found)),
        Value::Object(fields) => fields.values().for_each(|value| texts(value, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[test]
fn golden_every_type_that_was_ever_written_has_a_file_and_every_file_a_type() {
    let known: BTreeSet<String> = schema::event_types().into_iter().map(str::to_owned).collect();
    assert_eq!(golden_types(), known);
}

#[test]
fn golden_every_file_decodes_and_current_ones_encode_to_the_same_again() {
    for event_type in golden_types() {
        let data = std::fs::read_to_string(golden().join(format!("events/{event_type}.json"))).unwrap();
        let event = schema::decode_event(&event_type, &data).unwrap();
        if schema::current_event_types().contains(&event_type.as_str()) {
            assert_eq!(schema::event_type(&event), event_type);
            assert_eq!(schema::event_data(&event), serde_json::from_str::<Value>(&data).unwrap(), "{event_type}");
        }
    }
}

#[test]
fn golden_the_envelope_is_stored_as_its_golden_file() {
    let mut commit = commit_of(vec![claim(3)]);
    let current = |commit: &Commit| serde_json::from_slice::<Value>(&schema::encode(commit).unwrap()).unwrap();
    compare(&golden().join("commits/1-full.json"), &current(&commit));
    commit.request_digest = None;
    commit.causation = None;
    commit.actor = Actor::Anonymous;
    compare(&golden().join("commits/1-least.json"), &current(&commit));
    // A reason that came later: what wrote the first ones still reads as it did.
    let session = SessionId::from_uuid(uuid(8));
    let displaced = UserEvent::SessionEnded { session, reason: SessionEnd::Displaced };
    compare(&golden().join("commits/1-session-displaced.json"), &current(&commit_of(vec![displaced.into()])));
    for name in ["1-full", "1-least", "1-session-displaced"] {
        let stored = std::fs::read(golden().join(format!("commits/{name}.json"))).unwrap();
        schema::decode(&stored).unwrap();
    }
}

#[test]
fn every_sample_survives_encoding_and_decoding() {
    for event in samples() {
        let commit = commit_of(vec![event]);
        assert_eq!(schema::decode(&schema::encode(&commit).unwrap()).unwrap(), commit);
    }
}

#[test]
fn a_session_of_the_first_version_is_never_taken_for_younger_than_it_is() {
    let data = r#"{"session":"ses_01900000000070008000000000000008","surface":"cli","expires_at":1795003600000}"#;
    let Event::User(UserEvent::SessionOpened { provider, client, opened_at, authenticated_at, expires_at, .. }) =
        schema::decode_event("user.session_opened.v1", data).unwrap()
    else {
        panic!("it was decoded as something else")
    };
    assert_eq!((provider.as_str(), client.as_str(), expires_at), ("local", "cli", at(3_600)));
    assert_eq!((opened_at, authenticated_at), (at(3_600).minus(Millis::from_hours(720)), opened_at));
}

#[test]
fn types_are_written_as_aggregate_dot_event_dot_version() {
    for event_type in schema::event_types() {
        let parts: Vec<&str> = event_type.split('.').collect();
        let [aggregate, event, version] = parts[..] else { panic!("{event_type}") };
        let is_word =
            |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        assert!(is_word(aggregate) && is_word(event), "{event_type}");
        assert!(version.strip_prefix('v').is_some_and(|number| number.parse::<u32>().is_ok_and(|number| number > 0)));
    }
}

#[test]
fn an_unknown_type_or_version_is_never_skipped() {
    for unknown in ["claim.taken.v9", "claim.stolen.v1", "treasure.found.v1", "claim"] {
        let newer = stored_claim().replace("claim.taken.v1", unknown);
        assert_eq!(schema::decode(newer.as_bytes()), Err(DecodeError::UnknownEvent(unknown.to_owned())));
    }
}

#[test]
fn a_newer_envelope_says_its_version() {
    let newer = stored_claim().replace("{\"v\":1,", "{\"v\":2,\"signature\":\"ed25519\",");
    assert_eq!(schema::decode(newer.as_bytes()), Err(DecodeError::UnknownFormat { found: 2, known: 1 }));
}

#[test]
fn missing_unknown_and_misfitting_fields_are_errors() {
    let stored = stored_claim();
    for (from, to) in [
        ("\"holder\":\"xxx\"", ""),
        ("\"holder\":\"xxx\"", "\"holder\":\"xxx\",\"since\":1"),
        ("\"holder\":\"xxx\"", "\"holder\":7"),
        ("\"surface\":\"api\"", "\"surface\":\"fax\""),
        ("\"surface\":\"api\",", ""),
        ("\"actor\":\"user:", "\"actor\":\"usr:"),
        ("\"decided_at\":", "\"decided_at\":-"),
        ("\"events\":[", "\"events\":[],\"more\":["),
        (".claim.key", ".dev_link.key"),
        ("0707", "07"),
    ] {
        let broken = stored.replacen(from, to, 1);
        assert_ne!(broken, stored, "{from}");
        assert!(schema::decode(broken.as_bytes()).is_err(), "{broken}");
    }
    assert!(schema::decode(b"").is_err());
    assert!(schema::decode(&stored.as_bytes()[..stored.len() - 1]).is_err());
}

#[test]
fn limits_say_what_was_found_and_what_is_allowed() {
    let frame = br#"{"type":"claim.taken.v1","data":{"holder":""}}"#.len();
    let most = 64 * 1024 - frame;
    assert!(schema::encode(&commit_of(vec![claim(most)])).is_ok());
    assert_eq!(
        schema::encode(&commit_of(vec![claim(most + 1)])),
        Err(EncodeError::TooLarge { what: "an event", unit: "bytes", found: 65_537, limit: 65_536 })
    );
    assert!(schema::encode(&commit_of(vec![claim(1); 64])).is_ok());
    assert_eq!(
        schema::encode(&commit_of(vec![claim(1); 65])),
        Err(EncodeError::TooLarge { what: "a commit", unit: "events", found: 65, limit: 64 })
    );
    assert!(matches!(
        schema::encode(&commit_of(vec![claim(60_000); 9])),
        Err(EncodeError::TooLarge { what: "a commit", unit: "bytes", limit: 524_288, .. })
    ));
    assert_eq!(schema::encode(&commit_of(vec![])), Err(EncodeError::NoEvents));
    let mut foreign = commit_of(vec![claim(1)]);
    foreign.stream = StreamId::new(OrgId::SYSTEM, StreamKind::Host, "key").unwrap();
    assert_eq!(schema::encode(&foreign), Err(EncodeError::WrongStream { event: "claim", stream: "host" }));
}

proptest! {
    #[test]
    fn any_text_survives_storing(holder in ".{0,200}", id: u128) {
        let mut commit = commit_of(vec![Event::Claim(ClaimEvent::Taken { holder })]);
        commit.command = CommandId::from_uuid(Uuid::from_u128(id));
        prop_assert_eq!(schema::decode(&schema::encode(&commit).unwrap()).unwrap(), commit);
    }

    /// What is damaged is an error or another commit, never a panic.
    #[test]
    fn damaged_bytes_never_panic(sample in 0..200_usize, at: prop::sample::Index, byte: u8, cut: bool) {
        let samples = samples();
        let mut stored = schema::encode(&commit_of(vec![samples[sample % samples.len()].clone()])).unwrap().to_vec();
        let at = at.index(stored.len());
        stored[at] = byte;
        if cut {
            stored.truncate(at);
        }
        let _ = schema::decode(&stored);
    }

    #[test]
    fn arbitrary_bytes_are_no_commit(bytes: Vec<u8>) {
        prop_assert!(schema::decode(&bytes).is_err());
    }
}
