//! A second organization on the same control plane, and whether any host was ever of both, judged from the log alone.
//!
//! The checker knows streams and events and none of the planner's code.

use std::collections::{BTreeMap, BTreeSet};

use envforge_domain::commit::{
    Actor, Commit, Component, Expectation, Position, Recorded, StreamId, StreamKind, Surface,
};
use envforge_domain::event::Event;
use envforge_domain::host::HostEvent;
use envforge_domain::ids::{CommandId, CommitId, CorrelationId, OrgId, ProjectId, UserId, WorkspaceId};
use envforge_domain::machine::{MachineCause, MachineEvent, MachinePurpose};
use envforge_domain::manifest::Manifest;
use envforge_domain::organization::OrganizationEvent;
use envforge_domain::project::{ProjectEvent, Repository};
use envforge_domain::runtime::{Epoch, RuntimeEvent, WakeCause};
use envforge_domain::time::UnixMillis;
use envforge_domain::workspace::{AccessMode, Branch, WorkspaceEvent};
use envforge_eventlog::jetstream::{Config, JetStreamLog};
use envforge_eventlog::{EventLog, Filter};
use uuid::Uuid;

/// A machine, by the log.
pub(crate) struct Launched {
    pub(crate) instance: String,
    pub(crate) host: String,
    pub(crate) purpose: MachinePurpose,
}

/// The log behind the control plane.
pub(crate) struct Log(JetStreamLog);

impl Log {
    pub(crate) async fn open(nats: &str) -> Self {
        let mut config = Config::new(String::new());
        config.servers = vec![nats.to_owned()];
        config.replicas = 1;
        Self(JetStreamLog::open(config).await.unwrap())
    }

    pub(crate) async fn all(&self) -> Vec<Recorded> {
        let mut all: Vec<Recorded> = Vec::new();
        loop {
            let after = all.last().map_or(Position::START, |last| last.position);
            let page = self.0.read(after, 500, &Filter::everything()).await.unwrap();
            if page.commits.is_empty() {
                return all;
            }
            all.extend(page.commits);
        }
    }

    /// The organization of the first owner.
    pub(crate) async fn first_organization(&self) -> OrgId {
        let all = self.all().await;
        let created = all.iter().find_map(|recorded| {
            let created = |event: &Event| matches!(event, Event::Organization(OrganizationEvent::Created { .. }));
            recorded.commit.events.iter().any(created).then(|| recorded.commit.stream.org())
        });
        created.unwrap()
    }

    async fn tell(&self, stream: StreamId, events: Vec<Event>) {
        let last = self.0.last_of_stream(&stream).await.unwrap().map_or(Position::START, |last| last.position);
        let id = Uuid::now_v7();
        let commit = Commit {
            id: CommitId::from_uuid(id),
            command: CommandId::from_uuid(id),
            request_digest: None,
            stream,
            actor: Actor::System(Component::Setup),
            surface: Surface::Cli,
            correlation: CorrelationId::from_uuid(id),
            causation: None,
            decided_at: UnixMillis::new(u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap()),
            events,
        };
        self.0.append(vec![(commit, Expectation::LastAt(last))]).await.unwrap();
    }

    /// An organization whose one workspace is asked to wake.
    pub(crate) async fn neighbour(&self, org: OrgId, repository: &str, manifest: &str) -> WorkspaceId {
        let fresh = Uuid::now_v7;
        let (project, workspace) = (ProjectId::from_uuid(fresh()), WorkspaceId::from_uuid(fresh()));
        let created = OrganizationEvent::Created { org, slug: "globex".parse().unwrap(), name: "Globex".to_owned() };
        self.tell(StreamId::organization(org), vec![Event::Organization(created)]).await;
        let created = ProjectEvent::Created {
            project,
            slug: "parts".parse().unwrap(),
            name: "Parts".to_owned(),
            repository: Repository::parse(repository).unwrap(),
        };
        self.tell(StreamId::project(org, project), vec![Event::Project(created)]).await;
        let created = WorkspaceEvent::Created {
            workspace,
            project,
            slug: "main".parse().unwrap(),
            branch: Branch::parse("main").unwrap(),
            manifest: Manifest::parse(manifest).unwrap(),
            access_mode: AccessMode::SignedLinks,
        };
        self.tell(StreamId::workspace(org, workspace), vec![Event::Workspace(created)]).await;
        let cause = WakeCause::Person(UserId::from_uuid(fresh()));
        let asked = RuntimeEvent::WakeRequested { epoch: Epoch(1), workspace, project, cause };
        self.tell(StreamId::runtime(org, workspace), vec![Event::Runtime(asked)]).await;
        workspace
    }

    /// Why a host's machine was started each time that it was off.
    pub(crate) async fn starts_of(&self, host: &str) -> Vec<MachineCause> {
        let all = self.all().await;
        let of_host = all.iter().filter(|recorded| recorded.commit.stream.key() == host);
        let cause = |event: &Event| match event {
            Event::Machine(MachineEvent::StartRequested { cause }) => Some(*cause),
            _ => None,
        };
        of_host.flat_map(|recorded| &recorded.commit.events).filter_map(cause).collect()
    }

    /// The host on which a workspace became ready, once it has.
    pub(crate) async fn ready_on(&self, workspace: WorkspaceId) -> Option<String> {
        let (mut host, mut ready) = (None, false);
        for recorded in self.all().await {
            if recorded.commit.stream.key() != workspace.to_string() {
                continue;
            }
            for event in &recorded.commit.events {
                match event {
                    Event::Runtime(RuntimeEvent::HostChosen { host: chosen, .. }) => host = Some(chosen.to_string()),
                    Event::Runtime(RuntimeEvent::Ready { .. }) => ready = true,
                    _ => {}
                }
            }
        }
        host.filter(|_| ready)
    }

    /// The machines that were launched for an organization, the newest last.
    pub(crate) async fn launched(&self, org: OrgId) -> Vec<Launched> {
        let (mut asked, mut launched) = (BTreeMap::new(), Vec::new());
        for Recorded { commit, .. } in
            self.all().await.into_iter().filter(|recorded| recorded.commit.stream.org() == org)
        {
            for event in &commit.events {
                match event {
                    Event::Machine(MachineEvent::Requested { terms, .. }) => {
                        asked.insert(commit.stream.key().to_owned(), terms.purpose);
                    }
                    Event::Machine(MachineEvent::Launched { instance }) => {
                        let (host, purpose) = (commit.stream.key().to_owned(), asked[commit.stream.key()]);
                        launched.push(Launched { instance: instance.clone(), host, purpose });
                    }
                    _ => {}
                }
            }
        }
        launched
    }

    /// Of which organization each host and each of a provider's instances has been.
    ///
    /// # Panics
    /// Where one has been of two.
    pub(crate) async fn owners(&self) -> BTreeMap<String, OrgId> {
        let mut seen: BTreeMap<String, BTreeSet<OrgId>> = BTreeMap::new();
        for Recorded { commit, .. } in self.all().await {
            let (org, key) = (commit.stream.org(), commit.stream.key().to_owned());
            let mut connect = |thing: String| {
                seen.entry(thing).or_default().insert(org);
            };
            if matches!(commit.stream.kind(), StreamKind::Host | StreamKind::Machine) {
                connect(key.clone());
            }
            for event in &commit.events {
                match event {
                    Event::Machine(MachineEvent::Launched { instance }) => connect(format!("aws-ec2-{instance}")),
                    Event::Host(HostEvent::Registered { machine, .. }) => connect(machine.clone()),
                    Event::Runtime(
                        RuntimeEvent::HostChosen { host, .. } | RuntimeEvent::EndpointsBound { host, .. },
                    ) => connect(host.to_string()),
                    _ => {}
                }
            }
        }
        let one = |(thing, orgs): (String, BTreeSet<OrgId>)| {
            assert_eq!(orgs.len(), 1, "{thing} has been of {orgs:?}");
            (thing, orgs.into_iter().next().unwrap())
        };
        seen.into_iter().map(one).collect()
    }
}
