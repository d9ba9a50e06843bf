//! What a host may be told, with its own defaults, and what it refuses to be told.
//!
//! Not here: reading environment variables or files. Only the binary does that, and it hands values in.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use envforge_domain::limits;
use envforge_domain::manifest::{Route, Service};
use serde::{Deserialize, Serialize};

use crate::environment;

/// As long as an agent's certificate lives: who was away for longer has to enrol again in any case.
const ALONE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// The settings of one host.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Everything the host keeps lies below it; created with mode 0700. One process at a time may hold it.
    pub state_dir: PathBuf,
    /// `PATH` of services, hooks and git.
    pub path: String,
    /// Plain variables that every service gets beside the declared ones (the binary's allow-list, already read). Whatever
    /// is not named here or in the manifest never reaches a service.
    pub service_environment: Vec<(String, String)>,
    /// Variables that only git gets, e.g. `SSH_AUTH_SOCK`.
    pub git_environment: Vec<(String, String)>,
    /// Size of one output file of one service.
    pub log_bytes_max: u64,
    /// Output files of one service, the one that is written included.
    pub log_files_max: u32,
    /// Where services with a route listen and are reached, `HOST` of their environment: loopback, or the address at which the gateway
    /// reaches this machine. Those without a route are for their siblings alone: they listen on loopback.
    pub bind: IpAddr,
    /// Runtimes awake at the same time.
    pub runtimes_max: usize,
    /// Between SIGTERM and SIGKILL.
    pub stop_grace: Duration,
    /// How long all git commands of one checkout may take together.
    pub checkout_duration_max: Duration,
    /// Commits of the branch's history that a checkout holds.
    pub history_commits_max: u32,
    /// Restarts of one service within `restart_window`; the next crash fails the runtime.
    pub restarts_max: u32,
    pub restart_window: Duration,
    /// Wait before the first restart; it doubles up to `restart_delay_max`.
    pub restart_delay_min: Duration,
    pub restart_delay_max: Duration,
    /// Reports that wait to be read.
    pub reports_max: usize,
    /// The program that becomes the guard of a command as root (`guard_main`). Without one nothing runs as root.
    pub root_guard: Option<PathBuf>,
    /// Has each service run as a user of its own, where EnvForge runs as root and others can enter the state directory's
    /// parents: where the machine keeps whose ids are whose. `None`: services run as EnvForge's own user.
    pub unix_users: Option<PathBuf>,
    /// The program that becomes the keeper of a runtime (`keeper_main`): a process that outlives this one. Without one runtimes
    /// are this process's own and end with it.
    pub keeper: Option<PathBuf>,
    /// How long a keeper goes on without a host that talks to it; then it puts its runtime to sleep and ends.
    pub alone_max: Duration,
}

/// A setting that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConfig {
    #[error("`{setting}` is {value}, it must be {expected}")]
    Range { setting: &'static str, value: String, expected: &'static str },
    #[error("`{setting}` must not set `{name}`: EnvForge sets it itself")]
    ReservedVariable { setting: &'static str, name: String },
    #[error("`{setting}` holds the name `{name}`, which no environment can carry: names are letters, digits and `_`")]
    VariableName { setting: &'static str, name: String },
}

impl Config {
    /// Where a service listens: one without a route is reached by nobody in the network, its siblings alone.
    pub(crate) fn bind_of(&self, service: &Service) -> IpAddr {
        if service.route == Route::None { Ipv4Addr::LOCALHOST.into() } else { self.bind }
    }

    /// Defaults for everything but the place of the state.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            state_dir: state_dir.into(),
            path: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
            service_environment: Vec::new(),
            git_environment: Vec::new(),
            log_bytes_max: 4 * 1024 * 1024,
            log_files_max: 4,
            bind: Ipv4Addr::LOCALHOST.into(),
            runtimes_max: 256,
            stop_grace: limits::STOP_GRACE.to_duration(),
            checkout_duration_max: Duration::from_secs(120),
            history_commits_max: 1,
            restarts_max: 5,
            restart_window: Duration::from_secs(600),
            restart_delay_min: Duration::from_millis(250),
            restart_delay_max: Duration::from_secs(30),
            reports_max: 1024,
            root_guard: None,
            unix_users: None,
            keeper: None,
            alone_max: ALONE_MAX,
        }
    }

    pub(crate) fn check(&self) -> Result<(), InvalidConfig> {
        let range = |holds: bool, setting, value: String, expected| {
            if holds { Ok(()) } else { Err(InvalidConfig::Range { setting, value, expected }) }
        };
        range(
            self.state_dir.is_absolute(),
            "state_dir",
            self.state_dir.display().to_string(),
            "an absolute path, because services run in other directories",
        )?;
        range(
            (1024..=1 << 32).contains(&self.log_bytes_max),
            "log_bytes_max",
            self.log_bytes_max.to_string(),
            "1024 to 4294967296",
        )?;
        range((1..=100).contains(&self.log_files_max), "log_files_max", self.log_files_max.to_string(), "1 to 100")?;
        range((1..=10_000).contains(&self.runtimes_max), "runtimes_max", self.runtimes_max.to_string(), "1 to 10000")?;
        range(
            !self.bind.is_unspecified() && !self.bind.is_multicast(),
            "bind",
            self.bind.to_string(),
            "one address of this machine, which the gateway reaches",
        )?;
        range(self.restarts_max <= 100, "restarts_max", self.restarts_max.to_string(), "0 to 100")?;
        range(self.history_commits_max >= 1, "history_commits_max", "0".to_owned(), "at least 1")?;
        range(
            (1..=1_000_000).contains(&self.reports_max),
            "reports_max",
            self.reports_max.to_string(),
            "1 to 1000000",
        )?;
        range(
            self.restart_delay_min <= self.restart_delay_max,
            "restart_delay_min",
            format!("{:?}", self.restart_delay_min),
            "at most `restart_delay_max`",
        )?;
        for (setting, variables) in
            [("service_environment", &self.service_environment), ("git_environment", &self.git_environment)]
        {
            for (name, _) in variables {
                if environment::is_reserved(name) {
                    return Err(InvalidConfig::ReservedVariable { setting, name: name.clone() });
                }
                if !environment::is_name(name) {
                    return Err(InvalidConfig::VariableName { setting, name: name.clone() });
                }
            }
        }
        Ok(())
    }
}
