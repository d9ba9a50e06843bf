# What the control plane's role may do in the account: EnvForge's own machines, by their tags, and EnvForge's own parameters.
# Nothing here lets it make roles or keys; an operator does (../organization).

terraform {
  required_version = ">= 1.5"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.0"
    }
  }
}

variable "deployment" {
  description = "Tells the installations of EnvForge in one account apart: `deployment` in the file of `serve fleet`, and DEPLOYMENT in `--secret-store aws-ssm:REGION:DEPLOYMENT:KEY`."
  type        = string
  validation {
    # IAM's names have 64 characters; `envforge-`, `-` and an organization's id take 46 of them.
    condition     = can(regex("^[a-z][a-z0-9-]{0,17}$", var.deployment))
    error_message = "1 to 18 characters of a-z, 0-9 and `-`, beginning with a letter."
  }
}

variable "role" {
  description = "The name of the role that the control plane's processes have."
  type        = string
}

variable "subnet_arns" {
  description = "Where machines are launched."
  type        = list(string)
}

variable "security_group_arns" {
  description = "Those of machines."
  type        = list(string)
}

variable "image_arns" {
  description = "Machine images with EnvForge's agent."
  type        = list(string)
}

data "aws_caller_identity" "current" {}

data "aws_region" "current" {}

data "aws_partition" "current" {}

locals {
  account    = data.aws_caller_identity.current.account_id
  partition  = data.aws_partition.current.partition
  region     = data.aws_region.current.id
  parameters = "arn:${local.partition}:ssm:${local.region}:${local.account}:parameter/envforge/${var.deployment}"
  ec2        = "arn:${local.partition}:ec2:${local.region}:${local.account}"
}

data "aws_iam_policy_document" "control_plane" {
  # RunInstances is asked once for each kind of thing that a launch touches.
  statement {
    sid     = "LaunchTaggedClosedAndEncrypted"
    actions = ["ec2:RunInstances"]
    resources = [
      "${local.ec2}:instance/*",
    ]
    condition {
      test     = "StringEquals"
      variable = "aws:RequestTag/envforge:deployment"
      values   = [var.deployment]
    }
    condition {
      test     = "StringEquals"
      variable = "ec2:MetadataHttpTokens"
      values   = ["required"]
    }
    condition {
      test     = "NumericEquals"
      variable = "ec2:MetadataHttpPutResponseHopLimit"
      values   = ["1"]
    }
    condition {
      test     = "ArnLike"
      variable = "ec2:InstanceProfile"
      values   = ["arn:${local.partition}:iam::${local.account}:instance-profile/envforge-${var.deployment}-org_*"]
    }
  }

  statement {
    sid       = "WithEncryptedTaggedVolumes"
    actions   = ["ec2:RunInstances"]
    resources = ["${local.ec2}:volume/*"]
    condition {
      test     = "StringEquals"
      variable = "aws:RequestTag/envforge:deployment"
      values   = [var.deployment]
    }
    condition {
      test     = "Bool"
      variable = "ec2:Encrypted"
      values   = ["true"]
    }
  }

  statement {
    sid     = "InTheseNetworksFromTheseImages"
    actions = ["ec2:RunInstances"]
    resources = concat(
      var.subnet_arns,
      var.security_group_arns,
      var.image_arns,
      ["${local.ec2}:network-interface/*"],
    )
  }

  # Tags are set by the launch alone: nobody moves an instance to another organization afterwards.
  statement {
    sid       = "TagOnlyWhatIsBeingLaunched"
    actions   = ["ec2:CreateTags"]
    resources = ["${local.ec2}:instance/*", "${local.ec2}:volume/*"]
    condition {
      test     = "StringEquals"
      variable = "ec2:CreateAction"
      values   = ["RunInstances"]
    }
  }

  statement {
    sid       = "StartStopAndEndItsOwn"
    actions   = ["ec2:StartInstances", "ec2:StopInstances", "ec2:TerminateInstances"]
    resources = ["${local.ec2}:instance/*"]
    condition {
      test     = "StringEquals"
      variable = "aws:ResourceTag/envforge:deployment"
      values   = [var.deployment]
    }
  }

  # These know no resources.
  statement {
    sid       = "LookAtInstances"
    actions   = ["ec2:DescribeInstances", "ec2:DescribeInstanceStatus"]
    resources = ["*"]
  }

  statement {
    sid       = "GiveMachinesTheirOrganizationsRole"
    actions   = ["iam:PassRole"]
    resources = ["arn:${local.partition}:iam::${local.account}:role/envforge-${var.deployment}-org_*"]
    condition {
      test     = "StringEquals"
      variable = "iam:PassedToService"
      values   = ["ec2.amazonaws.com"]
    }
  }

  statement {
    sid       = "KeepSecrets"
    actions   = ["ssm:PutParameter", "ssm:GetParameters", "ssm:GetParameterHistory", "ssm:DeleteParameter", "ssm:AddTagsToResource"]
    resources = ["${local.parameters}/*/secrets/*"]
  }

  # `serve fleet` puts the tokens by which agents enrol, and takes them away. It reads none.
  statement {
    sid       = "PutEnrolmentTokens"
    actions   = ["ssm:PutParameter", "ssm:DeleteParameter"]
    resources = ["${local.parameters}/*/hosts/*/enrolment"]
  }

  # Names, descriptions and versions of the account's parameters, never a value.
  statement {
    sid       = "FindThem"
    actions   = ["ssm:DescribeParameters"]
    resources = ["*"]
  }

  # Standard parameters are encrypted by the key itself: no data keys.
  statement {
    sid       = "UseTheOrganizationsKeysThroughSsm"
    actions   = ["kms:Encrypt", "kms:Decrypt"]
    resources = ["arn:${local.partition}:kms:${local.region}:${local.account}:key/*"]
    condition {
      test     = "StringEquals"
      variable = "kms:ViaService"
      values   = ["ssm.${local.region}.amazonaws.com"]
    }
    condition {
      test     = "StringLike"
      variable = "kms:EncryptionContext:PARAMETER_ARN"
      values   = ["${local.parameters}/*/secrets/*"]
    }
  }

  statement {
    sid       = "EncryptEnrolmentTokensThroughSsm"
    actions   = ["kms:Encrypt"]
    resources = ["arn:${local.partition}:kms:${local.region}:${local.account}:key/*"]
    condition {
      test     = "StringEquals"
      variable = "kms:ViaService"
      values   = ["ssm.${local.region}.amazonaws.com"]
    }
    condition {
      test     = "StringLike"
      variable = "kms:EncryptionContext:PARAMETER_ARN"
      values   = ["${local.parameters}/*/hosts/*/enrolment"]
    }
  }

  statement {
    sid       = "AskWhoManagesAKey"
    actions   = ["kms:DescribeKey"]
    resources = ["arn:${local.partition}:kms:${local.region}:${local.account}:key/*"]
  }
}

resource "aws_iam_role_policy" "control_plane" {
  name   = "envforge-${var.deployment}"
  role   = var.role
  policy = data.aws_iam_policy_document.control_plane.json
}
