//! Tokens made by hand with keys of our own: each wrong in one way, and refused for that.
#![allow(clippy::unwrap_used)]

use std::sync::LazyLock;

use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::oidc::{Client, Settings};

const NOW: UnixMillis = UnixMillis::new(1_795_000_000_000);
const SECONDS: u64 = 1_795_000_000;
const ISSUER: &str = "https://tenant.us.auth0.com/";
const AUDIENCE: &str = "https://api.envforge.ai";

// Keys of these tests and of nothing else: to make one takes seconds without optimisation.
static RSA: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::from_pkcs8(include_bytes!("rsa_one.pk8")).unwrap());
static OTHER_RSA: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::from_pkcs8(include_bytes!("rsa_two.pk8")).unwrap());
static CONFIG: LazyLock<Config> = LazyLock::new(|| config(json!({})));

fn config(more: Value) -> Config {
    let mut settings = json!({
        "issuer": ISSUER, "audience": AUDIENCE, "api_url": "https://api.envforge.ai",
        "clients": { "web": { "id": "web" }, "cli": { "id": "cli" }, "gateway": { "id": "gateway" } },
        "organizations": [{ "provider_id": "org_1", "slug": "acme" }],
    });
    for (name, value) in more.as_object().unwrap() {
        settings[name] = value.clone();
    }
    let settings: Settings = serde_json::from_value(settings).unwrap();
    Config::check(settings, |_| Err(std::io::ErrorKind::NotFound.into())).unwrap()
}

fn encoded(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

fn signed_by(key: &KeyPair, header: &Value, claims: &Value) -> String {
    let message = format!("{}.{}", encoded(header), encoded(claims));
    let mut signature = vec![0; key.public_modulus_len()];
    let random = aws_lc_rs::rand::SystemRandom::new();
    key.sign(&RSA_PKCS1_SHA256, &random, message.as_bytes(), &mut signature).unwrap();
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn header() -> Value {
    json!({"alg": "RS256", "kid": "one", "typ": "JWT"})
}

fn id_claims() -> Value {
    json!({
        "iss": ISSUER, "aud": "web", "sub": "auth0|ada", "org_id": "org_1", "nonce": "n", "sid": "s", "iat": SECONDS, "exp": SECONDS + 3_600,
        "email": "ada@acme.test", "email_verified": true, "name": "Ada"
    })
}

fn access_claims() -> Value {
    json!({
        "iss": ISSUER, "aud": [AUDIENCE, "https://tenant.us.auth0.com/userinfo"], "sub": "auth0|ada", "org_id": "org_1", "azp": "web",
        "iat": SECONDS, "exp": SECONDS + 86_400, "permissions": []
    })
}

fn logout_claims() -> Value {
    json!({
        "iss": ISSUER, "aud": "web", "sub": "auth0|ada", "sid": "s", "jti": "j", "iat": SECONDS, "exp": SECONDS + 120,
        "events": { LOGOUT_EVENT: {} }
    })
}

fn with(mut value: Value, member: &str, replaced: Value) -> Value {
    if replaced.is_null() {
        value.as_object_mut().unwrap().remove(member);
    } else {
        value[member] = replaced;
    }
    value
}

fn proven(token: &str, key: &KeyPair, config: &Config) -> Result<Signed, InvalidToken> {
    let key = DecodingKey::from_rsa_der(key.public_key().as_ref());
    Unverified::parse(token, config.algorithms())?.verify(&key)
}

fn id_of(claims: &Value) -> Result<IdToken, InvalidToken> {
    id_at(claims, NOW)
}

fn id_at(claims: &Value, now: UnixMillis) -> Result<IdToken, InvalidToken> {
    proven(&signed_by(&RSA, &header(), claims), &RSA, &CONFIG)?.into_id_token(&CONFIG, "web", Some("n"), now)
}

fn access_of(claims: &Value, client: &str) -> Result<AccessToken, InvalidToken> {
    proven(&signed_by(&RSA, &header(), claims), &RSA, &CONFIG)?.into_access_token(&CONFIG, client, NOW)
}

fn logout_of(kind: Option<&str>, claims: &Value) -> Result<LogoutToken, InvalidToken> {
    let header = with(header(), "typ", kind.map_or(Value::Null, Into::into));
    proven(&signed_by(&RSA, &header, claims), &RSA, &CONFIG)?.into_logout_token(&CONFIG, NOW)
}

fn header_refused(header: &Value) -> InvalidToken {
    proven(&signed_by(&RSA, header, &id_claims()), &RSA, &CONFIG).err().unwrap()
}

#[test]
fn a_good_id_token_says_who_signed_in_where() {
    let id = id_of(&id_claims()).unwrap();
    assert_eq!((id.subject.as_str(), id.organization.as_str()), ("auth0|ada", "org_1"));
    assert_eq!((id.email.as_deref(), id.name.as_deref()), (Some("ada@acme.test"), Some("Ada")));
    assert_eq!(id.provider_session.as_deref(), Some("s"));
    assert_eq!((id.authenticated_at, id.expires_at), (NOW, NOW.plus(Millis::from_hours(1))));
    let earlier = id_of(&with(id_claims(), "auth_time", json!(SECONDS - 60))).unwrap();
    assert_eq!(earlier.authenticated_at, NOW.minus(Millis::from_minutes(1)));
}

#[test]
fn an_address_that_the_provider_has_not_verified_is_none() {
    for verified in [json!(null), json!(false)] {
        assert_eq!(id_of(&with(id_claims(), "email_verified", verified)).unwrap().email, None);
    }
}

#[test]
fn each_way_in_which_an_id_token_can_be_wrong_has_its_reason() {
    use InvalidToken as Wrong;
    for (member, value, reason) in [
        ("iss", json!("https://tenant.us.auth0.com"), Wrong::Issuer),
        ("iss", json!("https://other.us.auth0.com/"), Wrong::Issuer),
        ("aud", json!("cli"), Wrong::Client),
        ("aud", json!(["gateway"]), Wrong::Client),
        ("aud", json!("somebody"), Wrong::Audience),
        ("aud", json!(["web", "somebody"]), Wrong::Audience),
        ("aud", json!([]), Wrong::Audience),
        ("aud", json!(AUDIENCE), Wrong::Audience),
        ("azp", json!("cli"), Wrong::Client),
        ("exp", json!(SECONDS - 61), Wrong::Expired),
        ("nbf", json!(SECONDS + 61), Wrong::NotYetValid),
        ("iat", json!(SECONDS + 61), Wrong::FromTheFuture),
        ("org_id", json!(null), Wrong::NoOrganization),
        ("org_id", json!(""), Wrong::NoOrganization),
        ("org_id", json!(["org_1"]), Wrong::NoOrganization),
        ("nonce", json!("m"), Wrong::Nonce),
        ("nonce", json!(null), Wrong::Nonce),
        ("nonce", json!(["n"]), Wrong::Nonce),
        ("sub", json!(null), Wrong::Subject),
        ("sub", json!(""), Wrong::Subject),
        ("sub", json!("s".repeat(256)), Wrong::Subject),
        ("exp", json!(null), Wrong::Malformed),
        ("iat", json!(null), Wrong::Malformed),
        ("exp", json!("soon"), Wrong::Malformed),
        ("exp", json!(-1), Wrong::Malformed),
        ("iss", json!(null), Wrong::Malformed),
        ("aud", json!(7), Wrong::Malformed),
        ("events", json!({}), Wrong::Type),
    ] {
        assert_eq!(id_of(&with(id_claims(), member, value.clone())), Err(reason), "{member} {value}");
    }
}

#[test]
fn clocks_may_differ_by_a_minute_and_no_more() {
    let end = NOW.plus(Millis::from_hours(1));
    assert!(id_at(&id_claims(), end.plus(Millis::new(59_999))).is_ok());
    assert_eq!(id_at(&id_claims(), end.plus(Millis::new(60_000))), Err(InvalidToken::Expired));
    assert!(id_at(&id_claims(), NOW.minus(Millis::new(60_000))).is_ok());
    assert_eq!(id_at(&id_claims(), NOW.minus(Millis::new(60_001))), Err(InvalidToken::FromTheFuture));
}

#[test]
fn a_token_does_not_choose_its_algorithm_or_its_key() {
    use InvalidToken as Wrong;
    for alg in ["none", "None", "NONE", "nOnE"] {
        let unsigned = format!("{}.{}.", encoded(&json!({"alg": alg, "kid": "one"})), encoded(&id_claims()));
        assert_eq!(proven(&unsigned, &RSA, &CONFIG).err(), Some(Wrong::AlgorithmNone), "{alg}");
    }
    for (alg, reason) in [
        ("HS256", Wrong::AlgorithmSymmetric),
        ("HS512", Wrong::AlgorithmSymmetric),
        ("ES256", Wrong::Algorithm),
        ("EdDSA", Wrong::Algorithm),
        ("PS256", Wrong::Algorithm),
        ("RS512", Wrong::Algorithm),
        ("rs256", Wrong::Algorithm),
        ("", Wrong::Algorithm),
    ] {
        assert_eq!(header_refused(&with(header(), "alg", json!(alg))), reason, "{alg}");
    }
    for name in FORBIDDEN_PARAMETERS {
        let refused = header_refused(&with(header(), name, json!("https://evil.example/keys")));
        assert_eq!(refused, Wrong::HeaderParameter(name));
    }
    assert_eq!(header_refused(&with(header(), "kid", json!(null))), Wrong::NoKeyId);
    assert_eq!(header_refused(&with(header(), "kid", json!("k".repeat(257)))), Wrong::NoKeyId);
    assert_eq!(header_refused(&with(header(), "alg", json!(null))), Wrong::Malformed);
    assert_eq!(header_refused(&with(header(), "padding", json!("p".repeat(4_096)))), Wrong::Malformed);
}

#[test]
fn the_public_key_is_no_shared_secret() {
    let message = format!("{}.{}", encoded(&json!({"alg": "HS256", "kid": "one"})), encoded(&id_claims()));
    let secret = jsonwebtoken::EncodingKey::from_secret(RSA.public_key().as_ref());
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &secret, Algorithm::HS256).unwrap();
    let forged = format!("{message}.{signature}");
    assert_eq!(proven(&forged, &RSA, &CONFIG).err(), Some(InvalidToken::AlgorithmSymmetric));
    // Relabelled: the signature is checked as what it is said to be, by the key that is published.
    let message = format!("{}.{}", encoded(&header()), encoded(&id_claims()));
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &secret, Algorithm::HS256).unwrap();
    assert_eq!(proven(&format!("{message}.{signature}"), &RSA, &CONFIG).err(), Some(InvalidToken::Signature));
}

#[test]
fn only_the_providers_key_signs() {
    let token = signed_by(&OTHER_RSA, &header(), &id_claims());
    assert_eq!(proven(&token, &RSA, &CONFIG).err(), Some(InvalidToken::Signature));
    let good = signed_by(&RSA, &header(), &id_claims());
    let (message, _) = good.rsplit_once('.').unwrap();
    assert_eq!(proven(&format!("{message}."), &RSA, &CONFIG).err(), Some(InvalidToken::Signature));
    let (_, signature) = good.rsplit_once('.').unwrap();
    let other = format!("{}.{}.{signature}", encoded(&header()), encoded(&with(id_claims(), "sub", json!("eve"))));
    assert_eq!(proven(&other, &RSA, &CONFIG).err(), Some(InvalidToken::Signature));
    for nonsense in ["", ".", "..", "a.b", "a.b.c", "a.b.c.d", "é.é.é"] {
        assert_eq!(proven(nonsense, &RSA, &CONFIG).err(), Some(InvalidToken::Malformed), "{nonsense}");
    }
    let long = format!("{good}{}", "A".repeat(TOKEN_BYTES_MAX));
    assert_eq!(proven(&long, &RSA, &CONFIG).err(), Some(InvalidToken::TooLong));
}

#[test]
fn a_claim_that_stands_twice_is_no_claim() {
    let claims = id_claims().to_string().replacen('{', r#"{"sub":"eve","#, 1);
    let message = format!("{}.{}", encoded(&header()), URL_SAFE_NO_PAD.encode(claims));
    let mut signature = vec![0; RSA.public_modulus_len()];
    let random = aws_lc_rs::rand::SystemRandom::new();
    RSA.sign(&RSA_PKCS1_SHA256, &random, message.as_bytes(), &mut signature).unwrap();
    let token = format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature));
    assert_eq!(proven(&token, &RSA, &CONFIG).err(), Some(InvalidToken::Malformed));
}

#[test]
fn an_access_token_is_for_our_audience_and_the_surfaces_own_client() {
    use InvalidToken as Wrong;
    assert_eq!(access_of(&access_claims(), "web").unwrap().subject, "auth0|ada");
    assert!(access_of(&with(access_claims(), "aud", json!(AUDIENCE)), "web").is_ok());
    for client in ["cli", "gateway"] {
        assert_eq!(access_of(&access_claims(), client), Err(Wrong::Client), "{client}");
    }
    // RFC 9068 names the client otherwise; both must say the same.
    let rfc = with(with(access_claims(), "azp", json!(null)), "client_id", json!("web"));
    assert!(access_of(&rfc, "web").is_ok());
    assert_eq!(access_of(&with(rfc, "azp", json!("cli")), "web"), Err(Wrong::Client));
    for (member, value, reason) in [
        ("aud", json!("https://other.example"), Wrong::Audience),
        ("aud", json!(vec![AUDIENCE; 17]), Wrong::Audience),
        ("azp", json!(null), Wrong::Client),
        ("iss", json!("https://tenant.us.auth0.com"), Wrong::Issuer),
        ("exp", json!(SECONDS - 61), Wrong::Expired),
        ("org_id", json!(null), Wrong::NoOrganization),
    ] {
        assert_eq!(access_of(&with(access_claims(), member, value.clone()), "web"), Err(reason), "{member} {value}");
    }
    assert_eq!(access_of(&id_claims(), "web"), Err(Wrong::Audience), "an ID token is no access token");
    assert_eq!(id_of(&access_claims()), Err(Wrong::Audience), "nor the other way round");
}

#[test]
fn a_token_of_another_type_is_refused() {
    let typed = |kind: &str| with(header(), "typ", json!(kind));
    let id = |kind: &str| {
        proven(&signed_by(&RSA, &typed(kind), &id_claims()), &RSA, &CONFIG)?.into_id_token(&CONFIG, "web", None, NOW)
    };
    assert!(id("jwt").is_ok());
    for kind in ["at+jwt", "logout+jwt", "secevent+jwt"] {
        assert_eq!(id(kind), Err(InvalidToken::Type), "{kind}");
    }
    let access = |kind: &str| {
        let token = signed_by(&RSA, &typed(kind), &access_claims());
        proven(&token, &RSA, &CONFIG)?.into_access_token(&CONFIG, "web", NOW)
    };
    assert!(access("at+jwt").is_ok() && access("application/at+jwt").is_ok());
    assert_eq!(access("logout+jwt"), Err(InvalidToken::Type));
}

#[test]
fn a_logout_token_names_whom_it_logs_out_and_is_nothing_else() {
    use InvalidToken as Wrong;
    let kind = Some("logout+jwt");
    let logout = logout_of(kind, &logout_claims()).unwrap();
    assert_eq!(
        (logout.id.as_str(), logout.subject.as_deref(), logout.provider_session.as_deref()),
        ("j", Some("auth0|ada"), Some("s"))
    );
    assert!(logout_of(kind, &with(logout_claims(), "sid", json!(null))).is_ok());
    assert!(logout_of(kind, &with(logout_claims(), "aud", json!("cli"))).is_ok(), "any client of ours");
    for other in [None, Some("JWT"), Some("at+jwt")] {
        assert_eq!(logout_of(other, &logout_claims()), Err(Wrong::Type), "{other:?}");
    }
    for (member, value, reason) in [
        ("events", json!(null), Wrong::Event),
        ("events", json!({"http://schemas.openid.net/event/other": {}}), Wrong::Event),
        ("events", json!({LOGOUT_EVENT: true}), Wrong::Event),
        ("nonce", json!("n"), Wrong::Nonce),
        ("jti", json!(null), Wrong::NoTokenId),
        ("aud", json!("somebody"), Wrong::Audience),
        ("aud", json!(AUDIENCE), Wrong::Audience),
        ("iss", json!("https://evil.example/"), Wrong::Issuer),
        ("iat", json!(SECONDS - 661), Wrong::Expired),
        ("exp", json!(SECONDS - 61), Wrong::Expired),
    ] {
        assert_eq!(logout_of(kind, &with(logout_claims(), member, value.clone())), Err(reason), "{member} {value}");
    }
    let nobody = with(with(logout_claims(), "sid", json!(null)), "sub", json!(null));
    assert_eq!(logout_of(kind, &nobody), Err(Wrong::NobodyToLogOut));
}

#[test]
fn a_claim_of_another_name_may_stand_for_the_organization_and_several_must_agree() {
    let config = config(json!({"organization_claims": ["org_id", "https://envforge.ai/org_id"]}));
    let of = |claims: &Value| {
        let signed = proven(&signed_by(&RSA, &header(), claims), &RSA, &config)?;
        signed.into_id_token(&config, "web", None, NOW).map(|id| id.organization)
    };
    let custom = "https://envforge.ai/org_id";
    assert_eq!(of(&with(with(id_claims(), "org_id", json!(null)), custom, json!("org_2"))).unwrap(), "org_2");
    assert_eq!(of(&with(id_claims(), custom, json!("org_1"))).unwrap(), "org_1");
    assert_eq!(of(&with(id_claims(), custom, json!("org_2"))), Err(InvalidToken::OtherOrganization));
}

#[test]
fn another_algorithm_counts_where_it_is_configured() {
    let config = config(json!({"algorithms": ["EdDSA"]}));
    let key = Ed25519KeyPair::generate().unwrap();
    let message = format!("{}.{}", encoded(&with(header(), "alg", json!("EdDSA"))), encoded(&id_claims()));
    let token = format!("{message}.{}", URL_SAFE_NO_PAD.encode(key.sign(message.as_bytes())));
    let decoding = DecodingKey::from_ed_der(key.public_key().as_ref());
    let verified = Unverified::parse(&token, config.algorithms()).unwrap().verify(&decoding);
    assert!(verified.unwrap().into_id_token(&config, "web", Some("n"), NOW).is_ok());
    let rsa = signed_by(&RSA, &header(), &id_claims());
    assert_eq!(Unverified::parse(&rsa, config.algorithms()).err(), Some(InvalidToken::Algorithm));
    // A key of one kind never proves a signature of another.
    let rsa_key = DecodingKey::from_rsa_der(RSA.public_key().as_ref());
    let confused = Unverified::parse(&token, config.algorithms()).unwrap().verify(&rsa_key);
    assert_eq!(confused.err(), Some(InvalidToken::Signature));
}

#[test]
fn every_surface_refuses_the_others_tokens() {
    for of in Client::ALL {
        for on in Client::ALL {
            let id = with(id_claims(), "aud", json!(of.token()));
            let id = proven(&signed_by(&RSA, &header(), &id), &RSA, &CONFIG).unwrap();
            let id = id.into_id_token(&CONFIG, on.token(), None, NOW).map(drop);
            let access = access_of(&with(access_claims(), "azp", json!(of.token())), on.token()).map(drop);
            let expected = if of == on { Ok(()) } else { Err(InvalidToken::Client) };
            assert_eq!((id, access), (expected, expected), "{of:?} on {on:?}");
        }
    }
}

proptest! {
    #[test]
    fn whatever_is_presented_never_panics_and_never_passes(text in "\\PC{0,300}") {
        prop_assert!(proven(&text, &RSA, &CONFIG).is_err());
    }

    #[test]
    fn whatever_stands_in_three_parts_never_panics_and_never_passes(
        header in proptest::collection::vec(any::<u8>(), 0..200),
        claims in proptest::collection::vec(any::<u8>(), 0..200),
        signature in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let parts = [header, claims, signature].map(|part| URL_SAFE_NO_PAD.encode(part));
        prop_assert!(proven(&parts.join("."), &RSA, &CONFIG).is_err());
    }

    #[test]
    fn a_good_header_and_whatever_claims_never_panic(
        name in "iss|aud|sub|exp|iat|nbf|azp|nonce|sid|jti|events|org_id|auth_time|email",
        value in "null|true|-1|0|1e300|9223372036854775808|\"\"|\"x\"|\\[\\]|\\[\"web\"\\]|\\{\\}",
    ) {
        let value: Value = serde_json::from_str(&value).unwrap();
        for (kind, claims) in [("JWT", id_claims()), ("at+jwt", access_claims()), ("logout+jwt", logout_claims())] {
            let mut claims = claims;
            claims[&name] = value.clone();
            let token = signed_by(&RSA, &with(header(), "typ", json!(kind)), &claims);
            for look in 0..3 {
                let Ok(signed) = proven(&token, &RSA, &CONFIG) else { continue };
                match look {
                    0 => drop(signed.into_id_token(&CONFIG, "web", Some("n"), NOW)),
                    1 => drop(signed.into_access_token(&CONFIG, "web", NOW)),
                    _ => drop(signed.into_logout_token(&CONFIG, NOW)),
                }
            }
        }
    }

    #[test]
    fn a_token_with_one_changed_character_is_refused(position in 0_usize..700, replacement in "[A-Za-z0-9_-]") {
        static TOKEN: LazyLock<String> = LazyLock::new(|| signed_by(&RSA, &header(), &id_claims()));
        let mut bytes = TOKEN.as_bytes().to_vec();
        // The last character's low bits are no part of the signature; decoders differ about them.
        let position = position % (bytes.len() - 1);
        prop_assume!(bytes[position] != replacement.as_bytes()[0] && bytes[position] != b'.');
        bytes[position] = replacement.as_bytes()[0];
        prop_assert!(proven(std::str::from_utf8(&bytes).unwrap(), &RSA, &CONFIG).is_err());
    }
}
