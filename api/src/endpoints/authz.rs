//! Whether somebody else may do something, asked by another service; and why.
//!
//! The answers are the one policy's, on rights as fresh as the log's leader has them, and nothing can be done with them. Not here: the
//! rights of former times (`access_then`) and what was decided about a request (`decisions`).

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use envforge_domain::access::{Action, Basis, Denial, Grant, Grantee, Resource};
use envforge_domain::aggregate::Refusal as _;
use envforge_domain::commit::{Actor, Position, Surface};
use envforge_domain::ids::{OrgId, UserId};
use envforge_domain::root_window::RootWindowRefusal;
use envforge_eventlog::SharedLog;
use envforge_projections::authorizer::{Question, Weighed};
use envforge_projections::rights_history::{HistoryError, RightsHistory, Until};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::has_access;
use super::roles::scope_ids;
use crate::access::{Access, Answered, By, Caller};
use crate::instant::Instant;
use crate::problem::Problem;
use crate::request_body::Json;
use crate::write::POSITION_HEADER;

/// Questions of one request.
const CHECKS_MAX: usize = 100;

#[derive(Clone)]
pub(crate) struct Authz {
    pub(crate) access: Access,
    pub(crate) log: SharedLog,
}

has_access!(Authz);

pub(crate) fn routes() -> OpenApiRouter<Authz> {
    OpenApiRouter::new().routes(routes!(check)).routes(routes!(check_batch)).routes(routes!(explain))
}

/// Who wants to do what.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Check {
    subject: Subject,
    /// Of docs/access.md: `runtime.wake`.
    action: String,
    /// `organization`, `project/NAME`, `workspace/NAME`, `link/ID`, `user/ID`, `root_window/ID`, or an id alone.
    resource: String,
    /// Where: `api`, `cli` or `console`; `api` where it is left out.
    surface: Option<String>,
}

/// Exactly one of the two. People are asked about as if they were signed in.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Subject {
    /// Id of a user.
    user: Option<String>,
    /// Id of a service token.
    service_token: Option<String>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Checks {
    /// 1 to 100.
    checks: Vec<Check>,
}

/// Whether somebody may, and which line of the policy says so.
#[derive(Serialize, ToSchema)]
struct Checked {
    allowed: bool,
    /// Code of the refusal.
    reason: Option<&'static str>,
    /// The refusal in words.
    detail: Option<String>,
    rule: Option<Rule>,
    /// On what else it depends whose root window somebody may decide on, where none was named.
    condition: Option<&'static str>,
    /// The rights were those of this position of the log, or newer.
    position: u64,
}

/// The line of the policy that allows it.
#[derive(Serialize, ToSchema)]
pub(crate) struct Rule {
    action: String,
    /// `grant`, or whoever may it without a role: `member` on what is their own.
    kind: &'static str,
    grant: Option<GrantShown>,
}

/// A role that somebody holds.
#[derive(Serialize, ToSchema)]
pub(crate) struct GrantShown {
    role: &'static str,
    /// Who holds it.
    user: Option<String>,
    /// The team that holds it.
    team: Option<String>,
    /// The project where it counts; `null` for the whole organization.
    project: Option<String>,
    workspace: Option<String>,
    expires_at: Option<Instant>,
}

#[derive(Serialize, ToSchema)]
struct CheckedAll {
    /// In the order of the questions.
    results: Vec<Checked>,
    position: u64,
}

/// The effective right, with everything that the policy looked at.
#[derive(Serialize, ToSchema)]
struct Explained {
    allowed: bool,
    reason: Option<&'static str>,
    detail: Option<String>,
    rule: Option<Rule>,
    condition: Option<&'static str>,
    /// The roles that may do this at all.
    roles: Vec<&'static str>,
    /// Where roles count for it.
    surfaces: Vec<&'static str>,
    grants: Vec<WeighedShown>,
    /// Position of the event that made the person a member.
    member_since: Option<u64>,
    /// Position of the event that last changed the organization's policy.
    policy_at: Option<u64>,
    position: u64,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct WeighedShown {
    #[serde(flatten)]
    pub(crate) grant: GrantShown,
    /// `null`: it allows it. Else `role`, `place`, `ended`, `link_issuers` or `subject`.
    pub(crate) short_of: Option<&'static str>,
    /// Position of the event that gave it.
    pub(crate) given_at: Option<u64>,
    /// Position of the event that put the person into the team.
    pub(crate) joined_at: Option<u64>,
}

impl Rule {
    pub(crate) fn of(action: String, basis: Basis) -> Self {
        match basis {
            Basis::Grant(grant) => Self { action, kind: "grant", grant: Some(grant.into()) },
            Basis::Principal(principal) => Self { action, kind: principal.token(), grant: None },
        }
    }
}

impl From<Grant> for GrantShown {
    fn from(grant: Grant) -> Self {
        let (project, workspace) = scope_ids(grant.scope);
        let (user, team) = match grant.grantee {
            Grantee::User(user) => (Some(user.to_string()), None),
            Grantee::Team(team) => (None, Some(team.to_string())),
        };
        let expires_at = grant.expires_at.map(Instant);
        Self { role: grant.role.token(), user, team, project, workspace, expires_at }
    }
}

/// Ask whether somebody may do something here. Another service does, with a service token for `authz.check`.
#[utoipa::path(post, path = "/v1/authz/check", tag = "authorization", request_body = Check,
    responses((status = 200, body = Checked)), extensions(("x-envforge-action" = json!("authz.check"))))]
async fn check(State(state): State<Authz>, caller: Caller, Json(check): Json<Check>) -> Result<Response, Problem> {
    let (question, answered) = state.asked(&caller, check).await?;
    Ok(at(answered.answer.position, Checked::of(&question, &answered)))
}

/// Ask up to a hundred such questions at once. All are answered, or none.
#[utoipa::path(post, path = "/v1/authz/check/batch", tag = "authorization", request_body = Checks,
    responses((status = 200, body = CheckedAll)), extensions(("x-envforge-action" = json!("authz.check"))))]
async fn check_batch(
    State(state): State<Authz>,
    caller: Caller,
    Json(Checks { checks }): Json<Checks>,
) -> Result<Response, Problem> {
    if checks.is_empty() || checks.len() > CHECKS_MAX {
        let reason = format!("expected 1 to {CHECKS_MAX} questions, found {}", checks.len());
        return Err(Problem::value("checks", reason).with("max", CHECKS_MAX));
    }
    let mut questions = Vec::with_capacity(checks.len());
    for check in checks {
        questions.push(state.question(&caller, check).await?);
    }
    let mut permitted: Vec<Resource> = Vec::new();
    for question in &questions {
        if permitted.contains(&question.resource) {
            continue;
        }
        // The first makes the view as fresh as the leader; the others are about the same caller's rights.
        if permitted.is_empty() {
            state.access.permit(&caller, Action::AuthzCheck, question.resource).await?;
        } else {
            state.access.permit_still(&caller, Action::AuthzCheck, question.resource, caller.arrival.now)?;
        }
        permitted.push(question.resource);
    }
    state.access.fresh_for(&questions).await?;
    let mut answers = Vec::with_capacity(questions.len());
    for question in &questions {
        answers.push(state.access.answer_about(&caller, question).await?);
    }
    // All rights were at least those of the oldest.
    let position = answers.iter().map(|answered| answered.answer.position).min().unwrap_or(Position::START);
    let results = questions.iter().zip(&answers).map(|(question, answered)| Checked::of(question, answered)).collect();
    Ok(at(position, CheckedAll { results, position: position.get() }))
}

/// Explain what somebody may do: the rule, every grant with what it lacks, and the events behind them. Everybody may ask about
/// themselves.
#[utoipa::path(post, path = "/v1/authz/explain", tag = "authorization", request_body = Check,
    responses((status = 200, body = Explained)), extensions(("x-envforge-action" = json!("authz.check"))))]
async fn explain(State(state): State<Authz>, caller: Caller, Json(check): Json<Check>) -> Result<Response, Problem> {
    let (question, answered) = state.asked(&caller, check).await?;
    let answer = &answered.answer;
    let holder = state.access.holder_of(question.subject);
    let org = question.resource.org();
    let rights = state.rights(org, Until::Position(answer.position)).await?;
    let joined = |grant: &Grant| match (grant.grantee, holder) {
        (Grantee::Team(team), Some(user)) => rights.teams.get(&team)?.get(&user).map(|at| at.get()),
        _ => None,
    };
    let weighed = |Weighed { grant, short_of }: &Weighed| WeighedShown {
        grant: (*grant).into(),
        short_of: short_of.map(|short_of| short_of.token()),
        given_at: rights.given_at(grant).map(Position::get),
        joined_at: joined(grant),
    };
    let Checked { allowed, reason, detail, rule, condition, position } = Checked::of(&question, &answered);
    let row = question.action.row();
    let explained = Explained {
        allowed,
        reason,
        detail,
        rule,
        condition,
        roles: row.roles.iter().map(|role| role.token()).collect(),
        surfaces: row.surfaces.iter().map(|surface| surface.token()).collect(),
        grants: answer.grants.iter().map(weighed).collect(),
        member_since: holder.and_then(|user| rights.members.get(&user)).map(|at| at.get()),
        policy_at: rights.policy.as_ref().map(|(_, at)| at.get()),
        position,
    };
    Ok(at(answer.position, explained))
}

fn at(position: Position, body: impl Serialize) -> Response {
    ([(POSITION_HEADER, http::HeaderValue::from(position.get()))], axum::Json(body)).into_response()
}

impl Checked {
    fn of(question: &Question, Answered { answer, against }: &Answered) -> Self {
        let denial = answer.outcome.as_ref().err();
        let allowed = denial.is_none() && against.is_none();
        Self {
            allowed,
            reason: denial.map(|denial| denial.code()).or(against.as_ref().map(RootWindowRefusal::code)),
            detail: denial.map(Denial::to_string).or(against.as_ref().map(RootWindowRefusal::to_string)),
            rule: answer.outcome.ok().map(|basis| Rule::of(question.action.token().to_owned(), basis)),
            condition: condition(question).filter(|_| allowed),
            position: answer.position.get(),
        }
    }
}

/// What a yes leaves open, as nobody knows whose window it will be about.
fn condition(question: &Question) -> Option<&'static str> {
    match (question.action, question.resource) {
        (_, Resource::RootWindow { .. }) => None,
        (Action::RootApprove | Action::RootReview, _) => Some(
            "not on their own root windows, and not on those of anybody from whom they have account, membership or role; \
             `root_window/ID` answers for one",
        ),
        (Action::RootDeny, _) => Some("not on their own root windows; `root_window/ID` answers for one"),
        _ => None,
    }
}

impl Authz {
    /// One question with its answer, for whom the policy lets ask it.
    async fn asked(&self, caller: &Caller, check: Check) -> Result<(Question, Answered), Problem> {
        let question = self.question(caller, check).await?;
        let own = matches!(caller.by, By::Session(_)) && question.subject == caller.actor();
        if own {
            self.access.permit(caller, Action::ProfileRead, caller.own()).await?;
        } else {
            self.access.permit(caller, Action::AuthzCheck, question.resource).await?;
        }
        self.access.fresh_for(&[question]).await?;
        let answered = self.access.answer_about(caller, &question).await?;
        Ok((question, answered))
    }

    async fn question(&self, caller: &Caller, check: Check) -> Result<Question, Problem> {
        let Check { subject, action, resource, surface } = check;
        let subject = match (subject.user, subject.service_token) {
            (Some(user), None) => Actor::User(user.parse().map_err(|error| Problem::value("subject", error))?),
            (None, Some(token)) => {
                Actor::ServiceToken(token.parse().map_err(|error| Problem::value("subject", error))?)
            }
            _ => return Err(Problem::value("subject", "name exactly one of `user` and `service_token`")),
        };
        let unknown = || Problem::value("action", "there is no such action; docs/access.md lists them");
        let action = Action::from_token(&action).ok_or_else(unknown)?;
        let surface = match surface.as_deref() {
            None | Some("api") => Surface::Api,
            Some("cli") => Surface::Cli,
            Some("console") => Surface::Console,
            Some(_) => return Err(Problem::value("surface", "expected `api`, `cli` or `console`")),
        };
        let resource = self.resource(caller.org, &resource).await?;
        Ok(Question { subject, action, resource, surface })
    }

    /// What a question is about, within the caller's organization.
    async fn resource(&self, org: OrgId, text: &str) -> Result<Resource, Problem> {
        let kind = |prefix: &str| match prefix {
            "org" => Some("organization"),
            "prj" => Some("project"),
            "wsp" => Some("workspace"),
            "lnk" => Some("link"),
            "usr" => Some("user"),
            "rtw" => Some("root_window"),
            _ => None,
        };
        let (kind, name) = match text.split_once('/') {
            Some((kind, name)) => (kind, name),
            None if text == "organization" => ("organization", ""),
            None => (text.split_once('_').and_then(|(prefix, _)| kind(prefix)).unwrap_or_default(), text),
        };
        match kind {
            "organization" if name.is_empty() || name.parse() == Ok(org) => Ok(Resource::Organization(org)),
            "organization" => Err(Problem::not_found()),
            "project" => {
                let project = self.access.existing_project(org, name).await?;
                Ok(Resource::Project { org, project })
            }
            "workspace" => self.access.workspace(org, name).await,
            "link" => self.access.link(org, name).await,
            "root_window" => self.access.root_window(org, name).await,
            "user" => {
                let user: UserId = name.parse().map_err(|error| Problem::value("resource", error))?;
                Ok(Resource::User { org, user })
            }
            _ => Err(Problem::value(
                "resource",
                "expected `organization`, `project/NAME`, `workspace/NAME`, `link/ID`, `user/ID`, `root_window/ID` or an id",
            )),
        }
    }

    pub(crate) async fn rights(&self, org: OrgId, until: Until) -> Result<RightsHistory, Problem> {
        RightsHistory::read(&self.log, org, until).await.map_err(Problem::from)
    }
}

impl From<HistoryError> for Problem {
    fn from(error: HistoryError) -> Self {
        match error {
            HistoryError::TooLong { max } => Self::new("history_too_long", format!("{error}.")).with("max", max),
            HistoryError::Log(error) => error.into(),
        }
    }
}
