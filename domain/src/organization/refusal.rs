//! What an organization says no to, and what would be allowed.

use crate::access::{Role, Roles};
use crate::aggregate::{Refusal, RefusalKind};
use crate::slug::TeamSlug;
use crate::time::Millis;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrganizationRefusal {
    #[error("there is no such organization")]
    Unknown,
    #[error("the organization exists already")]
    Exists,
    #[error("a name must have 1 to {max} characters")]
    Name { max: usize },
    #[error("this user is not a member; add them first")]
    NotAMember,
    #[error("there is no such team in this organization")]
    TeamUnknown,
    #[error("another team is called `{name}`; choose another name")]
    TeamNameTaken { name: TeamSlug },
    #[error("an organization has at most {max} teams")]
    TooManyTeams { max: usize },
    #[error("a team has at most {max} members")]
    TeamFull { max: usize },
    #[error("somebody is in at most {max} teams")]
    MemberOfTooManyTeams { max: usize },
    #[error("the last owner cannot be removed; assign another owner first")]
    LastOwner,
    #[error("you cannot give or take the role `{role}`: your own roles do not reach it")]
    AboveYourself { role: Role },
    #[error("the role `{role}` counts for the whole organization only")]
    OrgWideOnly { role: Role },
    #[error("the end of a grant must lie in the future")]
    EndsInThePast,
    #[error("this role is not assigned there")]
    NotAssigned,
    #[error("`{setting}` must be between {min} and {max}")]
    PolicyOutOfRange { setting: &'static str, min: Millis, max: Millis },
    #[error("these roles can never give links: {}; choose among {}", .never.display(), super::LINK_ISSUERS.display())]
    PolicyLinkIssuers { never: Roles },
    #[error(
        "name at most {max} identity providers, each `local` or the issuer's URL of at most {max_chars} visible characters"
    )]
    PolicyIdentityProviders { max: usize, max_chars: usize },
    #[error("`{provider}`, by which you are signed in yourself, would not be allowed any more; name it too")]
    PolicyLocksYouOut { provider: String },
    #[error("only an owner lets people come to root, or for longer")]
    PolicyRootOwnersOnly,
    #[error("an organization has at most {max} grants")]
    TooManyGrants { max: usize },
}

impl Refusal for OrganizationRefusal {
    fn code(&self) -> &'static str {
        match self {
            Self::Unknown => "organization_unknown",
            Self::Exists => "organization_exists",
            Self::Name { .. } => "name_invalid",
            Self::NotAMember => "member_unknown",
            Self::TeamUnknown => "team_unknown",
            Self::TeamNameTaken { .. } => "team_name_taken",
            Self::TooManyTeams { .. } => "too_many_teams",
            Self::TeamFull { .. } => "team_full",
            Self::MemberOfTooManyTeams { .. } => "member_of_too_many_teams",
            Self::LastOwner => "last_owner",
            Self::AboveYourself { .. } => "grant_above_yourself",
            Self::OrgWideOnly { .. } => "role_org_wide_only",
            Self::EndsInThePast => "grant_ends_in_the_past",
            Self::NotAssigned => "role_not_assigned",
            Self::PolicyOutOfRange { .. } => "policy_out_of_range",
            Self::PolicyLinkIssuers { .. } => "policy_link_issuers_invalid",
            Self::PolicyIdentityProviders { .. } => "policy_identity_providers_invalid",
            Self::PolicyLocksYouOut { .. } => "policy_locks_you_out",
            Self::PolicyRootOwnersOnly => "policy_root_owners_only",
            Self::TooManyGrants { .. } => "too_many_grants",
        }
    }

    fn kind(&self) -> RefusalKind {
        match self {
            Self::Unknown | Self::TeamUnknown | Self::NotAssigned => RefusalKind::NotFound,
            Self::Exists | Self::TeamNameTaken { .. } | Self::LastOwner | Self::PolicyLocksYouOut { .. } => {
                RefusalKind::Conflict
            }
            Self::Name { .. }
            | Self::NotAMember
            | Self::OrgWideOnly { .. }
            | Self::EndsInThePast
            | Self::PolicyOutOfRange { .. }
            | Self::PolicyLinkIssuers { .. }
            | Self::PolicyIdentityProviders { .. } => RefusalKind::Invalid,
            Self::AboveYourself { .. }
            | Self::PolicyRootOwnersOnly
            | Self::TooManyGrants { .. }
            | Self::TooManyTeams { .. }
            | Self::TeamFull { .. }
            | Self::MemberOfTooManyTeams { .. } => RefusalKind::Forbidden,
        }
    }

    fn bounds(&self) -> Vec<(&'static str, u64)> {
        match self {
            Self::PolicyOutOfRange { min, max, .. } => vec![("min_ms", min.get()), ("max_ms", max.get())],
            Self::Name { max } => vec![("max_chars", *max as u64)],
            Self::PolicyIdentityProviders { max, max_chars } => {
                vec![("max", *max as u64), ("max_chars", *max_chars as u64)]
            }
            Self::TooManyGrants { max }
            | Self::TooManyTeams { max }
            | Self::TeamFull { max }
            | Self::MemberOfTooManyTeams { max } => vec![("max", *max as u64)],
            Self::Unknown
            | Self::Exists
            | Self::NotAMember
            | Self::TeamUnknown
            | Self::TeamNameTaken { .. }
            | Self::LastOwner
            | Self::AboveYourself { .. }
            | Self::OrgWideOnly { .. }
            | Self::EndsInThePast
            | Self::NotAssigned
            | Self::PolicyLinkIssuers { .. }
            | Self::PolicyLocksYouOut { .. }
            | Self::PolicyRootOwnersOnly => vec![],
        }
    }
}
