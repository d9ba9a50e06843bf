//! Commits to measure with: lone ones for appends, and a history of an organization at work for replays.
//!
//! They are made from numbers, so that every run and every contender gets the same ones. Not here: storing or folding them.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use envforge_domain::access::{Grant, Grantee, Role, Scope};
use envforge_domain::claim::ClaimEvent;
use envforge_domain::commit::{Actor, Commit, Component, StreamId, StreamKind, Surface};
use envforge_domain::dev_link::{DevLinkEvent, Generation, RouteFamilies};
use envforge_domain::event::Event;
use envforge_domain::ids::{
    CommandId, CommitId, CorrelationId, HandoffId, HostId, LinkId, OrgId, ProjectId, SessionId, UserId, WorkspaceId,
};
use envforge_domain::manifest::{Manifest, PathPrefix, Probe, Readiness, Route, Service};
use envforge_domain::organization::OrganizationEvent;
use envforge_domain::project::{ProjectEvent, Repository};
use envforge_domain::runtime::{ActivitySource, Epoch, ReadyService, RuntimeEvent, SleepCause, WakeCause, WakeStage};
use envforge_domain::secret::TokenDigest;
use envforge_domain::time::{Millis, UnixMillis};
use envforge_domain::user::{EmailAddress, UserEvent};
use envforge_domain::workspace::{AccessMode, Branch, WorkspaceEvent};
use uuid::Uuid;

/// When histories begin: 2026-11-01.
const BEGIN: UnixMillis = UnixMillis::new(1_793_491_200_000);
/// Between two commits of a history.
const STEP: Millis = Millis::new(50);
const PROJECTS: u64 = 10;

/// A stream that only the writer of that number appends to. Eight organizations share them all.
pub(crate) fn stream(writer: usize, index: usize) -> StreamId {
    let org = OrgId::from_uuid(Uuid::from_u128(writer as u128 % 8 + 1));
    let key = format!("{:032x}", (writer as u128) << 64 | index as u128);
    StreamId::new(org, StreamKind::Claim, &key).expect("hexadecimal digits are a key")
}

/// A commit of the usual size, with ids of its own.
pub(crate) fn claim(stream: StreamId) -> Commit {
    commit(stream, Uuid::now_v7(), BEGIN, vec![Event::Claim(ClaimEvent::Taken { holder: "x".repeat(120) })])
}

pub(crate) fn commit(stream: StreamId, id: Uuid, at: UnixMillis, events: Vec<Event>) -> Commit {
    Commit {
        id: CommitId::from_uuid(id),
        command: CommandId::from_uuid(id),
        request_digest: None,
        stream,
        actor: Actor::System(Component::Setup),
        surface: Surface::Api,
        correlation: CorrelationId::from_uuid(id),
        causation: None,
        decided_at: at,
        events,
    }
}

/// This machine's clock, for links that must not have ended.
#[allow(clippy::disallowed_methods, reason = "a benchmark is a program of its own, and reads the clock for itself")]
pub(crate) fn now() -> UnixMillis {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    UnixMillis::new(u64::try_from(since.as_millis()).unwrap_or(0))
}

/// What things there are, by number.
pub(crate) fn org() -> OrgId {
    OrgId::from_uuid(Uuid::from_u128(1))
}

pub(crate) fn project(number: u64) -> ProjectId {
    ProjectId::from_uuid(id(2, number))
}

pub(crate) fn workspace(number: u64) -> WorkspaceId {
    WorkspaceId::from_uuid(id(3, number))
}

pub(crate) fn link(number: u64) -> LinkId {
    LinkId::from_uuid(id(4, number))
}

pub(crate) fn session(number: u64) -> SessionId {
    SessionId::from_uuid(id(5, number))
}

pub(crate) fn person() -> UserId {
    UserId::from_uuid(id(6, 0))
}

fn host() -> HostId {
    HostId::from_uuid(id(7, 0))
}

/// Sorted by number, as ids made one after the other are, and different in their low bits.
fn id(kind: u64, number: u64) -> Uuid {
    Uuid::from_u128(u128::from(number) << 64 | u128::from(kind) << 56 | u128::from(scattered(number) >> 8))
}

/// SplitMix64's last step: equal numbers give equal bits, near ones bits far apart.
fn scattered(number: u64) -> u64 {
    let mixed = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The cookie of a session: 43 characters, as the gateway makes them.
pub(crate) fn cookie(number: u64) -> String {
    let (a, b) = (scattered(number + 1), scattered(number + 0x9e37_79b9));
    format!("{a:016x}{b:016x}{:011x}", number & 0xfff_ffff_ffff)
}

pub(crate) fn organization_created() -> Commit {
    let created = OrganizationEvent::Created {
        org: org(),
        slug: "acme".parse().expect("a slug of letters"),
        name: "Acme Works".to_owned(),
    };
    // Links stand on their issuer's right.
    let grant =
        Grant { grantee: Grantee::User(person()), role: Role::Developer, scope: Scope::Organization, expires_at: None };
    let events =
        [created, OrganizationEvent::MemberAdded { user: person() }, OrganizationEvent::RoleAssigned { grant }];
    commit(StreamId::organization(org()), id(8, 0), BEGIN, events.map(Event::Organization).to_vec())
}

pub(crate) fn person_created() -> Result<Commit> {
    let created = UserEvent::Created {
        user: person(),
        issuer: "local".to_owned(),
        subject: person().to_string(),
        email: EmailAddress::parse("ada@example.com")?,
        name: "Ada".to_owned(),
    };
    Ok(commit(StreamId::user(org(), person()), id(15, 0), BEGIN, vec![Event::User(created)]))
}

pub(crate) fn project_created(number: u64) -> Result<Commit> {
    let created = ProjectEvent::Created {
        project: project(number),
        slug: format!("project-{number}").parse()?,
        name: format!("Project {number}"),
        repository: Repository::parse("https://github.com/acme/orders")?,
    };
    let stream = StreamId::project(org(), project(number));
    Ok(commit(stream, id(9, number), BEGIN, vec![Event::Project(created)]))
}

pub(crate) fn workspace_created(number: u64, at: UnixMillis) -> Result<Commit> {
    let created = WorkspaceEvent::Created {
        workspace: workspace(number),
        project: project(number % PROJECTS),
        slug: workspace_slug(number).parse()?,
        branch: Branch::parse("main")?,
        manifest: manifest()?,
        access_mode: AccessMode::SignedLinks,
    };
    let stream = StreamId::workspace(org(), workspace(number));
    Ok(commit(stream, id(10, number), at, vec![Event::Workspace(created)]))
}

pub(crate) fn workspace_slug(number: u64) -> String {
    format!("w-{number}")
}

/// A link for service `web` that lives for 30 days after `at`.
pub(crate) fn link_issued(number: u64, of_workspace: u64, at: UnixMillis) -> Result<Commit> {
    let issued = DevLinkEvent::Issued {
        link: link(number),
        project: project(of_workspace % PROJECTS),
        workspace: workspace(of_workspace),
        service: "web".parse()?,
        families: RouteFamilies::ALL,
        issued_at: at,
        expires_at: at.plus(Millis::from_hours(24 * 30)),
        label: "review".to_owned(),
        wake_budget: None,
        issued_by: person(),
    };
    let stream = StreamId::dev_link(org(), link(number));
    Ok(commit(stream, id(11, number), at, vec![Event::DevLink(issued)]))
}

pub(crate) fn session_opened(number: u64, at: UnixMillis) -> Event {
    Event::DevLink(DevLinkEvent::SessionOpened {
        session: session(number),
        handoff: HandoffId::from_uuid(id(12, number)),
        cookie: TokenDigest::of(cookie(number).as_bytes()),
        generation: Generation(1),
        expires_at: at.plus(Millis::from_hours(24 * 30)),
    })
}

/// What the agent reports when the services of a workspace answer.
pub(crate) fn ready(epoch: Epoch, at: UnixMillis, web: SocketAddr, backend: SocketAddr) -> Result<Vec<Event>> {
    let service =
        |name: &str| Ok::<_, anyhow::Error>(ReadyService { name: name.parse()?, cpu_millicores: 500, memory_mib: 512 });
    let ready = RuntimeEvent::Ready {
        epoch,
        commit: "0123456789abcdef0123456789abcdef01234567".to_owned(),
        services: vec![service("web")?, service("backend")?],
        lease_until: at.plus(Millis::from_minutes(1)),
    };
    let endpoints = vec![("web".parse()?, web), ("backend".parse()?, backend)];
    let bound = RuntimeEvent::EndpointsBound { epoch, host: host(), endpoints };
    Ok(vec![Event::Runtime(ready), Event::Runtime(bound)])
}

fn manifest() -> Result<Manifest> {
    let prefix = |text: &str| PathPrefix::parse(text).ok_or_else(|| anyhow::anyhow!("`{text}` is no prefix"));
    let service = |name: &str, route: Route| {
        Ok::<_, anyhow::Error>(Service {
            name: name.parse()?,
            command: "true".to_owned(),
            directory: None,
            port_variable: Some("PORT".to_owned()),
            route,
            readiness: Readiness { probe: Probe::Tcp, interval: Millis::from_secs(1), deadline: Millis::from_secs(60) },
            cpu_millicores: 500,
            memory_mib: 512,
            secrets: Vec::new(),
            environment: Vec::new(),
        })
    };
    Ok(Manifest {
        services: vec![
            service("web", Route::Web { websockets: vec![] })?,
            service("backend", Route::Api { prefix: prefix("/api")?, websockets: vec![prefix("/api/live")?] })?,
        ],
        resources: Vec::new(),
        jobs: Vec::new(),
        idle_sleep: Millis::from_minutes(15),
        on_sleep: None,
    })
}

/// An organization at work: one workspace in a thousand commits, ten links in a thousand, a quarter of the rest sessions that reviewers
/// open, three quarters runtimes that wake, work and sleep.
pub(crate) struct History {
    next: u64,
    commits: u64,
    workspaces: u64,
    links: u64,
    /// How far each runtime is.
    steps: Vec<u64>,
}

/// Commits of one runtime from a wake to the sleep that follows it.
const CYCLE: u64 = 24;

impl History {
    pub(crate) fn new(commits: u64) -> Self {
        let workspaces = (commits / 1_000).max(1);
        let links = (commits / 100).max(1);
        Self { next: 0, commits, workspaces, links, steps: vec![0; usize::try_from(workspaces).unwrap_or(0)] }
    }

    /// When the commit at a position, from 1, was recorded.
    pub(crate) fn recorded_at(position: u64) -> UnixMillis {
        BEGIN.plus(Millis::new(position * STEP.get()))
    }

    fn commit(&mut self, number: u64) -> Result<Commit> {
        let at = Self::recorded_at(number + 1);
        let Some(number) = number.checked_sub(1) else { return Ok(organization_created()) };
        let Some(number) = number.checked_sub(PROJECTS) else { return project_created(number) };
        let Some(number) = number.checked_sub(self.workspaces) else { return workspace_created(number, at) };
        let Some(number) = number.checked_sub(self.links) else {
            return link_issued(number, number % self.workspaces, at);
        };
        if number.is_multiple_of(4) {
            let stream = StreamId::dev_link(org(), link(number / 4 % self.links));
            return Ok(commit(stream, id(13, number), at, vec![session_opened(number, at)]));
        }
        let of = number % self.workspaces;
        let step = &mut self.steps[usize::try_from(of)?];
        let events = runtime_events(of, *step, at)?;
        *step += 1;
        Ok(commit(StreamId::runtime(org(), workspace(of)), id(14, number), at, events))
    }
}

impl Iterator for History {
    type Item = Result<Commit>;

    fn next(&mut self) -> Option<Self::Item> {
        let number = (self.next < self.commits).then_some(self.next)?;
        self.next += 1;
        Some(self.commit(number))
    }
}

/// What happens to the runtime of a workspace at one step of its life.
fn runtime_events(of: u64, step: u64, at: UnixMillis) -> Result<Vec<Event>> {
    let epoch = Epoch(step / CYCLE + 1);
    let stage = |stage| RuntimeEvent::StageReached { epoch, stage };
    let event = match step % CYCLE {
        0 => RuntimeEvent::WakeRequested {
            epoch,
            workspace: workspace(of),
            project: project(of % PROJECTS),
            cause: WakeCause::Link { link: link(of), session: session(of * 4) },
        },
        1 => stage(WakeStage::Placed),
        2 => stage(WakeStage::CheckingOut),
        3 => stage(WakeStage::Starting),
        4 => stage(WakeStage::Probing),
        5 => {
            let app = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            return ready(epoch, at, app(20_000), app(20_001));
        }
        step if step == CYCLE - 2 => {
            RuntimeEvent::SleepRequested { epoch, cause: SleepCause::Idle { idle_for: Millis::from_minutes(15) } }
        }
        step if step == CYCLE - 1 => RuntimeEvent::Slept { epoch },
        step if step % 2 == 0 => RuntimeEvent::LeaseRenewed { epoch, lease_until: at.plus(Millis::from_minutes(1)) },
        _ => RuntimeEvent::ActivitySeen { epoch, at, open_streams: 1, source: ActivitySource::Link(link(of)) },
    };
    Ok(vec![Event::Runtime(event)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_history_has_as_many_commits_as_asked_for_and_no_id_twice() {
        let commits: Vec<Commit> = History::new(5_000).collect::<Result<_>>().unwrap();
        let ids: BTreeSet<CommitId> = commits.iter().map(|commit| commit.id).collect();
        assert_eq!((commits.len(), ids.len()), (5_000, 5_000));
        assert!(
            commits.iter().all(|commit| commit.events.iter().all(|event| event.stream_kind() == commit.stream.kind()))
        );
    }

    #[test]
    fn no_two_sessions_share_a_cookie() {
        let cookies: BTreeSet<String> = (0..10_000).map(cookie).collect();
        assert_eq!(cookies.len(), 10_000);
        assert!(cookies.iter().all(|cookie| cookie.len() == 43));
    }
}
