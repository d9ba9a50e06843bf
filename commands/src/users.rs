//! Users: what happens on a user's own stream.

use envforge_domain::access::Permit;
use envforge_domain::commit::StreamId;
use envforge_domain::ids::UserId;
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
