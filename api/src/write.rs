//! Requests that change something: idempotency on the way in, the log's position on the way out.
//!
//! A command's id follows from organization, person and `Idempotency-Key`, so a repeated request meets its own first
//! commit in the log and is answered from it. Not here: the memory of commands, which is the log itself.

use std::time::Duration;

use axum::extract::{FromRef, FromRequest, FromRequestParts, Request};
use axum::response::{IntoResponse, Response};
use envforge_commands::context::derived_uuid;
use envforge_commands::{CommandError, Context};
use envforge_domain::commit::Position;
use envforge_domain::ids::CommandId;
use envforge_identity::randomness::Randomness;
use envforge_projections::sql::{Database, ModelName};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::access::{Access, Caller};
use crate::problem::Problem;
use crate::reads::AtLeast;
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
        let at = AtLeast::from_request_parts(&mut parts, state).await?;
        let key = idempotency_key(&parts.headers)?;
        let bytes = collect(body, B::BYTES_MAX).await?;
        let body = B::read(&parts.headers, &bytes)?;
        let context = match key {
            None => Context {
                command: CommandId::from_uuid(
                    Randomness.uuid_v7(caller.arrival.now).map_err(|error| Problem::internal(error.to_string()))?,
                ),
                request_digest: None,
                correlation: caller.arrival.correlation,
                causation: None,
                now: caller.arrival.now,
            },
            Some(key) => {
                let path = parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
                let command = command_id(&caller, key);
                let digest = request_digest(parts.method.as_str(), path, &B::canonical(&bytes));
                Access::from_ref(state).keys().check(command, digest, at).await?;
                Context {
                    command,
                    request_digest: Some(digest),
                    correlation: caller.arrival.correlation,
                    causation: None,
                    now: caller.arrival.now,
                }
            }
        };
        Ok(Self { caller, body, context })
    }
}

/// What keys were used for, as the read model of command ids has it.
///
/// A stream remembers its own commands, so a repeated request is recognised there, whatever this says. This finds the key
/// that was used for another thing: as soon as the read model has seen it, at the latest with `EnvForge-Min-Position`.
#[derive(Clone)]
pub(crate) struct Keys {
    database: Database,
    freshness_wait: Duration,
}

impl Keys {
    pub(crate) fn new(database: Database, freshness_wait: Duration) -> Self {
        Self { database, freshness_wait }
    }

    async fn check(&self, command: CommandId, digest: [u8; 32], at: AtLeast) -> Result<(), Problem> {
        if at.0 != Position::START
            && let Err(error) = self.database.wait_for(ModelName::CommandIds, at.0, self.freshness_wait).await
        {
            tracing::warn!(%error, "the command ids are behind; a key used for another thing may go unnoticed");
        }
        match self.database.command_ids().find(command).await {
            Ok(Some(first)) if first.request_digest != digest => Err(CommandError::CommandReused.into()),
            Ok(_) => Ok(()),
            // A client's mistake goes unnoticed for once; nothing that was asked for is lost or done twice by that.
            Err(error) => {
                tracing::warn!(%error, "the command ids are out of reach");
                Ok(())
            }
        }
    }
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
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
    seed[16..].copy_from_slice(caller.user.as_uuid().as_bytes());
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

/// An answer to a write.
pub(crate) struct Written<T> {
    status: StatusCode,
    position: Position,
    body: T,
}

impl<T> Written<T> {
    pub(crate) fn ok(position: Position, body: T) -> Self {
        Self { status: StatusCode::OK, position, body }
    }

    pub(crate) fn created(position: Position, body: T) -> Self {
        Self { status: StatusCode::CREATED, position, body }
    }

    /// Asked for; the world follows.
    pub(crate) fn accepted(position: Position, body: T) -> Self {
        Self { status: StatusCode::ACCEPTED, position, body }
    }
}

impl<T: Serialize> IntoResponse for Written<T> {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.body)).into_response();
        response.headers_mut().insert(POSITION_HEADER, HeaderValue::from(self.position.get()));
        response
    }
}

/// An answer to a write that has nothing to tell but that it happened.
pub(crate) struct Happened(pub(crate) Position);

impl IntoResponse for Happened {
    fn into_response(self) -> Response {
        (StatusCode::NO_CONTENT, [(POSITION_HEADER, HeaderValue::from(self.0.get()))]).into_response()
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
