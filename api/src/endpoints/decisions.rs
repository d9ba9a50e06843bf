//! Why a request was allowed or refused: the records that stand beside its events, with the events behind the right; and the
//! refusals that name it (`refusals`).
//!
//! Not here: what somebody may do now (`authz`).

use axum::extract::State;
use envforge_domain::access::{Action, Basis, Resource};
use envforge_domain::commit::{Position, StreamKind};
use envforge_domain::decision::DecisionEvent;
use envforge_domain::event::Event;
use envforge_domain::ids::CorrelationId;
use envforge_eventlog::{Filter, SharedLog};
use envforge_projections::rights_history::{RightsHistory, Until};
use envforge_projections::sql::{AuditFilter, AuditRow, Direction, Limit, Outcome};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::authz::Rule;
use super::has_access;
use super::refusals::{self, Refused, Unknown};
use crate::access::{Access, Caller};
use crate::instant::Instant;
use crate::page::Path;
use crate::problem::Problem;
use crate::reads::{AtLeast, Reads};

/// Rows of one request that are explained; a request has a few.
const ROWS_MAX: u64 = 50;
/// Positions behind an event within which its record stands: the steps of its append, and its guards.
const BEHIND_MAX: usize = 24;

#[derive(Clone)]
pub(crate) struct Decisions {
    pub(crate) access: Access,
    pub(crate) reads: Reads,
    pub(crate) log: SharedLog,
}

has_access!(Decisions);

pub(crate) fn routes() -> OpenApiRouter<Decisions> {
    OpenApiRouter::new().routes(routes!(why))
}

/// What a request did and why it was allowed to, or why it was refused.
#[derive(Serialize, ToSchema)]
struct Why {
    request: String,
    events: Vec<WhyEvent>,
    /// One for each question to the policy that was answered with no.
    refusals: Vec<Refused>,
}

#[derive(Serialize, ToSchema)]
struct WhyEvent {
    position: u64,
    recorded_at: Instant,
    /// Who did it: `user`, `service_token`, `link_visitor`, `agent` or `system`.
    actor_kind: String,
    actor: Option<String>,
    #[serde(rename = "type")]
    event_type: String,
    subject: Option<String>,
    summary: String,
    /// `null` where nobody's rights were asked for: EnvForge's own components and agents; and beside an append that
    /// held its rights by its own streams.
    decision: Option<Decided>,
}

/// The record of a decision.
#[derive(Serialize, ToSchema)]
struct Decided {
    position: u64,
    /// What it was about.
    resource: String,
    rule: Rule,
    /// Position of the event that gave the grant.
    given_at: Option<u64>,
    /// The rights were those of this position.
    facts_at: u64,
    /// None of these had moved when the events were stored.
    rests_on: Vec<RestsOn>,
}

#[derive(Serialize, ToSchema)]
struct RestsOn {
    /// `<org>.<kind>.<key>`.
    stream: String,
    /// Its last position then; 0: it had none.
    last: u64,
}

/// Explain why a request was allowed or refused: the rule, the grants and the positions of the events behind them. `request` is
/// the `EnvForge-Request` of its answer. A refusal is known some seconds later; of a flood of them, not each.
#[utoipa::path(get, path = "/v1/orgs/{org}/why/{request}", tag = "authorization",
    responses((status = 200, body = Why)), extensions(("x-envforge-action" = json!("audit.read"))))]
async fn why(
    State(state): State<Decisions>,
    caller: Caller,
    Path((org, request)): Path<(String, String)>,
    at: AtLeast,
) -> Result<axum::Json<Why>, Problem> {
    let org = state.access.org(&org).await?;
    let permit = state.access.permit(&caller, Action::AuditRead, Resource::Organization(org)).await?;
    let correlation: CorrelationId = request.parse().map_err(|_| Problem::not_found())?;
    let filter = AuditFilter { correlation: Some(correlation), ..AuditFilter::default() };
    let limit = Limit::new(ROWS_MAX).unwrap_or_default();
    let rows = state.reads.audit(&permit, at, &filter, Direction::OldestFirst, None, limit).await?;
    let mut events = Vec::with_capacity(rows.items.len());
    let mut refused = Vec::new();
    let mut rights = None;
    for row in rows.items {
        if row.outcome.names(correlation) {
            refused.extend(refusals::explain(&state.log, correlation, &row).await?);
        }
        if row.outcome != Outcome::Done {
            continue;
        }
        let decision = state.decision(&row, &mut rights).await?;
        events.push(WhyEvent {
            position: row.cursor.position.get(),
            recorded_at: row.recorded_at.into(),
            actor_kind: row.actor_kind,
            actor: row.actor_id,
            event_type: row.event_type,
            subject: row.subject,
            summary: row.summary,
            decision,
        });
    }
    if events.is_empty() && refused.is_empty() {
        let unknown = Unknown::new(correlation, caller.arrival.now);
        let rows = match unknown.could_be_in() {
            Some((filter, limit)) => {
                state.reads.audit(&permit, at, &filter, Direction::OldestFirst, None, limit).await?.items
            }
            None => Vec::new(),
        };
        return Err(unknown.problem(&rows));
    }
    Ok(axum::Json(Why { request, events, refusals: refused }))
}

impl Decisions {
    /// The record that was stored in one append with an event. It stands right behind the append's own events.
    ///
    /// `known`: rights that were read already, and of which position; what a request does in one go rests on the same ones.
    async fn decision(
        &self,
        row: &AuditRow,
        known: &mut Option<(Position, RightsHistory)>,
    ) -> Result<Option<Decided>, Problem> {
        let filter = Filter { org: Some(row.org), kinds: vec![StreamKind::Decision] };
        let page = self.log.read(row.cursor.position, BEHIND_MAX, &filter).await?;
        let last = row.cursor.position.get() + BEHIND_MAX as u64;
        let near = page.commits.iter().take_while(|recorded| recorded.position.get() <= last);
        let of_command = near.filter(|recorded| recorded.commit.command == row.command);
        for recorded in of_command {
            for event in &recorded.commit.events {
                let Event::Decision(DecisionEvent::Recorded { action, resource, basis, position, rests_on }) = event
                else {
                    continue;
                };
                let given_at = match basis {
                    Basis::Grant(grant) => {
                        let rights = match known.take().filter(|(at, _)| at == position) {
                            Some((_, rights)) => rights,
                            None => RightsHistory::read(&self.log, row.org, Until::Position(*position)).await?,
                        };
                        let (_, rights) = known.insert((*position, rights));
                        rights.given_at(grant).map(Position::get)
                    }
                    Basis::Principal(_) => None,
                };
                return Ok(Some(Decided {
                    position: recorded.position.get(),
                    resource: resource.clone(),
                    rule: Rule::of(action.clone(), *basis),
                    given_at,
                    facts_at: position.get(),
                    rests_on: rests_on
                        .iter()
                        .map(|standing| RestsOn { stream: standing.stream.subject(), last: standing.last.get() })
                        .collect(),
                }));
            }
        }
        Ok(None)
    }
}
