//! The API role: its parts, its listener, and the address that it got.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::Context as _;
use envforge_identity::self_hosted::SelfHosted;
use envforge_identity::share_token::SigningKey;
use envforge_projections::sql::Database;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::control_plane::{ControlPlane, Essential};
use super::sweeping;

/// What the API needs beside the control plane.
pub(crate) struct Parts {
    pub(crate) database: Database,
    pub(crate) identity: Arc<SelfHosted>,
    pub(crate) signing_key: Arc<SigningKey>,
    /// Where reviewers open share URLs.
    pub(crate) gateway_url: String,
    pub(crate) metrics: PrometheusHandle,
    /// Reverse proxies that say truly from where a request comes.
    pub(crate) trusted_proxies: Vec<IpAddr>,
    /// Projects may name repositories by a path of this machine.
    pub(crate) local_repositories: bool,
}

impl Parts {
    fn config(&self) -> anyhow::Result<envforge_api::Config> {
        let mut config = envforge_api::Config::new(envforge_api::GatewayUrl::parse(&self.gateway_url)?);
        config.trusted_proxies.clone_from(&self.trusted_proxies);
        config.local_repositories = self.local_repositories;
        Ok(config)
    }
}

/// Listens and serves in a task of its own. Answers the address, with the real port where 0 was asked for.
pub(crate) async fn start(
    essential: &mut Essential,
    plane: &ControlPlane,
    parts: Parts,
    listen: SocketAddr,
    stop: &CancellationToken,
) -> anyhow::Result<SocketAddr> {
    let config = parts.config()?;
    let sweeping =
        sweeping::sweep(Arc::clone(&parts.identity), parts.database.clone(), Arc::clone(&plane.clock), stop.clone());
    let connections_max = config.connections_max;
    let router = envforge_api::router(envforge_api::Parts {
        config,
        clock: Arc::clone(&plane.clock),
        log: Arc::clone(&plane.log),
        commands: plane.commands.clone(),
        authorizer: plane.authorizer.clone(),
        database: parts.database,
        identity: parts.identity,
        share_key: parts.signing_key,
        // Metrics name no organization's data, but they are for operators: only a loopback listener shows them.
        metrics: listen.ip().is_loopback().then_some(parts.metrics),
        stop: stop.clone(),
    });
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("the API cannot listen on {listen}; another address or port 0 with --listen"))?;
    let address = listener.local_addr()?;
    essential.spawn("sweeping", async move {
        sweeping.await;
        Ok(())
    });
    let stop = stop.clone();
    essential.spawn("the API", async move { Ok(envforge_api::serve(listener, router, connections_max, stop).await?) });
    Ok(address)
}
