//! What hosts are told and answer, as JSON: texts, secrets, wake orders and stages. For the agent's line to the control plane, and for a
//! host and its keepers.
//!
//! INVARIANT: types that carry secrets have no `Debug`.

use std::collections::BTreeMap;

use envforge_domain::ids::{OrgId, WorkspaceId};
use envforge_domain::manifest::Manifest;
use envforge_domain::secret::Secret;
use envforge_domain::slug::ServiceName;
use envforge_domain::time::Millis;
use serde::{Deserialize, Serialize};

use crate::git_login::GitLogin;
use crate::order::{Stage, WakeOrder};

/// Ids and names as the texts that they display as.
pub mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer};

    /// # Errors
    /// The serializer's.
    pub fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    /// # Errors
    /// Where the text is none of that type.
    pub fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A secret that has to be stored, or said to whom it is for.
#[derive(Clone)]
pub struct SecretText(Secret);

impl SecretText {
    pub fn new(secret: &Secret) -> Self {
        Self(secret.clone())
    }

    pub fn secret(&self) -> Secret {
        self.0.clone()
    }
}

impl Serialize for SecretText {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.expose())
    }
}

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Secret::new(text)))
    }
}

/// A wake order.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WakeCall {
    #[serde(with = "text")]
    org: OrgId,
    #[serde(with = "text")]
    workspace: WorkspaceId,
    epoch: u64,
    repository: String,
    branch: String,
    manifest: String,
    deadline_ms: u64,
    public_hosts: BTreeMap<String, String>,
    secrets: BTreeMap<String, SecretText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    git: Option<GitCall>,
}

/// What git shows the repository's server.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GitCall {
    username: String,
    secret: SecretText,
    /// Counted from when it is received: clocks of two machines need not agree.
    valid_for_ms: Option<u64>,
}

impl GitCall {
    pub fn of(login: &GitLogin) -> Self {
        Self {
            username: login.username.clone(),
            secret: SecretText::new(&login.value),
            valid_for_ms: login.valid_for.map(Millis::get),
        }
    }

    pub fn login(self) -> GitLogin {
        let Self { username, secret, valid_for_ms } = self;
        GitLogin { username, value: secret.secret(), valid_for: valid_for_ms.map(Millis::new) }
    }
}

impl WakeCall {
    pub fn of(order: &WakeOrder) -> Self {
        Self {
            org: order.org,
            workspace: order.workspace,
            epoch: order.epoch,
            repository: order.repository.clone(),
            branch: order.branch.clone(),
            manifest: order.manifest.render(),
            deadline_ms: order.deadline.get(),
            public_hosts: order.public_hosts.iter().map(|(name, host)| (name.to_string(), host.clone())).collect(),
            secrets: order.secrets.iter().map(|(name, value)| (name.clone(), SecretText::new(value))).collect(),
            git: order.git.as_ref().map(GitCall::of),
        }
    }

    /// The order.
    ///
    /// # Errors
    /// What is wrong with it where it is none.
    pub fn order(self) -> Result<WakeOrder, String> {
        let public_hosts = self.public_hosts.into_iter().map(|(name, host)| {
            name.parse::<ServiceName>().map(|name| (name, host)).map_err(|error| error.to_string())
        });
        Ok(WakeOrder {
            org: self.org,
            workspace: self.workspace,
            epoch: self.epoch,
            repository: self.repository,
            branch: self.branch,
            manifest: Manifest::parse(&self.manifest).map_err(|errors| errors.to_string())?,
            deadline: Millis::new(self.deadline_ms),
            public_hosts: public_hosts.collect::<Result<_, _>>()?,
            secrets: self.secrets.into_iter().map(|(name, value)| (name, value.secret())).collect(),
            git: self.git.map(GitCall::login),
        })
    }
}

/// How far a wake is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StageMessage {
    stage: StageName,
    service: Option<String>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StageName {
    CheckingOut,
    Starting,
    Probing,
    Ready,
}

impl From<&Stage> for StageMessage {
    fn from(stage: &Stage) -> Self {
        let (stage, service) = match stage {
            Stage::CheckingOut => (StageName::CheckingOut, None),
            Stage::Starting { service } => (StageName::Starting, Some(service.to_string())),
            Stage::Probing { service } => (StageName::Probing, Some(service.to_string())),
            Stage::Ready => (StageName::Ready, None),
        };
        Self { stage, service }
    }
}

impl From<StageMessage> for Stage {
    /// A service that is none counts for nothing.
    fn from(message: StageMessage) -> Self {
        let service = message.service.and_then(|name| name.parse().ok());
        match (message.stage, service) {
            (StageName::Starting, Some(service)) => Self::Starting { service },
            (StageName::Probing, Some(service)) => Self::Probing { service },
            (StageName::Ready, _) => Self::Ready,
            (StageName::CheckingOut | StageName::Starting | StageName::Probing, _) => Self::CheckingOut,
        }
    }
}
