//! The demo: project, workspace and a live link, made by the owner's own rights through the same commands as the API's.

use std::path::Path;

use envforge_commands::context::derived_uuid;
use envforge_commands::{Context, links, projects, users, workspaces};
use envforge_domain::access::{Action, Permit, Resource};
use envforge_domain::commit::{Actor, Component, Surface};
use envforge_domain::dev_link::Generation;
use envforge_domain::ids::{CommandId, CorrelationId, LinkId, SessionId};
use envforge_domain::manifest::Manifest;
use envforge_domain::project::Repository;
use envforge_domain::slug::{HostLabel, ProjectSlug, ServiceName, WorkspaceSlug};
use envforge_domain::time::Millis;
use envforge_domain::user::{OpenSession, SessionEnd, UserCommand};
use envforge_domain::workspace::{AccessMode, Branch, Workspace};
use envforge_eventlog::LogIdentity;
use envforge_identity::share_token::{ShareClaims, SigningKey};
use envforge_projections::gateway_view::LinkPhase;
use uuid::Uuid;

use super::bootstrap::FirstOwner;
use super::control_plane::ControlPlane;
use super::demo_repository;

/// A demo link that ends sooner than this is replaced at the next start.
const LINK_REST_MIN: Millis = Millis::from_minutes(10);

/// What the demo prepared.
pub(crate) struct Demo {
    pub(crate) share_url: String,
    pub(crate) link: LinkId,
    pub(crate) workspace_url: String,
}

/// Makes the demo where it is missing. A second start finds what the first one made.
pub(crate) async fn prepare(
    plane: &ControlPlane,
    owner: &FirstOwner,
    identity: &LogIdentity,
    directory: &Path,
    signing_key: &SigningKey,
    gateway_origin: &str,
) -> anyhow::Result<Demo> {
    let repository = demo_repository::repository(directory).await?;
    let acting = Acting::begin(plane, owner).await?;
    let made = make(plane, owner, identity, &repository, &acting, signing_key, gateway_origin).await;
    acting.end(plane, owner).await?;
    made
}

async fn make(
    plane: &ControlPlane,
    owner: &FirstOwner,
    identity: &LogIdentity,
    repository: &Path,
    acting: &Acting,
    signing_key: &SigningKey,
    gateway_origin: &str,
) -> anyhow::Result<Demo> {
    let (project_slug, workspace_slug): (ProjectSlug, WorkspaceSlug) = ("orders".parse()?, "signed-links".parse()?);
    let service: ServiceName = "web".parse()?;
    let context = |what: &str| Context {
        command: CommandId::from_uuid(derived_uuid(identity.0.as_bytes(), what)),
        request_digest: None,
        repeated: None,
        correlation: acting.correlation,
        causation: None,
        now: plane.clock.now(),
    };

    let resources = &plane.hot.resources;
    let on_project = match resources.project_by_slug(owner.org, &project_slug) {
        Some(resource) => resource,
        None => {
            let permit = acting.permit(plane, owner, Action::ProjectCreate, Resource::Organization(owner.org)).await?;
            let source = Repository::parse(&repository.to_string_lossy())?;
            let name = "Order board".to_owned();
            let created =
                projects::create(&plane.commands, &permit, &context("demo project"), project_slug, name, source)
                    .await?;
            plane.hot.wait_for(created.1.position, acting.wait).await?;
            Resource::Project { org: owner.org, project: created.0 }
        }
    };
    let project = on_project.project().ok_or_else(|| anyhow::anyhow!("a project is a project"))?;

    let manifest = Manifest::parse(demo_repository::MANIFEST)?;
    let on_workspace = match resources.workspace_by_slug(owner.org, &workspace_slug) {
        Some(resource) => resource,
        None => {
            let permit = acting.permit(plane, owner, Action::WorkspaceCreate, on_project).await?;
            let new = workspaces::NewWorkspace {
                project,
                slug: workspace_slug.clone(),
                branch: Branch::parse(demo_repository::BRANCH)?,
                manifest: manifest.clone(),
                access_mode: AccessMode::SignedLinks,
            };
            let (workspace, done) =
                workspaces::create(&plane.commands, &permit, &context("demo workspace"), new).await?;
            plane.hot.wait_for(done.position, acting.wait).await?;
            Resource::Workspace { org: owner.org, project, workspace }
        }
    };
    let workspace = on_workspace.workspace().ok_or_else(|| anyhow::anyhow!("a workspace is a workspace"))?;
    let stream = envforge_domain::commit::StreamId::workspace(owner.org, workspace);
    if let Workspace::Active(active) = plane.commands.load::<Workspace>(&stream).await?.state
        && active.manifest != manifest
    {
        let permit = acting.permit(plane, owner, Action::WorkspaceChangeManifest, on_workspace).await?;
        let context = Context::new(plane.clock.now());
        workspaces::change_manifest(&plane.commands, &permit, &context, workspace, manifest).await?;
    }

    let link = live_link(plane, owner, identity, acting, on_workspace, &service, &context).await?;
    let view = plane.hot.gateway.link(link).ok_or_else(|| anyhow::anyhow!("the demo link is not in the view yet"))?;
    let token = signing_key.mint(&ShareClaims {
        link,
        generation: view.generation,
        org: owner.org,
        workspace,
        service: service.clone(),
        families: view.families,
        issued_at: view.issued_at,
        expires_at: view.expires_at,
    });
    let label = HostLabel::new(service, workspace_slug, owner.org_slug.clone())?;
    let (scheme, authority) =
        gateway_origin.split_once("://").ok_or_else(|| anyhow::anyhow!("the gateway's origin has a scheme"))?;
    Ok(Demo {
        share_url: format!("{gateway_origin}/share/{}", token.expose()),
        link,
        workspace_url: format!("{scheme}://{label}.{authority}/"),
    })
}

/// The demo's link that is good for a while yet; a new one where the last has ended.
async fn live_link(
    plane: &ControlPlane,
    owner: &FirstOwner,
    identity: &LogIdentity,
    acting: &Acting,
    on_workspace: Resource,
    service: &ServiceName,
    context: &impl Fn(&str) -> Context,
) -> anyhow::Result<LinkId> {
    let workspace = on_workspace.workspace().ok_or_else(|| anyhow::anyhow!("a workspace is a workspace"))?;
    let now = plane.clock.now();
    for number in 1_u32.. {
        let purpose = format!("demo link {number}");
        let link = LinkId::from_uuid(derived_uuid(identity.0.as_bytes(), &purpose));
        match plane.hot.gateway.link(link) {
            // A rotated link has a URL that somebody else asked for; the demo's own is the first generation.
            Some(view)
                if view.phase == LinkPhase::Active
                    && view.generation == Generation(1)
                    && now.plus(LINK_REST_MIN) < view.expires_at =>
            {
                return Ok(link);
            }
            Some(_) => {}
            None => {
                let permit = acting.permit(plane, owner, Action::LinkIssue, on_workspace).await?;
                let new = links::NewLink {
                    workspace,
                    service: service.clone(),
                    families: None,
                    lifetime: None,
                    label: "Demo review".to_owned(),
                    wake_budget: None,
                    issued_by: owner.user,
                };
                let (link, done) = links::issue(&plane.commands, &permit, &context(&purpose), new).await?;
                plane.hot.wait_for(done.position, acting.wait).await?;
                return Ok(link);
            }
        }
    }
    anyhow::bail!("this log holds too many demo links")
}

/// The owner, acting from this machine's command line in a session that ends with the preparation.
struct Acting {
    session: SessionId,
    correlation: CorrelationId,
    wait: std::time::Duration,
}

impl Acting {
    async fn begin(plane: &ControlPlane, owner: &FirstOwner) -> anyhow::Result<Self> {
        let now = plane.clock.now();
        let id = Uuid::now_v7();
        let acting = Self {
            session: SessionId::from_uuid(id),
            correlation: CorrelationId::from_uuid(id),
            wait: std::time::Duration::from_secs(10),
        };
        let command = UserCommand::OpenSession {
            session: acting.session,
            opened: OpenSession::of_local_account(Surface::Cli, now, now.plus(Millis::from_minutes(5))),
            now,
        };
        acting.record(plane, owner, &command).await?;
        Ok(acting)
    }

    async fn end(&self, plane: &ControlPlane, owner: &FirstOwner) -> anyhow::Result<()> {
        self.record(plane, owner, &UserCommand::EndSession { session: self.session, reason: SessionEnd::LoggedOut })
            .await
    }

    async fn record(&self, plane: &ControlPlane, owner: &FirstOwner, command: &UserCommand) -> anyhow::Result<()> {
        let now = plane.clock.now();
        let resource = Resource::User { org: owner.org, user: owner.user };
        let actor = Actor::System(Component::Setup);
        let permit =
            plane.authorizer.permit(actor, None, Action::UserRecordSession, resource, Surface::Cli, now).await?;
        let context = Context { correlation: self.correlation, ..Context::new(now) };
        let done = users::change(&plane.commands, &permit, &context, owner.user, command).await?;
        plane.hot.wait_for(done.position, self.wait).await?;
        Ok(())
    }

    async fn permit(
        &self,
        plane: &ControlPlane,
        owner: &FirstOwner,
        action: Action,
        resource: Resource,
    ) -> anyhow::Result<Permit> {
        let actor = Actor::User(owner.user);
        let now = plane.clock.now();
        Ok(plane.authorizer.permit(actor, Some(self.session), action, resource, Surface::Cli, now).await?)
    }
}
