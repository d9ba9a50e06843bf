//! From commits to audit rows, with the names that things bear at that moment.

use envforge_domain::access::{Action, Grantee, Scope};
use envforge_domain::commit::{Actor, Component, Recorded};
use envforge_domain::dev_link::DevLinkEvent;
use envforge_domain::event::{Event, Visibility};
use envforge_domain::organization::OrganizationEvent;
use envforge_domain::project::ProjectEvent;
use envforge_domain::runtime::{ActivitySource, RuntimeEvent, SleepCause, WakeCause};
use envforge_domain::service_token::ServiceTokenEvent;
use envforge_domain::user::UserEvent;
use envforge_domain::workspace::WorkspaceEvent;
use envforge_eventlog::schema::event_type;

use super::super::held::{Buffer, Held, Written};
use super::super::projector::ReadModel;
use super::super::table::{Row, Table, id_table, int, table};
use super::summary;

table! {
    pub(super) struct StoredRow in "audit_rows", key(position, ordinal) {
        position: i64,
        ordinal: i64,
        org: String,
        recorded_at: i64,
        actor_kind: String,
        actor_id: Option<String>,
        actor_name: String,
        surface: String,
        event_type: String,
        subject: Option<String>,
        project: Option<String>,
        workspace: Option<String>,
        link: Option<String>,
        command: String,
        commit_id: String,
        correlation: String,
        causation: Option<String>,
        outcome: String,
        code: Option<String>,
        attempts: Option<i64>,
        summary: String,
    }
}

id_table! {
    /// What is called `id`, and where it belongs.
    pub(super) struct SubjectRow in "audit_subjects" {
        id: String,
        project: Option<String>,
        workspace: Option<String>,
        name: String,
    }
}

pub(crate) const TABLES: &[&Table] = &[&StoredRow::TABLE, &SubjectRow::TABLE];

/// The audit's rows on their way.
#[derive(Default)]
pub(crate) struct AuditModel {
    rows: Written<StoredRow>,
    subjects: Held<SubjectRow>,
}

/// Names for the summaries: what things are called, or their id where that is all that is known.
pub(super) struct Names<'a>(&'a Held<SubjectRow>);

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
            self.want_named(event);
        }
    }

    fn fold(&mut self, recorded: &Recorded) {
        let commit = &recorded.commit;
        let mut ordinal = 0;
        for event in &commit.events {
            self.learn(commit.stream.key(), event);
            // Why something was allowed stands beside its row in the log; a row of its own would tell everything twice.
            if event.visibility() == Visibility::Operator || matches!(event, Event::Decision(_)) {
                continue;
            }
            let template = self.template(recorded, event);
            for row in self.outcomes(event, template) {
                self.rows.push(StoredRow { ordinal, ..row });
                ordinal += 1;
            }
        }
    }

    fn buffers(&mut self) -> Vec<&mut dyn Buffer> {
        vec![&mut self.rows, &mut self.subjects]
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

pub(super) fn actor_name(actor: Actor, names: &Names<'_>) -> String {
    match actor {
        Actor::User(user) => names.of(user),
        Actor::LinkVisitor { link, .. } => format!("visitor of link “{}”", names.of(link)),
        Actor::Agent(_) => "workspace agent".to_owned(),
        Actor::ServiceToken(token) => format!("service token {}", names.of(token)),
        Actor::System(_) => "EnvForge".to_owned(),
        Actor::Anonymous => "somebody unknown".to_owned(),
    }
}

impl AuditModel {
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
                OrganizationEvent::Created { .. } | OrganizationEvent::PolicyChanged { .. } => {}
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
            Event::Workspace(_)
            | Event::DevLink(_)
            | Event::User(_)
            | Event::Project(_)
            | Event::Host(_)
            | Event::Claim(_)
            | Event::Decision(_) => {}
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
                SubjectRow { id: key.to_owned(), project: None, workspace: None, name: name.clone() }
            }
            Event::User(UserEvent::ProfileChanged { name }) => {
                SubjectRow { id: key.to_owned(), project: None, workspace: None, name: name.clone() }
            }
            Event::User(UserEvent::Invited { invitation }) => SubjectRow {
                id: key.to_owned(),
                project: None,
                workspace: None,
                name: invitation.email.as_str().to_owned(),
            },
            // Teams live on their organization's stream.
            Event::Organization(
                OrganizationEvent::TeamCreated { team, slug } | OrganizationEvent::TeamRenamed { team, slug },
            ) => SubjectRow { id: team.to_string(), project: None, workspace: None, name: slug.to_string() },
            Event::Project(ProjectEvent::Created { name, .. } | ProjectEvent::Edited { name, .. }) => {
                SubjectRow { id: key.to_owned(), project: Some(key.to_owned()), workspace: None, name: name.clone() }
            }
            Event::Workspace(WorkspaceEvent::Created { project, slug, .. }) => SubjectRow {
                id: key.to_owned(),
                project: Some(project.to_string()),
                workspace: Some(key.to_owned()),
                name: slug.to_string(),
            },
            Event::DevLink(DevLinkEvent::Issued { project, workspace, label, .. }) => SubjectRow {
                id: key.to_owned(),
                project: Some(project.to_string()),
                workspace: Some(workspace.to_string()),
                name: label.clone(),
            },
            // Tokens live on one stream of their organization, too.
            Event::ServiceToken(ServiceTokenEvent::Created { token, slug, .. }) => {
                SubjectRow { id: token.to_string(), project: None, workspace: None, name: slug.to_string() }
            }
            Event::Organization(_)
            | Event::User(_)
            | Event::Workspace(_)
            | Event::DevLink(_)
            | Event::Runtime(_)
            | Event::Host(_)
            | Event::Claim(_)
            | Event::Denial(_)
            | Event::Decision(_)
            | Event::ServiceToken(_) => return,
        };
        if self.subjects.get(&subject.id) != Some(&subject) {
            self.subjects.put(subject);
        }
    }

    /// The row of an event that was done, to be adapted where it was not.
    fn template(&self, recorded: &Recorded, event: &Event) -> StoredRow {
        let commit = &recorded.commit;
        let names = Names(&self.subjects);
        let key = commit.stream.key();
        let known = self.subjects.get(key);
        let link = matches!(event, Event::DevLink(_)).then(|| key.to_owned());
        // Whoever looks for a token's history has its id; its stream is all tokens'.
        let subject = match event {
            Event::ServiceToken(event) => event.token().to_string(),
            _ => key.to_owned(),
        };
        StoredRow {
            position: int(recorded.position.get()),
            ordinal: 0,
            org: commit.stream.org().to_string(),
            recorded_at: int(recorded.recorded_at.get()),
            actor_kind: actor_kind(commit.actor).to_owned(),
            actor_id: actor_id(commit.actor),
            actor_name: actor_name(commit.actor, &names),
            surface: commit.surface.token().to_owned(),
            event_type: event_type(event).to_owned(),
            subject: Some(subject),
            project: known.and_then(|subject| subject.project.clone()),
            workspace: known.and_then(|subject| subject.workspace.clone()),
            link,
            command: commit.command.to_string(),
            commit_id: commit.id.to_string(),
            correlation: commit.correlation.to_string(),
            causation: commit.causation.map(|commit| commit.to_string()),
            outcome: "done".to_owned(),
            code: None,
            attempts: None,
            summary: summary::of(event, key, &names),
        }
    }

    /// One row, or one a kind of denied attempts.
    fn outcomes(&self, event: &Event, template: StoredRow) -> Vec<StoredRow> {
        let names = Names(&self.subjects);
        match event {
            Event::DevLink(DevLinkEvent::AttemptsBlocked { attempts, .. }) => attempts
                .iter()
                .map(|kind| StoredRow {
                    outcome: "denied".to_owned(),
                    code: Some(kind.code.clone()),
                    attempts: Some(i64::from(kind.count)),
                    summary: summary::of_blocked(kind, &template.summary),
                    ..template.clone()
                })
                .collect(),
            Event::Denial(envforge_domain::denial::DenialEvent::Recorded { attempts }) => attempts
                .iter()
                .map(|attempt| {
                    let subject = attempt.resource.as_deref();
                    let known = subject.and_then(|id| self.subjects.get(id));
                    StoredRow {
                        // Who was refused, not who reports it.
                        actor_kind: actor_kind(attempt.actor).to_owned(),
                        actor_id: actor_id(attempt.actor),
                        actor_name: actor_name(attempt.actor, &names),
                        surface: attempt.surface.token().to_owned(),
                        event_type: match attempt.about {
                            None => attempt.action.clone(),
                            // A question about somebody else: whoever asked did nothing of the kind.
                            Some(_) => Action::AuthzCheck.token().to_owned(),
                        },
                        subject: attempt.resource.clone(),
                        project: known.and_then(|subject| subject.project.clone()),
                        workspace: known.and_then(|subject| subject.workspace.clone()),
                        link: attempt.resource.clone().filter(|id| id.starts_with("lnk_")),
                        outcome: "denied".to_owned(),
                        code: Some(attempt.code.clone()),
                        attempts: Some(i64::from(attempt.count)),
                        summary: summary::of_denied(attempt, &names),
                        ..template.clone()
                    }
                })
                .collect(),
            Event::Organization(_)
            | Event::User(_)
            | Event::Project(_)
            | Event::Workspace(_)
            | Event::Runtime(_)
            | Event::Host(_)
            | Event::DevLink(_)
            | Event::Claim(_)
            | Event::Decision(_)
            | Event::ServiceToken(_) => vec![template],
        }
    }
}
