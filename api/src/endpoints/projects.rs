//! Projects.

use axum::extract::State;
use envforge_commands::{Commands, projects, secrets};
use envforge_domain::access::{Action, Resource};
use envforge_domain::commit::StreamId;
use envforge_domain::event::Event;
use envforge_domain::ids::{OrgId, ProjectId};
use envforge_domain::project::{GitChange, GitCredential, Project as Aggregate, ProjectEvent, Repository};
use envforge_domain::secrets::{PinnedSecret, SecretKey, SecretOwner};
use envforge_domain::slug::ProjectSlug;
use envforge_projections::sql::ProjectRecord;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::has_access;
use super::secrets::not_for_git;
use crate::access::{Access, Caller, act};
use crate::config::SecretPuts;
use crate::instant::Instant;
use crate::page::{Page, Path, Query, Slice};
use crate::problem::Problem;
use crate::reads::{AtLeast, Reads};
use crate::request_body::Json;
use crate::write::{Write, Written};

#[derive(Clone)]
pub(crate) struct Projects {
    pub(crate) access: Access,
    pub(crate) commands: Commands,
    pub(crate) reads: Reads,
    /// Repositories may be paths of the machine that runs workspaces.
    pub(crate) local_repositories: bool,
    pub(crate) secrets: Option<SecretPuts>,
}

has_access!(Projects);

pub(crate) fn routes() -> OpenApiRouter<Projects> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(get, edit))
}

#[derive(Serialize, ToSchema)]
struct Project {
    id: String,
    slug: String,
    name: String,
    repository: String,
    created_at: Instant,
}

impl From<ProjectRecord> for Project {
    fn from(record: ProjectRecord) -> Self {
        Self {
            id: record.id.to_string(),
            slug: record.slug.to_string(),
            name: record.name,
            repository: record.repository,
            created_at: record.created_at.into(),
        }
    }
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewProject {
    slug: String,
    name: String,
    /// `https://…`, `ssh://…` or `git@host:path`, without a password or token; where the operator allows it, `file://…` or an
    /// absolute path.
    repository: String,
}

/// What to change; the rest stays.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ProjectChange {
    name: Option<String>,
    repository: Option<String>,
    /// What git shows the repository's server over HTTPS; `null` for nothing any more. A repository that becomes another one
    /// loses it, unless it is given with it. Whoever sets it must be allowed to set the project's secrets, too.
    #[serde(default, deserialize_with = "present")]
    git_credential: Option<Option<GitCredentialToSet>>,
}

/// A field that may be `null` and was given.
fn present<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct GitCredentialToSet {
    /// The name of the secret whose value is the password: the workspace's own of that name, or the project's. From then on it is
    /// git's alone.
    secret: String,
    /// `x-access-token` where it is left out.
    username: Option<String>,
    /// Whether git gets it in shells too, where whoever works there can read it.
    #[serde(default)]
    in_shells: bool,
}

/// What git shows the repository's server.
#[derive(Serialize, ToSchema)]
struct GitCredentialShown {
    secret: String,
    username: String,
    in_shells: bool,
}

impl From<&GitCredential> for GitCredentialShown {
    fn from(credential: &GitCredential) -> Self {
        let GitCredential { secret, username, in_shells } = credential;
        Self { secret: secret.to_string(), username: username.clone(), in_shells: *in_shells }
    }
}

/// A project with what git is given for it.
#[derive(Serialize, ToSchema)]
struct ProjectShown {
    #[serde(flatten)]
    project: Project,
    git_credential: Option<GitCredentialShown>,
}

/// A project as it was written.
#[derive(Serialize, ToSchema)]
struct WrittenProject {
    id: String,
    slug: String,
    name: String,
    repository: String,
    git_credential: Option<GitCredentialShown>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// 1 to 200; 50 where it is left out.
    limit: Option<u64>,
    /// `next` of the page before.
    after: Option<String>,
}

/// The projects that the caller may see.
#[utoipa::path(get, path = "/v1/orgs/{org}/projects", tag = "projects", params(ListQuery),
    responses((status = 200, body = Page<Project>)), extensions(("x-envforge-action" = json!("project.read"))))]
async fn list(
    State(state): State<Projects>,
    caller: Caller,
    Path(org): Path<String>,
    Query(query): Query<ListQuery>,
    at: AtLeast,
) -> Result<axum::Json<Page<Project>>, Problem> {
    let org = state.access.org(&org).await?;
    let listing = state.access.listing(&caller, Action::ProjectRead, org).await?;
    let slice = Slice::new(query.limit, query.after.as_deref())?;
    Ok(axum::Json(Page::of(state.reads.projects(&listing, at, &slice).await?, Project::from)))
}

/// Create a project. Its slug is never used again.
#[utoipa::path(post, path = "/v1/orgs/{org}/projects", tag = "projects", request_body = NewProject,
    responses((status = 201, body = WrittenProject)), extensions(("x-envforge-action" = json!("project.create"))))]
async fn create(
    State(state): State<Projects>,
    Path(org): Path<String>,
    request: Write<Json<NewProject>>,
) -> Result<Written<WrittenProject>, Problem> {
    let Write { caller, body: Json(new), context } = request;
    let org = state.access.org(&org).await?;
    let permit = state.access.permit(&caller, Action::ProjectCreate, Resource::Organization(org)).await?;
    let slug: ProjectSlug = new.slug.parse().map_err(|error| Problem::value("slug", error))?;
    let repository = state.repository(&new.repository)?;
    let (id, done) = act!(state.access, &caller, permit, async {
        let (slug, repository) = (slug.clone(), repository.clone());
        projects::create(&state.commands, permit, &context, slug, new.name.clone(), repository).await
    });
    let answer = WrittenProject {
        id: id.to_string(),
        slug: new.slug,
        name: new.name,
        repository: new.repository,
        git_credential: None,
    };
    Ok(Written::created(&done, answer))
}

/// One project.
#[utoipa::path(get, path = "/v1/orgs/{org}/projects/{project}", tag = "projects",
    responses((status = 200, body = ProjectShown)), extensions(("x-envforge-action" = json!("project.read"))))]
async fn get(
    State(state): State<Projects>,
    caller: Caller,
    Path((org, project)): Path<(String, String)>,
    at: AtLeast,
) -> Result<axum::Json<ProjectShown>, Problem> {
    let org = state.access.org(&org).await?;
    let resource = state.access.project(org, &project).await?;
    let permit = state.access.permit(&caller, Action::ProjectRead, resource).await?;
    let record = state.reads.project(&permit, at).await?;
    let git_credential = match state.commands.load::<Aggregate>(&StreamId::project(org, record.id)).await?.state {
        Aggregate::Active { git, .. } => git.as_ref().map(GitCredentialShown::from),
        Aggregate::Unknown => None,
    };
    Ok(axum::Json(ProjectShown { project: record.into(), git_credential }))
}

/// Change a project's name, its repository, or what git shows that repository's server.
#[utoipa::path(patch, path = "/v1/orgs/{org}/projects/{project}", tag = "projects", request_body = ProjectChange,
    responses((status = 200, body = WrittenProject)), extensions(("x-envforge-action" = json!("project.edit"))))]
async fn edit(
    State(state): State<Projects>,
    Path((org, project)): Path<(String, String)>,
    request: Write<Json<ProjectChange>>,
) -> Result<Written<WrittenProject>, Problem> {
    let Write { caller, body: Json(change), context } = request;
    let org = state.access.org(&org).await?;
    let resource = state.access.project(org, &project).await?;
    let permit = state.access.permit(&caller, Action::ProjectEdit, resource).await?;
    let project: ProjectId = resource.project().ok_or_else(Problem::not_found)?;
    if change.git_credential.is_some() {
        // It sends a secret's value to a server.
        state.access.permit(&caller, Action::SecretSet, resource).await?;
    }
    let git = match change.git_credential {
        None => GitChange::Keep,
        Some(None) => GitChange::Remove,
        Some(Some(wanted)) => GitChange::Set(GitCredential {
            secret: wanted.secret.parse().map_err(|error| Problem::value("secret", error))?,
            username: wanted.username.unwrap_or_else(|| GitCredential::USERNAME.to_owned()),
            in_shells: wanted.in_shells,
        }),
    };
    let Aggregate::Active { slug, name, repository: current, git: current_git, .. } =
        state.commands.load::<Aggregate>(&StreamId::project(org, project)).await?.state
    else {
        return Err(Problem::not_found());
    };
    if let GitChange::Set(wanted) = &git {
        state.check_git_value(org, project, &slug, wanted).await?;
    }
    let name = change.name.unwrap_or(name);
    let wanted = change.repository.as_deref().map_or(Ok(current), |text| state.repository(text))?;
    let done = act!(
        state.access,
        &caller,
        permit,
        projects::edit(&state.commands, permit, &context, project, name.clone(), wanted.clone(), git.clone())
    );
    // A repeated request is answered with what it wrote then, whatever was written since.
    let changed = done.events.iter().find_map(|event| match event {
        Event::Project(ProjectEvent::GitCredentialChanged { credential }) => Some(credential.clone()),
        _ => None,
    });
    let (name, wanted) = done
        .events
        .iter()
        .find_map(|event| match event {
            Event::Project(ProjectEvent::Edited { name, repository }) => Some((name.clone(), repository.clone())),
            _ => None,
        })
        .unwrap_or((name, wanted));
    let answer = WrittenProject {
        id: project.to_string(),
        slug: slug.to_string(),
        name,
        repository: wanted.as_str().to_owned(),
        git_credential: changed.unwrap_or(current_git).as_ref().map(GitCredentialShown::from),
    };
    Ok(Written::ok(&done, answer))
}

impl Projects {
    /// The project's own value, where there is one, must be one that git can show. A store that does not answer stops nothing: shells
    /// say what git lacks.
    async fn check_git_value(
        &self,
        org: OrgId,
        project: ProjectId,
        slug: &ProjectSlug,
        git: &GitCredential,
    ) -> Result<(), Problem> {
        let (Some(store), owner) = (&self.secrets, SecretOwner::Project(project)) else { return Ok(()) };
        let known = secrets::load(&self.commands, org, owner).await?.state;
        let known = known.known(&git.secret).and_then(|known| Some((known.generation, known.version?)));
        let Some((generation, version)) = known else { return Ok(()) };
        let key = SecretKey { org, owner, name: git.secret.clone(), generation };
        match store.git_carries(PinnedSecret { key, version }).await {
            Some(false) => Err(Problem::new("git_credential_invalid", not_for_git(&git.secret, slug.as_str()))),
            Some(true) | None => Ok(()),
        }
    }

    fn repository(&self, text: &str) -> Result<Repository, Problem> {
        let repository = Repository::parse(text).map_err(|error| Problem::value("repository", error))?;
        if repository.is_local() && !self.local_repositories {
            // Whoever creates a project could otherwise read what the agents of everybody's workspaces can.
            return Err(Problem::value(
                "repository",
                "a path of the machine that runs workspaces is not allowed here: name https://…, ssh://… or git@host:path",
            ));
        }
        Ok(repository)
    }
}
