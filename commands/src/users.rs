//! Users: what happens on a user's own stream.

use envforge_domain::access::Permit;
use envforge_domain::commit::StreamId;
use envforge_domain::ids::UserId;
use envforge_domain::organization::Organization;
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
/// and the last owner stays.
pub async fn deactivate(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    user: UserId,
) -> Result<Done, CommandError> {
    let organization = commands.load::<Organization>(&StreamId::organization(permit.org())).await?.state;
    let (beyond, only_owner) = match &organization {
        Organization::Active(org) => (org.beyond(permit.actor(), user, context.now), org.is_only_owner(user)),
        Organization::Unknown => (None, false),
    };
    change(commands, permit, context, user, &UserCommand::Deactivate { beyond, only_owner }).await
}
