//! Service tokens: what the organization's policy allows and what whoever asks may do themselves is looked up.

use std::collections::BTreeSet;

use envforge_domain::access::{Action, Permit, Scope};
use envforge_domain::commit::{Actor, StreamId};
use envforge_domain::ids::{OrgId, ServiceTokenId, UserId};
use envforge_domain::limits;
use envforge_domain::organization::Organization;
use envforge_domain::service_token::{ServiceTokenCommand, ServiceTokens};
use envforge_domain::slug::ServiceTokenSlug;
use envforge_domain::time::Millis;

use crate::{CommandError, Commands, Context, Done, Loaded};

/// A token that is asked for.
#[derive(Clone, Debug)]
pub struct NewServiceToken {
    pub token: ServiceTokenId,
    pub slug: ServiceTokenSlug,
    pub actions: BTreeSet<Action>,
    pub place: Scope,
    pub created_by: UserId,
    pub lifetime: Option<Millis>,
}

/// Makes a token. Nobody makes one that may more than they themselves.
pub async fn create(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    new: &NewServiceToken,
) -> Result<Done, CommandError> {
    let NewServiceToken { token, slug, actions, place, created_by, lifetime } = new.clone();
    let (lifetime_max, beyond) = match organization(commands, permit.org()).await? {
        Organization::Active(org) => (
            org.policy.service_token_lifetime_max,
            org.beyond_doing(Actor::User(created_by), &actions, place, context.now),
        ),
        Organization::Unknown => (Millis::ZERO, None),
    };
    let lifetime = lifetime.unwrap_or_else(|| limits::SERVICE_TOKEN_LIFETIME_DEFAULT.min(lifetime_max));
    let now = context.now;
    let command =
        ServiceTokenCommand::Create { token, slug, actions, place, created_by, lifetime, lifetime_max, beyond, now };
    change(commands, permit, context, &command).await
}

/// Gives a token another secret. Whoever does gets what it may do into their hands, so they must be able to do it.
pub async fn rotate(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    token: ServiceTokenId,
    lifetime: Option<Millis>,
    overlap: Millis,
) -> Result<Done, CommandError> {
    let tokens = load(commands, permit.org()).await?.state;
    let (lifetime_max, beyond) = match (organization(commands, permit.org()).await?, tokens.tokens.get(&token)) {
        (Organization::Active(org), Some(known)) => (
            org.policy.service_token_lifetime_max,
            org.beyond_doing(permit.actor(), &known.actions, known.place, context.now),
        ),
        _ => (Millis::ZERO, None),
    };
    let now = context.now;
    let command = ServiceTokenCommand::Rotate { token, lifetime, lifetime_max, overlap, beyond, now };
    change(commands, permit, context, &command).await
}

pub async fn revoke(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    token: ServiceTokenId,
) -> Result<Done, CommandError> {
    change(commands, permit, context, &ServiceTokenCommand::Revoke { token }).await
}

/// The tokens of an organization, as the log's leader has them.
pub async fn load(commands: &Commands, org: OrgId) -> Result<Loaded<ServiceTokens>, CommandError> {
    Ok(commands.load::<ServiceTokens>(&StreamId::service_tokens(org)).await?)
}

async fn organization(commands: &Commands, org: OrgId) -> Result<Organization, CommandError> {
    Ok(commands.load::<Organization>(&StreamId::organization(org)).await?.state)
}

async fn change(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    command: &ServiceTokenCommand,
) -> Result<Done, CommandError> {
    commands.execute::<ServiceTokens>(permit, context, &StreamId::service_tokens(permit.org()), command).await
}
