//! `envforge.yml`: what a repository declares about its workspace.
//!
//! Owns the manifest's types, its parser (`Manifest::parse`), its canonical text (`Manifest::render`, which is also the
//! stored form), and the published JSON Schema. The parser reports every error with line and column. Not here: reading
//! the file, or anything that a host does with it.

mod canonical;
mod document;
mod error;
mod keys;
mod reader;
mod route;
mod scalar;
mod service;

pub use canonical::ManifestDigest;
pub use error::{ErrorKind, ManifestError, ManifestErrors, Position};
pub use keys::{SECTIONS, Section};

use crate::limits;
use crate::slug::ServiceName;
use crate::time::Millis;

/// The published JSON Schema (draft 2020-12) of `envforge.yml`, for editors. It checks each value by itself; what
/// relates two values is checked by `Manifest::parse` alone.
pub const SCHEMA: &str = include_str!("../../schema/envforge.schema.json");

/// The `version` that this parser reads.
pub const VERSION: u32 = 1;

/// What a service gets that does not say otherwise.
pub const PORT_VARIABLE_DEFAULT: &str = "PORT";
pub const CPU_MILLICORES_DEFAULT: u32 = 250;
pub const CPU_MILLICORES_MIN: u32 = 10;
pub const CPU_MILLICORES_MAX: u32 = 64_000;
pub const MEMORY_MIB_DEFAULT: u32 = 256;
pub const MEMORY_MIB_MIN: u32 = 16;
pub const MEMORY_MIB_MAX: u32 = 512 * 1024;
pub const READINESS_INTERVAL_DEFAULT: Millis = Millis::new(200);
pub const READINESS_INTERVAL_MIN: Millis = Millis::new(50);
pub const READINESS_INTERVAL_MAX: Millis = Millis::from_secs(30);
pub const READINESS_DEADLINE_DEFAULT: Millis = Millis::from_secs(30);
pub const READINESS_DEADLINE_MIN: Millis = Millis::from_secs(1);
pub const READINESS_DEADLINE_MAX: Millis = limits::WAKE_DEADLINE;
pub const ON_SLEEP_DEADLINE_DEFAULT: Millis = Millis::from_secs(10);
pub const ON_SLEEP_DEADLINE_MIN: Millis = Millis::new(100);
/// Variables that EnvForge sets itself begin so.
pub const RESERVED_VARIABLE_PREFIX: &str = "ENVFORGE_";

/// A parsed, valid manifest. Everything optional in the file has its default filled in.
///
/// INVARIANT: a value that `parse` returned satisfies `parse(&render(m)) == Ok(m)`, so its canonical text can be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// In the order of the file. Names are unique; at least one.
    pub services: Vec<Service>,
    /// Operational resources (databases, Mailpit, MinIO): never routable.
    pub resources: Vec<Resource>,
    pub jobs: Vec<Job>,
    pub idle_sleep: Millis,
    /// Runs before the services are stopped; at most `limits::ON_SLEEP_MAX`.
    pub on_sleep: Option<Hook>,
}

/// A process that runs while the runtime is awake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub name: ServiceName,
    /// Run by `sh -c` in the checkout (or `directory` within it).
    pub command: String,
    /// Relative to the repository's root: no empty, `.` or `..` segment, not absolute. `None`: the root.
    pub directory: Option<String>,
    /// The variable that carries the allotted port; `PORT` by default. `None` for a service that listens nowhere.
    pub port_variable: Option<String>,
    pub route: Route,
    pub readiness: Readiness,
    pub cpu_millicores: u32,
    pub memory_mib: u32,
    /// Names of secrets, which are also the variables that carry them; values never stand in the manifest.
    pub secrets: Vec<String>,
    /// Plain, public environment, in the order of the file. No name stands in `secrets` or is `port_variable`.
    pub environment: Vec<(String, String)>,
}

/// Which app-surface route a service answers. `None`: not routable by any link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    None,
    /// The browser routes of its own host; `websockets` lists the paths that may upgrade.
    Web {
        websockets: Vec<PathPrefix>,
    },
    /// Same-origin API below a prefix (`/api`) of the web service's host.
    Api {
        prefix: PathPrefix,
        websockets: Vec<PathPrefix>,
    },
    /// Static assets below a prefix of the web service's host.
    Assets {
        prefix: PathPrefix,
    },
    /// Public marketing pages below a prefix of the web service's host.
    Marketing {
        prefix: PathPrefix,
    },
}

/// A clean absolute path: begins with `/`, no empty, `.` or `..` segment, no trailing `/` except the root itself,
/// only unreserved characters (RFC 3986 2.3). It matches a path that equals it or continues with `/`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PathPrefix(Box<str>);

impl PathPrefix {
    pub fn parse(text: &str) -> Option<Self> {
        let clean = text == "/"
            || (text.starts_with('/')
                && text.len() <= 200
                && text[1..].split('/').all(|segment| {
                    !matches!(segment, "" | "." | "..")
                        && segment
                            .bytes()
                            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~'))
                }));
        clean.then(|| Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether an already validated request path lies at or below this prefix.
    pub fn matches(&self, path: &str) -> bool {
        &*self.0 == "/" || path.strip_prefix(&*self.0).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readiness {
    pub probe: Probe,
    /// Time between two probes.
    pub interval: Millis,
    /// From start to the first success, else the wake fails.
    pub deadline: Millis,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// GET on the allotted port answers 200..=399. `path` may hold a query.
    Http { path: String },
    /// The allotted port accepts a connection.
    Tcp,
    /// `sh -c` in the service's directory exits 0.
    Command { command: String },
    /// Up as soon as the process runs. Interval and deadline then have their defaults and mean nothing.
    None,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    pub name: String,
    pub kind: String,
    pub mode: ResourceMode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResourceMode {
    Runtime,
    Shared,
    CustomerCloud,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    pub name: String,
    pub command: String,
    pub kind: JobKind,
    /// Names of secrets, as a service declares them: variables of this job alone.
    pub secrets: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobKind {
    Test,
    Agent,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    pub command: String,
    pub deadline: Millis,
}

/// Whether `envforge.yml` could name a variable, or a secret, so.
pub(crate) fn variable_is_valid(name: &str) -> bool {
    scalar::variable(name).is_ok()
}

impl Manifest {
    /// Reads the text of an `envforge.yml`, or a stored canonical text.
    ///
    /// # Errors
    /// Everything that is wrong with it, each mistake with its place and what would be right.
    pub fn parse(text: &str) -> Result<Self, ManifestErrors> {
        reader::parse(text)
    }

    pub fn service(&self, name: &ServiceName) -> Option<&Service> {
        self.services.iter().find(|service| &service.name == name)
    }
}
