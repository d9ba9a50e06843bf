//! Bodies of requests: read within a limit and a time, of a known type, with errors that say where.

use std::time::Duration;

use axum::extract::{FromRequest, Request};
use bytes::Bytes;
use envforge_domain::limits::MANIFEST_BYTES_MAX;
use http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use crate::problem::Problem;

/// The largest body of any request.
pub(crate) const BODY_BYTES_MAX: usize = 1024 * 1024;
/// A manifest, which grows by its quoting when it comes within JSON.
const MANIFEST_BODY_BYTES_MAX: usize = 64 * 1024;
/// A body must have come by then.
const BODY_TIMEOUT: Duration = Duration::from_secs(15);

/// How a kind of body is read.
pub(crate) trait RequestBody: Sized + Send {
    const BYTES_MAX: usize;

    fn read(headers: &HeaderMap, body: &[u8]) -> Result<Self, Problem>;

    /// The same for two bodies that mean the same: what idempotency compares. Its digest stands in the log for good, so
    /// no secret may have a part in it: a password could be guessed from a fast hash.
    fn canonical(body: &[u8]) -> Vec<u8>;
}

/// Collects a body of at most `max` bytes.
pub(crate) async fn collect(body: axum::body::Body, max: usize) -> Result<Bytes, Problem> {
    let limited = Limited::new(body, max).collect();
    match tokio::time::timeout(BODY_TIMEOUT, limited).await {
        Err(_) => {
            Err(Problem::new("body_timeout", format!("The body did not come within {} s.", BODY_TIMEOUT.as_secs())))
        }
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(Problem::new("body_too_large", format!("The body has more than {max} bytes.")).with("max_bytes", max))
        }
        Ok(Err(error)) => Err(Problem::new("body_invalid", "The body ended early.").because(error.to_string())),
    }
}

/// A JSON body.
pub(crate) struct Json<T>(pub T);

impl<T: DeserializeOwned + Send> RequestBody for Json<T> {
    const BYTES_MAX: usize = BODY_BYTES_MAX;

    fn read(headers: &HeaderMap, body: &[u8]) -> Result<Self, Problem> {
        if media_type(headers) != Some("application/json") {
            return Err(unsupported(&["application/json"]));
        }
        parse_json(body).map(Self)
    }

    fn canonical(body: &[u8]) -> Vec<u8> {
        canonical_json(body)
    }
}

/// Without idempotency: for requests that carry secrets or change nothing.
impl<S: Sync, T: DeserializeOwned + Send> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let body = collect(body, Self::BYTES_MAX).await?;
        Self::read(&parts.headers, &body)
    }
}

/// No body, or an empty JSON object.
pub(crate) struct Empty;

impl RequestBody for Empty {
    const BYTES_MAX: usize = 1024;

    fn read(_: &HeaderMap, body: &[u8]) -> Result<Self, Problem> {
        match body.trim_ascii() {
            b"" | b"{}" => Ok(Self),
            _ => Err(Problem::new("body_invalid", "This request takes no body.")),
        }
    }

    fn canonical(_: &[u8]) -> Vec<u8> {
        Vec::new()
    }
}

/// A JSON body that may be left out, which means its default.
pub(crate) struct Optional<T>(pub T);

impl<T: DeserializeOwned + Default + Send> RequestBody for Optional<T> {
    const BYTES_MAX: usize = BODY_BYTES_MAX;

    fn read(headers: &HeaderMap, body: &[u8]) -> Result<Self, Problem> {
        if body.trim_ascii().is_empty() {
            Ok(Self(T::default()))
        } else {
            Json::read(headers, body).map(|Json(body)| Self(body))
        }
    }

    fn canonical(body: &[u8]) -> Vec<u8> {
        if body.trim_ascii().is_empty() { b"{}".to_vec() } else { canonical_json(body) }
    }
}

/// The text of an `envforge.yml`, as YAML or as `{"manifest": "..."}`.
pub(crate) struct ManifestText(pub String);

impl RequestBody for ManifestText {
    const BYTES_MAX: usize = MANIFEST_BODY_BYTES_MAX;

    fn read(headers: &HeaderMap, body: &[u8]) -> Result<Self, Problem> {
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Wrapped {
            manifest: String,
        }
        let text = match media_type(headers) {
            Some("application/json") => parse_json::<Wrapped>(body)?.manifest,
            Some("application/yaml" | "text/yaml" | "application/x-yaml" | "text/x-yaml") => std::str::from_utf8(body)
                .map_err(|error| {
                    Problem::new(
                        "body_invalid",
                        format!("The manifest is not UTF-8 from byte {} on.", error.valid_up_to()),
                    )
                })?
                .to_owned(),
            _ => return Err(unsupported(&["application/yaml", "text/yaml", "application/json"])),
        };
        if text.len() > MANIFEST_BYTES_MAX {
            return Err(Problem::new("body_too_large", format!("A manifest has at most {MANIFEST_BYTES_MAX} bytes."))
                .with("max_bytes", MANIFEST_BYTES_MAX));
        }
        Ok(Self(text))
    }

    fn canonical(body: &[u8]) -> Vec<u8> {
        body.to_vec()
    }
}

pub(crate) fn media_type(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    Some(value.split(';').next().unwrap_or(value).trim())
}

fn unsupported(supported: &[&str]) -> Problem {
    Problem::new("content_type_unsupported", format!("Send `Content-Type: {}`.", supported.join("` or `")))
        .with("supported", supported.to_vec())
}

pub(crate) fn parse_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body)
        .map_err(|error| Problem::new("body_invalid", format!("The body cannot be read: {error}.")))
}

/// Members of JSON bodies that hold a secret, wherever they stand. A test holds the OpenAPI document against it.
pub(crate) const SECRET_MEMBERS: [&str; 8] =
    ["code", "code_verifier", "device_code", "new_password", "password", "refresh_token", "secret", "token"];

/// Keys in order, no white space, no secrets. What is not JSON is refused anyway, and may be a secret gone wrong.
pub(crate) fn canonical_json(body: &[u8]) -> Vec<u8> {
    match serde_json::from_slice::<serde_json::Value>(body) {
        Ok(mut value) => {
            leave_secrets_out(&mut value);
            serde_json::to_vec(&value).expect("a value is always serializable")
        }
        Err(_) => Vec::new(),
    }
}

fn leave_secrets_out(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(members) => {
            members.retain(|name, _| !SECRET_MEMBERS.contains(&name.as_str()));
            members.values_mut().for_each(leave_secrets_out);
        }
        serde_json::Value::Array(values) => values.iter_mut().for_each(leave_secrets_out),
        serde_json::Value::Null
        | serde_json::Value::Bool(_)
        | serde_json::Value::Number(_)
        | serde_json::Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn bodies_that_mean_the_same_are_the_same() {
        assert_eq!(canonical_json(br#"{"b": 1, "a": [1, 2]}"#), canonical_json(br#"{"a":[1,2],"b":1}"#));
        assert_ne!(canonical_json(br#"{"a":[1,2]}"#), canonical_json(br#"{"a":[2,1]}"#));
        assert_eq!(<Optional<()>>::canonical(b" "), <Optional<()>>::canonical(b"{}"));
    }

    #[test]
    fn no_secret_has_a_part_in_what_is_compared() {
        let with = |password: &str| canonical_json(format!(r#"{{"name":"Bob","password":{password}}}"#).as_bytes());
        assert_eq!(with(r#""plum kite engine 7""#), with(r#""another one""#));
        assert_eq!(with("7"), br#"{"name":"Bob"}"#);
        assert_eq!(canonical_json(br#"{"a":[{"token":"x","b":1}]}"#), br#"{"a":[{"b":1}]}"#);
        assert!(canonical_json(br#"{"password":"plum kite"#).is_empty());
    }

    #[test]
    fn every_secret_of_the_document_is_left_out_of_what_is_compared() {
        let document = serde_json::to_value(crate::document()).unwrap();
        let mut found = 0;
        for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
            for (member, property) in schema["properties"].as_object().into_iter().flatten() {
                if property["format"] == "password" {
                    found += 1;
                    assert!(SECRET_MEMBERS.contains(&member.as_str()), "`{member}` of {name}");
                }
            }
        }
        assert!(found >= 3, "{found} secrets in the document");
    }

    #[test]
    fn a_manifest_comes_as_yaml_or_within_json() {
        let headers = |kind: &str| HeaderMap::from_iter([(header::CONTENT_TYPE, kind.parse().unwrap())]);
        let read = |kind: &str, body: &[u8]| ManifestText::read(&headers(kind), body);
        assert_eq!(read("text/yaml; charset=utf-8", b"a: 1").unwrap().0, "a: 1");
        assert_eq!(read("application/json", br#"{"manifest":"a: 1"}"#).unwrap().0, "a: 1");
        assert_eq!(read("text/plain", b"a: 1").err().unwrap().code(), "content_type_unsupported");
        assert_eq!(read("text/yaml", b"a: \xff").err().unwrap().code(), "body_invalid");
        assert_eq!(read("text/yaml", &[b'a'; MANIFEST_BYTES_MAX + 1]).err().unwrap().code(), "body_too_large");
    }
}
