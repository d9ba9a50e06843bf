//! The policy of an instance profile: what the machines of one organization may do in the account.
//!
//! They read the tokens by which their organization's agents enrol, and decrypt these under the organization's key, in the encryption
//! context of just these parameters. Secrets come to an agent with the order of a wake, so that no machine reads any: where a deployment
//! had agents read them, those of its workspaces would be named here, too. Nothing else: no change of a parameter, no EC2, no IAM. What an attached
//! policy of AWS gives besides (`AmazonSSMManagedInstanceCore` reads every parameter of the account) is denied again.
//!
//! Not here: creating roles, which an operator does by Terraform (`deploy/aws`).

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use envforge_domain::ids::{OrgId, ProjectId, WorkspaceId};
use serde_json::{Value, json};

use crate::names::Deployment;

/// What IAM takes as the inline policies of one role, without white space.
pub const POLICY_BYTES_MAX: usize = 10_240;

/// A text that cannot be a part of an ARN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {wanted}")]
pub struct InvalidArn {
    text: String,
    wanted: &'static str,
}

/// The ARN of a customer-managed KMS key, `arn:aws:kms:eu-central-1:123456789012:key/…`: it names partition, region and
/// account of everything else.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyArn {
    partition: Box<str>,
    region: Box<str>,
    account: Box<str>,
    id: Box<str>,
}

impl FromStr for KeyArn {
    type Err = InvalidArn;

    fn from_str(text: &str) -> Result<Self, InvalidArn> {
        let invalid = || InvalidArn {
            text: text.chars().take(120).collect(),
            wanted: "the ARN of a KMS key: arn:PARTITION:kms:REGION:ACCOUNT:key/ID (an alias is none)",
        };
        let parts: Vec<&str> = text.split(':').collect();
        let ["arn", partition, "kms", region, account, key] = parts.as_slice() else { return Err(invalid()) };
        let id = key.strip_prefix("key/").ok_or_else(invalid)?;
        let plain = |text: &str| {
            !text.is_empty()
                && text.len() <= 64
                && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        };
        let number = account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit());
        if !(plain(partition) && plain(region) && number && plain(id)) {
            return Err(invalid());
        }
        let owned = |text: &str| text.into();
        Ok(Self { partition: owned(partition), region: owned(region), account: owned(account), id: owned(id) })
    }
}

impl fmt::Display for KeyArn {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { partition, region, account, id } = self;
        write!(formatter, "arn:{partition}:kms:{region}:{account}:key/{id}")
    }
}

impl KeyArn {
    pub fn region(&self) -> &str {
        &self.region
    }

    /// The ARN of a parameter of the key's account, by its path.
    pub fn parameter(&self, path: &str) -> String {
        let Self { partition, region, account, .. } = self;
        format!("arn:{partition}:ssm:{region}:{account}:parameter{path}")
    }
}

/// Who reads the values of secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SecretReader {
    /// The control plane, which sends a service's along with the order of its wake: how every agent of this version gets them.
    #[default]
    ControlPlane,
    /// The machines themselves, those of the workspaces that may be on them.
    Machine,
}

/// What the machines of one organization are to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstancePolicy {
    pub deployment: Deployment,
    pub org: OrgId,
    /// The organization's own.
    pub key: KeyArn,
    pub secrets: SecretReader,
    /// The workspaces that may be on the machines. Theirs is what a machine reads besides, where it reads secrets.
    pub workspaces: BTreeSet<WorkspaceId>,
    /// Their projects, whose secrets they may use.
    pub projects: BTreeSet<ProjectId>,
}

/// More workspaces than one role's policies can name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a policy of {bytes} bytes is longer than the {max} that IAM takes: put fewer workspaces on one machine")]
pub struct PolicyTooLarge {
    pub bytes: usize,
    pub max: usize,
}

impl InstancePolicy {
    /// The document, as IAM takes it.
    ///
    /// # Errors
    /// Where it is longer than IAM takes.
    pub fn document(&self) -> Result<Value, PolicyTooLarge> {
        let enrolment = format!("{}/hosts/*/enrolment", self.deployment.organization_path(self.org));
        let owners = self.projects.iter().map(ToString::to_string);
        let owners = owners.chain(self.workspaces.iter().map(ToString::to_string));
        let owners = owners.filter(|_| self.secrets == SecretReader::Machine);
        let secrets = owners.map(|owner| format!("{}/*", self.deployment.secrets_path(self.org, &owner)));
        let readable: Vec<String> = secrets.chain([enrolment]).map(|path| self.key.parameter(&path)).collect();
        let via = format!("ssm.{}.amazonaws.com", self.key.region());
        let document = json!({
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Sid": "ReadItsParameters",
                    "Effect": "Allow",
                    "Action": "ssm:GetParameters",
                    "Resource": readable,
                },
                {
                    "Sid": "DecryptThem",
                    "Effect": "Allow",
                    "Action": "kms:Decrypt",
                    "Resource": self.key.to_string(),
                    "Condition": {
                        "StringEquals": { "kms:ViaService": via },
                        "StringLike": { "kms:EncryptionContext:PARAMETER_ARN": readable },
                    },
                },
                {
                    "Sid": "NoOtherParameters",
                    "Effect": "Deny",
                    "Action": ["ssm:GetParameter*", "ssm:DescribeParameters"],
                    "NotResource": readable,
                },
                {
                    "Sid": "NoOtherKeys",
                    "Effect": "Deny",
                    "Action": "kms:*",
                    "NotResource": self.key.to_string(),
                },
                {
                    "Sid": "NoManagement",
                    "Effect": "Deny",
                    "Action": [
                        "ec2:*", "iam:*", "kms:CreateGrant", "kms:Encrypt", "kms:GenerateDataKey*", "kms:PutKeyPolicy", "kms:ReEncrypt*",
                        "ssm:DeleteParameter*", "ssm:LabelParameterVersion", "ssm:PutParameter", "ssm:SendCommand", "ssm:StartSession",
                        "sts:AssumeRole",
                    ],
                    "Resource": "*",
                },
            ],
        });
        let bytes = document.to_string().len();
        if bytes > POLICY_BYTES_MAX { Err(PolicyTooLarge { bytes, max: POLICY_BYTES_MAX }) } else { Ok(document) }
    }
}
