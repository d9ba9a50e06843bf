//! EC2 as a provider of machines.
//!
//! Every instance: one launch for each token, tags of organization, host, purpose, version and deployment, IMDSv2 alone with
//! a hop limit of 1, encrypted volumes, the organization's instance profile, user data without a secret. What a launch sends
//! follows from its order and token alone, so that a repeated one is the same request to AWS.
//!
//! Not here: which machines are wanted and whose instances may be touched (reactors), policies (`policy`).

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use aws_sdk_ec2::Client;
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ec2::types::{
    BlockDeviceMapping, EbsBlockDevice, Filter, HibernationOptionsRequest, HttpTokensState,
    IamInstanceProfileSpecification, Instance as Ec2Instance, InstanceMetadataEndpointState,
    InstanceMetadataOptionsRequest, InstanceMetadataTagsState, InstanceStateName, InstanceType, ResourceType,
    ShutdownBehavior, SummaryStatus, Tag, TagSpecification, VolumeType,
};
use envforge_domain::ids::OrgId;
use envforge_domain::machine::StopMode;
use envforge_runtime::{Instance, InstanceState, InstanceTags, LaunchOrder, MachineProvider, ProviderError};

use crate::client::{Attempts, AwsConfig};
use crate::names::{Deployment, tag};
use crate::policy::KeyArn;
use crate::user_data::{ControlPlane, UserData};

/// As machines' terms name it.
pub const PROVIDER: &str = "aws-ec2";
/// A page of a listing. AWS takes up to 1,000.
const PAGE: i32 = 500;
const REASON_CHARS_MAX: usize = 200;

/// What all machines of a deployment are launched with.
#[derive(Clone)]
pub struct Ec2Config {
    pub aws: AwsConfig,
    pub deployment: Deployment,
    /// The machine image with EnvForge's agent: `ami-…`.
    pub image: String,
    /// One is chosen by the launch's token; in several zones where capacity is to be found in another one.
    pub subnets: Vec<String>,
    pub security_groups: Vec<String>,
    /// In their place, for some organizations.
    pub security_groups_of: BTreeMap<OrgId, Vec<String>>,
    /// The image's own: a volume under another name would be a second one beside a root that is not encrypted.
    pub root_device: String,
    pub volume_gib: u16,
    /// Encrypts the volumes; the account's default key for EBS where there is none.
    pub volume_key: Option<KeyArn>,
    /// Shapes that are launched so that they can hibernate.
    pub hibernating: BTreeSet<String>,
    /// Where agents call.
    pub control_plane: ControlPlane,
    /// EnvForge's own.
    pub version: String,
}

/// The provider.
pub struct Ec2 {
    client: Client,
    config: Ec2Config,
    attempts: Attempts,
}

impl Ec2 {
    /// Makes the client; asks AWS for nothing yet.
    pub async fn new(config: Ec2Config) -> Self {
        Self { client: Client::new(&config.aws.sdk().await), attempts: config.aws.attempts, config }
    }

    fn tags(&self, order: &LaunchOrder) -> Vec<Tag> {
        let terms = &order.terms;
        [
            (tag::DEPLOYMENT, self.config.deployment.to_string()),
            (tag::ORGANIZATION, terms.org.to_string()),
            (tag::HOST, terms.host.to_string()),
            (tag::PURPOSE, terms.purpose.token().to_owned()),
            (tag::VERSION, self.config.version.clone()),
        ]
        .into_iter()
        .map(|(key, value)| Tag::builder().key(key).value(value).build())
        .collect()
    }

    fn user_data(&self, order: &LaunchOrder) -> String {
        let user_data = UserData {
            deployment: self.config.deployment.clone(),
            org: order.terms.org,
            host: order.terms.host,
            control_plane: self.config.control_plane.clone(),
            region: self.config.aws.region.clone(),
        };
        user_data.encoded()
    }

    /// The same token, the same subnet: AWS refuses a token with other parameters than before.
    fn subnet(&self, order: &LaunchOrder) -> Option<&String> {
        let token = order.token.to_string();
        let spread = token.bytes().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(byte)));
        self.config.subnets.get(spread % self.config.subnets.len().max(1))
    }

    async fn run(&self, order: &LaunchOrder) -> Result<Instance, ProviderError> {
        let (terms, config) = (&order.terms, &self.config);
        let specification = |kind: ResourceType| {
            TagSpecification::builder().resource_type(kind).set_tags(Some(self.tags(order))).build()
        };
        let metadata = InstanceMetadataOptionsRequest::builder()
            .http_endpoint(InstanceMetadataEndpointState::Enabled)
            .http_tokens(HttpTokensState::Required)
            .http_put_response_hop_limit(1)
            .instance_metadata_tags(InstanceMetadataTagsState::Disabled);
        let volume = EbsBlockDevice::builder()
            .encrypted(true)
            .set_kms_key_id(config.volume_key.as_ref().map(ToString::to_string))
            .volume_size(i32::from(config.volume_gib))
            .volume_type(VolumeType::Gp3)
            .delete_on_termination(true);
        let profile =
            IamInstanceProfileSpecification::builder().name(config.deployment.instance_profile(terms.org)).build();
        let groups = config.security_groups_of.get(&terms.org).unwrap_or(&config.security_groups);
        let hibernates = config.hibernating.contains(&terms.shape);
        let launched = self
            .client
            .run_instances()
            .client_token(order.token.to_string())
            .min_count(1)
            .max_count(1)
            .image_id(&config.image)
            .instance_type(InstanceType::from(terms.shape.as_str()))
            .set_subnet_id(self.subnet(order).cloned())
            .set_security_group_ids(Some(groups.clone()).filter(|groups| !groups.is_empty()))
            .iam_instance_profile(profile)
            .metadata_options(metadata.build())
            .block_device_mappings(
                BlockDeviceMapping::builder().device_name(&config.root_device).ebs(volume.build()).build(),
            )
            .hibernation_options(HibernationOptionsRequest::builder().configured(hibernates).build())
            .instance_initiated_shutdown_behavior(ShutdownBehavior::Stop)
            .tag_specifications(specification(ResourceType::Instance))
            .tag_specifications(specification(ResourceType::Volume))
            .user_data(self.user_data(order))
            .send()
            .await
            .map_err(refused)?;
        let instance = launched.instances().first().and_then(|instance| self.read(instance));
        instance
            .ok_or_else(|| ProviderError::Unavailable { reason: "a launch was answered without an instance".into() })
    }

    /// `None` for what has no id.
    fn read(&self, instance: &Ec2Instance) -> Option<Instance> {
        let value = |key: &str| {
            let tag = instance.tags().iter().find(|tag| tag.key() == Some(key))?;
            tag.value().map(str::to_owned)
        };
        // Another deployment's ids mean nothing here.
        let ours = value(tag::DEPLOYMENT).as_deref() == Some(&self.config.deployment.to_string());
        let tags = InstanceTags {
            org: value(tag::ORGANIZATION).and_then(|org| org.parse().ok()),
            host: value(tag::HOST).and_then(|host| host.parse().ok()),
            purpose: value(tag::PURPOSE),
            version: value(tag::VERSION),
        };
        let reason = instance.state_reason().and_then(|reason| reason.code());
        Some(Instance {
            id: instance.instance_id()?.to_owned(),
            state: state_of(instance.state().and_then(|state| state.name())),
            tags: if ours { tags } else { InstanceTags::default() },
            impaired: false,
            hibernates: instance.hibernation_options().and_then(|options| options.configured()) == Some(true),
            reason: reason.filter(|code| !code.is_empty()).map(str::to_owned),
        })
    }

    async fn instances(&self) -> Result<Vec<Instance>, ProviderError> {
        let ours = Filter::builder()
            .name(format!("tag:{}", tag::DEPLOYMENT))
            .values(self.config.deployment.to_string())
            .build();
        let mut instances = Vec::new();
        let mut pages = self.client.describe_instances().filters(ours).into_paginator().page_size(PAGE).send();
        while let Some(page) = pages.next().await {
            let page = page.map_err(refused)?;
            let shown = page.reservations().iter().flat_map(|reservation| reservation.instances());
            instances.extend(shown.filter_map(|instance| self.read(instance)));
        }
        Ok(instances)
    }

    /// Ids of running instances that fail AWS's status checks.
    async fn impaired(&self) -> Result<BTreeSet<String>, ProviderError> {
        let mut impaired = BTreeSet::new();
        let mut pages = self.client.describe_instance_status().into_paginator().page_size(PAGE).send();
        while let Some(page) = pages.next().await {
            let page = page.map_err(refused)?;
            for status in page.instance_statuses() {
                let fails = [status.instance_status(), status.system_status()]
                    .into_iter()
                    .flatten()
                    .any(|summary| summary.status() == Some(&SummaryStatus::Impaired));
                if fails {
                    impaired.extend(status.instance_id().map(str::to_owned));
                }
            }
        }
        Ok(impaired)
    }

    async fn look(&self, instance: &str) -> Result<Option<Instance>, ProviderError> {
        let described = match self.client.describe_instances().instance_ids(instance).send().await.map_err(refused) {
            Ok(described) => described,
            Err(ProviderError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let shown = described.reservations().iter().flat_map(|reservation| reservation.instances());
        Ok(shown.filter_map(|shown| self.read(shown)).find(|shown| shown.id == instance))
    }
}

#[async_trait]
impl MachineProvider for Ec2 {
    fn name(&self) -> &'static str {
        PROVIDER
    }

    async fn launch(&self, order: &LaunchOrder) -> Result<Instance, ProviderError> {
        self.attempts.ask(ProviderError::may_pass, || self.run(order)).await
    }

    async fn find(&self, instance: &str) -> Result<Option<Instance>, ProviderError> {
        self.attempts.ask(ProviderError::may_pass, || self.look(instance)).await
    }

    async fn list(&self) -> Result<Vec<Instance>, ProviderError> {
        let mut instances = self.attempts.ask(ProviderError::may_pass, || self.instances()).await?;
        if instances.iter().any(|instance| instance.state == InstanceState::Running) {
            let impaired = self.attempts.ask(ProviderError::may_pass, || self.impaired()).await?;
            for instance in &mut instances {
                instance.impaired = impaired.contains(&instance.id);
            }
        }
        Ok(instances)
    }

    async fn start(&self, instance: &str) -> Result<(), ProviderError> {
        let start = || async { self.client.start_instances().instance_ids(instance).send().await.map_err(refused) };
        self.attempts.ask(passes_soon, start).await.map(drop)
    }

    async fn stop(&self, instance: &str, mode: StopMode) -> Result<(), ProviderError> {
        let stop = |mode: StopMode| {
            let request = self.client.stop_instances().instance_ids(instance).hibernate(mode == StopMode::Hibernate);
            async { request.send().await.map_err(refused) }
        };
        self.attempts.ask(passes_soon, || stop(mode)).await.map(drop)
    }

    async fn terminate(&self, instance: &str) -> Result<(), ProviderError> {
        let terminate =
            || async { self.client.terminate_instances().instance_ids(instance).send().await.map_err(refused) };
        match self.attempts.ask(passes_soon, terminate).await {
            // It is gone: that was the wish.
            Ok(_) | Err(ProviderError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// A state that excludes it now is looked at again by the next look, which knows the state. Whoever waits for capacity waits longer
/// than a request may take.
fn passes_soon(error: &ProviderError) -> bool {
    error.may_pass() && !matches!(error, ProviderError::NotNow { .. } | ProviderError::Capacity { .. })
}

fn state_of(name: Option<&InstanceStateName>) -> InstanceState {
    match name {
        Some(InstanceStateName::Running) => InstanceState::Running,
        Some(InstanceStateName::Stopping) => InstanceState::Stopping,
        Some(InstanceStateName::Stopped) => InstanceState::Stopped,
        Some(InstanceStateName::ShuttingDown) => InstanceState::Ending,
        Some(InstanceStateName::Terminated) => InstanceState::Terminated,
        // One that this version does not know is waited for.
        Some(_) | None => InstanceState::Pending,
    }
}

/// What an answer of EC2 means, by the codes of the EC2 API reference.
fn refused<E: ProvideErrorMetadata>(error: SdkError<E>) -> ProviderError {
    let status = error.raw_response().map(|response| response.status().as_u16());
    let (code, message) = match &error {
        SdkError::ServiceError(answer) => (answer.err().code(), answer.err().message()),
        // No answer that could be read: it may have been carried out.
        other => {
            let reason = match other {
                SdkError::TimeoutError(_) => "no answer in time",
                SdkError::DispatchFailure(_) => "no connection, or no credentials",
                SdkError::ResponseError(_) => "an answer that cannot be read",
                _ => "the request could not be made",
            };
            return ProviderError::Unavailable { reason: reason.to_owned() };
        }
    };
    error_of(code.unwrap_or_default(), message.unwrap_or_default(), status.unwrap_or_default())
}

/// The error of a code.
fn error_of(code: &str, message: &str, status: u16) -> ProviderError {
    let reason = || format!("{code}: {}", message.chars().take(REASON_CHARS_MAX).collect::<String>());
    // What it says of denied requests is an encoded message, of no use in a log.
    let code_alone = || code.to_owned();
    match code {
        "RequestLimitExceeded" | "Throttling" | "ThrottlingException" | "EC2ThrottledException" | "SlowDown" => {
            ProviderError::Throttled
        }
        "IdempotentParameterMismatch" => ProviderError::TokenMismatch,
        "InsufficientInstanceCapacity"
        | "InsufficientCapacity"
        | "InsufficientHostCapacity"
        | "InsufficientReservedInstanceCapacity"
        | "InsufficientFreeAddressesInSubnet" => ProviderError::Capacity { reason: reason() },
        "InstanceLimitExceeded"
        | "VcpuLimitExceeded"
        | "VolumeLimitExceeded"
        | "ResourceLimitExceeded"
        | "MaxIOPSLimitExceeded"
        | "PendingVerification" => ProviderError::Quota { reason: reason() },
        "IncorrectInstanceState" | "IncorrectState" => ProviderError::NotNow { reason: reason() },
        "Unsupported"
        | "UnsupportedOperation"
        | "UnsupportedHibernationConfiguration"
        | "UnsupportedInstanceAttribute"
        | "OperationNotPermitted" => ProviderError::Unsupported { reason: reason() },
        "UnauthorizedOperation"
        | "AuthFailure"
        | "AccessDenied"
        | "AccessDeniedException"
        | "OptInRequired"
        | "Blocked"
        | "ExpiredToken"
        | "InvalidClientTokenId"
        | "SignatureDoesNotMatch"
        | "RequestExpired"
        | "UnrecognizedClientException"
        | "MissingAuthenticationToken" => ProviderError::Unauthorized { reason: code_alone() },
        code if code.ends_with(".NotFound") || code == "NoSuchEntity" => ProviderError::NotFound { reason: reason() },
        "InternalError" | "InternalFailure" | "ServiceUnavailable" | "Unavailable" => {
            ProviderError::Unavailable { reason: code_alone() }
        }
        _ if status >= 500 => ProviderError::Unavailable { reason: reason() },
        _ => ProviderError::Invalid { reason: reason() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_ec2_are_told_apart() {
        let kind = |code: &str, status| error_of(code, "because", status);
        assert_eq!(kind("RequestLimitExceeded", 503), ProviderError::Throttled);
        assert!(matches!(kind("InsufficientInstanceCapacity", 500), ProviderError::Capacity { .. }));
        assert!(matches!(kind("VcpuLimitExceeded", 400), ProviderError::Quota { .. }));
        assert!(matches!(kind("InvalidInstanceID.NotFound", 400), ProviderError::NotFound { .. }));
        assert!(matches!(kind("InvalidAMIID.NotFound", 400), ProviderError::NotFound { .. }));
        assert!(matches!(kind("IncorrectInstanceState", 400), ProviderError::NotNow { .. }));
        assert!(matches!(kind("UnauthorizedOperation", 403), ProviderError::Unauthorized { .. }));
        assert!(matches!(kind("UnsupportedHibernationConfiguration", 400), ProviderError::Unsupported { .. }));
        assert_eq!(kind("IdempotentParameterMismatch", 400), ProviderError::TokenMismatch);
        assert!(matches!(kind("IdempotentInstanceTerminated", 400), ProviderError::Invalid { .. }));
        assert!(matches!(kind("SomethingNew", 500), ProviderError::Unavailable { .. }));
    }

    #[test]
    fn what_aws_says_of_a_denied_request_is_not_repeated() {
        let denied = error_of("UnauthorizedOperation", "Encoded authorization failure message: 4GIOHl", 403);
        assert_eq!(denied, ProviderError::Unauthorized { reason: "UnauthorizedOperation".to_owned() });
    }
}
