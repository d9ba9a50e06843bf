//! Names that stand in host labels, and the label itself.
//!
//! Source of the rules: SPEC, "Signed dev links": lower-case letters, digits, single hyphens, no `--`, a service of
//! at least three characters (positions 3 and 4 of a DNS label are reserved, RFC 5891 4.2.3.1), whole label at most 63.

use std::fmt;
use std::str::FromStr;

/// Why a text cannot be a slug, saying what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSlug {
    #[error("a {what} must have {min} to {max} characters, `{text}` has {length}")]
    Length { what: &'static str, min: usize, max: usize, length: usize, text: String },
    #[error("a {what} may hold only a-z, 0-9 and single hyphens, `{text}` holds `{found}` at position {position}")]
    Character { what: &'static str, text: String, found: char, position: usize },
    #[error("a {what} must begin and end with a letter or digit: `{text}`")]
    Edge { what: &'static str, text: String },
    #[error("a {what} must not hold two hyphens in a row: `{text}`")]
    DoubleHyphen { what: &'static str, text: String },
    #[error("`{text}` is reserved and cannot be a {what}")]
    Reserved { what: &'static str, text: String },
}

/// A host label that is longer than DNS allows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the host label `{label}` has {length} characters, DNS allows 63: shorten the service, workspace or organization slug by {excess}"
)]
pub struct LabelTooLong {
    pub label: String,
    pub length: usize,
    pub excess: usize,
}

/// Longest DNS label (RFC 1035 2.3.4).
pub const LABEL_LENGTH_MAX: usize = 63;
/// Longest single slug; leaves room for the shortest two others and the separators.
pub const SLUG_LENGTH_MAX: usize = 40;

/// Whether `text` keeps the rules of a slug of `min` to `SLUG_LENGTH_MAX` characters; `what` names it in the error.
pub(crate) fn check(what: &'static str, min: usize, text: &str) -> Result<(), InvalidSlug> {
    let shown = || text.chars().take(80).collect::<String>();
    let length = text.chars().count();
    if length < min || length > SLUG_LENGTH_MAX {
        return Err(InvalidSlug::Length { what, min, max: SLUG_LENGTH_MAX, length, text: shown() });
    }
    for (index, found) in text.chars().enumerate() {
        if !matches!(found, 'a'..='z' | '0'..='9' | '-') {
            return Err(InvalidSlug::Character { what, text: shown(), found, position: index + 1 });
        }
    }
    if text.starts_with('-') || text.ends_with('-') {
        return Err(InvalidSlug::Edge { what, text: shown() });
    }
    if text.contains("--") {
        return Err(InvalidSlug::DoubleHyphen { what, text: shown() });
    }
    Ok(())
}

macro_rules! slug {
    ($(#[$doc:meta])* $name:ident, $what:literal, $min:literal, $reserved:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Box<str>);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidSlug;

            fn from_str(text: &str) -> Result<Self, InvalidSlug> {
                check($what, $min, text)?;
                let reserved: &[&str] = $reserved;
                if reserved.contains(&text) {
                    return Err(InvalidSlug::Reserved { what: $what, text: text.to_owned() });
                }
                Ok(Self(text.into()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, formatter)
            }
        }
    };
}

slug!(
    /// An organization's name in host labels and URLs.
    OrgSlug, "organization slug", 1, &["system", "envforge", "api", "console", "share"]
);
slug!(
    /// A workspace's name in host labels, unique in its organization, never reused.
    WorkspaceSlug, "workspace slug", 1, &[]
);
slug!(
    /// A project's name in URLs and commands.
    ProjectSlug, "project slug", 1, &[]
);
slug!(
    /// A team's name in URLs and commands, unique among the teams of its organization.
    TeamSlug, "team slug", 1, &[]
);
slug!(
    /// A service token's name, unique among those of its organization that are not over.
    ServiceTokenSlug, "service token slug", 1, &[]
);
slug!(
    /// What people call a host: its machine's own name and address stay hidden from them.
    HostName, "host name", 1, &[]
);
slug!(
    /// A service of `envforge.yml`. At least three characters: `ui--ws--org` would put `--` where DNS reserves it.
    ServiceName, "service name", 3, &[]
);

/// `<service>--<workspace>--<org>`: the first label of a workspace host. Parsing is the exact inverse of display.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct HostLabel {
    service: ServiceName,
    workspace: WorkspaceSlug,
    org: OrgSlug,
}

impl HostLabel {
    pub fn new(service: ServiceName, workspace: WorkspaceSlug, org: OrgSlug) -> Result<Self, LabelTooLong> {
        let label = Self { service, workspace, org };
        let length = label.service.0.len() + label.workspace.0.len() + label.org.0.len() + 4;
        if length > LABEL_LENGTH_MAX {
            return Err(LabelTooLong { label: label.to_string(), length, excess: length - LABEL_LENGTH_MAX });
        }
        Ok(label)
    }

    pub fn service(&self) -> &ServiceName {
        &self.service
    }

    pub fn workspace(&self) -> &WorkspaceSlug {
        &self.workspace
    }

    pub fn org(&self) -> &OrgSlug {
        &self.org
    }

    /// Parses one already lower-cased DNS label. `None` for anything that `Display` would not produce.
    pub fn parse(label: &str) -> Option<Self> {
        if label.len() > LABEL_LENGTH_MAX {
            return None;
        }
        // INVARIANT: no slug holds `--`, so exactly two separators means exactly one reading.
        let mut parts = label.split("--");
        let (service, workspace, org) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() {
            return None;
        }
        Some(Self { service: service.parse().ok()?, workspace: workspace.parse().ok()?, org: org.parse().ok()? })
    }
}

impl fmt::Display for HostLabel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}--{}--{}", self.service, self.workspace, self.org)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_two_letter_service_is_refused_because_dns_reserves_its_label() {
        assert!(matches!("ui".parse::<ServiceName>(), Err(InvalidSlug::Length { min: 3, .. })));
    }

    #[test]
    fn near_misses_of_a_host_label_do_not_parse() {
        for label in [
            "web--signed-links",
            "web--a--b--c",
            "web---a--b",
            "-web--a--b",
            "web--a--b-",
            "Web--a--b",
            "web--a--",
            "--a--b",
            "web--a--b.",
            "wéb--a--b",
            "web--a---b",
            "",
        ] {
            assert_eq!(HostLabel::parse(label), None, "{label}");
        }
    }

    prop_compose! {
        fn slug(min: usize)(text in "[a-z0-9]{1,6}(-[a-z0-9]{1,6}){0,2}") -> String {
            if text.len() < min { format!("{text}abc") } else { text }
        }
    }

    proptest! {
        #[test]
        fn a_label_is_read_back_as_what_it_was_made_of(service in slug(3), workspace in slug(1), org in slug(1)) {
            prop_assume!(service.parse::<ServiceName>().is_ok() && org.parse::<OrgSlug>().is_ok());
            let made = HostLabel::new(service.parse().expect("service"), workspace.parse().expect("workspace"), org.parse().expect("org"));
            if let Ok(label) = made {
                prop_assert_eq!(HostLabel::parse(&label.to_string()), Some(label));
            }
        }

        #[test]
        fn whatever_parses_displays_as_itself(text in "[a-z0-9-]{1,70}") {
            if let Some(label) = HostLabel::parse(&text) {
                prop_assert_eq!(label.to_string(), text);
            }
        }
    }
}
