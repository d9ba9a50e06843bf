//! Stored events of service tokens. None of them holds a secret or its hash.

use std::collections::BTreeSet;

use envforge_domain::access::{Action, Scope};
use envforge_domain::ids::{ServiceTokenId, UserId};
use envforge_domain::service_token::ServiceTokenEvent;
use envforge_domain::slug::ServiceTokenSlug;
use envforge_domain::time::UnixMillis;
use serde::de::Error as _;
use serde::{Deserializer, Serializer};

use super::wire::{Wire, events};

events! {
    ServiceTokenEvent {
        "service_token.created.v1" => Created {
            token: ServiceTokenId = "token",
            slug: ServiceTokenSlug = "slug",
            actions: BTreeSet<Action> = "actions",
            place: Scope = "place",
            created_by: UserId = "created_by",
            issued_at: UnixMillis = "issued_at",
            expires_at: UnixMillis = "expires_at",
        },
        "service_token.rotated.v1" => Rotated {
            token: ServiceTokenId = "token",
            generation: u32 = "generation",
            issued_at: UnixMillis = "issued_at",
            expires_at: UnixMillis = "expires_at",
            former_until: UnixMillis = "former_until",
        },
        "service_token.revoked.v1" => Revoked { token: ServiceTokenId = "token" },
    }
}

/// Tokens of the policy, in its order, none twice.
impl Wire for BTreeSet<Action> {
    fn to_wire<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter().map(|action| action.token()))
    }

    fn from_wire<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let tokens = Vec::<String>::from_wire(deserializer)?;
        let count = tokens.len();
        let action = |token: String| {
            Action::from_token(&token).ok_or_else(|| D::Error::custom(format!("there is no action `{token}`")))
        };
        let actions: Self = tokens.into_iter().map(action).collect::<Result<_, _>>()?;
        if actions.len() == count { Ok(actions) } else { Err(D::Error::custom("an action stands twice")) }
    }
}
