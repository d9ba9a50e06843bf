//! Bodies, queries and parts of paths: forms, SCIM, a provider's events, cursors, instants, JSON as idempotency compares it.

use axum::extract::Query as AxumQuery;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use envforge_projections::sql::AuditCursor;
use http::Uri;
use serde::Deserialize;
use serde_json::Value;

use crate::endpoints::oidc_events::{ProviderEvent, ScimNewUser, ScimPatch, external_id, subject_of, wanted_state};
use crate::form::{Form, encoded};
use crate::instant::{self, Instant};
use crate::page;
use crate::request_body::{SECRET_MEMBERS, canonical_json, parse_json};

/// First byte: what the rest is.
pub(super) fn api_bodies(bytes: &[u8]) {
    let Some((mode, rest)) = bytes.split_first() else { return };
    match (mode % 9, std::str::from_utf8(rest)) {
        (0, _) => form(rest),
        (1, _) => scim_patch(rest),
        (2, _) => json(rest),
        (3, _) => {
            let _ = parse_json::<ScimNewUser>(rest);
            let _ = parse_json::<ProviderEvent>(rest);
        }
        (4, Ok(text)) => cursors(text),
        (5, Ok(text)) => scim_texts(text),
        (6, Ok(text)) => instants(text),
        (7, Ok(text)) => fields(text),
        _ => {}
    }
}

fn form(body: &[u8]) {
    let Ok(form) = Form::parse(body) else { return };
    assert!(form.0.len() <= 16);
    let pairs: Vec<(&str, &str)> = form.0.iter().map(|(name, value)| (name.as_str(), value.expose())).collect();
    for (name, _) in &pairs {
        let all: Vec<&str> = pairs.iter().filter(|(known, _)| known == name).map(|(_, value)| *value).collect();
        assert_eq!(form.get(name).map(|value| value.expose()), if all.len() == 1 { Some(all[0]) } else { None });
    }
    // Written again it reads the same.
    let again: Vec<String> =
        pairs.iter().map(|(name, value)| format!("{}={}", encoded(name), encoded(value))).collect();
    let again = Form::parse(again.join("&").as_bytes()).map(|form| form.0).unwrap_or_default();
    assert!(again.iter().map(|(name, value)| (name.as_str(), value.expose())).eq(pairs.iter().copied()));
    // And as the parser of queries reads it.
    let query = std::str::from_utf8(body).ok().and_then(|text| format!("/?{text}").parse::<Uri>().ok());
    if let Some(uri) = query.filter(|uri| uri.query().unwrap_or_default().as_bytes() == body) {
        let AxumQuery(theirs) = AxumQuery::<Vec<(String, String)>>::try_from_uri(&uri).unwrap();
        assert!(theirs.iter().map(|(name, value)| (name.as_str(), value.as_str())).eq(pairs));
    }
}

/// Names and values of any text, one to a line.
fn fields(text: &str) {
    let values: Vec<&str> = text.lines().take(16).collect();
    let body: Vec<String> = values.iter().enumerate().map(|(at, value)| format!("f{at}={}", encoded(value))).collect();
    let form = Form::parse(body.join("&").as_bytes()).unwrap_or_else(|_| panic!("{body:?}"));
    for (at, value) in values.iter().enumerate() {
        assert_eq!(form.text(&format!("f{at}")), *value);
    }
}

fn scim_patch(body: &[u8]) {
    let Ok(patch) = parse_json::<ScimPatch>(body) else { return };
    let Ok(wanted) = wanted_state(&patch) else { return };
    let Ok(document) = serde_json::from_slice::<Value>(body) else { return };
    let mut expected = None;
    for operation in document["Operations"].as_array().unwrap() {
        let op = operation["op"].as_str().unwrap().to_ascii_lowercase();
        let value = match operation.get("path").and_then(Value::as_str) {
            Some("active") => operation.get("value"),
            Some(_) => None,
            None => operation.get("value").and_then(|value| value.get("active")),
        };
        if let ("replace" | "add", Some(value)) = (op.as_str(), value) {
            expected = Some(value.to_string().trim_matches('"').eq_ignore_ascii_case("true"));
        }
    }
    assert_eq!(wanted, expected, "{document}");
}

fn scim_texts(text: &str) {
    if let Some(subject) = external_id(text) {
        assert!(!subject.is_empty() && subject.len() <= 255 && !subject.contains(['"', '\\']));
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        assert!(words[0] == "externalId" && words[1].eq_ignore_ascii_case("eq"), "{text}");
        assert!(text.trim().ends_with(&format!("\"{subject}\"")), "{text}");
        assert_eq!(external_id(&format!("externalId eq \"{subject}\"")), Some(subject));
    }
    if let Ok(subject) = subject_of(text) {
        assert!((1..=255).contains(&subject.len()));
        assert_eq!(URL_SAFE_NO_PAD.encode(&subject), text, "two spellings");
    }
}

fn cursors(text: &str) {
    if let Ok(cursor) = page::open(text) {
        assert_eq!(page::seal(&cursor), text, "two spellings");
    }
    let sealed = page::seal(text);
    if sealed.len() <= 400 {
        assert_eq!(page::open(&sealed).ok().as_deref(), Some(text));
    }
    if let Ok(cursor) = text.parse::<AuditCursor>() {
        assert_eq!(cursor.to_string(), text);
    }
}

fn instants(text: &str) {
    if let Some(instant) = instant::parse(text) {
        let shown = Instant(instant).text();
        assert_eq!(instant::parse(&shown), Some(instant), "{text} as {shown}");
    }
}

/// What idempotency compares is the same for what means the same, and holds no secret.
fn json(body: &[u8]) {
    /// As bodies are.
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "it is read and not used")]
    struct Body {
        b: Option<String>,
        n: Option<u64>,
        a: Option<Vec<String>>,
        password: Option<String>,
    }
    let canonical = canonical_json(body);
    if parse_json::<Body>(body).is_ok() {
        assert!(!canonical.is_empty(), "any two such bodies would be one");
    }
    if canonical.is_empty() {
        return;
    }
    fn without(value: &mut Value) {
        match value {
            Value::Object(members) => {
                for name in SECRET_MEMBERS {
                    members.remove(name);
                }
                members.values_mut().for_each(without);
            }
            Value::Array(values) => values.iter_mut().for_each(without),
            _ => {}
        }
    }
    let mut value: Value = serde_json::from_slice(body).unwrap();
    without(&mut value);
    // Reals are read to a last digit that may differ; the same bytes give the same.
    if !canonical.contains(&b'.') && !canonical.contains(&b'e') {
        assert_eq!(serde_json::from_slice::<Value>(&canonical).unwrap(), value);
        assert_eq!(canonical_json(&canonical), canonical);
    }
    assert_eq!(canonical_json(body), canonical);
}
