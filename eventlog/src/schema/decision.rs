//! Stored events of decisions.

use envforge_domain::access::{Basis, Grant, Principal};
use envforge_domain::commit::{Position, Standing, StreamId};
use envforge_domain::decision::DecisionEvent;
use serde::{Deserializer, Serializer};

use super::wire::{Wire, events, kinds, object, text, tokens};

events! {
    DecisionEvent {
        "decision.recorded.v1" => Recorded {
            action: String = "action",
            resource: String = "resource",
            basis: Basis = "basis",
            position: Position = "position",
            rests_on: Vec<Standing> = "rests_on",
        },
        "decision.held.v1" => Held { last: Position = "last" },
    }
}

kinds! {
    Basis {
        "grant" => Grant(grant: Grant = "grant"),
        "principal" => Principal(principal: Principal = "principal"),
    }
}

tokens! {
    Principal {
        "link_visitor" => LinkVisitor,
        "agent" => Agent,
        "system" => System,
        "member" => Member,
        "service_token" => ServiceToken,
    }
}

object! {
    Standing {
        stream: StreamId = "stream",
        last: Position = "last",
    }
}

/// `<org>.<kind>.<key>`, as in the commit around it.
impl Wire for StreamId {
    fn to_wire<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }

    fn from_wire<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, |text| Self::parse_subject(text).ok_or_else(|| format!("`{text}` is not a stream")))
    }
}
