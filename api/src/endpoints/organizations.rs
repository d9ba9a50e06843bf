//! Organizations and their policy.

use axum::extract::State;
use envforge_commands::{CommandError, Commands, organizations};
use envforge_domain::access::{Action, Resource, Role, Roles};
use envforge_domain::commit::StreamId;
use envforge_domain::dev_link::RouteFamilies;
use envforge_domain::event::Event;
use envforge_domain::ids::OrgId;
use envforge_domain::organization::{
    Organization as Aggregate, OrganizationCommand, OrganizationEvent, OrganizationPolicy, OrganizationRefusal,
};
use envforge_domain::root_window::RootPolicy;
use envforge_domain::time::Millis;
use envforge_projections::sql::OrganizationRecord;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::dry_run::{self, DryRun};
use super::has_access;
use super::links::{families_of, family_tokens};
use crate::access::{Access, Caller, act};
use crate::instant::Instant;
use crate::page::{Page, Path};
use crate::problem::Problem;
use crate::reads::{AtLeast, Reads};
use crate::request_body::Json;
use crate::revocation::{Receipt, Revocations};
use crate::write::{Write, Written};

#[derive(Clone)]
pub(crate) struct Organizations {
    pub(crate) access: Access,
    pub(crate) commands: Commands,
    pub(crate) reads: Reads,
    pub(crate) revocations: Revocations,
}

has_access!(Organizations);

pub(crate) fn routes() -> OpenApiRouter<Organizations> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(get))
        .routes(routes!(change_policy))
        .routes(routes!(dry_run_policy))
}

#[derive(Serialize, ToSchema)]
pub(crate) struct Organization {
    id: String,
    slug: String,
    name: String,
    policy: Policy,
    created_at: Instant,
}

/// What the organization allows at most.
#[derive(Serialize, ToSchema)]
struct Policy {
    link_lifetime_max_seconds: u64,
    /// Route families that links may open.
    link_families: Vec<String>,
    /// Roles that give links.
    link_issuers: Vec<String>,
    idle_sleep_max_seconds: u64,
    keep_awake_max_seconds: u64,
    /// How long somebody stays signed in.
    session_lifetime_max_seconds: u64,
    /// Issuers of the identity providers whose users may be signed in, `local` for accounts with a password here. None: all.
    identity_providers: Vec<String>,
    /// How long service tokens live at most; 0: there are none.
    service_token_lifetime_max_seconds: u64,
    /// `disabled`, `break_glass` or `workspace_elevation` (docs/root.md).
    root: &'static str,
    /// How long a root window is open at most.
    root_window_max_seconds: u64,
}

impl From<OrganizationPolicy> for Policy {
    fn from(policy: OrganizationPolicy) -> Self {
        Self {
            link_lifetime_max_seconds: policy.link_lifetime_max.as_secs(),
            link_families: family_tokens(policy.link_families),
            idle_sleep_max_seconds: policy.idle_sleep_max.as_secs(),
            keep_awake_max_seconds: policy.keep_awake_max.as_secs(),
            link_issuers: policy.link_issuers.iter().map(|role| role.token().to_owned()).collect(),
            session_lifetime_max_seconds: policy.session_lifetime_max.as_secs(),
            identity_providers: policy.identity_providers.into_iter().collect(),
            service_token_lifetime_max_seconds: policy.service_token_lifetime_max.as_secs(),
            root: policy.root.token(),
            root_window_max_seconds: policy.root_window_max.as_secs(),
        }
    }
}

impl From<OrganizationRecord> for Organization {
    fn from(record: OrganizationRecord) -> Self {
        Self {
            id: record.id.to_string(),
            slug: record.slug.to_string(),
            name: record.name,
            policy: record.policy.into(),
            created_at: record.created_at.into(),
        }
    }
}

/// The settings to change; the others stay.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PolicyChange {
    link_lifetime_max_seconds: Option<u64>,
    link_families: Option<Vec<String>>,
    /// `owner`, `admin`, `developer` and `mod` can give links; an empty list: nobody.
    link_issuers: Option<Vec<String>>,
    idle_sleep_max_seconds: Option<u64>,
    keep_awake_max_seconds: Option<u64>,
    session_lifetime_max_seconds: Option<u64>,
    /// `local` or issuers' URLs; an empty list: all.
    identity_providers: Option<Vec<String>>,
    /// At most 365 days; 0: no service tokens.
    service_token_lifetime_max_seconds: Option<u64>,
    /// `disabled`, `break_glass` or `workspace_elevation`. Only an owner lets people come to root, or for longer.
    root: Option<String>,
    /// 1 minute to 8 hours.
    root_window_max_seconds: Option<u64>,
}

/// The policy as it is now, and what tightening it closed.
#[derive(Serialize, ToSchema)]
struct ChangedPolicy {
    #[serde(flatten)]
    policy: Policy,
    receipt: Receipt,
}

/// A change as it was read.
struct Change {
    asked: PolicyChange,
    families: Option<RouteFamilies>,
    issuers: Option<Roles>,
    root: Option<RootPolicy>,
}

impl Change {
    fn read(asked: PolicyChange) -> Result<Self, Problem> {
        let families = asked.link_families.as_ref();
        let families = families.map(|families| families_of("link_families", families)).transpose()?;
        let role = |token: &String| token.parse::<Role>().map_err(|error| Problem::value("link_issuers", error));
        let issuers = asked.link_issuers.as_ref().map(|tokens| tokens.iter().map(role).collect()).transpose()?;
        let policy = |token: &String| {
            let known = RootPolicy::ALL.map(RootPolicy::token).join(", ");
            RootPolicy::from_token(token).ok_or_else(|| Problem::value("root", format!("it is one of {known}")))
        };
        let root = asked.root.as_ref().map(policy).transpose()?;
        Ok(Self { asked, families, issuers, root })
    }

    /// What is left out stays as it is.
    fn of(&self, current: OrganizationPolicy) -> OrganizationPolicy {
        let seconds = |seconds: Option<u64>, current: Millis| seconds.map_or(current, Millis::from_secs);
        let asked = &self.asked;
        OrganizationPolicy {
            link_lifetime_max: seconds(asked.link_lifetime_max_seconds, current.link_lifetime_max),
            link_families: self.families.unwrap_or(current.link_families),
            link_issuers: self.issuers.unwrap_or(current.link_issuers),
            idle_sleep_max: seconds(asked.idle_sleep_max_seconds, current.idle_sleep_max),
            keep_awake_max: seconds(asked.keep_awake_max_seconds, current.keep_awake_max),
            session_lifetime_max: seconds(asked.session_lifetime_max_seconds, current.session_lifetime_max),
            identity_providers: match &asked.identity_providers {
                Some(providers) => providers.iter().cloned().collect(),
                None => current.identity_providers,
            },
            service_token_lifetime_max: seconds(
                asked.service_token_lifetime_max_seconds,
                current.service_token_lifetime_max,
            ),
            root: self.root.unwrap_or(current.root),
            root_window_max: seconds(asked.root_window_max_seconds, current.root_window_max),
        }
    }
}

/// The organizations to which the caller belongs.
#[utoipa::path(get, path = "/v1/orgs", tag = "organizations", responses((status = 200, body = Page<Organization>)),
    extensions(("x-envforge-action" = json!("organization.read"))))]
async fn list(
    State(state): State<Organizations>,
    caller: Caller,
    at: AtLeast,
) -> Result<axum::Json<Page<Organization>>, Problem> {
    // A session is bound to one organization (SPEC, "Identity").
    let permit = state.access.permit(&caller, Action::OrganizationRead, Resource::Organization(caller.org)).await?;
    let record = state.reads.organization(&permit, at).await?;
    Ok(axum::Json(Page { items: vec![record.into()], next: None }))
}

/// One organization.
#[utoipa::path(get, path = "/v1/orgs/{org}", tag = "organizations", responses((status = 200, body = Organization)),
    extensions(("x-envforge-action" = json!("organization.read"))))]
async fn get(
    State(state): State<Organizations>,
    caller: Caller,
    Path(org): Path<String>,
    at: AtLeast,
) -> Result<axum::Json<Organization>, Problem> {
    let org = state.access.org(&org).await?;
    let permit = state.access.permit(&caller, Action::OrganizationRead, Resource::Organization(org)).await?;
    Ok(axum::Json(state.reads.organization(&permit, at).await?.into()))
}

/// Change what the organization allows. What is beyond it is over at once: links, what they have open, sessions.
#[utoipa::path(patch, path = "/v1/orgs/{org}/policy", tag = "organizations", request_body = PolicyChange,
    responses((status = 200, body = ChangedPolicy)), extensions(("x-envforge-action" = json!("organization.change_policy"))))]
async fn change_policy(
    State(state): State<Organizations>,
    Path(org): Path<String>,
    request: Write<Json<PolicyChange>>,
) -> Result<Written<ChangedPolicy>, Problem> {
    let Write { caller, body: Json(change), context } = request;
    let org = state.access.org(&org).await?;
    let resource = Resource::Organization(org);
    let permit = state.access.permit(&caller, Action::OrganizationChangePolicy, resource).await?;
    let change = Change::read(change)?;
    let asked = state.policy_command(&caller, org, &change).await?;
    let changing = state.revocations.changing_organization(org, &asked, context.now).await?;
    // What is left out stays as it is, also where somebody else changed it a moment ago.
    let (wanted, done) = act!(state.access, &caller, permit, async {
        let command = state.policy_command(&caller, org, &change).await?;
        let done = organizations::change(&state.commands, permit, &context, &command).await?;
        let OrganizationCommand::ChangePolicy { policy, .. } = command else {
            return Err(CommandError::Refused(Box::new(OrganizationRefusal::Unknown)));
        };
        Ok((policy, done))
    });
    let recorded = done.events.iter().find_map(|event| match event {
        Event::Organization(OrganizationEvent::PolicyChanged { policy }) => Some(policy.clone()),
        _ => None,
    });
    let receipt = state.revocations.changed(&caller, resource, changing, &done, &context).await;
    Ok(Written::ok(&done, ChangedPolicy { policy: recorded.unwrap_or(wanted).into(), receipt }))
}

/// What a change of the policy would end. Nothing is changed.
#[utoipa::path(post, path = "/v1/orgs/{org}/policy/dry-run", tag = "organizations", request_body = PolicyChange,
    responses((status = 200, body = DryRun)), extensions(("x-envforge-action" = json!("organization.change_policy"))))]
async fn dry_run_policy(
    State(state): State<Organizations>,
    caller: Caller,
    Path(org): Path<String>,
    Json(change): Json<PolicyChange>,
) -> Result<axum::Json<DryRun>, Problem> {
    let org = state.access.org(&org).await?;
    let resource = Resource::Organization(org);
    let permit = state.access.permit(&caller, Action::OrganizationChangePolicy, resource).await?;
    let command = state.policy_command(&caller, org, &Change::read(change)?).await?;
    Ok(axum::Json(dry_run::of(&state.access, &state.commands, &permit, &command, caller.arrival.now).await?))
}

impl Organizations {
    async fn policy_command(
        &self,
        caller: &Caller,
        org: OrgId,
        change: &Change,
    ) -> Result<OrganizationCommand, CommandError> {
        match self.commands.load::<Aggregate>(&StreamId::organization(org)).await?.state {
            Aggregate::Active(organization) => Ok(OrganizationCommand::ChangePolicy {
                by: caller.actor(),
                now: caller.arrival.now,
                policy: change.of(organization.policy),
                provider: self.access.hot().authorization.provider_of(caller.user),
            }),
            Aggregate::Unknown => Err(CommandError::Refused(Box::new(OrganizationRefusal::Unknown))),
        }
    }
}
