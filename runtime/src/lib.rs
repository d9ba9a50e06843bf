//! Where workspaces run.
//!
//! Owns the agent of a host ([`LocalHost`]): it checks out a branch, starts the services that `envforge.yml` declares, waits
//! until they are ready, restarts what crashes, keeps their output within bounds, puts them to sleep, and ends whatever an
//! earlier process left behind after a kill -9. The same agent runs on a developer's machine and on a VM; there, each runtime is in the
//! hands of a keeper, a process that outlives the agent.
//!
//! Not here: who may wake what (the caller brings an order that the policy has allowed), when to sleep, what is billed, the
//! manifest's parser. CPU and memory limits are declared and metered, not enforced. A process that clears its environment,
//! leaves its process group and loses its parent is beyond what this agent can find; a VM's cgroup is the answer to that.

mod accounts;
mod backoff;
mod checkout;
mod config;
mod enrolments;
mod environment;
mod failure;
pub mod frame;
mod git_login;
mod host;
mod keeper;
mod keeper_message;
mod kept;
mod machines;
mod order;
mod output;
mod port;
mod process;
mod readiness;
mod record;
mod report;
mod repository;
mod root;
mod root_diff;
mod root_door;
mod root_guard;
mod running;
pub mod secret_store;
mod service;
mod shell;
mod shell_process;
mod shell_ssh;
mod terminal;
mod unix_user;
mod wake;
pub mod wire;
mod workspace;

pub use config::{Config, InvalidConfig};
pub use enrolments::EnrolmentStore;
pub use failure::{CheckoutFailure, LastingSurvives, OpenError, OutputError, SleepFailure, WakeFailure};
pub use git_login::{GitLogin, ShellLogin};
pub use host::{Leftover, LocalHost};
pub use keeper::keeper_main;
pub use machines::{Instance, InstanceState, InstanceTags, LaunchOrder, LaunchToken, MachineProvider, ProviderError};
pub use order::{Awake, Stage, WakeOrder};
pub use report::{Report, Reports};
pub use root::{RanRoot, RootOrder, RootWhat, TakenRoot};
pub use root_guard::{guard_main, uptime};
pub use shell::{EndedShell, OpenShell, ShellPlace, UntoldEnd};
pub use terminal::shell_main;
pub use unix_user::{NoUsers, UnixUser, UnixUsers, UserBlock};
