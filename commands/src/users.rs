//! Users: what happens on a user's own stream.

use envforge_domain::access::{Permit, Role};
use envforge_domain::aggregate::Aggregate;
use envforge_domain::commit::{Actor, Position, StreamId};
use envforge_domain::event::Event;
use envforge_domain::ids::{OrgId, SessionId, UserId};
use envforge_domain::invitation::Invitation;
use envforge_domain::organization::{Organization, OrganizationCommand, OrganizationRefusal};
use envforge_domain::time::UnixMillis;
use envforge_domain::user::{User, UserCommand, UserEvent};
use envforge_domain::workspace_session::OpenWorkspace;

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

/// A member opens a workspace: a session on its host, once a handoff, whichever gateway asks.
pub async fn open_workspace(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    user: UserId,
    asked: OpenWorkspace,
) -> Result<Done, CommandError> {
    change(commands, permit, context, user, &UserCommand::OpenWorkspace(asked)).await
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

/// Takes a deactivation back, of those whom one's own roles reach.
pub async fn reactivate(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    user: UserId,
) -> Result<Done, CommandError> {
    let organization = commands.load::<Organization>(&StreamId::organization(permit.org())).await?.state;
    let beyond = beyond(&organization, permit, user, context);
    change(commands, permit, context, user, &UserCommand::Reactivate { beyond }).await
}

/// Ends one session of somebody, or all, where one's own roles reach them.
pub async fn revoke_sessions(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    user: UserId,
    session: Option<SessionId>,
) -> Result<Done, CommandError> {
    let organization = commands.load::<Organization>(&StreamId::organization(permit.org())).await?.state;
    let beyond = beyond(&organization, permit, user, context);
    change(commands, permit, context, user, &UserCommand::RevokeSessions { session, beyond }).await
}

/// Invites somebody. Nobody invites above themselves.
pub async fn invite(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    invitation: Invitation,
) -> Result<Done, CommandError> {
    let organization = commands.load::<Organization>(&StreamId::organization(permit.org())).await?.state;
    let Organization::Active(org) = organization else {
        return Err(CommandError::Refused(Box::new(OrganizationRefusal::Unknown)));
    };
    let beyond = org.beyond_granting(permit.actor(), &invitation.roles, context.now);
    let user = invitation.user;
    change(commands, permit, context, user, &UserCommand::Invite { invitation, beyond, now: context.now }).await
}

/// Who somebody is who accepts an invitation.
#[derive(Clone, Debug)]
pub struct Newcomer {
    pub name: String,
    pub issuer: String,
    pub subject: String,
}

/// Accepts an invitation for whoever holds its token. It stands on the right of whoever made it, as it is now.
pub async fn accept(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    user: UserId,
    newcomer: &Newcomer,
) -> Result<Done, CommandError> {
    let (_, command) = acceptance(commands, permit.org(), user, newcomer, context.now).await?;
    change(commands, permit, context, user, &command).await
}

/// Whether `accept` would be refused, without doing anything.
pub async fn check_acceptance(
    commands: &Commands,
    org: OrgId,
    user: UserId,
    newcomer: &Newcomer,
    now: UnixMillis,
) -> Result<(), CommandError> {
    let (state, command) = acceptance(commands, org, user, newcomer, now).await?;
    User::decide(&state, &command).map(drop).map_err(|refusal| CommandError::Refused(Box::new(refusal)))
}

async fn acceptance(
    commands: &Commands,
    org: OrgId,
    user: UserId,
    newcomer: &Newcomer,
    now: UnixMillis,
) -> Result<(User, UserCommand), CommandError> {
    let state = commands.load::<User>(&StreamId::user(org, user)).await?.state;
    let organization = commands.load::<Organization>(&StreamId::organization(org)).await?.state;
    let beyond = match (&state, &organization) {
        (User::Invited(invitation), Organization::Active(organization)) => {
            organization.beyond_granting(Actor::User(invitation.invited_by), &invitation.roles, now)
        }
        _ => None,
    };
    let Newcomer { name, issuer, subject } = newcomer.clone();
    Ok((state, UserCommand::AcceptInvitation { name, issuer, subject, beyond, now }))
}

/// The invitation by which somebody came, however long ago that was.
pub async fn invitation(commands: &Commands, org: OrgId, user: UserId) -> Result<Option<Invitation>, CommandError> {
    let first = commands.log().read_stream(&StreamId::user(org, user), Position::START, 1).await?;
    let mut events = first.into_iter().flat_map(|recorded| recorded.commit.events);
    Ok(events.find_map(|event| match event {
        Event::User(UserEvent::Invited { invitation }) => Some(invitation),
        _ => None,
    }))
}

/// The first live role of `user` that whoever holds the permit could not take from them.
fn beyond(organization: &Organization, permit: &Permit, user: UserId, context: &Context) -> Option<Role> {
    match organization {
        Organization::Active(org) => org.beyond(permit.actor(), user, context.now),
        Organization::Unknown => None,
    }
}
