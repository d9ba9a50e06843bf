//! The roles of a control plane, each started the same way by `dev` (all in one process) and `serve` (one or several).

use std::path::Path;
use std::sync::Arc;

use envforge_gateway::{Activity, Gateway, HandoffKey, LogDecisions, Parts};
use envforge_identity::share_token::ShareVerifier;
use envforge_reactors::{LocalMachine, MACHINE_ID, RuntimeReactor, Timers};
use envforge_runtime::LocalHost;
use tokio_util::sync::CancellationToken;

use super::control_plane::{ControlPlane, Essential};
use super::{activity, denials};

/// The data plane.
pub(crate) async fn start_gateway(
    plane: &ControlPlane,
    config: envforge_gateway::Config,
    verifier: ShareVerifier,
    handoff_key: HandoffKey,
    activity: Activity,
) -> anyhow::Result<Gateway> {
    let parts = Parts {
        view: Arc::clone(&plane.hot.gateway),
        decisions: Arc::new(LogDecisions::new(Arc::new(plane.commands.clone()), plane.authorizer.clone())),
        verifier,
        handoff_key,
        activity,
        clock: Arc::clone(&plane.clock),
    };
    Ok(Gateway::start(config, parts).await?)
}

/// The agent of this machine with its reactor, and the timers. `public_authority` follows a host label in addresses.
pub(crate) async fn start_reactors(
    essential: &mut Essential,
    plane: &ControlPlane,
    state_dir: &Path,
    public_authority: String,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let mut config = envforge_runtime::Config::new(state_dir);
    // Developers' tools lie where their shell finds them. Nothing else of our environment reaches a service.
    if let Some(path) = environment("PATH") {
        config.path = path;
    }
    if let Some(agent) = environment("SSH_AUTH_SOCK") {
        config.git_environment.push(("SSH_AUTH_SOCK".to_owned(), agent));
    }
    let (host, leftovers) = LocalHost::open(config).await?;
    for leftover in leftovers {
        tracing::warn!(
            workspace = %leftover.workspace,
            processes = leftover.processes,
            "ended what an earlier process had left running"
        );
    }
    let machine = LocalMachine::open(state_dir, Path::new(MACHINE_ID))?;
    let reactor = RuntimeReactor::new(
        Arc::clone(&plane.log),
        plane.commands.clone(),
        host,
        machine,
        Arc::clone(&plane.clock),
        public_authority,
    );
    let timers = Timers::new(Arc::clone(&plane.log), plane.commands.clone(), Arc::clone(&plane.clock));
    let (reactor_stop, timers_stop) = (stop.clone(), stop.clone());
    essential.spawn("the runtime reactor", async move { Ok(reactor.run(reactor_stop).await?) });
    essential.spawn("the timers", async move { Ok(timers.run(timers_stop).await?) });
    Ok(())
}

#[allow(clippy::disallowed_methods, reason = "the binary hands a few of its own variables to what it starts")]
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Tells the log what the gateway of this process sees used.
pub(crate) fn report_activity(
    essential: &mut Essential,
    plane: &ControlPlane,
    activity: Activity,
    stop: &CancellationToken,
) {
    let reporting = activity::report(
        activity,
        Arc::clone(&plane.hot),
        plane.authorizer.clone(),
        plane.commands.clone(),
        Arc::clone(&plane.clock),
        stop.clone(),
    );
    essential.spawn("activity reports", async move {
        reporting.await;
        Ok(())
    });
}

/// Tells the log what this process refused.
pub(crate) fn report_denials(essential: &mut Essential, plane: &ControlPlane, stop: &CancellationToken) {
    let reporting =
        denials::report(plane.authorizer.clone(), plane.commands.clone(), Arc::clone(&plane.clock), stop.clone());
    essential.spawn("denial reports", async move {
        reporting.await;
        Ok(())
    });
}
