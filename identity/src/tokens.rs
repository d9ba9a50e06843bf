//! Access tokens: JWTs of one hour, with organization, roles, teams and session as claims.
//!
//! Roles and teams are for other services. EnvForge itself takes the session from a token, with what was settled when it was
//! opened (surface, client) and when its person last proved who they are; it asks the authorization view for everything
//! else, so a right that is gone is gone within the hour too.

use envforge_domain::access::Role;
use envforge_domain::commit::Surface;
use envforge_domain::ids::{OrgId, SessionId, TeamId, UserId};
use envforge_domain::secret::Secret;
use envforge_domain::session::{ClientName, OpenSession};
use envforge_domain::time::{Millis, UnixMillis};
use jsonwebtoken::{Header, Validation};
use serde::{Deserialize, Serialize};

use crate::key_ring::{KeyRing, PublicKey};
use crate::randomness::{NoRandomness, Randomness};

/// How long an access token is good (SPEC, "Identity").
pub const ACCESS_LIFETIME: Millis = Millis::from_hours(1);
/// What clocks of two machines may differ.
const LEEWAY: Millis = Millis::from_secs(5);
/// No token of ours is longer: what is longer is not even decoded.
const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// RFC 9068 2.1: an access token cannot be taken for another kind of token signed with the same key.
const TYPE: &str = "at+jwt";

/// A session that the log knows, for which tokens are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Session {
    pub user: UserId,
    pub org: OrgId,
    pub session: SessionId,
    /// When the session ends, however often it is refreshed.
    pub expires_at: UnixMillis,
}

/// Whom a token speaks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedIn {
    pub user: UserId,
    pub org: OrgId,
    pub session: SessionId,
    /// Where the session counts, and nowhere else.
    pub surface: Surface,
    pub client: ClientName,
    /// When the person last proved who they are.
    pub authenticated_at: UnixMillis,
    /// The token is refused from then on.
    pub expires_at: UnixMillis,
}

/// What else a token tells other services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// Organization-wide roles held when it was made.
    pub roles: Vec<Role>,
    pub teams: Vec<TeamId>,
}

/// Why a token is refused. A client learns only that it is; the variants are for metrics and logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidToken {
    #[error("the access token is not one of ours")]
    Malformed,
    #[error("the access token was not signed with our key")]
    Signature,
    #[error("the access token is for somebody else")]
    Audience,
    #[error("the access token was made by somebody else")]
    Issuer,
    #[error("the access token has expired")]
    Expired,
    #[error("the access token is from the future")]
    NotYetValid,
}

impl InvalidToken {
    pub const fn code(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Signature => "signature",
            Self::Audience => "audience",
            Self::Issuer => "issuer",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
        }
    }
}

/// No token could be made.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    #[error("the access token could not be signed: {0}")]
    Sign(String),
    #[error("there is no key to sign access tokens with")]
    NoKey,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    sub: String,
    org: String,
    roles: Vec<String>,
    teams: Vec<String>,
    sid: String,
    surface: String,
    /// RFC 9068 2.2.
    client_id: String,
    auth_time: u64,
    /// Seconds, as RFC 7519 has them.
    iat: u64,
    exp: u64,
    jti: String,
}

/// Makes and proves access tokens of one issuer for one audience.
pub struct AccessTokens {
    issuer: String,
    audience: String,
    keys: KeyRing,
    validation: Validation,
}

impl AccessTokens {
    pub fn new(issuer: String, audience: String, keys: KeyRing) -> Self {
        // INVARIANT: the algorithm is ours alone to choose; what a token's header says is only compared.
        let mut validation = Validation::new(keys.algorithm());
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.set_issuer(&[&issuer]);
        validation.set_audience(&[&audience]);
        // Held against the clock that we are handed, below.
        validation.validate_exp = false;
        validation.leeway = 0;
        Self { issuer, audience, keys, validation }
    }

    /// Makes a token that ends with its session or after `ACCESS_LIFETIME`, whichever comes first.
    pub fn mint(
        &self,
        session: &Session,
        opened: &OpenSession,
        description: &Description,
        now: UnixMillis,
        randomness: Randomness,
    ) -> Result<(Secret, SignedIn), MintError> {
        let iat = now.get() / 1_000;
        let exp = now.plus(ACCESS_LIFETIME).min(session.expires_at).get() / 1_000;
        let claims = Claims {
            iss: self.issuer.clone(),
            aud: self.audience.clone(),
            sub: session.user.to_string(),
            org: session.org.to_string(),
            roles: description.roles.iter().map(|role| role.token().to_owned()).collect(),
            teams: description.teams.iter().map(TeamId::to_string).collect(),
            sid: session.session.to_string(),
            surface: opened.surface.token().to_owned(),
            client_id: opened.client.as_str().to_owned(),
            auth_time: opened.authenticated_at.get() / 1_000,
            iat,
            exp,
            jti: randomness.uuid_v7(now)?.simple().to_string(),
        };
        let signing = self.keys.signing(now).ok_or(MintError::NoKey)?;
        let header = Header { typ: Some(TYPE.to_owned()), kid: signing.kid, ..Header::new(signing.algorithm) };
        let token = jsonwebtoken::encode(&header, &claims, &signing.key).map_err(|e| MintError::Sign(e.to_string()))?;
        let seconds = |seconds: u64| UnixMillis::new(seconds * 1_000);
        let Session { user, org, session, .. } = *session;
        let signed_in = SignedIn {
            user,
            org,
            session,
            surface: opened.surface,
            client: opened.client.clone(),
            authenticated_at: seconds(opened.authenticated_at.get() / 1_000),
            expires_at: seconds(exp),
        };
        Ok((Secret::new(token), signed_in))
    }

    /// The public halves of the keys in use; none where tokens are signed with a secret.
    pub fn public_keys(&self, now: UnixMillis) -> Vec<PublicKey> {
        self.keys.public(now)
    }

    /// Proves a presented token.
    pub fn verify(&self, token: &str, now: UnixMillis) -> Result<SignedIn, InvalidToken> {
        use jsonwebtoken::errors::ErrorKind;
        if token.len() > TOKEN_BYTES_MAX {
            return Err(InvalidToken::Malformed);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| InvalidToken::Malformed)?;
        if header.alg != self.keys.algorithm() {
            return Err(InvalidToken::Malformed);
        }
        let key = self.keys.verifying(header.kid.as_deref(), now).ok_or(InvalidToken::Signature)?;
        let data =
            jsonwebtoken::decode::<Claims>(token, &key, &self.validation).map_err(|error| match error.kind() {
                ErrorKind::InvalidSignature => InvalidToken::Signature,
                ErrorKind::InvalidAudience => InvalidToken::Audience,
                ErrorKind::InvalidIssuer => InvalidToken::Issuer,
                _ => InvalidToken::Malformed,
            })?;
        if data.header.typ.as_deref() != Some(TYPE) {
            return Err(InvalidToken::Malformed);
        }
        let seconds = |seconds: u64| UnixMillis::new(seconds.saturating_mul(1_000));
        if now >= seconds(data.claims.exp).plus(LEEWAY) {
            return Err(InvalidToken::Expired);
        }
        if seconds(data.claims.iat) > now.plus(LEEWAY) {
            return Err(InvalidToken::NotYetValid);
        }
        Ok(SignedIn {
            user: data.claims.sub.parse().map_err(|_| InvalidToken::Malformed)?,
            org: data.claims.org.parse().map_err(|_| InvalidToken::Malformed)?,
            session: data.claims.sid.parse().map_err(|_| InvalidToken::Malformed)?,
            surface: Surface::from_token(&data.claims.surface).ok_or(InvalidToken::Malformed)?,
            client: ClientName::parse(&data.claims.client_id).map_err(|_| InvalidToken::Malformed)?,
            authenticated_at: seconds(data.claims.auth_time),
            expires_at: seconds(data.claims.exp),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::key_ring::SigningKeys;
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use jsonwebtoken::{Algorithm, EncodingKey};
    use proptest::prelude::*;
    use uuid::Uuid;

    const NOW: UnixMillis = UnixMillis::new(1_795_000_000_000);
    const KEY: [u8; 32] = [7; 32];

    fn tokens() -> AccessTokens {
        of(KeyRing::of_secret(&KEY))
    }

    fn of(keys: KeyRing) -> AccessTokens {
        AccessTokens::new("https://envforge.test".into(), "https://api.envforge.test".into(), keys)
    }

    fn mint(tokens: &AccessTokens, session_ends: UnixMillis) -> (Secret, SignedIn) {
        let id = Uuid::from_u128(9);
        let description = Description { roles: vec![Role::Owner], teams: vec![TeamId::from_uuid(id)] };
        let session = Session {
            user: UserId::from_uuid(id),
            org: OrgId::from_uuid(id),
            session: SessionId::from_uuid(id),
            expires_at: session_ends,
        };
        let opened = OpenSession::of_local_account(Surface::Cli, NOW.minus(Millis::from_minutes(5)), session_ends);
        tokens.mint(&session, &opened, &description, NOW, Randomness).unwrap()
    }

    fn forge(change: impl FnOnce(&mut serde_json::Value, &mut serde_json::Value), key: &[u8]) -> String {
        let (token, _) = mint(&tokens(), NOW.plus(Millis::from_hours(24)));
        let mut parts =
            token.expose().split('.').take(2).map(|part| {
                serde_json::from_slice::<serde_json::Value>(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
            });
        let (mut header, mut claims) = (parts.next().unwrap(), parts.next().unwrap());
        change(&mut header, &mut claims);
        let message =
            format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signature =
            jsonwebtoken::crypto::sign(message.as_bytes(), &EncodingKey::from_secret(key), Algorithm::HS256).unwrap();
        format!("{message}.{signature}")
    }

    #[test]
    fn a_token_is_read_back_as_whom_it_was_made_for() {
        let tokens = tokens();
        let (token, signed_in) = mint(&tokens, NOW.plus(Millis::from_hours(24)));
        assert_eq!(tokens.verify(token.expose(), NOW), Ok(signed_in.clone()));
        assert_eq!(signed_in.expires_at, NOW.plus(ACCESS_LIFETIME));
        assert_eq!((signed_in.surface, signed_in.client.as_str()), (Surface::Cli, "cli"));
        assert_eq!(signed_in.authenticated_at, NOW.minus(Millis::from_minutes(5)));
    }

    #[test]
    fn a_token_ends_with_its_session() {
        let tokens = tokens();
        let end = NOW.plus(Millis::from_secs(90));
        let (token, signed_in) = mint(&tokens, end);
        assert_eq!(signed_in.expires_at, end);
        assert!(tokens.verify(token.expose(), end.plus(Millis::from_secs(4))).is_ok());
        assert_eq!(tokens.verify(token.expose(), end.plus(LEEWAY)), Err(InvalidToken::Expired));
        assert_eq!(tokens.verify(token.expose(), NOW.minus(Millis::from_secs(6))), Err(InvalidToken::NotYetValid));
    }

    #[test]
    fn a_forged_token_is_refused_for_what_is_wrong_with_it() {
        use serde_json::json;
        let verify = |token: &str| tokens().verify(token, NOW);
        assert!(verify(&forge(|_, _| {}, &KEY)).is_ok(), "the forge itself works");
        assert_eq!(verify(&forge(|_, _| {}, &[8; 32])), Err(InvalidToken::Signature));
        assert_eq!(verify(&forge(|_, claims| claims["aud"] = json!("other"), &KEY)), Err(InvalidToken::Audience));
        assert_eq!(verify(&forge(|_, claims| claims["iss"] = json!("other"), &KEY)), Err(InvalidToken::Issuer));
        for claim in ["exp", "iss", "aud", "sub", "org", "sid", "surface", "client_id", "auth_time", "iat", "jti"] {
            let without = forge(|_, claims| drop(claims.as_object_mut().unwrap().remove(claim)), &KEY);
            assert_eq!(verify(&without), Err(InvalidToken::Malformed), "without {claim}");
        }
        for (what, value) in [("alg", "none"), ("alg", "HS512"), ("alg", "RS256"), ("typ", "JWT"), ("typ", "share+jwt")]
        {
            let other = forge(|header, _| header[what] = json!(value), &KEY);
            assert_eq!(verify(&other), Err(InvalidToken::Malformed), "{what} {value}");
        }
        let user_as_org = forge(|_, claims| claims["org"] = claims["sub"].clone(), &KEY);
        assert_eq!(verify(&user_as_org), Err(InvalidToken::Malformed));
    }

    #[test]
    fn a_token_of_a_key_ring_names_its_key_and_no_other_kind_of_token_passes_there() {
        let directory = tempfile::tempdir().unwrap();
        let keys = SigningKeys::EdDsa { folder: directory.path().to_owned() };
        let ring = of(KeyRing::open(&keys, ACCESS_LIFETIME, NOW).unwrap());
        let (token, signed_in) = mint(&ring, NOW.plus(ACCESS_LIFETIME));
        let public = ring.public_keys(NOW);
        assert_eq!(jsonwebtoken::decode_header(token.expose()).unwrap().kid.as_deref(), Some(public[0].kid.as_str()));
        assert_eq!(ring.verify(token.expose(), NOW), Ok(signed_in));
        // As a service elsewhere verifies, with the public key alone.
        let key = jsonwebtoken::DecodingKey::from_ed_components(&public[0].x).unwrap();
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_audience(&["https://api.envforge.test"]);
        validation.validate_exp = false;
        assert!(jsonwebtoken::decode::<Claims>(token.expose(), &key, &validation).is_ok());
        let (secret_token, _) = mint(&tokens(), NOW.plus(ACCESS_LIFETIME));
        assert_eq!(ring.verify(secret_token.expose(), NOW), Err(InvalidToken::Malformed));
        assert_eq!(tokens().verify(token.expose(), NOW), Err(InvalidToken::Malformed));
        // The public key as a secret: the classic confusion of algorithms.
        let confused = forge(|header, _| header["kid"] = public[0].kid.clone().into(), public[0].x.as_bytes());
        assert_eq!(ring.verify(&confused, NOW), Err(InvalidToken::Malformed));
    }

    #[test]
    fn an_unsigned_token_is_refused() {
        let (token, _) = mint(&tokens(), NOW.plus(ACCESS_LIFETIME));
        let unsigned = format!("{}.", token.expose().rsplit_once('.').unwrap().0);
        assert!(tokens().verify(&unsigned, NOW).is_err());
    }

    proptest! {
        #[test]
        fn whatever_is_presented_never_panics_and_never_passes(text in "[A-Za-z0-9_.=-]{0,300}") {
            prop_assert!(tokens().verify(&text, NOW).is_err());
        }

        #[test]
        fn a_token_with_one_changed_character_is_refused(position in 0_usize..200, replacement in "[A-Za-z0-9_-]") {
            let (token, _) = mint(&tokens(), NOW.plus(ACCESS_LIFETIME));
            let mut bytes = token.expose().as_bytes().to_vec();
            let position = position % (bytes.len() - 1);
            prop_assume!(bytes[position] != replacement.as_bytes()[0]);
            bytes[position] = replacement.as_bytes()[0];
            prop_assert!(tokens().verify(std::str::from_utf8(&bytes).unwrap(), NOW).is_err());
        }
    }
}
