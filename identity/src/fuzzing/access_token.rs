//! Access tokens: whoever is taken for signed in is whom the signed claims name.

use std::sync::LazyLock;

use envforge_domain::access::Role;
use envforge_domain::commit::Surface;
use envforge_domain::ids::{OrgId, SessionId, TeamId, UserId};
use envforge_domain::session::OpenSession;
use envforge_domain::time::{Millis, UnixMillis};
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::Value;

use super::{NOW, edited, parts, signed, uuid};
use crate::key_ring::KeyRing;
use crate::randomness::Randomness;
use crate::share_token::SigningKey;
use crate::tokens::{AccessTokens, Description, Session, SignedIn};

const ISSUER: &str = "https://envforge.test";
const AUDIENCE: &str = "https://api.envforge.test";
const SECRET: [u8; 32] = [7; 32];

struct Fixed {
    key: SigningKey,
    secret: AccessTokens,
    ring: AccessTokens,
    /// One of each.
    genuine: [String; 2],
}

static FIXED: LazyLock<Fixed> = LazyLock::new(|| {
    let key = SigningKey::of_seed(&[8; 32]);
    let of = |keys| AccessTokens::new(ISSUER.to_owned(), AUDIENCE.to_owned(), keys);
    let (secret, ring) = (of(KeyRing::of_secret(&SECRET)), of(KeyRing::of_key(&key)));
    let genuine = [&secret, &ring].map(|tokens| {
        let end = NOW.plus(Millis::from_hours(1));
        let session = Session {
            user: UserId::from_uuid(uuid(1)),
            org: OrgId::from_uuid(uuid(2)),
            session: SessionId::from_uuid(uuid(3)),
            expires_at: end,
        };
        let opened = OpenSession::of_local_account(Surface::Cli, NOW, end);
        let described = Description { roles: vec![Role::Owner], teams: vec![TeamId::from_uuid(uuid(4))] };
        tokens.mint(&session, &opened, &described, NOW, Randomness).unwrap().0.expose().to_owned()
    });
    Fixed { key, secret, ring, genuine }
});

pub fn access_token(bytes: &[u8]) {
    let Some((mode, rest)) = bytes.split_first() else { return };
    let Fixed { key, secret, ring, genuine } = &*FIXED;
    let token = match mode % 6 {
        0 => std::str::from_utf8(rest).ok().map(str::to_owned),
        1 => edited(&genuine[0], rest),
        2 => edited(&genuine[1], rest),
        3 => signed(rest, &EncodingKey::from_secret(&SECRET), Algorithm::HS256),
        4 => signed(rest, key.encoding(), Algorithm::EdDSA),
        // A public key as a secret: the classic confusion of algorithms.
        _ => signed(rest, &EncodingKey::from_secret(key.public()), Algorithm::HS256),
    };
    let Some(token) = token else { return };
    for (tokens, algorithm, kid) in [(secret, "HS256", None), (ring, "EdDSA", Some(key.id().as_str()))] {
        let Ok(signed_in) = tokens.verify(&token, NOW) else { continue };
        let ours = match mode % 6 {
            0..=2 => genuine.contains(&token),
            3 => algorithm == "HS256",
            4 => algorithm == "EdDSA",
            _ => false,
        };
        assert!(ours, "signed by nobody: {token}");
        let (header, claims) = parts(&token);
        assert_eq!((header["alg"].as_str(), header["typ"].as_str()), (Some(algorithm), Some("at+jwt")));
        assert_eq!(header.get("kid").and_then(Value::as_str), kid);
        holds(&signed_in, &claims);
    }
}

fn holds(signed_in: &SignedIn, claims: &Value) {
    let text = |name: &str| claims[name].as_str();
    let seconds = |name: &str| UnixMillis::new(claims[name].as_u64().unwrap().saturating_mul(1_000));
    assert_eq!((text("iss"), text("aud")), (Some(ISSUER), Some(AUDIENCE)));
    let SignedIn { user, org, session, surface, client, authenticated_at, expires_at } = signed_in;
    assert_eq!(text("sub"), Some(user.to_string().as_str()));
    assert_eq!(text("org"), Some(org.to_string().as_str()));
    assert_eq!(text("sid"), Some(session.to_string().as_str()));
    assert_eq!((text("surface"), text("client_id")), (Some(surface.token()), Some(client.as_str())));
    assert_eq!((seconds("auth_time"), seconds("exp")), (*authenticated_at, *expires_at));
    let leeway = Millis::from_secs(5);
    assert!(NOW < seconds("exp").plus(leeway) && seconds("iat") <= NOW.plus(leeway));
}
