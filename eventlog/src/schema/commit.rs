//! The stored commit: an envelope with who, where, why and when around the events.
//!
//! ```json
//! {"v":1,"id":"com_…","command":"cmd_…","request":"<hex>","stream":"org_….dev_link.lnk_…","actor":"user:usr_…",
//!  "surface":"api","correlation":"cor_…","causation":"com_…","decided_at":1790000000000,
//!  "events":[{"type":"dev_link.issued.v1","data":{…}}]}
//! ```
//! `request` and `causation` are left out where there is none. Not here: the events' own shapes (`event`).

use std::borrow::Cow;
use std::str::FromStr;

use bytes::Bytes;
use envforge_domain::commit::{Actor, Commit, Component, StreamId, Surface};
use envforge_domain::ids::{CommandId, CommitId, CorrelationId};
use envforge_domain::limits::{COMMIT_BYTES_MAX, COMMIT_EVENTS_MAX, EVENT_BYTES_MAX};
use envforge_domain::time::UnixMillis;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{DecodeError, EncodeError, event};

/// The version of the envelope. Raised when its meaning changes; older ones stay readable.
const FORMAT: u32 = 1;

#[derive(Serialize)]
struct Head<'a> {
    v: u32,
    id: String,
    command: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<String>,
    stream: &'a str,
    actor: String,
    surface: &'static str,
    correlation: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    causation: Option<String>,
    decided_at: u64,
}

#[derive(Deserialize)]
struct Version {
    v: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored<'a> {
    v: u32,
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    command: Cow<'a, str>,
    #[serde(borrow)]
    request: Option<Cow<'a, str>>,
    #[serde(borrow)]
    stream: Cow<'a, str>,
    #[serde(borrow)]
    actor: Cow<'a, str>,
    #[serde(borrow)]
    surface: Cow<'a, str>,
    #[serde(borrow)]
    correlation: Cow<'a, str>,
    #[serde(borrow)]
    causation: Option<Cow<'a, str>>,
    decided_at: u64,
    #[serde(borrow)]
    events: Vec<StoredEvent<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredEvent<'a> {
    #[serde(rename = "type", borrow)]
    event_type: Cow<'a, str>,
    #[serde(borrow)]
    data: &'a RawValue,
}

pub(super) fn encode(commit: &Commit) -> Result<Bytes, EncodeError> {
    if commit.events.is_empty() {
        return Err(EncodeError::NoEvents);
    }
    let count = commit.events.len();
    if count > COMMIT_EVENTS_MAX {
        return Err(EncodeError::TooLarge { what: "a commit", unit: "events", found: count, limit: COMMIT_EVENTS_MAX });
    }
    let subject = commit.stream.subject();
    let head = Head {
        v: FORMAT,
        id: commit.id.to_string(),
        command: commit.command.to_string(),
        request: commit.request_digest.map(hex::encode),
        stream: &subject,
        actor: actor_token(commit.actor),
        surface: commit.surface.token(),
        correlation: commit.correlation.to_string(),
        causation: commit.causation.map(|id| id.to_string()),
        decided_at: commit.decided_at.get(),
    };
    let mut bytes = Vec::with_capacity(1024);
    write_json(&mut bytes, &head);
    // The head's closing brace makes room for the events, which are measured one by one while they are written.
    bytes.pop();
    bytes.extend_from_slice(b",\"events\":[");
    for (index, event) in commit.events.iter().enumerate() {
        let (of, stream) = (event.stream_kind(), commit.stream.kind());
        if of != stream {
            return Err(EncodeError::WrongStream { event: of.token(), stream: stream.token() });
        }
        if index > 0 {
            bytes.push(b',');
        }
        let start = bytes.len();
        bytes.extend_from_slice(b"{\"type\":\"");
        bytes.extend_from_slice(event::event_type(event).as_bytes());
        bytes.extend_from_slice(b"\",\"data\":");
        write_json(&mut bytes, &event::Data(event));
        bytes.push(b'}');
        let found = bytes.len() - start;
        if found > EVENT_BYTES_MAX {
            return Err(EncodeError::TooLarge { what: "an event", unit: "bytes", found, limit: EVENT_BYTES_MAX });
        }
    }
    bytes.extend_from_slice(b"]}");
    if bytes.len() > COMMIT_BYTES_MAX {
        let found = bytes.len();
        return Err(EncodeError::TooLarge { what: "a commit", unit: "bytes", found, limit: COMMIT_BYTES_MAX });
    }
    Ok(bytes.into())
}

/// Stored forms are plain structs of texts, integers and lists: writing them to memory cannot fail.
fn write_json(bytes: &mut Vec<u8>, value: &impl Serialize) {
    serde_json::to_writer(bytes, value).expect("a plain struct serializes into memory");
}

pub(super) fn decode(stored: &[u8]) -> Result<Commit, DecodeError> {
    if stored.len() > COMMIT_BYTES_MAX {
        return Err(DecodeError::Malformed(format!("it has {} bytes, the limit is {COMMIT_BYTES_MAX}", stored.len())));
    }
    let stored: Stored<'_> = serde_json::from_slice(stored).map_err(|error| {
        // A newer format may hold fields that this one does not know: its version says more than the parser's error.
        match serde_json::from_slice::<Version>(stored) {
            Ok(Version { v }) if v != FORMAT => DecodeError::UnknownFormat { found: v, known: FORMAT },
            _ => DecodeError::Malformed(error.to_string()),
        }
    })?;
    if stored.v != FORMAT {
        return Err(DecodeError::UnknownFormat { found: stored.v, known: FORMAT });
    }
    let count = stored.events.len();
    if !Commit::event_count_is_valid(count) {
        return Err(DecodeError::Malformed(format!("it holds {count} events, expected 1 to {COMMIT_EVENTS_MAX}")));
    }
    let stream = StreamId::parse_subject(&stored.stream)
        .ok_or_else(|| DecodeError::Malformed(format!("`{}` is not a stream", stored.stream)))?;
    let mut events = Vec::with_capacity(count);
    for StoredEvent { event_type, data } in &stored.events {
        let event = event::decode(event_type, data.get())?;
        if event.stream_kind() != stream.kind() {
            return Err(DecodeError::Malformed(format!("event `{event_type}` cannot stand in stream {stream}")));
        }
        events.push(event);
    }
    Ok(Commit {
        id: id::<CommitId>(&stored.id)?,
        command: id::<CommandId>(&stored.command)?,
        request_digest: stored.request.as_deref().map(digest).transpose()?,
        stream,
        actor: parse_actor(&stored.actor)?,
        surface: Surface::from_token(&stored.surface)
            .ok_or_else(|| DecodeError::Malformed(format!("`{}` is not a surface", stored.surface)))?,
        correlation: id::<CorrelationId>(&stored.correlation)?,
        causation: stored.causation.as_deref().map(id::<CommitId>).transpose()?,
        decided_at: UnixMillis::new(stored.decided_at),
        events,
    })
}

fn id<T: FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, DecodeError> {
    text.parse().map_err(|error: T::Err| DecodeError::Malformed(error.to_string()))
}

fn digest(text: &str) -> Result<[u8; 32], DecodeError> {
    let mut digest = [0; 32];
    hex::decode_to_slice(text, &mut digest)
        .map_err(|error| DecodeError::Malformed(format!("`request` is not 64 hexadecimal digits: {error}")))?;
    Ok(digest)
}

/// `user:usr_…`, `link:lnk_…`, `link:lnk_…:ses_…`, `agent:hst_…`, `system:<component>`, `anonymous`.
pub(super) fn actor_token(actor: Actor) -> String {
    match actor {
        Actor::User(user) => format!("user:{user}"),
        Actor::LinkVisitor { link, session: None } => format!("link:{link}"),
        Actor::LinkVisitor { link, session: Some(session) } => format!("link:{link}:{session}"),
        Actor::Agent(host) => format!("agent:{host}"),
        Actor::ServiceToken(token) => format!("service_token:{token}"),
        Actor::System(component) => format!("system:{}", component_token(component)),
        Actor::Anonymous => "anonymous".to_owned(),
    }
}

pub(super) fn parse_actor(text: &str) -> Result<Actor, DecodeError> {
    let unknown = || DecodeError::Malformed(format!("`{text}` is not an actor"));
    let mut parts = text.split(':');
    let actor = match (parts.next(), parts.next(), parts.next()) {
        (Some("anonymous"), None, None) => Actor::Anonymous,
        (Some("user"), Some(user), None) => Actor::User(id(user)?),
        (Some("link"), Some(link), session) => {
            Actor::LinkVisitor { link: id(link)?, session: session.map(id).transpose()? }
        }
        (Some("agent"), Some(host), None) => Actor::Agent(id(host)?),
        (Some("service_token"), Some(token), None) => Actor::ServiceToken(id(token)?),
        (Some("system"), Some(component), None) => Actor::System(
            COMPONENTS.into_iter().find(|known| component_token(*known) == component).ok_or_else(unknown)?,
        ),
        _ => return Err(unknown()),
    };
    if parts.next().is_some() { Err(unknown()) } else { Ok(actor) }
}

const COMPONENTS: [Component; 6] = [
    Component::Setup,
    Component::Gateway,
    Component::RuntimeReactor,
    Component::Timer,
    Component::Identity,
    Component::Fleet,
];

const fn component_token(component: Component) -> &'static str {
    match component {
        Component::Setup => "setup",
        Component::Gateway => "gateway",
        Component::RuntimeReactor => "runtime_reactor",
        Component::Timer => "timer",
        Component::Identity => "identity",
        Component::Fleet => "fleet",
    }
}
