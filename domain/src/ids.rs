//! Typed identifiers. Each is a UUIDv7 behind a private field, shown with a prefix (`lnk_0197…`), so that an id
//! of one kind is never taken for another, in code or in a support ticket.
//!
//! Not here: how ids are made. Randomness and the clock belong to the callers; the domain only parses and compares.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// Why a text is not an id of the expected kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a valid id: expected `{prefix}_` followed by 32 hexadecimal digits")]
pub struct InvalidId {
    pub prefix: &'static str,
    /// At most 80 characters of the offending text.
    pub text: String,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Uuid);

        impl $name {
            pub const PREFIX: &'static str = $prefix;

            /// Takes a UUID made by the caller (UUIDv7, so that ids sort by creation).
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            pub const fn as_uuid(&self) -> &Uuid {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, concat!($prefix, "_{}"), self.0.simple())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, formatter)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                parse($prefix, text).map(Self)
            }
        }
    };
}

fn parse(prefix: &'static str, text: &str) -> Result<Uuid, InvalidId> {
    let invalid = || InvalidId { prefix, text: text.chars().take(80).collect() };
    let digits = text.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('_')).ok_or_else(invalid)?;
    // One spelling per id: lower-case, 32 digits, no hyphens. Two spellings would be two keys somewhere.
    if digits.len() != 32 || !digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(invalid());
    }
    Uuid::try_parse(digits).map_err(|_| invalid())
}

id!(
    /// An organization: the unit of isolation. No VM, stream or session is shared between two of them.
    OrgId, "org"
);
id!(
    /// A person or service account as EnvForge mirrors it.
    UserId, "usr"
);
id!(
    /// A team of users within one organization.
    TeamId, "tea"
);
id!(
    /// A service token of an organization: a program that acts within what its creator may.
    ServiceTokenId, "svt"
);
id!(
    /// A project: one repository of an organization.
    ProjectId, "prj"
);
id!(
    /// A branch workspace. Its runtime is addressed by the same id.
    WorkspaceId, "wsp"
);
id!(
    /// A host (VM or, for the local provider, this machine) that belongs to exactly one organization.
    HostId, "hst"
);
id!(
    /// A process that runs a gateway, for as long as it lives.
    GatewayId, "gtw"
);
id!(
    /// A process that serves the API, for as long as it lives.
    ApiProcessId, "api"
);
id!(
    /// A signed dev link.
    LinkId, "lnk"
);
id!(
    /// A root window: one exception from "no root", from its request to its closeout.
    RootWindowId, "rtw"
);
id!(
    /// Somebody's connection to a workspace's shell.
    ShellId, "shl"
);
id!(
    /// One run of a job.
    JobRunId, "job"
);
id!(
    /// A session: a reviewer's on one link, or a person's on API, CLI or console.
    SessionId, "ses"
);
id!(
    /// A single-use handoff from the share page to the workspace host.
    HandoffId, "hof"
);
id!(
    /// The request a commit answers; the key of idempotency.
    CommandId, "cmd"
);
id!(
    /// One commit of the log.
    CommitId, "com"
);
id!(
    /// Everything that follows from one request carries the same correlation id.
    CorrelationId, "cor"
);

impl OrgId {
    /// Owns what no organization owns: claims on organization slugs and machines.
    pub const SYSTEM: Self = Self(Uuid::nil());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_id_of_another_kind_is_refused() {
        let link = LinkId::from_uuid(Uuid::from_u128(7)).to_string();
        assert!(link.parse::<LinkId>().is_ok());
        assert!(link.parse::<WorkspaceId>().is_err());
    }

    #[test]
    fn only_one_spelling_is_accepted() {
        for text in [
            "",
            "lnk_",
            "lnk_0",
            "LNK_00000000000000000000000000000007",
            "lnk_0000000000000000000000000000000A",
            "lnk_00000000-0000-0000-0000-000000000007",
            "lnk_{0000000000000000000000000000007}",
        ] {
            assert!(text.parse::<LinkId>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn display_and_parse_are_inverse(bits: u128) {
            let id = WorkspaceId::from_uuid(Uuid::from_u128(bits));
            prop_assert_eq!(id.to_string().parse::<WorkspaceId>(), Ok(id));
        }
    }
}
