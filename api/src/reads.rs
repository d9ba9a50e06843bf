//! The read models, for those whom the policy let through.
//!
//! Every question takes the `Permit` (or the `Listing`) that allows it and gets its organization, project and thing from
//! there, never from the request: an endpoint that asked nobody has nothing to ask with, and one that asked about another
//! thing gets that thing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRequestParts;
use envforge_domain::access::{Action, Permit, Resource};
use envforge_domain::commit::Position;
use envforge_domain::ids::{TeamId, UserId, WorkspaceId};
use envforge_domain::root_window::RootPhase;
use envforge_domain::slug::ServiceName;
use envforge_domain::time::UnixMillis;
use envforge_eventlog::SharedLog;
use envforge_projections::Hot;
use envforge_projections::authorization::{KnownRootWindow, TeamDetail};
use envforge_projections::gateway_view;
use envforge_projections::invitations::OpenInvitation;
use envforge_projections::sql::{
    AuditCursor, AuditFilter, AuditRow, Database, DatabaseError, Direction, GroupBy, Limit, LinkFilter, LinkPhase,
    LinkRecord, MemberRecord, ModelName, OrganizationRecord, Page, ProjectRecord, RunningUsage, RuntimePhase, Stale,
    UsageFilter, UsageGroup, UserRecord, WorkspaceFilter, WorkspaceRecord,
};
use http::HeaderName;
use http::request::Parts;

use crate::access::Listing;
use crate::page::Slice;
use crate::problem::Problem;

/// How fresh a read must be at least.
pub const MIN_POSITION_HEADER: HeaderName = HeaderName::from_static("envforge-min-position");

/// The position that a read must have reached; the log's beginning where none is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AtLeast(pub Position);

impl<S: Sync> FromRequestParts<S> for AtLeast {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let invalid = || {
            Problem::new(
                "header_invalid",
                "`EnvForge-Min-Position` must be a position: the `EnvForge-Position` of a write.",
            )
            .with("header", MIN_POSITION_HEADER.as_str())
        };
        match parts.headers.get(MIN_POSITION_HEADER) {
            None => Ok(Self(Position::START)),
            Some(value) => {
                let text = value.to_str().map_err(|_| invalid())?;
                let position = text.parse().map(Position::new).map_err(|_| invalid())?;
                // One spelling: no sign, no leading zeros.
                if position.to_string() == text { Ok(Self(position)) } else { Err(invalid()) }
            }
        }
    }
}

/// Questions to the read models.
#[derive(Clone)]
pub(crate) struct Reads {
    log: SharedLog,
    database: Database,
    hot: Arc<Hot>,
    freshness_wait: Duration,
}

/// Somebody's own record.
pub(crate) struct Profile {
    pub(crate) user: UserRecord,
    pub(crate) organization: OrganizationRecord,
}

/// A runtime's phase and the services that answer.
pub(crate) struct RuntimeNow {
    pub(crate) phase: &'static str,
    answering: Vec<ServiceName>,
}

impl RuntimeNow {
    fn asleep() -> Self {
        Self { phase: RuntimePhase::Asleep.token(), answering: Vec::new() }
    }

    pub(crate) fn is_ready(&self, service: &ServiceName) -> bool {
        self.answering.contains(service)
    }
}

impl Reads {
    pub(crate) fn new(log: SharedLog, database: Database, hot: Arc<Hot>, freshness_wait: Duration) -> Self {
        Self { log, database, hot, freshness_wait }
    }

    pub(crate) fn hot(&self) -> &Hot {
        &self.hot
    }

    async fn fresh(&self, model: ModelName, at: AtLeast) -> Result<(), Problem> {
        // What this process has folded is there; what it has not may be on its way, and the log's leader knows.
        if at.0 > self.hot.position() {
            let last = self.log.head().await?.position;
            if at.0 > last {
                let what = format!("Position {} does not exist: the log ends at {last}.", at.0);
                return Err(Problem::new("position_unknown", what)
                    .with("header", MIN_POSITION_HEADER.as_str())
                    .with("position", last.get()));
            }
        }
        if at.0 == Position::START {
            return Ok(());
        }
        match self.database.wait_for(model, at.0, self.freshness_wait).await {
            Ok(()) => Ok(()),
            Err(Stale::Behind { position, wanted, .. }) => Err(Problem::new(
                "stale_read",
                format!(
                    "The answer would stand at position {position}, {wanted} was asked for and did not come in time."
                ),
            )
            .with("position", position.get())
            .retry_after_s(1)),
            Err(Stale::Database(error)) => Err(unavailable(error)),
        }
    }

    /// Waits until the directory tells of everything up to `position`, or for as long as a read would. What comes next says so itself.
    pub(crate) async fn settle(&self, position: Position) {
        let _ = self.database.wait_for(ModelName::Directory, position, self.freshness_wait).await;
    }

    async fn directory(&self, at: AtLeast) -> Result<envforge_projections::sql::Directory<'_>, Problem> {
        self.fresh(ModelName::Directory, at).await?;
        Ok(self.database.directory())
    }

    pub(crate) async fn profile(&self, permit: &Permit, at: AtLeast) -> Result<Profile, Problem> {
        needs(permit.action(), Action::ProfileRead)?;
        let Resource::User { org, user } = permit.resource() else { return Err(Problem::not_found()) };
        let directory = self.directory(at).await?;
        let user = directory.user(user).await.map_err(unavailable)?.ok_or_else(Problem::not_found)?;
        let organization = directory.organization(org).await.map_err(unavailable)?.ok_or_else(Problem::not_found)?;
        Ok(Profile { user, organization })
    }

    pub(crate) async fn organization(&self, permit: &Permit, at: AtLeast) -> Result<OrganizationRecord, Problem> {
        needs(permit.action(), Action::OrganizationRead)?;
        let found = self.directory(at).await?.organization(permit.org()).await;
        found.map_err(unavailable)?.ok_or_else(Problem::not_found)
    }

    /// Invitations that nobody has accepted yet, from memory.
    pub(crate) async fn invitations(
        &self,
        permit: &Permit,
        at: AtLeast,
        now: UnixMillis,
    ) -> Result<Vec<OpenInvitation>, Problem> {
        needs(permit.action(), Action::InvitationRead)?;
        // The permit's own freshness covers the caller's streams alone.
        self.hot_at(at).await?;
        Ok(self.hot.invitations.of(permit.org(), now))
    }

    /// Waits until memory tells of everything up to a position.
    pub(crate) async fn hot_at(&self, at: AtLeast) -> Result<(), Problem> {
        self.hot.wait_for(at.0, self.freshness_wait).await.map_err(|stale| {
            Problem::new("stale_read", "What stands at that position is not known here yet.")
                .retry_after_s(1)
                .because(stale.to_string())
        })
    }

    /// Root windows, the newest first, out of memory.
    pub(crate) async fn root_windows(
        &self,
        listing: &Listing,
        at: AtLeast,
        phase: Option<RootPhase>,
        now: UnixMillis,
        slice: &Slice,
    ) -> Result<Page<KnownRootWindow, String>, Problem> {
        needs(listing.action(), Action::RootRead)?;
        self.hot_at(at).await?;
        let within = listing.within();
        let seen = |known: &KnownRootWindow| {
            let Some(terms) = known.state.terms() else { return false };
            let before = slice.after.as_ref().is_none_or(|after| known.window.to_string() < *after);
            let reached = within.as_ref().is_none_or(|within| {
                within.projects.contains(&terms.project) || within.workspaces.contains(&terms.workspace)
            });
            before && reached && (phase.is_none() || known.state.phase(now) == phase)
        };
        let windows = self.hot.authorization.root_windows(listing.org()).into_iter().filter(seen);
        let windows = windows.take(usize::from(slice.limit.get()) + 1).collect();
        Ok(Page::cut(windows, slice.limit, |known: &KnownRootWindow| known.window.to_string()))
    }

    pub(crate) async fn root_window(&self, permit: &Permit, at: AtLeast) -> Result<KnownRootWindow, Problem> {
        needs(permit.action(), Action::RootRead)?;
        self.hot_at(at).await?;
        let Resource::RootWindow { window, .. } = permit.resource() else { return Err(Problem::not_found()) };
        self.hot.authorization.root_window(window).ok_or_else(Problem::not_found)
    }

    pub(crate) async fn members(
        &self,
        permit: &Permit,
        at: AtLeast,
        slice: &Slice,
    ) -> Result<Page<MemberRecord>, Problem> {
        needs(permit.action(), Action::MemberRead)?;
        let page = self.directory(at).await?.members(permit.org(), slice.after.as_deref(), slice.limit).await;
        page.map_err(unavailable)
    }

    /// Teams by id, out of memory: the permit has made that as fresh as the log's leader.
    pub(crate) fn teams(&self, permit: &Permit, slice: &Slice) -> Result<Page<TeamDetail>, Problem> {
        needs(permit.action(), Action::TeamRead)?;
        let authorization = &self.hot.authorization;
        let after = slice.after.as_deref().unwrap_or_default();
        let teams = authorization.teams(permit.org()).into_iter().filter(|team| team.team.to_string().as_str() > after);
        let teams = teams.take(usize::from(slice.limit.get()) + 1);
        let details = teams.filter_map(|team| authorization.team(permit.org(), team.team)).collect();
        Ok(Page::cut(details, slice.limit, |team: &TeamDetail| team.team.to_string()))
    }

    pub(crate) fn team(&self, permit: &Permit, team: TeamId) -> Result<TeamDetail, Problem> {
        needs(permit.action(), Action::TeamRead)?;
        self.hot.authorization.team(permit.org(), team).ok_or_else(Problem::not_found)
    }

    pub(crate) async fn projects(
        &self,
        listing: &Listing,
        at: AtLeast,
        slice: &Slice,
    ) -> Result<Page<ProjectRecord>, Problem> {
        needs(listing.action(), Action::ProjectRead)?;
        let only = listing.projects();
        let directory = self.directory(at).await?;
        let page = directory.projects(listing.org(), only.as_deref(), slice.after.as_deref(), slice.limit).await;
        page.map_err(unavailable)
    }

    pub(crate) async fn project(&self, permit: &Permit, at: AtLeast) -> Result<ProjectRecord, Problem> {
        needs(permit.action(), Action::ProjectRead)?;
        let Some(project) = permit.resource().project() else { return Err(Problem::not_found()) };
        let found = self.directory(at).await?.project(permit.org(), project).await;
        found.map_err(unavailable)?.ok_or_else(Problem::not_found)
    }

    /// What those are called who did something to secrets; without whoever this process does not know yet.
    pub(crate) async fn names_beside_secrets(
        &self,
        permit: &Permit,
        users: BTreeSet<UserId>,
    ) -> Result<BTreeMap<UserId, String>, Problem> {
        needs(permit.action(), Action::SecretList)?;
        let directory = self.directory(AtLeast(Position::START)).await?;
        let mut names = BTreeMap::new();
        for user in users {
            let known = directory.user(user).await.map_err(unavailable)?;
            names.extend(known.map(|known| (user, known.name)));
        }
        Ok(names)
    }

    pub(crate) async fn workspaces(
        &self,
        listing: &Listing,
        at: AtLeast,
        archived: Option<bool>,
        phase: Option<RuntimePhase>,
        slice: &Slice,
    ) -> Result<Page<WorkspaceRecord>, Problem> {
        needs(listing.action(), Action::WorkspaceRead)?;
        let filter = WorkspaceFilter { within: listing.within(), archived, phase };
        let directory = self.directory(at).await?;
        let page = directory.workspaces(listing.org(), &filter, slice.after.as_deref(), slice.limit).await;
        page.map_err(unavailable)
    }

    pub(crate) async fn workspace(&self, permit: &Permit, at: AtLeast) -> Result<WorkspaceRecord, Problem> {
        needs(permit.action(), Action::WorkspaceRead)?;
        let Some(workspace) = permit.resource().workspace() else { return Err(Problem::not_found()) };
        let found = self.directory(at).await?.workspace(permit.org(), workspace).await;
        found.map_err(unavailable)?.ok_or_else(Problem::not_found)
    }

    /// Idle time that the organization allows at most, in memory.
    pub(crate) fn idle_sleep_max(&self, permit: &Permit) -> Option<envforge_domain::time::Millis> {
        self.hot.authorization.organization_policy(permit.org()).map(|policy| policy.idle_sleep_max)
    }

    pub(crate) async fn links(
        &self,
        listing: &Listing,
        at: AtLeast,
        phase: Option<LinkPhase>,
        slice: &Slice,
    ) -> Result<Page<LinkRecord>, Problem> {
        needs(listing.action(), Action::LinkRead)?;
        let filter = LinkFilter { within: listing.within(), workspace: None, phase };
        let directory = self.directory(at).await?;
        let page = directory.links(listing.org(), &filter, slice.after.as_deref(), slice.limit).await;
        page.map_err(unavailable)
    }

    /// The links of one workspace.
    pub(crate) async fn links_of(
        &self,
        permit: &Permit,
        at: AtLeast,
        phase: Option<LinkPhase>,
        slice: &Slice,
    ) -> Result<Page<LinkRecord>, Problem> {
        needs(permit.action(), Action::LinkRead)?;
        let Some(workspace) = permit.resource().workspace() else { return Err(Problem::not_found()) };
        let filter = LinkFilter { within: None, workspace: Some(workspace), phase };
        let directory = self.directory(at).await?;
        let page = directory.links(permit.org(), &filter, slice.after.as_deref(), slice.limit).await;
        page.map_err(unavailable)
    }

    /// All links that a workspace ever had, the newest first, for whoever asks who could open it at some time.
    pub(crate) async fn links_ever(
        &self,
        permit: &Permit,
        at: AtLeast,
        workspace: WorkspaceId,
        slice: &Slice,
    ) -> Result<Page<LinkRecord>, Problem> {
        needs(permit.action(), Action::AuditRead)?;
        let filter = LinkFilter { within: None, workspace: Some(workspace), phase: None };
        let directory = self.directory(at).await?;
        let page = directory.links(permit.org(), &filter, slice.after.as_deref(), slice.limit).await;
        page.map_err(unavailable)
    }

    /// One link, for those who may read it or show its share URL again.
    pub(crate) async fn link(&self, permit: &Permit, at: AtLeast) -> Result<LinkRecord, Problem> {
        if permit.action() != Action::LinkShare {
            needs(permit.action(), Action::LinkRead)?;
        }
        let Resource::Link { org, link, .. } = permit.resource() else { return Err(Problem::not_found()) };
        let found = self.directory(at).await?.link(org, link).await;
        found.map_err(unavailable)?.ok_or_else(Problem::not_found)
    }

    /// What the runtime behind a link does now, in memory.
    pub(crate) fn runtime_of(&self, permit: &Permit) -> RuntimeNow {
        let Some(workspace) = permit.resource().workspace() else { return RuntimeNow::asleep() };
        let view = self.hot.gateway.runtime(workspace);
        let view = view.borrow();
        RuntimeNow {
            phase: match view.phase {
                gateway_view::RuntimePhase::Asleep => RuntimePhase::Asleep,
                gateway_view::RuntimePhase::Waking => RuntimePhase::Waking,
                gateway_view::RuntimePhase::Ready => RuntimePhase::Ready,
                gateway_view::RuntimePhase::Sleeping | gateway_view::RuntimePhase::Leaving => RuntimePhase::Sleeping,
                gateway_view::RuntimePhase::Failed => RuntimePhase::Failed,
            }
            .token(),
            // Their names alone: where they listen never leaves the gateway.
            answering: view.endpoints.iter().map(|(service, _)| service.clone()).collect(),
        }
    }

    pub(crate) async fn audit(
        &self,
        permit: &Permit,
        at: AtLeast,
        filter: &AuditFilter,
        direction: Direction,
        after: Option<AuditCursor>,
        limit: Limit,
    ) -> Result<Page<AuditRow, AuditCursor>, Problem> {
        needs(permit.action(), Action::AuditRead)?;
        self.fresh(ModelName::Audit, at).await?;
        self.database.audit().rows(permit.org(), filter, direction, after, limit).await.map_err(unavailable)
    }

    pub(crate) async fn usage(
        &self,
        permit: &Permit,
        at: AtLeast,
        filter: &UsageFilter,
        group_by: GroupBy,
        now: UnixMillis,
        slice: &Slice,
    ) -> Result<Page<UsageGroup>, Problem> {
        needs(permit.action(), Action::UsageRead)?;
        self.fresh(ModelName::Meter, at).await?;
        let page =
            self.database.meter().usage(permit.org(), filter, group_by, now, slice.after.as_deref(), slice.limit).await;
        page.map_err(unavailable)
    }

    pub(crate) async fn running(
        &self,
        permit: &Permit,
        at: AtLeast,
        now: UnixMillis,
        slice: &Slice,
    ) -> Result<Page<RunningUsage>, Problem> {
        needs(permit.action(), Action::UsageRead)?;
        self.fresh(ModelName::Meter, at).await?;
        let page = self.database.meter().running(permit.org(), now, slice.after.as_deref(), slice.limit).await;
        page.map_err(unavailable)
    }
}

/// The permit at hand must be for this very question; another one is our own mistake.
fn needs(permitted: Action, needed: Action) -> Result<(), Problem> {
    if permitted == needed {
        return Ok(());
    }
    Err(Problem::internal(format!(
        "the permit is for `{}`, the question needs `{}`",
        permitted.token(),
        needed.token()
    )))
}

fn unavailable(error: DatabaseError) -> Problem {
    Problem::new("read_models_unavailable", "The read models are out of reach right now.")
        .retry_after_s(1)
        .because(error.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn a_position_has_one_spelling() {
        let at = |text: &str| {
            let request = http::Request::builder().header(MIN_POSITION_HEADER, text).body(()).unwrap();
            let (mut parts, ()) = request.into_parts();
            let read = AtLeast::from_request_parts(&mut parts, &()).now_or_never().unwrap();
            read.map(|AtLeast(position)| position.get()).map_err(|problem| problem.code())
        };
        assert_eq!((at("0"), at("17"), at("18446744073709551615")), (Ok(0), Ok(17), Ok(u64::MAX)));
        for wrong in ["", "+17", "017", "-1", "1.0", " 17", "18446744073709551616"] {
            assert_eq!(at(wrong), Err("header_invalid"), "{wrong}");
        }
    }
}
