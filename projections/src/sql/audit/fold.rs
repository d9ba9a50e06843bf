//! From commits to audit rows, with the names that things bear at that moment.

use std::borrow::Cow;

use envforge_domain::access::{Action, Grantee, Scope};
use envforge_domain::commit::{Actor, Component, Recorded};
use envforge_domain::denial::RefusedRequest;
use envforge_domain::dev_link::DevLinkEvent;
use envforge_domain::event::{Event, Visibility};
use envforge_domain::job_run::{JobRunEvent, JobRunTerms};
use envforge_domain::organization::OrganizationEvent;
use envforge_domain::project::ProjectEvent;
use envforge_domain::root_window::RootWindowEvent;
use envforge_domain::runtime::{ActivitySource, RuntimeEvent, SleepCause, WakeCause};
use envforge_domain::service_token::ServiceTokenEvent;
use envforge_domain::shell::{ShellEvent, ShellTerms};
use envforge_domain::user::UserEvent;
use envforge_domain::workspace::WorkspaceEvent;
use envforge_eventlog::schema::event_type;

use super::super::held::{Buffer, Held, Written};
use super::super::projector::ReadModel;
use super::super::table::{Row, Table, id_table, int, storable};
use super::entry::{Denied, Entry, TrailRow};
use super::parts::{PartRow, Parts, PostingsRow};
use super::summary;
use super::terms::Terms;

id_table! {
    /// What is called `id`, and where it belongs.
    pub(super) struct NameRow in "audit_names" {
        id: String,
        project: Option<String>,
        workspace: Option<String>,
        name: String,
    }
}

id_table! {
    /// An event type, or an action that was refused, and where it was first seen.
    pub(super) struct TypeRow in "audit_types" {
        id: String,
        first_position: i64,
    }
}

pub(crate) const TABLES: &[&Table] =
    &[&TrailRow::TABLE, &PartRow::TABLE, &PostingsRow::TABLE, &TypeRow::TABLE, &NameRow::TABLE];

/// The audit's rows on their way.
#[derive(Default)]
pub(crate) struct AuditModel {
    rows: Written<TrailRow>,
    parts: Parts,
    types: Held<TypeRow>,
    subjects: Held<NameRow>,
}

/// Names for the summaries: what things are called, or their id where that is all that is known.
pub(super) struct Names<'a>(&'a Held<NameRow>);

impl Names<'_> {
    pub(super) fn of(&self, id: impl std::fmt::Display) -> String {
        let id = id.to_string();
        self.0.get(&id).map_or(id, |subject| subject.name.clone())
    }
}

impl ReadModel for AuditModel {
    fn want(&mut self, recorded: &Recorded) {
        let commit = &recorded.commit;
        self.want_actor(commit.actor);
        self.subjects.want(commit.stream.key());
        for event in &commit.events {
            self.types.want(event_type(event));
            self.want_named(event);
        }
    }

    fn fold(&mut self, recorded: &Recorded) {
        let commit = &recorded.commit;
        self.parts.reach(recorded.position);
        let mut place = None;
        for event in &commit.events {
            self.learn(commit.stream.key(), event);
            // Why something was allowed stands beside its row in the log; a row of its own would tell everything twice.
            if event.visibility() == Visibility::Operator || matches!(event, Event::Decision(_)) {
                continue;
            }
            let place = place.get_or_insert_with(|| RowPlace::of(recorded));
            let done = self.done(recorded, event);
            if let Some(refused) = self.refused(event, &done) {
                refused.iter().for_each(|entry| self.push(place, entry));
            } else {
                self.push(place, &done);
            }
        }
    }

    fn buffers(&mut self) -> Vec<&mut dyn Buffer> {
        vec![&mut self.rows, &mut self.parts, &mut self.types, &mut self.subjects]
    }
}

/// What the rows of one commit have in common.
struct RowPlace {
    position: i64,
    org: String,
    recorded_at: i64,
    terms: Terms,
    next_ordinal: i64,
}

impl RowPlace {
    fn of(recorded: &Recorded) -> Self {
        let org = recorded.commit.stream.org().to_string();
        Self {
            position: int(recorded.position.get()),
            recorded_at: int(recorded.recorded_at.get()),
            terms: Terms::of(&org),
            org,
            next_ordinal: 0,
        }
    }
}

const fn actor_kind(actor: Actor) -> &'static str {
    match actor {
        Actor::User(_) => "user",
        Actor::LinkVisitor { .. } => "link_visitor",
        Actor::Agent(_) => "agent",
        Actor::ServiceToken(_) => "service_token",
        Actor::System(_) => "system",
        Actor::Anonymous => "anonymous",
    }
}

const fn component(component: Component) -> &'static str {
    match component {
        Component::Setup => "setup",
        Component::Gateway => "gateway",
        Component::RuntimeReactor => "runtime_reactor",
        Component::Timer => "timer",
        Component::Identity => "identity",
        Component::Fleet => "fleet",
    }
}

/// What filters look for. An agent's host is a machine and stays out.
pub(super) fn actor_id(actor: Actor) -> Option<String> {
    match actor {
        Actor::User(user) => Some(user.to_string()),
        Actor::LinkVisitor { link, .. } => Some(link.to_string()),
        Actor::ServiceToken(token) => Some(token.to_string()),
        Actor::System(part) => Some(component(part).to_owned()),
        Actor::Agent(_) | Actor::Anonymous => None,
    }
}

pub(super) fn actor_name(actor: Actor, names: &Names<'_>) -> Cow<'static, str> {
    match actor {
        Actor::User(user) => names.of(user).into(),
        Actor::LinkVisitor { link, .. } => format!("visitor of link “{}”", names.of(link)).into(),
        Actor::Agent(_) => "workspace agent".into(),
        Actor::ServiceToken(token) => format!("service token {}", names.of(token)).into(),
        Actor::System(_) => "EnvForge".into(),
        Actor::Anonymous => "somebody unknown".into(),
    }
}

fn denied(code: &str, count: u32, requests: &[RefusedRequest]) -> Denied {
    let requests = requests.iter().map(|refused| refused.request.to_string()).collect();
    Denied { code: code.to_owned(), count: u64::from(count), requests }
}

impl AuditModel {
    fn push(&mut self, place: &mut RowPlace, entry: &Entry) {
        let RowPlace { position, ref org, recorded_at, terms, next_ordinal: ordinal } = *place;
        place.next_ordinal += 1;
        if self.types.get(&entry.event_type).is_none() {
            self.types.put(TypeRow { id: entry.event_type.clone().into_owned(), first_position: position });
        }
        self.parts.add(position, recorded_at, terms, entry);
        self.rows.push(TrailRow { position, ordinal, org: org.clone(), recorded_at, entry: entry.encode() });
    }

    fn want_actor(&mut self, actor: Actor) {
        match actor {
            Actor::User(user) => self.subjects.want(&user.to_string()),
            Actor::LinkVisitor { link, .. } => self.subjects.want(&link.to_string()),
            Actor::ServiceToken(token) => self.subjects.want(&token.to_string()),
            Actor::Agent(_) | Actor::System(_) | Actor::Anonymous => {}
        }
    }

    fn want_cause(&mut self, cause: &WakeCause) {
        match cause {
            WakeCause::Link { link, .. } => self.subjects.want(&link.to_string()),
            WakeCause::Person(by) | WakeCause::Job { by, .. } | WakeCause::Agent { by, .. } => {
                self.subjects.want(&by.to_string());
            }
        }
    }

    /// What an event names besides its stream, wherever `summary` looks it up.
    fn want_named(&mut self, event: &Event) {
        match event {
            Event::Organization(event) => match event {
                OrganizationEvent::MemberAdded { user }
                | OrganizationEvent::MemberRemoved { user }
                | OrganizationEvent::OwnerRecovered { user } => {
                    self.subjects.want(&user.to_string());
                }
                OrganizationEvent::RoleAssigned { grant } => self.want_grant(grant.grantee, grant.scope),
                OrganizationEvent::RoleRevoked { grantee, scope, .. } => self.want_grant(*grantee, *scope),
                OrganizationEvent::TeamMemberAdded { team, user }
                | OrganizationEvent::TeamMemberRemoved { team, user } => {
                    self.subjects.want(&team.to_string());
                    self.subjects.want(&user.to_string());
                }
                OrganizationEvent::TeamCreated { team, .. }
                | OrganizationEvent::TeamRenamed { team, .. }
                | OrganizationEvent::TeamDeleted { team } => self.subjects.want(&team.to_string()),
                OrganizationEvent::Created { .. }
                | OrganizationEvent::PolicyChanged { .. }
                | OrganizationEvent::RevocationRecorded { .. } => {}
            },
            Event::Workspace(WorkspaceEvent::Created { project, .. }) => self.subjects.want(&project.to_string()),
            Event::Runtime(event) => match event {
                RuntimeEvent::WakeRequested { cause, .. } | RuntimeEvent::WakeQueued { cause } => {
                    self.want_cause(cause)
                }
                RuntimeEvent::KeptAwake { by, .. } => self.subjects.want(&by.to_string()),
                RuntimeEvent::SleepRequested { cause: SleepCause::Person(by), .. } => {
                    self.subjects.want(&by.to_string());
                }
                RuntimeEvent::ActivitySeen { source, .. } => match source {
                    ActivitySource::Link(link) => self.subjects.want(&link.to_string()),
                    ActivitySource::Person(user) => self.subjects.want(&user.to_string()),
                },
                RuntimeEvent::HostChosen { .. }
                | RuntimeEvent::StageReached { .. }
                | RuntimeEvent::SecretsResolved { .. }
                | RuntimeEvent::SecretsRefused { .. }
                | RuntimeEvent::Ready { .. }
                | RuntimeEvent::EndpointsBound { .. }
                | RuntimeEvent::LeaseRenewed { .. }
                | RuntimeEvent::KeepAwakeShortened { .. }
                | RuntimeEvent::SleepPostponed { .. }
                | RuntimeEvent::SleepRequested { .. }
                | RuntimeEvent::Slept { .. }
                | RuntimeEvent::Failed { .. }
                | RuntimeEvent::Lost { .. } => {}
            },
            Event::DevLink(DevLinkEvent::Issued { workspace, .. }) => self.subjects.want(&workspace.to_string()),
            Event::Denial(envforge_domain::denial::DenialEvent::Recorded { attempts }) => {
                for attempt in attempts {
                    self.types.want(&attempt.action);
                    self.want_actor(attempt.actor);
                    if let Some(about) = attempt.about {
                        self.want_actor(about);
                    }
                    if let Some(resource) = &attempt.resource {
                        self.subjects.want(resource);
                    }
                }
            }
            Event::ServiceToken(event) => {
                self.subjects.want(&event.token().to_string());
                if let ServiceTokenEvent::Created { place, created_by, .. } = event {
                    self.want_grant(Grantee::User(*created_by), *place);
                }
            }
            Event::RootWindow(event) => match event {
                RootWindowEvent::Requested { terms, .. } => self.subjects.want(&terms.workspace.to_string()),
                RootWindowEvent::Closed { closeout } => {
                    self.subjects.want(&closeout.requester.to_string());
                    if let Some(approver) = closeout.approver {
                        self.subjects.want(&approver.to_string());
                    }
                }
                RootWindowEvent::Approved { .. }
                | RootWindowEvent::Denied { .. }
                | RootWindowEvent::Withdrawn
                | RootWindowEvent::Revoked { .. }
                | RootWindowEvent::Expired
                | RootWindowEvent::Opened { .. }
                | RootWindowEvent::CommandAsked { .. }
                | RootWindowEvent::CommandStarted { .. }
                | RootWindowEvent::CommandEnded { .. }
                | RootWindowEvent::Reviewed { .. } => {}
            },
            Event::Shell(event) => match event {
                ShellEvent::Connected { terms } => self.subjects.want(&terms.workspace.to_string()),
                ShellEvent::Disconnected { user, workspace, .. } => {
                    self.subjects.want(&user.to_string());
                    self.subjects.want(&workspace.to_string());
                }
            },
            Event::JobRun(event) => match event {
                JobRunEvent::Started { terms } => self.subjects.want(&terms.workspace.to_string()),
                JobRunEvent::Finished { by, workspace, .. } => {
                    self.subjects.want(&by.to_string());
                    self.subjects.want(&workspace.to_string());
                }
            },
            Event::Workspace(_)
            | Event::DevLink(_)
            | Event::User(_)
            | Event::Project(_)
            | Event::Host(_)
            | Event::Machine(_)
            | Event::Claim(_)
            | Event::Decision(_)
            | Event::Secrets(_) => {}
        }
    }

    fn want_grant(&mut self, grantee: Grantee, scope: Scope) {
        match grantee {
            Grantee::User(user) => self.subjects.want(&user.to_string()),
            Grantee::Team(team) => self.subjects.want(&team.to_string()),
        }
        match scope {
            Scope::Organization => {}
            Scope::Project(project) => self.subjects.want(&project.to_string()),
            Scope::Workspace { workspace, .. } => self.subjects.want(&workspace.to_string()),
        }
    }

    /// Remembers what things are called.
    fn learn(&mut self, key: &str, event: &Event) {
        let subject = match event {
            Event::Organization(OrganizationEvent::Created { name, .. })
            | Event::User(UserEvent::Created { name, .. }) => {
                NameRow { id: key.to_owned(), project: None, workspace: None, name: name.clone() }
            }
            Event::User(UserEvent::ProfileChanged { name }) => {
                NameRow { id: key.to_owned(), project: None, workspace: None, name: name.clone() }
            }
            Event::User(UserEvent::Invited { invitation }) => NameRow {
                id: key.to_owned(),
                project: None,
                workspace: None,
                name: invitation.email.as_str().to_owned(),
            },
            // Teams live on their organization's stream.
            Event::Organization(
                OrganizationEvent::TeamCreated { team, slug } | OrganizationEvent::TeamRenamed { team, slug },
            ) => NameRow { id: team.to_string(), project: None, workspace: None, name: slug.to_string() },
            Event::Project(ProjectEvent::Created { name, .. } | ProjectEvent::Edited { name, .. }) => {
                NameRow { id: key.to_owned(), project: Some(key.to_owned()), workspace: None, name: name.clone() }
            }
            Event::Workspace(WorkspaceEvent::Created { project, slug, .. }) => NameRow {
                id: key.to_owned(),
                project: Some(project.to_string()),
                workspace: Some(key.to_owned()),
                name: slug.to_string(),
            },
            Event::DevLink(DevLinkEvent::Issued { project, workspace, label, .. }) => NameRow {
                id: key.to_owned(),
                project: Some(project.to_string()),
                workspace: Some(workspace.to_string()),
                name: label.clone(),
            },
            // Tokens live on one stream of their organization, too.
            Event::ServiceToken(ServiceTokenEvent::Created { token, slug, .. }) => {
                NameRow { id: token.to_string(), project: None, workspace: None, name: slug.to_string() }
            }
            // A window goes by its id, in its workspace's place.
            Event::Shell(ShellEvent::Connected { terms: ShellTerms { project, workspace, .. } })
            | Event::JobRun(JobRunEvent::Started { terms: JobRunTerms { project, workspace, .. } }) => NameRow {
                id: key.to_owned(),
                project: Some(project.to_string()),
                workspace: Some(workspace.to_string()),
                name: key.to_owned(),
            },
            Event::RootWindow(RootWindowEvent::Requested { terms, .. }) => NameRow {
                id: key.to_owned(),
                project: Some(terms.project.to_string()),
                workspace: Some(terms.workspace.to_string()),
                name: key.to_owned(),
            },
            Event::Project(ProjectEvent::GitCredentialChanged { .. })
            | Event::Organization(_)
            | Event::User(_)
            | Event::Workspace(_)
            | Event::DevLink(_)
            | Event::Runtime(_)
            | Event::Host(_)
            | Event::Claim(_)
            | Event::Denial(_)
            | Event::Decision(_)
            | Event::ServiceToken(_)
            | Event::RootWindow(_)
            | Event::Shell(_)
            | Event::JobRun(_)
            | Event::Secrets(_)
            | Event::Machine(_) => return,
        };
        // As it will be read back: a summary must not depend on whether the row is still in hand.
        let subject = NameRow { name: storable(&subject.name).into_owned(), ..subject };
        if self.subjects.get(&subject.id) != Some(&subject) {
            self.subjects.put(subject);
        }
    }

    /// What is told of an event that was done.
    fn done(&self, recorded: &Recorded, event: &Event) -> Entry {
        let commit = &recorded.commit;
        let names = Names(&self.subjects);
        let key = commit.stream.key();
        let known = self.subjects.get(key);
        // Whoever looks for a token's history has its id; its stream is all tokens'.
        let subject = match event {
            Event::ServiceToken(event) => event.token().to_string(),
            _ => key.to_owned(),
        };
        Entry {
            actor_kind: actor_kind(commit.actor).into(),
            actor_id: actor_id(commit.actor),
            actor_name: actor_name(commit.actor, &names),
            surface: commit.surface.token().into(),
            event_type: event_type(event).into(),
            subject: Some(subject),
            project: known.and_then(|subject| subject.project.clone()),
            workspace: known.and_then(|subject| subject.workspace.clone()),
            link: matches!(event, Event::DevLink(_)).then(|| key.to_owned()),
            command: commit.command.to_string(),
            commit: commit.id.to_string(),
            correlation: commit.correlation.to_string(),
            causation: commit.causation.map(|commit| commit.to_string()),
            denied: None,
            summary: summary::of(event, key, &names),
        }
    }

    /// One entry a kind of refused attempts; `None` where the event tells of none.
    fn refused(&self, event: &Event, done: &Entry) -> Option<Vec<Entry>> {
        let names = Names(&self.subjects);
        match event {
            Event::DevLink(DevLinkEvent::AttemptsBlocked { attempts, .. }) => {
                let entries = attempts.iter().map(|kind| Entry {
                    denied: Some(denied(&kind.code, kind.count, &kind.requests)),
                    summary: summary::of_blocked(kind, &done.summary),
                    ..done.clone()
                });
                Some(entries.collect())
            }
            Event::Denial(envforge_domain::denial::DenialEvent::Recorded { attempts }) => {
                let entries = attempts.iter().map(|attempt| {
                    let subject = attempt.resource.as_deref();
                    let known = subject.and_then(|id| self.subjects.get(id));
                    Entry {
                        // Who was refused, not who reports it.
                        actor_kind: actor_kind(attempt.actor).into(),
                        actor_id: actor_id(attempt.actor),
                        actor_name: actor_name(attempt.actor, &names),
                        surface: attempt.surface.token().into(),
                        event_type: match attempt.about {
                            None => attempt.action.clone().into(),
                            // A question about somebody else: whoever asked did nothing of the kind.
                            Some(_) => Action::AuthzCheck.token().into(),
                        },
                        subject: attempt.resource.clone(),
                        project: known.and_then(|subject| subject.project.clone()),
                        workspace: known.and_then(|subject| subject.workspace.clone()),
                        link: attempt.resource.clone().filter(|id| id.starts_with("lnk_")),
                        denied: Some(denied(&attempt.code, attempt.count, &attempt.requests)),
                        summary: summary::of_denied(attempt, &names),
                        ..done.clone()
                    }
                });
                Some(entries.collect())
            }
            Event::Organization(_)
            | Event::User(_)
            | Event::Project(_)
            | Event::Workspace(_)
            | Event::Runtime(_)
            | Event::Host(_)
            | Event::DevLink(_)
            | Event::Claim(_)
            | Event::Decision(_)
            | Event::ServiceToken(_)
            | Event::RootWindow(_)
            | Event::Shell(_)
            | Event::JobRun(_)
            | Event::Secrets(_)
            | Event::Machine(_) => None,
        }
    }
}
