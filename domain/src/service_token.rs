//! Service tokens of an organization: what each may do, where and until when; made, rotated with an overlap, revoked.
//!
//! All of an organization stand on one stream, so that their names are unique and their number is bounded for sure. Not here: a
//! token's secret, of which no event knows anything (identity), and what its creator may do (the access policy): a token never
//! may more than whoever made it may now.

use std::collections::{BTreeMap, BTreeSet};

use crate::access::{Action, Principal, Reach, Scope};
use crate::aggregate::{Aggregate, Refusal, RefusalKind};
use crate::commit::StreamKind;
use crate::event::Event;
use crate::ids::{ServiceTokenId, UserId};
use crate::limits;
use crate::organization::OrganizationPolicy;
use crate::slug::ServiceTokenSlug;
use crate::time::{Millis, UnixMillis};

/// One token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceToken {
    pub slug: ServiceTokenSlug,
    pub actions: BTreeSet<Action>,
    pub place: Scope,
    /// On whose right it stands.
    pub created_by: UserId,
    /// When its present secret was made.
    pub issued_at: UnixMillis,
    pub expires_at: UnixMillis,
    /// Of the present secret; the first one is 1.
    pub generation: u32,
    /// Until when the secret before the present one counts too.
    pub former_until: Option<UnixMillis>,
    pub revoked: bool,
}

/// Why a token counts for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ServiceTokenOver {
    Revoked,
    Expired,
    /// It is older than the organization's policy allows, or the policy allows none.
    Policy,
    /// Whoever made it is no active member any more.
    Creator,
}

impl ServiceTokenOver {
    pub const fn token(self) -> &'static str {
        match self {
            Self::Revoked => "revoked",
            Self::Expired => "expired",
            Self::Policy => "policy",
            Self::Creator => "creator",
        }
    }
}

impl ServiceToken {
    /// Held against the organization's policy as it is now.
    pub fn ends_at(&self, policy: &OrganizationPolicy) -> UnixMillis {
        self.expires_at.min(policy.service_token_ends_at(self.issued_at))
    }

    /// `None` while it counts. What became of its creator is not known here.
    pub fn over(&self, policy: &OrganizationPolicy, now: UnixMillis) -> Option<ServiceTokenOver> {
        if self.revoked {
            Some(ServiceTokenOver::Revoked)
        } else if now >= self.expires_at {
            Some(ServiceTokenOver::Expired)
        } else {
            (now >= self.ends_at(policy)).then_some(ServiceTokenOver::Policy)
        }
    }

    /// Whether a secret of that generation is the token's.
    pub fn admits(&self, generation: u32, now: UnixMillis) -> bool {
        generation == self.generation
            || generation.checked_add(1) == Some(self.generation) && self.former_until.is_some_and(|until| now < until)
    }

    fn stands(&self, now: UnixMillis) -> bool {
        !self.revoked && now < self.expires_at
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceTokenEvent {
    Created {
        token: ServiceTokenId,
        slug: ServiceTokenSlug,
        actions: BTreeSet<Action>,
        place: Scope,
        created_by: UserId,
        issued_at: UnixMillis,
        expires_at: UnixMillis,
    },
    /// It has another secret; the one before counts until `former_until`.
    Rotated {
        token: ServiceTokenId,
        generation: u32,
        issued_at: UnixMillis,
        expires_at: UnixMillis,
        former_until: UnixMillis,
    },
    Revoked {
        token: ServiceTokenId,
    },
}

impl ServiceTokenEvent {
    pub const fn token(&self) -> ServiceTokenId {
        match self {
            Self::Created { token, .. } | Self::Rotated { token, .. } | Self::Revoked { token } => *token,
        }
    }
}

/// Looked-up facts ride along: what the organization's policy allows, and what whoever asks may not do themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceTokenCommand {
    Create {
        token: ServiceTokenId,
        slug: ServiceTokenSlug,
        actions: BTreeSet<Action>,
        place: Scope,
        created_by: UserId,
        lifetime: Millis,
        lifetime_max: Millis,
        /// The first of the actions that `created_by` may not do there.
        beyond: Option<Action>,
        now: UnixMillis,
    },
    Rotate {
        token: ServiceTokenId,
        /// As long as the secret before where it is left out, and as the policy allows.
        lifetime: Option<Millis>,
        lifetime_max: Millis,
        overlap: Millis,
        /// The first of the token's actions that whoever rotates may not do there: they get a secret that may.
        beyond: Option<Action>,
        now: UnixMillis,
    },
    Revoke {
        token: ServiceTokenId,
    },
}

/// The tokens of one organization; ended ones too, of which the oldest are forgotten.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceTokens {
    pub tokens: BTreeMap<ServiceTokenId, ServiceToken>,
}

impl ServiceTokens {
    pub fn by_slug(&self, slug: &ServiceTokenSlug, now: UnixMillis) -> Option<ServiceTokenId> {
        self.tokens.iter().find(|(_, token)| token.slug == *slug && token.stands(now)).map(|(id, _)| *id)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceTokenRefusal {
    #[error("there is no such service token")]
    Unknown,
    #[error("the service token exists already")]
    Exists,
    #[error("this service token was revoked or has expired; create another one")]
    Over,
    #[error("another service token is called `{slug}`; choose another name")]
    NameTaken { slug: ServiceTokenSlug },
    #[error("an organization has at most {max} service tokens; revoke what is not needed")]
    TooMany { max: usize },
    #[error("a service token lives between {min} and {max}")]
    Lifetime { min: Millis, max: Millis },
    #[error("the organization's policy allows no service tokens")]
    NotAllowed,
    #[error("the former secret may count for at most {max} more")]
    Overlap { max: Millis },
    #[error("name at least one action")]
    NoActions,
    #[error("`{}` is nothing that a service token may be for", .action.token())]
    NotForServices { action: Action },
    #[error("`{}` is an action on {}; the service token's place is smaller", .action.token(), match .action.row().reach {
        Reach::Organization => "the organization", Reach::Project => "a project", Reach::Workspace => "a workspace",
    })]
    OutOfPlace { action: Action },
    #[error("you may not do `{}` there yourself", .action.token())]
    AboveYourself { action: Action },
}

impl Refusal for ServiceTokenRefusal {
    fn code(&self) -> &'static str {
        match self {
            Self::Unknown => "service_token_unknown",
            Self::Exists => "service_token_exists",
            Self::Over => "service_token_over",
            Self::NameTaken { .. } => "service_token_name_taken",
            Self::TooMany { .. } => "too_many_service_tokens",
            Self::Lifetime { .. } => "service_token_lifetime_out_of_range",
            Self::NotAllowed => "service_tokens_not_allowed",
            Self::Overlap { .. } => "service_token_overlap_too_long",
            Self::NoActions | Self::NotForServices { .. } | Self::OutOfPlace { .. } => "service_token_actions_invalid",
            Self::AboveYourself { .. } => "service_token_above_yourself",
        }
    }

    fn kind(&self) -> RefusalKind {
        match self {
            Self::Unknown => RefusalKind::NotFound,
            Self::Over => RefusalKind::Gone,
            Self::Exists | Self::NameTaken { .. } => RefusalKind::Conflict,
            Self::TooMany { .. } | Self::NotAllowed | Self::AboveYourself { .. } => RefusalKind::Forbidden,
            Self::Lifetime { .. }
            | Self::Overlap { .. }
            | Self::NoActions
            | Self::NotForServices { .. }
            | Self::OutOfPlace { .. } => RefusalKind::Invalid,
        }
    }

    fn bounds(&self) -> Vec<(&'static str, u64)> {
        match self {
            Self::TooMany { max } => vec![("max", *max as u64)],
            Self::Lifetime { min, max } => vec![("min_ms", min.get()), ("max_ms", max.get())],
            Self::Overlap { max } => vec![("max_ms", max.get())],
            Self::Unknown
            | Self::Exists
            | Self::Over
            | Self::NameTaken { .. }
            | Self::NotAllowed
            | Self::NoActions
            | Self::NotForServices { .. }
            | Self::OutOfPlace { .. }
            | Self::AboveYourself { .. } => vec![],
        }
    }
}

/// Whether a token may be for this at all: the rows of the policy that name services.
pub fn is_for_services(action: Action) -> bool {
    !action.row().surfaces_of(Principal::ServiceToken).is_empty()
}

fn check_actions(actions: &BTreeSet<Action>, place: Scope) -> Result<(), ServiceTokenRefusal> {
    if actions.is_empty() {
        return Err(ServiceTokenRefusal::NoActions);
    }
    if let Some(action) = actions.iter().find(|action| !is_for_services(**action)) {
        return Err(ServiceTokenRefusal::NotForServices { action: *action });
    }
    let fits = |action: &Action| match (place, action.row().reach) {
        (Scope::Organization, _)
        | (Scope::Project(_), Reach::Project | Reach::Workspace)
        | (Scope::Workspace { .. }, Reach::Workspace) => true,
        (Scope::Project(_), Reach::Organization) | (Scope::Workspace { .. }, Reach::Organization | Reach::Project) => {
            false
        }
    };
    actions
        .iter()
        .find(|action| !fits(action))
        .map_or(Ok(()), |action| Err(ServiceTokenRefusal::OutOfPlace { action: *action }))
}

/// Within the product's limits and the organization's.
fn check_lifetime(lifetime: Millis, policy_max: Millis) -> Result<(), ServiceTokenRefusal> {
    let (min, max) = (limits::SERVICE_TOKEN_LIFETIME_MIN, policy_max.min(limits::SERVICE_TOKEN_LIFETIME_MAX));
    if max < min {
        return Err(ServiceTokenRefusal::NotAllowed);
    }
    if lifetime < min || lifetime > max { Err(ServiceTokenRefusal::Lifetime { min, max }) } else { Ok(()) }
}

impl Aggregate for ServiceTokens {
    const KIND: StreamKind = StreamKind::ServiceTokens;
    type State = Self;
    type Command = ServiceTokenCommand;
    type Event = ServiceTokenEvent;
    type Refusal = ServiceTokenRefusal;

    fn decide(state: &Self, command: &ServiceTokenCommand) -> Result<Vec<ServiceTokenEvent>, ServiceTokenRefusal> {
        match command {
            ServiceTokenCommand::Create {
                token,
                slug,
                actions,
                place,
                created_by,
                lifetime,
                lifetime_max,
                beyond,
                now,
            } => {
                if state.tokens.contains_key(token) {
                    return Err(ServiceTokenRefusal::Exists);
                }
                check_actions(actions, *place)?;
                check_lifetime(*lifetime, *lifetime_max)?;
                if let Some(action) = beyond {
                    return Err(ServiceTokenRefusal::AboveYourself { action: *action });
                }
                if state.by_slug(slug, *now).is_some() {
                    return Err(ServiceTokenRefusal::NameTaken { slug: slug.clone() });
                }
                let max = limits::SERVICE_TOKENS_MAX;
                if state.tokens.values().filter(|token| token.stands(*now)).count() >= max {
                    return Err(ServiceTokenRefusal::TooMany { max });
                }
                Ok(vec![ServiceTokenEvent::Created {
                    token: *token,
                    slug: slug.clone(),
                    actions: actions.clone(),
                    place: *place,
                    created_by: *created_by,
                    issued_at: *now,
                    expires_at: now.plus(*lifetime),
                }])
            }
            ServiceTokenCommand::Rotate { token, lifetime, lifetime_max, overlap, beyond, now } => {
                let known = state.tokens.get(token).ok_or(ServiceTokenRefusal::Unknown)?;
                if !known.stands(*now) {
                    return Err(ServiceTokenRefusal::Over);
                }
                if let Some(action) = beyond {
                    return Err(ServiceTokenRefusal::AboveYourself { action: *action });
                }
                let before = known.expires_at.since(known.issued_at);
                let lifetime = lifetime.unwrap_or_else(|| before.min(*lifetime_max));
                check_lifetime(lifetime, *lifetime_max)?;
                let max = limits::SERVICE_TOKEN_OVERLAP_MAX;
                if *overlap > max {
                    return Err(ServiceTokenRefusal::Overlap { max });
                }
                Ok(vec![ServiceTokenEvent::Rotated {
                    token: *token,
                    generation: known.generation.saturating_add(1),
                    issued_at: *now,
                    expires_at: now.plus(lifetime),
                    // A secret never lives longer than it was made for.
                    former_until: now.plus(*overlap).min(known.expires_at),
                }])
            }
            ServiceTokenCommand::Revoke { token } => {
                let known = state.tokens.get(token).ok_or(ServiceTokenRefusal::Unknown)?;
                Ok(if known.revoked { vec![] } else { vec![ServiceTokenEvent::Revoked { token: *token }] })
            }
        }
    }

    fn evolve(mut state: Self, event: &ServiceTokenEvent) -> Self {
        match event {
            ServiceTokenEvent::Created { token, slug, actions, place, created_by, issued_at, expires_at } => {
                let made = ServiceToken {
                    slug: slug.clone(),
                    actions: actions.clone(),
                    place: *place,
                    created_by: *created_by,
                    issued_at: *issued_at,
                    expires_at: *expires_at,
                    generation: 1,
                    former_until: None,
                    revoked: false,
                };
                state.tokens.insert(*token, made);
                while state.tokens.len() > limits::SERVICE_TOKENS_REMEMBERED_MAX {
                    let over = |(_, token): &(&ServiceTokenId, &ServiceToken)| !token.stands(*issued_at);
                    let Some(oldest) = state.tokens.iter().find(over).map(|(id, _)| *id) else { break };
                    state.tokens.remove(&oldest);
                }
            }
            ServiceTokenEvent::Rotated { token, generation, issued_at, expires_at, former_until } => {
                if let Some(known) = state.tokens.get_mut(token) {
                    known.generation = *generation;
                    known.issued_at = *issued_at;
                    known.expires_at = *expires_at;
                    known.former_until = Some(*former_until);
                }
            }
            ServiceTokenEvent::Revoked { token } => {
                if let Some(known) = state.tokens.get_mut(token) {
                    known.revoked = true;
                }
            }
        }
        state
    }

    fn event_of(event: &Event) -> Option<&ServiceTokenEvent> {
        if let Event::ServiceToken(event) = event { Some(event) } else { None }
    }

    fn action_of(command: &ServiceTokenCommand) -> Action {
        match command {
            ServiceTokenCommand::Create { .. } => Action::ServiceTokenCreate,
            ServiceTokenCommand::Rotate { .. } => Action::ServiceTokenRotate,
            ServiceTokenCommand::Revoke { .. } => Action::ServiceTokenRevoke,
        }
    }
}

impl From<ServiceTokenEvent> for Event {
    fn from(event: ServiceTokenEvent) -> Self {
        Self::ServiceToken(event)
    }
}
