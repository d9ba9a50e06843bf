//! The roles of a control plane, each started the same way by `dev` (all in one process) and `serve` (one or several).

use std::path::Path;
use std::sync::Arc;

use envforge_agent::Host;
use envforge_api::OpenShells;
use envforge_domain::ids::ApiProcessId;
use envforge_eventlog::jetstream::{Enrolled, Registry};
use envforge_gateway::{Activity, Gateway, HandoffKey, LogDecisions, Parts};
use envforge_identity::share_token::ShareVerifier;
use envforge_projections::Hot;
use envforge_projections::sql::{Database, Supervisor};
use envforge_reactors::{
    HostMachine, MACHINE_ID, RootReactor, RuntimeReactor, SecretResolver, SharedWorld, Timers, tell_shell_ends,
};
use envforge_runtime::secret_store::SecretStore;
use envforge_runtime::{LocalHost, UnixUsers};

use super::control_plane::ControlPlane;
use super::hosts::Hosts;
use super::running::Running;
use super::{activity, denials};

/// Where this machine keeps whose user ids are whose, over all state directories.
const UNIX_USERS: &str = "/var/lib/envforge-users";

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

/// Has revocations wait for the gateway of this process. INVARIANT: before it serves, which it does only while they do.
pub(crate) async fn enrol_gateway(
    plane: &ControlPlane,
    registry: &Arc<Registry>,
    config: &envforge_gateway::Config,
) -> anyhow::Result<Enrolled> {
    plane.hot.gateway.must_be_waited_for();
    Ok(registry.enrol(Arc::<Hot>::clone(&plane.hot), config.refuses_within()).await?)
}

/// Has revocations wait for the shells of this process, before it opens any. Answers them.
pub(crate) async fn enrol_shells(
    running: &mut Running,
    plane: &ControlPlane,
    registry: &Arc<Registry>,
) -> anyhow::Result<(OpenShells, ApiProcessId)> {
    let open = OpenShells::new(Arc::clone(&plane.hot), false);
    let enrolled = registry.enrol_api(Arc::new(open.clone()), OpenShells::ENDS_WITHIN).await?;
    let process = enrolled.id();
    running.enrolled_shells = Some(enrolled);
    Ok((open, process))
}

/// Keeps an eye on the gateways of all processes, for those who wait for them.
pub(crate) fn watch_gateways(running: &mut Running, registry: Arc<Registry>) -> Arc<Registry> {
    let watching = Arc::clone(&registry).watch(running.stop.clone());
    running.essential.spawn("the registry of gateways", async move {
        watching.await;
        Ok(())
    });
    registry
}

/// The views that a role decides on: a process whose views have stopped refuses everything, and ends instead.
pub(crate) fn watch_views(running: &mut Running, plane: &ControlPlane) {
    let (hot, stop) = (Arc::clone(&plane.hot), running.stop.clone());
    running.essential.spawn("the views of rights", async move {
        stop.run_until_cancelled(hot.stopped()).await.map_or(Ok(()), |stopped| Err(stopped.into()))
    });
}

/// The projectors. One that needs a person shows in `/readyz` and goes on once its read model is rebuilt; where the log is
/// not the one that was folded, nothing here is worth running.
pub(crate) fn start_projector(running: &mut Running, plane: &ControlPlane, database: &Database) {
    let projector = Supervisor::start(&plane.log, database);
    let (another_log, stop) = (projector.another_log(), running.stop.clone());
    running.projector = Some(projector);
    running.essential.spawn("the projector", async move {
        match stop.run_until_cancelled(another_log).await {
            None => Ok(()),
            Some(why) => Err(anyhow::anyhow!(why)),
        }
    });
}

/// What reactors know of the log, for all of them in this process, and the timers, which fire in every process that has reactors.
pub(crate) fn start_world(running: &mut Running, plane: &ControlPlane) -> SharedWorld {
    let world = SharedWorld::new(Arc::clone(&plane.log));
    let (following, stop) = (world.clone(), running.stop.clone());
    running.essential.spawn("the reactors' world", async move { Ok(following.run(stop).await?) });
    let timers = Timers::new(Arc::clone(&plane.log), plane.commands.clone(), Arc::clone(&plane.clock));
    let stop = running.stop.clone();
    running.essential.spawn("the timers", async move { Ok(timers.run(stop).await?) });
    world
}

/// Opens this machine as a host, with what of our environment its services and git may see.
pub(crate) async fn open_host(mut config: envforge_runtime::Config) -> anyhow::Result<LocalHost> {
    // Developers' tools lie where their shell finds them. Nothing else of our environment reaches a service.
    if let Some(path) = environment("PATH") {
        config.path = path;
    }
    if let Some(agent) = environment("SSH_AUTH_SOCK") {
        config.git_environment.push(("SSH_AUTH_SOCK".to_owned(), agent));
    }
    // Whom git believes about servers.
    if let Some(authorities) = environment("GIT_SSL_CAINFO") {
        config.git_environment.push(("GIT_SSL_CAINFO".to_owned(), authorities));
    }
    // This very program, whatever became of its file since.
    config.root_guard = Some("/proc/self/exe".into());
    config.unix_users = Some(UNIX_USERS.into());
    if let Err(why) = UnixUsers::supported(&config.state_dir) {
        tracing::warn!(%why, "services run as EnvForge's own user: one can read another's secrets (docs/secrets.md)");
    }
    let (host, leftovers) = LocalHost::open(config).await?;
    for leftover in leftovers {
        tracing::warn!(
            workspace = %leftover.workspace,
            processes = leftover.processes,
            "ended what an earlier process had left running"
        );
    }
    Ok(host)
}

/// The agent of this machine with its reactors. Answers the agent. `public_authority` follows a host label in addresses.
pub(crate) async fn start_reactors(
    running: &mut Running,
    plane: &ControlPlane,
    world: &SharedWorld,
    hosts: &Hosts,
    state_dir: &Path,
    public_authority: String,
    secret_store: Option<Arc<dyn SecretStore>>,
) -> anyhow::Result<LocalHost> {
    let host = open_host(envforge_runtime::Config::new(state_dir)).await?;
    let machine = HostMachine::open(state_dir, Path::new(MACHINE_ID))?;
    let (commands, clock) = (plane.commands.clone(), Arc::clone(&plane.clock));
    hosts.add_local(host.clone(), machine.clone(), world.clone(), commands, clock);
    let telling = tell_shell_ends(
        world.clone(),
        plane.commands.clone(),
        Host::Local(host.clone()),
        machine.clone(),
        Arc::clone(&plane.clock),
    );
    let reactor = RuntimeReactor::new(
        world,
        plane.commands.clone(),
        Host::Local(host.clone()),
        machine,
        Arc::clone(&plane.clock),
        public_authority,
    );
    let reactor = with_secrets(reactor, secret_store);
    let (commands, hot, clock) = (plane.commands.clone(), Arc::clone(&plane.hot), Arc::clone(&plane.clock));
    let root = RootReactor::new(commands, hot, Host::Local(host.clone()), clock);
    let (reactor_stop, root_stop) = (running.stop.clone(), running.stop.clone());
    let shells_stop = running.stop.clone();
    running.essential.spawn("ends of former shells", async move {
        shells_stop.run_until_cancelled(telling).await;
        Ok(())
    });
    running.essential.spawn("the root reactor", async move {
        root.run(root_stop).await;
        Ok(())
    });
    running.essential.spawn("the runtime reactor", async move { Ok(reactor.run(reactor_stop).await?) });
    Ok(host)
}

/// Gives a reactor the process's secret store, where it has one.
pub(crate) fn with_secrets(reactor: RuntimeReactor, store: Option<Arc<dyn SecretStore>>) -> RuntimeReactor {
    match store {
        Some(store) => reactor.with_secrets(SecretResolver::new(store)),
        None => reactor,
    }
}

#[allow(clippy::disallowed_methods, reason = "the binary hands a few of its own variables to what it starts")]
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Tells the log what the gateway of this process sees used.
pub(crate) fn report_activity(running: &mut Running, plane: &ControlPlane, activity: Activity) {
    let reporting = activity::report(
        activity,
        Arc::clone(&plane.hot),
        plane.authorizer.clone(),
        plane.commands.clone(),
        Arc::clone(&plane.clock),
        running.stop.clone(),
    );
    running.essential.spawn("activity reports", async move {
        reporting.await;
        Ok(())
    });
}

/// Tells the log what this process refused.
pub(crate) fn report_denials(running: &mut Running, plane: &ControlPlane) {
    let stop = running.stop.clone();
    let reporting = denials::report(plane.authorizer.clone(), plane.commands.clone(), Arc::clone(&plane.clock), stop);
    running.essential.spawn("denial reports", async move {
        reporting.await;
        Ok(())
    });
}
