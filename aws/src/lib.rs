//! AWS: names of things there, the IAM policies that EnvForge gives its machines, and, with feature `aws`, EC2 as a provider
//! of machines and SSM as a store of secrets.
//!
//! Without the feature no SDK is built. Not here: which machines are wanted (reactors), what secrets mean (domain), the
//! agent on a machine.

#[cfg(feature = "aws")]
mod client;
#[cfg(feature = "aws")]
mod ec2;
#[cfg(feature = "aws")]
mod enrolment;
mod names;
mod policy;
#[cfg(feature = "aws")]
mod ssm;
mod user_data;

#[cfg(feature = "aws")]
pub use client::{Attempts, AwsConfig, AwsCredentials};
#[cfg(feature = "aws")]
pub use ec2::{Ec2, Ec2Config, PROVIDER};
#[cfg(feature = "aws")]
pub use enrolment::EnrolmentReader;
pub use names::{Deployment, InvalidDeployment, tag};
pub use policy::{InstancePolicy, InvalidArn, KeyArn, POLICY_BYTES_MAX, PolicyTooLarge, SecretReader};
#[cfg(feature = "aws")]
pub use ssm::{SsmConfig, SsmStore, SsmStoreError};
pub use user_data::{ControlPlane, InvalidControlPlane, UserData};
