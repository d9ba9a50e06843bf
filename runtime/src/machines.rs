//! Virtual machines of a provider, as the fleet asks for them: launch, look, start, stop, end.
//!
//! Owns the seam and what travels over it. Not here: a provider (`envforge-aws`), which machines are wanted, what the log
//! says of them (reactors).

use std::fmt;

use async_trait::async_trait;
use envforge_domain::ids::{HostId, OrgId};
use envforge_domain::machine::{MachineTerms, StopMode};
use uuid::Uuid;

/// A provider of machines. What it says of an instance it has read from the provider just then.
#[async_trait]
pub trait MachineProvider: Send + Sync {
    /// As machines' terms name it: `aws-ec2`.
    fn name(&self) -> &'static str;

    /// Launches one instance, once for each token: whoever repeats a launch gets the same instance.
    ///
    /// # Errors
    /// See [`ProviderError`]; after those that [say nothing](ProviderError::is_ambiguous) an instance may exist, which the
    /// next launch with the token finds.
    async fn launch(&self, order: &LaunchOrder) -> Result<Instance, ProviderError>;

    /// The instance as it is now; `None` where the provider does not know it (any more).
    ///
    /// # Errors
    /// See [`ProviderError`].
    async fn find(&self, instance: &str) -> Result<Option<Instance>, ProviderError>;

    /// All instances that carry this deployment's tag, ended ones too for as long as the provider shows them.
    ///
    /// # Errors
    /// See [`ProviderError`]; never a part of them.
    async fn list(&self) -> Result<Vec<Instance>, ProviderError>;

    /// # Errors
    /// See [`ProviderError`]; [`ProviderError::NotNow`] in a state that excludes it.
    async fn start(&self, instance: &str) -> Result<(), ProviderError>;

    /// # Errors
    /// As for `start`; [`ProviderError::Unsupported`] where this instance cannot hibernate.
    async fn stop(&self, instance: &str, mode: StopMode) -> Result<(), ProviderError>;

    /// # Errors
    /// As for `start`.
    async fn terminate(&self, instance: &str) -> Result<(), ProviderError>;
}

/// What is to be launched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaunchOrder {
    pub terms: MachineTerms,
    /// Derived from the id of the event that asked for it.
    pub token: LaunchToken,
}

/// Names one launch: the same token, the same instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LaunchToken(Uuid);

impl LaunchToken {
    pub const fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid)
    }
}

/// 32 hexadecimal digits.
impl fmt::Display for LaunchToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.0.simple())
    }
}

/// An instance as its provider shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    pub id: String,
    pub state: InstanceState,
    pub tags: InstanceTags,
    /// Fails the provider's own status checks.
    pub impaired: bool,
    /// Was launched so that it can hibernate.
    pub hibernates: bool,
    /// Why it is in this state, where the provider says so: `Client.InvalidKMSKey.InvalidState`.
    pub reason: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InstanceState {
    Pending,
    Running,
    Stopping,
    Stopped,
    Ending,
    Terminated,
}

impl InstanceState {
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Ending | Self::Terminated)
    }
}

/// What the tags of an instance say. A tag that is missing or cannot be read is `None`: it matches nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InstanceTags {
    pub org: Option<OrgId>,
    pub host: Option<HostId>,
    pub purpose: Option<String>,
    /// EnvForge's, that launched it.
    pub version: Option<String>,
}

impl InstanceTags {
    /// Whether they are those of a machine with these terms.
    pub fn are_of(&self, terms: &MachineTerms) -> bool {
        self.org == Some(terms.org)
            && self.host == Some(terms.host)
            && self.purpose.as_deref() == Some(terms.purpose.token())
    }
}

/// Why a provider did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    #[error("the provider takes no more requests for now")]
    Throttled,
    #[error("the provider has no capacity for this machine now: {reason}")]
    Capacity { reason: String },
    #[error("the provider's quota is used up: {reason}")]
    Quota { reason: String },
    #[error("the provider knows no such thing: {reason}")]
    NotFound { reason: String },
    #[error("the provider's state excludes this now: {reason}")]
    NotNow { reason: String },
    #[error("this machine cannot do that: {reason}")]
    Unsupported { reason: String },
    #[error("EnvForge may not do this at the provider: {reason}")]
    Unauthorized { reason: String },
    #[error("the launch's token was used before with other parameters")]
    TokenMismatch,
    #[error("the provider refuses the request: {reason}")]
    Invalid { reason: String },
    #[error("the provider is out of reach: {reason}")]
    Unavailable { reason: String },
}

impl ProviderError {
    /// Whether asking again, a little later, may help.
    pub const fn may_pass(&self) -> bool {
        matches!(self, Self::Throttled | Self::Unavailable { .. } | Self::NotNow { .. } | Self::Capacity { .. })
    }

    /// Whether the request may have been carried out all the same.
    pub const fn is_ambiguous(&self) -> bool {
        matches!(self, Self::Throttled | Self::Unavailable { .. })
    }
}
