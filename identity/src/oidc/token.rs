//! The provider's tokens: ID tokens, access tokens for our audience, logout tokens; each refused for a reason of its own.
//!
//! A token passes in three steps, each a type of its own: `Unverified` (its form and header), `Signed` (the signature is the provider's), and
//! what it is taken for. Not here: where keys come from (`keys`).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use envforge_domain::time::{Millis, UnixMillis};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde_json::{Map, Number, Value};

use super::config::Config;
use super::provider::ProviderError;

/// What is longer is not even decoded. Auth0's tokens with an organization and permissions have about 1.5 KiB.
pub const TOKEN_BYTES_MAX: usize = 16 * 1024;
const HEADER_BYTES_MAX: usize = 2 * 1024;
const KID_BYTES_MAX: usize = 256;
const TEXT_BYTES_MAX: usize = 255;
const AUDIENCES_MAX: usize = 16;
/// What the provider's clock and ours may differ.
const LEEWAY: Millis = Millis::from_secs(60);
/// A logout token without `exp` is good for that long after `iat`.
const LOGOUT_AGE_MAX: Millis = Millis::from_minutes(10);
const LOGOUT_EVENT: &str = "http://schemas.openid.net/event/backchannel-logout";
/// Header members that let a token name its own key, or that change what the signature covers.
const FORBIDDEN_PARAMETERS: [&str; 9] = ["jku", "x5u", "jwk", "x5c", "x5t", "x5t#S256", "crit", "b64", "zip"];

/// Why a token is refused. A client learns only that it is, and this code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidToken {
    #[error("the token has more than {TOKEN_BYTES_MAX} bytes")]
    TooLong,
    #[error("this is no signed JWT with the claims that it must have")]
    Malformed,
    #[error("the token is not signed (`alg: none`)")]
    AlgorithmNone,
    #[error(
        "the token is signed with a shared secret, which the provider does not have: a public key was taken for one"
    )]
    AlgorithmSymmetric,
    #[error("the token is signed with an algorithm that is not configured, or not that of its key")]
    Algorithm,
    #[error("the token's header has `{0}`: tokens do not choose their keys or how they are checked")]
    HeaderParameter(&'static str),
    #[error("the token does not say which key it is signed with (`kid`)")]
    NoKeyId,
    #[error("the token is signed with a key that the provider does not publish")]
    UnknownKey,
    #[error("the token's signature is wrong")]
    Signature,
    #[error("the token is of another type (`typ`)")]
    Type,
    #[error("the token is another issuer's (`iss`)")]
    Issuer,
    #[error("the token is for somebody else (`aud`)")]
    Audience,
    #[error("the token was given to the client of another surface (`azp`)")]
    Client,
    #[error("the token has expired (`exp`)")]
    Expired,
    #[error("the token is not valid yet (`nbf`)")]
    NotYetValid,
    #[error("the token comes from the future (`iat`)")]
    FromTheFuture,
    #[error("the token says nobody (`sub`)")]
    Subject,
    #[error("the token names no organization")]
    NoOrganization,
    #[error("the token is for another organization")]
    OtherOrganization,
    #[error("the token answers another request (`nonce`)")]
    Nonce,
    #[error("the tokens of one answer are not of one person")]
    OtherSubject,
    #[error("the token is no logout token (`events`)")]
    Event,
    #[error("the logout token names neither a session nor a person")]
    NobodyToLogOut,
    #[error("the logout token has no id (`jti`)")]
    NoTokenId,
}

impl InvalidToken {
    pub const fn code(self) -> &'static str {
        match self {
            Self::TooLong => "too_long",
            Self::Malformed => "malformed",
            Self::AlgorithmNone => "algorithm_none",
            Self::AlgorithmSymmetric => "algorithm_symmetric",
            Self::Algorithm => "algorithm",
            Self::HeaderParameter(_) => "header_parameter",
            Self::NoKeyId => "no_key_id",
            Self::UnknownKey => "unknown_key",
            Self::Signature => "signature",
            Self::Type => "type",
            Self::Issuer => "issuer",
            Self::Audience => "audience",
            Self::Client => "client",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::FromTheFuture => "from_the_future",
            Self::Subject => "subject",
            Self::NoOrganization => "no_organization",
            Self::OtherOrganization => "other_organization",
            Self::Nonce => "nonce",
            Self::OtherSubject => "other_subject",
            Self::Event => "event",
            Self::NobodyToLogOut => "nobody_to_log_out",
            Self::NoTokenId => "no_token_id",
        }
    }
}

/// Why a token was not taken.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error(transparent)]
    Invalid(#[from] InvalidToken),
    /// Without the provider's keys nothing is believed.
    #[error(transparent)]
    Provider(#[from] ProviderError),
}

/// A JWT of the right form whose signature nobody has looked at.
pub(crate) struct Unverified<'a> {
    kid: String,
    algorithm: Algorithm,
    kind: Option<String>,
    message: &'a str,
    signature: &'a str,
    payload: &'a str,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl<'a> Unverified<'a> {
    pub(crate) fn parse(token: &'a str, allowed: &[Algorithm]) -> Result<Self, InvalidToken> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(InvalidToken::TooLong);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(InvalidToken::Malformed)?;
        let (header, payload) = message.split_once('.').ok_or(InvalidToken::Malformed)?;
        if payload.contains('.') || header.len() > HEADER_BYTES_MAX {
            return Err(InvalidToken::Malformed);
        }
        let header = URL_SAFE_NO_PAD.decode(header).map_err(|_| InvalidToken::Malformed)?;
        let header: Header = serde_json::from_slice(&header).map_err(|_| InvalidToken::Malformed)?;
        let algorithm = match header.alg.as_str() {
            "RS256" => Algorithm::RS256,
            "ES256" => Algorithm::ES256,
            "EdDSA" => Algorithm::EdDSA,
            none if none.eq_ignore_ascii_case("none") => return Err(InvalidToken::AlgorithmNone),
            "HS256" | "HS384" | "HS512" => return Err(InvalidToken::AlgorithmSymmetric),
            _ => return Err(InvalidToken::Algorithm),
        };
        if !allowed.contains(&algorithm) {
            return Err(InvalidToken::Algorithm);
        }
        if let Some(name) = FORBIDDEN_PARAMETERS.into_iter().find(|name| header.rest.contains_key(*name)) {
            return Err(InvalidToken::HeaderParameter(name));
        }
        let kid = header.kid.filter(|kid| (1..=KID_BYTES_MAX).contains(&kid.len())).ok_or(InvalidToken::NoKeyId)?;
        if signature.is_empty() {
            return Err(InvalidToken::Signature);
        }
        Ok(Self { kid, algorithm, kind: header.typ, message, signature, payload })
    }

    pub(crate) fn kid(&self) -> &str {
        &self.kid
    }

    pub(crate) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// INVARIANT: `key` is one that the provider publishes for this algorithm.
    pub(crate) fn verify(self, key: &DecodingKey) -> Result<Signed, InvalidToken> {
        match jsonwebtoken::crypto::verify(self.signature, self.message.as_bytes(), key, self.algorithm) {
            Ok(true) => {}
            Ok(false) | Err(_) => return Err(InvalidToken::Signature),
        }
        let payload = URL_SAFE_NO_PAD.decode(self.payload).map_err(|_| InvalidToken::Malformed)?;
        let claims = serde_json::from_slice(&payload).map_err(|_| InvalidToken::Malformed)?;
        Ok(Signed { claims, kind: self.kind })
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Audience {
    fn names(&self) -> &[String] {
        match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::Many(names) => names,
        }
    }
}

/// Everything that some kind of token may say. A member that stands twice makes the token malformed.
#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: Option<String>,
    aud: Audience,
    exp: Option<Number>,
    nbf: Option<Number>,
    iat: Option<Number>,
    azp: Option<String>,
    client_id: Option<String>,
    nonce: Option<Value>,
    sid: Option<String>,
    jti: Option<String>,
    events: Option<Map<String, Value>>,
    auth_time: Option<Number>,
    email: Option<String>,
    email_verified: Option<bool>,
    name: Option<String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// A token whose signature is the provider's.
pub(crate) struct Signed {
    claims: Claims,
    kind: Option<String>,
}

/// Who signed in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdToken {
    pub subject: String,
    /// The provider's id of the organization that was signed in to.
    pub organization: String,
    /// The session at the provider, which its logout names.
    pub provider_session: Option<String>,
    /// Only an address that the provider has verified.
    pub email: Option<String>,
    pub name: Option<String>,
    pub authenticated_at: UnixMillis,
    pub issued_at: UnixMillis,
    pub expires_at: UnixMillis,
}

/// That the provider lets them use our API, through that client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessToken {
    pub subject: String,
    pub organization: String,
    pub expires_at: UnixMillis,
}

/// Who has signed out at the provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogoutToken {
    pub id: String,
    pub subject: Option<String>,
    pub provider_session: Option<String>,
    pub issued_at: UnixMillis,
    /// From then on the token is refused for its age.
    pub expires_at: UnixMillis,
}

impl Signed {
    pub(crate) fn into_id_token(
        self,
        config: &Config,
        client: &str,
        nonce: Option<&str>,
        now: UnixMillis,
    ) -> Result<IdToken, InvalidToken> {
        self.is_of_type(&["JWT"], true)?;
        self.is_of_issuer(config)?;
        let claims = &self.claims;
        // Exactly our client: whoever else is named could use the token too (OpenID Connect Core 3.1.3.7, 3).
        match self.audiences()? {
            [one] if one == client => {}
            [one] if config_knows(config, one) => return Err(InvalidToken::Client),
            _ => return Err(InvalidToken::Audience),
        }
        if claims.azp.as_deref().is_some_and(|azp| azp != client) {
            return Err(InvalidToken::Client);
        }
        // What has `events` is a logout token, whatever its type says.
        if claims.events.is_some() {
            return Err(InvalidToken::Type);
        }
        let (issued_at, expires_at) = self.is_current(now)?;
        let expires_at = expires_at.ok_or(InvalidToken::Malformed)?;
        match (nonce, &claims.nonce) {
            (Some(sent), Some(Value::String(got))) if subtle_eq(sent, got) => {}
            (None, _) => {}
            (Some(_), _) => return Err(InvalidToken::Nonce),
        }
        let email = claims.email.clone().filter(|_| claims.email_verified == Some(true));
        let authenticated_at = match &claims.auth_time {
            Some(at) => instant(at)?,
            None => issued_at,
        };
        Ok(IdToken {
            subject: self.subject()?,
            organization: self.organization(config)?,
            provider_session: claims.sid.clone().filter(|sid| (1..=TEXT_BYTES_MAX).contains(&sid.len())),
            email,
            name: claims.name.clone(),
            authenticated_at,
            issued_at,
            expires_at,
        })
    }

    pub(crate) fn into_access_token(
        self,
        config: &Config,
        client: &str,
        now: UnixMillis,
    ) -> Result<AccessToken, InvalidToken> {
        // RFC 9068's type, and Auth0's own profile, which says JWT.
        self.is_of_type(&["at+jwt", "application/at+jwt", "JWT"], true)?;
        self.is_of_issuer(config)?;
        if !self.audiences()?.iter().any(|name| name == config.audience()) {
            return Err(InvalidToken::Audience);
        }
        // Auth0 names the client in `azp`, RFC 9068 in `client_id`.
        let Claims { azp, client_id, .. } = &self.claims;
        let named: Vec<_> = [azp, client_id].into_iter().flatten().collect();
        if named.is_empty() || named.iter().any(|name| name.as_str() != client) {
            return Err(InvalidToken::Client);
        }
        let (_, expires_at) = self.is_current(now)?;
        let expires_at = expires_at.ok_or(InvalidToken::Malformed)?;
        Ok(AccessToken { subject: self.subject()?, organization: self.organization(config)?, expires_at })
    }

    pub(crate) fn into_logout_token(self, config: &Config, now: UnixMillis) -> Result<LogoutToken, InvalidToken> {
        // An explicit type: neither an ID token nor an access token passes for a logout.
        self.is_of_type(&["logout+jwt", "application/logout+jwt"], false)?;
        self.is_of_issuer(config)?;
        match self.audiences()? {
            [one] if config_knows(config, one) => {}
            _ => return Err(InvalidToken::Audience),
        }
        let claims = &self.claims;
        if !claims.events.as_ref().is_some_and(|events| events.get(LOGOUT_EVENT).is_some_and(Value::is_object)) {
            return Err(InvalidToken::Event);
        }
        // It is what keeps an ID token from being one (OpenID Connect Back-Channel Logout 1.0, 2.4).
        if claims.nonce.is_some() {
            return Err(InvalidToken::Nonce);
        }
        let (issued_at, expires_at) = self.is_current(now)?;
        let oldest = issued_at.plus(LOGOUT_AGE_MAX);
        if now >= oldest.plus(LEEWAY) {
            return Err(InvalidToken::Expired);
        }
        let bounded = |text: &Option<String>| text.clone().filter(|text| (1..=TEXT_BYTES_MAX).contains(&text.len()));
        let (subject, provider_session) = (bounded(&claims.sub), bounded(&claims.sid));
        if subject.is_none() && provider_session.is_none() {
            return Err(InvalidToken::NobodyToLogOut);
        }
        let id = bounded(&claims.jti).ok_or(InvalidToken::NoTokenId)?;
        let expires_at = expires_at.unwrap_or(oldest).min(oldest).plus(LEEWAY);
        Ok(LogoutToken { id, subject, provider_session, issued_at, expires_at })
    }

    fn is_of_type(&self, types: &[&str], may_be_absent: bool) -> Result<(), InvalidToken> {
        match &self.kind {
            Some(kind) if types.iter().any(|known| known.eq_ignore_ascii_case(kind)) => Ok(()),
            None if may_be_absent => Ok(()),
            Some(_) | None => Err(InvalidToken::Type),
        }
    }

    fn is_of_issuer(&self, config: &Config) -> Result<(), InvalidToken> {
        // Word for word, with or without a slash at its end as configured.
        if self.claims.iss == config.issuer() { Ok(()) } else { Err(InvalidToken::Issuer) }
    }

    fn audiences(&self) -> Result<&[String], InvalidToken> {
        let names = self.claims.aud.names();
        if (1..=AUDIENCES_MAX).contains(&names.len()) { Ok(names) } else { Err(InvalidToken::Audience) }
    }

    /// When it was issued and when it ends.
    fn is_current(&self, now: UnixMillis) -> Result<(UnixMillis, Option<UnixMillis>), InvalidToken> {
        let issued_at = instant(self.claims.iat.as_ref().ok_or(InvalidToken::Malformed)?)?;
        let expires_at = self.claims.exp.as_ref().map(instant).transpose()?;
        let not_before = self.claims.nbf.as_ref().map(instant).transpose()?;
        if expires_at.is_some_and(|end| now >= end.plus(LEEWAY)) {
            return Err(InvalidToken::Expired);
        }
        if not_before.is_some_and(|begin| begin > now.plus(LEEWAY)) {
            return Err(InvalidToken::NotYetValid);
        }
        if issued_at > now.plus(LEEWAY) {
            return Err(InvalidToken::FromTheFuture);
        }
        Ok((issued_at, expires_at))
    }

    fn subject(&self) -> Result<String, InvalidToken> {
        let subject = self.claims.sub.clone().filter(|sub| (1..=TEXT_BYTES_MAX).contains(&sub.len()));
        subject.ok_or(InvalidToken::Subject)
    }

    fn organization(&self, config: &Config) -> Result<String, InvalidToken> {
        let mut named = None;
        for claim in config.organization_claims() {
            match self.claims.rest.get(claim) {
                None => {}
                Some(Value::String(id)) if (1..=TEXT_BYTES_MAX).contains(&id.len()) => match named {
                    None => named = Some(id),
                    Some(other) if other == id => {}
                    Some(_) => return Err(InvalidToken::OtherOrganization),
                },
                Some(_) => return Err(InvalidToken::NoOrganization),
            }
        }
        named.cloned().ok_or(InvalidToken::NoOrganization)
    }
}

/// Whether it is the client of some surface of ours.
fn config_knows(config: &Config, id: &str) -> bool {
    super::Client::ALL.into_iter().any(|client| config.client(client).is_some_and(|known| known.id() == id))
}

fn subtle_eq(one: &str, other: &str) -> bool {
    use subtle::ConstantTimeEq as _;
    one.as_bytes().ct_eq(other.as_bytes()).into()
}

/// A NumericDate (RFC 7519 2): seconds, perhaps with a fraction, which is dropped.
fn instant(seconds: &Number) -> Result<UnixMillis, InvalidToken> {
    let whole = match (seconds.as_u64(), seconds.as_f64()) {
        (Some(whole), _) => whole,
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked")]
        (None, Some(real)) if (0.0..=1e12).contains(&real) => real as u64,
        _ => return Err(InvalidToken::Malformed),
    };
    Ok(UnixMillis::new(whole.saturating_mul(1_000)))
}

#[cfg(test)]
mod tests;
