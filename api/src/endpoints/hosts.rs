//! Hosts that organizations add: enrolments for their agents, names and states, draining and revoking.
//!
//! Not here: machines and addresses, which are for nobody's screen (SPEC, rule 7), and enrolling itself, which agents do elsewhere.

use axum::extract::State;
use envforge_commands::{Commands, hosts};
use envforge_domain::access::{Action, Permit, Resource};
use envforge_domain::aggregate::Aggregate as _;
use envforge_domain::enrolment::EnrolmentToken;
use envforge_domain::host::{Host, HostCommand};
use envforge_domain::ids::{HostId, OrgId};
use envforge_domain::limits::ENROLMENT_LIFETIME_DEFAULT;
use envforge_domain::slug::HostName;
use envforge_domain::time::Millis;
use envforge_identity::randomness::Randomness;
use envforge_projections::placement::{HostPhase, NamedHost};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::has_access;
use crate::access::{Access, Caller, act};
use crate::config::AgentsAt;
use crate::disclosed::Disclosed;
use crate::instant::Instant;
use crate::page::{Page, Path};
use crate::problem::Problem;
use crate::reads::{AtLeast, Reads};
use crate::request_body::{Empty, Json};
use crate::revocation::{Receipt, Revocations};
use crate::write::{Write, Written};

#[derive(Clone)]
pub(crate) struct Hosts {
    pub(crate) access: Access,
    pub(crate) commands: Commands,
    pub(crate) reads: Reads,
    pub(crate) agents: Option<AgentsAt>,
    pub(crate) revocations: Revocations,
}

has_access!(Hosts);

pub(crate) fn routes() -> OpenApiRouter<Hosts> {
    OpenApiRouter::new().routes(routes!(list, enrol)).routes(routes!(drain)).routes(routes!(revoke))
}

/// A host to add, or one whose agent has to enrol again.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewEnrolment {
    /// Lower-case letters, digits and single hyphens. The name of a host that is there is asked for to have it enrol again.
    name: String,
    /// How long the token may be used, once: 30 seconds to 24 hours; 15 minutes where it is left out.
    expires_in_seconds: Option<u64>,
}

#[derive(Serialize, ToSchema)]
struct HostShown {
    id: String,
    name: String,
    /// `expected` until its agent has enrolled, then `active`, `draining`, `retired` or `revoked`.
    state: String,
    /// How many workspaces hold room on it.
    workspaces: usize,
    /// Until when its enrolment may be used, or when its agent's certificate ends as recorded last.
    until: Instant,
}

/// An enrolment with its token, which is told this once.
#[derive(Serialize, ToSchema)]
struct EnrolmentIssued {
    id: String,
    name: String,
    expires_at: Instant,
    /// Host and port that the agent connects to, where the operator named one.
    control_plane: Option<String>,
    /// Whoever has it becomes this host, once.
    #[schema(value_type = String)]
    token: Disclosed,
}

/// A host that takes nothing new, or is trusted no more.
#[derive(Serialize, ToSchema)]
struct HostTaken {
    id: String,
    /// `draining` or `revoked`.
    state: String,
    /// Runtimes that were ready there and are over with it.
    runtimes: usize,
    receipt: Receipt,
}

/// The hosts that the organization added, with their states. What machine a host is, and where, is told to nobody.
#[utoipa::path(get, path = "/v1/orgs/{org}/hosts", tag = "hosts",
    responses((status = 200, body = Page<HostShown>)), extensions(("x-envforge-action" = json!("host.read"))))]
async fn list(
    State(state): State<Hosts>,
    caller: Caller,
    at: AtLeast,
    Path(org): Path<String>,
) -> Result<axum::Json<Page<HostShown>>, Problem> {
    let org = state.access.org(&org).await?;
    let permit = state.access.permit(&caller, Action::HostRead, Resource::Organization(org)).await?;
    let items = state.reads.hosts(&permit, at).await?.into_iter().map(|(id, host)| shown(id, host)).collect();
    Ok(axum::Json(Page { items, next: None }))
}

/// Let an agent enrol as a host of the organization, once. For a name that is there, its agent enrols again and the certificates that it
/// had count for nothing from then on. The token is answered once.
#[utoipa::path(post, path = "/v1/orgs/{org}/hosts", tag = "hosts", request_body = NewEnrolment,
    responses((status = 201, body = EnrolmentIssued)), extensions(("x-envforge-action" = json!("host.enrol"))))]
async fn enrol(
    State(state): State<Hosts>,
    Path(org): Path<String>,
    request: Write<Json<NewEnrolment>>,
) -> Result<Written<EnrolmentIssued>, Problem> {
    let Write { caller, body: Json(new), context } = request;
    let org = state.access.org(&org).await?;
    let name: HostName = new.name.parse().map_err(|error| Problem::value("name", error))?;
    let host = state.by_name(org, &name).unwrap_or_else(|| HostId::from_uuid(context.new_id()));
    let permit = state.access.permit(&caller, Action::HostEnrol, Resource::Host { org, host }).await?;
    let agents = state.agents.as_ref().ok_or_else(|| {
        let what = "This installation has no authority for agents yet: run `envforge setup` once more, it makes the missing keys.";
        Problem::new("agents_not_set_up", what)
    })?;
    let mut secret = [0; 32];
    Randomness.fill(&mut secret).map_err(|error| Problem::internal(error.to_string()))?;
    let token = EnrolmentToken::new(org, host, agents.authority, &secret);
    let lifetime = new.expires_in_seconds.map_or(ENROLMENT_LIFETIME_DEFAULT, Millis::from_secs);
    let digest = token.digest();
    let done = act!(
        state.access,
        &caller,
        permit,
        hosts::issue_enrolment(&state.commands, permit, &context, host, name.clone(), digest, lifetime)
    );
    if done.duplicate {
        let what = "This request was answered before, with a token that is told once: send it anew, without the key, for another.";
        return Err(Problem::new("enrolment_told", what));
    }
    let issued = EnrolmentIssued {
        id: host.to_string(),
        name: name.to_string(),
        expires_at: Instant(context.now.plus(lifetime)),
        control_plane: agents.address.clone(),
        token: Disclosed(token.text().clone()),
    };
    Ok(Written::created(&done, issued))
}

/// Have nothing more placed on a host. What is awake there stays until it sleeps.
#[utoipa::path(post, path = "/v1/orgs/{org}/hosts/{host}/drain", tag = "hosts",
    responses((status = 200, body = HostTaken)), extensions(("x-envforge-action" = json!("host.drain"))))]
async fn drain(
    State(state): State<Hosts>,
    Path(of): Path<(String, String)>,
    request: Write<Empty>,
) -> Result<Written<HostTaken>, Problem> {
    state.take_away(of, request, HostCommand::Drain).await
}

/// Trust a host's agent no more, at once: its connection is closed, and it may not come back. No gateway leads anybody there from the
/// answer on, and what was open to it is closed. What was awake there counts as lost at its last word, and may wake on another host.
#[utoipa::path(delete, path = "/v1/orgs/{org}/hosts/{host}", tag = "hosts",
    responses((status = 200, body = HostTaken)), extensions(("x-envforge-action" = json!("host.revoke"))))]
async fn revoke(
    State(state): State<Hosts>,
    Path(of): Path<(String, String)>,
    request: Write<Empty>,
) -> Result<Written<HostTaken>, Problem> {
    state.take_away(of, request, HostCommand::Revoke).await
}

fn shown(id: HostId, host: NamedHost) -> HostShown {
    HostShown {
        id: id.to_string(),
        name: host.name.to_string(),
        state: host.phase.token().to_owned(),
        workspaces: host.workspaces,
        until: Instant(host.until),
    }
}

impl Hosts {
    /// Drains or revokes; once no gateway leads anybody where nobody may be led any more.
    async fn take_away(
        &self,
        (org, host): (String, String),
        request: Write<Empty>,
        command: HostCommand,
    ) -> Result<Written<HostTaken>, Problem> {
        let Write { caller, context, .. } = request;
        let (org, host) = self.named(&org, &host).await?;
        let action = Host::action_of(&command);
        let permit = self.access.permit(&caller, action, Resource::Host { org, host }).await?;
        let changing = Revocations::changing();
        let done = act!(self.access, &caller, permit, hosts::execute(&self.commands, permit, &context, host, &command));
        let on = Resource::Organization(org);
        let receipt = self.revocations.changed(&caller, on, changing, &done, &context).await;
        let runtimes = self.access.hot().gateway.over_with(&done.commits()).runtimes;
        let phase = if command == HostCommand::Revoke { HostPhase::Revoked } else { HostPhase::Draining };
        let (id, state) = (host.to_string(), phase.token().to_owned());
        Ok(Written::ok(&done, HostTaken { id, state, runtimes, receipt }))
    }

    /// A host by id or name. One that does not exist has a random id: whoever may not know gets the same denial.
    async fn named(&self, org: &str, host: &str) -> Result<(OrgId, HostId), Problem> {
        let org = self.access.org(org).await?;
        if let Ok(host) = host.parse() {
            return Ok((org, host));
        }
        let named = host.parse::<HostName>().ok().and_then(|name| self.by_name(org, &name));
        let unknown = || Randomness.uuid_v7(envforge_domain::time::UnixMillis::EPOCH).map(HostId::from_uuid);
        match named {
            Some(host) => Ok((org, host)),
            None => Ok((org, unknown().map_err(|error| Problem::internal(error.to_string()))?)),
        }
    }

    /// The host of that name that is not over.
    fn by_name(&self, org: OrgId, name: &HostName) -> Option<HostId> {
        let over = |phase| matches!(phase, HostPhase::Retired | HostPhase::Revoked);
        let named = self.access.hot().placement.named(org);
        named.into_iter().find(|(_, host)| host.name == *name && !over(host.phase)).map(|(id, _)| id)
    }
}

impl Reads {
    /// The hosts that an organization added.
    pub(crate) async fn hosts(&self, permit: &Permit, at: AtLeast) -> Result<Vec<(HostId, NamedHost)>, Problem> {
        self.hot_at(at).await?;
        Ok(self.hot().placement.named(permit.org()))
    }
}
