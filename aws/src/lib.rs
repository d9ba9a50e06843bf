//! AWS: names of things there, the IAM policies that EnvForge gives its machines, and, with feature `aws`, EC2 as a provider
//! of machines and SSM as a store of secrets.
//!
//! Without the feature no SDK is built. Not here: which machines are wanted (reactors), what secrets mean (domain), the
//! agent on a machine.

mod names;
mod policy;
mod user_data;

pub use names::{Deployment, InvalidDeployment, tag};
pub use policy::{InstancePolicy, InvalidArn, KeyArn, POLICY_BYTES_MAX, PolicyTooLarge};
pub use user_data::{ControlPlane, InvalidControlPlane, UserData};
