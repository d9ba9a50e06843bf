//! AWS by its stand-in: the overlay's own promises, EC2 as a provider, the fleet on it, and SSM as a store of secrets.
#![allow(clippy::unwrap_used)]

mod enrolment;
mod failing;
mod fleet;
mod launching;
mod overlay;
mod secrets;
mod site;

use std::collections::BTreeMap;
use std::time::Duration;

use envforge_aws::{Attempts, AwsConfig, AwsCredentials, Deployment, Ec2Config};
use envforge_domain::host::Capacity;
use envforge_domain::ids::{HostId, OrgId};
use envforge_domain::machine::{MachinePurpose, MachineTerms};
use envforge_domain::secret::Secret;
use envforge_runtime::{LaunchOrder, LaunchToken};
use envforge_testkit::Moto;
use uuid::Uuid;

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
pub(crate) const SHAPE: &str = "m7g.large";

pub(crate) fn org(number: u128) -> OrgId {
    OrgId::from_uuid(Uuid::from_u128(number))
}

pub(crate) fn host(number: u128) -> HostId {
    HostId::from_uuid(Uuid::from_u128(number))
}

pub(crate) fn deployment() -> Deployment {
    "test".parse().unwrap()
}

/// A stand-in with the instance profiles of two organizations.
pub(crate) fn moto() -> Moto {
    let moto = Moto::start();
    for number in [1, 2] {
        let name = deployment().instance_profile(org(number));
        moto.pull("profile", &format!(r#"{{"name":"{name}"}}"#));
    }
    moto
}

pub(crate) fn aws(moto: &Moto) -> AwsConfig {
    AwsConfig {
        endpoint: Some(moto.endpoint()),
        credentials: AwsCredentials::Fixed { id: "test".to_owned(), secret: Secret::new("test".to_owned()) },
        attempts: Attempts {
            attempts_max: 5,
            pause_min: Duration::from_millis(5),
            pause_max: Duration::from_millis(50),
            deadline: Duration::from_secs(20),
        },
        ..AwsConfig::in_region(Moto::REGION)
    }
}

pub(crate) fn ec2_config(moto: &Moto) -> Ec2Config {
    Ec2Config {
        aws: aws(moto),
        deployment: deployment(),
        image: "ami-12345678".to_owned(),
        subnets: vec![],
        security_groups: vec![],
        security_groups_of: BTreeMap::new(),
        root_device: "/dev/xvda".to_owned(),
        volume_gib: 40,
        volume_key: None,
        hibernating: ["m7g.xlarge".to_owned()].into(),
        control_plane: "https://agents.envforge.example".parse().unwrap(),
        version: "0.1.0".to_owned(),
    }
}

pub(crate) fn order(number: u128, of: u128) -> LaunchOrder {
    let terms = MachineTerms {
        host: host(number),
        org: org(of),
        purpose: MachinePurpose::Runtime,
        provider: "aws-ec2".to_owned(),
        shape: SHAPE.to_owned(),
        capacity: Capacity { cpu_millicores: 2_000, memory_mib: 8_192 },
    };
    LaunchOrder { terms, token: LaunchToken::from_uuid(Uuid::from_u128(number << 8 | of)) }
}
