//! Who somebody is, by the word of an OpenID provider: Auth0, or any other issuer.
//!
//! Owns the configuration, discovery, the provider's keys, verification of its tokens, and the flows that end in a `Proven` person:
//! authorization code with PKCE, and device authorization. Tokens come from the provider's token endpoint alone: nobody else hands us one
//! (docs/adr/0008). Not here: users, membership, roles and sessions, which are EnvForge's own.

mod cached;
mod config;
pub(crate) mod events;
mod flow;
pub(crate) mod keys;
pub(crate) mod provider;
mod store;
pub(crate) mod token;

pub use config::{
    ClientSettings, Config, ConfigError, ConfigErrors, MappedOrganization, OrganizationSettings, PublicUrl, Settings,
};
pub use events::{EVENT_AGE_MAX, InvalidSignature};
pub use flow::{
    Begun, Challenge, DeviceAuthorization, DevicePoll, FlowError, Loopback, NotAReturn, Proven, ReturnTo, Returned,
    WebAnswer,
};
pub use provider::ProviderError;
pub use store::{EndedSession, Seen};
pub use token::{AccessToken, IdToken, InvalidToken, LogoutToken, TOKEN_BYTES_MAX, TokenError};

use std::sync::Arc;

use envforge_domain::time::UnixMillis;

use crate::credentials::Credentials;
use crate::randomness::Randomness;
use keys::KeySets;
use provider::Provider;

/// The clients that are registered at the provider, one for each surface. A token of one is refused on another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Client {
    /// The dashboard in a browser: code and PKCE.
    Web,
    /// The command line: device authorization, or a browser on the same machine.
    Cli,
    /// A browser on its way to a workspace: code and PKCE.
    Gateway,
}

impl Client {
    pub const ALL: [Self; 3] = [Self::Web, Self::Cli, Self::Gateway];

    pub const fn token(self) -> &'static str {
        match self {
            Self::Web => "web",
            Self::Cli => "cli",
            Self::Gateway => "gateway",
        }
    }

    pub fn from_token(token: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|client| client.token() == token)
    }
}

/// One OpenID provider.
pub struct Oidc {
    config: Config,
    provider: Arc<Provider>,
    keys: KeySets,
    store: store::Store,
    randomness: Randomness,
}

impl Oidc {
    /// Asks the provider for nothing yet: it may be away while we start.
    pub fn new(config: Config, credentials: &Credentials) -> Result<Self, ProviderError> {
        let provider = Arc::new(Provider::new(&config)?);
        Ok(Self {
            keys: KeySets::new(Arc::clone(&provider), config.algorithms()),
            provider,
            store: store::Store::new(credentials),
            randomness: Randomness,
            config,
        })
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Proves an ID token that was given to `client`. `nonce`: the one that was sent along, where the flow has one.
    pub async fn verify_id_token(
        &self,
        token: &str,
        client: Client,
        nonce: Option<&str>,
        now: UnixMillis,
    ) -> Result<IdToken, TokenError> {
        let client = self.config.client(client).ok_or(InvalidToken::Client)?;
        let verified = self.verified(token, now).await?;
        Ok(verified.into_id_token(&self.config, client.id(), nonce, now).inspect_err(counted)?)
    }

    /// Proves an access token for our audience that was given to `client`.
    pub async fn verify_access_token(
        &self,
        token: &str,
        client: Client,
        now: UnixMillis,
    ) -> Result<AccessToken, TokenError> {
        let client = self.config.client(client).ok_or(InvalidToken::Client)?;
        let verified = self.verified(token, now).await?;
        Ok(verified.into_access_token(&self.config, client.id(), now).inspect_err(counted)?)
    }

    /// Proves a logout token, for whichever of our clients it is.
    pub async fn verify_logout_token(&self, token: &str, now: UnixMillis) -> Result<LogoutToken, TokenError> {
        let verified = self.verified(token, now).await?;
        Ok(verified.into_logout_token(&self.config, now).inspect_err(counted)?)
    }

    /// A token whose signature is the provider's. What it says is looked at by whoever asked.
    async fn verified(&self, token: &str, now: UnixMillis) -> Result<token::Signed, TokenError> {
        let unverified = token::Unverified::parse(token, self.config.algorithms()).inspect_err(counted)?;
        let key = self.keys.key(unverified.kid(), unverified.algorithm(), now).await?;
        Ok(unverified.verify(&key).inspect_err(counted)?)
    }
}

fn counted(error: &InvalidToken) {
    metrics::counter!("envforge_provider_tokens_refused_total", "reason" => error.code()).increment(1);
}
