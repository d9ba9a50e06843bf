//! What a provider sends besides tokens, and what browsers bring along: key sets, discovery, answers of its endpoints, signed
//! events, places to go back to.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use envforge_domain::secret::Secret;
use envforge_domain::time::UnixMillis;
use jsonwebtoken::Algorithm;
use reqwest::Url;
use serde_json::Value;

use super::NOW;
use crate::oidc::events::{EVENT_AGE_MAX, verify};
use crate::oidc::keys::KeySet;
use crate::oidc::provider::{Device, Discovery, OauthError, Tokens};
use crate::oidc::{Challenge, Config, PublicUrl, ReturnTo, Settings};
use crate::submitted::SubmittedSecret;

const ISSUER: &str = "https://tenant.us.auth0.com/";
const EVENTS_SECRET: &[u8] = b"a secret of the provider's events";

pub fn oidc_documents(bytes: &[u8]) {
    let Some((mode, rest)) = bytes.split_first() else { return };
    match mode % 8 {
        0 => key_set(rest),
        1 => discovery(rest),
        2 => {
            let _ = serde_json::from_slice::<Tokens>(rest);
            let _ = serde_json::from_slice::<Device>(rest);
            let _ = serde_json::from_slice::<OauthError>(rest);
        }
        3 => event(rest),
        4 => signed_event(rest),
        5 => std::str::from_utf8(rest).into_iter().for_each(texts),
        6 => settings(rest),
        _ => submitted(rest),
    }
}

fn key_set(body: &[u8]) {
    let Ok(keys) = KeySet::parse(body) else { return };
    // What is passed over may be no text at all.
    let Ok(document) = serde_json::from_slice::<Value>(body) else { return };
    let published = document["keys"].as_array().unwrap();
    assert!(published.len() <= 64 && keys.names().count() > 0);
    for name in keys.names() {
        let of_name: Vec<&Value> = published.iter().filter(|key| key["kid"].as_str() == Some(name)).collect();
        let usable = |key: &&&Value| {
            let signs = key.get("use").is_none_or(|purpose| purpose.is_null() || purpose == "sig");
            let kind = (key["kty"].as_str(), key["crv"].as_str());
            signs && matches!(kind, (Some("RSA"), _) | (Some("EC"), Some("P-256")) | (Some("OKP"), Some("Ed25519")))
        };
        let usable: Vec<&&Value> = of_name.iter().filter(usable).collect();
        assert!(!usable.is_empty(), "{name}");
        let (algorithm, _) = keys.get(name).unwrap();
        let kind = match algorithm {
            Algorithm::RS256 => "RSA",
            Algorithm::ES256 => "EC",
            Algorithm::EdDSA => "OKP",
            other => panic!("{other:?}"),
        };
        let key = usable.iter().find(|key| key["kty"] == kind).unwrap();
        if kind == "RSA" {
            let modulus = usable.iter().filter_map(|key| URL_SAFE_NO_PAD.decode(key["n"].as_str()?).ok());
            assert!(modulus.map(|modulus| modulus.len()).any(|length| length >= 256), "{key}");
        }
    }
}

fn discovery(body: &[u8]) {
    let Ok(discovery) = serde_json::from_slice::<Discovery>(body) else { return };
    if discovery.check(ISSUER, false).is_ok() {
        let Ok(document) = serde_json::from_slice::<Value>(body) else { return };
        assert_eq!(document["issuer"], ISSUER);
        assert!(discovery.addresses().iter().all(|url| url.scheme() == "https"), "{document}");
    }
    if discovery.check(ISSUER, true).is_ok() {
        let local = |url: &Url| matches!(url.host_str(), Some("localhost" | "[::1]")) || is_127(url);
        assert!(discovery.addresses().iter().all(|url| url.scheme() == "https" || local(url)));
    }
}

fn is_127(url: &Url) -> bool {
    url.host_str().is_some_and(|host| host.starts_with("127."))
}

/// A line with a signature that nobody made, and a body.
fn event(bytes: &[u8]) {
    let at = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let Ok(signature) = std::str::from_utf8(&bytes[..at]) else { return };
    let body = &bytes[(at + 1).min(bytes.len())..];
    assert!(verify(EVENTS_SECRET, signature, body, NOW).is_err());
}

/// A line with a time, which is signed with the body behind it.
fn signed_event(bytes: &[u8]) {
    let at = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let Ok(seconds) = std::str::from_utf8(&bytes[..at]) else { return };
    let body = &bytes[(at + 1).min(bytes.len())..];
    let key = hmac::Key::new(hmac::HMAC_SHA256, EVENTS_SECRET);
    let tag = hex::encode(hmac::sign(&key, &[seconds.as_bytes(), b".", body].concat()));
    let signature = format!("t={seconds},v1={tag}");
    let passes = verify(EVENTS_SECRET, &signature, body, NOW).is_ok();
    let digits = !seconds.is_empty() && seconds.len() <= 12 && seconds.bytes().all(|byte| byte.is_ascii_digit());
    let time = UnixMillis::new(if digits { seconds.parse::<u64>().unwrap() * 1_000 } else { 0 });
    assert_eq!(passes, digits && NOW.since(time) <= EVENT_AGE_MAX && time.since(NOW) <= EVENT_AGE_MAX, "{seconds}");
    if passes {
        assert!(verify(EVENTS_SECRET, &signature, &[body, b"x"].concat(), NOW).is_err());
        assert!(verify(EVENTS_SECRET, &format!("{signature}00"), body, NOW).is_err());
    }
}

fn texts(text: &str) {
    let site = Url::parse("https://api.envforge.ai/sign-in?x=y").unwrap();
    if let Ok(place) = ReturnTo::parse(text) {
        assert_eq!(place.as_str(), text);
        // As a browser reads it.
        assert_eq!(site.join(text).unwrap().origin(), site.origin(), "{text}");
    }
    if let Some(url) = PublicUrl::parse(text) {
        let origin = Url::parse(&url.origin()).unwrap();
        assert!(origin.path() == "/" && origin.query().is_none(), "{text}");
        assert_eq!(url.is_https(), origin.scheme() == "https");
        assert!(url.at("/v1/x").starts_with(&format!("{}/v1/x", url.origin())));
        assert_eq!(PublicUrl::parse(&url.origin()).map(|again| again.origin()), Some(url.origin()));
    }
    if let Some(challenge) = Challenge::parse(text) {
        assert_eq!(challenge.as_str(), text);
        assert_eq!(URL_SAFE_NO_PAD.encode(URL_SAFE_NO_PAD.decode(text).unwrap()), text, "two spellings");
    }
    assert_eq!(Challenge::of(&Secret::new(text.to_owned())).as_str().len(), 43);
}

fn settings(body: &[u8]) {
    let Ok(settings) = serde_json::from_slice::<Settings>(body) else { return };
    let Ok(config) = Config::check(settings, |_| Ok("a secret of sixteen characters".to_owned())) else { return };
    assert!(!config.algorithms().is_empty() && !config.organizations().is_empty());
    let ids: Vec<&str> = crate::oidc::Client::ALL
        .into_iter()
        .filter_map(|client| config.client(client))
        .map(|known| known.id())
        .collect();
    assert!(!ids.contains(&config.audience()));
    assert!(ids.iter().enumerate().all(|(index, id)| !ids[..index].contains(id)));
}

/// A secret of a request's body is never repeated in an error.
fn submitted(body: &[u8]) {
    let Err(error) = serde_json::from_slice::<SubmittedSecret>(body) else { return };
    if let Ok(value) = serde_json::from_slice::<Value>(body)
        && value.is_number()
        && value.to_string().len() > 3
    {
        assert!(!error.to_string().contains(&value.to_string()), "{error}");
    }
}
