//! A provider's tokens: what passes was signed by the key that it names, is of one kind, and for us.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use envforge_domain::time::{Millis, UnixMillis};
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};

use super::{NOW, edited, parts, signed};
use crate::oidc::keys::KeySet;
use crate::oidc::token::Unverified;
use crate::oidc::{Config, InvalidToken};
use crate::share_token::SigningKey;

const ISSUER: &str = "https://tenant.us.auth0.com/";
const AUDIENCE: &str = "https://api.envforge.ai";
const HEADER: &str = r#"{"alg":"EdDSA","kid":"one","typ":"JWT"}"#;

struct Fixed {
    key: SigningKey,
    keys: KeySet,
    config: Config,
    genuine: String,
}

static FIXED: LazyLock<Fixed> = LazyLock::new(|| {
    let key = SigningKey::of_seed(&[10; 32]);
    let document = json!({ "keys": [
        { "kty": "OKP", "crv": "Ed25519", "kid": "one", "x": URL_SAFE_NO_PAD.encode(key.public()) },
        { "kty": "RSA", "kid": "two", "alg": "RS256", "n": URL_SAFE_NO_PAD.encode([0xff; 256]), "e": "AQAB" },
    ] });
    let settings = json!({
        "issuer": ISSUER, "audience": AUDIENCE, "api_url": "https://api.envforge.ai",
        "clients": { "web": { "id": "web" }, "cli": { "id": "cli" }, "gateway": { "id": "gateway" } },
        "organizations": [{ "provider_id": "org_1", "slug": "acme" }], "algorithms": ["RS256", "ES256", "EdDSA"],
        "organization_claims": ["org_id", "https://envforge.ai/org_id"],
    });
    let settings = serde_json::from_value(settings).unwrap();
    let config = Config::check(settings, |_| Err(std::io::ErrorKind::NotFound.into())).unwrap();
    let claims = json!({ "iss": ISSUER, "aud": "web", "sub": "auth0|ada", "org_id": "org_1", "iat": seconds(), "exp": seconds() + 60 });
    let genuine = signed(format!("{HEADER}\n{claims}").as_bytes(), key.encoding(), Algorithm::EdDSA).unwrap();
    Fixed { keys: KeySet::parse(document.to_string().as_bytes()).unwrap(), key, config, genuine }
});

fn seconds() -> u64 {
    NOW.get() / 1_000
}

pub fn oidc_token(bytes: &[u8]) {
    let Some((mode, rest)) = bytes.split_first() else { return };
    let Fixed { key, keys, config, genuine } = &*FIXED;
    let token = match mode % 4 {
        0 => std::str::from_utf8(rest).ok().map(str::to_owned),
        1 => edited(genuine, rest),
        2 => signed(rest, key.encoding(), Algorithm::EdDSA),
        _ => signed(rest, &EncodingKey::from_secret(key.public()), Algorithm::HS256),
    };
    let Some(token) = token else { return };
    let verified = || {
        let unverified = Unverified::parse(&token, config.algorithms())?;
        let (algorithm, key) = keys.get(unverified.kid()).ok_or(InvalidToken::UnknownKey)?;
        if *algorithm != unverified.algorithm() {
            return Err(InvalidToken::Algorithm);
        }
        unverified.verify(key)
    };
    if let Err(error) = verified() {
        assert!(token != *genuine, "{error}");
        return;
    }
    assert!(mode % 4 == 2 || token == *genuine, "signed by nobody: {token}");
    let (header, claims) = parts(&token);
    assert_eq!((header["alg"].as_str(), header["kid"].as_str()), (Some("EdDSA"), Some("one")));
    for forbidden in ["jku", "x5u", "jwk", "x5c", "x5t", "x5t#S256", "crit", "b64", "zip"] {
        assert!(header.get(forbidden).is_none(), "{forbidden}");
    }
    let id = verified().and_then(|signed| signed.into_id_token(config, "web", Some("n"), NOW));
    let access = verified().and_then(|signed| signed.into_access_token(config, "web", NOW));
    let logout = verified().and_then(|signed| signed.into_logout_token(config, NOW));
    let kinds = [id.is_ok(), access.is_ok(), logout.is_ok()];
    assert!(kinds.iter().filter(|kind| **kind).count() < 2, "{kinds:?}: {claims}");
    if !kinds.contains(&true) {
        return;
    }
    let text = |name: &str| claims[name].as_str();
    let audiences: Vec<&str> = match &claims["aud"] {
        Value::Array(all) => all.iter().map(|one| one.as_str().unwrap()).collect(),
        one => vec![one.as_str().unwrap()],
    };
    assert_eq!(text("iss"), Some(ISSUER));
    let leeway = Millis::from_secs(60);
    let at = |name: &str| {
        let whole = claims[name].as_u64().or_else(|| claims[name].as_f64().map(|real| real as u64));
        whole.map(|seconds| UnixMillis::new(seconds.saturating_mul(1_000)))
    };
    assert!(at("iat").unwrap() <= NOW.plus(leeway));
    assert!(at("nbf").is_none_or(|begin| begin <= NOW.plus(leeway)));
    assert!(at("exp").is_none_or(|end| NOW < end.plus(leeway)));
    let organizations: Vec<&str> =
        ["org_id", "https://envforge.ai/org_id"].iter().filter_map(|name| text(name)).collect();
    let kind = header["typ"].as_str().map(str::to_ascii_lowercase);
    if let Ok(id) = id {
        assert_eq!((audiences.as_slice(), text("nonce")), (&["web"][..], Some("n")));
        assert!(claims.get("events").is_none_or(Value::is_null) && kind.as_deref().is_none_or(|kind| kind == "jwt"));
        assert_eq!(text("sub"), Some(id.subject.as_str()));
        assert!(!organizations.is_empty() && organizations.iter().all(|one| *one == id.organization));
        assert!(text("azp").is_none_or(|azp| azp == "web"));
        assert!(id.email.is_none() || (claims["email_verified"] == true && text("email") == id.email.as_deref()));
        assert_eq!(Some(id.expires_at), at("exp"));
    }
    if let Ok(access) = access {
        assert!(audiences.contains(&AUDIENCE));
        let named: Vec<&str> = ["azp", "client_id"].iter().filter_map(|name| text(name)).collect();
        assert!(!named.is_empty() && named.iter().all(|one| *one == "web"));
        assert_eq!((text("sub"), Some(access.expires_at)), (Some(access.subject.as_str()), at("exp")));
        assert!(!organizations.is_empty() && organizations.iter().all(|one| *one == access.organization));
    }
    if let Ok(logout) = logout {
        assert!(kind.is_some_and(|kind| kind.ends_with("logout+jwt")));
        assert!(matches!(audiences.as_slice(), ["web" | "cli" | "gateway"]));
        assert!(claims["events"]["http://schemas.openid.net/event/backchannel-logout"].is_object());
        assert!(claims.get("nonce").is_none_or(Value::is_null));
        assert!(logout.subject.is_some() || logout.provider_session.is_some());
        assert!(logout.subject.is_none() || logout.subject.as_deref() == text("sub"));
        assert!(logout.provider_session.is_none() || logout.provider_session.as_deref() == text("sid"));
        assert_eq!(text("jti"), Some(logout.id.as_str()));
        assert!(NOW < logout.expires_at && logout.expires_at <= logout.issued_at.plus(Millis::from_minutes(11)));
    }
}
