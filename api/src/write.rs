//! Requests that change something: idempotency on the way in, the log's position on the way out.
//!
//! A command's id follows from organization, person and `Idempotency-Key`. Before anything is decided, the key is looked up
//! and remembered in a table that all API processes share: a repeated request is then answered from its own first commit
//! in the log, or changes nothing where it changed nothing (docs/adr/0003). Not here: finding that commit (`commands`).

use std::sync::{Arc, OnceLock};

use axum::extract::{FromRef, FromRequest, FromRequestParts, Request};
use axum::response::{IntoResponse, Response};
use envforge_commands::context::derived_uuid;
use envforge_commands::{CommandError, Context, Done, Repeated};
use envforge_domain::commit::Position;
use envforge_domain::ids::CommandId;
use envforge_domain::time::UnixMillis;
use envforge_identity::randomness::Randomness;
use envforge_projections::sql::{Database, DatabaseError, KeyUse};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::access::{Access, By, Caller};
use crate::problem::Problem;
use crate::request_body::{RequestBody, collect};

/// Makes a repeated request harmless.
pub const IDEMPOTENCY_HEADER: HeaderName = HeaderName::from_static("idempotency-key");
/// Where in the log an answer's effect stands; a read that asks for it sees the effect.
pub const POSITION_HEADER: HeaderName = HeaderName::from_static("envforge-position");

const KEY_CHARS_MAX: usize = 200;

/// A caller's request to change something, with what the log needs to know of it.
pub(crate) struct Write<B> {
    pub caller: Caller,
    pub body: B,
    pub context: Context,
}

impl<S, B> FromRequest<S> for Write<B>
where
    S: Send + Sync,
    Access: FromRef<S>,
    B: RequestBody,
{
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let (mut parts, body) = request.into_parts();
        // Who asks comes first: nobody else's bodies are even read.
        let caller = Caller::from_request_parts(&mut parts, state).await?;
        let key = idempotency_key(&parts.headers)?;
        let bytes = collect(body, B::BYTES_MAX).await?;
        let body = B::read(&parts.headers, &bytes)?;
        let context = match key {
            None => Context {
                command: CommandId::from_uuid(
                    Randomness.uuid_v7(caller.arrival.now).map_err(|error| Problem::internal(error.to_string()))?,
                ),
                request_digest: None,
                repeated: None,
                correlation: caller.arrival.correlation,
                causation: None,
                now: caller.arrival.now,
            },
            Some(key) => {
                let path = parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
                let command = command_id(&caller, key);
                let digest = request_digest(parts.method.as_str(), path, &B::canonical(&bytes));
                let repeated = Access::from_ref(state).keys().first_use(command, digest, caller.arrival.now).await?;
                if let Some(used) = parts.extensions.get::<UsedKey>() {
                    used.set(command);
                }
                Context {
                    command,
                    request_digest: Some(digest),
                    repeated,
                    correlation: caller.arrival.correlation,
                    causation: None,
                    now: caller.arrival.now,
                }
            }
        };
        Ok(Self { caller, body, context })
    }
}

/// What idempotency keys were used for.
#[derive(Clone)]
pub(crate) struct Keys {
    database: Database,
}

impl Keys {
    pub(crate) fn new(database: Database) -> Self {
        Self { database }
    }

    /// Remembers the key before anything is decided. Fails closed: who cannot tell whether a request is a repetition must
    /// not carry it out.
    async fn first_use(
        &self,
        command: CommandId,
        digest: [u8; 32],
        now: UnixMillis,
    ) -> Result<Option<Repeated>, Problem> {
        let unavailable = |error: DatabaseError| {
            Problem::new(
                "request_keys_unavailable",
                "Whether this Idempotency-Key was used before cannot be made sure of right now; nothing was changed.",
            )
            .retry_after_s(1)
            .because(error.to_string())
        };
        match self.database.request_keys().first_use(command, digest, now).await.map_err(unavailable)? {
            KeyUse::First => Ok(None),
            KeyUse::Again { satisfied_at } => Ok(Some(Repeated { satisfied_at })),
            KeyUse::OtherRequest => Err(CommandError::CommandReused.into()),
        }
    }

    /// Takes note of a keyed request that changed nothing, before it is answered.
    pub(crate) async fn remember(&self, used: &UsedKey, mut response: Response) -> Response {
        let (Some(Satisfied(at)), Some(command)) = (response.extensions_mut().remove(), used.get()) else {
            return response;
        };
        match self.database.request_keys().satisfied(command, at).await {
            Ok(()) => response,
            // Told now, it might be carried out by its repetition after all.
            Err(error) => Problem::from(CommandError::Unknown).because(error.to_string()).into_response(),
        }
    }
}

/// The command that follows from a request's key, for whoever sees the answer. Put into each request by the edge.
#[derive(Clone, Default)]
pub(crate) struct UsedKey(Arc<OnceLock<CommandId>>);

impl UsedKey {
    fn set(&self, command: CommandId) {
        let _ = self.0.set(command);
    }

    fn get(&self) -> Option<CommandId> {
        self.0.get().copied()
    }
}

/// Marks an answer to a request that changed nothing, as of a position.
#[derive(Clone, Copy)]
struct Satisfied(Position);

pub(crate) fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let mut given = headers.get_all(IDEMPOTENCY_HEADER).iter();
    let key = match (given.next(), given.next()) {
        (None, _) => return Ok(None),
        (Some(key), None) => key.to_str().ok(),
        (Some(_), Some(_)) => None,
    };
    key.filter(|key| (1..=KEY_CHARS_MAX).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic()))
        .map(Some)
        .ok_or_else(|| {
            Problem::new(
                "idempotency_key_invalid",
                format!("`Idempotency-Key` must be 1 to {KEY_CHARS_MAX} visible ASCII characters, given once."),
            )
        })
}

/// The same key of another person, or in another organization, is another command.
fn command_id(caller: &Caller, key: &str) -> CommandId {
    let mut seed = [0_u8; 32];
    seed[..16].copy_from_slice(caller.org.as_uuid().as_bytes());
    let who = match caller.by {
        By::Session(_) => *caller.user.as_uuid(),
        By::ServiceToken { token, .. } => *token.as_uuid(),
    };
    seed[16..].copy_from_slice(who.as_bytes());
    CommandId::from_uuid(derived_uuid(&seed, key))
}

fn request_digest(method: &str, path: &str, canonical_body: &[u8]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in [method.as_bytes(), path.as_bytes(), canonical_body] {
        // The lengths keep parts apart: no two requests share one text.
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

/// What a write came to.
#[derive(Clone, Copy)]
pub(crate) struct Effect {
    position: Position,
    /// It was decided now, and there was nothing to change.
    satisfied: bool,
}

impl From<&Done> for Effect {
    fn from(done: &Done) -> Self {
        Self { position: done.position, satisfied: done.events.is_empty() && !done.duplicate }
    }
}

/// For requests without keys.
impl From<Position> for Effect {
    fn from(position: Position) -> Self {
        Self { position, satisfied: false }
    }
}

impl Effect {
    fn of(self, mut response: Response) -> Response {
        response.headers_mut().insert(POSITION_HEADER, HeaderValue::from(self.position.get()));
        if self.satisfied {
            response.extensions_mut().insert(Satisfied(self.position));
        }
        response
    }
}

/// An answer to a write.
pub(crate) struct Written<T> {
    status: StatusCode,
    effect: Effect,
    body: T,
}

impl<T> Written<T> {
    pub(crate) fn ok(effect: impl Into<Effect>, body: T) -> Self {
        Self { status: StatusCode::OK, effect: effect.into(), body }
    }

    pub(crate) fn created(effect: impl Into<Effect>, body: T) -> Self {
        Self { status: StatusCode::CREATED, effect: effect.into(), body }
    }

    /// Asked for; the world follows.
    pub(crate) fn accepted(effect: impl Into<Effect>, body: T) -> Self {
        Self { status: StatusCode::ACCEPTED, effect: effect.into(), body }
    }
}

impl<T: Serialize> IntoResponse for Written<T> {
    fn into_response(self) -> Response {
        self.effect.of((self.status, axum::Json(self.body)).into_response())
    }
}

/// An answer to a write that has nothing to tell but that it happened.
pub(crate) struct Happened(Effect);

impl Happened {
    pub(crate) fn new(effect: impl Into<Effect>) -> Self {
        Self(effect.into())
    }
}

impl IntoResponse for Happened {
    fn into_response(self) -> Response {
        self.0.of(StatusCode::NO_CONTENT.into_response())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn keyed(values: &[&str]) -> Result<Option<String>, &'static str> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(IDEMPOTENCY_HEADER, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        idempotency_key(&headers).map(|key| key.map(str::to_owned)).map_err(|problem| problem.code())
    }

    #[test]
    fn a_key_is_1_to_200_visible_characters_given_once() {
        assert_eq!(keyed(&[]), Ok(None));
        assert_eq!(keyed(&["a"]), Ok(Some("a".into())));
        assert_eq!(keyed(&[&"k".repeat(200)]), Ok(Some("k".repeat(200))));
        for wrong in [&["two", "keys"][..], &[""], &["with space"], &["ümlaut"], &[&"k".repeat(201)]] {
            assert_eq!(keyed(wrong), Err("idempotency_key_invalid"), "{wrong:?}");
        }
    }

    #[test]
    fn the_parts_of_a_request_cannot_be_shifted_into_each_other() {
        let digest = request_digest("POST", "/v1/a", b"body");
        assert_ne!(digest, request_digest("POST", "/v1/ab", b"ody"));
        assert_ne!(digest, request_digest("PUT", "/v1/a", b"body"));
        assert_eq!(digest, request_digest("POST", "/v1/a", b"body"));
    }
}
