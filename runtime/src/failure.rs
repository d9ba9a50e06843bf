//! Why something did not work: opening a state directory, waking, checking out, sleeping. Every text says what was wrong and
//! what would be right, and none holds output of a service, because output may hold secrets.

use std::path::PathBuf;

use envforge_domain::slug::ServiceName;
use envforge_domain::time::Millis;

use crate::config::InvalidConfig;

/// Why a state directory could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    #[error(
        "another process holds the state directory `{path}`: stop it first, or give this one a directory of its own"
    )]
    Held { path: PathBuf },
    #[error("cannot use the state directory at `{path}`: {source}")]
    State { path: PathBuf, source: std::io::Error },
    #[error(
        "the runtime record `{path}` cannot be read ({reason}): end the processes of that workspace by hand, then remove the file"
    )]
    Record { path: PathBuf, reason: String },
    #[error("this system shows no processes under /proc, so leftovers could not be found: the local host needs Linux")]
    NoProcesses,
    #[error("{count} processes that an earlier run left behind did not end within {waited} of SIGKILL")]
    Survivors { count: usize, waited: Millis },
}

/// What lasts of somebody's shells, and does not end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{count} processes of what lasts do not end, not even by SIGKILL; ask again")]
pub struct LastingSurvives {
    pub count: usize,
}

/// Why a checkout failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckoutFailure {
    #[error("the repository address is refused: {reason}")]
    Repository { reason: &'static str },
    #[error("`{branch}` cannot be a branch: {reason}")]
    Branch { branch: String, reason: &'static str },
    #[error("the repository has no branch `{branch}`{}", listed(.near))]
    NoSuchBranch {
        branch: String,
        /// At most five existing branches with the nearest names.
        near: Vec<String>,
    },
    #[error("the repository could not be read: {detail}")]
    Unreachable { detail: String },
    #[error("the branch could not be checked out: {detail}")]
    Broken { detail: String },
    #[error("the checkout took longer than {limit}")]
    TooSlow { limit: Millis },
    #[error("`git` was not found on the host's path")]
    GitMissing,
    #[error("the project's secret for git cannot be used: {reason}")]
    Credential { reason: &'static str },
    #[error(
        "the repository's server does not take the project's secret for git; set another value, or another user name"
    )]
    CredentialRefused,
    #[error(
        "the repository's server asks who is there: name a secret for git, `envforge project edit PROJECT --git-credential NAME`"
    )]
    CredentialNeeded,
    #[error(
        "the repository's server sends elsewhere, where the project's secret for git does not go: name the address to which it sends"
    )]
    Redirected,
}

fn listed(names: &[String]) -> String {
    match names {
        [] => "; it has no branches at all".to_owned(),
        names => {
            format!("; near names are {}", names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "))
        }
    }
}

/// Why a wake did not end with a runtime that is up. Nothing of it is left running.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WakeFailure {
    #[error("epoch {epoch} is over: the workspace is at epoch {current}")]
    Stale { epoch: u64, current: u64 },
    #[error("the wake was cancelled by a sleep or a newer wake")]
    Cancelled,
    #[error("the host is shutting down")]
    ShuttingDown,
    #[error("the host runs {max} runtimes already, which is its limit")]
    HostFull { max: usize },
    #[error("{max} callers wait for this wake already")]
    TooManyWaiters { max: usize },
    #[error(transparent)]
    Checkout(#[from] CheckoutFailure),
    #[error("service `{service}` declares the secret `{secret}`, which has no value: nothing was started")]
    SecretMissing { service: ServiceName, secret: String },
    #[error("service `{service}` has the directory `{directory}`, which is not a directory inside the branch")]
    Directory { service: ServiceName, directory: String },
    #[error(
        "service `{service}` has a readiness probe on its port, but listens nowhere: declare a port or another probe"
    )]
    ProbeWithoutPort { service: ServiceName },
    #[error("service `{service}` could not be started: {reason}")]
    NotStarted { service: ServiceName, reason: String },
    #[error("service `{service}` ended before it was ready, with {status}; its output says why")]
    Exited { service: ServiceName, status: String },
    #[error("service `{service}` was not ready within {waited}: the last probe ({probe}) said: {last}")]
    NotReady { service: ServiceName, probe: String, waited: Millis, last: String },
    #[error("the workspace was not ready within {limit}")]
    DeadlinePassed { limit: Millis },
    #[error("no free port: {reason}")]
    NoPort { reason: String },
    #[error("the host's state could not be written: {reason}")]
    State { reason: String },
    #[error("{count} processes of an earlier epoch do not end, not even by SIGKILL")]
    Survivors { count: usize },
    /// Of a host behind a connection, in its own words.
    #[error("{text}")]
    OnHost { text: String, may_pass_on_retry: bool },
    /// What became of the wake is not known yet.
    #[error("the host is out of reach")]
    OutOfReach,
}

impl WakeFailure {
    /// A stable word for metrics and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Stale { .. } => "stale",
            Self::Cancelled => "cancelled",
            Self::ShuttingDown => "shutting_down",
            Self::HostFull { .. } => "host_full",
            Self::TooManyWaiters { .. } => "too_many_waiters",
            Self::Checkout(_) => "checkout",
            Self::SecretMissing { .. } => "secret_missing",
            Self::Directory { .. } => "directory",
            Self::ProbeWithoutPort { .. } => "probe_without_port",
            Self::NotStarted { .. } => "not_started",
            Self::Exited { .. } => "exited",
            Self::NotReady { .. } => "not_ready",
            Self::DeadlinePassed { .. } => "deadline",
            Self::NoPort { .. } => "no_port",
            Self::State { .. } => "state",
            Self::Survivors { .. } => "survivors",
            Self::OnHost { .. } => "on_host",
            Self::OutOfReach => "out_of_reach",
        }
    }

    /// Whether the same order could succeed later without a change of branch, manifest or secrets.
    pub fn may_pass_on_retry(&self) -> bool {
        match self {
            Self::HostFull { .. }
            | Self::ShuttingDown
            | Self::TooManyWaiters { .. }
            | Self::DeadlinePassed { .. }
            | Self::NoPort { .. }
            | Self::State { .. }
            | Self::Survivors { .. }
            | Self::OutOfReach
            | Self::Checkout(CheckoutFailure::Unreachable { .. } | CheckoutFailure::TooSlow { .. }) => true,
            Self::OnHost { may_pass_on_retry, .. } => *may_pass_on_retry,
            Self::Stale { .. }
            | Self::Cancelled
            | Self::Checkout(_)
            | Self::SecretMissing { .. }
            | Self::Directory { .. }
            | Self::ProbeWithoutPort { .. }
            | Self::NotStarted { .. }
            | Self::Exited { .. }
            | Self::NotReady { .. } => false,
        }
    }
}

/// Why a sleep did not end everything.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SleepFailure {
    #[error("{count} processes do not end, not even by SIGKILL; sleep again to retry")]
    Survivors { count: usize },
    #[error("the host's state could not be written: {reason}")]
    State { reason: String },
    #[error("the host is shutting down")]
    ShuttingDown,
    /// What became of it is not known yet.
    #[error("the host is out of reach")]
    OutOfReach,
}

/// Why output could not be read.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    #[error("service `{service}` of this workspace has written no output on this host")]
    None { service: ServiceName },
    #[error("the output could not be read: {0}")]
    Read(std::io::Error),
}
