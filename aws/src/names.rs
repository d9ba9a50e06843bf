//! What EnvForge's things are called in an AWS account: tags of instances, paths of parameters.
//!
//! INVARIANT: an organization's parameters lie below a path that begins with its id, and no two organizations' paths are
//! prefixes of each other. IAM policies rely on it.

use std::fmt;
use std::str::FromStr;

use envforge_domain::ids::{HostId, OrgId};

/// The keys of the tags that every instance carries.
pub mod tag {
    pub const DEPLOYMENT: &str = "envforge:deployment";
    pub const ORGANIZATION: &str = "envforge:organization";
    pub const HOST: &str = "envforge:host";
    pub const PURPOSE: &str = "envforge:purpose";
    pub const VERSION: &str = "envforge:version";
}

/// What IAM takes as the name of a role or an instance profile, less `envforge-`, `-` and an organization's id (`org_` and 32 digits).
const DEPLOYMENT_CHARS_MAX: usize = 64 - 10 - 36;

/// Tells the installations of EnvForge in one account apart: 1 to 18 of a-z, 0-9 and `-`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Deployment(Box<str>);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` does not name a deployment: 1 to {max} characters of a-z, 0-9 and `-`, beginning with a letter", max = DEPLOYMENT_CHARS_MAX)]
pub struct InvalidDeployment {
    text: String,
}

impl FromStr for Deployment {
    type Err = InvalidDeployment;

    fn from_str(text: &str) -> Result<Self, InvalidDeployment> {
        let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
        let begins = text.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
        if begins && text.len() <= DEPLOYMENT_CHARS_MAX && text.bytes().all(allowed) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidDeployment { text: text.chars().take(80).collect() })
        }
    }
}

impl fmt::Display for Deployment {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl Deployment {
    /// Below which all parameters of an organization lie, without a slash at the end.
    pub fn organization_path(&self, org: OrgId) -> String {
        format!("/envforge/{self}/{org}")
    }

    /// The parameter that holds the one-time token by which the agent on a host enrols. It is written after the launch, for
    /// that instance, and removed once it was used.
    pub fn enrolment_parameter(&self, org: OrgId, host: HostId) -> String {
        format!("{}/{host}/enrolment", self.hosts_path(org))
    }

    /// Below which the parameters of an organization's hosts lie, without a slash at the end.
    pub fn hosts_path(&self, org: OrgId) -> String {
        format!("{}/hosts", self.organization_path(org))
    }

    /// Below which all secrets of an organization lie, without a slash at the end.
    pub fn secrets_path_of(&self, org: OrgId) -> String {
        format!("{}/secrets", self.organization_path(org))
    }

    /// Below which the versions of an owner's secrets lie, without a slash at the end. `owner` is the id of a project or of
    /// a workspace.
    pub fn secrets_path(&self, org: OrgId, owner: &impl fmt::Display) -> String {
        format!("{}/{owner}", self.secrets_path_of(org))
    }

    /// The instance profile that an operator made for an organization's machines.
    pub fn instance_profile(&self, org: OrgId) -> String {
        format!("envforge-{self}-{org}")
    }
}
