//! The events of an organization, straight from the log: for auditors who replay and follow.
//!
//! JSON Lines of CloudEvents 1.0. A stream ends when the caller's right ends, looked at once a second and before anything
//! is sent, with rights at least as fresh as what is sent. Events that name hosts or ports are left out (SPEC, rule 7). Not here: the audit's rows (`audit`), which are a read model.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant as Moment};

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use envforge_domain::access::{Action, Permit, Resource};
use envforge_domain::commit::{Actor, Component, Position, Recorded, StreamKind};
use envforge_domain::event::{Event, Visibility};
use envforge_domain::ids::UserId;
use envforge_domain::time::SharedClock;
use envforge_eventlog::schema::{event_data, event_type, event_types};
use envforge_eventlog::{Checkpoint, Filter, Follow, LogError, SharedLog};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use http::header;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::has_access;
use crate::access::{Access, Caller};
use crate::config::Config;
use crate::edge::Arrival;
use crate::instant::Instant;
use crate::page::{Path, Query, wrong_query};
use crate::problem::Problem;

/// Commits per read.
const PAGE: usize = 256;
/// A right that ended is noticed within this time.
const RIGHTS_CHECK: Duration = Duration::from_secs(1);
/// Kinds and types that one request may name.
const FILTERS_MAX: usize = 32;

#[derive(Clone)]
pub(crate) struct Events {
    pub(crate) access: Access,
    pub(crate) log: SharedLog,
    pub(crate) clock: SharedClock,
    pub(crate) streams: Arc<Streams>,
    pub(crate) heartbeat: Duration,
    /// Ends open streams when the process stops.
    pub(crate) stop: CancellationToken,
}

has_access!(Events);

pub(crate) fn routes() -> OpenApiRouter<Events> {
    OpenApiRouter::new().routes(routes!(replay))
}

/// How many streams may be open, in all and of one person.
pub(crate) struct Streams {
    all: Arc<Semaphore>,
    all_max: usize,
    of_user: Mutex<HashMap<UserId, usize>>,
    per_user_max: usize,
    /// The problem of one too many, and what they are.
    too_many: (&'static str, &'static str),
}

impl Streams {
    pub(crate) fn new(config: &Config) -> Arc<Self> {
        Self::of(config.streams_max, config.streams_per_user_max, ("too_many_streams", "event streams"))
    }

    pub(crate) fn of(all_max: usize, per_user_max: usize, too_many: (&'static str, &'static str)) -> Arc<Self> {
        let (all, of_user) = (Arc::new(Semaphore::new(all_max)), Mutex::default());
        Arc::new(Self { all, all_max, of_user, per_user_max, too_many })
    }

    pub(crate) fn open(self: &Arc<Self>, user: UserId) -> Result<OpenStream, Problem> {
        let full = |whose: &str, max: usize| {
            let (code, what) = self.too_many;
            Problem::new(code, format!("{whose} {what} are open; the limit is {max}."))
                .with("max", max)
                .retry_after_s(5)
        };
        let place = Arc::clone(&self.all).try_acquire_owned().map_err(|_| full("Too many", self.all_max))?;
        let mut of_user = self.of_user.lock();
        let open = of_user.entry(user).or_default();
        if *open >= self.per_user_max {
            return Err(full("Too many of your", self.per_user_max));
        }
        *open += 1;
        Ok(OpenStream { streams: Arc::clone(self), user, _place: place })
    }
}

/// One open stream; makes room when it is dropped.
pub(crate) struct OpenStream {
    streams: Arc<Streams>,
    user: UserId,
    _place: OwnedSemaphorePermit,
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let mut of_user = self.streams.of_user.lock();
        if let Some(open) = of_user.get_mut(&self.user) {
            *open -= 1;
            if *open == 0 {
                of_user.remove(&self.user);
            }
        }
    }
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct EventsQuery {
    /// First position to look at; 1 where it is left out.
    from: Option<u64>,
    /// Last position to look at; where it is left out, the log's end now, or with `follow` no end.
    to: Option<u64>,
    /// Kinds of streams, separated by commas: `dev_link,runtime`.
    kind: Option<String>,
    /// Event types, separated by commas: `dev_link.issued.v1`, `dev_link.issued` (any version) or `dev_link.` (all).
    #[serde(rename = "type")]
    event_type: Option<String>,
    /// Stay and send what happens from now on. A blank line is a sign of life.
    #[serde(default)]
    follow: bool,
}

/// A CloudEvents 1.0 event.
#[derive(Serialize, ToSchema)]
struct CloudEvent<'a> {
    specversion: &'static str,
    /// The commit and the event's place in it.
    id: String,
    source: &'a str,
    #[serde(rename = "type")]
    event_type: &'static str,
    /// Kind and key of the stream: `dev_link/lnk_…`.
    subject: &'a str,
    /// By the log's clock, which never goes back.
    time: &'a str,
    datacontenttype: &'static str,
    #[schema(value_type = Object)]
    data: serde_json::Value,
    /// The commit's position in the log, in digits: a CloudEvents integer would end at 2^31.
    envforgeposition: &'a str,
    /// `user:usr_…`, `link:lnk_…`, `agent:hst_…`, `system:…` or `anonymous`.
    envforgeactor: &'a str,
    envforgesurface: &'static str,
    /// The request that it goes back to (CloudEvents Correlation extension).
    correlationid: &'a str,
    /// The commit that caused it.
    #[serde(skip_serializing_if = "Option::is_none")]
    causationid: Option<&'a str>,
}

/// Replay the events of an organization, and follow them.
#[utoipa::path(get, path = "/v1/orgs/{org}/events", tag = "audit", params(EventsQuery),
    responses((status = 200, body = CloudEvent, content_type = "application/jsonl",
        description = "One CloudEvents object a line, in the order of the log.")),
    extensions(("x-envforge-action" = json!("audit.read"))))]
async fn replay(
    State(state): State<Events>,
    caller: Caller,
    Path(org): Path<String>,
    Query(query): Query<EventsQuery>,
) -> Result<Response, Problem> {
    let org = state.access.org(&org).await?;
    let permit = state.access.permit(&caller, Action::AuditRead, Resource::Organization(org)).await?;
    let filter = Filter { org: Some(permit.org()), kinds: kinds(query.kind.as_deref())? };
    let types = types(query.event_type.as_deref())?;
    let first = query.from.unwrap_or(1);
    if first == 0 {
        return Err(wrong_query("from", "positions begin with 1"));
    }
    let last = match (query.to.map(Position::new), query.follow) {
        (Some(to), true) => Some(to),
        (None, true) => None,
        // What is appended while this is read belongs to the next replay: the answer has an end.
        (to, false) => {
            let head = state.log.head().await?.position;
            Some(to.map_or(head, |to| to.min(head)))
        }
    };
    let open = state.streams.open(caller.user)?;
    let replay = Replay {
        source: format!("/orgs/{}", permit.org()),
        caller,
        permit,
        filter,
        types,
        last,
        after: Position::new(first - 1),
        follow: query.follow,
        live: None,
        checked: Moment::now(),
        sent: Moment::now(),
        state,
        _open: open,
    };
    let body = Body::from_stream(futures_util::stream::unfold(Some(replay), |replay| async {
        let mut replay = replay?;
        match replay.next().await {
            Ok(Some(chunk)) => Some((Ok(chunk), Some(replay))),
            Ok(None) => None,
            // The connection breaks off, so that nobody takes a part for the whole.
            Err(error) => {
                tracing::error!(%error, "an event stream broke off");
                Some((Err(std::io::Error::other("the event stream broke off")), None))
            }
        }
    }));
    Ok(([(header::CONTENT_TYPE, "application/jsonl")], body).into_response())
}

/// A stream of events under way.
struct Replay {
    state: Events,
    caller: Caller,
    permit: Permit,
    source: String,
    filter: Filter,
    types: Vec<String>,
    /// Everything up to here was looked at.
    after: Position,
    last: Option<Position>,
    follow: bool,
    /// What the log sends, once everything before was read.
    live: Option<BoxStream<'static, Result<Follow, LogError>>>,
    checked: Moment,
    sent: Moment,
    _open: OpenStream,
}

impl Replay {
    /// The next lines; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, LogError> {
        loop {
            if self.last.is_some_and(|last| self.after >= last) || self.state.stop.is_cancelled() {
                return Ok(None);
            }
            if self.checked.elapsed() >= RIGHTS_CHECK {
                if !self.may_still() {
                    return Ok(None);
                }
                self.checked = Moment::now();
            }
            let (lines, from_history) = match self.live.take() {
                None => (self.read().await?, true),
                Some(live) => (self.wait(live).await?, false),
            };
            if !lines.is_empty() {
                match self.may_receive(from_history).await {
                    Ok(true) => {}
                    Ok(false) => return Ok(None),
                    // The views stop with the process; what was read goes to nobody.
                    Err(_) if self.state.stop.is_cancelled() => return Ok(None),
                    Err(error) => return Err(error),
                }
            }
            if lines.is_empty() && self.sent.elapsed() < self.state.heartbeat {
                continue;
            }
            self.sent = Moment::now();
            return Ok(Some(if lines.is_empty() { Bytes::from_static(b"\n") } else { lines.into() }));
        }
    }

    /// Whether what was just read may be sent: nothing is delivered after a revocation that was acknowledged before it. What
    /// happened long ago says nothing about rights now, so the log's leader is asked for those.
    async fn may_receive(&mut self, from_history: bool) -> Result<bool, LogError> {
        let now = self.state.clock.now();
        if now >= self.caller.expires_at {
            return Ok(false);
        }
        let (action, resource) = (self.permit.action(), self.permit.resource());
        let access = &self.state.access;
        let asked = if from_history {
            let caller = Caller { arrival: Arrival { now, ..self.caller.arrival }, ..self.caller };
            access.permit(&caller, action, resource).await
        } else {
            access.permit_as_of(&self.caller, action, resource, self.after, now).await
        };
        self.checked = Moment::now();
        match asked {
            Ok(_) => Ok(true),
            Err(problem) if problem.status().is_server_error() => Err(LogError::Unavailable(problem.code().to_owned())),
            Err(problem) => {
                tracing::info!(user = %self.caller.user, code = problem.code(), "an event stream was ended");
                Ok(false)
            }
        }
    }

    /// The right is looked at again and again: a stream outlives no role, session or token.
    fn may_still(&self) -> bool {
        let now = self.state.clock.now();
        if now >= self.caller.expires_at {
            return false;
        }
        let (action, resource) = (self.permit.action(), self.permit.resource());
        match self.state.access.permit_still(&self.caller, action, resource, now) {
            Ok(_) => true,
            Err(problem) => {
                tracing::info!(user = %self.caller.user, code = problem.code(), "an event stream was ended");
                false
            }
        }
    }

    /// What stands in the log already.
    async fn read(&mut self) -> Result<Vec<u8>, LogError> {
        let page = self.state.log.read(self.after, PAGE, &self.filter).await?;
        let mut lines = Vec::new();
        for recorded in &page.commits {
            if self.last.is_none_or(|last| recorded.position <= last) {
                self.write(recorded, &mut lines);
            }
        }
        self.after = page.read_up_to.max(self.after);
        if page.at_head {
            if self.follow {
                let from = Checkpoint { position: self.after, proof: None };
                self.live = Some(self.state.log.follow(from, self.filter.clone()).await?);
            } else {
                // `last` is the head of the beginning: there is nothing more to come.
                self.last = Some(self.after);
            }
        }
        Ok(lines)
    }

    /// What comes next, or nothing within the time after which rights are looked at again.
    async fn wait(&mut self, mut live: BoxStream<'static, Result<Follow, LogError>>) -> Result<Vec<u8>, LogError> {
        let mut lines = Vec::new();
        let next = tokio::select! {
            next = live.next() => next,
            () = self.state.stop.cancelled() => None,
            () = tokio::time::sleep(RIGHTS_CHECK.saturating_sub(self.checked.elapsed())) => {
                self.live = Some(live);
                return Ok(lines);
            }
        };
        match next {
            Some(Ok(Follow::Commit { recorded, .. })) => {
                if self.last.is_none_or(|last| recorded.position <= last) {
                    self.write(&recorded, &mut lines);
                }
                self.after = recorded.position;
            }
            Some(Ok(Follow::Caught { position })) => self.after = position.max(self.after),
            Some(Err(error)) => return Err(error),
            None if self.state.stop.is_cancelled() => return Ok(lines),
            None => return Err(LogError::Unavailable("the log's stream ended".to_owned())),
        }
        self.live = Some(live);
        Ok(lines)
    }

    fn write(&self, recorded: &Recorded, lines: &mut Vec<u8>) {
        let commit = &recorded.commit;
        let subject = format!("{}/{}", commit.stream.kind().token(), commit.stream.key());
        let time = Instant(recorded.recorded_at).text();
        let position = recorded.position.to_string();
        let actor = actor(commit.actor);
        let correlation = commit.correlation.to_string();
        let causation = commit.causation.map(|id| id.to_string());
        for (index, event) in commit.events.iter().enumerate() {
            if !self.wants(event) {
                continue;
            }
            let line = CloudEvent {
                specversion: "1.0",
                id: format!("{}:{index}", commit.id),
                source: &self.source,
                event_type: event_type(event),
                subject: &subject,
                time: &time,
                datacontenttype: "application/json",
                data: event_data(event),
                envforgeposition: &position,
                envforgeactor: &actor,
                envforgesurface: commit.surface.token(),
                correlationid: &correlation,
                causationid: causation.as_deref(),
            };
            serde_json::to_writer(&mut *lines, &line).expect("an object of texts, into memory");
            lines.push(b'\n');
        }
    }

    fn wants(&self, event: &Event) -> bool {
        let visible = match event.visibility() {
            Visibility::Organization => true,
            Visibility::Operator => false,
        };
        visible && (self.types.is_empty() || self.types.iter().any(|wanted| type_matches(wanted, event_type(event))))
    }
}

/// `a.b.v1` is itself, any version of `a.b`, and below `a.`.
fn type_matches(wanted: &str, found: &str) -> bool {
    found.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || wanted.ends_with('.') || rest.starts_with(".v"))
}

fn words(text: Option<&str>) -> Vec<&str> {
    text.map(|text| text.split(',').map(str::trim).collect()).unwrap_or_default()
}

fn kinds(text: Option<&str>) -> Result<Vec<StreamKind>, Problem> {
    let known = StreamKind::ALL.map(StreamKind::token).join(", ");
    let words = words(text);
    if words.len() > FILTERS_MAX {
        return Err(wrong_query("kind", format!("at most {FILTERS_MAX} kinds")));
    }
    let read = |word: &str| {
        let shown: String = word.chars().take(60).collect();
        StreamKind::from_token(word).ok_or_else(|| wrong_query("kind", format!("`{shown}` is not one of {known}")))
    };
    words.into_iter().map(read).collect()
}

fn types(text: Option<&str>) -> Result<Vec<String>, Problem> {
    let words = words(text);
    if words.len() > FILTERS_MAX {
        return Err(wrong_query("type", format!("at most {FILTERS_MAX} types")));
    }
    let known = event_types();
    for word in &words {
        if word.is_empty() || !known.iter().any(|found| type_matches(word, found)) {
            let shown: String = word.chars().take(60).collect();
            return Err(wrong_query("type", format!("no event has a type like `{shown}`")));
        }
    }
    Ok(words.into_iter().map(str::to_owned).collect())
}

/// How an actor is called outside.
fn actor(actor: Actor) -> String {
    match actor {
        Actor::User(user) => format!("user:{user}"),
        Actor::LinkVisitor { link, session: None } => format!("link:{link}"),
        Actor::LinkVisitor { link, session: Some(session) } => format!("link:{link}:{session}"),
        Actor::Agent(host) => format!("agent:{host}"),
        Actor::ServiceToken(token) => format!("service_token:{token}"),
        Actor::System(component) => format!(
            "system:{}",
            match component {
                Component::Setup => "setup",
                Component::Gateway => "gateway",
                Component::RuntimeReactor => "runtime_reactor",
                Component::Timer => "timer",
                Component::Identity => "identity",
                Component::Fleet => "fleet",
            }
        ),
        Actor::Anonymous => "anonymous".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_filter_means_one_version_any_version_or_all_below() {
        let found = "dev_link.issued.v1";
        for wanted in ["dev_link.issued.v1", "dev_link.issued", "dev_link."] {
            assert!(type_matches(wanted, found), "{wanted}");
        }
        for wanted in ["dev_link", "dev_link.iss", "dev_link.issued.v", "dev_link.issued.v2", "issued"] {
            assert!(!type_matches(wanted, found), "{wanted}");
        }
    }

    #[test]
    fn an_unknown_filter_is_refused_instead_of_matching_nothing() {
        assert!(kinds(Some("dev_link, runtime")).is_ok_and(|kinds| kinds.len() == 2));
        assert!(kinds(Some("devlink")).is_err());
        assert!(types(Some("dev_link.issued")).is_ok());
        assert!(types(Some("dev_link.isued")).is_err());
        assert!(types(Some("")).is_err());
    }
}
