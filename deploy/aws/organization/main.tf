# One organization: its KMS key, and the role of its machines. Apply once for each organization, before its first machine.
# The role's policy is what `envforge host policy` prints for the organization (tests/iam/golden/instance_profile.json of the crate
# `aws` shows one): hand its JSON over in `instance_policy`. It reads enrolment tokens and no secret, so that it stays the same
# whichever workspaces there are.

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

variable "vpc_id" {
  description = "The VPC of the machines. With it they get a security group of the organization's own."
  type        = string
  default     = null
}

variable "gateway_security_group_id" {
  description = "The security group of the gateway's machines, which alone reach what runs on the organization's."
  type        = string
  default     = null
}

variable "egress_cidrs" {
  description = "Where the machines may call: the control plane, AWS, repositories, what services and their builds fetch."
  type        = list(string)
  default     = ["0.0.0.0/0"]
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
  region     = data.aws_region.current.id
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

# Nothing but the gateway reaches a machine, its neighbours of the same organization neither. Services are allotted ports out of
# those that Linux gives (net.ipv4.ip_local_port_range).
resource "aws_security_group" "machines" {
  count       = var.vpc_id == null ? 0 : 1
  name        = local.name
  description = "Machines of ${var.organization} in EnvForge ${var.deployment}"
  vpc_id      = var.vpc_id
  tags        = local.tags

  lifecycle {
    precondition {
      condition     = var.gateway_security_group_id != null
      error_message = "`gateway_security_group_id` is needed with `vpc_id`: without it nobody would reach what runs on the machines."
    }
  }
}

resource "aws_vpc_security_group_ingress_rule" "gateway" {
  count                        = var.vpc_id == null ? 0 : 1
  security_group_id            = aws_security_group.machines[0].id
  description                  = "The gateway, to services with a route"
  referenced_security_group_id = var.gateway_security_group_id
  ip_protocol                  = "tcp"
  from_port                    = 32768
  to_port                      = 60999
}

resource "aws_vpc_security_group_egress_rule" "machines" {
  for_each          = var.vpc_id == null ? toset([]) : toset(var.egress_cidrs)
  security_group_id = aws_security_group.machines[0].id
  ip_protocol       = "-1"
  cidr_ipv4         = each.value
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

output "security_group_id" {
  description = "For `security_groups` of the organization in the file of `serve fleet`; its ARN is one of the control plane's `security_group_arns`."
  value       = one(aws_security_group.machines[*].id)
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
