# One organization: its KMS key, and the role of its machines. Apply once for each organization, before its first machine.
# The role's policy is what EnvForge generates for the organization's workspaces (tests/iam/golden/instance_profile.json of
# the crate `aws` shows one): hand its JSON over in `instance_policy`.

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

variable "organization" {
  description = "The organization's id, `org_` and 32 hexadecimal digits."
  type        = string
  validation {
    condition     = can(regex("^org_[0-9a-f]{32}$", var.organization))
    error_message = "`org_` and 32 lower-case hexadecimal digits."
  }
}

variable "control_plane_role_arn" {
  description = "The role of the control plane, which encrypts and reads the organization's secrets."
  type        = string
}

variable "instance_policy" {
  description = "The JSON that EnvForge generates for the machines of this organization. Its place is kept by a policy that allows nothing."
  type        = string
  default     = <<-EOT
    {"Version":"2012-10-17","Statement":[{"Sid":"Nothing","Effect":"Deny","Action":"*","Resource":"*"}]}
  EOT
}

data "aws_caller_identity" "current" {}

data "aws_region" "current" {}

data "aws_partition" "current" {}

locals {
  name       = "envforge-${var.deployment}-${var.organization}"
  account    = data.aws_caller_identity.current.account_id
  partition  = data.aws_partition.current.partition
  region     = data.aws_region.current.name
  parameters = "arn:${local.partition}:ssm:${local.region}:${local.account}:parameter/envforge/${var.deployment}/${var.organization}"
}

# Customer-managed: AWS's own key for SSM lets every principal of the account decrypt.
resource "aws_kms_key" "secrets" {
  description         = "Secrets of ${var.organization} in EnvForge ${var.deployment}"
  enable_key_rotation = true
  policy              = data.aws_iam_policy_document.key.json
  tags                = local.tags
}

resource "aws_kms_alias" "secrets" {
  name          = "alias/${local.name}"
  target_key_id = aws_kms_key.secrets.key_id
}

data "aws_iam_policy_document" "key" {
  statement {
    sid       = "TheAccountAdministersIt"
    actions   = ["kms:*"]
    resources = ["*"]
    principals {
      type        = "AWS"
      identifiers = ["arn:${local.partition}:iam::${local.account}:root"]
    }
  }

  statement {
    sid       = "TheControlPlaneKeepsTheOrganizationsSecrets"
    actions   = ["kms:Encrypt", "kms:Decrypt"]
    resources = ["*"]
    principals {
      type        = "AWS"
      identifiers = [var.control_plane_role_arn]
    }
    condition {
      test     = "StringEquals"
      variable = "kms:ViaService"
      values   = ["ssm.${local.region}.amazonaws.com"]
    }
    condition {
      test     = "StringLike"
      variable = "kms:EncryptionContext:PARAMETER_ARN"
      values   = ["${local.parameters}/secrets/*"]
    }
  }

  # It writes the tokens by which agents enrol, and reads none.
  statement {
    sid       = "TheControlPlaneWritesEnrolmentTokens"
    actions   = ["kms:Encrypt"]
    resources = ["*"]
    principals {
      type        = "AWS"
      identifiers = [var.control_plane_role_arn]
    }
    condition {
      test     = "StringEquals"
      variable = "kms:ViaService"
      values   = ["ssm.${local.region}.amazonaws.com"]
    }
    condition {
      test     = "StringLike"
      variable = "kms:EncryptionContext:PARAMETER_ARN"
      values   = ["${local.parameters}/hosts/*/enrolment"]
    }
  }
}

data "aws_iam_policy_document" "machines_assume" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "machines" {
  name               = local.name
  assume_role_policy = data.aws_iam_policy_document.machines_assume.json
  tags               = local.tags
}

resource "aws_iam_role_policy" "machines" {
  name   = "workspaces"
  role   = aws_iam_role.machines.id
  policy = var.instance_policy
}

resource "aws_iam_instance_profile" "machines" {
  name = local.name
  role = aws_iam_role.machines.name
  tags = local.tags
}

locals {
  tags = {
    "envforge:deployment"   = var.deployment
    "envforge:organization" = var.organization
  }
}

output "kms_key_arn" {
  description = "The organization's key, by itself: for `secrets_key` of the organization in the file of `serve fleet`."
  value       = aws_kms_key.secrets.arn
}

output "secrets_key" {
  description = "The keys of all organizations that this module was applied for, by their aliases: for `secrets_key` at the top of the file of `serve fleet`."
  value       = "alias/envforge-${var.deployment}-{org}"
}

output "secret_store" {
  description = "For `--secret-store` of `serve api`, `serve reactors` and `serve agents`: the same for all organizations."
  value       = "aws-ssm:${local.region}:${var.deployment}:alias/envforge-${var.deployment}-{org}"
}

output "instance_profile" {
  value = aws_iam_instance_profile.machines.name
}
