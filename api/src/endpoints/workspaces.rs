//! Workspaces: a branch and the services of its `envforge.yml`.

use axum::extract::State;
use envforge_commands::Commands;
use envforge_commands::workspaces::{self, NewWorkspace as New};
use envforge_domain::access::{Action, Resource};
use envforge_domain::ids::{OrgId, WorkspaceId};
use envforge_domain::manifest::{Manifest, Route};
use envforge_domain::slug::{HostLabel, OrgSlug, WorkspaceSlug};
use envforge_domain::workspace::{AccessMode, Branch};
use envforge_projections::sql::{RuntimePhase, WorkspaceRecord};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::has_access;
use crate::access::{Access, Caller, act};
use crate::config::GatewayUrl;
use crate::instant::Instant;
use crate::page::{Page, Path, Query, Slice, one_of};
use crate::problem::Problem;
use crate::reads::{AtLeast, Reads};
use crate::request_body::{Empty, Json, ManifestText};
use crate::revocation::{Receipt, Revocations};
use crate::write::{Write, Written};

#[derive(Clone)]
pub(crate) struct Workspaces {
    pub(crate) access: Access,
    pub(crate) commands: Commands,
    pub(crate) reads: Reads,
    pub(crate) gateway: GatewayUrl,
    pub(crate) revocations: Revocations,
}

has_access!(Workspaces);

pub(crate) fn routes() -> OpenApiRouter<Workspaces> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(get))
        .routes(routes!(change_manifest))
        .routes(routes!(change_access_mode))
        .routes(routes!(archive))
}

#[derive(Serialize, ToSchema)]
struct Workspace {
    id: String,
    project: String,
    project_slug: Option<String>,
    slug: String,
    branch: String,
    access_mode: String,
    /// SHA-256 of the manifest's canonical text.
    manifest_digest: String,
    /// Canonical text of `envforge.yml`; only of a single workspace, not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    manifest: Option<String>,
    /// Where its web services answer those who came through a link; only of a single workspace, not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    urls: Option<Vec<ServiceUrl>>,
    /// What its runtime does: `asleep`, `waking`, `ready`, `sleeping` or `failed`.
    phase: String,
    created_by: Option<String>,
    created_by_name: Option<String>,
    created_at: Instant,
    archived_at: Option<Instant>,
}

/// The address of one web service.
#[derive(Serialize, ToSchema)]
struct ServiceUrl {
    service: String,
    url: String,
}

impl From<WorkspaceRecord> for Workspace {
    fn from(record: WorkspaceRecord) -> Self {
        Self {
            id: record.id.to_string(),
            project: record.project.to_string(),
            project_slug: record.project_slug,
            slug: record.slug.to_string(),
            branch: record.branch,
            access_mode: access_mode_token(record.access_mode).to_owned(),
            manifest_digest: record.manifest_digest,
            manifest: None,
            urls: None,
            phase: record.runtime.map_or(RuntimePhase::Asleep, |runtime| runtime.phase).token().to_owned(),
            created_by: record.created_by.map(|user| user.to_string()),
            created_by_name: record.created_by_name,
            created_at: record.created_at.into(),
            archived_at: record.archived_at.map(Instant),
        }
    }
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewWorkspace {
    /// Slug or id.
    project: String,
    /// Part of host names: unique in the organization, never used again.
    slug: String,
    branch: String,
    /// The text of `envforge.yml`.
    manifest: String,
    /// `signed_links` (default) or `tailscale_only`.
    access_mode: Option<String>,
}

/// A workspace as it was created.
#[derive(Serialize, ToSchema)]
struct CreatedWorkspace {
    id: String,
    project: String,
    slug: String,
    branch: String,
    access_mode: String,
    manifest_digest: String,
    /// Host labels of its web services, below the gateway's domain.
    hosts: Vec<String>,
}

#[derive(Serialize, ToSchema)]
struct ChangedManifest {
    id: String,
    manifest_digest: String,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct AccessModeChange {
    /// `signed_links` or `tailscale_only`.
    access_mode: String,
}

#[derive(Serialize, ToSchema)]
struct ChangedAccessMode {
    id: String,
    access_mode: String,
    /// What closing it to signed links closed.
    receipt: Receipt,
}

#[derive(Serialize, ToSchema)]
struct ArchivedWorkspace {
    id: String,
    archived: bool,
    receipt: Receipt,
}

/// The text of `envforge.yml` within JSON.
#[derive(Deserialize, ToSchema)]
#[expect(dead_code, reason = "documents the JSON form, which `ManifestText` reads")]
struct ManifestBody {
    manifest: String,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// `true`: only archived ones; left out or `false`: only the others.
    archived: Option<bool>,
    /// `asleep`, `waking`, `ready`, `sleeping` or `failed`.
    phase: Option<String>,
    /// 1 to 200; 50 where it is left out.
    limit: Option<u64>,
    /// `next` of the page before.
    after: Option<String>,
}

/// The workspaces that the caller may see.
#[utoipa::path(get, path = "/v1/orgs/{org}/workspaces", tag = "workspaces", params(ListQuery),
    responses((status = 200, body = Page<Workspace>)), extensions(("x-envforge-action" = json!("workspace.read"))))]
async fn list(
    State(state): State<Workspaces>,
    caller: Caller,
    Path(org): Path<String>,
    Query(query): Query<ListQuery>,
    at: AtLeast,
) -> Result<axum::Json<Page<Workspace>>, Problem> {
    let org = state.access.org(&org).await?;
    let listing = state.access.listing(&caller, Action::WorkspaceRead, org).await?;
    let slice = Slice::new(query.limit, query.after.as_deref())?;
    let phases = RuntimePhase::ALL.map(RuntimePhase::token);
    let phase = one_of("phase", query.phase.as_deref(), RuntimePhase::from_token, &phases)?;
    let archived = Some(query.archived.unwrap_or(false));
    Ok(axum::Json(Page::of(state.reads.workspaces(&listing, at, archived, phase, &slice).await?, Workspace::from)))
}

/// Create a workspace. It sleeps until something needs it.
#[utoipa::path(post, path = "/v1/orgs/{org}/workspaces", tag = "workspaces", request_body = NewWorkspace,
    responses((status = 201, body = CreatedWorkspace)), extensions(("x-envforge-action" = json!("workspace.create"))))]
async fn create(
    State(state): State<Workspaces>,
    Path(org): Path<String>,
    request: Write<Json<NewWorkspace>>,
) -> Result<Written<CreatedWorkspace>, Problem> {
    let Write { caller, body: Json(new), context } = request;
    let org = state.access.org(&org).await?;
    let resource = state.access.project(org, &new.project).await?;
    let permit = state.access.permit(&caller, Action::WorkspaceCreate, resource).await?;
    let project = resource.project().ok_or_else(Problem::not_found)?;
    let slug: WorkspaceSlug = new.slug.parse().map_err(|error| Problem::value("slug", error))?;
    let branch = Branch::parse(&new.branch).map_err(|error| Problem::value("branch", error))?;
    let manifest = Manifest::parse(&new.manifest)?;
    let access_mode = match &new.access_mode {
        Some(text) => access_mode(text)?,
        None => AccessMode::SignedLinks,
    };
    let org_slug = state.reads.hot().authorization.organization(org).map(|organization| organization.slug);
    let answer = |id: WorkspaceId| CreatedWorkspace {
        id: id.to_string(),
        project: project.to_string(),
        slug: slug.to_string(),
        branch: new.branch.clone(),
        access_mode: access_mode_token(access_mode).to_owned(),
        manifest_digest: manifest.digest().to_string(),
        hosts: org_slug
            .as_ref()
            .map(|org| hosts(&manifest, &slug, org).map(|label| label.to_string()).collect())
            .unwrap_or_default(),
    };
    let create = New { project, slug: slug.clone(), branch, manifest: manifest.clone(), access_mode };
    let (id, done) =
        act!(state.access, &caller, permit, workspaces::create(&state.commands, permit, &context, create.clone()));
    Ok(Written::created(&done, answer(id)))
}

/// One workspace, with its manifest.
#[utoipa::path(get, path = "/v1/orgs/{org}/workspaces/{workspace}", tag = "workspaces",
    responses((status = 200, body = Workspace)), extensions(("x-envforge-action" = json!("workspace.read"))))]
async fn get(
    State(state): State<Workspaces>,
    caller: Caller,
    Path((org, workspace)): Path<(String, String)>,
    at: AtLeast,
) -> Result<axum::Json<Workspace>, Problem> {
    let org = state.access.org(&org).await?;
    let resource = state.access.workspace(org, &workspace).await?;
    let permit = state.access.permit(&caller, Action::WorkspaceRead, resource).await?;
    let record = state.reads.workspace(&permit, at).await?;
    let urls = Some(state.urls(org, &record)?);
    let manifest = Some(record.manifest.clone());
    Ok(axum::Json(Workspace { manifest, urls, ..Workspace::from(record) }))
}

/// Replace the manifest. It counts from the next wake on; routes count at once.
#[utoipa::path(put, path = "/v1/orgs/{org}/workspaces/{workspace}/manifest", tag = "workspaces",
    request_body(content((String = "application/yaml"), (ManifestBody = "application/json"))),
    responses((status = 200, body = ChangedManifest)),
    extensions(("x-envforge-action" = json!("workspace.change_manifest"))))]
async fn change_manifest(
    State(state): State<Workspaces>,
    Path((org, workspace)): Path<(String, String)>,
    request: Write<ManifestText>,
) -> Result<Written<ChangedManifest>, Problem> {
    let Write { caller, body: ManifestText(text), context } = request;
    let (resource, id) = state.named(&org, &workspace).await?;
    let permit = state.access.permit(&caller, Action::WorkspaceChangeManifest, resource).await?;
    let manifest = Manifest::parse(&text)?;
    let manifest_digest = manifest.digest().to_string();
    let done = act!(
        state.access,
        &caller,
        permit,
        workspaces::change_manifest(&state.commands, permit, &context, id, manifest.clone())
    );
    Ok(Written::ok(&done, ChangedManifest { id: id.to_string(), manifest_digest }))
}

/// Change how the workspace can be reached from outside. `tailscale_only` closes what is open through links.
#[utoipa::path(put, path = "/v1/orgs/{org}/workspaces/{workspace}/access-mode", tag = "workspaces",
    request_body = AccessModeChange, responses((status = 200, body = ChangedAccessMode)),
    extensions(("x-envforge-action" = json!("workspace.change_access_mode"))))]
async fn change_access_mode(
    State(state): State<Workspaces>,
    Path((org, workspace)): Path<(String, String)>,
    request: Write<Json<AccessModeChange>>,
) -> Result<Written<ChangedAccessMode>, Problem> {
    let Write { caller, body: Json(change), context } = request;
    let (resource, id) = state.named(&org, &workspace).await?;
    let permit = state.access.permit(&caller, Action::WorkspaceChangeAccessMode, resource).await?;
    let wanted = access_mode(&change.access_mode)?;
    let changing = Revocations::changing();
    let done = act!(
        state.access,
        &caller,
        permit,
        workspaces::change_access_mode(&state.commands, permit, &context, id, wanted)
    );
    let receipt = state.revocations.changed(&caller, resource, changing, &done, &context).await;
    let answer = ChangedAccessMode { id: id.to_string(), access_mode: change.access_mode, receipt };
    Ok(Written::ok(&done, answer))
}

/// Archive a workspace. Its links close, its runtime goes to sleep, its slug is retired.
#[utoipa::path(post, path = "/v1/orgs/{org}/workspaces/{workspace}/archive", tag = "workspaces",
    responses((status = 200, body = ArchivedWorkspace)), extensions(("x-envforge-action" = json!("workspace.archive"))))]
async fn archive(
    State(state): State<Workspaces>,
    Path((org, workspace)): Path<(String, String)>,
    request: Write<Empty>,
) -> Result<Written<ArchivedWorkspace>, Problem> {
    let Write { caller, context, .. } = request;
    let (resource, id) = state.named(&org, &workspace).await?;
    let permit = state.access.permit(&caller, Action::WorkspaceArchive, resource).await?;
    let changing = Revocations::changing();
    let done = act!(state.access, &caller, permit, workspaces::archive(&state.commands, permit, &context, id));
    let receipt = state.revocations.changed(&caller, resource, changing, &done, &context).await;
    Ok(Written::ok(&done, ArchivedWorkspace { id: id.to_string(), archived: true, receipt }))
}

impl Workspaces {
    /// Empty where nobody from outside gets to it: an archived workspace, or one within Tailscale only.
    fn urls(&self, org: OrgId, record: &WorkspaceRecord) -> Result<Vec<ServiceUrl>, Problem> {
        if record.archived_at.is_some() || record.access_mode != AccessMode::SignedLinks {
            return Ok(Vec::new());
        }
        let manifest = Manifest::parse(&record.manifest)
            .map_err(|errors| Problem::internal(format!("a recorded manifest cannot be read: {errors}")))?;
        let organization = self.reads.hot().authorization.organization(org).ok_or_else(Problem::not_found)?;
        let url =
            |label: HostLabel| ServiceUrl { service: label.service().to_string(), url: self.gateway.host(&label) };
        Ok(hosts(&manifest, &record.slug, &organization.slug).map(url).collect())
    }

    async fn named(&self, org: &str, workspace: &str) -> Result<(Resource, WorkspaceId), Problem> {
        let org = self.access.org(org).await?;
        let resource = self.access.workspace(org, workspace).await?;
        Ok((resource, resource.workspace().ok_or_else(Problem::not_found)?))
    }
}

/// How an access mode is called outside.
pub(crate) const fn access_mode_token(mode: AccessMode) -> &'static str {
    match mode {
        AccessMode::SignedLinks => "signed_links",
        AccessMode::TailscaleOnly => "tailscale_only",
    }
}

fn access_mode(text: &str) -> Result<AccessMode, Problem> {
    [AccessMode::SignedLinks, AccessMode::TailscaleOnly]
        .into_iter()
        .find(|mode| access_mode_token(*mode) == text)
        .ok_or_else(|| Problem::value("access_mode", "expected `signed_links` or `tailscale_only`"))
}

/// Labels of the hosts that a workspace's web services have.
fn hosts(manifest: &Manifest, slug: &WorkspaceSlug, org: &OrgSlug) -> impl Iterator<Item = HostLabel> {
    let web = manifest.services.iter().filter(|service| matches!(service.route, Route::Web { .. }));
    web.filter_map(|service| HostLabel::new(service.name.clone(), slug.clone(), org.clone()).ok())
}
