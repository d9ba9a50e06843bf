//! How AWS is reached: region, credentials, one HTTP client over one TLS stack, and a bounded loop of attempts.
//!
//! The SDKs' own retries are off: a launch must know what its attempts were, and nothing retries what a retry retries.
//! Not here: what is asked for (`ec2`, `ssm`).

use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_smithy_http_client::{Builder, tls};
use envforge_domain::secret::Secret;
use rand::RngExt;
use tokio::time::Instant;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where AWS is, and as whom.
#[derive(Clone)]
pub struct AwsConfig {
    pub region: String,
    /// A private endpoint or a stand-in; AWS's own where there is none.
    pub endpoint: Option<String>,
    pub credentials: AwsCredentials,
    pub attempts: Attempts,
    /// For one request, its answer included.
    pub request_timeout: Duration,
}

/// Who EnvForge is at AWS.
#[derive(Clone)]
pub enum AwsCredentials {
    /// What the SDK finds: environment, profile, the role of the container or machine.
    Found,
    /// These, for stand-ins.
    Fixed { id: String, secret: Secret },
}

/// How often and for how long something is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempts {
    pub attempts_max: u32,
    /// Before the second attempt at most; doubled each time up to `pause_max`. A random part of it is waited.
    pub pause_min: Duration,
    pub pause_max: Duration,
    /// After which no attempt begins.
    pub deadline: Duration,
}

impl Default for Attempts {
    fn default() -> Self {
        Self {
            attempts_max: 8,
            pause_min: Duration::from_millis(200),
            pause_max: Duration::from_secs(5),
            deadline: Duration::from_secs(20),
        }
    }
}

impl AwsConfig {
    pub fn in_region(region: &str) -> Self {
        Self {
            region: region.to_owned(),
            endpoint: None,
            credentials: AwsCredentials::Found,
            attempts: Attempts::default(),
            request_timeout: Duration::from_secs(30),
        }
    }

    /// What the SDKs' clients are made of.
    pub async fn sdk(&self) -> SdkConfig {
        let provider = tls::Provider::Rustls(tls::rustls_provider::CryptoMode::AwsLc);
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .operation_attempt_timeout(self.request_timeout)
            .operation_timeout(self.request_timeout)
            .build();
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .region(Region::new(self.region.clone()))
            .http_client(Builder::new().tls_provider(provider).build_https())
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts);
        if let Some(endpoint) = &self.endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        if let AwsCredentials::Fixed { id, secret } = &self.credentials {
            loader = loader.credentials_provider(Credentials::new(id, secret.expose(), None, None, "fixed"));
        }
        loader.load().await
    }
}

impl Attempts {
    /// Asks until it is answered, refused for good, or out of attempts or time. The last refusal is the answer then.
    pub(crate) async fn ask<T, E, F>(
        &self,
        may_pass: impl Fn(&E) -> bool,
        mut request: impl FnMut() -> F,
    ) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>>,
    {
        let until = Instant::now() + self.deadline;
        let mut pause = self.pause_min;
        for attempt in 1.. {
            match request().await {
                Err(error) if attempt < self.attempts_max && may_pass(&error) => {
                    // Full jitter: those who were throttled together do not come back together.
                    let wait = pause.mul_f64(rand::rng().random_range(0.0..=1.0));
                    if Instant::now() + wait >= until {
                        return Err(error);
                    }
                    tokio::time::sleep(wait).await;
                    pause = (pause * 2).min(self.pause_max);
                }
                answer => return answer,
            }
        }
        unreachable!("the loop ends with its last attempt")
    }
}
