//! Organizations: creation with the claim on their slug, and what their administrators change.

use envforge_domain::access::Action;
use envforge_domain::access::Permit;
use envforge_domain::claim::{Claim, ClaimCommand, ClaimKey};
use envforge_domain::commit::StreamId;
use envforge_domain::ids::{OrgId, UserId};
use envforge_domain::organization::{Organization, OrganizationCommand};
use envforge_domain::slug::OrgSlug;

use crate::{CommandError, Commands, Context, Done};

/// Creates an organization with its first owner. The slug is claimed over all organizations.
pub async fn create(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    org: OrgId,
    slug: OrgSlug,
    name: String,
    owner: UserId,
) -> Result<Done, CommandError> {
    let claim = ClaimKey::OrgSlug(slug.clone()).stream().expect("a slug is a valid stream key");
    let take = ClaimCommand::Take { holder: org.to_string(), for_action: Action::OrganizationCreate };
    commands
        .transaction(context)
        .step::<Organization>(
            permit,
            StreamId::organization(org),
            OrganizationCommand::Create { org, slug, name, owner },
        )
        .step::<Claim>(permit, claim, take)
        .commit()
        .await
}

/// Everything else that happens on an organization's own stream.
pub async fn change(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    command: &OrganizationCommand,
) -> Result<Done, CommandError> {
    commands.execute::<Organization>(permit, context, &StreamId::organization(permit.org()), command).await
}
