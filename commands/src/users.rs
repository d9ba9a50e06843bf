//! Users: what happens on a user's own stream.

use envforge_domain::access::Permit;
use envforge_domain::commit::StreamId;
use envforge_domain::ids::UserId;
use envforge_domain::organization::{Organization, OrganizationCommand};
use envforge_domain::user::{User, UserCommand};

use crate::{CommandError, Commands, Context, Done};

pub async fn change(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    user: UserId,
    command: &UserCommand,
) -> Result<Done, CommandError> {
    commands.execute::<User>(permit, context, &StreamId::user(permit.org(), user), command).await
}

/// Deactivates an account. What the organization knows of the person is looked up: nobody deactivates above themselves,
/// and the last owner stays. In the same append they leave their teams, and are no owner any more.
pub async fn deactivate(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    user: UserId,
) -> Result<Done, CommandError> {
    let organization = StreamId::organization(permit.org());
    let (by, now) = (permit.actor(), context.now);
    let deactivate = || {
        let organization = organization.clone();
        async move {
            let (beyond, only_owner) = match commands.load::<Organization>(&organization).await?.state {
                Organization::Active(org) => (org.beyond(by, user, now), org.is_only_owner(user)),
                Organization::Unknown => (None, false),
            };
            Ok(UserCommand::Deactivate { beyond, only_owner })
        }
    };
    commands
        .transaction(context)
        .step_with::<User, _>(permit, StreamId::user(permit.org(), user), deactivate)
        .step::<Organization>(permit, organization.clone(), OrganizationCommand::Retire { by, user, now })
        .commit()
        .await
}
