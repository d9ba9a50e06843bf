//! The API role: its parts and its listener, and the listener of metrics that every role has.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use envforge_api::{AgentsAt, OpenShells};
use envforge_eventlog::gateways::Gateways;
use envforge_identity::oidc::{Oidc, PublicUrl};
use envforge_identity::share_token::SigningKey;
use envforge_identity::sign_in::Identity;
use envforge_projections::sql::Database;
use envforge_runtime::secret_store::SecretStore;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;

use super::control_plane::ControlPlane;
use super::hosts::Hosts;
use super::running::Running;
use super::shells::{GivenSecrets, HostShells};
use super::{secret_store, sweeping};
use crate::cli::failure::Failure;

/// What the API needs beside the control plane.
pub(crate) struct Parts {
    pub(crate) database: Database,
    pub(crate) identity: Arc<Identity>,
    pub(crate) oidc: Option<Arc<Oidc>>,
    pub(crate) signing_key: Arc<SigningKey>,
    /// Where reviewers open share URLs.
    pub(crate) gateway_url: String,
    /// Where browsers reach this API.
    pub(crate) public_url: Option<PublicUrl>,
    /// Those for which revocations wait.
    pub(crate) gateways: Arc<dyn Gateways>,
    /// What is open here, for which they wait, too.
    pub(crate) open_shells: OpenShells,
    pub(crate) metrics: PrometheusHandle,
    /// Reverse proxies that say truly from where a request comes.
    pub(crate) trusted_proxies: Vec<IpAddr>,
    /// Projects may name repositories by a path of this machine.
    pub(crate) local_repositories: bool,
    /// The hosts that this process reaches, where it is one that reaches any.
    pub(crate) hosts: Option<Hosts>,
    pub(crate) given: GivenSecrets,
    /// What whoever adds a host has to know, where there is an authority for agents.
    pub(crate) agents: Option<AgentsAt>,
    /// Where values of secrets go.
    pub(crate) secret_store: Option<Arc<dyn SecretStore>>,
}

impl Parts {
    fn config(&self) -> anyhow::Result<envforge_api::Config> {
        let mut config = envforge_api::Config::new(envforge_api::GatewayUrl::parse(&self.gateway_url)?);
        config.trusted_proxies.clone_from(&self.trusted_proxies);
        config.local_repositories = self.local_repositories;
        config.public_url.clone_from(&self.public_url);
        config.agents.clone_from(&self.agents);
        config.secrets = self.secret_store.clone().map(secret_store::puts);
        let secrets = self.given.clone();
        config.shells = self.hosts.clone().map(|hosts| envforge_api::Shells::new(HostShells { hosts, secrets }));
        Ok(config)
    }
}

/// Opens the API's socket. Before anything is made or started: an address that is taken is found out at once.
pub(crate) async fn bind(listen: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(listen).await.map_err(|error| {
        let what = format!("the API cannot listen on {listen}: {error}");
        Failure::local(what, "choose another address, or port 0 for a free one, with --listen").into()
    })
}

/// Serves in a task of its own.
pub(crate) fn start(
    running: &mut Running,
    plane: &ControlPlane,
    parts: Parts,
    listener: TcpListener,
) -> anyhow::Result<()> {
    let config = parts.config()?;
    let sweeping = sweeping::sweep(
        Arc::clone(&parts.identity),
        parts.database.clone(),
        Arc::clone(&plane.clock),
        running.stop.clone(),
    );
    running.essential.spawn("sweeping", async move {
        sweeping.await;
        Ok(())
    });
    let connections_max = config.connections_max;
    let stop = running.stop.clone();
    let router = envforge_api::router(envforge_api::Parts {
        config,
        clock: Arc::clone(&plane.clock),
        log: Arc::clone(&plane.log),
        commands: plane.commands.clone(),
        authorizer: plane.authorizer.clone(),
        database: parts.database,
        identity: parts.identity,
        gateways: parts.gateways,
        open_shells: parts.open_shells,
        oidc: parts.oidc,
        share_key: parts.signing_key,
        // Metrics name no organization's data, but they are for operators: only a loopback listener shows them.
        metrics: listener.local_addr()?.ip().is_loopback().then_some(parts.metrics),
        stop: stop.clone(),
    });
    let serving = async move { Ok(envforge_api::serve(listener, router, connections_max, stop).await?) };
    running.essential.spawn("the API", serving);
    Ok(())
}

/// Somebody who scrapes, and somebody who looks.
const METRICS_CONNECTIONS_MAX: usize = 16;

/// Shows this process's metrics on a loopback address, whatever its roles are. Answers the address.
pub(crate) async fn start_metrics(
    running: &mut Running,
    metrics: PrometheusHandle,
    listen: SocketAddr,
) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind(listen).await.map_err(|error| {
        let what = format!("metrics cannot be shown on {listen}: {error}");
        Failure::local(what, "choose another address, or port 0 for a free one, with --metrics-listen")
    })?;
    let address = listener.local_addr()?;
    let (router, stop) = (envforge_api::metrics_router(metrics), running.stop.clone());
    let serving = async move { Ok(envforge_api::serve(listener, router, METRICS_CONNECTIONS_MAX, stop).await?) };
    running.essential.spawn("the metrics listener", serving);
    Ok(address)
}
