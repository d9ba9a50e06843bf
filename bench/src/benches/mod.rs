//! The benchmarks, one file each; the first line of each file is what `cargo xtask bench` lists.

mod agents;
mod append;
mod authz;
mod gateway;
mod login;
mod replay;
mod revoke;
mod shell;
mod wake;
mod wake_path;

use envforge_projections::sql::ModelName;

use crate::machine::{self, Cores};
use crate::verdict::Verdicts;
use anyhow::{Context, Result};

/// Which benchmark, by its file's name.
#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum Bench {
    Agents(Extent),
    Append(Extent),
    Authz(Extent),
    Gateway(Extent),
    Login(Extent),
    Replay(Extent),
    Revoke(Extent),
    Shell(Extent),
    Wake(Extent),
    WakePath(Extent),
}

/// How much of it.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Extent {
    /// How often ours and the peer take turns.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) rounds: u32,
    /// How long one turn of a rate is measured, in seconds.
    #[arg(long, default_value_t = 3.0)]
    pub(crate) seconds: f64,
    /// Commits in the log that is replayed (`replay`).
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(2_000..=5_000_000))]
    pub(crate) commits: u64,
    /// One SQL read model alone (`replay`): directory, audit, meter or command_ids.
    #[arg(long)]
    pub(crate) model: Option<ModelName>,
    /// Links that are revoked one after the other (`revoke`).
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) links: u32,
    /// Agents that are connected (`agents`).
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) agents: u32,
    /// Wakes of each installation (`wake-path`).
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) wakes: u32,
    /// One installation alone: dev, nats or agent (`wake-path`); dev or nats (`shell`).
    #[arg(long, value_parser = ["dev", "nats", "agent"])]
    pub(crate) site: Option<String>,
}

impl Extent {
    pub(crate) fn turn(&self) -> std::time::Duration {
        std::time::Duration::from_secs_f64(self.seconds.clamp(0.2, 60.0))
    }

    fn measures(&self, site: &str) -> bool {
        self.site.as_deref().is_none_or(|only| only == site)
    }
}

pub(crate) fn run(bench: &Bench) -> Result<()> {
    let cores = Cores::choose()?;
    print!("{}", machine::facts(&cores));
    let mut verdicts = Verdicts::default();
    match bench {
        Bench::Agents(extent) => agents::run(&cores, extent, &mut verdicts),
        Bench::Append(extent) => append::run(&cores, extent, &mut verdicts),
        Bench::Authz(extent) => authz::run(&cores, extent, &mut verdicts),
        Bench::Gateway(extent) => gateway::run(&cores, extent, &mut verdicts),
        Bench::Login(extent) => login::run(&cores, extent, &mut verdicts),
        Bench::Replay(extent) => replay::run(&cores, extent, &mut verdicts),
        Bench::Revoke(extent) => revoke::run(&cores, extent, &mut verdicts),
        Bench::Shell(extent) => shell::run(&cores, extent, &mut verdicts),
        Bench::Wake(extent) => wake::run(&cores, extent, &mut verdicts),
        Bench::WakePath(extent) => wake_path::run(&cores, extent, &mut verdicts),
    }?;
    verdicts.conclude();
    Ok(())
}

/// Microseconds since 1970 of an RFC 3339 time in UTC.
fn instant_us(text: &str) -> Result<u64> {
    let at: jiff::Timestamp = text.parse().with_context(|| format!("`{text}` is no time"))?;
    Ok(u64::try_from(at.as_microsecond())?)
}

/// Microseconds since 1970.
#[allow(clippy::disallowed_methods, reason = "a benchmark is a program of its own, and reads the clock for itself")]
pub(crate) fn now_us() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(0)
}
