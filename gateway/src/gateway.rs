//! A running gateway: puts the parts together, listens, and stops.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use envforge_domain::time::SharedClock;
use envforge_identity::share_token::ShareVerifier;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::activity::Activity;
use crate::blocked::BlockedCounters;
use crate::config::{Config, STANDING_INTERVAL, Scheme};
use crate::connection::{Certificates, ListenError, TlsError, bind, serve};
use crate::decisions::Decisions;
use crate::forward::Forwarding;
use crate::handoff::HandoffKey;
use crate::metric::Meters;
use crate::service::{Connection, Shared};
use crate::share::Share;
use crate::standing::Standing;
use crate::upstream::Upstreams;
use crate::wake::Waker;
use crate::websocket::Sockets;
use envforge_projections::gateway_view::GatewayView;

const SWEEP_INTERVAL: Duration = Duration::from_secs(5);
const BLOCKED_REPORT_INTERVAL: Duration = Duration::from_secs(10);
const CERTIFICATE_CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// What a gateway works with.
pub struct Parts {
    pub view: Arc<GatewayView>,
    pub decisions: Arc<dyn Decisions>,
    pub verifier: ShareVerifier,
    /// The same on all gateways of a domain.
    pub handoff_key: HandoffKey,
    /// Read by whoever decides over idle sleep.
    pub activity: Activity,
    pub clock: SharedClock,
}

/// Why a gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the gateway's configuration is wrong: {}", .problems.join("; "))]
    Config { problems: Vec<String> },
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A gateway that listens. Dropping it leaves it running; `stop` ends it.
pub struct Gateway {
    address: SocketAddr,
    origin: String,
    certificates: Option<Arc<Certificates>>,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Gateway {
    /// Checks the configuration, opens the socket and serves in tasks of its own.
    pub async fn start(mut config: Config, parts: Parts) -> Result<Self, StartError> {
        let problems = config.problems();
        if !problems.is_empty() {
            return Err(StartError::Config { problems });
        }
        let certificates = config.tls.clone().map(Certificates::load).transpose()?;
        let listener = bind(&config)?;
        let address = listener.local_addr().map_err(|source| ListenError::Bind { address: config.listen, source })?;
        if config.public_port == 0 {
            config.public_port = address.port();
        }
        if config.scheme == Scheme::PlainHttpDev {
            tracing::info!(
                "plain http on localhost: the session cookie is `envforge_session` without `Secure`, because not every \
                 client keeps Secure cookies there; production uses https and `__Host-envforge_session`"
            );
        }
        let origin = format!("{}://{}{}", config.scheme.as_str(), config.domain, config.port_suffix());
        let config = Arc::new(config);
        let stop = CancellationToken::new();
        let shared = shared(&config, parts, &origin, address);
        let serving = tokio::spawn(run(listener, config, certificates.clone(), shared, stop.clone()));
        Ok(Self { address, origin, certificates, stop, serving })
    }

    /// Where it listens; the port is the real one where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `https://dev.envforge.ai`: share URLs begin so.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// To have changed files read at once; within ten seconds they are noticed anyway.
    pub fn certificates(&self) -> Option<&Arc<Certificates>> {
        self.certificates.as_ref()
    }

    /// Stops accepting, lets requests under way finish for a while, closes sockets, reports the last counters.
    pub async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.serving.await {
            tracing::error!(%error, "the gateway ended badly");
        }
    }
}

fn shared(config: &Arc<Config>, parts: Parts, origin: &str, address: SocketAddr) -> Arc<Shared> {
    let meters = Arc::new(Meters::new());
    let upstreams = Upstreams::new(&config.limits, &config.timeouts, address, Arc::clone(&meters));
    let blocked = BlockedCounters::new();
    let standing = Standing::new(Arc::clone(&parts.view), Arc::clone(&parts.clock), config.timeouts.staleness_max);
    Arc::new(Shared {
        config: Arc::clone(config),
        view: Arc::clone(&parts.view),
        sockets: Sockets::new(&config.limits, meters.sockets.clone()),
        waker: Waker::new(
            Arc::clone(&parts.view),
            Arc::clone(&parts.decisions),
            Arc::clone(&standing),
            &config.limits,
            config.timeouts.hold,
            meters.held.clone(),
        ),
        share: Share {
            config: Arc::clone(config),
            view: Arc::clone(&parts.view),
            verifier: parts.verifier,
            handoff_key: parts.handoff_key,
            decisions: parts.decisions,
            standing: Arc::clone(&standing),
            clock: Arc::clone(&parts.clock),
            origin: origin.to_owned(),
        },
        forwarding: Forwarding {
            upstreams,
            standing: Arc::clone(&standing),
            activity: parts.activity,
            meters,
            limits: config.limits.clone(),
            timeouts: config.timeouts.clone(),
        },
        standing,
        clock: parts.clock,
        blocked,
    })
}

async fn run(
    listener: tokio::net::TcpListener,
    config: Arc<Config>,
    certificates: Option<Arc<Certificates>>,
    shared: Arc<Shared>,
    stop: CancellationToken,
) {
    let chores = tokio::spawn(chores(Arc::clone(&shared), certificates.clone(), stop.clone()));
    let sockets = Arc::clone(&shared.sockets);
    let (view, decisions) = (Arc::clone(&shared.view), Arc::clone(&shared.share.decisions));
    let last_report = CancellationToken::new();
    let reports = tokio::spawn(Arc::clone(&shared.blocked).report(
        view,
        decisions,
        Arc::clone(&shared.clock),
        BLOCKED_REPORT_INTERVAL,
        last_report.clone(),
    ));
    let make_service = move |client| Connection::new(Arc::clone(&shared), client);
    serve(listener, certificates, &config, make_service, stop).await;
    sockets.tasks.close();
    sockets.stop.cancel();
    sockets.tasks.wait().await;
    // Nobody counts any more: what was counted is reported now.
    last_report.cancel();
    for task in [chores, reports] {
        if let Err(error) = task.await {
            tracing::error!(%error, "one of the gateway's tasks ended badly");
        }
    }
}

async fn chores(shared: Arc<Shared>, certificates: Option<Arc<Certificates>>, stop: CancellationToken) {
    let mut look = tokio::time::interval(STANDING_INTERVAL);
    let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
    let mut check = tokio::time::interval(CERTIFICATE_CHECK_INTERVAL);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = look.tick() => shared.standing.look(),
            _ = sweep.tick() => shared.forwarding.upstreams.sweep(),
            _ = check.tick() => {
                if let Some(certificates) = &certificates {
                    // A failure is logged and counted where it happens.
                    let _ = certificates.reload_if_changed();
                }
            }
        }
    }
}
