//! The provider over HTTP: discovery, its keys, its token endpoint. Every answer is bounded in size and time, and no redirect is followed.
//!
//! Not here: what its tokens say (`token`), and what a flow asks for (`flow`).

use std::time::Duration;

use envforge_domain::time::{Millis, UnixMillis};
use reqwest::Url;
use serde::Deserialize;

use super::cached::{Cached, Rules};
use super::config::{Config, RegisteredClient, is_loopback};

const CONNECT_WAIT_MAX: Duration = Duration::from_secs(3);
/// For a whole answer, its body included.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(8);
const ANSWER_BYTES_MAX: usize = 256 * 1024;
const REASON_CHARS_MAX: usize = 200;

const RULES: Rules = Rules {
    what: "discovery document",
    fresh_for: Millis::from_hours(1),
    stale_max: Millis::from_hours(6),
    pause: Millis::from_secs(5),
};

/// Why the provider did not do what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    #[error("the identity provider cannot be reached: {0}")]
    Unreachable(String),
    #[error("the identity provider answered with status {0}")]
    Status(u16),
    #[error("the identity provider's answer has more than {ANSWER_BYTES_MAX} bytes")]
    TooLarge,
    #[error("the identity provider's answer cannot be used: {0}")]
    Malformed(String),
    /// An error of OAuth (RFC 6749 5.2, RFC 8628 3.5).
    #[error("the identity provider refused: {error}")]
    Refused { error: String, description: String },
    #[error("the identity provider offers no {0}")]
    NotOffered(&'static str),
}

/// A URL of the provider's. `Url` itself reads none from JSON.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Endpoint(Url);

impl TryFrom<String> for Endpoint {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Url::parse(&text).map(Self).map_err(|error| format!("`{}` is no URL: {error}", shortened(&text)))
    }
}

impl Endpoint {
    pub(crate) fn url(&self) -> Url {
        self.0.clone()
    }
}

/// What we need of the discovery document (OpenID Connect Discovery 1.0, 3).
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Discovery {
    issuer: String,
    pub(super) authorization_endpoint: Endpoint,
    token_endpoint: Endpoint,
    jwks_uri: Endpoint,
    device_authorization_endpoint: Option<Endpoint>,
    /// Auth0 and others leave it out although they know S256.
    code_challenge_methods_supported: Option<Vec<String>>,
    /// RFC 9207: the answer to an authorization request then names its issuer.
    #[serde(default)]
    pub(super) authorization_response_iss_parameter_supported: bool,
}

/// What the token endpoint gives.
#[derive(Deserialize)]
pub(crate) struct Tokens {
    pub(super) id_token: Option<String>,
    pub(super) access_token: Option<String>,
    pub(super) token_type: Option<String>,
}

/// A device that waits for its person (RFC 8628 3.2).
#[derive(Deserialize)]
pub(crate) struct Device {
    pub(super) device_code: String,
    pub(super) user_code: String,
    pub(super) verification_uri: Endpoint,
    pub(super) verification_uri_complete: Option<Endpoint>,
    pub(super) expires_in: u64,
    pub(super) interval: Option<u64>,
}

#[derive(Deserialize)]
pub(crate) struct OauthError {
    error: String,
    error_description: Option<String>,
}

pub(super) struct Provider {
    http: reqwest::Client,
    issuer: String,
    discovery_url: Url,
    discovery: Cached<Discovery>,
    loopback: bool,
}

impl Provider {
    pub(super) fn new(config: &Config) -> Result<Self, ProviderError> {
        let issuer = config.issuer_url().clone();
        let loopback = is_loopback(&issuer) && issuer.scheme() == "http";
        let mut http = reqwest::Client::builder()
            .user_agent(concat!("envforge/", env!("CARGO_PKG_VERSION")))
            // A redirect could carry codes and secrets to another host.
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_WAIT_MAX)
            .timeout(ANSWER_WAIT_MAX)
            .pool_max_idle_per_host(4)
            .https_only(!loopback);
        if loopback {
            http = http.no_proxy().tls_certs_only([]);
        }
        let http = http.build().map_err(|error| ProviderError::Unreachable(cause(&error)))?;
        let path = format!("{}/.well-known/openid-configuration", issuer.path().trim_end_matches('/'));
        let mut discovery_url = issuer;
        discovery_url.set_path(&path);
        Ok(Self { http, issuer: config.issuer().to_owned(), discovery_url, discovery: Cached::new(RULES), loopback })
    }

    pub(super) async fn discovery(&self, now: UnixMillis) -> Result<std::sync::Arc<Discovery>, ProviderError> {
        let (http, url, issuer) = (self.http.clone(), self.discovery_url.clone(), self.issuer.clone());
        let loopback = self.loopback;
        let fetch = move || async move {
            let body = succeeded(http.get(url)).await?;
            let document: Discovery = serde_json::from_slice(&body)
                .map_err(|error| ProviderError::Malformed(format!("its discovery document: {error}")))?;
            document.check(&issuer, loopback)?;
            Ok(document)
        };
        self.discovery.get(now, |_| true, fetch).await
    }

    /// The body of its key set.
    pub(super) async fn key_set(&self, now: UnixMillis) -> Result<Vec<u8>, ProviderError> {
        let url = self.discovery(now).await?.jwks_uri.url();
        succeeded(self.http.get(url)).await
    }

    pub(super) async fn tokens(
        &self,
        client: &RegisteredClient,
        parameters: &[(&str, &str)],
        now: UnixMillis,
    ) -> Result<Tokens, ProviderError> {
        let url = self.discovery(now).await?.token_endpoint.url();
        let body = self.post(url, client, parameters).await?;
        // The parser's message could quote a token.
        serde_json::from_slice(&body)
            .map_err(|_| ProviderError::Malformed("its tokens are not JSON of their form".into()))
    }

    pub(super) async fn device(
        &self,
        client: &RegisteredClient,
        parameters: &[(&str, &str)],
        now: UnixMillis,
    ) -> Result<Device, ProviderError> {
        let discovery = self.discovery(now).await?;
        let url = discovery.device_authorization_endpoint.as_ref().map(Endpoint::url);
        let url = url.ok_or(ProviderError::NotOffered("device authorization"))?;
        let body = self.post(url, client, parameters).await?;
        let device: Device = serde_json::from_slice(&body)
            .map_err(|_| ProviderError::Malformed("its answer to a device is not JSON of its form".into()))?;
        // People are sent there: nothing but a web page.
        for shown in [Some(&device.verification_uri), device.verification_uri_complete.as_ref()].into_iter().flatten() {
            secure("verification_uri", shown, self.loopback)?;
        }
        Ok(device)
    }

    /// A form with the client's id, and its secret where it has one (`client_secret_post`).
    async fn post(
        &self,
        url: Url,
        client: &RegisteredClient,
        parameters: &[(&str, &str)],
    ) -> Result<Vec<u8>, ProviderError> {
        let mut form = url.clone();
        form.set_query(None);
        {
            let mut pairs = form.query_pairs_mut();
            pairs.extend_pairs(parameters).append_pair("client_id", client.id());
            if let Some(secret) = client.secret() {
                pairs.append_pair("client_secret", secret.expose());
            }
        }
        let request = self.http.post(url).header("content-type", "application/x-www-form-urlencoded");
        let (status, body) = answer(request.body(form.query().unwrap_or_default().to_owned())).await?;
        if (200..300).contains(&status) {
            return Ok(body);
        }
        // Auth0 says 403 where RFC 8628 says 400, and 429 to whoever is too fast: what counts is the error's name.
        match serde_json::from_slice::<OauthError>(&body) {
            Ok(OauthError { error, error_description }) if status < 500 => Err(ProviderError::Refused {
                error: shortened(&error),
                description: shortened(&error_description.unwrap_or_default()),
            }),
            _ => Err(ProviderError::Status(status)),
        }
    }
}

impl Discovery {
    /// Every address that we would ask.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn addresses(&self) -> Vec<Url> {
        let Self { authorization_endpoint, token_endpoint, jwks_uri, device_authorization_endpoint, .. } = self;
        let always = [authorization_endpoint, token_endpoint, jwks_uri];
        always.into_iter().chain(device_authorization_endpoint).map(Endpoint::url).collect()
    }

    pub(crate) fn check(&self, issuer: &str, loopback: bool) -> Result<(), ProviderError> {
        let wrong = |what: String| Err(ProviderError::Malformed(what));
        if self.issuer != issuer {
            let found = shortened(&self.issuer);
            return wrong(format!("its discovery document is of issuer `{found}`, configured is `{issuer}`"));
        }
        for (name, url) in [
            ("authorization_endpoint", Some(&self.authorization_endpoint)),
            ("token_endpoint", Some(&self.token_endpoint)),
            ("jwks_uri", Some(&self.jwks_uri)),
            ("device_authorization_endpoint", self.device_authorization_endpoint.as_ref()),
        ] {
            url.map_or(Ok(()), |url| secure(name, url, loopback))?;
        }
        match &self.code_challenge_methods_supported {
            Some(methods) if !methods.iter().any(|method| method == "S256") => {
                wrong("it knows no PKCE with S256".to_owned())
            }
            Some(_) | None => Ok(()),
        }
    }
}

fn secure(name: &str, Endpoint(url): &Endpoint, loopback: bool) -> Result<(), ProviderError> {
    match url.scheme() {
        "https" => Ok(()),
        "http" if loopback && is_loopback(url) => Ok(()),
        _ => Err(ProviderError::Malformed(format!("its {name} is not https"))),
    }
}

async fn succeeded(request: reqwest::RequestBuilder) -> Result<Vec<u8>, ProviderError> {
    match answer(request).await? {
        (200, body) => Ok(body),
        (status, _) => Err(ProviderError::Status(status)),
    }
}

async fn answer(request: reqwest::RequestBuilder) -> Result<(u16, Vec<u8>), ProviderError> {
    let unreachable = |error: reqwest::Error| ProviderError::Unreachable(cause(&error.without_url()));
    let mut response = request.header("accept", "application/json").send().await.map_err(unreachable)?;
    let status = response.status().as_u16();
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
        if body.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Err(ProviderError::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok((status, body))
}

/// The innermost reason: the outer ones say "error sending request".
fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    shortened(&innermost.to_string())
}

/// What others say, for a line of a log.
fn shortened(text: &str) -> String {
    text.chars().filter(|char| !char.is_control()).take(REASON_CHARS_MAX).collect()
}
