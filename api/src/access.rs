//! Who asks, about what, and whether they may.
//!
//! Owns the extraction of a `Caller` from a request, the way from names in a path to ids, and the one call that gets a
//! `Permit`. Not here: the policy (domain) and the facts (projections).

mod browser_caller;
mod service_caller;

pub(crate) use self::service_caller::Answered;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRef, FromRequestParts};
use envforge_commands::{CommandError, Commands, back_off, root_windows};
use envforge_domain::access::{Action, Permit, Reach, Resource, Scope};
use envforge_domain::claim::{Claim, ClaimKey};
use envforge_domain::commit::{Actor, Component, Position, StreamId, Surface};
use envforge_domain::denial::RefusedRequest;
use envforge_domain::dev_link::DevLink;
use envforge_domain::ids::{
    CorrelationId, LinkId, OrgId, ProjectId, RootWindowId, ServiceTokenId, SessionId, TeamId, UserId, WorkspaceId,
};
use envforge_domain::limits::REAUTHENTICATION_WINDOW;
use envforge_domain::organization::Organization;
use envforge_domain::project::Project;
use envforge_domain::root_window::{RootWindow, RootWindowRefusal};
use envforge_domain::slug::{OrgSlug, ProjectSlug, TeamSlug, WorkspaceSlug};
use envforge_domain::time::UnixMillis;
use envforge_domain::workspace::Workspace;
use envforge_identity::credentials::Account;
use envforge_identity::service_tokens::ServiceTokenSecrets;
use envforge_identity::sign_in::{Identity, Presented, VerifyError};
use envforge_identity::tokens::SignedIn;
use envforge_projections::authorizer::Question;
use envforge_projections::sql::Within;
use envforge_projections::{AuthorizeError, Authorizer, Hot};
use http::request::Parts;
use http::{HeaderName, StatusCode, header};

use crate::browser::Browsers;
use crate::edge::Arrival;
use crate::endpoints::auth::other_surface;
use crate::endpoints::health::SILENCE_MAX;
use crate::instant;
use crate::problem::Problem;
use crate::write::Keys;

/// Questions to the policy on behalf of one request. Others' changes of rights can come in between that often at most
/// before it is left to the client to try again.
const PERMITS_MAX: u32 = 16;

/// On signing in, the surface for which the session is opened: `cli` or `console`; without it, `api`. Afterwards the session
/// says so, and a header that contradicts it is refused.
pub const SURFACE_HEADER: HeaderName = HeaderName::from_static("envforge-surface");

/// How long an open stream waits until the views of rights know what it is about to tell.
const DELIVERY_WAIT: Duration = Duration::from_secs(5);

/// Somebody who proved who they are: a person in a session, or a program with a service token. What they may do is another
/// question.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller {
    /// The person; of a program, whoever made its token: on their right it stands.
    pub user: UserId,
    pub org: OrgId,
    pub by: By,
    /// The session's own, not what the request says.
    pub surface: Surface,
    /// When the person last proved who they are.
    pub authenticated_at: UnixMillis,
    /// The access token's end.
    pub expires_at: UnixMillis,
    pub arrival: Arrival,
}

impl Caller {
    pub(crate) fn actor(&self) -> Actor {
        match self.by {
            By::Session(_) => Actor::User(self.user),
            By::ServiceToken { token, .. } => Actor::ServiceToken(token),
        }
    }

    /// Somebody of whom a host says that they signed in so. What they may do is asked of the log, as ever.
    pub(crate) fn recalled(org: OrgId, user: UserId, session: SessionId, surface: Surface, now: UnixMillis) -> Self {
        let address = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let correlation = CorrelationId::from_uuid(uuid::Uuid::now_v7());
        let (authenticated_at, expires_at) = (UnixMillis::new(0), now);
        let arrival = Arrival { correlation, now, address };
        Self { user, org, by: By::Session(session), surface, authenticated_at, expires_at, arrival }
    }

    /// For what only people do in their sessions. The policy lets no service token do it, so this is its second door.
    pub(crate) fn session_id(&self) -> Result<SessionId, Problem> {
        match self.by {
            By::Session(session) => Ok(session),
            By::ServiceToken { .. } => Err(Problem::internal("a service token got where only a session belongs")),
        }
    }

    /// For what a stolen session must not be able to do: the person proved who they are within the last 15 minutes.
    /// Asked once the policy has allowed it, so that it tells nobody anything.
    pub(crate) fn proved_recently(&self) -> Result<(), Problem> {
        let window = REAUTHENTICATION_WINDOW;
        if self.arrival.now.since(self.authenticated_at) <= window {
            return Ok(());
        }
        Err(Problem::new(
            "reauthentication_required",
            "This needs a fresh proof of who you are: POST /v1/auth/reauthenticate with your password, then repeat the request \
             with the access token that it answers.",
        )
        .with("authenticated_at", instant::Instant(self.authenticated_at).text())
        .with("max_age_seconds", window.as_secs())
        .with("reauthenticate", "/v1/auth/reauthenticate"))
    }

    /// The caller's own record.
    pub(crate) fn own(&self) -> Resource {
        Resource::User { org: self.org, user: self.user }
    }
}

/// By what a caller proved who they are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum By {
    Session(SessionId),
    ServiceToken { token: ServiceTokenId, generation: u32 },
}

impl<S> FromRequestParts<S> for Caller
where
    S: Send + Sync,
    Access: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let arrival = Arrival::from_request_parts(parts, state).await?;
        let access = Access::from_ref(state);
        let named = surface_of(&parts.headers)?;
        let of_browser = match &access.browsers {
            Some(browsers) => browsers.presented(&parts.method, &parts.headers)?,
            None => None,
        };
        let mut given = parts.headers.get_all(header::AUTHORIZATION).iter();
        let token = match (given.next(), given.next()) {
            (Some(value), None) => value.to_str().ok().and_then(bearer),
            // Two of them could be read differently by whoever stands in front of us.
            _ => None,
        };
        let presented = match (&of_browser, token) {
            (Some((_, value)), _) => Presented::Cookie(value),
            (None, Some(token)) => Presented::Bearer(token),
            (None, None) => {
                return Err(Problem::new(
                    "unauthenticated",
                    "Send `Authorization: Bearer <access token>`; POST /v1/auth/login gives one.",
                ));
            }
        };
        if let Presented::Bearer(secret) = presented
            && ServiceTokenSecrets::is_one(secret)
        {
            return access.service_caller(secret, named, arrival).await;
        }
        let signed_in = access.identity.verify(presented, arrival.now).await.map_err(|error| match error {
            VerifyError::Token(_) => {
                Problem::new("unauthenticated", "The access token is not valid or has expired; refresh it or sign in.")
            }
            VerifyError::Cookie => {
                Problem::new("unauthenticated", "The session of this browser has ended; sign in again.")
            }
            VerifyError::Credentials(error) => Problem::internal(error.to_string()),
        })?;
        // A browser's session for workspaces counts where they are opened (`browser_caller`) and nowhere else, whatever name its
        // cookie is given; and no cookie counts under the other one's name.
        let of_cookie = of_browser.as_ref().and_then(|(cookie, _)| cookie.surface());
        let other = [named, of_cookie].into_iter().flatten().any(|surface| surface != signed_in.surface);
        if other || signed_in.surface == Surface::Gateway {
            return Err(other_surface(signed_in.surface));
        }
        Ok(Self::signed_in(&signed_in, arrival))
    }
}

impl Caller {
    fn signed_in(signed_in: &SignedIn, arrival: Arrival) -> Self {
        Self {
            user: signed_in.user,
            org: signed_in.org,
            by: By::Session(signed_in.session),
            surface: signed_in.surface,
            authenticated_at: signed_in.authenticated_at,
            expires_at: signed_in.expires_at,
            arrival,
        }
    }
}

/// The token of `Bearer <token>`; the scheme in any case (RFC 9110 11.1).
pub(crate) fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && !token.contains(' ')).then_some(token)
}

/// The surface that a request names.
pub(crate) fn surface_of(headers: &http::HeaderMap) -> Result<Option<Surface>, Problem> {
    match headers.get(SURFACE_HEADER).map(|value| value.to_str()) {
        None => Ok(None),
        Some(Ok("api")) => Ok(Some(Surface::Api)),
        Some(Ok("cli")) => Ok(Some(Surface::Cli)),
        Some(Ok("console")) => Ok(Some(Surface::Console)),
        Some(_) => Err(Problem::new("header_invalid", "`EnvForge-Surface` must be `api`, `cli` or `console`.")
            .with("header", SURFACE_HEADER.as_str())),
    }
}

/// What every router needs in order to let anybody do anything.
#[derive(Clone)]
pub(crate) struct Access {
    identity: Arc<Identity>,
    authorizer: Authorizer,
    commands: Commands,
    keys: Keys,
    /// Sessions of browsers, where people can sign in with one.
    browsers: Option<Browsers>,
}

impl Access {
    pub(crate) fn new(identity: Arc<Identity>, authorizer: Authorizer, commands: Commands, keys: Keys) -> Self {
        Self { identity, authorizer, commands, keys, browsers: None }
    }

    /// Takes the cookies of browsers, too.
    pub(crate) fn with_browsers(mut self, browsers: Option<Browsers>) -> Self {
        self.browsers = browsers;
        self
    }

    /// What idempotency keys were used for.
    pub(crate) fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The views on which the policy decides.
    pub(crate) fn hot(&self) -> &Hot {
        self.authorizer.hot()
    }

    /// Holds refusals in the name of the request, so that they can be explained.
    fn authorizer_for(&self, arrival: &Arrival) -> Authorizer {
        self.authorizer.in_request(arrival.correlation)
    }

    /// The request, as what was refused is held.
    pub(crate) fn refused_request(&self, arrival: &Arrival) -> RefusedRequest {
        RefusedRequest { request: arrival.correlation, at: arrival.now, position: self.hot().position() }
    }

    /// Asks the policy, on rights as fresh as the log's leader has them.
    pub(crate) async fn permit(&self, caller: &Caller, action: Action, resource: Resource) -> Result<Permit, Problem> {
        let (session, now) = (caller.session_id().ok(), caller.arrival.now);
        let authorizer = self.authorizer_for(&caller.arrival);
        let permit = authorizer.permit(caller.actor(), session, action, resource, caller.surface, now);
        let permit = permit.await.map_err(denied)?;
        self.admits(caller, &permit)?;
        if needs_recent_proof(action) {
            caller.proved_recently()?;
        }
        Ok(permit)
    }

    /// Whether somebody may open a workspace on its host, in a session of their browser here.
    pub(crate) async fn opening(&self, caller: &Caller, workspace: Resource) -> Result<Permit, Problem> {
        let (action, surface) = (Action::WorkspaceOpen, Surface::Gateway);
        let session = Some(caller.session_id()?);
        let authorizer = self.authorizer_for(&caller.arrival);
        let asked = authorizer.permit(caller.actor(), session, action, workspace, surface, caller.arrival.now);
        asked.await.map_err(denied)
    }

    /// Acting on a permit that may have to be asked for again; see `act!`.
    pub(crate) fn acting<'a>(&'a self, caller: &'a Caller, permit: Permit) -> Acting<'a> {
        Acting { access: self, caller, permit, permits: 1 }
    }

    /// Asks again while something is open, in memory. `now` moves on where the caller's arrival does not.
    pub(crate) fn permit_still(
        &self,
        caller: &Caller,
        action: Action,
        resource: Resource,
        now: UnixMillis,
    ) -> Result<Permit, Problem> {
        let silence = self.authorizer.hot().silence();
        if silence > SILENCE_MAX {
            return Err(denied(AuthorizeError::Stale(envforge_projections::Stale::Stopped {
                reason: format!("the log gave no sign of life for {} s", silence.as_secs()),
            })));
        }
        let session = caller.session_id().ok();
        let authorizer = self.authorizer_for(&caller.arrival);
        let permit = authorizer.permit_from_memory(caller.actor(), session, action, resource, caller.surface, now);
        let permit = permit.map_err(denied)?;
        self.admits(caller, &permit)?;
        Ok(permit)
    }

    /// Asks again for what tells of the log up to `position`: whoever revoked a right before that has revoked this too.
    pub(crate) async fn permit_as_of(
        &self,
        caller: &Caller,
        action: Action,
        resource: Resource,
        position: Position,
        now: UnixMillis,
    ) -> Result<Permit, Problem> {
        let hot = self.authorizer.hot();
        hot.wait_for(position, DELIVERY_WAIT).await.map_err(|stale| denied(AuthorizeError::Stale(stale)))?;
        self.permit_still(caller, action, resource, now)
    }

    /// A permit of the identity component, which records that somebody signed in or out.
    pub(crate) async fn identity_permit(
        &self,
        org: OrgId,
        user: UserId,
        surface: Surface,
        now: UnixMillis,
    ) -> Result<Permit, Problem> {
        self.provider_permit(Action::UserRecordSession, Resource::User { org, user }, surface, now).await
    }

    /// A permit of the identity component for what it does on the word of an organization's identity provider.
    pub(crate) async fn provider_permit(
        &self,
        action: Action,
        resource: Resource,
        surface: Surface,
        now: UnixMillis,
    ) -> Result<Permit, Problem> {
        let actor = Actor::System(Component::Identity);
        self.authorizer.permit(actor, None, action, resource, surface, now).await.map_err(denied)
    }

    /// A permit of one of EnvForge's components, on rights as this process has them.
    pub(crate) fn component_permit(
        &self,
        component: Component,
        action: Action,
        resource: Resource,
        surface: Surface,
        now: UnixMillis,
    ) -> Result<Permit, Problem> {
        let actor = Actor::System(component);
        self.authorizer.permit_from_memory(actor, None, action, resource, surface, now).map_err(denied)
    }

    /// A permit of the identity component, which has seen the token of an invitation.
    pub(crate) async fn acceptance_permit(
        &self,
        org: OrgId,
        user: UserId,
        surface: Surface,
        now: UnixMillis,
    ) -> Result<Permit, Problem> {
        let (actor, resource) = (Actor::System(Component::Identity), Resource::User { org, user });
        self.authorizer.permit(actor, None, Action::InvitationAccept, resource, surface, now).await.map_err(denied)
    }

    /// Counts a password that was tried and wrong, for the audit.
    pub(crate) fn record_failed_login(&self, account: Option<&Account>, surface: Surface, arrival: &Arrival) {
        let account = account.map(|account| (account.org, account.user));
        self.authorizer.denials().record_failed_login(account, arrival.address, surface, self.refused_request(arrival));
    }

    /// Passes on what became of a sign-in or its renewal. One that was refused for what it was is counted for the audit; what
    /// was not even looked at, and our own failures, are none. `who`: where that was known.
    pub(crate) fn sign_in_outcome<T>(
        &self,
        outcome: Result<T, Problem>,
        who: Option<(OrgId, UserId)>,
        surface: Surface,
        arrival: &Arrival,
    ) -> Result<T, Problem> {
        if let Err(problem) = &outcome {
            let status = problem.status();
            let looked_at = !matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::NOT_FOUND);
            if looked_at && !status.is_server_error() {
                let (org, user) = who.map_or((OrgId::SYSTEM, None), |(org, user)| (org, Some(user)));
                let denials = self.authorizer.denials();
                let of = self.refused_request(arrival);
                denials.record_refused_sign_in(org, user, problem.code(), arrival.address, surface, of);
            }
        }
        outcome
    }

    /// What of a list the caller may see: all of the organization, or some of its projects and workspaces.
    pub(crate) async fn listing(&self, caller: &Caller, action: Action, org: OrgId) -> Result<Listing, Problem> {
        if caller.org != org {
            // Nobody is a member of two organizations; the policy says so, and it is counted.
            return Err(self
                .permit(caller, action, Resource::Organization(org))
                .await
                .err()
                .unwrap_or_else(Problem::not_found));
        }
        if let By::ServiceToken { token, .. } = caller.by {
            return self.service_listing(caller, token, action).await;
        }
        // A question that every live member may ask makes the view as fresh as the log's leader: which grants there are
        // decides what is asked next.
        self.permit(caller, Action::ProfileRead, caller.own()).await?;
        let grants = self.authorizer.hot().authorization.grants(org, caller.user, caller.arrival.now);
        let row = action.row();
        let mut reached = Vec::new();
        let mut everything = false;
        for grant in grants.iter().filter(|grant| row.roles.contains(&grant.role)) {
            match grant.scope {
                Scope::Organization => everything = true,
                Scope::Project(project) => reached.push(Resource::Project { org, project }),
                Scope::Workspace { project, workspace } if row.reach == Reach::Workspace => {
                    reached.push(Resource::Workspace { org, project, workspace });
                }
                // A workspace of it opens no project.
                Scope::Workspace { .. } => {}
            }
        }
        reached.sort_unstable_by_key(|resource| (resource.project(), resource.workspace()));
        reached.dedup();
        let now = caller.arrival.now;
        if reached.is_empty() || everything {
            let permit = self.permit_still(caller, action, Resource::Organization(org), now)?;
            return Ok(Listing { org, permits: vec![permit], everything: true });
        }
        let mut permits = Vec::with_capacity(reached.len());
        let mut refused = Problem::not_found();
        for resource in reached {
            match self.permit_still(caller, action, resource, now) {
                Ok(permit) => permits.push(permit),
                Err(problem) => refused = problem,
            }
        }
        if permits.is_empty() { Err(refused) } else { Ok(Listing { org, permits, everything: false }) }
    }

    /// An organization by id or slug.
    pub(crate) async fn org(&self, name: &str) -> Result<OrgId, Problem> {
        if let Ok(org) = name.parse::<OrgId>() {
            // A made-up id must not get a record of its own for the attempts to reach it.
            let known = self.authorizer.hot().authorization.organization(org).is_some()
                || self.commands.load::<Organization>(&StreamId::organization(org)).await?.state
                    != Organization::Unknown;
            return if known { Ok(org) } else { Err(Problem::not_found()) };
        }
        let slug: OrgSlug = name.parse().map_err(|_| Problem::not_found())?;
        match self.authorizer.hot().authorization.organization_by_slug(&slug) {
            Some(org) => Ok(org),
            None => self.holder(&ClaimKey::OrgSlug(slug)).await,
        }
    }

    /// A project by id or slug.
    pub(crate) async fn project(&self, org: OrgId, name: &str) -> Result<Resource, Problem> {
        let resources = &self.authorizer.hot().resources;
        if let Ok(project) = name.parse::<ProjectId>() {
            return Ok(resources.project(org, project).unwrap_or(Resource::Project { org, project }));
        }
        let slug: ProjectSlug = name.parse().map_err(|_| Problem::not_found())?;
        match resources.project_by_slug(org, &slug) {
            Some(resource) => Ok(resource),
            None => Ok(Resource::Project { org, project: self.holder(&ClaimKey::ProjectSlug(org, slug)).await? }),
        }
    }

    /// A project that exists: a role for one that comes to be later would count there.
    pub(crate) async fn existing_project(&self, org: OrgId, name: &str) -> Result<ProjectId, Problem> {
        let project = self.project(org, name).await?.project().ok_or_else(Problem::not_found)?;
        match self.commands.load::<Project>(&StreamId::project(org, project)).await?.state {
            Project::Unknown => Err(Problem::not_found()),
            Project::Active { .. } => Ok(project),
        }
    }

    /// A workspace by id or slug.
    pub(crate) async fn workspace(&self, org: OrgId, name: &str) -> Result<Resource, Problem> {
        let resources = &self.authorizer.hot().resources;
        let workspace = if let Ok(workspace) = name.parse::<WorkspaceId>() {
            workspace
        } else {
            let slug: WorkspaceSlug = name.parse().map_err(|_| Problem::not_found())?;
            match resources.workspace_by_slug(org, &slug) {
                Some(resource) => return Ok(resource),
                None => self.holder(&ClaimKey::WorkspaceSlug(org, slug)).await?,
            }
        };
        if let Some(resource) = resources.workspace(workspace) {
            // An id of another organization is as unknown as one that nobody has.
            return if resource.org() == org { Ok(resource) } else { Err(Problem::not_found()) };
        }
        match self.commands.load::<Workspace>(&StreamId::workspace(org, workspace)).await?.state {
            Workspace::Active(active) => Ok(Resource::Workspace { org, project: active.project, workspace }),
            Workspace::Archived { project, .. } => Ok(Resource::Workspace { org, project, workspace }),
            Workspace::Unknown => Err(Problem::not_found()),
        }
    }

    /// A team by id or slug, for a write: one that is not there is the domain's to refuse, since a repeated request gets its
    /// first answer whatever became of the team. Asked for after a permit, the view is as fresh as that.
    pub(crate) fn team(&self, org: OrgId, name: &str) -> TeamId {
        let by_slug = |slug: TeamSlug| self.authorizer.hot().authorization.team_by_slug(org, &slug);
        let known = name.parse::<TeamId>().ok().or_else(|| name.parse().ok().and_then(by_slug));
        known.unwrap_or(TeamId::from_uuid(uuid::Uuid::nil()))
    }

    /// A link by id.
    pub(crate) async fn link(&self, org: OrgId, name: &str) -> Result<Resource, Problem> {
        let link: LinkId = name.parse().map_err(|_| Problem::not_found())?;
        if let Some(resource) = self.authorizer.hot().resources.link(link) {
            return if resource.org() == org { Ok(resource) } else { Err(Problem::not_found()) };
        }
        // Issued so recently that the view has not seen it, or ended: the view forgets those.
        let (project, workspace) = match self.commands.load::<DevLink>(&StreamId::dev_link(org, link)).await?.state {
            DevLink::Active(active) => (active.project, active.workspace),
            DevLink::Expired { project, workspace, .. } | DevLink::Revoked { project, workspace, .. } => {
                (project, workspace)
            }
            DevLink::Unknown => return Err(Problem::not_found()),
        };
        Ok(Resource::Link { org, project, workspace, link })
    }

    /// A root window by id.
    pub(crate) async fn root_window(&self, org: OrgId, name: &str) -> Result<Resource, Problem> {
        let window: RootWindowId = name.parse().map_err(|_| Problem::not_found())?;
        if let Some(known) = self.authorizer.hot().authorization.root_window(window) {
            return known.resource().filter(|resource| resource.org() == org).ok_or_else(Problem::not_found);
        }
        // Asked for so recently that the view has not seen it.
        let state = self.commands.load::<RootWindow>(&StreamId::root_window(org, window)).await?.state;
        let terms = state.terms().ok_or_else(Problem::not_found)?;
        Ok(Resource::RootWindow { org, project: terms.project, workspace: terms.workspace, window })
    }

    /// What speaks against somebody's deciding on a root window, after the policy's yes. `None` also about anything else.
    pub(crate) async fn against_decider(
        &self,
        question: &Question,
        now: UnixMillis,
    ) -> Result<Option<RootWindowRefusal>, Problem> {
        let Question { subject: Actor::User(decider), action, resource, .. } = *question else { return Ok(None) };
        Ok(root_windows::against_decider(&self.commands, resource, action, decider, now).await?)
    }

    /// Who holds a name, from the log's leader: for names so new that the views have not seen them.
    async fn holder<T: std::str::FromStr>(&self, key: &ClaimKey) -> Result<T, Problem> {
        let stream = key.stream().map_err(|_| Problem::not_found())?;
        let holder = match self.commands.load::<Claim>(&stream).await?.state {
            Claim::Held { holder } | Claim::Retired { holder } => holder,
            Claim::Free => return Err(Problem::not_found()),
        };
        holder.parse().map_err(|_| Problem::internal("a claim's holder is not an id of its kind"))
    }
}

/// Somebody acts on a permit. Where the rights that it rests on have moved meanwhile, nothing was done: the policy is asked
/// once more, on the rights as they are now, and its no is the answer.
pub(crate) struct Acting<'a> {
    access: &'a Access,
    caller: &'a Caller,
    permit: Permit,
    permits: u32,
}

impl Acting<'_> {
    pub(crate) fn permit(&self) -> &Permit {
        &self.permit
    }

    /// `None`: act once more, on the new permit.
    pub(crate) async fn settle<T>(&mut self, outcome: Result<T, CommandError>) -> Result<Option<T>, Problem> {
        match outcome {
            Err(CommandError::RightsMoved { .. }) if self.permits < PERMITS_MAX => {
                back_off(self.permits).await;
                self.permits += 1;
                let (action, resource) = (self.permit.action(), self.permit.resource());
                self.permit = self.access.permit(self.caller, action, resource).await?;
                Ok(None)
            }
            outcome => {
                if let Some(code) = outcome.as_ref().err().and_then(CommandError::refusal_code)
                    && COUNTED_REFUSALS.contains(&code)
                {
                    self.access.count_refusal(self.caller, &self.permit, code);
                }
                Ok(Some(outcome?))
            }
        }
    }
}

/// What the domain refuses somebody for who they are, after the policy's yes: counted for the audit as the policy's own no is.
const COUNTED_REFUSALS: [&str; 2] = ["root_own_request", "root_decider_depends"];

/// Awaits what is done with a permit, again with a new one where its rights have moved meanwhile. A macro, because what is
/// done borrows the permit of each round.
macro_rules! act {
    ($access:expr, $caller:expr, $permit:ident, $does:expr) => {{
        let mut acting = $access.acting($caller, $permit);
        loop {
            let $permit = acting.permit();
            let outcome = $does.await;
            if let Some(done) = acting.settle(outcome).await? {
                break done;
            }
        }
    }};
}
pub(crate) use act;

/// What of a list somebody may see. Made by the policy alone; queries take their scope from it.
pub(crate) struct Listing {
    org: OrgId,
    /// INVARIANT: never empty.
    permits: Vec<Permit>,
    everything: bool,
}

impl Listing {
    pub(crate) fn org(&self) -> OrgId {
        self.org
    }

    pub(crate) fn action(&self) -> Action {
        self.permits[0].action()
    }

    /// `None`: all of the organization.
    pub(crate) fn projects(&self) -> Option<Vec<ProjectId>> {
        self.within().map(|within| within.projects)
    }

    /// `None`: all of the organization.
    pub(crate) fn within(&self) -> Option<Within> {
        if self.everything {
            return None;
        }
        let mut within = Within::default();
        for permit in &self.permits {
            match permit.resource() {
                Resource::Project { project, .. } => within.projects.push(project),
                Resource::Workspace { workspace, .. } => within.workspaces.push(workspace),
                Resource::Organization(_)
                | Resource::User { .. }
                | Resource::Link { .. }
                | Resource::Host { .. }
                | Resource::RootWindow { .. } => {}
            }
        }
        Some(within)
    }
}

/// Whatever the action is about. Where it depends on that, as for the role `owner`, the endpoint asks.
const fn needs_recent_proof(action: Action) -> bool {
    matches!(
        action,
        Action::OrganizationChangePolicy
            | Action::ServiceTokenCreate
            | Action::ServiceTokenRotate
            | Action::RootApprove
            | Action::RootBreakGlass
            | Action::RootReview
    )
}

fn denied(error: AuthorizeError) -> Problem {
    match error {
        AuthorizeError::Denied(denial) => denial.into(),
        AuthorizeError::Stale(stale) => {
            Problem::new("rights_stale", "Whether you may do this cannot be made sure of right now.")
                .retry_after_s(1)
                .because(stale.to_string())
        }
        AuthorizeError::Log(error) => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::bearer;

    #[test]
    fn only_one_token_after_the_scheme_is_taken() {
        assert_eq!(bearer("Bearer abc"), Some("abc"));
        assert_eq!(bearer("bearer abc"), Some("abc"));
        for wrong in ["", "Bearer", "Bearer ", "Bearer a b", "Bearer  a", "Basic abc", "abc"] {
            assert_eq!(bearer(wrong), None, "{wrong}");
        }
    }
}
