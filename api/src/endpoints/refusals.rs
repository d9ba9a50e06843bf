//! Why a request was refused: the event that counts it names it, and what the policy looked at is read again from the log.
//!
//! Not here: what was allowed, and the route for both (`decisions`).

use envforge_domain::access::{Action, Request, Resource};
use envforge_domain::commit::{Actor, Position, StreamKind, Surface};
use envforge_domain::denial::{DenialEvent, DeniedAttempts, RefusedRequest};
use envforge_domain::dev_link::DevLinkEvent;
use envforge_domain::event::Event;
use envforge_domain::ids::{CorrelationId, LinkId};
use envforge_domain::time::{Millis, UnixMillis};
use envforge_eventlog::{Filter, SharedLog};
use envforge_projections::refused::{self, GrantThen, LinkThen, LookedAt, TokenThen};
use envforge_projections::sql::{AuditFilter, AuditRow, Limit, Outcome};
use serde::Serialize;
use utoipa::ToSchema;

use super::authz::WeighedShown;
use crate::instant::Instant;
use crate::problem::Problem;

/// A refusal stands in the log and in the audit after this time at the latest, where nothing is wrong.
const RECORDED_WITHIN: Millis = Millis::from_secs(15);
/// Clocks of two processes agree as well as this.
const CLOCKS_DIFFER: Millis = Millis::from_secs(10);
/// Attempts on a link that goes on being attacked are counted together for as long as this.
const COUNTED_FOR: Millis = Millis::from_hours(1);

/// A refused request, and what the policy looked at.
#[derive(Serialize, ToSchema)]
pub(super) struct Refused {
    /// Position of the event that counts it.
    position: u64,
    at: Instant,
    /// Who was refused: `user`, `service_token`, `link_visitor`, `agent` or `anonymous`.
    actor_kind: String,
    actor: Option<String>,
    surface: String,
    /// The row of the policy; `authenticate` where somebody got no further than signing in.
    action: String,
    resource: Option<String>,
    /// Code of the refusal.
    reason: String,
    /// The refusal in words, where the policy as it is today says the same.
    detail: Option<String>,
    /// Equal attempts that the event counts, this one included.
    attempts: u64,
    /// The rights were those of this position, and so are the following ones.
    facts_at: u64,
    /// The roles that may do this at all.
    roles: Vec<&'static str>,
    /// Where roles count for it.
    surfaces: Vec<&'static str>,
    /// What the person held; of a token or link, the person on whose right it stood.
    grants: Vec<WeighedShown>,
    /// Position of the event that made that person a member.
    member_since: Option<u64>,
    /// Position of the event that had last changed the organization's policy.
    policy_at: Option<u64>,
    service_token: Option<RefusedToken>,
    link: Option<RefusedLink>,
}

#[derive(Serialize, ToSchema)]
struct RefusedToken {
    id: String,
    created_by: String,
    /// Position of the event that made it.
    made_at: u64,
}

/// A link as it was, with the positions of the events that say so.
#[derive(Serialize, ToSchema)]
struct RefusedLink {
    id: String,
    issued_by: String,
    issued_at: u64,
    families: Vec<&'static str>,
    families_at: u64,
    expires: Instant,
    expires_at: u64,
    ended_at: Option<u64>,
}

/// A kind of attempts, by whichever event counts them.
struct Kind {
    actor: Actor,
    action: Option<Action>,
    resource: Option<Resource>,
    surface: Surface,
}

/// What of an event counts the request. `None`: not this row.
fn of_event(event: &Event, request: CorrelationId, row: &AuditRow) -> Option<(Kind, RefusedRequest)> {
    let named = |requests: &[RefusedRequest]| requests.iter().find(|refused| refused.request == request).copied();
    match event {
        Event::Denial(DenialEvent::Recorded { attempts }) => attempts.iter().find_map(|attempts| {
            let DeniedAttempts { actor, action, surface, resource, code, requests, .. } = attempts;
            let same = *resource == row.subject && *action == row.event_type;
            let same = same && matches!(&row.outcome, Outcome::Denied { code: of_row, .. } if of_row == code);
            let refused = named(requests).filter(|_| same)?;
            let kind = Kind {
                actor: *actor,
                action: Action::from_token(action),
                resource: resource.as_deref().and_then(|id| resource_of(id, row)),
                surface: *surface,
            };
            Some((kind, refused))
        }),
        Event::DevLink(DevLinkEvent::AttemptsBlocked { attempts, .. }) => attempts.iter().find_map(|attempts| {
            let refused = named(&attempts.requests)?;
            let link = row.link?;
            let kind = Kind {
                actor: Actor::LinkVisitor { link, session: None },
                action: Some(Action::AppForward),
                resource: resource_of(&link.to_string(), row),
                surface: Surface::Gateway,
            };
            Some((kind, refused))
        }),
        _ => None,
    }
}

/// What a row is about, where the audit knows its place.
fn resource_of(id: &str, row: &AuditRow) -> Option<Resource> {
    let org = row.org;
    Some(match id.split_once('_')?.0 {
        "org" => Resource::Organization(id.parse().ok()?),
        "usr" => Resource::User { org, user: id.parse().ok()? },
        "prj" => Resource::Project { org, project: id.parse().ok()? },
        "wsp" => Resource::Workspace { org, project: row.project?, workspace: id.parse().ok()? },
        "lnk" => {
            let link: LinkId = id.parse().ok()?;
            Resource::Link { org, project: row.project?, workspace: row.workspace?, link }
        }
        _ => return None,
    })
}

/// The refusal of one request, from the row of the audit that names it.
pub(super) async fn explain(
    log: &SharedLog,
    request: CorrelationId,
    row: &AuditRow,
) -> Result<Option<Refused>, Problem> {
    let Outcome::Denied { code, count, .. } = &row.outcome else { return Ok(None) };
    let before = Position::new(row.cursor.position.get().saturating_sub(1));
    let filter = Filter { org: Some(row.org), kinds: vec![StreamKind::Denial, StreamKind::DevLink] };
    let page = log.read(before, 1, &filter).await?;
    let commit = page.commits.iter().find(|recorded| recorded.position == row.cursor.position);
    let events = commit.into_iter().flat_map(|recorded| &recorded.commit.events);
    let Some((kind, refused)) = events.filter_map(|event| of_event(event, request, row)).next() else {
        return Ok(None);
    };
    let Kind { actor, action, resource, surface } = kind;
    let looked_at = match (actor, action, resource) {
        (Actor::LinkVisitor { link, .. }, ..) => {
            refused::link_looked_at(log, row.org, link, refused.position, refused.at).await?
        }
        (_, Some(action), Some(resource)) => {
            let asked = Request { actor, action, resource, surface, now: refused.at };
            let session_live = code != "session_ended";
            refused::looked_at(log, &asked, refused.position, session_live).await?
        }
        _ => LookedAt::default(),
    };
    let LookedAt { denial, grants, member_since, policy_at, service_token, link } = looked_at;
    let rows = action.map(Action::row);
    let of_visitor = matches!(actor, Actor::LinkVisitor { .. });
    Ok(Some(Refused {
        position: row.cursor.position.get(),
        at: refused.at.into(),
        actor_kind: if of_visitor { "link_visitor".to_owned() } else { row.actor_kind.clone() },
        actor: row.link.filter(|_| of_visitor).map(|link| link.to_string()).or_else(|| row.actor_id.clone()),
        surface: surface.token().to_owned(),
        action: action.map_or_else(|| row.event_type.clone(), |action| action.token().to_owned()),
        resource: row.subject.clone(),
        reason: code.clone(),
        detail: denial.filter(|denial| denial.code() == code).map(|denial| denial.to_string()),
        attempts: *count,
        facts_at: refused.position.get(),
        roles: rows.iter().flat_map(|row| row.roles).map(|role| role.token()).collect(),
        surfaces: rows.iter().flat_map(|row| row.surfaces).map(|surface| surface.token()).collect(),
        grants: grants.into_iter().map(WeighedShown::from).collect(),
        member_since: member_since.map(Position::get),
        policy_at: policy_at.map(Position::get),
        service_token: service_token.map(RefusedToken::from),
        link: link.map(RefusedLink::from),
    }))
}

impl From<GrantThen> for WeighedShown {
    fn from(GrantThen { grant, short_of, given_at, joined_at }: GrantThen) -> Self {
        Self {
            grant: grant.into(),
            short_of: short_of.map(|short_of| short_of.token()),
            given_at: Some(given_at.get()),
            joined_at: joined_at.map(Position::get),
        }
    }
}

impl From<TokenThen> for RefusedToken {
    fn from(TokenThen { token, created_by, made_at }: TokenThen) -> Self {
        Self { id: token.to_string(), created_by: created_by.to_string(), made_at: made_at.get() }
    }
}

impl From<LinkThen> for RefusedLink {
    fn from(link: LinkThen) -> Self {
        let ((families, families_at), (expires, expires_at)) = (link.families, link.expires_at);
        Self {
            id: link.link.to_string(),
            issued_by: link.issued_by.to_string(),
            issued_at: link.issued_at.get(),
            families: families.iter().map(|family| family.token()).collect(),
            families_at: families_at.get(),
            expires: expires.into(),
            expires_at: expires_at.get(),
            ended_at: link.ended_at.map(Position::get),
        }
    }
}

/// Why nothing is known of a request. Its id says when it came.
pub(super) struct Unknown {
    request: CorrelationId,
    came_at: Option<UnixMillis>,
    now: UnixMillis,
}

impl Unknown {
    pub(super) fn new(request: CorrelationId, now: UnixMillis) -> Self {
        let uuid = request.as_uuid();
        let came_at = (uuid.get_version_num() == 7).then(|| UnixMillis::new((uuid.as_u128() >> 80) as u64));
        let came_at = came_at.filter(|at| *at <= now.plus(CLOCKS_DIFFER));
        Self { request, came_at, now }
    }

    /// The rows of refusals in which it could have been counted without its id, if it was refused.
    pub(super) fn could_be_in(&self) -> Option<(AuditFilter, Limit)> {
        let came_at = self.came_at?;
        let from = UnixMillis::new(came_at.get().saturating_sub(CLOCKS_DIFFER.get()));
        let to = came_at.plus(COUNTED_FOR).plus(CLOCKS_DIFFER);
        let filter = AuditFilter { denied: Some(true), from: Some(from), to: Some(to), ..AuditFilter::default() };
        Some((filter, Limit::MAX))
    }

    /// `rows`: those.
    pub(super) fn problem(&self, rows: &[AuditRow]) -> Problem {
        let Self { request, came_at, now } = *self;
        let counted: u64 = rows.iter().filter_map(|row| self.left_out(row)).sum();
        let problem =
            |why_not: &str, detail: String| Problem::new("request_not_recorded", detail).with("why_not", why_not);
        if came_at.is_some_and(|at| now.since(at) < RECORDED_WITHIN) {
            let detail = format!("{request} came a moment ago; refusals are recorded within {RECORDED_WITHIN}.");
            return problem("too_recent", detail).retry_after_s(5);
        }
        if counted > 0 {
            let detail = format!(
                "Nothing is known of {request} by its id. {counted} requests that were refused here at about that time were \
                 only counted: it may be one of them."
            );
            return problem("over_limit", detail).with("counted", counted);
        }
        let detail = format!(
            "{request} changed nothing here and was not refused by this organization's rights. A request that nobody signed, and \
             one whose token or session was not known, belongs to no organization: the operator's metrics count it."
        );
        problem("unknown", detail)
    }

    /// Requests that a row counts without their ids, where this one could be among them.
    fn left_out(&self, row: &AuditRow) -> Option<u64> {
        let Outcome::Denied { count, requests, .. } = &row.outcome else { return None };
        let of_link = row.event_type.starts_with("dev_link.");
        let soon = row.recorded_at <= self.came_at?.plus(RECORDED_WITHIN).plus(CLOCKS_DIFFER);
        (of_link || soon).then(|| count.saturating_sub(requests.len() as u64))
    }
}
