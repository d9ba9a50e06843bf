//! How the domain's values stand in stored JSON, and the three macros in which stored shapes are written out.
//!
//! Every name that reaches the log is a literal here or in the aggregate's schema file; nothing is derived from Rust
//! names. A shape is strict: a missing or unknown field is an error.

use std::fmt;
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};

use envforge_domain::access::Role;
use envforge_domain::commit::{Actor, Position};
use envforge_domain::dev_link::{Generation, RouteFamilies, RouteFamily};
use envforge_domain::ids::{
    ApiProcessId, CorrelationId, GatewayId, HandoffId, HostId, JobRunId, LinkId, OrgId, ProjectId, RootWindowId,
    ServiceTokenId, SessionId, ShellId, TeamId, UserId, WorkspaceId,
};
use envforge_domain::runtime::Epoch;
use envforge_domain::secret::TokenDigest;
use envforge_domain::secrets::{SecretConsumer, SecretName};
use envforge_domain::slug::{HostName, OrgSlug, ProjectSlug, ServiceName, ServiceTokenSlug, TeamSlug, WorkspaceSlug};
use envforge_domain::time::{Millis, UnixMillis};
use serde::de::{Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::commit::{actor_token, parse_actor};

/// An enum without data, each variant under a token.
macro_rules! tokens {
    ($type:ty { $($token:literal => $name:ident),* $(,)? }) => {
        impl $crate::schema::wire::Wire for $type {
            fn to_wire<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(match self { $(Self::$name => $token),* })
            }

            fn from_wire<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $crate::schema::wire::text(deserializer, |text| match text {
                    $($token => Ok(Self::$name),)*
                    other => Err(format!("`{other}` is none of {}", [$($token),*].join(", "))),
                })
            }
        }
    };
}

/// A value with a stored form.
pub(super) trait Wire: Sized {
    fn to_wire<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error>;
    fn from_wire<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error>;
}

/// Lets serde write a value in its stored form.
pub(super) struct Wired<'a, T>(pub(super) &'a T);

impl<T: Wire> Serialize for Wired<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.to_wire(serializer)
    }
}

/// Lets serde read a value from its stored form.
pub(super) struct Unwired<T>(pub(super) T);

impl<'de, T: Wire> Deserialize<'de> for Unwired<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::from_wire(deserializer).map(Self)
    }
}

/// For `#[serde(deserialize_with = …)]`.
pub(super) fn deserialize<'de, T: Wire, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    T::from_wire(deserializer)
}

/// A text that `parse` takes; borrowed where the input allows, so that ids cost no allocation.
pub(super) fn text<'de, T, E: fmt::Display, D: Deserializer<'de>>(
    deserializer: D,
    parse: fn(&str) -> Result<T, E>,
) -> Result<T, D::Error> {
    struct Text<T, E>(fn(&str) -> Result<T, E>, PhantomData<T>);

    impl<T, E: fmt::Display> Visitor<'_> for Text<T, E> {
        type Value = T;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a text")
        }

        fn visit_str<Error: serde::de::Error>(self, text: &str) -> Result<T, Error> {
            (self.0)(text).map_err(Error::custom)
        }
    }

    deserializer.deserialize_str(Text(parse, PhantomData))
}

/// Values that are their own stored form.
macro_rules! plain {
    ($($type:ty),*) => {$(
        impl Wire for $type {
            fn to_wire<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.serialize(serializer)
            }

            fn from_wire<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::deserialize(deserializer)
            }
        }
    )*};
}

plain!(String, u32, u64, bool);

/// Values that stand as what they display as.
macro_rules! displayed {
    ($($type:ty),*) => {$(
        impl Wire for $type {
            fn to_wire<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }

            fn from_wire<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                text(deserializer, str::parse::<Self>)
            }
        }
    )*};
}

displayed!(
    OrgId,
    UserId,
    TeamId,
    ProjectId,
    WorkspaceId,
    HostId,
    ApiProcessId,
    GatewayId,
    LinkId,
    SessionId,
    HandoffId,
    CorrelationId,
    ServiceTokenId,
    RootWindowId,
    ShellId,
    JobRunId,
    ServiceTokenSlug,
    HostName,
    OrgSlug,
    ProjectSlug,
    WorkspaceSlug,
    TeamSlug,
    ServiceName,
    SecretName,
    SecretConsumer,
    IpAddr,
    SocketAddr,
    Role
);

/// Values that stand as a number.
macro_rules! numbered {
    ($($type:ty, $number:ty, $get:expr, $new:expr;)*) => {$(
        impl Wire for $type {
            fn to_wire<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let get: fn(&$type) -> $number = $get;
                get(self).serialize(serializer)
            }

            fn from_wire<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                <$number>::deserialize(deserializer).map($new)
            }
        }
    )*};
}

numbered! {
    Position, u64, |value| value.get(), Self::new;
    UnixMillis, u64, |value| value.get(), Self::new;
    Millis, u64, |value| value.get(), Self::new;
    Epoch, u64, |value| value.0, Self;
    Generation, u32, |value| value.0, Self;
}

impl<T: Wire> Wire for Option<T> {
    fn to_wire<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.as_ref().map(Wired).serialize(serializer)
    }

    fn from_wire<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Option::<Unwired<T>>::deserialize(deserializer)?.map(|Unwired(value)| value))
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn to_wire<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter().map(Wired))
    }

    fn from_wire<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Vec::<Unwired<T>>::deserialize(deserializer)?.into_iter().map(|Unwired(value)| value).collect())
    }
}

impl Wire for TokenDigest {
    fn to_wire<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(self.as_bytes()))
    }

    fn from_wire<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, |text| {
            let mut bytes = [0; 32];
            hex::decode_to_slice(text, &mut bytes).map(|()| Self::from_bytes(bytes))
        })
    }
}

impl Wire for Actor {
    fn to_wire<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&actor_token(*self))
    }

    fn from_wire<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, parse_actor)
    }
}

tokens! {
    envforge_domain::commit::Surface {
        "api" => Api,
        "cli" => Cli,
        "console" => Console,
        "gateway" => Gateway,
        "agent" => Agent,
    }
}

tokens! {
    RouteFamily {
        "web" => Web,
        "api" => Api,
        "assets" => Assets,
        "websockets" => Websockets,
        "marketing" => Marketing,
    }
}

/// A list of families in a fixed order, none twice.
impl Wire for RouteFamilies {
    fn to_wire<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.iter().collect::<Vec<_>>().to_wire(serializer)
    }

    fn from_wire<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let families = Vec::<RouteFamily>::from_wire(deserializer)?;
        let set: Self = families.iter().copied().collect();
        if set.iter().count() == families.len() {
            Ok(set)
        } else {
            Err(D::Error::custom("a route family stands twice"))
        }
    }
}

/// A struct, each field under a key: `field: Type = "key"`.
macro_rules! object {
    ($type:ident { $($field:ident : $field_type:ty = $key:literal),* $(,)? }) => {
        impl $crate::schema::wire::Wire for $type {
            fn to_wire<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                use serde::ser::SerializeMap as _;
                let Self { $($field),* } = self;
                let mut map = serializer.serialize_map(None)?;
                $(map.serialize_entry($key, &$crate::schema::wire::Wired($field))?;)*
                map.end()
            }

            fn from_wire<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                #[derive(serde::Deserialize)]
                #[serde(deny_unknown_fields)]
                struct Stored {
                    $(#[serde(rename = $key, deserialize_with = "crate::schema::wire::deserialize")]
                    $field: $field_type,)*
                }
                let Stored { $($field),* } = serde::Deserialize::deserialize(deserializer)?;
                Ok(Self { $($field),* })
            }
        }
    };
}

/// An enum with data: an object whose `kind` says which. A variant with one unnamed value names it: `Person(user: …)`.
macro_rules! kinds {
    ($type:ident { $($token:literal => $name:ident
        $(($only:ident : $only_type:ty = $only_key:literal))?
        $({ $($field:ident : $field_type:ty = $key:literal),* $(,)? })?
    ),* $(,)? }) => {
        impl $crate::schema::wire::Wire for $type {
            fn to_wire<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                use serde::ser::SerializeMap as _;
                let mut map = serializer.serialize_map(None)?;
                match self {
                    $(Self::$name $(($only))? $({ $($field),* })? => {
                        map.serialize_entry("kind", $token)?;
                        $(map.serialize_entry($only_key, &$crate::schema::wire::Wired($only))?;)?
                        $($(map.serialize_entry($key, &$crate::schema::wire::Wired($field))?;)*)?
                    })*
                }
                map.end()
            }

            fn from_wire<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                #[derive(serde::Deserialize)]
                #[serde(tag = "kind", deny_unknown_fields)]
                enum Stored {
                    $(#[serde(rename = $token)]
                    $name {
                        $(#[serde(rename = $only_key, deserialize_with = "crate::schema::wire::deserialize")]
                        $only: $only_type,)?
                        $($(#[serde(rename = $key, deserialize_with = "crate::schema::wire::deserialize")]
                        $field: $field_type,)*)?
                    },)*
                }
                Ok(match serde::Deserialize::deserialize(deserializer)? {
                    $(Stored::$name { $($only)? $($($field),*)? } => Self::$name $(($only))? $({ $($field),* })?,)*
                })
            }
        }
    };
}

/// All events of one aggregate, each under its type with version: `"dev_link.revoked.v1" => Revoked { … }`.
/// Leaving out a variant or a field does not compile.
macro_rules! events {
    ($event:ident { $($wire:literal => $name:ident
        $({ $($field:ident : $field_type:ty = $key:literal),* $(,)? })?
    ),* $(,)? }) => {
        pub(super) const TYPES: &[&str] = &[$($wire),*];

        pub(super) const fn event_type(event: &$event) -> &'static str {
            match event {
                $($event::$name $({ $($field: _),* })? => $wire,)*
            }
        }

        pub(super) fn serialize<S: serde::Serializer>(event: &$event, serializer: S) -> Result<S::Ok, S::Error> {
            use serde::ser::SerializeMap as _;
            #[allow(unused_mut, reason = "events without data add nothing")]
            let mut map = serializer.serialize_map(None)?;
            match event {
                $($event::$name $({ $($field),* })? => {
                    $($(map.serialize_entry($key, &$crate::schema::wire::Wired($field))?;)*)?
                })*
            }
            map.end()
        }

        /// `None` for a type that this aggregate does not write today.
        pub(super) fn decode(event_type: &str, data: &str) -> Option<Result<$event, serde_json::Error>> {
            match event_type {
                $($wire => {
                    #[derive(serde::Deserialize)]
                    #[serde(deny_unknown_fields)]
                    struct Stored {
                        $($(#[serde(rename = $key, deserialize_with = "crate::schema::wire::deserialize")]
                        $field: $field_type,)*)?
                    }
                    Some(serde_json::from_str(data).map(|Stored { $($($field),*)? }| $event::$name $({ $($field),* })?))
                })*
                _ => None,
            }
        }
    };
}

pub(super) use {events, kinds, object, tokens};
