//! Histories: a told one, and random ones whose every event an aggregate decided.

use std::sync::Arc;

use envforge_domain::access::{Grantee, Role, Scope};
use envforge_domain::commit::{Actor, Position, StreamId, Surface};
use envforge_domain::denial::{DenialCommand, Denials, DeniedAttempts, RefusedRequest};
use envforge_domain::dev_link::{BlockedAttempts, DevLinkCommand, RouteFamilies, RouteFamily};
use envforge_domain::host::{Capacity, Host, HostCommand};
use envforge_domain::ids::{CorrelationId, UserId};
use envforge_domain::manifest::Manifest;
use envforge_domain::organization::{OrganizationCommand, OrganizationPolicy};
use envforge_domain::project::{GitChange, Project, ProjectCommand, Repository};
use envforge_domain::runtime::{
    ActivitySource, Epoch, PostponeCause, RuntimeCommand, SleepCause, WakeCause, WakeStage,
};
use envforge_domain::time::{Millis, UnixMillis};
use envforge_domain::user::{OpenSession, SessionEnd, User, UserCommand};
use envforge_domain::workspace::{AccessMode, WorkspaceCommand};
use envforge_eventlog::SharedLog;
use envforge_projections::sql::ModelName;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::harness::{Harness, Kind, single_pass};
use crate::log::{MemoryLog, SharedMemoryLog};
use crate::world::*;

const SYSTEM: Actor = Actor::System(envforge_domain::commit::Component::Setup);

/// One attempt at changing something. Which thing is meant is drawn from few, so that attempts meet.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    what: u8,
    org: u32,
    /// A user, project, workspace or link: one number for all, so that they belong together.
    thing: u32,
    other: u32,
    pause_ms: u64,
}

pub fn step() -> impl Strategy<Value = Step> {
    let pause = prop_oneof![4 => 0..5_000u64, 2 => 5_000..20_000u64, 1 => 0..2 * HOUR];
    (0..40u8, 1..3u32, 1..5u32, 1..5u32, pause).prop_map(|(what, org, thing, other, pause_ms)| Step {
        what,
        org,
        thing,
        other,
        pause_ms,
    })
}

/// Things of organization 1 have the numbers 1 to 4, those of organization 2 the numbers 11 to 14.
fn number(org: u32, thing: u32) -> u32 {
    (org - 1) * 10 + thing
}

impl World {
    fn epoch(&self, org: u32, workspace: u32) -> Epoch {
        use envforge_domain::aggregate::Aggregate;
        use envforge_domain::runtime::Runtime;
        let stream = StreamId::runtime(org_id(org), workspace_id(workspace));
        let commits = self.log.commits();
        let events = commits.iter().filter(|recorded| recorded.commit.stream == stream);
        Runtime::fold(events.flat_map(|recorded| &recorded.commit.events)).epoch()
    }

    /// Refusals are part of life and change nothing.
    pub fn attempt(&mut self, step: Step) -> Result<Option<Position>, &'static str> {
        let Step { org, .. } = step;
        let (thing, other) = (number(org, step.thing), number(org, step.other));
        let person = user_id(other);
        let by = Actor::User(person);
        self.pass(step.pause_ms);
        let now = self.now;
        match step.what {
            0 => self.user(org, thing, &format!("User{thing}")),
            1 => self.organization(org, other),
            2 => self.organize(org, other, &OrganizationCommand::AddMember { user: user_id(thing) }),
            3 => self.organize(
                org,
                other,
                &OrganizationCommand::RemoveMember { by: system(), user: user_id(thing), now },
            ),
            4 => self.assign(org, thing, Role::Developer, Scope::Project(project_id(other))),
            5 => self.assign(org, thing, Role::Admin, Scope::Organization),
            6 => {
                let grantee = Grantee::User(user_id(thing));
                let (role, scope) = (Role::Admin, Scope::Organization);
                let by = system();
                self.organize(org, other, &OrganizationCommand::RevokeRole { by, grantee, role, scope, now })
            }
            7 => {
                let policy = OrganizationPolicy {
                    idle_sleep_max: Millis::from_hours(u64::from(step.thing)),
                    ..OrganizationPolicy::default()
                };
                self.organize(
                    org,
                    other,
                    &OrganizationCommand::ChangePolicy { by: SYSTEM, policy, provider: None, now: UnixMillis::EPOCH },
                )
            }
            8 | 9 => self.project(org, thing, other),
            10 => {
                let command = ProjectCommand::Edit {
                    name: format!("Renamed {other} “ü”"),
                    repository: Repository::parse("git@example.org:other.git").unwrap(),
                    git: GitChange::Keep,
                };
                self.act::<Project>(StreamId::project(org_id(org), project_id(thing)), by, &command)
            }
            11 | 12 => self.workspace(org, other, thing, other),
            13 => {
                let text = format!("{MANIFEST}  api{other}:\n    command: ./api\n");
                let manifest = Manifest::parse(&text).unwrap();
                let org_slug = format!("org-{org}").parse().unwrap();
                self.work(org, thing, other, &WorkspaceCommand::ChangeManifest { org_slug, manifest })
            }
            14 => {
                let access_mode =
                    if step.other.is_multiple_of(2) { AccessMode::TailscaleOnly } else { AccessMode::SignedLinks };
                self.work(org, thing, other, &WorkspaceCommand::ChangeAccessMode { access_mode })
            }
            15 if step.other == 1 => self.work(org, thing, other, &WorkspaceCommand::Archive),
            15..=17 => self.link(org, other, other, thing, other),
            18 => self.session(org, thing, number(org, self.log.commits().len() as u32), 1),
            19 => {
                let families = [RouteFamily::Web, RouteFamily::Api].into_iter().collect::<RouteFamilies>();
                self.share(org, thing, by, &DevLinkCommand::ChangeAllowlist { families, limits: limits(), now })
            }
            20 => self.share(org, thing, by, &DevLinkCommand::Rotate { lifetime: None, limits: limits(), now }),
            21 => {
                let attempts = vec![
                    BlockedAttempts { code: "origin_refused".into(), count: step.other, requests: vec![] },
                    BlockedAttempts { code: "route_closed".into(), count: 1, requests: vec![] },
                ];
                let since = now.minus(Millis::from_secs(10));
                self.share(org, thing, system(), &DevLinkCommand::RecordBlocked { attempts, since, until: now })
            }
            22 => self.share(org, thing, system(), &DevLinkCommand::Expire { now }),
            23 if step.other == 1 => {
                let reason = Some("review is done".to_owned());
                self.share(org, thing, by, &DevLinkCommand::Revoke { reason })
            }
            23..=25 => {
                let link = link_id(other);
                let cause = match step.thing {
                    1 => WakeCause::Link { link, session: session_id(other) },
                    2 => WakeCause::Person(person),
                    3 => WakeCause::Job { name: "tests".into(), by: person },
                    _ => WakeCause::Agent { name: "reviewer".into(), by: person },
                };
                self.wake(org, other, thing, cause)
            }
            26 => {
                let epoch = self.epoch(org, thing);
                let stage = if step.other == 1 { WakeStage::Placed } else { WakeStage::Probing };
                self.run(org, thing, system(), &RuntimeCommand::ReportStage { epoch, stage })
            }
            27 | 28 => {
                let epoch = self.epoch(org, thing);
                self.ready(org, thing, epoch.0)
            }
            29 | 30 => {
                let epoch = self.epoch(org, thing);
                self.renew(org, thing, epoch.0, 30_000 + step.pause_ms)
            }
            31 => {
                let epoch = self.epoch(org, thing);
                let source = if step.other.is_multiple_of(2) {
                    ActivitySource::Link(link_id(other))
                } else {
                    ActivitySource::Person(person)
                };
                let command = RuntimeCommand::RecordActivity { epoch, at: now, open_streams: step.other, source };
                self.run(org, thing, system(), &command)
            }
            32 => {
                let until = now.plus(Millis::from_minutes(30));
                let (reason, max) = ("demo".to_owned(), Millis::from_hours(4));
                self.run(org, thing, by, &RuntimeCommand::KeepAwake { until, reason, by: person, max, now })
            }
            33 => {
                let epoch = self.epoch(org, thing);
                let cause = PostponeCause::OpenStreams { count: step.other };
                self.run(org, thing, system(), &RuntimeCommand::PostponeSleep { epoch, cause })
            }
            34 => {
                let cause = if step.other.is_multiple_of(2) {
                    SleepCause::Idle { idle_for: Millis::from_minutes(15) }
                } else {
                    SleepCause::Person(person)
                };
                self.run(org, thing, system(), &RuntimeCommand::RequestSleep { cause, now })
            }
            35 => {
                let epoch = self.epoch(org, thing);
                self.run(org, thing, system(), &RuntimeCommand::ReportSlept { epoch, host: host_id(1) })
            }
            36 => {
                let epoch = self.epoch(org, thing);
                if step.other == 1 {
                    // A text that PostgreSQL cannot store as it is.
                    let reason = "web left with 1\0".to_owned();
                    let command = RuntimeCommand::ReportFailed { epoch, host: host_id(1), reason };
                    self.run(org, thing, system(), &command)
                } else {
                    let command = RuntimeCommand::DeclareLost { epoch, confirmed_by: None, now };
                    self.run(org, thing, system(), &command)
                }
            }
            37 => {
                let host = host_id(number(org, 1));
                let capacity = Capacity { cpu_millicores: 4_000, memory_mib: 8_192 };
                let needs = Capacity { cpu_millicores: 500, memory_mib: 512 };
                let (org, workspace) = (org_id(org), workspace_id(thing));
                let command = match step.other {
                    1 => {
                        HostCommand::Register { host, org, provider: "local".into(), machine: "this".into(), capacity }
                    }
                    2 | 3 => HostCommand::Place { workspace, org, needs },
                    _ => HostCommand::Release { workspace },
                };
                self.act::<Host>(StreamId::host(org, host), system(), &command)
            }
            38 => self.sign_in_or_out(org, thing, step.other),
            _ => self.denials(org, thing, person),
        }
    }

    fn assign(&mut self, org: u32, to: u32, role: Role, scope: Scope) -> Result<Option<Position>, &'static str> {
        use envforge_domain::access::Grant;
        let grant = Grant { grantee: Grantee::User(user_id(to)), role, scope, expires_at: None };
        let command = OrganizationCommand::AssignRole { by: system(), grant, now: self.now };
        self.organize(org, to, &command)
    }

    fn sign_in_or_out(&mut self, org: u32, user: u32, how: u32) -> Result<Option<Position>, &'static str> {
        let session = session_id(user);
        let command = match how {
            1 | 2 => UserCommand::OpenSession {
                session,
                opened: OpenSession::of_local_account(Surface::Console, self.now, self.now.plus(Millis::from_hours(1))),
                now: self.now,
            },
            3 => UserCommand::EndSession { session, reason: SessionEnd::Revoked },
            _ => UserCommand::RecordPasswordChange,
        };
        self.act::<User>(StreamId::user(org_id(org), user_id(user)), system(), &command)
    }

    pub fn denials(&mut self, org: u32, about: u32, user: UserId) -> Result<Option<Position>, &'static str> {
        let attempt = |actor, code: &str, count| DeniedAttempts {
            actor,
            about: None,
            action: "workspace.archive".into(),
            surface: Surface::Console,
            resource: Some(workspace_id(about).to_string()),
            address: None,
            code: code.into(),
            count,
            first_at: UnixMillis::new(EIGHT),
            last_at: self.now,
            requests: vec![RefusedRequest {
                request: request_id(count.into()),
                at: self.now,
                position: Position::new(1),
            }],
        };
        let attempts =
            vec![attempt(Actor::User(user), "role_missing", 3), attempt(Actor::Anonymous, "not_signed_in", 17)];
        let stream = StreamId::denial(org_id(org));
        self.act::<Denials>(stream, system(), &DenialCommand::Record { attempts })
    }
}

/// One of as many refused requests.
pub fn request_id(count: u64) -> CorrelationId {
    CorrelationId::from_uuid(uuid::Uuid::from_u128(count.into()))
}

/// A small history in which something happens to everything.
pub fn story() -> World {
    let mut world = random_story(250, 42);
    world.pass(MINUTE);
    world.denials(1, 1, user_id(1)).unwrap();
    world
}

/// The same history for the same numbers.
pub fn random_story(steps: usize, seed: u8) -> World {
    let config = Config::default();
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]));
    let mut world = World::acme();
    world.organization(2, 11).unwrap();
    for _ in 0..steps {
        let step = step().new_tree(&mut runner).unwrap().current();
        let _ = world.attempt(step);
    }
    world
}

/// Shows the log in pieces and folds each before the next: batches end exactly there. Between some, a restart.
async fn project_in_pieces(harness: &Harness, world: &World, pieces: &[u64]) {
    let commits = world.log.commits();
    let log = Arc::new(MemoryLog::of("log-one", commits));
    let shared: SharedLog = Arc::new(SharedMemoryLog(Arc::clone(&log)));
    let head = world.log.commits().len() as u64;
    for model in ModelName::ALL {
        log.reveal_up_to(Position::START);
        let mut running = harness.start(&shared, model);
        let mut shown = 0;
        for piece in pieces.iter().cycle() {
            shown = (shown + piece).min(head);
            log.reveal_up_to(Position::new(shown));
            harness.wait(model, Position::new(shown)).await;
            if shown == head {
                break;
            }
            if piece.is_multiple_of(5) {
                running.crash().await;
                running = harness.start(&shared, model);
            }
        }
        running.stop().await.unwrap();
    }
}

pub async fn random_histories_fold_the_same_in_any_batches(kind: Kind) {
    let strategy = (prop::collection::vec(step(), 40..250), prop::collection::vec(1..60u64, 1..8));
    let cases = 12;
    let mut runner = TestRunner::new(Config { cases, ..Config::default() });
    for _ in 0..cases {
        let (steps, pieces) = strategy.new_tree(&mut runner).unwrap().current();
        let mut world = World::acme();
        let applied = steps.iter().filter(|step| matches!(world.attempt(**step), Ok(Some(_)))).count();
        let in_pieces = Harness::new(kind).await;
        project_in_pieces(&in_pieces, &world, &pieces).await;
        let found = in_pieces.digests().await;
        let once = single_pass(world.log.commits()).await;
        assert_eq!(found, once, "{applied} of {steps:?} in {pieces:?}");
        let one_by_one = Harness::new(Kind::Sqlite).await;
        project_in_pieces(&one_by_one, &world, &[1]).await;
        assert_eq!(one_by_one.digests().await, once, "one by one, {steps:?}");
    }
}
