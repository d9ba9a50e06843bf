//! Secrets of projects and workspaces: set, listed, given rules, removed. A value comes in and never goes out again.
//!
//! Not here: where values lie (the binary hands in a way to put one), and which of them a wake gets (reactors).

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::State;
use envforge_commands::secrets::{self, Prepared, SecretChange};
use envforge_commands::{Commands, Done};
use envforge_domain::access::{Action, Permit, Resource};
use envforge_domain::aggregate::Refusal;
use envforge_domain::commit::StreamId;
use envforge_domain::event::Event;
use envforge_domain::ids::{UserId, WorkspaceId};
use envforge_domain::limits::SECRET_BYTES_MAX;
use envforge_domain::project::{GitCredential, Project};
use envforge_domain::runtime::Runtime;
use envforge_domain::secrets::{
    ConsumedSecret, KnownSecret, RefusedSecret, Rotation, SecretConsumer, SecretDeed, SecretName, SecretOwner,
    SecretRules, SecretsEvent, SecretsRefusal,
};
use envforge_domain::time::{Millis, SharedClock, UnixMillis};
use envforge_domain::workspace::{ActiveWorkspace, Workspace, WorkspaceRefusal};
use envforge_identity::submitted::SubmittedSecret;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::has_access;
use crate::access::{Access, Caller, act};
use crate::config::{NotPut, PutBy, SecretPuts};
use crate::instant::{self, Instant};
use crate::page::{Page, Path};
use crate::problem::Problem;
use crate::reads::Reads;
use crate::request_body::{Empty, Json};
use crate::write::{Happened, Write, Written};

#[derive(Clone)]
pub(crate) struct Secrets {
    pub(crate) access: Access,
    pub(crate) commands: Commands,
    pub(crate) reads: Reads,
    pub(crate) clock: SharedClock,
    pub(crate) store: Option<SecretPuts>,
}

has_access!(Secrets);

pub(crate) fn routes() -> OpenApiRouter<Secrets> {
    OpenApiRouter::new()
        .routes(routes!(list_of_project))
        .routes(routes!(set_of_project, remove_of_project))
        .routes(routes!(history_of_project))
        .routes(routes!(list_of_workspace))
        .routes(routes!(set_of_workspace, remove_of_workspace))
        .routes(routes!(history_of_workspace))
}

/// A value, and who may use it. What is left out stays as it is; at least one must be given.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SecretToSet {
    /// 1 to 4,096 bytes of UTF-8 without NUL. Nobody reads it again.
    #[schema(value_type = Option<String>, format = Password)]
    secret: Option<SubmittedSecret>,
    /// Services that may declare it; an empty list for all.
    services: Option<Vec<String>>,
    /// Workspaces of the project that may use it, by slug or id; an empty list for all. Of a project's secrets alone.
    workspaces: Option<Vec<String>>,
    /// What a new version does to runtimes that run with an older one: `mark_stale` (where it was never said) or `restart`.
    rotation: Option<String>,
    /// When this value ends, in RFC 3339: no wake, no job and no git gets it from then on. Never, where it is left out. With a value
    /// alone.
    expires_at: Option<String>,
    /// The same as a time from now on.
    expires_in_seconds: Option<u64>,
}

/// A secret without its value, which nobody sees.
#[derive(Serialize, ToSchema)]
struct SecretShown {
    name: String,
    /// `project` or `workspace`: whose it is. A workspace's own goes before its project's.
    owner: &'static str,
    version: u64,
    set_at: Instant,
    /// The id of whoever set it.
    set_by: String,
    set_by_name: Option<String>,
    /// When it ends; `null`: never.
    expires_at: Option<Instant>,
    /// Services that may declare it; empty: all.
    services: Vec<String>,
    /// Workspaces that may use it, by id; empty: all.
    workspaces: Vec<String>,
    /// `mark_stale` or `restart`.
    rotation: &'static str,
}

/// A secret as a workspace sees it.
#[derive(Serialize, ToSchema)]
struct SecretSeen {
    #[serde(flatten)]
    secret: SecretShown,
    /// What of the workspace uses it: services, jobs as `job:NAME`, git as `git:repository`. None: mistyped, or left over.
    declared_by: Vec<String>,
    /// What its runtime was given, while it is awake.
    given: Vec<Given>,
}

/// What one service runs with, or git had.
#[derive(Serialize, ToSchema)]
struct Given {
    /// Its name, or `git:repository`.
    service: String,
    version: u64,
    /// Whether its next wake would get something else.
    stale: bool,
}

/// A secret that a service declares and cannot be given.
#[derive(Serialize, ToSchema)]
struct SecretRefused {
    /// Its name, or `git:repository`.
    service: String,
    name: String,
    /// `missing`, `forbidden`, `expired` or `damaged`.
    problem: &'static str,
}

/// The secrets of a workspace.
#[derive(Serialize, ToSchema)]
struct WorkspaceSecrets {
    items: Vec<SecretSeen>,
    /// What would stop its next wake.
    refused: Vec<SecretRefused>,
    /// What stopped its last wake, where that is why it failed.
    stopped: Vec<SecretRefused>,
    /// Names of its own secrets that nothing of it uses: mistyped, or left over. They stop nothing.
    undeclared: Vec<String>,
    /// Whether its runtime runs with something else than its next wake would get.
    stale: bool,
}

/// A secret as it was written.
#[derive(Serialize, ToSchema)]
struct WrittenSecret {
    name: String,
    owner: &'static str,
    version: u64,
}

#[derive(Serialize, ToSchema)]
struct SecretHistory {
    /// `set`, `rules_changed` or `removed`.
    deed: &'static str,
    /// The version that was set.
    version: Option<u64>,
    /// The id of whoever did it.
    by: String,
    by_name: Option<String>,
    at: Instant,
}

/// The secrets of a project, by name.
#[utoipa::path(get, path = "/v1/orgs/{org}/projects/{project}/secrets", tag = "secrets",
    responses((status = 200, body = Page<SecretShown>)), extensions(("x-envforge-action" = json!("secret.list"))))]
async fn list_of_project(
    State(state): State<Secrets>,
    caller: Caller,
    Path((org, project)): Path<(String, String)>,
) -> Result<axum::Json<Page<SecretShown>>, Problem> {
    let (resource, owner) = state.project(&org, &project).await?;
    let permit = state.access.permit(&caller, Action::SecretList, resource).await?;
    let known = secrets::load(&state.commands, resource.org(), owner).await?.state;
    let names = state.names(&permit, known.held().map(|(_, known)| known)).await?;
    let items = known.held().filter_map(|(name, known)| SecretShown::of(name, owner, known, &names)).collect();
    Ok(axum::Json(Page { items, next: None }))
}

/// Set a secret of a project, or change who may use it. Its value goes to the store and nowhere else.
#[utoipa::path(put, path = "/v1/orgs/{org}/projects/{project}/secrets/{secret}", tag = "secrets",
    request_body = SecretToSet, responses((status = 200, body = WrittenSecret)),
    extensions(("x-envforge-action" = json!("secret.set"))))]
async fn set_of_project(
    State(state): State<Secrets>,
    Path((org, project, name)): Path<(String, String, String)>,
    request: Write<Json<SecretToSet>>,
) -> Result<Written<WrittenSecret>, Problem> {
    let (resource, owner) = state.project(&org, &project).await?;
    state.set(resource, owner, &name, request).await
}

/// Remove a secret of a project. No wake gets it from then on.
#[utoipa::path(delete, path = "/v1/orgs/{org}/projects/{project}/secrets/{secret}", tag = "secrets",
    responses((status = 204)), extensions(("x-envforge-action" = json!("secret.remove"))))]
async fn remove_of_project(
    State(state): State<Secrets>,
    Path((org, project, name)): Path<(String, String, String)>,
    request: Write<Empty>,
) -> Result<Happened, Problem> {
    let (resource, owner) = state.project(&org, &project).await?;
    state.remove(resource, owner, &name, request).await
}

/// What was done to a secret of a project, and by whom; the newest first.
#[utoipa::path(get, path = "/v1/orgs/{org}/projects/{project}/secrets/{secret}/history", tag = "secrets",
    responses((status = 200, body = Page<SecretHistory>)), extensions(("x-envforge-action" = json!("secret.list"))))]
async fn history_of_project(
    State(state): State<Secrets>,
    caller: Caller,
    Path((org, project, name)): Path<(String, String, String)>,
) -> Result<axum::Json<Page<SecretHistory>>, Problem> {
    let (resource, owner) = state.project(&org, &project).await?;
    state.history(&caller, resource, owner, &name).await
}

/// The secrets of a workspace: its own, its project's, what its services run with and what would stop its next wake.
#[utoipa::path(get, path = "/v1/orgs/{org}/workspaces/{workspace}/secrets", tag = "secrets",
    responses((status = 200, body = WorkspaceSecrets)), extensions(("x-envforge-action" = json!("secret.list"))))]
async fn list_of_workspace(
    State(state): State<Secrets>,
    caller: Caller,
    Path((org, workspace)): Path<(String, String)>,
) -> Result<axum::Json<WorkspaceSecrets>, Problem> {
    let (resource, _) = state.workspace(&org, &workspace).await?;
    let permit = state.access.permit(&caller, Action::SecretList, resource).await?;
    let active = state.active(resource).await?;
    state.seen(&permit, &active).await.map(axum::Json)
}

/// Set a secret of one workspace, or change which services may use it. It goes before its project's.
#[utoipa::path(put, path = "/v1/orgs/{org}/workspaces/{workspace}/secrets/{secret}", tag = "secrets",
    request_body = SecretToSet, responses((status = 200, body = WrittenSecret)),
    extensions(("x-envforge-action" = json!("secret.set"))))]
async fn set_of_workspace(
    State(state): State<Secrets>,
    Path((org, workspace, name)): Path<(String, String, String)>,
    request: Write<Json<SecretToSet>>,
) -> Result<Written<WrittenSecret>, Problem> {
    let (resource, owner) = state.workspace(&org, &workspace).await?;
    state.set(resource, owner, &name, request).await
}

/// Remove a workspace's own secret. Its project's of the same name counts from then on.
#[utoipa::path(delete, path = "/v1/orgs/{org}/workspaces/{workspace}/secrets/{secret}", tag = "secrets",
    responses((status = 204)), extensions(("x-envforge-action" = json!("secret.remove"))))]
async fn remove_of_workspace(
    State(state): State<Secrets>,
    Path((org, workspace, name)): Path<(String, String, String)>,
    request: Write<Empty>,
) -> Result<Happened, Problem> {
    let (resource, owner) = state.workspace(&org, &workspace).await?;
    state.remove(resource, owner, &name, request).await
}

/// What was done to a workspace's own secret, and by whom; the newest first.
#[utoipa::path(get, path = "/v1/orgs/{org}/workspaces/{workspace}/secrets/{secret}/history", tag = "secrets",
    responses((status = 200, body = Page<SecretHistory>)), extensions(("x-envforge-action" = json!("secret.list"))))]
async fn history_of_workspace(
    State(state): State<Secrets>,
    caller: Caller,
    Path((org, workspace, name)): Path<(String, String, String)>,
) -> Result<axum::Json<Page<SecretHistory>>, Problem> {
    let (resource, owner) = state.workspace(&org, &workspace).await?;
    state.history(&caller, resource, owner, &name).await
}

impl Secrets {
    async fn project(&self, org: &str, project: &str) -> Result<(Resource, SecretOwner), Problem> {
        let org = self.access.org(org).await?;
        let resource = self.access.project(org, project).await?;
        Ok((resource, SecretOwner::Project(resource.project().ok_or_else(Problem::not_found)?)))
    }

    async fn workspace(&self, org: &str, workspace: &str) -> Result<(Resource, SecretOwner), Problem> {
        let org = self.access.org(org).await?;
        let resource = self.access.workspace(org, workspace).await?;
        match (resource.project(), resource.workspace()) {
            (Some(project), Some(workspace)) => Ok((resource, SecretOwner::Workspace { project, workspace })),
            _ => Err(Problem::not_found()),
        }
    }

    async fn active(&self, resource: Resource) -> Result<ActiveWorkspace, Problem> {
        let id = resource.workspace().ok_or_else(Problem::not_found)?;
        match self.commands.load::<Workspace>(&StreamId::workspace(resource.org(), id)).await?.state {
            Workspace::Active(active) => Ok(active),
            Workspace::Archived { .. } => Err(Problem::from(&WorkspaceRefusal::Archived as &dyn Refusal)),
            Workspace::Unknown => Err(Problem::not_found()),
        }
    }

    async fn set(
        &self,
        resource: Resource,
        owner: SecretOwner,
        name: &str,
        request: Write<Json<SecretToSet>>,
    ) -> Result<Written<WrittenSecret>, Problem> {
        let Write { caller, body: Json(wanted), context } = request;
        let permit = self.access.permit(&caller, Action::SecretSet, resource).await?;
        let name = parse_name(name)?;
        match owner {
            SecretOwner::Project(project) => {
                self.access.existing_project(resource.org(), &project.to_string()).await?;
            }
            SecretOwner::Workspace { .. } => {
                self.active(resource).await?;
            }
        }
        let known = secrets::load(&self.commands, resource.org(), owner).await?.state;
        let before = known.known(&name).filter(|known| known.version.is_some());
        let rules = self.rules(resource, before, &wanted).await?;
        let expires_at = wanted.end(context.now)?;
        let change = SecretChange { owner, name: name.clone(), expires_at, rules, by: caller.user };
        let done = match (&wanted.secret, &change.rules) {
            (Some(value), _) => match secrets::prepare(&self.commands, &permit, &context, &change).await? {
                Prepared::Answered(done) => done,
                Prepared::Put(key) => {
                    self.check_for_git(resource, &name, value).await?;
                    let store = self.store.as_ref().ok_or_else(no_store)?;
                    let log = self.access.hot().checkpoint();
                    let by = PutBy { command: context.command, at: context.now, log };
                    let version = store.put(key.clone(), value.clone().into_secret(), by).await.map_err(not_put)?;
                    act!(
                        self.access,
                        &caller,
                        permit,
                        secrets::set(&self.commands, permit, &context, &change, &key, version)
                    )
                }
            },
            (None, Some(rules)) => act!(
                self.access,
                &caller,
                permit,
                secrets::change_rules(&self.commands, permit, &context, &change, rules)
            ),
            (None, None) => return Err(Problem::value("secret", "give a value, or rules that are to change")),
        };
        let version = match (set_by(&done), before) {
            (Some(version), _) => version,
            (None, Some(known)) => known.version.unwrap_or_default(),
            (None, None) => {
                let now = secrets::load(&self.commands, resource.org(), owner).await?.state;
                now.known(&name).and_then(|known| known.version).unwrap_or_default()
            }
        };
        Ok(Written::ok(&done, WrittenSecret { name: name.to_string(), owner: owner.token(), version }))
    }

    /// What the project names for git has one line: git would refuse it later, where nobody sees why.
    async fn check_for_git(
        &self,
        resource: Resource,
        name: &SecretName,
        value: &SubmittedSecret,
    ) -> Result<(), Problem> {
        let project = resource.project().ok_or_else(Problem::not_found)?;
        let state = self.commands.load::<Project>(&StreamId::project(resource.org(), project)).await?.state;
        let Project::Active { git: Some(git), slug, .. } = state else { return Ok(()) };
        if git.secret != *name || GitCredential::carries(&value.clone().into_secret()) {
            return Ok(());
        }
        Err(Problem::new("secret_value_invalid", not_for_git(name, slug.as_str())).with("max_bytes", SECRET_BYTES_MAX))
    }

    async fn remove(
        &self,
        resource: Resource,
        owner: SecretOwner,
        name: &str,
        request: Write<Empty>,
    ) -> Result<Happened, Problem> {
        let Write { caller, context, .. } = request;
        let permit = self.access.permit(&caller, Action::SecretRemove, resource).await?;
        let change = SecretChange { owner, name: parse_name(name)?, expires_at: None, rules: None, by: caller.user };
        let done = act!(self.access, &caller, permit, secrets::remove(&self.commands, permit, &context, &change));
        Ok(Happened::new(&done))
    }

    async fn history(
        &self,
        caller: &Caller,
        resource: Resource,
        owner: SecretOwner,
        name: &str,
    ) -> Result<axum::Json<Page<SecretHistory>>, Problem> {
        let permit = self.access.permit(caller, Action::SecretList, resource).await?;
        let name = parse_name(name)?;
        let known = secrets::load(&self.commands, resource.org(), owner).await?.state;
        let known =
            known.known(&name).ok_or_else(|| Problem::from(&SecretsRefusal::Unknown { name } as &dyn Refusal))?;
        let people = self.names(&permit, std::iter::once(known)).await?;
        let items = known.changes.iter().rev().map(|change| {
            let (deed, version) = match change.deed {
                SecretDeed::Set { version } => ("set", Some(version)),
                SecretDeed::RulesChanged => ("rules_changed", None),
                SecretDeed::Removed => ("removed", None),
            };
            let by_name = people.get(&change.by).cloned();
            SecretHistory { deed, version, by: change.by.to_string(), by_name, at: change.at.into() }
        });
        Ok(axum::Json(Page { items: items.collect(), next: None }))
    }

    /// The rules as they are to be; `None` where nothing is said of them.
    async fn rules(
        &self,
        resource: Resource,
        before: Option<&KnownSecret>,
        wanted: &SecretToSet,
    ) -> Result<Option<SecretRules>, Problem> {
        if wanted.services.is_none() && wanted.workspaces.is_none() && wanted.rotation.is_none() {
            return Ok(None);
        }
        let mut rules = before.map(|known| known.rules.clone()).unwrap_or_default();
        if let Some(services) = &wanted.services {
            let parse = |name: &String| name.parse().map_err(|error| Problem::value("services", error));
            rules.services = services.iter().map(parse).collect::<Result<_, _>>()?;
        }
        if let Some(workspaces) = &wanted.workspaces {
            rules.workspaces = self.workspaces(resource, workspaces).await?;
        }
        if let Some(text) = &wanted.rotation {
            let known = Rotation::ALL.into_iter().find(|rotation| rotation.token() == text.as_str());
            rules.rotation = known.ok_or_else(|| Problem::value("rotation", "it is `mark_stale` or `restart`"))?;
        }
        Ok(Some(rules))
    }

    /// Of this project: another one's would be named for nothing.
    async fn workspaces(&self, resource: Resource, names: &[String]) -> Result<BTreeSet<WorkspaceId>, Problem> {
        let mut found = BTreeSet::new();
        for name in names.iter().take(envforge_domain::limits::SECRET_WORKSPACES_MAX + 1) {
            let unknown = || Problem::value("workspaces", "this project has no workspace of that name or id");
            let workspace =
                self.access.workspace(resource.org(), name).await.map_err(|problem| {
                    if problem.code() == Problem::not_found().code() { unknown() } else { problem }
                })?;
            if workspace.project() != resource.project() {
                return Err(unknown());
            }
            found.extend(workspace.workspace());
        }
        Ok(found)
    }

    /// What those are called who did something to these secrets.
    async fn names(
        &self,
        permit: &Permit,
        known: impl Iterator<Item = &KnownSecret>,
    ) -> Result<BTreeMap<UserId, String>, Problem> {
        let users = known.flat_map(|known| known.changes.iter().map(|change| change.by)).collect();
        self.reads.names_beside_secrets(permit, users).await
    }

    async fn seen(&self, permit: &Permit, active: &ActiveWorkspace) -> Result<WorkspaceSecrets, Problem> {
        let (org, project, workspace) = (permit.org(), active.project, active.workspace);
        let known = secrets::seen(&self.commands, org, project, workspace).await?;
        let view = known.view(self.clock.now());
        let runtime = self.commands.load::<Runtime>(&StreamId::runtime(org, workspace)).await?.state;
        let given: &[ConsumedSecret] = match &runtime {
            Runtime::Ready(ready) => &ready.secrets,
            Runtime::Waking { secrets, .. } => secrets,
            Runtime::NeverWoken | Runtime::Asleep { .. } | Runtime::Sleeping { .. } | Runtime::Failed { .. } => &[],
        };
        let stopped = match runtime {
            Runtime::Failed { ref refused, .. } => refused.iter().map(SecretRefused::of).collect(),
            _ => Vec::new(),
        };
        let names: BTreeSet<&SecretName> = known.held().collect();
        let people =
            self.names(permit, names.iter().filter_map(|name| view.get(name)).map(|found| found.known)).await?;
        let item = |name: &SecretName| {
            let found = view.get(name)?;
            let declares = |secrets: &[String]| secrets.iter().any(|declared| declared == name.as_str());
            let services = active.manifest.services.iter().filter(|service| declares(&service.secrets));
            let jobs = active.manifest.jobs.iter().filter(|job| declares(&job.secrets));
            let git = view.git.filter(|git| git.secret == *name);
            let using = services
                .map(|service| SecretConsumer::Service(service.name.clone()))
                .chain(jobs.map(|job| SecretConsumer::Job(job.name.clone())))
                .chain(git.map(|_| SecretConsumer::Git));
            let of = given.iter().filter(|given| given.name == *name).map(|given| Given {
                service: given.consumer.to_string(),
                version: given.version,
                stale: view.stale(given).is_some(),
            });
            Some(SecretSeen {
                secret: SecretShown::of(name, found.owner, found.known, &people)?,
                declared_by: using.map(|consumer| consumer.to_string()).collect(),
                given: of.collect(),
            })
        };
        let refused = view.resolve(&active.manifest).err().unwrap_or_default();
        Ok(WorkspaceSecrets {
            items: names.into_iter().filter_map(item).collect(),
            refused: refused.iter().map(SecretRefused::of).collect(),
            stopped,
            undeclared: view.undeclared(&active.manifest).into_iter().map(ToString::to_string).collect(),
            stale: given.iter().any(|given| view.stale(given).is_some()),
        })
    }
}

impl SecretToSet {
    fn end(&self, now: UnixMillis) -> Result<Option<UnixMillis>, Problem> {
        let wrong = |detail: &str| Err(Problem::value("expires_at", detail));
        match (self.expires_at.as_deref(), self.expires_in_seconds) {
            (None, None) => Ok(None),
            (Some(_), Some(_)) => wrong("say either when it ends or in how long"),
            _ if self.secret.is_none() => wrong("an end is a value's: give the value with it"),
            (Some(text), None) => match instant::parse(text) {
                Some(end) => Ok(Some(end)),
                None => wrong("it is no RFC 3339 instant"),
            },
            (None, Some(seconds)) => Ok(Some(now.plus(Millis::from_secs(seconds)))),
        }
    }
}

impl SecretShown {
    /// `None` where it was removed.
    fn of(
        name: &SecretName,
        owner: SecretOwner,
        known: &KnownSecret,
        people: &BTreeMap<UserId, String>,
    ) -> Option<Self> {
        let version = known.version?;
        let set = known.changes.iter().rev().find(|change| matches!(change.deed, SecretDeed::Set { .. }));
        let last = set.or(known.changes.last())?;
        Some(Self {
            name: name.to_string(),
            owner: owner.token(),
            version,
            set_at: last.at.into(),
            set_by: last.by.to_string(),
            set_by_name: people.get(&last.by).cloned(),
            expires_at: known.expires_at.map(Into::into),
            services: known.rules.services.iter().map(ToString::to_string).collect(),
            workspaces: known.rules.workspaces.iter().map(ToString::to_string).collect(),
            rotation: known.rules.rotation.token(),
        })
    }
}

impl SecretRefused {
    fn of(refused: &RefusedSecret) -> Self {
        Self { service: refused.consumer.to_string(), name: refused.name.to_string(), problem: refused.problem.token() }
    }
}

fn parse_name(name: &str) -> Result<SecretName, Problem> {
    name.parse().map_err(|error| Problem::value("secret", error))
}

fn set_by(done: &Done) -> Option<u64> {
    done.events.iter().find_map(|event| match event {
        Event::Secrets(SecretsEvent::Set { version, .. }) => Some(*version),
        _ => None,
    })
}

/// Why git is not given a secret, and what would be right.
pub(super) fn not_for_git(name: &SecretName, project: &str) -> String {
    format!(
        "{name} is what git shows the server of project {project}, and its value holds a line break: git carries a password of one line. \
         Set the token alone, without anything before or after it."
    )
}

fn no_store() -> Problem {
    Problem::new("secret_store_unavailable", "This API process was started without a secret store.")
}

fn not_put(error: NotPut) -> Problem {
    match error {
        NotPut::Value { max_bytes } => {
            let text = format!("A secret has 1 to {max_bytes} bytes of UTF-8 without NUL.");
            Problem::new("secret_value_invalid", text).with("max_bytes", max_bytes)
        }
        NotPut::Untakable { why } => {
            Problem::new("secret_value_invalid", format!("The secret store takes no such value: {why}."))
        }
        NotPut::Unavailable { detail } => {
            Problem::new("secret_store_unavailable", "The secret store does not take the value right now.")
                .retry_after_s(2)
                .because(detail)
        }
    }
}
