//! Signing in at the provider: authorization code with PKCE for browsers, device authorization for terminals. Each ends in a `Proven` person.
//!
//! Not here: what becomes of the person (the API), and HTTP (`provider`).

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use envforge_domain::secret::Secret;
use envforge_domain::time::{Millis, UnixMillis};
use reqwest::Url;
use sha2::{Digest as _, Sha256};

use super::config::RegisteredClient;
use super::provider::{ProviderError, Tokens};
use super::store::Flow;
use super::token::{InvalidToken, TokenError};
use super::{Client, Oidc};
use crate::credentials::CredentialsError;
use crate::randomness::NoRandomness;

/// How long somebody may take at the provider's pages.
const FLOW_LIFETIME: Millis = Millis::from_minutes(10);
const SCOPE: &str = "openid profile email";
/// `state`, codes and cookies as others present them: longer ones are not looked at.
const PRESENTED_BYTES_MAX: usize = 2_048;
const RETURN_BYTES_MAX: usize = 1_024;
/// RFC 8628 3.2: where the provider names no interval.
const DEVICE_INTERVAL_S: u64 = 5;
const DEVICE_INTERVAL_S_MAX: u64 = 60;
const DEVICE_LIFETIME_S_MAX: u64 = 1_800;

/// Somebody whom the provider has proven, for one organization and one of our clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proven {
    /// With `subject` the person's key. Never the e-mail address.
    pub issuer: String,
    pub subject: String,
    /// The provider's id of the organization.
    pub organization: String,
    pub client: Client,
    pub provider_session: Option<String>,
    pub email: Option<String>,
    pub name: Option<String>,
    pub authenticated_at: UnixMillis,
    pub issued_at: UnixMillis,
    /// No session of ours lasts longer.
    pub ends_at: UnixMillis,
}

/// Why nobody was proven.
#[derive(Debug, thiserror::Error)]
pub enum FlowError {
    #[error("the {} surface has no client at the identity provider", .0.token())]
    NoClient(Client),
    #[error("this sign-in was not begun in this browser, was finished before, or took too long")]
    StateUnknown,
    /// What the provider says instead of a code: `access_denied`, or that the request was wrong.
    #[error("the identity provider did not sign anybody in: {error}")]
    Denied { error: String },
    #[error("the code was used before, has expired, or belongs to another request")]
    CodeRefused,
    #[error("the answer is not this identity provider's")]
    OtherIssuer,
    #[error(transparent)]
    Token(#[from] InvalidToken),
    #[error(transparent)]
    Provider(#[from] ProviderError),
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

impl From<TokenError> for FlowError {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Invalid(error) => error.into(),
            TokenError::Provider(error) => error.into(),
        }
    }
}

/// A path of our own to which a browser goes when it is signed in. Never another site's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReturnTo(String);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected a path of this site that begins with one `/`, at most {RETURN_BYTES_MAX} visible ASCII characters without `\\`"
)]
pub struct NotAReturn;

impl ReturnTo {
    pub fn parse(text: &str) -> Result<Self, NotAReturn> {
        // `//host` and `/\host` are other hosts to a browser, and so is a path with control characters that it drops.
        let own = text.starts_with('/')
            && !text.starts_with("//")
            && text.len() <= RETURN_BYTES_MAX
            && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
        if own { Ok(Self(text.to_owned())) } else { Err(NotAReturn) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for ReturnTo {
    fn default() -> Self {
        Self("/".to_owned())
    }
}

/// A sign-in that was begun in a browser.
pub struct Begun {
    /// Where the browser goes now.
    pub url: String,
    /// What binds the sign-in to this browser: its cookie.
    pub browser: Secret,
    pub lifetime: Millis,
}

/// A browser that came back to the sign-in that it had begun. Its state is used up.
pub struct Returned(Flow);

impl Returned {
    /// Through which client it had been sent to the provider.
    pub fn client(&self) -> Client {
        self.0.client
    }
}

/// What a browser brings back from the provider.
#[derive(Clone, Copy, Debug, Default)]
pub struct WebAnswer<'a> {
    pub code: Option<&'a str>,
    pub error: Option<&'a str>,
    /// RFC 9207.
    pub issuer: Option<&'a str>,
}

/// PKCE's S256 challenge, made by the command line, which keeps the verifier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge(String);

impl Challenge {
    /// 43 characters of base64url: a SHA-256.
    pub fn parse(text: &str) -> Option<Self> {
        let whole = URL_SAFE_NO_PAD.decode(text).is_ok_and(|bytes| bytes.len() == 32);
        whole.then(|| Self(text.to_owned()))
    }

    pub fn of(verifier: &Secret) -> Self {
        Self(URL_SAFE_NO_PAD.encode(Sha256::digest(verifier.expose())))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A command line that waits on its own machine for a browser's answer.
#[derive(Clone, Copy)]
pub struct Loopback<'a> {
    pub port: u16,
    pub nonce: &'a str,
}

impl Loopback<'_> {
    /// RFC 8252 7.3: an address and not a name, any port.
    pub fn redirect_uri(&self) -> String {
        format!("http://127.0.0.1:{}/callback", self.port)
    }
}

/// A device that waits for its person.
pub struct DeviceAuthorization {
    pub device_code: Secret,
    pub user_code: String,
    pub verification_uri: String,
    pub verification_uri_complete: Option<String>,
    pub expires_in_s: u64,
    pub interval_s: u64,
}

/// What became of a device.
pub enum DevicePoll {
    Proven(Box<Proven>),
    /// The person has not decided yet.
    Pending,
    /// Ask five seconds less often from now on (RFC 8628 3.5).
    SlowDown,
    /// The person said no.
    Denied,
    /// It waited for too long, or its code was used.
    Expired,
}

impl Oidc {
    /// Begins a sign-in in a browser, through the Web App client or the Gateway's. `browser`: its cookie, where it has one from another tab.
    pub async fn begin_web(
        &self,
        through: Client,
        organization: Option<&str>,
        return_to: ReturnTo,
        browser: Option<Secret>,
        now: UnixMillis,
    ) -> Result<Begun, FlowError> {
        let client = self.registered(through)?;
        let state = self.randomness.token("")?;
        let browser = match browser.filter(|cookie| (43..=128).contains(&cookie.expose().len())) {
            Some(cookie) => cookie,
            None => self.randomness.token("")?,
        };
        let flow = Flow {
            client: through,
            nonce: self.randomness.token("")?,
            verifier: self.randomness.token("")?,
            organization: organization.map(str::to_owned),
            return_to,
        };
        let url = self
            .authorization_url(
                client,
                &self.config().callback_url(),
                state.expose(),
                flow.nonce.expose(),
                &Challenge::of(&flow.verifier),
                organization,
                now,
            )
            .await?;
        self.store.begin(state.digest(), browser.digest(), &flow, now, now.plus(FLOW_LIFETIME)).await?;
        Ok(Begun { url: url.into(), browser, lifetime: FLOW_LIFETIME })
    }

    /// Takes up a sign-in in the browser where it was begun. Whatever comes of it, its state is used up.
    pub async fn returned(
        &self,
        state: &str,
        browser: Option<&Secret>,
        now: UnixMillis,
    ) -> Result<Returned, FlowError> {
        let browser = browser.ok_or(FlowError::StateUnknown)?;
        if state.is_empty() || state.len() > PRESENTED_BYTES_MAX {
            return Err(FlowError::StateUnknown);
        }
        let state = Secret::new(state.to_owned()).digest();
        self.store.take(state, browser.digest(), now).await?.map(Returned).ok_or(FlowError::StateUnknown)
    }

    /// Finishes a sign-in with what the browser brought, as the client through which it was begun: a code of another one is worth nothing.
    pub async fn finish_web(
        &self,
        Returned(flow): Returned,
        answer: WebAnswer<'_>,
        now: UnixMillis,
    ) -> Result<(Proven, ReturnTo), FlowError> {
        let discovery = self.provider.discovery(now).await?;
        match answer.issuer {
            Some(issuer) if issuer == self.config().issuer() => {}
            None if !discovery.authorization_response_iss_parameter_supported => {}
            Some(_) | None => return Err(FlowError::OtherIssuer),
        }
        let code = match (answer.code, answer.error) {
            (Some(code), None) => code,
            (_, Some(error)) => return Err(denied(error)),
            (None, None) => return Err(FlowError::CodeRefused),
        };
        let redirect_uri = self.config().callback_url();
        let proven = self.redeem(flow.client, code, &flow.verifier, &redirect_uri, flow.nonce.expose(), now).await?;
        // Who asked for one organization does not end up in another.
        if flow.organization.is_some_and(|asked| asked != proven.organization) {
            return Err(InvalidToken::OtherOrganization.into());
        }
        Ok((proven, flow.return_to))
    }

    /// Where a browser goes on the machine of a command line. Nothing is kept: the command line holds verifier, state and nonce.
    pub async fn begin_loopback(
        &self,
        loopback: Loopback<'_>,
        state: &str,
        challenge: &Challenge,
        organization: Option<&str>,
        now: UnixMillis,
    ) -> Result<String, FlowError> {
        let client = self.registered(Client::Cli)?;
        let url = self
            .authorization_url(client, &loopback.redirect_uri(), state, loopback.nonce, challenge, organization, now)
            .await?;
        Ok(url.into())
    }

    /// Trades what the browser brought to the command line.
    pub async fn finish_loopback(
        &self,
        loopback: Loopback<'_>,
        code: &str,
        verifier: &Secret,
        now: UnixMillis,
    ) -> Result<Proven, FlowError> {
        self.redeem(Client::Cli, code, verifier, &loopback.redirect_uri(), loopback.nonce, now).await
    }

    pub async fn begin_device(
        &self,
        organization: Option<&str>,
        now: UnixMillis,
    ) -> Result<DeviceAuthorization, FlowError> {
        let client = self.registered(Client::Cli)?;
        let audience = self.config().audience().to_owned();
        let mut parameters = vec![("scope", SCOPE), ("audience", audience.as_str())];
        parameters.extend(organization.map(|organization| ("organization", organization)));
        let device = self.provider.device(client, &parameters, now).await?;
        if device.device_code.len() > PRESENTED_BYTES_MAX || device.user_code.len() > 64 {
            return Err(ProviderError::Malformed("its device code is too long".to_owned()).into());
        }
        Ok(DeviceAuthorization {
            device_code: Secret::new(device.device_code),
            user_code: device.user_code.chars().filter(|char| !char.is_control()).collect(),
            verification_uri: device.verification_uri.url().into(),
            verification_uri_complete: device.verification_uri_complete.map(|complete| complete.url().into()),
            expires_in_s: device.expires_in.min(DEVICE_LIFETIME_S_MAX),
            interval_s: device.interval.unwrap_or(DEVICE_INTERVAL_S).clamp(1, DEVICE_INTERVAL_S_MAX),
        })
    }

    /// Asks what became of a device. A code is good once.
    pub async fn poll_device(&self, device_code: &Secret, now: UnixMillis) -> Result<DevicePoll, FlowError> {
        let client = self.registered(Client::Cli)?;
        if device_code.expose().is_empty() || device_code.expose().len() > PRESENTED_BYTES_MAX {
            return Ok(DevicePoll::Expired);
        }
        let parameters =
            [("grant_type", "urn:ietf:params:oauth:grant-type:device_code"), ("device_code", device_code.expose())];
        match self.provider.tokens(client, &parameters, now).await {
            Ok(tokens) => {
                let proven = self.proven(Client::Cli, tokens, None, now).await?;
                Ok(DevicePoll::Proven(Box::new(proven)))
            }
            Err(ProviderError::Refused { error, description }) => match error.as_str() {
                "authorization_pending" => Ok(DevicePoll::Pending),
                "slow_down" => Ok(DevicePoll::SlowDown),
                "access_denied" => Ok(DevicePoll::Denied),
                // Auth0 says `invalid_grant` of a code that is unknown, used or too old.
                "expired_token" | "invalid_grant" => Ok(DevicePoll::Expired),
                _ => Err(ProviderError::Refused { error, description }.into()),
            },
            Err(error) => Err(error.into()),
        }
    }

    fn registered(&self, client: Client) -> Result<&RegisteredClient, FlowError> {
        self.config().client(client).ok_or(FlowError::NoClient(client))
    }

    #[expect(clippy::too_many_arguments, reason = "they are the parameters of one request")]
    async fn authorization_url(
        &self,
        client: &RegisteredClient,
        redirect_uri: &str,
        state: &str,
        nonce: &str,
        challenge: &Challenge,
        organization: Option<&str>,
        now: UnixMillis,
    ) -> Result<Url, FlowError> {
        let mut url = self.provider.discovery(now).await?.authorization_endpoint.url();
        {
            let mut query = url.query_pairs_mut();
            query
                .append_pair("response_type", "code")
                .append_pair("client_id", client.id())
                .append_pair("redirect_uri", redirect_uri)
                .append_pair("scope", SCOPE)
                .append_pair("audience", self.config().audience())
                .append_pair("state", state)
                .append_pair("nonce", nonce)
                .append_pair("code_challenge", challenge.as_str())
                .append_pair("code_challenge_method", "S256");
            if let Some(organization) = organization {
                query.append_pair("organization", organization);
            }
        }
        Ok(url)
    }

    async fn redeem(
        &self,
        client: Client,
        code: &str,
        verifier: &Secret,
        redirect_uri: &str,
        nonce: &str,
        now: UnixMillis,
    ) -> Result<Proven, FlowError> {
        if code.is_empty() || code.len() > PRESENTED_BYTES_MAX {
            return Err(FlowError::CodeRefused);
        }
        let registered = self.registered(client)?;
        let parameters = [
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", redirect_uri),
            ("code_verifier", verifier.expose()),
        ];
        match self.provider.tokens(registered, &parameters, now).await {
            Ok(tokens) => self.proven(client, tokens, Some(nonce), now).await,
            Err(ProviderError::Refused { error, .. }) if error == "invalid_grant" => Err(FlowError::CodeRefused),
            Err(error) => Err(error.into()),
        }
    }

    /// The ID token says who it is; the access token, that the provider lets them use our API through this client.
    async fn proven(
        &self,
        client: Client,
        tokens: Tokens,
        nonce: Option<&str>,
        now: UnixMillis,
    ) -> Result<Proven, FlowError> {
        let missing = |what: &str| ProviderError::Malformed(format!("its answer has no {what}"));
        if !tokens.token_type.as_deref().is_some_and(|kind| kind.eq_ignore_ascii_case("bearer")) {
            return Err(missing("bearer token").into());
        }
        let id = tokens.id_token.ok_or_else(|| missing("ID token"))?;
        let access = tokens.access_token.ok_or_else(|| missing("access token"))?;
        let id = self.verify_id_token(&id, client, nonce, now).await?;
        let access = self.verify_access_token(&access, client, now).await?;
        if access.subject != id.subject {
            return Err(InvalidToken::OtherSubject.into());
        }
        if access.organization != id.organization {
            return Err(InvalidToken::OtherOrganization.into());
        }
        let ends_at = match self.config().session_max() {
            Some(max) => id.authenticated_at.plus(max),
            None => id.expires_at,
        };
        Ok(Proven {
            issuer: self.config().issuer().to_owned(),
            subject: id.subject,
            organization: id.organization,
            client,
            provider_session: id.provider_session,
            email: id.email,
            name: id.name,
            authenticated_at: id.authenticated_at,
            issued_at: id.issued_at,
            ends_at,
        })
    }
}

/// The error's name alone: its description is text that anybody can put into a link.
fn denied(error: &str) -> FlowError {
    let named = (1..=64).contains(&error.len()) && error.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    FlowError::Denied { error: if named { error.to_owned() } else { "unknown".to_owned() } }
}

impl fmt::Display for ReturnTo {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_return_is_a_path_of_our_own() {
        for ok in ["/", "/workspaces/signed-links?tab=links", "/a//b", "/%2f%2fevil.example"] {
            assert!(ReturnTo::parse(ok).is_ok(), "{ok}");
        }
        let long = format!("/{}", "a".repeat(RETURN_BYTES_MAX));
        for wrong in [
            "",
            "//evil.example",
            "https://evil.example/",
            "/\\evil.example",
            "\\\\evil.example",
            "/\t/evil.example",
            "/a\r\nSet-Cookie: x=y",
            " /",
            "javascript:alert(1)",
            "evil.example",
            "/ü",
            long.as_str(),
        ] {
            assert_eq!(ReturnTo::parse(wrong), Err(NotAReturn), "{wrong}");
        }
    }

    #[test]
    fn a_challenge_is_the_hash_of_its_verifier() {
        // RFC 7636, appendix B.
        let verifier = Secret::new("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk".to_owned());
        let challenge = Challenge::of(&verifier);
        assert_eq!(challenge.as_str(), "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
        assert_eq!(Challenge::parse(challenge.as_str()), Some(challenge));
        for wrong in
            ["", "short", "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM=", "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-c!"]
        {
            assert_eq!(Challenge::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_the_provider_gives_as_a_reason_is_only_a_name() {
        let named = |error: &str| denied(error).to_string();
        assert!(named("access_denied").ends_with("access_denied"));
        assert!(named("<script>alert(1)</script>").ends_with("unknown"));
    }
}
