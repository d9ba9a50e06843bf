//! `envforge agent`: this machine as a host of one organization, for a control plane elsewhere.
//!
//! Not here: what is done with what comes over the connection (agent, runtime).

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use envforge_agent::{Agent, AgentError, AgentIdentity, Config, EnrolError};
use envforge_domain::enrolment::EnrolmentToken;
use envforge_domain::secret::Secret;
use envforge_domain::time::{Millis, SharedClock, UnixMillis};
use envforge_identity::clock::SystemClock;
use envforge_reactors::{HostMachine, MACHINE_ID};
use envforge_runtime::{LocalHost, NoUsers, UnixUsers};
use tokio_util::sync::CancellationToken;

use super::agent_file::{AgentFile, OfMachine};
use super::running::{self, Running};
use super::service_users::ServiceUserArgs;
use super::stop::StopRequests;
use super::telemetry::{self, LogFormat};
use super::{metadata_service, open_files, roles, usable};
use crate::cli::failure::Failure;
use crate::cli::output::Output;

/// For the last facts to reach the control plane when this stops.
const FAREWELL: Duration = Duration::from_millis(500);

/// Refusals that say something of the host and not of a token.
const HOST_OVER: [&str; 2] = ["host_retired", "host_revoked"];

/// Run this machine as a host: workspaces of one organization wake here.
#[derive(Args, Debug)]
pub(crate) struct AgentArgs {
    /// Where the control plane listens for agents. The agent connects there and listens nowhere itself.
    #[arg(long, value_name = "HOST:PORT", env = "ENVFORGE_CONTROL_PLANE", required_unless_present = "config")]
    control_plane: Option<String>,
    /// File that names host and control plane and where the enrolment token will lie: `/etc/envforge/agent.toml` on a machine that
    /// `serve fleet` launched. Where it was built with AWS.
    #[arg(long, value_name = "FILE", conflicts_with = "enrolment_file")]
    config: Option<PathBuf>,
    /// File with the enrolment token that `envforge host enrol` printed, for the first start. Readable by its owner alone.
    #[arg(long, value_name = "FILE")]
    enrolment_file: Option<PathBuf>,
    /// Where the agent keeps its key and everything that runs here.
    #[arg(long, value_name = "DIR", env = "ENVFORGE_AGENT_DATA")]
    data: PathBuf,
    /// The address at which services listen and the gateway reaches them: this machine's own in the network that both share. Default:
    /// loopback; with --config the address from which this machine reaches the control plane.
    #[arg(long, value_name = "ADDRESS")]
    bind_apps: Option<IpAddr>,
    /// File that names the machine, for machines that do not have it where Linux has it.
    #[arg(long, value_name = "FILE", default_value = MACHINE_ID)]
    machine_id: PathBuf,
    /// With --config: start though others than root reach this machine's metadata service, which gives them the machine's role, or
    /// though that cannot be told.
    #[arg(long, requires = "config")]
    allow_metadata_service: bool,
    /// When asked to stop, put every runtime to sleep here first. Without it they go on, and the next start of the agent takes them over.
    #[arg(long)]
    end_runtimes_on_stop: bool,
    #[command(flatten)]
    service_users: ServiceUserArgs,
    /// What to trace on standard error.
    #[arg(long, value_name = "FILTER", default_value = "info", env = "ENVFORGE_LOG")]
    log: String,
    #[arg(long, value_name = "FORMAT", default_value = "json")]
    log_format: LogFormat,
}

/// Runs until it is asked to stop, or until connecting again cannot help.
pub(crate) async fn run(args: AgentArgs, output: Output) -> anyhow::Result<()> {
    let asked = StopRequests::listen()?;
    telemetry::install(&args.log, args.log_format)?;
    open_files::raise();
    let start = async |running: &mut Running| start(args, running, &output).await;
    running::until_asked_to_stop(asked, start, || {}).await
}

async fn start(args: AgentArgs, running: &mut Running, output: &Output) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    let folder = || format!("the agent's folder {}", args.data.display());
    if let Some(above) = args.data.parent() {
        // What is missing above it is for workspaces' users to enter; nothing lies there.
        std::fs::DirBuilder::new().recursive(true).mode(0o711).create(above).with_context(folder)?;
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&args.data).with_context(folder)?;
    let data = args.data.canonicalize().with_context(folder)?;
    let_workspaces_users_in(&data).with_context(folder)?;
    args.service_users.check(&data.join("runtime"))?;
    let file = args.config.as_deref().map(AgentFile::read).transpose()?;
    let guarded = file.is_some() && !args.allow_metadata_service;
    if guarded {
        metadata_service::check().await.map_err(Failure::from)?;
        tracing::info!("this machine's metadata service is root's alone");
    }
    let control_plane = match (args.control_plane, &file) {
        (Some(at), _) => at,
        (None, Some(file)) => file.control_plane.clone(),
        (None, None) => {
            return Err(Failure::usage("where the control plane is, is not said", "--control-plane HOST:PORT").into());
        }
    };
    // First, so that a second agent of the same folder neither enrols nor ends anything.
    let mut config = envforge_runtime::Config::new(data.join("runtime"));
    config.bind = match (args.bind_apps, &file) {
        (Some(address), _) => address,
        (None, Some(file)) => file.address_here().await?,
        (None, None) => IpAddr::V4(Ipv4Addr::LOCALHOST),
    };
    // This very program, whatever became of its file since.
    config.keeper = Some("/proc/self/exe".into());
    let alone_max = Millis::new(u64::try_from(config.alone_max.as_millis()).unwrap_or(u64::MAX));
    let host = roles::open_host(config).await?;
    let machine = HostMachine::open(&data.join("runtime"), &args.machine_id)?;
    let clock: SharedClock = Arc::new(SystemClock);
    let version = env!("CARGO_PKG_VERSION");
    let identity = match (&args.enrolment_file, &file) {
        (None, Some(file)) => {
            let machine = OfMachine { key: &machine.key, capacity: machine.capacity, version };
            let ended_at = AgentIdentity::load(&data)?.map(|known| known.expires_at());
            tokio::select! {
                identity = file.identity(&data, &machine, &clock) => identity?,
                () = nobody_came(&host, ended_at, &clock, alone_max) => {
                    let what = "no enrolment came for as long as keepers wait: what ran here was ended";
                    return Err(Failure::local(what, "start the agent again; it asks on").into());
                }
            }
        }
        (Some(file), _) => {
            let token = enrolment_token(file)?;
            let at = &control_plane;
            let known_until = AgentIdentity::load(&data)?.map(|known| known.expires_at());
            let enrolled = envforge_agent::enrol(at, &data, &token, &machine.key, machine.capacity, version, &clock);
            match enrolled.await {
                Ok(identity) => identity,
                Err(error) => {
                    if !may_stay(&error, known_until, clock.now(), alone_max) {
                        host.shutdown().await;
                    }
                    return Err(not_enrolled(&error).into());
                }
            }
        }
        (None, None) => AgentIdentity::load(&data)?.ok_or_else(|| {
            let hint = "give it the token of `envforge host enrol` with --enrolment-file, once";
            Failure::usage("this machine has not enrolled yet", hint)
        })?,
    };
    let (org, id) = identity.of();
    let config = Config { control_plane, agent_version: version.to_owned(), clock: Arc::clone(&clock) };
    // The control plane may be gone when a shell ends.
    host.keep_ends();
    let agent = Agent::new(config, host.clone(), identity, envforge_agent::programs());
    let (stop, ends_runtimes) = (running.stop.clone(), args.end_runtimes_on_stop);
    running.essential.spawn("the agent", async move {
        let connected = CancellationToken::new();
        let mut working = tokio::spawn(agent.run(connected.clone()));
        tokio::select! {
            ended = &mut working => {
                let ended = ended?;
                if may_go_on(&ended, clock.now(), alone_max) && !ends_runtimes {
                    host.leave().await;
                } else {
                    host.shutdown().await;
                }
                Ok(ended?)
            }
            () = stop.cancelled() => {
                if ends_runtimes {
                    host.shutdown().await;
                } else {
                    host.end_shells().await;
                }
                tokio::time::sleep(FAREWELL).await;
                connected.cancel();
                let ended = working.await?;
                // Nobody hears any more that something is not up here: what goes on is metered without a gap.
                host.leave().await;
                Ok(ended?)
            }
        }
    });
    if guarded {
        let stop = running.stop.clone();
        running.essential.spawn("the watch over the metadata service", async move {
            match stop.run_until_cancelled(metadata_service::watch()).await {
                // The next start has the rule added anew; what runs here goes on.
                Some(open) => Err(Failure::from(open).into()),
                None => Ok(()),
            }
        });
    }
    let line = serde_json::json!({ "org": org.to_string(), "host": id.to_string() });
    Ok(output.event(&line)?)
}

/// Where services have users of their own, these enter the folder on the way to their workspace's, and see nothing of it: the identity
/// in it is readable by its owner alone, and so are the folders beside the workspaces'.
fn let_workspaces_users_in(data: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    match UnixUsers::supported(&data.join("runtime")) {
        Err(NoUsers::Unreachable { directory, .. }) if directory == data => {
            std::fs::set_permissions(data, std::fs::Permissions::from_mode(0o711))
        }
        Ok(()) | Err(NoUsers::NotRoot | NoUsers::Unreachable { .. }) => Ok(()),
    }
}

/// Whether what runs here is left to its keepers where the agent ends by itself. Refused, the host has lost its right to run anything.
/// Where the agent's certificate has ended nobody has decided that: the host enrols anew and takes it over, in as much time as a keeper
/// waits for an agent.
fn may_go_on(ended: &Result<(), AgentError>, now: UnixMillis, alone_max: Millis) -> bool {
    match ended {
        Ok(()) | Err(AgentError::Refused { .. }) => false,
        Err(AgentError::CertificateEnded { at }) => now < at.plus(alone_max),
        Err(AgentError::Identity(_)) => true,
    }
}

fn not_enrolled(error: &EnrolError) -> Failure {
    match error {
        EnrolError::Unreachable { .. } => {
            Failure::unreachable(error.to_string(), "see whether it runs, and whether this machine may reach it")
        }
        EnrolError::Refused { .. } => Failure::local(error.to_string(), "`envforge host enrol` issues another token"),
        EnrolError::Identity(_) => Failure::local(error.to_string(), ""),
    }
}

/// The same where it did not enrol anew: its keepers have seen an agent again, and begin to wait anew. A service manager starts the
/// agent for ever.
fn may_stay(error: &EnrolError, known_until: Option<UnixMillis>, now: UnixMillis, alone_max: Millis) -> bool {
    let lost = matches!(error, EnrolError::Refused { code, .. } if HOST_OVER.contains(&code.as_str()));
    !lost && known_until.is_none_or(|at| now < at.plus(alone_max))
}

/// Ends what runs here when its time is over; until then, and where nothing runs, it waits.
async fn nobody_came(host: &LocalHost, ended_at: Option<UnixMillis>, clock: &SharedClock, alone_max: Millis) {
    let Some(ended_at) = ended_at else { return std::future::pending().await };
    tokio::time::sleep(ended_at.plus(alone_max).since(clock.now()).to_duration()).await;
    if host.epochs_up().is_empty() {
        return std::future::pending().await;
    }
    host.shutdown().await;
}

fn enrolment_token(file: &Path) -> anyhow::Result<EnrolmentToken> {
    let text = Secret::new(std::fs::read_to_string(file).with_context(|| file.display().to_string())?);
    Ok(usable("--enrolment-file", EnrolmentToken::parse(text.expose()))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_ends_what_runs_and_a_certificate_that_ended_does_a_day_later() {
        let (at, day) = (UnixMillis::new(1_000_000), Millis::from_hours(24));
        let after = |ended: AgentError, wait: u64| may_go_on(&Err(ended), at.plus(Millis::new(wait)), day);
        let refused = AgentError::Refused { code: "host_revoked".to_owned(), text: String::new() };
        assert!(!after(refused, 0) && !may_go_on(&Ok(()), at, day));
        assert!(after(AgentError::CertificateEnded { at }, day.get() - 1));
        assert!(!after(AgentError::CertificateEnded { at }, day.get()));
    }

    #[test]
    fn who_cannot_enrol_anew_keeps_what_runs_for_a_day_and_no_longer_and_who_is_revoked_not_at_all() {
        let (at, day) = (UnixMillis::new(1_000_000), Millis::from_hours(24));
        let refused = |code: &str| EnrolError::Refused { code: code.to_owned(), text: String::new() };
        let unreachable = || EnrolError::Unreachable { at: String::new(), source: std::io::ErrorKind::TimedOut.into() };
        let stays = |error: EnrolError, wait: u64| may_stay(&error, Some(at), at.plus(Millis::new(wait)), day);
        assert!(stays(unreachable(), day.get() - 1) && stays(refused("enrolment_used"), day.get() - 1));
        assert!(!stays(unreachable(), day.get()) && !stays(refused("enrolment_used"), day.get()));
        assert!(!stays(refused("host_revoked"), 0) && !stays(refused("host_retired"), 0));
        assert!(may_stay(&refused("host_revoked_not"), None, at, day), "it never was a host");
    }
}
